"""Probe of a model: one tiny request that exposes a server which accepts a schema and ignores it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from llmkit.discovery.probe_cache import ProbeFile, StoredProbe
from llmkit.errors import LLMBadRequest, LLMError, LLMOutputTruncated, LLMUnsupported
from llmkit.providers.model_facts import NOTHING_KNOWN, FactBook, ModelFacts
from llmkit.service import LLMService
from llmkit.types import (
    LLMConstraints,
    LLMProvider,
    LLMRequest,
    LLMResponse,
    RequestContext,
    ResponseFormat,
    Route,
    utc_now,
)

__all__ = ["Prober", "build_probe_request", "follows_schema"]

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
        """Probe the model now, whatever is known. Sends one request, which may be billed.

        Args:
            route: The model.
            context: Whose run it is; its stage becomes `probe`.

        Raises:
            LLMError: The probe failed; earlier facts stay valid.
        """
        request = build_probe_request(route)
        await self._service.discover(request)  # The result is stored with the model's current digest.
        before = self._facts.of(route)
        digest = before.digest.value if before.digest is not None else None
        # The result of an earlier probe could exclude the route, so it is forgotten first.
        self._facts.probe(route, NOTHING_KNOWN, None)
        try:
            follows = await self._send_probe(request, context)
        except BaseException:
            probed = ModelFacts(**{name: fact for name, fact in before if fact.source == "probed"})
            self._facts.probe(route, probed, digest)
            raise
        found = StoredProbe(
            route=route, address=self._addresses[route.provider], digest=digest, json_schema=follows, at_utc=utc_now()
        )
        self._facts.probe(route, found.facts, digest)
        if self._file is not None:
            self._file.keep(found)
        return self._service.router.facts(route)

    async def _send_probe(self, request: LLMRequest, context: RequestContext) -> bool:
        try:
            response = await self._service.chat(request, context.model_copy(update={"stage": STAGE}))
        except LLMOutputTruncated:
            return False
        except LLMError as error:
            if type(error) in _REFUSALS and error.status_code is not None:
                return False
            raise
        return follows_schema(response)
