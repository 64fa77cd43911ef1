"""Threads with manners: start tells the truth, stop asks, join waits.

A service runs once; whoever starts again builds new ones. Threads are daemonic, so that a
stuck one cannot hold the process.
"""

from __future__ import annotations

import threading
import time
from concurrent.futures import Future
from contextlib import suppress
from typing import TYPE_CHECKING, Final

from conductor_cli import database, entropy, telemetry

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

RETRY_FIRST: Final = 0.1
RETRY_MAXIMUM: Final = 2.0


class Deadline:
    """A moment on the monotonic clock, ``seconds`` from now; None is never."""

    def __init__(self, seconds: float | None) -> None:
        self._at = None if seconds is None else time.monotonic() + seconds

    @property
    def remaining(self) -> float | None:
        """Seconds left, at least zero; None: without end."""
        return None if self._at is None else max(0.0, self._at - time.monotonic())

    @property
    def has_passed(self) -> bool:
        return self.remaining == 0.0

    def before(self, seconds: float) -> Deadline:
        """The same deadline, ``seconds`` earlier."""
        return Deadline(None if self.remaining is None else self.remaining - seconds)


class Service:
    """One named thread. Subclasses write ``run`` and, where needed, ``setup`` and ``teardown``.

    ``on_death`` is called from the dying thread with whatever ``run`` raised.
    """

    def __init__(
        self, name: str, *, on_death: Callable[[Service, BaseException], None] | None = None
    ) -> None:
        self.name = name
        self.on_death = on_death
        self._stopping = threading.Event()
        self._ready: Future[None] = Future()
        self._thread = threading.Thread(target=self._main, name=name, daemon=True)

    def start(self) -> None:
        """Return when setup is done, or raise what it raised."""
        self._thread.start()
        self._ready.result()

    def stop(self) -> None:
        """Ask it to end; does not wait."""
        self._stopping.set()

    def join(self, deadline: Deadline) -> bool:
        """Wait until it has ended; False when the deadline passed first."""
        if self._thread.ident is None or self._thread is threading.current_thread():
            return True
        self._thread.join(deadline.remaining)
        return not self._thread.is_alive()

    @property
    def is_alive(self) -> bool:
        return self._thread.is_alive()

    def setup(self) -> None:
        """Runs in the thread before start() returns."""

    def run(self) -> None:
        """The service's work; returns soon after stop()."""
        raise NotImplementedError

    def teardown(self) -> None:
        """Runs in the thread at the end, whatever happened."""

    def _main(self) -> None:
        try:
            self.setup()
        except BaseException as error:
            with suppress(BaseException):  # why it did not start says more
                self.teardown()
            self._ready.set_exception(error)
            return
        self._ready.set_result(None)
        self._or_die(self.run)
        self._or_die(self.teardown)

    def _or_die(self, step: Callable[[], None]) -> None:
        try:
            step()
        except BaseException as error:
            self._die(error)

    def _die(self, error: BaseException) -> None:
        telemetry.emit("service.died", service=self.name, error=repr(error))
        if self.on_death is not None:
            self.on_death(self, error)


class PeriodicService(Service):
    """Calls ``tick`` again and again: at once while it returns True, else after ``pause`` seconds.

    Transient database errors are logged, backed off with jitter and the tick repeated; any
    other error ends the service. ``wake`` ends a pause early, also one not yet begun.
    """

    def __init__(
        self,
        name: str,
        *,
        pause: float,
        pauses_first: bool = False,
        on_death: Callable[[Service, BaseException], None] | None = None,
    ) -> None:
        super().__init__(name, on_death=on_death)
        self.pause = pause
        self._pauses_first = pauses_first
        self._awake = threading.Event()
        self._troubles = 0

    @property
    def is_troubled(self) -> bool:
        """Whether its last tick failed and it is backing off."""
        return self._troubles > 0

    def tick(self) -> bool:
        """One round; True when there is more to do at once."""
        raise NotImplementedError

    def recover(self) -> None:
        """Called after a transient error, before the next tick: drop what may be broken."""

    def wake(self) -> None:
        self._awake.set()

    def stop(self) -> None:
        super().stop()
        self._awake.set()

    def run(self) -> None:
        if self._pauses_first:
            self._awake.wait(self.pause)
            self._awake.clear()
        while not self._stopping.is_set():
            pause = self._round()
            if self._troubles:  # hints may come thick and fast: not one try for each
                self._stopping.wait(min(pause, RETRY_FIRST))
                pause -= RETRY_FIRST
            if pause > 0:
                self._awake.wait(pause)
            self._awake.clear()

    def _round(self) -> float:
        try:
            again = self.tick()
        except Exception as error:
            if not database.is_transient(error):
                raise
            return self._trouble(error)
        if self._troubles:
            self._troubles = 0
            telemetry.emit("database.back", component=self.name)
        return 0.0 if again else self.pause

    def _trouble(self, error: Exception) -> float:
        self._troubles += 1
        if database.is_hindered(error):
            telemetry.emit("service.hindered", component=self.name, error=str(error).strip())
        else:
            telemetry.emit("database.lost", component=self.name, error=str(error).strip())
        with suppress(Exception):  # whatever it drops is broken already
            self.recover()
        return backoff(self._troubles)


class ServiceGroup:
    """Services started in order and stopped in reverse; a failed start stops what had started."""

    def __init__(self, services: Sequence[Service]) -> None:
        self._services = services
        self._started: list[Service] = []

    def start(self) -> None:
        try:
            for service in self._services:
                service.start()
                self._started.append(service)
        except BaseException:
            self.stop()
            self.join(Deadline(5))
            raise

    def stop(self) -> None:
        for service in reversed(self._started):
            service.stop()

    def join(self, deadline: Deadline) -> bool:
        return all([service.join(deadline) for service in reversed(self._started)])

    def wake(self) -> None:
        """End the pauses of those that have one."""
        for service in self._started:
            if isinstance(service, PeriodicService):
                service.wake()

    @property
    def dead(self) -> Sequence[str]:
        """The names of those that started and no longer run."""
        return [service.name for service in self._started if not service.is_alive]


def backoff(troubles: int) -> float:
    """Seconds to wait after so many failed tries in a row: 0.1, 0.2, ... 2, each ± 50 %."""
    doubled: float = RETRY_FIRST * 2.0 ** min(troubles - 1, 10)
    return min(RETRY_MAXIMUM, doubled) * entropy.uniform(0.5, 1.5)
