"""Behind a pooler in transaction mode: everything works, by polling, and nothing leaks."""

from __future__ import annotations

import itertools
import subprocess
import sys
import textwrap
import threading
import time
from collections import Counter
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import psycopg
import pytest
from psycopg_pool import ConnectionPool

from conductor_cli import (
    Conductor,
    Context,
    DatabaseUnavailable,
    ExecutionCancelled,
    State,
    cron,
    migrate,
    pooler,
    task,
)
from conductor_cli.config import Config
from conductor_cli.database import Database, Listening, Statement
from conductor_cli.sections import Coordinator, WorkerConfig
from conductor_cli.store import definitions
from tests.support.pooler import KINDS, pooled

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.services.conftest import Heard
    from tests.support.postgres import Server

SETTING = Statement(row=str, sql="select current_setting(%(name)s)")
LIMITS = {
    "statement_timeout": "10s",
    "lock_timeout": "10s",
    "idle_in_transaction_session_timeout": "1min",
    "transaction_isolation": "read committed",
}
STATE = """
    select current_setting('statement_timeout') || ' '
        || (select count(*) from pg_prepared_statements) || ' '
        || (select count(*) from pg_listening_channels())
"""
CLEAN = "0 0 0"

release = threading.Event()


@task
def double(number: int) -> int:
    return 2 * number


@task(retry=[0.05])
def second_try(ctx: Context) -> int:
    if ctx.runs == 1:
        raise ValueError("once")
    return ctx.runs


@task
def stay(ctx: Context) -> bool:
    return ctx.signal.wait(30)


@task(triggers=[cron("* * * * * *", name="each_second")])
def second(ctx: Context) -> str:
    assert ctx.event is not None
    assert ctx.event.scheduled_for is not None
    return ctx.event.scheduled_for.isoformat()


@pytest.fixture
def direct_url(postgres: Server) -> Iterator[str]:
    with postgres.migrated() as url:
        if "host=" not in url:
            pytest.skip("needs a Postgres of the test session's own")
        yield url


@pytest.fixture(params=KINDS)
def database_url(direct_url: str, request: pytest.FixtureRequest) -> Iterator[str]:
    """The database behind a pooler, for all fixtures that build on it."""
    with pooled(direct_url, request.param) as url:
        yield url


def sessions(url: str) -> set[str]:
    """What the pooler's server sessions hold, asked by somebody who sets nothing."""
    with psycopg.connect(url, autocommit=True, prepare_threshold=None) as conn:
        rows = [conn.execute(STATE).fetchone() for _ in range(12)]
    return {str(row[0]) for row in rows if row is not None}


# ── Connections ──────────────────────────────────────────────────────────────────────────


def test_a_pooler_is_found_out(database: Database, direct_url: str) -> None:
    with database.connect("test"):
        assert database.is_behind_pooler
    direct = Database(direct_url)
    with direct.connect("test") as conn:
        assert not direct.is_behind_pooler
        assert SETTING.only(conn, name="statement_timeout") == "10s"


def test_the_pool_finds_it_out_too(database: Database) -> None:
    with database.transaction() as conn:
        assert database.is_behind_pooler
        assert SETTING.only(conn, name="statement_timeout") == "10s"
    database.close()


@pytest.mark.parametrize("name", LIMITS)
def test_every_statement_and_every_transaction_is_bounded(database: Database, name: str) -> None:
    with database.connect("test") as conn:
        assert {SETTING.only(conn, name=name) for _ in range(6)} == {LIMITS[name]}
        with conn.transaction(), conn.transaction():
            assert SETTING.only(conn, name=name) == LIMITS[name]


def test_isolation_does_not_depend_on_how_the_role_is_configured(
    database: Database, direct_url: str
) -> None:
    with psycopg.connect(direct_url, autocommit=True) as admin:
        name = admin.info.dbname
        admin.execute(f'alter database "{name}" set default_transaction_isolation = serializable')
    with database.connect("test") as conn:
        assert SETTING.only(conn, name="transaction_isolation") == "read committed"
        with conn.transaction():
            assert SETTING.only(conn, name="transaction_isolation") == "read committed"


def test_sessions_are_left_as_they_were_found(database_url: str, database: Database) -> None:
    conductor = Conductor(database)
    for number in range(20):
        conductor.invoke(double, {"number": number})
    conductor.invoke_many(double, [{"number": number} for number in range(5000)])
    with database.connect("test") as conn:
        for _ in range(20):
            definitions.find_task(conn, "double")
    assert sessions(database_url) == {CLEAN}


def test_a_failed_statement_leaves_the_connection_usable(database: Database) -> None:
    broken = Statement(row=int, sql="select 1 / %(zero)s::int")
    with database.connect("test") as conn:
        with pytest.raises(psycopg.errors.DivisionByZero):
            broken.all(conn, zero=0)
        assert broken.all(conn, zero=1) == [1]


def test_a_statement_that_takes_too_long_is_cancelled(database: Database) -> None:
    slow: Statement[float] = Statement(
        row=float, sql="select extract(epoch from now())::float8 from pg_sleep(20)"
    )
    with (
        database.connect("test", statement_timeout=0.3) as conn,
        pytest.raises(psycopg.errors.QueryCanceled),
    ):
        slow.all(conn)


def test_moments_are_in_utc(database: Database) -> None:
    now = Statement(row=datetime, sql="select '2026-07-01 12:00:00.5+02'::timestamptz")
    with database.connect("test") as conn:
        moment = now.only(conn)
    assert moment == datetime(2026, 7, 1, 10, 0, 0, 500_000, tzinfo=UTC)
    assert moment.utcoffset() == timedelta(0)


def test_nothing_is_prepared_on_a_pool_of_the_callers(database_url: str) -> None:
    pool = ConnectionPool(database_url, min_size=1, max_size=2, open=True)
    with pool, Conductor.create(pool=pool) as conductor:
        for number in range(20):
            conductor.invoke(double, {"number": number})
        assert len(conductor.list()) == 20
    assert {each.split()[1] for each in sessions(database_url)} == {"0"}


def test_nothing_is_prepared_at_once_on_a_connection_of_the_callers(
    conductor: Conductor, database_url: str
) -> None:
    with psycopg.connect(database_url) as conn:
        for number in range(3):
            conductor.invoke(double, {"number": number}, connection=conn)
    assert sessions(database_url) == {CLEAN}


def test_a_pooler_that_is_configured_is_believed(direct_url: str) -> None:
    database = Database(direct_url, behind_pooler=True)
    assert database.is_behind_pooler
    with database.connect("test") as conn:
        assert conn.execute("show statement_timeout").fetchone() == ("0",)
        assert SETTING.only(conn, name="statement_timeout") == "10s"


def test_one_that_keeps_sessions_apart_is_believed_too(database_url: str) -> None:
    database = Database(database_url, behind_pooler=False)
    with database.connect("test"):
        assert not database.is_behind_pooler


def test_nobody_listens_through_it(database: Database, database_url: str) -> None:
    with pytest.raises(DatabaseUnavailable, match="listen"):
        Listening(database, ["conductor"])
    assert sessions(database_url) == {CLEAN}


# ── The schema ───────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("kind", KINDS)
def test_several_may_upgrade_the_schema_at_once(empty_database_url: str, kind: str) -> None:
    if "host=" not in empty_database_url:
        pytest.skip("needs a Postgres of the test session's own")
    with pooled(empty_database_url, kind) as url:
        done: list[list[migrate.Migration]] = []
        threads = [
            threading.Thread(target=lambda: done.append(migrate.upgrade(Database(url))))
            for _ in range(3)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        names = sorted(each.name for part in done for each in part)
        assert names == [each.name for each in migrate.available()]
        migrate.check(Database(url))


# ── Servers ──────────────────────────────────────────────────────────────────────────────


def test_a_server_works_by_polling_and_says_so(
    conductor: Conductor, start: Any, heard: Heard, database_url: str
) -> None:
    start(double, second_try)
    assert heard.wait("pooler.found")["poll_interval"] == 1.0
    ids = conductor.invoke_many(double, [{"number": number} for number in range(500)])
    assert conductor.wait(ids[-1], timeout=20) == 998
    began = time.monotonic()
    assert conductor.wait(conductor.invoke(double, {"number": 4}), timeout=20) == 8
    assert time.monotonic() - began < 5.0  # a second, on a machine that has one to spare
    assert conductor.wait(conductor.invoke(second_try), timeout=20) == 2
    later = conductor.invoke(double, {"number": 5}, delay=0.5)
    assert conductor.wait(later, timeout=20) == 10
    assert heard.count("listener.lost") == heard.count("service.died") == 0
    assert sessions(database_url) == {CLEAN}


def test_a_running_execution_is_cancelled(
    conductor: Conductor, start: Any, eventually: Any
) -> None:
    start(stay)
    id = conductor.invoke(stay)
    eventually(lambda: conductor.get(id).state is State.RUNNING)
    assert conductor.cancel(id)
    with pytest.raises(ExecutionCancelled):
        conductor.wait(id, timeout=20)


def test_each_tick_runs_once_when_the_leader_leaves(
    conductor: Conductor, start: Any, eventually: Any
) -> None:
    servers = [start(second) for _ in range(2)]
    (first,) = eventually(lambda: [s for s in servers if s.info.is_leader])
    (other,) = [s for s in servers if s is not first]

    def ticks() -> list[str]:
        return [e.result for e in conductor.list(task=second, state="completed", limit=1000)]

    eventually(lambda: len(ticks()) >= 2, timeout=30)
    first.stop()
    eventually(lambda: other.info.is_leader)
    before = len(ticks())
    eventually(lambda: len(ticks()) >= before + 2, timeout=30)
    assert set(Counter(ticks()).values()) == {1}


def test_a_schedule_made_elsewhere_is_found(
    conductor: Conductor, start: Any, eventually: Any
) -> None:
    server = start(double)
    eventually(lambda: server.info.is_leader)
    conductor.schedule(double, "late", "* * * * * *", {"number": 1})
    eventually(lambda: conductor.list(task="double", state="completed"))


def test_a_server_goes_on_when_the_poolers_sessions_are_cut(
    conductor: Conductor, start: Any, direct_url: str
) -> None:
    start(double)
    assert conductor.wait(conductor.invoke(double, {"number": 1}), timeout=20) == 2
    with psycopg.connect(direct_url, autocommit=True) as admin:
        admin.execute(
            """
            select pg_terminate_backend(pid) from pg_stat_activity
            where datname = current_database() and pid <> pg_backend_pid()
            """
        )
    assert conductor.wait(conductor.invoke(double, {"number": 2}), timeout=20) == 4


VICTIM = """
import sys, time
from conductor_cli import Conductor, Orchestrator, task
from conductor_cli.config import Config
from conductor_cli.sections import Coordinator

@task
def double(number: int) -> int:
    time.sleep(60)

config = Config(coordinator=Coordinator(heartbeat_interval=0.3, heartbeat_timeout=1.2))
Orchestrator.create(
    conductor=Conductor.create(sys.argv[1]), tasks=[double], config=config
).run()
"""


def test_the_work_of_a_killed_server_runs_elsewhere(
    conductor: Conductor, start: Any, eventually: Any, database_url: str
) -> None:
    words = [sys.executable, "-c", textwrap.dedent(VICTIM), database_url]
    with subprocess.Popen(words, stderr=subprocess.DEVNULL) as victim:
        id = conductor.invoke("double", {"number": 21}, queue="default")
        try:
            eventually(lambda: conductor.get(id).state is State.RUNNING, timeout=30)
        finally:
            victim.kill()
    start(double)
    assert conductor.wait(id, timeout=20) == 42
    found = conductor.get(id)
    assert found is not None
    assert (found.runs, found.crashes) == (2, 1)


def test_drain_works_until_nothing_is_left(conductor: Conductor, make: Any) -> None:
    conductor.invoke_many(double, [{"number": number} for number in range(50)])
    conductor.invoke(second_try)
    report = make(double, second_try).drain(timeout=30, wait_until_empty=True)
    assert (report.completed, report.failed, report.timed_out) == (51, 0, False)


def test_a_stop_ends_what_runs(conductor: Conductor, start: Any, eventually: Any) -> None:
    hasty = Config(
        coordinator=Coordinator(heartbeat_interval=0.3, heartbeat_timeout=1.2, shutdown_timeout=6.0)
    )
    server = start(stay, config=hasty, default_worker=WorkerConfig(poll_interval=0.1))
    id = conductor.invoke(stay)
    eventually(lambda: conductor.get(id).state is State.RUNNING)
    server.stop()
    found = conductor.get(id)
    assert found is not None
    assert found.state is not State.RUNNING


@pytest.mark.parametrize("sessions", [1, 2, 3, 4])
def test_a_pooler_that_goes_around_is_seen_to_share(
    monkeypatch: pytest.MonkeyPatch, sessions: int
) -> None:
    around = itertools.cycle(range(sessions))
    monkeypatch.setattr(pooler, "_session_of", lambda _: next(around))
    one: Any = object()
    other: Any = object()
    assert pooler.shares_sessions(one, other)
