"""Waiting for ends, and watching what happens until then."""

from __future__ import annotations

import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import psycopg
import pytest

from conductor_cli import (
    Conductor,
    ConductorError,
    Context,
    Execution,
    ExecutionCancelled,
    ExecutionFailed,
    ExecutionNotFound,
    State,
    task,
    waiting,
)
from conductor_cli.models import Flag

if TYPE_CHECKING:
    from collections.abc import Iterator
    from uuid import UUID

gates: dict[str, threading.Event] = {}


@task
def gated(gate: str) -> str:
    """Ends when its gate is opened."""
    assert gates[gate].wait(60)
    return gate


@pytest.fixture
def gate() -> Iterator[str]:
    name = uuid4().hex
    gates[name] = threading.Event()
    yield name
    gates.pop(name).set()


def listeners(conductor: Conductor) -> list[int]:
    """The backends that listen for those who wait."""
    with conductor.database.connection() as conn:
        rows = conn.execute(
            "select pid from pg_stat_activity where datname = current_database() "
            "and application_name = 'conductor waiting'"
        )
        return [pid for (pid,) in rows]


def is_marked(conductor: Conductor, id: UUID) -> bool:
    with conductor.database.connection() as conn:
        row = conn.execute("select flags from conductor.live where id = %s", [id]).fetchone()
    return row is not None and bool(row[0] & Flag.WATCHED)


@pytest.fixture
def never_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who has been proven to hear does not look by itself."""
    monkeypatch.setattr(waiting, "SAFETY_LOOK", 3600.0)


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(32) as made:
        yield made


@pytest.mark.usefixtures("never_looks")
def test_those_who_wait_are_told_of_the_end_on_one_connection(
    conductor: Conductor, start: Any, gate: str, pool: ThreadPoolExecutor, eventually: Any
) -> None:
    start(gated)
    ids = conductor.invoke_many(gated, [{"gate": gate}] * 8)
    waits = [pool.submit(conductor.wait, id, gated, timeout=60) for id in ids for _ in range(2)]
    eventually(lambda: all(is_marked(conductor, each) for each in ids))
    eventually(lambda: conductor.ends._lookout and conductor.ends._lookout._is_proven)
    assert len(listeners(conductor)) == 1
    assert not any(each.done() for each in waits)
    gates[gate].set()
    assert [each.result(30) for each in waits] == [gate] * 16


def test_what_nobody_waits_for_is_not_marked(conductor: Conductor, start: Any, gate: str) -> None:
    start(gated)
    id = conductor.invoke(gated, {"gate": gate})
    assert not is_marked(conductor, id)
    assert listeners(conductor) == []
    assert conductor.get(id) is not None
    assert not is_marked(conductor, id)


def test_a_wait_whose_time_is_up_says_how_it_stands(conductor: Conductor) -> None:
    id = conductor.invoke(gated, {"gate": "none"})
    for seconds in (0, 0.05):
        with pytest.raises(TimeoutError, match=f"{id} is pending after {seconds:g} s"):
            conductor.wait(id, timeout=seconds)


def test_waiting_for_what_is_not_there_is_an_error_at_once(conductor: Conductor) -> None:
    for look in (conductor.wait, lambda wanted: list(conductor.watch(wanted))):
        with pytest.raises(ExecutionNotFound):
            look(uuid4())
    assert listeners(conductor) == []


@pytest.mark.usefixtures("never_looks")
def test_a_cancel_ends_a_wait(
    conductor: Conductor, pool: ThreadPoolExecutor, eventually: Any
) -> None:
    id = conductor.invoke(gated, {"gate": "none"})
    waits = pool.submit(conductor.wait, id, timeout=60)
    eventually(lambda: conductor.ends._lookout and conductor.ends._lookout._is_proven)
    conductor.cancel(id, "no longer")
    with pytest.raises(ExecutionCancelled, match="no longer"):
        waits.result(30)


@pytest.mark.usefixtures("never_looks")
def test_every_end_is_noticed_however_short_the_work(conductor: Conductor, start: Any) -> None:
    """The end comes before, while and after the row is marked: none is missed, none waits."""

    @task
    def short(n: int) -> int:
        time.sleep(n % 7 * 0.0007)
        return n

    start(short)
    for n in range(150):
        assert conductor.wait(conductor.invoke(short, {"n": n}), short, timeout=30) == n


def test_without_notifications_it_looks_by_itself(
    conductor: Conductor, start: Any, monkeypatch: pytest.MonkeyPatch, heard: Any, gate: str,
    pool: ThreadPoolExecutor, eventually: Any,
) -> None:  # fmt: skip
    """As behind a pooler: it can LISTEN, but hears nothing."""
    monkeypatch.setattr(waiting.Listening, "receive", _deaf(waiting.Listening.receive))
    monkeypatch.setattr(waiting, "PROOF_WITHIN", 0.05)
    start(gated)
    id = conductor.invoke(gated, {"gate": gate})
    waits = pool.submit(conductor.wait, id, gated, timeout=60)
    eventually(lambda: is_marked(conductor, id))
    eventually(lambda: not listeners(conductor))
    gates[gate].set()
    assert waits.result(30) == gate
    assert heard.count("service.died") == 0


def _deaf(receive: Any) -> Any:
    def hear_nothing(self: Any, seconds: float) -> list[str]:
        heard: list[str] = receive(self, seconds)
        return [] if threading.current_thread().name == "waiting" else heard

    return hear_nothing


@pytest.mark.usefixtures("never_looks")
def test_a_lost_connection_is_replaced_and_the_end_in_between_is_found(
    conductor: Conductor, start: Any, gate: str, pool: ThreadPoolExecutor, eventually: Any
) -> None:
    start(gated)
    other = uuid4().hex
    gates[other] = threading.Event()
    ids = [conductor.invoke(gated, {"gate": each}) for each in (gate, other)]
    waits = [pool.submit(conductor.wait, id, gated, timeout=60) for id in ids]
    eventually(lambda: conductor.ends._lookout and conductor.ends._lookout._is_proven)
    (first,) = listeners(conductor)
    with psycopg.connect(conductor.database.url, autocommit=True) as conn:
        conn.execute("select pg_terminate_backend(%s)", [first])
        gates[gate].set()
    assert waits[0].result(30) == gate
    eventually(lambda: set(listeners(conductor)) - {first})
    eventually(lambda: conductor.ends._lookout and conductor.ends._lookout._is_proven)
    gates.pop(other).set()
    assert waits[1].result(30) == other


def test_a_role_that_may_not_mark_waits_all_the_same(
    conductor: Conductor, database_url: str, start: Any, gate: str, pool: ThreadPoolExecutor,
    eventually: Any,
) -> None:  # fmt: skip
    role = f"reader_{uuid4().hex[:8]}"
    with psycopg.connect(database_url, autocommit=True) as conn:
        conn.execute(f'create role "{role}"'.encode())
        conn.execute(f'grant usage on schema conductor to "{role}"'.encode())
        conn.execute(f'grant select on all tables in schema conductor to "{role}"'.encode())
        try:
            start(gated)
            id = conductor.invoke(gated, {"gate": gate})
            joint = "&" if "?" in database_url else "?"
            url = f"{database_url}{joint}options=-c%20role%3D{role}"
            with Conductor.create(url) as reader:
                waits = pool.submit(reader.wait, id, gated, timeout=60)
                eventually(lambda: reader.ends._lookout and reader.ends._lookout._listen_at > 0)
                gates[gate].set()
                assert waits.result(30) == gate
        finally:
            conn.execute(f'drop owned by "{role}"'.encode())
            conn.execute(f'drop role "{role}"'.encode())


def test_thread_and_connection_go_when_nobody_waits_and_come_back(
    conductor: Conductor, start: Any, monkeypatch: pytest.MonkeyPatch, eventually: Any
) -> None:
    monkeypatch.setattr(waiting, "LINGER", 0.05)

    @task
    def add(n: int) -> int:
        return n + 1

    start(add)
    for n in range(3):
        assert conductor.wait(conductor.invoke(add, {"n": n}), add, timeout=30) == n + 1
        lookout = conductor.ends._lookout
        assert lookout is None or eventually(lambda each=lookout: not each.is_alive)
        assert listeners(conductor) == []


def test_closing_ends_the_thread_and_the_client_may_be_used_again(
    conductor: Conductor, start: Any
) -> None:
    @task
    def slow() -> int:
        time.sleep(0.05)
        return 1

    start(slow)
    for _ in range(2):
        assert conductor.wait(conductor.invoke(slow), slow, timeout=30) == 1
        conductor.close()
        assert "waiting" not in {thread.name for thread in threading.enumerate()}


def test_a_fork_waits_with_a_thread_and_a_connection_of_its_own(
    conductor: Conductor, start: Any, gate: str, pool: ThreadPoolExecutor, eventually: Any
) -> None:
    start(gated)
    id = conductor.invoke(gated, {"gate": gate})
    waits = pool.submit(conductor.wait, id, gated, timeout=60)
    (mine,) = eventually(lambda: listeners(conductor))
    child = os.fork()
    if child == 0:  # no assertion may escape here
        code = 1
        try:
            code = 0 if conductor.wait(id, gated, timeout=60) == gate else 2
        finally:
            os._exit(code)
    eventually(lambda: set(listeners(conductor)) - {mine})
    gates[gate].set()
    assert waits.result(30) == gate
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_those_who_wait_hear_of_an_outage_that_lasts(
    conductor: Conductor, monkeypatch: pytest.MonkeyPatch, pool: ThreadPoolExecutor,
    eventually: Any, heard: Any,
) -> None:  # fmt: skip
    from conductor_cli.errors import DatabaseUnavailable

    monkeypatch.setattr(waiting, "OUTAGE", 0.1)
    monkeypatch.setattr(waiting, "SAFETY_LOOK", 0.05)
    id = conductor.invoke(gated, {"gate": "none"})
    waits = pool.submit(conductor.wait, id, timeout=60)
    eventually(lambda: is_marked(conductor, id))
    refusing = DatabaseUnavailable("Postgres is away")

    def refuse(*_: Any) -> Any:
        raise refusing

    monkeypatch.setattr(conductor.database, "retrying", refuse)
    with pytest.raises(DatabaseUnavailable, match="away"):
        waits.result(30)
    monkeypatch.undo()
    assert heard.count("service.died") == 0
    with pytest.raises(TimeoutError):
        conductor.wait(id, timeout=0.1)


def test_a_watch_shows_each_change_until_the_end(
    conductor: Conductor, start: Any, gate: str
) -> None:
    @task(max_attempts=2, retry=[0.1])
    def twice(ctx: Context, gate: str) -> str:
        if ctx.runs == 1:
            gates[gate].wait(60)
            raise ValueError("not yet")
        return "done"

    id = conductor.invoke(twice, {"gate": gate})
    seen: list[Execution] = []
    for execution in conductor.watch(id):
        seen.append(execution)
        if len(seen) == 1:
            start(twice)
        if execution.state is State.RUNNING:
            gates[gate].set()
    states = [each.state for each in seen]
    assert states[:2] == [State.PENDING, State.RUNNING]
    assert states[-1] is State.COMPLETED
    assert seen[-1].result == "done"
    assert all(a != b for a, b in pairwise(seen))
    assert list(conductor.watch(id)) == [seen[-1]]


def test_watching_and_waiting_inside_a_task_are_refused(conductor: Conductor, start: Any) -> None:
    @task(max_attempts=1)
    def nosy(ctx: Context, way: str) -> None:
        if way == "wait":
            ctx.conductor.wait(ctx.execution_id)
        next(ctx.conductor.watch(ctx.execution_id))

    start(nosy)
    for way in ("wait", "watch"):
        with pytest.raises(ExecutionFailed, match=rf"{way}\(\) inside a task"):
            conductor.wait(conductor.invoke(nosy, {"way": way}), timeout=30)
    assert issubclass(ExecutionFailed, ConductorError)


def test_the_end_of_one_that_remembers_steps_is_told_too(
    conductor: Conductor, start: Any, heard: Any
) -> None:
    @task
    def stepping(ctx: Context, n: int) -> int:
        time.sleep(n % 5 * 0.001)
        return ctx.step("double", lambda: n * 2)

    start(stepping)
    for n in range(20):
        assert conductor.wait(conductor.invoke(stepping, {"n": n}), stepping, timeout=30) == n * 2
    assert heard.count("executions.stale") == 0
