"""The fixture fails a test by the numbers, and passes it otherwise."""

import json

import pytest

from llmkit.evals import Sample
from llmkit.evals.gate import GateRules
from llmkit.testing import OllamaServer, Reply
from tests.evals.fakes import sentiment_task

pytest_plugins = ["llmkit.pytest_plugin"]

TASK = sentiment_task(dataset=[Sample(f"text {n}", "positive") for n in range(3)])


def test_an_evaluation_is_asserted_by_rules_and_against_a_file(assert_evaluation, tmp_path, monkeypatch):
    with OllamaServer([Reply(json.dumps({"label": "positive"}))], models=["a"]) as server:
        monkeypatch.setenv("LLM_OLLAMA_API_BASE", server.url)
        report = assert_evaluation(TASK, ["ollama/a"], GateRules(minimums={"field_match": 1}))
        report.export(tmp_path / "baseline.jsonl")
        sent = len(server.calls)
        with pytest.raises(AssertionError, match=r"minimum of field_match: ollama/a: mean 1, at least 1\.1"):
            assert_evaluation(TASK, ["ollama/a"], GateRules(minimums={"field_match": 1.1}))
        assert_evaluation(TASK, ["ollama/a"], GateRules(), baseline=tmp_path / "baseline.jsonl")
        with pytest.raises(AssertionError, match="non inferiority of field_match: ollama/a against ollama/a"):
            assert_evaluation(TASK, ["ollama/a"], GateRules(margin=0.0), baseline=tmp_path / "baseline.jsonl")
        assert len(server.calls) == sent
