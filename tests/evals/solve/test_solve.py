"""A function that answers a sample in several calls is run, stored, resumed and reported like a prompt."""

from __future__ import annotations

import asyncio
import gzip
import json
import random
import re
import threading
import time
from base64 import b64decode
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pandas as pd
import pytest
from pydantic import BaseModel

from llmkit import LLMBadRequest, LLMError, LLMEvaluationError, LLMInvalidOutput, Session
from llmkit.evals import AsyncBoundModel, BoundModel, Budget, EvalReport, Sample, Task, exact_match, field_match, judge
from llmkit.persistence.journal import JournalLLMRunRepo
from llmkit.testing import Fault, OllamaServer, Reply, ToolCall

ROUTE = "ollama/llama3.2"
SAMPLES = [Sample("red", "RED", id="1"), Sample("blue", "BLUE", id="2")]


class City(BaseModel):
    """A type to extract."""

    name: str


class Desk:
    """A server whose answers echo the last message, and a record of the prompts that it got."""

    def __init__(self) -> None:
        self.prompts: list[str] = []
        self.answer: Callable[[str, dict[str, Any]], Any] | None = None
        self.lock = threading.Lock()

    def __call__(self, request: Any) -> Any:
        body = request.json
        prompt = body["messages"][-1]["content"]
        with self.lock:
            self.prompts.append(prompt)
        if self.answer is not None and (found := self.answer(prompt, body)) is not None:
            return found
        return None if body.get("format") else Reply(prompt.upper())


@pytest.fixture(scope="module")
def running() -> Iterator[tuple[OllamaServer, Desk]]:
    desk = Desk()
    with OllamaServer(desk, models=["llama3.2"]) as server:
        yield server, desk


@pytest.fixture(scope="module")
def session(running: tuple[OllamaServer, Desk], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Session]:
    folder = tmp_path_factory.mktemp("solve")
    settings = {"database_url": f"sqlite:///{folder}/llm.db", "cache_dir": f"{folder}/cache", "max_retries": 0}
    with Session("w", ollama_api_base=running[0].url, **settings) as opened:
        yield opened


@pytest.fixture
def desk(running: tuple[OllamaServer, Desk]) -> Desk:
    running[1].prompts.clear()
    running[1].answer = None
    return running[1]


def run(
    session: Session, solve: Any, name: str, samples: Any = SAMPLES, scorers: Any = (), **options: Any
) -> EvalReport:
    parts = {each: options.pop(each) for each in ("version", "parameters") if each in options}
    task = Task("t", samples, solve=solve, scorers=scorers, **parts)
    return session.evaluate(task, options.pop("routes", ROUTE), name=name, progress=False, warm_up=False, **options)


def only_row(report: EvalReport) -> Any:
    (_, row), *rest = report.samples().iterrows()
    assert not rest
    return row


def draft_and_extract(sample: Sample, model: BoundModel) -> str:
    """Draft, then shorten."""
    draft = model.chat(f"draft {sample.input}").text
    return model.chat(f"shorten {draft}").text.removeprefix("SHORTEN DRAFT ")


async def ask_both(sample: Sample, model: AsyncBoundModel) -> dict[str, str]:
    """Ask twice at once."""
    first, second = await asyncio.gather(model.chat(f"good {sample.input}"), model.chat(f"bad {sample.input}"))
    return {"good": first.text, "bad": second.text}


def test_a_sync_function_answers_in_several_calls(session: Session, desk: Desk) -> None:
    report = run(session, draft_and_extract, "sync", scorers=[exact_match()])
    frame = report.samples()
    assert frame["output"].tolist() == ["RED", "BLUE"]
    assert frame["score_exact_match"].tolist() == [1.0, 1.0]
    assert frame["requests"].tolist() == [2, 2]
    assert set(frame["output_mode"]) == {"solve"}
    assert set(frame["served_route"]) == {ROUTE}
    assert sorted(desk.prompts) == ["draft blue", "draft red", "shorten DRAFT BLUE", "shorten DRAFT RED"]


def test_every_call_is_a_row_under_the_name_of_its_sample(session: Session, desk: Desk) -> None:
    report = run(session, draft_and_extract, "rows", SAMPLES[:1])
    rows = session.runs(pipeline_run_id=only_row(report)["pipeline_run_id"])
    assert len(rows) == 2
    assert rows["idempotency_key"].nunique() == 2
    assert set(rows["stage"]) == {"sample"}
    assert rows["input_tokens"].sum() == only_row(report)["input_tokens"]


def test_an_async_function_asks_in_parallel(session: Session, desk: Desk) -> None:
    report = run(
        session,
        ask_both,
        "async",
        scorers=[field_match("good", name="good")],
        samples=[Sample("a", {"good": "GOOD A"})],
    )
    row = only_row(report)
    assert json.loads(row["output"]) == {"good": "GOOD A", "bad": "BAD A"}
    assert row["score_good"] == 1.0


def test_a_second_run_sends_nothing(session: Session, desk: Desk) -> None:
    run(session, ask_both, "again")
    sent = len(desk.prompts)
    report = run(session, ask_both, "again", scorers=[judge("good", route=ROUTE)])
    assert [prompt for prompt in desk.prompts[sent:] if "You grade" not in prompt] == []
    assert report.work.sent == 0


def test_a_sample_that_was_never_called_has_no_key_looked_up(
    session: Session, desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A look takes a tenth of a call; after a failure, the steps of that sample are looked up, and those alone."""
    looks: list[str] = []
    look = JournalLLMRunRepo.get_by_idempotency_key

    async def note(repo: JournalLLMRunRepo, workspace_id: str, key: str) -> Any:
        looks.append(key)
        return await look(repo, workspace_id, key)

    monkeypatch.setattr(JournalLLMRunRepo, "get_by_idempotency_key", note)
    desk.answer = lambda prompt, _: Fault.status(400) if prompt == "shorten DRAFT RED" else None
    report = run(session, draft_and_extract, "looks")
    assert (report.counts["FAILED"], looks) == (1, [])
    desk.answer = None
    report = run(session, draft_and_extract, "looks", samples=[*SAMPLES, Sample("green", id="3")])
    assert report.counts["SUCCEEDED"] == 3
    assert len(looks) == 2
    assert len({key.rpartition(":")[0] for key in looks}) == 1


def test_a_function_that_failed_in_its_third_call_pays_only_for_the_rest(session: Session, desk: Desk) -> None:
    def three(sample: Sample, model: BoundModel) -> str:
        texts = [model.chat(f"step {number} of {sample.input}").text for number in range(3)]
        return texts[-1]

    desk.answer = lambda prompt, _body: Fault.status(500) if prompt.startswith("step 2") else None
    before = run(session, three, "resume")
    assert before.samples()["status"].tolist() == ["FAILED"] * 2
    assert before.samples()["requests"].tolist() == [3, 3]
    desk.answer = None
    desk.prompts.clear()
    after = run(session, three, "resume")
    assert sorted(desk.prompts) == ["step 2 of blue", "step 2 of red"]
    assert after.samples()["output"].tolist() == ["STEP 2 OF RED", "STEP 2 OF BLUE"]
    assert after.work.sent == 2


def test_different_calls_in_parallel_are_found_again_in_any_order(session: Session, desk: Desk) -> None:
    fail = {"now": True}

    async def shuffled(sample: Sample, model: AsyncBoundModel) -> list[str]:
        order = list(range(6))
        random.shuffle(order)
        answers = await asyncio.gather(*[model.chat(f"part {number}") for number in order])
        if fail["now"]:
            raise ConnectionError("the index is gone")
        return sorted(answer.text for answer in answers)

    run(session, shuffled, "shuffled", SAMPLES[:1], version="1")
    fail["now"] = False
    assert len(desk.prompts) == 6
    row = only_row(run(session, shuffled, "shuffled", SAMPLES[:1], version="1"))
    assert len(desk.prompts) == 6
    assert json.loads(row["output"]) == [f"PART {number}" for number in range(6)]


def test_equal_calls_one_after_the_other_are_different_steps(session: Session, desk: Desk) -> None:
    numbers = iter(range(100))
    desk.answer = lambda _prompt, _body: Reply(f"answer {next(numbers)}")

    def twice(_sample: Sample, model: BoundModel) -> str:
        return " ".join(model.chat("the same").text for _ in range(2))

    row = only_row(run(session, twice, "twice", SAMPLES[:1]))
    assert row["output"] == "answer 0 answer 1"


@pytest.mark.parametrize("steps", [(None, None), ("a", "a"), ("a", "b")])
def test_equal_calls_at_the_same_time_need_names(session: Session, desk: Desk, steps: tuple[Any, Any]) -> None:
    async def both(_sample: Sample, model: AsyncBoundModel) -> int:
        return len(await asyncio.gather(*[model.chat("the same", step=step) for step in steps]))

    row = only_row(run(session, both, f"equal {steps}", SAMPLES[:1], version="1"))
    if steps == ("a", "b"):
        assert (row["status"], len(desk.prompts)) == ("SUCCEEDED", 2)
    else:
        assert (row["status"], row["error_code"]) == ("FAILED", "bad_request")
        assert "step='draft-1'" in row["error_message"]


def test_threads_of_a_sync_function_may_call_its_model(session: Session, desk: Desk) -> None:
    def fan_out(sample: Sample, model: BoundModel) -> list[str]:
        with ThreadPoolExecutor(3) as pool:
            return list(pool.map(lambda number: model.chat(f"{sample.input} {number}").text, range(3)))

    report = run(
        session, fan_out, "threads", SAMPLES[:1], parameters={"max_output_tokens": 9}, budget=Budget(max_tokens=10_000)
    )
    assert json.loads(only_row(report)["output"]) == ["RED 0", "RED 1", "RED 2"]
    assert report.budget is not None
    assert report.budget.tokens == only_row(report)[["input_tokens", "output_tokens"]].sum() > 0


def test_an_extraction_and_a_conversation_are_steps(session: Session, desk: Desk) -> None:
    desk.answer = lambda _prompt, body: Reply('{"name": "Rome"}') if body.get("format") else None

    def talk(sample: Sample, model: BoundModel) -> City:
        conversation = model.conversation(system="Be kind.")
        conversation.say(f"hello {sample.input}")
        conversation.say("bye")
        assert [each.role for each in conversation.messages] == ["system", *["user", "assistant"] * 2]
        return model.extract(City, conversation.messages[-1].content)

    row = only_row(run(session, talk, "talk", [Sample("red", {"name": "Rome"})], [exact_match()]))
    assert (row["output"], row["score_exact_match"], row["requests"]) == ('{"name":"Rome"}', 1.0, 3)


@pytest.mark.parametrize("kind", ["sync", "async"])
def test_an_agent_with_tools_calls_its_model_in_steps(session: Session, desk: Desk, kind: str) -> None:
    def answer(_prompt: str, body: dict[str, Any]) -> Any:
        if body["messages"][-1]["role"] == "tool":
            return Reply(f"It is {body['messages'][-1]['content']}.")
        return Reply("", tool_calls=[ToolCall("look_up", {"city": "Rome"})]) if body.get("tools") else None

    desk.answer = answer

    def solve(sample: Sample, model: BoundModel) -> str:
        def look_up(city: str) -> str:
            """Weather of a city."""
            return model.chat(f"weather of {city}").text

        return model.agent(tools=[look_up]).run_sync(str(sample.input)).output

    async def solve_async(sample: Sample, model: AsyncBoundModel) -> str:
        async def look_up(city: str) -> str:
            """Weather of a city."""
            return (await model.chat(f"weather of {city}")).text

        result = await model.agent(tools=[look_up]).run(str(sample.input))
        return result.output

    chosen = solve if kind == "sync" else solve_async
    row = only_row(run(session, chosen, f"agent {kind}", SAMPLES[:1]))
    assert (row["output"], row["requests"]) == ("It is WEATHER OF ROME.", 3)
    sent = len(desk.prompts)
    run(session, chosen, f"agent {kind}", SAMPLES[:1], scorers=[exact_match()])
    assert len(desk.prompts) == sent


def test_the_target_group_and_metadata_may_change_without_a_call(session: Session, desk: Desk) -> None:
    run(session, draft_and_extract, "edit", [Sample("red", "BLUE", id="1", metadata={"note": "a"})], [exact_match()])
    sent = len(desk.prompts)
    edited = [Sample("red", "RED", id="1", metadata={"note": "b"}, group="g")]
    row = only_row(run(session, draft_and_extract, "edit", edited, [exact_match()]))
    assert (row["score_exact_match"], len(desk.prompts)) == (1.0, sent)


def test_an_edit_of_metadata_that_the_function_uses_pays_for_what_differs(session: Session, desk: Desk) -> None:
    def use(sample: Sample, model: BoundModel) -> str:
        model.chat("first")
        return model.chat(f"read {sample.metadata['passage']}").text

    run(session, use, "passage", [Sample("red", id="1", metadata={"passage": "old"})])
    desk.prompts.clear()
    row = only_row(run(session, use, "passage", [Sample("red", id="1", metadata={"passage": "new"})]))
    assert (row["output"], desk.prompts) == ("READ NEW", ["read new"])


def test_an_edited_input_is_refused(session: Session, desk: Desk) -> None:
    run(session, draft_and_extract, "input", [Sample("red", id="1")])
    with pytest.raises(LLMEvaluationError, match="samples edited: 1"):
        run(session, draft_and_extract, "input", [Sample("green", id="1")])


# --- what a function may do wrong ----------------------------------------------------------------------------------


def fail_with(error: BaseException) -> Any:
    def solve(_sample: Sample, _model: BoundModel) -> str:
        raise error

    return solve


def fail_async_with(error: BaseException) -> Any:
    async def solve(_sample: Sample, _model: AsyncBoundModel) -> str:
        raise error

    return solve


@pytest.mark.parametrize("make", [fail_with, fail_async_with])
@pytest.mark.parametrize(
    ("error", "message"),
    [
        (ValueError("boom"), "ValueError: boom"),
        (ValueError("of ada@example.com"), "ValueError: of ["),
        (SystemExit(3), "SystemExit: 3"),
        (GeneratorExit(), "GeneratorExit"),
        (asyncio.CancelledError(), "CancelledError"),
        (ExceptionGroup("many", [ValueError("a"), LLMBadRequest("inner")]), "inner"),
    ],
)
def test_an_exception_of_a_function_is_a_failed_row(
    session: Session, desk: Desk, make: Any, error: BaseException, message: str
) -> None:
    row = only_row(run(session, make(error), f"{make.__name__} {message}", SAMPLES[:1]))
    assert row["status"] == "FAILED"
    assert row["error_code"] == ("bad_request" if message == "inner" else "solve")
    assert message in row["error_message"]


def test_the_line_of_the_failure_is_named(session: Session, desk: Desk) -> None:
    row = only_row(run(session, fail_with(KeyError("x")), "line", SAMPLES[:1]))
    line = fail_with(KeyError()).__code__.co_firstlineno + 1
    assert f"solve failed in line {line}: KeyError: 'x'" in row["error_message"]


async def forget(_sample: Sample, model: AsyncBoundModel) -> Any:
    """Forget to await."""
    return model.chat("x")


def give_object(_sample: Sample, _model: BoundModel) -> Any:
    """Return what is no JSON."""
    return object()


class Row:
    """Mirror of a row of a DataFrame."""

    def to_dict(self) -> dict[str, int]:
        return {"a": 1}


def give_row(_sample: Sample, _model: BoundModel) -> Any:
    """Return a row of a table."""
    return Row()


def call_as_elsewhere(sample: Sample, model: Any) -> Any:
    """Call a method that other libraries have."""
    return model.generate(sample.input)


def give_wrong_type(_sample: Sample, _model: BoundModel) -> int:
    """Return another type than declared."""
    return "many"  # type: ignore[return-value]


def await_in_sync(sample: Sample, model: Any) -> Any:
    """Hide that it is async."""
    return ask_both(sample, model)


@pytest.mark.parametrize(
    ("solve", "message"),
    [
        (forget, "await the calls of the model"),
        (give_object, "returned object, which is no JSON"),
        (give_row, "returned Row, which is no JSON: return its to_dict()"),
        (call_as_elsewhere, "BoundModel has no 'generate': it has chat, extract, conversation and agent"),
        (give_wrong_type, "returned str, which is no int"),
        (await_in_sync, "must be defined with `async def`"),
    ],
)
def test_a_value_that_is_no_answer_is_a_failed_row(session: Session, desk: Desk, solve: Any, message: str) -> None:
    row = only_row(run(session, solve, message, SAMPLES[:1]))
    assert row["status"] == "FAILED"
    assert message in row["error_message"]


@pytest.mark.parametrize("kind", ["sync", "async"])
def test_a_function_that_never_ends_is_given_up(session: Session, desk: Desk, kind: str) -> None:
    release = threading.Event()

    def hang(_sample: Sample, _model: BoundModel) -> str:
        release.wait(20)
        return ""

    async def hang_async(_sample: Sample, _model: AsyncBoundModel) -> str:
        await asyncio.sleep(20)
        return ""

    chosen = hang if kind == "sync" else hang_async
    row = only_row(run(session, chosen, f"hang {kind}", SAMPLES[:1], solve_timeout_s=0.2))
    release.set()
    assert (row["status"], "did nothing for 0.2 s" in row["error_message"]) == ("FAILED", True)


def test_a_long_call_is_no_idle_time(session: Session, desk: Desk) -> None:
    desk.answer = lambda _prompt, _body: time.sleep(0.6) or Reply("late")

    def wait(_sample: Sample, model: BoundModel) -> str:
        return model.chat("wait").text

    row = only_row(run(session, wait, "long call", SAMPLES[:1], solve_timeout_s=0.3))
    assert (row["status"], row["output"]) == ("SUCCEEDED", "late")


def test_a_call_after_the_function_has_ended_is_refused(session: Session, desk: Desk) -> None:
    kept: list[BoundModel] = []

    def keep(_sample: Sample, model: BoundModel) -> str:
        kept.append(model)
        return model.chat("only").text

    run(session, keep, "kept", SAMPLES[:1])
    with pytest.raises(LLMBadRequest, match="has ended"):
        kept[0].chat("late")
    assert desk.prompts == ["only"]


def test_a_budget_that_ends_in_the_middle_of_a_sample_resumes_there(session: Session, desk: Desk) -> None:
    def careless(sample: Sample, model: BoundModel) -> str:
        try:
            texts = [model.chat(f"{sample.input} {number}").text for number in range(3)]
        except LLMError:
            return "caught"
        return texts[-1]

    limits = {"parameters": {"max_output_tokens": 20}}
    before = run(session, careless, "budget", SAMPLES[:1], **limits, budget=Budget(max_tokens=301))
    # The function caught the error, and its answer is none: the sample was not finished.
    assert only_row(before)["status"] == "NOT_RUN"
    sent = len(desk.prompts)
    assert 0 < sent < 3
    after = run(session, careless, "budget", SAMPLES[:1], **limits, budget=Budget(max_tokens=5_000))
    assert only_row(after)["output"] == "RED 2"
    assert len(desk.prompts) == 3


def test_an_answer_that_does_not_fit_stays_a_result(session: Session, desk: Desk) -> None:
    desk.answer = lambda _prompt, body: Reply('{"town": 1}') if body.get("format") else None

    def extract(_sample: Sample, model: BoundModel) -> City:
        return model.extract(City, "x", reasks=0)

    row = only_row(run(session, extract, "invalid", SAMPLES[:1]))
    assert (row["error_code"], len(desk.prompts)) == (LLMInvalidOutput.code, 1)
    run(session, extract, "invalid", SAMPLES[:1])
    assert len(desk.prompts) == 1


# --- the options of a call ------------------------------------------------------------------------------------------


def test_a_call_has_the_parameters_of_the_variant_and_its_own(session: Session, desk: Desk) -> None:
    bodies: list[dict[str, Any]] = []
    desk.answer = lambda _prompt, body: bodies.append(body)

    def ask(_sample: Sample, model: BoundModel) -> str:
        return model.chat("a").text + model.chat("b", temperature=0.5, system="Be brief.", stop="X").text

    run(session, ask, "options", SAMPLES[:1], parameters={"temperature": 0.1, "seed": 3}, epochs=2)
    ordered = sorted(bodies, key=lambda body: (body["options"]["seed"], body["messages"][-1]["content"]))
    assert [(body["options"]["temperature"], body["options"]["seed"]) for body in ordered] == [
        (0.1, 3),
        (0.5, 3),
        (0.1, 4),
        (0.5, 4),
    ]
    assert (ordered[1]["messages"][0]["content"], ordered[1]["options"]["stop"]) == ("Be brief.", ["X"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temprature": 1}, "temprature: unknown option"),
        ({"temperature": "hot"}, "temperature"),
        ({"route": "nowhere"}, "route"),
        ({"step": "a\nb"}, "step= is a name"),
        ({"images": "missing.png"}, "images"),
    ],
)
def test_a_bad_option_is_a_failed_row_and_sends_nothing(
    session: Session, desk: Desk, options: dict[str, Any], message: str
) -> None:
    def ask(_sample: Sample, model: BoundModel) -> str:
        return model.chat("a", **options).text

    row = only_row(run(session, ask, f"bad {message}", SAMPLES[:1]))
    assert (row["error_code"], desk.prompts) == ("bad_request", [])
    assert message in row["error_message"]


def test_a_function_without_calls_is_a_baseline(session: Session, desk: Desk) -> None:
    def shout(sample: Sample, _model: BoundModel) -> str:
        return str(sample.input).upper()

    report = run(session, shout, "baseline", scorers=[exact_match()])
    assert report.samples()["score_exact_match"].tolist() == [1.0, 1.0]
    assert report.samples()["served_route"].isna().all()
    assert isinstance(report.summary(), pd.DataFrame)


def test_a_function_gets_a_copy_of_its_sample(session: Session, desk: Desk) -> None:
    samples = [Sample({"words": ["a"]}, id="1")]

    def spoil(sample: Sample, _model: BoundModel) -> int:
        sample.input["words"].append("b")
        return len(sample.input["words"])

    assert only_row(run(session, spoil, "copy", samples, epochs=1))["output"] == "2"
    assert samples[0].input == {"words": ["a"]}


def test_prompt_and_solve_exclude_each_other() -> None:
    with pytest.raises(LLMEvaluationError, match="takes no prompt="):
        Task("t", SAMPLES, "{input}", solve=draft_and_extract)
    with pytest.raises(LLMEvaluationError, match="prompt= and output_type= is missing"):
        Task("t", SAMPLES)
    with pytest.raises(LLMEvaluationError, match="must take two arguments"):
        Task("t", SAMPLES, solve=lambda sample: sample)


# --- the report -----------------------------------------------------------------------------------------------------


def named(sample: Sample, model: BoundModel) -> str:
    """Make one numbered and one named call."""
    draft = model.chat(f"draft {sample.input}").text
    return model.chat(f"check {draft}", step="check").text


def test_the_report_adds_up_by_step_and_by_sample(session: Session, desk: Desk, tmp_path: Any) -> None:
    desk.answer = lambda prompt, _body: Fault.status(500) if prompt == "check DRAFT BLUE" else None
    run(session, named, "steps")
    desk.answer = None
    report = run(session, named, "steps")
    frame = report.steps().set_index("step")
    assert frame.index.tolist() == ["all", "1", "check"]
    assert frame["calls"].tolist() == [5, 2, 3]
    assert frame["failed"].tolist() == [1, 0, 1]
    assert frame["samples"].tolist() == [2, 2, 2]
    assert frame.loc["all", "input_tokens"] == report.samples()["input_tokens"].sum()
    assert frame.loc["all", "latency_ms"] == pytest.approx(report.samples()["latency_ms"].mean())
    attempts = report.attempts()
    assert sorted(attempts["step"]) == ["1", "1", "check", "check", "check"]
    page = report.to_html(tmp_path / "page.html").read_text(encoding="utf-8")
    assert "<caption>Steps of a sample" in page
    packed = re.search(r'id="data">([^<]+)<', page)
    assert packed is not None
    cases = json.loads(gzip.decompress(b64decode(packed[1])))["cases"]
    (calls,) = [case["results"][0]["calls"] for case in cases if case["id"] == "1"]
    assert [(call["step"], call.get("prompt")) for call in calls] == [("1", None), ("check", "user: check DRAFT RED")]


def test_a_prompt_has_no_steps(session: Session, desk: Desk) -> None:
    task = Task("plain", SAMPLES, "{input}", str)
    assert session.evaluate(task, ROUTE, progress=False).steps().empty
