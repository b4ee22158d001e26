"""A conversation that remembers: its turns, their rows in the store, and its display in a notebook."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from uuid_utils.compat import uuid7

from llmkit.attachment import Attachment
from llmkit.display.html import render_chat
from llmkit.display.terminal_text import escape_controls
from llmkit.errors import LLMBadRequest, LLMIdempotencyConflict, LLMStoreError
from llmkit.notebook.arguments import check_names, check_text, read_attachments
from llmkit.notebook.chat import send_chat
from llmkit.notebook.options import TurnOptions, accept_options, list_option_names
from llmkit.notebook.stream import AsyncChatStream, ChatStream, start_chat_stream
from llmkit.notebook.stream_call import StreamedCall
from llmkit.ports import AnswerSink
from llmkit.types import LLMResponse, Message

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from llmkit.notebook.core import SessionCore

__all__ = ["Conversation", "Turn", "find_latest_conversation", "open_conversation"]

STAGE = "conversation"
ATTACHMENT_OPTIONS = ("images", "files")
CONTINUED = (
    "Turn {number} of this conversation is another message, of an unread stream or of another process: finish or "
    "cancel the stream, or reopen the conversation with session.conversation(id={id!r})"
)
# A conversation sets these for its turns.
RESERVED_OPTIONS = ("system", "pipeline_run_id", "idempotency_key")


@dataclass(frozen=True, slots=True)
class Turn:
    """One message of a person, with its attachments, and the answer."""

    prompt: str
    answer: LLMResponse
    attachments: tuple[Attachment, ...] = ()


def open_conversation(core: SessionCore, options: Mapping[str, Any]) -> Conversation:
    """Check the arguments of `Session.conversation`, and start one or reopen a stored one.

    Raises:
        LLMBadRequest: There is none of this id, both `id` and `system` are given, or an option is unknown.
        LLMStoreError: Its texts were not stored.
    """
    given = dict(options)
    id, system = given.pop("id", None), given.pop("system", None)  # noqa: A001
    check_text("system", system)
    check_text("id", id)
    _refuse_reserved(given)
    check_names(given, list_option_names(TurnOptions))
    if id is None:
        return Conversation(core, system=system, options=given)
    if system is not None:
        raise LLMBadRequest("A reopened conversation has its own system message; leave system out")
    from llmkit.dataframes.store import read_stored_answers
    from llmkit.notebook.history import read_store

    rows = read_store(core, lambda connection: read_stored_answers(connection, core.workspace_id, id))
    system, turns = _restore_turns(id, rows)
    return Conversation(core, id=id, system=system, turns=turns, options=given)


def find_latest_conversation(core: SessionCore) -> str:
    """Return the id of the conversation of the workspace that was continued last.

    Raises:
        LLMBadRequest: There is none.
    """
    from llmkit.dataframes.store import read_latest_pipeline_run
    from llmkit.notebook.history import read_store

    found = read_store(core, lambda connection: read_latest_pipeline_run(connection, core.workspace_id, STAGE))
    if found is None:
        raise LLMBadRequest(f"Workspace {core.workspace_id!r} has no conversation yet; the first call starts one")
    return found


class Conversation:
    """Turns of a person and a model, each of which sees all turns before it, with their images and files.

    `Session.conversation` creates it. Every turn is a row of `llm_runs` under one `pipeline_run_id`, which is the
    conversation's `id`. If payloads are stored, the texts are in the row's metadata, and the conversation can be
    reopened. Images and files are not stored there: a reopened conversation has a line in brackets in their place.

    Attributes:
        id: Reopens it: `session.conversation(id=...)`.
        system: System message, or None.
        turns: Messages and answers, oldest first.
    """

    def __init__(
        self,
        core: SessionCore,
        *,
        id: str | None = None,  # noqa: A002 - the usual name
        system: str | None = None,
        turns: Sequence[Turn] = (),
        options: Mapping[str, Any] | None = None,
    ) -> None:
        self.id = id or f"{STAGE}:{uuid7()}"
        self.system = system
        self.turns = tuple(turns)
        self._core = core
        self._options = {name: value for name, value in (options or {}).items() if value is not None}
        # They are sent with the first turn, and are part of its message from then on.
        self._unsent = {name: self._options.pop(name) for name in ATTACHMENT_OPTIONS if name in self._options}

    @property
    def messages(self) -> tuple[Message, ...]:
        """The whole conversation, as it would be sent."""
        messages = [] if self.system is None else [Message(role="system", content=self.system)]
        for turn in self.turns:
            messages += [
                Message(role="user", content=turn.prompt, attachments=turn.attachments),
                Message(role="assistant", content=turn.answer.text),
            ]
        return tuple(messages)

    @accept_options(TurnOptions)
    def say(self, text: str, **options: Unpack[TurnOptions]) -> LLMResponse:
        """Send a message and wait for the answer.

        A turn that fails or is interrupted leaves the conversation as it was. If the kernel restarts in the middle of a
        turn, saying the same thing again is not billed twice.

        Args:
            text: The message.
            **options: For this turn only, on top of those of the conversation.

        Raises:
            LLMIdempotencyConflict: Another process has continued this conversation: reopen it.
            LLMError: As for `Session.chat`.
        """
        return self._core.run(self._send(text, options))

    @accept_options(TurnOptions)
    async def asay(self, text: str, **options: Unpack[TurnOptions]) -> LLMResponse:
        """Send a message from async code, in any event loop; see `say`."""
        return await self._core.run_async(self._send(text, options))

    @accept_options(TurnOptions)
    def stream(self, text: str, **options: Unpack[TurnOptions]) -> ChatStream:
        """Send a message, and loop over the answer as it is written.

        The turn is added when the whole answer has arrived. One that breaks or is cancelled before leaves the
        conversation as it was.

        Args:
            text: The message.
            **options: As for `say`.

        Raises:
            LLMIdempotencyConflict: Another process has continued this conversation: reopen it.
            LLMError: As for `Session.stream`.
        """
        return start_chat_stream(self._core, lambda open_sink: self._send(text, options, open_sink()))

    @accept_options(TurnOptions)
    def astream(self, text: str, **options: Unpack[TurnOptions]) -> AsyncChatStream:
        """Send a message from async code, in any event loop, and loop over its answer: `async for`; see `stream`."""
        return AsyncChatStream(StreamedCall(self._core, lambda open_sink: self._send(text, options, open_sink())))

    async def _send(self, text: str, options: Mapping[str, Any], sink: AnswerSink | None = None) -> LLMResponse:
        if not isinstance(text, str) or not text.strip():
            raise LLMBadRequest("A message is a string that is not empty")
        _refuse_reserved(options)
        check_names(options, list_option_names(TurnOptions))
        given = {name: value for name, value in options.items() if value is not None}
        attachments = read_attachments({**self._unsent, **given})
        fields = {"stage": STAGE, **self._options, **given}
        for name in ATTACHMENT_OPTIONS:
            fields.pop(name, None)
        number = len(self.turns) + 1
        # The key contains the number of the turn, so that two processes cannot both continue from the same turn.
        fields |= {"pipeline_run_id": self.id, "idempotency_key": f"{self.id}#{number}"}
        if self._core.settings.store_payloads:
            metadata = fields.get("metadata", {})
            if not isinstance(metadata, Mapping):
                raise LLMBadRequest(f"metadata must be a dictionary; got {type(metadata).__name__}")
            stored = {"turn": number, "said": _describe_message(text, attachments), "system": self.system}
            fields["metadata"] = {**metadata, STAGE: stored}
        message = Message(role="user", content=text, attachments=attachments)
        try:
            answer = await send_chat(self._core, (*self.messages, message), fields, sink)
        except LLMIdempotencyConflict as error:
            # Its own message is about the key, which is not the caller's.
            conflict = LLMIdempotencyConflict(CONTINUED.format(number=number, id=self.id))
            conflict.run_id = error.run_id
            raise conflict from None
        self.turns = (*self.turns, Turn(text, answer, attachments))
        self._unsent = {}
        return answer

    def __str__(self) -> str:
        return "\n".join(f"{message.role}: {message.content}" for message in self.messages)

    def __repr__(self) -> str:
        # Messages may contain personal data, and a repr ends up in logs.
        return f"Conversation({self.id!r}, {len(self.turns)} turns)"

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        """Print the conversation in an IPython terminal."""
        printer.text(repr(self) if cycle else escape_controls(str(self)) or repr(self))

    def _repr_html_(self) -> str:
        bubbles: list[tuple[str, str, Sequence[str]]] = []
        if self.system is not None:
            bubbles.append(("system", self.system, ()))
        for turn in self.turns:
            bubbles.append(("user", _describe_message(turn.prompt, turn.attachments), ()))
            bubbles.append((str(turn.answer.route), turn.answer.text, turn.answer.facts[1:]))
        return render_chat(bubbles, self.id)


def _refuse_reserved(options: Mapping[str, Any]) -> None:
    for name in RESERVED_OPTIONS:
        if name in options:
            raise LLMBadRequest(f"A conversation sets {name} by itself; leave it out")


def _describe_message(text: str, attachments: Sequence[Attachment]) -> str:
    return "\n".join([text, *map(str, attachments)])


def _restore_turns(id: str, rows: Sequence[tuple[str, str | None]]) -> tuple[str | None, list[Turn]]:  # noqa: A002
    """Return the system message and the turns of a stored conversation.

    Args:
        id: Id of the conversation.
        rows: Metadata and stored answer of its succeeded runs, as JSON.

    Raises:
        LLMBadRequest: There is no such conversation.
        LLMStoreError: Its texts were not stored.
    """
    if not rows:
        raise LLMBadRequest(
            f"There is no conversation {id!r:.140} in this workspace; runs() lists their pipeline_run_id"
        )
    stored_turns: dict[int, tuple[dict[str, Any], str]] = {}
    for metadata_json, result_json in rows:
        stored = json.loads(metadata_json).get(STAGE)
        if stored is None or result_json is None:
            raise LLMStoreError(f"The texts of {id!r} were not stored: LLM_STORE_PAYLOADS was off")
        stored_turns[stored["turn"]] = stored, result_json
    turns = [
        Turn(stored["said"], LLMResponse.model_validate_json(answer))
        for _, (stored, answer) in sorted(stored_turns.items())
    ]
    return stored_turns[max(stored_turns)][0]["system"], turns
