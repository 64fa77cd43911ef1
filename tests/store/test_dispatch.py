"""Events reach those who wait for them in pieces, and whoever is locked holds up nobody else."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from conductor_cli.store import events

if TYPE_CHECKING:
    from conductor_cli.database import Connection, Database

WAITERS = """
with made as (
    insert into conductor.live (
        id, run_at, created_at, runs, rank, flags, state, queue, task, payload)
    select conductor.uuid7(), null, now(), 1, 0, 2, 'w', 'q', 't', '{}'
    from generate_series(1, %(count)s)
    returning id
)
insert into conductor.ledger (execution_id, name, kind, state, created_at, about, exact, tests)
select id, 'it', 'e', 'p', now(), %(event)s, '{}', '{}' from made
"""


def wait_for(conn: Connection, event: str, count: int) -> None:
    conn.execute(WAITERS, {"event": event, "count": count})


def told(conn: Connection, event: str) -> int:
    (found,) = conn.execute(
        "select count(*) from conductor.ledger where about = %s and state = 'c'", [event]
    ).fetchone() or (0,)
    return int(found)


def left(conn: Connection) -> list[Any]:
    return conn.execute("select name from conductor.events order by seq").fetchall()


def test_many_who_wait_for_one_event_are_told_in_pieces_and_others_meanwhile(
    conn: Connection,
) -> None:
    wait_for(conn, "rates", 1_201)
    wait_for(conn, "other", 1)
    events.emit(conn, "rates", '{"x": 1}')
    events.emit(conn, "other", '{"x": 2}')

    first = events.dispatch(conn, 100)

    assert first > 0
    assert told(conn, "other") == 1
    assert 0 < told(conn, "rates") < 1_201
    assert left(conn) == [("rates",)]
    while events.dispatch(conn, 100):
        pass
    assert told(conn, "rates") == 1_201
    assert left(conn) == []


def test_a_task_is_started_once_by_an_event_that_takes_several_rounds(conn: Connection) -> None:
    wait_for(conn, "rates", 1_201)
    conn.execute(
        "insert into conductor.triggers values ('starts', 'q', 0, 'rates', null, '{}', '{}')"
    )
    events.emit(conn, "rates", "{}")

    while events.dispatch(conn, 100):
        pass

    assert conn.execute("select count(*) from conductor.live where task = 'starts'").fetchone() == (
        1,
    )


def test_events_for_one_who_is_locked_let_all_others_pass(
    conn: Connection, database: Database
) -> None:
    wait_for(conn, "paid", 1)
    for _ in range(150):
        events.emit(conn, "paid", "{}")
    wait_for(conn, "other", 1)
    events.emit(conn, "other", "{}")
    with database.connect("user") as user, user.transaction():
        user.execute(
            "select from conductor.live where id = (select execution_id from conductor.ledger "
            "where about = 'paid') for update"
        )
        for _ in range(4):
            events.dispatch(conn, 100)

        assert told(conn, "other") == 1
        assert told(conn, "paid") == 0
        assert len(left(conn)) == 150
    conn.execute("update conductor.events set retry_at = null")
    while events.dispatch(conn, 100):
        pass
    assert told(conn, "paid") == 1
    assert left(conn) == []


def test_a_thousand_who_are_locked_do_not_fill_the_piece_of_one_who_is_not(
    conn: Connection, database: Database
) -> None:
    wait_for(conn, "paid", 1_000)
    with database.connect("user") as user, user.transaction():
        user.execute("select from conductor.live for update")
        wait_for(conn, "paid", 1)
        events.emit(conn, "paid", "{}")

        events.dispatch(conn, 100)

        assert told(conn, "paid") == 1
