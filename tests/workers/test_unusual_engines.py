"""Engines and values of `workers=` that are not as they should be: one line says what is wrong."""

from __future__ import annotations

import platform
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from threading import Timer
from types import SimpleNamespace
from typing import Any

import pytest

from llmkit import Session
from llmkit.errors import LLMConfigurationError, LLMEvaluationError
from llmkit.testing import OllamaServer
from llmkit.workers.choose import check_workers
from llmkit.workers.dask_jobs import DaskJobs
from llmkit.workers.engine import JobEnd
from llmkit.workers.executor_jobs import ExecutorJobs
from llmkit.workers.parcel import open_parcel
from llmkit.workers.watch import Watched
from tests.support.shared_runs import ROUTE, OneJob, make_task


@pytest.mark.parametrize("workers", [0, -1, 257, "dask-local:0", "dask-local:257"])
def test_a_number_of_workers_has_bounds(workers: Any) -> None:
    """Processes of this machine, whoever starts them."""
    with pytest.raises(LLMEvaluationError, match=r"from 1 to 256; got -?\d+\."):
        check_workers(workers)


@pytest.mark.parametrize("workers", [True, 2.5, "4", "dask://host", "tcp://host:1", [], (), (ThreadPoolExecutor, 2)])
def test_another_value_is_refused(workers: Any) -> None:
    with pytest.raises(LLMEvaluationError, match="workers is a number of processes"):
        check_workers(workers)


class Returns(Executor):
    """Runs nothing, and returns a value instead of a future."""

    def __init__(self, value: Any) -> None:
        self.value = value

    def submit(self, *_arguments: Any, **_options: Any) -> Any:
        return self.value


def test_an_executor_that_was_shut_down_is_named() -> None:
    executor = ThreadPoolExecutor(1)
    executor.shutdown()
    with pytest.raises(LLMConfigurationError, match="takes no jobs: RuntimeError: cannot schedule"):
        ExecutorJobs(executor, 1).start(bytes, b"")


def test_an_executor_without_futures_is_named() -> None:
    with pytest.raises(LLMConfigurationError, match="The submit of Returns returns a NoneType"):
        ExecutorJobs(Returns(None), 1).start(bytes, b"")


def test_a_result_of_another_type_is_a_lost_job() -> None:
    future: Future[Any] = Future()
    future.set_result("text")
    jobs = ExecutorJobs(Returns(future), 1)
    jobs.start(bytes, b"")
    (end,) = jobs.poll(0)
    assert end == JobEnd(None, "its engine returned a str instead of what the job returned")


def test_a_job_that_runs_is_waited_for_where_an_executor_would_cancel_it() -> None:
    """Futures of Dask and of others are pending until their job has returned."""
    future: Future[Any] = Future()
    jobs = ExecutorJobs(Returns(future), 1)
    jobs.start(bytes, b"")
    timer = Timer(0.05, future.set_result, [b"counts"])
    timer.start()
    assert jobs.close(wait_s=30, is_finished=True) == [JobEnd(b"counts")]
    timer.join()


def test_a_job_that_never_begins_is_cancelled() -> None:
    future: Future[Any] = Future()
    jobs = ExecutorJobs(Returns(future), 1)
    jobs.start(bytes, b"")
    assert jobs.close(wait_s=0.01, is_finished=True) == []
    assert future.cancelled()


@pytest.mark.parametrize("result", [b"\x00junk", b"[1]", b'{"other": 1}', b""])
def test_a_result_of_other_content_is_a_lost_job(result: bytes) -> None:
    watched = Watched()
    assert watched.note(JobEnd(result)) is None
    assert watched.losses == ["its engine returned something else than its job"]


def test_a_closed_dask_client_is_named() -> None:
    client = SimpleNamespace(asynchronous=False, status="closed")
    with pytest.raises(LLMConfigurationError, match="The Dask Client is closed: open a new one"):
        DaskJobs(client).start(bytes, b"")


def test_a_parcel_that_is_none_names_the_machine() -> None:
    with pytest.raises(LLMConfigurationError, match=f"the worker on {platform.node()} is not what was sent"):
        open_parcel(b"garbage")


def test_routes_of_an_iterator_reach_the_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    with OllamaServer() as server:
        monkeypatch.setenv("LLM_OLLAMA_API_BASE", server.url)
        with Session() as session:
            routes = (route for route in [ROUTE])
            report = session.evaluate(make_task(2), routes, workers=OneJob(), warm_up=False, progress=False)
    assert report.counts["SUCCEEDED"] == 2
