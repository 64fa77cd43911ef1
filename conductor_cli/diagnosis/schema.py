"""What migrations made: whether it is there, whole, allowed, and in good health."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from conductor_cli import migrate
from conductor_cli.diagnosis.finding import error, ok, size, some, warning
from conductor_cli.errors import ConductorError, SchemaTooNew
from conductor_cli.store import diagnosis as store

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from conductor_cli.database import Connection
    from conductor_cli.diagnosis.finding import Finding, Findings, Patient
    from conductor_cli.migrate import Applied, Migration
    from conductor_cli.store.diagnosis import Table

DEAD_ROWS: Final = 20_000  # fewer are nothing
DEAD_SHARE: Final = 2.0  # dead for each living one
EMPTY_BYTES: Final = 64 << 20  # less is nothing
BYTES_A_ROW: Final = 4096  # on average more than this is empty space
MANY_OVERDUE: Final = 10_000


@dataclass(frozen=True, slots=True)
class Version:
    """How the schema stands; ``works``: this program can look into it. ``problem``: what a
    server would refuse to start for."""

    finding: Finding
    works: bool
    problem: ConductorError | None = None


def version(patient: Patient, *, installs_itself: bool) -> Version:
    """Whether the schema is there and of a version that this program can work with.

    ``installs_itself``: whoever comes first installs it, as with the embedded Postgres.
    """
    conn, check = patient.conn, "schema"
    standing = store.standing(conn)
    if standing.exists and not (standing.may_use and standing.may_read_version):
        missing = "usage on it" if not standing.may_use else "select on conductor.migrations"
        return Version(
            error(
                check, f"The schema conductor is there, but this role lacks {missing}.",
                "Let its owner run the grants that `conductor migrate --sql` prints.",
            ),
            works=False,
        )  # fmt: skip
    try:
        due, there = migrate.pending(conn), migrate.applied(conn)
    except SchemaTooNew as problem:
        return Version(
            error(check, str(problem), "Or run the version that made it."), False, problem
        )
    except ConductorError as problem:
        return Version(error(check, str(problem), "Install the released version."), False)
    return _judged(due, there, installs_itself=installs_itself)


def _judged(
    due: Sequence[Migration], there: Sequence[Applied], *, installs_itself: bool
) -> Version:
    names = some([m.name for m in due])
    if due and installs_itself:
        how = "The next server or command that works with it applies them."
        return Version(warning("schema", f"Not yet applied: {names}.", how), works=False)
    if not there:
        what = "The database has no Conductor schema."
        return Version(error("schema", what, "Run `conductor migrate`."), works=False)
    if due:
        how = "Run `conductor migrate`."
        if not any(m.breaking for m in due):
            how += " A server that starts applies them, too, if its role may."
        return Version(error("schema", f"It is older than this program: {names}.", how), False)
    mine = {m.version for m in migrate.available()}
    newer = [a.name for a in there if a.version not in mine]
    if newer:
        text = f"It is newer than this program, which can work with it: {some(newer)}."
        return Version(ok("schema", text), works=True)
    return Version(ok("schema", f"At its latest version, {there[-1].name}."), works=True)


def privileges(patient: Patient) -> Findings:
    """Whether this role may do what a server does."""
    missing = store.lacking(patient.conn)
    if missing:
        yield error(
            "privileges", f"This role may not run a server: it lacks {some(missing)}.",
            "Let the schema's owner run the grants that `conductor migrate --sql` prints.",
        )  # fmt: skip
    else:
        yield ok("privileges", "This role may do all that a server does.")


def indexes(patient: Patient) -> Findings:
    """Whether the indexes that migrations made are there and valid."""
    made = expected_indexes(_applied(patient.conn))
    missing = sorted(set(made) - set(store.indexes(patient.conn)))
    for name in missing:
        yield error(
            "indexes", f"{name} is missing or not valid: what needs it reads whole tables.",
            f"Create it again: {made[name]}.",
        )  # fmt: skip
    if not missing:
        yield ok("indexes", f"All {len(made)} are there.")


def autovacuum(patient: Patient) -> Findings:
    """Whether vacuum runs, and the hot tables have the settings that they were made with."""
    facts, check, well = store.server(patient.conn), "autovacuum", True
    for name, is_on in (("autovacuum", facts.autovacuum), ("track_counts", facts.track_counts)):
        if not is_on:
            well = False
            yield error(
                check, f"{name} is off: tables grow and claiming slows down without end.",
                f"Set {name} = on in postgresql.conf.",
            )  # fmt: skip
    made = expected_options(_applied(patient.conn))
    for table in store.tables(patient.conn):
        if wrong := _wrong_options(table, made.get(table.name, {})):
            well = False
            yield warning(
                check, f"conductor.{table.name} is not as it was made: {', '.join(wrong)}.",
                f"alter table conductor.{table.name} {_mended(made.get(table.name, {}))}.",
            )  # fmt: skip
    if well:
        yield ok(check, "On, and the tables have the settings that they were made with.")


def bloat(patient: Patient) -> Findings:
    """Dead rows that wait for vacuum, and space that vacuum has left empty."""
    well = True
    for table in store.tables(patient.conn):
        name = f"conductor.{table.name}"
        if table.dead > max(DEAD_ROWS, DEAD_SHARE * table.live):
            well = False
            yield warning(
                "bloat", f"{name} has {table.dead} dead rows beside {table.live} living ones.",
                f"See the findings on snapshots and autovacuum; then: vacuum {name}.",
            )  # fmt: skip
        elif table.bytes > max(EMPTY_BYTES, BYTES_A_ROW * table.live):
            well = False
            yield warning(
                "bloat", f"{name} takes {size(table.bytes)} for {table.live} rows: most is empty.",
                f"In a quiet hour, with the servers stopped: vacuum full {name}.",
            )  # fmt: skip
    if well:
        yield ok("bloat", "No table has more dead rows or empty space than usual.")


def history(patient: Patient) -> Findings:
    """Whether executions that have expired are deleted."""
    late = store.overdue(patient.conn)
    if late >= MANY_OVERDUE:
        yield warning(
            "history", f"{late} executions and more should have been deleted an hour ago.",
            "The leader deletes them in batches. Does one run, and what does its log say?",
        )  # fmt: skip
    else:
        yield ok("history", "What has expired is deleted.")


# ------------------------------------------------------------------ what migrations made


def expected_indexes(migrations: Iterable[Migration]) -> dict[str, str]:
    """By name the statement that makes each index, as the migrations leave them."""
    made: dict[str, str] = {}
    for sql in map(_code, migrations):
        for name in re.findall(r"drop index (?:if exists )?(?:conductor\.)?(\w+)", sql):
            made.pop(name, None)
        for table in re.findall(r"drop table (?:if exists )?conductor\.(\w+)", sql):
            made = {n: s for n, s in made.items() if f"conductor.{table} " not in s}
        for found in re.finditer(r"create (?:unique )?index (\w+)\s+on [^;]*", sql):
            made[found[1]] = " ".join(found[0].split())
        for found in re.finditer(r"create table (conductor\.\w+)[^;]*", sql):
            for key in re.finditer(r"constraint (\w+) primary key\s*\([^)]*\)", found[0]):
                made[key[1]] = f"alter table {found[1]} add {key[0]}"
    return made


def expected_options(migrations: Iterable[Migration]) -> dict[str, dict[str, str]]:
    """By table the storage parameters that the migrations leave it with."""
    made: dict[str, dict[str, str]] = {}
    for sql in map(_code, migrations):
        changes = r"(create|alter) table conductor\.(\w+)\s[^;]*?\b(?:with|set)\s*\(([^;()]*)\)\s*;"
        for verb, table, options in re.findall(changes, sql):
            known = {} if verb == "create" else made.get(table, {})
            pairs = re.findall(r"(\w+)\s*=\s*([\w.]+)", options)
            made[table] = {**known, **dict(pairs)}
    return made


def _applied(conn: Connection) -> list[Migration]:
    there = {each.version for each in migrate.applied(conn)}
    return [m for m in migrate.available() if m.version in there]


def _code(migration: Migration) -> str:
    return re.sub(r"--[^\n]*", "", migration.sql)


def _wrong_options(table: Table, made: Mapping[str, str]) -> list[str]:
    there = dict(option.split("=", 1) for option in table.options)
    lost = [
        f"{k} is {there.get(k, 'unset')}, not {v}" for k, v in made.items() if there.get(k) != v
    ]
    if "autovacuum_enabled" in there and there["autovacuum_enabled"] in ("false", "off", "0", "no"):
        lost.append("autovacuum is off for it")
    return lost


def _mended(made: Mapping[str, str]) -> str:
    options = ", ".join(f"{name} = {value}" for name, value in made.items())
    return (f"set ({options}), " if options else "") + "reset (autovacuum_enabled)"
