"""Connections whose every call ends.

Postgres itself bounds a statement, and TCP notices a host that is gone. What neither sees is
something in between that keeps the connection alive and forwards nothing: only whoever waits can
tell that nothing comes.
"""

from __future__ import annotations

import os
import select
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final, TypeVar

import psycopg
from psycopg.pq import ConnStatus

if TYPE_CHECKING:
    from collections.abc import Callable

    from psycopg.abc import PQGen
    from psycopg.pq.abc import PGconn

T = TypeVar("T")

CONNECT_TIMEOUT: Final = 5

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


def refuse_dead(conn: psycopg.Connection[Any]) -> None:
    """Raise when a connection that waits in a pool has come to its end, without asking it."""
    if _has_something_to_say(conn):
        conn.close()
        raise psycopg.OperationalError("the server has closed the connection")


def _has_something_to_say(conn: psycopg.Connection[Any]) -> bool:
    """Nobody has asked it anything: it says that it is at its end, or something as unusual."""
    poll = select.poll()
    poll.register(conn.fileno(), select.POLLIN)
    return bool(poll.poll(0))
