"""Executors of processes: each shares a run, and its report is that of one process. Threads: see `tests/notebook`."""

from __future__ import annotations

import multiprocessing
import pickle
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, ProcessPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from multiprocessing.reduction import ForkingPickler
from pathlib import Path

import pytest

from llmkit import Session
from llmkit.testing import Load, OllamaServer
from tests.support.shared_runs import ROUTE, count_chats, describe, make_task

SAMPLES = 16


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[OllamaServer]:
    # A process that is spawned would take `tests/typing` for the standard library's.
    monkeypatch.setattr(sys, "path", [path for path in sys.path if Path(path).name != "tests"])
    with OllamaServer(load=Load(latency_s=0.02)) as server:
        monkeypatch.setenv("LLM_OLLAMA_API_BASE", server.url)
        yield server


def open_spawned_processes() -> AbstractContextManager[Executor]:
    return ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("spawn"))


@contextmanager
def open_dask() -> Iterator[Executor]:
    from distributed import Client, LocalCluster

    with (
        # Dask's own messages are pickles, which `tests/support/no_pickle.py` refuses; this reader is from before.
        pytest.MonkeyPatch.context() as patch,
        LocalCluster(n_workers=2, threads_per_worker=1, processes=True, dashboard_address="127.0.0.1:0") as cluster,
        Client(cluster, set_as_default=False) as client,
    ):
        patch.setattr(pickle, "loads", ForkingPickler.loads)
        yield client.get_executor(pure=False)


@pytest.mark.slow
@pytest.mark.parametrize("open_executor", [open_spawned_processes, open_dask], ids=["spawn", "dask"])
def test_an_executor_shares_a_run(
    server: OllamaServer, open_executor: Callable[[], AbstractContextManager[Executor]]
) -> None:
    """Each sample is sent once and has one result, and the report is that of one process."""
    with open_executor() as executor, Session() as session:
        shared = session.evaluate(
            make_task(SAMPLES), ROUTE, name="shared", warm_up=False, workers=(executor, 2), progress=False
        )
        sent = count_chats(server)
        alone = session.evaluate(make_task(SAMPLES), ROUTE, name="alone", warm_up=False, progress=False)
    assert sent == SAMPLES == len({each.sample_id for each in shared.results})
    assert describe(shared) == describe(alone)
    assert shared.work is not None
    # Two that reach a sample at the same moment both count it; one of them finds its answer.
    assert (shared.work.called - shared.work.replayed, shared.work.lost) == (SAMPLES, 0)
    assert not shared.in_doubt
