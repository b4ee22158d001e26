"""Prices in the store, the cost of requests that have none, and costs by day.

Everything may run again, after a crash and beside a session that writes: each step is a short transaction that depends
only on what is stored, and changes nothing that is right.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Context, Decimal
from typing import Any, Final, NamedTuple

from sqlalchemy import (
    Connection,
    Engine,
    RowMapping,
    and_,
    bindparam,
    delete,
    func,
    insert,
    literal_column,
    select,
    tuple_,
    update,
)
from sqlalchemy.sql.elements import ColumnElement

from llmkit.persistence.addresses import DatabaseAddress
from llmkit.persistence.clock import DatabaseNow
from llmkit.persistence.engines import reading, writing
from llmkit.persistence.models import CostDayRow, PriceRow, table_of
from llmkit.persistence.rows import make_abandoned_values
from llmkit.persistence.statements import ATTEMPTS, RUNS, abandon_run
from llmkit.prices.price_list import RATES, Price, PriceList
from llmkit.types import RunStatus, TokenUsage, utc_now

__all__ = [
    "COST_COLUMNS",
    "Aggregated",
    "Priced",
    "aggregate_costs",
    "end_abandoned",
    "list_costs",
    "price_requests",
    "read_prices",
    "save_prices",
]

PRICES: Final = table_of(PriceRow)
DAYS: Final = table_of(CostDayRow)
COST_COLUMNS: Final = tuple(column.name for column in DAYS.columns)
BATCH: Final = 2_000
# A call that began before midnight may be written a little after it.
SETTLES_AFTER: Final = timedelta(hours=1)
# Wide enough for the exact sum of any number of floats that are costs.
EXACT: Final = Context(prec=100)
ZERO: Final = Decimal(0)

# Returns the cost of a request to an endpoint's model at a time; None when its price is not known.
CostOf = Callable[[str, str, datetime, TokenUsage], Decimal | None]

# Returns whether no process works on a call any more, from its owner, its last sign of life, and the present.
IsAbandoned = Callable[[str, datetime, datetime], bool]


class Priced(NamedTuple):
    """Result of pricing.

    Attributes:
        requests: Number of requests that got a cost.
        cost_usd: The sum of these costs.
        unknown: Number of requests with tokens for which there is no price, by route.
    """

    requests: int
    cost_usd: Decimal
    unknown: Mapping[str, int]


class Aggregated(NamedTuple):
    """Result of an aggregation.

    Attributes:
        days: Number of days that were written.
        rows: Number of their rows.
        closed_before: The first day that is not final, as `YYYY-MM-DD`.
        started: Number of calls under way that keep days open.
    """

    days: int
    rows: int
    closed_before: str
    started: int


# --- prices -------------------------------------------------------------------------------------------------------


def read_prices(engine: Engine, address: DatabaseAddress) -> PriceList:
    """Return all prices of the store."""
    with reading(engine, address) as connection:
        return select_prices(connection)


def select_prices(connection: Connection) -> PriceList:
    """Return all prices that a connection to the store sees."""
    return PriceList(
        tuple(map(_as_price, connection.execute(select(PRICES).order_by(*PRICES.primary_key)).mappings().all()))
    )


def _as_price(row: RowMapping) -> Price:
    rates = {name: None if row[name] is None else Decimal(row[name]) for name in RATES}
    return Price(**{**row, **rates})


def save_prices(engine: Engine, address: DatabaseAddress, prices: Sequence[Price]) -> int:
    """Store prices, and return how many are new or changed.

    Prices of a file replace all that were read from a file of that name. Those of a list are added only for models
    whose latest listed prices differ, and hold from today on if there were others before: a later version of the list
    says nothing about earlier times.
    """
    known = read_prices(engine, address).prices
    own = [price for price in prices if price.is_own]
    sources = {price.source for price in own}
    replaced = [price for price in known if price.is_own and price.source in sources]
    added = _find_new_listed(known, prices)
    changed = set(own) - set(replaced)
    with writing(engine, address) as connection:
        if set(own) != set(replaced):
            connection.execute(delete(PRICES).where(PRICES.c.is_own.is_(True), PRICES.c.source.in_(sources)))
            connection.execute(insert(PRICES), [_as_row(price) for price in own])
        for price in added:
            # Two versions of the list on one day: the later one holds.
            same = [PRICES.c[name] == getattr(price, name) for name in ("endpoint", "model", "above_input_tokens")]
            of_today = [PRICES.c.valid_from_utc == price.valid_from_utc, PRICES.c.is_own.is_(False)]
            connection.execute(delete(PRICES).where(*same, *of_today))
        if added:
            connection.execute(insert(PRICES), [_as_row(price) for price in added])
    return len(added) + len(changed)


def _find_new_listed(known: Sequence[Price], prices: Sequence[Price]) -> list[Price]:
    """Return the prices of a list that differ from the latest listed ones."""
    listed: dict[tuple[str, str], dict[datetime, list[Price]]] = {}
    for price in known:
        if not price.is_own:
            listed.setdefault((price.endpoint, price.model), {}).setdefault(price.valid_from_utc, []).append(price)
    by_model: dict[tuple[str, str], list[Price]] = {}
    for price in prices:
        if not price.is_own:
            by_model.setdefault((price.endpoint, price.model), []).append(price)
    today = utc_now().replace(hour=0, minute=0, second=0, microsecond=0)
    added: list[Price] = []
    for key, tiers in by_model.items():
        before = listed.get(key)
        if before is None:
            added += tiers
        elif set(map(_rates_of, before[max(before)])) != set(map(_rates_of, tiers)):
            added += [replace(price, valid_from_utc=today) for price in tiers]
    return added


def _rates_of(price: Price) -> tuple[Any, ...]:
    return price.above_input_tokens, *(getattr(price, name) for name in RATES)


def _as_row(price: Price) -> dict[str, Any]:
    values = {name: getattr(price, name) for name in Price.__slots__}
    return values | {name: None if values[name] is None else f"{values[name]:f}" for name in RATES}


# --- the cost of requests -----------------------------------------------------------------------------------------


def price_requests(
    engine: Engine,
    address: DatabaseAddress,
    cost_of: CostOf,
    *,
    workspace_id: str | None = None,
    reprice: bool = False,
) -> Priced:
    """Fill the cost of requests, and of the calls that they answered, where tokens are known and cost is not.

    Days that were final are open again when one of their requests gets a cost.

    Args:
        engine: From `make_engine`.
        address: Of the same database.
        cost_of: Returns the cost of a request.
        workspace_id: Only that one's; None for all.
        reprice: Replace known costs too, wherever there is a price.

    Raises:
        LLMStoreError: The database failed; what was priced until then stays so.
    """
    count, total, unknown = 0, Decimal(0), dict[str, int]()
    last: tuple[Any, int] | None = None
    while True:
        with reading(engine, address) as connection:
            query = _select_priceable(last, workspace_id, reprice=reprice)
            found = connection.execute(query).mappings().all()
        if not found:
            return Priced(count, total, unknown)
        last = (found[-1]["run_id"], found[-1]["number"])
        changes: list[tuple[RowMapping, float]] = []
        for row in found:
            usage = TokenUsage(**{name: row[name] for name in _TOKENS})
            cost = cost_of(row["provider"], row["model"], _aware(row["started_at_utc"]), usage)
            if cost is None:
                route = f"{row['provider']}/{row['model']}"
                unknown[route] = unknown.get(route, 0) + 1
            elif row["cost_usd"] is None or float(cost) != row["cost_usd"]:
                changes.append((row, float(cost)))
                total, count = total + cost, count + 1
        if changes:
            with writing(engine, address) as connection:
                _write_costs(connection, changes)


_TOKENS: Final = ("input_tokens", "output_tokens", "cached_input_tokens", "reasoning_tokens")


def _select_priceable(last: tuple[Any, int] | None, workspace_id: str | None, *, reprice: bool) -> Any:
    names = ("run_id", "number", "workspace_id", "provider", "model", "status", "started_at_utc", "cost_usd", *_TOKENS)
    query = select(*(ATTEMPTS.c[name] for name in names)).where(
        ATTEMPTS.c.input_tokens.is_not(None),
        ATTEMPTS.c.output_tokens.is_not(None),
        ATTEMPTS.c.usage_estimated.is_(False),
    )
    if not reprice:
        query = query.where(ATTEMPTS.c.cost_usd.is_(None))
    if workspace_id is not None:
        query = query.where(ATTEMPTS.c.workspace_id == workspace_id)
    key = (ATTEMPTS.c.run_id, ATTEMPTS.c.number)
    if last is not None:
        query = query.where(tuple_(*key) > tuple_(*last))
    return query.order_by(*key).limit(BATCH)


def _write_costs(connection: Connection, changes: Sequence[tuple[RowMapping, float]]) -> None:
    values = [{"at_run": row["run_id"], "at_number": row["number"], "usd": cost} for row, cost in changes]
    mine = and_(ATTEMPTS.c.run_id == bindparam("at_run"), ATTEMPTS.c.number == bindparam("at_number"))
    connection.execute(update(ATTEMPTS).where(mine).values(cost_usd=bindparam("usd")), values)
    # The answer of a call is that of its last request, which alone has succeeded.
    answered = and_(
        RUNS.c.id == bindparam("at_run"), RUNS.c.served_from == "provider", RUNS.c.attempts == bindparam("at_number")
    )
    of_answers = [each for each, (row, _cost) in zip(values, changes, strict=True) if row["status"] == "SUCCEEDED"]
    if of_answers:
        connection.execute(update(RUNS).where(answered).values(cost_usd=bindparam("usd")), of_answers)
    days = {(row["workspace_id"], _aware(row["started_at_utc"]).strftime("%Y-%m-%d")) for row, _cost in changes}
    for workspace_id, day in sorted(days):
        of_day = and_(DAYS.c.workspace_id == workspace_id, DAYS.c.day_utc == day, DAYS.c.is_closed.is_(True))
        connection.execute(update(DAYS).where(of_day).values(is_closed=False))


def _aware(moment: datetime) -> datetime:
    return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)


# --- calls without a process ----------------------------------------------------------------------------------------


def end_abandoned(engine: Engine, address: DatabaseAddress, is_abandoned: IsAbandoned) -> int:
    """End the calls that a killed process left STARTED, as the next equal call would, and return how many.

    Args:
        engine: From `make_engine`.
        address: Of the same database.
        is_abandoned: Judges a call by its owner, its last sign of life, and the database's present.
    """
    columns = (RUNS.c.id, RUNS.c.owner, RUNS.c.heartbeat_at_utc, DatabaseNow().label("now_utc"))
    with reading(engine, address) as connection:
        started = connection.execute(select(*columns).where(RUNS.c.status == str(RunStatus.STARTED))).all()
    ended = 0
    for row in started:
        if is_abandoned(row.owner, _aware(row.heartbeat_at_utc), _aware(row.now_utc)):
            seen = {"run_id": row.id, "seen_at_utc": row.heartbeat_at_utc}
            with writing(engine, address) as connection:
                ended += connection.execute(abandon_run(), make_abandoned_values(utc_now()) | seen).rowcount
    return ended


# --- costs by day -------------------------------------------------------------------------------------------------


def aggregate_costs(
    engine: Engine, address: DatabaseAddress, *, again: bool = False, now: datetime | None = None
) -> Aggregated:
    """Write the costs of every day that is not final, from the requests and calls of that day.

    A day is final when it is over and no call that began by its end is under way; a final day is not read again, so
    that it outlives the pruning of its calls. The same store gives the same rows.

    Args:
        engine: From `make_engine`.
        address: Of the same database.
        again: Write final days again too, for example after an import of old calls.
        now: For tests.

    Raises:
        LLMStoreError: The database failed; days that were written stay so.
    """
    with reading(engine, address) as connection:
        # Before the sums are read: a call that ends in between leaves its day open, and the next time counts it.
        started, first = connection.execute(
            select(func.count(), func.min(RUNS.c.created_at_utc)).where(RUNS.c.status == str(RunStatus.STARTED))
        ).one()
        ended = (now or utc_now()) - SETTLES_AFTER
        closed_before = min(ended, _aware(first)) if first is not None else ended
        limit = closed_before.strftime("%Y-%m-%d")
        final = set() if again else set(_list_final(connection))
        since = None if again or not final else _find_first_open(connection, final)
    with reading(engine, address) as connection:
        rows = _sum_days(connection, since)
    by_day: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for row in rows:
        key = (row["workspace_id"], row["day_utc"])
        if key not in final:
            by_day.setdefault(key, []).append({**row, "is_closed": row["day_utc"] < limit})
    for (workspace_id, day), values in sorted(by_day.items()):
        with writing(engine, address) as connection:
            connection.execute(delete(DAYS).where(DAYS.c.workspace_id == workspace_id, DAYS.c.day_utc == day))
            connection.execute(
                insert(DAYS), sorted(values, key=lambda row: (row["endpoint"], row["model"], row["stage"]))
            )
    return Aggregated(len(by_day), sum(map(len, by_day.values())), limit, started)


def _get_place(row: Mapping[str, Any]) -> tuple[str, str, str]:
    return row["endpoint"], row["model"], row["stage"]


def _list_final(connection: Connection) -> Iterator[tuple[str, str]]:
    found = connection.execute(select(DAYS.c.workspace_id, DAYS.c.day_utc).where(DAYS.c.is_closed.is_(True)).distinct())
    yield from ((row.workspace_id, row.day_utc) for row in found)


def _find_first_open(connection: Connection, final: set[tuple[str, str]]) -> datetime | None:
    """Return the beginning of the first day that is not final; None when that is not known without reading all.

    Every day up to the first one that is open in the table was final when that one was written, except days of
    workspaces without rows; those are found by their latest final day.
    """
    opened = connection.execute(select(func.min(DAYS.c.day_utc)).where(DAYS.c.is_closed.is_(False))).scalar()
    latest: dict[str, str] = {}
    for workspace_id, day in final:
        latest[workspace_id] = max(latest.get(workspace_id, ""), day)
    names = set(connection.execute(select(RUNS.c.workspace_id).distinct()).scalars())
    if names - set(latest):
        return None
    first = min([*latest.values(), *([] if opened is None else [opened])])
    return datetime.fromisoformat(first).replace(tzinfo=UTC)


def _sum_days(connection: Connection, since: datetime | None) -> list[dict[str, Any]]:
    """Return the rows of all days from a time on. Costs are added up exactly."""
    days: dict[tuple[str, ...], dict[str, Any]] = {}
    _add_requests(days, connection, since)
    stage, day = func.coalesce(RUNS.c.stage, literal_column("''")), _day_of(RUNS.c.created_at_utc, connection)
    group = (RUNS.c.workspace_id, day, RUNS.c.provider, RUNS.c.model, stage)
    served = (
        select(*group, func.count(), func.sum(RUNS.c.input_tokens), func.sum(RUNS.c.output_tokens))
        .where(RUNS.c.status == str(RunStatus.SUCCEEDED), RUNS.c.provider.is_not(None))
        .group_by(*group)
    )
    if since is not None:
        served = served.where(RUNS.c.created_at_utc >= since)
    for *names, calls, taken, given in connection.execute(served):
        row = days.get(key := tuple(names)) or _open_row(days, key)
        row["served_calls"] += calls
        row["served_input_tokens"] = None if taken is None else int(taken)
        row["served_output_tokens"] = None if given is None else int(given)
    for row in days.values():
        if row["cost_usd"] is None and not row["requests"]:
            row["cost_usd"] = ZERO  # nothing was sent, and that is known to cost nothing
        row["cost_usd"] = None if row["cost_usd"] is None else f"{row['cost_usd'].normalize(EXACT):f}"
    return list(days.values())


def _add_requests(days: dict[tuple[str, ...], dict[str, Any]], connection: Connection, since: datetime | None) -> None:
    """Add up the requests here: a database would add floats, and grouping by their values sorts a million rows."""
    stage, day = func.coalesce(RUNS.c.stage, literal_column("''")), _day_of(ATTEMPTS.c.started_at_utc, connection)
    group = (ATTEMPTS.c.workspace_id, day, ATTEMPTS.c.provider, ATTEMPTS.c.model, stage)
    sent = select(*group, ATTEMPTS.c.input_tokens, ATTEMPTS.c.output_tokens, ATTEMPTS.c.cost_usd).select_from(
        ATTEMPTS.join(RUNS, RUNS.c.id == ATTEMPTS.c.run_id)
    )
    if since is not None:
        sent = sent.where(ATTEMPTS.c.started_at_utc >= since)
    add = EXACT.add
    with connection.execution_options(yield_per=5_000).execute(sent) as found:
        for part in found.partitions():
            for workspace_id, at, endpoint, model, named, taken, given, cost in part:
                key = (workspace_id, at, endpoint, model, named)
                row = days.get(key) or _open_row(days, key)
                row["requests"] += 1
                if cost is None:
                    row["unpriced_requests"] += 1
                else:
                    row["cost_usd"] = add(row["cost_usd"] or ZERO, Decimal(repr(cost)))
                if taken is None or given is None:
                    row["uncounted_requests"] += 1
                if taken is not None:
                    row["billed_input_tokens"] = (row["billed_input_tokens"] or 0) + taken
                if given is not None:
                    row["billed_output_tokens"] = (row["billed_output_tokens"] or 0) + given


def _open_row(days: dict[tuple[str, ...], dict[str, Any]], key: tuple[str, ...]) -> dict[str, Any]:
    named = dict(zip(("workspace_id", "day_utc", "endpoint", "model", "stage"), key, strict=True))
    counts = dict.fromkeys(("requests", "uncounted_requests", "unpriced_requests", "served_calls"), 0)
    unknown = [name for name in COST_COLUMNS if name.endswith("_tokens") or name == "cost_usd"]
    days[key] = {**named, **counts, **dict.fromkeys(unknown)}
    return days[key]


def _day_of(moment: ColumnElement[Any], connection: Connection) -> ColumnElement[Any]:
    # Literals, not parameters: PostgreSQL takes two parameters of one value for two expressions to group by.
    if connection.dialect.name == "sqlite":
        return func.substr(moment, literal_column("1"), literal_column("10"))
    return func.to_char(func.timezone(literal_column("'UTC'"), moment), literal_column("'YYYY-MM-DD'"))


def list_costs(
    engine: Engine, address: DatabaseAddress, *, workspace_id: str | None = None, since: str | None = None
) -> list[dict[str, Any]]:
    """Return the rows of costs by day, oldest first.

    Args:
        engine: From `make_engine`.
        address: Of the same database.
        workspace_id: Only that one's; None for all.
        since: Only days from this one on, as `YYYY-MM-DD`.
    """
    query = select(DAYS).order_by(DAYS.c.day_utc, *DAYS.primary_key)
    if workspace_id is not None:
        query = query.where(DAYS.c.workspace_id == workspace_id)
    if since is not None:
        query = query.where(DAYS.c.day_utc >= since)
    with reading(engine, address) as connection:
        return [dict(row) for row in connection.execute(query).mappings()]
