"""Typed extraction: outcomes, modes, keys, records. On both providers' wires where the wire matters."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from dataclasses import replace
from types import BuiltinFunctionType
from typing import Any, Literal

import pytest
from pydantic import BaseModel, ConfigDict

from llmkit.errors import (
    LLMBadRequest,
    LLMContentBlocked,
    LLMInvalidOutput,
    LLMModelNotFound,
    LLMOutputTruncated,
    LLMUnavailable,
)
from llmkit.ports import ClientReply
from llmkit.providers import PROVIDERS
from llmkit.pydanticai import extract
from llmkit.testing import Fault, Reply
from llmkit.testing.scripted_client import reply
from llmkit.types import LLMConstraints, LLMProvider, LLMRequest, Message, Route, TokenUsage, ToolCall
from tests.support.scripted_services import CONTEXT, Wire, opened_wire, scripted_service

OLLAMA, GEMINI = LLMProvider.OLLAMA, LLMProvider.GEMINI


class Label(BaseModel):
    label: Literal["positive", "negative"]


class Person(BaseModel):
    name: str
    age: int | None = None
    tags: list[str] = []


@pytest.fixture(params=["ollama", "gemini"])
async def wire(request: pytest.FixtureRequest) -> AsyncIterator[Wire]:
    async with opened_wire(request.param) as wire:
        yield wire


# --- three outcomes -----------------------------------------------------------------------------------------------


async def test_a_first_answer_that_fits_is_one_call(wire: Wire) -> None:
    wire.server.script([Reply('{"label": "positive"}', input_tokens=11, output_tokens=3)])
    found = await wire.extract(Label, "Great!")
    assert found.value == Label(label="positive")
    assert (found.mode, found.valid_first_try, found.outcome) == ("schema", True, "first_try")
    assert (found.usage.input_tokens, found.usage.output_tokens) == (11, 3)
    assert len(wire.server.calls) == len(wire.runs.runs) == 1
    agent = wire.runs.runs[0].start.metadata["agent"]
    assert agent == {"step": 0, "output_mode": "native", "schema_sha256": found.schema_sha256}
    assert wire.runs.runs[0].attempts[0].schema_sha256 == found.schema_sha256


async def test_near_json_is_repaired_without_another_call(wire: Wire) -> None:
    wire.server.script([Reply("Sure:\n```json\n{'label': 'positive',}\n```")])
    found = await wire.extract(Label, "Great!")
    assert (found.value.label, found.outcome, found.valid_first_try) == ("positive", "repaired", False)
    assert len(wire.server.calls) == 1
    assert found.responses[0].warnings == found.warnings == ("The answer was not valid JSON and was repaired.",)


async def test_an_answer_that_does_not_fit_is_asked_again_with_what_was_wrong(wire: Wire) -> None:
    wire.server.script([Reply('{"label": "meh"}'), Reply('{"label": "negative"}')])
    found = await wire.extract(Label, "Hm.")
    assert (found.value.label, found.outcome, found.valid_first_try) == ("negative", "reasked", False)
    assert len(found.responses) == 2
    assert "'positive' or 'negative'" in wire.server.calls[1].body.decode()
    assert {run.start.pipeline_run_id for run in wire.runs.runs} == {"p"}
    first, second = (run.start.metadata["agent"] for run in wire.runs.runs)
    assert "asked_again_because" not in first
    assert second["step"] == 1
    assert second["asked_again_because"] == ["label: Input should be 'positive' or 'negative'"]


async def test_what_never_fits_is_an_honest_error_with_the_raw_text_and_what_was_billed(wire: Wire) -> None:
    wire.server.script([Reply('{"label": "meh"}')])
    with pytest.raises(LLMInvalidOutput) as caught:
        await wire.extract(Label, "Hm.", reasks=2)
    error = caught.value
    assert error.raw_text == '{"label": "meh"}'
    assert "label" in error.validation_errors[0]
    assert len(error.attempts) == len(wire.server.calls) == 3
    assert error.provider == wire.route.provider


async def test_no_retries_is_one_call(wire: Wire) -> None:
    wire.server.script([Reply("no")])
    with pytest.raises(LLMInvalidOutput, match="in 1 tries: the answer is not one JSON object"):
        await wire.extract(Label, "Hm.", reasks=0)
    assert len(wire.server.calls) == 1


async def test_stops_and_refusals_are_our_errors_with_what_was_billed(wire: Wire) -> None:
    wire.server.script([Reply("no"), Fault.cut_at_limit('{"label": "pos')])
    with pytest.raises(LLMOutputTruncated) as caught:
        await wire.extract(Label, "Hm.")
    assert len(caught.value.attempts) == 2
    assert type(caught.value.__cause__) is not LLMOutputTruncated


async def test_a_safety_block_is_our_error() -> None:
    async with opened_wire("gemini") as wire:
        wire.server.script([Fault.safety_block()])
        with pytest.raises(LLMContentBlocked):
            await wire.extract(Label, "Hm.")


async def test_a_provider_error_comes_through_as_ours(wire: Wire) -> None:
    route = Route(provider=wire.route.provider, model="gemini-0-missing")
    with pytest.raises(LLMModelNotFound):
        await extract(wire.service, Label, "x", context=CONTEXT, route=route)


# --- keys and messages --------------------------------------------------------------------------------------------


async def test_the_same_key_replays_every_step(wire: Wire) -> None:
    wire.server.script([Reply('{"label": "meh"}'), Reply('{"label": "negative"}')])
    first = await wire.extract(Label, "Hm.", idempotency_key="k")
    again = await wire.extract(Label, "Hm.", idempotency_key="k")
    assert len(wire.server.calls) == 2
    assert [str(response.served_from) for response in again.responses] == ["replay", "replay"]
    assert (again.value, again.outcome, again.usage) == (first.value, "reasked", first.usage)
    assert again.schema_sha256 == first.schema_sha256


async def test_a_repaired_answer_is_repaired_again_when_it_is_replayed(wire: Wire) -> None:
    wire.server.script([Reply('{"label": "positive",}')])
    outcomes = [(await wire.extract(Label, "Hm.", idempotency_key="k")).outcome for _ in range(2)]
    assert outcomes == ["repaired", "repaired"]
    assert len(wire.server.calls) == 1


async def test_few_shot_messages_arrive_in_order(wire: Wire) -> None:
    wire.server.script([Reply('{"label": "positive"}')])
    shots = (
        Message(role="system", content="Be brief."),
        Message(role="user", content="good"),
        Message(role="assistant", content='{"label": "positive"}'),
        Message(role="user", content="bad"),
    )
    await extract(wire.service, Label, shots, context=CONTEXT, route=wire.route)
    body = wire.server.calls[0].body.decode()
    places = [body.index(json.dumps(text)[1:-1]) for text in ("good", "bad")]
    assert places == sorted(places)
    assert "Be brief." in body


async def test_own_metadata_stay_beside_ours() -> None:
    service, _, runs = scripted_service([reply('{"label": "positive"}')])
    await extract(service, Label, "x", context=CONTEXT, parameters={"metadata": {"batch": 7}})
    assert runs.runs[0].start.metadata["batch"] == 7
    assert runs.runs[0].start.metadata["agent"]["step"] == 0


# --- modes --------------------------------------------------------------------------------------------------------


def _providers(**weaker: dict[str, bool]) -> dict[LLMProvider, Any]:
    """The usual providers without the embedded one, some with fewer capabilities."""
    return {
        name: replace(spec, caps=spec.caps.model_copy(update=weaker.get(str(name), {})))
        for name, spec in PROVIDERS.items()
        if name is not LLMProvider.LOCAL
    }


NO_SCHEMA = {"supports_json_schema": False}
WORDS_ONLY = {"supports_json_schema": False, "supports_tools": False}


def _tool_answer(_route: Route, request: LLMRequest) -> ClientReply:
    call = ToolCall(id="c", name=request.tools[0].name, arguments="{'label': 'positive',}")
    return ClientReply("", (call,), "tool_calls", TokenUsage(), None)


async def test_without_constrained_decoding_a_tool_is_asked_for() -> None:
    """Its arguments are repaired."""
    providers = _providers(gemini=NO_SCHEMA, ollama=WORDS_ONLY)
    service, client, runs = scripted_service(_tool_answer, providers=providers)
    found = await extract(service, Label, "x", context=CONTEXT, route=Route.parse("gemini/g"))
    assert (found.value.label, found.mode, found.outcome) == ("positive", "tool", "repaired")
    assert found.answer_json == '{"label": "positive"}'
    assert client.calls[0][1].tool_choice == "required"
    assert runs.runs[0].start.metadata["agent"]["output_mode"] == "tool"
    assert found.schema_sha256 == runs.runs[0].start.metadata["agent"]["schema_sha256"]


async def test_without_tools_it_is_asked_for_in_words() -> None:
    providers = _providers(gemini=WORDS_ONLY, ollama=WORDS_ONLY)
    service, client, _ = scripted_service([reply('Here: {"label": "positive"}')], providers=providers)
    found = await extract(service, Label, "x", context=CONTEXT, route=Route.parse("gemini/g"))
    assert (found.value.label, found.mode, found.outcome) == ("positive", "prompted", "repaired")
    assert '"enum"' in client.calls[0][1].messages[0].content


async def test_a_fallback_to_a_weaker_mode_keeps_the_contract() -> None:
    def answer(route: Route, request: LLMRequest) -> Any:
        if route.provider is OLLAMA:
            return LLMUnavailable("down")
        return reply('{"label": "meh"}') if len(request.messages) < 4 else reply('{"label": "negative"}')

    service, client, runs = scripted_service(answer, providers=_providers(gemini=WORDS_ONLY))
    found = await extract(service, Label, "x", context=CONTEXT, idempotency_key="k")
    assert (found.value.label, found.mode, found.outcome) == ("negative", "prompted", "reasked")
    assert [route.provider for route, _ in client.calls] == [OLLAMA, GEMINI, GEMINI]
    assert [run.start.idempotency_key for run in runs.runs] == ["k#0", "k~prompted#0", "k~prompted#1"]


@pytest.mark.parametrize("pinned", [True, False])
async def test_no_fallback_to_a_weaker_mode_where_it_is_forbidden(pinned: bool) -> None:
    service, client, _ = scripted_service([LLMUnavailable("down")], providers=_providers(gemini=WORDS_ONLY))
    how: dict[str, Any] = (
        {"route": Route.parse("ollama/m")} if pinned else {"constraints": LLMConstraints(allow_fallback=False)}
    )
    with pytest.raises(LLMUnavailable, match="down"):
        await extract(service, Label, "x", context=CONTEXT, **how)
    assert len(client.calls) == 1


async def test_what_no_mode_can_do_is_the_routers_error() -> None:
    service, client, _ = scripted_service([reply()])
    with pytest.raises(LLMBadRequest, match="allowed_providers leaves"):
        await extract(service, Label, "x", context=CONTEXT, constraints=LLMConstraints(allowed_providers=frozenset()))
    assert not client.calls


# --- types --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("output_type", [int, list[str], dict[str, float]])
async def test_bare_types_can_be_extracted(wire: Wire, output_type: type) -> None:
    found = await wire.extract(output_type, "x")
    assert isinstance(found.value, getattr(output_type, "__origin__", output_type))


@pytest.mark.parametrize("thing", ["Label", 5, None, Label(label="positive"), [Label], {}, print, type(print)])
async def test_what_is_no_type_is_refused_before_anything_is_sent(thing: Any) -> None:
    service, client, _ = scripted_service([reply("{}")])
    with pytest.raises(LLMBadRequest, match="cannot be an output type"):
        await extract(service, thing, "x", context=CONTEXT)
    assert not client.calls


class Unfinished(BaseModel):
    inner: NotYet  # noqa: F821


class Vector(BaseModel):
    model_config = ConfigDict(arbitrary_types_allowed=True)

    label: str
    opaque: BuiltinFunctionType


class Outer(BaseModel):
    inner: list[Vector]


@pytest.mark.parametrize(
    ("thing", "reason"),
    [(Vector, "its field opaque"), (Outer, r"its field inner\.opaque"), (Unfinished, "the name NotYet is not defined")],
)
async def test_the_field_without_a_schema_is_named(thing: type[BaseModel], reason: str) -> None:
    service, _, _ = scripted_service([reply("{}")])
    with pytest.raises(LLMBadRequest, match=f"cannot be an output type, because {reason}"):
        await extract(service, thing, "x", context=CONTEXT)


async def test_a_type_without_a_schema_is_refused_before_anything_is_sent(wire: Wire) -> None:
    class Opaque:
        pass

    with pytest.raises(LLMBadRequest, match="Opaque cannot be an output type"):
        await wire.extract(Opaque, "x")
    assert not wire.server.calls


async def test_a_schema_that_no_provider_takes_is_refused_before_anything_is_sent() -> None:
    from typing import Annotated

    from pydantic import Field, WithJsonSchema

    class Odd(BaseModel):
        x: Annotated[str, WithJsonSchema({"type": "tuple"})] = Field()

    service, client, _ = scripted_service([reply("{}")])
    with pytest.raises(LLMBadRequest, match="x is 'tuple'"):
        await extract(service, Odd, "x", context=CONTEXT)
    assert not client.calls


async def test_parts_that_only_validation_enforces_are_told() -> None:
    from typing import Annotated

    from pydantic import Field

    class Price(BaseModel):
        amount: Annotated[float, Field(gt=0)]
        code: Annotated[str, Field(pattern=r"^[A-Z]{3}$")]

    service, _, runs = scripted_service([reply('{"amount": 0, "code": "EUR"}'), reply('{"amount": 1, "code": "EUR"}')])
    found = await extract(service, Price, "x", context=CONTEXT, route=Route.parse("gemini/g"))
    assert found.outcome == "reasked"
    assert found.warnings == (
        "gemini does not enforce all of the schema; validation enforces: amount: exclusiveMinimum, code: pattern",
    )
    assert runs.runs[0].start.metadata["agent"]["validated_only"] == ["amount: exclusiveMinimum"]


async def test_two_routes_asked_different_things_differ_in_the_hash() -> None:
    async with opened_wire("gemini") as wire:
        wire.server.models = ["gemini-2.5-flash", "tuned"]
        wire.server.script(['{"label": "positive"}'])
        usual = await wire.extract(Label, "x")
        tuned = await extract(wire.service, Label, "x", context=CONTEXT, route=Route.parse("gemini/tuned"))
    assert usual.schema_sha256 is not None
    assert tuned.schema_sha256 != usual.schema_sha256


async def test_bad_conversations_are_refused() -> None:
    service, client, _ = scripted_service([reply("{}")])
    for messages in ((), (Message(role="assistant", content="x"),)):
        with pytest.raises(LLMBadRequest, match="ends with a user message"):
            await extract(service, Label, messages, context=CONTEXT)
    with pytest.raises(LLMBadRequest, match="half of a character"):
        await extract(service, Label, "a\ud800", context=CONTEXT)
    assert not client.calls
