"""Runs as files: JSON Lines or Parquet, written by one store and read into another."""

from __future__ import annotations

import io
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from os import PathLike
from pathlib import Path
from typing import Any, NoReturn

from pydantic import TypeAdapter, ValidationError
from uuid_utils.compat import uuid7

from llmkit.errors import LLMConfigurationError, LLMEvaluationError, describe_validation
from llmkit.eval_ports import EvalResult, EvalRun, EvalStore
from llmkit.evals.call_names import check_run_name
from llmkit.evals.results import STORED_STATUSES

__all__ = ["export_run", "import_run"]

RUN_FORM = "llmkit-run-1"
METADATA_KEY = b"llmkit"
JSONL, PARQUET = ".jsonl", ".parquet"
# Where an imported run came from, so that an import that was interrupted can be repeated.
ORIGIN = "imported_from"
# Parquet keeps these as JSON text: their keys differ from row to row.
JSON_COLUMNS = ("scores", "scorer_errors", "score_details", "warnings")

_RUN = TypeAdapter(EvalRun)
_RESULT = TypeAdapter(EvalResult)


def export_run(run: EvalRun, results: Sequence[EvalResult], file: str | Path) -> None:
    """Write a run and its results to a new `.jsonl` or `.parquet` file.

    A JSON Lines file begins with the run (`form`, `run`) and has one result a line; the fields are those of
    `llmkit.ports.EvalRun` and `EvalResult`. A Parquet file has one row for each result, dictionaries as JSON text, and
    the run in the metadata `llmkit` of its schema. Inputs and targets are not part of it: they are the dataset's.

    Raises:
        LLMEvaluationError: The file exists, cannot be written, or is of another kind.
        LLMConfigurationError: A Parquet file, and no pyarrow.
    """
    place = _check_suffix(file)
    head = json.dumps({"form": RUN_FORM, "run": _RUN.dump_python(run, mode="json")})
    rows = (_RESULT.dump_python(result, mode="json") for result in results)
    content = _jsonl(head, rows) if place.suffix == JSONL else _parquet(head, rows)
    try:
        with place.open("xb") as made:
            made.write(content)
    except FileExistsError:
        raise LLMEvaluationError(f"{file} exists already; name a new file.") from None
    except OSError as error:
        raise LLMEvaluationError(f"{file} cannot be written: {error.strerror or error}") from None


def _jsonl(head: str, rows: Iterable[Mapping[str, Any]]) -> bytes:
    return "".join(f"{line}\n" for line in (head, *map(json.dumps, rows))).encode("ascii")


def _parquet(head: str, rows: Iterable[Mapping[str, Any]]) -> bytes:
    pa, parquet = _pyarrow()
    table = pa.Table.from_pylist([{key: _cell(key, value) for key, value in row.items()} for row in rows])
    made = io.BytesIO()
    parquet.write_table(table.replace_schema_metadata({METADATA_KEY: head.encode("ascii")}), made)
    return made.getvalue()


def _cell(column: str, value: Any) -> Any:
    if column in JSON_COLUMNS:
        return json.dumps(value)
    # Parquet's texts are Unicode: half of a character becomes a question mark.
    return value.encode("utf-8", "replace").decode() if isinstance(value, str) else value


async def import_run(store: EvalStore, workspace_id: str, file: str | Path, *, name: str | None = None) -> EvalRun:
    """Read a run that `export_run` wrote into a store. The same file again changes nothing.

    Args:
        store: Where it goes.
        workspace_id: Whose it becomes.
        file: The file.
        name: Another name for the run; its own when None.

    Raises:
        LLMEvaluationError: The file cannot be read (the message names the line), or another run has the name.
        LLMConfigurationError: A Parquet file, and no pyarrow.
        LLMStoreError: The database failed; the same import again completes it.
    """
    place = _check_suffix(file)
    origin, results = _read(place)
    wanted_name = check_run_name(origin.name if name is None else name)
    spec = {**origin.spec, ORIGIN: str(origin.id)}
    wanted = replace(origin, id=uuid7(), workspace_id=workspace_id, name=wanted_name, spec=spec)
    run = await store.open_run(wanted)
    if run.spec.get(ORIGIN) != str(origin.id):
        raise LLMEvaluationError(
            f"There is another evaluation {run.name!r} in this workspace; import it under another name (name=, --name)."
        )
    for result in results:
        await store.save_result(replace(result, eval_run_id=run.id))
    return run


def _check_suffix(file: object) -> Path:
    if not isinstance(file, str | PathLike):
        raise LLMEvaluationError(f"file is the path of a {JSONL} or {PARQUET} file; got {type(file).__name__}.")
    place = Path(file).expanduser()
    if place.suffix not in (JSONL, PARQUET):
        raise LLMEvaluationError(f"{file}: a run is kept as {JSONL} or {PARQUET}.")
    return place


def _read(place: Path) -> tuple[EvalRun, list[EvalResult]]:
    try:
        records = list(_lines(place) if place.suffix == JSONL else _parquet_rows(place))
    except OSError as error:
        raise LLMEvaluationError(f"{place} cannot be read: {error.strerror or error}") from None
    except UnicodeDecodeError as error:
        raise LLMEvaluationError(f"{place} cannot be read: {error}") from None
    if not records:
        raise LLMEvaluationError(f"{place.name} is empty.")
    (where, head), *rest = records
    if not isinstance(head, dict) or head.get("form") != RUN_FORM:
        _refuse(where, f"this is no run of the form {RUN_FORM}")
    return _valid(_RUN, head.get("run"), where), [_result(row, where) for where, row in rest]


def _result(row: Any, where: str) -> EvalResult:
    result: EvalResult = _valid(_RESULT, row, where)
    if result.status not in STORED_STATUSES:
        _refuse(where, f"status: there is no {result.status!r}; a stored result is {', '.join(STORED_STATUSES)}")
    return result


def _lines(place: Path) -> Iterator[tuple[str, Any]]:
    for number, line in enumerate(place.read_text(encoding="utf-8").split("\n"), start=1):
        if line.strip():
            where = f"{place.name}, line {number}"
            yield where, _parse_line(line, where)


def _parquet_rows(place: Path) -> Iterator[tuple[str, Any]]:
    pa, parquet = _pyarrow()
    try:
        table = parquet.read_table(place)
    except pa.ArrowInvalid as error:
        raise LLMEvaluationError(f"{place.name} is not a Parquet file: {error}") from None
    head = (table.schema.metadata or {}).get(METADATA_KEY, b"null")
    yield f"{place.name}, metadata", _parse_line(head.decode(), f"{place.name}, metadata")
    for number, row in enumerate(table.to_pylist(), start=1):
        where = f"{place.name}, row {number}"
        texts = {key: _parse_line(row[key], where) for key in JSON_COLUMNS if isinstance(row.get(key), str)}
        yield where, row | texts


def _parse_line(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        _refuse(where, f"not JSON: {error}")


def _valid(adapter: TypeAdapter[Any], value: Any, where: str) -> Any:
    try:
        return adapter.validate_python(value)
    except ValidationError as error:
        _refuse(where, "; ".join(describe_validation(error)))


def _refuse(where: str, problem: str) -> NoReturn:
    raise LLMEvaluationError(f"{where}: {problem}")


def _pyarrow() -> tuple[Any, Any]:
    try:
        import pyarrow as pa
        from pyarrow import parquet
    except ImportError:
        raise LLMConfigurationError("Parquet needs pyarrow: pip install 'llmkit-research[parquet]'") from None
    return pa, parquet
