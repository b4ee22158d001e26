"""Runs as files: JSON Lines or Parquet, written by one store and read into another."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
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
from llmkit.settings import load_settings

__all__ = ["export_run", "import_run", "is_exported_run", "read_origin", "read_run"]

RUN_FORM = "llmkit-run-1"
METADATA_KEY = b"llmkit"
JSONL, PARQUET = ".jsonl", ".parquet"
# The origin of an imported run, so that an import that was interrupted can be repeated.
ORIGIN = "imported_from"
# Parquet keeps these as JSON text: their keys differ from row to row.
JSON_COLUMNS = ("scores", "scorer_errors", "score_details", "warnings", "field_logprobs")
MEGABYTE = 1_000_000
ROWS_AT_ONCE = 1_000
# The space of a number, a flag or the place of a string.
BYTES_OF_VALUE = 8
LARGEST_COUNT = 2**63 - 1
LARGEST_EPOCH = 10**6
COUNTS = ("epoch", "requests", "input_tokens", "output_tokens")

_RUN = TypeAdapter(EvalRun)
_RESULT = TypeAdapter(EvalResult)


def export_run(run: EvalRun, results: Sequence[EvalResult], file: str | Path) -> Path:
    """Write a run and its results to a new `.jsonl` or `.parquet` file, and return its path.

    A JSON Lines file begins with the run (`form`, `run`) and has one result a line; the fields are those of
    `llmkit.eval_ports.EvalRun` and `EvalResult`. A Parquet file has one row for each result, dictionaries as JSON text,
    and the run in the metadata `llmkit` of its schema. It has no inputs and targets, which are the dataset's.

    Raises:
        LLMEvaluationError: The file exists, cannot be written, or is of another kind.
        LLMConfigurationError: A Parquet file, and no pyarrow.
    """
    place = _check_suffix(file)
    head = json.dumps({"form": RUN_FORM, "run": _RUN.dump_python(run, mode="json")})
    rows = (_RESULT.dump_python(result, mode="json") for result in results)
    if place.suffix == JSONL:
        content = "".join(f"{line}\n" for line in (head, *map(json.dumps, rows))).encode("ascii")
    else:
        content = _encode_parquet(head, rows)
    try:
        with place.open("xb") as made:
            made.write(content)
    except FileExistsError:
        raise LLMEvaluationError(f"{file} exists already; name a new file.") from None
    except OSError as error:
        raise LLMEvaluationError(f"{file} cannot be written: {error.strerror or error}") from None
    return place


def _encode_parquet(head: str, rows: Iterable[Mapping[str, Any]]) -> bytes:
    pa, parquet = _import_pyarrow()
    table = pa.Table.from_pylist([{key: _encode_cell(key, value) for key, value in row.items()} for row in rows])
    made = io.BytesIO()
    parquet.write_table(table.replace_schema_metadata({METADATA_KEY: head.encode("ascii")}), made)
    return made.getvalue()


def _encode_cell(column: str, value: Any) -> Any:
    if column in JSON_COLUMNS:
        return json.dumps(value)
    # Parquet's strings are Unicode, so half of a surrogate pair becomes a question mark.
    return value.encode("utf-8", "replace").decode() if isinstance(value, str) else value


async def import_run(
    store: EvalStore, workspace_id: str, file: str | Path, *, name: str | None = None, most_mb: int | None = None
) -> EvalRun:
    """Read a run that `export_run` wrote into a store. The same file again changes nothing.

    Everything is read and checked before anything is stored. The run gets a new id, and every row must belong to the
    run of the file, so an import cannot touch another run or workspace.

    Args:
        store: Store to write to.
        workspace_id: Workspace that the run becomes part of.
        file: File to read.
        name: Another name for the run; its own when None.
        most_mb: Most memory that its results may take, in MB; the setting `max_file_mb` when None.

    Raises:
        LLMEvaluationError: The file cannot be read or is too large (the message names the line), or another run has
            the name.
        LLMConfigurationError: A Parquet file, and no pyarrow.
        LLMStoreError: The database failed; the same import again completes it.
    """
    origin, results = _read(_check_suffix(file), most_mb)
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


def read_origin(file: str | Path) -> EvalRun:
    """Return the run that a file was written from, with its own name and workspace. Reads no results.

    Raises:
        LLMEvaluationError: The file cannot be read.
        LLMConfigurationError: A Parquet file, and no pyarrow.
    """
    place = _check_suffix(file)
    with _explain_errors(place):
        records = _iterate_records(place, None)
        return _parse_head(next(records, None), place)


def is_exported_run(file: Path) -> bool:
    """Return whether a file was written by `export_run`, and is no other table or list of records."""
    if file.suffix not in (JSONL, PARQUET):
        return False
    try:
        read_origin(file)
    except (LLMEvaluationError, LLMConfigurationError):
        return False
    return True


def read_run(file: Path) -> tuple[EvalRun, list[EvalResult]]:
    """Return the run that a file was written from, and its results. Stores nothing.

    Raises:
        LLMEvaluationError: The file cannot be read or is too large; the message names the line.
        LLMConfigurationError: A Parquet file, and no pyarrow.
    """
    return _read(_check_suffix(file), None)


def _check_suffix(file: object) -> Path:
    if not isinstance(file, str | PathLike):
        raise LLMEvaluationError(f"file is the path of a {JSONL} or {PARQUET} file; got {type(file).__name__}.")
    place = Path(file).expanduser()
    if place.suffix not in (JSONL, PARQUET):
        raise LLMEvaluationError(f"{file}: a run is kept as {JSONL} or {PARQUET}.")
    return place


def _read(place: Path, most_mb: int | None) -> tuple[EvalRun, list[EvalResult]]:
    with _explain_errors(place):
        records = _iterate_records(place, most_mb)
        origin = _parse_head(next(records, None), place)
        return origin, [_parse_result(row, origin, where) for where, row in records]


@contextmanager
def _explain_errors(place: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise LLMEvaluationError(f"{place} cannot be read: {error.strerror or error}") from None
    except UnicodeDecodeError as error:
        raise LLMEvaluationError(f"{place} cannot be read: {error}") from None


def _iterate_records(place: Path, most_mb: int | None) -> Iterator[tuple[str, Any]]:
    """Yield the head and the results, each with its place in the file."""
    # A million results take about half of the default. A Parquet file of 137 kB was seen to decode to 8 GB.
    limit = (load_settings().max_file_mb if most_mb is None else most_mb) * MEGABYTE
    return _iterate_lines(place, limit) if place.suffix == JSONL else _iterate_parquet_rows(place, limit)


def _parse_head(record: tuple[str, Any] | None, place: Path) -> EvalRun:
    if record is None:
        raise LLMEvaluationError(f"{place.name} is empty.")
    where, head = record
    if not isinstance(head, dict) or head.get("form") != RUN_FORM:
        _refuse(where, f"this is no run of the form {RUN_FORM}")
    origin: EvalRun = _validate(_RUN, head.get("run"), where)
    return origin


def _parse_result(row: Any, origin: EvalRun, where: str) -> EvalResult:
    result: EvalResult = _validate(_RESULT, row, where)
    if result.eval_run_id != origin.id:
        _refuse(where, f"eval_run_id: this row belongs to another run, not to {origin.name!r}")
    if result.status not in STORED_STATUSES:
        _refuse(where, f"status: there is no {result.status!r}; a stored result is {', '.join(STORED_STATUSES)}")
    for name in COUNTS:
        count = getattr(result, name)
        if count is not None and not 0 <= count <= LARGEST_COUNT:
            _refuse(where, f"{name}: {count:.3g} is no count")
    if result.epoch > LARGEST_EPOCH:
        _refuse(where, f"epoch: there are no {result.epoch:.3g} repeats of a sample")
    if result.latency_ms is not None and not 0 <= result.latency_ms < math.inf:
        _refuse(where, f"latency_ms: {result.latency_ms} is no time")
    for metric, score in result.scores.items():
        if not math.isfinite(score):
            _refuse(where, f"scores: that of {metric!r} is not finite")
    return result


def _iterate_lines(place: Path, limit: int) -> Iterator[tuple[str, Any]]:
    left = limit
    with place.open("rb") as file:
        number = 0
        # `readline` with a limit: a file without line breaks is not read whole.
        while line := file.readline(left + 1):
            number, left = number + 1, left - len(line)
            if left < 0:
                _refuse_size(place, limit)
            if line.strip():
                where = f"{place.name}, line {number}"
                yield where, _parse_line(line.decode("utf-8"), where)


def _iterate_parquet_rows(place: Path, limit: int) -> Iterator[tuple[str, Any]]:
    pa, parquet = _import_pyarrow()
    try:
        # Strings stay references into a dictionary until their size is known.
        texts = [field.name for field in parquet.read_schema(place) if _is_text(pa, field.type)]
        with parquet.ParquetFile(place, read_dictionary=texts) as source:
            yield from _iterate_batches(source, pa, place, limit)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, pa.ArrowKeyError) as error:
        raise LLMEvaluationError(f"{place.name} is not a Parquet file: {error}") from None
    except pa.ArrowMemoryError:
        _refuse_size(place, limit)


def _iterate_batches(source: Any, pa: Any, place: Path, limit: int) -> Iterator[tuple[str, Any]]:
    """Yield the rows, of which only a few at a time are decoded, after the size of each batch was counted."""
    schema, metadata = source.schema_arrow, source.metadata
    head = (schema.metadata or {}).get(METADATA_KEY, b"null")
    yield f"{place.name}, metadata", _parse_line(head.decode(), f"{place.name}, metadata")
    nested = [field.name for field in schema if pa.types.is_nested(field.type)]
    if nested:
        _refuse(f"{place.name}, metadata", f"column {nested[0]!r} is nested, and a run has none of that kind")
    groups = [metadata.row_group(number) for number in range(metadata.num_row_groups)]
    compressed = sum(group.total_byte_size for group in groups)
    if max(compressed, metadata.num_rows * BYTES_OF_VALUE * len(schema)) > limit:
        _refuse_size(place, limit)
    size = number = 0
    for batch in source.iter_batches(ROWS_AT_ONCE):
        size += sum(_measure_column(column, pa) for column in batch.columns)
        if size > limit:
            _refuse_size(place, limit)
        for row in batch.to_pylist():
            number += 1
            where = f"{place.name}, row {number}"
            texts = {key: _parse_line(row[key], where) for key in JSON_COLUMNS if isinstance(row.get(key), str)}
            yield where, row | texts


def _is_text(pa: Any, kind: Any) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_binary(kind))


def _measure_column(column: Any, pa: Any) -> int:
    """Return the bytes that a column takes once every row has its own string."""
    if not pa.types.is_dictionary(column.type):
        return int(column.nbytes)
    from pyarrow import compute

    lengths = compute.binary_length(column.dictionary)
    return int(compute.sum(compute.take(lengths, column.indices)).as_py() or 0) + BYTES_OF_VALUE * len(column)


def _parse_line(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        _refuse(where, f"not JSON: {error}")


def _validate(adapter: TypeAdapter[Any], value: Any, where: str) -> Any:
    try:
        return adapter.validate_python(value)
    except ValidationError as error:
        _refuse(where, "; ".join(describe_validation(error)))


def _refuse(where: str, problem: str) -> NoReturn:
    raise LLMEvaluationError(f"{where}: {problem}")


def _refuse_size(place: Path, limit: int) -> NoReturn:
    raise LLMEvaluationError(
        f"{place.name} decodes to more than {limit // MEGABYTE:,} MB; nothing was imported. Raise LLM_MAX_FILE_MB if "
        "you trust the file."
    )


def _import_pyarrow() -> tuple[Any, Any]:
    try:
        import pyarrow as pa
        from pyarrow import parquet
    except ImportError:
        raise LLMConfigurationError("Parquet needs pyarrow: pip install 'llmkit-research[parquet]'") from None
    return pa, parquet
