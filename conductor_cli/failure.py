"""An exception as it is stored, and raised again from what is stored."""

from __future__ import annotations

import builtins
import os
import sys
import traceback
from typing import Any, Final

from conductor_cli import errors
from conductor_cli.errors import StepError
from conductor_cli.models import ExecutionError

NAME_LIMIT: Final = 500
MESSAGE_LIMIT: Final = 8_000
TRACEBACK_LIMIT: Final = 32_000
_HERE: Final = os.path.dirname(__file__) + os.sep
_SHORT: Final = ("builtins", "conductor_cli.errors", "conductor_cli.attempt")


def describe(error: BaseException) -> ExecutionError:
    """An exception as it is stored: texts cut, free of NUL, whatever its ``__str__`` does."""
    message = text(error)
    kind = type(error)
    name = kind.__qualname__
    if kind.__module__ not in _SHORT:
        name = f"{kind.__module__}.{name}"
    if kind.__name__ == "TaskTimeout" and kind.__module__ in _SHORT:
        name = "TimeoutError"
    return ExecutionError(clean(name, NAME_LIMIT), clean(message, MESSAGE_LIMIT), _traceback(error))


def revive(stored: ExecutionError, where: str) -> Exception:
    """The exception again, with its type and message, for code that catches that type.

    Only a type that is loaded here already: a name in the database never imports anything.
    """
    kind = _kind(stored.type)
    if kind is None:
        return StepError(
            f"{where} failed before with {stored.type}: {stored.message}. That type is not "
            "loaded in this process, so it cannot be raised again."
        )
    error = kind.__new__(kind, stored.message)
    error.args = (stored.message,)
    return error


def text(value: object) -> str:
    """As ``str``, whatever that does: this is a task's code."""
    try:
        return str(value)
    except BaseException as worse:
        return f"(its __str__ raises {type(worse).__name__})"


def clean(text: str, limit: int) -> str:
    """Without NUL and lone surrogates, and cut in the middle: both ends of a traceback tell."""
    if len(text) > limit:
        text = f"{text[: limit // 2]} ... {text[-limit // 2 :]}"
    return text.replace("\0", "\\0").encode("utf-8", "backslashreplace").decode()


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


def _traceback(error: BaseException) -> str | None:
    if error.__traceback__ is None:
        return None
    try:
        frames = _own_frames_off(error)
        told = "".join(traceback.format_exception(type(error), error, frames))
    except BaseException as worse:
        return f"(its traceback raises {type(worse).__name__})"
    return clean(told, TRACEBACK_LIMIT)


def _own_frames_off(error: BaseException) -> Any:
    frames = error.__traceback__
    while frames is not None and frames.tb_frame.f_code.co_filename.startswith(_HERE):
        frames = frames.tb_next
    return frames or error.__traceback__
