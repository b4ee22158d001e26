"""The real model: what the rest of llmkit relies on, so that an upgrade of the runtime says what it changed."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from typing import Any

import pytest

from llmkit.local_model.server import LocalModelServer
from llmkit.ports import Endpoint
from llmkit.settings import load_settings, prepare_litellm_environment
from tests.local_model.conftest import gone_within

pytestmark = pytest.mark.local

SHOTS = (
    ("I love it.", "positive"),
    ("It broke after a day.", "negative"),
    ("Great value.", "positive"),
    ("Terrible service.", "negative"),
    ("Works perfectly.", "positive"),
    ("A waste of money.", "negative"),
)
SCHEMA = {
    "type": "object",
    "properties": {"sentiment": {"enum": ["positive", "negative"]}},
    "required": ["sentiment"],
    "additionalProperties": False,
}
RESPONSE_FORMAT = {"type": "json_schema", "json_schema": {"name": "sentiment", "schema": SCHEMA, "strict": True}}


def one_message(review: str) -> list[dict[str, str]]:
    shots = "\n\n".join(f"Review: {text}\nSentiment: {label}" for text, label in SHOTS)
    return [{"role": "user", "content": f"{shots}\n\nReview: {review}\nSentiment:"}]


def a_conversation(review: str) -> list[dict[str, str]]:
    messages = [{"role": "system", "content": "Classify the sentiment of each review."}]
    for text, label in SHOTS:
        messages.append({"role": "user", "content": f"Review: {text}\nSentiment:"})
        messages.append({"role": "assistant", "content": label})
    return [*messages, {"role": "user", "content": f"Review: {review}\nSentiment:"}]


@pytest.fixture(scope="module")
def endpoint() -> Iterator[Endpoint]:
    server = LocalModelServer(load_settings(local_context_tokens=512))
    yield asyncio.run(server.ensure_running())
    asyncio.run(server.close())


@pytest.fixture(autouse=True)
def _no_child_left() -> None:
    """The module's own server stays from test to test."""


def post(endpoint: Endpoint, messages: list[dict[str, str]], key: str | None = None, **body: Any) -> dict[str, Any]:
    request = urllib.request.Request(
        f"{endpoint.api_base}/chat/completions",
        json.dumps({"model": "gemma-3-270m", "messages": messages, "temperature": 0, **body}).encode(),
        {"Content-Type": "application/json", "Authorization": f"Bearer {key or endpoint.api_key}"},
    )
    try:
        with urllib.request.urlopen(request, timeout=60) as reply:
            return json.load(reply)
    except urllib.error.HTTPError as error:
        with error:
            return json.load(error)


@pytest.mark.parametrize("prompt", [one_message, a_conversation])
def test_few_shot_examples_in_both_forms(endpoint: Endpoint, prompt: Any) -> None:
    """In one message and as a conversation."""
    reviews = {"The best meal of my life.": "positive", "It arrived damaged.": "negative"}
    for review, expected in reviews.items():
        reply = post(endpoint, prompt(review), max_tokens=4, stop=["\n"])
        assert reply["choices"][0]["message"]["content"].strip() == expected
        assert reply["model"] == "gemma-3-270m"
        assert reply["usage"]["completion_tokens"] == 2


def test_a_schema_constrains_the_answer(endpoint: Endpoint) -> None:
    question = [{"role": "user", "content": "Review: It arrived damaged.\nSentiment as JSON:"}]
    reply = post(endpoint, question, max_tokens=60, response_format=RESPONSE_FORMAT)
    assert json.loads(reply["choices"][0]["message"]["content"])["sentiment"] in {"positive", "negative"}


def test_a_prompt_beyond_the_context_is_an_error_and_not_cut(endpoint: Endpoint) -> None:
    reply = post(endpoint, [{"role": "user", "content": "word " * 600}], max_tokens=1)
    assert reply["error"]["type"] == "exceed_context_size_error"
    assert reply["error"]["n_ctx"] == 512


def test_what_two_prompts_share_is_read_once(endpoint: Endpoint) -> None:
    first, second = [post(endpoint, one_message(review), max_tokens=1)["usage"] for review in ("It broke.", "I like.")]
    assert first["prompt_tokens"] > 50
    assert second["prompt_tokens_details"]["cached_tokens"] > 0.8 * second["prompt_tokens"]


def test_nothing_is_answered_without_the_key(endpoint: Endpoint) -> None:
    assert post(endpoint, one_message("Fine."), key="wrong", max_tokens=1)["error"]["code"] == 401


def test_litellm_reaches_it_as_hosted_vllm(endpoint: Endpoint) -> None:
    prepare_litellm_environment()
    import litellm

    reply = litellm.completion(
        model="hosted_vllm/gemma-3-270m",
        messages=one_message("It arrived damaged."),
        api_base=endpoint.api_base,
        api_key=endpoint.api_key,
        max_tokens=4,
        temperature=0,
        stop=["\n"],
    )
    assert reply.choices[0].message.content.strip() == "negative"
    assert reply.usage.completion_tokens == 2


SCRIPT = """
import asyncio, time
import llmkit.local_model.server as s
from llmkit.settings import load_settings
server = s.LocalModelServer(load_settings())
asyncio.run(server.ensure_running())
print(s._registry()._starts[server._spec]._process.pid, flush=True)
time.sleep(60)
"""


def test_kill_9_of_the_parent_ends_the_model_within_3_s() -> None:
    with subprocess.Popen([sys.executable, "-c", SCRIPT], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        parent.send_signal(signal.SIGKILL)
    assert gone_within(pid, 30)
