"""Payload: enqueueing in bulk and draining with payloads of different sizes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from bench.measures.columns import Column, Table
from bench.measures.drain import drain
from bench.stage import FEW

if TYPE_CHECKING:
    from collections.abc import Mapping

    from bench.peer import Peer, Settings
    from bench.stage import Stage

NAME: Final = "payload"
_COLUMNS: Final = (
    Column("rate", "executions/s"),
    Column("mib_rate", "MiB/s", 1),
    Column("enqueue_rate", "bulk enqueue/s"),
    Column("client_us", "client CPU µs", 1),
    Column("server_us", "server CPU µs", 1),
    Column("wal_bytes", "WAL bytes"),
    Column("rss_mib", "worker RSS MiB", 1),
    Column("count", "queued"),
)
TABLES: Final = (
    Table("100 B", "Payloads of 100 B, drain of a no-op", _COLUMNS),
    Table("10 KB", "Payloads of 10 KB, drain of a no-op", _COLUMNS),
    Table("200 KB", "Payloads of 200 KB, drain of a no-op", _COLUMNS),
)
_SIZES: Final = {"100 B": (100, 1), "10 KB": (10_000, 10), "200 KB": (200_000, 100)}
_AT_LEAST: Final = 20  # executions; otherwise fewer, the larger they are


def measure(stage: Stage) -> None:
    among = FEW if stage.plan.brief else None
    stage.measure(NAME, [(case, "default") for case in _SIZES], _payload, among=among)


def _payload(stage: Stage, peer: Peer, case: str, settings: Settings) -> Mapping[str, float | None]:
    size, share = _SIZES[case]
    count = max(stage.plan.count // share, _AT_LEAST)
    figures = drain(stage, peer, "noop", settings, count, size)
    rate = figures["rate"]
    return {**figures, "mib_rate": None if rate is None else rate * size / 2**20}
