"""Leadership: at most one server runs the services that need only one.

The lease is a row; it is renewed by the heartbeat's own statement. The holder trusts itself only
until (the moment before it sent its last successful renewal + the lease - 1 s, or a quarter of a
short one) on the monotonic clock, and stops its services first when that passes. Correctness never
depends on it: each tick is unique in the database.
"""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, Final

from conductor_cli import telemetry
from conductor_cli.database import is_transient
from conductor_cli.service import Deadline, PeriodicService, Service, ServiceGroup
from conductor_cli.store import fleet

if TYPE_CHECKING:
    from collections.abc import Callable
    from uuid import UUID

    from conductor_cli.database import Database
    from conductor_cli.signals import Beaten

MARGIN: Final = 1.0  # at most; half a lease has to be left for the next beat
STOP_PATIENCE: Final = 5.0
RESIGN_PATIENCE: Final = 1.0  # the heartbeat's last statement resigns, too


class Leadership(PeriodicService):
    """Follows what the heartbeat hears, and runs leader-only services during a trusted term.

    ``services`` makes new ones for each term. Stopping resigns, so that another server takes
    over within a second.
    """

    def __init__(
        self,
        database: Database,
        id: UUID,
        *,
        lease: float,
        services: Callable[[], list[Service]],
        on_death: Callable[[Service, BaseException], None],
    ) -> None:
        super().__init__("leadership", pause=lease, on_death=on_death)
        self._database = database
        self._id = id
        self._lease, self._margin = lease, min(MARGIN, lease / 4)
        self._make = services
        self._lock = threading.Lock()
        self._term: int | None = None
        self._trusted_until = 0.0
        self._running: ServiceGroup | None = None
        self._running_term: int | None = None

    @property
    def is_leader(self) -> bool:
        """Whether this server leads, by a term it may still trust."""
        return self._term is not None and time.monotonic() < self._trusted_until

    @property
    def problems(self) -> list[str]:
        """Leader-only services that should run and do not."""
        group = self._running
        return [] if group is None else [f"{name} has ended" for name in group.dead]

    def stand(self) -> tuple[bool, int | None]:
        """Whether this server wants to lead, and the term it leads."""
        with self._lock:
            return not self._stopping.is_set(), self._term

    def hear(self, beaten: Beaten) -> None:
        """Take notice of a pulse: a term won, renewed or lost."""
        with self._lock:
            self._term = beaten.pulse.term
            if self._term is not None:
                self._trusted_until = beaten.sent_at + self._lease - self._margin
        self.wake()

    def wake_services(self) -> None:
        """Let the leader-only services look at once: what they work on has changed."""
        if (group := self._running) is not None:
            group.wake()

    def tick(self) -> bool:
        with self._lock:
            leads, term = self.is_leader, self._term
            left = self._trusted_until - time.monotonic()
        if self._running is not None and (not leads or term != self._running_term):
            self._end("the term is over" if leads else "the lease was not renewed in time")
        if leads and self._running is None and term is not None:
            self._begin(term)
        self.pause = max(0.01, left) if leads else self._lease
        return False

    def teardown(self) -> None:
        self._end("the server is stopping")
        with self._lock:
            term, self._term = self._term, None
        if term is not None:
            self._resign(term)

    def _begin(self, term: int) -> None:
        group = ServiceGroup(self._make())
        group.start()
        self._running, self._running_term = group, term
        telemetry.emit("leadership.gained", term=term)

    def _end(self, why: str) -> None:
        group, self._running = self._running, None
        if group is None:
            return
        group.stop()
        group.join(Deadline(STOP_PATIENCE))
        telemetry.emit("leadership.lost", term=self._running_term, reason=why)

    def _resign(self, term: int) -> None:
        try:
            with self._database.connection(RESIGN_PATIENCE) as conn:
                fleet.resign(conn, self._id, term)
        except Exception as error:
            if not is_transient(error):
                raise
