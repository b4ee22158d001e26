"""What was found: leaderboard, comparisons, errors by field, cost and latency, and what is missing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import permutations
from typing import TYPE_CHECKING, Any

from llmkit.display.html import Html, html, join_html
from llmkit.eval_ports import RecordedCall
from llmkit.evals.report.direction import is_right
from llmkit.evals.report.frames import to_plain_rows
from llmkit.evals.report.html.cost import spending
from llmkit.evals.report.html.mistakes import find_frequent_mistakes
from llmkit.evals.report.html.svg import Scale, Section, count, number, ranged, section, signed, table, unknown
from llmkit.evals.report.terminal import format_mean
from llmkit.evals.results import FAILED

if TYPE_CHECKING:
    from llmkit.evals.report.analysis import Analysis

__all__ = ["findings", "heading"]

Row = Mapping[str, Any]

SIGNIFICANT = 0.05
LOWER = " (less is better)"


def heading(report: Analysis, *, stable: bool) -> Html:
    """Name, counts, and what a reader of the numbers has to know."""
    run, counts = report.run, report.counts
    samples = len({result.sample_id for result in report.results})
    told = [f"task {run.task_name}", f"{count(samples)} samples", f"{len(report.variants)} variants"]
    told += [f"{count(many)} {status}" for status, many in counts.items() if many]
    told += [] if stable else [f"begun {run.created_at_utc:%Y-%m-%d %H:%M} UTC"]
    notes = join_html(html("<li>{}</li>", note) for note in report.stable_notes)
    return html(
        "<h1>{}</h1><p>{}</p>{}",
        run.name,
        " · ".join(told),
        html('<ul class="notes" aria-label="Notes">{}</ul>', notes) if notes else Html(),
    )


def findings(report: Analysis, calls: Sequence[RecordedCall], *, stable: bool) -> list[Section]:
    """All sections but the samples and what was run."""
    rows = to_plain_rows(report.summary())
    metrics = _main_metrics(report)
    return [
        section("leaderboard", "Leaderboard", *(_leaderboard(rows, metric) for metric in metrics or (None,))),
        *_comparisons(report, metrics),
        *_by_field(report, rows, metrics),
        spending(report, rows, calls, stable=stable),
        *_missing(report, metrics),
        *_repeats(report, metrics),
    ]


def _main_metrics(report: Analysis) -> tuple[str, ...]:
    """Those that are a scorer's verdict; the others are parts of one."""
    named = report.run.spec.get("scorers", ())
    return tuple(metric for metric in report.metrics if metric in named) or report.metrics


def _leaderboard(rows: Sequence[Row], metric: str | None) -> Html:
    """The variants by their mean, the best first."""
    own = [row for row in rows if row["metric"] == metric]
    scale = Scale.of(own)
    is_lower = any(row["lower_is_better"] for row in own)
    sign = 1 if is_lower else -1
    ranked = sorted(own, key=lambda row: (row["mean"] is None, sign * (row["mean"] or 0.0)))
    failures = "Failures as 1" if is_lower else "Failures as 0"
    headings = ("Variant", "", "Mean [95 %]", failures, "Scored", "Failed", "Not scored", "Valid at first try")
    return table(
        headings,
        (
            (
                row["variant"],
                scale.interval(row["mean"], row["ci_low"], row["ci_high"], f"{row['variant']}: {format_mean(row)}"),
                html('<span class="number">{}</span>', format_mean(row)),
                number(row["mean_failures_as_zero"], ".3f"),
                row["scored"],
                row["failed"],
                row["scorer_failed"] + row["not_run"] + row["in_progress"],
                number(row["valid_first_try"], ".0%"),
            )
            for row in ranked
        ),
        caption=f"{metric or 'No scorer'}{LOWER if is_lower else ''}",
    )


def _comparisons(report: Analysis, metrics: Sequence[str]) -> Iterator[Section]:
    """For each metric a matrix: the variant of the row minus that of the column."""
    if len(report.variants) < 2 or not metrics:
        return
    found: dict[tuple[str, str, str], Row] = {}
    for number_, a in enumerate(report.variants):
        for b in report.variants[number_ + 1 :]:
            for row in to_plain_rows(report.compare(a, b)):
                found[row["metric"], a, b] = row
                found[row["metric"], b, a] = _mirrored(row)
    lead = html(
        '<p class="faint">Variant of the row minus variant of the column, on the samples that both have a score for. '
        "p is adjusted by Holm for the metrics of a pair, not for the number of pairs.</p>"
    )
    yield section(
        "comparisons", "Paired comparisons", lead, *(_matrix(report.variants, found, each) for each in metrics)
    )


def _mirrored(row: Row) -> Row:
    turned = {"difference": "difference", "ci_low": "ci_high", "ci_high": "ci_low", "effect": "effect"}
    return {**row, **{name: None if row[of] is None else 0.0 - row[of] for name, of in turned.items()}}


def _matrix(variants: Sequence[str], found: Mapping[tuple[str, str, str], Row], metric: str) -> Html:
    own = {(a, b): found[metric, a, b] for a, b in permutations(variants, 2)}
    scale = Scale.around_zero(row[name] for row in own.values() for name in ("difference", "ci_low", "ci_high"))
    cells = ([a, *(_difference(own.get((a, b)), scale) for b in variants)] for a in variants)
    is_lower = any(row["lower_is_better"] for row in own.values())
    headings = ("", *(html("minus {}", label) for label in variants))
    return table(headings, cells, caption=f"{metric}{LOWER if is_lower else ''}")


def _difference(row: Row | None, scale: Scale) -> Html:
    if row is None:
        return unknown
    text = signed(row["difference"], row["ci_low"], row["ci_high"])
    facts = f"{count(row['pairs'])} pairs, {count(row['left_out'])} left out, {row['method']}"
    if row["p_holm"] is None:
        return html('{}<br><span class="faint">{}</span>', text, facts)
    verdict = _verdict(row)
    return html(
        '<span class="{}">{}{}</span> p = {}<br>{}<br><span class="faint">{}</span>',
        Html(verdict[0]),
        verdict[1],
        text,
        f"{row['p_holm']:.3g}",
        scale.interval(row["difference"], row["ci_low"], row["ci_high"], f"difference {text}"),
        facts,
    )


def _verdict(row: Row) -> tuple[str, str]:
    """Style and mark of a difference: never told by colour alone."""
    if row["p_holm"] >= SIGNIFICANT or not row["difference"]:
        return "same", ""
    arrow = "▲ " if row["difference"] > 0 else "▼ "
    return ("better" if (row["difference"] > 0) != row["lower_is_better"] else "worse", arrow)


def _by_field(report: Analysis, rows: Sequence[Row], metrics: Sequence[str]) -> Iterator[Section]:
    """How often each part of an answer was wrong, and what was said instead."""
    parts = [metric for metric in report.metrics if metric not in metrics]
    tables = [_error_shares(report, rows, parts or metrics)] if metrics else []
    mistakes = list(find_frequent_mistakes(report))
    if mistakes:
        tables.append(
            table(
                ("Field", "Variant", "Target", "Answer", "Times"),
                mistakes,
                caption="Most frequent differences from the target, in answers that are not wholly right",
            )
        )
    if tables:
        yield section("fields", "Errors by field", *tables)


def _error_shares(report: Analysis, rows: Sequence[Row], metrics: Sequence[str]) -> Html:
    lower = report.lower_is_better
    wrong = Counter(
        (metric, result.route)
        for result in report.results
        for metric, value in result.scores.items()
        if metric in metrics and not is_right(value, lower_is_better=metric in lower)
    )
    scored = {(row["metric"], row["variant"]): row["scored"] for row in rows}
    return table(
        ("Score", *report.variants),
        ([metric, *(_share(wrong[metric, r], scored[metric, r]) for r in report.variants)] for metric in metrics),
        caption="Scores below 1, or above 0 where less is better" if lower else "Scores below 1",
    )


def _share(part: int, whole: int) -> Html:
    if not whole:
        return unknown
    share = part / whole
    bar = Scale(0.0, 1.0).span(0.0, share, f"{share:.1%}")
    return html('<span class="number">{} of {} ({})</span> {}', count(part), count(whole), f"{share:.1%}", bar)


def _missing(report: Analysis, metrics: Sequence[str]) -> Iterator[Section]:
    """Three views of what has no score, and why it has none."""
    tables = []
    views = [row for row in to_plain_rows(report.missing()) if row["metric"] in metrics]
    if views:
        headings = ("Variant", "Metric", "Results", "Missing", "Left out", "As failures", "Worst to best", "")
        tables.append(table(headings, map(_view, views), caption="What results without a score could change"))
    codes = Counter((r.error_code or "unknown", r.route) for r in report.results if r.status == FAILED)
    if codes:
        kinds = sorted({code for code, _route in codes})
        cells = ([kind, *(codes[kind, variant] for variant in report.variants)] for kind in kinds)
        tables.append(table(("Error", *report.variants), cells, caption="Failed results"))
    if tables:
        yield section("missing", "Missing data", *tables)


def _view(row: Row) -> Sequence[Any]:
    bounds = None if row["worst"] is None else f"{row['worst']:.3f} to {row['best']:.3f}"
    return (
        row["variant"],
        row["metric"],
        row["n"],
        row["missing"],
        ranged(row["mean_excluded"], row["excluded_low"], row["excluded_high"]),
        ranged(row["mean_as_failures"], row["as_failures_low"], row["as_failures_high"]),
        bounds or unknown,
        Scale(0.0, 1.0).span(row["worst"], row["best"], bounds or ""),
    )


def _repeats(report: Analysis, metrics: Sequence[str]) -> Iterator[Section]:
    epochs = 1 + max((result.epoch for result in report.results), default=0)
    if epochs < 2 or not metrics:
        return
    rows = [row for row in to_plain_rows(report.repeats(epochs)) if row["metric"] in metrics]
    cells = (
        (
            row["variant"],
            row["metric"],
            ranged(row["pass_at_k"], row["pass_at_k_low"], row["pass_at_k_high"]),
            ranged(row["pass_hat_k"], row["pass_hat_k_low"], row["pass_hat_k_high"]),
            row["samples"],
            row["left_out"],
        )
        for row in rows
    )
    headings = ("Variant", "Metric", "pass@k (any right)", "pass^k (all right)", "Samples", "Left out")
    yield section("repeats", "Repeats", table(headings, cells, caption=f"k = {epochs}"))
