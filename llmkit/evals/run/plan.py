"""Plan of an evaluation, checked before anything is sent."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from uuid_utils.compat import uuid7

from llmkit.errors import LLMEvaluationError
from llmkit.eval_ports import EvalOutcome, EvalRun
from llmkit.evals.budget import Budget
from llmkit.evals.call_names import _epoch, _legible_id, _some, digests_of, with_reasks
from llmkit.evals.dataset.dataset import Dataset, Sample
from llmkit.evals.prompt import Content
from llmkit.evals.provenance import describe_process
from llmkit.evals.results import FAILED, FINAL_CODES
from llmkit.evals.run.options import EvaluateOptions, Extractor
from llmkit.evals.run.progress import Progress
from llmkit.evals.scorers import DEFAULT_SCORER_TIMEOUT_S, Scorer, is_lower_better
from llmkit.evals.tasks.task import Task
from llmkit.evals.tasks.variant import DIGEST_LENGTH, ResolvedVariant, RouteLike, resolve_variants
from llmkit.types import utc_now

if TYPE_CHECKING:
    from llmkit.service import LLMService

__all__ = ["Plan"]

DEFAULT_CONCURRENCY = 8
AUTO: Literal["auto"] = "auto"


@dataclass(frozen=True, slots=True)
class Plan:
    """Plan of an evaluation, checked before anything is sent."""

    task: Task
    service: LLMService
    dataset: Dataset
    selected: Dataset
    variants: tuple[ResolvedVariant, ...]
    scorers: tuple[Scorer, ...]
    epochs: int
    concurrency: int
    reasks: int
    scorer_timeout_s: float | None
    retry_failed: bool | Literal["all"]
    progress: bool | Callable[[Progress], None]
    budget: Budget
    extract: Extractor
    sample_digests: Mapping[str, str]
    warm_up: bool
    # Of the selected samples by id, and of the variants by label.
    numbers: Mapping[str, int]
    turns: Mapping[str, int]

    @classmethod
    def make(
        cls,
        task: Task,
        routes: RouteLike | Sequence[RouteLike],
        service: LLMService,
        options: EvaluateOptions,
    ) -> Plan:
        """Check task, routes and options, read the dataset, and render every prompt once."""
        dataset = task.load()
        selected = dataset.limit(options.get("limit"))
        resolved = resolve_variants(
            task,
            routes,
            service=service,
            parameters=options.get("parameters") or {},
            policies=options.get("policies", {}),
        )
        plan = cls(
            task=task,
            service=service,
            dataset=dataset,
            selected=selected,
            variants=resolved,
            scorers=task.scorer_objects,
            epochs=_at_least("epochs", options.get("epochs", 1), 1),
            concurrency=_concurrency(options.get("concurrency", AUTO)),
            reasks=_at_least("reasks", options.get("reasks", 1), 0),
            scorer_timeout_s=_above_zero("scorer_timeout_s", options.get("scorer_timeout_s", DEFAULT_SCORER_TIMEOUT_S)),
            retry_failed=options.get("retry_failed", True),
            progress=options.get("progress", True),
            budget=options.get("budget") or Budget(),
            extract=options.get("extract") or _default_extract(),
            sample_digests={sample.key: dataset.content_sha256(sample)[:DIGEST_LENGTH] for sample in dataset},
            warm_up=options.get("warm_up", True),
            numbers={sample.key: number for number, sample in enumerate(selected)},
            turns={variant.label: number for number, variant in enumerate(resolved)},
        )
        plan.require_renderable()
        return plan

    def require_renderable(self) -> None:
        """Render every prompt, so that a missing field shows before anything is paid."""
        for sample in self.selected:
            for variant in self.variants:
                variant.content(sample)

    def new_run(self, workspace_id: str, name: str) -> EvalRun:
        """Return the run as it is stored if there is none of this name."""
        return EvalRun(
            id=uuid7(),
            workspace_id=workspace_id,
            name=name,
            task_name=self.task.name,
            task_sha256=self.task.task_sha256,
            dataset_sha256=self.dataset.sha256,
            created_at_utc=utc_now(),
            spec={
                "task": self.task.definition(),
                "scorers": [scorer.name for scorer in self.scorers],
                "scorers_sha256": self.task.scorers_sha256,
                "judges": self.judges(),
                "lower_is_better": self.lower_is_better(),
                "routes": {variant.label: dict(variant.description) for variant in self.variants},
                "epochs": self.epochs,
                "samples": len(self.dataset),
                "made_with": describe_process(self.service.settings, self._options(), self.task.base_dir or Path.cwd()),
                "groups": {sample.key: sample.group for sample in self.dataset if sample.group is not None},
            },
        )

    def _options(self) -> dict[str, Any]:
        """Return the options besides the task, for the record."""
        names = ("concurrency", "reasks", "retry_failed", "scorer_timeout_s")
        return {name: getattr(self, name) for name in names}

    def lower_is_better(self) -> list[str]:
        """Names of the scorers of which less is better."""
        return [scorer.name for scorer in self.scorers if is_lower_better(scorer)]

    def judges(self) -> dict[str, Any]:
        """Model, prompt and criteria of each judge, by the name of its metric."""
        named = {scorer.name: getattr(scorer, "description", None) for scorer in self.scorers}
        return {name: description() for name, description in named.items() if description is not None}

    def require_same_task(self, run: EvalRun) -> None:
        """Refuse to mix two tasks under one name."""
        if run.task_sha256 == self.task.task_sha256:
            return
        then, now = run.spec.get("task", {}), self.task.definition()
        changed = ", ".join(part for part, value in now.items() if then.get(part) != value) or "the task"
        raise LLMEvaluationError(
            f"Evaluation {run.name!r} was made with another task; changed: {changed}. "
            "Use another name, or undo the change."
        )

    def require_same_samples(self, run: EvalRun, stored: Iterable[EvalOutcome]) -> None:
        """Refuse to mix samples, or prompts of one label, that were edited since their results were stored."""
        finished = [outcome for outcome in stored if not self.is_open(outcome)]
        gone = {outcome.sample_id for outcome in finished} - self.sample_digests.keys()
        edited = {outcome.sample_id for outcome in finished if self._is_edited(outcome)} - gone
        changes = [f"{what}: {_some(ids)}" for what, ids in (("removed", gone), ("edited", edited)) if ids]
        if changes:
            raise LLMEvaluationError(
                f"The dataset of evaluation {run.name!r} has changed since its results were stored: samples "
                f"{'; '.join(changes)}. Use another name, or undo the change."
            )
        self._require_same_variants(run, finished)

    def _is_edited(self, outcome: EvalOutcome) -> bool:
        return digests_of(outcome.pipeline_run_id)[0] != self.sample_digests.get(outcome.sample_id)

    def _require_same_variants(self, run: EvalRun, finished: Iterable[EvalOutcome]) -> None:
        variants = {variant.label: variant for variant in self.variants}
        # Once for all epochs of a sample.
        compared: set[tuple[str, str, str]] = set()
        for outcome in finished:
            variant, digest = variants.get(outcome.route), digests_of(outcome.pipeline_run_id)[1]
            if variant is None or (outcome.route, outcome.sample_id, digest) in compared:
                continue
            if digest != self.request_digest(variant, variant.content(self.dataset.by_id[outcome.sample_id])):
                raise LLMEvaluationError(
                    f"In evaluation {run.name!r}, {variant.label} was asked something else: its prompt or parameters "
                    f"have changed (first seen on sample {outcome.sample_id}). Use another name or label."
                )
            if self.epochs > 1:
                compared.add((outcome.route, outcome.sample_id, digest))

    def request_digest(self, variant: ResolvedVariant, content: Content) -> str:
        """Short hash of what a variant sends for a sample of this content, reasks included."""
        return with_reasks(variant.digest(content), self.reasks)

    def is_open(self, result: EvalOutcome) -> bool:
        """Return whether a stored result is to be replaced by calling again."""
        if result.status != FAILED or self.retry_failed is False:
            return False
        return self.retry_failed == "all" or result.error_code not in FINAL_CODES

    def cell(self, place: int) -> tuple[Sample, ResolvedVariant, int]:
        """One of all that is to be settled: every sample of an epoch on every route, the first changing by turns."""
        count = len(self.variants)
        rest, turn = divmod(place, count)
        epoch, number = divmod(rest, len(self.selected))
        return self.selected.samples[number], self.variants[(number + turn) % count], epoch

    def cell_of(self, sample_id: str, route: str, epoch: int) -> int | None:
        """Return the place of a result; None when it is not among what is to be settled."""
        number, variant = self.numbers.get(sample_id), self.turns.get(route)
        if number is None or variant is None or epoch >= self.epochs:
            return None
        return (epoch * len(self.numbers) + number) * len(self.turns) + (variant - number) % len(self.turns)

    def place_of_name(self, name: str) -> int | None:
        """Return the position of the call with this name; None if the sample's id is not legible in it."""
        number, epoch = self.numbers.get(_legible_id(name)), _epoch(name)
        if number is None or epoch >= self.epochs:
            return None
        return (epoch * len(self.numbers) + number) * len(self.turns)

    @property
    def total(self) -> int:
        """How many there are."""
        return self.epochs * len(self.selected) * len(self.variants)


def _default_extract() -> Extractor:
    from llmkit.pydanticai.extraction import extract

    return extract


def _concurrency(given: int | Literal["auto"]) -> int:
    return DEFAULT_CONCURRENCY if given == AUTO else _at_least("concurrency", given, 1)


def _at_least(name: str, value: int, least: int) -> int:
    if value < least:
        raise LLMEvaluationError(f"{name} must be at least {least}; got {value}.")
    return value


def _above_zero(name: str, value: float | None) -> float | None:
    if value is not None and not value > 0:
        raise LLMEvaluationError(f"{name} must be above 0, or None for no limit; got {value}.")
    return value
