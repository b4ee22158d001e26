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

from llmkit.calls.liveness import is_on_this_machine, looks_abandoned
from llmkit.eval_ports import CallUnderWay, EvalOutcome, EvalResult, EvalRun, EvalStore
from llmkit.evals.call_names import name_prefix
from llmkit.evals.run.plan import Plan
from llmkit.evals.run.progress import Tally
from llmkit.evals.run.work_queue import WorkQueue

__all__ = ["Coordinator", "Patience"]

# A look reads a row for each result: at most this share of the time goes into it. Little, for a worker that runs into
# what others have done looks anyway.
SHARE_OF_LOOKING = 0.02
# Most calls of others that are looked up one by one.
MOST_SINGLE_LOOKS = 100


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
    """The call of another process at one position.

    Attributes:
        name: Name of the call.
        heard_s: When its heartbeat moved last, on this process's clock: clocks of machines differ.
        heartbeat_at_utc: The heartbeat seen last.
        ended_s: When it was first missing among the calls under way; None while it is there.
        is_left: Whether its process will not finish it.
    """

    name: str
    heard_s: float
    heartbeat_at_utc: datetime | None = None
    ended_s: float | None = None
    is_left: bool = False


class Coordinator:
    """Coordination with other processes that work on the same run.

    Args:
        plan: The plan.
        run: The run.
        store: Where results and calls are read.
        queue: The work queue, in which results of others are settled.
        tally: Counts them.
        before: Time of each result that will be replaced, by position.
        patience: Waiting times.

    Attributes:
        silent: Positions whose call another process began and no longer gives a sign of life of.
        pause_s: Shortest pause after the last look, so that looking takes a small share of the time.
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
        self._seen_here_s: float | None = None

    @property
    def waits(self) -> bool:
        """Whether there is anything that others have under way."""
        return bool(self._awaited)

    @property
    def are_others_at_work(self) -> bool:
        """Whether another process was seen at the run lately."""
        return self._seen_s is not None and time.monotonic() - self._seen_s < self._patience.recent_s

    @property
    def are_others_here(self) -> bool:
        """Whether another process of this machine was seen at the run lately."""
        return self._seen_here_s is not None and time.monotonic() - self._seen_here_s < self._patience.recent_s

    # --- what this process does ---------------------------------------------------------------------------------

    def begin_call(self, name: str) -> None:
        """Note that this process begins a call."""
        self._mine.add(name)

    def end_call(self, name: str) -> None:
        """Note that a call of this process ended, with or without a result."""
        self._mine.discard(name)

    async def wait_for(self, position: int, name: str) -> None:
        """Wait for a call that another process has under way, and meanwhile go on elsewhere in the queue."""
        self._await(position, name)
        self._seen_s = time.monotonic()
        if self._is_due(self._patience.least_s):
            await self.look(move=True)

    async def is_anothers(self, position: int, name: str) -> bool:
        """Return whether an answer that was in the store already is being scored by the process that got it."""
        if position in self._given_up:
            return False
        self.end_call(name)
        if self._is_due(self._patience.least_s):
            await self.look(move=True)
        if self._queue.is_settled(position):
            return True
        if self.are_others_at_work:
            self._await(position, name)
            return True
        self.begin_call(name)
        return False

    # A position that others are at goes through these states: awaited while its call is under way; settled when a
    # result appears; left, and called again here, when the call ended without one or its process died; silent, and
    # given up for this call of `evaluate`, when nothing is known of its process for `silence_s`. An answer that is
    # replayed here while another process scores it is awaited too, or both would pay for its judge.

    def _await(self, position: int, name: str) -> None:
        heard_s = self._given_up.get(position, time.monotonic())
        self._awaited.setdefault(position, _Awaited(name, heard_s))

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
        # Workers look as they finish, and all of them wait for the same reader.
        self._is_looking = True
        began_s = time.monotonic()
        try:
            # Calls before results: a call that ends in between is then seen as ended together with its result. The
            # other way round it would look as if it had ended without one.
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

    async def look_at_awaited(self) -> None:
        """Read what has become of the calls that others have under way. At the end of a run there are few.

        Raises:
            LLMStoreError: The database cannot be read.
        """
        if len(self._awaited) > MOST_SINGLE_LOOKS:
            await self.look()
            return
        # In the order of `look`, for the same reason.
        self._hear(await self._store.list_calls_under_way(self._run.workspace_id, name_prefix(self._run)))
        for position in list(self._awaited):
            sample, variant, epoch = self._plan.job_at(position)
            result = await self._store.get_result(self._run.id, sample.key, variant.label, epoch)
            if result is not None:
                self._settle(result)

    async def begin(self) -> None:
        """See whether others are at work already, and begin where they are not."""
        self._hear(calls := await self._store.list_calls_under_way(self._run.workspace_id, name_prefix(self._run)))
        if self.are_others_at_work:
            self._move_away(calls)

    def _settle(self, outcome: EvalOutcome | EvalResult) -> None:
        position = self._plan.position_of(outcome.sample_id, outcome.route, outcome.epoch)
        if position is None or self._queue.is_settled(position) or outcome.pipeline_run_id in self._mine:
            return
        if self._before.get(position) == outcome.finished_at_utc:
            return
        self._queue.settle(position)
        self._tally.share(outcome.route)
        self._awaited.pop(position, None)

    def _hear(self, calls: list[CallUnderWay]) -> None:
        now_s = time.monotonic()
        alive: dict[str, datetime] = {}
        dead: set[str] = set()
        for call in calls:
            # A process of this machine can be said to be dead at once, one of another after its silence, both times
            # being of the database's clock.
            if looks_abandoned(call.owner, call.heartbeat_at_utc, self._patience.silence_s, call.read_at_utc):
                dead.add(call.pipeline_run_id)
            elif call.pipeline_run_id not in self._mine:
                alive[call.pipeline_run_id] = call.heartbeat_at_utc
                if is_on_this_machine(call.owner):
                    self._seen_here_s = now_s
        if alive:
            self._seen_s = now_s
        for position, awaited in list(self._awaited.items()):
            heartbeat = alive.get(awaited.name)
            if heartbeat is not None and heartbeat != awaited.heartbeat_at_utc:
                awaited.heartbeat_at_utc, awaited.heard_s = heartbeat, now_s
            awaited.ended_s = None if heartbeat is not None else awaited.ended_s or now_s
            ended_long_ago = awaited.ended_s is not None and now_s - awaited.ended_s >= self._patience.result_s
            awaited.is_left = ended_long_ago or (heartbeat is None and awaited.name in dead)
            if now_s - awaited.heard_s > self._patience.silence_s:
                del self._awaited[position]
                self.silent.add(position)

    def list_left_behind(self) -> list[int]:
        """Return the positions that no other process will finish. They are no longer awaited, so call them again."""
        left = [position for position, awaited in self._awaited.items() if awaited.is_left]
        for position in left:
            self._given_up.setdefault(position, self._awaited.pop(position).heard_s)
        return left

    def _move_away(self, calls: list[CallUnderWay]) -> None:
        names = {call.pipeline_run_id for call in calls} - self._mine
        positions = [position for name in names if (position := self._plan.position_of_name(name)) is not None]
        # Not the very middle: two processes that look at the same moment should not choose the same place.
        self._queue.move_away(positions, random.uniform(0.4, 0.6))  # noqa: S311
