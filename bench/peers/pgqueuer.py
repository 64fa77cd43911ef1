"""pgqueuer (PyPI), with the asyncpg driver and uvloop, as its own command runs it."""

from __future__ import annotations

import asyncio
import json
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, Final

from bench.peer import Peer, Venv
from bench.peers.protocol import HOLD, INSERT_ORDER, Bodies, Payload, serve, url

if TYPE_CHECKING:
    from pgqueuer import PgQueuer
    from pgqueuer.models import Job

PEER = Peer(
    name="pgqueuer",
    program="bench.peers.pgqueuer",
    environment=Venv(("pgqueuer==1.6.0", "asyncpg==0.32.0", "uvloop==0.23.0")),
    unfinished="select exists (select from pgqueuer where status in ('queued', 'picked'))",
    can=frozenset({"transact"}),
    note="default: batches of 10, no limit on how many run at once; tuned: batches of 100",
)

BATCH: Final = {"default": 10, "tuned": 100}


class PgqueuerAdapter:
    def __init__(self) -> None:
        self.versions = f"pgqueuer {version('pgqueuer')}, asyncpg {version('asyncpg')}"
        self._queries: Any = None
        self._connection: Any = None  # what `_queries` works on
        self._worker: PgQueuer | None = None
        self._running: asyncio.Task[None] | None = None

    async def setup(self) -> None:
        await (await self._open()).install()

    async def enqueue_many(self, task: str, payloads: list[Payload]) -> None:
        queries = await self._open()
        bodies = [json.dumps(payload).encode() for payload in payloads]
        await queries.enqueue([task] * len(bodies), bodies, [0] * len(bodies))

    async def enqueue(self, task: str, payload: Payload) -> None:
        queries = self._queries or await self._open()
        await queries.enqueue(task, json.dumps(payload).encode())

    async def transact(self, task: str | None, payload: Payload) -> None:
        await self._open()
        async with self._connection.transaction():
            await self._connection.execute(INSERT_ORDER)
            if task:
                await self.enqueue(task, payload)

    async def start(self, settings: str, bodies: Bodies) -> None:
        import asyncpg
        from pgqueuer import PgQueuer

        self._worker = PgQueuer.from_asyncpg_connection(await asyncpg.connect(url()))
        _register(self._worker, bodies)
        self._running = asyncio.create_task(self._worker.run(batch_size=BATCH[settings]))

    async def stop(self) -> None:
        assert self._worker is not None
        assert self._running is not None
        self._worker.shutdown.set()
        await self._running

    async def _open(self) -> Any:
        import asyncpg
        from pgqueuer.queries import Queries

        if self._queries is None:
            self._connection = await asyncpg.connect(url())
            self._queries = Queries.from_asyncpg_connection(self._connection)
        return self._queries


def _register(worker: PgQueuer, bodies: Bodies) -> None:
    @worker.entrypoint("noop")
    async def noop(job: Job) -> None:
        _decode(job)
        bodies.noop()

    @worker.entrypoint("sleep")
    async def sleep(job: Job) -> None:
        _decode(job)
        bodies.begin()
        await asyncio.sleep(0.001)
        bodies.end()

    @worker.entrypoint("cpu")
    async def cpu(job: Job) -> None:
        _decode(job)
        bodies.cpu()

    @worker.entrypoint("stamp")
    async def stamp(job: Job) -> None:
        bodies.stamp(_decode(job)["n"])

    @worker.entrypoint("hold")
    async def hold(job: Job) -> None:
        bodies.note(_decode(job)["n"])
        bodies.begin()
        await asyncio.sleep(HOLD)
        bodies.end()


def _decode(job: Job) -> Payload:
    """Others hand the payload over decoded; here that is the task's own work."""
    payload: Payload = json.loads(job.payload or b"{}")
    return payload


if __name__ == "__main__":
    import uvloop

    serve(PgqueuerAdapter(), loop_factory=uvloop.new_event_loop)
