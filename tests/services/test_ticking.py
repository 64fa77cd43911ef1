"""The scheduler by the database's clock: outages, takeovers, edits, jumps, what it cannot read."""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import psycopg
import pytest

from conductor_cli import scheduler
from conductor_cli.models import ScheduleSpec
from conductor_cli.scheduler import JobScheduler
from conductor_cli.store import definitions
from conductor_cli.timing import MAX_MISSED, Schedule

if TYPE_CHECKING:
    from conductor_cli.database import Connection, Database
    from tests.support.clock import Clock

NOON = datetime(2031, 5, 4, 12, tzinfo=UTC)
HOURLY, MINUTELY = "0 * * * *", "* * * * *"


def at(**since_noon: float) -> datetime:
    return NOON + timedelta(**since_noon)


@pytest.fixture
def leader(database: Database) -> JobScheduler:
    """A scheduler whose rounds the test makes itself."""
    return JobScheduler(database, on_death=lambda *_: None)


def rounds(leader: JobScheduler) -> int:
    """Let it look until it finds nothing more; returns how many rounds that took."""
    count = 1
    while leader.tick():
        count += 1
    return count


def save(conn: Connection, expression: str, missed: str = "latest", name: str = "s") -> None:
    """Store one schedule as a server that starts now does."""
    now = datetime.fromtimestamp(definitions.clock(conn), UTC)
    first = Schedule.parse(expression).next_after(now)
    spec = ScheduleSpec(
        task="t", name=name, queue="q", expression=expression, timezone="UTC", missed=missed,
        payload="{}",
    )  # fmt: skip
    definitions.save_schedules(conn, [(spec, first)], ["t"])


def made(conn: Connection) -> list[datetime]:
    """The moments of the ticks that became executions, in order."""
    rows = conn.execute(
        "select (event ->> 'scheduled_for')::timestamptz from conductor.live order by 1"
    )
    return [row[0].astimezone(UTC) for row in rows]


def next_at(conn: Connection) -> datetime:
    row = conn.execute("select next_at from conductor.schedules where name = 's'").fetchone()
    assert row is not None
    return row[0].astimezone(UTC)


# ---------------------------------------------------------------- outages


@pytest.mark.parametrize(
    ("missed", "hours"),
    [("latest", [5]), ("skip", []), ("all", [1, 2, 3, 4, 5])],
)
def test_after_an_outage_the_policy_says_what_is_made_up_for(
    conn: Connection, clock: Clock, leader: JobScheduler, missed: str, hours: list[int]
) -> None:
    clock.stop(NOON)
    save(conn, HOURLY, missed)
    rounds(leader)
    clock.stop(at(hours=5, minutes=10))  # nobody was there
    rounds(leader)
    assert made(conn) == [at(hours=hour) for hour in hours]
    clock.stop(at(hours=6))
    rounds(leader)
    assert made(conn) == [at(hours=hour) for hour in (*hours, 6)]
    assert next_at(conn) == at(hours=7)


def test_what_is_made_up_for_is_bounded(
    conn: Connection, clock: Clock, leader: JobScheduler
) -> None:
    clock.stop(NOON)
    save(conn, MINUTELY, "all")
    clock.stop(at(days=30, seconds=1))
    rounds(leader)
    ticks = made(conn)
    # Those of the last minute are late, not missed.
    assert len(ticks) == MAX_MISSED + 1
    assert ticks[-1] == at(days=30)
    assert ticks[0] == at(days=30) - timedelta(minutes=MAX_MISSED)


@pytest.mark.parametrize("missed", ["latest", "skip", "all"])
def test_a_leader_that_takes_over_amid_catching_up_makes_each_tick_once(
    database: Database, conn: Connection, clock: Clock, leader: JobScheduler, missed: str
) -> None:
    clock.stop(NOON)
    for name in "abc":
        save_one_of_several(conn, name, missed)
    clock.stop(at(hours=3, minutes=10))
    seen = definitions.due_schedules(conn)  # the old leader has looked, and is frozen
    rounds(leader)  # the new one catches up
    after = made(conn)
    for each in seen:  # and the old one goes on with what it saw
        leader._make(conn, each)
    rounds(JobScheduler(database, on_death=lambda *_: None))
    assert made(conn) == after
    assert len(after) == 3 * {"latest": 1, "skip": 0, "all": 3}[missed]


def save_one_of_several(conn: Connection, name: str, missed: str) -> None:
    conn.execute(
        "insert into conductor.schedules (task, name, queue, expression, timezone, missed,"
        " payload, declared, next_at, changed_at)"
        " values ('t', %s, 'q', %s, 'UTC', %s, '{}', true, %s, conductor.now())",
        [name, HOURLY, missed, at(hours=1)],
    )


def test_a_leader_that_dies_amid_catching_up_leaves_a_tick_made_or_not(
    database: Database, conn: Connection, clock: Clock, leader: JobScheduler
) -> None:
    clock.stop(NOON)
    save(conn, HOURLY, "all")
    clock.stop(at(hours=3, minutes=10))
    (seen,) = definitions.due_schedules(conn)
    with database.connect("dying") as dying, dying.transaction(force_rollback=True):
        definitions.tick(
            dying, "t", "s", expected=seen.next_at, ticks=[at(hours=1)], next_at=at(hours=4)
        )
    rounds(leader)
    assert made(conn) == [at(hours=hour) for hour in (1, 2, 3)]


def test_a_schedule_that_is_edited_during_an_outage_ticks_by_its_new_expression_only(
    conn: Connection, clock: Clock, leader: JobScheduler
) -> None:
    clock.stop(NOON)
    save(conn, HOURLY, "all")
    clock.stop(at(hours=2, minutes=10))
    save(conn, "30 * * * *", "all")  # the first server that starts again has other words
    rounds(leader)
    assert made(conn) == []  # nothing of the old is made up for, nothing of the new was missed
    clock.stop(at(hours=3, minutes=31))
    rounds(leader)
    assert made(conn) == [at(hours=2, minutes=30), at(hours=3, minutes=30)]


def test_a_schedule_that_is_edited_while_a_leader_makes_its_tick_is_not_set_back(
    conn: Connection, clock: Clock, leader: JobScheduler
) -> None:
    clock.stop(NOON)
    save(conn, HOURLY)
    clock.stop(at(hours=1, seconds=1))
    (seen,) = definitions.due_schedules(conn)
    save(conn, "30 * * * *")
    leader._make(conn, seen)  # by the expression of before
    assert made(conn) == []
    assert next_at(conn) == at(hours=1, minutes=30)


# ---------------------------------------------------------------- the server's clock jumps


@pytest.mark.parametrize(("missed", "hours"), [("latest", [3]), ("skip", []), ("all", [1, 2, 3])])
def test_a_clock_that_jumps_forward_and_back_neither_doubles_nor_loses_a_tick(
    conn: Connection, clock: Clock, leader: JobScheduler, missed: str, hours: list[int]
) -> None:
    clock.stop(NOON)
    save(conn, HOURLY, missed)
    clock.stop(at(hours=3, minutes=10))  # forward: as after an outage
    rounds(leader)
    clock.stop(at(minutes=10))  # and back: what was made is not made again
    rounds(leader)
    for hour in (1, 2, 3):
        clock.stop(at(hours=hour))
        rounds(leader)
    assert made(conn) == [at(hours=hour) for hour in hours]
    clock.stop(at(hours=4))
    rounds(leader)
    assert made(conn) == [at(hours=hour) for hour in (*hours, 4)]


# ---------------------------------------------------------------- what cannot be read


def add_unreadable(conn: Connection, count: int) -> None:
    conn.execute(
        "insert into conductor.schedules (task, name, queue, expression, timezone, missed,"
        " payload, declared, next_at, changed_at)"
        " select 'newer', 'n' || n, 'q', 'every full moon', 'UTC', 'latest', '{}', true,"
        " conductor.now() - interval '1 hour', conductor.now() from generate_series(1, %s) n",
        [count],
    )


def test_schedules_that_this_version_cannot_read_stand_in_nobodys_way(
    conn: Connection, clock: Clock, leader: JobScheduler, heard: Any
) -> None:
    clock.stop(NOON)
    save(conn, HOURLY)
    add_unreadable(conn, 250)
    clock.stop(at(hours=1))
    rounds(leader)
    assert made(conn) == [at(hours=1)]
    assert heard.count("schedule.refused") == 250
    clock.stop(at(hours=2))
    rounds(leader)
    assert made(conn) == [at(hours=1), at(hours=2)]
    assert heard.count("schedule.refused") == 250


def test_a_schedule_that_cannot_be_read_is_told_of_once_an_hour_and_when_it_changes(
    conn: Connection, clock: Clock, leader: JobScheduler, heard: Any, monkeypatch: Any
) -> None:
    now = 5000.0
    monkeypatch.setattr(scheduler, "time", SimpleNamespace(monotonic=lambda: now))
    clock.stop(NOON)
    add_unreadable(conn, 1)
    told = []
    for moment in (5000.0, 5001.0, 8599.0, 8601.0, 8602.0):
        now = moment
        leader.tick()
        told.append(heard.count("schedule.refused"))
    assert told == [1, 1, 1, 2, 2]
    clock.advance(1)
    conn.execute("update conductor.schedules set expression = '?', changed_at = conductor.now()")
    leader.tick()
    assert heard.count("schedule.refused") == 3
    clock.advance(1)
    conn.execute(
        "update conductor.schedules set expression = '0 * * * *', changed_at = conductor.now()"
    )
    rounds(leader)
    assert heard.count("schedule.refused") == 3
    assert len(made(conn)) == 1


# ---------------------------------------------------------------- one that cannot tick


def passes(monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
    """Let the scheduler's own clock be so much later."""
    later = time.monotonic() + seconds
    monkeypatch.setattr(scheduler, "time", SimpleNamespace(monotonic=lambda: later))


def test_a_locked_schedule_stops_no_other_and_its_tick_is_made_late_exactly_once(
    database: Database,
    conn: Connection,
    clock: Clock,
    leader: JobScheduler,
    heard: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock.stop(NOON)
    for name in ("a", "b", "c"):
        save_one_of_several(conn, name, "latest")
    clock.stop(at(hours=1))
    with database.connect("somebody") as somebody, somebody.transaction(force_rollback=True):
        somebody.execute("update conductor.schedules set payload = '1' where name = 'a'")
        began = time.monotonic()
        rounds(leader)
        assert time.monotonic() - began < 2
        assert made(conn) == [at(hours=1)] * 2
        assert heard.count("schedule.hindered") == 1
        assert leader.pause <= scheduler.HINDERED_FOR
        clock.stop(at(hours=1, seconds=20))
        passes(monkeypatch, 5)
        rounds(leader)
        assert heard.count("schedule.hindered") == 1
        assert made(conn) == [at(hours=1)] * 2
    passes(monkeypatch, 10)
    rounds(leader)
    assert made(conn) == [at(hours=1)] * 3
    clock.stop(at(hours=2))
    rounds(leader)
    assert made(conn) == [at(hours=1)] * 3 + [at(hours=2)] * 3


def test_a_hundred_locked_schedules_stop_no_other(
    database: Database, conn: Connection, clock: Clock, leader: JobScheduler
) -> None:
    clock.stop(NOON)
    for n in range(120):
        save_one_of_several(conn, f"n{n:03}", "latest")
    clock.stop(at(hours=1))
    with database.connect("somebody") as somebody, somebody.transaction(force_rollback=True):
        somebody.execute("select from conductor.schedules where name < 'n110' for update")
        rounds(leader)
        assert made(conn) == [at(hours=1)] * 10


def test_a_schedule_that_cannot_tick_stops_no_other(
    conn: Connection,
    clock: Clock,
    leader: JobScheduler,
    heard: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock.stop(NOON)
    for name in ("a", "b", "c"):
        save_one_of_several(conn, name, "latest")
    conn.execute("""
        create function public.refuse() returns trigger language plpgsql as $$
        begin
            if new.event ->> 'name' = 'a' then raise exception 'not this one'; end if;
            return new;
        end $$""")
    conn.execute("""
        create trigger refuse before insert on conductor.live
        for each row execute function public.refuse()""")
    clock.stop(at(hours=1))
    rounds(leader)
    assert made(conn) == [at(hours=1)] * 2
    assert heard.count("schedule.hindered") == 1
    conn.execute("drop trigger refuse on conductor.live")
    passes(monkeypatch, scheduler.HINDERED_MOST)
    rounds(leader)
    assert made(conn) == [at(hours=1)] * 3


def test_schedules_that_have_not_changed_are_registered_while_somebody_has_locked_them(
    database: Database, conn: Connection, clock: Clock
) -> None:
    clock.stop(NOON)
    save(conn, HOURLY)
    with database.connect("somebody") as somebody, somebody.transaction(force_rollback=True):
        somebody.execute("select from conductor.schedules for update")
        conn.execute("set lock_timeout = '100ms'")
        save(conn, HOURLY)
        with pytest.raises(psycopg.errors.LockNotAvailable):
            save(conn, MINUTELY)
