"""Processes: what tasks that compute gain from a daemon of two processes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from bench.daemon import Daemon
from bench.measures.columns import Column, Table
from bench.measures.drain import wait_until_finished
from bench.stage import DATABASE, OWN

if TYPE_CHECKING:
    from collections.abc import Mapping

    from bench.peer import Peer, Settings
    from bench.stage import Stage

NAME: Final = "processes"
_COLUMNS: Final = (
    Column("gain", "two ÷ one", 2),
    Column("one", "one, executions/s"),
    Column("two", "two"),
    Column("count", "queued"),
)
TABLES: Final = (
    Table("100 us", "`conductor start-server --processes`, a task of 100 µs of CPU", _COLUMNS),
    Table("1 ms", "`conductor start-server --processes`, a task of 1 ms of CPU", _COLUMNS),
)
_MICROSECONDS: Final = {"100 us": 100, "1 ms": 1000}
_FEWER: Final = {"100 us": 1, "1 ms": 5}  # so that either takes seconds
_TIMEOUT: Final = 30.0  # seconds
_POLL: Final = 0.05  # seconds: here the looking goes on during the run
_TASKS: Final = """
import time
from conductor_cli import task

@task
def compute(us: int) -> None:
    until = time.thread_time_ns() + us * 1000
    while time.thread_time_ns() < until:
        pass
"""
_ENQUEUE: Final = """
select count(conductor.invoke('compute', json_build_object('us', %s::int)::jsonb))
from generate_series(1, %s)
"""
_SECONDS: Final = """
select extract(epoch from max(finished_at) - min(started_at))::float8 from conductor.executions
"""


def measure(stage: Stage) -> None:
    cases: list[tuple[str, Settings]] = [(table.case, "default") for table in TABLES]
    stage.measure(NAME, cases, _processes, among=OWN)


def _processes(stage: Stage, peer: Peer, case: str, _: Settings) -> Mapping[str, float | None]:
    count = stage.plan.count // _FEWER[case]
    one, two = (_rate(stage, peer, _MICROSECONDS[case], count, n) for n in (1, 2))
    return {"gain": two / one, "one": one, "two": two, "count": count}


def _rate(stage: Stage, peer: Peer, microseconds: int, count: int, number: int) -> float:
    """From the first claim to the last record, by Postgres's clock: the daemon is up before."""
    with (
        stage.fresh_database(peer) as (url, _meter),
        Daemon(url, tasks=_TASKS, processes=number) as daemon,
        stage.postgres.connect(DATABASE) as conn,
    ):
        daemon.wait_until_ready(_TIMEOUT)
        conn.execute(_ENQUEUE, [microseconds, count])
        wait_until_finished(peer, conn, _POLL)
        row = conn.execute(_SECONDS).fetchone()
        assert row is not None
        return count / float(row[0])
