"""Schema upgrades: the files themselves, and what is made of them."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import psycopg
import pytest

from conductor_cli import migrate
from conductor_cli.database import Database
from conductor_cli.errors import (
    ConductorError,
    DatabaseUnavailable,
    SchemaMissing,
    SchemaTooNew,
)
from tests.support.sessions import Ears, at_once, background
from tests.support.store import scalar

if TYPE_CHECKING:
    from collections.abc import Iterator

    from conductor_cli.database import Connection

FILES: Final = Path(__file__).parents[2] / "migrations"

# Everything that a schema is: tables, columns, indexes, constraints, functions, views, rights.
FINGERPRINT: Final = """
    select 'column', attrelid::regclass::text, concat(attnum, attname,
           format_type(atttypid, atttypmod), attnotnull, attidentity)
      from pg_attribute join pg_class c on c.oid = attrelid
     where relnamespace = 'conductor'::regnamespace and attnum > 0
    union all
    select 'table', c.oid::regclass::text,
           concat(relkind, relacl, reloptions, pg_get_expr(relpartbound, c.oid))
      from pg_class c where relnamespace = 'conductor'::regnamespace
    union all
    select 'index', indexrelid::regclass::text, pg_get_indexdef(indexrelid)
      from pg_index join pg_class c on c.oid = indexrelid
     where relnamespace = 'conductor'::regnamespace
    union all
    select 'constraint', conrelid::regclass || conname, pg_get_constraintdef(oid)
      from pg_constraint where connamespace = 'conductor'::regnamespace
    union all
    select 'function', oid::regprocedure::text, concat(pg_get_functiondef(oid), proacl)
      from pg_proc where pronamespace = 'conductor'::regnamespace
    union all
    select 'view', oid::regclass::text, pg_get_viewdef(oid)
      from pg_class where relnamespace = 'conductor'::regnamespace and relkind = 'v'
    union all
    select 'migration', version::text, concat(name, checksum, breaking) from conductor.migrations
    order by 1, 2, 3
"""


def _fingerprint(url: str) -> list[tuple[str, ...]]:
    with psycopg.connect(url) as conn:
        return conn.execute(FINGERPRINT).fetchall()


@pytest.fixture
def fresh(empty_database_url: str) -> Iterator[Database]:
    """A database without a schema."""
    opened = Database(empty_database_url)
    yield opened
    opened.close()


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A program that carries the migrations of this folder: at first those there are."""
    copied = shutil.copytree(FILES, tmp_path / "migrations")
    monkeypatch.setattr(migrate, "_folder", lambda: copied)
    return copied


def _write(folder: Path, name: str, body: str, *, breaking: bool = False) -> Path:
    file = folder / f"{name}.sql"
    file.write_text(f"-- breaking: {str(breaking).lower()}\n-- why: a test\n\n{body}\n")
    return file


def _names(database: Database) -> list[str]:
    with database.connect("look") as conn:
        return [each.name for each in migrate.applied(conn)]


def test_migrations_are_numbered_without_gaps_and_say_why() -> None:
    migrations = migrate.available()
    assert [m.version for m in migrations] == list(range(1, len(migrations) + 1))
    assert len(migrations) == len(list(FILES.iterdir()))
    for m in migrations:
        assert re.fullmatch(r"\d{4}_[a-z]+_[a-z_0-9]+", m.name), m.name
        assert len(m.why) > 10, m.name
        assert not re.search(r"^\s*(begin|commit)\s*;", m.sql, re.MULTILINE | re.IGNORECASE), m.name


def test_an_upgrade_applies_everything_and_a_second_one_nothing(fresh: Database) -> None:
    everything = [m.name for m in migrate.available()]
    assert [m.name for m in migrate.upgrade(fresh)] == everything
    assert _names(fresh) == everything
    before = _fingerprint(fresh.url)
    assert migrate.upgrade(fresh) == []
    assert _fingerprint(fresh.url) == before
    migrate.check(fresh)


def test_of_upgraders_at_once_each_migration_is_applied_by_one(fresh: Database) -> None:
    def upgrade(_: Connection) -> list[str]:
        return [m.name for m in migrate.upgrade(fresh)]

    done = at_once(fresh, *[upgrade] * 5)
    assert sorted(name for names in done for name in names) == [m.name for m in migrate.available()]
    migrate.check(fresh)


def test_a_failing_migration_leaves_nothing_behind(fresh: Database, folder: Path) -> None:
    good = [m.name for m in migrate.available()]
    file = _write(folder, "0100_break_off", "create table conductor.half (); select 1 / 0;")
    _write(folder, "0101_come_later", "create table conductor.later ();")
    with pytest.raises(psycopg.errors.DivisionByZero):
        migrate.upgrade(fresh)
    assert _names(fresh) == good
    with fresh.connect("look") as conn:
        assert scalar(conn, "select to_regclass('conductor.half')") is None
        assert scalar(conn, "select to_regclass('conductor.later')") is None
    file.unlink()
    assert [m.name for m in migrate.upgrade(fresh)] == ["0101_come_later"]


def test_a_database_without_a_schema_is_told_apart(fresh: Database) -> None:
    with pytest.raises(SchemaMissing, match=r"0001_create_schema.*conductor migrate"):
        migrate.check(fresh)


def test_an_older_schema_is_told_apart(database: Database, folder: Path) -> None:
    _write(folder, "0100_add_something", "create table conductor.something ();")
    with pytest.raises(SchemaMissing, match="0100_add_something"):
        migrate.check(database)


@pytest.mark.parametrize("breaking", [True, False])
def test_a_newer_schema_is_refused_only_if_it_breaks(
    database: Database, folder: Path, breaking: bool
) -> None:
    file = _write(folder, "0100_come_later", "create table conductor.x ();", breaking=breaking)
    migrate.upgrade(database)
    file.unlink()
    if not breaking:
        migrate.check(database)
        assert migrate.upgrade(database) == []
        return
    with pytest.raises(SchemaTooNew, match="0100_come_later"):
        migrate.check(database)
    with pytest.raises(SchemaTooNew):
        migrate.upgrade(database)


def test_a_server_that_upgrades_by_itself_stops_before_what_breaks(
    database: Database, folder: Path
) -> None:
    _write(folder, "0100_add_a", "create table conductor.a ();")
    _write(folder, "0101_break_b", "create table conductor.b ();", breaking=True)
    _write(folder, "0102_add_c", "create table conductor.c ();")
    with pytest.raises(SchemaMissing, match="0101_break_b"):
        migrate.upgrade(database, breaking=False)
    assert _names(database)[-1] == "0100_add_a"
    assert [m.name for m in migrate.upgrade(database)] == ["0101_break_b", "0102_add_c"]


def test_a_changed_file_is_refused(database: Database, folder: Path) -> None:
    file = folder / "0002_create_tasks.sql"
    file.write_text(file.read_text() + "-- edited\n")
    with pytest.raises(ConductorError, match="0002_create_tasks"):
        migrate.check(database)
    with pytest.raises(ConductorError, match="never edited"):
        migrate.upgrade(database)


@pytest.mark.parametrize("name", ["7_add_x", "0100-add-x", "0100_Add_X"])
def test_a_file_without_a_proper_name_is_refused(folder: Path, name: str) -> None:
    _write(folder, name, "select 1;")
    with pytest.raises(ConductorError, match=re.escape(name)):
        migrate.available()


def test_a_file_without_a_header_is_refused(folder: Path) -> None:
    (folder / "0100_add_x.sql").write_text("select 1;")
    with pytest.raises(ConductorError, match="0100_add_x"):
        migrate.available()


def test_the_printed_sql_makes_the_same_schema(
    empty_database_url: str, fresh: Database, tmp_path: Path
) -> None:
    _run_by_hand(migrate.script(None), empty_database_url, tmp_path)
    by_hand = _fingerprint(empty_database_url)
    migrate.check(fresh)
    with psycopg.connect(empty_database_url) as conn:
        conn.execute("drop schema conductor cascade")
    migrate.upgrade(fresh)
    assert _fingerprint(empty_database_url) == by_hand


def test_the_printed_sql_of_an_older_schema_is_what_is_missing(
    database: Database, folder: Path, tmp_path: Path
) -> None:
    _write(folder, "0100_add_a", "create table conductor.a ();")
    with database.connect("look") as conn:
        text = migrate.script(conn)
    assert "0100_add_a" in text
    assert "0007" not in text
    _run_by_hand(text, database.url, tmp_path)
    migrate.check(database)


def test_nothing_is_printed_but_the_grants_when_nothing_is_missing(conn: Connection) -> None:
    text = migrate.script(conn)
    assert "create" not in text
    assert "grant usage on schema conductor" in text


def test_a_role_that_may_not_is_told_what_to_do(fresh: Database) -> None:
    role = f"nobody_{os.urandom(4).hex()}"
    with fresh.connect("admin") as admin:
        admin.execute(f"create role {role}".encode())
        try:
            weak = Database(f"{fresh.url}&options=-c%20role%3D{role}")
            with pytest.raises(ConductorError, match="conductor migrate --sql"):
                migrate.upgrade(weak)
        finally:
            admin.execute(f"drop role {role}".encode())


def _run_by_hand(text: str, url: str, folder: Path) -> None:
    """As an administrator would: with psql, if it is here."""
    psql = shutil.which("psql")
    if psql is None:
        with psycopg.connect(url, autocommit=True) as conn:
            conn.execute(text.encode())
        return
    file = folder / "by_hand.sql"
    file.write_text(text)
    command = [psql, "-X", "-q", "-v", "ON_ERROR_STOP=1", "-f", str(file), url]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def _statements(sql: str) -> list[str]:
    """The statements of a file, bodies of functions in one piece."""
    found, begun, quoted = [], "", False
    for line in sql.splitlines(keepends=True):
        begun += line
        quoted ^= line.count("$$") % 2 == 1
        if not quoted and line.partition("--")[0].rstrip().endswith(";"):
            found.append(begun)
            begun = ""
    return found


def _size(database: Database) -> Any:
    """How many relations and functions there are of ours."""
    with database.connect("look") as conn:
        return conn.execute(
            """select (select count(*) from pg_class where relnamespace = n),
                (select count(*) from pg_proc where pronamespace = n)
            from (select oid as n from pg_namespace where nspname = 'conductor') ours"""
        ).fetchone()


def test_a_migrator_whose_session_is_killed_at_any_statement_leaves_nothing_half_done(
    fresh: Database, folder: Path
) -> None:
    whole = {file: file.read_text() for file in sorted(folder.iterdir())}
    done: list[str] = []
    size = _size(fresh)
    kill = "select pg_terminate_backend(pg_backend_pid());\n"
    places = 0
    for file, text in whole.items():
        parts = _statements(text)
        assert "".join(parts).strip() == text.strip()
        for place in range(1, len(parts) + 1):  # after each, the last included
            file.write_text("".join([*parts[:place], kill, *parts[place:]]))
            with pytest.raises(DatabaseUnavailable):
                migrate.upgrade(fresh)
            assert _names(fresh) == done
            assert _size(fresh) == size
            places += 1
        file.write_text(text)
        # Without those to come, so that this one alone is applied.
        later = [other for other in whole if other > file]
        for other in later:
            other.unlink()
        assert [m.name for m in migrate.upgrade(fresh)] == [file.stem]
        for other in later:
            other.write_text(whole[other])
        done.append(file.stem)
        size = _size(fresh)
    assert places > 25
    migrate.check(fresh)


def test_a_migration_waits_for_locks_in_turns_and_lets_work_go_on(
    database: Database, folder: Path, conn: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(migrate, "LOCK_PAUSE", 0.3)
    _write(folder, "0900_change_live", "alter table conductor.live add column extra text;")
    stalls = []
    with background() as start, database.connect("holder") as holder:
        with holder.transaction():
            holder.execute("select count(*) from conductor.live")
            upgraded = start(migrate.upgrade, database)
            until = time.monotonic() + 4
            while time.monotonic() < until:
                began = time.monotonic()
                conn.execute("select count(*) from conductor.live")
                stalls.append(time.monotonic() - began)
                time.sleep(0.01)
            assert not upgraded.done()
        assert [m.name for m in upgraded.result(20)] == ["0900_change_live"]
    assert 0.5 < max(stalls) < 3, max(stalls)  # it did wait, and gave way


def test_a_migration_that_never_gets_its_locks_says_so(
    database: Database, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(migrate, "LOCK_PAUSE", 0.1)
    monkeypatch.setattr(migrate, "LOCK_PATIENCE", 0.5)
    _write(folder, "0900_change_live", "alter table conductor.live add column extra text;")
    with database.connect("holder") as holder, holder.transaction():
        holder.execute("select count(*) from conductor.live")
        with pytest.raises(ConductorError, match=r"0900_change_live.*pg_stat_activity") as raised:
            migrate.upgrade(database)
    assert not isinstance(raised.value, DatabaseUnavailable)
    assert [m.name for m in migrate.upgrade(database)] == ["0900_change_live"]


def test_servers_hear_of_a_migration_when_it_is_there(
    database: Database, folder: Path, conn: Connection, tmp_path: Path
) -> None:
    ears = Ears(conn, "conductor")
    _write(folder, "0900_add_a", "create table conductor.a ();")
    migrate.upgrade(database)
    assert ears.payloads() == ["schema"]
    _write(folder, "0901_add_b", "create table conductor.b ();")
    with database.connect("look") as look:
        text = migrate.script(look)
    _run_by_hand(text, database.url, tmp_path)
    assert ears.payloads() == ["schema"]
