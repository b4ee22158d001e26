"""The prompt of an extraction: what to read, examples built from the type, and the text."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from llmkit.canonical_json import has_lone_surrogate
from llmkit.errors import LLMBadRequest
from llmkit.pydanticai.output_shape import OutputShape
from llmkit.types import Attachment, Message

__all__ = ["extraction_prompt"]

# A base model goes on where the text stops. An answer begins right behind the colon, on the same line.
_QUESTION = "Text: {text}\nJSON:"


def extraction_prompt(
    output_type: Any,
    text: str,
    *,
    examples: Sequence[tuple[str, Any]] = (),
    instructions: str | None = None,
    attachments: Sequence[Attachment] = (),
) -> tuple[Message, ...]:
    """Return the conversation that requests an instance of a type.

    Args:
        output_type: A Pydantic model, or any type that Pydantic can validate.
        text: What to read; may be empty beside attachments.
        examples: Pairs of a text and its value: an instance, or what validates to one. Each becomes a question and
            its answer, in the JSON that the model is to write.
        instructions: Takes the place of the sentence in front.
        attachments: Images and documents to read, with the text.

    Raises:
        LLMBadRequest: `output_type` is not a type, an example is not a pair or does not fit, or a text is not a string.
    """
    answer: OutputShape[Any] = OutputShape.of(output_type)
    text = _text("text", text, "; `map` reads a whole column")
    lead = _lead(answer.name, text, attachments) if instructions is None else _text("instructions", instructions)
    messages = [Message(role="system", content=lead)] if lead else []
    if not isinstance(examples, Iterable):
        raise LLMBadRequest(f"examples are a list of pairs of a text and its value; got {type(examples).__name__}")
    for number, example in enumerate(examples, start=1):
        if not isinstance(example, tuple | list) or len(example) != 2:
            raise LLMBadRequest(f"examples are pairs of a text and its value; number {number} is not")
        sample, value = example
        question = _question(f"the text of example {number}", sample)
        messages += [question, Message(role="assistant", content=answer.write_json(value))]
    question = _question("text", text) if text or not attachments else Message(role="user", content="JSON:")
    return (*messages, question.model_copy(update={"attachments": tuple(attachments)}))


def _lead(name: str, text: str, attachments: Sequence[Attachment]) -> str:
    if not attachments:
        return f"Read the {name} out of the text. Answer with JSON only."
    where = "the text and what is attached to it" if text else "what is attached"
    return f"Read the {name} out of {where}. Answer with JSON only."


def _question(name: str, text: Any) -> Message:
    return Message(role="user", content=_QUESTION.format(text=_text(name, text).strip()))


def _text(name: str, text: Any, advice: str = "") -> str:
    if not isinstance(text, str):
        raise LLMBadRequest(f"{name} must be a string; got {type(text).__name__}{advice}")
    if has_lone_surrogate(text):
        raise LLMBadRequest(f"{name} contains half of a character (a lone surrogate)")
    return text
