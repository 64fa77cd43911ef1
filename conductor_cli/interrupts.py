"""SIGTERM, SIGINT and SIGHUP for a program that embeds an orchestrator."""

from __future__ import annotations

import os
import signal
import threading
import time
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any, Final

from conductor_cli import errors

if TYPE_CHECKING:
    from collections.abc import Callable

SECOND_SIGNAL_AFTER: Final = 1.0


class Signals:
    """While entered: SIGTERM, SIGINT and SIGHUP stop, a later second one hurries. Main thread only.

    SIGHUP is left alone where the program ignores it, as under ``nohup``, or has a handler of its
    own, unless ``owns_hangup``. The handler only leaves a note; a thread acts on it.
    """

    def __init__(
        self, stop: Callable[[], None], hurry: Callable[[], None], *, owns_hangup: bool = False
    ) -> None:
        self._stop, self._hurry = stop, hurry
        self._owns_hangup = owns_hangup
        self._notes: SimpleQueue[float | None] = SimpleQueue()  # its put() is reentrant
        self._before: dict[signal.Signals, Any] = {}
        self.was_asked = False
        self._pid = os.getpid()

    def __enter__(self) -> Signals:
        for number in (signal.SIGTERM, signal.SIGINT, *self._hangup()):
            self._before[number] = signal.signal(number, self._note)
        threading.Thread(target=self._act, name="signals", daemon=True).start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        if threading.current_thread() is threading.main_thread():
            for number, handler in self._before.items():
                signal.signal(number, handler)
        self._notes.put(None)

    def _hangup(self) -> list[signal.Signals]:
        found = signal.getsignal(signal.SIGHUP)
        takes = found is signal.SIG_DFL or (self._owns_hangup and found is not signal.SIG_IGN)
        return [signal.SIGHUP] if takes else []

    def _note(self, number: int, _frame: object) -> None:
        if os.getpid() == self._pid:
            self._notes.put(time.monotonic())
        else:  # a child that a task has forked: these signals are its own again
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)

    def _act(self) -> None:
        first: float | None = None
        while (note := self._notes.get()) is not None:
            self.was_asked = True
            if first is None:
                first = note
                threading.Thread(target=self._stop_quietly, name="stopper", daemon=True).start()
            elif note - first >= SECOND_SIGNAL_AFTER:
                self._hurry()

    def _stop_quietly(self) -> None:
        try:
            self._stop()
        except errors.ShutdownTimeout:
            return  # told to whoever waits for .stopped
