"""A stand-in that speaks OpenAI's Chat Completions, as OpenAI and the servers that follow it do."""

import hashlib
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Literal, TypeAlias

from llmkit.testing.http_answers import (
    CompletedReply,
    HttpAnswer,
    complete_reply,
    describe_token,
    find_wrong_type,
    json_bytes,
    make_retry_headers,
    pair_logprobs,
)
from llmkit.testing.replies import Fault, FaultKind, Reply, ToolCall
from llmkit.testing.reply_script import Replies
from llmkit.testing.request_log import RecordedRequest, Usage
from llmkit.testing.schema_instance import minimal_instance
from llmkit.testing.server import StandInServer
from llmkit.testing.server_load import Load
from llmkit.testing.tokens import count_tokens, split_tokens

__all__ = ["OpenAIDialect", "OpenAIModel", "OpenAIServer", "OutputLimit"]

OutputLimit: TypeAlias = Literal["max_tokens", "max_completion_tokens", "either"]
"""The field that limits the output. `max_completion_tokens` refuses the older name with 400, as OpenAI's reasoning
models do; `max_tokens` ignores the newer one, as servers do that never heard of it."""

_TYPES = {
    400: "invalid_request_error",
    401: "invalid_request_error",
    403: "invalid_request_error",
    404: "invalid_request_error",
    429: "requests",
}
_CODES = {401: "invalid_api_key", 404: "model_not_found", 429: "rate_limit_exceeded"}
_MESSAGES = {
    401: "You didn't provide an API key. You need to provide your API key in an Authorization header using Bearer auth "
    "(i.e. Authorization: Bearer YOUR_KEY).",
    402: "Insufficient credits. Add more to continue.",
    403: "Country, region, or territory not supported",
    404: "The model does not exist or you do not have access to it.",
    429: "Rate limit reached for requests",
    500: "The server had an error while processing your request. Sorry about that!",
    502: "Bad gateway.",
    503: "The engine is currently overloaded, please try again later",
}
_QUOTA = (
    "You exceeded your current quota, please check your plan and billing details. For more information on this error, "
    "read the docs: https://platform.openai.com/docs/guides/error-codes/api-errors."
)
_FILTERED = (
    "The response was filtered due to the prompt triggering content management policy. "
    "Please modify your prompt and retry."
)
_OLD_LIMIT = (
    "Unsupported parameter: 'max_tokens' is not supported with this model. Use 'max_completion_tokens' instead."
)
_ALL = ("tools", "vision", "json_schema", "json_object", "logprobs")
_FIELD_TYPES: dict[str, type | tuple[type, ...]] = {
    "model": str,
    "messages": list,
    "max_tokens": int,
    "max_completion_tokens": int,
    "temperature": (int, float),
    "stop": (str, list),
    "logprobs": bool,
    "top_logprobs": int,
    "response_format": dict,
    "tools": list,
    "stream": bool,
    "stream_options": dict,
}
_BROKEN_ARGUMENTS = '{"name": "a'


@dataclass(frozen=True, slots=True)
class OpenAIModel:
    """A model that the server offers.

    Attributes:
        name: As requests name it.
        context_length: In tokens; a longer prompt is refused with 400.
        capabilities: Without `tools`, `vision`, `json_schema` or `json_object` a request with them is refused with 400;
            without `logprobs` they are left out of the answer. LM Studio has no `json_object`.
        output_limit: The field that limits the output.
        owned_by: The owner that the list of models names.
    """

    name: str
    context_length: int = 128_000
    capabilities: tuple[str, ...] = _ALL
    output_limit: OutputLimit = "either"
    owned_by: str = "llmkit"


@dataclass(frozen=True, slots=True)
class OpenAIDialect:
    """The ways in which servers that speak Chat Completions differ.

    Attributes:
        base_path: The part before `/chat/completions`; Azure's is `/openai/deployments/<deployment>`.
        query: Parameters that every request must have in its query string, such as Azure's `api-version`.
        strict_schemas: Refuse a schema with `strict` that OpenAI refuses: an object without
            `additionalProperties: false`, or with a property that is not required.
        reports_usage: Send counts with the answers; without them nothing is added to the server's `usage` either.
        reports_window: List each model with its `max_model_len`, as vLLM does.
        served_by: The provider that answers name, as OpenRouter's do.
        streamed_counts: Where a stream has its counts: in a chunk `after` the end (OpenAI), `with_end`, or so far in
            `every` chunk (vLLM on request).
        stream_options: Whether the option for these counts is obeyed, ignored (a stream then has none), or refused.
        can_stream: Refuse requests to stream, as OpenAI does to some accounts.
        reasoning_field: The field of the message that shows the reasoning: `reasoning_content` (DeepSeek, vLLM),
            `reasoning` (OpenRouter, Ollama); None hides it, as OpenAI does.
    """

    base_path: str = "/v1"
    query: Mapping[str, str] = field(default_factory=dict)
    strict_schemas: bool = False
    reports_usage: bool = True
    reports_window: bool = False
    served_by: str | None = None
    streamed_counts: Literal["after", "with_end", "every"] = "after"
    stream_options: Literal["obeyed", "ignored", "refused"] = "obeyed"
    can_stream: bool = True
    reasoning_field: Literal["reasoning_content", "reasoning"] | None = "reasoning_content"


class OpenAIServer(StandInServer):
    """Answers `POST /v1/chat/completions`, `GET /v1/models` and `GET /v1/models/<model>`.

    Honoured: `stream` (with `stream_options.include_usage`), `response_format`, `tools` with `tool_choice` `required`
    or a named function (an unscripted reply calls it, with minimal arguments), image parts, `max_tokens` and
    `max_completion_tokens` (the answer is cut, `length`), `stop`, `logprobs` with `top_logprobs`. Other options are
    ignored. The base for clients is `api_base`.

    Args:
        replies: See `script`; left out, it answers a valid instance of the requested schema, else `DEFAULT_TEXT`.
        api_key: The only key that is let in, as a bearer token or, as on Azure, in `api-key`; None lets everybody in.
        models: What is offered, by name or in detail; any other model is a 404.
        dialect: How it differs from other servers of this protocol. May be replaced at any time.
        ignores_schema: Accept a schema and answer prose.
        load: How many requests it serves at once, how slowly, and when it is overloaded.
        keep_requests: How many requests `requests` keeps, the newest; None for all.
        port: 0 for a free one.
    """

    unsupported_faults: ClassVar[frozenset[FaultKind]] = frozenset({FaultKind.RECITATION})

    def __init__(
        self,
        replies: Replies = Reply(),  # noqa: B008 - a frozen value
        *,
        api_key: str | None = None,
        models: Sequence[str | OpenAIModel] = ("gpt-4o-mini",),
        dialect: OpenAIDialect = OpenAIDialect(),
        ignores_schema: bool = False,
        load: Load = Load(),  # noqa: B008 - a frozen value
        keep_requests: int | None = 10_000,
        port: int = 0,
    ) -> None:
        super().__init__(replies, load=load, keep_requests=keep_requests, port=port)
        self.models = models
        self.api_key = api_key
        self.dialect = dialect
        self.ignores_schema = ignores_schema

    @property
    def api_base(self) -> str:
        """The base URL for clients: `url` with the base path of the dialect."""
        return f"{self.url}{self.dialect.base_path}"

    @property
    def models(self) -> tuple[OpenAIModel, ...]:
        """Offered models. May be replaced at any time."""
        return tuple(self._models.values())

    @models.setter
    def models(self, models: Sequence[str | OpenAIModel]) -> None:
        details = (OpenAIModel(model) if isinstance(model, str) else model for model in models)
        self._models = {model.name: model for model in details}

    def _is_call(self, method: str, path: str) -> bool:
        return method == "POST" and path == f"{self.dialect.base_path}/chat/completions"

    def _make_error(
        self, status: int, message: str, *, kind: str | None = None, code: str | None = None, param: str | None = None
    ) -> HttpAnswer:
        kind = kind or _TYPES.get(status, "server_error" if status >= 500 else "invalid_request_error")
        error = {"message": message, "type": kind, "param": param, "code": code}
        return HttpAnswer([json_bytes({"error": error})], status)

    # -- calls of the model ------------------------------------------------------------------------

    def _refuse(self, request: RecordedRequest, body: Any) -> HttpAnswer | None:
        refusal = self._refuse_access(request) or self._refuse_stream(body)
        if refusal is not None:
            return refusal
        wrong = find_wrong_type(body, _FIELD_TYPES)
        if wrong:
            return self._make_error(400, f"Invalid type for '{wrong}'.", code="invalid_type", param=wrong)
        name = body.get("model")
        if not name:
            return self._make_error(400, "you must provide a model parameter")
        model = self._models.get(name)
        if model is None:
            return self._refuse_model(name)
        if not body.get("messages"):
            message = "Invalid 'messages': empty array. Expected an array with minimum length 1."
            return self._make_error(400, message, code="empty_array", param="messages")
        if model.output_limit == "max_completion_tokens" and body.get("max_tokens") is not None:
            return self._make_error(400, _OLD_LIMIT, code="unsupported_parameter", param="max_tokens")
        if "tools" not in model.capabilities and body.get("tools"):
            return self._make_error(400, f"{name} does not support tools", param="tools")
        if "vision" not in model.capabilities and _has_image(body):
            return self._make_error(400, f"{name} does not support image input", param="messages")
        refusal = self._refuse_format(body, model)
        if refusal is not None:
            return refusal
        tokens = _count_prompt(body)
        return self._refuse_long_prompt(tokens, model.context_length) if tokens > model.context_length else None

    def _refuse_stream(self, body: Any) -> HttpAnswer | None:
        if body.get("stream") and not self.dialect.can_stream:
            message = "Your organization must be verified to stream this model."
            return self._make_error(400, message, code="unsupported_value", param="stream")
        if body.get("stream_options") is not None and self.dialect.stream_options == "refused":
            return self._make_error(422, "stream_options: Extra inputs are not permitted")
        return None

    def _refuse_access(self, request: RecordedRequest) -> HttpAnswer | None:
        if any(request.query.get(name) != value for name, value in self.dialect.query.items()):
            return self._make_error(404, "Resource not found", code="404")
        key = request.headers.get("Authorization", "").removeprefix("Bearer ") or request.headers.get("api-key", "")
        if self.api_key is None or key == self.api_key:
            return None
        return self._refuse_bad_key(key) if key else self._make_error(401, _MESSAGES[401])

    def _refuse_bad_key(self, key: str) -> HttpAnswer:
        # The real server shows both ends of the key too, which therefore reach every log of the message.
        shown = f"{key[:4]}{'*' * (len(key) - 8)}{key[-4:]}" if len(key) > 8 else "*" * len(key)
        advice = "You can find your API key at https://platform.openai.com/account/api-keys."
        return self._make_error(401, f"Incorrect API key provided: {shown}. {advice}", code="invalid_api_key")

    def _refuse_model(self, name: str) -> HttpAnswer:
        message = f"The model `{name}` does not exist or you do not have access to it."
        return self._make_error(404, message, code="model_not_found")

    def _refuse_long_prompt(self, tokens: int, limit: int) -> HttpAnswer:
        message = (
            f"This model's maximum context length is {limit} tokens. "
            f"However, your messages resulted in {tokens} tokens. Please reduce the length of the messages."
        )
        return self._make_error(400, message, code="context_length_exceeded", param="messages")

    def _refuse_format(self, body: Any, model: OpenAIModel) -> HttpAnswer | None:
        form = body.get("response_format") or {"type": "text"}
        kinds = ["text", *(kind for kind in ("json_object", "json_schema") if kind in model.capabilities)]
        if form.get("type") not in kinds:  # the sentence is LM Studio's
            choice = " or ".join(f"'{kind}'" for kind in reversed(kinds))
            return self._make_error(400, f"'response_format.type' must be {choice}", param="response_format.type")
        if form["type"] == "json_schema" and not isinstance((form.get("json_schema") or {}).get("schema"), Mapping):
            message = "Missing required parameter: 'response_format.json_schema.schema'."
            return self._make_error(400, message, code="missing_required_parameter", param="response_format")
        if not self.dialect.strict_schemas:
            return None
        named: list[tuple[str, Any, str]] = [("response_format", form.get("json_schema") or {}, "schema")]
        named += [
            (f"tools[{at}].function.parameters", tool["function"], "parameters") for at, tool in _list_tools(body)
        ]
        for place, holder, key in named:
            problem = _find_unstrict(holder.get(key), ()) if holder.get("strict") else None
            if problem:
                what = "function" if key == "parameters" else place
                message = f"Invalid schema for {what} '{holder.get('name')}': {problem}"
                return self._make_error(400, message, code="invalid_function_parameters", param=place)
        return None

    def _render(self, request: RecordedRequest, body: Any, reply: Reply) -> HttpAnswer:
        if reply.text is None and not reply.tool_calls:
            reply = replace(reply, tool_calls=_make_forced_calls(body))
        model = self._models[body["model"]]
        completed = self._complete_reply(body, reply, model)
        finish_reason = completed.finish_reason
        if reply.tool_calls and reply.finish_reason is None and finish_reason == "stop":
            finish_reason = "tool_calls"
        message: dict[str, Any] = {"role": "assistant", "content": completed.text or (None if reply.tool_calls else "")}
        if reply.thinking and self.dialect.reasoning_field:
            message[self.dialect.reasoning_field] = reply.thinking
        if reply.tool_calls:
            message["tool_calls"] = [_describe_call(call, at) for at, call in enumerate(reply.tool_calls)]
        logprobs = None
        if body.get("logprobs") and "logprobs" in model.capabilities:
            pairs = pair_logprobs(completed.text, reply.logprobs)
            tokens = [describe_token(token, value, body.get("top_logprobs") or 0) for token, value in pairs]
            logprobs = {"content": tokens, "refusal": None}
        usage = completed.usage if self.dialect.reports_usage and not reply.no_usage else None
        return self._make_answer(request, message, finish_reason, usage, logprobs=logprobs, model=reply.model)

    def _complete_reply(self, body: Any, reply: Reply, model: OpenAIModel) -> CompletedReply:
        form = body.get("response_format") or {}
        schema = (form.get("json_schema") or {}).get("schema")
        if schema is None and form.get("type") == "json_object":
            schema = {"type": "object"}
        limits = [body.get("max_tokens"), body.get("max_completion_tokens")]
        if model.output_limit == "max_tokens":
            limits.pop()
        stop = body.get("stop") or ()
        return complete_reply(
            reply,
            prompt_tokens=_count_prompt(body),
            schema=None if self.ignores_schema else schema,
            limit=min((limit for limit in limits if limit is not None), default=None),
            stops=[stop] if isinstance(stop, str) else stop,
        )

    def _make_answer(
        self,
        request: RecordedRequest,
        message: dict[str, Any] | None,
        finish_reason: str,
        usage: Usage | None,
        *,
        logprobs: dict[str, Any] | None = None,
        model: str | None = None,
    ) -> HttpAnswer:
        """Return one answer with `message`, without any choice when that is None; streamed if the request says so."""
        body = request.json
        head: dict[str, Any] = {
            "id": f"chatcmpl-{hashlib.sha256(f'{request.received_at_s!r} {id(request)}'.encode()).hexdigest()[:24]}",
            "created": int(time.time()),
            "model": model or body["model"],
            "system_fingerprint": "fp_stand_in",
        }
        if self.dialect.served_by:
            head["provider"] = self.dialect.served_by
        if not body.get("stream"):
            ending = {"index": 0, "logprobs": logprobs, "finish_reason": finish_reason}
            choices = [] if message is None else [{**ending, "message": {"refusal": None, **message}}]
            whole = {**head, "object": "chat.completion", "choices": choices}
            if usage is not None:
                whole["usage"] = _describe_usage(usage)
            return HttpAnswer([json_bytes(whole)], usage=usage)
        head["object"] = "chat.completion.chunk"
        chunks = [{**head, "choices": [choice]} for choice in _list_choices(message, finish_reason, logprobs)]
        has_counts = (body.get("stream_options") or {}).get("include_usage") and self.dialect.stream_options == "obeyed"
        if has_counts and usage is not None:
            chunks = _add_counts(chunks, head, usage, self.dialect.streamed_counts)
        lines = [b"data: " + json_bytes(chunk) + b"\n\n" for chunk in chunks]
        return HttpAnswer([*lines, b"data: [DONE]\n\n"], content_type="text/event-stream", usage=usage, streamed=True)

    # -- faults ------------------------------------------------------------------------------------

    def _render_fault(self, request: RecordedRequest, fault: Fault) -> HttpAnswer:
        usage = Usage(1, _count_prompt(request.json)) if request.is_call and self.dialect.reports_usage else None
        message: dict[str, Any] = {"role": "assistant", "content": None}
        match fault.kind:
            case FaultKind.INVALID_KEY:
                return self._refuse_bad_key(request.headers.get("Authorization", "").removeprefix("Bearer "))
            case FaultKind.DAILY_QUOTA:
                return self._make_error(429, _QUOTA, kind="insufficient_quota", code="insufficient_quota")
            case FaultKind.CONTEXT_OVERFLOW:
                limit = self._models[request.json["model"]].context_length
                return self._refuse_long_prompt(limit + 1, limit)
            case FaultKind.PROMPT_BLOCK:
                return self._make_error(400, _FILTERED, code="content_filter", param="prompt")
            case FaultKind.SAFETY_BLOCK:
                return self._make_answer(request, message, "content_filter", usage)
            case FaultKind.REFUSAL:
                text = fault.message or ""
                spoken = usage and Usage(1, usage.input_tokens, count_tokens(text))
                return self._make_answer(request, {**message, "refusal": text}, "stop", spoken)
            case FaultKind.MALFORMED_TOOL_CALL:
                function = {"name": "look_up", "arguments": _BROKEN_ARGUMENTS}
                message["tool_calls"] = [{"id": "call-0", "type": "function", "function": function}]
                spoken = usage and Usage(1, usage.input_tokens, 1)
                return self._make_answer(request, message, "tool_calls", spoken)
            case FaultKind.NO_CANDIDATES:
                return self._make_answer(request, None, "stop", usage)
        return self._render_status(fault)

    def _render_status(self, fault: Fault) -> HttpAnswer:
        code = fault.status_code
        message = fault.message or _MESSAGES.get(code, f"stand-in error {code}")
        headers = make_retry_headers(fault)
        if fault.retry_after_s is not None:
            wait = f"{fault.retry_after_s:g}s"
            if fault.retry_after_form == "message":
                message += f" Please try again in {wait}."
            if fault.retry_after_form == "reset":
                headers["x-ratelimit-remaining-requests"] = "0"
                headers["x-ratelimit-reset-requests"] = wait
        error = self._make_error(code, message, code=_CODES.get(code))
        return HttpAnswer(error.pieces, code, headers=headers)

    # -- everything else ---------------------------------------------------------------------------

    def _lookup(self, request: RecordedRequest) -> HttpAnswer:
        listing = f"{self.dialect.base_path}/models"
        if request.method not in ("GET", "HEAD") or not f"{request.path}/".startswith(f"{listing}/"):
            return self._make_error(404, f"Invalid URL ({request.method} {request.path})")
        refusal = self._refuse_access(request)
        if refusal is not None:
            return refusal
        name = request.path[len(listing) :].strip("/")
        if not name:
            return HttpAnswer([json_bytes({"object": "list", "data": [self._describe_model(m) for m in self.models]})])
        model = self._models.get(name)
        return self._refuse_model(name) if model is None else HttpAnswer([json_bytes(self._describe_model(model))])

    def _describe_model(self, model: OpenAIModel) -> dict[str, Any]:
        described = {"id": model.name, "object": "model", "created": 1_767_225_600, "owned_by": model.owned_by}
        return {**described, "max_model_len": model.context_length} if self.dialect.reports_window else described


def _list_parts(body: Mapping[str, Any]) -> list[Any]:
    """Return the contents of all messages: strings, parts of a list, and one for each tool call."""
    parts: list[Any] = []
    for message in body.get("messages") or ():
        content = message.get("content")
        parts += content if isinstance(content, list) else [content or ""]
        parts += message.get("tool_calls") or ()
    return parts


def _count_prompt(body: Mapping[str, Any]) -> int:
    """Count the words of all text, and 1 for any image, file or tool call; at least 1."""
    texts = [part.get("text") if isinstance(part, Mapping) else part for part in _list_parts(body)]
    return max(1, sum(1 if text is None else count_tokens(text) for text in texts))


def _has_image(body: Mapping[str, Any]) -> bool:
    return any(isinstance(part, Mapping) and part.get("type") == "image_url" for part in _list_parts(body))


def _list_tools(body: Mapping[str, Any]) -> list[tuple[int, Any]]:
    return [(at, tool) for at, tool in enumerate(body.get("tools") or ()) if tool.get("type") == "function"]


def _make_forced_calls(body: Mapping[str, Any]) -> tuple[ToolCall, ...]:
    """Return the call that the model cannot avoid: of the named function, or of the first if one is required."""
    choice = body.get("tool_choice")
    name = choice["function"]["name"] if isinstance(choice, Mapping) and "function" in choice else None
    if choice != "required" and name is None:
        return ()
    for _, tool in _list_tools(body):
        function = tool["function"]
        if name in (None, function["name"]):
            return (ToolCall(function["name"], minimal_instance(function.get("parameters") or {"type": "object"})),)
    return ()


def _find_unstrict(schema: Any, path: tuple[str, ...]) -> str | None:
    """Return OpenAI's sentence on the first object of `schema` that its strict form does not allow, None for none."""
    if not isinstance(schema, Mapping):
        return None
    if schema.get("type") == "object" or "properties" in schema:
        if schema.get("additionalProperties") is not False:
            return f"In context={path!r}, 'additionalProperties' is required to be supplied and to be false."
        missing = [name for name in schema.get("properties", {}) if name not in schema.get("required", ())]
        if missing:
            return (
                f"In context={path!r}, 'required' is required to be supplied and to be an array including every key in "
                f"properties. Missing '{missing[0]}'."
            )
    inner = [(f"{key}", each) for key in ("properties", "$defs") for each in (schema.get(key) or {}).values()]
    inner += [("anyOf", each) for each in schema.get("anyOf", ())] + [("items", schema.get("items"))]
    return next((found for key, each in inner if (found := _find_unstrict(each, (*path, key)))), None)


def _describe_call(call: ToolCall, at: int) -> dict[str, Any]:
    function = {"name": call.name, "arguments": json.dumps(dict(call.arguments), ensure_ascii=False)}
    return {"id": call.id or f"call-{at}", "type": "function", "function": function}


def _describe_usage(usage: Usage) -> dict[str, Any]:
    return {
        "prompt_tokens": usage.input_tokens,
        "completion_tokens": usage.output_tokens,
        "total_tokens": usage.total_tokens,
        "prompt_tokens_details": {"cached_tokens": usage.cached_tokens},
        "completion_tokens_details": {"reasoning_tokens": usage.reasoning_tokens},
    }


def _add_counts(
    chunks: list[dict[str, Any]], head: dict[str, Any], usage: Usage, place: Literal["after", "with_end", "every"]
) -> list[dict[str, Any]]:
    """Return the chunks of a stream with its counts, in the place where the dialect has them."""
    whole = _describe_usage(usage)
    if place == "after":
        return [*({**chunk, "usage": None} for chunk in chunks), {**head, "choices": [], "usage": whole}]
    if place == "with_end":
        return [*chunks[:-1], {**chunks[-1], "usage": whole}]
    growing = [
        _describe_usage(Usage(1, usage.input_tokens, min(at, usage.output_tokens))) for at in range(len(chunks) - 1)
    ]
    return [{**chunk, "usage": counts} for chunk, counts in zip(chunks, [*growing, whole], strict=True)]


def _list_choices(
    message: dict[str, Any] | None, finish_reason: str, logprobs: dict[str, Any] | None
) -> list[dict[str, Any]]:
    """Return the choice of each chunk: the role, the reasoning, a chunk for each word and tool call, and the end."""
    if message is None:
        return []
    deltas: list[dict[str, Any]] = [{"role": "assistant", "content": ""}]
    shown = ("reasoning_content", "reasoning", "refusal")
    deltas += [{name: message[name]} for name in shown if message.get(name)]
    deltas += [{"content": piece} for piece in split_tokens(message["content"] or "")]
    for at, call in enumerate(message.get("tool_calls", ())):
        # The real server sends the name first and the arguments in pieces.
        arguments = call["function"]["arguments"]
        half = len(arguments) // 2
        named = {**call, "function": {"name": call["function"]["name"], "arguments": ""}}
        deltas.append({"tool_calls": [{"index": at, **named}]})
        for piece in (arguments[:half], arguments[half:]):
            deltas.append({"tool_calls": [{"index": at, "function": {"arguments": piece}}]})
    tokens = iter(logprobs["content"] if logprobs else ())
    choices: list[dict[str, Any]] = []
    for delta in deltas:
        own = {"content": [next(tokens)], "refusal": None} if logprobs and delta.get("content") else None
        choices.append({"index": 0, "delta": delta, "logprobs": own, "finish_reason": None})
    return [*choices, {"index": 0, "delta": {}, "logprobs": None, "finish_reason": finish_reason}]
