"""A pytest fixture that runs an evaluation and fails the test when it does not hold what was asked.

Switch it on in `conftest.py` with `pytest_plugins = ["llmkit.pytest_plugin"]`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import pytest

from llmkit.errors import LLMError

if TYPE_CHECKING:
    from llmkit.evals import EvalReport, Task, Variant
    from llmkit.evals.ci.gate import GateReport, GateRules
    from llmkit.session import Session

__all__ = ["assert_evaluation"]

AssertEvaluation: TypeAlias = "Callable[..., EvalReport]"


@pytest.fixture
def assert_evaluation(tmp_path: Path) -> Iterator[AssertEvaluation]:
    """Return a function `(task, routes, rules, *, baseline=None, replay=None, **options)` that returns the report.

    It runs the task (a `Task`, or the path of a task file with one) over the routes in a new store of this test, with
    the settings of the environment, and checks the run by the `GateRules`. What does not hold is an `AssertionError`
    with the numbers, and with what failed.

    `baseline` is a file that `report.export` or `llmkit eval export` wrote. `replay` is one that `llmkit cassette
    record` wrote: then answers come from it, and nothing is sent. `**options` are those of `llmkit.evals.evaluate`.
    Rules that check nothing, and a baseline that cannot be read, are an `LLMEvaluationError` before anything is sent.
    """
    with ExitStack() as open_sessions:

        def check(
            task: Task | str | Path,
            routes: Sequence[str | Variant],
            rules: GateRules,
            *,
            baseline: str | Path | None = None,
            replay: str | Path | None = None,
            **options: Any,
        ) -> EvalReport:
            __tracebackhide__ = True
            from llmkit.session import Session

            try:
                # Opened here, so that the test has set its environment by now.
                store = f"sqlite:///{tmp_path / 'evaluation.db'}"
                session = open_sessions.enter_context(Session(database_url=store, replay=replay))
                return _check_run(session, _task(task), routes, rules, baseline, options)
            except (LLMError, AssertionError) as error:
                # Where it was raised is no help to who reads of a test: its own line and the message are.
                raise error.with_traceback(None) from None

        yield check


def _check_run(
    session: Session,
    task: Task,
    routes: Sequence[str | Variant],
    rules: GateRules,
    baseline: str | Path | None,
    options: Mapping[str, Any],
) -> EvalReport:
    from llmkit.evals.ci.gate import require_rules

    require_rules(rules, is_compared=baseline is not None)
    other = None if baseline is None else session.import_run(baseline, name=f"baseline {Path(baseline).stem}")
    report = session.evaluate(task, routes, **{"progress": False, **options})
    _require(_gate(report, rules, other), report)
    return report


def _task(given: Task | str | Path) -> Task:
    from llmkit.evals import load_tasks
    from llmkit.evals.tasks.task import Task

    if isinstance(given, Task):
        return given
    task, *others = load_tasks(given)
    if others:
        raise ValueError(f"{given} has several tasks; pass one of llmkit.evals.load_tasks(...)")
    return task


def _gate(report: EvalReport, rules: GateRules, baseline: EvalReport | None) -> GateReport:
    from llmkit.evals.ci.gate import check_gate, match_variants

    pairs = () if baseline is None else match_variants(report, baseline)
    return check_gate(report, rules, baseline=baseline, variants=pairs)


def _require(gate: GateReport, report: EvalReport) -> None:
    failing = [f"{check.title}: {check.detail}" for check in gate.checks if not check.passed]
    if failing:
        raise AssertionError("\n".join(["The evaluation does not hold:", *failing, *_failures(report), *gate.notes]))


def _failures(report: EvalReport) -> Iterator[str]:
    """List the reasons for missing scores, each with its first message."""
    missing = [(each.route, "without an answer", each.error_code, each.error_message) for each in report.results]
    crashed = [
        (each.route, "not scored", name, text) for each in report.results for name, text in each.scorer_errors.items()
    ]
    reasons = [(route, what, cause, text) for route, what, cause, text in (*missing, *crashed) if cause is not None]
    counts = Counter(reason[:3] for reason in reasons)
    for (route, what, cause), count in counts.items():
        text = next(reason[3] for reason in reasons if reason[:3] == (route, what, cause))
        yield f"{route}: {count} of {len(report.of(route))} {what} ({cause}): {text}"
