"""Moments that Python does not have: refused on the way in, harmless where they stand."""

from __future__ import annotations

from datetime import datetime

import msgspec
import psycopg
import pytest

from conductor_cli.database import Connection, Statement
from conductor_cli.store import claims
from tests.support.store import add, claim, claim_one, end, exchange


class Pair(msgspec.Struct, frozen=True):
    n: int
    at: datetime


NO_MOMENTS = ["-infinity", "infinity", "0044-03-15 BC", "10000-01-01"]


@pytest.mark.parametrize("run_at", NO_MOMENTS)
@pytest.mark.parametrize(
    "way",
    [
        "select conductor.invoke('t', '{}', 'q', run_at => %s)",
        "select conductor.enqueue(json_build_array(json_build_object("
        "'id', gen_random_uuid(), 'task', 't', 'queue', 'q', 'run_at', %s::text)))",
    ],
    ids=["invoke", "enqueue"],
)
def test_sql_refuses_a_moment_that_no_client_can_read(
    conn: Connection, way: str, run_at: str
) -> None:
    with pytest.raises(psycopg.errors.DatetimeFieldOverflow) as caught:
        conn.execute(way.encode(), [run_at])
    assert "is not between the years 1 and 9999" in str(caught.value)
    assert "Leave run_at out" in (caught.value.diag.message_hint or "")
    assert claim(conn) == []


@pytest.mark.parametrize("delay", ["NaN", "Infinity", "-Infinity", "1e300"])
def test_sql_refuses_a_delay_that_has_no_end(conn: Connection, delay: str) -> None:
    with pytest.raises(psycopg.errors.NumericValueOutOfRange, match="is more than a century"):
        add(conn, delay=delay)


@pytest.mark.parametrize("next_at", NO_MOMENTS)
def test_a_schedule_cannot_have_a_next_tick_that_no_client_can_read(
    conn: Connection, next_at: str
) -> None:
    with pytest.raises(psycopg.errors.CheckViolation, match="next_at_is_readable"):
        conn.execute(
            "insert into conductor.schedules (task, name, queue, expression, timezone, missed,"
            " payload, next_at, changed_at)"
            " values ('t', 'n', 'q', '@daily', 'UTC', 'latest', '{}', %s, now())",
            [next_at],
        )


@pytest.mark.parametrize("run_at", NO_MOMENTS)
@pytest.mark.parametrize("with_an_end", [False, True])
def test_a_claim_tells_the_row_it_cannot_read_and_brings_its_neighbours(
    conn: Connection, run_at: str, with_an_end: bool
) -> None:
    held = [claim_one(conn) for _ in range(with_an_end) if add(conn)]
    first, bad, last = add(conn), add(conn), add(conn)
    conn.execute("update conductor.live set run_at = %s where id = %s", [run_at, bad])
    done = exchange(conn, [end(each) for each in held])
    assert {each.id for each in done.claimed} == {first, last}
    (spoilt,) = done.spoilt
    assert (spoilt.claimed.id, spoilt.claimed.task) == (bad, "t")
    assert "its run_at: timestamp too" in str(spoilt.error)
    assert list(done.missing) == []


@pytest.mark.parametrize("run_at", NO_MOMENTS)
def test_what_became_of_a_batch_is_told_where_no_claimed_row_can_be_read(
    conn: Connection, run_at: str
) -> None:
    add(conn)
    held = claim_one(conn)
    lost = msgspec.structs.replace(held, token=held.token + 1)
    conn.execute("update conductor.live set run_at = %s where id = %s", [run_at, add(conn)])
    done = exchange(conn, [end(lost)])
    assert (list(done.claimed), len(done.spoilt), list(done.missing)) == ([], 1, [held.id])


@pytest.mark.parametrize("run_at", ["infinity", "290000-01-01"])
def test_a_row_that_is_never_due_stops_no_look_for_those_that_are(
    conn: Connection, run_at: str
) -> None:
    never, due = add(conn, delay=60), add(conn, delay=60)
    conn.execute("update conductor.live set run_at = %s where id = %s", [run_at, never])
    found = claims.promote(conn, "q", 10)
    assert found.promoted == 0
    assert found.next_in == pytest.approx(60, abs=5)
    conn.execute("update conductor.live set run_at = now() where id = %s", [due])
    assert claims.promote(conn, "q", 10) == claims.Promoted(1, None, None)
    assert claim_one(conn).id == due


HALF_READABLE: Statement[Pair] = Statement(
    row=Pair,
    sql="""
    select n, case when n = 2 then '-infinity' else '2026-01-01' end::timestamptz as at
    from generate_series(1, 3) n
    """,
)


@pytest.mark.parametrize("own", [True, False], ids=["own session", "behind a pooler"])
def test_rows_are_read_one_by_one_when_one_cannot_be(
    conn: Connection, database_url: str, own: bool
) -> None:
    with psycopg.connect(database_url) as foreign:
        rows, spoilt = HALF_READABLE.each(conn if own else foreign)
        assert [row.n for row in rows] == [1, 3]
        ((number, unreadable),) = spoilt
        assert (number, unreadable.column) == (2, "at")
        assert (
            len(HALF_READABLE.each(conn if own else foreign)[0]) == 2
        )  # the connection goes on working
