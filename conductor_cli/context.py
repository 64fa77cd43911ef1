"""What a task is given besides its payload: who it is, whether it should stop, how to log."""

from __future__ import annotations

import asyncio
import threading
import time
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from functools import cached_property
from typing import TYPE_CHECKING, Any, Final, Generic

import msgspec

from conductor_cli import telemetry
from conductor_cli.errors import Cancel, Released

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from uuid import UUID

    from conductor_cli.aio import AsyncConductor
    from conductor_cli.client import Conductor
    from conductor_cli.models import Claimed
    from conductor_cli.registry import Invocation, Task

if TYPE_CHECKING:
    from typing_extensions import TypeVar

    S = TypeVar("S", default=Any)
else:
    from typing import TypeVar

    S = TypeVar("S")

current: Final[ContextVar[Attempt | None]] = ContextVar("conductor_attempt", default=None)
"""The attempt that this thread, or asyncio task, runs."""


class Abort(StrEnum):
    """Why a task is asked to stop."""

    SHUTDOWN = "shutdown"
    CANCELLED = "cancelled"
    TIMEOUT = "timeout"
    LOST = "lost"  # the claim is somebody else's by now: nothing it does will be recorded


class TaskTimeout(TimeoutError):
    """Raised in a task's thread when its ``timeout`` has passed."""


class Signal:
    """Asks a task to stop: set on shutdown, cancellation, timeout or loss of the claim."""

    def __init__(self) -> None:
        self._why: Abort | None = None
        self._detail: str | None = None
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
        """Leave the task if it should stop: handed back, cancelled or timed out, as asked."""
        if self._why is None:
            return
        if self._why is Abort.CANCELLED:
            raise Cancel(self._detail)
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
        "deadline",
        "interrupted",
        "shielded",
        "thread_id",
    )

    def __init__(self, claimed: Claimed, deadline: float | None = None) -> None:
        self.claimed = claimed
        self.deadline = deadline  # on the monotonic clock
        self.thread_id: int | None = None
        self.interrupted = False
        self.shielded = False
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


@dataclass(frozen=True, slots=True)
class Event:
    """What caused an execution: the schedule's name, its payload and the tick's moment."""

    name: str
    payload: Any
    scheduled_for: datetime | None


class _Base(Generic[S]):
    conductor: Any

    def __init__(self, attempt: Attempt, conductor: Conductor, state: S) -> None:
        self._attempt = attempt
        self.conductor = conductor
        self.state = state

    @property
    def execution_id(self) -> UUID:
        return self._attempt.claimed.id

    @property
    def attempt(self) -> int:
        """Which claim of this execution it is, from 1; more than 1 after a retry or a crash."""
        return self._attempt.claimed.attempt

    @cached_property
    def metadata(self) -> Mapping[str, Any]:
        """What the invocation carried besides its payload."""
        text = self._attempt.claimed.metadata
        return msgspec.json.decode(text) if text else {}

    @cached_property
    def event(self) -> Event | None:
        """What caused this execution, when it was a schedule; None for a plain invocation."""
        text = self._attempt.claimed.event
        return None if text is None else msgspec.json.decode(text, type=Event)

    @cached_property
    def logger(self) -> Any:
        """A structlog logger bound to this execution."""
        claimed = self._attempt.claimed
        return telemetry.logger(
            task=claimed.task, execution=str(claimed.id), attempt=claimed.attempt
        )


class Context(_Base[S]):
    """Given to a plain function whose parameter is annotated with it."""

    conductor: Conductor

    @property
    def signal(self) -> Signal:
        """Set when the task should stop."""
        return self._attempt.signal

    def checkpoint(self) -> None:
        """A moment at which the task may be stopped: cancelled, timed out, or handed back
        because the server is stopping (it then runs again elsewhere, from its beginning)."""
        if self._attempt.abort_reason is not None:
            self._attempt.signal.raise_if_aborted()

    def schedule(
        self,
        task: Task[..., Any] | Invocation[Any] | str,
        name: str,
        expression: str,
        payload: object = None,
        *,
        timezone: str | None = None,
        missed: str = "latest",
    ) -> bool:
        """As ``Conductor.schedule``; when the task runs again, it changes nothing again."""
        return self.conductor.schedule(
            task, name, expression, payload, timezone=timezone, missed=missed
        )

    def unschedule(self, task: Task[..., Any] | str, name: str) -> bool:
        """As ``Conductor.unschedule``."""
        return self.conductor.unschedule(task, name)


class AsyncContext(_Base[S]):
    """Given to an ``async def`` function whose parameter is annotated with it."""

    conductor: AsyncConductor

    @cached_property
    def signal(self) -> AsyncSignal:
        """Set when the task should stop."""
        return AsyncSignal(self._attempt.signal)

    async def checkpoint(self) -> None:
        """As ``Context.checkpoint``; other tasks of the event loop get their turn."""
        await asyncio.sleep(0)
        if self._attempt.abort_reason is not None:
            self._attempt.signal.raise_if_aborted()

    async def schedule(
        self,
        task: Task[..., Any] | Invocation[Any] | str,
        name: str,
        expression: str,
        payload: object = None,
        *,
        timezone: str | None = None,
        missed: str = "latest",
    ) -> bool:
        """As ``Context.schedule``."""
        return await self.conductor.schedule(
            task, name, expression, payload, timezone=timezone, missed=missed
        )

    async def unschedule(self, task: Task[..., Any] | str, name: str) -> bool:
        """As ``Conductor.unschedule``."""
        return await self.conductor.unschedule(task, name)
