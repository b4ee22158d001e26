"""One type of every kind whose canonical schema, and what each provider received of it, is kept under `golden/`."""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass
from decimal import Decimal
from enum import Enum
from typing import Annotated, Any, Literal, NotRequired
from uuid import UUID

from pydantic import BaseModel, ConfigDict, Field, RootModel
from typing_extensions import TypedDict


class Address(BaseModel):
    """Where somebody lives."""

    street: str
    postcode: Annotated[str, Field(pattern=r"^\d{5}$", description="Five digits")]
    country: Annotated[str, Field(min_length=2, max_length=2)] = "DE"


class Nested(BaseModel):
    name: str
    home: Address
    work: Address | None = Field(None, description="If there is one")
    former: list[Address] = []


class Optionals(BaseModel):
    required: str
    nullable: int | None
    defaulted: int = 3
    listed: list[str] = Field(default_factory=list)


class Cat(BaseModel):
    kind: Literal["cat"]
    lives: Annotated[int, Field(ge=1, le=9)]


class Dog(BaseModel):
    kind: Literal["dog"]
    tricks: list[str]


class Unions(BaseModel):
    pet: Annotated[Cat | Dog, Field(discriminator="kind")]
    id: int | str


class Color(Enum):
    RED = "red"
    BLUE = "blue"


class Choices(BaseModel):
    color: Color
    size: Literal[1, 2, 3]
    answer: Literal["yes", "no", None]
    confirmed: Literal[True]


class Constrained(BaseModel):
    share: Annotated[float, Field(gt=0, le=1)]
    count: Annotated[int, Field(gt=0, lt=100)]
    even: Annotated[int, Field(multiple_of=2)]
    code: Annotated[str, Field(pattern=r"[A-Z]+-\d+")]
    note: Annotated[str, Field(max_length=10_000)]
    few: Annotated[list[int], Field(min_length=1, max_length=3)]
    unique: set[str]


class Times(BaseModel):
    day: dt.date
    moment: dt.datetime
    at: dt.time
    lasted: dt.timedelta


class Money(BaseModel):
    amount: Annotated[Decimal, Field(ge=0, max_digits=10, decimal_places=2)]
    id: UUID


class Tree(BaseModel):
    name: str
    children: list[Tree]


class Employee(BaseModel):
    name: str
    boss: Employee | None = None


@dataclass
class Point:
    x: float
    y: float = 0.0


class Ticket(TypedDict):
    title: str
    urgent: NotRequired[bool]


class Open(BaseModel):
    model_config = ConfigDict(extra="allow")

    scores: dict[str, float]
    pair: tuple[int, str]
    anything: Any


class Names(RootModel[list[str]]):
    pass


TYPES: dict[str, Any] = {
    "nested": Nested,
    "optionals": Optionals,
    "unions": Unions,
    "choices": Choices,
    "constrained": Constrained,
    "times": Times,
    "money": Money,
    "tree": Tree,
    "employee": Employee,
    "dataclass": Point,
    "typed_dict": Ticket,
    "open": Open,
    "root_model": Names,
    "scalar_int": int,
    "scalar_decimal": Decimal,
    "list_of_models": list[Dog],
    "union_of_models": Cat | Dog,
    "literal": Literal["spam", "ham"],
}
