"""Objects that the garbage collector leaves out while a batch runs."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator

import pytest

from llmkit.batch.old_objects import skip_old_objects


class _Knot:
    """An object that refers to itself."""

    def __init__(self) -> None:
        self.own = self


@pytest.fixture(autouse=True)
def _thawed() -> Iterator[None]:
    gc.unfreeze()
    yield
    gc.unfreeze()


def test_garbage_of_the_batch_is_collected_at_once_and_older_garbage_after_the_last_batch() -> None:
    """Blocks may be nested, as in a scorer that evaluates."""
    old = weakref.ref(_Knot())
    with skip_old_objects():
        with skip_old_objects():
            new = weakref.ref(_Knot())
            gc.collect()
            assert new() is None
        gc.collect()
        assert old() is not None
    gc.collect()
    assert old() is None


def test_a_process_that_froze_its_objects_keeps_them_frozen() -> None:
    """A server freezes before it forks, so that its children share memory."""
    gc.freeze()
    with skip_old_objects():
        pass
    assert gc.get_freeze_count() > 0
