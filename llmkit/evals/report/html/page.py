"""The page: templates, a style sheet and a script from this package, filled with sections and packed samples."""

from __future__ import annotations

import gzip
import json
from base64 import b64encode
from functools import lru_cache
from hashlib import sha256
from importlib.resources import files
from typing import TYPE_CHECKING, Any, Final

from jinja2 import Environment, PackageLoader, StrictUndefined

from llmkit.evals.report.html.cells import MARK_HEIGHT, MARK_WIDTH, SCALE_HEIGHT, format_count
from llmkit.evals.report.html.provenance import build_provenance_section
from llmkit.evals.report.html.samples import build_page_data
from llmkit.evals.report.html.sections import build_heading, build_sections, compare_variants

if TYPE_CHECKING:
    from llmkit.evals.report.analysis import Analysis

__all__ = ["render_page"]

# Fixed, because the level affects the bytes of the page.
COMPRESSION_LEVEL: Final = 6


def render_page(report: Analysis, *, stable: bool = False) -> str:
    """Render a report as one HTML file. The same report gives the same text.

    The page loads nothing, and its content security policy forbids it to: only its own script and style sheet, which
    the policy names by their hashes, are in force. The templates escape all text of models and datasets; samples are
    packed as Base64, which contains no markup characters.

    Args:
        report: The evaluation.
        stable: Leave out ids, clock times and latencies, which differ between two runs with the same answers.
    """
    calls, comparisons = tuple(report.load_calls()), compare_variants(report)
    style, script = _read_text("report.css"), _read_text("report.js")
    page = _get_environment().get_template("page.html")
    return page.render(
        title=f"{report.run.name} - llmkit evaluation",
        script_hash=_hash_for_policy(script),
        style_hash=_hash_for_policy(style),
        style=style,
        script=script,
        heading=build_heading(report, comparisons, stable=stable),
        sections=build_sections(report, calls, comparisons, stable=stable),
        provenance=build_provenance_section(report, stable=stable),
        data=_pack(build_page_data(report, calls, stable=stable)),
    )


@lru_cache(maxsize=1)
def _get_environment() -> Environment:
    # Escaping is on for every template, and a name that is missing is an error instead of an empty string.
    environment = Environment(
        loader=PackageLoader(__package__), autoescape=True, undefined=StrictUndefined, keep_trailing_newline=True
    )
    environment.filters["count"] = format_count
    environment.globals |= {"mark_width": MARK_WIDTH, "mark_height": MARK_HEIGHT, "scale_height": SCALE_HEIGHT}
    return environment


def _read_text(name: str) -> str:
    return files(__package__).joinpath(name).read_text(encoding="utf-8")


def _hash_for_policy(text: str) -> str:
    return f"sha256-{b64encode(sha256(text.encode()).digest()).decode()}"


def _pack(data: dict[str, Any]) -> str:
    # ASCII: a model may write half of a surrogate pair, which is not UTF-8 but has an escape in JSON.
    plain = json.dumps(data, ensure_ascii=True, separators=(",", ":"), allow_nan=False).encode("ascii")
    return b64encode(gzip.compress(plain, COMPRESSION_LEVEL, mtime=0)).decode()
