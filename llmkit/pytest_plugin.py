"""A pytest fixture that runs an evaluation and fails the test when it does not hold what was asked.

Switch it on in `conftest.py` with `pytest_plugins = ["llmkit.pytest_plugin"]`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import pytest

if TYPE_CHECKING:
    from llmkit.evals import EvalReport, Task, Variant
    from llmkit.evals.gate import GateReport, GateRules

__all__ = ["assert_evaluation"]

AssertEvaluation: TypeAlias = "Callable[..., EvalReport]"
RUN, BASELINE = "run", "baseline"


@pytest.fixture
def assert_evaluation(tmp_path: Path) -> Iterator[AssertEvaluation]:
    """A function `(task, routes, rules, *, baseline=None, **options)` that returns the report.

    It runs the task (a `Task`, or the path of a task file with one) over the routes in a new store of this test, with
    the settings of the environment, and checks the run by the `GateRules`; `baseline` is a file that `report.export` or
    `llmkit eval export` wrote. `**options` are those of `llmkit.evals.evaluate`. What does not hold is an
    `AssertionError` with the numbers.
    """
    with ExitStack() as open_sessions:

        def check(
            task: Task | str | Path,
            routes: Sequence[str | Variant],
            rules: GateRules,
            *,
            baseline: str | Path | None = None,
            **options: Any,
        ) -> EvalReport:
            from llmkit.session import Session

            # Opened here, so that the test has set its environment by now.
            session = open_sessions.enter_context(Session(database_url=f"sqlite:///{tmp_path / 'evaluation.db'}"))
            report = session.evaluate(_task(task), routes, name=RUN, **{"progress": False} | options)
            other = None if baseline is None else session.import_run(baseline, name=BASELINE)
            _require(_gate(report, rules, other))
            return report

        yield check


def _task(given: Task | str | Path) -> Task:
    from llmkit.evals import load_tasks
    from llmkit.evals.task import Task

    if isinstance(given, Task):
        return given
    task, *others = load_tasks(given)
    if others:
        raise ValueError(f"{given} has several tasks; pass one of llmkit.evals.load_tasks(...)")
    return task


def _gate(report: EvalReport, rules: GateRules, baseline: EvalReport | None) -> GateReport:
    from llmkit.evals.gate import check_gate, matched_routes

    pairs = () if baseline is None else matched_routes(report, baseline)
    return check_gate(report, rules, baseline=baseline, routes=pairs)


def _require(gate: GateReport) -> None:
    __tracebackhide__ = True
    failing = [f"{check.title}: {check.detail}" for check in gate.checks if not check.passed]
    if failing:
        raise AssertionError("The evaluation does not hold:\n" + "\n".join([*failing, *gate.notes]))
