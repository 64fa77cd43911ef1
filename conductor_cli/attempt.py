"""One claim on its way through a thread, and how whoever runs it is asked to stop."""

from __future__ import annotations

import asyncio
import threading
import time
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from contextvars import Context, ContextVar
from datetime import timedelta
from enum import StrEnum
from typing import TYPE_CHECKING, Final

from conductor_cli.errors import Cancelling, Released, TaskTimeout

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from queue import SimpleQueue
    from types import CodeType

    from conductor_cli.errors import StepError
    from conductor_cli.ledger import Ledger
    from conductor_cli.lines import Lines
    from conductor_cli.models import Claimed

current: Final[ContextVar[Attempt | None]] = ContextVar("conductor_attempt", default=None)
"""The attempt that this thread, or asyncio task, runs."""


class Abort(StrEnum):
    """Why a task is asked to stop."""

    SHUTDOWN = "shutdown"
    CANCELLED = "cancelled"
    TIMEOUT = "timeout"
    LOST = "lost"  # the claim is somebody else's by now: nothing it does will be recorded


class Signal:
    """Asks a task to stop: set on shutdown, cancellation, timeout or loss of the claim."""

    def __init__(self) -> None:
        self._why: Abort | None = None
        self._detail: str | None = None
        self.was_raised = False  # the task has been told by an exception
        self._event = threading.Event()
        self._listeners: list[Callable[[], None]] = []
        self._lock = threading.Lock()

    @property
    def aborted(self) -> bool:
        """Whether the task should stop."""
        return self._why is not None

    @property
    def reason(self) -> Abort | None:
        """Why: ``shutdown``, ``cancelled``, ``timeout`` or ``lost``; None while it should not."""
        return self._why

    def wait(self, seconds: float | timedelta | None = None) -> bool:
        """Wait until the task should stop, at most ``seconds``; whether it should."""
        limit = seconds.total_seconds() if isinstance(seconds, timedelta) else seconds
        return self._event.wait(limit)

    def raise_if_aborted(self) -> None:
        """Leave the task if it should stop: handed back, cancelled or timed out, as asked.

        What is raised is no ``Exception``, and is raised again by each further call.
        """
        if self._why is None:
            return
        self.was_raised = True
        if self._why is Abort.CANCELLED:
            raise Cancelling(self._detail)
        if self._why is Abort.TIMEOUT:
            raise TaskTimeout(self._detail or "timed out")
        raise Released(self._why.value)

    def set(self, why: Abort, detail: str | None = None) -> bool:
        """Ask the task to stop; the first reason stays. Whether this call was the first."""
        with self._lock:
            if self._why is not None:
                return False
            self._why, self._detail = why, detail
            listeners = list(self._listeners)
        self._event.set()
        for listener in listeners:
            listener()
        return True

    def on_set(self, listener: Callable[[], None]) -> None:
        """Call ``listener`` when it is set, or now if it is."""
        with self._lock:
            if self._why is None:
                self._listeners.append(listener)
                return
        listener()

    def forget(self, listener: Callable[[], None]) -> None:
        """Do not call ``listener`` any more."""
        with self._lock, suppress(ValueError):
            self._listeners.remove(listener)


class AsyncSignal:
    """The awaitable twin of :class:`Signal`."""

    def __init__(self, signal: Signal) -> None:
        self._signal = signal

    @property
    def aborted(self) -> bool:
        return self._signal.aborted

    @property
    def reason(self) -> Abort | None:
        return self._signal.reason

    async def wait(self, seconds: float | timedelta | None = None) -> bool:
        """As ``Signal.wait``, without blocking the event loop."""
        limit = seconds.total_seconds() if isinstance(seconds, timedelta) else seconds
        loop, event = asyncio.get_running_loop(), asyncio.Event()

        def wake() -> None:
            loop.call_soon_threadsafe(event.set)

        self._signal.on_set(wake)
        try:
            await asyncio.wait_for(event.wait(), limit)
        except TimeoutError:
            return self._signal.aborted
        finally:
            self._signal.forget(wake)
        return True

    def raise_if_aborted(self) -> None:
        self._signal.raise_if_aborted()


class Attempt:
    """One claim on its way through a thread. Shared with whoever may ask it to stop."""

    __slots__ = (
        "_permit",
        "_signal",
        "_undecided",
        "cancel",
        "claimed",
        "code",
        "context",
        "deadline",
        "failure",
        "has_ended",
        "insisted",
        "interrupted",
        "jobs",
        "ledger",
        "lines",
        "main",
        "max_attempts",
        "shielded",
        "stuck",
        "thread_id",
        "timeout",
    )

    def __init__(self, claimed: Claimed, deadline: float | None = None) -> None:
        self.claimed = claimed
        self.max_attempts = 1  # of the task; whoever runs it says
        self.deadline = deadline  # on the monotonic clock
        self.timeout: float | None = None  # in seconds; whoever runs it says
        self.thread_id: int | None = None
        self.interrupted = False
        self.shielded = False
        self.insisted = False  # the server has waited long enough: leave at the next call
        self.main: object = None  # the thread or asyncio task that runs the task itself
        self.has_ended = False  # the main line has: no call of the context does anything now
        self.stuck: StepError | None = None  # by which the run ends, whatever the code does
        self.code: CodeType | None = None  # of the task's function, where it is a plain one
        self.failure: BaseException | None = None  # by which the run has ended
        self.context: Context | None = None  # in which that was raised
        self.lines: Lines | None = None  # made when first used
        self.ledger: Ledger | None = None  # made when first used
        self.jobs: SimpleQueue[Callable[[], None] | None] | None = (
            None  # for an async task's thread
        )
        self._permit: list[bool] = []
        self._undecided = [True]
        self.cancel: Callable[[], object] | None = None  # ends an async task at its next await
        self._signal: Signal | None = None

    @property
    def signal(self) -> Signal:
        """Made when first asked for: most tasks never look."""
        if self._signal is None:
            with _attempt_lock:
                if self._signal is None:
                    self._signal = Signal()
        return self._signal

    @property
    def time_is_up(self) -> str:
        """What a timeout is told with."""
        return "timed out" if self.timeout is None else f"timed out after {self.timeout:g} s"

    def decide(self) -> bool:
        """Take the right to say how this attempt ended; True for the first who asks."""
        try:
            return self._undecided.pop()  # atomic
        except IndexError:
            return False

    def permit(self) -> None:
        """Let a timeout be raised into its thread."""
        self._permit.append(True)

    def forbid(self) -> bool:
        """Take the permit; False when it is taken: of who asks, only one raises a timeout."""
        try:
            return self._permit.pop()  # atomic
        except IndexError:
            return False

    def await_interrupt(self) -> None:
        """Wait until the timeout that somebody took the permit for is on its way, so that it
        arrives here at the latest."""
        while not self.interrupted:
            time.sleep(0)
        for _ in range(2):  # Python looks for it when a loop goes round
            pass

    @property
    def abort_reason(self) -> Abort | None:
        return None if self._signal is None else self._signal.reason


_attempt_lock: Final = threading.Lock()


def shielded() -> AbstractContextManager[None]:
    """No timeout is raised into this thread inside: a driver must not be torn in the middle."""
    attempt = current.get()
    if attempt is None or attempt.shielded or attempt.thread_id != threading.get_ident():
        return _NOTHING
    return _shielding(attempt)


@contextmanager
def _shielding(attempt: Attempt) -> Iterator[None]:
    if not attempt.forbid():
        attempt.await_interrupt()
        yield  # there is only one
        return
    attempt.shielded = True
    try:
        yield
    finally:
        attempt.shielded = False
        attempt.permit()


_NOTHING: Final = nullcontext()
