"""Rows of a report as frames with fixed columns, and as plain values."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final, TypedDict, get_type_hints

from llmkit.eval_ports import EvalResult, RecordedCall
from llmkit.evals.dataset.dataset import Sample
from llmkit.evals.results import FAILED, IN_PROGRESS, NOT_RUN, fell_back

if TYPE_CHECKING:
    import pandas as pd

__all__ = [
    "SAMPLE_COLUMNS",
    "SAMPLE_STAGE",
    "SCORE_PREFIX",
    "SampleRow",
    "build_frame",
    "build_sample_row",
    "derive_columns",
    "find_raw_answers",
    "sort_results",
    "split_numbers",
    "to_json_rows",
    "to_plain_rows",
]

SCORE_PREFIX = "score_"
# The stage of calls that answer a sample; judges have another.
SAMPLE_STAGE: Final = "sample"
_NUMBERS: Final = re.compile(r"[0-9]+|[^0-9]+")

_DTYPES: Final[Mapping[Any, str]] = {
    str: "str",
    int: "int64",
    float: "float64",
    bool: "bool",
    int | None: "Int64",
    bool | None: "boolean",
    datetime: "datetime64[us, UTC]",
}


def derive_columns(row: type[Any]) -> Mapping[str, str]:
    """Return the columns and dtypes of a frame, from the annotations of its row."""
    return {name: _DTYPES[hint] for name, hint in get_type_hints(row).items()}


class SampleRow(TypedDict, total=False):
    """One result of `Analysis.samples`."""

    sample_id: str
    group: str
    variant: str
    served_route: str
    fallback: bool
    epoch: int
    status: str
    error_code: str
    error_message: str
    input: str
    target: str
    output: str
    raw_answer: str
    output_mode: str
    valid_first_try: bool | None
    outcome: str
    logprob_mean: float
    logprob_min: float
    field_logprobs: str
    schema_sha256: str
    scorer_errors: str
    score_details: str
    input_tokens: int | None
    output_tokens: int | None
    latency_ms: float
    requests: int
    warnings: str
    finished_at_utc: datetime
    pipeline_run_id: str


SAMPLE_COLUMNS: Mapping[str, str] = derive_columns(SampleRow)


def build_sample_row(result: EvalResult, dataset: Mapping[str, Sample]) -> dict[str, Any]:
    """Build the row of one result: `SAMPLE_COLUMNS`, and a column for each score."""
    sample = dataset.get(result.sample_id)
    row: dict[str, Any] = {name: getattr(result, name) for name in SAMPLE_COLUMNS if hasattr(result, name)}
    row |= {
        "variant": result.route,
        "group": sample.group if sample else None,
        "input": _to_text(sample.input) if sample else None,
        "target": _to_text(sample.target) if sample else None,
        "output": _read_text(result.output_json),
        "fallback": fell_back(result),
        "field_logprobs": _to_text(result.field_logprobs) if result.field_logprobs else None,
        "scorer_errors": _to_text(result.scorer_errors) if result.scorer_errors else None,
        "score_details": _to_text(result.score_details) if result.score_details else None,
        "warnings": "\n".join(result.warnings) or None,
        "finished_at_utc": None if result.status in (NOT_RUN, IN_PROGRESS) else result.finished_at_utc,
    }
    return row | {f"{SCORE_PREFIX}{_replace_surrogates(name)}": value for name, value in result.scores.items()}


def sort_results(
    results: Iterable[EvalResult], dataset: Mapping[str, Sample], variants: Sequence[str]
) -> list[EvalResult]:
    """Sort results by sample, variant and epoch: samples as in the dataset, and those that are not in it by id."""
    places = {sample_id: number for number, sample_id in enumerate(dataset)}
    columns = {label: number for number, label in enumerate(variants)}

    def get_key(result: EvalResult) -> tuple[int, tuple[Any, ...], int, int]:
        place = places.get(result.sample_id, len(places))
        return place, split_numbers(result.sample_id), columns[result.route], result.epoch

    return sorted(results, key=get_key)


def split_numbers(sample_id: str) -> tuple[tuple[int, int, str], ...]:
    """Return a key that sorts `s9` before `s10`."""
    parts = _NUMBERS.findall(sample_id)
    # Longer digit strings than these are hashes, and quadratic to convert.
    return tuple((0, int(part), part) if part.isdecimal() and len(part) < 20 else (1, 0, part) for part in parts)


def find_raw_answers(
    results: Iterable[EvalResult], load_calls: Callable[[], Iterable[RecordedCall]]
) -> dict[str, str | None]:
    """Find the last answer of each result that got one, but no valid output; by the name of its calls."""
    wanted = {each.pipeline_run_id for each in results if each.status == FAILED and each.requests}
    # Reading the calls is the expensive part, and most reports have no such result.
    return {
        call.pipeline_run_id: call.answer
        for call in (load_calls() if wanted else ())
        if call.stage == SAMPLE_STAGE and call.answer and call.pipeline_run_id in wanted
    }


def _to_text(value: Any) -> str | None:
    text = value if value is None or isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return None if text is None else _replace_surrogates(text)


def _read_text(output_json: str | None) -> str | None:
    """Return an output as people read it: free text without the quotes of JSON, everything else as JSON."""
    is_text = output_json is not None and output_json.startswith('"')
    return _to_text(json.loads(output_json)) if output_json is not None and is_text else output_json


def _replace_surrogates(text: str) -> str:
    # Version 0.1.0 stored lone surrogates that a scorer returned, and a column of strings is UTF-8.
    return text if text.isascii() else text.encode("utf-8", "backslashreplace").decode()


def build_frame(rows: Iterable[Mapping[str, Any]], columns: Mapping[str, str]) -> pd.DataFrame:
    """Build a frame with exactly these columns, order and dtypes, also without rows.

    Raises:
        KeyError: A row has a value that belongs to no column, and would be lost.
    """
    import pandas as pd

    listed = list(rows)
    for row in listed:
        if unknown := row.keys() - columns.keys():
            raise KeyError(f"no column for {min(unknown)!r}")
    return pd.DataFrame(
        {name: pd.Series([row.get(name) for row in listed], dtype=dtype) for name, dtype in columns.items()}
    )


def to_plain_rows(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """Convert a frame to rows with None for missing values."""
    from pandas import isna

    return [
        {str(name): None if isna(value) else value for name, value in row.items()} for row in frame.to_dict("records")
    ]


def to_json_rows(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """Convert a frame to JSON-able rows: None for missing values and for numbers that are not finite."""
    return [
        {name: None if isinstance(value, float) and not math.isfinite(value) else value for name, value in row.items()}
        for row in to_plain_rows(frame)
    ]
