"""The rights that `conductor migrate --sql` prints are enough, and no more than is said."""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING, Any, Final
from uuid import uuid4

import psycopg
import pytest
from psycopg import sql

from conductor_cli import migrate
from conductor_cli.database import Database
from conductor_cli.models import HandedBack, Retrying, ScheduleSpec
from conductor_cli.store import claims, definitions, executions, fleet, reports
from conductor_cli.store.claims import Requeued
from tests.support.statements import all_statements, explain
from tests.support.store import (
    BROKEN,
    DAY,
    DONE,
    STOPPED,
    add,
    add_many,
    beat,
    claim,
    end,
    exchange,
    finished,
    join,
    live,
    register,
    running,
    scalar,
    state,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager

    from conductor_cli.database import Connection
    from tests.support.clock import Clock

ROLES: Final = ("worker", "producer", "viewer")
STORE: Final = {n: s for n, s in all_statements().items() if n.startswith("store.")}
# What a client asks: to invoke, to wait, to cancel, to look.
CLIENT: Final = (
    "ENQUEUE", "CANCEL", "MARK", "NOT_ENDED", "GET", "LIST", "BY_PREFIX", "FIND_TASK", "TASK_NAMES"
)  # fmt: skip


@pytest.fixture(params=["as usual", "without execute for everybody"])
def roles(conn: Connection, request: pytest.FixtureRequest) -> Iterator[dict[str, str]]:
    """Roles with the printed rights, by what they are for; also where new functions are not
    everybody's to call, as hardened databases have it."""
    if request.param != "as usual":
        conn.execute("revoke execute on all functions in schema conductor from public")
    mark = os.urandom(4).hex()
    names = {role: f"{role}_{mark}" for role in ROLES}
    grants = re.sub(r"^-- ?", "", migrate.GRANTS, flags=re.MULTILINE)
    grants = grants[grants.index("\ngrant ") :]
    for name in names.values():
        conn.execute(sql.SQL("create role {}").format(sql.Identifier(name)))
    conn.execute(re.sub(r"\b(worker|producer|viewer)\b", rf"\1_{mark}", grants).encode())
    yield names
    conn.execute("reset role")
    for name in names.values():
        conn.execute(sql.SQL("drop owned by {0}; drop role {0}").format(sql.Identifier(name)))


@pytest.fixture
def become(conn: Connection, roles: dict[str, str]) -> Callable[[str], None]:
    """Go on as one of them."""

    def switch(role: str) -> None:
        conn.execute(sql.SQL("set role {}").format(sql.Identifier(roles[role])))

    return switch


def _refused() -> AbstractContextManager[Any]:
    return pytest.raises(psycopg.errors.InsufficientPrivilege)


def _may(conn: Connection, name: str) -> bool:
    try:
        with conn.transaction(force_rollback=True):
            explain(conn, STORE[name], analyze=False)
    except psycopg.errors.InsufficientPrivilege:
        return False
    return True


@pytest.mark.parametrize(
    ("role", "expected"),
    [
        ("worker", set(STORE)),
        ("producer", {n for n in STORE if n.endswith(tuple(f".{c}" for c in CLIENT))}),
        ("viewer", {n for n in STORE if "reports" in n}),
    ],
)
def test_each_role_may_run_its_statements(
    conn: Connection, become: Callable[[str], None], role: str, expected: set[str]
) -> None:
    become(role)
    assert {name for name in expected if not _may(conn, name)} == set()


def test_a_worker_needs_no_rights_on_the_schema_itself(
    conn: Connection, become: Callable[[str], None], clock: Clock
) -> None:
    become("worker")
    with _refused():
        conn.execute("create table conductor.mine ()")
    register(conn, priority=1)
    mine, dead = join(conn, timeout=100 * DAY), join(conn)
    assert beat(conn, mine, stands=True).term == 1
    add_many(conn, 6)
    first, second, third, fourth, *_ = claim(conn, mine)
    executions.cancel(conn, second.id, None)
    done = exchange(conn, [end(first), end(second), end(third, BROKEN, None)], owner=mine)
    assert (done.missing, done.cancelled) == ([], [second.id])
    claims.requeue(conn, [Requeued(fourth.id, fourth.token, HandedBack(0))])
    assert claims.reconcile(conn, mine, "q", list) == 2
    again = claim(conn, mine)
    claims.requeue(conn, [Requeued(c.id, c.token, Retrying(5, None, counts=True)) for c in again])
    executions.hasten(conn, ["q"], ["t"])
    add(conn, delay=60)
    conn.execute("update conductor.tasks set max_crashes = 0")
    claim(conn, dead, limit=1)
    clock.advance(61)
    assert [r.crashed for r in fleet.rescue(conn)] == [1]
    assert claims.promote(conn, "q", 10).promoted == 1
    assert executions.retry(conn, third.id)
    assert executions.cancel(conn, third.id, None)
    schedule = ScheduleSpec("t", "s", "q", "* * * * *", "UTC", "all", "{}")
    now = clock.stop()
    assert definitions.save_schedules(conn, [(schedule, now)], ["t"]) == 1
    assert len(definitions.tick(conn, "t", "s", expected=now, ticks=[now], next_at=None)) == 1
    clock.advance(3 * DAY)
    state_of = running(conn, mine, rank=-9)
    assert exchange(conn, [end(state_of, keep=100 * DAY)], owner=mine).missing == []
    assert exchange(conn, [end(running(conn, mine, rank=-9), keep=DAY)], owner=mine).missing == []
    assert reports.get(conn, state_of.id) is not None
    clock.advance(200 * DAY)
    assert fleet.prune(conn, 10) >= 1
    assert fleet.resign(conn, mine, 1)
    fleet.leave(conn, mine)


def test_a_worker_finds_the_schema_as_it_should_be(
    database_url: str, roles: dict[str, str]
) -> None:
    worker = Database(f"{database_url}&options=-c%20role%3D{roles['worker']}")
    try:
        migrate.check(worker)
        assert migrate.upgrade(worker) == []
    finally:
        worker.close()


def test_a_producer_invokes_and_cancels(conn: Connection, become: Callable[[str], None]) -> None:
    register(conn)
    claimed, done = running(conn), finished(conn, DONE)
    become("producer")
    made = add(conn, dedupe_key="k")
    assert scalar(conn, "select conductor.invoke('t', dedupe_key => 'k')") == made
    assert scalar(conn, "select conductor.invoke('t')") is not None
    assert executions.cancel(conn, made, "why")
    assert executions.cancel(conn, claimed.id, "why")
    assert not executions.cancel(conn, done, "why")
    assert state(conn, made) == "cancelled"
    assert definitions.find_task(conn, "t") is not None
    assert migrate.pending(conn) == []
    for forbidden in (
        "update conductor.tasks set priority = 1", "delete from conductor.history",
        "update conductor.leadership set leader = null", "truncate conductor.history",
        "delete from conductor.migrations", "create table conductor.mine ()",
    ):  # fmt: skip
        with _refused():
            conn.execute(forbidden.encode())


def test_a_viewer_reads_and_changes_nothing(
    conn: Connection, become: Callable[[str], None]
) -> None:
    register(conn)
    join(conn)
    made, done = add(conn), finished(conn, STOPPED, rank=-1)
    become("viewer")
    assert len(reports.list_executions(conn)) == 2
    assert [q.queue for q in reports.queues(conn)] == ["q"]
    assert len(reports.servers(conn)) == 1
    assert migrate.pending(conn) == []
    assert live(conn, made) is not None
    for change in (
        lambda: add(conn),
        lambda: executions.cancel(conn, made, None),
        lambda: executions.retry(conn, done),
        lambda: claim(conn),
        lambda: fleet.leave(conn, uuid4()),
        lambda: fleet.prune(conn, 1),
        lambda: scalar(conn, "select conductor.invoke('t')"),
    ):
        with _refused():
            change()


def test_a_stranger_may_not_even_look(conn: Connection) -> None:
    name = f"stranger_{os.urandom(4).hex()}"
    conn.execute(f"create role {name}".encode())
    try:
        conn.execute(f"set role {name}".encode())
        with _refused():
            conn.execute("select * from conductor.executions")
        with _refused():
            conn.execute("select conductor.archive('{}', 'k', null)")
    finally:
        conn.execute("reset role")
        conn.execute(f"drop role {name}".encode())
