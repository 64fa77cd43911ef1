"""Rescue, bury and prune."""

from __future__ import annotations

import threading
import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

from conductor_cli import telemetry
from conductor_cli.database import (
    STATEMENT_TIMEOUT,
    Link,
    is_hindered,
    is_of_statement,
    is_transient,
)
from conductor_cli.service import PeriodicService
from conductor_cli.store import events, fleet

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from uuid import UUID

    from conductor_cli.database import Database
    from conductor_cli.service import Deadline, Service
    from conductor_cli.store.fleet import Rescued

ORPHANS_EVERY: Final = 60.0
PRUNE_EVERY: Final = 30.0
PRUNE_LATER: Final = 900.0  # the longest pause after refusals
PRUNE_FIRST: Final = 500  # rows of the first batch
PRUNE_MOST: Final = 2000
PRUNE_QUICK: Final = 0.025  # seconds: a batch below lets the next one grow
PRUNE_SLOW: Final = 0.1  # a batch above halves the next one
DISPATCH_BATCH: Final = 100
DISPATCH_TRIES: Final = 5
DISPATCH_POLL: Final = 1.0  # while the listener is not proven alive
TRUSTING_POLL: Final = 60.0
REGISTER_EVERY: Final = 60.0
LOOK_AGAIN_EVERY: Final = 2.0


class Rescuer(PeriodicService):
    """Gives back executions whose orchestrator stopped beating. Any server may.

    Whether somebody is dead only the heartbeat may judge (see ``signals.Beaten``): it calls
    ``judge`` at the moment a peer expires. Rescuing twice is harmless: the second pass finds
    nothing to give back.
    """

    def __init__(
        self, database: Database, *, on_death: Callable[[Service, BaseException], None]
    ) -> None:
        super().__init__("rescuer", pause=ORPHANS_EVERY, on_death=on_death)
        self._database = database
        self._judges = False

    def judge(self) -> None:
        """Declare dead who is, now; not after an outage any more."""
        self._judges = True
        self.wake()

    def recover(self) -> None:
        self._database.drop_dead()

    def tick(self) -> bool:
        judges, self._judges = self._judges, False
        with self._database.connection() as conn:
            rescued = fleet.rescue(conn, judges=judges)
        _tell(rescued)
        return False


class Dispatcher(PeriodicService):
    """Tells events to those who wait for them, and starts the tasks they trigger. Any server does.

    Woken by a notification, and by the heartbeat when it saw some that nobody has dispatched; what
    another dispatches just now is left to it.
    """

    def __init__(
        self,
        database: Database,
        *,
        trusts_listener: Callable[[], bool],
        on_death: Callable[[Service, BaseException], None],
    ) -> None:
        super().__init__("dispatcher", pause=DISPATCH_POLL, pauses_first=True, on_death=on_death)
        self._database = database
        self._trusts_listener = trusts_listener
        self._batch = DISPATCH_BATCH

    def recover(self) -> None:
        self._database.drop_dead()

    def _isolate(self, error: Exception) -> None:
        """Halve the batch that failed, until one event is left: that event alone is put off."""
        if self._batch > 1:
            self._batch //= 2
            return
        text = str(error).strip().partition("\n")[0]
        with self._database.connection() as conn:
            failed = events.fail(conn, text, refused=not is_transient(error), tries=DISPATCH_TRIES)
        if failed is None:
            return
        event_id, name = str(failed.id), failed.name
        if failed.dead:
            telemetry.emit("event.dead", id=event_id, name=name, error=text)
        else:
            telemetry.emit("event.failed", id=event_id, name=name, error=text)

    def tick(self) -> bool:
        try:
            with self._database.connection() as conn:
                done = events.dispatch(conn, self._batch)
        except Exception as error:
            if not is_of_statement(error):
                raise
            self._isolate(error)
            return True
        self._batch = min(DISPATCH_BATCH, self._batch * 2)
        if done:
            telemetry.emit("events.dispatched", count=done)
        self.pause = TRUSTING_POLL if self._trusts_listener() else DISPATCH_POLL
        return done > 0


class Registrar(PeriodicService):
    """Sees to it that what this server serves stands as it defines it, unless a later version
    that runs defines it otherwise: when the last of those has left, as after a rollback, its
    own definitions are in force again."""

    def __init__(
        self, register: Callable[[], object], *, on_death: Callable[[Service, BaseException], None]
    ) -> None:
        # At the start it has just been done.
        super().__init__("registrar", pause=REGISTER_EVERY, pauses_first=True, on_death=on_death)
        self._register = register

    def tick(self) -> bool:
        self._register()
        return False


class Undertaker(PeriodicService):
    """Gives back at once what servers ran whose processes are known to have ended.

    Postgres may still work on the last statement of one of them, which claims more or holds rows
    locked. So it looks again until no such statement can be left. Idle it has no connection.
    """

    def __init__(
        self, database: Database, *, on_death: Callable[[Service, BaseException], None]
    ) -> None:
        super().__init__("undertaker", pause=ORPHANS_EVERY, on_death=on_death)
        self._link = Link(database, "undertaker")
        self._lock = threading.Lock()
        self._new: list[UUID] = []
        self._watched: dict[UUID, float] = {}  # and until when, on the monotonic clock
        self._settled = threading.Event()
        self._settled.set()

    def bury(self, id: UUID) -> None:
        """Have this server declared dead. From any thread; does not wait."""
        with self._lock:
            self._new.append(id)
            self._settled.clear()
        self.wake()

    def settle(self, deadline: Deadline) -> bool:
        """Wait until all have been declared dead; False when the deadline passed first."""
        return self._settled.wait(deadline.remaining)

    def tick(self) -> bool:
        with self._lock:
            new = list(self._new)
        for fallen in {*new, *self._watched}:
            _tell(fleet.rescue(self._link.get(), fallen=fallen))
        self._watch(new)
        self.pause = LOOK_AGAIN_EVERY if self._watched else ORPHANS_EVERY
        if not self._watched:
            self._link.drop()
        return False

    def recover(self) -> None:
        self._link.drop()

    def teardown(self) -> None:
        self._link.drop()

    def _watch(self, new: Sequence[UUID]) -> None:
        """Only once it is done: what failed is done again by the next tick."""
        now = time.monotonic()
        until = now + STATEMENT_TIMEOUT + LOOK_AGAIN_EVERY
        self._watched |= dict.fromkeys(new, until)
        self._watched = {each: end for each, end in self._watched.items() if end > now}
        with self._lock:
            self._new = [each for each in self._new if each not in new]
            if not self._new:
                self._settled.set()


class Pruner(PeriodicService):
    """Deletes executions that have expired, in batches that adapt. The leader's.

    Each batch is a transaction of its own, with a pause after it as long as it took: so that
    retention has at most half of one connection's time, and ends are never long beside it. A
    statement that was refused (a lock on the table, the statement's time, a missing right) is
    told as such, halves the batch and is tried again after a pause that doubles up to a quarter
    of an hour.

    Two clocks must agree before a row is deleted: the database's and this server's. So a clock
    that is set forward on either side deletes nothing before its time. After a long outage both
    clocks have gone on, and the pruner catches up.
    """

    def __init__(
        self,
        database: Database,
        *,
        on_death: Callable[[Service, BaseException], None],
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        super().__init__("pruner", pause=PRUNE_EVERY, on_death=on_death)
        self._database = database
        self._clock = clock
        self._batch = PRUNE_FIRST
        self._refused = 0

    def recover(self) -> None:
        self._database.drop_dead()

    def tick(self) -> bool:
        began = time.monotonic()
        limit = self._batch
        try:
            with self._database.connection() as conn:
                pruned = fleet.prune(conn, limit, until=self._clock())
        except Exception as error:
            if not is_hindered(error):
                raise
            self._hindered(error)
            return False
        took = time.monotonic() - began
        self._refused = 0
        self._adapt(took, full=pruned == limit)
        if pruned:
            telemetry.emit("history.pruned", count=pruned)
        self.pause = took if pruned == limit else PRUNE_EVERY
        return False

    def _adapt(self, took: float, *, full: bool) -> None:
        if took > PRUNE_SLOW:
            self._batch = max(1, self._batch // 2)
        elif full and took < PRUNE_QUICK:
            self._batch = min(PRUNE_MOST, self._batch + self._batch // 4 + 1)

    def _hindered(self, error: Exception) -> None:
        telemetry.emit("service.hindered", component=self.name, error=str(error).strip())
        self._batch = max(1, self._batch // 2)
        self.pause = min(PRUNE_LATER, PRUNE_EVERY * 2.0**self._refused)
        self._refused = min(self._refused + 1, 10)


def _tell(rescued: Sequence[Rescued]) -> None:
    for each in rescued:
        if each.returned:
            telemetry.emit("executions.rescued", count=each.returned, queue=each.queue)
        if each.crashed:
            telemetry.emit("execution.crashed", count=each.crashed, queue=each.queue)
