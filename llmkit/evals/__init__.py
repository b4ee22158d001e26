"""The evaluation engine: tasks, scorers, runner, statistics, reports.

Names are loaded when they are first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from llmkit.evals.budget import Budget
    from llmkit.evals.ci.gate import GateRules
    from llmkit.evals.dataset.dataset import Dataset, Sample
    from llmkit.evals.decide.stopping import Decided
    from llmkit.evals.policies import Below, Cascade, Mix, Policy, RecordedStep, Split
    from llmkit.evals.report.load import load_report
    from llmkit.evals.report.report import EvalReport
    from llmkit.evals.run.options import EvaluateOptions, ScoreOptions
    from llmkit.evals.run.progress import Progress
    from llmkit.evals.run.runner import evaluate
    from llmkit.evals.scorers import (
        Answered,
        DatasetMetric,
        Score,
        Scorer,
        balanced_accuracy,
        calibration,
        contains,
        dataset_metric,
        date_tolerance,
        exact_match,
        field_match,
        json_schema_valid,
        judge,
        lower_is_better,
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
    from llmkit.evals.solve.model import (
        AsyncBoundConversation,
        AsyncBoundModel,
        BoundConversation,
        BoundModel,
        StepOptions,
    )
    from llmkit.evals.tasks.loader import load_tasks
    from llmkit.evals.tasks.policy_file import load_policies
    from llmkit.evals.tasks.task import Task
    from llmkit.evals.tasks.variant import Variant

__all__ = [
    "Answered",
    "AsyncBoundConversation",
    "AsyncBoundModel",
    "Below",
    "BoundConversation",
    "BoundModel",
    "Budget",
    "Cascade",
    "Dataset",
    "DatasetMetric",
    "Decided",
    "EvalReport",
    "EvaluateOptions",
    "GateRules",
    "Mix",
    "Policy",
    "Progress",
    "RecordedStep",
    "Sample",
    "Score",
    "ScoreOptions",
    "Scorer",
    "Split",
    "StepOptions",
    "Task",
    "Variant",
    "balanced_accuracy",
    "calibration",
    "contains",
    "dataset_metric",
    "date_tolerance",
    "evaluate",
    "exact_match",
    "field_match",
    "json_schema_valid",
    "judge",
    "load_policies",
    "load_report",
    "load_tasks",
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

_MODULES = {
    "llmkit.evals.budget": ("Budget",),
    "llmkit.evals.ci.gate": ("GateRules",),
    "llmkit.evals.dataset.dataset": (
        "Dataset",
        "Sample",
    ),
    "llmkit.evals.decide.stopping": ("Decided",),
    "llmkit.evals.policies": ("Below", "Cascade", "Mix", "Policy", "RecordedStep", "Split"),
    "llmkit.evals.report.load": ("load_report",),
    "llmkit.evals.report.report": ("EvalReport",),
    "llmkit.evals.run.options": ("EvaluateOptions", "ScoreOptions"),
    "llmkit.evals.run.progress": ("Progress",),
    "llmkit.evals.run.runner": ("evaluate",),
    "llmkit.evals.scorers": (
        "Answered",
        "DatasetMetric",
        "Score",
        "Scorer",
        "balanced_accuracy",
        "calibration",
        "contains",
        "dataset_metric",
        "date_tolerance",
        "exact_match",
        "field_match",
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
    ),
    "llmkit.evals.solve.model": (
        "AsyncBoundConversation",
        "AsyncBoundModel",
        "BoundConversation",
        "BoundModel",
        "StepOptions",
    ),
    "llmkit.evals.tasks.loader": ("load_tasks",),
    "llmkit.evals.tasks.policy_file": ("load_policies",),
    "llmkit.evals.tasks.task": ("Task",),
    "llmkit.evals.tasks.variant": ("Variant",),
}


def __getattr__(name: str) -> Any:
    for module, names in _MODULES.items():
        if name in names:
            return getattr(import_module(module), name)
    raise AttributeError(f"module 'llmkit.evals' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
