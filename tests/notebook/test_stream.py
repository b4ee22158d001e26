"""Streams as people read them: text and typed values, and every way to leave one before its end."""

from __future__ import annotations

import asyncio
import copy
import gc
import linecache
import os
import pickle
import signal
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import zip_longest
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
from pydantic import BaseModel

from llmkit import LLMBadRequest, LLMError, LLMInvalidOutput, LLMRequest, LLMUnavailable, Route, Session, StreamPiece
from llmkit.evals import Cascade
from llmkit.notebook.event_loop import Interrupted
from llmkit.testing.scripted_client import ScriptedClient, ScriptedStream, reply

ROUTE = "gemini/gemini-2.5-flash"
CITY = '{"name": "Rome", "people": 2800000}'


class City(BaseModel):
    name: str
    people: int


class Counted(Sequence[str]):
    """Very many pieces; `read` says how many a client has sent, and `on_read` is called with each number."""

    def __init__(self, on_read: Callable[[int], None] = lambda _: None) -> None:
        self.read = 0
        self._on_read = on_read

    def __len__(self) -> int:
        return 1_000_000

    def __getitem__(self, number: Any) -> Any:
        self.read += 1
        self._on_read(number)
        return "x"


class Script:
    """The next answer of the scripted client, whatever is asked."""

    def __init__(self) -> None:
        self.answers: list[Any] = [ScriptedStream(["Customers ", "who ", "leave."])]

    def __call__(self, route: Route, request: LLMRequest) -> Any:
        return self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]


@pytest.fixture
def script() -> Script:
    return Script()


@pytest.fixture
def client(script: Script) -> ScriptedClient:
    return ScriptedClient(script)


@pytest.fixture
def session(client: ScriptedClient, monkeypatch: pytest.MonkeyPatch) -> Iterator[Session]:
    monkeypatch.setattr("llmkit.bootstrap._FirstUseClient", lambda *_: client)
    with Session("study", gemini_api_key="k", router_policy="prefer_cloud", cache_enabled=False) as opened:
        yield opened


def split(text: str) -> ScriptedStream:
    return ScriptedStream([text[start : start + 3] for start in range(0, len(text), 3)], reply(text))


def read_last_row(session: Session) -> list[str | None]:
    return list(session.runs(limit=1)[["status", "error_code"]].iloc[0])


def test_a_stream_ends_as_the_answer_of_chat(session: Session) -> None:
    stream = session.stream("Hi", route=ROUTE, stage="ask")
    assert "".join(stream) == stream.text == "Customers who leave."
    chat = session.chat("Hi", route=ROUTE, stage="ask")
    own = {"run_id", "latency_ms", "first_token_ms", "attempts"}
    assert stream.response.model_dump(exclude=own) == chat.model_dump(exclude=own)
    assert session.runs()[["status", "stage", "input_tokens"]].nunique().tolist() == [1, 1, 1]


def test_pieces_show_thinking_and_tool_calls_apart_from_text(session: Session, script: Script) -> None:
    pieces = [
        StreamPiece("thinking", "hm"),
        StreamPiece("tool_call", "{}", 0, "1", "look_up"),
        StreamPiece("text", "a"),
    ]
    script.answers = [ScriptedStream(pieces, reply("a"))]
    assert list(session.stream("Hi").pieces()) == pieces
    stream = session.stream("Hi")
    assert list(stream) == ["a"]
    assert stream.thinking == "hm"


def test_characters_in_two_halves_are_joined(session: Session, script: Script) -> None:
    script.answers = [ScriptedStream(["a\ud83d", "\ude00b", "\ud83d"])]
    stream = session.stream("Hi")
    assert "".join(stream) == stream.response.text == "a\U0001f600b\ufffd"


def _break(session: Session) -> None:
    for _ in session.stream("Hi"):
        break


def _break_while_held(session: Session) -> None:
    stream = session.stream("Hi")
    for _ in stream:
        break
    with pytest.raises(LLMError, match="left before its end"):
        _ = stream.response


def _raise(session: Session) -> None:
    with pytest.raises(ZeroDivisionError):
        deque(1 / 0 for _ in session.stream("Hi"))


def _cancel(session: Session) -> None:
    stream = session.stream("Hi")
    for number, _ in enumerate(stream):
        if number == 2:
            stream.cancel()  # and the loop ends


def _leave_block(session: Session) -> None:
    with session.stream("Hi"):
        pass


def _drop(session: Session) -> None:
    stream: Any = session.stream("Hi")
    stream.cycle = stream
    del stream
    gc.collect()


def _leave_async(session: Session) -> None:
    async def read() -> None:
        async for _ in session.astream("Hi"):
            break

    asyncio.run(read())


def _cancel_async(session: Session) -> None:
    async def read() -> None:
        stream = await session.astream("Hi")
        task = asyncio.create_task(stream.finish())
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(read())


def _leave_value(session: Session) -> None:
    session.stream(City, "Rome").cancel()


WAYS = [_break, _break_while_held, _raise, _cancel, _leave_block, _drop, _leave_async, _cancel_async, _leave_value]


@pytest.mark.parametrize("leave", WAYS)
def test_a_stream_that_is_left_is_cancelled_and_recorded(
    session: Session, script: Script, client: ScriptedClient, leave: Callable[[Session], None]
) -> None:
    script.answers = [ScriptedStream(Counted(), gap_s=0.001)]
    leave(session)
    assert read_last_row(session) == ["FAILED", "cancelled"]
    assert client.in_flight == 0


def test_ctrl_c_cancels_a_waiting_reader(session: Session, script: Script, client: ScriptedClient) -> None:
    def interrupt(number: int) -> None:
        if number == 3:
            os.kill(os.getpid(), signal.SIGINT)

    script.answers = [ScriptedStream(Counted(interrupt), gap_s=0.01)]
    with pytest.raises(Interrupted):
        for _ in session.stream("Hi"):
            pass
    assert read_last_row(session) == ["FAILED", "cancelled"]
    assert client.in_flight == 0


def _show_stream(session: Session) -> None:
    session.stream("Hi").display()


def _loop_over_stream(session: Session) -> None:
    for _ in session.stream("Hi"):
        pass


def _finish_stream(session: Session) -> None:
    session.stream("Hi").finish()


class Interrupter:
    """A trace function that raises KeyboardInterrupt when a line of a stream's modules is reached.

    The first line of a function is left out: an interrupt there belongs to its caller. So are a line with `try:` alone
    and two functions that call nothing once the call is open: Python handles signals only where a function is called or
    a loop goes round.

    Args:
        line: Which line; None or one that is not reached for the thousandth.
    """

    MODULES = frozenset({"stream.py", "stream_call.py", "stream_display.py", "event_loop.py"})
    LEFT_OUT = frozenset({"open_stream", "start_chat_stream"})

    def __init__(self, line: tuple[str, int] | None = None) -> None:
        self.lines: dict[tuple[str, int], None] = {}
        self._line = line
        self._count = 0

    def __call__(self, frame: FrameType, event: str, value: Any) -> Any:
        path = Path(frame.f_code.co_filename)
        is_traced = path.parent.name == "notebook" and path.name in self.MODULES
        return _SkipFirst(self) if is_traced and frame.f_code.co_name not in self.LEFT_OUT else None

    def note(self, frame: FrameType) -> None:
        line = frame.f_code.co_filename, frame.f_lineno
        if linecache.getline(*line).strip() == "try:":
            return
        self.lines[line] = None
        self._count += 1
        if line == self._line or self._count == 1000:
            raise KeyboardInterrupt

    def run(self, function: Callable[[Session], None], session: Session) -> BaseException:
        """Return what the function raises, whose traceback keeps its stream."""
        tracer = sys.gettrace()
        sys.settrace(self)
        try:
            function(session)
        except BaseException as error:  # noqa: BLE001 - it is what the test is about
            return error
        finally:
            sys.settrace(tracer)
        raise AssertionError("no interrupt came")


class _SkipFirst:
    def __init__(self, interrupter: Interrupter) -> None:
        self._interrupter = interrupter
        self._is_first = True

    def __call__(self, frame: FrameType, event: str, value: Any) -> Any:
        if event == "line" and not self._is_first:
            self._interrupter.note(frame)
        self._is_first = self._is_first and event != "line"
        return self


# `make quick` runs it. What measures coverage adds code of its own to each line, where no interrupt can come.
@pytest.mark.skipif("slipcover" in sys.modules, reason="the lines of measured code are not those of the file")
@pytest.mark.parametrize("read", [_show_stream, _loop_over_stream, _finish_stream])
def test_an_interrupt_at_any_line_closes_the_stream(
    session: Session, script: Script, client: ScriptedClient, read: Callable[[Session], None]
) -> None:
    script.answers = [ScriptedStream(Counted(), gap_s=0.001)]
    session.stream("Hi").cancel()  # opens the session
    tracing = Interrupter()
    tracing.run(read, session)
    failures = []
    for line in tracing.lines:
        calls = len(client.calls)
        error = Interrupter(line).run(read, session)
        was_sent = len(client.calls) > calls
        if client.in_flight or (was_sent and not isinstance(error, Interrupted)):
            failures.append((line, client.in_flight, error))
    assert not failures
    assert len(tracing.lines) > 50


def test_a_deadline_around_a_stream_raises_its_own_error(session: Session, script: Script) -> None:
    script.answers = [ScriptedStream(Counted(), gap_s=0.001)]

    async def read() -> None:
        stream = await session.astream("Hi")
        async with asyncio.timeout(0.02):
            await stream.finish()

    with pytest.raises(TimeoutError):
        asyncio.run(read())
    assert read_last_row(session) == ["FAILED", "cancelled"]


def test_what_reads_values_is_imported_outside_the_loop(
    session: Session, script: Script, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It takes seconds, in which the loop has other calls to serve."""
    threads: list[str] = []
    monkeypatch.setattr("llmkit.notebook.chat._LOADED", threading.Event())
    monkeypatch.setattr(
        "llmkit.notebook.chat._import_extraction", lambda: threads.append(threading.current_thread().name)
    )
    script.answers = [split(CITY)]
    for _ in range(2):
        session.stream(City, "Rome").finish()
    assert threads == ["llmkit-aside"]


def test_closing_the_session_ends_a_stream_with_an_error(session: Session, script: Script) -> None:
    script.answers = [ScriptedStream(Counted(), gap_s=0.001)]
    stream = session.stream("Hi")
    session.close()
    with pytest.raises(LLMError, match="session was closed"):
        stream.finish()
    assert read_last_row(session) == ["FAILED", "cancelled"]


def test_an_error_before_the_first_piece_is_raised_by_the_call(session: Session, script: Script) -> None:
    script.answers = [LLMBadRequest("no")]
    with pytest.raises(LLMBadRequest):
        session.stream("Hi")
    with pytest.raises(LLMBadRequest, match="reasks belongs to a type"):
        session.stream("Hi", reasks=2)
    with pytest.raises(LLMBadRequest, match="belongs to a type"):
        session.stream("Hi", "Rome")
    with pytest.raises(LLMBadRequest, match="output type comes first"):
        session.stream(5, "Rome")


def test_a_stream_that_breaks_raises_with_its_partial_text(session: Session, script: Script) -> None:
    script.answers = [ScriptedStream(["a", "b"], LLMUnavailable("gone"))]
    stream = session.stream("Hi")
    with pytest.raises(LLMUnavailable) as broken:
        list(stream)
    assert broken.value.partial_text == stream.text == "ab"
    with pytest.raises(LLMUnavailable):
        _ = stream.response


def test_a_call_in_a_loop_over_a_stream_waits_for_its_end(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """It must not wait for a stream that waits for it."""
    client = ScriptedClient([ScriptedStream(["long "] * 1_000)])
    monkeypatch.setattr("llmkit.bootstrap._FirstUseClient", lambda *_: client)
    with Session("study", gemini_api_key="k", router_policy="prefer_cloud", cache_dir=tmp_path) as session:
        for _ in session.stream("Hi"):
            equal = session.chat("Hi")
            break
        assert (equal.text, equal.billed, len(client.calls)) == ("long " * 1_000, False, 1)


def test_a_stream_is_read_once(session: Session) -> None:
    stream = session.stream("Hi")
    with pytest.raises(LLMBadRequest, match="still arriving"):
        _ = stream.response
    assert stream.finish().text == stream.finish().text == stream.text
    list(stream)
    with pytest.raises(LLMBadRequest, match="read once"):
        list(stream)
    for take in (copy.copy, copy.deepcopy, pickle.dumps):
        with pytest.raises(TypeError, match="in progress"):
            take(stream)
    assert "Customers" not in repr(stream)


def test_streams_run_side_by_side(session: Session) -> None:
    one, two = session.stream("one"), session.stream("two")
    for _ in zip_longest(one, two):
        pass
    assert one.text == two.text == "Customers who leave."

    def read(number: int) -> str:
        return "".join(session.stream(f"{number}"))

    with ThreadPoolExecutor(20) as pool:
        assert set(pool.map(read, range(100))) == {"Customers who leave."}


def test_streams_work_inside_a_running_loop(session: Session) -> None:
    async def read() -> None:
        assert "".join(session.stream("Hi")) == "Customers who leave."
        stream = session.astream("Hi")
        assert "".join([text async for text in stream]) == stream.text == stream.response.text
        async with session.astream("Hi") as stream:
            assert (await stream.finish()).text == "Customers who leave."
        with pytest.raises(LLMBadRequest, match="read once"):
            await asyncio.gather(*(each.finish() for each in [session.astream("Hi")] * 2))

    asyncio.run(read())


def test_values_grow_and_end_validated(session: Session, script: Script) -> None:
    script.answers = [split(CITY)]
    stream = session.stream(City, "Rome")
    *partial, whole = stream
    assert whole == stream.value == City(name="Rome", people=2_800_000)
    for each in partial:
        assert isinstance(each, City)
        assert whole.name.startswith(getattr(each, "name", ""))
        assert getattr(each, "people", 2_800_000) == 2_800_000
    assert stream.response.text == CITY

    async def read() -> City:
        stream = session.astream(City, "Rome")
        return [city async for city in stream][-1]

    assert asyncio.run(read()) == whole


def test_a_reask_starts_the_fields_again(session: Session, script: Script) -> None:
    script.answers = [split('{"name": "Bern", "people": "many"}'), split(CITY)]
    stream = session.stream(City, "Rome", reasks=1)
    assert list(stream)[-1] == City(name="Rome", people=2_800_000)
    script.answers = [split('{"name": "Bern", "people": "many"}')]
    stream = session.stream(City, "Rome", reasks=0)
    with pytest.raises(LLMInvalidOutput):
        list(stream)


def test_a_broken_value_is_not_asked_for_elsewhere(session: Session, script: Script, client: ScriptedClient) -> None:
    """Nor in a weaker mode: after the first piece no other answer may follow."""
    script.answers = [ScriptedStream(['{"name": "R'], LLMUnavailable("gone")), split(CITY)]
    with pytest.raises(LLMUnavailable):
        session.stream(City, "Rome").finish()
    assert len(client.calls) == 1


def test_a_stream_is_displayed_as_plain_text_outside_notebooks(
    session: Session, script: Script, capsys: pytest.CaptureFixture[str]
) -> None:
    stream = session.stream("Hi")
    stream.display()
    stream.display()
    shown = capsys.readouterr().out.splitlines()
    assert shown[0] == shown[2] == "Customers who leave."
    assert shown[1] == shown[3] == f"[{', '.join(stream.response.facts)}]"
    script.answers = [split(CITY)]
    session.stream(City, "Rome").display()
    assert capsys.readouterr().out.startswith('{\n  "name": "Rome",\n  "people": 2800000\n}\n[gemini/')


def test_a_policy_streams_the_answer_that_counts(session: Session) -> None:
    route = session.policy("careful", Cascade(ROUTE, "gemini/gemini-2.5-pro", when=lambda *_: True))
    assert list(session.stream("Hi", route=route)) == ["Customers who leave."]
    assert len(session.runs()) == 2


def test_a_stored_answer_is_streamed(session: Session) -> None:
    for _ in range(2):
        stream = session.stream("Hi", idempotency_key="k")
        assert "".join(stream) == "Customers who leave."
    assert str(stream.response.served_from) == "replay"


def test_a_turn_is_added_when_its_stream_ends_well(session: Session, script: Script) -> None:
    talk = session.conversation()
    assert "".join(talk.stream("One?")) == "Customers who leave."
    script.answers = [
        ScriptedStream(Counted(), gap_s=0.001),
        ScriptedStream(["b"], LLMUnavailable("gone")),
        reply("Yes."),
    ]
    for _ in talk.stream("Two?"):
        break
    with pytest.raises(LLMUnavailable):
        talk.stream("Three?").finish()
    assert talk.say("Four?").text == "Yes."

    async def read() -> None:
        async for _ in talk.astream("Five?"):
            pass

    asyncio.run(read())
    assert [turn.prompt for turn in talk.turns] == ["One?", "Four?", "Five?"]
