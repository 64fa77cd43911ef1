"""Latency: from just before the enqueue call to the start of the task in an idle worker."""

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

NAME: Final = "latency"
TABLES: Final = (
    Table(
        "idle worker",
        "Latency, from the enqueue call to the start of the task, worker idle",
        (
            Column("p50_ms", "p50 ms", 2),
            Column("p99_ms", "p99 ms", 2),
            Column("max_ms", "max ms", 2),
            Column("count", "jobs"),
        ),
        higher_is_better=False,
    ),
)


def measure(stage: Stage) -> None:
    stage.measure(NAME, [("idle worker", "default")], _latency)


def _latency(
    stage: Stage, peer: Peer, _case: str, settings: Settings
) -> Mapping[str, float | None]:
    plan = stage.plan
    with (
        stage.fresh_database(peer) as (url, _meter),
        PeerProcess(peer, url, "worker") as worker,
        PeerProcess(peer, url, "producer") as producer,
    ):
        pauses = pacing.pauses(0.05, 0.15)
        count, settle = plan.latency_jobs, plan.settle_seconds
        _, waits = pacing.send_and_run(worker, producer, "stamp", count, pauses, settings, settle)
    return {
        "p50_ms": statistics.median(waits),
        "p99_ms": pacing.p99(waits),
        "max_ms": max(waits),
        "count": len(waits),
    }
