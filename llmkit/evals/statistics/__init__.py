"""Intervals and tests for scores: pure functions on arrays of numbers.

scipy does the work where it can, by its special functions for single numbers: its distributions take a hundred times
as long, and loading them (`scipy.stats`, which scipy does when it is named) longer than all the rest of a report. A
result that does not exist (the spread of one value) is NaN, never a guess.
"""

from llmkit.evals.statistics.intervals import (
    Estimate,
    bootstrap_mean,
    compute_clustered_error,
    compute_clustered_freedom,
    estimate_clustered_mean,
    estimate_clustered_share,
    estimate_mean,
    estimate_share,
    estimate_t_mean,
    is_binary,
)
from llmkit.evals.statistics.missing import (
    MissingDifference,
    MissingMean,
    bound_difference,
    bound_mean,
)
from llmkit.evals.statistics.paired import (
    NonInferiority,
    PairedDifference,
    adjust_holm,
    check_non_inferiority,
    compare_means,
    compare_pairs,
    compare_shares,
    compute_mcnemar_p,
    compute_sign_flip_p,
    compute_wilcoxon_p,
)
from llmkit.evals.statistics.planning import (
    count_equal_pairs_for_margin,
    count_pairs_for_margin,
    count_pairs_needed,
    count_share_pairs_needed,
)
from llmkit.evals.statistics.repeats import estimate_pass_at_k, estimate_pass_hat_k

__all__ = [
    "Estimate",
    "MissingDifference",
    "MissingMean",
    "NonInferiority",
    "PairedDifference",
    "adjust_holm",
    "bootstrap_mean",
    "bound_difference",
    "bound_mean",
    "check_non_inferiority",
    "compare_means",
    "compare_pairs",
    "compare_shares",
    "compute_clustered_error",
    "compute_clustered_freedom",
    "compute_mcnemar_p",
    "compute_sign_flip_p",
    "compute_wilcoxon_p",
    "count_equal_pairs_for_margin",
    "count_pairs_for_margin",
    "count_pairs_needed",
    "count_share_pairs_needed",
    "estimate_clustered_mean",
    "estimate_clustered_share",
    "estimate_mean",
    "estimate_pass_at_k",
    "estimate_pass_hat_k",
    "estimate_share",
    "estimate_t_mean",
    "is_binary",
]
