"""Queues: three in one process, all threads of one asleep; the other two must not suffer."""

from __future__ import annotations

import statistics
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from bench.measures import pacing
from bench.measures.columns import Column, Table
from bench.process import PeerProcess
from bench.stage import OWN

if TYPE_CHECKING:
    from collections.abc import Mapping

    from bench.peer import Peer, Settings
    from bench.stage import Stage

NAME: Final = "queues"
TABLES: Final = (
    Table(
        "blocked",
        "Two queues while a third is blocked, and while it is empty",
        (
            Column("p99_ms", "p99 ms", 2),
            Column("p50_ms", "p50 ms", 2),
            Column("free_p99_ms", "third empty, p99 ms", 2),
            Column("free_p50_ms", "p50 ms", 2),
            Column("rate", "executions/s"),
            Column("free_rate", "third empty, executions/s"),
            Column("p50_ratio", "p50 ÷ empty", 2),
            Column("rate_ratio", "rate ÷ empty", 2),
        ),
        higher_is_better=False,
    ),
)
_PROGRAM: Final = "bench.peers.conductor_queues"
_BLOCKED: Final = 20  # ten that sleep in its ten threads, ten that wait
_RATE: Final = 200  # per second, over both queues
_TIMEOUT: Final = 60.0  # seconds


def measure(stage: Stage) -> None:
    stage.measure(NAME, [("blocked", "default")], _queues, among=OWN)


def _queues(stage: Stage, peer: Peer, _: str, settings: Settings) -> Mapping[str, float | None]:
    peer = replace(peer, program=_PROGRAM)
    free, free_rate = _run(stage, peer, settings, blocked=False)
    waits, rate = _run(stage, peer, settings, blocked=True)
    p50, free_p50 = statistics.median(waits), statistics.median(free)
    return {
        "p50_ms": p50,
        "p99_ms": pacing.p99(waits),
        "free_p50_ms": free_p50,
        "free_p99_ms": pacing.p99(free),
        "rate": rate,
        "free_rate": free_rate,
        "p50_ratio": p50 / free_p50,
        "rate_ratio": rate / free_rate,
    }


def _run(
    stage: Stage, peer: Peer, settings: Settings, *, blocked: bool
) -> tuple[list[float], float]:
    """First some at a pace, for the latency; then many at once, for the rate."""
    plan = stage.plan
    paced, half = int(plan.load_seconds * _RATE), plan.count // 2
    with (
        stage.fresh_database(peer) as (url, _meter),
        PeerProcess(peer, url, "worker") as worker,
        PeerProcess(peer, url, "producer") as producer,
    ):
        worker.call("work", _TIMEOUT, settings=settings, count=paced + 2 * half)
        if blocked:
            producer.call("enqueue_many", _TIMEOUT, task="block", count=_BLOCKED)
        time.sleep(plan.settle_seconds)
        pauses = pacing.pauses(0.5 / _RATE, 1.5 / _RATE)
        sent = pacing.send(producer, ["stamp-a", "stamp-b"], paced, pauses)
        began = time.monotonic_ns()
        for task in ("noop-a", "noop-b"):
            producer.call("enqueue_many", _TIMEOUT, task=task, count=half)
        ended = worker.expect("ran", _TIMEOUT)["at"]
        stamps = worker.call("stop", _TIMEOUT)["stamps"]
    waits = pacing.waits(sent, stamps)[pacing.WARMING :]
    return waits, 2 * half / (ended - began) * 1e9
