"""Runs travel between stores as files, whole, and a file that is none is refused with its line."""

import json
import os
import re
import stat
import tracemalloc
from dataclasses import replace

import pytest

from llmkit.cli.main import run_command as llmkit
from llmkit.cli.output import write_text
from llmkit.errors import LLMEvaluationError, LLMTimeout
from llmkit.evals import Score, load_report
from llmkit.evals.export import import_run
from llmkit.testing import OllamaServer, Reply
from tests.support.eval_fakes import FakeExtract, MemoryStore, right, run, sentiment_task

KINDS = ("run.jsonl", "run.parquet")


def mixed(call):
    if "bad" in call.text:
        raise LLMTimeout("slow \x00 ü")
    return right(call)


def reasoned(output, sample):
    return Score(0.25, "why", {"part": 1})


async def made(store=None, **options):
    task = sentiment_task(scorers=[reasoned])
    return await run(task, extract=FakeExtract(mixed), store=store or MemoryStore(), **{"epochs": 2} | options)


@pytest.mark.parametrize("file", KINDS)
async def test_a_run_arrives_as_it_left(file):
    report, store = await made(), MemoryStore()
    report.export(file)
    arrived = await import_run(store, "elsewhere", file)
    loaded = await load_report(store, "elsewhere", "run")
    assert arrived.id != report.run.id
    assert [replace(each, eval_run_id=report.run.id) for each in loaded.results] == list(report.results)
    assert loaded.run.task_sha256 == report.run.task_sha256
    assert loaded.summary().equals(report.summary())


@pytest.mark.parametrize("file", KINDS)
async def test_an_import_can_be_repeated_and_takes_no_other_run_s_name(file):
    (await made()).export(file)
    store = MemoryStore()
    first, again = [await import_run(store, "w", file) for _ in range(2)]
    assert first.id == again.id
    assert len(await store.list_results(first.id)) == 8
    other = MemoryStore()
    await made(other, epochs=1)
    with pytest.raises(LLMEvaluationError, match="another evaluation 'run'"):
        await import_run(other, "w", file)
    assert (await import_run(other, "w", file, name="baseline")).name == "baseline"


async def test_what_did_not_run_is_not_exported(tmp_path):
    report = await made()
    unsettled = replace(report, results=(*report.results, replace(report.results[0], epoch=9, status="NOT_RUN")))
    unsettled.export("run.jsonl")
    assert len((tmp_path / "run.jsonl").read_text().splitlines()) == 1 + 8


async def test_half_a_character_stays_in_json_and_becomes_a_question_mark_in_parquet():
    report = await made()
    broken = replace(report, results=(replace(report.results[0], error_message="\udc00"),))
    for file, text in zip(KINDS, ("\udc00", "?"), strict=True):
        broken.export(file)
        store = MemoryStore()
        arrived = await import_run(store, "w", file)
        assert [result.error_message for result in await store.list_results(arrived.id)] == [text]


async def test_nothing_is_written_over(tmp_path):
    report = await made()
    report.export("run.jsonl")
    with pytest.raises(LLMEvaluationError, match="exists already"):
        report.export("run.jsonl")
    with pytest.raises(LLMEvaluationError, match="cannot be written"):
        report.export(tmp_path / "absent" / "run.jsonl")
    with pytest.raises(LLMEvaluationError, match=r"kept as \.jsonl or \.parquet"):
        report.export("run.csv")


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda lines: [], "run.jsonl is empty"),
        (lambda lines: lines[1:], "run.jsonl, line 1: this is no run of the form llmkit-run-1"),
        (lambda lines: [lines[0], "{"], "run.jsonl, line 2: not JSON"),
        (lambda lines: [lines[0], "[" * 100_000], "run.jsonl, line 2: not JSON"),
        (lambda lines: [lines[0], lines[1].replace('"epoch": 0', '"epoch": "x"')], "run.jsonl, line 2: epoch: "),
        (
            lambda lines: [lines[0], lines[1].replace('"SUCCEEDED"', '"GREAT"')],
            "run.jsonl, line 2: status: there is no 'GREAT'; a stored result is SUCCEEDED, FAILED, SCORER_FAILED",
        ),
        (lambda lines: [lines[0], "{}"], "run.jsonl, line 2: eval_run_id: "),
        (lambda lines: ['{"form": "llmkit-run-1"}'], "run.jsonl, line 1: "),
    ],
)
async def test_a_file_that_is_no_run_is_refused_with_its_line(tmp_path, edit, message):
    (await made()).export("run.jsonl")
    file = tmp_path / "run.jsonl"
    file.write_text("\n".join(edit(file.read_text().splitlines())), encoding="utf-8")
    store = MemoryStore()
    with pytest.raises(LLMEvaluationError) as caught:
        await import_run(store, "w", file)
    assert str(caught.value).startswith(message)
    assert store.runs == {}


@pytest.mark.parametrize("file", [42, None, b"run.jsonl", ["run.jsonl"]])
async def test_what_is_no_path_is_refused_by_its_type(file):
    with pytest.raises(LLMEvaluationError, match=rf"path of a .jsonl or .parquet file; got {type(file).__name__}"):
        await import_run(MemoryStore(), "w", file)
    with pytest.raises(LLMEvaluationError, match=rf"got {type(file).__name__}"):
        (await made()).export(file)


@pytest.mark.parametrize("name", [3, "", " ", "two\nlines", "x" * 121])
async def test_an_import_takes_the_names_that_an_evaluation_takes(name):
    (await made()).export("run.jsonl")
    store = MemoryStore()
    with pytest.raises(LLMEvaluationError, match="one line of 1 to 120 characters"):
        await import_run(store, "w", "run.jsonl", name=name)
    assert store.runs == {}


async def test_a_parquet_file_that_is_no_run_is_refused(tmp_path):
    import pandas as pd

    pd.DataFrame({"a": [1]}).to_parquet("run.parquet")
    with pytest.raises(LLMEvaluationError, match="no run of the form"):
        await import_run(MemoryStore(), "w", "run.parquet")
    (tmp_path / "run.parquet").write_bytes(b"PAR1")
    with pytest.raises(LLMEvaluationError, match="is not a Parquet file"):
        await import_run(MemoryStore(), "w", "run.parquet")
    with pytest.raises(LLMEvaluationError, match="cannot be read"):
        await import_run(MemoryStore(), "w", "absent.jsonl")


def test_a_baseline_is_kept_as_a_file_and_gated_against(tmp_path, monkeypatch, capsys):
    from llmkit.session import Session

    monkeypatch.setenv("LLM_DATABASE_URL", f"sqlite:///{tmp_path / 'a.db'}")
    server = OllamaServer([Reply(json.dumps({"label": "positive"}))], models=["a"])
    with server, Session(ollama_api_base=server.url) as session:
        session.evaluate(sentiment_task(), ["ollama/a"], name="run", progress=False)
    assert llmkit(["eval", "export", "run", "base.parquet"]) == 0
    assert llmkit(["eval", "export", "run", "base.parquet"]) == 2
    assert llmkit(["eval", "import", "base.parquet"]) == 2
    assert llmkit(["eval", "import", "base.parquet", "--name", "base"]) == 0
    capsys.readouterr()
    assert llmkit(["eval", "gate", "run", "base", "--json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)["comparisons"]
    assert (row["pairs"], row["difference"], row["left_out"]) == (4, 0, 0)


def edit_rows(path, edit):
    """Apply a change to the second row of a JSON Lines file."""
    lines = path.read_text().splitlines()
    lines[2] = json.dumps(json.loads(lines[2]) | edit)
    path.write_text("\n".join(lines))


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        ({"eval_run_id": "0192f0c1-2345-7000-8000-000000000001"}, "eval_run_id: this row belongs to another run"),
        ({"input_tokens": -1}, "input_tokens: -1 is no count"),
        ({"output_tokens": 10**30}, "output_tokens: 1e+30 is no count"),
        ({"requests": 2**63}, "requests: 9.22e+18 is no count"),
        ({"epoch": -2}, "epoch: -2 is no count"),
        ({"epoch": 10**12}, "epoch: there are no 1e+12 repeats"),
        ({"latency_ms": float("inf")}, "latency_ms: inf is no time"),
        ({"latency_ms": -1.0}, "latency_ms: -1.0 is no time"),
        ({"scores": {"reasoned": float("nan")}}, "scores: that of 'reasoned' is not finite"),
        ({"scores": {"reasoned": float("inf")}}, "scores: that of 'reasoned' is not finite"),
    ],
)
async def test_a_crafted_row_is_refused_and_nothing_is_stored(tmp_path, edit, message):
    (await made()).export("run.jsonl")
    edit_rows(tmp_path / "run.jsonl", edit)
    store = MemoryStore()
    with pytest.raises(LLMEvaluationError, match=f"run.jsonl, line 3: {re.escape(message)}"):
        await import_run(store, "w", "run.jsonl")
    assert store.runs == {}


def grow_parquet(path, rows, **columns):
    """Add columns to a Parquet file, and repeat its rows."""
    import pyarrow as pa
    from pyarrow import parquet

    table = parquet.read_table(path)
    (first,) = table.slice(0, 1).to_pylist()
    grown = pa.table({name: pa.array([value] * rows) for name, value in (first | columns).items()})
    parquet.write_table(grown.replace_schema_metadata(table.schema.metadata), path, compression="zstd")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("rows", "columns"),
    [
        (3_000, {"output_json": json.dumps("x" * 100_000)}),  # one string, three thousand times
        (3_000, {"colour": "x" * 100_000}),  # in a column that no run has
        (500_000, {}),  # many rows of nothing
    ],
)
async def test_a_small_parquet_file_that_decodes_to_much_is_refused(tmp_path, monkeypatch, rows, columns):
    monkeypatch.setenv("LLM_MAX_FILE_MB", "50")
    (await made()).export("run.parquet")
    grow_parquet(tmp_path / "run.parquet", rows, **columns)
    assert (tmp_path / "run.parquet").stat().st_size < 1_000_000
    tracemalloc.start()
    try:
        with pytest.raises(LLMEvaluationError, match=r"run\.parquet decodes to more than 50 MB"):
            await import_run(MemoryStore(), "w", "run.parquet")
        assert tracemalloc.get_traced_memory()[1] < 150_000_000
    finally:
        tracemalloc.stop()


async def test_nested_columns_are_refused(tmp_path):
    (await made()).export("run.parquet")
    grow_parquet(tmp_path / "run.parquet", 1, warnings=[["a"]])
    with pytest.raises(LLMEvaluationError, match="column 'warnings' is nested"):
        await import_run(MemoryStore(), "w", "run.parquet")


async def test_a_long_jsonl_file_is_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("LLM_MAX_FILE_MB", "1")
    (await made()).export("run.jsonl")
    (await made()).export("usual.jsonl")
    with (tmp_path / "run.jsonl").open("a") as file:
        file.write("x" * 2_000_000)  # a line without an end
    with pytest.raises(LLMEvaluationError, match=r"run\.jsonl decodes to more than 1 MB"):
        await import_run(MemoryStore(), "w", "run.jsonl")
    assert (await import_run(MemoryStore(), "w", "usual.jsonl")).name == "run"


def test_an_existing_workspace_that_only_the_file_names_is_refused(tmp_path, monkeypatch, capsys):
    from llmkit.session import Session

    monkeypatch.setenv("LLM_DATABASE_URL", f"sqlite:///{tmp_path / 'a.db'}")
    server = OllamaServer([Reply(json.dumps({"label": "positive"}))], models=["a"])
    with server, Session("colleagues", ollama_api_base=server.url) as session:
        session.evaluate(sentiment_task(), ["ollama/a"], name="run", progress=False)
        session.report("run").export("run.jsonl")
    assert llmkit(["eval", "import", "run.jsonl", "--name", "planted"]) == 2
    assert "exists and is not yours" in " ".join(capsys.readouterr().err.split())
    assert llmkit(["eval", "import", "run.jsonl", "--name", "mine", "--workspace", "lab"]) == 0
    assert llmkit(["eval", "import", "run.jsonl", "--name", "theirs", "--yes"]) == 0
    with Session("colleagues") as theirs, Session("lab") as ours:
        assert theirs.report("theirs").counts == ours.report("mine").counts
        with pytest.raises(LLMEvaluationError, match="no evaluation 'planted'"):
            theirs.report("planted")


def test_a_new_workspace_is_that_of_the_file(tmp_path, monkeypatch):
    from llmkit.session import Session

    server = OllamaServer([Reply(json.dumps({"label": "positive"}))], models=["a"])
    monkeypatch.setenv("LLM_DATABASE_URL", f"sqlite:///{tmp_path / 'a.db'}")
    with server, Session("colleagues", ollama_api_base=server.url) as session:
        session.evaluate(sentiment_task(), ["ollama/a"], name="run", progress=False)
        session.report("run").export("run.parquet")
    monkeypatch.setenv("LLM_DATABASE_URL", f"sqlite:///{tmp_path / 'b.db'}")
    assert llmkit(["eval", "import", "run.parquet"]) == 0
    with Session("colleagues") as session:
        assert session.report("run").counts["SUCCEEDED"] == 4


async def test_documents_that_are_made_to_be_shown_have_the_mode_that_the_umask_says(tmp_path):
    report = await run()
    usual = os.umask(0o027)
    try:
        report.export(tmp_path / "run.jsonl")
        report.to_html(tmp_path / "run.html")
        write_text(tmp_path / "run.xml", "<testsuites/>")
    finally:
        os.umask(usual)
    assert {stat.S_IMODE(file.stat().st_mode) for file in tmp_path.glob("run.*")} == {0o640}
