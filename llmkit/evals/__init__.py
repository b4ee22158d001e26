"""The evaluation engine: tasks, scorers, runner, statistics, reports.

Names are loaded when they are first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from llmkit.evals.budget import Budget
    from llmkit.evals.ci.gate import GateRules
    from llmkit.evals.dataset.dataset import Dataset, Sample
    from llmkit.evals.decide.policies import Below, Cascade, Mix, RecordedStep, Split
    from llmkit.evals.decide.stopping import Decided
    from llmkit.evals.report.load import load_report
    from llmkit.evals.report.report import EvalReport
    from llmkit.evals.run.options import EvaluateOptions
    from llmkit.evals.run.progress import Progress
    from llmkit.evals.run.runner import evaluate
    from llmkit.evals.scorers import (
        Score,
        Scorer,
        date_tolerance,
        exact_match,
        field_match,
        json_schema_valid,
        judge,
        lower_is_better,
        numeric_tolerance,
        ranked_list,
        regex_match,
        set_f1,
        text_match,
        text_similarity,
    )
    from llmkit.evals.tasks.loader import load_tasks
    from llmkit.evals.tasks.task import Task
    from llmkit.evals.tasks.variant import Variant

__all__ = [
    "Below",
    "Budget",
    "Cascade",
    "Dataset",
    "Decided",
    "EvalReport",
    "EvaluateOptions",
    "GateRules",
    "Mix",
    "Progress",
    "RecordedStep",
    "Sample",
    "Score",
    "Scorer",
    "Split",
    "Task",
    "Variant",
    "date_tolerance",
    "evaluate",
    "exact_match",
    "field_match",
    "json_schema_valid",
    "judge",
    "load_report",
    "load_tasks",
    "lower_is_better",
    "numeric_tolerance",
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
    "llmkit.evals.decide.policies": ("Below", "Cascade", "Mix", "RecordedStep", "Split"),
    "llmkit.evals.report.load": ("load_report",),
    "llmkit.evals.report.report": ("EvalReport",),
    "llmkit.evals.run.options": ("EvaluateOptions",),
    "llmkit.evals.run.progress": ("Progress",),
    "llmkit.evals.run.runner": ("evaluate",),
    "llmkit.evals.scorers": (
        "Score",
        "Scorer",
        "date_tolerance",
        "exact_match",
        "field_match",
        "json_schema_valid",
        "judge",
        "lower_is_better",
        "numeric_tolerance",
        "ranked_list",
        "regex_match",
        "set_f1",
        "text_match",
        "text_similarity",
    ),
    "llmkit.evals.tasks.loader": ("load_tasks",),
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
