"""Load a stored run as a report."""

from __future__ import annotations

from typing import TYPE_CHECKING

from llmkit.errors import (
    LLMEvaluationError,
)
from llmkit.eval_ports import EvalStore
from llmkit.evals.call_names import name_prefix
from llmkit.evals.report.report import EvalReport
from llmkit.evals.tasks.task import Task

if TYPE_CHECKING:
    pass

__all__ = ["load_report"]


async def load_report(store: EvalStore, workspace_id: str, name: str, *, task: Task | None = None) -> EvalReport:
    """The report of a stored run, without calling anything.

    Args:
        store: Where it is.
        workspace_id: Whose it is.
        name: Its name.
        task: Adds inputs, targets and groups to the report.

    Raises:
        LLMEvaluationError: There is no run of this name; the message lists those that there are.
    """
    run = await store.get_run(workspace_id, name)
    if run is None:
        known = ", ".join(other.name for other in await store.list_runs(workspace_id)) or "none yet"
        raise LLMEvaluationError(f"There is no evaluation {name!r} in workspace {workspace_id!r}; there are: {known}.")
    results = await store.results(run.id)
    in_doubt = await store.in_doubt(workspace_id, name_prefix(run))
    samples = task.load().by_id if task else {}
    digests = await store.digests(workspace_id, name_prefix(run))
    spent = await store.sum_spending(workspace_id, name_prefix(run))
    return EvalReport(run=run, results=results, dataset=samples, in_doubt=in_doubt, digests=digests, spent=spent)
