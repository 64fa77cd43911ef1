"""The logger that tasks write to. Imports structlog, so import this where it is used."""

from __future__ import annotations

import contextlib
from logging import INFO, NOTSET
from typing import TYPE_CHECKING, Any, Final

import structlog

from conductor_cli.telemetry import bridge, events, lines, text

if TYPE_CHECKING:
    from collections.abc import Mapping, MutableMapping

    from structlog.typing import FilteringBoundLogger

_KIND: Final = structlog.make_filtering_bound_logger(NOTSET)


def bind(bound: Mapping[str, object]) -> FilteringBoundLogger:
    processors = [structlog.contextvars.merge_contextvars, _submit]
    wrapped = structlog.wrap_logger(None, processors, _KIND, dict, cache_logger_on_first_use=False)
    logger: FilteringBoundLogger = wrapped.bind(**bound)
    return logger


def _submit(_logger: Any, method: str, fields: MutableMapping[str, Any]) -> Mapping[str, Any]:
    with contextlib.suppress(Exception):
        level, event = lines.LEVELS.get(method, INFO), text.of(fields.pop("event", ""))
        if events.writer.form.enabled(level):
            error = bridge.error_of(fields.pop("exc_info", None))
            events.writer.submit(level, event, fields, error)
    raise structlog.DropEvent  # the line is ours now; structlog itself writes nothing
