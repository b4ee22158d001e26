"""Evaluations that workers share: real jobs in threads and processes, over real HTTP, on a real store."""

from __future__ import annotations

import asyncio
import json
import os
import pickle
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from typing import Any

import psutil
import pytest
from pydantic import BaseModel

from llmkit import LLMEvaluationError, Session
from llmkit.evals import Budget
from llmkit.notebook.joining import join_work
from llmkit.testing import Load, OllamaServer, Reply
from llmkit.workers.contribution import Contribution
from tests.support.shared_runs import ROUTE, OneJob, Parcel, count_chats, describe, make_task

KEY = "canary-key-of-gemini-0123456789"
PASSWORD = "canary-password-of-postgres"


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[OllamaServer]:
    with OllamaServer(load=Load(latency_s=0.01)) as server:
        monkeypatch.setenv("LLM_OLLAMA_API_BASE", server.url)
        yield server


def wait_for_chats(server: OllamaServer, count: int) -> None:
    while count_chats(server) < count:
        time.sleep(0.02)


def test_workers_make_the_report_of_one_process(server: OllamaServer) -> None:
    """Scores, samples and tokens are the same, and no sample is sent twice."""
    task = make_task()
    with Session() as session, ThreadPoolExecutor(3) as pool:
        alone = session.evaluate(task, ROUTE, name="alone", warm_up=False, progress=False)
        seen: list[int] = []
        shared = session.evaluate(
            task, ROUTE, name="shared", warm_up=False, workers=pool, progress=lambda now: seen.append(now.done)
        )
        again = session.evaluate(task, ROUTE, name="shared", warm_up=False, workers=pool, progress=False)
    assert describe(shared) == describe(alone) == describe(again)
    assert count_chats(server) == 48
    assert seen[-1] == 24
    assert shared.work is not None
    assert shared.work.sent == 24
    assert shared.work.workers
    assert again.work is not None
    assert (again.work.reused, again.work.sent, again.work.workers) == (24, 0, 0)


def test_no_key_travels(server: OllamaServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither a key nor the address of the database is in a parcel."""
    monkeypatch.setenv("LLM_GEMINI_API_KEY", KEY)
    executor = OneJob()
    with Session(database_url="sqlite:///canary-address.db") as session:
        monkeypatch.setenv("LLM_DATABASE_URL", session.settings.database_url)
        session.evaluate(make_task(2), ROUTE, workers=executor, progress=False)
    assert not [text for text in (KEY, "canary-address", server.url) if text.encode() in executor.parcels[0]]


def test_a_task_that_contains_a_key_is_refused(server: OllamaServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLM_GEMINI_API_KEY", KEY)
    task = make_task(2, prompt=f"{KEY}: {{input}}")
    with Session() as session, pytest.raises(LLMEvaluationError, match="key or password"):
        session.evaluate(task, ROUTE, workers=OneJob(), progress=False)
    assert not count_chats(server)


def change_versions(parcel: bytes) -> bytes:
    line, _, content = parcel.partition(b"\n")
    header = json.loads(line)
    return json.dumps(header | {"versions": header["versions"] | {"pydantic": "1.0"}}).encode() + b"\n" + content


def change_database(parcel: bytes) -> bytes:
    os.environ["LLM_DATABASE_URL"] = "sqlite:///another.db"
    return parcel


def change_dataset(parcel: bytes) -> bytes:
    with Path("parcels.jsonl").open("a") as file:
        file.write('{"input": "one more"}\n')
    return parcel


def change_file(parcel: bytes) -> bytes:
    with Path("task.py").open("a") as file:
        file.write("# edited\n")
    return parcel


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (change_versions, "pydantic"),
        (change_database, "another database"),
        (change_dataset, "dataset"),
        (change_file, "another content"),
    ],
    ids=["versions", "database", "dataset", "file"],
)
def test_a_worker_that_differs_is_refused(
    server: OllamaServer, monkeypatch: pytest.MonkeyPatch, change: Any, message: str
) -> None:
    """In one message, before anything is sent."""
    from llmkit.evals import load_tasks

    monkeypatch.setenv("LLM_DATABASE_URL", "sqlite:///llmkit.db")
    Path("parcels.jsonl").write_text('{"input": "a", "target": {"name": "x"}}\n')
    Path("task.py").write_text(
        "from llmkit.evals import Task\n"
        'task = Task(name="parcels", dataset="parcels.jsonl", prompt="{input}", output_type=str)\n'
    )
    (task,) = load_tasks("task.py")
    with Session() as session, pytest.raises(LLMEvaluationError, match=f"No worker could join.*{message}"):
        session.evaluate(task, ROUTE, workers=OneJob(change), progress=False)
    assert not count_chats(server)


def test_an_sqlite_file_of_another_machine_is_refused(server: OllamaServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """The message names the file and its file system."""
    monkeypatch.setattr("llmkit.notebook.shared_call.find_machine", lambda: "another-machine")
    with Session() as session, pytest.raises(LLMEvaluationError, match=r"SQLite file .*llmkit\.db \(file system \w+\)"):
        session.evaluate(make_task(2), ROUTE, workers=OneJob(), progress=False)
    assert not count_chats(server)


def test_a_job_that_comes_after_the_call_sends_nothing(server: OllamaServer) -> None:
    executor = OneJob()
    with Session() as session:
        session.evaluate(make_task(3), ROUTE, workers=executor, progress=False)
    sent = count_chats(server)
    assert Contribution.read(join_work(executor.parcels[0])).error == ["stopped", "The worker was stopped"]
    assert count_chats(server) == sent


@pytest.mark.slow
async def test_a_stopped_call_stops_its_workers(server: OllamaServer) -> None:
    """They see the mark in the store, since their engine cannot cancel; the same call does the rest."""
    task = make_task(400)
    with Session(concurrency_limit=2) as session, ThreadPoolExecutor(2) as pool:
        call = asyncio.create_task(session.aevaluate(task, ROUTE, warm_up=False, workers=pool, progress=False))
        await asyncio.to_thread(wait_for_chats, server, 5)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        # Returns when the jobs have ended by themselves.
        await asyncio.to_thread(pool.shutdown)
        assert count_chats(server) < 400
        assert session.partial is not None
        report = session.evaluate(task, ROUTE, warm_up=False, progress=False)
    assert [each.status for each in report.results] == ["SUCCEEDED"] * 400
    assert not report.in_doubt


class StopsTheFirst(Executor):
    """Runs two jobs one after the other; the first is asked to stop when it has sent some requests."""

    def __init__(self, server: OllamaServer) -> None:
        self.server = server
        self.ends: list[Contribution] = []

    def submit(self, function: Any, /, *arguments: Any, **_options: Any) -> Future[Any]:
        stop = threading.Event()
        waiter = threading.Thread(target=lambda: (wait_for_chats(self.server, 5), stop.set()))
        if not self.ends:
            waiter.start()
        end = function(arguments[0], stop)
        if not self.ends:
            waiter.join()
        self.ends.append(Contribution.read(end))
        future: Future[Any] = Future()
        future.set_result(end)
        return future


@pytest.mark.slow
def test_a_worker_that_is_asked_to_stop_counts(server: OllamaServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """The report adds up what each worker did, whether or not it saw the end."""
    monkeypatch.setattr("llmkit.notebook.joining.PARENT_LOOK_S", 0.005)
    executor = StopsTheFirst(server)
    with Session() as session:
        report = session.evaluate(
            make_task(60), ROUTE, warm_up=False, workers=(executor, 2), concurrency=1, progress=False
        )
    assert executor.ends[0].error == ["stopped", "The worker was stopped"]
    assert report.work is not None
    # The call that the stop cuts may be stored already, and then the second worker finds it.
    assert (report.work.workers, report.work.called + report.work.shared) == (2, 60)
    assert report.work.shared <= 1


class RunsEqualJobsOnce(OneJob):
    """Returns the first result for a job that is equal to an earlier one, as Dask's executor does by default."""

    def __init__(self) -> None:
        super().__init__()
        self.results: dict[Any, Future[Any]] = {}

    def submit(self, function: Any, /, *arguments: Any, **options: Any) -> Future[Any]:
        if arguments not in self.results:
            self.results[arguments] = super().submit(function, *arguments, **options)
        return self.results[arguments]


def test_an_executor_that_runs_equal_jobs_once_runs_each_job(server: OllamaServer) -> None:
    """Otherwise one worker would do all the work, and its counts would be added twice."""
    executor = RunsEqualJobsOnce()
    with Session() as session:
        report = session.evaluate(make_task(3), ROUTE, warm_up=False, workers=(executor, 2), progress=False)
    assert len(executor.parcels) == 2
    assert report.work is not None
    assert report.work.called == 3


def test_map_asks_each_row_once(server: OllamaServer) -> None:
    """The frame is that of one process."""
    texts = [f"Parcel {number % 30} came." for number in range(40)]
    with Session(cache_enabled=False) as session, ThreadPoolExecutor(3) as pool:
        alone = session.map(Parcel, texts, name="alone", progress=False)
        shared = session.map(Parcel, texts, name="shared", workers=pool, progress=False)
    assert count_chats(server) == 60
    answer = ["name", "status", "input_tokens", "output_tokens"]
    assert shared[answer].equals(alone[answer])


@pytest.mark.slow
def test_dask_workers(server: OllamaServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """One job runs on each worker, and neither a key nor the address of the store passes the scheduler."""
    from distributed import Client, LocalCluster
    from distributed.comm import tcp

    # Dask's own messages are pickles, which `tests/support/no_pickle.py` refuses; this reader is from before.
    monkeypatch.setattr(pickle, "loads", ForkingPickler.loads)
    monkeypatch.setenv("LLM_GEMINI_API_KEY", KEY)
    monkeypatch.setenv("LLM_DATABASE_URL", "sqlite:///canary-address.db")
    sent: list[bytes] = []
    make_frames = tcp.to_frames

    async def record(*arguments: Any, **options: Any) -> Any:
        frames = await make_frames(*arguments, **options)
        sent.extend(map(bytes, frames))
        return frames

    monkeypatch.setattr(tcp, "to_frames", record)
    network_options = {"protocol": "tcp", "dashboard_address": "127.0.0.1:0"}
    with (
        LocalCluster(
            n_workers=2, host="127.0.0.1", threads_per_worker=1, processes=False, **network_options
        ) as cluster,
        Client(cluster, set_as_default=False) as client,
        Session() as session,
    ):
        report = session.evaluate(make_task(40), ROUTE, warm_up=False, workers=client, progress=False)
    assert [each.status for each in report.results] == ["SUCCEEDED"] * 40
    assert count_chats(server) == 40
    assert [frame for frame in sent if b"Which parcel?" in frame]
    assert not [text for text in (KEY, "canary-address") if any(text.encode() in frame for frame in sent)]


def test_workers_share_a_budget(server: OllamaServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """All of them stop, the driver says why, and a larger budget goes on."""
    # A worker without room waits this long for the others at most.
    monkeypatch.setattr("llmkit.evals.run.shared_budget.RENEW_S", 0.1)
    server.script(Reply('{"name": "x"}', input_tokens=200, output_tokens=40))
    task = make_task(20, parameters={"max_output_tokens": 60})
    with ThreadPoolExecutor(2) as executor, Session() as session:
        for limit in (2_000, 3_000):
            budget = Budget(max_tokens=limit)
            report = session.evaluate(
                task, ROUTE, name="run", warm_up=False, workers=(executor, 2), budget=budget, progress=False
            )
            assert report.budget is not None
            assert report.budget.stopped_by == "tokens"
            assert f"of {limit:,} tokens" in str(report.budget.why)
            # The next request might have used about 400.
            assert limit - 700 < server.usage.total_tokens <= limit
            assert report.budget.tokens == server.usage.total_tokens
            assert report.counts["NOT_RUN"] > 0


@pytest.mark.slow
def test_local_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    """They get settings and keys through their environment, and one that is killed is replaced."""
    namespace: dict[str, Any] = {"BaseModel": BaseModel}
    # As in a notebook: no process can import it.
    exec("class Answer(BaseModel):\n    name: str\n", namespace)
    killed: list[int] = []
    others = set(psutil.Process().children())  # of other tests in this process

    def kill_one(now: Any) -> None:
        children = [each for each in psutil.Process().children() if each not in others]
        if 0 < now.done < now.total and not killed and children:
            killed.append(children[0].pid)
            os.kill(children[0].pid, signal.SIGKILL)

    with OllamaServer(load=Load(latency_s=0.1)) as server, Session(ollama_api_base=server.url) as session:
        task = make_task(60, output_type=namespace["Answer"])
        report = session.evaluate(task, ROUTE, workers=2, concurrency=2, warm_up=False, progress=kill_one)
    assert len(killed) == 1
    assert [each.status for each in report.results] == ["SUCCEEDED"] * 60
    assert report.work is not None
    assert report.work.lost == 1
    # What was under way in the process that died may have been sent, and is sent again.
    assert 60 <= count_chats(server) <= 62
    assert count_chats(server) - 60 <= len(report.in_doubt) <= 2
