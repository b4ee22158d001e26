"""The notebook session: one class with every method that people call, sync and async.

Every method checks and works in a module of `llmkit.notebook`, which it imports when it is called: loading the class
costs next to nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from os import PathLike
from typing import TYPE_CHECKING, Any, TypeVar, overload

from llmkit.evals.run.options import ScoreOptions
from llmkit.notebook.options import (
    ChatOptions,
    ConversationOptions,
    ExtractOptions,
    MapOptions,
    ModelOptions,
    SharedEvaluateOptions,
    accept_options,
)

if TYPE_CHECKING:
    from datetime import datetime
    from pathlib import Path
    from types import TracebackType, UnionType
    from typing import Self

    import pandas as pd
    from typing_extensions import Unpack

    from llmkit.dataframes.usage import UsageFrame
    from llmkit.evals import EvalReport, Task, Variant
    from llmkit.evals.policies import Policy
    from llmkit.notebook.conversation import Conversation
    from llmkit.notebook.stream import AsyncChatStream, AsyncValueStream, ChatStream, ValueStream
    from llmkit.providers.model_facts import ModelFacts
    from llmkit.pydanticai import PydanticAiLiteLLMModel
    from llmkit.settings import LLMSettings
    from llmkit.types import LLMResponse, Message, RoutePlan

__all__ = ["Session"]

T = TypeVar("T")


class Session:
    """A workspace: chat, typed extraction, evaluation, and every call back as a DataFrame.

    The database is opened by the first call. Until then only litellm, which takes seconds, is loaded, in a quiet moment
    (`LLM_WARM_UP`). A session works in scripts, notebooks, threads and inside running event loops. It may stay open:
    a session that is no longer used closes itself.

    Args:
        workspace: Name of the workspace to which the runs belong; default `LLM_WORKSPACE_ID`.
        settings: Complete settings; default those of the environment.
        replay: A cassette, recorded by `llmkit cassette record`, that answers instead of providers: nothing is sent.
            Unless the settings name a database, runs are kept in a temporary one.
        **overrides: Single settings by name, for example `database_url="sqlite:///study.db"`.

    Raises:
        LLMConfigurationError: A setting is bad or unknown, or both `settings` and overrides are given.

    Example:
        >>> from llmkit import Session
        >>> with Session("churn-study", database_url="sqlite:///study.db") as s:
        ...     print(s.chat("What is churn?"))
        Customers who leave.
    """

    def __init__(
        self,
        workspace: str | None = None,
        *,
        settings: LLMSettings | None = None,
        replay: str | PathLike[str] | None = None,
        **overrides: Any,
    ) -> None:
        from llmkit.notebook.core import build_core
        from llmkit.notebook.pandas_accessor import remember_session
        from llmkit.notebook.route_completion import register_completion

        self._core = build_core(workspace, settings, replay, overrides)
        remember_session(self)
        register_completion()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"Session(workspace={self.workspace!r})"

    def close(self) -> None:
        """Finish pending writes and release everything. Idempotent; the next call opens the session again.

        Example:
            >>> s.close()
            >>> str(s.chat("What is churn?"))
            'Customers who leave.'
        """
        self._core.close()

    @property
    def workspace(self) -> str:
        """Name of the workspace."""
        return self._core.workspace_id

    @property
    def settings(self) -> LLMSettings:
        """Settings in force."""
        return self._core.settings

    @property
    def partial(self) -> pd.DataFrame | EvalReport | None:
        """Result so far of the last `map` or `evaluate`, if it was interrupted; otherwise None."""
        return self._core.partial

    # --- chat -----------------------------------------------------------------------------------------------------

    @accept_options(ChatOptions)
    def chat(self, prompt: str | Sequence[Message | Mapping[str, Any]], **options: Unpack[ChatOptions]) -> LLMResponse:
        """Send a prompt, or continue a list of messages.

        Args:
            prompt: A string, or messages from oldest to newest.
            **options: All optional; None is the same as leaving one out.

        Returns:
            The answer; `str()` of it is its text.

        Raises:
            LLMBadRequest: An argument cannot be used. Nothing was sent.
            LLMError: See `llmkit.errors`; the message states the remedy.

        Example:
            >>> answer = s.chat("What is churn?", temperature=0)
            >>> answer.text, answer.usage.output_tokens
            ('Customers who leave.', 3)
        """
        from llmkit.notebook.chat import send_chat

        return self._core.run(send_chat(self._core, prompt, options))

    @accept_options(ChatOptions)
    async def achat(
        self, prompt: str | Sequence[Message | Mapping[str, Any]], **options: Unpack[ChatOptions]
    ) -> LLMResponse:
        """Send a prompt from async code, in any event loop; see `chat`."""
        from llmkit.notebook.chat import send_chat

        return await self._core.run_async(send_chat(self._core, prompt, options))

    @accept_options(ChatOptions)
    def explain(
        self, prompt: str | Sequence[Message | Mapping[str, Any]] = "?", **options: Unpack[ChatOptions]
    ) -> RoutePlan:
        """Return the routes that a call would try, in order, and why others are excluded. Sends nothing.

        Args:
            prompt: As for `chat`. Only its requirements matter (images, tools), not its text.
            **options: As for `chat`.

        Returns:
            The plan; a notebook shows it as a table.

        Raises:
            LLMBadRequest: An argument cannot be used.

        Example:
            >>> print(s.explain().candidates[0])
            ollama/llama3.2
        """
        from llmkit.notebook.chat import explain_routes

        return explain_routes(self._core, prompt, options)

    @accept_options(ConversationOptions)
    def conversation(self, **options: Unpack[ConversationOptions]) -> Conversation:
        """Start a conversation that remembers: each `say("...")` is answered with all earlier turns in view.

        Args:
            **options: Apply to every turn, except `images` and `files`, which are sent with the first and stay in view.

        Raises:
            LLMBadRequest: There is none of this id, both `id` and `system` are given, or an option is unknown.
            LLMStoreError: Its texts were not stored.

        Example:
            >>> c = s.conversation(system="Be brief.")
            >>> print(c.say("What is churn?"))
            Customers who leave.
            >>> len(s.conversation(id=c.id).turns)
            1
        """
        from llmkit.notebook.conversation import open_conversation

        return open_conversation(self._core, options)

    # --- typed values ---------------------------------------------------------------------------------------------

    @overload
    def extract(self, output_type: type[T], text: str = "", **options: Unpack[ExtractOptions]) -> T: ...
    @overload
    def extract(self, output_type: Any, text: str = "", **options: Unpack[ExtractOptions]) -> Any: ...
    @accept_options(ExtractOptions)
    def extract(self, output_type: Any, text: str = "", **options: Unpack[ExtractOptions]) -> Any:
        """Read a typed value from a text, images or files.

        Args:
            output_type: A Pydantic model, or any type that Pydantic can validate.
            text: The text; may be left out if there are `images` or `files`.
            **options: All optional; None is the same as leaving one out.

        Returns:
            A validated instance of `output_type`.

        Raises:
            LLMInvalidOutput: No answer fitted the type; see its `raw_text` and `validation_errors`.
            LLMError: See `llmkit.errors`.

        Example:
            >>> s.extract(City, "Rome has 2.8 million inhabitants.")
            City(name='Rome', people=2800000)
        """
        from llmkit.notebook.chat import extract_value

        return self._core.run(extract_value(self._core, output_type, text, options))

    @overload
    async def aextract(self, output_type: type[T], text: str = "", **options: Unpack[ExtractOptions]) -> T: ...
    @overload
    async def aextract(self, output_type: Any, text: str = "", **options: Unpack[ExtractOptions]) -> Any: ...
    @accept_options(ExtractOptions)
    async def aextract(self, output_type: Any, text: str = "", **options: Unpack[ExtractOptions]) -> Any:
        """Read a typed value from async code, in any event loop; see `extract`."""
        from llmkit.notebook.chat import extract_value

        return await self._core.run_async(extract_value(self._core, output_type, text, options))

    # --- streams --------------------------------------------------------------------------------------------------

    @overload
    def stream(
        self, question: str | Sequence[Message | Mapping[str, Any]], **options: Unpack[ChatOptions]
    ) -> ChatStream: ...
    @overload
    def stream(self, question: type[T], text: str = "", **options: Unpack[ExtractOptions]) -> ValueStream[T]: ...
    @overload
    def stream(self, question: UnionType, text: str = "", **options: Unpack[ExtractOptions]) -> Any: ...
    @overload  # `Literal` and the like, which have no type of their own; a prompt has no text after it
    def stream(self, question: Any, text: str, **options: Unpack[ExtractOptions]) -> Any: ...
    @accept_options(ExtractOptions)
    def stream(self, question: Any, text: str = "", **options: Unpack[ExtractOptions]) -> Any:
        """Send a prompt as `chat` does, or read a type as `extract` does, and loop over the answer as it is written.

        The row, the cache, limits and keys are those of `chat` and `extract`; a stored answer comes as one piece.
        Before the first piece failures are retried and fall back as usual; after it, a stream that breaks raises an
        error whose `partial_text` has what had arrived.

        Args:
            question: A prompt as for `chat`, or a type as for `extract`.
            text: The text to read, if `question` is a type.
            **options: Those of `chat`, or of `extract`.

        Returns:
            A `ChatStream` of texts, or a `ValueStream` of objects with the fields that have arrived, as soon as the
            first piece is there.

        Raises:
            LLMBadRequest: An argument cannot be used. Nothing was sent.
            LLMError: See `llmkit.errors`; no candidate could answer.

        Example:
            >>> stream = s.stream("What is churn?")
            >>> "".join(stream)
            'Customers who leave.'
            >>> stream.response.usage.output_tokens
            3
            >>> list(s.stream(City, "Rome has 2.8 million inhabitants."))[-1]
            City(name='Rome', people=2800000)
        """
        from llmkit.notebook.stream import open_stream

        return open_stream(self._core, question, text, options)

    @overload
    def astream(
        self, question: str | Sequence[Message | Mapping[str, Any]], **options: Unpack[ChatOptions]
    ) -> AsyncChatStream: ...
    @overload
    def astream(self, question: type[T], text: str = "", **options: Unpack[ExtractOptions]) -> AsyncValueStream[T]: ...
    @overload
    def astream(self, question: UnionType, text: str = "", **options: Unpack[ExtractOptions]) -> Any: ...
    @overload  # `Literal` and the like, which have no type of their own; a prompt has no text after it
    def astream(self, question: Any, text: str, **options: Unpack[ExtractOptions]) -> Any: ...
    @accept_options(ExtractOptions)
    def astream(self, question: Any, text: str = "", **options: Unpack[ExtractOptions]) -> Any:
        """Loop over an answer from async code, in any event loop: `async for`; see `stream`.

        The call starts when the stream is first awaited, and errors are raised there.
        """
        from llmkit.notebook.stream import prepare_stream

        return prepare_stream(self._core, question, text, options)

    @accept_options(MapOptions)
    def map(self, question: Any, data: Any, **options: Unpack[MapOptions]) -> pd.DataFrame:
        """Ask about every row of a column or a table.

        Equal rows are asked once. A failure is a row, never an exception. After an interruption the result so far is in
        `partial`, and the same call asks only for the rest.

        Args:
            question: A Pydantic model or another type to extract, or a prompt. The row replaces `{text}` in a prompt,
                or follows it; for a DataFrame or dictionaries a prompt may name columns.
            data: A Series, a DataFrame, or a list of values or dictionaries; a table or a column of polars, Arrow or
                Hugging Face.
            **options: All optional; None is the same as leaving one out. Those of extraction need a type.

        Returns:
            A frame with the index of `data`: one column for each field of the type (`text` for a prompt, `value` for a
            type without fields), then `llmkit.mapping.MAP_COLUMNS`. `status` is SUCCEEDED, FAILED (see `error_code`),
            SKIPPED (a value is missing), NOT_RUN (interrupted, or no route answers any more) or IN_PROGRESS (another
            process is working on it). `served_from` is `provider` for a row that was billed now, and `shared` for one
            that repeats another. Unknown token counts are NA.

        Raises:
            LLMBadRequest: An argument cannot be used. Nothing was sent.
            LLMStoreError: Calls can no longer be recorded; the result so far is in `partial`.

        Example:
            >>> s.map(City, ["Rome: 2.8 million"], progress=False)[["name", "status"]].iloc[0].to_list()
            ['Rome', 'SUCCEEDED']
        """
        from llmkit.notebook.map import map_rows

        return map_rows(self._core, question, data, options)

    @accept_options(MapOptions)
    async def amap(self, question: Any, data: Any, **options: Unpack[MapOptions]) -> pd.DataFrame:
        """Ask about every row from async code, in any event loop; see `map`.

        After a cancellation the result so far is in `partial`.
        """
        from llmkit.notebook.map import map_rows_async

        return await map_rows_async(self._core, question, data, options)

    # --- policies -------------------------------------------------------------------------------------------------

    def policy(self, name: str, policy: Policy) -> str:
        """Name a routing policy, so that `policy:NAME` stands for it: in `chat`, `extract`, `map` and `evaluate`.

        Every call that it makes is a run of its own, paid and counted; its metadata say which step it was, and why.
        The answer has the tokens, cost, time and attempts of all. A key or a name of a map covers each step: after an
        interruption, only what is missing is paid for.

        Args:
            name: Without white space, `@`, `,` and `:`. A policy of this name is replaced.
            policy: A `Cascade`, `Split`, `Mix` or function of variants such as `ollama/llama3.2`, with all thresholds
                and choices made; see `EvalReport.fit_policy`.

        Returns:
            The route that stands for it, `policy:NAME`.

        Raises:
            LLMBadRequest: The name is taken by the router, or the policy cannot run; the message says why.

        Example:
            >>> from llmkit.evals import Cascade
            >>> careful = s.policy("careful", Cascade("ollama/llama3.2", "policy:quality"))
            >>> s.chat("What is churn?", route=careful).route
            Route('ollama/llama3.2')
        """
        from llmkit.notebook.policies import add_policy

        return add_policy(self._core, name, policy)

    # --- evaluation -----------------------------------------------------------------------------------------------

    @accept_options(SharedEvaluateOptions)
    def evaluate(
        self,
        task: Task,
        routes: str | Variant | Sequence[str | Variant],
        *,
        name: str | None = None,
        **options: Unpack[SharedEvaluateOptions],
    ) -> EvalReport:
        """Run a task over several routes and compare them: every sample on every route, in turns.

        A call with the same name continues, and does not repeat a call that has succeeded. After an interruption the
        report so far is in `partial`.

        Args:
            task: Samples, prompt, output type and scorers.
            routes: `provider/model` (pinned), `provider/model@prompt`, `policy:NAME`, or `Variant` objects of these.
            name: Name of the run; default the task's.
            **options: All optional. In a session `concurrency` is "auto" by default, and a replay loads no model.

        Returns:
            The report on everything stored under this name. A failed sample is a row with an error code.

        Raises:
            LLMEvaluationError: Task, route or option cannot be used, or the run of this name was of another task or
                other samples. Nothing was sent.
            LLMStoreError: Results can no longer be recorded; those so far are kept.

        Example:
            >>> from llmkit.evals import Sample, Task, field_match
            >>> task = Task(
            ...     name="cities",
            ...     dataset=[Sample(input="Rome: 2.8 million", target={"name": "Rome", "people": 2_800_000})],
            ...     prompt="{input}",
            ...     output_type=City,
            ...     scorers=[field_match("people")],
            ... )
            >>> report = s.evaluate(task, ["ollama/llama3.2"], progress=False)
            >>> report.counts["SUCCEEDED"]
            1
        """
        from llmkit.notebook.evaluation import evaluate_routes

        return evaluate_routes(self._core, task, routes, name, options)

    @accept_options(SharedEvaluateOptions)
    async def aevaluate(
        self,
        task: Task,
        routes: str | Variant | Sequence[str | Variant],
        *,
        name: str | None = None,
        **options: Unpack[SharedEvaluateOptions],
    ) -> EvalReport:
        """Run a task from async code, in any event loop; see `evaluate`.

        After a cancellation the report so far is in `partial`.
        """
        from llmkit.notebook.evaluation import evaluate_routes_async

        return await evaluate_routes_async(self._core, task, routes, name, options)

    @accept_options(ScoreOptions)
    def score(
        self, task: Task, outputs: Any, *, name: str | None = None, **options: Unpack[ScoreOptions]
    ) -> EvalReport:
        """Score answers that exist already. No model is called, unless a judge is among the scorers.

        Needs no provider and no network. The result is a run like any other: it can be compared, gated and shown, and
        what was not recorded, such as latency and cost, is unknown. The same name again scores only what is new.

        Args:
            task: Samples, output type and scorers. Its prompts are not used.
            outputs: Answers by sample id; a list or a column in the order of the dataset; a DataFrame; a JSON Lines,
                CSV or Parquet file; a report, or a run that `EvalReport.export` wrote. Or a dictionary of several of
                these by variant. Each answer is an instance of the output type, JSON, or text as a model wrote it.
            name: Name of the run; default the task's with `-answers`.
            **options: All optional.

        Returns:
            The report. An answer that does not fit the output type is a failed row with the reason.

        Raises:
            LLMEvaluationError: Answers and samples cannot be matched, or another kind of run has the name.
            LLMDatasetError: A file cannot be read.

        Example:
            >>> from llmkit.evals import Sample, Task, field_match
            >>> task = Task(
            ...     name="capitals",
            ...     dataset=[Sample("Capital of Italy?", {"name": "Rome"}, id="it")],
            ...     prompt="{input}",
            ...     output_type=City,
            ...     scorers=[field_match("name")],
            ... )
            >>> answers = {"it": {"name": "Rome", "people": 2_800_000}}
            >>> s.score(task, answers, progress=False).summary()["mean"].tolist()
            [1.0]
        """
        from llmkit.notebook.evaluation import score_outputs

        return score_outputs(self._core, task, outputs, name, options)

    @accept_options(ScoreOptions)
    async def ascore(
        self, task: Task, outputs: Any, *, name: str | None = None, **options: Unpack[ScoreOptions]
    ) -> EvalReport:
        """Score existing answers from async code, in any event loop; see `score`."""
        from llmkit.notebook.evaluation import score_outputs_async

        return await score_outputs_async(self._core, task, outputs, name, options)

    def report(self, name: str, *, task: Task | None = None) -> EvalReport:
        """Return the report of a stored evaluation. Sends nothing.

        Args:
            name: Name of the evaluation.
            task: Adds inputs, targets and groups.

        Raises:
            LLMEvaluationError: There is none of this name; the message lists the existing ones.

        Example:
            >>> s.report("cities").counts["SUCCEEDED"]
            1
        """
        from llmkit.notebook.evaluation import read_report

        return self._core.run(read_report(self._core, name, task))

    async def areport(self, name: str, *, task: Task | None = None) -> EvalReport:
        """Return the report of a stored evaluation, from async code in any event loop; see `report`."""
        from llmkit.notebook.evaluation import read_report

        return await self._core.run_async(read_report(self._core, name, task))

    def import_run(self, file: str | Path, *, name: str | None = None) -> EvalReport:
        """Import an evaluation that `EvalReport.export` wrote. Importing the same file again changes nothing.

        Args:
            file: A `.jsonl` or `.parquet` file.
            name: Name of the run in this workspace; default its own.

        Raises:
            LLMEvaluationError: The file cannot be read, or another run has the name.

        Example:
            >>> path = s.report("cities").export("cities.jsonl")
            >>> s.import_run("cities.jsonl", name="copy").counts["SUCCEEDED"]
            1
        """
        from llmkit.notebook.evaluation import import_report

        return self._core.run(import_report(self._core, file, name))

    async def aimport_run(self, file: str | Path, *, name: str | None = None) -> EvalReport:
        """Import an evaluation from async code, in any event loop; see `import_run`."""
        from llmkit.notebook.evaluation import import_report

        return await self._core.run_async(import_report(self._core, file, name))

    # --- stored calls ---------------------------------------------------------------------------------------------

    def runs(
        self,
        *,
        status: str | None = None,
        pipeline_run_id: str | None = None,
        since: datetime | None = None,
        limit: int | None = None,
    ) -> pd.DataFrame:
        """Return every call of this workspace, newest first.

        Args:
            status: Only `STARTED`, `SUCCEEDED` or `FAILED` calls.
            pipeline_run_id: Only calls of this pipeline run.
            since: Only calls created at this time or later; an aware datetime.
            limit: At most N calls.

        Returns:
            A frame with the columns of `llmkit.dataframes.RUN_COLUMNS`.

        Raises:
            LLMBadRequest: A filter has a bad value.
            LLMStoreError: The database cannot be read.

        Example:
            >>> answer = s.chat("What is churn?")
            >>> s.runs(limit=1)[["status", "model"]].iloc[0].to_list()
            ['SUCCEEDED', 'llama3.2']
        """
        from llmkit.notebook.history import read_runs

        return read_runs(self._core, status, pipeline_run_id, since, limit)

    async def aruns(
        self,
        *,
        status: str | None = None,
        pipeline_run_id: str | None = None,
        since: datetime | None = None,
        limit: int | None = None,
    ) -> pd.DataFrame:
        """Return every call of this workspace, without blocking the event loop; see `runs`."""
        from llmkit.notebook.history import read_runs

        return await self._core.run_in_thread(read_runs, self._core, status, pipeline_run_id, since, limit)

    def attempts(
        self, *, pipeline_run_id: str | None = None, since: datetime | None = None, limit: int | None = None
    ) -> pd.DataFrame:
        """Return every request sent to a provider for this workspace, newest run first.

        Args:
            pipeline_run_id: Only requests of this pipeline run.
            since: Only requests of calls created at this time or later; an aware datetime.
            limit: At most N requests.

        Returns:
            A frame with the columns of `llmkit.dataframes.ATTEMPT_COLUMNS`.

        Raises:
            LLMBadRequest: A filter has a bad value.
            LLMStoreError: The database cannot be read.

        Example:
            >>> answer = s.chat("What is churn?")
            >>> s.attempts()["status"].to_list()
            ['SUCCEEDED']
        """
        from llmkit.notebook.history import read_attempts

        return read_attempts(self._core, pipeline_run_id, since, limit)

    async def aattempts(
        self, *, pipeline_run_id: str | None = None, since: datetime | None = None, limit: int | None = None
    ) -> pd.DataFrame:
        """Return every request sent to a provider, without blocking the event loop; see `attempts`."""
        from llmkit.notebook.history import read_attempts

        return await self._core.run_in_thread(read_attempts, self._core, pipeline_run_id, since, limit)

    def usage(self, *, since: datetime | None = None) -> UsageFrame:
        """Return calls, requests, tokens and cost of each route.

        `s.usage().plot()` draws the billed tokens over time, `s.usage().plot("cost")` their known cost
        (`pip install 'llmkit-research[plot]'`).

        Args:
            since: Only calls created at this time or later; an aware datetime.

        Returns:
            A frame with the columns of `llmkit.dataframes.USAGE_COLUMNS`, one row for each route.

        Raises:
            LLMBadRequest: `since` has a bad value.
            LLMStoreError: The database cannot be read.

        Example:
            >>> answer = s.chat("What is churn?")
            >>> s.usage()["calls"].to_list()
            [1]
        """
        from llmkit.notebook.history import read_usage

        return read_usage(self._core, since)

    async def ausage(self, *, since: datetime | None = None) -> UsageFrame:
        """Return calls, requests, tokens and cost of each route, without blocking the event loop; see `usage`."""
        from llmkit.notebook.history import read_usage

        return await self._core.run_in_thread(read_usage, self._core, since)

    def recordings(self) -> pd.DataFrame:
        """Return the entries of a replaying session's cassette, and how often each was used.

        Returns:
            A frame with the columns of `llmkit.replay.cassette.RECORDING_COLUMNS`; `asked` is 0 for an unused entry.

        Raises:
            LLMConfigurationError: The session does not replay.

        Example:
            >>> with Session("elsewhere", replay="study.jsonl") as replayed:
            ...     answer = replayed.chat("What is churn?")
            ...     replayed.recordings()["asked"].to_list()
            [1]
        """
        from llmkit.notebook.history import read_recordings

        return read_recordings(self._core)

    # --- models ---------------------------------------------------------------------------------------------------

    def facts(self, route: str) -> ModelFacts:
        """Return known facts about a model: tools, schema, images, context in tokens, digest; with source and time.

        If the model is Ollama's, its server is asked; nothing is sent to a model.

        Args:
            route: `provider/model`.

        Raises:
            LLMBadRequest: The route is written differently.

        Example:
            >>> s.facts("ollama/llama3.2").tools.value
            True
        """
        from llmkit.notebook.model_info import read_facts

        return self._core.run(read_facts(self._core, route))

    async def afacts(self, route: str) -> ModelFacts:
        """Return known facts about a model, from async code in any event loop; see `facts`."""
        from llmkit.notebook.model_info import read_facts

        return await self._core.run_async(read_facts(self._core, route))

    def probe(self, route: str, *, paid: bool = False) -> ModelFacts:
        """Test what a model does: schema, any JSON, tools, tools with a schema, seed, images, token counts.

        Up to eight small requests are sent and recorded as any other. What they show is used from then on to plan
        calls, also by other processes if the cache is on, until the model's digest changes, for at most 30 days. Each
        fact has its source and time.

        Args:
            route: `provider/model`.
            paid: Whether the requests may be billed; without it a model that a third party runs is not probed.

        Raises:
            LLMBadRequest: The route is written differently, or the requests may be billed and `paid` is not set.
            LLMError: The first request failed.

        Example:
            >>> facts = s.probe("ollama/llama3.2")
        """
        from llmkit.notebook.model_info import probe_model

        return self._core.run(probe_model(self._core, route, paid=paid))

    async def aprobe(self, route: str, *, paid: bool = False) -> ModelFacts:
        """Test what a model does, from async code in any event loop; see `probe`."""
        from llmkit.notebook.model_info import probe_model

        return await self._core.run_async(probe_model(self._core, route, paid=paid))

    @accept_options(ModelOptions)
    def model(self, route: str | None = None, **options: Unpack[ModelOptions]) -> PydanticAiLiteLLMModel:
        """Return a model for Pydantic AI agents; each of its requests is a call of this session and a row of `runs()`.

        Use `await Agent(s.model(...)).run(...)` in a notebook and in any event loop, `run_sync` in a script.

        Args:
            route: A pinned route; by default the router chooses.
            **options: All optional; see `llmkit.pydanticai.PydanticAiLiteLLMModel`.

        Raises:
            LLMBadRequest: The route is not written `provider/model`, or an option is unknown.

        Example:
            >>> from pydantic_ai import Agent
            >>> agent = Agent(s.model("ollama/llama3.2"), instructions="Be brief.")
        """
        from llmkit.notebook.agents import build_model

        return build_model(self._core, route, options)
