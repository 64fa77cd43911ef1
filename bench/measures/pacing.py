"""Executions sent at a steady pace, and how long each took until its task began."""

from __future__ import annotations

import random
import statistics
import time
from typing import TYPE_CHECKING, Final

from bench.process import PeerFailed

if TYPE_CHECKING:
    from collections.abc import Sequence

    from bench.peer import Settings
    from bench.process import PeerProcess

WARMING: Final = 5  # the first ones open connections and prepare statements; not counted
TIMEOUT: Final = 60.0  # seconds, beyond the pauses themselves


def pauses(low: float, high: float) -> list[float]:
    """Seconds from one call to the next, to be used in turn; the same for all peers."""
    dice = random.Random(7)
    return [dice.uniform(low, high) for _ in range(100)]


def send(
    producer: PeerProcess, tasks: Sequence[str], count: int, between: Sequence[float]
) -> list[int]:
    """Send `count` executions of these tasks in turn; the nanosecond at which each call began."""
    patience = TIMEOUT + 3 * count * statistics.fmean(between)
    wanted = {"tasks": list(tasks), "count": count, "pauses": list(between)}
    sent: list[int] = producer.call("enqueue_paced", patience, **wanted)["sent"]
    return sent


def send_and_run(
    worker: PeerProcess,
    producer: PeerProcess,
    task: str,
    count: int,
    between: Sequence[float],
    settings: Settings,
    settle: float,
) -> tuple[list[int], list[float]]:
    """Start a worker, send it executions, wait until all have run: when sent, ms each waited."""
    worker.call("work", TIMEOUT, settings=settings, count=count + WARMING)
    time.sleep(settle)
    sent = send(producer, [task], count + WARMING, between)
    worker.expect("ran", TIMEOUT)
    return sent[WARMING:], waits(sent, worker.call("stop", TIMEOUT)["stamps"])[WARMING:]


def waits(sent: Sequence[int], stamps: Sequence[tuple[int, int]]) -> list[float]:
    """Milliseconds from each call to the start of its task."""
    started = dict(stamps)
    missing = sum(number not in started for number in range(len(sent)))
    if missing:
        raise PeerFailed(f"{missing} of {len(sent)} executions never started")
    return [(started[number] - at) / 1e6 for number, at in enumerate(sent)]


def rate(sent: Sequence[int]) -> float:
    """Calls per second."""
    return (len(sent) - 1) / (sent[-1] - sent[0]) * 1e9


def p99(values: Sequence[float]) -> float:
    return statistics.quantiles(values, n=100, method="inclusive")[98]
