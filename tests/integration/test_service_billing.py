"""What was billed and what was served are two sums, and both reconcile with what the servers counted (spec 4.1)."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
from pydantic import BaseModel

from llmkit import LLMError, LLMInvalidOutput, Session
from llmkit.evals import Sample, Task, field_match
from llmkit.testing import Fault, GeminiServer, OllamaServer, Reply
from llmkit.testing.request_log import RecordedRequest
from llmkit.types import LLMConstraints
from tests.support.repositories import JournalHome


class City(BaseModel):
    name: str
    people: int


ROME = '{"name": "Rome", "people": 2800000}'
OLLAMA = "ollama/llama3.2"


class Provider:
    """Answers a question by what it says, and the same question differently when it comes again."""

    def __init__(self) -> None:
        self._seen: Counter[str] = Counter()

    def __call__(self, request: RecordedRequest) -> Reply | Fault:
        text = json.dumps(request.json)
        for word, answers in self._answers.items():
            if word in text:
                number = self._seen[word]
                self._seen[word] += 1
                return answers[min(number, len(answers) - 1)](number)
        return Reply("plain", input_tokens=7, output_tokens=3)

    _answers: dict[str, list[Callable[[int], Reply | Fault]]] = {  # noqa: RUF012
        "flaky": [lambda _: Fault.status(503), lambda _: Fault.reset(), lambda _: Reply("at last", output_tokens=5)],
        "ollama-is-down": [lambda _: Fault.status(503)],
        "all-are-down": [lambda _: Fault.status(500)],
        "repair": [lambda _: Reply("no json", output_tokens=11), lambda _: Reply(ROME, output_tokens=13)],
        "hopeless": [lambda n: Reply("never json", input_tokens=20 + n, output_tokens=2)],
        "Mood": [lambda _: Reply('{"name": "x", "people": 1}', input_tokens=4, output_tokens=9)],
        "cut": [lambda _: Fault.cut_at_limit()],
        "reasoning": [lambda _: Fault.reasoning_ate_limit(64)],
        "half": [lambda _: Fault.truncated(), lambda _: Reply("whole")],
        "uncounted": [lambda _: Reply("who knows", no_usage=True)],
    }


def _gemini(request: RecordedRequest) -> Reply | Fault:
    text = json.dumps(request.json)
    if "all-are-down" in text:
        return Fault.status(503)
    if "blocked" in text:
        return Fault.safety_block()
    return Reply("from gemini", input_tokens=9, output_tokens=6, cached_tokens=4, reasoning_tokens=2)


def _use(session: Session) -> Counter[str]:
    """Everything that a day brings; where each answer came from."""
    served: Counter[str] = Counter()

    def chat(text: str, **fields: object) -> None:
        try:
            served[str(session.chat(text, **{"route": OLLAMA, **fields}).served_from)] += 1
        except LLMError as error:
            served[error.code] += 1

    # Without the local model, which would answer too.
    either = {"route": None, "constraints": LLMConstraints(allowed_providers=frozenset({"ollama", "gemini"}))}
    chat("a hit")
    chat("a hit")
    chat("a hit")
    chat("a replay", idempotency_key="k", use_cache=False)
    chat("a replay", idempotency_key="k", use_cache=False)
    chat("a hit", idempotency_key="under a key")
    chat("flaky")
    chat("half")
    chat("ollama-is-down", **either)
    chat("all-are-down", **either)
    chat("cut", route=OLLAMA)
    chat("reasoning", max_output_tokens=100)
    chat("uncounted")
    chat("blocked", route="gemini/gemini-2.5-flash")
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda _: chat("asked by eight at once"), range(8)))
    assert session.extract(City, "repair", route=OLLAMA).name == "Rome"
    with pytest.raises(LLMInvalidOutput):
        session.extract(City, "hopeless", route=OLLAMA)
    task = Task("t", [Sample(f"s{n}", {}) for n in range(4)], "Mood {input}", City, [field_match("name")])
    session.evaluate(task, [OLLAMA], name="run", progress=False)
    session.evaluate(task, [OLLAMA], name="run", progress=False)
    return served


@pytest.mark.filterwarnings("ignore:.*answered, because the first choice:UserWarning")
def test_billed_and_served_reconcile_with_the_servers_counts(database_url: str) -> None:
    settings = {"gemini_api_key": "k", "router_policy": "prefer_local", "cooldown_after_failures": 1000}
    with (
        OllamaServer(Provider()) as ollama,
        GeminiServer(_gemini) as gemini,
        Session(
            "lab",
            database_url=database_url,
            ollama_api_base=ollama.url,
            gemini_api_base=gemini.url,
            max_retries=2,
            retry_max_wait_s=0.01,
            **settings,
        ) as session,
    ):
        served = _use(session)
        session.runs()  # waits until what is written a moment later is there
        with JournalHome(database_url) as home:
            runs, attempts = home.runs(), home.attempts()

        # Every request is a row, and every row a request.
        assert len(attempts) == ollama.call_count + gemini.call_count
        assert Counter(attempt["provider"] for attempt in attempts) == {
            "ollama": ollama.call_count,
            "gemini": gemini.call_count,
        }
        for provider, server in (("ollama", ollama), ("gemini", gemini)):
            mine = [attempt for attempt in attempts if attempt["provider"] == provider]
            for column in ("input_tokens", "output_tokens"):
                billed = sum(attempt[column] or 0 for attempt in mine if not attempt["usage_estimated"])
                assert billed == getattr(server.usage, column), (provider, column)
        cached = sum(attempt["cached_input_tokens"] or 0 for attempt in attempts)
        assert cached == gemini.usage.cached_tokens > 0

    # Served: every call is one row, by where its answer came from.
    succeeded = Counter(run["served_from"] for run in runs if run["status"] == "SUCCEEDED")
    assert succeeded["replay"] == served["replay"] == 1
    assert succeeded["cache"] + succeeded["shared"] == served["cache"] + served["shared"] == 3 + 7
    assert not [run for run in runs if run["status"] == "STARTED"]
    # Both sums meet: attempts belong to runs that were billed or failed, and a billed run's tokens are its last one's.
    by_run: dict[object, list[dict[str, object]]] = {}
    for attempt in attempts:
        by_run.setdefault(attempt["run_id"], []).append(attempt)
    for run in runs:
        sent = by_run.pop(run["id"], [])
        if run["status"] == "SUCCEEDED":
            assert bool(sent) == (run["served_from"] == "provider"), run["served_from"]
            assert run["attempts"] == len(sent)
        if run["served_from"] == "provider":
            assert run["input_tokens"] == sent[-1]["input_tokens"]
            assert run["output_tokens"] == sent[-1]["output_tokens"]
            assert run["provider"] == sent[-1]["provider"]
    assert not by_run
    # Everything that was meant to be mixed was there.
    assert max(attempt["number"] for attempt in attempts) >= 3
    assert {run["error_code"] for run in runs} >= {
        "all_routes_failed",
        "reasoning_exhausted",
        "content_blocked",
    }
    fell_back = [run for run in runs if run["requested_route"] is None and run["provider"] == "gemini"]
    assert len(fell_back) == 1
    assert [attempt["provider"] for attempt in attempts if attempt["run_id"] == fell_back[0]["id"]] == [
        *["ollama"] * 3,
        "gemini",
    ]
