"""Memory: what a worker holds after it has worked off a full queue."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from bench.measures.columns import Column, Table
from bench.measures.drain import drain

if TYPE_CHECKING:
    from collections.abc import Mapping

    from bench.peer import Peer, Settings
    from bench.stage import Stage

NAME: Final = "memory"
TABLES: Final = (
    Table(
        "drained",
        "Memory, a worker after a drain of no-ops",
        (
            Column("rss_mib", "RSS MiB", 1),
            Column("peak_mib", "peak MiB", 1),
            Column("count", "executions"),
        ),
        higher_is_better=False,
    ),
)
_TIMES: Final = 5  # as many executions as other drains have


def measure(stage: Stage) -> None:
    stage.measure(NAME, [("drained", "default")], _memory)


def _memory(stage: Stage, peer: Peer, _: str, settings: Settings) -> Mapping[str, float | None]:
    count = stage.plan.count * (1 if stage.plan.brief else _TIMES)
    return drain(stage, peer, "noop", settings, count)
