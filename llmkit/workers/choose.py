"""Choice of the engine for `workers=`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from concurrent.futures import Executor
from typing import Any

from llmkit.errors import LLMEvaluationError
from llmkit.workers.engine import Engine
from llmkit.workers.executor_jobs import ExecutorJobs, count_workers
from llmkit.workers.local_processes import LocalProcesses

__all__ = ["check_workers", "open_engine"]

MOST_PROCESSES = 256
ADDRESS = re.compile(r"dask://(?P<address>[^\s/]+:\d+)/?")
LOCAL_DASK = re.compile(r"dask-local:(?P<count>\d{1,3})")
FORMS = (
    "workers is a number of processes, a concurrent.futures.Executor, (executor, number of jobs), a Dask Client, "
    "'dask://host:8786' or 'dask-local:4'"
)


def check_workers(workers: Any) -> None:
    """Refuse what no engine can be made of, before anything is opened.

    Raises:
        LLMEvaluationError: It is none of the forms.
    """
    if isinstance(workers, bool):
        raise LLMEvaluationError(f"{FORMS}; got {workers}.")
    if isinstance(workers, int):
        _check_count(workers)
    elif isinstance(workers, tuple):
        if len(workers) != 2 or not isinstance(workers[0], Executor) or not _is_count(workers[1]):
            raise LLMEvaluationError(f"{FORMS}; got a tuple of something else.")
    elif isinstance(workers, str):
        local = LOCAL_DASK.fullmatch(workers)
        if local:
            _check_count(int(local["count"]))
        elif not ADDRESS.fullmatch(workers):
            raise LLMEvaluationError(f"{FORMS}; got {workers!r:.60}.")
    elif isinstance(workers, Executor):
        count_workers(workers)
    elif not _is_dask_client(workers):
        raise LLMEvaluationError(f"{FORMS}; got {type(workers).__name__}.")


def open_engine(workers: Any, environment: Mapping[str, str]) -> Engine:
    """Return the engine for a value that `check_workers` accepts. May wait for a cluster: call it in a thread.

    Args:
        workers: See `check_workers`.
        environment: The environment for processes that are started here. Workers of other engines have their own.

    Raises:
        LLMConfigurationError: The engine cannot be reached.
    """
    if isinstance(workers, int):
        return LocalProcesses(workers, environment)
    if isinstance(workers, tuple):
        return ExecutorJobs(*workers)
    if isinstance(workers, Executor):
        return ExecutorJobs(workers, count_workers(workers))
    from llmkit.workers import dask_jobs

    if not isinstance(workers, str):
        return dask_jobs.DaskJobs(workers)
    local = LOCAL_DASK.fullmatch(workers)
    if local:
        return dask_jobs.open_local_cluster(int(local["count"]), environment)
    found = ADDRESS.fullmatch(workers)
    assert found is not None  # as checked
    return dask_jobs.open_cluster(found["address"])


def _check_count(processes: int) -> None:
    if not 1 <= processes <= MOST_PROCESSES:
        raise LLMEvaluationError(f"workers must be from 1 to {MOST_PROCESSES}; got {processes}.")


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def _is_dask_client(value: Any) -> bool:
    # By name: who has no Dask must not load it for this question.
    return any(kind.__name__ == "Client" and kind.__module__.startswith("distributed") for kind in type(value).__mro__)
