"""A real Ollama for tests: the one that `make ollama` built, started on loopback, gone with the test process.

As a pytest plugin it brings the fixtures `real_ollama` (one running server per test process), `own_ollama` (one that
the test may kill and change) and `real_ollama_folder`. Without a build they skip, or fail when
`LLMKIT_REQUIRE_OLLAMA=1`.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Self

import httpx
import psutil
import pytest

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator
    from types import ModuleType

START_DEADLINE_S = 120
SETTLE_DEADLINE_S = 120
STOP_DEADLINE_S = 60

# The shell leads a process group of its own. It kills that group when the server ends, and when its standard input
# closes, which happens when the test process dies in whatever way; PR_SET_PDEATHSIG would miss the server's children.
_LEASH = '("$0" serve </dev/null; kill -KILL 0) & read -r _; kill -KILL 0'


def _load_script() -> ModuleType:
    """Import `scripts/build_ollama.py`, which knows where the build is and how a server is started."""
    path = Path(__file__).parents[2] / "scripts" / "build_ollama.py"
    spec = importlib.util.spec_from_file_location("build_ollama", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


build_ollama = _load_script()


class RealOllama:
    """A separate server: private port, home and model store (blobs shared by link), two requests at a time.

    Use as a context manager. `url` stays the same over `kill` and `restart`.
    """

    def __init__(self, folder: Path) -> None:
        """Args: folder: a finished build, as `require_build` returns it."""
        self.folder = folder
        self.model: str = build_ollama.MODEL
        self.port = 0
        self._home = Path()
        self._leash: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """The base address, without a slash at the end."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def log(self) -> str:
        """Output of the server so far."""
        return (self._home / "server.log").read_text(errors="replace")

    def __enter__(self) -> Self:
        self._home = Path(tempfile.mkdtemp(prefix="llmkit-ollama-"))
        self._link_models()
        for last_try in (False, False, True):  # another process may take the port before the server does
            self.port = build_ollama.free_port()
            try:
                self.restart()
            except RuntimeError:
                if last_try:
                    self._remove_home()
                    raise
            else:
                break
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()
        self._remove_home()

    def restart(self) -> None:
        """Kill the server if it runs, start it on the same port and wait until it answers.

        Raises:
            RuntimeError: it ended, or did not answer in time; with the end of its log.
        """
        self.kill()
        env = build_ollama.server_env(self.folder, port=self.port, home=self._home, models=self._home / "models")
        with (self._home / "server.log").open("ab") as log:
            self._leash = subprocess.Popen(
                ["sh", "-c", _LEASH, str(self.folder / "ollama")],
                env=env,
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self._wait_until_it_answers(self._leash)

    def kill(self) -> None:
        """Kill the server and everything it started, with SIGKILL; return when they are gone. Twice is fine."""
        if self._leash is None:
            return
        processes = self.processes()
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._leash.pid, signal.SIGKILL)
        self._leash.wait()
        if self._leash.stdin is not None:
            self._leash.stdin.close()
        self._leash = None
        _wait_until_gone(processes)

    def settle(self) -> None:
        """Wait until the model answers.

        Who cancels while a model loads leaves this server with one that answers 500 ("llm server loading model") until
        it is up or thrown out: the next test is not to pay for that.

        Raises:
            RuntimeError: it does not answer in time; with the end of its log.
        """
        body = {"model": self.model, "prompt": "a", "stream": False, "options": {"num_predict": 1}}
        deadline = time.monotonic() + SETTLE_DEADLINE_S
        with httpx.Client(base_url=self.url, trust_env=False, timeout=SETTLE_DEADLINE_S) as http:
            while (reply := http.post("/api/generate", json=body)).is_error:
                if time.monotonic() > deadline:
                    message = f"Ollama does not settle: {reply.text} {self.log[-2000:]}"
                    raise RuntimeError(message)
                time.sleep(0.1)

    @contextlib.contextmanager
    def model_that_reads(self, tokens: int) -> Iterator[str]:
        """A name for the same model with another default window, for the time of the block."""
        name = f"{self.model}-{tokens}"
        with httpx.Client(base_url=self.url, trust_env=False, timeout=SETTLE_DEADLINE_S) as http:
            body = {"model": name, "from": self.model, "parameters": {"num_ctx": tokens}, "stream": False}
            http.post("/api/create", json=body).raise_for_status()
            yield name
            http.request("DELETE", "/api/delete", json={"model": name}).raise_for_status()

    def processes(self) -> list[psutil.Process]:
        """Return the server and its runners, without the shell that watches over them."""
        if self._leash is None:
            return []
        with contextlib.suppress(psutil.NoSuchProcess):
            return [p for p in psutil.Process(self._leash.pid).children(recursive=True) if _name(p) == "ollama"]
        return []

    def command(self, *arguments: str) -> str:
        """Return the output of `ollama ...` on this server, on either stream."""
        env = build_ollama.server_env(self.folder, port=self.port, home=self._home, models=self._home / "models")
        command = [str(self.folder / "ollama"), *arguments]
        done = subprocess.run(command, env=env, capture_output=True, text=True, check=True, timeout=60)
        return done.stdout + done.stderr

    def _wait_until_it_answers(self, leash: subprocess.Popen[bytes]) -> None:
        deadline = time.monotonic() + START_DEADLINE_S
        while not build_ollama.answers(self.port):
            if leash.poll() is not None or time.monotonic() > deadline:
                self.kill()
                message = f"Ollama does not start on port {self.port}: {self.log[-2000:]}"
                raise RuntimeError(message)
            time.sleep(0.02)

    def _link_models(self) -> None:
        """Make a store of our own: manifests copied, blobs linked, so that changing a model affects no other test."""
        source, target = self.folder / "models", self._home / "models"
        shutil.copytree(source / "manifests", target / "manifests")
        (target / "blobs").mkdir()
        for blob in (source / "blobs").iterdir():
            (target / "blobs" / blob.name).symlink_to(blob)

    def _remove_home(self) -> None:
        shutil.rmtree(self._home, ignore_errors=True)


def _name(process: psutil.Process) -> str:
    try:
        return str(process.name())
    except psutil.NoSuchProcess:
        return ""


def _wait_until_gone(processes: list[psutil.Process]) -> None:
    """Wait until each process has ended; one that is not reaped yet has no port and counts as ended."""
    deadline = time.monotonic() + STOP_DEADLINE_S
    while any(map(_runs, processes)) and time.monotonic() < deadline:
        time.sleep(0.01)


def _runs(process: psutil.Process) -> bool:
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


class NoBuildError(pytest.skip.Exception):
    """Skips a test for want of a built Ollama."""


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Give all these skips one place, so that pytest's summary has one line for them and not one for each test."""
    report = yield
    if call.excinfo is not None and isinstance(call.excinfo.value, NoBuildError):
        place = os.path.relpath(__file__, item.config.rootpath)
        report.longrepr = (place, require_build.__code__.co_firstlineno, f"Skipped: {call.excinfo.value}")
    return report


def require_build() -> Path:
    """Return the folder of the finished build.

    Without one, skip the test that asks; fail it instead when `LLMKIT_REQUIRE_OLLAMA=1`, as in continuous integration.
    """
    try:
        folder: Path | None = build_ollama.find_built()
        reason = "no real Ollama: run `make ollama` to build one"
    except (build_ollama.ToolchainMissingError, build_ollama.BuildFailedError) as error:
        folder, reason = None, f"no real Ollama: {error}"
    if folder is not None:
        return folder
    if os.environ.get("LLMKIT_REQUIRE_OLLAMA") == "1":
        pytest.fail(reason, pytrace=False)
    raise NoBuildError(reason)


@pytest.fixture(scope="session")
def real_ollama_folder() -> Path:
    """The finished build; `RealOllama(folder)` starts a server of it."""
    return require_build()


@pytest.fixture(scope="session")
def real_ollama(real_ollama_folder: Path) -> Iterator[RealOllama]:
    """A running server, shared by the tests of this process: do not kill it, do not change its models."""
    with RealOllama(real_ollama_folder) as server:
        yield server


@pytest.fixture
def interrupted_ollama(real_ollama: RealOllama) -> Iterator[RealOllama]:
    """The shared server for tests that break off a call: its model is loaded before, and answers again after."""
    real_ollama.settle()
    yield real_ollama
    real_ollama.settle()


@pytest.fixture
def own_ollama(real_ollama_folder: Path) -> Iterator[RealOllama]:
    """A running server that the test may kill, restart and change."""
    with RealOllama(real_ollama_folder) as server:
        yield server
