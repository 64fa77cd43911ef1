"""What a task does to the session of the connection it is lent ends with the loan, and the end of
its transaction is the runner's."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, Any

import psycopg
import pytest
from psycopg.rows import dict_row
from psycopg_pool import ConnectionPool

from conductor_cli import (
    AsyncContext,
    Conductor,
    Context,
    ExecutionCancelled,
    ExecutionFailed,
    Orchestrator,
    Step,
    task,
)
from conductor_cli.attempt import Attempt
from conductor_cli.database import Database
from conductor_cli.sections import WorkerConfig
from conductor_cli.task_transaction import TaskTransaction
from tests.support.pooler import KINDS, pooled

if TYPE_CHECKING:
    from collections.abc import Iterator

WAYS = ["own", "given", *(f"behind {kind}" for kind in KINDS)]


@pytest.fixture(params=WAYS)
def lender(database_url: str, request: pytest.FixtureRequest) -> Iterator[Conductor]:
    """A client whose connections are its own, of a given pool, or behind a pooler."""
    way = request.param
    if way == "own":
        with Conductor.create(database_url) as made:
            yield made
    elif way == "given":
        options = {"row_factory": dict_row}
        with (
            ConnectionPool(database_url, kwargs=options, min_size=1, max_size=3, open=True) as pool,
            Conductor.create(pool=pool) as made,
        ):
            yield made
    else:
        if "host=" not in database_url:
            pytest.skip("needs a Postgres of the test session's own")
        with (
            pooled(database_url, way.removeprefix("behind ")) as url,
            Conductor.create(url) as made,
        ):
            yield made


@pytest.fixture
def run(lender: Conductor, conductor: Conductor) -> Iterator[Any]:
    """Runs tasks to their end on a server of that client."""

    def work(*tasks: Any) -> None:
        quick = WorkerConfig(poll_interval=0.05)
        server = Orchestrator.create(conductor=lender, tasks=tasks, default_worker=quick)
        server.start(signals=False)
        made.append(server)

    made: list[Orchestrator] = []
    yield work
    for server in made:
        server.stop()


@pytest.fixture(autouse=True)
def _tables(database_url: str) -> None:
    with psycopg.connect(database_url, autocommit=True) as conn:
        conn.execute("create table written (who text)")
        name = conn.info.dbname
        conn.execute(f'alter database "{name}" set app.tenant = nobody')
        conn.execute(f"create sequence counted; create role tenant_{name}")
        conn.execute(f"grant tenant_{name} to current_user")


def written(conductor: Conductor) -> list[str]:
    with conductor.database.connection() as conn:
        return sorted(who for (who,) in conn.execute("select who from written").fetchall())


LEAVINGS = [
    "set app.tenant = 'acme'",
    "select set_config('app.tenant', 'acme', false)",
    "set search_path = nowhere",
    "set default_transaction_read_only = on",
    "set datestyle = 'German'; set timezone = 'Asia/Tokyo'",
    "create temp table mine (n int)",
    "create temp table live (n int) on commit drop",
    "select pg_advisory_lock(7)",
    "select pg_advisory_lock(7), pg_advisory_lock(7)",
    "listen something",
    "prepare mine as select 1",
    "declare mine cursor with hold for select 1",
    "set role tenant",
    "set session authorization tenant",
    "select nextval('counted')",
    "deallocate all",
]
REMAINS = """
    select current_setting('app.tenant') || ' ' || current_setting('search_path') || ' '
        || current_setting('DateStyle') || ' ' || current_setting('TimeZone') || ' '
        || current_setting('transaction_read_only') || ' ' || (current_user = session_user) || ' '
        || current_user || ' '
        || (select count(*) from pg_listening_channels()) || ' '
        || (select count(*) from pg_prepared_statements where from_sql) || ' '
        || (select count(*) from pg_cursors where is_holdable) || ' '
        || (select count(*) from pg_locks where locktype = 'advisory') || ' '
        || (select count(*) from pg_class where relnamespace = pg_my_temp_schema()) as remains
"""


@pytest.mark.parametrize("fails", [False, True])
def test_nothing_stays_for_the_next_user(
    conductor: Conductor, lender: Conductor, run: Any, fails: bool
) -> None:
    with conductor.database.connection() as conn:
        (name,) = conn.execute("select current_database()").fetchone()
    seen: list[str] = []

    def leave(conn: Any, sql: str) -> None:
        conn.execute(sql)
        if fails:
            raise ValueError("after it")

    @task(max_attempts=1)
    def by_step(ctx: Context, sql: str) -> None:
        ctx.transact("leave", leave, sql)

    @task(max_attempts=1)
    def by_task(ctx: Context, sql: str) -> None:
        leave(ctx.transaction(), sql)

    @task(max_attempts=1)
    def look(ctx: Context) -> None:
        row = ctx.transaction().execute(REMAINS).fetchone()
        seen.append(str(row["remains"] if isinstance(row, dict) else row[0]))

    run(by_step, by_task, look)
    conductor.wait(conductor.invoke(look), timeout=20)
    for leaving in LEAVINGS:
        sql = f"{leaving}_{name}" if leaving.endswith("tenant") else leaving
        for leaver in (by_step, by_task):
            id = conductor.invoke(leaver, {"sql": sql})
            if fails:
                with pytest.raises(ExecutionFailed, match="after it"):
                    conductor.wait(id, timeout=20)
            else:
                conductor.wait(id, timeout=20)
            for _ in range(2):
                conductor.wait(conductor.invoke(look), timeout=20)
            assert seen[-2:] == [seen[0]] * 2, sql
    assert seen[0].startswith("nobody ")
    with lender.database.transaction() as conn:
        conn.execute("insert into written values ('afterwards')")


ENDS = [
    "commit",
    "rollback",
    "commit and chain",
    "rollback and chain",
    "commit; begin",
    "rollback; begin; set local statement_timeout = 0",
    "prepare transaction 'theirs'",
    "end; insert into written values ('alone')",
]


@pytest.mark.parametrize("by_step", [True, False])
@pytest.mark.parametrize("swallows", [True, False])
def test_an_end_by_sql_ends_the_execution_at_once(
    conductor: Conductor, run: Any, by_step: bool, swallows: bool, database_url: str
) -> None:
    runs = []

    def write(conn: Any, end: str) -> str:
        conn.execute("insert into written values ('first')")
        try:
            conn.execute(end)
            conn.execute("insert into written values ('second')")
        except Exception:
            if not swallows:
                raise
        return "done"

    @task(max_attempts=3, retry=[0])
    def work(ctx: Context, end: str) -> str:
        runs.append(end)
        if by_step:
            return ctx.transact(Step("write", max_attempts=3, retry=[0]), write, end)
        return write(ctx.transaction(), end)

    run(work)
    for end in ENDS:
        with pytest.raises(ExecutionFailed, match="was ended by SQL"):
            conductor.wait(conductor.invoke(work, {"end": end}), timeout=20)
        assert runs.count(end) == 1
        assert written(conductor).count("first") <= 1, end
        assert "second" not in written(conductor)
        with psycopg.connect(database_url, autocommit=True) as conn:
            for (gid,) in conn.execute("select gid from pg_prepared_xacts").fetchall():
                conn.execute(f"rollback prepared '{gid}'")
            conn.execute("delete from written")


@pytest.mark.parametrize("lender", ["own", "given"], indirect=True)
def test_parts_may_be_undone_by_savepoints(conductor: Conductor, run: Any) -> None:
    def write(conn: Any) -> int:
        with conn.transaction(force_rollback=True):
            conn.execute("insert into written values ('undone')")
        conn.execute("savepoint mine")
        conn.execute("insert into written values ('undone, too')")
        conn.execute("rollback to mine")
        with pytest.raises(psycopg.errors.DivisionByZero), conn.transaction():
            conn.execute("select 1 / 0")
        conn.execute("insert into written values ('kept')")
        return 1

    @task(max_attempts=1)
    def work(ctx: Context) -> int:
        return ctx.transact("write", write) + write(ctx.transaction())

    run(work)
    assert conductor.wait(conductor.invoke(work), timeout=20) == 2
    assert written(conductor) == ["kept", "kept"]


def test_a_connection_that_is_kept_does_nothing_any_more(
    conductor: Conductor, run: Any, eventually: Any
) -> None:
    kept: list[Any] = []

    def write(conn: Any) -> None:
        kept.extend([conn, conn.cursor()])
        conn.execute("insert into written values ('first')")

    @task(max_attempts=1)
    def work(ctx: Context) -> None:
        ctx.transact("write", write)
        write(ctx.transaction())

    run(work)
    conductor.wait(conductor.invoke(work), timeout=20)
    assert len(kept) == 4
    for each in kept:
        with pytest.raises(Exception, match=r"lent to a step or task|connection is closed"):
            each.execute("insert into written values ('late')")
    for conn in (kept[0], kept[2]):
        assert conn.closed
        with pytest.raises(Exception, match="lent to a step"):
            conn.execute("insert into written values ('late')")
        with pytest.raises(Exception, match=r"lent to|closed"), conn.transaction():
            pytest.fail("it has begun")
    assert written(conductor) == ["first", "first"]


@pytest.mark.parametrize("lender", ["own", "given"], indirect=True)
def test_a_connection_that_is_kept_fails_the_run_that_uses_it(
    conductor: Conductor, run: Any
) -> None:
    @task(max_attempts=1)
    def work(ctx: Context) -> None:
        kept = ctx.transact("keep", conns.append)
        assert kept is None
        conns[0].execute("insert into written values ('late')")

    conns: list[Any] = []
    run(work)
    with pytest.raises(ExecutionFailed, match="lent to a step"):
        conductor.wait(conductor.invoke(work), timeout=20)
    assert written(conductor) == []


def test_what_is_set_on_the_object_stays_with_the_task(
    conductor: Conductor, lender: Conductor, run: Any
) -> None:
    def spoil(conn: Any) -> None:
        conn.row_factory = dict_row
        conn.prepare_threshold = 0
        conn.adapters.register_dumper(str, psycopg.adapt.Dumper)
        conn.add_notice_handler(print)
        conn.execute("select 1")

    @task(max_attempts=1)
    def work(ctx: Context) -> None:
        ctx.transact("spoil", spoil)

    run(work)
    for _ in range(3):
        conductor.wait(conductor.invoke(work), timeout=20)
        assert lender.get(lender.invoke("work", queue="other")) is not None


@pytest.mark.parametrize("lender", ["own", "given"], indirect=True)
def test_a_thread_of_the_task_is_waited_for_and_writes_no_more(
    conductor: Conductor, run: Any
) -> None:
    told: list[str] = []

    def write(conn: Any) -> None:
        def go_on() -> None:
            try:
                for _ in range(1000):
                    conn.execute("insert into written select 'thread' from pg_sleep(0.02)")
            except Exception as error:
                told.append(str(error))

        threads.append(threading.Thread(target=go_on))
        threads[-1].start()
        time.sleep(0.2)

    threads: list[threading.Thread] = []

    @task(max_attempts=1)
    def work(ctx: Context) -> None:
        ctx.transact("write", write)
        threads[-1].join(20)

    run(work)
    with pytest.raises(ExecutionFailed, match="lent to a step"):
        conductor.wait(conductor.invoke(work), timeout=30)
    assert len(told) == 1
    assert "lent to a step" in told[0]


# ── Limits ───────────────────────────────────────────────────────────────────────────────


def limits(conn: Any) -> dict[str, str]:
    names = ["statement_timeout", "lock_timeout", "idle_in_transaction_session_timeout"]
    found = {}
    for name in names:
        row = conn.execute("select current_setting(%s) as value", [name]).fetchone()
        found[name] = row["value"] if isinstance(row, dict) else row[0]
    return found


def test_our_limits_are_not_the_tasks(conductor: Conductor, run: Any) -> None:
    @task(max_attempts=1)
    def work(ctx: Context) -> list[dict[str, str]]:
        return [ctx.transact("a", limits), limits(ctx.transaction())]

    run(work)
    for found in conductor.wait(conductor.invoke(work), timeout=20):
        assert set(found.values()) == {"0"}


@pytest.mark.parametrize("lender", ["own", "given"], indirect=True)
def test_a_long_statement_and_a_long_thought_are_the_tasks_own_affair(
    conductor: Conductor, run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As if a statement might take 0.5 s, and nobody be silent for longer than 1 s."""
    monkeypatch.setattr("conductor_cli.database.STATEMENT_TIMEOUT", 0.5)
    monkeypatch.setattr("conductor_cli.database.GRACE", 0.5)

    def slow(conn: Any) -> int:
        conn.execute("select pg_sleep(1.6)")
        time.sleep(1)
        return 1

    @task(max_attempts=1)
    def work(ctx: Context) -> int:
        return ctx.transact("slow", slow) + slow(ctx.transaction())

    run(work)
    assert conductor.wait(conductor.invoke(work), timeout=30) == 2


SLEEPERS = """
    select count(*) from pg_stat_activity
    where datname = current_database() and state = 'active' and query ilike '%pg_sleep(60)%'
      and pid <> pg_backend_pid()
"""


def sleepers(conductor: Conductor) -> int:
    with conductor.database.connection() as conn:
        (count,) = conn.execute(SLEEPERS).fetchone()
    return int(count)


@pytest.mark.parametrize("by_step", [True, False])
@pytest.mark.parametrize("lender", [WAYS[0], WAYS[1], WAYS[-1]], indirect=True)
@pytest.mark.parametrize("way", ["cancel", "timeout", "timeout of an async task"])
def test_a_cancel_or_timeout_ends_what_runs(
    conductor: Conductor, run: Any, eventually: Any, by_step: bool, way: str
) -> None:
    def sleep(conn: Any) -> None:
        conn.execute("insert into written values ('undone')")
        conn.execute("select pg_sleep(60)")

    timeout = None if way == "cancel" else 1.5

    @task(max_attempts=1, timeout=timeout)
    def work(ctx: Context) -> None:
        if by_step:
            ctx.transact("sleep", sleep)
        else:
            sleep(ctx.transaction())

    @task(max_attempts=1, timeout=timeout)
    async def awaited(ctx: AsyncContext) -> None:
        if by_step:
            await ctx.transact("sleep", sleep)
        else:
            await ctx.transact("other", sleep)

    run(work, awaited)
    id = conductor.invoke(awaited if "async" in way else work)
    eventually(lambda: sleepers(conductor) == 1)
    if way == "cancel":
        began = time.monotonic()
        assert conductor.cancel(id)
        with pytest.raises(ExecutionCancelled):
            conductor.wait(id, timeout=20)
        assert time.monotonic() - began < 8
    else:
        with pytest.raises(ExecutionFailed, match=r"TimeoutError|TaskTimeout"):
            conductor.wait(id, timeout=20)
    eventually(lambda: sleepers(conductor) == 0, timeout=5)
    assert written(conductor) == []


def test_the_session_is_as_all_of_ours_after_a_loan(database: Database) -> None:
    settings = "select name, setting from pg_settings where name <> 'application_name'"
    with Conductor(database) as conductor, database.connection() as conn:
        before = dict(conn.execute(settings).fetchall())
        del conductor
    made: Any = Attempt(None)  # type: ignore[arg-type]
    for end in ("commit", "undo"):
        loan = TaskTransaction(database, made)
        loan.connection.execute("set app.tenant = 'acme'; set work_mem = '1MB'")
        if end == "commit":
            loan.ours()
        getattr(loan, end)()
        with database.connection() as conn:
            assert dict(conn.execute(settings).fetchall()) == before
