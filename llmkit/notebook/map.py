"""`Session.map`: one question over every row of a column or table."""

from __future__ import annotations

import asyncio
import platform
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import datetime
from functools import partial
from typing import TYPE_CHECKING, Any

from uuid_utils.compat import uuid7

from llmkit.batch.loading import find_loading
from llmkit.errors import LLMBadRequest, LLMConfigurationError
from llmkit.notebook import pandas_accessor
from llmkit.notebook.arguments import check_count, check_names, check_text
from llmkit.notebook.chat import check_map_options, run_extraction, send_chat
from llmkit.notebook.core import SessionCore
from llmkit.notebook.event_loop import Interrupted, InterruptedAwait, run_aside
from llmkit.notebook.joining import Joining, join_work
from llmkit.notebook.options import MapOptions, ReadingOptions, list_option_names
from llmkit.notebook.status_line import wait_aside
from llmkit.providers import collect_secrets
from llmkit.types import Route, utc_now
from llmkit.workers.choose import check_workers

if TYPE_CHECKING:
    import pandas as pd

    from llmkit.batch.progress_bar import Meter
    from llmkit.mapping import MapJob
    from llmkit.workers.contribution import Contribution

__all__ = ["MapWork", "map_rows", "map_rows_async"]

_OWN_NAMES = ("template", "name", "concurrency", "progress", "show_answers", "workers")


def map_rows(core: SessionCore, question: Any, data: Any, options: Mapping[str, Any]) -> pd.DataFrame:
    """Check the arguments of `Session.map`, ask about the rows and return the frame."""
    wait_aside(run_aside(_import_mapping))
    from llmkit.batch.progress_bar import bar

    with _open_job(core, question, data, options) as job:
        with bar(partial(_read_meter, job), unit="row", **_choose_bar(core, options)) as draw:
            core.run(_work(core, job, question, data, options), draw)
        return job.frame()


async def map_rows_async(core: SessionCore, question: Any, data: Any, options: Mapping[str, Any]) -> pd.DataFrame:
    """Do the same for async code."""
    await asyncio.wrap_future(run_aside(_import_mapping))
    from llmkit.batch.progress_bar import bar

    with _open_job(core, question, data, options) as job:
        with bar(partial(_read_meter, job), unit="row", **_choose_bar(core, options)) as draw:
            await core.run_async(_work(core, job, question, data, options), draw)
        return job.frame()


async def _work(core: SessionCore, job: MapJob, question: Any, data: Any, options: Mapping[str, Any]) -> None:
    workers = options.get("workers")
    if workers is None:
        await job.work()
        return
    from llmkit.mapping.shared import SharedRows, collect_rows
    from llmkit.notebook.shared_call import SharedCall

    since_utc = utc_now()
    call = SharedCall(core, workers)
    rows = SharedRows(job, core.eval_store, core.workspace_id, since_utc)
    if not (await rows.look()).is_complete:
        await call.note_start()
        left_out = ("workers", "progress", "show_answers")
        travelling = {option: value for option, value in options.items() if option not in left_out}
        work = MapWork(call.joining, question, data, travelling | {"name": job.name}, since_utc, dict(core.policies))
        await call.watch(join_work, call.pack(work), look=rows.look)
    await collect_rows(job, wait_s=1.5 * core.settings.abandoned_after_s)


@dataclass(frozen=True, slots=True)
class MapWork:
    """A map as it travels.

    Attributes:
        joining: See `Joining`.
        question: A prompt, or a type to extract.
        data: The rows.
        options: Those of `map`, without what only its caller can use.
        since_utc: When the call began.
        policies: Those of the session, by name.
    """

    joining: Joining
    question: Any
    data: Any
    options: Mapping[str, Any]
    since_utc: datetime
    policies: Mapping[str, Any]

    async def join(self, core: SessionCore) -> Contribution:
        """See `SharedWork`."""
        from llmkit.mapping.shared import SharedRows, join_map

        await asyncio.to_thread(_import_mapping)
        core.policies.update(self.policies)
        _require_callable(core, self.options.get("route"))
        with _open_job(core, self.question, self.data, self.options) as job:
            return await join_map(job, SharedRows(job, core.eval_store, core.workspace_id, self.since_utc))


def _require_callable(core: SessionCore, route: str | Route | None) -> None:
    """Refuse rows on a worker whose machine cannot call their route: they would fail, and others can do them.

    Raises:
        LLMConfigurationError: It cannot; the message says what is missing.
    """
    if route is None or str(route).startswith("policy:"):
        return
    problem = core.service.router.find_problem(Route.parse(str(route)))
    if problem is not None:
        raise LLMConfigurationError(
            f"The worker on {platform.node()} takes no rows, because {route} cannot be called there: {problem}"
        )


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
            # Workers share rows by the keys of their calls, so that they need a name for them.
            name=options.get("name") or (None if options.get("workers") is None else str(uuid7())),
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
    if "workers" in given:
        check_workers(given["workers"])
    if "concurrency" in given:
        check_count("concurrency", given["concurrency"], 1)
    return {name: value for name, value in given.items() if name not in _OWN_NAMES}


def _read_meter(job: MapJob) -> Meter:
    """Return the progress, with what is being loaded before the first new answer."""
    meter = job.meter()
    return replace(meter, loading=find_loading()) if meter.done == meter.reused else meter


def _choose_bar(core: SessionCore, options: Mapping[str, Any]) -> dict[str, Any]:
    answers = options.get("show_answers")
    return {
        "shown": options.get("progress") is not False,
        "answers": core.settings.show_answers if answers is None else bool(answers),
        "secrets": collect_secrets(core.settings),
    }


def _import_mapping() -> None:
    """Import what a map needs, in a thread that Ctrl-C cannot interrupt."""
    from llmkit import mapping  # noqa: F401

    pandas_accessor.register()
