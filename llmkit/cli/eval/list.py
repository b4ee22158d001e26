"""`llmkit eval list`: the evaluations of a workspace."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, NamedTuple, Self

import typer

from llmkit.cli.output import AsJson, Workspace, make_table, print_json, print_rich

if TYPE_CHECKING:
    from llmkit.eval_ports import EvalRun

__all__ = ["eval_list"]


class _ListedRun(NamedTuple):
    name: str
    task: str
    created_at_utc: datetime
    results: int
    failed: int
    variants: tuple[str, ...]

    @classmethod
    def build(cls, run: EvalRun, results: int, failed: int) -> Self:
        """Combine what is stored of a run with its counts."""
        variants = tuple(run.spec.get("routes", {}))
        return cls(run.name, run.task_name, run.created_at_utc, results, failed, variants)


def eval_list(workspace: Workspace = None, as_json: AsJson = False) -> None:
    """List the evaluations of a workspace, newest first. Calls nothing."""
    from rich.markup import escape

    from llmkit.dataframes.store import count_eval_results
    from llmkit.notebook.history import read_store
    from llmkit.session import Session

    with Session(workspace, warm_up=False) as session:
        core = session._core  # noqa: SLF001 - part of the same package
        runs = core.run(core.eval_store.list_runs(core.workspace_id))
        counts = read_store(core, lambda connection: count_eval_results(connection, core.workspace_id))
    newest_first = sorted(runs, key=lambda run: run.created_at_utc, reverse=True)
    rows = [_ListedRun.build(run, *counts.get(run.name, (0, 0))) for run in newest_first]
    if as_json:
        print_json([row._asdict() for row in rows])
        return
    if not rows:
        typer.echo(f"Workspace {core.workspace_id!r} has no evaluations yet", err=True)
        return
    table = make_table("name", "task", "created", "results", "failed", "variants")
    for row in rows:
        counted = f"{row.results:,}", f"{row.failed:,}"
        created = f"{row.created_at_utc:%Y-%m-%d %H:%M}"
        table.add_row(*map(escape, (row.name, row.task, created, *counted, ", ".join(row.variants))))
    print_rich(table)
