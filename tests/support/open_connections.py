"""A pytest plugin that names the test which left a connection open in an event loop that has ended.

Such a connection can no longer be closed. Python says so whenever it collects garbage: in another test, or never.
"""

from __future__ import annotations

import asyncio.selector_events
import weakref
from collections.abc import Iterator
from typing import Any

import pytest

_opened: list[tuple[weakref.ref[Any], str]] = []
_running = "the start of the tests"


@pytest.fixture(autouse=True, scope="session")
def _connections_are_noted() -> Iterator[None]:
    transport = asyncio.selector_events._SelectorTransport
    make = transport.__init__

    def noted(self: Any, *args: Any, **kwargs: Any) -> None:
        make(self, *args, **kwargs)
        _opened.append((weakref.ref(self), _running))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(transport, "__init__", noted)
        yield


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    global _running  # noqa: PLW0603
    _running = item.nodeid


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_teardown() -> Iterator[None]:
    """After the test's own loop is closed, which a fixture does."""
    yield
    left = list(_left_open())
    assert not left, f"left open in an event loop that has ended: {', '.join(left)}"


def _left_open() -> Iterator[str]:
    known, kept = list(_opened), []
    for opened, test in known:
        transport = opened()
        sock = None if transport is None else transport._sock
        if sock is None:
            continue
        if transport._loop.is_closed():
            yield f"{sock} of {test}"
            sock.close()
            transport._sock = None
        else:
            kept.append((opened, test))
    # What other threads have opened meanwhile stands behind what was looked at.
    _opened[: len(known)] = kept
