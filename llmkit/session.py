"""The notebook face: sync calls and their async twins over one service, one event-loop thread and one store."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from os import PathLike
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TypeVar, overload

from llmkit.errors import LLMBadRequest, LLMConfigurationError
from llmkit.notebook import pandas_accessor
from llmkit.notebook.agents import AgentFace
from llmkit.notebook.evaluation import EvaluatingFace
from llmkit.notebook.model_info import KnowingFace
from llmkit.notebook.open_conversation import TalkingFace
from llmkit.notebook.options import (
    CHAT_SHOWN,
    EXTRACT_NAMES,
    EXTRACT_SHOWN,
    accepting,
    attachments_of,
    check_count,
    check_output_type,
    context_of,
    request_of,
)
from llmkit.notebook.runtime import Opened
from llmkit.settings import LLMSettings, load_settings
from llmkit.types import LLMResponse, Message, RequestContext, RoutePlan

if TYPE_CHECKING:
    from llmkit.pydanticai import Extraction

__all__ = ["Session"]

T = TypeVar("T")


class Session(TalkingFace, EvaluatingFace, KnowingFace, AgentFace):
    """A workspace open for work: chat, typed extraction, evaluation, and every call back as a DataFrame.

    Everything starts with the first call; only litellm, which takes seconds, is loaded before, in the first quiet
    moment (`LLM_WARM_UP`). Works in scripts, notebooks, threads and inside running event loops; safe
    to leave open.

    Args:
        workspace: Whose runs these are; default `LLM_WORKSPACE_ID`.
        settings: Complete settings; default the environment's.
        replay: A cassette, made by `llmkit cassette record`, that answers instead of providers; nothing is sent.
            Runs are kept in a database of their own, which is gone afterwards, unless the settings name one.
        **overrides: Single settings by name, for example `database_url="sqlite:///study.db"`.

    Raises:
        LLMConfigurationError: A setting is bad or unknown, or both `settings` and overrides are given.
    """

    def __init__(
        self,
        workspace: str | None = None,
        *,
        settings: LLMSettings | None = None,
        replay: str | PathLike[str] | None = None,
        **overrides: Any,
    ) -> None:
        if settings is not None and overrides:
            raise LLMConfigurationError("Give Session either settings=... or single settings, not both")
        if not isinstance(settings, LLMSettings | None):
            raise LLMConfigurationError(
                f"settings must be LLMSettings, as load_settings() makes them; got {type(settings).__name__}. Single "
                'settings are given by name: Session(ollama_model="...")'
            )
        if not isinstance(replay, str | PathLike | None):
            raise LLMConfigurationError(f"replay must be the path of a cassette; got {type(replay).__name__}")
        self._settings = settings or load_settings(**overrides)
        self._context = context_of(self._settings.workspace_id if workspace is None else workspace)
        self._open = Opened(self._settings, None if replay is None else Path(replay))
        self._finalizer = weakref.finalize(self, Opened.close, self._open)
        pandas_accessor.remember(self)

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

    @accepting(*CHAT_SHOWN)
    def chat(self, prompt: str | Sequence[Message], **parameters: Any) -> LLMResponse:
        """Ask one question, or continue a conversation.

        Args:
            prompt: A text, or messages from oldest to newest.
            **parameters: All of them optional, None as good as left out:
                `system`: a text put in front;
                `images` (PNG, JPEG, WebP) and `files` (PDF): go with the last message; one or several, each a path,
                bytes or an `Attachment`, 15 MB in all;
                `route`: `"ollama/llama3.2"`, pinned; by default the router chooses;
                `profile`: `fast`, `balanced` or `quality`; default `LLM_DEFAULT_PROFILE`;
                `temperature`: 0 to 2, `seed`, `stop` (a text or several): default the provider's;
                `max_output_tokens`: where a text is cut, with a warning; an answer that must be whole, such as JSON, is
                then an error; default the provider's, 512 for the embedded model;
                `timeout_s`: seconds that one request may take; default `LLM_DEFAULT_TIMEOUT_S`;
                `idempotency_key`: the call of this name is sent once, ever;
                `use_cache`: whether an equal call may be answered from the cache; True;
                `constraints`: `LLMConstraints`, what a route must fulfil;
                `stage`, `pipeline_run_id`, `metadata`: kept with the run.

        Returns:
            The answer; `str()` of it is its text.

        Raises:
            LLMBadRequest: An argument cannot be used. Nothing was sent.
            LLMError: See `llmkit.errors`; the message says what to do.
        """
        return self._open.run(self._chat(prompt, parameters))

    @accepting(*CHAT_SHOWN)
    async def achat(self, prompt: str | Sequence[Message], **parameters: Any) -> LLMResponse:
        """`chat` for async code, in any event loop: the same arguments, result and errors."""
        return await self._open.hop(self._chat(prompt, parameters))

    async def _chat(self, prompt: str | Sequence[Message], parameters: dict[str, Any]) -> LLMResponse:
        context, fields = self._split(parameters)
        request = request_of(prompt, fields)
        return await self._open.runtime().service.chat(request, context)

    @accepting(*CHAT_SHOWN)
    def explain(self, prompt: str | Sequence[Message] = "?", **parameters: Any) -> RoutePlan:
        """Which routes a call would try, in which order, and why the others are passed over. Sends nothing.

        Args:
            prompt: As for `chat`; what it needs of a model counts, not what it says.
            **parameters: As for `chat`.

        Returns:
            The plan, which shows as a table in a notebook.

        Raises:
            LLMBadRequest: An argument cannot be used.
        """
        _, fields = self._split(parameters)
        return self._open.runtime().service.router.explain(request_of(prompt, fields))

    # --- extraction -----------------------------------------------------------------------------------------------

    @overload
    def extract(self, output_type: type[T], text: str = "", **parameters: Any) -> T: ...
    @overload
    def extract(self, output_type: Any, text: str = "", **parameters: Any) -> Any: ...
    @accepting(*EXTRACT_SHOWN)
    def extract(self, output_type: Any, text: str = "", **parameters: Any) -> Any:
        """Read a typed value out of a text, images or files.

        Args:
            output_type: A Pydantic model, or any type that Pydantic can validate.
            text: What to read; may be left out beside `images` or `files`.
            **parameters: `instructions` (in place of the sentence in front of the text), `examples` (pairs of a text
                and its value: an instance, or what validates to one), `retries` (how often the model is asked again
                with what was wrong; default 1), and as for `chat`.

        Returns:
            A validated instance of `output_type`.

        Raises:
            LLMInvalidOutput: No answer fitted the type; `raw_text` and `validation_errors` say more.
            LLMError: See `llmkit.errors`.
        """
        return self._open.run(self._extract(output_type, text, parameters))

    @accepting(*EXTRACT_SHOWN)
    async def aextract(self, output_type: type[T], text: str = "", **parameters: Any) -> T:
        """`extract` for async code, in any event loop: the same arguments, result and errors."""
        value: T = await self._open.hop(self._extract(output_type, text, parameters))
        return value

    async def _extract(self, output_type: Any, text: str, parameters: dict[str, Any]) -> Any:
        return (await self._extraction(output_type, text, parameters)).value

    async def _extraction(self, output_type: Any, text: str, parameters: dict[str, Any]) -> Extraction[Any]:
        from llmkit.pydanticai import extract, extraction_prompt

        context, fields = self._split(parameters)
        check_output_type(output_type)
        attachments = attachments_of(fields)
        shots = {name: fields.pop(name) for name in ("instructions", "examples") if name in fields}
        if isinstance(text, str) and not text.strip() and not attachments:
            raise LLMBadRequest("There is nothing to read: give a text, images=... or files=...")
        messages = extraction_prompt(output_type, text, attachments=attachments, **shots)
        retries = fields.pop("retries", 1)
        check_count("retries", retries, 0)
        # Refuses unknown or bad fields before anything else happens.
        request = request_of(messages, fields, EXTRACT_NAMES)
        own = {name: getattr(request, name) for name in _EXTRACT_FIELDS}
        rest = {name: getattr(request, name) for name in fields if name not in (*_EXTRACT_FIELDS, _LED_BY)}
        return await extract(
            self._open.runtime().service,
            output_type,
            request.messages,
            context=context,
            parameters=rest,
            retries=retries,
            **own,
        )

    def _check_of_map(self, what: Any, parameters: dict[str, Any]) -> None:
        """Refuse what no row could be asked with."""
        if "idempotency_key" in parameters:
            raise LLMBadRequest("map makes a key for every row by itself: give it name=... instead")
        _, fields = self._split(parameters)
        if isinstance(what, str):
            request_of(what, fields)
        else:
            from llmkit.pydanticai import extraction_prompt

            shots = {name: fields.pop(name) for name in ("instructions", "examples") if name in fields}
            check_output_type(what)
            messages = extraction_prompt(what, "?", **shots)
            check_count("retries", fields.pop("retries", 1), 0)
            request_of(messages, fields, EXTRACT_NAMES)

    def _split(self, parameters: dict[str, Any]) -> tuple[RequestContext, dict[str, Any]]:
        """Part what belongs to the context from the fields of the request; None is as good as left out."""
        fields = {name: value for name, value in parameters.items() if value is not None}
        given = {name: fields.pop(name) for name in ("pipeline_run_id", "stage") if name in fields}
        return (context_of(self.workspace, **given) if given else self._context), fields


_EXTRACT_FIELDS = ("route", "constraints", "idempotency_key", "epoch", "use_cache")
# Already in the messages.
_LED_BY = "system"
