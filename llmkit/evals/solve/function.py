"""Solve functions: how one is called, how it is recognised after an edit, and what it returned."""

from __future__ import annotations

import ast
import asyncio
import dis
import functools
import hashlib
import inspect
import sys
import textwrap
import types
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import suppress
from copy import deepcopy
from typing import Any, TypeAlias, get_type_hints

from pydantic import BaseModel
from pydantic_core import to_jsonable_python

from llmkit.batch.task_guard import cancel_user_task, guard_tasks, start_user_task
from llmkit.canonical_json import canonical_json, sha256_of
from llmkit.errors import LLMError, LLMEvaluationError, LLMSolveError, describe_exception
from llmkit.evals.answer_type import AnswerType
from llmkit.evals.dataset.dataset import Sample
from llmkit.evals.solve.model import AsyncBoundModel, BoundModel
from llmkit.evals.solve.steps import Steps
from llmkit.evals.user_code import (
    CANCEL_TIMEOUT_S,
    catch_exit,
    is_asynchronous,
    read_source,
    run_in_thread,
    to_exception,
)
from llmkit.types import LLMResponse

__all__ = [
    "DEFAULT_SOLVE_TIMEOUT_S",
    "Solve",
    "call_solve",
    "check_solve",
    "describe_solve",
    "name_solve",
    "read_return_type",
    "solve_content",
]

# `(sample, model)`, with a `BoundModel` for a function defined with `def`, and an `AsyncBoundModel` for `async def`.
Solve: TypeAlias = Callable[[Sample, Any], Any]

DEFAULT_SOLVE_TIMEOUT_S = 600.0
SOLVE_THREAD = "llmkit-solve"
# How often a function is looked at that has not called its model for a while.
LOOK_S = 5.0
# Constants whose value is part of a function's identity. Others, such as lists and dictionaries, may be filled while
# it runs, and a client or an index says nothing by which it could be compared.
_CONSTANTS = (str, bytes, int, float, bool, type(None), tuple, frozenset)
_MOST_HELPERS = 200
CALL = "__call__"


def name_solve(solve: Solve) -> str:
    """Return the name of a function, or of the class of an object that can be called."""
    inner = solve.func if isinstance(solve, functools.partial) else solve
    name = getattr(inner, "__name__", None) or type(inner).__name__
    return str(name)


def check_solve(solve: Any) -> None:
    """Refuse what cannot be called with a sample and a model.

    Raises:
        LLMEvaluationError: It cannot.
    """
    if not callable(solve) or isinstance(solve, type):
        raise LLMEvaluationError(f"solve is a function (sample, model), sync or async; got {solve!r:.80}.")
    if inspect.isasyncgenfunction(solve) or inspect.isgeneratorfunction(solve):
        raise LLMEvaluationError(f"{name_solve(solve)} yields; a solve function returns one value.")
    try:
        inspect.signature(solve).bind(None, None)
    except TypeError:
        raise LLMEvaluationError(f"{name_solve(solve)} must take two arguments, (sample, model).") from None
    except ValueError:  # functions in C have no signature
        return


def read_return_type(solve: Solve) -> Any:
    """Return the type that a function declares to return; `Any` when it declares none.

    Raises:
        LLMEvaluationError: It declares a type by a name that is not defined.
    """
    inner: Any = solve
    while isinstance(inner, functools.partial):
        inner = inner.func
    if not inspect.isroutine(inner):
        inner = type(inner).__call__
    raw = getattr(inner, "__annotations__", {}).get("return", Any)
    if isinstance(raw, str):
        names = {**getattr(inner, "__globals__", {}), **inspect.getclosurevars(inner).nonlocals}
        try:
            # Only this annotation: another one may name what is imported for type checkers alone.
            found = get_type_hints(types.SimpleNamespace(__annotations__={"return": raw}), names, include_extras=True)
        except Exception as error:  # noqa: BLE001 (an annotation is the user's code)
            raise LLMEvaluationError(
                f"{name_solve(solve)} declares to return {raw!r:.80}, which cannot be found "
                f"({describe_exception(error)}): define it beside the function, or leave the declaration out."
            ) from None
        raw = found["return"]
    found = raw
    if found is None or found is type(None) or found is LLMResponse:
        return Any
    return found


def solve_content(sample: Sample) -> str:
    """Return the part of a sample on which the name of its calls depends."""
    return canonical_json(sample.input)


# --- identity -----------------------------------------------------------------------------------------------------


def describe_solve(solve: Solve, version: str | None) -> dict[str, Any]:
    """Describe a function so that an edit is noticed: by its version, or else by its source and what that uses.

    Comments, formatting, docstrings and annotations are no part of it. Of what a function uses, these are: other
    functions of the same package or file, constants (strings, numbers and tuples) of the module or of an enclosing
    function, and the schemas of Pydantic models.
    """
    if version is not None:
        return {"function": name_solve(solve), "version": version}
    parts: dict[str, str] = {}
    _collect(solve, "", parts, set(), getattr(inspect.unwrap(_inner(solve)), "__module__", None))
    own = parts.pop("", "")
    return {"function": name_solve(solve), "source": own, "uses": sha256_of(parts) if parts else None}


def _inner(value: Any) -> Any:
    while isinstance(value, functools.partial):
        value = value.func
    if isinstance(value, types.MethodType):
        return value.__func__
    return value if inspect.isfunction(value) else getattr(type(value), CALL, value)


def _collect(value: Any, place: str, parts: dict[str, str], seen: set[Any], home: str | None) -> None:
    """Add a function, and the functions, constants and models that it uses.

    Each has its place: the names by which it is reached from the first function. Module names are no part of it, for
    that of a task file depends on the folder.
    """
    if isinstance(value, functools.partial):
        parts[f"{place}()"] = canonical_json(_keep_constants({"args": value.args, **value.keywords}))
    elif isinstance(value, types.MethodType):
        parts[f"{place}.self"] = canonical_json(_keep_constants(getattr(value.__self__, "__dict__", {})))
    elif not inspect.isroutine(value) and not isinstance(value, type) and hasattr(value, "__dict__"):
        parts[f"{place}.self"] = canonical_json(_keep_constants(vars(value)))
    function = inspect.unwrap(_inner(value))
    if not inspect.isfunction(function) or function.__code__ in seen or len(seen) > _MOST_HELPERS:
        return
    seen.add(function.__code__)
    parts[place] = _read_source(function)
    code = function.__code__
    defaults = {str(number): each for number, each in enumerate(function.__defaults__ or ())}
    parts[f"{place}="] = canonical_json(_keep_constants({**defaults, **(function.__kwdefaults__ or {})}))
    for name, used in _iterate_used(function, code):
        below = f"{place}/{name}"
        if isinstance(used, type) and issubclass(used, BaseModel):
            with suppress(Exception):  # a model without a schema is not one that is asked for
                parts[below] = canonical_json(used.model_json_schema())
        elif isinstance(used, _CONSTANTS):
            if _is_constant(used):
                parts[below] = repr(sorted(used, key=repr) if isinstance(used, frozenset) else used)
        elif inspect.isfunction(used) and _is_near(used, home):
            _collect(used, below, parts, seen, home)


def _iterate_used(function: Any, code: types.CodeType) -> Iterator[tuple[str, Any]]:
    """Yield the globals and the variables of enclosing functions that a function reads, and their values."""
    for name, cell in zip(code.co_freevars, function.__closure__ or (), strict=False):
        try:
            yield name, cell.cell_contents
        except ValueError:  # not assigned yet
            continue
    open_ = [code]
    stored: set[str] = set()
    loaded: dict[str, None] = {}
    while open_:
        each = open_.pop()
        open_ += [inner for inner in each.co_consts if isinstance(inner, types.CodeType)]
        for step in dis.get_instructions(each):
            if step.opname == "STORE_GLOBAL":
                stored.add(step.argval)
            elif step.opname in ("LOAD_GLOBAL", "LOAD_NAME"):
                loaded[step.argval] = None
    for name in loaded:
        # A counter that the function itself moves on is no constant.
        if name in function.__globals__ and name not in stored and not name.startswith("__"):
            yield name, function.__globals__[name]


def _is_near(used: Any, home: str | None) -> bool:
    """Return whether a function is of the same package or file, and so the user's."""
    return home is not None and str(used.__module__).partition(".")[0] == home.partition(".")[0]


def _is_constant(value: Any) -> bool:
    if isinstance(value, tuple | frozenset):
        return all(_is_constant(part) for part in value)
    return type(value) in _CONSTANTS


def _keep_constants(values: Mapping[str, Any]) -> dict[str, str]:
    return {str(name): repr(value) for name, value in values.items() if _is_constant(value)}


def _read_source(function: Any) -> str:
    """Return the source without comments, docstrings and annotations; of a function without one, a hash of its code."""
    try:
        tree = ast.parse(textwrap.dedent(read_source(function)))
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                node.returns = None
                _drop_docstring(node)
            elif isinstance(node, ast.arg):
                node.annotation = None
        return ast.unparse(tree)
    except (OSError, TypeError, SyntaxError):  # of `python -c`, or a lambda in the middle of a line
        return hashlib.sha256(repr(_list_code(function.__code__)).encode()).hexdigest()


def _drop_docstring(node: ast.FunctionDef | ast.AsyncFunctionDef) -> None:
    first = node.body[0]
    if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant) and isinstance(first.value.value, str):
        node.body = node.body[1:] or [ast.Pass()]


def _list_code(code: types.CodeType) -> list[Any]:
    constants = [_list_code(each) if isinstance(each, types.CodeType) else repr(each) for each in code.co_consts]
    return [code.co_code, constants, code.co_names, code.co_varnames]


# --- one call -----------------------------------------------------------------------------------------------------


async def call_solve(
    solve: Solve, sample: Sample, steps: Steps, answer: AnswerType, *, timeout_s: float | None = DEFAULT_SOLVE_TIMEOUT_S
) -> Any:
    """Call the function about a sample, and return its value as one of the answer type.

    An async function runs in the event loop, a sync one in a thread. Each gets its own copy of the sample. One that
    takes too long without calling its model is cancelled; a thread cannot be stopped, and is abandoned.

    Args:
        solve: The function.
        sample: The sample.
        steps: Takes its calls.
        answer: What it returns.
        timeout_s: Longest time without a call under way, in seconds; None for no limit.

    Raises:
        LLMSolveError: It raised an exception of its own, returned something else, or took too long.
        LLMError: A call failed, and the function did not handle that.
    """
    own = deepcopy(sample)
    if is_asynchronous(solve.func if isinstance(solve, functools.partial) else solve):
        function: Callable[..., Awaitable[Any]] = solve
        work = function(own, AsyncBoundModel(steps))
    else:
        work = _await_too(run_in_thread(SOLVE_THREAD, solve, own, BoundModel(steps)))
    try:
        found = await _wait_within(solve, timeout_s, steps, work)
    except Exception as error:
        if steps.fatal is not None:
            raise steps.fatal from None
        with guard_tasks():
            explained = _explain(solve, error)
        raise explained from error
    finally:
        await steps.close()
    if steps.fatal is not None:
        raise steps.fatal
    with guard_tasks():
        return _read_value(solve, found, answer)


async def _await_too(work: Awaitable[Any]) -> Any:
    found = await work
    return await found if inspect.isawaitable(found) else found


async def _wait_within(solve: Solve, limit_s: float | None, steps: Steps, work: Awaitable[Any]) -> Any:
    task = start_user_task(catch_exit(work))
    try:
        while not task.done():
            left_s = None if limit_s is None else limit_s - steps.idle_s
            if left_s is not None and left_s <= 0:
                raise LLMSolveError(
                    f"{name_solve(solve)} did nothing for {limit_s:g} s without calling its model; the limit is the "
                    "option solve_timeout_s"
                )
            await asyncio.wait({task}, timeout=None if left_s is None else min(max(left_s, 0.01), LOOK_S))
        if task.cancelled():
            # Not by the evaluation, whose cancellation ends the line above.
            raise RuntimeError("CancelledError: the function cancelled itself")
        error = task.exception()
        if error is not None:
            raise to_exception(error)
        return task.result()
    finally:
        if not task.done():
            cancel_user_task(task)
            await asyncio.wait({task}, timeout=CANCEL_TIMEOUT_S)


def _explain(solve: Solve, error: Exception) -> Exception:
    """Return the error of the call that made a function fail; else one that says where and how it failed."""
    found = _find_llm_error(error)
    if found is not None:
        return found
    place = ""
    code = getattr(inspect.unwrap(_inner(solve)), "__code__", None)
    trace = error.__traceback__
    while trace is not None:
        if code is not None and trace.tb_frame.f_code is code:
            place = f" in line {trace.tb_lineno}"
        trace = trace.tb_next
    return LLMSolveError(f"{name_solve(solve)} failed{place}: {describe_exception(error)}")


def _find_llm_error(error: BaseException) -> LLMError | None:
    if isinstance(error, LLMError):
        return error
    if isinstance(error, BaseExceptionGroup):
        return next((found for each in error.exceptions if (found := _find_llm_error(each)) is not None), None)
    # Pydantic AI raises errors of its own in place of ours.
    if type(error).__module__.startswith("pydantic_ai.") and error.__cause__ is not None:
        return _find_llm_error(error.__cause__)
    return None


def _read_value(solve: Solve, found: Any, answer: AnswerType) -> Any:
    if inspect.iscoroutine(found):
        found.close()
        raise LLMSolveError(f"{name_solve(solve)} returned a coroutine: await the calls of the model")
    if isinstance(found, LLMResponse):
        found = found.text
    run = sys.modules.get("pydantic_ai.run")
    if run is not None and isinstance(found, run.AgentRunResult):
        found = found.output
    try:
        if answer.is_open:
            # What is scored now must be what a stored answer is read as.
            return to_jsonable_python(found, by_alias=True, inf_nan_mode="strings", round_trip=True)
        value = answer.adapter.validate_python(found, by_alias=True, by_name=True)
        answer.write_json(value)
    except Exception as error:  # noqa: BLE001 (validators and serialisers are the user's code)
        what = "JSON" if answer.is_open else answer.name
        # A row of a DataFrame is one, and a DataFrame.
        remedy = ": return its to_dict()" if hasattr(found, "to_dict") else ""
        problem = remedy or f": {describe_exception(error)}".replace("\n", " ")
        raise LLMSolveError(
            f"{name_solve(solve)} returned {type(found).__name__}, which is no {what}{problem}"
        ) from None
    return value
