"""Frames keep their contract, comparisons are paired, and the words say what the numbers leave out."""

import json
from dataclasses import replace
from io import StringIO

import numpy as np
import pandas as pd
import pytest
from pydantic import BaseModel
from rich.console import Console

from llmkit.errors import LLMEvaluationError, LLMTimeout
from llmkit.evals import Sample, field_match, numeric_tolerance
from llmkit.evals.report.report import COMPARISON_COLUMNS, SAMPLE_COLUMNS, SUMMARY_COLUMNS
from llmkit.types import Route
from tests.support.eval_fakes import (
    SAMPLES,
    FakeExtract,
    MemoryStore,
    Sentiment,
    extraction,
    invalid,
    right,
    run,
    sentiment_task,
    stored_call,
)

ROUTES = ("ollama/a", "gemini/b")


class Number(BaseModel):
    n: float


def worse_on_b(call):
    if call.route == Route.parse("gemini/b") and "good" in call.text:
        return Sentiment(label="negative")
    return right(call)


def columns_of(frame):
    return {name: str(dtype) for name, dtype in frame.dtypes.items()}


def expected(columns):
    return {name: str(pd.Series([], dtype=dtype).dtype) for name, dtype in columns.items()}


async def failing_report(**options):
    def answer(call):
        if "bad" in call.text:
            raise invalid(call.route)
        if "awful" in call.text:
            raise LLMTimeout("slow")
        return worse_on_b(call)

    return await run(routes=ROUTES, extract=FakeExtract(answer), **options)


async def test_frames_have_the_promised_columns_and_types():
    for report in (await failing_report(), await run(sentiment_task(scorers=[]), routes=ROUTES)):
        scores = {f"score_{name}": "float64" for name in report.metrics}
        assert columns_of(report.summary()) == expected(SUMMARY_COLUMNS)
        assert columns_of(report.samples()) == expected(SAMPLE_COLUMNS | scores)
        assert columns_of(report.compare(*ROUTES)) == expected(COMPARISON_COLUMNS)


async def test_summary_in_three_views():
    summary = (await failing_report()).summary().set_index("variant")
    a, b = summary.loc["ollama/a"], summary.loc["gemini/b"]
    assert (a["n"], a["scored"], a["failed"], a["mean"], a["mean_failures_as_zero"]) == (4, 2, 2, 1.0, 0.5)
    assert (b["mean"], b["mean_failures_as_zero"]) == (0.5, 0.25)
    assert a["valid_first_try"] == pytest.approx(2 / 3)
    assert (a["requests"], a["input_tokens"], a["interval"]) == (4, 40, "wilson")


async def test_samples_say_what_is_missing():
    frame = (await failing_report()).samples().set_index(["variant", "sample_id"])
    good, awful = frame.loc[("ollama/a", "s0")], frame.loc[("ollama/a", "s3")]
    assert (good["input"], good["target"], good["output"]) == ("good", "positive", '{"label":"positive"}')
    assert good["valid_first_try"] is np.True_ or good["valid_first_try"] is True
    assert pd.isna(awful["output"])
    assert pd.isna(awful["input_tokens"])
    assert pd.isna(awful["valid_first_try"])
    assert pd.isna(awful["score_field_match"])


async def test_frames_survive_csv_parquet_and_json_lines(tmp_path):
    frame = (await failing_report()).samples()
    frame.to_csv(tmp_path / "f.csv")
    frame.to_json(tmp_path / "f.jsonl", orient="records", lines=True, date_format="iso")
    pytest.importorskip("pyarrow")
    frame.to_parquet(tmp_path / "f.parquet")
    pd.testing.assert_frame_equal(pd.read_parquet(tmp_path / "f.parquet"), frame)


def numbers_task(groups=None):
    samples = [
        Sample(str(number), float(number), id=str(number), group=groups and groups[number]) for number in range(12)
    ]
    return sentiment_task(
        dataset=samples, output_type=Number, scorers=[numeric_tolerance("n", absolute=0.5)], prompt="{input}"
    )


def off_on_b(call):
    shift = 1 if call.route == Route.parse("gemini/b") and int(call.text) < 6 else 0
    return extraction(Number(n=float(call.text) + shift), call.route)


async def test_compare_pairs_the_same_samples():
    report = await run(numbers_task(), ROUTES, extract=FakeExtract(off_on_b))
    row = report.compare(*ROUTES).iloc[0]
    assert (row["pairs"], row["left_out"], row["difference"], row["method"]) == (12, 0, 0.5, "mcnemar")
    assert row["p_value"] == pytest.approx(2 / 2**6)
    assert row["ci_low"] < 0.5 < row["ci_high"]
    back = report.compare(*reversed(ROUTES)).iloc[0]
    assert (back["difference"], back["p_value"]) == (-0.5, row["p_value"])


async def test_compare_clusters_by_sample_over_epochs_and_by_group():
    epochs = await run(numbers_task(), ROUTES, extract=FakeExtract(off_on_b), epochs=3)
    row = epochs.compare(*ROUTES).iloc[0]
    assert (row["pairs"], row["clusters"], row["method"]) == (36, 12, "clustered paired t")
    assert set(epochs.summary()["interval"]) == {"clustered wilson"}
    groups = [str(number % 4) if number < 8 else None for number in range(12)]
    grouped = await run(numbers_task(groups), ROUTES, extract=FakeExtract(off_on_b))
    assert grouped.compare(*ROUTES).iloc[0]["clusters"] == 8


async def test_compare_counts_failures_both_ways():
    row = (await failing_report()).compare(*ROUTES).iloc[0]
    assert (row["pairs"], row["left_out"]) == (2, 2)
    assert (row["difference"], row["difference_failures_as_zero"]) == (0.5, 0.25)


async def test_compare_with_a_baseline_of_another_run():
    before = await run(routes=["ollama/a"], extract=FakeExtract(lambda call: Sentiment(label="positive")))
    after = await run(routes=["ollama/a"])
    row = after.compare("ollama/a", baseline=before).iloc[0]
    assert (row["mean_a"], row["mean_b"], row["pairs"]) == (1.0, 0.5, 4)


async def test_compare_adjusts_for_several_metrics():
    def half(output, sample):
        return 0.5 if sample.id in ("s0", "s1") else 1.0 if output.label == "positive" else 0.1

    report = await run(
        sentiment_task(scorers=[field_match("label"), half]), ROUTES, extract=FakeExtract(worse_on_b), epochs=2
    )
    frame = report.compare(*ROUTES)
    assert list(frame["metric"]) == ["field_match", "half"]
    assert (frame["p_holm"] >= frame["p_value"]).all()
    assert list(report.compare(*ROUTES, metric="half")["metric"]) == ["half"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("ollama/a", "ollama/x"), "no variant 'ollama/x'; there are: ollama/a, gemini/b"),
        (("ollama/a", "gemini/b", "f1"), "no metric 'f1'; there are: field_match"),
        (("ollama/a",), "two variants"),
    ],
)
async def test_what_cannot_be_compared_says_what_can(arguments, message):
    report = await run(routes=ROUTES)
    with pytest.raises(LLMEvaluationError, match=message):
        report.compare(*arguments)


async def test_json_has_the_documented_keys_and_no_nan():
    report = await failing_report()
    document = json.loads(json.dumps(report.to_json(), allow_nan=False))
    assert set(document) == {
        "form", "run", "counts", "coverage", "work", "summary", "comparisons", "stopped", "in_doubt", "judges",
        "budget", "decision", "failures", "notes", "warnings", "provenance",
    }  # fmt: skip
    assert set(document["summary"][0]) == set(SUMMARY_COLUMNS)
    assert set(document["comparisons"][0]) == set(COMPARISON_COLUMNS)
    assert document["counts"] == {
        "SUCCEEDED": 4, "FAILED": 4, "SCORER_FAILED": 0, "NOT_RUN": 0, "IN_PROGRESS": 0,
    }  # fmt: skip
    assert document["work"] == {
        "reused": 0, "rescored": 0, "called": 8, "replayed": 0, "sent": 8, "shared": 0, "warm_ups": 0, "edited": 0,
        "workers": 0, "lost": 0, "lost_because": "",
    }  # fmt: skip


def shown(report, width=80):
    console = Console(file=StringIO(), width=width)
    console.print(report.table())
    return console.file.getvalue()


async def test_the_table_fits_80_columns():
    text = shown(await failing_report())
    assert max(map(len, text.splitlines())) <= 80
    assert "ollama/a  1.00 [0.34, 1.00]       2       2      67%   40/16    20/20" in text
    assert "8 requests sent." in text
    assert "4 samples failed (invalid_output 2, timeout 2)." in text


async def test_the_table_escapes_what_looks_like_markup():
    task = sentiment_task(prompts={"[red]": "{input}"})
    report = await run(task, ["ollama/a@[red]"], name="[bold]run[/bold]")
    text = shown(report)
    assert "[bold]run[/bold]" in text
    assert "ollama/a@[red]" in text


async def test_the_table_of_several_metrics_and_of_none():
    def half(output, sample):
        return 0.5

    text = shown(await run(sentiment_task(scorers=[field_match("label"), half])), width=120)
    assert text.count("ollama/a") == 1
    assert "half" in text
    assert "ollama/a       -       0" in shown(await run(sentiment_task(scorers=[])))


async def test_repr_is_short_and_says_what_happened():
    report = await failing_report()
    assert repr(report) == (
        "EvalReport('run', task sentiment: 4 SUCCEEDED, 4 FAILED)\n"
        "  ollama/a: field_match 1.00 [0.34, 1.00]\n"
        "  gemini/b: field_match 0.50 [0.09, 0.91]\n"
        "  1 of 4 samples failed on ollama/a: label: not one of them\n"
        "  1 of 4 samples failed on ollama/a: slow\n"
        "  1 of 4 samples failed on gemini/b: label: not one of them\n"
        "  1 of 4 samples failed on gemini/b: slow"
    )


async def test_notes_say_what_the_numbers_leave_out():
    store = MemoryStore()
    store.doubtful = (stored_call(), stored_call())
    notes = (await run(routes=ROUTES, store=store)).notes
    assert "2 calls in doubt: started but never finished, possibly billed." in notes


def asked(**by_route):
    """Extractions that were asked in a mode, with a schema hash, by provider."""

    def answer(call):
        mode, schema = by_route[str(call.route.provider)]
        return replace(extraction(right(call), call.route, mode=mode), schema_sha256=schema)

    return FakeExtract(answer)


@pytest.mark.parametrize(
    ("ollama", "gemini", "told"),
    [
        (("schema", "a" * 64), ("schema", "b" * 64), "ollama/a: schema, schema aaaaaaa; gemini/b: schema, schema bbb"),
        (("schema", "a" * 64), ("schema", None), "ollama/a: schema, schema aaaaaaa; gemini/b: schema, no schema sent"),
        (("schema", "a" * 64), ("prompted", "a" * 64), "schema, schema aaaaaaa; gemini/b: prompted, schema aaaaaaa"),
    ],
)
async def test_routes_that_were_asked_different_things_are_warned_of(ollama, gemini, told):
    report = await run(routes=ROUTES, extract=asked(ollama=ollama, gemini=gemini))
    (warning,) = report.warnings
    assert warning.startswith("The variants were sent different requests on 4 of 4 samples")
    assert told in warning
    assert warning in report.notes
    assert report.to_json()["warnings"] == [warning]
    assert warning in " ".join(shown(report).split())
    assert report.compare(*ROUTES).attrs["warnings"] == [warning]


async def test_routes_that_were_asked_the_same_are_not_warned_of():
    same = ("schema", "a" * 64)
    report = await run(routes=ROUTES, extract=asked(ollama=same, gemini=same))
    assert report.warnings == ()
    assert report.compare(*ROUTES).attrs["warnings"] == []
    assert not any("asked" in note for note in report.notes)
    # Of a failure it is not known what was asked, and results of older versions kept no hash.
    unknown = replace(report.results[0], outcome=None, schema_sha256="c" * 64)
    failed = replace(report.results[1], status="FAILED", output_mode=None, outcome=None)
    assert replace(report, results=(*report.results[2:], unknown, failed)).warnings == ()


async def test_a_baseline_that_was_asked_something_else_is_warned_of():
    before = await run(routes=("ollama/a",), extract=asked(ollama=("schema", "a" * 64)))
    after = await run(routes=("ollama/a",), extract=asked(ollama=("schema", "b" * 64)))
    (warning,) = after.compare("ollama/a", baseline=before).attrs["warnings"]
    assert "(ollama/a: schema, schema bbbbbbb; ollama/a of run: schema, schema aaaaaaa)" in warning
    assert after.warnings == ()


async def test_the_three_outcomes_are_shares_of_what_got_an_answer():
    outcomes = {"good": "first_try", "bad": "repaired", "fine": "reasked"}

    def answer(call):
        text = call.text.removeprefix("Text: ")
        if text not in outcomes:
            raise invalid(call.route)
        made = extraction(right(call), call.route)
        return replace(made, outcome=outcomes[text], valid_first_try=text == "good", schema_sha256="d" * 64)

    report = await run(extract=FakeExtract(answer))
    (row,) = report.summary().to_dict("records")
    assert {name: row[name] for name in ("first_try", "repaired", "reasked")} == {
        "first_try": 0.25, "repaired": 0.25, "reasked": 0.25,
    }  # fmt: skip
    assert row["valid_first_try"] == row["first_try"]
    frame = report.samples().set_index("sample_id")
    assert list(frame["outcome"].iloc[:3]) == ["first_try", "repaired", "reasked"]
    assert frame["schema_sha256"].iloc[0] == "d" * 64
    assert pd.isna(frame.loc["s3", "outcome"])
    silent = replace(report.results[0], status="FAILED", outcome=None, valid_first_try=None, output_mode=None)
    fewer = replace(report, results=(silent, *report.results[1:])).summary()
    assert list(fewer[["first_try", "repaired", "reasked"]].iloc[0]) == pytest.approx([0, 1 / 3, 1 / 3])
    older = replace(report, results=tuple(replace(each, outcome=None) for each in report.results[:3]))
    assert older.summary()[["first_try", "repaired", "reasked"]].isna().all(axis=None)


async def test_a_report_of_nothing():
    store = MemoryStore()
    report = await run(store=store, limit=1)
    empty = type(report)(run=report.run, results=())
    assert len(empty.summary()) == len(empty.samples()) == 0
    assert not empty.has_failures
    assert columns_of(empty.summary()) == expected(SUMMARY_COLUMNS)
    assert len(SAMPLES) == 4


# --- all pairs, order, raw answers --------------------------------------------------------------------------------


async def test_compare_without_arguments_compares_all_pairs_and_adjusts_for_all():
    report = await run(routes=("ollama/a", "gemini/b", "gemini/c"), extract=FakeExtract(worse_on_b))
    frame = report.compare()
    assert list(zip(frame["a"], frame["b"], strict=True)) == [
        ("ollama/a", "gemini/b"),
        ("ollama/a", "gemini/c"),
        ("gemini/b", "gemini/c"),
    ]
    for row in frame.to_dict("records"):
        (alone,) = report.compare(row["a"], row["b"]).to_dict("records")
        assert {**alone, "p_holm": None} == pytest.approx({**row, "p_holm": None}, nan_ok=True)
    assert frame["p_holm"].tolist() == [min(1.0, 3 * p) for p in frame["p_value"]]
    assert report.to_json()["comparisons"][0]["p_holm"] == frame["p_holm"][0]


async def test_compare_with_a_baseline_pairs_each_variant_with_its_namesake():
    report = await run(routes=ROUTES, extract=FakeExtract(worse_on_b))
    other = await run(routes=ROUTES, name="other")
    frame = report.compare(baseline=other)
    assert list(zip(frame["a"], frame["b"], strict=True)) == [(route, route) for route in ROUTES]


async def test_one_variant_alone_cannot_be_compared():
    with pytest.raises(LLMEvaluationError, match="Name two variants to compare; there are: ollama/a"):
        (await run(routes=("ollama/a",))).compare()


async def test_a_written_report_and_export_return_their_paths(tmp_path):
    report = await run()
    assert report.to_html(tmp_path / "r.html") == tmp_path / "r.html"
    assert report.export(str(tmp_path / "r.jsonl")) == tmp_path / "r.jsonl"


async def test_samples_are_in_the_order_of_the_dataset():
    samples = [Sample("good", "positive", id=name) for name in ("zebra", "s10", "s9", "ant")]
    report = await run(sentiment_task(dataset=samples), ROUTES, epochs=2)
    frame = report.samples()
    assert list(dict.fromkeys(frame["sample_id"])) == ["zebra", "s10", "s9", "ant"]
    assert frame["variant"].tolist()[:4] == [ROUTES[0], ROUTES[0], ROUTES[1], ROUTES[1]]
    # Without the dataset the order is that of the ids, with numbers as numbers.
    unknown = replace(report, dataset={}).samples()
    assert list(dict.fromkeys(unknown["sample_id"])) == ["ant", "s9", "s10", "zebra"]


@pytest.mark.slow
def test_a_failed_sample_has_its_raw_answer_and_its_requests_a_remark(tmp_path):
    from llmkit import Session
    from llmkit.evals.report.html.samples import build_page_data
    from llmkit.testing import OllamaServer, Reply

    def answer(request):
        return Reply('{"label": "grumpy"}' if "bad" in json.dumps(request.json) else '{"label": "positive"}')

    database = f"sqlite:///{tmp_path / 'a.db'}"
    with (
        OllamaServer(answer, models=["a"]) as server,
        Session("w", ollama_api_base=server.url, database_url=database) as session,
    ):
        report = session.evaluate(sentiment_task(), ["ollama/a"], name="run", progress=False)
    frame = report.samples().set_index("sample_id")
    assert frame.loc["s1", "status"] == "FAILED"
    assert frame.loc["s1", "raw_answer"] == '{"label": "grumpy"}'
    assert pd.isna(frame.loc["s0", "raw_answer"])
    attempts = report.attempts()
    failed = attempts[attempts["sample_id"] == "s1"]
    assert set(zip(failed["status"], failed["sample_status"], failed["sample_error_code"], strict=True)) == {
        ("SUCCEEDED", "FAILED", "invalid_output")
    }
    cases = {case["id"]: case for case in build_page_data(report, report.load_calls(), stable=False)["cases"]}
    remarks = [call.get("remark") for call in cases["s1"]["results"][0]["calls"]]
    assert remarks == ["answered, but no valid output came of it"] * len(remarks) != []
    assert "remark" not in cases["s0"]["results"][0]["calls"][0]
