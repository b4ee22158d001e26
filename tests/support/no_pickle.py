"""A pytest plugin: unpickling fails, because what is read back could run code (spec 9.2).

multiprocessing is left out: what it reads comes from a process that the test itself started. It keeps the reader that
it took when it was imported, which is now. So does cloudpickle, with which a worker opens what its engine hands to it.
"""

from __future__ import annotations

import _pickle
import multiprocessing.reduction  # noqa: F401 before pickle is closed
import pickle
from typing import TYPE_CHECKING, Any, NoReturn

import cloudpickle  # noqa: F401 before pickle is closed
import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator


class Unpickled(AssertionError):
    """Somebody read a pickle."""


def _refuse(*_arguments: Any, **_options: Any) -> NoReturn:
    raise Unpickled("something was about to be unpickled")


class _Unpickler(_pickle.Unpickler):
    load = _refuse


class _PythonUnpickler(pickle._Unpickler):
    """pandas derives from this one when it is imported."""

    load = _refuse


@pytest.fixture(autouse=True, scope="session")
def _nothing_is_unpickled() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        for module in (pickle, _pickle):
            patch.setattr(module, "load", _refuse)
            patch.setattr(module, "loads", _refuse)
            patch.setattr(module, "Unpickler", _Unpickler)
        patch.setattr(pickle, "_load", _refuse)
        patch.setattr(pickle, "_loads", _refuse)
        patch.setattr(pickle, "_Unpickler", _PythonUnpickler)
        yield
