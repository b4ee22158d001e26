"""Runs a task: samples x routes x epochs, every result durable as soon as it is there."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypedDict

from uuid_utils.compat import uuid7

from llmkit.canonical import sha256_of
from llmkit.errors import (
    LLMAuthenticationError,
    LLMConfigurationError,
    LLMContentBlocked,
    LLMEmptyReply,
    LLMError,
    LLMEvaluationError,
    LLMInProgress,
    LLMModelNotFound,
    LLMPermissionDenied,
    LLMQuotaExhausted,
    LLMReasoningExhausted,
    LLMStoreError,
    LLMUnusableAnswer,
)
from llmkit.evals.dataset import Dataset, Sample
from llmkit.evals.report import (
    FAILED,
    FALLBACK_WARNING,
    IN_PROGRESS,
    NOT_RUN,
    SCORER_FAILED,
    SUCCEEDED,
    EvalReport,
    ResultKey,
    Work,
    key_of,
)
from llmkit.evals.scorers import Scorer, Scores, apply_scorers
from llmkit.evals.task import Task
from llmkit.evals.variant import DIGEST_LENGTH, Lane, RouteLike, lanes
from llmkit.ports import EvalResult, EvalRun, EvalStore
from llmkit.telemetry import redact
from llmkit.types import RequestContext, TokenUsage, utc_now

if TYPE_CHECKING:
    from typing import Unpack

    from llmkit.pydanticai.extraction import Extraction
    from llmkit.service import LLMService

__all__ = ["EvaluateOptions", "Extractor", "Progress", "evaluate", "load_report"]

DEFAULT_CONCURRENCY = 8
FAILURES_BEFORE_STOP = 3
LONGEST_MESSAGE = 2_000
PART_LENGTH = 48
STAGE = "sample"

# A route that fails so will fail so again on the next sample.
HOPELESS = (
    LLMAuthenticationError,
    LLMPermissionDenied,
    LLMConfigurationError,
    LLMModelNotFound,
    LLMQuotaExhausted,
)


class Extractor(Protocol):
    """What `llmkit.pydanticai.extraction.extract` does; another one can be injected."""

    async def __call__(
        self,
        service: LLMService,
        output_type: type[Any],
        messages: Sequence[Any],
        **options: Any,
    ) -> Extraction[Any]:
        """Ask for an instance of the type. Raises `LLMError` only."""
        ...


@dataclass(frozen=True, slots=True)
class Progress:
    """How far an evaluation is; given to a progress function after every sample.

    Attributes:
        done: Samples x routes x epochs that are settled, those from earlier runs included.
        total: All of them.
        failed: How many of those done now ended without a valid output.
        reused: How many were there already.
        sent: Requests sent to providers so far.
    """

    done: int
    total: int
    failed: int
    reused: int
    sent: int


class EvaluateOptions(TypedDict, total=False):
    """Options of `evaluate`, all of them optional.

    Attributes:
        epochs: Repeats of every sample; 1. A seed grows by one from repeat to repeat.
        limit: Only the first samples of the dataset; all.
        concurrency: Most samples under way at once; 8.
        progress: True for a progress bar on stderr, False for none, or a function of `Progress`; True.
        retry_failed: True calls again for what failed without an answer of the model; an answer that does not fit or was cut
            is a result and stays, because repeating it until it fits would flatter the model. "all" repeats these too (an
            answer that is stored is served from the store), False repeats none; True.
        parameters: Generation parameters on top of the task's.
        repairs: How often a model is asked again with the validation errors; 1.
        policies: Services that route by another policy, for routes written `policy:NAME`.
        extract: Another extractor than `llmkit.pydanticai.extraction.extract`.
    """

    epochs: int
    limit: int | None
    concurrency: int
    progress: bool | Callable[[Progress], None]
    retry_failed: bool | Literal["all"]
    parameters: Mapping[str, Any] | None
    repairs: int
    policies: Mapping[str, LLMService]
    extract: Extractor | None


async def evaluate(
    task: Task,
    routes: RouteLike | Sequence[RouteLike],
    *,
    service: LLMService,
    store: EvalStore,
    workspace_id: str,
    name: str,
    **options: Unpack[EvaluateOptions],
) -> EvalReport:
    """Run every sample on every route, and report on all that is stored under this name.

    The same name continues: what is done is not called again; more samples, epochs or routes are added to it. Stored
    outputs are scored again, without a call, when a scorer failed, was added or edited. The content cache takes no
    part, so that latencies are real; resuming rests on idempotency keys.

    A failing sample is a row with an error code. A route that fails three times in a row for a reason that will not go
    away (key, model, configuration, quota) is not called any more; its other samples are NOT_RUN until the next time.

    Args:
        task: What to ask and how to score.
        routes: `provider/model` (pinned), `provider/model@prompt`, `policy:NAME`, or `Variant`s of these.
        service: Answers; it records and deduplicates the calls.
        store: Keeps runs and results.
        workspace_id: Whose evaluation this is.
        name: Name of the run in its workspace.
        **options: See `EvaluateOptions`.

    Raises:
        LLMEvaluationError: Task, dataset, route or option cannot be used, or the run of this name was another task or
            other samples; the message says what changed. Nothing was sent.
        LLMStoreError: The database failed. What was finished before is kept.
    """
    plan = Plan.make(task, routes, service, options)
    run = await _opened(plan, store, workspace_id, name)
    stored = {key_of(result): result for result in await store.results(run.id)}
    plan.require_same_samples(run, stored)
    evaluation = _Evaluation(plan, run, store, stored)
    await evaluation.work()
    return await evaluation.report()


async def load_report(store: EvalStore, workspace_id: str, name: str, *, task: Task | None = None) -> EvalReport:
    """The report of a stored run, without calling anything.

    Args:
        store: Where it is.
        workspace_id: Whose it is.
        name: Its name.
        task: Adds inputs, targets and groups to the report.

    Raises:
        LLMEvaluationError: There is no run of this name; the message lists those that there are.
    """
    run = await store.get_run(workspace_id, name)
    if run is None:
        known = ", ".join(other.name for other in await store.list_runs(workspace_id)) or "none yet"
        raise LLMEvaluationError(f"There is no evaluation {name!r} in workspace {workspace_id!r}; there are: {known}.")
    results = await store.results(run.id)
    in_doubt = await store.in_doubt(workspace_id, _prefix(run))
    samples = task.load().by_id if task else {}
    return EvalReport(run=run, results=results, samples=samples, in_doubt=in_doubt)


@dataclass(frozen=True, slots=True)
class Plan:
    """What will be done, checked before anything is sent."""

    task: Task
    dataset: Dataset
    selected: Dataset
    lanes: tuple[Lane, ...]
    scorers: tuple[Scorer, ...]
    epochs: int
    concurrency: int
    repairs: int
    retry_failed: bool | Literal["all"]
    progress: bool | Callable[[Progress], None]
    extract: Extractor
    sample_digests: Mapping[str, str]

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
        plan = cls(
            task=task,
            dataset=dataset,
            selected=dataset.limit(options.get("limit")),
            lanes=lanes(
                task,
                routes,
                service=service,
                parameters=options.get("parameters") or {},
                policies=options.get("policies", {}),
            ),
            scorers=task.scorer_objects,
            epochs=_at_least("epochs", options.get("epochs", 1), 1),
            concurrency=_at_least("concurrency", options.get("concurrency", DEFAULT_CONCURRENCY), 1),
            repairs=_at_least("repairs", options.get("repairs", 1), 0),
            retry_failed=options.get("retry_failed", True),
            progress=options.get("progress", True),
            extract=options.get("extract") or _default_extract(),
            sample_digests={sample.key: _sample_digest(sample) for sample in dataset},
        )
        plan.require_renderable()
        return plan

    def require_renderable(self) -> None:
        """Render every prompt, so that a missing field shows before anything is paid."""
        for sample in self.selected:
            for lane in self.lanes:
                lane.messages(sample)

    def new_run(self, workspace_id: str, name: str) -> EvalRun:
        """The run as it is stored if there is none of this name."""
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
                "routes": {lane.label: dict(lane.description) for lane in self.lanes},
                "epochs": self.epochs,
                "samples": len(self.dataset),
                "groups": {sample.key: sample.group for sample in self.dataset if sample.group is not None},
            },
        )

    def require_same_task(self, run: EvalRun) -> None:
        """Refuse to mix two tasks under one name."""
        if run.task_sha256 == self.task.task_sha256:
            return
        then, now = run.spec.get("task", {}), self.task.definition()
        changed = ", ".join(part for part, value in now.items() if then.get(part) != value) or "the task"
        raise LLMEvaluationError(
            f"Evaluation {run.name!r} was made with another task: changed: {changed}. Use another name, or undo the change."
        )

    def require_same_samples(self, run: EvalRun, stored: Mapping[ResultKey, EvalResult]) -> None:
        """Refuse to mix samples, or prompts of one label, that were edited since their results were stored."""
        finished = {key: result for key, result in stored.items() if not self.is_open(result)}
        gone = {key.sample_id for key in finished} - self.sample_digests.keys()
        edited = {key.sample_id for key, result in finished.items() if self._is_edited(key, result)} - gone
        changes = [f"{what}: {_some(ids)}" for what, ids in (("removed", gone), ("edited", edited)) if ids]
        if changes:
            raise LLMEvaluationError(
                f"The dataset of evaluation {run.name!r} has changed since its results were stored: samples "
                f"{'; '.join(changes)}. Use another name, or undo the change."
            )
        self._require_same_lanes(run, finished)

    def _is_edited(self, key: ResultKey, result: EvalResult) -> bool:
        return _digests_of(result.pipeline_run_id)[0] != self.sample_digests.get(key.sample_id)

    def _require_same_lanes(self, run: EvalRun, finished: Mapping[ResultKey, EvalResult]) -> None:
        for lane in self.lanes:
            for key, result in finished.items():
                sample = self.dataset.by_id[key.sample_id]
                if key.route == lane.label and _digests_of(result.pipeline_run_id)[1] != self.request_digest(lane, sample):
                    raise LLMEvaluationError(
                        f"In evaluation {run.name!r}, {lane.label} was asked something else: its prompt or parameters "
                        f"have changed (first seen on sample {key.sample_id}). Use another name or label."
                    )

    def request_digest(self, lane: Lane, sample: Sample) -> str:
        """Short hash of what a lane sends for a sample, repairs included."""
        digest = lane.digest(sample)
        return digest if self.repairs == 1 else sha256_of([digest, self.repairs])[:DIGEST_LENGTH]

    def is_open(self, result: EvalResult) -> bool:
        """Whether a stored result is to be replaced by calling again."""
        if result.status != FAILED or self.retry_failed is False:
            return False
        return self.retry_failed == "all" or result.error_code not in FINAL_CODES

    def keys(self) -> Iterator[tuple[Sample, Lane, int]]:
        """All that is to be settled: every sample of an epoch on every route, the first route changing by turns."""
        count = len(self.lanes)
        for epoch in range(self.epochs):
            for number, sample in enumerate(self.selected):
                for turn in range(count):
                    yield sample, self.lanes[(number + turn) % count], epoch

    @property
    def total(self) -> int:
        """How many there are."""
        return self.epochs * len(self.selected) * len(self.lanes)


def _codes_of_final_outcomes(parent: type[LLMError]) -> Iterator[str]:
    if not parent.retryable:
        yield parent.code
    for child in parent.__subclasses__():
        yield from _codes_of_final_outcomes(child)


# The model has answered, and the answer cannot be used: that is its result.
FINAL_CODES = frozenset(_codes_of_final_outcomes(LLMUnusableAnswer))


def _default_extract() -> Extractor:
    from llmkit.pydanticai.extraction import extract

    return extract


def _at_least(name: str, value: int, least: int) -> int:
    if value < least:
        raise LLMEvaluationError(f"{name} must be at least {least}; got {value}.")
    return value


def _some(ids: set[str], most: int = 5) -> str:
    shown = sorted(ids)[:most]
    more = f" and {len(ids) - most} more" if len(ids) > most else ""
    return ", ".join(shown) + more


def _sample_digest(sample: Sample) -> str:
    return sha256_of(sample.content())[:DIGEST_LENGTH]


def _prefix(run: EvalRun) -> str:
    return f"eval:{run.id.hex}:"


def _call_name(run: EvalRun, sample_id: str, label: str, epoch: int, digests: str) -> str:
    """Name of one sample on one route in one epoch: idempotency key and `pipeline_run_id` of its calls.

    At most 255 characters with the step added. The readable parts may be cut; the digests of content and of names keep it
    unique.
    """
    parts = [re.sub(r"[^\w./@+-]", "_", text)[:PART_LENGTH] for text in (sample_id, label)]
    names = sha256_of([sample_id, label])[:DIGEST_LENGTH]
    return f"{_prefix(run)}{':'.join(parts)}:{epoch}:{names}:{digests}"


def _digests_of(call_name: str) -> tuple[str, str]:
    digests = call_name.rpartition(":")[2]
    return digests[:DIGEST_LENGTH], digests[DIGEST_LENGTH:]


async def _opened(plan: Plan, store: EvalStore, workspace_id: str, name: str) -> EvalRun:
    if not name.strip() or len(name) > 120 or not name.isprintable():
        raise LLMEvaluationError(f"The name of an evaluation is one line of 1 to 120 characters; got {name!r}.")
    run = await store.open_run(plan.new_run(workspace_id, name))
    plan.require_same_task(run)
    return run


@dataclass(slots=True)
class _Tally:
    """Counts of this call of `evaluate`."""

    total: int
    reused: int = 0
    rescored: int = 0
    called: int = 0
    replayed: int = 0
    failed: int = 0
    sent: int = 0
    skipped: int = 0

    def progress(self) -> Progress:
        done = self.reused + self.called + self.skipped
        return Progress(done, self.total, self.failed, self.reused, self.sent)

    def work(self) -> Work:
        return Work(self.reused, self.rescored, self.called, self.replayed, self.sent)


@dataclass(slots=True)
class _Health:
    """Whether a lane is worth calling: hopeless failures in a row, and the one that stopped it."""

    in_a_row: int = 0
    stopped_by: LLMError | None = None

    def note(self, error: LLMError | None) -> None:
        self.in_a_row = self.in_a_row + 1 if isinstance(error, HOPELESS) else 0
        if self.in_a_row >= FAILURES_BEFORE_STOP and self.stopped_by is None:
            self.stopped_by = error


@dataclass(frozen=True, slots=True)
class _Call:
    """One sample to be asked on one lane."""

    sample: Sample
    lane: Lane
    epoch: int


@dataclass(frozen=True, slots=True)
class _Rescore:
    """One stored output to be scored again."""

    sample: Sample
    result: EvalResult


@dataclass(slots=True)
class _Evaluation:
    """One call of `evaluate` at work."""

    plan: Plan
    run: EvalRun
    store: EvalStore
    stored: Mapping[ResultKey, EvalResult]
    tally: _Tally = field(init=False)
    health: dict[str, _Health] = field(init=False)
    in_progress: set[ResultKey] = field(default_factory=set)
    show: Callable[[Progress], None] = field(default=lambda _progress: None)

    def __post_init__(self) -> None:
        self.tally = _Tally(self.plan.total)
        self.health = {lane.label: _Health() for lane in self.plan.lanes}

    async def work(self) -> None:
        """Do all that is open, with bounded concurrency.

        Raises:
            LLMStoreError: Results cannot be kept any more.
        """
        jobs = self._jobs()
        with _shown(self.plan.progress, self.plan.total) as self.show:
            try:
                async with asyncio.TaskGroup() as group:
                    for _ in range(min(self.plan.concurrency, self.plan.total + len(self.stored))):
                        group.create_task(self._worker(jobs))
            except ExceptionGroup as errors:
                # The first one stopped the others.
                raise errors.exceptions[0] from None

    async def _worker(self, jobs: Iterator[_Call | _Rescore]) -> None:
        for job in jobs:
            if isinstance(job, _Rescore):
                await self._rescore(job)
            else:
                await self._call(job)
            self.show(self.tally.progress())

    def _jobs(self) -> Iterator[_Call | _Rescore]:
        yield from self._rescores()
        for sample, lane, epoch in self.plan.keys():
            stored = self.stored.get(ResultKey(sample.key, lane.label, epoch))
            if stored is None or self.plan.is_open(stored):
                yield _Call(sample, lane, epoch)
            else:
                self.tally.reused += 1

    def _rescores(self) -> Iterator[_Rescore]:
        edited = self.run.spec.get("scorers_sha256") != self.plan.task.scorers_sha256
        names = {scorer.name for scorer in self.plan.scorers}
        for key, result in self.stored.items():
            if result.output_json is not None and (edited or not names <= result.scores.keys()):
                yield _Rescore(self.plan.dataset.by_id[key.sample_id], result)

    async def _rescore(self, job: _Rescore) -> None:
        output = self.plan.task.output_type.model_validate_json(job.result.output_json or "")
        scores = await apply_scorers(self.plan.scorers, output, job.sample)
        fresh = _scored(job.result, scores)
        if (fresh.scores, fresh.scorer_errors) != (job.result.scores, job.result.scorer_errors):
            await self.store.save_result(fresh)
        self.tally.rescored += 1

    async def _call(self, job: _Call) -> None:
        health = self.health[job.lane.label]
        if health.stopped_by is not None:
            self.tally.skipped += 1
            return
        blank = self._blank(job)
        try:
            extraction = await self._extract(job, blank.pipeline_run_id)
        except LLMStoreError:
            raise
        except LLMInProgress:
            self.in_progress.add(key_of(blank))
            self.tally.skipped += 1
        except Exception as error:  # noqa: BLE001 (a validator of the user's type may raise anything: a row, not a crash)
            health.note(error if isinstance(error, LLMError) else None)
            await self._keep_failure(blank, error)
        else:
            health.note(None)
            await self._keep_answer(job, blank, extraction)

    def _blank(self, job: _Call) -> EvalResult:
        sample, lane = job.sample, job.lane
        digests = self.plan.sample_digests[sample.key] + self.plan.request_digest(lane, sample)
        return EvalResult(
            eval_run_id=self.run.id,
            route=lane.label,
            sample_id=sample.key,
            epoch=job.epoch,
            status=FAILED,
            finished_at_utc=utc_now(),
            pipeline_run_id=_call_name(self.run, sample.key, lane.label, job.epoch, digests),
        )

    async def _extract(self, job: _Call, name: str) -> Extraction[Any]:
        lane = job.lane
        context = RequestContext(workspace_id=self.run.workspace_id, pipeline_run_id=name, stage=STAGE)
        return await self.plan.extract(
            lane.service,
            self.plan.task.output_type,
            lane.messages(job.sample),
            context=context,
            route=lane.route,
            constraints=lane.constraints,
            parameters=lane.parameters_of(job.epoch),
            idempotency_key=name,
            epoch=job.epoch,
            use_cache=False,
            retries=self.plan.repairs,
        )

    async def _keep_answer(self, job: _Call, blank: EvalResult, extraction: Extraction[Any]) -> None:
        sent = sum(len(response.attempts) or 1 for response in extraction.responses if response.billed)
        self.tally.called += 1
        self.tally.sent += sent
        self.tally.replayed += not sent
        scores = await apply_scorers(self.plan.scorers, extraction.value, job.sample)
        await self.store.save_result(_scored(_answered(blank, job.lane, extraction), scores))

    async def _keep_failure(self, blank: EvalResult, error: Exception) -> None:
        attempts = error.attempts if isinstance(error, LLMError) else ()
        self.tally.called += 1
        self.tally.failed += 1
        self.tally.sent += len(attempts)
        await self.store.save_result(_failed(blank, error))

    async def report(self) -> EvalReport:
        """Everything under the run's name, whoever made it, and what of this call is not there."""
        known = self.plan.dataset.by_id
        results = [result for result in await self.store.results(self.run.id) if result.sample_id in known]
        results += self._absent({key_of(result) for result in results})
        return EvalReport(
            run=self.run,
            results=tuple(results),
            samples=known,
            in_doubt=await self.store.in_doubt(self.run.workspace_id, _prefix(self.run)),
            work=self.tally.work(),
            stopped={label: str(health.stopped_by) for label, health in self.health.items() if health.stopped_by},
        )

    def _absent(self, present: set[ResultKey]) -> Iterator[EvalResult]:
        for sample, lane, epoch in self.plan.keys():
            key = ResultKey(sample.key, lane.label, epoch)
            if key not in present:
                blank = self._blank(_Call(sample, lane, epoch))
                stopped_by = self.health[lane.label].stopped_by
                code = LLMInProgress.code if key in self.in_progress else stopped_by and stopped_by.code
                yield replace(blank, status=IN_PROGRESS if key in self.in_progress else NOT_RUN, error_code=code)


def _answered(blank: EvalResult, lane: Lane, extraction: Extraction[Any]) -> EvalResult:
    served = extraction.responses[-1].route
    warnings = dict.fromkeys(text for response in extraction.responses for text in response.warnings)
    if lane.planned is not None and served != lane.planned:
        warnings[f"{FALLBACK_WARNING} {served} answered instead of {lane.planned}"] = None
    return replace(
        blank,
        status=SUCCEEDED,
        finished_at_utc=utc_now(),
        served_route=str(served),
        output_json=extraction.value.model_dump_json(by_alias=True, round_trip=True),
        output_mode=extraction.mode,
        valid_first_try=extraction.valid_first_try,
        input_tokens=extraction.usage.input_tokens,
        output_tokens=extraction.usage.output_tokens,
        latency_ms=extraction.latency_ms,
        requests=sum(len(response.attempts) or 1 for response in extraction.responses),
        warnings=tuple(warnings),
    )


def _scored(result: EvalResult, scores: Scores) -> EvalResult:
    status = SCORER_FAILED if scores.errors else SUCCEEDED
    return replace(result, status=status, scores=scores.values, scorer_errors=scores.errors)


def _failed(blank: EvalResult, error: Exception) -> EvalResult:
    known = isinstance(error, LLMError)
    message = redact(str(error) if known else f"{type(error).__name__}: {error}")
    attempts = error.attempts if isinstance(error, LLMError) else ()
    usage = TokenUsage.total(attempt.usage for attempt in attempts)
    return replace(
        blank,
        finished_at_utc=utc_now(),
        error_code=error.code if isinstance(error, LLMError) else LLMError.code,
        error_message=message[:LONGEST_MESSAGE],
        served_route=str(attempts[-1].route) if attempts and isinstance(error, LLMUnusableAnswer) else None,
        valid_first_try=_first_try(error),
        input_tokens=usage.input_tokens,
        output_tokens=usage.output_tokens,
        latency_ms=sum(attempt.latency_ms for attempt in attempts) if attempts else None,
        requests=len(attempts),
    )


def _first_try(error: Exception) -> bool | None:
    """False when there was an answer and it did not fit; None when there was none."""
    no_answer = isinstance(error, LLMContentBlocked | LLMEmptyReply | LLMReasoningExhausted)
    return False if isinstance(error, LLMUnusableAnswer) and not no_answer else None


@contextmanager
def _shown(progress: bool | Callable[[Progress], None], total: int) -> Iterator[Callable[[Progress], None]]:
    if callable(progress):
        yield progress
    elif progress:
        with _progress_bar(total) as show:
            yield show
    else:
        yield lambda _progress: None


@contextmanager
def _progress_bar(total: int) -> Iterator[Callable[[Progress], None]]:
    from tqdm.auto import tqdm

    with tqdm(total=total, unit="sample", mininterval=0.5) as bar:

        def show(progress: Progress) -> None:
            bar.set_postfix(failed=progress.failed, reused=progress.reused, sent=progress.sent, refresh=False)
            bar.update(progress.done - bar.n)

        yield show
