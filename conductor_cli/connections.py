"""Connections whose every call ends.

Postgres itself bounds a statement, and TCP notices a host that is gone. What neither sees is
something in between that keeps the connection alive and forwards nothing: only whoever waits can
tell that nothing comes.
"""

from __future__ import annotations

import os
import select
import time
from contextlib import contextmanager, suppress
from itertools import count
from typing import TYPE_CHECKING, Any, Final, TypeVar

import psycopg
from psycopg.adapt import Transformer
from psycopg.errors import error_from_result
from psycopg.pq import ConnStatus, ExecStatus, Format, PipelineStatus, TransactionStatus

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from psycopg import abc
    from psycopg.abc import PQGen
    from psycopg.pq.abc import PGconn, PGresult

T = TypeVar("T")

CONNECT_TIMEOUT: Final = 5
LOOK_UP: Final = 0.1  # seconds between looks at whether the wait has been long enough, as psycopg's

_ROBBED: Final[list[PGconn]] = []


class Unreadable:
    """Stands for a value of a row that Python cannot hold, and tells why."""

    def __init__(self, column: str, error: Exception) -> None:
        self.column, self.error = column, error


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
    name: str = ""  # as the server knows it
    session: int = 0  # the server's process
    was_silent: bool = False
    refused: Exception | None = None  # why nothing is to be done on it
    _file: tuple[int, int] | None = None  # its number and the socket behind it
    _is_robbed: bool = False
    _speaking: _Speaking
    _ears: select.poll
    _performed: dict[str, bytes]  # names of what perform() has prepared
    _names: Iterator[int]
    _overlaps: bool = False
    _owes: bool = False  # the reply to what perform() has sent

    def own(self) -> None:
        """Remember what its file and its session are; called once, when it has connected."""
        self.session = self.pgconn.backend_pid
        self.name = self.info.parameter_status("application_name") or ""
        self._performed, self._names = {}, count()
        self._speaking = _Speaking(self)
        number = self.pgconn.socket
        self._ears = _poll(number, select.POLLIN)
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

    @property
    def can_perform(self) -> bool:
        """Whether perform() may be called: not in a pipeline, whose replies come later."""
        return self.pgconn.pipeline_status == PipelineStatus.OFF

    def perform(
        self,
        sql: str,
        values: Sequence[str | None],
        make: Callable[[Sequence[Any]], T] | None = None,
        keep: Callable[[PGresult], object] = lambda _: None,
    ) -> list[T]:
        """Execute a statement, with parameters ``$1``, ``$2``... as text; its rows, made by
        ``make`` of their columns. Without it they are not looked at. ``keep`` is given the
        result before any of it is read.

        By libpq itself: a cursor would take a third as long as Postgres does. The statement is
        prepared when first used; only for sessions that are one's own.
        """
        self.check()
        given = [None if value is None else value.encode() for value in values]
        if any([value is not None and b"\0" in value for value in given]):
            raise psycopg.DataError("PostgreSQL text fields cannot contain NUL (0x00) bytes")
        with self._speaking:
            self._settle()
            if self._overlaps and make is None:
                self._send(sql, given)
                self._flush()
                self._owes = True
                return []
            result = self._answer(sql, given)
            keep(result)
            return [] if make is None else self._rows(result, make)

    @property
    def performed(self) -> int:
        """How many statements perform() has prepared in this session."""
        return len(self._performed)

    def forget_performed(self) -> None:
        """Prepare each statement again when it is next performed: somebody has deallocated some."""
        self._performed.clear()

    @contextmanager
    def overlapped(self) -> Iterator[None]:
        """Inside, a statement without rows is only sent: the server works on it while the caller
        makes the next, before which its reply is read. Errors come that much later."""
        self._overlaps = True
        try:
            yield
        except BaseException:
            with suppress(psycopg.Error):  # it was first
                self._settled()
            raise
        else:
            self._settled()
        finally:
            self._overlaps = False

    def wait(self, gen: PQGen[T], *args: Any, **kwargs: Any) -> T:
        """Every other call of psycopg to the server waits here, and looks up ten times a second."""
        self.check()
        try:
            return super().wait(self._heard(gen), *args, **kwargs)
        except Silent:
            self._give_up()
            raise

    def perform_each(
        self, sql: str, values: Sequence[str | None], make: Callable[[Sequence[Any]], T]
    ) -> tuple[list[T], list[list[Any]]]:
        """As ``perform``; a row that cannot be read costs nobody but itself, see ``each_row``."""
        results: list[PGresult] = []
        try:
            return self.perform(sql, values, make, results.append), []
        except Exception:
            if not results:  # Postgres has refused the statement, or has not answered
                raise
        return each_row(self, results[0], make)

    def _answer(self, sql: str, given: Sequence[bytes | None]) -> PGresult:
        is_alone = self.pgconn.transaction_status == TransactionStatus.IDLE
        self._send(sql, given)
        try:
            return self._replied()
        except psycopg.errors.InvalidSqlStatementName:
            # Whoever it was lent to has had everything deallocated.
            self._performed.clear()
            if not is_alone:
                raise
        self._send(sql, given)
        return self._replied()

    def _send(self, sql: str, given: Sequence[bytes | None]) -> None:
        name = self._performed.get(sql)
        if name is None:
            name = b"perform_%d" % next(self._names)
            self.pgconn.send_prepare(name, sql.encode())
            self._replied()
            self._performed[sql] = name
        self.pgconn.send_query_prepared(name, given, result_format=Format.BINARY)

    def _settle(self) -> None:
        if self._owes:
            self._owes = False
            self._replied()

    def _settled(self) -> None:
        with self._speaking:
            self._settle()

    def _rows(self, result: PGresult, make: Callable[[Sequence[Any]], T]) -> list[T]:
        transformer = Transformer(self)
        transformer.set_pgresult(result)
        return transformer.load_rows(0, result.ntuples, make)

    def _replied(self) -> PGresult:
        self._flush()
        pg = self.pgconn
        done: PGresult | None = None
        failed: PGresult | None = None
        while True:
            while pg.is_busy():
                self._await(self._ears)
                pg.consume_input()
            result = pg.get_result()
            if result is None:
                break
            if result.status == ExecStatus.FATAL_ERROR:
                failed = result
            else:
                done = result
        if failed is not None:
            if pg.status == ConnStatus.BAD:
                raise psycopg.OperationalError(failed.get_error_message())
            raise error_from_result(failed)
        if done is None:
            raise psycopg.OperationalError("the server has closed the connection")
        return done

    def _flush(self) -> None:
        while self.pgconn.flush():
            self._await(_poll(self.pgconn.socket, select.POLLIN | select.POLLOUT))
            self.pgconn.consume_input()

    def _await(self, poll: select.poll) -> None:
        quiet_since: float | None = None
        while not poll.poll(LOOK_UP * 1000):
            quiet_since = self._still_quiet(quiet_since)

    def _heard(self, gen: PQGen[T]) -> PQGen[T]:
        quiet_since: float | None = None
        try:
            wanted = next(gen)
            while True:
                ready = yield wanted
                wanted = gen.send(ready)  # first take what is there: this process may have slept
                quiet_since = None if ready else self._still_quiet(quiet_since)
        except StopIteration as end:
            result: T = end.value
            return result

    def _still_quiet(self, since: float | None) -> float:
        """Nothing has come at this look either; returns since when, or raises Silent."""
        self.check()
        now = time.monotonic()
        if since is not None and now - since >= self.silence:
            raise Silent(f"nothing has been heard from the server for {self.silence:g} seconds")
        return now if since is None else since

    def _give_up(self) -> None:
        self.was_silent = True
        self.pgconn.finish()


class _Speaking:
    """Lets one thread at a time send and read replies by libpq itself. A connection on which that
    ended other than by an answer is closed: nobody would read the reply to what has been sent."""

    __slots__ = ("_conn", "_lock")

    def __init__(self, conn: Impatient) -> None:
        self._conn, self._lock = conn, conn.lock

    def __enter__(self) -> None:
        self._lock.acquire()

    def __exit__(self, kind: type[BaseException] | None, error: object, trace: object) -> None:
        try:
            if kind is None:
                return
            if issubclass(kind, Silent):
                self._conn._give_up()
            elif not issubclass(kind, psycopg.Error):
                self._conn.pgconn.finish()
        finally:
            self._lock.release()


def each_row(
    conn: psycopg.Connection[Any], result: PGresult, make: Callable[[Sequence[Any]], T]
) -> tuple[list[T], list[list[Any]]]:
    """The rows that can be read, and the columns of those that cannot: each is its value, or
    ``Unreadable``."""
    transformer = Transformer(conn)
    transformer.set_pgresult(result)
    rows: list[T] = []
    spoilt: list[list[Any]] = []
    for row in range(result.ntuples):
        try:
            rows += transformer.load_rows(row, row + 1, make)
        except Exception:
            spoilt.append([_column(transformer, result, row, n) for n in range(result.nfields)])
    return rows, spoilt


def _column(transformer: abc.Transformer, result: PGresult, row: int, column: int) -> Any:
    value = result.get_value(row, column)
    if value is None:
        return None
    loader = transformer.get_loader(result.ftype(column), Format(result.fformat(column)))
    try:
        return loader.load(value)
    except Exception as error:
        return Unreadable((result.fname(column) or b"?").decode(), error)


def refuse_dead(conn: psycopg.Connection[Any]) -> None:
    """Raise when a connection that waits in a pool has come to its end, without asking it."""
    if _has_something_to_say(conn):
        conn.close()
        raise psycopg.OperationalError("the server has closed the connection")


def _has_something_to_say(conn: psycopg.Connection[Any]) -> bool:
    """Nobody has asked it anything: it says that it is at its end, or something as unusual."""
    return bool(_poll(conn.fileno(), select.POLLIN).poll(0))


def _poll(number: int, events: int) -> select.poll:
    made = select.poll()
    made.register(number, events)
    return made
