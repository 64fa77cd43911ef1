"""Snapshot: latency while another session holds an old snapshot, so that nothing is vacuumed."""

from __future__ import annotations

import statistics
from contextlib import ExitStack
from typing import TYPE_CHECKING, Final

from bench.measures import pacing
from bench.measures.columns import Column, Table
from bench.process import PeerProcess
from bench.stage import DATABASE, OWN

if TYPE_CHECKING:
    from collections.abc import Mapping

    from bench.peer import Peer, Settings
    from bench.stage import Stage

NAME: Final = "snapshot"
TABLES: Final = (
    Table(
        "held",
        "Latency at 500/s while another session holds a snapshot, and without",
        (
            Column("p99_ms", "p99 ms", 2),
            Column("p50_ms", "p50 ms", 2),
            Column("free_p99_ms", "without, p99 ms", 2),
            Column("free_p50_ms", "p50 ms", 2),
            Column("p99_ratio", "p99 ÷ without", 2),
            Column("p50_ratio", "p50 ÷ without", 2),
            Column("sent_rate", "sent/s"),
            Column("seconds", "seconds"),
        ),
        higher_is_better=False,
    ),
)
AMONG: Final[dict[str, Settings]] = {
    "conductor": "default",
    "graphile-worker": "default",
    "bare": "default",
}
_RATE: Final = 500  # per second
_FREE: Final = 0.2  # of the time goes on without a snapshot: there nothing piles up
_LAST: Final = 3  # the figures are those of the last third, when most versions are dead


def measure(stage: Stage) -> None:
    """Once only, however many rounds: it is long, and one run has 150,000 executions."""
    among = OWN if stage.plan.brief else AMONG
    stage.measure(NAME, [("held", "default")], _snapshot, among=among, rounds=1)


def _snapshot(
    stage: Stage, peer: Peer, _case: str, settings: Settings
) -> Mapping[str, float | None]:
    seconds = stage.plan.snapshot_seconds
    _, free = _run(stage, peer, settings, seconds * _FREE, held=False)
    rate, waits = _run(stage, peer, settings, seconds, held=True)
    p50, p99 = statistics.median(waits), pacing.p99(waits)
    free_p50, free_p99 = statistics.median(free), pacing.p99(free)
    return {
        "p50_ms": p50,
        "p99_ms": p99,
        "free_p50_ms": free_p50,
        "free_p99_ms": free_p99,
        "p50_ratio": p50 / free_p50,
        "p99_ratio": p99 / free_p99,
        "sent_rate": rate,
        "seconds": seconds,
    }


def _run(
    stage: Stage, peer: Peer, settings: Settings, seconds: float, *, held: bool
) -> tuple[float, list[float]]:
    with stage.fresh_database(peer) as (url, _meter), ExitStack() as stack:
        if held:
            holder = stack.enter_context(stage.postgres.connect(DATABASE))
            holder.execute("begin isolation level repeatable read")
            holder.execute("select count(*) from pg_class")
        worker = stack.enter_context(PeerProcess(peer, url, "worker"))
        producer = stack.enter_context(PeerProcess(peer, url, "producer"))
        pauses = pacing.pauses(0.5 / _RATE, 1.5 / _RATE)
        count, settle = int(seconds * _RATE), stage.plan.settle_seconds
        sent, waits = pacing.send_and_run(
            worker, producer, "stamp", count, pauses, settings, settle
        )
    return pacing.rate(sent), waits[-(len(waits) // _LAST) :]
