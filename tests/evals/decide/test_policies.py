"""Properties of policies as data."""

import pytest

from llmkit.errors import LLMEvaluationError
from llmkit.evals import Below, Cascade, Mix, Split
from llmkit.evals.policies import ends_policy, identify_policy
from tests.support.recorded_runs import make_report, make_result

POLICIES = [
    "a",
    Cascade("a", "b"),
    Cascade("b", "a"),
    Cascade("a", "b", when="repaired"),
    Cascade("a", "b", when="epochs_disagree", epochs=2),
    Cascade("a", "b", when="epochs_disagree", epochs=3),
    Cascade("a", "b", when=Below("c", 0.12345)),
    Cascade("a", "b", when=Below("c", 0.12346)),
    Cascade("a", "b", when=Below("d", 0.12346)),
    Cascade("a", Cascade("b", "c"), when=lambda output, sample: True),
    Mix("a", "b", 0.1),
    Mix("a", "b", 0.2),
    Split("group", {"x": "a"}, default="b"),
    Split("group", {"y": "a"}, default="b"),
    Split("group", ["a", "b"]),
]


def test_policies_that_differ_have_different_hashes():
    assert len({identify_policy(policy) for policy in POLICIES}) == len(POLICIES)


@pytest.mark.parametrize("code", ["authentication", "model_not_found", "bad_request", "configuration"])
def test_a_failure_that_no_model_mends_ends_a_cascade(code):
    assert ends_policy(code)
    results = [make_result("a", "s0", None, error_code=code), make_result("b", "s0", 1.0)]
    frame = make_report(results).what_if({"p": Cascade("a", "b")}).set_index("policy")
    assert frame.loc["p", "why_missing"] == f"a failed with {code}, which ends a cascade"


@pytest.mark.parametrize("code", ["invalid_output", "output_truncated", "timeout", "rate_limited", None])
def test_another_failure_goes_on(code):
    results = [make_result("a", "s0", None, error_code=code), make_result("b", "s0", 1.0)]
    assert make_report(results).what_if({"p": Cascade("a", "b")}).set_index("policy").loc["p", "mean"] == 1.0


def test_as_many_epochs_are_compared_and_paid_as_the_cascade_names():
    labels = ["x", "x", "y"]
    results = [
        make_result("a", "s0", 1.0, epoch, output_json=f'"{label}"', input_tokens=10)
        for epoch, label in enumerate(labels)
    ]
    results += [make_result("b", "s0", 0.0, epoch, input_tokens=100) for epoch in range(3)]
    frame = make_report(results).what_if(
        {
            "two": Cascade("a", "b", when="epochs_disagree", epochs=2),
            "all": Cascade("a", "b", when="epochs_disagree"),
            "four": Cascade("a", "b", when="epochs_disagree", epochs=4),
        }
    )
    frame = frame.set_index("policy")
    assert frame.loc["two", "escalated"] == 1.0
    assert frame.loc["two", "input_tokens"] == pytest.approx(20 + 100 * 2 / 3)
    assert frame.loc["all", "input_tokens"] == 130.0
    assert frame.loc["four", "why_missing"] == "a has 3 epochs, so 4 cannot be compared"


def test_a_threshold_on_log_probabilities_that_were_not_recorded_is_missing():
    results = [make_result("a", "s0", 1.0), make_result("b", "s0", 1.0)]
    frame = make_report(results).what_if({"p": Cascade("a", "b", when=Below("logprob_mean", -0.5))}).set_index("policy")
    assert frame.loc["p", "why_missing"] == "a has no recorded log-probability"


def test_fit_policy_sets_the_threshold():
    results = [
        make_result(
            label, f"s{i}", float(i % 2 or label == "b"), output_json=f'{{"confidence": {0.9 if i % 2 else 0.2}}}'
        )
        for label in "ab"
        for i in range(20)
    ]
    fitted = make_report(results).fit_policy(Cascade("a", "b", when=Below("confidence")))
    assert fitted.conditions[0].threshold == pytest.approx(0.55)
    with pytest.raises(LLMEvaluationError, match="There is no variant 'c'"):
        make_report(results).fit_policy(Cascade("a", "c"))
