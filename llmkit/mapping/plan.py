"""Plan of a map, checked before anything is sent, and the names of its calls."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel
from pydantic_core import to_jsonable_python
from uuid_utils.compat import uuid7

from llmkit.canonical_json import sha256_of
from llmkit.errors import LLMBadRequest
from llmkit.mapping.columns import FieldColumns, field_columns
from llmkit.mapping.job import Ask, MapJob
from llmkit.mapping.rows import Rows

if TYPE_CHECKING:
    from llmkit.pydanticai.extraction import Extraction
    from llmkit.types import LLMResponse

__all__ = ["plan_map"]

STAGE = "map"
MAX_NAME_LENGTH = 120
# What does not change an answer does not change the name of a call.
UNNAMED_PARAMETERS = frozenset({"pipeline_run_id", "stage", "metadata", "timeout_s", "use_cache"})

Chat = Callable[[str, dict[str, Any]], Awaitable["LLMResponse"]]
Extract = Callable[[Any, str, dict[str, Any]], Awaitable["Extraction[Any]"]]


def plan_map(
    what: Any,
    data: Any,
    *,
    template: str | None,
    name: str | None,
    concurrency: int,
    parameters: Mapping[str, Any],
    chat: Chat,
    extract: Extract,
) -> MapJob:
    """Read the input and join it with what answers. Sends nothing.

    Args:
        what: A prompt, or a type to extract.
        data: A Series, a DataFrame or a list.
        template: Makes the text of a row out of its columns.
        name: Of the map; None for calls without a key.
        concurrency: Most texts under way at once.
        parameters: Of every call.
        chat: Answers a prompt.
        extract: Reads a type out of a text.

    Raises:
        LLMBadRequest: The type, the input, the template, the name or the concurrency cannot be used.
    """
    output_type = None if isinstance(what, str) else what
    columns = field_columns(output_type)
    rows = Rows.of(data, template=template, prompt=what if output_type is None else None)
    run = f"{STAGE}:{uuid7() if name is None else _check_name(name)}"
    common = {"pipeline_run_id": run, "stage": STAGE, **parameters}
    key = None if name is None else f"{run}:{_digest_of_question(columns, parameters)[:16]}"

    def of(text: str) -> dict[str, Any]:
        return {**common, "idempotency_key": f"{key}:{sha256_of(text)[:32]}"} if key is not None else dict(common)

    def ask_prompt(text: str) -> Awaitable[LLMResponse]:
        return chat(text, of(text))

    def ask_type(text: str) -> Awaitable[Extraction[Any]]:
        return extract(output_type, text, of(text))

    ask: Ask = ask_prompt if output_type is None else ask_type
    return MapJob(rows, columns, ask, concurrency=concurrency)


def _check_name(name: str) -> str:
    if not name.strip() or name != name.strip() or len(name) > MAX_NAME_LENGTH or not name.isprintable():
        raise LLMBadRequest(f"The name of a map is one line of 1 to {MAX_NAME_LENGTH} characters; got {name!r:.140}")
    return name


def _digest_of_question(columns: FieldColumns, parameters: Mapping[str, Any]) -> str:
    """Hash of what is the same for every row: the type and the parameters. A prompt is part of every text."""
    schema = None if columns.answer is None else columns.answer.adapter.json_schema()
    named = {name: value for name, value in parameters.items() if name not in UNNAMED_PARAMETERS}
    return sha256_of(_plain([schema, named]))


def _plain(value: Any) -> Any:
    """Return the value as JSON that is equal in every process: sets have no order of their own."""
    if isinstance(value, BaseModel):
        return _plain(value.model_dump())
    if isinstance(value, Mapping):
        return {str(name): _plain(part) for name, part in value.items()}
    if isinstance(value, set | frozenset):
        return sorted(str(part) for part in value)
    if isinstance(value, list | tuple):
        return [_plain(part) for part in value]
    return to_jsonable_python(value, inf_nan_mode="strings", fallback=lambda other: type(other).__qualname__)
