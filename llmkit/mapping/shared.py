"""A map over several workers: they answer the rows, and the driver reads the answers from the store.

Each row has an idempotency key, so that no two workers send it. A worker walks over all rows from a place of its own,
and leaves out those whose key the store has: answered, failed during this call, or under way elsewhere. In the end the
driver asks about every row: most answers come from the store, and what a lost worker has left is sent once more.
"""

from __future__ import annotations

import asyncio
import random
import time
from datetime import datetime

from llmkit.errors import ABANDONED_CODE, CANCELLED_CODE
from llmkit.eval_ports import CallKey, EvalStore
from llmkit.mapping.job import MapJob
from llmkit.types import RunStatus
from llmkit.workers.contribution import Contribution
from llmkit.workers.watch import Standing

__all__ = ["SharedRows", "collect_rows", "join_map"]

LOOK_S = 1.0
SHARE_OF_LOOKING = 0.05
WAIT_S = 1.0


class SharedRows:
    """The rows of a map as the store shows them.

    Args:
        job: The map, which has a name.
        store: Where its calls are.
        workspace_id: Their workspace.
        since_utc: Failures before this time, of an earlier call of the map, are asked again.
    """

    def __init__(self, job: MapJob, store: EvalStore, workspace_id: str, since_utc: datetime) -> None:
        self._job = job
        self._store = store
        self._workspace_id = workspace_id
        self._since_utc = since_utc
        self._codes = job.make_keys()
        self._look_at_s = 0.0
        self._is_looking = False

    async def look(self) -> Standing:
        """Read which rows are done."""
        assert self._job.keys is not None
        calls = await self._store.list_call_keys(self._workspace_id, self._job.keys.pipeline_run_id)
        done = {code for call in calls if self._is_done(call) and (code := self._find(call)) is not None}
        self._job.observe(done)
        return Standing(len(done), len(done) >= self._job.size)

    async def look_now_and_then(self) -> None:
        """Look if the last look is old; looking takes a small share of the time."""
        began_s = time.monotonic()
        if self._is_looking or began_s < self._look_at_s:
            return
        # Workers look as they finish, and all of them wait for the same reader.
        self._is_looking = True
        try:
            await self.look()
        finally:
            self._is_looking = False
            ended_s = time.monotonic()
            self._look_at_s = ended_s + max(LOOK_S, (ended_s - began_s) / SHARE_OF_LOOKING)

    def _find(self, call: CallKey) -> int | None:
        assert self._job.keys is not None
        return self._codes.get(call.key[: self._job.keys.length])

    def _is_done(self, call: CallKey) -> bool:
        if call.status is not RunStatus.FAILED:
            return call.status is RunStatus.SUCCEEDED
        was_broken_off = call.error_code in {ABANDONED_CODE, CANCELLED_CODE}
        return not was_broken_off and call.created_at_utc >= self._since_utc


async def join_map(job: MapJob, rows: SharedRows) -> Contribution:
    """Answer rows as a worker, until every row was met."""
    await rows.look()
    job.look = rows.look_now_and_then
    called = await job.work_with_others(random.randrange(max(1, job.size)))  # noqa: S311
    return Contribution(work={"called": called})


async def collect_rows(job: MapJob, *, wait_s: float) -> None:
    """Read the answers of all rows, and ask about those that have none.

    Args:
        job: The map.
        wait_s: How long to wait for calls of workers of other machines that are gone: only their silence shows it.
    """
    await job.work()
    until_s = time.monotonic() + wait_s
    while (left := job.list_in_progress()) and time.monotonic() < until_s:
        await asyncio.sleep(WAIT_S)
        await job.ask_again(left)
