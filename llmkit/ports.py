"""Ports of the service, as protocols. Adapters live in their own packages, and `bootstrap` connects them.

Each method documents what it raises; any other exception from an adapter is a bug in the adapter.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial
from time import perf_counter
from types import MappingProxyType, TracebackType
from typing import Any, Literal, NamedTuple, Protocol, Self
from uuid import UUID

from llmkit.errors import LLMError
from llmkit.types import (
    Attempt,
    FinishReason,
    LLMRequest,
    LLMResponse,
    Logprobs,
    Route,
    RunStatus,
    ServedFrom,
    TokenUsage,
    ToolCall,
)

__all__ = [
    "DOUBTFUL_STATUSES",
    "AnswerSink",
    "AttemptLog",
    "BeforeSend",
    "BudgetReply",
    "BudgetShare",
    "CacheKey",
    "ClientReply",
    "ClosedShare",
    "ContentCache",
    "Endpoint",
    "Guard",
    "HeldShare",
    "KeyTaken",
    "LLMRunRepo",
    "Leases",
    "ModelClient",
    "ModelDiscovery",
    "ModelServer",
    "NotSent",
    "RunFailure",
    "RunStart",
    "RunSuccess",
    "Send",
    "SpentBlock",
    "StoredRun",
    "StreamPiece",
    "UnitOfWork",
    "WindowReply",
    "WindowShare",
    "allow_sending",
    "apply_guard",
    "use_guard",
]

DOUBTFUL_STATUSES = frozenset({408, 499, 504})
"""Error statuses after which the model may have worked, so that the request may be billed. After others it is not."""


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
        logprob_mean: Mean log-probability of the answer's tokens; None when unknown, as is `logprob_min`.
        logprob_min: Smallest log-probability of one of them.
        first_token_ms: The part of `latency_ms` before the first piece of a streamed answer; None if not streamed.
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
    logprob_mean: float | None = None
    logprob_min: float | None = None
    first_token_ms: float | None = None


class RunFailure(NamedTuple):
    """Failed end of a call. `error_message` is redacted; `first_token_ms` is that of a stream that broke."""

    run_id: UUID
    finished_at_utc: datetime
    latency_ms: float
    error_code: str
    error_message: str
    plan: dict[str, Any] | None = None
    attempts: tuple[Attempt, ...] = ()
    first_token_ms: float | None = None


class StoredRun(NamedTuple):
    """Facts about a stored run that holds a key.

    Attributes:
        read_at_utc: When they were read, by the clock that `heartbeat_at_utc` is of.
    """

    id: UUID
    workspace_id: str
    status: RunStatus
    prompt_sha256: str
    epoch: int
    owner: str
    created_at_utc: datetime
    heartbeat_at_utc: datetime
    result_json: str | None
    read_at_utc: datetime


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
        """Return one run of this workspace, whatever its status, or None."""
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
            False when the run was no longer STARTED (it had been declared abandoned): its attempts are added
            anyway, and its status stays.
        """
        ...

    def mark_failed(self, failure: RunFailure) -> Awaitable[bool]:
        """Turn a STARTED run into FAILED and add its attempts; returns as `mark_succeeded`."""
        ...

    def record_unsent(self, start: RunStart, failure: RunFailure) -> Awaitable[None]:
        """Insert a run that failed before anything was sent. It has no key, so it conflicts with no other run."""
        ...

    async def mark_abandoned(self, run: StoredRun) -> bool:
        """Turn the run into FAILED / `abandoned` if it is still STARTED with the same heartbeat.

        Returns:
            Whether this call did it; False when another caller was first or the run has sent a heartbeat since.
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

    async def heartbeat(self, run_ids: Sequence[UUID]) -> None:
        """Record that these runs are alive, at the store's own time."""
        ...


class UnitOfWork(Protocol):
    """One transaction of the caller: leaving the block without `commit()` rolls back everything in it."""

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

    Filled while the call runs, so that a cancelled call still has a record of what it sent.

    Args:
        may_send: Whether requests may leave already. The owner of the log sets the attribute when they may.

    Attributes:
        queued_ms: Time the call waited for our own limits or for the client to load. It is no part of the provider's
            latency.
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


class StreamPiece(NamedTuple):
    """A part of an answer that is still being written, in the order in which it arrived.

    Attributes:
        kind: `text` of the answer, `thinking` of a model that shows it, or part of a `tool_call`.
        text: The characters that this piece adds; for a tool call, to its arguments in JSON.
        tool_index: Which of the answer's tool calls it belongs to, from 0.
        tool_id: The tool call's id, in its first piece; empty where only the whole answer has it.
        tool_name: The name of its tool, in its first piece.
    """

    kind: Literal["text", "thinking", "tool_call"]
    text: str
    tool_index: int = 0
    tool_id: str = ""
    tool_name: str = ""


class AnswerSink:
    """Where the pieces of one answer go while it is being written.

    From the first piece on, no retry and no other candidate may follow: the reader would see two answers in one.

    Args:
        forward: Receives the pieces, as many as arrived together. It may wait, which stops the reading from the server;
            meanwhile the call keeps its place under the limits, and equal calls wait for its end. What waits for a
            person, or for code that may itself call a model, would hold them up: keep the pieces instead.

    Attributes:
        has_begun: Whether a piece was put.
        begun_s: When the first one was put, on the clock `time.perf_counter`.
        reader_ms: Time that `forward` has taken so far. It is no part of the provider's latency.
        reader_error: What `forward` raised.
    """

    def __init__(self, forward: Callable[[Sequence[StreamPiece]], Awaitable[None]]) -> None:
        self._forward = forward
        self._texts: list[str] = []
        self.has_begun = False
        self.begun_s = 0.0
        self.reader_ms = 0.0
        self.reader_error: Exception | None = None

    async def put(self, pieces: Sequence[StreamPiece]) -> None:
        """Forward pieces that arrived together, at least one.

        Raises:
            asyncio.CancelledError: `forward` failed. To the writer of the answer its reader has left, which must not
                look like a failure of the server: it would be held against the route.
        """
        began_s = perf_counter()
        if not self.has_begun:
            self.has_begun, self.begun_s = True, began_s
        self._texts.extend(piece.text for piece in pieces if piece.kind == "text")
        try:
            await self._forward(pieces)
        except Exception as error:
            self.reader_error = error
            raise asyncio.CancelledError from error
        finally:
            self.reader_ms += (perf_counter() - began_s) * 1000

    async def put_answer(self, response: LLMResponse) -> None:
        """Forward an answer that is complete: the text as one piece, then each tool call as one.

        Raises:
            asyncio.CancelledError: As for `put`.
        """
        pieces = [StreamPiece("text", response.text)] if response.text else []
        pieces += [
            StreamPiece("tool_call", call.arguments, index, call.id, call.name)
            for index, call in enumerate(response.tool_calls)
        ]
        if pieces:
            await self.put(pieces)

    @property
    def partial_text(self) -> str:
        """The text so far."""
        return "".join(self._texts)


@dataclass(frozen=True, slots=True)
class ClientReply:
    """A usable answer of one route.

    Attributes:
        latency_ms: Latency at the time of recording; None for an answer that was not replayed.
    """

    text: str
    tool_calls: tuple[ToolCall, ...]
    finish_reason: FinishReason
    usage: TokenUsage
    response_model: str | None
    cost_usd: float | None = None
    warnings: tuple[str, ...] = ()
    latency_ms: float | None = None
    logprobs: Logprobs | None = None


@dataclass(frozen=True, slots=True)
class NotSent:
    """The result of a call whose request need not be sent, or must not be.

    Clients, guards and the router pass it on as it is.

    Attributes:
        outcome: The answer that makes the request unnecessary, the error that forbids it, or None when another call
            took this one's key.
    """

    outcome: LLMResponse | LLMError | None


class WindowShare(NamedTuple):
    """A part of one limit per minute that a process wants, at least and at most.

    Attributes:
        lease_id: New for each block.
        pool: Name of the limit, the same in all processes.
        limit: The most in any minute, in all processes.
    """

    lease_id: UUID
    pool: str
    limit: int
    least: int
    most: int


class SpentBlock(NamedTuple):
    """A block that its process uses no more of: what was used, and how long ago at least the last request left."""

    lease_ids: tuple[UUID, ...]
    used: tuple[int, ...]
    idle_s: float


class WindowReply(NamedTuple):
    """The answer to a wish for a block.

    Attributes:
        amounts: Granted, of each limit; None when one of them has no room.
        wait_s: Until there may be room, as far as is known now.
        holders: How many processes have a part of the limit.
    """

    amounts: tuple[int, ...] | None
    wait_s: float
    holders: int


class BudgetShare(NamedTuple):
    """A part of one kind of a budget that a process has and wants.

    Attributes:
        lease_id: The same as long as the process works at the run.
        pool: Name of the budget, the same in all processes.
        limit: The most that all processes may spend.
        earlier: What the run had spent before any process of now began; None when this process does not know it yet.
        settled: What the process has spent since it joined.
        kept: What it has reserved for requests under way.
        least: What it wants beyond that, at least and at most.
        is_new: Whether the process joins. Otherwise its part must be there still.
    """

    lease_id: UUID
    pool: str
    limit: int
    earlier: int | None
    settled: int
    kept: int
    least: int
    most: int
    is_new: bool = False


class BudgetReply(NamedTuple):
    """The answer to a wish for a part of a budget, for each kind of it.

    Attributes:
        granted: None when one kind has no room, and while one is not founded.
        spent: By all processes, as far as they reported it.
        held: By other processes, which may spend it or return it.
        used_up: Whether a process had a request for which this limit can have no room any more, whatever is returned.
        workers: How many processes have a part, this one included.
        is_founded: Whether it is known what was spent before; `earlier` founds it.
        is_lost: Whether this process counted as dead, so that its part is gone. It may join again.
    """

    granted: tuple[int, ...] | None
    spent: tuple[int, ...]
    held: tuple[int, ...]
    used_up: tuple[bool, ...]
    workers: int
    is_founded: bool
    is_lost: bool


class HeldShare(NamedTuple):
    """The part of one kind of a budget that a process has.

    Attributes:
        amount: What it may spend beyond `settled`.
        expires_at_utc: When it counts as dead unless it was heard of, by the clock that `read_at_utc` is of.
    """

    pool: str
    lease_id: UUID
    owner: str
    amount: int
    settled: int
    expires_at_utc: datetime
    read_at_utc: datetime


class ClosedShare(NamedTuple):
    """The part of a process that ends, or of one that died.

    Attributes:
        spent: What it has spent in all since it joined.
        expires_at_utc: As it was seen: a process that was heard of since is not closed. None for a process's own.
    """

    pool: str
    lease_id: UUID
    spent: int
    expires_at_utc: datetime | None = None


class Leases(Protocol):
    """Limits and budgets that all processes of a store share. Every method raises `LLMStoreError`."""

    def take_window(
        self, shares: Sequence[WindowShare], spent: Sequence[SpentBlock], valid_s: float
    ) -> Awaitable[WindowReply]:
        """Return spent blocks, and take a block of several limits at once, to be used within `valid_s` seconds."""
        ...

    def take_shares(self, shares: Sequence[BudgetShare], valid_s: float) -> Awaitable[BudgetReply]:
        """Report what was spent of a budget, and take more of it, to be renewed within `valid_s` seconds."""
        ...

    def close_shares(self, shares: Sequence[ClosedShare]) -> Awaitable[None]:
        """Add what shares have spent to that of their pools, and remove them. Those that are gone are passed over."""
        ...

    def list_shares(self, pools: Sequence[str]) -> Awaitable[list[HeldShare]]:
        """Return the shares that processes have of budgets."""
        ...

    def pause(self, route: Route, seconds: float) -> Awaitable[None]:
        """Let all processes leave the route alone."""
        ...

    async def read_pause_s(self, route: Route) -> float:
        """Return for how long the route is to be left alone, in seconds; 0 when it is not."""
        ...


BeforeSend = Callable[[], Awaitable[NotSent | None]]
"""Awaited before each request is sent. None lets it be sent; `NotSent` is returned in place of a reply."""


async def allow_sending() -> None:
    """Let the request be sent: the `before_send` of a call that is not recorded."""


class ModelClient(Protocol):
    """One call on one route, the client's own retries included."""

    async def call(
        self,
        route: Route,
        request: LLMRequest,
        log: AttemptLog,
        before_send: BeforeSend = allow_sending,
        *,
        sink: AnswerSink | None = None,
    ) -> ClientReply | NotSent:
        """Send the request, again after a retryable failure, and add every request that was sent to `log`.

        `before_send` is awaited after the limits have admitted the call, just before a request is sent: until then
        the call has cost nothing and is not in doubt. Its `NotSent` is returned as it is, and nothing is sent.

        Pieces of an answer that is still being written go into `sink`; the reply is the same as without one. Once it
        has begun, nothing is sent again. A client that cannot stream leaves it alone: the service puts in the answer.

        Raises:
            LLMError: The subclass names the failure that remains after the client's own retries.
        """
        ...

    async def close(self) -> None:
        """Release connections. Idempotent."""
        ...


class ModelDiscovery(Protocol):
    """Asks servers for facts about their models from time to time."""

    def is_due(self, route: Route) -> bool:
        """Return whether a server can be asked about this route and its last answer is old. Costs one look-up."""
        ...

    async def discover(self, routes: Iterable[Route]) -> None:
        """Ask about the routes that are due. Ends within seconds and never raises: missing facts stay unknown.

        Concurrent callers who need the same facts share one request.
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
        """Start it if necessary, and return its address.

        Raises:
            LLMConfigurationError: A package is missing or damaged; the message names the command that fixes it.
            LLMUnavailable: It does not start.
        """
        ...

    async def close(self) -> None:
        """Stop using it. Idempotent."""
        ...


class CacheKey(NamedTuple):
    """Name of one cached answer. `route` is the one that gave the answer, or would be asked for it."""

    workspace_id: str
    prompt_sha256: str
    route: Route
    profile: str
    epoch: int

    def text(self) -> str:
        """Return one string for each key: it begins with the workspace's length, so no name can imitate another key."""
        workspace = f"{len(self.workspace_id)}\x1f{self.workspace_id}"
        return f"{self.prompt_sha256}\x1f{self.epoch}\x1f{self.profile}\x1f{workspace}\x1f{self.route}"


class ContentCache(Protocol):
    """Complete successful answers by content.

    Never raises: an unreadable entry is a miss, and an answer that cannot be stored is dropped.
    """

    def get(self, key: CacheKey) -> LLMResponse | None:
        """Return the stored answer as that of this call, or None."""
        ...

    def put(self, key: CacheKey, response: LLMResponse) -> None:
        """Store the answer for the configured time."""
        ...

    def close(self) -> None:
        """Release files. Idempotent."""
        ...


Send = Callable[[], Awaitable[ClientReply | NotSent]]


class Guard(Protocol):
    """Allows or refuses each single request, retries included."""

    async def send(self, route: Route, request: LLMRequest, log: AttemptLog, send: Send) -> ClientReply | NotSent:
        """Send the request if it is allowed; `send` adds to the log what it sent.

        Raises:
            LLMBudgetExhausted: It is not allowed. Nothing was sent.
            LLMError: What `send` raised.
        """
        ...


_guard: ContextVar[Guard | None] = ContextVar("llmkit_guard", default=None)


@contextmanager
def use_guard(guard: Guard) -> Iterator[None]:
    """Apply the guard to all requests of this block, and of the tasks and threads that start in it."""
    token = _guard.set(guard)
    try:
        yield
    finally:
        _guard.reset(token)


def apply_guard(route: Route, request: LLMRequest, log: AttemptLog, send: Send) -> Send:
    """Return `send` under the guard of this context, or unchanged when there is none."""
    guard = _guard.get()
    return send if guard is None else partial(guard.send, route, request, log, send)
