"""Correct use of the public API. `test_typing.py` runs mypy and pyright on this file; nothing runs it."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Literal, assert_type

import pandas as pd
from pydantic import BaseModel
from typing_extensions import Unpack

from llmkit import (
    AsyncChatStream,
    AsyncValueStream,
    ChatOptions,
    ChatStream,
    Conversation,
    LLMConstraints,
    LLMProfile,
    LLMResponse,
    Message,
    ModelFacts,
    Route,
    RoutePlan,
    Session,
    StreamPiece,
    ValueStream,
    load_settings,
)
from llmkit.dataframes import UsageFrame
from llmkit.evals import (
    AsyncBoundModel,
    BoundModel,
    Budget,
    EvalReport,
    Sample,
    Score,
    Task,
    Variant,
    field_match,
)
from llmkit.pydanticai import PydanticAiLiteLLMModel
from llmkit.testing import OllamaServer, Reply


class City(BaseModel):
    name: str
    people: int


def use_sync(s: Session, frame: pd.DataFrame) -> None:
    assert_type(s.chat("Hi"), LLMResponse)
    s.chat([Message(role="user", content="Hi"), {"role": "user", "content": "Hi"}], system="Be brief.", stop="END")
    s.chat("Hi", route="ollama/llama3.2", profile="fast", temperature=0, seed=1, timeout_s=3, use_cache=False)
    s.chat("Hi", route=Route.parse("ollama/llama3.2"), profile=LLMProfile.FAST, constraints=LLMConstraints())
    s.chat("Hi", images=[Path("a.png"), b"..."], files="b.pdf", metadata={"a": 1}, stage="try", idempotency_key="k")
    assert_type(s.explain(images="a.png"), RoutePlan)
    assert_type(s.extract(City, "Rome", reasks=2, examples=[("Bern", City(name="Bern", people=1))]), City)
    assert_type(s.extract(list[str], "Rome"), list[str])
    stream = s.stream("Hi", temperature=0)
    assert_type(stream, ChatStream)
    assert_type(list(stream), list[str])
    assert_type(stream.finish(), LLMResponse)
    assert_type(next(stream.pieces()), StreamPiece)
    assert_type(s.stream(City, "Rome", reasks=2), ValueStream[City])
    assert_type(list(s.stream(list[str], "Rome")), list[list[str]])
    assert_type(s.stream(City, "Rome").finish(), City)
    s.stream(City | None, "Rome", reasks=2).finish()
    s.stream(City | None, images="a.png").finish()
    s.stream(Literal["a", "b"], "Rome", reasks=2).finish()
    assert_type(s.map(City, frame["text"], name="cities", concurrency=4, progress=False), pd.DataFrame)
    s.map("Say {text}", ["a"], template="{text}", temperature=0)
    talk = s.conversation(system="Be brief.", temperature=0)
    assert_type(talk, Conversation)
    assert_type(talk.say("Hi", temperature=1), LLMResponse)
    assert_type(talk.stream("Hi", temperature=1), ChatStream)
    assert_type(s.runs(status="FAILED", since=datetime.now(UTC), limit=3), pd.DataFrame)
    assert_type(s.usage(), UsageFrame)
    assert_type(s.facts("ollama/llama3.2"), ModelFacts)
    assert_type(s.model("ollama/llama3.2", parameters={"temperature": 0}), PydanticAiLiteLLMModel)


async def use_async(s: Session, frame: pd.DataFrame) -> None:
    assert_type(await s.achat("Hi", temperature=0), LLMResponse)
    assert_type(await s.aextract(City, "Rome", reasks=0), City)
    assert_type(await s.astream("Hi"), AsyncChatStream)
    assert_type([text async for text in s.astream("Hi")], list[str])
    async with s.astream(City, "Rome") as stream:
        assert_type(stream, AsyncValueStream[City])
        assert_type(await stream.finish(), City)
    assert_type(await s.amap(City, frame, template="{a}"), pd.DataFrame)
    assert_type(await s.aruns(limit=1), pd.DataFrame)


def score_length(output: object, sample: Sample) -> Score:
    return Score(float(len(str(output))))


def evaluate(s: Session) -> None:
    task = Task(
        name="cities",
        dataset=[Sample(input="Rome", target={"people": 1})],
        prompt="{input}",
        output_type=City,
        scorers=[field_match("people")],
    )
    report = s.evaluate(
        task, ["ollama/llama3.2"], name="first", epochs=2, budget=Budget(max_cost_usd=1), retry_failed="all"
    )
    assert_type(report, EvalReport)
    s.evaluate(task, Variant("ollama/llama3.2"), concurrency="auto", scorer_timeout_s=None)
    assert_type(s.score(task, {"a": "answers.csv"}, name="old", answer="said", strict=True), EvalReport)
    assert_type(report.summary(by="metadata.language"), pd.DataFrame)
    assert_type(s.report("first"), EvalReport)


def ask(s: Session, question: str, **options: Unpack[ChatOptions]) -> str:
    """Pass the options on from a function of your own, checked."""
    return s.chat(question, **options).text


def open_sessions() -> None:
    with OllamaServer([Reply("Hi")]) as server, Session("study", ollama_api_base=server.url) as s:
        assert_type(s.workspace, str)
    Session(settings=load_settings(), replay=Path("cassette.jsonl"))


def solve(sample: Sample, model: BoundModel) -> City:
    assert_type(model.chat("Hi", temperature=0, step="greet"), LLMResponse)
    assert_type(model.chat([{"role": "user", "content": "Hi"}], route="ollama/llama3.2"), LLMResponse)
    talk = model.conversation(system="Be brief.", seed=1)
    assert_type(talk.say("Hi", max_output_tokens=9), LLMResponse)
    model.agent(City, tools=[len], instructions="Be brief.").run_sync("Hi")
    return model.extract(City, str(sample.input), reasks=2, system="Be exact.")


async def solve_async(sample: Sample, model: AsyncBoundModel) -> list[str]:
    assert_type(await model.chat("Hi", stop=["END"]), LLMResponse)
    assert_type(await model.conversation().say("Hi"), LLMResponse)
    assert_type(await model.extract(City, str(sample.input)), City)
    return await model.extract(list[str], "Hi", examples=[("a", ["a"])])


def use_solve() -> None:
    Task("sync", [Sample("x")], solve=solve)
    Task("async", [Sample("x")], solve=solve_async, version="2", parameters={"temperature": 0})
    Task("untyped", [Sample("x")], solve=lambda sample, model: model.chat("Hi").text)
    Task("text", [Sample("x")], "{input}", str)
    Task("list", [Sample("x")], "{input}", list[int])
