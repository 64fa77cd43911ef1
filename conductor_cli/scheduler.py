"""``JobScheduler``: due ticks become executions. Runs where the leader is; right anywhere.

The statement that makes a tick's execution compares and sets the schedule's next tick, so that
of two schedulers one makes it, and a killed one has made it or not.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final

from conductor_cli import telemetry, timing
from conductor_cli.database import is_locked, is_of_statement
from conductor_cli.errors import TaskDefinitionError
from conductor_cli.service import PeriodicService
from conductor_cli.store import definitions

if TYPE_CHECKING:
    from collections.abc import Callable

    from conductor_cli.database import Connection, Database
    from conductor_cli.service import Service
    from conductor_cli.store.definitions import DueSchedule, Version

REFUSED_FOR: Final = 3600.0  # seconds for which a schedule not understood is left alone
HINDERED_FOR: Final = 1.0  # and one whose row is locked, or whose tick the database refuses
HINDERED_MOST: Final = 60.0  # after it was refused several times
LOOK_AGAIN: Final = 30.0  # seconds; changes announce themselves, this is the safety net


class JobScheduler(PeriodicService):
    """Sleeps until the next tick of any schedule, by the database's clock, then makes it.

    ``look_again``: seconds after which it looks for schedules it has not heard of.
    """

    def __init__(
        self,
        database: Database,
        *,
        on_death: Callable[[Service, BaseException], None],
        look_again: float = LOOK_AGAIN,
    ) -> None:
        super().__init__("scheduler", pause=look_again, on_death=on_death)
        self._look_again = look_again
        self._database = database
        self._aside: dict[Version, float] = {}  # left alone, and until when
        self._failures: dict[Version, int] = {}  # of ticks, in a row

    def recover(self) -> None:
        self._database.drop_dead()

    def tick(self) -> bool:
        now = time.monotonic()
        self._aside = {each: until for each, until in self._aside.items() if until > now}
        with self._database.connection() as conn:
            schedules = definitions.due_schedules(conn, without=self._aside)
            done = [self._make(conn, s) for s in schedules if s.due]
        coming = [(s.next_at - s.now).total_seconds() for s in schedules if not s.due]
        coming += [until - time.monotonic() for until in self._aside.values()]
        self.pause = min([self._look_again, *[max(0.001, seconds) for seconds in coming]])
        return any(done)

    def _make(self, conn: Connection, schedule: DueSchedule) -> bool:
        """Whether it stands in nobody's way any more: moved on, here or elsewhere, or refused."""
        try:
            parsed = timing.Schedule.parse(schedule.expression, schedule.timezone)
            missed = timing.Missed(schedule.missed)
        except (TaskDefinitionError, ValueError) as error:
            self._refuse(schedule, error)
            return True
        due = timing.due(parsed, schedule.next_at, schedule.now, missed)
        try:
            with conn.transaction():
                made = definitions.tick(
                    conn, schedule.task, schedule.name,
                    expected=schedule.next_at, ticks=due.ticks, next_at=due.next,
                )  # fmt: skip
        except Exception as error:
            # One schedule stops no other: it is told, left alone for a while, and comes back.
            # tests/services/test_ticking.py::test_a_schedule_that_cannot_tick_stops_no_other
            if not is_of_statement(error):
                raise
            self._hindered(schedule, str(error).strip(), locked=is_locked(error))
            return True
        if made is None:
            self._hindered(schedule, "somebody else has locked its row", locked=True)
            return True
        self._failures.pop(schedule.version, None)
        if made:
            telemetry.emit(
                "schedule.ticked", count=len(made), task=schedule.task, schedule=schedule.name
            )
        if due.skipped:
            telemetry.emit(
                "schedule.missed", count=due.skipped, task=schedule.task, schedule=schedule.name
            )
        return True

    def _hindered(self, schedule: DueSchedule, error: str, *, locked: bool) -> None:
        failures = self._failures.get(schedule.version, 0)
        self._failures[schedule.version] = failures + 1
        pause = HINDERED_FOR if locked else HINDERED_FOR * 2.0 ** min(failures, 10)
        self._aside[schedule.version] = time.monotonic() + min(HINDERED_MOST, pause)
        if not failures or not locked:
            telemetry.emit(
                "schedule.hindered", task=schedule.task, schedule=schedule.name, error=error
            )

    def _refuse(self, schedule: DueSchedule, error: Exception) -> None:
        # A newer version's expression or policy: it is left to servers that understand it, and
        # stands in nobody's way meanwhile.
        self._aside[schedule.version] = time.monotonic() + REFUSED_FOR
        telemetry.emit(
            "schedule.refused", task=schedule.task, schedule=schedule.name, error=str(error)
        )
