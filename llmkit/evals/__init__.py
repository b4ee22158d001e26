"""The evaluation engine: tasks, scorers, runner, statistics, reports."""

from llmkit.evals.dataset import Dataset, Sample
from llmkit.evals.loader import load_tasks
from llmkit.evals.plan import EvaluateOptions
from llmkit.evals.progress import Progress
from llmkit.evals.report import EvalReport
from llmkit.evals.runner import evaluate, load_report
from llmkit.evals.scorers import Score, Scorer, exact_match, field_match, numeric_tolerance, set_f1
from llmkit.evals.task import Task
from llmkit.evals.variant import Variant

__all__ = [
    "Dataset",
    "EvalReport",
    "EvaluateOptions",
    "Progress",
    "Sample",
    "Score",
    "Scorer",
    "Task",
    "Variant",
    "evaluate",
    "exact_match",
    "field_match",
    "load_report",
    "load_tasks",
    "numeric_tolerance",
    "set_f1",
]
