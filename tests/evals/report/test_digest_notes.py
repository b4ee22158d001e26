"""A model that changed while an evaluation ran is told."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

from pydantic import BaseModel

from llmkit import Session
from llmkit.eval_ports import DigestSeen
from llmkit.evals import Sample, Task, field_match
from llmkit.evals.report.notes import note_digests
from llmkit.testing import OllamaModel, OllamaServer
from llmkit.types import Route

AT = datetime(2026, 11, 23, tzinfo=UTC)
A, B = Route.parse("ollama/a"), Route.parse("ollama/b")


def test_one_model_behind_each_route_is_nothing_to_tell() -> None:
    assert list(note_digests([DigestSeen(A, "1", AT, 9), DigestSeen(B, "2", AT, 9)])) == []


def test_each_route_that_changed_is_told_with_its_digests_in_order() -> None:
    seen = [DigestSeen(A, "1" * 64, AT, 1), DigestSeen(A, "2" * 64, AT, 1200), DigestSeen(B, "1" * 64, AT, 5)]
    (note,) = note_digests(seen)
    assert note.startswith("The model behind ollama/a changed during the run: 111111111111 (1 request), then 2222")
    assert "(1,200 requests)" in note


class Answer(BaseModel):
    text: str


def test_rebuilt_model_is_in_the_notes(tmp_path: Path) -> None:
    """A model that was rebuilt between two parts of a run is in the notes of the report."""
    samples = [Sample(input=str(number), target={"text": ""}) for number in range(4)]
    task = Task(name="echo", dataset=samples, prompt="{input}", output_type=Answer, scorers=[field_match("text")])
    with (
        OllamaServer(models=[OllamaModel("llama3.2", digest="a" * 64)]) as server,
        Session("study", ollama_api_base=server.url, facts_ttl_s=0.001) as session,
    ):
        first = session.evaluate(task, ["ollama/llama3.2"], name="run", limit=2, progress=False)
        assert [each.digest for each in first.digests] == ["a" * 64]
        assert not any("changed" in note for note in first.notes)
        server.models = [OllamaModel("llama3.2", digest="b" * 64)]
        whole = session.evaluate(task, ["ollama/llama3.2"], name="run", progress=False)
    assert [(each.digest, each.requests) for each in whole.digests] == [("a" * 64, 2), ("b" * 64, 2)]
    assert any("ollama/llama3.2 changed during the run: aaaaaaaaaaaa (2 requests)" in note for note in whole.notes)
