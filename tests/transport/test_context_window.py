"""Context windows of Ollama: large enough for any text, widened once, and cuts are noticed; over both request paths."""

from __future__ import annotations

import base64
import random
from collections.abc import Callable, Sequence

import pytest

from llmkit.client_litellm import LiteLLMClient
from llmkit.errors import LLMContextOverflow, LLMError, LLMPromptTruncated
from llmkit.ports import AttemptLog, ClientReply
from llmkit.providers import PROVIDERS
from llmkit.providers.model_facts import Fact, FactBook, ModelFacts
from llmkit.providers.with_facts import add_model_facts
from llmkit.settings import load_settings
from llmkit.testing import OllamaModel, OllamaServer, OpenAIServer, Reply
from llmkit.types import LLMRequest, Message, Route

ROUTE = Route.parse("ollama/llama3.2")
OLD, NEW = "0.6.5", "0.17.4"
DRAW = random.Random(1)
NUMBERS = " ".join(str(DRAW.randint(0, 10**6)) for _ in range(800))
RANDOM_WORDS = " ".join("".join(DRAW.choices("bcdfghjklmnpqrstvwxz", k=8)) for _ in range(700))
TEXTS = {
    "numbers": NUMBERS,
    "hex": DRAW.randbytes(2_500).hex(),
    "base64": base64.b64encode(DRAW.randbytes(4_000)).decode(),
    "emoji": "😀🎉👩‍👩‍👧🇩🇪" * 150,
    "csv": "\n".join(",".join(f"{DRAW.random():.6f}" for _ in range(6)) for _ in range(90)),
    "dna": "".join(DRAW.choices("ACGT", k=5_000)),
}


def count_bytes(text: str) -> int:
    """Count tokens as the worst of all tokenizers does."""
    return len(text.encode())


def serve(version: str, window: int = 32_768, tokenizer: Callable[[str], int] = count_bytes) -> OllamaServer:
    return OllamaServer("fine", models=[OllamaModel("llama3.2", context_length=window)], version=version,
                        tokenizer=tokenizer)  # fmt: skip


class Caller:
    """One client, with what discovery would have found out about the model."""

    def __init__(self, server: OllamaServer, path: str, window: int | None = 32_768) -> None:
        facts = FactBook()
        if window is not None:
            facts.report(ROUTE, ModelFacts(context_tokens=Fact(window, "reported")))
        self.client = LiteLLMClient(
            load_settings(ollama_api_base=server.url, request_path=path, max_retries=0),
            providers=add_model_facts(PROVIDERS, facts),
        )
        self.log = AttemptLog()

    async def ask(self, messages: str | Sequence[Message], **more) -> ClientReply:
        self.log = AttemptLog()
        return await self.client.call(ROUTE, LLMRequest(messages=messages, **more), self.log)


@pytest.fixture(params=["fast", "reference"])
def path(request):
    return request.param


def windows(server: OllamaServer) -> list[int]:
    return [call.json["options"]["num_ctx"] for call in server.calls]


@pytest.mark.parametrize("version", [OLD, NEW])
@pytest.mark.parametrize("kind", TEXTS)
async def test_text_of_a_token_a_byte_is_read_whole_at_the_first_try(kind, version, path):
    with serve(version) as server:
        caller = Caller(server, path)
        reply = await caller.ask(TEXTS[kind])
        await caller.client.close()
        assert reply.text == "fine"
        assert reply.usage.input_tokens == count_bytes(TEXTS[kind])
        assert server.call_count == 1


async def test_every_request_asks_not_to_be_cut(path):
    with serve(NEW) as server:
        caller = Caller(server, path)
        await caller.ask("Hi")
        await caller.client.close()
        assert server.calls[0].json["truncate"] is False
        assert "truncate" not in server.calls[0].json["options"]


async def test_a_prompt_that_was_underestimated_is_sent_once_more_with_the_models_room(path):
    with serve(NEW) as server:
        caller = Caller(server, path)
        reply = await caller.ask(RANDOM_WORDS)
        await caller.client.close()
        assert reply.text == "fine"
        assert windows(server) == [4096, 8192]
        assert [(each.status, each.error_code) for each in caller.log.attempts] == [
            ("FAILED", "context_overflow"),
            ("SUCCEEDED", None),
        ]


async def test_an_old_server_that_cuts_is_asked_once_more_too(path):
    with serve(OLD) as server:
        caller = Caller(server, path)
        reply = await caller.ask(RANDOM_WORDS)
        await caller.client.close()
        assert reply.usage.input_tokens == count_bytes(RANDOM_WORDS)
        assert windows(server) == [4096, 8192]
        assert [each.error_code for each in caller.log.attempts] == ["prompt_truncated", None]


async def test_later_prompts_of_the_route_fit_at_once(path):
    with serve(NEW) as server:
        caller = Caller(server, path)
        await caller.ask(RANDOM_WORDS)
        await caller.ask(RANDOM_WORDS[::-1])
        await caller.ask("Hi")
        await caller.client.close()
        assert windows(server) == [4096, 8192, 8192, 4096]


@pytest.mark.parametrize(("version", "error"), [(NEW, LLMContextOverflow), (OLD, LLMPromptTruncated)])
async def test_a_model_without_more_room_is_not_asked_again(version, error, path):
    with serve(version, window=4096) as server:
        caller = Caller(server, path, window=4096)
        with pytest.raises(error):
            await caller.ask(RANDOM_WORDS)
        await caller.client.close()
        assert windows(server) == [4096]


async def test_a_second_overflow_is_the_last(path):
    with serve(NEW, window=4096) as server:
        caller = Caller(server, path, window=None)  # Nothing is known about the model.
        with pytest.raises(LLMContextOverflow):
            await caller.ask(RANDOM_WORDS)
        await caller.client.close()
        assert windows(server) == [4096, 8192]
        assert [each.error_code for each in caller.log.attempts] == ["context_overflow"] * 2


async def test_the_room_for_the_answer_is_part_of_the_wider_window(path):
    with serve(NEW) as server:
        caller = Caller(server, path)
        await caller.ask(RANDOM_WORDS, max_output_tokens=1_900)
        await caller.client.close()
        assert windows(server)[-1] == 16_384


async def test_dropped_messages_are_noticed_when_no_window_could_have_them(path):
    history = [Message(role="user", content="one two " * 2_000), Message(role="user", content="three")]
    with serve(OLD, window=2048, tokenizer=lambda text: len(text.split())) as server:
        caller = Caller(server, path, window=2048)
        with pytest.raises(LLMPromptTruncated, match="cut the prompt to 1 tokens"):
            await caller.ask(history)
        await caller.client.close()


async def test_fewer_tokens_than_words_are_a_warning_where_the_window_had_room(path):
    with OllamaServer(Reply("fine", input_tokens=20)) as server:
        caller = Caller(server, path)
        reply = await caller.ask("one two " * 200)
        await caller.client.close()
        assert any("counted 20 tokens" in warning for warning in reply.warnings)


@pytest.mark.parametrize("counts", [{"prompt_eval_count": 0}, {}])
async def test_a_server_without_a_count_has_cut_nothing(counts, path, serve_raw):
    message = {"role": "assistant", "content": "fine"}
    answer = {"model": "llama3.2", "message": message, "done": True, "done_reason": "stop", "eval_count": 2, **counts}
    url = serve_raw(200, answer).url
    client = LiteLLMClient(load_settings(ollama_api_base=url, request_path=path, max_retries=0))
    log = AttemptLog()
    reply = await client.call(ROUTE, LLMRequest(messages="one two " * 2_000), log)
    await client.close()
    assert (reply.text, reply.warnings, len(log.attempts)) == ("fine", (), 1)


@pytest.mark.parametrize(
    "message",
    [
        "the input length exceeds the context length",
        "input (9000 tokens) exceeds the maximum context length of 4096 tokens",
        "the request exceeds the available context size, try increasing it",
        "prompt is too long: exceeds context window",
    ],
)
async def test_every_wording_of_an_overflow_is_one(message, serve_raw):
    url = serve_raw(400, {"error": message}).url
    client = LiteLLMClient(load_settings(ollama_api_base=url, max_retries=0))
    with pytest.raises(LLMError) as caught:
        await client.call(ROUTE, LLMRequest(messages="Hi"), AttemptLog())
    await client.close()
    assert type(caught.value) is LLMContextOverflow


@pytest.mark.parametrize(
    ("counted", "words", "outcome"),
    [
        (4096, 5000, "error"),
        (128, 300, "error"),
        (3072, 5000, "error"),
        (4000, 5000, "warning"),  # whole messages were dropped, perhaps
        (4096, 3000, "fine"),
        (64, 300, "warning"),
    ],
)
async def test_a_cut_by_a_server_that_was_asked_for_no_window(counted, words, outcome, path):
    with OpenAIServer(Reply("fine", input_tokens=counted), models=["m"]) as server:
        table = {"kind": "openai", "api_base": server.api_base, "model": "m", "local": True}
        client = LiteLLMClient(load_settings(endpoints={"lab": table}, request_path=path, max_retries=0))
        request = LLMRequest(messages="word " * words)
        try:
            reply = await client.call(Route.parse("lab/m"), request, AttemptLog())
            found = "warning" if reply.warnings else "fine"
        except LLMPromptTruncated as error:
            found = "error"
            assert f"{counted} tokens" in error.message  # noqa: PT017 - what else happens is an outcome too
        await client.close()
        assert found == outcome
        assert server.call_count == 1
