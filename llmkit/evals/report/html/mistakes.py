"""Frequent wrong answers, by field."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Final

from llmkit.evals.direction import is_right
from llmkit.evals.report.html.cells import Cell, CountCell, FaintText
from llmkit.evals.report.html.fields import is_different, split_by_field, to_display_text
from llmkit.evals.report.html.samples import get_single_field

if TYPE_CHECKING:
    from llmkit.evals.report.analysis import Analysis

__all__ = ["find_frequent_mistakes"]

SHOWN_MISTAKES: Final = 20
LEAST_TIMES: Final = 2
LONGEST_VALUE: Final = 120

ABSENT: Final = FaintText("absent")


def find_frequent_mistakes(report: Analysis) -> Iterator[tuple[Cell, ...]]:
    """Find differences from the target that occur more than once, the most frequent first.

    Each row has the field, the variant, the target, the answer and the number of occurrences.
    """
    counted: Counter[tuple[str, str, str, str | None]] = Counter()
    only_field, lower = get_single_field(report), report.lower_is_better
    for result in report.results:
        sample = report.dataset.get(result.sample_id)
        is_wrong = not all(is_right(score, lower_is_better=metric in lower) for metric, score in result.scores.items())
        if sample is not None and sample.target is not None and result.output_json is not None and is_wrong:
            counted.update(_find_differences(sample.target, result.output_json, result.route, only_field))
    frequent = sorted((-times, key) for key, times in counted.items() if times >= LEAST_TIMES)
    for times, (field, variant, target, answer) in frequent[:SHOWN_MISTAKES]:
        times_given = CountCell(-times, f"Answers of {variant} with this wrong value instead of the target.")
        yield field or "answer", variant, _cut(target), ABSENT if answer is None else _cut(answer), times_given


def _find_differences(
    target: Any, output_json: str, variant: str, only_field: str | None
) -> Iterator[tuple[str, str, str, str | None]]:
    output = split_by_field(json.loads(output_json), only_field)
    for path, wanted in split_by_field(target, only_field).items():
        if path not in output:
            yield path, variant, to_display_text(wanted), None
        elif is_different(wanted, output[path]):
            yield path, variant, to_display_text(wanted), to_display_text(output[path])


def _cut(text: str) -> str:
    return text if len(text) <= LONGEST_VALUE else f"{text[:LONGEST_VALUE]}…"
