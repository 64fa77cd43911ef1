"""Enqueue: many at once in the fastest documented way, and one by one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from bench.measures.columns import COST, Column, Table
from bench.meters import server_cpu
from bench.process import PeerProcess

if TYPE_CHECKING:
    from collections.abc import Mapping

    from bench.peer import Peer, Settings
    from bench.stage import Stage

NAME: Final = "enqueue"
_COLUMNS: Final = (Column("rate", "executions/s"), *COST, Column("count", "enqueued"))
TABLES: Final = (
    Table("bulk", "Enqueue, in bulk", _COLUMNS),
    Table("single", "Enqueue, one by one", _COLUMNS),
)
_TIMEOUT: Final = 120.0  # seconds
_WARMING: Final = 10  # executions enqueued beforehand: connections open, statements prepared


def measure(stage: Stage) -> None:
    stage.measure(NAME, [("bulk", "default"), ("single", "default")], _enqueue)


def _enqueue(stage: Stage, peer: Peer, case: str, _: Settings) -> Mapping[str, float | None]:
    with stage.fresh_database(peer) as (url, meter):
        with PeerProcess(peer, url, "producer") as producer:
            producer.call("enqueue_many", _TIMEOUT, task="noop", count=_WARMING)
            producer.call("enqueue_for", _TIMEOUT, task="noop", seconds=0.05)
            before = meter.read()
            server = server_cpu(stage.postgres, without=(meter.pid,))
            if case == "bulk":
                count = stage.plan.count
                done = producer.call("enqueue_many", _TIMEOUT, task="noop", count=count)
            else:
                seconds = stage.plan.single_seconds
                done = producer.call("enqueue_for", _TIMEOUT, task="noop", seconds=seconds)
            server = server_cpu(stage.postgres, without=(meter.pid,)) - server
            wal = (meter.read() - before).wal_bytes
            statements = (meter.read() - before).statements
        meter.wait_until_alone()
    count = done["count"]
    return {
        "rate": count / done["seconds"],
        "client_us": done["cpu"] / count * 1e6,
        "server_us": server / count * 1e6,
        "statements": None if statements is None else statements / count,
        "commits": None,  # not in the statistics before the producer ends, its warming up included
        "wal_bytes": wal / count,
        "dead_rows": None,
        "count": count,
    }
