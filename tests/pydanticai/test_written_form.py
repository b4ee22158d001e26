"""The JSON that a model would write for a value, for types whose serialised form is another."""

from __future__ import annotations

import datetime as dt
import json
import uuid
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any

import pytest
from pydantic import BaseModel, Field, HttpUrl, TypeAdapter
from typing_extensions import TypedDict

from llmkit import LLMBadRequest, Session
from llmkit.pydanticai.output_shape import OutputShape
from llmkit.pydanticai.written_form import write_json
from llmkit.testing import OllamaServer
from tests.support.awkward_types import CASES, Alias, Case, Converting, GermanDay, Lower, Secrets

READABLE = {name: case for name, case in CASES.items() if case.example is not None}


def read_answer(case: Case) -> Any:
    return OutputShape.of(case.kind).read_json(case.answer)


@pytest.mark.parametrize("case", READABLE.values(), ids=READABLE)
def test_an_instance_is_written_as_the_model_is_to_write_it(case: Case) -> None:
    assert OutputShape.of(case.kind).write_json(read_answer(case)) == case.example


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_an_answer_given_as_a_dictionary_is_written_so_that_it_reads_back(case: Case) -> None:
    shape = OutputShape.of(case.kind)
    given = json.loads(case.answer)
    written = shape.write_json(given["response"] if shape.wrapped else given)
    assert repr(shape.read_json(written)) == repr(read_answer(case))


@pytest.mark.parametrize("kind", [Converting, GermanDay])
def test_an_instance_that_no_json_is_read_as_is_refused(kind: type[BaseModel]) -> None:
    with pytest.raises(LLMBadRequest, match="give it as a dictionary"):
        OutputShape.of(kind).write_json(read_answer(CASES[kind.__name__]))


def test_field_names_are_accepted_where_the_model_is_to_write_an_alias() -> None:
    assert OutputShape.of(Alias).write_json({"units": "m"}) == '{"measurement_units":"m"}'


def test_a_list_of_instances_is_not_converted_twice() -> None:
    assert OutputShape.of(list[Lower]).write_json([Lower(label=" A")]) == '{"response":[{"label":"a"}]}'


class Named(TypedDict):
    units: Annotated[str, Field(validation_alias="measurement_units")]


def test_a_typed_dict_with_an_alias_is_written_as_given() -> None:
    given = {"measurement_units": "m"}
    assert OutputShape.of(Named).write_json(given) == '{"measurement_units":"m"}'


class Ordinary(BaseModel):
    text: str = "ä\n\"'"
    number: float = 1e22
    whole: int = 2**70
    flag: bool | None = None
    amount: Decimal = Decimal("1.10")
    at: dt.datetime = dt.datetime(2024, 5, 1, 12, 0, 0, 5000, tzinfo=dt.UTC)
    day: dt.date = dt.date(2024, 5, 1)
    hour: dt.time = dt.time(12, 30)
    took: dt.timedelta = dt.timedelta(days=1, seconds=1.5)
    id: uuid.UUID = uuid.UUID(int=5)
    path: Path = Path("a/b")
    url: HttpUrl = HttpUrl("https://example.org/a?b=c")
    data: bytes = "ü".encode()
    by_day: dict[dt.date, tuple[int, ...]] = {dt.date(2024, 5, 1): (1, 2)}


def test_ordinary_values_are_written_as_version_0_1_0_wrote_them() -> None:
    # Stored calls are found by a hash of their prompt, examples included.
    value = Ordinary()
    assert write_json(value) == value.model_dump_json(by_alias=True, round_trip=True)


def test_a_secret_example_teaches_no_asterisks() -> None:
    with OllamaServer('{"password": "x", "key": "y"}') as server, Session("w", ollama_api_base=server.url) as session:
        session.extract(
            Secrets, "text", examples=[("text", {"password": "hunter2", "key": "k-1"})], route="ollama/llama3.2"
        )
        sent = [each["content"] for each in server.calls[0].json["messages"] if each["role"] == "assistant"]
    assert sent == ['{"password":"hunter2","key":"k-1"}']


def test_the_adapter_of_a_type_reads_its_written_form() -> None:
    adapter = TypeAdapter(Alias)
    assert adapter.validate_json(write_json(Alias(measurement_units="m"))) == Alias(measurement_units="m")
