"""The same weights behind real servers, through every kind of endpoint: a few calls each.

Ollama speaks its own protocol, Chat Completions and Messages; the llama.cpp of the local model the last two. What the
small model says is not looked at, only what the servers count, constrain and refuse.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from typing import Literal

import pytest
from pydantic import BaseModel
from pydantic_ai import Agent

from llmkit import LLMContextOverflow, LLMPromptTruncated, LLMUnsupported, Session, load_settings
from llmkit.local_model.server import share_server
from tests.support.ollama_server import RealOllama

pytestmark = [pytest.mark.ollama, pytest.mark.local]

MODEL = "gemma-3-270m"
OWN, CHAT, LAB = "ollama", "ollama-v1", "lab"
MESSAGES, LAB_MESSAGES = "ollama-messages", "lab-messages"
EVERY = (OWN, CHAT, LAB, MESSAGES, LAB_MESSAGES)
COUNT = "1 2 3 4 5 6 7 8 9"


class Label(BaseModel):
    label: Literal["positive", "negative"]


@pytest.fixture(scope="module")
def lab() -> Iterator[tuple[str, str]]:
    """Address and key of the llama.cpp that serves the local model."""
    server = share_server(load_settings(local_context_tokens=512))
    endpoint = asyncio.run(server.ensure_running())
    yield endpoint.api_base, endpoint.api_key or ""
    asyncio.run(server.close())


@pytest.fixture
def session(real_ollama: RealOllama, lab: tuple[str, str], monkeypatch: pytest.MonkeyPatch) -> Iterator[Session]:
    address, key = lab
    monkeypatch.setenv("LAB_KEY", key)
    shared = {"model": MODEL, "local": True}
    endpoints = {
        CHAT: {"kind": "openai", "api_base": f"{real_ollama.url}/v1", **shared},
        LAB: {"kind": "openai", "api_base": address, "api_key_env": "LAB_KEY", **shared},
        MESSAGES: {"kind": "anthropic", "api_base": real_ollama.url, **shared},
        LAB_MESSAGES: {
            "kind": "anthropic",
            "api_base": address.removesuffix("/v1"),
            "api_key_env": "LAB_KEY",
            **shared,
        },
    }
    monkeypatch.setenv("LLM_ENDPOINTS", json.dumps(endpoints))
    with Session("study", ollama_api_base=real_ollama.url, ollama_model=MODEL, default_timeout_s=120) as session:
        yield session


@pytest.mark.parametrize("endpoint", EVERY)
def test_an_answer_is_counted_and_recorded_by_endpoint(session: Session, endpoint: str) -> None:
    answer = session.chat(COUNT, route=f"{endpoint}/{MODEL}", temperature=0, max_output_tokens=3)
    assert (answer.finish_reason, answer.usage.output_tokens, answer.usage.estimated) == ("length", 3, False)
    # The mark of the beginning, nine digits, and a blank before each but the first.
    assert answer.usage.input_tokens == 18
    attempts = session.attempts()
    assert attempts[["provider", "status"]].to_numpy().tolist() == [[endpoint, "SUCCEEDED"]]


@pytest.mark.parametrize("endpoint", EVERY)
async def test_an_answer_streams_with_the_same_text_and_counts(session: Session, endpoint: str) -> None:
    options = {"temperature": 0, "max_output_tokens": 3}
    model = session.model(f"{endpoint}/{MODEL}", use_cache=False, parameters=options)
    async with Agent(model).run_stream(COUNT) as result:
        pieces = [text async for text in result.stream_text(delta=True, debounce_by=None)]
    (answer,) = model.responses
    plain = await session.achat(COUNT, route=f"{endpoint}/{MODEL}", use_cache=False, **options)
    assert len(pieces) > 1
    assert "".join(pieces) == answer.text == plain.text
    # llama.cpp has the prompt in its cache the second time, and says so.
    counts = [each.usage.model_copy(update={"cached_input_tokens": None}) for each in (answer, plain)]
    assert counts[0] == counts[1]
    assert answer.finish_reason == plain.finish_reason == "length"
    assert session.runs()["first_token_ms"].notna().tolist() == [False, True]


@pytest.mark.parametrize("endpoint", [OWN, CHAT, LAB])
def test_a_schema_binds_and_log_probabilities_come_along(session: Session, endpoint: str) -> None:
    route = f"{endpoint}/{MODEL}"
    assert session.extract(Label, "A song.\nJSON:", route=route, temperature=0, max_output_tokens=64)
    answer = session.chat(COUNT, route=route, temperature=0, max_output_tokens=3, logprobs=True)
    assert answer.logprobs is not None
    assert answer.logprobs.tokens in {2, 3}  # a blank at the edge is not part of the answer
    assert answer.logprobs.min <= answer.logprobs.mean < 0


@pytest.mark.parametrize("endpoint", [MESSAGES, LAB_MESSAGES])
def test_messages_has_no_log_probabilities(session: Session, endpoint: str) -> None:
    with pytest.raises(LLMUnsupported, match="log-probabilities"):
        session.chat(COUNT, route=f"{endpoint}/{MODEL}", logprobs=True)


@pytest.mark.parametrize("endpoint", [LAB, LAB_MESSAGES])
def test_llama_cpp_refuses_a_prompt_over_its_window(session: Session, endpoint: str) -> None:
    with pytest.raises(LLMContextOverflow):
        session.chat("one two three four " * 300, route=f"{endpoint}/{MODEL}", max_output_tokens=2)


@pytest.mark.parametrize("endpoint", [CHAT, MESSAGES])
def test_a_prompt_that_ollama_cuts_in_another_protocol_is_found_out(
    session: Session, real_ollama: RealOllama, endpoint: str
) -> None:
    """Only Ollama's own protocol can be asked not to cut."""
    with real_ollama.model_that_reads(128) as name, pytest.raises(LLMPromptTruncated):
        session.chat("one two three four " * 300, route=f"{endpoint}/{name}", max_output_tokens=2)
