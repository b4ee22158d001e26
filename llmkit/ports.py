"""Ports of the service, as protocols. Adapters live in their own packages, and `bootstrap` connects them.

Each method says what it raises; anything else that comes out of an adapter is a bug of the adapter.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial
from types import MappingProxyType, TracebackType
from typing import Any, NamedTuple, Protocol, Self
from uuid import UUID

from llmkit.errors import LLMError
from llmkit.types import (
    Attempt,
    FinishReason,
    LLMRequest,
    LLMResponse,
    Route,
    RunStatus,
    ServedFrom,
    TokenUsage,
    ToolCall,
)

__all__ = [
    "DOUBTFUL_STATUSES",
    "AttemptLog",
    "BeforeSend",
    "CacheKey",
    "ClientReply",
    "ContentCache",
    "Endpoint",
    "Guard",
    "KeyTaken",
    "LLMRunRepo",
    "ModelClient",
    "ModelDiscovery",
    "ModelServer",
    "NotSent",
    "RunFailure",
    "RunStart",
    "RunSuccess",
    "Send",
    "StoredRun",
    "UnitOfWork",
    "allow_sending",
    "apply_guard",
    "use_guard",
]

DOUBTFUL_STATUSES = frozenset({408, 499, 504})
"""Of the statuses from 400 on, which say that nothing was billed, those that do not: the model may have worked."""


class RunStart(NamedTuple):
    """A logical call as it is about to begin: one new row of `llm_runs`.

    Attributes:
        flight_key: Name shared by equal requests in flight, so that one of them calls the provider; None for no part.
        owner: The process that carries the call, as `llmkit.calls.liveness.current_owner` names it.
        request_preview: Redacted and shortened.
    """

    id: UUID
    workspace_id: str
    prompt_sha256: str
    created_at_utc: datetime
    owner: str
    profile: str
    epoch: int = 0
    pipeline_run_id: str | None = None
    stage: str | None = None
    requested_route: str | None = None
    idempotency_key: str | None = None
    flight_key: str | None = None
    request_preview: str = ""
    metadata: Mapping[str, Any] = MappingProxyType({})


class RunSuccess(NamedTuple):
    """Successful end of a call.

    Attributes:
        result_json: The response as `LLMResponse` JSON, for replay; None when payloads are not stored.
        plan: The route plan as JSON-able data; None for an answer that needed no plan.
        source_run_id: The run that was billed, for an answer served from elsewhere.
    """

    run_id: UUID
    finished_at_utc: datetime
    latency_ms: float
    route: Route
    response_model: str | None
    usage: TokenUsage
    finish_reason: FinishReason
    result_json: str | None
    response_preview: str
    served_from: ServedFrom = ServedFrom.PROVIDER
    source_run_id: UUID | None = None
    cost_usd: float | None = None
    plan: dict[str, Any] | None = None
    attempts: tuple[Attempt, ...] = ()


class RunFailure(NamedTuple):
    """Failed end of a call. `error_message` is redacted."""

    run_id: UUID
    finished_at_utc: datetime
    latency_ms: float
    error_code: str
    error_message: str
    plan: dict[str, Any] | None = None
    attempts: tuple[Attempt, ...] = ()


class StoredRun(NamedTuple):
    """Facts about a stored run that holds a key."""

    id: UUID
    workspace_id: str
    status: RunStatus
    prompt_sha256: str
    epoch: int
    owner: str
    created_at_utc: datetime
    heartbeat_at_utc: datetime
    result_json: str | None


class KeyTaken(Exception):
    """Another run of the workspace, STARTED or SUCCEEDED, holds the idempotency key (or, STARTED, the flight key)."""


class LLMRunRepo(Protocol):
    """Runs and attempts. Bound to a unit of work by its creator; the service does not know which kind.

    Every method raises `LLMStoreError` when the database fails. Those that every call needs may be coroutines, or hand
    out a future, which saves the caller a task.
    """

    async def get_by_idempotency_key(self, workspace_id: str, idempotency_key: str) -> StoredRun | None:
        """Return the STARTED or SUCCEEDED run that holds the key in this workspace, or None."""
        ...

    async def get_by_flight_key(self, workspace_id: str, flight_key: str) -> StoredRun | None:
        """Return the STARTED run that holds the flight key in this workspace, or None."""
        ...

    async def get_run(self, workspace_id: str, run_id: UUID) -> StoredRun | None:
        """One run of this workspace, whatever its status, or None."""
        ...

    def create_started(self, start: RunStart) -> Awaitable[None]:
        """Insert the run as STARTED.

        Raises:
            KeyTaken: One of its keys is held by another run. Nothing was written, and the caller's transaction stands.
        """
        ...

    def mark_succeeded(self, success: RunSuccess) -> Awaitable[bool]:
        """Turn a STARTED run into SUCCEEDED and add its attempts.

        Returns:
            False when the run was no longer STARTED (it had been declared abandoned): its attempts are added all
            the same, and its status stays.
        """
        ...

    def mark_failed(self, failure: RunFailure) -> Awaitable[bool]:
        """Turn a STARTED run into FAILED and add its attempts; returns as `mark_succeeded`."""
        ...

    def record_unsent(self, start: RunStart, failure: RunFailure) -> Awaitable[None]:
        """Insert a run that failed before anything was sent. It has no key, so no other run can be in its way."""
        ...

    async def mark_abandoned(self, run: StoredRun) -> bool:
        """Turn the run into FAILED / `abandoned` if it is still STARTED with the same heartbeat.

        Returns:
            Whether this call did it; False when another caller was first or the run has stirred since.
        """
        ...

    async def save_result_for_idempotency_key(self, start: RunStart, success: RunSuccess) -> None:
        """Insert a finished run that cost nothing (a cache hit, a shared answer) together with its key, in one write.

        Raises:
            KeyTaken: As for `create_started`.
        """
        ...

    async def record_served(self, start: RunStart, success: RunSuccess) -> None:
        """Insert a finished, keyless run that cost nothing. May be written a moment later, since nothing was paid."""
        ...

    async def annotate(self, workspace_id: str, run_id: UUID, metadata: Mapping[str, Any]) -> None:
        """Replace the metadata of a run of this workspace, with values known only when its outcome is written."""
        ...

    async def heartbeat(self, run_ids: Sequence[UUID], at_utc: datetime) -> None:
        """Note that these runs are alive."""
        ...


class UnitOfWork(Protocol):
    """One transaction of the caller: leaving the block without `commit()` forgets everything in it."""

    @property
    def runs(self) -> LLMRunRepo:
        """Repository bound to this transaction."""
        ...

    async def __aenter__(self) -> Self: ...

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None: ...

    async def commit(self) -> None:
        """Make everything in the block durable."""
        ...


class AttemptLog:
    """The requests sent for one logical call, oldest first.

    Filled while the call runs, so that a cancelled call still knows what it had sent.

    Args:
        may_send: Whether requests may leave already. The owner of the log sets the attribute when they may.

    Attributes:
        queued_ms: Time the call spent waiting for a place under our own limits, or for the client to be loaded, which
            says nothing of the provider.
    """

    def __init__(self, *, may_send: bool = True) -> None:
        self.may_send = may_send
        self._attempts: list[Attempt] = []
        self.queued_ms = 0.0

    def add(self, attempt: Attempt) -> None:
        """Append one attempt.

        Raises:
            RuntimeError: The client sent it without awaiting `before_send`.
        """
        # Appended even then: the request was sent, and may be billed.
        self._attempts.append(attempt)
        if not self.may_send:
            raise RuntimeError("a model client sent a request without awaiting `before_send`")

    @property
    def attempts(self) -> tuple[Attempt, ...]:
        """All attempts so far."""
        return tuple(self._attempts)

    @property
    def next_number(self) -> int:
        """Number of the next attempt, from 1."""
        return len(self._attempts) + 1


@dataclass(frozen=True, slots=True)
class ClientReply:
    """A usable answer of one route.

    Attributes:
        latency_ms: How long it took when it was recorded; None for one that was just given.
    """

    text: str
    tool_calls: tuple[ToolCall, ...]
    finish_reason: FinishReason
    usage: TokenUsage
    response_model: str | None
    cost_usd: float | None = None
    warnings: tuple[str, ...] = ()
    latency_ms: float | None = None


@dataclass(frozen=True, slots=True)
class NotSent:
    """The result of a call whose request need not leave, or must not.

    Clients, guards and the router pass it on as it is.

    Attributes:
        outcome: The answer that makes the request unnecessary, the error that forbids it, or None when another call
            took this one's key.
    """

    outcome: LLMResponse | LLMError | None


BeforeSend = Callable[[], Awaitable[NotSent | None]]
"""Awaited whenever a request is about to leave. None lets it leave; `NotSent` is returned in place of a reply."""


async def allow_sending() -> None:
    """Let the request leave: the `before_send` of a call that is not recorded."""


class ModelClient(Protocol):
    """One call on one route, the client's own retries included."""

    async def call(
        self, route: Route, request: LLMRequest, log: AttemptLog, before_send: BeforeSend = allow_sending
    ) -> ClientReply | NotSent:
        """Send the request, again after a retryable failure, and add every request that left to `log`.

        `before_send` is awaited when the call has its place and a request is about to leave, not earlier: until then
        the call has cost nothing and is not in doubt. Its `NotSent` is returned as it is, and nothing is sent.

        Raises:
            LLMError: Of the class that says what went wrong, after the client's own retries.
        """
        ...

    async def close(self) -> None:
        """Release connections. Idempotent."""
        ...


class ModelDiscovery(Protocol):
    """Finds out what servers say of their models, now and then."""

    def is_due(self, route: Route) -> bool:
        """Return whether there is a server to ask about this route, and its last answer is old. Costs a look-up."""
        ...

    async def discover(self, routes: Iterable[Route]) -> None:
        """Ask about those of the routes that are due. Ends within seconds and never raises: what cannot be had is left.

        Callers who want the same at once share one question.
        """
        ...


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Address of a model server; `api_key` is None if it needs none."""

    api_base: str
    api_key: str | None = field(default=None, repr=False)


class ModelServer(Protocol):
    """A model server that llmkit itself runs."""

    async def ensure_running(self) -> Endpoint:
        """Start it when it does not run yet, and say where it listens.

        Raises:
            LLMConfigurationError: A package is missing or damaged; the message names the command that mends it.
            LLMUnavailable: It does not come up.
        """
        ...

    async def close(self) -> None:
        """Stop using it. Idempotent."""
        ...


class CacheKey(NamedTuple):
    """Name of one cached answer. `route` is the one that gave, or would be asked for, the answer."""

    workspace_id: str
    prompt_sha256: str
    route: Route
    profile: str
    epoch: int

    def text(self) -> str:
        """One text for each key: with the workspace's length in it, no character inside a name can move a border."""
        workspace = f"{len(self.workspace_id)}\x1f{self.workspace_id}"
        return f"{self.prompt_sha256}\x1f{self.epoch}\x1f{self.profile}\x1f{workspace}\x1f{self.route}"


class ContentCache(Protocol):
    """Complete successful answers by content.

    Never raises: what cannot be read is a miss, what cannot be kept is dropped.
    """

    def get(self, key: CacheKey) -> LLMResponse | None:
        """Return the stored answer as that of this call, or None."""
        ...

    def put(self, key: CacheKey, response: LLMResponse) -> None:
        """Keep the answer for the configured time."""
        ...

    def close(self) -> None:
        """Release files. Idempotent."""
        ...


Send = Callable[[], Awaitable[ClientReply | NotSent]]


class Guard(Protocol):
    """Decides about every single request, retries included."""

    async def send(self, route: Route, request: LLMRequest, log: AttemptLog, send: Send) -> ClientReply | NotSent:
        """Send the request when it may leave; `send` adds to the log what it sent.

        Raises:
            LLMBudgetExhausted: It may not. Nothing was sent.
            LLMError: What `send` raised.
        """
        ...


_guard: ContextVar[Guard | None] = ContextVar("llmkit_guard", default=None)


@contextmanager
def use_guard(guard: Guard) -> Iterator[None]:
    """Let the guard decide about all that is sent in this block, and in the tasks and threads that begin in it."""
    token = _guard.set(guard)
    try:
        yield
    finally:
        _guard.reset(token)


def apply_guard(route: Route, request: LLMRequest, log: AttemptLog, send: Send) -> Send:
    """`send` under the guard of this context, or as it is when there is none."""
    guard = _guard.get()
    return send if guard is None else partial(guard.send, route, request, log, send)
