"""Gates pass what they should and nothing else, and write the same bytes for the same results."""

import json
import re
from dataclasses import replace
from xml.etree import ElementTree as ET

import pytest

from llmkit.cli.main import run_command as llmkit
from llmkit.errors import LLMEvaluationError, LLMTimeout
from llmkit.evals import Sample, field_match
from llmkit.evals.ci.gate import GateRules, check_gate, match_variants
from llmkit.evals.ci.junit import render_gate_junit, render_run_junit
from llmkit.evals.ci.markdown import render_gate_markdown, render_run_markdown
from llmkit.testing import OllamaServer, Reply
from tests.support.eval_fakes import FakeExtract, MemoryStore, Sentiment, run, sentiment_task

A = "ollama/a"
SAMPLES = tuple(Sample(f"good {number}", "positive", id=f"s{number:03}") for number in range(60))


def wrong_on(count, failing=0):
    """Wrong answers to the first samples, and none to the last."""

    def answer(call):
        number = int(call.text.rpartition(" ")[2])
        if number >= len(SAMPLES) - failing:
            raise LLMTimeout("slow")
        return Sentiment(label="negative" if number < count else "positive")

    return FakeExtract(answer)


async def report(wrong=0, failing=0, samples=SAMPLES, routes=(A,), **options):
    return await run(sentiment_task(dataset=samples), routes, extract=wrong_on(wrong, failing), **options)


def gate(made, baseline, **rules):
    return check_gate(made, GateRules(**rules), baseline=baseline, variants=match_variants(made, baseline))


def failing_checks(found):
    return {check.name for check in found.checks if not check.passed}


async def test_a_regression_fails_and_chance_does_not():
    baseline = await report(wrong=2)
    assert failing_checks(gate(await report(wrong=20), baseline)) == {"regression"}
    assert gate(await report(wrong=4), baseline).passed
    assert gate(await report(), await report(wrong=20)).passed


async def test_a_margin_has_to_be_shown_and_not_only_not_refuted():
    baseline = await report(wrong=2)
    same = await report(wrong=2)
    assert gate(same, baseline, margin=0.1).passed
    assert gate(await report(wrong=5), baseline).passed
    assert failing_checks(gate(await report(wrong=5), baseline, margin=0.02)) == {"non_inferiority"}
    few = await report(samples=SAMPLES[:3])
    assert failing_checks(gate(few, await report(samples=SAMPLES[:3]), margin=0.1)) == {"non_inferiority"}


async def test_failures_count_as_wrong_unless_told_otherwise():
    baseline, failing = await report(), await report(failing=20)
    assert failing_checks(gate(failing, baseline)) == {"regression"}
    assert failing_checks(gate(failing, baseline, failures="excluded")) == {"coverage"}
    assert gate(failing, baseline, failures="excluded", max_left_out=0.4).passed


async def test_rules_of_the_run_alone():
    made = await report(wrong=6, failing=6)
    rules = {"minimums": {"field_match": 0.8}, "max_failed": 0.1}
    assert check_gate(made, GateRules(**rules)).passed
    assert failing_checks(check_gate(made, GateRules(minimums={"field_match": 0.81}))) == {"minimum"}
    assert check_gate(made, GateRules(minimums={"field_match": 0.88}, failures="excluded")).passed
    assert failing_checks(check_gate(made, GateRules(max_failed=0.09))) == {"failed_share"}
    assert check_gate(made, GateRules(**rules)).baseline is None


async def test_a_run_that_failed_as_a_whole_does_not_hold():
    baseline, down = await report(), await report(failing=60)
    assert failing_checks(gate(down, baseline)) == {"regression"}
    assert failing_checks(gate(down, baseline, margin=0.1)) == {"non_inferiority"}
    (check,) = check_gate(down, GateRules(minimums={"field_match": 0.8})).checks
    assert (check.passed, check.detail) == (False, "mean 0, at least 0.8")
    (check,) = check_gate(down, GateRules(minimums={"field_match": 0.8}, failures="excluded")).checks
    assert (check.passed, check.detail) == (False, "no score, at least 0.8")
    with pytest.raises(LLMEvaluationError, match="no sample in common"):
        gate(down, baseline, failures="excluded")
    with pytest.raises(LLMEvaluationError, match="no metric 'accuracy'; there are: field_match"):
        check_gate(down, GateRules(minimums={"accuracy": 0.8}))


async def test_runs_without_a_metric_in_common_are_not_compared():
    baseline, made = await report(), await run(sentiment_task(dataset=SAMPLES, scorers=[]), extract=wrong_on(0))
    with pytest.raises(LLMEvaluationError, match="no metric in common"):
        gate(made, baseline)


async def test_rules_that_check_nothing_are_refused():
    made = await report()
    with pytest.raises(LLMEvaluationError, match="would pass everything"):
        check_gate(made, GateRules())
    for rules in ({"margin": 0.02}, {"metrics": ("field_match",)}):
        with pytest.raises(LLMEvaluationError, match="need a baseline"):
            check_gate(made, GateRules(minimums={"field_match": 0.1}, **rules))


async def test_rules_of_the_run_alone_are_asked_of_the_routes_that_are_named():
    def answer(call):
        return Sentiment(label="negative" if call.route.model == "b" else "positive")

    made = await run(sentiment_task(dataset=SAMPLES), (A, "gemini/b"), extract=FakeExtract(answer))
    rules = GateRules(minimums={"field_match": 0.5})
    assert failing_checks(check_gate(made, rules)) == {"minimum"}
    assert check_gate(made, rules, only=(A,)).passed
    with pytest.raises(LLMEvaluationError, match="no variant 'x'"):
        check_gate(made, rules, only=("x",))


async def test_a_run_without_a_result_does_not_pass():
    made = replace(await report(), results=())
    with pytest.raises(LLMEvaluationError, match="has no result"):
        check_gate(made, GateRules(minimums={"field_match": 0.5}, max_failed=0.1))


async def test_junit_has_no_more_in_a_case_than_the_common_schema_knows():
    suite = ET.fromstring(render_run_junit([await report(failing=1)]))
    cases = {case.get("name"): [part.tag for part in case] for case in suite.iter("testcase")}
    assert cases["s000 (epoch 1)"] == ["system-out"]
    assert cases["s059 (epoch 1)"] == ["error"]
    assert {part for parts in cases.values() for part in parts} == {"system-out", "error"}
    assert suite.findtext("testcase/system-out") == "field_match: 1"


async def test_what_was_not_run_is_not_passed_over():
    baseline = await report()
    assert failing_checks(gate(await report(limit=30), baseline)) == {"coverage"}


async def test_a_gate_says_how_much_of_the_dataset_it_judges():
    part, whole = await report(limit=30), await report()
    rules = GateRules(minimums={"field_match": 0.5})
    assert check_gate(part, rules).notes == (
        f"{A}: 30 of 60 samples, 30 not run; only samples with a result are checked.",
    )
    assert check_gate(whole, rules).notes == ()


async def test_two_routes_of_one_run():
    def answer(call):
        return Sentiment(label="negative" if call.route.model == "b" and call.text < "Text: good 3" else "positive")

    made = await run(sentiment_task(dataset=SAMPLES), (A, "gemini/b"), extract=FakeExtract(answer))
    pairs = match_variants(made, None, "gemini/b", A)
    assert pairs == (("gemini/b", A),)
    assert failing_checks(check_gate(made, GateRules(), variants=pairs)) == {"regression"}
    assert match_variants(made, None, None, A) == (("gemini/b", A),)
    assert match_variants(made, made) == ((A, A), ("gemini/b", "gemini/b"))
    for arguments in [(None,), (None, A), (None, A, A)]:
        with pytest.raises(LLMEvaluationError, match="--baseline-route"):
            match_variants(made, *arguments)
    with pytest.raises(LLMEvaluationError, match="no variant 'x'"):
        match_variants(made, made, "x")


async def test_a_holm_adjusted_p_value_over_all_comparisons():
    task = sentiment_task(dataset=SAMPLES, scorers=[field_match("label", name=f"m{n}") for n in range(4)])
    baseline = await run(task, extract=wrong_on(0))
    made = await run(task, extract=wrong_on(7))
    found = gate(made, baseline)
    assert [row["p_holm"] for row in found.comparisons] == pytest.approx([4 * 2 / 2**7] * 4)
    assert found.passed
    assert not gate(made, baseline, metrics=("m1",)).passed


async def test_edited_samples_are_not_compared():
    edited = (replace(SAMPLES[0], target="negative"), *SAMPLES[1:])
    made, baseline = await report(), await report(samples=edited)
    with pytest.raises(LLMEvaluationError, match=r"edited between the two runs.*: s000\."):
        gate(made, baseline)
    with pytest.raises(LLMEvaluationError, match="edited between the two runs"):
        made.compare(A, baseline=baseline)


async def test_what_differs_between_the_runs_is_said():
    made = await run(sentiment_task(dataset=SAMPLES, prompt="T: {input}"), extract=wrong_on(0))
    other = sentiment_task(name="other", dataset=SAMPLES[:59], scorers=[field_match("label", normalise=True)])
    notes = " ".join(gate(made, await run(other, extract=wrong_on(0))).notes)
    for words in ("two tasks: sentiment and other", "changed since the baseline: prompt", "datasets differ", "scorers"):
        assert words in notes


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        ({"margin": -1.0}, "margin"),
        ({"margin": float("nan")}, "margin"),
        ({"alpha": 0.7}, "alpha"),
        ({"max_failed": 2.0}, "max_failed"),
        ({"max_left_out": float("nan")}, "max_left_out"),
        ({"failures": "ignored"}, "failures"),
    ],
)
def test_rules_that_cannot_be_are_refused(rules, message):
    with pytest.raises(LLMEvaluationError, match=message):
        GateRules(**rules)


async def test_unknown_metrics_are_refused():
    made = await report()
    with pytest.raises(LLMEvaluationError, match="no metric 'accuracy' in both runs; there are: field_match"):
        gate(made, made, metrics=("accuracy",))
    with pytest.raises(LLMEvaluationError, match="no metric 'accuracy'; there are"):
        check_gate(made, GateRules(minimums={"accuracy": 1}))
    with pytest.raises(LLMEvaluationError, match="no sample in common"):
        gate(made, await report(samples=[replace(each, id=f"x{each.id}") for each in SAMPLES]))


# --- documents ----------------------------------------------------------------------------------------------------


def hostile(call):
    if call.text.endswith("0"):
        raise LLMTimeout("<b>&\x00\x1b[31m]]> | `x`\n# heading")
    return Sentiment(label="positive")


async def test_two_runs_with_the_same_answers_give_the_same_bytes():
    documents = []
    for _ in range(2):
        made, baseline = await report(wrong=9, failing=2), await report(wrong=2, name="base")
        found = gate(made, baseline, margin=0.1, minimums={"field_match": 0.5})
        documents.append(
            [
                json.dumps(found.to_json()),
                render_gate_junit(found),
                render_gate_markdown(found),
                render_run_junit([made]),
                render_run_markdown([made]),
            ]
        )
    assert documents[0] == documents[1]


async def test_a_verdict_names_what_was_compared():
    made, baseline = await report(), await report(samples=SAMPLES[:59], name="base")
    found = gate(made, baseline)
    assert found.sides["run"]["dataset_sha256"] != found.sides["baseline"]["dataset_sha256"]
    for text in (render_gate_junit(found), render_gate_markdown(found).replace("\\", ""), json.dumps(found.to_json())):
        for side in (made, baseline):
            assert side.run.name in text
            assert side.run.task_sha256 in text
            assert side.run.dataset_sha256 in text
        assert made.run.spec["made_with"]["packages"]["llmkit"] in text
        assert "version of llmkit" in text
    of_one = check_gate(made, GateRules(max_failed=0.0))
    assert list(of_one.sides) == ["run"]
    assert "| What was checked | Run |" in render_gate_markdown(of_one)


async def test_junit_of_a_gate():
    found = gate(await report(wrong=30), await report(wrong=2, name="base"))
    suite = ET.fromstring(render_gate_junit(found))
    assert (suite.get("tests"), suite.get("failures"), suite.get("errors")) == ("2", "1", "0")
    (failure,) = suite.iter("failure")
    assert failure.get("type") == "regression"
    assert "difference -0.4667" in failure.get("message")


async def test_junit_and_markdown_survive_whatever_a_model_writes():
    samples = (*SAMPLES[:3], Sample("bad|`<x>\x07 0", "negative", id="id|<b>\n\x01"))
    made = await run(sentiment_task(dataset=samples), extract=FakeExtract(hostile), name="run | <i>")
    suite = ET.fromstring(render_run_junit([made]))
    assert (suite.get("tests"), suite.get("errors")) == ("4", "2")
    assert {case.get("name") for case in suite.iter("testcase")} >= {"s001 (epoch 1)", "id|<b>\n\ufffd (epoch 1)"}
    text = render_run_markdown([made])
    assert "<" not in text.replace("\\<", "")
    (row,) = [line for line in text.splitlines() if line.startswith("| ollama")]
    assert row.replace("\\|", "").count("|") == 9
    two = ET.fromstring(render_run_junit([made, made]))
    assert [suite.tag for suite in two] == ["testsuite"] * 2


async def test_markdown_of_a_gate():
    text = render_gate_markdown(gate(await report(wrong=30), await report(wrong=2, name="base")))
    assert text.startswith("## Gate failed: run against base\n")
    assert "| field\\_match | ollama/a | ollama/a | 60 | 0.500 | 0.967 | -0.467 \\[" in text
    assert "| FAIL | regression of field\\_match: ollama/a against ollama/a |" in text


# --- the command line ---------------------------------------------------------------------------------------------

TASK = """\
name: sentiment
dataset: sentiment.jsonl
prompt: "{input}"
output_schema: {properties: {label: {enum: [positive, negative]}}, required: [label]}
scorers: [exact_match]
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    lines = [json.dumps({"id": f"s{n:02}", "input": f"good {n}", "target": "positive"}) for n in range(30)]
    (tmp_path / "sentiment.jsonl").write_text("\n".join(lines), encoding="utf-8")
    (tmp_path / "task.yaml").write_text(TASK, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def evaluated(monkeypatch, name, wrong, database, *options):
    """Run the task against a server that is wrong on the first samples."""

    def answer(request):
        number = int(json.dumps(request.json).partition("good ")[2].partition('"')[0].split("\\")[0])
        return Reply(json.dumps({"label": "negative" if number < wrong else "positive"}))

    monkeypatch.setenv("LLM_DATABASE_URL", f"sqlite:///{database}")
    with OllamaServer(answer, models=["llama3.2"]) as server:
        monkeypatch.setenv("LLM_OLLAMA_API_BASE", server.url)
        files = ["--junit", f"{name}.xml"]
        return llmkit(["eval", "run", "task.yaml", "--routes", "ollama/llama3.2", "--name", name, *files, *options])


@pytest.mark.slow
def test_runs_are_compared_and_gated_by_exit_codes(folder, monkeypatch, capsys):
    assert evaluated(monkeypatch, "base", 1, folder / "a.db") == 0
    assert evaluated(monkeypatch, "worse", 15, folder / "a.db") == 0
    assert ET.parse(folder / "worse.xml").getroot().get("tests") == "30"
    capsys.readouterr()
    codes = {
        ("compare", "worse", "base"): 0,
        ("compare", "worse", "base", "--metric", "exact_match", "--margin", "0.02"): 1,
        ("compare", "base", "worse", "--margin", "0.02"): 0,
        ("gate", "worse", "base"): 1,
        ("gate", "base", "worse"): 0,
        ("gate", "worse", "--min", "exact_match=0.5", "--max-failed", "0"): 0,
        ("gate", "worse", "--min", "exact_match=0.6"): 1,
        ("gate", "worse"): 2,
        ("gate", "worse", "--route", "absent/x", "--min", "exact_match=0.1"): 2,
        ("gate", "worse", "--min", "exact_match=nan"): 2,
        ("gate", "worse", "absent"): 2,
        ("gate", "worse", "base", "--metric", "accuracy"): 2,
        ("gate", "worse", "--min", "exact_match"): 2,
        ("gate", "worse", "base", "--alpha", "2"): 2,
        ("gate", "worse", "base", "--junit", "absent/x.xml"): 2,
        ("compare", "worse"): 2,
    }
    assert {arguments: llmkit(["eval", *arguments]) for arguments in codes} == codes
    shown = capsys.readouterr()
    assert "FAIL" in shown.out
    assert re.search(r"baseline base: task sentiment \(task \w{12}, dataset \w{12}, .*\), llmkit \d", shown.out)
    assert "there are: worse, base" in shown.err


@pytest.mark.slow
def test_identical_answers_give_byte_identical_documents(folder, monkeypatch, capsys):
    found = []
    for place in ("one", "two"):
        (folder / place).mkdir()
        for name, wrong in (("base", 0), ("made", 1)):
            evaluated(monkeypatch, name, wrong, folder / place / "store.db", "--limit", "8")
        capsys.readouterr()
        files = ["--junit", f"{place}/gate.xml", "--markdown", f"{place}/gate.md"]
        assert llmkit(["eval", "gate", "made", "base", "--json", *files]) == 0
        found.append(
            [capsys.readouterr().out, *((folder / place / name).read_bytes() for name in ("gate.xml", "gate.md"))]
        )
    assert found[0] == found[1]
    document = json.loads(found[0][0])
    assert list(document) == [
        "form", "passed", "run", "baseline", "task", "rules", "comparisons", "checks", "notes", "sides",
    ]  # fmt: skip
    assert document["comparisons"][0]["difference"] == -0.125


async def test_a_report_from_the_store_gates_as_one_that_was_just_made():
    from llmkit.evals import load_report

    store = MemoryStore()
    made = await report(wrong=9, store=store)
    loaded = await load_report(store, "w", "run")
    base = await report(wrong=1)
    assert gate(loaded, base).to_json() == gate(made, base).to_json()


def test_a_run_without_a_name_says_how_to_go_on_with_it(folder, monkeypatch, capsys):
    monkeypatch.setenv("LLM_DATABASE_URL", f"sqlite:///{folder / 'a.db'}")
    with OllamaServer(json.dumps({"label": "positive"}), models=["llama3.2"]) as server:
        monkeypatch.setenv("LLM_OLLAMA_API_BASE", server.url)
        command = ["eval", "run", "task.yaml", "--routes", "ollama/llama3.2", "--limit", "3"]
        assert llmkit(command) == 0
        (name,) = re.findall(r"pass --name (sentiment-\S+)", capsys.readouterr().err)
        assert llmkit([*command, "--name", name]) == 0
    assert len(server.calls) == 3
