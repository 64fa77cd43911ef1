"""procrastinate (PyPI), with its psycopg connector and async tasks."""

from __future__ import annotations

import asyncio
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from bench.peer import Peer, Venv
from bench.peers.protocol import HOLD, INSERT_ORDER, Bodies, Payload, serve, url

if TYPE_CHECKING:
    from procrastinate import App

PEER = Peer(
    name="procrastinate",
    program="bench.peers.procrastinate",
    environment=Venv(("procrastinate==3.10.0", "psycopg[binary,pool]==3.3.9")),
    unfinished="select exists (select from procrastinate_jobs where status in ('todo', 'doing'))",
    skips=("*/*/tuned",),
    can=frozenset({"transact"}),
    most={"default": 2_000},
    note="10 at once; it has no batches, so no tuned settings; 2,000 queued at most",
)


class ProcrastinateAdapter:
    def __init__(self) -> None:
        self.versions = f"procrastinate {version('procrastinate')}, psycopg {version('psycopg')}"
        self._app: App | None = None
        self._caller: Any = None  # a connection of the caller's, for `transact`
        self._bodies: Any = None  # the worker's, from `start` on
        self._running: asyncio.Task[None] | None = None
        self._tasks: dict[str, Any] = {}

    async def setup(self) -> None:
        app = await self._open()
        await app.schema_manager.apply_schema_async()

    async def enqueue_many(self, task: str, payloads: list[Payload]) -> None:
        await self._open()
        await self._tasks[task].batch_defer_async(*payloads)

    async def enqueue(self, task: str, payload: Payload) -> None:
        if self._app is None:
            await self._open()
        await self._tasks[task].defer_async(**payload)

    async def transact(self, task: str | None, payload: Payload) -> None:
        if self._caller is None:
            import psycopg

            await self._open()
            self._caller = await psycopg.AsyncConnection.connect(url())
        async with self._caller.transaction():
            await self._caller.execute(INSERT_ORDER)
            if task:
                deferrer = self._tasks[task].configure(connection=self._caller)
                await deferrer.defer_async(**payload)

    async def start(self, settings: str, bodies: Bodies) -> None:
        del settings  # only one
        self._bodies = bodies
        app = await self._open()
        worker = app.run_worker_async(concurrency=10, install_signal_handlers=False)
        self._running = asyncio.create_task(worker)

    async def stop(self) -> None:
        assert self._running is not None
        self._running.cancel()
        await asyncio.gather(self._running, return_exceptions=True)

    async def _open(self) -> App:
        from procrastinate import App, PsycopgConnector

        if self._app is None:
            self._app = App(connector=PsycopgConnector(conninfo=url()))
            self._register(self._app)
            await self._app.open_async()
        return self._app

    def _register(self, app: App) -> None:
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
            self._tasks[body.__name__] = app.task(name=body.__name__)(body)


if __name__ == "__main__":
    serve(ProcrastinateAdapter())
