"""The numbers behind `metrics`: counters, durations in buckets, and gauges read when asked for."""

from __future__ import annotations

import contextlib
import os
import re
import threading
import time
from bisect import bisect_left
from typing import TYPE_CHECKING, NamedTuple

from conductor_cli.telemetry.catalogue import BUCKETS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from typing import TypeAlias

    from conductor_cli.telemetry.catalogue import Event

    Key: TypeAlias = tuple[str, ...]  # the name, then the values of its labels
    Reader: TypeAlias = Callable[[], Mapping[tuple[str, ...], float]]
    Source: TypeAlias = Callable[[], Iterable[bytes]]


class Gauge(NamedTuple):
    name: str
    help: str
    read: Reader
    labels: tuple[str, ...]


# Re-entrant, because the garbage collector may run a finalizer that logs while we hold it.
_lock = threading.RLock()
_counts: dict[Key, int] = {}
_observed: dict[Key, list[float]] = {}
_last_lines: dict[Key, float] = {}
_gauges: dict[object, Gauge] = {}
_sources: dict[object, Source] = {}


def count(event: str, known: Event, amount: int, fields: Mapping[str, object]) -> bool:
    """Add to the event's counter; returns whether a line is due by its ``line_every``."""
    key = (event, *[str(fields.get(label, "")) for label in known.labels])
    with _lock:
        _counts[key] = _counts.get(key, 0) + amount
        if not known.line_every:
            return True
        now = time.monotonic()
        due = now - _last_lines.get(key, -known.line_every) >= known.line_every
        if due:
            _last_lines[key] = now
        return due


def observe(histogram: str, seconds: Iterable[float], *labels: str) -> None:
    """Add durations to one of `HISTOGRAMS`; hand over a whole batch at once. Never raises."""
    with contextlib.suppress(Exception):
        key, batch = (histogram, *labels), [float(value) for value in seconds]
        with _lock:
            cells = _observed.setdefault(key, [0.0] * (len(BUCKETS) + 2))
            for value in batch:
                cells[bisect_left(BUCKETS, value)] += 1
            cells[-1] += sum(batch)


def gauge(name: str, help: str, read: Reader, labels: tuple[str, ...] = ()) -> Callable[[], None]:
    """Have ``read`` called at each scrape; returns the undo. Several owners may share a name.

    ``read`` returns values by label values (``{(): 3}`` without labels), from memory and at once.
    Raises ValueError for a name Prometheus refuses.
    """
    if not re.fullmatch(r"[a-zA-Z_][a-zA-Z0-9_]*", name):
        raise ValueError(f"Prometheus cannot take {name!r} as the name of a metric.")
    entry = object()
    _gauges[entry] = Gauge(name, help, read, labels)

    def undo() -> None:
        _gauges.pop(entry, None)

    return undo


def contribute(source: Source) -> Callable[[], None]:
    """Have the numbers of other processes added to each scrape; returns the undo.

    ``source`` returns what `metrics` says in each of them.
    """
    entry = object()
    _sources[entry] = source

    def undo() -> None:
        _sources.pop(entry, None)

    return undo


def contributed() -> list[bytes]:
    return [text for source in tuple(_sources.values()) for text in source()]


def counts() -> dict[Key, int]:
    with _lock:
        return dict(_counts)


def observed() -> dict[Key, list[float]]:
    """How many fell into each bucket, the last of them without a bound; then their sum."""
    with _lock:
        return {key: list(cells) for key, cells in _observed.items()}


def gauges() -> tuple[Gauge, ...]:
    return tuple(_gauges.values())


def _begin_in_child() -> None:
    """A forked child counts from zero."""
    for numbers in (_counts, _observed, _last_lines, _sources):
        numbers.clear()
    _lock.release()


# A fork waits for the lock, so that no child inherits it held by a thread it does not have.
os.register_at_fork(
    before=_lock.acquire, after_in_parent=_lock.release, after_in_child=_begin_in_child
)
