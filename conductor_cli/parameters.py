"""Values as Postgres reads them in text form. A driver's adapters take longer than all the rest of
a short statement."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Any, Final
from uuid import UUID

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable


def text(value: object) -> str | None:
    """A parameter, a list of them as an array; raises TypeError for what none of ours is."""
    if value is None:
        return None
    for kind in type(value).__mro__:
        if (written := _WRITTEN.get(kind)) is not None:
            return written(value)
    raise TypeError(f"a parameter of the type {type(value).__name__}: {value!r}")


def array(elements: Iterable[str]) -> str:
    """An array of elements that are text already, quoted where that is needed."""
    return f"{{{','.join(elements)}}}"


def quoted(text: str) -> str:
    """A string as an element of an array."""
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


def _element(value: object) -> str:
    found = text(value)
    if found is None:
        return "null"
    return quoted(found) if isinstance(value, str) else found


def _array(values: Iterable[object]) -> str:
    return array(map(_element, values))


_WRITTEN: Final[dict[type, Callable[[Any], str]]] = {
    str: str,
    UUID: str,
    bool: lambda value: "t" if value else "f",
    int: repr,
    float: repr,
    datetime: datetime.isoformat,
    list: _array,
    tuple: _array,
}
