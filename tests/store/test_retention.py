"""What happens to history: partitions made ahead and dropped, the rest deleted in batches."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import psycopg
import pytest

from conductor_cli.store import fleet
from tests.support.store import DAY, DONE, finished, history, scalar

if TYPE_CHECKING:
    from conductor_cli.database import Connection
    from tests.support.clock import Clock


def _partitions(conn: Connection) -> list[str]:
    rows = conn.execute(
        "select relname from pg_inherits join pg_class c on c.oid = inhrelid "
        "where inhparent = 'conductor.history'::regclass order by 1"
    )
    return [name for (name,) in rows]


def _days(first: datetime, count: int) -> list[str]:
    return [f"history_{first + timedelta(n):%Y%m%d}" for n in range(count)]


def test_there_is_a_partition_for_each_of_the_next_weeks(conn: Connection, clock: Clock) -> None:
    today = clock.now()
    expected = [*_days(today - timedelta(1), 37), "history_forever", "history_other"]
    assert _partitions(conn) == expected
    assert fleet.rotate(conn) == 0


def test_a_day_later_one_is_made_and_one_dropped(conn: Connection, clock: Clock) -> None:
    fleet.rotate(conn)
    before = _partitions(conn)
    clock.advance(DAY)
    assert fleet.rotate(conn) == 2
    assert _partitions(conn) == sorted({*before[1:], *_days(clock.now() + timedelta(35), 1)})


def test_days_are_those_of_utc(conn: Connection, clock: Clock) -> None:
    clock.set(datetime(2040, 1, 1, 23, 59, 30, tzinfo=UTC))
    conn.execute("set timezone to 'Asia/Tokyo'")
    fleet.rotate(conn)
    assert _partitions(conn)[0] == "history_20391231"
    made = finished(conn, keep=60)
    assert history(conn, made).partition == "conductor.history_20400102"


def test_the_expired_are_hidden_at_once_and_dropped_a_day_later(
    conn: Connection, clock: Clock
) -> None:
    clock.set(datetime(2040, 1, 1, 12, tzinfo=UTC))
    fleet.rotate(conn)
    short, long, ever = (finished(conn, keep=keep) for keep in (60, 5 * DAY, None))
    query = "select count(*) from conductor.executions where id = %s"
    clock.advance(61)
    assert [scalar(conn, query, each) for each in (short, long, ever)] == [0, 1, 1]
    fleet.rotate(conn)
    assert history(conn, short) is not None
    clock.advance(2 * DAY)
    fleet.rotate(conn)
    assert history(conn, short) is None
    assert history(conn, long).partition == "conductor.history_20400106"
    clock.advance(400 * DAY)
    fleet.rotate(conn)
    assert history(conn, long) is None
    assert history(conn, ever).partition == "conductor.history_forever"
    assert scalar(conn, query, ever) == 1


def test_a_server_that_was_away_catches_up(conn: Connection, clock: Clock) -> None:
    clock.advance(1000 * DAY)
    made = finished(conn, keep=DAY)
    assert history(conn, made).partition == "conductor.history_other"
    fleet.rotate(conn)
    assert _partitions(conn)[0] == _days(clock.now() - timedelta(1), 1)[0]
    assert history(conn, made).partition == "conductor.history_other"
    assert history(conn, finished(conn, keep=2 * DAY)).partition.startswith("conductor.history_2")


def test_a_clock_that_is_set_back_finds_its_day(conn: Connection, clock: Clock) -> None:
    clock.advance(5 * DAY)
    fleet.rotate(conn)
    clock.advance(-DAY)
    made = finished(conn, keep=3600)
    assert history(conn, made).partition.startswith("conductor.history_2")
    assert fleet.rotate(conn) <= 1


def test_the_expired_outside_the_daily_partitions_are_deleted_in_batches(
    conn: Connection, clock: Clock
) -> None:
    expire = [finished(conn, keep=100 * DAY) for _ in range(5)]
    stay, daily, ever = (finished(conn, keep=keep) for keep in (300 * DAY, DAY, None))
    assert fleet.prune(conn, 10) == 0
    clock.advance(200 * DAY)
    assert fleet.prune(conn, 3) == 3
    assert fleet.prune(conn, 3) == 2
    assert fleet.prune(conn, 3) == 0
    assert [history(conn, each) for each in expire] == [None] * 5
    assert None not in [history(conn, each) for each in (stay, daily, ever)]


def test_pruners_at_once_take_others(conn: Connection, other: Connection, clock: Clock) -> None:
    for _ in range(4):
        finished(conn, keep=100 * DAY)
    clock.advance(200 * DAY)
    with conn.transaction():
        assert fleet.prune(conn, 3) == 3
        assert fleet.prune(other, 10) == 1


def test_rotation_gives_up_soon_when_history_is_in_use(
    conn: Connection, other: Connection, clock: Clock
) -> None:
    clock.advance(2 * DAY)
    before = _partitions(conn)
    conn.execute("set lock_timeout to 0")
    conn.execute("set statement_timeout to '3s'")
    with other.transaction():
        finished(other)
        with pytest.raises(psycopg.errors.LockNotAvailable):
            fleet.rotate(conn)
    assert _partitions(conn) == before
    assert fleet.rotate(conn) == 4
    assert scalar(conn, "show lock_timeout") == "0"


def test_what_ends_while_partitions_change_is_kept(
    conn: Connection, other: Connection, clock: Clock
) -> None:
    made = finished(other, DONE, keep=40 * DAY)
    clock.advance(DAY * 6)
    fleet.rotate(conn)
    assert history(conn, made).partition == "conductor.history_other"
    assert history(conn, finished(other, keep=35 * DAY)).partition.startswith("conductor.history_2")
