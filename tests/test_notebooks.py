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


def _read_outputs(notebook: nbformat.NotebookNode) -> list[list[Any]]:
    """Return the outputs of the code cells, without times and without the content of pictures.

    A panel of latest answers, shown by cells that take long, is empty at the end of its cell.
    """
    outputs = [
        [
            output.get("data") or output.get("text") or dict(output)
            for output in cell.outputs
            if "data" not in output or any(output.data.values())
        ]
        for cell in notebook.cells
        if cell.cell_type == "code"
    ]
    return [[_remove_times(value) for value in cell] for cell in outputs]


def _remove_times(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: "a picture" if name == "image/png" else _remove_times(part) for name, part in value.items()}
    return re.sub(r"[\d,]+ ms", "some ms", value) if isinstance(value, str) else value


@pytest.mark.slow
@pytest.mark.usefixtures("_fonts")
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_outputs(path: Path) -> None:
    """A run from the recordings, without a socket, shows the stored outputs."""
    stored = nbformat.read(path, as_version=4)
    fresh = nbformat.read(path, as_version=4)
    fresh.cells.insert(0, nbformat.v4.new_code_cell(NO_SOCKETS))
    NotebookClient(
        fresh, timeout=HANG_BOUND_S, kernel_name="python3", resources={"metadata": {"path": str(FOLDER)}}
    ).execute()
    outputs = _read_outputs(fresh)[1:]
    assert outputs == _read_outputs(stored), "run `python scripts/notebooks.py` and look at what has changed"


def test_each_notebook_names_its_models() -> None:
    assert NOTEBOOKS
    for path in NOTEBOOKS:
        text = path.read_text(encoding="utf-8")
        assert "recorded from a real model" in text, path.name
        assert ("**stand-in**" in text) == (path.stem in WITH_STAND_IN), path.name


def test_gemini_recordings_are_called_a_stand_in() -> None:
    with_gemini = {
        path.stem for path in (FOLDER / "cassettes").glob("*.jsonl") if '"gemini/' in path.read_text("utf-8")
    }
    assert with_gemini == WITH_STAND_IN


@pytest.fixture(scope="module")
def _fonts() -> None:
    """Load the fonts first: matplotlib warns while it looks for them, which is no output of a cell."""
    importlib.import_module("matplotlib.font_manager")


def test_every_cassette_has_its_notebook() -> None:
    cassettes = {path.stem for path in (FOLDER / "cassettes").glob("*.jsonl")}
    assert cassettes == {path.stem for path in NOTEBOOKS}
