"""What people type, checked and made into requests: a mistake is one line that says what to write instead."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from difflib import get_close_matches
from typing import Any, Final, TypeVar

from pydantic import BaseModel, ValidationError

from llmkit.attachment import attached
from llmkit.errors import LLMBadRequest, LLMConfigurationError, LLMError, describe_validation
from llmkit.types import Attachment, LLMRequest, Message, RequestContext, Route

__all__ = [
    "CHAT_NAMES",
    "CHAT_SHOWN",
    "CONTEXT_NAMES",
    "EXTRACT_NAMES",
    "EXTRACT_SHOWN",
    "MAP_SHOWN",
    "TURN_SHOWN",
    "accepting",
    "attachments_of",
    "checked_count",
    "checked_names",
    "checked_output_type",
    "checked_text",
    "context_of",
    "request_of",
    "route_of",
]

F = TypeVar("F", bound=Callable[..., Any])

CONTEXT_NAMES: Final = frozenset({"pipeline_run_id", "stage"})
_SHOWN: Final = (
    *("system", "images", "files", "route", "profile", "temperature", "max_output_tokens", "seed", "stop", "timeout_s"),
    *("idempotency_key", "use_cache", "constraints", "stage", "pipeline_run_id", "metadata"),
)
CHAT_NAMES: Final = frozenset({*LLMRequest.model_fields, *_SHOWN}) - {"messages"}
EXTRACT_NAMES: Final = CHAT_NAMES | {"instructions", "examples", "retries"}
CHAT_SHOWN: Final = _SHOWN
EXTRACT_SHOWN: Final = ("instructions", "examples", "retries", *_SHOWN)
MAP_SHOWN: Final = tuple(name for name in EXTRACT_SHOWN if name != "idempotency_key")
TURN_SHOWN: Final = tuple(name for name in _SHOWN if name not in {"system", "idempotency_key", "pipeline_run_id"})

# How the same things are called elsewhere.
_ELSEWHERE: Final[Mapping[str, str]] = {
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
    "max_retries": "retries",
}
# What stands in a signature where leaving out is not None.
_DEFAULTS: Final[Mapping[str, Any]] = {
    "retries": 1,
    "use_cache": True,
    "epoch": 0,
    "epochs": 1,
    "concurrency": "auto",
    "repairs": 1,
    "retry_failed": True,
    "scorer_timeout_s": 60,
    "warm_up": True,
    "progress": True,
}
_VALUES: Final = (str, bytes, int, float, list, tuple, dict, set, BaseModel)


def accepting(*names: str) -> Callable[[F], F]:
    """Name in the signature what `**parameters` takes, so that a notebook completes it and shows it.

    A decorator: how the function is called stays as it is.
    """

    def named(function: F) -> F:
        signature = inspect.signature(function)
        own = [each for each in signature.parameters.values() if each.kind is not inspect.Parameter.VAR_KEYWORD]
        further = [
            inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=_DEFAULTS.get(name)) for name in names
        ]
        function.__signature__ = signature.replace(parameters=[*own, *further])  # type: ignore[attr-defined]
        return function

    return named


def checked_names(
    given: Iterable[str], known: Collection[str], error: type[LLMError] = LLMBadRequest, what: str = "name"
) -> None:
    """Refuse a name that means nothing, and tell which one was meant.

    Raises:
        LLMError: Of the class `error`.
    """
    for name in given:
        if name not in known:
            near = [_ELSEWHERE[name]] if _ELSEWHERE.get(name) in known else get_close_matches(name, known, 1)
            hint = f"did you mean {near[0]}?" if near else f"there are: {', '.join(sorted(known))}"
            raise error(f"{name}: unknown {what}; {hint}")


def checked_text(name: str, text: Any, *, or_none: bool = True) -> None:
    """Refuse what is no text.

    Raises:
        LLMBadRequest: It is something else.
    """
    if not (isinstance(text, str) or (or_none and text is None)):
        raise LLMBadRequest(f"{name} must be a text; got {type(text).__name__}")


def checked_count(name: str, count: Any, least: int) -> None:
    """Refuse what is no whole number, or one that is too small.

    Raises:
        LLMBadRequest: It is none, or below `least`.
    """
    if not isinstance(count, int) or isinstance(count, bool):
        raise LLMBadRequest(f"{name} must be a whole number; got {type(count).__name__}")
    if count < least:
        raise LLMBadRequest(f"{name} must be at least {least}; got {count}")


def checked_output_type(output_type: Any) -> None:
    """Refuse a value where a type belongs, and show nothing of it.

    Raises:
        LLMBadRequest: It is a value.
    """
    if output_type is BaseModel:
        raise LLMBadRequest("BaseModel itself has no fields: give a class of your own, such as class Answer(BaseModel)")
    if isinstance(output_type, type):
        return
    if output_type is None or isinstance(output_type, _VALUES) or hasattr(output_type, "__array__"):
        got = "nothing" if output_type is None else f"a value of the type {type(output_type).__name__}"
        raise LLMBadRequest(
            "The output type comes first, then what to read: a Pydantic model (the class), a dataclass, or a type such "
            f"as list[str]; got {got}"
        )


def route_of(route: Any) -> Route:
    """Read `provider/model`.

    Raises:
        LLMBadRequest: It is not written so.
    """
    if not isinstance(route, str | Route):
        raise LLMBadRequest(
            f"a route is written provider/model, for example ollama/llama3.2; got {type(route).__name__}"
        )
    try:
        return Route.parse(route) if isinstance(route, str) else route
    except ValidationError as error:
        raise LLMBadRequest("; ".join(describe_validation(error))) from None


def context_of(workspace_id: str, **names: Any) -> RequestContext:
    """Who asks.

    Raises:
        LLMConfigurationError: A name cannot be used.
    """
    try:
        return RequestContext(workspace_id=workspace_id, **names)
    except ValidationError as error:
        raise LLMConfigurationError("; ".join(describe_validation(error))) from None


def request_of(prompt: Any, fields: Mapping[str, Any], known: Collection[str] = CHAT_NAMES) -> LLMRequest:
    """Build a request from what a person typed.

    Raises:
        LLMBadRequest: A field is unknown or has a bad value; the message names it.
    """
    checked_names(fields, known)
    values = dict(fields)
    system = values.pop("system", None)
    checked_text("system", system)
    messages = _attach(_messages(prompt, values), attachments_of(values))
    if system is not None:
        messages = (Message(role="system", content=system), *messages)
    if values.get("route") is not None:
        values["route"] = route_of(values["route"])
    if isinstance(values.get("stop"), str):
        values["stop"] = (values["stop"],)
    try:
        request = LLMRequest(messages=messages, **values)
    except ValidationError as error:
        raise LLMBadRequest("; ".join(describe_validation(error))) from None
    for message in request.messages:
        _check_whole(message.content)
    return request


def _check_whole(text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise LLMBadRequest("The prompt holds half of a character (a lone surrogate)") from None


def _messages(prompt: Any, fields: Mapping[str, Any]) -> tuple[Any, ...]:
    if isinstance(prompt, str):
        if not prompt.strip() and fields.get("images") is None and fields.get("files") is None:
            raise LLMBadRequest("The prompt is empty; give a text")
        return (Message(role="user", content=prompt),)
    is_several = isinstance(prompt, Sequence) and not isinstance(prompt, bytes | bytearray)
    if not is_several or not all(isinstance(each, Message | Mapping) for each in prompt):
        raise LLMBadRequest(
            'The prompt is a text, or a list of messages such as {"role": "user", "content": "..."}; got '
            f"{type(prompt).__name__}{' of something else' if is_several else ''}"
        )
    if not prompt:
        raise LLMBadRequest("The prompt is empty; give at least one message")
    return tuple(prompt)


def attachments_of(fields: dict[str, Any]) -> tuple[Attachment, ...]:
    """Take `images` and `files` out of what a person typed, and read them.

    Raises:
        LLMBadRequest: One cannot be read or sent; the message says why.
    """
    given = {name: fields.pop(name) for name in ("images", "files") if fields.get(name) is not None}
    try:
        return attached(**given)
    except (OSError, ValueError, TypeError) as error:
        raise LLMBadRequest(f"{' and '.join(given)}: {error}") from None


def _attach(messages: tuple[Any, ...], attachments: tuple[Attachment, ...]) -> tuple[Any, ...]:
    if not attachments:
        return messages
    last = messages[-1]
    if isinstance(last, Mapping):
        last = _message(last)
    if last.role != "user":
        raise LLMBadRequest("images and files go with the last message, which must be one of the user")
    return (*messages[:-1], last.model_copy(update={"attachments": last.attachments + attachments}))


def _message(fields: Mapping[str, Any]) -> Message:
    try:
        return Message.model_validate(fields)
    except ValidationError as error:
        raise LLMBadRequest("; ".join(describe_validation(error))) from None
