"""Brings the records of stdlib logging (uvicorn, psycopg, user code) into the same log."""

from __future__ import annotations

import logging
import sys
import time
from typing import Final

from conductor_cli.telemetry import events, text
from conductor_cli.telemetry.failures import LOGGER

# The driver and its pools tell every failed try of an outage: of each one line a second is enough.
_DRIVER: Final = "psycopg"
_DRIVER_LINE_EVERY: Final = 1.0

_OWN_KEYS: Final = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime"}


class Bridge(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self._driver_lines: dict[str, float] = {}

    def emit(self, record: logging.LogRecord) -> None:
        try:
            if record.name == LOGGER.name or self._is_one_too_many(record):
                return  # a failure is told by an event of its own
            extra = {k: v for k, v in vars(record).items() if k not in _OWN_KEYS}
            stack = {"stack": record.stack_info} if record.stack_info else {}
            fields = {"logger": record.name, **extra, **stack}
            error = error_of(record.exc_info)
            events.writer.submit(record.levelno, _message(record), fields, error)
        except Exception:
            events.writer.lose(1)

    def forget(self) -> None:
        """Begin anew, as if nothing had been logged."""
        self._driver_lines.clear()

    def _is_one_too_many(self, record: logging.LogRecord) -> bool:
        if record.name.partition(".")[0] != _DRIVER:
            return False
        now = time.monotonic()
        if now - self._driver_lines.get(record.name, -_DRIVER_LINE_EVERY) < _DRIVER_LINE_EVERY:
            return True
        self._driver_lines[record.name] = now
        return False


def error_of(exc_info: object) -> BaseException | None:
    """The error meant by any of the forms that logging and structlog allow."""
    if exc_info is True:
        return sys.exception()
    error = exc_info[1] if isinstance(exc_info, tuple) else exc_info
    return error if isinstance(error, BaseException) else None


def _message(record: logging.LogRecord) -> str:
    try:
        return record.getMessage()
    except Exception:  # "%d" % "text" is the author's mistake; the line is wanted all the same
        return f"{text.of(record.msg)} {text.of(record.args)}"
