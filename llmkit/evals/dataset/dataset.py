"""Samples and where they come from: lists, DataFrames, JSON Lines, CSV and Parquet."""

from __future__ import annotations

import math
import random
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from copy import copy
from dataclasses import KW_ONLY, field, replace
from dataclasses import dataclass as plain_dataclass
from datetime import date
from decimal import Decimal
from functools import cached_property
from itertools import accumulate
from numbers import Integral, Real
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeAlias
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
from llmkit.evals.dataset.files import SAMPLE_FIELDS, Record, find_file, is_frame, read_file, read_frame

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["Dataset", "DatasetSource", "Sample"]

ID_LENGTH = 16
SHARE_TOLERANCE = 1e-9
LARGEST_WHOLE_FLOAT = 2**53


def _order_sets(value: Any) -> Any:
    """Turn sets into sorted lists, because their order differs between processes. Reject values that cannot be sent."""
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
    if isinstance(value, str) and has_lone_surrogate(value):
        raise ValueError("holds half of a character (a lone surrogate)")
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
        # Pandas turns a column of integers into floats where one is missing. From 2**53 on, a float is not exact.
        number = float(value)
        return str(int(number)) if number.is_integer() and abs(number) < LARGEST_WHOLE_FLOAT else value
    return value.isoformat() if isinstance(value, date) else value


def _convert_metadata(value: Any) -> Any:
    return {} if value is None else _jsonable(value)


Json = Annotated[JsonValue, BeforeValidator(_jsonable)]


def _storable(text: str) -> str:
    if "\0" in text:
        raise ValueError("holds the character NUL, which databases refuse")
    return text


Label = Annotated[str, Field(min_length=1, max_length=255), BeforeValidator(_convert_label), AfterValidator(_storable)]


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
    metadata: Annotated[dict[str, JsonValue], BeforeValidator(_convert_metadata)] = Field(default_factory=dict)

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
            path = find_file(Path(source), base_dir)
            return cls._of(_samples(read_file(path)), path.name)
        if is_frame(source):
            return cls._of(_samples(read_frame(source, "DataFrame", first=0)), "DataFrame")
        if not isinstance(source, Iterable) or isinstance(source, bytes | Mapping):
            raise LLMDatasetError(f"A dataset is a file, samples or a DataFrame; got {type(source).__name__}.")
        return cls._of(_iterate_samples(source), "samples")

    @classmethod
    def _of(cls, placed: Iterable[tuple[str, Sample]], source: str) -> Dataset:
        pairs = list(placed)
        if not pairs:
            raise LLMDatasetError(f"{source} has no samples.")
        hashes: dict[str, str] = {}
        return cls(tuple(_assign_ids(pairs, hashes)), source, hashes)

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
        """Only the samples for which `keep` is true.

        Raises:
            LLMDatasetError: `keep` is no function.
        """
        if not callable(keep):
            raise LLMDatasetError(f"filter takes a function of a sample; got {type(keep).__name__}.")
        return replace(self, samples=tuple(sample for sample in self.samples if keep(sample)))

    def shuffle(self, seed: int) -> Dataset:
        """Another order, the same one for the same seed.

        Raises:
            LLMDatasetError: The seed is no whole number.
        """
        _require_whole("The seed of a shuffle", seed)
        order = list(self.samples)
        random.Random(seed).shuffle(order)  # noqa: S311 (an order of samples is no secret)
        return replace(self, samples=tuple(order))

    def splits(self, shares: Mapping[str, float], seed: int = 0) -> dict[str, Dataset]:
        """Parts by name, such as `{"dev": 0.2, "test": 0.8}`, the same ones for the same seed; each keeps the order.

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
        if count is None:
            return self
        _require_whole("The limit of samples", count)
        if count < 1:
            raise LLMDatasetError(f"The limit of samples must be at least 1; got {count}.")
        return replace(self, samples=self.samples[:count])


def _require_whole(what: str, value: object) -> None:
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        raise LLMDatasetError(f"{what} is a whole number; got {value!r}.")


def _split_ids(samples: Sequence[Sample], shares: Mapping[str, float], seed: int) -> dict[str, set[str]]:
    """Ids by part: groups, shuffled by a hash, are laid end to end, and belong where their middle lies."""
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


def _samples(records: Iterable[Record]) -> Iterator[tuple[str, Sample]]:
    for place, record in records:
        unknown = [name for name in record if name not in SAMPLE_FIELDS]
        if unknown:
            known = ", ".join(SAMPLE_FIELDS)
            raise LLMDatasetError(f"{place}: {unknown[0]}: unknown field; known fields: {known}")
        try:
            sample = _SAMPLE.validate_python(dict(record))
        except ValidationError as error:
            raise LLMDatasetError(f"{place}: {'; '.join(describe_validation(error))}") from None
        except RecursionError:
            raise LLMDatasetError(f"{place}: lists or objects within each other, too deep to be read") from None
        yield place, sample


def _iterate_samples(samples: Iterable[Any]) -> Iterator[tuple[str, Sample]]:
    for number, sample in enumerate(samples):
        if not isinstance(sample, Sample):
            raise LLMDatasetError(f"Sample {number} of the list is a {type(sample).__name__}, not a Sample.")
        yield f"sample {number}", sample


def _assign_ids(pairs: list[tuple[str, Sample]], hashes: dict[str, str]) -> Iterator[Sample]:
    """Give an id to each sample that has none. The same content twice gets the suffixes -2, -3 and so on.

    Args:
        pairs: Samples, and where each of them is.
        hashes: Gets the hashes of their contents by the ids that were given.
    """
    taken = _explicit_ids(pairs)
    counts: dict[str, int] = {}
    for _place, sample in pairs:
        if sample.id is not None:
            yield sample
            continue
        found = sha256_of(sample.content())
        name = _free_id(found[:ID_LENGTH], taken, counts)
        hashes[name] = found
        yield _with_id(sample, name)


def _with_id(sample: Sample, name: str) -> Sample:
    # Not by `replace`, which would check all of the sample a second time.
    named = copy(sample)
    object.__setattr__(named, "id", name)
    return named


def _free_id(stem: str, taken: set[str], counts: dict[str, int]) -> str:
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
