"""Runs the checks one after the other, each bounded in time and on its own if one fails."""

from __future__ import annotations

import threading
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FuturesTimeout
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, TypeVar

from conductor_cli import errors
from conductor_cli.diagnosis import fleet, postgres, schema
from conductor_cli.diagnosis.finding import Finding, Findings, Patient, error, warning

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from conductor_cli.catalog import TaskSet
    from conductor_cli.config import Config
    from conductor_cli.database import Connection, Database

T = TypeVar("T")

STATEMENT_TIMEOUT: Final = 4.0  # seconds
PATIENCE: Final = 10.0  # seconds for one check, whatever Postgres and the network do


@dataclass(frozen=True, slots=True)
class Check:
    """``look`` gives findings; ``in_schema``: it looks at what migrations made."""

    name: str
    look: Callable[[Patient], Findings]
    in_schema: bool = True


CHECKS: Final = (
    Check("server", postgres.version, in_schema=False),
    Check("read only", postgres.writable, in_schema=False),
    Check("durability", postgres.durability, in_schema=False),
    Check("clock", postgres.clock, in_schema=False),
    Check("pooler", postgres.between, in_schema=False),
    Check("connections", postgres.connections, in_schema=False),
    Check("snapshot", postgres.snapshot, in_schema=False),
    Check("prepared transactions", postgres.prepared, in_schema=False),
    Check("replication slots", postgres.slots, in_schema=False),
    Check("locks", postgres.locks, in_schema=False),
    Check("privileges", schema.privileges),
    Check("indexes", schema.indexes),
    Check("autovacuum", schema.autovacuum),
    Check("bloat", schema.bloat),
    Check("history", schema.history),
    Check("servers", fleet.servers),
    Check("versions", fleet.versions),
    Check("leader", fleet.leader),
    Check("schedules", fleet.schedules),
    Check("events", fleet.events),
    Check("unserved", fleet.unserved),
    Check("waiting", fleet.waiting),
)


def examine(
    database: Database,
    config: Config,
    tasks: TaskSet | None,
    *,
    installs_itself: bool = False,
    checks: Sequence[Check] = CHECKS,
    patience: float = PATIENCE,
) -> tuple[list[Finding], errors.ConductorError | None]:
    """All findings, and the problem that keeps a server from starting on this schema, if any.

    ``patience``: seconds for each check. Raises nothing that a check raises.
    """
    room = _Room(database, config, tasks, patience)
    problem: errors.ConductorError | None = None
    works = False

    def look_at_schema(patient: Patient) -> Findings:
        nonlocal problem, works
        found = schema.version(patient, installs_itself=installs_itself)
        problem, works = found.problem, found.works
        yield found.finding

    findings = room.examine(Check("schema", look_at_schema))
    for check in checks:
        if works or not check.in_schema:
            findings += room.examine(check)
    room.leave()
    return findings, problem


class _Room:
    """Keeps a connection for the checks, and makes another when a check has spoilt it."""

    def __init__(
        self, database: Database, config: Config, tasks: TaskSet | None, patience: float
    ) -> None:
        self._database, self._config, self._tasks = database, config, tasks
        self._patience = patience
        self._conn: Connection | None = None

    def examine(self, check: Check) -> list[Finding]:
        conn, self._conn = self._conn, None
        done = _begin(check.name, lambda: self._look(check, conn))
        try:
            findings, self._conn = done.result(self._patience)
        except FuturesTimeout:
            done.add_done_callback(_close_late)  # its thread goes on
            return [_unanswered(check, self._patience)]
        except Exception as problem:
            return [_failed(check, problem)]
        return findings

    def leave(self) -> None:
        conn, self._conn = self._conn, None
        if conn is not None:
            conn.close()

    def _look(self, check: Check, conn: Connection | None) -> tuple[list[Finding], Connection]:
        if conn is None:
            conn = self._database.connect("doctor", statement_timeout=STATEMENT_TIMEOUT)
        try:
            patient = Patient(conn, self._database, self._config, self._tasks)
            return list(check.look(patient)), conn
        except BaseException:
            conn.close()  # nobody knows its state
            raise


def _begin(name: str, work: Callable[[], T]) -> Future[T]:
    """Start it in a thread that nobody need wait for."""
    done: Future[T] = Future()

    def run() -> None:
        try:
            done.set_result(work())
        except BaseException as problem:
            done.set_exception(problem)

    threading.Thread(target=run, name=f"doctor.{name}", daemon=True).start()
    return done


def _close_late(done: Future[tuple[list[Finding], Connection]]) -> None:
    if done.exception() is None:
        done.result()[1].close()


def _unanswered(check: Check, seconds: float) -> Finding:
    return error(
        check.name, f"There was no answer within {seconds:g} s.",
        "Is the network slow, the server overloaded, or the pooler out of server connections?",
    )  # fmt: skip


def _failed(check: Check, problem: Exception) -> Finding:
    if isinstance(problem, errors.DatabaseUnavailable):
        return error(check.name, str(problem), "Run `conductor doctor` again when it is back.")
    text = " ".join(str(problem).split())
    return warning(
        check.name, f"This could not be looked at: {type(problem).__name__}: {text}",
        "Rights are granted by what `conductor migrate --sql` prints; a query that was cancelled "
        "waited for a lock or for a busy server: see the other findings.",
    )  # fmt: skip
