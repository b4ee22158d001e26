"""Intervals and tests against closed forms, scipy and simulation."""

import itertools
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import special, stats

from llmkit.evals import statistics as s

VALUES = np.array([0.2, 0.9, 0.4, 0.7, 0.7, 0.1, 1.0])


def test_mean_is_student_s():
    found = s.estimate_t_mean(VALUES)
    low, high = stats.ttest_1samp(VALUES, 0).confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((low, high))
    assert found.value == pytest.approx(VALUES.mean())


def test_wilson_is_the_closed_form():
    n, k, z = 30, 27, stats.norm.ppf(0.975)
    middle = (k + z**2 / 2) / (n + z**2)
    half = z * np.sqrt(k * (n - k) / n + z**2 / 4) / (n + z**2)
    found = s.estimate_share(k, n)
    assert (found.low, found.high) == pytest.approx((middle - half, middle + half))


@pytest.mark.parametrize("n", range(1, 60))
def test_the_ends_of_wilson_are_exact(n):
    assert s.estimate_share(0, n).low == 0.0
    assert s.estimate_share(n, n).high == 1.0


def test_bca_is_scipy_s_and_repeats():
    found = s.bootstrap_mean(VALUES, seed=1)
    expected = stats.bootstrap((VALUES,), np.mean, method="BCa", rng=np.random.default_rng(1)).confidence_interval
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high))
    assert found == s.bootstrap_mean(VALUES, seed=1)
    assert (s.bootstrap_mean([0.5, 0.5]).low, s.bootstrap_mean([0.5, 0.5]).high) == (0.5, 0.5)


def test_clustered_error_of_single_values_is_the_plain_one():
    assert s.compute_clustered_error(VALUES, range(7)) == pytest.approx(stats.sem(VALUES))


def test_clustered_error_of_equal_clusters_is_that_of_their_means():
    rng = np.random.default_rng(3)
    values = rng.normal(size=(12, 5)) + rng.normal(size=(12, 1))
    found = s.estimate_clustered_mean(values.ravel(), np.repeat(np.arange(12), 5).tolist())
    expected = s.estimate_t_mean(values.mean(axis=1))
    assert (found.value, found.low, found.high) == pytest.approx((expected.value, expected.low, expected.high))


def brute_force_cr2(values, clusters):
    """Variance and degrees of freedom of a mean by the matrices of Bell and McCaffrey."""
    x, names = np.asarray(values, dtype=float), sorted(set(clusters))
    n, ones = len(x), np.ones(len(x))
    hat = np.eye(n) - np.outer(ones, ones) / n
    variance, columns = 0.0, []
    for name in names:
        own = np.array([cluster == name for cluster in clusters])
        roots, vectors = np.linalg.eigh(hat[np.ix_(own, own)])
        adjustment = vectors @ np.diag(roots**-0.5) @ vectors.T
        variance += float(np.sum(adjustment @ (hat @ x)[own])) ** 2 / n**2
        columns.append((hat[own].T @ adjustment @ np.ones(own.sum())) / n)
    matrix = np.array(columns) @ np.array(columns).T
    return variance, np.trace(matrix) ** 2 / np.trace(matrix @ matrix)


def test_the_clustered_error_is_cr2_with_satterthwaite_s_degrees_of_freedom():
    clusters = ["a", "a", "b", "c", "c", "c", "d"]
    variance, freedom = brute_force_cr2(VALUES, clusters)
    found = s.estimate_clustered_mean(VALUES, clusters)
    assert found.standard_error == pytest.approx(np.sqrt(variance))
    assert found.high - found.value == pytest.approx(stats.t.ppf(0.975, freedom) * np.sqrt(variance))


@pytest.mark.parametrize("size", [2, 5])
def test_equal_groups_keep_the_plain_factor_and_degrees_of_freedom(size):
    values, clusters = VALUES.repeat(size) + np.tile(np.linspace(0, 0.1, size), 7), np.repeat(range(7), size).tolist()
    sums = (values - values.mean()).reshape(7, size).sum(axis=1)
    error = float(np.sqrt(7 / 6 * np.sum(sums**2)) / len(values))
    found = s.estimate_clustered_mean(values, clusters)
    assert found.standard_error == error
    assert found.high == found.value + float(special.stdtrit(6, 0.975)) * error


def unequal_clusters(sizes):
    return np.repeat(np.arange(len(sizes)), sizes).tolist()


SIZES = [[40, *[3] * 12], [30, 30, *[2] * 20], [1, 2, 4, 8, 16, 32], list(range(1, 21))]


@pytest.mark.slow
@pytest.mark.parametrize("sizes", SIZES, ids=str)
@pytest.mark.parametrize("correlation", [0.0, 0.3])
def test_groups_of_unequal_size_keep_the_coverage(sizes, correlation):
    rng, clusters = np.random.default_rng(26), unequal_clusters(sizes)
    shares = []
    for _ in range(1_000):
        shared = np.repeat(rng.normal(size=len(sizes)), sizes) * np.sqrt(correlation)
        values = shared + rng.normal(size=len(clusters)) * np.sqrt(1 - correlation)
        shares.append(covers(s.estimate_clustered_mean(values, clusters), 0))
    assert 0.92 <= np.mean(shares) <= 0.995


def test_paired_difference_is_the_paired_t_test():
    other = VALUES[::-1] ** 2
    found, expected = s.compare_means(VALUES, other), stats.ttest_rel(VALUES, other)
    interval = expected.confidence_interval(0.95)
    assert (found.p_value, found.low, found.high) == pytest.approx((expected.pvalue, interval.low, interval.high))
    assert found.effect == pytest.approx(expected.statistic / np.sqrt(7))
    assert found.method == "paired t"


def test_mcnemar_counts_only_disagreements():
    a, b = [1] * 9 + [0] * 1 + [1] * 50, [0] * 9 + [1] * 1 + [1] * 50
    assert s.compute_mcnemar_p(a, b) == pytest.approx(2 * sum(stats.binom.pmf(k, 10, 0.5) for k in (0, 1)))
    assert s.compute_mcnemar_p([1, 0], [1, 0]) == 1.0


def test_paired_proportions_by_hand():
    a, b = [1] * 6 + [0] * 2 + [1] * 12, [0] * 6 + [1] * 2 + [1] * 12
    up, down = 7 / 22, 3 / 22
    reach = stats.norm.ppf(0.975) * np.sqrt((up + down - (up - down) ** 2) / 22)
    found = s.compare_shares(a, b)
    assert (found.low, found.high) == pytest.approx((up - down - reach, up - down + reach))
    assert found.difference == pytest.approx(4 / 20)


@pytest.mark.slow
@pytest.mark.parametrize("n", [4, 10, 30, 60])
@pytest.mark.parametrize("level", [0.9, 0.95, 0.99])
def test_mcnemar_s_test_and_the_interval_agree_about_0(n, level):
    """They are compared on every possible outcome."""
    for up in range(n + 1):
        for down in range(n + 1 - up):
            same = [0] * (n - up - down)
            found = s.compare_shares([1] * up + [0] * down + same, [0] * up + [1] * down + same, level)
            assert (found.low <= 0 <= found.high) == (found.p_value >= 1 - level), (up, down)


def test_the_interval_is_only_extended_where_the_exact_test_does_not_reject():
    # Ten gains and two losses: the p-value is 0.039. Nine and two: 0.065.
    clear, unclear = (s.compare_shares([1] * up + [0] * 2 + [1] * 20, [0] * up + [1] * 2 + [1] * 20) for up in (10, 9))
    assert clear.p_value < 0.05 < unclear.p_value
    assert clear.low > 0
    assert unclear.low == 0.0


def test_holm_by_hand():
    assert s.adjust_holm([0.01, 0.04, 0.03, 0.005]).tolist() == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert s.adjust_holm([0.02, np.nan]).tolist() == pytest.approx([0.02, np.nan], nan_ok=True)
    assert s.adjust_holm([]).tolist() == []


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8))
def test_holm_never_lowers_keeps_the_order_and_stays_below_bonferroni(p_values):
    p, adjusted = np.array(p_values), s.adjust_holm(p_values)
    assert (adjusted >= p).all()
    assert (adjusted <= np.minimum(1, p * len(p)) + 1e-12).all()
    assert (np.diff(adjusted[np.argsort(p, kind="stable")]) >= 0).all()


@given(st.integers(0, 40), st.integers(1, 40), st.floats(0.5, 0.999))
def test_wilson_holds_the_share_and_stays_in_bounds(k, n, level):
    k = min(k, n)
    found = s.estimate_share(k, n, level)
    assert -1e-12 <= found.low <= found.value + 1e-12
    assert found.value - 1e-12 <= found.high <= 1 + 1e-12


@given(st.lists(st.tuples(st.sampled_from([0.0, 1.0]), st.integers(0, 5)), min_size=1, max_size=30))
def test_clustered_shares_stay_in_bounds(pairs):
    values, clusters = [value for value, _ in pairs], [cluster for _, cluster in pairs]
    found = s.estimate_mean(values, clusters)
    if not np.isnan(found.low):
        assert -1e-9 <= found.low <= found.value + 1e-9
        assert found.value - 1e-9 <= found.high <= 1 + 1e-9


def test_pass_at_k_is_the_chance_of_a_draw():
    n, c, k = 10, 3, 4
    draws = np.random.default_rng(0)
    hits = [(draws.permutation(n)[:k] < c).any() for _ in range(20_000)]
    assert s.estimate_pass_at_k(n, c, k) == pytest.approx(np.mean(hits), abs=0.01)
    assert (s.estimate_pass_at_k(5, 0, 2), s.estimate_pass_at_k(5, 4, 2)) == (0.0, 1.0)
    with pytest.raises(ValueError, match="pass@k"):
        s.estimate_pass_at_k(3, 1, 4)


@pytest.mark.parametrize(
    ("values", "clusters", "method"),
    [
        ([0, 1, 1], None, "wilson"),
        ([0, 0.5, 1], "abc", "gaffke"),
        ([0, 1, 1], "aab", "clustered wilson"),
        ([0, 0.5, 2], "abc", "t"),
        ([0, 0.5, 2], "aab", "clustered t"),
        ([0, 0.5, 1], "aab", "clustered gaffke"),
    ],
)
def test_the_interval_that_fits(values, clusters, method):
    assert s.estimate_mean(values, clusters).method == method


def test_what_cannot_be_known_is_nan():
    assert np.isnan(s.estimate_mean([]).value)
    assert np.isnan(s.estimate_t_mean([0.5]).low)
    assert np.isnan(s.estimate_clustered_mean([0.5, 0.7], "aa").low)
    assert np.isnan(s.estimate_clustered_share([0, 1], "aa").low)
    assert np.isnan(s.compare_means([1.5], [1.0]).p_value)
    assert s.compare_shares([], []).n == 0
    assert s.compare_means([1, 2], [1, 2]).p_value == 1.0
    with pytest.raises(ValueError, match="pairs"):
        s.compare_means([1], [1, 2])
    with pytest.raises(ValueError, match="cluster"):
        s.estimate_clustered_mean([1.0], "ab")


def test_a_few_equal_differences_are_not_certain():
    sure = s.compare_pairs([1] * 6, [0] * 6, ["a"] * 3 + ["b"] * 3)
    assert (sure.p_value, sure.method) == (0.5, "no spread seen")
    assert sure.low < 0
    # Scores whose differences are equal but for rounding.
    assert s.compare_pairs([0.3, 0.7, 0.1], [0.2, 0.6, 0.0]).method == "no spread seen"
    for a, clusters in (([1] * 6, ["a"] * 3 + ["b"] * 3), ([0.5, 0.7], None), ([200.0, 300.0], None)):
        assert not s.check_non_inferiority(a, a, 0.1, clusters).is_shown
    assert s.check_non_inferiority([0.5] * 200, [0.5] * 200, 0.05).is_shown
    assert not s.check_non_inferiority([50.0, 90.0] * 20, [50.0, 90.0] * 20, 0.05).is_shown


@given(st.floats(0.01, 0.99), st.integers(2, 50), st.integers(1, 3))
def test_equal_scores_have_the_exact_bounds(score, count, epochs):
    found = s.estimate_mean([score] * count * epochs, [number % count for number in range(count * epochs)])
    unseen = 0.025 ** (1 / count)
    assert (found.low, found.high) == pytest.approx((score * unseen, 1 - (1 - score) * unseen))
    assert found.low < score < found.high


def test_zeros_and_ones_get_clopper_and_pearsons_interval():
    """Although the scores are bounded ones."""
    values = np.array([1.0] * 17 + [0.0] * 3)
    low, high = s.intervals.compute_bounded_interval(values, float(stats.sem(values)), 19, 0.95)
    expected = stats.binomtest(17, 20).proportion_ci(0.95, method="exact")
    assert (low, high) == pytest.approx((expected.low, expected.high))


def test_one_imperfect_score_does_not_make_the_interval_narrow():
    perfect, nearly = s.estimate_mean([1.0] * 100), s.estimate_mean([1.0] * 99 + [0.99])
    assert nearly.high - nearly.low > 0.9 * (perfect.high - perfect.low)


BOUNDED = {
    "beta(9, 1)": (lambda rng, n: rng.beta(9, 1, n), 0.9),
    "beta(0.5, 0.03)": (lambda rng, n: rng.beta(0.5, 0.03, n), 0.5 / 0.53),
    "beta(2, 2)": (lambda rng, n: rng.beta(2, 2, n), 0.5),
    "rare zeros": (lambda rng, n: np.where(rng.random(n) < 0.03, 0, 0.9), 0.873),
    "mostly ones": (lambda rng, n: np.where(rng.random(n) < 0.8, 1, 0.5), 0.9),
    "thirds": (lambda rng, n: rng.binomial(3, 0.9, n) / 3, 0.9),
    "grades": (lambda rng, n: rng.choice(np.arange(5) / 4, p=[0.02, 0.03, 0.05, 0.2, 0.7], size=n), 0.8825),
}


@pytest.mark.slow
@pytest.mark.parametrize("n", [10, 30, 100])
@pytest.mark.parametrize("name", BOUNDED)
def test_intervals_of_bounded_scores_cover_and_stay_in_the_range(name, n):
    draw, truth = BOUNDED[name]
    rng = np.random.default_rng(28)
    found = [s.estimate_mean(draw(rng, n)) for _ in range(1_000)]
    assert all(0 <= each.low <= each.high <= 1 for each in found)
    assert np.mean([covers(each, truth) for each in found]) >= 0.93


def test_bounded_intervals_are_hardly_wider_than_students():
    """Where Student's t is right."""
    rng, ratios = np.random.default_rng(29), []
    for _ in range(200):
        values = rng.beta(2, 2, size=50)
        found, plain = s.estimate_mean(values), s.estimate_t_mean(values)
        ratios.append((found.high - found.low) / (plain.high - plain.low))
    assert 1.0 < np.mean(ratios) < 1.2


@pytest.mark.parametrize("epochs", [1, 5])
def test_bounded_scores_in_clusters_have_the_interval_of_the_cluster_means(epochs):
    rng = np.random.default_rng(30)
    means = rng.beta(8, 2, size=30)
    found = s.estimate_mean(np.repeat(means, epochs), np.repeat(np.arange(30), epochs).tolist())
    expected = s.estimate_mean(means)
    assert (found.value, found.low, found.high) == pytest.approx((expected.value, expected.low, expected.high))


def test_pass_at_k_covers_what_it_promises():
    rng = np.random.default_rng(31)
    table = np.array([s.estimate_pass_at_k(5, correct, 3) for correct in range(6)])
    chances = stats.betabinom(5, 3, 1).pmf(np.arange(6))
    truth = float(chances @ table)
    for samples in (20, 50):
        hits = [covers(s.estimate_mean(table[rng.choice(6, p=chances, size=samples)]), truth) for _ in range(1_000)]
        assert np.mean(hits) >= 0.93


def test_equal_scores_of_another_range_have_no_interval():
    found = s.estimate_mean([7.0, 7.0, 7.0])
    assert (found.value, found.standard_error) == (7.0, 0.0)
    assert np.isnan([found.low, found.high]).all()


def test_shares_that_every_cluster_has_count_a_cluster_once():
    thirds = s.estimate_mean([1, 0, 0] * 10, [number // 3 for number in range(30)])
    halves = s.estimate_mean([1, 0] * 10, [number // 2 for number in range(20)])
    assert thirds.high - thirds.low > 0.5
    assert halves.high - halves.low > 0.5


def test_tests_of_nothing_or_of_what_is_missing_are_nan():
    for test in (s.compute_mcnemar_p, s.compute_sign_flip_p, s.compute_wilcoxon_p):
        assert np.isnan(test([], []))
        assert np.isnan(test([np.nan, 1, 1], [0, 0, 0]))
    assert np.isnan(s.compare_pairs([], []).p_value)
    # A metric without pairs does not make the others' p-values larger.
    assert s.adjust_holm([s.compare_pairs([], []).p_value, 0.03])[1] == 0.03


def test_wilson_is_scipy_s():
    for k, n in [(0, 5), (3, 7), (60, 60), (123, 1_000)]:
        found, expected = s.estimate_share(k, n, 0.9), stats.binomtest(k, n).proportion_ci(0.9, method="wilson")
        assert (found.low, found.high) == pytest.approx((expected.low, expected.high))


def test_the_signed_rank_test_is_scipy_s_and_knows_no_difference():
    other = VALUES[::-1] ** 2
    assert s.compute_wilcoxon_p(VALUES, other) == pytest.approx(
        stats.wilcoxon(VALUES - other, zero_method="pratt").pvalue
    )
    # Five differences of one sign: the most extreme of 2^5 orders on either side.
    assert s.compute_wilcoxon_p([1, 2, 3, 4, 5], np.zeros(5)) == pytest.approx(2 / 2**5)
    assert s.compute_wilcoxon_p([1, 2], [1, 2]) == 1.0
    assert np.isnan(s.compute_wilcoxon_p([], []))


def brute_force_flips(sums):
    signs = np.array(list(itertools.product([1, -1], repeat=len(sums))))
    return np.mean(np.abs(signs @ sums) >= abs(np.sum(sums)) - 1e-12)


def test_sign_flips_are_all_flips():
    d = np.array([0.5, -0.2, 0.9, 0.4, 0.1, -0.3, 0.8])
    assert s.compute_sign_flip_p(d, np.zeros(7)) == pytest.approx(brute_force_flips(d))
    clusters = ["a", "a", "b", "c", "d", "d", "e"]
    sums = np.array([0.3, 0.9, 0.4, -0.2, 0.8])
    assert s.compute_sign_flip_p(d, np.zeros(7), clusters) == pytest.approx(brute_force_flips(sums))
    assert s.compute_sign_flip_p([1, 2], [1, 2]) == s.compute_sign_flip_p([1, 2], [0, 0], "aa") == 1.0
    assert np.isnan(s.compute_sign_flip_p([], []))


def test_many_sign_flips_are_drawn_and_repeat():
    rng = np.random.default_rng(5)
    a, b = rng.normal(0.3, 1, 60), np.zeros(60)
    assert s.compute_sign_flip_p(a, b, flips=999) == s.compute_sign_flip_p(a, b, flips=999)
    assert s.compute_sign_flip_p(a, b) == pytest.approx(stats.ttest_rel(a, b).pvalue, abs=0.02)


def test_non_inferiority_is_the_lower_end_of_a_wider_interval():
    a, b = VALUES, VALUES - 0.01 + np.array([0.1, -0.1, 0.05, -0.05, 0.02, -0.02, 0])
    bound = stats.ttest_rel(a, b).confidence_interval(0.9).low
    found = s.check_non_inferiority(a, b, margin=0.1)
    assert found.low == pytest.approx(bound)
    assert found.is_shown
    assert not s.check_non_inferiority(a, b, margin=-bound - 1e-9).is_shown
    assert s.check_non_inferiority(a, b, margin=-bound + 1e-9).is_shown
    assert s.check_non_inferiority([1] * 90 + [0] * 10, [1] * 100, margin=0.2).method == "tango"
    assert not s.check_non_inferiority([1], [1.5], margin=1).is_shown  # nothing is known of one pair
    for margin, alpha in [(-0.1, 0.05), (0.1, 0), (0.1, 0.5), (np.nan, 0.05)]:
        with pytest.raises(ValueError, match="margin"):
            s.check_non_inferiority(a, b, margin, alpha=alpha)


@pytest.mark.parametrize("count", [2, 5, 12, 40, 150])
@pytest.mark.parametrize("difference", [0.0, 0.01, 0.1, 0.5, 1.0])
@pytest.mark.parametrize("sign", [1, -1])
def test_without_spread_the_p_value_and_the_interval_agree(count, difference, sign):
    a, b = np.full(count, 0.5 + sign * difference / 2), np.full(count, 0.5 - sign * difference / 2)
    for epochs in (1, 3):
        found = s.compare_means(np.repeat(a, epochs), np.repeat(b, epochs), np.repeat(range(count), epochs).tolist())
        assert found.method == "no spread seen"
        assert (found.p_value < 0.05) == (not found.low <= 0 <= found.high)
        assert found.low <= found.difference <= found.high
        edge = s.compare_means(a, b, level=1 - found.p_value) if 1e-6 < found.p_value < 1 else None
        if edge:
            assert min(abs(edge.low), abs(edge.high)) == pytest.approx(0, abs=1e-9)


def test_whole_differences_without_spread_have_the_p_value_of_flipped_signs():
    assert s.compare_means(np.ones(8), np.zeros(8)).p_value == pytest.approx(2 * 0.5**8)


def score_statistic(b, c, n, delta):
    """Tango's statistic, its nuisance parameter found by maximising the likelihood on a grid."""
    q = np.linspace(max(0, -delta), (1 - delta) / 2, 200_001)[1:-1]
    likelihood = c * np.log(q) + b * np.log(q + delta) + (n - b - c) * np.log(1 - 2 * q - delta)
    best = q[np.nanargmax(likelihood)]
    return (b - c - n * delta) / np.sqrt(n * (2 * best + delta * (1 - delta)))


@pytest.mark.parametrize(("up", "down", "n"), [(3, 5, 40), (0, 4, 100), (12, 2, 60), (0, 1, 20)])
def test_tango_s_bound_inverts_the_score_test(up, down, n):
    a = [1] * up + [0] * down + [1] * (n - up - down)
    b = [0] * up + [1] * down + [1] * (n - up - down)
    low = s.check_non_inferiority(a, b, 0.1).low
    assert score_statistic(up, down, n, low) == pytest.approx(stats.norm.ppf(0.95), abs=1e-3)


def test_the_bound_of_identical_answers_is_the_closed_form():
    z = stats.norm.ppf(0.95)
    found = s.check_non_inferiority([1, 0] * 60, [1, 0] * 60, 0.02)
    assert found.low == pytest.approx(-(z**2) / (120 + z**2))
    assert not found.is_shown
    assert s.check_non_inferiority([1, 0] * 70, [1, 0] * 70, 0.02).is_shown


@pytest.mark.slow
@pytest.mark.parametrize(("n", "margin", "gains"), [(400, 0.02, 0.0), (200, 0.05, 0.0), (200, 0.05, 0.05)])
def test_non_inferiority_of_shares_keeps_its_level_at_the_margin(n, margin, gains):
    rng, shown = np.random.default_rng(32), []
    for _ in range(4_000):
        draws = rng.random(n)
        up, down = draws < gains, (draws >= gains) & (draws < 2 * gains + margin)
        shown.append(s.check_non_inferiority(1.0 - down, 1.0 - up, margin).is_shown)
    assert np.mean(shown) <= 0.06


def test_pass_hat_k_is_the_chance_that_all_of_a_draw_are_right():
    n, c, k = 10, 7, 3
    draws = [set(chosen) <= set(range(c)) for chosen in itertools.combinations(range(n), k)]
    assert s.estimate_pass_hat_k(n, c, k) == pytest.approx(np.mean(draws))
    assert s.estimate_pass_hat_k(5, 5, 5) == 1.0
    assert s.estimate_pass_hat_k(5, 2, 3) == 0.0
    with pytest.raises(ValueError, match="pass@k"):
        s.estimate_pass_hat_k(3, 1, 4)


@given(st.integers(1, 12), st.integers(0, 12), st.integers(1, 12))
def test_one_of_k_is_likelier_than_all_of_k(n, c, k):
    c, k = min(c, n), min(k, n)
    assert s.estimate_pass_hat_k(n, c, k) <= c / n + 1e-12
    assert s.estimate_pass_at_k(n, c, k) >= c / n - 1e-12
    assert s.estimate_pass_hat_k(n, c, 1) == pytest.approx(s.estimate_pass_at_k(n, c, 1)) == pytest.approx(c / n)


def test_a_mean_in_three_views_of_what_is_missing():
    found = s.bound_mean([1, 0, 1, np.nan, np.nan])
    assert (found.excluded, found.as_failures) == (s.estimate_share(2, 3), s.estimate_share(2, 5))
    assert (found.worst, found.best, found.n, found.missing) == (0.4, 0.8, 5, 2)
    clustered = s.bound_mean([1, 0.5, np.nan], ["a", "a", "b"])
    assert clustered.as_failures.method == "clustered gaffke"
    with pytest.raises(ValueError, match="outside of 0 and 1"):
        s.bound_mean([2.0])


def test_a_difference_in_three_views_of_what_is_missing():
    a, b = [1, 1, np.nan, 0.5], [0, np.nan, 1, 0.5]
    found = s.bound_difference(a, b)
    assert found.excluded == s.compare_pairs([1, 0.5], [0, 0.5])
    assert found.as_failures.difference == pytest.approx((1 + 1 - 1 + 0) / 4)
    assert (found.worst, found.best, found.missing) == pytest.approx(((1 + 0 - 1 + 0) / 4, (1 + 1 + 0 + 0) / 4, 2))
    with pytest.raises(ValueError, match="pairs"):
        s.bound_difference([1], [1, 0])


@given(st.lists(st.tuples(*[st.sampled_from([0.0, 0.3, 1.0, np.nan])] * 2), min_size=1, max_size=12))
def test_whatever_is_missing_the_truth_is_within_the_bounds(pairs):
    a, b = np.array(pairs).T
    found = s.bound_difference(a, b)
    for fill_a, fill_b in [(0.0, 0.0), (0.4, 0.9), (1.0, 0.2)]:
        truth = np.mean(np.where(np.isnan(a), fill_a, a) - np.where(np.isnan(b), fill_b, b))
        assert found.worst - 1e-12 <= truth <= found.best + 1e-12


def covers(found, truth):
    return found.low <= truth <= found.high


def repeated(rng, samples, epochs, correlation):
    """Scores around 0 with this correlation between the epochs of a sample."""
    shared = rng.normal(size=(samples, 1)) * np.sqrt(correlation)
    return (shared + rng.normal(size=(samples, epochs)) * np.sqrt(1 - correlation)).ravel()


CLUSTERS = np.repeat(np.arange(40), 5).tolist()


def test_intervals_cover_what_they_promise():
    rng = np.random.default_rng(20)
    plain = [covers(s.estimate_t_mean(rng.normal(size=25)), 0) for _ in range(2_000)]
    shares = [covers(s.estimate_share(int(rng.binomial(60, 0.8)), 60), 0.8) for _ in range(2_000)]
    nested = [covers(s.estimate_clustered_mean(repeated(rng, 40, 5, 0.5), CLUSTERS), 0) for _ in range(2_000)]
    assert 0.93 <= np.mean(plain) <= 0.97
    assert 0.93 <= np.mean(shares) <= 0.97
    assert 0.93 <= np.mean(nested) <= 0.97


def test_clustered_shares_cover_what_they_promise():
    rng = np.random.default_rng(21)
    hits = []
    for _ in range(2_000):
        chances = np.repeat(rng.beta(1.6, 0.4, size=40), 5)  # mean 0.8, correlation within a sample 1/3
        hits.append(covers(s.estimate_clustered_share((rng.random(200) < chances).astype(float), CLUSTERS), 0.8))
    assert 0.93 <= np.mean(hits) <= 0.97


def test_the_clustered_paired_test_rejects_true_nulls_as_often_as_it_says():
    rng = np.random.default_rng(22)
    zeros = np.zeros(200)
    p = np.array([s.compare_means(repeated(rng, 40, 5, 0.5), zeros, CLUSTERS).p_value for _ in range(4_000)])
    assert 0.04 <= np.mean(p < 0.05) <= 0.06


@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_groups_of_unequal_size_keep_the_level_of_the_paired_test(sizes):
    rng, clusters = np.random.default_rng(27), unequal_clusters(sizes)
    p_values = []
    for _ in range(1_000):
        d = np.repeat(rng.normal(size=len(sizes)), sizes) * 0.5 + rng.normal(size=len(clusters))
        p_values.append(s.compare_means(d, np.zeros(len(d)), clusters).p_value)
    assert np.mean(np.array(p_values) < 0.05) <= 0.07


def test_two_groups_of_unequal_size_have_an_interval():
    assert s.intervals.compute_clustered_freedom(["a"] * 7 + ["b"]) == 1.0


@pytest.mark.slow
def test_bootstrap_intervals_cover_what_they_promise():
    rng = np.random.default_rng(23)
    found = [s.bootstrap_mean(rng.beta(4, 2, size=60), resamples=399) for _ in range(500)]
    assert 0.93 <= np.mean([covers(each, 4 / 6) for each in found]) <= 0.97


def test_the_flip_test_rejects_true_nulls_as_often_as_it_says():
    rng = np.random.default_rng(24)
    zeros = np.zeros(60)
    p = [s.compute_sign_flip_p(repeated(rng, 12, 5, 0.5), zeros, CLUSTERS[:60], flips=499) for _ in range(600)]
    assert 0.03 <= np.mean(np.array(p) < 0.05) <= 0.07


def test_non_inferiority_passes_what_is_worse_by_the_margin_as_rarely_as_it_says():
    rng = np.random.default_rng(25)
    zeros = np.zeros(200)
    shown = [
        s.check_non_inferiority(repeated(rng, 40, 5, 0.5) - 0.3, zeros, 0.3, CLUSTERS).is_shown for _ in range(2_000)
    ]
    assert 0.04 <= np.mean(shown) <= 0.06


@pytest.mark.slow
def test_a_mean_does_not_wait_for_scipy_s_distributions():
    code = (
        "import sys; from llmkit.evals import statistics as s; "
        "s.estimate_mean([0, 1]), s.estimate_mean([0.1, 0.2], 'aa'); "
        "sys.exit('scipy.stats' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
