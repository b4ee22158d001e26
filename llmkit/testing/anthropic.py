"""A stand-in that speaks Anthropic's Messages API."""

import base64
import hashlib
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from llmkit.testing.http_answers import (
    CompletedReply,
    HttpAnswer,
    complete_reply,
    find_wrong_type,
    json_bytes,
    make_retry_headers,
)
from llmkit.testing.replies import Fault, FaultKind, Reply, ToolCall
from llmkit.testing.reply_script import Replies
from llmkit.testing.request_log import RecordedRequest, Usage
from llmkit.testing.schema_instance import minimal_instance
from llmkit.testing.server import StandInServer
from llmkit.testing.server_load import Load
from llmkit.testing.tokens import count_tokens, split_tokens

__all__ = ["AnthropicModel", "AnthropicServer"]

_STOP_REASONS = {"stop": "end_turn", "length": "max_tokens"}
_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    402: "billing_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    504: "timeout_error",
    529: "overloaded_error",
}
_MESSAGES = {
    402: "Your credit balance is too low to access the Anthropic API.",
    403: "Your API key does not have permission to use the specified resource.",
    404: "Not found",
    413: "Request exceeds the maximum size",
    429: "This request would exceed the rate limit for your organization.",
    500: "Internal server error",
    504: "The request timed out",
    529: "Overloaded",
}
_FILTERED = "Output blocked by content filtering policy"
# What the grammar behind structured outputs does not enforce, and the real server therefore refuses.
_UNENFORCED = (
    "minimum",
    "maximum",
    "exclusiveMinimum",
    "exclusiveMaximum",
    "multipleOf",
    "minLength",
    "maxLength",
    "maxItems",
    "uniqueItems",
)
_SAMPLING = ("temperature", "top_p", "top_k")
_FIELD_TYPES: dict[str, type | tuple[type, ...]] = {
    "model": str,
    "messages": list,
    "max_tokens": int,
    "system": (str, list),
    "temperature": (int, float),
    "stop_sequences": list,
    "tools": list,
    "tool_choice": dict,
    "thinking": dict,
    "stream": bool,
}
_BROKEN_INPUT = '{"name": "a'


@dataclass(frozen=True, slots=True)
class AnthropicModel:
    """A model that the server offers.

    Attributes:
        name: As requests name it.
        context_length: In tokens; a longer prompt is refused with 400.
        max_output_tokens: The largest `max_tokens` that is let in.
        structured_output: Whether it takes a schema for its output; older models refuse one with 400.
        sampling: Whether it takes `temperature`, `top_p` and `top_k`; newer models refuse them with 400.
    """

    name: str
    context_length: int = 200_000
    max_output_tokens: int = 64_000
    structured_output: bool = True
    sampling: bool = True


class AnthropicServer(StandInServer):
    """Answers `POST /v1/messages`, `POST /v1/messages/count_tokens`, `GET /v1/models` and `GET /v1/models/<model>`.

    Honoured: `stream`, `max_tokens` (required; the answer is cut, `max_tokens`), `stop_sequences`, `tools` with
    `tool_choice` `any` or `tool` (an unscripted reply calls the tool, with minimal input), image blocks, `thinking` and
    a schema for the output in `output_config.format` or `output_format`. Other options are ignored. A request without
    `anthropic-version` is refused.

    Args:
        replies: See `script`; left out, it answers a valid instance of the requested schema, else `DEFAULT_TEXT`.
        api_key: The only key that is let in, in `x-api-key` or as a bearer token; None lets everybody in.
        models: What is offered, by name or in detail; any other model is a 404.
        ignores_schema: Accept a schema and answer prose.
        strict_schemas: Refuse a schema with keywords that structured outputs do not enforce, as the real server does.
        load: How many requests it serves at once, how slowly, and when it is overloaded.
        keep_requests: How many requests `requests` keeps, the newest; None for all.
        port: 0 for a free one.
    """

    unsupported_faults: ClassVar[frozenset[FaultKind]] = frozenset(
        {FaultKind.RECITATION, FaultKind.DAILY_QUOTA, FaultKind.SAFETY_BLOCK}
    )

    def __init__(
        self,
        replies: Replies = Reply(),  # noqa: B008 - a frozen value
        *,
        api_key: str | None = None,
        models: Sequence[str | AnthropicModel] = ("claude-sonnet-5",),
        ignores_schema: bool = False,
        strict_schemas: bool = True,
        load: Load = Load(),  # noqa: B008 - a frozen value
        keep_requests: int | None = 10_000,
        port: int = 0,
    ) -> None:
        super().__init__(replies, load=load, keep_requests=keep_requests, port=port)
        self.models = models
        self.api_key = api_key
        self.ignores_schema = ignores_schema
        self.strict_schemas = strict_schemas

    @property
    def models(self) -> tuple[AnthropicModel, ...]:
        """Offered models. May be replaced at any time."""
        return tuple(self._models.values())

    @models.setter
    def models(self, models: Sequence[str | AnthropicModel]) -> None:
        details = (AnthropicModel(model) if isinstance(model, str) else model for model in models)
        self._models = {model.name: model for model in details}

    def _is_call(self, method: str, path: str) -> bool:
        return method == "POST" and path == "/v1/messages"

    def _make_error(self, status: int, message: str) -> HttpAnswer:
        kind = _TYPES.get(status, "api_error" if status >= 500 else "invalid_request_error")
        request_id = f"req_{hashlib.sha256(str(time.monotonic_ns()).encode()).hexdigest()[:24]}"
        error = {"type": "error", "error": {"type": kind, "message": message}, "request_id": request_id}
        return HttpAnswer([json_bytes(error)], status, headers={"request-id": request_id})

    # -- calls of the model ------------------------------------------------------------------------

    def _refuse(self, request: RecordedRequest, body: Any) -> HttpAnswer | None:
        refusal = self._refuse_access(request)
        if refusal is not None:
            return refusal
        problem = _find_problem(body, needs_limit=request.path == "/v1/messages")
        if problem:
            return self._make_error(400, problem)
        model = self._models.get(body["model"])
        if model is None:
            return self._make_error(404, f"model: {body['model']}")
        if body.get("max_tokens", 1) > model.max_output_tokens:
            limit = f"{body['max_tokens']} > {model.max_output_tokens}"
            advice = "which is the maximum allowed number of output tokens for"
            return self._make_error(400, f"max_tokens: {limit}, {advice} {model.name}")
        banned = [name for name in _SAMPLING if body.get(name) is not None and not model.sampling]
        if banned:
            return self._make_error(400, f"{banned[0]}: not supported with {model.name}")
        if not 0 <= (body.get("temperature") or 0) <= 1:
            return self._make_error(400, "temperature: range: 0..1")
        refusal = self._refuse_schema(body, model)
        if refusal is not None:
            return refusal
        tokens = _count_prompt(body)
        return self._refuse_long_prompt(tokens, model.context_length) if tokens > model.context_length else None

    def _refuse_access(self, request: RecordedRequest) -> HttpAnswer | None:
        bearer = request.headers.get("Authorization", "").removeprefix("Bearer ")
        key = request.headers.get("x-api-key") or bearer
        if self.api_key is not None and key != self.api_key:
            return self._make_error(401, "invalid x-api-key" if key else "x-api-key header is required")
        if "anthropic-version" not in request.headers:
            return self._make_error(400, "anthropic-version: header is required")
        return None

    def _refuse_long_prompt(self, tokens: int, limit: int) -> HttpAnswer:
        return self._make_error(400, f"prompt is too long: {tokens} tokens > {limit} maximum")

    def _refuse_schema(self, body: Any, model: AnthropicModel) -> HttpAnswer | None:
        schema = _get_schema(body)
        if schema is None:
            return None
        if not model.structured_output:
            return self._make_error(400, f"'{model.name}' does not support output format.")
        problem = _find_unenforced(schema) if self.strict_schemas else None
        return self._make_error(400, f"output_format.schema: {problem}") if problem else None

    def _render(self, request: RecordedRequest, body: Any, reply: Reply) -> HttpAnswer:
        if reply.text is None and not reply.tool_calls:
            reply = replace(reply, tool_calls=_make_forced_calls(body))
        schema = None if self.ignores_schema else _get_schema(body)
        completed = complete_reply(
            reply,
            prompt_tokens=_count_prompt(body),
            schema=schema,
            limit=body["max_tokens"],
            stops=body.get("stop_sequences") or (),
        )
        thinks = (body.get("thinking") or {}).get("type") in ("enabled", "adaptive")
        blocks = _list_blocks(completed, reply, thinks=thinks)
        reason = _STOP_REASONS.get(completed.finish_reason, completed.finish_reason)
        if reason == "end_turn" and reply.finish_reason is None:
            reason = "tool_use" if reply.tool_calls else "stop_sequence" if completed.stop_sequence else reason
        usage = None if reply.no_usage else completed.usage
        return self._make_answer(
            request, blocks, reason, usage, stop_sequence=completed.stop_sequence, model=reply.model
        )

    def _make_answer(
        self,
        request: RecordedRequest,
        blocks: list[dict[str, Any]],
        reason: str,
        usage: Usage | None,
        *,
        stop_sequence: str | None = None,
        model: str | None = None,
    ) -> HttpAnswer:
        body = request.json
        seed = f"{request.received_at_s!r} {id(request)}".encode()
        head: dict[str, Any] = {
            "id": f"msg_{hashlib.sha256(seed).hexdigest()[:24]}",
            "type": "message",
            "role": "assistant",
            "model": model or body["model"],
        }
        ending = {"stop_reason": reason, "stop_sequence": stop_sequence}
        if not body.get("stream"):
            counts = {} if usage is None else {"usage": _describe_usage(usage)}
            return HttpAnswer([json_bytes({**head, "content": blocks, **ending, **counts})], usage=usage)
        events = _list_events(head, blocks, ending, usage)
        lines = [b"event: " + event["type"].encode() + b"\ndata: " + json_bytes(event) + b"\n\n" for event in events]
        return HttpAnswer(lines, content_type="text/event-stream; charset=utf-8", usage=usage, streamed=True)

    # -- faults ------------------------------------------------------------------------------------

    def _render_fault(self, request: RecordedRequest, fault: Fault) -> HttpAnswer:
        usage = Usage(1, _count_prompt(request.json)) if request.is_call else Usage()
        match fault.kind:
            case FaultKind.INVALID_KEY:
                return self._make_error(401, "invalid x-api-key")
            case FaultKind.CONTEXT_OVERFLOW:
                limit = self._models[request.json["model"]].context_length
                return self._refuse_long_prompt(limit + 1, limit)
            case FaultKind.PROMPT_BLOCK:
                return self._make_error(400, _FILTERED)
            case FaultKind.REFUSAL:
                text = fault.message or ""
                spoken = Usage(1, usage.input_tokens, count_tokens(text))
                return self._make_answer(request, [{"type": "text", "text": text}] if text else [], "refusal", spoken)
            case FaultKind.MALFORMED_TOOL_CALL:
                # The real server sends an object; gateways that translate into this wire pass on what a model wrote.
                block = {"type": "tool_use", "id": "call-0", "name": "look_up", "input": _BROKEN_INPUT}
                return self._make_answer(request, [block], "tool_use", Usage(1, usage.input_tokens, 1))
            case FaultKind.NO_CANDIDATES:
                return self._make_answer(request, [], "end_turn", usage)
        code = fault.status_code
        message = fault.message or _MESSAGES.get(code, f"stand-in error {code}")
        headers = make_retry_headers(fault)
        if fault.retry_after_s is not None and fault.retry_after_form == "reset":
            at = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(-(-(time.time() + fault.retry_after_s) // 1)))
            headers |= {"anthropic-ratelimit-requests-remaining": "0", "anthropic-ratelimit-requests-reset": at}
        if fault.retry_after_s is not None and fault.retry_after_form == "message":
            message += f" Please try again in {fault.retry_after_s:g}s."
        error = self._make_error(code, message)
        return replace(error, headers={**(error.headers or {}), **headers})

    def _make_stream_error(self, fault: Fault, answer: HttpAnswer) -> HttpAnswer:
        error = super()._make_stream_error(fault, answer)
        return HttpAnswer([b"event: error\n" + error.body]) if answer.streamed else error

    # -- everything else ---------------------------------------------------------------------------

    def _lookup(self, request: RecordedRequest) -> HttpAnswer:
        match (request.method, request.path.split("/")[1:]):
            case ("POST", ["v1", "messages", "count_tokens"]):
                return self._answer_count(request)
            case ("GET", ["v1", "models", *names]) if len(names) < 2:
                return self._refuse_access(request) or self._answer_models(request, "".join(names))
        return self._make_error(404, "Not found")

    def _answer_count(self, request: RecordedRequest) -> HttpAnswer:
        try:
            body = request.json
        except ValueError:
            return self._make_error(400, "The request body is not valid JSON")
        if not isinstance(body, Mapping):
            return self._make_error(400, "Input should be a valid dictionary")
        return self._refuse(request, body) or HttpAnswer([json_bytes({"input_tokens": _count_prompt(body)})])

    def _answer_models(self, request: RecordedRequest, name: str) -> HttpAnswer:
        """Return one model, or a page of the list: `limit` models after the one named `after_id`."""
        if name:
            model = self._models.get(name)
            return (
                HttpAnswer([json_bytes(_describe_model(model))]) if model else self._make_error(404, f"model: {name}")
            )
        names = [*self._models]
        start = names.index(request.query["after_id"]) + 1 if request.query.get("after_id") in names else 0
        limit = request.query.get("limit", "20")
        if not limit.isdigit():
            return self._make_error(400, "limit: Input should be a valid integer")
        end = start + int(limit)
        page = [_describe_model(self._models[each]) for each in names[start:end]]
        ends = {"first_id": page[0]["id"], "last_id": page[-1]["id"]} if page else {"first_id": None, "last_id": None}
        return HttpAnswer([json_bytes({"data": page, "has_more": end < len(names), **ends})])


def _find_problem(body: Mapping[str, Any], *, needs_limit: bool) -> str | None:
    """Return the real server's sentence on the first field that is missing or not allowed, None for none."""
    for field in ("model", "messages", *(["max_tokens"] if needs_limit else [])):
        if field not in body:
            return f"{field}: Field required"
    wrong = find_wrong_type(body, _FIELD_TYPES)
    if wrong:
        return f"{wrong}: Input has the wrong type"
    if not body["messages"]:
        return "messages: at least one message is required"
    for at, message in enumerate(body["messages"]):
        if message.get("role") not in ("user", "assistant"):
            return f"messages.{at}.role: Input should be 'user' or 'assistant'"
    return None


def _list_contents(body: Mapping[str, Any]) -> list[Any]:
    """Return the system prompt and the contents of all messages: strings, and the blocks of a list."""
    contents: list[Any] = []
    for content in (body.get("system"), *(message.get("content") for message in body.get("messages") or ())):
        contents += content if isinstance(content, list) else [content or ""]
    return contents


def _count_prompt(body: Mapping[str, Any]) -> int:
    """Count the words of all text, and 1 for any image, document, tool call or result; at least 1."""
    texts = [block.get("text") if isinstance(block, Mapping) else block for block in _list_contents(body)]
    return max(1, sum(1 if text is None else count_tokens(text) for text in texts))


def _get_schema(body: Mapping[str, Any]) -> Any:
    form = (body.get("output_config") or {}).get("format") or body.get("output_format") or {}
    return form.get("schema") if form.get("type") == "json_schema" else None


def _find_unenforced(schema: Any) -> str | None:
    """Return the real server's sentence on the first thing in `schema` that it cannot enforce, None for nothing."""
    if not isinstance(schema, Mapping):
        return None
    kind = schema.get("type")
    if (kind == "object" or "properties" in schema) and schema.get("additionalProperties") is not False:
        return "For 'object' type, 'additionalProperties' must be explicitly set to false"
    for keyword in _UNENFORCED:
        if keyword in schema:
            return f"For '{kind}' type, property '{keyword}' is not supported"
    if schema.get("minItems", 0) > 1:
        return "For 'array' type, 'minItems' values other than 0 or 1 are not supported"
    inner = [each for key in ("properties", "$defs") for each in (schema.get(key) or {}).values()]
    inner += [*schema.get("anyOf", ()), *schema.get("allOf", ()), schema.get("items")]
    return next((found for each in inner if (found := _find_unenforced(each))), None)


def _make_forced_calls(body: Mapping[str, Any]) -> tuple[ToolCall, ...]:
    """Return the call that the model cannot avoid: of the tool that is named, or of the first if any is required."""
    choice = body.get("tool_choice") or {}
    if choice.get("type") not in ("any", "tool"):
        return ()
    for tool in body.get("tools") or ():
        if choice["type"] == "any" or tool["name"] == choice.get("name"):
            return (ToolCall(tool["name"], minimal_instance(tool.get("input_schema") or {"type": "object"})),)
    return ()


def _list_blocks(completed: CompletedReply, reply: Reply, *, thinks: bool) -> list[dict[str, Any]]:
    blocks: list[dict[str, Any]] = []
    if reply.thinking and thinks:
        signature = base64.b64encode(hashlib.sha256(reply.thinking.encode()).digest()).decode()
        blocks.append({"type": "thinking", "thinking": reply.thinking, "signature": signature})
    if completed.text:
        blocks.append({"type": "text", "text": completed.text})
    for at, call in enumerate(reply.tool_calls):
        arguments = dict(call.arguments)
        blocks.append({"type": "tool_use", "id": call.id or f"call-{at}", "name": call.name, "input": arguments})
    return blocks


def _describe_usage(usage: Usage) -> dict[str, Any]:
    """Return Anthropic's counts, in which cached tokens are not part of the input."""
    return {
        "input_tokens": usage.input_tokens - usage.cached_tokens,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": usage.cached_tokens,
        "output_tokens": usage.output_tokens,
        "output_tokens_details": {"thinking_tokens": usage.reasoning_tokens},
        "service_tier": "standard",
    }


def _list_events(
    head: dict[str, Any], blocks: list[dict[str, Any]], ending: dict[str, Any], usage: Usage | None
) -> list[dict[str, Any]]:
    """Return the events of a stream; the counts at its beginning have one token of output, those at its end all."""
    opened: dict[str, Any] = {**head, "content": [], "stop_reason": None, "stop_sequence": None}
    closed: dict[str, Any] = {"type": "message_delta", "delta": ending}
    if usage is not None:
        opened["usage"] = {**_describe_usage(usage), "output_tokens": 1}
        closed["usage"] = _describe_usage(usage)
    events: list[dict[str, Any]] = [{"type": "message_start", "message": opened}]
    for index, block in enumerate(blocks):
        match block["type"]:
            case "thinking":
                empty = {**block, "thinking": "", "signature": ""}
                deltas = [{"type": "thinking_delta", "thinking": block["thinking"]}]
                deltas.append({"type": "signature_delta", "signature": block["signature"]})
            case "text":
                empty = {**block, "text": ""}
                deltas = [{"type": "text_delta", "text": piece} for piece in split_tokens(block["text"])]
            case _:
                empty = {**block, "input": {}}
                whole = block["input"] if isinstance(block["input"], str) else json.dumps(block["input"])
                pieces = ("", whole[: len(whole) // 2], whole[len(whole) // 2 :])
                deltas = [{"type": "input_json_delta", "partial_json": piece} for piece in pieces]
        events.append({"type": "content_block_start", "index": index, "content_block": empty})
        if index == 0:
            events.append({"type": "ping"})
        events += [{"type": "content_block_delta", "index": index, "delta": delta} for delta in deltas]
        events.append({"type": "content_block_stop", "index": index})
    return [*events, closed, {"type": "message_stop"}]


def _describe_model(model: AnthropicModel) -> dict[str, Any]:
    shown = model.name.replace("-", " ").title()
    capabilities = {"structured_outputs": model.structured_output, "image_input": True}
    return {
        "type": "model",
        "id": model.name,
        "display_name": shown,
        "created_at": "2026-01-01T00:00:00Z",
        "lifecycle": "active",
        "max_input_tokens": model.context_length,
        "max_tokens": model.max_output_tokens,
        "capabilities": {name: {"supported": supported} for name, supported in capabilities.items()},
    }
