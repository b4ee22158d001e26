"""Parcels: work as bytes, for a worker that another process or machine runs.

Trust: opening a parcel runs code of the sender, as every pickle does. A worker therefore opens only what its engine
hands to it, and those who may submit jobs to that engine can run any code there anyway. Nothing that was read from a
store, a file or a model is ever opened here, and a parcel is not written anywhere.

Code that a worker can import travels by its name. What was defined in a notebook, in a script or in a task file travels
as a copy, with its source text, because edits are recognised by that.
"""

from __future__ import annotations

import io
import json
import linecache
import platform
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from types import FunctionType
from typing import Any

import cloudpickle  # type: ignore[import-untyped]

from llmkit.errors import LLMConfigurationError, LLMError, LLMEvaluationError
from llmkit.workers import TASK_MODULE_PREFIX

__all__ = ["open_parcel", "pack_parcel", "require_equal_versions"]

# Of these a parcel needs the same version at both ends: its content is made of their classes and of Python's bytecode.
PACKAGES = ("llmkit-research", "pydantic")
# Classes that contain keys, or connections that have no meaning elsewhere.
REFUSED = frozenset({"Session", "SessionCore", "LLMSettings", "LLMService", "SecretStr"})
LONGEST_SOURCE = 2_000_000
# A shorter text occurs by chance.
SHORTEST_SECRET = 8


def pack_parcel(content: Any, *, secrets: Iterable[str] = ()) -> bytes:
    """Return the content as bytes: a line with the versions it needs and the source texts, then the pickle.

    Args:
        content: Any picklable value; functions and classes of a notebook are allowed.
        secrets: Keys and passwords that must not travel.

    Raises:
        LLMEvaluationError: A part cannot travel, or contains a key.
    """
    file = io.BytesIO()
    with _copied_by_value():
        pickler = _Pickler(file)
        try:
            pickler.dump(content)
        except LLMError:
            raise
        except Exception as error:  # noqa: BLE001 - objects raise whatever they like when they are pickled
            raise LLMEvaluationError(
                f"A part of this call cannot travel to workers ({type(error).__name__}: {str(error)[:200]}). Open "
                "files, connections and locks inside the functions that use them."
            ) from None
    header = {"versions": _read_versions(), "sources": _read_sources(pickler.files)}
    parcel = json.dumps(header).encode() + b"\n" + file.getvalue()
    if any(secret.encode() in parcel for secret in secrets if len(secret) >= SHORTEST_SECRET):
        raise LLMEvaluationError(
            "A key or password is in what would travel to the workers: in the task, a function or an option. Read it "
            "from the environment where it is used; each worker has its own."
        )
    return parcel


def open_parcel(parcel: bytes) -> Any:
    """Return the content of a parcel that an engine has handed to this process.

    Raises:
        LLMConfigurationError: It was made with other versions, needs a module that is not installed here, or is none.
    """
    line, _, content = parcel.partition(b"\n")
    try:
        header = json.loads(line)
    except ValueError:
        raise LLMConfigurationError(
            f"What reached the worker on {platform.node()} is not what was sent to it: its engine has changed it"
        ) from None
    require_equal_versions(header["versions"])
    for name, text in header["sources"].items():
        # Without a modification time the entry is never checked against a file, which need not exist here.
        linecache.cache[name] = (len(text), None, text.splitlines(keepends=True), name)
    try:
        return cloudpickle.loads(content)
    except ImportError as error:
        raise LLMConfigurationError(
            f"The worker on {platform.node()} cannot import what the task uses ({error}): install it there, or add its "
            "folder to PYTHONPATH"
        ) from None


def require_equal_versions(sent: dict[str, str]) -> None:
    """Refuse work of another version of Python, llmkit or pydantic.

    Raises:
        LLMConfigurationError: Versions differ; the message names all of them.
    """
    differing = [
        f"{name} {own} here and {sent.get(name)} there"
        for name, own in _read_versions().items()
        if sent.get(name) != own
    ]
    if differing:
        raise LLMConfigurationError(
            f"The worker on {platform.node()} differs from the process that sent the work: {', '.join(differing)}; "
            "install the same versions"
        )


class _Pickler(cloudpickle.Pickler):  # type: ignore[misc]
    """Refuses what must not travel, and notes the files of functions that travel as a copy."""

    def __init__(self, file: io.BytesIO) -> None:
        super().__init__(file)
        self.files: set[str] = set()

    def reducer_override(self, obj: Any) -> Any:
        kind = type(obj)
        if kind.__name__ in REFUSED and kind.__module__.partition(".")[0] in {"llmkit", "pydantic"}:
            raise LLMEvaluationError(
                f"A function of the task uses a {kind.__name__}, which cannot travel to workers, as it has keys or "
                "connections: take what is needed from the arguments of the function."
            )
        reduced = super().reducer_override(obj)
        if isinstance(obj, FunctionType) and reduced is not NotImplemented:
            self.files.add(obj.__code__.co_filename)
        return reduced


@contextmanager
def _copied_by_value() -> Iterator[None]:
    """Let the classes and functions of task files travel as copies."""
    # A copy first: other threads import while a session starts.
    modules = [module for name, module in sys.modules.copy().items() if name.startswith(TASK_MODULE_PREFIX)]
    for module in modules:
        cloudpickle.register_pickle_by_value(module)
    try:
        yield
    finally:
        for module in modules:
            cloudpickle.unregister_pickle_by_value(module)


def _read_sources(files: Iterable[str]) -> dict[str, str]:
    texts = {name: "".join(linecache.getlines(name)) for name in sorted(files)}
    return {name: text for name, text in texts.items() if text and len(text) <= LONGEST_SOURCE}


def _read_versions() -> dict[str, str]:
    found = {"Python": ".".join(map(str, sys.version_info[:2]))}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:  # run from a folder without being installed
            found[name] = "unknown"
    return found
