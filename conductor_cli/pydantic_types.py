"""Values and annotations of pydantic, where the program uses it. Nothing here imports it.

A model is written by the names of its fields, and read by names and aliases alike, in JSON's mode,
in which strict models take texts for moments. What a model does not give back is refused when it
is written: secrets, fields that are left out, members of a union that are taken for another.
"""

from __future__ import annotations

import sys
import typing
from dataclasses import is_dataclass
from typing import TYPE_CHECKING, Any, Final

import msgspec

if TYPE_CHECKING:
    from collections.abc import Iterator

_PACKAGES: Final = ("pydantic", "pydantic_core", "pydantic_extra_types", "annotated_types")
_BY: Final = {"by_alias": True, "by_name": True}


class Refused(ValueError):
    """What pydantic says against a value, in one line."""


class Adapter:
    """Reads values of one annotation from JSON."""

    def __init__(self, annotation: Any) -> None:
        kind = _loaded("pydantic").TypeAdapter
        self._adapter = annotation if isinstance(annotation, kind) else kind(annotation)

    def decode(self, text: str | bytes) -> Any:
        """Raises Refused."""
        try:
            return self._adapter.validate_json(text, **_BY)
        except ValueError as error:
            raise Refused(_line(error)) from None


def adapter(annotation: Any) -> Adapter | None:
    """How values of an annotation are read if pydantic has a part in it; else None."""
    if _loaded("pydantic") is None or not _mentions(annotation, set()):
        return None
    try:
        return Adapter(annotation)
    except _loaded("pydantic").errors.PydanticUserError:
        return None  # it holds what pydantic does not know, such as a Struct: read part by part


def is_model(value: object) -> bool:
    """Whether a value is an instance of a pydantic model."""
    return _base() is not None and isinstance(value, _base())


def is_model_type(kind: object) -> bool:
    """Whether a class is a pydantic model."""
    return _base() is not None and isinstance(kind, type) and issubclass(kind, _base())


def is_text(value: object) -> bool:
    """Whether a value is one of pydantic's own that JSON has as a text, such as an address."""
    module = _loaded("pydantic.networks")
    return module is not None and type(value).__module__ == module.__name__


def dump(model: Any) -> Any:
    """A model as plain values, from which it can be read again equal; raises Refused."""
    plain = model.model_dump(mode="json", by_alias=False, round_trip=True, warnings=False)
    again = read(type(model), plain)
    if not _is_same(model, again):
        what = _difference(model, again)
        raise Refused(f"{type(model).__name__} would not come back equal from JSON ({what})")
    return plain


def read(kind: Any, plain: object) -> Any:
    """A model from plain values; raises Refused."""
    try:
        return kind.model_validate_json(msgspec.json.encode(plain), **_BY)
    except ValueError as error:
        raise Refused(_line(error)) from None


def unstorable(annotation: Any) -> str | None:
    """Why values of an annotation can never come back equal, as far as it tells; else None."""
    for kind in _types(annotation, set()):
        if is_model_type(kind) and (why := _hidden(kind)):
            return why
    return None


def _hidden(kind: Any) -> str | None:
    decorators = kind.__pydantic_decorators__
    if decorators.model_serializers:
        return None
    written = {name for each in decorators.field_serializers.values() for name in each.info.fields}
    secrets = _secrets()
    for name, field in kind.model_fields.items():
        if name in written or "*" in written:
            continue
        if field.exclude:
            return f"field {name!r} of {kind.__name__} is excluded from what is written"
        if any(part in secrets for part in _types(field.annotation, set(), into_models=False)):
            return f"field {name!r} of {kind.__name__} is a secret, which is written as asterisks"
    return None


def _secrets() -> tuple[Any, ...]:
    module = _loaded("pydantic")
    return tuple(getattr(module, name) for name in ("SecretStr", "SecretBytes"))


def _is_same(one: Any, other: Any) -> bool:
    if is_model(one):
        return (
            type(one) is type(other)
            and _is_same(one.__dict__, other.__dict__)
            and _is_same(one.model_extra or {}, other.model_extra or {})
        )
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(_is_same(one[k], other[k]) for k in one)
    if isinstance(one, (list, tuple)) and type(one) is type(other):
        return len(one) == len(other) and all(map(_is_same, one, other))
    return bool(one == other) and _is_alike(one, other)


def _is_alike(one: Any, other: Any) -> bool:
    """1 and True, or 1 and 1.0, are equal and not the same."""
    return type(one) is type(other) or isinstance(one, type(other)) or isinstance(other, type(one))


def _difference(model: Any, again: Any) -> str:
    if type(again) is not type(model):
        return f"it would be a {type(again).__name__}"
    for name, value in model.__dict__.items():
        if not _is_same(value, again.__dict__.get(name)):
            return f"its field {name!r}"
    return "its extra fields"


def _mentions(annotation: Any, seen: set[int]) -> bool:
    return any(_is_theirs(part) for part in _types(annotation, seen))


def _is_theirs(part: Any) -> bool:
    kind = part if isinstance(part, type) else type(part)
    return kind.__module__.partition(".")[0] in _PACKAGES or hasattr(
        kind, "__get_pydantic_core_schema__"
    ) or "__pydantic_core_schema__" in vars(kind)  # fmt: skip


def _types(annotation: Any, seen: set[int], *, into_models: bool = True) -> Iterator[Any]:
    """All that an annotation is made of: types, their parameters, metadata, fields."""
    if id(annotation) in seen:
        return
    seen.add(id(annotation))
    yield annotation
    if not into_models and is_model_type(annotation):
        return
    for part in (*typing.get_args(annotation), *_fields(annotation)):
        yield from _types(part, seen, into_models=into_models)
    for part in getattr(annotation, "__metadata__", ()):
        yield part
    origin = typing.get_origin(annotation)
    if isinstance(origin, type):
        yield from _types(origin, seen)


def _fields(annotation: Any) -> list[Any]:
    is_ours = isinstance(annotation, type) and (
        is_dataclass(annotation)
        or typing.is_typeddict(annotation)
        or hasattr(annotation, "_fields")
        or is_model_type(annotation)
    )
    if not is_ours:
        return [annotation.__value__] if hasattr(annotation, "__value__") else []
    if is_model_type(annotation):
        return [field.annotation for field in annotation.model_fields.values()]
    try:
        return list(typing.get_type_hints(annotation, include_extras=True).values())
    except Exception:  # of names that are not there: whoever reads such values says so
        return []


def _line(error: Any) -> str:
    """A ValidationError in one line: its first problem with its place, and how many more."""
    listed = getattr(error, "errors", None)
    if not callable(listed):
        return str(error)
    problems = listed(include_url=False, include_context=False, include_input=False)
    first = problems[0]
    place = "".join(f"[{p}]" if isinstance(p, int) else f".{p}" for p in first["loc"])
    more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
    return f"{first['msg']}{f' - at `${place}`' if place else ''}{more}"


def _base() -> Any:
    module = _loaded("pydantic")
    return None if module is None else module.BaseModel


def _loaded(name: str) -> Any:
    return sys.modules.get(name)
