"""One child process that serves a model, seen from the parent."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import secrets
import selectors
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Self

from llmkit.errors import LLMConfigurationError, LLMUnavailable
from llmkit.ports import Endpoint
from llmkit.redaction import redact
from llmkit.settings import child_environment
from llmkit.types import LLMProvider

__all__ = ["ModelProcess", "ServeOrder"]

CHILD_PROGRAM = Path(__file__).with_name("__main__.py")
START_TIMEOUT_S = 60.0
STOP_TIMEOUT_S = 0.7
STOP_POLL_S = 0.02
TAIL_LINES = 8
TAIL_BYTES = 4096


@dataclass(frozen=True, slots=True)
class ServeOrder:
    """Instructions for the child process. They travel on standard input: every user can read a command line.

    Attributes:
        context_tokens: Context window of each of the `parallel` slots.
    """

    model: str
    weights: str
    context_tokens: int
    parallel: int
    api_key: str = field(default_factory=lambda: secrets.token_urlsafe(32), repr=False)
    parent_pid: int = field(default_factory=os.getpid)


class ModelProcess:
    """A running child. `stop` may be called from any thread, also while another one is in `wait_ready`."""

    def __init__(self, order: ServeOrder, process: subprocess.Popen[bytes], log_fd: int) -> None:
        self._order = order
        self._process = process
        self._log_fd = log_fd

    @classmethod
    def spawn(cls, order: ServeOrder) -> Self:
        """Start the child and give it its order. Follow with `wait_ready` in the same thread, whatever happens.

        Raises:
            LLMUnavailable: The system cannot start another process.
        """
        try:
            return cls(order, *_launch(order))
        except OSError as error:
            raise _make_unavailable_error(order, f"cannot be started: {error.strerror or error}", "") from None

    @property
    def pid(self) -> int:
        """Process id of the child."""
        return self._process.pid

    @property
    def is_running(self) -> bool:
        """Whether the child is there now. Takes a microsecond, and reaps a child that has ended."""
        return self._process.poll() is None

    def wait_ready(self, timeout_s: float = START_TIMEOUT_S) -> Endpoint:
        """Wait until the model is loaded. The child is gone when this raises.

        Raises:
            LLMConfigurationError: A package of the runtime cannot be imported.
            LLMUnavailable: It ended or took longer than `timeout_s` seconds; the message has the end of its log.
        """
        try:
            report = self._read_report(timeout_s)
            if "port" not in report:
                raise _make_import_error(self._order, str(report.get("import_error")))
        except BaseException:
            self.stop()
            raise
        finally:
            self._close_output()
        return Endpoint(api_base=f"http://127.0.0.1:{report['port']}/v1", api_key=self._order.api_key)

    def stop(self) -> None:
        """End the child, within a second. Idempotent."""
        self._ask_to_stop()
        try:
            self._process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    async def astop(self) -> None:
        """Do the same as `stop` without blocking the event loop or a thread, which an exiting interpreter refuses."""
        self._ask_to_stop()
        deadline = time.monotonic() + STOP_TIMEOUT_S
        while self.is_running:
            if time.monotonic() > deadline:
                self._process.kill()
            await asyncio.sleep(STOP_POLL_S)

    def disown(self) -> None:
        """Forget the child in a process forked from its parent: close what was inherited, and let it run."""
        self._process.returncode = 0
        _close(self._process.stdin)
        self._close_output()

    def _ask_to_stop(self) -> None:
        _close(self._process.stdin)
        self._process.terminate()

    def _close_output(self) -> None:
        _close(self._process.stdout)
        if self._log_fd >= 0:
            os.close(self._log_fd)
            self._log_fd = -1

    def _read_report(self, timeout_s: float) -> dict[str, Any]:
        """Return the child's one line, which is short enough to arrive in one piece."""
        assert self._process.stdout is not None
        with selectors.DefaultSelector() as selector:
            selector.register(self._process.stdout, selectors.EVENT_READ)
            if not selector.select(timeout_s):
                raise self._make_start_error(f"did not come up within {timeout_s:g} s")
        line = self._process.stdout.read(TAIL_BYTES)
        if not line:
            raise self._make_start_error(f"did not start ({self._describe_exit()})")
        report: dict[str, Any] = json.loads(line)
        return report

    def _describe_exit(self) -> str:
        try:
            code = self._process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            return "it stopped answering"
        if code == -9:
            return "killed by signal 9, which often means that memory ran out"
        return f"killed by signal {-code}" if code < 0 else f"exit code {code}"

    def _make_start_error(self, what: str) -> LLMUnavailable:
        return _make_unavailable_error(self._order, what, self._read_log_tail())

    def _read_log_tail(self) -> str:
        """Return the last lines of the log, redacted."""
        size = os.fstat(self._log_fd).st_size
        text = os.pread(self._log_fd, TAIL_BYTES, max(0, size - TAIL_BYTES)).decode(errors="replace")
        lines = redact(text, [self._order.api_key]).strip().splitlines()
        return "\n".join(f"  {line}" for line in lines[-TAIL_LINES:])


def _launch(order: ServeOrder) -> tuple[subprocess.Popen[bytes], int]:
    """Return the process, and a descriptor of its log: a file without a name, gone with the last who has it open."""
    with tempfile.TemporaryFile(buffering=0) as log:
        process = subprocess.Popen(  # noqa: S603
            [sys.executable, "-P", str(CHILD_PROGRAM)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            bufsize=0,
            start_new_session=True,  # a Ctrl-C in the terminal is not for it
            # Threads that spin while they wait make it 5 to 25 times slower on a machine that does something else too.
            env=child_environment(OMP_WAIT_POLICY="passive"),
        )
        assert process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # it died at once; `wait_ready` reports why
            process.stdin.write(json.dumps(asdict(order)).encode() + b"\n")
        return process, os.dup(log.fileno())


def _close(stream: Any) -> None:
    if stream is not None:
        with contextlib.suppress(OSError):
            stream.close()


def _make_unavailable_error(order: ServeOrder, what: str, log_tail: str) -> LLMUnavailable:
    message = f"The local model {order.model} {what}. It needs 600 MB of free memory; try again, or use another route."
    if log_tail:
        message += f" The end of its log:\n{log_tail}"
    return LLMUnavailable(message, provider=LLMProvider.LOCAL, model=order.model)


def _make_import_error(order: ServeOrder, why: str) -> LLMConfigurationError:
    message = f"The runtime of the local model cannot be loaded: {why}. "
    if "libgomp" in why:
        message += "Install the system's OpenMP library, for example: apt-get install libgomp1"
    else:
        message += "Reinstall it: pip install --force-reinstall --no-cache-dir xllamacpp"
    return LLMConfigurationError(message, provider=LLMProvider.LOCAL, model=order.model)
