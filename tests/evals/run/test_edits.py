"""Edits of a dataset between two calls of one run: what cannot change an answer costs no call."""

import json
from dataclasses import replace
from uuid import uuid4

import pandas as pd
import pytest
from pydantic import BaseModel

from llmkit import Session
from llmkit.canonical_json import sha256_of
from llmkit.errors import LLMEvaluationError, LLMInProgress, LLMTimeout
from llmkit.evals import Budget, Dataset, Sample, field_match, judge
from llmkit.evals.call_names import call_name, choose_run_name
from llmkit.evals.tasks.variant import Variant
from llmkit.testing import OllamaServer, Reply
from tests.support.eval_fakes import SAMPLES, FakeExtract, MemoryStore, right, run, sentiment_task

A, B = "ollama/a", "gemini/b"


def silent():
    """An extractor that must not be called."""

    def fail(call):
        raise AssertionError(f"called for {call.text}")

    return FakeExtract(fail)


def edited(**changes):
    return sentiment_task(dataset=[replace(SAMPLES[0], **changes), *SAMPLES[1:]])


@pytest.mark.parametrize(
    "changes",
    [{"target": "negative"}, {"group": "doc 1"}, {"metadata": {"page": 2}}],
    ids=lambda changes: next(iter(changes)),
)
async def test_an_edit_that_the_prompt_does_not_use_calls_nothing(changes):
    store = MemoryStore()
    await run(store=store)
    extract = silent()
    report = await run(edited(**changes), store=store, extract=extract)
    assert extract.calls == []
    assert (report.work.rescored, report.work.reused, report.work.edited) == (1, 4, 1)
    assert report.counts["SUCCEEDED"] == 4


async def test_a_mended_target_changes_the_score_and_is_scored_once():
    store = MemoryStore()
    wrong = edited(target="negative")
    assert (await run(wrong, store=store)).summary()["mean"].iloc[0] == 0.75
    assert (await run(store=store, extract=silent())).summary()["mean"].iloc[0] == 1.0
    again = await run(store=store, extract=silent())
    assert (again.work.rescored, again.work.edited) == (0, 0)


async def test_the_report_says_what_was_scored_again():
    store = MemoryStore()
    await run(store=store)
    report = await run(edited(target="negative"), store=store)
    assert (
        "1 sample was edited in its target, group or metadata since it was asked; stored answers were scored again."
        in report.notes
    )


async def test_a_group_is_that_of_the_dataset_as_it_is_now():
    store = MemoryStore()
    await run(edited(group="old"), store=store)
    report = await run(edited(group="new"), store=store, extract=silent())
    assert {row.sample_group for row in store.rows.values()} == {"new", None}
    assert report.run.spec["groups"] == {"s0": "new"}
    ungrouped = await run(store=store, extract=silent())
    assert ungrouped.run.spec["groups"] == {}


async def test_a_failed_result_follows_an_edit_without_a_call():
    def refuse(call):
        raise ValueError("no such thing")

    store = MemoryStore()
    await run(store=store, extract=FakeExtract(refuse), retry_failed=False)
    report = await run(edited(group="g"), store=store, extract=silent(), retry_failed=False)
    assert report.counts["FAILED"] == 4
    assert {row.sample_group for row in store.rows.values()} == {"g", None}


async def test_metadata_that_the_prompt_uses_counts_as_an_edit():
    store = MemoryStore()
    samples = [Sample("good", "positive", id="s", metadata={"page": 1})]
    parts = {"prompt": "{input} on {metadata[page]}"}
    await run(sentiment_task(dataset=samples, **parts), store=store)
    changed = [replace(samples[0], metadata={"page": 2})]
    with pytest.raises(LLMEvaluationError, match="samples edited: s"):
        await run(sentiment_task(dataset=changed, **parts), store=store)


async def test_an_edited_sample_without_an_id_keeps_its_answer():
    before = [Sample("good", "negative"), Sample("bad", "negative")]
    after = [Sample("good", "positive", group="g"), Sample("bad", "negative")]
    store = MemoryStore()
    await run(sentiment_task(dataset=before), store=store)
    for _time in range(2):
        report = await run(sentiment_task(dataset=after), store=store, extract=silent())
        assert report.summary()["mean"].iloc[0] == 1.0
        assert len(store.rows) == 2
    twice = [Sample("good", "positive", group="h"), Sample("bad", "positive")]
    report = await run(sentiment_task(dataset=twice), store=store, extract=silent())
    assert report.summary()["mean"].iloc[0] == 0.5


async def test_two_samples_of_one_text_keep_an_answer_each():
    store = MemoryStore()
    await run(sentiment_task(dataset=[Sample("good", "negative"), Sample("good", "negative")]), store=store)
    mended = [Sample("good", "positive"), Sample("good", "positive")]
    report = await run(sentiment_task(dataset=mended), store=store, extract=silent())
    assert (report.summary()["mean"].iloc[0], len(store.rows)) == (1.0, 2)


async def test_only_a_new_row_is_called():
    store, extract = MemoryStore(), FakeExtract()
    frame = pd.DataFrame({"input": ["good", "bad"], "target": ["positive", "negative"], "metadata.page": [1, 2]})
    await run(sentiment_task(dataset=frame), store=store)
    longer = pd.concat([frame, pd.DataFrame({"input": ["fine"]})], ignore_index=True)
    await run(sentiment_task(dataset=longer), store=store, extract=extract)
    assert [call.text for call in extract.calls] == ["Text: fine"]


async def test_a_prompt_shows_the_same_number_after_a_row_without_one():
    store, extract = MemoryStore(), FakeExtract()
    frame = pd.DataFrame({"input": ["good", "bad"], "target": ["positive", "negative"], "metadata.page": [1, 2]})
    prompt = {"prompt": lambda sample: f"{sample.input} {sample.metadata.get('page')}"}
    await run(sentiment_task(dataset=frame, **prompt), store=store)
    longer = pd.concat([frame, pd.DataFrame({"input": ["fine"]})], ignore_index=True)
    await run(sentiment_task(dataset=longer, **prompt), store=store, extract=extract)
    assert [call.text for call in extract.calls] == ["fine None"]


async def test_a_run_that_saw_floats_in_a_frame_goes_on():
    """Version 0.1.0 sent 1.0, and made ids of it, where a column of floats had a whole number."""
    frame = pd.DataFrame({"input": ["good", "bad"], "target": ["positive", "negative"], "metadata.page": [1.0, 2.5]})
    old = [
        Sample("good", "positive", metadata={"page": 1.0}),
        Sample("bad", "negative", metadata={"page": 2.5}),
    ]
    prompt = {"prompt": "{input} {metadata[page]}"}
    store = MemoryStore()
    await run(sentiment_task(dataset=old, **prompt), store=store)
    report = await run(sentiment_task(dataset=frame, **prompt), store=store, extract=silent())
    assert (report.work.reused, report.work.rescored) == (2, 0)


async def test_a_result_of_an_earlier_version_is_compared_by_its_name():
    store = MemoryStore()
    await run(store=store)
    store.rows = {key: replace(row, content_digest=None) for key, row in store.rows.items()}
    assert (await run(store=store, extract=silent())).work.rescored == 0
    report = await run(edited(target="negative"), store=store, extract=silent())
    assert report.work.rescored == 1


async def test_results_of_a_variant_that_is_not_called_now_are_scored_again_too():
    store = MemoryStore()
    await run(routes=[A, B, Variant(A, prompt="Say: {input}", label="other")], store=store)
    report = await run(edited(target="negative"), [A], store=store, extract=silent())
    assert report.work.rescored == 3
    assert set(report.summary()["mean"]) == {0.75}


async def test_an_edit_of_a_variant_whose_request_cannot_be_told_is_refused():
    def say(sample):
        return f"Say: {sample.input}"

    store = MemoryStore()
    await run(routes=[A, Variant(A, prompt=say, label="other")], store=store)
    with pytest.raises(LLMEvaluationError, match="samples edited: s0"):
        await run(edited(target="negative"), [A], store=store, extract=silent())


async def test_an_edit_is_refused_where_outputs_were_not_stored():
    store = MemoryStore()
    await run(store=store)
    store.rows = {key: replace(row, output_json=None) for key, row in store.rows.items()}
    with pytest.raises(LLMEvaluationError, match="cannot be scored again because their outputs were not stored"):
        await run(edited(target="negative"), store=store, extract=silent())


async def test_a_run_that_was_edited_is_compared_by_what_was_scored():
    store = MemoryStore()
    await run(store=store, name="one")
    one = await run(edited(target="negative"), store=store, name="one", extract=silent())
    two = await run(edited(target="negative"), store=store, name="two")
    assert one.compare(A, baseline=two)["difference"].iloc[0] == 0.0
    assert one.run.dataset_sha256 == two.run.dataset_sha256
    unedited = await run(store=store, name="three")
    with pytest.raises(LLMEvaluationError, match="edited between the two runs"):
        unedited.compare(A, baseline=one)


async def test_an_answer_that_was_paid_for_before_an_edit_is_asked_for_under_its_key():
    """The process died after the answer, before the result; then the target was mended."""
    store, first, second = MemoryStore(), FakeExtract(), FakeExtract()
    await run(store=store, extract=first)
    paid = next(call.key for call in first.calls if "good" in call.text)
    store.rows = {key: row for key, row in store.rows.items() if row.sample_id != "s0"}
    store.names = [call.key for call in first.calls]
    await run(edited(target="negative"), store=store, extract=second)
    assert [call.key for call in second.calls] == [paid]


async def test_scorers_that_were_edited_are_recorded_once_all_is_scored_again():
    store = MemoryStore()
    await run(store=store)
    renamed = sentiment_task(scorers=[field_match("label", name="other")])
    assert (await run(renamed, store=store, extract=silent())).work.rescored == 4
    again = await run(renamed, store=store, extract=silent())
    assert again.work.rescored == 0
    assert again.run.spec["scorers_sha256"] == renamed.scorers_sha256


async def test_a_run_without_edits_is_not_written_again():
    store = MemoryStore()
    for _time in range(2):
        await run(store=store)
    assert store.updates == 0


async def test_an_edited_task_without_a_name_starts_a_new_run():
    store, extract = MemoryStore(), FakeExtract()
    other = sentiment_task(prompt="Say: {input}")
    first = await run(store=store, name=None)
    second = await run(other, store=store, name=None, extract=extract)
    assert (first.run.name, second.run.name, len(extract.calls)) == ("sentiment", "sentiment-2", 4)
    third = await run(other, store=store, name=None, extract=silent())
    fourth = await run(store=store, name=None, extract=silent())
    assert (third.run.name, fourth.run.name) == ("sentiment-2", "sentiment")


async def test_the_name_of_a_new_run_is_never_too_long():
    store = MemoryStore()
    for prompt in ("{input}", "Say: {input}"):
        await run(sentiment_task(name="n" * 120, prompt=prompt), store=store, name=None)
    assert sorted(len(name) for _workspace, name in store.runs) == [120, 120]
    with pytest.raises(LLMEvaluationError, match="one line of 1 to 120"):
        await choose_run_name(store, "w", sentiment_task(), "")


class Label(BaseModel):
    label: str


def session_on(server, folder, **settings):
    return Session(
        "w", database_url=f"sqlite:///{folder}/store.db", cache_enabled=False, ollama_api_base=server.url, **settings
    )


def labels(*rows):
    return sentiment_task(
        dataset=[Sample(text, {"label": target}, id=text) for text, target in rows], output_type=Label
    )


def test_a_mended_label_costs_no_request_to_a_real_server(tmp_path):
    with OllamaServer(Reply('{"label": "x"}')) as server, session_on(server, tmp_path) as session:
        session.evaluate(labels(("a", "y"), ("b", "x")), ["ollama/llama3.2"], progress=False, name="run")
        sent = server.call_count
        mended = labels(("a", "x"), ("b", "x"))
        report = session.evaluate(mended, ["ollama/llama3.2"], progress=False, name="run")
        stored = session.report("run")
        assert server.call_count == sent == 2
    assert [each.summary()["mean"].iloc[0] for each in (report, stored)] == [1.0, 1.0]
    assert stored.run.dataset_sha256 == Dataset.load(mended.dataset).sha256


def test_an_answer_that_was_paid_for_before_an_edit_is_replayed(tmp_path, monkeypatch):
    def forget(self, result):
        raise LLMTimeout("killed")

    with OllamaServer(Reply('{"label": "x"}')) as server, session_on(server, tmp_path) as session:
        with monkeypatch.context() as killed:
            killed.setattr("llmkit.persistence.eval_store.SqlEvalStore.save_result", forget)
            with pytest.raises(LLMTimeout):
                session.evaluate(labels(("a", "y")), ["ollama/llama3.2"], progress=False, name="run")
        report = session.evaluate(labels(("a", "x")), ["ollama/llama3.2"], progress=False, name="run")
        assert server.call_count == 1
    assert (report.work.replayed, report.summary()["mean"].iloc[0]) == (1, 1.0)


def test_a_judge_is_called_only_where_its_question_changed(tmp_path):
    def answer(request):
        asked = json.dumps(request.json)
        return Reply('{"reason": "r", "grade": 5}' if "You grade" in asked else '{"label": "x"}')

    def task(first, group=None):
        return sentiment_task(
            dataset=[Sample("a", {"label": first}, id="a", group=group), Sample("b", {"label": "x"}, id="b")],
            output_type=Label,
            scorers=[judge("Is it right?", route="ollama/llama3.2", parameters={"max_output_tokens": 50})],
            parameters={"max_output_tokens": 50},
        )

    with OllamaServer(answer) as server, session_on(server, tmp_path) as session:

        def evaluate(task, **options):
            before = server.call_count
            report = session.evaluate(task, ["ollama/llama3.2"], progress=False, name="run", **options)
            return report, server.call_count - before

        assert evaluate(task("y"))[1] == 4
        assert evaluate(task("y", group="g"))[1] == 0
        report, sent = evaluate(task("x", group="g"))
        assert (sent, report.work.rescored) == (1, 1)
        kept, sent = evaluate(task("z", group="g"), budget=Budget(max_tokens=1))
        assert (sent, kept.work.rescored, kept.budget.stopped_by) == (0, 0, "tokens")
        report, sent = evaluate(task("z", group="g"))
        assert (sent, report.work.rescored) == (1, 1)


async def test_the_name_of_a_call_is_what_version_0_1_0_made_of_it():
    store, extract = MemoryStore(), FakeExtract()
    report = await run(store=store, extract=extract)
    sample = SAMPLES[0]
    content = sha256_of({"input": "good", "target": "positive", "group": None, "metadata": {}})[:12]
    request = sha256_of([A, [{"role": "user", "content": "Text: good"}], {}])[:12]
    assert call_name(report.run, sample.key, A, 0, content + request) in [call.key for call in extract.calls]


def write_lines(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


async def test_a_limit_reads_only_the_first_lines(tmp_path):
    path = write_lines(tmp_path / "d.jsonl", [{"input": "good"}, {"input": "bad"}, {"input": 3}])
    report = await run(sentiment_task(dataset=path, scorers=[]), limit=2)
    assert report.counts["SUCCEEDED"] == 2
    assert report.run.dataset_sha256 == Dataset.load(path, limit=2).sha256
    assert "Only the first 2 samples of the dataset were read (limit)." in report.notes


async def test_a_smaller_limit_reads_on_to_the_samples_of_stored_results(tmp_path):
    rows = [{"input": text, "id": text} for text in ("good", "fine", "bad", "awful")]
    path = write_lines(tmp_path / "d.jsonl", [*rows, {"input": 3}])
    store = MemoryStore()
    await run(sentiment_task(dataset=path), store=store, limit=3)
    report = await run(sentiment_task(dataset=path), store=store, limit=1, extract=silent())
    assert sorted(result.sample_id for result in report.results) == ["bad", "fine", "good"]
    larger = await run(sentiment_task(dataset=path), store=store, limit=4)
    assert (larger.run.spec["samples"], larger.work.called) == (4, 1)


async def test_a_run_that_is_read_to_its_end_later_is_complete(tmp_path):
    path = write_lines(tmp_path / "d.jsonl", [{"input": text} for text in ("good", "fine", "bad")])
    store = MemoryStore()
    await run(sentiment_task(dataset=path), store=store, limit=2)
    report = await run(sentiment_task(dataset=path), store=store)
    assert not any("Only the first" in note for note in report.notes)
    assert report.run.dataset_sha256 == Dataset.load(path).sha256


async def test_a_removed_sample_behind_the_limit_is_refused(tmp_path):
    rows = [{"input": text, "id": text} for text in ("good", "fine", "bad")]
    store, task = MemoryStore(), sentiment_task(dataset=write_lines(tmp_path / "d.jsonl", rows))
    await run(task, store=store)
    write_lines(tmp_path / "d.jsonl", rows[:2])
    with pytest.raises(LLMEvaluationError, match="samples removed: bad"):
        await run(task, store=store, limit=1)


async def test_a_sample_behind_the_limit_that_was_edited_is_scored_again(tmp_path):
    rows = [{"input": text, "target": "positive"} for text in ("good", "fine", "awful")]
    store, task = MemoryStore(), sentiment_task(dataset=write_lines(tmp_path / "d.jsonl", rows))
    await run(task, store=store)
    write_lines(tmp_path / "d.jsonl", [*rows[:2], {"input": "awful", "target": "negative"}])
    report = await run(task, store=store, limit=1, extract=silent())
    assert report.summary()["mean"].iloc[0] == 1.0


class Verdict(BaseModel):
    reason: str
    grade: int


async def test_a_result_that_another_process_is_judging_is_left_to_it():
    store, is_judging = MemoryStore(), False

    def answer(call):
        if "You grade" not in call.text:
            return right(call)
        if is_judging:
            raise LLMInProgress("under way", run_id=uuid4(), age_s=1.0)
        return Verdict(reason="r", grade=5)

    task = sentiment_task(scorers=[judge("Is it right?", route="ollama/j")])
    await run(task, store=store, extract=FakeExtract(answer))
    before = dict(store.rows)
    is_judging = True
    mended = sentiment_task(dataset=[replace(SAMPLES[0], target="negative"), *SAMPLES[1:]], scorers=task.scorers)
    report = await run(mended, store=store, extract=FakeExtract(answer))
    assert (report.work.rescored, report.counts["SCORER_FAILED"], store.rows) == (0, 0, before)
    is_judging = False
    assert (await run(mended, store=store, extract=FakeExtract(answer))).work.rescored == 1


async def test_an_answer_that_another_process_is_judging_becomes_its_result():
    """Both got the answer; this process waits until the other one has stored it."""
    store, elsewhere = MemoryStore(), MemoryStore()
    task = sentiment_task(scorers=[judge("Is it right?", route="ollama/j")], dataset=SAMPLES[:1])

    def judged(call):
        return right(call) if "You grade" not in call.text else Verdict(reason="r", grade=5)

    await run(task, store=elsewhere, extract=FakeExtract(judged))
    ((_key, row),) = elsewhere.rows.items()

    def judged_elsewhere(call):
        if "You grade" not in call.text:
            return right(call)
        ((_names, opened),) = store.runs.items()
        stored = replace(row, eval_run_id=opened.id)
        store.rows[opened.id, row.sample_id, row.route, row.epoch] = stored
        raise LLMInProgress("under way", run_id=uuid4(), age_s=1.0)

    report = await run(task, store=store, extract=FakeExtract(judged_elsewhere))
    assert (report.counts["SUCCEEDED"], report.work.shared) == (1, 1)


def nested_task(fields, prompt="Text: {input}"):
    return sentiment_task(dataset=[replace(SAMPLES[0], input=fields), *SAMPLES[1:]], prompt=prompt)


async def test_another_order_of_fields_in_a_file_is_no_edit():
    store = MemoryStore()
    await run(nested_task({"title": "a", "body": "b"}), store=store)
    extract = silent()
    report = await run(nested_task({"body": "b", "title": "a"}), store=store, extract=extract)
    assert (extract.calls, report.work.edited, report.work.reused) == ([], 0, 4)


async def test_a_prompt_that_was_edited_is_refused_whatever_the_order_of_fields():
    store = MemoryStore()
    await run(nested_task({"title": "a", "body": "b"}, lambda sample: f"Text: {sample.input}"), store=store)
    with pytest.raises(LLMEvaluationError, match="changed"):
        await run(nested_task({"title": "a", "body": "b"}, lambda sample: f"T: {sample.input}"), store=store)


FRAMES = {
    "a row without": ([1, 2], [1, 2, None]),
    "a fraction": ([1, 2], [1, 2, 1.5]),
    "text beside floats": ([1.0, 2.0], [1.0, 2.0, "x"]),
    "nullable": ([1, 2], pd.array([1, 2, None], dtype="Int64")),
    "flags": ([True, False], pd.array([True, False, None], dtype="boolean")),
    "categories": (["x", "y"], pd.Categorical(["x", "y", None])),
    "strings": (["x", "y"], pd.array(["x", "y", None], dtype="string")),
    "resolution": (
        pd.to_datetime(["2024-01-01", "2024-01-02"]).as_unit("s"),
        pd.to_datetime(["2024-01-01", "2024-01-02", None]).as_unit("ns"),
    ),
}


@pytest.mark.parametrize(("before", "after"), FRAMES.values(), ids=FRAMES)
async def test_a_row_more_changes_no_other_row_of_a_frame(before, after):
    frame = pd.DataFrame({"input": ["a", "b"], "metadata.m": before})
    longer = pd.DataFrame({"input": ["a", "b", "c"], "metadata.m": after})
    store = MemoryStore()
    task = {"prompt": "{input} {metadata[m]}", "scorers": []}
    await run(sentiment_task(dataset=frame, **task), store=store)
    extract = FakeExtract(right)
    shorter = longer.iloc[:2]
    assert (await run(sentiment_task(dataset=shorter, **task), store=store, extract=extract)).work.edited == 0
    assert extract.calls == []


async def test_another_normal_form_of_a_target_is_scored_again():
    store = MemoryStore()
    await run(edited(group="caf\u00e9"), store=store)
    extract = silent()
    report = await run(edited(group="cafe\u0301"), store=store, extract=extract)
    assert (extract.calls, report.work.edited) == ([], 1)
