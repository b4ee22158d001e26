"""The user's code that cancels every task of the event loop: at most its own sample fails, and the run goes on."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Any

import pytest
from pydantic import BaseModel, field_validator

from llmkit import Session
from llmkit.evals import EvalReport, Sample, Task
from llmkit.testing import OllamaServer


class Answer(BaseModel):
    text: str


def cancel_all() -> None:
    for task in asyncio.all_tasks():
        task.cancel()


class CancellingAnswer(BaseModel):
    text: str

    @field_validator("text")
    @classmethod
    def cancel(cls, text: str) -> str:
        cancel_all()
        return text


class CancellingError(Exception):
    def __str__(self) -> str:
        cancel_all()
        return "shown"


async def all_at_once(_output: Any, sample: Sample) -> float:
    if sample.input == "b":
        cancel_all()
    return 1.0


async def all_later(_output: Any, sample: Sample) -> float:
    if sample.input == "b":
        asyncio.get_running_loop().call_soon(cancel_all)
        await asyncio.sleep(5)
    return 1.0


async def all_in_a_child(_output: Any, sample: Sample) -> float:
    async def cancel() -> None:
        cancel_all()

    if sample.input == "b":
        await asyncio.create_task(cancel())
    return 1.0


async def all_by_gather(_output: Any, sample: Sample) -> float:
    """Wait for the session's tasks, so that the end of the scorer's time would cancel them too."""
    if sample.input == "b":
        await asyncio.gather(*(asyncio.all_tasks() - {asyncio.current_task()}))
    return 1.0


async def shut_down(_output: Any, sample: Sample) -> float:
    if sample.input == "b":
        await asyncio.get_running_loop().shutdown_default_executor()
    return 1.0


async def close_generators(_output: Any, sample: Sample) -> float:
    if sample.input == "b":
        await asyncio.get_running_loop().shutdown_asyncgens()
    return 1.0


async def unprintable(_output: Any, sample: Sample) -> float:
    if sample.input == "b":
        raise CancellingError
    return 1.0


class CancellingOption:
    name = "option"

    @property
    def timeout_s(self) -> float:
        cancel_all()
        return 5.0

    def __call__(self, _output: Any, _sample: Sample) -> float:
        return 1.0


async def with_a_timeout(_output: Any, sample: Sample) -> float:
    """Use cancellation as it is meant."""
    try:
        async with asyncio.timeout(0.01 if sample.input == "b" else 10):
            await asyncio.sleep(5 if sample.input == "b" else 0)
    except TimeoutError:
        return 0.0
    return 1.0


async def in_the_middle(_output: Any, _sample: Sample) -> float:
    await asyncio.sleep(0.02)
    return 1.0


async def solve_cancelling(sample: Sample, model: Any) -> str:
    answer = await model.chat(str(sample.input))
    if sample.input == "b":
        cancel_all()
        await asyncio.sleep(0)
    return str(answer.text)


def prompt_cancelling(sample: Sample) -> str:
    with suppress(RuntimeError):  # the prompts of an estimate are written outside of the loop
        cancel_all()
    return str(sample.input)


def evaluate(session: Session, name: str, **task: Any) -> EvalReport:
    if "solve" not in task:
        task = {"prompt": "{input}", "output_type": Answer, **task}
    task["scorers"] = [*task.get("scorers", ()), in_the_middle]
    given = Task(name="t", dataset=[Sample(each) for each in "abcde"], **task)
    return session.evaluate(
        given, ["ollama/llama3.2"], name=name, progress=False, warm_up=False, concurrency=3, scorer_timeout_s=0.3
    )


@pytest.fixture(scope="module")
def session(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("cancelling")
    settings = {"database_url": f"sqlite:///{folder}/llm.db", "cache_dir": f"{folder}/cache"}
    with OllamaServer('{"text": "a"}') as server, Session("w", ollama_api_base=server.url, **settings) as opened:
        yield opened


@pytest.mark.slow
@pytest.mark.parametrize(
    ("scorer", "message"),
    [
        (all_at_once, "RuntimeError: CancelledError: the scorer cancelled itself"),
        (all_later, "RuntimeError: CancelledError: the scorer cancelled itself"),
        (all_in_a_child, "RuntimeError: CancelledError: the scorer cancelled itself"),
        (all_by_gather, "TimeoutError: no score within 0.3 s"),
        (shut_down, "RuntimeError: this event loop is the session's"),
        (close_generators, "RuntimeError: this event loop is the session's"),
        (unprintable, "CancellingError: shown"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_a_scorer_that_cancels_everything_fails_alone(session: Session, scorer: Any, message: str) -> None:
    report = evaluate(session, scorer.__name__, scorers=[scorer])
    assert report.counts["SUCCEEDED"] == 4
    failed = next(result for result in report.results if result.scorer_errors)
    assert failed.scorer_errors[scorer.__name__].startswith(message)
    assert failed.scores == {"in_the_middle": 1.0}
    assert session.chat("the next call").text


def test_a_solve_function_that_cancels_everything_fails_alone(session: Session) -> None:
    report = evaluate(session, "solve", solve=solve_cancelling)
    assert (report.counts["SUCCEEDED"], report.counts["FAILED"]) == (4, 1)
    assert next(result.error_message for result in report.results if result.error_message) == (
        "solve_cancelling failed: RuntimeError: CancelledError: the function cancelled itself"
    )


@pytest.mark.parametrize(
    "task",
    [{"output_type": CancellingAnswer}, {"scorers": [CancellingOption()]}, {"prompt": prompt_cancelling}],
    ids=["validator", "option", "prompt"],
)
def test_sync_code_in_the_loop_cancels_nothing(session: Session, task: dict[str, Any]) -> None:
    report = evaluate(session, f"sync {sorted(task)}", **task)
    assert report.counts["SUCCEEDED"] == 5


def test_a_scorer_may_use_timeouts(session: Session) -> None:
    report = evaluate(session, "timeouts", scorers=[with_a_timeout])
    assert sorted(result.scores["with_a_timeout"] for result in report.results) == [0, 1, 1, 1, 1]
