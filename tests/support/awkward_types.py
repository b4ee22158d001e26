"""Output types whose serialised form is not what a model writes, each with an answer that fits it."""

from __future__ import annotations

import base64
import datetime as dt
import enum
from decimal import Decimal
from typing import Annotated, Any, Generic, Literal, NamedTuple, TypeVar

from pydantic import (
    AfterValidator,
    AliasChoices,
    AliasGenerator,
    AliasPath,
    Base64Bytes,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    Json,
    PrivateAttr,
    RootModel,
    SecretBytes,
    SecretStr,
    computed_field,
    field_serializer,
    field_validator,
    model_serializer,
    model_validator,
)
from pydantic.alias_generators import to_camel
from pydantic.dataclasses import dataclass

T = TypeVar("T")


class Alias(BaseModel):
    units: str = Field(validation_alias="measurement_units")


class Choices(BaseModel):
    units: str = Field(validation_alias=AliasChoices("measurement_units", "unit"))


class Paths(BaseModel):
    first: str = Field(validation_alias=AliasPath("names", 0))
    second: str = Field(validation_alias=AliasPath("names", 1))
    city: str = Field(validation_alias=AliasChoices(AliasPath("home", "city"), AliasPath("city", 0)))


class SerialisedName(BaseModel):
    units: str = Field(serialization_alias="Units")


class ByName(BaseModel):
    model_config = ConfigDict(validate_by_name=True, validate_by_alias=False)
    units: str = Field(alias="measurement_units")


class Generated(BaseModel):
    model_config = ConfigDict(alias_generator=AliasGenerator(validation_alias=to_camel))
    unit_name: str


class FieldSerialiser(BaseModel):
    day: dt.date

    @field_serializer("day")
    def shown(self, value: dt.date) -> str:
        return value.strftime("%d.%m.%Y")


class LossySerialiser(BaseModel):
    price: float

    @field_serializer("price")
    def shown(self, value: float) -> float:
        return round(value)


class ModelSerialiser(BaseModel):
    a: int

    @model_serializer
    def shown(self) -> str:
        return f"a={self.a}"


class Excluded(BaseModel):
    a: int
    reasoning: str = Field(exclude=True)
    note: str = Field("", exclude=True)


class Number(BaseModel):
    v: float


class Secrets(BaseModel):
    password: SecretStr
    key: SecretBytes


class Converting(BaseModel):
    cents: Annotated[int, AfterValidator(lambda value: value * 100)]


class GermanDay(BaseModel):
    day: Annotated[
        dt.date, BeforeValidator(lambda text: dt.datetime.strptime(text, "%d.%m.%Y").date())  # noqa: DTZ007
    ]


class ConvertingModel(BaseModel):
    total: int
    parts: list[int]

    @model_validator(mode="before")
    @classmethod
    def count(cls, data: Any) -> Any:
        return {**data, "total": data.get("total", 0) + 1}


class Computed(BaseModel):
    a: int

    @computed_field
    @property
    def double(self) -> int:
        return 2 * self.a


class Private(BaseModel):
    a: int
    _seen: int = PrivateAttr(0)

    def model_post_init(self, context: Any) -> None:
        self._seen = self.a + 1


class Colour(enum.Enum):
    RED = "red"


class Leaves(BaseModel):
    amount: Decimal
    at: dt.datetime
    took: dt.timedelta
    data: bytes
    colour: Colour
    tags: frozenset[str]
    counts: dict[int, float]
    pair: tuple[int, str]


class Encoded(BaseModel):
    model_config = ConfigDict(ser_json_bytes="base64", val_json_bytes="base64")
    data: bytes


class Decoded(BaseModel):
    data: Base64Bytes


class Cat(BaseModel):
    kind: Literal["cat"]
    lives: int = Field(validation_alias="Lives")


class Dog(BaseModel):
    kind: Literal["dog"]
    name: str


class Pet(BaseModel):
    pet: Cat | Dog = Field(discriminator="kind")
    others: list[Dog | Cat] = []


class Either(BaseModel):
    value: int | str | bool | None


class Box(BaseModel, Generic[T]):
    content: T = Field(validation_alias="Content")


class Wrapper(RootModel[dict[str, Alias]]):
    pass


class Embedded(BaseModel):
    payload: Json[list[int]]


class Lower(BaseModel):
    label: str

    @field_validator("label")
    @classmethod
    def lower(cls, value: str) -> str:
        return value.strip().lower()


class Strict(BaseModel):
    model_config = ConfigDict(strict=True)
    day: dt.date
    tags: set[str]


@dataclass
class Inner:
    x: int = Field(validation_alias="X")


class WithDataclass(BaseModel):
    inner: Inner


class Case(NamedTuple):
    """A type, an answer that fits it, and the example that shows how to write that answer; None if it has none."""

    kind: Any
    answer: str
    example: str | None


SECRETS = '{"password":"hunter2","key":"k-1"}'
LEAVES = (
    '{"amount":"1.10","at":"2024-05-01T12:00:00+02:00","took":"PT1H","data":"raw","colour":"red","tags":["a"],'
    '"counts":{"1":2.0},"pair":[1,"b"]}'
)
DATA = base64.b64encode(b"???").decode()
CASES = {
    case.kind.__name__: case
    for case in (
        Case(Alias, '{"measurement_units": "m"}', '{"measurement_units":"m"}'),
        Case(Choices, '{"unit": "m"}', '{"measurement_units":"m"}'),
        Case(
            Paths,
            '{"names": ["a", "b"], "home": {"city": "Bonn"}}',
            '{"names":["a","b"],"home":{"city":"Bonn"}}',
        ),
        Case(SerialisedName, '{"units": "m"}', '{"units":"m"}'),
        Case(ByName, '{"units": "m"}', '{"units":"m"}'),
        Case(Generated, '{"unitName": "m"}', '{"unitName":"m"}'),
        Case(FieldSerialiser, '{"day": "2024-12-31"}', '{"day":"2024-12-31"}'),
        Case(LossySerialiser, '{"price": 1.25}', '{"price":1.25}'),
        Case(ModelSerialiser, '{"a": 1}', '{"a":1}'),
        Case(Excluded, '{"a": 1, "reasoning": "r", "note": ""}', '{"a":1,"reasoning":"r","note":""}'),
        Case(Number, '{"v": NaN}', '{"v":NaN}'),
        Case(Secrets, SECRETS, SECRETS),
        Case(Converting, '{"cents": 5}', None),
        Case(GermanDay, '{"day": "31.12.2024"}', None),
        Case(ConvertingModel, '{"total": 1, "parts": [1]}', None),
        Case(Computed, '{"a": 1}', '{"a":1}'),
        Case(Private, '{"a": 1}', '{"a":1}'),
        Case(Leaves, LEAVES, LEAVES),
        Case(Encoded, f'{{"data": "{DATA}"}}', f'{{"data":"{DATA.replace("/", "_")}"}}'),
        Case(Decoded, f'{{"data": "{DATA}"}}', f'{{"data":"{DATA}"}}'),
        Case(
            Pet,
            '{"pet": {"kind": "cat", "Lives": 9}, "others": [{"kind": "dog", "name": "Rex"}]}',
            '{"pet":{"kind":"cat","Lives":9},"others":[{"kind":"dog","name":"Rex"}]}',
        ),
        Case(Either, '{"value": true}', '{"value":true}'),
        Case(Box[int], '{"Content": 3}', '{"Content":3}'),
        Case(
            Wrapper, '{"response": {"k": {"measurement_units": "m"}}}', '{"response":{"k":{"measurement_units":"m"}}}'
        ),
        Case(Embedded, '{"payload": "[1, 2]"}', '{"payload":"[1,2]"}'),
        Case(Lower, '{"label": " Good"}', '{"label":"good"}'),
        Case(Strict, '{"day": "2024-12-31", "tags": ["a"]}', '{"day":"2024-12-31","tags":["a"]}'),
        Case(WithDataclass, '{"inner": {"X": 1}}', '{"inner":{"X":1}}'),
    )
}
