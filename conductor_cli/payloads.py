"""Values to JSON and back: what may be stored, and how a payload becomes arguments.

msgspec turns NaN into null and lets NUL through; Postgres or the next reader would not. Both
are refused here, at the cost of a look at those texts that could hold one.
"""

from __future__ import annotations

import inspect
import math
import types
import typing
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from enum import Enum
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import msgspec

from conductor_cli import pydantic_types
from conductor_cli.errors import PayloadError, TaskDefinitionError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

DEFAULT_LIMIT: Final = 1024 * 1024
_MISSING: Final = inspect.Parameter.empty
_BY_PLACE: Final = inspect.Parameter.POSITIONAL_ONLY
_BY_EITHER: Final = inspect.Parameter.POSITIONAL_OR_KEYWORD
_ANY_KEYS: Final = inspect.Parameter.VAR_KEYWORD


def encode(value: object, what: str, limit: int | None = DEFAULT_LIMIT) -> str:
    """A value as JSON text.

    Refuses, with a PayloadError that starts with ``what``: types JSON has no place for, NaN and
    infinities, the character NUL, lone surrogates, cycles, and more than ``limit`` bytes.
    """
    try:
        data = _encoder.encode(value)
        if limit is not None and len(data) > limit:
            raise PayloadError(
                f"{what} is {len(data):,} bytes of JSON; the limit is {limit:,} "
                "([tasks] max_payload). Store it elsewhere and pass a reference."
            )
        if b"null" in data:
            _refuse_nan(value, what)
        if b"\\u0000" in data and _has_nul(data):
            raise PayloadError(
                f"{what} contains the character NUL (\\u0000), which Postgres refuses."
            )
    except PayloadError:
        raise
    except RecursionError:
        raise PayloadError(f"{what} contains itself, or is nested too deeply for JSON.") from None
    except Exception as error:  # whatever a model's own code raises
        if isinstance(error, pydantic_types.Refused):
            _refuse_nan(value, what)
        raise PayloadError(f"{what} cannot be stored as JSON: {friendly(error)}.") from error
    return data.decode()


def decode(text: str | bytes) -> Any:
    """JSON text as plain values."""
    return msgspec.json.decode(text)


NOT_GIVEN: Final[Any] = type("NotGiven", (), {"__repr__": lambda _: "{}"})()
"""The payload of an event where none is given: sent as an empty object. None is null."""


class JsonType:
    """How values of one annotation are read from JSON.

    Raises TypeError or ValueError for an annotation that JSON has no values for.
    """

    def __init__(self, annotation: Any) -> None:
        self._adapter = pydantic_types.adapter(annotation)
        self._decoder = None if self._adapter is not None else _decoder(annotation)

    @property
    def is_of_pydantic(self) -> bool:
        """Whether pydantic reads it."""
        return self._adapter is not None

    def decode(self, text: str | bytes) -> Any:
        """A value; raises whatever the reader, or a model's own code, raises."""
        reader = self._adapter or self._decoder
        assert reader is not None
        return reader.decode(text)


class Binder:
    """Turns a payload's JSON into the arguments of one function.

    Made once per task from its signature; raises TaskDefinitionError for signatures that no
    payload can fill. ``context_type`` is the one of ``context_types`` that the function takes.
    """

    def __init__(self, function: Callable[..., Any], context_types: tuple[type, ...]) -> None:
        signature, hints = _signature(function)
        self._refuse_unfillable(function, signature)
        found = _context(function, signature, hints, context_types)
        self.context: str | None = found[0]
        self.context_type: type | None = found[1]
        given = {n: p for n, p in signature.parameters.items() if n != self.context}
        self.whole = list(given) == ["payload"] and given["payload"].kind is not _ANY_KEYS
        self.parameters = [n for n, p in given.items() if p.kind is not _ANY_KEYS]
        self._may_lack_payload = self.whole and given["payload"].default is not _MISSING
        self._may_lack_keys = any(p.default is not _MISSING for p in given.values())
        self._any_keys: Any = next(
            (hints.get(n, Any) for n in given if n not in self.parameters), None
        )
        self._adapted: dict[str, JsonType] = {}
        self._names = frozenset((*self.parameters, self.context))
        self._context_at = _place_of_context(signature, self.context)
        self._positional = {n: p.default for n, p in given.items() if p.kind is _BY_PLACE}
        self._ordered = [n for n, p in given.items() if p.kind in (_BY_PLACE, _BY_EITHER)]
        try:
            self._strict: msgspec.json.Decoder[Any] | None = None
            self._decoder = self._build(given, hints)
        except (TypeError, ValueError) as error:
            raise TaskDefinitionError(
                f"{describe(function)}: a payload cannot be bound to its annotations: "
                f"{friendly(error)}."
            ) from None

    @property
    def takes_any_key(self) -> bool:
        """Whether the function has ``**kwargs``."""
        return self._any_keys is not None

    def bind(self, payload: str) -> tuple[list[Any], dict[str, Any]]:
        """Positional and keyword arguments, the context left out; unknown keys are dropped.

        Raises PayloadError that names the key.
        """
        if self._may_lack_payload and payload == "null":
            return [], {}
        try:
            value = self._decoder.decode(payload)
            if self.whole:
                return ([value], {}) if self._positional else ([], {"payload": value})
            values = msgspec.structs.astuple(value)
            arguments = dict(zip(self.parameters, values, strict=True))
            if self._may_lack_keys:
                arguments = {n: v for n, v in arguments.items() if v is not msgspec.UNSET}
            for name, kind in self._adapted.items():
                if name in arguments:
                    arguments[name] = _named(name, kind.decode, arguments[name])
            if self._any_keys is not None:
                arguments |= self._other_keys(payload)
        except RecursionError:
            raise PayloadError("The payload does not fit: it is nested too deeply.") from None
        except Exception as error:  # also what a model's own validation raises
            raise PayloadError(f"The payload does not fit: {friendly(error)}.") from error
        if not self._positional:
            return [], arguments
        return [arguments.pop(n, d) for n, d in self._positional.items()], arguments

    def give(self, context: object, args: list[Any], kwargs: dict[str, Any]) -> None:
        """Add the context to bound arguments, where the function takes it."""
        if self._context_at is not None:
            args.insert(self._context_at, context)
        elif self.context is not None:
            kwargs[self.context] = context

    def check(self, task: str, payload: str) -> None:
        """Refuse a payload that does not fit, unknown keys included."""
        if self._strict is None or self._adapted:
            self._explain(task, payload)
            return
        try:
            self._strict.decode(payload)
        except Exception:
            self._explain(task, payload)

    def _explain(self, task: str, payload: str) -> None:
        """Raise what is wrong with a payload, by name."""
        try:
            self.bind(payload)
        except PayloadError as error:
            text = str(error).removeprefix("The payload")
            raise PayloadError(f"The payload for task {task!r}{text}") from error.__cause__
        if not self.whole:
            self._refuse_unknown(task, decode(payload))

    def payload(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """The payload that these arguments (without the context) stand for; TypeError."""
        if self.whole:
            return self._whole_payload(args, kwargs)
        if len(args) > len(self._ordered):
            raise TypeError(f"takes {len(self._ordered)} positional arguments, not {len(args)}")
        by_place = dict(zip(self._ordered, args, strict=False))
        if twice := by_place.keys() & kwargs:
            raise TypeError(f"has two values for {min(twice)!r}")
        return {**by_place, **kwargs}

    def _whole_payload(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        if len(args) + bool(kwargs) > 1:
            raise TypeError("takes one value, the whole payload")
        if args:
            return args[0]
        return kwargs["payload"] if list(kwargs) == ["payload"] else dict(kwargs) or None

    def _build(self, given: Mapping[str, inspect.Parameter], hints: Mapping[str, Any]) -> Any:
        if self._any_keys is not None:
            self._any_keys = Any if self._any_keys is Any else JsonType(self._any_keys)
        if self.whole:
            return JsonType(hints.get("payload", Any))
        # The struct has names of its own: not every parameter's can be an attribute's.
        names = {f"p{i}": n for i, n in enumerate(self.parameters)}
        adapted = {n: JsonType(hints[n]) for n in self.parameters if n in hints}
        self._adapted = {n: kind for n, kind in adapted.items() if kind.is_of_pydantic}
        hints = {**hints, **dict.fromkeys(self._adapted, msgspec.Raw)}
        kinds = [_field(name, given[n], hints.get(n, Any)) for name, n in names.items()]
        if self._any_keys is None:
            self._strict = _decoder(_struct(kinds, names, strict=True))
        return _decoder(_struct(kinds, names, strict=False))

    def _other_keys(self, payload: str) -> dict[str, Any]:
        others = {k: v for k, v in decode(payload).items() if k not in self._names}
        if self._any_keys is Any:
            return others
        return {
            k: _named(k, self._any_keys.decode, msgspec.json.encode(v)) for k, v in others.items()
        }

    def _refuse_unfillable(
        self, function: Callable[..., Any], signature: inspect.Signature
    ) -> None:
        for name, parameter in signature.parameters.items():
            if parameter.kind is parameter.VAR_POSITIONAL:
                raise TaskDefinitionError(
                    f"{describe(function)}: *{name} cannot be filled from a payload, whose keys "
                    "become keyword arguments. Take a list instead."
                )

    def _refuse_unknown(self, task: str, payload: Mapping[str, Any]) -> None:
        if self.context in payload:
            problem = f"has the key {self.context!r}, which is the context's name"
        elif unknown := [key for key in payload if key not in self._names]:
            if self.takes_any_key:
                return
            takes = ", ".join(self.parameters) or "no keys at all"
            problem = f"has the unknown key {unknown[0]!r}; it takes {takes}"
        else:
            return
        raise PayloadError(f"The payload for task {task!r} {problem}.")


def describe(function: Callable[..., Any]) -> str:
    """A function by name and place, for messages."""
    inner = inspect.unwrap(underlying(function))
    code = getattr(inner, "__code__", None)
    place = f" ({code.co_filename}:{code.co_firstlineno})" if code else ""
    return f"{getattr(inner, '__qualname__', function)!s}{place}"


def underlying(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function or method inside a partial or an object that can be called."""
    while isinstance(function, partial):
        function = function.func
    if inspect.isroutine(function) or isinstance(function, type):
        return function
    inner: Callable[..., Any] = type(function).__call__
    return inner


def _encode_other(value: object) -> object:
    if pydantic_types.is_model(value):
        return pydantic_types.dump(value)
    if pydantic_types.is_text(value):
        return str(value)
    for plain in (str, int, float):  # a subclass, such as numpy's float64
        if isinstance(value, plain):
            return plain(value)
    if isinstance(value, Mapping):
        return dict(value)
    raise TypeError(f"{type(value).__name__} has no place in JSON: {_brief(value)}")


def _decode_other(kind: type, value: object) -> object:
    if pydantic_types.is_model_type(kind):
        return pydantic_types.read(kind, value)
    raise TypeError(f"{kind.__name__} cannot be read from JSON")


_encoder: Final = msgspec.json.Encoder(enc_hook=_encode_other)


def return_annotation(function: Callable[..., Any]) -> Any:
    """What a function is annotated to return; ``inspect.Signature.empty`` when it is not."""
    signature, hints = _signature(function)
    return hints.get("return", signature.return_annotation)


def _struct(kinds: list[Any], names: dict[str, str], *, strict: bool) -> Any:
    return msgspec.defstruct(
        "Payload", kinds, rename=names, kw_only=True, forbid_unknown_fields=strict
    )


def _decoder(kind: Any) -> msgspec.json.Decoder[Any]:
    return msgspec.json.Decoder(kind, dec_hook=_decode_other)


def _signature(function: Callable[..., Any]) -> tuple[inspect.Signature, dict[str, Any]]:
    try:
        hints = typing.get_type_hints(underlying(function), include_extras=True)
        return inspect.signature(function), hints
    except NameError as error:
        raise TaskDefinitionError(
            f"{describe(function)}: an annotation cannot be resolved: {error}. Types of a task's "
            "parameters must be importable at run time, not only under TYPE_CHECKING."
        ) from None
    except Exception as error:
        raise TaskDefinitionError(
            f"{describe(function)}: its signature cannot be read: {friendly(error)}."
        ) from None


def _context(
    function: Callable[..., Any],
    signature: inspect.Signature,
    hints: Mapping[str, Any],
    context_types: tuple[type, ...],
) -> tuple[str, type] | tuple[None, None]:
    found = [
        (name, kind)
        for name in signature.parameters
        for kind in context_types
        if _is_or_may_be(hints.get(name), kind)
    ]
    if len(found) > 1:
        raise TaskDefinitionError(
            f"{describe(function)}: both {found[0][0]!r} and {found[1][0]!r} are to receive the "
            "context; only one parameter can."
        )
    return found[0] if found else (None, None)


def _is_or_may_be(hint: object, kind: type) -> bool:
    """Whether an annotation is ``kind``, also with parameters, ``| None`` or Annotated."""
    origin = typing.get_origin(hint)
    if origin in (typing.Union, types.UnionType, typing.Annotated):
        return any(_is_or_may_be(part, kind) for part in typing.get_args(hint))
    return hint is kind or origin is kind


def _place_of_context(signature: inspect.Signature, name: str | None) -> int | None:
    """Its position if it is passed by position, which whoever wraps the function may rely on."""
    if name is None:
        return None
    place = list(signature.parameters).index(name)
    kind = signature.parameters[name].kind
    return place if kind is _BY_PLACE or (kind is _BY_EITHER and place == 0) else None


def _field(name: str, parameter: inspect.Parameter, hint: Any) -> Any:
    if parameter.default is parameter.empty:
        return (name, hint)
    kind = hint if hint in (Any, msgspec.Raw) else hint | msgspec.UnsetType
    return (name, kind, msgspec.UNSET)


def _named(key: str, decode: Callable[[Any], Any], text: Any) -> Any:
    """The value of one key, read by a decoder of its own; an error names the key."""
    try:
        return decode(bytes(text))
    except Exception as error:
        inner = friendly(error)
        told, _, place = inner.partition(" - at '$")
        place = place.rstrip("'")
        raise PayloadError(f"{told} - at '$.{key}{place}'") from error


def friendly(error: Exception) -> str:
    """What a reader or a writer of JSON says, in our words."""
    text = str(error).rstrip(".")
    if not isinstance(error, (msgspec.MsgspecError, PayloadError, TypeError, ValueError)):
        text = f"{type(error).__name__}: {text}"
    return text.replace("Object missing required field", "missing key").replace("`", "'")


def _refuse_nan(value: object, what: str, path: str = "$") -> None:
    if isinstance(value, float) and not math.isfinite(value):
        raise PayloadError(f"{what} has {value} at {path}, which JSON has no place for.")
    for name, part in _parts(value):
        _refuse_nan(part, what, f"{path}{name}")


def _parts(value: object) -> list[tuple[str, object]]:
    if isinstance(value, Mapping):
        return [(f".{key}", part) for key, part in value.items()]
    if isinstance(value, (list, tuple, set, frozenset)):
        return [(f"[{i}]", part) for i, part in enumerate(value)]
    if isinstance(value, Enum):
        return [("", value.value)]
    if pydantic_types.is_model(value):
        return [(f".{name}", part) for name, part in vars(value).items()]
    return [(f".{name}", getattr(value, name)) for name in attributes(value)]


def attributes(value: object) -> Sequence[str]:
    """The names of a Struct's, a dataclass's or an attrs class's fields; of others none."""
    if isinstance(value, msgspec.Struct):
        return value.__struct_fields__
    if is_dataclass(value):
        return [each.name for each in fields(value)]
    return [each.name for each in getattr(type(value), "__attrs_attrs__", ())]


def _has_nul(data: bytes) -> bool:
    def walk(value: object) -> bool:
        if isinstance(value, str):
            return "\0" in value
        if isinstance(value, dict):
            return any(walk(k) or walk(v) for k, v in value.items())
        return isinstance(value, list) and any(walk(v) for v in value)

    return walk(msgspec.json.decode(data))


def _brief(value: object) -> str:
    try:
        text = repr(value)
    except Exception as error:
        text = f"(its repr raises {type(error).__name__})"
    return text if len(text) <= 80 else text[:77] + "..."
