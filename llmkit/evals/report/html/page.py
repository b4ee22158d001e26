"""The page: a template, a style sheet and a script from this package, the sections, and the samples as packed data."""

from __future__ import annotations

import gzip
import json
from base64 import b64encode
from hashlib import sha256
from importlib.resources import files
from string import Template
from typing import TYPE_CHECKING, Any, Final

from llmkit.display.html import html, join_html
from llmkit.evals.report.html.provenance import provenance_summary
from llmkit.evals.report.html.samples import page_data
from llmkit.evals.report.html.sections import findings, heading

if TYPE_CHECKING:
    from llmkit.evals.report.analysis import Analysis

__all__ = ["render_page"]

# Fixed, because it is part of the bytes.
COMPRESSION_LEVEL: Final = 6


def render_page(report: Analysis, *, stable: bool = False) -> str:
    """The report as the text of one HTML file. The same report gives the same text.

    The file loads nothing and its policy forbids it to: only its own script and style sheet, named by their hashes,
    are in force. Texts of models and datasets are escaped, or packed as Base64, which holds no character of markup.

    Args:
        report: What was found.
        stable: Leave out what differs between two runs with the same answers: ids, clock times and latencies.
    """
    calls = tuple(report.recorded())
    style, script = _own("report.css"), _own("report.js")
    found, facts = findings(report, calls, stable=stable), provenance_summary(report, stable=stable)
    return Template(_own("report.html")).substitute(
        title=html("{}", f"{report.run.name} - llmkit evaluation"),
        script_hash=_csp_hash(script),
        style_hash=_csp_hash(style),
        style=style,
        script=script,
        heading=heading(report, stable=stable),
        links=join_html(each.link for each in found),
        findings=join_html(each.html for each in found),
        facts_link=facts.link,
        facts=facts.html,
        data=_packed(page_data(report, calls, stable=stable)),
    )


def _own(name: str) -> str:
    return files(__package__).joinpath(name).read_text(encoding="utf-8")


def _csp_hash(text: str) -> str:
    return f"sha256-{b64encode(sha256(text.encode()).digest()).decode()}"


def _packed(data: dict[str, Any]) -> str:
    # ASCII: half of a character pair, which a model may write, is not UTF-8 and has an escape in JSON.
    plain = json.dumps(data, ensure_ascii=True, separators=(",", ":"), allow_nan=False).encode("ascii")
    return b64encode(gzip.compress(plain, COMPRESSION_LEVEL, mtime=0)).decode()
