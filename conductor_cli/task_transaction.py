"""The transaction that a task writes in: its connection is lent, and only the runner ends it.

The task's SQL runs as the role and the database are configured, without our limits: it is bounded
by the task's timeout alone, and a cancel ends it. Whatever it does to its session stays with the
task: the session is reset before the connection goes back to the pool, or the connection is closed.
"""

from __future__ import annotations

import math
from contextlib import ExitStack, suppress
from functools import cache
from typing import TYPE_CHECKING, Any, Final, TypeVar, cast

import psycopg
from psycopg import generators
from psycopg.adapt import AdaptersMap
from psycopg.errors import error_from_result
from psycopg.pq import ExecStatus, TransactionStatus

from conductor_cli import pooler
from conductor_cli.attempt import Abort
from conductor_cli.errors import StepError

if TYPE_CHECKING:
    from collections.abc import Generator, Sequence
    from typing import Self

    from psycopg.abc import PQGen
    from psycopg.pq.abc import PGresult

    from conductor_cli.attempt import Attempt
    from conductor_cli.database import Connection, Database

T = TypeVar("T")

CANCEL_TIMEOUT: Final = 2.0  # seconds to ask Postgres to end what runs, before the line is cut

# The moment at which a transaction began tells it from every other one of its session, and no
# setting changes how it is written.
_STAMP: Final = "select extract(epoch from pg_catalog.now())"

_BEGIN: Final = f"""
begin isolation level read committed read write;
reset all;
set local statement_timeout to 0;
set local lock_timeout to 0;
set local idle_in_transaction_session_timeout to 0;
select pg_catalog.set_config('transaction_timeout', '0', true)
where pg_catalog.current_setting('transaction_timeout', true) is not null;
{_STAMP}
"""

# What is deferred is checked as the task's role and settings have it, before these are reset.
_TAKE_BACK: Final = f"""
set constraints all immediate;
close all;
reset session authorization;
reset role;
reset all;
unlisten *;
discard temp;
discard sequences;
set local statement_timeout to 0;
{_STAMP}, (
    select pg_catalog.count(*) from pg_catalog.pg_prepared_statements
    where name operator(pg_catalog.~) '^perform_[0-9]+$'
), (select pg_catalog.count(*) from pg_catalog.pg_prepared_statements)
"""

_TAKE_BACK_GIVEN: Final = f"set constraints all immediate; {_STAMP}, 0, 0"

# In the same message as the end of the transaction: behind a pooler the session is another's after
# it. A lock of the session protects until the commit, as its taker expects.
_UNLOCK: Final = "select pg_catalog.pg_advisory_unlock_all()"
_COMMIT: Final = f"commit; {_UNLOCK}"
_DEALLOCATE: Final = """
do $$
declare
    prepared pg_catalog.text;
begin
    for prepared in
        select name from pg_catalog.pg_prepared_statements
        where from_sql or name operator(pg_catalog.~) '^_pg3_'
    loop
        execute pg_catalog.format('deallocate %I', prepared);
    end loop;
end $$
"""

_ROLLBACK: Final = """
rollback;
select pg_catalog.pg_advisory_unlock_all();
discard sequences;
select pg_catalog.count(*) from pg_catalog.pg_prepared_statements
where not name operator(pg_catalog.~) '^perform_[0-9]+$'
"""
_ROLLBACK_SHARED: Final = f"""
rollback;
select pg_catalog.pg_advisory_unlock_all();
discard sequences;
{_DEALLOCATE};
select 0
"""

_OWNER: Final = """
select pg_catalog.current_setting('session_authorization'), pg_catalog.current_setting('role')
"""

_ENDED: Final = (
    "The transaction of this connection was ended by SQL (commit, rollback, prepare transaction): "
    "what was written before may stay, while the record that belongs to it is not written. Only "
    "the runner ends it, together with the record. Take the statement out; to undo a part use "
    "`with conn.transaction():`, to undo all raise an exception."
)
_OVER: Final = (
    "This connection was lent to a step or task that has ended, and does nothing any more. Use it "
    "inside that step or task only."
)


class TaskTransaction:
    """A pooled connection in a transaction that its user cannot end, only the lender."""

    def __init__(self, database: Database, attempt: Attempt) -> None:
        self._attempt = attempt
        self._stack = ExitStack()
        self._is_over = False
        self._is_spoilt = False  # its session is not to be used again
        self._conn = self._stack.enter_context(database.connection())
        self._is_own = isinstance(self._conn, pooler.Bounded)
        try:
            self._owner: dict[str, str] = {}  # who it is to be, on a pool that somebody has given
            self._stamp = self._begun()
        except BaseException:
            self._end()
            raise
        self._handlers = _handlers_of(self._conn)
        self.connection: Connection = _lent(self._conn, self)

    def ours(self) -> Connection:
        """The connection, for the statements of ours that end its transaction. Raises StepError
        if it has been ended already."""
        with self.connection.lock:  # a thread of the task's may still use it
            self._is_over = True
        if _status(self._conn) is TransactionStatus.IDLE:
            raise self._ended()
        *_, last = self._said(_TAKE_BACK if self._is_own else _TAKE_BACK_GIVEN)
        stamp, mine, all_prepared = (_text(last, column) for column in range(3))
        if stamp != self._stamp:
            raise self._ended()
        self._look_after_prepared(int(mine), int(all_prepared))
        pooler.restore(self._conn, self._owner)
        return self._conn

    def commit(self) -> None:
        """Let all that was done on it be, and give it back; raises why it cannot be."""
        try:
            if self._is_own:
                self._committed()
            else:
                self._stack_of_transaction.close()
        except BaseException:
            self._is_spoilt = True
            raise
        finally:
            self._end()

    def undo(self) -> None:
        """Roll back and give it back, whatever state it is in."""
        self._is_over = True
        try:
            self._rolled_back()
        except psycopg.Error:  # a dead connection has nothing to be undone
            self._is_spoilt = True
        finally:
            self._end()

    # What the connection that is lent asks.

    def check(self) -> None:
        """Raise when the task has to leave, or has nothing to do here any more."""
        if self._is_over:
            raise self._refused(_OVER)
        attempt = self._attempt
        why = attempt.abort_reason
        if why is not None and (why is not Abort.SHUTDOWN or attempt.insisted):
            attempt.signal.raise_if_aborted()

    def watched(self, gen: PQGen[T]) -> PQGen[T]:
        """The same, and about ten times a second a look whether the task has to leave."""
        return cast("PQGen[T]", self._looking_up(gen))

    def look(self) -> None:
        """A statement has ended: raise StepError if it has ended the transaction."""
        if _status(self._conn) is TransactionStatus.IDLE:
            raise self._ended()

    def leave(self) -> None:
        """What waited for a statement was interrupted. Whatever still runs is ended, in Postgres
        too, and nobody reads what it would answer."""
        if _status(self._conn) is TransactionStatus.ACTIVE:
            self._is_spoilt = True
            with suppress(psycopg.Error):
                self._conn.cancel_safe(timeout=CANCEL_TIMEOUT)
            self._conn.pgconn.finish()

    def refuse(self, text: str) -> StepError:
        """The error of something that only the lender may do."""
        return self._refused(text)

    def _looking_up(self, gen: PQGen[T]) -> Generator[Any, Any, T]:
        try:
            wanted = next(gen)
            while True:
                ready = yield wanted
                self.check()
                wanted = gen.send(ready)
        except StopIteration as end:
            result: T = end.value
            return result

    def _begun(self) -> str:
        if self._is_own:
            return _text(self._said(_BEGIN)[-1])
        self._stack_of_transaction = ExitStack()
        self._stack_of_transaction.enter_context(self._conn.transaction())
        (owner,) = self._said(_OWNER)
        self._owner = {"session_authorization": _text(owner), "role": _text(owner, 1)}
        return _text(self._said(_STAMP)[-1])

    def _committed(self) -> None:
        first, *rest = self._answers(_COMMIT)
        _raise_for(first)
        if first.command_status != b"COMMIT":
            raise psycopg.errors.InFailedSqlTransaction("the transaction had failed: rolled back")
        self._is_spoilt |= any(each.status == ExecStatus.FATAL_ERROR for each in rest)

    def _rolled_back(self) -> None:
        self.leave()
        if not self._is_own:
            with suppress(psycopg.Error):
                self._stack_of_transaction.__exit__(psycopg.Rollback, psycopg.Rollback(), None)
            return
        if _status(self._conn) is TransactionStatus.IDLE:  # it was ended by SQL
            self._is_spoilt = True
            return
        is_alone = pooler.is_own_session(self._conn)
        *_, last = self._said(_ROLLBACK if is_alone else _ROLLBACK_SHARED)
        self._is_spoilt |= _text(last) != "0"

    def _look_after_prepared(self, mine: int, every: int) -> None:
        conn = self._conn
        if not isinstance(conn, pooler.Bounded):
            return
        if mine != conn.performed:
            conn.forget_performed()
            self._is_spoilt = True
        if every > mine:  # the session is closed; one that a pooler shares goes on, without them
            self._is_spoilt = True
            if not pooler.is_own_session(conn):
                self._said(_DEALLOCATE)

    def _end(self) -> None:
        """Give it back; where its session may have been changed, closed."""
        self._is_over = True
        with suppress(AttributeError):  # it was not lent yet
            _restore(self._conn, self._handlers)
        if not self._is_own:  # its owner has set it up: it is closed, and the pool makes another
            with suppress(psycopg.Error):
                self._said(_UNLOCK)
        if self._is_spoilt or not self._is_own or _status(self._conn) is not TransactionStatus.IDLE:
            self._conn.close()
        self._stack.close()

    def _ended(self) -> StepError:
        self._is_over = self._is_spoilt = True
        error = self._refused(_ENDED)
        error.is_final = True
        return error

    def _refused(self, text: str) -> StepError:
        """A StepError by which the run ends, whatever the task does with it."""
        error, attempt = StepError(text), self._attempt
        if attempt.has_ended:
            return error
        if attempt.stuck is None:
            attempt.stuck = error
        return error

    def _said(self, message: str) -> Sequence[PGresult]:
        results = self._answers(message)
        for each in results:
            _raise_for(each)
        return results

    def _answers(self, message: str) -> Sequence[PGresult]:
        """What Postgres answers to each statement of a message, errors included."""
        conn = self._conn
        with conn.lock:
            conn.pgconn.send_query(message.encode())
            return conn.wait(generators.execute(conn.pgconn))


class _Lent(psycopg.Connection[Any]):
    """What a task is given: the pool's connection under another name, which it cannot end, and
    which does nothing once it has been given back."""

    _lender: TaskTransaction

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        """The runner ends the transaction."""

    def wait(self, gen: PQGen[T], *args: Any, **kwargs: Any) -> T:
        """Every call to the server waits here."""
        lender = self._lender
        lender.check()
        try:
            done = super().wait(lender.watched(gen), *args, **kwargs)
        except psycopg.Error as error:
            lender.leave()
            try:
                lender.look()
            except StepError as ended:
                raise ended from error
            raise
        except BaseException:
            lender.leave()
            raise
        lender.look()
        return done

    def cursor(self, *args: Any, **kwargs: Any) -> Any:
        self._lender.check()
        return super().cursor(*args, **kwargs)

    @property
    def closed(self) -> bool:
        return self._lender._is_over or super().closed

    def commit(self) -> None:
        raise self._lender.refuse(
            "This connection's transaction is committed together with the task's completion, or "
            "the step's record, by the runner."
        )

    def rollback(self) -> None:
        raise self._lender.refuse(
            "This connection's transaction is rolled back by raising an exception."
        )

    def close(self) -> None:
        raise self._lender.refuse("This connection is given back by the runner.")


def _lent(conn: Connection, lender: TaskTransaction) -> Connection:
    """The same connection as an object of its own: what is set on it, the pool does not see."""
    lent = object.__new__(_lent_kind(cast("Any", type(conn))))
    lent.__dict__.update(conn.__dict__)
    lent.__dict__.update(
        _lender=lender,
        _adapters=AdaptersMap(conn.adapters),
        silence=math.inf,  # the task's timeout bounds it
        limits={},  # nothing of ours is kept prepared through it
    )
    return lent


@cache
def _lent_kind(kind: type) -> type[_Lent]:
    return type("Lent", (_Lent, kind), {})


def _handlers_of(conn: Connection) -> tuple[list[Any], list[Any], int | None]:
    return list(conn._notice_handlers), list(conn._notify_handlers), conn.prepare_threshold


def _restore(conn: Connection, handlers: tuple[list[Any], list[Any], int | None]) -> None:
    """What the two objects share is as it was."""
    conn._notice_handlers[:], conn._notify_handlers[:] = handlers[0], handlers[1]
    conn.prepare_threshold = handlers[2]


def _status(conn: Connection) -> TransactionStatus:
    return TransactionStatus(conn.pgconn.transaction_status)


def _raise_for(result: PGresult) -> None:
    if result.status == ExecStatus.FATAL_ERROR:
        raise error_from_result(result)


def _text(result: PGresult, column: int = 0) -> str:
    return (result.get_value(0, column) or b"").decode()
