"""`conductor doctor`: each finding, provoked; and how the checks are run."""

from __future__ import annotations

import json
import os
import threading
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final
from uuid import uuid4

import psycopg
import pytest
from psycopg import sql

from conductor_cli import diagnosis, migrate, task
from conductor_cli.catalog import TaskSet
from conductor_cli.config import Config
from conductor_cli.database import Database
from conductor_cli.diagnosis import Check, Finding, Level, Patient, examine, look_at
from conductor_cli.diagnosis import postgres as server_checks
from conductor_cli.diagnosis import schema as schema_checks
from conductor_cli.diagnosis.examination import CHECKS
from conductor_cli.errors import SchemaTooNew
from conductor_cli.sections import Database as DatabaseSection
from conductor_cli.sections import Server as ServerSection
from conductor_cli.sections import Worker, WorkerConfig
from conductor_cli.store import definitions, fleet, queues
from conductor_cli.version import __version__
from tests.support import store
from tests.support.pooler import KINDS, pooled
from tests.support.postgres import _find, running
from tests.support.sessions import background, wait_until_blocked

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from conductor_cli.database import Connection
    from tests.support.clock import Clock
    from tests.support.postgres import Server

Look = "Callable[..., list[Finding]]"
BY_NAME: Final = {check.name: check for check in CHECKS}


@task(queue="q")
def t() -> None: ...


@task(queue="r")
def u() -> None: ...


TASKS: Final = TaskSet([t, u])


@pytest.fixture
def patient(conn: Connection, database: Database) -> Patient:
    return Patient(conn, database, Config(), TASKS)


@pytest.fixture
def look(patient: Patient) -> Callable[..., list[Finding]]:
    """What a check finds, by its name; what is given differs from the usual patient."""

    def at(name: str, **given: Any) -> list[Finding]:
        return list(BY_NAME[name].look(replace(patient, **given)))

    return at


def one(found: list[Finding], level: Level) -> Finding:
    """The only finding, which is of this level and says what to do unless all is well."""
    (finding,) = found
    assert finding.level is level, finding
    assert bool(finding.advice) == (level is not Level.OK)
    return finding


def set_for_database(conn: Connection, setting: str, value: str) -> None:
    name = conn.info.dbname
    conn.execute(
        sql.SQL("alter database {} set {} = {}").format(
            sql.Identifier(name), sql.Identifier(setting), sql.Literal(value)
        )
    )


# ── All is well ──────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("name", [name for name in BY_NAME if name != "durability"])
def test_a_fresh_database_is_well(look: Any, name: str) -> None:
    assert one(look(name), Level.OK).check == name


def test_a_fleet_at_work_is_well(conn: Connection, look: Any) -> None:
    store.register(conn)
    definitions.save_schedules(conn, [], ["t"])
    fleet.join(
        conn, leader := uuid4(), timeout=15, version=__version__, hostname="here", pid=7,
        queues=["q"],
    )  # fmt: skip
    store.beat(conn, leader, stands=True)
    store.running(conn, leader)
    store.add(conn)
    for name in ("servers", "versions", "leader", "schedules", "unserved", "waiting"):
        one(look(name), Level.OK)
    assert "here (pid 7)" in look("servers")[0].message
    assert "here (pid 7)" in look("leader")[0].message


# ── Postgres ─────────────────────────────────────────────────────────────────────────────


def test_a_server_that_is_too_old(look: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_checks, "OLDEST_VERSION", 99)
    assert "too old" in one(look("server"), Level.ERROR).message


def test_a_database_that_cannot_hold_all_text(conn: Connection, look: Any) -> None:
    name = f"conductor_latin_{os.getpid()}_{os.urandom(3).hex()}"
    create = "create database {} encoding 'LATIN1' locale 'C' template template0"
    conn.execute(sql.SQL(create).format(sql.Identifier(name)))
    try:
        with psycopg.connect(conn.info.dsn, dbname=name) as other:
            assert "LATIN1" in one(look("server", conn=other), Level.ERROR).message
    finally:
        conn.execute(sql.SQL("drop database {} with (force)").format(sql.Identifier(name)))


def test_a_standby_with_settings_that_slow_it_down(postgres: Server, look: Any) -> None:
    flavour = next((path for path in _find().values()), None)
    if flavour is None:
        pytest.skip("needs the programs of Postgres")
    settings = {"autovacuum": "off", "fsync": "on", "full_page_writes": "on"}
    with running(flavour, settings, standby=True) as url, psycopg.connect(url) as other:
        other.autocommit = True
        assert "standby" in one(look("read only", conn=other), Level.ERROR).message
        assert "autovacuum is off" in one(look("autovacuum", conn=other), Level.ERROR).message
        one(look("durability", conn=other), Level.OK)
        one(look("replication slots", conn=other), Level.OK)


def test_a_role_that_is_set_to_read_only_writes_all_the_same(
    conn: Connection, database: Database, look: Any
) -> None:
    set_for_database(conn, "default_transaction_read_only", "on")
    with database.connect("test") as other:
        one(look("read only", conn=other), Level.OK)
        other.execute("create table conductor.mine ()")


def test_settings_that_forget_what_was_confirmed(
    conn: Connection, database: Database, look: Any
) -> None:
    set_for_database(conn, "synchronous_commit", "off")
    with database.connect("test") as other:
        found = {f.message.split(" is off")[0]: f.level for f in look("durability", conn=other)}
    assert found.get("synchronous_commit") is Level.WARNING
    if conn.execute("show fsync").fetchone() == ("off",):
        assert found["fsync"] is Level.WARNING


def test_statistics_that_nobody_collects(conn: Connection, database: Database, look: Any) -> None:
    set_for_database(conn, "track_counts", "off")
    with database.connect("test") as other:
        assert "track_counts" in one(look("autovacuum", conn=other), Level.ERROR).message


@pytest.mark.parametrize(("offset", "word"), [(10.0, "ahead of"), (-3600.0, "behind")])
def test_a_clock_that_differs(look: Any, offset: float, word: str) -> None:
    import time

    found = one(look("clock", wall=lambda: time.time() + offset), Level.WARNING)
    assert word in found.message


def test_too_few_connections(conn: Connection, look: Any) -> None:
    name = sql.Identifier(conn.info.dbname)
    conn.execute(sql.SQL("alter database {} connection limit 12").format(name))
    found = one(look("connections"), Level.WARNING)
    assert "the database's connection limit" in found.message
    assert "up to 20: 2 for each of 2 queues" in found.message


def test_the_connections_a_server_needs_are_counted() -> None:
    config = Config(worker=Worker(concurrency=7))
    assert server_checks.connections_needed(config, 3) == 2 * 3 + 2 + 7 + 4
    assert server_checks.connections_needed(config, 3, behind_pooler=True) == 2 * 3 + 1 + 7 + 4
    config = Config(worker=Worker(concurrency=7, processes=4))
    assert server_checks.connections_needed(config, 3) == 4 * (2 * 3 + 2 + 7 + 4)


def test_a_transaction_that_stays_open(
    conn: Connection, other: Connection, look: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server_checks, "HELD_LONG", 0.0)
    with other.transaction():
        other.execute("create temporary table mine ()")
        found = [f for f in look("snapshot") if str(other.info.backend_pid) in f.advice]
        assert "idle in transaction" in one(found, Level.WARNING).message
        assert "conductor other" in found[0].message
        monkeypatch.setattr(server_checks, "HELD_TOO_LONG", 0.0)
        found = [f for f in look("snapshot") if str(other.info.backend_pid) in f.advice]
        one(found, Level.ERROR)


def test_a_prepared_transaction_that_was_forgotten(
    conn: Connection, look: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    if conn.execute("show max_prepared_transactions").fetchone() == ("0",):
        pytest.skip("this server has no prepared transactions")
    monkeypatch.setattr(server_checks, "HELD_LONG", 0.0)
    conn.execute("begin")
    conn.execute("delete from conductor.live")
    conn.execute("prepare transaction 'forgotten'")
    try:
        assert "'forgotten'" in one(look("prepared transactions"), Level.ERROR).message
    finally:
        conn.execute("rollback prepared 'forgotten'")


def test_a_replication_slot_without_a_reader(
    conn: Connection, look: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = f"idle_{os.getpid()}_{os.urandom(3).hex()}"
    conn.execute("select pg_create_physical_replication_slot(%s, true)", [name])
    try:
        found = [f for f in look("replication slots") if name in f.message]
        one(found, Level.WARNING)
        monkeypatch.setattr(server_checks, "WAL_LIMIT", -1)
        found = [f for f in look("replication slots") if name in f.message]
        one(found, Level.ERROR)
    finally:
        conn.execute("select pg_drop_replication_slot(%s)", [name])


def test_who_waits_for_whom(
    conn: Connection, other: Connection, database: Database, look: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(server_checks, "LOCK_PATIENCE", 0.0)
    id = store.add(conn)
    lock = "select from conductor.live where id = %s for update"
    with background() as begin, database.connect("third") as third:
        pid, holder = third.info.backend_pid, other.info.backend_pid
        with other.transaction():
            other.execute(lock, [id])
            waiting = begin(third.execute, lock, [id])
            wait_until_blocked(conn, third)
            found = one(look("locks"), Level.ERROR)
        waiting.result()
    assert f"conductor third (pid {pid})" in found.message
    assert f"{holder} (conductor other)" in found.message


# ── Poolers ──────────────────────────────────────────────────────────────────────────────


def look_behind(
    url: str, patient: Patient, kind: str, asked: bool | None, mode: str = "transaction"
) -> list[Finding]:
    if "host=" not in url:
        pytest.skip("needs a Postgres of the test session's own")
    config = Config(database=DatabaseSection(pooler=asked))
    with pooled(url, kind, mode=mode) as there:
        database = Database(there, behind_pooler=asked)
        with database.connect("doctor") as conn:
            seen = replace(patient, conn=conn, database=database, config=config)
            found = list(BY_NAME["pooler"].look(seen))
            if asked is not False and mode != "statement":
                one(list(BY_NAME["connections"].look(seen)), Level.OK)
            return found


@pytest.mark.parametrize("kind", KINDS)
def test_a_pooler_in_transaction_mode(database_url: str, patient: Patient, kind: str) -> None:
    found = one(look_behind(database_url, patient, kind, None), Level.WARNING)
    assert "in transaction mode (two clients met in one session)" in found.message
    assert "within 1 s" in found.message
    one(look_behind(database_url, patient, kind, True), Level.OK)
    assert (
        "notifications are lost"
        in one(look_behind(database_url, patient, kind, False), Level.ERROR).message
    )


@pytest.mark.parametrize("kind", KINDS)
def test_a_pooler_in_session_mode(database_url: str, patient: Patient, kind: str) -> None:
    found = one(look_behind(database_url, patient, kind, None, "session"), Level.WARNING)
    assert "may share sessions" in found.message
    assert "database.pooler = false" in found.advice
    one(look_behind(database_url, patient, kind, False, "session"), Level.OK)


@pytest.mark.skipif("pgbouncer" not in KINDS, reason="needs PgBouncer")
def test_a_pooler_in_statement_mode(database_url: str, patient: Patient) -> None:
    found = one(look_behind(database_url, patient, "pgbouncer", None, "statement"), Level.ERROR)
    assert "statement mode" in found.message


def test_a_pooler_that_is_configured_and_not_there(look: Any) -> None:
    config = Config(database=DatabaseSection(pooler=True))
    assert "needlessly" in one(look("pooler", config=config), Level.WARNING).message


# ── The schema ───────────────────────────────────────────────────────────────────────────


def schema(conn: Connection, **given: Any) -> schema_checks.Version:
    database = Database(conn.info.dsn)
    patient = Patient(conn, database, Config(), TASKS)
    return schema_checks.version(patient, installs_itself=given.get("installs_itself", False))


def test_a_schema_at_its_latest_version(conn: Connection) -> None:
    found = schema(conn)
    assert found.works
    assert found.finding.level is Level.OK


def test_no_schema(empty_database_url: str) -> None:
    with psycopg.connect(empty_database_url, autocommit=True) as conn:
        found = schema(conn)
        assert not found.works
        assert "conductor migrate" in one([found.finding], Level.ERROR).advice
        one([schema(conn, installs_itself=True).finding], Level.WARNING)


def test_a_schema_that_is_older(conn: Connection) -> None:
    last = migrate.available()[-1]
    conn.execute("delete from conductor.migrations where version = %s", [last.version])
    found = schema(conn)
    assert not found.works
    assert last.name in one([found.finding], Level.ERROR).message


@pytest.mark.parametrize("breaking", [False, True])
def test_a_schema_that_is_newer(conn: Connection, breaking: bool) -> None:
    conn.execute(
        "insert into conductor.migrations values (9999, '9999_add_more', 'x', %s)", [breaking]
    )
    found = schema(conn)
    assert "9999_add_more" in found.finding.message
    assert found.works is not breaking
    assert isinstance(found.problem, SchemaTooNew) is breaking
    one([found.finding], Level.ERROR if breaking else Level.OK)


def test_a_schema_of_another_build(conn: Connection) -> None:
    conn.execute("update conductor.migrations set checksum = 'x' where version = 1")
    assert "checksum" in one([schema(conn).finding], Level.ERROR).message


@pytest.fixture
def role(conn: Connection) -> Iterator[sql.Identifier]:
    """A role without any right; the connection goes on as it when it is told to."""
    name = sql.Identifier(f"poor_{os.getpid()}_{os.urandom(3).hex()}")
    conn.execute(sql.SQL("create role {}").format(name))
    yield name
    conn.execute("reset role")
    conn.execute(sql.SQL("drop owned by {0}; drop role {0}").format(name))


def test_a_role_that_may_not_look(conn: Connection, role: sql.Identifier) -> None:
    conn.execute(sql.SQL("set role {}").format(role))
    assert "lacks usage" in one([schema(conn).finding], Level.ERROR).message
    conn.execute("reset role")
    conn.execute(sql.SQL("grant usage on schema conductor to {}").format(role))
    conn.execute(sql.SQL("set role {}").format(role))
    assert "select on conductor.migrations" in one([schema(conn).finding], Level.ERROR).message


def test_a_role_that_may_not_run_a_server(
    conn: Connection, role: sql.Identifier, look: Any
) -> None:
    grants = (
        "grant usage on schema conductor to {}",
        "grant select, insert, update, delete on all tables in schema conductor to {}",
    )
    for grant in grants:
        conn.execute(sql.SQL(grant).format(role))
    conn.execute(sql.SQL("revoke update on conductor.live from {}").format(role))
    conn.execute(sql.SQL("set role {}").format(role))
    found = one(look("privileges"), Level.ERROR)
    assert "update on live" in found.message
    conn.execute("reset role")
    conn.execute(sql.SQL("grant update on conductor.live to {}").format(role))
    grant = "grant execute on all functions in schema conductor to {}"
    conn.execute(sql.SQL(grant).format(role))
    conn.execute(sql.SQL("set role {}").format(role))
    one(look("privileges"), Level.OK)


def test_every_check_can_be_made_with_a_workers_rights(
    conn: Connection, role: sql.Identifier, look: Any
) -> None:
    for grant in (
        "grant usage on schema conductor to {}",
        "grant select, insert, update, delete on all tables in schema conductor to {}",
        "grant execute on all functions in schema conductor to {}",
    ):
        conn.execute(sql.SQL(grant).format(role))
    conn.execute(sql.SQL("set role {}").format(role))
    for name in BY_NAME:
        assert Level.ERROR not in {found.level for found in look(name)}


def test_an_index_that_is_missing(conn: Connection, look: Any) -> None:
    conn.execute("drop index conductor.live_due")
    found = one(look("indexes"), Level.ERROR)
    assert found.message.startswith("live_due ")
    conn.execute(found.advice.removeprefix("Create it again: ").removesuffix(".").encode())
    one(look("indexes"), Level.OK)


def test_a_primary_key_that_is_missing(conn: Connection, look: Any) -> None:
    conn.execute("alter table conductor.orchestrators drop constraint orchestrators_pkey")
    found = one(look("indexes"), Level.ERROR)
    conn.execute(found.advice.removeprefix("Create it again: ").removesuffix(".").encode())
    one(look("indexes"), Level.OK)


def test_the_migrations_are_understood() -> None:
    made = schema_checks.expected_indexes(migrate.available())
    assert {"live_pkey", "live_ready", "live_owner", "history_pkey", "schedules_pkey"} <= set(made)
    options = schema_checks.expected_options(migrate.available())
    assert options["live"]["autovacuum_vacuum_threshold"] == "2000"
    assert options["orchestrators"] == {"fillfactor": "50"}


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ("reset (autovacuum_vacuum_cost_delay)", "autovacuum_vacuum_cost_delay is unset, not 0"),
        ("set (autovacuum_enabled = false)", "autovacuum is off for it"),
    ],
)
def test_a_hot_table_that_is_not_as_it_was_made(
    conn: Connection, look: Any, change: str, says: str
) -> None:
    conn.execute(f"alter table conductor.live {change}".encode())
    found = one(look("autovacuum"), Level.WARNING)
    assert says in found.message
    conn.execute(found.advice.removesuffix(".").encode())
    one(look("autovacuum"), Level.OK)


def test_dead_rows_and_then_empty_space(conn: Connection, look: Any) -> None:
    conn.execute("alter table conductor.live set (autovacuum_enabled = false)")
    conn.execute(
        """
        insert into conductor.live (id, run_at, created_at, rank, state, queue, task, payload)
        select gen_random_uuid(), now(), now(), 0, 'r', 'q', 't', to_json(repeat('x', 1500))
        from generate_series(1, 50000)
        """
    )
    conn.execute("delete from conductor.live where ctid <> (select max(ctid) from conductor.live)")
    conn.execute("select pg_stat_force_next_flush()")
    assert "50000 rows beside" not in str(found := look("bloat"))
    assert "dead rows" in one(found, Level.WARNING).message
    conn.execute("vacuum (truncate false) conductor.live")
    conn.execute("select pg_stat_force_next_flush()")
    assert "most is empty" in one(look("bloat"), Level.WARNING).message


def test_history_that_nobody_prunes(
    conn: Connection, look: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(schema_checks, "MANY_OVERDUE", 1)
    store.finished(conn)
    conn.execute("update conductor.history set expires_at = now() - interval '40 days'")
    assert "deleted an hour ago" in one(look("history"), Level.WARNING).message


# ── Servers and their work ───────────────────────────────────────────────────────────────


def test_a_server_that_fell_silent(conn: Connection, clock: Clock, look: Any) -> None:
    clock.stop()
    gone = store.join(conn, timeout=15)
    store.running(conn, gone)
    clock.advance(60)
    found = one(look("servers"), Level.WARNING)
    assert "silent for 60 s and holds 1 executions" in found.message
    store.join(conn, timeout=15)
    warned, well = look("servers")
    assert (warned.level, well.level) == (Level.WARNING, Level.OK)


def test_executions_of_servers_that_are_not_there(conn: Connection, look: Any) -> None:
    store.running(conn, uuid4())
    assert "1 executions are held" in one(look("servers"), Level.WARNING).message


def test_a_server_of_another_version(conn: Connection, look: Any) -> None:
    store.join(conn)  # of version 1
    assert "h (pid 1): 1" in one(look("versions"), Level.WARNING).message


def test_servers_without_a_leader(conn: Connection, clock: Clock, look: Any) -> None:
    clock.stop()
    server = store.join(conn, timeout=1000)
    assert "just started" in one(look("leader"), Level.OK).message
    clock.advance(60)
    assert "there is none" in one(look("leader"), Level.ERROR).message
    store.beat(conn, server, stands=True)
    one(look("leader"), Level.OK)
    clock.advance(60)
    assert "the last renewed 60 s ago" in one(look("leader"), Level.ERROR).message


def schedule(conn: Connection, clock: Clock, expression: str = "* * * * *") -> None:
    conn.execute(
        """
        insert into conductor.schedules (task, name, queue, expression, timezone, missed, payload,
            declared, next_at, changed_at)
        values ('t', 'often', 'q', %s, 'UTC', 'latest', '{}', true, conductor.now(),
            conductor.now())
        """,
        [expression],
    )


def test_a_schedule_that_does_not_tick(conn: Connection, clock: Clock, look: Any) -> None:
    schedule(conn, clock)
    one(look("schedules"), Level.OK)
    clock.advance(300)
    assert "t/often" in one(look("schedules"), Level.WARNING).message
    store.join(conn)
    assert "5 minutes ago" in one(look("schedules"), Level.ERROR).message


def test_a_schedule_that_nobody_understands(conn: Connection, clock: Clock, look: Any) -> None:
    schedule(conn, clock, "every full moon")
    assert "not understood here" in one(look("schedules"), Level.ERROR).message


def test_a_schedule_that_never_ticks_again(conn: Connection, clock: Clock, look: Any) -> None:
    schedule(conn, clock)
    conn.execute("update conductor.schedules set next_at = null")
    assert "never tick again" in one(look("schedules"), Level.WARNING).message


def test_a_task_that_nobody_has_ever_registered(conn: Connection, clock: Clock, look: Any) -> None:
    clock.stop()
    store.join(conn, timeout=1000)
    store.add(conn, "misspelt")
    clock.advance(90)
    found = one(look("unserved"), Level.ERROR)
    assert "1 of task 'misspelt' wait in queue 'q', the oldest for 90 s" in found.message
    assert "ever registered" in found.advice


def test_a_task_whose_servers_are_gone(conn: Connection, clock: Clock, look: Any) -> None:
    store.register(conn)
    store.join(conn)
    store.add(conn)
    one(look("unserved"), Level.OK)
    clock.advance(60)
    assert "Start a server of that queue" in one(look("unserved"), Level.ERROR).advice


def test_a_task_that_the_servers_of_its_queue_no_longer_have(
    conn: Connection, clock: Clock, look: Any
) -> None:
    store.register(conn)
    conn.execute("update conductor.tasks set edition = 'earlier'")
    clock.advance(3600)
    store.join(conn, timeout=1000)
    store.add(conn)
    one(look("unserved"), Level.ERROR)
    store.register(conn)
    one(look("unserved"), Level.OK)


def test_a_task_of_an_edition_whose_server_runs_is_served(
    conn: Connection, clock: Clock, look: Any
) -> None:
    store.register(conn)
    conn.execute("update conductor.tasks set edition = 'later'")
    clock.advance(3600)
    store.join(conn, timeout=1000)
    store.add(conn)
    one(look("unserved"), Level.ERROR)
    conn.execute("update conductor.orchestrators set edition = 'later'")
    one(look("unserved"), Level.OK)


def test_work_that_is_served_and_waits(conn: Connection, clock: Clock, look: Any) -> None:
    store.register(conn)
    store.join(conn, timeout=10_000)
    store.add(conn)
    clock.advance(3600)
    assert "has waited 60 minutes" in one(look("waiting"), Level.WARNING).message


def test_work_in_a_paused_queue(conn: Connection, clock: Clock, look: Any) -> None:
    store.register(conn)
    store.join(conn, timeout=10_000)
    store.add(conn)
    queues.pause(conn, "q")
    clock.advance(3600)
    assert "is paused, and 1 are ready" in one(look("waiting"), Level.WARNING).message


def test_a_paused_schedule_is_not_late(conn: Connection, clock: Clock, look: Any) -> None:
    schedule(conn, clock)
    conn.execute("update conductor.schedules set paused = true")
    clock.advance(3600)
    one(look("schedules"), Level.OK)


# ── The configuration ────────────────────────────────────────────────────────────────────


def test_a_configuration_that_is_well() -> None:
    assert "2 tasks in 2 queues" in one(list(look_at(Config(), TASKS)), Level.OK).message


def test_a_configuration_without_tasks() -> None:
    assert "serve nothing" in one(list(look_at(Config(), TaskSet([]))), Level.WARNING).message


def test_a_queue_that_is_configured_and_that_no_task_is_in() -> None:
    config = Config(worker=Worker(queues={"reprots": WorkerConfig()}))
    found = one([f for f in look_at(config, TASKS) if f.level is not Level.OK], Level.WARNING)
    assert "reprots" in found.message
    assert "q, r" in found.advice


def test_a_dashboard_that_anybody_reaches() -> None:
    config = Config(server=ServerSection(host="0.0.0.0"))
    one([f for f in look_at(config, TASKS) if f.level is not Level.OK], Level.ERROR)


# ── How the checks are run ───────────────────────────────────────────────────────────────


def test_all_checks_are_made_and_nothing_is_changed(database: Database, conn: Connection) -> None:
    before = conn.execute("select pg_current_xact_id_if_assigned(), txid_current()").fetchone()
    found, problem = examine(database, Config(), TASKS)
    assert problem is None
    assert {f.check for f in found} == {"schema", *BY_NAME}
    after = conn.execute("select pg_current_xact_id_if_assigned(), txid_current()").fetchone()
    assert before is not None
    assert after is not None
    assert after[1] == before[1] + 1, "a check wrote something"


def test_a_check_that_fails_does_not_stop_the_others(database: Database) -> None:
    def fails(patient: Patient) -> Any:
        patient.conn.execute("select 1 / 0")
        yield from ()

    checks = [Check("bad", fails), BY_NAME["server"]]
    _, bad, well = examine(database, Config(), TASKS, checks=checks)[0]
    assert "DivisionByZero" in one([bad], Level.WARNING).message
    one([well], Level.OK)


def test_a_check_that_does_not_return_is_given_up(database: Database) -> None:
    released = threading.Event()

    def stays(patient: Patient) -> Any:
        released.wait(60)
        yield from ()

    checks = [Check("slow", stays), BY_NAME["server"]]
    try:
        _, slow, well = examine(database, Config(), TASKS, checks=checks, patience=2.0)[0]
    finally:
        released.set()
    assert "no answer within 2 s" in one([slow], Level.ERROR).message
    one([well], Level.OK)


def test_a_locked_table_does_not_stop_the_others(
    database: Database, other: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(diagnosis.examination, "STATEMENT_TIMEOUT", 0.3)
    with other.transaction():
        other.execute("lock table conductor.live in access exclusive mode")
        found, _ = examine(database, Config(), TASKS)
    levels = {f.check: f for f in found}
    assert "could not be looked at: QueryCanceled" in levels["unserved"].message
    assert levels["indexes"].level is levels["history"].level is Level.OK


def test_without_a_schema_only_the_server_is_looked_at(empty_database_url: str) -> None:
    found, _ = examine(Database(empty_database_url), Config(), TASKS)
    assert {f.check for f in found} == {"schema"} | {c.name for c in CHECKS if not c.in_schema}


def test_a_database_that_goes_away_is_told_of(database: Database) -> None:
    def leaves(patient: Patient) -> Any:
        pid = patient.conn.info.backend_pid
        with psycopg.connect(database.url, autocommit=True) as killer:
            killer.execute("select pg_terminate_backend(%s)", [pid])
        patient.conn.execute("select 1")
        yield from ()

    checks = [Check("gone", leaves), BY_NAME["server"]]
    _, gone, well = examine(database, Config(), TASKS, checks=checks)[0]
    one([gone], Level.WARNING)
    one([well], Level.OK)


def test_findings_are_plain_json(database: Database) -> None:
    import msgspec

    found, _ = examine(database, Config(), TASKS)
    rows = json.loads(msgspec.json.encode(found))
    assert set(rows[0]) == {"check", "level", "message", "advice"}
