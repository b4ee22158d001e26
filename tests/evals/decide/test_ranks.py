"""Ranks of variants: the probability of being best, and intervals that hold for all at once."""

import numpy as np
import pytest

from tests.support.recorded_runs import make_report, make_result


def ranks_of(table, **spec):
    results = [make_result(label, f"s{i}", float(v)) for label, row in table.items() for i, v in enumerate(row)]
    return make_report(results, **spec).ranks().set_index("variant")


def test_clear_order():
    rng = np.random.default_rng(1)
    table = {label: rng.binomial(1, p, 300) for label, p in {"a": 0.5, "b": 0.95, "c": 0.1}.items()}
    frame = ranks_of(table)
    assert frame.index.tolist() == ["b", "a", "c"]
    assert frame[["rank", "rank_low", "rank_high"]].to_numpy().tolist() == [[1, 1, 1], [2, 2, 2], [3, 3, 3]]
    assert frame.loc["b", "p_best"] == 1.0


def test_equal_variants_share_the_first_place():
    rows = [0, 1] * 20
    frame = ranks_of({"a": rows, "b": rows, "c": rows})
    assert frame["p_best"].tolist() == pytest.approx([1 / 3] * 3)
    assert frame[["rank_low", "rank_high"]].to_numpy().tolist() == [[1, 3]] * 3


def test_less_is_better():
    frame = ranks_of({"a": [0.9, 0.8, 0.7, 0.95], "b": [0.1, 0.2, 0.15, 0.1]}, lower_is_better=["match"])
    assert frame.index.tolist() == ["b", "a"]
    assert frame.loc["b", "p_best"] == 1.0


@pytest.mark.slow
def test_rank_intervals_hold_for_nearly_equal_variants():
    """Few of 100 studies of four equal variants may claim an order."""
    rng, claims = np.random.default_rng(2), 0
    for _ in range(100):
        frame = ranks_of({label: rng.binomial(1, 0.7, 60) for label in "abcd"})
        claims += bool((frame["rank_low"] > 1).any())
    assert claims <= 10


def test_a_report_without_results_has_no_ranks():
    assert make_report([]).ranks().empty
