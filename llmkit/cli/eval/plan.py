"""`llmkit eval plan`: an estimate of calls, tokens, time and cost before a run."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from llmkit.cli.option_groups import DataOptions, expand_groups
from llmkit.cli.output import (
    AsJson,
    MaxCostUsd,
    MaxTimeS,
    MaxTokens,
    Workspace,
    make_table,
    print_json,
    print_rich,
    split_routes,
)
from llmkit.errors import LLMBadRequest

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from llmkit.evals import Decided
    from llmkit.evals.estimate import EarlyStop, Forecast, MarginSize, Outlook, SampleSize

__all__ = ["eval_plan"]


@expand_groups
def eval_plan(  # noqa: PLR0913 - options of a command
    file: Annotated[Path, typer.Argument(help="A task file, as for `eval run`; one task.")],
    routes: Annotated[str, typer.Option(help="Routes to compare, separated by commas: provider/model.")],
    data: DataOptions,
    name: Annotated[str | None, typer.Option(help="Name of an existing run to continue.")] = None,
    history: Annotated[str | None, typer.Option(help="An earlier run or pilot to take tokens and times from.")] = None,
    epochs: Annotated[int, typer.Option(min=1, help="Repeats of every sample.")] = 1,
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first N samples.")] = None,
    concurrency: Annotated[
        int | None,
        typer.Option(min=1, help="Largest number of samples in progress at once; default LLM_CONCURRENCY_LIMIT."),
    ] = None,
    max_tokens: MaxTokens = None,
    max_cost_usd: MaxCostUsd = None,
    max_time_s: MaxTimeS = None,
    metric: Annotated[str | None, typer.Option(help="Metric in which a difference should be detected.")] = None,
    difference: Annotated[float | None, typer.Option(help="The difference to detect.")] = None,
    margin: Annotated[float | None, typer.Option(help="The margin of a gate, for the samples that it needs.")] = None,
    power: Annotated[
        float, typer.Option(help="Probability of detecting the difference, or of passing the gate.")
    ] = 0.8,
    stop_when: Annotated[
        str | None,
        typer.Option(
            metavar="RULE",
            help="The rule of `eval run --stop-when`, to estimate what it saves, at --difference or at that of the "
            "earlier run.",
        ),
    ] = None,
    workspace: Workspace = None,
    as_json: AsJson = False,
) -> None:
    """Estimate what a run needs, whether a budget suffices, and how many samples a difference needs. Calls nothing.

    Shows calls, tokens, seconds and, from list prices, dollars. What cannot be known is "unknown", never 0.
    """
    from llmkit.evals import Budget, load_tasks
    from llmkit.evals.estimate import early_stop, forecast, margin_size, outlook, sample_size
    from llmkit.notebook.evaluation import read_own_prices
    from llmkit.session import Session

    rule = _read_rule(stop_when, routes)
    metric = rule.metric if rule is not None and metric is None and difference is not None else metric
    if (metric is None) != (difference is None and margin is None):
        raise LLMBadRequest("Give --metric together with --difference, --margin or both.")
    task, *others = load_tasks(file)
    if others:
        raise LLMBadRequest(f"{file} has several tasks; give a file with one task")
    task = data.apply(task)
    with Session(workspace, warm_up=False) as session:
        run = None if name is None else session.report(name)
        earlier = run if history is None else session.report(history)
        settings, prices = session.settings, read_own_prices(session._core)  # noqa: SLF001 - part of the same package
    at_once = settings.concurrency_limit if concurrency is None else concurrency
    labels = split_routes(routes)
    known: dict[str, Any] = {"run": run, "history": earlier, "prices": prices}
    rows = forecast(task, labels, **known, epochs=epochs, limit=limit, concurrency=at_once, settings=settings)
    limits = outlook(rows, Budget(max_tokens, max_cost_usd, max_time_s), run)
    size = gate = None
    if metric is not None:
        groups = [sample.group for sample in task.load(limit)]
        if difference is not None:
            size = sample_size(metric, difference, history=earlier, groups=groups, power=power)
        if margin is not None:
            gate = margin_size(metric, margin, history=earlier, groups=groups, power=power)
    units = [] if rule is None else [sample.group for sample in task.load(limit)]
    stop = None if rule is None else early_stop(rule, difference=difference, history=earlier, groups=units)
    if as_json:
        document = {"routes": [asdict(row) for row in rows], "budget": [asdict(limit) for limit in limits]}
        sizes = {"sample_size": asdict(size) if size else None, "margin_size": asdict(gate) if gate else None}
        sizes |= {"stop_when": asdict(stop) if stop else None}
        print_json(document | sizes)
    else:
        _print_plan(rows, limits)
        for sentence in (*_describe_size(size), *_describe_gate(gate), *_describe_stop(rule, stop)):
            print_rich(sentence)


def _read_rule(stop_when: str | None, routes: str) -> Decided | None:
    from llmkit.evals import Decided

    if stop_when is not None and len(split_routes(routes)) != 2:
        raise LLMBadRequest("--stop-when compares two routes; name two in --routes.")
    return None if stop_when is None else Decided.parse(stop_when)


def _print_plan(rows: Sequence[Forecast], limits: Sequence[Outlook]) -> None:
    from rich.markup import escape

    listing = make_table(
        "route", "results", "done", "calls", "input tokens", "output tokens", "seconds", "USD", "known from"
    )
    for row in rows:
        seconds = "unknown" if row.time_s is None else f"{row.time_s:,.0f}"
        tokens = ["unknown" if count is None else f"{count:,}" for count in (row.input_tokens, row.output_tokens)]
        counts = [f"{count:,}" for count in (row.results, row.done, row.calls)]
        cost = "unknown" if row.cost_usd is None else f"{row.cost_usd:,.4f}"
        listing.add_row(escape(row.route), *counts, *tokens, seconds, cost, f"{row.known_from:,} results")
    print_rich(listing)
    for limit in limits:
        print_rich(_describe_limit(limit))


def _describe_size(size: SampleSize | None) -> Iterator[str]:
    from rich.markup import escape

    if size is None:
        return
    source = f"spread {size.spread:.3g} of {size.known_from} pairs" if size.known_from else "the widest spread"
    yield (
        f"A difference of {size.difference:g} in {escape(size.metric)} needs {size.samples:,} samples"
        f"{_describe_clusters(size.clusters)} to be detected with probability {size.power:.0%} ({source}, {size.test})."
    )


def _describe_gate(gate: MarginSize | None) -> Iterator[str]:
    from rich.markup import escape

    if gate is None:
        return
    noun = "samples" if gate.clusters is None else "groups"
    yield (
        f"A gate on {escape(gate.metric)} with margin {gate.margin:g} needs at least {gate.minimum:,} {noun}, even if "
        f"all answers are identical. Equally good variants pass with probability {gate.power:.0%} on {gate.samples:,} "
        f"samples{_describe_clusters(gate.clusters)}."
    )


def _describe_stop(rule: Decided | None, stop: EarlyStop | None) -> Iterator[str]:
    from rich.markup import escape

    if rule is None:
        return
    name = escape(rule.metric)
    if stop is None:
        yield f"What --stop-when on {name} saves is unknown: give --difference, or a pilot of two routes as --history."
        return
    at = "the difference of the earlier run" if stop.difference is None else f"a difference of {stop.difference:g}"
    source = f"drawn from {stop.known_from:,} pairs" if stop.known_from else "of independent zeros and ones"
    ran = f"{stop.expected_units:,.0f} of {stop.units:,} samples or groups run on average"
    saved = f"saves {stop.saving:.0%} of the calls" if stop.saving >= 0.01 else "saves next to nothing"
    yield (
        f"--stop-when on {name} {saved} at {at}: {ran}, and {stop.decided:.0%} of runs end with a decision "
        f"({stop.runs} simulated runs {source})."
    )


def _describe_clusters(clusters: int | None) -> str:
    return "" if clusters is None else f" in {clusters:,} groups like those of the dataset"


def _describe_limit(limit: Outlook) -> str:
    shape = _SHAPES[limit.limit]
    option = f"--{limit.limit.replace('_', '-')} {limit.allowed:{shape}}"
    if limit.planned is None:
        return f"Whether {option} suffices is unknown: run a short pilot and pass it as --history."
    spent = f"{limit.spent:{shape}} spent and " if limit.spent else ""
    verdict = "should suffice" if limit.suffices else "will not suffice"
    return f"{option} {verdict}: {spent}{limit.planned:{shape}} to come; reasks, retries and judges are extra."


_SHAPES = {"max_tokens": ",.0f", "max_cost_usd": ",.4f", "max_time_s": ",.0f"}
