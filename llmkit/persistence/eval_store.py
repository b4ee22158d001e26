"""Evaluations and their results, written through the journal's group commit and read directly."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import datetime
from functools import cached_property
from typing import Any, Final
from uuid import UUID

from sqlalchemy import (
    ColumnElement,
    Connection,
    Dialect,
    RowMapping,
    Select,
    and_,
    bindparam,
    case,
    func,
    literal_column,
    or_,
    select,
    type_coerce,
)
from sqlalchemy.types import NULLTYPE

from llmkit.errors import ABANDONED_CODE, LLMStoreError
from llmkit.eval_ports import (
    MOST_PLAUSIBLE_TOKENS,
    CallKey,
    CallUnderWay,
    DigestSeen,
    EvalOutcome,
    EvalResult,
    EvalRun,
    EvalSpending,
    HostDigest,
    HostUse,
    RecordedCall,
    ResultCount,
)
from llmkit.persistence.clock import DatabaseNow
from llmkit.persistence.compiled_statements import PreparedSelect
from llmkit.persistence.eval_operations import NoteDigests, NoteSharedCall, OpenEvalRun, SaveEvalResult, UpdateEvalRun
from llmkit.persistence.eval_rows import eval_run_of, make_recorded_call
from llmkit.persistence.journal import Journal
from llmkit.persistence.rows import make_stored_run
from llmkit.persistence.statements import (
    ATTEMPTS,
    EVAL_DIGESTS,
    EVAL_RESULTS,
    EVAL_RUNS,
    RUNS,
    SHARED_CALLS,
    compile_statement,
    select_stored_run,
)
from llmkit.ports import DOUBTFUL_STATUSES, Leases, StoredRun
from llmkit.types import AttemptStatus, Route, RunStatus

__all__ = ["SqlEvalStore"]

# `{}` and `[]`, which most rows have.
EMPTY_JSON = 2


class SqlEvalStore:
    """`EvalStore` on an open journal, which the caller closes.

    Args:
        journal: Where it writes.
        stores_payloads: Whether the outputs are kept, and what scorers said of them; scores are in any case.
        leases: Where processes share the budgets of runs; None for budgets of this process alone.
    """

    def __init__(self, journal: Journal, *, stores_payloads: bool = True, leases: Leases | None = None) -> None:
        self._journal = journal
        self._stores_payloads = stores_payloads
        self._leases = leases

    @property
    def leases(self) -> Leases | None:
        """See `EvalStore`."""
        return self._leases

    async def open_run(self, run: EvalRun) -> EvalRun:
        """See `EvalStore`."""
        await self._journal.perform(OpenEvalRun(run))
        found = await self.get_run(run.workspace_id, run.name)
        if found is None:
            raise LLMStoreError(f"The evaluation {run.name!r} was erased while it was opened. Start it again.")
        return found

    async def get_run(self, workspace_id: str, name: str) -> EvalRun | None:
        """See `EvalStore`."""
        query = select(EVAL_RUNS).where(EVAL_RUNS.c.workspace_id == workspace_id, EVAL_RUNS.c.name == name)
        runs = await self._journal.read(lambda connection: _eval_runs(connection, query))
        return runs[0] if runs else None

    async def update_run(self, run: EvalRun) -> None:
        """See `EvalStore`."""
        await self._journal.perform(UpdateEvalRun(run))

    async def list_runs(self, workspace_id: str) -> tuple[EvalRun, ...]:
        """See `EvalStore`."""
        newest_first = (EVAL_RUNS.c.created_at_utc.desc(), EVAL_RUNS.c.id.desc())
        query = select(EVAL_RUNS).where(EVAL_RUNS.c.workspace_id == workspace_id).order_by(*newest_first)
        return await self._journal.read(lambda connection: _eval_runs(connection, query))

    async def save_result(self, result: EvalResult) -> None:
        """See `EvalStore`."""
        if not self._stores_payloads:
            result = replace(result, output_json=None, answer_json=None, score_details={})
        await self._journal.perform(SaveEvalResult(result))

    async def list_results(self, eval_run_id: UUID) -> tuple[EvalResult, ...]:
        """See `EvalStore`."""
        query = self._queries.results
        found = await self._journal.read(lambda connection: _results(connection, query, eval_run_id))
        # Sorted here: databases sort text by rules of their own.
        return tuple(sorted(found, key=lambda result: (result.sample_id, result.route, result.epoch)))

    async def get_result(self, eval_run_id: UUID, sample_id: str, route: str, epoch: int) -> EvalResult | None:
        """See `EvalStore`."""
        run_id = self._journal.statements.codec.uuid(eval_run_id)
        row = await self._journal.find(self._queries.result, run_id, sample_id, route, epoch)
        return None if row is None else _result(eval_run_id, row, {})

    async def list_outcomes(self, eval_run_id: UUID) -> list[EvalOutcome]:
        """See `EvalStore`."""
        query = self._queries.outcomes
        return await self._journal.read(lambda connection: _outcomes(connection, query, eval_run_id))

    async def note_shared_call(self, call_id: UUID, *, is_stopped: bool) -> None:
        """See `EvalStore`."""
        await self._journal.perform(NoteSharedCall(call_id, is_stopped=is_stopped))

    async def is_call_stopped(self, call_id: UUID) -> bool | None:
        """See `EvalStore`."""
        query = select(SHARED_CALLS.c.is_stopped).where(SHARED_CALLS.c.id == call_id)
        return await self._journal.read(lambda connection: connection.execute(query).scalar())

    async def list_call_keys(self, workspace_id: str, pipeline_run_id: str) -> list[CallKey]:
        """See `EvalStore`."""
        query = select(RUNS.c.idempotency_key, RUNS.c.status, RUNS.c.error_code, RUNS.c.created_at_utc).where(
            RUNS.c.workspace_id == workspace_id,
            RUNS.c.pipeline_run_id == pipeline_run_id,
            RUNS.c.idempotency_key.is_not(None),
        )
        return await self._journal.read(
            lambda connection: [
                CallKey(key, RunStatus(status), code, at_utc) for key, status, code, at_utc in connection.execute(query)
            ]
        )

    async def count_results(self, eval_run_id: UUID, old_until_utc: datetime) -> list[ResultCount]:
        """See `EvalStore`."""
        query = _count_results(eval_run_id, old_until_utc)
        return await self._journal.read(
            lambda connection: [
                ResultCount(route, status, code, bool(is_old), int(results), int(requests))
                for route, status, code, is_old, results, requests in connection.execute(query)
            ]
        )

    async def list_calls_under_way(self, workspace_id: str, pipeline_run_id_prefix: str) -> list[CallUnderWay]:
        """See `EvalStore`."""
        # A literal: SQLite uses a partial index only for a condition that it sees when it compiles the statement.
        started = RUNS.c.status == literal_column(f"'{RunStatus.STARTED.value}'")
        query = select(RUNS.c.pipeline_run_id, RUNS.c.owner, RUNS.c.heartbeat_at_utc, DatabaseNow()).where(
            RUNS.c.workspace_id == workspace_id, self._begins(pipeline_run_id_prefix), started
        )
        return await self._journal.read(lambda connection: [CallUnderWay(*row) for row in connection.execute(query)])

    async def list_called_names(self, workspace_id: str, pipeline_run_id_prefix: str) -> list[str]:
        """See `EvalStore`."""
        query = select(RUNS.c.pipeline_run_id).where(
            RUNS.c.workspace_id == workspace_id,
            self._begins(pipeline_run_id_prefix),
            RUNS.c.stage == "sample",
            RUNS.c.status != RunStatus.FAILED.value,
        )
        query = query.order_by(RUNS.c.created_at_utc, RUNS.c.id)
        return await self._journal.read(lambda connection: list(connection.execute(query).scalars()))

    async def list_calls_in_doubt(self, workspace_id: str, pipeline_run_id_prefix: str) -> tuple[StoredRun, ...]:
        """See `EvalStore`. Oldest first."""
        query = _in_doubt(workspace_id, self._begins(pipeline_run_id_prefix))
        return await self._journal.read(lambda connection: _fetch_runs(connection, query))

    async def list_digests(self, workspace_id: str, pipeline_run_id_prefix: str) -> tuple[DigestSeen, ...]:
        """See `EvalStore`."""
        query = _digests(workspace_id, self._begins(pipeline_run_id_prefix))
        return await self._journal.read(lambda connection: _digests_seen(connection, query))

    async def list_hosts(self, workspace_id: str, pipeline_run_id_prefix: str) -> tuple[HostUse, ...]:
        """See `EvalStore`."""
        query = _select_hosts(workspace_id, self._begins(pipeline_run_id_prefix))
        return await self._journal.read(lambda connection: _host_uses(connection, query))

    async def note_digests(self, eval_run_id: UUID, digests: Sequence[HostDigest]) -> None:
        """See `EvalStore`."""
        if digests:
            await self._journal.perform(NoteDigests(eval_run_id, digests))

    async def list_host_digests(self, eval_run_id: UUID) -> tuple[HostDigest, ...]:
        """See `EvalStore`."""
        seen = EVAL_DIGESTS.c
        query = select(seen.host, seen.provider, seen.model, seen.digest).where(seen.eval_run_id == eval_run_id)
        query = query.order_by(seen.provider, seen.model, seen.host)
        return await self._journal.read(lambda connection: _host_digests(connection, query))

    async def sum_spending(
        self, workspace_id: str, pipeline_run_id_prefix: str, owner: str | None = None
    ) -> tuple[EvalSpending, ...]:
        """See `EvalStore`."""
        query = _select_spending(workspace_id, self._begins(pipeline_run_id_prefix))
        if owner is not None:
            query = query.where(RUNS.c.owner == owner)
        return await self._journal.read(lambda connection: _spendings(connection, query))

    async def list_calls(self, workspace_id: str, pipeline_run_id_prefix: str) -> tuple[RecordedCall, ...]:
        """See `EvalStore`."""
        mine = (RUNS.c.workspace_id == workspace_id, self._begins(pipeline_run_id_prefix))
        calls = select(*[RUNS.c[name] for name in _CALL_COLUMNS], _tool_answer()).where(*mine)
        calls = calls.order_by(RUNS.c.created_at_utc, RUNS.c.id)
        sent = select(ATTEMPTS).join(RUNS, RUNS.c.id == ATTEMPTS.c.run_id).where(*mine).order_by(ATTEMPTS.c.number)
        return await self._journal.read(lambda connection: _fetch_calls(connection, calls, sent))

    def _begins(self, prefix: str) -> ColumnElement[bool]:
        name = RUNS.c.pipeline_run_id
        if self._journal.address.is_sqlite:
            # Its order of text is that of the bytes, so that the index is of use.
            return and_(name >= prefix, name < prefix[:-1] + chr(ord(prefix[-1]) + 1))
        # Not LIKE, for `_` and `%` are in names.
        return func.substr(name, 1, len(prefix)) == prefix

    @cached_property
    def _queries(self) -> _Queries:
        return _Queries(self._journal.engine.dialect)


_CALL_COLUMNS = (
    *("id", "pipeline_run_id", "stage", "status", "served_from", "request_preview", "response_preview"),
    *("error_code", "error_message", "metadata_json"),
)


def _tool_answer() -> ColumnElement[Any]:
    """Return the stored answer of a call that has no text: it may be in the arguments of a tool."""
    return case((RUNS.c.response_preview == "", RUNS.c.result_json)).label("result_json")


# In the order of `EvalResult`, without the run.
_RESULT_COLUMNS: Final = (
    "route",
    "sample_id",
    "epoch",
    "status",
    "finished_at_utc",
    "pipeline_run_id",
    "served_route",
    "output_json",
    "output_mode",
    "scores_json",
    "scorer_errors_json",
    "score_details_json",
    "valid_first_try",
    "outcome",
    "schema_sha256",
    "sample_group",
    "error_code",
    "error_message",
    "input_tokens",
    "output_tokens",
    "latency_ms",
    "requests",
    "warnings_json",
    "answer_json",
    "content_digest",
    "logprob_mean",
    "logprob_min",
    "field_logprobs_json",
)
_JSON: Final = tuple(
    _RESULT_COLUMNS.index(name) for name in ("scores_json", "scorer_errors_json", "score_details_json", "warnings_json")
)
_WARNINGS: Final = _RESULT_COLUMNS.index("warnings_json")
_FIELD_LOGPROBS: Final = _RESULT_COLUMNS.index("field_logprobs_json")
# Of a run most rows have the same: kept once.
_REPEATED: Final = tuple(
    _RESULT_COLUMNS.index(name)
    for name in ("route", "status", "served_route", "output_mode", "outcome", "schema_sha256", "error_code")
)


class _Queries:
    """Queries compiled once: through Core a row costs ten times as much."""

    def __init__(self, dialect: Dialect) -> None:
        rows = EVAL_RESULTS.c
        of_run = rows.eval_run_id == bindparam("of_run", type_=rows.eval_run_id.type)
        key = (rows[name] == bindparam(name, type_=rows[name].type) for name in ("sample_id", "route", "epoch"))
        # PostgreSQL's driver gives floats as they are; SQLAlchemy's reading of them needs its own cursor.
        floats = ("latency_ms", "logprob_mean", "logprob_min")
        plain = {name: type_coerce(rows[name], NULLTYPE) for name in floats}
        whole = select(*[plain.get(name, rows[name]) for name in _RESULT_COLUMNS]).where(of_run)
        self.results = PreparedSelect(compile_statement(whole, dialect))
        self.result = PreparedSelect(
            compile_statement(whole.where(*key), dialect), ("of_run", "sample_id", "route", "epoch")
        )
        outcomes = select(
            rows.sample_id,
            rows.route,
            rows.epoch,
            rows.status,
            rows.error_code,
            rows.finished_at_utc,
            rows.pipeline_run_id,
            rows.output_json.is_not(None),
            rows.scores_json,
            rows.content_digest,
        ).where(of_run)
        self.outcomes = PreparedSelect(compile_statement(outcomes, dialect))


def _rows(connection: Connection, query: PreparedSelect, eval_run_id: UUID) -> Iterator[list[Any]]:
    for row in connection.exec_driver_sql(query.sql, query.row({"of_run": eval_run_id})):
        yield query.values(row)


def _results(connection: Connection, query: PreparedSelect, eval_run_id: UUID) -> list[EvalResult]:
    known: dict[Any, Any] = {}
    return [_result(eval_run_id, row, known) for row in _rows(connection, query, eval_run_id)]


def _result(eval_run_id: UUID, row: list[Any], known: dict[Any, Any]) -> EvalResult:
    for place in _JSON:
        row[place] = json.loads(row[place]) if len(row[place]) > EMPTY_JSON else {}
    row[_WARNINGS] = tuple(row[_WARNINGS])
    row[_FIELD_LOGPROBS] = json.loads(row[_FIELD_LOGPROBS] or "{}")
    for place in _REPEATED:
        row[place] = known.setdefault(row[place], row[place])
    return EvalResult(eval_run_id, *row)


def _outcomes(connection: Connection, query: PreparedSelect, eval_run_id: UUID) -> list[EvalOutcome]:
    known: dict[Any, Any] = {}
    found = []
    for sample_id, route, epoch, status, error, at_utc, name, has_output, scores, content in _rows(
        connection, query, eval_run_id
    ):
        names = frozenset(json.loads(scores)) if len(scores) > EMPTY_JSON else frozenset()
        repeated = (known.setdefault(value, value) for value in (route, status, names))
        route, status, names = repeated  # noqa: PLW2901
        found.append(
            EvalOutcome(sample_id, route, epoch, status, error, at_utc, name, bool(has_output), names, content)
        )
    return found


def _count_results(eval_run_id: UUID, old_until_utc: datetime) -> Select[Any]:
    rows = EVAL_RESULTS.c
    is_old = case((rows.finished_at_utc <= old_until_utc, 1), else_=0)
    key = (rows.route, rows.status, rows.error_code, is_old)
    counts = select(*key, func.count(), func.coalesce(func.sum(rows.requests), 0))
    return counts.where(rows.eval_run_id == eval_run_id).group_by(*key)


def _digests(workspace_id: str, begins: ColumnElement[bool]) -> Select[Any]:
    sent = ATTEMPTS.c
    first_at_utc = func.min(sent.started_at_utc)
    return (
        select(sent.provider, sent.model, sent.model_digest, first_at_utc, func.count())
        .join(RUNS, RUNS.c.id == sent.run_id)
        .where(RUNS.c.workspace_id == workspace_id, begins, sent.model_digest.is_not(None))
        .group_by(sent.provider, sent.model, sent.model_digest)
        .order_by(sent.provider, sent.model, first_at_utc)
    )


def _select_hosts(workspace_id: str, begins: ColumnElement[bool]) -> Select[Any]:
    sent = ATTEMPTS.c
    answered = case((sent.status == AttemptStatus.SUCCEEDED.value, sent.latency_ms))
    return (
        select(sent.host, sent.provider, sent.model, func.count(), func.avg(answered), func.max(sent.started_at_utc))
        .join(RUNS, RUNS.c.id == sent.run_id)
        .where(RUNS.c.workspace_id == workspace_id, begins)
        .group_by(sent.host, sent.provider, sent.model)
        .order_by(sent.host, sent.provider, sent.model)
    )


def _select_spending(workspace_id: str, begins: ColumnElement[bool]) -> Select[Any]:
    sent = ATTEMPTS.c
    # Every request has a prompt, so a count of 0 is not one. Comparisons with NULL are not true either.
    counted = and_(
        sent.input_tokens.between(1, MOST_PLAUSIBLE_TOKENS),
        sent.output_tokens.between(0, MOST_PLAUSIBLE_TOKENS),
        sent.usage_estimated.is_(False),
    )
    # PostgreSQL has NaN, which is larger than any number there.
    priced = and_(counted, sent.cost_usd.between(0, MOST_PLAUSIBLE_TOKENS))
    doubtful = or_(sent.status_code.is_(None), sent.status_code < 400, sent.status_code.in_(DOUBTFUL_STATUSES))

    def total(what: ColumnElement[Any] | int, where: ColumnElement[bool]) -> ColumnElement[Any]:
        return func.coalesce(func.sum(case((where, what), else_=0)), 0)

    return (
        select(
            sent.provider,
            sent.model,
            total(sent.input_tokens, counted),
            total(sent.output_tokens, counted),
            total(sent.cost_usd, priced),
            total(1, counted) - total(1, priced),
            # Not with NOT, which leaves NULL what is NULL.
            total(1, doubtful) - total(1, and_(counted, doubtful)),
        )
        .join(RUNS, RUNS.c.id == sent.run_id)
        .where(RUNS.c.workspace_id == workspace_id, begins)
        .group_by(sent.provider, sent.model)
        .order_by(sent.provider, sent.model)
    )


def _in_doubt(workspace_id: str, begins: ColumnElement[bool]) -> Select[Any]:
    unfinished = or_(RUNS.c.status == RunStatus.STARTED.value, RUNS.c.error_code == ABANDONED_CODE)
    query = select_stored_run().where(RUNS.c.workspace_id == workspace_id, begins, unfinished)
    return query.order_by(RUNS.c.created_at_utc, RUNS.c.id)


def _eval_runs(connection: Connection, query: Select[Any]) -> tuple[EvalRun, ...]:
    return tuple(eval_run_of(row._asdict()) for row in connection.execute(query))


def _fetch_runs(connection: Connection, query: Select[Any]) -> tuple[StoredRun, ...]:
    return tuple(make_stored_run(tuple(row)) for row in connection.execute(query))


def _digests_seen(connection: Connection, query: Select[Any]) -> tuple[DigestSeen, ...]:
    return tuple(
        DigestSeen(Route(provider=provider, model=model), digest, first_at_utc, requests)
        for provider, model, digest, first_at_utc, requests in connection.execute(query)
    )


def _host_uses(connection: Connection, query: Select[Any]) -> tuple[HostUse, ...]:
    return tuple(
        HostUse(host, Route(provider=provider, model=model), requests, latency_ms, last_at_utc)
        for host, provider, model, requests, latency_ms, last_at_utc in connection.execute(query)
    )


def _host_digests(connection: Connection, query: Select[Any]) -> tuple[HostDigest, ...]:
    return tuple(
        HostDigest(host, Route(provider=provider, model=model), digest)
        for host, provider, model, digest in connection.execute(query)
    )


def _spendings(connection: Connection, query: Select[Any]) -> tuple[EvalSpending, ...]:
    return tuple(
        EvalSpending(
            Route(provider=provider, model=model), int(taken), int(given), float(cost), int(unpriced), int(uncounted)
        )
        for provider, model, taken, given, cost, unpriced, uncounted in connection.execute(query)
    )


def _fetch_calls(connection: Connection, calls: Select[Any], sent: Select[Any]) -> tuple[RecordedCall, ...]:
    attempts: defaultdict[UUID, list[RowMapping]] = defaultdict(list)
    for row in connection.execute(sent).mappings():
        attempts[row["run_id"]].append(row)
    return tuple(make_recorded_call(row, attempts[row["id"]]) for row in connection.execute(calls).mappings())
