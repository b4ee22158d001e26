"""What is installed works where it is installed: the wheel alone, an empty folder, no checkout."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

SMOKE = """
import llmkit, pathlib, sys
from llmkit.testing import OllamaServer
assert not pathlib.Path(llmkit.__file__).is_relative_to(sys.argv[1]), llmkit.__file__
with OllamaServer() as server, llmkit.Session("w", ollama_api_base=server.url) as session:
    print(session.chat("x").text)
    assert len(session.runs()) == 1
"""


def _run(*command: str | Path, cwd: Path) -> str:
    environment = {name: value for name, value in os.environ.items() if name not in {"PYTHONPATH", "VIRTUAL_ENV"}}
    done = subprocess.run(
        [str(part) for part in command], cwd=cwd, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    _run(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", folder, ROOT, cwd=folder)
    (made,) = folder.glob("*.whl")
    return made


def test_the_wheel_holds_migrations_and_the_typing_marker(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {"llmkit/py.typed", "llmkit/migrations/env.py"} <= names
    assert {f"llmkit/evals/report/html/{name}" for name in ("report.css", "report.js", "templates/page.html")} <= names
    assert [name for name in names if name.startswith("llmkit/migrations/versions/0001")]
    assert not [name for name in names if name.startswith(("tests/", "scripts/", "evals/"))]


@pytest.mark.slow
def test_wheel_works_in_an_empty_environment(wheel: Path, tmp_path: Path) -> None:
    """The environment holds our locked dependencies by link, and llmkit from the wheel only."""
    environment = tmp_path / "environment"
    _run(sys.executable, "-m", "venv", "--without-pip", environment, cwd=tmp_path)
    uv = Path(sys.executable).with_name("uv")
    python = environment / "bin" / "python"
    _run(uv, "pip", "install", "--quiet", "--python", python, "--offline", "--no-deps", wheel, cwd=tmp_path)
    (site,) = (environment / "lib").glob("python*/site-packages")
    ours = Path(importlib.util.find_spec("pydantic").origin).parents[1]
    for package in ours.iterdir():
        if not package.name.startswith(("llmkit", "_editable")) and package.suffix != ".pth":
            (site / package.name).symlink_to(package)
    work = tmp_path / "work"
    work.mkdir()
    assert "stand-in" in _run(python, "-c", SMOKE, ROOT, cwd=work)
    assert json.loads(_run(environment / "bin" / "llmkit", "runs", "--workspace", "w", "--json", cwd=work))


def _check_pth() -> object:
    spec = importlib.util.spec_from_file_location("check_pth", ROOT / "scripts" / "check_pth.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_unknown_start_up_code_is_found(tmp_path: Path) -> None:
    check = _check_pth()
    (tmp_path / "a1_coverage.pth").write_text("")
    assert check.find_strangers(tmp_path) == []
    for name in ("evil.pth", "sitecustomize.py"):
        (tmp_path / name).write_text("import evil")
    assert [path.name for path in check.find_strangers(tmp_path)] == ["evil.pth", "sitecustomize.py"]
    assert check.main() == 0
