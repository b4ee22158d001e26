"""The record of one request: what was really sent and what really came back, whatever a library makes of it."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from datetime import datetime
from functools import cached_property
from hashlib import sha256
from time import perf_counter
from typing import Any
from urllib.parse import urlsplit

from llmkit.canonical_json import canonical_json, json_object, sha256_of
from llmkit.ports import AnswerSink
from llmkit.providers import CallArguments, ProviderSpec, ReplyFacts
from llmkit.providers.base import StreamForm
from llmkit.types import LLMProvider, utc_now

__all__ = ["Exchange", "Outline", "ReplyTooLargeError", "current_exchange"]


class ReplyTooLargeError(Exception):
    """A reply exceeds the limit."""


class Outline:
    """The body of requests that differ in their texts alone: what is hashed of them needs no reading of each.

    Args:
        body: As it is sent, with a mark in the place of each text.
        marks: Finds the marks in JSON, quotes included; its group is the number of the text.

    Raises:
        ValueError: The body contains NaN or an infinity.
    """

    def __init__(self, body: Mapping[str, Any], marks: re.Pattern[str]) -> None:
        parts = marks.split(canonical_json(body))
        self._body = body
        self._pieces = tuple(int(part) if at % 2 else part for at, part in enumerate(parts))
        self._schemas: dict[LLMProvider, tuple[Mapping[str, Any] | None, str | None]] = {}

    def params_sha256(self, path: str, texts: Sequence[str]) -> str:
        """Return `Exchange.params_sha256` of a request with these texts."""
        quoted_texts = [canonical_json(text) for text in texts]
        body = "".join(piece if isinstance(piece, str) else quoted_texts[piece] for piece in self._pieces)
        return sha256(f'{{"body":{body},"path":{canonical_json(path)}}}'.encode("ascii")).hexdigest()

    def schema(self, spec: ProviderSpec) -> tuple[Mapping[str, Any] | None, str | None]:
        """Return the output schema in the body, and its hash."""
        if spec.provider not in self._schemas:
            found = spec.sent_schema(self._body)
            self._schemas[spec.provider] = found, None if found is None else _hash(found)
        return self._schemas[spec.provider]


@dataclass(kw_only=True)
class Exchange:
    """One request to one provider, filled by the transport.

    Attributes:
        sent_at_utc: When the request left; None when it never did.
        status: HTTP status of the answer; None when there was none.
        transport_error: Class name of what went wrong below HTTP.
        proxy: Through which the request goes, password included; None for none.
        reply_limit_mb: Largest reply that is read, decompressed, in MB; set by the pool for the message of an error.
        is_abandoned: Whether the caller has gone, so that the request must not be sent.
        on_leaving: Called when the request leaves, to start its clock.
        outline: Of the body, where it is known.
        texts: That are in the places of the outline.
        sink: Where the pieces of the answer go while it is being written; None for an answer that comes whole.
        stream: How the answer is requested to stream; None for an answer that comes whole.
        silence_s: Longest time without a byte in the middle of a streamed answer, in seconds.
        piece_wait_s: Longest time without a piece there.
        on_first_piece: Called when the first piece arrives, which ends the deadline of the request.
        first_token_ms: When it did, in milliseconds after the request left; None before, and for an answer that came
            whole.
        is_folded: Whether the reply is the sum of the events of a stream.
        stream_error: The error that the server has sent in the stream, as its protocol has it.
    """

    spec: ProviderSpec
    arguments: CallArguments
    sent_at_utc: datetime | None = None
    sent_body: bytes = b""
    sent_path: str = ""
    status: int | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""
    transport_error: str | None = None
    proxy: str | None = field(default=None, repr=False)
    reply_limit_mb: int = 0
    is_abandoned: bool = False
    on_leaving: Callable[[], None] = lambda: None
    outline: Outline | None = None
    texts: Sequence[str] = ()
    sink: AnswerSink | None = field(default=None, repr=False)
    stream: StreamForm | None = None
    silence_s: float = 60.0
    piece_wait_s: float = 120.0
    on_first_piece: Callable[[], None] = lambda: None
    first_token_ms: float | None = None
    is_folded: bool = False
    stream_error: Any = field(default=None, repr=False)
    _started_s: float = field(default_factory=perf_counter)

    def request_leaves(self, path: str, body: bytes) -> None:
        """Note that the request is handed to the network."""
        self.sent_at_utc = utc_now()
        self._started_s = perf_counter()
        self.sent_path, self.sent_body = path, body
        self.on_leaving()

    def reply_arrives(self, status: int, headers: Mapping[str, str], body: bytes) -> None:
        """Note the whole answer."""
        self.status, self.headers, self.body = status, headers, body

    def reader_leaves(self, body: bytes) -> None:
        """Note the part of a streamed answer that had arrived when its reader cancelled it."""
        self.body, self.is_folded = body, True

    def piece_arrives(self) -> None:
        """Note the arrival of a piece; only the first one counts."""
        if self.first_token_ms is None:
            self.first_token_ms = self.elapsed_ms
            self.on_first_piece()

    @property
    def has_broken(self) -> bool:
        """Whether the reply is only the part of an answer that arrived before something went wrong."""
        return self.is_folded and (self.transport_error is not None or self.stream_error is not None)

    @property
    def elapsed_ms(self) -> float:
        """Milliseconds since the request left, without those that the reader of a streamed answer took."""
        reader_ms = 0.0 if self.sink is None else self.sink.reader_ms
        return (perf_counter() - self._started_s) * 1000 - reader_ms

    @cached_property
    def reply_json(self) -> Mapping[str, Any] | None:
        """The answer when it is a JSON object, else None."""
        return json_object(self.body)

    @cached_property
    def error_json(self) -> Mapping[str, Any]:
        """The JSON object that explains a failure: the reply, or the first object in it when it is a list.

        After an error in a stream, it is that error alone.
        """
        if self.stream_error is not None:
            return {"error": self.stream_error}
        if self.reply_json is not None or self.body.lstrip()[:1] != b"[":
            return self.reply_json or {}
        items = (json_object(b'{"items":' + self.body + b"}") or {}).get("items")
        return next((item for item in items if isinstance(item, dict)), {}) if isinstance(items, list) else {}

    @cached_property
    def facts(self) -> ReplyFacts:
        """Return the facts in the provider's own JSON; none if it has another shape than documented."""
        try:
            return self.spec.reply_facts(self.error_json if self.stream_error is None else self.reply_json or {})
        except Exception:  # noqa: BLE001 - a server may send anything, and the attempt must still be recorded
            return ReplyFacts()

    @cached_property
    def _sent_json(self) -> Mapping[str, Any] | None:
        return json_object(self.sent_body)

    @property
    def params_sha256(self) -> str | None:
        """Hash of the parameters as sent: path (it names the model at some providers) and body, no host, no key."""
        if self.outline is not None and self.sent_body:
            return self.outline.params_sha256(self.sent_path, self.texts)
        return None if self._sent_json is None else _hash({"path": self.sent_path, "body": self._sent_json})

    @property
    def model_digest(self) -> str | None:
        """Return what identifies the model: its digest, or the version that the provider names."""
        version = self.facts.model_version
        # Half of a surrogate pair could not be stored.
        return self.arguments.model_digest or (version and str(version).encode("utf-8", "replace").decode())

    @property
    def sent_schema(self) -> Mapping[str, Any] | None:
        """The output schema that was really sent."""
        return self._schema[0]

    @property
    def schema_sha256(self) -> str | None:
        """Hash of the output schema that was really sent."""
        return self._schema[1]

    @property
    def _schema(self) -> tuple[Mapping[str, Any] | None, str | None]:
        if self.outline is not None and self.sent_body:
            return self.outline.schema(self.spec)
        schema = None if self._sent_json is None else self.spec.sent_schema(self._sent_json)
        return schema, None if schema is None else _hash(schema)

    @property
    def redirected_to(self) -> str | None:
        """Host of the redirect that was not followed."""
        location = self.headers.get("location")
        try:
            return urlsplit(location).netloc.rpartition("@")[2] if location else None
        except ValueError:  # for example `http://[::1`
            return None


def _hash(sent: Mapping[str, Any]) -> str:
    try:
        return sha256_of(sent)
    except ValueError:  # NaN or an infinity, which Python writes into JSON although no standard knows them
        return sha256_of(json.dumps(sent, sort_keys=True))


current_exchange: ContextVar[Exchange] = ContextVar("llmkit_exchange")
"""The exchange that the running task fills. LiteLLM does not tell a transport which call a request belongs to."""
