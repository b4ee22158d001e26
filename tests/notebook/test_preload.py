"""The preload of a session, in a quiet moment before the first call."""

from __future__ import annotations

import logging
import subprocess
import sys
import threading

import pytest

from llmkit import Session
from llmkit.notebook.preload import Preload
from tests.support.forked import IGNORE_FORK_WARNING


def started(work, quiet_s: float = 0.01) -> Preload:
    subject = Preload(work, quiet_s)
    subject.start()
    return subject


def test_work_runs_once_after_a_quiet_moment():
    done = threading.Semaphore(0)
    subject = started(done.release)
    assert done.acquire(timeout=30)
    subject._thread.join(30)
    assert not done.acquire(timeout=0.05)


def test_work_waits_while_a_call_is_in_progress():
    done = threading.Event()
    subject = Preload(done.set, 0.01)
    with subject.mark_busy(), subject.mark_busy():
        subject.start()
        assert not done.wait(0.1)
    assert done.wait(30)


def test_cancelled_work_never_starts():
    done = threading.Event()
    subject = started(done.set, quiet_s=600)
    subject.cancel()
    subject.cancel()
    subject._thread.join(30)
    assert not subject._thread.is_alive()
    assert not done.is_set()


def test_an_error_is_only_logged(caplog: pytest.LogCaptureFixture):
    def fail() -> None:
        raise ImportError("no such library")

    with caplog.at_level(logging.DEBUG, "llmkit"):
        started(fail)._thread.join(30)
    assert [record.getMessage() for record in caplog.records] == ["preload failed: ImportError"]


def _waiting() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "llmkit-preload"]


def test_a_session_preloads_in_a_daemon_thread_unless_switched_off():
    Session(warm_up=False).close()
    assert not _waiting()
    session = Session(warm_up=True)
    (thread,) = _waiting()
    assert thread.daemon
    session.close()
    thread.join(30)
    assert not _waiting()


SCRIPT = """
import os, sys, threading, time
import llmkit
assert threading.active_count() == 1, "importing starts nothing"
session = llmkit.Session(warm_up=True)
while "litellm" not in sys.modules:
    time.sleep(0.01)
if sys.argv[1] == "fork":
    child = os.fork()  # in the middle of the import
    if child == 0:
        import litellm
        os._exit(0 if litellm.acompletion else 1)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
else:
    print("loaded" if hasattr(sys.modules["litellm"], "acompletion") else "loading")
"""


@pytest.mark.slow
@pytest.mark.parametrize(("ending", "message"), [("exit", "loading"), ("fork", "0")])
def test_a_process_can_exit_or_fork_during_the_preload(ending: str, message: str):
    command = [sys.executable, "-W", "error::RuntimeWarning", "-W", IGNORE_FORK_WARNING, "-c", SCRIPT, ending]
    done = subprocess.run(command, capture_output=True, text=True, timeout=250, check=False)
    assert (done.returncode, done.stdout.strip(), done.stderr) == (0, message, "")
