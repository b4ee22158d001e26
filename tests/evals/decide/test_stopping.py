"""The stop rule decides in its own order, keeps its decision, and says why it cannot decide."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmkit.errors import LLMEvaluationError
from llmkit.evals.decide.stopping import Decided, DecisionWatch, order_units


def watch_of(count, rule=None, **options):
    return DecisionWatch(rule or Decided("m"), "a", "b", {f"s{i}": [f"s{i}"] for i in range(count)}, **options)


def note_all(watch, pairs, order=None):
    for i in order if order is not None else range(len(pairs)):
        watch.note("a", f"s{i}", pairs[i][0])
        watch.note("b", f"s{i}", pairs[i][1])


def test_a_clear_difference_is_decided_early_and_stays_decided():
    watch = watch_of(100)
    note_all(watch, [(1.0, 0.0)] * 100)
    found = watch.conclude()
    assert (found.verdict, found.is_decided) == ("better", True)
    assert found.units < 15
    assert found.low > 0
    assert found.describe().startswith("Stopped when decided: a is better than b in m on ")


def test_a_worse_first_variant():
    watch = watch_of(100)
    note_all(watch, [(0.0, 1.0)] * 100)
    assert watch.conclude().describe().startswith("Stopped when decided: b is better than a in m")


def test_less_is_better():
    watch = watch_of(100, lower_is_better=True)
    note_all(watch, [(0.0, 1.0)] * 100)
    assert watch.conclude().verdict == "better"


def test_equal_variants_are_within_a_margin():
    watch = watch_of(400, Decided("m", margin=0.05))
    note_all(watch, [(1.0, 1.0)] * 400)
    found = watch.conclude()
    assert found.verdict == "better"
    assert "a is at most 0.05 worse than b" in found.describe()


def test_a_loss_beyond_the_margin():
    watch = watch_of(400, Decided("m", margin=0.05))
    note_all(watch, [(0.0, 1.0)] * 400)
    assert "a is worse by more than 0.05 than b" in watch.conclude().describe()


@pytest.mark.slow
@given(st.permutations(range(30)), st.lists(st.sampled_from([0.0, 1.0]), min_size=60, max_size=60))
def test_the_order_of_arrival_changes_nothing(order, scores):
    pairs = list(zip(scores[:30], scores[30:], strict=True))
    first, second = watch_of(30), watch_of(30)
    note_all(first, pairs)
    note_all(second, pairs, order)
    assert first.conclude() == second.conclude()


def test_samples_that_finish_first_do_not_count_before_their_turn():
    """Easy samples come first when answers take as long as they are hard."""
    watch = watch_of(100)
    note_all(watch, [(1.0, 0.0)] * 100, order=range(1, 100))
    assert watch.conclude().units == 0
    watch.note("a", "s0", 0.0)
    watch.note("b", "s0", 1.0)
    assert watch.is_decided


def test_a_group_is_one_unit():
    units = {f"g{i}": [f"s{i}-{k}" for k in range(10)] for i in range(20)}
    watch = DecisionWatch(Decided("m"), "a", "b", units)
    for i in range(4):
        for k in range(10):
            watch.note("a", f"s{i}-{k}", 1.0)
            watch.note("b", f"s{i}-{k}", 0.0)
    assert (watch.conclude().units, watch.is_decided) == (4, False)


def test_a_pair_without_a_score_is_left_out():
    watch = watch_of(3)
    note_all(watch, [(1.0, None), (1.0, 0.0), (1.0, 1.0)])
    assert watch.conclude().units == 2


def test_scores_outside_of_the_range_decide_nothing():
    watch = watch_of(100)
    note_all(watch, [(7.0, 0.0)] * 100)
    found = watch.conclude()
    assert (found.is_decided, found.units) == (False, 0)
    assert found.describe() == (
        "The stop rule on m cannot decide: scores have to lie within 0 and 1; sample s0 has 7 and 0."
    )


def test_the_seed_decides_the_order_and_more_units_do_not_change_it():
    units = [f"s{i}" for i in range(50)]
    assert order_units(units, 1) != order_units(units, 2)
    assert [unit for unit in order_units([*units, "x", "y"], 1) if unit in units] == order_units(units, 1)


@pytest.mark.slow
def test_false_decisions_stay_below_alpha_when_hard_samples_finish_late():
    """300 runs without a difference of groups of three; about 2.5 % are expected."""
    rng, wrong = np.random.default_rng(3), 0
    for _ in range(300):
        watch = watch_of(120)
        hard = rng.random(120)
        pairs = [(float(rng.random() > h), float(rng.random() > h)) for h in hard]
        note_all(watch, pairs, order=np.argsort(hard).tolist())
        wrong += watch.is_decided
    assert wrong <= 15


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("field_match", Decided("field_match")),
        ("field_match: margin 0.02", Decided("field_match", margin=0.02)),
        (" m : alpha 0.1 , margin 0.5", Decided("m", margin=0.5, alpha=0.1)),
    ],
)
def test_rules_on_the_command_line(text, rule):
    assert Decided.parse(text) == rule


@pytest.mark.parametrize(
    "text", ["", ": margin 1", "m: marge 0.1", "m: margin", "m: margin x", "m: margin 2", "m: alpha 0"]
)
def test_wrong_rules_are_refused(text):
    with pytest.raises(LLMEvaluationError):
        Decided.parse(text)


@pytest.mark.parametrize("text", ["m: margin", "m: margin x", "m: margin nan"])
def test_a_rule_without_its_number_is_shown_as_it_was_written(text):
    with pytest.raises(LLMEvaluationError, match=f"got {text!r}"):
        Decided.parse(text)
