"""Rows of a report as frames with fixed columns, and as plain values."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from llmkit.eval_ports import EvalResult
from llmkit.evals.dataset.dataset import Sample
from llmkit.evals.results import IN_PROGRESS, NOT_RUN, fell_back

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["SAMPLE_COLUMNS", "SCORE_PREFIX", "build_frame", "build_sample_row", "to_json_rows", "to_plain_rows"]

SCORE_PREFIX = "score_"

SAMPLE_COLUMNS: Mapping[str, str] = {
    "sample_id": "str",
    "group": "str",
    "variant": "str",
    "served_route": "str",
    "fallback": "bool",
    "epoch": "int64",
    "status": "str",
    "error_code": "str",
    "error_message": "str",
    "input": "str",
    "target": "str",
    "output": "str",
    "output_mode": "str",
    "valid_first_try": "boolean",
    "outcome": "str",
    "schema_sha256": "str",
    "scorer_errors": "str",
    "score_details": "str",
    "input_tokens": "Int64",
    "output_tokens": "Int64",
    "latency_ms": "float64",
    "requests": "int64",
    "warnings": "str",
    "finished_at_utc": "datetime64[us, UTC]",
    "pipeline_run_id": "str",
}


def build_sample_row(result: EvalResult, dataset: Mapping[str, Sample]) -> dict[str, Any]:
    """Build the row of one result: `SAMPLE_COLUMNS`, and a column for each score."""
    sample = dataset.get(result.sample_id)
    row: dict[str, Any] = {name: getattr(result, name) for name in SAMPLE_COLUMNS if hasattr(result, name)}
    row |= {
        "variant": result.route,
        "group": sample.group if sample else None,
        "input": _to_text(sample.input) if sample else None,
        "target": _to_text(sample.target) if sample else None,
        "output": result.output_json,
        "fallback": fell_back(result),
        "scorer_errors": _to_text(result.scorer_errors) if result.scorer_errors else None,
        "score_details": _to_text(result.score_details) if result.score_details else None,
        "warnings": "\n".join(result.warnings) or None,
        "finished_at_utc": None if result.status in (NOT_RUN, IN_PROGRESS) else result.finished_at_utc,
    }
    return row | {f"{SCORE_PREFIX}{_replace_surrogates(name)}": value for name, value in result.scores.items()}


def _to_text(value: Any) -> str | None:
    text = value if value is None or isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return None if text is None else _replace_surrogates(text)


def _replace_surrogates(text: str) -> str:
    # Version 0.1.0 stored lone surrogates that a scorer returned, and a column of strings is UTF-8.
    return text if text.isascii() else text.encode("utf-8", "backslashreplace").decode()


def build_frame(rows: Iterable[Mapping[str, Any]], columns: Mapping[str, str]) -> pd.DataFrame:
    """Build a frame with exactly these columns, order and dtypes, also without rows."""
    import pandas as pd

    listed = list(rows)
    return pd.DataFrame(
        {name: pd.Series([row.get(name) for row in listed], dtype=dtype) for name, dtype in columns.items()}
    )


def to_plain_rows(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """Convert a frame to rows with None for missing values."""
    return [
        {str(name): None if _is_missing(value) else value for name, value in row.items()}
        for row in frame.to_dict("records")
    ]


def _is_missing(value: Any) -> bool:
    from pandas import isna

    return bool(isna(value))


def to_json_rows(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """Convert a frame to JSON-able rows: None for missing values and for numbers that are not finite."""
    return [
        {name: None if isinstance(value, float) and not math.isfinite(value) else value for name, value in row.items()}
        for row in to_plain_rows(frame)
    ]
