"""JUnit XML of runs and gates. The same results give the same bytes."""

from __future__ import annotations

import re
from collections.abc import Iterable
from xml.etree import ElementTree as ET

from llmkit.eval_ports import EvalResult
from llmkit.evals.ci.gate import GateReport
from llmkit.evals.report.report import EvalReport
from llmkit.evals.results import FAILED, SCORER_FAILED, SUCCEEDED

__all__ = ["render_gate_junit", "render_run_junit"]

# Characters that XML 1.0 cannot contain, not even escaped.
_FORBIDDEN = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
REPLACEMENT = "\ufffd"
LONGEST_TEXT = 2_000


def render_gate_junit(gate: GateReport) -> str:
    """Render one test case for each check; an unmet rule is a failure with its numbers."""
    suite = _make_suite(f"llmkit gate: {gate.run}")
    facts = ET.SubElement(suite, "properties")
    for side, facts_of_side in gate.sides.items():
        for name, fact in {"name": gate.run if side == "run" else gate.baseline or "", **facts_of_side}.items():
            ET.SubElement(facts, "property", name=replace_illegal(f"{side}: {name}"), value=replace_illegal(fact))
    for check in gate.checks:
        case = _add_case(suite, check.title, f"{gate.task}.{check.name}")
        if not check.passed:
            _add_child(case, "failure", check.detail, check.name)
    return _write_document(suite)


def render_run_junit(reports: Iterable[EvalReport]) -> str:
    """Render one test case for each sample, variant and epoch, by task and variant.

    A result without a usable answer, or with a scorer failure, is an error; one that did not run is skipped. Scores
    are output of the case (`system-out`) and no verdict: gates decide what is good enough.
    """
    suites = [_build_run_suite(report) for report in reports]
    if len(suites) == 1:
        return _write_document(suites[0])
    root = ET.Element("testsuites")
    root.extend(suites)
    return _write_xml(root)


def _build_run_suite(report: EvalReport) -> ET.Element:
    suite = _make_suite(f"llmkit evaluation: {report.run.name}")
    facts = ET.SubElement(suite, "properties")
    coverage = {f"coverage: {label}": each.text for label, each in report.coverage.items() if each.is_partial}
    for name, fact in (report.provenance_summary | coverage).items():
        ET.SubElement(facts, "property", name=replace_illegal(name), value=replace_illegal(fact))
    for result in report.results:
        case = _add_case(
            suite, f"{result.sample_id} (epoch {result.epoch + 1})", f"{report.run.task_name}.{result.route}"
        )
        _add_verdict(case, result)
        if result.scores:
            # Not as properties: the schema that CI servers check has them for suites only.
            scores = (f"{metric}: {value:.12g}" for metric, value in sorted(result.scores.items()))
            ET.SubElement(case, "system-out").text = replace_illegal("\n".join(scores))
    return _set_counts(suite)


def _add_verdict(case: ET.Element, result: EvalResult) -> None:
    if result.status == FAILED:
        _add_child(case, "error", result.error_message or "", result.error_code or "unknown")
    elif result.status == SCORER_FAILED:
        problems = "; ".join(f"{name}: {text}" for name, text in sorted(result.scorer_errors.items()))
        _add_child(case, "error", problems, "scorer")
    elif result.status != SUCCEEDED:
        _add_child(case, "skipped", result.status)


def _make_suite(name: str) -> ET.Element:
    return ET.Element("testsuite", name=replace_illegal(name))


def _add_case(suite: ET.Element, name: str, classname: str) -> ET.Element:
    return ET.SubElement(suite, "testcase", name=replace_illegal(name), classname=replace_illegal(classname))


def _add_child(case: ET.Element, kind: str, message: str, cause: str | None = None) -> None:
    text = replace_illegal(message[:LONGEST_TEXT])
    child = ET.SubElement(case, kind, message=text)
    child.text = text
    if cause is not None:
        child.set("type", cause)


def _set_counts(suite: ET.Element) -> ET.Element:
    suite.set("tests", str(len(suite.findall("testcase"))))
    for kind, attribute in (("failure", "failures"), ("error", "errors"), ("skipped", "skipped")):
        suite.set(attribute, str(len(suite.findall(f"testcase/{kind}"))))
    return suite


def _write_document(suite: ET.Element) -> str:
    return _write_xml(_set_counts(suite))


def _write_xml(root: ET.Element) -> str:
    ET.indent(root)
    return f'<?xml version="1.0" encoding="utf-8"?>\n{ET.tostring(root, encoding="unicode")}\n'


def replace_illegal(text: str) -> str:
    return _FORBIDDEN.sub(REPLACEMENT, text)
