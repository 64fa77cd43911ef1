"""Reads what the operating system and Postgres have counted. Linux only."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Collection

    import psycopg

    from bench.postgres import Postgres

_CPUCLOCK_SCHED: Final = 2
_TICKS: Final = os.sysconf("SC_CLK_TCK")
_GONE_TIMEOUT: Final = 10.0  # seconds


def process_cpu(pid: int) -> float:
    """CPU seconds, user and system, of a process and its descendants, ended threads included."""
    return _own_cpu(pid) + sum(process_cpu(child) for child in _children(pid))


def process_rss(pid: int) -> float:
    """Resident memory of a process and its descendants, in bytes."""
    own = int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return own + sum(process_rss(child) for child in _children(pid))


def process_peak(pid: int) -> float:
    """The largest resident memory that the process itself ever had, in bytes."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return 0.0


def server_cpu(postgres: Postgres, without: Collection[int] = ()) -> float:
    """CPU seconds of the whole server: backends, ended ones too, WAL writer, autovacuum, ...

    `without`: process ids of the harness's own connections. Processes that ended are counted in
    ticks of the kernel (10 ms in sum, not each), all others in nanoseconds.
    """
    living = [pid for pid in _children(postgres.pid) if pid not in without]
    return _own_cpu(postgres.pid) + _reaped_cpu(postgres.pid) + sum(_own_cpu(pid) for pid in living)


def _own_cpu(pid: int) -> float:
    try:
        return time.clock_gettime((~pid << 3) | _CPUCLOCK_SCHED)
    except OSError:  # it ended meanwhile: its time is in its parent's account by now
        return 0.0


def _reaped_cpu(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[13]) + int(fields[14])) / _TICKS


def _children(pid: int) -> list[int]:
    try:
        tasks = list(Path(f"/proc/{pid}/task").iterdir())
        return [int(child) for t in tasks for child in (t / "children").read_text().split()]
    except OSError:
        return []


@dataclass(frozen=True)
class ServerCounts:
    """What one database has cost so far; the difference of two is what an interval cost.

    `statements` are top-level statements as pg_stat_statements counts them (BEGIN and COMMIT too),
    None without it. `commits`, `deadlocks` and `dead_rows` (versions made dead by updates and
    deletes) reach the statistics when a backend ends or has been idle for ten seconds.
    """

    statements: int | None
    commits: int
    dead_rows: int
    wal_bytes: int
    deadlocks: int

    def __sub__(self, other: ServerCounts) -> ServerCounts:
        return ServerCounts(
            statements=None
            if self.statements is None or other.statements is None
            else self.statements - other.statements,
            commits=self.commits - other.commits,
            dead_rows=self.dead_rows - other.dead_rows,
            wal_bytes=self.wal_bytes - other.wal_bytes,
            deadlocks=self.deadlocks - other.deadlocks,
        )


class ServerMeter:
    """Counts for one database, read from outside it so as to add nothing to them."""

    def __init__(self, postgres: Postgres, database: str) -> None:
        self._postgres = postgres
        self._conn: psycopg.Connection = postgres.connect()
        self._database = database

    @property
    def pid(self) -> int:
        """The server process of this meter's connection."""
        return self._conn.info.backend_pid

    def read(self) -> ServerCounts:
        row = self._conn.execute(_COUNTS, {"database": self._database}).fetchone()
        assert row is not None
        return ServerCounts(
            statements=self._statements() if self._postgres.counts_statements else None,
            commits=row[0],
            dead_rows=row[1],
            wal_bytes=row[2],
            deadlocks=row[3],
        )

    def wait_until_alone(self) -> None:
        """Wait until nobody is connected to the database, and so all statistics are in."""
        deadline = time.monotonic() + _GONE_TIMEOUT
        while time.monotonic() < deadline:
            row = self._conn.execute(_CONNECTED, {"database": self._database}).fetchone()
            if row is None or row[0] == 0:
                return
            time.sleep(0.02)

    def close(self) -> None:
        self._conn.close()

    def _statements(self) -> int:
        row = self._conn.execute(_STATEMENTS, {"database": self._database}).fetchone()
        assert row is not None
        return int(row[0])


_COUNTS: Final = """
    select xact_commit, tup_updated + tup_deleted,
           pg_wal_lsn_diff(pg_current_wal_insert_lsn(), '0/0')::bigint, deadlocks
    from pg_stat_database where datname = %(database)s
"""
_STATEMENTS: Final = """
    select coalesce(sum(s.calls), 0)::bigint
    from pg_stat_statements as s join pg_database as d on d.oid = s.dbid
    where d.datname = %(database)s and s.userid <> 'bench_watcher'::regrole
"""
_CONNECTED: Final = """
    select count(*) from pg_stat_activity
    where datname = %(database)s and backend_type = 'client backend'
"""
