"""Several processes at one run: which sample each one sends, and waiting for calls that another has in flight.

Nothing is agreed between them. That no sample is sent twice rests on the idempotency keys of the calls; what is here
keeps the processes apart, so that they seldom meet, and takes over what one that died has left.
"""

from __future__ import annotations

import random
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

from llmkit.calls.liveness import looks_abandoned
from llmkit.eval_ports import CallUnderWay, EvalOutcome, EvalRun, EvalStore
from llmkit.evals.call_names import name_prefix
from llmkit.evals.run.plan import Plan
from llmkit.evals.run.progress import Tally
from llmkit.evals.run.work_queue import WorkQueue

__all__ = ["Coordinator", "Patience"]

# A look reads a row for each result: at most this share of the time goes into it.
SHARE_OF_LOOKING = 0.05


@dataclass(frozen=True, slots=True)
class Patience:
    """Waiting times for the work of other processes, in seconds.

    Attributes:
        least_s: Between two looks at the store when another process was met.
        usual_s: Between two looks while others are at work.
        recent_s: So long after others were seen they count as being at work.
        result_s: For the result of a call that ended: its scorers may still be at work, or it was cancelled.
        silence_s: Without a sign of life of a call whose process cannot be said to be dead.
    """

    least_s: float = 0.1
    usual_s: float = 1.0
    recent_s: float = 10.0
    result_s: float = 5.0
    silence_s: float = 600.0


@dataclass(slots=True)
class _Awaited:
    """A cell that another process is at."""

    name: str
    heard_s: float
    heartbeat_at_utc: datetime | None = None
    ended_s: float | None = None
    is_left: bool = False


class Coordinator:
    """Coordination with other processes that work on the same run.

    Args:
        plan: What is to be done.
        run: The run.
        store: Where results and calls are read.
        cells: What is open; results of others are settled there.
        tally: Where they are counted.
        before: When the results were made that are to be replaced, by cell.
        patience: How long to wait for what.

    Attributes:
        silent: Cells that another process has begun and of which nothing is heard any more.
        pause_s: After the last look, so that looking takes a small share of the time.
    """

    def __init__(
        self,
        plan: Plan,
        run: EvalRun,
        store: EvalStore,
        queue: WorkQueue,
        tally: Tally,
        before: Mapping[int, datetime],
        patience: Patience,
    ) -> None:
        self._plan = plan
        self._run = run
        self._store = store
        self._queue = queue
        self._tally = tally
        self._before = before
        self._patience = patience
        self._mine: set[str] = set()
        self._awaited: dict[int, _Awaited] = {}
        self._given_up: dict[int, float] = {}
        self.silent: set[int] = set()
        self._is_looking = False
        self._looked_s = 0.0
        self.pause_s = 0.0
        self._seen_s: float | None = None

    @property
    def waits(self) -> bool:
        """Whether there is anything that others have under way."""
        return bool(self._awaited)

    @property
    def are_others_at_work(self) -> bool:
        """Whether another process was seen at the run lately."""
        return self._seen_s is not None and time.monotonic() - self._seen_s < self._patience.recent_s

    # --- what this process does ---------------------------------------------------------------------------------

    def begin_call(self, name: str) -> None:
        """Note that this process begins a call."""
        self._mine.add(name)

    def end_call(self, name: str) -> None:
        """Return the call's result is stored, or there will be none."""
        self._mine.discard(name)

    async def wait_for(self, cell: int, name: str) -> None:
        """Another process has the cell's call under way: wait for it, and go on elsewhere."""
        self._await(cell, name)
        self._seen_s = time.monotonic()
        if self._is_due(self._patience.least_s):
            await self.look(move=True)

    async def is_anothers(self, cell: int, name: str) -> bool:
        """Return whether an answer that was in the store already is being scored by the process that got it."""
        if cell in self._given_up:
            return False
        self.end_call(name)
        if self._is_due(self._patience.least_s):
            await self.look(move=True)
        if self._queue.is_settled(cell):
            return True
        if self.are_others_at_work:
            self._await(cell, name)
            return True
        self.begin_call(name)
        return False

    def _await(self, cell: int, name: str) -> None:
        heard_s = self._given_up.get(cell, time.monotonic())
        self._awaited.setdefault(cell, _Awaited(name, heard_s))

    # --- what others do -----------------------------------------------------------------------------------------

    async def look_now_and_then(self) -> None:
        """Look at the store if others are at work and the last look is old."""
        if self.are_others_at_work and self._is_due(self._patience.usual_s):
            await self.look()

    def _is_due(self, after_s: float) -> bool:
        return not self._is_looking and time.monotonic() - self._looked_s >= max(after_s, self.pause_s)

    async def look(self, *, move: bool = False) -> None:
        """Read what others have done and have under way.

        Args:
            move: Go on where no other process is.

        Raises:
            LLMStoreError: The database cannot be read.
        """
        if self._is_looking:
            return
        self._is_looking = True
        began_s = time.monotonic()
        try:
            calls = await self._store.list_calls_under_way(self._run.workspace_id, name_prefix(self._run))
            self._hear(calls)
            for outcome in await self._store.list_outcomes(self._run.id):
                self._settle(outcome)
            if move:
                self._move_away(calls)
        finally:
            self._is_looking = False
            self._looked_s = time.monotonic()
            self.pause_s = (self._looked_s - began_s) / SHARE_OF_LOOKING

    async def begin(self) -> None:
        """See whether others are at work already, and begin where they are not."""
        self._hear(calls := await self._store.list_calls_under_way(self._run.workspace_id, name_prefix(self._run)))
        if self.are_others_at_work:
            self._move_away(calls)

    def _settle(self, outcome: EvalOutcome) -> None:
        cell = self._plan.cell_of(outcome.sample_id, outcome.route, outcome.epoch)
        if cell is None or self._queue.is_settled(cell) or outcome.pipeline_run_id in self._mine:
            return
        if self._before.get(cell) == outcome.finished_at_utc:
            return
        self._queue.settle(cell)
        self._tally.share(outcome.route)
        self._awaited.pop(cell, None)

    def _hear(self, calls: list[CallUnderWay]) -> None:
        now_s = time.monotonic()
        alive: dict[str, datetime] = {}
        dead: set[str] = set()
        for call in calls:
            if looks_abandoned(call.owner, call.heartbeat_at_utc, self._patience.silence_s):
                dead.add(call.pipeline_run_id)
            elif call.pipeline_run_id not in self._mine:
                alive[call.pipeline_run_id] = call.heartbeat_at_utc
        if alive:
            self._seen_s = now_s
        for cell, awaited in list(self._awaited.items()):
            heartbeat = alive.get(awaited.name)
            if heartbeat is not None and heartbeat != awaited.heartbeat_at_utc:
                awaited.heartbeat_at_utc, awaited.heard_s = heartbeat, now_s
            awaited.ended_s = None if heartbeat is not None else awaited.ended_s or now_s
            ended_long_ago = awaited.ended_s is not None and now_s - awaited.ended_s >= self._patience.result_s
            awaited.is_left = ended_long_ago or (heartbeat is None and awaited.name in dead)
            if now_s - awaited.heard_s > self._patience.silence_s:
                del self._awaited[cell]
                self.silent.add(cell)

    def list_left_behind(self) -> list[int]:
        """Cells that no other process will finish. They are not waited for any more; call them again."""
        left = [cell for cell, awaited in self._awaited.items() if awaited.is_left]
        for cell in left:
            self._given_up.setdefault(cell, self._awaited.pop(cell).heard_s)
        return left

    def _move_away(self, calls: list[CallUnderWay]) -> None:
        names = {call.pipeline_run_id for call in calls} - self._mine
        places = [place for name in names if (place := self._plan.place_of_name(name)) is not None]
        # Not the very middle: two processes that look at the same moment should not choose the same place.
        self._queue.move_away(places, random.uniform(0.4, 0.6))  # noqa: S311
