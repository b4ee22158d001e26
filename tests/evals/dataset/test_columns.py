"""Columns of any name: mapped in Python, in a task, in YAML and on the command line."""

import json
import re
from datetime import date
from pathlib import Path

import pytest
from pydantic import BaseModel
from typer.testing import CliRunner

from llmkit.cli.main import app
from llmkit.errors import LLMDatasetError, LLMEvaluationError
from llmkit.evals import Dataset, Sample, Task, load_tasks

ROWS = [
    {"q": "2 + 2?", "a": 4, "page": 1, "meta": {"lang": "en", "hints": ["x", "y"]}},
    {"q": "3 + 4?", "a": 7, "page": None, "meta": {"lang": "de", "hints": []}},
]


class Number(BaseModel):
    n: int


def fields_of(dataset):
    return [(sample.input, sample.target, sample.group, sample.metadata) for sample in dataset]


def error_of(source, **columns):
    with pytest.raises(LLMDatasetError) as caught:
        Dataset.load(source, **columns)
    return str(caught.value)


@pytest.mark.parametrize(
    ("columns", "first"),
    [
        ({"input": "q", "target": "a"}, ("2 + 2?", 4, None, {})),
        ({"input": ["q", "page"]}, ({"q": "2 + 2?", "page": 1}, None, None, {})),
        (
            {"input": {"question": "q", "language": "meta.lang"}},
            ({"question": "2 + 2?", "language": "en"}, None, None, {}),
        ),
        ({"input": "q", "target": {"n": "a"}, "group": "meta.lang"}, ("2 + 2?", {"n": 4}, "en", {})),
        ({"input": "q", "target": "meta.hints.1"}, ("2 + 2?", "y", None, {})),
        ({"input": "q", "target": lambda row: row["a"] + 1}, ("2 + 2?", 5, None, {})),
        ({"input": "a", "metadata": ["page"]}, ("4", None, None, {"page": 1})),
        ({"input": "q", "target": "a", "metadata": "*"}, ("2 + 2?", 4, None, {"page": 1, "meta": ROWS[0]["meta"]})),
        ({"sample_of": lambda row: Sample(row["q"], row["a"], group="g")}, ("2 + 2?", 4, "g", {})),
    ],
)
def test_columns_fill_the_fields_of_a_sample(columns, first):
    assert fields_of(Dataset.load(ROWS, **columns))[0] == first


def test_a_function_makes_several_samples_of_a_record_or_none():
    def split(row):
        return [Sample(f"{row['q']} {hint}", id=hint) for hint in row["meta"]["hints"]] or None

    assert [sample.key for sample in Dataset.load(ROWS, sample_of=split)] == ["x", "y"]


def test_a_field_without_a_mapping_is_the_column_of_its_name():
    rows = [{"question": "a", "target": 1, "id": 7, "note": "x"}]
    (sample,) = Dataset.load(rows, input="question")
    assert (sample.input, sample.target, sample.id, sample.metadata) == ("a", 1, "7", {})


def test_values_that_are_missing_leave_target_and_metadata_out():
    assert fields_of(Dataset.load(ROWS, input="q", target="page", metadata=["page"]))[1] == ("3 + 4?", None, None, {})


QUESTION = {"q": "a", "answers": [{"text": "x"}, {"text": "y"}]}


def test_records_inside_records_have_the_fields_around_them():
    document = [
        {
            "title": "t",
            "paragraphs": [{"context": "c", "qas": [{"q": "a", "answers": [{"text": "x"}, {"text": "y"}]}]}],
        },
        {"title": "u", "paragraphs": []},
    ]
    dataset = Dataset.load(
        document, records="paragraphs.qas", input=["context", "q"], target="answers.text", group="title"
    )
    assert fields_of(dataset) == [({"context": "c", "q": "a"}, ["x", "y"], "t", {})]


@pytest.mark.parametrize(
    ("rows", "columns", "message"),
    [
        (
            [{"question": "a", "answer": "b"}],
            {},
            "samples: the columns are question, answer: pass input='question', target='answer'",
        ),
        (
            [{"Ticket Text": "a", "Category": "b"}],
            {},
            "samples: the columns are Ticket Text, Category: pass input='Ticket Text', target='Category'",
        ),
        ([{"x": "a", "y": "b"}], {}, "the columns are x, y: pass input= with the column of the questions"),
        (
            [{"question": "a", "answers": {"text": ["b"]}}],
            {},
            "the columns are question, answers.text: pass input='question', target='answers.text'",
        ),
        (
            [{"question": "a"}],
            {"input": "questoin"},
            "there is no column 'questoin'; the columns are question; did you mean 'question'?",
        ),
        (
            [{"question": "a"}],
            {"input": "question", "target": "answer"},
            "no record that was read has a column 'answer'",
        ),
        ([{"question": "a"}], {"target": "question"}, "the columns are question: pass input='question' as well"),
        ([{"q": "a"}, {"q": None}], {"input": "q"}, "sample 1: input: the column 'q' is empty here"),
        ([{"q": ["a"]}], {"input": "q"}, "sample 0: input: the column 'q' has a list; pass input=['...']"),
        (
            [{"input": "a", "notes": "b"}],
            {},
            "target, id, group, metadata; pass metadata=['notes'] to keep it as metadata, or metadata=[] to leave it",
        ),
        (
            [{"q": "a"}],
            {"sample_of": lambda row: row["x"]},
            "0: sample_of: the function <lambda> failed: KeyError",
        ),
        (
            [{"q": "a"}],
            {"sample_of": lambda row: "x"},
            "0: sample_of returns a Sample, several, or None; got str",
        ),
        (
            [{"q": "a"}],
            {"input": lambda row: 1 / 0},
            "0: input: the function <lambda> failed: ZeroDivisionError",
        ),
        ([{"q": "a"}], {"sample_of": len, "input": "q"}, "sample_of makes whole samples; leave out input="),
        ([{"q": "a"}], {"input": 3.5}, "input is a column, a list of columns or a function of a record; got 3.5"),
        ([{"q": "a"}], {"input": -1}, "input is a column, a list of columns or a function of a record; got -1"),
        ([("a", "b")], {}, "the columns are 0, 1: name columns by their positions, such as input=0, target=1"),
        ([{"ind": 1, "ctx": "a", "label": "3"}], {}, "pass input='ctx', target='label'"),
        ([{"stem": "a", "question_concept": "b", "answerKey": "A"}], {}, "pass input='stem', target='answerKey'"),
        ([{"prompt": "a", "kwargs": [{"n": 1}]}], {}, "pass input='prompt', and target="),
        ([{"q": "a"}], {"id": ["q"]}, "id is a column or a function of a record; got ['q']"),
        ([{"q": "a"}], {"input": "q", "records": "x.y"}, "there is no list 'x.y'; the columns are q"),
        ([{"q": "a"}], {"input": "q", "records": "q"}, "records 'q': 'q' is no list of objects"),
        ([Sample("a")], {"input": "q"}, "sample 0: it is a Sample already; a mapping of columns is for other records"),
    ],
)
def test_an_error_says_what_to_pass(rows, columns, message):
    assert message in error_of(rows, **columns)


def test_a_column_may_be_missing_in_the_first_records():
    rows = [{"q": "a"}, {"q": "b", "answer": 3}]
    assert [sample.target for sample in Dataset.load(rows, input="q", target="answer")] == [None, 3]


def test_a_table_misses_a_column_at_once(tmp_path):
    (tmp_path / "d.csv").write_text("q,a\nx,1\n")
    assert error_of(tmp_path / "d.csv", input="q", target="b") == (
        "d.csv: there is no column 'b'; the columns are q, a; if the first line is no header, name columns by their "
        "positions, from 0, such as input=0"
    )


@pytest.mark.parametrize("name", ["date", "Best Answer", "a.b", "q?", "ähm", "{x}"])
def test_a_column_has_any_name(name):
    (sample,) = Dataset.load([{name: date(2024, 1, 2)}], input=name)
    assert sample.input == "2024-01-02"


def task_of(dataset, **columns):
    return Task("t", dataset, "{input}", Number, **columns)


def test_a_task_maps_the_columns_of_its_dataset():
    assert fields_of(task_of(ROWS, input="q", target="a").load())[0] == ("2 + 2?", 4, None, {})
    with pytest.raises(LLMEvaluationError, match="input is a column"):
        task_of(ROWS, input=[])


def test_a_task_of_an_iterator_is_read_again():
    task = task_of(iter(ROWS), input="q")
    assert [len(task.load(limit)) for limit in (1, None, 1)] == [1, 2, 1]


TASK = """\
name: t
dataset: d.csv
prompt: "{q}"
output_schema: {properties: {n: {type: integer}}}
scorers: [field_match]
"""


def test_yaml_has_the_same_keys(tmp_path):
    (tmp_path / "d.csv").write_bytes("q;p;a\nStraße?;1;2\n".encode("cp1252"))
    more = "input: [q, p]\ntarget: {n: a}\ngroup: p\nmetadata: [p]\nencoding: cp1252\ndelimiter: ;\n"
    (tmp_path / "t.yaml").write_text(TASK + more)
    (task,) = load_tasks(tmp_path / "t.yaml")
    assert fields_of(task.load()) == [({"q": "Straße?", "p": "1"}, {"n": "2"}, "1", {"p": "1"})]
    (tmp_path / "t.yaml").write_text(TASK + "input: true\n")
    with pytest.raises(LLMEvaluationError, match=re.escape("t.yaml:6: input: ")):
        load_tasks(tmp_path / "t.yaml")


def run(*arguments):
    return CliRunner().invoke(app, ["eval", "plan", *map(str, arguments), "--routes", "ollama/llama3.2", "--json"])


def test_the_command_line_has_the_same_options(tmp_path):
    Path(tmp_path / "d.csv").write_text("q,p,a\nx,1,2\ny,2,3\n")
    (tmp_path / "t.yaml").write_text(TASK)
    result = run(tmp_path / "t.yaml", "--input", "q", "--input", "p", "--target", "a", "--metadata", "*")
    assert json.loads(result.stdout)["routes"][0]["results"] == 2
    assert "the columns are q, p, a: pass input=" in str(run(tmp_path / "t.yaml").exception)
