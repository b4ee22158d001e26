"""A judge is asked through the service: recorded, paid for once, and its failures are a scorer's."""

import json

import pytest
from pydantic import BaseModel

from llmkit.errors import LLMEvaluationError, LLMStoreError
from llmkit.evals import Sample, Task, judge
from llmkit.session import Session
from llmkit.testing import Fault, OllamaServer, Reply

JUDGE = "ollama/judge"
ROUTES = ["ollama/a"]


class Answer(BaseModel):
    text: str


def task(*scorers, samples=2):
    given = scorers or (judge("Is it polite?", route=JUDGE),)
    dataset = [Sample(f"greet {number}", "Hello", id=f"s{number}") for number in range(samples)]
    return Task("greetings", dataset, "{input}", Answer, given)


def is_judged(request):
    return request.json["model"] == "judge"


def polite(request):
    if is_judged(request):
        return Reply(json.dumps({"reason": "It says please.", "grade": 4}))
    return Reply(json.dumps({"text": "Please."}))


def evaluated(session, asked, **options):
    return session.evaluate(asked, ROUTES, name="run", progress=False, **options)


def session_for(server):
    return Session("w", ollama_api_base=server.url, max_retries=0)


def test_judge_calls_are_recorded():
    """By stage; the grade is the score."""
    with OllamaServer(polite, models=["a", "judge"]) as server, session_for(server) as session:
        report = evaluated(session, task())
        frame, calls = report.samples(), session.runs()
        asked = next(call for call in server.calls if is_judged(call))
    assert list(frame["score_judge"]) == [0.75, 0.75]
    assert json.loads(frame["score_details"][0]) == {"judge": "ollama/judge gave 4: It says please."}
    assert calls["stage"].value_counts().to_dict() == {"sample": 2, "judge": 2}
    assert set(calls.loc[calls["stage"] == "judge", "pipeline_run_id"]) == set(frame["pipeline_run_id"])
    question = json.dumps(asked.json["messages"])
    assert all(part in question for part in ("greet", "Hello", "Please.", "Is it polite?"))
    assert report.judges["judge"]["route"] == JUDGE
    assert report.to_json()["judges"]["judge"]["criteria"] == "Is it polite?"


def test_a_resumed_run_asks_for_no_verdict_twice(monkeypatch):
    with OllamaServer(polite, models=["a", "judge"]) as server, session_for(server) as session:
        store = session._core.runtime.open().eval_store
        save = store.save_result

        async def broken(result):
            raise LLMStoreError("the disk is full")

        monkeypatch.setattr(store, "save_result", broken)
        with pytest.raises(LLMStoreError):
            evaluated(session, task(samples=1))
        assert len(server.calls) == 2  # answered and judged, but the result was not kept
        monkeypatch.setattr(store, "save_result", save)
        report = evaluated(session, task(samples=1))
        assert len(server.calls) == 2
    assert list(report.samples()["score_judge"]) == [0.75]


def test_new_judge_grades_stored_answers():
    """Only the verdict is requested."""
    with OllamaServer(polite, models=["a", "judge"]) as server, session_for(server) as session:
        evaluated(session, task())
        report = evaluated(session, task(judge("Is it short?", route=JUDGE, scale=4)))
        stages = [is_judged(call) for call in server.calls]
    assert stages.count(True) == 4
    assert stages.count(False) == 2
    assert list(report.samples()["score_judge"]) == [1.0, 1.0]
    assert report.judges["judge"]["criteria"] == "Is it short?"


def test_each_epoch_is_judged_for_itself():
    with OllamaServer(polite, models=["a", "judge"]) as server, session_for(server) as session:
        evaluated(session, task(samples=1), epochs=2)
        assert sum(is_judged(call) for call in server.calls) == 2


def test_failing_judge_is_a_scorer_error():
    """The next run asks it again."""
    failing = [True]

    def moody(request):
        return Fault.status(500) if is_judged(request) and failing[0] else polite(request)

    with OllamaServer(moody, models=["a", "judge"]) as server, session_for(server) as session:
        first = evaluated(session, task(samples=1))
        failing.clear()
        failing.append(False)
        second = evaluated(session, task(samples=1))
        answers = [call for call in server.calls if not is_judged(call)]
    assert list(first.samples()["status"]) == ["SCORER_FAILED"]
    assert "judge" in first.results[0].scorer_errors
    assert list(second.samples()["score_judge"]) == [0.75]
    assert len(answers) == 1


def test_verdict_out_of_range_is_reasked():
    """A second one is a scorer error."""
    grades = iter([9, 5, 9, 9])

    def judged(request):
        return Reply(json.dumps({"reason": "so", "grade": next(grades)})) if is_judged(request) else polite(request)

    with OllamaServer(judged, models=["a", "judge"]) as server, session_for(server) as session:
        report = evaluated(session, task(), concurrency=1)
    assert [result.scores for result in report.results] == [{"judge": 1.0}, {}]
    assert "LLMInvalidOutput" in report.results[1].scorer_errors["judge"]


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"criteria": " "}, "must describe a good answer"),
        ({"scale": 1}, "scale= must be at least 2"),
        ({"route": "nowhere"}, "judge: "),
        ({"prompt": "{criteria}"}, "no place {answer}"),
        ({"prompt": "{answer} {other}"}, "names {other}"),
        ({"parameters": {"temperature": "hot"}}, "temperature"),
    ],
)
def test_a_judge_that_cannot_be_used_is_refused_when_it_is_made(parts, message):
    with pytest.raises(LLMEvaluationError, match=message):
        judge(**{"criteria": "good"} | parts)
