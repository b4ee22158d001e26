"""`evaluate` of a session, and the reports of what was evaluated."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmkit.errors import LLMBadRequest, LLMConfigurationError, LLMError, LLMEvaluationError
from llmkit.notebook.event_loop import Interrupted
from llmkit.notebook.options import accepting, check_count, check_names
from llmkit.notebook.runtime import Face
from llmkit.types import Route

if TYPE_CHECKING:
    from llmkit.eval_ports import EvalStore, RecordedCall
    from llmkit.evals import EvalReport, Progress, Task, Variant
    from llmkit.mapping import Meter

__all__ = ["EvaluatingFace"]

_SHOWN = (
    *("name", "epochs", "limit", "concurrency", "budget", "retry_failed", "repairs", "parameters", "scorer_timeout_s"),
    *("warm_up", "progress", "policies", "extract"),
)


class EvaluatingFace(Face):
    """Compares routes on a task."""

    @accepting(*_SHOWN)
    def evaluate(self, task: Task, routes: Sequence[str | Variant], **parameters: Any) -> EvalReport:
        """Run a task over several routes and compare them: every sample on every route, in turns.

        The same name goes on where it was left, and calls nothing again that has succeeded. After an interruption the
        report of what is done is in `partial`, and the same call does the rest.

        Args:
            task: What is asked and how answers are scored.
            routes: `provider/model` (pinned), `provider/model@prompt`, `policy:NAME`, or `Variant`s of these.
            **parameters: All of them optional:
                `name`: of the run; the task's;
                `epochs`: repeats of every sample; 1;
                `limit`: only the first samples; all;
                `concurrency`: most samples under way at once; `"auto"`, as many as the settings and providers bear;
                `budget`: a `Budget` of tokens, US dollars and seconds; none;
                `retry_failed`: whether to call again for what failed without an answer of the model; True, or `"all"`;
                `repairs`: how often a model is asked again with what was wrong; 1;
                `parameters`: generation parameters on top of the task's;
                `scorer_timeout_s`: most seconds for one scorer on one sample; 60;
                `warm_up`: whether to load each model beforehand, unmeasured; True, in a replay False;
                `progress`: whether to draw a bar, or a function that is told; True;
                `policies` and `extract`: see `llmkit.evals.run.plan.EvaluateOptions`.

        Returns:
            The report of all that is stored under this name. A failing sample is a row with an error code.

        Raises:
            LLMEvaluationError: Task, route or option cannot be used, or the run of this name was of another task or
                other samples. Nothing was sent.
            LLMStoreError: Results cannot be recorded any more; what is done is kept.
        """
        _check(task, routes, parameters)
        evaluating = _Evaluating(parameters)
        self._partial = None
        try:
            with evaluating.bar() as draw:
                return self._open.run(self._evaluate(task, routes, evaluating.parameters), draw)
        except KeyboardInterrupt:
            self._partial = self._report_if_any(task, parameters)
            if self._partial is None:
                raise
            raise Interrupted("what is done is in .partial of the session; the same call does the rest") from None

    @accepting(*_SHOWN)
    async def aevaluate(self, task: Task, routes: Sequence[str | Variant], **parameters: Any) -> EvalReport:
        """`evaluate` for async code, in any event loop: the same arguments, result and errors.

        After a cancellation, `areport` has what is done.
        """
        _check(task, routes, parameters)
        evaluating = _Evaluating(parameters)
        with evaluating.bar() as draw:
            return await self._open.hop(self._evaluate(task, routes, evaluating.parameters), draw)

    async def _evaluate(self, task: Task, routes: Sequence[str | Variant], parameters: dict[str, Any]) -> EvalReport:
        from llmkit.evals import evaluate

        runtime = self._open.runtime()
        if parameters.get("concurrency", "auto") == "auto":
            parameters = {**parameters, "concurrency": self._settings.concurrency_limit}
        # A recording loads no model, and holds no answer to a warm-up.
        defaults = {"warm_up": runtime.cassette is None}
        report = await evaluate(
            task,
            routes,
            service=runtime.service,
            store=self._eval_store(),
            workspace_id=self.workspace,
            **defaults | parameters,
        )
        return self._with_calls(report)

    def _with_calls(self, report: EvalReport) -> EvalReport:
        """The report, which reads the calls behind it when it needs them. It keeps this session."""
        return replace(report, load_calls=lambda: self._open.run(self._calls(report)))

    async def _calls(self, report: EvalReport) -> Sequence[RecordedCall]:
        from llmkit.evals.call_names import name_prefix

        return await self._eval_store().calls(self.workspace, name_prefix(report.run))

    def report(self, name: str, *, task: Task | None = None) -> EvalReport:
        """The report of a stored evaluation, without calling anything.

        Args:
            name: Name of the evaluation.
            task: Adds inputs, targets and groups.

        Raises:
            LLMEvaluationError: There is none of this name; the message lists those that there are.
        """
        return self._open.run(self._report(name, task))

    async def areport(self, name: str, *, task: Task | None = None) -> EvalReport:
        """`report` for async code, in any event loop."""
        return await self._open.hop(self._report(name, task))

    async def _report(self, name: str, task: Task | None) -> EvalReport:
        from llmkit.evals import load_report

        return self._with_calls(await load_report(self._eval_store(), self.workspace, name, task=task))

    def import_run(self, file: str | Path, *, name: str | None = None) -> EvalReport:
        """Read an evaluation that `EvalReport.export` wrote into this workspace. The same file again changes nothing.

        Args:
            file: A `.jsonl` or `.parquet` file.
            name: Another name for the run; its own when None.

        Raises:
            LLMEvaluationError: The file cannot be read, or another run has the name.
        """
        return self._open.run(self._import_run(file, name))

    async def aimport_run(self, file: str | Path, *, name: str | None = None) -> EvalReport:
        """`import_run` for async code, in any event loop."""
        return await self._open.hop(self._import_run(file, name))

    async def _import_run(self, file: str | Path, name: str | None) -> EvalReport:
        from llmkit.evals.export import import_run

        run = await import_run(self._eval_store(), self.workspace, file, name=name)
        return await self._report(run.name, None)

    def _report_if_any(self, task: Task, parameters: Mapping[str, Any]) -> EvalReport | None:
        with suppress(LLMError):
            return self.report(parameters.get("name") or task.name, task=task)
        return None

    def _eval_store(self) -> EvalStore:
        store = self._open.runtime().eval_store
        if store is None:
            raise LLMConfigurationError("An evaluation needs a store: switch LLM_PERSIST_RUNS on")
        return store


class _Evaluating:
    """Progress of an evaluation, told in the loop's thread and drawn in the waiting one."""

    def __init__(self, parameters: Mapping[str, Any]) -> None:
        # None is as good as left out, but for this one, where it is no limit.
        self.parameters = {
            name: value for name, value in parameters.items() if value is not None or name == "scorer_timeout_s"
        }
        self._shown = self.parameters.get("progress", True) is True
        self._latest: Progress | None = None
        if self._shown:
            self.parameters["progress"] = self._report_progress

    def _report_progress(self, progress: Progress) -> None:
        self._latest = progress

    def _meter(self) -> Meter | None:
        from llmkit.evals.run.progress import standing
        from llmkit.mapping import Meter

        now = self._latest
        if now is None:
            return None
        return Meter(now.done, now.total, standing(now))

    def bar(self) -> AbstractContextManager[Callable[[], None] | None]:
        """What draws it."""
        from llmkit.batch.progress_bar import bar

        return bar(self._meter, unit="sample", shown=self._shown)


_COUNTS: Mapping[str, int] = {"epochs": 1, "limit": 1, "concurrency": 1, "repairs": 0}


def _check(task: Any, routes: Any, parameters: Mapping[str, Any]) -> None:
    """Refuse what a slip of the fingers makes of a call.

    Raises:
        LLMEvaluationError: Task and routes are something else, or an option is unknown or not of its kind.
    """
    from llmkit.evals import Task, Variant
    from llmkit.evals.run.plan import EvaluateOptions

    if not isinstance(task, Task):
        raise LLMEvaluationError(
            f"evaluate takes a Task first, then routes; got {type(task).__name__}. The tasks of a file are read by "
            "llmkit.evals.load_tasks(path)"
        )
    given = routes if isinstance(routes, list | tuple) else () if isinstance(routes, Iterable) else (routes,)
    wrong = [each for each in given if not isinstance(each, str | Route | Variant)]
    if wrong:
        raise LLMEvaluationError(f"routes are a list such as ['ollama/llama3.2']; got {type(wrong[0]).__name__}")
    check_names(parameters, {"name", *EvaluateOptions.__annotations__}, LLMEvaluationError, "option")
    if not isinstance(parameters.get("name"), str | None):
        raise LLMEvaluationError(f"name must be a text; got {type(parameters['name']).__name__}")
    for option, least in _COUNTS.items():
        _check_count(option, parameters.get(option), least)


def _check_count(option: str, count: Any, least: int) -> None:
    if count is None or (option == "concurrency" and count == "auto"):
        return
    try:
        check_count(option, count, least)
    except LLMBadRequest as error:
        raise LLMEvaluationError(str(error)) from None
