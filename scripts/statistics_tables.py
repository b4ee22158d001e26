"""Simulate how the intervals and tests of evaluations behave, and write the tables of docs/statistics.md.

`make statistics` takes about two minutes. Every table has its own seed, so the same code gives the same page. With
`--check` only the exact tables, which need no simulation, are compared with the page.
"""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
from scipy import stats

from llmkit.evals import statistics as s
from llmkit.evals.statistics.planning import _compute_share_power

PAGE: Final = Path(__file__).parents[1] / "docs" / "statistics.md"
RUNS: Final = 2_000
BLOCK: Final = r"(<!-- table: {} -->\n).*?(<!-- /table -->)"

Row = Sequence[str]
Table = tuple[Row, list[Row]]

SIZES: Final[Mapping[str, list[int]]] = {
    "20 of 5": [5] * 20,
    "5 of 20": [20] * 5,
    "1 to 20": list(range(1, 21)),
    "60 and 20 of 2": [60] + [2] * 20,
    "8, 4 and 2 to 1": [32, 16, 8, 4, 2, 2, 1, 1, 1, 1],
}


# --- exact tables -------------------------------------------------------------------------------------------------


def build_share_coverage() -> Table:
    """Compute the coverage of the interval of a mean of zeros and ones, over every possible count."""
    rows = []
    for n in (5, 10, 30, 100, 300):
        counts = np.arange(n + 1)
        found = [s.estimate_share(int(count), n) for count in counts]
        low, high = np.array([each.low for each in found]), np.array([each.high for each in found])
        cells = []
        for share in (0.5, 0.7, 0.9, 0.95, 0.99):
            covered = (low <= share) & (share <= high)
            cells.append(_percent(stats.binom.pmf(counts, n, share)[covered].sum()))
        rows.append([str(n), *cells])
    return ["n", "p = 0.5", "0.7", "0.9", "0.95", "0.99"], rows


def _iterate_outcomes(n: int) -> Iterator[tuple[int, int]]:
    for up in range(n + 1):
        for down in range(n + 1 - up):
            yield up, down


def build_mcnemar() -> Table:
    """Compute level of McNemar's test and coverage of the difference's interval, over every possible outcome."""
    rows = []
    for n in (10, 30, 60):
        outcomes = np.array(list(_iterate_outcomes(n)))
        found = [_compare_counts(up, down, n) for up, down in outcomes.tolist()]
        p_values = np.array([each.p_value for each in found])
        low, high = np.array([each.low for each in found]), np.array([each.high for each in found])
        for disagreement in (0.1, 0.3, 0.6):
            null = _weigh(outcomes, n, disagreement / 2, disagreement / 2)
            rejected = null[p_values < 0.05].sum()
            contradicts = null[(p_values < 0.05) == ((low <= 0) & (high >= 0))].sum()
            coverage = []
            for difference in (0.0, disagreement / 2, disagreement):
                gains = (disagreement + difference) / 2
                weights = _weigh(outcomes, n, gains, disagreement - gains)
                inside = (low <= difference + 1e-12) & (difference - 1e-12 <= high)
                coverage.append(_percent(weights[inside].sum()))
            rows.append([str(n), f"{disagreement:g}", _percent(rejected), _percent(contradicts), *coverage])
    return ["n", "disagreeing", "level of p", "p against interval", "no difference", "half of it", "all of it"], rows


def _compare_counts(up: int, down: int, n: int) -> s.PairedDifference:
    same = [0] * (n - up - down)
    return s.compare_shares([1] * up + [0] * down + same, [0] * up + [1] * down + same)


def _weigh(outcomes: Any, n: int, gains: float, losses: float) -> Any:
    up, down = outcomes.T
    return stats.multinomial.pmf(np.stack([up, down, n - up - down], axis=1), n, [gains, losses, 1 - gains - losses])


def build_power() -> Table:
    """Compute planned numbers of pairs of zeros and ones, with their exact power."""
    rows = []
    for difference, disagreement in (
        (0.02, 0.05),
        (0.05, 0.1),
        (0.05, 0.3),
        (0.1, 0.2),
        (0.1, 0.5),
        (0.2, 0.3),
        (0.3, 0.5),
    ):
        n = s.count_share_pairs_needed(difference, disagreement)
        by_t = s.count_pairs_needed(difference, math.sqrt(disagreement - difference**2))
        powers = [_percent(_compute_share_power(difference, disagreement, each, 0.95)) for each in (n, by_t)]
        rows.append([f"{difference:g}", f"{disagreement:g}", str(n), powers[0], str(by_t), powers[1]])
    return ["difference", "disagreeing", "pairs", "power", "by a t test", "its power"], rows


def build_margins() -> Table:
    """Compute the pairs that a margin needs."""
    rows = []
    for margin in (0.01, 0.02, 0.05, 0.1):
        least = [s.count_equal_pairs_for_margin(margin, is_binary=is_binary) for is_binary in (True, False)]
        planned = [s.count_pairs_for_margin(margin, disagreement) for disagreement in (0.05, 0.2)]
        rows.append([f"{margin:g}", *map(str, (*least, *planned))])
    return ["margin", "zeros and ones", "other scores, groups", "to pass, 5 % disagreeing", "to pass, 20 %"], rows


# --- simulated tables ---------------------------------------------------------------------------------------------

Draw = Callable[[np.random.Generator, int], Any]
SCORES: Final[Mapping[str, tuple[Draw, float]]] = {
    "uniform": (lambda rng, n: rng.uniform(size=n), 0.5),
    "mostly right": (lambda rng, n: rng.beta(8, 1, n), 8 / 9),
    "one in 20 is half right": (lambda rng, n: np.where(rng.uniform(size=n) < 0.05, 0.5, 1.0), 0.975),
    "right or nothing, some in between": (
        lambda rng, n: rng.choice([0.0, 0.5, 1.0], n, p=[0.1, 0.1, 0.8]),
        0.85,
    ),
}


def build_score_coverage() -> Table:
    """Simulate the coverage of the interval of a mean of scores within 0 and 1, and of Student's."""
    rng = np.random.default_rng(101)
    rows = []
    for name, (draw, truth) in SCORES.items():
        cells = []
        for n in (10, 30, 100):
            both = [(s.estimate_mean(x), s.estimate_t_mean(x)) for x in (draw(rng, n) for _ in range(RUNS))]
            cells += [_share_covering([pair[place] for pair in both], truth) for place in (0, 1)]
        rows.append([name, *cells])
    return ["scores", "n = 10", "(Student)", "n = 30", "(Student)", "n = 100", "(Student)"], rows


def build_group_coverage() -> Table:
    """Simulate the interval's coverage and the paired test's level, for samples in groups."""
    rng = np.random.default_rng(102)
    rows = []
    for name, sizes in SIZES.items():
        clusters = [number for number, size in enumerate(sizes) for _ in range(size)]
        for correlation in (0.0, 0.1, 0.5):
            draws = [_draw_groups(rng, sizes, correlation) for _ in range(RUNS)]
            means = [s.estimate_clustered_mean(x, clusters) for x in draws]
            naive = [s.estimate_t_mean(x) for x in draws]
            rejected = np.mean([s.compare_means(x, np.zeros(len(x)), clusters).p_value < 0.05 for x in draws])
            shares = [s.estimate_clustered_share((x > -0.8).astype(float), clusters) for x in draws]
            truth = float(stats.norm.sf(-0.8))
            cells = [_share_covering(means, 0.0), _share_covering(shares, truth), _percent(rejected)]
            rows.append([name, f"{correlation:g}", *cells, _share_covering(naive, 0.0)])
    return ["groups", "correlation", "mean", "share of 79 %", "level of p", "mean, groups ignored"], rows


def _draw_groups(rng: np.random.Generator, sizes: Sequence[int], correlation: float) -> Any:
    shared = np.repeat(rng.normal(size=len(sizes)), sizes)
    return math.sqrt(correlation) * shared + math.sqrt(1 - correlation) * rng.normal(size=sum(sizes))


def build_non_inferiority() -> Table:
    """Share of gates that pass a variant which is worse by exactly the margin."""
    rng = np.random.default_rng(103)
    rows = []
    for n, margin in ((200, 0.05), (400, 0.02), (400, 0.05)):
        for gains in (0.0, 0.05):
            passed = 0
            for _ in range(RUNS):
                d = rng.choice([1.0, -1.0, 0.0], n, p=[gains, gains + margin, 1 - 2 * gains - margin])
                passed += s.check_non_inferiority(np.maximum(d, 0), np.maximum(-d, 0), margin).is_shown
            rows.append([str(n), f"{margin:g}", f"{gains:g}", _percent(passed / RUNS)])
    return ["n", "margin", "gains", "passes"], rows


def build_arrows() -> Table:
    """Share of reports on equally good variants that show at least one arrow."""
    rng = np.random.default_rng(104)
    rows = []
    for variants in (2, 3, 6, 10):
        alone = together = 0
        for _ in range(RUNS // 4):
            scores = rng.normal(size=(variants, 60)) + rng.normal(size=60)
            p_values = [
                s.compare_means(scores[a], scores[b]).p_value for a in range(variants) for b in range(a + 1, variants)
            ]
            alone += min(p_values) < 0.05
            together += min(s.adjust_holm(p_values)) < 0.05
        rows.append([str(variants), _percent(together / (RUNS // 4)), _percent(alone / (RUNS // 4))])
    return ["variants", "reports with an arrow", "unadjusted"], rows


def _share_covering(found: Sequence[Any], truth: float) -> str:
    return _percent(np.mean([each.low <= truth <= each.high for each in found]))


def _percent(share: float) -> str:
    return f"{100 * share:.1f}"


EXACT: Final[Mapping[str, Callable[[], Table]]] = {
    "shares": build_share_coverage,
    "mcnemar": build_mcnemar,
    "power": build_power,
    "margins": build_margins,
}
SIMULATED: Final[Mapping[str, Callable[[], Table]]] = {
    "scores": build_score_coverage,
    "groups": build_group_coverage,
    "non-inferiority": build_non_inferiority,
    "arrows": build_arrows,
}


def render_table(table: Table) -> str:
    """Return a table as Markdown."""
    headings, rows = table
    lines = [f"| {' | '.join(cells)} |" for cells in (headings, *rows)]
    return "\n".join([lines[0], "|---" * len(headings) + "|", *lines[1:]])


def update_page(text: str, tables: Mapping[str, Callable[[], Table]]) -> str:
    """Return the page with these tables recomputed."""
    for name, build in tables.items():
        table = render_table(build())
        text, count = re.subn(
            BLOCK.format(name), lambda found, new=table: f"{found[1]}{new}\n{found[2]}", text, flags=re.DOTALL
        )
        if count != 1:
            raise SystemExit(f"{PAGE.name} needs one place for the table {name!r}; there are {count}")
    return text


def main() -> int:
    """Write the page, or with --check compare its exact tables; 1 when they are behind the code."""
    text = PAGE.read_text("utf-8")
    if "--check" in sys.argv:
        is_current = update_page(text, EXACT) == text
        print(f"{PAGE.name} is {'current' if is_current else 'behind: run make statistics'}")
        return int(not is_current)
    PAGE.write_text(update_page(text, {**EXACT, **SIMULATED}), "utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
