"""Parts of a comparison: the others' environments, and a stand-in server of the same kind for all."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

__all__ = ["PEERS", "NotInstalledError", "installed", "stand_in"]

PEERS = Path(__file__).parent / "peers"
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "llmkit" / "benchmarks"
INSTALL_LIMIT_S = 1200


class NotInstalledError(Exception):
    """A peer cannot be installed here; the message says why."""


def installed(packages: Sequence[str], *, from_npm: bool = False) -> Path:
    """Return a folder with exactly these packages, installed into the user's cache if needed.

    Args:
        packages: With their versions.
        from_npm: A folder for node, instead of a virtual environment made by uv.

    Raises:
        NotInstalledError: That fails.
    """
    folder = CACHE / "-".join(packages).replace("[", "-").replace("]", "")
    if (folder / "complete").exists():
        return folder
    print(f"Installing {', '.join(packages)} into {folder} ...", file=sys.stderr)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for command in _npm(folder, packages) if from_npm else _uv(packages):
        if shutil.which(command[0]) is None:
            raise NotInstalledError(f"{command[0]} is not there")
        try:
            done = subprocess.run(
                command, cwd=folder, capture_output=True, text=True, timeout=INSTALL_LIMIT_S, check=False
            )
        except subprocess.TimeoutExpired as error:
            raise NotInstalledError(f"not done after {INSTALL_LIMIT_S} s") from error
        if done.returncode:
            raise NotInstalledError(done.stderr.strip()[-300:])
    (folder / "complete").touch()
    return folder


def _npm(folder: Path, packages: Sequence[str]) -> list[list[str]]:
    (folder / "package.json").write_text('{"private": true}', encoding="utf-8")
    return [["npm", "install", "--no-audit", "--no-fund", *packages]]


def _uv(packages: Sequence[str]) -> list[list[str]]:
    uv = str(Path(sys.executable).with_name("uv"))
    return [
        [uv, "venv", "--quiet", "--allow-existing", "--python", sys.executable, "."],
        [uv, "pip", "install", "--quiet", "--compile-bytecode", "--python", "bin/python", *packages],
    ]


@contextmanager
def stand_in(latency_s: float) -> Iterator[str]:
    """Start the server in a process that ends with this one, and return its address."""
    command = [sys.executable, str(PEERS / "stand_in.py"), str(latency_s)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdin is not None
        try:
            yield process.stdout.readline().strip()
        finally:
            process.stdin.close()
            process.wait(30)
