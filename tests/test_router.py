"""The router: plans, constraints, fallback and cooling-off, on a client that does what the test says."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

import pytest
from hypothesis import example, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from llmkit.errors import (
    LLMAllRoutesFailed,
    LLMAuthenticationError,
    LLMBadRequest,
    LLMConfigurationError,
    LLMContentBlocked,
    LLMEmptyReply,
    LLMError,
    LLMModelNotFound,
    LLMNoRoute,
    LLMRateLimited,
    LLMTimeout,
    LLMUnavailable,
    LLMUnsupported,
)
from llmkit.ports import AnswerSink, AttemptLog, BeforeSend, ClientReply, NotSent, allow_sending
from llmkit.providers import PROVIDERS
from llmkit.providers.model_facts import Fact, FactBook, ModelFacts
from llmkit.router import PROVIDER_CAPABILITIES, LLMRouter, plan_as_json
from llmkit.settings import load_settings
from llmkit.types import (
    Attempt,
    AttemptStatus,
    LLMConstraints,
    LLMProfile,
    LLMProvider,
    LLMRequest,
    ResponseFormat,
    Route,
    TokenUsage,
    ToolDefinition,
    utc_now,
)

OLLAMA, GEMINI, LOCAL = LLMProvider.OLLAMA, LLMProvider.GEMINI, LLMProvider.LOCAL
TOOLS = (ToolDefinition(name="look_up"),)
SCHEMA = ResponseFormat(json_schema={"type": "object"})
LOCAL_INSTALLED = replace(PROVIDERS[LOCAL], configuration_problem=lambda _settings: None)
LOCAL_MISSING = replace(PROVIDERS[LOCAL], configuration_problem=lambda _settings: "not installed: pip install x")
WITH_LOCAL = {**PROVIDERS, LOCAL: LOCAL_INSTALLED}
WITHOUT_LOCAL = {**PROVIDERS, LOCAL: LOCAL_MISSING}


class Scripted:
    """Answers, or raises, by provider; the last of several repeats."""

    def __init__(self, **outcomes) -> None:
        self.outcomes = {LLMProvider(name): list(each) for name, each in outcomes.items()}
        self.called: list[str] = []

    async def call(
        self,
        route: Route,
        request: LLMRequest,
        log: AttemptLog,
        before_send: BeforeSend = allow_sending,
        *,
        sink: AnswerSink | None = None,
    ) -> ClientReply | NotSent:
        if (not_sent := await before_send()) is not None:
            return not_sent
        self.called.append(str(route.provider))
        queue = self.outcomes.get(route.provider, ["fine"])
        outcome = queue.pop(0) if len(queue) > 1 else queue[0]
        failed = isinstance(outcome, BaseException)
        status = AttemptStatus.FAILED if failed else AttemptStatus.SUCCEEDED
        log.add(Attempt(route=route, number=log.next_number, status=status, started_at_utc=utc_now(), latency_ms=1.0))
        if failed:
            raise outcome
        return ClientReply(outcome, (), "stop", TokenUsage(), route.model)

    async def close(self) -> None: ...


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


def router(client=None, providers=WITH_LOCAL, clock=None, **settings) -> LLMRouter:
    defaults = {"gemini_api_key": "k", "cooldown_after_failures": 3, "cooldown_s": 30}
    return LLMRouter(load_settings(**{**defaults, **settings}), client or Scripted(), providers, clock or Clock())


def order(plan) -> list[str]:
    return [str(route.provider) for route in plan.candidates]


def reasons(plan) -> dict[str, str]:
    return {str(entry.route.provider): entry.excluded_because for entry in plan.entries if entry.excluded_because}


# -- the order -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("policy", "profile", "expected"),
    [
        ("by_profile", "fast", ["ollama", "gemini", "local"]),
        ("by_profile", "balanced", ["ollama", "gemini", "local"]),
        ("by_profile", "quality", ["gemini", "ollama", "local"]),
        ("prefer_local", "quality", ["ollama", "local", "gemini"]),
        ("prefer_cloud", "fast", ["gemini", "ollama", "local"]),
        ("cheapest_known", "quality", ["ollama", "local", "gemini"]),
    ],
)
def test_order_by_policy_and_profile(policy, profile, expected):
    plan = router(router_policy=policy).explain(LLMRequest(messages="Hi", profile=profile))
    assert order(plan) == expected
    assert plan.policy == policy


def test_default_profile_and_models_come_from_the_settings():
    plan = router(default_profile="quality", gemini_model="g-1", ollama_model="o-1").explain(LLMRequest(messages="Hi"))
    assert [str(route) for route in plan.candidates] == ["gemini/g-1", "ollama/o-1", "local/gemma-3-270m"]


def test_tools_go_to_gemini():
    plan = router(router_policy="prefer_local").explain(LLMRequest(messages="Hi", tools=TOOLS))
    assert order(plan) == ["gemini"]
    assert "depends on the model" in reasons(plan)["ollama"]
    assert reasons(plan)["local"] == "it cannot call tools"


def test_a_schema_goes_to_all_that_can_be_held_to_it():
    assert len(order(router().explain(LLMRequest(messages="Hi", response_format=SCHEMA)))) == 3
    loose = replace(PROVIDERS[OLLAMA], caps=PROVIDERS[OLLAMA].caps.model_copy(update={"supports_json_schema": False}))
    plan = router(providers={**WITH_LOCAL, OLLAMA: loose}).explain(LLMRequest(messages="Hi", response_format=SCHEMA))
    assert order(plan) == ["gemini", "local"]


def test_what_is_missing_is_said():
    plan = router(providers=WITHOUT_LOCAL, gemini_api_key=None).explain(LLMRequest(messages="Hi"))
    assert order(plan) == ["ollama"]
    assert reasons(plan) == {"gemini": "no key: set LLM_GEMINI_API_KEY", "local": "not installed: pip install x"}
    assert "gemini/gemini-2.5-flash: excluded, no key: set LLM_GEMINI_API_KEY" in str(plan)


def test_local_only_looks_at_the_address():
    local_only = LLMRequest(messages="Hi", constraints=LLMConstraints(local_only=True))
    assert order(router().explain(local_only)) == ["ollama", "local"]
    away = router(ollama_api_base="http://gpu.example.org:11434").explain(local_only)
    assert order(away) == ["local"]
    assert reasons(away)["ollama"] == "local_only, and ollama answers at http://gpu.example.org:11434"


def test_local_only_is_not_fooled_by_a_gemini_base_on_this_machine():
    request = LLMRequest(messages="Hi", constraints=LLMConstraints(local_only=True))
    assert "gemini" not in order(router(gemini_api_base="http://127.0.0.1:1").explain(request))


@pytest.mark.parametrize("model", ["gpt-oss:120b-cloud", "glm-4.6:cloud", "library/qwen3-coder:480b-cloud"])
def test_a_cloud_model_of_a_local_ollama_is_neither_local_nor_free(model):
    local_only = LLMRequest(messages="Hi", route=f"ollama/{model}", constraints=LLMConstraints(local_only=True))
    plan = router().explain(local_only)
    assert order(plan) == []
    assert reasons(plan)["ollama"] == f"local_only, and {model} runs in the cloud of ollama"
    cheapest = router(router_policy="cheapest_known", ollama_model=model).explain(LLMRequest(messages="Hi"))
    assert order(cheapest) == ["local", "ollama", "gemini"]


def test_a_plan_is_a_table_in_a_notebook_and_escaped():
    plan = router(gemini_model="<script>alert(1)</script>").explain(LLMRequest(messages="Hi", tools=TOOLS))
    shown = plan._repr_html_()
    assert shown.count("<tr") == 4
    assert "gemini/&lt;script&gt;" in shown
    assert "<script>" not in shown
    assert "it cannot call tools" in shown


def test_allowed_providers_and_context():
    only = LLMRequest(messages="Hi", constraints=LLMConstraints(allowed_providers=frozenset({GEMINI})))
    assert order(router().explain(only)) == ["gemini"]
    wide = LLMRequest(messages="Hi", constraints=LLMConstraints(min_context_tokens=100_000))
    assert order(router().explain(wide)) == ["ollama", "gemini"]  # Ollama's depends on the model and is not known


def test_a_prompt_that_cannot_fit_is_not_sent_to_a_small_window():
    plan = router().explain(LLMRequest(messages="word " * 10_000))
    assert "local" not in order(plan)


def test_a_pinned_route_is_the_only_candidate():
    plan = router().explain(LLMRequest(messages="Hi", route="ollama/mistral", profile="quality"))
    assert [str(route) for route in plan.candidates] == ["ollama/mistral"]
    assert plan.policy == "pinned"


def test_a_pinned_ollama_model_is_asked_for_tools():
    assert order(router().explain(LLMRequest(messages="Hi", route="ollama/qwen3", tools=TOOLS))) == ["ollama"]


def test_select_provider_takes_constraints_in_place_of_the_request():
    request = LLMRequest(messages="Hi")
    assert router().select_provider(request) is OLLAMA
    assert router().select_provider(request, LLMConstraints(allowed_providers=frozenset({GEMINI}))) is GEMINI


def test_the_matrix_is_a_plain_dict_of_every_provider():
    assert set(PROVIDER_CAPABILITIES) == set(LLMProvider)
    assert PROVIDER_CAPABILITIES[GEMINI].supports_tools
    assert not PROVIDER_CAPABILITIES[GEMINI].is_local


# -- nothing left ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("request_", "error", "message"),
    [
        (LLMRequest(messages="Hi", route="gemini/x"), LLMConfigurationError, "set LLM_GEMINI_API_KEY"),
        (LLMRequest(messages="Hi", route="local/gemma-3-270m"), LLMConfigurationError, "pip install x"),
        (
            LLMRequest(messages="Hi", route="gemini/x", constraints=LLMConstraints(local_only=True)),
            LLMNoRoute,
            "breaks a constraint of the request: local_only",
        ),
        (
            LLMRequest(messages="Hi", route="local/gemma-3-270m", tools=TOOLS),
            LLMUnsupported,
            "it cannot call tools",
        ),
        (LLMRequest(messages="Hi", tools=TOOLS), LLMNoRoute, "gemini/gemini-2.5-flash: no key"),
    ],
)
async def test_no_candidate_is_one_readable_error(request_, error, message):
    client = Scripted()
    subject = router(client, WITHOUT_LOCAL, gemini_api_key=None)
    with pytest.raises(error, match=message) as caught:
        await subject.execute(request_)
    assert type(caught.value) is error
    with pytest.raises(error, match=message):
        subject.select_provider(request_)
    assert client.called == []


async def test_no_route_lists_every_exclusion():
    request = LLMRequest(messages="Hi", constraints=LLMConstraints(allowed_providers=frozenset()))
    with pytest.raises(LLMNoRoute) as caught:
        await router().execute(request)
    assert [line.split(":")[0].strip() for line in str(caught.value).splitlines()[1:]] == [
        "ollama/llama3.2",
        "gemini/gemini-2.5-flash",
        "local/gemma-3-270m",
    ]


async def test_a_misspelt_allowed_endpoint_is_named_with_a_suggestion():
    request = LLMRequest(messages="Hi", constraints=LLMConstraints(allowed_providers={LLMProvider("olama")}))
    with pytest.raises(LLMNoRoute, match="there is no endpoint 'olama'; did you mean ollama"):
        await router().execute(request)


# -- fallback --------------------------------------------------------------------------------------


@pytest.mark.parametrize("error", [LLMUnavailable, LLMTimeout, LLMRateLimited, LLMEmptyReply])
async def test_a_retryable_failure_moves_on_once_each(error):
    client = Scripted(ollama=[error("down")])
    log = AttemptLog()
    routed = await router(client).execute(LLMRequest(messages="Hi"), log=log)
    assert client.called == ["ollama", "gemini"]
    assert routed.route.provider is GEMINI
    assert routed.plan_record["failures"] == [{"route": "ollama/llama3.2", "error_code": error.code}]
    assert routed.plan_record["served_by"] == "gemini/gemini-2.5-flash"
    assert len(log.attempts) == 2


@pytest.mark.parametrize(
    "error",
    [LLMAuthenticationError, LLMBadRequest, LLMModelNotFound, LLMContentBlocked, LLMConfigurationError, LLMError],
)
async def test_a_non_retryable_failure_does_not(error):
    client = Scripted(gemini=[error("no")])
    with pytest.raises(error) as caught:
        await router(client, router_policy="prefer_cloud").execute(LLMRequest(messages="Hi"))
    assert client.called == ["gemini"]
    assert len(caught.value.attempts) == 1
    assert (caught.value.provider, caught.value.model) == (GEMINI, "gemini-2.5-flash")


async def test_fallback_can_be_forbidden():
    client = Scripted(ollama=[LLMUnavailable("down")])
    request = LLMRequest(messages="Hi", constraints=LLMConstraints(allow_fallback=False))
    with pytest.raises(LLMUnavailable) as caught:
        await router(client).execute(request)
    assert type(caught.value) is LLMUnavailable
    assert client.called == ["ollama"]


async def test_a_pinned_route_fails_with_its_own_error():
    client = Scripted(ollama=[LLMTimeout("late")])
    with pytest.raises(LLMTimeout, match="late"):
        await router(client).execute(LLMRequest(messages="Hi", route="ollama/llama3.2"))
    assert client.called == ["ollama"]


async def test_when_all_fail_each_is_told_in_order():
    client = Scripted(ollama=[LLMUnavailable("a")], gemini=[LLMTimeout("b")], local=[LLMUnavailable("c")])
    with pytest.raises(LLMAllRoutesFailed) as caught:
        await router(client).execute(LLMRequest(messages="Hi"))
    assert [str(error) for error in caught.value.errors] == ["a", "b", "c"]
    assert [str(attempt.route.provider) for attempt in caught.value.attempts] == ["ollama", "gemini", "local"]
    assert "1. ollama/llama3.2: a" in str(caught.value)


def refused() -> LLMUnavailable:
    error = LLMUnavailable("Ollama does not answer at http://localhost:11434.", provider=OLLAMA, model="llama3.2")
    error.retries_in_call = False
    return error


async def test_without_any_provider_one_message_lists_all_ways():
    nothing = router(Scripted(ollama=[refused()]), WITHOUT_LOCAL, gemini_api_key=None)
    with pytest.raises(LLMUnavailable) as caught:
        await nothing.execute(LLMRequest(messages="Hi"))
    message = str(caught.value)
    assert type(caught.value) is LLMUnavailable
    assert "http://localhost:11434" in message
    for way in ("ollama serve", "LLM_GEMINI_API_KEY", "pip install 'llmkit-research[local]'", "llmkit doctor"):
        assert way in message
    assert len(caught.value.attempts) == 1


@pytest.mark.parametrize(
    ("providers", "key", "request_"),
    [
        (WITHOUT_LOCAL, None, LLMRequest(messages="Hi", route="ollama/llama3.2")),
        (WITHOUT_LOCAL, None, LLMRequest(messages="Hi", constraints=LLMConstraints(allow_fallback=False))),
        (WITH_LOCAL, None, LLMRequest(messages="Hi", constraints=LLMConstraints(allowed_providers={OLLAMA}))),
    ],
)
async def test_a_route_that_was_chosen_fails_with_its_own_error(providers, key, request_):
    with pytest.raises(LLMUnavailable) as caught:
        await router(Scripted(ollama=[refused()]), providers, gemini_api_key=key).execute(request_)
    assert "No model can be reached" not in str(caught.value)


async def test_a_server_that_answers_is_not_a_missing_one():
    client = Scripted(ollama=[LLMUnavailable("overloaded", status_code=503)])
    with pytest.raises(LLMUnavailable, match=r"^overloaded$"):
        await router(client, WITHOUT_LOCAL, gemini_api_key=None).execute(LLMRequest(messages="Hi"))


async def test_a_wrong_key_ends_it_after_an_earlier_failure_too():
    client = Scripted(ollama=[LLMUnavailable("down")], gemini=[LLMAuthenticationError("key")])
    with pytest.raises(LLMAuthenticationError) as caught:
        await router(client).execute(LLMRequest(messages="Hi"))
    assert client.called == ["ollama", "gemini"]
    assert len(caught.value.attempts) == 2


# -- cooling off -----------------------------------------------------------------------------------


async def fail(subject: LLMRouter, times: int, request: LLMRequest) -> None:
    for _ in range(times):
        with pytest.raises(LLMUnavailable):
            await subject.execute(request)


async def test_a_dead_route_is_passed_over_and_tried_again_later():
    clock, client = Clock(), Scripted(ollama=[LLMUnavailable("down")])
    subject = router(client, clock=clock)
    for _ in range(5):
        await subject.execute(LLMRequest(messages="Hi"))
    assert client.called.count("ollama") == 3
    plan = subject.explain(LLMRequest(messages="Hi"))
    assert order(plan) == ["gemini", "local"]
    assert reasons(plan)["ollama"] == "cooling off after 3 failed calls, for 30 s more"
    clock.now += 31
    client.outcomes[OLLAMA] = ["back"]
    assert (await subject.execute(LLMRequest(messages="Hi"))).route.provider is OLLAMA
    assert order(subject.explain(LLMRequest(messages="Hi")))[0] == "ollama"


async def test_one_trial_per_cool_down():
    clock, client = Clock(), Scripted(ollama=[LLMUnavailable("down")])
    subject = router(client, clock=clock)
    pinned = LLMRequest(messages="Hi", route="ollama/llama3.2")
    await fail(subject, 10, pinned)
    assert len(client.called) == 3
    clock.now += 31
    await fail(subject, 10, pinned)
    assert len(client.called) == 4
    clock.now += 29
    await fail(subject, 1, pinned)
    assert len(client.called) == 4


async def test_a_pinned_route_fails_fast_and_says_why():
    subject = router(Scripted(ollama=[LLMUnavailable("down")]))
    pinned = LLMRequest(messages="Hi", route="ollama/llama3.2")
    await fail(subject, 3, pinned)
    with pytest.raises(LLMUnavailable, match="left alone for 30 s more; nothing was sent") as caught:
        await subject.execute(pinned)
    assert caught.value.retry_after_s == 30
    assert caught.value.attempts == ()


async def test_when_all_that_is_left_cools_off_it_is_not_for_lack_of_a_route():
    subject = router(Scripted(ollama=[LLMUnavailable("down")]), WITHOUT_LOCAL, gemini_api_key=None)
    await fail(subject, 3, LLMRequest(messages="Hi"))
    with pytest.raises(LLMUnavailable, match="No route answers at the moment"):
        await subject.execute(LLMRequest(messages="Hi"))


async def test_only_outages_count_and_an_answer_ends_the_count():
    client = Scripted(gemini=[LLMAuthenticationError("key")])
    subject = router(client)
    pinned = LLMRequest(messages="Hi", route="gemini/gemini-2.5-flash")
    for _ in range(9):
        with pytest.raises(LLMAuthenticationError):
            await subject.execute(pinned)
    assert len(client.called) == 9
    down = LLMUnavailable("down")
    client.outcomes[GEMINI] = [down, down, "fine", down, down, "fine"]
    for _ in range(2):
        await fail(subject, 2, pinned)
        await subject.execute(pinned)
    assert len(client.called) == 15


async def test_a_plan_made_before_the_outage_does_not_reach_the_dead_server():
    client = Scripted(ollama=[LLMUnavailable("down")])
    subject = router(client)
    plan = subject.explain(LLMRequest(messages="Hi"))
    await fail(subject, 3, LLMRequest(messages="Hi", route="ollama/llama3.2"))
    routed = await subject.execute(LLMRequest(messages="Hi"), plan)
    assert routed.route.provider is GEMINI
    assert client.called == ["ollama"] * 3 + ["gemini"]


# -- properties ------------------------------------------------------------------------------------

requests = st.builds(
    LLMRequest,
    messages=st.text(min_size=1, max_size=40),
    route=st.none() | st.sampled_from(["ollama/a", "ollama/a:cloud", "gemini/b", "local/gemma-3-270m"]),
    profile=st.none() | st.sampled_from(LLMProfile),
    tools=st.sampled_from([(), TOOLS]),
    response_format=st.sampled_from([None, SCHEMA, ResponseFormat()]),
    constraints=st.builds(
        LLMConstraints,
        local_only=st.booleans(),
        allowed_providers=st.none() | st.frozensets(st.sampled_from(LLMProvider)),
        allow_fallback=st.booleans(),
        min_context_tokens=st.none() | st.integers(1, 2_000_000),
    ),
)
environments = st.fixed_dictionaries(
    {
        "router_policy": st.sampled_from(["by_profile", "prefer_local", "prefer_cloud", "cheapest_known"]),
        "gemini_api_key": st.sampled_from([None, "k"]),
        "ollama_api_base": st.sampled_from(
            [
                "http://localhost:1",
                "http://127.0.0.2:1",
                "http://[::1]:1",
                "http://10.0.0.1:1",
                "http://localhost.evil.org",
            ]
        ),
        "gemini_api_base": st.sampled_from([None, "http://127.0.0.1:1"]),
    }
)


@hypothesis_settings(deadline=None)
@given(requests, environments, st.booleans())
def test_no_plan_breaks_a_constraint(request, environment, installed):
    settings = load_settings(**environment)
    providers = WITH_LOCAL if installed else WITHOUT_LOCAL
    subject = LLMRouter(settings, Scripted(), providers, Clock())
    plan = subject.explain(request)
    constraints = request.constraints
    for route in plan.candidates:
        spec = providers[route.provider]
        assert request.route is None or route == request.route
        assert spec.configuration_problem(settings) is None
        assert constraints.allowed_providers is None or route.provider in constraints.allowed_providers
        assert not request.tools or spec.caps.supports_tools or (request.route and spec.tools_depend_on_model)
        window = spec.context_tokens(settings, route.model)
        assert window is None or window >= (constraints.min_context_tokens or 0)
        if constraints.local_only:
            remote = str(settings.ollama_api_base).startswith(("http://10.", "http://localhost.evil"))
            assert route.provider is LOCAL or (route.provider is OLLAMA and not remote)
            assert not route.model.endswith("cloud")
    assert len({entry.route for entry in plan.entries}) == len(plan.entries) == (1 if request.route else 3)
    assert all(entry.excluded_because != "" for entry in plan.entries)
    assert subject.explain(request) == plan
    assert plan_as_json(plan)["policy"] == plan.policy


happenings = st.one_of(
    requests.map(lambda request: ("ask", request)),
    st.integers(1, 60_000).map(lambda chars: ("ask", LLMRequest(messages="ab" * chars))),
    st.tuples(st.just("learn"), st.sampled_from(["ollama/llama3.2", "ollama/a"]), st.integers(100, 20_000)),
    st.tuples(st.just("fail"), st.sampled_from(["ollama/llama3.2", "gemini/gemini-2.5-flash"])),
    st.tuples(st.just("park"), st.sampled_from(["ollama/llama3.2", "gemini/gemini-2.5-flash"])),
    st.integers(1, 40).map(lambda seconds: ("wait", seconds)),
)


@pytest.mark.slow
@hypothesis_settings(max_examples=40, deadline=None)
@given(st.lists(happenings, min_size=2, max_size=12), environments)
def test_a_plan_that_is_kept_is_the_one_that_would_be_made(history, environment):
    settings, book, clock = load_settings(**environment), FactBook(), Clock()
    subject = LLMRouter(settings, Scripted(), WITH_LOCAL, clock, book)
    for happening, *details in history:
        if happening == "learn":
            book.report(Route.parse(details[0]), ModelFacts(context_tokens=Fact(details[1], "reported")))
        elif happening == "fail":
            for _ in range(settings.cooldown_after_failures):
                subject._breaker.note_failure(Route.parse(details[0]))
        elif happening == "park":
            subject._breaker.note_quota_used_up(Route.parse(details[0]), 30)
        elif happening == "wait":
            clock.now += details[0]
        else:
            anew = LLMRouter(settings, Scripted(), WITH_LOCAL, clock, book)
            anew._planner._breaker = subject._breaker
            assert subject.explain(details[0]) == anew.explain(details[0])
            assert subject.open_routes(details[0]) == anew.open_routes(details[0])


async def test_a_call_does_not_make_the_plan_of_the_last_one_anew():
    subject = router()
    first, second = [subject.explain(LLMRequest(messages=text)) for text in ("Hi", "Ho")]
    assert first is second
    assert subject.explain(LLMRequest(messages="Hi", profile="quality")) is not first


@given(
    st.lists(st.text().filter(str.strip), min_size=2, max_size=2), st.lists(st.sampled_from(LLMProvider), min_size=2)
)
@example(["0\r", "0\x1c"], [LLMProvider.OLLAMA, LLMProvider.OLLAMA])
@example(["\x1f0", "\u20030"], [LLMProvider.OLLAMA, LLMProvider.OLLAMA])
def test_routes_are_equal_by_content_and_equal_ones_are_one_key(models, providers):
    one, other = [Route(provider=provider, model=model) for provider, model in zip(providers, models, strict=False)]
    assert (one == other) is (str(one) == str(other))
    assert one == Route.parse(str(one))
    assert len({one, Route.parse(str(one))}) == 1
    assert one != str(one)


SCRIPT = """
import hashlib, json
from llmkit.router import LLMRouter, plan_as_json
from llmkit.settings import load_settings
from llmkit.types import LLMConstraints, LLMProvider, LLMRequest
digest = hashlib.sha256()
for policy in ("by_profile", "prefer_local", "prefer_cloud", "cheapest_known"):
    router = LLMRouter(load_settings(router_policy=policy, gemini_api_key="k"), None)
    for profile in ("fast", "balanced", "quality"):
        for allowed in (None, frozenset(LLMProvider), frozenset({LLMProvider.OLLAMA, LLMProvider.GEMINI})):
            request = LLMRequest(messages="Hi", profile=profile, constraints=LLMConstraints(allowed_providers=allowed))
            for _ in range(112):
                digest.update(json.dumps(plan_as_json(router.explain(request))).encode())
print(digest.hexdigest())
"""


@pytest.mark.slow
def test_the_same_plan_in_every_process():
    def planned(seed: str) -> str:
        environment = {"PYTHONHASHSEED": seed, "PATH": ""}
        return subprocess.run(
            [sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True, env=environment
        ).stdout

    assert planned("1") == planned("2") == planned("33")
