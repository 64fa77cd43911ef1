"""Start: from the start of Conductor's daemon until it says that it is ready."""

from __future__ import annotations

import statistics
from typing import TYPE_CHECKING, Final

from bench.daemon import Daemon
from bench.measures.columns import Column, Table
from bench.stage import OWN

if TYPE_CHECKING:
    from collections.abc import Mapping

    from bench.peer import Peer, Settings
    from bench.stage import Stage

NAME: Final = "start"
TABLES: Final = (
    Table(
        "ready",
        "`conductor start-server` until /readyz answers 200, schema current",
        (
            Column("seconds", "median s", 2),
            Column("best", "best s", 2),
            Column("worst", "worst s", 2),
            Column("count", "starts"),
        ),
        higher_is_better=False,
    ),
)
_TIMEOUT: Final = 30.0  # seconds


def measure(stage: Stage) -> None:
    stage.measure(NAME, [("ready", "default")], _start, among=OWN)


def _start(stage: Stage, peer: Peer, _case: str, _settings: Settings) -> Mapping[str, float | None]:
    """The first start, which compiles modules and registers the tasks, does not count."""
    with stage.fresh_database(peer) as (url, _meter):
        times = []
        for _ in range(stage.plan.starts + 1):
            with Daemon(url) as daemon:
                times.append(daemon.wait_until_ready(_TIMEOUT))
    times = times[1:]
    return {
        "seconds": statistics.median(times),
        "best": min(times),
        "worst": max(times),
        "count": len(times),
    }
