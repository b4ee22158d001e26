"""Images and documents from end to end: what reaches each provider, what is stored, and who may be asked at all."""

from __future__ import annotations

import base64
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Literal

import ollama
import pytest
from google import genai
from google.genai import types
from pydantic import BaseModel
from pydantic_ai import Agent, BinaryContent

from llmkit import LLMBadRequest, LLMIdempotencyConflict, LLMUnsupported, Session
from llmkit.evals import Sample, Task, field_match
from llmkit.testing import GeminiServer, OllamaModel, OllamaServer, Reply, ToolCall
from llmkit.types import Attachment, LLMRequest, Message
from tests.support.images import JPEG, PDF, WEBP, png
from tests.support.ollama_server import RealOllama
from tests.support.scripted_services import CONTEXT, Wire, opened_wire

GEMINI = "gemini/gemini-2.5-flash"
LLAVA = OllamaModel("llava", capabilities=("completion", "vision"))


class Label(BaseModel):
    label: Literal["red", "black"]


RED = '{"label": "red"}'


@pytest.fixture(params=["ollama", "gemini"])
async def wire(request: pytest.FixtureRequest) -> AsyncIterator[Wire]:
    async with opened_wire(request.param) as wire:
        yield wire


def received(call: Any) -> list[tuple[list[bytes], str]]:
    """Of every user message: the bytes that arrived, and the text behind them."""
    body = call.json
    if "contents" in body:
        turns = [each["parts"] for each in body["contents"] if each["role"] == "user"]
        return [(_inline(parts), "".join(part.get("text", "") for part in parts)) for parts in turns]
    users = [each for each in body["messages"] if each["role"] == "user"]
    return [([base64.b64decode(image) for image in each.get("images", ())], each["content"]) for each in users]


def _inline(parts: list[dict[str, Any]]) -> list[bytes]:
    return [base64.b64decode(part["inline_data"]["data"]) for part in parts if "inline_data" in part]


def looking(*sources: bytes, text: str = "Which colour?") -> tuple[Message, ...]:
    return (Message(role="user", content=text, attachments=tuple(Attachment.of(source) for source in sources)),)


# --- the wires ----------------------------------------------------------------------------------------------------


async def test_image_bytes_arrive_in_order(wire: Wire) -> None:
    """With their messages."""
    messages = (
        *looking(png(1), JPEG, text="First"),
        Message(role="assistant", content="Seen."),
        *looking(png(200, width=30_000), text="Second"),
    )
    await wire.service.chat(LLMRequest(messages=messages, route=wire.route), CONTEXT)
    assert received(wire.server.calls[0]) == [([png(1), JPEG], "First"), ([png(200, width=30_000)], "Second")]


async def test_documents_and_webp_arrive_at_gemini_with_their_kinds() -> None:
    async with opened_wire("gemini") as wire:
        await wire.service.chat(LLMRequest(messages=looking(PDF, WEBP), route=wire.route), CONTEXT)
        parts = wire.server.calls[0].json["contents"][0]["parts"]
    assert [part["inline_data"]["mime_type"] for part in parts[:2]] == ["application/pdf", "image/webp"]
    assert received(wire.server.calls[0]) == [([PDF, WEBP], "Which colour?")]


async def test_an_image_alone_is_a_message(wire: Wire) -> None:
    await wire.service.chat(LLMRequest(messages=looking(png(), text=""), route=wire.route), CONTEXT)
    ((files, text),) = received(wire.server.calls[0])
    assert (files, text.strip()) == ([png()], "")


async def test_ollamas_own_client_sends_the_same_message() -> None:
    async with opened_wire("ollama") as wire:
        await wire.service.chat(LLMRequest(messages=looking(png(), JPEG), route=wire.route), CONTEXT)
        theirs = [{"role": "user", "content": "Which colour?", "images": [png(), JPEG]}]
        with ollama.Client(wire.server.url) as client:
            client.chat("llama3.2", theirs)
        ours, official = (call.json["messages"] for call in wire.server.calls)
    assert ours == official


async def test_googles_own_client_sends_the_same_parts() -> None:
    async with opened_wire("gemini") as wire:
        await wire.service.chat(LLMRequest(messages=looking(png(), PDF), route=wire.route), CONTEXT)
        parts = [
            types.Part.from_bytes(data=png(), mime_type="image/png"),
            types.Part.from_bytes(data=PDF, mime_type="application/pdf"),
            types.Part.from_text(text="Which colour?"),
        ]
        with genai.Client(api_key="key", http_options=types.HttpOptions(base_url=wire.server.url)) as client:
            contents = [types.Content(role="user", parts=parts)]
            client.models.generate_content(model="gemini-2.5-flash", contents=contents)
        ours, official = ([_read(part) for part in call.json["contents"][0]["parts"]] for call in wire.server.calls)
    assert ours == official


def _read(part: dict[str, Any]) -> tuple[str, bytes] | str:
    """As Google's servers read it: names in both spellings, both alphabets of base64."""
    inline = part.get("inline_data") or part.get("inlineData")
    if inline is None:
        return str(part["text"])
    plain = inline["data"].translate(str.maketrans("-_", "+/"))
    return inline["mime_type"], base64.b64decode(plain, validate=True)


# --- keys and the store -------------------------------------------------------------------------------------------


async def test_image_is_part_of_the_idempotency_key(wire: Wire) -> None:
    """The same image is replayed; another under the same key is a conflict."""

    def asked(data: bytes) -> LLMRequest:
        return LLMRequest(messages=looking(data), route=wire.route, idempotency_key="k")

    first = await wire.service.chat(asked(png(1)), CONTEXT)
    again = await wire.service.chat(asked(png(1)), CONTEXT)
    assert (again.text, again.billed, len(wire.server.calls)) == (first.text, False, 1)
    with pytest.raises(LLMIdempotencyConflict):
        await wire.service.chat(asked(png(2)), CONTEXT)


def test_attachment_bytes_are_not_stored(tmp_path: Path) -> None:
    """A session sends images and files."""
    photo, scan = tmp_path / "photo.png", tmp_path / "scan.pdf"
    photo.write_bytes(png(9, width=500))
    scan.write_bytes(PDF)
    store, cache = tmp_path / "store", tmp_path / "cache"
    store.mkdir()
    with (
        GeminiServer(api_key="key") as server,
        Session(
            "w",
            gemini_api_base=server.url,
            gemini_api_key="key",
            database_url=f"sqlite:///{store / 'runs.db'}",
            cache_dir=cache,
        ) as session,
    ):
        for _ in range(2):
            session.chat("Which colour?", route=GEMINI, images=photo, files=[scan.read_bytes()])
        frame = session.runs()
        calls = list(server.calls)
    assert [received(call) for call in calls] == [[([png(9, width=500), PDF], "Which colour?")]]
    assert list(frame["served_from"]) == ["cache", "provider"]
    assert f"sha256:{Attachment.of(photo).sha256[:7]}…] [application/pdf 69 B" in frame["request_preview"].iloc[1]
    written = b"".join(file.read_bytes() for folder in (store, cache) for file in folder.rglob("*") if file.is_file())
    assert calls[0].json["contents"][0]["parts"][2]["text"].encode() in written
    for data in (png(9, width=500), PDF):
        assert data[:40] not in written
        assert base64.b64encode(data)[:40] not in written


# --- extraction, agents, evaluation -------------------------------------------------------------------------------


async def test_an_extraction_and_its_second_question_show_the_image(wire: Wire) -> None:
    wire.server.script([Reply('{"label": "blue"}'), Reply(RED)])
    found = await wire.extract(Label, looking(png()))
    assert (found.value.label, found.mode, found.outcome) == ("red", "schema", "reasked")
    first, second = (received(call) for call in wire.server.calls)
    assert first == [([png()], "Which colour?")]
    assert second[0] == first[0]


def test_a_session_extracts_from_images_with_or_without_a_text() -> None:
    with (
        OllamaServer([RED], models=[LLAVA]) as server,
        Session("w", ollama_api_base=server.url, cache_enabled=False) as session,
    ):
        shots = [("The sky at night", {"label": "black"})]
        assert session.extract(Label, images=png(), examples=shots, route="ollama/llava").label == "red"
        session.extract(Label, "A flag", images=[png()], route="ollama/llava")
        with pytest.raises(LLMBadRequest, match=r"nothing to read: pass a text, images=\.\.\. or files=\.\.\."):
            session.extract(Label, route="ollama/llava")
        alone, beside = (call.json["messages"] for call in server.calls)
    assert alone[0]["content"] == "Read the Label out of what is attached. Answer with JSON only."
    assert [message["content"] for message in alone[1:]] == [
        "Text: The sky at night\nJSON:",
        '{"label":"black"}',
        "JSON:",
    ]
    assert beside[0]["content"] == "Read the Label out of the text and what is attached to it. Answer with JSON only."
    assert beside[1]["content"] == "Text: A flag\nJSON:"


@pytest.mark.parametrize(
    ("parameters", "said"),
    [
        ({"images": ["missing.png"]}, r"images: .*No such file.*missing\.png"),
        ({"images": [b"GIF89a"]}, "images: the bytes are of no kind that can be sent"),
        ({"images": "https://example.com/a.png"}, "images: llmkit fetches nothing from an address"),
        ({"files": [png()]}, r"files: \[image/png 69 B .* belongs in images="),
        ({"images": 5}, "images: an image or a file is a path, bytes or an Attachment; got int"),
        ({"image": png()}, "image: unknown name"),
    ],
)
def test_bad_attachments_are_refused(parameters: dict[str, Any], said: str) -> None:
    """With one error, before anything is sent."""
    with OllamaServer() as server, Session("w", ollama_api_base=server.url) as session:
        for ask in (session.chat, lambda text, **rest: session.extract(Label, text, **rest)):
            with pytest.raises(LLMBadRequest, match=said):
                ask("Which colour?", route="ollama/llama3.2", **parameters)
        with pytest.raises(LLMBadRequest, match="belong to the last message"):
            session.chat([Message(role="assistant", content="Hm.")], route="ollama/llama3.2", images=png())
        assert not server.requests


def test_a_route_without_eyes_is_refused_before_anything_is_sent() -> None:
    with Session("w", cache_enabled=False) as session:
        with pytest.raises(LLMUnsupported, match="local/gemma-3-270m cannot take this request: it cannot see images"):
            session.extract(Label, images=png(), route="local/gemma-3-270m")
        plan = session.explain("Which colour?", images=png())
    assert "whether it can see images depends on the model; pin it to try" in str(plan)


def test_reported_text_model_refuses_images() -> None:
    """A model that its server reports to be without vision is refused before anything is sent."""
    with (
        OllamaServer(models=["llama3.2"]) as server,
        Session("w", ollama_api_base=server.url, cache_enabled=False) as session,
    ):
        with pytest.raises(LLMUnsupported, match=r"cannot see images \(reported\)"):
            session.chat("Which colour?", images=png(), route="ollama/llama3.2")
        assert not server.calls


@pytest.mark.ollama
def test_a_real_ollama_refuses_an_image_for_a_model_without_vision(real_ollama: RealOllama) -> None:
    with Session("real", ollama_api_base=real_ollama.url, cache_enabled=False) as session:
        with pytest.raises(LLMUnsupported, match=r"cannot see images \(reported\)") as caught:
            session.chat("Which colour?", images=png(), route=f"ollama/{real_ollama.model}")
        assert not caught.value.attempts


async def test_an_agent_sees_the_image_of_its_prompt_and_of_its_tool(wire: Wire) -> None:
    wire.server.script([Reply(tool_calls=[ToolCall("draw", {})]), Reply(RED)])
    agent = Agent(wire.model(), output_type=Label)

    @agent.tool_plain
    def draw() -> BinaryContent:
        return BinaryContent(png(2), media_type="image/png")

    found = await agent.run(["Which colour?", BinaryContent(png(1), media_type="image/png")])
    assert found.output == Label(label="red")
    arrived = [data for files, _ in received(wire.server.calls[1]) for data in files]
    assert arrived == [png(1), png(2)]


def test_a_prompt_function_of_an_evaluation_may_attach_images() -> None:
    task = Task(
        name="colours",
        dataset=[Sample(id=str(red), input={"red": red}, target={"label": "red"}) for red in (100, 200)],
        prompt=lambda sample: looking(png(sample.input["red"])),
        output_type=Label,
        scorers=[field_match("label")],
    )
    with (
        OllamaServer([RED], models=[LLAVA]) as server,
        Session("w", ollama_api_base=server.url, cache_enabled=False) as session,
    ):
        report = session.evaluate(task, ["ollama/llava"], name="r", progress=False)
        again = session.evaluate(task, ["ollama/llava"], name="r", progress=False)
        sent = [received(call) for call in server.calls]
    assert sorted(json.dumps(str(each)) for each in sent) == sorted(
        json.dumps(str([([png(red)], "Which colour?")])) for red in (100, 200)
    )
    assert list(report.summary()["mean"]) == list(again.summary()["mean"]) == [1.0]
