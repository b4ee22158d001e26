"""A store in memory and an extractor that follows a script, for tests of the runner."""

import asyncio
import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import datetime
from typing import Any, Literal
from uuid import UUID, uuid4

from pydantic import BaseModel

from llmkit.errors import LLMInvalidOutput
from llmkit.eval_ports import (
    CallKey,
    CallUnderWay,
    DigestSeen,
    EvalOutcome,
    EvalResult,
    EvalRun,
    EvalSpending,
    HostDigest,
    HostUse,
    RecordedCall,
    ResultCount,
)
from llmkit.evals import Sample, Task, field_match
from llmkit.ports import StoredRun
from llmkit.providers import BUILT_IN, PROVIDERS, explain_unknown_endpoint
from llmkit.providers.model_facts import ModelFacts
from llmkit.pydanticai.extraction import Extraction
from llmkit.settings import load_settings
from llmkit.testing.in_memory import count_outcomes, get_outcome
from llmkit.types import (
    Attempt,
    AttemptStatus,
    LLMResponse,
    PlanEntry,
    Route,
    RoutePlan,
    RunStatus,
    ServedFrom,
    TokenUsage,
    utc_now,
)

USAGE = TokenUsage(input_tokens=10, output_tokens=4, total_tokens=14)


class Sentiment(BaseModel):
    label: Literal["positive", "negative"]


SAMPLES = tuple(
    Sample(text, target, id=f"s{number}")
    for number, (text, target) in enumerate(
        [("good", "positive"), ("bad", "negative"), ("fine", "positive"), ("awful", "negative")]
    )
)


def sentiment_task(**changes: Any) -> Task:
    parts: dict[str, Any] = {
        "name": "sentiment",
        "dataset": SAMPLES,
        "prompt": "Text: {input}",
        "output_type": Sentiment,
        "scorers": [field_match("label")],
    }
    return Task(**parts | changes)


class MemoryStore:
    """An `EvalStore` in memory."""

    def __init__(self) -> None:
        self.runs: dict[tuple[str, str], EvalRun] = {}
        self.rows: dict[tuple[UUID, str, str, int], EvalResult] = {}
        self.shared_calls: dict[UUID, bool] = {}
        self.saves = 0
        self.updates = 0
        self.names: list[str] = []
        self.doubtful: tuple[StoredRun, ...] = ()
        self.begun: list[CallUnderWay] = []
        self.prefixes: list[str] = []
        self.before_save: Callable[[EvalResult], None] = lambda result: None
        self.leases = None

    async def open_run(self, run: EvalRun) -> EvalRun:
        plain = replace(run, spec=json.loads(json.dumps(run.spec)))
        return self.runs.setdefault((run.workspace_id, run.name), plain)

    async def get_run(self, workspace_id: str, name: str) -> EvalRun | None:
        return self.runs.get((workspace_id, name))

    async def update_run(self, run: EvalRun) -> None:
        self.updates += 1
        self.runs[run.workspace_id, run.name] = replace(run, spec=json.loads(json.dumps(run.spec)))

    async def list_called_names(self, workspace_id: str, pipeline_run_id_prefix: str) -> list[str]:
        return self.names

    async def list_runs(self, workspace_id: str) -> tuple[EvalRun, ...]:
        return tuple(run for run in self.runs.values() if run.workspace_id == workspace_id)

    async def save_result(self, result: EvalResult) -> None:
        await asyncio.sleep(0)
        self.before_save(result)
        self.saves += 1
        self.rows[(result.eval_run_id, result.sample_id, result.route, result.epoch)] = result

    async def list_results(self, eval_run_id: UUID) -> tuple[EvalResult, ...]:
        return tuple(row for key, row in sorted(self.rows.items(), key=str) if key[0] == eval_run_id)

    async def get_result(self, eval_run_id: UUID, sample_id: str, route: str, epoch: int) -> EvalResult | None:
        return self.rows.get((eval_run_id, sample_id, route, epoch))

    async def list_outcomes(self, eval_run_id: UUID) -> list[EvalOutcome]:
        return [get_outcome(row) for key, row in sorted(self.rows.items(), key=str) if key[0] == eval_run_id]

    async def note_shared_call(self, call_id: UUID, *, is_stopped: bool) -> None:
        self.shared_calls[call_id] = is_stopped

    async def is_call_stopped(self, call_id: UUID) -> bool | None:
        return self.shared_calls.get(call_id)

    async def list_call_keys(self, workspace_id: str, pipeline_run_id: str) -> list[CallKey]:
        return []

    async def count_results(self, eval_run_id: UUID, old_until_utc: datetime) -> list[ResultCount]:
        return count_outcomes((row for key, row in self.rows.items() if key[0] == eval_run_id), old_until_utc)

    async def list_calls_under_way(self, workspace_id: str, pipeline_run_id_prefix: str) -> list[CallUnderWay]:
        return self.begun

    async def list_calls_in_doubt(self, workspace_id: str, pipeline_run_id_prefix: str) -> tuple[StoredRun, ...]:
        self.prefixes.append(pipeline_run_id_prefix)
        return self.doubtful

    async def sum_spending(
        self, workspace_id: str, pipeline_run_id_prefix: str, owner: str | None = None
    ) -> tuple[EvalSpending, ...]:
        return ()

    async def list_digests(self, workspace_id: str, pipeline_run_id_prefix: str) -> tuple[DigestSeen, ...]:
        return ()

    async def list_hosts(self, workspace_id: str, pipeline_run_id_prefix: str) -> tuple[HostUse, ...]:
        return ()

    async def note_digests(self, eval_run_id: UUID, digests: Sequence[HostDigest]) -> None:
        return

    async def list_host_digests(self, eval_run_id: UUID) -> tuple[HostDigest, ...]:
        return ()

    async def list_calls(self, workspace_id: str, pipeline_run_id_prefix: str) -> tuple[RecordedCall, ...]:
        return ()


class FakeRouter:
    def __init__(self, *candidates: str) -> None:
        self.candidates = candidates

    def explain(self, request: Any) -> RoutePlan:
        entries = tuple(PlanEntry(route=Route.parse(text), reason="scripted") for text in self.candidates)
        return RoutePlan(policy="scripted", entries=entries)

    endpoints = BUILT_IN

    def facts(self, route: Route) -> ModelFacts:
        return ModelFacts()

    def check_endpoint(self, route: Route) -> None:
        if route.provider not in PROVIDERS:
            raise explain_unknown_endpoint(route.provider, PROVIDERS, load_settings())


class FakeService:
    """Only what the runner itself looks at."""

    settings = None

    def __init__(self, *candidates: str) -> None:
        self.router = FakeRouter(*(candidates or ("ollama/a", "gemini/b")))
        self.warmed: list[Any] = []

    async def chat(self, request: Any, context: Any = None) -> LLMResponse:
        """Only warm-ups come here; samples go to the extractor."""
        self.warmed.append((request, context))
        return response(request.route)


class Call(BaseModel, arbitrary_types_allowed=True):
    text: str
    route: Route | None
    key: str
    epoch: int
    options: dict[str, Any]


class FakeExtract:
    """Answers by the sample's text; `answer(call)` may return an output, an `Extraction`, or raise."""

    def __init__(self, answer: Callable[[Call], Any] | None = None) -> None:
        self.answer = answer or right
        self.calls: list[Call] = []
        self.done: dict[str, Any] = {}
        self.under_way = 0
        self.most_under_way = 0

    async def __call__(self, service: Any, output_type: type[Any], messages: Any, **options: Any) -> Extraction[Any]:
        call = Call(
            text=messages[-1].content,
            route=options["route"],
            key=options["idempotency_key"],
            epoch=options.get("epoch", 0),
            options=options,
        )
        self.calls.append(call)
        self.under_way += 1
        self.most_under_way = max(self.most_under_way, self.under_way)
        try:
            await asyncio.sleep(0)
            answer = self.answer(call)
            if asyncio.iscoroutine(answer):
                answer = await answer
        finally:
            self.under_way -= 1
        return answer if isinstance(answer, Extraction) else extraction(answer, call.route or Route.parse("ollama/a"))

    @property
    def counts(self) -> Counter[str]:
        return Counter(str(call.route) for call in self.calls)


def right(call: Call) -> Sentiment:
    good = any(word in call.text for word in ("good", "fine"))
    return Sentiment(label="positive" if good else "negative")


def response(
    route: Route, served_from: ServedFrom = ServedFrom.PROVIDER, latency_ms: float = 20.0, **changes: Any
) -> LLMResponse:
    attempts = (attempt(route),) if served_from is ServedFrom.PROVIDER else ()
    parts = {"text": "{}", "route": route, "usage": USAGE, "latency_ms": latency_ms, "attempts": attempts}
    return LLMResponse(served_from=served_from, **parts | changes)


def attempt(route: Route, status: AttemptStatus = AttemptStatus.SUCCEEDED) -> Attempt:
    return Attempt(route=route, number=1, status=status, started_at_utc=utc_now(), latency_ms=20.0, usage=USAGE)


def extraction(value: BaseModel, route: Route, *responses: LLMResponse, mode: str = "schema") -> Extraction[Any]:
    responses = responses or (response(route),)
    usage = TokenUsage.total(item.usage for item in responses)
    return Extraction(value, mode, len(responses) == 1, responses, usage, 20.0)  # type: ignore[arg-type]


def invalid(route: Route) -> LLMInvalidOutput:
    error = LLMInvalidOutput("label: not one of them", provider=route.provider, model=route.model)
    error.attempts = (attempt(route), attempt(route))
    return error


def stored_call(status: RunStatus = RunStatus.STARTED) -> StoredRun:
    now = utc_now()
    return StoredRun(uuid4(), "w", status, "0" * 64, 0, "host:1", now, now, None, now)


async def run(
    task: Task | None = None,
    routes: Any = ("ollama/a",),
    *,
    store: MemoryStore | None = None,
    extract: FakeExtract | None = None,
    service: FakeService | None = None,
    name: str | None = "run",
    **options: Any,
) -> Any:
    from llmkit.evals import evaluate

    return await evaluate(
        task or sentiment_task(),
        routes,
        service=service or FakeService(),  # type: ignore[arg-type]
        store=store or MemoryStore(),
        workspace_id="w",
        name=name,
        extract=extract or FakeExtract(),
        **{"progress": False} | options,
    )
