"""Write the generated pages of the documentation site: reference, settings, tutorials and `llms.txt`.

`docs/conf.py` calls this before Sphinx reads the sources. The pages are not tracked by git.
"""

from __future__ import annotations

import importlib
import inspect
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
        "Every method of `llmkit.Session`. Each one that calls a model or reads the store has an async twin",
        "whose name begins with `a`.",
        "",
        "| method | purpose |",
        "|---|---|",
    ]
    for name, value in inspect.getmembers(Session):
        if not name.startswith("_") and (inspect.isfunction(value) or isinstance(value, property)):
            summary = (inspect.getdoc(value) or "").split("\n")[0].replace("|", "\\|")
            rows.append(f"| `{name}` | {summary} |")
    return "\n".join(
        [
            *rows,
            "",
            "```{eval-rst}",
            ".. autoclass:: llmkit.Session",
            "   :members:",
            "   :inherited-members:",
            "```",
            "",
        ]
    )


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
    lines = [
        "# llmkit",
        "",
        "> Language models from a notebook: typed answers, a store of every call, evaluations with honest intervals.",
        "",
        "## Pages",
        "",
    ]
    for path in sorted(docs.rglob("*.md")):
        if "_build" in path.parts:
            continue
        title = next(
            (line[2:] for line in path.read_text(encoding="utf-8").splitlines() if line.startswith("# ")), path.stem
        )
        lines.append(f"- [{re.sub(r'[`*]', '', title)}]({path.relative_to(docs).with_suffix('.html')})")
    return "\n".join([*lines, ""])
