"""Arguments as people type them, checked and turned into requests: a mistake is one line that states the fix."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from difflib import get_close_matches
from typing import Any, Final

from pydantic import BaseModel, ValidationError

from llmkit.attachment import collect_attachments
from llmkit.canonical_json import has_lone_surrogate
from llmkit.errors import LLMBadRequest, LLMConfigurationError, LLMError, describe_validation
from llmkit.notebook.options import ChatOptions, list_option_names
from llmkit.types import Attachment, LLMRequest, Message, RequestContext, Route

__all__ = [
    "build_context",
    "build_request",
    "check_count",
    "check_names",
    "check_output_type",
    "check_text",
    "parse_route",
    "read_attachments",
]

# Names that other libraries use for the same options.
_OTHER_NAMES: Final[Mapping[str, str]] = {
    "max_tokens": "max_output_tokens",
    "max_completion_tokens": "max_output_tokens",
    "num_predict": "max_output_tokens",
    "model": "route",
    "provider": "route",
    "timeout": "timeout_s",
    "cache": "use_cache",
    "image": "images",
    "file": "files",
    "stop_sequences": "stop",
    "system_prompt": "system",
    "max_retries": "reasks",
    "retries": "reasks",
}
_VALUE_TYPES: Final = (str, bytes, int, float, list, tuple, dict, set, BaseModel)


def check_names(
    given: Iterable[str], known: Collection[str], error: type[LLMError] = LLMBadRequest, kind: str = "name"
) -> None:
    """Refuse an unknown name and suggest the one that was probably meant.

    Raises:
        LLMError: A name is unknown; of the class `error`.
    """
    for name in given:
        if name in known:
            continue
        near = [_OTHER_NAMES[name]] if _OTHER_NAMES.get(name) in known else get_close_matches(name, known, 1)
        hint = f"did you mean {near[0]}?" if near else f"there are: {', '.join(sorted(known))}"
        raise error(f"{name}: unknown {kind}; {hint}")


def check_text(name: str, value: Any, *, or_none: bool = True) -> None:
    """Require a string.

    Raises:
        LLMBadRequest: The value is something else, or has half of a character, which no database can look up.
    """
    if not (isinstance(value, str) or (or_none and value is None)):
        raise LLMBadRequest(f"{name} must be a string; got {type(value).__name__}")
    if isinstance(value, str) and has_lone_surrogate(value):
        raise LLMBadRequest(f"{name} contains half of a character (a lone surrogate)")


def check_count(name: str, value: Any, minimum: int) -> None:
    """Require a whole number of at least `minimum`.

    Raises:
        LLMBadRequest: The value is not a whole number, or too small.
    """
    if not isinstance(value, int) or isinstance(value, bool):
        raise LLMBadRequest(f"{name} must be a whole number; got {type(value).__name__}")
    if value < minimum:
        raise LLMBadRequest(f"{name} must be at least {minimum}; got {value}")


def check_output_type(output_type: Any) -> None:
    """Require a type, and show nothing of a value that was passed in its place.

    Raises:
        LLMBadRequest: It is a value, or `BaseModel` itself.
    """
    if output_type is BaseModel:
        raise LLMBadRequest("BaseModel itself has no fields: pass your own class, such as class Answer(BaseModel)")
    if isinstance(output_type, type):
        return
    if output_type is None or isinstance(output_type, _VALUE_TYPES) or hasattr(output_type, "__array__"):
        got = "nothing" if output_type is None else f"a value of the type {type(output_type).__name__}"
        raise LLMBadRequest(
            "The output type comes first, then the text: a Pydantic model (the class), a dataclass, or a type such "
            f"as list[str]; got {got}"
        )


def parse_route(route: Any) -> Route:
    """Read `provider/model`.

    Raises:
        LLMBadRequest: It is written differently, or the provider is unknown.
    """
    if not isinstance(route, str | Route):
        raise LLMBadRequest(
            f"a route is written provider/model, for example ollama/llama3.2; got {type(route).__name__}"
        )
    if isinstance(route, str) and route.startswith("policy:"):
        raise LLMBadRequest(f"{route!r} works in chat, extract, map and evaluate; here a route is provider/model")
    try:
        return Route.parse(route) if isinstance(route, str) else route
    except ValidationError as error:
        raise LLMBadRequest("; ".join(describe_validation(error))) from None


def build_context(workspace_id: str, **names: Any) -> RequestContext:
    """Build the context of a call: workspace, pipeline run, stage.

    Raises:
        LLMConfigurationError: A name cannot be used.
    """
    try:
        return RequestContext(workspace_id=workspace_id, **names)
    except ValidationError as error:
        raise LLMConfigurationError("; ".join(describe_validation(error))) from None


def build_request(prompt: Any, fields: Mapping[str, Any], known: Collection[str] | None = None) -> LLMRequest:
    """Build a request from a prompt and options.

    Args:
        prompt: A string or a list of messages.
        fields: Options by name, without those of the context.
        known: Names to accept; default those of `ChatOptions`.

    Raises:
        LLMBadRequest: A field is unknown or has a bad value; the message names it.
    """
    check_names(fields, list_option_names(ChatOptions) if known is None else known)
    values = dict(fields)
    system = values.pop("system", None)
    check_text("system", system)
    messages = _attach(_read_messages(prompt, values), read_attachments(values))
    if system is not None:
        messages = (Message(role="system", content=system), *messages)
    if values.get("route") is not None:
        values["route"] = parse_route(values["route"])
    try:
        request = LLMRequest(messages=messages, **values)
    except ValidationError as error:
        raise LLMBadRequest("; ".join(describe_validation(error))) from None
    if any(has_lone_surrogate(message.content) for message in request.messages):
        raise LLMBadRequest("The prompt contains half of a character (a lone surrogate)")
    return request


def read_attachments(fields: dict[str, Any]) -> tuple[Attachment, ...]:
    """Remove `images` and `files` from the options, and read them.

    Raises:
        LLMBadRequest: One cannot be read or sent; the message says why.
    """
    given = {name: fields.pop(name) for name in ("images", "files") if fields.get(name) is not None}
    try:
        return collect_attachments(**given)
    except (OSError, ValueError, TypeError) as error:
        raise LLMBadRequest(f"{' and '.join(given)}: {error}") from None


def _read_messages(prompt: Any, fields: Mapping[str, Any]) -> tuple[Any, ...]:
    if isinstance(prompt, str):
        if not prompt.strip() and fields.get("images") is None and fields.get("files") is None:
            raise LLMBadRequest("The prompt is empty; write some text")
        return (Message(role="user", content=prompt),)
    is_several = isinstance(prompt, Sequence) and not isinstance(prompt, bytes | bytearray)
    if not is_several or not all(isinstance(each, Message | Mapping) for each in prompt):
        raise LLMBadRequest(
            'The prompt must be a string, or a list of messages such as {"role": "user", "content": "..."}; got '
            f"{type(prompt).__name__}{' of something else' if is_several else ''}"
        )
    if not prompt:
        raise LLMBadRequest("The prompt is empty; pass at least one message")
    return tuple(prompt)


def _attach(messages: tuple[Any, ...], attachments: tuple[Attachment, ...]) -> tuple[Any, ...]:
    if not attachments:
        return messages
    try:
        last = Message.model_validate(messages[-1])
    except ValidationError as error:
        raise LLMBadRequest("; ".join(describe_validation(error))) from None
    if last.role != "user":
        raise LLMBadRequest("images and files belong to the last message, whose role must be user")
    return (*messages[:-1], last.model_copy(update={"attachments": last.attachments + attachments}))
