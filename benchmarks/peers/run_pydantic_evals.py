"""The same evaluation by pydantic-evals with an agent of pydantic-ai.

    python run_pydantic_evals.py URL FOLDER SAMPLES CONCURRENCY

It has no store: a line of JSON is written as soon as a case has its result, in the hook meant for that.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel
from pydantic_ai import Agent, NativeOutput
from pydantic_ai.models.ollama import OllamaModel
from pydantic_ai.providers.ollama import OllamaProvider
from pydantic_evals import Case, Dataset
from pydantic_evals.evaluators import EqualsExpected
from pydantic_evals.lifecycle import CaseLifecycle


class Sentiment(BaseModel):
    """A verdict."""

    label: Literal["positive", "negative"]


def main(url: str, folder: str, samples: int, concurrency: int) -> dict[str, dict[str, float]]:
    model = OllamaModel("stand-in", provider=OllamaProvider(base_url=f"{url}/v1"))
    agent = Agent(model, output_type=NativeOutput(Sentiment))
    kept = Path(folder, "results.jsonl").open("w", encoding="utf-8")  # noqa: SIM115

    class Kept(CaseLifecycle[str, Sentiment, Any]):
        async def teardown(self, result: Any) -> None:
            kept.write(json.dumps({"input": result.inputs, "output": result.output.label}) + "\n")
            kept.flush()

    async def classify(text: str) -> Sentiment:
        question = f"Is the review positive or negative? Answer as JSON.\n{text}"
        return (await agent.run(question)).output

    cases = [
        Case(name=str(number), inputs=f"Parcel {number} came in time.", expected_output=Sentiment(label="positive"))
        for number in range(samples)
    ]
    dataset = Dataset(name="peers", cases=cases, evaluators=[EqualsExpected()])
    Dataset(name="warm-up", cases=cases[:1]).evaluate_sync(classify, progress=False)
    wall_s, cpu_s = time.perf_counter(), time.process_time()
    report = dataset.evaluate_sync(classify, max_concurrency=concurrency, progress=False, lifecycle=Kept)
    figures = {"wall_s": time.perf_counter() - wall_s, "cpu_s": time.process_time() - cpu_s, "samples": samples}
    assert report.averages().assertions == 1.0
    assert len(report.cases) == samples
    return {"run": figures}


if __name__ == "__main__":
    print(json.dumps(main(*sys.argv[1:3], *map(int, sys.argv[3:]))))
