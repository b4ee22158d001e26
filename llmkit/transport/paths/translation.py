"""LiteLLM's translations, called one by one: from call arguments to the request on the wire, from the answer back.

Each follows what `litellm.completion` does with the arguments that are carried, step by step and with LiteLLM's own
functions; what it does beyond them is declared here and checked by the contract suite, which compares every byte.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import cache
from types import MappingProxyType
from typing import Any, Protocol

from llmkit.transport.http.exchange import Outline
from llmkit.transport.paths.library import Internals
from llmkit.transport.paths.reply_cost import GEMINI_WIRE, OPENAI_WIRE, Prices, PriceWire
from llmkit.transport.paths.reply_shortcuts import READERS, Reader, as_plain

__all__ = ["PreparedRequest", "RawReply", "Translation", "carries", "rehearse", "translations"]

Arguments = Mapping[str, Any]

# In the order in which LiteLLM maps them, which is the order on the wire.
_OPENAI_PARAMETERS = ("temperature", "stop", "max_tokens", "response_format", "seed", "tools", "tool_choice")
_FRAME = frozenset({"model", "messages", "api_base", "api_key", "extra_headers", "extra_body"})


@dataclass(frozen=True, slots=True)
class PreparedRequest:
    """A request that is ready to leave. Never shown: it contains the prompt and perhaps a key.

    Attributes:
        model: The model's name at the provider.
        messages: What LiteLLM's reading of the answer wants of the request.
        data: The body before it was encoded.
        outline: What the body has in common with others of its form; None when it was made without one.
    """

    url: str
    headers: Mapping[str, str] = field(repr=False)
    body: bytes = field(repr=False)
    model: str
    messages: list[dict[str, Any]] = field(repr=False)
    data: Mapping[str, Any] = field(repr=False)
    outline: Outline | None = field(default=None, repr=False)

    def is_like(self, other: PreparedRequest) -> bool:
        """Return whether both are the same on the wire."""
        return (self.url, self.headers, self.body) == (other.url, other.headers, other.body)


@dataclass(frozen=True, slots=True)
class RawReply:
    """An HTTP answer as LiteLLM's translations read it.

    Attributes:
        reply: The JSON object, which the reading may change.
        counts_reported: Whether the provider's own token counts are in it.
        is_priced: Whether LiteLLM's price of the answer is of use.
    """

    status_code: int
    headers: Mapping[str, str]
    content: bytes = field(repr=False)
    reply: dict[str, Any] = field(repr=False)
    counts_reported: bool = True
    is_priced: bool = True

    @property
    def text(self) -> str:
        """The body as text."""
        return self.content.decode(errors="replace")

    def json(self) -> dict[str, Any]:
        """Return the body as JSON."""
        return self.reply


class Translation(Protocol):
    """One provider's requests and answers."""

    @property
    def own_parameters(self) -> frozenset[str]:
        """Parameters beside OpenAI's that it passes on."""
        ...

    @property
    def encoder(self) -> json.JSONEncoder:
        """How LiteLLM writes JSON for this provider."""
        ...

    def prepare(self, model: str, arguments: Arguments) -> PreparedRequest:
        """Return the request. May change the arguments. Raises whatever LiteLLM raises."""
        ...

    def read(self, prepared: PreparedRequest, answer: RawReply) -> Any:
        """Return LiteLLM's `ModelResponse`. Raises whatever LiteLLM raises."""
        ...

    def glance(
        self, prepared: PreparedRequest, reply: Mapping[str, Any], headers: Mapping[str, str], *, is_priced: bool = True
    ) -> Any:
        """Return the same as `read` for the plainest answers, at a tenth of its cost; None for all others.

        `is_priced` is as in `RawReply`.
        """
        ...


def carries(translation: Translation, arguments: Arguments) -> bool:
    """Return whether the translation passes on everything that the arguments ask for."""
    known = arguments.keys() <= _FRAME | set(_OPENAI_PARAMETERS) | translation.own_parameters
    return known and all(isinstance(message.get("content"), str) for message in arguments["messages"])


class _NoLogging:
    """Stand-in for LiteLLM's logging object, which the translations only notify."""

    optional_params: Mapping[str, Any] = {}

    def post_call(self, **_logged: Any) -> None:
        """Report nothing: there is no listener."""


_NO_LOGGING = _NoLogging()


@dataclass(frozen=True, slots=True)
class _Common:
    internals: Internals

    def messages(self, arguments: Arguments) -> list[dict[str, Any]]:
        messages, name = arguments["messages"], arguments["model"]
        if not self.internals.is_gemini(name, name.partition("/")[0]):
            messages = self.internals.without_signatures(messages, self.internals.signature_separator)
        return self.internals.fix_messages(messages=messages)

    def map_options(self, config: Any, model: str, arguments: Arguments) -> dict[str, Any]:
        given = {name: arguments[name] for name in _OPENAI_PARAMETERS if name in arguments}
        if "stop" in given:
            given["stop"] = self.internals.fix_stop(stop=given["stop"])
        mapped: dict[str, Any] = config.map_openai_params(
            non_default_params=given, optional_params={}, model=model, drop_params=False
        )
        return mapped

    def read(self, config: Any, prepared: PreparedRequest, answer: RawReply, messages: list[dict[str, Any]]) -> Any:
        return config.transform_response(
            model=prepared.model,
            raw_response=answer,
            model_response=self.internals.response(),
            logging_obj=_NO_LOGGING,
            request_data=prepared.data,
            messages=messages,
            optional_params={},
            litellm_params={},
            encoding=None,
        )


@dataclass(frozen=True, slots=True)
class _PlainTranslation:
    """A provider that LiteLLM calls through its general HTTP handler."""

    internals: Internals
    config: Any
    own_parameters: frozenset[str] = frozenset()
    reader: Reader | None = None
    encoder: json.JSONEncoder = json.JSONEncoder()  # noqa: RUF009 - it has no state

    def prepare(self, model: str, arguments: Arguments) -> PreparedRequest:
        common, base, key = _Common(self.internals), arguments["api_base"], arguments["api_key"]
        messages = common.messages(arguments)
        options = common.map_options(self.config, model, arguments)
        options.update({name: arguments[name] for name in self.own_parameters if name in arguments})
        rest: dict[str, Any] = {"model": model, "messages": messages, "optional_params": options, "litellm_params": {}}
        headers = self.config.validate_environment(
            headers=dict(arguments.get("extra_headers", {})), api_key=key, api_base=base, **rest
        )
        url = self.config.get_complete_url(
            api_base=base, api_key=key, model=model, optional_params=options, litellm_params={}, stream=None
        )
        data = {**self.config.transform_request(headers=headers, **rest), **arguments.get("extra_body", {})}
        return PreparedRequest(
            url=url,
            headers={**self.internals.default_headers, **headers},
            body=self.encoder.encode(data).encode(),
            model=model,
            messages=messages,
            data=data,
        )

    def read(self, prepared: PreparedRequest, answer: RawReply) -> Any:
        # LiteLLM counts the tokens of the prompt (milliseconds for a long one) even when the reply has a count.
        counted = [] if answer.counts_reported else prepared.messages
        return _Common(self.internals).read(self.config, prepared, answer, counted)

    def glance(
        self,
        prepared: PreparedRequest,
        reply: Mapping[str, Any],
        _headers: Mapping[str, str],
        *,
        is_priced: bool = True,
    ) -> Any:
        del is_priced  # LiteLLM has no price for these.
        return self.reader(prepared.model, reply) if self.reader is not None else None


# OpenAI's client describes itself and this machine in these; a gateway might act on the number of a retry.
_SDK_HEADERS = "x-stainless-"
# A process calls a handful of endpoints.
_MOST_CLIENTS = 64


@dataclass(frozen=True, slots=True)
class _OpenAITranslation:
    """Chat Completions, which LiteLLM calls by OpenAI's own client: that orders the fields and adds the headers."""

    internals: Internals
    prices: Prices
    own_parameters: frozenset[str] = frozenset({"max_completion_tokens"})
    encoder: json.JSONEncoder = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"), allow_nan=False)  # noqa: RUF009 - it has no state
    clients: dict[tuple[str, str], Any] = field(default_factory=dict, repr=False)

    def prepare(self, model: str, arguments: Arguments) -> PreparedRequest:
        base, config = arguments["api_base"], self.internals.openai_config(model)
        messages = _Common(self.internals).messages(arguments)
        names = (*_OPENAI_PARAMETERS, "max_completion_tokens")
        supported = config.get_supported_openai_params(model=model)
        if any(name in arguments and name not in supported for name in names):
            raise ValueError("LiteLLM refuses a parameter of this model's")
        given = {name: arguments[name] for name in names if name in arguments}
        if "stop" in given:
            given["stop"] = self.internals.fix_stop(stop=given["stop"])
        options = config.map_openai_params(non_default_params=given, optional_params={}, model=model, drop_params=False)
        data = config.transform_request(
            model=model,
            messages=messages,
            optional_params=options,
            litellm_params={"custom_llm_provider": "openai", "api_base": base},
            headers={},
        )
        request = self._build_request(self._get_client(arguments["api_key"], base), data, arguments)
        # Those of the connection are the pool's to set, and the length is another for every text.
        dropped = {"host", "connection", "accept-encoding", "content-length"}
        headers = {
            name: value
            for name, value in request.headers.items()
            if name not in dropped and not name.startswith(_SDK_HEADERS)
        }
        return PreparedRequest(
            url=str(request.url), headers=headers, body=request.content, model=model, messages=messages, data=data
        )

    def _get_client(self, key: str, base: str) -> Any:
        client = self.clients.get((key, base))
        if client is None:
            if len(self.clients) >= _MOST_CLIENTS:
                self.clients.clear()
            client = self.internals.openai_client(api_key=key, base_url=base, http_client=_get_idle_http())
            # It takes both from the environment, and would send them to whatever address this is.
            client.organization = client.project = None
            self.clients[key, base] = client
        return client

    def _build_request(self, client: Any, data: Arguments, arguments: Arguments) -> Any:
        """Return the request that OpenAI's client makes of these arguments, which sends nothing here."""
        posted: dict[str, Any] = {}

        async def post(path: str, *, body: Any, options: Mapping[str, Any], **_reading: Any) -> None:
            posted.update(url=path, json_data=body, **options)

        completions = client.chat.completions
        completions._post = post  # noqa: SLF001 - this is where the resources of the client hand over to its transport
        extra = {name: arguments[name] for name in ("extra_headers", "extra_body") if name in arguments}
        # Nothing in it waits, so the first step is the last one.
        with suppress(StopIteration):
            completions.create(**data, **extra).send(None)
        return client._build_request(self.internals.openai_options(method="post", **posted))  # noqa: SLF001

    def read(self, prepared: PreparedRequest, answer: RawReply) -> Any:
        completion = _read_openai(self.internals, answer.reply)
        if answer.is_priced and answer.counts_reported:
            cost = self.prices.cost_usd(completion, prepared.model, answer.reply, answer.headers)
            completion._hidden_params["response_cost"] = cost  # noqa: SLF001
        return completion

    def glance(
        self, prepared: PreparedRequest, reply: Mapping[str, Any], headers: Mapping[str, str], *, is_priced: bool = True
    ) -> Any:
        completion = READERS["openai"](prepared.model, reply)
        if completion is None or not is_priced:
            return completion
        cost = self.prices.by_the_token_usd(completion, prepared.model, reply, headers)
        return None if cost is None else replace(completion, _hidden_params={"response_cost": cost})


def _read_openai(internals: Internals, reply: dict[str, Any]) -> Any:
    """Return what LiteLLM makes of an answer after OpenAI's client has read it."""
    parsed = internals.openai_parse(value=reply).model_dump()
    return internals.openai_reply(response_object=parsed, model_response_object=internals.response(), hidden_params={})


@cache
def _get_idle_http() -> Any:
    """Return an HTTP client that OpenAI's client builds requests with; it never opens a connection."""
    import httpx

    return httpx.AsyncClient(transport=httpx.MockTransport(lambda _request: httpx.Response(500)))


_COMPACT = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"), allow_nan=False)


@dataclass(frozen=True, slots=True)
class _GeminiTranslation:
    """Gemini, for which LiteLLM has a separate handler."""

    internals: Internals
    prices: Prices
    own_parameters: frozenset[str] = frozenset()
    encoder: json.JSONEncoder = _COMPACT

    def prepare(self, model: str, arguments: Arguments) -> PreparedRequest:
        common, config = _Common(self.internals), self.internals.gemini
        messages = common.messages(arguments)
        options = common.map_options(config, model, arguments)
        if "extra_body" in arguments:
            options["extra_body"] = arguments["extra_body"]  # LiteLLM merges it into the body.
        key, url = self.internals.gemini_address(
            model=model, auth_header=None, gemini_api_key=arguments["api_key"], vertex_project=None,
            vertex_location=None, vertex_credentials=None, stream=None, custom_llm_provider="gemini",
            api_base=arguments["api_base"],
        )  # fmt: skip
        headers = config.validate_environment(
            headers=dict(arguments.get("extra_headers", {})), model=model, messages=messages, optional_params=options,
            litellm_params={}, api_key=key,
        )  # fmt: skip
        data = self.internals.gemini_body(
            messages=messages, model=model, optional_params=options, custom_llm_provider="gemini", litellm_params={},
            cached_content=None,
        )  # fmt: skip
        return PreparedRequest(
            url=url,
            headers={**self.internals.default_headers, **headers},
            body=self.encoder.encode(data).encode(),
            model=model,
            messages=messages,
            data=data,
        )

    def read(self, prepared: PreparedRequest, answer: RawReply) -> Any:
        completion = _Common(self.internals).read(self.internals.gemini, prepared, answer, prepared.messages)
        if answer.is_priced and answer.counts_reported:
            cost = self.prices.cost_usd(completion, prepared.model, answer.reply, answer.headers)
            completion._hidden_params["response_cost"] = cost  # noqa: SLF001
        return completion

    def glance(
        self, prepared: PreparedRequest, reply: Mapping[str, Any], headers: Mapping[str, str], *, is_priced: bool = True
    ) -> Any:
        completion = READERS["gemini"](prepared.model, reply)
        if completion is None or not is_priced:
            return completion
        cost = self.prices.by_the_token_usd(completion, prepared.model, reply, headers)
        return None if cost is None else replace(completion, _hidden_params={"response_cost": cost})


def _prices(internals: Internals, wire: PriceWire, read: Callable[[str, dict[str, Any]], Any]) -> Prices:
    def calculate(completion: Any, model: str) -> float | None:
        try:
            return internals.cost(
                completion_response=completion, model=model, custom_llm_provider=wire.provider, call_type="acompletion"
            )
        except Exception:  # noqa: BLE001 - LiteLLM raises for a model without a price
            return None

    return Prices(wire, read, calculate, internals.model_cost)


def translations(internals: Internals) -> Mapping[str, Translation]:
    """Return all translations by LiteLLM's name of the provider."""
    common = _Common(internals)

    def read_gemini(model: str, reply: dict[str, Any]) -> Any:
        request = PreparedRequest(url="", headers={}, body=b"", model=model, messages=[], data={})
        return common.read(internals.gemini, request, RawReply(200, {}, b"", reply), [])

    return {
        "ollama_chat": _PlainTranslation(
            internals, internals.ollama, frozenset({"num_ctx"}), reader=READERS["ollama_chat"]
        ),
        "hosted_vllm": _PlainTranslation(internals, internals.vllm),
        "openai": _OpenAITranslation(
            internals, _prices(internals, OPENAI_WIRE, lambda _model, reply: _read_openai(internals, reply))
        ),
        "gemini": _GeminiTranslation(internals, _prices(internals, GEMINI_WIRE, read_gemini)),
    }


def rehearse(translated: Mapping[str, Translation]) -> None:
    """Translate a request and an answer of every kind, sending nothing. Raises whatever does not work.

    The first translation is also the slow one: LiteLLM loads parts of itself.
    """
    for provider, translation in translated.items():
        prepared = translation.prepare("rehearsal", {**json.loads(_REHEARSAL), "model": f"{provider}/rehearsal"})
        for reply in _REPLIES[provider]:
            completion = translation.read(prepared, RawReply(200, {}, b"", json.loads(reply)))
            reader = READERS.get(provider)
            glanced = reader(prepared.model, json.loads(reply)) if reader is not None else None
            if completion.choices[0].message.content != _REHEARSED_TEXT or glanced not in (None, as_plain(completion)):
                raise ValueError(f"the reading of an answer of {provider} has changed")


_REHEARSED_TEXT = "Hi"
_REHEARSAL = (
    '{"messages": [{"role": "user", "content": "rehearsal"}], "temperature": 0, "api_base": "http://localhost", '
    '"api_key": "none"}'
)
_GEMINI_REPLY = (
    '{"candidates": [{"content": {"parts": [{"text": "Hi"}], "role": "model"}, "finishReason": "%s", "index": 0}], '
    '"usageMetadata": {"promptTokenCount": 5, "candidatesTokenCount": 2, %s}, "modelVersion": "m@1"}'
)
_OLLAMA_REPLY = '{"message": {"role": "assistant", "content": "Hi"}, "prompt_eval_count": 1, "eval_count": 1%s}'
_VLLM_REPLY = (
    '{"id": "1", "created": 1, "model": "m", "choices": [{"index": 0, "finish_reason": "stop", "message": '
    '{"role": "assistant", "content": "Hi"}}], "usage": {"prompt_tokens": 1, "completion_tokens": 1, '
    '"total_tokens": 2}}'
)
_REPLIES: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "ollama_chat": (_OLLAMA_REPLY % "", _OLLAMA_REPLY % ', "done_reason": "length"'),
        "hosted_vllm": (_VLLM_REPLY,),
        "openai": (_VLLM_REPLY, _VLLM_REPLY.replace("stop", "length")),
        "gemini": (
            _GEMINI_REPLY % ("STOP", '"totalTokenCount": 7'),
            _GEMINI_REPLY % ("MAX_TOKENS", '"totalTokenCount": 10, "thoughtsTokenCount": 3'),
            _GEMINI_REPLY % ("STOP", '"totalTokenCount": 7, "thoughtsTokenCount": 1'),
        ),
    }
)
