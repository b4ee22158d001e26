"""From an extraction or an error to a result."""

from __future__ import annotations

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
from llmkit.evals.results import FAILED, FALLBACK_WARNING, SCORER_FAILED, SUCCEEDED, Slot
from llmkit.evals.scorers import Scores
from llmkit.evals.tasks.variant import ResolvedVariant
from llmkit.redaction import redact
from llmkit.types import TokenUsage, utc_now

if TYPE_CHECKING:
    from llmkit.pydanticai.extraction import Extraction

__all__ = ["build_failure", "build_result", "replace_scores"]

LONGEST_MESSAGE = 2_000


def build_result(slot: Slot, variant: ResolvedVariant, extraction: Extraction[Any], scores: Scores) -> EvalResult:
    """Return the result of a sample that got a valid output."""
    served = extraction.responses[-1].route
    warnings = dict.fromkeys(text for response in extraction.responses for text in response.warnings)
    if variant.planned is not None and served != variant.planned:
        warnings[f"{FALLBACK_WARNING} {served} answered instead of {variant.planned}"] = None
    output_json, answer_json = _write_output(extraction)
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
        requests=sum(len(response.attempts) or 1 for response in extraction.responses),
        warnings=tuple(warnings),
    )


def _write_output(extraction: Extraction[Any]) -> tuple[str, str | None]:
    """Return the output as its type serialises it, and the answer that was validated where that is other JSON."""
    answer = extraction.answer_json
    try:
        # Equal JSON is validated to an equal output, so it is stored once. Most outputs are.
        plain = None if answer is None else to_json(from_json(answer)).decode()
        shown: str = extraction.value.model_dump_json(by_alias=True, round_trip=True)
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


def build_failure(slot: Slot, error: Exception) -> EvalResult:
    """Return the result of a sample that got none. What it cost is in it as far as the error knows its attempts."""
    known = isinstance(error, LLMError)
    message = redact(str(error) if known else describe_exception(error))
    attempts = error.attempts if isinstance(error, LLMError) else ()
    usage = TokenUsage.total(attempt.usage for attempt in attempts)
    return slot.result(
        FAILED,
        utc_now(),
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
    """Return False for an answer that did not fit, None if there was no answer."""
    no_answer = isinstance(error, LLMContentBlocked | LLMEmptyReply | LLMReasoningExhausted)
    return False if isinstance(error, LLMUnusableAnswer) and not no_answer else None
