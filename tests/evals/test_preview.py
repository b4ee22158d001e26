"""`llmkit eval check`: samples as they are sent, targets as they are compared, and what would be refused."""

import json
import re
from datetime import date
from typing import Literal

import pytest
from pydantic import BaseModel, Field
from typer.testing import CliRunner

from llmkit.cli.main import app
from llmkit.evals import Task, field_match, number_match
from llmkit.evals.preview import preview_task

ROWS = [
    {"q": "a", "label": "sports ", "day": "2024-12-31", "doc": "x"},
    {"q": "b", "label": "spots", "day": None, "doc": "x"},
    {"q": "c", "label": None, "day": None, "doc": "y"},
]


class News(BaseModel):
    label: Literal["sports", "world"]
    day: date | None = None


def task_of(rows, **options):
    options = {"input": "q", "target": ["label", "day"], "group": "doc", "scorers": [field_match("label")]} | options
    return Task("news", rows, "Text: {input}", News, system="Be brief.", **options)


def test_a_preview_shows_messages_and_what_targets_become():
    preview = preview_task(task_of(ROWS), 1)
    (sample,) = preview.shown
    assert [(message.role, message.content) for message in sample.messages] == [
        ("system", "Be brief."),
        ("user", "Text: a"),
    ]
    assert sample.compared == {"label": "sports", "day": date(2024, 12, 31)}
    assert sample.converted == ('day: "2024-12-31" as date "2024-12-31"', 'label: "sports " as "sports"')
    assert (preview.samples, preview.groups, preview.without_target) == (3, 2, 1)
    assert preview.converted == {"label: spaces": 1, "day: text to date": 1}


def test_a_preview_checks_the_whole_dataset():
    preview = preview_task(task_of(ROWS), 0)
    assert preview.refused == 1
    assert re.match(r"sample 1: Sample '\w+' has a target that no answer can equal: label", preview.problems[0])


def test_a_prompt_that_cannot_be_filled_is_a_problem():
    preview = preview_task(Task("t", [{"input": "a"}], "{absent}", News))
    assert "The prompt names {absent}" in preview.problems[0]
    assert preview.shown[0].messages == ()


def test_a_scorer_that_reads_numbers_shows_them():
    rows = [{"q": "a", "a": "48/2 = 24\n#### 72"}]
    preview = preview_task(Task("t", rows, "{input}", str, [number_match()], input="q", target="a"))
    assert (preview.shown[0].compared, preview.shown[0].read) == (rows[0]["a"], {"number_match": "72"})


def test_a_target_of_one_field_is_shown_as_its_field():
    class Count(BaseModel):
        n: int

    rows = [{"q": "a", "n": "3.0"}]
    preview = preview_task(Task("t", rows, "{input}", Count, [field_match()], input="q", target="n"))
    assert (preview.shown[0].compared, preview.converted) == ({"n": 3}, {"n: text to number": 1})


def test_a_field_has_the_name_that_the_data_gives_it():
    class Mail(BaseModel):
        sender: str = Field(alias="from")

    rows = [{"q": "a", "from": "x"}]
    preview = preview_task(Task("t", rows, "{input}", Mail, [field_match()], input="q", target=["from"]))
    assert (preview.shown[0].compared, preview.converted) == ({"from": "x"}, {})


TASK = """\
name: t
dataset: d.csv
prompt: "Think about it for a while, because it is not as easy as it looks at first sight: {input}"
output_schema: {properties: {n: {type: integer}}, required: [n]}
scorers: [field_match]
"""


@pytest.fixture
def task_file(tmp_path):
    (tmp_path / "d.csv").write_text('q,a\nwhat is 3 [of] it?,3\ny,"1,080"\n')
    (tmp_path / "t.yaml").write_text(TASK)
    return tmp_path / "t.yaml"


def run(file, *arguments):
    return CliRunner().invoke(app, ["eval", "check", str(file), "--input", "q", "--target", "a", *arguments])


def test_the_command_prints_json(task_file):
    result = run(task_file, "--json", "-n", "1")
    document = json.loads(result.stdout)
    assert (result.exit_code, document["refused"], len(document["shown"])) == (1, 1, 1)
    assert document["shown"][0]["compared"] == {"n": 3}
    assert "d.csv, line 3" in document["problems"][0]


def test_the_command_fits_a_narrow_terminal(task_file, monkeypatch):
    monkeypatch.setattr("llmkit.cli.output.PIPE_WIDTH", 80)
    result = run(task_file)
    assert max(map(len, result.stdout.splitlines())) <= 80
    assert "what is 3 [of] it?" in " ".join(result.stdout.split())
    assert 'converted n: "3" as 3' in result.stdout
    assert "A run would be refused, because of 1 of 2 samples:" in result.stdout
