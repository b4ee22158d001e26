"""Load a stored run as a report."""

from __future__ import annotations

from dataclasses import replace

from llmkit.errors import LLMEvaluationError
from llmkit.eval_ports import EvalStore
from llmkit.evals.call_names import name_prefix
from llmkit.evals.decide.stopping import replay_decision
from llmkit.evals.report.report import EvalReport
from llmkit.evals.results import sort_results
from llmkit.evals.tasks.task import Task

__all__ = ["load_report"]


async def load_report(store: EvalStore, workspace_id: str, name: str, *, task: Task | None = None) -> EvalReport:
    """Load the report of a stored run. Nothing is called.

    Args:
        store: The store with the run.
        workspace_id: Workspace of the run.
        name: Name of the run.
        task: Adds inputs, targets and groups to the report.

    Raises:
        LLMEvaluationError: There is no run of this name; the message lists the known ones.
    """
    run = await store.get_run(workspace_id, name)
    if run is None:
        known = ", ".join(other.name for other in await store.list_runs(workspace_id)) or "none yet"
        raise LLMEvaluationError(
            f"There is no evaluation {name!r:.140} in workspace {workspace_id!r}; there are: {known}."
        )
    results = await store.list_results(run.id)
    in_doubt = await store.list_calls_in_doubt(workspace_id, name_prefix(run))
    # Samples that were edited may be stored under the ids that they had before.
    samples = task.load().rename(run.spec.get("renamed", {})).by_id if task else {}
    if samples:
        results = tuple(sort_results(results, samples, run.spec.get("routes", ())))
    digests = await store.list_digests(workspace_id, name_prefix(run))
    spent = await store.sum_spending(workspace_id, name_prefix(run))
    report = EvalReport(
        run=run,
        results=results,
        dataset=samples,
        in_doubt=in_doubt,
        digests=digests,
        hosts=await store.list_hosts(workspace_id, name_prefix(run)),
        host_digests=await store.list_host_digests(run.id),
        spent=spent,
        task=task,
    )
    rule = run.spec.get("stop_when")
    if rule is None or len(report.variants) < 2:
        return report
    lower = rule["metric"] in report.lower_is_better
    return replace(report, decision=replay_decision(rule, report.variants, results, lower_is_better=lower))
