"""`Session.map`: one question over every row of a column or table."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

from llmkit.errors import LLMBadRequest
from llmkit.notebook import pandas_accessor
from llmkit.notebook.arguments import check_count, check_names, check_text
from llmkit.notebook.chat import check_map_options, run_extraction, send_chat
from llmkit.notebook.core import SessionCore
from llmkit.notebook.event_loop import Interrupted, InterruptedAwait, run_aside
from llmkit.notebook.options import MapOptions, ReadingOptions, list_option_names

if TYPE_CHECKING:
    import pandas as pd

    from llmkit.mapping import MapJob

__all__ = ["map_rows", "map_rows_async"]

_OWN_NAMES = ("template", "name", "concurrency", "progress")


def map_rows(core: SessionCore, question: Any, data: Any, options: Mapping[str, Any]) -> pd.DataFrame:
    """Check the arguments of `Session.map`, ask about the rows and return the frame."""
    run_aside(_import_mapping).result()
    from llmkit.batch.progress_bar import bar

    with _open_job(core, question, data, options) as job:
        with bar(job.meter, unit="row", shown=options.get("progress") is not False) as draw:
            core.run(job.work(), draw)
        return job.frame()


async def map_rows_async(core: SessionCore, question: Any, data: Any, options: Mapping[str, Any]) -> pd.DataFrame:
    """Do the same for async code."""
    await asyncio.wrap_future(run_aside(_import_mapping))
    from llmkit.batch.progress_bar import bar

    with _open_job(core, question, data, options) as job:
        with bar(job.meter, unit="row", shown=options.get("progress") is not False) as draw:
            await core.run_async(job.work(), draw)
        return job.frame()


@contextmanager
def _open_job(core: SessionCore, question: Any, data: Any, options: Mapping[str, Any]) -> Iterator[MapJob]:
    """Plan a map; when it breaks off, keep its result so far in `partial`."""
    from llmkit.mapping import plan_map

    call_options = _check_options(question, options)
    concurrency = options.get("concurrency")
    try:
        check_map_options(core, question, call_options)
        job = plan_map(
            question,
            data,
            template=options.get("template"),
            name=options.get("name"),
            concurrency=core.settings.concurrency_limit if concurrency is None else concurrency,
            # A name covers the parameters, so that another default profile asks again.
            parameters={"profile": core.settings.default_profile, **call_options},
            chat=partial(send_chat, core),
            extract=partial(run_extraction, core),
        )
    except KeyboardInterrupt:
        raise Interrupted("the rows were still being read; nothing was sent") from None
    core.keep_partial(None)
    core.fallback_warner.reset()
    try:
        yield job
    except BaseException as error:
        core.keep_partial(job.frame)
        if isinstance(error, KeyboardInterrupt):
            raise Interrupted(job.describe_interruption()) from None
        if isinstance(error, asyncio.CancelledError):
            raise InterruptedAwait(job.describe_interruption()) from None
        raise


def _check_options(question: Any, options: Mapping[str, Any]) -> dict[str, Any]:
    """Check the options of the map itself, and return those of its calls."""
    if "idempotency_key" in options:
        raise LLMBadRequest("map makes a key for every row: pass name=... instead")
    given = {name: value for name, value in options.items() if value is not None}
    known = list_option_names(MapOptions)
    # A prompt is answered with text: there is nothing to read into a type.
    check_names(given, known - list_option_names(ReadingOptions) if isinstance(question, str) else known)
    check_text("template", given.get("template"))
    check_text("name", given.get("name"))
    if "concurrency" in given:
        check_count("concurrency", given["concurrency"], 1)
    return {name: value for name, value in given.items() if name not in _OWN_NAMES}


def _import_mapping() -> None:
    """Import what a map needs, in a thread that Ctrl-C cannot interrupt."""
    from llmkit import mapping  # noqa: F401

    pandas_accessor.register()
