"""A runtime that starts at once, so that the life of the child process can be tested without the model."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

import llmkit.local_model.server as server_module
from llmkit.local_model.server import LocalModelServer

# Stands in for the package `xllamacpp` in the child: everything else there is the real program.
FAKE_RUNTIME = """
import ctypes, os, socket, sys, time
from types import SimpleNamespace

MODE = os.environ.get("FAKE_RUNTIME", "")
if MODE == "broken":
    raise ImportError("libgomp.so.1: cannot open shared object file")


class CommonParams:
    def __init__(self):
        self.model, self.cpuparams, self.cpuparams_batch = SimpleNamespace(), SimpleNamespace(), SimpleNamespace()


class Server:
    def __init__(self, params):
        if MODE == "refuse":
            print("printed on standard output", flush=True)
            print("error: cannot use key", params.api_keys[0], file=sys.stderr, flush=True)
            os._exit(3)
        if MODE == "hang":
            ctypes.PyDLL(None).sleep(60)  # holds the interpreter's lock, as the real one does while it loads
        time.sleep(float(os.environ.get("FAKE_LOADING_S", "0")))
        self.socket = socket.create_server(("127.0.0.1", 0))
        self.listening_address = f"http://127.0.0.1:{self.socket.getsockname()[1]}"
"""


@pytest.fixture(autouse=True)
def _no_child_left() -> Iterator[None]:
    yield
    server_module._registry().stop_all()


@pytest.fixture
def fake_runtime(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The children of this test load the stand-in and no weights; returns the folder for `PYTHONPATH`."""
    folder = tmp_path / "runtime"
    folder.mkdir()
    (folder / "xllamacpp.py").write_text(FAKE_RUNTIME)
    monkeypatch.setenv("PYTHONPATH", str(folder))
    monkeypatch.setattr(server_module, "require_installed", lambda model: None)
    monkeypatch.setattr(server_module, "ensure_weights", lambda model: tmp_path / "weights.gguf")
    return folder


def child_of(server: LocalModelServer) -> psutil.Process:
    """The running child of a server."""
    process = server_module._registry()._starts[server._spec]._process
    assert process is not None
    return psutil.Process(process.pid)


def is_gone(pid: int) -> bool:
    """Whether no process has this id; one that ended and was not waited for by its parent counts as gone."""
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def gone_within(pid: int, seconds: float) -> bool:
    """Wait for the process to go."""
    deadline = time.monotonic() + seconds
    while not is_gone(pid) and time.monotonic() < deadline:
        time.sleep(0.02)
    return is_gone(pid)


# Head of a user's script whose local model is the stand-in.
SCRIPT_HEAD = """
import asyncio, os, sys, time
from pathlib import Path
import llmkit.local_model.server as s
from llmkit.settings import load_settings
s.require_installed = lambda model: None
s.ensure_weights = lambda model: Path("weights.gguf")

def start():
    server = s.share_server(load_settings())
    endpoint = asyncio.run(server.ensure_running())
    return server, endpoint, s._registry()._starts[server._spec]._process.pid
"""


def user_script(text: str) -> subprocess.Popen[str]:
    """A user's process in development mode, in which leaked resources are printed."""
    return subprocess.Popen(
        [sys.executable, "-X", "dev", "-c", SCRIPT_HEAD + text],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONASYNCIODEBUG": "0"},
        start_new_session=True,
    )


def finish(script: subprocess.Popen[str]) -> tuple[str, str]:
    """Wait for the end of a user's process; one that hangs is ended with everything that it forked."""
    try:
        return script.communicate(timeout=200)
    except subprocess.TimeoutExpired:
        os.killpg(script.pid, signal.SIGKILL)
        return script.communicate()


async def until(condition: object, seconds: float = 60) -> None:
    """Wait until `condition()` is true."""
    deadline = time.monotonic() + seconds
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < deadline, "it did not happen in time"
        await asyncio.sleep(0.01)
