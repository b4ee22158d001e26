"""Application of scorers to an output: each within its time limit, so none can block or end the run."""

from __future__ import annotations

import asyncio
import inspect
import math
from collections.abc import Coroutine, Sequence
from copy import deepcopy
from typing import Any

from llmkit.batch.task_guard import cancel_user_task, guard_tasks, start_user_task
from llmkit.errors import LLMBudgetExhausted, LLMInProgress, LLMStoreError, describe_exception
from llmkit.evals.answer_type import AnswerType
from llmkit.evals.dataset.dataset import Sample
from llmkit.evals.scorers.base import ContextScorer, FunctionScorer, Options, Score, Scorer, Scores, ScoringContext
from llmkit.evals.user_code import CANCEL_TIMEOUT_S, catch_exit, is_asynchronous, run_in_thread, to_exception

__all__ = ["DEFAULT_SCORER_TIMEOUT_S", "SCORER_THREAD", "apply_scorers"]

DEFAULT_SCORER_TIMEOUT_S = 60.0
LONGEST_ERROR = 500
SCORER_THREAD = "llmkit-scorer"
LONGEST_DETAIL = 1_000
# Each part is a metric, and so a column of every report.
LONGEST_PART = 200
MOST_PARTS = 1_000


async def apply_scorers(
    scorers: Sequence[Scorer],
    output: Any,
    sample: Sample,
    context: ScoringContext | None = None,
    *,
    timeout_s: float | None = DEFAULT_SCORER_TIMEOUT_S,
    answer: AnswerType | None = None,
) -> Scores:
    """Score one output with all scorers, in order. An exception of a scorer becomes an error of that scorer.

    Custom scorers get copies of output and sample, so they may change them. Asynchronous scorers run in the event loop
    and are cancelled when their time is over. Functions run in threads, several at once; one that exceeds its time is
    abandoned, because a thread cannot be stopped.

    Args:
        scorers: The scorers of the task.
        output: The validated output.
        sample: The sample that it answers.
        context: Service and names for judges; None outside an evaluation.
        timeout_s: Longest time for one scorer, in seconds, or None. Its own attribute `timeout_s` has priority.
        answer: The type of the output; None for that of a model.

    Raises:
        LLMStoreError: A judge's call could not be recorded.
        LLMBudgetExhausted: There was no budget left for a judge's call.
        LLMInProgress: Another process has a judge's call under way.
    """
    scores = Scores()
    view = output if answer is None else answer.view_of(output, sample.target)
    for scorer in scorers:
        seen = view if isinstance(scorer, Options) and scorer.reads_fields else output
        try:
            score = await _call(scorer, seen, sample, context, timeout_s)
        except Exception as error:
            if isinstance(error, LLMStoreError | LLMBudgetExhausted | LLMInProgress) and isinstance(
                scorer, ContextScorer
            ):
                raise
            with guard_tasks():
                scores.errors[scorer.name] = describe_exception(error)[:LONGEST_ERROR]
        else:
            scores.values[scorer.name] = score.value
            if score.detail:
                scores.details[scorer.name] = score.detail
            scores.values.update({f"{scorer.name}.{part}": value for part, value in score.parts.items()})
    return scores


async def _call(
    scorer: Scorer, output: Any, sample: Sample, context: ScoringContext | None, timeout_s: float | None
) -> Score:
    try:
        if isinstance(scorer, Options) and scorer.is_quick:
            return _validate(scorer(output, sample))
        with guard_tasks():
            limit_s = getattr(scorer, "timeout_s", None) or timeout_s
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # noqa: BLE001 (nothing is awaited here, so a CancelledError is the scorer's too)
        raise to_exception(error) from None
    # In its own task, copies included, so that a CancelledError of the scorer differs from one of the evaluation.
    return await _wait_within(limit_s, _call_slow(scorer, output, sample, context))


async def _call_slow(scorer: Scorer, output: Any, sample: Sample, context: ScoringContext | None) -> Score:
    if not isinstance(scorer, Options):
        output, sample = deepcopy((output, sample))
    if not isinstance(scorer, ContextScorer):
        return _validate(await _call_plain(scorer, output, sample))
    if context is None:
        raise TypeError("this scorer calls a model, so it needs an evaluation")
    return _validate(await scorer.score_in(context, output, sample))


async def _call_plain(scorer: Scorer, output: Any, sample: Sample) -> Any:
    if is_asynchronous(scorer.function if isinstance(scorer, FunctionScorer) else scorer):
        found: Any = scorer(output, sample)
    else:
        found = await run_in_thread(SCORER_THREAD, scorer, output, sample)
    return await found if inspect.isawaitable(found) else found


async def _wait_within(limit_s: float | None, work: Coroutine[Any, Any, Score]) -> Score:
    """Wait for work within its time, then cancel it. Work that ignores the cancellation is abandoned."""
    task = start_user_task(catch_exit(work))
    try:
        await asyncio.wait({task}, timeout=limit_s)
        if task.cancelled():
            # Not by the evaluation, whose cancellation ends the line above.
            raise RuntimeError("CancelledError: the scorer cancelled itself")
        if task.done():
            error = task.exception()
            if error is not None:
                raise to_exception(error)
            return task.result()
    finally:
        if not task.done():
            cancel_user_task(task)
            await asyncio.wait({task}, timeout=CANCEL_TIMEOUT_S)
    raise TimeoutError(f"no score within {limit_s:g} s; the limit is the option scorer_timeout_s")


def _validate(raw: Any) -> Score:
    score = raw if isinstance(raw, Score) else Score(_to_number(raw))
    if len(score.parts) > MOST_PARTS:
        raise ValueError(f"a score has at most {MOST_PARTS} parts; got {len(score.parts)}")
    return Score(
        _to_number(score.value),
        _to_storable(score.detail or "", LONGEST_DETAIL),
        {_to_storable(part, LONGEST_PART): _to_number(value) for part, value in score.parts.items()},
    )


def _to_storable(value: Any, length: int) -> str:
    # A lone surrogate would be stored, and then no DataFrame of the run could be built.
    return str(value)[:length].encode("utf-8", "backslashreplace").decode()


def _to_number(raw: Any) -> float:
    try:
        value = float(raw)
    except (TypeError, ValueError):
        raise TypeError(f"a score must be a number, a bool or a Score; got {type(raw).__name__}") from None
    if isinstance(raw, str) or not math.isfinite(value):
        raise ValueError(f"a score must be a finite number; got {raw!r:.100}")
    return value
