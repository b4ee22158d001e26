"""The pandas accessor `df["text"].llm.extract(Model)`: `Session.map`, called from the column.

The first session that finds pandas loaded registers it. Without a session, `register()` does.
"""

from __future__ import annotations

import sys
import weakref
from typing import TYPE_CHECKING, Any, Protocol

from llmkit.errors import LLMBadRequest, LLMConfigurationError
from llmkit.notebook.options import ChatOptions, MapOptions, accept_options

if TYPE_CHECKING:
    import pandas as pd
    from typing_extensions import Unpack

    from llmkit.types import LLMResponse

__all__ = ["LLMAccessor", "get_latest_session", "register", "remember_session"]

NAME = "llm"


class CallingSession(Protocol):
    """The methods of a session that columns and cells call."""

    def chat(self, prompt: str, **options: Unpack[ChatOptions]) -> LLMResponse:
        """Send one prompt; see `Session.chat`."""
        ...

    def map(self, question: Any, data: Any, **options: Unpack[MapOptions]) -> pd.DataFrame:
        """Ask about every row; see `Session.map`."""
        ...


class LLMAccessor:
    """Questions about every row of a Series or a DataFrame.

    Both methods take the options of `Session.map`, and `session`: default the newest session that still exists.
    """

    def __init__(self, data: pd.Series[Any] | pd.DataFrame) -> None:
        self._data = data

    @accept_options(MapOptions)
    def extract(
        self, output_type: Any, *, session: CallingSession | None = None, **options: Unpack[MapOptions]
    ) -> pd.DataFrame:
        """Read a typed value from every row: one column for each of its fields, then status, tokens and errors.

        Args:
            output_type: A Pydantic model, or any type that Pydantic can validate.
            session: Makes the calls; default the newest session.
            **options: As for `Session.map`.

        Raises:
            LLMConfigurationError: There is no session.
            LLMError: As for `Session.map`.
        """
        return _choose_session(session).map(output_type, self._data, **options)

    @accept_options(MapOptions)
    def chat(
        self, prompt: str, *, session: CallingSession | None = None, **options: Unpack[MapOptions]
    ) -> pd.DataFrame:
        """Send a prompt for every row, which replaces `{text}` in it or follows it.

        Args:
            prompt: The prompt.
            session: Makes the calls; default the newest session.
            **options: As for `Session.map`.

        Raises:
            LLMConfigurationError: There is no session.
            LLMError: As for `Session.map`.
        """
        return _choose_session(session).map(prompt, self._data, **options)


# Oldest first; a session that is garbage-collected removes itself.
_sessions: list[weakref.ref[CallingSession]] = []


def remember_session(session: CallingSession) -> None:
    """Make this the default session, and register the accessor if pandas is loaded."""
    _sessions.append(weakref.ref(session, _sessions.remove))
    if "pandas" in sys.modules:
        register()


def register() -> None:
    """Give every Series and DataFrame the attribute `llm`. Idempotent; loads pandas."""
    import pandas as pd
    from pandas.api.extensions import register_dataframe_accessor, register_series_accessor

    if getattr(pd.Series, NAME, None) is not LLMAccessor:
        register_series_accessor(NAME)(LLMAccessor)
        register_dataframe_accessor(NAME)(LLMAccessor)


def get_latest_session() -> CallingSession:
    """Return the newest session that still exists.

    Raises:
        LLMConfigurationError: There is none.
    """
    for reference in reversed(_sessions):
        session = reference()
        if session is not None:
            return session
    raise LLMConfigurationError("There is no session: create one first, s = llmkit.Session(), or pass session=...")


def _choose_session(session: CallingSession | None) -> CallingSession:
    if session is None:
        return get_latest_session()
    if not hasattr(session, "map"):
        raise LLMBadRequest(f"session must be a llmkit.Session; got {type(session).__name__}")
    return session
