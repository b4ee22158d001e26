"""Answers that exist already: from a list, a column, a table, a file or a run, by variant, sample and epoch."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

from llmkit.errors import LLMEvaluationError
from llmkit.eval_ports import EvalResult
from llmkit.evals.dataset.columns import Columns
from llmkit.evals.dataset.files import find_file, open_file
from llmkit.evals.dataset.tables import open_table
from llmkit.evals.export import is_exported_run, read_run
from llmkit.evals.report.analysis import Analysis
from llmkit.evals.results import FAILED, STORED_STATUSES

__all__ = ["ColumnNames", "JsonText", "SuppliedAnswer", "SuppliedAnswers", "collect_answers"]

ID_COLUMNS = ("sample_id", "id")
ANSWER_COLUMNS = ("output", "answer", "prediction", "response", "completion", "generation")
# Beside `output`, in the frame of `report.samples()`: the answer that did not fit.
RAW_ANSWER = "raw_answer"
DEFAULT_LABEL = "answers"
LONGEST_LABEL = 120

AnswerKey: TypeAlias = tuple[str, int]


class JsonText(str):
    """JSON that another run stored of an output, and not text as a model wrote it."""

    __slots__ = ()


class SuppliedAnswer(NamedTuple):
    """One answer.

    Attributes:
        raw: What was given; None when there is no answer.
        known: The result of the run that it is from; None when nothing else is known about it.
    """

    raw: Any
    known: EvalResult | None = None


@dataclass(frozen=True, slots=True)
class SuppliedAnswers:
    """The answers of one variant.

    Attributes:
        source: Where they are from, in a few words.
        answers: Answers by sample id and epoch. The ids may be those of samples that the dataset does not have.
    """

    source: str
    answers: Mapping[AnswerKey, SuppliedAnswer]


@dataclass(frozen=True, slots=True)
class ColumnNames:
    """Names of columns; None for the usual ones."""

    answer: str | None = None
    id: str | None = None
    variant: str | None = None
    epoch: str | None = None


@dataclass(frozen=True, slots=True)
class _AnswerCollector:
    """Turns what users have into answers by variant.

    Attributes:
        ids: Ids of the dataset's samples, in order.
        fields: Names that the fields of an answer have as columns.
        columns: Names of columns.
        base_dir: Folder at which relative paths start.
        most_mb: Most memory that a compressed file may take.
    """

    ids: tuple[str, ...]
    fields: frozenset[str]
    columns: ColumnNames
    base_dir: Path | None
    most_mb: int

    def collect(self, outputs: Any, label: str | None = None, *, is_inner: bool = False) -> dict[str, SuppliedAnswers]:
        """Return the answers by variant. With a label, they are all of this variant."""
        source = label or DEFAULT_LABEL
        if isinstance(outputs, Analysis):
            return self._take_run(outputs.results, f"run {outputs.run.name}", label)
        if isinstance(outputs, str | Path):
            return self._take_file(find_file(Path(outputs), self.base_dir), label)
        if (rows := _list_rows(outputs)) is not None:
            return self._take_records(rows, "DataFrame", source)
        if isinstance(outputs, Mapping):
            ids = set(self.ids)
            if is_inner or not outputs or any(_to_id(key) in ids for key in outputs):
                return {source: self._take_pairs(outputs.items(), "dictionary", source)}
            return self._take_variants(outputs)
        if hasattr(outputs, "items") and hasattr(outputs, "index"):  # a Series
            label = source if label else _to_label(getattr(outputs, "name", None) or DEFAULT_LABEL)
            values = [_plain(value) for value in outputs.tolist()]
            if set(map(_to_id, outputs.index)) & set(self.ids):
                return {label: self._take_pairs(zip(outputs.index, values, strict=True), "Series", label)}
            return {label: self._take_in_order(values, "Series", label)}
        if not isinstance(outputs, Iterable) or isinstance(outputs, bytes):
            raise LLMEvaluationError(
                "outputs are answers by sample id, a list in the order of the dataset, a column, a table, a file or a "
                f"report, or several of these by variant; got {type(outputs).__name__}."
            )
        values = [_plain(value) for value in outputs]
        if values and all(isinstance(value, Mapping) and self._find_id_column(value) for value in values):
            return self._take_records(values, "list", source)
        return {source: self._take_in_order(values, "list", source)}

    def _take_file(self, path: Path, label: str | None) -> dict[str, SuppliedAnswers]:
        if is_exported_run(path):
            run, results = read_run(path)
            return self._take_run(results, f"run {run.name} in {path.name}", label)
        label = _to_label(path.name.partition(".")[0]) if label is None else label
        records = [record for _place, record in open_file(path, Columns(), most_mb=self.most_mb).rows]
        return self._take_records(records, path.name, label)

    def _take_variants(self, outputs: Mapping[Any, Any]) -> dict[str, SuppliedAnswers]:
        found: dict[str, SuppliedAnswers] = {}
        for name, own in outputs.items():
            if not isinstance(own, Mapping | str | Path | Analysis) and not isinstance(own, Iterable):
                raise LLMEvaluationError(
                    f"No key of outputs is a sample id, and {name!r} has no answers but a {type(own).__name__}. The "
                    f"ids begin with {', '.join(self.ids[:3])}."
                )
            found |= self.collect(own, _to_label(name), is_inner=True)
        return found

    def _take_run(self, results: Sequence[EvalResult], source: str, label: str | None) -> dict[str, SuppliedAnswers]:
        stored = [result for result in results if result.status in STORED_STATUSES]
        routes = dict.fromkeys(result.route for result in stored)
        names = {
            route: route if label is None else label if len(routes) == 1 else f"{label}/{route}" for route in routes
        }
        by_variant: dict[str, dict[AnswerKey, SuppliedAnswer]] = {name: {} for name in names.values()}
        for result in stored:
            raw = result.answer_json or result.output_json
            if raw is None and result.status != FAILED:
                raise LLMEvaluationError(
                    f"The {source} was stored without outputs (store_payloads), so none can be scored."
                )
            own = SuppliedAnswer(None if raw is None else JsonText(raw), result)
            by_variant[names[result.route]][result.sample_id, result.epoch] = own
        return {name: SuppliedAnswers(source, answers) for name, answers in by_variant.items()}

    def _take_in_order(self, values: Sequence[Any], source: str, label: str) -> SuppliedAnswers:
        if len(values) != len(self.ids):
            raise LLMEvaluationError(
                f"{label}: a {source} without ids has one answer for each of the {len(self.ids):,} samples in their "
                f"order; got {len(values):,}. Give the answers by id, as a dictionary or with a column id."
            )
        answers = zip(self.ids, values, strict=True)
        return SuppliedAnswers(source, {(name, 0): SuppliedAnswer(value) for name, value in answers})

    def _take_pairs(self, pairs: Iterable[tuple[Any, Any]], source: str, label: str) -> SuppliedAnswers:
        answers: dict[AnswerKey, SuppliedAnswer] = {}
        for key, value in pairs:
            _add(answers, (_to_id(key), 0), _plain(value), label)
        return SuppliedAnswers(source, answers)

    def _take_records(
        self, records: Sequence[Mapping[str, Any]], source: str, label: str
    ) -> dict[str, SuppliedAnswers]:
        """Take the rows of a table, of which one column has the answers, or several the fields of an answer."""
        names = list(dict.fromkeys(str(name) for record in records for name in record))
        id_column = self._find_id_column(names, source)
        variant_column = self._find_column("variant", ("variant",), names, source)
        epoch_column = self._find_column("epoch", ("epoch",), names, source)
        answer_column = self._find_column("answer", ANSWER_COLUMNS, names, source)
        parts = [
            name for name in names if name in self.fields and name not in (id_column, variant_column, epoch_column)
        ]
        if answer_column is None and not parts:
            raise LLMEvaluationError(
                f"{source}: the columns are {', '.join(names) or 'none'}; say which has the answers: answer=..."
            )
        by_variant: dict[str, list[tuple[AnswerKey | None, Any]]] = {}
        for record in records:
            if answer_column is None:
                given = {name: _plain(record.get(name)) for name in parts}
                raw: Any = {name: value for name, value in given.items() if value is not None} or None
            else:
                raw = _plain(record.get(answer_column))
                raw = _plain(record.get(RAW_ANSWER)) if raw is None and answer_column == "output" else raw
            variant = None if variant_column is None else _plain(record.get(variant_column))
            key = None
            if id_column is not None:
                epoch = None if epoch_column is None else _plain(record.get(epoch_column))
                key = (_to_id(_plain(record.get(id_column))), _to_epoch(epoch, source))
            by_variant.setdefault(label if variant is None else _to_label(variant), []).append((key, raw))
        found: dict[str, SuppliedAnswers] = {}
        for name, rows in by_variant.items():
            if id_column is None:
                found[name] = self._take_in_order([raw for _key, raw in rows], source, name)
                continue
            answers: dict[AnswerKey, SuppliedAnswer] = {}
            for key, raw in rows:
                assert key is not None
                _add(answers, key, raw, name)
            found[name] = SuppliedAnswers(source, answers)
        return found

    def _find_id_column(self, names: Iterable[str], source: str = "outputs") -> str | None:
        return self._find_column("id", ID_COLUMNS, list(names), source)

    def _find_column(self, option: str, usual: Sequence[str], names: Sequence[str], source: str) -> str | None:
        given: str | None = getattr(self.columns, option)
        if given is None:
            return next((name for name in usual if name in names), None)
        if given not in names:
            raise LLMEvaluationError(
                f"{source}: there is no column {given!r} ({option}=); the columns are {', '.join(names)}."
            )
        return given


def collect_answers(
    outputs: Any,
    ids: Sequence[str],
    columns: ColumnNames,
    *,
    fields: Iterable[str] = (),
    base_dir: Path | None = None,
    most_mb: int = 512,
) -> dict[str, SuppliedAnswers]:
    """Return existing answers by variant.

    Args:
        outputs: Answers by sample id, a list or Series in the order of the dataset, a table, a file, a report, or
            several of these by variant.
        ids: Ids of the samples, in order.
        columns: Names of columns.
        fields: Names of the fields of an answer, which columns may have.
        base_dir: Folder at which a relative path starts.
        most_mb: Most memory that a compressed file may take.

    Raises:
        LLMEvaluationError: The answers cannot be found in it; the message says what to add.
        LLMDatasetError: A file cannot be read.
    """
    found = _AnswerCollector(tuple(ids), frozenset(fields), columns, base_dir, most_mb).collect(outputs)
    if not any(each.answers for each in found.values()):
        raise LLMEvaluationError("There are no answers in outputs.")
    return found


def _add(answers: dict[AnswerKey, SuppliedAnswer], key: AnswerKey, raw: Any, label: str) -> None:
    if key in answers:
        raise LLMEvaluationError(
            f"{label}: sample {key[0]!r} has two answers; number them from 0 in a column epoch, or remove one."
        )
    answers[key] = SuppliedAnswer(raw)


def _list_rows(outputs: Any) -> list[Mapping[str, Any]] | None:
    """Return the rows of a table of pandas, polars, Arrow or Hugging Face; None for anything else."""
    if isinstance(outputs, Mapping) or not (hasattr(outputs, "columns") or hasattr(outputs, "column_names")):
        return None
    is_indexed = getattr(getattr(outputs, "index", None), "name", None) in ID_COLUMNS
    table = open_table(outputs.reset_index() if is_indexed else outputs, None)
    return None if table is None else [record for _place, record in table.rows]


def _plain(value: Any) -> Any:
    """Return a cell as a plain value: None where it is missing, and a number of numpy as one of Python."""
    if value is None or isinstance(value, str | bool | int | list | dict):
        return value
    if hasattr(value, "item") and getattr(value, "ndim", None) == 0:
        value = value.item()
    if hasattr(value, "tolist") and hasattr(value, "ndim"):
        return value.tolist()
    try:
        is_missing = bool(value != value)
    except (TypeError, ValueError):  # pandas.NA has no truth
        return None if type(value).__name__ == "NAType" else value
    # A column of whole numbers becomes one of floats as soon as one is missing.
    return None if is_missing else int(value) if isinstance(value, float) and value.is_integer() else value


def _to_id(value: Any) -> str:
    plain = _plain(value)
    return "" if plain is None else str(plain)


def _to_epoch(value: Any, source: str) -> int:
    try:
        epoch = 0 if value is None else int(value)
    except (TypeError, ValueError):
        epoch = -1
    if epoch < 0:
        raise LLMEvaluationError(f"{source}: epoch: {value!r} is no whole number from 0.")
    return epoch


def _to_label(name: Any) -> str:
    # Commands separate labels by commas and spaces.
    return re.sub(r"[\s,]+", "-", str(name).strip())[:LONGEST_LABEL] or DEFAULT_LABEL
