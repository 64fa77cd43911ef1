"""oban-py (PyPI: oban), with uvloop, as its own command runs it."""

from __future__ import annotations

import asyncio
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, Final

from bench.peer import Peer, Venv
from bench.peers.protocol import HOLD, INSERT_ORDER, Bodies, Payload, serve, url

if TYPE_CHECKING:
    from oban import Oban

PEER = Peer(
    name="oban",
    program="bench.peers.oban",
    environment=Venv(("oban==0.7.0", "psycopg[binary,pool]==3.3.9", "uvloop==0.23.0")),
    unfinished="select exists (select from oban_jobs"
    " where state in ('available', 'scheduled', 'executing', 'retryable'))",
    most={"default": 10_000, "tuned": 10_000},
    can=frozenset({"transact"}),
    extra=True,
    note="default: 10 at once; tuned: 100 at once; 10,000 queued at most",
)

LIMIT: Final = {"default": 10, "tuned": 100}


class ObanAdapter:
    def __init__(self) -> None:
        self.versions = f"oban {version('oban')}, psycopg {version('psycopg')}"
        self._bodies: Any = None  # the worker's, from `start` on
        self._pool: Any = None
        self._client: Oban | None = None
        self._server: Oban | None = None
        self._tasks: dict[str, Any] = {}

    async def setup(self) -> None:
        from oban.schema import install

        await self._open()
        await install(self._pool)

    async def enqueue_many(self, task: str, payloads: list[Payload]) -> None:
        oban = await self._open()
        new = self._tasks[task].new
        await oban.enqueue_many(new(**payload) for payload in payloads)

    async def enqueue(self, task: str, payload: Payload) -> None:
        oban = self._client or await self._open()
        await oban.enqueue(self._tasks[task].new(**payload))

    async def transact(self, task: str | None, payload: Payload) -> None:
        oban = await self._open()
        async with self._pool.connection() as conn, conn.transaction():
            await conn.execute(INSERT_ORDER)
            if task:
                await oban.enqueue(self._tasks[task].new(**payload), conn=conn)

    async def start(self, settings: str, bodies: Bodies) -> None:
        from oban import Oban

        self._bodies = bodies
        await self._open()
        queues: dict[str, Any] = {"default": LIMIT[settings]}
        self._server = Oban(pool=self._pool, name="server", queues=queues)
        await self._server.start()

    async def stop(self) -> None:
        assert self._server is not None
        await self._server.stop()

    async def _open(self) -> Oban:
        from oban import Oban

        if self._client is None:
            self._pool = await Oban.create_pool(url())
            self._client = Oban(pool=self._pool)
            self._register()
        return self._client

    def _register(self) -> None:
        from oban import job

        async def noop(n: int, to: str) -> None:  # noqa: ARG001
            self._bodies.noop()

        async def sleep(n: int, to: str) -> None:  # noqa: ARG001
            self._bodies.begin()
            await asyncio.sleep(0.001)
            self._bodies.end()

        async def cpu(n: int, to: str) -> None:  # noqa: ARG001
            self._bodies.cpu()

        async def stamp(n: int, to: str) -> None:  # noqa: ARG001
            self._bodies.stamp(n)

        async def hold(n: int, to: str) -> None:  # noqa: ARG001
            self._bodies.note(n)
            self._bodies.begin()
            await asyncio.sleep(HOLD)
            self._bodies.end()

        for body in (noop, sleep, cpu, stamp, hold):
            self._tasks[body.__name__] = job()(body)


if __name__ == "__main__":
    import uvloop

    serve(ObanAdapter(), loop_factory=uvloop.new_event_loop)
