"""Intervals and tests for scores: pure functions on arrays of numbers.

scipy does the work where it can, by its special functions for single numbers: its distributions take a hundred times
as long, and loading them (`scipy.stats`, which scipy does when it is named) longer than all the rest of a report. A
result that does not exist (the spread of one value) is NaN, never a guess.
"""

from llmkit.evals.statistics.intervals import (
    Estimate,
    bca_interval,
    clustered_mean,
    clustered_proportion,
    clustered_standard_error,
    is_binary,
    mean,
    mean_of,
    wilson,
)
from llmkit.evals.statistics.missing import (
    MissingDifference,
    MissingMean,
    difference_with_missing,
    mean_with_missing,
)
from llmkit.evals.statistics.paired import (
    NonInferiority,
    PairedDifference,
    holm,
    mcnemar_exact,
    non_inferiority,
    paired,
    paired_difference,
    paired_proportions,
    sign_flip,
    wilcoxon,
)
from llmkit.evals.statistics.planning import pairs_needed
from llmkit.evals.statistics.repeats import pass_at_k, pass_hat_k

__all__ = [
    "Estimate",
    "MissingDifference",
    "MissingMean",
    "NonInferiority",
    "PairedDifference",
    "bca_interval",
    "clustered_mean",
    "clustered_proportion",
    "clustered_standard_error",
    "difference_with_missing",
    "holm",
    "is_binary",
    "mcnemar_exact",
    "mean",
    "mean_of",
    "mean_with_missing",
    "non_inferiority",
    "paired",
    "paired_difference",
    "paired_proportions",
    "pairs_needed",
    "pass_at_k",
    "pass_hat_k",
    "sign_flip",
    "wilcoxon",
    "wilson",
]
