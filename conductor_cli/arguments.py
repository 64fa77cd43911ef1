"""What callers pass, checked at the door of a public method.

What is of a wrong type raises TypeError, a wrong value of the right type ValueError, with a
sentence that names the argument, the value and what is expected. What is inside a payload is the
user's data: that raises PayloadError.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Final
from uuid import UUID

from conductor_cli.models import State

SHOWN: Final = 100  # characters of a value in a message
LONGEST_TEXT: Final = 10_000
MOST: Final = 2**31 - 1


def shown(value: object) -> str:
    """A value in a message: its ``repr``, cut, whatever that does."""
    try:
        text = repr(value)
    except Exception:  # a number of 5,000 digits, or a class of somebody's own
        text = f"<{type(value).__qualname__}>"
    return text if len(text) <= SHOWN else f"{text[: SHOWN - 3]}..."


def as_id(value: object, what: str = "id") -> UUID:
    """An execution's id, given as a UUID or as its text."""
    if type(value) is UUID:
        return value
    if isinstance(value, UUID):
        return UUID(int=value.int)
    if isinstance(value, str):
        try:
            return UUID(value)
        except ValueError:
            raise ValueError(
                f"{what}={shown(value)} is not the id of an execution: expected a UUID, such as "
                "invoke() returns, or its text"
            ) from None
    raise TypeError(
        f"{what}={shown(value)} is not the id of an execution: expected a UUID or its text, not "
        f"{_kind(value)}"
    )


def as_text(value: object, what: str, most: int = LONGEST_TEXT, *, least: int = 0) -> str:
    """A text that Postgres can store."""
    if not isinstance(value, str):
        raise TypeError(f"{what}={shown(value)} is not a text, but {_kind(value)}")
    if not least <= len(value) <= most:
        raise ValueError(f"{what}={shown(value)} is not a text of {least} to {most:,} characters")
    if "\0" in value:
        raise ValueError(f"{what}={shown(value)} holds the character NUL, which Postgres refuses")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise ValueError(
            f"{what}={shown(value)} holds half a character (a lone surrogate), which is not UTF-8; "
            "decode the bytes it came from with their right encoding"
        ) from None
    return value


def as_moment(value: object, what: str) -> datetime:
    """A moment, in UTC."""
    if not isinstance(value, datetime):
        raise TypeError(
            f"{what}={shown(value)} is not a moment: expected a datetime with a time zone, not "
            f"{_kind(value)}"
        )
    if value.utcoffset() is None:
        raise ValueError(
            f"{what}={shown(value)} has no time zone; pass an aware datetime, such as "
            "datetime.now(UTC)"
        )
    try:
        return value.astimezone(UTC)
    except OverflowError:
        raise ValueError(f"{what}={shown(value)} is outside the years 1 to 9999 of UTC") from None


def as_count(value: object, what: str, least: int = 0, most: int = MOST) -> int:
    """A whole number."""
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"{what}={shown(value)} is not a whole number, but {_kind(value)}")
    if not least <= value <= most:
        raise ValueError(f"{what}={shown(value)} is not a whole number from {least} to {most:,}")
    return value


def as_switch(value: object, what: str) -> bool:
    """True or False."""
    if not isinstance(value, bool):
        raise TypeError(f"{what}={shown(value)} is neither True nor False")
    return value


def as_state(value: object) -> State:
    """The state of an execution, or its name."""
    if not isinstance(value, str):
        raise TypeError(f"state={shown(value)} is not the name of a state, but {_kind(value)}")
    try:
        return State(value)
    except ValueError:
        names = ", ".join(State)
        raise ValueError(f"state={shown(value)} is none of {names}") from None


def as_several(value: Any, what: str) -> Any:
    """Something to go through that is neither a text nor a mapping."""
    if isinstance(value, str | bytes | Mapping) or not hasattr(type(value), "__iter__"):
        raise TypeError(f"{what}={shown(value)} is not a list, but {_kind(value)}")
    return value


def no_task(value: Any, what: str = "task") -> TypeError:
    """The error of what was passed in place of a task."""
    if hasattr(value, "cr_frame"):  # a coroutine: a call of a task
        value.close()
        hint = "that is a call of one. Pass the task itself, and its payload beside it"
    elif isinstance(value, type) or not callable(value):
        hint = (
            "pass the task itself, which @task has made, or its name. The payload goes beside it, "
            "not into a call"
        )
    else:
        hint = "it is a function without @task. Decorate it, or pass the task's name"
    return TypeError(f"{what}={shown(value)} is no task: {hint}")


def _kind(value: object) -> str:
    return "None" if value is None else f"a value of type {type(value).__qualname__}"
