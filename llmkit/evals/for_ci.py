"""Reports for continuous integration: JUnit XML and Markdown. The same results give the same bytes."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any
from xml.etree import ElementTree as ET

from llmkit.eval_ports import EvalResult
from llmkit.evals.gate import Check, GateReport
from llmkit.evals.report import EvalReport
from llmkit.evals.result import FAILED, SCORER_FAILED, SUCCEEDED
from llmkit.evals.tabular import plain_rows
from llmkit.evals.terminal import mean_text

__all__ = ["gate_junit", "gate_markdown", "run_junit", "run_markdown"]

# What XML 1.0 cannot hold, not even escaped.
_FORBIDDEN = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
REPLACEMENT = "\ufffd"
LONGEST_TEXT = 2_000


def gate_junit(gate: GateReport) -> str:
    """One test case for each check; one that does not hold is a failure with its numbers."""
    suite = _suite(f"llmkit gate: {gate.run}")
    facts = ET.SubElement(suite, "properties")
    for side, told in gate.sides.items():
        for name, fact in {"name": gate.run if side == "run" else gate.baseline or "", **told}.items():
            ET.SubElement(facts, "property", name=_legal(f"{side}: {name}"), value=_legal(fact))
    for check in gate.checks:
        case = _case(suite, check.title, f"{gate.task}.{check.name}")
        if not check.passed:
            _child(case, "failure", check.detail, check.name)
    return _document(suite)


def run_junit(reports: Iterable[EvalReport]) -> str:
    """One test case for each sample, route and epoch, by task and route.

    A result without a usable answer, or that a scorer failed on, is an error; one that did not run is skipped. Scores
    are output of the case (`system-out`) and no verdict: what is good enough is said by a gate.
    """
    suites = [_run_suite(report) for report in reports]
    if len(suites) == 1:
        return _document(suites[0])
    root = ET.Element("testsuites")
    root.extend(suites)
    return _written(root)


def _run_suite(report: EvalReport) -> ET.Element:
    suite = _suite(f"llmkit evaluation: {report.run.name}")
    facts = ET.SubElement(suite, "properties")
    for name, fact in report.what_was_run.items():
        ET.SubElement(facts, "property", name=_legal(name), value=_legal(fact))
    for result in report.results:
        case = _case(suite, f"{result.sample_id} (epoch {result.epoch + 1})", f"{report.run.task_name}.{result.route}")
        _verdict(case, result)
        if result.scores:
            # Not as properties: the schema that CI servers check by has them for suites only.
            scores = (f"{metric}: {value:.12g}" for metric, value in sorted(result.scores.items()))
            ET.SubElement(case, "system-out").text = _legal("\n".join(scores))
    return _counted(suite)


def _verdict(case: ET.Element, result: EvalResult) -> None:
    if result.status == FAILED:
        _child(case, "error", result.error_message or "", result.error_code or "unknown")
    elif result.status == SCORER_FAILED:
        problems = "; ".join(f"{name}: {text}" for name, text in sorted(result.scorer_errors.items()))
        _child(case, "error", problems, "scorer")
    elif result.status != SUCCEEDED:
        _child(case, "skipped", result.status)


def _suite(name: str) -> ET.Element:
    return ET.Element("testsuite", name=_legal(name))


def _case(suite: ET.Element, name: str, classname: str) -> ET.Element:
    return ET.SubElement(suite, "testcase", name=_legal(name), classname=_legal(classname))


def _child(case: ET.Element, kind: str, message: str, cause: str | None = None) -> None:
    text = _legal(message[:LONGEST_TEXT])
    child = ET.SubElement(case, kind, message=text)
    child.text = text
    if cause is not None:
        child.set("type", cause)


def _counted(suite: ET.Element) -> ET.Element:
    suite.set("tests", str(len(suite.findall("testcase"))))
    for kind, attribute in (("failure", "failures"), ("error", "errors"), ("skipped", "skipped")):
        suite.set(attribute, str(len(suite.findall(f"testcase/{kind}"))))
    return suite


def _document(suite: ET.Element) -> str:
    return _written(_counted(suite))


def _written(root: ET.Element) -> str:
    ET.indent(root)
    return f'<?xml version="1.0" encoding="utf-8"?>\n{ET.tostring(root, encoding="unicode")}\n'


def _legal(text: str) -> str:
    return _FORBIDDEN.sub(REPLACEMENT, text)


def gate_markdown(gate: GateReport) -> str:
    """A verdict, the comparisons and the checks as tables."""
    verdict = "passed" if gate.passed else "failed"
    against = f" against {_cell(gate.baseline)}" if gate.baseline is not None else ""
    lines = [f"## Gate {verdict}: {_cell(gate.run)}{against}", ""]
    if gate.comparisons:
        header = ("Metric", "Route", "Baseline", "Pairs", "Mean", "Baseline mean", "Difference [95 %]", "p (Holm)")
        lines += [*_table(header, (_comparison_cells(row) for row in gate.comparisons)), ""]
    if gate.checks:
        lines += [*_table(("", "Check", "Numbers"), (_check_cells(check) for check in gate.checks)), ""]
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
    names = [row["metric"], row["route"], row["baseline"], str(row["pairs"])]
    return [*names, f"{row['mean']:.3f}", f"{row['baseline_mean']:.3f}", interval, f"{row['p_holm']:.3g}"]


def _check_cells(check: Check) -> Sequence[str]:
    return ["pass" if check.passed else "FAIL", check.title, check.detail]


def run_markdown(reports: Iterable[EvalReport]) -> str:
    """The summaries as tables, without latencies, which are different every time."""
    return "\n".join(line for report in reports for line in _run_lines(report))


def _run_lines(report: EvalReport) -> Iterator[str]:
    header = ("Route", "Metric", "Mean [95 %]", "Scored", "Failed", "Not scored", "Tokens in", "Tokens out")
    yield f"## {_cell(report.run.name)} ({_cell(report.run.task_name)})"
    yield ""
    yield from _table(header, (_summary_cells(row) for row in plain_rows(report.summary())))
    yield ""
    # What a run did now depends on what was there before; these notes do not.
    yield from _listed(report.lasting_notes)
    facts = "; ".join(f"{_cell(name)}: {_cell(value)}" for name, value in report.what_was_run.items())
    yield f"What was run: {facts}"
    yield ""


def _summary_cells(row: Mapping[str, Any]) -> Sequence[str]:
    counts = [row["scored"], row["failed"], row["scorer_failed"], row["input_tokens"], row["output_tokens"]]
    return [
        row["route"],
        row["metric"] or "-",
        mean_text(row),
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
