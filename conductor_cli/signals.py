"""The heartbeat and the listener: how a server says that it lives and hears what happens."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final

import msgspec

from conductor_cli import migrate, telemetry
from conductor_cli.database import Database, Link, Listening, is_transient
from conductor_cli.errors import DatabaseUnavailable
from conductor_cli.service import PeriodicService, Service, backoff
from conductor_cli.store import fleet

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from uuid import UUID

CHANNEL: Final = "conductor"
OFFSET_LIMIT: Final = 2.0  # seconds this clock and the database's may differ
JUMP: Final = 2.0  # seconds by which the database's clock may go faster or slower between beats
WARN_OFFSET_EVERY: Final = 3600.0


class Identity(msgspec.Struct, frozen=True):
    """One server, as it enters the fleet."""

    id: UUID
    version: str
    hostname: str
    pid: int
    queues: Sequence[str]
    edition: str = ""

    @property
    def channel(self) -> str:
        """Where messages for this server alone arrive."""
        return f"conductor_{self.id.hex}"


class Beaten(msgspec.Struct, frozen=True):
    """A pulse, the monotonic moment just before its beat was sent, and whether this server may
    judge others by it: not while it has only just come back from an outage that hit them too, nor
    until they have had the time to beat after the database's clock has jumped."""

    pulse: fleet.Pulse
    sent_at: float
    may_judge: bool


class Heartbeat(PeriodicService):
    """Beats on a connection of its own, so that nothing a task does to the pool stops it.

    One statement renews the lease, too, and tells when the next server would expire; then it
    looks again exactly at that moment. ``stand`` tells whether this server wants to lead and
    which term it leads; ``hear`` gets every pulse.
    """

    def __init__(
        self,
        database: Database,
        identity: Identity,
        *,
        interval: float,
        timeout: float,
        stand: Callable[[], tuple[bool, int | None]],
        hear: Callable[[Beaten], None],
        on_dead: Callable[[], None],
        on_death: Callable[[Service, BaseException], None],
    ) -> None:
        super().__init__("heartbeat", pause=interval, on_death=on_death)
        self.identity = identity
        self.is_stopping = False
        self._interval, self._timeout = interval, timeout
        # Silence is noticed within a timeout; the server gives a beat up just before.
        silence = max(1.0, timeout * 2 / 3)
        self._link = Link(database, "heartbeat", statement_timeout=silence * 0.9, silence=silence)
        self._stand, self._hear, self._on_dead = stand, hear, on_dead
        self._knows = migrate.newest()
        self._is_outgrown = False
        self._last = time.monotonic()
        self._judges_from = 0.0
        self._ahead: float | None = None  # the database's clock minus the monotonic one
        self._warned_at = -WARN_OFFSET_EVERY

    def setup(self) -> None:
        self._join()

    def tick(self) -> bool:
        stands, term = self._stand()
        sent_at, wall = time.monotonic(), time.time()
        if sent_at - self._last > self._timeout:
            # This process, or its host, was suspended; so may the others have been.
            self._judges_from = sent_at + self._timeout
        pulse = fleet.beat(
            self._link.get(), self.identity.id,
            stopping=self.is_stopping, stands=stands, term=term, lease=self._timeout,
            latest=self._latest(sent_at),
        )  # fmt: skip
        self._check_jump(pulse, sent_at)
        self._check_delay(sent_at)
        self._check_clock(pulse, (wall + time.time()) / 2)
        if not pulse.known:
            telemetry.emit("server.declared_dead", server=str(self.identity.id))
            self._on_dead()
            self._join()
        self._check_schema(pulse.breaking)
        self._hear(Beaten(pulse, sent_at, may_judge=sent_at >= self._judges_from))
        look_in = self._interval if pulse.look_in is None else pulse.look_in + 0.02
        self.pause = min(self._interval, max(0.1, look_in))
        return False

    def recover(self) -> None:
        self._judges_from = time.monotonic() + self._timeout
        self._link.drop()

    def teardown(self) -> None:
        try:
            if self._link.is_open:
                fleet.leave(self._link.get(), self.identity.id)
        except Exception as error:
            if not is_transient(error):
                raise
        finally:
            self._link.drop()

    @property
    def silent_for(self) -> float:
        """Seconds since the last beat that Postgres answered."""
        return time.monotonic() - self._last

    def _join(self) -> None:
        mine = self.identity
        fleet.join(
            self._link.get(), mine.id, timeout=self._timeout, version=mine.version,
            hostname=mine.hostname, pid=mine.pid, queues=mine.queues,
            edition=mine.edition,
        )  # fmt: skip

    def _check_schema(self, breaking: int | None) -> None:
        """A migration that programs must know and this one does not: it is to drain and leave,
        and beats until it has."""
        if breaking is None or breaking <= self._knows or self._is_outgrown:
            return
        self._is_outgrown = True
        telemetry.emit("schema.outgrown", version=breaking, known=self._knows)
        if self.on_death is not None:
            self.on_death(self, migrate.too_new(f"migration {breaking:04}"))

    def _latest(self, sent_at: float) -> float | None:
        """The moment of the database's clock until which it has not jumped, and what has expired
        by it may be taken."""
        if sent_at < self._judges_from:
            return 0.0
        return None if self._ahead is None else self._ahead + sent_at + JUMP

    def _check_jump(self, pulse: fleet.Pulse, sent_at: float) -> None:
        # The beat was somewhere between its request and its reply.
        ahead = pulse.now - time.monotonic(), pulse.now - sent_at
        if self._ahead is not None and not ahead[0] - JUMP < self._ahead < ahead[1] + JUMP:
            self._judges_from = time.monotonic() + self._timeout
            telemetry.emit("clock.jumped", seconds=round(ahead[1] - self._ahead, 3))
            self._ahead = None
        if self._ahead is None or not ahead[0] <= self._ahead <= ahead[1]:
            self._ahead = ahead[1]

    def _check_delay(self, sent_at: float) -> None:
        late = sent_at - self._last - self._interval
        if late > self._interval / 2:
            telemetry.emit("heartbeat.late", seconds=round(late, 3))
        self._last = time.monotonic()

    def _check_clock(self, pulse: fleet.Pulse, here: float) -> None:
        offset = here - pulse.clock
        if abs(offset) > OFFSET_LIMIT and time.monotonic() - self._warned_at > WARN_OFFSET_EVERY:
            self._warned_at = time.monotonic()
            telemetry.emit("clock.offset", seconds=round(offset, 3))


class Listener(Service):
    """Hears notifications. A notification is a hint; the poll is the truth.

    It counts as proven only while it hears the pings its own heartbeat sends through Postgres.
    ``handle`` gets every other payload; ``on_doubt`` is called when the proof is lost.
    """

    def __init__(
        self,
        database: Database,
        identity: Identity,
        *,
        interval: float,
        handle: Callable[[str], None],
        on_doubt: Callable[[], None],
        on_death: Callable[[Service, BaseException], None],
    ) -> None:
        super().__init__("listener", on_death=on_death)
        self._database = database
        self._identity = identity
        self._patience = interval * 2 + 1.0
        self._handle, self._on_doubt = handle, on_doubt
        self._listening: Listening | None = None
        self._heard_at: float | None = None
        self._quiet_since = 0.0  # the last ping, or when it connected
        self._was_proven = False  # ever: behind some poolers it never is, whatever it does
        self._troubles = 0

    @property
    def is_proven(self) -> bool:
        """Whether it heard its own ping lately."""
        return self._heard_at is not None and time.monotonic() - self._heard_at < self._patience

    def setup(self) -> None:
        self._connect()

    def run(self) -> None:
        while not self._stopping.is_set():
            try:
                self._listen()
            except Exception as error:
                if not is_transient(error):
                    raise
                self._lose(error)

    def stop(self) -> None:
        super().stop()
        if (listening := self._listening) is not None:
            listening.interrupt()

    def teardown(self) -> None:
        listening, self._listening = self._listening, None
        if listening is not None:
            listening.close()

    def _listen(self) -> None:
        listening = self._listening or self._connect()
        if self._stopping.is_set():  # it came while there was nothing to interrupt
            return
        for payload in listening.receive(self._patience):
            if payload == "ping":
                self._prove()
            else:
                self._handle(payload)
        if self._stopping.is_set() or not self._was_proven:
            return
        if time.monotonic() - self._quiet_since >= self._patience:
            self._database.doubt()
            raise DatabaseUnavailable("it has heard no ping of its own")

    def _connect(self) -> Listening:
        self._listening = Listening(self._database, [CHANNEL, self._identity.channel])
        self._quiet_since = time.monotonic()
        return self._listening

    def _prove(self) -> None:
        if not self.is_proven:
            telemetry.emit("listener.proven")
            # Whatever was said while nobody listened.
            self._on_doubt()
        if self._troubles:
            self._troubles = 0
            telemetry.emit("database.back", component=self.name)
        self._heard_at = self._quiet_since = time.monotonic()
        self._was_proven = True

    def _doubt(self, why: str) -> None:
        if self._heard_at is not None:
            telemetry.emit("listener.lost", reason=why)
        self._heard_at = None
        self._on_doubt()

    def _lose(self, error: Exception) -> None:
        self._troubles += 1
        telemetry.emit("database.lost", component=self.name, error=str(error).strip())
        self.teardown()
        self._doubt(str(error).strip())
        self._stopping.wait(backoff(self._troubles))
