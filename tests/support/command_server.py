"""`llmkit` commands that start in milliseconds: a process that has imported everything forks once for each of them.

A command of the shell takes seconds of imports. Here `llmkit` is a client that passes its arguments, folder,
environment and streams to a server, whose child is the command: a process of its own, which ends as an interpreter
does. This shows neither that the imports of a fresh process succeed nor what a signal does to one: tests that claim
either start a real process.
"""

from __future__ import annotations

import atexit
import gc
import json
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import traceback
from collections.abc import Iterator
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import NoReturn, Self

import pytest

__all__ = ["CommandServer", "command_server"]

# What commands import when they need it, and what that imports. A command that needs more imports it itself.
PRELOADED = (
    "jinja2",
    "jsonschema",
    "llmkit.bootstrap",
    "llmkit.cli.main",
    "llmkit.doctor",
    "llmkit.evals",
    "llmkit.evals.ci",
    "llmkit.evals.report",
    "llmkit.evals.run",
    "llmkit.persistence.migrate",
    "llmkit.pydanticai",
    "llmkit.session",
    "llmkit.transport.http",
    "llmkit.transport.paths",
    "pandas",
    "pyarrow.parquet",
    "rapidfuzz",
    "scipy.stats",
)
# The libraries then start no thread while they load: a fork beside threads could leave the child a lock for ever.
NO_THREADS = {"OPENBLAS_NUM_THREADS": "1", "JE_ARROW_MALLOC_CONF": "background_thread:false"}
CLIENT = """#!{python} -IS
import json, os, socket, sys
server = socket.socket(socket.AF_UNIX)
server.connect({address!r})
socket.send_fds(server, [b"."], [0, 1, 2])
server.sendall(json.dumps([sys.argv[1:], os.getcwd(), dict(os.environ)]).encode())
server.shutdown(socket.SHUT_WR)
# There is no answer when the server was killed.
sys.exit(int(server.makefile().read() or 70))
"""


class CommandServer:
    """A server process, and its client `llmkit` in `folder`. What still runs when the block ends is killed."""

    def __enter__(self) -> Self:
        # Not below pytest's folder: the address of a socket has room for about a hundred bytes.
        self.folder = Path(tempfile.mkdtemp(prefix="llmkit-bin-"))
        address, client = str(self.folder / "socket"), self.folder / "llmkit"
        client.write_text(CLIENT.format(python=sys.executable, address=address), encoding="utf-8")
        client.chmod(0o755)
        # Clients can connect from now on, and wait until the imports are done.
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(address)
            listener.listen()
            self._process = subprocess.Popen(
                [sys.executable, __file__, str(listener.fileno())],
                stdin=subprocess.PIPE,
                env={**os.environ, **NO_THREADS},
                pass_fds=[listener.fileno()],
                start_new_session=True,  # the server and its children are one group to kill
            )
        return self

    def __exit__(self, *_error: object) -> None:
        os.killpg(self._process.pid, signal.SIGKILL)
        self._process.communicate()
        shutil.rmtree(self.folder)


@pytest.fixture(scope="session")
def command_server() -> Iterator[CommandServer]:
    """A server for all tests of this process."""
    with CommandServer() as server:
        yield server


# --- the server's process ---------------------------------------------------------------------------------------------


def serve(listener: socket.socket) -> None:
    """Import everything, and fork a handler for each client. Returns in the process of a command only."""
    sys.path[0] = str(Path(sys.executable).parent)  # the folder of the real `llmkit`
    for name in PRELOADED:
        import_module(name)
    import_module("llmkit.transport.paths.library").load_internals()
    assert threading.active_count() == 1, threading.enumerate()
    # The collectors of the children leave the memory alone that they share.
    gc.collect()
    gc.freeze()
    while True:
        readable, _, _ = select.select([listener, sys.stdin], [], [])
        if sys.stdin in readable:  # the tests have ended, in whatever way
            os.killpg(0, signal.SIGKILL)
        client, _ = listener.accept()
        if os.fork() == 0:
            listener.close()
            return _handle(client)
        client.close()
        with suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass


def _handle(client: socket.socket) -> None:
    """Fork the command, wait for it, and report its exit code as a shell would."""
    _, streams, _, _ = socket.recv_fds(client, 1, 3)
    with client, client.makefile() as request:
        arguments, folder, environment = json.load(request)
        command = os.fork()
        if command != 0:
            for descriptor in streams:  # a reader of its output waits for the last one to close
                os.close(descriptor)
            code = os.waitstatus_to_exitcode(os.waitpid(command, 0)[1])
            client.sendall(str(code if code >= 0 else 128 - code).encode())
            os._exit(0)
    for number, descriptor in enumerate(streams):
        os.dup2(descriptor, number)
        os.close(descriptor)
    # As the interpreter makes them when it starts.
    encoding = environment.get("PYTHONIOENCODING")
    sys.stdin = open(0, closefd=False, encoding=encoding)  # noqa: SIM115
    sys.stdout = open(1, "w", closefd=False, encoding=encoding)  # noqa: SIM115
    sys.stderr = open(2, "w", closefd=False, encoding=encoding, errors="backslashreplace", buffering=1)  # noqa: SIM115
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    sys.argv = ["llmkit", *arguments]


def _run() -> NoReturn:
    """Run the command and exit as the interpreter would, without freeing the memory that is shared with the server."""
    from llmkit.__main__ import main

    try:
        main()
    except SystemExit as ended:
        code = ended.code
    except BaseException:  # noqa: BLE001 - the interpreter prints it
        traceback.print_exc()
        code = 1
    threading._shutdown()
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code if isinstance(code, int) else code is not None)


if __name__ == "__main__":
    serve(socket.socket(fileno=int(sys.argv[1])))
    _run()
