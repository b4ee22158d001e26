"""The runner of a task: samples x variants x epochs, every result stored as soon as it exists."""

from __future__ import annotations

import asyncio
import json
import random
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from functools import partial
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Unpack

from llmkit.batch.old_objects import skip_old_objects
from llmkit.batch.route_health import RouteHealth
from llmkit.batch.worker_pool import WorkerPool
from llmkit.canonical_json import sha256_of
from llmkit.errors import (
    LLMBudgetExhausted,
    LLMError,
    LLMEvaluationError,
    LLMInProgress,
    LLMStoreError,
    LLMUnavailable,
)
from llmkit.eval_ports import EvalOutcome, EvalResult, EvalRun, EvalStore
from llmkit.evals.call_names import call_name, choose_run_name, name_prefix, request_part, warm_up_name
from llmkit.evals.dataset.dataset import Sample
from llmkit.evals.decide.course import Course, Step, StepCall, join_extractions, make_step
from llmkit.evals.decide.stopping import DECIDED_CODE
from llmkit.evals.prompt import Content
from llmkit.evals.report.report import EvalReport
from llmkit.evals.results import FAILED, IN_PROGRESS, NOT_RUN, ResultKey, Slot, Work, key_of, sort_results
from llmkit.evals.run.budget_guard import BudgetGuard
from llmkit.evals.run.coordination import Coordinator, Patience
from llmkit.evals.run.decision import StopRule
from llmkit.evals.run.options import EvaluateOptions
from llmkit.evals.run.plan import Plan, Stored
from llmkit.evals.run.progress import Tally, shown
from llmkit.evals.run.request_costs import require_countable
from llmkit.evals.run.rescoring import Scoring
from llmkit.evals.run.result_builder import build_failure, build_result, build_solved_result, write_output
from llmkit.evals.run.warm_up import WARM_UP_FROM, find_cold_models, find_warm_models, note_digests_here, warm_up
from llmkit.evals.run.work_queue import WorkQueue
from llmkit.evals.scorers import Scores
from llmkit.evals.solve.function import call_solve
from llmkit.evals.solve.steps import Binding, Steps
from llmkit.evals.tasks.task import Task
from llmkit.evals.tasks.variant import ResolvedVariant, RouteLike
from llmkit.telemetry import Span, SpanValue, span
from llmkit.types import Message, RequestContext, Route, utc_now

if TYPE_CHECKING:
    from llmkit.pydanticai.extraction import Extraction
    from llmkit.service import LLMService

__all__ = ["Evaluation", "count_work", "evaluate", "prepare_evaluation"]

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
    when all of it is done. Finished samples stay; more samples, epochs or routes are added to it. Stored
    outputs are scored again, without a call, when a scorer failed, was added or edited. The content cache takes no
    part, so that latencies are real; resuming rests on idempotency keys.

    A failing sample is a row with an error code. A route that fails three times in a row for a reason that will not go
    away (key, model, configuration, quota) is not called any more; its other samples are NOT_RUN until the next time.

    Args:
        task: What to ask and how to score.
        routes: `provider/model` (pinned), `provider/model@prompt`, `policy:NAME`, or `Variant` objects of these.
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
    with skip_old_objects():
        evaluation = await prepare_evaluation(task, routes, service, store, workspace_id, name, options)
        with evaluation.open_span() as opened:
            await evaluation.work()
            opened.set(count_work(evaluation.tally.work()))
        await evaluation.update_run()
        return await evaluation.report()


def count_work(work: Work) -> dict[str, SpanValue]:
    """Return the counts of the work as attributes of a span."""
    return {f"llmkit.evaluation.{what}": count for what, count in asdict(work).items() if what != "lost_because"}


async def prepare_evaluation(
    task: Task,
    routes: RouteLike | Sequence[RouteLike],
    service: LLMService,
    store: EvalStore,
    workspace_id: str,
    name: str | None,
    options: EvaluateOptions,
) -> Evaluation:
    """Check everything, open the run and take note of what it has already. Sends nothing; arguments of `evaluate`."""
    name = await choose_run_name(store, workspace_id, task, name)
    stored = await _find_stored(store, workspace_id, name)
    plan = Plan.make(task, routes, service, options, stored)
    await require_countable(plan)
    run = await store.open_run(plan.new_run(workspace_id, name))
    plan.require_same_task(run)
    plan.edits.require_allowed(run.name)
    evaluation = Evaluation(plan, run, store, await BudgetGuard.of(plan, run, store))
    evaluation.go_on_from(stored.outcomes if stored else await store.list_outcomes(run.id))
    await evaluation.find_called_names(stored.outcomes if stored else ())
    await evaluation.note_stored()
    return evaluation


async def _find_stored(store: EvalStore, workspace_id: str, name: str) -> Stored | None:
    run = await store.get_run(workspace_id, name)
    if run is not None and "supplied" in run.spec:
        raise LLMEvaluationError(f"The answers of evaluation {name!r} were supplied to `score`; use another name.")
    return None if run is None else Stored(run, await store.list_outcomes(run.id))


@dataclass(frozen=True, slots=True)
class _SampleCall:
    """One sample to run on one variant. `position` is that of the job in the work queue."""

    position: int
    sample: Sample
    variant: ResolvedVariant
    epoch: int


@dataclass(frozen=True, slots=True)
class _Answer:
    """The answer to a sample: its value, how many requests were sent for it now, and how its result is built."""

    value: Any
    sent: int
    build: Callable[[Scores], EvalResult]


class Evaluation:
    """One call of `evaluate` at work."""

    def __init__(self, plan: Plan, run: EvalRun, store: EvalStore, guard: BudgetGuard) -> None:
        self.plan = plan
        self.run = run
        self.store = store
        self.guard = guard
        self.queue = WorkQueue(plan.total)
        self.tally = Tally(plan.turns, plan.total // len(plan.variants))
        self.health = {variant.label: RouteHealth() for variant in plan.variants}
        self.tally.edited = len(plan.edits.rescored)
        self.show: Callable[[], None] = lambda: None
        self._scoring = Scoring(plan, run, store, guard)
        self.rule = StopRule(
            plan.stop_when,
            [variant.label for variant in plan.variants],
            plan.units,
            lower_is_better=plan.stop_when is not None and _is_lower(plan, plan.stop_when.metric),
        )
        self._stale: list[ResultKey] = []
        self._has_unscored = False
        self._earlier_names: dict[str, str] = {}
        # Names of samples that have calls in the store already. Other processes may add some at any time.
        self._called: set[str] = set()
        self._before: dict[int, datetime] = {}
        self._last_at_utc: dict[str, datetime] = {}
        # Stored results that this call does not run, by route.
        self.outside: Counter[str] = Counter()
        # Code and message of the error for which workers gave a route up, by its label.
        self.stopped_elsewhere: dict[str, tuple[str, str]] = {}
        self._coordinator = Coordinator(plan, run, store, self.queue, self.tally, self._before, PATIENCE)
        self._pool: WorkerPool[_SampleCall | ResultKey] = WorkerPool(
            self._work_on,
            self.health,
            health_of=lambda job: job.variant.label if isinstance(job, _SampleCall) else None,
            key_of=lambda job: job.position if isinstance(job, _SampleCall) else job,
            concurrency=plan.concurrency,
            is_stopped=lambda: self._is_stopped,
            is_done=lambda job: isinstance(job, _SampleCall) and self.queue.is_settled(job.position),
            after_each=self._after_each,
        )

    def go_on_from(self, stored: Sequence[EvalOutcome]) -> None:
        """Take note of what there is already: what stays, and what is to be scored or called again."""
        for outcome in stored:
            latest = self._last_at_utc.get(outcome.route, outcome.finished_at_utc)
            self._last_at_utc[outcome.route] = max(latest, outcome.finished_at_utc)
            position = self.plan.position_of(outcome.sample_id, outcome.route, outcome.epoch)
            is_open = position is not None and self.plan.is_open(outcome)
            if not is_open and self._scoring.is_stale(outcome):
                self._stale.append(ResultKey(outcome.sample_id, outcome.route, outcome.epoch))
            self._has_unscored |= outcome.status != FAILED and not outcome.has_output
            if position is not None and is_open:
                self._before[position] = outcome.finished_at_utc
            elif position is not None:
                self.queue.settle(position)
                self.tally.reuse(outcome.route)
            else:
                self.outside[outcome.route] += 1

    async def find_called_names(self, stored: Sequence[EvalOutcome]) -> None:
        """Find the samples that were called before, and those that were edited before their answers became results.

        The steps of a sample that was never called need no look into the store, each of which takes a tenth of a call.
        The name of a call contains the sample's content, and is the key under which its answer was paid for. An edit
        that the request does not show must not change it.

        Args:
            stored: Results of the run.
        """
        is_edited = self.plan.selected.sha256 != self.run.dataset_sha256
        if not is_edited and self.plan.task.solve is None:
            return
        names = await self.store.list_called_names(self.run.workspace_id, name_prefix(self.run))
        self._called.update(names)
        if is_edited:
            settled = {outcome.pipeline_run_id for outcome in stored if not self.plan.is_open(outcome)}
            self._earlier_names = {request_part(name): name for name in names if name not in settled}

    async def note_stored(self) -> None:
        """Tell the stop rule of the results that stay as they are."""
        if self.rule.is_active:
            stale = set(self._stale)
            results = await self.store.list_results(self.run.id)
            self.rule.note(each for each in results if key_of(each) not in stale and not self.plan.is_open(each))

    @property
    def _is_stopped(self) -> bool:
        return self.guard.stopped_by is not None or self.rule.is_decided

    def open_span(self) -> AbstractContextManager[Span]:
        """Open the span of the whole evaluation."""
        return span(f"evaluation {self.plan.task.name}", _span_values(self.plan, self.run))

    def list_stopped(self) -> dict[str, tuple[str, str]]:
        """Return code and message of the error for which a route was given up, by its label."""
        errors = {label: health.stopped_by for label, health in self.health.items()}
        own = {label: (error.code, str(error)) for label, error in errors.items() if error is not None}
        return {**self.stopped_elsewhere, **own}

    @property
    def has_stale(self) -> bool:
        """Whether there are stored outputs to score again."""
        return bool(self._stale)

    @property
    def replaced_until_utc(self) -> datetime | None:
        """The time of the latest stored result that will be replaced; None when none will."""
        return max(self._before.values(), default=None)

    @property
    def silent(self) -> set[int]:
        """Positions whose call another process began, and of which nothing is heard any more."""
        return self._coordinator.silent

    # --- the order of work --------------------------------------------------------------------------------------

    async def work(self) -> None:
        """Do all that is open, with bounded concurrency, and wait for what other processes have under way.

        Raises:
            LLMStoreError: Results cannot be kept any more.
        """
        with shown(self.plan.progress, self.tally, answers=self.plan.show_answers) as self.show:
            self.show()
            async with self.guard.at_work():
                await self._run_rounds()
            self.tally.stopped_by = self.guard.stopped_by
            self.show()

    async def _run_rounds(self) -> None:
        await self._coordinator.begin()
        await self._warm_up()
        await self._pool.run(self._jobs())
        while not self._is_stopped and (left := await self._await_others()):
            await self._pool.run(left)

    async def _warm_up(self) -> None:
        """Load the models of this machine, unless little is open or another process here is at it already."""
        open_each = self.queue.open / len(self.plan.variants)
        if not self.plan.warm_up or open_each < WARM_UP_FROM or self._coordinator.are_others_here:
            return
        sample = next(iter(self.plan.selected))
        for route, variant in (await self._find_cold()).items():
            self.tally.loading = str(route)
            self.show()
            try:
                await warm_up(self.plan, self.run, variant, route, sample)
            finally:
                self.tally.loading = None
            self.tally.warm_ups += 1
        await note_digests_here(self.plan, self.run, self.store)

    async def _find_cold(self) -> dict[Route, ResolvedVariant]:
        candidates = find_cold_models(self.plan, ())
        if not candidates:
            return {}
        names = (name_prefix(self.run), warm_up_name(self.run))
        uses = [use for name in names for use in await self.store.list_hosts(self.run.workspace_id, name)]
        return find_cold_models(self.plan, find_warm_models(self.plan, self._last_at_utc, uses))

    async def _await_others(self) -> list[_SampleCall]:
        """Wait until other processes are done, or one has left something behind, which is to be called again."""
        pause_s = FIRST_PAUSE_S
        while self._coordinator.waits:
            # Not at the same moments as the others that wait.
            await asyncio.sleep(pause_s * random.uniform(0.7, 1.0))  # noqa: S311
            await self._coordinator.look_at_awaited()
            self.show()
            if left := self._coordinator.list_left_behind():
                return [self._call_at(position) for position in left]
            pause_s = min(1.5 * pause_s, LONGEST_PAUSE_S)
        return []

    async def _after_each(self) -> None:
        self.show()
        await self._coordinator.look_now_and_then()
        if self._coordinator.are_others_at_work:
            await self.rule.look_at_others(self.run, self.store)

    def _jobs(self) -> Iterator[_SampleCall | ResultKey]:
        yield from self._stale
        while (position := self.queue.take()) is not None:
            yield self._call_at(position)

    def _call_at(self, position: int) -> _SampleCall:
        return _SampleCall(position, *self.plan.job_at(position))

    # --- asking -------------------------------------------------------------------------------------------------

    async def _work_on(self, job: _SampleCall | ResultKey) -> None:
        if isinstance(job, ResultKey):
            is_rescored = await self._scoring.rescore(job)
            self.tally.rescored += is_rescored
            self._has_unscored |= not is_rescored
            return
        try:
            await self._ask(job)
        except LLMBudgetExhausted as error:
            # The sample stays NOT_RUN; what was sent for it still counts.
            self.tally.send(len(error.attempts))

    async def _ask(self, job: _SampleCall) -> None:
        content = job.variant.content(job.sample)
        slot, messages = self._slot(job, content), job.variant.sent(content)
        self._coordinator.begin_call(slot.pipeline_run_id)
        try:
            with span(f"sample {job.variant.label}", self._span_values(slot)) as opened:
                await self._settle(job, slot, messages, opened)
        finally:
            self._coordinator.end_call(slot.pipeline_run_id)

    async def _settle(self, job: _SampleCall, slot: Slot, messages: Sequence[Message], opened: Span) -> None:
        health = self.health[job.variant.label]
        steps = None if self.plan.task.solve is None else self._open_steps(job, slot)
        try:
            answer = await (self._extract(job, slot, messages) if steps is None else self._solve(job, slot, steps))
        except (LLMStoreError, LLMBudgetExhausted) as error:
            error.attempts = error.attempts if steps is None else steps.attempts
            raise
        except LLMInProgress as error:
            opened.fail(error.code)
            await self._coordinator.wait_for(job.position, slot.pipeline_run_id)
        except Exception as error:  # noqa: BLE001 (a validator of the user's type may raise anything: a row, not a crash)
            sent = _count_attempts(error) if steps is None else steps.billed
            if self._pool.postpone_if_left_alone(job, error):
                opened.fail(LLMError.code)
                self.tally.send(sent)
            elif self._pool.postpone_if_cut_off(job, error):
                opened.fail(LLMUnavailable.code)
                self.tally.send(sent)
            else:
                if steps is not None and steps.responses:
                    health.note_answer()
                health.note_failure(error)
                self.tally.send(sent)
                await self._keep(job, build_failure(slot, error, steps), opened)
        else:
            health.note_answer()
            if answer.sent or not await self._coordinator.is_anothers(job.position, slot.pipeline_run_id):
                try:
                    await self._keep_answer(job, slot, answer, opened)
                except LLMInProgress:
                    # Another process got the answer too, and its judge is at work.
                    await self._coordinator.wait_for(job.position, slot.pipeline_run_id)

    def _slot(self, job: _SampleCall, content: Content) -> Slot:
        sample, variant = job.sample, job.variant
        digests = self.plan.sample_digests[sample.key] + self.plan.request_digest(variant, content)
        name = call_name(self.run, sample.key, variant.label, job.epoch, digests)
        name = self._earlier_names.get(request_part(name), name)
        content_digest = self.plan.sample_digests[sample.key]
        return Slot(self.run.id, variant.label, sample.key, job.epoch, name, sample.group, content_digest)

    async def _extract(self, job: _SampleCall, slot: Slot, messages: Sequence[Message]) -> _Answer:
        extraction = await self._walk(job, slot.pipeline_run_id, messages)
        sent = sum(len(response.attempts) or 1 for response in extraction.responses if response.billed)
        build = partial(build_result, slot, job.variant, self.plan.answer, extraction)
        return _Answer(extraction.value, sent + len(extraction.lost_attempts), build)

    async def _walk(self, job: _SampleCall, name: str, messages: Sequence[Message]) -> Extraction[Any]:
        course = job.variant.course
        if course is None:
            return await self._extract_once(job.variant, name, messages, job.epoch, key=name)

        async def ask(call: StepCall) -> Step:
            part = course.find(call.label)
            sent = part.messages(job.sample)
            extra = {"metadata": call.metadata} | ({"logprobs": True} if call.needs_logprobs else {})
            found = await self._extract_once(part, name, sent, call.epoch, key=call.name_key(name), extra=extra)
            return make_step(call, found, json.loads(write_output(self.plan.answer, found)[0]), part.planned)

        walk = Course(course.name, course.policy, job.sample, job.epoch, ask)
        answer = await walk.run()
        if answer.error is not None:
            raise answer.error
        return join_extractions(walk.steps)

    async def _extract_once(
        self,
        variant: ResolvedVariant,
        name: str,
        messages: Sequence[Message],
        epoch: int,
        *,
        key: str,
        extra: Mapping[str, Any] = MappingProxyType({}),
    ) -> Extraction[Any]:
        context = RequestContext(workspace_id=self.run.workspace_id, pipeline_run_id=name, stage=STAGE)
        return await self.plan.ask(
            variant.service,
            self.plan.task.output_type,
            messages,
            context=context,
            route=variant.route,
            constraints=variant.constraints,
            parameters={**variant.parameters_of(epoch), **extra},
            idempotency_key=key,
            epoch=epoch,
            use_cache=False,
            reasks=self.plan.reasks,
        )

    def _open_steps(self, job: _SampleCall, slot: Slot) -> Steps:
        variant = job.variant
        binding = Binding(
            service=variant.service,
            workspace_id=self.run.workspace_id,
            call_name=slot.pipeline_run_id,
            stage=STAGE,
            route=variant.route,
            constraints=variant.constraints,
            parameters=variant.parameters_of(job.epoch),
            epoch=job.epoch,
            reasks=self.plan.reasks,
            is_new=slot.pipeline_run_id not in self._called,
        )
        # A sample that is postponed is called again, and then finds what it was answered.
        self._called.add(slot.pipeline_run_id)
        return Steps(binding)

    async def _solve(self, job: _SampleCall, slot: Slot, steps: Steps) -> _Answer:
        plan = self.plan
        assert plan.task.solve is not None
        value = await call_solve(plan.task.solve, job.sample, steps, plan.answer, timeout_s=plan.solve_timeout_s)
        build = partial(build_solved_result, slot, job.variant, plan.answer, value, steps)
        return _Answer(value, steps.billed, build)

    async def _keep_answer(self, job: _SampleCall, slot: Slot, answer: _Answer, opened: Span) -> None:
        self.tally.send(answer.sent)
        scores = await self._scoring.scores(slot.pipeline_run_id, answer.value, job.sample)
        await self._keep(job, answer.build(scores), opened, replayed=not answer.sent)

    async def _keep(self, job: _SampleCall, result: EvalResult, opened: Span, *, replayed: bool = False) -> None:
        await self.store.save_result(result)
        self.rule.note([result])
        self.queue.settle(job.position)
        self._called.discard(result.pipeline_run_id)
        self.tally.call(job.sample, result, replayed=replayed)
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

    async def update_run(self) -> None:
        """Record which samples and scorers the stored results are of, unless some could not be scored again."""
        if self._has_unscored or (self._is_stopped and self._stale):
            return
        updated = self.plan.update_run(self.run)
        if sha256_of([updated.dataset_sha256, updated.spec]) != sha256_of([self.run.dataset_sha256, self.run.spec]):
            await self.store.update_run(updated)
            self.run = updated

    # --- the report ---------------------------------------------------------------------------------------------

    async def report(self, work: Work | None = None) -> EvalReport:
        """Report all stored results, plus placeholders for samples this call did not finish.

        Args:
            work: What was done now; by default what this process did.
        """
        known = self.plan.dataset.by_id
        results = [result for result in await self.store.list_results(self.run.id) if result.sample_id in known]
        results += self._absent(results)
        # Scorers may have been edited since the run was opened.
        current = {"judges": self.plan.judges(), "lower_is_better": self.plan.lower_is_better()}
        return EvalReport(
            run=replace(self.run, spec={**self.run.spec, **current}),
            results=tuple(sort_results(results, known, self.run.spec.get("routes", ()))),
            dataset=known,
            in_doubt=await self.store.list_calls_in_doubt(self.run.workspace_id, name_prefix(self.run)),
            digests=await self.store.list_digests(self.run.workspace_id, name_prefix(self.run)),
            hosts=await self.store.list_hosts(self.run.workspace_id, name_prefix(self.run)),
            host_digests=await self.store.list_host_digests(self.run.id),
            work=work or self.tally.work(),
            budget=await self.guard.read_use(),
            decision=self.rule.conclude(),
            task=self.plan.task,
            stopped={label: message for label, (_code, message) in self.list_stopped().items()},
        )

    def _absent(self, results: Sequence[EvalResult]) -> list[EvalResult]:
        missing = WorkQueue(self.plan.total)
        for result in results:
            position = self.plan.position_of(result.sample_id, result.route, result.epoch)
            if position is not None:
                missing.settle(position)
        return [self._make_unsettled(position) for position in iter(missing.take, None)]

    def _make_unsettled(self, position: int) -> EvalResult:
        job = self._call_at(position)
        slot = self._slot(job, job.variant.content(job.sample))
        if position in self._coordinator.silent:
            return slot.result(IN_PROGRESS, utc_now(), error_code=LLMInProgress.code)
        code, _message = self.list_stopped().get(slot.route, (None, ""))
        if code is None and self.tally.stopped_by is not None:
            code = LLMBudgetExhausted.code
        if code is None and self.rule.is_decided:
            code = DECIDED_CODE
        return slot.result(NOT_RUN, utc_now(), error_code=code)


def _count_attempts(error: Exception) -> int:
    return len(error.attempts) if isinstance(error, LLMError) else 0


def _is_lower(plan: Plan, metric: str) -> bool:
    return any(metric == name or metric.startswith(f"{name}.") for name in plan.lower_is_better())


def _span_values(plan: Plan, run: EvalRun) -> dict[str, SpanValue]:
    return {
        "llmkit.workspace_id": run.workspace_id,
        "llmkit.evaluation.name": run.name,
        "llmkit.evaluation.task": plan.task.name,
        "llmkit.evaluation.routes": [variant.label for variant in plan.variants],
        "llmkit.evaluation.samples": len(plan.selected),
        "llmkit.evaluation.epochs": plan.epochs,
    }
