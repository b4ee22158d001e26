"""Steps: the calls of a function about one sample, named so that a run that was killed pays for none of them twice."""

from __future__ import annotations

import asyncio
import contextvars
import re
import time
from collections import Counter
from collections.abc import Coroutine, Mapping
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from llmkit.calls.request_hash import prompt_sha256
from llmkit.errors import (
    LLMBadRequest,
    LLMBudgetExhausted,
    LLMError,
    LLMInProgress,
    LLMStoreError,
    LLMUnavailable,
)
from llmkit.eval_ports import STEP_METADATA
from llmkit.ports import AnswerSink
from llmkit.types import Attempt, LLMConstraints, LLMRequest, LLMResponse, RequestContext, Route, TokenUsage

if TYPE_CHECKING:
    from pydantic import JsonValue

    from llmkit.router import LLMRouter
    from llmkit.service import LLMService

__all__ = ["Binding", "StepService", "Steps"]

DIGEST_LENGTH = 12
_NAME = re.compile(r"[\w .@+-]{1,40}")

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Binding:
    """Everything about a sample's calls that the variant, the run and the epoch decide.

    Attributes:
        service: Answers.
        workspace_id: Workspace of the run.
        call_name: Name of run, sample, variant and epoch: `pipeline_run_id` of all calls.
        stage: Stage of all calls.
        route: The variant's route; None where the router chooses.
        constraints: What a route must fulfil.
        parameters: Generation parameters, which a call may override.
        epoch: Number of the repeat.
        reasks: How often an extraction asks again, unless the function says otherwise.
        is_new: Whether no call of this name was made before, as far as is known.
    """

    service: LLMService
    workspace_id: str
    call_name: str
    stage: str
    route: Route | None
    constraints: LLMConstraints
    parameters: Mapping[str, Any]
    epoch: int
    reasks: int = 1
    is_new: bool = False


class Steps:
    """The calls of one function about one sample. Belongs to the event loop in which it is made.

    The key of a call is made of the sample's name, the step's own name, the hash of the request, and the number of
    equal requests before it. So it does not depend on the order in which different requests happen to be sent, and a
    function that is run again finds the answer of every request that it repeats.

    Attributes:
        binding: The variant, run, sample and epoch.
        responses: Answers, in the order in which they came.
        failed_attempts: Requests of calls that failed.
        fatal: The error after which the sample has no result yet, even if the function caught it.
    """

    def __init__(self, binding: Binding) -> None:
        self.binding = binding
        self.responses: list[LLMResponse] = []
        self.failed_attempts: list[Attempt] = []
        self.fatal: LLMError | None = None
        self._loop = asyncio.get_running_loop()
        # Threads that the function starts by itself know neither the budget's guard nor the span.
        self._context = contextvars.copy_context()
        self._count = 0
        self._occurrences: Counter[str] = Counter()
        self._under_way: dict[str, asyncio.Task[Any] | None] = {}
        self._metadata: dict[str, dict[str, JsonValue]] = {}
        self._is_closed = False
        self._request_context = RequestContext(
            workspace_id=binding.workspace_id, pipeline_run_id=binding.call_name, stage=binding.stage
        )
        # The clock of the pipeline: time of the function itself, and of calls as long as they took when they were sent.
        self._clock_ms = 0.0
        self._seen_s = time.perf_counter()

    # --- calls --------------------------------------------------------------------------------------------------

    async def send(self, request: LLMRequest, step: str | None) -> LLMResponse:
        """Answer one request, from any event loop.

        Args:
            request: The request; its key and metadata are set here.
            step: The name of the step; None to number it.

        Raises:
            LLMBadRequest: An equal request of the same name is under way, or the function has ended.
            LLMError: As `LLMService.chat`.
        """
        if asyncio.get_running_loop() is self._loop:
            return await self._send(request, step)
        return await asyncio.wrap_future(self._submit(self._send(request, step)))

    def wait(self, work: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine in the evaluation's event loop, and wait for it in another thread.

        Raises:
            LLMBadRequest: This is the thread of the event loop, which would wait for itself.
        """
        try:
            is_home = asyncio.get_running_loop() is self._loop
        except RuntimeError:
            is_home = False
        if is_home:
            work.close()
            raise LLMBadRequest(
                "A solve function that awaits anything must be defined with `async def`; it then awaits every call of "
                "its model: await model.chat(...)"
            )
        return self._submit(work).result()

    def _submit(self, work: Coroutine[Any, Any, T]) -> Future[T]:
        # In a copy of the context, for one context cannot be entered by two threads at once.
        return self._context.copy().run(asyncio.run_coroutine_threadsafe, work, self._loop)

    async def _send(self, request: LLMRequest, step: str | None) -> LLMResponse:
        if self._is_closed:
            raise LLMBadRequest(
                "The solve function has ended, so its model takes no more calls: wait for every call before returning"
            )
        name = self._name_step(step)
        key = f"{self.binding.call_name}:{name}{prompt_sha256(request)[:DIGEST_LENGTH]}"
        if key in self._under_way:
            raise LLMBadRequest(
                "Two equal calls are under way at the same time, and could not be told apart when the run is resumed: "
                "give each a name of its own, as in model.chat(..., step='draft-1')"
            )
        number = self._occurrences[key]
        self._occurrences[key] += 1
        self._count += 1
        label: dict[str, JsonValue] = {"step": self._count}
        if step is not None:
            label["name"] = step
        sent = request.model_copy(
            update={
                "idempotency_key": f"{key}#{number}",
                "epoch": self.binding.epoch,
                "use_cache": False,
                "metadata": {**request.metadata, STEP_METADATA: label},
            }
        )
        self._under_way[key] = asyncio.current_task()
        began_ms = self._begin_call()
        latency_ms = 0.0
        try:
            response = await self.binding.service.chat(sent, self._request_context, is_new_key=self.binding.is_new)
        except LLMError as error:
            self.failed_attempts += error.attempts
            latency_ms = sum(attempt.latency_ms for attempt in error.attempts)
            # Nothing was sent, or nothing may be kept: whatever the function does now, this is not its answer.
            is_unsent = type(error) is LLMUnavailable and not error.attempts
            if is_unsent or isinstance(error, LLMStoreError | LLMBudgetExhausted | LLMInProgress):
                self.fatal = self.fatal or error
            raise
        else:
            latency_ms = response.latency_ms
            self.responses.append(response)
            if response.run_id is not None:
                self._metadata[str(response.run_id)] = {STEP_METADATA: label}
            return response
        finally:
            del self._under_way[key]
            self._end_call(began_ms, latency_ms)

    def _name_step(self, step: str | None) -> str:
        if step is None:
            return ""
        if not isinstance(step, str) or not _NAME.fullmatch(step):
            raise LLMBadRequest(f"step= is a name of 1 to 40 letters, digits, spaces and . _ - @ +; got {step!r:.80}")
        return f"{step}:"

    async def annotate(self, response: LLMResponse, request: LLMRequest) -> None:
        """Replace the metadata in the row of an answer, its step excepted. See `LLMService.annotate`."""
        metadata = {**request.metadata, **self._metadata.get(str(response.run_id), {})}
        noted = request.model_copy(update={"metadata": metadata})
        work = self.binding.service.annotate(response, noted, self._request_context)
        await (work if asyncio.get_running_loop() is self._loop else asyncio.wrap_future(self._submit(work)))

    async def close(self) -> None:
        """End what the function left under way. It takes no calls any more."""
        self._is_closed = True
        me = asyncio.current_task()
        left = [task for task in self._under_way.values() if task is not None and task is not me]
        for task in left:
            task.cancel()
        if left:
            with suppress(asyncio.CancelledError):
                await asyncio.wait(left, timeout=1)

    # --- what they took -----------------------------------------------------------------------------------------

    @property
    def attempts(self) -> tuple[Attempt, ...]:
        """Every request that was sent now."""
        return (*(attempt for response in self.responses for attempt in response.attempts), *self.failed_attempts)

    @property
    def requests(self) -> int:
        """How many requests it took, those of answers from the store included."""
        return sum(len(response.attempts) or 1 for response in self.responses) + len(self.failed_attempts)

    @property
    def billed(self) -> int:
        """How many requests were sent now."""
        answered = sum(len(response.attempts) or 1 for response in self.responses if response.billed)
        return answered + len(self.failed_attempts)

    @property
    def usage(self) -> TokenUsage:
        """Tokens of all of them."""
        answered = [response.usage for response in self.responses]
        return TokenUsage.total([*answered, *(attempt.usage for attempt in self.failed_attempts)])

    @property
    def idle_s(self) -> float:
        """Seconds since the function last called its model or got an answer; 0 while a call is under way."""
        return 0.0 if self._under_way else time.perf_counter() - self._seen_s

    def measure(self) -> float:
        """Return the time that the sample took so far, in milliseconds.

        Calls count as long as they took when they were sent, without the time in which they waited for a place under
        the limits; of parallel ones the longest counts.
        """
        return self._clock_ms + self.idle_s * 1000

    # A call begins at the time of the clock, and ends that many milliseconds later, whatever happens beside it. The
    # clock is never behind the end of a call that the function has seen.

    def _begin_call(self) -> float:
        now_s = time.perf_counter()
        if len(self._under_way) == 1:
            self._clock_ms += (now_s - self._seen_s) * 1000
        self._seen_s = now_s
        return self._clock_ms

    def _end_call(self, began_ms: float, latency_ms: float) -> None:
        self._clock_ms = max(self._clock_ms, began_ms + latency_ms)
        self._seen_s = time.perf_counter()


@dataclass(frozen=True, slots=True)
class StepService:
    """The service of extractions and agents of a function: every request of theirs is a step."""

    steps: Steps
    step: str | None = None

    @property
    def router(self) -> LLMRouter:
        """See `LLMService`."""
        return self.steps.binding.service.router

    async def discover(self, request: LLMRequest) -> bool:
        """See `LLMService`."""
        return await self.steps.binding.service.discover(request)

    async def annotate(
        self,
        response: LLMResponse,
        request: LLMRequest,
        context: RequestContext | None = None,  # noqa: ARG002 (that of the sample is used)
    ) -> None:
        """See `LLMService`."""
        await self.steps.annotate(response, request)

    async def chat(
        self,
        request: LLMRequest,
        context: RequestContext | None = None,  # noqa: ARG002 (that of the sample is used)
        *,
        sink: AnswerSink | None = None,
    ) -> LLMResponse:
        """See `LLMService`; evaluations do not stream, so the answer arrives in the sink as a whole."""
        response = await self.steps.send(request, self.step)
        if sink is not None:
            await sink.put_answer(response)
        return response
