"""Values to JSON and back: what is stored, what is refused, and how arguments are made of it."""

import dataclasses
import enum
import json
import math
import threading
import types
import typing
from collections import OrderedDict, defaultdict
from collections.abc import Callable, Mapping
from contextlib import suppress
from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Decimal
from typing import Annotated, Any, Literal, NewType, Optional, TypedDict
from uuid import UUID

import msgspec
import pydantic
import pytest

from conductor_cli import payloads
from conductor_cli.context import AsyncContext, Context
from conductor_cli.errors import PayloadError, TaskDefinitionError
from conductor_cli.results import ResultType
from tests.support.names import named

CONTEXT = object()


class Colour(enum.Enum):
    RED = "red"


class Level(enum.IntEnum):
    HIGH = 3


class Odd(enum.Enum):
    NAN = math.nan


@dataclasses.dataclass
class Address:
    street: str
    number: int = 1


@dataclasses.dataclass
class Grumpy:
    n: int

    def __post_init__(self) -> None:
        raise KeyError("never content")


class Point(msgspec.Struct):
    x: float
    y: float = 0.0


class Options(TypedDict):
    deep: bool


class Model(pydantic.BaseModel):
    n: float


class Text(pydantic.BaseModel):
    n: str


UserId = NewType("UserId", int)
ID = UUID("01890a5d-ac96-774b-bcce-b302099a8057")
MOMENT = datetime(2026, 2, 28, 23, 59, 59, 123456, tzinfo=timezone(timedelta(hours=2)))


def binder(function: Callable[..., Any]) -> payloads.Binder:
    return payloads.Binder(function, (Context, AsyncContext))


def called(function: Callable[..., Any], payload: object) -> Any:
    """What the function returns for a payload, as a runner would call it."""
    made = binder(function)
    args, kwargs = made.bind(payload if isinstance(payload, str) else json.dumps(payload))
    made.give(CONTEXT, args, kwargs)
    return function(*args, **kwargs)


def encode(value: object, **options: Any) -> str:
    return payloads.encode(value, "The payload", **options)


def refusal(function: Callable[..., Any], payload: object) -> str:
    with pytest.raises(PayloadError) as caught:
        binder(function).check("greet", encode(payload))
    return str(caught.value)


# ---------------------------------------------------------------- types, there and back


@pytest.mark.parametrize(
    ("annotation", "value"),
    [
        (str, "Grüße 🐘"),
        (str, ""),
        (int, 0),
        (int, -(2**63)),
        (int, 2**64 - 1),
        (int, 10**60),
        (float, 1e-300),
        (float, 3),
        (bool, False),
        (datetime, MOMENT),
        (datetime, datetime(2026, 1, 1)),
        (date, date(2024, 2, 29)),
        (time, time(12, 30)),
        (timedelta, timedelta(days=-1, microseconds=5)),
        (UUID, ID),
        (Decimal, Decimal("0.1000000000000000000001")),
        (Colour, Colour.RED),
        (Level, Level.HIGH),
        (Address, Address("High Street", 7)),
        (Point, Point(1.5, 2)),
        (Options, {"deep": True}),
        (Model, Model(n=4)),
        (Any, {"a": [None, {"b": 1.5}]}),
        (None, None),
        (Literal["a", "b"], "b"),
        (UserId, 7),
        (Annotated[int, msgspec.Meta(ge=1)], 1),
        (int | None, None),
        (Optional[Model], None),  # noqa: UP045
        (Optional[Model], Model(n=1)),  # noqa: UP045
        (int | str, "x"),
        (list[Address], [Address("a"), Address("b")]),
        (list[Model], [Model(n=1), Model(n=2)]),
        (dict[str, Point], {"p": Point(0)}),
        (dict[int, str], {1: "one"}),
        (dict[UUID, date], {ID: date(2026, 1, 1)}),
        (tuple[int, str], (1, "a")),
        (tuple[int, ...], (1, 2, 3)),
        (set[str], {"a", "b"}),
        (frozenset[Colour], frozenset({Colour.RED})),
        (list[dict[str, list[Decimal]]], [{"a": [Decimal("1.5")]}]),
        (bytes, b"\x00\xff"),
    ],
    ids=named,
)
def test_a_value_comes_back_as_its_annotation_says(annotation: Any, value: Any) -> None:
    def function(value):  # type: ignore[no-untyped-def]
        return value

    function.__annotations__["value"] = annotation
    received = called(function, encode({"value": value}))
    assert received == value
    assert annotation is float or type(received) is type(value)


def test_what_other_json_programs_send_is_converted_too() -> None:
    def function(at: datetime, price: Decimal, wait: timedelta, colour: Colour) -> Any:
        return at, price, wait, colour

    sent = '{"at":"2026-01-01T00:00:00Z","price":1.10,"wait":"PT90S","colour":"red"}'
    assert called(function, sent) == (
        datetime(2026, 1, 1, tzinfo=UTC),
        Decimal("1.10"),
        timedelta(seconds=90),
        Colour.RED,
    )


@pytest.mark.parametrize(
    ("annotation", "sent"),
    [
        (str, 1),
        (int, "1"),
        (int, 1.5),
        (int, True),
        (float, "1"),
        (bool, 1),
        (datetime, "yesterday"),
        (date, "2026-02-29"),
        (UUID, "not-one"),
        (Decimal, "x"),
        (Colour, "blue"),
        (Address, {"number": 1}),
        (Point, {"x": "1"}),
        (Options, {}),
        (Model, {"n": "one"}),
        (Model, {}),
        (Grumpy, {"n": 1}),
        (str, None),
        (list[int], [1, "2"]),
        (tuple[int, str], [1]),
        (Annotated[int, msgspec.Meta(ge=1)], 0),
    ],
    ids=named,
)
def test_a_wrong_value_is_refused_by_the_name_of_its_key(annotation: Any, sent: Any) -> None:
    def function(value):  # type: ignore[no-untyped-def]
        return value

    function.__annotations__["value"] = annotation
    made = binder(function)
    with pytest.raises(PayloadError, match=r"^The payload does not fit: ") as caught:
        made.bind(json.dumps({"value": sent}))
    if annotation not in (Grumpy, Model):  # whose own errors pass through
        assert "$.value" in str(caught.value)


def test_a_message_tells_the_way_into_nested_values() -> None:
    def function(homes: list[Address]) -> None: ...

    text = refusal(function, {"homes": [{"street": "a"}, {"street": 5}]})
    assert text == (
        "The payload for task 'greet' does not fit: Expected 'str', got 'int' "
        "- at '$.homes[1].street'."
    )


# ---------------------------------------------------------------- signatures


def test_a_missing_key_is_named() -> None:
    def function(name: str, age: int) -> None: ...

    text = refusal(function, {"name": "x"})
    assert text == "The payload for task 'greet' does not fit: missing key 'age'."


@pytest.mark.parametrize("sent", [[], "text", 1, None, True])
def test_what_is_not_an_object_has_no_keys(sent: Any) -> None:
    def function(name: str = "x") -> None: ...

    assert "Expected 'object', got" in refusal(function, sent)


def test_defaults_are_the_functions_own() -> None:
    default: list[int] = []

    def function(a: list[int] = default, b: int | None = None, c: Any = 3) -> Any:
        return a, b, c

    assert called(function, {}) == ([], None, 3)
    assert called(function, {})[0] is default
    assert called(function, {"a": [1], "b": 2, "c": None}) == ([1], 2, None)


def test_a_value_equal_to_nothing_is_not_taken_for_a_missing_one() -> None:
    def function(a: Any = 1, b: int = 2, c: str = "x", d: bool = True) -> Any:
        return a, b, c, d

    assert called(function, {"a": None, "b": 0, "c": "", "d": False}) == (None, 0, "", False)


@pytest.mark.parametrize("context", [Context, Context[int], Context | None, Annotated[Context, 1]])
def test_the_context_may_stand_anywhere(context: Any) -> None:
    def first(ctx, a: int, b: int = 2): ...  # type: ignore[no-untyped-def]
    def middle(a: int, ctx, b: int = 2): ...  # type: ignore[no-untyped-def]
    def last(a: int, *, b: int = 2, ctx): ...  # type: ignore[no-untyped-def]
    def first_keyword(*, ctx, a: int, b: int = 2): ...  # type: ignore[no-untyped-def]
    def by_place(a: int, b: int = 2, ctx=None, /): ...  # type: ignore[no-untyped-def]
    def by_place_first(ctx, a: int, /, b: int = 2): ...  # type: ignore[no-untyped-def]

    for function in (first, middle, last, first_keyword, by_place, by_place_first):
        function.__annotations__["ctx"] = context
        made = binder(function)
        args, kwargs = made.bind('{"a": 5}')
        made.give(CONTEXT, args, kwargs)
        bound = made_call(function, args, kwargs)
        assert bound["ctx"] is CONTEXT
        assert bound["a"] == 5
        assert made.parameters == ["a", "b"]


def made_call(function: Any, args: list[Any], kwargs: dict[str, Any]) -> Mapping[str, Any]:
    import inspect

    return inspect.signature(function).bind(*args, **kwargs).arguments


def test_a_wrapper_may_rely_on_a_context_that_comes_first() -> None:
    import functools

    def inner(ctx: Context[Any], name: str) -> Any:
        return ctx, name

    @functools.wraps(inner)
    def wrapper(context: Any, *args: Any, **kwargs: Any) -> Any:
        return inner(context, *args, **kwargs)

    assert called(wrapper, {"name": "x"}) == (CONTEXT, "x")


def test_only_one_parameter_can_receive_the_context() -> None:
    def function(a: Context, b: AsyncContext) -> None: ...

    with pytest.raises(TaskDefinitionError, match=r"function \(.*\): both 'a' and 'b'"):
        binder(function)


def test_keyword_only_and_positional_only_parameters_are_filled() -> None:
    def function(a: int, b: int = 2, c: int = 3, /, d: int = 4, *, e: int) -> Any:
        return a, b, c, d, e

    assert called(function, {"a": 1, "e": 5}) == (1, 2, 3, 4, 5)
    assert called(function, {"a": 1, "c": 30, "e": 5}) == (1, 2, 30, 4, 5)
    assert called(function, {"a": 1, "d": 40, "e": 5}) == (1, 2, 3, 40, 5)


def test_args_without_names_are_refused_at_definition() -> None:
    def function(*names: str) -> None: ...

    with pytest.raises(TaskDefinitionError, match=r"function \(.*test_payloads.py:\d+\): \*names"):
        binder(function)


def test_kwargs_take_all_other_keys() -> None:
    def function(ctx: Context, a: int, **others: Any) -> Any:
        return ctx, a, others

    assert called(function, {"a": 1, "b": [2], "c": None}) == (CONTEXT, 1, {"b": [2], "c": None})
    binder(function).check("greet", '{"a": 1, "b": 2}')


def test_the_annotation_of_kwargs_is_checked_and_names_the_key() -> None:
    def function(a: str, **days: date) -> Any:
        return days

    assert called(function, {"a": "x", "b": "2026-01-02"}) == {"b": date(2026, 1, 2)}
    assert "Invalid RFC3339 encoded date - at '$.b'" in refusal(function, {"a": "x", "b": "c"})


def test_a_payload_cannot_pose_as_the_context() -> None:
    def function(ctx: Context, **others: Any) -> Any:
        return ctx, others

    assert called(function, {"ctx": "evil", "a": 1}) == (CONTEXT, {"a": 1})
    assert "has the key 'ctx', which is the context's name" in refusal(function, {"ctx": 1})


def test_unknown_keys_are_refused_at_invoke_and_dropped_at_execution() -> None:
    def function(name: str, age: int = 1) -> Any:
        return name, age

    assert called(function, {"name": "x", "nmae": 1}) == ("x", 1)
    assert refusal(function, {"name": "x", "nmae": 1}) == (
        "The payload for task 'greet' has the unknown key 'nmae'; it takes name, age."
    )


def test_a_function_without_parameters_takes_an_empty_object() -> None:
    def function() -> str:
        return "called"

    assert called(function, {}) == called(function, {"anything": 1}) == "called"
    assert refusal(function, {"a": 1}).endswith("the unknown key 'a'; it takes no keys at all.")


@pytest.mark.parametrize("sent", [None, 0, "", False, [], {}, [1, {"a": 2}], {"payload": 1}])
def test_a_single_parameter_called_payload_receives_all_of_it(sent: Any) -> None:
    def function(payload): ...  # type: ignore[no-untyped-def]
    def with_context(payload: Any, ctx: Context) -> None: ...
    def by_place(ctx: Context, payload: Any, /) -> None: ...
    def by_keyword(*, payload: Any) -> None: ...

    for each in (function, with_context, by_place, by_keyword):
        made = binder(each)
        args, kwargs = made.bind(json.dumps(sent))
        made.give(CONTEXT, args, kwargs)
        assert made_call(each, args, kwargs)["payload"] == sent
        made.check("greet", json.dumps(sent))


def test_a_whole_payload_is_converted_as_annotated() -> None:
    def function(payload: Address) -> Any:
        return payload

    assert called(function, {"street": "a"}) == Address("a")
    assert "missing key 'street'" in refusal(function, {})


def test_a_whole_payload_with_a_default_may_be_left_out() -> None:
    def function(payload: dict[str, int] = {"a": 1}) -> Any:  # noqa: B006
        return payload

    assert called(function, None) == {"a": 1}
    assert called(function, {}) == {}


def test_payload_beside_another_parameter_is_a_key_like_any_other() -> None:
    def function(payload: int, other: int) -> Any:
        return payload, other

    assert called(function, {"payload": 1, "other": 2}) == (1, 2)


def test_kwargs_called_payload_are_keys() -> None:
    def function(**payload: int) -> Any:
        return payload

    assert called(function, {"a": 1}) == {"a": 1}


def test_parameters_may_have_any_name() -> None:
    def function(_hidden: int, class_: int, copy: int, json: int, __init: int = 0) -> Any:
        return _hidden, class_, copy, json

    assert called(function, {"_hidden": 1, "class_": 2, "copy": 3, "json": 4}) == (1, 2, 3, 4)


def test_arguments_become_the_payload_that_makes_them() -> None:
    def function(ctx: Context, a: int, b: int = 2, *, c: int = 3) -> None: ...
    def whole(ctx: Context, payload: Any = None) -> None: ...

    assert binder(function).payload((1,), {"c": 5}) == {"a": 1, "c": 5}
    assert binder(function).payload((1, 2), {}) == {"a": 1, "b": 2}
    assert binder(whole).payload(([1],), {}) == [1]
    assert binder(whole).payload((), {"payload": 7}) == 7
    assert binder(whole).payload((), {"a": 1, "b": 2}) == {"a": 1, "b": 2}
    assert binder(whole).payload((), {}) is None
    with pytest.raises(TypeError, match="takes 2 positional arguments, not 3"):
        binder(function).payload((1, 2, 3), {})
    with pytest.raises(TypeError, match="two values for 'a'"):
        binder(function).payload((1,), {"a": 1})
    with pytest.raises(TypeError, match="takes one value, the whole payload"):
        binder(whole).payload((1,), {"a": 1})


# ---------------------------------------------------------------- definitions that cannot work


def test_an_annotation_that_cannot_be_resolved_says_what_to_do() -> None:
    def function(a: "Missing") -> None: ...  # type: ignore[name-defined] # noqa: F821

    with pytest.raises(TaskDefinitionError, match=r"'Missing' is not defined.*TYPE_CHECKING"):
        binder(function)


def test_an_annotation_that_is_no_type_names_the_place() -> None:
    def function(a: "1 +") -> None: ...  # type: ignore[syntax] # noqa: F722

    with pytest.raises(TaskDefinitionError, match=r"function \(.*: its signature cannot be read"):
        binder(function)


@pytest.mark.parametrize("annotation", [Point | Address, Callable[[], int], threading.Thread])
def test_an_annotation_that_json_cannot_fill_is_refused_or_fails_clearly(annotation: Any) -> None:
    def function(a): ...  # type: ignore[no-untyped-def]

    function.__annotations__["a"] = annotation
    with pytest.raises((TaskDefinitionError, PayloadError), match=r"annotations|cannot be read"):
        binder(function).bind('{"a": {}}')


def test_kwargs_of_a_type_json_cannot_fill_are_refused() -> None:
    def function(**a: Point | Address) -> None: ...

    with pytest.raises(TaskDefinitionError, match="cannot be bound to its annotations"):
        binder(function)


# ---------------------------------------------------------------- what a payload in a row may do


@pytest.mark.parametrize(
    "sent",
    [
        "[" * 100_000 + "]" * 100_000,
        '{"a": ' + "[" * 100_000 + "]" * 100_000 + "}",
        '{"unknown": ' + "[" * 100_000 + "]" * 100_000 + "}",
        '{"a": 1e400}',
        '{"a": ',
        "",
        '{"a": "\\ud800"}',
    ],
    ids=["deep", "deep value", "deep and unknown", "too large", "cut", "empty", "surrogate"],
)
def test_hostile_json_is_a_payload_error_and_nothing_else(sent: str) -> None:
    def plain(a: Any = 1) -> None: ...
    def every(**a: Any) -> None: ...
    def whole(payload: Any) -> None: ...

    for function in (plain, every, whole):
        with pytest.raises(PayloadError):
            binder(function).bind(sent)


def test_a_number_too_large_in_an_unknown_key_is_dropped_with_it() -> None:
    def plain(a: int = 1) -> Any:
        return a

    def every(a: int = 1, **others: Any) -> Any:
        return a

    assert called(plain, '{"b": 1e400}') == 1
    with pytest.raises(PayloadError, match="out of range"):
        binder(every).bind('{"b": 1e400}')


# ---------------------------------------------------------------- encoding


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "null"),
        ("null", '"null"'),
        ("\\u0000", '"\\\\u0000"'),
        ("\\\\u0000", '"\\\\\\\\u0000"'),
        ("\x01\x1f", '"\\u0001\\u001f"'),
        ("\ufffe", '"\ufffe"'),
        ({"a": None, "b": 0.0}, '{"a":null,"b":0.0}'),
        ({1: 2}, '{"1":2}'),
        (defaultdict(int, a=1), '{"a":1}'),
        (OrderedDict(a=1), '{"a":1}'),
        (types.MappingProxyType({"a": 1}), '{"a":1}'),
        (type("Text", (str,), {})("x"), '"x"'),
        (type("Number", (float,), {})(1.5), "1.5"),
        (type("Whole", (int,), {})(7), "7"),
        (timedelta(minutes=1), '"PT60S"'),
        (MOMENT, '"2026-02-28T23:59:59.123456+02:00"'),
        (Level.HIGH, "3"),
        (2**70, "1180591620717411303424"),
        ([Model(n=1)], '[{"n":1.0}]'),
    ],
)
def test_these_values_are_stored_so(value: object, text: str) -> None:
    assert encode(value) == text


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf, type("F", (float,), {})("nan")])
@pytest.mark.parametrize(
    "wrap",
    [
        lambda x: x,
        lambda x: [None, x],
        lambda x: {"a": {"b": (1, x)}},
        Point,
        lambda x: [Address(x)],
        lambda x: Model(n=x),
        lambda x: {"a": [Model(n=x)]},
        lambda x: {x},
    ],
)
def test_numbers_that_json_lacks_are_refused_at_any_depth(number: float, wrap: Any) -> None:
    with pytest.raises(PayloadError, match=r"^The payload has (nan|-?inf) at \$.*JSON has no"):
        encode(wrap(number))


def test_an_enum_of_nan_is_refused() -> None:
    with pytest.raises(PayloadError, match=r"has nan at \$\.a,"):
        encode({"a": Odd.NAN, "b": None})


def test_the_message_tells_where_a_nan_is() -> None:
    with pytest.raises(PayloadError, match=r"at \$\.rows\[2\]\.x,"):
        encode({"rows": [None, None, Point(math.nan)]})


@pytest.mark.parametrize(
    "value",
    ["\0", "a\0b", {"\0": 1}, {"a": ["x", {"b": "\0"}]}, Address("\0"), "\\\0", Text(n="\0")],
)
def test_nul_is_refused_wherever_it_is(value: object) -> None:
    with pytest.raises(PayloadError, match="contains the character NUL"):
        encode(value)


@pytest.mark.parametrize("value", ["\ud800", {"a": ["\udfff"]}, {"\ud800": 1}, Address("\ud800")])
def test_lone_surrogates_are_refused(value: object) -> None:
    with pytest.raises(PayloadError, match=r"^The payload cannot be stored as JSON: .*surrogate"):
        encode(value)


def test_cycles_and_endless_nesting_are_refused() -> None:
    endless: list[Any] = []
    endless.append(endless)
    ring: dict[str, Any] = {"a": {}}
    ring["a"]["b"] = ring
    deep: list[Any] = []
    for _ in range(100_000):
        deep = [deep]
    for value in (endless, ring, deep):
        with pytest.raises(PayloadError, match="contains itself, or is nested too deeply"):
            encode(value)
    while deep:  # not left to the interpreter, which would recurse
        deep = deep.pop()


@pytest.mark.parametrize("depth", range(50, 1200, 50))
@pytest.mark.parametrize("leaf", [1, None, "\0", math.nan])
def test_any_depth_is_stored_or_refused(depth: int, leaf: object) -> None:
    value: object = leaf
    for _ in range(depth):
        value = [value]
    with suppress(PayloadError):
        assert encode(value) == "[" * depth + json.dumps(leaf) + "]" * depth


@pytest.mark.parametrize(
    "value",
    [
        object(),
        1j,
        (i for i in "a"),
        print,
        int,
        ValueError("x"),
        range(3),
        {(1, 2): 3},
        {None: 1},
        types.SimpleNamespace(a=1),
        10**10_000,
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_json_has_no_place_for_is_refused(value: object) -> None:
    with pytest.raises(PayloadError, match=r"^The payload cannot be stored as JSON: .{10,}\.$"):
        encode(value)


def test_a_value_whose_repr_fails_or_is_endless_is_refused_in_one_short_line() -> None:
    class Rude:
        def __repr__(self) -> str:
            raise ZeroDivisionError

    class Long:
        def __repr__(self) -> str:
            return "x" * 1_000_000

    with pytest.raises(PayloadError, match="Rude has no place in JSON"):
        encode(Rude())
    with pytest.raises(PayloadError) as caught:
        encode([Long()])
    assert len(str(caught.value)) < 200


def test_a_model_that_fails_is_refused() -> None:
    class Broken(Model):
        @pydantic.model_serializer
        def write(self) -> dict[str, Any]:
            raise LookupError("no such column")

    with pytest.raises(PayloadError, match="no such column"):
        encode(Broken(n=1))


def test_the_size_limit_counts_bytes_and_says_what_to_do() -> None:
    assert encode("ä" * 4, limit=10) == '"ääää"'
    with pytest.raises(PayloadError, match=r"is 12 bytes .* limit is 10 \(\[tasks\] max_payload"):
        encode("ä" * 5, limit=10)
    assert len(encode("x" * 2_000_000, limit=None)) == 2_000_002


def test_a_mebibyte_is_the_default_limit() -> None:
    assert encode("x" * (1024 * 1024 - 2))
    with pytest.raises(PayloadError, match="1,048,577 bytes"):
        encode("x" * (1024 * 1024 - 1))


# ---------------------------------------------------------------- results


def result_of(annotation: Any) -> ResultType:
    def function(): ...  # type: ignore[no-untyped-def]

    function.__annotations__["return"] = annotation
    return ResultType.of(function)


@pytest.mark.parametrize("value", [None, 0, "", False, [], {}, 0.0])
def test_falsy_results_stay_what_they_are(value: object) -> None:
    def unannotated(): ...  # type: ignore[no-untyped-def]

    kinds = [ResultType.of(unannotated), result_of(Any), result_of(type(value) | None)]
    for kind in kinds:
        decoded = kind.decode(encode(value))
        assert decoded == value
        assert type(decoded) is type(value)


@pytest.mark.parametrize(
    ("annotation", "value"),
    [
        (datetime, MOMENT),
        (Optional[datetime], None),  # noqa: UP045
        (Address | None, Address("a")),
        (list[Model], [Model(n=1)]),
        (tuple[int, date], (1, date(2026, 1, 1))),
        (set[UUID], {ID}),
        (Options, {"deep": False}),
        (None, None),
    ],
)
def test_a_result_is_read_again_as_annotated(annotation: Any, value: Any) -> None:
    decoded = result_of(annotation).decode(encode(value))
    assert decoded == value
    assert type(decoded) is type(value)


@pytest.mark.parametrize("annotation", [None, object, typing.NoReturn, typing.Never])
def test_annotations_that_promise_nothing_give_plain_json(annotation: Any) -> None:
    assert result_of(annotation).decode('{"a": [1]}') == {"a": [1]}


@pytest.mark.parametrize("text", ['"x"', "[" * 100_000 + "]" * 100_000, "{"])
def test_a_result_that_does_not_fit_is_a_payload_error(text: str) -> None:
    with pytest.raises(PayloadError, match=r"^The result does not fit the return annotation"):
        result_of(list[int]).decode(text)


def test_a_return_annotation_that_json_cannot_fill_is_refused_with_its_place() -> None:
    def function() -> Point | Address: ...  # type: ignore[empty-body]

    with pytest.raises(TaskDefinitionError, match=r"function \(.*test_payloads.py:\d+\): a result"):
        ResultType.of(function)
