"""Policies are followed over recorded results: who is called, what it costs, what is not known."""

import json
import math

import pandas as pd
import pytest

from llmkit.errors import LLMEvaluationError
from llmkit.evals import Below, Cascade, Mix, Sample, Split
from llmkit.evals.decide.forecast import WHAT_IF_COLUMNS
from llmkit.evals.decide.simulation import RecordedResults
from tests.support.recorded_runs import make_report, make_result

PRICES = {"a": (1.0, 2.0), "b": (10.0, 20.0)}  # 10 and 5 tokens: 20 and 200 USD per million answers


def report_of(a, b, **changes):
    """A report of scores of two variants on the samples s0, s1, ...; None is FAILED."""
    results = [make_result("a", f"s{i}", score, **changes) for i, score in enumerate(a)]
    results += [make_result("b", f"s{i}", score, latency_ms=300.0) for i, score in enumerate(b)]
    return make_report(results)


def row(report, policy, **options):
    frame = report.what_if({"p": policy}, **options)
    return frame.set_index("policy").loc["p"]


def test_frame_has_the_promised_columns():
    frame = report_of([1, 0], [1, 1]).what_if()
    assert list(frame.columns) == list(WHAT_IF_COLUMNS)
    assert frame["policy"].tolist() == ["a", "b"]


def test_single_variants_have_the_figures_of_the_summary():
    report = report_of([1, 0, 1, 1], [1, 1, 0, 1])
    frame, summary = report.what_if().set_index("policy"), report.summary().set_index("variant")
    for name in ("mean", "ci_low", "ci_high", "latency_p50_ms", "latency_p95_ms"):
        assert frame[name].tolist() == summary[name].tolist()
    compared = report.compare("b", "a").iloc[0]
    assert frame.loc["b", ["difference", "difference_low", "difference_high"]].tolist() == [
        compared["difference"],
        compared["ci_low"],
        compared["ci_high"],
    ]


def test_a_cascade_goes_on_where_the_first_answer_did_not_fit_and_pays_for_both():
    found = row(report_of([1, None, 0, 1], [0, 1, 1, 1]), Cascade("a", "b"), prices=PRICES)
    assert found["mean"] == 0.75
    assert found["escalated"] == 0.25
    assert found["calls"] == 1.25
    assert found["cost_usd"] == pytest.approx((4 * 20 + 200) / 4 / 1e6)
    assert found["input_tokens"] == 12.5
    assert found["latency_p50_ms"] == 100.0
    assert found["latency_p95_ms"] > 300.0


def test_a_failed_answer_counts_as_the_worst_score():
    frame = report_of([1, None, 0, 1], [0, 1, 1, 1]).what_if().set_index("policy")
    assert frame.loc["a", "mean"] == 0.5


@pytest.mark.parametrize("when", ["repaired", "reasked", ("repaired", "reasked")])
def test_conditions_by_outcome(when):
    results = [make_result("a", "s0", 0, outcome="repaired"), make_result("a", "s1", 0, outcome="reasked")]
    results += [make_result("b", f"s{i}", 1) for i in range(2)]
    found = row(make_report(results), Cascade("a", "b", when=when))
    assert found["escalated"] == (1.0 if isinstance(when, tuple) else 0.5)


def test_an_unknown_outcome_is_missing_and_not_guessed():
    results = [make_result("a", "s0", 1, outcome=None), make_result("b", "s0", 1)]
    found = row(make_report(results), Cascade("a", "b", when="repaired"))
    assert (found["scored"], found["missing"]) == (0, 1)
    assert found["why_missing"] == "it was not recorded whether a repaired"


def test_a_cascade_by_disagreement_pays_for_every_epoch():
    outputs = {("s0", 0): "x", ("s0", 1): "y", ("s1", 0): "x", ("s1", 1): "x"}
    results = [
        make_result("a", sample, 1, epoch, output_json=json.dumps({"label": label}))
        for (sample, epoch), label in outputs.items()
    ]
    results += [make_result("b", sample, 0, epoch) for sample, epoch in outputs]
    found = row(make_report(results), Cascade("a", "b", when="epochs_disagree"))
    assert found["mean"] == 0.5
    assert found["calls"] == (3 + 3 + 2 + 2) / 4


class CountingResults(dict):
    """Results of a variant that count how often all of them are walked through."""

    walks = 0

    def items(self):
        self.walks += 1
        return super().items()


def test_epochs_are_found_without_a_search_for_each_sample():
    keys = [(f"s{i}", epoch) for i in range(20) for epoch in range(2)]
    results = CountingResults({key: make_result("a", key[0], 1, key[1]) for key in keys})
    recorded = RecordedResults({"a": results}, {}, {})
    assert [[each.epoch for each in recorded.epochs(results[key])] for key in keys] == [[0, 1], [1, 0]] * 20
    assert results.walks == 1


def test_disagreement_needs_two_epochs():
    found = row(report_of([1, 1], [1, 1]), Cascade("a", "b", when="epochs_disagree"))
    assert found["why_missing"] == "a has one epoch, so nothing can disagree"


def test_a_condition_may_be_a_function_of_output_and_sample():
    samples = {f"s{i}": Sample(text, "x", id=f"s{i}") for i, text in enumerate(["short", "a long text"])}
    report = report_of([0, 0], [1, 1])
    report = make_report(report.results, samples)
    found = row(report, Cascade("a", "b", when=lambda output, sample: len(sample.input) > 5))
    assert (found["mean"], found["escalated"]) == (0.5, 0.5)


def test_a_stated_confidence_below_a_threshold_goes_on():
    results = [
        make_result("a", f"s{i}", i, output_json=json.dumps({"confidence": value}))
        for i, value in enumerate([0.2, 0.9])
    ]
    results += [make_result("b", f"s{i}", 1) for i in range(2)]
    found = row(make_report(results), Cascade("a", "b", when=Below("confidence", 0.5)))
    assert (found["mean"], found["escalated"]) == (1.0, 0.5)


def test_a_signal_that_was_not_recorded_is_missing():
    found = row(report_of([1, 1], [1, 1]), Cascade("a", "b", when=Below("confidence", 0.5)))
    assert (found["missing"], found["why_missing"]) == (2, "a has no number for the signal")
    assert math.isnan(found["mean"])


@pytest.mark.parametrize("signal", ["logprob_mean", "logprob_min", "logprob_min.label"])
def test_a_recorded_log_probability_below_a_threshold_goes_on(signal):
    results = [
        make_result("a", f"s{i}", i, logprob_mean=value, logprob_min=value,
                    field_logprobs={"label": {"mean": value, "min": value}})
        for i, value in enumerate([-2.0, -0.1])
    ]  # fmt: skip
    results += [make_result("b", f"s{i}", 1) for i in range(2)]
    found = row(make_report(results), Cascade("a", "b", when=Below(signal, -1.0)))
    assert (found["mean"], found["escalated"]) == (1.0, 0.5)
    seen = row(
        make_report(results),
        lambda _s, steps: "a" if not steps else "b" if steps[0].logprobs[signal] < -1 and len(steps) < 2 else None,
    )
    assert (seen["mean"], seen["calls"]) == (1.0, 1.5)


def test_a_log_probability_that_was_not_recorded_is_missing():
    found = row(report_of([1, 1], [1, 1]), Cascade("a", "b", when=Below("logprob_min", -1.0)))
    assert (found["missing"], found["why_missing"]) == (2, "a has no recorded log-probability")


def test_a_chain_of_three():
    results = [make_result("a", "s0", None), make_result("b", "s0", 0, outcome="repaired"), make_result("c", "s0", 1)]
    found = row(make_report(results), Cascade("a", Cascade("b", "c", when="repaired")))
    assert (found["mean"], found["calls"], found["latency_p50_ms"]) == (1.0, 3.0, 300.0)


def test_a_split_by_group():
    samples = {f"s{i}": Sample("t", "x", id=f"s{i}", group=group) for i, group in enumerate(["de", "en", "fr"])}
    report = make_report(report_of([1, 0, 0], [0, 1, 1]).results, samples)
    found = row(report, Split("group", {"de": "a", "en": "b"}))
    assert (found["mean"], found["scored"], found["why_missing"]) == (1.0, 2, "no policy for 'fr'")
    assert row(report, Split("group", {"de": "a"}, default="b"))["mean"] == 1.0


def test_a_split_by_metadata():
    samples = {f"s{i}": Sample("t", "x", id=f"s{i}", metadata={"long": i > 0}) for i in range(2)}
    report = make_report(report_of([1, 0], [0, 1]).results, samples)
    assert row(report, Split("metadata.long", {False: "a", True: "b"}))["mean"] == 1.0


def test_a_mix_is_the_expectation():
    found = row(report_of([0, 0, 1, 1], [1, 1, 1, 1]), Mix("a", "b", 0.25), prices=PRICES)
    assert found["mean"] == pytest.approx(0.625)
    assert found["cost_usd"] == pytest.approx((0.75 * 20 + 0.25 * 200) / 1e6)
    assert (found["latency_p50_ms"], found["latency_p95_ms"]) == (100.0, 300.0)


def test_a_function_decides_step_by_step():
    def policy(sample, steps):
        if not steps:
            return "a"
        return "b" if steps[-1].status == "FAILED" and len(steps) == 1 else None

    assert row(report_of([1, None], [0, 1]), policy)["mean"] == 1.0


def test_a_function_that_does_not_end_is_refused():
    with pytest.raises(LLMEvaluationError, match="return None to end"):
        row(report_of([1], [1]), lambda sample, steps: "a")


def test_a_sample_that_was_not_run_is_missing():
    report = make_report([*report_of([1, 1], [1]).results, make_result("b", "s1", status="NOT_RUN")])
    found = row(report, Cascade("b", "a", when="repaired"))
    assert (found["missing"], found["why_missing"]) == (1, "b was not run on the sample")


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda r: r.what_if({"p": "c"}), "There is no variant 'c'; there are: a, b."),
        (lambda r: r.what_if({"a": "b"}), "'a' is a variant already"),
        (lambda r: r.what_if(reference="x"), "There is no policy 'x'"),
        (lambda r: r.what_if(metric="x"), "There is no metric 'x'; there are: match."),
        (lambda r: r.what_if(prices={"c": (1, 1)}), "There is no variant 'c' to price"),
        (lambda r: r.what_if({"p": Cascade("a", "b", when="unsure")}), "Unknown condition 'unsure'"),
        (lambda r: r.what_if({"p": Split("language", {})}), "by must be 'group'"),
        (lambda r: r.what_if({"p": Mix("a", "b", 2)}), "share must be between 0 and 1"),
        (lambda r: r.what_if({"p": 3}), "A policy is a variant's label, Cascade, Split, Mix or a function; got int."),
        (lambda r: r.what_if({"p": Cascade("a", 3)}), "A policy is a variant's label"),
        (lambda r: r.what_if({"p": lambda sample, steps: "z"}), "returned 'z', which is no variant"),
        (lambda r: r.frontier(against="money"), "against must be"),
    ],
)
def test_mistakes_are_one_clear_line(call, words):
    with pytest.raises(LLMEvaluationError, match=words.replace("(", r"\(")):
        call(report_of([1, 0], [1, 1]))


def needs_a_field(output, *_):
    return output["absent"] > 1


@pytest.mark.parametrize(
    "policy",
    [
        Cascade("a", "b", when=needs_a_field),
        Cascade("a", "b", when=Below(needs_a_field, 0.5)),
        Split(lambda sample: sample.absent, {"x": "a"}),
        lambda sample, steps: sample.absent,
    ],
)
def test_an_error_of_a_function_names_it_and_the_sample(policy):
    with pytest.raises(LLMEvaluationError, match=r"function .+ raised \w+Error on sample s0") as caught:
        row(report_of([1], [1]), policy)
    assert isinstance(caught.value.__cause__, KeyError | AttributeError)


def test_a_split_may_be_by_a_list():
    found = row(report_of([1, 0], [0, 1]), Split(lambda sample: [sample.key], {"['s0']": "a", "['s1']": "b"}))
    assert found["mean"] == 1.0


def test_a_chosen_threshold_shows_both_figures_and_the_choice():
    results = []
    for i in range(40):
        confidence = i / 40
        results.append(make_result("a", f"s{i}", float(i >= 20), output_json=json.dumps({"confidence": confidence})))
        results.append(make_result("b", f"s{i}", 1.0))
    found = row(make_report(results), Cascade("a", "b", when=Below("confidence")))
    assert found["mean_in_sample"] == 1.0
    assert found["fitted"] == "a then b when confidence is below 0.4875"
    assert 0.9 <= found["mean"] <= 1.0


def test_a_chosen_threshold_obeys_its_largest_share():
    results = []
    for i in range(40):
        results.append(make_result("a", f"s{i}", 0.0, output_json=json.dumps({"confidence": i / 40})))
        results.append(make_result("b", f"s{i}", 1.0))
    assert row(make_report(results), Cascade("a", "b", when=Below("confidence", max_share=0.25)))[
        "mean_in_sample"
    ] == pytest.approx(0.25)


def test_less_is_better_turns_the_choice_round():
    results = [make_result("a", f"s{i}", 0.2) for i in range(20)] + [make_result("b", f"s{i}", 0.1) for i in range(20)]
    report = make_report(results, lower_is_better=["match"])
    found = row(report, Split(lambda sample: "all", ["a", "b"]))
    assert found["fitted"].endswith("all to b, others to b")


def test_choices_are_evaluated_on_other_clusters():
    """With one group there is no other data, so nothing is claimed."""
    samples = {f"s{i}": Sample("t", "x", id=f"s{i}", group="g") for i in range(4)}
    report = make_report(report_of([1, 0, 1, 0], [0, 1, 0, 1]).results, samples)
    found = row(report, Split("group", ["a", "b"]))
    assert found["why_missing"] == "the first fifth is only chosen on"


def test_four_fifths_are_evaluated_with_the_choices_of_the_folds_before():
    found = row(report_of([1] * 50, [0] * 50), Split(lambda sample: "all", ["b", "a"]))
    assert (found["scored"], found["missing"], found["mean"]) == (40, 10, 1.0)


def test_a_choice_that_only_fits_its_own_sample_gains_nothing():
    samples = {f"s{i}": Sample("t", "x", id=f"s{i}", metadata={"key": i}) for i in range(40)}
    report = make_report(report_of([1, 0] * 20, [0, 1] * 20).results, samples)
    found = row(report, Split("metadata.key", ["a", "b"]))
    assert found["mean_in_sample"] == 1.0
    assert found["mean"] <= 0.6


def test_variants_of_other_runs_take_part():
    first, second = report_of([1, 0], [1, 1]), make_report([make_result("a", f"s{i}", 1) for i in range(2)], name="new")
    frame = first.what_if({"p": Cascade("a", "a of new", when=lambda output, sample: True)}, runs=[second])
    assert frame.set_index("policy").loc["p", "mean"] == 1.0


def test_edited_samples_of_other_runs_are_refused():
    edited = make_report([make_result("a", "s0", 1, pipeline_run_id="eval:x:y:0:0123456789abcdef0")], name="new")
    with pytest.raises(LLMEvaluationError, match="edited"):
        report_of([1], [1]).what_if(runs=[edited])


def test_an_unknown_price_is_an_unknown_cost():
    found = row(report_of([1, 1], [1, 1]), Cascade("a", "b"))
    assert math.isnan(found["cost_usd"])
    assert pd.notna(found["input_tokens"])
