"""A metric of which less is better is treated so wherever a side is called better; a failure is never the best."""

import math
import re

import pytest

from llmkit.errors import LLMEvaluationError, LLMTimeout
from llmkit.evals import Sample, Score, exact_match, load_tasks, lower_is_better, regex_match
from llmkit.evals.ci.gate import GateRules, check_gate, match_variants
from llmkit.evals.ci.markdown import render_gate_markdown, render_run_markdown
from llmkit.evals.scorers import is_lower_better
from tests.support.eval_fakes import FakeExtract, MemoryStore, Sentiment, run, sentiment_task

SAMPLES = tuple(Sample(f"good {number}", "positive", id=f"s{number:03}") for number in range(60))


@lower_is_better
def errors(output, sample):
    return Score(float(output.label != sample.target), parts={"twice": 2.0 * (output.label != sample.target)})


@lower_is_better
def seconds(output, sample):
    return 5.0 if output.label != sample.target else 2.0


async def report(wrong=0, failing=0, scorers=(errors,), routes=("ollama/a",), **options):
    def answer(call):
        number = int(call.text.rpartition(" ")[2])
        if number >= len(SAMPLES) - failing:
            raise LLMTimeout("slow")
        worse = wrong if call.route.model == "a" else 0
        return Sentiment(label="negative" if number < worse else "positive")

    task = sentiment_task(dataset=SAMPLES, scorers=scorers)
    return await run(task, routes, extract=FakeExtract(answer), **options)


def failing_checks(made, baseline, **rules):
    gate = check_gate(
        made, GateRules(metrics=("errors",), **rules), baseline=baseline, variants=match_variants(made, baseline)
    )
    return {check.name for check in gate.checks if not check.passed}


async def test_more_errors_are_a_regression_and_fewer_are_none():
    few, many = await report(wrong=2), await report(wrong=20)
    assert failing_checks(many, few) == {"regression"}
    assert failing_checks(few, many) == set()
    assert failing_checks(many, few, margin=0.1) == {"non_inferiority"}
    assert failing_checks(few, many, margin=0.1) == set()


async def test_the_bound_is_that_of_the_gain():
    few, many = await report(wrong=2), await report(wrong=20)
    gate = check_gate(many, GateRules(margin=0.1), baseline=few, variants=match_variants(many, few))
    row = next(row for row in gate.comparisons if row["metric"] == "errors")
    assert row["difference"] == pytest.approx(0.3)
    assert row["lower_bound"] < -0.3
    assert row["lower_is_better"]


async def test_a_failure_counts_as_the_worst_and_not_as_the_best():
    whole, failing = await report(), await report(failing=20)
    assert failing_checks(failing, whole) == {"regression"}
    row = failing.summary().set_index("metric").loc["errors"]
    assert row["mean"] == 0
    assert row["mean_failures_as_zero"] == pytest.approx(20 / 60)
    assert failing.compare("ollama/a", baseline=whole, metric="errors")["difference_failures_as_zero"][
        0
    ] == pytest.approx(1 / 3)
    missing = failing.missing().set_index("metric").loc["errors"]
    assert (missing["best"], missing["worst"]) == (0, pytest.approx(1 / 3))
    assert missing["mean_as_failures"] == pytest.approx(1 / 3)


async def test_where_the_worst_is_unknown_no_number_is_made_up():
    whole, failing = await report(scorers=[seconds]), await report(failing=20, scorers=[seconds])
    assert math.isnan(failing.summary()["mean_failures_as_zero"][0])
    assert whole.summary()["mean_failures_as_zero"][0] == 2
    pairs = match_variants(failing, whole)
    with pytest.raises(LLMEvaluationError, match="--failures excluded"):
        check_gate(failing, GateRules(), baseline=whole, variants=pairs)
    rules = GateRules(failures="excluded", max_left_out=0.5)
    assert check_gate(failing, rules, baseline=whole, variants=pairs).passed


async def test_a_maximum_is_asked_of_it_and_a_minimum_of_the_others():
    made = await report(wrong=6, scorers=[errors, exact_match()])
    assert check_gate(made, GateRules(maximums={"errors": 0.1}, minimums={"exact_match": 0.9})).passed
    assert not check_gate(made, GateRules(maximums={"errors": 0.09})).passed
    for rules in (GateRules(minimums={"errors": 0.1}), GateRules(maximums={"exact_match": 0.1})):
        with pytest.raises(LLMEvaluationError, match="is better: set a m"):
            check_gate(made, rules)


async def test_the_leaderboard_begins_with_the_fewest(tmp_path):
    made = await report(wrong=20, routes=("ollama/a", "gemini/b"))
    made.to_html(tmp_path / "report.html")
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    board = text.partition('id="leaderboard"')[2].partition("</section>")[0]
    assert board.index("gemini/b") < board.index("ollama/a")
    assert "errors (less is better)" in board
    assert re.search(r'class="worse">▲ </span><span class="worse why"[^>]*>\+0\.333', text)


async def test_a_repeat_is_right_without_an_error():
    rows = (await report(wrong=20, epochs=2)).repeats(2).set_index("metric")
    assert rows.loc["errors", "pass_hat_k"] == pytest.approx(40 / 60)
    assert rows.loc["errors.twice", "pass_hat_k"] == pytest.approx(40 / 60)


async def test_readers_are_told():
    made = await report(wrong=2, scorers=[errors, exact_match()])
    assert made.lower_is_better == {"errors", "errors.twice"}
    assert "Less is better: errors, errors.twice." in made.notes
    assert "Less is better: errors, errors.twice." in render_run_markdown([made])
    gate = check_gate(made, GateRules(), baseline=await report(), variants=(("ollama/a", "ollama/a"),))
    assert "Less is better: errors" in render_gate_markdown(gate)
    assert list(made.summary()["lower_is_better"]) == [True, True, False]


def test_any_scorer_can_be_declared_so_and_stored_answers_need_no_new_score():
    plain = sentiment_task(scorers=[regex_match("neg.*")])
    turned = sentiment_task(scorers=[lower_is_better(regex_match("neg.*"))])
    assert turned.scorers_sha256 == plain.scorers_sha256
    assert [is_lower_better(task.scorer_objects[0]) for task in (plain, turned)] == [False, True]

    class Own:
        name = "own"

        def __call__(self, output, sample):
            return 0.0

    with pytest.raises(LLMEvaluationError, match="Give Own the attribute lower_is_better = True"):
        lower_is_better(Own())
    Own.lower_is_better = True
    assert is_lower_better(sentiment_task(scorers=[Own()]).scorer_objects[0])


def test_a_task_that_is_data_says_it_as_an_option(tmp_path):
    (tmp_path / "data.jsonl").write_text('{"input": "x", "target": "y"}\n', encoding="utf-8")
    text = """\
name: t
dataset: data.jsonl
prompt: "{input}"
output_schema: {properties: {text: {type: string}}, required: [text]}
scorers:
  - regex_match: {pattern: "sorry", whole: false, lower_is_better: VALUE}
"""
    file = tmp_path / "task.yaml"
    file.write_text(text.replace("VALUE", "true"), encoding="utf-8")
    (task,) = load_tasks(file)
    assert is_lower_better(task.scorer_objects[0])
    file.write_text(text.replace("VALUE", "maybe"), encoding="utf-8")
    with pytest.raises(LLMEvaluationError, match=r"task.yaml:6: scorers.0.regex_match.lower_is_better: .*true or"):
        load_tasks(file)


async def test_a_direction_declared_after_the_run_began_counts():
    store = MemoryStore()
    plain, turned = (
        sentiment_task(scorers=[scorer]) for scorer in (regex_match("neg.*"), lower_is_better(regex_match("neg.*")))
    )
    first = await run(plain, ("ollama/a",), store=store, name="turning")
    second = await run(turned, ("ollama/a",), store=store, name="turning")
    assert (first.lower_is_better, second.lower_is_better) == (frozenset(), {"regex_match"})
