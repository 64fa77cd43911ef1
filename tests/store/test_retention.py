"""What happens to history: what has expired is hidden at once, and deleted in batches."""

from __future__ import annotations

from typing import TYPE_CHECKING

from conductor_cli.store import fleet
from tests.support.store import DAY, finished, history, scalar

if TYPE_CHECKING:
    from conductor_cli.database import Connection
    from tests.support.clock import Clock

HOUR = 3600
SEEN = "select count(*) from conductor.executions where id = %s"


def test_the_expired_are_hidden_at_once_and_deleted_by_the_next_prune(
    conn: Connection, clock: Clock
) -> None:
    clock.stop()
    short, long, ever = (finished(conn, keep=keep) for keep in (60, 5 * DAY, None))
    clock.advance(61)
    assert [scalar(conn, SEEN, each) for each in (short, long, ever)] == [0, 1, 1]
    assert history(conn, short) is not None
    assert fleet.prune(conn, 10) == 1
    assert history(conn, short) is None
    clock.advance(400 * DAY)
    assert fleet.prune(conn, 10) == 1
    assert history(conn, long) is None
    assert scalar(conn, SEEN, ever) == 1


def test_a_year_of_any_retentions_keeps_each_until_its_time_and_none_after_it(
    conn: Connection, clock: Clock
) -> None:
    clock.stop()
    retentions = (HOUR, 7 * DAY, 90 * DAY, 400 * DAY, None)
    for _ in range(365):
        for keep in retentions:
            finished(conn, keep=keep)
        clock.advance(DAY)
        while fleet.prune(conn, 2):
            pass
        assert scalar(conn, "select count(*) from conductor.history where expires_at <= %s",
                      clock.now()) == 0  # fmt: skip
    kept = dict(
        conn.execute(
            "select coalesce(extract(epoch from nullif(expires_at, 'infinity') - finished_at), 0)"
            "::int, count(*)::int from conductor.history group by 1"
        ).fetchall()
    )
    # The one that expires at this very moment is gone.
    assert kept == {7 * DAY: 6, 90 * DAY: 89, 400 * DAY: 365, 0: 365}


def test_an_end_makes_no_table_and_waits_for_no_lock_of_retention(
    conn: Connection, other: Connection, clock: Clock
) -> None:
    query = "select count(*) from pg_inherits where inhparent = 'conductor.history'::regclass"
    assert scalar(conn, query) == 0
    for _ in range(3):
        finished(conn, keep=60)
    clock.advance(61)
    other.execute("set lock_timeout to '50ms'")
    with conn.transaction():
        assert fleet.prune(conn, 10) == 3
        made = finished(other, keep=60)
    assert history(conn, made) is not None


def test_a_server_that_was_away_catches_up_in_batches(conn: Connection, clock: Clock) -> None:
    expire = [finished(conn, keep=100 * DAY) for _ in range(5)]
    stay, ever = (finished(conn, keep=keep) for keep in (300 * DAY, None))
    assert fleet.prune(conn, 10) == 0
    clock.advance(200 * DAY)
    assert fleet.prune(conn, 3) == 3
    assert fleet.prune(conn, 3) == 2
    assert fleet.prune(conn, 3) == 0
    assert [history(conn, each) for each in expire] == [None] * 5
    assert None not in [history(conn, each) for each in (stay, ever)]


def test_pruners_at_once_take_others(conn: Connection, other: Connection, clock: Clock) -> None:
    for _ in range(4):
        finished(conn, keep=100 * DAY)
    clock.advance(200 * DAY)
    with conn.transaction():
        assert fleet.prune(conn, 3) == 3
        assert fleet.prune(other, 10) == 1


def test_every_table_has_an_identity_that_publications_of_all_tables_ask_for(
    conn: Connection,
) -> None:
    query = """
        select coalesce(array_agg(c.relname::text), '{}') from pg_class c
        where c.relnamespace = 'conductor'::regnamespace and c.relkind in ('r', 'p')
          and not exists (select from pg_index i where i.indrelid = c.oid and i.indisprimary)
    """
    assert scalar(conn, query) == []
