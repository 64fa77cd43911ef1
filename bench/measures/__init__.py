"""The measures, one per file. Each has NAME, TABLES and `measure(stage)`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from bench.measures import (
    crowd,
    drain,
    durable,
    enqueue,
    idle,
    latency,
    load,
    memory,
    payload,
    processes,
    queues,
    servers,
    snapshot,
    start,
    transaction,
)

if TYPE_CHECKING:
    from types import ModuleType

MEASURES: Final[dict[str, ModuleType]] = {
    module.NAME: module
    for module in (
        drain,
        durable,
        enqueue,
        transaction,
        latency,
        load,
        queues,
        payload,
        servers,
        processes,
        crowd,
        snapshot,
        memory,
        idle,
        start,
    )
}
