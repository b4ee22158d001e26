"""Slices of a run: its samples by group, by metadata, or by any function of the sample."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final, TypeAlias

from llmkit.errors import LLMEvaluationError, describe_exception
from llmkit.evals.dataset.dataset import Sample
from llmkit.evals.report.frames import split_numbers

__all__ = [
    "GROUP",
    "SMALL_SLICE",
    "SliceBy",
    "assign_slices",
    "find_natural_slices",
    "name_slicing",
    "note_slices",
    "order_slices",
]

SliceBy: TypeAlias = str | Callable[[Sample], Any]

GROUP: Final = "group"
NO_VALUE: Final = "(none)"
# An interval from fewer samples says little, and one of them moves the mean by five points or more.
SMALL_SLICE: Final = 20
# What a page shows without being asked: neither one slice, nor a slice for every sample.
MOST_SLICES: Final = 12


def assign_slices(
    clusters: Mapping[str, tuple[str, str]], samples: Mapping[str, Sample], by: SliceBy
) -> dict[str, str]:
    """Return the slice of each sample by its id.

    Args:
        clusters: Kind (`group` or `sample`) and name of the cluster of each sample with a result.
        samples: The samples by id, as far as they are at hand.
        by: `group`, a field such as `metadata.language` or `input.kind`, or a function of the sample.

    Raises:
        LLMEvaluationError: No sample has the field, the samples are not at hand, or the function raised something.
    """
    ids = dict.fromkeys((*samples, *clusters))
    if by == GROUP:
        groups = {name: cluster for name, (kind, cluster) in clusters.items() if kind == GROUP}
        groups |= {name: each.group for name, each in samples.items() if each.group is not None}
        if not groups:
            raise LLMEvaluationError("No sample of this run has a group.")
        return {name: groups.get(name, NO_VALUE) for name in ids}
    if not samples:
        raise LLMEvaluationError(
            f"Slices by {name_slicing(by)} need the samples: session.report(name, task=task), or --task FILE."
        )
    values = {name: _read_value(sample, by) for name, sample in samples.items()}
    if isinstance(by, str) and all(value is None for value in values.values()):
        raise LLMEvaluationError(f"No sample has {by!r}; slices are by group, metadata.NAME, input.NAME or a function.")
    return {name: _write_value(values.get(name)) for name in ids}


def _read_value(sample: Sample, by: SliceBy) -> Any:
    if callable(by):
        try:
            return by(sample)
        except Exception as error:
            raise LLMEvaluationError(
                f"The function {name_slicing(by)} failed on sample {sample.key}: {describe_exception(error)}"
            ) from error
    first, *steps = by.split(".")
    value: Any = {"metadata": sample.metadata, "input": sample.input, "target": sample.target}.get(first)
    for step in steps:
        value = value.get(step) if isinstance(value, Mapping) else None
    return value


def _write_value(value: Any) -> str:
    if value is None or value == "":
        return NO_VALUE
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


def name_slicing(by: SliceBy) -> str:
    """Return what slices are made by, in a word."""
    return by if isinstance(by, str) else getattr(by, "__name__", type(by).__name__)


def order_slices(names: Sequence[str]) -> list[str]:
    """Return the names of slices in a natural order, samples without a value last."""
    return sorted(dict.fromkeys(names), key=lambda name: (name == NO_VALUE, split_numbers(name)))


def find_natural_slices(clusters: Mapping[str, tuple[str, str]], samples: Mapping[str, Sample]) -> Iterator[str]:
    """Yield the fields that divide the samples into a few slices: `group` and fields of the metadata."""
    fields = dict.fromkeys(f"metadata.{name}" for sample in samples.values() for name in sample.metadata)
    has_groups = any(kind == GROUP for kind, _name in clusters.values())
    for by in ([GROUP] if has_groups else []) + list(fields):
        count = len(set(assign_slices(clusters, samples, by).values()))
        if 2 <= count <= MOST_SLICES and 2 * count <= len(clusters):
            yield by


def note_slices(by: SliceBy, sizes: Mapping[str, int], comparisons: int = 0) -> Iterator[str]:
    """Note slices that are small, and how comparisons of many slices are to be read."""
    small = [f"{name} ({count:,})" for name, count in sizes.items() if count < SMALL_SLICE]
    if small:
        yield f"Slices by {name_slicing(by)} with fewer than {SMALL_SLICE} samples say little: {', '.join(small)}."
    if comparisons > 1:
        yield (
            f"{comparisons} comparisons in {len(sizes)} slices: p_holm is adjusted for all of them. A difference in "
            "one slice and none in another does not show that the slices differ; test what you find on new samples."
        )
