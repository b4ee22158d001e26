"""Finds the tasks that a file defines: a Python file, or a YAML file."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from types import ModuleType

from llmkit.errors import LLMError, LLMEvaluationError, describe_exception
from llmkit.evals.tasks.task import Task, relative_to
from llmkit.evals.tasks.yaml_task import load_task_data
from llmkit.workers import TASK_MODULE_PREFIX

__all__ = ["DATA_SUFFIXES", "execute_file", "load_tasks"]

DATA_SUFFIXES = (".yaml", ".yml")
TASK_FILES = ("task.py", "task.yaml", "task.yml")


def load_tasks(path: str | Path) -> tuple[Task, ...]:
    """Return the tasks of a file, or of the `task.py` or `task.yaml` in a folder.

    A Python file is executed, and its tasks at module level are taken in the order of their definition. A YAML file is
    data: it has one task and executes nothing. Relative dataset paths start at the file's folder, and a Python file can
    import modules beside it.

    Raises:
        LLMEvaluationError: The file is missing or fails (the message names file and line), defines no task, or defines
            two of one name.
    """
    file = _task_file(Path(path).expanduser().resolve())
    if file is None:
        if Path(path).expanduser().is_dir():
            raise LLMEvaluationError(f"The folder {path} has no task.py or task.yaml; name the file.")
        raise LLMEvaluationError(f"There is no task file {path}.")
    if file.suffix.lower() in DATA_SUFFIXES:
        with relative_to(file.parent, file):
            return (load_task_data(file),)
    module = execute_file(file)
    # By identity: one task may have two names in the file.
    tasks = list({id(value): value for value in vars(module).values() if isinstance(value, Task)}.values())
    if not tasks:
        raise LLMEvaluationError(f"{path} defines no task: assign a llmkit.evals.Task to a name at module level.")
    names = [task.name for task in tasks]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise LLMEvaluationError(f"{path} defines two tasks called {', '.join(twice)}.")
    return tuple(tasks)


def _task_file(place: Path) -> Path | None:
    candidates = [place / name for name in TASK_FILES] if place.is_dir() else [place]
    return next((file for file in candidates if file.is_file()), None)


def execute_file(file: Path) -> ModuleType:
    """Execute a Python file of the user's and return it as a module.

    Raises:
        LLMEvaluationError: It fails; the message names file and line.
    """
    module = ModuleType(f"{TASK_MODULE_PREFIX}{sha256(str(file).encode()).hexdigest()[:12]}")
    module.__file__ = str(file)
    # Types that refer to each other by name are looked up in the module of this name, later too.
    sys.modules[module.__name__] = module
    try:
        # Not the import system: its bytecode cache does not see two edits within a second.
        code = compile(file.read_bytes(), str(file), "exec", dont_inherit=True)
        with relative_to(file.parent, file), _imports_from(file.parent):
            exec(code, vars(module))  # noqa: S102 (running the user's own task file is the purpose)
    except (Exception, SystemExit) as error:
        raise LLMEvaluationError(_description(error, file)) from error
    return module


@contextmanager
def _imports_from(folder: Path) -> Iterator[None]:
    entry = str(folder)
    # First, so that a module beside the file wins over an installed one of the same name.
    sys.path.insert(0, entry)
    try:
        yield
    finally:
        # The file may have changed the path itself.
        if entry in sys.path:
            sys.path.remove(entry)


def _description(error: BaseException, file: Path) -> str:
    if isinstance(error, SyntaxError):
        return f"{error.filename or file}:{error.lineno}: {type(error).__name__}: {error.msg}"
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(file)]
    place = f"{file}:{lines[-1]}" if lines else str(file)
    return f"{place}: {error if isinstance(error, LLMError) else describe_exception(error)}"
