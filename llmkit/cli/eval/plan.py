"""`llmkit eval plan`: what a run will take, before it is paid for."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from llmkit.cli.output import (
    AsJson,
    MaxCostUsd,
    MaxTimeS,
    MaxTokens,
    Workspace,
    print_json,
    print_rich,
    table,
)
from llmkit.errors import LLMBadRequest

if TYPE_CHECKING:
    from collections.abc import Sequence

    from llmkit.evals.estimate import Forecast, Outlook, SampleSize

__all__ = ["eval_plan"]


def eval_plan(  # noqa: PLR0913 - options of a command
    file: Annotated[Path, typer.Argument(help="A task file, as for `eval run`; one task.")],
    routes: Annotated[str, typer.Option(help="Routes to compare, separated by commas: provider/model.")],
    name: Annotated[str | None, typer.Option(help="Name of a run that would be continued.")] = None,
    history: Annotated[str | None, typer.Option(help="An earlier run or pilot that tells tokens and times.")] = None,
    epochs: Annotated[int, typer.Option(min=1, help="Repeats of every sample.")] = 1,
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first N samples.")] = None,
    concurrency: Annotated[
        int | None, typer.Option(min=1, help="Most samples under way at once; default LLM_CONCURRENCY_LIMIT.")
    ] = None,
    max_tokens: MaxTokens = None,
    max_cost_usd: MaxCostUsd = None,
    max_time_s: MaxTimeS = None,
    metric: Annotated[str | None, typer.Option(help="Of which metric a difference is to be seen.")] = None,
    difference: Annotated[float | None, typer.Option(help="The difference to be seen.")] = None,
    power: Annotated[float, typer.Option(help="Chance to see it, if it is there.")] = 0.8,
    workspace: Workspace = None,
    as_json: AsJson = False,
) -> None:
    """Say what a run takes and whether a budget will do, and how many samples a difference needs. Calls nothing.

    A run takes calls, tokens, seconds and, by list prices, dollars; what nothing tells is unknown, and never 0.
    """
    from llmkit.evals import Budget, load_tasks
    from llmkit.evals.estimate import forecast, outlook, sample_size
    from llmkit.session import Session

    if (metric is None) != (difference is None):
        raise LLMBadRequest("--metric and --difference belong together")
    task, *others = load_tasks(file)
    if others:
        raise LLMBadRequest(f"{file} has several tasks; plan a file with one")
    with Session(workspace) as session:
        run = None if name is None else session.report(name)
        earlier = run if history is None else session.report(history)
        settings = session.settings
    at_once = settings.concurrency_limit if concurrency is None else concurrency
    labels = [route.strip() for route in routes.split(",") if route.strip()]
    known = {"run": run, "history": earlier}
    rows = forecast(task, labels, **known, epochs=epochs, limit=limit, concurrency=at_once, settings=settings)
    limits = outlook(rows, Budget(max_tokens, max_cost_usd, max_time_s), run)
    size = None
    if metric is not None and difference is not None:
        size = sample_size(metric, difference, history=earlier, power=power)
    if as_json:
        budget = [asdict(limit) for limit in limits]
        routes_of_plan = [asdict(row) for row in rows]
        print_json({"routes": routes_of_plan, "budget": budget, "sample_size": asdict(size) if size else None})
    else:
        _print(rows, limits, size)


def _print(rows: Sequence[Forecast], limits: Sequence[Outlook], size: SampleSize | None) -> None:
    from rich.markup import escape

    shown = table("route", "results", "done", "calls", "input tokens", "output tokens", "seconds", "USD", "known from")
    for row in rows:
        seconds = "unknown" if row.time_s is None else f"{row.time_s:,.0f}"
        tokens = ["unknown" if count is None else f"{count:,}" for count in (row.input_tokens, row.output_tokens)]
        counts = [f"{count:,}" for count in (row.results, row.done, row.calls)]
        cost = "unknown" if row.cost_usd is None else f"{row.cost_usd:,.4f}"
        shown.add_row(escape(row.route), *counts, *tokens, seconds, cost, f"{row.known_from:,} results")
    print_rich(shown)
    for limit in limits:
        print_rich(_compared(limit))
    if size is not None:
        source = f"spread {size.spread:.3g} of {size.known_from} pairs" if size.known_from else "the widest spread"
        print_rich(
            f"A difference of {size.difference:g} in {escape(size.metric)} needs {size.samples:,} samples to be seen "
            f"with a chance of {size.power:.0%} ({source})."
        )


def _compared(limit: Outlook) -> str:
    shape = _SHAPES[limit.limit]
    option = f"--{limit.limit.replace('_', '-')} {limit.allowed:{shape}}"
    if limit.planned is None:
        return f"Whether {option} will do is unknown: run a short pilot, and give it as --history."
    spent = f"{limit.spent:{shape}} spent and " if limit.spent else ""
    verdict = "should do" if limit.suffices else "will not do"
    return f"{option} {verdict}: {spent}{limit.planned:{shape}} to come; repairs, retries and judges come on top."


_SHAPES = {"max_tokens": ",.0f", "max_cost_usd": ",.4f", "max_time_s": ",.0f"}
