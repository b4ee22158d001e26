"""Asks about every distinct text of a map, a few at a time, and keeps what came back."""

from __future__ import annotations

import asyncio
import math
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from llmkit.batch.progress_bar import Meter
from llmkit.batch.route_health import LONGEST_SILENCE_S, SHORTEST_REST_S, TRIES_OF_A_SAMPLE, Health
from llmkit.errors import LLMBadRequest, LLMError, LLMInProgress, LLMStoreError
from llmkit.mapping.columns import FAILED, IN_PROGRESS, NOT_RUN, SUCCEEDED, AnswerColumns, Outcome, build_frame
from llmkit.mapping.rows import Rows
from llmkit.types import LLMResponse, ServedFrom, TokenUsage

if TYPE_CHECKING:
    import pandas as pd

    from llmkit.pydanticai.extraction import Extraction

__all__ = ["Ask", "MapJob", "MapProgress"]

# Asks about one text.
Ask = Callable[[str], Awaitable["LLMResponse | Extraction[Any]"]]


@dataclass(slots=True)
class MapProgress:
    """Progress of a map, in rows of the input. `tokens` include those of stored answers."""

    total: int
    done: int = 0
    failed: int = 0
    tokens: int = 0


class MapJob:
    """One call of `map` at work. What is done can be had as a frame at any time, from any thread.

    Args:
        rows: The input.
        columns: Those of the answer.
        ask: Answers one text.
        concurrency: Most texts under way at once.

    Raises:
        LLMBadRequest: `concurrency` is below 1.
    """

    def __init__(self, rows: Rows, columns: AnswerColumns, ask: Ask, *, concurrency: int) -> None:
        if concurrency < 1:
            raise LLMBadRequest(f"concurrency must be at least 1; got {concurrency}")
        self._rows = rows
        self._columns = columns
        self._ask = ask
        self._concurrency = concurrency
        self._outcomes: list[Outcome | None] = [None] * len(rows.firsts)
        self._sizes = rows.count_repeats()
        self._health = Health()
        self._put_off: list[int] = []
        self._losses: Counter[int] = Counter()
        self._rests_until_s = 0.0
        self.tally = MapProgress(total=len(rows.codes), done=rows.skipped)

    async def work(self) -> None:
        """Ask about every text that is open.

        A failure is an outcome. After three in a row that will not go away (key, model, configuration, quota) nothing
        more is asked.

        Raises:
            LLMStoreError: Calls cannot be recorded any more.
        """
        try:
            await self._round(iter(range(len(self._outcomes))))
            await self._come_back()
        except ExceptionGroup as errors:
            # The first one stopped the others.
            raise errors.exceptions[0] from None

    def frame(self) -> pd.DataFrame:
        """Return the frame so far. Rows that are still open are NOT_RUN."""
        stopped = self._health.stopped_by
        unrun = Outcome(NOT_RUN) if stopped is None else _failure(NOT_RUN, stopped)
        return build_frame(self._rows, self._outcomes, self._columns, unrun)

    def meter(self) -> Meter:
        """Return the progress for a bar."""
        shown = {"failed": self.tally.failed, "tokens": self.tally.tokens}
        rest_s = self._rests_until_s - time.monotonic()
        # Else a pause that is meant looks like a hang.
        resting = {"route_rests_s": math.ceil(rest_s)} if rest_s > 0 else {}
        return Meter(self.tally.done, self.tally.total, shown | resting)

    def describe_interruption(self) -> str:
        """Return the message for an interrupted map."""
        done, total = self.tally.done, self.tally.total
        return f"{done:,} of {total:,} rows are done and in .partial of the session; the same call does the rest"

    async def _round(self, codes: Iterator[int]) -> None:
        async with asyncio.TaskGroup() as group:
            for _ in range(min(self._concurrency, len(self._outcomes))):
                group.create_task(self._worker(codes))

    async def _come_back(self) -> None:
        """Ask again what was put off while the route was left alone, until it is done or the route stays silent."""
        silence_s = 0.0
        while self._put_off and silence_s < LONGEST_SILENCE_S:
            rest_s = self._health.rest()
            self._rests_until_s = time.monotonic() + rest_s
            await asyncio.sleep(rest_s)
            codes, self._put_off = self._put_off, []
            answers = self._health.answers
            # One call first: the router lets a single one through to see whether the route is back.
            await self._settle(codes[0])
            await self._round(iter(codes[1:]))
            silence_s = 0.0 if self._health.answers > answers else silence_s + max(rest_s, SHORTEST_REST_S)
        if self._put_off:
            self._health.give_up()

    async def _worker(self, codes: Iterator[int]) -> None:
        for code in codes:
            await self._settle(code)

    async def _settle(self, code: int) -> None:
        if self._health.stopped_by is not None:
            return
        if self._health.resting_after is not None:
            self._put_off.append(code)
            return
        outcome = await self._outcome(code)
        if outcome is not None:
            self._keep(code, outcome)

    async def _outcome(self, code: int) -> Outcome | None:
        """Return the outcome for a text; None if it was postponed."""
        try:
            found = await self._ask(self._rows.build_text(code))
        except LLMStoreError:
            raise
        except LLMInProgress as error:
            return _failure(IN_PROGRESS, error)
        except Exception as error:  # noqa: BLE001 - a validator of the user's type may raise anything: a row, not a crash
            if self._health.is_left_alone(error):
                if self._health.stopped_by is None:
                    self._put_off.append(code)
                return None
            if self._losses[code] + 1 < TRIES_OF_A_SAMPLE and self._health.has_lost_contact(error):
                self._losses[code] += 1
                self._put_off.append(code)
                return None
            self._health.note_failure(error)
            return _failure(FAILED, error)
        self._health.note_answer()
        return self._answer(found)

    def _answer(self, found: LLMResponse | Extraction[Any]) -> Outcome:
        if isinstance(found, LLMResponse):
            return _make_outcome((found,), found.usage, self._columns.split_value(found.text))
        return _make_outcome(found.responses, found.usage, self._columns.split_value(found.value))

    def _keep(self, code: int, outcome: Outcome) -> None:
        self._outcomes[code] = outcome
        self.tally.done += self._sizes[code]
        self.tally.failed += self._sizes[code] if outcome.status != SUCCEEDED else 0
        self.tally.tokens += (outcome.input_tokens or 0) + (outcome.output_tokens or 0)


def _make_outcome(responses: tuple[LLMResponse, ...], usage: TokenUsage, values: tuple[Any, ...]) -> Outcome:
    billed = any(response.billed for response in responses)
    last = responses[-1]
    return Outcome(
        SUCCEEDED,
        values,
        route=str(last.route),
        input_tokens=usage.input_tokens,
        output_tokens=usage.output_tokens,
        served_from=str(ServedFrom.PROVIDER if billed else last.served_from),
        run_id=None if last.run_id is None else str(last.run_id),
    )


def _failure(status: str, error: Exception) -> Outcome:
    if not isinstance(error, LLMError):
        return Outcome(status, error_code=LLMError.code, error_message=f"{type(error).__name__} in the output type")
    usage = TokenUsage.total(attempt.usage for attempt in error.attempts)
    return Outcome(
        status,
        route=str(error.attempts[-1].route) if error.attempts else None,
        error_code=error.code,
        error_message=str(error),
        input_tokens=usage.input_tokens,
        output_tokens=usage.output_tokens,
        run_id=None if error.run_id is None else str(error.run_id),
    )
