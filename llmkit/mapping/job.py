"""Asks about every distinct text of a map, a few at a time, and keeps what came back."""

from __future__ import annotations

import math
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from llmkit.batch.progress_bar import Meter
from llmkit.batch.route_health import RouteHealth
from llmkit.batch.worker_pool import WorkerPool
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


# A map has one question, and so one health, whichever route answers.
HEALTH = "map"


@dataclass(slots=True)
class MapProgress:
    """Progress of a map, in rows of the input. `tokens` include those of stored answers."""

    total: int
    done: int = 0
    failed: int = 0
    reused: int = 0
    tokens: int = 0


class MapJob:
    """One call of `map` at work. Finished rows are available as a frame at any time, from any thread.

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
        self._outcomes: list[Outcome | None] = [None] * len(rows.firsts)
        self._sizes = rows.count_repeats()
        self._health = RouteHealth()
        self._pool: WorkerPool[int] = WorkerPool(
            self._settle,
            {HEALTH: self._health},
            health_of=lambda _code: HEALTH,
            key_of=lambda code: code,
            concurrency=min(concurrency, len(self._outcomes)),
        )
        self.tally = MapProgress(total=len(rows.codes), done=rows.skipped, reused=rows.skipped)

    async def work(self) -> None:
        """Ask about every text that is open.

        A failure is an outcome. After three in a row that will not go away (key, model, configuration, quota) nothing
        more is sent.

        Raises:
            LLMStoreError: Calls cannot be recorded any more.
        """
        await self._pool.run(range(len(self._outcomes)))

    def frame(self) -> pd.DataFrame:
        """Return the frame so far. Rows that are still open are NOT_RUN."""
        stopped = self._health.stopped_by
        unrun = Outcome(NOT_RUN) if stopped is None else _failure(NOT_RUN, stopped)
        return build_frame(self._rows, self._outcomes, self._columns, unrun)

    def meter(self) -> Meter:
        """Return the progress for a bar."""
        shown = {"failed": self.tally.failed}
        if self.tally.tokens:  # a count that no server has sent is unknown, not 0
            shown["tokens"] = self.tally.tokens
        rest_s = self._pool.rests_until_s - time.monotonic()
        # Else a pause that is meant looks like a hang.
        resting = {"route_rests_s": math.ceil(rest_s)} if rest_s > 0 else {}
        reused, failed = self.tally.reused, self.tally.failed
        return Meter(self.tally.done, self.tally.total, resting | shown, reused=reused, failed=failed)

    def describe_interruption(self) -> str:
        """Return the message for an interrupted map."""
        done, total = self.tally.done, self.tally.total
        return f"{done:,} of {total:,} rows are done and in .partial of the session; the same call does the rest"

    async def _settle(self, code: int) -> None:
        outcome = await self._outcome(code)
        if outcome is not None:
            self._keep(code, outcome)

    async def _outcome(self, code: int) -> Outcome | None:
        """Return the outcome for a text; None if it was postponed."""
        try:
            outcome = self._make_outcome(await self._ask(self._rows.build_text(code)))
        except LLMStoreError:
            raise
        except LLMInProgress as error:
            return _failure(IN_PROGRESS, error)
        except Exception as error:  # noqa: BLE001 - a validator of the user's type may raise anything: a row, not a crash
            if self._pool.postpone_if_left_alone(code, error) or self._pool.postpone_if_cut_off(code, error):
                return None
            self._health.note_failure(error)
            return _failure(FAILED, error)
        self._health.note_answer()
        return outcome

    def _make_outcome(self, found: LLMResponse | Extraction[Any]) -> Outcome:
        if isinstance(found, LLMResponse):
            return _build_success((found,), found.usage, self._columns.split_value(found.text))
        return _build_success(found.responses, found.usage, self._columns.split_value(found.value))

    def _keep(self, code: int, outcome: Outcome) -> None:
        self._outcomes[code] = outcome
        self.tally.done += self._sizes[code]
        self.tally.failed += self._sizes[code] if outcome.status == FAILED else 0
        is_stored = outcome.served_from not in {None, str(ServedFrom.PROVIDER)}
        self.tally.reused += self._sizes[code] if is_stored else 0
        self.tally.tokens += (outcome.input_tokens or 0) + (outcome.output_tokens or 0)


def _build_success(responses: tuple[LLMResponse, ...], usage: TokenUsage, values: tuple[Any, ...]) -> Outcome:
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
