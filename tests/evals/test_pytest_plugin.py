"""The fixture fails a test by the numbers, and passes it otherwise."""

import json

import pytest

import llmkit
from llmkit.cli.main import run_command as run_cli
from llmkit.errors import LLMEvaluationError
from llmkit.evals import Sample
from llmkit.evals.ci.gate import GateRules
from llmkit.testing import OllamaServer, Reply
from tests.support.eval_fakes import sentiment_task

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


def positive(*texts):
    return sentiment_task(dataset=[Sample(text, "positive") for text in texts])


def shown(caught):
    """What pytest prints of the way to an error: the places that are not hidden."""
    return [entry.name for entry in caught.traceback if not entry.ishidden(caught)]


def test_a_failing_evaluation_says_what_failed_and_shows_the_line_of_the_test_alone(assert_evaluation, monkeypatch):
    with OllamaServer([Reply("none")], models=["a"]) as server:
        monkeypatch.setenv("LLM_OLLAMA_API_BASE", server.url)
        rules = GateRules(minimums={"field_match": 0.5})
        with pytest.raises(
            AssertionError,
            match=r"mean 0, at least 0\.5\nollama/b: 3 of 3 without an answer \(model_not_found\): Ollama",
        ) as caught:
            assert_evaluation(TASK, ["ollama/b"], rules)
        mine = "test_a_failing_evaluation_says_what_failed_and_shows_the_line_of_the_test_alone"
        assert shown(caught) == [mine]
        with pytest.raises(LLMEvaluationError, match="a route is written provider/model") as caught:
            assert_evaluation(positive("one"), ["b"], rules)
        assert shown(caught) == [mine]


def test_what_could_not_be_checked_is_refused_before_anything_is_sent(assert_evaluation, monkeypatch):
    with OllamaServer("none", models=["a"]) as server:
        monkeypatch.setenv("LLM_OLLAMA_API_BASE", server.url)
        for rules, options, message in (
            (GateRules(), {}, "would pass everything"),
            (GateRules(margin=0.1), {}, "need a baseline"),
            (GateRules(), {"baseline": "nowhere.jsonl"}, "nowhere.jsonl cannot be read"),
        ):
            with pytest.raises(LLMEvaluationError, match=message):
                assert_evaluation(TASK, ["ollama/a"], rules, **options)
        assert server.call_count == 0


def test_two_tasks_are_asserted_in_one_test_from_recordings(assert_evaluation, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tasks = positive("one"), sentiment_task(name="another", dataset=[Sample("two", "positive")])
    answer = json.dumps({"label": "positive"})
    with OllamaServer(answer, models=["a"]) as server, llmkit.Session(ollama_api_base=server.url) as session:
        for task in tasks:
            session.evaluate(task, ["ollama/a"], progress=False)
    assert run_cli(["cassette", "record", "answers.jsonl"]) == 0
    rules = GateRules(minimums={"field_match": 1})
    for task in tasks:
        assert_evaluation(task, ["ollama/a"], rules, replay="answers.jsonl")
    more = sentiment_task(name="more", dataset=[Sample("one", "positive"), Sample("three", "positive")])
    with pytest.raises(AssertionError, match=r"1 of 2 without an answer \(no_recording\)"):
        assert_evaluation(more, ["ollama/a"], rules, replay="answers.jsonl")
