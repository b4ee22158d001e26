"""Translation of an agent's request into llmkit's fields. Anything that cannot be carried is rejected by name. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

from pydantic_ai.exceptions import UserError
from pydantic_ai.models import ModelRequestParameters
from pydantic_ai.output import OutputObjectDefinition, StructuredOutputMode
from pydantic_ai.settings import ModelSettings
from pydantic_ai.tools import ToolDefinition as AgentToolDefinition

from llmkit.pydanticai.schema import CanonicalSchema, SchemaError, canonical
from llmkit.types import NamedToolChoice, ResponseFormat, ToolDefinition

__all__ = [
    "find_schema",
    "modes_of",
    "refuse_settings",
    "response_format",
    "settings_fields",
    "tools_and_choice",
    "with_canonical",
]

ToolChoice = Literal["auto", "none", "required"] | NamedToolChoice

CARRIED_SETTINGS = frozenset(
    {"max_tokens", "temperature", "thinking", "timeout", "seed", "stop_sequences", "tool_choice"}
)
# Carried out by Pydantic AI itself, or a wish that changes no answer.
OTHERS_SETTINGS = frozenset({"request_timeout", "first_event_timeout", "framing_announcement", "cache"})


def refuse_settings(settings: ModelSettings | None) -> None:
    """Refuse a setting that would be lost without a word.

    Raises:
        UserError: The message names it.
    """
    for name, value in (settings or {}).items():
        is_usual = value is None or (name == "parallel_tool_calls" and value is True)
        if not is_usual and name not in CARRIED_SETTINGS | OTHERS_SETTINGS:
            known = ", ".join(sorted(CARRIED_SETTINGS))
            raise UserError(f"llmkit cannot carry the setting {name}={value!r:.60}; it carries {known}")
    timeout = (settings or {}).get("timeout")
    if timeout is not None and not isinstance(timeout, int | float):
        raise UserError("llmkit takes the setting timeout as a number of seconds")
    if not isinstance((settings or {}).get("thinking"), bool | None):
        raise UserError("llmkit takes the setting thinking as True or False, without a level of effort")


def settings_fields(settings: ModelSettings | None) -> dict[str, Any]:
    """Return our fields under Pydantic AI's names."""
    given = settings or {}
    fields: dict[str, Any] = {
        "temperature": given.get("temperature"),
        "max_output_tokens": given.get("max_tokens"),
        "seed": given.get("seed"),
        "stop": tuple(given["stop_sequences"]) if given.get("stop_sequences") else None,
        "thinking": given.get("thinking"),
        "timeout_s": given.get("timeout"),
    }
    return {name: value for name, value in fields.items() if value is not None}


def modes_of(parameters: ModelRequestParameters) -> tuple[StructuredOutputMode, ...]:
    """Return the output modes to try, the strongest first.

    It does not matter which where the user chose one, or wants text.

    Beside other tools the output is a tool too. Held to a schema, a model of Ollama cannot call any, and Gemini before
    3 refuses the request.
    """
    if parameters.output_mode != "auto":
        return ("tool",)
    return ("tool", "prompted") if parameters.function_tools else ("native", "tool", "prompted")


# --- schemas ------------------------------------------------------------------------------------------------------


def with_canonical(parameters: ModelRequestParameters) -> ModelRequestParameters:
    """Return the same parameters with every schema in canonical form.

    Raises:
        UserError: A schema cannot be sent; the message names the tool.
    """
    output = parameters.output_object
    return replace(
        parameters,
        function_tools=[_canonical_tool(tool) for tool in parameters.function_tools],
        output_tools=[_canonical_tool(tool) for tool in parameters.output_tools],
        output_object=None if output is None else replace(output, json_schema=_output_schema(output).json_schema),
    )


def find_schema(parameters: ModelRequestParameters) -> CanonicalSchema | None:
    """Return the schema of the output; None for text, or when several output tools each have one.

    Raises:
        UserError: It cannot be sent.
    """
    if parameters.output_object is not None and parameters.output_mode != "tool":
        return _output_schema(parameters.output_object)
    if len(parameters.output_tools) == 1:
        return _tool_schema(parameters.output_tools[0])
    return None


def _canonical_tool(tool: AgentToolDefinition) -> AgentToolDefinition:
    return replace(tool, parameters_json_schema=_tool_schema(tool).json_schema)


def _tool_schema(tool: AgentToolDefinition) -> CanonicalSchema:
    try:
        found = canonical(tool.parameters_json_schema)
    except SchemaError as error:
        raise UserError(f"The schema of the tool {tool.name!r} cannot be sent: {error}") from None
    if found.json_schema.get("type") != "object":
        raise UserError(f"The schema of the tool {tool.name!r} cannot be sent: its parameters are no object")
    return found


def _output_schema(output: OutputObjectDefinition) -> CanonicalSchema:
    # Pydantic AI takes the description out of the schema; providers look for it there.
    about = {"description": output.description} if output.description else {}
    try:
        return canonical({**output.json_schema, **about})
    except SchemaError as error:
        raise UserError(f"The schema of the output {output.name!r} cannot be sent: {error}") from None


def response_format(parameters: ModelRequestParameters, *, has_tools: bool) -> ResponseFormat | None:
    """Return the response format; None beside tools in prompted mode, where an answer may be a call."""
    output = parameters.output_object
    if parameters.output_mode == "native" and output is not None:
        return ResponseFormat(name=format_name(output.name), json_schema=output.json_schema)
    if parameters.output_mode == "prompted" and not has_tools:
        return ResponseFormat()
    return None


def format_name(name: str | None) -> str:
    """Return a name that every provider takes."""
    clean = "".join(char if char.isascii() and (char.isalnum() or char in "_-") else "_" for char in name or "output")
    return clean[:60] if clean[:1].isalpha() or clean[:1] == "_" else f"_{clean[:60]}"


# --- tools --------------------------------------------------------------------------------------------------------


def tools_and_choice(
    settings: ModelSettings | None, parameters: ModelRequestParameters
) -> tuple[tuple[ToolDefinition, ...], ToolChoice | None]:
    """Return the tools to send and the choice among them.

    A choice of several by name is carried out by sending only those, as no provider of ours accepts such a choice.

    Raises:
        UserError: A choice that is not known, or names a tool that is not there.
    """
    available = parameters.declared_tool_defs
    wanted = (settings or {}).get("tool_choice")
    can_answer_in_text = parameters.allow_text_output or parameters.output_mode in {"native", "prompted"}
    choice: ToolChoice = "auto" if can_answer_in_text else "required"
    if isinstance(wanted, list) and wanted:
        available = _select_tools(available, wanted)
        choice = NamedToolChoice(name=wanted[0]) if len(wanted) == 1 else "required"
    elif wanted == "required":
        choice = "required"
    elif wanted in ("none", []):
        available = {tool.name: tool for tool in parameters.output_tools}
    elif wanted not in (None, "auto"):
        raise UserError(
            f"llmkit cannot carry tool_choice={wanted!r}; use 'auto', 'none', 'required' or a list of names"
        )
    tools = tuple(
        ToolDefinition(name=tool.name, description=tool.description or "", parameters=tool.parameters_json_schema)
        for tool in available.values()
    )
    return tools, choice if tools else None


def _select_tools(available: Mapping[str, AgentToolDefinition], names: Sequence[str]) -> dict[str, AgentToolDefinition]:
    unknown = sorted(set(names) - set(available))
    if unknown:
        raise UserError(
            f"tool_choice names unknown tools: {', '.join(unknown)}; known: {', '.join(available) or 'none'}"
        )
    return {name: available[name] for name in names}
