"""A pooler between this program and Postgres: how to know of one, and how to work behind it.

In transaction mode a session lasts one transaction. What it sets is lost, or becomes somebody
else's; what it prepares is not there the next time, or is another's; it hears no notification
and holds no lock. So behind one every transaction brings its own limits, nothing is prepared,
and nobody listens.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, contextmanager, nullcontext
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Final, TypeGuard

import psycopg
from psycopg import IsolationLevel
from psycopg.adapt import Loader
from psycopg.pq import Format, TransactionStatus
from psycopg.rows import tuple_row

from conductor_cli import session
from conductor_cli.connections import Impatient

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from psycopg.abc import Buffer

ROUNDS: Final = 8

# Sets what a session, or a transaction, of ours is set to. Names and operators are qualified: the
# search path may lead anywhere until this has been run. A setting that this Postgres does not know
# is left out. Does nothing and has no row where the process that answers is not the one that
# greeted us: a pooler makes up the number it greets with.
_SET_UP: Final = """
select pg_catalog.set_config(wanted.name, wanted.value, %(is_local)s)
from rows from (
    pg_catalog.unnest(%(names)s::pg_catalog.text[]),
    pg_catalog.unnest(%(values)s::pg_catalog.text[])
) as wanted (name, value)
where pg_catalog.current_setting(wanted.name, true) is not null
  and (%(trusted)s or pg_catalog.pg_backend_pid() operator(pg_catalog.=) %(greeted)s)
  and (
    wanted.name operator(pg_catalog.<>) 'work_mem'
    or pg_catalog.pg_size_bytes(pg_catalog.current_setting('work_mem'))
       operator(pg_catalog.<) pg_catalog.pg_size_bytes(wanted.value)
  )
"""

_PLANS_AS_USUAL: Final = "set local enable_seqscan to default; set local jit to default"
_ENCODING: Final = "select pg_catalog.current_setting('server_encoding')"
_PID: Final = "select pg_catalog.pg_backend_pid()"
_BEGIN: Final = "begin isolation level read committed read write"
_DIRECTLY: Final[AbstractContextManager[None]] = nullcontext()


class Bounded(Impatient):
    """A connection whose every statement is bounded in time, by its session or by itself.

    ``limits``: what each transaction sets for itself; None where the session has it.
    """

    limits: Mapping[str, Any] | None = None
    ours: Mapping[str, Any]  # what sets up the session, or a transaction, as all of ours are

    @contextmanager
    def transaction(
        self, savepoint_name: str | None = None, force_rollback: bool = False
    ) -> Iterator[psycopg.Transaction]:
        begins = self.limits is not None and _is_idle(self)
        with super().transaction(savepoint_name, force_rollback) as transaction:
            if begins:
                self.execute(_SET_UP, self.limits)
            yield transaction

    @contextmanager
    def alone(self) -> Iterator[None]:
        """What is executed inside is a transaction of its own, with its limits, in one round
        trip; its rows can be fetched afterwards."""
        try:
            with self.pipeline():
                self.execute(_BEGIN)
                self.execute(_SET_UP, self.limits)
                yield
                self.execute("commit")
        except BaseException:
            if not (self.closed or self.broken):
                self.rollback()
            raise


def restore(conn: psycopg.Connection[Any], others: Mapping[str, str]) -> None:
    """For a statement of ours on a connection that others have used: set it up as ours are, with
    ``others`` besides."""
    given = conn.ours if isinstance(conn, Bounded) else _given(session.SETTINGS, is_local=True)
    if others:
        given = {**given, "names": [*given["names"], *others]}
        given["values"] = [*given["values"], *others.values()]
    conn.execute(_SET_UP, given, prepare=False)


def plan_as_usual(conn: psycopg.Connection[Any]) -> None:
    """Until the end of its transaction: for statements that are not run often."""
    conn.execute(_PLANS_AS_USUAL, prepare=False)


def limited(conn: psycopg.Connection[Any]) -> AbstractContextManager[None]:
    """Around one statement: bounds it where its session does not and no transaction is open."""
    if isinstance(conn, Bounded) and conn.limits is not None and _is_idle(conn):
        return conn.alone()
    return _DIRECTLY


def is_own_session(conn: psycopg.Connection[Any]) -> TypeGuard[Bounded]:
    """Whether what is prepared there stays, and is nobody else's."""
    return isinstance(conn, Bounded) and conn.limits is None


def bind(
    conn: psycopg.Connection[Any],
    statement_timeout: float,
    asked: bool | None,
    *,
    plans_once: bool = False,
) -> bool:
    """Bound all that a fresh connection will do; returns whether a pooler stands in between.

    ``asked``: what the configuration says of a pooler; None finds it out. In whatever mode it is,
    it is taken for one in transaction mode: that cannot be seen from here, and is always safe.
    ``plans_once``: a statement that is prepared is not planned again for its parameters.
    """
    # What perform() has prepared would go with what psycopg has, whenever it throws that away.
    conn.prepare_threshold = None
    plans = {"plan_cache_mode": "force_generic_plan" if plans_once else "auto"}
    wanted = {**session.SETTINGS, **session.statement_limits(statement_timeout), **plans}
    for_session = _given(wanted, is_local=False)
    shared = asked or not _bind_session(conn, for_session, trusted=asked is False)
    if isinstance(conn, Bounded):
        conn.ours = _given(wanted, is_local=True) if shared else for_session
        conn.limits = conn.ours if shared else None
    if shared:
        conn.isolation_level = IsolationLevel.READ_COMMITTED
        conn.read_only = conn.deferrable = False
        conn.adapters.register_loader("timestamptz", _Moment)  # the zone is the session's, too
    return shared


def is_direct(conn: psycopg.Connection[Any]) -> bool:
    """Whether the process that greeted us is the one that answers."""
    return _session_of(conn) == conn.info.backend_pid


def encoding(conn: psycopg.Connection[Any]) -> str:
    """That of the database, where the greeting does not tell."""
    with conn.cursor(row_factory=tuple_row) as cursor:
        (found,) = cursor.execute(_ENCODING, prepare=False).fetchone() or ("",)
    return str(found)


def shares_sessions(one: psycopg.Connection[Any], other: psycopg.Connection[Any]) -> bool:
    """Whether transactions of two connections are seen to meet in one server session, or those
    of one connection in several. True is certain; False may be luck on a busy pooler.

    They take turns at being first: a pooler that goes around among two sessions would otherwise
    give each the same one every time.
    """
    seen = []
    for number in range(ROUNDS):
        first, second = (one, other) if number % 2 == 0 else (other, one)
        met = {first: _session_of(first), second: _session_of(second)}
        seen.append((met[one], met[other]))
    return any(a == b for a, b in seen) or len(set(seen)) > 1


def allows_transactions(conn: psycopg.Connection[Any]) -> bool:
    """Whether several statements may make a transaction: in statement mode they may not."""
    try:
        with conn.transaction():
            conn.execute("select", prepare=False)
    except psycopg.OperationalError as error:
        if "statement pooling" in str(error):
            return False
        raise
    return True


def _session_of(conn: psycopg.Connection[Any]) -> int:
    with conn.transaction(), conn.cursor(row_factory=tuple_row) as cursor:
        row = cursor.execute(_PID, prepare=False).fetchone()
    return 0 if row is None else int(row[0])


def _bind_session(
    conn: psycopg.Connection[Any], given: Mapping[str, Any], *, trusted: bool
) -> bool:
    sent = {**given, "trusted": trusted, "greeted": conn.info.backend_pid}
    return conn.execute(_SET_UP, sent, prepare=False).fetchone() is not None


def _given(wanted: Mapping[str, str], *, is_local: bool) -> Mapping[str, Any]:
    settings = {**wanted, "work_mem": session.LEAST_MEMORY}
    return {
        "names": list(settings),
        "values": list(settings.values()),
        "is_local": is_local,
        "trusted": True,
        "greeted": 0,
    }


def _is_idle(conn: psycopg.Connection[Any]) -> bool:
    return conn.info.transaction_status is TransactionStatus.IDLE


class _Moment(Loader):
    """Moments in UTC, whatever the session's zone is by the time they are read."""

    format = Format.BINARY

    def load(self, data: Buffer) -> datetime:
        return _EPOCH + timedelta(microseconds=int.from_bytes(data, "big", signed=True))


_EPOCH: Final = datetime(2000, 1, 1, tzinfo=UTC)
