"""Connections whose every call ends, and a pool of them.

Postgres itself bounds a statement, and TCP notices a host that is gone. What neither sees is
something in between that keeps the connection alive and forwards nothing: only whoever waits can
tell that nothing comes.
"""

from __future__ import annotations

import os
import select
import threading
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final, TypeVar

import psycopg
from psycopg.pq import ConnStatus, TransactionStatus

from conductor_cli import errors

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from psycopg.abc import PQGen
    from psycopg.pq.abc import PGconn

T = TypeVar("T")

CONNECT_TIMEOUT: Final = 5
KEPT_UNUSED: Final = 600.0  # seconds
KEPT: Final = 3600.0  # seconds: memory that a session has gathered on the server is freed
PAUSE: Final = 0.25  # seconds between two tries to connect

_ROBBED: Final[list[PGconn]] = []


class Silent(psycopg.OperationalError):
    """Nothing came for longer than the server may take; whether it did the work is unknown."""


class Robbed(psycopg.OperationalError):
    """Something in this process has closed the connection's file, which is not its own."""


class Impatient(psycopg.Connection[Any]):
    """A connection that is given up, and closed, when a call of it hears nothing for ``silence``
    seconds. A reply that keeps coming may take as long as it likes.

    A task may close files that are not its own, and the number soon be another connection's: that
    is noticed before either is spoken to.
    """

    silence: float = CONNECT_TIMEOUT
    is_pooled: bool = False
    made_at: float = 0.0
    _file: tuple[int, int] | None = None  # its number and the socket behind it
    _is_robbed: bool = False

    def own(self) -> None:
        """Remember what its file is; called once, when it has connected."""
        number = self.pgconn.socket
        self._file = number, os.fstat(number).st_ino

    def check(self) -> None:
        """Raise Robbed when its file is not its own any more."""
        if self._file is None or self.pgconn.status == ConnStatus.BAD:
            return
        number, socket = self._file
        if not self._is_robbed:
            with suppress(OSError):  # it is closed
                if os.fstat(number).st_ino == socket:
                    return
            _ROBBED.append(self.pgconn)  # for ever: its end would close the file of another
            self._is_robbed = True
        raise Robbed("something in this process has closed the file of the connection")

    def close(self) -> None:
        try:
            self.check()
        except Robbed:
            return
        super().close()

    @property
    def closed(self) -> bool:
        return self._is_robbed or super().closed

    def wait(self, gen: PQGen[T], *args: Any, **kwargs: Any) -> T:
        """Every call of psycopg to the server waits here, and looks up ten times a second."""
        self.check()
        try:
            return super().wait(_heard(gen, self.silence, self.check), *args, **kwargs)
        except Silent:
            self.pgconn.finish()
            raise

    def __del__(self, *args: Any) -> None:
        if not self.is_pooled:  # one of a pool that nobody has closed is no mistake
            super().__del__(*args)


def _heard(gen: PQGen[T], silence: float, check: Callable[[], None]) -> PQGen[T]:
    heard_at = time.monotonic()
    try:
        wanted = next(gen)
        while True:
            ready = yield wanted
            wanted = gen.send(ready)  # first take what is there: this process may have slept
            now = time.monotonic()
            if ready:
                heard_at = now
            else:
                check()
            if now - heard_at > silence:
                raise Silent(f"nothing has been heard from the server for {silence:g} seconds")
    except StopIteration as end:
        result: T = end.value
        return result


class Pool:
    """At most ``size`` connections for short work, made by ``connect(seconds)`` when they are
    needed. It has no threads: whoever takes one connects, and sees why it does not work."""

    def __init__(self, connect: Callable[[float], Impatient], size: int) -> None:
        self._connect = connect
        self._room = threading.Semaphore(size)
        self._lock = threading.Lock()
        self._idle: list[tuple[float, Impatient]] = []  # and since when; the freshest is the last
        self._is_closed = False

    def take(self, patience: float) -> Impatient | None:
        """A connection, to be given back; None when none came free in ``patience`` seconds.

        Raises DatabaseUnavailable when none could be made in that time.
        """
        until = time.monotonic() + patience
        if not self._room.acquire(timeout=patience):
            return None
        try:
            return self._unused() or self._made(until)
        except BaseException:
            self._room.release()
            raise

    def give_back(self, conn: Impatient) -> None:
        """Keep it for the next, if its work came to an end."""
        now = time.monotonic()
        with self._lock:
            if self._may_stay(conn, now):
                self._idle.append((now, conn))
                over = []
            else:
                over = [conn]
            while self._idle and now - self._idle[0][0] > KEPT_UNUSED:
                over.append(self._idle.pop(0)[1])
        self._room.release()
        _end(over)

    def forget_unused(self) -> None:
        """Close what is not in use: after one has died nobody knows how the others are."""
        with self._lock:
            over, self._idle = [conn for _, conn in self._idle], []
        _end(over)

    def close(self) -> None:
        """Close what is not in use now, and the others when they are given back."""
        with self._lock:
            self._is_closed = True
        self.forget_unused()

    def _unused(self) -> Impatient | None:
        while True:
            with self._lock:
                if not self._idle:
                    return None
                conn = self._idle.pop()[1]
            if not _has_something_to_say(conn):
                return conn
            _end([conn])

    def _made(self, until: float) -> Impatient:
        while True:
            try:
                conn = self._connect(min(CONNECT_TIMEOUT, until - time.monotonic()))
            except errors.CredentialsRefused:
                raise
            except errors.DatabaseUnavailable:
                if time.monotonic() + PAUSE > until:
                    raise
            else:
                conn.is_pooled, conn.made_at = True, time.monotonic()
                return conn
            time.sleep(PAUSE)

    def _may_stay(self, conn: Impatient, now: float) -> bool:
        idle = conn.pgconn.transaction_status == TransactionStatus.IDLE
        return idle and not self._is_closed and now - conn.made_at < KEPT


def _end(over: Iterable[Impatient]) -> None:
    for conn in over:
        conn.close()


def _has_something_to_say(conn: Impatient) -> bool:
    """Nobody has asked it anything: it says that it is at its end, or something as unusual."""
    poll = select.poll()
    poll.register(conn.fileno(), select.POLLIN)
    return bool(poll.poll(0))
