"""Whatever a model writes: a right object or a documented error, soon. Never a hang, a crash or a wrong object."""

from __future__ import annotations

import asyncio
import json
import string
import time
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, ConfigDict

from llmkit.errors import LLMEmptyReply, LLMInvalidOutput
from llmkit.pydanticai import Extraction, extract
from llmkit.pydanticai.repair import is_json, mend_json
from llmkit.testing import Reply
from llmkit.testing.scripted_client import reply
from tests.support.scripted_services import CONTEXT, opened_wire, scripted_service

LONG = 200_000


class Label(BaseModel):
    label: str
    note: str = ""


class Lenient(BaseModel):
    """Everything may be left out: the type into which junk would slip most easily."""

    label: str = "?"
    count: int = 0


class Tree(BaseModel):
    model_config = ConfigDict(extra="forbid")

    name: str
    children: list[Tree] = []


async def read(output_type: Any, *answers: str) -> Extraction[Any]:
    service, _, _ = scripted_service([reply(answer) for answer in answers])
    return await extract(service, output_type, "q", context=CONTEXT)


# --- repair -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ('```json\n{"label": "x"}\n```', {"label": "x"}),
        ('```\n{"label": "x"}\n``` I hope this helps!', {"label": "x"}),
        ('Sure! Here it is: {"label": "x"}. Anything else?', {"label": "x"}),
        ('{"label": "x",}', {"label": "x"}),
        ('{"label": "x", "tags": ["a", "b",],}', {"label": "x", "tags": ["a", "b"]}),
        ("{'label': 'x', 'ok': True, 'no': None}", {"label": "x", "ok": True, "no": None}),
        ('{label: "x"}', {"label": "x"}),
        ('{"label": "x" "note": "y"}', {"label": "x", "note": "y"}),
        ('{"label": "x"} // done', {"label": "x"}),
        ('{"label": "a } and a { inside"} and more', {"label": "a } and a { inside"}),
        ('{"label": "she said \\"hi\\"",}', {"label": 'she said "hi"'}),
        ('{"label": "two\nlines"}', {"label": "two\nlines"}),
        ('{"label": "x"} {"label": "x"}', {"label": "x"}),
        ('\ufeff{"label": "ü"}', {"label": "ü"}),
    ],
)
def test_what_is_nearly_json_is_mended(text: str, value: Any) -> None:
    mended = mend_json(text)
    assert mended is not None
    assert is_json(mended)
    assert json.loads(mended) == value


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "positive",
        "I cannot help with that.",
        "Je ne peux pas répondre.",
        "[1, 2]",
        '"{"',
        "{}",
        "I would use {} here.",
        '{"label": "x',  # breaks off: what is missing would be made up
        '{"label": "x"',
        '{"label": {"a": 1}, "note": "b',
        'One: {"label": "x"}, or perhaps {"label": "y"}',
        '{"label": "x"} {"label": ',
        '{"label": }',
        '{"label" "x"}',
        '{"label": NaN}trailing,',
        "{" * 10_000,
        "[" * 10_000 + "]" * 10_000,
        '{"a":' * 10_000 + "1" + "}" * 10_000,
        '{"label": "' + "x" * LONG + '",}',
        '{"label": ' + '"' * LONG + "}",
    ],
)
def test_what_is_not_clear_is_not_guessed(text: str) -> None:
    mended = mend_json(text)
    assert mended is None or "NaN" in mended


def test_repair_takes_time_in_proportion() -> None:
    nasty = ["{", "}", '"', "'", "\\", "a:", '{"a": ', "it's ", '" "', "```json\n{", ",", "[{"]
    started = time.monotonic()
    for piece in nasty:
        for text in (piece * (LONG // len(piece)), "{" + piece * (28_000 // len(piece)) + "}"):
            mend_json(text)
    assert time.monotonic() - started < 30


# --- whole extractions --------------------------------------------------------------------------------------------

HOPELESS = {
    "prose": "The sentiment is positive.",
    "another language": "Das ist eine positive Bewertung.",
    "half of it": '{"label": "pos',
    "another object": '{"answer": 42}',
    "a scalar": "42",
    "a list": '[{"label": "x"}]',
    "nothing but space": " \n ",
    "200 kB of words": "word " * (LONG // 5),
    "200 kB of quotes": '{"label": ' + '"' * LONG,
    "10,000 brackets": "[" * 10_000,
    "10,000 objects": '{"label":' * 10_000,
    "10,000 closed objects": '{"label":' * 10_000 + "1" + "}" * 10_000,
    "half a character in JSON": '{"label": "\\ud800"}',
    "a number for a text": '{"label": 5}',
}


@pytest.mark.parametrize("kind", HOPELESS)
async def test_a_hopeless_answer_is_asked_again_and_then_an_error(kind: str) -> None:
    with pytest.raises(LLMInvalidOutput) as caught:
        await read(Label, HOPELESS[kind])
    assert caught.value.raw_text == HOPELESS[kind]
    assert caught.value.validation_errors
    assert len(str(caught.value)) < 500
    assert (await read(Label, HOPELESS[kind], '{"label": "x"}')).outcome == "reasked"


@pytest.mark.parametrize(
    "kind",
    [kind for kind in HOPELESS if kind not in ("another object", "half a character in JSON", "a number for a text")],
)
async def test_junk_is_no_object_even_where_every_field_may_be_left_out(kind: str) -> None:
    with pytest.raises(LLMInvalidOutput):
        await read(Lenient, HOPELESS[kind])


@pytest.mark.parametrize(
    ("text", "label"),
    [
        ('{"label": "' + "y" * LONG + '"}', "y" * LONG),
        ('{"label": "a\\u0000b"}', "a\x00b"),
        ('{"label": "a\x00b"}', "a\x00b"),
        ('{"label": "\\u202e\\ufeff"}', "\u202e\ufeff"),
    ],
)
async def test_a_strange_answer_that_fits_is_taken(text: str, label: str) -> None:
    assert (await read(Label, text)).value == Label(label=label)


async def test_half_a_character_is_replaced_or_refused() -> None:
    assert "\ud800" not in (await read(Label, '{"label": "a\ud800"}')).value.label


@pytest.mark.parametrize("provider", ["ollama", "gemini"])
async def test_bad_answers_over_http(provider: str) -> None:
    """A bad answer is reasked, a strange one is accepted."""
    bad = {kind: text for kind, text in HOPELESS.items() if kind != "nothing but space"}
    async with opened_wire(provider) as wire:
        for kind, text in bad.items():
            wire.server.script([Reply(text), Reply('{"label": "x"}')])
            found = await wire.extract(Label, kind)
            assert (kind, found.value, found.outcome) == (kind, Label(label="x"), "reasked")
        for text, label in (('{"label": "a\x00b"}', "a\x00b"), ('{"label": "' + "y" * LONG + '"}', "y" * LONG)):
            wire.server.script([Reply(text)])
            assert (await wire.extract(Label, "q")).value == Label(label=label)
        wire.server.script([Reply('{"label": "a\ud800"}')])
        assert "\ud800" not in (await wire.extract(Label, "q")).value.label
        wire.server.script([Reply(" \n ")])
        with pytest.raises(LLMEmptyReply):
            await wire.extract(Label, "q")


async def test_many_problems_are_told_to_the_model_in_a_few_lines() -> None:
    service, client, _ = scripted_service([reply(json.dumps([{"x": 1}] * 3)), reply('{"response": [1]}')])
    long = json.dumps({"response": ["x"] * 1000})
    client._answers = [reply(long), reply('{"response": [1]}')]
    assert (await extract(service, list[int], "q", context=CONTEXT)).value == [1]
    feedback = client.calls[1][1].messages[-1].content
    assert "and 990 more problems" in feedback
    assert len(feedback) < 2_000


# --- generated replies --------------------------------------------------------------------------------------------

_MARKS = ['{"name": "a"', '"children": [', "]", "}", "{", ",", '"', "'", "```json\n", "```", "\\", "\x00", "\ud800"]
_WORDS = ["null", "true", "NaN", "1e999", "Sure: ", "\n", '{"name": "b"}', '"name": ', ": ", "//", "/*", "é", "]]>"]
_PIECES = st.sampled_from(_MARKS + _WORDS)
_NEAR_JSON = st.lists(_PIECES, max_size=20).map("".join)
_JSON = st.recursive(
    st.none() | st.booleans() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["name", "children", "x"]), inner),
    max_leaves=10,
).map(json.dumps)
_DAMAGED = st.tuples(_JSON, st.integers(0, 30), st.sampled_from(["", ",", '"', "}", "'", "\\"])).map(
    lambda it: it[0][: it[1]] + it[2] + it[0][it[1] :]
)
REPLIES = st.one_of(_NEAR_JSON, _JSON, _DAMAGED, st.text(string.printable, max_size=60), st.text(max_size=40))


@dataclass
class _Scene:
    """A service for all generated replies; its client says what it is told."""

    text: str = ""

    def __post_init__(self) -> None:
        self.service, _, self.runs = scripted_service(lambda _route, _request: reply(self.text))
        self.loop = asyncio.new_event_loop()

    def read(self, text: str) -> None:
        self.text = text
        self.runs._runs.clear()
        self.loop.run_until_complete(self._read())

    async def _read(self) -> None:
        try:
            found = await extract(self.service, Tree, "q", context=CONTEXT, reasks=0)
        except LLMInvalidOutput:
            return
        assert isinstance(found.value, Tree)
        assert found.outcome == ("first_try" if is_json(found.responses[0].text) else "repaired")


@pytest.fixture(scope="module")
def scene() -> Any:
    made = _Scene()
    yield made
    made.loop.close()


@pytest.mark.slow
def test_generated_replies_leave_only_documented_exceptions(scene: _Scene) -> None:
    @settings(max_examples=400, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(text=REPLIES)
    def check(text: str) -> None:
        scene.read(text)

    check()
