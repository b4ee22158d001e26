"""Mistakes that type checkers must report, one in each marked line. `test_typing.py` reads the marks."""

from __future__ import annotations

from llmkit import Session
from llmkit.evals import AsyncBoundModel, BoundModel, Sample, Task


def misuse(s: Session, task: Task) -> None:
    s.chat("Hi", temprature=1)  # error
    s.chat("Hi", temperature="hot")  # error
    s.chat(5)  # error
    s.explain(tempature=1)  # error
    s.extract(str, "Hi", retries=2)  # error
    s.stream("Hi", temprature=1)  # error
    s.stream(str, "Hi", retries=2)  # error
    s.stream("Hi", reasks=2)  # error
    s.stream([{"role": "user", "content": "Hi"}], examples=[])  # error
    s.map(str, ["Hi"], idempotency_key="k")  # error
    s.conversation(idempotency_key="k")  # error
    s.conversation().say("Hi", system="Be brief.")  # error
    s.model(temperature=1)  # error
    s.evaluate(task, ["ollama/llama3.2"], epoch=2)  # error
    s.evaluate(task, ["ollama/llama3.2"], epochs="2")  # error
    s.runs(state="FAILED")  # error


async def misuse_async(s: Session, task: Task) -> None:
    await s.achat("Hi", temprature=1)  # error
    await s.aextract(str, "Hi", retries=2)  # error
    await s.astream("Hi", reasks=2)  # error
    await s.amap(str, ["Hi"], concurency=1)  # error
    await s.aevaluate(task, ["ollama/llama3.2"], epoch=2)  # error


def misuse_solve(sample: Sample, model: BoundModel) -> str:
    model.chat("Hi", temprature=1)  # error
    model.chat("Hi", idempotency_key="k")  # error
    model.extract(str, "Hi", retries=2)  # error
    return model.chat("Hi")  # error


async def misuse_async_solve(sample: Sample, model: AsyncBoundModel) -> str:
    model.conversation().say(5)  # error
    return model.chat("Hi").text  # error
