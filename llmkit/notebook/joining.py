"""Jobs that workers run: join an evaluation or a map that another process has started.

`join_work` is the function that every engine calls: of bytes, in a module that any process with llmkit can import.
"""

from __future__ import annotations

import asyncio
import platform
import random
import threading
from collections.abc import Coroutine, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol
from uuid import UUID

from llmkit.calls.liveness import current_owner
from llmkit.errors import LLMConfigurationError, LLMError, LLMStoreError, describe_exception
from llmkit.notebook.core import SessionCore, build_core
from llmkit.settings import LLMSettings
from llmkit.workers.contribution import STOPPED_CODE, Contribution
from llmkit.workers.file_systems import find_file_system
from llmkit.workers.parcel import open_parcel

if TYPE_CHECKING:
    from llmkit.evals.run.shared import RunIdentity
    from llmkit.evals.tasks.travel import TravellingTask

__all__ = [
    "EvaluationWork",
    "Joining",
    "SharedWork",
    "find_machine",
    "join_work",
    "list_travelling_settings",
]

# How often a worker looks whether its parent, or the store, asks it to stop. A stop is seen within two seconds.
PARENT_LOOK_S, STORE_LOOK_S = 0.2, 1.0
# Keys, addresses, folders and the like: each worker has its own, from its environment.
OWN_SETTINGS = frozenset(
    {"database_url", "cache_dir", "endpoints", "workspace_id", "persist_runs", "warm_up", "show_answers"}
)
OWN_SUFFIXES = ("_api_key", "_api_base")


def list_travelling_settings(settings: LLMSettings) -> dict[str, Any]:
    """Return the settings that travel to workers: those that were set, and are neither keys nor addresses."""
    names = {name for name in settings.model_fields_set if name not in OWN_SETTINGS and not name.endswith(OWN_SUFFIXES)}
    return settings.model_dump(mode="json", include=names)


def find_machine() -> str:
    """Return what names this boot of this machine."""
    return current_owner().partition("|")[0]


@dataclass(frozen=True, slots=True)
class Joining:
    """Values that every job needs to begin.

    Attributes:
        call_id: Names the call in the store.
        workspace: Name of the workspace.
        machine: Machine of the driver.
        settings: Settings that travel.
    """

    call_id: UUID
    workspace: str
    machine: str
    settings: Mapping[str, Any]


class SharedWork(Protocol):
    """Work that several workers share."""

    @property
    def joining(self) -> Joining:
        """Values that it needs to begin."""
        ...

    def join(self, core: SessionCore) -> Coroutine[Any, Any, Contribution]:
        """Take part until all is done."""
        ...


@dataclass(frozen=True, slots=True)
class EvaluationWork:
    """An evaluation as it travels.

    Attributes:
        joining: See `Joining`.
        identity: The run.
        task: The task, or where it is.
        routes: Those of `evaluate`.
        options: Those of `evaluate`, without what only its caller can use.
    """

    joining: Joining
    identity: RunIdentity
    task: TravellingTask
    routes: Any
    options: Mapping[str, Any]

    async def join(self, core: SessionCore) -> Contribution:
        """See `SharedWork`."""
        from llmkit.evals.run.shared import join_evaluation
        from llmkit.evals.tasks.travel import fetch_task

        return await join_evaluation(
            # The user's file may take long to execute.
            await asyncio.to_thread(fetch_task, self.task),
            self.routes,
            self.identity,
            service=core.service,
            store=core.eval_store,
            workspace_id=core.workspace_id,
            options={**self.options, "progress": False, "show_answers": False},  # type: ignore[typeddict-item]
        )


def join_work(parcel: bytes, stop: threading.Event | None = None) -> bytes:
    """Do the work of a parcel together with other workers, and return a `Contribution` as bytes.

    Args:
        parcel: From `pack_parcel`, as this process's engine has handed it over.
        stop: Set when this process is to stop.
    """
    try:
        work: SharedWork = open_parcel(parcel)
        core = build_core(work.joining.workspace, None, None, {**work.joining.settings, "warm_up": False})
        _require_usable_store(work.joining, core.settings)
        try:
            return core.run(_join_until_stopped(work, core, stop or threading.Event()), lambda: None).write()
        finally:
            core.close()
    except LLMError as error:
        return Contribution(error=(error.code, str(error))).write()
    except Exception as error:  # noqa: BLE001 - an engine may be unable to carry the class of the user's exception
        place = f"on {platform.node()}"
        return Contribution(error=(LLMError.code, f"A worker {place} failed: {describe_exception(error)}")).write()


async def _join_until_stopped(work: SharedWork, core: SessionCore, stop: threading.Event) -> Contribution:
    call_id = work.joining.call_id
    if await core.eval_store.is_call_stopped(call_id) is None:
        raise LLMConfigurationError(
            f"The worker on {platform.node()} has another database than where the work was started: set "
            "LLM_DATABASE_URL there to the same PostgreSQL"
        )
    joining = asyncio.create_task(work.join(core))
    asking = asyncio.create_task(_wait_for_stop(core, call_id))
    try:
        while not joining.done() and not asking.done() and not stop.is_set():
            await asyncio.wait({joining, asking}, timeout=PARENT_LOOK_S, return_when=asyncio.FIRST_COMPLETED)
    finally:
        asking.cancel()
        # As after Ctrl-C: calls under way are cancelled and recorded.
        if not joining.done():
            joining.cancel()
            await asyncio.wait({joining})
    return Contribution(error=(STOPPED_CODE, "The worker was stopped")) if joining.cancelled() else joining.result()


async def _wait_for_stop(core: SessionCore, call_id: UUID) -> None:
    """Return when the store says that the call was stopped: most engines cannot stop a job that runs."""
    while True:
        try:
            if await core.eval_store.is_call_stopped(call_id):
                return
        except LLMStoreError:  # the work itself finds out whether the store stays away
            pass
        await asyncio.sleep(STORE_LOOK_S * random.uniform(0.7, 1.3))  # noqa: S311 - a thousand workers ask


def _require_usable_store(joining: Joining, settings: LLMSettings) -> None:
    """Refuse an SQLite file on another machine than the driver's: SQLite cannot lock over a network.

    Raises:
        LLMConfigurationError: It is one.
    """
    if joining.machine == find_machine() or not settings.database_url.startswith("sqlite"):
        return
    path = Path(settings.database_url.partition(":///")[2]).absolute()
    raise LLMConfigurationError(
        f"The worker on {platform.node()} is another machine than the one that started the work, and its database is "
        f"the SQLite file {path} (file system {find_file_system(path)}), which machines cannot share: set "
        "LLM_DATABASE_URL to one PostgreSQL on all of them"
    )
