"""Datasets from every source, with stable ids, and errors that name file, line and field."""

import builtins
import json
import random
import re
import sys
from collections import Counter
from dataclasses import replace
from datetime import date
from decimal import Decimal
from uuid import UUID

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel

from llmkit.canonical_json import sha256_of
from llmkit.errors import LLMConfigurationError, LLMDatasetError
from llmkit.evals import Dataset, Sample
from llmkit.evals.dataset.dataset import Reading


def write(tmp_path, name, content):
    path = tmp_path / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def error_of(path):
    with pytest.raises(LLMDatasetError) as caught:
        Dataset.load(path)
    return str(caught.value)


def test_a_sample_that_gets_an_id_stays_what_it_is_otherwise():
    given_samples = [Sample({"a": [1]}, {"b": 2}, group="g", metadata={"m": 1}), Sample("x", id="own"), Sample("x")]
    dataset = Dataset.load(given_samples)
    assert [replace(sample, id=None) for sample in dataset] == [replace(sample, id=None) for sample in given_samples]
    assert [sample.id for sample in given_samples] == [None, "own", None]
    for part in (dataset, dataset.filter(lambda sample: sample.input == "x"), dataset.limit(1)):
        assert [part.content_sha256(each) for each in part] == [sha256_of(each.content()) for each in part]


def test_json_lines_with_a_mark_blank_lines_and_windows_line_ends(tmp_path):
    lines = [
        '{"input": "a\u2028b", "target": {"x": 1}, "id": 7}',
        "",
        '{"input": {"q": "c"}, "group": "g", "metadata": {"p": [1]}}  ',
    ]
    path = write(tmp_path, "d.jsonl", "\ufeff" + "\r\n".join(lines) + "\r\n\r\n")
    first, second = Dataset.load(path)
    assert first == Sample("a\u2028b", {"x": 1}, id="7")
    assert (second.input, second.group, second.metadata) == ({"q": "c"}, "g", {"p": [1]})


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"input": "a"', "d.jsonl, line 2, column 14: not JSON: Expecting ',' delimiter"),
        ('["a"]', "d.jsonl, line 2: a sample is a JSON object with the field input; got list"),
        ('{"target": 1}', "d.jsonl, line 2: input: Field required"),
        ('{"input": 3}', "d.jsonl, line 2: input: must be text or a JSON object; got int"),
        (
            '{"input": "a", "label": 1}',
            "d.jsonl, line 2: label: unknown field; known fields: input, target, id, group, metadata",
        ),
        ('{"input": "a", "metadata": 1}', "d.jsonl, line 2: metadata: Input should be a valid dictionary"),
        ('{"input": "a", "id": ""}', "d.jsonl, line 2: id: String should have at least 1 character"),
        ('{"input": "a", "target": Infinity}', "d.jsonl, line 2: not JSON: Infinity is not a JSON value"),
        ('{"input": "\\ud800"}', "d.jsonl, line 2: input: contains half of a character (a lone surrogate)"),
        ("[" * 100_000, "d.jsonl, line 2: not JSON"),
        ('{"input": {"a": ' + "[" * 900 + "]" * 900 + "}}", "d.jsonl, line 2: lists or objects within each other, too"),
        ('{"input": {"a": 1, "a": 2}}', "d.jsonl, line 2: not JSON: the field 'a' stands twice in one object"),
        ('{"input": "a", "id": "x\\u0000"}', "d.jsonl, line 2: id: contains the character NUL"),
    ],
)
def test_a_malformed_line_is_named(tmp_path, line, message):
    path = write(tmp_path, "d.jsonl", f'{{"input": "fine"}}\n{line}\n')
    assert error_of(path).startswith(message)


def test_the_line_that_is_not_utf8_is_named(tmp_path):
    path = write(tmp_path, "d.jsonl", b'{"input": "a"}\n{"input": "\xff"}\n')
    assert error_of(path).startswith("d.jsonl, line 2: not UTF-8 text; pass encoding=")


@pytest.mark.parametrize(("name", "content"), [("d.jsonl", "\n \n"), ("d.csv", "input,target\n"), ("d.csv", "")])
def test_an_empty_dataset_is_an_error(tmp_path, name, content):
    assert error_of(write(tmp_path, name, content)) == f"{name} has no samples."


def test_a_missing_file_says_where_it_was_looked_for(tmp_path):
    message = error_of("absent.jsonl")
    assert str(tmp_path / "absent.jsonl") in message
    assert "relative path" in message


def test_an_unknown_kind_and_a_folder(tmp_path):
    assert "known kinds: .jsonl" in error_of(write(tmp_path, "d.xlsx", "x"))
    assert "no dataset file" in error_of(tmp_path)


def test_csv_with_dotted_columns_quotes_and_empty_cells(tmp_path):
    content = 'id,input.text,input.lang,target.amount,group,metadata\n1,"a,\n""b""",en,3.5,,"{""page"": 2}"\n,c,,,g,\n'
    first, second = Dataset.load(write(tmp_path, "d.csv", content))
    assert first.input == {"text": 'a,\n"b"', "lang": "en"}
    assert (first.id, first.target, first.group, first.metadata) == ("1", {"amount": "3.5"}, None, {"page": 2})
    assert (second.input, second.target, second.group) == ({"text": "c"}, None, "g")


def test_a_cell_of_a_megabyte(tmp_path):
    (sample,) = Dataset.load(write(tmp_path, "d.csv", f"input\n{'x' * 1_000_000}\n"))
    assert len(sample.input) == 1_000_000


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("input,label\na,b\n", "d.csv: unknown column 'label'; known columns: input, target, id, group, metadata"),
        ("input,input\na,b\n", "d.csv: there are two columns 'input'"),
        ("input,target\na\n", "d.csv, line 2: 1 cells, but the header has 2 columns"),
        ('input,target\n"a\nb",1\nc\n', "d.csv, line 4: 1 cells"),
        ('input\n"a"b\n', "d.csv, line 2: not CSV"),
        ("input,target\n,b\n", "d.csv, line 2: input: Field required"),
        ("input,metadata\na,{\n", "d.csv, line 2: metadata: not a JSON object; pass metadata=['metadata'] to keep it"),
        ("target,target.x,input\n1,2,a\n", "d.csv, line 2: target.x: there is a column target as well"),
    ],
)
def test_a_malformed_csv_is_named(tmp_path, content, message):
    assert error_of(write(tmp_path, "d.csv", content)).startswith(message)


def test_a_frame_with_missing_cells_and_numpy_values():
    frame = pd.DataFrame(
        {
            "input": ["a", "b"],
            "target.n": [np.int64(3), None],
            "target.tags": [np.array(["x", "y"]), None],
            "group": pd.Series(["g", pd.NA], dtype="string"),
        }
    )
    first, second = Dataset.load(frame)
    assert first.target == {"n": 3, "tags": ["x", "y"]}
    assert (second.target, second.group) == (None, None)
    with pytest.raises(LLMDatasetError, match="DataFrame, row 1: input: Field required"):
        Dataset.load(pd.DataFrame({"input": ["a", None]}))


def test_parquet(tmp_path):
    pytest.importorskip("pyarrow")
    path = tmp_path / "d.parquet"
    pd.DataFrame({"input": ["a"], "target": [1]}).to_parquet(path)
    assert Dataset.load(path).samples[0].target == 1
    assert "not a Parquet file" in error_of(write(tmp_path, "bad.parquet", "no"))


def test_parquet_keeps_whole_numbers_whole_where_others_are_missing(tmp_path):
    rows = [
        {"input": {"n": 12, "q": "a"}, "target": 3, "id": 7},
        {"input": {"n": None, "q": "b"}, "target": None, "id": None},
    ]
    table = pytest.importorskip("pyarrow").Table.from_pylist(rows)
    pytest.importorskip("pyarrow.parquet").write_table(table, tmp_path / "d.parquet")
    first, second = Dataset.load(tmp_path / "d.parquet")
    assert (json.dumps(first.input), json.dumps(first.target), first.id) == ('{"n": 12, "q": "a"}', "3", "7")
    assert (second.input["n"], second.target) == (None, None)


def test_the_index_of_a_frame_is_no_field_of_its_file_unless_it_has_a_name(tmp_path):
    pytest.importorskip("pyarrow")
    frame = pd.DataFrame({"input": ["a", "b"], "id": ["x", "y"]}, index=[5, 3])
    for name, kept in (("d.parquet", frame), ("e.parquet", frame.set_index("id"))):
        kept.to_parquet(tmp_path / name)
        assert [sample.id for sample in Dataset.load(tmp_path / name)] == ["x", "y"]


def test_dotted_columns_fill_objects_within_objects(tmp_path):
    path = write(tmp_path, "d.csv", "input,target.address.city,target.address.zip,target.name\na,Bonn,53111,x\n")
    assert Dataset.load(path).samples[0].target == {"address": {"city": "Bonn", "zip": "53111"}, "name": "x"}
    path = write(tmp_path, "e.csv", "input,target.address.city,target.address\na,Bonn,b\n")
    assert error_of(path) == "e.csv, line 2: target.address: there is a column that fills it already"
    path = write(tmp_path, "f.csv", "input.q,input\na,b\n")
    assert error_of(path) == "f.csv, line 2: input: there is a column that fills it already"


def test_parquet_without_its_package_names_the_command(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(LLMConfigurationError, match=r"pip install 'llmkit-research\[parquet\]'"):
        Dataset.load(write(tmp_path, "d.parquet", "x"))


def test_a_file_that_cannot_be_read(tmp_path, monkeypatch):
    path = write(tmp_path, "d.jsonl", '{"input": "a"}')
    real = type(path).open

    def refuse(self, *args, **kwargs):
        if self.name == path.name:
            raise PermissionError(13, "denied")
        return real(self, *args, **kwargs)

    monkeypatch.setattr(type(path), "open", refuse)
    assert error_of(path) == "d.jsonl cannot be read: denied"


def test_the_same_content_twice_gets_a_suffix_and_ids_survive_other_processes():
    samples = [Sample("a", 1), Sample("a", 1), Sample("b"), Sample("a", 1)]
    ids = [sample.id for sample in Dataset.load(samples)]
    assert ids[1:] == [f"{ids[0]}-2", ids[2], f"{ids[0]}-3"]
    assert ids[0] == "d546288a2bbc8450"


def test_an_id_twice_is_an_error_with_both_places(tmp_path):
    path = write(tmp_path, "d.jsonl", '{"input": "a", "id": "x"}\n{"input": "b", "id": "x"}\n')
    assert error_of(path) == "d.jsonl, line 2: id: 'x' is already the id of d.jsonl, line 1"


def test_only_samples_are_samples():
    with pytest.raises(LLMDatasetError, match="Sample 1 of the list is a str"):
        Dataset.load([Sample("a"), "b"])


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
).filter(lambda value: "\ud800" not in json.dumps(value))


@given(st.lists(st.builds(Sample, st.sampled_from("ab"), st.sampled_from([1, 2, None])), min_size=1, max_size=12))
def test_ids_are_unique_and_depend_on_content_only(samples):
    ids = [sample.id for sample in Dataset.load(samples)]
    assert len(set(ids)) == len(ids)
    assert ids == [sample.id for sample in Dataset.load(Dataset.load(samples).samples)]
    assert {name.partition("-")[0] for name in ids} == {name.partition("-")[0] for name in reversed(ids)}


@given(st.text(), JSON)
def test_a_sample_survives_json_lines(tmp_path_factory, text, target):
    path = tmp_path_factory.mktemp("lines") / "d.jsonl"
    path.write_text(json.dumps({"input": text, "target": target}), encoding="utf-8")
    (sample,) = Dataset.load(path)
    assert (sample.input, sample.target) == (text, target)


class Invoice(BaseModel):
    day: date
    tags: set[str]


def test_targets_of_python_become_json_in_one_order():
    target = Invoice(day=date(2024, 5, 1), tags={"b", "a", "c"})
    expected = {"day": "2024-05-01", "tags": ["a", "b", "c"]}
    assert Sample("x", target).target == expected
    assert Sample("x", {"tags": {"b", "a", "c"}}).target == {"tags": ["a", "b", "c"]}
    assert Sample("x", np.float64(2.5)).target == 2.5


@pytest.mark.parametrize("target", [float("nan"), {"x": float("inf")}, object()])
def test_what_is_not_json_is_refused(target):
    with pytest.raises(LLMDatasetError, match="JSON"):
        Sample("x", target)


def test_filter_shuffle_and_limit_keep_the_ids():
    data = Dataset.load([Sample(str(number), group="g" if number % 2 else None) for number in range(20)])
    assert len(data.filter(lambda sample: sample.group == "g")) == 10
    assert [s.id for s in data.limit(3)] == [s.id for s in data][:3]
    shuffled = data.shuffle(1)
    assert shuffled == data.shuffle(1) != data.shuffle(2)
    assert set(shuffled.by_id) == set(data.by_id)
    assert len(data.limit(None)) == 20
    with pytest.raises(LLMDatasetError, match="at least 1"):
        data.limit(0)


def test_the_hash_changes_with_every_field():
    base = Sample("a", 1, id="x", group="g", metadata={"m": 1})
    changed = [("b", 1, "g", {"m": 1}), ("a", 2, "g", {"m": 1}), ("a", 1, "h", {"m": 1}), ("a", 1, "g", {"m": 2})]
    others = [Sample(text, target, id="x", group=group, metadata=more) for text, target, group, more in changed]
    assert len({Dataset.load([sample]).sha256 for sample in [base, *others]}) == 5


@pytest.mark.parametrize(
    ("value", "label"),
    [
        (7, "7"),
        (np.int64(7), "7"),
        (7.0, "7"),
        (np.float32(7), "7"),
        (Decimal("7.0"), "7"),
        (UUID(int=7), "00000000-0000-0000-0000-000000000007"),
        (date(2024, 1, 2), "2024-01-02"),
    ],
)
def test_an_id_or_group_may_be_a_number_uuid_or_date(value, label):
    sample = Sample("a", id=value, group=value)
    assert (sample.id, sample.group) == (label, label)


@pytest.mark.parametrize("value", [True, 7.5, float("nan"), float("inf"), 2.0**53, ["a"]])
def test_an_id_of_another_kind_is_refused(value):
    with pytest.raises(LLMDatasetError, match="valid string"):
        Sample("a", id=value)


@pytest.mark.parametrize(
    ("values", "named", "message"),
    [
        (
            ("a",),
            {"taget": 1},
            "Sample: there is no taget=; it takes input, target, id, group, metadata; did you mean target=?",
        ),
        (
            ("a",),
            {"lang": 1},
            (
                "Sample: there is no lang=; it takes input, target, id, group, metadata; "
                "other values go into metadata={'lang': ...}"
            ),
        ),
        ((), {}, "Sample: input: Field required"),
        (("a", "b", "c"), {}, "Sample: it takes input and target by position; name the others: id, group, metadata"),
        (("a", float("nan")), {}, "Sample: target: NaN and infinities are not JSON"),
        ((3,), {}, "Sample: input: must be text or a JSON object; got int"),
    ],
)
def test_a_wrong_argument_of_a_sample_is_one_line_that_says_what_it_takes(values, named, message):
    with pytest.raises(LLMDatasetError) as caught:
        Sample(*values, **named)
    assert str(caught.value) == message


def test_a_column_of_ids_with_a_gap_keeps_whole_numbers():
    frame = pd.DataFrame({"input": ["a", "b"], "id": [1, None], "group": [7, None]})
    first, second = Dataset.load(frame)
    assert (first.id, first.group, second.group) == ("1", "7", None)


def test_null_stands_for_a_field_that_is_not_there(tmp_path):
    line = '{"input": "a", "target": null, "id": null, "group": null, "metadata": null}'
    (sample,) = Dataset.load(write(tmp_path, "d.jsonl", line))
    assert replace(sample, id=None) == Sample("a")


@pytest.mark.parametrize(
    "content",
    [
        "input,target\na,1\n,\n,\n",
        "input,target,,\na,1,,\n",
        "input,target\na,1,,\n",
        "input,target\na,1\n  \n",
        "input;target\na;1\n",
        "input\ttarget\r\na\t1\r\n",
        '"input"|"target"\na|1\n',
        ",input,target\n0,a,1\n",
        "Unnamed: 0,input,target\n0,a,1\n",
        'input, target\na, "1"\n',
    ],
)
def test_csv_as_spreadsheets_and_pandas_write_it(tmp_path, content):
    (sample,) = Dataset.load(write(tmp_path, "d.csv", content))
    assert (sample.input, sample.target) == ("a", "1")


def test_a_csv_column_without_a_name_names_the_remedy(tmp_path):
    message = error_of(write(tmp_path, "d.csv", ",input\nx,a\n"))
    assert message == "d.csv: column 1 has no name; name it, or write the file with to_csv(index=False)"


def test_no_import_of_pandas_for_lists(monkeypatch):
    real = builtins.__import__

    def guarded(name, *args, **kwargs):
        assert name != "pandas"
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", guarded)
    samples = [Sample(str(random.Random(number).random())) for number in range(3)]
    assert len(Dataset.load(samples)) == 3


@pytest.mark.parametrize(
    ("use", "message"),
    [
        (lambda data: data.limit("3"), "The limit of samples is a whole number; got '3'"),
        (lambda data: data.shuffle(None), "The seed of a shuffle is a whole number; got None"),
        (lambda data: data.filter("x"), "filter takes a function of a sample; got str"),
        (lambda data: data.splits([0.2, 0.8]), "splits takes shares by name"),
        (lambda data: data.splits({"dev": "x"}), "splits takes shares by name"),
        (lambda data: Dataset.load(42), "A dataset is a file, samples, dictionaries or a table; got int"),
    ],
)
def test_an_argument_of_another_kind_is_refused_in_words(use, message):
    with pytest.raises(LLMDatasetError, match=re.escape(message)):
        use(Dataset.load([Sample("one", "x"), Sample("two", "y")]))


def test_a_deeply_nested_line_is_named_whichever_limit_it_meets(tmp_path, monkeypatch):
    """pydantic counts levels, Python counts frames, and the caller's stack decides which of them ends first."""

    def refuse(*_args, **_kwargs):
        raise ValueError("Maximum serialization depth exceeded")

    monkeypatch.setattr("llmkit.evals.dataset.dataset.to_jsonable_python", refuse)
    message = error_of(write(tmp_path, "d.jsonl", '{"input": {"a": []}}\n'))
    assert message.startswith("d.jsonl, line 1: lists or objects within each other, too deep")


@pytest.mark.parametrize(
    ("name", "lines", "bad"),
    [
        ("d.jsonl", ['{"input": "a"}', '{"input": "b"}', '{"input": "c"}'], b'{"input": 3}\n\xff'),
        ("d.csv", ["input", "a", "b", "c"], b"x,y\n\xff"),
    ],
)
def test_a_limit_reads_no_further(tmp_path, name, lines, bad):
    path = write(tmp_path, name, "\n".join(lines).encode() + b"\n" + bad)
    assert [sample.input for sample in Dataset.load(path, limit=3)] == ["a", "b", "c"]
    with pytest.raises(LLMDatasetError):
        Dataset.load(path)


def test_a_limit_takes_no_more_samples_from_an_iterable():
    taken = []

    def samples():
        for number in range(1_000_000):
            taken.append(number)
            yield Sample(str(number))

    assert len(Dataset.load(samples(), limit=5)) == 5
    assert len(taken) == 5


def test_a_limit_changes_no_id(tmp_path):
    lines = [{"input": text, **({"id": text} if text == "c" else {})} for text in "aabcad"]
    path = write(tmp_path, "d.jsonl", "\n".join(map(json.dumps, lines)))
    whole = [sample.id for sample in Dataset.load(path)]
    assert [[sample.id for sample in Dataset.load(path, limit=n)] for n in (1, 3, 5)] == [
        whole[:1],
        whole[:3],
        whole[:5],
    ]


def test_an_id_that_an_earlier_sample_got_from_its_content_is_taken(tmp_path):
    made = Dataset.load([Sample("a")]).samples[0].id
    path = write(tmp_path, "d.jsonl", f'{{"input": "a"}}\n{{"input": "b", "id": "{made}"}}\n')
    assert error_of(path) == f"d.jsonl, line 2: id: {made!r} is already the id of d.jsonl, line 1"


def test_reading_goes_on_until_the_wanted_ids_are_found():
    consumed = []

    def samples():
        for number in range(100):
            consumed.append(number)
            yield Sample(str(number), id=str(number))

    reading = Reading(samples())
    reading.read(2)
    reading.read_until(["7", "1"])
    assert [sample.id for sample in reading.dataset()] == ["0", "1", "7"]
    assert (len(consumed), reading.is_whole, reading.total) == (8, False, None)
    reading.read_until(["absent"])
    # The sample may be among these under another id, because it was edited.
    assert (reading.is_whole, reading.total, len(reading.dataset())) == (True, 100, 95)
    reading.close()


def test_a_csv_with_many_columns_takes_linear_work(tmp_path):
    """Comparisons of names are counted: each name counted against all others made 40,000 columns take 74 s."""
    compared: Counter[int] = Counter()

    class Name(str):
        def __eq__(self, other):
            compared[0] += 1
            return str.__eq__(self, other)

        __hash__ = str.__hash__

    from llmkit.evals.dataset.delimited import require_unique
    from llmkit.evals.dataset.json_records import _object

    for count in (1_000, 4_000):
        names = [Name(f"metadata.{number}") for number in range(count)]
        monkey = [type("Stripped", (Name,), {"strip": lambda self: self})(name) for name in names]
        compared[0] = 0
        require_unique(["input", *monkey], "d.csv")
        assert compared[0] <= 20 * count
    compared[0] = 0
    with pytest.raises(ValueError, match="stands twice"):
        _object([*((name, 1) for name in names), ("x", 1), ("x", 2)])
    assert compared[0] <= 20 * count


def test_many_columns_of_a_csv_file_are_read(tmp_path):
    header = ",".join(["input", *(f"metadata.c{number}" for number in range(20_000))])
    path = write(tmp_path, "d.csv", f"{header}\na{',1' * 20_000}\n")
    assert len(Dataset.load(path).samples[0].metadata) == 20_000


def test_a_csv_with_carriage_returns_alone(tmp_path):
    path = write(tmp_path, "d.csv", 'input,target\ra,1\r"b\rc",2\r')
    assert [(sample.input, sample.target) for sample in Dataset.load(path)] == [("a", "1"), ("b\rc", "2")]


@pytest.mark.parametrize("rows", [["0,a", ",b"], [",a", "0,b"], ["0,a", "x,b"]])
def test_an_index_column_with_other_cells_is_refused(tmp_path, rows):
    message = error_of(write(tmp_path, "d.csv", "\n".join([",input", *rows])))
    assert message.startswith("d.csv: column 1 has no name")


def write_parquet(path, columns, **options):
    pa, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    parquet.write_table(pa.table(columns), path, compression="zstd", **options)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("columns", "options"),
    [
        ({"input": ["x" * 1_000] * 20_000}, {}),
        ({"input": ["x"] * 100_000}, {}),
        ({"input": ["x" * 20_000_000]}, {"use_dictionary": False}),
        ({"input": ["a"], "metadata.tags": [["x" * 100] * 2_000_000]}, {}),
        ({"input": ["a"] * 300, "metadata.tags": [["x" * 1_000] * 200] * 300}, {}),
    ],
    ids=["equal strings", "many rows", "a large page", "a long list", "lists of equal strings"],
)
def test_a_parquet_file_that_decodes_to_too_much_is_refused(tmp_path, monkeypatch, columns, options):
    write_parquet(tmp_path / "d.parquet", columns, **options)
    monkeypatch.setenv("LLM_MAX_FILE_MB", "10")
    assert (tmp_path / "d.parquet").stat().st_size < 200_000
    assert error_of(tmp_path / "d.parquet") == (
        "d.parquet: its rows take more than 10 MB of memory; raise LLM_MAX_FILE_MB if you trust the file, "
        "or use fewer samples (limit)."
    )


def test_a_limit_of_samples_keeps_within_the_limit_of_memory(tmp_path, monkeypatch):
    write_parquet(tmp_path / "d.parquet", {"input": ["x" * 1_000] * 20_000, "target": list(range(20_000))})
    monkeypatch.setenv("LLM_MAX_FILE_MB", "10")
    assert [sample.target for sample in Dataset.load(tmp_path / "d.parquet", limit=3)] == [0, 1, 2]


def test_parquet_columns_of_strings_bytes_lists_and_gaps(tmp_path):
    columns = {
        "input": ["a", "b", "a"],
        "target": [{"x": [1, None], "y": "z"}, None, {"x": [], "y": None}],
        "group": ["g", None, "g"],
        "metadata.tags": [["p", "q"], None, ["p"]],
    }
    write_parquet(tmp_path / "d.parquet", columns, row_group_size=2)
    dataset = Dataset.load(tmp_path / "d.parquet")
    assert [(s.input, s.target, s.group) for s in dataset] == list(
        zip(columns["input"], columns["target"], columns["group"], strict=True)
    )
    assert [s.metadata for s in dataset] == [{"tags": ["p", "q"]}, {}, {"tags": ["p"]}]


def test_a_damaged_page_of_a_parquet_file_is_an_error(tmp_path):
    path = tmp_path / "d.parquet"
    write_parquet(path, {"input": [f"text {number}" for number in range(1_000)]})
    content = bytearray(path.read_bytes())
    content[40:400] = bytes(360)
    path.write_bytes(content)
    assert error_of(path).startswith("d.parquet cannot be read: ")


def frame_of(**columns):
    return pd.DataFrame(columns)


@pytest.mark.parametrize("dtype", ["int64", "Int64", "float64", "Float64", "float32"])
def test_a_whole_number_of_a_frame_is_the_same_whatever_the_type_of_its_column(dtype):
    frame = frame_of(input=["a", "b"], target=pd.Series([1, 2], dtype=dtype))
    assert [json.dumps(sample.target) for sample in Dataset.load(frame)] == ["1", "2"]


def test_a_row_without_values_changes_no_other_row():
    frame = frame_of(input=["a", "b"], target=[1, 2], **{"metadata.page": [3, 4], "input.n": [5, 6]}).drop(
        columns="input"
    )
    frame["input.q"] = ["x", "y"]
    longer = pd.concat([frame, frame_of(**{"input.q": ["z"]})], ignore_index=True)
    before, after = Dataset.load(frame), Dataset.load(longer)
    assert list(before) == list(after)[:2]
    assert json.dumps(after.samples[0].input) == json.dumps({"n": 5, "q": "x"})


def test_fractions_and_large_floats_of_a_frame_stay_floats():
    frame = frame_of(input=["a", "b", "c"], target=[1.5, 2.0**60, None])
    assert [sample.target for sample in Dataset.load(frame)] == [1.5, 2.0**60, None]
    assert isinstance(Dataset.load(frame).samples[1].target, float)
