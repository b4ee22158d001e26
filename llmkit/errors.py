"""Every error that llmkit raises.

    LLMError                         unknown
    ├── LLMConfigurationError        configuration          settings, workspace, missing key or extra
    ├── LLMBadRequest                bad_request            llmkit or the provider refuses the request
    │   ├── LLMContextOverflow       context_overflow       prompt larger than the model's window
    │   ├── LLMUnsupported           unsupported            the model lacks a feature that the request needs
    │   └── LLMNoRoute               no_route               no route fulfils the request's constraints
    ├── LLMAuthenticationError       authentication         the key is wrong or missing at the provider
    ├── LLMPermissionDenied          permission_denied      the key is right and may not do this
    ├── LLMModelNotFound             model_not_found        the provider does not have the model
    ├── LLMQuotaExhausted            quota_exhausted        out of quota until another day, or out of credit
    ├── LLMUnavailable               unavailable      R     unreachable, overloaded, broken
    │   ├── LLMTimeout               timeout          R     no answer in time
    │   ├── LLMRateLimited           rate_limited     R     too many requests
    │   ├── LLMMalformedReply        malformed_reply  R     an answer that cannot be read
    │   └── LLMAllRoutesFailed       all_routes_failed R    every candidate failed; `errors` has each
    ├── LLMUnusableAnswer            unusable_answer        answered and billed, and not an answer
    │   ├── LLMPromptTruncated       prompt_truncated       the prompt was cut to the context window
    │   ├── LLMOutputTruncated       output_truncated       cut at the output limit
    │   ├── LLMReasoningExhausted    reasoning_exhausted    hidden reasoning used up the output limit
    │   ├── LLMContentBlocked        content_blocked        a filter of the provider
    │   ├── LLMEmptyReply            empty_reply      R     neither text nor a tool call
    │   └── LLMInvalidOutput         invalid_output         does not fit the output type
    ├── LLMIdempotencyConflict       idempotency_conflict   the key belongs to another request
    ├── LLMNoRecording               no_recording           a replaying session has no recorded answer
    ├── LLMInProgress                in_progress            the key's call is under way elsewhere
    ├── LLMStoreError                store                  the database or the cache
    ├── LLMBudgetExhausted           budget_exhausted       what is left of a budget is too little for the request
    ├── LLMSolveError                solve                  the function of a task failed on a sample
    └── LLMEvaluationError           evaluation             task, dataset or run cannot be used
        └── LLMDatasetError          dataset                a line or field of a dataset

R marks errors worth another try. Messages state the remedy, and never contain a key or an unredacted prompt.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import ClassVar
from uuid import UUID

from pydantic import ValidationError

from llmkit.display.terminal_text import escape_controls
from llmkit.types import NAME_PATTERN, Attempt, LLMProvider, LLMResponse

__all__ = [
    "LLMAllRoutesFailed",
    "LLMAuthenticationError",
    "LLMBadRequest",
    "LLMBudgetExhausted",
    "LLMConfigurationError",
    "LLMContentBlocked",
    "LLMContextOverflow",
    "LLMDatasetError",
    "LLMEmptyReply",
    "LLMError",
    "LLMEvaluationError",
    "LLMIdempotencyConflict",
    "LLMInProgress",
    "LLMInvalidOutput",
    "LLMMalformedReply",
    "LLMModelNotFound",
    "LLMNoRecording",
    "LLMNoRoute",
    "LLMOutputTruncated",
    "LLMPermissionDenied",
    "LLMPromptTruncated",
    "LLMQuotaExhausted",
    "LLMRateLimited",
    "LLMReasoningExhausted",
    "LLMSolveError",
    "LLMStoreError",
    "LLMTimeout",
    "LLMUnavailable",
    "LLMUnsupported",
    "LLMUnusableAnswer",
    "describe_validation",
]

ABANDONED_CODE = "abandoned"
CANCELLED_CODE = "cancelled"


class LLMError(Exception):
    """Base of all errors of llmkit.

    Attributes:
        code: Stable name of the kind of failure, as stored in `llm_runs.error_code`.
        retryable: Whether the same call may succeed later.
        provider: The provider that failed, if one did.
        model: The requested model.
        run_id: Id of the row in `llm_runs`, once it exists.
        attempts: Every request that was sent before this error, in order.
        status_code: HTTP status, when the provider sent one.
        retry_after_s: Seconds that the provider asked to wait.
        has_begun: Whether a part of a streamed answer had arrived, so that no other request may take its place.
        partial_text: Text that a stream brought before it broke; empty otherwise. Part of no message, log or row.
    """

    code: ClassVar[str] = "unknown"
    retryable: ClassVar[bool] = False

    def __init__(
        self,
        message: str,
        *,
        provider: LLMProvider | None = None,
        model: str | None = None,
        status_code: int | None = None,
        retry_after_s: float | None = None,
    ) -> None:
        message = escape_controls(message)  # A provider's text may be in it, and tracebacks go to terminals.
        super().__init__(message)
        self.message = message
        self.provider = provider
        self.model = model
        self.status_code = status_code
        self.retry_after_s = retry_after_s
        self.run_id: UUID | None = None
        self.attempts: tuple[Attempt, ...] = ()
        self.has_begun = False
        self.partial_text = ""

    @property
    def docs(self) -> str:
        """Section of the documentation with cause, check and fix, such as `docs/errors.md#rate-limited`."""
        return f"docs/errors.md#{self.code.replace('_', '-')}"

    def __str__(self) -> str:
        return self.message

    def _render_traceback_(self) -> list[str]:
        """Return the lines that a notebook shows instead of a traceback through llmkit's modules."""
        return [f"{type(self).__name__}: {self}"]


class LLMConfigurationError(LLMError):
    """Settings, workspace, key or an optional package is missing or wrong."""

    code = "configuration"


class LLMBadRequest(LLMError):
    """The request cannot be carried out as it is."""

    code = "bad_request"


class LLMContextOverflow(LLMBadRequest):
    """The prompt is larger than the model's context window."""

    code = "context_overflow"


class LLMUnsupported(LLMBadRequest):
    """The model lacks a feature that the request asks for."""

    code = "unsupported"


class LLMNoRoute(LLMBadRequest):
    """No route fulfils the request's constraints; the message lists why each was passed over."""

    code = "no_route"


class LLMAuthenticationError(LLMError):
    """The provider does not accept the key."""

    code = "authentication"


class LLMPermissionDenied(LLMError):
    """The key is known and not allowed to do this."""

    code = "permission_denied"


class LLMModelNotFound(LLMError):
    """The provider does not have the model."""

    code = "model_not_found"


class LLMQuotaExhausted(LLMError):
    """The quota is used up for longer than a retry could bridge.

    Attributes:
        is_temporary: Whether it comes back with time. If not, a payment or another plan is needed.
    """

    code = "quota_exhausted"
    is_temporary: bool = True


class LLMUnavailable(LLMError):
    """The provider cannot be reached, is overloaded or broken.

    Attributes:
        retries_in_call: Whether the same call may try the route again. Not when no server listens at the address.
    """

    code = "unavailable"
    retryable = True
    retries_in_call: bool = True


class LLMTimeout(LLMUnavailable):
    """No complete answer in time."""

    code = "timeout"


class LLMRateLimited(LLMUnavailable):
    """Too many requests or tokens; `retry_after_s` is the wait when the provider named one."""

    code = "rate_limited"


class LLMMalformedReply(LLMUnavailable):
    """The provider answered with something that is not its protocol."""

    code = "malformed_reply"


class LLMAllRoutesFailed(LLMUnavailable):
    """Every candidate failed; `errors` contains each failure in the order of the plan."""

    code = "all_routes_failed"

    def __init__(self, errors: Sequence[LLMError]) -> None:
        lines = [f"  {number}. {error.provider}/{error.model}: {error}" for number, error in enumerate(errors, start=1)]
        super().__init__("\n".join([f"All {len(errors)} candidate routes failed:", *lines]))
        self.errors = tuple(errors)


class LLMUnusableAnswer(LLMError):
    """The provider answered, and billed, but it is not an answer. Never cached, never scored."""

    code = "unusable_answer"


class LLMPromptTruncated(LLMUnusableAnswer):
    """The provider cut the prompt to its context window and answered the rest."""

    code = "prompt_truncated"


class LLMOutputTruncated(LLMUnusableAnswer):
    """An answer that must be whole, such as JSON, was cut at the output limit.

    Attributes:
        text: The part that was generated and billed; never part of the message.
    """

    code = "output_truncated"
    text: str = ""


class LLMReasoningExhausted(LLMUnusableAnswer):
    """Hidden reasoning used up the output limit and left no answer."""

    code = "reasoning_exhausted"


class LLMContentBlocked(LLMUnusableAnswer):
    """A filter of the provider blocked the prompt or the answer."""

    code = "content_blocked"


class LLMEmptyReply(LLMUnusableAnswer):
    """Neither text nor a tool call."""

    code = "empty_reply"
    retryable = True


class LLMInvalidOutput(LLMUnusableAnswer):
    """The answer does not fit the output type, after every repair that was allowed.

    Attributes:
        raw_text: What the model wrote last. Not part of the message.
        validation_errors: One line per problem.
        responses: The answers that did not fit, in order.
    """

    code = "invalid_output"
    responses: tuple[LLMResponse, ...] = ()

    def __init__(
        self,
        message: str,
        *,
        raw_text: str = "",
        validation_errors: Sequence[str] = (),
        provider: LLMProvider | None = None,
        model: str | None = None,
    ) -> None:
        super().__init__(message, provider=provider, model=model)
        self.raw_text = raw_text
        self.validation_errors = tuple(validation_errors)


class LLMIdempotencyConflict(LLMError):
    """The idempotency key was used in this workspace for a different request."""

    code = "idempotency_conflict"


class LLMInProgress(LLMError):
    """A call with this idempotency key is under way; `run_id` and `age_s` say which and for how many seconds."""

    code = "in_progress"

    def __init__(self, message: str, *, run_id: UUID, age_s: float) -> None:
        super().__init__(message)
        self.run_id = run_id
        self.age_s = age_s


class LLMNoRecording(LLMError):
    """A replaying session has no recorded answer to the request; the message names what differs."""

    code = "no_recording"


class LLMStoreError(LLMError):
    """The database or the cache cannot be used.

    Attributes:
        response: The answer that was paid for and could not be recorded, when the store failed after the call.
    """

    code = "store"
    response: LLMResponse | None = None


class LLMBudgetExhausted(LLMError):
    """Error for a request that the remaining budget cannot cover. It was not sent."""

    code = "budget_exhausted"


class LLMEvaluationError(LLMError):
    """A task, a dataset or an evaluation run cannot be used in this way."""

    code = "evaluation"


class LLMSolveError(LLMError):
    """The function of a task failed on a sample, returned something that cannot be stored, or never ended."""

    code = "solve"


class LLMDatasetError(LLMEvaluationError):
    """A dataset cannot be read; the message names file, line and field."""

    code = "dataset"


_IN_OUR_WORDS = {
    "Extra inputs are not permitted": "unknown name",
    f"String should match pattern '{NAME_PATTERN}'": "must be one line, without white space at its beginning or end",
}


def describe_exception(error: BaseException) -> str:
    """Return class and message of an exception of other code, as text that can be stored and shown."""
    try:
        message = str(error)
    except KeyboardInterrupt:
        raise
    except BaseException:  # noqa: BLE001 (the exception is the user's, and so is its `__str__`)
        message = "(its message cannot be shown)"
    else:
        if isinstance(error, BaseExceptionGroup):  # its own message says only how many there are
            message = f"{message}: {describe_exception(error.exceptions[0])}"
    # A lone surrogate can be part of a string, and not of a column of a DataFrame.
    return f"{type(error).__name__}: {message}".encode("utf-8", "backslashreplace").decode()


def describe_validation(error: ValidationError) -> Iterator[str]:
    """Yield one line per problem of a Pydantic error: where it is and what is wrong, without the offending value."""
    for problem in error.errors(include_input=False, include_url=False, include_context=False):
        where = ".".join(str(part) for part in problem["loc"])
        what = _IN_OUR_WORDS.get(problem["msg"], problem["msg"].removeprefix("Value error, "))
        yield f"{where}: {what}" if where else what
