"""Brings the records of stdlib logging (uvicorn, psycopg, user code) into the same log."""

from __future__ import annotations

import logging
import sys
from typing import Final

from conductor_cli.telemetry import events, text

_OWN_KEYS: Final = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime"}


class Bridge(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        try:
            extra = {k: v for k, v in vars(record).items() if k not in _OWN_KEYS}
            stack = {"stack": record.stack_info} if record.stack_info else {}
            fields = {"logger": record.name, **extra, **stack}
            error = error_of(record.exc_info)
            events.writer.submit(record.levelno, _message(record), fields, error)
        except Exception:
            events.writer.lose(1)


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
