"""Runs a task: samples x routes x epochs, every result durable as soon as it is there."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Unpack

from llmkit.errors import (
    LLMBudgetExhausted,
    LLMError,
    LLMEvaluationError,
    LLMInProgress,
    LLMStoreError,
)
from llmkit.evals.dataset import Sample
from llmkit.evals.health import RESTS_WITHOUT_ANSWER, Health
from llmkit.evals.keeper import Keeper, require_countable
from llmkit.evals.outcome import answered, failed, scored
from llmkit.evals.plan import EvaluateOptions, Plan, call_name, name_prefix
from llmkit.evals.progress import Progress, shown
from llmkit.evals.report import EvalReport
from llmkit.evals.result import FAILED, IN_PROGRESS, NOT_RUN, ResultKey, Work, key_of
from llmkit.evals.scorers import Scores, ScoringContext, apply_scorers
from llmkit.evals.task import Task
from llmkit.evals.variant import Lane, RouteLike
from llmkit.ports import EvalResult, EvalRun, EvalStore
from llmkit.types import RequestContext, utc_now

if TYPE_CHECKING:
    from llmkit.pydanticai.extraction import Extraction
    from llmkit.service import LLMService

__all__ = ["evaluate", "load_report"]

STAGE = "sample"


async def evaluate(
    task: Task,
    routes: RouteLike | Sequence[RouteLike],
    *,
    service: LLMService,
    store: EvalStore,
    workspace_id: str,
    name: str | None = None,
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
        name: Name of the run in its workspace; the task's name when None.
        **options: See `EvaluateOptions`.

    Raises:
        LLMEvaluationError: Task, dataset, route or option cannot be used, or the run of this name was another task or
            other samples; the message says what changed. Nothing was sent.
        LLMStoreError: The database failed. What was finished before is kept.
    """
    plan = Plan.make(task, routes, service, options)
    await require_countable(plan)
    run = await _opened(plan, store, workspace_id, task.name if name is None else name)
    stored = {key_of(result): result for result in await store.results(run.id)}
    plan.require_same_samples(run, stored)
    evaluation = _Evaluation(plan, run, store, stored, await Keeper.of(plan, run, store))
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
    in_doubt = await store.in_doubt(workspace_id, name_prefix(run))
    samples = task.load().by_id if task else {}
    digests = await store.digests(workspace_id, name_prefix(run))
    spent = await store.spent(workspace_id, name_prefix(run))
    return EvalReport(run=run, results=results, dataset=samples, in_doubt=in_doubt, digests=digests, spent=spent)


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
    keeper: Keeper
    tally: _Tally = field(init=False)
    health: dict[str, Health] = field(init=False)
    in_progress: set[ResultKey] = field(default_factory=set)
    put_off: list[_Call] = field(default_factory=list)
    show: Callable[[Progress], None] = field(default=lambda _progress: None)

    def __post_init__(self) -> None:
        self.tally = _Tally(self.plan.total)
        self.health = {lane.label: Health() for lane in self.plan.lanes}

    async def work(self) -> None:
        """Do all that is open, with bounded concurrency.

        Raises:
            LLMStoreError: Results cannot be kept any more.
        """
        with shown(self.plan.progress, self.plan.total) as self.show:
            try:
                async with self.keeper.at_work():
                    await self._round(self._jobs())
                    await self._come_back()
            except ExceptionGroup as errors:
                # The first one stopped the others.
                raise errors.exceptions[0] from None
            self.show(self.tally.progress())

    async def _round(self, jobs: Iterator[_Call | _Rescore]) -> None:
        async with asyncio.TaskGroup() as group:
            for _ in range(self.plan.concurrency):
                group.create_task(self._worker(jobs))

    async def _come_back(self) -> None:
        """Call what was put off while a route was left alone, until it is done or routes stay silent."""
        patience = RESTS_WITHOUT_ANSWER
        while self.put_off and patience and not self.keeper.stopped_by:
            await asyncio.sleep(max(health.rest() for health in self.health.values()))
            jobs, self.put_off = self.put_off, []
            answers = self._answers()
            # One call first: the router lets a single one through to see whether the route is back.
            for lane in {job.lane.label: job for job in reversed(jobs)}.values():
                jobs.remove(lane)
                await self._call(lane)
            await self._round(iter(jobs))
            patience = RESTS_WITHOUT_ANSWER if self._answers() > answers else patience - 1
        for job in () if self.keeper.stopped_by else self.put_off:
            self.health[job.lane.label].give_up()
        self.tally.skipped += len(self.put_off)

    def _answers(self) -> int:
        return sum(health.answers for health in self.health.values())

    async def _worker(self, jobs: Iterator[_Call | _Rescore]) -> None:
        for job in jobs:
            if isinstance(job, _Rescore):
                await self._rescore(job)
            else:
                await self._call(job)
            self.show(self.tally.progress())

    def _jobs(self) -> Iterator[_Call | _Rescore]:
        yield from self._rescores()
        for sample, lane, epoch in self.plan.cells():
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
        if self.keeper.stopped_by and self.plan.judges():
            return
        try:
            fresh = scored(job.result, await self._scores_of_stored(job))
        except LLMBudgetExhausted:
            return
        if fresh != job.result:
            await self.store.save_result(fresh)
        self.tally.rescored += 1

    async def _scores_of_stored(self, job: _Rescore) -> Scores:
        try:
            output = self.plan.task.output_type.model_validate_json(job.result.output_json or "")
        except Exception as error:  # noqa: BLE001 (a validator of the user's type that was edited may raise anything)
            problem = f"the stored output does not fit any more: {type(error).__name__}"
            return Scores(errors={scorer.name: problem for scorer in self.plan.scorers})
        return await self._scores(job.result, output, job.sample)

    async def _scores(self, result: EvalResult, output: Any, sample: Sample) -> Scores:
        # One service for all: a judge is the same model whatever policy the answer came by.
        context = ScoringContext(self.plan.service, self.plan.extract, self.run.workspace_id, result.pipeline_run_id)
        return await apply_scorers(self.plan.scorers, output, sample, context, timeout_s=self.plan.scorer_timeout_s)

    async def _call(self, job: _Call) -> None:
        health = self.health[job.lane.label]
        if health.stopped_by is not None or self.keeper.stopped_by:
            self.tally.skipped += 1
        elif health.resting_after is not None:
            self.put_off.append(job)
        else:
            try:
                await self._ask(job, health)
            except LLMBudgetExhausted as error:
                self.tally.skipped += 1
                self.tally.sent += len(error.attempts)

    async def _ask(self, job: _Call, health: Health) -> None:
        blank = self._blank(job)
        try:
            extraction = await self._extract(job, blank.pipeline_run_id)
        except (LLMStoreError, LLMBudgetExhausted):
            raise
        except LLMInProgress:
            self.in_progress.add(key_of(blank))
            self.tally.skipped += 1
        except Exception as error:  # noqa: BLE001 (a validator of the user's type may raise anything: a row, not a crash)
            if health.is_left_alone(error):
                await self._call(job)
            else:
                health.failed(error)
                await self._keep_failure(blank, error)
        else:
            health.answered()
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
            sample_group=sample.group,
            pipeline_run_id=call_name(self.run, sample.key, lane.label, job.epoch, digests),
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
        self.tally.sent += sent
        scores = await self._scores(blank, extraction.value, job.sample)
        self.tally.called += 1
        self.tally.replayed += not sent
        await self.store.save_result(scored(answered(blank, job.lane, extraction), scores))

    async def _keep_failure(self, blank: EvalResult, error: Exception) -> None:
        attempts = error.attempts if isinstance(error, LLMError) else ()
        self.tally.called += 1
        self.tally.failed += 1
        self.tally.sent += len(attempts)
        await self.store.save_result(failed(blank, error))

    async def report(self) -> EvalReport:
        """Everything under the run's name, whoever made it, and what of this call is not there."""
        known = self.plan.dataset.by_id
        results = [result for result in await self.store.results(self.run.id) if result.sample_id in known]
        results += self._absent({key_of(result) for result in results})
        return EvalReport(
            # Scorers may have been edited since the run was opened.
            run=replace(self.run, spec={**self.run.spec, "judges": self.plan.judges()}),
            results=tuple(results),
            dataset=known,
            in_doubt=await self.store.in_doubt(self.run.workspace_id, name_prefix(self.run)),
            digests=await self.store.digests(self.run.workspace_id, name_prefix(self.run)),
            work=self.tally.work(),
            budget=self.keeper.use,
            stopped={label: str(health.stopped_by) for label, health in self.health.items() if health.stopped_by},
        )

    def _absent(self, present: set[ResultKey]) -> Iterator[EvalResult]:
        for sample, lane, epoch in self.plan.cells():
            key = ResultKey(sample.key, lane.label, epoch)
            if key not in present:
                yield self._unsettled(self._blank(_Call(sample, lane, epoch)))

    def _unsettled(self, blank: EvalResult) -> EvalResult:
        if key_of(blank) in self.in_progress:
            return replace(blank, status=IN_PROGRESS, error_code=LLMInProgress.code)
        stopped_by = self.health[blank.route].stopped_by
        code = stopped_by.code if stopped_by else LLMBudgetExhausted.code if self.keeper.stopped_by else None
        return replace(blank, status=NOT_RUN, error_code=code)
