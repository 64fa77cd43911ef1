"""What people and programs ask: the view, one execution, lists, counts."""

from __future__ import annotations

import dataclasses
import math
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any
from uuid import UUID, uuid4

import pytest

from conductor_cli.models import (
    Completed,
    Execution,
    ExecutionError,
    Failed,
    Retrying,
    State,
)
from conductor_cli.store import claims, executions, fleet, queues, reports
from conductor_cli.store.claims import Requeued
from conductor_cli.store.reports import Backlog, QueueReport, UnservedReport
from tests.support.store import (
    BROKEN,
    DAY,
    DONE,
    STOPPED,
    add,
    add_many,
    beat,
    claim,
    claim_one,
    end,
    enqueue,
    finish,
    finished,
    join,
    register,
    running,
    spec,
)

if TYPE_CHECKING:
    from conductor_cli.database import Connection
    from tests.support.clock import Clock

MOMENT = datetime(2031, 5, 4, 12, tzinfo=UTC)


def after(seconds: float) -> datetime:
    return MOMENT + timedelta(seconds=seconds)


def retrying(conn: Connection, delay: float = 60, **more: Any) -> UUID:
    claimed = running(conn, **more)
    outcome = Retrying(delay, ExecutionError("ValueError", "no"), counts=True)
    claims.requeue(conn, [Requeued(claimed.id, claimed.token, outcome)])
    return claimed.id


def waiting(conn: Connection, deadline: datetime | None = None, **more: Any) -> UUID:
    made = add(conn, **more)
    conn.execute(
        "update conductor.live set state = 'w', run_at = %s where id = %s", [deadline, made]
    )
    return made


def blocked(conn: Connection, **more: Any) -> UUID:
    made = add(conn, **more)
    conn.execute("update conductor.live set state = 'b', run_at = null where id = %s", [made])
    return made


# ── The view and one execution ──────────────────────────────────────────────────────────────


def test_the_views_columns_are_those_of_an_execution(conn: Connection) -> None:
    cursor = conn.execute("select * from conductor.executions")
    assert cursor.description is not None
    fields = [field.name for field in dataclasses.fields(Execution)]
    assert [column.name for column in cursor.description] == fields


def test_a_pending_execution_is_shown_as_it_is(conn: Connection, clock: Clock) -> None:
    clock.stop(MOMENT)
    made = add(
        conn, payload={"a": [1, None]}, rank=-5, delay=60, metadata={"m": 1}, group="g",
    )  # fmt: skip
    assert reports.get(conn, made) == Execution(
        id=made, task="t", queue="q", state=State.PENDING, payload={"a": [1, None]}, result=None,
        error=None, attempt=1, failures=0, crashes=0, priority=5, run_at=after(60),
        created_at=MOMENT, started_at=None, finished_at=None, parent_id=None, progress=None,
        metadata={"m": 1}, group="g", runs=0, cancel_requested=False, dedupe_key=None,
    )  # fmt: skip


def test_an_ended_execution_is_shown_as_it_was(conn: Connection, clock: Clock) -> None:
    clock.stop(MOMENT)
    claimed = running(conn, payload="p", rank=3)
    clock.advance(7)
    error = ExecutionError("E", "why", "where")
    finish(conn, end(claimed, Failed(error)))
    assert reports.get(conn, claimed.id) == Execution(
        id=claimed.id, task="t", queue="q", state=State.FAILED, payload="p", result=None,
        error=error, attempt=1, failures=1, crashes=0, priority=-3, run_at=MOMENT,
        created_at=MOMENT, started_at=MOMENT, finished_at=after(7), parent_id=None,
        progress=None, metadata=None, group=None, runs=1, cancel_requested=False,
        dedupe_key=None,
    )  # fmt: skip


def _states(conn: Connection) -> dict[UUID, State]:
    return {
        running(conn).id: State.RUNNING,
        retrying(conn): State.PENDING,
        finished(conn, DONE): State.COMPLETED,
        finished(conn, BROKEN, keep=None): State.FAILED,
        finished(conn, STOPPED, keep=400 * DAY): State.CANCELLED,
        waiting(conn): State.WAITING,
        blocked(conn): State.PENDING,
        add(conn): State.PENDING,
        add(conn, delay=60): State.PENDING,
    }


def test_every_state_has_its_name(conn: Connection) -> None:
    expected = _states(conn)
    assert {e.id: e.state for e in reports.get_many(conn, list(expected))} == expected


def test_what_has_expired_is_hidden(conn: Connection, clock: Clock) -> None:
    clock.stop(MOMENT)
    soon, later = finished(conn, keep=60), finished(conn, keep=60.5)
    ever = finished(conn, keep=None)
    clock.advance(60)
    assert reports.get(conn, soon) is None
    assert {e.id for e in reports.list_executions(conn)} == {later, ever}


def test_what_never_was_is_not_found(conn: Connection) -> None:
    assert reports.get(conn, uuid4()) is None
    assert reports.get_many(conn, [uuid4()]) == []
    assert reports.get_many(conn, []) == []


def test_many_are_found_wherever_they_are_newest_first(conn: Connection) -> None:
    first, second, third = add(conn, delay=1), finished(conn), add(conn)
    found = reports.get_many(conn, [second, first, uuid4(), third, third])
    assert [e.id for e in found] == [third, second, first]


@pytest.mark.parametrize("result", ["null", "0", '"x"', "[1, {}]", "1e300"])
def test_results_are_json(conn: Connection, result: str) -> None:
    found = reports.get(conn, finished(conn, Completed(result)))
    assert found is not None
    assert (
        found.result
        == {"null": None, "0": 0, '"x"': "x", "[1, {}]": [1, {}], "1e300": 1e300}[result]
    )


# ── Lists ───────────────────────────────────────────────────────────────────────────────────


def test_a_list_is_newest_first_and_has_an_end(conn: Connection, clock: Clock) -> None:
    clock.stop(MOMENT)
    made = []
    for index in range(6):
        clock.advance(1)
        made.append(finished(conn) if index % 2 else add(conn, delay=999))
    found = [e.id for e in reports.list_executions(conn)]
    assert found == made[::-1]
    assert [e.id for e in reports.list_executions(conn, limit=4)] == made[:1:-1]
    assert reports.list_executions(conn, limit=0) == []


def test_a_list_of_each_state(conn: Connection) -> None:
    expected = _states(conn)
    for wanted in State:
        found = reports.list_executions(conn, state=wanted)
        assert {e.id for e in found} == {i for i, state in expected.items() if state is wanted}
        assert {e.state for e in found} == {wanted}


@pytest.mark.parametrize("over", [False, True])
def test_a_list_keeps_to_its_filters(conn: Connection, clock: Clock, over: bool) -> None:
    clock.stop(MOMENT)

    def make(task: str, queue: str, group: str, seconds: float) -> UUID:
        clock.stop(after(seconds))
        made = add(conn, task, queue, group=group)
        if over:
            finish(conn, end(claim_one(conn, queue=queue, tasks=[task])))
        return made

    a, b, c = make("t", "q", "g", 0), make("u", "q", "h", 10), make("t", "p", "h", 20)

    def listed(**filters: Any) -> list[UUID]:
        return [e.id for e in reports.list_executions(conn, **filters)]

    assert listed() == [c, b, a]
    assert listed(task="t") == [c, a]
    assert listed(queue="q") == [b, a]
    assert listed(group="h") == [c, b]
    assert listed(since=after(10)) == [c, b]
    assert listed(task="t", queue="q", group="g", since=MOMENT) == [a]
    assert listed(task="u", queue="p") == []
    assert listed(task="t", limit=1) == [c]


def test_a_list_by_a_part_of_the_error(conn: Connection) -> None:
    def broken(message: str) -> Failed:
        return Failed(ExecutionError("ValueError", message))

    disk = finished(conn, broken("disk 100% full"))
    finished(conn, broken("network"))
    again = retrying(conn)
    finished(conn, DONE)

    def listed(error: str, **filters: Any) -> list[UUID]:
        return [e.id for e in reports.list_executions(conn, error=error, **filters)]

    assert listed("100% full") == [disk]
    assert listed("ValueError", state=State.PENDING) == [again]
    assert listed("100_ full") == []
    assert len(listed("ValueError")) == 3


def test_an_id_is_found_by_its_beginning(conn: Connection) -> None:
    ids = [UUID(f"0190{digit}000-0000-7000-8000-000000000000") for digit in "abc"]
    enqueue(conn, *[{**spec(), "id": str(i)} for i in ids])
    finish(conn, *[end(c) for c in claim(conn) if c.id == ids[1]])

    def found(low: str, high: str, limit: int = 10) -> list[UUID]:
        pad = "-0000-7000-8000-"
        return [
            e.id for e in reports.by_prefix(
                conn, UUID(low + pad + "0" * 12), UUID(high + pad + "f" * 12), limit
            )
        ]  # fmt: skip

    assert found("0190a000", "0190a000") == [ids[0]]
    assert found("0190b000", "0190cfff") == ids[1:]
    assert found("01900000", "0190ffff", limit=2) == ids[:2]
    assert found("01910000", "0191ffff") == []


# ── Counts ──────────────────────────────────────────────────────────────────────────────────


def test_a_backlog_counts_each_execution_once(conn: Connection, clock: Clock) -> None:
    clock.stop(MOMENT)
    running(conn)
    retrying(conn, delay=50)
    add(conn)
    add(conn, delay=10)
    blocked(conn)
    waiting(conn, after(40))
    waiting(conn)
    add(conn, queue="p")
    finish(conn, end(claim_one(conn, queue="p")))
    add(conn, "unserved")
    add(conn, "unserved", delay=5)
    add(conn, queue="elsewhere")
    assert reports.backlog(conn, ["q", "p"], ["t"]) == Backlog(
        ready=1, running=1, retrying=1, scheduled=1, waiting=2, blocked=1, unserved=2, events=0,
        later=3, next_in=10.0,
    )  # fmt: skip
    clock.advance(10)
    later = reports.backlog(conn, ["q"], ["t"])
    assert (later.ready, later.scheduled, later.next_in) == (2, 0, 30.0)
    clock.advance(30)
    assert reports.backlog(conn, ["q"], ["t"]).next_in == pytest.approx(10)


def test_of_a_paused_queue_nothing_is_ready_and_nothing_comes_by_itself(
    conn: Connection, clock: Clock
) -> None:
    clock.stop(MOMENT)
    running(conn)
    retrying(conn, delay=50)
    add(conn)
    add(conn, delay=10)
    waiting(conn)
    assert queues.pause(conn, "q")
    assert reports.backlog(conn, ["q"], ["t"]) == Backlog(
        ready=0, running=1, retrying=1, scheduled=1, waiting=1, blocked=1, unserved=0, events=0,
        later=0, next_in=10.0,
    )  # fmt: skip
    clock.advance(60)
    left = reports.backlog(conn, ["q"], ["t"])
    assert (left.ready, left.retrying, left.scheduled, left.blocked) == (0, 1, 0, 2)


def test_an_empty_backlog(conn: Connection) -> None:
    assert reports.backlog(conn, ["q"], ["t"]) == Backlog(0, 0, 0, 0, 0, 0, 0, 0, 0, None)


def test_what_only_a_dead_server_would_serve_is_served_by_nobody(
    conn: Connection, clock: Clock
) -> None:
    register(conn)
    join(conn, timeout=15)
    add(conn)
    assert reports.unserved(conn) == []
    clock.advance(60)
    (found,) = reports.unserved(conn)
    assert (found.queue, found.task, found.count) == ("q", "t", 1)


def test_queues_are_reported_with_what_they_hold(conn: Connection, clock: Clock) -> None:
    clock.stop(MOMENT)
    register(conn, "idle", "b.idle")
    running(conn)
    retrying(conn)
    finished(conn)
    finished(conn, BROKEN)
    clock.advance(30)
    add(conn)
    clock.advance(20)
    add_many(conn, 2)
    add(conn, delay=60)
    blocked(conn)
    waiting(conn)
    assert reports.queues(conn) == [
        QueueReport("b.idle", False, 0, 0, 0, 0, 0, 0, None, 0, 0),
        QueueReport(
            "q", False, ready=3, scheduled=1, retrying=1, blocked=1, waiting=1, running=1,
            oldest_ready_seconds=20.0, finished_last_minute=2, failed_last_minute=1,
        ),
    ]  # fmt: skip
    clock.advance(30)
    assert reports.queues(conn)[1].finished_last_minute == 0


def test_a_queue_that_only_finished_something_is_reported(conn: Connection) -> None:
    finished(conn)
    (report,) = reports.queues(conn)
    assert (report.queue, report.finished_last_minute, report.ready) == ("q", 1, 0)


def test_servers_are_reported(conn: Connection, clock: Clock) -> None:
    clock.stop(MOMENT)
    leader = join(conn)
    clock.advance(5)
    other = join(conn, queue="p")
    beat(conn, leader, stands=True, stopping=True)
    running(conn, leader)
    running(conn, leader)
    clock.advance(15)
    first, second = reports.servers(conn)
    assert (first.id, first.leader, first.running, first.stopping) == (leader, True, 2, True)
    assert (second.id, second.leader, second.running, second.stopping) == (other, False, 0, False)
    assert (first.hostname, first.pid, first.version, first.queues) == ("h", 1, "1", ["q"])
    assert (first.started_at, first.last_beat_seconds, first.alive) == (MOMENT, 15.0, False)
    clock.advance(-1)
    assert [s.alive for s in reports.servers(conn)] == [True, True]
    assert math.isclose(reports.servers(conn)[0].last_beat_seconds, 14.0)


def test_what_nobody_serves_is_reported(conn: Connection, clock: Clock) -> None:
    clock.stop(MOMENT)
    register(conn)
    add(conn)
    add(conn, "unknown")
    add(conn, "later", delay=99)
    add(conn, queue="p")
    assert [(u.queue, u.task) for u in reports.unserved(conn)] == [
        ("p", "t"), ("q", "t"), ("q", "unknown"),
    ]  # fmt: skip
    join(conn)
    clock.advance(7)
    add(conn, "unknown")
    assert reports.unserved(conn) == [
        UnservedReport("p", "t", 1, 7.0), UnservedReport("q", "unknown", 2, 7.0),
    ]  # fmt: skip


def test_what_only_a_dead_server_serves_is_reported_once_it_is_buried(
    conn: Connection, clock: Clock
) -> None:
    register(conn)
    add(conn)
    join(conn)
    assert reports.unserved(conn) == []
    clock.advance(60)
    fleet.rescue(conn)
    assert [u.count for u in reports.unserved(conn)] == [1]


def test_an_execution_tells_why_it_stands(conn: Connection, clock: Clock) -> None:
    clock.stop(MOMENT)
    add_many(conn, 2, rank=-1)
    ready, later = add(conn), add(conn, delay=30)
    standing = reports.standing(conn, ready)
    assert standing is not None
    assert (standing.state, standing.ahead, standing.due_in) == ("r", 2, 0.0)
    assert (standing.servers, standing.registered, standing.host) == (0, False, None)
    register(conn)
    server = join(conn)
    standing = reports.standing(conn, later)
    assert standing is not None
    assert (standing.state, standing.due_in) == ("s", 30.0)
    assert (standing.servers, standing.registered) == (1, True)
    assert reports.standing(conn, finished(conn, rank=-9)) is None
    claimed = running(conn, server, rank=-9)
    executions.cancel(conn, claimed.id, None)
    standing = reports.standing(conn, claimed.id)
    assert standing is not None
    assert (standing.state, standing.host, standing.pid) == ("x", "h", 1)
    assert standing.cancel_asked
