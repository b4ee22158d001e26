"""Runs a task: samples x routes x epochs, every result durable as soon as it is there."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from typing import TYPE_CHECKING, Any, Unpack

from llmkit.batch.route_health import LONGEST_SILENCE_S, SHORTEST_REST_S, TRIES_OF_A_SAMPLE, Health
from llmkit.errors import (
    LLMBudgetExhausted,
    LLMError,
    LLMInProgress,
    LLMStoreError,
    LLMUnavailable,
)
from llmkit.eval_ports import EvalOutcome, EvalResult, EvalRun, EvalStore
from llmkit.evals.call_names import call_name, check_run_name, name_prefix
from llmkit.evals.dataset.dataset import Sample
from llmkit.evals.prompt import Content
from llmkit.evals.report.report import EvalReport
from llmkit.evals.results import FAILED, IN_PROGRESS, NOT_RUN, ResultKey, Slot
from llmkit.evals.run.budget_guard import Keeper, require_countable
from llmkit.evals.run.coordination import Patience, Sharing
from llmkit.evals.run.options import EvaluateOptions
from llmkit.evals.run.plan import Plan
from llmkit.evals.run.progress import Tally, shown
from llmkit.evals.run.rescoring import Scoring
from llmkit.evals.run.result_builder import build_failure, build_result
from llmkit.evals.run.warm_up import WARM_UP_FROM, cold, warm_up
from llmkit.evals.run.work_queue import Cells
from llmkit.evals.tasks.task import Task
from llmkit.evals.tasks.variant import Lane, RouteLike
from llmkit.telemetry import Span, SpanValue, span
from llmkit.types import Message, RequestContext, utc_now

if TYPE_CHECKING:
    from llmkit.pydanticai.extraction import Extraction
    from llmkit.service import LLMService

__all__ = ["evaluate"]

STAGE = "sample"
# How often what others have under way is looked at while nothing else is left to do, in seconds.
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.1, 2.0
PATIENCE = Patience()


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

    The same name continues, and several processes may work under it at once: they share what is open, and each returns
    when all of it is done. What is done is not called again; more samples, epochs or routes are added to it. Stored
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
    run = await _open_run(plan, store, workspace_id, task.name if name is None else name)
    stored = await store.outcomes(run.id)
    plan.require_same_samples(run, stored)
    evaluation = _Evaluation(plan, run, store, await Keeper.of(plan, run, store))
    evaluation.go_on_from(stored)
    del stored  # it grows with the run, and this call may take hours
    with span(f"evaluation {plan.task.name}", _span_values(plan, run)) as opened:
        await evaluation.work()
        opened.set({f"llmkit.evaluation.{what}": count for what, count in asdict(evaluation.tally.work()).items()})
    return await evaluation.report()


async def _open_run(plan: Plan, store: EvalStore, workspace_id: str, name: str) -> EvalRun:
    run = await store.open_run(plan.new_run(workspace_id, check_run_name(name)))
    plan.require_same_task(run)
    return run


@dataclass(frozen=True, slots=True)
class _SampleCall:
    """One sample to be asked on one lane. `place` is its cell's."""

    place: int
    sample: Sample
    lane: Lane
    epoch: int


class _Evaluation:
    """One call of `evaluate` at work."""

    def __init__(self, plan: Plan, run: EvalRun, store: EvalStore, keeper: Keeper) -> None:
        self.plan = plan
        self.run = run
        self.store = store
        self.keeper = keeper
        self.cells = Cells(plan.total)
        self.tally = Tally(plan.turns, plan.total // len(plan.lanes))
        self.health = {lane.label: Health() for lane in plan.lanes}
        self.put_off: list[_SampleCall] = []
        self._losses: Counter[int] = Counter()
        self.show: Callable[[], None] = lambda: None
        self._scoring = Scoring(plan, run, store, keeper)
        self._stale: list[ResultKey] = []
        self._before: dict[int, datetime] = {}
        self._last_at_utc: dict[str, datetime] = {}
        self._sharing = Sharing(plan, run, store, self.cells, self.tally, self._before, PATIENCE)

    def go_on_from(self, stored: Sequence[EvalOutcome]) -> None:
        """Take note of what there is already: what stays, and what is to be scored or called again."""
        for outcome in stored:
            latest = self._last_at_utc.get(outcome.route, outcome.finished_at_utc)
            self._last_at_utc[outcome.route] = max(latest, outcome.finished_at_utc)
            if self._scoring.is_stale(outcome):
                self._stale.append(ResultKey(outcome.sample_id, outcome.route, outcome.epoch))
            place = self.plan.cell_of(outcome.sample_id, outcome.route, outcome.epoch)
            if place is not None and self.plan.is_open(outcome):
                self._before[place] = outcome.finished_at_utc
            elif place is not None:
                self.cells.settle(place)
                self.tally.reuse(outcome.route)

    # --- the order of work --------------------------------------------------------------------------------------

    async def work(self) -> None:
        """Do all that is open, with bounded concurrency, and wait for what other processes have under way.

        Raises:
            LLMStoreError: Results cannot be kept any more.
        """
        with shown(self.plan.progress, self.tally) as self.show:
            try:
                async with self.keeper.at_work():
                    await self._everything()
            except ExceptionGroup as errors:
                # The first one stopped the others.
                raise errors.exceptions[0] from None
            self.tally.stopped_by = self.keeper.stopped_by
            self.show()

    async def _everything(self) -> None:
        await self._sharing.begin()
        await self._warm_up()
        await self._round(self._jobs())
        await self._come_back()
        while not self.keeper.stopped_by and (left := await self._await_others()):
            await self._round(iter(left))
            await self._come_back()

    async def _warm_up(self) -> None:
        """Load the models, unless little is open or another process is at it already."""
        open_each = self.cells.open / len(self.plan.lanes)
        if not self.plan.warm_up or open_each < WARM_UP_FROM or self._sharing.are_others_at_work:
            return
        sample = next(iter(self.plan.selected))
        for route, lane in cold(self.plan, self._last_at_utc).items():
            await warm_up(self.plan, self.run, lane, route, sample)
            self.tally.warm_ups += 1

    async def _round(self, jobs: Iterator[_SampleCall | ResultKey]) -> None:
        async with asyncio.TaskGroup() as group:
            for _ in range(self.plan.concurrency):
                group.create_task(self._worker(jobs))

    async def _come_back(self) -> None:
        """Call what was put off while a route was left alone, until it is done or routes stay silent."""
        silence_s = 0.0
        while self.put_off and silence_s < LONGEST_SILENCE_S and not self.keeper.stopped_by:
            rest_s = max(health.rest() for health in self.health.values())
            await asyncio.sleep(rest_s)
            jobs = [job for job in self.put_off if not self.cells.is_settled(job.place)]
            self.put_off = []
            answers = self._answers()
            # One call first: the router lets a single one through to see whether the route is back.
            for lane in {job.lane.label: job for job in reversed(jobs)}.values():
                jobs.remove(lane)
                await self._call(lane)
            await self._round(iter(jobs))
            silence_s = 0.0 if self._answers() > answers else silence_s + max(rest_s, SHORTEST_REST_S)
        for job in () if self.keeper.stopped_by else self.put_off:
            self.health[job.lane.label].give_up()
        self.put_off = []

    def _answers(self) -> int:
        return sum(health.answers for health in self.health.values())

    async def _await_others(self) -> list[_SampleCall]:
        """Wait until other processes are done, or one has left something behind, which is to be called again."""
        pause_s = FIRST_PAUSE_S
        while self._sharing.waits:
            await asyncio.sleep(max(pause_s, self._sharing.pause_s))
            await self._sharing.look()
            self.show()
            if left := self._sharing.list_left_behind():
                return [self._call_at(place) for place in left]
            pause_s = min(1.5 * pause_s, LONGEST_PAUSE_S)
        return []

    async def _worker(self, jobs: Iterator[_SampleCall | ResultKey]) -> None:
        for job in jobs:
            if isinstance(job, _SampleCall):
                await self._call(job)
            else:
                is_rescored = await self._scoring.again(job)
                self.tally.rescored += is_rescored
            self.show()
            await self._sharing.look_now_and_then()

    def _jobs(self) -> Iterator[_SampleCall | ResultKey]:
        yield from self._stale
        while (place := self.cells.take()) is not None:
            yield self._call_at(place)

    def _call_at(self, place: int) -> _SampleCall:
        return _SampleCall(place, *self.plan.cell(place))

    # --- asking -------------------------------------------------------------------------------------------------

    async def _call(self, job: _SampleCall) -> None:
        health = self.health[job.lane.label]
        if health.stopped_by is not None or self.keeper.stopped_by:
            return  # it stays NOT_RUN
        if health.resting_after is not None:
            self.put_off.append(job)
        else:
            try:
                await self._ask(job, health)
            except LLMBudgetExhausted as error:
                self.tally.send(len(error.attempts))

    async def _ask(self, job: _SampleCall, health: Health) -> None:
        content = job.lane.content(job.sample)
        slot, messages = self._slot(job, content), job.lane.sent(content)
        self._sharing.began(slot.pipeline_run_id)
        try:
            with span(f"sample {job.lane.label}", self._span_values(slot)) as opened:
                await self._settle(job, health, slot, messages, opened)
        finally:
            self._sharing.end_call(slot.pipeline_run_id)

    async def _settle(
        self, job: _SampleCall, health: Health, slot: Slot, messages: Sequence[Message], opened: Span
    ) -> None:
        try:
            extraction = await self._extract(job, slot.pipeline_run_id, messages)
        except (LLMStoreError, LLMBudgetExhausted):
            raise
        except LLMInProgress as error:
            opened.fail(error.code)
            await self._sharing.wait_for(job.place, slot.pipeline_run_id)
        except Exception as error:  # noqa: BLE001 (a validator of the user's type may raise anything: a row, not a crash)
            if health.is_left_alone(error):
                opened.fail(LLMError.code)
                await self._call(job)
            elif self._losses[job.place] + 1 < TRIES_OF_A_SAMPLE and health.has_lost_contact(error):
                opened.fail(LLMUnavailable.code)
                self._losses[job.place] += 1
                self.tally.send(len(error.attempts) if isinstance(error, LLMError) else 0)
                self.put_off.append(job)
            else:
                health.note_failure(error)
                await self._keep_failure(job, slot, error, opened)
        else:
            health.note_answer()
            if _is_billed(extraction) or not await self._sharing.is_anothers(job.place, slot.pipeline_run_id):
                await self._keep_answer(job, slot, extraction, opened)

    def _slot(self, job: _SampleCall, content: Content) -> Slot:
        sample, lane = job.sample, job.lane
        digests = self.plan.sample_digests[sample.key] + self.plan.request_digest(lane, content)
        name = call_name(self.run, sample.key, lane.label, job.epoch, digests)
        return Slot(self.run.id, lane.label, sample.key, job.epoch, name, sample.group)

    async def _extract(self, job: _SampleCall, name: str, messages: Sequence[Message]) -> Extraction[Any]:
        lane = job.lane
        context = RequestContext(workspace_id=self.run.workspace_id, pipeline_run_id=name, stage=STAGE)
        return await self.plan.extract(
            lane.service,
            self.plan.task.output_type,
            messages,
            context=context,
            route=lane.route,
            constraints=lane.constraints,
            parameters=lane.parameters_of(job.epoch),
            idempotency_key=name,
            epoch=job.epoch,
            use_cache=False,
            reasks=self.plan.reasks,
        )

    async def _keep_answer(self, job: _SampleCall, slot: Slot, extraction: Extraction[Any], opened: Span) -> None:
        sent = sum(len(response.attempts) or 1 for response in extraction.responses if response.billed)
        self.tally.send(sent)
        scores = await self._scoring.scores(slot.pipeline_run_id, extraction.value, job.sample)
        await self._keep(job, build_result(slot, job.lane, extraction, scores), opened, replayed=not sent)

    async def _keep_failure(self, job: _SampleCall, slot: Slot, error: Exception, opened: Span) -> None:
        self.tally.send(len(error.attempts) if isinstance(error, LLMError) else 0)
        await self._keep(job, build_failure(slot, error), opened)

    async def _keep(self, job: _SampleCall, result: EvalResult, opened: Span, *, replayed: bool = False) -> None:
        await self.store.save_result(result)
        self.cells.settle(job.place)
        self.tally.call(job.lane.label, replayed=replayed, failed=result.status == FAILED)
        opened.set({"llmkit.status": result.status, "llmkit.served_route": result.served_route})
        opened.add_scores(result.scores)
        if result.error_code is not None:
            opened.fail(result.error_code)

    def _span_values(self, slot: Slot) -> dict[str, SpanValue]:
        return {
            "llmkit.workspace_id": self.run.workspace_id,
            "llmkit.evaluation.name": self.run.name,
            "llmkit.evaluation.route": slot.route,
            "llmkit.evaluation.sample_id": slot.sample_id,
            "llmkit.evaluation.epoch": slot.epoch,
        }

    # --- the report ---------------------------------------------------------------------------------------------

    async def report(self) -> EvalReport:
        """Everything under the run's name, whoever made it, and what of this call is not there."""
        known = self.plan.dataset.by_id
        results = [result for result in await self.store.results(self.run.id) if result.sample_id in known]
        results += self._absent(results)
        # Scorers may have been edited since the run was opened.
        current = {"judges": self.plan.judges(), "lower_is_better": self.plan.lower_is_better()}
        return EvalReport(
            run=replace(self.run, spec={**self.run.spec, **current}),
            results=tuple(results),
            dataset=known,
            in_doubt=await self.store.in_doubt(self.run.workspace_id, name_prefix(self.run)),
            digests=await self.store.digests(self.run.workspace_id, name_prefix(self.run)),
            work=self.tally.work(),
            budget=self.keeper.use,
            stopped={label: str(health.stopped_by) for label, health in self.health.items() if health.stopped_by},
        )

    def _absent(self, results: Sequence[EvalResult]) -> list[EvalResult]:
        missing = Cells(self.plan.total)
        for result in results:
            place = self.plan.cell_of(result.sample_id, result.route, result.epoch)
            if place is not None:
                missing.settle(place)
        return [self._make_unsettled(place) for place in iter(missing.take, None)]

    def _make_unsettled(self, place: int) -> EvalResult:
        job = self._call_at(place)
        slot = self._slot(job, job.lane.content(job.sample))
        if place in self._sharing.silent:
            return slot.result(IN_PROGRESS, utc_now(), error_code=LLMInProgress.code)
        stopped_by = self.health[slot.route].stopped_by
        code = stopped_by.code if stopped_by else LLMBudgetExhausted.code if self.keeper.stopped_by else None
        return slot.result(NOT_RUN, utc_now(), error_code=code)


def _is_billed(extraction: Extraction[Any]) -> bool:
    return any(response.billed for response in extraction.responses)


def _span_values(plan: Plan, run: EvalRun) -> dict[str, SpanValue]:
    return {
        "llmkit.workspace_id": run.workspace_id,
        "llmkit.evaluation.name": run.name,
        "llmkit.evaluation.task": plan.task.name,
        "llmkit.evaluation.routes": [lane.label for lane in plan.lanes],
        "llmkit.evaluation.samples": len(plan.selected),
        "llmkit.evaluation.epochs": plan.epochs,
    }
