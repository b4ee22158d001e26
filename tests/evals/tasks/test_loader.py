"""Task files: what a user writes is found, and what is wrong with it is one message with file and line."""

import json
import re
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from pydantic import BaseModel, ConfigDict

from llmkit import evals
from llmkit.errors import LLMDatasetError, LLMEvaluationError
from llmkit.evals import Sample, Task, load_tasks
from llmkit.evals.prompt import render
from llmkit.evals.results import STATUSES
from llmkit.evals.scorers.conversion import convert_target
from llmkit.evals.tasks.task import compile_prompt
from llmkit.session import Session
from llmkit.testing import OllamaServer, Reply, ToolCall
from tests.support.eval_fakes import FakeExtract, run

SPEC_EXAMPLE = """
from typing import Literal
from pydantic import BaseModel
from llmkit.evals import Sample, Task, field_match

class Sentiment(BaseModel):
    label: Literal["positive", "negative"]

task = Task(
    name="sentiment",
    dataset="sentiment.jsonl",     # beside this file; or a list of Sample, a DataFrame, CSV, Parquet
    prompt="Text: {input}\\nSentiment:",   # or a function from a Sample to messages
    output_type=Sentiment,
    scorers=[field_match("label")],
)
"""


def write(folder, text, name="task.py"):
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(text, encoding="utf-8")
    return folder / name


def test_the_example_of_the_specification(tmp_path):
    file = write(tmp_path / "elsewhere", SPEC_EXAMPLE)
    lines = [{"input": "good", "target": {"label": "positive"}}, {"input": "bad", "target": "negative", "id": "x"}]
    write(file.parent, "\n".join(map(json.dumps, lines)), "sentiment.jsonl")
    (task,) = load_tasks(file)
    assert (task.name, len(task.load())) == ("sentiment", 2)
    assert task.load().by_id["x"].target == "negative"
    assert repr(task) == "Task('sentiment', output_type=Sentiment, scorers=[field_match])"


def test_a_file_beside_the_working_directory_is_not_taken(tmp_path):
    write(tmp_path, '{"input": "x"}', "sentiment.jsonl")
    (task,) = load_tasks(write(tmp_path / "elsewhere", SPEC_EXAMPLE))
    with pytest.raises(LLMDatasetError, match="elsewhere"):
        task.load()


def test_modules_beside_the_file_and_types_that_name_each_other(tmp_path):
    folder = tmp_path / "t"
    write(folder, 'SHOTS_OF_THIS_TEST = "shots {input}"', "shots_of_this_test.py")
    text = """
from __future__ import annotations
from pydantic import BaseModel
from llmkit.evals import Sample, Task
from shots_of_this_test import SHOTS_OF_THIS_TEST

class Tree(BaseModel):
    leaves: list[Leaf]

class Leaf(BaseModel):
    name: str

first = Task("first", [Sample("x")], SHOTS_OF_THIS_TEST, Tree)
second = Task("second", [Sample("x")], lambda sample: sample.input, Leaf)
again = first
"""
    assert [task.name for task in load_tasks(write(folder, text))] == ["first", "second"]
    assert str(folder) not in sys.path


def test_two_edits_within_a_second_are_both_seen(tmp_path):
    for name in ("one", "two"):
        file = write(tmp_path, SPEC_EXAMPLE.replace('name="sentiment"', f'name="{name}"'))
        assert load_tasks(file)[0].name == name
    assert not (tmp_path / "__pycache__").exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x = (\n", "{file}:1: SyntaxError: '(' was never closed"),
        ("\nimport absent_module\n", "{file}:2: ModuleNotFoundError: No module named 'absent_module'"),
        ("def f():\n    return 1 / 0\n\nf()\n", "{file}:2: ZeroDivisionError: division by zero"),
        ("import sys\nsys.exit(3)\n", "{file}:2: SystemExit: 3"),
        ("x = 1\n", "{file} defines no task"),
        (SPEC_EXAMPLE.replace('"label")', '"lable")'), "Sentiment has no field 'lable'; its fields: label"),
        (SPEC_EXAMPLE.replace("{input}", "{input"), "The prompt template cannot be read"),
        (SPEC_EXAMPLE + "\nother = Task('sentiment', [], '', Sentiment)", "{file} defines two tasks called sentiment"),
        (
            "from pydantic import BaseModel\nclass A(BaseModel):\n    x: object.__class__.__call__\n",
            "{file}:2: PydanticSchemaGenerationError",
        ),
    ],
)
def test_a_file_that_cannot_be_used_is_one_message(tmp_path, text, message):
    file = write(tmp_path, text)
    with pytest.raises(LLMEvaluationError) as caught:
        load_tasks(file)
    assert message.format(file=file) in str(caught.value)


def test_a_missing_file():
    with pytest.raises(LLMEvaluationError, match=r"There is no task file absent\.py"):
        load_tasks("absent.py")


def test_a_folder_without_a_task(tmp_path):
    with pytest.raises(LLMEvaluationError, match=r"The folder .* has no task\.py or task\.yaml"):
        load_tasks(tmp_path)


class Fine(BaseModel):
    x: int


class Foreign:
    pass


class Unschemable(BaseModel):
    model_config = ConfigDict(arbitrary_types_allowed=True)
    x: Foreign


class Unfinished(BaseModel):
    x: "NotThere"  # noqa: F821


def make(**parts):
    return Task(**{"name": "t", "dataset": [Sample("x")], "prompt": "{input}", "output_type": Fine} | parts)


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"output_type": Unschemable}, "Unschemable cannot be turned into a JSON schema"),
        ({"output_type": Unfinished}, "Unfinished cannot be turned into a JSON schema"),
        ({"output_type": Foreign}, "Foreign cannot be turned into a JSON schema"),
        ({"output_type": [int]}, "output_type must be a type, such as str"),
        ({"output_type": Fine(x=1)}, "output_type must be a type, such as str"),
        ({"name": "two words"}, "name 'two words'"),
        ({"name": ""}, "name ''"),
        ({"prompt": 3}, "template or a function"),
        ({"prompts": {"a@b": "{input}"}}, "name 'a@b'"),
        ({"prompts": {"b": "{"}}, "template cannot be read"),
        ({"parameters": {"temprature": 1}}, "Unknown parameter temprature; known: temperature"),
        ({"parameters": {"temperature": "hot"}}, "temperature"),
        ({"parameters": {"stop": 3}}, "stop"),
        ({"parameters": [("seed", 1)]}, "parameters is a dictionary, .* got list"),
    ],
)
def test_a_task_that_cannot_be_used_is_refused_when_it_is_built(parts, message):
    with pytest.raises(LLMEvaluationError, match=message):
        make(**parts)


EVALS = Path(__file__).parents[3] / "evals"


def test_the_example_of_the_documentation_runs(tmp_path):
    page = (EVALS.parent / "docs" / "evaluation.md").read_text(encoding="utf-8")
    example = page.split("```python\n")[1].split("```")[0]
    (task,) = load_tasks(write(tmp_path, example))
    samples = task.load()
    assert (task.name, [scorer.name for scorer in task.scorer_objects]) == ("sentiment", ["field_match"])
    assert render(compile_prompt(task.prompts["short"]), samples.samples[1])[0].content.startswith("Broken")


def test_the_documentation_names_every_public_name_and_option():
    pages = ("evaluation.md", "pipelines.md", "runs.md", "reports.md", "decide.md")
    text = "".join((EVALS.parent / "docs" / page).read_text(encoding="utf-8") for page in pages)
    names = [*evals.EvaluateOptions.__annotations__, *STATUSES, *Task.__dataclass_fields__]
    internal = {"_", "base_dir", "name", "description", "extract"}
    assert [name for name in names if name not in internal and name not in text] == []


FILES = sorted([*EVALS.glob("*/task.py"), *EVALS.glob("*/task.yaml")])


def test_this_project_has_tasks_of_four_kinds():
    assert {file.parent.name for file in FILES} >= {
        *("sentiment", "orders", "sums", "tools", "tickets", "stock", "arithmetic", "helpdesk"),
    }
    table = (EVALS / "README.md").read_text(encoding="utf-8")
    assert [file.parent.name for file in FILES if f"| `{file.parent.name}` |" not in table] == []


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.parent.name)
def test_the_tasks_of_this_project_are_sound(file):
    for task in load_tasks(file):
        dataset = task.load()
        assert len(dataset) >= 40
        for sample in dataset:
            assert not convert_target(task.answer.view, sample).problems
        texts = [json.dumps(sample.input) for sample in dataset]
        assert len(set(texts)) == len(texts)
        inputs = [sample.input for sample in dataset if isinstance(sample.input, str)]
        for prompt in (*([] if task.prompt is None else [task.prompt]), *task.prompts.values()):
            assert not any(text in prompt for text in inputs if isinstance(prompt, str))


def knowing(task):
    def solve(sample, _model):
        field = getattr(task.answer.declared, "model_fields", {})
        return sample.target if isinstance(sample.target, dict) else {next(iter(field)): sample.target}

    solve.__annotations__["return"] = task.answer.declared
    return solve


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.parent.name)
async def test_a_model_that_knows_the_targets_scores_one_on_every_metric(file):
    for task in load_tasks(file):
        if task.solve is not None:
            report = await run(replace(task, solve=knowing(task)))
            assert report.summary()["mean"].tolist() == [1.0] * len(report.metrics)
            continue
        if not isinstance(task.load().samples[0].target, dict):
            continue  # see below
        targets = {render(compile_prompt(task.prompt), sample)[-1].content: sample.target for sample in task.load()}
        extract = FakeExtract(lambda call, task=task, targets=targets: task.output_type(**targets[call.text]))
        report = await run(task, extract=extract)
        assert report.summary()["mean"].tolist() == [1.0] * len(report.metrics)
        assert not report.has_failures


@pytest.mark.parametrize("name", ["arithmetic", "helpdesk"])
def test_targets_supplied_as_answers_score_one_on_every_metric(name):
    (task,) = load_tasks(EVALS / name)
    with Session("w") as session:
        report = session.score(task, {sample.id: sample.target for sample in task.load()}, progress=False)
    assert set(report.summary()["mean"]) == {1.0}
    assert not report.has_failures


def test_a_nested_task_over_the_wire():
    (task,) = load_tasks(EVALS / "orders")
    targets = {sample.input: sample.target for sample in task.load()}

    def answer(request):
        prompt = request.json["messages"][-1]["content"]
        return Reply(json.dumps(next(target for text, target in targets.items() if text in prompt)))

    with OllamaServer(answer, models=["m"]) as server, Session("w", ollama_api_base=server.url) as session:
        report = session.evaluate(task, ["ollama/m"], name="run", progress=False, limit=3)
    assert report.summary().set_index("metric")["mean"]["exact_match"] == 1.0


def test_a_task_of_two_calls_over_the_wire():
    (task,) = load_tasks(EVALS / "tickets")
    targets = {sample.target["order"]: sample.target for sample in task.load()}

    def answer(request):
        prompt = request.json["messages"][-1]["content"]
        target = next(target for order, target in targets.items() if order in prompt)
        summary = f"Order {target['order']}: {target['product']}, {target['problem']}"
        return Reply(json.dumps(target) if request.json.get("format") else summary)

    with OllamaServer(answer, models=["m"]) as server, Session("w", ollama_api_base=server.url) as session:
        report = session.evaluate(task, ["ollama/m"], name="run", progress=False, limit=3)
    assert report.summary().set_index("metric")["mean"]["exact_match"] == 1.0
    assert report.steps()["step"].tolist() == ["all", "summary", "parts"]


def test_an_agent_over_the_wire():
    (task,) = load_tasks(EVALS / "stock")

    def answer(request):
        last = request.json["messages"][-1]
        if last["role"] == "tool":
            price = int(re.search(r"costs (\d+)", last["content"])[1])
            return Reply("", tool_calls=[ToolCall("final_result", {"number": price})])
        return Reply("", tool_calls=[ToolCall("look_up_item", {"name": "kettle"})])

    with OllamaServer(answer, models=["m"]) as server, Session("w", ollama_api_base=server.url) as session:
        report = session.evaluate(task, ["ollama/m"], name="run", progress=False, limit=1)
    row = report.samples().iloc[0]
    assert (row["output"], row["requests"], row["score_numeric_tolerance"]) == ('{"number":29}', 2, 1.0)


def test_classes_are_balanced():
    for folder, field, each in (("sentiment", "label", 50), ("tools", "tool", 9)):
        (task,) = load_tasks(EVALS / folder)
        assert set(Counter(sample.target[field] for sample in task.load()).values()) == {each}
