"""What the store keeps of an extraction, as a user sees it; and that the page about it is true."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Literal

import pytest
from pydantic import BaseModel
from pydantic_ai import Agent
from pydantic_ai.models.instrumented import InstrumentedModel
from pydantic_ai.settings import ModelSettings

from llmkit import LLMInvalidOutput, LLMRequest, LLMService, Session, load_settings
from llmkit.evals import Sample, Task, field_match
from llmkit.ports import ClientReply
from llmkit.pydanticai import PydanticAiLiteLLMModel, Reader, extract
from llmkit.pydanticai.request_fields import OTHERS_SETTINGS
from llmkit.router import LLMRouter
from llmkit.testing import GeminiServer, OllamaServer
from llmkit.testing.scripted_client import ScriptedClient, reply
from tests.support.scripted_services import CONTEXT, scripted_service

DOCS = Path(__file__).parents[2] / "docs"
ROUTE = "ollama/llama3.2"


class Label(BaseModel):
    label: Literal["good", "bad"]


def session_for(server: OllamaServer) -> Session:
    return Session("w", ollama_api_base=server.url, cache_enabled=False, max_retries=0)


def test_rows_record_step_mode_and_schema() -> None:
    """Rows of an extraction record step, mode, schema and the reason for a reask."""
    with OllamaServer(["no", '{"label": "good"}'], models=["llama3.2"]) as server, session_for(server) as session:
        assert session.extract(Label, "x", route=ROUTE, idempotency_key="k", pipeline_run_id="p").label == "good"
        runs = session.runs().sort_values("created_at_utc")
        attempts = session.attempts()
    first, second = (json.loads(text)["agent"] for text in runs["metadata_json"])
    assert list(runs["idempotency_key"]) == ["k#0", "k#1"]
    assert list(runs["pipeline_run_id"]) == ["p", "p"]
    assert (first["step"], first["output_mode"], second["step"]) == (0, "native", 1)
    assert second["asked_again_because"] == ["the answer is not one JSON object"]
    assert {first["schema_sha256"], second["schema_sha256"]} == set(attempts["schema_sha256"])


ANSWERS = {
    "first_try": ['{"label": "good"}'],
    "repaired": ["```\n{'label': 'good'}\n```"],
    "reasked": ["no", '{"label": "good"}'],
    "reasked and repaired": ["no", "{'label': 'good'}"],
    "never fitted": ["no", '{"label": "so-so"}'],
}


def told(rows: list[dict[str, object]]) -> str:
    """The outcome of one extraction by its rows alone, as the page says it is told."""
    if "never_fitted" in rows[-1]:
        return "never fitted"
    repaired = rows[-1].get("repaired", False)
    if "asked_again_because" in rows[-1]:
        return "reasked and repaired" if repaired else "reasked"
    return "repaired" if repaired else "first_try"


@pytest.mark.parametrize("outcome", ANSWERS)
def test_rows_record_the_outcome(outcome: str) -> None:
    """The rows alone show the outcome of an extraction and of its replay."""
    with OllamaServer(ANSWERS[outcome], models=["llama3.2"]) as server, session_for(server) as session:
        for again in ("first", "again"):
            try:
                session.extract(
                    Label, "x", route=ROUTE, idempotency_key="k", pipeline_run_id=again, metadata={"batch": 7}
                )
            except LLMInvalidOutput:
                assert outcome == "never fitted"
        found = {run: session.runs(pipeline_run_id=run)["metadata_json"] for run in ("first", "again")}
        metadata = [sorted(map(json.loads, texts), key=lambda row: row["agent"]["step"]) for texts in found.values()]
        assert len(server.calls) == len(ANSWERS[outcome])
    for rows in metadata:
        assert told([row["agent"] for row in rows]) == outcome
        assert {row["batch"] for row in rows} == {7}
        assert [row["agent"]["step"] for row in rows] == list(range(len(rows)))
    if outcome == "never fitted":
        assert metadata[0][-1]["agent"]["never_fitted"] == ["label: Input should be 'good' or 'bad'"]


async def test_agents_side_by_side_mark_the_rows_of_their_own_answers() -> None:
    def answer(_route: object, request: LLMRequest) -> ClientReply:
        return reply("{'label': 'good'}" if request.messages[-1].content == "near" else '{"label": "bad"}')

    service, client, runs = scripted_service(answer)
    client._latency_s = 0.01
    model = InstrumentedModel(PydanticAiLiteLLMModel(service, context=CONTEXT, use_cache=False))
    agent = Agent(model, output_type=Label)
    asked = ["near", "exact", "near", "exact"]
    await asyncio.gather(*(agent.run(text, capabilities=[Reader()]) for text in asked))
    marked = {
        run.success.response_preview: run.start.metadata["agent"].get("repaired") for run in runs.runs if run.success
    }
    assert marked == {"{'label': 'good'}": True, '{"label": "bad"}': None}


async def test_a_first_try_costs_no_write_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    service, _, runs = scripted_service([reply('{"label": "good"}')])
    monkeypatch.delattr(type(runs), "annotate")
    assert (await extract(service, Label, "x", context=CONTEXT)).outcome == "first_try"


async def test_an_extraction_that_is_not_recorded_marks_nothing() -> None:
    settings = load_settings(persist_runs=False, cache_enabled=False)
    router = LLMRouter(settings, ScriptedClient([reply("{'label': 'good'}")]))
    service = LLMService(router=router, settings=settings, runs=None)
    assert (await extract(service, Label, "x")).outcome == "repaired"


def test_an_evaluation_keeps_the_three_outcomes_apart() -> None:
    answers = {"a": ['{"label": "good"}'], "b": ["```\n{'label': 'good'}\n```"], "c": ["no", '{"label": "good"}']}

    def answer(request: object) -> str:
        text = request.json["messages"][0]["content"]  # type: ignore[attr-defined]
        return answers[text].pop(0)

    task = Task(
        name="t",
        dataset=[Sample(id=name, input=name, target={"label": "good"}) for name in answers],
        prompt="{input}",
        output_type=Label,
        scorers=[field_match("label")],
    )
    with OllamaServer(answer, models=["llama3.2"]) as server, session_for(server) as session:
        frame = session.evaluate(task, [ROUTE], name="r", progress=False).samples().set_index("sample_id")
    assert dict(frame["valid_first_try"]) == {"a": True, "b": False, "c": False}
    assert dict(frame["requests"]) == {"a": 1, "b": 1, "c": 2}
    repaired = frame["warnings"].astype("string").str.contains("was repaired").fillna(False)
    assert dict(repaired) == {"a": False, "b": True, "c": False}


def test_an_evaluation_warns_of_a_route_that_got_no_schema() -> None:
    task = Task(
        name="t",
        dataset=[Sample(id="a", input="a", target={"label": "good"})],
        prompt="{input}",
        output_type=Label,
        scorers=[field_match("label")],
    )
    with (
        GeminiServer(['{"label": "good"}'], api_key="key", models=["gemini-2.5-flash", "tuned"]) as server,
        Session("w", gemini_api_base=server.url, gemini_api_key="key", cache_enabled=False) as session,
    ):
        report = session.evaluate(task, ["gemini/gemini-2.5-flash", "gemini/tuned"], name="r", progress=False)
        alone = session.evaluate(task, ["gemini/gemini-2.5-flash"], name="alone", progress=False)
        sent = [call.json["generationConfig"] for call in server.calls]
    assert ["response_json_schema" in config for config in sent].count(True) == 2
    (warning,) = report.warnings
    assert "gemini/tuned: schema, no schema sent" in warning
    assert list(report.samples()["schema_sha256"].isna()) == [False, True]
    assert alone.warnings == ()


def test_the_page_names_every_setting_that_works_or_is_refused() -> None:
    page = (DOCS / "agents.md").read_text(encoding="utf-8")
    words = (
        page.replace("penalties", "presence_penalty frequency_penalty")
        .replace("tool choice", "tool_choice")
        .replace("tool\nchoice", "tool_choice")
    )
    unnamed = {name for name in ModelSettings.__annotations__ if name not in words}
    assert unnamed <= OTHERS_SETTINGS
