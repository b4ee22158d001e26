"""A pytest plugin that measures which lines of llmkit run, and fails the run when they are too few (spec 16).

`-p tests.support.line_coverage` switches it on: it has to be there before the first import of llmkit.
Each line reports itself by a probe compiled into it. A tracer also pays for each call within each other package, and
tells greenlets apart at each of them: measured on Python 3.11, Python code is then four to five times as slow.
"""

from __future__ import annotations

import json
import sys
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import slipcover

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import CodeType

AT_LEAST_PERCENT = 80
PACKAGE = Path(__file__).parents[2] / "llmkit"
NOT_MEANT_TO_RUN = ["@overload", r"\.\.\.$"]
# Probes stay: taking them out again would exchange the code of functions while they run.
NEVER = -1


class _Measured(SourceFileLoader):
    def get_code(self, fullname: str) -> CodeType | None:
        code = super().get_code(fullname)
        return None if code is None else LINES.instrument(code)


class _Finder:
    """Finds what Python finds; modules of llmkit get their probes when they are loaded."""

    @staticmethod
    def find_spec(name: str, path: Sequence[str] | None = None, target: Any = None) -> ModuleSpec | None:
        if name.partition(".")[0] != PACKAGE.name:
            return None
        spec = PathFinder.find_spec(name, path, target)
        if spec is not None and type(spec.loader) is SourceFileLoader:
            spec.loader = _Measured(spec.loader.name, spec.loader.path)
        return spec


assert PACKAGE.name not in sys.modules, "llmkit was imported before its lines could be measured"
LINES = slipcover.Slipcover(source=[str(PACKAGE)], exclude_also=NOT_MEANT_TO_RUN, d_miss_threshold=NEVER)
sys.meta_path.insert(0, _Finder())
_others: list[dict[str, Any]] = []


def pytest_testnodedown(node: Any, error: object) -> None:
    """A worker of pytest-xdist has ended."""
    if "lines" in getattr(node, "workeroutput", {}):
        _others.append(json.loads(node.workeroutput["lines"]))


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    lines = LINES.get_coverage()
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["lines"] = json.dumps(lines)
        return
    for other in _others:
        slipcover.merge_coverage(lines, other)
    session.config.stash[_RESULT] = lines
    if _percent(lines) < AT_LEAST_PERCENT and session.exitstatus == pytest.ExitCode.OK:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    lines = config.stash[_RESULT]
    terminalreporter.section("lines of llmkit")
    slipcover.print_coverage(lines, outfile=terminalreporter._tw, skip_covered=True)
    enough = _percent(lines) >= AT_LEAST_PERCENT
    terminalreporter.line(
        f"{_percent(lines):.1f} % of the lines of llmkit ran; at least {AT_LEAST_PERCENT} % have to.", red=not enough
    )


_RESULT = pytest.StashKey[dict[str, Any]]()


def _percent(lines: dict[str, Any]) -> float:
    return float(lines["summary"]["percent_covered"])
