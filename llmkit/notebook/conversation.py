"""A conversation that remembers: its turns, their rows in the store, and how it shows in a notebook."""

from __future__ import annotations

import json
from collections.abc import Coroutine, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from uuid_utils.compat import uuid7

from llmkit.attachment import Attachment, attached
from llmkit.display.html import chat
from llmkit.display.terminal_text import printable
from llmkit.errors import LLMBadRequest, LLMStoreError
from llmkit.types import LLMResponse, Message

__all__ = ["Conversation", "Turn"]

STAGE = "conversation"
ATTACHING = ("images", "files")
OWN_PARAMETERS = ("system", "pipeline_run_id", "idempotency_key")


@dataclass(frozen=True, slots=True)
class Turn:
    """What a person said, with what was attached to it, and the answer."""

    said: str
    answer: LLMResponse
    attachments: tuple[Attachment, ...] = ()


class Opener(Protocol):
    """What a conversation needs of a session."""

    @property
    def stores_payloads(self) -> bool:
        """Whether what is said may be kept."""
        ...

    def run(self, work: Coroutine[Any, Any, LLMResponse]) -> LLMResponse:
        """Run in the session's loop, from sync code."""
        ...

    async def hop(self, work: Coroutine[Any, Any, LLMResponse]) -> LLMResponse:
        """Run in the session's loop, from async code."""
        ...

    async def chat(self, messages: Sequence[Message], parameters: dict[str, Any]) -> LLMResponse:
        """Answer."""
        ...


class Conversation:
    """Turns of a person and a model, each of which sees all before it, images and files too.

    Made by `Session.conversation`.

    Every turn is a row of `llm_runs` under one `pipeline_run_id`, which is the `id`. What was said is kept in the row's
    metadata if payloads are stored, and then the conversation can be reopened. Images and files are not kept there: in
    a reopened conversation a line in brackets stands for them. Shows as a chat in a notebook.

    Attributes:
        id: Reopens it: `session.conversation(id=...)`.
        system: What the model is told first; None for nothing.
        turns: What was said and answered, oldest first.
    """

    def __init__(
        self,
        opener: Opener,
        *,
        id: str | None = None,  # noqa: A002 - the word people use
        system: str | None = None,
        turns: Sequence[Turn] = (),
        parameters: Mapping[str, Any] | None = None,
    ) -> None:
        self.id = id or f"{STAGE}:{uuid7()}"
        self.system = system
        self.turns = tuple(turns)
        self._opener = opener
        self._parameters = dict(parameters or {})
        _refuse_own(self._parameters)
        # With the first turn, after which they are part of the conversation.
        self._to_attach = {name: self._parameters.pop(name) for name in ATTACHING if name in self._parameters}

    @property
    def messages(self) -> tuple[Message, ...]:
        """The whole conversation, as it would be sent."""
        lead = () if self.system is None else (Message(role="system", content=self.system),)
        said = (
            message
            for turn in self.turns
            for message in (
                Message(role="user", content=turn.said, attachments=turn.attachments),
                Message(role="assistant", content=turn.answer.text),
            )
        )
        return (*lead, *said)

    def say(self, text: str, **parameters: Any) -> LLMResponse:
        """Say something and wait for the answer.

        A turn that fails or is interrupted leaves the conversation as it was. Saying the same again after a restart of
        the kernel in the middle of a turn is not paid twice.

        Args:
            text: What to say.
            **parameters: As for `Session.chat`, but for `system`, `pipeline_run_id` and `idempotency_key`, on top of
                those of the conversation; for this turn only.

        Raises:
            LLMIdempotencyConflict: Somebody else has gone on with this conversation: reopen it.
            LLMError: As `Session.chat`.
        """
        return self._opener.run(self._say(text, parameters))

    async def asay(self, text: str, **parameters: Any) -> LLMResponse:
        """`say` for async code, in any event loop."""
        return await self._opener.hop(self._say(text, parameters))

    async def _say(self, text: str, parameters: Mapping[str, Any]) -> LLMResponse:
        if not isinstance(text, str) or not text.strip():
            raise LLMBadRequest("say takes a text that is not empty")
        _refuse_own(parameters)
        number, said = len(self.turns) + 1, _said(text, {**self._to_attach, **parameters})
        fields: dict[str, Any] = {"stage": STAGE, **self._parameters, **parameters}
        fields |= {"pipeline_run_id": self.id, "idempotency_key": f"{self.id}#{number}"}
        if self._opener.stores_payloads:
            kept = {"turn": number, "said": _in_words(text, said.attachments), "system": self.system}
            fields["metadata"] = {**_mapping("metadata", fields.get("metadata") or {}), STAGE: kept}
        fields = {name: value for name, value in fields.items() if name not in ATTACHING}
        answer = await self._opener.chat((*self.messages, said), fields)
        self.turns = (*self.turns, Turn(text, answer, said.attachments))
        self._to_attach = {}
        return answer

    def __str__(self) -> str:
        return "\n".join(f"{message.role}: {message.content}" for message in self.messages)

    def __repr__(self) -> str:
        # What was said may hold personal data and a repr ends up in logs.
        return f"Conversation({self.id!r}, {len(self.turns)} turns)"

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        """What IPython shows in a terminal."""
        printer.text(repr(self) if cycle else printable(str(self)) or repr(self))

    def _repr_html_(self) -> str:
        shown: list[tuple[str, str, Sequence[str]]] = []
        if self.system is not None:
            shown.append(("system", self.system, ()))
        for turn in self.turns:
            said = _in_words(turn.said, turn.attachments)
            shown += [("user", said, ()), (str(turn.answer.route), turn.answer.text, turn.answer.facts[1:])]
        return chat(shown, self.id)


def _refuse_own(parameters: Mapping[str, Any]) -> None:
    """Refuse what a conversation gives its turns by itself."""
    own = [name for name in OWN_PARAMETERS if name in parameters]
    if own:
        raise LLMBadRequest(f"{own[0]} is what a conversation sets by itself; leave it out")


def _mapping(name: str, value: Any) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise LLMBadRequest(f"{name} must be a dictionary; got {type(value).__name__}")
    return value


def _said(text: str, parameters: Mapping[str, Any]) -> Message:
    given = {name: parameters[name] for name in ATTACHING if parameters.get(name) is not None}
    try:
        return Message(role="user", content=text, attachments=attached(**given))
    except (OSError, ValueError, TypeError) as error:
        raise LLMBadRequest(f"{' and '.join(given)}: {error}") from None


def _in_words(text: str, attachments: Sequence[Attachment]) -> str:
    """A text, and what was attached to it in words."""
    return "\n".join([text, *map(str, attachments)])


def turns_of(id: str, rows: Sequence[tuple[str, str | None]]) -> tuple[str | None, list[Turn]]:  # noqa: A002
    """System message and turns of a stored conversation.

    Args:
        id: Of the conversation.
        rows: Metadata and stored answer of its succeeded runs, as JSON.

    Raises:
        LLMBadRequest: There is no such conversation.
        LLMStoreError: Its texts were not stored.
    """
    if not rows:
        raise LLMBadRequest(f"There is no conversation {id!r} in this workspace; runs() lists their pipeline_run_id")
    found: dict[int, tuple[dict[str, Any], str]] = {}
    for metadata_json, result_json in rows:
        kept = json.loads(metadata_json).get(STAGE)
        if kept is None or result_json is None:
            raise LLMStoreError(f"What was said in {id!r} was not stored: LLM_STORE_PAYLOADS was off")
        found[kept["turn"]] = kept, result_json
    turns = [Turn(kept["said"], LLMResponse.model_validate_json(answer)) for _, (kept, answer) in sorted(found.items())]
    return found[max(found)][0]["system"], turns
