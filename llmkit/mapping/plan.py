"""Plan of a map, checked before anything is sent, and the names of its calls."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel
from pydantic_core import to_jsonable_python
from uuid_utils.compat import uuid7

from llmkit.canonical_json import sha256_of
from llmkit.errors import LLMBadRequest
from llmkit.mapping.columns import AnswerColumns, choose_columns
from llmkit.mapping.job import Ask, MapJob, RowKeys
from llmkit.mapping.rows import Rows

if TYPE_CHECKING:
    from llmkit.pydanticai.extraction import Extraction
    from llmkit.types import LLMResponse

__all__ = ["plan_map"]

STAGE = "map"
MAX_NAME_LENGTH = 120
# These parameters do not change an answer, so they are not part of the key.
PARAMETERS_OUTSIDE_KEY = frozenset({"pipeline_run_id", "stage", "metadata", "timeout_s", "use_cache"})

Chat = Callable[[str, dict[str, Any]], Awaitable["LLMResponse"]]
Extract = Callable[[Any, str, dict[str, Any]], Awaitable["Extraction[Any]"]]


def plan_map(
    question: Any,
    data: Any,
    *,
    template: str | None,
    name: str | None,
    concurrency: int,
    parameters: Mapping[str, Any],
    chat: Chat,
    extract: Extract,
) -> MapJob:
    """Read the input and connect it to the function that answers. Sends nothing.

    Args:
        question: A prompt, or a type to extract.
        data: A Series, a DataFrame or a list.
        template: Builds the text of a row from its columns.
        name: Name of the map; None for calls without an idempotency key.
        concurrency: Most texts in progress at once.
        parameters: Options of every call.
        chat: Answers a prompt.
        extract: Reads a type from a text.

    Raises:
        LLMBadRequest: The type, the input, the template, the name or the concurrency cannot be used.
    """
    output_type = None if isinstance(question, str) else question
    columns = choose_columns(output_type)
    rows = Rows.read(data, template=template, prompt=question if output_type is None else None)
    run = f"{STAGE}:{uuid7() if name is None else _check_map_name(name)}"
    common = {"pipeline_run_id": run, "stage": STAGE, **parameters}
    key = None if name is None else f"{run}:{_hash_question(columns, parameters)[:16]}"

    def build_options(text: str) -> dict[str, Any]:
        return dict(common) if key is None else {**common, "idempotency_key": make_key(text)}

    def ask_prompt(text: str) -> Awaitable[LLMResponse]:
        return chat(text, build_options(text))

    def ask_type(text: str) -> Awaitable[Extraction[Any]]:
        return extract(output_type, text, build_options(text))

    def make_key(text: str) -> str:
        return f"{key}:{sha256_of(text)[:32]}"

    ask: Ask = ask_prompt if output_type is None else ask_type
    sharing = None if key is None else RowKeys(name or "", run, make_key, len(key) + 33)
    return MapJob(rows, columns, ask, concurrency=concurrency, keys=sharing)


def _check_map_name(name: str) -> str:
    if not name.strip() or name != name.strip() or len(name) > MAX_NAME_LENGTH or not name.isprintable():
        raise LLMBadRequest(
            f"The name of a map must be one line of 1 to {MAX_NAME_LENGTH} characters; got {name!r:.140}"
        )
    return name


def _hash_question(columns: AnswerColumns, parameters: Mapping[str, Any]) -> str:
    """Return a hash of everything that all rows share: type and parameters. A prompt is part of each row's text."""
    schema = None if columns.answer is None else columns.answer.adapter.json_schema()
    named = {name: value for name, value in parameters.items() if name not in PARAMETERS_OUTSIDE_KEY}
    if "reasks" in named:
        named["retries"] = named.pop("reasks")  # its name in version 0.1.0, whose maps must stay resumable
    return sha256_of(_normalize_json([schema, named]))


def _normalize_json(value: Any) -> Any:
    """Return the value as JSON that is equal in every process: sets have no order of their own."""
    if isinstance(value, BaseModel):
        return _normalize_json(value.model_dump())
    if isinstance(value, Mapping):
        return {str(name): _normalize_json(part) for name, part in value.items()}
    if isinstance(value, set | frozenset):
        return sorted(str(part) for part in value)
    if isinstance(value, list | tuple):
        return [_normalize_json(part) for part in value]
    return to_jsonable_python(value, inf_nan_mode="strings", fallback=lambda other: type(other).__qualname__)
