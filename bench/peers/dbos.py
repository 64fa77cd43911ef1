"""dbos (PyPI): workflows on a queue, enqueued with its client."""

from __future__ import annotations

import asyncio
import logging
from importlib.metadata import version
from typing import Any, Final

from bench.peer import Peer, Venv
from bench.peers.protocol import (
    CHILDREN,
    HOLD,
    INSERT_ORDER,
    STEPS,
    Bodies,
    Payload,
    echo,
    serve,
    url,
)

PEER = Peer(
    name="dbos",
    program="bench.peers.dbos",
    environment=Venv(("dbos==3.4.0", "psycopg[binary]==3.3.9")),
    unfinished="select exists (select from dbos.workflow_status"
    " where status in ('ENQUEUED', 'PENDING', 'DELAYED'))",
    skips=("load/*", "payload/*/default"),
    most={"default": 100, "tuned": 2_000},
    can=frozenset({"transact", "durable"}),
    extra=True,
    note="default: 10 at once, polled every second, 100 queued at most; tuned: 100 at once, polled"
    " every 0.1 s, 2,000 queued at most",
)

QUEUE: Final[dict[str, dict[str, Any]]] = {
    "default": {"worker_concurrency": 10},
    "tuned": {"worker_concurrency": 100, "polling_interval_sec": 0.1},
}


class DbosAdapter:
    """Its calls block, as those of a program without asyncio would."""

    def __init__(self) -> None:
        self.versions = f"dbos {version('dbos')}, psycopg {version('psycopg')}"
        self._client: Any = None
        self._engine: Any = None
        self._bodies: Any = None  # the worker's, from `start` on

    async def setup(self) -> None:
        await asyncio.to_thread(self._launch)

    async def enqueue_many(self, task: str, payloads: list[Payload]) -> None:
        """It has no call for many, but takes many in one transaction."""
        client = self._open()
        with self._engine.begin() as conn:
            for payload in payloads:
                client.enqueue_in_transaction(conn, _options(task), **payload)

    async def enqueue(self, task: str, payload: Payload) -> None:
        client = self._client or self._open()
        await client.enqueue_async(_options(task), **payload)

    async def transact(self, task: str | None, payload: Payload) -> None:
        client = self._open()
        with self._engine.begin() as conn:
            conn.exec_driver_sql(INSERT_ORDER)
            if task:
                client.enqueue_in_transaction(conn, _options(task), **payload)

    async def start(self, settings: str, bodies: Bodies) -> None:
        self._bodies = bodies
        await asyncio.to_thread(self._launch, settings)

    async def stop(self) -> None:
        from dbos import DBOS

        await asyncio.to_thread(DBOS.destroy, workflow_completion_timeout_sec=5)

    def _launch(self, settings: str | None = None) -> None:
        from dbos import DBOS

        DBOS(config={"name": "bench", "system_database_url": url(), "log_level": "WARNING"})
        self._register()
        DBOS.launch()
        if settings:
            DBOS.register_queue("bench", **QUEUE[settings])

    def _open(self) -> Any:
        import sqlalchemy
        from dbos import DBOSClient

        if self._client is None:
            logging.getLogger("dbos").setLevel(logging.WARNING)
            self._client = DBOSClient(system_database_url=url(), application_name="bench")
            address = url().replace("postgresql://", "postgresql+psycopg://")
            self._engine = sqlalchemy.create_engine(address)
        return self._client

    def _register(self) -> None:
        from dbos import DBOS

        @DBOS.workflow(name="noop")
        async def noop(n: int, to: str) -> None:  # noqa: ARG001
            self._bodies.noop()

        @DBOS.workflow(name="sleep")
        async def sleep(n: int, to: str) -> None:  # noqa: ARG001
            self._bodies.begin()
            await asyncio.sleep(0.001)
            self._bodies.end()

        @DBOS.workflow(name="cpu")
        async def cpu(n: int, to: str) -> None:  # noqa: ARG001
            self._bodies.cpu()

        @DBOS.workflow(name="stamp")
        async def stamp(n: int, to: str) -> None:  # noqa: ARG001
            self._bodies.stamp(n)

        @DBOS.workflow(name="hold")
        async def hold(n: int, to: str) -> None:  # noqa: ARG001
            self._bodies.note(n)
            self._bodies.begin()
            await asyncio.sleep(HOLD)
            self._bodies.end()

        self._register_durable()

    def _register_durable(self) -> None:
        from dbos import DBOS

        @DBOS.step(name="echo")
        async def step(number: int) -> int:
            return echo(number)

        @DBOS.workflow(name="steps")
        async def steps(n: int, to: str) -> None:  # noqa: ARG001
            self._bodies.begin()
            for number in range(STEPS):
                await step(number)
            self._bodies.end()

        @DBOS.workflow(name="child")
        async def child(n: int) -> int:
            return n

        @DBOS.workflow(name="children")
        async def children(n: int, to: str) -> None:  # noqa: ARG001
            self._bodies.begin()
            begun = [await DBOS.start_workflow_async(child, number) for number in range(CHILDREN)]
            for handle in begun:
                await handle.get_result()
            self._bodies.end()


def _options(task: str) -> Any:
    return {"workflow_name": task, "queue_name": "bench"}


if __name__ == "__main__":
    serve(DbosAdapter())
