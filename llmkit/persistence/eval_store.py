"""Evaluations and their results, written through the journal's group commit and read directly."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import replace
from typing import Any
from uuid import UUID

from sqlalchemy import ColumnElement, Connection, RowMapping, Select, and_, case, func, or_, select

from llmkit.errors import ABANDONED_CODE, LLMStoreError
from llmkit.persistence.journal import Journal
from llmkit.persistence.operations import OpenEvalRun, SaveEvalResult
from llmkit.persistence.rows import eval_result_of, eval_run_of, recorded_call_of, stored_run_of
from llmkit.persistence.statements import ATTEMPTS, EVAL_RESULTS, EVAL_RUNS, RUNS, stored_run_select
from llmkit.ports import DOUBTFUL_STATUSES, DigestSeen, EvalResult, EvalRun, RecordedCall, Spent, StoredRun
from llmkit.types import Route, RunStatus

__all__ = ["SqlEvalStore"]


class SqlEvalStore:
    """`EvalStore` on an open journal, which the caller closes.

    Args:
        journal: Where it writes.
        stores_payloads: Whether the outputs are kept, and what scorers said of them; scores are in any case.
    """

    def __init__(self, journal: Journal, *, stores_payloads: bool = True) -> None:
        self._journal = journal
        self._stores_payloads = stores_payloads

    async def open_run(self, run: EvalRun) -> EvalRun:
        """See `EvalStore`."""
        await self._journal.perform(OpenEvalRun(self._journal.statements, run))
        found = await self.get_run(run.workspace_id, run.name)
        if found is None:
            raise LLMStoreError(f"The evaluation {run.name!r} was erased while it was opened. Start it again.")
        return found

    async def get_run(self, workspace_id: str, name: str) -> EvalRun | None:
        """See `EvalStore`."""
        query = select(EVAL_RUNS).where(EVAL_RUNS.c.workspace_id == workspace_id, EVAL_RUNS.c.name == name)
        runs = await self._journal.read(lambda connection: _eval_runs(connection, query))
        return runs[0] if runs else None

    async def list_runs(self, workspace_id: str) -> tuple[EvalRun, ...]:
        """See `EvalStore`."""
        newest_first = (EVAL_RUNS.c.created_at_utc.desc(), EVAL_RUNS.c.id.desc())
        query = select(EVAL_RUNS).where(EVAL_RUNS.c.workspace_id == workspace_id).order_by(*newest_first)
        return await self._journal.read(lambda connection: _eval_runs(connection, query))

    async def save_result(self, result: EvalResult) -> None:
        """See `EvalStore`."""
        if not self._stores_payloads:
            result = replace(result, output_json=None, score_details={})
        await self._journal.perform(SaveEvalResult(self._journal.statements, result))

    async def results(self, eval_run_id: UUID) -> tuple[EvalResult, ...]:
        """See `EvalStore`."""
        query = select(EVAL_RESULTS).where(EVAL_RESULTS.c.eval_run_id == eval_run_id)
        found = await self._journal.read(lambda connection: _eval_results(connection, query))
        # Sorted here: databases sort text by rules of their own.
        return tuple(sorted(found, key=lambda result: (result.sample_id, result.route, result.epoch)))

    async def in_doubt(self, workspace_id: str, pipeline_run_id_prefix: str) -> tuple[StoredRun, ...]:
        """See `EvalStore`. Oldest first."""
        query = _in_doubt(workspace_id, pipeline_run_id_prefix)
        return await self._journal.read(lambda connection: _stored_runs(connection, query))

    async def digests(self, workspace_id: str, pipeline_run_id_prefix: str) -> tuple[DigestSeen, ...]:
        """See `EvalStore`."""
        query = _digests(workspace_id, pipeline_run_id_prefix)
        return await self._journal.read(lambda connection: _digests_seen(connection, query))

    async def spent(self, workspace_id: str, pipeline_run_id_prefix: str) -> tuple[Spent, ...]:
        """See `EvalStore`."""
        query = _spent(workspace_id, pipeline_run_id_prefix)
        return await self._journal.read(lambda connection: _spendings(connection, query))

    async def calls(self, workspace_id: str, pipeline_run_id_prefix: str) -> tuple[RecordedCall, ...]:
        """See `EvalStore`."""
        mine = (RUNS.c.workspace_id == workspace_id, _begins(pipeline_run_id_prefix))
        calls = select(*[RUNS.c[name] for name in _CALL_COLUMNS], _tool_answer()).where(*mine)
        calls = calls.order_by(RUNS.c.created_at_utc, RUNS.c.id)
        sent = select(ATTEMPTS).join(RUNS, RUNS.c.id == ATTEMPTS.c.run_id).where(*mine).order_by(ATTEMPTS.c.number)
        return await self._journal.read(lambda connection: _recorded_calls(connection, calls, sent))


_CALL_COLUMNS = (
    *("id", "pipeline_run_id", "stage", "status", "served_from", "request_preview", "response_preview"),
    *("error_code", "error_message"),
)


def _tool_answer() -> ColumnElement[Any]:
    """The stored answer of a call that has no text: it may be in the arguments of a tool."""
    return case((RUNS.c.response_preview == "", RUNS.c.result_json)).label("result_json")


def _digests(workspace_id: str, prefix: str) -> Select[Any]:
    sent = ATTEMPTS.c
    first_at_utc = func.min(sent.started_at_utc)
    return (
        select(sent.provider, sent.model, sent.model_digest, first_at_utc, func.count())
        .join(RUNS, RUNS.c.id == sent.run_id)
        .where(RUNS.c.workspace_id == workspace_id, _begins(prefix), sent.model_digest.is_not(None))
        .group_by(sent.provider, sent.model, sent.model_digest)
        .order_by(sent.provider, sent.model, first_at_utc)
    )


def _spent(workspace_id: str, prefix: str) -> Select[Any]:
    sent = ATTEMPTS.c
    counted = and_(sent.input_tokens.is_not(None), sent.output_tokens.is_not(None), sent.usage_estimated.is_(False))
    doubtful = or_(sent.status_code.is_(None), sent.status_code < 400, sent.status_code.in_(DOUBTFUL_STATUSES))

    def total(what: ColumnElement[Any] | int, where: ColumnElement[bool]) -> ColumnElement[Any]:
        return func.coalesce(func.sum(case((where, what), else_=0)), 0)

    return (
        select(
            sent.provider,
            sent.model,
            total(sent.input_tokens, counted),
            total(sent.output_tokens, counted),
            total(sent.cost_usd, and_(counted, sent.cost_usd.is_not(None))),
            total(1, and_(counted, sent.cost_usd.is_(None))),
            total(1, and_(~counted, doubtful)),
        )
        .join(RUNS, RUNS.c.id == sent.run_id)
        .where(RUNS.c.workspace_id == workspace_id, _begins(prefix))
        .group_by(sent.provider, sent.model)
        .order_by(sent.provider, sent.model)
    )


def _begins(prefix: str) -> ColumnElement[bool]:
    # Not LIKE, which on SQLite takes upper and lower case for the same.
    return func.substr(RUNS.c.pipeline_run_id, 1, len(prefix)) == prefix


def _in_doubt(workspace_id: str, prefix: str) -> Select[Any]:
    unfinished = or_(RUNS.c.status == RunStatus.STARTED.value, RUNS.c.error_code == ABANDONED_CODE)
    query = stored_run_select().where(RUNS.c.workspace_id == workspace_id, _begins(prefix), unfinished)
    return query.order_by(RUNS.c.created_at_utc, RUNS.c.id)


def _eval_runs(connection: Connection, query: Select[Any]) -> tuple[EvalRun, ...]:
    return tuple(eval_run_of(row._asdict()) for row in connection.execute(query))


def _eval_results(connection: Connection, query: Select[Any]) -> tuple[EvalResult, ...]:
    return tuple(eval_result_of(row._asdict()) for row in connection.execute(query))


def _stored_runs(connection: Connection, query: Select[Any]) -> tuple[StoredRun, ...]:
    return tuple(stored_run_of(tuple(row)) for row in connection.execute(query))


def _digests_seen(connection: Connection, query: Select[Any]) -> tuple[DigestSeen, ...]:
    return tuple(
        DigestSeen(Route(provider=provider, model=model), digest, first_at_utc, requests)
        for provider, model, digest, first_at_utc, requests in connection.execute(query)
    )


def _spendings(connection: Connection, query: Select[Any]) -> tuple[Spent, ...]:
    return tuple(
        Spent(Route(provider=provider, model=model), int(taken), int(given), float(cost), int(unpriced), int(uncounted))
        for provider, model, taken, given, cost, unpriced, uncounted in connection.execute(query)
    )


def _recorded_calls(connection: Connection, calls: Select[Any], sent: Select[Any]) -> tuple[RecordedCall, ...]:
    attempts: defaultdict[UUID, list[RowMapping]] = defaultdict(list)
    for row in connection.execute(sent).mappings():
        attempts[row["run_id"]].append(row)
    return tuple(recorded_call_of(row, attempts[row["id"]]) for row in connection.execute(calls).mappings())
