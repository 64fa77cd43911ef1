"""Rescue and prune."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from conductor_cli import telemetry
from conductor_cli.service import PeriodicService
from conductor_cli.store import events, fleet

if TYPE_CHECKING:
    from collections.abc import Callable

    from conductor_cli.database import Database
    from conductor_cli.service import Service

ORPHANS_EVERY: Final = 60.0
PRUNE_EVERY: Final = 60.0
ROTATE_EVERY: Final = 900.0
PRUNE_BATCH: Final = 1000
DISPATCH_BATCH: Final = 100
DISPATCH_POLL: Final = 1.0
TRUSTING_POLL: Final = 15.0  # the safety net's, while the listener is proven alive


class Rescuer(PeriodicService):
    """Gives back executions whose orchestrator stopped beating. Any server may.

    Woken by the heartbeat at the moment a peer expires. Rescuing twice is harmless: the second
    pass finds nothing to give back.
    """

    def __init__(
        self, database: Database, *, on_death: Callable[[Service, BaseException], None]
    ) -> None:
        super().__init__("rescuer", pause=ORPHANS_EVERY, on_death=on_death)
        self._database = database

    def recover(self) -> None:
        self._database.drop_dead()

    def tick(self) -> bool:
        with self._database.transaction() as conn:
            rescued = fleet.rescue(conn)
        for each in rescued:
            if each.returned:
                telemetry.emit("executions.rescued", count=each.returned, queue=each.queue)
            if each.crashed:
                telemetry.emit("execution.crashed", count=each.crashed, queue=each.queue)
        return False


class Dispatcher(PeriodicService):
    """Tells events to those who wait for them, and starts the tasks they trigger. Any server does.

    Woken by a notification; what another dispatches just now is left to it.
    """

    def __init__(
        self,
        database: Database,
        *,
        trusts_listener: Callable[[], bool],
        on_death: Callable[[Service, BaseException], None],
    ) -> None:
        super().__init__("dispatcher", pause=DISPATCH_POLL, on_death=on_death)
        self._database = database
        self._trusts_listener = trusts_listener

    def recover(self) -> None:
        self._database.drop_dead()

    def tick(self) -> bool:
        with self._database.transaction() as conn:
            done = events.dispatch(conn, DISPATCH_BATCH)
        if done:
            telemetry.emit("events.dispatched", count=done)
        self.pause = TRUSTING_POLL if self._trusts_listener() else DISPATCH_POLL
        return done > 0


class Pruner(PeriodicService):
    """Keeps history's partitions: tomorrow's made in time, yesterday's dropped. The leader's."""

    def __init__(
        self, database: Database, *, on_death: Callable[[Service, BaseException], None]
    ) -> None:
        super().__init__("pruner", pause=PRUNE_EVERY, on_death=on_death)
        self._database = database
        self._rounds = 0

    def recover(self) -> None:
        self._database.drop_dead()

    def tick(self) -> bool:
        if self._rounds * PRUNE_EVERY % ROTATE_EVERY == 0:
            with self._database.transaction() as conn:
                fleet.rotate(conn)
        with self._database.transaction() as conn:
            pruned = fleet.prune(conn, PRUNE_BATCH)
        if pruned:
            telemetry.emit("history.pruned", count=pruned)
        self._rounds += pruned < PRUNE_BATCH
        return pruned == PRUNE_BATCH
