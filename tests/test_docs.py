"""The documentation is executed: every example of every page, the settings table, links and requirements."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from llmkit import Session
from llmkit.testing import GeminiServer, OllamaServer
from scripts.docs_pages import write_pages
from tests.support.command_server import CommandServer
from tests.support.page_examples import (
    EXECUTED,
    SHOWN,
    answer_as_shown,
    apply_steps,
    list_languages,
    list_pages,
    list_skips,
    run_page,
)

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = list_pages()
CONTRIBUTING = ROOT / "CONTRIBUTING.md"
WITH_LOCAL_MODEL = {"README.md", "index.md"}
MOST_SKIPS = 8


@pytest.fixture
def _providers(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Stand-ins for both providers where a reader's would be."""
    with (
        OllamaServer(answer_as_shown, version="0.17.4") as ollama,
        GeminiServer(answer_as_shown, api_key="k") as gemini,
    ):
        monkeypatch.setenv("LLM_OLLAMA_API_BASE", ollama.url)
        monkeypatch.setenv("LLM_GEMINI_API_BASE", f"{gemini.url}/v1beta")
        monkeypatch.setenv("LLM_GEMINI_API_KEY", "k")
        yield


def _mark(page: Path) -> object:
    marks = [pytest.mark.slow, *([pytest.mark.local] if page.name in WITH_LOCAL_MODEL else [])]
    return pytest.param(page, marks=marks, id=page.name)


@pytest.mark.usefixtures("_providers")
@pytest.mark.parametrize("page", [_mark(page) for page in PAGES])
def test_page_examples(page: Path, command_server: CommandServer) -> None:
    """Every block runs as a reader would paste it, in an empty folder."""
    document = run_page(page, command_server.folder)
    for value in document.namespace.values():
        if isinstance(value, Session):
            value.close()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("heading", "files", "command"),
    [
        (
            "Add a scorer",
            {
                "llmkit/evals/scorers/length.py",
                "llmkit/evals/scorers/__init__.py",
                "tests/evals/scorers/test_length.py",
            },
            ["-c", "from llmkit.evals.scorers import SCORERS; SCORERS['shorter_than_input']('text')"],
        ),
        (
            "Add a command",
            {"llmkit/cli/models.py", "llmkit/cli/main.py", "tests/cli/test_models.py"},
            ["-m", "llmkit", "models", "--help"],
        ),
    ],
)
def test_contributing(heading: str, files: set[str], command: list[str], tmp_path: Path) -> None:
    """The steps work as written, touch no other file, and satisfy the linter and the tests of names."""
    for folder in ("llmkit", "migrations", "tests", "scripts", "docs"):
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__", "_build"))
    for name in ("pyproject.toml", "README.md"):
        shutil.copy(ROOT / name, tmp_path)
    touched = apply_steps(CONTRIBUTING, heading, tmp_path)
    assert {str(path) for path in touched} == files
    (test,) = [name for name in files if name.startswith("tests/")]
    checks = [
        ["-m", "ruff", "check", *files],
        ["-m", "ruff", "format", "--check", *files],
        ["-m", "pytest", "-q", "-n", "0", test, "tests/test_names.py", "tests/test_public_api.py"],
        command,
    ]
    for arguments in checks:
        done = subprocess.run(
            [sys.executable, *arguments],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(tmp_path)},
            capture_output=True,
            text=True,
            check=False,
            timeout=250,
        )
        assert done.returncode == 0, f"{arguments}: {done.stdout}{done.stderr}"


def test_skipped_examples_are_few() -> None:
    skips = [f"{page.name}: {reason}" for page in [*PAGES, CONTRIBUTING] for reason in list_skips(page)]
    assert len(skips) <= MOST_SKIPS, skips
    assert "".join(page.read_text("utf-8") for page in [*PAGES, CONTRIBUTING]).count("<!-- skip:") == len(skips)


@pytest.mark.parametrize("page", [*PAGES, CONTRIBUTING], ids=lambda page: page.name)
def test_every_block_has_a_language(page: Path) -> None:
    """A block in another language, or none, would escape the runner."""
    directives = {name for name in list_languages(page) if name.startswith("{")}
    assert directives <= {"{toctree}"}
    assert set(list_languages(page)) - directives <= {*EXECUTED, *SHOWN}


@pytest.fixture(scope="module")
def generated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the site, with its generated pages, of a copy of the repository."""
    root = tmp_path_factory.mktemp("site")
    shutil.copytree(ROOT / "docs", root / "docs", ignore=shutil.ignore_patterns("_build", "reference", "tutorials"))
    shutil.copytree(ROOT / "notebooks", root / "notebooks")
    shutil.copy(ROOT / "README.md", root)
    write_pages(root)
    return root / "docs"


def test_session_page_lists_every_method(generated: Path) -> None:
    page = (generated / "reference" / "session.md").read_text(encoding="utf-8")
    methods = {name for name in vars(Session) if not name.startswith("_")}
    assert set(re.findall(r"\(#llmkit\.Session\.(\w+)\)", page)) == methods


def test_llms_txt_lists_every_page_once(generated: Path) -> None:
    listed = re.findall(r"\]\((\S+)\.html\)", (generated / "llms.txt").read_text(encoding="utf-8"))
    pages = {
        path.relative_to(generated).with_suffix("")
        for suffix in ("md", "ipynb")
        for path in generated.rglob(f"*.{suffix}")
    }
    assert sorted(listed) == sorted(str(page) for page in pages - {Path("index")})


def _read_layers(text: str) -> list[set[str]]:
    return [set(layer.split(" | ")) for line in text.strip().splitlines() for layer in line.split(" > ")]


@pytest.mark.parametrize(("number", "block"), [(0, 1), (1, 2)], ids=["package", "evals"])
def test_architecture_page_shows_the_layers(number: int, block: int) -> None:
    """The page and the contracts of import-linter name the same layers in the same order."""
    pyproject = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    contract = pyproject["tool"]["importlinter"]["contracts"][number]["layers"]
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```text\n(.*?)```", page, re.DOTALL)
    assert _read_layers(blocks[block]) == _read_layers("\n".join(contract).replace("llmkit.", ""))


def test_glossary_is_sorted_and_short() -> None:
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    terms = re.findall(r"^\| ([a-z ,]+) \|", page.split("## Glossary")[1].split("\n## ")[0], re.MULTILINE)[1:]
    assert 24 <= len(terms) <= 32
    assert terms == sorted(terms)


def test_settings_table_is_current() -> None:
    command = [sys.executable, str(ROOT / "scripts" / "settings_table.py"), "--check"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ)
    assert done.returncode == 0, done.stdout


@pytest.mark.slow
def test_exact_tables_of_the_statistics_page_are_current() -> None:
    """The simulated ones take two minutes: `make statistics`."""
    command = [sys.executable, str(ROOT / "scripts" / "statistics_tables.py"), "--check"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_readme_links_exist() -> None:
    links = re.findall(r"\]\(([^)#:]+)\)", README)
    assert links
    assert not [link for link in links if not (ROOT / link).exists()]


@pytest.mark.parametrize("name", ["dev.txt", "run.txt", "bootstrap.txt"])
def test_requirements_have_hashes_and_no_address(name: str) -> None:
    text = (ROOT / "requirements" / name).read_text(encoding="utf-8")
    pins = re.findall(r"^\S+==\S+", text, re.MULTILINE)
    assert pins
    assert text.count("--hash=sha256:") >= len(pins)
    assert "://" not in text
    assert "--index-url" not in text
