"""Sections of the page: leaderboard, comparisons, errors by field, cost and latency, missing data, repeats."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import permutations
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from llmkit.eval_ports import RecordedCall
from llmkit.evals.direction import is_right
from llmkit.evals.report.explain import (
    explain_chances,
    explain_count,
    explain_difference,
    explain_failures,
    explain_first_try,
    explain_mean,
    explain_missing,
    explain_p_value,
)
from llmkit.evals.report.frames import to_plain_rows
from llmkit.evals.report.html.cells import (
    Cell,
    CountCell,
    DifferenceCell,
    FaintText,
    Figure,
    Scale,
    Section,
    ShareCell,
    Table,
    format_count,
    format_interval,
    format_signed_interval,
    make_figure,
)
from llmkit.evals.report.html.cost import build_cost_section
from llmkit.evals.report.html.dataset_metrics import build_dataset_section
from llmkit.evals.report.html.frontier import build_frontier_section
from llmkit.evals.report.html.mistakes import find_frequent_mistakes
from llmkit.evals.report.html.slices import build_slices_section
from llmkit.evals.report.terminal import format_mean, format_scored
from llmkit.evals.report.verdict import SIGNIFICANT, describe_verdict, get_main_metrics
from llmkit.evals.results import FAILED

if TYPE_CHECKING:
    from llmkit.evals.report.analysis import Analysis

__all__ = ["Heading", "build_heading", "build_sections", "compare_variants"]

SummaryRow: TypeAlias = Mapping[str, Any]

LOWER: Final = " (less is better)"


@dataclass(frozen=True, slots=True)
class Heading:
    """The top of the page: the run's name, facts about it, and notes on its numbers."""

    name: str
    facts: tuple[str, ...]
    verdict: tuple[str, ...]
    notes: tuple[str, ...]


def compare_variants(report: Analysis) -> list[dict[str, Any]]:
    """Compare all pairs by the main metrics, with p-values adjusted by Holm for all of them.

    Without it, 25 % of reports on six equal variants show at least one false arrow, and 49 % on ten.
    """
    metrics = get_main_metrics(report)
    if len(report.variants) < 2 or not metrics:
        return []
    return to_plain_rows(report.compare(metric=metrics))


def build_heading(report: Analysis, comparisons: Sequence[SummaryRow], *, stable: bool) -> Heading:
    """Build the heading; a stable one has no clock time."""
    run = report.run
    samples = len({result.sample_id for result in report.results})
    facts = [f"task {run.task_name}", f"{format_count(samples)} samples", f"{len(report.variants)} variants"]
    facts += [f"{format_count(number)} {status}" for status, number in report.counts.items() if number]
    facts += [] if stable else [f"begun {run.created_at_utc:%Y-%m-%d %H:%M} UTC"]
    return Heading(run.name, tuple(facts), describe_verdict(report, comparisons), report.stable_notes)


def build_sections(
    report: Analysis, calls: Sequence[RecordedCall], comparisons: Sequence[SummaryRow], *, stable: bool
) -> list[Section]:
    """Build all sections but the samples and the provenance."""
    rows = to_plain_rows(report.summary())
    # Parts of a scorer's verdict have a section of their own.
    metrics = get_main_metrics(report)
    ranked = (*metrics, *report.main_dataset_metrics)
    leaderboards = tuple(_build_leaderboard(rows, metric) for metric in ranked or (None,))
    return [
        Section("leaderboard", "Leaderboard", leaderboards),
        *_build_comparisons(report, comparisons),
        *build_dataset_section(report, rows),
        *build_slices_section(report, ranked),
        *_build_field_errors(report, rows, metrics),
        build_cost_section(report, rows, calls, stable=stable),
        *build_frontier_section(report, metrics),
        *_build_missing(report, metrics),
        *_build_repeats(report, metrics),
    ]


def _build_leaderboard(rows: Sequence[SummaryRow], metric: str | None) -> Table:
    """Rank the variants by their mean, the best first."""
    own = [row for row in rows if row["metric"] == metric]
    scale = Scale.from_rows(own)
    is_lower = any(row["lower_is_better"] for row in own)
    sign = 1 if is_lower else -1
    ranked = sorted(own, key=lambda row: (row["mean"] is None, sign * (row["mean"] or 0.0)))
    failures = "Failures as 1" if is_lower else "Failures as 0"
    return Table.from_rows(
        (
            "Variant",
            scale.draw_scale(),
            "Mean [95 %]",
            failures,
            "Scored",
            "Failed",
            "Not scored",
            "Valid at first try",
        ),
        (
            (
                row["variant"],
                scale.draw_interval(
                    row["mean"], row["ci_low"], row["ci_high"], f"{row['variant']}: {format_mean(row)}"
                ),
                Figure(format_mean(row), explain_mean(row)),
                make_figure(row["mean_failures_as_zero"], ".3f", explain_failures(row)),
                _build_scored(row),
                CountCell(row["failed"], explain_count(row, "failed")),
                CountCell(row["scorer_failed"] + row["not_run"] + row["in_progress"], explain_count(row, "unscored")),
                make_figure(row["valid_first_try"], ".0%", explain_first_try()),
            )
            for row in ranked
        ),
        caption=f"{metric or 'No scorer'}{LOWER if is_lower else ''}",
    )


def _build_scored(row: SummaryRow) -> Cell:
    why = explain_count(row, "scored")
    is_partial = row["not_run"] or row["in_progress"]
    return Figure(format_scored(row), why) if is_partial else CountCell(row["scored"], why)


def _build_comparisons(report: Analysis, comparisons: Sequence[SummaryRow]) -> Iterator[Section]:
    """Build a matrix for each metric: the variant of the row minus that of the column."""
    if not comparisons:
        return
    differences: dict[tuple[str, str, str], SummaryRow] = {}
    for row in comparisons:
        differences[row["metric"], row["a"], row["b"]] = row
        differences[row["metric"], row["b"], row["a"]] = _mirror(row)
    count = len(comparisons)
    lead = FaintText(
        "Variant of the row minus variant of the column, on the samples that both have a score for. "
        f"p is adjusted by Holm for all {count} comparisons of this section. "
        "An arrow marks a difference with p below 0.05."
        if count > 1
        else "Variant of the row minus variant of the column, on the samples that both have a score for. "
        "An arrow marks a difference with p below 0.05."
    )
    metrics = dict.fromkeys(row["metric"] for row in comparisons)
    matrices = (_build_matrix(report.variants, differences, metric, count) for metric in metrics)
    yield Section("comparisons", "Paired comparisons", (lead, *matrices))


def _mirror(row: SummaryRow) -> SummaryRow:
    """Turn a minus b into b minus a. Subtracting from 0.0 avoids a negative zero."""
    sources = {"difference": "difference", "ci_low": "ci_high", "ci_high": "ci_low", "effect": "effect"}
    turned = {name: None if row[source] is None else 0.0 - row[source] for name, source in sources.items()}
    return {**row, **turned, "a": row["b"], "b": row["a"]}


def _build_matrix(
    variants: Sequence[str], differences: Mapping[tuple[str, str, str], SummaryRow], metric: str, count: int
) -> Table:
    own = {(a, b): differences[metric, a, b] for a, b in permutations(variants, 2)}
    scale = Scale.around_zero(row[name] for row in own.values() for name in ("difference", "ci_low", "ci_high"))
    is_lower = any(row["lower_is_better"] for row in own.values())
    return Table.from_rows(
        ("", *(f"minus {label}" for label in variants)),
        ([a, *(_build_difference(own[a, b], scale, count) if a != b else None for b in variants)] for a in variants),
        caption=f"{metric}{LOWER if is_lower else ''}",
    )


def _build_difference(row: SummaryRow, scale: Scale, count: int) -> DifferenceCell:
    text = format_signed_interval(row["difference"], row["ci_low"], row["ci_high"])
    facts = f"{format_count(row['pairs'])} pairs, {format_count(row['left_out'])} left out, {row['method']}"
    if row["p_holm"] is None:
        return DifferenceCell(text, facts, why=explain_difference(row))
    style, arrow = "same", ""
    if row["p_holm"] < SIGNIFICANT and row["difference"]:
        style = "better" if (row["difference"] > 0) != row["lower_is_better"] else "worse"
        arrow = "▲ " if row["difference"] > 0 else "▼ "
    mark = scale.draw_interval(row["difference"], row["ci_low"], row["ci_high"], f"difference {text}", has_labels=True)
    whys = explain_difference(row), explain_p_value(row, count)
    return DifferenceCell(text, facts, f"{row['p_holm']:.3g}", style, arrow, mark, *whys)


def _build_field_errors(report: Analysis, rows: Sequence[SummaryRow], metrics: Sequence[str]) -> Iterator[Section]:
    """Show how often each part of an answer was wrong, and which wrong values were frequent."""
    parts = [metric for metric in report.metrics if metric not in metrics]
    tables = [_build_error_shares(report, rows, parts or metrics)] if metrics else []
    mistakes = list(find_frequent_mistakes(report))
    if mistakes:
        caption = "Most frequent differences from the target, in answers that are not wholly right"
        tables.append(Table.from_rows(("Field", "Variant", "Target", "Answer", "Times"), mistakes, caption=caption))
    if tables:
        yield Section("fields", "Errors by field", tuple(tables))


def _build_error_shares(report: Analysis, rows: Sequence[SummaryRow], metrics: Sequence[str]) -> Table:
    lower = report.lower_is_better
    wrong = Counter(
        (metric, result.route)
        for result in report.results
        for metric, value in result.scores.items()
        if metric in metrics and not is_right(value, lower_is_better=metric in lower)
    )
    scored = {(row["metric"], row["variant"]): row["scored"] for row in rows}
    return Table.from_rows(
        ("Score", *report.variants),
        (
            [metric, *(_build_share(wrong[metric, label], scored[metric, label]) for label in report.variants)]
            for metric in metrics
        ),
        caption=f"Scores below 1{', or above 0 where less is better' if lower else ''}; bars from 0 to 100 %",
    )


def _build_share(part: int, whole: int) -> ShareCell | None:
    if not whole:
        return None
    share = part / whole
    text = f"{format_count(part)} of {format_count(whole)} ({share:.1%})"
    why = f"{format_count(part)} of {format_count(whole)} scored answers did not get the best score."
    return ShareCell(text, Scale(0.0, 1.0).draw_bar(0.0, share, f"{share:.1%}"), why)


def _build_missing(report: Analysis, metrics: Sequence[str]) -> Iterator[Section]:
    """Show the means under three assumptions on results without a score, and the errors behind them."""
    tables = []
    views = [row for row in to_plain_rows(report.missing()) if row["metric"] in metrics]
    if views:
        names = ("Variant", "Metric", "Results", "Missing", "Left out", "As failures", "Worst to best")
        headings = (*names, Scale(0.0, 1.0).draw_scale())
        caption = "What results without a score could change"
        tables.append(Table.from_rows(headings, map(_build_missing_cells, views), caption=caption))
    codes = Counter((r.error_code or "unknown", r.route) for r in report.results if r.status == FAILED)
    if codes:
        kinds = sorted({code for code, _label in codes})
        rows: list[Sequence[Cell]] = [
            (
                kind,
                *(
                    CountCell(codes[kind, label], f"Results of {label} that failed with {kind}.")
                    for label in report.variants
                ),
            )
            for kind in kinds
        ]
        tables.append(Table.from_rows(("Error", *report.variants), rows, caption="Failed results"))
    if tables:
        yield Section("missing", "Missing data", tuple(tables))


def _build_missing_cells(row: SummaryRow) -> Sequence[Cell]:
    bounds = None if row["worst"] is None else f"{row['worst']:.3f} to {row['best']:.3f}"
    return (
        row["variant"],
        row["metric"],
        CountCell(row["n"], "Samples, times epochs."),
        CountCell(row["missing"], "Results without a score, whatever the reason."),
        _explain_interval(row, ("mean_excluded", "excluded_low", "excluded_high"), explain_missing(row, "excluded")),
        _explain_interval(
            row, ("mean_as_failures", "as_failures_low", "as_failures_high"), explain_missing(row, "as_failures")
        ),
        None if bounds is None else Figure(bounds, explain_missing(row, "bounds")),
        Scale(0.0, 1.0).draw_bar(row["worst"], row["best"], bounds or ""),
    )


def _explain_interval(row: SummaryRow, names: tuple[str, str, str], why: str) -> Figure:
    return Figure(format_interval(*(row[name] for name in names)), why)


def _build_repeats(report: Analysis, metrics: Sequence[str]) -> Iterator[Section]:
    epochs = 1 + max((result.epoch for result in report.results), default=0)
    if epochs < 2 or not metrics:
        return
    cells = (
        (
            row["variant"],
            row["metric"],
            *(
                _explain_interval(row, (kind, f"{kind}_low", f"{kind}_high"), explain_chances(row, kind))
                for kind in ("pass_at_k", "pass_hat_k")
            ),
            CountCell(row["samples"], "Samples with enough repeats."),
            CountCell(row["left_out"], f"Samples with fewer than {row['k']} repeats that can be counted."),
        )
        for row in to_plain_rows(report.repeats(epochs))
        if row["metric"] in metrics
    )
    headings = ("Variant", "Metric", "pass@k (any right)", "pass^k (all right)", "Samples", "Left out")
    yield Section("repeats", "Repeats", (Table.from_rows(headings, cells, caption=f"k = {epochs}"),))
