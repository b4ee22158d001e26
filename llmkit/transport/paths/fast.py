"""The fast path: LiteLLM's translations alone, straight over the pool. `benchmarks/client.py` measures the gain."""

from __future__ import annotations

import base64
import json
import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

from llmkit.providers import CallArguments
from llmkit.transport.http.exchange import Exchange
from llmkit.transport.paths.library import LOADING, RELEASE, load_internals, mute_warnings, surprises
from llmkit.transport.paths.request_templates import Forms, kind_of
from llmkit.transport.paths.translation import PreparedRequest, RawReply, Translation, carries, rehearse, translations

if TYPE_CHECKING:
    from llmkit.transport.http.http_pool import Pool

__all__ = ["FastParts", "FastPath", "NoAnswerError", "load_parts"]

HTTP_OK = 200
_SUCCESS = range(200, 300)

# Addresses that HTTP libraries cannot read in two ways.
_PLAIN_URL = re.compile(r"https?://(?:[^/@\s]+@)?[A-Za-z0-9.\-\[\]:]+(?:/[A-Za-z0-9._~:\-]+)*")


class NoAnswerError(Exception):
    """The provider answered, but not with a JSON object and a status of success; the exchange has what it was."""


@dataclass(frozen=True, slots=True)
class FastParts:
    """LiteLLM's translations, and its list of models."""

    translations: Mapping[str, Translation]
    model_cost: Mapping[str, Any]


_parts: tuple[FastParts | None] | None = None


def load_parts() -> FastParts | None:
    """Load and try the parts of the fast path, once per process; None for another LiteLLM.

    For another one a warning is logged. Takes as long as importing litellm.
    """
    global _parts  # noqa: PLW0603
    with LOADING:
        if _parts is None:
            _parts = (_load_parts(),)
        return _parts[0]


def _load_parts() -> FastParts | None:
    try:
        found = surprises()
        if not found:
            # LiteLLM defines some types when it first needs them.
            with mute_warnings():
                internals = load_internals()
                parts = FastParts(translations(internals), internals.model_cost)
                rehearse(parts.translations)
            return parts
    except Exception as error:  # noqa: BLE001 - the reference path works with any release
        found = (f"{type(error).__name__} at rehearsal: {error}",)
    logging.getLogger("llmkit").warning(
        "This LiteLLM differs from the one that llmkit's fast path works with (%s), so calls take the slower reference "
        "path. Install litellm==%s, or set LLM_REQUEST_PATH=reference.",
        "; ".join(found),
        RELEASE,
    )
    return None


class FastPath:
    """Carries the requests that llmkit makes. Used in one event loop; the pool is the caller's to close.

    Args:
        pool: Where requests leave.
        parts: What LiteLLM contributes.
    """

    def __init__(self, pool: Pool, parts: FastParts) -> None:
        self._pool = pool
        self._model_cost = parts.model_cost
        self._translations = parts.translations
        self._forms = Forms(parts.model_cost)

    def prepare(self, arguments: CallArguments) -> PreparedRequest | None:
        """Return the request on the wire, or None when the reference path has to carry it."""
        provider, _, model = str(arguments.kwargs["model"]).partition("/")
        translation = self._translations.get(provider)
        # LiteLLM calls some models through another API of their provider.
        mode = self._model_cost.get(str(arguments.kwargs["model"]), {}).get("mode", "chat")
        if translation is None or mode != "chat":
            return None
        try:
            return self._prepare_request(translation, model, arguments)
        except Exception:  # noqa: BLE001 - the reference path meets the same fault, and LiteLLM explains it
            return None

    def _prepare_request(
        self, translation: Translation, model: str, arguments: CallArguments
    ) -> PreparedRequest | None:
        kind = kind_of(arguments.kwargs)
        filled = self._forms.fill(kind, arguments, translation) if kind is not None else None
        if filled is not None:
            return filled
        if not carries(translation, arguments.kwargs):
            return None
        prepared = translation.prepare(model, arguments.own_kwargs())
        if _PLAIN_URL.fullmatch(prepared.url) is None or "/." in prepared.url:
            return None
        if kind is not None:
            self._forms.learn(kind, arguments, translation, prepared)
        return prepared

    async def complete(self, prepared: PreparedRequest, exchange: Exchange) -> Any:
        """Send it, and read the answer into LiteLLM's `ModelResponse`.

        Raises:
            NotAnsweredError: There is no answer.
            NoAnswerError: The answer is a refusal, or unreadable.
            Exception: Whatever LiteLLM raises on an answer that it does not understand.
        """
        exchange.outline = prepared.outline
        exchange.texts = [message["content"] for message in prepared.messages] if prepared.outline else ()
        headers = {"Accept": "*/*", **prepared.headers, **_credentials(prepared.url)}
        await self._pool.send(exchange, "POST", prepared.url, headers, prepared.body)
        status = exchange.status or 0
        if exchange.reply_json is None or status not in _SUCCESS:
            raise NoAnswerError
        provider = str(exchange.arguments.kwargs["model"]).partition("/")[0]
        translation = self._translations[provider]
        plain = None
        if status == HTTP_OK:
            is_priced = exchange.spec.reports_cost
            plain = translation.glance(prepared, exchange.reply_json, exchange.headers, is_priced=is_priced)
        return plain if plain is not None else self._read(translation, prepared, exchange, status)

    def _read(self, translation: Translation, prepared: PreparedRequest, exchange: Exchange, status: int) -> Any:
        reply = exchange.reply_json or {}
        if status == HTTP_OK:
            reply = exchange.spec.mend_reply(reply)
        facts = exchange.spec.reply_facts(reply)
        # A copy, because LiteLLM changes the reply that it reads.
        reply = json.loads(json.dumps(reply))
        is_priced = exchange.spec.reports_cost
        answer = RawReply(status, exchange.headers, exchange.body, dict(reply), facts.counts_reported, is_priced)
        return translation.read(prepared, answer)


def _credentials(url: str) -> Mapping[str, str]:
    """Return user and password in an address as the header that they become."""
    if "@" not in url:
        return {}
    parts = urlsplit(url)
    pair = f"{unquote(parts.username or '')}:{unquote(parts.password or '')}"
    return {"Authorization": f"Basic {base64.b64encode(pair.encode()).decode()}"}
