"""Probe of a model: tiny requests that show what it does, whatever it is declared or reported to do.

At most eight: one for a schema that the prompt contradicts, one for any JSON, one for a tool, one for both, three for a
seed, one for an image. What the server reports itself is not tried, nor what the planner rules out.
"""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum, auto
from typing import Any

from llmkit.discovery.probe_cache import ProbeFile, StoredProbe
from llmkit.errors import LLMBadRequest, LLMBudgetExhausted, LLMError, LLMOutputTruncated, LLMUnsupported
from llmkit.ports import AttemptLog, ClientReply, NotSent, Send, use_guard
from llmkit.providers.model_facts import NOTHING_KNOWN, FactBook, ModelFacts
from llmkit.service import LLMService
from llmkit.types import (
    Attachment,
    LLMConstraints,
    LLMProvider,
    LLMRequest,
    LLMResponse,
    Message,
    RequestContext,
    ResponseFormat,
    Route,
    ToolDefinition,
    utc_now,
)

__all__ = ["MOST_CALLS", "Prober", "build_probe_request", "follows_schema"]

MOST_CALLS = 8

STAGE = "probe"
# The prompt asks for something else, so a model writes this only if the schema forces it to.
EXPECTED = {"llmkit_probe": "held"}
# A constrained answer has a dozen tokens; the rest leaves room for hidden reasoning.
MOST_OUTPUT_TOKENS = 512
# A tiny, valid request that fails with one of these was refused for its schema.
_REFUSALS = (LLMBadRequest, LLMUnsupported)


def build_probe_request(route: Route) -> LLMRequest:
    """Build a request whose prompt asks for prose and whose schema allows one object only."""
    schema: dict[str, Any] = {
        "type": "object",
        "properties": {name: {"type": "string", "enum": [value]} for name, value in EXPECTED.items()},
        "required": list(EXPECTED),
        "additionalProperties": False,
    }
    return LLMRequest(
        messages="Describe the sea in one short sentence of plain English.",
        route=route,
        response_format=ResponseFormat(name="llmkit_probe", json_schema=schema),
        max_output_tokens=MOST_OUTPUT_TOKENS,
        use_cache=False,
        constraints=LLMConstraints(allow_fallback=False),
    )


def follows_schema(response: LLMResponse) -> bool:
    """Return whether the schema was sent as a constraint, and the answer is the one object that fits it."""
    was_sent = bool(response.attempts) and response.attempts[-1].schema_sha256 is not None
    return was_sent and _parse_json(response.text) == EXPECTED


def _parse_json(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


class _End(Enum):
    """End of a trial without an answer: refused by the server, cut at the limit, or something that shows nothing."""

    REFUSED = auto()
    CUT = auto()
    UNKNOWN = auto()


_TOOL = ToolDefinition(
    name="report_number",
    description="Report a number.",
    parameters={"type": "object", "properties": {"number": {"type": "integer"}}, "required": ["number"]},
)
_SHORT_TOKENS = 32
_YELLOW = (255, 255, 0)


def _make_picture() -> Attachment:
    """Return a PNG of one colour, of a size that no model refuses."""
    side = 64
    rows = (b"\0" + bytes(_YELLOW) * side) * side

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    png = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return Attachment(data=png, media_type="image/png")


@dataclass(slots=True)
class _Trials:
    """The trials of one model. Each returns what it shows, None for nothing."""

    service: LLMService
    context: RequestContext
    route: Route
    counts: bool | None = None

    async def send(self, messages: Any, tokens: int = MOST_OUTPUT_TOKENS, **fields: Any) -> LLMResponse | _End:
        """Send one request, and note whether the answer had token counts."""
        request = LLMRequest(
            messages=messages,
            route=self.route,
            max_output_tokens=tokens,
            use_cache=False,
            constraints=LLMConstraints(allow_fallback=False),
            **fields,
        )
        try:
            response = await self.service.chat(request, self.context)
        except LLMOutputTruncated:
            return _End.CUT
        except LLMError as error:
            refused = type(error) in _REFUSALS and error.status_code is not None
            return _End.REFUSED if refused else _End.UNKNOWN
        usage = response.usage
        self.counts = bool(self.counts) or (usage.input_tokens is not None and not usage.estimated)
        return response

    async def write_json(self) -> bool | None:
        """Ask for any JSON where the prompt does not."""
        end = await self.send("Describe the sea as JSON.", response_format=ResponseFormat())
        if isinstance(end, LLMResponse):
            return isinstance(_parse_json(end.text), dict)
        return False if end is _End.REFUSED else None

    async def call_a_tool(self, *, beside_schema: bool = False) -> bool | None:
        """Offer a tool, alone or beside a schema; beside one, the object that the schema allows is an answer too."""
        shape = build_probe_request(self.route).response_format if beside_schema else None
        prompt = "Call the tool report_number with the number 7. Write nothing else."
        end = await self.send(prompt, tools=(_TOOL,), tool_choice="auto", response_format=shape)
        if not isinstance(end, LLMResponse):
            return None if end is _End.UNKNOWN else False
        called = [_parse_json(call.arguments) for call in end.tool_calls if call.name == _TOOL.name]
        if any(isinstance(each, dict) and isinstance(each.get("number"), int) for each in called):
            return True
        return beside_schema and follows_schema(end)

    async def repeat_with_a_seed(self) -> bool | None:
        """Compare two answers with one seed, and, where they are equal, one with another: it may always be the same."""
        texts = []
        for seed in (7, 7, 8):
            prompt = "Write ten random English words."
            end = await self.send(prompt, tokens=_SHORT_TOKENS, temperature=1.0, seed=seed)
            if not isinstance(end, LLMResponse):
                return False if end is _End.REFUSED else None
            texts.append(end.text)
            if len(texts) == 2 and texts[0] != texts[1]:
                return False
        return True if texts[2] != texts[0] else None

    async def see_a_picture(self) -> bool | None:
        """Show a yellow picture and ask for its colour."""
        text = "Which colour is this picture? Answer with one word."
        message = Message(role="user", content=text, attachments=(_make_picture(),))
        end = await self.send((message,))
        if isinstance(end, LLMResponse):
            return "yellow" in end.text.lower()
        return False if end is _End.REFUSED else None


class _RequestLimit:
    """A guard that lets eight requests through: a retry counts as any other."""

    def __init__(self) -> None:
        self._left = MOST_CALLS

    async def send(self, _route: Route, _request: LLMRequest, _log: AttemptLog, send: Send) -> ClientReply | NotSent:
        """Send the request if one is left."""
        if not self._left:
            raise LLMBudgetExhausted(f"A probe sends at most {MOST_CALLS} requests")
        self._left -= 1
        return await send()


class Prober:
    """Probes of models through the service, so that each one is recorded like any call, with stage `probe`.

    Args:
        service: Carries out the request.
        facts: Where results are stored.
        addresses: Where each provider is called, as `StoredProbe.address` has it.
        file: Keeps results for other processes; None for this process only.
    """

    def __init__(
        self,
        service: LLMService,
        facts: FactBook,
        addresses: Mapping[LLMProvider, str],
        file: ProbeFile | None,
    ) -> None:
        self._service = service
        self._facts = facts
        self._addresses = addresses
        self._file = file

    async def probe(self, route: Route, context: RequestContext) -> ModelFacts:
        """Probe the model now, whatever is known. Sends up to eight small requests, which may be billed.

        Args:
            route: The model.
            context: Whose run it is; its stage becomes `probe`.

        Raises:
            LLMError: The first request failed; earlier facts stay valid.
        """
        request = build_probe_request(route)
        await self._service.discover(request)  # The result is stored with the model's current digest.
        before = self._facts.of(route)
        digest = before.digest.value if before.digest is not None else None
        # The result of an earlier probe could exclude the route, so it is forgotten first.
        self._facts.probe(route, NOTHING_KNOWN, None)
        try:
            with use_guard(_RequestLimit()):
                found = await self._try_out(route, request, context, digest)
        except BaseException:
            probed = ModelFacts(**{name: fact for name, fact in before if fact.source == "probed"})
            self._facts.probe(route, probed, digest)
            raise
        self._facts.probe(route, found.facts, digest)
        if self._file is not None:
            self._file.keep(found)
        return self._service.router.facts(route)

    async def _try_out(
        self, route: Route, request: LLMRequest, context: RequestContext, digest: str | None
    ) -> StoredProbe:
        context = context.model_copy(update={"stage": STAGE})
        trials, reported = _Trials(self._service, context, route), self._facts.of(route)
        response = await self._send_probe(request, context)
        follows = response is not None and follows_schema(response)
        if response is not None:
            trials.counts = response.usage.input_tokens is not None and not response.usage.estimated
        json_object = await trials.write_json()
        tools = await trials.call_a_tool() if reported.tools is None else None
        can_call = tools or (reported.tools is not None and reported.tools.value)
        return StoredProbe(
            route=route,
            address=self._addresses[route.provider],
            digest=digest,
            json_schema=follows,
            json_object=json_object,
            tools=tools,
            tools_with_schema=await trials.call_a_tool(beside_schema=True) if can_call and follows else None,
            seed=await trials.repeat_with_a_seed(),
            images=await trials.see_a_picture() if reported.images is None else None,
            usage=trials.counts,
            at_utc=utc_now(),
        )

    async def _send_probe(self, request: LLMRequest, context: RequestContext) -> LLMResponse | None:
        """Return the answer to the request with a schema; None when the schema was refused or led to no end."""
        try:
            return await self._service.chat(request, context)
        except LLMOutputTruncated:
            return None
        except LLMError as error:
            if type(error) in _REFUSALS and error.status_code is not None:
                return None
            raise
