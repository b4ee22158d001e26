"""`Session.evaluate`, and the reports of stored evaluations."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from llmkit.batch.loading import find_loading
from llmkit.errors import LLMBadRequest, LLMError, LLMEvaluationError
from llmkit.notebook.arguments import check_count, check_names, check_text
from llmkit.notebook.core import SessionCore
from llmkit.notebook.event_loop import Interrupted, InterruptedAwait, run_aside
from llmkit.notebook.status_line import wait_aside
from llmkit.providers import collect_secrets
from llmkit.types import Route
from llmkit.workers.choose import check_workers

if TYPE_CHECKING:
    from llmkit.batch.progress_bar import Meter
    from llmkit.eval_ports import EvalRun, RecordedCall
    from llmkit.evals import EvalReport, EvaluateOptions, Progress, Task, Variant
    from llmkit.prices.price_list import PriceList

    Routes = str | Variant | Sequence[str | Variant]

__all__ = [
    "check_routes",
    "evaluate_routes",
    "evaluate_routes_async",
    "import_report",
    "read_report",
    "score_outputs",
    "score_outputs_async",
]

KEPT = "finished results are in .partial of the session; the same call does the rest"
_MINIMUMS: Mapping[str, int] = {"epochs": 1, "limit": 1, "concurrency": 1, "reasks": 0}


def evaluate_routes(
    core: SessionCore, task: Task, routes: Routes, name: str | None, options: Mapping[str, Any]
) -> EvalReport:
    """Check the arguments of `Session.evaluate`, run the evaluation, and keep the report of an interrupted one."""
    _check_arguments(task, routes, name, options)
    # In the loop's thread, these seconds would delay the cancellation after Ctrl-C.
    wait_aside(run_aside(_import_engine))
    progress = _ProgressBar(core, options)
    core.keep_partial(None)
    try:
        with progress.open() as draw:
            return core.run(_evaluate(core, task, routes, name, progress.options), draw)
    except KeyboardInterrupt:
        if not core.runtime.is_open:
            raise
        core.keep_partial(partial(_read_partial, core, name, task))
        raise Interrupted(KEPT) from None


def check_routes(core: SessionCore, task: Task, routes: Routes, options: Mapping[str, Any]) -> None:
    """Check the options and routes of a new evaluation. Sends nothing.

    Raises:
        LLMEvaluationError: An option cannot be used, a route is unknown, or two have one label.
    """
    from llmkit.evals.tasks.variant import check_endpoints, resolve_variants

    _check_arguments(task, routes, None, options)
    policies = {**core.policies, **options.get("policies", {})}
    parameters = options.get("parameters") or {}
    check_endpoints(resolve_variants(task, routes, service=core.service, parameters=parameters, policies=policies))


def _read_partial(core: SessionCore, name: str | None, task: Task) -> EvalReport | None:
    """Read the report of an interrupted evaluation when it is wanted: after Ctrl-C in a command it is not."""
    with suppress(LLMError):  # nothing was stored yet
        return core.run(_read_own_report(core, name, task))
    return None


async def evaluate_routes_async(
    core: SessionCore, task: Task, routes: Routes, name: str | None, options: Mapping[str, Any]
) -> EvalReport:
    """Do the same for async code."""
    _check_arguments(task, routes, name, options)
    await asyncio.wrap_future(run_aside(_import_engine))
    progress = _ProgressBar(core, options)
    core.keep_partial(None)
    try:
        with progress.open() as draw:
            return await core.run_async(_evaluate(core, task, routes, name, progress.options), draw)
    except asyncio.CancelledError:
        core.keep_partial(partial(_read_partial, core, name, task))
        raise InterruptedAwait(KEPT) from None


async def _evaluate(
    core: SessionCore, task: Task, routes: Routes, name: str | None, options: dict[str, Any]
) -> EvalReport:
    from llmkit.evals import evaluate

    if options.get("concurrency", "auto") == "auto":
        options = {**options, "concurrency": core.settings.concurrency_limit}
    options = {**options, "policies": {**core.policies, **options.get("policies", {})}}
    budget = options.get("budget")
    if budget is not None and budget.max_cost_usd is not None and "prices" not in options:
        options = {**options, "prices": await core.run_in_thread(read_own_prices, core)}
    workers = options.pop("workers", None)
    if workers is not None:
        return _attach_calls(core, await _evaluate_by_workers(core, task, routes, name, workers, options))
    # A cassette loads no model, and has no answer to a warm-up call.
    defaults = {"warm_up": core.runtime.open().cassette is None}
    report = await evaluate(
        task,
        routes,
        service=core.service,
        store=core.eval_store,
        workspace_id=core.workspace_id,
        name=name,
        **defaults | options,
    )
    return _attach_calls(core, report)


async def _evaluate_by_workers(
    core: SessionCore, task: Task, routes: Routes, name: str | None, workers: Any, options: dict[str, Any]
) -> EvalReport:
    from llmkit.evals import Variant
    from llmkit.evals.run.shared import RunIdentity, WorkerCall, evaluate_by_workers
    from llmkit.evals.tasks.travel import locate_task
    from llmkit.notebook.joining import EvaluationWork, join_work
    from llmkit.notebook.shared_call import SharedCall

    if not isinstance(routes, str | Route | Variant):
        routes = list(routes)  # An iterator would be at its end when it travels.
    call = SharedCall(core, workers)
    await call.note_start()

    def pack(identity: RunIdentity) -> bytes:
        travelling = {option: value for option, value in options.items() if option not in ("progress", "show_answers")}
        return call.pack(EvaluationWork(call.joining, identity, locate_task(task), routes, travelling))

    return await evaluate_by_workers(
        task,
        routes,
        WorkerCall(call.open_engine, join_work, pack, call.mark_stopped),
        service=core.service,
        store=core.eval_store,
        workspace_id=core.workspace_id,
        name=name,
        options=cast("EvaluateOptions", options),
    )


def score_outputs(
    core: SessionCore, task: Task, outputs: Any, name: str | None, options: Mapping[str, Any]
) -> EvalReport:
    """Check the arguments of `Session.score`, and score the answers."""
    _check_score(task, name, options)
    progress = _ScoreBar(options)
    with progress.open() as draw:
        return core.run(_score(core, task, outputs, name, progress.options), draw)


async def score_outputs_async(
    core: SessionCore, task: Task, outputs: Any, name: str | None, options: Mapping[str, Any]
) -> EvalReport:
    """Do the same for async code."""
    _check_score(task, name, options)
    progress = _ScoreBar(options)
    with progress.open() as draw:
        return await core.run_async(_score(core, task, outputs, name, progress.options), draw)


async def _score(core: SessionCore, task: Task, outputs: Any, name: str | None, options: dict[str, Any]) -> EvalReport:
    from llmkit.evals.run.supplied import score_answers

    report = await score_answers(
        task,
        outputs,
        service=lambda: core.service,
        store=core.eval_store,
        workspace_id=core.workspace_id,
        settings=core.settings,
        name=name,
        **options,
    )
    return _attach_calls(core, report)


class _ScoreBar:
    """Progress of scoring: reported in the loop's thread, drawn in the thread that waits.

    Attributes:
        options: Options of `score`, without those that are None, and with `progress` pointing here.
    """

    def __init__(self, options: Mapping[str, Any]) -> None:
        self.options = {
            name: value for name, value in options.items() if value is not None or name == "scorer_timeout_s"
        }
        self._is_shown = self.options.get("progress", True) is True
        self._counts: tuple[int, int, int] | None = None
        if self._is_shown:
            self.options["progress"] = self._update

    def open(self) -> AbstractContextManager[Callable[[], None] | None]:
        """Return a context whose value draws the bar."""
        from llmkit.batch.progress_bar import bar

        return bar(self._read, unit="answer", shown=self._is_shown)

    def _update(self, done: int, total: int, failed: int) -> None:
        self._counts = done, total, failed

    def _read(self) -> Meter | None:
        from llmkit.batch.progress_bar import Meter

        return None if self._counts is None else Meter(self._counts[0], self._counts[1], failed=self._counts[2])


def _check_score(task: Any, name: Any, options: Mapping[str, Any]) -> None:
    from llmkit.evals import ScoreOptions, Task

    if not isinstance(task, Task):
        raise LLMEvaluationError(f"score takes a Task first, then the answers; got {type(task).__name__}.")
    check_names(options, {"name", *ScoreOptions.__annotations__}, LLMEvaluationError, "option")
    if not isinstance(name, str | None):
        raise LLMEvaluationError(f"name must be a string; got {type(name).__name__}")
    for option in ("answer", "id", "variant", "epoch"):
        if not isinstance(options.get(option), str | None):
            raise LLMEvaluationError(f"{option} is the name of a column; got {type(options[option]).__name__}")
    for option in ("limit", "concurrency"):
        if options.get(option) is not None:
            try:
                check_count(option, options[option], 1)
            except LLMBadRequest as error:
                raise LLMEvaluationError(str(error)) from None


def read_own_prices(core: SessionCore) -> PriceList | None:
    """Return the prices that the user has given, from the store; None when there are none."""
    from llmkit.dataframes.prices import select_own_prices
    from llmkit.notebook.history import read_store

    return read_store(core, select_own_prices)


async def read_report(core: SessionCore, name: str, task: Task | None) -> EvalReport:
    """Return the report of a stored evaluation.

    Raises:
        LLMEvaluationError: There is none of this name.
    """
    from llmkit.evals import load_report

    check_text("name", name)
    return _attach_calls(core, await load_report(core.eval_store, core.workspace_id, name, task=task))


async def _read_own_report(core: SessionCore, name: str | None, task: Task) -> EvalReport:
    from llmkit.evals.call_names import choose_run_name

    return await read_report(core, await choose_run_name(core.eval_store, core.workspace_id, task, name), task)


async def import_report(core: SessionCore, file: str | Path, name: str | None) -> EvalReport:
    """Import an exported evaluation into the workspace and return its report.

    Raises:
        LLMEvaluationError: The file cannot be read, or another run has the name.
    """
    from llmkit.evals.export import import_run

    most_mb = core.settings.max_file_mb
    run = await import_run(core.eval_store, core.workspace_id, file, name=name, most_mb=most_mb)
    return await read_report(core, run.name, None)


def _attach_calls(core: SessionCore, report: EvalReport) -> EvalReport:
    """Let the report read the calls behind it when it needs them."""
    return replace(report, load_calls=_CallReader(core, report.run))


@dataclass(frozen=True, slots=True)
class _CallReader:
    """Reads the calls of an evaluation from the store of a session. A pickle of it contains the calls."""

    core: SessionCore
    run: EvalRun

    def __call__(self) -> Sequence[RecordedCall]:
        return self.core.run(self._read())

    async def _read(self) -> Sequence[RecordedCall]:
        from llmkit.evals.call_names import name_prefix

        return await self.core.eval_store.list_calls(self.core.workspace_id, name_prefix(self.run))

    def __reduce__(self) -> tuple[Any, ...]:
        return partial, (tuple, self())

    def __deepcopy__(self, _memo: dict[int, Any]) -> _CallReader:
        # There is one session, whose connections cannot be copied.
        return self


def _import_engine() -> None:
    """Import what an evaluation needs, in a thread that Ctrl-C cannot interrupt."""
    import llmkit.evals.run.runner
    import llmkit.pydanticai  # noqa: F401


class _ProgressBar:
    """Progress of an evaluation: reported in the loop's thread, drawn in the thread that waits.

    Attributes:
        options: Options of the evaluation, without those that are None, and with `progress` pointing here.
    """

    def __init__(self, core: SessionCore, options: Mapping[str, Any]) -> None:
        self._settings = core.settings
        # None means "not given", except for this one option, where it means "no limit".
        self.options = {
            name: value for name, value in options.items() if value is not None or name == "scorer_timeout_s"
        }
        self._is_shown = self.options.get("progress", True) is True
        self._latest: Progress | None = None
        if self._is_shown:
            self.options["progress"] = self._update

    def open(self) -> AbstractContextManager[Callable[[], None] | None]:
        """Return a context whose value draws the bar."""
        from llmkit.batch.progress_bar import bar

        return bar(
            self._read,
            unit="sample",
            shown=self._is_shown,
            answers=self.options.get("show_answers", self._settings.show_answers),
            secrets=collect_secrets(self._settings),
        )

    def _update(self, progress: Progress) -> None:
        self._latest = progress

    def _read(self) -> Meter | None:
        from llmkit.evals.run.progress import make_meter

        if self._latest is None:
            return None
        meter = make_meter(self._latest)
        return meter if meter.loading or meter.done > meter.reused else replace(meter, loading=find_loading())


def _check_arguments(task: Any, routes: Any, name: Any, options: Mapping[str, Any]) -> None:
    """Refuse arguments that are of another kind than intended.

    Raises:
        LLMEvaluationError: Task, routes, name or an option cannot be used; the message states the fix.
    """
    from llmkit.evals import Task, Variant
    from llmkit.notebook.options import SharedEvaluateOptions

    if not isinstance(task, Task):
        raise LLMEvaluationError(
            f"evaluate takes a Task first, then routes; got {type(task).__name__}. To read tasks from a file: "
            "llmkit.evals.load_tasks(path)"
        )
    given = routes if isinstance(routes, list | tuple) else () if isinstance(routes, Iterable) else (routes,)
    wrong = [each for each in given if not isinstance(each, str | Route | Variant)]
    if wrong:
        raise LLMEvaluationError(f"routes are a list such as ['ollama/llama3.2']; got {type(wrong[0]).__name__}")
    check_names(options, {"name", *SharedEvaluateOptions.__annotations__}, LLMEvaluationError, "option")
    if not isinstance(name, str | None):
        raise LLMEvaluationError(f"name must be a string; got {type(name).__name__}")
    if options.get("workers") is not None:
        check_workers(options["workers"])
    for option, minimum in _MINIMUMS.items():
        value = options.get(option)
        if value is None or (option == "concurrency" and value == "auto"):
            continue
        try:
            check_count(option, value, minimum)
        except LLMBadRequest as error:
            raise LLMEvaluationError(str(error)) from None
