"""The notebooks run from their recordings without a socket, and show what is stored in them."""

from __future__ import annotations

import importlib
import re
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient

FOLDER = Path(__file__).parents[1] / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
WITH_STAND_IN = {"3_ollama_against_gemini", "4_agents_and_tools", "5_the_store_and_its_cost"}
HANG_BOUND_S = 100

# The kernel's own channels do not go through Python's sockets.
NO_SOCKETS = """
import socket
def _refuse(self, address):
    raise AssertionError(f"a notebook opened a connection to {address}")
socket.socket.connect = socket.socket.connect_ex = _refuse
"""


def _shown(notebook: nbformat.NotebookNode) -> list[list[Any]]:
    """What the code cells show, without times, and of pictures that there are some: what is in them has other tests."""
    outputs = [
        [output.get("data") or output.get("text") or dict(output) for output in cell.outputs]
        for cell in notebook.cells
        if cell.cell_type == "code"
    ]
    return [[_timeless(value) for value in cell] for cell in outputs]


def _timeless(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: "a picture" if name == "image/png" else _timeless(part) for name, part in value.items()}
    return re.sub(r"[\d,]+ ms", "some ms", value) if isinstance(value, str) else value


@pytest.mark.slow
@pytest.mark.usefixtures("_fonts")
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_shows_what_is_stored_in_it_and_asks_nobody(path: Path) -> None:
    stored = nbformat.read(path, as_version=4)
    fresh = nbformat.read(path, as_version=4)
    fresh.cells.insert(0, nbformat.v4.new_code_cell(NO_SOCKETS))
    NotebookClient(
        fresh, timeout=HANG_BOUND_S, kernel_name="python3", resources={"metadata": {"path": str(FOLDER)}}
    ).execute()
    shown = _shown(fresh)[1:]
    assert shown == _shown(stored), "run `python scripts/notebooks.py` and look at what has changed"


def test_there_are_notebooks_and_each_says_who_answered() -> None:
    assert NOTEBOOKS
    for path in NOTEBOOKS:
        text = path.read_text(encoding="utf-8")
        assert "recorded from a real model" in text, path.name
        assert ("**stand-in**" in text) == (path.stem in WITH_STAND_IN), path.name


def test_the_recordings_of_gemini_are_in_notebooks_that_call_it_a_stand_in() -> None:
    told = {path.stem for path in (FOLDER / "cassettes").glob("*.jsonl") if '"gemini/' in path.read_text("utf-8")}
    assert told == WITH_STAND_IN


@pytest.fixture(scope="module")
def _fonts() -> None:
    """The first import of matplotlib on a machine may warn that it looks for fonts, which is no output of a cell."""
    importlib.import_module("matplotlib.font_manager")


def test_every_recording_is_asked_for() -> None:
    """By name: a cassette without its notebook is dead weight."""
    cassettes = {path.stem for path in (FOLDER / "cassettes").glob("*.jsonl")}
    assert cassettes == {path.stem for path in NOTEBOOKS}
