"""Runs for workers to share: a task of any number of samples, an executor of one job, and counts at the server."""

from __future__ import annotations

from concurrent.futures import Executor, Future
from typing import Any

from pydantic import BaseModel

from llmkit.evals import EvalReport, Sample, Task, field_match
from llmkit.testing import OllamaServer

ROUTE = "ollama/llama3.2"


class Parcel(BaseModel):
    name: str


def long_input(_output: Any, sample: Sample) -> float:
    return float(len(sample.input))


def make_task(samples: int = 24, **changes: Any) -> Task:
    given: dict[str, Any] = {
        "name": "parcels",
        "dataset": [Sample(f"Parcel {number} came.", {"name": "x"}, id=f"s{number}") for number in range(samples)],
        "prompt": "Which parcel? {input}",
        "output_type": Parcel,
        "scorers": [field_match("name"), long_input],
    }
    return Task(**given | changes)


def count_chats(server: OllamaServer) -> int:
    return sum(request.path.endswith("/api/chat") for request in server.requests)


def describe(report: EvalReport) -> list[tuple[Any, ...]]:
    return [
        (each.sample_id, each.status, each.scores, each.input_tokens, each.output_tokens) for each in report.results
    ]


class OneJob(Executor):
    """Runs a job at once, in the calling thread, after a change of the world."""

    max_workers = 1

    def __init__(self, change: Any = lambda parcel: parcel) -> None:
        self.change = change
        self.parcels: list[bytes] = []

    def submit(self, function: Any, /, *arguments: Any, **_options: Any) -> Future[Any]:
        self.parcels.append(arguments[0])
        future: Future[Any] = Future()
        future.set_result(function(self.change(arguments[0])))
        return future
