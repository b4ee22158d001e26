"""Policies run for real: each call is recorded and paid once; what cannot run is refused before anything is sent."""

import json
from collections.abc import Iterator

import pytest
from pydantic import BaseModel

from llmkit import LLMBadRequest, LLMConstraints, LLMUnavailable, Session
from llmkit.evals import Below, Cascade, Mix, Sample, Split, Task, field_match
from llmkit.testing import Fault, OllamaServer, Reply

SMALL, LARGE = "ollama/small", "ollama/large"


class Label(BaseModel):
    label: str
    confidence: float


def answer(label: str, confidence: float = 0.9, tokens: int = 10) -> Reply:
    return Reply(json.dumps({"label": label, "confidence": confidence}), input_tokens=tokens, output_tokens=1)


@pytest.fixture
def ollama() -> Iterator[OllamaServer]:
    with OllamaServer(models=("small", "large"), version="0.12.11") as server:
        yield server


@pytest.fixture
def session(ollama: OllamaServer) -> Iterator[Session]:
    with Session("study", ollama_api_base=ollama.url, max_retries=0, cache_enabled=False) as opened:
        opened.policy("careful", Cascade(SMALL, LARGE, when=Below("confidence", 0.8)))
        yield opened


def asked(ollama: OllamaServer) -> list[str]:
    return [request.json["model"] for request in ollama.requests if request.path == "/api/chat"]


def test_a_cascade_goes_on_from_an_unsure_answer(session: Session, ollama: OllamaServer) -> None:
    ollama.script([answer("x", 0.3), answer("y")])
    assert session.extract(Label, "text", route="policy:careful").label == "y"
    assert asked(ollama) == ["small", "large"]


def test_a_sure_answer_stays(session: Session, ollama: OllamaServer) -> None:
    ollama.script([answer("x", 0.9)])
    assert session.extract(Label, "text", route="policy:careful").label == "x"
    assert asked(ollama) == ["small"]


def test_a_chat_has_the_tokens_attempts_and_plan_of_both_calls(session: Session, ollama: OllamaServer) -> None:
    route = session.policy("long", Cascade(SMALL, LARGE, when=lambda text, sample: len(text) < len(sample.input)))
    ollama.script([Reply("no", input_tokens=3, output_tokens=1), Reply("certainly", input_tokens=4, output_tokens=2)])
    found = session.chat("why?", route=route)
    assert (str(found), found.usage.input_tokens, found.usage.output_tokens) == ("certainly", 7, 3)
    assert [str(attempt.route) for attempt in found.attempts] == [SMALL, LARGE]
    assert [str(entry.route) for entry in found.plan.entries] == [SMALL, LARGE]
    assert found.plan.policy == "policy:long"
    assert session.runs()["model"].tolist() == ["large", "small"]


def test_a_repeated_key_pays_only_for_the_step_that_is_missing(session: Session, ollama: OllamaServer) -> None:
    ollama.script([answer("x", 0.3), Fault.status(503)])
    with pytest.raises(LLMUnavailable) as caught:
        session.extract(Label, "text", route="policy:careful", idempotency_key="k")
    assert len(caught.value.attempts) == 2
    ollama.script([answer("y")])
    assert session.extract(Label, "text", route="policy:careful", idempotency_key="k").label == "y"
    assert asked(ollama) == ["small", "large", "large"]


def test_a_map_follows_the_policy_and_resumes(session: Session, ollama: OllamaServer) -> None:
    ollama.script([answer("x", 0.3), answer("y"), answer("z")])
    options = {"route": "policy:careful", "name": "m", "progress": False, "concurrency": 1}
    frame = session.map(Label, ["one", "two"], **options)
    assert frame["label"].tolist() == ["y", "z"]
    assert frame["route"].tolist() == [LARGE, SMALL]
    assert frame["input_tokens"].tolist() == [20, 10]
    session.map(Label, ["one", "two"], **options)
    assert len(asked(ollama)) == 3


def test_repeats_that_disagree_go_on(session: Session, ollama: OllamaServer) -> None:
    route = session.policy("vote", Cascade(SMALL, LARGE, when="epochs_disagree", epochs=3))
    ollama.script([answer("x"), answer("x"), answer("y"), answer("z")])
    assert session.extract(Label, "text", route=route, seed=5).label == "z"
    assert asked(ollama) == ["small"] * 3 + ["large"]
    seeds = [request.json["options"]["seed"] for request in ollama.requests if request.path == "/api/chat"]
    assert seeds == [5, 6, 7, 5]
    ollama.script([answer("x")] * 3)
    assert session.extract(Label, "other", route=route).label == "x"


def test_a_threshold_on_log_probabilities_requests_them(session: Session, ollama: OllamaServer) -> None:
    route = session.policy("sure", Cascade(SMALL, LARGE, when=Below("logprob_mean", -0.5)))
    ollama.script([Reply("maybe", logprobs=(-2.0,)), Reply("yes"), Reply("certainly", logprobs=(-0.01,))])
    assert [str(session.chat(text, route=route)) for text in ("one", "two")] == ["yes", "certainly"]
    wanted = [request.json.get("logprobs") for request in ollama.requests if request.path == "/api/chat"]
    assert wanted == [True, None, True]


def test_a_failure_that_no_model_mends_does_not_go_on(session: Session, ollama: OllamaServer) -> None:
    route = session.policy("absent", Cascade("ollama/absent", LARGE))
    with pytest.raises(Exception, match="does not have the model absent"):
        session.extract(Label, "text", route=route)
    assert "large" not in asked(ollama)


def test_a_mix_draws_by_the_text(session: Session, ollama: OllamaServer) -> None:
    route = session.policy("half", Mix(SMALL, LARGE, share=0.5))
    ollama.script([Reply("a")] * 60)
    for text in [f"text {number % 30}" for number in range(60)]:
        session.chat(text, route=route)
    models = asked(ollama)
    assert models[:30] == models[30:]
    assert 5 < models[:30].count("large") < 25


def test_a_split_reads_the_metadata(session: Session, ollama: OllamaServer) -> None:
    route = session.policy("lang", Split("metadata.lang", {"de": LARGE}, default=SMALL))
    ollama.script([Reply("a")] * 2)
    session.chat("hallo", route=route, metadata={"lang": "de"})
    session.chat("hello", route=route)
    assert asked(ollama) == ["large", "small"]


@pytest.mark.parametrize(
    ("policy", "message"),
    [
        (Cascade(SMALL, LARGE, when=Below("confidence")), "not made yet"),
        (Split("group", [SMALL, LARGE]), "not made yet"),
        (Cascade(SMALL, LARGE, when="epochs_disagree"), "epochs=3"),
        (Cascade(SMALL, "policy:careful"), "write that policy out"),
        (3, "got int"),
    ],
)
def test_what_cannot_run_is_refused(session: Session, policy: object, message: str) -> None:
    with pytest.raises(LLMBadRequest, match=message):
        session.policy("p", policy)  # type: ignore[arg-type]


@pytest.mark.parametrize("options", [{}, {"constraints": LLMConstraints(local_only=True)}])
def test_a_call_that_could_not_end_is_refused_before_it_begins(
    session: Session, ollama: OllamaServer, options: dict[str, object]
) -> None:
    route = session.policy("cloud", Cascade(SMALL, "gemini/gemini-2.5-flash"))
    with pytest.raises(LLMBadRequest, match="cannot call gemini"):
        session.chat("text", route=route, **options)  # type: ignore[arg-type]
    with pytest.raises(LLMBadRequest, match="chat answers with text"):
        session.chat("text", route="policy:careful")
    with pytest.raises(LLMBadRequest, match="known policies: default, fast, balanced, quality, careful"):
        session.chat("text", route="policy:unknown")
    assert asked(ollama) == []


def test_an_evaluation_runs_the_policy_for_real(session: Session, ollama: OllamaServer) -> None:
    task = Task(
        name="labels",
        dataset=[Sample(f"text {i}", {"label": "y"}) for i in range(4)],
        prompt="{input}",
        output_type=Label,
        scorers=[field_match("label")],
    )
    ollama.script([answer("x", 0.3), answer("y"), answer("y"), answer("y"), answer("x", 0.1), Fault.status(503)])
    options = {"progress": False, "concurrency": 1}
    report = session.evaluate(task, "policy:careful", **options)
    frame = report.samples()
    assert frame["status"].tolist() == ["SUCCEEDED"] * 3 + ["FAILED"]
    assert frame["requests"].tolist() == [2, 1, 1, 2]
    assert frame["input_tokens"].tolist()[:3] == [20, 10, 10]
    assert "2 calls; ollama/large answered, because confidence 0.3 is below 0.8" in frame["warnings"][0]
    # The failed sample is repeated; its first call is in the store already.
    ollama.script([answer("y")])
    assert session.evaluate(task, "policy:careful", **options).counts["SUCCEEDED"] == 4
    assert asked(ollama)[-2:] == ["large", "large"]
    session.policy("careful", Cascade(SMALL, LARGE, when=Below("confidence", 0.5)))
    with pytest.raises(Exception, match="policy:careful was asked something else"):
        session.evaluate(task, "policy:careful", **options)
