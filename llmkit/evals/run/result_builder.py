"""From an extraction or an error to a result."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from pydantic_core import from_json, to_json

from llmkit.errors import (
    LLMContentBlocked,
    LLMEmptyReply,
    LLMError,
    LLMReasoningExhausted,
    LLMUnusableAnswer,
    describe_exception,
)
from llmkit.eval_ports import EvalResult
from llmkit.evals.answer_type import AnswerType
from llmkit.evals.results import FAILED, FALLBACK_WARNING, SCORER_FAILED, SUCCEEDED, Slot
from llmkit.evals.scorers import Scores
from llmkit.evals.solve.steps import Steps
from llmkit.evals.tasks.variant import ResolvedVariant
from llmkit.redaction import redact
from llmkit.types import LLMResponse, Logprobs, Route, TokenUsage, utc_now

if TYPE_CHECKING:
    from llmkit.pydanticai.extraction import Extraction

__all__ = ["build_failure", "build_result", "build_solved_result", "replace_scores", "write_output"]

# The output mode of a function's answer, which is no model's own.
SOLVE_MODE = "solve"

LONGEST_MESSAGE = 2_000


def build_result(
    slot: Slot, variant: ResolvedVariant, answer: AnswerType, extraction: Extraction[Any], scores: Scores
) -> EvalResult:
    """Return the result of a sample that got a valid output."""
    served = extraction.responses[-1].route
    warnings = _list_warnings(extraction.responses, served, variant)
    output_json, answer_json = write_output(answer, extraction)
    # Field by field, and not from a dictionary: this is done for every sample.
    return EvalResult(
        eval_run_id=slot.eval_run_id,
        route=slot.route,
        sample_id=slot.sample_id,
        epoch=slot.epoch,
        status=_status(scores),
        finished_at_utc=utc_now(),
        pipeline_run_id=slot.pipeline_run_id,
        sample_group=slot.sample_group,
        content_digest=slot.content_digest,
        served_route=str(served),
        output_json=output_json,
        answer_json=answer_json,
        output_mode=extraction.mode,
        scores=scores.values,
        scorer_errors=scores.errors,
        score_details=scores.details,
        valid_first_try=extraction.valid_first_try,
        outcome=extraction.outcome,
        schema_sha256=extraction.schema_sha256,
        input_tokens=extraction.usage.input_tokens,
        output_tokens=extraction.usage.output_tokens,
        latency_ms=extraction.latency_ms,
        requests=sum(len(response.attempts) or 1 for response in extraction.responses) + len(extraction.lost_attempts),
        warnings=warnings,
        **_read_logprobs(extraction.responses[-1].logprobs),
    )


def build_solved_result(
    slot: Slot, variant: ResolvedVariant, answer: AnswerType, value: Any, steps: Steps, scores: Scores
) -> EvalResult:
    """Return the result of a sample that a function answered."""
    # Calls of another model, whose route the function named, say nothing of who answered for the variant.
    own = [response for response in steps.responses if response.requested_route == variant.route]
    served = own[-1].route if own else None
    usage = steps.usage
    return slot.result(
        _status(scores),
        utc_now(),
        served_route=None if served is None else str(served),
        output_json=answer.write_json(value),
        output_mode=SOLVE_MODE,
        scores=scores.values,
        scorer_errors=scores.errors,
        score_details=scores.details,
        input_tokens=usage.input_tokens,
        output_tokens=usage.output_tokens,
        latency_ms=steps.measure(),
        requests=steps.requests,
        warnings=_list_warnings(steps.responses, served, variant),
    )


def _list_warnings(responses: Sequence[LLMResponse], served: Route | None, variant: ResolvedVariant) -> tuple[str, ...]:
    warnings = dict.fromkeys(text for response in responses for text in response.warnings)
    if variant.planned is not None and served not in (None, variant.planned):
        warnings[f"{FALLBACK_WARNING} {served} answered instead of {variant.planned}"] = None
    return tuple(warnings)


def _read_logprobs(logprobs: Logprobs | None) -> dict[str, Any]:
    if logprobs is None:
        return {}
    fields = {path: {"mean": each.mean, "min": each.min} for path, each in logprobs.fields.items()}
    return {"logprob_mean": logprobs.mean, "logprob_min": logprobs.min, "field_logprobs": fields}


def write_output(answer_type: AnswerType, extraction: Extraction[Any]) -> tuple[str, str | None]:
    """Return the output as its type serialises it, and the answer that was validated where that is other JSON."""
    answer = extraction.answer_json
    try:
        # Equal JSON is validated to an equal output, so it is stored once. Most outputs are.
        plain = None if answer is None else to_json(from_json(answer)).decode()
        shown = answer_type.write_json(extraction.value)
    except Exception:  # noqa: BLE001 (a serialiser of the user's type may raise anything, and the answer is paid for)
        return (answer or "null"), answer
    return shown, (None if shown == plain else answer)


def replace_scores(result: EvalResult, scores: Scores) -> EvalResult:
    """Return the result with its scores in place of any earlier ones."""
    return replace(
        result,
        status=_status(scores),
        scores=scores.values,
        scorer_errors=scores.errors,
        score_details=scores.details,
    )


def _status(scores: Scores) -> str:
    return SCORER_FAILED if scores.errors else SUCCEEDED


def build_failure(slot: Slot, error: Exception, steps: Steps | None = None) -> EvalResult:
    """Return the result of a sample that got none.

    What it cost is in it as far as the error knows its attempts, or the steps of the function that failed.
    """
    known = isinstance(error, LLMError)
    message = redact(str(error) if known else describe_exception(error))
    attempts = error.attempts if isinstance(error, LLMError) else ()
    usage = TokenUsage.total(attempt.usage for attempt in attempts) if steps is None else steps.usage
    latency_ms = sum(attempt.latency_ms for attempt in attempts) if attempts else None
    return slot.result(
        FAILED,
        utc_now(),
        error_code=error.code if isinstance(error, LLMError) else LLMError.code,
        error_message=message[:LONGEST_MESSAGE],
        served_route=str(attempts[-1].route) if attempts and isinstance(error, LLMUnusableAnswer) else None,
        valid_first_try=_first_try(error),
        input_tokens=usage.input_tokens,
        output_tokens=usage.output_tokens,
        latency_ms=latency_ms if steps is None else steps.measure(),
        requests=len(attempts) if steps is None else steps.requests,
    )


def _first_try(error: Exception) -> bool | None:
    """Return False for an answer that did not fit, None if there was no answer."""
    no_answer = isinstance(error, LLMContentBlocked | LLMEmptyReply | LLMReasoningExhausted)
    return False if isinstance(error, LLMUnusableAnswer) and not no_answer else None
