"""Single calls of a session: chat, the plan of a call, and typed extraction."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from llmkit.errors import LLMBadRequest
from llmkit.notebook.arguments import build_request, check_count, check_output_type, read_attachments
from llmkit.notebook.core import SessionCore
from llmkit.notebook.event_loop import run_aside
from llmkit.notebook.options import ExtractOptions, list_option_names
from llmkit.notebook.policies import explain_policy, open_course, read_step_fields, take_policy
from llmkit.ports import AnswerSink
from llmkit.types import LLMRequest, LLMResponse, Message, RequestContext, RoutePlan

if TYPE_CHECKING:
    from llmkit.pydanticai import Extraction
    from llmkit.service import LLMService

__all__ = ["check_map_options", "explain_routes", "extract_value", "run_extraction", "send_chat"]

# `extract` takes these by name; other fields of a request travel as generation parameters.
_EXTRACT_FIELDS = ("route", "constraints", "idempotency_key", "epoch", "use_cache")

# Set when the modules that read typed answers are imported. `sys.modules` has them earlier.
_LOADED = threading.Event()

Prompt = str | Sequence[Message | Mapping[str, Any]]


async def send_chat(
    core: SessionCore, prompt: Prompt, options: Mapping[str, Any], sink: AnswerSink | None = None
) -> LLMResponse:
    """Check the arguments of `Session.chat` and ask the service; `sink` receives the answer while it is written."""
    context, fields = core.split_options(options)
    found = take_policy(core, fields, is_text=True)
    if found is None:
        return await _send_request(core, build_request(prompt, fields), context, sink)
    from llmkit.evals.decide.course import Step, StepCall, join_responses, read_logprobs

    async def ask(call: StepCall) -> Step:
        response = await _send_request(core, build_request(prompt, read_step_fields(call, fields)), context)
        return Step(call, response, output=response.text, logprobs=read_logprobs(response))

    text = build_request(prompt, fields).messages[-1].content
    course = open_course(*found, text, fields, ask)
    answer = await course.run()
    if answer.error is not None:
        raise answer.error
    response = join_responses(course.steps)
    if sink is not None:
        # Only now: which of its answers counts, a policy knows when it has them.
        await sink.put_answer(response)
    return response


async def _send_request(
    core: SessionCore, request: LLMRequest, context: RequestContext, sink: AnswerSink | None = None
) -> LLMResponse:
    response = await core.service.chat(request, context, sink=sink)
    core.fallback_warner.check_responses((response,))
    return response


def explain_routes(core: SessionCore, prompt: Prompt, options: Mapping[str, Any]) -> RoutePlan:
    """Return the plan that the router would follow for a call."""
    _, fields = core.split_options(options)
    found = take_policy(core, fields, is_text=False)
    if found is not None:
        return explain_policy(core, *found, prompt, fields)
    return core.service.router.explain(build_request(prompt, fields))


async def extract_value(core: SessionCore, output_type: Any, text: str, options: Mapping[str, Any]) -> Any:
    """Return only the value of `run_extraction`."""
    return (await run_extraction(core, output_type, text, options)).value


async def run_extraction(
    core: SessionCore,
    output_type: Any,
    text: str,
    options: Mapping[str, Any],
    open_sink: Callable[[], AnswerSink] | None = None,
) -> Extraction[Any]:
    """Check the arguments of `Session.extract` and run the extraction.

    Each answer of the model, that to a reask included, goes into a sink of its own while it is written, but for those
    that a policy gets: which of them counts is known when all are there.
    """
    context, fields = core.split_options(options)
    found = take_policy(core, fields, is_text=False)
    if found is None:
        return await _extract_once(core, output_type, text, context, fields, open_sink)
    from llmkit.evals.decide.course import Step, StepCall, join_extractions, make_step, read_output

    async def ask(call: StepCall) -> Step:
        extraction = await _extract_once(core, output_type, text, context, read_step_fields(call, fields))
        return make_step(call, extraction, read_output(extraction))

    course = open_course(*found, text if isinstance(text, str) else "", fields, ask)
    answer = await course.run()
    if answer.error is not None:
        raise answer.error
    return join_extractions(course.steps)


async def _extract_once(
    core: SessionCore,
    output_type: Any,
    text: str,
    context: RequestContext,
    fields: dict[str, Any],
    open_sink: Callable[[], AnswerSink] | None = None,
) -> Extraction[Any]:
    await _load_extraction()
    from llmkit.pydanticai import extract, extraction_prompt

    check_output_type(output_type)
    attachments = read_attachments(fields)
    shots = {name: fields.pop(name) for name in ("instructions", "examples") if name in fields}
    if isinstance(text, str) and not text.strip() and not attachments:
        raise LLMBadRequest("There is nothing to read: pass a text, images=... or files=...")
    messages = extraction_prompt(output_type, text, attachments=attachments, **shots)
    reasks = fields.pop("reasks", 1)
    check_count("reasks", reasks, 0)
    # Unknown or bad fields are refused here, before anything else happens.
    request = build_request(messages, fields, list_option_names(ExtractOptions))
    # `system` is part of the request's messages by now.
    parameters = {name: getattr(request, name) for name in fields if name not in (*_EXTRACT_FIELDS, "system")}
    extraction = await extract(
        core.service if open_sink is None else StreamingService(core.service, open_sink),
        output_type,
        request.messages,
        context=context,
        parameters=parameters,
        reasks=reasks,
        **{name: getattr(request, name) for name in _EXTRACT_FIELDS},
    )
    core.fallback_warner.check_responses(extraction.responses)
    if not shots.get("examples"):
        core.fallback_warner.check_examples(extraction.responses)
    return extraction


async def _load_extraction() -> None:
    """Import what reads typed answers, once, in a thread of its own.

    It takes seconds in which the loop has other calls to serve, and no interruption may break it off.
    """
    if not _LOADED.is_set():
        await asyncio.wrap_future(run_aside(_import_extraction))
        _LOADED.set()


def _import_extraction() -> None:
    import llmkit.pydanticai
    import llmkit.pydanticai.partial_value  # noqa: F401


class StreamingService:
    """A service whose every answer goes into a sink of its own while it is written.

    Args:
        service: Answers.
        open_sink: Opens the sink of the next answer.
    """

    def __init__(self, service: LLMService, open_sink: Callable[[], AnswerSink]) -> None:
        self._service = service
        self._open_sink = open_sink
        self.router = service.router
        self.discover = service.discover
        self.annotate = service.annotate

    async def chat(
        self, request: LLMRequest, context: RequestContext | None = None, *, sink: AnswerSink | None = None
    ) -> LLMResponse:
        """Answer one request; see `LLMService.chat`."""
        return await self._service.chat(request, context, sink=sink or self._open_sink())


def check_map_options(core: SessionCore, question: Any, options: Mapping[str, Any]) -> None:
    """Refuse options with which no row of a map could be asked.

    Raises:
        LLMBadRequest: One cannot be used.
    """
    _, fields = core.split_options(options)
    take_policy(core, fields, is_text=isinstance(question, str))
    if isinstance(question, str):
        build_request(question, fields)
        return
    from llmkit.pydanticai import extraction_prompt

    shots = {name: fields.pop(name) for name in ("instructions", "examples") if name in fields}
    check_output_type(question)
    messages = extraction_prompt(question, "?", **shots)
    check_count("reasks", fields.pop("reasks", 1), 0)
    build_request(messages, fields, list_option_names(ExtractOptions))
