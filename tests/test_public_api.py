"""The public API is declared in full: a name that is missing, extra or undocumented fails here."""

from __future__ import annotations

import ast
import importlib
import inspect
import json
import re
import subprocess
import sys
import types
from collections.abc import Iterator
from pathlib import Path

import pytest

import llmkit
from llmkit import errors

ROOT = Path(__file__).parents[1]
PACKAGES = ("llmkit", "llmkit.evals", "llmkit.pydanticai", "llmkit.testing", "llmkit.dataframes")
public = pytest.mark.parametrize("package", PACKAGES)


@public
def test_every_declared_name_exists_sorted_and_documented(package: str) -> None:
    module = importlib.import_module(package)
    assert module.__all__ == sorted(set(module.__all__))
    undocumented = [
        name
        for name in module.__all__
        if isinstance(value := getattr(module, name), type | types.FunctionType) and not (value.__doc__ or "").strip()
    ]
    assert not undocumented


@public
def test_every_imported_name_is_declared(package: str) -> None:
    """An import in `__init__` that is not in `__all__` would be public by accident, or was forgotten."""
    module = importlib.import_module(package)
    imported = {
        alias.asname or alias.name
        for node in ast.walk(ast.parse(inspect.getsource(module)))
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("llmkit")
        for alias in node.names
    }
    assert imported - {"ipython_magic"} == set(module.__all__)


@public
def test_dir_lists_the_declared_names(package: str) -> None:
    module = importlib.import_module(package)
    assert set(module.__all__) <= set(dir(module))


@pytest.mark.parametrize("package", ["llmkit", "llmkit.evals", "llmkit.dataframes"])
def test_a_lazy_package_loads_nothing_and_refuses_unknown_names(package: str) -> None:
    code = f"import {package}, sys; sys.exit('pydantic' in sys.modules or 'pandas' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=60).returncode == 0
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = importlib.import_module(package).nothing


def test_every_error_is_public() -> None:
    classes = {
        name for name, each in vars(errors).items() if isinstance(each, type) and issubclass(each, errors.LLMError)
    }
    assert classes <= set(llmkit.__all__)


def test_every_class_in_a_signature_of_the_session_is_public() -> None:
    declared = {name for package in PACKAGES for name in importlib.import_module(package).__all__}
    source = inspect.getsource(sys.modules[llmkit.Session.__module__])
    used = {
        alias.name
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("llmkit")
        for alias in node.names
        if alias.name[0].isupper()
    }
    # These are written only behind `Unpack`, and their options are in every signature.
    assert used - declared <= {"ConversationOptions", "ModelOptions", "SharedEvaluateOptions"}


def _read_examples() -> Iterator[tuple[str, str]]:
    """Yield the name and the Python code of every documentation page and notebook."""
    for page in (ROOT / "README.md", *ROOT.glob("docs/*.md")):
        yield page.name, "\n".join(re.findall(r"```python\n(.*?)```", page.read_text("utf-8"), re.DOTALL))
    for notebook in ROOT.glob("notebooks/*.ipynb"):
        cells = json.loads(notebook.read_text("utf-8"))["cells"]
        yield notebook.name, "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")


def test_documentation_imports_only_declared_names() -> None:
    """A name that the documentation needs, and no public package declares, is missing from the API."""
    undeclared = []
    for page, code in _read_examples():
        for module, names in re.findall(r"^\s*from (llmkit[\w.]*) import \(?([\w, ]+)", code, re.MULTILINE):
            declared = importlib.import_module(module).__all__ if module in PACKAGES else ()
            undeclared += [f"{page}: {module}.{name}" for name in re.findall(r"\w+", names) if name not in declared]
    assert not undeclared
