"""`map` of a session: one question over a whole column."""

from __future__ import annotations

import asyncio
from abc import abstractmethod
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from llmkit.notebook import pandas_accessor
from llmkit.notebook.event_loop import Interrupted, aside
from llmkit.notebook.options import (
    CHAT_NAMES,
    EXTRACT_NAMES,
    MAP_SHOWN,
    accepting,
    checked_count,
    checked_names,
    checked_text,
)
from llmkit.notebook.runtime import Face

if TYPE_CHECKING:
    import pandas as pd

    from llmkit.mapping import Mapping
    from llmkit.pydanticai import Extraction
    from llmkit.types import LLMResponse

__all__ = ["MappingFace"]

_NAMES = {"template", "name", "concurrency", "progress"}


class MappingFace(Face):
    """Asks about every row of a column or a table."""

    @abstractmethod
    def _check_of_map(self, what: Any, parameters: dict[str, Any]) -> None:
        """Refuse what no row could be asked with."""

    @abstractmethod
    def _chat(self, prompt: Any, parameters: dict[str, Any]) -> Coroutine[Any, Any, LLMResponse]:
        """Answer one prompt."""

    @abstractmethod
    def _extraction(
        self, output_type: Any, text: str, parameters: dict[str, Any]
    ) -> Coroutine[Any, Any, Extraction[Any]]:
        """Read one text."""

    @accepting(*MAP_SHOWN)
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
        aside(_load).result()
        with self._mapping(what, data, template, name, concurrency, parameters) as mapping:
            from llmkit.batch.progress_bar import bar

            with bar(mapping.meter, unit="row", shown=progress) as draw:
                self._open.run(mapping.work(), draw)
            return mapping.frame()

    @accepting(*MAP_SHOWN)
    async def amap(
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
        """`map` for async code, in any event loop: the same arguments, result and errors.

        After a cancellation what is done is in `partial`.
        """
        await asyncio.wrap_future(aside(_load))
        with self._mapping(what, data, template, name, concurrency, parameters) as mapping:
            from llmkit.batch.progress_bar import bar

            with bar(mapping.meter, unit="row", shown=progress) as draw:
                await self._open.hop(mapping.work(), draw)
            return mapping.frame()

    @contextmanager
    def _mapping(
        self,
        what: Any,
        data: Any,
        template: str | None,
        name: str | None,
        concurrency: int | None,
        parameters: dict[str, Any],
    ) -> Iterator[Mapping]:
        """A map to be worked on; when that breaks off, what is done is kept."""
        from llmkit.mapping import plan_map

        parameters = {name: value for name, value in parameters.items() if value is not None}
        checked_names(parameters, _NAMES | (CHAT_NAMES if isinstance(what, str) else EXTRACT_NAMES))
        checked_text("template", template)
        checked_text("name", name)
        if concurrency is not None:
            checked_count("concurrency", concurrency, 1)
        try:
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
        except KeyboardInterrupt:
            raise Interrupted("the rows were still being read; nothing was sent") from None
        self._partial = None
        try:
            yield mapping
        except BaseException as error:
            self._partial = mapping.frame()
            if isinstance(error, KeyboardInterrupt):
                raise Interrupted(mapping.told_when_interrupted()) from None
            raise


def _load() -> None:
    """What a first map imports, where an interruption cannot break it off."""
    from llmkit import mapping  # noqa: F401 - loaded for those who need it next

    pandas_accessor.register()
