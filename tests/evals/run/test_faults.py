"""What goes wrong in the middle of an evaluation, through the whole stack: each has a documented outcome."""

import json
import os
import signal
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from jupyter_client.manager import start_new_kernel

from llmkit.errors import LLMEvaluationError
from llmkit.evals import Sample, field_match
from llmkit.session import Session
from llmkit.testing import Fault, GeminiServer, OllamaModel, OllamaServer, Reply
from tests.support.eval_fakes import sentiment_task

OLLAMA, GEMINI = "ollama/llama3.2", "gemini/gemini-2.5-flash"
GOOD = json.dumps({"label": "positive"})
HANG_BOUND_S = 120


def task_of(samples, *scorers):
    dataset = [Sample(f"good {number}", "positive", id=f"s{number}") for number in range(samples)]
    return sentiment_task(dataset=dataset, scorers=scorers or (field_match("label"),))


def asked_for(calls):
    return [call.json["messages"][0]["content"] for call in calls]


def session_on(ollama, **changes):
    return Session("w", ollama_api_base=ollama.url, **{"max_retries": 0} | changes)


def test_a_provider_that_is_down_for_a_while_costs_nothing_but_the_wait(monkeypatch):
    monkeypatch.setattr("llmkit.batch.route_health.USUAL_REST_S", 0.5)

    def outage(progress):
        if progress.done >= 5 and not down:
            down.append(len(server.calls))
            server.stop()
            threading.Timer(0.3, server.start).start()

    down = []
    resting = {"cooldown_after_failures": 2, "cooldown_s": 1.0}
    with OllamaServer(Reply(GOOD), models=["llama3.2"]) as server, session_on(server, **resting) as session:
        first = session.evaluate(task_of(19), [OLLAMA], name="run", concurrency=2, progress=outage)
        texts = asked_for(server.calls)
    assert down
    assert first.counts["SUCCEEDED"] == 19
    assert first.stopped == {}
    assert len(set(texts)) == 19
    assert len(texts) <= 19 + 2, "those under way when it went down may have reached it"


def test_a_sample_that_makes_the_server_break_off_is_a_failure_after_a_few_tries(monkeypatch):
    monkeypatch.setattr("llmkit.batch.route_health.USUAL_REST_S", 0.01)

    def answer(request):
        return Fault.reset() if "good 3" in request.json["messages"][0]["content"] else Reply(GOOD)

    calm = {"cooldown_after_failures": 1000}
    with OllamaServer(answer, models=["llama3.2"]) as server, session_on(server, **calm) as session:
        report = session.evaluate(task_of(9), [OLLAMA], name="run", concurrency=2, progress=False)
    (failed,) = [result for result in report.results if result.status != "SUCCEEDED"]
    assert (failed.sample_id, failed.status, failed.error_code) == ("s3", "FAILED", "unavailable")
    assert report.stopped == {}


def test_a_key_that_is_revoked_stops_its_route_and_no_other_and_a_new_key_goes_on():
    def revoke(progress):
        if progress.done >= 10:
            gemini.api_key = "new"

    with OllamaServer(Reply(GOOD), models=["llama3.2"]) as ollama, GeminiServer(Reply(GOOD), api_key="old") as gemini:
        routes, options = [OLLAMA, GEMINI], {"name": "run", "concurrency": 2}
        with session_on(ollama, gemini_api_base=gemini.url, gemini_api_key="old") as session:
            report = session.evaluate(task_of(30), routes, progress=revoke, **options)
        frame = report.samples()
        assert set(frame[frame["variant"] == OLLAMA]["status"]) == {"SUCCEEDED"}
        gone = frame[(frame["variant"] == GEMINI) & (frame["status"] != "SUCCEEDED")]
        assert set(gone["error_code"]) == {"authentication"}
        assert list(gone["status"]).count("FAILED") <= 4
        assert "LLM_GEMINI_API_KEY" in report.stopped[GEMINI]
        sent = len(ollama.calls)
        with session_on(ollama, gemini_api_base=gemini.url, gemini_api_key="new") as session:
            report = session.evaluate(task_of(30), routes, progress=False, **options)
        assert len(ollama.calls) == sent
    assert not report.has_failures


def test_a_sample_of_a_megabyte_is_answered_where_it_fits_and_else_one_failed_row():
    long = "word " * 210_000
    dataset = [Sample("good", "positive", id="short"), Sample(long, "positive", id="long")]
    models = [OllamaModel("llama3.2", context_length=131_072)]
    with OllamaServer(Reply(GOOD), models=models) as ollama, GeminiServer(Reply(GOOD)) as gemini:
        with session_on(ollama, gemini_api_base=gemini.url, gemini_api_key="k") as session:
            report = session.evaluate(sentiment_task(dataset=dataset), [OLLAMA, GEMINI], name="run", progress=False)
            again = session.report("run")
        assert len(ollama.calls) == 1
    found = {(result.sample_id, result.route): result for result in report.results}
    assert [found["short", route].status for route in (OLLAMA, GEMINI)] == ["SUCCEEDED"] * 2
    assert found["long", GEMINI].status == "SUCCEEDED"
    assert (found["long", OLLAMA].status, found["long", OLLAMA].error_code) == ("FAILED", "context_overflow")
    assert len(json.dumps(report.to_json())) < 100_000
    assert again.counts == report.counts


def test_a_hanging_scorer_is_its_own_error():
    """The next run scores without a call."""
    released = threading.Event()

    def stuck(output, sample):
        released.wait(HANG_BOUND_S)
        return 1

    with OllamaServer(Reply(GOOD), models=["llama3.2"]) as server, session_on(server) as session:
        task = task_of(3, field_match("label"), stuck)
        try:
            report = session.evaluate(task, [OLLAMA], name="run", scorer_timeout_s=0.05, progress=False)
        finally:
            released.set()
        again = session.evaluate(task, [OLLAMA], name="run", progress=False)
        assert len(server.calls) == 3
    assert report.counts["SCORER_FAILED"] == 3
    assert {result.scores["field_match"] for result in report.results} == {1.0}
    assert all("no score within 0.05 s" in result.scorer_errors["stuck"] for result in report.results)
    assert not again.has_failures
    assert again.work.rescored == 3


def test_an_edited_dataset_is_refused_with_what_changed():
    """Between two runs of one name."""
    edited = [Sample("great 0", "positive", id="s0"), Sample("good 1", "positive", id="s1")]
    with OllamaServer(Reply(GOOD), models=["llama3.2"]) as server, session_on(server) as session:
        session.evaluate(task_of(3), [OLLAMA], name="run", progress=False)
        with pytest.raises(LLMEvaluationError, match=r"removed: s2; edited: s0\. Use another name, or undo the change"):
            session.evaluate(sentiment_task(dataset=edited), [OLLAMA], name="run", progress=False)
        assert len(server.calls) == 3
        assert session.report("run").counts["SUCCEEDED"] == 3


def test_two_runs_of_one_name_at_once_send_nothing_twice():
    def slow(request):
        return Fault.delay(0.02, Reply(GOOD))

    with OllamaServer(slow, models=["llama3.2"]) as server, session_on(server) as one, session_on(server) as other:
        one.chat("warm up", route=OLLAMA)
        sent = len(server.calls)
        with ThreadPoolExecutor() as pool:
            runs = [
                pool.submit(each.evaluate, task_of(19), [OLLAMA], name="run", concurrency=4, progress=False)
                for each in (one, other)
            ]
            for run in runs:
                run.result(HANG_BOUND_S)
        texts = asked_for(server.calls[sent:])
        report = one.evaluate(task_of(19), [OLLAMA], name="run", progress=False)
        assert len(server.calls) == sent + 19
    assert sorted(texts) == sorted(f"Text: good {number}" for number in range(19))
    assert not report.has_failures


CELL = """
import json
from llmkit import Session
from llmkit.evals import Sample, Task, field_match
from pydantic import BaseModel

class Sentiment(BaseModel):
    label: str

samples = [Sample(f"good {{n}}", "positive") for n in range(8)]
task = Task("sentiment", samples, "{{input}}", Sentiment, [field_match("label")])
with Session("w", ollama_api_base={url!r}, max_retries=0) as session:
    report = session.evaluate(task, ["ollama/llama3.2"], name="run", concurrency=2, progress=False)
print(json.dumps(report.to_json()))
"""


def executed(client, code):
    shown = []
    client.execute_interactive(code, timeout=HANG_BOUND_S, output_hook=shown.append)
    return [each["content"] for each in shown if each["msg_type"] in ("stream", "error")]


@pytest.mark.slow
@pytest.mark.timeout(3 * HANG_BOUND_S)
def test_a_kernel_that_is_restarted_in_the_middle_goes_on_with_the_same_cell(tmp_path):
    def answer(request):
        if len(server.calls) <= 4 or restarted:
            return Reply(GOOD)
        hanging.release()
        return Fault.hang()

    restarted, hanging = [], threading.Semaphore(0)
    manager, client = start_new_kernel(kernel_name="python3", startup_timeout=HANG_BOUND_S, cwd=str(tmp_path))
    try:
        with OllamaServer(answer, models=["llama3.2"]) as server:
            client.execute(CELL.format(url=server.url))
            # Each of the two workers stores its results before it sends its next request.
            assert all(hanging.acquire(timeout=HANG_BOUND_S) for _ in range(2))
            # The manager interrupts a kernel before it kills it, and a kernel that is quick enough then cancels its
            # calls, so that none is in doubt. Under load that happened now and then.
            os.kill(manager.provisioner.pid, signal.SIGKILL)
            manager.restart_kernel(now=True)
            client.wait_for_ready(timeout=HANG_BOUND_S)
            restarted.append(len(server.calls))
            shown = executed(client, CELL.format(url=server.url))
            done = json.loads("".join(each["text"] for each in shown))
            sent = len(server.calls)
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)
        manager.context.destroy()
    assert done["counts"]["SUCCEEDED"] == 8
    assert sent == 8 + 2
    assert len(done["in_doubt"]) == 2
