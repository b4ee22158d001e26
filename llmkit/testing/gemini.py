"""A stand-in that speaks the wire of Google's Gemini API (`generativelanguage.googleapis.com`, v1beta)."""

import base64
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from llmkit.testing.http_answers import CompletedReply, HttpAnswer, complete_reply, json_bytes, pair_logprobs
from llmkit.testing.replies import Fault, FaultKind, Reply, ToolCall
from llmkit.testing.reply_script import Replies
from llmkit.testing.request_log import RecordedRequest, Usage
from llmkit.testing.schema_instance import minimal_instance
from llmkit.testing.server import StandInServer
from llmkit.testing.server_load import Load
from llmkit.testing.tokens import count_tokens

__all__ = ["GeminiModel", "GeminiServer"]

_PATH = re.compile(r"/(?P<version>v1beta|v1|v1alpha)/models(?:/(?P<model>[^:/]+)(?::(?P<verb>\w+))?)?")
_GENERATING = frozenset({"generateContent", "streamGenerateContent"})
_FINISH_REASONS = {"stop": "STOP", "length": "MAX_TOKENS"}
_STATUSES = {
    400: "INVALID_ARGUMENT",
    401: "UNAUTHENTICATED",
    403: "PERMISSION_DENIED",
    404: "NOT_FOUND",
    409: "ABORTED",
    429: "RESOURCE_EXHAUSTED",
    499: "CANCELLED",
    500: "INTERNAL",
    501: "UNIMPLEMENTED",
    503: "UNAVAILABLE",
    504: "DEADLINE_EXCEEDED",
}
_MESSAGES = {
    403: "The caller does not have permission",
    429: "You exceeded your current quota, please check your plan and billing details.",
    500: "An internal error has occurred. Please retry.",
    503: "The model is overloaded. Please try again later.",
    504: "The request timed out. Please try again.",
}
_NO_KEY = (
    "Method doesn't allow unregistered callers (callers without established identity). "
    "Please use API Key or other form of API consumer identity to call this API."
)
_BAD_KEY = "API key not valid. Please pass a valid API key."
_UNKNOWN_MODEL = (
    "models/{} is not found for API version {}, or is not supported for {}. "
    "Call ListModels to see the list of available models and their supported methods."
)
_CATEGORIES = (
    "HARM_CATEGORY_SEXUALLY_EXPLICIT",
    "HARM_CATEGORY_HATE_SPEECH",
    "HARM_CATEGORY_HARASSMENT",
    "HARM_CATEGORY_DANGEROUS_CONTENT",
)


@dataclass(frozen=True, slots=True)
class GeminiModel:
    """A model that the server offers. Limits are in tokens; a prompt over `input_token_limit` is refused with 400.

    Without `logprobs` a request for them is refused with 400.
    """

    name: str
    input_token_limit: int = 1_048_576
    output_token_limit: int = 65_536
    version: str = "001"
    thinking: bool = True
    logprobs: bool = True


class GeminiServer(StandInServer):
    """Answers `models/<model>:generateContent`, `:streamGenerateContent`, `:countTokens`, the list and the details.

    Honoured: `maxOutputTokens` (thoughts count too; cuts the answer, `MAX_TOKENS`), `stopSequences`, `responseSchema`
    and `responseJsonSchema` (also under `_responseJsonSchema`), the MIME types `application/json` and `text/x.enum`,
    `responseLogprobs` with `logprobs` (a stream has them in its last chunk), `thinkingConfig.includeThoughts`, and
    `functionCallingConfig` of mode `ANY` (an unscripted reply calls the first function allowed, with minimal
    arguments). Fields may be in camel or snake case. The list of models has pages. The base for LiteLLM is
    `url + "/v1beta"`, for google-genai it is `url`.

    Args:
        replies: See `script`; left out, it answers a valid instance of the requested schema, else `DEFAULT_TEXT`.
        api_key: The only key that is let in, by `x-goog-api-key` or `?key=`; None lets everybody in.
        models: What is offered, by name or in detail; any other model is a 404.
        ignores_schema: Accept a schema and answer prose.
        load: How many requests it serves at once, how slowly, and when it is overloaded.
        keep_requests: How many requests `requests` keeps, the newest; None for all.
        port: 0 for a free one.
    """

    unsupported_faults: ClassVar[frozenset[FaultKind]] = frozenset({FaultKind.REFUSAL})

    def __init__(
        self,
        replies: Replies = Reply(),  # noqa: B008 - a frozen value
        *,
        api_key: str | None = None,
        models: Sequence[str | GeminiModel] = ("gemini-2.5-flash", "gemini-2.5-pro", "gemini-3-flash-preview"),
        ignores_schema: bool = False,
        load: Load = Load(),  # noqa: B008 - a frozen value
        keep_requests: int | None = 10_000,
        port: int = 0,
    ) -> None:
        super().__init__(replies, load=load, keep_requests=keep_requests, port=port)
        self.models = models
        self.api_key = api_key
        self.ignores_schema = ignores_schema

    @property
    def models(self) -> tuple[GeminiModel, ...]:
        """Models on offer. May be replaced at any time."""
        return tuple(self._models.values())

    @models.setter
    def models(self, models: Sequence[str | GeminiModel]) -> None:
        details = (GeminiModel(model) if isinstance(model, str) else model for model in models)
        self._models = {model.name: model for model in details}

    def _is_call(self, method: str, path: str) -> bool:
        return method == "POST" and path.endswith("enerateContent") and _parse_path(path)[1] in _GENERATING

    def _make_error(self, status: int, message: str, *details: Mapping[str, Any]) -> HttpAnswer:
        error: dict[str, Any] = {"code": status, "message": message, "status": _STATUSES.get(status, "UNKNOWN")}
        if details:
            error["details"] = list(details)
        return HttpAnswer([json_bytes({"error": error})], status)

    # -- calls of the model ------------------------------------------------------------------------

    def _refuse(self, request: RecordedRequest, body: Any) -> HttpAnswer | None:
        refusal = self._refuse_key(request)
        if refusal is not None:
            return refusal
        name = _parse_path(request.path)[0]
        model = self._models.get(name)
        if model is None:
            return self._refuse_path(request)
        if not body.get("contents"):
            return self._make_error(400, "* GenerateContentRequest.contents: contents is not specified\n")
        if _field(_field(body, "generationConfig") or {}, "responseLogprobs") and not model.logprobs:
            return self._make_error(400, f"Logprobs is not enabled for models/{name}")
        tokens = _prompt_tokens(body)
        return self._refuse_long_prompt(tokens, model.input_token_limit) if tokens > model.input_token_limit else None

    def _refuse_path(self, request: RecordedRequest) -> HttpAnswer:
        name, verb = _parse_path(request.path)
        match = _PATH.fullmatch(request.path)
        version = match["version"] if match else "v1beta"
        return self._make_error(404, _UNKNOWN_MODEL.format(name, version, verb or "GetModel"))

    def _refuse_key(self, request: RecordedRequest) -> HttpAnswer | None:
        key = request.headers.get("x-goog-api-key") or request.query.get("key")
        if self.api_key is None or key == self.api_key:
            return None
        return self._refuse_bad_key() if key else self._make_error(403, _NO_KEY)

    def _refuse_bad_key(self) -> HttpAnswer:
        info = {"reason": "API_KEY_INVALID", "domain": "googleapis.com"}
        info_type = {"@type": "type.googleapis.com/google.rpc.ErrorInfo"}
        metadata = {"metadata": {"service": "generativelanguage.googleapis.com"}}
        localized = {
            "@type": "type.googleapis.com/google.rpc.LocalizedMessage",
            "locale": "en-US",
            "message": _BAD_KEY,
        }
        return self._make_error(400, _BAD_KEY, {**info_type, **info, **metadata}, localized)

    def _refuse_long_prompt(self, tokens: int, limit: int) -> HttpAnswer:
        return self._make_error(
            400, f"The input token count ({tokens}) exceeds the maximum number of tokens allowed ({limit})."
        )

    def _render(self, request: RecordedRequest, body: Any, reply: Reply) -> HttpAnswer:
        config = _field(body, "generationConfig") or {}
        if reply.text is None and not reply.tool_calls:
            reply = replace(reply, tool_calls=_make_forced_calls(body))
        schema = None if self.ignores_schema else _schema(config)
        if _field(config, "responseMimeType") == "text/x.enum" and schema and reply.text is None:
            reply = replace(reply, text=str(minimal_instance(schema)))
        completed = complete_reply(
            reply,
            prompt_tokens=_prompt_tokens(body),
            schema=schema,
            limit=_field(config, "maxOutputTokens"),
            stops=_field(config, "stopSequences") or (),
        )
        shows_thoughts = bool(_field(_field(config, "thinkingConfig") or {}, "includeThoughts"))
        parts = _parts(completed, reply, thoughts=shows_thoughts)
        content: dict[str, Any] = {"parts": parts, "role": "model"} if parts else {"role": "model"}
        reason = _FINISH_REASONS.get(completed.finish_reason, completed.finish_reason)
        ending: dict[str, Any] = {"finishReason": reason, "index": 0}
        if _field(config, "responseLogprobs"):
            ending |= _describe_logprobs(completed.text, reply, int(config.get("logprobs") or 0))
        return self._make_answer(request, reply, completed.usage, _candidate({"content": content, **ending}))

    def _make_answer(self, request: RecordedRequest, reply: Reply, usage: Usage, head: dict[str, Any]) -> HttpAnswer:
        name, verb = _parse_path(request.path)
        tail: dict[str, Any] = {} if reply.no_usage else {"usageMetadata": _usage_metadata(usage)}
        tail["modelVersion"] = reply.model or name
        tail["responseId"] = _response_id(request)
        billed = None if reply.no_usage else usage
        if verb == "generateContent":
            return HttpAnswer([json_bytes({**head, **tail})], usage=billed)
        return _stream(
            [{**chunk, **tail} for chunk in _iter_chunks(head)], billed, sse=request.query.get("alt") == "sse"
        )

    # -- faults ------------------------------------------------------------------------------------

    def _render_fault(self, request: RecordedRequest, fault: Fault) -> HttpAnswer:
        match fault.kind:
            case FaultKind.INVALID_KEY:
                return self._refuse_bad_key()
            case FaultKind.CONTEXT_OVERFLOW:
                limit = self._models[_parse_path(request.path)[0]].input_token_limit
                return self._refuse_long_prompt(limit + 1, limit)
            case FaultKind.DAILY_QUOTA:
                return self._make_quota_answer(request, fault, "GenerateRequestsPerDayPerProjectPerModel-FreeTier")
            case FaultKind.STATUS if fault.status_code == 429:
                return self._make_quota_answer(request, fault, "GenerateRequestsPerMinutePerProjectPerModel-FreeTier")
            case FaultKind.STATUS:
                return self._make_status_answer(fault)
        return self._make_empty_answer(request, fault)

    def _make_status_answer(self, fault: Fault) -> HttpAnswer:
        code = fault.status_code
        message = fault.message or _MESSAGES.get(code, f"stand-in error {code}")
        details = [] if fault.retry_after_s is None else [_retry_info(fault.retry_after_s)]
        return replace(self._make_error(code, message, *details), headers=dict(fault.headers))

    def _make_quota_answer(self, request: RecordedRequest, fault: Fault, quota_id: str) -> HttpAnswer:
        metric = "generativelanguage.googleapis.com/generate_content_free_tier_requests"
        model = _parse_path(request.path)[0]
        violation = {
            "quotaMetric": metric,
            "quotaId": quota_id,
            "quotaDimensions": {"location": "global", "model": model},
            "quotaValue": "250",
        }
        details: list[dict[str, Any]] = [
            {"@type": "type.googleapis.com/google.rpc.QuotaFailure", "violations": [violation]}
        ]
        message = (
            fault.message or f"{_MESSAGES[429]}\n* Quota exceeded for metric: {metric}, limit: 250, model: {model}"
        )
        if fault.retry_after_s is not None:
            details.append(_retry_info(fault.retry_after_s))
            message += f"\nPlease retry in {fault.retry_after_s:g}s."
        return replace(self._make_error(429, message, *details), headers=dict(fault.headers))

    def _make_empty_answer(self, request: RecordedRequest, fault: Fault) -> HttpAnswer:
        """Return the answers that come with status 200 and bill the prompt, but have no content."""
        usage = Usage(1, _prompt_tokens(request.json))
        head: dict[str, Any] = {}
        match fault.kind:
            case FaultKind.PROMPT_BLOCK:
                head = {"promptFeedback": {"blockReason": fault.message}}
            case FaultKind.SAFETY_BLOCK:
                head = _candidate({"finishReason": "SAFETY", "index": 0, "safetyRatings": _ratings()})
            case FaultKind.RECITATION:
                source = {"startIndex": 0, "endIndex": 120, "uri": "https://example.com/book"}
                citation = {"citationSources": [source]}
                head = _candidate({"finishReason": "RECITATION", "index": 0, "citationMetadata": citation})
            case FaultKind.MALFORMED_TOOL_CALL:
                message = "Malformed function call: print(default_api.look_up(name='a)"
                ending = {"finishReason": "MALFORMED_FUNCTION_CALL", "index": 0, "finishMessage": message}
                head = _candidate({"content": {}, **ending})
        return self._make_answer(request, Reply(), usage, head)

    # -- everything else ---------------------------------------------------------------------------

    def _lookup(self, request: RecordedRequest) -> HttpAnswer:
        if not _PATH.fullmatch(request.path):
            return HttpAnswer(
                [b"<!DOCTYPE html><title>Error 404 (Not Found)!!1</title>"], 404, "text/html; charset=UTF-8"
            )
        refusal = self._refuse_key(request)
        if refusal is not None:
            return refusal
        name, verb = _parse_path(request.path)
        if not name:
            return self._answer_list(request)
        model = self._models.get(name)
        if model is None or verb not in ("", "countTokens"):
            return self._refuse_path(request)
        return self._answer_count(request) if verb else HttpAnswer([json_bytes(_describe_model(model))])

    def _answer_list(self, request: RecordedRequest) -> HttpAnswer:
        """Return a page of the models; the token of the next page is, as text, the number of those before it."""
        size, token = request.query.get("pageSize", ""), request.query.get("pageToken", "0")
        if not token.isdigit() or (size and not size.isdigit()):
            return self._make_error(400, "Invalid page size or page token.")
        start, end = int(token), int(token) + min(int(size or 0) or 50, 1000)
        page: dict[str, Any] = {"models": [_describe_model(model) for model in self.models[start:end]]}
        return HttpAnswer([json_bytes({**page, "nextPageToken": str(end)} if end < len(self.models) else page)])

    def _answer_count(self, request: RecordedRequest) -> HttpAnswer:
        try:
            body = request.json
        except ValueError:
            body = None
        if not isinstance(body, dict):
            return self._make_error(
                400, 'Invalid JSON payload received. Unknown name "": Root element must be a message.'
            )
        tokens = _prompt_tokens(_field(body, "generateContentRequest") or body)
        details = [{"modality": "TEXT", "tokenCount": tokens}]
        return HttpAnswer([json_bytes({"totalTokens": tokens, "promptTokensDetails": details})])


def _parse_path(path: str) -> tuple[str, str]:
    match = _PATH.fullmatch(path)
    return (match["model"] or "", match["verb"] or "") if match else ("", "")


def _prompt_tokens(body: Mapping[str, Any]) -> int:
    """Count the words of all text parts, and 1 for any other part (a call, its result, an image); at least 1."""
    contents = [*body.get("contents", ()), _field(body, "systemInstruction") or {}]
    parts = [part for content in contents for part in content.get("parts", ())]
    return max(1, sum(count_tokens(part["text"]) if "text" in part else 1 for part in parts))


def _field(message: Mapping[str, Any], name: str) -> Any:
    """Return a field of a request by its camel-case name; Google's servers take snake case too."""
    return message.get(name) or message.get(re.sub(r"(?<=[a-z])[A-Z]", lambda upper: f"_{upper[0].lower()}", name))


def _schema(config: Mapping[str, Any]) -> Any:
    for name in ("responseJsonSchema", "_responseJsonSchema", "responseSchema"):
        if schema := _field(config, name):
            return _use_camel_case(schema)
    return {"type": "object"} if _field(config, "responseMimeType") == "application/json" else None


def _use_camel_case(schema: Any) -> Any:
    """Return `schema` with the keywords that google-genai sends in snake case (`min_items`, `any_of`) in camel case."""
    if isinstance(schema, list):
        return [_use_camel_case(each) for each in schema]
    if not isinstance(schema, Mapping):
        return schema
    renamed = {re.sub(r"_([a-z])", lambda letter: letter[1].upper(), key): value for key, value in schema.items()}
    for key in ("properties", "$defs", "defs"):  # what these contain are names, not keywords
        if isinstance(renamed.get(key), Mapping):
            renamed[key] = {name: _use_camel_case(each) for name, each in renamed[key].items()}
    for key in ("items", "anyOf", "oneOf", "allOf", "prefixItems", "additionalProperties"):
        if key in renamed:
            renamed[key] = _use_camel_case(renamed[key])
    return renamed


def _make_forced_calls(body: Mapping[str, Any]) -> tuple[ToolCall, ...]:
    """Return the call that the model cannot avoid when the request's tool mode is ANY."""
    mode = _field(_field(body, "toolConfig") or {}, "functionCallingConfig") or {}
    if str(mode.get("mode")).upper() != "ANY":
        return ()
    allowed = _field(mode, "allowedFunctionNames")
    for tool in body.get("tools") or ():
        for function in _field(tool, "functionDeclarations") or ():
            if not allowed or function["name"] in allowed:
                schema = _field(function, "parametersJsonSchema") or function.get("parameters") or {"type": "object"}
                return (ToolCall(function["name"], minimal_instance(_use_camel_case(schema))),)
    return ()


def _parts(completed: CompletedReply, reply: Reply, *, thoughts: bool) -> list[dict[str, Any]]:
    parts: list[dict[str, Any]] = []
    if reply.thinking and thoughts:
        parts.append({"text": reply.thinking, "thought": True})
    if completed.text:
        parts.append({"text": completed.text})
    for number, call in enumerate(reply.tool_calls):
        called = {"name": call.name, "args": dict(call.arguments), "id": call.id or f"call-{number}"}
        signature = call.thought_signature or ("" if number else _make_signature(call))
        parts.append({"functionCall": called, **({"thoughtSignature": signature} if signature else {})})
    return parts


def _make_signature(call: ToolCall) -> str:
    return base64.b64encode(hashlib.sha256(repr(call).encode()).digest()).decode()


def _usage_metadata(usage: Usage) -> dict[str, Any]:
    """Return Google's counts: zeros are left out, and thoughts are not part of the candidates."""
    counts = {
        "promptTokenCount": usage.input_tokens,
        "candidatesTokenCount": usage.output_tokens - usage.reasoning_tokens,
        "totalTokenCount": usage.total_tokens,
        "cachedContentTokenCount": usage.cached_tokens,
        "thoughtsTokenCount": usage.reasoning_tokens,
    }
    details = {"promptTokensDetails": [{"modality": "TEXT", "tokenCount": usage.input_tokens}]}
    return {**{key: count for key, count in counts.items() if count}, **details}


def _describe_logprobs(text: str, reply: Reply, alternatives: int) -> dict[str, Any]:
    """Return the log-probabilities of the tokens and, at each, of made-up alternatives, ever less likely."""
    pairs = pair_logprobs(text, reply.logprobs)
    chosen = [{"token": token, "tokenId": at, "logProbability": value} for at, (token, value) in enumerate(pairs)]
    top = [
        {
            "candidates": [
                {"token": f"{token}~{rank}" if rank else token, "tokenId": at, "logProbability": value - rank}
                for rank in range(alternatives)
            ]
        }
        for at, (token, value) in enumerate(pairs)
    ]
    average = sum(value for _, value in pairs) / max(len(pairs), 1)
    return {"avgLogprobs": average, "logprobsResult": {"topCandidates": top, "chosenCandidates": chosen}}


def _response_id(request: RecordedRequest) -> str:
    seed = f"{request.received_at_s!r} {id(request)}".encode()
    return base64.urlsafe_b64encode(hashlib.md5(seed, usedforsecurity=False).digest()).decode().rstrip("=")


def _iter_chunks(head: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the answer cut into a chunk per part and per word, with the finish reason in the last."""
    if "candidates" not in head:
        return [head]
    (candidate,) = head["candidates"]
    parts = [piece for part in candidate.get("content", {}).get("parts", ()) for piece in _pieces(part)]
    if not parts:
        return [head]
    ending = {key: value for key, value in candidate.items() if key != "content"}
    chunks = [{"candidates": [{"content": {"parts": [part], "role": "model"}, "index": 0}]} for part in parts]
    chunks[-1]["candidates"][0].update(ending)
    return chunks


def _pieces(part: dict[str, Any]) -> list[dict[str, Any]]:
    if "text" not in part:
        return [part]
    return [{**part, "text": text} for text in re.findall(r"\S+\s*|\s+", part["text"])]


def _stream(chunks: list[dict[str, Any]], usage: Usage | None, *, sse: bool) -> HttpAnswer:
    if sse:
        lines = [b"data: " + json_bytes(chunk) + b"\r\n\r\n" for chunk in chunks]
        return HttpAnswer(lines, content_type="text/event-stream", usage=usage, streamed=True)
    items = [(b",\r\n" if at else b"[") + json_bytes(chunk) for at, chunk in enumerate(chunks)]
    return HttpAnswer([*items, b"]"], usage=usage, streamed=True)


def _candidate(candidate: dict[str, Any]) -> dict[str, Any]:
    return {"candidates": [candidate]}


def _ratings() -> list[dict[str, Any]]:
    blocked = {"probability": "HIGH", "blocked": True}
    return [
        {"category": name, **({"probability": "NEGLIGIBLE"} if at < 3 else blocked)}
        for at, name in enumerate(_CATEGORIES)
    ]


def _retry_info(seconds: float) -> dict[str, Any]:
    return {"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": f"{json.dumps(seconds)}s"}


def _describe_model(model: GeminiModel) -> dict[str, Any]:
    return {
        "name": f"models/{model.name}",
        "version": model.version,
        "displayName": model.name.replace("-", " ").title(),
        "description": "A stand-in for tests.",
        "inputTokenLimit": model.input_token_limit,
        "outputTokenLimit": model.output_token_limit,
        "supportedGenerationMethods": ["generateContent", "countTokens"],
        "temperature": 1,
        "topP": 0.95,
        "topK": 64,
        "maxTemperature": 2,
        "thinking": model.thinking,
    }
