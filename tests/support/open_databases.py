"""A pytest plugin that names the test which left an SQLite connection to the garbage collector.

Python 3.13 warns of one, in whatever test the collector happens to run; earlier versions say nothing.
"""

from __future__ import annotations

import gc
import sqlite3
import sqlite3.dbapi2
import traceback
from collections.abc import Iterator
from typing import Any

import pytest

_SHOWN_FRAMES = 12
_left: list[str] = []
_running = "the start of the tests"


class _NotedConnection(sqlite3.Connection):
    _is_open = False

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._is_open = True
        self._maker = f"{_running}, opened by\n{''.join(traceback.format_stack(limit=_SHOWN_FRAMES)[:-1])}"

    def close(self) -> None:
        super().close()
        self._is_open = False

    def __del__(self) -> None:
        if self._is_open:
            _left.append(self._maker)
            # Else Python 3.13 warns too, and fails a test that has nothing to do with it.
            self.close()


@pytest.fixture(autouse=True, scope="session")
def _databases_are_noted() -> Iterator[None]:
    connect = sqlite3.connect

    def connect_noted(*args: Any, **kwargs: Any) -> sqlite3.Connection:
        return connect(*args, **{"factory": _NotedConnection, **kwargs})

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sqlite3, "connect", connect_noted)
        patch.setattr(sqlite3.dbapi2, "connect", connect_noted)
        yield
        gc.collect()
        _assert_none_left()


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    global _running  # noqa: PLW0603
    _running = item.nodeid


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_teardown() -> Iterator[None]:
    yield
    _assert_none_left()


def _assert_none_left() -> None:
    left, _left[:] = list(_left), []
    assert not left, f"left open, and closed by the garbage collector: {'; '.join(left)}"
