"""Limits per minute that all processes of a store share, spent from blocks that are taken ahead of need.

A block is a number of requests, and of tokens, that one process may let leave within some seconds. The store counts it
from the time it was granted until a minute after its last request can have left, whichever process dies: none
has to say that it is alive. A block that was spent is returned with its real use, so that the minute is counted from
the last request that really left.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import random
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from logging import getLogger
from typing import Any, Final
from uuid import UUID, uuid4

from llmkit.batch.task_guard import start_session_task
from llmkit.errors import LLMStoreError
from llmkit.ports import Leases, SpentBlock, WindowReply, WindowShare

__all__ = ["LeasedRates", "LeasedReservation"]

# How long a block may be spent, in seconds: what a dead process keeps from the others is at most a block, and the last
# requests of a block hold up its first ones by as long.
VALID_S: Final = 3.0
LONGEST_VALID_S: Final = 60.0
# With many processes blocks last longer, so that the store is asked a few hundred times a second at most.
HOLDERS_PER_S: Final = 100
# At most this share of a limit in one block: others want some of it too.
SHARE_OF_LIMIT: Final = 8
# A block that served as many requests is followed by the next one before it is spent.
AHEAD_FROM: Final = 8
# Between two looks while there is no room: another process may return what it does not use.
LONGEST_WAIT_S: Final = 5.0
FIRST_JITTER_S, LONGEST_JITTER_S = 0.05, 4.0
WARN_AFTER_S: Final = 5.0


@dataclass(eq=False, slots=True)
class _RateBlock:
    """A part of the limits, granted at once. `used` includes what is reserved for requests that have not left."""

    lease_ids: tuple[UUID, ...]
    amounts: tuple[int, ...]
    taken_s: float
    valid_until_s: float
    used: list[int] = field(default_factory=list)
    unsent: int = 0
    open: int = 0
    left_s: float | None = None
    is_dirty: bool = True

    def has_room(self, need: Sequence[int], now_s: float) -> bool:
        fits = all(used + part <= amount for used, part, amount in zip(self.used, need, self.amounts, strict=True))
        return now_s < self.valid_until_s and fits

    def add(self, need: Sequence[int], sign: int = 1) -> None:
        self.used = [used + sign * part for used, part in zip(self.used, need, strict=True)]
        self.is_dirty = True

    def close(self) -> None:
        """Let no request leave from it any more; one that was reserved needs a place in another block."""
        self.valid_until_s = -math.inf

    def as_spent(self, now_s: float) -> SpentBlock:
        since_s = self.taken_s if self.left_s is None else self.left_s
        return SpentBlock(self.lease_ids, tuple(max(0, used) for used in self.used), max(0.0, now_s - since_s))


class LeasedRates:
    """Waits until one more request fits into the minute of all processes. Belongs to one event loop.

    Args:
        leases: Where blocks are taken.
        pool: Name of the limits, the same in all processes.
        requests: Most requests in any minute; None for no limit.
        tokens: Most tokens in any minute, prompt and answer; None for no limit.
        clock: Seconds on a clock that never goes back.
        sleep: How to wait, in seconds.
    """

    def __init__(
        self,
        leases: Leases,
        pool: str,
        requests: int | None,
        tokens: int | None,
        clock: Callable[[], float],
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._leases = leases
        self._pool = pool
        named = (("requests", requests), ("tokens", tokens))
        self._limits = tuple((kind, limit) for kind, limit in named if limit is not None)
        self.counts_tokens = tokens is not None
        self._clock = clock
        self._sleep = sleep
        self._turn = asyncio.Lock()
        self._changed = asyncio.Event()
        self._waiting = 0
        self._block: _RateBlock | None = None
        self._next: _RateBlock | None = None
        self._old: list[_RateBlock] = []
        self._asking: asyncio.Task[WindowReply] | None = None
        self._flush_timer: asyncio.TimerHandle | None = None
        self._refusals = 0
        self._failure: tuple[float, LLMStoreError] | None = None
        self._valid_s = VALID_S
        # Of recent use, for the size of the next block.
        self._taken_s = clock()
        self._begun = 0
        self._recent = 0.0
        self._tokens_each = 1.0

    async def reserve(self, tokens: Callable[[], int]) -> LeasedReservation:
        """Wait until one request with this many tokens is allowed, and reserve it.

        Raises:
            LLMStoreError: The store cannot be reached, and what was taken from it before is spent.
        """
        need, began_s = self._count_need(tokens), self._clock()
        self._waiting += 1
        try:
            # One caller at a time looks for room, so a small request cannot overtake a large one for ever.
            async with self._turn:
                if self._failure is not None and self._failure[0] > began_s:
                    # This caller has waited as long as the one that asked: it need not ask, and wait, again.
                    raise LLMStoreError(str(self._failure[1]))
                while (block := self._find_block(need)) is None:
                    await self._take_block(need)
        finally:
            self._waiting -= 1
        block.add(need)
        block.unsent += 1
        block.open += 1
        self._begun += 1
        if self.counts_tokens:
            self._tokens_each += (need[-1] - self._tokens_each) / 16
        if self._next is None and self._begun >= AHEAD_FROM and _is_nearly_spent(block):
            self._ask(need, ahead=True)
        return LeasedReservation(self, block, need, tokens)

    def _count_need(self, tokens: Callable[[], int]) -> tuple[int, ...]:
        # More than the whole limit counts as the limit: it waits for an empty window, not for ever.
        wanted = {"requests": 1, "tokens": max(tokens(), 1) if self.counts_tokens else 0}
        return tuple(min(wanted[kind], limit) for kind, limit in self._limits)

    def _find_block(self, need: Sequence[int]) -> _RateBlock | None:
        now_s = self._clock()
        for block in (self._block, self._next):
            if block is not None and block.has_room(need, now_s):
                if block is self._next:
                    self._retire(self._block)
                    self._block, self._next = block, None
                return block
        return None

    # A block is the next, then the present, then an old one, in which no more is reserved. When its last request has
    # left, or its time is over, it is closed and returned to the store with the next question. It is returned again
    # when the use of its requests is known better, and forgotten when all of them have ended.

    def _retire(self, block: _RateBlock | None) -> None:
        if block is not None:
            self._old.append(block)

    async def _take_block(self, need: Sequence[int]) -> None:
        """Ask for a block, and wait when there is none."""
        asking = self._asking or self._ask(need)
        with _warn_when_late(self._pool):
            # In a task of its own: a caller that is cancelled must not lose the block that all others wait for.
            await asyncio.wait([asking])
        try:
            reply = asking.result()
        except LLMStoreError as error:
            self._failure = (self._clock(), error)
            raise
        if reply.amounts is not None or self._find_block(need) is not None:
            self._refusals = 0
            return
        jitter_s = min(FIRST_JITTER_S * 2**self._refusals, LONGEST_JITTER_S)
        self._refusals = min(self._refusals + 1, 16)
        # With jitter: all processes wait for the same request to leave the window.
        await self._wait(min(reply.wait_s, LONGEST_WAIT_S) + random.uniform(0, jitter_s))  # noqa: S311

    async def _wait(self, seconds: float) -> None:
        """Wait, but no longer than until a reservation of this process changes."""
        self._changed.clear()
        waits: list[asyncio.Future[Any]] = [
            asyncio.ensure_future(self._changed.wait()),
            asyncio.ensure_future(self._sleep(seconds)),
        ]
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for each in waits:
                each.cancel()

    def _ask(self, need: Sequence[int], *, ahead: bool = False) -> asyncio.Task[WindowReply]:
        if self._asking is None:
            if not ahead:
                self._retire(self._block)
                self._block = None
            self._asking = start_session_task(self._take(need, ahead=ahead))
            self._asking.add_done_callback(self._end_asking)
        return self._asking

    def _end_asking(self, asking: asyncio.Task[WindowReply]) -> None:
        self._asking = None
        if not asking.cancelled():
            # Read, so that a failure that no caller waits for is no error of the loop.
            asking.exception()

    async def _take(self, need: Sequence[int], *, ahead: bool) -> WindowReply:
        asked_s, valid_s = self._clock(), self._valid_s
        shares = tuple(
            WindowShare(uuid4(), f"{self._pool}/{kind}", limit, least, most)
            for (kind, limit), least, most in zip(self._limits, need, self._choose_size(need, asked_s), strict=True)
        )
        reply = await self._send_wish(shares)
        took_s = self._clock() - asked_s
        self._valid_s = min(max(VALID_S, reply.holders / HOLDERS_PER_S, 2 * took_s), LONGEST_VALID_S)
        if reply.amounts is not None:
            lease_ids = tuple(share.lease_id for share in shares)
            # Valid from before it was granted, by a clock that needs not agree with any other.
            block = _RateBlock(lease_ids, reply.amounts, asked_s, asked_s + valid_s, [0] * len(shares))
            if ahead and self._block is not None:
                self._next = block
            else:
                self._block = block
            self._plan_flush(valid_s)
        return reply

    def _choose_size(self, need: Sequence[int], now_s: float) -> list[int]:
        """Return what to ask for: the use of the next seconds, as it was in the last ones, or what waits now."""
        # A mean over the last seconds, not since the last block: one that is spent in a millisecond is no measure.
        elapsed_s = max(now_s - self._taken_s, 0.0)
        self._recent = self._recent * math.exp(-elapsed_s / VALID_S) + self._begun / VALID_S
        self._taken_s, self._begun = now_s, 0
        count = max(self._waiting, math.ceil(self._recent * self._valid_s), 1)
        wanted = {"requests": count, "tokens": math.ceil(count * self._tokens_each)}
        return [
            max(least, min(wanted[kind], limit // SHARE_OF_LIMIT))
            for (kind, limit), least in zip(self._limits, need, strict=True)
        ]

    async def _send_wish(self, shares: Sequence[WindowShare]) -> WindowReply:
        now_s = self._clock()
        returned = self._find_returnable(now_s)
        spent = [block.as_spent(now_s) for block in returned]
        for block in returned:
            block.close()
            block.is_dirty = False
        try:
            return await self._leases.take_window(shares, spent, self._valid_s)
        except LLMStoreError:
            for block in returned:
                block.is_dirty = True
            raise

    def _find_returnable(self, now_s: float) -> list[_RateBlock]:
        self._old = [block for block in self._old if block.is_dirty or block.open]
        return [block for block in self._old if block.is_dirty and (block.unsent == 0 or now_s >= block.valid_until_s)]

    def _plan_flush(self, after_s: float) -> None:
        if self._flush_timer is None:
            loop = asyncio.get_running_loop()
            self._flush_timer = loop.call_later(after_s, self._begin_flush)

    def _begin_flush(self) -> None:
        self._flush_timer = None
        if self._asking is None:
            self._asking = start_session_task(self._flush())
            self._asking.add_done_callback(self._end_asking)
        else:
            self._plan_flush(VALID_S)

    async def _flush(self) -> WindowReply:
        """Return the blocks whose time is over."""
        now_s = self._clock()
        if self._block is not None and now_s >= self._block.valid_until_s:
            self._retire(self._block)
            self._block, self._next = self._next, None
        reply = WindowReply(None, 0.0, 0)
        if self._find_returnable(now_s):
            nothing = tuple(WindowShare(uuid4(), f"{self._pool}/{kind}", limit, 0, 0) for kind, limit in self._limits)
            reply = await self._send_wish(nothing)
        if self._block is not None or self._old:
            self._plan_flush(VALID_S)
        return reply

    def note_change(self) -> None:
        """Note that a reservation was returned or corrected."""
        self._changed.set()

    async def close(self) -> None:
        """Return what is not used. Idempotent; a store that cannot be reached counts it for a minute more."""
        if self._flush_timer is not None:
            self._flush_timer.cancel()
            self._flush_timer = None
        if self._asking is not None:
            await asyncio.wait([self._asking])
        for block in filter(None, (self._block, self._next)):
            block.close()
            self._retire(block)
        self._block = self._next = None
        with contextlib.suppress(LLMStoreError):
            await self._flush()
        if self._flush_timer is not None:
            self._flush_timer.cancel()
            self._flush_timer = None

    def now_s(self) -> float:
        """Return the time."""
        return self._clock()


class LeasedReservation:
    """A reservation for one request in a block."""

    def __init__(self, rates: LeasedRates, block: _RateBlock, need: tuple[int, ...], tokens: Callable[[], int]) -> None:
        self._rates = rates
        self.block = block
        self.need = need
        self._tokens = tokens
        self._is_sent = self._is_over = False

    async def confirm(self) -> None:
        """Mark the reservation as used: the request leaves now. A block whose time is over is exchanged first.

        Raises:
            LLMStoreError: It is over, and the store cannot be reached.
        """
        while self._rates.now_s() >= self.block.valid_until_s:
            other = await self._rates.reserve(self._tokens)
            self._give_back()
            self.block, self.need = other.block, other.need
        self.block.unsent -= 1
        self.block.left_s = self._rates.now_s()
        self._is_sent = True

    def _give_back(self) -> None:
        self.block.add(self.need, -1)
        self.block.unsent -= 1
        self.block.open -= 1

    def release(self) -> None:
        """Release the reservation of a request that will not be sent, or has ended. Idempotent."""
        if self._is_over:
            return
        self._is_over = True
        if self._is_sent:
            self.block.open -= 1
        else:
            self._give_back()
        self._rates.note_change()

    def settle(self, tokens: int | None) -> None:
        """Replace the estimate by the tokens that were really used; None when that is unknown."""
        if self._rates.counts_tokens and tokens is not None and tokens != self.need[-1]:
            self.block.add([0] * (len(self.need) - 1) + [tokens - self.need[-1]])
            self.need = (*self.need[:-1], tokens)
            self._rates.note_change()


def _is_nearly_spent(block: _RateBlock) -> bool:
    return any(amount - used <= amount // 4 for used, amount in zip(block.used, block.amounts, strict=True))


@contextlib.contextmanager
def _warn_when_late(pool: str) -> Any:
    text = "the store is away: calls wait for their part of the limit %s, which other processes share"
    timer = asyncio.get_running_loop().call_later(WARN_AFTER_S, getLogger("llmkit.limits").warning, text, pool)
    try:
        yield
    finally:
        timer.cancel()
