"""Values to JSON and back: what may be stored, and how a payload becomes arguments.

msgspec turns NaN into null and lets NUL through; Postgres or the next reader would not. Both
are refused here, at the cost of a look at those texts that could hold one.
"""

from __future__ import annotations

import inspect
import math
import typing
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import TYPE_CHECKING, Any, Final

import msgspec

from conductor_cli.errors import PayloadError, TaskDefinitionError

if TYPE_CHECKING:
    from collections.abc import Callable

DEFAULT_LIMIT: Final = 1024 * 1024


def encode(value: object, what: str, limit: int | None = DEFAULT_LIMIT) -> str:
    """A value as JSON text.

    Refuses, with a PayloadError that starts with ``what``: types JSON has no place for, NaN and
    infinities, the character NUL, lone surrogates, cycles, and more than ``limit`` bytes.
    """
    try:
        data = _encoder.encode(value)
    except RecursionError:
        raise PayloadError(f"{what} contains itself, or is nested too deeply for JSON.") from None
    except (TypeError, ValueError, OverflowError, msgspec.MsgspecError) as error:
        raise PayloadError(f"{what} cannot be stored as JSON: {error}.") from None
    if limit is not None and len(data) > limit:
        raise PayloadError(
            f"{what} is {len(data):,} bytes of JSON; the limit is {limit:,} "
            "([tasks] max_payload). Store it elsewhere and pass a reference."
        )
    if b"null" in data:
        _refuse_nan(value, what)
    if b"\\u0000" in data and _has_nul(data):
        raise PayloadError(f"{what} contains the character NUL (\\u0000), which Postgres refuses.")
    return data.decode()


def decode(text: str | bytes) -> Any:
    """JSON text as plain values."""
    return msgspec.json.decode(text)


class ResultType:
    """The awaited return annotation of a function: how its stored result is read again."""

    def __init__(self, annotation: object) -> None:
        self._plain = annotation in (inspect.Signature.empty, Any, None, type(None), object)
        self._decoder = None if self._plain else _decoder(annotation)

    def decode(self, text: str) -> Any:
        """The result from JSON text; raises PayloadError when it does not fit the annotation."""
        if self._decoder is None:
            return msgspec.json.decode(text)
        try:
            return self._decoder.decode(text)
        except (msgspec.MsgspecError, ValueError) as error:
            raise PayloadError(f"The result does not fit the return annotation: {error}.") from None


class Binder:
    """Turns a payload's JSON into the arguments of one function.

    Made once per task from its signature; raises TaskDefinitionError for signatures that no
    payload can fill.
    """

    def __init__(self, function: Callable[..., Any], context_types: tuple[type, ...]) -> None:
        signature, hints = _signature(function)
        names = list(signature.parameters)
        self.context = _context_parameter(names, hints, context_types)
        given = {n: p for n, p in signature.parameters.items() if n != self.context}
        self.whole = list(given) == ["payload"] and _is_plain(given["payload"])
        self.takes_any = any(p.kind is p.VAR_KEYWORD for p in given.values())
        self.parameters = [n for n, p in given.items() if p.kind is not p.VAR_KEYWORD]
        self.context_first = bool(names) and names[0] == self.context
        self._positional_only = [n for n, p in given.items() if p.kind is p.POSITIONAL_ONLY]
        self._refuse_unfillable(function, given)
        try:
            self._struct, self._decoder = self._build(given, hints)
        except (TypeError, ValueError) as error:
            raise TaskDefinitionError(
                f"{describe(function)}: a payload cannot be bound to its annotations: {error}."
            ) from None

    def bind(self, payload: str) -> tuple[list[Any], dict[str, Any]]:
        """Positional and keyword arguments, the context left out; unknown keys are dropped.

        Raises PayloadError that names the key.
        """
        try:
            value = self._decoder.decode(payload)
        except (msgspec.MsgspecError, ValueError) as error:
            raise PayloadError(f"The payload does not fit: {_friendly(error)}.") from None
        if self.whole:
            return [], {"payload": value}
        arguments = {
            n: v
            for n, v in zip(self.parameters, msgspec.structs.astuple(value), strict=True)
            if v is not msgspec.UNSET
        }
        if self.takes_any:
            extra = msgspec.json.decode(payload)
            arguments |= {k: v for k, v in extra.items() if k not in arguments}
        return [arguments.pop(n) for n in self._positional_only if n in arguments], arguments

    def check(self, task: str, payload: str) -> None:
        """Refuse a payload that does not fit, unknown keys included."""
        try:
            self.bind(payload)
        except PayloadError as error:
            text = str(error).removeprefix("The payload")
            raise PayloadError(f"The payload for task {task!r}{text}") from None
        if not self.whole and not self.takes_any:
            self._refuse_unknown(task, msgspec.json.decode(payload))

    def _build(
        self, given: Mapping[str, inspect.Parameter], hints: Mapping[str, Any]
    ) -> tuple[Any, msgspec.json.Decoder[Any]]:
        if self.whole:
            return None, _decoder(hints.get("payload", Any))
        struct = msgspec.defstruct(
            "Payload", [_field(given[n], hints.get(n, Any)) for n in self.parameters], kw_only=True
        )
        return struct, _decoder(struct)

    def _refuse_unfillable(
        self, function: Callable[..., Any], given: Mapping[str, inspect.Parameter]
    ) -> None:
        for name, parameter in given.items():
            if parameter.kind is parameter.VAR_POSITIONAL:
                raise TaskDefinitionError(
                    f"{describe(function)}: *{name} cannot be filled from a payload, whose keys "
                    "become keyword arguments. Take a list instead."
                )

    def _refuse_unknown(self, task: str, payload: Mapping[str, Any]) -> None:
        unknown = [key for key in payload if key not in self.parameters]
        if unknown:
            takes = ", ".join(self.parameters) or "no keys at all"
            raise PayloadError(
                f"The payload for task {task!r} has the unknown key {unknown[0]!r}; "
                f"it takes {takes}."
            )


def describe(function: Callable[..., Any]) -> str:
    """A function by name and place, for messages."""
    code = getattr(function, "__code__", None)
    place = f" ({code.co_filename}:{code.co_firstlineno})" if code else ""
    return f"{getattr(function, '__qualname__', function)!s}{place}"


def return_annotation(function: Callable[..., Any]) -> object:
    """What a function (awaited, when it is async) says it returns."""
    signature, hints = _signature(function)
    return hints.get("return", signature.return_annotation)


def _encode_other(value: object) -> object:
    dump = getattr(value, "model_dump", None)
    if callable(dump):  # pydantic, if the caller uses it
        return dump(mode="json")
    raise TypeError(f"{type(value).__name__} has no place in JSON: {_brief(value)}")


def _decode_other(kind: type, value: object) -> object:
    validate = getattr(kind, "model_validate", None)
    if callable(validate):
        return validate(value)
    raise TypeError(f"{kind.__name__} cannot be read from JSON")


_encoder: Final = msgspec.json.Encoder(enc_hook=_encode_other)


def _decoder(kind: Any) -> msgspec.json.Decoder[Any]:
    return msgspec.json.Decoder(kind, dec_hook=_decode_other)


def _signature(function: Callable[..., Any]) -> tuple[inspect.Signature, dict[str, Any]]:
    try:
        return inspect.signature(function), typing.get_type_hints(function, include_extras=True)
    except NameError as error:
        raise TaskDefinitionError(
            f"{describe(function)}: an annotation cannot be resolved: {error}. Types of a task's "
            "parameters must be importable at run time, not only under TYPE_CHECKING."
        ) from None


def _context_parameter(
    names: list[str], hints: Mapping[str, Any], context_types: tuple[type, ...]
) -> str | None:
    for name in names:
        hint = hints.get(name)
        if (typing.get_origin(hint) or hint) in context_types:
            return name
    return None


def _is_plain(parameter: inspect.Parameter) -> bool:
    return parameter.kind not in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL)


def _field(parameter: inspect.Parameter, hint: Any) -> Any:
    if parameter.default is parameter.empty:
        return (parameter.name, hint)
    return (parameter.name, hint | msgspec.UnsetType if hint is not Any else Any, msgspec.UNSET)


def _friendly(error: Exception) -> str:
    text = str(error).rstrip(".")
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
    if isinstance(value, msgspec.Struct):
        return [(f".{n}", getattr(value, n)) for n in value.__struct_fields__]
    if is_dataclass(value) and not isinstance(value, type):
        return [(f".{f.name}", getattr(value, f.name)) for f in fields(value)]
    return []


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
