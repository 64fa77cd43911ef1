"""Draining: when is nothing left, and what has been done until then?"""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from conductor_cli.database import is_transient
from conductor_cli.models import DrainReport, State
from conductor_cli.store import executions, reports

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from uuid import UUID

    from conductor_cli.database import Database
    from conductor_cli.pump import Recorded
    from conductor_cli.worker import JobWorker

FAILURES_SHOWN: Final = 100
_LOOK_FIRST: Final = 0.01
_LOOK_LAST: Final = 0.5


@dataclass(slots=True)
class Tally:
    """What a drain has ended. Called from the pumps' threads."""

    counts: dict[State, int] = field(default_factory=lambda: dict.fromkeys(State, 0))
    failed: list[UUID] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, recorded: Recorded) -> None:
        with self.lock:
            self.counts[recorded.state] += 1
            if recorded.state is State.FAILED and len(self.failed) < FAILURES_SHOWN:
                self.failed.append(recorded.id)


class Drain:
    """Watches the workers of this process until there is nothing left for them."""

    def __init__(
        self,
        database: Database,
        workers: Sequence[JobWorker],
        *,
        is_stopped: Callable[[], bool],
        wait_until_empty: bool,
        retry_now: bool,
    ) -> None:
        self._database = database
        self._workers = list(workers)
        self._is_stopped = is_stopped
        self._wait_until_empty = wait_until_empty
        self._retry_now = retry_now
        self._queues = [worker.queue for worker in self._workers]
        self._names = sorted({t.name for worker in self._workers for t in worker.tasks})

    def work(self, until: float | None) -> bool:
        """Return when nothing is left; False when the moment passed or a stop came first."""
        for worker in self._workers if self._retry_now else ():
            worker.set_retry_now()
        pause = _LOOK_FIRST
        while not self._is_done():
            if self._is_stopped() or (until and time.monotonic() >= until):
                return False
            time.sleep(pause)
            pause = min(_LOOK_LAST, pause * 1.2)
        return True

    def report(self, tally: Tally, *, timed_out: bool, elapsed: float) -> DrainReport:
        left = self._backlog()
        failures = self._database.retrying(lambda conn: reports.get_many(conn, tally.failed))
        return DrainReport(
            completed=tally.counts[State.COMPLETED],
            failed=tally.counts[State.FAILED],
            cancelled=tally.counts[State.CANCELLED],
            left_retrying=left.retrying,
            left_scheduled=left.scheduled,
            left_waiting=left.waiting,
            left_blocked=left.blocked,
            left_unserved=left.unserved,
            timed_out=timed_out,
            elapsed=round(elapsed, 3),
            failures=tuple(failures),
        )

    def _is_done(self) -> bool:
        if not all(worker.is_idle for worker in self._workers):
            return False
        try:
            left = self._look()
        except Exception as error:
            if not is_transient(error):
                raise
            return False  # the workers wait for the database, too
        if left.ready:
            for worker in self._workers:
                worker.holding.due()
        later = left.later if self._wait_until_empty else 0
        return left.ready + left.running + left.events + later == 0

    def _look(self) -> reports.Backlog:
        if self._retry_now:
            self._database.retrying(lambda conn: executions.hasten(conn, self._queues, self._names))
        return self._backlog()

    def _backlog(self) -> reports.Backlog:
        return self._database.retrying(
            lambda conn: reports.backlog(conn, self._queues, self._names)
        )
