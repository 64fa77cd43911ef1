"""An exception as a journal keeps it, and the same exception built again from there.

A replay raises what the first run raised, so that ``except`` clauses and handlers that look at
attributes do the same again. The exception is built without its constructor, from its ``args`` and
its attributes. Where that does not give an equal exception, a stand-in is raised: an instance of a
subclass of the same name, which prints the stored text.

Only classes that are loaded already are used: a name in the database never imports anything.
"""

from __future__ import annotations

import base64
import builtins
import math
import sys
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from enum import Enum
from typing import TYPE_CHECKING, Any, Final
from uuid import UUID

import msgspec

from conductor_cli import errors
from conductor_cli.failure import describe, text_as_stored
from conductor_cli.models import ExecutionError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

MOST_DEEP: Final = 16
MOST_BYTES: Final = 64 * 1024
"""Of JSON for ``args`` and attributes. What is larger is left out, and a stand-in is raised."""

_PLAIN: Final = (type(None), bool, int, float, str)


class Kept(msgspec.Struct, frozen=True, omit_defaults=True):
    """What an exception is built from; ``args`` is None where they could not be kept.

    ``lost``: names of attributes that could not be kept.
    """

    args: list[Any] | None = None
    attributes: dict[str, Any] = {}
    lost: list[str] = []


class StoredError(msgspec.Struct, frozen=True):
    """The JSON of an exception: the first three fields are those of ``ExecutionError``."""

    type: str = ""
    message: str = ""
    traceback: str | None = None
    kept: Kept | None = None


def encode(error: BaseException) -> str:
    """An exception as JSON text; never raises, whatever the exception's own code does."""
    told = describe(error)
    stored = StoredError(told.type, told.message, told.traceback, _kept(error, 0))
    text = msgspec.json.encode(stored)
    if len(text) > MOST_BYTES + len(told.message) + len(told.traceback or ""):
        text = msgspec.json.encode(msgspec.structs.replace(stored, kept=None))
    return text.decode()


def decode(text: str) -> Exception:
    """The exception again: an instance of its class, or of a stand-in below that class.

    Where the class is not loaded in this process, the stand-in is a plain Exception of that name.
    """
    return _revived(msgspec.json.decode(text, type=StoredError))


def _revived(stored: StoredError) -> Exception:
    kind = _kind(stored.type)
    if kind is None:
        return _stand_in(Exception, stored, ())
    try:
        error = _built(kind, stored)
    except BaseException:  # the class's own code, whatever that does
        error = None
    return error if error is not None else _stand_in(kind, stored, _parts(stored))


def _built(kind: type[Exception], stored: StoredError) -> Exception | None:
    """The exception rebuilt, or None where it would not be equal to the stored one."""
    kept = stored.kept
    if kept is None or kept.args is None or kept.lost:
        return None
    args = tuple(map(_value, kept.args))
    error = _made(kind, args)
    if not isinstance(error, OSError):  # whose constructor takes the file's name out of them
        _set(error, "args", args)
    for name, value in kept.attributes.items():
        _set(error, name, _value(value))
    same = type(error) is kind and text_as_stored(error) == stored.message
    return error if same else None


def _made(kind: type[Exception], args: tuple[Any, ...]) -> Exception:
    """An instance whose own constructors have not run; those of Python's classes in C have."""
    bases = [each for each in kind.__mro__ if each.__module__ == "builtins"]
    layout: Any = max(bases, key=lambda each: each.__basicsize__)
    error: Exception = layout.__new__(kind, *args)
    init: Any = next(each for each in bases if "__init__" in vars(each))
    init.__init__(error, *args)
    return error


def _stand_in(kind: type[Exception], stored: StoredError, parts: tuple[Any, ...]) -> Exception:
    message = stored.message
    module, _, path = stored.type.rpartition(".")

    def tell(_: Exception) -> str:
        return message

    def lacks(_: Exception, name: str) -> Any:
        raise AttributeError(
            f"{name!r} of this {path} was not kept with the recorded failure: only JSON's types, "
            "bytes, dates, UUIDs, Decimals and exceptions are. Return such a value from the step "
            "instead."
        )

    def reduce(_: Exception) -> tuple[Any, ...]:
        return decode, (_text(stored),)

    members: dict[str, Any] = {
        "__str__": tell,
        "__getattr__": lacks,
        "__reduce__": reduce,
        "__qualname__": path,
        "__module__": module or kind.__module__,
    }
    try:
        error = _made(type(path.rpartition(".")[2] or "Exception", (kind,), members), parts)
    except BaseException:  # a class that may not be derived from, or not be made
        if kind is Exception:
            raise
        return _stand_in(Exception, stored, ())
    for name, value in (stored.kept.attributes if stored.kept else {}).items():
        _set(error, name, _value(value))
    return error


def _set(error: Exception, name: str, value: Any) -> None:
    BaseException.__setattr__(error, name, value)  # a class's own may refuse it


def _parts(stored: StoredError) -> tuple[Any, ...]:
    """What a stand-in is made from. A group cannot be made without exceptions inside it."""
    args = None if stored.kept is None or stored.kept.args is None else stored.kept.args
    if args is not None:
        return tuple(map(_value, args))
    kind = _kind(stored.type)
    if kind is not None and issubclass(kind, BaseExceptionGroup):
        return (stored.message, [Exception("(not kept)")])
    return (stored.message,)


def _text(stored: StoredError) -> str:
    return msgspec.json.encode(stored).decode()


def _kind(name: str) -> type[Exception] | None:
    module, _, rest = name.rpartition(".")
    candidates: list[tuple[Any, str]] = [(builtins, name), (errors, name)]
    while module:
        candidates.append((sys.modules.get(module), rest))
        module, _, last = module.rpartition(".")
        rest = f"{last}.{rest}"
    for home, path in candidates:
        found = home
        for part in path.split("."):
            found = getattr(found, part, None)
        if isinstance(found, type) and issubclass(found, Exception):
            return found
    return None


# Values: JSON's own types as they are, others as an object with one key that starts with "$".


def _kept(error: BaseException, depth: int) -> Kept | None:
    try:
        args = [_plain(each, depth) for each in _arguments(error)]
    except Exception:
        args = None
    attributes: dict[str, Any] = {}
    lost: list[str] = []
    for name, value in _attributes(error).items():
        try:
            attributes[name] = _plain(value, depth)
        except Exception:
            lost.append(name)
    try:
        kept = Kept(args, attributes, lost)
        msgspec.json.encode(kept)
    except Exception:  # a text with a lone surrogate
        return None
    return kept


def _arguments(error: BaseException) -> tuple[Any, ...]:
    if isinstance(error, BaseExceptionGroup):
        return (error.message, list(error.exceptions))
    if isinstance(error, OSError) and error.filename is not None:
        second = () if error.filename2 is None else (None, error.filename2)
        return (error.errno, error.strerror, error.filename, *second)
    return error.args


def _attributes(error: BaseException) -> dict[str, Any]:
    found: dict[str, Any] = dict(getattr(error, "__dict__", {}))
    for kind in type(error).__mro__:
        if kind.__module__ == "builtins":
            found |= {name: getattr(error, name) for name in _NAMED.get(kind, ())}
            break
        slots = kind.__dict__.get("__slots__", ())
        for name in (slots,) if isinstance(slots, str) else slots:
            if hasattr(error, name):
                found[name] = getattr(error, name)
    return {name: value for name, value in found.items() if value is not error}


_NAMED: Final[dict[type, tuple[str, ...]]] = {
    AttributeError: ("name",), NameError: ("name",), ImportError: ("name", "path"),
    ModuleNotFoundError: ("name", "path"),
}  # fmt: skip
"""Attributes of Python's classes that are given by keyword and stand in neither place."""


def _plain(value: Any, depth: int) -> Any:
    if depth > MOST_DEEP:
        raise ValueError("nested too deeply")
    kind = type(value)
    if kind in _PLAIN:
        return _finite(value)
    if kind is list:
        return [_plain(each, depth + 1) for each in value]
    if kind is dict:
        pairs = {_key(key): _plain(each, depth + 1) for key, each in value.items()}
        return {"$dict": pairs} if any(key.startswith("$") for key in pairs) else pairs
    return _tagged(value, kind, depth)


def _tagged(value: Any, kind: type, depth: int) -> dict[str, Any]:
    if kind is tuple:
        return {"$tuple": [_plain(each, depth + 1) for each in value]}
    if isinstance(value, BaseException):
        told = describe(value)
        return {"$error": [told.type, told.message, _plain_kept(value, depth + 1)]}
    if isinstance(value, Enum):
        return {"$enum": [f"{kind.__module__}.{kind.__qualname__}", value.name]}
    return {f"${kind.__name__}": _WRITTEN[kind](value)}


def _finite(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return {"$float": repr(value)}
    if isinstance(value, str):
        value.encode()  # refuses lone surrogates
        if "\0" in value:
            return {"$text": base64.b64encode(value.encode()).decode()}
    return value


def _key(key: object) -> str:
    if type(key) is not str or "\0" in key:
        raise TypeError("a key that is no text")
    return key


def _plain_kept(error: BaseException, depth: int) -> Any:
    kept = _kept(error, depth)
    return None if kept is None else msgspec.to_builtins(kept)


def _value(plain: Any) -> Any:
    if isinstance(plain, list):
        return [_value(each) for each in plain]
    if not isinstance(plain, dict):
        return plain
    if len(plain) != 1 or not (tag := next(iter(plain))).startswith("$"):
        return {key: _value(each) for key, each in plain.items()}
    return _READ[tag](plain[tag])


def _error(parts: list[Any]) -> Exception:
    kept = None if parts[2] is None else msgspec.convert(parts[2], type=Kept)
    return _revived(StoredError(parts[0], parts[1], None, kept))


def _member(parts: list[str]) -> Enum:
    module, _, path = parts[0].rpartition(".")
    while module and module not in sys.modules:
        module, _, last = module.rpartition(".")
        path = f"{last}.{path}"
    found: Any = sys.modules.get(module)
    for part in path.split("."):
        found = getattr(found, part)
    if not (isinstance(found, type) and issubclass(found, Enum)):
        raise TypeError(f"{parts[0]} is no Enum")
    return found[parts[1]]


_WRITTEN: Final[Mapping[type, Callable[[Any], Any]]] = {
    bytes: lambda value: base64.b64encode(value).decode(),
    bytearray: lambda value: base64.b64encode(value).decode(),
    ExecutionError: lambda value: [value.type, value.message, value.traceback],
    datetime: datetime.isoformat, date: date.isoformat, time: time.isoformat,
    timedelta: lambda value: repr((value.days, value.seconds, value.microseconds)),
    UUID: str, Decimal: str,
}  # fmt: skip
_READ: Final[Mapping[str, Callable[[Any], Any]]] = {
    "$dict": lambda pairs: {key: _value(each) for key, each in pairs.items()},
    "$tuple": lambda values: tuple(map(_value, values)),
    "$error": _error,
    "$enum": _member,
    "$ExecutionError": lambda parts: ExecutionError(*parts),
    "$bytes": base64.b64decode,
    "$bytearray": lambda text: bytearray(base64.b64decode(text)),
    "$text": lambda text: base64.b64decode(text).decode(),
    "$float": float,
    "$datetime": datetime.fromisoformat,
    "$date": date.fromisoformat,
    "$time": time.fromisoformat,
    "$timedelta": lambda text: timedelta(*map(int, text.strip("()").split(","))),
    "$UUID": UUID,
    "$Decimal": Decimal,
}
