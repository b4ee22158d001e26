"""A pytest fixture that runs an evaluation, and fails the test if the result breaks a rule.

Enable it in `conftest.py`: `pytest_plugins = ["llmkit.pytest_plugin"]`.
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
    from llmkit.evals.ci.gate import GateRules
    from llmkit.session import Session

__all__ = ["assert_evaluation"]

AssertEvaluation: TypeAlias = "Callable[..., EvalReport]"


@pytest.fixture
def assert_evaluation(tmp_path: Path) -> Iterator[AssertEvaluation]:
    """Return a function `(task, routes, rules, *, baseline=None, replay=None, **options)` that returns the report.

    The function runs the task (a `Task`, or the path of a task file with one task) over the routes, in a new store and
    with the settings of the environment, and checks the result by the `GateRules`. A broken rule is an
    `AssertionError` with the numbers and the failures.

    `baseline` is a file written by `report.export` or `llmkit eval export`. `replay` is a file written by `llmkit
    cassette record`, which then answers, and nothing is sent. `**options` are those of `llmkit.evals.evaluate`. Rules
    that check nothing, or an unreadable baseline, are an `LLMEvaluationError` before anything is sent.
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
                # Opened here, because the fixture is set up before the test changes its environment.
                store = f"sqlite:///{tmp_path / 'evaluation.db'}"
                session = open_sessions.enter_context(Session(database_url=store, replay=replay))
                return _check_run(session, _read_task(task), routes, rules, baseline, options)
            except (LLMError, AssertionError) as error:
                # The frames inside llmkit do not help the reader of a failed test; its line and the message do.
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
    from llmkit.evals.ci.gate import check_gate, match_variants, require_rules

    require_rules(rules, is_compared=baseline is not None)
    earlier = None if baseline is None else session.import_run(baseline, name=f"baseline {Path(baseline).stem}")
    report = session.evaluate(task, routes, **{"progress": False, **options})
    pairs = () if earlier is None else match_variants(report, earlier)
    gate = check_gate(report, rules, baseline=earlier, variants=pairs)
    broken = [f"{check.title}: {check.detail}" for check in gate.checks if not check.passed]
    if broken:
        raise AssertionError(
            "\n".join(["The evaluation breaks a rule:", *broken, *_list_failures(report), *gate.notes])
        )
    return report


def _read_task(task: Task | str | Path) -> Task:
    from llmkit.evals import Task, load_tasks

    if isinstance(task, Task):
        return task
    first, *others = load_tasks(task)
    if others:
        raise ValueError(f"{task} has several tasks; pass one of llmkit.evals.load_tasks(...)")
    return first


def _list_failures(report: EvalReport) -> Iterator[str]:
    """Yield the reasons for missing scores, each with its count and first message."""
    missing = [(each.route, "without an answer", each.error_code, each.error_message) for each in report.results]
    crashed = [
        (each.route, "not scored", name, text) for each in report.results for name, text in each.scorer_errors.items()
    ]
    reasons = [(route, what, cause, text) for route, what, cause, text in (*missing, *crashed) if cause is not None]
    counts = Counter(reason[:3] for reason in reasons)
    for (route, what, cause), count in counts.items():
        text = next(reason[3] for reason in reasons if reason[:3] == (route, what, cause))
        yield f"{route}: {count} of {len(report.of(route))} {what} ({cause}): {text}"
