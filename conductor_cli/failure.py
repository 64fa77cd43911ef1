"""An exception as it is stored: its type, its text, its traceback."""

from __future__ import annotations

import os
import traceback
from typing import Any, Final

from conductor_cli.models import ExecutionError

NAME_LIMIT: Final = 500
MESSAGE_LIMIT: Final = 8_000
TRACEBACK_LIMIT: Final = 32_000
_HERE: Final = os.path.dirname(__file__) + os.sep
_SHORT: Final = ("builtins", "conductor_cli.errors", "conductor_cli.attempt")


def describe(error: BaseException) -> ExecutionError:
    """An exception as it is stored: texts cut, free of NUL, whatever its ``__str__`` does."""
    kind = type(error)
    name = kind.__qualname__
    if kind.__module__ not in _SHORT:
        name = f"{kind.__module__}.{name}"
    if kind.__name__ == "TaskTimeout" and kind.__module__ in _SHORT:
        name = "TimeoutError"
    return ExecutionError(clean(name, NAME_LIMIT), text_as_stored(error), _traceback(error))


def text_as_stored(error: BaseException) -> str:
    """The text of an exception as ``describe`` stores it."""
    return clean(text(error), MESSAGE_LIMIT)


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
