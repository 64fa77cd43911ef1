"""Rows on their way into the database: in a transaction of one's own, or in a caller's."""

from __future__ import annotations

from contextlib import contextmanager
from itertools import islice
from typing import TYPE_CHECKING, Final
from uuid import UUID

from conductor_cli import borrowed, database, driver_errors
from conductor_cli.invoking import Ids, Row, array, ids
from conductor_cli.store import events, executions

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from conductor_cli.borrowed import Rows
    from conductor_cli.database import Connection
    from conductor_cli.door import Door

_LENT: Final = driver_errors.Telling(driver_errors.LENT)

PORTION: Final = 1000  # rows that travel together, while the next are made


def on_own(door: Door, rows: Iterator[Row]) -> Ids:
    """Send rows and commit. They are made while earlier ones are already on their way.

    A lost reply is recognised: the second try inserts nothing twice.
    """
    made: list[Row] = []
    given = _apart(rows)
    tries = iter((_send, _send_again))
    with _theirs():
        return door.retrying(lambda conn: next(tries)(conn, given, made))


def one_on_own(door: Door, row: Row) -> UUID:
    """The same for a single row, which is what most calls send: a third of the work here."""
    tries = iter((_send_one, _send_one_again))
    return door.retrying(lambda conn: next(tries)(conn, row))


class _NotOurs(Exception):
    """What the caller's own iterator of payloads has raised, on its way out."""

    def __init__(self, error: Exception) -> None:
        super().__init__(str(error))
        self.error = error


@contextmanager
def _theirs() -> Iterator[None]:
    try:
        yield
    except _NotOurs as caught:
        raise caught.error from caught.error.__cause__


def _apart(rows: Iterator[Row]) -> Iterator[Row]:
    """The same rows. An error of making them is not taken for one of sending them."""
    try:
        yield from rows
    except Exception as error:
        raise _NotOurs(error) from error


def on_borrowed(connection: object, rows: Iterator[Row]) -> Ids:
    """Send rows in the transaction of a caller, who commits it or does not."""
    mine = database.of_own_kind(connection)
    if mine is not None:
        with _theirs(), _LENT:
            return _send(mine, _apart(rows), [])
    made = list(rows)
    with _LENT:
        statement, values = _borrowed(made)
        return _ids(made, borrowed.execute(connection, statement, values))


async def on_borrowed_async(connection: object, rows: Sequence[Row]) -> Ids:
    """The same on an asynchronous connection."""
    statement, values = _borrowed(rows)
    with _LENT:
        return _ids(rows, await borrowed.execute_async(connection, statement, values))


def event_on_borrowed(connection: object, event: str, payload: str) -> UUID:
    """Emit an event in the transaction of a caller; ``payload`` is JSON text."""
    mine = database.of_own_kind(connection)
    with _LENT:
        if mine is not None:
            return events.emit(mine, event, payload)
        return UUID(str(borrowed.execute(connection, events.LENT, (event, payload))[0][0]))


async def event_on_borrowed_async(connection: object, event: str, payload: str) -> UUID:
    """The same on an asynchronous connection."""
    with _LENT:
        rows = await borrowed.execute_async(connection, events.LENT, (event, payload))
        return UUID(str(rows[0][0]))


def _borrowed(rows: Sequence[Row]) -> tuple[str, Sequence[object]]:
    chosen = any(row.options.id is not None for row in rows)
    raises = any(row.options.on_duplicate == "raise" for row in rows)
    statement = executions.LENT_OR_NOTHING if raises or chosen else executions.LENT
    return statement, (array(row.full for row in rows), chosen)


def _ids(rows: Sequence[Row], met: Rows) -> Ids:
    return ids(rows, {UUID(asked): UUID(there) if there else None for asked, there in met})


def _send_one(conn: Connection, row: Row) -> UUID:
    if (kind := row.kind) is not None:
        task, queue, rank = kind
        executions.enqueue_one(conn, row.id, row.payload, task=task, queue=queue, rank=rank)
        return row.id
    met = executions.enqueue(conn, array((row.full,)), recheck=row.options.id is not None)
    return ids((row,), {m.asked: m.met for m in met})[0]


def _send_one_again(conn: Connection, row: Row) -> UUID:
    met = executions.enqueue(conn, array((row.full,)), recheck=True)
    return ids((row,), {m.asked: m.met for m in met})[0]


def _send(conn: Connection, rows: Iterator[Row], made: list[Row]) -> Ids:
    """Send rows, many of them in portions; keeps in ``made`` what has been taken from ``rows``."""
    portion = list(islice(rows, PORTION))
    made.extend(portion)
    if len(portion) <= 1:
        return ids(made, _send_portion(conn, portion, again=False))
    met: dict[UUID, UUID | None] = {}
    with database.atomically(conn), database.overlapped(conn):
        for each in _portions(portion, rows, made):
            met |= _send_portion(conn, each, again=False)
        return ids(made, met)


def _portions(
    first: Sequence[Row], rows: Iterator[Row], made: list[Row]
) -> Iterator[Sequence[Row]]:
    """The rows in portions, as they come; from the first on that may meet another, in order."""
    portion = list(first)
    while portion:
        if any(row.options.dedupe_key is not None or row.options.id is not None for row in portion):
            made.extend(rest := list(rows))
            ordered = sorted([*portion, *rest], key=_order)
            yield from (ordered[n : n + PORTION] for n in range(0, len(ordered), PORTION))
            return
        yield portion
        portion = list(islice(rows, PORTION))
        made.extend(portion)


def _order(row: Row) -> tuple[str, str, bool, str]:
    """The order in which conductor.enqueue inserts, through all portions: each waits for whoever
    has one of its keys, while it holds those of the portions before."""
    key = row.options.dedupe_key
    return row.task, row.queue, key is None, row.id.hex if key is None else key


def _send_again(conn: Connection, rows: Iterator[Row], made: list[Row]) -> Ids:
    """The reply to a first try was lost, and it may have done its work."""
    made.extend(rows)
    with database.atomically(conn):
        return ids(made, _send_portion(conn, made, again=True))


def _send_portion(conn: Connection, rows: Sequence[Row], *, again: bool) -> dict[UUID, UUID | None]:
    kinds = {row.kind for row in rows}
    kind = kinds.pop() if len(kinds) == 1 and not again else None
    if kind is not None:
        task, queue, rank = kind
        executions.enqueue_plain(
            conn, [r.id for r in rows], [r.payload for r in rows], task=task, queue=queue, rank=rank
        )
        return {}
    chosen = any(row.options.id is not None for row in rows)
    met = executions.enqueue(conn, array(row.full for row in rows), recheck=again or chosen)
    return {m.asked: m.met for m in met}
