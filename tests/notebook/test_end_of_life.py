"""The end of sessions and of the interpreter, in real processes that must not hang."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator

import pytest

from llmkit.testing import OllamaServer

# Each takes about 5 s alone, and ten times that beside models and clusters of other tests.
HANG_BOUND_S = 120

# A process that hangs says where.
SETUP = f"""
import atexit, faulthandler, gc, os, signal, sys, threading
import llmkit
from llmkit import LLMError, Session

faulthandler.dump_traceback_later({HANG_BOUND_S - 10}, exit=True)

def open_session():
    return Session("study", ollama_api_base=sys.argv[1], max_retries=0, database_url="sqlite:///study.db")
"""


@pytest.fixture
def ollama() -> Iterator[OllamaServer]:
    with OllamaServer() as server:
        yield server


# Every test starts a process.
pytestmark = pytest.mark.slow


def run_script(script: str, ollama: OllamaServer, *options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, *options, "-c", SETUP + script, ollama.url]
    return subprocess.run(command, capture_output=True, text=True, timeout=HANG_BOUND_S, check=False, env=os.environ)


def test_a_session_collected_inside_another_ones_transaction_stops_nothing(ollama: OllamaServer) -> None:
    done = run_script(
        """
from llmkit.persistence.connections import SqliteWriter

gc.disable()
live, dropped = open_session(), open_session()
live.chat("warm up")
dropped.chat("x", idempotency_key="k")
assert dropped.chat("x", idempotency_key="k").served_from == "replay"  # its row is written behind
cycle = [dropped]
cycle.append(cycle)
del dropped, cycle
collected = []
execute = SqliteWriter.execute_many

def execute_and_collect(self, sql, rows):
    changed = execute(self, sql, rows)
    if not collected:
        collected.append(threading.current_thread().name)
        gc.collect()
    return changed

SqliteWriter.execute_many = execute_and_collect
live.chat("y")
print(collected)
live.close()
with open_session() as later:
    print(sorted(later.runs()["served_from"].fillna("-")))
""",
        ollama,
    )
    assert done.stdout.splitlines() == [
        "['llmkit-journal']",
        "['provider', 'provider', 'provider', 'replay']",
    ], done.stderr
    assert done.stderr == ""


def test_a_session_collected_in_its_own_loop_thread_is_closed(ollama: OllamaServer) -> None:
    done = run_script(
        """
import asyncio, time
gc.disable()
session = open_session()
session.chat("x")
names = {thread.name for thread in threading.enumerate()}
assert {"llmkit-loop", "llmkit-journal"} <= names
loop = session._core.loop._loop
cycle = [session]
cycle.append(cycle)
del session, cycle
loop.call_soon_threadsafe(gc.collect)
del loop
while {"llmkit-loop", "llmkit-journal"} & {thread.name for thread in threading.enumerate()}:
    time.sleep(0.01)
print("closed")
""",
        ollama,
    )
    assert (done.stdout, done.stderr) == ("closed\n", "")


def test_a_sync_call_in_a_signal_handler_during_a_call_is_answered(ollama: OllamaServer) -> None:
    done = run_script(
        """
session = open_session()
session.chat("warm up")
answers = []

def handle(*_):
    signal.setitimer(signal.ITIMER_REAL, 0)
    answers.append(session.chat(f"inside {len(answers)}").text)
    if len(answers) < 40:
        signal.setitimer(signal.ITIMER_REAL, 0.0007)

signal.signal(signal.SIGALRM, handle)
signal.setitimer(signal.ITIMER_REAL, 0.001)
number = 0
while len(answers) < 40:
    number += 1
    session.chat(f"outside {number}")
session.close()
print(len(answers))
""",
        ollama,
    )
    assert (done.stdout, done.stderr) == ("40\n", "")


@pytest.mark.parametrize("where", ["runtime", "loop"])
def test_a_signal_handler_during_the_start_gets_an_error(ollama: OllamaServer, where: str) -> None:
    """The interrupted call gets its answer."""
    patched = "llmkit.notebook.runtime.run_aside" if where == "runtime" else "llmkit.notebook.event_loop.start_thread"
    done = run_script(
        f"""
import importlib
module, name = {patched!r}.rsplit(".", 1)
module = importlib.import_module(module)
original = getattr(module, name)

def interrupt_first(*arguments):
    is_start = {where == "runtime"} or arguments[0].name == "llmkit-loop"
    if is_start and not errors:
        os.kill(os.getpid(), signal.SIGUSR1)
    return original(*arguments)

errors = []

def handle(*_):
    try:
        session.chat("inside")
    except LLMError as error:
        errors.append(str(error))

signal.signal(signal.SIGUSR1, handle)
setattr(module, name, interrupt_first)
session = open_session()
print(bool(session.chat("outside").text), errors[0])
""",
        ollama,
    )
    assert done.stdout.startswith("True This call interrupts llmkit"), done.stderr


def test_a_call_in_a_finalizer_at_the_exit_of_the_interpreter_is_an_error(ollama: OllamaServer) -> None:
    done = run_script(
        """
class Last:
    def __init__(self, session, call):
        self.session, self.call = session, call

    def __del__(self):
        try:
            self.call(self.session)
        except LLMError as error:
            os.write(1, f"{error}\\n".encode())
        else:
            os.write(1, b"done\\n")

gc.set_threshold(10**9)
used, unused = open_session(), Session("study", warm_up=True, ollama_api_base=sys.argv[1])
used.chat("x")
garbage = [  # which the interpreter collects when other threads stand still already
    Last(used, lambda s: s.chat("y")),
    Last(used, lambda s: s.runs()),
    Last(used, lambda s: s.explain()),
    Last(used, lambda s: s.map("x", ["y"], progress=False)),
    Last(used, lambda s: s.close()),
    Last(unused, lambda s: s.chat("y")),
    Last(unused, lambda s: Session("study", warm_up=True).close()),
]
for each in garbage:
    each.cycle = each
del each, garbage
""",
        ollama,
    )
    error = "The program is ending, and Python can no longer run this call: make it before the end of the program"
    assert sorted(done.stdout.splitlines()) == [*[error] * 5, "done", "done"], done.stderr
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("first", [True, False])
def test_calls_inside_atexit_are_answered_and_recorded_or_refused(ollama: OllamaServer, first: bool) -> None:
    done = run_script(
        f"""
def call():
    try:
        answers = [str(session.chat(text, idempotency_key=text).served_from) for text in ("x", "y", "y")]
    except LLMError as error:
        print(error)
    else:
        print(answers)

atexit.register(call)
session = open_session()
{"" if first else 'session.chat("x", idempotency_key="x")'}
""",
        ollama,
    )
    assert (done.returncode, done.stderr) == (0, "")
    with_threads = str(["provider" if first else "replay", "provider", "replay"])
    if done.stdout.strip() != with_threads:
        assert sys.version_info >= (3, 12), done.stdout  # which start no thread while the interpreter exits
        assert "make it before the end of the program" in done.stdout
        return
    counted = run_script('print(len(open_session().runs(status="SUCCEEDED")))', ollama)
    assert counted.stdout == f"{3 if first else 4}\n"


def test_an_agent_or_conversation_keeps_its_session_open(ollama: OllamaServer) -> None:
    done = run_script(
        """
conversation = open_session().conversation()
gc.collect()
conversation.say("x")
print(sorted(thread.name for thread in threading.enumerate() if thread.name in ("llmkit-loop", "llmkit-journal")))
""",
        ollama,
    )
    assert done.stdout == "['llmkit-journal', 'llmkit-loop']\n", done.stderr


def test_a_call_in_a_finalizer_inside_the_transaction_it_needs_is_refused(ollama: OllamaServer) -> None:
    done = run_script(
        """
from llmkit.persistence.connections import SqliteWriter


class Item:
    def __del__(self):
        try:
            session.chat("inside")
        except LLMError as error:
            print(error)

execute, items = SqliteWriter.execute_many, []

def execute_and_drop(self, sql, rows):
    items.clear()
    return execute(self, sql, rows)

SqliteWriter.execute_many = execute_and_drop
session = open_session()
items.append(Item())
print(bool(session.chat("outside").text))
""",
        ollama,
    )
    inside, outside = done.stdout.splitlines()
    assert inside.startswith("A sync call in a finalizer (__del__) that runs in one of llmkit's threads")
    assert outside == "True"
