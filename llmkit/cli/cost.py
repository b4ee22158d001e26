"""`llmkit cost`: prices, the cost of stored requests, and costs by day."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any

import typer

from llmkit.cli.db import open_store
from llmkit.cli.output import AsJson, make_table, print_json, print_rich
from llmkit.settings import load_settings

__all__ = ["cost_app"]

cost_app = typer.Typer(help="Prices of tokens, and what stored calls cost.", no_args_is_help=True)

WorkspaceName = Annotated[str | None, typer.Option("--workspace", "-w", help="Only this workspace; default all.")]


@cost_app.command("prices")
def cost_prices(
    file: Annotated[
        Path | None,
        typer.Option(
            "--import",
            help="A CSV or TOML file with your own prices; it replaces those of a file of that name.",
        ),
    ] = None,
    endpoint: Annotated[str | None, typer.Option(help="Only prices of this endpoint.")] = None,
    as_json: AsJson = False,
) -> None:
    """Show the prices in USD per million tokens: those of the installed LiteLLM's list, and yours, which win."""
    from llmkit.persistence.costs import read_prices, save_prices
    from llmkit.prices.price_files import read_price_file

    own = [] if file is None else read_price_file(file)
    with open_store(load_settings()) as journal:
        where = journal.engine, journal.address
        save_prices(*where, _read_list())
        if file is not None:
            changed = save_prices(*where, own)
            typer.echo(f"Read {len(own):,} prices from {file}; {changed:,} are new or changed", err=True)
        prices = [each for each in read_prices(*where).prices if endpoint in (None, each.endpoint)]
    rows = [
        {
            "endpoint": each.endpoint,
            "model": each.model,
            "valid_from": f"{each.valid_from_utc:%Y-%m-%d %H:%M}",
            "above_input_tokens": each.above_input_tokens,
            "input_usd": each.input_usd,
            "cached_input_usd": each.cached_input_usd,
            "output_usd": each.output_usd,
            "reasoning_usd": each.reasoning_usd,
            "source": each.source,
        }
        for each in prices
    ]
    _print_rows(rows, as_json=as_json)


@cost_app.command("price")
def cost_price(
    workspace: WorkspaceName = None,
    reprice: Annotated[bool, typer.Option(help="Replace known costs too, wherever there is a price.")] = False,
    as_json: AsJson = False,
) -> None:
    """Fill the cost of requests and calls that have tokens and no cost, by the price of their time."""
    from functools import partial

    from llmkit.persistence.costs import price_requests, read_prices, save_prices
    from llmkit.pricing import compute_cost
    from llmkit.providers import load_endpoints

    settings = load_settings()
    endpoints = load_endpoints(settings)
    with open_store(settings) as journal:
        where = journal.engine, journal.address
        save_prices(*where, _read_list())
        cost_of = partial(compute_cost, read_prices(*where), endpoints)
        priced = price_requests(*where, cost_of, workspace_id=workspace, reprice=reprice)
    if as_json:
        print_json({"requests": priced.requests, "cost_usd": f"{priced.cost_usd:f}", "unknown": priced.unknown})
        return
    typer.echo(f"Priced {priced.requests:,} requests: ${priced.cost_usd:,.6f}")
    for route, count in sorted(priced.unknown.items()):
        typer.echo(f"The price of {route} is not known ({count:,} requests): add it with llmkit cost prices --import")


@cost_app.command("aggregate")
def cost_aggregate(
    again: Annotated[bool, typer.Option(help="Also days that are final, for example after an import.")] = False,
    as_json: AsJson = False,
) -> None:
    """Write the costs of each UTC day to llm_costs_daily. A day is final when no call that could belong to it runs.

    Calls that a killed process left STARTED are ended first: they are FAILED, abandoned.
    """
    from llmkit.calls.liveness import looks_abandoned
    from llmkit.persistence.costs import aggregate_costs, end_abandoned

    settings = load_settings()
    with open_store(settings) as journal:
        end_abandoned(
            journal.engine,
            journal.address,
            lambda owner, heard, now: looks_abandoned(owner, heard, settings.abandoned_after_s, now),
        )
        found = aggregate_costs(journal.engine, journal.address, again=again)
    if as_json:
        print_json(found._asdict())
        return
    held = f"; {found.started:,} calls under way hold days open" if found.started else ""
    typer.echo(f"Wrote {found.days:,} days ({found.rows:,} rows); final before {found.closed_before}{held}")


@cost_app.command("show")
def cost_show(
    workspace: WorkspaceName = None,
    since: Annotated[
        datetime | None, typer.Option(formats=["%Y-%m-%d"], help="Only days from this one on (UTC).")
    ] = None,
    by: Annotated[str, typer.Option(help="Columns to add up by, separated by commas.")] = "day_utc,endpoint,model",
    as_json: AsJson = False,
) -> None:
    """Show the costs by day that `aggregate` wrote. A cost is the sum of what is known; the rest is unpriced."""
    from llmkit.errors import LLMBadRequest
    from llmkit.persistence.costs import list_costs

    names = [name.strip() for name in by.split(",") if name.strip()]
    known = ("workspace_id", "day_utc", "endpoint", "model", "stage")
    unknown = [name for name in names if name not in known]
    if unknown or not names:
        raise LLMBadRequest(f"--by takes {', '.join(known)}; got {by!r}")
    with open_store(load_settings()) as journal:
        first = None if since is None else f"{since:%Y-%m-%d}"
        rows = list_costs(journal.engine, journal.address, workspace_id=workspace, since=first)
    totals: dict[tuple[str, ...], dict[str, Any]] = {}
    for row in rows:
        key = tuple(row[name] for name in names)
        totals[key] = _add_rows(totals.get(key, {name: row[name] for name in names}), row)
    _print_rows(list(totals.values()), as_json=as_json)


_SUMS = (
    "requests",
    "unpriced_requests",
    "uncounted_requests",
    "billed_input_tokens",
    "billed_output_tokens",
    "cost_usd",
    "served_calls",
    "served_input_tokens",
    "served_output_tokens",
)


def _add_rows(total: dict[str, Any], row: Mapping[str, Any]) -> dict[str, Any]:
    """Return the sums with a row added. A sum of nothing that is known stays None."""
    for name in _SUMS:
        amount = row[name]
        if name == "cost_usd" and amount is not None:
            amount = Decimal(amount)
        before = total.get(name)
        total[name] = amount if before is None else before if amount is None else before + amount
    return total


def _read_list() -> list[Any]:
    from llmkit.prices.price_files import read_listed_prices
    from llmkit.pricing import find_listed_endpoints
    from llmkit.providers import load_endpoints

    return read_listed_prices(find_listed_endpoints(load_endpoints(load_settings())))


def _print_rows(rows: list[dict[str, Any]], *, as_json: bool) -> None:
    plain = [{name: f"{each:f}" if isinstance(each, Decimal) else each for name, each in row.items()} for row in rows]
    if as_json:
        print_json(plain)
        return
    from rich.markup import escape

    listing = make_table(*(plain[0] if plain else ("nothing is there yet",)))
    for row in plain:
        listing.add_row(*("unknown" if each is None else escape(str(each)) for each in row.values()))
    print_rich(listing)
