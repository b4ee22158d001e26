"""What the store keeps of an extraction, as a user sees it; and that the page about it is true."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Literal

import pytest
from pydantic import BaseModel
from pydantic_ai.settings import ModelSettings

from llmkit import Session
from llmkit.evals import Sample, Task, field_match
from llmkit.pydanticai.asking import OTHERS_SETTINGS
from llmkit.testing import OllamaServer

PAGE = (Path(__file__).parents[2] / "docs" / "structured-output.md").read_text(encoding="utf-8")
ROUTE = "ollama/llama3.2"


class Label(BaseModel):
    label: Literal["good", "bad"]


def session_for(server: OllamaServer) -> Session:
    return Session("w", ollama_api_base=server.url, cache_enabled=False, max_retries=0)


def test_the_rows_of_an_extraction_say_step_mode_schema_and_why_it_was_asked_again() -> None:
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


def _blocks() -> list[str]:
    return re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)


def test_the_examples_of_the_page_run(monkeypatch: pytest.MonkeyPatch) -> None:
    with OllamaServer() as ollama:
        monkeypatch.setenv("LLM_OLLAMA_API_BASE", ollama.url)
        for block in _blocks():
            names: dict[str, object] = {"__name__": "page"}
            exec(compile(block, "structured-output.md", "exec", dont_inherit=True), names)
            if "complaint" in names:
                assert type(names["complaint"]).__name__ == "Complaint"


def test_the_page_names_every_setting_that_works_or_is_refused() -> None:
    words = PAGE.replace("penalties", "presence_penalty frequency_penalty").replace("tool\nchoice", "tool_choice")
    unnamed = {name for name in ModelSettings.__annotations__ if name not in words}
    assert unnamed <= OTHERS_SETTINGS
