"""Values as Postgres reads them in text form. A driver's adapters take longer than all the rest of
a short statement."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING
from uuid import UUID

if TYPE_CHECKING:
    from collections.abc import Iterable


def text(value: object) -> str | None:
    """A parameter, a list of them as an array; raises TypeError for what none of ours is."""
    kind = type(value)
    if value is None or kind is str:
        return value  # type: ignore[return-value]
    if isinstance(value, str):  # a member of an enumeration
        return str.__str__(value)
    if kind is UUID:
        return value.hex  # type: ignore[attr-defined,no-any-return]
    if kind is bool:
        return "t" if value else "f"
    if kind is int or kind is float:
        return repr(value)
    if isinstance(value, datetime):
        return value.isoformat()
    if isinstance(value, (list, tuple)):
        return array(["null" if each is None else _element(each) for each in value])
    raise TypeError(f"a parameter of the type {kind.__name__}: {value!r}")


def array(elements: Iterable[str]) -> str:
    """An array of elements that are text already, quoted where that is needed."""
    return f"{{{','.join(elements)}}}"


def quoted(text: str) -> str:
    """A string as an element of an array."""
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


def _element(value: object) -> str:
    found = text(value)
    assert found is not None
    return quoted(found) if type(value) is str else found
