"""A scorer may do anything: it is an error of that scorer on that sample, and nothing else changes."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from pydantic import BaseModel

from llmkit import Session
from llmkit.errors import LLMBudgetExhausted, LLMEvaluationError, LLMStoreError
from llmkit.evals import EvalReport, Sample, Score, Task, Variant
from llmkit.evals.report.frames import build_sample_row
from llmkit.evals.scorers import as_scorer
from llmkit.testing import OllamaServer
from tests.support.run_values import an_eval_result


class Answer(BaseModel):
    text: str


class Unprintable(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no message")


class UnprintableForGood(Exception):
    def __str__(self) -> str:
        raise GeneratorExit


class Uncopyable:
    """A scorer that raises where its name and options are looked up, and not in its call."""

    name = "bad"

    @property
    def timeout_s(self) -> float:
        raise asyncio.CancelledError

    def __call__(self, _output: Any, _sample: Sample) -> float:
        return 1.0


def bad_score(value: Any) -> Callable[[Any, Sample], Any]:
    def bad(_output: Any, _sample: Sample) -> Any:
        return value

    return bad


def raising(error: BaseException) -> Callable[[Any, Sample], Any]:
    def bad(_output: Any, _sample: Sample) -> Any:
        raise error

    return bad


def raising_later(error: BaseException) -> Callable[[Any, Sample], Any]:
    async def bad(_output: Any, _sample: Sample) -> Any:
        raise error

    return bad


def recurse(output: Any, sample: Sample) -> Any:
    return recurse(output, sample)


recurse.__name__ = "bad"


async def cancel_itself(_output: Any, _sample: Sample) -> float:
    task = asyncio.current_task()
    assert task is not None
    task.cancel()
    return 1.0


cancel_itself.__name__ = "bad"


async def await_cancelled(_output: Any, _sample: Sample) -> float:
    future = asyncio.get_running_loop().create_future()
    future.cancel()
    return float(await future)


await_cancelled.__name__ = "bad"


class Explosive:
    """Something that is called for its value, and raises."""

    def __float__(self) -> float:
        raise asyncio.CancelledError


ERRORS = {
    "cancelled": (raising(asyncio.CancelledError()), "RuntimeError: CancelledError"),
    "cancelled later": (raising_later(asyncio.CancelledError()), "RuntimeError: CancelledError"),
    "cancels itself": (cancel_itself, "RuntimeError: CancelledError"),
    "awaits what was cancelled": (await_cancelled, "RuntimeError: CancelledError"),
    "cancelled in its value": (bad_score(Explosive()), "RuntimeError: CancelledError"),
    "generator exit": (raising(GeneratorExit("x")), "RuntimeError: GeneratorExit: x"),
    "generator exit later": (raising_later(GeneratorExit("x")), "RuntimeError: GeneratorExit: x"),
    "system exit later": (raising_later(SystemExit(3)), "RuntimeError: SystemExit: 3"),
    "group": (raising_later(BaseExceptionGroup("g", [GeneratorExit()])), "RuntimeError: BaseExceptionGroup: g"),
    "group of errors": (
        raising_later(ExceptionGroup("g", [ValueError("why")])),
        "ExceptionGroup: g (1 sub-exception): ValueError: why",
    ),
    "unprintable": (raising(Unprintable()), "Unprintable: (its message cannot be shown)"),
    "unprintable for good": (raising_later(UnprintableForGood()), "UnprintableForGood: (its message cannot be shown)"),
    "surrogate in its message": (raising(ValueError("a\ud800")), "ValueError: a\\ud800"),
    "recursion": (recurse, "RecursionError"),
    "stop iteration": (raising(StopIteration("x")), "RuntimeError"),
    "store error of another store": (raising(LLMStoreError("x")), "LLMStoreError: x"),
    "budget error of another run": (raising(LLMBudgetExhausted("x")), "LLMBudgetExhausted: x"),
    "NaN": (bad_score(float("nan")), "ValueError: a score must be a finite number; got nan"),
    "huge number": (bad_score(10**400), "OverflowError"),
    "huge string": (bad_score("x" * 10_000_000), "TypeError: a score must be a number"),
    "parts that are none": (bad_score(Score(1.0, parts=[1])), "AttributeError"),  # type: ignore[arg-type]
    "too many parts": (
        bad_score(Score(1.0, parts={str(number): 1.0 for number in range(2_000)})),
        "ValueError: a score has at most 1000 parts",
    ),
}


def good(_output: Any, _sample: Sample) -> float:
    return 0.5


@pytest.fixture(scope="module")
def session(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("scorers")
    settings = {"database_url": f"sqlite:///{folder}/llm.db", "cache_dir": f"{folder}/cache"}
    with OllamaServer('{"text": "a"}') as server, Session("w", ollama_api_base=server.url, **settings) as opened:
        yield opened


def evaluate(session: Session, name: str, scorers: list[Any]) -> EvalReport:
    task = Task(name="t", dataset=[Sample("a"), Sample("b")], prompt="{input}", output_type=Answer, scorers=scorers)
    return session.evaluate(task, ["ollama/llama3.2"], name=name, progress=False, warm_up=False)


@pytest.mark.parametrize("name", ERRORS)
def test_it_is_an_error_of_that_scorer(session: Session, name: str) -> None:
    scorer, message = ERRORS[name]
    evaluate(session, name, [scorer, good])
    report = session.report(name)
    assert report.counts["SCORER_FAILED"] == 2
    for result in report.results:
        assert result.scores == {"good": 0.5}
        assert result.scorer_errors["bad"].startswith(message)
        assert len(result.scorer_errors["bad"]) <= 500
    assert len(report.samples()) == 2


def test_a_scorer_whose_options_raise_is_a_scorer_error(session: Session) -> None:
    report = evaluate(session, "options", [Uncopyable(), good])
    assert report.counts["SCORER_FAILED"] == 2


def test_a_lone_surrogate_in_a_score_is_escaped(session: Session) -> None:
    score = Score(1.0, "why \ud800" + "x" * 10_000_000, {"part\udc00": 0.5, "y" * 10_000: 0.5})
    evaluate(session, "surrogate", [bad_score(score)])
    frame = session.report("surrogate").samples()
    assert frame["score_bad.part\\udc00"].tolist() == [0.5, 0.5]
    assert frame["score_details"][0].startswith('{"bad": "why \\\\ud800xxx')
    assert len(frame["score_details"][0]) < 1_100
    assert max(map(len, frame.columns)) < 300


def test_a_lone_surrogate_that_version_0_1_0_stored_is_shown() -> None:
    from uuid import uuid4

    old = an_eval_result(uuid4(), score_details={"bad": "why \ud800"}, scores={"bad.\udc00": 1.0})
    row = build_sample_row(old, {})
    assert (row["score_details"], row["score_bad.\\udc00"]) == ('{"bad": "why \\ud800"}', 1.0)


class Named:
    def __init__(self, name: str | None) -> None:
        self._name = name

    @property
    def name(self) -> str:
        if self._name is None:
            raise RuntimeError("no name")
        return self._name

    def __call__(self, _output: Any, _sample: Sample) -> float:
        return 1.0


@pytest.mark.parametrize("name", ["a\x1b[31m", "a\ud800", "a\0", "\u202eb"])
def test_a_task_or_label_that_cannot_be_shown_is_refused(session: Session, name: str) -> None:
    options: dict[str, Any] = {"dataset": [Sample("a")], "prompt": "{input}", "output_type": Answer, "scorers": [good]}
    with pytest.raises(LLMEvaluationError, match="cannot be printed"):
        Task(name=name, **options)
    with pytest.raises(LLMEvaluationError, match="cannot be printed"):
        session.evaluate(Task(name="t", **options), [Variant("ollama/llama3.2", label=name)], progress=False)


@pytest.mark.parametrize("name", ["", "a\x1b[31m", "a\ud800", "a\nb", None])
def test_a_name_that_cannot_be_shown_is_refused(name: str | None) -> None:
    with pytest.raises(LLMEvaluationError, match="name"):
        as_scorer(Named(name))
