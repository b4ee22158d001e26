"""Comparison of a dataset with the results that are stored of it: which samples were edited, and what follows.

Answers depend on the request, not on the sample. A stored answer stays as long as the same request would be sent; if
target, group or metadata changed beside it, it is scored again, without a call.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from llmkit.canonical_json import sha256_of
from llmkit.errors import LLMEvaluationError
from llmkit.eval_ports import EvalOutcome, EvalRun
from llmkit.evals.call_names import content_digest_of, digests_of, list_some, with_reasks
from llmkit.evals.dataset.dataset import Dataset, Sample
from llmkit.evals.prompt import Prompt, Template, content_of
from llmkit.evals.results import FAILED
from llmkit.evals.tasks.task import Task, compile_prompt, describe_prompt
from llmkit.evals.tasks.variant import ResolvedVariant, hash_variant, read_target

__all__ = ["Edits", "RequestDigests", "adopt_ids", "find_edits"]

# The spec of a run maps ids that its samples would get now to those under which their results are stored.
RENAMED = "renamed"


class RequestDigests:
    """Digests of what variants send for a sample: of those that are called now, and of those that a run recorded.

    Args:
        task: The task, which is the same as the run's.
        variants: The variants that are called.
        reasks: How often they are asked again.
        run: The stored run; None when there is none yet.
    """

    def __init__(
        self, task: Task, variants: Iterable[ResolvedVariant], reasks: int, run: EvalRun | None = None
    ) -> None:
        variants = tuple(variants)
        self._task = task
        self._digests: dict[str, Callable[[Sample], str] | None] = {
            variant.label: _digest_of_variant(variant, reasks) for variant in variants
        }
        self._called = {variant.label: variant for variant in variants}
        self._reasks = reasks
        self._spec: Mapping[str, Any] = {} if run is None else run.spec

    def is_called(self, label: str) -> bool:
        """Return whether the variant is one of those that are called now."""
        return label in self._called

    def is_same_template(self, label: str) -> bool:
        """Return whether a variant fills the same template as in the run, with the same options.

        Then equal contents can only give other texts by the order of the fields in their objects, which a file may
        change without any edit.
        """
        variant, recorded = self._called.get(label), self._spec.get("routes", {}).get(label)
        if variant is None or recorded is None or not isinstance(variant.prompt, Template):
            return False
        return sha256_of(variant.description) == sha256_of(recorded) and self._reasks == self._read_reasks()

    def _read_reasks(self) -> int:
        options = self._spec.get("made_with", {}).get("options", {})
        # Runs of version 0.1.0 recorded this option under its old name.
        return int(options.get("reasks", options.get("repairs", 1)))

    def find(self, label: str, sample: Sample) -> str | None:
        """Return the digest of the request; None if it is no longer known."""
        if label not in self._digests:
            self._digests[label] = self._read_recorded(label)
        digest = self._digests[label]
        try:
            return None if digest is None else digest(sample)
        except LLMEvaluationError:  # the sample lacks a field that the prompt names, so nothing would be sent for it
            return None

    def _read_recorded(self, label: str) -> Callable[[Sample], str] | None:
        """Return the digest of a variant that only the record of the run knows."""
        recorded = self._spec.get("routes", {}).get(label)
        if not isinstance(recorded, Mapping):
            return None
        prompts: dict[str, Prompt | None] = {
            describe_prompt(prompt): prompt for prompt in (self._task.prompt, *self._task.prompts.values())
        }
        described: str = recorded["prompt"]
        try:
            prompt = compile_prompt(prompts.get(described, described))
        except LLMEvaluationError:  # "function name" of a function that is not at hand is not always a template
            return None
        reasks = self._read_reasks()
        target, parameters, system = read_target(recorded), recorded["parameters"], self._task.system
        return lambda sample: with_reasks(hash_variant(target, content_of(prompt, sample), parameters, system), reasks)


def _digest_of_variant(variant: ResolvedVariant, reasks: int) -> Callable[[Sample], str]:
    return lambda sample: with_reasks(variant.digest(variant.content(sample)), reasks)


def adopt_ids(dataset: Dataset, stored: Iterable[EvalOutcome], digests: RequestDigests) -> dict[str, str]:
    """Find the ids under which samples are stored whose ids were made of a content that was edited since.

    A stored sample that is no longer there and a new one that sends the same request are one sample, edited.

    Args:
        dataset: The samples, all of them.
        stored: Results of the run.
        digests: Digests of requests.

    Returns:
        Stored id by present id.
    """
    gone: dict[tuple[str, str], dict[str, None]] = {}
    stored_ids: set[str] = set()
    for outcome in stored:
        stored_ids.add(outcome.sample_id)
        if outcome.sample_id not in dataset.by_id:
            gone.setdefault((outcome.route, digests_of(outcome.pipeline_run_id)[1]), {})[outcome.sample_id] = None
    adopted: dict[str, str] = {}
    if not gone:
        return adopted
    labels = sorted({label for label, _digest in gone})
    taken: set[str] = set()
    for sample in dataset:
        if sample.key in stored_ids or not dataset.has_made_id(sample):
            continue
        for label in labels:
            candidates = gone.get((label, digests.find(label, sample) or ""), ())
            found = next((name for name in candidates if name not in taken), None)
            if found is not None:
                adopted[sample.key] = found
                taken.add(found)
                break
    return adopted


@dataclass(slots=True)
class Edits:
    """Differences between a dataset and the samples that stored results are of.

    Attributes:
        removed: Ids of samples that are no longer there.
        changed: Ids of samples for which something else would be sent.
        without_output: Ids of samples that must be scored again, but whose outputs were not stored.
        rescored: Ids of samples of which only what scores depend on was edited.
        prompts: Label of each variant that sends something else for an unedited sample, and one such sample.
    """

    removed: set[str] = field(default_factory=set)
    changed: set[str] = field(default_factory=set)
    without_output: set[str] = field(default_factory=set)
    rescored: set[str] = field(default_factory=set)
    prompts: dict[str, str] = field(default_factory=dict)

    @property
    def are_allowed(self) -> bool:
        """Whether the stored results can stay."""
        return not (self.removed or self.changed or self.without_output or self.prompts)

    def require_allowed(self, run_name: str) -> None:
        """Refuse to mix samples, or prompts of one label, that were edited since their results were stored.

        Raises:
            LLMEvaluationError: There are such; the message names some.
        """
        named = (("removed", self.removed), ("edited", self.changed))
        changes = [f"{what}: {list_some(ids)}" for what, ids in named if ids]
        if changes:
            raise LLMEvaluationError(
                f"The dataset of evaluation {run_name!r} has changed since its results were stored: samples "
                f"{'; '.join(changes)}. Use another name, or undo the change."
            )
        if self.without_output:
            raise LLMEvaluationError(
                f"Samples of evaluation {run_name!r} were edited, and cannot be scored again because their outputs "
                f"were not stored (store_payloads): {list_some(self.without_output)}. Use another name, or undo the "
                "change."
            )
        for label, sample_id in self.prompts.items():
            raise LLMEvaluationError(
                f"In evaluation {run_name!r}, {label} was asked something else: its prompt or parameters "
                f"have changed (first seen on sample {sample_id}). Use another name or label."
            )


def find_edits(
    finished: Sequence[EvalOutcome], dataset: Dataset, contents: Mapping[str, str], digests: RequestDigests
) -> Edits:
    """Compare stored results with the samples that they are of.

    Args:
        finished: The results that will stay.
        dataset: The samples.
        contents: Digest of the content of each sample.
        digests: Digests of requests.
    """
    edits = Edits()
    # A digest is computed once for all epochs of a sample.
    requests: dict[tuple[str, str], str | None] = {}
    for outcome in finished:
        sample_id, label = outcome.sample_id, outcome.route
        sample = dataset.by_id.get(sample_id)
        if sample is None:
            edits.removed.add(sample_id)
            continue
        key = (label, sample_id)
        if key not in requests:
            requests[key] = digests.find(label, sample)
        is_same_content = content_digest_of(outcome) == contents[sample_id]
        if requests[key] == digests_of(outcome.pipeline_run_id)[1]:
            if not is_same_content:
                can_score = outcome.has_output or outcome.status == FAILED
                (edits.rescored if can_score else edits.without_output).add(sample_id)
        elif not is_same_content:
            edits.changed.add(sample_id)
        elif requests[key] is not None and digests.is_called(label) and not digests.is_same_template(label):
            edits.prompts.setdefault(label, sample_id)
    return edits
