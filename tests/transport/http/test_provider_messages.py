"""The provider's words about a failure reach the user and decide whether the call is tried again."""

from __future__ import annotations

from typing import Any

import pytest

from llmkit.client_litellm import LiteLLMClient
from llmkit.errors import (
    LLMBadRequest,
    LLMConfigurationError,
    LLMContentBlocked,
    LLMEmptyReply,
    LLMError,
    LLMQuotaExhausted,
    LLMRateLimited,
    LLMUnavailable,
    LLMUnsupported,
)
from llmkit.ports import AttemptLog, ClientReply
from llmkit.settings import load_settings
from llmkit.types import LLMRequest, ResponseFormat, Route

OLLAMA, GEMINI = "ollama/llama3.2", "gemini/gemini-2.5-flash"
PATHS = ("fast", "reference")


async def no_wait(_seconds: float) -> None: ...


async def call(url: str, route: str, path: str = "fast", **request: Any) -> ClientReply:
    client = LiteLLMClient(
        load_settings(ollama_api_base=url, gemini_api_base=url, gemini_api_key="key-for-tests", max_retries=2,
                      request_path=path),
        sleep=no_wait,
    )  # fmt: skip
    try:
        reply = await client.call(Route.parse(route), LLMRequest(messages="Hello there", **request), AttemptLog())
        assert isinstance(reply, ClientReply)
        return reply
    finally:
        await client.close()


async def fail(url: str, route: str, path: str = "fast") -> LLMError:
    with pytest.raises(LLMError) as caught:
        await call(url, route, path)
    return caught.value


def google(message: str, *quotas: str, status: str = "RESOURCE_EXHAUSTED", value: str = "250") -> dict[str, Any]:
    violations = [{"quotaMetric": "m", "quotaId": quota, "quotaValue": value} for quota in quotas]
    details = [{"@type": "type.googleapis.com/google.rpc.QuotaFailure", "violations": violations}] if quotas else []
    return {"error": {"code": 429, "message": message, "status": status, "details": details}}


PLAN = "You exceeded your current quota, please check your plan and billing details."

UNPAID = {
    "prepaid": google("Your prepayment credits are depleted. Please go to AI Studio to manage your billing."),
    "cap": google("Your project has exceeded its monthly spending cap. Please go to AI Studio to manage it."),
    "limit 0": google(f"{PLAN}\n* Quota exceeded for metric: m, limit: 0, model: gemini-2.5-pro\nPlease retry in 20s."),
    "value 0": google(PLAN, "GenerateRequestsPerDayPerProjectPerModel-FreeTier", value="0"),
    "insufficient_quota": {"error": {"message": PLAN, "type": "insufficient_quota", "code": "insufficient_quota"}},
    "balance": {"error": {"message": "Your credit balance is too low to access the API."}},
    "list": [google("Your prepayment credits are depleted.")],
    "plain text": b"You have run out of credits.",
}


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("kind", UNPAID)
async def test_a_bill_is_not_retried_and_not_called_too_many_requests(kind, path, serve_raw):
    server = serve_raw(429, UNPAID[kind])
    error = await fail(server.url, GEMINI, path)
    assert (type(error), error.retryable, len(server.calls)) == (LLMQuotaExhausted, False, 1)
    assert error.is_temporary is False
    assert error.retry_after_s is None


@pytest.mark.parametrize(
    ("status", "message", "kind"),
    [
        (400, "You have reached your specified API usage limits.", LLMQuotaExhausted),
        (403, "Your chosen model requires moderation and your input was flagged", LLMContentBlocked),
    ],
)
async def test_a_spent_limit_and_a_flagged_input_are_named(status, message, kind, serve_raw):
    server = serve_raw(status, {"error": {"message": message}})
    error = await fail(server.url, GEMINI)
    assert (type(error), len(server.calls)) == (kind, 1)


async def test_a_route_without_credit_is_asked_again_by_the_next_call(serve_raw):
    """A bill may be paid at any time, so nothing is parked until midnight."""
    server = serve_raw(429, UNPAID["prepaid"])
    client = LiteLLMClient(load_settings(gemini_api_base=server.url, gemini_api_key="key-for-tests"), sleep=no_wait)
    for _ in range(2):
        with pytest.raises(LLMQuotaExhausted, match="requires payment"):
            await client.call(Route.parse(GEMINI), LLMRequest(messages="Hi"), AttemptLog())
    await client.close()
    assert len(server.calls) == 2


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (google(PLAN, "GenerateRequestsPerMinutePerProjectPerModel-FreeTier"), "limits requests per minute (250): "),
        (google(PLAN, "GenerateContentInputTokensPerModelPerMinute-FreeTier", value="250000"),
         "limits tokens per minute (250,000): "),
        (google(PLAN, "GenerateContentPaidTierInputTokensPerModelPerMinute", "GenerateRequestsPerMinutePerProject"),
         "limits tokens per minute (250) and requests per minute (250): "),
        (google("Resource has been exhausted (e.g. check quota)."), "limits requests: "),
        ({"error": {"message": "Rate limit reached on tokens per min (TPM): Limit 30000, Used 29000"}},
         "limits tokens per minute: "),
        ({"error": {"message": "Rate limit reached on requests per min. Limit: 3 / min."}},
         "limits requests per minute: "),
        (b"Too many tokens per second", "limits tokens per second: "),
        ({"error": {"message": "Rate limit exceeded: free-models-per-min. "}}, "limits requests per minute: "),
        ({"error": {"message": "Provider returned error", "metadata": {"raw": "too busy upstream"}}},
         "Provider returned error too busy upstream"),
    ],
)  # fmt: skip
async def test_a_rate_limit_names_its_quota_and_is_retried(body, words, serve_raw):
    server = serve_raw(429, body)
    error = await fail(server.url, GEMINI)
    assert type(error) is LLMRateLimited
    assert words in str(error)
    assert len(server.calls) == 3


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (google(PLAN, "GenerateRequestsPerDayPerProjectPerModel-FreeTier"), "requests per day (250)"),
        (google(PLAN, "GenerateContentInputTokensPerModelPerDay", value="5000000"), "tokens per day (5,000,000)"),
        ({"error": {"message": "Limit reached on requests per day (RPD): Limit 200"}}, "requests per day"),
    ],
)
async def test_a_daily_quota_names_itself_and_is_not_retried(body, words, serve_raw):
    server = serve_raw(429, body)
    error = await fail(server.url, GEMINI)
    assert (type(error), error.is_temporary, len(server.calls)) == (LLMQuotaExhausted, True, 1)
    assert words in str(error)


@pytest.mark.parametrize("route", [OLLAMA, GEMINI])
@pytest.mark.parametrize(
    "body",
    [
        b"upstream says no",
        [{"error": {"message": "upstream says no"}}],
        {"message": "upstream says no"},
        {"detail": "upstream says no"},
        {"detail": [{"msg": "upstream says no"}]},
        {"error": "upstream says no"},
        {"error": {"message": "upstream says no"}},
        {"errors": [{"message": "upstream says no"}]},
        {"errors": ["upstream says no"]},
        {"detail": [{"loc": ["body"], "msg": "upstream says no"}]},
        {"fault": {"faultstring": "upstream says no"}},
        b'"upstream says no"',
    ],
)
async def test_the_message_is_found_in_every_shape(body, route, serve_raw):
    if isinstance(body, dict) and isinstance(body.get("detail"), list):
        body = {"detail": body["detail"][0]}
    error = await fail(serve_raw(400, body).url, route)
    assert type(error) is LLMBadRequest
    assert "upstream says no" in str(error)
    assert "{" not in str(error)


async def test_an_html_page_is_not_shown(serve_raw):
    error = await fail(serve_raw(400, b"<html><h1>Bad Gateway</h1></html>").url, OLLAMA)
    assert "<" not in str(error)


async def test_a_cancelled_request_is_tried_again(serve_raw):
    server = serve_raw(499, {"error": {"code": 499, "message": "The operation was cancelled.", "status": "CANCELLED"}})
    error = await fail(server.url, GEMINI)
    assert type(error) is LLMUnavailable
    assert "The operation was cancelled." in str(error)
    assert len(server.calls) == 3


@pytest.mark.parametrize(
    ("message", "kind"),
    [
        ("model requires more system memory (5.6 GiB) than is available (3.1 GiB)", LLMConfigurationError),
        ("llama runner process has terminated: cudaMalloc failed: out of memory", LLMConfigurationError),
        ("unable to allocate CUDA0 buffer", LLMConfigurationError),
        ("failed to allocate compute buffers", LLMConfigurationError),
        ("unable to load model: /root/.ollama/models/blobs/sha256-abc", LLMConfigurationError),
        ("error loading model architecture: unknown model architecture: 'x'", LLMConfigurationError),
        ("failed to create new sequence: failed to parse grammar", LLMUnsupported),
        ("invalid grammar", LLMUnsupported),
        ('invalid format: "x"; expected "json" or a valid JSON Schema object', LLMUnsupported),
        ("JSON schema conversion failed: unsupported pattern", LLMUnsupported),
    ],
)
async def test_a_500_that_every_try_repeats_is_not_retried(message, kind, serve_raw):
    server = serve_raw(500, {"error": message})
    error = await fail(server.url, OLLAMA)
    assert (type(error), len(server.calls)) == (kind, 1)
    assert message[:20] in str(error)


async def test_another_500_is_retried(serve_raw):
    server = serve_raw(500, {"error": "llama runner process has terminated: signal: aborted"})
    assert type(await fail(server.url, OLLAMA)) is LLMUnavailable
    assert len(server.calls) == 3


# --- replies with status 200 ----------------------------------------------------------------------------------


def gemini_reply(parts: Any, reason: str | None = "STOP", **more: Any) -> dict[str, Any]:
    usage = {"promptTokenCount": 10, "candidatesTokenCount": 5, "totalTokenCount": 15}
    candidate = {"content": {"parts": parts, "role": "model"}, "finishReason": reason, "index": 0}
    return {"candidates": [candidate], "usageMetadata": usage, "modelVersion": "gemini-2.5-flash", **more}


def ollama_reply(content: Any, **message: Any) -> dict[str, Any]:
    return {"model": "llama3.2", "message": {"role": "assistant", "content": content, **message}, "done": True,
            "done_reason": "stop", "prompt_eval_count": 50, "eval_count": 20}  # fmt: skip


UNEXPLAINED = ("OTHER", "LANGUAGE", "MALFORMED_RESPONSE", "NO_IMAGE", "IMAGE_OTHER", "SOMETHING_NEW")


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("reason", UNEXPLAINED)
async def test_an_unexplained_end_is_no_safety_filter(reason, path, serve_raw):
    error = await fail(serve_raw(200, gemini_reply([], reason)).url, GEMINI, path)
    assert type(error) is LLMEmptyReply
    assert reason in str(error)
    assert "blocked" not in str(error)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("reason", UNEXPLAINED)
async def test_a_text_that_ended_so_is_an_answer_with_a_warning(reason, path, serve_raw):
    reply = await call(serve_raw(200, gemini_reply([{"text": "Half"}], reason)).url, GEMINI, path)
    assert (reply.text, reply.finish_reason) == ("Half", "unknown")
    assert any(reason in warning for warning in reply.warnings)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("reason", ["SAFETY", "RECITATION", "BLOCKLIST", "PROHIBITED_CONTENT", "SPII", "IMAGE_SAFETY"])
async def test_a_filter_is_named(reason, path, serve_raw):
    error = await fail(serve_raw(200, gemini_reply([], reason)).url, GEMINI, path)
    assert type(error) is LLMContentBlocked
    assert reason in str(error)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(
    "call_part", [{"name": "look"}, {"name": "look", "args": None}, {"name": "look", "args": {}, "id": None}]
)
async def test_a_gemini_call_without_arguments_is_a_call(call_part, path, serve_raw):
    reply = await call(serve_raw(200, gemini_reply([{"functionCall": call_part}])).url, GEMINI, path)
    assert [(each.name, each.arguments) for each in reply.tool_calls] == [("look", "{}")]
    assert reply.finish_reason == "tool_calls"


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("function", [{"name": "look"}, {"name": "look", "arguments": None}])
async def test_an_ollama_call_without_arguments_is_a_call(function, path, serve_raw):
    body = ollama_reply("", tool_calls=[{"function": function}])
    reply = await call(serve_raw(200, body).url, OLLAMA, path)
    assert [(each.name, each.arguments) for each in reply.tool_calls] == [("look", "{}")]


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("usage", [None, {}, {"promptTokenCount": None}, "many", []])
async def test_an_answer_without_counts_is_an_answer(usage, path, serve_raw):
    body = gemini_reply([{"text": "Fine"}], usageMetadata=usage)
    reply = await call(serve_raw(200, body).url, GEMINI, path)
    assert (reply.text, reply.usage.input_tokens) == ("Fine", None)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("parts", [None, []])
async def test_no_parts_are_an_empty_reply_with_a_reason(parts, path, serve_raw):
    error = await fail(serve_raw(200, gemini_reply(parts)).url, GEMINI, path)
    assert type(error) is LLMEmptyReply
    assert "neither text nor a tool call" in str(error)


@pytest.mark.parametrize("path", PATHS)
async def test_a_prompt_count_alone_is_kept(path, serve_raw):
    body = gemini_reply([{"text": "Fine"}], usageMetadata={"promptTokenCount": 7, "candidatesTokenCount": None})
    reply = await call(serve_raw(200, body).url, GEMINI, path)
    assert (reply.text, reply.usage.input_tokens) == ("Fine", 7)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("name", ["eval_count", "prompt_eval_count", "done_reason"])
async def test_a_null_in_ollamas_reply_is_no_value(name, path, serve_raw):
    reply = await call(serve_raw(200, {**ollama_reply("Fine"), name: None}).url, OLLAMA, path)
    assert reply.text == "Fine"


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(
    ("content", "text"),
    [
        ("I should greet.\n</think>\n\nHello", "Hello"),
        ('The user wants JSON.</think>\n{"a": 1}', '{"a": 1}'),
        ("First\n</think>Hello", "Hello"),
        ("I should greet.\n</thinking>\nHello", "Hello"),
        ("<think>I should greet.</think>\nHello", "\nHello"),
        ("</think>\n\nHello", "Hello"),
        ("The tag `</think>` ends it.", "The tag `</think>` ends it."),
        ("Use <think>a</think>\nthen b", "Use <think>a</think>\nthen b"),
    ],
)
async def test_reasoning_in_the_text_is_not_the_answer(content, text, path, serve_raw):
    reply = await call(serve_raw(200, ollama_reply(content)).url, OLLAMA, path)
    assert reply.text.strip() == text.strip()


@pytest.mark.parametrize("path", PATHS)
async def test_reasoning_that_never_ends_is_no_answer(path, serve_raw):
    error = await fail(serve_raw(200, ollama_reply("<think>I wonder and wonder")).url, OLLAMA, path)
    assert type(error) is LLMEmptyReply


@pytest.mark.parametrize("path", PATHS)
async def test_json_in_thinking_is_the_answer(path, serve_raw):
    wanted = ResponseFormat(json_schema={"type": "object"})
    body = ollama_reply("", thinking=' {"a": 1}\n')
    reply = await call(serve_raw(200, body).url, OLLAMA, path, response_format=wanted)
    assert reply.text == '{"a": 1}'
