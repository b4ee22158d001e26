"""Single calls of a session: chat, the plan of a call, and typed extraction."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from llmkit.errors import LLMBadRequest
from llmkit.notebook.arguments import build_request, check_count, check_output_type, read_attachments
from llmkit.notebook.core import SessionCore
from llmkit.notebook.options import ExtractOptions, list_option_names
from llmkit.types import LLMResponse, Message, RoutePlan

if TYPE_CHECKING:
    from llmkit.pydanticai import Extraction

__all__ = ["check_map_options", "explain_routes", "extract_value", "run_extraction", "send_chat"]

# `extract` takes these by name; other fields of a request travel as generation parameters.
_EXTRACT_FIELDS = ("route", "constraints", "idempotency_key", "epoch", "use_cache")

Prompt = str | Sequence[Message | Mapping[str, Any]]


async def send_chat(core: SessionCore, prompt: Prompt, options: Mapping[str, Any]) -> LLMResponse:
    """Check the arguments of `Session.chat` and ask the service."""
    context, fields = core.split_options(options)
    request = build_request(prompt, fields)
    response = await core.service.chat(request, context)
    core.fallback_warner.check_responses((response,))
    return response


def explain_routes(core: SessionCore, prompt: Prompt, options: Mapping[str, Any]) -> RoutePlan:
    """Return the plan that the router would follow for a call."""
    _, fields = core.split_options(options)
    return core.service.router.explain(build_request(prompt, fields))


async def extract_value(core: SessionCore, output_type: Any, text: str, options: Mapping[str, Any]) -> Any:
    """Return only the value of `run_extraction`."""
    return (await run_extraction(core, output_type, text, options)).value


async def run_extraction(core: SessionCore, output_type: Any, text: str, options: Mapping[str, Any]) -> Extraction[Any]:
    """Check the arguments of `Session.extract` and run the extraction."""
    from llmkit.pydanticai import extract, extraction_prompt

    context, fields = core.split_options(options)
    check_output_type(output_type)
    attachments = read_attachments(fields)
    shots = {name: fields.pop(name) for name in ("instructions", "examples") if name in fields}
    if isinstance(text, str) and not text.strip() and not attachments:
        raise LLMBadRequest("There is nothing to read: pass a text, images=... or files=...")
    messages = extraction_prompt(output_type, text, attachments=attachments, **shots)
    reasks = fields.pop("reasks", 1)
    check_count("reasks", reasks, 0)
    # Unknown or bad fields are refused here, before anything else happens.
    request = build_request(messages, fields, list_option_names(ExtractOptions))
    # `system` is part of the request's messages by now.
    parameters = {name: getattr(request, name) for name in fields if name not in (*_EXTRACT_FIELDS, "system")}
    extraction = await extract(
        core.service,
        output_type,
        request.messages,
        context=context,
        parameters=parameters,
        reasks=reasks,
        **{name: getattr(request, name) for name in _EXTRACT_FIELDS},
    )
    core.fallback_warner.check_responses(extraction.responses)
    return extraction


def check_map_options(core: SessionCore, question: Any, options: Mapping[str, Any]) -> None:
    """Refuse options with which no row of a map could be asked.

    Raises:
        LLMBadRequest: One cannot be used.
    """
    _, fields = core.split_options(options)
    if isinstance(question, str):
        build_request(question, fields)
        return
    from llmkit.pydanticai import extraction_prompt

    shots = {name: fields.pop(name) for name in ("instructions", "examples") if name in fields}
    check_output_type(question)
    messages = extraction_prompt(question, "?", **shots)
    check_count("reasks", fields.pop("reasks", 1), 0)
    build_request(messages, fields, list_option_names(ExtractOptions))
