"""Asks about every distinct text of a map, a few at a time, and keeps what came back."""

from __future__ import annotations

import math
import time
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from llmkit.batch.latest_answers import LatestAnswer, LatestAnswers
from llmkit.batch.old_objects import skip_old_objects
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

__all__ = ["Ask", "MapJob", "MapProgress", "RowKeys"]

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


@dataclass(frozen=True, slots=True)
class _RowText:
    """The values of a row, which become a text when they are shown: those of most rows never are."""

    rows: Rows
    code: int

    def __str__(self) -> str:
        return self.rows.write_values(self.code)


@dataclass(frozen=True, slots=True)
class _Cells:
    """Cells of an answer by column, likewise."""

    cells: dict[str, Any]

    def __str__(self) -> str:
        return ", ".join(f"{name}={value}" for name, value in self.cells.items())


class RowKeys(NamedTuple):
    """Names of the calls of a named map.

    Attributes:
        name: Of the map.
        pipeline_run_id: Of all calls.
        make: Returns the key of a text.
        length: Length of every such key. Further steps of an answer have longer ones that begin with it.
    """

    name: str
    pipeline_run_id: str
    make: Callable[[str], str]
    length: int


class MapJob:
    """One call of `map` at work. Finished rows are available as a frame at any time, from any thread.

    Args:
        rows: The input.
        columns: Those of the answer.
        ask: Answers one text.
        concurrency: Most texts under way at once.
        keys: Names of its calls; None for a map without a name.

    Raises:
        LLMBadRequest: `concurrency` is below 1.
    """

    def __init__(
        self, rows: Rows, columns: AnswerColumns, ask: Ask, *, concurrency: int, keys: RowKeys | None = None
    ) -> None:
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
            after_each=self._after_each,
        )
        self._latest = LatestAnswers()
        self.keys = keys
        # Awaited after each text, to see what other workers have done.
        self.look: Callable[[], Awaitable[None]] | None = None
        # Texts that workers have done, as the store shows. They count as done before their answers are read.
        self._seen: set[int] = set()
        self.tally = MapProgress(total=len(rows.codes), done=rows.skipped, reused=rows.skipped)

    async def work(self) -> None:
        """Ask about every text that is open.

        A failure is an outcome. After three in a row that will not go away (key, model, configuration, quota) nothing
        more is sent.

        Raises:
            LLMStoreError: Calls cannot be recorded any more.
        """
        with skip_old_objects():
            await self._pool.run(range(len(self._outcomes)))

    async def work_with_others(self, begin: int) -> int:
        """Ask about the texts that no other worker has done, and return how many that were.

        Args:
            begin: The text to begin with; the walk goes round.
        """
        count = len(self._outcomes)
        await self._pool.run(code for code in (*range(begin, count), *range(begin)) if code not in self._seen)
        return sum(outcome is not None and outcome.status != IN_PROGRESS for outcome in self._outcomes)

    async def ask_again(self, codes: Iterable[int]) -> None:
        """Ask once more about texts whose calls were under way elsewhere."""
        await self._pool.run(codes)

    def list_in_progress(self) -> list[int]:
        """Return the texts whose calls are under way elsewhere."""
        return [code for code, found in enumerate(self._outcomes) if found is not None and found.status == IN_PROGRESS]

    @property
    def name(self) -> str | None:
        """Name of the map; None for one without."""
        return None if self.keys is None else self.keys.name

    @property
    def size(self) -> int:
        """Number of distinct texts."""
        return len(self._outcomes)

    def make_keys(self) -> dict[str, int]:
        """Return the text of each key."""
        assert self.keys is not None
        return {self.keys.make(self._rows.build_text(code)): code for code in range(len(self._outcomes))}

    def observe(self, codes: set[int]) -> None:
        """Take note of the texts that workers have done."""
        self.tally.done += sum(self._sizes[code] for code in codes - self._seen)
        self._seen |= codes

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
        latest = self._latest.list()
        return Meter(self.tally.done, self.tally.total, resting | shown, reused=reused, failed=failed, latest=latest)

    def describe_interruption(self) -> str:
        """Return the message for an interrupted map."""
        done, total = self.tally.done, self.tally.total
        return f"{done:,} of {total:,} rows are done and in .partial of the session; the same call does the rest"

    async def _after_each(self) -> None:
        if self.look is not None:
            await self.look()

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
        before = self._outcomes[code]
        self._outcomes[code] = outcome
        if before is None and code not in self._seen:
            self.tally.done += self._sizes[code]
        self.tally.failed += self._sizes[code] if outcome.status == FAILED else 0
        is_stored = outcome.served_from not in {None, str(ServedFrom.PROVIDER)}
        self.tally.reused += self._sizes[code] if is_stored else 0
        self.tally.tokens += (outcome.input_tokens or 0) + (outcome.output_tokens or 0)
        if not is_stored and outcome.status != IN_PROGRESS:
            self._latest.note(self._describe(code, outcome))

    def _describe(self, code: int, outcome: Outcome) -> LatestAnswer:
        output: Any = outcome.error_message
        if outcome.values is not None:
            cells = dict(zip(self._columns.dtypes, outcome.values, strict=True))
            output = outcome.values[0] if len(cells) == 1 else _Cells(cells)
        first = self._rows.firsts[code]
        return LatestAnswer(str(self._rows.index[first]), _RowText(self._rows, code), output, outcome.status == FAILED)


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
