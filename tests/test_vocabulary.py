"""The words of documentation, docstrings, comments and messages (house rules 1 to 3 and 6; CONTRIBUTING.md)."""

from __future__ import annotations

import ast
import json
import re
import tokenize
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
REFUSED = {
    r"told(?! apart)": "reported, logged, known",
    r"[Ww]hoever": "the caller, any process",
    r"[Nn]obody": "no caller, no process, nothing",
    r"[Ww]ho asks": "the caller",
    r"[Ss]o many": "N, a number of",
    r"[Ww]hat (?:is|was) (?:told|said|asked|there)": "the request, the message",
    r"of (?:one's|your|his|her) own": "your own, custom",
    r"all the same(?! (?:size|length|type))": "anyway",
    r"(?<!at least )as good as": "equivalent to",
    r"(?:be|is|takes|wants|as) a text": "a string",
    r"is no text": "is not a string",
    r"[Ll]anes?": "variant, path",
    r"[Ll]edgers?": "recorder",
    r"[Ee]mbedded (?:model|one|Gemma)": "local model",
    r"holds? (?:what|half|NaN|itself|no|something|anything|the character|a character)": "contain",
    r"(?:held|holds?) to": "constrain, enforce",
    r"(?:befalls?|befell|bears)": "affect, handle",
    r"in vain": "for nothing, without an answer",
    r"[Aa]new": "again",
    r"(?:is|are) there already": "exist",
    r"[Cc]omes? about": "happen",
    r"(?:thereof|wherein|whereby|whereof)": "plain words",
}
"""Words and phrases that sound translated, or that are not ours, and what to write instead."""

ALLOWED = {
    "scripts/measure_structure.py": "It lists participles and heads that it refuses.",
    "evals/sums/task.py": "Descriptions of fields are sent, and are part of stored hashes.",
}
HEADLESS = re.compile(r"\s*(?:What|Who|Whoever|Of|As which)\b")
_CODE = re.compile(r"```.*?```|`[^`\n]+`", re.DOTALL)


def _list_sources() -> list[Path]:
    folders = ("llmkit", "scripts", "benchmarks", "evals", "tests/support")
    paths = sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))
    return [path for path in paths if path.relative_to(ROOT).as_posix() not in ALLOWED]


def _list_pages() -> list[Path]:
    """Return pages of prose. The changelog lists old names."""
    generated = ("_build", "reference", "tutorials")
    pages = [path for path in (ROOT / "docs").rglob("*.md") if not set(generated) & set(path.parts)]
    return [*(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "evals/README.md", "Makefile")), *sorted(pages)]


@cache
def _read_all() -> list[tuple[str, int, str]]:
    paths = [*_list_sources(), *_list_pages()]
    return [(path.relative_to(ROOT).as_posix(), line, text) for path in paths for line, text in _read_words(path)]


def _read_words(path: Path) -> Iterator[tuple[int, str]]:
    """Yield the strings and comments of a source, or the prose of a page, with their first line."""
    if path.suffix != ".py":
        text = path.read_text(encoding="utf-8")
        # Code keeps its lines, so that the numbers of later lines stay right.
        yield 1, _CODE.sub(lambda match: "\n" * match[0].count("\n"), text) if path.suffix == ".md" else text
        return
    with path.open("rb") as source:
        for token in tokenize.tokenize(source.readline):
            kind = tokenize.tok_name[token.type]
            if kind == "COMMENT" or "STRING" in kind:
                yield token.start[0], token.string


@pytest.mark.parametrize("phrase", REFUSED)
def test_no_refused_phrase(phrase: str) -> None:
    pattern = re.compile(rf"\b{phrase}\b")
    found = [
        f"{path}:{line + text[: match.start()].count(chr(10))}: {match[0]!r}"
        for path, line, text in _read_all()
        for match in pattern.finditer(text)
    ]
    assert not found, f"write {REFUSED[phrase]!r} instead: {found}"


def test_no_refused_phrase_in_notebooks() -> None:
    cells = [
        (path.name, "".join(cell["source"]))
        for path in sorted((ROOT / "notebooks").glob("*.ipynb"))
        for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]
        if cell["cell_type"] == "markdown"
    ]
    assert cells
    assert not [(name, phrase) for name, text in cells for phrase in REFUSED if re.search(rf"\b{phrase}\b", text)]


def test_docstrings_have_a_head() -> None:
    """Sources outside the package too; `tests/test_names.py` covers the package."""
    nodes = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    headless = [
        f"{path.relative_to(ROOT)}: {doc.splitlines()[0]}"
        for path in _list_sources()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, nodes) and (doc := ast.get_docstring(node)) and HEADLESS.match(doc)
    ]
    assert not headless


@pytest.mark.parametrize(
    ("text", "is_refused"),
    [
        ("Where it is told.", True),
        ("Colours that can be told apart.", False),
        ("It must be a text.", True),
        ("Read a typed value from a text.", False),
        ("The key is held to the schema.", True),
        ("A thread that holds the lock.", False),
    ],
)
def test_phrases_are_recognised(text: str, is_refused: bool) -> None:
    assert any(re.search(rf"\b{phrase}\b", text) for phrase in REFUSED) is is_refused
