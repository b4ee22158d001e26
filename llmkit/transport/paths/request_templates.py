"""Request templates: LiteLLM's translation with gaps for the texts, so that it need not be repeated for every call.

The thousand requests of a study differ in their texts alone, and LiteLLM copies a text as it is. So the second request
of a kind is translated once more with marks in place of its texts; the texts of later requests go where the marks are.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from hashlib import blake2b
from typing import Any

from llmkit.canonical_json import compact_encoder, json_object
from llmkit.providers import CallArguments
from llmkit.transport.http.exchange import Outline
from llmkit.transport.paths.translation import PreparedRequest, Translation

__all__ = ["Forms", "kind_of"]

_PLAIN_MESSAGE = frozenset({"role", "content"})
# A mark is looked for in a translation that contains no prompt at all.
_MARK = "llmkit-text-{}-87b0c7e1"
_MARKS = re.compile(r'"llmkit-text-(\d+)-87b0c7e1"')
_MARKS_IN_BYTES = re.compile(_MARKS.pattern.encode())
# A caller with ever new kinds of requests (another seed for every sample) must not fill the memory.
_MOST_KEPT = 512

_encode = compact_encoder()

Entries = tuple[Mapping[str, Any] | None, ...]


def kind_of(arguments: Mapping[str, Any]) -> bytes | None:
    """Return the kind of a request: what it shares with requests that differ only in text. None if it has no kind.

    A digest, since a key and a schema may be part of it. LiteLLM takes two sorts of text apart instead of copying them:
    empty ones, and ones that begin with `<think>`.
    """
    roles = []
    for message in arguments["messages"]:
        text = message["content"]
        if message.keys() != _PLAIN_MESSAGE or not isinstance(text, str) or text[:1] in {"", "<"}:
            return None
        roles.append(message["role"])
    rest = {name: value for name, value in arguments.items() if name != "messages"}
    try:
        encoded = _encode([roles, rest])
    except (TypeError, ValueError):
        return None
    return blake2b(encoded.encode(), digest_size=16).digest()


@dataclass(frozen=True, slots=True)
class _RequestTemplate:
    """A translation with places for texts.

    Attributes:
        pieces: The body: bytes as they are, and numbers of texts.
        entries: The model's entries in LiteLLM's price list at the time.
    """

    prepared: PreparedRequest
    pieces: tuple[bytes | int, ...] = field(repr=False)
    entries: Entries

    def fill(self, arguments: Mapping[str, Any], translation: Translation) -> PreparedRequest:
        texts = [translation.encoder.encode(message["content"]).encode() for message in arguments["messages"]]
        body = b"".join(piece if isinstance(piece, bytes) else texts[piece] for piece in self.pieces)
        made = self.prepared
        # Field by field, because `replace` takes longer than the rest of this function.
        return PreparedRequest(
            url=made.url,
            headers=made.headers,
            body=body,
            model=made.model,
            messages=arguments["messages"],
            data=made.data,
            outline=made.outline,
        )


class Forms:
    """The forms of one path. Belongs to one event loop.

    Args:
        listed: LiteLLM's list of models, which may be changed while the process runs.
    """

    def __init__(self, listed: Mapping[str, Any]) -> None:
        self._listed = listed
        # None for a kind that was seen once, False for one whose texts are not just copied.
        self._forms: dict[bytes, _RequestTemplate | bool | None] = {}

    def fill(self, kind: bytes, arguments: CallArguments, translation: Translation) -> PreparedRequest | None:
        """Return the request in its form; None when there is none for its kind."""
        form = self._forms.get(kind)
        if not isinstance(form, _RequestTemplate):
            return None
        if form.entries != self._entries(arguments):
            del self._forms[kind]
            return None
        return form.fill(arguments.kwargs, translation)

    def learn(self, kind: bytes, arguments: CallArguments, translation: Translation, prepared: PreparedRequest) -> None:
        """Learn from LiteLLM's translation of a request; the second one of a kind makes a template.

        Args:
            kind: The result of `kind_of`.
            arguments: The request.
            translation: The provider's.
            prepared: LiteLLM's translation.
        """
        if kind not in self._forms:
            if len(self._forms) >= _MOST_KEPT:
                self._forms.clear()
            self._forms[kind] = None
        elif self._forms[kind] is None:
            form = self._form(arguments, translation)
            self._forms[kind] = form if form.fill(arguments.kwargs, translation).is_like(prepared) else False

    def _form(self, arguments: CallArguments, translation: Translation) -> _RequestTemplate:
        marked = arguments.own_kwargs()
        for number, message in enumerate(marked["messages"]):
            message["content"] = _MARK.format(number)
        prepared = translation.prepare(get_model_name(arguments), marked)
        parts = _MARKS_IN_BYTES.split(prepared.body)
        pieces = tuple(int(part) if at % 2 else part for at, part in enumerate(parts))
        return _RequestTemplate(replace(prepared, outline=_outline(prepared.body)), pieces, self._entries(arguments))

    def _entries(self, arguments: CallArguments) -> Entries:
        """Copy LiteLLM's entries for the model: its translations depend on them."""
        names = (str(arguments.kwargs["model"]), get_model_name(arguments))
        return tuple(dict(entry) if (entry := self._listed.get(name)) else None for name in names)


def _outline(marked: bytes) -> Outline | None:
    body = json_object(marked)
    try:
        return None if body is None else Outline(body, _MARKS)
    except ValueError:  # NaN or an infinity
        return None


def get_model_name(arguments: CallArguments) -> str:
    """Return the model's name at its provider."""
    return str(arguments.kwargs["model"]).partition("/")[2]
