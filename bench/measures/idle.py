"""Idle: what a worker with nothing to do costs, and Conductor's whole daemon."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final

from bench.daemon import Daemon
from bench.measures.columns import Column, Table
from bench.meters import process_cpu, process_rss, server_cpu
from bench.process import PeerProcess
from bench.stage import OWN

if TYPE_CHECKING:
    from collections.abc import Mapping

    from bench.meters import ServerMeter
    from bench.peer import Peer, Settings
    from bench.stage import Stage

NAME: Final = "idle"
_COLUMNS: Final = (
    Column("statements_s", "statements/s", 2),
    Column("client_percent", "worker CPU %", 2),
    Column("server_percent", "server CPU %", 2),
    Column("rss_mib", "worker RSS MiB", 1),
    Column("wal_bytes_s", "WAL bytes/s"),
)
TABLES: Final = (
    Table("worker", "Idle, a worker with nothing to do", _COLUMNS, higher_is_better=False),
    Table(
        "daemon", "Idle, `conductor start-server` with one task", _COLUMNS, higher_is_better=False
    ),
)
_TIMEOUT: Final = 60.0  # seconds


def measure(stage: Stage) -> None:
    stage.measure(NAME, [("worker", "default")], _worker)
    stage.measure(NAME, [("daemon", "default")], _daemon, among=OWN)


def _worker(stage: Stage, peer: Peer, _: str, settings: Settings) -> Mapping[str, float | None]:
    with stage.fresh_database(peer) as (url, meter), PeerProcess(peer, url, "worker") as worker:
        worker.call("work", _TIMEOUT, settings=settings)
        figures = _watch(stage, meter, worker.pid)
        worker.call("stop", _TIMEOUT)
    return figures


def _daemon(stage: Stage, peer: Peer, _: str, __: Settings) -> Mapping[str, float | None]:
    with stage.fresh_database(peer) as (url, meter), Daemon(url) as daemon:
        daemon.wait_until_ready(_TIMEOUT)
        return _watch(stage, meter, daemon.pid)


def _watch(stage: Stage, meter: ServerMeter, pid: int) -> dict[str, float | None]:
    time.sleep(stage.plan.settle_seconds)
    counts, client = meter.read(), process_cpu(pid)
    server = server_cpu(stage.postgres, without=(meter.pid,))
    began = time.monotonic()
    time.sleep(stage.plan.idle_seconds)
    seconds = time.monotonic() - began
    client = process_cpu(pid) - client
    server = server_cpu(stage.postgres, without=(meter.pid,)) - server
    rss = process_rss(pid)
    spent = meter.read() - counts
    return {
        "statements_s": None if spent.statements is None else spent.statements / seconds,
        "client_percent": client / seconds * 100,
        "server_percent": server / seconds * 100,
        "rss_mib": rss / 2**20,
        "wal_bytes_s": spent.wal_bytes / seconds,
    }
