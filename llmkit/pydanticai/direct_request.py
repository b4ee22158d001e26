"""Asks for a type: the first answer read directly, and Pydantic AI's loop around it only when it does not fit."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pydantic import ValidationError
from pydantic_ai import Agent

from llmkit.batch.task_guard import guard_tasks
from llmkit.pydanticai.messages import as_model_messages, as_model_response, as_user_content, is_sent_as_it_is
from llmkit.pydanticai.model import AgentForm, PydanticAiLiteLLMModel
from llmkit.pydanticai.output_reader import Reader, convert_exits
from llmkit.pydanticai.output_shape import OutputShape
from llmkit.pydanticai.repair import is_json
from llmkit.types import LLMResponse, Message

__all__ = ["Asker"]

_UNFIT = object()


class Asker:
    """One agent, and what it asks with.

    An agent's run costs some ten times the CPU of a call, and most answers fit at once. So once the agent has shown
    the settings and parameters that it asks with, the same request is sent and read without it; an answer that does
    not fit is handed to the agent as its first, and the agent does the rest.

    Args:
        agent: Whose loop it is.
        answers_in_text: Whether a good answer is text, and not the call of a tool.
    """

    def __init__(self, agent: Agent[None, Any], *, answers_in_text: bool) -> None:
        self._agent = agent
        self._answers_in_text = answers_in_text
        self._form: AgentForm | None = None

    async def ask(
        self,
        model: PydanticAiLiteLLMModel,
        conversation: Sequence[Message],
        answer: OutputShape[Any],
        reader: Reader,
        reasks: int,
    ) -> Any:
        """Return a validated object.

        Args:
            model: Whom to ask.
            conversation: Ends with a user message.
            answer: The form of the type that the agent asks for.
            reader: Reads the answers that the agent gets.
            reasks: How often the model is asked again.

        Raises:
            LLMError: As the model's `request`.
            AgentRunError: No answer fitted, or the agent gave up.
            UserError: As the model's `request`.
            ValidationError: The conversation or a parameter is bad.
        """
        if self._form is not None:
            first = await _first(model, conversation, self._form)
            found = _read(first, answer)
            if found is not _UNFIT:
                reader.answer_json = first.text
                return found
            model.given = as_model_response(first)
        history, prompt = as_model_messages(conversation[:-1]), as_user_content(conversation[-1])
        result = await self._agent.run(
            prompt, message_history=history, model=model, retries=reasks, capabilities=[reader]
        )
        if self._answers_in_text and self._form is None and len(model.responses) == 1:
            self._form = model.form
        return result.output


async def _first(model: PydanticAiLiteLLMModel, conversation: Sequence[Message], form: AgentForm) -> LLMResponse:
    if is_sent_as_it_is(conversation):
        return await model.answer(conversation, form)
    model.form = form
    messages = model.prepare_messages(as_model_messages(conversation), form.parameters)
    await model.request(messages, form.settings, form.parameters)
    return model.responses[-1]


def _read(response: LLMResponse, answer: OutputShape[Any]) -> Any:
    """Return the object, as the agent would read it; `_UNFIT` when that is for the agent to say."""
    if response.tool_calls or not is_json(response.text):
        return _UNFIT
    try:
        with convert_exits(), guard_tasks():
            return answer.adapter.validate_json(response.text)
    except ValidationError:
        return _UNFIT
