"""Reports for continuous integration: JUnit XML and Markdown. The same results give the same bytes."""

from __future__ import annotations

import re
from collections.abc import Iterable
from xml.etree import ElementTree as ET

from llmkit.eval_ports import EvalResult
from llmkit.evals.ci.gate import GateReport
from llmkit.evals.report.report import EvalReport
from llmkit.evals.results import FAILED, SCORER_FAILED, SUCCEEDED

__all__ = ["render_gate_junit", "render_run_junit"]

# What XML 1.0 cannot hold, not even escaped.
_FORBIDDEN = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
REPLACEMENT = "\ufffd"
LONGEST_TEXT = 2_000


def render_gate_junit(gate: GateReport) -> str:
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


def render_run_junit(reports: Iterable[EvalReport]) -> str:
    """One test case for each sample, variant and epoch, by task and variant.

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
    for name, fact in report.provenance_summary.items():
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
