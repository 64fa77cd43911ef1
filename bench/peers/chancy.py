"""chancy (PyPI), with its asyncio executor."""

from __future__ import annotations

import asyncio
import logging
import sys
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, Final

from bench.peer import Peer, Venv
from bench.peers.protocol import HOLD, INSERT_ORDER, Bodies, Payload, serve, url

if TYPE_CHECKING:
    from chancy import Chancy, Worker

PEER = Peer(
    name="chancy",
    program="bench.peers.chancy",
    environment=Venv(("chancy==0.26.0", "psycopg[binary,pool]==3.3.9")),
    unfinished="select exists (select from chancy_jobs"
    " where state in ('pending', 'running', 'retrying'))",
    most={"default": 10_000},
    can=frozenset({"transact"}),
    extra=True,
    note="both with its asyncio executor, eager polling (10 every five seconds without) and no log"
    " line per job; default: 10 at once, 10,000 queued at most; tuned: 1,000 at once",
)

AT_ONCE: Final = {"default": 10, "tuned": 1_000}

_bodies: Any = None  # the worker's, from `start` on; jobs are found by the path of their function


async def noop(*, n: int, to: str) -> None:  # noqa: ARG001
    _bodies.noop()


async def sleep(*, n: int, to: str) -> None:  # noqa: ARG001
    _bodies.begin()
    await asyncio.sleep(0.001)
    _bodies.end()


async def cpu(*, n: int, to: str) -> None:  # noqa: ARG001
    _bodies.cpu()


async def stamp(*, n: int, to: str) -> None:  # noqa: ARG001
    _bodies.stamp(n)


async def hold(*, n: int, to: str) -> None:  # noqa: ARG001
    _bodies.note(n)
    _bodies.begin()
    await asyncio.sleep(HOLD)
    _bodies.end()


class ChancyAdapter:
    def __init__(self) -> None:
        self.versions = f"chancy {version('chancy')}, psycopg {version('psycopg')}"
        self._chancy: Chancy | None = None
        self._worker: Worker | None = None

    async def setup(self) -> None:
        await (await self._open()).migrate()

    async def enqueue_many(self, task: str, payloads: list[Payload]) -> None:
        chancy = await self._open()
        async for _ in chancy.push_many([_job(task, payload) for payload in payloads]):
            pass

    async def enqueue(self, task: str, payload: Payload) -> None:
        chancy = self._chancy or await self._open()
        await chancy.push(_job(task, payload))

    async def transact(self, task: str | None, payload: Payload) -> None:
        from psycopg.rows import dict_row

        chancy = await self._open()
        async with chancy.pool.connection() as conn, conn.transaction():
            await conn.execute(INSERT_ORDER)
            if task:
                async with conn.cursor(row_factory=dict_row) as cursor:
                    await chancy.push_ex(cursor, _job(task, payload))

    async def start(self, settings: str, bodies: Bodies) -> None:
        from chancy import Chancy, Queue, Worker

        global _bodies  # noqa: PLW0603
        _bodies = bodies
        chancy = await self._open()
        queue = Queue(
            "default",
            concurrency=AT_ONCE[settings],
            executor=Chancy.Executor.Async,
            eager_polling=True,
        )
        await chancy.declare(queue, upsert=True)
        self._worker = Worker(chancy, register_signal_handlers=False)
        await self._worker.start()

    async def stop(self) -> None:
        assert self._worker is not None
        await self._worker.stop()

    async def _open(self) -> Chancy:
        from chancy import Chancy

        if self._chancy is None:
            log = logging.getLogger("chancy")
            log.setLevel(logging.WARNING)
            self._chancy = Chancy(url(), log=log)
            await self._chancy.__aenter__()
        return self._chancy


def _job(task: str, payload: Payload) -> Any:
    from chancy import Job

    return Job(func=f"bench.peers.chancy.{task}", kwargs=payload)


if __name__ == "__main__":
    sys.modules["bench.peers.chancy"] = sys.modules["__main__"]  # where it looks for the jobs
    serve(ChancyAdapter())
