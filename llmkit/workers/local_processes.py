"""Worker processes on this machine.

Started as programs of their own, not by `multiprocessing`: that would execute the user's script once more in each of
them. A child ends with its parent, because its standard input does.
"""

from __future__ import annotations

import importlib
import io
import os
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import IO

from llmkit.errors import LLMConfigurationError
from llmkit.workers.engine import JobEnd, JobFunction

__all__ = ["LocalProcesses", "run_child"]

_LENGTH = struct.Struct(">Q")
# So often in a row a lost process is replaced although nothing got done in between.
MOST_LOST_IN_A_ROW = 3
TERMINATE_WAIT_S = 2.0
# What the parent can import, the child can too. Not by PYTHONPATH, whose folders come before the standard library.
_BOOT = """
import sys
sys.path[:] = dict.fromkeys([path for path in sys.path if path] + sys.argv[2:])
from llmkit.workers.local_processes import run_child
run_child(sys.argv[1])
"""


class LocalProcesses:
    """An `Engine` of processes on this machine.

    Args:
        count: Number of processes.
        environment: Their environment; keys travel this way, and no other.
    """

    def __init__(self, count: int, environment: Mapping[str, str]) -> None:
        self._count = count
        self._environment = dict(environment)
        self._children: list[_Child] = []
        self._function = ""
        self._parcel = b""
        self._lost_in_a_row = 0
        self._progress = -1

    def start(self, function: JobFunction, parcel: bytes) -> None:
        """See `Engine`."""
        self._function = f"{function.__module__}:{function.__qualname__}"
        self._parcel = parcel
        for _ in range(self._count):
            self.restart()

    def restart(self) -> None:
        """See `Engine`."""
        self._children.append(_Child(self._function, self._parcel, self._environment))

    def poll(self, progress: int) -> list[JobEnd]:
        """See `Engine`."""
        if progress != self._progress:
            self._progress, self._lost_in_a_row = progress, 0
        ends = self._take_ended()
        for end in ends:
            if end.result is None:
                self._lost_in_a_row += 1
                if self._lost_in_a_row <= MOST_LOST_IN_A_ROW:
                    self.restart()
        return ends

    def _take_ended(self) -> list[JobEnd]:
        ended = [child for child in self._children if child.has_ended]
        self._children = [child for child in self._children if child not in ended]
        return [child.read_end() for child in ended]

    @property
    def running(self) -> int:
        """See `Engine`."""
        return len(self._children)

    @property
    def pids(self) -> list[int]:
        """Process ids of the children."""
        return [child.pid for child in self._children]

    def close(self, *, wait_s: float, is_finished: bool) -> list[JobEnd]:
        """See `Engine`."""
        if is_finished:
            self._wait(wait_s)
        for child in self._children:
            child.ask_to_stop()
        self._wait(wait_s)
        for child in self._children:
            child.kill()
        return self._take_ended()

    def _wait(self, wait_s: float) -> None:
        until_s = time.monotonic() + wait_s
        while time.monotonic() < until_s and not all(child.has_ended for child in self._children):
            time.sleep(0.02)


class _Child:
    """One child process: the parcel goes in, the result comes out, each with its length before it."""

    def __init__(self, function: str, parcel: bytes, environment: dict[str, str]) -> None:
        paths = [path or str(Path.cwd()) for path in sys.path]
        command = [sys.executable, "-c", _BOOT, function, *paths]
        try:
            self._process = subprocess.Popen(  # noqa: S603 - our own interpreter
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                env=environment,
                # Ctrl-C reaches the whole group of the terminal: the parent decides when its children stop.
                start_new_session=True,
            )
        except OSError as error:
            raise LLMConfigurationError(f"A worker process cannot be started: {error}") from None
        self._result: bytes | None = None
        # A pipe takes 64 kB at a time, so both ends need a thread of their own.
        threading.Thread(target=self._write, args=(parcel,), name="llmkit-worker-input", daemon=True).start()
        self._reading = threading.Thread(target=self._read, name="llmkit-worker-output", daemon=True)
        self._reading.start()

    @property
    def pid(self) -> int:
        return self._process.pid

    def _write(self, parcel: bytes) -> None:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(_LENGTH.pack(len(parcel)) + parcel)
            self._process.stdin.flush()
        except (OSError, ValueError):  # it died, or was asked to stop before it had read all: `poll` finds out
            return

    def _read(self) -> None:
        assert self._process.stdout is not None
        with self._process.stdout as stdout:
            self._result = _read_message(stdout)

    @property
    def has_ended(self) -> bool:
        return self._process.poll() is not None and not self._reading.is_alive()

    def read_end(self) -> JobEnd:
        self.ask_to_stop()
        code = self._process.returncode
        return JobEnd(self._result, "" if self._result is not None else f"its process ended with code {code}")

    def ask_to_stop(self) -> None:
        assert self._process.stdin is not None
        try:
            self._process.stdin.close()
        except OSError:  # a rest of the parcel could not be flushed: it is dead
            return

    def kill(self) -> None:
        if self._process.poll() is None:
            self._process.terminate()
            try:
                self._process.wait(TERMINATE_WAIT_S)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        self._reading.join(TERMINATE_WAIT_S)


def _read_message(stream: IO[bytes] | io.RawIOBase) -> bytes | None:
    head = _read_exactly(stream, _LENGTH.size)
    return None if head is None else _read_exactly(stream, _LENGTH.unpack(head)[0])


def _read_exactly(stream: IO[bytes] | io.RawIOBase, length: int) -> bytes | None:
    parts = bytearray()
    while len(parts) < length:
        part = stream.read(length - len(parts))
        if not part:
            return None
        parts += part
    return bytes(parts)


def run_child(function: str) -> None:
    """Run one job in this child process.

    Args:
        function: `module:name` of a function of the parcel and an event, which is set when the parent asks to stop, or
            is gone.
    """
    # What the user's code prints must not get between the result and the parent.
    output = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    # Unbuffered: at the end of the process, a thread that waits in a buffered file ends it with an error.
    given = os.fdopen(os.dup(0), "rb", buffering=0)
    parcel = _read_message(given)
    if parcel is None:
        return
    stop = threading.Event()

    def watch_parent() -> None:
        while given.read(1024):
            pass
        stop.set()

    threading.Thread(target=watch_parent, name="llmkit-worker-parent", daemon=True).start()
    module, _, name = function.partition(":")
    result: bytes = getattr(importlib.import_module(module), name)(parcel, stop)
    # A parent that is gone needs no result: what was done is in the store.
    with suppress(BrokenPipeError), output:
        output.write(_LENGTH.pack(len(result)) + result)
