"""The forms a line may take, rendered in the caller's thread: our own text, or a stdlib record."""

from __future__ import annotations

import contextlib
import json
import logging
import traceback
from datetime import UTC, datetime
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

from conductor_cli.telemetry import text

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import TypeAlias

    Fields: TypeAlias = Mapping[str, object]
    Render: TypeAlias = Callable[[str, str, Fields], str]
    Form: TypeAlias = "Lines | Records"

LEVELS: Final = {"debug": 10, "info": 20, "warning": 30, "error": 40, "critical": 50}
LIBRARY: Final = logging.getLogger("conductor")

_LEVEL_NAMES: Final = {number: name for name, number in LEVELS.items()}
_LONGEST: Final = 32_768
_OURS: Final = frozenset({"timestamp", "level", "event"})


class Lines:
    """The configured form: text for our own stream. ``common`` stands in every line."""

    def __init__(self, threshold: int, render: Render, common: Fields = MappingProxyType({})):
        self._threshold, self._render, self._common = threshold, render, common

    def enabled(self, level: int) -> bool:
        return level >= self._threshold

    def item(self, level: int, event: str, fields: Fields, error: BaseException | None) -> str:
        name = _LEVEL_NAMES.get(level) or logging.getLevelName(level).lower()
        if self._common:
            fields = {**self._common, **fields}
        if error is not None:
            fields = {**fields, "exception": "".join(traceback.format_exception(error))}
        return self._line(name, event, fields) + "\n"

    def _line(self, level: str, event: str, fields: Fields) -> str:
        with contextlib.suppress(TypeError, ValueError, RecursionError):  # NaN, cycles, odd keys
            line = self._render(level, event, fields)
            if len(line) <= _LONGEST and not text.may_hold_password(line):
                return line
        event = text.safe(event)
        cleaned = {text.safe(key): text.clean(value) for key, value in fields.items()}
        line = self._render(level, event, cleaned)
        if len(line) <= _LONGEST:
            return line
        return self._render(level, event, {"cut": text.safe(line)})


class Records:
    """The form before `configure`: records for the application's own logging."""

    def enabled(self, level: int) -> bool:
        return LIBRARY.isEnabledFor(level)

    def item(
        self, level: int, event: str, fields: Fields, error: BaseException | None
    ) -> logging.LogRecord:
        event = text.safe(event)
        fields = {text.safe(str(key)): text.clean(value) for key, value in fields.items()}
        message = text.bare(event) + text.pairs(fields)
        raised = None if error is None else (type(error), error, error.__traceback__)
        extra = {"conductor": {"event": event, **fields}}
        name, here = LIBRARY.name, (__file__, 0)
        return LIBRARY.makeRecord(name, level, *here, message, (), raised, extra=extra)


def as_json(level: str, event: str, fields: Fields) -> str:
    line: dict[str, object] = {"timestamp": _now(), "level": level, "event": event}
    for key, value in fields.items():
        line[key + "_" if key in _OURS else key] = value
    return _encode(line)


def as_console(level: str, event: str, fields: Fields) -> str:
    inline = {key: value for key, value in fields.items() if key != "exception"}
    # A traceback keeps its lines, each indented: none can pass for a line of the log.
    trace = str(fields.get("exception", "")).splitlines()
    block = "".join(f"\n    {text.bare(line)}" for line in trace)
    return f"{_now()} {level:<8} {text.bare(event)}{text.pairs(inline)}{block}"


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="microseconds")[:26] + "Z"


# ASCII only: that escapes every control character, and no locale can refuse it.
_encode: Final = json.JSONEncoder(ensure_ascii=True, allow_nan=False, default=text.of).encode
