"""Scores of answers that exist already: from any source, without a call, with everything a run has."""

import json
from collections import Counter
from typing import Literal

import pandas as pd
import pytest
from pydantic import BaseModel
from typer.testing import CliRunner

from llmkit.cli.main import app
from llmkit.errors import LLMEvaluationError
from llmkit.evals import Cascade, GateRules, Sample, Task, exact_match, field_match, judge, number_match
from llmkit.evals.ci.gate import check_gate, match_variants
from llmkit.evals.ci.junit import render_run_junit
from llmkit.evals.ci.markdown import render_run_markdown
from llmkit.session import Session
from llmkit.testing import OllamaServer, Reply

LABELS = ["positive", "negative", "negative", "positive"]
RIGHT = [1.0, 0.0, 1.0, 0.0]


class Sentiment(BaseModel):
    label: Literal["positive", "negative"]


SAMPLES = [Sample(f"text {n}", ["positive", "negative"][n // 2], id=f"s{n}") for n in range(4)]
BY_ID = dict(zip([sample.id for sample in SAMPLES], LABELS, strict=True))
SAMPLES[1], SAMPLES[2] = SAMPLES[2], SAMPLES[1]


def task(*scorers, **changes):
    parts = {"dataset": SAMPLES, "prompt": "{input}", "output_type": Sentiment, "scorers": scorers or [field_match()]}
    return Task("sentiment", **parts | changes)


@pytest.fixture
def session(tmp_path):
    """A session that fails if anything is sent: its only provider is a closed port."""
    with Session("w", database_url=f"sqlite:///{tmp_path}/llm.db", ollama_api_base="http://127.0.0.1:9") as opened:
        yield opened
        assert opened.runs().empty


def score(session, outputs, **options):
    return session.score(options.pop("task", task()), outputs, **{"name": "run", "progress": False} | options)


def scores(report):
    return report.samples().set_index("sample_id")["score_field_match"].to_dict()


def write(path, text):
    path.write_text(text)
    return path


IN_ORDER = [BY_ID[sample.id] for sample in SAMPLES]
SOURCES = {
    "by id": lambda _path: BY_ID,
    "objects by id": lambda _path: {key: {"label": label} for key, label in BY_ID.items()},
    "instances by id": lambda _path: {key: Sentiment(label=label) for key, label in BY_ID.items()},
    "list": lambda _path: IN_ORDER,
    "generator": lambda _path: iter(IN_ORDER),
    "series": lambda _path: pd.Series(IN_ORDER),
    "series by id": lambda _path: pd.Series(BY_ID),
    "frame": lambda _path: pd.DataFrame({"id": BY_ID.keys(), "output": BY_ID.values()}),
    "frame in order": lambda _path: pd.DataFrame({"answer": IN_ORDER}),
    "frame of fields": lambda _path: pd.DataFrame({"sample_id": BY_ID.keys(), "label": BY_ID.values()}),
    "indexed frame": lambda _path: pd.DataFrame({"output": BY_ID.values()}, index=pd.Index(BY_ID, name="id")),
    "records": lambda _path: [{"id": key, "output": f"It is {{'label': '{label}'}}."} for key, label in BY_ID.items()],
    "json lines": lambda path: write(
        path / "a.jsonl",
        "\n".join(json.dumps({"id": key, "response": {"label": label}}) for key, label in BY_ID.items()),
    ),
    "csv": lambda path: str(
        write(path / "a.csv", "id;prediction\n" + "\n".join(f"{key};{label}" for key, label in BY_ID.items()))
    ),
}


@pytest.mark.parametrize("source", SOURCES)
def test_answers_come_as_people_have_them(session, tmp_path, source):
    assert scores(score(session, SOURCES[source](tmp_path))) == {"s0": 1.0, "s1": 0.0, "s2": 1.0, "s3": 0.0}


def test_columns_and_variants_are_named(session):
    rows = [
        {"doc": sample.id, "said": label, "model": name, "try": number}
        for sample in SAMPLES
        for name, label in (("gpt 4", "positive"), ("rules", "negative"))
        for number in range(2)
    ]
    report = score(session, pd.DataFrame(rows), id="doc", answer="said", variant="model", epoch="try")
    assert report.variants == ("gpt-4", "rules")
    assert report.summary()[["n", "mean"]].to_numpy().tolist() == [[8, 0.5], [8, 0.5]]


def test_several_variants_have_everything_that_a_run_has(session, tmp_path):
    report = score(session, {"a": BY_ID, "b": pd.Series(IN_ORDER[::-1])})
    assert report.compare("a", "b")["pairs"].tolist() == [4]
    gate = check_gate(report, GateRules(margin=0.9), variants=match_variants(report, None, None, "b"))
    assert gate.comparisons[0]["baseline"] == "b"
    assert "testsuite" in render_run_junit([report])
    assert "0.50 " in render_run_markdown([report])
    cascade = Cascade("a", "b", when=lambda output, sample: output["label"] == "negative")
    assert report.what_if({"careful": cascade})["scored"].tolist() == [4, 4, 4]
    page = report.to_html(tmp_path / "page.html").read_text()
    assert "The answers were supplied (dictionary, Series) and not requested" in page
    assert session.report("run", task=task()).notes == report.notes


def test_nothing_is_made_up_about_supplied_answers(session):
    report = score(session, BY_ID)
    row = report.summary().iloc[0]
    unknown = ["latency_p50_ms", "latency_p95_ms", "input_tokens", "output_tokens", "valid_first_try", "first_try"]
    assert row[unknown].isna().all()
    assert report.what_if()[["cost_usd", "input_tokens", "latency_p50_ms"]].isna().all(axis=None)


def test_answers_that_do_not_fit_are_failures_with_the_reason(session):
    report = score(session, {"s0": "fine", "s1": None, "s2": "", "s3": '```json\n{"label": "negative"}\n```'})
    frame = report.samples().set_index("sample_id")
    assert frame["status"].to_dict() == {"s0": "FAILED", "s1": "FAILED", "s2": "FAILED", "s3": "SUCCEEDED"}
    assert frame["error_code"].tolist().count("empty_reply") == 2
    assert "does not fit Sentiment: label: Input should be 'positive' or 'negative'" in frame.at["s0", "error_message"]
    assert frame.at["s3", "warnings"] == "the answer was no valid JSON, and was repaired"
    assert report.summary()["mean_failures_as_zero"].tolist() == [0.25]


def test_missing_and_surplus_answers_are_counted(session):
    answers = {"s0": "positive", "s1": "positive", "s8": "positive", "s9": "negative"}
    report = score(session, answers)
    assert report.counts == {"SUCCEEDED": 2, "FAILED": 0, "SCORER_FAILED": 0, "NOT_RUN": 2, "IN_PROGRESS": 0}
    assert "answers: 2 answers have no sample in the dataset, and are left out." in report.notes
    assert "Partial: 2 of 4 samples, 2 not run; score them under the same name once they have answers." in report.notes
    with pytest.raises(LLMEvaluationError) as caught:
        score(session, answers, strict=True, name="strict")
    assert "answers: no answer for 2 of 4 samples (s2, s3); answers: no sample for 2 of 4 answers (s8, s9)" in str(
        caught.value
    )
    assert score(session, BY_ID).counts["SUCCEEDED"] == 4


@pytest.mark.parametrize(
    ("outputs", "message"),
    [
        (["positive"], "one answer for each of the 4 samples in their order; got 1"),
        ({"x": "positive"}, "no id of the answers is a sample's|no dataset file"),
        ({"a": {"x": "positive"}}, "a: no id of the answers is a sample's; the answers have x, the samples s0, s1, s2"),
        ({"a": 3}, "No key of outputs is a sample id, and 'a' has no answers but a int"),
        (7, "outputs are answers by sample id"),
        ({}, "There are no answers"),
        (pd.DataFrame({"id": ["s0"], "text": ["x"]}), "the columns are id, text; say which has the answers: answer="),
        (pd.DataFrame({"id": ["s0", "s0"], "output": ["x", "y"]}), "sample 's0' has two answers; number them"),
        (pd.DataFrame({"id": ["s0"], "epoch": ["b"], "output": ["x"]}), "epoch: 'b' is no whole number"),
    ],
)
def test_what_cannot_be_matched_is_one_clear_error(session, outputs, message):
    with pytest.raises(Exception, match=message):
        score(session, outputs)


def test_a_stored_run_can_be_scored_by_another_task(session, tmp_path):
    first = score(session, {"a": BY_ID, "b": {**BY_ID, "s0": "fine"}})
    strict = task(field_match(name="again"))
    reports = [
        score(session, first.export(tmp_path / f"run.{kind}"), task=strict, name=kind) for kind in ("jsonl", "parquet")
    ]
    for report in (*reports, score(session, first, task=strict, name="report")):
        assert report.variants == ("a", "b")
        assert report.counts["FAILED"] == 1
        assert report.summary()["mean"].tolist() == pytest.approx([0.5, 1 / 3])


@pytest.mark.parametrize(
    ("output_type", "answers", "scorer", "target"),
    [
        (str, ["It is 72.", '{"n": 72}', 72, "#### 72"], number_match(), 72),
        (int, [72, "72", 72.0, {"response": 72}], exact_match(), 72),
        (Literal["yes", "no"], ["yes", '"yes"', {"response": "yes"}, "yes"], exact_match(), "yes"),
        (list[str], [["a", "b"], '["a", "b"]', ("a", "b"), ["a", "b"]], exact_match(), ["a", "b"]),
        (int | None, [None, 72, 72, 72], exact_match(), 72),
    ],
)
def test_any_output_type(session, tmp_path, output_type, answers, scorer, target):
    samples = [Sample(f"{n}", target, id=f"s{n}") for n in range(4)]
    asked = task(scorer, dataset=samples, output_type=output_type)
    report = score(session, answers, task=asked)
    failed = int(answers[0] is None)
    assert (report.counts["SUCCEEDED"], report.counts["FAILED"]) == (4 - failed, failed)
    assert report.summary()["mean"].tolist() == [1]
    again = score(session, report.export(tmp_path / "run.jsonl"), task=asked, name="again")
    assert again.samples()["output"].equals(report.samples()["output"])


def test_the_same_name_scores_what_is_new(session):
    calls = Counter()

    def counted(output, sample):
        calls[sample.id] += 1
        return output.label == sample.target

    asked = task(counted)
    score(session, BY_ID, task=asked)
    score(session, BY_ID | {"s3": "negative"}, task=asked)
    assert calls == {"s0": 1, "s1": 1, "s2": 1, "s3": 2}
    report = score(session, BY_ID, task=task(field_match()))
    assert report.metrics == ("field_match",)
    with pytest.raises(LLMEvaluationError, match="has scores of 3 samples that have no answer any more"):
        score(session, {"s0": "positive"}, task=asked)


def test_runs_of_two_kinds_do_not_mix(session):
    score(session, BY_ID)
    with pytest.raises(LLMEvaluationError, match="were supplied to `score`; use another name"):
        session.evaluate(task(), ["ollama/a"], name="run", progress=False)

    class Other(BaseModel):
        label: str

    with pytest.raises(LLMEvaluationError, match="already, and its answers were supplied for another output type"):
        score(session, BY_ID, task=task(output_type=Other))
    assert score(session, BY_ID, name=None).run.name == "sentiment-answers"


def grade(_request):
    return Reply(json.dumps({"reason": "It is.", "grade": 4}))


def test_only_judges_are_called_and_no_verdict_twice(tmp_path):
    """Facts about a live answer stay known; another answer is judged again."""
    judged = task(field_match(), judge("Is it polite?", route="ollama/judge"))
    with (
        OllamaServer(grade, models=["judge"]) as server,
        Session("w", ollama_api_base=server.url, max_retries=0) as opened,
    ):
        first = score(opened, BY_ID, task=judged)
        assert first.samples()["scorer_errors"].isna().all(), first.samples()["scorer_errors"].tolist()
        assert len(server.calls) == 4
        again = score(opened, BY_ID | {"s3": "negative"}, task=judged)
        assert len(server.calls) == 5
        assert set(opened.runs()["stage"]) == {"judge"}
    assert first.summary().set_index("metric").at["judge", "mean"] == 0.75
    assert again.counts["SUCCEEDED"] == 4


def test_facts_of_a_live_run_are_kept(tmp_path):
    with (
        OllamaServer(lambda _r: Reply('{"label": "positive"}')) as server,
        Session("w", ollama_api_base=server.url, max_retries=0) as opened,
    ):
        live = opened.evaluate(task(), ["ollama/a"], name="live", progress=False)
        sent = len(server.calls)
        report = score(opened, live)
        assert len(server.calls) == sent
    kept = ["input_tokens", "output_tokens", "latency_p50_ms", "first_try", "mean"]
    pd.testing.assert_frame_equal(report.summary()[kept], live.summary()[kept])


def test_command(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LLM_DATABASE_URL", f"sqlite:///{tmp_path}/llm.db")
    (tmp_path / "task.yaml").write_text(
        "name: sentiment\ndataset: data.jsonl\nprompt: '{input}'\nscorers: [field_match]\n"
        "output_schema: {properties: {label: {enum: [positive, negative]}}, required: [label]}\n"
    )
    (tmp_path / "data.jsonl").write_text(
        "\n".join(json.dumps({"input": each.input, "target": each.target, "id": each.id}) for each in SAMPLES)
    )
    SOURCES["csv"](tmp_path)
    run = CliRunner().invoke(
        app, ["eval", "score", "task.yaml", "old=a.csv", "new=a.csv", "--json", "--html", "page.html"]
    )
    assert run.exit_code == 0, run.output
    assert [(row["variant"], row["mean"]) for row in json.loads(run.stdout)["summary"]] == [("old", 0.5), ("new", 0.5)]
    (tmp_path / "a.csv").write_text("id,prediction\ns0,positive\n")
    partial = CliRunner().invoke(app, ["eval", "score", "task.yaml", "a.csv", "--name", "partial"])
    assert partial.exit_code == 1
    strict = CliRunner().invoke(app, ["eval", "score", "task.yaml", "a.csv", "--strict"])
    assert "no answer for 3 of 4 samples" in str(strict.exception)
