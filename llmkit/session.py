"""The notebook face: sync calls and their async twins over one service, one event-loop thread and one store."""

from __future__ import annotations

import asyncio
import os
import threading
import weakref
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TypeVar, overload

from pydantic import ValidationError

from llmkit import accessor
from llmkit.errors import LLMBadRequest, LLMConfigurationError, LLMError, LLMUnsupported, describe_validation
from llmkit.loop_thread import CANCEL_GRACE_S, INHERITED, Interrupted, LoopThread
from llmkit.settings import LLMSettings, load_settings
from llmkit.types import LLMRequest, LLMResponse, Message, RequestContext, RoutePlan

if TYPE_CHECKING:
    from datetime import datetime

    import pandas as pd
    from sqlalchemy import Connection

    from llmkit.bootstrap import Runtime
    from llmkit.conversation import Conversation
    from llmkit.evals import EvalReport, Progress, Task, Variant
    from llmkit.mapping import Mapping as Mapped
    from llmkit.mapping import Meter
    from llmkit.ports import EvalStore
    from llmkit.pydanticai import Extraction

__all__ = ["Session"]

T = TypeVar("T")


class Session:
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
        self._partial: pd.DataFrame | EvalReport | None = None
        accessor.remember(self)

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

    def conversation(
        self,
        *,
        system: str | None = None,
        id: str | None = None,  # noqa: A002 - the word people use
        **parameters: Any,
    ) -> Conversation:
        """A conversation that remembers: `c.say("...")` answers with all that was said before in mind.

        Args:
            system: What the model is told first.
            id: Reopen a stored one; its system message and turns come back, its parameters do not.
            **parameters: As for `chat`; for every turn.

        Raises:
            LLMBadRequest: There is none of this id, or both `id` and `system` are given.
            LLMStoreError: Its texts were not stored.
        """
        from llmkit.conversation import Conversation, turns_of

        opener = _Opener(self._open, self._chat, self._settings.store_payloads)
        if id is None:
            return Conversation(opener, system=system, parameters=parameters)
        if system is not None:
            raise LLMBadRequest("A reopened conversation has its system message; leave system out")
        from llmkit.frames import stored_answers

        rows = self._read(lambda connection: stored_answers(connection, self.workspace, id))
        system, turns = turns_of(id, rows)
        return Conversation(opener, id=id, system=system, turns=turns, parameters=parameters)

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
        return (await self._extraction(output_type, text, parameters)).value

    async def _extraction(self, output_type: Any, text: str, parameters: dict[str, Any]) -> Extraction[Any]:
        from llmkit.pydanticai import extract, extraction_prompt

        context, fields = self._split(parameters)
        _refuse_files(fields)
        shots = {name: fields.pop(name) for name in ("instructions", "examples") if name in fields}
        messages = extraction_prompt(output_type, text, **shots)
        retries = fields.pop("retries", 1)
        request = _request(messages, fields)  # refuses unknown or bad fields before anything else happens
        own = {name: getattr(request, name) for name in _EXTRACT_FIELDS}
        rest = {name: getattr(request, name) for name in fields if name not in _EXTRACT_FIELDS}
        return await extract(
            self._open.runtime().service,
            output_type,
            request.messages,
            context=context,
            parameters=rest,
            retries=retries,
            **own,
        )

    # --- a whole column -------------------------------------------------------------------------------------------

    def map(
        self,
        what: Any,
        data: Any,
        *,
        template: str | None = None,
        name: str | None = None,
        concurrency: int | None = None,
        progress: bool = True,
        **parameters: Any,
    ) -> pd.DataFrame:
        """Ask about every row of a column or a table.

        Equal rows are asked about once. A failure is a row, never an exception. After an interruption what is done is
        in `partial`, and the same call asks only for the rest.

        Args:
            what: A Pydantic model or another type to extract, or a prompt. A prompt says `{text}` where the row goes,
                or stands before it; for a DataFrame it may name columns.
            data: A Series, a DataFrame, or a list of values.
            template: Makes the text of a row out of its columns, for example `"{title}: {body}"`.
            name: Makes the map resumable, also without the content cache and by another process: what was answered
                under this name is not asked again. The name goes with the content: a changed prompt, type, row or
                parameter is asked anew under the same name, and what was not changed is not.
            concurrency: Most rows under way at once; default `LLM_CONCURRENCY_LIMIT`.
            progress: Whether to draw a bar: a widget in Jupyter, a line on stderr elsewhere.
            **parameters: As for `chat`, and for a type as for `extract`.

        Returns:
            A frame with the index of `data`: one column for each field of the type (`text` for a prompt, `value` for a
            type without fields), then `llmkit.mapping.MAP_COLUMNS`. `status` is SUCCEEDED, FAILED (see `error_code`),
            SKIPPED (a value is missing), NOT_RUN (interrupted, or nothing answers any more) or IN_PROGRESS (another
            process is at it). `served_from` is `provider` where tokens were billed now and `shared` in rows that
            repeat another; tokens are None where they are unknown.

        Raises:
            LLMBadRequest: An argument cannot be used. Nothing was sent.
            LLMStoreError: Calls cannot be recorded any more; what is done is in `partial`.
        """
        accessor.register()
        with self._mapping(what, data, template, name, concurrency, parameters) as mapping:
            from llmkit.mapping import bar

            with bar(mapping.meter, unit="row", shown=progress) as draw:
                self._open.run(mapping.work(), draw)
            return mapping.frame()

    async def amap(self, what: Any, data: Any, *, progress: bool = True, **parameters: Any) -> pd.DataFrame:
        """`map` for async code, in any event loop. After a cancellation what is done is in `partial`."""
        own = [parameters.pop(key, None) for key in ("template", "name", "concurrency")]
        with self._mapping(what, data, own[0], own[1], own[2], parameters) as mapping:
            from llmkit.mapping import bar

            with bar(mapping.meter, unit="row", shown=progress) as draw:
                await self._open.hop(mapping.work(), draw)
            return mapping.frame()

    @property
    def partial(self) -> pd.DataFrame | EvalReport | None:
        """What the last `map` or `evaluate` had done when it was interrupted; None when it was not."""
        return self._partial

    @contextmanager
    def _mapping(
        self,
        what: Any,
        data: Any,
        template: str | None,
        name: str | None,
        concurrency: int | None,
        parameters: dict[str, Any],
    ) -> Iterator[Mapped]:
        """A map to be worked on; when that breaks off, what is done is kept."""
        from llmkit.mapping import plan_map

        self._check_of_map(what, parameters)
        mapping = plan_map(
            what,
            data,
            template=template,
            name=name,
            concurrency=self._settings.concurrency_limit if concurrency is None else concurrency,
            parameters={"profile": self._settings.default_profile, **parameters},
            chat=self._chat,
            extract=self._extraction,
        )
        self._partial = None
        try:
            yield mapping
        except BaseException as error:
            self._partial = mapping.frame()
            if isinstance(error, KeyboardInterrupt):
                raise Interrupted(mapping.told_when_interrupted()) from None
            raise

    def _check_of_map(self, what: Any, parameters: dict[str, Any]) -> None:
        """Refuse what no row could be asked with."""
        if "idempotency_key" in parameters:
            raise LLMBadRequest("map makes a key for every row by itself: give it name=... instead")
        _, fields = self._split(parameters)
        if not isinstance(what, str):
            from llmkit.pydanticai import extraction_prompt

            shots = {name: fields.pop(name) for name in ("instructions", "examples") if name in fields}
            extraction_prompt(what, "?", **shots)
            fields.pop("retries", None)
        _request("?", fields)

    # --- evaluation -----------------------------------------------------------------------------------------------

    def evaluate(self, task: Task, routes: Sequence[str | Variant], **parameters: Any) -> EvalReport:
        """Run a task over several routes and compare them. See `llmkit.evals.evaluate` for the parameters.

        After an interruption the report of what is done is in `partial`, and the same call does the rest.
        """
        evaluating = _Evaluating(parameters)
        try:
            with evaluating.bar() as draw:
                return self._open.run(self._evaluate(task, routes, evaluating.parameters), draw)
        except KeyboardInterrupt:
            self._partial = self._report_if_any(task, parameters)
            if self._partial is None:
                raise
            raise Interrupted("what is done is in .partial of the session; the same call does the rest") from None

    async def aevaluate(self, task: Task, routes: Sequence[str | Variant], **parameters: Any) -> EvalReport:
        """`evaluate` for async code, in any event loop. After a cancellation, `areport` has what is done."""
        evaluating = _Evaluating(parameters)
        with evaluating.bar() as draw:
            return await self._open.hop(self._evaluate(task, routes, evaluating.parameters), draw)

    async def _evaluate(self, task: Task, routes: Sequence[str | Variant], parameters: dict[str, Any]) -> EvalReport:
        from llmkit.evals import evaluate

        defaults = {"concurrency": self._settings.concurrency_limit}
        return await evaluate(
            task,
            routes,
            service=self._open.runtime().service,
            store=self._eval_store(),
            workspace_id=self.workspace,
            **defaults | parameters,
        )

    def report(self, name: str, *, task: Task | None = None) -> EvalReport:
        """The report of a stored evaluation, without calling anything.

        Args:
            name: Name of the evaluation.
            task: Adds inputs, targets and groups.

        Raises:
            LLMEvaluationError: There is none of this name; the message lists those that there are.
        """
        return self._open.run(self._report(name, task))

    async def areport(self, name: str, *, task: Task | None = None) -> EvalReport:
        """`report` for async code, in any event loop."""
        return await self._open.hop(self._report(name, task))

    async def _report(self, name: str, task: Task | None) -> EvalReport:
        from llmkit.evals import load_report

        return await load_report(self._eval_store(), self.workspace, name, task=task)

    def _report_if_any(self, task: Task, parameters: Mapping[str, Any]) -> EvalReport | None:
        with suppress(LLMError):
            return self.report(parameters.get("name") or task.name, task=task)
        return None

    def _eval_store(self) -> EvalStore:
        store = self._open.runtime().eval_store
        if store is None:
            raise LLMConfigurationError("An evaluation needs a store: switch LLM_PERSIST_RUNS on")
        return store

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

    def usage(self, *, since: datetime | None = None) -> pd.DataFrame:
        """What each route served and what it billed: calls, requests, tokens, cost.

        Args:
            since: Only calls from then on; an aware datetime.

        Returns:
            A frame with the columns of `llmkit.frames.USAGE_COLUMNS`, one row for each route.
        """
        from llmkit.frames import usage_frame

        return self._read(lambda connection: usage_frame(connection, self.workspace, since=since))

    async def aruns(self, **filters: Any) -> pd.DataFrame:
        """`runs` for async code, which it does not block."""
        return await asyncio.to_thread(self.runs, **filters)

    async def aattempts(self, **filters: Any) -> pd.DataFrame:
        """`attempts` for async code, which it does not block."""
        return await asyncio.to_thread(self.attempts, **filters)

    async def ausage(self, *, since: datetime | None = None) -> pd.DataFrame:
        """`usage` for async code, which it does not block."""
        return await asyncio.to_thread(self.usage, since=since)

    def _read(self, work: Callable[[Connection], T]) -> T:
        journal = self._open.runtime().journal
        if journal is None:
            raise LLMConfigurationError("Nothing is recorded: LLM_PERSIST_RUNS is off")
        accessor.register()
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


@dataclass(frozen=True, slots=True)
class _Opener:
    """What a conversation gets of its session."""

    opened: _Open
    chat: Callable[[Sequence[Message], dict[str, Any]], Coroutine[Any, Any, LLMResponse]]
    stores_payloads: bool

    def run(self, work: Coroutine[Any, Any, LLMResponse]) -> LLMResponse:
        return self.opened.run(work)

    async def hop(self, work: Coroutine[Any, Any, LLMResponse]) -> LLMResponse:
        return await self.opened.hop(work)


class _Evaluating:
    """Progress of an evaluation, told in the loop's thread and drawn in the waiting one."""

    def __init__(self, parameters: Mapping[str, Any]) -> None:
        self.parameters = dict(parameters)
        self._shown = self.parameters.get("progress", True) is True
        self._latest: Progress | None = None
        if self._shown:
            self.parameters["progress"] = self._told

    def _told(self, progress: Progress) -> None:
        self._latest = progress

    def _meter(self) -> Meter | None:
        from llmkit.mapping import Meter

        now = self._latest
        if now is None:
            return None
        return Meter(now.done, now.total, {"failed": now.failed, "reused": now.reused, "sent": now.sent})

    def bar(self) -> AbstractContextManager[Callable[[], None] | None]:
        """What draws it."""
        from llmkit.mapping import bar

        return bar(self._meter, unit="sample", shown=self._shown)


_EXTRACT_FIELDS = ("route", "constraints", "idempotency_key", "epoch", "use_cache")


class _Open:
    """What a session holds open; apart from it, so that it can be closed when the session is forgotten."""

    def __init__(self, settings: LLMSettings) -> None:
        self._settings = settings
        self._lock = threading.Lock()
        self._loop = LoopThread()
        self._runtime: Runtime | None = None
        self._pid = os.getpid()

    def run(self, work: Coroutine[Any, Any, T], tick: Callable[[], None] | None = None) -> T:
        return self._loop.run(self._ready(work), tick)

    async def hop(self, work: Coroutine[Any, Any, T], tick: Callable[[], None] | None = None) -> T:
        return await self._loop.hop(self._ready(work), tick)

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
