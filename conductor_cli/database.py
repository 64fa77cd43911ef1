"""The way to Postgres: connections that are bounded in time, statements that are data.

Every connection Conductor opens sets its own isolation level and its lock, statement and
idle-in-transaction timeouts, so that nothing depends on how the server or role is configured;
behind a pooler, where sessions are shared, every transaction does (see ``pooler``). One that stays
silent for longer than its statement may take is given up (see ``connections``).
"""

from __future__ import annotations

import os
import re
import select
import threading
import time
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, Final, Generic, LiteralString, TypeVar

import psycopg
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from psycopg.pq import TransactionStatus
from psycopg_pool import ConnectionPool, PoolClosed, PoolTimeout

from conductor_cli import driver_errors, errors, pooler, session
from conductor_cli.config import redacted
from conductor_cli.connections import CONNECT_TIMEOUT, Impatient, each_row, refuse_dead
from conductor_cli.parameters import text as parameter_text

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from psycopg.rows import RowFactory

Connection = psycopg.Connection[Any]
R = TypeVar("R")

describe: Final = driver_errors.describe

RECONNECT: Final = 2.0  # seconds after which the pool's pauses begin anew with the shortest
PATIENCE: Final = 10.0  # seconds to wait for a pooled connection
STATEMENT_TIMEOUT: Final = 10.0
GRACE: Final = 5.0  # seconds for which a reply may be late that the server must have sent

# A silent network is noticed within 15 seconds: 5 + 3 * 3 for one that only stops answering.
_NETWORK: Final = {
    "connect_timeout": CONNECT_TIMEOUT,
    "keepalives_idle": 5,
    "keepalives_interval": 3,
    "keepalives_count": 3,
    "tcp_user_timeout": 12_000,
}

# Conditions that pass by themselves: serialization, deadlock, lock timeout, cancelled by the
# administrator or by a shutdown, resources, connections, read-only after a failover.
_TRANSIENT_STATES: Final = ("40001", "40P01", "55P03", "57014", "57P0", "53", "08", "25006")


@dataclass(frozen=True, slots=True)
class Statement(Generic[R]):
    """SQL and the type of its rows: one scalar, or a class whose fields are the columns in order;
    None when it has none.

    Parameters are named. Prepared on first use per connection, but not behind a pooler nor in a
    pipeline; on a connection that is not ours when its own threshold says so.
    """

    row: type[R] | None
    sql: LiteralString

    def all(self, conn: Connection, /, **parameters: Any) -> list[R]:
        """Run it and return every row."""
        if pooler.is_own_session(conn) and conn.can_perform:
            names, text = _numbered(self.sql)
            given = [parameter_text(parameters[name]) for name in names]
            return conn.perform(text, given, _maker(self.row))
        with conn.cursor(binary=True, row_factory=_factory(self.row)) as cursor:
            with pooler.limited(conn):
                cursor.execute(self.sql, parameters)
            return cursor.fetchall()

    def each(self, conn: Connection, /, **parameters: Any) -> tuple[list[R], list[list[Any]]]:
        """As ``all``, for a statement that has done something to its rows: those that can be read,
        and the columns of the others (see ``connections.each_row``)."""
        if pooler.is_own_session(conn) and conn.can_perform:
            names, text = _numbered(self.sql)
            given = [parameter_text(parameters[name]) for name in names]
            return conn.perform_each(text, given, _maker(self.row))
        with conn.cursor(binary=True, row_factory=_factory(self.row)) as cursor:
            with pooler.limited(conn):
                cursor.execute(self.sql, parameters)
            try:
                return cursor.fetchall(), []
            except Exception:
                if (result := cursor.pgresult) is None:
                    raise
            return each_row(conn, result, _maker(self.row))

    def run(self, conn: Connection, /, **parameters: Any) -> None:
        """Run one that has no rows."""
        if pooler.is_own_session(conn) and conn.can_perform:
            names, text = _numbered(self.sql)
            conn.perform(text, [parameter_text(parameters[name]) for name in names])
            return
        with conn.cursor() as cursor, pooler.limited(conn):
            cursor.execute(self.sql, parameters)

    def one(self, conn: Connection, /, **parameters: Any) -> R | None:
        """Run it and return its first row, if there is one."""
        rows = self.all(conn, **parameters)
        return rows[0] if rows else None

    def only(self, conn: Connection, /, **parameters: Any) -> R:
        """Run it and return its first row; a statement without one is a programming error."""
        return self.all(conn, **parameters)[0]


END_SESSION: Final = Statement(
    row=bool,
    sql="""
    -- What was sent to a session that has been given up may be stuck on its way, and be carried
    -- out whenever that ends, long after it was sent again elsewhere. Its number may be another
    -- session's by now, but of this program, and one that has nothing to do.
    select pg_terminate_backend(pid, 1000) from pg_stat_activity
    where pid = %(session)s and usename = current_user and datname = current_database()
      and application_name = left(%(name)s, 63)
      and state_change < clock_timestamp() - %(silent)s * interval '1 second'
    """,
)


def is_transient(error: BaseException) -> bool:
    """Whether the same call may succeed later: the network, a restart, a lock, a deadlock.

    Refused credentials too: a server that has once been let in waits for its password's return.
    """
    if isinstance(error, (errors.DatabaseUnavailable, PoolTimeout)):
        return True
    if not isinstance(error, psycopg.Error):
        return False
    if error.sqlstate is None:
        return isinstance(error, (psycopg.OperationalError, psycopg.InterfaceError))
    return error.sqlstate.startswith(_TRANSIENT_STATES)


def is_of_statement(error: BaseException) -> bool:
    """Whether a statement failed by what it works on, a value or its amount of rows: fewer rows
    may succeed. Not so a lost connection, a missing privilege or another schema."""
    state = error.sqlstate if isinstance(error, psycopg.Error) else None
    if state is None:
        return False
    return not state.startswith(("42", "0A", "08", "53", "57P", "25006", "40", "58"))


def is_locked(error: BaseException) -> bool:
    """Whether a lock was waited for in vain."""
    return isinstance(error, psycopg.errors.LockNotAvailable)


def is_hindered(error: BaseException) -> bool:
    """Whether the database answers, but has refused a statement: a lock, its time, a right."""
    return isinstance(
        error,
        (
            psycopg.errors.LockNotAvailable,
            psycopg.errors.QueryCanceled,
            psycopg.errors.InsufficientPrivilege,
        ),
    )


def does_not_fit(error: BaseException) -> bool:
    """Whether a statement was not understood: the schema is another than it was written for."""
    state = error.sqlstate if isinstance(error, psycopg.Error) else None
    return (state or "").startswith(("42", "0A"))


def is_forbidden(error: BaseException) -> bool:
    """Whether this role lacks a privilege."""
    return isinstance(error, psycopg.errors.InsufficientPrivilege)


def is_bad_value(error: BaseException) -> bool:
    """Whether Postgres refused a value: alone it will be refused again, its neighbours not."""
    state = error.sqlstate if isinstance(error, psycopg.Error) else None
    return isinstance(error, psycopg.DataError) or (state or "").startswith(("22", "54"))


def unavailable(error: BaseException, url: str) -> errors.ConductorError:
    """The error a user should read in place of the driver's, without the password."""
    return driver_errors.of_url(error, url)


def of_own_kind(connection: object) -> Connection | None:
    """A caller's connection, where it is one of psycopg's synchronous ones."""
    return connection if isinstance(connection, psycopg.Connection) else None


@contextmanager
def atomically(conn: Connection) -> Iterator[None]:
    """All that is done inside, or nothing; never a commit that is the caller's to give.

    Where nothing has been begun on a connection that does not autocommit, psycopg's
    ``transaction()`` would be the outermost one and commit at its end. So its own first
    statement begins one here, which the caller ends, and inside it is a savepoint.
    """
    if not conn.autocommit and conn.info.transaction_status is TransactionStatus.IDLE:
        conn.execute("select")
    with conn.transaction():
        yield


def overlapped(conn: Connection) -> AbstractContextManager[Any]:
    """Inside, statements without rows are sent before the reply to the last one is there."""
    return conn.overlapped() if pooler.is_own_session(conn) else conn.pipeline()


class Database:
    """One Postgres: a pool for short work, and connections of one's own for services.

    The pool is made on first use and once per process, so that a Database made before a fork
    works on both sides of it. Given somebody else's pool, it is used as it is and not closed, and
    how long its calls may take is its owner's to decide; only that behind a pooler nothing is
    prepared on its connections. ``behind_pooler``: whether one stands in between; None finds it
    out with each connection.
    """

    def __init__(
        self,
        url: str | None = None,
        *,
        pool: ConnectionPool[Any] | None = None,
        size: int = 10,
        behind_pooler: bool | None = None,
    ) -> None:
        if pool is None and url is None:
            raise ValueError("a Database needs a url or a pool")
        self.url = url if url is not None else _conninfo_of(pool)
        self._given = pool
        self._size = size
        self._asked = behind_pooler
        self._found = behind_pooler
        self.doubted_at = 0.0
        self._lock = threading.Lock()
        self._own: ConnectionPool[Any] | None = None
        self._pid = 0
        self._parents: list[ConnectionPool[Any] | None] = []  # what they hold is not ours to close

    @property
    def is_behind_pooler(self) -> bool:
        """Whether sessions are shared with others, as far as the connections so far have shown."""
        return bool(self._found)

    @contextmanager
    def transaction(self, patience: float = PATIENCE) -> Iterator[Connection]:
        """A transaction of its own on a pooled connection; raises DatabaseUnavailable."""
        with self.connection(patience) as conn, conn.transaction():
            yield conn

    def connection(self, patience: float = PATIENCE) -> AbstractContextManager[Connection]:
        """A pooled connection; each statement outside ``conn.transaction()`` commits itself.

        ``patience``: seconds to wait for one, also while Postgres restarts. Raises
        DatabaseUnavailable.
        """
        if self._given is None:  # its connections commit by themselves
            return _Pooled(self, patience)
        return self._adopted(self._given, patience)

    def retrying(self, work: Callable[[Connection], R]) -> R:
        """Run ``work``; once more if its connection turns out to be dead.

        Only for work that may be sent twice: the first reply may have been lost after the
        commit. Transactions are its own affair: for one statement they are not worth their
        round trips. Raises DatabaseUnavailable.
        """
        lost: Connection | None = None
        for last in (False, True):
            try:
                with self.connection() as conn:
                    self.end_session_of(lost, conn)
                    lost = conn
                    return work(conn)
            except (psycopg.OperationalError, psycopg.InterfaceError) as error:
                if last or not is_transient(error) or is_hindered(error):
                    raise unavailable(error, self.url) from error
                self.drop_dead()
        raise AssertionError("unreachable")

    def doubt(self) -> None:
        """A connection has fallen silent: those made before are not to be asked, but replaced."""
        self.doubted_at = time.monotonic()

    def end_session_of(self, lost: Connection | None, conn: Connection) -> None:
        """See to it, on ``conn``, that nothing sent on a connection that fell silent happens any
        more. Behind a pooler sessions are not ours to end."""
        if not isinstance(lost, Impatient) or not lost.was_silent or self.is_behind_pooler:
            return
        with suppress(psycopg.errors.InsufficientPrivilege):  # then it is left to chance
            END_SESSION.all(conn, session=lost.session, name=lost.name, silent=lost.silence / 2)

    def connect(
        self,
        name: str,
        *,
        statement_timeout: float = STATEMENT_TIMEOUT,
        silence: float | None = None,
    ) -> Impatient:
        """A connection of one's own, autocommitting; raises DatabaseUnavailable.

        ``statement_timeout`` in seconds; ``silence``: seconds without a sign of the server after
        which a call ends with a transient error and the connection is closed (default: five more
        than a statement may take).
        """
        try:
            conn = pooler.Bounded.connect(
                make_conninfo(self.url, **_parameters(self.url, name)), autocommit=True
            )
        except psycopg.OperationalError as error:
            raise unavailable(error, self.url) from None
        try:
            self._prepare(conn, statement_timeout, silence, plans_once=True)
        except psycopg.OperationalError as error:
            conn.close()
            raise unavailable(error, self.url) from None
        except BaseException:
            conn.close()
            raise
        return conn

    def make_room(self, size: int) -> None:
        """Let the pool have at least so many connections, when they are needed; not one that
        somebody else has given."""
        with self._lock:
            self._size = max(self._size, size)
            if self._own is not None and self._pid == os.getpid():
                self._own.resize(0, self._size)

    def drop_dead(self) -> None:
        """Replace the pooled connections that nobody uses: after one has died nobody knows how
        the others are, and to ask each of them may take long when they are silent."""
        pool = self._pool()
        if pool is self._given:
            pool.check()
            return
        for _ in range(pool.get_stats()["pool_available"]):
            with suppress(PoolTimeout):  # somebody was quicker
                conn = pool.getconn(timeout=0.01)
                conn.close()
                pool.putconn(conn)

    def close(self) -> None:
        """Close the pool; the Database may be used again and opens another."""
        with self._lock:
            pool, self._own = self._own, None
            if self._pid != os.getpid():
                self._parents.append(pool)
                return
        if pool is not None:
            pool.close()

    @contextmanager
    def _adopted(self, pool: ConnectionPool[Any], patience: float) -> Iterator[Connection]:
        conn = self._taken(pool, patience)
        try:
            with conn:  # commits what has not been; does not close it
                self._adopt(conn)
                yield conn
        finally:
            pool.putconn(conn)

    def _taken(self, pool: ConnectionPool[Any], patience: float) -> Connection:
        try:
            conn: Connection = pool.getconn(timeout=patience)
        except (PoolTimeout, PoolClosed):
            self.connect("probe").close()  # says why, when the server is the reason
            raise errors.DatabaseUnavailable(
                f"No connection to Postgres at {describe(self.url)} came free in "
                f"{patience:g} seconds."
            ) from None
        refused = getattr(conn, "refused", None)
        if refused is not None:
            conn.close()
            pool.putconn(conn)
            raise refused
        return conn

    def _pool(self) -> ConnectionPool[Any]:
        if self._given is not None:
            return self._given
        with self._lock:
            if self._own is None or self._pid != os.getpid():
                self._parents.append(self._own)
                self._own, self._pid = self._open(), os.getpid()
            return self._own

    def _open(self) -> ConnectionPool[Any]:
        return ConnectionPool(
            make_conninfo(self.url, **_parameters(self.url, "pool")),
            connection_class=pooler.Bounded,
            kwargs={"autocommit": True},
            min_size=0,
            max_size=self._size,
            configure=self._prepare_pooled,
            check=refuse_dead,
            reconnect_timeout=RECONNECT,
            reconnect_failed=_try_anew,
            open=True,
            name="conductor",
        )

    def _prepare(
        self,
        conn: Impatient,
        statement_timeout: float,
        silence: float | None,
        *,
        plans_once: bool = False,
    ) -> None:
        conn.own()
        _refuse_encoding(conn, self.url)
        self._found = pooler.bind(conn, statement_timeout, self._asked, plans_once=plans_once)
        conn.silence = statement_timeout + GRACE if silence is None else silence

    def _prepare_pooled(self, conn: Impatient) -> None:
        """The pool would try again for ever, and tell nobody, what another try does not change: so
        whoever takes the connection is told."""
        try:
            self._prepare(conn, STATEMENT_TIMEOUT, None)
        except errors.ConfigError as error:
            conn.refused = error

    def _adopt(self, conn: Connection) -> None:
        """A connection of somebody else's pool: its limits are his, but not who is in between."""
        if self._found is None:
            _refuse_encoding(conn, self.url)
            self._found = not pooler.is_direct(conn)
        if self._found:
            conn.prepare_threshold = None


class _Pooled:
    """Lends a pooled connection. Not made by ``contextmanager``: every enqueue goes through it."""

    __slots__ = ("_conn", "_database", "_patience", "_pool")

    def __init__(self, database: Database, patience: float) -> None:
        self._database, self._patience = database, patience

    def __enter__(self) -> Connection:
        self._pool = self._database._pool()
        self._conn = self._database._taken(self._pool, self._patience)
        return self._conn

    def __exit__(self, *exc_info: object) -> None:
        self._pool.putconn(self._conn)


class Link:
    """A service's own connection: opened when first asked for, replaced after it broke.

    Not shared between threads.
    """

    def __init__(
        self,
        database: Database,
        name: str,
        *,
        statement_timeout: float = STATEMENT_TIMEOUT,
        silence: float | None = None,
    ) -> None:
        self._database = database
        self._name = name
        self._statement_timeout, self._silence = statement_timeout, silence
        self._conn: Connection | None = None
        self._made_at = 0.0
        self._lost: Connection | None = None

    def get(self) -> Connection:
        """A usable connection; raises DatabaseUnavailable."""
        if self._made_at < self._database.doubted_at:
            self.drop()
        if self._conn is None or self._conn.closed or self._conn.broken:
            self._conn = self._database.connect(
                self._name, statement_timeout=self._statement_timeout, silence=self._silence
            )
            self._made_at = time.monotonic()
            self._database.end_session_of(self._lost, self._conn)
            self._lost = None
        return self._conn

    @property
    def is_open(self) -> bool:
        return self._conn is not None and not self._conn.closed

    def drop(self) -> None:
        """Close it; the next get() opens another. After an error nobody knows its state."""
        conn, self._conn = self._conn, None
        if conn is not None:
            self._lost = conn
            conn.close()
            if isinstance(conn, Impatient) and conn.was_silent:
                self._database.doubt()


class Listening:
    """A connection that waits for notifications, and can be interrupted from another thread."""

    def __init__(self, database: Database, channels: Sequence[str], name: str = "listener") -> None:
        self._conn = database.connect(name)
        try:
            if database.is_behind_pooler:  # it would hear nothing, and leave a session listening
                raise errors.DatabaseUnavailable("Nobody can listen through a pooler.")
            for channel in channels:
                self._conn.execute(sql.SQL("listen {}").format(sql.Identifier(channel)))
        except BaseException:
            self._conn.close()
            raise
        self._read_end, self._write_end = os.pipe()
        self._lock = threading.Lock()
        self._is_open = True

    def receive(self, timeout: float) -> list[str]:
        """The payloads that have come, in order; empty after ``timeout`` seconds or interrupt().

        Raises DatabaseUnavailable when the connection is dead.
        """
        poll = select.poll()  # unlike select() for any number of open files
        for each in (self._conn.fileno(), self._read_end):
            poll.register(each, select.POLLIN)
        if any(file == self._read_end for file, _ in poll.poll(timeout * 1000)):
            os.read(self._read_end, 4096)
        pg = self._conn.pgconn
        try:
            self._conn.check()
            pg.consume_input()
        except psycopg.OperationalError as error:
            raise errors.DatabaseUnavailable(f"The listener lost its connection: {error}") from None
        payloads = []
        while (notify := pg.notifies()) is not None:
            payloads.append(notify.extra.decode())
        return payloads

    def interrupt(self) -> None:
        """Let a receive() of another thread return at once, or the next one."""
        with self._lock:  # once closed, these numbers may be somebody else's files
            if self._is_open:
                os.write(self._write_end, b"x")

    def close(self) -> None:
        with self._lock:
            self._is_open = False
            os.close(self._read_end)
            os.close(self._write_end)
        self._conn.close()


def _refuse_encoding(conn: Connection, url: str) -> None:
    """Raise ConfigError for a database that cannot hold every text, or does not know its own."""
    encoding = conn.info.parameter_status("server_encoding") or pooler.encoding(conn)
    if encoding != session.ENCODING:
        raise errors.ConfigError(
            f"The database {describe(url)} has the encoding {encoding}: it cannot hold every "
            "text, and would refuse or garble payloads and results. Create one with "
            "`create database ... encoding 'UTF8' template template0` and move there."
        )


def _try_anew(pool: ConnectionPool[Any]) -> None:
    """The pool doubles its pauses without a limit: after an outage of an hour it would wait for
    another. So it gives up soon, and here goes on if anybody waits."""
    if pool.get_stats().get("requests_waiting"):
        pool.check()


@cache
def _numbered(text: str) -> tuple[tuple[str, ...], str]:
    """The names of a statement's parameters, and the statement as Postgres numbers them."""
    names = tuple(dict.fromkeys(_PARAMETER.findall(text)))
    return names, _PARAMETER.sub(lambda found: f"${names.index(found[1]) + 1}", text)


_PARAMETER: Final = re.compile(r"%\((\w+)\)s")


def _factory(row: type[R] | None) -> RowFactory[R]:
    make = _maker(row)
    return lambda _: make


def _maker(row: type[R] | None) -> Callable[[Sequence[Any]], R]:
    """What makes of the columns of one row what a statement returns."""
    assert row is not None, "a statement without rows is run()"
    make: Callable[..., R] = row
    return _scalar if row.__module__ in _SCALARS else lambda columns: make(*columns)


def _scalar(columns: Sequence[Any]) -> Any:
    return columns[0]


def _conninfo_of(pool: ConnectionPool[Any] | None) -> str:
    given = "" if pool is None else pool.conninfo
    return given() if callable(given) else given


_SCALARS: Final = ("builtins", "uuid", "datetime")


def _parameters(url: str, name: str) -> dict[str, Any]:
    given = _parsed(url)
    mine = {key: value for key, value in _NETWORK.items() if key not in given}
    named = {"application_name": given.get("application_name", f"conductor {name}")}
    return {**mine, **named, "client_encoding": session.ENCODING}


def _parsed(url: str) -> dict[str, Any]:
    try:
        return conninfo_to_dict(url)
    except psycopg.ProgrammingError:
        raise errors.ConfigError(
            f"database.url = {redacted(url)!r}: Postgres' client library cannot read it; expected "
            "postgresql://user:password@host:port/database?sslmode=..., with special characters "
            "of the password written as %40"
        ) from None  # the reason may quote the password
