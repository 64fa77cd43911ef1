"""The fleet: heartbeats, leadership, rescue, schedules."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any
from uuid import UUID, uuid4

import pytest

from conductor_cli.models import ScheduleSpec, TaskSpec
from conductor_cli.store import definitions, executions, fleet
from conductor_cli.store.definitions import Registered
from conductor_cli.store.fleet import Rescued
from tests.support.sessions import Ears, at_once, background, wait_until_blocked
from tests.support.store import (
    add,
    add_many,
    beat,
    claim,
    claim_one,
    end,
    finish,
    history,
    join,
    live,
    one,
    register,
    running,
    scalar,
    state,
)

if TYPE_CHECKING:
    from conductor_cli.database import Connection, Database
    from tests.support.clock import Clock

MOMENT = datetime(2031, 5, 4, 12, tzinfo=UTC)


def after(seconds: float) -> datetime:
    return MOMENT + timedelta(seconds=seconds)


# ── Tasks ───────────────────────────────────────────────────────────────────────────────────


def test_a_registered_task_is_found_in_its_own_queue(conn: Connection) -> None:
    register(conn, "t", "elsewhere", home=False, priority=1)
    assert definitions.find_task(conn, "t") == Registered("t", "elsewhere", 1, invocable=True)
    register(conn, "t", "home", priority=2)
    register(conn, "a")
    assert definitions.find_task(conn, "t") == Registered("t", "home", 2, invocable=True)
    assert definitions.find_task(conn, "unknown") is None
    assert definitions.task_names(conn) == ["a", "t"]


def test_registering_again_changes_the_options(conn: Connection, clock: Clock) -> None:
    clock.stop(MOMENT)
    register(conn, max_crashes=1, retain_failed=5, options={"a": 1})
    register(conn, max_crashes=2, retain_failed=None, options={"b": [2]}, priority=-4)
    row = one(conn, "select * from conductor.tasks")
    assert (row.max_crashes, row.retain_failed, row.options) == (2, None, {"b": [2]})
    assert (row.priority, row.registered_at) == (-4, MOMENT)


def test_a_task_that_moved_is_at_home_in_its_new_queue_only(conn: Connection) -> None:
    register(conn, "t", "old")
    register(conn, "other", "old")
    register(conn, "t", "new")
    rows = conn.execute("select queue, name from conductor.tasks where home order by 1, 2")
    assert rows.fetchall() == [("new", "t"), ("old", "other")]


def test_servers_that_register_at_once_do_not_deadlock(database: Database) -> None:
    tasks = [
        TaskSpec(queue, f"t{i}", queue == "q", 0, 3, 3, None, None, {})
        for i in range(50) for queue in ("q", "p")
    ]  # fmt: skip
    orders = [tasks, tasks[::-1], tasks[50:] + tasks[:50], tasks]
    at_once(database, *[lambda c, o=o: definitions.register_tasks(c, o) for o in orders])


# ── Heartbeats ──────────────────────────────────────────────────────────────────────────────


def test_a_beat_tells_when_the_next_server_would_expire(conn: Connection, clock: Clock) -> None:
    clock.stop(MOMENT)
    mine = join(conn)
    assert beat(conn, mine).look_in is None
    join(conn, timeout=20)
    clock.advance(1)
    join(conn, timeout=15)
    clock.advance(4)
    pulse = beat(conn, mine)
    assert (pulse.known, pulse.term, pulse.cancelled) == (True, None, [])
    assert pulse.look_in == pytest.approx(11)
    clock.advance(30)
    assert beat(conn, mine).look_in == pytest.approx(-19)


def test_a_beat_keeps_a_server_alive_and_tells_that_it_stops(
    conn: Connection, clock: Clock
) -> None:
    clock.stop(MOMENT)
    mine = join(conn)
    clock.advance(10)
    beat(conn, mine, stopping=True)
    row = one(conn, "select * from conductor.orchestrators")
    assert (row.beat_at, row.started_at, row.stopping) == (after(10), MOMENT, True)
    assert (row.version, row.hostname, row.pid, row.queues) == ("1", "h", 1, ["q"])


def test_a_beat_tells_how_many_share_a_queue(conn: Connection) -> None:
    def joined(*queues: str) -> UUID:
        id = uuid4()
        fleet.join(conn, id, timeout=15, version="1", hostname="h", pid=1, queues=queues)
        return id

    mine = joined("q", "p")
    assert beat(conn, mine).servers == 1
    joined("elsewhere")
    joined("p")
    third = joined("r", "q")
    assert beat(conn, mine).servers == 3
    beat(conn, third, stopping=True)
    assert beat(conn, mine).servers == 2
    assert beat(conn, uuid4()).servers == 0


def test_a_beat_tells_the_machines_time(conn: Connection, clock: Clock) -> None:
    clock.stop(MOMENT)
    told = beat(conn, join(conn)).clock
    assert abs(told - datetime.now(UTC).timestamp()) < 60
    assert definitions.clock(conn) == MOMENT.timestamp()


def test_a_beat_is_heard_by_the_servers_own_listener(conn: Connection, database: Database) -> None:
    mine = join(conn)
    with database.connect("listener") as listener:
        told = Ears(listener, f"conductor_{mine.hex}")
        beat(conn, mine)
        beat(conn, uuid4())
        assert told.heard() == [(f"conductor_{mine.hex}", "ping")]


def test_a_beat_tells_what_is_to_be_cancelled(conn: Connection) -> None:
    mine = join(conn)
    asked, theirs = running(conn, mine), running(conn, join(conn))
    running(conn, mine)
    for each in (asked, theirs):
        executions.cancel(conn, each.id, None)
    assert beat(conn, mine).cancelled == [asked.id]
    finish(conn, end(asked))
    assert beat(conn, mine).cancelled == []


def test_a_server_that_was_declared_dead_learns_it_and_joins_again(
    conn: Connection, clock: Clock
) -> None:
    mine = join(conn)
    clock.advance(15)
    fleet.rescue(conn)
    assert not beat(conn, mine).known
    join(conn, mine)
    assert beat(conn, mine).known
    assert fleet.rescue(conn) == []


def test_joining_twice_is_joining_once(conn: Connection, clock: Clock) -> None:
    clock.stop(MOMENT)
    mine = join(conn)
    clock.advance(5)
    join(conn, mine)
    row = one(conn, "select * from conductor.orchestrators")
    assert (row.started_at, row.beat_at) == (MOMENT, after(5))


def test_a_server_that_left_is_gone(conn: Connection) -> None:
    mine, theirs = join(conn), join(conn)
    fleet.leave(conn, mine)
    fleet.leave(conn, mine)
    assert not beat(conn, mine).known
    assert beat(conn, theirs).known


# ── Leadership ──────────────────────────────────────────────────────────────────────────────


def test_the_first_candidate_leads(conn: Connection) -> None:
    first, second = join(conn), join(conn)
    assert beat(conn, first).term is None
    assert beat(conn, first, stands=True).term == 1
    pulse = beat(conn, second, stands=True)
    assert pulse.term is None
    assert beat(conn, first, stands=True, term=1).term == 1


def test_a_candidate_looks_again_when_the_lease_would_expire(
    conn: Connection, clock: Clock
) -> None:
    clock.stop(MOMENT)
    first, second = join(conn, timeout=100), join(conn, timeout=100)
    beat(conn, first, stands=True)
    clock.advance(5)
    assert beat(conn, second, stands=True, lease=12).look_in == pytest.approx(7)
    assert beat(conn, second, stands=False, lease=12).look_in == pytest.approx(95)
    assert beat(conn, first, stands=True, term=1, lease=12).look_in == pytest.approx(100)


def test_a_lease_expires_by_the_databases_clock(conn: Connection, clock: Clock) -> None:
    clock.stop(MOMENT)
    first, second = join(conn), join(conn)
    beat(conn, first, stands=True)
    clock.advance(14.9)
    assert beat(conn, second, stands=True).term is None
    clock.advance(0.1)
    assert beat(conn, second, stands=True).term == 2
    assert beat(conn, first, stands=True, term=1).term is None
    assert beat(conn, second, stands=True, term=2).term == 2


def test_a_renewal_extends_the_lease(conn: Connection, clock: Clock) -> None:
    first, second = join(conn), join(conn)
    beat(conn, first, stands=True)
    for _ in range(3):
        clock.advance(10)
        assert beat(conn, first, stands=True, term=1).term == 1
        assert beat(conn, second, stands=True).term is None


def test_a_renewal_names_the_exact_term(conn: Connection, clock: Clock) -> None:
    mine = join(conn)
    beat(conn, mine, stands=True)
    clock.advance(20)
    assert beat(conn, mine, stands=True).term == 2
    assert beat(conn, mine, stands=True, term=1).term is None
    assert beat(conn, uuid4(), stands=True, term=2).term is None
    assert beat(conn, mine, stands=True, term=2).term == 2


def test_only_a_server_of_the_fleet_is_elected(conn: Connection) -> None:
    pulse = beat(conn, uuid4(), stands=True)
    assert (pulse.known, pulse.term) == (False, None)


@pytest.mark.parametrize("expired", [False, True])
def test_of_candidates_at_once_one_leads(
    database: Database, conn: Connection, clock: Clock, expired: bool
) -> None:
    if expired:
        beat(conn, join(conn, timeout=1000), stands=True)
        clock.advance(60)
    servers = [join(conn) for _ in range(6)]
    pulses = at_once(database, *[lambda c, s=s: beat(c, s, stands=True) for s in servers])
    assert [p.term for p in pulses if p.term is not None] == [2 if expired else 1]


@pytest.mark.parametrize("expired", [False, True])
def test_a_candidate_that_waited_for_another_sees_a_fresh_lease(
    conn: Connection, other: Connection, database: Database, clock: Clock, expired: bool
) -> None:
    first, second = join(conn), join(conn)
    if expired:
        beat(conn, join(conn), stands=True)
        clock.advance(60)
    with background() as start, database.connect("watch") as watcher:
        with conn.transaction():
            assert beat(conn, first, stands=True).term is not None
            call = start(beat, other, second, stands=True)
            wait_until_blocked(watcher, other)
        assert call.result(10).term is None


def test_a_resignation_frees_the_lease_and_tells_the_others(conn: Connection, ears: Ears) -> None:
    first, second = join(conn), join(conn)
    beat(conn, first, stands=True)
    assert fleet.resign(conn, first, 1)
    assert ears.payloads() == ["leaderless"]
    assert beat(conn, first, stands=True, term=1).term is None
    assert beat(conn, second, stands=True).term == 2


def test_a_late_resignation_ends_nobody_elses_term(
    conn: Connection, clock: Clock, ears: Ears
) -> None:
    first, second = join(conn), join(conn)
    beat(conn, first, stands=True)
    clock.advance(20)
    beat(conn, second, stands=True)
    assert not fleet.resign(conn, first, 1)
    assert not fleet.resign(conn, first, 2)
    assert not fleet.resign(conn, second, 1)
    assert ears.payloads() == []
    assert beat(conn, second, stands=True, term=2).term == 2


# ── Rescue ──────────────────────────────────────────────────────────────────────────────────


def test_what_a_dead_server_ran_is_given_back(conn: Connection, clock: Clock, ears: Ears) -> None:
    began = clock.stop(MOMENT)
    dead, alive = join(conn), join(conn, timeout=100)
    lost = running(conn, dead, rank=-3, payload=[1])
    kept = running(conn, alive)
    clock.advance(14.9)
    assert fleet.rescue(conn) == []
    clock.advance(0.1)
    ears.heard()
    assert fleet.rescue(conn) == [Rescued("q", returned=1, crashed=0, owners=1)]
    row = live(conn, lost.id)
    assert (row.state, row.owner, row.runs, row.failures, row.crashes) == ("r", None, 1, 0, 1)
    assert (row.run_at, row.created_at, row.payload) == (after(15), began, [1])
    assert live(conn, kept.id).state == "x"
    assert ears.payloads() == ["ready:-3:q"]
    assert scalar(conn, "select id from conductor.orchestrators") == alive
    assert fleet.rescue(conn) == []
    assert claim_one(conn).crashes == 1


def test_a_rescue_tells_each_queue(conn: Connection, clock: Clock, ears: Ears) -> None:
    dead, another = join(conn), join(conn)
    add_many(conn, 3)
    add_many(conn, 2, queue="p", rank=5)
    claim(conn, dead, limit=2)
    claim(conn, another)
    claim(conn, another, queue="p")
    clock.advance(60)
    ears.heard()
    rescued = sorted(fleet.rescue(conn), key=lambda r: r.queue)
    assert rescued == [Rescued("p", 2, 0, 2), Rescued("q", 3, 0, 2)]
    assert ears.payloads() == ["ready:0:q", "ready:5:p"]


def test_only_what_runs_is_rescued(conn: Connection, clock: Clock) -> None:
    dead = join(conn)
    ended, given, pending = running(conn, dead), running(conn, dead), add(conn, delay=999)
    finish(conn, end(ended))
    conn.execute("update conductor.live set state = 's', run_at = now() where id = %s", [given.id])
    clock.advance(60)
    assert fleet.rescue(conn) == []
    assert live(conn, given.id).crashes == live(conn, pending).crashes == 0
    assert scalar(conn, "select count(*) from conductor.orchestrators") == 0


def test_orphans_of_a_server_that_is_not_in_the_fleet_are_rescued(conn: Connection) -> None:
    alive = join(conn)
    orphan, kept = running(conn, uuid4()), running(conn, alive)
    assert fleet.rescue(conn) == [Rescued("q", 1, 0, 0)]
    assert [live(conn, c.id).state for c in (orphan, kept)] == ["r", "x"]


@pytest.mark.parametrize(("limit", "crashes"), [(None, 4), (3, 4), (0, 1), (1, 2)])
def test_what_crashes_too_often_fails(
    conn: Connection, clock: Clock, limit: int | None, crashes: int
) -> None:
    if limit is not None:
        register(conn, max_crashes=limit)
    made = add(conn)
    for crash in range(1, crashes + 1):
        dead = join(conn)
        assert claim_one(conn, dead).crashes == crash - 1
        clock.advance(60)
        last = crash == crashes
        assert fleet.rescue(conn) == [Rescued("q", int(not last), int(last), 1)]
    row = history(conn, made)
    assert (row.state, row.runs, row.failures, row.crashes) == ("f", crashes, 0, crashes)
    assert (row.error["type"], row.error["traceback"], row.result) == ("Crashed", None, None)
    assert "max_crashes" in row.error["message"]
    assert row.kept == (30 * 86400 if limit is None else 86400)


def test_a_crash_of_one_that_is_to_be_cancelled_ends_it(conn: Connection, clock: Clock) -> None:
    dead = join(conn)
    asked = running(conn, dead)
    executions.cancel(conn, asked.id, "why")
    clock.advance(60)
    assert fleet.rescue(conn) == [Rescued("q", 0, 0, 1)]
    row = history(conn, asked.id)
    assert (row.state, row.error["message"]) == ("k", "why")


def test_a_cancel_asked_counts_for_more_than_too_many_crashes(
    conn: Connection, clock: Clock
) -> None:
    register(conn, max_crashes=0)
    asked = running(conn, join(conn))
    executions.cancel(conn, asked.id, "why")
    clock.advance(60)
    (rescued,) = fleet.rescue(conn)
    assert (rescued.returned, rescued.crashed) == (0, 0)
    assert state(conn, asked.id) == "cancelled"


def test_of_one_that_has_fallen_everything_is_given_back_without_waiting_for_its_silence(
    conn: Connection, ears: Ears
) -> None:
    fallen, alive = join(conn), join(conn)
    lost, kept, orphan = running(conn, fallen), running(conn, alive), running(conn, uuid4())
    ears.heard()
    assert fleet.rescue(conn, fallen=fallen) == [Rescued("q", returned=1, crashed=0, owners=1)]
    row = live(conn, lost.id)
    assert (row.state, row.owner, row.token, row.crashes, row.failures) == ("r", None, None, 1, 0)
    assert [live(conn, c.id).state for c in (kept, orphan)] == ["x", "x"]
    assert ears.payloads() == ["ready:0:q"]
    assert scalar(conn, "select id from conductor.orchestrators") == alive
    assert fleet.rescue(conn, fallen=fallen) == []


def test_what_the_last_claim_of_one_that_has_fallen_took_is_given_back_too(
    conn: Connection,
) -> None:
    fallen = join(conn)
    assert fleet.rescue(conn, fallen=fallen) == []
    late = running(conn, fallen)
    assert fleet.rescue(conn, fallen=fallen) == [Rescued("q", 1, 0, 0)]
    assert state(conn, late.id) == "pending"


def test_a_crash_of_one_that_has_fallen_counts_as_any(conn: Connection) -> None:
    register(conn, max_crashes=0)
    fallen = join(conn)
    lost = running(conn, fallen)
    assert fleet.rescue(conn, fallen=fallen) == [Rescued("q", 0, 1, 1)]
    assert history(conn, lost.id).error["type"] == "Crashed"


def test_the_term_of_one_that_has_fallen_ends_and_nobody_elses(
    conn: Connection, ears: Ears
) -> None:
    leader, other = join(conn), join(conn)
    assert beat(conn, leader, stands=True).term == 1
    ears.heard()
    fleet.rescue(conn, fallen=other)
    assert beat(conn, leader, stands=True, term=1).term == 1
    fleet.rescue(conn, fallen=leader)
    assert ears.payloads() == ["leaderless"]
    successor = join(conn)
    assert beat(conn, successor, stands=True).term == 2


def test_a_rescue_by_silence_leaves_the_lease_alone(conn: Connection, clock: Clock) -> None:
    leader = join(conn)
    beat(conn, leader, stands=True)
    clock.advance(60)
    fleet.rescue(conn)
    assert scalar(conn, "select leader from conductor.leadership") == leader


def test_rescuers_at_once_give_back_once(
    database: Database, conn: Connection, clock: Clock
) -> None:
    add_many(conn, 100)
    for _ in range(4):
        claim(conn, join(conn), limit=25)
    clock.advance(60)
    rescued = at_once(database, *[fleet.rescue] * 6)
    assert sum(r.returned for each in rescued for r in each) == 100
    query = "select array_agg(distinct crashes), count(*) from conductor.live where state = 'r'"
    assert conn.execute(query).fetchone() == ([1], 100)


def test_a_server_that_beats_just_now_is_spared(
    conn: Connection, other: Connection, clock: Clock
) -> None:
    late = join(conn)
    claimed = running(conn, late)
    clock.advance(60)
    with other.transaction():
        assert beat(other, late).known
        assert fleet.rescue(conn) == []
    assert fleet.rescue(conn) == []
    assert live(conn, claimed.id).state == "x"


def test_a_row_that_is_being_ended_does_not_hold_up_a_rescue(
    conn: Connection, other: Connection, clock: Clock
) -> None:
    dead = join(conn)
    ending, lost = running(conn, dead), running(conn, dead)
    clock.advance(60)
    with other.transaction():
        finish(other, end(ending))
        assert fleet.rescue(conn) == [Rescued("q", 1, 0, 1)]
    assert (state(conn, ending.id), state(conn, lost.id)) == ("completed", "pending")


def test_a_row_that_a_rescue_passed_over_is_rescued_by_the_next(
    conn: Connection, other: Connection, clock: Clock
) -> None:
    lost = running(conn, join(conn))
    clock.advance(60)
    with other.transaction(force_rollback=True):
        finish(other, end(lost))
        assert fleet.rescue(conn) == []
    assert fleet.rescue(conn) == [Rescued("q", 1, 0, 0)]


def test_nobody_is_dead_before_postgres_has_run_for_a_while(conn: Connection, clock: Clock) -> None:
    """After an outage everyone has been silent; nobody could have beaten."""
    server = join(conn)
    started = scalar(conn, "select pg_postmaster_start_time()")
    conn.execute("update conductor.orchestrators set beat_at = %s", [started - timedelta(1)])
    claimed = running(conn, server)
    clock.stop(started + timedelta(seconds=14))
    assert fleet.rescue(conn) == []
    clock.advance(2)
    assert [r.returned for r in fleet.rescue(conn)] == [1]
    assert state(conn, claimed.id) == "pending"


# ── Schedules ───────────────────────────────────────────────────────────────────────────────


def schedule(name: str = "daily", task: str = "t", **more: Any) -> ScheduleSpec:
    given: dict[str, Any] = {
        "queue": "q", "expression": "0 0 * * *", "timezone": "UTC", "missed": "latest",
        "payload": '{"a": 1}', **more,
    }  # fmt: skip
    return ScheduleSpec(task=task, name=name, **given)


def save(conn: Connection, *given: ScheduleSpec, at: float = 60, tasks: str = "t") -> int:
    return definitions.save_schedules(conn, [(s, after(at)) for s in given], list(tasks))


def stored(conn: Connection, name: str = "daily") -> Any:
    return one(conn, "select * from conductor.schedules where name = %s", name)


def tick(
    conn: Connection, expected: float = 60, next_at: float | None = 120,
    ticks: tuple[float, ...] = (60,), name: str = "daily",
) -> list[UUID] | None:  # fmt: skip
    return definitions.tick(
        conn, "t", name, expected=after(expected), ticks=[after(each) for each in ticks],
        next_at=None if next_at is None else after(next_at),
    )  # fmt: skip


def test_an_unchanged_schedule_keeps_its_next_tick(conn: Connection, ears: Ears) -> None:
    assert save(conn, schedule()) == 1
    assert ears.payloads() == ["schedules"]
    assert save(conn, schedule(), at=999) == 0
    assert ears.payloads() == []
    assert stored(conn).next_at == after(60)


@pytest.mark.parametrize("change", [{"expression": "0 1 * * *"}, {"timezone": "Europe/Berlin"}])
def test_a_schedule_with_other_moments_begins_anew(
    conn: Connection, ears: Ears, change: dict[str, str]
) -> None:
    save(conn, schedule())
    ears.heard()
    assert save(conn, schedule(**change), at=999) == 1
    assert ears.payloads() == ["schedules"]
    assert stored(conn).next_at == after(999)


@pytest.mark.parametrize("change", [{"queue": "p"}, {"missed": "all"}, {"payload": '{"a": 2}'}])
def test_a_schedule_with_other_content_keeps_its_next_tick(
    conn: Connection, change: dict[str, str]
) -> None:
    save(conn, schedule())
    assert save(conn, schedule(**change), at=999) == 1
    row = stored(conn)
    assert row.next_at == after(60)
    assert (row.queue, row.missed, row.payload["a"]) == (
        change.get("queue", "q"), change.get("missed", "latest"), 2 if "payload" in change else 1,
    )  # fmt: skip


def test_a_schedule_that_is_no_longer_named_is_removed(conn: Connection, ears: Ears) -> None:
    save(conn, schedule(), schedule("hourly"), schedule("other", "u"), tasks="tu")
    ears.heard()
    assert save(conn, schedule("hourly")) == 1
    assert ears.payloads() == ["schedules"]
    rows = conn.execute("select name from conductor.schedules order by 1").fetchall()
    assert rows == [("hourly",), ("other",)]


def test_schedules_of_tasks_that_are_not_served_here_are_left_alone(conn: Connection) -> None:
    save(conn, schedule())
    assert save(conn, tasks="u") == 0
    assert stored(conn) is not None


def test_due_schedules_come_first_and_the_next_is_told(conn: Connection, clock: Clock) -> None:
    now = clock.stop(MOMENT)
    save(conn, schedule("later"), at=60)
    definitions.save_schedules(conn, [(schedule("never", "u"), None)], ["u"])
    definitions.save_schedules(conn, [(schedule("now", "v", missed="skip"), now)], ["v"])
    first, second = definitions.due_schedules(conn)
    assert (first.name, first.due, first.next_at, first.now) == ("now", True, now, now)
    assert (first.task, first.expression, first.timezone) == ("v", "0 0 * * *", "UTC")
    assert (first.missed, second.name, second.due) == ("skip", "later", False)


def test_a_tick_makes_an_execution_that_knows_its_event(
    conn: Connection, clock: Clock, ears: Ears
) -> None:
    register(conn, priority=6)
    save(conn, schedule())
    ears.heard()
    clock.stop(after(61))
    (made,) = tick(conn)
    assert ears.payloads() == ["ready:-6:q"]
    row = live(conn, made)
    assert (row.state, row.run_at, row.rank, row.payload) == ("r", after(61), -6, {"a": 1})
    assert row.event == {
        "name": "daily", "scheduled_for": "2031-05-04T12:01:00+00:00", "payload": {"a": 1},
    }  # fmt: skip
    assert made.version == 7
    assert (stored(conn).next_at, stored(conn).last_at) == (after(120), after(60))


def test_a_tick_of_an_unregistered_task_has_no_priority(conn: Connection) -> None:
    save(conn, schedule())
    assert live(conn, tick(conn)[0]).rank == 0


def test_missed_ticks_are_made_up_for_in_order(conn: Connection) -> None:
    save(conn, schedule())
    made = tick(conn, ticks=(180, 60, 120), next_at=240)
    events = [json.loads(c.event or "")["scheduled_for"][14:16] for c in claim(conn)]
    assert (len(made), events) == (3, ["01", "02", "03"])


def test_a_skipped_tick_moves_on_and_makes_nothing(conn: Connection) -> None:
    save(conn, schedule())
    assert tick(conn, ticks=()) == []
    assert stored(conn).next_at == after(120)


def test_a_schedule_may_have_no_next_tick(conn: Connection) -> None:
    save(conn, schedule())
    assert len(tick(conn, next_at=None)) == 1
    assert stored(conn).next_at is None
    assert definitions.due_schedules(conn) == []


@pytest.mark.parametrize(("expected", "name"), [(59, "daily"), (120, "daily"), (60, "gone")])
def test_a_tick_that_is_not_the_next_makes_nothing(
    conn: Connection, expected: float, name: str
) -> None:
    save(conn, schedule())
    assert tick(conn, expected, name=name) == []
    assert stored(conn).next_at == after(60)


def test_schedulers_at_once_make_a_tick_once(database: Database, conn: Connection) -> None:
    save(conn, schedule())
    made = at_once(database, *[tick] * 6)
    assert sorted(len(ids or []) for ids in made) == [0, 0, 0, 0, 0, 1]
    assert scalar(conn, "select count(*) from conductor.live") == 1


def test_a_tick_that_is_rolled_back_is_made_by_another(conn: Connection, other: Connection) -> None:
    save(conn, schedule())
    with conn.transaction(force_rollback=True):
        assert len(tick(conn) or []) == 1
        assert tick(other) is None  # it does not wait: it is told that the row is locked
    assert len(tick(other) or []) == 1
    assert scalar(conn, "select count(*) from conductor.live") == 1
