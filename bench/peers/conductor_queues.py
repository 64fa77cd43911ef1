"""Conductor with three queues, for the measure `queues`: two that work, one that can be blocked.

Its tasks are `stamp-a`, `stamp-b`, `noop-a`, `noop-b`, each in the queue of that letter, and
`block` in the queue `blocked`, which sleeps until the worker is told to stop.
"""

from __future__ import annotations

import threading
from typing import Any, Final

from bench.peers.conductor import ConductorAdapter
from bench.peers.protocol import serve

_LONGEST: Final = 300.0  # seconds; the measure is over long before


class QueuesAdapter(ConductorAdapter):
    def __init__(self) -> None:
        self._over = threading.Event()
        super().__init__()

    async def stop(self) -> None:
        self._over.set()
        await super().stop()

    def make_tasks(self, **options: Any) -> list[Any]:
        from conductor_cli import task

        @task(queue="blocked", **options)
        def block(n: int, to: str) -> None:  # noqa: ARG001
            self._over.wait(_LONGEST)

        return [block, *self._in_queue("a"), *self._in_queue("b")]

    def _in_queue(self, queue: str) -> list[Any]:
        from conductor_cli import task

        @task(name=f"stamp-{queue}", queue=queue)
        def stamp(n: int, to: str) -> None:  # noqa: ARG001
            self._bodies.stamp(n)

        @task(name=f"noop-{queue}", queue=queue)
        def noop(n: int, to: str) -> None:  # noqa: ARG001
            self._bodies.noop()

        return [stamp, noop]


if __name__ == "__main__":
    serve(QueuesAdapter())
