"""Connections that callers lend, so that what is enqueued is part of their own transaction.

Drivers and frameworks are told apart by the names of their classes: none is imported here that
the caller has not imported. Statements are written with ``$1``, ``$2`` and translated.
"""

from __future__ import annotations

import re
import sys
from typing import TYPE_CHECKING, Any, Final

import psycopg
from psycopg.rows import tuple_row

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

Rows = list[tuple[Any, ...]]

_PLACEHOLDER: Final = re.compile(r"\$(\d)")
_TAKEN: Final = (
    "a psycopg Connection or AsyncConnection, an SQLAlchemy session or connection, a Django "
    "connection, or a connection of psycopg2 or asyncpg"
)


def is_async(connection: object) -> bool:
    """Whether what is done on it has to be awaited; raises TypeError for what is no connection."""
    return _kind(connection) in _ASYNC


def execute(connection: object, statement: str, values: Sequence[object]) -> Rows:
    """Run a statement in the caller's transaction; its rows.

    Raises TypeError for an asynchronous connection, and for what is none at all; whatever the
    driver raises.
    """
    kind = _kind(connection)
    if kind in _ASYNC:
        raise TypeError(
            f"connection={_name(connection)} is asynchronous: use AsyncConductor, and await it"
        )
    return _SYNC[kind](connection, statement, values)


async def execute_async(connection: object, statement: str, values: Sequence[object]) -> Rows:
    """The same on an asynchronous connection."""
    rows: Rows = await _ASYNC[_kind(connection)](connection, statement, values)
    return rows


def _kind(connection: object) -> str:
    names = [
        (each.__module__.partition(".")[0], each.__name__) for each in type(connection).__mro__
    ]
    for kind, classes in _KINDS.items():
        if any(name in classes for name in names):
            _refuse_other_databases(connection, kind)
            return kind
    hint = ""
    if ("sqlalchemy", "Engine") in names or any("Pool" in name for _, name in names):
        hint = " Take a connection from it first: the transaction is the connection's."
    raise TypeError(
        f"connection={_name(connection)} cannot be used: it takes {_TAKEN}.{hint} Outside a "
        "transaction of your own leave it away."
    )


_KINDS: Final = {
    "psycopg": {("psycopg", "Connection")},
    "psycopg async": {("psycopg", "AsyncConnection")},
    "psycopg2": {("psycopg2", "connection")},
    "asyncpg": {("asyncpg", "Connection"), ("asyncpg", "PoolConnectionProxy")},
    "session": {("sqlalchemy", "Session"), ("sqlalchemy", "scoped_session")},
    "session async": {("sqlalchemy", "AsyncSession"), ("sqlalchemy", "async_scoped_session")},
    "sqlalchemy": {("sqlalchemy", "Connection")},
    "sqlalchemy async": {("sqlalchemy", "AsyncConnection")},
    "django": {("django", "BaseDatabaseWrapper"), ("django", "ConnectionProxy")},
}


def _refuse_other_databases(connection: Any, kind: str) -> None:
    other = None
    if kind == "django" and connection.vendor != "postgresql":
        other = connection.vendor
    if kind.startswith("sqlalchemy") and connection.dialect.name != "postgresql":
        other = connection.dialect.name
    if other is not None:
        raise TypeError(f"connection={_name(connection)} leads to {other}, not to Postgres")


def _psycopg(connection: psycopg.Connection[Any], statement: str, values: Sequence[Any]) -> Rows:
    with connection.cursor(row_factory=tuple_row) as cursor:
        return cursor.execute(_percent(statement), values).fetchall()


async def _psycopg_async(
    connection: psycopg.AsyncConnection[Any], statement: str, values: Sequence[Any]
) -> Rows:
    async with connection.cursor(row_factory=tuple_row) as cursor:
        await cursor.execute(_percent(statement), values)
        return await cursor.fetchall()


def _psycopg2(connection: Any, statement: str, values: Sequence[Any]) -> Rows:
    plain = sys.modules["psycopg2.extensions"].cursor  # whatever the connection's own makes of rows
    with connection.cursor(cursor_factory=plain) as cursor:
        cursor.execute(_percent(statement).decode(), values)
        return list(cursor.fetchall())


def _django(connection: Any, statement: str, values: Sequence[Any]) -> Rows:
    with connection.cursor() as cursor:
        cursor.execute(_percent(statement).decode(), values)
        return list(cursor.fetchall())


def _session(session: Any, statement: str, values: Sequence[Any]) -> Rows:
    connection = session.connection()
    _kind(connection)
    return _sqlalchemy(connection, statement, values)


async def _session_async(session: Any, statement: str, values: Sequence[Any]) -> Rows:
    connection = await session.connection()
    _kind(connection)
    return await _sqlalchemy_async(connection, statement, values)


def _sqlalchemy(connection: Any, statement: str, values: Sequence[Any]) -> Rows:
    found = connection.execute(_text(statement), _named(values))
    return [tuple(row) for row in found]


async def _sqlalchemy_async(connection: Any, statement: str, values: Sequence[Any]) -> Rows:
    found = await connection.execute(_text(statement), _named(values))
    return [tuple(row) for row in found]


async def _asyncpg(connection: Any, statement: str, values: Sequence[Any]) -> Rows:
    return [tuple(row) for row in await connection.fetch(statement, *values)]


_SYNC: Final[dict[str, Callable[..., Rows]]] = {
    "psycopg": _psycopg,
    "psycopg2": _psycopg2,
    "django": _django,
    "session": _session,
    "sqlalchemy": _sqlalchemy,
}
_ASYNC: Final[dict[str, Callable[..., Any]]] = {
    "psycopg async": _psycopg_async,
    "asyncpg": _asyncpg,
    "session async": _session_async,
    "sqlalchemy async": _sqlalchemy_async,
}


def _percent(statement: str) -> bytes:
    return _PLACEHOLDER.sub("%s", statement).encode()


def _text(statement: str) -> Any:
    return sys.modules["sqlalchemy"].text(_PLACEHOLDER.sub(r":p\1", statement))


def _named(values: Sequence[object]) -> dict[str, object]:
    return {f"p{number}": value for number, value in enumerate(values, 1)}


def _name(connection: object) -> str:
    kind = type(connection)
    return f"<{kind.__module__}.{kind.__qualname__}>"
