"""Parcels, whatever else the process does while they are packed."""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterator
from itertools import count
from types import ModuleType
from typing import Any

import pytest

from llmkit.evals import Sample, Task
from llmkit.evals.tasks.travel import locate_task
from llmkit.workers.parcel import open_parcel, pack_parcel


@pytest.fixture
def _imports_meanwhile() -> Iterator[None]:
    """Import a module at every collection, at which another thread may, and collect all the time."""
    numbers = count()
    added: list[str] = []

    def add(_phase: str, _info: Any) -> None:
        added.append(f"imported_meanwhile_{next(numbers)}")
        sys.modules[added[-1]] = ModuleType(added[-1])

    thresholds = gc.get_threshold()
    gc.callbacks.append(add)
    gc.set_threshold(1)
    yield
    gc.set_threshold(*thresholds)
    gc.callbacks.remove(add)
    for name in added:
        sys.modules.pop(name)


@pytest.mark.usefixtures("_imports_meanwhile")
def test_other_threads_may_import_while_work_is_packed() -> None:
    task = Task("t", [Sample("a", "x")], "{input}", str)
    assert locate_task(task) is task
    assert open_parcel(pack_parcel({"a": 1})) == {"a": 1}
