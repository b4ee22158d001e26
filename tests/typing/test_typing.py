"""The public API passes mypy and pyright, and both report mistakes in its use."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

HERE = Path(__file__).parent
ROOT = HERE.parents[1]


def _find_mypy_errors(file: Path) -> dict[int, str]:
    command = [sys.executable, "-m", "mypy", "--config-file", ROOT / "pyproject.toml", "--output", "json", file]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=250)
    reports = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    errors = [each for each in reports if each["severity"] == "error" and each["file"].endswith(file.name)]
    assert done.returncode in (0, 1), done.stderr
    return {each["line"]: each["message"] for each in errors}


def _find_pyright_errors(file: Path) -> dict[int, str]:
    # It would look for packages in a `.venv` of the folder, whatever Python runs the test.
    options = ["--outputjson", "--level", "error", "--pythonpath", sys.executable]
    command = [sys.executable, "-m", "basedpyright", *options, file]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=250)
    reports = json.loads(done.stdout)["generalDiagnostics"]
    return {each["range"]["start"]["line"] + 1: each["message"] for each in reports if each["severity"] == "error"}


CHECKERS = pytest.mark.parametrize("find_errors", [_find_mypy_errors, _find_pyright_errors])


@CHECKERS
def test_correct_use_has_no_error(find_errors: Callable[[Path], dict[int, str]]) -> None:
    assert find_errors(HERE / "api.py") == {}


@CHECKERS
def test_every_mistake_is_reported(find_errors: Callable[[Path], dict[int, str]]) -> None:
    file = HERE / "misuse.py"
    marked = {number for number, line in enumerate(file.read_text().splitlines(), 1) if line.endswith("# error")}
    assert find_errors(file).keys() == marked
