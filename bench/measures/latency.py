"""Latency: from just before the enqueue call to the start of the task in an idle worker."""

from __future__ import annotations

import random
import statistics
import time
from typing import TYPE_CHECKING, Final

from bench.measures.columns import Column, Table
from bench.process import PeerFailed, PeerProcess

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
_WARMING: Final = 5  # the first ones open connections and prepare statements; not counted
_TIMEOUT: Final = 60.0  # seconds, beyond the pauses themselves


def measure(stage: Stage) -> None:
    stage.measure(NAME, [("idle worker", "default")], _latency)


def _latency(stage: Stage, peer: Peer, _: str, settings: Settings) -> Mapping[str, float | None]:
    dice = random.Random(7)  # the same pauses for all
    pauses = [dice.uniform(0.05, 0.15) for _ in range(stage.plan.latency_jobs + _WARMING)]
    with (
        stage.fresh_database(peer) as (url, _meter),
        PeerProcess(peer, url, "worker") as worker,
        PeerProcess(peer, url, "producer") as producer,
    ):
        worker.call("work", _TIMEOUT, settings=settings)
        time.sleep(stage.plan.settle_seconds)
        sent = producer.call("enqueue_paced", _TIMEOUT + sum(pauses), task="stamp", pauses=pauses)
        time.sleep(1)
        started = dict(worker.call("stop", _TIMEOUT)["stamps"])
    missing = [number for number in range(len(pauses)) if number not in started]
    if missing:
        raise PeerFailed(f"{peer.name}: {len(missing)} jobs had not started a second later")
    waits = [(started[n] - at) / 1e6 for n, at in enumerate(sent["sent"])][_WARMING:]
    return {
        "p50_ms": statistics.median(waits),
        "p99_ms": statistics.quantiles(waits, n=100, method="inclusive")[98],
        "max_ms": max(waits),
        "count": len(waits),
    }
