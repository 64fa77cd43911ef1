"""What a function returns, as it is stored, and as it is read again by the return annotation.

What is delivered is always what has been read from JSON, on the first run too, so that a replay
never differs. So a value that would come back as another one is refused when it is recorded.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from enum import Enum
from typing import TYPE_CHECKING, Any, Final, Never, NoReturn

from conductor_cli import payloads, pydantic_types
from conductor_cli.errors import PayloadError, TaskDefinitionError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_UNTYPED: Final = (inspect.Signature.empty, Any, None, type(None), object, Never, NoReturn)
_SCALARS: Final = frozenset((str, int, float, bool, type(None)))
_LISTS: Final = (list, tuple, set, frozenset)


class ResultType:
    """How the stored results of one function are written and read.

    ``annotation``: a type; Any and its like stand for JSON's own values. ``where`` names the
    function in messages. Raises TaskDefinitionError for a type that cannot be read from JSON.
    """

    def __init__(self, annotation: Any, where: str) -> None:
        self.is_typed = not any(annotation is untyped for untyped in _UNTYPED)
        self._type: payloads.JsonType | None = None
        if not self.is_typed:
            return
        if why := pydantic_types.unstorable(annotation):
            raise TaskDefinitionError(f"{where}: its results cannot be stored: {why}.")
        try:
            self._type = payloads.JsonType(annotation)
        except (TypeError, ValueError) as error:
            raise TaskDefinitionError(
                f"{where}: a result cannot be read from JSON as its return annotation says: "
                f"{payloads.friendly(error)}."
            ) from None

    @classmethod
    def of(cls, function: Callable[..., Any]) -> ResultType:
        """By the return annotation of a function; what a class returns is an instance of it."""
        if isinstance(function, type):
            return cls(function, payloads.describe(function))
        annotation = payloads.return_annotation(function)
        return cls(annotation, payloads.describe(function))

    def decode(self, text: str) -> Any:
        """The result from JSON text; raises PayloadError when it does not fit the annotation."""
        try:
            return payloads.decode(text) if self._type is None else self._type.decode(text)
        except Exception as error:
            raise PayloadError(
                f"The result does not fit the return annotation: {payloads.friendly(error)}."
            ) from error

    def encode(self, value: object, what: str, limit: int | None) -> tuple[str, Any]:
        """A result as JSON text, and as it will be read from that.

        Raises PayloadError for what JSON has no place for, what does not fit the annotation, and
        what would come back as another value.
        """
        text, read = self._written(value, what, limit)
        for path, wrote, found in _differences(value, read, "$"):
            raise PayloadError(
                f"{what} has a {_kind(wrote)} at {path}, which would come back as {_kind(found)}. "
                + (
                    "Its type differs from what the function is annotated to return."
                    if self.is_typed
                    else "Annotate what the function returns, or name the type: "
                    f"Step({_name(what)}, returns=...)."
                )
            )
        return text, read

    def encode_fitting(self, value: object, what: str, limit: int | None) -> str:
        """A result as JSON text, for readers of JSON: it has to fit the annotation, and need not
        come back equal. Raises PayloadError."""
        if self.is_typed:
            return self._written(value, what, limit)[0]
        return payloads.encode(value, what, limit)

    def _written(self, value: object, what: str, limit: int | None) -> tuple[str, Any]:
        text = payloads.encode(value, what, limit)
        try:
            return text, self.decode(text)
        except PayloadError as error:
            raise PayloadError(f"{what} {str(error).removeprefix('The result ')}") from error


def _differences(value: Any, read: Any, path: str) -> Iterator[tuple[str, Any, Any]]:
    """Where a value and what has been read of it differ in what they are.

    JSON's own scalars may have been converted, as an annotation says; lists may have become tuples
    or sets, and the reverse.
    """
    kind = type(value)
    if kind in _SCALARS:
        return
    if isinstance(value, Enum):
        if read is not value:
            yield path, value, read
    elif isinstance(value, Mapping):
        yield from _of_mappings(value, read, path)
    elif kind in _LISTS and isinstance(read, _LISTS):
        yield from _of_lists(value, read, path)
    elif names := _attributes(value):
        if type(read) is not kind:
            yield path, value, read
            return
        for name in names:
            yield from _differences(
                getattr(value, name, None), getattr(read, name, None), f"{path}.{name}"
            )
    elif isinstance(value, (str, int, float)) and value == read:
        return  # a subclass, such as numpy's float64
    elif type(read) is not kind or read != value:
        yield path, value, read


def _of_mappings(value: Mapping[Any, Any], read: Any, path: str) -> Iterator[tuple[str, Any, Any]]:
    if not isinstance(read, Mapping) or len(read) != len(value):
        yield path, value, read
        return
    for key, part in value.items():
        if key not in read:
            yield f"{path}.{key}", key, next(iter(read), None)
            return
        yield from _differences(part, read[key], f"{path}.{key}")


def _of_lists(value: Any, read: Any, path: str) -> Iterator[tuple[str, Any, Any]]:
    if isinstance(value, AbstractSet):
        if value != read:
            yield path, value, read
        return
    if isinstance(read, AbstractSet):
        return
    if len(read) != len(value):
        yield path, value, read
        return
    for index, (part, found) in enumerate(zip(value, read, strict=True)):
        yield from _differences(part, found, f"{path}[{index}]")


def _attributes(value: Any) -> list[str]:
    if pydantic_types.is_model(value):
        return list(type(value).model_fields)
    return list(getattr(value, "_fields", ()) or payloads.attributes(value))


def _kind(value: object) -> str:
    return "None" if value is None else type(value).__name__


def _name(what: str) -> str:
    """The step's name out of "The result of step 'x'"."""
    return what.rpartition(" step ")[2] if " step " in what else "name"
