"""Cells of a map: the fields of an answer as they are, whatever serialisers its type has."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator
from typing import Any

import pytest
from pandas.testing import assert_frame_equal
from pydantic import BaseModel, RootModel, computed_field

from llmkit import Session
from llmkit.mapping.columns import choose_columns
from llmkit.pydanticai.output_shape import OutputShape
from llmkit.testing import OllamaServer, Reply
from tests.support.awkward_types import CASES, Case


@pytest.fixture(scope="module")
def server() -> Iterator[OllamaServer]:
    with OllamaServer() as running:
        yield running


@pytest.fixture(scope="module")
def session(server: OllamaServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Session]:
    folder = tmp_path_factory.mktemp("map")
    settings = {"database_url": f"sqlite:///{folder}/llm.db", "cache_enabled": False}
    with Session("w", ollama_api_base=server.url, **settings) as opened:
        yield opened


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_a_resumed_map_has_the_same_cells(session: Session, server: OllamaServer, case: Case) -> None:
    server.script([Reply(case.answer)])
    before = len(server.calls)
    first, second = (
        session.map(case.kind, ["text"], name=case.kind.__name__, route="ollama/llama3.2", progress=False)
        for _ in range(2)
    )
    assert first["status"].tolist() == ["SUCCEEDED"]
    assert len(server.calls) == before + 1
    own = first.columns.drop(["served_from", "run_id"])
    assert_frame_equal(second[own].astype(str), first[own].astype(str))


def cells_of(kind: Any, answer: str) -> tuple[Any, ...]:
    return choose_columns(kind).split_value(OutputShape.of(kind).read_json(answer))


@pytest.mark.parametrize(
    ("name", "cells"),
    [
        ("FieldSerialiser", (dt.date(2024, 12, 31),)),
        ("LossySerialiser", (1.25,)),
        ("ModelSerialiser", (1,)),
        ("Excluded", (1, "r", "")),
        ("Alias", ("m",)),
        ("Pet", ({"kind": "cat", "lives": 9}, [{"kind": "dog", "name": "Rex"}])),
        ("Wrapper", ({"k": {"units": "m"}},)),
        ("WithDataclass", ({"x": 1},)),
    ],
)
def test_cells_are_fields_and_objects_in_them_dictionaries(name: str, cells: tuple[Any, ...]) -> None:
    assert cells_of(CASES[name].kind, CASES[name].answer) == cells


class Part(BaseModel):
    a: int

    @computed_field
    @property
    def double(self) -> int:
        return 2 * self.a


class Whole(BaseModel):
    part: Part
    parts: RootModel[list[Part]]


def test_computed_fields_are_in_the_dictionaries() -> None:
    made = {"a": 2, "double": 4}
    assert cells_of(Whole, '{"part": {"a": 2}, "parts": [{"a": 2}]}') == (made, [made])


class Failing(BaseModel):
    part: Part

    def __getattribute__(self, name: str) -> Any:
        if name == "part":
            raise RuntimeError("no such thing")
        return super().__getattribute__(name)


def test_an_answer_that_cannot_be_split_fails_only_its_row(session: Session, server: OllamaServer) -> None:
    server.script([Reply('{"part": {"a": 1}}'), Reply('{"part": {"a": 2}}')])
    frame = session.map(Failing, ["one", "two"], route="ollama/llama3.2", progress=False)
    assert frame["status"].tolist() == ["FAILED", "FAILED"]
    assert frame["error_message"].tolist() == ["RuntimeError in the output type"] * 2
