"""A partial evaluation says so wherever a score stands."""

import io
import json
from dataclasses import replace

import pytest
from rich.console import Console

from llmkit.evals import Sample
from llmkit.evals.ci.gate import GateRules, check_gate
from llmkit.evals.ci.junit import render_run_junit
from llmkit.evals.ci.markdown import render_run_markdown
from llmkit.evals.report.html import render_page
from llmkit.evals.report.report import EvalReport
from tests.support.eval_fakes import run, sentiment_task

A, B = "ollama/a", "gemini/b"
STATED = "6 of 60 samples, 54 not run"


async def stopped(variants=(A,), finished=6, epochs=1) -> EvalReport:
    """A report as the store has it after a run that ended early: without the results that are not there."""
    samples = [Sample(f"good {number}", "positive", id=f"s{number}") for number in range(60)]
    whole = await run(sentiment_task(dataset=samples), variants, epochs=epochs)
    return replace(whole, work=None, results=tuple(r for label in variants for r in whole.of(label)[:finished]))


def as_table(report):
    console = Console(file=io.StringIO(), width=80)
    console.print(report.table())
    return " ".join(console.file.getvalue().split())


FORMS = {
    "repr": repr,
    "notebook": lambda report: report._repr_html_(),
    "terminal": as_table,
    "html": render_page,
    "markdown": lambda report: render_run_markdown([report]),
    "junit": lambda report: render_run_junit([report]),
    "json": lambda report: json.dumps(report.to_json()),
    "stable json": lambda report: json.dumps(report.to_json(stable=True)),
    "gate": lambda report: json.dumps(check_gate(report, GateRules(max_failed=0.5)).to_json()),
}


@pytest.mark.parametrize("form", FORMS)
async def test_a_partial_run_states_its_coverage(form):
    assert STATED in FORMS[form](await stopped())


@pytest.mark.parametrize("form", FORMS)
async def test_a_whole_run_does_not_mention_it(form):
    assert "not run" not in FORMS[form](await stopped(finished=60))


async def test_the_leaderboard_shows_it_in_the_row_of_the_score():
    page = render_page(await stopped())
    board = page[page.index('<section id="leaderboard"') : page.index('<section id="fields"')]
    assert "6 of 60" in board


async def test_the_summary_counts_what_is_not_there():
    report = await stopped()
    row = report.summary().iloc[0]
    assert (row["n"], row["scored"], row["not_run"]) == (60, 6, 54)
    assert report.counts["NOT_RUN"] == 54
    assert report.to_json()["coverage"] == {A: {"finished": 6, "total": 60, "in_progress": 0, "not_run": 54}}


async def test_results_that_are_placeholders_count_once():
    report = await stopped(finished=60)
    results = [*report.results[:6], *(replace(r, status="NOT_RUN", scores={}) for r in report.results[6:])]
    partial = replace(report, results=tuple(results))
    assert partial.counts["NOT_RUN"] == 54
    assert partial.summary().iloc[0]["not_run"] == 54
    assert STATED in as_table(partial)


async def test_variants_that_are_differently_far_are_named():
    report = await stopped((A, B))
    report = replace(report, results=report.results[:-2])
    notes = " ".join(report.notes)
    assert f"{A}: 6 of 60 samples, 54 not run" in notes
    assert f"{B}: 4 of 60 samples, 56 not run" in notes


async def test_epochs_count_as_often_as_they_run():
    report = await stopped(finished=90, epochs=2)
    assert report.coverage[A].text == "90 of 120 samples and epochs, 30 not run"


async def test_run_without_sample_count_is_not_partial():
    """Early versions stored no sample count."""
    report = await stopped()
    spec = {name: value for name, value in report.run.spec.items() if name != "samples"}
    assert not replace(report, run=replace(report.run, spec=spec)).coverage[A].is_partial


@pytest.mark.parametrize(("large", "is_noted"), [(36, True), (20, False)])
async def test_a_group_that_dominates_is_noted(large, is_noted):
    samples = [
        Sample(f"good {number}", "positive", id=f"s{number}", group="big" if number < large else f"g{number % 8}")
        for number in range(60)
    ]
    report = await run(sentiment_task(dataset=samples), (A,))
    note = f"Group 'big' has {large} of 60 samples, so it dominates means and widens their intervals."
    assert (note in report.notes) == is_noted


async def test_samples_that_did_not_run_count_as_missing():
    row = (await stopped()).missing().iloc[0]
    assert (row["n"], row["missing"], row["mean_excluded"]) == (60, 54, 1.0)
    assert (row["worst"], row["best"]) == pytest.approx((0.1, 1.0))
