"""A budget is never exceeded, stops a run cleanly, and a larger one goes on from there."""

import asyncio
import json
import threading
from contextlib import suppress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmkit.cli.main import run_command as llmkit
from llmkit.errors import LLMBadRequest, LLMBudgetExhausted, LLMEvaluationError
from llmkit.evals import Budget, Sample, field_match, judge
from llmkit.evals.budget import Amount, Books, amount
from llmkit.evals.run.budget_guard import BudgetGuard
from llmkit.ports import AttemptLog, ClientReply, apply_guard, use_guard
from llmkit.pricing import list_price
from llmkit.providers import compute_max_prompt_tokens, estimate_prompt_tokens
from llmkit.session import Session
from llmkit.testing import Fault, GeminiServer, OllamaServer, Reply
from llmkit.types import Attempt, AttemptStatus, LLMRequest, Route, TokenUsage, utc_now
from tests.support.eval_fakes import sentiment_task

OLLAMA, FLASH = "ollama/llama3.2", "gemini/gemini-2.5-flash"
GOOD = json.dumps({"label": "positive"})
ROUTE = Route.parse(OLLAMA)


def task_of(samples, *scorers, **parameters):
    dataset = [Sample(f"good {number}", "positive", id=f"s{number}") for number in range(samples)]
    return sentiment_task(
        dataset=dataset, scorers=scorers or (field_match("label"),), parameters={"max_output_tokens": 40} | parameters
    )


def on_ollama(server, **changes):
    return Session("w", ollama_api_base=server.url, **{"max_retries": 0} | changes)


def evaluated(session, task, routes=(OLLAMA,), **options):
    return session.evaluate(task, list(routes), name="run", **{"progress": False, "concurrency": 16} | options)


# --- the books ----------------------------------------------------------------------------------------------------

AMOUNTS = st.builds(Amount, st.integers(0, 60), st.integers(0, 60))


@given(
    st.integers(1, 100),
    st.integers(1, 100),
    AMOUNTS,
    st.lists(st.tuples(AMOUNTS, st.floats(0, 1), st.integers(0, 9)), max_size=40),
)
def test_what_is_spent_and_set_aside_is_never_above_a_limit(tokens, parts, earlier, steps):
    books = Books.of(Budget(max_tokens=tokens, max_cost_usd=parts / 10**12), earlier)
    held = []
    for most, share, which in steps:
        if which < 5 and held:
            amount_held = held.pop(which % len(held))
            books.settle(amount_held, Amount(*(int(part * share) for part in amount_held)))
        elif books.reserve(most):
            held.append(most)
        else:
            assert most.tokens > books.left("tokens") or most.money > books.left("cost")
        for kind, account in books.accounts.items():
            began = earlier.tokens if kind == "tokens" else earlier.money
            assert account.spent + account.reserved <= max(account.limit, began)
            assert account.reserved == sum(each.tokens if kind == "tokens" else each.money for each in held)
        if books.lacking(most) is not None:
            assert not books.reserve(most)


@pytest.mark.parametrize("limit", ["max_tokens", "max_cost_usd", "max_time_s"])
@pytest.mark.parametrize("value", [0, -1, float("nan"), float("inf"), "9"])
def test_a_limit_that_is_none_is_refused(limit, value):
    with pytest.raises(LLMEvaluationError, match=f"{limit} is a number above 0"):
        Budget(**{limit: value})


def test_a_cost_is_never_rounded_down():
    assert amount(1, 0.1 + 0.2).money >= 300_000_000_000
    assert amount(1, 1e-13).money == 1


# --- the budget guard -------------------------------------------------------------------------------------------


def asked(limit=10, text="x"):
    return LLMRequest(messages=text, route=ROUTE, max_output_tokens=limit)


def sent(tokens, status=200, **changes):
    counts = TokenUsage() if tokens is None else TokenUsage(input_tokens=tokens, output_tokens=0)
    return Attempt(
        route=ROUTE,
        number=1,
        status=AttemptStatus.SUCCEEDED,
        started_at_utc=utc_now(),
        latency_ms=5.0,
        usage=counts,
        status_code=status,
        **changes,
    )


class Wire:
    """Requests under way, each for so many turns of the loop, and what they may and did take."""

    def __init__(self):
        self.under_way = self.taken = self.highest = 0

    async def answer(self, log, turns, used, most):
        self.under_way += most
        self.highest = max(self.highest, self.taken + self.under_way)
        for _ in range(turns):
            await asyncio.sleep(0)
        self.under_way -= most
        self.taken += used
        log.add(sent(used))
        return ClientReply("", (), "stop", TokenUsage(), None)


@settings(max_examples=60)
@given(
    st.integers(300, 3_000),
    st.lists(st.tuples(st.integers(1, 900), st.floats(0, 1), st.integers(0, 6)), min_size=1, max_size=25),
)
def test_no_more_is_in_flight_than_the_budget_has_left(limit, requests):
    """In any order of ends, and all requests end."""
    wire = Wire()

    async def one(guard, answer, share, turns):
        request, log = asked(answer), AttemptLog()
        most = compute_max_prompt_tokens(request) + answer
        with suppress(LLMBudgetExhausted):
            await guard.send(ROUTE, request, log, lambda: wire.answer(log, turns, max(1, int(most * share)), most))

    async def main():
        guard = BudgetGuard(Budget(max_tokens=limit))
        async with guard.at_work(), asyncio.timeout(60):
            await asyncio.gather(*(one(guard, *request) for request in requests))
        return guard.use

    use = asyncio.run(main())
    assert wire.highest <= limit
    assert use.tokens == wire.taken
    assert wire.under_way == 0


@pytest.mark.parametrize(
    ("attempts", "counted"),
    [
        ([sent(7)], 7),
        ([], 0),
        ([sent(None, 500)], 0),
        ([sent(None, None)], "most"),
        ([sent(None, 200)], "most"),
        ([sent(None, 504)], "most"),
        ([sent(7).model_copy(update={"usage": TokenUsage(input_tokens=7, output_tokens=1, estimated=True)})], "most"),
        ([sent(0)], "most"),
        ([sent(10**12)], "most"),
        ([sent(10**6)], "most"),
        ([sent(7).model_copy(update={"usage": TokenUsage(input_tokens=7, output_tokens=10**6)})], "most"),
        ([sent(7).model_copy(update={"usage": TokenUsage(input_tokens=-7, output_tokens=1)})], "most"),
    ],
)
async def test_uncounted_requests_count_as_the_most_possible(attempts, counted):
    """Because they may have been billed."""
    guard, log, request = BudgetGuard(Budget(max_tokens=10_000)), AttemptLog(), asked()

    async def answer():
        for attempt in attempts:
            log.add(attempt)

    async with guard.at_work():
        await guard.send(ROUTE, request, log, answer)
    most = compute_max_prompt_tokens(request) + 10
    assert guard.use.tokens == (most if counted == "most" else counted)


@pytest.mark.parametrize(("input_tokens", "output_tokens"), [(0, 5), (3, 5), (3_000, 0), (10**8, 5), (3_000, 10**8)])
async def test_counts_that_contradict_the_text_are_unknown(input_tokens, output_tokens):
    guard, log, request = BudgetGuard(Budget(max_tokens=10**6)), AttemptLog(), asked(text="lorem ipsum " * 900)
    usage = TokenUsage(input_tokens=input_tokens, output_tokens=output_tokens)

    async def answer():
        log.add(sent(1).model_copy(update={"usage": usage}))
        return ClientReply("an answer of some words", (), "stop", usage, None)

    async with guard.at_work():
        await guard.send(ROUTE, request, log, answer)
    assert guard.use.tokens == compute_max_prompt_tokens(request) + 10


@pytest.mark.parametrize("cost", [float("nan"), -1.0, float("inf")])
async def test_a_cost_that_is_none_is_computed_from_the_price(cost):
    guard, log = (
        BudgetGuard(Budget(max_cost_usd=1.0), price_of=lambda route: list_price(Route.parse(FLASH))),
        AttemptLog(),
    )

    async def answer():
        log.add(sent(100).model_copy(update={"cost_usd": cost}))

    async with guard.at_work():
        await guard.send(ROUTE, asked(), log, answer)
    assert guard.use.cost_usd == pytest.approx(list_price(Route.parse(FLASH)).most(100, 0))


@pytest.mark.slow
@pytest.mark.parametrize("count", [0, -5, 10**8, 10**12, 10**30])
@pytest.mark.parametrize("route", [OLLAMA, FLASH])
def test_a_cap_stops_a_run_whose_server_cannot_count(route, count):
    """Neither at once, because of an absurd count, nor never, because of none; also when the run goes on."""
    reply = Reply(GOOD, input_tokens=count, output_tokens=count)
    with (
        OllamaServer(reply, models=["llama3.2"]) as ollama,
        GeminiServer(reply) as gemini,
        on_ollama(ollama, gemini_api_base=gemini.url, gemini_api_key="k-1234") as session,
    ):
        server = ollama if route == OLLAMA else gemini
        task = task_of(40)
        first = evaluated(session, task, [route], concurrency=2, budget=Budget(max_tokens=2_000))
        sent_first = server.call_count
        again = evaluated(session, task, [route], concurrency=2, budget=Budget(max_tokens=2_000))
        assert 0 < sent_first < 40
        assert server.call_count == sent_first
        larger = evaluated(session, task, [route], concurrency=2, budget=Budget(max_tokens=4_000))
        assert sent_first < server.call_count < 40
    assert [report.budget.stopped_by for report in (first, again, larger)] == ["tokens"] * 3
    assert first.budget.tokens <= 2_000
    assert larger.budget.tokens <= 4_000


def test_the_use_of_a_budget_is_that_of_the_run_and_not_of_one_process():
    reply, parameters = Reply(GOOD, input_tokens=60, output_tokens=20), {"max_output_tokens": 40}
    with (
        OllamaServer(reply, models=["llama3.2", "qwen3"]) as server,
        on_ollama(server) as session,
        on_ollama(server) as other,
    ):
        done = threading.Event()

        def shares(output, sample):
            if not done.is_set():
                done.set()
                evaluated(other, task_of(5), ["ollama/qwen3"], limit=3, budget=Budget(max_tokens=100_000))
            return 1

        report = evaluated(
            session,
            task_of(5, field_match("label"), shares, **parameters),
            budget=Budget(max_tokens=100_000, max_cost_usd=1),
        )
        assert server.usage.total_tokens == 8 * 80
    assert report.budget.tokens == 8 * 80


def test_what_loading_a_model_took_counts_when_the_run_goes_on():
    reply = Reply(GOOD, input_tokens=60, output_tokens=20)
    with OllamaServer(reply, models=["llama3.2"]) as server, on_ollama(server) as session:
        first = evaluated(session, task_of(20), limit=20, budget=Budget(max_tokens=100_000))
        again = evaluated(session, task_of(20), budget=Budget(max_tokens=100_000))
        assert server.usage.total_tokens == 21 * 80
    assert [report.budget.tokens for report in (first, again)] == [21 * 80] * 2


async def test_only_what_is_sent_in_its_own_loop_and_context_is_guarded():
    guard, log = BudgetGuard(Budget(max_tokens=1)), AttemptLog()

    async def answer():
        return "sent"

    assert apply_guard(ROUTE, asked(), log, answer) is answer
    with use_guard(guard):
        with pytest.raises(LLMBudgetExhausted):
            await apply_guard(ROUTE, asked(), log, answer)()
        found = []
        other = threading.Thread(
            target=lambda: found.append(asyncio.run(guard.send(ROUTE, asked(), AttemptLog(), answer)))
        )
        other.start()
        other.join()
    assert found == ["sent"]


async def test_a_request_without_an_output_limit_is_refused_by_itself():
    guard = BudgetGuard(Budget(max_tokens=1_000))
    with pytest.raises(LLMBadRequest, match="max_output_tokens"):
        await guard.send(ROUTE, LLMRequest(messages="x"), AttemptLog(), None)
    assert guard.stopped_by is None


@settings(max_examples=30)
@given(st.text(max_size=50), st.integers(1, 4))
def test_the_most_that_a_prompt_can_have_is_at_least_its_bytes_and_every_estimate(text, messages):
    request = LLMRequest(messages=[{"role": "user", "content": text}] * messages)
    assert compute_max_prompt_tokens(request) >= messages * len(text.encode())
    assert compute_max_prompt_tokens(request) >= estimate_prompt_tokens(request)


# --- tokens -------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_token_cap_holds_by_the_servers_count():
    """Retries, reasks and timeouts count, and a larger cap goes on."""
    replies = [
        Reply(GOOD, input_tokens=60, output_tokens=20),
        Fault.status(503),
        Reply("no json", input_tokens=50, output_tokens=30),
        Fault.reset(),
        Reply(GOOD, input_tokens=90, output_tokens=40),
    ]
    lock, asked_for = threading.Lock(), []

    def answer(request):
        with lock:
            asked_for.append(request.json["messages"][0]["content"])
            return replies[len(asked_for) % len(replies)]

    task, caps = task_of(60), (3_000, 5_000)
    with OllamaServer(answer, models=["llama3.2"]) as server, on_ollama(server, max_retries=1) as session:
        for cap in caps:
            report = evaluated(session, task, budget=Budget(max_tokens=cap))
            assert server.usage.total_tokens <= report.budget.tokens <= cap
            assert report.budget.stopped_by == "tokens"
            assert 0 < report.counts["SUCCEEDED"] < 60
            not_run = [result for result in report.results if result.status == "NOT_RUN"]
            assert {result.error_code for result in not_run} == {"budget_exhausted"}
            assert f"of {cap:,} tokens." in "".join(report.notes)
            assert "The same name with a larger budget goes on" in "".join(report.notes)
        replies[:] = [Reply(GOOD, input_tokens=60, output_tokens=20)]
        done = {result.sample_id for result in report.results if result.status == "SUCCEEDED"}
        asked_for.clear()
        report = evaluated(session, task)
        again = {f"s{text.partition('good ')[2]}" for text in asked_for}
    assert not report.has_failures
    assert again.isdisjoint(done)


def test_a_budget_that_suffices_changes_nothing_and_says_what_was_spent():
    with OllamaServer(Reply(GOOD), models=["llama3.2"]) as server, on_ollama(server) as session:
        report = evaluated(session, task_of(5), budget=Budget(max_tokens=100_000, max_cost_usd=1.0, max_time_s=600))
        assert report.budget.tokens == server.usage.total_tokens
    assert report.budget.cost_usd == 0
    assert report.budget.stopped_by is None
    assert not report.has_failures
    assert report.to_json()["budget"]["budget"] == {"max_tokens": 100_000, "max_cost_usd": 1.0, "max_time_s": 600}


def test_a_reask_beyond_the_budget_leaves_the_sample_open():
    """Its first answer is paid once."""
    replies = [Reply("no json", input_tokens=300, output_tokens=40), Reply(GOOD)]
    with OllamaServer(replies, models=["llama3.2"]) as server, on_ollama(server) as session:
        first = evaluated(session, task_of(1), budget=Budget(max_tokens=700))
        assert (len(server.calls), first.work.sent) == (1, 1)
        second = evaluated(session, task_of(1), budget=Budget(max_tokens=2_000))
        assert (len(server.calls), second.work.sent) == (2, 1)
    assert [report.results[0].status for report in (first, second)] == ["NOT_RUN", "SUCCEEDED"]
    assert second.results[0].outcome == "reasked"


def test_judges_are_paid_from_the_same_budget_and_no_answer_is_paid_twice_for_one():
    def answer(request):
        verdict = json.dumps({"reason": "so", "grade": 5})
        return Reply(verdict if request.json["model"] == "judge" else GOOD, input_tokens=200, output_tokens=40)

    parameters = {"max_output_tokens": 40}
    task = task_of(8, judge("Right?", route="ollama/judge", parameters=parameters))
    with OllamaServer(answer, models=["llama3.2", "judge"]) as server, on_ollama(server) as session:
        report = evaluated(session, task, concurrency=1, budget=Budget(max_tokens=2_000))
        assert server.usage.total_tokens <= report.budget.tokens <= 2_000
        assert report.counts["NOT_RUN"] > 0
        assert report.counts["SCORER_FAILED"] == 0
        report = evaluated(session, task)
        assert len(server.calls) == 16
        spent = {str(each.route): each.input_tokens + each.output_tokens for each in session.report("run").spent}
    assert not report.has_failures
    assert spent == {OLLAMA: 8 * 240, "ollama/judge": 8 * 240}


def test_what_a_scorer_of_one_s_own_asks_in_the_same_session_counts_too():
    with OllamaServer(Reply(GOOD, input_tokens=30, output_tokens=10), models=["llama3.2"]) as server:
        session = on_ollama(server)

        def asks(output, sample):
            session.chat(f"{sample.input}?", route=OLLAMA, max_output_tokens=20, use_cache=False)
            return 1

        report = evaluated(session, task_of(3, asks), budget=Budget(max_tokens=100_000))
        assert report.budget.tokens == server.usage.total_tokens == 6 * 40
        session.close()


def test_what_was_cut_off_earlier_counts_as_the_most_that_one_request_may_take():
    with OllamaServer(Fault.reset(), models=["llama3.2"]) as server, on_ollama(server) as session:
        evaluated(session, task_of(2))
        server.script(Reply(GOOD, input_tokens=60, output_tokens=20))
        report = evaluated(session, task_of(2), budget=Budget(max_tokens=900))
        assert report.budget.uncounted == 2
        assert report.counts["SUCCEEDED"] == 0
        assert any("2 earlier requests with an unknown end" in note for note in report.notes)
        report = evaluated(session, task_of(2), budget=Budget(max_tokens=3_000))
    assert not report.has_failures


@pytest.mark.parametrize("limit", [{"max_tokens": 9_999}, {"max_cost_usd": 1.0}])
def test_without_an_output_limit_a_budget_is_refused_before_anything_is_sent(limit):
    with OllamaServer(Reply(GOOD), models=["llama3.2"]) as server, on_ollama(server) as session:
        with pytest.raises(LLMEvaluationError, match=r"max_output_tokens.* missing for ollama/llama3.2\."):
            evaluated(session, task_of(2, max_output_tokens=None), budget=Budget(**limit))
        with pytest.raises(LLMEvaluationError, match="missing for the scorer 'judge'"):
            evaluated(session, task_of(2, judge("Right?", route=OLLAMA)), budget=Budget(**limit))
        assert len(server.calls) == 0
        with pytest.raises(LLMEvaluationError, match="there are: none yet"):
            session.report("run")


# --- cost ---------------------------------------------------------------------------------------------------------


def test_a_cap_of_cost_holds_by_what_the_server_counted_and_a_larger_one_goes_on():
    reply = Reply(GOOD, input_tokens=100, output_tokens=40)
    with GeminiServer(reply) as server, Session("w", gemini_api_base=server.url, gemini_api_key="k") as session:
        report = evaluated(session, task_of(40), [FLASH], budget=Budget(max_cost_usd=0.002))
        price = list_price(Route.parse(FLASH))
        billed = price.usual(server.usage.input_tokens, server.usage.output_tokens)
        assert billed == pytest.approx(session.attempts()["cost_usd"].sum())
        assert billed <= report.budget.cost_usd + 1e-12
        assert report.budget.cost_usd == pytest.approx(billed)
        assert report.budget.cost_usd <= 0.002
        assert (report.budget.stopped_by, report.budget.tokens) == ("cost", None)
        assert "$0.0020" in report.budget.why
        done = report.counts["SUCCEEDED"]
        assert 0 < done < 40
        report = evaluated(session, task_of(40), [FLASH], budget=Budget(max_cost_usd=0.02))
        assert len(server.calls) == 40
    assert not report.has_failures
    assert report.budget.cost_usd == pytest.approx(price.usual(4_000, 1_600))


def test_a_price_that_is_not_known_is_refused_before_anything_is_sent():
    with GeminiServer() as server, Session("w", gemini_api_base=server.url, gemini_api_key="k") as session:
        for route in ("gemini/some-new-model", "ollama/gpt-oss:120b-cloud"):
            with pytest.raises(LLMEvaluationError, match=f"price of {route} is not known.*max_tokens"):
                evaluated(session, task_of(2), [OLLAMA, route], budget=Budget(max_cost_usd=1.0))
        assert len(server.calls) == 0


# --- time ---------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_when_the_time_is_over_calls_are_cancelled():
    """The rest runs the next time."""
    quick = ("good 0", "good 1", "warm up")

    def answer(request):
        said = request.json["messages"][0]["content"]
        return Reply(GOOD) if any(text in said for text in quick) else Fault.hang()

    with OllamaServer(answer, models=["llama3.2"]) as server, on_ollama(server) as session:
        session.chat("warm up", route=OLLAMA)
        report = evaluated(session, task_of(6), concurrency=4, budget=Budget(max_time_s=1.5))
        assert server.wait_until_idle(60)
        done = report.counts["SUCCEEDED"]
        assert (report.budget.stopped_by, report.counts["NOT_RUN"]) == ("time", 6 - done)
        assert done <= 2
        assert any("time budget of 1.5 s" in note for note in report.notes)
        quick, before = ("good",), len(server.calls)
        report = evaluated(session, task_of(6), budget=Budget(max_time_s=600))
        assert len(server.calls) == before + 6 - done
    assert not report.has_failures


async def test_no_request_begins_that_would_end_too_late():
    """If it took as long as the slowest one."""
    now = [0.0]
    guard, log = BudgetGuard(Budget(max_time_s=60), clock=lambda: now[0]), AttemptLog()

    async def slow():
        log.add(sent(1).model_copy(update={"latency_ms": 20_000.0}))

    async with guard.at_work():
        await guard.send(ROUTE, asked(), log, slow)
        now[0] = 39.0
        await guard.send(ROUTE, asked(), log, slow)
        now[0] = 41.0
        with pytest.raises(LLMBudgetExhausted, match=r"slowest request took 20\.0 s, and less is left"):
            await guard.send(ROUTE, asked(), log, slow)
    assert guard.stopped_by == "time"
    assert len(log.attempts) == 2


def test_the_bar_ends_where_a_budget_stopped_the_run(capsys):
    """And states the reason."""
    seen = []
    reply = Reply(GOOD, input_tokens=60, output_tokens=20)
    with OllamaServer(reply, models=["llama3.2"]) as server, on_ollama(server) as session:
        report = evaluated(session, task_of(20), budget=Budget(max_tokens=1_500), progress=seen.append)
        assert 0 < (done := report.counts["SUCCEEDED"]) < 20
        assert (seen[-1].done, seen[-1].total, seen[-1].stopped_by) == (done, 20, "tokens")
        assert seen[0].stopped_by is None
        again = evaluated(session, task_of(20), budget=Budget(max_tokens=1_500), progress=True)
        done, drawn = again.counts["SUCCEEDED"], capsys.readouterr().err
        assert f"{done}/20 [" in drawn
        assert "20/20 [" not in drawn
        assert "stopped_by=budget of tokens" in drawn
        whole = evaluated(session, task_of(20), budget=Budget(max_tokens=90_000), progress=seen.append)
    assert whole.counts["SUCCEEDED"] == 20
    assert (seen[-1].done, seen[-1].stopped_by) == (20, None)


def test_the_progress_of_a_run_that_time_stopped_says_so():
    seen = []
    with OllamaServer(Fault.hang()) as server, on_ollama(server) as session:
        evaluated(session, task_of(4), budget=Budget(max_time_s=0.5), progress=seen.append)
    assert (seen[-1].done, seen[-1].stopped_by) == (0, "time")


# --- command line -------------------------------------------------------------------------------------------------


def test_the_command_stops_within_its_budget_and_says_so(tmp_path, monkeypatch, capsys):
    (tmp_path / "t.yaml").write_text(
        "name: t\ndataset: t.jsonl\nprompt: '{input}'\nparameters: {max_output_tokens: 40}\n"
        "output_schema: {properties: {label: {type: string}}, required: [label]}\nscorers: [exact_match]\n"
    )
    (tmp_path / "t.jsonl").write_text("".join(f'{{"input": "x{number}"}}\n' for number in range(9)))
    with OllamaServer(Reply(GOOD, input_tokens=60, output_tokens=20), models=["llama3.2"]) as server:
        monkeypatch.setenv("LLM_OLLAMA_API_BASE", server.url)
        command = ["eval", "run", "t.yaml", "--routes", OLLAMA, "--name", "n"]
        limits = ["--max-tokens", "900", "--max-cost-usd", "1", "--max-time-s", "600"]
        assert llmkit([*command, *limits, "--json"]) == 1
        document = json.loads(capsys.readouterr().out)
        assert document["budget"]["stopped_by"] == "tokens"
        assert server.usage.total_tokens == document["budget"]["tokens"] <= 900
        assert llmkit([*command, "--max-tokens", "90000"]) in (0, 1)
        assert "has spent 720 of 90,000 tokens" in " ".join(capsys.readouterr().out.split())
        assert len(server.calls) == 9
        assert llmkit([*command, "--max-tokens", "0"]) == 2
