"""An evaluation over several workers: the driver, which watches the store, and the job that each worker runs.

Workers share the samples as processes do that are started by hand: through the claims in the store. A job is therefore
"join this run", never a part of the samples, and it may run twice, late or never. Results are in the store alone; what
a job returns is how much it did, which the report shows.
"""

from __future__ import annotations

import asyncio
import platform
import random
import warnings
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, cast
from uuid import UUID

from llmkit.batch.old_objects import skip_old_objects
from llmkit.errors import LLMConfigurationError, LLMEvaluationError, LLMStoreError
from llmkit.eval_ports import EvalRun, EvalStore, ResultCount
from llmkit.evals.report.report import EvalReport
from llmkit.evals.results import FAILED, Work
from llmkit.evals.run.options import EvaluateOptions
from llmkit.evals.run.progress import shown
from llmkit.evals.run.runner import Evaluation, count_work, prepare_evaluation
from llmkit.evals.run.worker_routes import choose_routes, list_planned
from llmkit.evals.tasks.task import Task
from llmkit.evals.tasks.variant import RouteLike
from llmkit.types import Route
from llmkit.workers.contribution import STOPPED_CODE, Contribution
from llmkit.workers.engine import Engine, JobFunction
from llmkit.workers.watch import Standing, Watched, watch_jobs

if TYPE_CHECKING:
    from llmkit.evals.budget import Kind
    from llmkit.service import LLMService

__all__ = ["RunIdentity", "WorkerCall", "evaluate_by_workers", "join_evaluation"]

BEGINNING = datetime(1, 1, 1, tzinfo=UTC)
# Counts of a job that are added up for the report. The others are seen from the store.
ADDED = ("rescored", "called", "replayed", "sent", "warm_ups")


@dataclass(frozen=True, slots=True)
class RunIdentity:
    """Identity of a run: it must be in the store of the worker too, and the samples must be the same there.

    Attributes:
        name: Name of the run.
        run_id: Its id in the store of the driver.
        dataset_sha256: Hash of the samples that the driver has read.
        planned: The route that should answer first, by label, where the driver's router chooses.
    """

    name: str
    run_id: UUID
    dataset_sha256: str
    planned: Mapping[str, Route]


@dataclass(frozen=True, slots=True)
class WorkerCall:
    """How an evaluation is spread.

    Attributes:
        open_engine: Makes the engine. Called in a thread.
        job: The function that each worker runs.
        pack: Makes its argument.
        mark_stopped: Tells the workers through the store that the call was stopped.
    """

    open_engine: Callable[[], Engine]
    job: JobFunction
    pack: Callable[[RunIdentity], bytes]
    mark_stopped: Callable[[], Awaitable[None]]


async def evaluate_by_workers(
    task: Task,
    routes: RouteLike | Sequence[RouteLike],
    call: WorkerCall,
    *,
    service: LLMService,
    store: EvalStore,
    workspace_id: str,
    name: str | None,
    options: EvaluateOptions,
) -> EvalReport:
    """Run an evaluation as `evaluate` does, with the samples called by workers, and return the complete report.

    Raises:
        LLMEvaluationError: As for `evaluate`, or no worker could join; the message says why.
        LLMConfigurationError: The engine takes no jobs.
        LLMStoreError: The database failed.
    """
    evaluation = await prepare_evaluation(task, routes, service, store, workspace_id, name, options)
    driver = _Driver(evaluation, store)
    with evaluation.open_span() as opened:
        work = await driver.work(call)
        opened.set(count_work(work))
    # What workers stored decides whether the stop rule has ended the run.
    await evaluation.note_stored()
    await evaluation.update_run()
    return await evaluation.report(work)


async def join_evaluation(
    task: Task,
    routes: RouteLike | Sequence[RouteLike],
    identity: RunIdentity,
    *,
    service: LLMService,
    store: EvalStore,
    workspace_id: str,
    options: EvaluateOptions,
) -> Contribution:
    """Take part in a run as a worker: call what is open, and return when all of it is done.

    Samples of routes that cannot be called on this machine are left to others.

    Raises:
        LLMConfigurationError: The run is not in the store of this worker, the samples here are others, or no route can
            be called here.
        LLMEvaluationError: The task here is another one.
        LLMStoreError: The database failed.
    """
    await _require_same_store(identity, store, workspace_id)
    with skip_old_objects():
        return await _join(task, routes, identity, service, store, workspace_id, options)


async def _join(
    task: Task,
    routes: RouteLike | Sequence[RouteLike],
    identity: RunIdentity,
    service: LLMService,
    store: EvalStore,
    workspace_id: str,
    options: EvaluateOptions,
) -> Contribution:
    routes, left_out = choose_routes(task, routes, identity.planned, service=service, options=options)
    evaluation = await prepare_evaluation(task, routes, service, store, workspace_id, identity.name, options)
    if evaluation.plan.selected.sha256 != identity.dataset_sha256:
        raise LLMConfigurationError(
            f"The dataset on the worker on {platform.node()} differs from the one with which the evaluation was "
            "started: copy it there again"
        )
    if not evaluation.rule.is_active:  # whose samples have an order
        evaluation.queue.begin_at(random.random())  # noqa: S311
    error = None
    try:
        await evaluation.work()
    except asyncio.CancelledError:
        # Asked to stop, often because others saw first that all is done. Its counts belong to the report anyway.
        error = (STOPPED_CODE, "The worker was stopped")
    work = asdict(evaluation.tally.work())
    return Contribution(
        error=error,
        work={what: work[what] for what in ADDED},
        is_complete=error is None and evaluation.queue.unsettled == 0 and not left_out,
        stopped_by=evaluation.guard.stopped_by,
        stopped_because=evaluation.guard.why,
        stopped={label: list(why) for label, why in evaluation.list_stopped().items()},
        left_out=left_out,
        silent=sorted(evaluation.silent),
    )


async def _require_same_store(identity: RunIdentity, store: EvalStore, workspace_id: str) -> None:
    run = await store.get_run(workspace_id, identity.name)
    if run is None or run.id != identity.run_id:
        raise LLMConfigurationError(
            f"The evaluation {identity.name!r} in the database of the worker on {platform.node()} is not the one that "
            "was started: it was erased meanwhile, or LLM_DATABASE_URL is another one there"
        )


class _Driver:
    """The driver of one call: counts results in the store, and joins what the jobs return."""

    def __init__(self, evaluation: Evaluation, store: EvalStore) -> None:
        self._evaluation = evaluation
        self._store = store
        self._run: EvalRun = evaluation.run
        self._old_until_utc = evaluation.replaced_until_utc or BEGINNING
        self._outside = evaluation.outside
        self._requests_before: int | None = None
        # Counts do not distinguish results that are to be replaced from new ones: the workers say when all is done.
        self._is_countable = evaluation.replaced_until_utc is None and not evaluation.has_stale

    async def work(self, call: WorkerCall) -> Work:
        evaluation, plan = self._evaluation, self._evaluation.plan
        with shown(plan.progress, evaluation.tally, answers=False) as evaluation.show:
            if (await self._look()).is_complete:
                return evaluation.tally.work()
            parcel = call.pack(
                RunIdentity(self._run.name, self._run.id, plan.selected.sha256, list_planned(plan.variants))
            )
            engine = await asyncio.to_thread(call.open_engine)
            watched = await watch_jobs(engine, call.job, parcel, look=self._look, mark_stopped=call.mark_stopped)
            await self._look()
        self._require_some(watched)
        self._note_left_out(watched)
        return self._join(watched)

    async def _look(self) -> Standing:
        """Read how far the run is: a few numbers, however many samples it has."""
        counts = await self._store.count_results(self._run.id, self._old_until_utc)
        tally = self._evaluation.tally
        requests = sum(each.requests for each in counts)
        self._requests_before = requests if self._requests_before is None else self._requests_before
        done: Counter[str] = Counter()
        failed: Counter[str] = Counter()
        for each in counts:
            if not self._will_be_replaced(each):
                done[each.route] += each.results
                failed[each.route] += each.results if each.status == FAILED else 0
        for route in self._evaluation.plan.turns:
            tally.observe(route, done=done[route] - self._outside[route], failed=failed[route])
        tally.sent_elsewhere = max(0, requests - self._requests_before)
        self._evaluation.show()
        progress = tally.progress()
        return Standing(requests + progress.done, self._is_countable and progress.done >= progress.total)

    def _will_be_replaced(self, each: ResultCount) -> bool:
        return each.is_old and each.status == FAILED and self._evaluation.plan.repeats(each.error_code)

    def _require_some(self, watched: Watched) -> None:
        """Refuse to report when no worker could join, and warn of those that could not."""
        refusals = watched.refusals
        if not refusals:
            return
        message = "; ".join(refusals)
        if not watched.joined and self._evaluation.tally.progress().done < self._evaluation.plan.total:
            codes = {each.error[0] for each in watched.contributions if each.error is not None}
            kind = LLMStoreError if codes == {LLMStoreError.code} else LLMEvaluationError
            raise kind(f"No worker could join. {message}")
        refused = len(watched.contributions) - len(watched.joined) - watched.idle
        warnings.warn(f"{refused} jobs ended early, and others did their work: {message}", stacklevel=2)

    def _note_left_out(self, watched: Watched) -> None:
        """Report routes that workers could not call. Those with open samples, which no worker could, are given up."""
        left_out = [each for contribution in watched.contributions for each in contribution.left_out.items()]
        if not left_out:
            return
        evaluation = self._evaluation
        unfinished = {each.route for each in evaluation.tally.progress().routes if each.done < each.total}
        evaluation.stopped_elsewhere |= {
            label: (LLMConfigurationError.code, why) for label, why in left_out if label in unfinished
        }
        warnings.warn("; ".join(dict.fromkeys(why for _label, why in left_out)), stacklevel=2)

    def _join(self, watched: Watched) -> Work:
        evaluation = self._evaluation
        for each in watched.joined:
            evaluation.stopped_elsewhere |= {label: (why[0], why[1]) for label, why in each.stopped.items()}
            evaluation.silent.update(each.silent)
            if each.stopped_by is not None:
                evaluation.guard.note_stopped(cast("Kind", each.stopped_by), each.stopped_because)
        evaluation.tally.stopped_by = evaluation.guard.stopped_by
        sums = Counter[str]()
        for each in watched.joined:
            sums.update(each.work)
        own = evaluation.tally.work()
        done = evaluation.tally.progress().done
        return Work(
            reused=own.reused,
            # Each worker scores the same stored outputs again.
            rescored=max((each.work["rescored"] for each in watched.joined), default=0),
            called=sums["called"],
            replayed=sums["replayed"],
            # Those of lost workers are in the store.
            sent=max(sums["sent"], evaluation.tally.sent_elsewhere),
            shared=max(0, done - own.reused - sums["called"]),
            warm_ups=sums["warm_ups"],
            edited=own.edited,
            workers=len(watched.joined),
            lost=len(watched.losses),
            lost_because=watched.losses[-1] if watched.losses else "",
        )
