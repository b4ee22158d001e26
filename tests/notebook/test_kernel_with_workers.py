"""A notebook with Dask workers in a real kernel: progress, interrupt, a kernel that dies, and the same name goes on."""

from __future__ import annotations

import pickle
import sys
from multiprocessing.reduction import ForkingPickler
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient
from nbclient.exceptions import DeadKernelError

from llmkit.testing import Load, OllamaServer

SAMPLES, WORKERS, CONCURRENCY = 96, 2, 2

OPEN = """
import os, signal, time
from distributed import Client
from llmkit import Session
from llmkit.evals import Sample, Task, exact_match

task = Task("texts", [Sample(f"Text {{n}}.", "x") for n in range({samples})], "Repeat: {{input}}", str, [exact_match()])
client = Client({address!r}, set_as_default=False)
session = Session()
seen = []

def evaluate(*, signal_from=None, number=None):
    sent = []
    def note(now):
        seen.append(now.done)
        if signal_from is not None and now.done >= signal_from and not sent:
            sent.append(number)
            os.kill(os.getpid(), number)
    return session.evaluate(
        task, "ollama/llama3.2", name="shared", workers=client, concurrency={concurrency}, warm_up=False, progress=note
    )
"""
INTERRUPTED = """
try:
    evaluate(signal_from=6, number=signal.SIGINT)
except KeyboardInterrupt:
    counts = [-2, -1]
    while counts[-2] != counts[-1]:
        time.sleep(3)
        counts.append(session.report("shared").counts["SUCCEEDED"])
    print("interrupted", seen[-1] >= 6, counts[-1] < {samples})
"""
DIES = "evaluate(signal_from=60, number=signal.SIGKILL)"
GOES_ON = """
report = evaluate()
print(seen[0] >= 60, seen[-1], report.counts["SUCCEEDED"], len(report.in_doubt))
"""


def execute(*cells: str) -> list[str]:
    """Execute cells in a new kernel, and return what each printed; those of a kernel that died, too."""
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
    try:
        NotebookClient(notebook, timeout=200, kernel_name="python3").execute()
    except DeadKernelError:
        assert cells[-1] == DIES
    return ["".join(output.get("text", "") for output in cell.outputs).strip() for cell in notebook.cells]


@pytest.mark.slow
def test_a_new_kernel_goes_on_where_others_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    """No answer is paid for twice, except for the calls that the interrupt has cancelled."""
    from distributed import LocalCluster

    # A process that is spawned would take `tests/typing` for the standard library's.
    monkeypatch.setattr(sys, "path", [path for path in sys.path if Path(path).name != "tests"])
    monkeypatch.setenv("LLM_DATABASE_URL", f"sqlite:///{Path('llmkit.db').absolute()}")
    with OllamaServer(load=Load(latency_s=0.3)) as server:
        monkeypatch.setenv("LLM_OLLAMA_API_BASE", server.url)
        with LocalCluster(
            n_workers=WORKERS, threads_per_worker=1, processes=True, dashboard_address="127.0.0.1:0"
        ) as cluster:
            # Dask's own messages are pickles, which `tests/support/no_pickle.py` refuses; this reader is from before.
            monkeypatch.setattr(pickle, "loads", ForkingPickler.loads)
            start = OPEN.format(samples=SAMPLES, address=cluster.scheduler_address, concurrency=CONCURRENCY)
            _, interrupted, _ = execute(start, INTERRUPTED.format(samples=SAMPLES), DIES)
            _, gone_on = execute(start, GOES_ON)
        sent = server.call_count
    assert interrupted == "interrupted True True"
    assert gone_on == f"True {SAMPLES} {SAMPLES} 0"
    assert SAMPLES <= sent <= SAMPLES + WORKERS * CONCURRENCY
