"""Starting, stopping, draining; the coordinator on its own; the client's transactions."""

from __future__ import annotations

import os
import threading
import time
from typing import Any

import psycopg
import pytest
from psycopg.conninfo import make_conninfo
from psycopg_pool import ConnectionPool

from conductor_cli import (
    Conductor,
    ConfigError,
    Context,
    Duplicate,
    ExecutionNotFound,
    Orchestrator,
    PayloadError,
    Retry,
    State,
    TaskDefinitionError,
    UnknownTask,
    cron,
    task,
    telemetry,
)


@task
def add(a: int, b: int = 1) -> int:
    return a + b


@task(max_attempts=2, retry=[3600])
def broken() -> None:
    raise RuntimeError("broken")


def test_it_starts_and_stops_and_starts_again(make: Any, conductor: Conductor) -> None:
    orchestrator: Orchestrator = make(add)
    assert not orchestrator.info.is_running
    for _ in range(2):
        orchestrator.start(signals=False)
        assert orchestrator.info.is_running
        assert not orchestrator.info.is_stopped
        assert conductor.wait(conductor.invoke(add, {"a": 1}), timeout=10) == 2
        first = orchestrator.stopped
        orchestrator.stop()
        orchestrator.stop()
        assert first.result(0) is None
        assert orchestrator.info.is_stopped
        assert not orchestrator.info.is_running


def test_stopping_what_never_started_is_nothing(make: Any) -> None:
    make(add).stop()


def test_an_idle_one_stops_within_a_second(start: Any) -> None:
    orchestrator = start(add)
    began = time.monotonic()
    orchestrator.stop()
    assert time.monotonic() - began < 1.0


def test_a_thread_is_left_of_none_that_stopped(make: Any) -> None:
    before = {t.name for t in threading.enumerate()}
    orchestrator = make(add)
    orchestrator.start(signals=False)
    orchestrator.stop()
    orchestrator.conductor.close()
    deadline = time.monotonic() + 5
    while (left := {t.name for t in threading.enumerate()} - before - {"log"}) and (
        time.monotonic() < deadline
    ):
        time.sleep(0.02)
    assert not left


def test_a_start_that_fails_leaves_nothing_running_and_can_be_repeated(
    empty_database_url: str,
) -> None:
    before = threading.active_count()
    bad = Orchestrator.create(
        conductor=Conductor.create(make_conninfo(empty_database_url, dbname="no_such")),
        tasks=[add],
    )
    for _ in range(2):
        with pytest.raises(Exception, match=r"refused|does not exist"):
            bad.start(signals=False)
    bad.conductor.close()
    assert not bad.info.is_running
    assert threading.active_count() <= before + 1


def test_it_installs_the_schema_by_itself(empty_database_url: str) -> None:
    with Conductor.create(empty_database_url) as conductor:
        orchestrator = Orchestrator.create(conductor=conductor, tasks=[add])
        with orchestrator:
            assert conductor.wait(conductor.invoke(add, {"a": 2}), timeout=10) == 3


def test_two_tasks_of_one_name_are_refused_with_both_places(conductor: Conductor) -> None:
    @task(name="add")
    def other() -> None: ...

    with pytest.raises(TaskDefinitionError) as caught:
        Orchestrator.create(conductor=conductor, tasks=[add, other])
    assert str(caught.value).count("test_orchestrator.py") == 2


def test_two_workers_of_one_queue_are_refused(conductor: Conductor) -> None:
    worker = conductor.create_worker(queue="default", tasks=[add])
    with pytest.raises(ConfigError, match="'default'"):
        Orchestrator.create(conductor=conductor, tasks=[broken], workers=[worker])


def test_the_coordinator_starts_once_and_stops_under_either_name(make: Any) -> None:
    coordinator = make(add).job_coordinator
    coordinator.start()
    coordinator.start()
    workers = list(coordinator.workers)
    assert len(workers) == 1
    coordinator.stop()
    assert not coordinator.workers
    coordinator.start()
    assert list(coordinator.workers) != workers
    coordinator.destroy()
    coordinator.destroy()


def test_a_service_that_dies_takes_the_server_down_with_its_error(
    start: Any, conductor: Conductor, eventually: Any
) -> None:
    orchestrator = start(add)
    with conductor.database.transaction() as conn:
        conn.execute("alter table conductor.orchestrators rename column beat_at to gone")
    with pytest.raises(psycopg.errors.UndefinedColumn):
        orchestrator.stopped.result(15)


def test_a_drain_works_until_nothing_is_left(conductor: Conductor, make: Any) -> None:
    ids = conductor.invoke_many(add, [{"a": n} for n in range(500)])
    report = make(add).drain()
    assert (report.completed, report.failed, report.timed_out) == (500, 0, False)
    assert [conductor.wait(id) for id in ids[:3]] == [1, 2, 3]


def test_a_drain_of_nothing_ends_at_once(make: Any) -> None:
    orchestrator = make(add)
    assert orchestrator.drain().completed == 0
    assert orchestrator.drain().completed == 0


def test_a_drain_tells_what_it_left_and_what_failed(conductor: Conductor, make: Any) -> None:
    @task(max_attempts=1)
    def hopeless(n: int) -> None:
        raise ValueError(f"no {n}")

    conductor.invoke(broken)
    conductor.invoke(add, {"a": 1}, delay=3600)
    conductor.invoke("unserved", {}, queue="default")
    conductor.invoke(hopeless, {"n": 4})
    report = make(add, broken, hopeless).drain()
    assert (report.completed, report.failed) == (0, 1)
    assert (report.left_retrying, report.left_scheduled, report.left_unserved) == (1, 1, 1)
    assert [f.error.message for f in report.failures if f.error] == ["no 4"]


def test_a_drain_runs_what_its_tasks_invoke(conductor: Conductor, make: Any) -> None:
    @task
    def chain(ctx: Context, left: int) -> int:
        if left:
            ctx.conductor.invoke(chain, {"left": left - 1})
        return left

    conductor.invoke(chain, {"left": 20})
    assert make(chain).drain().completed == 21


def test_a_drain_can_retry_at_once(conductor: Conductor, make: Any) -> None:
    id = conductor.invoke(broken)
    report = make(broken).drain(retry_now=True)
    assert (report.failed, report.left_retrying) == (1, 0)
    ended = conductor.get(id)
    assert ended is not None
    assert (ended.state, ended.failures) == (State.FAILED, 2)


def test_a_drain_can_retry_at_once_what_failed_before_it(conductor: Conductor, make: Any) -> None:
    conductor.invoke(broken)
    orchestrator = make(broken)
    assert orchestrator.drain().left_retrying == 1
    assert orchestrator.drain(retry_now=True).failed == 1


def test_a_drain_can_wait_until_all_is_empty(conductor: Conductor, make: Any) -> None:
    @task(retry=[0.3])
    def second_time(ctx: Context) -> int:
        if ctx.runs == 1:
            raise Retry
        return ctx.runs

    conductor.invoke(add, {"a": 1}, delay=0.5)
    conductor.invoke(second_time)
    report = make(add, second_time).drain(wait_until_empty=True, timeout=30)
    assert (report.completed, report.left_scheduled, report.left_retrying) == (2, 0, 0)


def test_a_drain_that_runs_out_of_time_says_so_and_hands_back(
    conductor: Conductor, make: Any
) -> None:
    go_on = threading.Event()

    @task
    def slow(ctx: Context) -> None:
        while not go_on.wait(0.02):
            ctx.checkpoint()

    id = conductor.invoke(slow)
    report = make(slow).drain(timeout=0.5)
    go_on.set()
    assert report.timed_out
    left = conductor.get(id)
    assert left is not None
    assert (left.state, left.runs) == (State.PENDING, 0)


def test_a_drain_does_not_run_the_scheduler(conductor: Conductor, make: Any) -> None:
    @task(triggers=[cron("* * * * * *")])
    def each_second() -> None: ...

    conductor.invoke(add, {"a": 1}, delay=1.5)
    report = make(add, each_second).drain(wait_until_empty=True, timeout=20)
    assert report.completed == 1


def test_an_invoke_is_part_of_the_callers_transaction(
    conductor: Conductor, database_url: str
) -> None:
    with psycopg.connect(database_url) as conn:
        kept = conductor.invoke(add, {"a": 1}, connection=conn)
        assert conductor.get(kept) is None
        conn.commit()
        dropped = conductor.invoke(add, {"a": 1}, connection=conn)
        conn.rollback()
    assert conductor.get(kept) is not None
    assert conductor.get(dropped) is None


@pytest.mark.parametrize("begun", [False, True], ids=["nothing begun", "begun"])
@pytest.mark.parametrize("count", [3, 5000], ids=["one portion", "several portions"])
def test_many_invokes_are_part_of_the_callers_transaction(
    conductor: Conductor, database_url: str, count: int, begun: bool
) -> None:
    payloads = [{"a": n} for n in range(count)]
    with psycopg.connect(database_url) as conn:
        if begun:
            conn.execute("select 1")
        conductor.invoke_many(add, payloads, connection=conn)
        assert not conductor.list()
        conn.rollback()
        assert not conductor.list()
        conductor.invoke_many(add, payloads, connection=conn)
        conn.commit()
        assert len(conductor.list(limit=10_000)) == count


def test_of_many_that_are_refused_half_way_nothing_is_left_to_commit(
    conductor: Conductor, database_url: str
) -> None:
    bad = [*[{"a": n} for n in range(3000)], {"a": "no"}]
    with psycopg.connect(database_url) as conn:
        with pytest.raises(PayloadError):
            conductor.invoke_many(add, bad, connection=conn)
        kept = conductor.invoke(add, {"a": 1}, connection=conn)
        conn.commit()
    assert [e.id for e in conductor.list()] == [kept]


def test_a_client_works_on_a_pool_of_its_callers(database_url: str) -> None:
    with ConnectionPool(database_url, min_size=1, open=True) as pool:
        conductor = Conductor.create(pool=pool)
        one = conductor.invoke(add, {"a": 1})
        many = conductor.invoke_many(add, [{"a": n} for n in range(3)])
        with Conductor.create(database_url) as other:
            assert {e.id for e in other.list()} == {one, *many}
            assert conductor.cancel(one)
            cancelled = other.get(one)
            assert cancelled is not None
            assert cancelled.state is State.CANCELLED
        conductor.close()
        assert not pool.closed


def test_many_on_an_autocommitting_connection_are_all_or_none(
    conductor: Conductor, database_url: str
) -> None:
    bad = [*[{"a": n} for n in range(3000)], {"a": "no"}]
    with psycopg.connect(database_url, autocommit=True) as conn:
        with pytest.raises(PayloadError):
            conductor.invoke_many(add, bad, connection=conn)
        assert not conductor.list()
        conductor.invoke_many(add, bad[:-1], connection=conn)
    assert len(conductor.list(limit=10_000)) == 3000


def test_many_are_created_all_or_none(conductor: Conductor) -> None:
    with pytest.raises(PayloadError, match=r"\$\.b"):
        conductor.invoke_many(add, [{"a": 1}, {"a": 1, "b": "x"}])
    assert not conductor.list()
    assert conductor.invoke_many(add, []) == []
    ids = conductor.invoke_many(add, [{"a": 1}, add.bind(a=2).options(priority=7)])
    assert [e.priority for e in map(conductor.get, ids) if e] == [0, 7]


def test_a_dedupe_key_holds_until_the_end(conductor: Conductor, make: Any) -> None:
    first = conductor.invoke(add, {"a": 1}, dedupe_key="k")
    assert conductor.invoke(add, {"a": 2}, dedupe_key="k") == first
    with pytest.raises(Duplicate) as caught:
        conductor.invoke(add, {"a": 2}, dedupe_key="k", on_duplicate="raise")
    assert caught.value.id == first
    assert conductor.invoke(add, {"a": 5}, dedupe_key="k", on_duplicate="replace") == first
    make(add).drain()
    assert conductor.wait(first) == 6
    assert conductor.invoke(add, {"a": 2}, dedupe_key="k") != first


def test_the_same_id_is_invoked_once(conductor: Conductor, make: Any) -> None:
    id = conductor.invoke(add, {"a": 1})
    assert conductor.invoke(add, {"a": 9}, id=id) == id
    make(add).drain()
    assert conductor.invoke(add, {"a": 9}, id=id) == id
    assert conductor.wait(id) == 2
    assert len(conductor.list()) == 1


def test_a_name_is_looked_up_in_the_database(conductor: Conductor, make: Any) -> None:
    with pytest.raises(UnknownTask, match="'ad'"):
        conductor.invoke("ad", {"a": 1})
    make(add).drain()
    with pytest.raises(UnknownTask, match="Did you mean 'add'"):
        conductor.invoke("ad", {"a": 1})
    id = conductor.invoke("add", {"a": 1})
    found = conductor.get(id)
    assert found is not None
    assert found.queue == "default"


def test_a_failed_one_can_be_retried_by_an_operator(conductor: Conductor, make: Any) -> None:
    id = conductor.invoke(broken)
    orchestrator = make(broken)
    orchestrator.drain(retry_now=True)
    assert conductor.retry(id)
    assert not conductor.retry(id)
    again = conductor.get(id)
    assert again is not None
    assert (again.state, again.failures, again.runs) == (State.PENDING, 0, 2)


def test_waiting_has_its_errors(conductor: Conductor) -> None:
    from uuid import uuid4

    with pytest.raises(ExecutionNotFound):
        conductor.wait(uuid4(), timeout=5)
    id = conductor.invoke(add, {"a": 1})
    with pytest.raises(TimeoutError, match="pending"):
        conductor.wait(id, timeout=0.1)


def test_a_client_works_on_both_sides_of_a_fork(conductor: Conductor) -> None:
    ours = conductor.invoke(add, {"a": 1})
    read_end, write_end = os.pipe()
    child = os.fork()
    if child == 0:
        code = 1
        try:
            os.write(write_end, conductor.invoke(add, {"a": 2}).bytes)
            code = 0
        finally:
            os._exit(code)
    from uuid import UUID

    theirs = UUID(bytes=os.read(read_end, 16))
    assert os.waitpid(child, 0)[1] == 0
    os.close(read_end)
    os.close(write_end)
    assert conductor.get(ours) is not None
    assert conductor.get(theirs) is not None
    assert theirs != ours


def test_a_scrape_tells_what_runs_and_who_leads(start: Any, eventually: Any) -> None:
    orchestrator = start(add)
    eventually(lambda: "conductor_is_leader 1.0" in telemetry.metrics().decode())
    # What is just being claimed counts as in hand.
    eventually(lambda: 'conductor_in_hand{queue="default"} 0.0' in telemetry.metrics().decode())
    text = telemetry.metrics().decode()
    assert 'conductor_running{queue="default"} 0.0' in text
    assert "conductor_heartbeat_age_seconds" in text
    orchestrator.stop()
    assert "conductor_is_leader 1.0" not in telemetry.metrics().decode()
