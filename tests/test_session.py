"""Sessions over real HTTP, a real database file and the real event-loop thread."""

from __future__ import annotations

import asyncio
import copy
import gc
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from llmkit import (
    LLMBadRequest,
    LLMConfigurationError,
    LLMConstraints,
    LLMError,
    LLMEvaluationError,
    LLMModelNotFound,
    LLMResponse,
    LLMStoreError,
    LLMUnavailable,
    Session,
    bootstrap,
)
from llmkit.evals import EvalReport, Sample, Task, field_match
from llmkit.testing import Fault, GeminiServer, OllamaServer, Reply, get_refused_url


class City(BaseModel):
    name: str
    people: int


CITIES = Task(
    name="cities",
    dataset=[Sample(input="Rome: 2.8 million", target={"name": "Rome", "people": 2_800_000})],
    prompt="{input}",
    output_type=City,
    scorers=[field_match("people")],
)


@pytest.fixture
def ollama() -> Iterator[OllamaServer]:
    with OllamaServer() as server:
        yield server


@pytest.fixture
def session(ollama: OllamaServer) -> Iterator[Session]:
    with Session("study", ollama_api_base=ollama.url, max_retries=0) as opened:
        yield opened


def test_a_chat_is_one_run_and_one_attempt(session: Session, ollama: OllamaServer) -> None:
    ollama.script([Reply("Customers who leave.", input_tokens=9, output_tokens=3)])
    answer = session.chat("What is churn?", system="Be brief.", stage="try")
    assert str(answer) == "Customers who leave."
    runs = session.runs()
    assert len(runs) == 1
    row = runs.iloc[0]
    assert (row.status, row.input_tokens, row.output_tokens, row.stage) == ("SUCCEEDED", 9, 3, "try")
    assert row.workspace_id == "study"
    attempts = session.attempts()
    assert (len(attempts), attempts.iloc[0].status) == (1, "SUCCEEDED")


def test_the_first_call_creates_the_database(ollama: OllamaServer) -> None:
    with Session("study", ollama_api_base=ollama.url) as session:
        assert not Path("llmkit.db").exists()
        session.chat("x")
        assert Path("llmkit.db").exists()


def test_extract_sends_examples_and_validates(session: Session, ollama: OllamaServer) -> None:
    ollama.script([Reply('{"name": "Rome", "people": 2800000}')])
    city = session.extract(
        City, "Rome has 2.8 million people.", examples=[("Bern: 134 thousand", City(name="Bern", people=134_000))]
    )
    assert city == City(name="Rome", people=2_800_000)
    messages = ollama.calls[0].json["messages"]
    assert [message["role"] for message in messages] == ["system", "user", "assistant", "user"]
    assert messages[2]["content"] == '{"name":"Bern","people":134000}'


def test_equal_calls_are_cached_across_sessions(session: Session, ollama: OllamaServer) -> None:
    session.chat("x")
    with Session("study", ollama_api_base=ollama.url) as later:
        assert later.chat("x").served_from == "cache"
    assert len(ollama.calls) == 1


async def test_sync_and_async_calls_work_inside_a_running_loop(session: Session) -> None:
    one = session.chat("a")
    two, three = await asyncio.gather(session.achat("b"), session.achat("c"))
    city = await session.aextract(City, "x")
    assert all(isinstance(answer, LLMResponse) for answer in (one, two, three))
    assert isinstance(city, City)


def test_calls_from_many_threads_share_one_session(session: Session, ollama: OllamaServer) -> None:
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda number: session.chat(f"question {number}").text, range(24)))
    assert len(answers) == 24
    assert len(session.runs()) == 24


def test_explain_gives_reasons_and_sends_nothing(session: Session, ollama: OllamaServer) -> None:
    text = str(session.explain("x"))
    assert "1. ollama/llama3.2" in text
    assert "gemini/gemini-2.5-flash: excluded" in text
    assert "LLM_GEMINI_API_KEY" in text
    assert not ollama.requests


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"temperature": 9}, "temperature"),
        ({"max_tokens": 9}, "max_tokens"),
        ({"route": "olama/gpt"}, "unknown endpoint 'olama'; did you mean ollama?"),
        ({"route": "llama3.2"}, "provider/model"),
    ],
)
def test_a_bad_argument_is_refused_before_anything_is_sent(
    session: Session, ollama: OllamaServer, fields: dict[str, object], message: str
) -> None:
    with pytest.raises(LLMBadRequest, match=message):
        session.chat("x", **fields)
    with pytest.raises(LLMBadRequest, match=message):
        session.extract(City, "x", **fields)
    assert not ollama.requests


def test_a_bad_workspace_or_setting_is_a_configuration_error() -> None:
    with pytest.raises(LLMConfigurationError):
        Session(" ")
    with pytest.raises(LLMConfigurationError, match="Unknown setting"):
        Session(modell="x")


def test_an_unavailable_server_states_the_remedy_and_leaves_a_row() -> None:
    with Session("study", ollama_api_base=get_refused_url(), max_retries=0) as session:
        with pytest.raises(LLMUnavailable, match="ollama serve"):
            session.chat("x", route="ollama/llama3.2")
        row = session.runs().iloc[0]
        assert (row.status, row.error_code) == ("FAILED", "unavailable")


@pytest.mark.parametrize("variable", ["LLM_GEMINI_API_KEY", "GEMINI_API_KEY"])
@pytest.mark.parametrize("route", ["gemini/gemini-2.5-flash", None])
def test_a_key_that_is_set_too_late_is_mentioned(
    variable: str, route: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Session("study", ollama_api_base=get_refused_url(), max_retries=0) as session:
        constraints = LLMConstraints(allow_fallback=False)
        with pytest.raises(LLMError) as before:
            session.chat("x", route=route, constraints=constraints)
        assert "is set in the environment" not in str(before.value)
        monkeypatch.setenv(variable, "secret-value")
        with pytest.raises(LLMError, match=f"{variable} is set in the environment .* open a new session") as after:
            session.chat("x", route=route, constraints=constraints)
        assert "secret-value" not in str(after.value)
        rows = session.map("Say {text}", ["a"], route=route, constraints=constraints, progress=False)
        assert "open a new session" in rows["error_message"].iloc[0]


def test_another_key_than_the_one_that_was_refused_is_mentioned(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GEMINI_API_KEY", "wrong-key")
    with GeminiServer(api_key="right-key") as server, Session("study", gemini_api_base=server.url) as session:
        with pytest.raises(LLMError) as before:
            session.chat("x", route="gemini/gemini-2.5-flash")
        assert "open a new session" not in str(before.value)
        monkeypatch.delenv("GEMINI_API_KEY")
        Path(".env").write_text("LLM_GEMINI_API_KEY=right-key\n", encoding="utf-8")
        with pytest.raises(LLMError, match=r"LLM_GEMINI_API_KEY is set in the file \.env, to another key: open a new"):
            session.chat("x", route="gemini/gemini-2.5-flash")


@pytest.mark.parametrize("damage", ["garbage", "folder", "read-only"])
def test_an_unusable_database_is_one_clear_error(damage: str, tmp_path: Path, ollama: OllamaServer) -> None:
    path = tmp_path / "x.db"
    if damage == "garbage":
        path.write_bytes(b"not a database, but long enough to be read as one. " * 100)
    elif damage == "folder":
        path.mkdir()
    else:
        path = tmp_path / "missing" / "x.db"
    session = Session("study", database_url=f"sqlite:///{path}", ollama_api_base=ollama.url)
    with pytest.raises(LLMStoreError):
        session.chat("x")
    assert not ollama.calls


def test_a_session_can_be_closed_twice_and_used_again(session: Session) -> None:
    session.chat("x")
    session.close()
    session.close()
    assert session.chat("y").text


def test_an_unused_session_closes_itself(ollama: OllamaServer) -> None:
    session = Session("study", ollama_api_base=ollama.url)
    session.chat("x")
    before = threading.active_count()
    del session
    gc.collect()
    deadline = time.monotonic() + 60
    while threading.active_count() >= before and time.monotonic() < deadline:
        time.sleep(0.05)
    assert threading.active_count() < before


def test_an_interrupted_call_is_cancelled_at_the_server_and_recorded(session: Session, ollama: OllamaServer) -> None:
    session.chat("warm up")
    ollama.script([Fault.hang()])

    def watch() -> None:
        assert ollama.wait_until_in_flight(1, 100)
        os.kill(os.getpid(), signal.SIGINT)

    watcher = threading.Thread(target=watch)
    watcher.start()
    with pytest.raises(KeyboardInterrupt):
        session.chat("x")
    watcher.join()
    assert ollama.wait_until_idle(60)
    assert ollama.calls[-1].client_disconnected
    row = session.runs().iloc[0]
    assert (row.status, row.error_code) == ("FAILED", "cancelled")


def _question(text: str) -> Sample:
    return Sample(id=text, input=text, target={"name": text, "people": 1})


def test_an_interrupted_evaluation_leaves_a_partial_report_and_continues(
    session: Session, ollama: OllamaServer
) -> None:
    session.chat("warm up")
    task = Task(
        name="cities",
        dataset=[_question(f"t{number}") for number in range(6)],
        prompt="{input}",
        output_type=City,
        scorers=[field_match("people")],
    )
    done = '{"name": "x", "people": 1}'
    ollama.script(lambda call: Fault.hang() if call.json["messages"][-1]["content"] == "t3" else Reply(done))
    before = len(ollama.calls)

    def watch() -> None:
        for _ in range(600):
            if len(ollama.calls) - before == 4:
                os.kill(os.getpid(), signal.SIGINT)
                return
            time.sleep(0.05)

    watcher = threading.Thread(target=watch)
    watcher.start()
    with pytest.raises(KeyboardInterrupt, match="partial"):
        session.evaluate(task, ["ollama/llama3.2"], concurrency=1, progress=False)
    watcher.join()
    assert ollama.wait_until_idle(60)
    assert ollama.calls[-1].client_disconnected
    part = session.partial
    assert isinstance(part, EvalReport)
    assert part.counts["SUCCEEDED"] == 3
    assert session.report("cities").counts == part.counts
    ollama.script(Reply(done))
    before = len(ollama.calls)
    assert session.evaluate(task, ["ollama/llama3.2"]).counts["SUCCEEDED"] == 6
    assert len(ollama.calls) - before == 3
    assert session.partial is None


def rebuild(report: EvalReport) -> EvalReport:
    """Do what a pickle does. No test reads one, so that nothing in llmkit can either."""
    assert pickle.dumps(report)
    function, arguments = report.load_calls.__reduce__()
    return replace(report, load_calls=function(*arguments))


@pytest.mark.parametrize("make_copy", [copy.copy, copy.deepcopy, rebuild])
def test_a_copy_of_a_report_has_its_results_and_calls(
    session: Session, ollama: OllamaServer, make_copy: Callable[[Any], Any]
) -> None:
    ollama.script([Reply('{"name": "Rome", "people": 2800000}')])
    report = session.evaluate(CITIES, ["ollama/llama3.2"], progress=False)
    copied = make_copy(report)
    assert copied.results == report.results
    assert len(copied.load_calls()) == 1
    assert copied.attempts().equals(report.attempts())


def test_an_unknown_report_lists_the_existing_ones(session: Session) -> None:
    with pytest.raises(LLMEvaluationError, match="none yet"):
        session.report("nothing")


async def test_frames_are_available_to_async_code(session: Session) -> None:
    await session.achat("x")
    assert [len(frame) for frame in (await session.aruns(), await session.aattempts(), await session.ausage())] == [
        1
    ] * 3


SCRIPT = """
import os, sys, llmkit
session = llmkit.Session("study", ollama_api_base=sys.argv[1])
print(session.chat("x").text)
if "fork" in sys.argv:
    pid = os.fork()
    if pid == 0:
        print("child", session.chat("from the child").text, flush=True)
        os._exit(0)
    assert os.waitpid(pid, 0)[1] == 0
    print("parent", session.chat("from the parent").text)
if "raise" in sys.argv:
    session.chat("x", route="ollama/missing")
"""


def _run_script(url: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-X", "dev", "-c", SCRIPT, url, *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=250, check=False)


async def test_a_traceback_contains_no_other_library(session: Session) -> None:
    with pytest.raises(LLMModelNotFound) as sync:
        session.chat("x", route="ollama/missing")
    with pytest.raises(LLMModelNotFound) as awaited:
        await session.achat("x", route="ollama/missing")
    for caught in (sync, awaited):
        files = {Path(frame.filename).name for frame in traceback.extract_tb(caught.value.__traceback__)}
        assert files == {"test_session.py", "session.py", "core.py", "event_loop.py"}


# Presses Ctrl-C in the middle of what the first call imports.
IMPATIENT = """
import _thread, sys, threading, time, llmkit

def press():
    while "llmkit.router" not in sys.modules:
        time.sleep(0.0005)
    _thread.interrupt_main()

session = llmkit.Session("study", ollama_api_base=sys.argv[1], warm_up=False)
presser = threading.Thread(target=press)
presser.start()
try:
    session.chat("x")
except KeyboardInterrupt as interrupted:
    print(type(interrupted).__name__)
presser.join()
print(session.chat("x").text, len(session.runs()))
"""


@pytest.mark.slow
def test_interrupting_the_first_call_does_not_break_the_next(ollama: OllamaServer) -> None:
    ollama.script("Fine.")
    done = subprocess.run(
        [sys.executable, "-c", IMPATIENT, ollama.url], capture_output=True, text=True, timeout=250, check=False
    )
    assert done.stdout.splitlines() == ["Interrupted", "Fine. 1"], done.stderr


async def test_opening_does_not_block_an_async_caller(monkeypatch: pytest.MonkeyPatch, ollama: OllamaServer) -> None:
    turned = threading.Event()
    real = bootstrap.open_runtime

    def slow(*arguments: object) -> object:
        assert turned.wait(60)
        return real(*arguments)

    monkeypatch.setattr(bootstrap, "open_runtime", slow)
    asyncio.get_running_loop().call_later(0.01, turned.set)
    with Session("study", ollama_api_base=ollama.url) as session:
        assert (await session.achat("x")).text


@pytest.mark.slow
def test_a_script_with_an_open_session_exits_without_a_warning(ollama: OllamaServer) -> None:
    done = _run_script(ollama.url)
    assert done.returncode == 0
    # asyncio's own remarks on a slow machine are none of a session's.
    lines = [line for line in done.stderr.splitlines() if not line.startswith("Executing <")]
    ours = [line for line in lines if "llmkit" in line or "Event loop" in line or "unclosed" in line]
    assert not ours, done.stderr


@pytest.mark.slow
def test_a_forked_child_can_use_the_session(ollama: OllamaServer) -> None:
    done = _run_script(ollama.url, "fork")
    assert done.returncode == 0, done.stderr
    assert "child" in done.stdout
    assert "parent" in done.stdout
    assert len(ollama.calls) == 3
