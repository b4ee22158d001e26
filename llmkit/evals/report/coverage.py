"""Coverage of a run: how many samples of the dataset have a result."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from llmkit.eval_ports import EvalResult, EvalRun
from llmkit.evals.results import IN_PROGRESS, STORED_STATUSES

__all__ = ["Coverage", "measure_coverage", "note_coverage", "note_limit"]


@dataclass(frozen=True, slots=True)
class Coverage:
    """The share of a variant's samples that has a result.

    Attributes:
        finished: Number of samples with a result, failures included; every epoch counts.
        total: Number of samples in the dataset, times epochs.
        in_progress: Number of samples that another process is working on.
        has_epochs: Whether the samples run more than once.
    """

    finished: int
    total: int
    in_progress: int = 0
    has_epochs: bool = False

    @property
    def not_run(self) -> int:
        """Number of samples without a result that no process works on."""
        return self.total - self.finished - self.in_progress

    @property
    def is_partial(self) -> bool:
        """Whether any sample has no result yet."""
        return self.finished < self.total

    @property
    def text(self) -> str:
        """The coverage in words, such as `6 of 60 samples, 54 not run`."""
        noun = "samples and epochs" if self.has_epochs else "samples"
        text = f"{self.finished:,} of {self.total:,} {noun}"
        text += f", {self.not_run:,} not run" if self.not_run else ""
        return text + (f", {self.in_progress:,} in progress" if self.in_progress else "")


def measure_coverage(run: EvalRun, results: Mapping[str, Sequence[EvalResult]]) -> dict[str, Coverage]:
    """Measure the coverage of each variant.

    A report from the store has no placeholders for samples that did not run, so the total is that of the run's
    specification. Runs of early versions do not have it, and count as complete.

    Args:
        run: The run.
        results: Results by variant.
    """
    last_epoch = max((result.epoch for own in results.values() for result in own), default=0)
    epochs = max(int(run.spec.get("epochs", 1)), last_epoch + 1)
    expected = int(run.spec.get("samples", 0)) * epochs
    coverage = {}
    for label, own in results.items():
        finished = sum(result.status in STORED_STATUSES for result in own)
        in_progress = sum(result.status == IN_PROGRESS for result in own)
        coverage[label] = Coverage(finished, max(expected, len(own)), in_progress, epochs > 1)
    return coverage


def note_limit(run: EvalRun) -> Iterator[str]:
    """Note that the dataset may have more samples than the run, because a limit ended its reading."""
    if run.spec.get("first_samples_only"):
        yield f"Only the first {run.spec['samples']:,} samples of the dataset were read (limit)."


def note_coverage(coverage: Mapping[str, Coverage], *, is_supplied: bool = False) -> Iterator[str]:
    """Note the variants that are not complete; one sentence when all of them are equally far.

    Args:
        coverage: Coverage by variant.
        is_supplied: Whether the answers were supplied, so that no model is called for the others.
    """
    partial = {label: each for label, each in coverage.items() if each.is_partial}
    rest = "score them under the same name once they have answers." if is_supplied else ""
    remedy = rest or "evaluate under the same name to run the rest."
    if len(partial) == len(coverage) and len(set(partial.values())) == 1:
        yield f"Partial: {next(iter(partial.values())).text}; {remedy}"
        return
    for label, each in partial.items():
        yield f"Partial, {label}: {each.text}; {remedy}"
