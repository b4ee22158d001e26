"""`thinking` switches a model's reasoning on and off, on both request paths."""

from __future__ import annotations

from typing import Any

import pytest

import llmkit
from llmkit.calls.request_hash import prompt_sha256
from llmkit.client_litellm import LiteLLMClient
from llmkit.errors import LLMUnsupported
from llmkit.ports import AttemptLog, ClientReply
from llmkit.settings import load_settings
from llmkit.testing import GeminiServer, OllamaModel, OllamaServer, Reply
from llmkit.types import LLMRequest, Route

QWEN = OllamaModel("qwen3", capabilities=("completion", "thinking"))


@pytest.fixture(params=["fast", "reference"])
def path(request):
    return request.param


async def ask(url: str, route: str, path: str, **more: Any) -> ClientReply:
    settings = load_settings(
        ollama_api_base=url, gemini_api_base=url, gemini_api_key="key-for-tests", request_path=path
    )
    client = LiteLLMClient(settings)
    try:
        reply = await client.call(Route.parse(route), LLMRequest(messages="Hi", **more), AttemptLog())
        assert isinstance(reply, ClientReply)
        return reply
    finally:
        await client.close()


@pytest.mark.parametrize(("thinking", "sent"), [(None, "absent"), (False, False), (True, True)])
async def test_ollama_gets_think(thinking, sent, path):
    with OllamaServer("fine", models=[QWEN]) as server:
        await ask(server.url, "ollama/qwen3", path, thinking=thinking)
        assert server.calls[0].json.get("think", "absent") == sent


async def test_an_answer_that_was_thought_is_given_as_text_without_thinking(path):
    reply = Reply("fine", thinking="let me see", output_tokens=9)
    with OllamaServer(reply, models=[QWEN]) as server:
        assert (await ask(server.url, "ollama/qwen3", path, thinking=False)).text == "fine"


async def test_thinking_of_a_model_without_it_is_refused_once(path):
    with OllamaServer("fine") as server:
        with pytest.raises(LLMUnsupported, match="does not support thinking"):
            await ask(server.url, "ollama/llama3.2", path, thinking=True)
        assert server.call_count == 1


@pytest.mark.parametrize(
    ("model", "thinking", "config"),
    [
        ("gemini-2.5-flash", None, None),
        ("gemini-2.5-flash", False, {"thinkingBudget": 0}),
        ("gemini-2.5-flash", True, {"thinkingBudget": -1}),
        ("gemini-2.5-flash-lite", False, {"thinkingBudget": 0}),
        ("gemini-2.5-pro", False, {"thinkingBudget": 128}),
        ("gemini-3-pro-preview", False, {"thinkingLevel": "low"}),
        ("gemini-3-flash-preview", False, {"thinkingLevel": "minimal"}),
        ("gemini-2.0-flash", False, None),
        ("gemma-3-27b-it", False, None),
        ("tuned-model", False, None),
    ],
)
async def test_gemini_gets_the_budget_or_level_of_its_generation(model, thinking, config, path):
    with GeminiServer("fine", models=[model]) as server:
        await ask(server.url, f"gemini/{model}", path, thinking=thinking, temperature=0.5)
        sent = server.calls[0].json["generationConfig"]
        assert sent.get("thinkingConfig") == config
        assert sent["temperature"] == 0.5


def test_a_request_that_says_nothing_keeps_its_hash():
    plain = prompt_sha256(LLMRequest(messages="Hi"))
    assert plain == prompt_sha256(LLMRequest(messages="Hi", thinking=None))
    assert len({plain, *(prompt_sha256(LLMRequest(messages="Hi", thinking=each)) for each in (True, False))}) == 3


def test_the_session_takes_it_as_an_option():
    with OllamaServer("fine", models=[QWEN]) as server, llmkit.Session(ollama_api_base=server.url) as session:
        session.chat("Hi", route="ollama/qwen3", thinking=False)
        assert server.calls[0].json["think"] is False
