"""Requests and replies for both paths, as data: the contract suite sends all of it through each."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel

from llmkit.testing import Fault, Reply
from llmkit.testing import ToolCall as SaidCall
from llmkit.types import Message, NamedToolChoice, ResponseFormat, ToolCall, ToolDefinition


class Node(BaseModel):
    name: str
    children: list[Node] = []
    parent: Node | None = None


FLAT = {
    "type": "object",
    "properties": {"a": {"type": "string"}, "b": {"type": "integer", "default": 1, "minimum": 0}},
    "required": ["a"],
    "additionalProperties": False,
}
NESTED = {
    "type": "object",
    "properties": {
        "lines": {"type": "array", "items": FLAT, "minItems": 1},
        "kind": {"enum": ["x", "y", None]},
        "either": {"anyOf": [{"type": "string", "format": "date"}, {"type": "null"}]},
        "größe": {"type": "number", "description": "in m²", "exclusiveMinimum": 0},
    },
    "required": ["lines"],
}
WEATHER = ToolDefinition(
    name="weather",
    description="The weather in a city, as of now.",
    parameters={
        "type": "object",
        "properties": {"city": {"type": "string"}, "days": {"type": "integer", "default": 1}},
        "required": ["city"],
        "additionalProperties": False,
    },
)
NESTED_TOOL = ToolDefinition(name="book.flight-2", parameters=NESTED)
BARE_TOOL = ToolDefinition(name="now")
CALLS = (
    ToolCall(id="call_1", name="weather", arguments='{"city": "Ulm"}'),
    ToolCall(id="call_2__thought__c2lnbmVk", name="now", arguments="{}"),
)
HISTORY = (
    Message(role="system", content="Be brief."),
    Message(role="user", content="Weather in Ulm, and the time?"),
    Message(role="assistant", content="Let me see.", tool_calls=CALLS),
    Message(role="tool", content='{"sky": "grey"}', tool_call_id="call_1", tool_name="weather"),
    Message(role="tool", content="noon", tool_call_id="call_2__thought__c2lnbmVk", tool_name="now"),
    Message(role="assistant", content="Grey, noon."),
    Message(role="user", content="And tomorrow?"),
)


def said(*turns: tuple[str, str]) -> tuple[Message, ...]:
    return tuple(Message(role=role, content=content) for role, content in turns)


REQUESTS: dict[str, dict[str, Any]] = {
    "one word": {},
    "unicode": {"messages": "Grüße, 世界 \U0001f600 \u2028 \x00 \"quoted\" \\ </script>"},
    "empty": {"messages": ""},
    "long": {"messages": "The bill was wrong again. " * 8000},
    "system": {"messages": said(("system", "Be brief."), ("user", "Hi"))},
    "only system": {"messages": said(("system", "Be brief."))},
    "two systems": {"messages": said(("system", "A"), ("user", "B"), ("system", "C"), ("user", "D"), ("user", "E"))},
    "assistant first and last": {"messages": said(("assistant", "A"), ("user", "B"), ("assistant", "C"))},
    "temperature 0": {"temperature": 0},
    "temperature": {"temperature": 1.7},
    "limit": {"max_output_tokens": 7},
    "seed": {"seed": 0},
    "stop": {"stop": ("END",)},
    "logprobs": {"logprobs": True},
    "logprobs, thinking off": {"logprobs": True, "thinking": False},
    "more stops than LiteLLM sends": {"stop": ("a", "b", "c", "d", "e", "f")},
    "everything": {"temperature": 0.3, "max_output_tokens": 50, "seed": 7, "stop": ("x", "ü"),
                   "response_format": ResponseFormat(json_schema=FLAT)},
    "any JSON": {"response_format": ResponseFormat()},
    "schema": {"response_format": ResponseFormat(json_schema=FLAT, name="bill")},
    "nested schema": {"response_format": ResponseFormat(json_schema=NESTED)},
    "recursive schema": {"response_format": ResponseFormat(json_schema=Node.model_json_schema())},
    "bare schema": {"response_format": ResponseFormat(json_schema={"type": "string"})},
    "empty schema": {"response_format": ResponseFormat(json_schema={})},
    "lone surrogate in a schema": {
        "response_format": ResponseFormat(json_schema={**FLAT, "description": "half \ud83d of a smile"})
    },
    "NaN in a schema": {"response_format": ResponseFormat(json_schema={**FLAT, "default": float("nan")})},
    "tools": {"tools": (WEATHER, NESTED_TOOL, BARE_TOOL)},
    "tools and schema": {"tools": (WEATHER,), "response_format": ResponseFormat(json_schema=FLAT)},
    **{f"tools {choice}": {"tools": (WEATHER,), "tool_choice": choice} for choice in ("auto", "none", "required")},
    "tool by name": {"tools": (WEATHER, BARE_TOOL), "tool_choice": NamedToolChoice(name="now")},
    "tool choice without tools": {"tool_choice": "none"},
    "history of tools": {"messages": HISTORY, "tools": (WEATHER, BARE_TOOL)},
    "history of tools without tools": {"messages": HISTORY},
    "history that cannot be read": {
        "messages": (
            Message(role="user", content="Weather?"),
            Message(role="assistant", tool_calls=(ToolCall(id="1", name="weather", arguments="not JSON"),)),
        )
    },
    "answer to no call": {"messages": (Message(role="user", content="x"),
                                       Message(role="tool", content="y", tool_call_id="never", tool_name="t"))},
}  # fmt: skip

REPLIES: dict[str, Reply | Fault] = {
    "text": Reply("A loss of customers."),
    "unicode": Reply("Verlust \U0001f600 \u2028 世界 \x01"),
    "thoughts in the text": Reply("<think>hm</think>Yes."),
    "thinking": Reply("Yes.", thinking="hm"),
    "counts": Reply("Yes.", input_tokens=100, cached_tokens=40, output_tokens=30, reasoning_tokens=20),
    "many tokens": Reply("Yes.", input_tokens=300_000, output_tokens=9),
    "no counts": Reply("Yes."),
    "no usage": Reply("Yes.", no_usage=True),
    "a tool call": Reply(tool_calls=[SaidCall("weather", {"city": "Ulm"}, id="7", thought_signature="c2lnbmVk")]),
    "tool calls beside text": Reply("Look:", tool_calls=[SaidCall("weather", {"city": "Ü"}), SaidCall("now")]),
    "another model": Reply("Yes.", model="gemini-2.5-flash-001"),
    "an unpriced model": Reply("Yes.", model="no-such-price"),
    "cut": Reply("Yes", finish_reason="length"),
    "unknown end": Reply("Yes", finish_reason="WEIRD"),
    "empty": Reply(""),
    "safety": Reply("", finish_reason="SAFETY"),
    "created": Fault.status(201),
    "redirect": Fault.redirect("http://localhost:9/elsewhere"),
    "busy": Fault.status(503, retry_after_s=3),
}
