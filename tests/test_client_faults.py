"""The fault table, over real HTTP and through the real litellm."""

from __future__ import annotations

import json

import pytest

from llmkit import errors
from llmkit.client_litellm import LiteLLMClient
from llmkit.errors import LLMError, LLMQuotaExhausted, LLMUnavailable
from llmkit.ports import AttemptLog
from llmkit.providers import load_endpoints
from llmkit.settings import load_settings
from llmkit.testing import (
    AnthropicServer,
    Fault,
    GeminiServer,
    OllamaServer,
    OpenAIServer,
    Reply,
    StandInServer,
    get_refused_url,
)
from llmkit.transport.http.error_mapping import _duration_seconds
from llmkit.transport.http.error_rules import RULES, Seen, rule_for
from llmkit.types import AttemptStatus, LLMProvider, LLMRequest, ResponseFormat, Route
from tests.support.client_faults import CASES, MAX_RETRIES, REFUSED, UNKNOWN_HOST, UNKNOWN_MODEL, Case
from tests.support.errors_help import HELP
from tests.support.errors_page import PAGE, page

KEY = "AIzaSyCanary0123456789-canary_canary"
MODELS = {
    LLMProvider.OLLAMA: "llama3.2",
    LLMProvider.GEMINI: "gemini-2.5-flash",
    LLMProvider.OPENAI: "gpt-4o-mini",
    LLMProvider.ANTHROPIC: "claude-sonnet-4-5",
}
PATHS = ("fast", "reference")
SCHEMA = {"type": "object", "properties": {"a": {"type": "string"}}, "required": ["a"]}
ALL = [pytest.param(case, provider, id=f"{case.name}-{provider}") for case in CASES for provider in case.providers]


@pytest.fixture(scope="module")
def servers():
    with (
        OllamaServer() as ollama,
        GeminiServer() as gemini,
        OpenAIServer() as openai,
        AnthropicServer(models=[MODELS[LLMProvider.ANTHROPIC]]) as anthropic,
    ):
        yield {
            LLMProvider.OLLAMA: ollama,
            LLMProvider.GEMINI: gemini,
            LLMProvider.OPENAI: openai,
            LLMProvider.ANTHROPIC: anthropic,
        }


async def no_wait(seconds: float) -> None:
    assert seconds >= 0


def address(case: Case, server: StandInServer) -> str:
    return {REFUSED: get_refused_url(), UNKNOWN_HOST: "https://no-such-host.invalid"}.get(str(case.happens), server.url)


@pytest.mark.slow
@pytest.mark.parametrize(("case", "provider"), ALL)
async def test_failure_becomes_what_the_table_says_on_both_paths(case, provider, servers):
    base = address(case, servers[provider])
    fast, reference = [await outcome(path, case, provider, servers[provider], base) for path in PATHS]
    assert fast == reference


async def outcome(path: str, case: Case, provider: LLMProvider, server: StandInServer, base: str) -> list[object]:
    """Check what this path makes of the situation, and return all that a caller sees of it."""
    server.clear()
    if isinstance(case.happens, Fault | Reply):
        server.script(case.happens)
    place = {f"{provider}_api_base": f"{base}/v1" if provider is LLMProvider.OPENAI else base}
    if provider is not LLMProvider.OLLAMA:
        place[f"{provider}_api_key"] = KEY
    settings = load_settings(**place, max_retries=MAX_RETRIES, request_path=path)
    client = LiteLLMClient(settings, providers=load_endpoints(settings), sleep=no_wait)
    log = AttemptLog()
    request = LLMRequest(
        messages=case.prompt,
        timeout_s=case.timeout_s,
        max_output_tokens=case.max_output_tokens,
        response_format=ResponseFormat(json_schema=SCHEMA) if case.schema else None,
    )
    route = Route(provider=provider, model="no-such-model" if case.happens == UNKNOWN_MODEL else MODELS[provider])
    seen: list[object] = []
    if case.error is None:
        seen.append(await client.call(route, request, log))
        assert log.attempts[-1].status is AttemptStatus.SUCCEEDED
    else:
        with pytest.raises(LLMError) as caught:
            await client.call(route, request, log)
        assert type(caught.value) is case.error
        check_error(caught.value, route, log, case)
        seen += [str(caught.value), caught.value.retryable, caught.value.status_code]
        # That of a quota of the day runs down to midnight meanwhile.
        seen += [caught.value.retry_after_s] if case.error is not LLMQuotaExhausted else []
    await client.close()
    assert server.call_count == case.requests
    varying = {"started_at_utc", "latency_ms"}
    return seen + [attempt.model_dump(exclude=varying) for attempt in log.attempts]


def check_error(error: LLMError, route: Route, log: AttemptLog, case: Case) -> None:
    assert (error.provider, error.model) == (route.provider, route.model)
    assert "\n" not in str(error)
    shown = json.dumps([str(error), repr(error), *(attempt.model_dump_json() for attempt in log.attempts)])
    assert KEY not in shown
    assert case.prompt not in shown
    assert "Traceback" not in shown
    assert "github.com" not in shown
    assert error.__cause__ is None
    assert error.__context__ is None
    assert all(attempt.status is AttemptStatus.FAILED for attempt in log.attempts)
    assert all(attempt.error_code == error.code for attempt in log.attempts)
    assert [attempt.number for attempt in log.attempts] == list(range(1, len(log.attempts) + 1))
    assert len(log.attempts) == (case.requests if case.attempts is None else case.attempts)


FORMS = {
    LLMProvider.OLLAMA: ("seconds", "milliseconds", "date"),
    LLMProvider.GEMINI: ("body",),
    LLMProvider.OPENAI: ("seconds", "milliseconds", "date", "reset", "message"),
    LLMProvider.ANTHROPIC: ("seconds", "milliseconds", "date", "reset", "message"),
}


@pytest.mark.parametrize(("provider", "form"), [(name, form) for name, forms in FORMS.items() for form in forms])
async def test_the_wait_is_read_wherever_the_server_writes_it(provider, form, servers):
    server = servers[provider]
    server.clear()
    fields = {} if form == "body" else {"retry_after_form": form}
    server.script([Fault.status(429, retry_after_s=20, **fields), Reply("Yes.")])
    place = {f"{provider}_api_base": f"{server.url}/v1" if provider is LLMProvider.OPENAI else server.url}
    settings = load_settings(**place, gemini_api_key=KEY, openai_api_key=KEY, anthropic_api_key=KEY, max_retries=1)
    waits = []

    async def wait(seconds: float) -> None:
        waits.append(seconds)

    client = LiteLLMClient(settings, providers=load_endpoints(settings), sleep=wait)
    await client.call(Route(provider=provider, model=MODELS[provider]), LLMRequest(messages="Hi"), AttemptLog())
    await client.close()
    (waited,) = waits
    assert 5 <= waited <= 22  # a date comes nearer while the test waits
    assert server.call_count == 2


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("6m0s", 360), ("1.5s", 1.5), ("20ms", 0.02), ("1h2m3s", 3723), ("7", 7), ("", None), ("soon", None),
     ("2026-01-01T00:00:00Z", 0), ("2026-01-01", None), ("9999999h", None), ("1s" * 9, None)],
)  # fmt: skip
def test_durations_are_read_in_every_form_in_use(text, seconds):
    assert _duration_seconds(text) == seconds


def test_the_page_of_errors_is_current():
    assert PAGE.read_text(encoding="utf-8") == page(), "run `python -m tests.support.errors_page`"


def test_every_exception_that_litellm_exports_has_a_decision():
    import litellm.exceptions

    exported = {
        name
        for name, value in vars(litellm.exceptions).items()
        if isinstance(value, type) and issubclass(value, BaseException) and value.__module__ == "litellm.exceptions"
    }
    decided = {name for rule in RULES for name in rule.names}
    assert exported - decided == set()
    assert len(exported) > 25


@pytest.mark.parametrize(
    ("name", "error"),
    [("SomethingNew", LLMError), ("NewConnectionProblem", LLMUnavailable), ("WeirdTimeoutError", LLMUnavailable)],
)
def test_an_unknown_exception_is_guessed_by_its_name(name, error):
    assert rule_for(Seen(name)).error is error


def test_every_error_names_its_section_of_the_page() -> None:
    text = PAGE.read_text(encoding="utf-8")
    headings = {line.removeprefix("### ").lower().replace(" ", "-") for line in text.splitlines() if line[:4] == "### "}
    kinds = {getattr(errors, name) for name in errors.__all__ if isinstance(getattr(errors, name), type)}
    assert {kind.code for kind in kinds} == set(HELP)
    for kind in kinds:
        page_name, _, anchor = errors.LLMError.docs.fget(kind).partition("#")
        assert page_name == "docs/errors.md"
        assert anchor in headings
    assert errors.LLMAuthenticationError("x").docs == "docs/errors.md#authentication"
