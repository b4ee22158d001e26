"""Samples, and datasets of them in order."""

from __future__ import annotations

import json
import math
import random
from bisect import bisect_right
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence, Sized
from contextlib import closing
from dataclasses import KW_ONLY, field, fields, replace
from dataclasses import dataclass as plain_dataclass
from datetime import date
from decimal import Decimal
from difflib import get_close_matches
from functools import cached_property, wraps
from itertools import accumulate, count, islice
from numbers import Integral, Real
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeAlias, TypeVar
from uuid import UUID

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    JsonValue,
    TypeAdapter,
    ValidationError,
)
from pydantic.dataclasses import dataclass
from pydantic_core import PydanticSerializationError, to_jsonable_python

from llmkit.canonical_json import has_lone_surrogate, sha256_of
from llmkit.errors import LLMDatasetError, describe_validation
from llmkit.evals.dataset.columns import Columns, FieldSource, RecordMapper
from llmkit.evals.dataset.files import find_file, open_file
from llmkit.evals.dataset.tables import LARGEST_WHOLE_FLOAT, Records, open_table, read_item
from llmkit.settings import load_settings

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["Dataset", "DatasetSource", "KeptItems", "Reading", "Sample"]

ID_LENGTH = 16
# Arguments of a sample that need no name.
MOST_POSITIONS = 2
SHARE_TOLERANCE = 1e-9
PLAIN_TYPES = (bool, int)

T = TypeVar("T")


def _order_sets(value: Any) -> Any:
    """Turn sets into sorted lists, because their order differs between processes. Reject values that cannot be sent."""
    # Exact types first: asking whether a string is a Mapping took a third of the time of reading a file.
    if value is None or type(value) in PLAIN_TYPES:
        return value
    if isinstance(value, str):
        if has_lone_surrogate(value):
            raise ValueError("contains half of a character (a lone surrogate)")
        return value
    if isinstance(value, BaseModel):
        value = value.model_dump(by_alias=True)
    if isinstance(value, Mapping):
        return {key: _order_sets(item) for key, item in value.items()}
    if isinstance(value, set | frozenset):
        return sorted((_order_sets(item) for item in value), key=repr)
    if isinstance(value, list | tuple):
        return [_order_sets(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError("NaN and infinities are not JSON")
    return value


def _foreign(value: Any) -> Any:
    """Convert numpy scalars and arrays to Python values."""
    if hasattr(value, "tolist"):
        return value.tolist()
    raise TypeError(f"{type(value).__name__} is not JSON")


def _jsonable(value: Any) -> Any:
    try:
        return _order_sets(to_jsonable_python(_order_sets(value), fallback=_foreign))
    except (PydanticSerializationError, TypeError) as error:
        raise ValueError(f"cannot be written as JSON ({error})") from None
    except ValueError as error:
        # pydantic has a limit of its own, which is met before or after Python's by how deep the caller's stack is.
        if "depth" in str(error):
            raise RecursionError from None
        raise


def _text_or_object(value: Any) -> Any:
    plain = _jsonable(value)
    if not isinstance(plain, str | dict):
        raise ValueError(f"must be text or a JSON object; got {type(value).__name__}")
    return plain


def _convert_label(value: Any) -> Any:
    """Write a number, UUID or date as the string it stands for; return anything else as it is, to be refused."""
    if isinstance(value, bool):
        return value
    if isinstance(value, Integral | UUID):
        return str(value)
    if isinstance(value, float | Real | Decimal):
        # Pandas turns a column of integers into floats where one is missing.
        number = float(value)
        return str(int(number)) if number.is_integer() and abs(number) < LARGEST_WHOLE_FLOAT else value
    return value.isoformat() if isinstance(value, date) else value


def _convert_metadata(value: Any) -> Any:
    return {} if value is None else _jsonable(value)


def _convert_target(value: Any) -> Any:
    return _jsonable(_write_models(value))


def _write_models(value: Any) -> Any:
    """Write models as an answer would be written: a target is validated as answers are."""
    if isinstance(value, BaseModel):
        # Imported here: Pydantic AI takes a second, and most targets are not models.
        from llmkit.pydanticai.written_form import find_written_form

        text = find_written_form(TypeAdapter(type(value)), value)
        if text is None:
            raise ValueError(
                f"no JSON is read as this {type(value).__name__}; give the target as JSON, as a model would write it"
            )
        return json.loads(text)
    if isinstance(value, Mapping):
        return {key: _write_models(item) for key, item in value.items()}
    return [_write_models(item) for item in value] if isinstance(value, list | tuple) else value


Target = Annotated[JsonValue, BeforeValidator(_convert_target)]


def _storable(text: str) -> str:
    if "\0" in text:
        raise ValueError("contains the character NUL, which databases refuse")
    return text


Label = Annotated[str, Field(min_length=1, max_length=255), BeforeValidator(_convert_label), AfterValidator(_storable)]


def _explain_arguments(cls: type[T]) -> type[T]:
    """Make a class whose arguments Pydantic checks raise one line that says what it takes."""
    check = cls.__init__
    names = [each.name for each in fields(cls)]  # type: ignore[arg-type]

    @wraps(check)
    def create(self: T, *values: Any, **named: Any) -> None:
        try:
            check(self, *values, **named)
        except ValidationError as error:
            unknown = next((name for name in named if name not in names), None)
            if unknown is not None:
                near = get_close_matches(unknown, names, n=1)
                hint = f"did you mean {near[0]}=?" if near else f"other values go into metadata={{{unknown!r}: ...}}"
                problem = f"there is no {unknown}=; it takes {', '.join(names)}; {hint}"
            elif len(values) > MOST_POSITIONS:
                problem = f"it takes input and target by position; name the others: {', '.join(names[MOST_POSITIONS:])}"
            else:
                # Pydantic numbers what was given by position.
                positions = {str(number): name for number, name in enumerate(names)}
                lines = [line.partition(":") for line in describe_validation(error)]
                problem = "; ".join(f"{positions.get(where, where)}{colon}{what}" for where, colon, what in lines)
            raise LLMDatasetError(f"{cls.__name__}: {problem}") from None

    cls.__init__ = create  # type: ignore[assignment,method-assign]
    return cls


@_explain_arguments
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
    target: Target = None
    _: KW_ONLY
    id: Label | None = None
    group: Label | None = None
    metadata: Annotated[dict[str, JsonValue], BeforeValidator(_convert_metadata)] = Field(default_factory=dict)

    @property
    def key(self) -> str:
        """The id, of a sample that a dataset holds."""
        if self.id is None:
            raise ValueError("this sample has no id yet; a Dataset gives one")
        return self.id

    def content(self) -> dict[str, Any]:
        """Return everything but the id, as JSON-able data."""
        return {"input": self.input, "target": self.target, "group": self.group, "metadata": self.metadata}


# Also the tables of other libraries, which need not be installed; see `open_table`.
DatasetSource: TypeAlias = "str | Path | Iterable[Sample] | Iterable[Mapping[str, Any]] | Dataset | pd.DataFrame | Any"
_SAMPLE: TypeAdapter[Sample] = TypeAdapter(Sample)


@plain_dataclass(frozen=True)
class Dataset:
    """Samples in order, each with an id of its own.

    Build it with `Dataset.load`; `filter`, `shuffle`, `splits` and `limit` return new ones and keep the ids.
    """

    samples: tuple[Sample, ...]
    source: str = "samples"
    # Hashes of contents by id, as far as an id was made of one.
    _hashes: Mapping[str, str] = field(default_factory=dict, repr=False, compare=False)
    # Where samples stand in the source, by id.
    _places: Mapping[str, str] = field(default_factory=dict, repr=False, compare=False)

    @classmethod
    def load(  # noqa: PLR0913 - one option for each field of a sample
        cls,
        source: DatasetSource,
        *,
        input: FieldSource | None = None,  # noqa: A002 - the name of the field
        target: FieldSource | None = None,
        id: FieldSource | None = None,  # noqa: A002 - the name of the field
        group: FieldSource | None = None,
        metadata: FieldSource | None = None,
        sample_of: Callable[[Any], Any] | None = None,
        encoding: str | None = None,
        delimiter: str | None = None,
        records: str | None = None,
        split: str | None = None,
        base_dir: Path | None = None,
        limit: int | None = None,
    ) -> Dataset:
        """Read a dataset, from data as it is.

        Without a mapping, columns are named as the fields of `Sample`; `input.question`, `target.amount` or
        `metadata.page` fill one field of an object. With one, a field that is not mapped is filled by the column of its
        name, and all other columns are left out.

        Args:
            source: A `.jsonl`, `.json`, `.csv`, `.tsv` or `.parquet` file, also compressed (`.gz`, `.bz2`, `.xz`,
                `.zst`); samples, dictionaries, a DataFrame of pandas or polars, an Arrow table, or a `Dataset` or
                `DatasetDict` of Hugging Face.
            input: A column, or a path into it such as `data.question` or `answers.0.text`; several for an object of
                them; an object from name to column; or a function of the record. A column of a `ClassLabel` has names.
            target: Likewise.
            id: A column, or a function of the record.
            group: Likewise.
            metadata: Columns, an object from name to column, `"*"` for all that are left, or a function of the record.
            sample_of: A function from a record to a `Sample`, to several, or to None, which leaves the record out; in
                place of the mapping.
            encoding: Encoding of a text file; default UTF-8, or what its first bytes show.
            delimiter: Delimiter of a CSV file; default the one that its first rows fit.
            records: Path of a list inside each record, or inside a JSON document, such as `data.paragraphs.qas`: its
                objects are the records, and have the fields of the objects around them.
            split: The part of a `DatasetDict` to read.
            base_dir: What a relative path is relative to; the working directory when None.
            limit: Read only the first N samples; the rest of a file is neither read nor checked. All when None.

        Raises:
            LLMDatasetError: The file is missing, a line is malformed or a column is not there; the message names file,
                line and field, and what to pass.
            LLMConfigurationError: A Parquet or `.zst` file, and no package that reads it.

        Example:
            >>> from llmkit.evals import Dataset
            >>> rows = [{"question": "2 + 2?", "answer": 4, "level": "easy"}]
            >>> dataset = Dataset.load(rows, input="question", target="answer", metadata=["level"])
            >>> dataset.samples[0].target, dataset.samples[0].metadata
            (4, {'level': 'easy'})
        """
        columns = Columns(
            input=input,
            target=target,
            id=id,
            group=group,
            metadata=metadata,
            sample_of=sample_of,
            encoding=encoding,
            delimiter=delimiter,
            records=records,
            split=split,
        )
        if isinstance(source, Dataset) and columns.is_default:
            return source.limit(limit)
        with closing(Reading(source, base_dir, columns=columns)) as reading:
            reading.read(limit)
            return reading.dataset()

    def __len__(self) -> int:
        return len(self.samples)

    def __iter__(self) -> Iterator[Sample]:
        return iter(self.samples)

    @cached_property
    def sha256(self) -> str:
        """Hash of all ids and contents, in order."""
        return sha256_of([[sample.id, sample.content()] for sample in self.samples])

    def content_sha256(self, sample: Sample) -> str:
        """Hash of the content of one of the samples."""
        return self._hashes.get(sample.key) or sha256_of(sample.content())

    @cached_property
    def by_id(self) -> dict[str, Sample]:
        """The samples by their ids."""
        return {sample.key: sample for sample in self.samples}

    def filter(self, keep: Callable[[Sample], bool]) -> Dataset:
        """Return a dataset with the samples for which `keep` is true.

        Raises:
            LLMDatasetError: `keep` is no function.
        """
        if not callable(keep):
            raise LLMDatasetError(f"filter takes a function of a sample; got {type(keep).__name__}.")
        return replace(self, samples=tuple(sample for sample in self.samples if keep(sample)))

    def shuffle(self, seed: int) -> Dataset:
        """Return the samples in another order, the same one for the same seed.

        Raises:
            LLMDatasetError: The seed is no whole number.
        """
        _require_whole("The seed of a shuffle", seed)
        order = list(self.samples)
        random.Random(seed).shuffle(order)  # noqa: S311 (an order of samples is no secret)
        return replace(self, samples=tuple(order))

    def splits(self, shares: Mapping[str, float], seed: int = 0) -> dict[str, Dataset]:
        """Split into parts by name, such as `{"dev": 0.2, "test": 0.8}`, equal for equal seeds; each keeps the order.

        Samples of one group stay together. The order of the dataset plays no part, and a sample that is added moves at
        most a few others.

        Args:
            shares: Of each part, above 0 and at most 1 together; what is left over is in no part.
            seed: Of the chance by which samples fall into parts.

        Raises:
            LLMDatasetError: The shares are not such, or a part would be empty.
        """
        if not isinstance(shares, Mapping) or not all(isinstance(share, Real) for share in shares.values()):
            raise LLMDatasetError(f'splits takes shares by name, such as {{"dev": 0.2, "test": 0.8}}; got {shares!r}.')
        if not shares or min(shares.values()) <= 0 or sum(shares.values()) > 1 + SHARE_TOLERANCE:
            raise LLMDatasetError(f"Shares of splits are above 0 and at most 1 together; got {dict(shares)}.")
        parts = _split_ids(self.samples, shares, seed)
        for name, ids in parts.items():
            if not ids:
                raise LLMDatasetError(
                    f"The split {name!r} of {len(self)} samples would be empty; give it a larger share."
                )
        return {name: self._with(ids) for name, ids in parts.items()}

    def _with(self, ids: set[str]) -> Dataset:
        return self.filter(lambda sample: sample.key in ids)

    def limit(self, count: int | None) -> Dataset:
        """Return the first `count` samples; all of them when it is None.

        Raises:
            LLMDatasetError: The count is below 1, or no whole number.
        """
        if _check_limit(count) is None:
            return self
        return replace(self, samples=self.samples[:count])

    def rename(self, names: Mapping[str, str]) -> Dataset:
        """Return the same samples, some under other ids.

        Args:
            names: New id by present id; ids that no sample has are ignored.
        """
        hashes = {names.get(name, name): found for name, found in self._hashes.items()}
        places = {names.get(name, name): place for name, place in self._places.items()}
        samples = tuple(
            _with_id(sample, names[sample.key]) if sample.key in names else sample for sample in self.samples
        )
        return replace(self, samples=samples, _hashes=hashes, _places=places)

    def find_place(self, sample: Sample) -> str:
        """Return where a sample stands in its source, such as `d.csv, line 3`; "" where that is not known."""
        return self._places.get(sample.key, "")

    def has_made_id(self, sample: Sample) -> bool:
        """Return whether a sample's id was made of its content, so that an edit of the sample changes it."""
        return sample.key in self._hashes


class KeptItems:
    """Items of an iterator, kept as far as they were taken, so that they can be read again.

    Args:
        items: The iterator.
    """

    def __init__(self, items: Iterator[Any]) -> None:
        self._items = items
        self._kept: list[Any] = []

    def __iter__(self) -> Iterator[Any]:
        for number in count():
            if number == len(self._kept):
                try:
                    self._kept.append(next(self._items))
                except StopIteration:
                    return
            yield self._kept[number]


class Reading:
    """A dataset that is read as far as it is needed. Close it when that is done.

    Args:
        source: As for `Dataset.load`.
        base_dir: As for `Dataset.load`.
        columns: How the source is read.
        most_mb: Most memory that a compressed file may take; the setting `max_file_mb` when None.
        keep_floats: Leave whole floats of a DataFrame as they are, as version 0.1.0 did.

    Attributes:
        is_whole: Whether the source was read to its end.
    """

    def __init__(
        self,
        source: DatasetSource,
        base_dir: Path | None = None,
        *,
        columns: Columns | None = None,
        most_mb: int | None = None,
        keep_floats: bool = False,
    ) -> None:
        columns = Columns() if columns is None else columns
        self._samples: list[Sample] = []
        # Hashes of contents by the ids that were made of them.
        self._hashes: dict[str, str] = {}
        self._places: dict[str, str] = {}
        self._counts: dict[str, int] = {}
        self.is_whole = False
        if isinstance(source, str | Path):
            path = find_file(Path(source), base_dir)
            opened = open_file(path, columns, most_mb=load_settings().max_file_mb if most_mb is None else most_mb)
        elif isinstance(source, Dataset):
            self._hashes = dict(source._hashes)  # noqa: SLF001 (another object of the module)
            opened = Records(source.source, _iterate_items(source.samples), len(source))
        else:
            wanted = columns.list_names()
            table = open_table(source, columns.split, wanted=wanted, keep_floats=keep_floats)
            opened = _open_iterable(source) if table is None else table
        self._name = opened.name
        # With these, a record may be no sample, or several.
        is_counted = columns.sample_of is None and columns.records is None
        self._length = opened.length if is_counted else None
        self._mapper = RecordMapper(columns, opened.name, is_table=opened.is_table)
        self._placed = _samples(opened.rows, self._mapper, is_mapped=columns.is_mapped)

    @property
    def total(self) -> int | None:
        """Number of samples in the source; None for a file that was not read to its end."""
        return len(self._places) if self.is_whole else self._length

    def read(self, count: int | None) -> None:
        """Read on until there are that many samples; to the end when it is None.

        Raises:
            LLMDatasetError: A line is malformed, or the count is below 1.
        """
        _check_limit(count)
        missing = None if count is None else max(0, count - len(self._samples))
        before = len(self._samples)
        self._samples.extend(self._identify(placed) for placed in islice(self._placed, missing))
        self.is_whole = self.is_whole or missing is None or len(self._samples) - before < missing
        self._mapper.require_columns()
        if not self._samples:
            raise LLMDatasetError(f"{self._name} has no samples.")

    def read_until(self, ids: Iterable[str]) -> None:
        """Read on until all samples of these ids were read, or to the end.

        Samples between them are kept only when one of the ids was not found.

        Raises:
            LLMDatasetError: A line is malformed.
        """
        missing, wanted = set(ids) - self._places.keys(), len(self._samples)
        found: list[Sample] = []
        while missing:
            placed = next(self._placed, None)
            if placed is None:
                # The missing ones may be among these, edited, so that their ids are others now.
                self.is_whole = True
                return
            sample = self._identify(placed)
            self._samples.append(sample)
            if sample.key in missing:
                found.append(sample)
                missing.discard(sample.key)
        self._samples[wanted:] = found

    def dataset(self) -> Dataset:
        """Return the samples that were read and kept."""
        names = {sample.key for sample in self._samples}
        hashes = {name: found for name, found in self._hashes.items() if name in names}
        return Dataset(tuple(self._samples), self._name, hashes, self._places)

    def close(self) -> None:
        """Close the file."""
        self._placed.close()

    def _identify(self, placed: tuple[str, Sample]) -> Sample:
        """Give a sample its id, if it has none. The same content twice gets the suffixes -2, -3 and so on.

        The id depends on the samples before it alone, so that it is the same however far the dataset is read.

        Raises:
            LLMDatasetError: An earlier sample has the id.
        """
        place, sample = placed
        if sample.id is not None:
            if sample.id in self._places:
                raise LLMDatasetError(f"{place}: id: {sample.id!r} is already the id of {self._places[sample.id]}")
            self._places[sample.id] = place
            return sample
        found = sha256_of(sample.content())
        stem = name = found[:ID_LENGTH]
        while name in self._places:
            self._counts[stem] = self._counts.get(stem, 1) + 1
            name = f"{stem}-{self._counts[stem]}"
        self._places[name] = place
        self._hashes[name] = found
        return _with_id(sample, name)


def _check_limit(count: int | None) -> int | None:
    if count is not None:
        _require_whole("The limit of samples", count)
        if count < 1:
            raise LLMDatasetError(f"The limit of samples must be at least 1; got {count}.")
    return count


def _require_whole(what: str, value: object) -> None:
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        raise LLMDatasetError(f"{what} is a whole number; got {value!r}.")


def _split_ids(samples: Sequence[Sample], shares: Mapping[str, float], seed: int) -> dict[str, set[str]]:
    """Return ids by part: groups, shuffled by a hash, are laid end to end, and belong where their middle lies."""
    groups: dict[str, list[str]] = {}
    for sample in samples:
        kind = ["sample", sample.key] if sample.group is None else ["group", sample.group]
        groups.setdefault(sha256_of([seed, *kind]), []).append(sample.key)
    ends = list(accumulate(share * len(samples) for share in shares.values()))
    parts: dict[str, set[str]] = {name: set() for name in shares}
    names, place = list(shares), 0.0
    for _hash, ids in sorted(groups.items()):
        part = bisect_right(ends, place + len(ids) / 2)
        place += len(ids)
        if part < len(names):
            parts[names[part]].update(ids)
    return parts


def _samples(
    records: Iterable[tuple[str, Any]], mapper: RecordMapper, *, is_mapped: bool
) -> Generator[tuple[str, Sample]]:
    for place, record in records:
        if isinstance(record, Sample):
            if is_mapped:
                raise LLMDatasetError(f"{place}: it is a Sample already; a mapping of columns is for other records")
            yield place, record
        elif mapper.is_plain:
            yield place, _validate(mapper.read_fields(place, record), place)
        else:
            yield from _map_record(mapper, place, record)


def _map_record(mapper: RecordMapper, place: str, record: Mapping[str, Any]) -> Iterator[tuple[str, Sample]]:
    for made in mapper.map_record(place, record):
        yield place, made if isinstance(made, Sample) else _validate(made, place)


def _open_iterable(source: Any) -> Records:
    if not isinstance(source, Iterable) or isinstance(source, bytes | bytearray):
        raise LLMDatasetError(f"A dataset is a file, samples, dictionaries or a table; got {type(source).__name__}.")
    length = len(source) if isinstance(source, Sized) else None
    return Records("samples", _iterate_items(source), length, is_table=False)


def _iterate_items(items: Iterable[Any]) -> Iterator[tuple[str, Any]]:
    for number, item in enumerate(items):
        yield f"sample {number}", item if isinstance(item, Sample) else read_item(item, number)


def _validate(record: Any, place: str) -> Sample:
    try:
        return _SAMPLE.validate_python(record)
    except ValidationError as error:
        raise LLMDatasetError(f"{place}: {'; '.join(describe_validation(error))}") from None
    except RecursionError:
        raise LLMDatasetError(f"{place}: lists or objects within each other, too deep to be read") from None


def _with_id(sample: Sample, name: str) -> Sample:
    # `replace` would check all of the sample a second time, and `copy` takes three times as long.
    named = object.__new__(Sample)
    named.__dict__.update(sample.__dict__, id=name)
    return named
