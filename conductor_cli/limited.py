"""A plain function that may take so long and no longer.

It runs in a thread of its own, which has a copy of the caller's context. When its time is over an
exception is raised into that thread. A function that is busy in a call of C's does not notice it:
after a second more it is left behind, and what it does from then on is nobody's result.
"""

from __future__ import annotations

import ctypes
import threading
from contextvars import copy_context
from typing import TYPE_CHECKING, Any, Final

from conductor_cli.errors import StepTimedOut

if TYPE_CHECKING:
    from collections.abc import Callable

GRACE: Final = 1.0  # seconds
_LOOK: Final = 0.05
"""Seconds between two looks: what is raised into the waiting thread arrives with the next one."""


class _TimeIsUp(BaseException):
    """Raised in the function's thread."""


def limited(
    name: str, seconds: float, call: Callable[[], Any], stop: Callable[[], object] | None = None
) -> Any:
    """What ``call`` returns, or raises. Raises StepTimedOut when it takes longer; ``stop`` is
    then called, to end what the function may be waiting for."""
    work = _Work(call)
    work.thread.start()
    if work.wait(seconds):
        return work.result()
    work.interrupt()
    if stop is not None:
        stop()
    work.wait(GRACE)
    raise StepTimedOut(name, seconds)


class _Work:
    def __init__(self, call: Callable[[], Any]) -> None:
        self._call, self._context = call, copy_context()
        self._told: tuple[BaseException | None, Any] | None = None
        self._done = threading.Event()
        self._lock = threading.Lock()  # held while something is raised, and while it ends
        self.thread = threading.Thread(target=self._run, name="conductor-step", daemon=True)

    def wait(self, seconds: float) -> bool:
        whole, rest = divmod(seconds, _LOOK)
        return any(self._done.wait(_LOOK) for _ in range(int(whole))) or self._done.wait(rest)

    def result(self) -> Any:
        assert self._told is not None
        error, value = self._told
        if error is not None:
            raise error
        return value

    def interrupt(self) -> None:
        """Raise into the thread, unless it has what it was to find."""
        with self._lock:
            if self._told is None and self.thread.ident is not None:
                ctypes.pythonapi.PyThreadState_SetAsyncExc(
                    ctypes.c_ulong(self.thread.ident), ctypes.py_object(_TimeIsUp)
                )

    def _run(self) -> None:
        try:
            told = self._outcome()
            with self._lock:
                self._told = told
        except _TimeIsUp:  # it arrived when the function had returned
            pass
        finally:
            self._done.set()

    def _outcome(self) -> tuple[BaseException | None, Any]:
        try:
            return None, self._context.run(self._call)
        except _TimeIsUp:
            raise
        except BaseException as error:
            return error, None
