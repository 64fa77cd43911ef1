"""What an event's payload has to be like: ``where={"id": 7, "kind": one_of("a", "b")}``.

A key names a value of the payload, on its first level. A plain value is to be equal; the others
are made here. Filters are values: nothing in them is ever SQL.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from conductor_cli import payloads

_SCALARS: Final = (str, int, float, bool, type(None))


@dataclass(frozen=True, slots=True)
class Test:
    """What one value has to pass."""

    op: str
    arguments: Mapping[str, Any]


def one_of(*values: object) -> Test:
    """Equal to one of these."""
    return Test("one_of", {"values": list(values)})


def prefix(text: str) -> Test:
    """A text that begins with this."""
    if not isinstance(text, str):
        raise TypeError(f"prefix({text!r}) is not a text")
    return Test("prefix", {"text": text})


def between(low: object, high: object) -> Test:
    """From ``low`` to ``high``, both included: numbers, or texts by the order of characters, as
    moments in ISO 8601 have it when they are of one zone."""
    kinds = {_kind(each) for each in (low, high)}
    if len(kinds) > 1 or None in kinds:
        raise TypeError(f"between({low!r}, {high!r}) needs two numbers, or two texts or moments")
    return Test("between", {"low": low, "high": high})


def exists() -> Test:
    """There at all, whatever it is."""
    return Test("exists", {})


def compiled(where: Mapping[str, Any] | None) -> tuple[str, str]:
    """A filter as Postgres takes it: what is contained, and the tests. Raises TypeError,
    PayloadError."""
    if where is not None and not isinstance(where, Mapping):
        raise TypeError(f"where={where!r} is not a mapping of keys to values")
    exact: dict[str, Any] = {}
    tests: dict[str, Any] = {}
    for key, value in (where or {}).items():
        if not isinstance(key, str):
            raise TypeError(f"where has the key {key!r}, which is not a text")
        if isinstance(value, Test):
            tests[key] = {"op": value.op, **value.arguments}
        elif isinstance(payloads.decode(payloads.encode(value, f"where[{key!r}]")), _SCALARS):
            exact[key] = value
        else:
            tests[key] = {"op": "equals", "value": value}
    return payloads.encode(exact, "where"), payloads.encode(tests, "where")


def _kind(value: object) -> str | None:
    plain = payloads.decode(payloads.encode(value, "between"))
    if isinstance(plain, bool):
        return None
    return (
        "number" if isinstance(plain, (int, float)) else "text" if isinstance(plain, str) else None
    )
