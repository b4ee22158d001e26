"""Calls whose answer is read while it is written: the same call, with the same rows, as without a reader (spec 19)."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmkit.calls.request_hash import prompt_sha256
from llmkit.errors import (
    LLMBadRequest,
    LLMContentBlocked,
    LLMError,
    LLMMalformedReply,
    LLMStoreError,
    LLMUnavailable,
)
from llmkit.evals.budget import Budget
from llmkit.evals.run.budget_guard import BudgetGuard
from llmkit.persistence.content_cache import DiskContentCache
from llmkit.persistence.journal import Journal, JournalLLMRunRepo
from llmkit.ports import AnswerSink, ClientReply, RunFailure, RunSuccess, StoredRun, StreamPiece, apply_guard, use_guard
from llmkit.replay.cassette import Cassette, CassetteClient, Recording
from llmkit.router import LLMRouter
from llmkit.service import LLMService
from llmkit.settings import load_settings
from llmkit.testing.in_memory import InMemoryLLMRunRepo, InMemoryRun
from llmkit.testing.scripted_client import ScriptedClient, ScriptedStream, reply
from llmkit.types import LLMRequest, LLMResponse, Route, TokenUsage, ToolCall
from tests.support.repositories import JournalHome
from tests.support.workers import HERE, ROUTE, Nest, ask

TEXT = "Churn is a loss."
PIECES = ("Churn ", "is a ", "loss.")
CALL = ToolCall(id="c1", name="look", arguments='{"at": 1}')
CANARY = "canary-7c1f of a stream"
# As the workers ask.
SAME = "the same question"


class Reader:
    """A reader of one answer; it takes the piece with the number `stops_at` only when `goes_on` is set."""

    def __init__(self, stops_at: int | None = None, error: Exception | None = None) -> None:
        self.pieces: list[StreamPiece] = []
        self.has_stopped, self.goes_on = asyncio.Event(), asyncio.Event()
        self._stops_at, self._error = stops_at, error
        self.sink = AnswerSink(self._take)

    async def _take(self, pieces: Sequence[StreamPiece]) -> None:
        self.pieces.extend(pieces)
        if self._stops_at is not None and len(self.pieces) > self._stops_at:
            self.has_stopped.set()
            await self.goes_on.wait()
            if self._error is not None:
                raise self._error

    @property
    def texts(self) -> list[str]:
        return [piece.text for piece in self.pieces]


class Bench:
    """A service with a scripted client on one store and one cache."""

    def __init__(self, answers: Any = (), *, cache: Path | None = Path("cache"), runs: Any = None, **options: Any):
        self.client = ScriptedClient(answers) if isinstance(answers, list | tuple) or callable(answers) else answers
        self.runs = InMemoryLLMRunRepo() if runs is None else runs
        values = load_settings(cache_enabled=cache is not None, **options)
        kept = DiskContentCache(cache, ttl_s=60, size_limit_bytes=10**8) if cache is not None else None
        self.router = LLMRouter(values, self.client)
        self.service = LLMService(router=self.router, settings=values, runs=self.runs, cache=kept)

    def chat(self, reader: Reader | None = None, text: str = "q", **fields: Any) -> asyncio.Task[LLMResponse]:
        sink = reader.sink if reader else None
        return asyncio.create_task(self.service.chat(ask(text, **fields), HERE, sink=sink))

    @property
    def outcomes(self) -> list[tuple[str, str | None, str | None]]:
        """Status, error code and source of every run, in the order in which they began."""
        return [
            (str(run.status), run.error_code, None if run.success is None else str(run.success.served_from))
            for run in self.runs.runs
        ]


def broken(error: LLMError | None = None, **known: Any) -> ScriptedStream:
    return ScriptedStream(PIECES[:2], end=error or LLMUnavailable("connection lost"), **known)


def read_files(folder: Path) -> bytes:
    return b"".join(path.read_bytes() for path in folder.rglob("*") if path.is_file())


async def settle() -> None:
    """Let every task run until all of them wait for something that a test decides."""
    for _ in range(50):
        await asyncio.sleep(0)


# --- the same call ----------------------------------------------------------------------------------------------------


def _comparable(run: InMemoryRun, ids: dict[Any, int]) -> tuple[Any, ...]:
    """A run without what differs between any two calls: ids, times and the time to the first token."""

    def number(run_id: Any) -> int | None:
        return None if run_id is None else ids.setdefault(run_id, len(ids))

    number(run.start.id)
    ended: RunSuccess | RunFailure | None = run.success or run.failure
    changes: dict[str, Any] = {"run_id": number(run.start.id), "finished_at_utc": None, "latency_ms": 0.0}
    if isinstance(ended, RunSuccess):
        stored = LLMResponse.model_validate_json(ended.result_json) if ended.result_json else None
        if stored is not None:
            changes["result_json"] = stored.model_copy(
                update={
                    "run_id": number(stored.run_id),
                    "source_run_id": number(stored.source_run_id),
                    "latency_ms": 0.0,
                    "first_token_ms": None,
                }
            )
        changes["source_run_id"] = number(ended.source_run_id)
    attempts = [
        attempt.model_copy(update={"started_at_utc": None, "latency_ms": 0.0, "first_token_ms": None})
        for attempt in run.attempts
    ]
    ended = ended and ended._replace(first_token_ms=None, attempts=(), **changes)
    return run.start._replace(id=None, created_at_utc=None), run.status, ended, attempts


ANSWERS = st.sampled_from(
    [
        lambda: ScriptedStream(PIECES),
        lambda: ScriptedStream((StreamPiece("thinking", "Hm"), *PIECES), end=reply(TEXT, output_tokens=None)),
        lambda: ScriptedStream(
            [StreamPiece("tool_call", '{"at": 1}', 0, "c1", "look")],
            end=ClientReply("", (CALL,), "tool_calls", TokenUsage(input_tokens=3), None),
        ),
        lambda: reply("whole"),
        lambda: LLMUnavailable("down"),
        lambda: LLMBadRequest("refused"),
    ]
)
REQUESTS = st.lists(st.tuples(st.sampled_from("ab"), st.sampled_from([None, "k"]), st.booleans()), max_size=5)


@settings(max_examples=40, deadline=None)
@given(answers=st.lists(ANSWERS, min_size=1, max_size=4), requests=REQUESTS, is_pinned=st.booleans())
def test_a_streamed_and_a_plain_call_leave_the_same_rows(
    answers: list[Callable[[], Any]], requests: list[tuple[str, str | None, bool]], is_pinned: bool
) -> None:
    async def run(*, streams: bool) -> tuple[list[Any], list[Any]]:
        bench = Bench([make() for make in answers], cache=None, gemini_api_key="AIza-none")
        outcomes: list[Any] = []
        for text, key, is_keyed in requests:
            reader = Reader() if streams else None
            fields = {"idempotency_key": f"{key}{text}" if is_keyed and key else None}
            request = ask(text, route=ROUTE if is_pinned else None, **fields)
            try:
                answer = await bench.service.chat(request, HERE, sink=reader.sink if reader else None)
            except LLMError as error:
                outcomes.append((type(error), str(error), error.code, error.partial_text))
            else:
                outcomes.append((answer.text, answer.tool_calls, answer.usage, answer.served_from, answer.route))
                if reader is not None:
                    assert reader.sink.partial_text == answer.text
        ids: dict[Any, int] = {}
        return outcomes, [_comparable(each, ids) for each in bench.runs.runs]

    assert asyncio.run(run(streams=True)) == asyncio.run(run(streams=False))


async def test_a_stream_is_stored_with_the_time_to_its_first_token(database_url: str) -> None:
    with JournalHome(database_url) as home:
        bench = Bench([ScriptedStream(PIECES), broken(), reply("whole")], runs=home.repo)
        reader = Reader()
        answer = await bench.chat(reader)
        with pytest.raises(LLMUnavailable):
            await bench.chat(Reader(), "b")
        await bench.chat(Reader(), "c")  # streamed, but the answer came whole
        runs, attempts = home.runs(), home.attempts()
    assert (reader.texts, answer.text) == ([*PIECES], TEXT)
    streamed, failed, whole = runs
    assert (streamed["status"], failed["status"], whole["status"]) == ("SUCCEEDED", "FAILED", "SUCCEEDED")
    assert streamed["first_token_ms"] == answer.first_token_ms
    assert 0 < streamed["first_token_ms"] <= streamed["latency_ms"]
    assert 0 < failed["first_token_ms"] <= failed["latency_ms"]
    assert whole["first_token_ms"] is None
    assert [attempt["first_token_ms"] is not None for attempt in attempts] == [True, True, False]


async def test_the_time_of_the_reader_is_not_the_latency(monkeypatch: pytest.MonkeyPatch) -> None:
    now_s = [0.0]
    for module in ("llmkit.ports", "llmkit.calls.call"):
        monkeypatch.setattr(f"{module}.perf_counter", lambda: now_s[0])

    async def read_slowly(_pieces: Sequence[StreamPiece]) -> None:
        now_s[0] += 100

    bench = Bench(lambda *_: (now_s.__setitem__(0, now_s[0] + 2), ScriptedStream(PIECES))[1])
    answer = await bench.service.chat(ask("q"), HERE, sink=AnswerSink(read_slowly))
    assert (answer.first_token_ms, answer.latency_ms, now_s) == (2000, 2000, [302.0])


async def test_a_sink_takes_one_answer() -> None:
    bench, reader = Bench([ScriptedStream(PIECES)], cache=None), Reader()
    await bench.chat(reader)
    with pytest.raises(LLMBadRequest, match="one for each call"):
        await bench.chat(reader)
    assert (reader.texts, len(bench.client.calls)) == ([*PIECES], 1)


# --- answers that are complete ----------------------------------------------------------------------------------------


async def test_a_stored_answer_arrives_in_the_sink_as_a_whole() -> None:
    end = ClientReply(TEXT, (CALL, CALL), "tool_calls", TokenUsage(), None)
    bench = Bench([ScriptedStream((StreamPiece("thinking", "Hm"), *PIECES), end=end)])
    first, replayed, cached = Reader(), Reader(), Reader()
    origin = await bench.chat(first, idempotency_key="k")
    assert len(first.pieces) == 4
    replay = await bench.chat(replayed, idempotency_key="k")
    hit = await bench.chat(cached)
    whole = [
        StreamPiece("text", TEXT),
        StreamPiece("tool_call", CALL.arguments, 0, "c1", "look"),
        StreamPiece("tool_call", CALL.arguments, 1, "c1", "look"),
    ]
    assert (replayed.pieces, cached.pieces, len(bench.client.calls)) == (whole, whole, 1)
    assert (replay.served_from, hit.served_from) == ("replay", "cache")
    # As the latency, it is that of the billed call; the rows that cost nothing have none.
    assert replay.first_token_ms == hit.first_token_ms == origin.first_token_ms
    assert [run.success.first_token_ms is None for run in bench.runs.runs] == [False, True, True]


async def test_a_cassette_puts_its_answer_in_the_sink() -> None:
    values, request = load_settings(), LLMRequest(messages="q", route=ROUTE)
    key = prompt_sha256(request, values.default_profile)
    recording = Recording(prompt="q", profile="balanced", text=TEXT, route=Route.parse(ROUTE), prompt_sha256=key)
    reader = Reader()
    bench = Bench(CassetteClient(Cassette([recording]), values), cache=None)
    assert (await bench.chat(reader)).text == TEXT
    assert reader.pieces == [StreamPiece("text", TEXT)]


# --- streams that break -----------------------------------------------------------------------------------------------


async def test_before_the_first_piece_another_candidate_answers() -> None:
    bench = Bench([LLMUnavailable("down"), ScriptedStream(PIECES)], gemini_api_key="AIza-none")
    reader = Reader()
    answer = await bench.chat(reader, route=None)
    assert (reader.texts, answer.text, len(answer.attempts)) == ([*PIECES], TEXT, 2)


async def test_after_the_first_piece_nothing_else_is_sent() -> None:
    bench = Bench([broken(usage=TokenUsage(input_tokens=7)), reply("other")], gemini_api_key="AIza-none")
    reader = Reader()
    with pytest.raises(LLMUnavailable) as caught:
        await bench.chat(reader, route=None, idempotency_key="k")
    assert (caught.value.partial_text, reader.texts) == ("Churn is a ", [*PIECES[:2]])
    assert (len(bench.client.calls), bench.outcomes) == (1, [("FAILED", "unavailable", None)])
    (attempt,) = caught.value.attempts
    assert (attempt.usage.input_tokens, attempt.usage.output_tokens) == (7, None)
    assert [run.attempts for run in bench.runs.runs] == [(attempt,)]
    # The key is free again.
    assert (await bench.chat(route=None, idempotency_key="k")).text == "other"


async def test_a_partial_answer_is_kept_nowhere_but_on_the_error(
    sqlite_url: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    answers = [ScriptedStream((CANARY,), end=LLMMalformedReply("garbage")), ScriptedStream((CANARY,))]
    caplog.set_level(logging.DEBUG)
    with JournalHome(sqlite_url) as home:
        bench = Bench(answers, runs=home.repo, cache=tmp_path / "cache")
        with pytest.raises(LLMMalformedReply) as caught:
            await bench.chat(Reader())
        reader = Reader(stops_at=0)
        left = bench.chat(reader, "b")
        await reader.has_stopped.wait()
        left.cancel()
        with pytest.raises(asyncio.CancelledError):
            await left
        assert [(run["status"], run["error_code"]) for run in home.runs()] == [
            ("FAILED", "malformed_reply"),
            ("FAILED", "cancelled"),
        ]
    assert caught.value.partial_text == CANARY
    seen = f"{caught.value} {caught.value!r} {caught.value.args} {caught.value._render_traceback_()} {caplog.text}"
    assert CANARY not in seen
    assert CANARY.encode() not in read_files(tmp_path)


async def test_an_answer_that_cannot_be_recorded_is_on_the_error() -> None:
    class Failing(InMemoryLLMRunRepo):
        async def mark_succeeded(self, success: RunSuccess) -> bool:
            raise LLMStoreError("the disk is full")

    reader = Reader()
    with pytest.raises(LLMStoreError) as caught:
        await Bench([ScriptedStream(PIECES)], runs=Failing()).chat(reader)
    assert caught.value.response is not None
    assert caught.value.response.text == "".join(reader.texts) == TEXT


# --- equal calls in flight --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("streams", [True, False])
async def test_a_follower_gets_the_whole_answer_of_a_streaming_leader(streams: bool) -> None:
    bench = Bench([ScriptedStream(PIECES)])
    leader, follower = Reader(stops_at=1), Reader()
    leading = bench.chat(leader)
    await leader.has_stopped.wait()
    following = bench.chat(follower if streams else None)
    await settle()
    assert (follower.pieces, following.done()) == ([], False)
    leader.goes_on.set()
    assert (await leading).text == (await following).text == TEXT
    assert follower.texts == ([TEXT] if streams else [])
    assert [source for _, _, source in bench.outcomes] == ["provider", "shared"]
    assert len(bench.client.calls) == 1


async def test_a_follower_of_a_broken_stream_takes_its_turn() -> None:
    """Its own reader has seen nothing, so that another try is open to it."""
    bench = Bench([broken(), ScriptedStream(PIECES)])
    leader, follower = Reader(stops_at=0), Reader()
    leading = bench.chat(leader)
    await leader.has_stopped.wait()
    following = bench.chat(follower)
    await settle()
    leader.goes_on.set()
    with pytest.raises(LLMUnavailable) as caught:
        await leading
    assert caught.value.partial_text == "Churn is a "
    assert (await following).text == TEXT
    assert (follower.texts, len(bench.client.calls)) == ([*PIECES], 2)


async def test_a_follower_shares_an_error_that_another_try_could_not_change_and_no_text() -> None:
    bench = Bench([broken(LLMContentBlocked("a filter"))])
    leader = Reader(stops_at=0)
    leading = bench.chat(leader)
    await leader.has_stopped.wait()
    following = bench.chat(Reader())
    await settle()
    leader.goes_on.set()
    errors = await asyncio.gather(leading, following, return_exceptions=True)
    assert [type(error) for error in errors] == [LLMContentBlocked] * 2
    assert [error.partial_text for error in errors] == ["Churn is a ", ""]
    assert errors[0].run_id != errors[1].run_id
    assert len(bench.client.calls) == 1


@pytest.mark.parametrize("leaves", ["cancelled", "failed"])
async def test_when_the_reader_of_the_leader_leaves_a_follower_takes_its_turn(leaves: str) -> None:
    bench = Bench([ScriptedStream(PIECES)], cooldown_after_failures=1)
    failure = ZeroDivisionError("in the code of the user")
    leader, follower = Reader(stops_at=1, error=failure), Reader()
    leading = bench.chat(leader)
    await leader.has_stopped.wait()
    following = bench.chat(follower)
    await settle()
    leading.cancel() if leaves == "cancelled" else leader.goes_on.set()
    with pytest.raises(asyncio.CancelledError if leaves == "cancelled" else LLMBadRequest) as caught:
        await leading
    assert (await following).text == TEXT
    assert follower.texts == [*PIECES]
    assert bench.outcomes == [("FAILED", "cancelled", None), ("SUCCEEDED", None, "provider")]
    if leaves == "failed":
        assert caught.value.__cause__ is failure
        assert (caught.value.partial_text, caught.value.run_id) == ("Churn is a ", bench.runs.runs[0].start.id)
        assert "in the code of the user" not in str(caught.value)


async def test_a_reader_that_fails_on_a_complete_answer_does_not_lose_it() -> None:
    bench = Bench([reply(TEXT)])
    reader = Reader(stops_at=0, error=OSError("closed"))
    reader.goes_on.set()
    with pytest.raises(LLMBadRequest, match="OSError"):
        await bench.chat(reader, idempotency_key="k")
    assert bench.outcomes == [("SUCCEEDED", None, "provider")]
    assert (await bench.chat(idempotency_key="k")).text == TEXT


async def test_a_slow_reader_does_not_stop_the_heart_of_its_call() -> None:
    class Watched(InMemoryLLMRunRepo):
        def __init__(self) -> None:
            super().__init__()
            self.beats = asyncio.Semaphore(0)

        async def heartbeat(self, run_ids: Any) -> None:
            await super().heartbeat(run_ids)
            self.beats.release()

    runs = Watched()
    bench = Bench([ScriptedStream(PIECES)], runs=runs, abandoned_after_s=0.03)
    reader = Reader(stops_at=0)
    reading = bench.chat(reader)
    await reader.has_stopped.wait()
    for _ in range(3):
        await asyncio.wait_for(runs.beats.acquire(), 60)
    assert [str(run.status) for run in runs.runs] == ["STARTED"]
    reader.goes_on.set()
    assert (await reading).text == TEXT


# --- budgets ----------------------------------------------------------------------------------------------------------


async def test_a_broken_stream_without_counts_uses_up_what_was_reserved_for_it() -> None:
    class Guarded(ScriptedClient):
        async def call(self, route, request, log, before_send, *, sink=None):
            async def send():
                return await ScriptedClient.call(self, route, request, log, before_send, sink=sink)

            return await apply_guard(route, request, log, send)()

    async def spend(answer: Any) -> int:
        guard = BudgetGuard(Budget(max_tokens=10_000))
        with use_guard(guard):
            await asyncio.gather(
                Bench(Guarded([answer]), cache=None).chat(Reader(), max_output_tokens=50), return_exceptions=True
            )
        assert guard.use is not None
        return guard.use.tokens or 0

    assert await spend(broken()) >= 50
    assert await spend(broken(usage=TokenUsage(input_tokens=2))) >= 50
    assert await spend(broken(usage=TokenUsage(input_tokens=2, output_tokens=3))) == 5
    assert await spend(ScriptedStream(PIECES)) == 4


# --- other processes --------------------------------------------------------------------------------------------------


async def test_a_process_killed_in_the_middle_of_a_stream_frees_its_key(database_url: str) -> None:
    with Nest() as nest, JournalHome(database_url) as home:
        with nest.hatch("stream", database=database_url, pieces=PIECES, key="k") as worker:
            worker.go()
            assert worker.result() == PIECES[0]
            with pytest.raises(LLMError, match="is under way"):
                await Bench(runs=home.repo, cache=None).chat(None, SAME, idempotency_key="k")
            worker.kill()
        again = Reader()
        bench = Bench([ScriptedStream(PIECES)], runs=home.repo, cache=None)
        assert (await bench.chat(again, SAME, idempotency_key="k")).text == TEXT
        assert (again.texts, len(bench.client.calls)) == ([*PIECES], 1)
        assert [(run["status"], run["error_code"]) for run in home.runs()] == [
            ("FAILED", "abandoned"),
            ("SUCCEEDED", None),
        ]
        assert len(home.attempts()) == 1


class Polled(JournalLLMRunRepo):
    """A repository that says when a follower has looked a second time whether the call that it waits for is over."""

    def __init__(self, journal: Journal) -> None:
        super().__init__(journal)
        self.looks, self.has_looked_again = 0, asyncio.Event()

    async def get_by_flight_key(self, workspace_id: str, flight_key: str) -> StoredRun | None:
        found = await super().get_by_flight_key(workspace_id, flight_key)
        self.looks += 1
        if self.looks > 1:
            self.has_looked_again.set()
        return found


async def test_a_process_waits_for_the_stream_of_another(database_url: str) -> None:
    with Nest() as nest, JournalHome(database_url) as home:
        with nest.hatch("stream", database=database_url, pieces=PIECES, key=None) as worker:
            worker.go()
            assert worker.result() == PIECES[0]
            runs = Polled(home.journal)
            follower, bench = Reader(), Bench([reply("another answer")], runs=runs)
            following = bench.chat(follower, SAME)
            await runs.has_looked_again.wait()
            assert follower.pieces == []
            worker.tell()
            assert [worker.result() for _ in PIECES] == [*PIECES[1:], TEXT]
            assert (await following).served_from == "shared"
        assert (follower.texts, bench.client.calls) == ([TEXT], [])
        assert len(home.attempts()) == 1
