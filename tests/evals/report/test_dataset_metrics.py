"""Metrics over a data set: closed forms, intervals, comparisons, gates, pages; and functions of the user's own."""

from copy import deepcopy
from enum import Enum

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel

from llmkit.errors import LLMEvaluationError
from llmkit.evals import (
    Answered,
    GateRules,
    Sample,
    Score,
    Task,
    balanced_accuracy,
    calibration,
    dataset_metric,
    field_match,
    load_tasks,
    macro_f1,
    majority,
    number_match,
    per_class,
)
from llmkit.evals.ci.gate import check_gate, match_variants
from llmkit.evals.statistics.resampling import compare_clusters, estimate_clusters
from llmkit.session import Session


class Colour(Enum):
    RED = "red"
    BLUE = "blue"


class Guess(BaseModel):
    label: str | Colour
    confidence: float = 0.5


def answer(target, got, confidence=0.5, sample="s", epoch=0, **scores):
    output = None if got is None else Guess(label=got, confidence=confidence)
    return Answered(Sample("?", {"label": target}, id=sample), output, epoch, scores)


# a: 3 targets, 2 found; b: 2 targets, 1 found, 1 too many; c: given once, never wanted.
PAIRS = [("a", "a"), ("a", "a"), ("a", "b"), ("b", "b"), ("b", "c")]


# --- closed forms -------------------------------------------------------------------------------------------------


def test_class_metrics_of_a_small_matrix():
    answers = [answer(*pair) for pair in PAIRS]
    assert macro_f1("label")(answers).value == pytest.approx((0.8 + 0.5 + 0) / 3)
    assert balanced_accuracy("label")(answers).value == pytest.approx((2 / 3 + 1 / 2) / 2)
    found = per_class("label")(answers)
    assert found.value == pytest.approx(3 / 5)
    assert found.parts == pytest.approx({
        "precision.a": 1, "precision.b": 0.5, "precision.c": 0, "recall.a": 2 / 3, "recall.b": 0.5,
        "f1.a": 0.8, "f1.b": 0.5, "f1.c": 0,
    })  # fmt: skip


def test_a_failed_answer_lowers_recall_and_is_no_class():
    answers = [answer("a", "a"), answer("b", "b"), answer("b", None)]
    assert per_class("label")(answers).parts["recall.b"] == 0.5
    assert macro_f1("label")(answers).value == pytest.approx((1 + 2 / 3) / 2)


@pytest.mark.parametrize("target", [{"label": "b"}, {"label": "b", "other": 1}])
def test_classes_have_their_names_where_every_answer_failed(target):
    found = per_class("label")([Answered(Sample("?", target, id="s"), None)])
    assert found.parts == {"recall.b": 0, "f1.b": 0}
    assert per_class()([Answered(Sample("?", "b", id="s"), None)]).parts == {"recall.b": 0, "f1.b": 0}


def test_equal_values_are_one_class():
    assert macro_f1("label")([answer("red", Colour.RED), answer("blue", "blue")]).value == 1


@given(st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from("abc")), min_size=1, max_size=30))
@settings(max_examples=60)
def test_class_metrics_agree_with_their_definitions(pairs):
    answers = [answer(*pair) for pair in pairs]
    recalls, f1s = [], []
    for name in "abc":
        hits = sum(target == got == name for target, got in pairs)
        wanted, given_ = (sum(pair[side] == name for pair in pairs) for side in (0, 1))
        recalls += [hits / wanted] if wanted else []
        f1s += [2 * hits / (wanted + given_)] if wanted + given_ else []
    assert balanced_accuracy("label")(answers).value == pytest.approx(np.mean(recalls))
    assert macro_f1("label")(answers).value == pytest.approx(np.mean(f1s))


def test_calibration_errors():
    """Two bins: 0.2 said and half right, 0.9 said and all right."""
    answers = [answer("a", "a", 0.2, right=score) for score in (0, 1)] + [answer("a", "a", 0.9, right=1)] * 2
    found = calibration(bins=2)(answers)
    assert found.value == pytest.approx((2 * 0.3 + 2 * 0.1) / 4)
    assert found.parts["brier"] == pytest.approx((0.2**2 + 0.8**2 + 2 * 0.1**2) / 4)
    with pytest.raises(ValueError, match="confidence is within 0 and 1; sample s has 90"):
        calibration()([answer("a", "a", 90, right=1)])


@pytest.mark.parametrize("bins", [2, 10, 15, 100])
def test_a_bin_begins_with_its_lower_end(bins):
    """Also where the float is a little less: 0.29 * 100."""
    metric = calibration("confidence", bins=bins)
    assert [metric.find_bin(place / bins) for place in range(bins + 1)] == [*range(bins), bins - 1]


@pytest.mark.parametrize(
    ("given_", "value", "agreement"),
    [("aab", 1, 2 / 3), ("bba", 0, 2 / 3), ("ab", 0.5, 1 / 2), (["a", None, None], 1, 1 / 3), ([None], 0, 0)],
)
def test_majority_over_epochs(given_, value, agreement):
    found = majority("label")([answer("a", got) for got in given_])
    assert (found.value, found.parts["agreement"]) == (value, pytest.approx(agreement))


def test_majority_of_numbers_in_text():
    texts = ["6 * 12 = 72", "#### 72.0", "so 73"]
    assert majority("label", read="number")([answer("$72", text) for text in texts]).value == 1


# --- resampling ---------------------------------------------------------------------------------------------------


def mean_of(values):
    return lambda weights: {"": weights @ values / weights.sum(axis=1)}


def test_bootstrap_of_a_mean_has_its_standard_error_and_is_seeded():
    values = np.arange(40.0)
    found = [estimate_clusters(mean_of(values), range(40), resamples=2_000)[""] for _ in range(2)]
    assert found[0] == found[1]
    assert found[0].value == pytest.approx(19.5)
    assert found[0].standard_error == pytest.approx(values.std() / 40**0.5, rel=0.05)
    assert found[0].low < 16.5 < 22.5 < found[0].high


def test_clusters_are_drawn_whole():
    """Ten copies of each value say no more than one."""
    values = np.repeat(np.arange(10.0), 10)
    once = estimate_clusters(mean_of(np.arange(10.0)), range(10), resamples=500)[""]
    copies = estimate_clusters(mean_of(values), np.repeat(np.arange(10), 10).tolist(), resamples=500)[""]
    assert copies.standard_error == pytest.approx(once.standard_error)
    alone = estimate_clusters(mean_of(values), [0] * 100, resamples=10)[""]
    assert np.isnan(alone.low)
    assert estimate_clusters(mean_of(np.ones(9)), range(9), resamples=10)[""].method == "no spread seen"


def test_comparison_of_equal_and_of_different_sides():
    values = np.concatenate([np.arange(20.0), np.arange(20.0)])
    same = compare_clusters(mean_of(values), range(20), resamples=200)[""]
    assert (same.a, same.b, same.p_value) == (9.5, 9.5, 1)
    better = compare_clusters(mean_of(values + np.repeat([1.0, 0.0], 20)), range(20), resamples=999)[""]
    assert better.a - better.b == pytest.approx(1)
    assert better.p_value == pytest.approx(1 / 1000)


# --- on a report --------------------------------------------------------------------------------------------------

SAMPLES = [Sample(f"{n}", {"label": "ab"[n % 3 == 0]}, id=f"s{n}", group=f"g{n // 2}") for n in range(60)]


@dataset_metric
def share_of_a(answers):
    share = sum(each.output.label == "a" for each in answers) / len(answers)
    return Score(share, parts={"percent": 100 * share})


@dataset_metric(over="epochs", lower_is_better=True)
def distinct(answers):
    return len({each.output.label for each in answers})


@dataset_metric
def broken(answers):
    raise RuntimeError("no")


TASK = Task(
    "t", SAMPLES, "{input}", Guess,
    [field_match("label"), macro_f1("label"), per_class("label"), calibration(), share_of_a, distinct],
)  # fmt: skip


def answers_of(right):
    return {
        sample.id: {"label": sample.target["label"] if right(n) else "b", "confidence": 0.75}
        for n, sample in enumerate(SAMPLES)
    }


@pytest.fixture(scope="module")
def session(tmp_path_factory):
    with Session("w", database_url=f"sqlite:///{tmp_path_factory.mktemp('metrics')}/llm.db") as opened:
        yield opened


@pytest.fixture(scope="module")
def report(session):
    answers = {"good": answers_of(lambda n: n % 10) | {"s1": None}, "bad": answers_of(lambda n: n % 2)}
    return session.score(TASK, answers, name="run", progress=False)


def row_of(frame, metric, variant="good"):
    key = "variant" if "variant" in frame else "a"
    return frame[(frame["metric"] == metric) & (frame[key] == variant)].iloc[0]


def test_summary_has_values_with_intervals(report):
    frame = report.summary()
    f1 = row_of(frame, "macro_f1")
    assert f1["ci_low"] < f1["mean"] < f1["ci_high"] < 1
    assert (f1["interval"], f1["scored"], f1["n"]) == ("cluster bootstrap", 59, 60)
    assert f1["mean_failures_as_zero"] < f1["mean"]
    assert row_of(frame, "per_class.recall.b")["mean"] == 1
    assert row_of(frame, "share_of_a.percent")["mean"] == pytest.approx(100 * row_of(frame, "share_of_a")["mean"])
    assert row_of(frame, "distinct")["mean"] == 1
    assert row_of(frame, "calibration")["lower_is_better"]
    assert report.main_dataset_metrics == ("macro_f1", "per_class", "calibration", "share_of_a", "distinct")
    assert "Less is better: calibration, distinct." in report.notes


def test_comparison_and_gate(report):
    frame = report.compare("good", "bad", "macro_f1")
    row = row_of(frame, "macro_f1")
    assert 0 < row["ci_low"] < row["difference"] < row["ci_high"]
    assert (row["pairs"], row["left_out"], row["clusters"], row["method"]) == (59, 1, 30, "cluster bootstrap")
    assert row["p_value"] < 0.01
    assert len(report.compare("good", "bad")) == 6
    named = {"metrics": ("macro_f1", "distinct"), "margin": 0.05, "minimums": {"per_class.recall.a": 0.5}}
    with pytest.raises(LLMEvaluationError, match="distinct cannot be compared"):
        check_gate(report, GateRules(**named), variants=match_variants(report, None, "good", "bad"))
    rules = GateRules(**named, failures="excluded")
    gate = check_gate(report, rules, variants=match_variants(report, None, "good", "bad"))
    assert [(check.name, check.metric, check.passed) for check in gate.checks] == [
        ("non_inferiority", "macro_f1", True), ("coverage", "macro_f1", True),
        ("non_inferiority", "distinct", False), ("coverage", "distinct", True),
        ("minimum", "per_class.recall.a", True),
    ]  # fmt: skip
    worse = check_gate(report, GateRules(metrics=("macro_f1",)), variants=match_variants(report, None, "bad", "good"))
    assert not worse.passed
    with pytest.raises(LLMEvaluationError, match="For calibration less is better: set a maximum"):
        check_gate(report, GateRules(minimums={"calibration": 0.5}))


def test_confusion_and_reliability(report):
    frame = report.confusion("good")
    assert frame.to_dict("index") == {
        "a": {"a": 35, "b": 4, "(failed)": 1}, "b": {"a": 0, "b": 20, "(failed)": 0},
    }  # fmt: skip
    bins = report.reliability()
    assert bins["n"].sum() == 119
    assert bins[bins["n"] > 0]["confidence"].tolist() == [0.75, 0.75]
    axes = report.plot_confusion("good")
    assert [text.get_text() for text in axes.texts] == ["35", "4", "1", "0", "20", "0"]
    axes.figure.clear()


def test_page_json_slices_and_plot(report, tmp_path):
    page = report.to_html(tmp_path / "page.html").read_text()
    for text in ("Metrics over the data set", "Answers of good by target", "Reliability of the stated confidence"):
        assert text in page
    assert {row["metric"] for row in report.to_json()["summary"]} >= {"macro_f1", "calibration.brier"}
    by_parity = report.summary(by=parity)
    assert set(by_parity[by_parity["metric"] == "macro_f1"]["slice"]) == {"even", "odd"}
    axes = report.plot(metric="calibration")
    assert "calibration (less is better)" in axes.get_xlabel()
    axes.figure.clear()


def parity(sample):
    return "odd" if int(sample.input) % 2 else "even"


def test_a_stored_report_has_them_with_the_task(session, report):
    assert session.report("run").dataset_metrics == ()
    assert session.report("run", task=TASK).dataset_metrics == report.dataset_metrics
    assert deepcopy(report).summary()["metric"].unique().tolist() == ["field_match"]
    with pytest.raises(LLMEvaluationError, match=r"needs the samples: session.report"):
        session.report("run").confusion("good")


def test_free_text_over_epochs(session):
    """Two of three repeats are right; a function of the user's own sees the text itself."""

    @dataset_metric
    def longest(answers):
        return max(len(each.output) for each in answers)

    samples = [Sample(f"{n}", 72, id=f"s{n}") for n in range(4)]
    task = Task("n", samples, "{input}", str, [number_match(), majority(read="number"), longest])
    rows = [
        {"id": f"s{n}", "epoch": k, "output": text} for n in range(4) for k, text in enumerate(["72", "so 72.0", "7"])
    ]
    report = session.score(task, rows, name="text", progress=False)
    values = {
        name: row_of(report.summary(), name, "answers")["mean"] for name in ("number_match", "majority", "longest")
    }
    assert values == {"number_match": pytest.approx(2 / 3), "majority": 1, "longest": 7}


def test_a_metric_that_raises_is_a_note_and_not_a_crash(session):
    task = Task("b", SAMPLES, "{input}", Guess, [broken])
    report = session.score(task, answers_of(lambda _n: True), name="broken", progress=False)
    assert np.isnan(row_of(report.summary(), "broken", "answers")["mean"])
    assert "The metric broken failed on answers: RuntimeError: no" in report.notes


def test_yaml_names_them(tmp_path):
    (tmp_path / "task.yaml").write_text(
        "name: t\ndataset: t.jsonl\nprompt: '{input}'\nscorers: [field_match, {macro_f1: label}, {per_class: label}]\n"
        "output_schema: {properties: {label: {enum: [a, b]}}, required: [label]}\n"
    )
    (task,) = load_tasks(tmp_path / "task.yaml")
    assert [metric.name for metric in task.dataset_metrics] == ["macro_f1", "per_class"]
    assert [scorer.name for scorer in task.scorer_objects] == ["field_match"]


def test_what_cannot_be_a_metric_is_refused():
    with pytest.raises(LLMEvaluationError, match="must take one argument"):
        dataset_metric(two_arguments)
    with pytest.raises(LLMEvaluationError, match="over 'samples' or 'epochs'; got 'runs'"):
        dataset_metric(over="runs")
    with pytest.raises(LLMEvaluationError, match="no field 'lable'"):
        Task("t", SAMPLES, "{input}", Guess, [macro_f1("lable")])
    with pytest.raises(LLMEvaluationError, match="Two scorers are called 'macro_f1'"):
        Task("t", SAMPLES, "{input}", Guess, [macro_f1("label"), macro_f1("label")])


def two_arguments(output, sample):
    return 0
