"""The life of the child: started once, shared, replaced, stopped, and never longer than its parent's."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest

import llmkit.local_model.server as server_module
from llmkit.errors import LLMConfigurationError, LLMUnavailable
from llmkit.local_model.process import ModelProcess, ServeOrder
from llmkit.local_model.server import LocalModelServer, share_server
from llmkit.ports import ModelServer
from llmkit.settings import load_settings
from tests.local_model.conftest import child_of, finish, gone_within, is_gone, until, user_script

pytestmark = pytest.mark.usefixtures("fake_runtime")


def new_server(**settings: object) -> LocalModelServer:
    return share_server(load_settings(**settings))


async def test_two_sessions_share_one_child_and_the_last_one_ends_it() -> None:
    one, two = new_server(), new_server()
    first, second = await asyncio.gather(one.ensure_running(), two.ensure_running())
    assert first == second == await one.ensure_running()
    child = child_of(one)
    await one.close()
    await one.close()
    assert child.is_running()
    assert await two.ensure_running() == first
    began = time.monotonic()
    await two.close()
    assert time.monotonic() - began < 25
    assert is_gone(child.pid)


async def test_it_implements_the_port() -> None:
    server: ModelServer = new_server()
    await server.close()


async def test_nothing_starts_before_the_first_use() -> None:
    new_server()
    assert server_module._registry()._starts == {}


async def test_a_closed_server_may_be_used_again() -> None:
    server = new_server()
    first = await server.ensure_running()
    await server.close()
    second = await server.ensure_running()
    assert second != first
    await server.close()


async def test_other_settings_get_a_child_of_their_own() -> None:
    small, large = new_server(local_context_tokens=512), new_server(local_context_tokens=1024)
    assert await small.ensure_running() != await large.ensure_running()
    await small.close()
    assert child_of(large).is_running()
    await large.close()


def test_many_threads_start_one_child() -> None:
    """Each thread has its own event loop."""
    found = []
    threads = [
        threading.Thread(target=lambda: found.append(asyncio.run(new_server().ensure_running()))) for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 8
    assert len(set(found)) == 1


async def test_a_crashed_child_is_replaced() -> None:
    server = new_server()
    first = await server.ensure_running()
    child = child_of(server)
    child.kill()
    assert gone_within(child.pid, 2)
    second = await server.ensure_running()
    assert second.api_base != first.api_base or second.api_key != first.api_key
    assert not psutil.pid_exists(child.pid), "the crashed child was not reaped"
    await server.close()


async def test_the_key_and_the_users_keys_cannot_be_seen_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLM_GEMINI_API_KEY", "AIza-secret")
    server = new_server()
    endpoint = await server.ensure_running()
    child = child_of(server)
    visible = " ".join([*child.cmdline(), *child.environ().values()])
    assert endpoint.api_key
    assert endpoint.api_key not in visible
    assert "AIza-secret" not in visible
    assert endpoint.api_key not in repr(endpoint)
    assert child.environ()["OMP_WAIT_POLICY"] == "passive"
    await server.close()


async def test_cancelled_caller_does_not_stop_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    """Other callers wait for the same start."""
    monkeypatch.setenv("FAKE_LOADING_S", "0.3")
    server = new_server()
    impatient, patient = (asyncio.create_task(server.ensure_running()) for _ in range(2))
    await asyncio.sleep(0.05)
    impatient.cancel()
    endpoint = await patient
    assert impatient.cancelled()
    assert endpoint == await server.ensure_running()
    await server.close()


async def test_close_while_it_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAKE_LOADING_S", "30")
    server = new_server()
    starting = asyncio.create_task(server.ensure_running())
    await until(lambda: server_module._registry()._starts and server_module._registry()._starts[server._spec]._process)
    child = child_of(server)
    await server.close()
    with pytest.raises(LLMUnavailable):
        await starting
    assert gone_within(child.pid, 20)


async def test_the_event_loop_goes_on_while_it_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAKE_LOADING_S", "0.3")
    server = new_server()
    starting = asyncio.create_task(server.ensure_running())
    beats = 0
    while not starting.done():
        await asyncio.sleep(0.005)
        beats += 1
    assert beats > 5
    await server.close()


async def test_failed_start_shows_the_log(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Without the key; the start can be repeated."""
    monkeypatch.setenv("FAKE_RUNTIME", "refuse")
    server, other = new_server(), new_server()
    failures = await asyncio.gather(server.ensure_running(), other.ensure_running(), return_exceptions=True)
    assert failures[0] is not failures[1], "each caller writes its own run into its error"
    message = str(failures[0])
    assert isinstance(failures[0], LLMUnavailable)
    assert "exit code 3" in message
    assert "printed on standard output" in message
    assert "error: cannot use key" in message
    keys = [word for word in message.split() if len(word) > 40]
    assert keys == []
    assert failures[0].provider == "local"
    monkeypatch.setenv("FAKE_RUNTIME", "")
    await server.ensure_running()
    await server.close()


async def test_a_runtime_that_cannot_be_imported_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAKE_RUNTIME", "broken")
    with pytest.raises(LLMConfigurationError, match=r"libgomp.*apt-get install libgomp1"):
        await new_server().ensure_running()


async def test_an_unknown_model_is_named_with_the_known_ones() -> None:
    with pytest.raises(LLMConfigurationError, match=r"'gemma-9'.*gemma-3-270m"):
        await new_server(local_model="gemma-9").ensure_running()


async def test_an_unforeseen_failure_reaches_the_caller(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(model: object) -> Path:
        raise ZeroDivisionError

    monkeypatch.setattr(server_module, "ensure_weights", broken)
    with pytest.raises(LLMUnavailable, match="ZeroDivisionError"):
        await new_server().ensure_running()


@pytest.mark.parametrize(("stops", "reason"), [(False, "within 0.5 s"), (True, "killed by signal 9")])
def test_a_child_that_does_not_come_up(monkeypatch: pytest.MonkeyPatch, stops: bool, reason: str) -> None:
    monkeypatch.setenv("FAKE_RUNTIME", "hang")
    process = ModelProcess.spawn(ServeOrder("m", "weights.gguf", 512, 1))
    if stops:
        os.kill(process.pid, signal.SIGKILL)
    with pytest.raises(LLMUnavailable, match=reason):
        process.wait_ready(timeout_s=0.5 if not stops else 5)
    assert is_gone(process.pid)


def test_a_child_that_ignores_the_polite_request_is_killed() -> None:
    process = ModelProcess.spawn(ServeOrder("m", "weights.gguf", 512, 1))
    process.wait_ready()
    os.kill(process.pid, signal.SIGSTOP)
    began = time.monotonic()
    process.stop()
    assert time.monotonic() - began < 25
    assert is_gone(process.pid)


def test_no_further_process_can_be_started(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/no/such/python")
    with pytest.raises(LLMUnavailable, match="cannot be started"):
        ModelProcess.spawn(ServeOrder("m", "weights.gguf", 512, 1))


def test_exit_without_close_leaves_neither_a_child_nor_a_word() -> None:
    script = user_script("print(start()[2])")
    out, err = finish(script)
    assert (script.returncode, err) == (0, "")
    assert is_gone(int(out))


FORKING = """
server, endpoint, pid = start()
print(pid, flush=True)
lock = s._registry()._lock
lock.acquire()  # as another thread may hold it when a process is forked
fork = os.fork()
if fork == 0:
    assert asyncio.run(server.ensure_running()) != endpoint
    asyncio.run(server.close())
    sys.exit()
lock.release()
assert os.waitpid(fork, 0)[1] == 0
assert asyncio.run(server.ensure_running()) == endpoint
"""


@pytest.mark.slow
def test_forked_process_starts_its_own_child() -> None:
    """It leaves its parent's child alone."""
    script = user_script("import warnings; warnings.simplefilter('ignore', DeprecationWarning)\n" + FORKING)
    out, err = finish(script)
    assert (script.returncode, err) == (0, "")
    assert is_gone(int(out))


HELD_OPEN = """
_, _, pid = start()
fork = os.fork()
if fork == 0:
    time.sleep(60)
    os._exit(0)
print(pid, fork, flush=True)
time.sleep(60)
"""


def test_kill_9_ends_the_child_even_when_a_fork_holds_its_pipe() -> None:
    script = user_script(HELD_OPEN)
    assert script.stdout is not None
    pid, fork = (int(word) for word in script.stdout.readline().split())
    script.kill()
    try:
        assert gone_within(pid, 30)
        assert not is_gone(fork)
    finally:
        os.kill(fork, signal.SIGKILL)
        script.communicate(timeout=60)


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the child ends when it has loaded")
def test_kill_9_ends_a_child_that_is_loading(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAKE_RUNTIME", "hang")
    script = user_script("start()")
    deadline = time.monotonic() + 20
    while not (children := psutil.Process(script.pid).children()) and time.monotonic() < deadline:
        time.sleep(0.02)
    time.sleep(0.5)
    assert not is_gone(children[0].pid)
    script.kill()
    script.communicate(timeout=60)
    assert gone_within(children[0].pid, 30)
