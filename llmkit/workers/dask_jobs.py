"""Jobs on the workers of a Dask cluster: one on each, also on those that come later."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from concurrent.futures import Future, wait
from contextlib import suppress
from typing import Any

from llmkit.errors import LLMConfigurationError
from llmkit.workers.engine import JobEnd, JobFunction
from llmkit.workers.executor_jobs import describe_loss, read_end

__all__ = ["DaskJobs", "open_cluster", "open_local_cluster"]

LIST_EVERY_S = 1.0
RPC_TIMEOUT_S = 5.0
# So long the scheduler may be silent, or have no worker, before the engine counts as gone.
MOST_ABSENT_S = 30.0
MOST_LOST_IN_A_ROW = 3
INSTALL = 'workers on Dask need the package distributed: pip install "llmkit-research[dask]"'


class DaskJobs:
    """An `Engine` on a Dask client.

    Each job is pinned to its worker, so that the scheduler does not run two on one and none on another. A pinned job
    does not move when its worker is lost: the worker that replaces it gets a job of its own.

    Args:
        client: A client that is not asynchronous.
        cluster: A cluster to close at the end, with the client; None for a client of the user's.
    """

    def __init__(self, client: Any, cluster: Any = None, *, owns_client: bool = False) -> None:
        if client.asynchronous:
            raise LLMConfigurationError("workers= needs a Dask Client that is not asynchronous: Client(address)")
        self._client = client
        self._cluster = cluster
        self._owns_client = owns_client or cluster is not None
        self._job: tuple[JobFunction, bytes] | None = None
        self._futures: dict[str, Future[bytes]] = {}
        self._done: set[str] = set()
        self._listed_s = self._seen_s = time.monotonic()
        self._lost_in_a_row = 0
        self._progress = -1

    def start(self, function: JobFunction, parcel: bytes) -> None:
        """See `Engine`."""
        self._job = function, parcel
        if self._client.status == "closed":
            raise LLMConfigurationError("The Dask Client is closed: open a new one")
        addresses = self._list_workers()
        if not addresses:
            raise LLMConfigurationError(
                "The Dask cluster has no workers, or its scheduler is gone: start some, or wait for them"
            )
        self._join(addresses)

    def restart(self) -> None:
        """See `Engine`."""
        self._done.clear()
        self._listed_s = 0.0

    def poll(self, progress: int) -> list[JobEnd]:
        """See `Engine`."""
        if progress != self._progress:
            self._progress, self._lost_in_a_row = progress, 0
        ends = []
        for address, future in list(self._futures.items()):
            if future.done():
                del self._futures[address]
                end = read_end(future)
                ends.append(end)
                self._lost_in_a_row += end.result is None
                if end.result is not None or self._lost_in_a_row > MOST_LOST_IN_A_ROW:
                    self._done.add(address)
        if time.monotonic() - self._listed_s >= LIST_EVERY_S:
            ends += self._follow_cluster()
        return ends

    def _follow_cluster(self) -> list[JobEnd]:
        """Start jobs on new workers, and give up those of workers that are gone."""
        present = self._list_workers()
        self._listed_s = time.monotonic()
        if present:
            self._seen_s = self._listed_s
            self._join(address for address in present if address not in self._done)
        gone = [address for address in self._futures if address not in present]
        if self._listed_s - self._seen_s < MOST_ABSENT_S and not present:
            return []
        reason = "its worker left the cluster" if present else "the Dask scheduler has no workers, or is gone"
        for address in gone:
            self._futures.pop(address).cancel()
        return [JobEnd(None, reason) for _ in gone]

    def _join(self, addresses: Iterable[str]) -> None:
        assert self._job is not None
        for address in addresses:
            if address not in self._futures:
                executor = self._client.get_executor(
                    # By default Dask runs equal jobs once, whichever worker they are for.
                    pure=False,
                    retries=0,
                    workers=[address],
                    allow_other_workers=False,
                )
                try:
                    self._futures[address] = executor.submit(*self._job)
                except Exception as error:  # noqa: BLE001 - Dask raises many kinds
                    raise LLMConfigurationError(f"The Dask cluster takes no jobs: {describe_loss(error)}") from None

    def _list_workers(self) -> list[str]:
        try:
            return list(self._client.sync(self._client.scheduler.ncores, callback_timeout=RPC_TIMEOUT_S))
        except Exception:  # noqa: BLE001 - whatever Dask raises while its scheduler is away
            return []

    @property
    def running(self) -> int:
        """See `Engine`."""
        return len(self._futures)

    def close(self, *, wait_s: float, is_finished: bool) -> list[JobEnd]:  # noqa: ARG002 - the same either way
        """See `Engine`. Jobs that run see the stop mark in the store: Dask cannot stop a thread."""
        wait(self._futures.values(), timeout=wait_s)
        ends = [read_end(future) for future in self._futures.values() if future.done()]
        for future in self._futures.values():
            future.cancel()
        self._futures.clear()
        if self._owns_client:
            with suppress(Exception):  # a cluster that is gone cannot be closed
                self._client.close(timeout=RPC_TIMEOUT_S)
                if self._cluster is not None:
                    self._cluster.close(timeout=RPC_TIMEOUT_S)
        return ends


def open_cluster(address: str) -> DaskJobs:
    """Open a connection to the scheduler at `host:port`.

    Raises:
        LLMConfigurationError: It does not answer, or Dask is not installed.
    """
    try:
        from distributed import Client
    except ImportError:
        raise LLMConfigurationError(INSTALL) from None
    make_client: Any = Client
    try:
        client = make_client(f"tcp://{address}", timeout=10, set_as_default=False)
    except (OSError, ValueError) as error:
        raise LLMConfigurationError(
            f"No Dask scheduler answers at {address} ({describe_loss(error)}): check the address, or start one with "
            "`dask scheduler`"
        ) from None
    return DaskJobs(client, owns_client=True)


def open_local_cluster(count: int, environment: Mapping[str, str]) -> DaskJobs:
    """Start a Dask cluster of processes on this machine, which ends with the call.

    Args:
        count: Number of workers.
        environment: Their environment.

    Raises:
        LLMConfigurationError: Dask is not installed.
    """
    try:
        from distributed import Client, LocalCluster
    except ImportError:
        raise LLMConfigurationError(INSTALL) from None
    make_cluster: Any = LocalCluster
    make_client: Any = Client
    cluster = make_cluster(
        n_workers=count, threads_per_worker=1, processes=True, dashboard_address="127.0.0.1:0", env=dict(environment)
    )
    return DaskJobs(make_client(cluster, set_as_default=False), cluster)
