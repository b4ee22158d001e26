"""Files and tables as people have them: each loads in one line, and what does not says what to pass."""

import bz2
import gzip
import json
import lzma
import re
import sqlite3
import zipfile
from collections import namedtuple
from contextlib import suppress
from datetime import date
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import BaseModel

from llmkit.errors import LLMConfigurationError, LLMDatasetError
from llmkit.evals import Dataset
from llmkit.evals.dataset.json_records import _Buffer

pa = pytest.importorskip("pyarrow")
parquet = pytest.importorskip("pyarrow.parquet")

QA = {"input": "question", "target": "answer"}
ROWS = [{"question": "a, b", "answer": 1}, {"question": "c", "answer": 2}]
LINES = "".join(f"{json.dumps(row)}\n" for row in ROWS)
LIMIT = "its content takes more than 1 MB; raise LLM_MAX_FILE_MB if you trust the file, or use fewer samples (limit)."


def write(name, content):
    Path(name).write_bytes(content.encode() if isinstance(content, str) else content)
    return name


def compress(data, suffix):
    if suffix == ".zst":
        return pa.compress(data, "zstd", asbytes=True)
    return {".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress}[suffix](data)


def pairs(source, **columns):
    return [(sample.input, sample.target) for sample in Dataset.load(source, **QA | columns)]


def error_of(source, **columns):
    with pytest.raises(LLMDatasetError) as caught:
        Dataset.load(source, **columns)
    return str(caught.value)


@pytest.fixture(autouse=True)
def _in_a_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


PUBLIC = [
    (
        "gsm8k.jsonl",
        '{"question": "Natalia sold clips.\\nHow many?", "answer": "48/2 = <<48/2=24>>24\\n#### 72"}\n',
        {"input": "question", "target": lambda row: row["answer"].rpartition("#### ")[2]},
        ("Natalia sold clips.\nHow many?", "72", None),
    ),
    (
        "boolq.jsonl",
        '{"question": "is x y", "title": "Persian", "answer": true, "passage": "Persian ..."}\n',
        {"input": ["passage", "question"], "target": "answer", "group": "title"},
        ({"passage": "Persian ...", "question": "is x y"}, True, "Persian"),
    ),
    (
        "banking77.csv",
        'text,category\n"Where is my card, please?",card_arrival\n',
        {"input": "text", "target": "category"},
        ("Where is my card, please?", "card_arrival", None),
    ),
    (
        "TruthfulQA.csv",
        'Type,Category,Question,Best Answer,Source\nA,Myths,"What happens if you eat seeds?",Nothing,https://x.org\n',
        {"input": "Question", "target": "Best Answer", "group": "Category"},
        ("What happens if you eat seeds?", "Nothing", "Myths"),
    ),
    (
        "tickets.csv",
        'Ticket ID,Ticket Subject,Ticket Description,Ticket Priority\n1,Setup,"It {fails}.\n\nHelp ""now"".",Low\n',
        {"id": "Ticket ID", "input": ["Ticket Subject", "Ticket Description"], "target": "Ticket Priority"},
        ({"Ticket Subject": "Setup", "Ticket Description": 'It {fails}.\n\nHelp "now".'}, "Low", None),
    ),
    (
        "squad.json",
        json.dumps(
            {
                "version": "v2.0",
                "data": [
                    {
                        "title": "Normans",
                        "paragraphs": [
                            {"context": "c", "qas": [{"question": "q", "id": "5", "answers": [{"text": "France"}]}]}
                        ],
                    }
                ],
            }
        ),
        {
            "records": "data.paragraphs.qas",
            "input": ["context", "question"],
            "target": "answers.text",
            "group": "title",
        },
        ({"context": "c", "question": "q"}, ["France"], "Normans"),
    ),
    ("cut-out.jsonl", '{"question": "a", "answer": 1},\n\n{"question": "b", "answer": 2}\n', QA, ("a", 1, None)),
    (
        "abstract_algebra_test.csv",
        '"Degree of Q(sqrt(2), sqrt(3)) over Q?",0,4,2,6,B\n"Index of <p> in S_5?",8,2,24,120,C\n',
        {"input": 0, "target": 5},
        ("Degree of Q(sqrt(2), sqrt(3)) over Q?", "B", None),
    ),
    (
        "ag_news.csv",
        '"3","Fears for T N pension","Unions say they are \'disappointed\'."\n"4","The Race is On","TORONTO"\n',
        {"input": ["1", "2"], "target": "0"},
        ({"1": "Fears for T N pension", "2": "Unions say they are 'disappointed'."}, "3", None),
    ),
    (
        "wmt.tsv",
        'Hello world\tHallo Welt\nI said "hi\tIch sagte\n',
        {"input": 0, "target": 1},
        ("Hello world", "Hallo Welt", None),
    ),
    (
        "clinc150.json",
        json.dumps({"train": [["a", "b"]] * 3, "test": [["how would", "translate"]]}),
        {"records": "test", "input": 0, "target": 1},
        ("how would", "translate", None),
    ),
    ("pairs.jsonl", '["a", "b"]\n["c", "d"]\n', {"input": 0, "target": 1}, ("a", "b", None)),
    ("values.json", '[["a", 1], ["c", 2]]', {"input": 0, "target": 1}, ("a", 1, None)),
    (
        "simple_qa.csv",
        "metadata,problem,answer\n\"{'topic': 'Art', 'urls': ['x']}\",Who?,Sugeno\n",
        {"input": "problem", "target": "answer"},
        ("Who?", "Sugeno", None),
    ),
    ("kaggle.csv", "text,label,score,score\na,pos,1,2\n", {"input": "text", "target": "label"}, ("a", "pos", None)),
    ("python.jsonl", '{"question": "a", "answer": NaN, "n": NaN}\n', QA, ("a", None, None)),
    ("wiki.jsonl.gz", gzip.compress(LINES.encode(), mtime=0), QA, ("a, b", 1, None)),
]


@pytest.mark.parametrize(("name", "content", "columns", "first"), PUBLIC, ids=[each[0] for each in PUBLIC])
def test_a_public_file_loads_in_one_line(name, content, columns, first):
    sample = Dataset.load(write(name, content), **columns).samples[0]
    assert (sample.input, sample.target, sample.group) == first


def test_columns_without_names_have_positions():
    for source in (pd.DataFrame([["a", "x"]]), [("a", "x")], [["a", "x"]]):
        assert [(each.input, each.target) for each in Dataset.load(source, input=0, target=1)] == [("a", "x")]


def test_positions_are_names_in_a_header_of_numbers():
    write("d.csv", "0,1\na,b\n")
    assert [(each.input, each.target) for each in Dataset.load("d.csv", input=0, target=1)] == [("a", "b")]


def test_a_repeated_column_is_refused_where_it_is_named():
    write("d.csv", "text,label,text\na,b,c\n")
    assert error_of("d.csv", input="text").startswith(
        "d.csv: there are two columns 'text'; rename one, or if the first"
    )
    assert Dataset.load("d.csv", input="label", metadata="*").samples[0].metadata == {"text": "a", "text.1": "c"}


def test_the_index_of_a_frame_is_a_column_where_it_is_named():
    frame = pd.DataFrame({"question": ["a"]}, index=pd.Index(["k"], name="key"))
    assert [sample.id for sample in Dataset.load(frame, input="question", id="key")] == ["k"]


def test_a_parquet_file_with_classes_and_nested_columns():
    features = {"label": {"names": ["no", "yes"], "_type": "ClassLabel"}}
    features["tags"] = {"feature": {"names": ["x", "y"], "_type": "ClassLabel"}, "_type": "List"}
    table = pa.table({"q": [{"text": "a"}, {"text": "b"}], "label": [1, -1], "tags": [[0, 1], []]})
    table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    parquet.write_table(table, "d.parquet")
    write("e.parquet.gz", gzip.compress(Path("d.parquet").read_bytes()))
    for source in ("d.parquet", "e.parquet.gz", table, table.to_batches()[0]):
        dataset = Dataset.load(source, input="q.text", target="label", metadata=["tags"])
        assert [(s.input, s.target, s.metadata["tags"]) for s in dataset] == [("a", "yes", ["x", "y"]), ("b", None, [])]


@pytest.mark.parametrize("suffix", [".gz", ".bz2", ".xz", ".zst"])
@pytest.mark.parametrize(("kind", "content"), [(".jsonl", LINES), (".csv", "question;answer\na, b;1\nc;2\n")])
def test_a_compressed_file_of_every_kind(suffix, kind, content):
    name = write(f"d{kind}{suffix}", compress(content.encode(), suffix))
    assert [text for text, _target in pairs(name)] == ["a, b", "c"]
    # Browsers unpack files and keep their names, and the other way round.
    assert pairs(write(f"e{kind}{suffix}", content)) == pairs(write(f"f{kind}", compress(content.encode(), suffix)))


@pytest.mark.parametrize("suffix", [".gz", ".bz2", ".xz", ".zst"])
def test_a_compressed_file_stays_within_the_limit(suffix, monkeypatch):
    monkeypatch.setenv("LLM_MAX_FILE_MB", "1")
    line = json.dumps({"question": "x" * 1000}).encode() + b"\n"
    bombs = {
        "a.jsonl": line * 1_200,
        "b.csv": b"question\n" + b"x" * 1_200_000,
        "c.json": b'[{"question": "' + b"x" * 1_200_000 + b'"}]',
        "d.json": b"[" + line.strip() + b"," + b" " * 1_200_000,
    }
    for name, content in bombs.items():
        write(f"{name}{suffix}", compress(content, suffix))
        assert error_of(f"{name}{suffix}", input="question") == f"{name}{suffix}: {LIMIT}"
    assert len(Dataset.load(f"a.jsonl{suffix}", input="question", limit=3)) == 3
    assert len(Dataset.load(f"d.json{suffix}", input="question", limit=1)) == 1


@pytest.mark.parametrize("suffix", [".gz", ".bz2", ".xz", ".zst"])
def test_a_compressed_file_that_is_cut_off_says_so(suffix):
    message = error_of(write(f"d.jsonl{suffix}", compress((LINES * 500).encode(), suffix)[:-15]), **QA)
    assert message.startswith(f"d.jsonl{suffix}: the compressed data is damaged or cut off")


def test_a_zip_of_one_file_is_read_as_that_file():
    with zipfile.ZipFile("d.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("data/d.jsonl", LINES)
        archive.writestr("__MACOSX/data/._d.jsonl", b"\0")
    whole = write("d.jsonl", LINES.encode())
    assert Dataset.load("d.zip", **QA).sha256 == Dataset.load(whole, **QA).sha256


@pytest.mark.parametrize(
    ("members", "message"),
    [(["a.csv", "b.csv"], "d.zip has 2 files (a.csv, b.csv)"), ([], "d.zip has no file")],
)
def test_a_zip_of_several_files_names_them(members, message):
    with zipfile.ZipFile("d.zip", "w") as archive:
        for name in members:
            archive.writestr(name, "input\na\n")
    with pytest.raises(LLMDatasetError, match=re.escape(message)):
        Dataset.load("d.zip")


def test_zst_without_its_package_names_the_command(monkeypatch):
    write("d.jsonl.zst", compress(LINES.encode(), ".zst"))
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    with pytest.raises(LLMConfigurationError, match=r"pip install 'llmkit-research\[parquet\]'"):
        Dataset.load("d.jsonl.zst", **QA)


JSON_FORMS = [
    json.dumps(ROWS),
    json.dumps(ROWS, indent=2),
    LINES,
    "".join(json.dumps(row, indent=1) for row in ROWS),
    json.dumps({"meta": {"version": 1}, "data": ROWS}),
    *(pd.DataFrame(ROWS).to_json(orient=orient) for orient in ("records", "columns", "index", "split", "table")),
    json.dumps({"question": ["a, b", "c"], "answer": [1, 2]}),
    json.dumps({"x1": ROWS[0], "x2": ROWS[1]}),
    pd.DataFrame(ROWS, index=["x", "y"]).to_json(orient="columns"),
    "\ufeff" + json.dumps(ROWS),
]


@pytest.mark.parametrize("content", JSON_FORMS)
def test_json_in_every_form(content):
    assert pairs(write("d.json", content)) == [("a, b", 1), ("c", 2)]


def test_a_list_in_a_file_of_json_lines():
    assert pairs(write("d.jsonl", json.dumps(ROWS, indent=1))) == [("a, b", 1), ("c", 2)]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('[{"question": "a"', "d.json, line 1: not JSON: Expecting ',' delimiter"),
        ('[\n{"question": "a"}\n{"question": "b"}]', "d.json, line 3: not JSON: expected ',' or ']' behind a record"),
        ('[{"question": "a"},]', "d.json, line 1: not JSON: a record must follow the ','"),
        ('[{"question": "a"}] x', "d.json, line 1: there is something behind the list"),
        ('[{"question": -Infinity}]', "d.json, line 1: not JSON: -Infinity is not a JSON value"),
        (
            '{"a": [["x", "y"]], "b": [["x", "y"], ["z", "y"]]}',
            "d.json: the document has the lists a, b: pass records='b'",
        ),
        ("[1]", "d.json, record 1: a sample is a JSON object with the field input; got int"),
        ("[]", "d.json has no samples."),
        (
            '{"a": [{"x": 1}], "b": [{"question": "a"}, {}]}',
            "d.json: the document has the lists a, b: pass records='b' for the records in it",
        ),
        ('{"question": ["a"], "answer": []}', "d.json: the columns question, answer have different numbers of values"),
    ],
)
def test_a_json_document_that_cannot_be_read_names_the_place(content, message):
    assert error_of(write("d.json", content), input="question").startswith(message)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("d.csv", "# by me\ninput,target\na,b\n", "d.csv, line 1: a comment and not the names of columns; delete the"),
        ("d.csv", "<!DOCTYPE html>\n<p>404, sorry", "d.csv is a web page and not the data: download the file itself"),
        ("d.json", "\n<HTML lang='de'>", "d.json is a web page and not the data: download the file itself"),
        (
            "d.jsonl",
            '{\n "input": "a"\n}\n',
            "enclosed in double quotes; each line of .jsonl is one object: name a file",
        ),
        ("d.jsonl", "{'input': 'a'}\n", "enclosed in double quotes; JSON is written with double quotes: write it with"),
        ("d.json", "[{'input': 'a'}]", "enclosed in double quotes; JSON is written with double quotes: write it with"),
        ("d.jsonl", '# by me\n{"input": "a"}\n', "Expecting value; JSON has no comments: delete the line"),
        ("d.json", '// by me\n[{"input": "a"}]', "Expecting value; JSON has no comments: delete the line"),
    ],
)
def test_a_file_that_is_nearly_right_is_refused_with_its_remedy(name, content, message):
    assert message in error_of(write(name, content))


def test_a_column_may_be_called_like_a_comment():
    assert Dataset.load(write("d.csv", "#text\na\n"), input="#text").samples[0].input == "a"


def test_a_limit_reads_only_the_first_records_of_a_json_list():
    write("d.json", '[{"question": "a"}, {"question": "b"}, {"question": ' + " " * 200_000 + "not JSON")
    assert [sample.input for sample in Dataset.load("d.json", input="question", limit=2)] == ["a", "b"]


def test_a_document_that_must_be_read_as_a_whole_is_limited(monkeypatch):
    monkeypatch.setenv("LLM_MAX_FILE_MB", "1")
    write("d.json", json.dumps({"data": [{"question": "x" * 1000}] * 1100}))
    assert error_of("d.json", input="question").startswith("d.json, line 1: one value takes more than 1 MB; raise")


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
        max_leaves=8,
    ),
    st.integers(1, 7),
)
def test_a_value_is_the_same_however_its_text_is_cut(value, size):
    text = f" {json.dumps(value)}\n]"
    buffer = _Buffer((text[at : at + size] for at in range(0, len(text), size)), "d.json", 1)
    assert (buffer.read_value(), buffer.peek()) == (value, "]")


@pytest.mark.parametrize(
    "content",
    [
        "question;answer\na, b;1\nc;2\n",
        "question\tanswer\na, b\t1\nc\t2\n",
        "sep=^\nquestion^answer\na, b^1\nc^2\n",
        '\n,,\n"question","answer"\n"a, b","1"\n"c","2"\n,\n\n',
        'question, answer\n"a, b", 1\nc, 2\n',
        "question,answer\n'a, b',1\nc,2\n".replace("question", "'question'").replace("answer", "'answer'"),
        ',question,answer\nr1,"a, b",1\nr2,c,2\n',
        'Unnamed: 0.1,Unnamed: 0,question,answer\n0,0,"a, b",1\n1,1,c,2\n',
    ],
)
def test_csv_of_other_dialects(content):
    assert pairs(write("d.csv", content)) == [("a, b", "1"), ("c", "2")]


def test_quotes_that_nothing_closes_are_text_beside_tabs():
    assert pairs(write("d.tsv", 'question\tanswer\n"5" screen\t1\n6" one\t2\n')) == [
        ('"5" screen', "1"),
        ('6" one', "2"),
    ]


def test_a_delimiter_as_a_shell_passes_it_on():
    assert pairs(write("d.csv", "question\tanswer\na, b\t1\nc\t2\n"), delimiter=r"\t") == [("a, b", "1"), ("c", "2")]


def test_backslashes_before_quotes():
    assert pairs(write("d.csv", 'question,answer\n"he said \\"hi, you\\"",1\n')) == [('he said "hi, you"', "1")]


@pytest.mark.parametrize(
    ("encoding", "text", "named"),
    [
        ("cp1252", "Wie heißt die größte Stadt: „Köln“?", "cp1252"),
        ("cp1251", "Привет, как дела сегодня", "cp1251"),
        ("utf-8-sig", "Köln", None),
        ("utf-16", "Köln", None),
        ("utf-16-le", "Köln", None),
        ("utf-16-be", "Köln", None),
        ("utf-32", "Köln", None),
    ],
)
def test_an_encoding_is_recognised_or_named(encoding, text, named):
    write("d.csv", f"question;answer\n{text};1\n".encode(encoding))
    write("d.jsonl", json.dumps({"question": text, "answer": "1"}, ensure_ascii=False).encode(encoding))
    for name in ("d.csv", "d.jsonl"):
        assert pairs(name, encoding=encoding) == [(text, "1")]
        if named is None:
            assert pairs(name) == [(text, "1")]
    if named is not None:
        assert f"line 2: not UTF-8 text; pass encoding='{named}' (--encoding {named})" in error_of("d.csv", **QA)


def test_a_wrong_encoding_names_the_right_one():
    write("d.csv", "question,answer\nKöln,1\n")
    assert "not ascii text; pass encoding='utf-8'" in error_of("d.csv", **QA, encoding="ascii")
    assert "there is no encoding 'utf9'" in error_of("d.csv", **QA, encoding="utf9")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("d.csv", b"PK\x03\x04\xff\xfe", "d.csv: not text, but an Excel workbook or a ZIP archive"),
        (
            "d.jsonl.gz",
            gzip.compress(gzip.compress(b"{}", mtime=0), mtime=0),
            "d.jsonl.gz: not text, but compressed data once more",
        ),
        ("d.xlsx", b"x", "read it with pandas.read_excel and pass the DataFrame"),
        ("d.csv", b"q,q\n1,2\n", "d.csv: there are two columns 'q'"),
        ("d.parquet", b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\n", "run git lfs pull"),
    ],
)
def test_a_file_of_another_kind_says_what_to_do(name, content, message):
    assert message in error_of(write(name, content), input="q")


def test_a_name_that_looks_like_a_home_folder_is_a_file():
    assert pairs(write("~d.jsonl", LINES)) == [("a, b", 1), ("c", 2)]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("~nobody/d.jsonl", "There is no dataset file"),
        ("x" * 5_000, "There is no dataset file"),
        ("a\0b.csv", "There is no dataset file"),
        ("https://example.org/d.csv", "download it first"),
        (".", "it is a folder. Name a file in it"),
    ],
)
def test_a_path_to_no_file_says_so(name, message):
    assert message in error_of(name)


class Record(BaseModel):
    question: str
    answer: int


Pair = namedtuple("Pair", "question answer")


class HuggingFace:
    """Mirror of the attributes that `datasets.Dataset` documents."""

    def __init__(self, rows, features):
        self.rows, self.features, self.column_names = rows, features, list(features)

    def __iter__(self):
        return iter(self.rows)

    def __len__(self):
        return len(self.rows)

    def with_format(self, _kind):
        return self


class ClassLabel:
    names = ("one", "two")

    def int2str(self, code):
        return self.names[code]


class Polars:
    """Mirror of the attributes that `polars.DataFrame` documents."""

    columns = ("question", "answer")

    def iter_rows(self):
        return iter([("a, b", 1), ("c", 2)])

    def __len__(self):
        return 2


class Lazy:
    def collect_schema(self):
        raise AssertionError("not needed")

    def collect(self):
        return Polars()


class Capsule:
    def __arrow_c_stream__(self, requested_schema=None):
        return pa.Table.from_pylist(ROWS).__arrow_c_stream__(requested_schema)


def list_rows():
    connection = sqlite3.connect(":memory:")
    connection.row_factory = sqlite3.Row
    rows = connection.execute("select 'a, b' as question, 1 as answer union all select 'c', 2").fetchall()
    connection.close()
    return rows


TABLES = {
    "dictionaries": lambda: ROWS,
    "generator": lambda: (row for row in ROWS),
    "models": lambda: [Record(**row) for row in ROWS],
    "named tuples": lambda: [Pair(**row) for row in ROWS],
    "rows of a database": list_rows,
    "pandas": lambda: pd.DataFrame(ROWS),
    "pandas on Arrow": lambda: pd.DataFrame(ROWS).convert_dtypes(dtype_backend="pyarrow"),
    "columns": lambda: {"question": ["a, b", "c"], "answer": np.array([1, 2])},
    "Arrow": lambda: pa.Table.from_pylist(ROWS),
    "Arrow stream": lambda: pa.Table.from_pylist(ROWS).to_reader(),
    "Arrow capsule": Capsule,
    "polars": Polars,
    "lazy polars": Lazy,
    "splits": lambda: {"train": pd.DataFrame(ROWS)},
}


@pytest.mark.parametrize("source", TABLES.values(), ids=TABLES)
def test_tables_and_lists_of_every_kind(source):
    assert pairs(source()) == [("a, b", 1), ("c", 2)]


def test_a_dataset_of_hugging_face_has_names_of_classes_and_splits():
    rows = [{"question": "a", "answer": 1}, {"question": "b", "answer": -1}]
    dataset = HuggingFace(rows, {"question": object(), "answer": ClassLabel()})
    assert pairs(dataset) == [("a", "two"), ("b", None)]
    assert pairs({"train": dataset, "test": dataset}, split="test") == [("a", "two"), ("b", None)]
    assert error_of({"train": dataset, "test": dataset}) == "The dict has the splits train, test: pass split='test'."
    assert error_of({"train": dataset}, split="dev").startswith("The dict has no split 'dev'; it has train")
    assert error_of(dataset, split="test") == "split= is for a DatasetDict; got HuggingFace."


def test_missing_values_of_every_kind_are_missing():
    rows = [{"question": "q", "answer": each} for each in (None, float("nan"), np.float64("nan"), pd.NaT, pd.NA)]
    assert [target for _text, target in pairs(rows)] == [None] * 5
    assert [target for _text, target in pairs(pd.DataFrame(rows, dtype=object))] == [None] * 5


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (pd.Series(["a"]), "A dataset has columns, and a Series is one; pass its to_frame()."),
        ({"question": "a"}, "got one dict; put it into a list if it is a record."),
        (["a"], "Sample 0 of the list is a str; give a Sample, or a dictionary of its fields."),
        ({"question": ["a"], "answer": []}, "The columns question, answer have different numbers of values."),
        (b"x", "A dataset is a file, samples, dictionaries or a table; got bytes."),
    ],
)
def test_what_is_no_table_says_what_to_pass(source, message):
    assert message in error_of(source, **QA)


def test_types_of_arrow_become_json():
    table = pa.table(
        {"question": ["a"], "answer": [date(2024, 1, 2)], "m": pa.array([[("k", 1)]], pa.map_("str", "i8"))}
    )
    (sample,) = Dataset.load(table, **QA, group="answer", metadata=["m"])
    assert (sample.target, sample.group, sample.metadata) == ("2024-01-02", "2024-01-02", {"m": {"k": 1}})


KINDS = [".jsonl", ".json", ".csv", ".tsv", ".csv.gz", ".parquet", ".jsonl.zst", ".json.xz"]
PIECES = st.sampled_from(
    [bytes([each]) for each in b"{}[]\"',;:\n\r\t \\\0\xff"]
    + [b"\xef\xbb\xbf", b"\xff\xfe", b"input", b"question", b"NaN", b"1e999", b"\\ud800", b"PAR1"]
    + [b'{"input": "a"}', b"input,target\na,1\n"]
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
@given(st.sampled_from(KINDS), st.lists(PIECES | st.binary(max_size=8), max_size=30).map(b"".join), st.booleans())
def test_only_documented_errors_leave_the_loaders(kind, content, is_mapped):
    suffix = Path(f"d{kind}").suffix
    name = write(f"d{kind}", compress(content, suffix) if suffix in (".gz", ".zst", ".xz") else content)
    with suppress(LLMDatasetError):
        dataset = Dataset.load(name, **({"input": "question"} if is_mapped else {}))
        assert all(isinstance(sample.input, str | dict) for sample in dataset)


CELLS = st.text(st.characters(codec="utf-8", exclude_characters="\0\r"), min_size=1, max_size=12).filter(
    lambda text: text.strip() == text
)


@given(
    st.lists(st.tuples(CELLS, CELLS), min_size=1, max_size=8), st.sampled_from(",;\t|"), st.sampled_from(["\n", "\r\n"])
)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=30)
def test_csv_survives_every_delimiter(rows, delimiter, end):
    frame = pd.DataFrame(rows, columns=["question", "answer"])
    frame.to_csv("d.csv", sep=delimiter, index=False, quoting=1, lineterminator=end)
    assert pairs("d.csv") == rows
