"""The stand-in for Gemini in the notebooks: rules, not a model."""

import json
import re
from typing import Any

from llmkit.testing import GeminiServer, Load, Reply, ToolCall
from llmkit.testing.request_log import RecordedRequest

__all__ = ["stand_in"]

LATENCY_S = 0.05
GOOD = {
    *("delicious", "perfectly", "friendly", "great", "lovely", "love", "best", "wonderful", "charming", "superb"),
    *("excellent", "amazing", "delighted", "beautiful", "fantastic", "happy", "fast", "quiet", "comfortable"),
}
_TEXT = re.compile(r"Text: (.*)")
_NUMBER = re.compile(r"order (\d+)")


def stand_in() -> GeminiServer:
    """Make the server: a word list for sentiments, a script for the agent with tools."""
    return GeminiServer(_answer, load=Load(latency_s=LATENCY_S))


def _answer(request: RecordedRequest) -> Reply:
    body = request.json
    parts = [part for content in body["contents"] for part in content["parts"]]
    said = "\n".join(part.get("text", "") for part in parts)
    tools = [
        function["name"]
        for tool in body.get("tools") or ()
        for function in _either(tool, "functionDeclarations", "function_declarations") or ()
    ]
    if tools:
        return _step(said, parts, tools)
    label = "positive" if GOOD & set(re.findall(r"[a-z]+", _TEXT.findall(said)[-1].lower())) else "negative"
    return Reply(json.dumps({"label": label}))


def _either(value: dict[str, Any], *names: str) -> Any:
    """Return a field by either of its two spellings: clients of Google's servers use both."""
    return next((value[name] for name in names if name in value), None)


def _step(said: str, parts: list[dict[str, Any]], tools: list[str]) -> Reply:
    """Look up every order that was named; once they are known, tell them."""
    found = [each["response"] for part in parts if (each := _either(part, "functionResponse", "function_response"))]
    if not found:
        numbers = [int(number) for number in _NUMBER.findall(said)]
        return Reply(tool_calls=[ToolCall("look_up", {"order": number}) for number in numbers])
    (answer,) = [name for name in tools if name != "look_up"]
    results = "; ".join(str(each.get("return_value", each.get("output", each))) for each in found)
    late = [int(number) for number in re.findall(r"order (\d+): \w+, late", results)]
    return Reply(tool_calls=[ToolCall(answer, {"late_orders": late, "advice": "Offer the late ones free shipping."})])
