"""What happened, told once: `emit` feeds the log, the counters and whoever subscribed.

    telemetry.emit("executions.rescued", count=3, orchestrator=dead_id)

Every event stands in `CATALOGUE` with its level and its counter. A line goes the same way
wherever it comes from (`emit`, `logger`, stdlib logging): rendered by the caller, put on a bounded
queue, written by one daemon thread. So a slow, closed or full output delays nobody: when the
queue is full, lines are lost, counted, and the log says how many.

Until the command calls `configure`, nothing is set up: events become records of the stdlib
logger "conductor", handled by that thread, and the application decides what to do with them.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import logging
import os
import re
import select
import sys
import threading
import time
import traceback
from bisect import bisect_left
from collections.abc import Mapping
from datetime import UTC, datetime
from logging import DEBUG, ERROR, INFO, WARNING
from math import isfinite
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Final, NamedTuple, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, MutableMapping
    from types import TracebackType
    from typing import Any, TextIO, TypeAlias

    from prometheus_client.metrics_core import Metric
    from structlog.typing import FilteringBoundLogger

    Handler: TypeAlias = Callable[[str, int, Mapping[str, object]], None]
    Reader: TypeAlias = Callable[[], Mapping[tuple[str, ...], float]]
    ErrorInfo: TypeAlias = tuple[type[BaseException], BaseException, TracebackType | None]
    Item: TypeAlias = str | logging.LogRecord | threading.Event | None


T = TypeVar("T")


class Event(NamedTuple):
    """One row of the catalogue; ``line_every``: at most one line per so many seconds and labels."""

    level: int
    help: str
    counted: bool = False
    labels: tuple[str, ...] = ()
    line_every: float = 0.0


class Histogram(NamedTuple):
    metric: str
    help: str
    labels: tuple[str, ...]


def _told(level: int, help: str) -> Event:  # noqa: A002
    return Event(level, help)


def _counted(level: int, help: str, *labels: str, line_every: float = 0.0) -> Event:  # noqa: A002
    return Event(level, help, True, labels, line_every)


# What is counted has a counter named after it: conductor_executions_claimed_total.
CATALOGUE: Final[Mapping[str, Event]] = {
    "server.starting": _told(INFO, "The server begins to start."),
    "server.ready": _told(INFO, "Everything the server consists of is up."),
    "server.stopping": _told(INFO, "The server was asked to stop."),
    "server.stopped": _told(INFO, "The server has stopped."),
    "server.declared_dead": _counted(ERROR, "Times a peer declared this server dead."),
    "service.died": _counted(ERROR, "Services that ended with an error.", "service"),
    "executions.claimed": _counted(DEBUG, "Executions claimed.", "queue"),
    "executions.finished": _counted(DEBUG, "Executions that ended.", "queue", "task", "state"),
    "executions.summary": _told(INFO, "Executions that ended since the last such line, by state."),
    "execution.failed": _told(WARNING, "An execution ended failed."),
    "execution.retrying": _counted(INFO, "Attempts that failed, to be retried.", "queue", "task"),
    "execution.crashed": _counted(WARNING, "Attempts that were lost with their process."),
    "execution.unknown_task": _counted(WARNING, "Executions of tasks that are not served here."),
    "executions.rescued": _counted(WARNING, "Executions taken back from dead servers."),
    "executions.stale": _counted(WARNING, "Late writes refused: the claim was no longer held."),
    "executions.reconciled": _counted(WARNING, "Claims taken back: their reply was lost.", "queue"),
    "executions.released": _counted(INFO, "Executions handed back."),
    "executions.cancelled": _counted(INFO, "Executions that were cancelled."),
    "worker.stuck": _counted(ERROR, "Tasks that did not return after their timeout.", "queue"),
    "leadership.gained": _counted(INFO, "Times this server became the leader."),
    "leadership.lost": _counted(INFO, "Times this server ceased to be the leader."),
    "schedule.ticked": _counted(DEBUG, "Ticks that became executions."),
    "schedule.missed": _counted(WARNING, "Ticks whose moment passed with no server to run them."),
    "schedule.refused": _told(WARNING, "A schedule's expression is not understood here."),
    "history.pruned": _counted(DEBUG, "Executions deleted by retention."),
    "database.lost": _counted(
        WARNING, "Database calls that found no database.", "component", line_every=1.0
    ),
    "database.back": _told(INFO, "The database answers again."),
    "heartbeat.late": _counted(WARNING, "Heartbeats that came later than they should."),
    "clock.offset": _counted(WARNING, "Times this clock and the database's were found to differ."),
    "listener.proven": _told(DEBUG, "The listener heard its own ping."),
    "listener.lost": _counted(WARNING, "Times the listener went silent and polling took over."),
    "tasks.registered": _told(INFO, "The tasks this server serves were registered."),
    "migration.applied": _told(INFO, "A migration was applied."),
    "gauge.failed": _counted(WARNING, "Gauges that could not be read.", "gauge", line_every=60.0),
    "log.lines_dropped": _counted(WARNING, "Log lines lost to a full queue or broken output."),
}
HISTOGRAMS: Final[Mapping[str, Histogram]] = {
    "execution.run": Histogram(
        "conductor_execution_run_seconds", "How long attempts ran.", ("queue", "task")
    ),
    "execution.wait": Histogram(
        "conductor_execution_wait_seconds", "From due to claimed.", ("queue",)
    ),
}
BUCKETS: Final = (
    *(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5),
    *(1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 1800.0, 3600.0),
)
METRICS_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"
SUMMARY_EVERY: Final = 5.0  # seconds

_UNKNOWN: Final = Event(WARNING, "Not in the catalogue: a mistake the unit tests catch.")
_LEVELS: Final = {"debug": 10, "info": 20, "warning": 30, "error": 40, "critical": 50}
_LEVEL_NAMES: Final = {number: name for name, number in _LEVELS.items()}
_QUEUED_LINES: Final = 10_000
_SPARE_LINES: Final = 2_000  # room that only warnings and worse may use
_LONGEST_LINE: Final = 32_768
_LONGEST_TEXT: Final = 8_192


# ── Telling ──────────────────────────────────────────────────────────────────────────────


def emit(event: str, /, *, count: int = 1, **fields: object) -> None:
    """Count, tell subscribers and log one event (``count`` of them at once; the line omits a 1).

    Never raises and never waits for output. Costs about 1 us when its level is not logged.
    """
    try:
        known = CATALOGUE.get(event, _UNKNOWN)
        due = _count(event, known, count, fields)
        if _subscribers:
            _tell(event, count, fields)
        if due and _form.enabled(known.level):
            _submit(known.level, event, fields if count == 1 else {"count": count, **fields})
    except Exception:
        _writer.lose(1)


def observe(histogram: str, seconds: Iterable[float], *labels: str) -> None:
    """Add durations to one of `HISTOGRAMS`; hand over a whole batch at once. Never raises."""
    with contextlib.suppress(Exception):
        key, batch = (histogram, *labels), [float(value) for value in seconds]
        with _lock:
            cells = _observed.setdefault(key, [0.0] * (len(BUCKETS) + 2))
            for value in batch:
                cells[bisect_left(BUCKETS, value)] += 1
            cells[-1] += sum(batch)


def subscribe(handler: Handler) -> Callable[[], None]:
    """Call ``handler(event, count, fields)`` for every event, whatever its level; returns the undo.

    It runs in the emitting thread, so it must be quick; what it raises is ignored.
    """
    return _add(_subscribers, handler)


def logger(**bound: object) -> FilteringBoundLogger:
    """A structlog logger whose lines go the same way as events; never waits for output."""
    import structlog  # 0.1 s of imports that most processes never need

    kind = structlog.make_filtering_bound_logger(logging.NOTSET)
    processors = [structlog.contextvars.merge_contextvars, _from_structlog]
    wrapped = structlog.wrap_logger(None, processors, kind, dict, cache_logger_on_first_use=False)
    bound_logger: FilteringBoundLogger = wrapped.bind(**bound)
    return bound_logger


# ── Setting up ───────────────────────────────────────────────────────────────────────────


def configure(level: str = "info", format: str = "auto", stream: TextIO | None = None) -> None:  # noqa: A002
    """Write lines to ``stream`` (default: stderr) and take over the root of stdlib logging.

    ``format``: "json", "console", or "auto": console on a terminal, JSON otherwise. May be called
    again; lines of the previous setting are given a second to get out. For the command only.
    """
    if level.lower() not in _LEVELS or format not in {"auto", "console", "json"}:
        raise ValueError(f"No such log level or format: {level!r}, {format!r}.")
    stream = sys.stderr if stream is None else stream
    readable = format == "console" or (format == "auto" and _is_terminal(stream))
    threshold = _LEVELS[level.lower()]
    _switch(_Lines(threshold, _console if readable else _json), _Writer(stream))
    logging.root.addHandler(_bridge)
    logging.root.setLevel(threshold)


def reset() -> None:
    """Undo `configure`: events go to the stdlib logger "conductor" again. For tests."""
    logging.root.removeHandler(_bridge)
    logging.root.setLevel(WARNING)
    _switch(_Records(), _Writer(None))


def flush(timeout: float) -> bool:
    """Wait until all lines so far are out, a pending summary too; at most ``timeout`` seconds.

    Returns whether they are. A line that the output refused counts as out.
    """
    return _writer.flush(timeout)


def redact(text: str) -> str:
    """``text`` without the passwords of URLs (``://user:***@``) and of ``password=...``."""
    return _PASSWORD.sub(r"\1***", _URL_PASSWORD.sub(r"\1***@", text))


# ── Metrics ──────────────────────────────────────────────────────────────────────────────


def gauge(
    name: str,
    help: str,  # noqa: A002
    read: Reader,
    labels: tuple[str, ...] = (),
) -> Callable[[], None]:
    """Have ``read`` called at each scrape; returns the undo. Several owners may share a name.

    ``read`` returns values by label values (``{(): 3}`` without labels), from memory and at once.
    Raises ValueError for a name Prometheus refuses.
    """
    if not re.fullmatch(r"[a-zA-Z_][a-zA-Z0-9_]*", name):
        raise ValueError(f"Prometheus cannot take {name!r} as the name of a metric.")
    return _add(_gauges, _Gauge(name, help, read, labels))


def metrics() -> bytes:
    """All counters, histograms and gauges as Prometheus text (`METRICS_TYPE`).

    A gauge that cannot be read is left out and told as an event.
    """
    from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest

    registry = CollectorRegistry()
    ProcessCollector(registry=registry)
    registry.register(_Scrape())
    return generate_latest(registry)


# ── Counting ─────────────────────────────────────────────────────────────────────────────


class _Gauge(NamedTuple):
    name: str
    help: str
    read: Reader
    labels: tuple[str, ...]


# Re-entrant, because the garbage collector may run a finalizer that logs while we hold it.
_lock = threading.RLock()
_counts: dict[tuple[str, ...], int] = {}
_observed: dict[tuple[str, ...], list[float]] = {}
_last_lines: dict[tuple[str, ...], float] = {}
_finished: dict[str, int] = {}
_finished_since = 0.0
_gauges: list[_Gauge] = []
_subscribers: list[Handler] = []


def _add(items: list[T], item: T) -> Callable[[], None]:
    items.append(item)

    def undo() -> None:
        with contextlib.suppress(ValueError):
            items.remove(item)

    return undo


def _count(event: str, known: Event, count: int, fields: Mapping[str, object]) -> bool:
    """Add to the event's counter; returns whether a line is due by its ``line_every``."""
    key = (event, *[str(fields.get(label, "")) for label in known.labels])
    with _lock:
        _counts[key] = _counts.get(key, 0) + count
        if event == "executions.finished":
            _add_to_summary(key[-1], count)
        if not known.line_every:
            return True
        now = time.monotonic()
        due = now - _last_lines.get(key, -known.line_every) >= known.line_every
        if due:
            _last_lines[key] = now
        return due


def _add_to_summary(state: str, count: int) -> None:
    global _finished_since  # noqa: PLW0603
    if not _form.enabled(INFO):
        return
    first = not _finished
    if first:
        _finished_since = time.monotonic()
    _finished[state] = _finished.get(state, 0) + count
    if first:
        _writer.put(None)  # only now: it is to see that there is something to wait for


def _summarise() -> bool:
    with _lock:
        states, seconds = dict(_finished), time.monotonic() - _finished_since
        _finished.clear()
    if states:
        fields: dict[str, Any] = {**states, "seconds": round(seconds, 3)}
        if seconds >= 1:
            fields["per_second"] = round(sum(states.values()) / seconds, 1)
        emit("executions.summary", **fields)
    return bool(states)


def _tell(event: str, count: int, fields: Mapping[str, object]) -> None:
    for handler in tuple(_subscribers):
        with contextlib.suppress(Exception):
            handler(event, count, fields)


class _Scrape:
    def collect(self) -> Iterator[Metric]:
        yield from _counter_families()
        yield from _histogram_families()
        yield from _gauge_families()


def _counter_families() -> Iterator[Metric]:
    from prometheus_client.core import CounterMetricFamily

    with _lock:
        counts = dict(_counts)
    for name, event in CATALOGUE.items():
        if event.counted:
            metric = f"conductor_{name.replace('.', '_')}_total"
            family = CounterMetricFamily(metric, event.help, labels=event.labels)
            unlabelled = {} if event.labels else {(name,): 0}  # zero from the start, for alerts
            for key, value in (unlabelled | counts).items():
                if key[0] == name:
                    family.add_metric(key[1:], value)
            yield family


def _histogram_families() -> Iterator[Metric]:
    from prometheus_client.core import HistogramMetricFamily

    with _lock:
        observed = {key: list(cells) for key, cells in _observed.items()}
    bounds = [*map(str, BUCKETS), "+Inf"]
    for name, histogram in HISTOGRAMS.items():
        family = HistogramMetricFamily(histogram.metric, histogram.help, labels=histogram.labels)
        for key, cells in observed.items():
            if key[0] == name:
                running = [sum(cells[: place + 1]) for place in range(len(bounds))]
                family.add_metric(key[1:], list(zip(bounds, running, strict=True)), cells[-1])
        yield family


def _gauge_families() -> Iterator[Metric]:
    from prometheus_client.core import GaugeMetricFamily

    families: dict[str, GaugeMetricFamily] = {}
    for entry in tuple(_gauges):
        family = families.setdefault(
            entry.name, GaugeMetricFamily(entry.name, entry.help, labels=entry.labels)
        )
        try:
            values = [(dict(zip(entry.labels, k, strict=True)), v) for k, v in entry.read().items()]
        except Exception as error:
            emit("gauge.failed", gauge=entry.name, error=repr(error))
            continue
        for labels, value in values:
            family.add_sample(entry.name, labels, value)
    yield from families.values()


# ── Rendering, in the caller's thread ────────────────────────────────────────────────────

_URL_PASSWORD: Final = re.compile(r"(://[^\s:/@]{0,256}:)\S{0,1024}@")
_PASSWORD: Final = re.compile(r"(?i)(password\s*=\s*)(?:'(?:\\.|[^'\\])*'|[^\s&\"']+)")
_PLAIN: Final = re.compile(r"[^\s\"'=\\]+")
_OURS: Final = frozenset({"timestamp", "level", "event"})
_RECORD_KEYS: Final = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime"}


class _Lines:
    """The configured form: text for our own stream."""

    def __init__(
        self, threshold: int, render: Callable[[str, str, Mapping[str, object]], str]
    ) -> None:
        self._threshold, self._render = threshold, render

    def enabled(self, level: int) -> bool:
        return level >= self._threshold

    def item(
        self, level: int, event: str, fields: Mapping[str, object], error: ErrorInfo | None
    ) -> Item:
        name = _LEVEL_NAMES.get(level) or logging.getLevelName(level).lower()
        if error is not None:
            fields = {**fields, "exception": "".join(traceback.format_exception(*error))}
        return self._line(name, event, fields) + "\n"

    def _line(self, level: str, event: str, fields: Mapping[str, object]) -> str:
        with contextlib.suppress(TypeError, ValueError, RecursionError):  # NaN, cycles, odd keys
            line = self._render(level, event, fields)
            if len(line) <= _LONGEST_LINE and not _may_hold_password(line):
                return line
        event, cleaned = _safe(event), {_safe(k): _clean(v) for k, v in fields.items()}
        line = self._render(level, event, cleaned)
        return (
            line if len(line) <= _LONGEST_LINE else self._render(level, event, {"cut": _safe(line)})
        )


class _Records:
    """The form before `configure`: records for the application's own logging."""

    def enabled(self, level: int) -> bool:
        return _library.isEnabledFor(level)

    def item(
        self, level: int, event: str, fields: Mapping[str, object], error: ErrorInfo | None
    ) -> Item:
        event, fields = _safe(event), {_safe(str(k)): _clean(v) for k, v in fields.items()}
        message = _bare(event) + _pairs(fields)
        extra = {"conductor": {"event": event, **fields}}
        name, here = _library.name, (__file__, 0)
        return _library.makeRecord(name, level, *here, message, (), error, extra=extra)


def _json(level: str, event: str, fields: Mapping[str, object]) -> str:
    line: dict[str, object] = {"timestamp": _now(), "level": level, "event": event}
    for key, value in fields.items():
        line[key + "_" if key in _OURS else key] = value
    return _encode(line)


def _console(level: str, event: str, fields: Mapping[str, object]) -> str:
    inline = {key: value for key, value in fields.items() if key != "exception"}
    # A traceback keeps its lines, each indented: none can pass for a line of the log.
    trace = str(fields.get("exception", "")).splitlines()
    block = "".join(f"\n    {_bare(line)}" for line in trace)
    return f"{_now()} {level:<8} {_bare(event)}{_pairs(inline)}{block}"


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="microseconds")[:26] + "Z"


def _pairs(fields: Mapping[str, object]) -> str:
    return "".join(f" {_bare(str(key))}={_quoted(value)}" for key, value in fields.items())


def _bare(text: str) -> str:
    return text if text.isprintable() else repr(text)[1:-1]


def _quoted(value: object) -> str:
    text = _text(value)
    return text if _PLAIN.fullmatch(text) and text.isprintable() else repr(text)


def _text(value: object) -> str:
    try:
        return str(value)
    except Exception:
        return f"<unprintable {type(value).__name__}>"


# ASCII only: that escapes every control character, and no locale can refuse it.
_encode: Final = json.JSONEncoder(ensure_ascii=True, allow_nan=False, default=_text).encode


def _may_hold_password(line: str) -> bool:
    return "://" in line or "assword" in line or "ASSWORD" in line


def _clean(value: object, depth: int = 5) -> object:
    """``value`` without passwords, cut to size, certain to be JSON. Slow: only when needed."""
    if depth and isinstance(value, Mapping):
        pairs = list(value.items())[:100]
        return {_safe(_text(key)): _clean(inner, depth - 1) for key, inner in pairs}
    if depth and isinstance(value, (list, tuple, set, frozenset)):
        return [_clean(inner, depth - 1) for inner in list(value)[:100]]
    if value is None or isinstance(value, int) or (isinstance(value, float) and isfinite(value)):
        return value
    return _safe(_text(value))


def _safe(text: str) -> str:
    """Without passwords, and cut in the middle if very long (where a password may stand too)."""
    if len(text) <= _LONGEST_TEXT:
        return redact(text)
    half = _LONGEST_TEXT // 2
    head, tail = redact(text[:_LONGEST_TEXT])[:half], redact(text[-_LONGEST_TEXT:])[-half:]
    return f"{head} [... {len(text) - _LONGEST_TEXT} characters cut ...] {tail}"


# ── Ways in ──────────────────────────────────────────────────────────────────────────────


def _submit(
    level: int, event: str, fields: Mapping[str, object], error: ErrorInfo | None = None
) -> None:
    if _writer.is_full(level):
        _writer.lose(1)
    else:
        _writer.put(_form.item(level, event, fields, error))


def _from_structlog(
    _logger: Any, method: str, fields: MutableMapping[str, Any]
) -> Mapping[str, Any]:
    from structlog import DropEvent

    with contextlib.suppress(Exception):
        level, event = _LEVELS.get(method, INFO), _text(fields.pop("event", ""))
        if _form.enabled(level):
            _submit(level, event, fields, _error_info(fields.pop("exc_info", None)))
    raise DropEvent  # the line is ours now; structlog itself writes nothing


class _Bridge(logging.Handler):
    """Brings the records of stdlib logging (uvicorn, psycopg, user code) into the same log."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            extra = {k: v for k, v in vars(record).items() if k not in _RECORD_KEYS}
            stack = {"stack": record.stack_info} if record.stack_info else {}
            fields = {"logger": record.name, **extra, **stack}
            _submit(record.levelno, _message(record), fields, _error_info(record.exc_info))
        except Exception:
            _writer.lose(1)


def _message(record: logging.LogRecord) -> str:
    try:
        return record.getMessage()
    except Exception:  # "%d" % "text" is the author's mistake; the line is wanted all the same
        return f"{_text(record.msg)} {_text(record.args)}"


def _error_info(given: object) -> ErrorInfo | None:
    error = given[1] if isinstance(given, tuple) else given
    if error is True:
        error = sys.exc_info()[1]
    return (type(error), error, error.__traceback__) if isinstance(error, BaseException) else None


# ── Writing, in the writer's thread ──────────────────────────────────────────────────────


class _Writer:
    """The only thread that touches the output. Started by the first item, in each process anew."""

    def __init__(self, stream: TextIO | None) -> None:
        self.stream = stream
        self._items: SimpleQueue[Item] = SimpleQueue()  # the one queue whose put is re-entrant
        self._thread: threading.Thread | None = None
        self._lost = 0
        self._retired = False

    def is_full(self, level: int) -> bool:
        return self._items.qsize() >= _QUEUED_LINES + (_SPARE_LINES if level >= WARNING else 0)

    def put(self, item: Item) -> None:
        self._items.put(item)
        if self._thread is None:
            self._start()

    def lose(self, count: int) -> None:
        key = ("log.lines_dropped",)
        with _lock:
            self._lost += count
            _counts[key] = _counts.get(key, 0) + count

    def flush(self, timeout: float) -> bool:
        if self._thread is None or self._thread is threading.current_thread():
            return self._items.empty()
        done = threading.Event()
        self._items.put(done)
        return done.wait(timeout)

    def retire(self) -> None:
        """End the thread once its output has taken what is queued."""
        self.flush(1.0)
        self._retired = True
        self._items.put(None)

    def _start(self) -> None:
        with _lock:
            if self._thread is None:
                thread = threading.Thread(target=self._run, name="log", daemon=True)
                with contextlib.suppress(RuntimeError):  # no thread to be had: the next line tries
                    thread.start()
                    self._thread = thread

    def _run(self) -> None:
        while not (self._retired and self._items.empty()):
            with contextlib.suppress(Exception):
                self._round()

    def _round(self) -> None:
        items = self._take()
        for item in items:
            if isinstance(item, logging.LogRecord):
                _handle(item)
        added = self._write([item for item in items if isinstance(item, str)])
        flushes = [item for item in items if isinstance(item, threading.Event)]
        if _finished and (flushes or _summary_due() <= 0):
            added = _summarise() or added
        for done in flushes:
            if added:
                self._items.put(done)  # once more, behind the lines just added
            else:
                done.set()

    def _take(self) -> list[Item]:
        items: list[Item] = []
        with contextlib.suppress(Empty):
            items.append(self._items.get(timeout=max(0.0, _summary_due()) if _finished else None))
            while len(items) < 500:
                items.append(self._items.get_nowait())
        return items

    def _write(self, lines: list[str]) -> bool:
        """Write; returns whether that added a line about lost ones to the queue."""
        if not lines:
            return False
        try:
            _write_all(self.stream, "".join(lines))
        except Exception:  # closed, gone, disk full: the next lines try again
            self.lose(len(lines))
            return False
        return self._tell_lost()

    def _tell_lost(self) -> bool:
        with _lock:
            lost, self._lost = self._lost, 0
        if lost:
            self._items.put(_form.item(WARNING, "log.lines_dropped", {"count": lost}, None))
        return bool(lost)


def _handle(record: logging.LogRecord) -> None:
    with contextlib.suppress(Exception):
        _library.handle(record)


def _summary_due() -> float:
    return _finished_since + SUMMARY_EVERY - time.monotonic()


def _write_all(stream: TextIO | None, text: str) -> None:
    if stream is None:
        raise OSError("no output")
    try:
        fd = stream.fileno()
    except (AttributeError, OSError):  # not a file: a StringIO, a capture
        stream.write(text)
        stream.flush()
        return
    # Around the stream's buffer: its lock and its content would be copied by a fork.
    data = memoryview(text.encode(getattr(stream, "encoding", None) or "utf-8", "backslashreplace"))
    while data:
        try:
            data = data[os.write(fd, data) :]
        except BlockingIOError:
            select.select((), (fd,), ())


def _is_terminal(stream: TextIO | None) -> bool:
    try:
        return stream is not None and stream.isatty()
    except ValueError:  # closed
        return False


def _switch(form: _Lines | _Records, writer: _Writer) -> None:
    global _form, _writer
    previous = _writer
    _form, _writer = form, writer
    previous.retire()


def _begin_in_child() -> None:
    """A forked child has no writer thread, may have inherited held locks, and counts from zero."""
    global _lock, _writer
    _lock, _writer = threading.RLock(), _Writer(_writer.stream)
    for numbers in (_counts, _observed, _last_lines, _finished):
        numbers.clear()


_library: Final = logging.getLogger("conductor")
_bridge: Final = _Bridge()
_form: _Lines | _Records = _Records()
_writer = _Writer(None)
os.register_at_fork(after_in_child=_begin_in_child)
atexit.register(flush, 1.0)
