"""Pydantic AI's messages as ours, and our answers as Pydantic AI's. Pure translation."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Sequence

from pydantic_ai.messages import (
    BinaryContent,
    CachePoint,
    FinishReason,
    InstructionPart,
    ModelMessage,
    ModelRequest,
    ModelResponse,
    ModelResponsePart,
    RetryFeedbackPart,
    RetryPromptPart,
    SystemPromptPart,
    TextContent,
    TextPart,
    ThinkingPart,
    ToolCallPart,
    ToolReturnPart,
    UserContent,
    UserPromptPart,
)
from pydantic_ai.usage import RequestUsage

from llmkit.canonical_json import has_lone_surrogate
from llmkit.errors import LLMUnsupported
from llmkit.types import Attachment, LLMResponse, Message, TokenUsage, ToolCall

__all__ = [
    "as_messages",
    "as_model_messages",
    "as_model_response",
    "as_user_content",
    "is_sent_as_it_is",
    "with_instructions",
]

# What a tag begins with, as it is, as an entity or in another width; and halves of characters, which are refused.
_MAY_HOLD_A_TAG = re.compile("[<&\uff1c\ufe64\uff06\ufe60\ud800-\udfff]")

_FINISH_REASONS: dict[str, FinishReason] = {
    "stop": "stop",
    "length": "length",
    "tool_calls": "tool_call",
    "content_filter": "content_filter",
}


def as_messages(
    messages: Iterable[ModelMessage], instructions: Sequence[InstructionPart] | None = None
) -> tuple[Message, ...]:
    """Translate a Pydantic AI conversation; instructions follow the leading system messages.

    Raises:
        LLMUnsupported: A part (such as a URL), a file or a text that cannot be sent; the message names it.
    """
    translated = with_instructions((ours for message in messages for ours in _one(message)), instructions)
    for message in translated:
        if has_lone_surrogate(message.content):
            raise LLMUnsupported(f"A {message.role} message contains half of a character (a lone surrogate)")
    return translated


def with_instructions(
    conversation: Iterable[Message], instructions: Sequence[InstructionPart] | None
) -> tuple[Message, ...]:
    """Return the conversation with the instructions behind its leading system messages."""
    messages = tuple(conversation)
    if not instructions:
        return messages
    leading = next((i for i, message in enumerate(messages) if message.role != "system"), len(messages))
    system = (Message(role="system", content=part.content) for part in instructions)
    return (*messages[:leading], *system, *messages[leading:])


def is_sent_as_it_is(conversation: Iterable[Message]) -> bool:
    """Return whether Pydantic AI would neither add to the conversation nor change or refuse it; False when in doubt."""
    for place, message in enumerate(conversation):
        if message.role == "tool" or (message.role == "system" and place) or message.tool_calls or message.attachments:
            return False
        # Pydantic AI marks its own sentences with tags, so the same tag in a text gets a note.
        if message.tool_call_id or message.tool_name or _MAY_HOLD_A_TAG.search(message.content):
            return False
    return True


def _one(message: ModelMessage) -> Iterator[Message]:
    if isinstance(message, ModelRequest):
        files: list[UserContent] = []
        for part in message.parts:
            if isinstance(part, ToolReturnPart):
                # Results of tools are text everywhere; their files follow after all results.
                text, of_tool = part.model_response_str_and_user_content()
                files += of_tool
                yield Message(role="tool", content=text, tool_call_id=part.tool_call_id, tool_name=part.tool_name)
            else:
                yield _request_part(part)
        if files:
            yield _user(files)
    elif isinstance(message, ModelResponse):
        yield _assistant(message.parts)


def _request_part(part: object) -> Message:
    if isinstance(part, SystemPromptPart):
        return Message(role="system", content=part.content)
    if isinstance(part, UserPromptPart):
        return _user(part.content)
    if isinstance(part, RetryFeedbackPart | RetryPromptPart):
        return _retry(part)
    raise LLMUnsupported(f"llmkit cannot send a {type(part).__name__} to a model")


def _retry(part: RetryFeedbackPart | RetryPromptPart) -> Message:
    """Return a retry that Pydantic AI has not turned into another part.

    It does so for agents, not for direct requests.
    """
    if isinstance(part, RetryPromptPart) and part.tool_name is not None:
        return Message(
            role="tool", content=part.model_response(), tool_call_id=part.tool_call_id, tool_name=part.tool_name
        )
    return Message(role="user", content=part.model_response())


def _user(content: str | Sequence[UserContent]) -> Message:
    """Build one message: the texts as paragraphs, the files beside them in their order."""
    texts: list[str] = []
    attachments: list[Attachment] = []
    for item in [content] if isinstance(content, str) else content:
        if isinstance(item, str | TextContent):
            texts.append(item if isinstance(item, str) else item.content)
        elif isinstance(item, BinaryContent):
            attachments.append(_attachment(item))
        elif not isinstance(item, CachePoint):
            raise LLMUnsupported(
                f"llmkit cannot send a {type(item).__name__} to a model, and fetches nothing; give text or the bytes "
                "as BinaryContent"
            )
    return Message(role="user", content="\n\n".join(texts), attachments=tuple(attachments))


def _attachment(item: BinaryContent) -> Attachment:
    what = f"llmkit cannot send a {type(item).__name__} of {item.media_type}"
    if item.vendor_metadata:
        raise LLMUnsupported(f"{what} with vendor_metadata: it would be lost")
    try:
        return Attachment.from_bytes(item.data)
    except ValueError as error:
        raise LLMUnsupported(f"{what} to a model: {error}") from None


def _assistant(parts: Sequence[ModelResponsePart]) -> Message:
    texts: list[str] = []
    calls: list[ToolCall] = []
    for part in parts:
        if isinstance(part, TextPart):
            texts.append(part.content)
        elif isinstance(part, ToolCallPart):
            calls.append(ToolCall(id=part.tool_call_id, name=part.tool_name, arguments=_arguments(part)))
        elif not isinstance(part, ThinkingPart):  # hidden reasoning is not sent back
            raise LLMUnsupported(f"llmkit cannot send a {type(part).__name__} to a model")
    return Message(role="assistant", content="\n\n".join(texts), tool_calls=tuple(calls))


def _arguments(part: ToolCallPart) -> str:
    """Return JSON of an object, whatever the model wrote: LiteLLM fails on any other."""
    written = part.args_as_json_str()
    try:
        sound = isinstance(json.loads(written), dict)
    except (ValueError, RecursionError):
        sound = False
    return written if sound else json.dumps({"INVALID_JSON": written})


def as_model_messages(messages: Sequence[Message]) -> list[ModelMessage]:
    """Translate a plain conversation of ours into a Pydantic AI history.

    Raises:
        LLMUnsupported: A tool message: the history would have to contain its call.
    """
    history: list[ModelMessage] = []
    for message in messages:
        if message.role == "tool" or message.tool_calls:
            raise LLMUnsupported("extraction takes system, user and assistant messages; use an agent for tools")
        if message.role == "assistant":
            history.append(ModelResponse(parts=[TextPart(message.content)]))
            continue
        is_system = message.role == "system"
        part = SystemPromptPart(message.content) if is_system else UserPromptPart(as_user_content(message))
        history.append(ModelRequest(parts=[part]))
    return history


def as_user_content(message: Message) -> str | list[UserContent]:
    """Convert text and attachments of a user message to Pydantic AI's types."""
    if not message.attachments:
        return message.content
    files = [BinaryContent(each.data, media_type=each.media_type) for each in message.attachments]
    return [*files, message.content] if message.content else [*files]


def as_model_response(response: LLMResponse) -> ModelResponse:
    """Translate an answer of ours."""
    parts: list[ModelResponsePart] = [TextPart(response.text)] if response.text else []
    parts += [
        ToolCallPart(tool_name=call.name, args=call.arguments, tool_call_id=call.id) for call in response.tool_calls
    ]
    return ModelResponse(
        parts=parts,
        usage=_usage(response.usage),
        model_name=response.response_model or response.route.model,
        provider_name=str(response.route.provider),
        provider_response_id=str(response.run_id) if response.run_id else None,
        finish_reason=_FINISH_REASONS.get(response.finish_reason),
        provider_details={"llm_run_id": str(response.run_id), "served_from": str(response.served_from)},
    )


def _usage(usage: TokenUsage) -> RequestUsage:
    # An unknown count is a 0 for Pydantic AI, beside this mark; the store keeps the difference.
    is_unknown = usage.input_tokens is None or usage.output_tokens is None
    details = {"reasoning_tokens": usage.reasoning_tokens} if usage.reasoning_tokens is not None else {}
    return RequestUsage(
        input_tokens=usage.input_tokens or 0,
        output_tokens=usage.output_tokens or 0,
        cache_read_tokens=usage.cached_input_tokens or 0,
        details=details,
        unmeasured_requests=int(is_unknown),
    )
