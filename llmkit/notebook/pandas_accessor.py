"""`df["text"].llm.extract(Model)`: `Session.map` written from the column's side.

Registered with pandas by the first session that finds pandas loaded;
`import llmkit.notebook.pandas_accessor` and `register()` do it without one.
"""

from __future__ import annotations

import sys
import weakref
from typing import TYPE_CHECKING, Any, Protocol

from llmkit.errors import LLMBadRequest, LLMConfigurationError

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["LLMAccessor", "latest_session", "register", "remember"]

NAME = "llm"


class Asks(Protocol):
    """What is needed of a session."""

    def chat(self, prompt: str, **parameters: Any) -> Any:
        """See `Session.chat`."""
        ...

    def map(self, what: Any, data: Any, **parameters: Any) -> pd.DataFrame:
        """See `Session.map`."""
        ...


class LLMAccessor:
    """Asks about every row of a Series or a DataFrame.

    Both methods take the arguments of `Session.map`, and `session`: whose call it is; default the session that was made
    last and still exists.
    """

    def __init__(self, data: pd.Series[Any] | pd.DataFrame) -> None:
        self._data = data

    def extract(self, output_type: Any, *, session: Asks | None = None, **parameters: Any) -> pd.DataFrame:
        """Read a typed value out of every row: one column for each of its fields, then status, tokens and errors.

        Raises:
            LLMConfigurationError: There is no session.
            LLMError: As `Session.map`.
        """
        return _asking(session).map(output_type, self._data, **parameters)

    def chat(self, prompt: str, *, session: Asks | None = None, **parameters: Any) -> pd.DataFrame:
        """Ask a prompt about every row, which goes where it says `{text}`, or below it; raises as `extract`."""
        return _asking(session).map(prompt, self._data, **parameters)


# Oldest first; one that is forgotten takes itself out.
_made: list[weakref.ref[Asks]] = []


def remember(session: Asks) -> None:
    """Make this the session of calls that name none, and register the accessor if pandas is loaded."""
    _made.append(weakref.ref(session, _made.remove))
    if "pandas" in sys.modules:
        register()


def register() -> None:
    """Give every Series and DataFrame the attribute `llm`. Idempotent; loads pandas."""
    import pandas as pd
    from pandas.api.extensions import register_dataframe_accessor, register_series_accessor

    if getattr(pd.Series, NAME, None) is not LLMAccessor:
        register_series_accessor(NAME)(LLMAccessor)
        register_dataframe_accessor(NAME)(LLMAccessor)


def _asking(session: Asks | None) -> Asks:
    if session is None:
        return latest_session()
    if not hasattr(session, "map"):
        raise LLMBadRequest(f"session must be a llmkit.Session; got {type(session).__name__}")
    return session


def latest_session() -> Asks:
    """The session that was made last and still exists.

    Raises:
        LLMConfigurationError: There is none.
    """
    session = next((found for reference in reversed(_made) if (found := reference()) is not None), None)
    if session is None:
        raise LLMConfigurationError("There is no session: make one first, s = llmkit.Session(), or give session=...")
    return session
