"""A policy is dominated only where the data show it."""

from llmkit.evals import Cascade
from tests.support.recorded_runs import make_report, make_result


def report_of(**variants):
    return make_report(
        make_result(label, f"s{i}", score, input_tokens=tokens, output_tokens=0)
        for label, (tokens, scores) in variants.items()
        for i, score in enumerate(scores)
    )


def test_a_clearly_worse_and_dearer_variant_is_dominated():
    report = report_of(cheap=(10, [1.0] * 40), dear=(20, [0.0] * 40), best=(30, [1.0] * 40))
    frame = report.frontier(against="tokens").set_index("policy")
    assert frame.index.tolist() == ["cheap", "dear", "best"]
    assert frame["dominated_by"].fillna("").to_dict() == {"cheap": "", "dear": "cheap", "best": "cheap"}
    assert frame["on_frontier"].tolist() == [True, False, False]


def test_a_difference_that_is_not_shown_dominates_nothing():
    report = report_of(a=(10, [1, 1, 1, 0, 1, 0]), b=(20, [1, 1, 0, 0, 1, 0]))
    assert report.frontier(against="tokens")["on_frontier"].all()


def test_cost_that_is_unknown_dominates_nothing():
    report = report_of(a=(10, [1.0] * 40), b=(20, [0.0] * 40))
    assert report.frontier(against="cost")["on_frontier"].all()
    prices = {"a": (1.0, 1.0), "b": (1.0, 1.0)}
    assert report.frontier(against="cost", prices=prices)["on_frontier"].tolist() == [True, False]


def test_less_is_better_turns_domination_round():
    results = report_of(a=(10, [0.1] * 40), b=(20, [0.9] * 40)).results
    frame = make_report(results, lower_is_better=["match"]).frontier(against="tokens").set_index("policy")
    assert frame["on_frontier"].to_dict() == {"a": True, "b": False}


def test_policies_take_part():
    report = report_of(a=(10, [1.0] * 20 + [None] * 20), b=(50, [1.0] * 40))
    frame = report.frontier(against="tokens", policies={"careful": Cascade("a", "b")}).set_index("policy")
    assert frame.loc["careful", "value"] == 35.0
    assert frame.loc["b", "dominated_by"] == "careful"
