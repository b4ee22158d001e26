"""A confirming run is compared with the forecast: score, cost, tokens and latency, on the same samples."""

import numpy as np
import pytest

from llmkit.errors import LLMEvaluationError
from llmkit.evals import Cascade, Mix
from llmkit.evals.decide.forecast import CHECK_COLUMNS
from tests.support.recorded_runs import make_report, make_result

SCORES = [1.0, 0.0, 1.0, 1.0] * 10


def report_of(label, scores, **changes):
    return make_report([make_result(label, f"s{i}", score, **changes) for i, score in enumerate(scores)])


def recorded():
    failing = [make_result("a", f"s{i}", score if i % 4 else None) for i, score in enumerate(SCORES)]
    return make_report([*failing, *(make_result("b", f"s{i}", score) for i, score in enumerate(SCORES))])


def test_a_run_as_forecast_is_contained_in_every_measure():
    forecast, policy = recorded(), Cascade("a", "b")
    row = forecast.what_if({"p": policy}).set_index("policy").loc["p"]
    ran = [
        make_result("policy:p", f"s{i}", score, input_tokens=10 if i % 4 else 20, output_tokens=5 if i % 4 else 10)
        for i, score in enumerate(SCORES)
    ]
    check = forecast.check_forecast({"p": policy}, make_report(ran)).set_index("measure")
    assert list(check.reset_index().columns[1:2]) == ["policy"]
    assert set(check.columns) == set(CHECK_COLUMNS) - {"measure"}
    assert check.loc["match", "forecast"] == row["mean"]
    assert check.loc[["match", "input_tokens", "output_tokens"], "contained"].all()
    assert check.loc["input_tokens", "difference"] == 0.0


def test_a_run_that_went_otherwise_is_not_contained():
    check = recorded().check_forecast({"p": Cascade("a", "b")}, report_of("policy:p", [0.0] * 40)).set_index("measure")
    assert not check.loc["match", "contained"]
    assert check.loc["match", "difference_high"] < 0


def test_unknown_costs_are_missing():
    check = recorded().check_forecast({"p": "b"}, report_of("policy:p", SCORES)).set_index("measure")
    assert check.loc["cost_usd", "pairs"] == 0
    assert np.isnan(check.loc["cost_usd", "forecast"])
    assert check["contained"].isna().loc["cost_usd"]


def test_the_interval_of_a_mix_allows_for_the_draw():
    results = [make_result(label, f"s{i}", float((i + (label == "a")) % 2)) for label in "ab" for i in range(40)]
    ran = report_of("policy:p", [1.0, 0.0] * 20)
    check = make_report(results).check_forecast({"p": Mix("a", "b", 0.5)}, ran)
    assert check.loc[0, "forecast"] == 0.5
    assert check.loc[0, "contained"]


def test_a_policy_that_did_not_run_is_refused():
    with pytest.raises(LLMEvaluationError, match="ran no policy:p; it ran: policy:q"):
        recorded().check_forecast({"p": "b"}, report_of("policy:q", SCORES))
    with pytest.raises(LLMEvaluationError, match="ran no policy:NAME"):
        recorded().check_forecast({}, report_of("policy:q", SCORES))


def test_an_interval_is_in_the_unit_of_its_measure():
    scores = [1.0, 0.0] * 20
    results = [make_result("a", f"s{i}", score, latency_ms=0.2 + i / 100) for i, score in enumerate(scores)]
    ran = [make_result("policy:p", f"s{i}", score, latency_ms=0.2 + i / 90) for i, score in enumerate(scores)]
    row = make_report(results).check_forecast({"p": "a"}, make_report(ran)).set_index("measure").loc["latency_ms"]
    assert row["forecast"] == pytest.approx(0.395)
    assert 0.3 < row["forecast_low"] < row["forecast"] < row["forecast_high"] < 0.5
    assert 0 < row["difference_low"] < row["difference"] < row["difference_high"] < 0.05
