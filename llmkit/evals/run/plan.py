"""Plan of an evaluation, checked before anything is sent."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from uuid_utils.compat import uuid7

from llmkit.errors import LLMEvaluationError
from llmkit.eval_ports import EvalOutcome, EvalResult, EvalRun
from llmkit.evals.answer_type import AnswerType
from llmkit.evals.budget import Budget
from llmkit.evals.call_names import content_digest_of, read_epoch, read_legible_id, with_reasks
from llmkit.evals.dataset.dataset import Dataset, Reading, Sample
from llmkit.evals.dataset.tables import is_frame
from llmkit.evals.decide.course import require_runnable
from llmkit.evals.decide.stopping import Decided
from llmkit.evals.prompt import Content
from llmkit.evals.provenance import describe_process
from llmkit.evals.results import FAILED, FINAL_CODES
from llmkit.evals.run.decision import group_units, require_decidable, sort_by_rule
from llmkit.evals.run.edits import RENAMED, Edits, RequestDigests, adopt_ids, find_edits
from llmkit.evals.run.options import EvaluateOptions, Extractor
from llmkit.evals.run.progress import Progress
from llmkit.evals.scorers import DEFAULT_SCORER_TIMEOUT_S, Scorer, is_lower_better
from llmkit.evals.scorers.base import Options
from llmkit.evals.solve.function import DEFAULT_SOLVE_TIMEOUT_S
from llmkit.evals.tasks.task import Task
from llmkit.evals.tasks.variant import DIGEST_LENGTH, ResolvedVariant, RouteLike, check_endpoints, resolve_variants
from llmkit.prices.price_list import PriceList
from llmkit.types import utc_now

if TYPE_CHECKING:
    from llmkit.service import LLMService

__all__ = ["Plan", "Stored"]

DEFAULT_CONCURRENCY = 8
AUTO: Literal["auto"] = "auto"


@dataclass(frozen=True, slots=True)
class Stored:
    """A run as the store has it before it is continued.

    Attributes:
        run: The run.
        outcomes: Its results, in short.
    """

    run: EvalRun
    outcomes: Sequence[EvalOutcome]


@dataclass(frozen=True, slots=True)
class Plan:
    """Plan of an evaluation, checked before anything is sent.

    Attributes:
        dataset: The samples that were read: those that are selected, and those of stored results.
        selected: The samples to run.
        size: How many samples the dataset has; those that are selected, where it was not read to its end.
        is_whole: Whether that is the whole dataset's.
        renamed: Id of each sample that is stored under another one than its content would give it now.
        extract: Extracts the verdicts of judges.
        ask: Gets the answers: as `extract`, or as free text.
        edits: Differences to the samples that stored results are of.
        numbers: Position of each selected sample, by id.
        turns: Position of each variant, by label.
        stop_when: Rule that ends the run early; the selected samples are in its order.
        prices: Prices of the user's own, by which a budget in US dollars is kept.
    """

    task: Task
    service: LLMService
    dataset: Dataset
    selected: Dataset
    size: int
    is_whole: bool
    renamed: Mapping[str, str]
    edits: Edits
    variants: tuple[ResolvedVariant, ...]
    scorers: tuple[Scorer, ...]
    epochs: int
    concurrency: int
    reasks: int
    scorer_timeout_s: float | None
    solve_timeout_s: float | None
    retry_failed: bool | Literal["all"]
    progress: bool | Callable[[Progress], None]
    show_answers: bool
    budget: Budget
    extract: Extractor
    ask: Extractor
    sample_digests: Mapping[str, str]
    warm_up: bool
    stop_when: Decided | None
    prices: PriceList | None
    numbers: Mapping[str, int]
    turns: Mapping[str, int]

    @classmethod
    def make(
        cls,
        task: Task,
        routes: RouteLike | Sequence[RouteLike],
        service: LLMService,
        options: EvaluateOptions,
        stored: Stored | None = None,
    ) -> Plan:
        """Check task, routes and options, read the dataset as far as it is needed, and render every prompt once.

        Args:
            task: The task.
            routes: The variants to run.
            service: Answers.
            options: Options of `evaluate`.
            stored: The run that will be continued; None for a new one.
        """
        resolved = resolve_variants(
            task,
            routes,
            service=service,
            parameters=options.get("parameters") or {},
            policies=options.get("policies", {}),
        )
        # A variant of the stored run may name an endpoint that has been removed since: what is finished stays complete.
        known = stored.run.spec.get("routes", {}) if stored else {}
        check_endpoints(each for each in resolved if each.label not in known)
        extract = options.get("extract")
        if extract is not None and not callable(extract):
            raise LLMEvaluationError(f"extract must be a function like llmkit.pydanticai.extract; got {extract!r:.60}.")
        reasks = _at_least("reasks", options.get("reasks", 1), 0)
        retry_failed = options.get("retry_failed", True)
        finished = [each for each in stored.outcomes if not _is_open(each, retry_failed)] if stored else []
        digests = RequestDigests(task, resolved, reasks, stored.run if stored else None)
        samples = _read_samples(task, service, options.get("limit"), stored, finished, digests)
        rule = options.get("stop_when")
        selected = sort_by_rule(samples.selected, rule)
        plan = cls(
            task=task,
            service=service,
            dataset=samples.dataset,
            selected=selected,
            size=samples.size,
            is_whole=samples.is_whole,
            renamed=samples.renamed,
            edits=samples.edits,
            variants=resolved,
            scorers=task.scorer_objects,
            epochs=_at_least("epochs", options.get("epochs", 1), 1),
            concurrency=_concurrency(options.get("concurrency", AUTO)),
            reasks=reasks,
            scorer_timeout_s=_above_zero("scorer_timeout_s", options.get("scorer_timeout_s", DEFAULT_SCORER_TIMEOUT_S)),
            solve_timeout_s=_above_zero("solve_timeout_s", options.get("solve_timeout_s", DEFAULT_SOLVE_TIMEOUT_S)),
            retry_failed=retry_failed,
            progress=options.get("progress", True),
            show_answers=options.get("show_answers") is not False,
            budget=options.get("budget") or Budget(),
            extract=extract or _load_extract("extract"),
            ask=extract or _load_extract("ask_text" if task.answer.is_text else "extract"),
            sample_digests=samples.digests,
            warm_up=options.get("warm_up", True),
            stop_when=rule,
            prices=options.get("prices"),
            numbers={sample.key: number for number, sample in enumerate(selected)},
            turns={variant.label: number for number, variant in enumerate(resolved)},
        )
        require_decidable(rule, resolved, plan.epochs, [scorer.name for scorer in plan.scorers])
        for variant in resolved:
            if variant.course is not None:
                require_runnable(variant.course.policy)
        plan.require_renderable()
        plan.require_comparable_targets()
        return plan

    def require_renderable(self) -> None:
        """Render every prompt, so that a missing field shows before anything is paid."""
        for sample in self.selected:
            for part in (part for variant in self.variants for part in (variant, *variant.parts)):
                part.content(sample)

    def require_comparable_targets(self) -> None:
        """Refuse a target that no answer can equal, before anything is paid."""
        for scorer in self.scorers:
            if isinstance(scorer, Options) and not self.answer.has_open_fields:
                for sample in self.selected:
                    try:
                        scorer.check_target(self.answer.view, sample)
                    except LLMEvaluationError as error:
                        place = self.dataset.find_place(sample)
                        raise LLMEvaluationError(f"{place}: {error}" if place else str(error)) from None

    def new_run(self, workspace_id: str, name: str) -> EvalRun:
        """Return the run as it is stored if there is none of this name."""
        return EvalRun(
            id=uuid7(),
            workspace_id=workspace_id,
            name=name,
            task_name=self.task.name,
            task_sha256=self.task.task_sha256,
            dataset_sha256=self.selected.sha256,
            created_at_utc=utc_now(),
            spec={
                "task": self.task.definition(),
                "scorers": [scorer.name for scorer in self.scorers],
                "scorers_sha256": self.task.scorers_sha256,
                "judges": self.judges(),
                "lower_is_better": self.lower_is_better(),
                "routes": {variant.label: dict(variant.description) for variant in self.variants},
                "epochs": self.epochs,
                "samples": self.size,
                "made_with": describe_process(self.service.settings, self._options(), self.task.base_dir or Path.cwd()),
                **({} if self.stop_when is None else {"stop_when": self.stop_when.describe(self.units)}),
                "groups": {sample.key: sample.group for sample in self.dataset if sample.group is not None},
                **({} if self.is_whole else {"first_samples_only": True}),
            },
        )

    def update_run(self, run: EvalRun) -> EvalRun:
        """Return the record of a run after this plan was carried out: its results are of these samples and scorers."""
        now, before = self.new_run(run.workspace_id, run.name), run.spec
        is_larger = self.size >= int(before.get("samples", 0))
        kept = {name: group for name, group in before.get("groups", {}).items() if name not in self.dataset.by_id}
        spec = {
            **before,
            **{name: now.spec[name] for name in ("scorers", "scorers_sha256", "judges", "lower_is_better")},
            "routes": {**before.get("routes", {}), **now.spec["routes"]},
            "epochs": max(int(before.get("epochs", 1)), self.epochs),
            "groups": {**kept, **now.spec["groups"]},
            "samples": max(int(before.get("samples", 0)), self.size),
        }
        if self.stop_when is not None:
            spec["stop_when"] = now.spec["stop_when"]
        if self.renamed:
            spec[RENAMED] = {**before.get(RENAMED, {}), **self.renamed}
        if is_larger and self.is_whole:
            spec.pop("first_samples_only", None)
        return replace(run, dataset_sha256=now.dataset_sha256 if is_larger else run.dataset_sha256, spec=spec)

    @property
    def host(self) -> str:
        """Name of this machine."""
        return "" if self.service.settings is None else self.service.settings.host

    @property
    def answer(self) -> AnswerType:
        """The type of the answers."""
        return self.task.answer

    @property
    def units(self) -> dict[str, list[str]]:
        """The ids of the samples of each unit of the stop rule, in its order; empty without one."""
        return {} if self.stop_when is None else group_units(self.selected, self.stop_when)

    def _options(self) -> dict[str, Any]:
        """Return the options besides the task, for the record."""
        names = ("concurrency", "reasks", "retry_failed", "scorer_timeout_s")
        return {name: getattr(self, name) for name in names}

    def lower_is_better(self) -> list[str]:
        """Return the names of the scorers of which less is better."""
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

    def request_digest(self, variant: ResolvedVariant, content: Content) -> str:
        """Return a short hash of what a variant sends for a sample of this content, reasks included."""
        return with_reasks(variant.digest(content), self.reasks)

    def is_open(self, result: EvalOutcome | EvalResult) -> bool:
        """Return whether a stored result is to be replaced by calling again.

        A function may use any part of a sample, so it runs again after each edit of one. Its calls have the same names,
        so that those which are the same come from the store.
        """
        if self.task.solve is not None and result.status != FAILED:
            content = self.sample_digests.get(result.sample_id)
            if content is not None and content_digest_of(result) != content:
                return True
        return _is_open(result, self.retry_failed)

    def repeats(self, error_code: str | None) -> bool:
        """Return whether a failure with this code, from an earlier call, is called again."""
        return self.retry_failed == "all" or (self.retry_failed is True and error_code not in FINAL_CODES)

    def job_at(self, position: int) -> tuple[Sample, ResolvedVariant, int]:
        """Return the job at a position of the work queue.

        Epoch by epoch, every sample runs on all variants before the next one. The variant that comes first changes from
        sample to sample, so that none always has the warmer server.
        """
        count = len(self.variants)
        rest, turn = divmod(position, count)
        epoch, number = divmod(rest, len(self.selected))
        return self.selected.samples[number], self.variants[(number + turn) % count], epoch

    def position_of(self, sample_id: str, route: str, epoch: int) -> int | None:
        """Return the position of a result in the work queue; None when this call does not run it."""
        number, variant = self.numbers.get(sample_id), self.turns.get(route)
        if number is None or variant is None or epoch >= self.epochs:
            return None
        return (epoch * len(self.numbers) + number) * len(self.turns) + (variant - number) % len(self.turns)

    def position_of_name(self, name: str) -> int | None:
        """Return the position of the call with this name; None if the sample's id is not legible in it."""
        number, epoch = self.numbers.get(read_legible_id(name)), read_epoch(name)
        if number is None or epoch >= self.epochs:
            return None
        return (epoch * len(self.numbers) + number) * len(self.turns)

    @property
    def total(self) -> int:
        """How many there are."""
        return self.epochs * len(self.selected) * len(self.variants)


def _is_open(result: EvalOutcome | EvalResult, retry_failed: bool | Literal["all"]) -> bool:
    if result.status != FAILED or retry_failed is False:
        return False
    return retry_failed == "all" or result.error_code not in FINAL_CODES


class _Samples(NamedTuple):
    """The samples of a plan; see `Plan`."""

    dataset: Dataset
    selected: Dataset
    size: int
    is_whole: bool
    renamed: Mapping[str, str]
    digests: Mapping[str, str]
    edits: Edits


def _read_samples(
    task: Task,
    service: LLMService,
    limit: int | None,
    stored: Stored | None,
    finished: Sequence[EvalOutcome],
    digests: RequestDigests,
) -> _Samples:
    """Read the samples to run and those of stored results, under the ids of the store."""
    most_mb = None if service.settings is None else service.settings.max_file_mb

    def read(*, keep_floats: bool) -> _Samples:
        reading = Reading(task.dataset, task.base_dir, columns=task.columns, most_mb=most_mb, keep_floats=keep_floats)
        with closing(reading):
            return _match_samples(reading, limit, stored, finished, digests)

    samples = read(keep_floats=False)
    if samples.edits.are_allowed or not is_frame(task.dataset):
        return samples
    # Version 0.1.0 took 1.0 in a column of floats for another content, and another text in a prompt, than 1.
    as_before = read(keep_floats=True)
    return as_before if as_before.edits.are_allowed else samples


def _match_samples(
    reading: Reading,
    limit: int | None,
    stored: Stored | None,
    finished: Sequence[EvalOutcome],
    digests: RequestDigests,
) -> _Samples:
    reading.read(limit)
    renamed: dict[str, str] = {}
    if stored is not None:
        # Of two edits of one sample the later one counts.
        present = {old: new for new, old in stored.run.spec.get(RENAMED, {}).items()}
        reading.read_until(present.get(outcome.sample_id, outcome.sample_id) for outcome in stored.outcomes)
        dataset = reading.dataset()
        renamed = {new: old for old, new in present.items() if new in dataset.by_id and old not in dataset.by_id}
        dataset = dataset.rename(renamed)
        adopted = adopt_ids(dataset, stored.outcomes, digests)
        dataset = dataset.rename(adopted)
        renamed |= adopted
    else:
        dataset = reading.dataset()
    selected = dataset.limit(limit)
    size = len(selected) if reading.total is None else reading.total
    contents = {sample.key: dataset.content_sha256(sample)[:DIGEST_LENGTH] for sample in dataset}
    # A sample that was not read yet is not one that was removed.
    known = finished if reading.is_whole else [each for each in finished if each.sample_id in dataset.by_id]
    edits = find_edits(known, dataset, contents, digests)
    return _Samples(dataset, selected, size, reading.total is not None, renamed, contents, edits)


def _load_extract(name: str) -> Extractor:
    # Imported here: Pydantic AI takes a second.
    from llmkit.pydanticai import extraction

    extract: Extractor = getattr(extraction, name)
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
