"""The notebook face: sync calls and their async twins over one service, one event-loop thread and one store."""

from __future__ import annotations

import asyncio
import os
import threading
import weakref
from collections.abc import Callable, Coroutine, Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TypeVar, overload

from pydantic import ValidationError

from llmkit.errors import LLMBadRequest, LLMConfigurationError, LLMUnsupported, describe_validation
from llmkit.faces.knowing import KnowingFace
from llmkit.loop_thread import CANCEL_GRACE_S, INHERITED, LoopThread
from llmkit.settings import LLMSettings, load_settings
from llmkit.types import LLMRequest, LLMResponse, Message, RequestContext, RoutePlan

if TYPE_CHECKING:
    import pandas as pd
    from sqlalchemy import Connection

    from llmkit.bootstrap import Runtime
    from llmkit.evals import EvalReport, Task, Variant

__all__ = ["Session"]

T = TypeVar("T")


class Session(KnowingFace):
    """A workspace open for work: chat, typed extraction, evaluation, and every call back as a DataFrame.

    Everything starts with the first call. Works in scripts, notebooks, threads and inside running event loops; safe
    to leave open.

    Args:
        workspace: Whose runs these are; default `LLM_WORKSPACE_ID`.
        settings: Complete settings; default the environment's.
        **overrides: Single settings by name, for example `database_url="sqlite:///study.db"`.

    Raises:
        LLMConfigurationError: A setting is bad or unknown, or both `settings` and overrides are given.
    """

    def __init__(self, workspace: str | None = None, *, settings: LLMSettings | None = None, **overrides: Any) -> None:
        if settings is not None and overrides:
            raise LLMConfigurationError("Give Session either settings=... or single settings, not both")
        self._settings = settings or load_settings(**overrides)
        self._context = _context(workspace or self._settings.workspace_id)
        self._open = _Open(self._settings)
        self._finalizer = weakref.finalize(self, _Open.close, self._open)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Finish what is written and release everything. Idempotent; the session opens again with the next call."""
        self._open.close()

    @property
    def workspace(self) -> str:
        """Name of the workspace."""
        return self._context.workspace_id

    @property
    def settings(self) -> LLMSettings:
        """The settings in force."""
        return self._settings

    def __repr__(self) -> str:
        return f"Session(workspace={self.workspace!r})"

    # --- chat -----------------------------------------------------------------------------------------------------

    def chat(self, prompt: str | Sequence[Message], **parameters: Any) -> LLMResponse:
        """Ask one question, or continue a conversation.

        Args:
            prompt: A text, or messages from oldest to newest.
            **parameters: `system` (a text put in front), `stage`, `pipeline_run_id`, and the fields of `LLMRequest`:
                `route` (`"ollama/llama3.2"`), `profile`, `temperature` (0 to 2), `max_output_tokens`, `seed`, `stop`,
                `timeout_s`, `idempotency_key`, `use_cache`, `constraints`, `metadata`.

        Returns:
            The answer; `str()` of it is its text.

        Raises:
            LLMError: See `llmkit.errors`; the message says what to do.
        """
        return self._open.run(self._chat(prompt, parameters))

    async def achat(self, prompt: str | Sequence[Message], **parameters: Any) -> LLMResponse:
        """`chat` for async code, in any event loop."""
        return await self._open.hop(self._chat(prompt, parameters))

    async def _chat(self, prompt: str | Sequence[Message], parameters: dict[str, Any]) -> LLMResponse:
        context, fields = self._split(parameters)
        request = _request(prompt, fields)
        return await self._open.runtime().service.chat(request, context)

    def explain(self, prompt: str | Sequence[Message] = "?", **parameters: Any) -> RoutePlan:
        """Which routes a call would try, in which order, and why the others are passed over. Sends nothing."""
        _, fields = self._split(parameters)
        return self._open.runtime().service.router.explain(_request(prompt, fields))

    # --- extraction -----------------------------------------------------------------------------------------------

    @overload
    def extract(self, output_type: type[T], text: str, **parameters: Any) -> T: ...
    @overload
    def extract(self, output_type: Any, text: str, **parameters: Any) -> Any: ...
    def extract(self, output_type: Any, text: str, **parameters: Any) -> Any:
        """Read a typed value out of a text.

        Args:
            output_type: A Pydantic model, or any type that Pydantic can validate.
            text: What to read.
            **parameters: `instructions` (a text put in front), `examples` (pairs of a text and its value: an instance,
                or what validates to one), `retries` (how often the model is asked again with what was wrong; default
                1), and as for `chat`.

        Returns:
            A validated instance of `output_type`.

        Raises:
            LLMInvalidOutput: No answer fitted the type; `raw_text` and `validation_errors` say more.
            LLMError: See `llmkit.errors`.
        """
        return self._open.run(self._extract(output_type, text, parameters))

    async def aextract(self, output_type: type[T], text: str, **parameters: Any) -> T:
        """`extract` for async code, in any event loop."""
        value: T = await self._open.hop(self._extract(output_type, text, parameters))
        return value

    async def _extract(self, output_type: Any, text: str, parameters: dict[str, Any]) -> Any:
        from llmkit.pydanticai import extract, extraction_prompt

        context, fields = self._split(parameters)
        _refuse_files(fields)
        shots = {name: fields.pop(name) for name in ("instructions", "examples") if name in fields}
        messages = extraction_prompt(output_type, text, **shots)
        retries = fields.pop("retries", 1)
        request = _request(messages, fields)  # refuses unknown or bad fields before anything else happens
        own = {name: getattr(request, name) for name in _EXTRACT_FIELDS}
        rest = {name: getattr(request, name) for name in fields if name not in _EXTRACT_FIELDS}
        extraction = await extract(
            self._open.runtime().service,
            output_type,
            request.messages,
            context=context,
            parameters=rest,
            retries=retries,
            **own,
        )
        return extraction.value

    # --- evaluation -----------------------------------------------------------------------------------------------

    def evaluate(self, task: Task, routes: Sequence[str | Variant], **parameters: Any) -> EvalReport:
        """Run a task over several routes and compare them. See `llmkit.evals.evaluate` for the parameters."""
        return self._open.run(self._evaluate(task, routes, parameters))

    async def aevaluate(self, task: Task, routes: Sequence[str | Variant], **parameters: Any) -> EvalReport:
        """`evaluate` for async code, in any event loop."""
        return await self._open.hop(self._evaluate(task, routes, parameters))

    async def _evaluate(self, task: Task, routes: Sequence[str | Variant], parameters: dict[str, Any]) -> EvalReport:
        from llmkit.evals import evaluate

        runtime = self._open.runtime()
        if runtime.eval_store is None:
            raise LLMConfigurationError("An evaluation needs a store: switch LLM_PERSIST_RUNS on")
        defaults = {"concurrency": self._settings.concurrency_limit}
        return await evaluate(
            task,
            routes,
            service=runtime.service,
            store=runtime.eval_store,
            workspace_id=self.workspace,
            **defaults | parameters,
        )

    # --- what happened --------------------------------------------------------------------------------------------

    def runs(self, **filters: Any) -> pd.DataFrame:
        """Every call of this workspace, newest first.

        Args:
            **filters: `status`, `pipeline_run_id`, `since` (an aware datetime), `limit`.

        Returns:
            A frame with the columns of `llmkit.frames.RUN_COLUMNS`.
        """
        from llmkit.frames import runs_frame

        return self._read(lambda connection: runs_frame(connection, self.workspace, **filters))

    def attempts(self, **filters: Any) -> pd.DataFrame:
        """Every request that was sent to a provider for this workspace, newest run first.

        Args:
            **filters: `pipeline_run_id`, `since` (an aware datetime), `limit`.

        Returns:
            A frame with the columns of `llmkit.frames.ATTEMPT_COLUMNS`.
        """
        from llmkit.frames import attempts_frame

        return self._read(lambda connection: attempts_frame(connection, self.workspace, **filters))

    def _read(self, work: Callable[[Connection], pd.DataFrame]) -> pd.DataFrame:
        journal = self._open.runtime().journal
        if journal is None:
            raise LLMConfigurationError("Nothing is recorded: LLM_PERSIST_RUNS is off")
        self._open.run(journal.flush())
        try:
            return journal.read_here(work)
        except (TypeError, ValueError) as error:
            raise LLMBadRequest(str(error)) from None

    def _split(self, parameters: dict[str, Any]) -> tuple[RequestContext, dict[str, Any]]:
        """Part what belongs to the context from the fields of the request."""
        fields = dict(parameters)
        given = {name: fields.pop(name) for name in ("pipeline_run_id", "stage") if name in fields}
        return (_context(self.workspace, **given) if given else self._context), fields


_EXTRACT_FIELDS = ("route", "constraints", "idempotency_key", "epoch", "use_cache")


class _Open:
    """What a session holds open; apart from it, so that it can be closed when the session is forgotten."""

    def __init__(self, settings: LLMSettings) -> None:
        self._settings = settings
        self._lock = threading.Lock()
        self._loop = LoopThread()
        self._runtime: Runtime | None = None
        self._pid = os.getpid()

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        return self._loop.run(self._ready(work))

    async def hop(self, work: Coroutine[Any, Any, T]) -> T:
        return await self._loop.hop(self._ready(work))

    def _ready(self, work: Coroutine[Any, Any, T]) -> Coroutine[Any, Any, T]:
        """Open in the caller's thread: the first call reads files, which the loop's thread should not."""
        try:
            self.runtime()
        except BaseException:
            work.close()
            raise
        return work

    def runtime(self) -> Runtime:
        from llmkit.bootstrap import open_runtime

        with self._lock:
            if self._pid != os.getpid():  # a forked child opens its own
                INHERITED.append(self._runtime)
                self._runtime, self._pid = None, os.getpid()
            if self._runtime is None:
                self._runtime = open_runtime(self._settings)
            return self._runtime

    def close(self) -> None:
        with self._lock:
            runtime, self._runtime = self._runtime, None
        if self._pid != os.getpid():
            return
        if runtime is not None:
            self._loop.run(_end(runtime))
        self._loop.stop()


async def _end(runtime: Runtime) -> None:
    """Cancel the calls in flight, which still records what they had sent, and only then close what they record in."""
    calls = asyncio.all_tasks() - {asyncio.current_task()}
    for call in calls:
        call.cancel()
    if calls:
        await asyncio.wait(calls, timeout=CANCEL_GRACE_S)
    await runtime.close()


def _context(workspace_id: str, **names: Any) -> RequestContext:
    try:
        return RequestContext(workspace_id=workspace_id, **names)
    except ValidationError as error:
        raise LLMConfigurationError("; ".join(describe_validation(error))) from None


def _request(prompt: str | Sequence[Message], fields: Mapping[str, Any]) -> LLMRequest:
    """Build a request from what a person typed.

    Raises:
        LLMBadRequest: A field is unknown or has a bad value; the message names it.
    """
    values = dict(fields)
    system = values.pop("system", None)
    messages = (Message(role="user", content=prompt),) if isinstance(prompt, str) else tuple(prompt)
    if system is not None:
        messages = (Message(role="system", content=system), *messages)
    try:
        return LLMRequest(messages=messages, **values)
    except ValidationError as error:
        raise LLMBadRequest("; ".join(describe_validation(error))) from None


def _refuse_files(fields: Mapping[str, Any]) -> None:
    named = sorted({"images", "files", "image", "file"} & fields.keys())
    if named:
        raise LLMUnsupported(
            f"{', '.join(named)}: no route of llmkit reads images or files yet; give the text that is in them"
        )
