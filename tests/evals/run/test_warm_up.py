"""Models are loaded before anything is measured: once, and only where that costs nothing."""

from dataclasses import replace
from datetime import timedelta

import pytest

from llmkit.errors import LLMStoreError, LLMUnavailable
from llmkit.evals import Sample, Variant
from llmkit.evals.run.warm_up import STAYS_LOADED, WARM_UP_FROM
from llmkit.session import Session
from llmkit.testing import Fault, OllamaModel, OllamaServer, Reply
from tests.support.eval_fakes import FakeService, MemoryStore, run, sentiment_task

TASK = sentiment_task(dataset=[Sample(f"good {number}", "positive", id=str(number)) for number in range(WARM_UP_FROM)])


async def warmed(routes, store=None, **options):
    service = FakeService()
    report = await run(options.pop("task", TASK), routes, service=service, store=store or MemoryStore(), **options)
    assert report.work.warm_ups == len(service.warmed)
    return [str(request.route) for request, _context in service.warmed]


async def test_only_models_that_run_here_are_warmed_each_once():
    other_prompt = Variant("ollama/a", prompt="{input}?", label="other")
    routes = ["ollama/a", other_prompt, "gemini/b", "ollama/c", "ollama/d:cloud"]
    assert await warmed(routes) == ["ollama/a", "ollama/c"]


async def test_a_warm_up_is_a_sample_s_request_under_a_name_of_its_own():
    service = FakeService()
    report = await run(TASK, ["ollama/a"], service=service, parameters={"temperature": 0.5})
    ((request, context),) = service.warmed
    assert request.messages[-1].content == "Text: good 0"
    assert (request.temperature, request.use_cache, request.constraints.allow_fallback) == (0.5, False, False)
    assert request.response_format.json_schema["title"] == "Sentiment"
    assert (context.stage, context.pipeline_run_id) == ("warm_up", f"warm_up:{report.run.id.hex}")
    assert (report.work.sent, report.work.called) == (WARM_UP_FROM, WARM_UP_FROM)


async def test_a_run_that_goes_on_is_not_warmed_again_until_its_models_may_be_unloaded():
    store = MemoryStore()
    assert await warmed(["ollama/a"], store, limit=1) == []
    assert await warmed(["ollama/a"], store, epochs=2) == []
    for key, row in store.rows.items():
        store.rows[key] = replace(row, finished_at_utc=row.finished_at_utc - STAYS_LOADED - timedelta(seconds=1))
    assert await warmed(["ollama/a"], store, epochs=2) == []  # nothing is open
    assert await warmed(["ollama/a"], store, epochs=3) == ["ollama/a"]


async def test_few_samples_and_those_who_do_not_want_it_are_not_warmed():
    assert await warmed(["ollama/a"], limit=WARM_UP_FROM - 1) == []
    assert await warmed(["ollama/a"], warm_up=False) == []


async def test_a_warm_up_that_fails_is_left_for_the_samples_to_meet():
    class Down(FakeService):
        async def chat(self, request, context=None):
            raise LLMUnavailable("down")

    assert (await run(TASK, ["ollama/a"], service=Down())).counts["SUCCEEDED"] == WARM_UP_FROM

    class Broken(FakeService):
        async def chat(self, request, context=None):
            raise ValueError("Invalid IPv6 URL")

    assert (await run(TASK, ["ollama/a"], service=Broken())).counts["SUCCEEDED"] == WARM_UP_FROM

    class Lost(FakeService):
        async def chat(self, request, context=None):
            raise LLMStoreError("the disk is full")

    with pytest.raises(LLMStoreError):
        await run(TASK, ["ollama/a"], service=Lost())


def test_a_warm_up_is_sent_once_and_is_nobody_s_result():
    with (
        OllamaServer(Reply('{"label": "positive"}'), models=["llama3.2"]) as server,
        Session("w", ollama_api_base=server.url) as session,
    ):
        reports = [session.evaluate(TASK, ["ollama/llama3.2"], name="run", progress=False) for _ in range(2)]
        stages = session.runs()["stage"].value_counts().to_dict()
        assert len(server.calls) == WARM_UP_FROM + 1
    assert stages == {"sample": WARM_UP_FROM, "warm_up": 1}
    assert [len(report.results) for report in reports] == [WARM_UP_FROM] * 2
    assert [report.work.warm_ups for report in reports] == [1, 0]


@pytest.mark.parametrize(
    "fault",
    [
        Fault.status(302, headers={"Location": "http://[::1"}),
        Fault.status(503, headers={"Retry-After": "1e300"}),
        Fault.reset(),
        Reply("x", input_tokens=10**30, output_tokens=-1),
    ],
    ids=["location", "retry-after", "reset", "counts"],
)
def test_an_evaluation_ends_with_a_report_whatever_its_warm_up_meets(fault):
    good = Reply('{"label": "positive"}')
    with (
        OllamaServer([fault, *[good] * WARM_UP_FROM], models=["llama3.2"]) as server,
        Session("w", ollama_api_base=server.url, max_retries=0) as session,
    ):
        report = session.evaluate(TASK, ["ollama/llama3.2"], progress=False)
    assert (report.counts["SUCCEEDED"], report.work.warm_ups) == (WARM_UP_FROM, 1)


def test_each_machine_is_warmed_and_its_model_compared(caplog):
    """A machine warms its models although another one has called its own a moment ago."""
    digests = ["a" * 64, "b" * 64]
    reports = []
    for host, digest in zip(["one", "two"], digests, strict=True):
        with (
            OllamaServer(Reply('{"label": "positive"}'), models=[OllamaModel("llama3.2", digest=digest)]) as server,
            Session("w", ollama_api_base=server.url, host_name=host) as session,
        ):
            epochs = len(reports) + 1
            reports.append(session.evaluate(TASK, ["ollama/llama3.2"], name="run", epochs=epochs, progress=False))
    assert [report.work.warm_ups for report in reports] == [1, 1]
    assert [note for note in reports[0].notes if "hosts" in note or "machines" in note] == []
    notes = " ".join(reports[1].notes)
    assert "Answered by 2 hosts: one (20 requests" in notes
    assert "ollama/llama3.2 is not the same model on all machines: aaaaaaaaaaaa on one; bbbbbbbbbbbb on two" in notes
    # Before the first sample of the second machine, too.
    assert ["not the same model" in record.message for record in caplog.records if record.name == "llmkit.evals"] == [
        True
    ]
