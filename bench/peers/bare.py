"""The floor: what this machine allows with psycopg and plain SQL, with no job system around it."""

from __future__ import annotations

import queue
import threading
import time
from typing import TYPE_CHECKING, Final

from bench.peer import Here, Peer
from bench.peers.protocol import INSERT_ORDER, Bodies, Payload, serve, url

if TYPE_CHECKING:
    from collections.abc import Callable

    import psycopg

PEER = Peer(
    name="bare",
    program="bench.peers.bare",
    environment=Here(),
    unfinished="select exists (select from bare_queue)",
    skips=("idle/*", "drain/sleep/tuned", "drain/cpu/tuned"),
    can=frozenset({"keep", "transact"}),
    note="not a job system but the floor: psycopg, claim and finish in one statement, batches of"
    " 100 (tuned: 500), in one thread; sleep, cpu and hold in 10 threads",
)

BATCH: Final = {"default": 100, "tuned": 500}
THREADS: Final = 10

SCHEMA: Final = """
    create table bare_queue (
        id bigint generated always as identity primary key,
        task text not null,
        payload jsonb not null,
        claimed boolean not null default false
    );
    create index bare_ready on bare_queue (id) where not claimed;
    create table bare_history (id bigint, task text, payload jsonb, finished_at timestamptz);
"""
INSERT: Final = """
    with inserted as (insert into bare_queue (task, payload) values (%s, %s) returning id)
    select id, pg_notify('bare', '') from inserted
"""
INSERT_MANY: Final = """
    insert into bare_queue (task, payload)
    select %s, value from json_array_elements(%s::json)
"""
FINISH_AND_CLAIM: Final = """
    with finished as (delete from bare_queue where id = any(%(done)s) returning id, task, payload),
    kept as (insert into bare_history select id, task, payload, now() from finished)
    update bare_queue set claimed = true
    where id = any(array(
        select id from bare_queue where not claimed order by id limit %(n)s for update skip locked
    ))
    returning id, task, payload
"""

Row = tuple[int, str, Payload]


class BareAdapter:
    def __init__(self) -> None:
        import psycopg

        self.versions = f"psycopg {psycopg.__version__} ({psycopg.pq.__impl__})"
        self._conn: psycopg.Connection | None = None
        self._worker: _Worker | None = None

    async def setup(self) -> None:
        self._open().execute(SCHEMA)

    async def enqueue_many(self, task: str, payloads: list[Payload]) -> None:
        from psycopg.types.json import Json

        self._open().execute(INSERT_MANY, (task, Json(payloads)))

    async def enqueue(self, task: str, payload: Payload) -> None:
        from psycopg.types.json import Json

        self._open().execute(INSERT, (task, Json(payload)))

    async def transact(self, task: str | None, payload: Payload) -> None:
        with self._open().transaction():
            self._open().execute(INSERT_ORDER)
            if task:
                await self.enqueue(task, payload)

    async def start(self, settings: str, bodies: Bodies) -> None:
        self._worker = _Worker(_connect(), _connect(), BATCH[settings], bodies)
        self._worker.start()

    async def stop(self) -> None:
        assert self._worker is not None
        self._worker.stop()

    def _open(self) -> psycopg.Connection:
        if self._conn is None:
            self._conn = _connect()
        return self._conn


class _Worker:
    """One thread claims, and runs short tasks itself; others go to ten threads."""

    def __init__(
        self, conn: psycopg.Connection, ears: psycopg.Connection, batch: int, bodies: Bodies
    ) -> None:
        self._conn, self._ears, self._batch, self._bodies = conn, ears, batch, bodies
        self._jobs: queue.SimpleQueue[Row | None] = queue.SimpleQueue()
        self._done: queue.SimpleQueue[int] = queue.SimpleQueue()
        self._stopping = threading.Event()
        self._threads = [threading.Thread(target=self._claim)]
        self._threads += [threading.Thread(target=self._run) for _ in range(THREADS)]

    def start(self) -> None:
        self._ears.execute("listen bare")
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        self._stopping.set()
        for _ in range(THREADS):
            self._jobs.put(None)
        for thread in self._threads:
            thread.join()

    def _claim(self) -> None:
        held = 0  # claimed and not yet finished in the database
        while not self._stopping.is_set():
            done = [self._done.get() for _ in range(self._done.qsize())]
            rows = self._finish_and_claim(done)
            held += len(rows) - len(done)
            for row in rows:
                self._place(row)
            if self._jobs.qsize() > self._batch // 2:
                self._wait_for(lambda: self._jobs.qsize() <= self._batch // 2)
            elif not rows and held:
                self._wait_for(lambda: not self._done.empty())
            elif not rows:
                for _ in self._ears.notifies(timeout=0.2, stop_after=1):
                    pass

    def _finish_and_claim(self, done: list[int]) -> list[Row]:
        from psycopg.errors import DeadlockDetected

        given = {"done": done, "n": self._batch}
        while True:
            try:
                return self._conn.execute(FINISH_AND_CLAIM, given).fetchall()
            except DeadlockDetected:  # several of these on one database: nothing has been done
                continue

    def _place(self, row: Row) -> None:
        number, task, payload = row
        if task == "stamp":
            self._bodies.stamp(payload["n"])
        elif task == "noop":
            self._bodies.noop()
        else:
            self._jobs.put(row)
            return
        self._done.put(number)

    def _run(self) -> None:
        bodies: dict[str, Callable[[int], None]] = {
            "sleep": lambda _: self._bodies.sleep(),
            "cpu": lambda _: self._bodies.cpu(),
            "hold": self._bodies.hold,
        }
        while (row := self._jobs.get()) is not None:
            bodies[row[1]](row[2]["n"])
            self._done.put(row[0])

    def _wait_for(self, condition: Callable[[], bool]) -> None:
        while not condition() and not self._stopping.is_set():
            time.sleep(0.001)


def _connect() -> psycopg.Connection:
    import psycopg

    return psycopg.connect(url(), autocommit=True)


if __name__ == "__main__":
    serve(BareAdapter())
