"""Markdown summaries of runs and gates for pull requests."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from llmkit.evals.ci.gate import GateReport
from llmkit.evals.ci.junit import replace_illegal
from llmkit.evals.report.frames import to_plain_rows
from llmkit.evals.report.report import EvalReport
from llmkit.evals.report.terminal import format_mean, format_scored

__all__ = ["render_gate_markdown", "render_run_markdown"]


def render_gate_markdown(gate: GateReport) -> str:
    """Render the verdict, with comparisons and checks as tables."""
    verdict = "passed" if gate.passed else "failed"
    against = f" against {_escape_cell(gate.baseline)}" if gate.baseline is not None else ""
    lines = [f"## Gate {verdict}: {_escape_cell(gate.run)}{against}", ""]
    if gate.comparisons:
        header = ("Metric", "Variant", "Baseline", "Pairs", "Mean", "Baseline mean", "Difference [95 %]", "p (Holm)")
        lines += [*_build_table(header, (_build_comparison_cells(row) for row in gate.comparisons)), ""]
    if gate.checks:
        lines += [
            *_build_table(
                ("", "Check", "Numbers"),
                (("pass" if check.passed else "FAIL", check.title, check.detail) for check in gate.checks),
            ),
            "",
        ]
    return "\n".join([*lines, *_build_list(gate.notes), *_describe_sides(gate)]).rstrip() + "\n"


def _describe_sides(gate: GateReport) -> Iterator[str]:
    """Describe each side, one fact a row."""
    sides = gate.sides
    names = list(dict.fromkeys(name for facts in sides.values() for name in facts))
    header = ("What was compared" if len(sides) > 1 else "What was checked", *(side.capitalize() for side in sides))
    rows = [("name", gate.run, gate.baseline or "")[: 1 + len(sides)]]
    yield from _build_table(
        header, [*rows, *((name, *(facts.get(name, "-") for facts in sides.values())) for name in names)]
    )


def _build_comparison_cells(row: Mapping[str, Any]) -> Sequence[str]:
    interval = f"{row['difference']:+.3f} [{row['ci_low']:+.3f}, {row['ci_high']:+.3f}]"
    names = [row["metric"], row["variant"], row["baseline"], str(row["pairs"])]
    return [*names, f"{row['mean']:.3f}", f"{row['baseline_mean']:.3f}", interval, f"{row['p_holm']:.3g}"]


def render_run_markdown(reports: Iterable[EvalReport]) -> str:
    """Render the summaries as tables, without latencies, which differ every time."""
    return "\n".join(line for report in reports for line in _build_run_lines(report))


def _build_run_lines(report: EvalReport) -> Iterator[str]:
    header = ("Variant", "Metric", "Mean [95 %]", "Scored", "Failed", "Not scored", "Tokens in", "Tokens out")
    yield f"## {_escape_cell(report.run.name)} ({_escape_cell(report.run.task_name)})"
    yield ""
    yield from _build_table(header, (_build_summary_cells(row) for row in to_plain_rows(report.summary())))
    yield ""
    # Notes on the work of a call depend on earlier calls; these do not.
    yield from _build_list(report.stable_notes)
    facts = "; ".join(
        f"{_escape_cell(name)}: {_escape_cell(value)}" for name, value in report.provenance_summary.items()
    )
    yield f"What was run: {facts}"
    yield ""


def _build_summary_cells(row: Mapping[str, Any]) -> Sequence[str]:
    counts = [format_scored(row), row["failed"], row["scorer_failed"], row["input_tokens"], row["output_tokens"]]
    return [
        row["variant"],
        row["metric"] or "-",
        format_mean(row),
        *("-" if each is None else str(each) for each in counts),
    ]


def _build_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> Iterator[str]:
    yield f"| {' | '.join(header)} |"
    yield f"|{'---|' * len(header)}"
    for row in rows:
        yield f"| {' | '.join(_escape_cell(cell) for cell in row)} |"


def _build_list(notes: Sequence[str]) -> Iterator[str]:
    for note in notes:
        yield f"- {_escape_cell(note)}"
    if notes:
        yield ""


def _escape_cell(text: str) -> str:
    """Escape text, so that it cannot end a cell or begin a tag, a link or a format."""
    escaped = re.sub(r"([\\`*_\[\]<>|#])", r"\\\1", replace_illegal(text))
    return " ".join(escaped.split())
