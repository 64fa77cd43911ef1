"""An exception that is stored comes back as it was, or as an instance of its class that says so."""

from __future__ import annotations

import asyncio
import pickle
import subprocess
import sys
import uuid
from datetime import UTC, datetime
from decimal import Decimal
from enum import Enum
from typing import TYPE_CHECKING, Any, NoReturn

import msgspec
import pytest
from sqlalchemy.exc import IntegrityError

from conductor_cli import stored_error
from conductor_cli.errors import ChildFailed, EventTimedOut, PayloadError
from conductor_cli.models import ExecutionError

if TYPE_CHECKING:
    from collections.abc import Callable


class ApiError(Exception):
    def __init__(self, code: int, body: str) -> None:
        self.code = code
        super().__init__(code, body)

    def __str__(self) -> str:
        return f"API said {self.code}"


class Coded(Exception):
    def __new__(cls, code: int, text: str) -> Coded:
        return super().__new__(cls, code, text)

    def __init__(self, code: int, text: str) -> None:
        super().__init__(code, text)


class Slotted(Exception):
    __slots__ = ("code",)

    def __init__(self, *, code: int) -> None:
        self.code = code
        super().__init__(f"code {code}")


class OnlyByKeyword(Exception):
    def __init__(self, *, user: str) -> None:
        super().__init__()
        self.user = user

    def __str__(self) -> str:
        return f"unknown user {self.user}"


class Both(ValueError, OSError):
    pass


class NotFound(FileNotFoundError):
    def __init__(self, path: str) -> None:
        self.path = path
        super().__init__(2, "no such thing", path)


class WithHandle(Exception):
    def __init__(self, text: str, handle: object) -> None:
        self.status = 503
        self.handle = handle
        super().__init__(text)


class CountsItsTexts(Exception):
    told = 0

    def __str__(self) -> str:
        CountsItsTexts.told += 1
        return f"told {CountsItsTexts.told} times"


class BreaksItsText(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no")


class RefusesHeirs(Exception):
    def __init_subclass__(cls, **_: Any) -> None:
        raise TypeError("may not be derived from")

    def __str__(self) -> str:
        return f"{id(self)}"


class ReadOnly(Exception):
    def __init__(self, code: int) -> None:
        super().__init__(code)
        self.__dict__["code"] = code

    def __setattr__(self, name: str, value: object) -> NoReturn:
        raise AttributeError("is frozen")


class Colour(Enum):
    RED = 1


def _raised(cause: Callable[[], object]) -> Exception:
    try:
        cause()
    except Exception as error:
        return error
    raise AssertionError("raised nothing")


def _group() -> None:
    async def fail() -> NoReturn:
        raise ApiError(503, "busy")

    async def two() -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(fail())

    asyncio.run(two())


REBUILT: dict[str, Callable[[], object]] = {
    "attributes set by the constructor": lambda: _throw(ApiError(503, "busy")),
    "a __new__ of its own": lambda: _throw(Coded(1, "x")),
    "slots": lambda: _throw(Slotted(code=3)),
    "keyword arguments only": lambda: _throw(OnlyByKeyword(user="ann")),
    "two bases in C": lambda: _throw(Both(2, "both")),
    "no constructor's arguments in args": lambda: subprocess.run(["false"], check=True),
    "KeyError": lambda: {}["customer"],  # type: ignore[misc]
    "UnicodeDecodeError": b"\xff".decode,
    "ZeroDivisionError": lambda: 1 / 0,
    "FileNotFoundError": lambda: open("/no/such/file"),  # noqa: SIM115
    "a file's name by an own constructor": lambda: _throw(NotFound("/tmp/x")),
    "ImportError": lambda: __import__("no_such_module_of_this_name"),
    "AttributeError": lambda: object().nothing,  # type: ignore[attr-defined]
    "StopIteration": lambda: next(iter(())),
    "a group": _group,
    "a group in a group": lambda: _throw(
        ExceptionGroup("outer", [ExceptionGroup("inner", [ValueError(1)]), Coded(2, "y")])
    ),
    "an exception in an attribute": lambda: _throw(
        IntegrityError("insert", {}, ValueError("duplicate key"))
    ),
    "values beyond JSON": lambda: _throw(
        ValueError(
            uuid.UUID(int=7), datetime.now(UTC), Decimal("1.50"), (1, (2,)), b"\0", Colour.RED
        )
    ),
    "NaN and infinity": lambda: _throw(ValueError(float("inf"))),
    "keys that look like ours": lambda: _throw(ValueError({"$tuple": [1]}, {"$x": {"$y": 1}})),
    "NUL": lambda: _throw(ValueError("a\0b")),
    "no message": lambda: _throw(ValueError()),
    "one of ours": lambda: _throw(PayloadError("does not fit")),
    "one of ours with attributes": lambda: _throw(
        ChildFailed(uuid.UUID(int=1), "child", ExecutionError("ValueError", "x", None))
    ),
    "one of ours that is a TimeoutError": lambda: _throw(EventTimedOut("paid")),
    "a class with a frozen __setattr__": lambda: _throw(ReadOnly(7)),
}


def _throw(error: Exception) -> NoReturn:
    raise error


@pytest.mark.parametrize("cause", REBUILT.values(), ids=REBUILT)
def test_an_exception_comes_back_equal(cause: Callable[[], object]) -> None:
    first = _raised(cause)

    again = stored_error.decode(stored_error.encode(first))

    _assert_same(first, again)


def _assert_same(first: BaseException, again: BaseException) -> None:
    assert type(again) is type(first)
    assert str(again) == str(first)
    if isinstance(first, BaseExceptionGroup):
        assert isinstance(again, BaseExceptionGroup)
        for one, other in zip(first.exceptions, again.exceptions, strict=True):
            _assert_same(one, other)
        return
    assert repr(again.args) == repr(first.args)
    for name, value in _attributes(first).items():
        found = getattr(again, name)
        if isinstance(value, BaseException):
            _assert_same(value, found)
        else:
            assert found == value


def _attributes(error: BaseException) -> dict[str, Any]:
    names = [*vars(error), *("errno", "strerror", "filename", "name", "path", "returncode", "code")]
    return {name: getattr(error, name) for name in names if hasattr(error, name)}


NOT_REBUILT: dict[str, Exception] = {
    "an attribute that JSON has no place for": WithHandle("busy", object()),
    "a text that changes": CountsItsTexts(),
    "an argument that JSON has no place for": ValueError(object()),
    "very much": ValueError("x" * 100_000),
    "itself inside": ValueError([]),
    "a set": ValueError({1, 2}),
    "a lone surrogate": ValueError("\ud800"),
}
NOT_REBUILT["itself inside"].args[0].append(NOT_REBUILT["itself inside"])


@pytest.mark.parametrize("first", NOT_REBUILT.values(), ids=NOT_REBUILT)
def test_what_cannot_be_rebuilt_is_an_instance_of_its_class_with_the_stored_text(
    first: Exception,
) -> None:
    text = stored_error.encode(first)

    again = stored_error.decode(text)

    assert isinstance(again, type(first))
    assert type(again).__name__ == type(first).__name__
    assert str(again) == _message(text)
    twice = stored_error.decode(stored_error.encode(again))
    assert isinstance(twice, type(first))
    assert str(twice) == str(again)


def _message(text: str) -> str:
    message: str = msgspec.json.decode(text)["message"]
    return message


def test_what_was_kept_of_a_stand_in_can_be_read_and_what_was_not_is_told() -> None:
    again = stored_error.decode(stored_error.encode(WithHandle("busy", object())))

    assert again.status == 503  # type: ignore[attr-defined]
    with pytest.raises(AttributeError, match="'handle' of this WithHandle was not kept"):
        again.handle  # type: ignore[attr-defined]  # noqa: B018


def test_an_exception_whose_text_cannot_be_had_comes_back() -> None:
    again = stored_error.decode(stored_error.encode(BreaksItsText("x")))

    assert isinstance(again, BreaksItsText)


def test_a_class_that_may_not_be_derived_from_is_told_by_a_plain_exception() -> None:
    again = stored_error.decode(stored_error.encode(RefusesHeirs("x")))

    assert type(again).__name__ == "RefusesHeirs"
    assert isinstance(again, Exception)


def test_a_class_that_is_not_loaded_is_a_plain_exception_of_its_name() -> None:
    text = '{"type": "no.such.module.Gone", "message": "is away", "traceback": null}'

    again = stored_error.decode(text)

    assert type(again).__qualname__ == "Gone"
    assert str(again) == "is away"


def test_a_name_in_the_database_imports_nothing() -> None:
    stored_error.decode('{"type": "antigravity.Error", "message": ""}')

    assert "antigravity" not in sys.modules


def test_a_name_that_is_no_exception_is_not_called() -> None:
    again = stored_error.decode('{"type": "os.system", "message": "true"}')

    assert isinstance(again, Exception)
    assert str(again) == "true"


def test_notes_are_kept() -> None:
    error = ValueError("x")
    error.add_note("while paying")

    again = stored_error.decode(stored_error.encode(error))

    assert again.__notes__ == ["while paying"]


def test_a_group_whose_members_were_not_kept_is_a_group_still() -> None:
    group = ExceptionGroup("many", [ValueError("x" * 70_000)])

    again = stored_error.decode(stored_error.encode(group))

    assert isinstance(again, ExceptionGroup)
    assert str(again) == str(group)


def test_a_stand_in_can_be_pickled() -> None:
    again = stored_error.decode(stored_error.encode(WithHandle("busy", object())))

    copy = pickle.loads(pickle.dumps(again))

    assert isinstance(copy, WithHandle)
    assert str(copy) == "busy"


def test_the_stored_text_is_read_as_an_execution_error() -> None:
    stored = msgspec.json.decode(stored_error.encode(_raised(lambda: 1 / 0)), type=ExecutionError)

    assert (stored.type, stored.message) == ("ZeroDivisionError", "division by zero")
    assert "1 / 0" in (stored.traceback or "")
