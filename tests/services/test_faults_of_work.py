"""Workers meet crashes, cancels, timeouts and broken starts at unlucky moments."""

from __future__ import annotations

import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from types import SimpleNamespace
from typing import Any
from uuid import UUID, uuid4

import msgspec
import psycopg
import pytest

from conductor_cli import Conductor, Context, State, WorkerConfig, cron, pump, task
from conductor_cli.config import Config
from conductor_cli.context import Attempt
from conductor_cli.errors import DatabaseUnavailable
from conductor_cli.holding import Finished
from conductor_cli.models import Claimed, Completed
from conductor_cli.pump import Pump
from conductor_cli.service import Deadline, PeriodicService
from conductor_cli.store import claims, executions, fleet
from conductor_cli.worker import Timekeeper


@task(queue="one")
def plain(n: int) -> int:
    return n


@task(queue="two")
def other(n: int) -> int:
    return n


def _crashed(conductor: Conductor, ids: list[UUID], crashes: int) -> None:
    with conductor.database.connection() as conn:
        conn.execute("update conductor.live set crashes = %s where id = any(%s)", [crashes, ids])


def test_a_crash_is_charged_to_the_suspect_that_ran_and_not_to_those_that_waited(
    conductor: Conductor,
) -> None:
    suspects = conductor.invoke_many(plain, [{"n": n} for n in range(4)], queue="one")
    _crashed(conductor, suspects, 2)
    fresh = conductor.invoke_many(plain, [{"n": n} for n in range(2)], queue="one")
    owner = uuid4()
    with conductor.database.connection() as conn:
        claim = claims.Claim(owner, 1, "one", ["plain"], claims.START, 10)
        assert len(claims.exchange(conn, [], claim).claimed) == 6
        fleet.rescue(conn)  # a server that is not in the fleet
        rows = conn.execute("select id, crashes from conductor.live").fetchall()
    crashes = dict(rows)
    assert [crashes[id] for id in suspects] == [3, 2, 2, 2]
    assert [crashes[id] for id in fresh] == [1, 1]


def test_of_what_may_have_taken_a_process_down_only_one_runs_at_a_time(
    conductor: Conductor, start: Any
) -> None:
    running, together, beside = set(), [], []
    suspects: set[UUID] = set()
    everybody = threading.Lock()

    def work(ctx: Context) -> None:
        with everybody:
            running.add(ctx.execution_id)
            together.append(len(running & suspects))
            beside.append(len(running))
        time.sleep(0.1)
        with everybody:
            running.discard(ctx.execution_id)

    here = task(name="here", queue="one")(work)
    there = task(name="there", queue="two")(work)
    for each in (here, there):
        suspects |= set(conductor.invoke_many(each, [None] * 2, queue=each.queue))
    _crashed(conductor, list(suspects), 2)
    ids = [*suspects, *conductor.invoke_many(here, [None] * 10, queue="one")]
    start(here, there)
    for id in ids:
        conductor.wait(id, timeout=15)
    assert max(together) == 1
    assert max(beside) > 1


def test_a_cancel_that_is_not_committed_holds_up_only_itself(
    conductor: Conductor, start: Any, eventually: Any
) -> None:
    go_on = threading.Event()

    @task(queue="one")
    def held_together(n: int) -> int:
        go_on.wait(20)
        return n

    ids = conductor.invoke_many(held_together, [{"n": n} for n in range(10)])
    start(held_together)
    eventually(lambda: len(conductor.list(state="running")) == 10)
    with conductor.database.transaction() as conn:
        assert executions.cancel(conn, ids[4], "later")
        go_on.set()
        eventually(lambda: len(conductor.list(state="completed")) == 9)
        assert _state(conductor, ids[4]) is State.RUNNING
    eventually(lambda: _state(conductor, ids[4]) is State.CANCELLED)


@pytest.mark.parametrize("why", ["cancelled", "declared dead"])
def test_what_was_claimed_and_not_started_never_starts(
    conductor: Conductor, start: Any, heard: Any, eventually: Any, why: str
) -> None:
    ran, go_on = [], threading.Event()

    @task(queue="narrow")
    def step(n: int) -> None:
        ran.append(n)
        if n == 0:
            go_on.wait(20)

    start(step, default_worker=WorkerConfig(concurrency=1, fetch_batch_size=5))
    heard.wait("listener.proven")
    _, second = conductor.invoke_many(step, [{"n": 0}, {"n": 1}])
    try:
        eventually(lambda: _state(conductor, second) is State.RUNNING and ran)
        began = time.monotonic()
        if why == "cancelled":
            assert conductor.cancel(second)
            eventually(lambda: _state(conductor, second) is State.CANCELLED)
        else:
            with conductor.database.connection() as conn:
                conn.execute("delete from conductor.orchestrators")
            heard.wait("executions.released")
        assert time.monotonic() - began < 1.5  # not as late as what merely waits for long
        assert ran == [0]
    finally:
        go_on.set()


def _state(conductor: Conductor, id: UUID) -> State:
    found = conductor.get(id)
    assert found is not None
    return found.state


def test_many_short_tasks_with_a_timeout_do_not_wake_the_timekeeper_each(
    conductor: Conductor, start: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    wakes = []
    wake = Timekeeper.wake
    monkeypatch.setattr(Timekeeper, "wake", lambda self: wakes.append(1) or wake(self))

    @task(timeout=30)
    def short() -> None:
        return

    start(short)
    for id in conductor.invoke_many(short, [None] * 300):
        conductor.wait(id, timeout=15)
    assert len(wakes) < 60, len(wakes)


def test_a_timeout_that_has_passed_does_not_hit_the_next_execution_of_its_thread(
    conductor: Conductor, start: Any, eventually: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("conductor_cli.worker.GRACE", 0.0)
    go_on = threading.Event()

    @task(timeout=0.2)
    def bounded() -> None:
        return

    @task
    def unbounded() -> str:
        assert go_on.wait(20)
        return "done"

    server = start(bounded, unbounded, default_worker=WorkerConfig(concurrency=1))
    conductor.wait(conductor.invoke(bounded), timeout=10)
    time.sleep(0.3)
    id = conductor.invoke(unbounded)
    (worker,) = server.job_coordinator.workers
    (slot,) = worker.slots
    attempt = eventually(lambda: slot.attempt)
    worker._timekeeper.tick()
    over = Attempt(attempt.claimed)
    assert over.decide()
    worker.replace_stuck(slot, over, Completed("0"))  # it ended in the moment it was given up on
    go_on.set()
    assert conductor.wait(id, timeout=10) == "done"
    assert worker.slots == [slot]


def test_two_claims_of_one_execution_are_not_taken_for_one(
    conductor: Conductor, start: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = start(plain)
    (worker,) = server.job_coordinator.workers
    worker.stop()
    (id,) = conductor.invoke_many(plain, [{"n": 1}])
    with conductor.database.connection() as conn:
        claim = claims.Claim(server.info.id, 7, "one", ["plain"], claims.START, 1)
        (valid,) = claims.exchange(conn, [], claim).claimed
    stale = _with_token(valid, 6)
    monkeypatch.setattr(
        worker._pumps[1], "_carry_out", lambda _: pytest.fail("the first one does it all")
    )
    for each in (valid, stale):
        worker.holding._outbox.append(Finished(each, Completed(str(each.token)), 0.0))
    worker._pumps[0].wake()
    assert conductor.wait(id, timeout=10) == 7


def _with_token(claimed: Claimed, token: int) -> Claimed:
    return msgspec.structs.replace(claimed, token=token)


def test_a_value_that_postgres_refuses_does_not_keep_the_worker_from_claiming(
    conductor: Conductor, start: Any, heard: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    exchange, refused = claims.exchange, []

    def refusing(conn: Any, ended: Any, claim: Any) -> Any:
        if ended and claim.limit and claim.start == claims.START and not refused:
            refused.append(len(ended))
            raise psycopg.DataError("a poison value")
        return exchange(conn, ended, claim)

    monkeypatch.setattr(pump.claims, "exchange", refusing)

    @task
    def brief() -> None:
        time.sleep(0.05)

    start(brief, default_worker=WorkerConfig(concurrency=2, fetch_batch_size=2))
    heard.wait("listener.proven")
    began = time.monotonic()
    for id in conductor.invoke_many(brief, [None] * 60):
        conductor.wait(id, timeout=15)
    assert refused
    assert time.monotonic() - began < 5


def test_a_hint_a_millisecond_does_not_make_a_try_a_millisecond() -> None:
    class Failing(PeriodicService):
        tries = 0

        def tick(self) -> bool:
            self.tries += 1
            raise DatabaseUnavailable("gone")

    service = Failing("failing", pause=1.0)
    service.start()
    until = time.monotonic() + 0.6
    while time.monotonic() < until:
        service.wake()
        time.sleep(0.001)
    service.stop()
    assert service.join(Deadline(2))
    assert 2 <= service.tries <= 10


def test_a_start_that_fails_half_way_is_told_at_once(
    make: Any, eventually: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: Pump) -> None:
        raise DatabaseUnavailable("just now")

    server = make(plain, other)
    monkeypatch.setattr(Pump, "setup", fail)
    began = time.monotonic()
    with pytest.raises(DatabaseUnavailable, match="just now"):
        server.start(signals=False)
    assert time.monotonic() - began < 2
    eventually(lambda: not [t for t in threading.enumerate() if t.name.startswith("worker.one")])
    monkeypatch.undo()
    server.start(signals=False)


def test_a_state_that_cannot_be_left_is_told_to_whoever_waits(
    make: Any, quick: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    @contextmanager
    def state() -> Iterator[int]:
        yield 1
        raise OSError("it cannot be closed")

    monkeypatch.setitem(sys.modules, "my", SimpleNamespace(state=state))
    server = make(plain, config=replace(quick, tasks=replace(quick.tasks, setup="my:state")))
    server.start(signals=False)
    server.stop()
    with pytest.raises(OSError, match="it cannot be closed"):
        server.stopped.result(5)


def test_a_schedule_with_a_policy_of_a_newer_version_is_left_alone(
    conductor: Conductor, start: Any, heard: Any
) -> None:
    @task(triggers=[cron("* * * * * *", name="newer")])
    def newer() -> None:
        return

    server = start(plain, newer)
    with conductor.database.connection() as conn:
        conn.execute("alter table conductor.schedules drop constraint missed_is_known")
        conn.execute("update conductor.schedules set missed = 'sometimes'")
    heard.wait("schedule.refused")
    assert conductor.wait(conductor.invoke(plain, {"n": 3}), timeout=10) == 3
    assert not server.stopped.done()


def test_who_locked_a_row_and_let_go_of_it_costs_nobody_his_connection(
    conductor: Conductor,
    database_url: str,
    start: Any,
    heard: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It held the batch up for longer than is waited, but not until one looks who it is."""
    holder = psycopg.connect(database_url)
    look, looks = claims.locked, []

    def too_late(*args: Any) -> set[UUID]:
        holder.rollback()
        looks.append(look(*args))
        return looks[-1]

    monkeypatch.setattr(claims, "locked", too_late)

    @task
    def held(ctx: Context) -> str:
        holder.execute("select from conductor.live where id = %s for update", [ctx.execution_id])
        return "done"

    start(held)
    assert conductor.wait(conductor.invoke(held), timeout=10) == "done"
    assert looks == [set()]
    assert heard.count("database.lost") == 0
    holder.close()


def test_what_was_recorded_apart_stays_so_when_the_claim_after_it_fails(
    conductor: Conductor, start: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two servers, so that many are recorded and claimed in two statements."""
    exchange, lost = claims.exchange, []
    recording = threading.local()

    def losing(conn: Any, ended: Any, claim: Any) -> Any:
        follows, recording.apart = getattr(recording, "apart", False), False
        if follows and not lost:
            lost.append(claim.limit)
            raise psycopg.OperationalError("the reply was lost")
        done = exchange(conn, ended, claim)
        recording.apart = len(ended) >= 100 and claim.limit == 0
        return done

    monkeypatch.setattr(pump.claims, "exchange", losing)
    runs: Counter[int] = Counter()

    @task
    def brief(n: int) -> None:
        runs[n] += 1

    start(brief)
    start(brief)
    count = 20_000
    conductor.invoke_many(brief, [{"n": n} for n in range(count)])
    until = time.monotonic() + 30
    with conductor.database.connection() as conn:
        while conn.execute("select exists (select from conductor.live)").fetchone() == (True,):
            assert time.monotonic() < until
            time.sleep(0.05)
        kept = conn.execute("select count(*) from conductor.history where state = 'c'").fetchone()
    assert kept == (count,)
    assert lost
    assert set(runs.values()) == {1}
