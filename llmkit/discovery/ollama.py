"""Queries about an Ollama server over one short-lived connection: `/api/version`, `/api/tags`, `/api/show`.

Redirects are not followed, and nothing from the environment (keys, netrc) is used but the proxy for a remote address.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from http import HTTPStatus
from importlib import import_module
from typing import TYPE_CHECKING, Any

from llmkit.canonical_json import json_object
from llmkit.errors import LLMConfigurationError
from llmkit.providers.checks import PulledModel, ServerState
from llmkit.providers.model_facts import NOTHING_KNOWN, ModelFacts
from llmkit.providers.ollama import add_tag, read_facts
from llmkit.types import utc_now

if TYPE_CHECKING:
    import aiohttp

__all__ = ["ANSWER_WITHIN_S", "fetch_model_facts", "fetch_server_state"]

# A local server answers in milliseconds, and a call must not wait long for facts that it can do without.
ANSWER_WITHIN_S = 2.0
MOST_ANSWER_BYTES = 16 * 1024**2
MOST_MODELS_SHOWN = 50
UNUSABLE_CERTIFICATES = (
    "The certificates of this machine cannot be loaded: set SSL_CERT_FILE to a file of PEM certificates, or unset it."
)


async def fetch_model_facts(base: str, model: str) -> ModelFacts | None:
    """Query the server for the facts about one model, with two concurrent requests.

    Args:
        base: Address of the server; user and password in it are sent to it.
        model: The model part of a route.

    Raises:
        LLMConfigurationError: SSL_CERT_FILE contains no certificates.

    Returns:
        `NOTHING_KNOWN` when the server does not have the model; None without a usable answer within 2 s.
    """
    async with _connect(base) as ask:
        shown, listed = await asyncio.gather(ask.post("/api/show", {"model": model}), ask.get("/api/tags"))
    if shown.body is None:
        return None  # A 404 without JSON comes from another server or a wrong path: the model need not be missing.
    if shown.status == HTTPStatus.NOT_FOUND and "error" in shown.body:
        return NOTHING_KNOWN
    if shown.status != HTTPStatus.OK:
        return None
    entry = next((entry for entry in _list_entries(listed.body) if entry.get("name") == add_tag(model)), {})
    return read_facts(shown.body, entry, utc_now())


async def fetch_server_state(base: str) -> ServerState | None:
    """Return version and models with details, at most the newest 50; None when no Ollama answers within 2 s."""
    async with _connect(base) as ask:
        version, listed = await asyncio.gather(ask.get("/api/version"), ask.get("/api/tags"))
        if version.status != HTTPStatus.OK or version.body is None:
            return None
        entries = [entry for entry in _list_entries(listed.body) if isinstance(entry.get("name"), str)]
        entries = entries[:MOST_MODELS_SHOWN]
        shown = await asyncio.gather(*(ask.post("/api/show", {"model": entry["name"]}) for entry in entries))
    now = utc_now()
    return ServerState(
        version=str(version.body.get("version", "?")),
        models=tuple(
            PulledModel(entry["name"], _read_size(entry), read_facts(answer.body or {}, entry, now))
            for entry, answer in zip(entries, shown, strict=True)
        ),
    )


def _list_entries(listed: Mapping[str, Any] | None) -> Iterator[Mapping[str, Any]]:
    models = (listed or {}).get("models")
    yield from (entry for entry in models if isinstance(entry, dict)) if isinstance(models, list) else ()


def _read_size(entry: Mapping[str, Any]) -> int | None:
    size = entry.get("size")
    return size if isinstance(size, int) else None


@dataclass(frozen=True, slots=True)
class _HttpReply:
    """Status and JSON object of an answer; both None when there was none."""

    status: int | None = None
    body: Mapping[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class _OllamaConnection:
    session: aiohttp.ClientSession
    base: str
    proxy: str | None
    tls: ssl.SSLContext | bool

    async def get(self, path: str) -> _HttpReply:
        return await self._request("GET", path)

    async def post(self, path: str, body: Mapping[str, Any]) -> _HttpReply:
        return await self._request("POST", path, json=body)

    async def _request(self, method: str, path: str, **body: Any) -> _HttpReply:
        import aiohttp

        request = self.session.request(
            method, f"{self.base}{path}", allow_redirects=False, proxy=self.proxy, ssl=self.tls, **body
        )
        try:
            async with request as answer:
                return _HttpReply(answer.status, json_object(await _read_bounded(answer)))
        except (aiohttp.ClientError, OSError, TimeoutError, ValueError):
            return _HttpReply()


@asynccontextmanager
async def _connect(base: str) -> AsyncIterator[_OllamaConnection]:
    # The first import takes some tenths of a second, which would block the event loop.
    await asyncio.to_thread(import_module, "aiohttp")
    import aiohttp

    from llmkit.transport.http.proxies import find_proxy
    from llmkit.transport.http.tls import load_trusted_certificates

    try:
        tls = load_trusted_certificates() if base.startswith("https:") else True
    except (OSError, ValueError):
        raise LLMConfigurationError(UNUSABLE_CERTIFICATES) from None
    timeout = aiohttp.ClientTimeout(total=ANSWER_WITHIN_S)
    async with aiohttp.ClientSession(timeout=timeout, cookie_jar=aiohttp.DummyCookieJar()) as session:
        yield _OllamaConnection(session, base.rstrip("/"), find_proxy(base), tls)


async def _read_bounded(answer: aiohttp.ClientResponse) -> bytes:
    """Return the body, cut at 16 MiB; a cut body is not JSON and so counts as no answer."""
    body = bytearray()
    async for chunk in answer.content.iter_any():
        body += chunk
        if len(body) > MOST_ANSWER_BYTES:
            break
    return bytes(body)
