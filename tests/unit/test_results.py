"""A corpus of types: what a step returns comes back equal, on the first run and on each replay, or
is refused. What cannot be stored by its type alone is refused before the step is run."""

from __future__ import annotations

import collections
import dataclasses
import datetime as dt
import decimal
import enum
import typing
import uuid
from typing import Annotated, Any, Generic, Literal, NamedTuple, Optional, TypeVar, Union

import msgspec
import pydantic
import pytest

from conductor_cli import payloads
from conductor_cli.context import Context
from conductor_cli.errors import PayloadError, TaskDefinitionError
from conductor_cli.results import ResultType

T = TypeVar("T")
LIMIT = 1024 * 1024


class Camel(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(alias_generator=lambda name: name.replace("_i", "I"))
    order_id: int


class Alias(pydantic.BaseModel):
    id: int = pydantic.Field(alias="_id")


class TwoAliases(pydantic.BaseModel):
    id: int = pydantic.Field(validation_alias="in", serialization_alias="out")


class Paths(pydantic.BaseModel):
    id: int = pydantic.Field(validation_alias=pydantic.AliasPath("a", 0))


class Strict(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(strict=True)
    at: dt.datetime
    id: uuid.UUID
    kinds: tuple[int, ...]


class Computed(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(extra="forbid")
    w: int

    @pydantic.computed_field  # type: ignore[prop-decorator]
    @property
    def area(self) -> int:
        return self.w**2


class Extra(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(extra="allow")
    a: int


class Frozen(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(frozen=True)
    a: int


class Cat(pydantic.BaseModel):
    kind: Literal["cat"] = "cat"
    name: str


class Dog(pydantic.BaseModel):
    kind: Literal["dog"] = "dog"
    name: str


class Red(pydantic.BaseModel):
    a: int


class Blue(pydantic.BaseModel):
    a: int


class Box(pydantic.BaseModel, Generic[T]):
    content: T


class Tree(pydantic.BaseModel):
    leaves: list[Tree] = []


class Ids(pydantic.RootModel[list[uuid.UUID]]):
    pass


class Told(pydantic.BaseModel):
    token: pydantic.SecretStr

    @pydantic.field_serializer("token", when_used="json")
    def reveal(self, value: pydantic.SecretStr) -> str:
        return value.get_secret_value()


class Private(pydantic.BaseModel):
    a: int
    _cache: dict[str, int] = pydantic.PrivateAttr(default_factory=dict)


class WithDefault(pydantic.BaseModel):
    a: int = 1
    at: dt.datetime | None = None


@pydantic.dataclasses.dataclass
class Checked:
    a: Annotated[int, pydantic.Field(gt=0)]


@dataclasses.dataclass
class Address:
    street: str
    moved: dt.date | None = None


@dataclasses.dataclass
class Household:
    pets: list[Cat | Dog]
    home: Address


class Point(msgspec.Struct):
    x: float


class Spot(Point):
    y: float = 0.0


class Holder(msgspec.Struct):
    alias: Alias


class Pair(NamedTuple):
    a: int
    b: str


class Options(typing.TypedDict):
    deep: bool


class Colour(enum.Enum):
    RED = "red"


class Word(enum.StrEnum):
    YES = "yes"


NOW = dt.datetime(2026, 3, 29, 2, 30, tzinfo=dt.UTC)
ID = uuid.UUID(int=7)

EQUAL: list[tuple[Any, Any]] = [
    (Camel, Camel(orderId=1)),
    (Alias, Alias(_id=1)),
    (list[Alias], [Alias(_id=1)]),
    (dict[str, Alias], {"a": Alias(_id=1)}),
    (Alias | None, None),
    (Optional[Alias], Alias(_id=2)),  # noqa: UP045
    (tuple[Alias, int], (Alias(_id=2), 1)),
    (TwoAliases, TwoAliases(**{"in": 3})),
    (Paths, Paths(a=[3])),
    (Strict, Strict(at=NOW, id=ID, kinds=(1, 2))),
    (Computed, Computed(w=2)),
    (Extra, Extra(a=1, b="x")),  # type: ignore[call-arg]
    (Frozen, Frozen(a=1)),
    (Cat | Dog, Dog(name="x")),
    (list[Cat | Dog], [Cat(name="a"), Dog(name="b")]),
    (Annotated[Union[Cat, Dog], pydantic.Field(discriminator="kind")], Dog(name="b")),  # noqa: UP007
    (Annotated[int, pydantic.Field(gt=0)], 3),
    (list[Annotated[int, pydantic.Field(gt=0)]], [3]),
    (pydantic.PositiveInt, 3),
    (pydantic.AnyUrl, pydantic.AnyUrl("https://example.org/")),
    (Box[int], Box[int](content=1)),
    (Box[Alias], Box[Alias](content=Alias(_id=1))),
    (Tree, Tree(leaves=[Tree(), Tree(leaves=[Tree()])])),
    (Ids, Ids([ID])),
    (Told, Told(token="s3cret")),  # type: ignore[arg-type]
    (Private, Private(a=1)),
    (WithDefault, WithDefault(at=NOW)),
    (Checked, Checked(a=1)),
    (Household, Household([Cat(name="a"), Dog(name="b")], Address("High Street"))),
    (Holder, Holder(Alias(_id=1))),
    (pydantic.TypeAdapter(list[Alias]), [Alias(_id=1)]),
    (Address, Address("x", dt.date(2024, 2, 29))),
    (Point, Point(1.5)),
    (Pair, Pair(1, "x")),
    (Options, {"deep": True}),
    (Colour, Colour.RED),
    (Word, Word.YES),
    (list[Colour], [Colour.RED]),
    (dict[Colour, int], {Colour.RED: 1}),
    (uuid.UUID, ID),
    (dict[uuid.UUID, int], {ID: 1}),
    (dict[int, str], {1: "x"}),
    (dt.datetime, NOW),
    (dt.datetime, dt.datetime(2026, 1, 1)),
    (dt.date, dt.date(2026, 1, 1)),
    (dt.time, dt.time(1, 2, 3, 4)),
    (dt.timedelta, dt.timedelta(days=-1, microseconds=1)),
    (decimal.Decimal, decimal.Decimal("1.50")),
    (bytes, b"\0\xff"),
    (set[int], {1, 2}),
    (frozenset[str], frozenset("ab")),
    (tuple[int, str], (1, "x")),
    (int | str, "1"),
    (float, 3),
    (Any, {"a": [1, 2.5, None, True, "x"]}),
    (Any, (1, 2)),
    (None, None),
    (dict[str, Any], collections.OrderedDict(a=1)),
    (int, 10**30),
]


@pytest.mark.parametrize(
    ("annotation", "value"), EQUAL, ids=[f"{i}-{str(a)[-40:]}" for i, (a, _) in enumerate(EQUAL)]
)
def test_a_result_comes_back_equal_on_the_first_run_and_on_a_replay(
    annotation: Any, value: Any
) -> None:
    kind = ResultType(annotation, "f")

    text, first = kind.encode(value, "The result of step 'x'", LIMIT)
    replayed = ResultType(annotation, "f").decode(text)

    assert first == replayed
    if annotation is not Any and not isinstance(value, collections.OrderedDict):
        assert first == value
        assert type(first) is type(value) or annotation is float


REFUSED: list[tuple[Any, Any, str]] = [
    (Any, ID, "a UUID at \\$, which would come back as str"),
    (Any, NOW, "a datetime at \\$"),
    (Any, {"at": NOW}, "a datetime at \\$.at"),
    (Any, [decimal.Decimal("1.5")], "a Decimal at \\$\\[0\\]"),
    (Any, {1, 2}, "a set at \\$"),
    (Any, {1: "a"}, "a int at \\$.1"),
    (Any, b"x", "a bytes at \\$"),
    (Any, Colour.RED, "a Colour at \\$"),
    (Any, Word.YES, "a Word at \\$"),
    (Any, Address("x"), "a Address at \\$"),
    (Any, Point(1.0), "a Point at \\$"),
    (Any, Alias(_id=1), "a Alias at \\$"),
    (Any, Pair(1, "x"), "a Pair at \\$"),
    (Any, dt.timedelta(1), "a timedelta at \\$"),
    (dict[str, Any], {"id": ID}, "a UUID at \\$.id"),
    (str, ID, "a UUID at \\$"),
    (Point, Spot(1.0, 2.0), "a Spot at \\$, which would come back as Point"),
    (list[Point], [Spot(1.0)], "a Spot at \\$\\[0\\]"),
    (Red | Blue, Blue(a=1), "a Blue at \\$, which would come back as Red"),
    (int, 12.5, "does not fit"),
    (int, "12", "does not fit"),
    (Annotated[int, pydantic.Field(gt=0)], 0, "greater than 0"),
    (Checked, Address("x"), "does not fit"),
    (Alias, {"nope": 1}, "Field required"),
    (list[int], None, "does not fit"),
    (Any, object(), "has no place in JSON"),
    (Any, "x" * (LIMIT + 1), "the limit is"),
]


@pytest.mark.parametrize(("annotation", "value", "why"), REFUSED)
def test_what_would_come_back_as_something_else_is_refused(
    annotation: Any, value: Any, why: str
) -> None:
    kind = ResultType(annotation, "f")

    with pytest.raises(PayloadError, match=why):
        kind.encode(value, "The result of step 'x'", LIMIT)


def test_a_refusal_names_the_step_and_what_to_write() -> None:
    with pytest.raises(PayloadError, match=r"Step\('pay', returns=\.\.\.\)"):
        ResultType(Any, "f").encode(ID, "The result of step 'pay'", LIMIT)


class Excluded(pydantic.BaseModel):
    a: int
    b: str = pydantic.Field(exclude=True)


class Secret(pydantic.BaseModel):
    token: pydantic.SecretStr


class Deep(pydantic.BaseModel):
    inner: list[Secret]


@pytest.mark.parametrize("annotation", [Excluded, Secret, Deep, list[Secret], Secret | None])
def test_what_its_type_says_cannot_be_stored_is_refused_before_the_step_runs(
    annotation: Any,
) -> None:
    with pytest.raises(TaskDefinitionError, match=r"cannot be stored: field '(b|token)' of"):
        ResultType(annotation, "f")


@pytest.mark.parametrize("value", [Excluded(a=1, b="x"), Secret(token="s")])  # type: ignore[arg-type]
def test_a_payload_that_would_not_come_back_is_refused_when_it_is_sent(value: object) -> None:
    with pytest.raises(PayloadError, match="The payload cannot be stored as JSON"):
        payloads.encode({"order": value}, "The payload")


def test_a_class_in_place_of_a_function_returns_its_instances() -> None:
    text, read = ResultType.of(Address).encode(Address("x"), "The result of step 'x'", LIMIT)

    assert read == Address("x")
    assert text == '{"street":"x","moved":null}'


# Payloads.


def takes(
    order: Alias, count: Annotated[int, pydantic.Field(gt=0)] = 1, pet: Cat | Dog | None = None
):  # type: ignore[no-untyped-def]
    return order, count, pet


def whole(payload: list[Cat | Dog]) -> None: ...


def others(**orders: Alias) -> None: ...


def bound(function: Any, payload: object) -> dict[str, Any]:
    binder = payloads.Binder(function, (Context,))
    text = payloads.encode(payload, "The payload")
    binder.check("task", text)
    return binder.bind(text)[1]


def test_models_in_payloads_come_back_equal_and_aliases_are_taken_from_others() -> None:
    sent = {"order": Alias(_id=5), "count": 2, "pet": Dog(name="x")}

    assert bound(takes, sent) == sent
    assert bound(takes, {"order": {"_id": 5}}) == {"order": Alias(_id=5)}
    assert bound(whole, [Cat(name="a")]) == {"payload": [Cat(name="a")]}
    assert bound(others, {"x": Alias(_id=1)}) == {"x": Alias(_id=1)}


@pytest.mark.parametrize(
    ("payload", "why"),
    [
        ({"order": {}}, r"Field required .*at '\$\.order\.(_id|id)'"),
        ({"order": {"_id": 1}, "count": 0}, r"greater than 0 - at '\$\.count'"),
        ({"order": {"_id": 1}, "pet": {"kind": "cow"}}, r"'\$\.pet"),
        ({"order": {"_id": 1}, "other": 1}, "unknown key 'other'"),
        ({}, "missing key 'order'"),
    ],
)
def test_a_payload_that_does_not_fit_names_the_key(payload: object, why: str) -> None:
    with pytest.raises(PayloadError, match=why):
        bound(takes, payload)
