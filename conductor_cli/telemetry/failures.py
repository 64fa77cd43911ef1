"""A record of stdlib logging for each failure of a task, with its exception.

Error trackers listen to logging. Their handlers may block, on the network for example. So a
thread of its own gives the records to the logger "conductor.task"; nobody waits for it. It does so
in a copy of the context in which the failure was told, where trackers keep what they know.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
from contextvars import Context, copy_context
from queue import SimpleQueue
from typing import TYPE_CHECKING, Final, TypeAlias

from conductor_cli.telemetry import text

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    Item: TypeAlias = tuple[Context, logging.LogRecord] | threading.Event

LOGGER: Final = logging.getLogger("conductor.task")

_MOST: Final = 1_000
"""Records that may wait. Each keeps its exception with all it refers to."""


class Failures:
    """The records of one process that wait, and the thread that gives them to the logger."""

    def __init__(self, lose: Callable[[int], None]) -> None:
        self._lose = lose
        self._items: SimpleQueue[Item] = SimpleQueue()
        self._starting = threading.Lock()
        self._thread: threading.Thread | None = None
        os.register_at_fork(after_in_child=self._begin_in_child)

    def tell(
        self,
        error: BaseException,
        told: str,
        fields: Mapping[str, object],
        *,
        final: bool,
        context: Context | None = None,
    ) -> None:
        """An ERROR for a ``final`` failure, a WARNING for one that is retried. Never waits."""
        try:
            level = logging.ERROR if final else logging.WARNING
            if not LOGGER.isEnabledFor(level):
                return
            if self._items.qsize() >= _MOST:
                self._lose(1)
                return
            how = "failed" if final else "failed and is retried"
            record = LOGGER.makeRecord(
                LOGGER.name, level, __file__, 0, f"Task %s {how}: %s",
                (fields["task"], text.bare(text.safe(told))),
                (type(error), error, error.__traceback__), extra=dict(fields),
            )  # fmt: skip
            self._items.put((copy_context() if context is None else context, record))
            if self._thread is None:
                self._start()
        except Exception:
            self._lose(1)

    def flush(self, timeout: float) -> bool:
        """Wait until all so far have been handled; whether they have."""
        if self._thread is None or self._thread is threading.current_thread():
            return self._items.empty()
        done = threading.Event()
        self._items.put(done)
        return done.wait(timeout)

    def _start(self) -> None:
        with self._starting:
            if self._thread is None:
                thread = threading.Thread(target=self._run, name="failures", daemon=True)
                with contextlib.suppress(RuntimeError):  # no thread to be had: the next one tries
                    thread.start()
                    self._thread = thread

    def _run(self) -> None:
        while True:
            self._handle(self._items.get())

    def _handle(self, item: Item) -> None:
        if isinstance(item, threading.Event):
            item.set()
            return
        context, record = item
        with contextlib.suppress(BaseException):  # a handler is somebody else's code
            context.run(LOGGER.handle, record)

    def _begin_in_child(self) -> None:
        """A forked child has no thread, and may have inherited the lock held."""
        self._items, self._starting, self._thread = SimpleQueue(), threading.Lock(), None
