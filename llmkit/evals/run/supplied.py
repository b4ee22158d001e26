"""Scores of answers that exist already. Only judges call a model."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack

from pydantic import BaseModel, RootModel, ValidationError
from pydantic_core import from_json, to_json
from uuid_utils.compat import uuid7

from llmkit.canonical_json import sha256_of
from llmkit.errors import (
    LLMEmptyReply,
    LLMError,
    LLMEvaluationError,
    LLMInProgress,
    LLMInvalidOutput,
    describe_exception,
    describe_validation,
)
from llmkit.eval_ports import EvalResult, EvalRun, EvalStore
from llmkit.evals.answer_type import RESPONSE, AnswerType
from llmkit.evals.call_names import LONGEST_NAME, call_name, check_run_name, list_some, name_prefix
from llmkit.evals.dataset.dataset import Dataset, Sample
from llmkit.evals.provenance import describe_process
from llmkit.evals.report.report import EvalReport
from llmkit.evals.results import FAILED, NOT_RUN, SCORER_FAILED, ResultKey, Slot, key_of, sort_results
from llmkit.evals.run.answer_sources import ColumnNames, JsonText, SuppliedAnswer, SuppliedAnswers, collect_answers
from llmkit.evals.run.options import ScoreOptions
from llmkit.evals.run.result_builder import build_failure, replace_scores
from llmkit.evals.scorers import (
    DEFAULT_SCORER_TIMEOUT_S,
    ContextScorer,
    ScoringContext,
    apply_scorers,
    is_lower_better,
)
from llmkit.evals.scorers.base import Options
from llmkit.evals.tasks.task import Task
from llmkit.evals.tasks.variant import DIGEST_LENGTH
from llmkit.types import utc_now

if TYPE_CHECKING:
    from llmkit.service import LLMService
    from llmkit.settings import LLMSettings

__all__ = ["score_answers"]

DEFAULT_CONCURRENCY = 8
# Without a judge, what is waited for is the store, which groups the writes of callers that come together.
MOST_WRITES = 256


async def score_answers(
    task: Task,
    outputs: Any,
    *,
    service: Callable[[], LLMService],
    store: EvalStore,
    workspace_id: str,
    settings: LLMSettings,
    name: str | None = None,
    **options: Unpack[ScoreOptions],
) -> EvalReport:
    """Score answers that exist already, store the results as a run, and report on them.

    Nothing is called unless a judge is among the scorers. The same name again scores what is new or was edited, and
    requests no verdict twice.

    Args:
        task: Its dataset, output type and scorers are used; its prompts are not.
        outputs: As for `collect_answers`.
        service: Returns the service that judges call; not used without one.
        store: Keeps runs and results.
        workspace_id: Workspace of the run.
        settings: Settings in force.
        name: Name of the run; `TASK-answers` when None.
        **options: See `ScoreOptions`.

    Raises:
        LLMEvaluationError: The answers cannot be matched with the samples, a target cannot be compared, or another
            kind of run has the name. Nothing was called.
    """
    dataset = task.load(options.get("limit"))
    columns = ColumnNames(options.get("answer"), options.get("id"), options.get("variant"), options.get("epoch"))
    fields = {
        name
        for field, info in task.answer.view.model_fields.items()
        for name in (field, info.validation_alias, info.alias)
        if not issubclass(task.answer.view, RootModel)
    }
    supplied = collect_answers(
        outputs,
        [sample.key for sample in dataset],
        columns,
        fields=[each for each in fields if isinstance(each, str)],
        base_dir=Path.cwd(),
        most_mb=settings.max_file_mb,
    )
    counts = _match_samples(
        supplied, dataset, is_strict=options.get("strict", False), is_limited=bool(options.get("limit"))
    )
    for scorer in task.scorer_objects:
        if isinstance(scorer, Options) and not task.answer.has_open_fields:
            for sample in dataset:
                scorer.check_target(task.answer.view, sample)
    new = _describe_run(task, dataset, counts, workspace_id, settings, options)
    run = await store.open_run(replace(new, name=await _choose_name(store, new, name)))
    scoring = _AnswerScoring(
        task, dataset, run, store, service, options.get("scorer_timeout_s", DEFAULT_SCORER_TIMEOUT_S)
    )
    jobs = list(scoring.list_jobs(supplied, counts))
    stored = {key_of(result): result for result in await store.list_results(run.id)}
    scoring.require_all_supplied(stored.values(), jobs)
    is_same = run.spec.get("scorers_sha256") == task.scorers_sha256
    open_jobs = [job for job in jobs if not (is_same and _is_settled(stored.get(_key_of_slot(job.slot)), job.slot))]
    await scoring.work_on(open_jobs, options.get("concurrency") or DEFAULT_CONCURRENCY, options.get("progress"))
    spec = {**run.spec, **new.spec, "supplied": {**run.spec.get("supplied", {}), **counts}}
    spec["routes"] = {**run.spec.get("routes", {}), **new.spec["routes"]}
    spec["epochs"] = max(int(run.spec.get("epochs", 1)), new.spec["epochs"])
    run = replace(run, spec=spec, dataset_sha256=dataset.sha256)
    await store.update_run(run)
    results = [result for result in await store.list_results(run.id) if result.sample_id in dataset.by_id]
    present = {key_of(result) for result in results}
    results += [slot.result(NOT_RUN, utc_now()) for slot in scoring.list_absent(spec, present)]
    return EvalReport(
        run=run,
        results=tuple(sort_results(results, dataset.by_id, spec["routes"])),
        dataset=dataset.by_id,
        in_doubt=await store.list_calls_in_doubt(workspace_id, name_prefix(run)),
        digests=await store.list_digests(workspace_id, name_prefix(run)),
        task=task,
    )


def _key_of_slot(slot: Slot) -> ResultKey:
    """Return the key of the result that a slot will have."""
    return ResultKey(slot.sample_id, slot.route, slot.epoch)


def _is_settled(result: EvalResult | None, slot: Slot) -> bool:
    """Return whether a stored result is that of the same answer to the same sample, without a scorer's error."""
    return result is not None and result.pipeline_run_id == slot.pipeline_run_id and result.status != SCORER_FAILED


def _match_samples(
    supplied: Mapping[str, SuppliedAnswers], dataset: Dataset, *, is_strict: bool, is_limited: bool
) -> dict[str, dict[str, Any]]:
    """Count answers, and those without a sample or samples without an answer, by variant.

    Raises:
        LLMEvaluationError: No answer has a sample; or any is without its counterpart, and that was not allowed.
    """
    counts: dict[str, dict[str, Any]] = {}
    problems = []
    for label, own in supplied.items():
        ids = {sample_id for sample_id, _epoch in own.answers}
        surplus, missing = ids - dataset.by_id.keys(), dataset.by_id.keys() - ids
        if surplus == ids:
            raise LLMEvaluationError(
                f"{label}: no id of the answers is a sample's; the answers have {list_some(ids, 3)}, "
                f"the samples {list_some(set(dataset.by_id), 3)}."
            )
        counts[label] = {"source": own.source, "answers": len(ids - surplus), "missing": len(missing)}
        # With a limit, the other samples were not read, and their answers are no surplus.
        counts[label]["surplus"] = 0 if is_limited else len(surplus)
        counts[label]["epochs"] = 1 + max(epoch for _id, epoch in own.answers)
        if missing:
            problems.append(
                f"{label}: no answer for {len(missing):,} of {len(dataset):,} samples ({list_some(missing, 3)})"
            )
        if surplus and not is_limited:
            problems.append(
                f"{label}: no sample for {len(surplus):,} of {len(ids):,} answers ({list_some(surplus, 3)})"
            )
    if is_strict and problems:
        raise LLMEvaluationError(f"{'; '.join(problems)}. Complete them, or allow it with strict=False.")
    return counts


def _describe_run(
    task: Task,
    dataset: Dataset,
    counts: Mapping[str, Mapping[str, Any]],
    workspace_id: str,
    settings: LLMSettings,
    options: ScoreOptions,
) -> EvalRun:
    scorers = task.scorer_objects
    named = {scorer.name: getattr(scorer, "description", None) for scorer in scorers}
    recorded = {name: options.get(name) for name in ("strict", "scorer_timeout_s") if options.get(name) is not None}
    return EvalRun(
        id=uuid7(),
        workspace_id=workspace_id,
        name=task.name,
        task_name=task.name,
        # Prompts do not matter, and a run of `evaluate` never has this hash.
        task_sha256=sha256_of(["supplied", task.answer.schema]),
        dataset_sha256=dataset.sha256,
        created_at_utc=utc_now(),
        spec={
            "task": {"output schema": task.answer.schema},
            "scorers": [scorer.name for scorer in scorers],
            "scorers_sha256": task.scorers_sha256,
            "judges": {name: describe() for name, describe in named.items() if describe is not None},
            "lower_is_better": [scorer.name for scorer in scorers if is_lower_better(scorer)],
            "routes": {label: {"route": own["source"], "parameters": {}} for label, own in counts.items()},
            "epochs": max(own["epochs"] for own in counts.values()),
            "samples": len(dataset),
            "groups": {sample.key: sample.group for sample in dataset if sample.group is not None},
            "made_with": describe_process(settings, recorded, task.base_dir or Path.cwd()),
            "supplied": {label: dict(own) for label, own in counts.items()},
        },
    )


async def _choose_name(store: EvalStore, new: EvalRun, name: str | None) -> str:
    """Return the name of the run that is made or continued.

    Raises:
        LLMEvaluationError: A run of another kind, or of another output type, has the name.
    """
    for number in count(1):
        end = "-answers" if number == 1 else f"-answers-{number}"
        wanted = check_run_name(f"{new.task_name[: LONGEST_NAME - len(end)]}{end}" if name is None else name)
        run = await store.get_run(new.workspace_id, wanted)
        if run is None or run.task_sha256 == new.task_sha256:
            return wanted
        if name is not None:
            what = "its answers were supplied for another output type" if "supplied" in run.spec else "it called models"
            raise LLMEvaluationError(f"There is an evaluation {name!r} already, and {what}. Use another name.")
    raise AssertionError("unreachable")


@dataclass(frozen=True, slots=True)
class _AnswerJob:
    sample: Sample
    slot: Slot
    answer: SuppliedAnswer


@dataclass(frozen=True, slots=True)
class _AnswerScoring:
    """The scorers of a task at work on supplied answers."""

    task: Task
    dataset: Dataset
    run: EvalRun
    store: EvalStore
    service: Callable[[], LLMService]
    timeout_s: float | None

    @property
    def has_judge(self) -> bool:
        return any(isinstance(scorer, ContextScorer) for scorer in self.task.scorer_objects)

    def list_jobs(
        self, supplied: Mapping[str, SuppliedAnswers], counts: Mapping[str, Mapping[str, Any]]
    ) -> Iterator[_AnswerJob]:
        for label in counts:
            for (sample_id, epoch), answer in supplied[label].answers.items():
                sample = self.dataset.by_id.get(sample_id)
                if sample is not None:
                    yield _AnswerJob(sample, self._make_slot(sample, label, epoch, _hash_answer(answer.raw)), answer)

    def _make_slot(self, sample: Sample, label: str, epoch: int, answer_digest: str) -> Slot:
        content = self.dataset.content_sha256(sample)[:DIGEST_LENGTH]
        # The answer takes the place of the request in the name: another answer gets a verdict of its own.
        name = call_name(self.run, sample.key, label, epoch, content + answer_digest)
        return Slot(self.run.id, label, sample.key, epoch, name, sample.group, content)

    def list_absent(self, spec: Mapping[str, Any], present: set[ResultKey]) -> Iterator[Slot]:
        """Yield the slots of samples without an answer, of all variants and epochs of the run."""
        for label in spec["routes"]:
            for epoch in range(spec["epochs"]):
                for sample in self.dataset:
                    if ResultKey(sample.key, label, epoch) not in present:
                        yield self._make_slot(sample, label, epoch, _hash_answer(None))

    def require_all_supplied(self, stored: Sequence[EvalResult] | Any, jobs: Sequence[_AnswerJob]) -> None:
        """Refuse to leave results of answers that are no longer there among those of the others.

        Raises:
            LLMEvaluationError: A variant had answers to more samples.
        """
        now = {_key_of_slot(job.slot) for job in jobs}
        labels = {job.slot.route for job in jobs}
        gone = {
            result.sample_id
            for result in stored
            if result.route in labels and result.sample_id in self.dataset.by_id and key_of(result) not in now
        }
        if gone:
            raise LLMEvaluationError(
                f"The run {self.run.name!r} has scores of {len(gone):,} samples that have no answer any more "
                f"({list_some(gone, 3)}). Use another name."
            )

    async def work_on(
        self, jobs: Sequence[_AnswerJob], concurrency: int, progress: bool | Callable[[int, int, int], None] | None
    ) -> None:
        """Score and store all jobs. A result that a judge of another process has under way is left to it."""
        waiting, done, failed = iter(jobs), 0, 0

        async def work() -> None:
            nonlocal done, failed
            for job in waiting:
                try:
                    result = await self._score(job)
                except LLMInProgress:
                    continue
                await self.store.save_result(result)
                done, failed = done + 1, failed + (result.status == FAILED)
                if callable(progress):
                    progress(done, len(jobs), failed)

        workers = min(len(jobs), concurrency if self.has_judge else MOST_WRITES)
        tasks = [asyncio.ensure_future(work()) for _ in range(workers)]
        try:
            await asyncio.gather(*tasks)
        finally:
            # After an error or Ctrl-C nothing may go on in the background.
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _score(self, job: _AnswerJob) -> EvalResult:
        known = job.answer.known
        try:
            if known is not None and job.answer.raw is None:
                return replace(known, **job.slot._asdict(), finished_at_utc=utc_now())
            output, output_json, answer_json, is_mended = _read_answer(self.task.answer, job.answer.raw)
        except LLMError as error:
            failure = replace(build_failure(job.slot, error), valid_first_try=None)
            return failure if known is None else _add_facts(failure, known)
        result = job.slot.result(SCORER_FAILED, utc_now(), output_json=output_json, answer_json=answer_json)
        if is_mended:
            result = replace(result, warnings=("the answer was no valid JSON, and was repaired",))
        result = result if known is None else _add_facts(result, known)
        context = None
        if self.has_judge:
            from llmkit.pydanticai.extraction import extract

            context = ScoringContext(self.service(), extract, self.run.workspace_id, job.slot.pipeline_run_id)
        scores = await apply_scorers(
            self.task.scorer_objects, output, job.sample, context, timeout_s=self.timeout_s, answer=self.task.answer
        )
        return replace_scores(result, scores)


def _add_facts(result: EvalResult, known: EvalResult) -> EvalResult:
    """Add what the run that an answer is from knows about it. Nothing is made up where there is none."""
    names = (
        *("served_route", "output_mode", "outcome", "valid_first_try", "schema_sha256", "requests", "latency_ms"),
        *("input_tokens", "output_tokens", "logprob_mean", "logprob_min", "field_logprobs"),
    )
    return replace(result, **{name: getattr(known, name) for name in names})


def _hash_answer(raw: Any) -> str:
    plain = to_json(raw, by_alias=True, serialize_unknown=True, inf_nan_mode="strings").decode()
    return sha256_of(["supplied", plain])[:DIGEST_LENGTH]


def _read_answer(answer: AnswerType, raw: Any) -> tuple[Any, str, str | None, bool]:
    """Return an answer as its type validates it, its JSON for people, its JSON as given, and whether it was mended.

    Text is read as the answer of a model is. A type with one field takes the bare value of it as well.

    Raises:
        LLMEmptyReply: There is no answer.
        LLMInvalidOutput: It does not fit; the message says why.
    """
    if raw is None or (isinstance(raw, str) and not raw.strip()):
        raise LLMEmptyReply("No answer was supplied.")
    problem = None
    for text, is_mended in _list_readings(answer, raw):
        try:
            output = answer.read_json(text)
        except ValidationError as error:
            problem = problem or "; ".join(describe_validation(error))
            continue
        except Exception as error:  # noqa: BLE001 (a validator of the user's type may raise anything)
            problem = problem or describe_exception(error)
            continue
        try:
            shown = answer.write_json(output)
        except Exception:  # noqa: BLE001 (a serialiser of the user's type may raise anything)
            shown = text
        is_same = not answer.is_model or shown == to_json(from_json(text)).decode()
        return output, shown, (None if is_same else text), is_mended
    problem = problem or "it is not JSON"
    raise LLMInvalidOutput(f"The supplied answer does not fit {answer.name}: {problem}", raw_text=str(raw))


def _list_readings(answer: AnswerType, raw: Any) -> Iterator[tuple[str, bool]]:
    """Yield the JSON texts that an answer may be, and whether they were mended."""
    if isinstance(raw, JsonText):
        yield str(raw), False
        raw = from_json(raw)
    if answer.is_text:
        is_object = isinstance(raw, list | dict | BaseModel)
        yield _write(_write(raw) if is_object else str(raw)), False
    elif isinstance(raw, BaseModel):
        yield raw.model_dump_json(by_alias=True, round_trip=True), False
    elif isinstance(raw, str):
        yield from _list_readings_of_text(answer, raw)
    else:
        yield from _list_forms(answer, raw)
        if isinstance(raw, int | float) and not isinstance(raw, bool):
            # A column of numbers may be that of a field of text.
            yield from _list_forms(answer, str(raw))


def _list_readings_of_text(answer: AnswerType, text: str) -> Iterator[tuple[str, bool]]:
    from llmkit.pydanticai.repair import is_json, mend_json

    if is_json(text):
        yield text, False
        yield from _list_forms(answer, from_json(text))
    elif (mended := mend_json(text)) is not None:
        yield mended, True
    yield from _list_forms(answer, text)


def _list_forms(answer: AnswerType, value: Any) -> Iterator[tuple[str, bool]]:
    """Yield the JSON of a value, and that of an object whose only field has it."""
    names = list(answer.view.model_fields)
    has_one = len(names) == 1 and not issubclass(answer.view, RootModel)
    if not has_one or isinstance(value, dict):
        yield _write(value), False
    if has_one:
        yield _write({names[0]: value}), False
    elif isinstance(value, dict) and value.keys() == {RESPONSE}:
        # The object in which a model writes a value that is none.
        yield _write(value[RESPONSE]), False


def _write(value: Any) -> str:
    return to_json(value, by_alias=True, serialize_unknown=True).decode()
