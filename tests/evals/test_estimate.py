"""A plan says what is left to call and what it will take, as far as an earlier run can tell."""

import json

import numpy as np
import pytest
from scipy import stats

from llmkit.cli.main import run_command as llmkit
from llmkit.errors import LLMEvaluationError, LLMTimeout
from llmkit.evals import Decided
from llmkit.evals import statistics as s
from llmkit.evals.estimate import WIDEST_SPREAD, early_stop, forecast, margin_size, sample_size
from llmkit.settings import load_settings
from llmkit.testing import GeminiServer, Reply
from tests.support.eval_fakes import FakeExtract, Sentiment, invalid, right, run, sentiment_task
from tests.support.recorded_runs import make_report, make_result

A, B = "ollama/a", "gemini/b"
FLASH = "gemini/gemini-2.5-flash"


def failing(call):
    if "bad" in call.text:
        raise LLMTimeout("slow")
    if "awful" in call.text:
        raise invalid(call.route)
    return right(call)


async def test_what_is_stored_is_not_counted_again():
    report = await run(routes=(A,), extract=FakeExtract(failing))
    first, second = forecast(sentiment_task(), [A, B], run=report, epochs=2, concurrency=2)
    # Two answers and an unusable one stay; the time-out and the second epoch are called.
    assert (first.results, first.done, first.calls, first.known_from) == (8, 3, 5, 2)
    assert (first.input_tokens, first.output_tokens) == (50, 20)
    assert first.time_s == pytest.approx(5 * 0.020 / 2)
    assert (second.calls, second.known_from, second.input_tokens, second.time_s) == (8, 0, None, None)
    (new,) = forecast(sentiment_task(), [A], history=report, limit=3)
    assert (new.done, new.calls, new.input_tokens) == (0, 3, 30)


@pytest.mark.parametrize(
    ("limits", "seconds"),
    [
        ({}, 4 * 0.020 / 2),
        ({"ollama_requests_per_minute": 4}, 4 * 0.020 / 2),
        ({"ollama_requests_per_minute": 2}, 60),
        ({"ollama_tokens_per_minute": 15}, 180),  # answers count too: 10 and 4 tokens for each of four calls
        ({"gemini_requests_per_minute": 1}, 4 * 0.020 / 2),
    ],
)
async def test_limits_per_minute_make_a_plan_longer(limits, seconds):
    report = await run(routes=(A,))
    plan = {"history": report, "concurrency": 2}
    first, policy = forecast(sentiment_task(), [A, "policy:fast"], settings=load_settings(**limits), **plan)
    assert first.time_s == pytest.approx(seconds)
    assert policy.time_s is None
    assert forecast(sentiment_task(), [A], **plan)[0].time_s == pytest.approx(4 * 0.020 / 2)


async def test_a_plan_under_a_name_of_another_task_is_refused():
    report = await run()
    with pytest.raises(LLMEvaluationError, match="another task"):
        forecast(sentiment_task(prompt="T: {input}"), [A], run=report)
    with pytest.raises(LLMEvaluationError, match="at least 1"):
        forecast(sentiment_task(), [A], epochs=0)


async def test_the_samples_that_a_difference_needs():
    def worse(call):
        return right(call) if call.route.model == "a" or "good" not in call.text else Sentiment(label="negative")

    report = await run(routes=(A, B), extract=FakeExtract(worse))
    spread = np.std([1, 0, 0, 0], ddof=1)
    found = sample_size("field_match", 0.1, history=report)
    # The two differ on one sample of four, and zeros and ones are planned by the test that `compare` uses.
    assert (found.spread, found.known_from, found.test) == (spread, 4, "mcnemar")
    assert found.samples == s.count_share_pairs_needed(0.1, 0.25)
    unknown = sample_size("field_match", 0.1)
    assert (unknown.spread, unknown.known_from) == (WIDEST_SPREAD, 0)
    assert unknown.samples == s.count_share_pairs_needed(0.1, 0.5)
    with pytest.raises(LLMEvaluationError, match="no metric 'x'"):
        sample_size("x", 0.1, history=report)
    with pytest.raises(LLMEvaluationError, match="No sample size"):
        sample_size("x", 0)


@pytest.mark.parametrize(("effect", "power", "n"), [(0.5, 0.8, 34), (0.2, 0.8, 199), (0.5, 0.9, 44), (0.8, 0.8, 15)])
def test_pairs_needed_are_those_of_the_tables(effect, power, n):
    # As G*Power gives them for a two-sided paired t test at 5 %.
    assert s.count_pairs_needed(effect, 1.0, power=power) == n
    assert s.count_pairs_needed(-effect * 3, 3.0, power=power) == n


def test_so_many_pairs_see_the_difference_so_often():
    rng = np.random.default_rng(30)
    n = s.count_pairs_needed(0.4, 1.0)
    p = stats.ttest_1samp(rng.normal(0.4, 1, size=(4_000, n)), 0, axis=1).pvalue
    assert np.mean(p < 0.05) == pytest.approx(0.8, abs=0.02)


def mcnemar_p(gains, disagreeing):
    """Exact p-values, by scipy and not by our code."""
    tail = 2 * stats.binom.cdf(np.minimum(gains, disagreeing - gains), disagreeing, 0.5)
    return np.where(disagreeing > 0, np.minimum(1, tail), 1.0)


@pytest.mark.parametrize(
    ("difference", "disagreement"), [(0.05, 0.1), (0.1, 0.2), (0.1, 0.5), (0.2, 0.3), (0.3, 0.3), (0.5, 0.6)]
)
def test_planned_pairs_of_zeros_and_ones_see_the_difference_as_often_as_promised(difference, disagreement):
    rng = np.random.default_rng(31)
    n = s.count_share_pairs_needed(difference, disagreement)
    disagreeing = rng.binomial(n, disagreement, 20_000)
    gains = rng.binomial(disagreeing, (disagreement + difference) / (2 * disagreement))
    power = np.mean(mcnemar_p(gains, disagreeing) < 0.05)
    assert 0.79 <= power <= 0.9
    planned_by_t = s.count_pairs_needed(difference, np.sqrt(max(disagreement - difference**2, 1e-9)))
    assert n > planned_by_t


@pytest.mark.parametrize(("difference", "disagreement"), [(0.1, 0.05), (0.1, 1.1), (0, 0.5), (-0.3, 0.2)])
def test_impossible_disagreements_are_refused(difference, disagreement):
    with pytest.raises(ValueError, match="got"):
        s.count_share_pairs_needed(difference, disagreement)


def test_many_pairs_are_counted_exactly_too():
    # Within 2 % of Connor's formula (1987), where the binomial distribution is close to the normal one.
    difference, disagreement = 0.02, 0.3
    quantiles = stats.norm.ppf(0.975) * np.sqrt(disagreement)
    quantiles += stats.norm.ppf(0.8) * np.sqrt(disagreement - difference**2)
    expected = (quantiles / difference) ** 2
    assert s.count_share_pairs_needed(difference, disagreement) == pytest.approx(expected, rel=0.02)


@pytest.mark.parametrize(("sizes", "correlation"), [([10] * 8, 0.3), ([40, 5, 5, 5, 5, 5, 5, 5], 0.3)])
def test_planned_groups_see_the_difference_as_often_as_promised(sizes, correlation):
    """The samples that are planned come in groups like those of the pilot; so the power is as promised."""
    rng = np.random.default_rng(32)
    pilot = [number for number, size in enumerate(sizes) for _ in range(size)]
    effect = 1 + (sum(size**2 for size in sizes) / len(pilot) - 1) * correlation
    n = s.count_pairs_needed(
        0.3,
        1.0,
        design_effect=effect,
        clusters_per_pair=(s.compute_clustered_freedom(pilot) + 1) / len(pilot),
    )
    clusters = [(copy, group) for copy in range(-(-n // len(pilot))) for group in pilot][:n]
    _, codes = np.unique(np.array(clusters), axis=0, return_inverse=True)
    shared = rng.normal(size=(1_000, codes.max() + 1))[:, codes] * np.sqrt(correlation)
    draws = 0.3 + shared + rng.normal(size=(1_000, n)) * np.sqrt(1 - correlation)
    rejected = [s.compare_means(x, np.zeros(n), codes.tolist()).p_value < 0.05 for x in draws]
    assert 0.74 <= np.mean(rejected) <= 0.88


async def test_groups_without_a_pilot_count_once():
    groups = [f"document {number // 10}" for number in range(100)]
    found = sample_size("field_match", 0.1, groups=groups)
    assert found.test == "clustered paired t"
    assert found.clusters == pytest.approx(s.count_pairs_needed(0.1, WIDEST_SPREAD), abs=2)
    assert found.samples == pytest.approx(10 * found.clusters, abs=10)
    gate = margin_size("field_match", 0.02, groups=groups)
    assert gate.minimum == s.count_equal_pairs_for_margin(0.02, is_binary=False)
    assert sample_size("field_match", 0.1, groups=[None] * 50).clusters is None


@pytest.mark.parametrize(("margin", "needed"), [(0.01, 268), (0.02, 133), (0.05, 52), (0.1, 25)])
def test_the_pairs_that_a_margin_needs_even_if_all_answers_are_identical(margin, needed):
    assert s.count_equal_pairs_for_margin(margin) == needed
    same = [np.ones(n) for n in (needed - 1, needed)]
    assert [s.check_non_inferiority(x, x, margin).is_shown for x in same] == [False, True]
    needed = s.count_equal_pairs_for_margin(margin, is_binary=False)
    same = [np.full(n, 0.5) for n in (needed - 1, needed)]
    assert [s.check_non_inferiority(x, x, margin).is_shown for x in same] == [False, True]


@pytest.mark.slow
@pytest.mark.parametrize(("margin", "disagreement"), [(0.02, 0.05), (0.05, 0.3), (0.1, 0.2)])
def test_planned_pairs_pass_a_margin_as_often_as_promised(margin, disagreement):
    rng = np.random.default_rng(33)
    n = s.count_pairs_for_margin(margin, disagreement)
    passed = 0
    for _ in range(600):
        d = rng.choice([0, 1, -1], n, p=[1 - disagreement, disagreement / 2, disagreement / 2])
        passed += s.check_non_inferiority((d == 1).astype(float), (d == -1).astype(float), margin).is_shown
    assert 0.76 <= passed / 600 <= 0.86


@pytest.mark.parametrize(
    "numbers", [(0, 1, 0.8), (0.1, 0, 0.8), (0.1, np.inf, 0.8), (np.nan, 1, 0.8), (0.1, 1, 1.0), (0.1, 1, 0.3)]
)
def test_numbers_that_need_no_sample_size(numbers):
    difference, spread, power = numbers
    with pytest.raises(ValueError, match="got"):
        s.count_pairs_needed(difference, spread, power=power)


def test_the_command(tmp_path, capsys):
    (tmp_path / "t.yaml").write_text(
        "name: t\ndataset: t.jsonl\nprompt: '{input}'\n"
        "output_schema: {properties: {a: {type: string}}, required: [a]}\nscorers: [exact_match]\n"
    )
    (tmp_path / "t.jsonl").write_text('{"input": "x"}\n{"input": "y"}\n')
    arguments = ["eval", "plan", "t.yaml", "--routes", f"{A},{B}", "--epochs", "3"]
    assert llmkit([*arguments, "--metric", "exact_match", "--difference", "0.05", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert [row["calls"] for row in document["routes"]] == [6, 6]
    # Nobody charges for one's own machine; what the other takes is not known.
    assert [row["cost_usd"] for row in document["routes"]] == [0.0, None]
    assert document["budget"] == []
    assert document["sample_size"]["samples"] == s.count_share_pairs_needed(0.05, 0.5)
    assert llmkit([*arguments, "--metric", "exact_match", "--margin", "0.02", "--json"]) == 0
    gate = json.loads(capsys.readouterr().out)["margin_size"]
    assert gate["minimum"] == 133
    assert gate["samples"] == pytest.approx(s.count_pairs_for_margin(0.02, 0.5), abs=1)
    assert llmkit([*arguments, "--margin", "0.02"]) == 2
    assert llmkit(arguments) == 0
    assert "unknown" in capsys.readouterr().out
    assert llmkit([*arguments, "--metric", "exact_match"]) == 2
    assert llmkit([*arguments, "--max-tokens", "500"]) == 0
    assert "Whether --max-tokens 500 suffices is unknown" in capsys.readouterr().out
    assert llmkit([*arguments, "--max-time-s", "0"]) == 2


def test_a_plan_tells_cost_and_whether_a_budget_will_do_from_a_pilot(tmp_path, monkeypatch, capsys):
    (tmp_path / "t.yaml").write_text(
        "name: t\ndataset: t.jsonl\nprompt: '{input}'\n"
        "output_schema: {properties: {a: {type: string}}, required: [a]}\n"
    )
    (tmp_path / "t.jsonl").write_text("".join(f'{{"input": "x{number}"}}\n' for number in range(10)))
    with GeminiServer(Reply('{"a": "b"}', input_tokens=1_000, output_tokens=100)) as server:
        monkeypatch.setenv("LLM_GEMINI_API_BASE", server.url)
        monkeypatch.setenv("LLM_GEMINI_API_KEY", "k")
        task = ["t.yaml", "--routes", FLASH]
        assert llmkit(["eval", "run", *task, "--name", "n", "--limit", "2"]) == 0
        capsys.readouterr()
        plan = ["eval", "plan", *task, "--name", "n", "--max-tokens", "11000", "--json"]
        limits = ["--max-cost-usd", "0.005", "--max-time-s", "1e9"]
        assert llmkit([*plan, *limits]) == 0
        document = json.loads(capsys.readouterr().out)
        billed = 1_000 * 0.3e-6 + 100 * 2.5e-6
        assert document["routes"][0]["cost_usd"] == pytest.approx(8 * billed)
        tokens, cost, time = document["budget"]
        assert (tokens["allowed"], tokens["suffices"]) == (11_000, True)
        assert (tokens["spent"], tokens["planned"]) == (2_200, 8_800)
        assert (cost["spent"], cost["planned"]) == (pytest.approx(2 * billed), pytest.approx(8 * billed))
        assert (cost["suffices"], time["suffices"]) == (False, True)
        monkeypatch.setenv("LLM_GEMINI_REQUESTS_PER_MINUTE", "2")
        assert llmkit([*plan, *limits]) == 0
        assert json.loads(capsys.readouterr().out)["routes"][0]["time_s"] == 180
        assert llmkit(plan[:-1]) == 0
        assert "--max-tokens 11,000 should suffice: 2,200 spent and 8,800 to come" in capsys.readouterr().out
        assert len(server.calls) == 2


def stop_pilot(a, b, groups=None):
    results = [make_result("a", f"s{i}", score, sample_group=groups and groups[i]) for i, score in enumerate(a)]
    return make_report(results + [make_result("b", f"s{i}", score) for i, score in enumerate(b)])


def test_a_stop_rule_saves_more_the_larger_the_difference():
    found = [early_stop(Decided("match"), difference=d, history=None, groups=[None] * 400) for d in (0.0, 0.1, 0.3)]
    assert found[0].saving < 0.1 < found[1].saving < found[2].saving
    assert found[0].decided <= 0.06
    assert found[2].decided == 1.0
    assert (found[2].known_from, found[2].units, found[2].runs) == (0, 400, 400)


def test_a_stop_rule_is_simulated_from_the_pilot():
    pilot = stop_pilot([1.0, 0.8, 0.9, 1.0] * 5, [0.1, 0.0, 0.2, 0.1] * 5)
    found = early_stop(Decided("match"), difference=None, history=pilot, groups=[None] * 100)
    assert found.known_from == 20
    assert found.saving > 0.8
    assert early_stop(Decided("match"), difference=0.0, history=pilot, groups=[None] * 100).decided < 0.1
    assert found == early_stop(Decided("match"), difference=None, history=pilot, groups=[None] * 100)


def test_groups_count_once_for_a_stop_rule():
    found = early_stop(Decided("match"), difference=0.3, history=None, groups=["g", "g", "h", None])
    assert found.units == 3


def test_nothing_known_is_no_estimate_of_a_stop_rule():
    assert early_stop(Decided("match"), difference=None, history=None, groups=[None] * 9) is None
    with pytest.raises(LLMEvaluationError, match="There is no metric"):
        early_stop(Decided("other"), difference=None, history=stop_pilot([1.0], [0.0]), groups=[None])
    with pytest.raises(LLMEvaluationError, match="between -1 and 1"):
        early_stop(Decided("match"), difference=3.0, history=None, groups=[None])
