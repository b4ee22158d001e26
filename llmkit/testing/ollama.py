"""A stand-in that speaks the wire of Ollama, of 0.17.4 or of an older version."""

import hashlib
import json
import re
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

from llmkit.testing.http_answers import (
    CompletedReply,
    HttpAnswer,
    complete_reply,
    describe_token,
    json_bytes,
    make_retry_headers,
    pair_logprobs,
)
from llmkit.testing.replies import Fault, FaultKind, Reply, ToolCall
from llmkit.testing.reply_script import Replies
from llmkit.testing.request_log import RecordedRequest, Usage
from llmkit.testing.server import StandInServer
from llmkit.testing.server_load import Load
from llmkit.testing.tokens import count_tokens, split_tokens

__all__ = ["OllamaModel", "OllamaServer"]

_OLD_NUM_CTX, DEFAULT_NUM_CTX = 2048, 4096
_SMALLEST_NUM_CTX = 4
_KEEP_ALIVE_S = 300.0
_FOREVER_S = 2**63 / 1e9  # the longest duration in Go
_DURATION = re.compile(r"(\d+(?:\.\d+)?)(h|ms|m|s)")
_UNITS_S = {"h": 3600.0, "m": 60.0, "s": 1.0, "ms": 0.001}
# From 0.6.7 on the window is 4096 tokens unless a request or the model says otherwise.
_FIRST_WITH_LARGER_WINDOW = (0, 6, 7)
# Compared were 0.6.5 and 0.17.4; between them the version of a change is known only where it is named here.
_FIRST_MODERN = (0, 12)
# Older versions ignore `truncate: false` (https://github.com/ollama/ollama/pull/12061).
_FIRST_WITH_TRUNCATE = (0, 12, 5)
_FIRST_WITH_LOGPROBS = (0, 12, 11)
_TOO_LONG = "the input length exceeds the context length"
_NS_PER_TOKEN = 1_000_000
_NO_EYES = (
    "Failed to create new sequence: failed to process inputs: this model is missing data required for image input"
)
_STATUS_MESSAGES = {
    401: "unauthorized",
    404: "model not found, try pulling it first",
    429: "too many requests",
    503: "server busy, please try again.",
}


@dataclass(frozen=True, slots=True)
class OllamaModel:
    """A model that the server claims to have pulled.

    Attributes:
        name: As people write it; `:latest` is understood when there is no tag.
        family: Also the architecture, and so the prefix of the keys in `model_info`.
        context_length: In tokens; a larger `num_ctx` than this is cut down to it.
        capabilities: Without `tools`, a request with tools is refused, without `vision` one with images.
        digest: 64 hexadecimal digits; left out, it is derived from all the other fields.
        modified_at_s: Seconds since the epoch.
    """

    name: str
    family: str = "llama"
    context_length: int = 131_072
    capabilities: tuple[str, ...] = ("completion", "tools")
    parameter_size: str = "3.2B"
    parameter_count: int = 3_212_749_888
    quantization: str = "Q4_K_M"
    size_bytes: int = 2_019_393_189
    template: str = "{{ range .Messages }}{{ .Content }}{{ end }}"
    parameters: Mapping[str, Any] = field(default_factory=dict)
    modified_at_s: float = 1_767_225_600.123456789
    digest: str = ""

    @property
    def full_name(self) -> str:
        """The name with its tag."""
        return _add_tag(self.name)

    @property
    def full_digest(self) -> str:
        """The digest given, or one that changes with any other field."""
        return self.digest or hashlib.sha256(repr(self).encode()).hexdigest()


class OllamaServer(StandInServer):
    """Answers `/api/chat`, `/api/generate`, `/api/tags`, `/api/show`, `/api/ps` and `/api/version` as Ollama does.

    Honoured: `stream` (on unless switched off), `format`, `tools` (400 for a model without them), `images` (500 for a
    model without vision), `think` (400 for a model without it), `stop`, `num_predict` (cuts the answer, `done_reason`
    `length`), `keep_alive` (with 0 the model is not in `/api/ps` afterwards), from version 0.12.11 on `logprobs` with
    `top_logprobs`, and `num_ctx` (4096 unless given, before 0.6.7 2048: the oldest messages are dropped until the rest
    fits, and a last message that is still too long is silently cut, so that `prompt_eval_count` is `num_ctx`; from
    version 0.12.5 on, `truncate: false` makes such a prompt a 400 instead). Other options are ignored.

    Args:
        replies: See `script`; left out, it answers a valid instance of the requested schema, else `DEFAULT_TEXT`.
        models: What is pulled, by name or in detail; any other model is a 404.
        version: The version that `/api/version` reports, and whose behaviour the server has.
        ignores_schema: Accept `format` and answer prose, as some servers do.
        tokenizer: Counts the tokens of a message; by default its words. `len` is close to what Gemma 3 makes of digits.
        load: How many requests it serves at once, how slowly, and when it is overloaded.
        keep_requests: How many requests `requests` keeps, the newest; None for all.
        port: 0 for a free one.
    """

    unsupported_faults: ClassVar[frozenset[FaultKind]] = frozenset(
        {
            FaultKind.DAILY_QUOTA,
            FaultKind.SAFETY_BLOCK,
            FaultKind.REFUSAL,
            FaultKind.RECITATION,
            FaultKind.PROMPT_BLOCK,
            FaultKind.MALFORMED_TOOL_CALL,
        }
    )

    def __init__(
        self,
        replies: Replies = Reply(),  # noqa: B008 - a frozen value
        *,
        models: Sequence[str | OllamaModel] = ("llama3.2",),
        version: str = "0.17.4",
        ignores_schema: bool = False,
        tokenizer: Callable[[str], int] = count_tokens,
        load: Load = Load(),  # noqa: B008 - a frozen value
        keep_requests: int | None = 10_000,
        port: int = 0,
    ) -> None:
        super().__init__(replies, load=load, keep_requests=keep_requests, port=port)
        self.models = models
        self.version = version
        self.ignores_schema = ignores_schema
        self.tokenizer = tokenizer
        self._expires_at_s: dict[str, float] = {}
        self._windows: dict[str, int] = {}

    @property
    def models(self) -> tuple[OllamaModel, ...]:
        """Pulled models. May be replaced at any time, as by `ollama create` or `ollama rm`."""
        return tuple(self._models.values())

    @models.setter
    def models(self, models: Sequence[str | OllamaModel]) -> None:
        details = (OllamaModel(model) if isinstance(model, str) else model for model in models)
        self._models = {model.full_name: model for model in details}

    def _is_call(self, method: str, path: str) -> bool:
        return method == "POST" and path in ("/api/chat", "/api/generate")

    def _make_error(self, status: int, message: str) -> HttpAnswer:
        return HttpAnswer([json_bytes({"error": message})], status)

    # -- calls of the model ------------------------------------------------------------------------

    def _refuse(self, request: RecordedRequest, body: Any) -> HttpAnswer | None:
        name = str(body.get("model") or body.get("name") or "")
        model = self._models.get(_add_tag(name))
        if not name and request.path == "/api/chat":
            return self._make_error(400, "model is required")
        if model is None and request.path == "/api/chat" and not self._has(_FIRST_MODERN):
            return self._make_error(404, f"model {json.dumps(name)} not found, try pulling it first")
        if model is None:
            return self._make_error(404, f"model '{name}' not found")
        self._expires_at_s[model.full_name] = time.time() + _parse_keep_alive(body.get("keep_alive"))
        self._windows[model.full_name] = self._get_window(body, model)
        if body.get("think") and "thinking" not in model.capabilities:
            return self._make_error(400, f"{json.dumps(model.name)} does not support thinking")
        if body.get("tools") and "tools" not in model.capabilities:
            return self._make_error(400, f"registry.ollama.ai/library/{model.full_name} does not support tools")
        if "vision" not in model.capabilities and any(
            each.get("images") for each in (body, *(body.get("messages") or ()))
        ):
            return self._make_error(500, _NO_EYES)
        if not body.get("messages") and not body.get("prompt"):
            return HttpAnswer([json_bytes(_answer_load(request.path, body))])
        return self._refuse_format(body.get("format")) or self._refuse_long_prompt(body, model)

    def _refuse_long_prompt(self, body: Any, model: OllamaModel) -> HttpAnswer | None:
        if body.get("truncate", True) is not False or not self._has(_FIRST_WITH_TRUNCATE):
            return None
        tokens = sum(self._count_messages(_list_messages(body)))
        return self._make_error(400, _TOO_LONG) if tokens > self._get_window(body, model) else None

    def _has(self, first: tuple[int, ...]) -> bool:
        """Return whether the server's version has what came with the version `first`."""
        return tuple(int(part) for part in re.findall(r"\d+", self.version)[:3]) >= first

    def _get_window(self, body: Mapping[str, Any], model: OllamaModel) -> int:
        asked = (body.get("options") or {}).get("num_ctx") or model.parameters.get("num_ctx")
        default = DEFAULT_NUM_CTX if self._has(_FIRST_WITH_LARGER_WINDOW) else _OLD_NUM_CTX
        return min(max(int(asked or default), _SMALLEST_NUM_CTX), model.context_length)

    def _count_messages(self, messages: Iterable[Mapping[str, Any]]) -> list[int]:
        return [
            self.tokenizer(message.get("content") or "")
            + len(message.get("images") or ())
            + len(message.get("tool_calls") or ())
            for message in messages
        ]

    def _count_prompt(self, body: Any, num_ctx: int) -> int:
        """Count the prompt after the server has cut it to `num_ctx`; at least 1, the mark of its beginning."""
        messages = _list_messages(body)
        counts = self._count_messages(messages)
        if sum(counts) > num_ctx:
            counts = _drop_oldest(messages, counts, num_ctx)
        return min(max(sum(counts), 1), num_ctx)

    def _refuse_format(self, wanted: Any) -> HttpAnswer | None:
        if wanted in (None, "", "json") or isinstance(wanted, Mapping):
            return None
        shown = json.dumps(json.dumps(wanted))
        return self._make_error(500, f'invalid format: {shown}; expected "json" or a valid JSON Schema object')

    def _render(self, request: RecordedRequest, body: Any, reply: Reply) -> HttpAnswer:
        if body.get("think") is False:
            reply = replace(reply, thinking=None)
        completed = self._complete_reply(body, reply)
        ending: dict[str, Any] = {"done_reason": completed.finish_reason, "done": True}
        ending.update(_make_metrics(completed.usage, request.received_at_s, counted=not reply.no_usage))
        head = {"model": reply.model or body["model"], "created_at": _go_time(time.time_ns())}
        usage = None if reply.no_usage else completed.usage
        tokens: list[dict[str, Any]] | None = None
        if body.get("logprobs") and self._has(_FIRST_WITH_LOGPROBS):
            pairs = pair_logprobs(completed.text, reply.logprobs)
            tokens = [describe_token(token, value, body.get("top_logprobs") or 0) for token, value in pairs]
            if not body.get("top_logprobs"):
                tokens = [{key: each[key] for key in ("token", "logprob", "bytes")} for each in tokens]
        if body.get("stream", True) is False:
            shown = {"logprobs": tokens} if tokens else {}
            whole = {**head, **_make_body(request.path, completed.text, reply), **ending, **shown}
            return HttpAnswer([json_bytes(whole)], usage=usage)
        chunks = [
            {**head, **chunk, "done": False}
            for chunk in _iter_chunks(request.path, completed, reply, body.get("tools"), tokens)
        ]
        chunks.append({**head, **_make_body(request.path, "", None), **ending})
        lines = [json_bytes(chunk) + b"\n" for chunk in chunks]
        return HttpAnswer(lines, content_type="application/x-ndjson", usage=usage, streamed=True)

    def _complete_reply(self, body: Any, reply: Reply) -> CompletedReply:
        options = body.get("options") or {}
        wanted = body.get("format") or None
        schema = {"type": "object"} if wanted == "json" else wanted
        model = self._models[_add_tag(body["model"])]
        limit = int(options.get("num_predict") or 0)
        stop = options.get("stop") or ()
        return complete_reply(
            reply,
            prompt_tokens=self._count_prompt(body, self._get_window(body, model)),
            schema=None if self.ignores_schema else schema,
            limit=limit if limit > 0 else None,
            stops=[stop] if isinstance(stop, str) else stop,
        )

    def _render_fault(self, request: RecordedRequest, fault: Fault) -> HttpAnswer:
        match fault.kind:
            case FaultKind.INVALID_KEY:
                return self._make_error(401, "unauthorized")
            case FaultKind.CONTEXT_OVERFLOW:
                return self._make_error(400, _TOO_LONG)
            case FaultKind.NO_CANDIDATES:
                head = {"model": request.json["model"], "created_at": _go_time(time.time_ns())}
                return HttpAnswer([json_bytes({**head, "done_reason": "stop", "done": True})])
        message = fault.message or _STATUS_MESSAGES.get(fault.status_code, f"stand-in error {fault.status_code}")
        return HttpAnswer([json_bytes({"error": message})], fault.status_code, headers=make_retry_headers(fault))

    # -- everything else ---------------------------------------------------------------------------

    def _lookup(self, request: RecordedRequest) -> HttpAnswer:
        match (request.method, request.path):
            case ("GET" | "HEAD", "/"):
                return HttpAnswer([b"Ollama is running"], content_type="text/plain; charset=utf-8")
            case ("GET" | "HEAD", "/api/version"):
                return HttpAnswer([json_bytes({"version": self.version})])
            case ("GET" | "HEAD", "/api/tags"):
                newest_first = sorted(self.models, key=lambda model: -model.modified_at_s)
                return HttpAnswer([json_bytes({"models": [_describe_listed(model) for model in newest_first]})])
            case ("GET", "/api/ps"):
                return HttpAnswer([json_bytes({"models": self._list_running()})])
            case ("POST", "/api/show"):
                return self._answer_show(request)
        return HttpAnswer([b"404 page not found"], 404, "text/plain")

    def _answer_show(self, request: RecordedRequest) -> HttpAnswer:
        try:
            body = request.json
        except ValueError:
            return self._make_error(400, "missing request body")
        if not isinstance(body, dict):
            return self._make_error(400, "the request body is not a JSON object")
        name = body.get("model") or body.get("name")
        if not name:
            return self._make_error(400, "model is required")
        model = self._models.get(_add_tag(name))
        return (
            HttpAnswer([json_bytes(_describe_model(model))])
            if model
            else self._make_error(404, f"model '{name}' not found")
        )

    def _list_running(self) -> list[dict[str, Any]]:
        loaded = [(at, name) for name, at in self._expires_at_s.items() if name in self._models and at > time.time()]
        running = []
        for at, name in sorted(loaded, reverse=True):
            model = self._models[name]
            shown = {**_describe_identity(model), "expires_at": _go_time(int(at * 1e9)), "size_vram": 0}
            window = {"context_length": self._windows[name]} if self._has(_FIRST_MODERN) else {}
            running.append({**shown, **window})
        return running


def _add_tag(name: str) -> str:
    return name if ":" in name.rsplit("/", 1)[-1] else f"{name}:latest"


def _go_time(ns: int) -> str:
    """Format a time as Go does: RFC 3339 in UTC with nanoseconds, without trailing zeros."""
    seconds, fraction = divmod(ns, 1_000_000_000)
    digits = f".{fraction:09d}".rstrip("0").rstrip(".")
    return f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(seconds))}{digits}Z"


def _parse_keep_alive(wanted: Any) -> float:
    """Return for how many seconds a model stays loaded after a request: a number of them, or a duration of Go."""
    if wanted in (None, ""):
        return _KEEP_ALIVE_S
    if isinstance(wanted, str):
        parts = _DURATION.findall(wanted)
        seconds = sum(float(number) * _UNITS_S[unit] for number, unit in parts) if parts else float(wanted)
        wanted = -seconds if wanted.startswith("-") and parts else seconds
    return float(wanted) if wanted >= 0 else _FOREVER_S


def _list_messages(body: Mapping[str, Any]) -> Sequence[Mapping[str, Any]]:
    return body.get("messages") or [
        {"role": "system", "content": body.get("system") or ""},
        {"role": "user", "content": body.get("prompt") or ""},
    ]


def _drop_oldest(messages: Sequence[Mapping[str, Any]], counts: list[int], num_ctx: int) -> list[int]:
    """Return the counts of the messages that stay.

    The last one always, earlier ones while they fit, and system messages.
    """
    is_system = [message.get("role") == "system" for message in messages]
    for start in range(len(messages) - 1, -1, -1):
        kept = [n for at, n in enumerate(counts) if at >= start or is_system[at]]
        if sum(kept) > num_ctx:
            stays = min(start + 1, len(messages) - 1)
            return [n for at, n in enumerate(counts) if at >= stays or is_system[at]]
    return counts


def _make_metrics(usage: Usage, received_at_s: float, *, counted: bool) -> dict[str, int]:
    elapsed = int((time.monotonic() - received_at_s) * 1e9)
    prompt_ns, answer_ns = usage.input_tokens * _NS_PER_TOKEN // 10, usage.output_tokens * _NS_PER_TOKEN
    metrics = {
        "total_duration": elapsed + _NS_PER_TOKEN + prompt_ns + answer_ns,
        "load_duration": _NS_PER_TOKEN,
        "prompt_eval_count": usage.input_tokens if counted else 0,
        "prompt_eval_duration": prompt_ns,
        "eval_count": usage.output_tokens if counted else 0,
        "eval_duration": answer_ns,
    }
    return {key: value for key, value in metrics.items() if value}  # the real one leaves out zeros too


def _make_body(path: str, text: str, reply: Reply | None) -> dict[str, Any]:
    if path == "/api/generate":
        spoken = {"response": text}
        return {**spoken, "thinking": reply.thinking} if reply and reply.thinking else spoken
    message: dict[str, Any] = {"role": "assistant", "content": text}
    if reply and reply.thinking:
        message["thinking"] = reply.thinking
    if reply and reply.tool_calls:
        message["tool_calls"] = [_tool_call(call) for call in reply.tool_calls]
    return {"message": message}


def _tool_call(call: ToolCall, index: int = 0) -> dict[str, Any]:
    numbered = {"index": index} if index else {}
    return {"function": {**numbered, "name": call.name, "arguments": dict(call.arguments)}}


def _iter_chunks(
    path: str, completed: CompletedReply, reply: Reply, tools: Any, tokens: list[dict[str, Any]] | None
) -> Iterable[dict[str, Any]]:
    """Return the chunks before the last. With tools in the request the real server sends the text as one chunk."""
    if reply.thinking:
        yield _make_body(path, "", Reply(thinking=reply.thinking))
    if completed.text and tools:
        yield {**_make_body(path, completed.text, None), **({"logprobs": tokens} if tokens else {})}
    elif completed.text:
        for at, piece in enumerate(split_tokens(completed.text)):
            yield {**_make_body(path, piece, None), **({"logprobs": [tokens[at]]} if tokens else {})}
    if reply.tool_calls:
        calls = [_tool_call(call, index) for index, call in enumerate(reply.tool_calls)]
        yield {"message": {"role": "assistant", "content": "", "tool_calls": calls}}


def _answer_load(path: str, body: Mapping[str, Any]) -> dict[str, Any]:
    reason = "load" if _parse_keep_alive(body.get("keep_alive")) else "unload"
    head = {"model": body["model"], "created_at": _go_time(time.time_ns())}
    return {**head, **_make_body(path, "", None), "done_reason": reason, "done": True}


def _describe_details(model: OllamaModel) -> dict[str, Any]:
    return {
        "parent_model": "",
        "format": "gguf",
        "family": model.family,
        "families": [model.family],
        "parameter_size": model.parameter_size,
        "quantization_level": model.quantization,
    }


def _describe_identity(model: OllamaModel) -> dict[str, Any]:
    return {
        "name": model.full_name,
        "model": model.full_name,
        "size": model.size_bytes,
        "digest": model.full_digest,
        "details": _describe_details(model),
    }


def _describe_listed(model: OllamaModel) -> dict[str, Any]:
    return {**_describe_identity(model), "modified_at": _go_time(int(model.modified_at_s * 1e9))}


def _describe_model(model: OllamaModel) -> dict[str, Any]:
    blob = f"/usr/share/ollama/.ollama/models/blobs/sha256-{model.full_digest}"
    lines = [f"{key:<30} {json.dumps(value)}" for key, value in model.parameters.items()]
    shown = {
        "modelfile": f'# Modelfile generated by "ollama show"\nFROM {blob}\nTEMPLATE """{model.template}"""\n',
        "parameters": "\n".join(lines),
        "template": model.template,
        "details": _describe_details(model),
        "model_info": _model_info(model),
        "tensors": [{"name": "token_embd.weight", "type": "Q6_K", "shape": [3072, 128256]}],
        "capabilities": list(model.capabilities),
        "modified_at": _go_time(int(model.modified_at_s * 1e9)),
    }
    return {key: value for key, value in shown.items() if value}


def _model_info(model: OllamaModel) -> dict[str, Any]:
    return {
        "general.architecture": model.family,
        "general.file_type": 15,
        "general.parameter_count": model.parameter_count,
        "general.quantization_version": 2,
        f"{model.family}.attention.head_count": 24,
        f"{model.family}.block_count": 28,
        f"{model.family}.context_length": model.context_length,
        f"{model.family}.embedding_length": 3072,
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.tokens": None,
    }
