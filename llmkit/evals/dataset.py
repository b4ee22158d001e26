"""Samples and where they come from: lists, DataFrames, JSON Lines, CSV and Parquet."""

from __future__ import annotations

import csv
import io
import json
import math
import random
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import KW_ONLY, replace
from dataclasses import dataclass as plain_dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeAlias

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, JsonValue, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass
from pydantic_core import PydanticSerializationError, to_jsonable_python

from llmkit.canonical import sha256_of
from llmkit.errors import LLMConfigurationError, LLMDatasetError, describe_validation

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["Dataset", "DatasetSource", "Sample"]

ID_LENGTH = 16
LARGEST_CELL = 2**31 - 1
NESTED_COLUMNS = ("input", "target", "metadata")
SAMPLE_FIELDS = ("input", "target", "id", "group", "metadata")


def _ordered(value: Any) -> Any:
    """Sets as sorted lists, because their own order changes with every process; what cannot be sent is refused."""
    if isinstance(value, BaseModel):
        value = value.model_dump(by_alias=True)
    if isinstance(value, Mapping):
        return {key: _ordered(item) for key, item in value.items()}
    if isinstance(value, set | frozenset):
        return sorted((_ordered(item) for item in value), key=repr)
    if isinstance(value, list | tuple):
        return [_ordered(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError("NaN and infinities are not JSON")
    if isinstance(value, str):
        _require_unicode(value)
    return value


def _require_unicode(text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError("holds half of a character (a lone surrogate)") from None


def _foreign(value: Any) -> Any:
    """What numpy scalars and arrays hold."""
    if hasattr(value, "tolist"):
        return value.tolist()
    raise TypeError(f"{type(value).__name__} is not JSON")


def _jsonable(value: Any) -> Any:
    try:
        return _ordered(to_jsonable_python(_ordered(value), fallback=_foreign))
    except (PydanticSerializationError, TypeError) as error:
        raise ValueError(f"cannot be written as JSON ({error})") from None


def _text_or_object(value: Any) -> Any:
    plain = _jsonable(value)
    if not isinstance(plain, str | dict):
        raise ValueError(f"must be text or a JSON object; got {type(value).__name__}")
    return plain


def _text(value: Any) -> Any:
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else value


Json = Annotated[JsonValue, BeforeValidator(_jsonable)]
Label = Annotated[str, Field(min_length=1, max_length=255), BeforeValidator(_text)]


@dataclass(frozen=True, config=ConfigDict(extra="forbid", hide_input_in_errors=True))
class Sample:
    """One case: what the model is asked about and what the right answer is.

    Attributes:
        input: Text, or a JSON object whose fields a prompt template can name.
        target: What the validated output is compared with, as JSON: an object of (some of) its fields, or a bare value
            when the output type has one field. A Pydantic model, date or set is turned into JSON. None means unknown.
        id: Name that is unique in the dataset; a dataset gives one made of the content when it is None.
        group: Samples of one group (a document, a patient) are not independent; statistics cluster by it.
        metadata: Free JSON.
    """

    input: Annotated[str | dict[str, JsonValue], BeforeValidator(_text_or_object)]
    target: Json = None
    _: KW_ONLY
    id: Label | None = None
    group: Label | None = None
    metadata: Annotated[dict[str, JsonValue], BeforeValidator(_jsonable)] = Field(default_factory=dict)

    @property
    def key(self) -> str:
        """The id, of a sample that a dataset holds."""
        if self.id is None:
            raise ValueError("this sample has no id yet; a Dataset gives one")
        return self.id

    def content(self) -> dict[str, Any]:
        """Everything but the id, as JSON-able data."""
        return {"input": self.input, "target": self.target, "group": self.group, "metadata": self.metadata}


DatasetSource: TypeAlias = "str | Path | Iterable[Sample] | Dataset | pd.DataFrame"
Record: TypeAlias = tuple[str, Mapping[str, Any]]
_SAMPLE: TypeAdapter[Sample] = TypeAdapter(Sample)


@plain_dataclass(frozen=True)
class Dataset:
    """Samples in order, each with an id of its own.

    Build it with `Dataset.load`; `filter`, `shuffle` and `limit` return new ones and keep the ids.
    """

    samples: tuple[Sample, ...]
    source: str = "samples"

    @classmethod
    def load(cls, source: DatasetSource, *, base_dir: Path | None = None) -> Dataset:
        """Read a dataset.

        Args:
            source: A `.jsonl`, `.csv` or `.parquet` file, samples, or a DataFrame. Columns are named as the fields of
                `Sample`; `input.question`, `target.amount` or `metadata.page` fill one field of an object.
            base_dir: What a relative path is relative to; the working directory when None.

        Raises:
            LLMDatasetError: The file is missing or a line is malformed; the message names file, line and field.
            LLMConfigurationError: A Parquet file, and no package that reads it.
        """
        if isinstance(source, Dataset):
            return source
        if isinstance(source, str | Path):
            path = _existing(Path(source), base_dir)
            return cls._of(_samples(_records(path)), path.name)
        if _is_frame(source):
            return cls._of(_samples(_frame_records(source, "DataFrame", first=0)), "DataFrame")
        return cls._of(_given(source), "samples")

    @classmethod
    def _of(cls, placed: Iterable[tuple[str, Sample]], source: str) -> Dataset:
        pairs = list(placed)
        if not pairs:
            raise LLMDatasetError(f"{source} has no samples.")
        return cls(tuple(_identified(pairs)), source)

    def __len__(self) -> int:
        return len(self.samples)

    def __iter__(self) -> Iterator[Sample]:
        return iter(self.samples)

    @cached_property
    def sha256(self) -> str:
        """Hash of all ids and contents, in order."""
        return sha256_of([[sample.id, sample.content()] for sample in self.samples])

    @cached_property
    def by_id(self) -> dict[str, Sample]:
        """The samples by their ids."""
        return {sample.key: sample for sample in self.samples}

    def filter(self, keep: Callable[[Sample], bool]) -> Dataset:
        """Only the samples for which `keep` is true."""
        return replace(self, samples=tuple(sample for sample in self.samples if keep(sample)))

    def shuffle(self, seed: int) -> Dataset:
        """Another order, the same one for the same seed."""
        order = list(self.samples)
        random.Random(seed).shuffle(order)  # noqa: S311 (an order of samples is no secret)
        return replace(self, samples=tuple(order))

    def limit(self, count: int | None) -> Dataset:
        """The first `count` samples; all of them when it is None.

        Raises:
            LLMDatasetError: The count is below 1.
        """
        if count is not None and count < 1:
            raise LLMDatasetError(f"The limit of samples must be at least 1; got {count}.")
        return replace(self, samples=self.samples[:count])


def _existing(path: Path, base_dir: Path | None) -> Path:
    place = (base_dir or Path.cwd()) / path.expanduser()
    if place.is_file():
        return place
    hint = (
        ""
        if path.is_absolute()
        else " A relative path starts at the task file, or in a notebook at the working directory."
    )
    raise LLMDatasetError(f"There is no dataset file {place}.{hint}")


def _records(path: Path) -> Iterator[Record]:
    readers: dict[str, Callable[[Path], Iterator[Record]]] = {
        ".jsonl": _jsonl_records,
        ".ndjson": _jsonl_records,
        ".csv": _csv_records,
        ".parquet": _parquet_records,
    }
    reader = readers.get(path.suffix.lower())
    if reader is None:
        raise LLMDatasetError(f"{path.name}: unknown kind of dataset file; known kinds: {', '.join(readers)}")
    try:
        yield from reader(path)
    except OSError as error:
        raise LLMDatasetError(f"{path.name} cannot be read: {error.strerror or error}") from None


def _read_text(path: Path) -> str:
    raw = path.read_bytes()
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise LLMDatasetError(f"{path.name}, line {line}: not UTF-8 text") from None


def _jsonl_records(path: Path) -> Iterator[Record]:
    # Not splitlines(): it also splits at characters that JSON allows inside a string.
    for number, line in enumerate(_read_text(path).split("\n"), start=1):
        if line.strip():
            place = f"{path.name}, line {number}"
            yield place, _json_object(line, place)


def _json_object(line: str, place: str) -> Mapping[str, Any]:
    try:
        record = json.loads(line, parse_constant=_no_constant)
    except json.JSONDecodeError as error:
        raise LLMDatasetError(f"{place}, column {error.colno}: not JSON: {error.msg}") from None
    except (ValueError, RecursionError) as error:
        raise LLMDatasetError(f"{place}: not JSON: {error}") from None
    if not isinstance(record, dict):
        raise LLMDatasetError(f"{place}: a sample is a JSON object with the field input; got {type(record).__name__}")
    return record


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not a JSON value")


def _csv_records(path: Path) -> Iterator[Record]:
    lines = csv.reader(io.StringIO(_read_text(path), newline=""), strict=True)
    before = csv.field_size_limit(LARGEST_CELL)
    try:
        rows = [(lines.line_num, row) for row in lines if row]
    except csv.Error as error:
        raise LLMDatasetError(f"{path.name}, line {lines.line_num}: not CSV: {error}") from None
    finally:
        csv.field_size_limit(before)
    columns = _columns(rows[0][1], path.name) if rows else []
    for number, row in rows[1:]:
        place = f"{path.name}, line {number}"
        if len(row) != len(columns):
            raise LLMDatasetError(f"{place}: {len(row)} cells, but the header has {len(columns)} columns")
        yield place, _nested({name: cell or None for name, cell in zip(columns, row, strict=True)}, place)


def _parquet_records(path: Path) -> Iterator[Record]:
    import pandas as pd

    try:
        frame = pd.read_parquet(path)
    except ImportError:
        raise LLMConfigurationError(
            f"{path.name}: reading Parquet needs pyarrow: pip install 'llmkit[parquet]'"
        ) from None
    except ValueError as error:
        raise LLMDatasetError(f"{path.name} is not a Parquet file: {error}") from None
    yield from _frame_records(frame, path.name, first=1)


def _is_frame(source: object) -> bool:
    # A DataFrame cannot be here unless its library is loaded already.
    pandas = sys.modules.get("pandas")
    return pandas is not None and isinstance(source, pandas.DataFrame)


def _frame_records(frame: Any, source: str, *, first: int) -> Iterator[Record]:
    columns = _columns([str(name) for name in frame.columns], source)
    for number, row in enumerate(frame.itertuples(index=False, name=None), start=first):
        place = f"{source}, row {number}"
        yield place, _nested({name: _cell(value) for name, value in zip(columns, row, strict=True)}, place)


def _cell(value: Any) -> Any:
    from pandas import isna
    from pandas.api.types import is_scalar

    return None if is_scalar(value) and isna(value) else value


def _columns(names: list[str], source: str) -> list[str]:
    names = [name.strip() for name in names]
    for name in names:
        if name not in SAMPLE_FIELDS and name.partition(".")[0] not in NESTED_COLUMNS:
            known = ", ".join(SAMPLE_FIELDS)
            raise LLMDatasetError(f"{source}: unknown column {name!r}; known columns: {known}, and metadata.{name}")
        if names.count(name) > 1:
            raise LLMDatasetError(f"{source}: there are two columns {name!r}")
    return names


def _nested(row: Mapping[str, Any], place: str) -> dict[str, Any]:
    """Turn columns `target.amount` into one object `target`; an empty cell is a field that is not there."""
    record: dict[str, Any] = {}
    for name, value in row.items():
        parent, dot, child = name.partition(".")
        if value is None:
            continue
        if not dot:
            record[name] = _metadata(value, place) if name == "metadata" else value
        elif isinstance(record.setdefault(parent, {}), dict):
            record[parent][child] = value
        else:
            raise LLMDatasetError(f"{place}: {name}: there is a column {parent} as well")
    return record


def _metadata(value: Any, place: str) -> Any:
    return _json_object(value, f"{place}: metadata") if isinstance(value, str) else value


def _samples(records: Iterable[Record]) -> Iterator[tuple[str, Sample]]:
    for place, record in records:
        try:
            yield place, _SAMPLE.validate_python(dict(record))
        except ValidationError as error:
            raise LLMDatasetError(f"{place}: {'; '.join(describe_validation(error))}") from None


def _given(samples: Iterable[Any]) -> Iterator[tuple[str, Sample]]:
    for number, sample in enumerate(samples):
        if not isinstance(sample, Sample):
            raise LLMDatasetError(f"Sample {number} of the list is a {type(sample).__name__}, not a Sample.")
        yield f"sample {number}", sample


def _identified(pairs: list[tuple[str, Sample]]) -> Iterator[Sample]:
    """Give an id to each sample that has none. The same content twice gets the suffixes -2, -3 and so on."""
    taken = _explicit_ids(pairs)
    counts: dict[str, int] = {}
    for _place, sample in pairs:
        yield sample if sample.id is not None else replace(sample, id=_content_id(sample, taken, counts))


def _content_id(sample: Sample, taken: set[str], counts: dict[str, int]) -> str:
    stem = sha256_of(sample.content())[:ID_LENGTH]
    while True:
        counts[stem] = counts.get(stem, 0) + 1
        name = stem if counts[stem] == 1 else f"{stem}-{counts[stem]}"
        if name not in taken:
            taken.add(name)
            return name


def _explicit_ids(pairs: list[tuple[str, Sample]]) -> set[str]:
    places: dict[str, str] = {}
    for place, sample in pairs:
        if sample.id is None:
            continue
        if sample.id in places:
            raise LLMDatasetError(f"{place}: id: {sample.id!r} is already the id of {places[sample.id]}")
        places[sample.id] = place
    return set(places)
