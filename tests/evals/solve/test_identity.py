"""An edited function is recognised, and so is what it uses; what changes nothing is not."""

from __future__ import annotations

import functools
import linecache
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from llmkit import LLMEvaluationError, Session
from llmkit.evals import Sample, Task, load_tasks
from llmkit.evals.solve.function import describe_solve, read_return_type
from llmkit.testing import OllamaServer

BASE = """
from llmkit.evals import Sample, Task
from pydantic import BaseModel

PROMPT = "Answer: "
SEEN = []
COUNT = 0

class Out(BaseModel):
    text: str

def helper(text):
    return text.strip()

def solve(sample, model):
    global COUNT
    COUNT += 1
    SEEN.append(sample.id)
    return helper(model.chat(PROMPT + sample.input).text), Out.__name__

task = Task("t", [Sample("x", id="1")], solve=solve)
"""


def load(folder: Path, text: str) -> Task:
    file = folder / f"task{len(list(folder.iterdir()))}.py"
    file.write_text(text, encoding="utf-8")
    (task,) = load_tasks(file)
    return task


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('"Answer: "', '"Say: "'),
        ("text.strip()", "text.lower()"),
        ("text: str", "text: int"),
        ("PROMPT + sample.input", "sample.input"),
        ("def solve(sample, model):", "def solve(sample, model, extra=1):"),
    ],
)
def test_an_edit_that_matters_is_another_task(tmp_path: Path, old: str, new: str) -> None:
    assert load(tmp_path, BASE).task_sha256 != load(tmp_path, BASE.replace(old, new)).task_sha256


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("    global COUNT", '    """Solve it."""\n    # A comment.\n    global COUNT'),
        ("def solve(sample, model):", "def solve(sample: Sample, model) -> list[str]:"),
        ("PROMPT + sample.input", "( PROMPT\n+ sample.input )"),
        ("SEEN = []", "SEEN = ['0']"),
        ("COUNT = 0", "COUNT = 7"),
        ("def helper", "OTHER = 1\n\ndef helper"),
    ],
)
def test_an_edit_that_changes_no_call_is_the_same_task(tmp_path: Path, old: str, new: str) -> None:
    assert load(tmp_path, BASE).task_sha256 == load(tmp_path, BASE.replace(old, new)).task_sha256


def test_a_version_stands_for_the_source(tmp_path: Path) -> None:
    text = BASE.replace("solve=solve", 'solve=solve, version="1"')
    edited = text.replace('"Answer: "', '"Say: "')
    assert load(tmp_path, text).task_sha256 == load(tmp_path, edited).task_sha256
    assert load(tmp_path, text).task_sha256 != load(tmp_path, edited.replace('"1"', '"2"')).task_sha256


def make(prompt: str) -> Callable[[Sample, Any], str]:
    def solve(_sample: Sample, _model: Any) -> str:
        return prompt

    return solve


class Pipeline:
    """An object that can be called."""

    def __init__(self, prompt: str) -> None:
        self.prompt = prompt

    def __call__(self, _sample: Sample, _model: Any) -> str:
        return self.prompt

    def method(self, _sample: Sample, _model: Any) -> str:
        return self.prompt


def with_prompt(_sample: Sample, _model: Any, *, prompt: str) -> str:
    """Take the prompt by keyword."""
    return prompt


@pytest.mark.parametrize(
    "build",
    [make, Pipeline, lambda text: Pipeline(text).method, lambda text: functools.partial(with_prompt, prompt=text)],
    ids=["closure", "object", "method", "partial"],
)
def test_a_function_that_was_made_with_another_value_is_another(build: Callable[[str], Any]) -> None:
    assert describe_solve(build("a"), None) == describe_solve(build("a"), None)
    assert describe_solve(build("a"), None) != describe_solve(build("b"), None)


def test_a_function_without_source_is_recognised_by_its_code(monkeypatch: pytest.MonkeyPatch) -> None:
    # As Python 3.13 has it under `python -c`, whose text has the same name.
    monkeypatch.setitem(linecache.cache, "<string>", (3, None, ["x\n"], "<string>"))
    found = []
    for body in ("model.chat('a')", "model.chat('a')", "model.chat('b')"):
        names: dict[str, Any] = {}
        exec(f"def solve(sample, model): return {body}", names)
        found.append(describe_solve(names["solve"], None))
    assert found[0] == found[1] != found[2]


@pytest.mark.parametrize(
    ("build", "kind"), [(make, str), (Pipeline, str), (lambda text: functools.partial(with_prompt, prompt=text), str)]
)
def test_the_declared_type_is_the_output_type(build: Callable[[str], Any], kind: Any) -> None:
    assert read_return_type(build("a")) is kind
    assert read_return_type(lambda _sample, _model: 1) is Any


def test_an_edited_function_makes_a_new_run_or_is_refused() -> None:
    with OllamaServer(models=["llama3.2"]) as server, Session("w", ollama_api_base=server.url) as session:
        for prompt in ("a", "b"):
            task = Task("t", [Sample("x")], solve=make(prompt))
            report = session.evaluate(task, "ollama/llama3.2", progress=False)
        assert report.run.name == "t-2"
        with pytest.raises(LLMEvaluationError, match="made with another task; changed: solve"):
            session.evaluate(task, "ollama/llama3.2", name="t", progress=False)


def test_a_declared_type_that_is_not_defined_is_refused() -> None:
    def solve(_sample: Sample, _model: Any) -> Missing:  # type: ignore[name-defined]  # noqa: F821
        return None

    with pytest.raises(LLMEvaluationError, match="declares to return 'Missing', which cannot be found"):
        Task("t", [Sample("x")], solve=solve)
