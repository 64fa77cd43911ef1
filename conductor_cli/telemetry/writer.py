"""One output: a bounded queue, and the one thread that takes lines from it and writes them."""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
import threading
from logging import WARNING, LogRecord
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Final

from conductor_cli.telemetry import meters
from conductor_cli.telemetry.catalogue import CATALOGUE
from conductor_cli.telemetry.lines import LIBRARY

if TYPE_CHECKING:
    from typing import TextIO, TypeAlias

    from conductor_cli.telemetry.lines import Fields, Form
    from conductor_cli.telemetry.summary import Summary

    Item: TypeAlias = str | LogRecord | threading.Event | None

_QUEUED_LINES: Final = 10_000
_SPARE_LINES: Final = 2_000  # room that only warnings and worse may use
_LOST: Final = "log.lines_dropped"


class Turn:
    """Lets one of several processes write at a time, so that no line is torn by another's.

    A pipe takes only short writes whole. ``file`` is one that all of them have open; the kernel
    drops the lock of whoever dies.
    """

    def __init__(self, file: int) -> None:
        self._file = file

    def __enter__(self) -> None:
        fcntl.lockf(self._file, fcntl.LOCK_EX)

    def __exit__(self, *exc_info: object) -> None:
        fcntl.lockf(self._file, fcntl.LOCK_UN)


class Writer:
    """Lines of one ``form`` for one ``stream``, and its ``summary`` now and then.

    Only its own thread touches the stream, and only when it is this process's ``turn``. The
    first item starts it, in each process anew.
    """

    def __init__(
        self, form: Form, stream: TextIO | None, summary: Summary, turn: Turn | None = None
    ) -> None:
        self.form, self.stream, self.summary, self.turn = form, stream, summary, turn
        self._items: SimpleQueue[Item] = SimpleQueue()  # the one queue whose put is re-entrant
        self._lock = threading.RLock()  # re-entrant as well, for finalizers that log
        self._thread: threading.Thread | None = None
        self._lost = 0
        self._retired = False

    def submit(
        self, level: int, event: str, fields: Fields, error: BaseException | None = None
    ) -> None:
        spare = _SPARE_LINES if level >= WARNING else 0
        if self._items.qsize() >= _QUEUED_LINES + spare:
            self.lose(1)
        else:
            self.put(self.form.item(level, event, fields, error))

    def lose(self, count: int) -> None:
        meters.count(_LOST, CATALOGUE[_LOST], count, {})
        with self._lock:
            self._lost += count

    def wake(self) -> None:
        """Have the thread look when the summary is due."""
        self.put(None)

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

    def put(self, item: Item) -> None:
        """Queue it, whatever its length; does not wait."""
        self._items.put(item)
        if self._thread is None:
            self._start()

    def _start(self) -> None:
        with self._lock:
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
            if isinstance(item, LogRecord):
                with contextlib.suppress(Exception):
                    LIBRARY.handle(item)
        added = self._write([item for item in items if isinstance(item, str)])
        flushes = [item for item in items if isinstance(item, threading.Event)]
        added = self.summary.tell(early=bool(flushes)) or added
        for done in flushes:
            if added:
                self._items.put(done)  # once more, behind the lines just added
            else:
                done.set()

    def _take(self) -> list[Item]:
        items: list[Item] = []
        with contextlib.suppress(Empty):
            items.append(self._items.get(timeout=self.summary.due_in()))
            while len(items) < 500:
                items.append(self._items.get_nowait())
        return items

    def _write(self, lines: list[str]) -> bool:
        """Write; returns whether that added a line about lost ones to the queue."""
        if not lines:
            return False
        try:
            with self.turn or contextlib.nullcontext():
                _write_all(self.stream, "".join(lines))
        except Exception:  # closed, gone, disk full: the next lines try again
            self.lose(len(lines))
            return False
        return self._tell_lost()

    def _tell_lost(self) -> bool:
        with self._lock:
            lost, self._lost = self._lost, 0
        if lost:
            self._items.put(self.form.item(WARNING, _LOST, {"count": lost}, None))
        return bool(lost)


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
