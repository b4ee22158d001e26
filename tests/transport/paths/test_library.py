"""Loading LiteLLM: quiet, whatever other threads do with the warning filters meanwhile."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable

import pytest
from pydantic import TypeAdapter
from typing_extensions import ReadOnly, TypedDict

from llmkit.transport.paths import library


def define_type() -> None:
    """Define a type about which pydantic warns."""
    kind = TypedDict("kind", {"name": ReadOnly[str]})  # noqa: UP013 - a new type each time
    TypeAdapter(kind)


def run_beside(work: Callable[[], None]) -> BaseException | None:
    caught: list[BaseException] = []

    def run() -> None:
        try:
            work()
        except UserWarning as error:
            caught.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    return caught[0] if caught else None


def test_warnings_about_its_types_are_muted_in_its_thread_alone() -> None:
    """Filters cannot do this: here all warnings are errors, as after another thread has left `catch_warnings`."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with library.mute_warnings():
            define_type()
            beside = run_beside(define_type)
        assert isinstance(beside, UserWarning)
        with pytest.raises(UserWarning, match="ReadOnly"):
            define_type()
