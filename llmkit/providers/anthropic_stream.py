"""Streamed answers of Anthropic's protocol: a message opens, its blocks grow one by one, and it ends."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from llmkit.canonical_json import json_object
from llmkit.ports import StreamPiece
from llmkit.providers.base import StreamForm, as_mapping, update_known

__all__ = ["make_stream_form"]

# By the type of a delta: the block that it belongs to, and the field of its text.
_FRAGMENTS = {
    "text_delta": ("text", "text"),
    "thinking_delta": ("thinking", "thinking"),
    "input_json_delta": ("tool", "partial_json"),
}
# Counts of the answer, which the opening event can only guess.
_COUNTS_OF_ANSWER = frozenset({"output_tokens", "output_tokens_details"})


def _ask(url: str, body: bytes) -> tuple[str, bytes]:
    # Inserted as text: reading and writing it again takes long for a body with images, and could change it.
    return url, body.rstrip().removesuffix(b"}") + b',"stream":true}'


class _Block:
    """One block of the answer, with the fragments that followed.

    Attributes:
        sort: `text`, `thinking` or `tool`, which its deltas must fit; any other block has none.
        tool_index: Its number among the tool calls; None for any other block.
        texts: The fragments: of its text, or of the JSON of a tool's input.
    """

    def __init__(self, fields: Mapping[str, Any], tool_index: int | None) -> None:
        kind = fields.get("type")
        self.fields = dict(fields)
        self.tool_index = tool_index
        self.sort = "tool" if tool_index is not None else str(kind)
        self.texts: list[str] = []

    def fold(self) -> dict[str, Any]:
        """Return the block so far. Input that is not JSON (yet) stays text."""
        text = "".join(self.texts)
        if not text:
            return dict(self.fields)
        if self.sort != "tool":
            return {**self.fields, self.sort: text}
        read = json_object(text.encode("utf-8", "surrogatepass"))
        return {**self.fields, "input": text if read is None else read}


class AnthropicFolder:
    """Folds the events of one answer into the message.

    Args:
        schema_tool: The tool by whose input a model answers in a shape: for the reader that is text.
    """

    def __init__(self, schema_tool: str) -> None:
        self._schema_tool = schema_tool
        self._message: dict[str, Any] = {}
        self._usage: dict[str, Any] | None = None
        self._blocks: list[_Block] = []
        self._by_index: dict[object, _Block] = {}
        self._tool_calls = 0
        self._has_ended = False
        self._readers: Mapping[str, Callable[[Mapping[str, Any]], Sequence[StreamPiece]]] = {
            "message_start": self._open_message,
            "content_block_start": self._open_block,
            "content_block_delta": self._extend_block,
            "content_block_stop": self._close_block,
            "message_delta": self._close_message,
            "message_stop": self._end,
            "error": self._end,
        }

    def add(self, event: Mapping[str, Any]) -> Sequence[StreamPiece]:
        """Take the next event. Those of other types, such as `ping`, and those after the end add nothing."""
        read = self._readers.get(str(event.get("type")))
        return () if read is None or self._has_ended else read(event)

    @property
    def is_complete(self) -> bool:
        """Whether it ended, or has the reason for its end, which comes with the last counts."""
        return self._has_ended or bool(self._message.get("stop_reason"))

    def fold(self) -> Mapping[str, Any]:
        """Return the message so far."""
        message = dict(self._message)
        if self._blocks or "content" in message:
            message["content"] = [block.fold() for block in self._blocks]
        return message if self._usage is None else {**message, "usage": dict(self._usage)}

    def _open_message(self, event: Mapping[str, Any]) -> Sequence[StreamPiece]:
        opened = as_mapping(event.get("message"))
        update_known(self._message, {name: value for name, value in opened.items() if name != "usage"})
        usage = as_mapping(opened.get("usage"))
        self._add_usage({name: count for name, count in usage.items() if name not in _COUNTS_OF_ANSWER})
        return ()

    def _close_message(self, event: Mapping[str, Any]) -> Sequence[StreamPiece]:
        known = {name: value for name, value in event.items() if name not in ("type", "delta", "usage")}
        update_known(self._message, {**known, **as_mapping(event.get("delta"))})
        self._add_usage(as_mapping(event.get("usage")))
        return ()

    def _add_usage(self, counts: Mapping[str, Any]) -> None:
        # They are totals, and a count that is left out here keeps its value.
        if counts:
            self._usage = self._usage or {}
            update_known(self._usage, counts)

    def _end(self, event: Mapping[str, Any]) -> Sequence[StreamPiece]:
        self._has_ended = True
        if event.get("type") == "error":
            self._message["error"] = event.get("error") or "the stream ended with an error"
        return ()

    def _open_block(self, event: Mapping[str, Any]) -> Sequence[StreamPiece]:
        fields = event.get("content_block")
        return self._start_block(event, fields)[1] if isinstance(fields, Mapping) else ()

    def _start_block(self, event: Mapping[str, Any], fields: Mapping[str, Any]) -> tuple[_Block, list[StreamPiece]]:
        is_tool = fields.get("type") in ("tool_use", "server_tool_use")
        block = _Block(fields, self._tool_calls if is_tool else None)
        self._tool_calls += is_tool
        self._blocks.append(block)
        self._by_index[_read_index(event)] = block
        if is_tool:
            names = {"tool_id": fields.get("id"), "tool_name": fields.get("name")}
            return block, self._show_fragment(block, "", **{k: v for k, v in names.items() if isinstance(v, str)})
        text = fields.get(block.sort)
        if block.sort not in ("text", "thinking") or not isinstance(text, str) or not text:
            return block, []
        block.texts.append(text)
        return block, self._show_fragment(block, text)

    def _extend_block(self, event: Mapping[str, Any]) -> Sequence[StreamPiece]:
        delta, block = as_mapping(event.get("delta")), self._by_index.get(_read_index(event))
        sort, field = _FRAGMENTS.get(str(delta.get("type")), ("", ""))
        text = delta.get(field)
        if block is None and sort in ("text", "thinking"):
            # Some gateways open no blocks; what they send was paid for anyway.
            block, _ = self._start_block(event, {"type": sort, sort: ""})
        if block is None:
            return ()
        if isinstance(text, str) and sort == block.sort:
            block.texts.append(text)
            return self._show_fragment(block, text) if text else ()
        match delta:
            case {"type": "signature_delta", "signature": signature}:
                block.fields["signature"] = signature
            case {"type": "citations_delta", "citation": citation}:
                citations = block.fields.get("citations")
                block.fields["citations"] = [*(citations if isinstance(citations, list) else ()), citation]
        return ()

    def _close_block(self, event: Mapping[str, Any]) -> Sequence[StreamPiece]:
        """Show the input of a tool call that came whole, with its opening."""
        block = self._by_index.pop(_read_index(event), None)
        if block is None or block.tool_index is None or any(block.texts):
            return ()
        return self._show_fragment(block, json.dumps(block.fields.get("input") or {}))

    def _show_fragment(self, block: _Block, text: str, **names: str) -> list[StreamPiece]:
        if block.tool_index is None:
            return [StreamPiece("thinking" if block.sort == "thinking" else "text", text)]
        if block.fields.get("name") == self._schema_tool:
            return [StreamPiece("text", text)] if text else []
        return [StreamPiece("tool_call", text, tool_index=block.tool_index, **names)]


def _read_index(event: Mapping[str, Any]) -> object:
    """Return the key of the event's block; a server may send anything as its index."""
    index = event.get("index")
    return index if isinstance(index, int | str) else None


def make_stream_form(schema_tool: str) -> StreamForm:
    """Make the form of streams in this protocol.

    Args:
        schema_tool: The tool by whose input a model answers in a shape.
    """
    return StreamForm("sse", _ask, lambda: AnthropicFolder(schema_tool))
