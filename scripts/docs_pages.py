"""Write the generated pages of the documentation site: reference, settings, tutorials and `llms.txt`.

`docs/conf.py` calls this before Sphinx reads the sources. The pages are not tracked by git.
"""

from __future__ import annotations

import importlib
import inspect
import json
import re
import shutil
from pathlib import Path

PUBLIC_MODULES = ("llmkit", "llmkit.evals", "llmkit.pydanticai", "llmkit.testing", "llmkit.dataframes")
"""The declared public surface (docs/decisions, tests/test_public_api.py)."""


def write_pages(root: Path) -> None:
    """Write all generated pages into `docs/` of a checkout."""
    docs = root / "docs"
    for folder in ("reference", "tutorials"):
        shutil.rmtree(docs / folder, ignore_errors=True)
        (docs / folder).mkdir()
    for name in PUBLIC_MODULES:
        (docs / "reference" / f"{name}.md").write_text(_render_module(name), encoding="utf-8")
    (docs / "reference" / "session.md").write_text(_render_session(), encoding="utf-8")
    (docs / "reference" / "index.md").write_text(_render_reference_index(), encoding="utf-8")
    (docs / "settings.md").write_text(_render_settings(root), encoding="utf-8")
    _copy_notebooks(root / "notebooks", docs / "tutorials")
    (docs / "llms.txt").write_text(_render_llms(docs), encoding="utf-8")


def _render_module(name: str) -> str:
    module = importlib.import_module(name)
    lines = [f"# {name}", "", (inspect.getdoc(module) or "").split("\n\n")[0], "", "```{eval-rst}"]
    lines.append(f".. currentmodule:: {name}\n")
    for member in sorted(module.__all__):
        value = getattr(module, member)
        if name == "llmkit" and member == "Session":
            continue  # has a page of its own
        if inspect.isclass(value):
            lines += [
                f".. autoclass:: {name}.{member}",
                "   :members:",
                "   :undoc-members:",
                "   :exclude-members: model_config",
                "",
            ]
        elif callable(value):
            lines += [f".. autofunction:: {name}.{member}", ""]
    return "\n".join([*lines, "```", ""])


def _render_session() -> str:
    from llmkit import Session

    rows = [
        "# Session",
        "",
        "Every method of `llmkit.Session`, in the order of the class. The async twin of a method has the same",
        "arguments and works in any event loop.",
        "",
        "| method, async twin | purpose |",
        "|---|---|",
    ]
    members = {name: value for name, value in vars(Session).items() if not name.startswith("_")}
    for name, value in members.items():
        if name.startswith("a") and name[1:] in members:
            continue
        links = ", ".join(_link_member(each) for each in (name, f"a{name}") if each in members)
        summary = (inspect.getdoc(value) or "").split("\n")[0].replace("|", "\\|")
        rows.append(f"| {links} | {summary} |")
    return "\n".join([*rows, "", "```{eval-rst}", ".. autoclass:: llmkit.Session", "   :members:", "```", ""])


def _link_member(name: str) -> str:
    return f"[`{name}`](#llmkit.Session.{name})"


def _render_reference_index() -> str:
    pages = ["session", *PUBLIC_MODULES]
    return "\n".join(
        [
            "# Reference",
            "",
            "The declared public surface. Everything else may change without notice.",
            "",
            "```{toctree}",
            *pages,
            "```",
            "",
        ]
    )


def _render_settings(root: Path) -> str:
    readme = (root / "README.md").read_text(encoding="utf-8")
    table = readme.split("<!-- settings:")[1].split("-->", 1)[1].split("<!-- /settings -->")[0]
    head = (
        "# Settings\n\nEnvironment variables, lines of a `.env` file in the working directory, or arguments of "
        "`Session` without the prefix\nand in lower case. `llmkit doctor` shows what is in force.\n"
    )
    return head + table


def _copy_notebooks(source: Path, target: Path) -> None:
    names = []
    for path in sorted(source.glob("*.ipynb")):
        text = path.read_text(encoding="utf-8").replace("(../docs/", "(../")
        # Task files are not part of the site.
        text = re.sub(r"\[([^\[\]]+)\]\(\.\./evals/[^)]+\)", r"\1", text)
        (target / path.name).write_text(text, encoding="utf-8")
        names.append(path.stem)
    pages = [
        "# Tutorials",
        "",
        "Notebooks with their stored outputs. They run from recorded answers: `make notebooks`.",
        "",
        "```{toctree}",
        *names,
        "```",
        "",
    ]
    (target / "index.md").write_text("\n".join(pages), encoding="utf-8")


def _render_llms(docs: Path) -> str:
    """Return the index of the site for language models (https://llmstxt.org): the order of the table of contents."""
    index = (docs / "index.md").read_text(encoding="utf-8")
    lines = ["# llmkit", "", f"> {_read_summary(docs / 'index.md')}"]
    for caption, body in re.findall(r":caption: (.+?)\n(.*?)```", index, re.DOTALL):
        lines += ["", f"## {caption}", ""]
        for name in body.split():
            for path in _expand_page(docs, name):
                address = path.relative_to(docs).with_suffix(".html")
                lines.append(f"- [{_read_title(path)}]({address}): {_read_summary(path)}".removesuffix(": "))
    return "\n".join([*lines, ""])


def _expand_page(docs: Path, name: str) -> list[Path]:
    """Return a page of the table of contents, or those of its folder if it is an index."""
    page = docs / f"{name}.md"
    if page.name != "index.md":
        return [page]
    names = re.search(r"```{toctree}\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)
    children = [] if names is None else [each for each in names[1].split() if not each.startswith(":")]
    return [page, *(path for each in children for path in _find_pages(page.parent, each))]


def _find_pages(folder: Path, pattern: str) -> list[Path]:
    return sorted(path for suffix in (".md", ".ipynb") for path in folder.glob(f"{pattern}{suffix}"))


def _read_markdown(path: Path) -> str:
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".ipynb":
        cells = json.loads(text)["cells"]
        return "\n\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown")
    return text


def _read_title(path: Path) -> str:
    return re.sub(r"[`*]", "", next(re.finditer(r"^# (.+)", _read_markdown(path), re.MULTILINE))[1])


def _read_summary(path: Path) -> str:
    """Return the first sentence of a page, as plain text; "" if it begins with a table or code."""
    paragraphs = _read_markdown(path).split("\n\n")
    first = next((each for each in paragraphs if not each.startswith(("#", "<!--"))), "")
    if first.startswith(("```", "|", "-")):
        return ""
    text = re.sub(r"\[([^\]]+)\]\([^)]*\)", r"\1", " ".join(first.split()))
    return re.split(r"(?<=[.?:]) ", re.sub(r"[`*]", "", text))[0].rstrip(":")
