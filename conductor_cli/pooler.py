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

from conductor_cli.connections import Impatient

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from psycopg.abc import Buffer

LOCK_TIMEOUT: Final = "10s"
IDLE_TIMEOUT: Final = "60s"
ROUNDS: Final = 8

# A plan is kept until the table is analyzed again; one made while there was nothing reads the whole
# table, and after a burst for every batch: so none of ours may (and jit would compile those that
# have to, small as their tables are). See docs/architecture.md.

# Does nothing and has no row where the process that answers is not the one that greeted us: a
# pooler makes up the number it greets with.
_BOUND_SESSION: Final = """
select set_config('statement_timeout', %(statement)s, false),
       set_config('lock_timeout', %(lock)s, false),
       set_config('idle_in_transaction_session_timeout', %(idle)s, false),
       set_config('default_transaction_isolation', 'read committed', false),
       set_config('timezone', 'UTC', false),
       set_config('enable_seqscan', 'off', false),
       set_config('jit', 'off', false),
       set_config('plan_cache_mode', %(plans)s, false)
where %(trusted)s or pg_backend_pid() = %(greeted)s
"""

_BOUND_TRANSACTION: Final = """
select set_config('statement_timeout', %(statement)s, true),
       set_config('lock_timeout', %(lock)s, true),
       set_config('idle_in_transaction_session_timeout', %(idle)s, true),
       set_config('enable_seqscan', 'off', true),
       set_config('jit', 'off', true)
"""

_PLANS_AS_USUAL: Final = "set local enable_seqscan to default; set local jit to default"
_PLANS_AS_OURS: Final = "set local enable_seqscan to off; set local jit to off"
_PID: Final = "select pg_backend_pid()"
_BEGIN: Final = "begin isolation level read committed"
_DIRECTLY: Final[AbstractContextManager[None]] = nullcontext()


class Bounded(Impatient):
    """A connection whose every statement is bounded in time, by its session or by itself.

    ``limits`` are those that each transaction sets for itself; None where the session has them.
    """

    limits: Mapping[str, str] | None = None

    @contextmanager
    def transaction(
        self, savepoint_name: str | None = None, force_rollback: bool = False
    ) -> Iterator[psycopg.Transaction]:
        begins = self.limits is not None and _is_idle(self)
        with super().transaction(savepoint_name, force_rollback) as transaction:
            if begins:
                self.execute(_BOUND_TRANSACTION, self.limits)
            yield transaction

    @contextmanager
    def alone(self) -> Iterator[None]:
        """What is executed inside is a transaction of its own, with its limits, in one round
        trip; its rows can be fetched afterwards."""
        try:
            with self.pipeline():
                self.execute(_BEGIN)
                self.execute(_BOUND_TRANSACTION, self.limits)
                yield
                self.execute("commit")
        except BaseException:
            if not (self.closed or self.broken):
                self.rollback()
            raise


def plan_as_usual(conn: psycopg.Connection[Any]) -> None:
    """Until the end of its transaction: for statements that are not ours."""
    conn.execute(_PLANS_AS_USUAL, prepare=False)


def plan_as_ours(conn: psycopg.Connection[Any]) -> None:
    """From now on again: what is prepared keeps its plan for longer than this transaction."""
    conn.execute(_PLANS_AS_OURS, prepare=False)


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
    limits = {
        "statement": f"{int(statement_timeout * 1000)}ms",
        "lock": LOCK_TIMEOUT,
        "idle": IDLE_TIMEOUT,
        "plans": "force_generic_plan" if plans_once else "auto",
    }
    # What perform() has prepared would go with what psycopg has, whenever it throws that away.
    conn.prepare_threshold = None
    if not asked and _bind_session(conn, limits, trusted=asked is False):
        return False
    if isinstance(conn, Bounded):
        conn.limits = limits
    conn.isolation_level = IsolationLevel.READ_COMMITTED
    conn.adapters.register_loader("timestamptz", _Moment)  # the zone is the session's, too
    return True


def is_direct(conn: psycopg.Connection[Any]) -> bool:
    """Whether the process that greeted us is the one that answers."""
    return _session_of(conn) == conn.info.backend_pid


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
    with conn.transaction():
        row = conn.execute(_PID, prepare=False).fetchone()
    return 0 if row is None else int(row[0])


def _bind_session(
    conn: psycopg.Connection[Any], limits: Mapping[str, str], *, trusted: bool
) -> bool:
    given = {**limits, "trusted": trusted, "greeted": conn.info.backend_pid}
    return conn.execute(_BOUND_SESSION, given, prepare=False).fetchone() is not None


def _is_idle(conn: psycopg.Connection[Any]) -> bool:
    return conn.info.transaction_status is TransactionStatus.IDLE


class _Moment(Loader):
    """Moments in UTC, whatever the session's zone is by the time they are read."""

    format = Format.BINARY

    def load(self, data: Buffer) -> datetime:
        return _EPOCH + timedelta(microseconds=int.from_bytes(data, "big", signed=True))


_EPOCH: Final = datetime(2000, 1, 1, tzinfo=UTC)
