"""What happened, told once: `emit` feeds the log, the counters and whoever subscribed.

    telemetry.emit("executions.rescued", count=3, orchestrator=dead_id)

Every event stands in `CATALOGUE` with its level and its counter. A line goes the same way
wherever it comes from (`emit`, `logger`, stdlib logging): rendered by the caller, put on a bounded
queue, written by one daemon thread. So a slow, closed or full output delays nobody: when the
queue is full, lines are lost, counted, and the log says how many.

Until the command calls `configure`, nothing is set up: events become records of the stdlib
logger "conductor", handled by that thread, and the application decides what to do with them.

The rooms, from the top: the ways in are ``events``, ``bridge`` (stdlib logging) and ``tasklog``
(structlog); the ways out ``writer`` and ``scrape`` (Prometheus), which ``sums`` up several
processes. ``summary`` and ``meters`` keep numbers, ``lines`` and ``text`` render, ``catalogue``
says what there is. ``failures`` gives the exceptions of tasks to whoever listens to stdlib logging.
"""

from __future__ import annotations

import logging
import sys
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

from conductor_cli.telemetry import events, lines
from conductor_cli.telemetry.bridge import Bridge
from conductor_cli.telemetry.catalogue import BUCKETS, CATALOGUE, HISTOGRAMS
from conductor_cli.telemetry.events import emit, failure, flush, subscribe, write
from conductor_cli.telemetry.meters import contribute, gauge, observe
from conductor_cli.telemetry.text import redact
from conductor_cli.telemetry.writer import Turn

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import TextIO

    from structlog.typing import FilteringBoundLogger

__all__ = [
    "BUCKETS",
    "CATALOGUE",
    "HISTOGRAMS",
    "METRICS_TYPE",
    "configure",
    "contribute",
    "emit",
    "failure",
    "flush",
    "gauge",
    "logger",
    "metrics",
    "observe",
    "redact",
    "reset",
    "subscribe",
    "write",
]

METRICS_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"

# Their records go to the bridge alone: a handler that others have put on the root, and that
# blocks, must not hold up the server.
_OWN: Final = ("conductor.server", "conductor.embedded", "psycopg", "uvicorn")

_bridge: Final = Bridge()


def configure(
    level: str = "info",
    format: str = "auto",
    stream: TextIO | None = None,
    *,
    common: Mapping[str, object] = MappingProxyType({}),
    turns: int | None = None,
) -> None:
    """Write lines to ``stream`` (default: stderr) and take over the root of stdlib logging.

    ``format``: "json", "console", or "auto": console on a terminal, JSON otherwise. Where several
    processes write there, ``common`` is what each of its lines says of this one, and ``turns`` a
    file that all have open and lock to write. May be called again; lines of the previous setting
    are given a second to get out. For the command only.
    """
    if level.lower() not in lines.LEVELS or format not in {"auto", "console", "json"}:
        raise ValueError(f"No such log level or format: {level!r}, {format!r}.")
    stream = sys.stderr if stream is None else stream
    readable = format == "console" or (format == "auto" and _is_terminal(stream))
    threshold = lines.LEVELS[level.lower()]
    render = lines.as_console if readable else lines.as_json
    turn = None if turns is None else Turn(turns)
    events.switch(lines.Lines(threshold, render, common), stream, turn)
    for name in _OWN:
        _take_over(logging.getLogger(name))
    logging.root.addHandler(_bridge)
    logging.root.setLevel(threshold)


def reset() -> None:
    """Undo `configure`: events go to the stdlib logger "conductor" again. For tests."""
    for name in _OWN:
        _give_back(logging.getLogger(name))
    logging.root.removeHandler(_bridge)
    _bridge.forget()
    logging.root.setLevel(logging.WARNING)
    events.switch(lines.Records(), None)


def logger(**bound: object) -> FilteringBoundLogger:
    """A structlog logger whose lines go the same way as events; never waits for output."""
    from conductor_cli.telemetry import tasklog  # 0.1 s of imports that most processes never need

    return tasklog.bind(bound)


def metrics() -> bytes:
    """All counters, histograms and gauges as Prometheus text (`METRICS_TYPE`).

    What other processes have contributed is added. A gauge that cannot be read is left out and
    told as an event.
    """
    from conductor_cli.telemetry import scrape

    return scrape.text()


def _take_over(log: logging.Logger) -> None:
    log.addHandler(_bridge)
    log.propagate = False


def _give_back(log: logging.Logger) -> None:
    log.removeHandler(_bridge)
    log.propagate = True


def _is_terminal(stream: TextIO | None) -> bool:
    try:
        return stream is not None and stream.isatty()
    except ValueError:  # closed
        return False
