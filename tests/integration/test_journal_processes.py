"""The journal between processes: many writers, races, death, fork, and the end of the interpreter."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any

import pytest

from llmkit.ports import KeyTaken
from tests.support.forked import FORKED, IGNORE_FORK_WARNING, run_in_child
from tests.support.repositories import JournalHome
from tests.support.run_values import a_start, a_success, served

if TYPE_CHECKING:
    from collections.abc import Callable


def in_processes(count: int, work: Callable[..., Any], *arguments: Any) -> list[Any]:
    """What `work(number, *arguments)` returns, or raises as text, in each of `count` processes at once."""
    outcomes = FORKED.Queue()
    processes = [FORKED.Process(target=_report, args=(work, number, outcomes, arguments)) for number in range(count)]
    for process in processes:
        process.start()
    found = [outcomes.get(timeout=250) for _ in processes]
    for process in processes:
        process.join()
    return found


def _report(work: Callable[..., Any], number: int, outcomes: Any, arguments: tuple[Any, ...]) -> None:
    try:
        outcomes.put(work(number, *arguments))
    except Exception as error:  # noqa: BLE001 it is the outcome
        outcomes.put(f"{type(error).__name__}: {error}")


def write_many(_number: int, url: str, pairs: int) -> int:
    async def one(home: JournalHome) -> None:
        start = a_start()
        await home.repo.create_started(start)
        assert await home.repo.mark_succeeded(a_success(start.id))

    async def many(home: JournalHome) -> None:
        for _ in range(pairs // 16):
            await asyncio.gather(*[one(home) for _ in range(16)])

    with JournalHome(url) as home:
        asyncio.run(many(home))
    return pairs


@pytest.mark.slow
def test_four_processes_write_to_one_database(database_url: str) -> None:
    assert in_processes(4, write_many, database_url, 480) == [480] * 4
    with JournalHome(database_url) as home:
        assert [run["status"] for run in home.runs()] == ["SUCCEEDED"] * 1_920
        assert len(home.attempts()) == 1_920


def claim_all(_number: int, url: str, keys: int) -> int:
    async def claim(home: JournalHome, key: int) -> bool:
        try:
            await home.repo.create_started(a_start(idempotency_key=f"k{key}", flight_key=f"f{keys - key}"))
        except KeyTaken:
            return False
        return True

    async def race(home: JournalHome) -> int:
        return sum(await asyncio.gather(*[claim(home, key) for key in range(keys)]))

    with JournalHome(url) as home:
        return asyncio.run(race(home))


@pytest.mark.slow
def test_every_key_is_claimed_exactly_once(database_url: str) -> None:
    won = in_processes(4, claim_all, database_url, 200)
    assert sum(won) == 200, won
    with JournalHome(database_url) as home:
        assert len({run["idempotency_key"] for run in home.runs()}) == len(home.runs()) == 200


# Writes for ever, and says on standard output which operation has been confirmed.
WRITER = """
import asyncio, os, sys
from tests.support.repositories import JournalHome
from tests.support.run_values import a_start, a_success

async def one(home):
    while True:
        start = a_start()
        await home.repo.create_started(start)
        os.write(1, f"started {start.id}\\n".encode())
        await home.repo.mark_succeeded(a_success(start.id))
        os.write(1, f"finished {start.id}\\n".encode())

async def main(home):
    await asyncio.gather(*[one(home) for _ in range(16)])

asyncio.run(main(JournalHome(sys.argv[1])))
"""
ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))  # noqa: PTH100, PTH120


def python(code: str, *arguments: str, **options: Any) -> subprocess.Popen[str]:
    environment = os.environ | {"PYTHONPATH": ROOT}
    command = [sys.executable, "-W", IGNORE_FORK_WARNING, "-c", code, *arguments]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True, **options)


@pytest.mark.slow
@pytest.mark.parametrize("moment_s", [0.05, 0.2, 0.31])
def test_what_was_confirmed_survives_a_kill(database_url: str, moment_s: float) -> None:
    with python(WRITER, database_url) as process:
        assert process.stdout is not None
        said = [process.stdout.readline()]
        time.sleep(moment_s)
        process.send_signal(signal.SIGKILL)
        said += process.stdout.readlines()
    words = [line.split() for line in said if line.endswith("\n")]
    started = {run_id for what, run_id in words if what == "started"}
    finished = {run_id for what, run_id in words if what == "finished"}
    with JournalHome(database_url) as home:
        runs = {str(run["id"]): run for run in home.runs()}
        attempts = [str(attempt["run_id"]) for attempt in home.attempts()]
    assert started <= set(runs)
    assert all(runs[run_id]["status"] == "SUCCEEDED" for run_id in finished)
    done = {run_id for run_id, run in runs.items() if run["status"] == "SUCCEEDED"}
    assert sorted(attempts) == sorted(done), "an outcome and its attempts are one write"
    assert len(runs) - len(finished) <= 32, "no more is in doubt than was under way"


SERVER = """
import asyncio, sys
from tests.support.repositories import JournalHome
from tests.support.run_values import a_start, served

home = JournalHome(sys.argv[1])

async def main():
    for _ in range(50):
        start = a_start()
        await home.repo.record_served(start, served(start.id))

asyncio.run(main())
{end}
"""


@pytest.mark.parametrize("end", ["", "sys.exit(3)", "raise RuntimeError('an error of the user')", "del home"])
def test_the_end_of_the_interpreter_flushes(sqlite_url: str, end: str) -> None:
    with python(SERVER.format(end=end), sqlite_url, stderr=subprocess.PIPE) as process:
        _, errors = process.communicate(timeout=200)
    assert "Exception ignored" not in errors
    assert "llmkit" not in errors
    with JournalHome(sqlite_url) as home:
        assert len(home.runs()) == 50


def test_an_idle_journal_does_not_keep_a_process_alive(sqlite_url: str) -> None:
    code = SERVER.format(
        end="import threading; print(sorted(t.name for t in threading.enumerate() if t.name != 'MainThread'))"
    )
    with python(code, sqlite_url) as process:
        output, _ = process.communicate(timeout=200)
    assert (process.returncode, output.strip()) == (0, "['llmkit-journal', 'llmkit-reaper']")


FORK = """
import asyncio, os, sys
from tests.support.repositories import JournalHome
from tests.support.run_values import a_start

home = JournalHome(sys.argv[1])
home.start(idempotency_key="parent")
assert asyncio.run(home.repo.get_by_idempotency_key("lab", "parent"))

child = os.fork()
who = "child" if child == 0 else "parent again"
home.start(idempotency_key=who)
assert asyncio.run(home.repo.get_by_idempotency_key("lab", "parent"))
assert {run["idempotency_key"] for run in home.runs()} >= {"parent", who}
home.journal.close()
if child:
    assert os.waitpid(child, 0)[1] == 0
"""


def test_a_forked_child_writes_for_itself(database_url: str) -> None:
    with python(FORK, database_url, stderr=subprocess.PIPE) as process:
        _, errors = process.communicate(timeout=200)
    assert (process.returncode, errors) == (0, "")
    with JournalHome(database_url) as home:
        assert {run["idempotency_key"] for run in home.runs()} == {"parent", "parent again", "child"}


def test_a_forked_child_that_uses_nothing_disturbs_nothing(sqlite_url: str) -> None:
    with JournalHome(sqlite_url) as home:
        start = a_start()
        asyncio.run(home.repo.record_served(start, served(start.id)))
        # The child inherits the journal, which is not its to close.
        assert run_in_child(home.journal.close) == 0
        home.start()
        assert len(home.runs()) == 2
