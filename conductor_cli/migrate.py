"""Schema upgrades: ordered SQL files, each applied once, under a lock.

A file is named ``NNNN_verb_object.sql`` and starts with ``-- breaking: true|false`` and
``-- why: ...``. Each runs in a transaction of its own; what one has done, its checksum tells.
"""

from __future__ import annotations

import hashlib
import importlib.resources
import re
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final

import msgspec
import psycopg

from conductor_cli import pooler, telemetry
from conductor_cli.database import Statement, unavailable
from conductor_cli.errors import ConductorError, PermissionRefused, SchemaMissing, SchemaTooNew

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from importlib.resources.abc import Traversable

    from conductor_cli.database import Connection, Database

LOCK: Final = 0x436F6E64  # "Cond": the advisory lock of whoever upgrades
LOCK_PATIENCE: Final = 60.0
LOCK_PAUSE: Final = 2.0  # seconds for which work goes on between two tries
STATEMENT_TIMEOUT: Final = 600.0

LEDGER: Final = """
create schema if not exists conductor;
create table if not exists conductor.migrations (
    version integer primary key,
    name text not null,
    checksum text not null,
    breaking boolean not null,
    applied_at timestamptz not null default statement_timestamp()
);
"""

_IN_THE_WAY: Final = (psycopg.errors.LockNotAvailable, psycopg.errors.DeadlockDetected)

GRANTS: Final = """
-- Roles, if the program is not to run as the schema's owner. Create them, then:
--   owner:    runs `conductor migrate`
--   worker:   runs `conductor start-server` and `conductor drain`
--   producer: invokes, waits and cancels
--   viewer:   reads
-- grant usage on schema conductor to worker, producer, viewer;
-- grant select, insert, update, delete on all tables in schema conductor to worker;
-- grant usage on all sequences in schema conductor to worker, producer;
-- grant execute on all functions in schema conductor to worker, producer;
-- grant execute on function conductor.now() to viewer;
-- grant select on conductor.executions, conductor.tasks, conductor.migrations
--     to producer, viewer;
-- grant select, insert, update, delete on conductor.live, conductor.ledger, conductor.attempts,
--     conductor.progress to producer;
-- grant select, insert on conductor.history to producer;
-- grant insert on conductor.events to producer;
-- grant select on conductor.orchestrators, conductor.leadership, conductor.schedules,
--     conductor.queues, conductor.live, conductor.history, conductor.ledger, conductor.attempts,
--     conductor.progress, conductor.events, conductor.triggers to viewer;
"""


class Migration(msgspec.Struct, frozen=True):
    """One file."""

    version: int
    name: str
    breaking: bool
    why: str
    sql: str

    @property
    def checksum(self) -> str:
        return hashlib.sha256(self.sql.encode()).hexdigest()


class Applied(msgspec.Struct, frozen=True):
    """A migration that the database has."""

    version: int
    name: str
    checksum: str
    breaking: bool


APPLIED: Final = Statement(
    row=Applied,
    sql="""
    -- Reads only.
    select version, name, checksum, breaking from conductor.migrations order by version
    """,
)

RECORD: Final = Statement(
    row=int,
    sql="""
    -- In the transaction of the migration itself: both or neither. Servers look when they hear.
    with recorded as (
        insert into conductor.migrations (version, name, checksum, breaking)
        values (%(version)s, %(name)s, %(checksum)s, %(breaking)s)
        returning version
    )
    select count(pg_notify('conductor', 'schema'))::int from recorded
    """,
)

HAS_LEDGER: Final = Statement(
    row=bool,
    sql="""
    -- Reads only.
    select to_regclass('conductor.migrations') is not null
    """,
)

TRY_LOCK: Final = Statement(
    row=bool,
    sql="""
    -- Polled, not waited for: waiting deadlocks with a concurrent index build elsewhere. Held by
    -- the transaction, since behind a pooler the session may be another's the next moment.
    select pg_try_advisory_xact_lock(%(key)s)
    """,
)


def newest() -> int:
    """The version of the last migration this program carries."""
    return max(m.version for m in available())


def available() -> list[Migration]:
    """The migrations this program carries, oldest first."""
    files = [f for f in _folder().iterdir() if f.name.endswith(".sql")]
    return [_read(f) for f in sorted(files, key=lambda f: f.name)]


def applied(conn: Connection) -> list[Applied]:
    """The migrations the database has, oldest first; none when it has no schema."""
    return APPLIED.all(conn) if HAS_LEDGER.only(conn) else []


def pending(conn: Connection) -> list[Migration]:
    """What is still to be applied. Raises SchemaTooNew, ConductorError for a changed file."""
    there = {a.version: a for a in applied(conn)}
    mine = available()
    _refuse_newer(there.values(), mine)
    for migration in mine:
        _refuse_changed(migration, there.get(migration.version))
    return [m for m in mine if m.version not in there]


def check(database: Database) -> None:
    """Raise SchemaMissing or SchemaTooNew unless this program can work on the schema."""
    with database.connection() as conn:
        missing = pending(conn)
    if missing:
        raise SchemaMissing(
            f"The database has no Conductor schema, or an old one: {missing[0].name} is missing. "
            "Run `conductor migrate`."
        )


def upgrade(database: Database, *, breaking: bool = True) -> list[Migration]:
    """Bring the schema to the latest version; returns what was applied.

    ``breaking=False`` applies only what older servers can live with and stops before the rest,
    with SchemaMissing. Safe to call at once from several places. Raises SchemaTooNew,
    DatabaseUnavailable, ConductorError when the role may not.
    """
    try:
        conn = database.connect("migrate", statement_timeout=STATEMENT_TIMEOUT)
        with conn:
            return _apply_all(conn, breaking=breaking)
    except psycopg.errors.InsufficientPrivilege as error:
        raise PermissionRefused(
            f"The database role may not change the schema: {str(error).splitlines()[0]}. "
            "Run `conductor migrate` as its owner; `conductor migrate --sql` prints the SQL."
        ) from None
    except psycopg.OperationalError as error:
        raise unavailable(error, database.url) from error


def script(conn: Connection | None) -> str:
    """The SQL of what is pending (of all, without a connection), to be run by hand."""
    todo = available() if conn is None else pending(conn)
    parts = [LEDGER, *map(_by_hand, todo)] if todo else []
    return "\n".join([*parts, GRANTS])


def _by_hand(m: Migration) -> str:
    return (
        f"-- {m.name}\nbegin;\n{m.sql.strip()}\n\ninsert into conductor.migrations "
        f"(version, name, checksum, breaking)\n    values ({m.version}, '{m.name}', "
        f"'{m.checksum}', {str(m.breaking).lower()});\nnotify conductor, 'schema';\ncommit;\n"
    )


def _apply_all(conn: Connection, *, breaking: bool) -> list[Migration]:
    done: list[Migration] = []
    patience = time.monotonic() + LOCK_PATIENCE
    while todo := pending(conn):
        try:
            with conn.transaction():
                locked = TRY_LOCK.only(conn, key=LOCK)
                applied_now = _apply_next(conn, breaking=breaking) if locked else []
        except _IN_THE_WAY as error:
            _give_way(todo[0], error, patience)
            continue
        for migration in applied_now:
            telemetry.emit("migration.applied", name=migration.name)
        done += applied_now
        if locked:
            patience = time.monotonic() + LOCK_PATIENCE
        elif time.monotonic() > patience:
            raise ConductorError(
                f"Another process has been upgrading the schema for {LOCK_PATIENCE:g} s; "
                "look for it in pg_locks (locktype advisory)."
            )
        else:
            time.sleep(0.1)
    return done


def _apply_next(conn: Connection, *, breaking: bool) -> list[Migration]:
    """In the caller's transaction, which holds the lock; none when another process was quicker."""
    conn.execute(LEDGER)
    todo = pending(conn)[:1]  # again, now that nobody else applies any
    for migration in todo:
        if migration.breaking and not breaking:
            raise SchemaMissing(
                f"{migration.name} is not compatible with running older servers, so only "
                "`conductor migrate` applies it."
            )
        _bound(conn)
        conn.execute(migration.sql.encode())
        RECORD.only(
            conn,
            version=migration.version,
            name=migration.name,
            checksum=migration.checksum,
            breaking=migration.breaking,
        )
    return todo


def _bound(conn: Connection) -> None:
    """For this transaction. Everybody else waits behind one that waits for a table's lock. And
    the server is to notice when this process is gone, so that the next may begin."""
    pooler.plan_as_usual(conn)
    conn.execute("set local lock_timeout = '1s'")
    with suppress(psycopg.errors.InvalidParameterValue), conn.transaction():  # not on every system
        conn.execute("set local client_connection_check_interval = '2s'")


def _give_way(migration: Migration, error: Exception, patience: float) -> None:
    if time.monotonic() > patience:
        raise ConductorError(
            f"{migration.name} did not get the locks it needs in {LOCK_PATIENCE:g} s: {error}. "
            "A long transaction holds one of its tables; look for it in pg_stat_activity "
            "(xact_start), and try again when it has ended."
        ) from None
    telemetry.emit("migration.waiting", name=migration.name, reason=str(error))
    time.sleep(LOCK_PAUSE)


def _refuse_newer(there: Iterable[Applied], mine: Sequence[Migration]) -> None:
    known = {m.version for m in mine}
    newer = [a for a in there if a.version not in known and a.breaking]
    if newer:
        raise too_new(newer[-1].name)


def too_new(migration: str) -> SchemaTooNew:
    """The error of a program that does not know this migration, and would have to."""
    return SchemaTooNew(
        f"The database's schema is newer than this program: it has {migration}, which older "
        "programs cannot work with. Install a newer conductor-cli."
    )


def _refuse_changed(migration: Migration, there: Applied | None) -> None:
    if there is not None and there.checksum != migration.checksum:
        raise ConductorError(
            f"The database's {there.name} is not the one this program carries "
            f"(checksum {there.checksum[:12]}, not {migration.checksum[:12]}). A released "
            "migration is never edited: is this a build from another branch?"
        )


def _read(file: Traversable) -> Migration:
    sql = file.read_text(encoding="utf-8")
    header = re.match(r"-- breaking: (true|false)\n-- why: (.+)\n", sql)
    number = re.match(r"(\d{4})_[a-z0-9_]+\.sql$", file.name)
    if header is None or number is None:
        raise ConductorError(f"The migration {file.name} has no proper name or header.")
    return Migration(
        int(number[1]), file.name.removesuffix(".sql"), header[1] == "true", header[2], sql
    )


def _folder() -> Traversable:
    """In the installed package; else beside it, in a checkout."""
    packaged = importlib.resources.files("conductor_cli") / "migrations"
    if packaged.is_dir():
        return packaged
    return Path(__file__).resolve().parent.parent / "migrations"
