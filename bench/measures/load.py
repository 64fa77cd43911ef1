"""Load: latency while half of a worker's ten slots are busy."""

from __future__ import annotations

import statistics
from typing import TYPE_CHECKING, Final

from bench.measures import pacing
from bench.measures.columns import Column, Table
from bench.process import PeerProcess

if TYPE_CHECKING:
    from collections.abc import Mapping

    from bench.peer import Peer, Settings
    from bench.stage import Stage

NAME: Final = "load"
TABLES: Final = (
    Table(
        "half",
        "Latency under load: 500/s of a task that sleeps 10 ms, ten at once",
        (
            Column("p50_ms", "p50 ms", 2),
            Column("p99_ms", "p99 ms", 2),
            Column("max_ms", "max ms", 2),
            Column("sent_rate", "sent/s"),
            Column("count", "jobs"),
        ),
        higher_is_better=False,
    ),
)
RATE: Final = 500  # per second: with 10 ms each they fill five slots of ten


def measure(stage: Stage) -> None:
    stage.measure(NAME, [("half", "default")], _load)


def _load(stage: Stage, peer: Peer, _case: str, settings: Settings) -> Mapping[str, float | None]:
    plan = stage.plan
    with (
        stage.fresh_database(peer) as (url, _meter),
        PeerProcess(peer, url, "worker") as worker,
        PeerProcess(peer, url, "producer") as producer,
    ):
        pauses = pacing.pauses(0.5 / RATE, 1.5 / RATE)
        count, settle = int(plan.load_seconds * RATE), plan.settle_seconds
        sent, waits = pacing.send_and_run(worker, producer, "hold", count, pauses, settings, settle)
    return {
        "p50_ms": statistics.median(waits),
        "p99_ms": pacing.p99(waits),
        "max_ms": max(waits),
        "sent_rate": pacing.rate(sent),
        "count": len(waits),
    }
