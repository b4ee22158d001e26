"""Streams of Gemini and Anthropic: what is asked for, and the plain reply that is made of the events."""

from __future__ import annotations

import json
from random import Random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmkit.ports import StreamPiece
from llmkit.providers.anthropic import SPEC as ANTHROPIC
from llmkit.providers.base import ReplyFolder, StreamForm
from llmkit.providers.gemini import SPEC as GEMINI
from llmkit.testing import Reply, ToolCall
from tests.support.cut_streams import CUTTERS, render

SPECS = {"gemini": GEMINI, "anthropic": ANTHROPIC}
FORMS: dict[str, StreamForm] = {name: spec.stream() for name, spec in SPECS.items() if spec.stream is not None}
KINDS = list(FORMS)

texts = st.text(max_size=20)
values = st.recursive(st.none() | st.booleans() | st.integers() | texts, st.lists, max_leaves=4)
calls = st.builds(ToolCall, st.just("look_up"), st.dictionaries(texts, values, max_size=3), st.none() | st.just("own"))
replies = st.builds(
    Reply,
    st.none() | texts,
    tool_calls=st.lists(calls, max_size=3),
    thinking=st.none() | texts,
    output_tokens=st.none() | st.integers(0, 99),
    finish_reason=st.none() | st.sampled_from(["stop", "length", "odd"]),
    no_usage=st.booleans(),
)


def fold(kind: str, events: list[dict[str, Any]]) -> tuple[ReplyFolder, list[StreamPiece]]:
    folder = FORMS[kind].open_folder()
    return folder, [piece for event in events for piece in folder.add(event)]


def join(pieces: list[StreamPiece], kind: str) -> str:
    return mend("".join(piece.text for piece in pieces if piece.kind == kind))


def mend(value: Any) -> Any:
    """Send a value through JSON: escaped halves of one character may come in two events, and there they meet."""
    return json.loads(json.dumps(value))


@pytest.mark.parametrize("kind", KINDS)
@given(replies, st.randoms(use_true_random=False))
def test_events_fold_to_the_plain_reply(kind: str, reply: Reply, rng: Random) -> None:
    plain = render(kind, reply)
    folder, pieces = fold(kind, CUTTERS[kind](plain, rng))
    assert mend(folder.fold()) == plain
    assert folder.is_complete
    assert join(pieces, "text") == (reply.text if reply.text is not None else join(pieces, "text"))
    assert join(pieces, "thinking") == (reply.thinking or "")
    arguments = ["".join(p.text for p in pieces if p.tool_index == at and p.kind == "tool_call") for at in range(3)]
    assert [json.loads(mend(each)) for each in arguments if each] == [dict(call.arguments) for call in reply.tool_calls]


@pytest.mark.parametrize("kind", KINDS)
@given(replies)
def test_the_stand_in_streams_what_it_answers_plainly(kind: str, reply: Reply) -> None:
    folder, _ = fold(kind, render(kind, reply, streamed=True))
    made_up = dict.fromkeys(("id", "responseId"))
    assert {**folder.fold(), **made_up} == {**render(kind, reply), **made_up}


def test_only_the_request_for_a_stream_changes() -> None:
    url, body = "https://host/v1beta/models/gemini-2.5-flash:generateContent", b'{"contents": []}'
    streamed = "https://host/v1beta/models/gemini-2.5-flash:streamGenerateContent?alt=sse"
    assert FORMS["gemini"].ask(url, body) == (streamed, body)
    assert FORMS["gemini"].ask(f"{url}?key=k", body) == (streamed.replace("?alt", "?key=k&alt"), body)
    assert FORMS["anthropic"].ask("https://host/v1/messages", b'{"a": {}}') == (
        "https://host/v1/messages",
        b'{"a": {},"stream":true}',
    )


@pytest.mark.parametrize("kind", KINDS)
def test_a_broken_stream_folds_to_what_arrived(kind: str) -> None:
    events = render(kind, Reply("one two three", thinking="why"), streamed=True)
    told = next(at for at, event in enumerate(events) if "two" in json.dumps(event))
    folder, pieces = fold(kind, events[: told + 1])
    assert not folder.is_complete
    assert (join(pieces, "text").split(), join(pieces, "thinking").strip()) == (["one", "two"], "why")
    folded = json.dumps(folder.fold())
    assert "two" in folded
    assert "three" not in folded


def test_the_first_count_of_an_answer_is_a_guess() -> None:
    events = render("anthropic", Reply("one two"), streamed=True)
    folder, _ = fold("anthropic", events[:-2])
    usage = folder.fold()["usage"]
    assert "output_tokens" not in usage
    assert usage["input_tokens"] == 2
    assert not ANTHROPIC.reply_facts(folder.fold()).counts_reported


def test_a_signature_ends_the_text_that_it_signs() -> None:
    texts = [{"text": "a"}, {"text": "b"}, {"text": "", "thoughtSignature": "s"}, {"text": "c"}]
    folder, _ = fold("gemini", [{"candidates": [{"content": {"parts": [text]}}]} for text in texts])
    (candidate,) = folder.fold()["candidates"]
    assert candidate["content"]["parts"] == [{"text": "ab", "thoughtSignature": "s"}, {"text": "c"}]


def test_the_tool_that_gives_an_answer_its_shape_is_text() -> None:
    call = ToolCall("json_tool_call", {"name": "Ulm"})
    _, pieces = fold("anthropic", render("anthropic", Reply("", tool_calls=[call]), streamed=True))
    assert {piece.kind for piece in pieces} == {"text"}
    assert join(pieces, "text") == '{"name": "Ulm"}'


@pytest.mark.parametrize(
    ("kind", "error"),
    [
        ("gemini", {"error": {"code": 503, "message": "overloaded", "status": "UNAVAILABLE"}}),
        ("anthropic", {"type": "error", "error": {"type": "overloaded_error", "message": "overloaded"}}),
    ],
)
def test_an_error_event_is_the_error_of_the_reply(kind: str, error: dict[str, Any]) -> None:
    spec = {"gemini": GEMINI, "anthropic": ANTHROPIC}[kind]
    for events in ([], render(kind, Reply("one two"), streamed=True)[:3]):
        folder, _ = fold(kind, [*events, error])
        assert folder.is_complete
        assert spec.reply_facts(folder.fold()).error == "overloaded"


def test_blocks_that_nobody_opened_and_events_after_the_end() -> None:
    def write(text: str, index: Any) -> dict[str, Any]:
        return {"type": "content_block_delta", "index": index, "delta": {"type": "text_delta", "text": text}}

    events = [write("a", 10**9), write("b", "2"), write("c", 10**9), {"type": "message_stop"}, write("d", "2")]
    folder, pieces = fold("anthropic", events)
    assert [block["text"] for block in folder.fold()["content"]] == ["ac", "b"]
    assert join(pieces, "text") == "abc"


_FIELD_NAMES = (
    "type index message content usage content_block delta text thinking partial_json signature citation id name input "
    "stop_reason error candidates parts functionCall args finishReason usageMetadata logprobsResult promptFeedback "
    "thought thoughtSignature chosenCandidates citations"
)
_TYPE_NAMES = (
    "message_start content_block_start content_block_delta content_block_stop message_delta message_stop error text "
    "text_delta thinking_delta input_json_delta signature_delta citations_delta tool_use thinking"
)
_NAMES, _TYPES = st.sampled_from(_FIELD_NAMES.split()), st.sampled_from(_TYPE_NAMES.split())
_ATOMS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3) | st.just("\ud83d") | _TYPES
_JSON = st.recursive(_ATOMS, lambda inner: st.lists(inner, max_size=2) | st.dictionaries(_NAMES, inner, max_size=4))
_EVENTS = st.fixed_dictionaries({}, optional={"type": _TYPES | _JSON, "index": _JSON, "candidates": _JSON}).flatmap(
    lambda event: st.dictionaries(_NAMES, _JSON, max_size=5).map(lambda more: {**more, **event})
)


@pytest.mark.parametrize("kind", KINDS)
@given(st.lists(_EVENTS, max_size=8))
def test_no_event_of_any_shape_raises(kind: str, events: list[dict[str, Any]]) -> None:
    folder, pieces = fold(kind, events)
    assert isinstance(folder.is_complete, bool)
    json.dumps(folder.fold())
    for piece in pieces:
        names = (piece.text, piece.tool_id, piece.tool_name)
        assert [type(each) for each in names] == [str] * 3
        assert (piece.kind, 0 <= piece.tool_index < 8) in [(known, True) for known in ("text", "thinking", "tool_call")]
