"""Examples on the pages of the documentation, found by Sybil and executed one page after another.

- A `python` block runs in a namespace that all blocks of its page share. It may use `await` at the top level.
- An `sh` block runs in bash and fails with its first failing command. The first `llmkit` of a page is a fresh process,
  each later one a fork that saves the time of the imports (`tests/support/command_server.py`).
- A block of any kind whose first line is `# name.ext` is also written to that file, for later blocks to use.
- `<!-- invisible-code-block: python -->` contains the setup and the assertions of a page.
- `<!-- skip: next "reason" -->` excludes the block below it; `list_skips` returns the reasons.
"""

from __future__ import annotations

import ast
import asyncio
import contextlib
import inspect
import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from unittest import SkipTest

from sybil import Document, Example
from sybil.parsers.markdown import CodeBlockParser, SkipParser

from llmkit.testing import RecordedRequest, Reply

ROOT = Path(__file__).parents[2]
HANG_BOUND_S = 250
EXECUTED = ("python", "sh")
SHOWN = ("diff", "json", "text", "toml", "yaml")
"""Languages of blocks that no interpreter runs. Those with a file name are written for the blocks that use them."""

ANSWERS = {
    "what is churn?": "Churn is the share of customers who leave in a period.",
    "The kettle caught fire twice this week.": '{"product": "kettle", "severity": 3}',
    "Rome in spring": '{"name": "Rome", "country": "Italy"}',
    "Bern at night": '{"name": "Bern", "country": "Switzerland"}',
}
"""Answers of the stand-ins to a prompt that contains a text, so that pages can show results."""

_FILE_NAME = re.compile(r"# ([\w./-]+\.\w+)\s*\n")


def list_pages() -> list[Path]:
    """Return every page whose examples run one after another. The walk-throughs of CONTRIBUTING have a test each."""
    generated = {"settings.md", "errors.md"}
    return [ROOT / "README.md", *(page for page in sorted((ROOT / "docs").glob("*.md")) if page.name not in generated)]


def parse_page(page: Path, commands: Path) -> Document:
    """Return a page with an example for each block, and a folder's `llmkit` for all its commands but the first."""
    shell = _Shell(commands)
    parsers = [CodeBlockParser("python", _run_python), CodeBlockParser("sh", shell.run), SkipParser()]
    parsers += [CodeBlockParser(language, _write_file) for language in SHOWN]
    return Document.parse(str(page), *parsers)


def run_page(page: Path, commands: Path) -> Document:
    """Run the examples of a page in the working directory and return it with its namespace.

    A `text` block directly below another block must be what that block printed.

    Raises:
        AssertionError: A shell command failed; any exception of a Python block passes through.
    """
    document = parse_page(page, commands)
    document.namespace["__name__"] = "example"
    output, end_of_block = "", 0
    for example in document.examples():
        with contextlib.redirect_stdout(io.StringIO()) as printed, contextlib.suppress(SkipTest):
            example.evaluate()
        is_adjacent = not document.text[end_of_block : example.region.start].strip()
        if is_adjacent and _get_language(example) == "text":
            shown, actual = _strip_lines(str(example.parsed)), _strip_lines(output)
            assert shown == actual, "\n".join([f"{page.name}:{example.line} shows another output than:", *actual])
        output, end_of_block = printed.getvalue(), example.region.end
    return document


def _get_language(example: Example) -> str:
    return re.match(r"\W*(\w*)", example.document.text[example.region.start :])[1]


def _strip_lines(text: str) -> list[str]:
    return [line.rstrip() for line in text.strip().splitlines()]


def answer_as_shown(request: RecordedRequest) -> Reply:
    """Return the answer that the pages show for a request, or the smallest one that its schema allows."""
    body = request.json
    is_ollama = "messages" in body
    prompt = body["messages"][-1]["content"] if is_ollama else body["contents"][-1]["parts"][-1].get("text", "")
    has_schema = "format" in body if is_ollama else "responseMimeType" in json.dumps(body)
    for part, answer in ANSWERS.items():
        if part in prompt and answer.startswith("{") == has_schema:
            return Reply(answer)
    return Reply()


def list_skips(page: Path) -> list[str]:
    """Return the reason of each block that is not executed."""
    return re.findall(r'<!-- skip: next "([^"]+)" -->', page.read_text(encoding="utf-8"))


def apply_steps(page: Path, heading: str, root: Path) -> dict[Path, str]:
    """Follow the steps below a heading in a copy of the repository: write its files, apply its changes.

    A `diff` block has the file in its first line and no line numbers: what it shows must occur there once.

    Returns:
        Every file that was touched, with its new text.

    Raises:
        AssertionError: A new file exists already, or a change does not fit.
    """
    section = page.read_text(encoding="utf-8").split(f"\n## {heading}\n")[1].split("\n## ")[0]
    touched = {}
    for indent, language, block in re.findall(r"^( *)```(\w+)\n(.*?)^ *```$", section, re.MULTILINE | re.DOTALL):
        lines = [line.removeprefix(indent) for line in block.splitlines()]
        path = root / lines[0].removeprefix("# ").removeprefix("--- ")
        if language == "diff":
            before, after = (
                "".join(f"{line[1:]}\n" for line in lines[1:] if line[:1] in signs) for signs in (" -", " +")
            )
            text = path.read_text(encoding="utf-8")
            assert text.count(before) == 1, f"{heading}: {path.name} has no such lines:\n{before}"
            text = text.replace(before, after)
        else:
            assert not path.exists(), f"{heading}: {path.name} exists"
            text = "\n".join(lines[1:]) + "\n"
        path.write_text(text, encoding="utf-8")
        touched[path.relative_to(root)] = text
    return touched


def list_languages(page: Path) -> list[str]:
    """Return the language of every fenced block; "" for one without."""
    fences = re.findall(r"^ *(`{3,})([^\n`]*)\n.*?^ *\1 *$", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    return [info.strip() for _, info in fences]


def _write_file(example: Example) -> None:
    source = str(example.parsed)
    if match := _FILE_NAME.match(source):
        path = Path(match[1])
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(source, encoding="utf-8")


def _run_python(example: Example) -> None:
    _write_file(example)
    # The padding gives tracebacks the line numbers of the page.
    source = "\n" * (example.line + example.parsed.line_offset) + str(example.parsed)
    flags = ast.PyCF_ALLOW_TOP_LEVEL_AWAIT
    code = compile(source, example.path, "exec", flags, dont_inherit=True)
    if code.co_flags & inspect.CO_COROUTINE:
        asyncio.run(eval(code, example.namespace))
    else:
        exec(code, example.namespace)


class _Shell:
    """Bash, in which the first `llmkit` of a page is a fresh process and the others are those of a folder."""

    def __init__(self, quick: Path) -> None:
        self._quick = quick
        self._is_fresh = True

    def run(self, example: Example) -> None:
        source, commands = str(example.parsed), Path(sys.executable).parent
        if self._is_fresh and "llmkit " in source:
            source = f'llmkit() {{ unset -f llmkit; {commands}/llmkit "$@"; }}\n{source}'
            self._is_fresh = False
        environment = {
            **os.environ,
            "PATH": os.pathsep.join([str(self._quick), str(commands), os.environ["PATH"]]),
            "HOME": str(Path.cwd()),
            "COLUMNS": "100",
        }
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", source],
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=HANG_BOUND_S,
            check=False,
        )
        where = f"{example.path}:{example.line}"
        assert done.returncode == 0, f"{where}: exit code {done.returncode}\n{done.stdout}\n{done.stderr}"
        print(done.stdout, end="")
