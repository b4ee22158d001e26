"""Markdown summaries of runs and gates for pull requests."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from llmkit.evals.ci.gate import GateCheck, GateReport
from llmkit.evals.ci.junit import _legal
from llmkit.evals.report.frames import to_plain_rows
from llmkit.evals.report.report import EvalReport
from llmkit.evals.report.terminal import format_mean

__all__ = ["render_gate_markdown", "render_run_markdown"]


def render_gate_markdown(gate: GateReport) -> str:
    """A verdict, the comparisons and the checks as tables."""
    verdict = "passed" if gate.passed else "failed"
    against = f" against {_cell(gate.baseline)}" if gate.baseline is not None else ""
    lines = [f"## Gate {verdict}: {_cell(gate.run)}{against}", ""]
    if gate.comparisons:
        header = ("Metric", "Variant", "Baseline", "Pairs", "Mean", "Baseline mean", "Difference [95 %]", "p (Holm)")
        lines += [*_table(header, (_comparison_cells(row) for row in gate.comparisons)), ""]
    if gate.checks:
        lines += [*_table(("", "GateCheck", "Numbers"), (_check_cells(check) for check in gate.checks)), ""]
    return "\n".join([*lines, *_listed(gate.notes), *_compared(gate)]).rstrip() + "\n"


def _compared(gate: GateReport) -> Iterator[str]:
    """What each side is, a fact a row."""
    sides = gate.sides
    names = list(dict.fromkeys(name for told in sides.values() for name in told))
    header = ("What was compared" if len(sides) > 1 else "What was checked", *(side.capitalize() for side in sides))
    rows = [("name", gate.run, gate.baseline or "")[: 1 + len(sides)]]
    yield from _table(header, [*rows, *((name, *(told.get(name, "-") for told in sides.values())) for name in names)])


def _comparison_cells(row: Mapping[str, Any]) -> Sequence[str]:
    interval = f"{row['difference']:+.3f} [{row['ci_low']:+.3f}, {row['ci_high']:+.3f}]"
    names = [row["metric"], row["variant"], row["baseline"], str(row["pairs"])]
    return [*names, f"{row['mean']:.3f}", f"{row['baseline_mean']:.3f}", interval, f"{row['p_holm']:.3g}"]


def _check_cells(check: GateCheck) -> Sequence[str]:
    return ["pass" if check.passed else "FAIL", check.title, check.detail]


def render_run_markdown(reports: Iterable[EvalReport]) -> str:
    """The summaries as tables, without latencies, which are different every time."""
    return "\n".join(line for report in reports for line in _run_lines(report))


def _run_lines(report: EvalReport) -> Iterator[str]:
    header = ("Variant", "Metric", "Mean [95 %]", "Scored", "Failed", "Not scored", "Tokens in", "Tokens out")
    yield f"## {_cell(report.run.name)} ({_cell(report.run.task_name)})"
    yield ""
    yield from _table(header, (_summary_cells(row) for row in to_plain_rows(report.summary())))
    yield ""
    # What a run did now depends on what was there before; these notes do not.
    yield from _listed(report.stable_notes)
    facts = "; ".join(f"{_cell(name)}: {_cell(value)}" for name, value in report.provenance_summary.items())
    yield f"What was run: {facts}"
    yield ""


def _summary_cells(row: Mapping[str, Any]) -> Sequence[str]:
    counts = [row["scored"], row["failed"], row["scorer_failed"], row["input_tokens"], row["output_tokens"]]
    return [
        row["variant"],
        row["metric"] or "-",
        format_mean(row),
        *("-" if each is None else str(each) for each in counts),
    ]


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> Iterator[str]:
    yield f"| {' | '.join(header)} |"
    yield f"|{'---|' * len(header)}"
    for row in rows:
        yield f"| {' | '.join(_cell(cell) for cell in row)} |"


def _listed(notes: Sequence[str]) -> Iterator[str]:
    for note in notes:
        yield f"- {_cell(note)}"
    if notes:
        yield ""


def _cell(text: str) -> str:
    """Text that cannot end a cell, begin a tag, a link or a format."""
    escaped = re.sub(r"([\\`*_\[\]<>|#])", r"\\\1", _legal(text))
    return " ".join(escaped.split())
