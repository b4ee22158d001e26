"""Names and docstrings, over the syntax tree of the package (docs/architecture.md, CONTRIBUTING.md)."""

from __future__ import annotations

import ast
import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

from tests.support.verbs import VERBS

ROOT = Path(__file__).parents[1]
MOST_PARTICIPLES = 0.01
MOST_AMBIGUOUS_CLASSES = 3
METAPHORS = {"lane", "lanes", "faces", "wire", "ledger", "keeper", "sharing", "magic", "rooms", "outages"}


def load_measurements() -> ModuleType:
    spec = importlib.util.spec_from_file_location("measure_structure", ROOT / "scripts" / "measure_structure.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


measurements = load_measurements()


@pytest.fixture(scope="module")
def source():
    return measurements.Source(ROOT)


def test_function_names_start_with_a_verb(source) -> None:
    names = [node.name for node in source.functions if measurements.is_participle(node.name)]
    assert len(names) <= MOST_PARTICIPLES * len(source.functions), sorted(names)


def test_a_class_name_means_one_thing(source) -> None:
    ambiguous = {name: sorted(modules) for name, modules in source.classes.items() if len(modules) > 1}
    assert len(ambiguous) <= MOST_AMBIGUOUS_CLASSES, ambiguous


def test_no_module_is_named_by_a_metaphor(source) -> None:
    assert not [name for name in source.trees if METAPHORS & set(name.split("."))]


def test_docstrings_start_with_a_verb_or_a_noun(source) -> None:
    assert not [doc.splitlines()[0] for doc in measurements.docstrings(source) if measurements.HEADLESS.match(doc)]


def test_docstrings_of_functions_start_with_a_verb(source) -> None:
    """Ruff's D401 accepts a noun, and every word that it does not know."""
    others = [
        f"{node.name}: {doc.splitlines()[0]}"
        for node in source.functions
        if (doc := ast.get_docstring(node)) and not any("property" in ast.unparse(each) for each in node.decorator_list)
        if doc.split()[0].rstrip(".,:") not in VERBS
    ]
    assert not others, "begin with a verb, or add it to tests/support/verbs.py"


def test_there_are_no_import_cycles(source) -> None:
    """Lazy and type-only imports count too, which import-linter's layers do not forbid inside a layer."""
    assert measurements.cycles(source.imports) == []


def test_the_top_level_stays_small(source) -> None:
    modules = [name for name in source.trees if name.count(".") == 1 and (ROOT / "llmkit" / f"{name[7:]}.py").is_file()]
    assert len([name for name in modules if not name.endswith("__main__")]) <= 17
    assert measurements.depth(measurements.rooms(source.imports)) <= 16


@pytest.mark.parametrize(
    ("name", "is_one"),
    [
        ("_told", True),
        ("made_with", True),
        ("checked", True),
        ("read_rows", False),
        ("need", False),
        ("is_left", False),
    ],
)
def test_a_participle_is_recognised(name: str, is_one: bool) -> None:
    assert measurements.is_participle(name) is is_one
