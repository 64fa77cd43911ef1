"""Drain: how fast one worker process works off a full queue, and what each execution costs."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, Final

from bench.measures.columns import COST, Column, Table
from bench.meters import process_cpu, process_peak, process_rss, server_cpu
from bench.process import PeerFailed, PeerProcess
from bench.stage import DATABASE, FEW

if TYPE_CHECKING:
    from collections.abc import Mapping

    import psycopg

    from bench.meters import ServerMeter
    from bench.peer import Peer, Settings
    from bench.stage import Stage

NAME: Final = "drain"
_COLUMNS: Final = (Column("rate", "executions/s"), *COST, Column("count", "queued"))
TABLES: Final = (
    Table("noop", "Drain, a task that does nothing", _COLUMNS),
    Table("sleep", "Drain, a task that sleeps 1 ms", _COLUMNS),
    Table("cpu", "Drain, a task that takes 100 µs of CPU", _COLUMNS),
)
TIMEOUT: Final = 180.0  # seconds, for one drain
_POLL: Final = 0.002  # seconds between looks at what is unfinished, after the last body ended


def measure(stage: Stage) -> None:
    every: tuple[Settings, ...] = ("default", "tuned", "discard")
    noop, *others = (table.case for table in TABLES)
    stage.measure(NAME, [(noop, settings) for settings in every], _drain)
    among = FEW if stage.plan.brief else None
    cases = [(task, settings) for task in others for settings in every[:2]]
    stage.measure(NAME, cases, _drain, among=among)


def _drain(stage: Stage, peer: Peer, case: str, settings: Settings) -> Mapping[str, float | None]:
    return drain(stage, peer, case, settings, stage.plan.count)


def drain(
    stage: Stage, peer: Peer, task: str, settings: Settings, count: int, size: int = 0
) -> dict[str, float | None]:
    """Queue `count` executions with payloads of `size` bytes, then work them off."""
    count = stage.count(peer, count, settings)
    with stage.fresh_database(peer) as (url, meter):
        with PeerProcess(peer, url, "producer") as producer:
            done = producer.call("enqueue_many", TIMEOUT, task=task, count=count, size=size)
        meter.wait_until_alone()
        before = meter.read()
        with PeerProcess(peer, url, "worker") as worker, stage.postgres.connect(DATABASE) as conn:
            worker.post("work", settings=settings, count=count)
            timing = _watch(stage, peer, worker, conn, meter)
            rss, peak = process_rss(worker.pid), process_peak(worker.pid)
            ran = worker.call("stop", TIMEOUT)["ran"]
        if ran != count:
            raise PeerFailed(f"{peer.name} ran {ran} bodies for {count} executions")
        meter.wait_until_alone()
        spent = meter.read() - before
    return {
        "rate": count / timing["seconds"],
        "client_us": timing["client"] / count * 1e6,
        "server_us": timing["server"] / count * 1e6,
        "statements": None if spent.statements is None else spent.statements / count,
        "commits": (spent.commits - timing["polls"]) / count,
        "wal_bytes": spent.wal_bytes / count,
        "dead_rows": spent.dead_rows / count,
        "count": count,
        "enqueue_rate": count / done["seconds"],
        "rss_mib": rss / 2**20,
        "peak_mib": peak / 2**20,
    }


def _watch(
    stage: Stage, peer: Peer, worker: PeerProcess, conn: psycopg.Connection, meter: ServerMeter
) -> dict[str, Any]:
    """From the first body's start to the moment when the database shows nothing unfinished."""
    ours = (meter.pid, conn.info.backend_pid)
    began = worker.expect("first", TIMEOUT)["at"]
    client, server = process_cpu(worker.pid), server_cpu(stage.postgres, without=ours)
    worker.expect("done", TIMEOUT)  # of the command "work"
    worker.expect("ran", TIMEOUT)
    polls = wait_until_finished(peer, conn)
    ended = time.monotonic_ns()
    return {
        "seconds": (ended - began) / 1e9,
        "client": process_cpu(worker.pid) - client,
        "server": server_cpu(stage.postgres, without=ours) - server,
        "polls": polls,
    }


def wait_until_finished(peer: Peer, conn: psycopg.Connection, pause: float = _POLL) -> int:
    """Until the database shows nothing unfinished, in looks `pause` apart; how many it took."""
    deadline = time.monotonic() + TIMEOUT
    looks = 0
    while True:
        looks += 1
        row = conn.execute(peer.unfinished.encode()).fetchone()
        if row is not None and not row[0]:
            return looks
        if time.monotonic() > deadline:
            raise PeerFailed(f"{peer.name}: executions left unfinished")
        time.sleep(pause)
