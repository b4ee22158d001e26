"""How a task travels to a worker: as its file, as its name in a module, or as a copy."""

from __future__ import annotations

import importlib
import platform
import sys
import tempfile
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import TypeAlias

from llmkit.errors import LLMConfigurationError, LLMEvaluationError
from llmkit.evals.tasks.loader import load_tasks
from llmkit.evals.tasks.task import Task
from llmkit.workers import TASK_MODULE_PREFIX

__all__ = ["TaskFile", "TaskModule", "TravellingTask", "fetch_task", "locate_task"]

LARGEST_TEXT = 1_000_000


@dataclass(frozen=True, slots=True)
class TaskFile:
    """A task of a file: where the file is, its hash, and its content for workers that do not have it."""

    path: str
    sha256: str
    content: bytes | None
    name: str


@dataclass(frozen=True, slots=True)
class TaskModule:
    """A task that can be imported."""

    module: str
    attribute: str


TravellingTask: TypeAlias = TaskFile | TaskModule | Task


def locate_task(task: Task) -> TravellingTask:
    """Return the shortest form in which a worker can get the task; the task itself if it is nowhere else."""
    if task.file is not None and task.file.is_file():
        content = task.file.read_bytes()
        return TaskFile(
            str(task.file), sha256(content).hexdigest(), content if len(content) <= LARGEST_TEXT else None, task.name
        )
    # Copies first: other threads import while a session starts. `list(d.items())` would not do, as it may collect
    # garbage half way, and then another thread may run.
    for name, module in sys.modules.copy().items():
        if name in {"__main__", "__mp_main__"} or name.startswith(TASK_MODULE_PREFIX):
            continue
        if getattr(module, "__spec__", None) is None:
            continue
        for attribute, value in dict(getattr(module, "__dict__", {})).items():
            if value is task:
                return TaskModule(name, attribute)
    return task


def fetch_task(place: TravellingTask) -> Task:
    """Return the task on a worker.

    Raises:
        LLMConfigurationError: The worker has another file, or cannot import the module.
        LLMEvaluationError: The file does not define the task.
    """
    if isinstance(place, Task):
        return place
    if isinstance(place, TaskModule):
        try:
            found = getattr(importlib.import_module(place.module), place.attribute, None)
        except ImportError as error:
            raise LLMConfigurationError(
                f"The worker on {platform.node()} cannot import {place.module} ({error}): install it there, or add its "
                "folder to PYTHONPATH"
            ) from None
        if not isinstance(found, Task):
            raise LLMConfigurationError(
                f"{place.module} on the worker on {platform.node()} has no task {place.attribute}: install the same "
                "version there"
            )
        return found
    return _fetch_from_file(place)


def _fetch_from_file(place: TaskFile) -> Task:
    file = Path(place.path)
    if not file.is_file():
        if place.content is None:
            raise LLMConfigurationError(
                f"The worker on {platform.node()} has no file {place.path}: put it there, or on a shared disk"
            )
        # It stays until the process ends: functions of the task show their source from it.
        folder = Path(tempfile.mkdtemp(prefix="llmkit-task-"))
        file = folder / file.name
        file.write_bytes(place.content)
    elif sha256(file.read_bytes()).hexdigest() != place.sha256:
        raise LLMConfigurationError(
            f"{place.path} on the worker on {platform.node()} has another content than where the evaluation was "
            "started: copy it there again"
        )
    for task in load_tasks(file):
        if task.name == place.name:
            return task
    raise LLMEvaluationError(f"{place.path} defines no task {place.name!r} at module level on the worker.")
