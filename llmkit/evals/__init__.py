"""The evaluation engine: tasks, scorers, runner, statistics, reports."""

from llmkit.evals.budget import Budget
from llmkit.evals.dataset.dataset import Dataset, Sample
from llmkit.evals.report.load import load_report
from llmkit.evals.report.report import EvalReport
from llmkit.evals.run.plan import EvaluateOptions
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
    "Budget",
    "Dataset",
    "EvalReport",
    "EvaluateOptions",
    "Progress",
    "Sample",
    "Score",
    "Scorer",
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
