"""Quality gates: checks of a run by fixed rules. The same run gives the same bytes every time."""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal, TypeAlias

from llmkit.errors import LLMEvaluationError
from llmkit.eval_ports import EvalResult
from llmkit.evals.call_names import require_unedited
from llmkit.evals.report.aggregate import ScorePairs, collect_scores, find_worst_score, index_by_sample, pair_scores
from llmkit.evals.report.dataset_metrics import DatasetComparison
from llmkit.evals.report.notes import note_direction
from llmkit.evals.report.report import EvalReport
from llmkit.evals.report.slices import note_slices
from llmkit.evals.results import FAILED

__all__ = ["GateCheck", "GateReport", "GateRules", "check_gate", "match_variants", "require_rules"]

GATE_FORM = "llmkit-gate-1"
DEFAULT_MAX_LEFT_OUT = 0.1
DIGITS = 12

VariantPair: TypeAlias = tuple[str, str]


@dataclass(frozen=True, slots=True)
class GateRules:
    """Rules that a run must meet.

    Attributes:
        metrics: Metrics to compare with the baseline; all common ones when empty.
        margin: Largest accepted loss, in the metric's own unit: every comparison must show that the loss is no larger.
            None requires only that no loss is significant.
        minimums: Least mean by metric, of which more is better.
        maximums: Largest mean by metric, of which less is better.
        max_failed: Largest share of a variant's results that may be FAILED; None for any.
        max_left_out: Largest share of samples (times epochs) that only one side has a score for.
        alpha: Chance of a wrong verdict: passing a loss beyond the margin, or failing without a loss.
        failures: Whether a FAILED answer counts as 0 (where less is better as 1) or is left out, in comparisons,
            minimums and maximums.
        by: Check every slice as well, such as `group` or `metadata.language`; None checks the whole run only.

    Raises:
        LLMEvaluationError: A number is out of range; the message names it.
    """

    metrics: tuple[str, ...] = ()
    margin: float | None = None
    minimums: Mapping[str, float] = field(default_factory=dict)
    maximums: Mapping[str, float] = field(default_factory=dict)
    max_failed: float | None = None
    max_left_out: float = DEFAULT_MAX_LEFT_OUT
    alpha: float = 0.05
    failures: Literal["as-zero", "excluded"] = "as-zero"
    by: str | None = None

    def __post_init__(self) -> None:
        for name, value, fits in (
            ("margin", self.margin, self.margin is None or 0 <= self.margin < math.inf),
            ("max_failed", self.max_failed, self.max_failed is None or 0 <= self.max_failed <= 1),
            ("max_left_out", self.max_left_out, 0 <= self.max_left_out <= 1),
            ("alpha", self.alpha, 0 < self.alpha < 0.5),
            ("failures", self.failures, self.failures in ("as-zero", "excluded")),
        ):
            if not fits:
                raise LLMEvaluationError(f"A gate cannot have {name}={value!r}.")
        for metric, limit in (*self.minimums.items(), *self.maximums.items()):
            if not math.isfinite(limit):
                raise LLMEvaluationError(f"The limit for {metric} must be finite; got {limit!r}.")


@dataclass(frozen=True, slots=True)
class GateCheck:
    """The result of one rule.

    Attributes:
        name: `regression`, `non_inferiority`, `coverage`, `minimum`, `maximum` or `failed_share`.
        variant: Label of the checked variant.
        baseline: Label of the baseline's variant; None without a baseline.
        metric: Name of the metric; None for a check of all results.
        passed: Whether the rule is met.
        detail: The numbers, in words.
        slice: What the slice was made by, and its name; None for the whole run.
    """

    name: str
    variant: str
    baseline: str | None
    metric: str | None
    passed: bool
    detail: str
    slice: str | None = None

    @property
    def title(self) -> str:
        """A line that identifies the check."""
        against = f" against {self.baseline}" if self.baseline is not None else ""
        where = f" in {self.slice}" if self.slice is not None else ""
        metric = f" of {self.metric}" if self.metric else ""
        return f"{self.name.replace('_', ' ')}{metric}: {self.variant}{against}{where}"


@dataclass(frozen=True, slots=True)
class GateReport:
    """The verdict of a gate.

    Attributes:
        run: Name of the run.
        baseline: Name of the baseline run; None where nothing was compared.
        task: Name of the task.
        rules: The rules.
        comparisons: Rows of numbers, one for each pair of variants and metric.
        checks: The verdicts.
        notes: Notes that a reader of the numbers needs.
        sides: What identifies the `run`, and the `baseline` where it is another run: task, hashes, commit, versions and
            digests, by name.
    """

    run: str
    baseline: str | None
    task: str
    rules: GateRules
    comparisons: tuple[Mapping[str, Any], ...]
    checks: tuple[GateCheck, ...]
    notes: tuple[str, ...]
    sides: Mapping[str, Mapping[str, str]]

    @property
    def passed(self) -> bool:
        """Whether every check holds."""
        return all(check.passed for check in self.checks)

    def to_json(self) -> dict[str, Any]:
        """Return the verdict as JSON-able data, without clock times, ids and latencies; unknown values are null.

        Keys: `form`, `passed`, `run`, `baseline`, `task`, `rules` (as `GateRules`), `comparisons` (slice, metric,
        lower_is_better, variant, baseline, pairs, left_out, mean, baseline_mean, difference, ci_low, ci_high, p_value,
        p_holm, lower_bound (of the gain, which is the difference, or minus it where less is better; one-sided, null
        without a margin), method), `checks` (name, variant, baseline, metric, passed, detail, slice), `notes`, `sides`
        (`run` and, of another run, `baseline`: task, task_sha256, dataset_sha256, scorers_sha256, commit,
        `version of ...`, `digest of ...`).
        """
        return {
            "form": GATE_FORM,
            "passed": self.passed,
            "run": self.run,
            "baseline": self.baseline,
            "task": self.task,
            "rules": asdict(self.rules) | {"metrics": list(self.rules.metrics)},
            "comparisons": [{name: _round(value) for name, value in row.items()} for row in self.comparisons],
            "checks": [asdict(check) for check in self.checks],
            "notes": list(self.notes),
            "sides": {side: dict(facts) for side, facts in self.sides.items()},
        }


def check_gate(
    report: EvalReport,
    rules: GateRules,
    *,
    baseline: EvalReport | None = None,
    variants: Sequence[VariantPair] = (),
    only: Sequence[str] = (),
) -> GateReport:
    """Compare a run with a baseline, and check it by rules.

    Args:
        report: The run.
        rules: Rules for the run.
        baseline: Report with the second variant of each pair; the run itself when None.
        variants: ScorePairs of a variant of the run and a variant of the baseline, as `match_variants` finds them.
        only: Variants whose means and failures are checked; when empty those of the pairs, or else all.

    Raises:
        LLMEvaluationError: There is no rule, the run has no result, a variant or metric is unknown, two variants have
            nothing in common, or samples were edited between the runs.
    """
    require_rules(rules, is_compared=bool(variants))
    other = report if baseline is None else baseline
    labels = tuple(dict.fromkeys(only)) or tuple(dict.fromkeys(variant for variant, _ in variants)) or report.variants
    if not labels:
        raise LLMEvaluationError(f"The evaluation {report.run.name!r} has no result to check.")
    for label in labels:
        report.of(label)
    parts: dict[str | None, tuple[EvalReport, EvalReport]] = {None: (report, other)}
    notes: list[str] = []
    if rules.by is not None:
        own = report.slices(rules.by)
        others = own if baseline is None else baseline.slices(rules.by)
        parts |= {f"{rules.by} {name}": (part, others[name]) for name, part in own.items() if name in others}
        notes += [f"The baseline has no slice {name}, which is not compared." for name in own if name not in others]
        notes += note_slices(rules.by, {name: len(part.clusters) for name, part in own.items()})
    rows, checks = [], []
    for name, (part, theirs) in parts.items():
        present = [pair for pair in variants if pair[0] in part.variants and pair[1] in theirs.variants]
        rows += [{"slice": name, **row} for pair in present for row in _compare_pair(part, theirs, pair, rules)]
    # Adjusted for all slices together: with many, one is significant by chance.
    rows = _adjust_p_values(rows)
    for name, (part, _theirs) in parts.items():
        found = [check for row in rows if row["slice"] == name for check in _check_comparison(row, rules)]
        found += [check for label in labels if label in part.variants for check in _check_variant(part, label, rules)]
        checks += [replace(check, slice=name) for check in found]
    return GateReport(
        run=report.run.name,
        baseline=other.run.name if variants else None,
        task=report.run.task_name,
        rules=rules,
        comparisons=tuple(rows),
        checks=tuple(checks),
        notes=(
            *_note_coverage(report, labels),
            *notes,
            *(_note_differences(report, other) if variants else ()),
            *_note_margin(rows, rules),
            *note_direction(sorted(report.lower_is_better)),
        ),
        sides={"run": report.provenance_summary} | ({} if other is report else {"baseline": other.provenance_summary}),
    )


def _note_coverage(report: EvalReport, labels: Sequence[str]) -> Iterator[str]:
    """Note variants with results for only a part of the dataset, by a limit or because the run stopped."""
    for label in labels:
        coverage = report.coverage[label]
        if coverage.is_partial:
            yield f"{label}: {coverage.text}; only samples with a result are checked."


def _note_margin(rows: Sequence[Mapping[str, Any]], rules: GateRules) -> Iterator[str]:
    """Note metrics with too few pairs for the margin, which the failed check alone would not explain."""
    if not rules.margin:
        return
    from llmkit.evals.statistics import count_equal_pairs_for_margin

    for metric in dict.fromkeys(row["metric"] for row in rows):
        own = [row for row in rows if row["metric"] == metric]
        is_binary = all(row["method"] == "mcnemar" for row in own)
        needed = count_equal_pairs_for_margin(rules.margin, alpha=rules.alpha, is_binary=is_binary)
        pairs = min(row["pairs"] for row in own)
        if pairs < needed:
            yield (
                f"{metric}: a margin of {rules.margin:g} needs at least {needed:,} pairs, even if all answers are "
                f"identical; there are {pairs:,}."
            )


def require_rules(rules: GateRules, *, is_compared: bool) -> None:
    """Refuse rules that check nothing, and rules that need a baseline where there is none.

    Raises:
        LLMEvaluationError: The rules cannot be checked; the message says what to add.
    """
    if is_compared:
        return
    if rules.margin is not None or rules.metrics:
        raise LLMEvaluationError("A margin and metrics need a baseline: name one, or omit them.")
    if not rules.minimums and not rules.maximums and rules.max_failed is None:
        raise LLMEvaluationError(
            "A gate without rules would pass everything: give a baseline, minimums, maximums or max_failed."
        )


def match_variants(
    report: EvalReport, baseline: EvalReport | None, variant: str | None = None, baseline_variant: str | None = None
) -> tuple[VariantPair, ...]:
    """Pair the variants to compare.

    In another run: each variant with the one of the same name, or with `baseline_variant`; two runs of one variant are
    paired whatever the names. In the same run: each other variant with `baseline_variant`.

    Raises:
        LLMEvaluationError: A variant is unknown, or the pairs are ambiguous.
    """
    ours = report.variants if variant is None else (variant,)
    theirs = report.variants if baseline is None else baseline.variants
    for label in ours:
        report.of(label)
    if baseline_variant is not None:
        (report if baseline is None else baseline).of(baseline_variant)
        pairs = [(label, baseline_variant) for label in ours if baseline is not None or label != baseline_variant]
    elif baseline is None:
        pairs = []
    elif len(ours) == len(theirs) == 1:
        pairs = [(ours[0], theirs[0])]
    else:
        pairs = [(label, label) for label in ours if label in theirs]
    if not pairs:
        raise LLMEvaluationError(
            "Say which variants to compare, with --route and --baseline-route: "
            f"the run has {', '.join(report.variants) or 'none'}; the baseline has {', '.join(theirs) or 'none'}."
        )
    return tuple(pairs)


def _compare_pair(
    report: EvalReport, other: EvalReport, pair: VariantPair, rules: GateRules
) -> Iterator[dict[str, Any]]:
    variant, against = pair
    ours, theirs = report.of(variant), other.of(against)
    require_unedited(ours, theirs)
    a, b = index_by_sample(ours), index_by_sample(theirs)
    shared = [metric for metric in report.metrics if metric in other.metrics]
    known = set(report.dataset_metrics) & set(other.dataset_metrics)
    wanted = [name for name in rules.metrics or report.main_dataset_metrics if name in known]
    of_all = (
        report.compare_dataset_metrics(variant, against, other, failed=rules.failures == "as-zero") if wanted else {}
    )
    lower, clusters = report.lower_is_better, {**other.clusters, **report.clusters}
    if not shared and not of_all:
        raise LLMEvaluationError(
            f"{variant} and {against} have no metric in common: their tasks have other scorers, or none."
        )
    for metric in rules.metrics or (*shared, *wanted):
        if metric in wanted:
            if metric not in of_all:
                raise LLMEvaluationError(
                    f"{metric} cannot be compared: it raises an error, maybe on FAILED answers, whose output is None. "
                    "Handle these, or exclude them (--failures excluded)."
                )
            yield _describe_comparison(of_all[metric], variant, against, rules)
            continue
        if metric not in shared:
            raise LLMEvaluationError(f"There is no metric {metric!r} in both runs; there are: {', '.join(shared)}.")
        is_lower = metric in lower
        failed = _get_failed_score(rules, metric, (ours, theirs), is_lower=is_lower)
        found = pair_scores(
            collect_scores(a, metric, failed=failed), collect_scores(b, metric, failed=failed), clusters
        )
        if not found.a:
            raise LLMEvaluationError(f"{variant} and {against} have no sample in common that is scored by {metric}.")
        row = {"metric": metric, "lower_is_better": is_lower, "variant": variant, "baseline": against}
        row |= {"pairs": len(found.a), "left_out": len(a.keys() | b.keys()) - len(found.a)}
        yield row | _compute_numbers(found, rules, is_lower=is_lower)


def _describe_comparison(found: DatasetComparison, variant: str, against: str, rules: GateRules) -> dict[str, Any]:
    """Return the row of a metric over the data set."""
    names = ("metric", "lower_is_better", "pairs", "left_out", "difference", "ci_low", "ci_high", "p_value", "method")
    row = {name: found.row[name] for name in names} | {"variant": variant, "baseline": against}
    row |= {"mean": found.row["mean_a"], "baseline_mean": found.row["mean_b"]}
    return row | {"lower_bound": None if rules.margin is None else found.find_bound(rules.alpha, rules.margin)}


def _get_failed_score(
    rules: GateRules, metric: str, groups: Sequence[Sequence[EvalResult]], *, is_lower: bool
) -> float | None:
    """Return the score that a FAILED answer counts as; None where it is left out."""
    if rules.failures == "excluded":
        return None
    worst = find_worst_score(groups, metric, {metric} if is_lower else frozenset())
    if math.isnan(worst) and any(result.status == FAILED for results in groups for result in results):
        raise LLMEvaluationError(
            f"Less is better of {metric}, and its scores are not all within 0 and 1, so a FAILED answer has "
            "no worst score: exclude failures (--failures excluded) and limit their share (--max-failed)."
        )
    return worst


def _compute_numbers(found: ScorePairs, rules: GateRules, *, is_lower: bool) -> dict[str, Any]:
    from llmkit.evals.statistics import check_non_inferiority, compare_pairs

    clusters: Sequence[Hashable] = found.clusters
    difference = compare_pairs(found.a, found.b, clusters)
    bound = None
    if rules.margin is not None:
        better, worse = (found.b, found.a) if is_lower else (found.a, found.b)
        bound = check_non_inferiority(better, worse, rules.margin, clusters, rules.alpha).low
    return {
        "mean": math.fsum(found.a) / len(found.a),
        "baseline_mean": math.fsum(found.b) / len(found.b),
        "difference": difference.difference,
        "ci_low": difference.low,
        "ci_high": difference.high,
        "p_value": difference.p_value,
        "lower_bound": bound,
        "method": difference.method,
    }


def _adjust_p_values(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    from llmkit.evals.statistics import adjust_holm

    adjusted = adjust_holm([row["p_value"] for row in rows])
    return [{**row, "p_holm": float(value)} for row, value in zip(rows, adjusted, strict=True)]


def _check_comparison(row: Mapping[str, Any], rules: GateRules) -> Iterator[GateCheck]:
    variant, against, metric = row["variant"], row["baseline"], row["metric"]
    means = f"{row['mean']:.4g} against {row['baseline_mean']:.4g} on {row['pairs']} pairs, difference "
    means += f"{row['difference']:+.4g} [{row['ci_low']:+.4g}, {row['ci_high']:+.4g}]"
    if rules.margin is None:
        gain = -row["difference"] if row["lower_is_better"] else row["difference"]
        regressed = bool(gain < 0 and row["p_holm"] < rules.alpha)
        yield GateCheck("regression", variant, against, metric, not regressed, f"{means}, p {row['p_holm']:.3g} (Holm)")
    else:
        shown = bool(row["lower_bound"] > -rules.margin)
        detail = f"{means}, lower bound of the gain {row['lower_bound']:+.4g}, margin {rules.margin:g}"
        yield GateCheck("non_inferiority", variant, against, metric, shown, detail)
    share = row["left_out"] / (row["left_out"] + row["pairs"])
    detail = f"{row['left_out']} of {row['left_out'] + row['pairs']} have no partner; at most {rules.max_left_out:.0%}"
    yield GateCheck("coverage", variant, against, metric, share <= rules.max_left_out, detail)


def _check_variant(report: EvalReport, label: str, rules: GateRules) -> Iterator[GateCheck]:
    results = report.of(label)
    for metric, least in rules.minimums.items():
        mean = _compute_mean(report, results, metric, rules, is_lower=False)
        yield GateCheck("minimum", label, None, metric, mean >= least, f"{_format_mean(mean)}, at least {least:g}")
    for metric, most in rules.maximums.items():
        mean = _compute_mean(report, results, metric, rules, is_lower=True)
        yield GateCheck("maximum", label, None, metric, mean <= most, f"{_format_mean(mean)}, at most {most:g}")
    if rules.max_failed is not None:
        failed = sum(result.status == FAILED for result in results)
        detail = f"{failed} of {len(results)} failed; at most {rules.max_failed:.0%}"
        yield GateCheck("failed_share", label, None, None, failed <= rules.max_failed * len(results), detail)


def _compute_mean(
    report: EvalReport, results: Sequence[EvalResult], metric: str, rules: GateRules, *, is_lower: bool
) -> float:
    """Return the mean of a metric with this direction; NaN without a score."""
    if metric in report.dataset_metrics:
        summary = report.summary()
        row = summary[(summary["metric"] == metric) & (summary["variant"] == results[0].route)].iloc[0]
        if is_lower != bool(row["lower_is_better"]):
            raise LLMEvaluationError(f"For {metric} {_explain_direction(is_lower=is_lower)}.")
        return float(row["mean" if rules.failures == "excluded" else "mean_failures_as_zero"])
    if metric not in report.metrics:
        known = ", ".join((*report.metrics, *report.dataset_metrics)) or "none"
        raise LLMEvaluationError(f"There is no metric {metric!r}; there are: {known}.")
    if is_lower != (metric in report.lower_is_better):
        raise LLMEvaluationError(
            f"For {metric} {_explain_direction(is_lower=is_lower)}. Scorers declare it by lower_is_better."
        )
    failed = _get_failed_score(rules, metric, (results,), is_lower=is_lower)
    scores = collect_scores(index_by_sample(results), metric, failed=failed)
    return math.fsum(scores.values()) / len(scores) if scores else math.nan


def _explain_direction(*, is_lower: bool) -> str:
    return "more is better: set a minimum (--min)" if is_lower else "less is better: set a maximum (--max)"


def _format_mean(mean: float) -> str:
    return "no score" if math.isnan(mean) else f"mean {mean:.4g}"


def _note_differences(report: EvalReport, other: EvalReport) -> Iterator[str]:
    ours, theirs = report.run, other.run
    if ours.task_name != theirs.task_name:
        yield f"The runs are of two tasks: {ours.task_name} and {theirs.task_name}."
    before, now = theirs.spec.get("task", {}), ours.spec.get("task", {})
    changed = [part for part in now if now[part] != before.get(part)]
    if changed:
        yield f"The task has changed since the baseline: {', '.join(changed)}."
    if ours.dataset_sha256 != theirs.dataset_sha256:
        yield "The datasets differ; only samples that both have are compared."
    turned = sorted((report.lower_is_better ^ other.lower_is_better) & set(report.metrics) & set(other.metrics))
    if turned:
        yield f"The baseline declares the opposite direction for {', '.join(turned)}; that of the run applies."
    if ours.spec.get("scorers_sha256") != theirs.spec.get("scorers_sha256"):
        yield "The scorers differ: a difference may be theirs."


def _round(value: Any) -> Any:
    """Round to twelve digits, because the last ones depend on the machine."""
    if not isinstance(value, float):
        return value
    return float(f"{value:.{DIGITS}g}") if math.isfinite(value) else None
