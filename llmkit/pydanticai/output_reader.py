"""Reads an answer: as it is, else repaired, else refused with a message for the model."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from pydantic import ValidationError
from pydantic_ai.capabilities import AbstractCapability
from pydantic_ai.capabilities.abstract import RawOutput, WrapOutputValidateHandler
from pydantic_ai.exceptions import ModelRetry
from pydantic_ai.messages import ModelResponse
from pydantic_ai.models.wrapper import WrapperModel
from pydantic_ai.output import OutputContext
from pydantic_ai.tools import RunContext
from pydantic_core import to_json

from llmkit.batch.task_guard import guard_tasks
from llmkit.errors import describe_validation
from llmkit.pydanticai.model import PydanticAiLiteLLMModel
from llmkit.pydanticai.repair import is_json, mend_json

__all__ = ["Reader", "convert_exits"]

MOST_PROBLEMS = 10
_NO_JSON = "the answer is not one JSON object"


@contextmanager
def convert_exits() -> Iterator[None]:
    """Turn what a validator of the user's type may raise to end a task, a thread or the process into an exception.

    Raises:
        RuntimeError: It raised SystemExit, GeneratorExit or CancelledError.
    """
    try:
        yield
    except (SystemExit, GeneratorExit, asyncio.CancelledError) as error:
        task = asyncio.current_task()
        if isinstance(error, asyncio.CancelledError) and task is not None and task.cancelling():
            raise  # the caller's, which arrived while an asynchronous validator was awaited
        raise RuntimeError(f"{type(error).__name__} in a validator of the output type") from None


class Reader(AbstractCapability[Any]):
    """Validates structured answers and repairs near-JSON; remembers how that went in the last run.

    `extract` has it built in; your own agent gets it by `Agent(..., capabilities=[Reader()])`. The row of an
    answer that was repaired has `repaired` under `agent` in its metadata.

    Attributes:
        is_repaired: Whether the answer that fitted was not valid JSON before it was repaired.
        problems: Problems of the last answer that did not fit, a line each, without its values.
        answer_json: The JSON text from which the output was validated; None before.
    """

    def __init__(self) -> None:
        self.is_repaired = False
        self.answer_json: str | None = None
        self.problems: tuple[str, ...] = ()

    async def wrap_output_validate(
        self,
        ctx: RunContext[Any],
        *,
        output_context: OutputContext,  # noqa: ARG002
        output: RawOutput,
        handler: WrapOutputValidateHandler,
    ) -> Any:
        """Validate the answer.

        Raises:
            ModelRetry: It does not fit; the message, which the model gets, lists the problems.
            LLMStoreError: It was repaired, and the database failed to note that.
        """
        text = output if isinstance(output, str) else None
        is_sound = text is None or is_json(text)
        read = output if is_sound or text is None else mend_json(text)
        if read is None:
            raise self._refusal((_NO_JSON,))
        try:
            with convert_exits(), guard_tasks():
                value = await handler(read)
        except ValidationError as error:
            raise self._refusal(tuple(describe_validation(error))) from None
        self.answer_json = read if isinstance(read, str) else to_json(read).decode()
        self.is_repaired = not is_sound
        if self.is_repaired:
            await _note_repair(ctx)
        return value

    def _refusal(self, problems: tuple[str, ...]) -> ModelRetry:
        more = len(problems) - MOST_PROBLEMS
        self.problems = (*problems[:MOST_PROBLEMS], f"and {more} more problems") if more > 0 else problems
        return ModelRetry(
            "The answer does not fit: " + "; ".join(self.problems) + ". Answer again, with the whole JSON object only."
        )


async def _note_repair(ctx: RunContext[Any]) -> None:
    model: object = ctx.model
    while isinstance(model, WrapperModel):
        model = model.wrapped
    answers = (message for message in reversed(ctx.messages) if isinstance(message, ModelResponse))
    answer = next(answers, None)
    if isinstance(model, PydanticAiLiteLLMModel) and answer is not None:
        await model.annotate(answer.provider_response_id, repaired=True)
