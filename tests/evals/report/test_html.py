"""The HTML report is one file that loads nothing, holds every sample, and lets no model write markup."""

from __future__ import annotations

import gzip
import hashlib
import json
import re
from base64 import b64decode, b64encode
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmkit import Session
from llmkit.cli.main import run_command
from llmkit.errors import LLMEvaluationError
from llmkit.eval_ports import RecordedCall
from llmkit.evals import Sample, Score
from llmkit.evals.ci.junit import render_run_junit
from llmkit.evals.ci.markdown import render_run_markdown
from llmkit.evals.report.html import render_page
from llmkit.evals.report.html.fields import is_different, split_by_field, to_display_text
from llmkit.evals.report.report import ATTEMPT_COLUMNS, EvalReport
from llmkit.testing import Fault, GeminiServer, OllamaServer, Reply
from llmkit.types import AttemptStatus, Route, RunStatus, ServedFrom
from tests.support.eval_fakes import (
    SAMPLES,
    FakeExtract,
    Sentiment,
    attempt,
    invalid,
    right,
    run,
    sentiment_task,
)

ROUTES = ("ollama/llama3.2", "gemini/gemini-2.5-flash")
HOSTILE = "</script><img src=x onerror=alert(1)>\u2028<!--{x}&amp;'\""
# What only a scorer can say: a NUL, and half of a character.
WORSE = f"{HOSTILE}\x00\ud83d"


class Page(HTMLParser):
    """What a browser would make of a report."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.inside: list[str] = []
        self.texts: dict[str, list[str]] = {}
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self.inside.append(f"{tag}#{dict(attrs).get('id', '')}")

    def handle_endtag(self, tag: str) -> None:
        while self.inside and self.inside.pop().partition("#")[0] != tag:
            pass

    def handle_data(self, data: str) -> None:
        self.texts.setdefault(self.inside[-1] if self.inside else "", []).append(data)

    def text_of(self, place: str) -> str:
        return "".join(self.texts.get(place, ()))

    @property
    def data(self) -> dict:
        return json.loads(gzip.decompress(b64decode(self.text_of("script#data"))))

    @property
    def visible(self) -> str:
        hidden = ("script#", "script#data", "style#")
        return "\n".join("".join(parts) for place, parts in self.texts.items() if place not in hidden)


def page_of(report: EvalReport, **options: bool) -> Page:
    return Page(render_page(report, **options))


def worse_on_b(call):
    if call.route == Route.parse("gemini/b") and "good" in call.text:
        return Sentiment(label="negative")
    if "awful" in call.text:
        raise invalid(call.route)
    return right(call)


async def small(**options) -> EvalReport:
    return await run(options.pop("task", None), ("ollama/a", "gemini/b"), extract=FakeExtract(worse_on_b), **options)


# --- the file -----------------------------------------------------------------------------------------------------


async def test_the_file_loads_nothing():
    """Its policy allows its own script and style only."""
    page = page_of(await small())
    policy = next(each["content"] for tag, each in page.tags if each.get("http-equiv") == "Content-Security-Policy")

    def named(text: str) -> str:
        return f"'sha256-{b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"

    script, style = named(page.text_of("script#")), named(page.text_of("style#"))
    assert policy == (
        f"default-src 'none'; script-src {script}; style-src {style}; base-uri 'none'; form-action 'none'"
    )
    for tag, attributes in page.tags:
        assert tag not in {"link", "iframe", "object", "embed", "img", "base"}
        assert not {name for name in attributes if name.startswith("on") or name in {"style", "src", "action"}}
        assert (attributes.get("href") or "#").startswith("#")


async def test_anchors_and_labels_lead_somewhere():
    page = page_of(await small())
    ids = [each["id"] for _tag, each in page.tags if "id" in each]
    assert len(ids) == len(set(ids))
    linked = {each["href"][1:] for tag, each in page.tags if tag == "a"}
    named = {each["aria-labelledby"] for _tag, each in page.tags if "aria-labelledby" in each}
    assert linked | named <= set(ids)
    assert all(each.get("aria-label") for tag, each in page.tags if tag == "svg")


async def test_what_is_hidden_for_the_eye_in_a_table_that_scrolls_does_not_widen_the_page():
    style = page_of(await small()).text_of("style#")
    rules = {name.strip(): rule for name, rule in re.findall(r"^([^@{}\n]+)\{([^}]*)\}", style, re.MULTILINE)}
    assert "position: absolute" in rules[".hidden"]
    assert {"overflow-x: auto", "position: relative"} <= {each.strip() for each in rules[".wide"].split(";")}


async def test_a_run_of_one_route_has_no_link_to_comparisons():
    page = page_of(await run(routes=("ollama/a",)))
    ids = {each["id"] for _tag, each in page.tags if "id" in each}
    assert {each["href"][1:] for tag, each in page.tags if tag == "a"} <= ids


async def test_what_datasets_models_and_scorers_say_stays_text():
    class Free(Sentiment):
        label: str  # type: ignore[assignment]

    def say(output, sample):
        if sample.id.endswith("1"):
            raise ValueError(WORSE)
        return Score(0.0, detail=WORSE)

    samples = [Sample(f"{HOSTILE}{n}", HOSTILE, id=f"{HOSTILE}{n}", group=HOSTILE) for n in range(3)]
    task = sentiment_task(dataset=samples, output_type=Free, scorers=[say], system=HOSTILE)

    def answer(call):
        if call.text.endswith("2"):
            raise LLMEvaluationError(HOSTILE)
        return Free(label=f"<b>{HOSTILE}")

    report = await run(task, ("ollama/a",), extract=FakeExtract(answer), name="<script>alert(1)</script>")
    text = render_page(report).encode("utf-8", "replace").decode()
    page = Page(text)
    assert text.count("</script>") == 2
    assert [tag for tag, _ in page.tags].count("script") == 2
    assert not {"img", "b"} & {tag for tag, _ in page.tags}
    first, second, third = page.data["cases"]
    assert (first["id"], first["input"], first["group"]) == (f"{HOSTILE}0", f"{HOSTILE}0", HOSTILE)
    assert first["target"] == [HOSTILE]
    assert first["results"][0]["values"] == [f"<b>{HOSTILE}"]
    assert first["results"][0]["details"] == {"say": WORSE.replace("\ud83d", r"\ud83d")}
    assert WORSE.replace("\ud83d", r"\ud83d") in second["results"][0]["problems"]["say"]
    assert HOSTILE in third["results"][0]["message"]
    assert "<script>alert(1)</script>" in page.visible


async def test_the_file_of_many_samples_stays_small():
    samples = [Sample(f"good coffee, number {n}", "positive", id=f"s{n}") for n in range(400)]
    report = await run(sentiment_task(dataset=samples), ("ollama/a", "gemini/b"))
    page = render_page(report)
    assert len(Page(page).data["cases"]) == 400
    assert len(page) < 80_000


async def test_a_long_text_is_cut_and_says_so():
    report = await run(sentiment_task(dataset=[Sample("good" * 250_000, "positive", id="long")]))
    page = page_of(report)
    assert page.data["cases"][0]["input"].endswith("… 980,000 more characters")


async def test_a_file_that_cannot_be_written_is_an_error_that_names_it(tmp_path: Path):
    with pytest.raises(LLMEvaluationError, match=r"missing/r\.html cannot be written: No such file"):
        (await small()).to_html(tmp_path / "missing" / "r.html")


# --- what it says -------------------------------------------------------------------------------------------------


async def test_the_leaderboard_has_the_means_and_intervals_of_the_summary_best_first():
    report = await small()
    visible = page_of(report).visible
    for text in ("1.00 [0.44, 1.00]", "0.67 [0.21, 0.94]", "invalid_output"):
        assert text in visible
    page = render_page(report)
    board = page[page.index('id="leaderboard"') : page.index('id="comparisons"')]
    assert board.index(">ollama/a<") < board.index(">gemini/b<")
    assert 'aria-label="ollama/a: 1.00 [0.44, 1.00]"' in board


async def test_the_comparisons_are_those_of_compare_in_both_directions():
    report = await small()
    row = report.compare("ollama/a", "gemini/b").iloc[0]
    visible = page_of(report).visible
    assert f"{row['difference']:+.3f} [{row['ci_low']:+.3f}, {row['ci_high']:+.3f}]" in visible
    assert f"{-row['difference']:+.3f} [{-row['ci_high']:+.3f}, {-row['ci_low']:+.3f}]" in visible
    assert "3 pairs, 1 left out, mcnemar" in visible
    same = page_of(await run(routes=("ollama/a", "gemini/b"))).visible
    assert "+0.000" in same
    assert "-0.000 [" not in same


async def test_frequent_wrong_answers_are_counted_by_field():
    samples = [Sample(f"good {n}", "positive", id=f"s{n}") for n in range(4)]
    report = await small(task=sentiment_task(dataset=samples))
    page = render_page(report)
    fields = Page(page[page.index('<section id="fields"') : page.index('<section id="cost"')])
    cells = [text for place in ("th#", "td#", "span#") for text in fields.texts[place]]
    assert {"label", "gemini/b", "positive", "negative", "4"} <= set(cells)
    assert "4 of 4 (100.0%)" in fields.visible


async def test_repeats_have_a_section_of_their_own():
    assert 'id="repeats"' not in render_page(await small())
    page = page_of(await small(epochs=2))
    assert "k = 2" in page.visible
    assert [case["epoch"] for case in page.data["cases"]] == [0, 1] * 4


async def test_a_task_without_scorers_and_targets_has_a_report():
    samples = [Sample("good", id="a"), Sample("bad", id="b")]
    page = page_of(await run(sentiment_task(dataset=samples, scorers=[]), ("ollama/a", "gemini/b")))
    assert [case["id"] for case in page.data["cases"]] == ["a", "b"]
    assert "target" not in page.data["cases"][0]
    assert page.data["cases"][0]["results"][1]["values"] == ["positive"]


async def test_cost_is_the_sum_of_what_is_known_and_judges_stand_apart():
    report = await small()
    priced = attempt(Route.parse("gemini/b")).model_copy(update={"cost_usd": 0.25})
    failed = attempt(Route.parse("gemini/b"), AttemptStatus.FAILED)

    def call(result, stage, *attempts):
        name = result.pipeline_run_id
        return RecordedCall(name, stage, RunStatus.SUCCEEDED, ServedFrom.PROVIDER, "p", "a", None, None, attempts)

    calls = [call(result, "sample", failed, priced) for result in report.of("gemini/b")]
    calls += [call(result, "judge", priced) for result in report.of("ollama/a")]
    text = render_page(replace(report, load_calls=lambda: calls))
    cost = Page(text[text.index('<section id="cost"') : text.index('<section id="missing"')]).visible
    assert "1.000000 without 4 requests of unknown price" in cost
    assert "judges" in cost


async def test_attempts_are_rows_with_the_sample_that_they_are_of():
    report = await small()
    assert list(report.attempts()) == list(ATTEMPT_COLUMNS)
    sent = attempt(Route.parse("gemini/b")).model_copy(update={"cost_usd": 0.25, "model_digest": "d"})
    names = [result.pipeline_run_id for result in report.of("gemini/b")]
    calls = [
        RecordedCall(name, stage, RunStatus.SUCCEEDED, ServedFrom.PROVIDER, "p", "a", None, None, (sent,))
        for name, stage in [(names[1], "sample"), (names[0], "sample"), (names[0], "judge"), ("elsewhere", "sample")]
    ]
    frame = replace(report, load_calls=lambda: calls).attempts()
    assert {name: str(dtype) for name, dtype in frame.dtypes.items()} == {
        name: str(pd.Series([], dtype=dtype).dtype) for name, dtype in ATTEMPT_COLUMNS.items()
    }
    assert list(zip(frame["sample_id"], frame["stage"], strict=True)) == [
        ("s1", "sample"),
        ("s0", "sample"),
        ("s0", "judge"),
    ]
    row = frame.iloc[0]
    assert (row["variant"], row["sent_to"], row["input_tokens"], row["cost_usd"]) == ("gemini/b", "gemini/b", 10, 0.25)
    assert (row["status"], row["model_digest"]) == ("SUCCEEDED", "d")
    assert pd.isna(row["error_code"])


# --- the samples --------------------------------------------------------------------------------------------------


@pytest.fixture
def servers():
    """A stand-in that is right, and one that first answers nonsense to what is bad, and fails on what is awful."""
    asked: list[str] = []

    def second(request):
        text = json.dumps(request.json)
        asked.append(text)
        if "awful" in text:
            return Fault.status(500)
        if "bad" in text and len([each for each in asked if "bad" in each]) == 1:
            return Reply("I would rather not.")
        return Reply('{"label": "positive"}')

    def first(request):
        text = json.dumps(request.json)
        return Reply(json.dumps({"label": "positive" if "good" in text or "fine" in text else "negative"}))

    with OllamaServer(first, models=["llama3.2"]) as ollama, GeminiServer(second) as gemini:
        yield {
            "ollama_api_base": ollama.url,
            "gemini_api_base": gemini.url,
            "gemini_api_key": "canary-" + "k" * 32,
            "max_retries": 0,
            "cooldown_after_failures": 100,
        }


TASK = sentiment_task(system="Be brief.", parameters={"seed": 7, "temperature": 0})


def evaluated(session: Session, **options) -> EvalReport:
    return session.evaluate(TASK, list(ROUTES), **{"name": "run", "progress": False, "concurrency": 1} | options)


def test_every_sample_has_its_prompt_answers_scores_and_trace(servers):
    with Session("w", **servers) as session:
        page = page_of(evaluated(session))
    cases = {case["input"]: case for case in page.data["cases"]}
    assert list(cases) == ["good", "bad", "fine", "awful"]
    bad, awful = cases["bad"], cases["awful"]
    assert bad["prompts"] == [{"turns": [["system", "Be brief."], ["user", "Text: bad"]]}]
    assert (bad["fields"], bad["target"]) == (["label"], ["negative"])
    ours, theirs = bad["results"]
    assert (ours["values"], ours["scores"], "differing" in ours) == (["negative"], [1.0], False)
    assert (theirs["values"], theirs["scores"], theirs["differing"]) == (["positive"], [0.0], [0])
    assert theirs["details"] == {"field_match": "label"}
    first, second = theirs["calls"]
    assert (first["answer"], "prompt" in first) == ("I would rather not.", False)
    assert "user:" in second["prompt"]
    assert (second["attempts"][0]["model"], second["attempts"][0]["status"]) == (ROUTES[1], "SUCCEEDED")
    (failed,) = awful["results"][1]["calls"]
    assert (awful["results"][1]["code"], failed["attempts"][0]["http"]) == ("unavailable", 500)
    assert "values" not in awful["results"][1]


def test_a_prompt_is_told_whole_only_if_its_hash_is_that_of_the_call(servers):
    edited = [replace(SAMPLES[0], input="excellent"), *SAMPLES[1:]]
    with Session("w", **servers) as session:
        evaluated(session, reasks=0)
        whole, changed, unknown = (
            page_of(session.report("run", task=task)).data["cases"]
            for task in (TASK, sentiment_task(dataset=edited, system="Be brief."), None)
        )
    assert [list(case["prompts"][0]) for case in whole] == [["turns"]] * 4
    assert [list(case["prompts"][0]) for case in changed] == [["recorded"], *[["turns"]] * 3]
    assert changed[0]["prompts"][0]["recorded"].startswith("user: Text: good")
    assert [list(case["prompts"][0]) for case in unknown] == [["recorded"]] * 4
    assert "input" not in unknown[0]


def test_without_payloads_answers_are_not_in_the_file(servers):
    with Session("w", store_payloads=False, **servers) as session:
        cases = page_of(evaluated(session)).data["cases"]
    result = cases[0]["results"][0]
    assert (result["status"], result["scores"], "values" in result) == ("SUCCEEDED", [1.0], False)


def test_the_report_names_what_was_run_and_no_secret(servers):
    with Session("w", **servers) as session:
        report = evaluated(session)
        text, known = render_page(report), report.provenance
    assert known == json.loads(json.dumps(report.to_json()["provenance"]))
    assert known["routes"][ROUTES[0]]["parameters"] == {"seed": 7, "temperature": 0}
    assert known["settings"]["max_retries"] == 0
    assert known["options"]["reasks"] == 1
    assert (known["packages"]["llmkit"], known["samples"], known["epochs"]) == ("0.1.0", 4, 1)
    assert {model["route"] for model in known["models"]} == set(ROUTES)
    visible = Page(text).visible
    for told in (known["task_sha256"], known["dataset_sha256"], known["python"], *known["packages"].values()):
        assert told in visible
    for model in known["models"]:
        assert model["digest"] in visible
    assert "Be brief." in visible
    everything = (
        text
        + json.dumps(Page(text).data)
        + json.dumps(known)
        + render_run_markdown([report])
        + render_run_junit([report])
    )
    assert "canary" not in everything
    assert servers["ollama_api_base"].removeprefix("http://") not in json.dumps(known)
    for document in (render_run_markdown([report]).replace("\\", ""), render_run_junit([report])):
        assert known["dataset_sha256"] in document
        assert known["packages"]["litellm"] in document


# --- the same bytes -----------------------------------------------------------------------------------------------


def test_two_reports_of_one_run_have_the_same_bytes(servers):
    with Session("w", **servers) as session:
        evaluated(session).to_html("now.html")
    with Session("w", **servers) as session:
        session.report("run", task=TASK).to_html("later.html")
        evaluated(session, retry_failed=False).to_html("again.html")
    assert Path("now.html").read_bytes() == Path("later.html").read_bytes() == Path("again.html").read_bytes()


def test_two_runs_on_identical_recordings_have_the_same_bytes(servers):
    with Session("w", **servers) as session:
        evaluated(session)
    assert run_command(["cassette", "record", "tape.jsonl", "-w", "w"]) == 0
    replays, unsteady = [], []
    for _ in range(2):
        with Session("w", replay="tape.jsonl") as session:
            report = evaluated(session, concurrency=4)
            report.to_html("replay.html", stable=True)
            texts = [json.dumps(report.to_json(stable=True)), render_run_markdown([report]), render_run_junit([report])]
            replays.append([*texts, Path("replay.html").read_bytes()])
            unsteady.append([json.dumps(report.to_json()), render_page(report)])
    assert replays[0] == replays[1]
    assert not set(unsteady[0]) & set(unsteady[1])
    page = Page(replays[0][-1].decode())
    assert len(page.data["cases"]) == 4
    assert not re.search(r"\bms\b|latency", page.visible)


# --- the command line ---------------------------------------------------------------------------------------------

TASK_FILE = """
from typing import Literal
from pydantic import BaseModel
from llmkit.evals import Sample, Task, field_match

class Sentiment(BaseModel):
    label: Literal["positive", "negative"]

task = Task(
    name="sentiment",
    dataset=[Sample("good", "positive", id="s0"), Sample("bad", "negative", id="s1")],
    prompt="Text: {input}",
    output_type=Sentiment,
    scorers=[field_match("label")],
)
"""


@pytest.fixture
def commands(servers, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLM_OLLAMA_API_BASE", servers["ollama_api_base"])
    Path("task.py").write_text(TASK_FILE)
    parts = 'PARTS = {name: getattr(task, name) for name in ("dataset", "prompt", "output_type", "scorers")}'
    Path("two.py").write_text(f'{TASK_FILE}\n{parts}\nother = Task(**PARTS, name="other")\n')
    Path("other.py").write_text(TASK_FILE.replace('name="sentiment"', 'name="other"'))


def test_the_file_of_a_run_can_be_written_again_from_the_store(commands, capsys):
    run_it = ["eval", "run", "task.py", "--routes", ROUTES[0], "--name", "r"]
    assert run_command([*run_it, "--html", "run.html"]) == 0
    assert run_command(["eval", "report", "r", "--task", "task.py", "--html", "report.html", "--markdown", "r.md"]) == 0
    assert Path("run.html").read_bytes() == Path("report.html").read_bytes()
    assert len(Page(Path("run.html").read_text()).data["cases"]) == 2
    assert "## r (sentiment)" in Path("r.md").read_text()
    capsys.readouterr()
    assert run_command(["eval", "report", "r", "--json", "--stable"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert (document["run"]["name"], "id" in document["run"], "work" in document) == ("r", False, False)
    assert "latency_p50_ms" not in document["summary"][0]


@pytest.mark.parametrize(
    ("command", "said"),
    [
        (["report", "missing", "--html", "r.html"], "There is no evaluation 'missing'"),
        (["report", "r", "--html", "no/such/folder/r.html"], "name a file in a folder that exists"),
        (["report", "r", "--task", "other.py"], "has no task 'sentiment', the task of this run; it has: other"),
        (["run", "two.py", "--routes", ROUTES[0], "--name", "t", "--html", "r.html"], "the file has 2 tasks"),
    ],
)
def test_a_report_that_cannot_be_written_says_why_and_nothing_is_sent(commands, capsys, command, said):
    if command[1] == "r":
        run_command(["eval", "run", "task.py", "--routes", ROUTES[0], "--name", "r"])
    assert run_command(["eval", *command]) == 2
    assert said in " ".join(capsys.readouterr().err.split())
    assert not Path("r.html").exists()


# --- fields -------------------------------------------------------------------------------------------------------

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@pytest.mark.slow
@settings(max_examples=100, deadline=None)
@given(JSON)
def test_no_value_differs_from_itself_and_every_part_is_text(value):
    fields = split_by_field(value, "only")
    again = split_by_field(json.loads(json.dumps(value)), "only")
    assert list(fields) == list(again)
    assert not [path for path in fields if is_different(fields[path], again[path])]
    assert all(isinstance(to_display_text(part), str) for part in fields.values())


@pytest.mark.parametrize(
    ("target", "got", "expected"),
    [
        (1, 1.0, False),
        ("12.50", 12.5, False),
        (0.1 + 0.2, 0.3, False),
        (2**63 + 1, 2**63 + 1, False),
        (True, 1, True),
        ("true", True, False),
        (None, "", True),
        ("a", "A", True),
        (["a", "b"], ["b", "a"], True),
    ],
)
def test_what_is_written_differently(target, got, expected):
    assert is_different(target, got) is expected


def test_nested_parts_have_paths():
    value = {"to": {"city": "Rome"}, "lines": [{"item": "saw"}, {"item": "nail"}], "tags": ["a", "b"], "none": {}}
    assert list(split_by_field(value)) == ["to.city", "lines[0].item", "lines[1].item", "tags", "none"]
    assert split_by_field("positive", "label") == {"label": "positive"}


# --- it explains itself -------------------------------------------------------------------------------------------


def explained(page: Page) -> list[dict]:
    return [attributes for _tag, attributes in page.tags if "why" in (attributes.get("class") or "").split()]


async def test_every_number_of_a_table_has_a_sentence_that_the_keyboard_reaches():
    page = render_page(await small(epochs=2))
    tables = page[page.index('<section id="leaderboard"') : page.index('<section id="samples"')]
    cells = re.findall(r"<td[^>]*>(.*?)</td>", tables, re.DOTALL)
    numbers = [cell for cell in cells if re.match(r"[-+\d.,% ]+$", re.sub("<[^>]*>", "", cell)) and "faint" not in cell]
    assert len(numbers) > 20
    assert all('class="number why" tabindex="0" aria-description="' in cell for cell in numbers), numbers
    sentences = [each["aria-description"] for each in explained(Page(page))]
    assert all(sentence.strip().endswith((".", "?")) and len(sentence) < 400 for sentence in sentences)


async def test_a_mean_and_a_difference_are_explained_in_words():
    sentences = " ".join(each["aria-description"] for each in explained(page_of(await small())))
    assert "ollama/a scores 1 on average on 3 results (more is better). 95 % interval: " in sentences
    assert "If the two were equally good, a difference at least as large would be seen with probability" in sentences


async def test_small_pictures_have_a_scale_with_values():
    page = render_page(await small())
    board = page[page.index('id="leaderboard"') : page.index('id="comparisons"')]
    assert re.findall(r'<text class="scale[^>]*>([^<]*)<', board) == ["0", "0.5", "1"]
    matrix = page[page.index('id="comparisons"') : page.index('id="fields"')]
    low, middle, high = re.findall(r'<text class="scale[^>]*>([^<]*)<', matrix)[:3]
    assert (middle, float(low)) == ("0", -float(high))


async def test_explanations_of_hostile_names_stay_text():
    report = await run(routes=("ollama/a",))
    name = '"><img src=x onerror=alert(1)>'
    hostile = replace(report, results=tuple(replace(each, route=name) for each in report.results))
    for text in (render_page(hostile), hostile._repr_html_()):
        assert "<img" not in text
