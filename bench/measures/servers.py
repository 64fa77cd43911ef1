"""Servers: one, two and four worker processes on one database."""

from __future__ import annotations

import time
from contextlib import ExitStack
from typing import TYPE_CHECKING, Final

from bench.measures.columns import Column, Table
from bench.measures.drain import wait_until_finished
from bench.process import PeerProcess
from bench.stage import DATABASE, OWN

if TYPE_CHECKING:
    from collections.abc import Mapping

    from bench.peer import Peer, Settings
    from bench.stage import Stage

NAME: Final = "servers"
TABLES: Final = (
    Table(
        "1, 2, 4",
        "One, two and four worker processes on one database",
        (
            Column("gain", "four ÷ one", 2),
            Column("one", "one, executions/s"),
            Column("two", "two"),
            Column("four", "four"),
            Column("deadlocks", "deadlocks"),
            Column("doubles", "run twice"),
            Column("count", "queued"),
        ),
    ),
)
AMONG: Final[dict[str, Settings]] = {
    "conductor": "default",
    "graphile-worker": "tuned",
    "bare": "default",
}
_TIMEOUT: Final = 180.0  # seconds
_POLL: Final = 0.02  # seconds: here the looking goes on during the run
_TIMES: Final = 5  # as many executions as other drains have, for four are soon done


def measure(stage: Stage) -> None:
    cases: list[tuple[str, Settings]] = [("1, 2, 4", "default"), ("1, 2, 4", "tuned")]
    stage.measure(NAME, cases, _servers, among=OWN if stage.plan.brief else AMONG)


def _servers(stage: Stage, peer: Peer, _: str, settings: Settings) -> Mapping[str, float | None]:
    count = stage.plan.count * _TIMES
    figures = {name: _drain(stage, peer, settings, count, n) for name, n in _NUMBERS.items()}
    rates = {name: rate for name, (rate, _, _) in figures.items()}
    return {
        **rates,
        "gain": rates["four"] / rates["one"],
        "deadlocks": sum(deadlocks for _, deadlocks, _ in figures.values()),
        "doubles": sum(doubles for _, _, doubles in figures.values()),
        "count": count,
    }


_NUMBERS: Final = {"one": 1, "two": 2, "four": 4}


def _drain(
    stage: Stage, peer: Peer, settings: Settings, count: int, number: int
) -> tuple[float, int, int]:
    """Executions per second, deadlocks, executions run twice (below zero: not at all).

    All processes are up before any is told to work; the time runs from the first body of the
    first of them, so that the start of the others weighs on the figure of several.
    """
    with stage.fresh_database(peer) as (url, meter), ExitStack() as stack:
        with PeerProcess(peer, url, "producer") as producer:
            producer.call("enqueue_many", _TIMEOUT, task="noop", count=count)
        meter.wait_until_alone()
        before = meter.read()
        conn = stack.enter_context(stage.postgres.connect(DATABASE))
        workers = [stack.enter_context(PeerProcess(peer, url, "worker")) for _ in range(number)]
        for worker in workers:
            worker.post("work", settings=settings)
        for worker in workers:
            worker.expect("done", _TIMEOUT)
        wait_until_finished(peer, conn, _POLL)
        ended = time.monotonic_ns()
        firsts = [at for worker in workers if (at := worker.first()) is not None]
        ran = sum(worker.call("stop", _TIMEOUT)["ran"] for worker in workers)
        stack.close()
        meter.wait_until_alone()
        deadlocks = (meter.read() - before).deadlocks
    return count / (ended - min(firsts)) * 1e9, deadlocks, ran - count
