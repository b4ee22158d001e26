"""`conversation` of a session."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from llmkit.errors import LLMBadRequest
from llmkit.notebook.history import ReadingFace
from llmkit.notebook.map import MappingFace
from llmkit.notebook.options import CHAT_NAMES, TURN_SHOWN, accepting, checked_names, checked_text
from llmkit.notebook.runtime import Opened

if TYPE_CHECKING:
    from llmkit.notebook.conversation import Conversation
    from llmkit.types import LLMResponse, Message

__all__ = ["TalkingFace"]


class TalkingFace(MappingFace, ReadingFace):
    """Conversations that remember."""

    @accepting(*TURN_SHOWN)
    def conversation(
        self,
        *,
        system: str | None = None,
        id: str | None = None,  # noqa: A002 - the word people use
        **parameters: Any,
    ) -> Conversation:
        """A conversation that remembers: `c.say("...")` answers with all that was said before in mind.

        Args:
            system: What the model is told first.
            id: Reopen a stored one; its system message and turns come back, its parameters do not.
            **parameters: As for `chat`, but for `pipeline_run_id` and `idempotency_key`, which a conversation makes by
                itself; for every turn, but `images` and `files`, which go with the first and stay in view.

        Raises:
            LLMBadRequest: There is none of this id, both `id` and `system` are given, or a parameter is unknown.
            LLMStoreError: Its texts were not stored.
        """
        from llmkit.notebook.conversation import Conversation, turns_of

        checked_text("system", system)
        checked_text("id", id)
        checked_names(parameters, CHAT_NAMES)
        opener = Opener(self._open, self._chat, self._settings.store_payloads)
        if id is None:
            return Conversation(opener, system=system, parameters=parameters)
        if system is not None:
            raise LLMBadRequest("A reopened conversation has its system message; leave system out")
        from llmkit.dataframes.store import stored_answers

        rows = self._read(lambda connection: stored_answers(connection, self.workspace, id))
        system, turns = turns_of(id, rows)
        return Conversation(opener, id=id, system=system, turns=turns, parameters=parameters)


class Opener(NamedTuple):
    """What a conversation gets of its session."""

    opened: Opened
    chat: Callable[[Sequence[Message], dict[str, Any]], Coroutine[Any, Any, LLMResponse]]
    stores_payloads: bool

    def run(self, work: Coroutine[Any, Any, LLMResponse]) -> LLMResponse:
        return self.opened.run(work)

    async def hop(self, work: Coroutine[Any, Any, LLMResponse]) -> LLMResponse:
        return await self.opened.hop(work)
