"""Framing of streams, and reasoning between tags in them."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmkit.ports import StreamPiece
from llmkit.transport.http.event_streams import EventDecoder
from llmkit.transport.http.reasoning_tags import ReasoningTags
from llmkit.transport.http.replies import drop_reasoning
from llmkit.transport.http.split_characters import SplitCharacters

SSE = (
    b"\xef\xbb\xbf: a comment\r\ndata: first\r\ndata: line two\r\n\r\nevent: ping\rid: 7\rdata:\xc3\xa4 "
    b'\xf0\x9f\x98\x80\r\rdata\n\n\n\nretry: 10\n\nerror: {"code": 500}\n\n data: not a field\n'
    b"data: [DONE]\n\ndata: without an end"
)
SSE_EVENTS = [
    b"first\nline two",
    "ä \U0001f600".encode(),
    b"",
    b'{"error": {"code": 500}}',
    b"[DONE]",
    b"without an end",
]
LINES = b'\xef\xbb\xbf{"a": 1}\r\n\n  \n{"b": "\xc3\xa4\xe2\x80\xa8"}\r{"c": 3}'
LINE_EVENTS = [b'{"a": 1}', '{"b": "ä\u2028"}'.encode(), b'{"c": 3}']


@pytest.mark.parametrize(
    ("framing", "stream", "events"), [("sse", SSE, SSE_EVENTS), ("ndjson", LINES, LINE_EVENTS)], ids=["sse", "ndjson"]
)
def test_events_are_the_same_wherever_the_network_splits_them(framing, stream, events) -> None:
    for size in range(1, len(stream) + 1):
        decoder = EventDecoder(framing)
        found = [data for at in range(0, len(stream), size) for data in decoder.feed(stream[at : at + size])]
        assert found + decoder.finish() == events, size


def test_an_event_is_complete_as_soon_as_its_empty_line_is() -> None:
    decoder = EventDecoder("sse")
    assert decoder.feed(b"data: a\r\n\r") == [b"a"]
    assert decoder.feed(b"\ndata: b\n\n") == [b"b"]
    assert decoder.finish() == []


texts = st.text(st.sampled_from("<think>/ING a\n"), max_size=12) | st.sampled_from(
    ["<think>", "</think>", "<thinking>", "</Thinking>", "<thin", "\n"]
)


@settings(max_examples=60)
@given(st.lists(texts, max_size=8))
def test_reasoning_is_separated_as_in_a_whole_reply(parts: list[str]) -> None:
    tags, whole = ReasoningTags(), "".join(parts)
    pieces = [piece for part in parts for piece in tags.separate([StreamPiece("text", part)], is_last=False)]
    pieces += tags.separate([], is_last=True)
    text = "".join(piece.text for piece in pieces if piece.kind == "text")
    if whole.lstrip().lower().startswith(("<think>", "<thinking>")):
        assert text == drop_reasoning(whole)
    else:
        assert text == whole


def test_halves_of_a_character_in_two_events_are_joined() -> None:
    characters = SplitCharacters()
    parts = ["a\ud83d", "\ude00b", "\ud83d", "c", "\ude00"]
    joined = [piece.text for part in parts for piece in characters.join([StreamPiece("text", part)])]
    assert joined == ["a", "\U0001f600b", "\ufffdc", "\ufffd"]
    call = StreamPiece("tool_call", "\ud83d", 0, "id", "look_up")
    assert characters.join([call]) == [call._replace(text="")]
