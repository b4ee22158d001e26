"""Scorers: how good a validated output is, as a number for each sample.

A scorer has a `name` and is called with the output and the sample. One that raises is a scorer error of that sample
and says nothing about the model.
"""

from collections.abc import Callable, Mapping

from llmkit.evals.scorers.apply import DEFAULT_SCORER_TIMEOUT_S, apply_scorers
from llmkit.evals.scorers.base import (
    ContextScorer,
    Score,
    Scorer,
    ScorerLike,
    Scores,
    ScoringContext,
    as_scorer,
    describe_scorer,
    is_lower_better,
    lower_is_better,
)
from llmkit.evals.scorers.dataset_metric import (
    Answered,
    DatasetMetric,
    balanced_accuracy,
    calibration,
    dataset_metric,
    is_dataset_metric,
    macro_f1,
    majority,
    per_class,
)
from llmkit.evals.scorers.json_schema import json_schema_valid
from llmkit.evals.scorers.judge import judge
from llmkit.evals.scorers.number import number_match
from llmkit.evals.scorers.target import (
    date_tolerance,
    exact_match,
    field_match,
    numeric_tolerance,
    ranked_list,
    set_f1,
)
from llmkit.evals.scorers.text import contains, regex_match, text_match, text_similarity

__all__ = [
    "DEFAULT_SCORER_TIMEOUT_S",
    "SCORERS",
    "Answered",
    "ContextScorer",
    "DatasetMetric",
    "Score",
    "Scorer",
    "ScorerLike",
    "Scores",
    "ScoringContext",
    "apply_scorers",
    "as_scorer",
    "balanced_accuracy",
    "calibration",
    "contains",
    "dataset_metric",
    "date_tolerance",
    "describe_scorer",
    "exact_match",
    "field_match",
    "is_dataset_metric",
    "is_lower_better",
    "json_schema_valid",
    "judge",
    "lower_is_better",
    "macro_f1",
    "majority",
    "number_match",
    "numeric_tolerance",
    "per_class",
    "ranked_list",
    "regex_match",
    "set_f1",
    "text_match",
    "text_similarity",
]

# The scorers that a YAML task can name.
SCORERS: Mapping[str, Callable[..., Scorer | DatasetMetric]] = {
    scorer.__name__: scorer
    for scorer in (
        balanced_accuracy,
        calibration,
        contains,
        date_tolerance,
        exact_match,
        field_match,
        json_schema_valid,
        judge,
        macro_f1,
        majority,
        number_match,
        numeric_tolerance,
        per_class,
        ranked_list,
        regex_match,
        set_f1,
        text_match,
        text_similarity,
    )
}
