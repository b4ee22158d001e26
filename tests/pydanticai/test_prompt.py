"""Few-shot prompts that are built from the type."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import pandas as pd
import pytest
from pydantic import BaseModel, Field, computed_field

from llmkit import LLMBadRequest, Session
from llmkit.pydanticai import extraction_prompt
from llmkit.testing import OllamaServer


class Person(BaseModel):
    name: str = Field(alias="fullName")
    age: int | None = None

    @computed_field
    @property
    def adult(self) -> bool:
        return (self.age or 0) >= 18


@dataclass
class Point:
    x: int


def _roles(messages: Any) -> list[tuple[str, str]]:
    return [(message.role, message.content) for message in messages]


def test_each_example_is_a_question_and_the_json_that_the_model_is_to_write() -> None:
    examples = [("Ann is 3.", Person(fullName="Ann", age=3)), ("Bob.", {"fullName": "Bob"})]
    assert _roles(extraction_prompt(Person, " Cid, 4.\n", examples=examples)) == [
        ("system", "Read the Person out of the text. Answer with JSON only."),
        ("user", "Text: Ann is 3.\nJSON:"),
        ("assistant", '{"fullName":"Ann","age":3}'),
        ("user", "Text: Bob.\nJSON:"),
        ("assistant", '{"fullName":"Bob","age":null}'),
        ("user", "Text: Cid, 4.\nJSON:"),
    ]


@pytest.mark.parametrize(
    ("output_type", "value", "shown"),
    [
        (int, 3, {"response": 3}),
        (list[str], ["a"], {"response": ["a"]}),
        (Point, Point(2), {"x": 2}),
        (Point | None, None, {"response": None}),
    ],
)
def test_an_example_has_the_shape_of_the_schema_on_the_wire(output_type: Any, value: Any, shown: Any) -> None:
    messages = extraction_prompt(output_type, "x", examples=[("t", value)])
    assert json.loads(messages[2].content) == shown


def test_instructions_take_the_place_of_the_sentence_and_may_be_empty() -> None:
    assert extraction_prompt(int, "x", instructions="Count.")[0].content == "Count."
    assert [message.role for message in extraction_prompt(int, "x", instructions="")] == ["user"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"examples": [("t", {"age": "?"})]}, "not a valid Person: fullName"),
        ({"examples": ["ab"]}, "number 1 is not"),
        ({"examples": [("t",)]}, "number 1 is not"),
        ({"examples": [(1, {})]}, "the text of example 1 must be a string"),
        ({"instructions": 5}, "instructions must be a string"),
        ({"instructions": pd.Series(["a"])}, "instructions must be a string"),
        ({"examples": 5}, "examples are a list of pairs of a text and its value; got int"),
        ({"text": None}, "text must be a string; got NoneType"),
        ({"text": pd.Series(["a"])}, "text must be a string; got Series; `map` reads a whole column"),
        ({"text": "a\udfff"}, "half of a character"),
    ],
)
def test_bad_parts_are_named(arguments: dict[str, Any], said: str) -> None:
    with pytest.raises(LLMBadRequest, match=said):
        extraction_prompt(Person, **{"text": "x", "examples": [("Ann", {"fullName": "Ann"})], **arguments})


def test_a_session_shows_the_examples() -> None:
    with (
        OllamaServer(['{"response": 4}'], models=["llama3.2"]) as server,
        Session("w", ollama_api_base=server.url, cache_enabled=False, max_retries=0) as session,
    ):
        assert session.extract(int, "four", examples=[("three", 3)], route="ollama/llama3.2") == 4
        (sent,) = (call.json["messages"] for call in server.calls)
    assert [message["content"] for message in sent][1:] == ["Text: three\nJSON:", '{"response":3}', "Text: four\nJSON:"]
