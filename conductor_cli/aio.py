"""``AsyncConductor``: awaitable doors onto the same logic.

What talks to the database does so in a few threads of its own; who waits or watches holds none.
"""

from __future__ import annotations

import asyncio
import contextvars
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar, cast, overload

from conductor_cli import arguments, borrowed, errors, payloads, sending, waiting
from conductor_cli.client import Conductor
from conductor_cli.payloads import DEFAULT_LIMIT
from conductor_cli.service import Deadline
from conductor_cli.threads import outcome

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterable, Sequence
    from concurrent.futures import Future
    from datetime import datetime, timedelta
    from pathlib import Path
    from uuid import UUID

    from psycopg_pool import ConnectionPool

    from conductor_cli.catalog import WorkerSpec
    from conductor_cli.config import Config
    from conductor_cli.invoking import Ids, Row, Target
    from conductor_cli.models import Execution, State
    from conductor_cli.registry import Invocation, Task

P = ParamSpec("P")
R = TypeVar("R")

THREADS = 8  # fewer than the pool has connections


class AsyncConductor:
    """The awaitable twin of ``Conductor``: the same methods with the same parameters.

    May be used from any number of event loops. What each method promises is said there.
    """

    def __init__(self, conductor: Conductor) -> None:
        self.sync = conductor
        self._lock = threading.Lock()
        self._threads: ThreadPoolExecutor | None = None
        self._pid = 0

    @classmethod
    def create(
        cls,
        url: str | None = None,
        *,
        pool: ConnectionPool[Any] | None = None,
        pool_size: int = 10,
        max_payload: int = DEFAULT_LIMIT,
        timezone: str = "UTC",
    ) -> AsyncConductor:
        """As ``Conductor.create``; the pool is a synchronous one. Connects on first use."""
        return cls(
            Conductor.create(
                url, pool=pool, pool_size=pool_size, max_payload=max_payload, timezone=timezone
            )
        )

    @classmethod
    def from_config(cls, config: Config | Path | str | None = None) -> AsyncConductor:
        """As ``Conductor.from_config``. Starting an embedded Postgres blocks."""
        return cls(Conductor.from_config(config))

    async def close(self) -> None:
        with self._lock:
            threads, self._threads = self._threads, None
        await asyncio.to_thread(self.sync.close)
        if threads is not None and self._pid == os.getpid():
            threads.shutdown(wait=False)

    async def __aenter__(self) -> AsyncConductor:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.close()

    async def ensure_installed(self) -> None:
        await self._run(self.sync.ensure_installed)

    async def invoke(
        self, task: Target, payload: object = None, *, connection: object = None, **options: Any
    ) -> UUID:
        """As ``Conductor.invoke``; ``connection`` may be asynchronous, too."""
        if connection is None:
            return await self._run(self.sync.invoke, task, payload, **options)
        row = await self._run(self.sync.row, task, payload, options)
        return (await self._lent(connection, [row]))[0]

    async def invoke_many(
        self,
        task: Target,
        payloads: Iterable[object],
        *,
        connection: object = None,
        **options: Any,
    ) -> Ids:
        """As ``Conductor.invoke_many``; ``connection`` may be asynchronous, too."""
        if connection is None:
            return await self._run(self.sync.invoke_many, task, payloads, **options)
        rows = await self._run(lambda: [*self.sync.rows(task, payloads, options)])
        return await self._lent(connection, rows)

    async def get(self, id: UUID | str) -> Execution | None:
        return await self._run(self.sync.get, id)

    async def list(
        self,
        *,
        state: State | str | None = None,
        task: str | Task[..., Any] | None = None,
        queue: str | None = None,
        since: datetime | None = None,
        limit: int = 100,
    ) -> Sequence[Execution]:
        return await self._run(
            self.sync.list, state=state, task=task, queue=queue, since=since, limit=limit
        )

    @overload
    async def wait(
        self, id: UUID | str, task: Task[..., R], *, timeout: float | timedelta | None = None
    ) -> R: ...
    @overload
    async def wait(
        self, id: UUID | str, task: None = None, *, timeout: float | timedelta | None = None
    ) -> Any: ...
    async def wait(
        self,
        id: UUID | str,
        task: Task[..., Any] | None = None,
        *,
        timeout: float | timedelta | None = None,
    ) -> Any:
        waiting.refuse_in_task("wait")
        asked, known, seconds = waiting.checked(id, task, timeout)
        deadline = Deadline(seconds)
        found = await self._found_now(asked)
        async with _expected(self.sync, asked) as end:
            while not found.state.has_ended:
                in_time = await end.wait(deadline.remaining)
                found = await self._found_now(asked)
                if not in_time and not found.state.has_ended:
                    raise waiting.late(found, seconds)
        return waiting.result(found, known)

    def watch(self, id: UUID | str) -> AsyncIterator[Execution]:
        waiting.refuse_in_task("watch")
        return self._watch(arguments.as_id(id))

    async def _watch(self, id: UUID) -> AsyncIterator[Execution]:
        last, pauses = await self._found_now(id), waiting.Pauses()
        yield last
        async with _expected(self.sync, id) as end:
            while not last.state.has_ended:
                await end.wait(pauses.next())
                found = await self._found_now(id)
                if found != last:
                    pauses.restart()
                    yield found
                last = found

    async def cancel(self, id: UUID | str, reason: str | None = None) -> bool:
        return await self._run(self.sync.cancel, id, reason)

    async def retry(self, id: UUID | str, restart: bool = False, force: bool = False) -> bool:
        return await self._run(self.sync.retry, id, restart, force)

    async def emit(
        self, event: str, payload: object = payloads.NOT_GIVEN, *, connection: object = None
    ) -> UUID:
        if connection is None:
            return await self._run(self.sync.emit, event, payload)
        text = self.sync.event_payload(event, payload)
        if borrowed.is_async(connection):
            return await sending.event_on_borrowed_async(connection, event, text)
        return sending.event_on_borrowed(connection, event, text)

    async def schedule(
        self,
        task: Task[..., Any] | Invocation[Any] | str,
        name: str,
        expression: str,
        payload: object = None,
        *,
        timezone: str | None = None,
        missed: str = "latest",
    ) -> bool:
        return await self._run(
            self.sync.schedule, task, name, expression, payload, timezone=timezone, missed=missed
        )

    async def unschedule(self, task: Task[..., Any] | str, name: str) -> bool:
        return await self._run(self.sync.unschedule, task, name)

    async def pause(self, queue: str) -> bool:
        return await self._run(self.sync.pause, queue)

    async def resume(self, queue: str) -> bool:
        return await self._run(self.sync.resume, queue)

    def create_worker(
        self, queue: str, tasks: Iterable[Task[..., Any]], **settings: Any
    ) -> WorkerSpec:
        """As ``Conductor.create_worker``; not awaited, since it talks to nobody."""
        return self.sync.create_worker(queue, tasks, **settings)

    async def _lent(self, connection: object, rows: Sequence[Row]) -> Ids:
        if borrowed.is_async(connection):
            return await sending.on_borrowed_async(connection, rows)
        # In this thread: some connections are another one in each.
        return sending.on_borrowed(connection, iter(rows))

    async def _found_now(self, id: UUID) -> Execution:
        found = await self.get(id)
        if found is None:
            raise errors.ExecutionNotFound(id)
        return found

    async def _run(self, call: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        bound = partial(contextvars.copy_context().run, call, *args, **kwargs)
        # A payload's own code may raise a StopIteration, which no future can carry.
        error, value = await asyncio.get_running_loop().run_in_executor(
            self._pool(), outcome, bound
        )
        if error is not None:
            raise error
        return cast("R", value)

    def _pool(self) -> ThreadPoolExecutor:
        with self._lock:
            if self._threads is None or self._pid != os.getpid():  # a fork has no threads
                self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="conductor")
                self._pid = os.getpid()
            return self._threads


class _Expected:
    """The end of one execution, for one task of an event loop."""

    def __init__(self, conductor: Conductor, id: UUID) -> None:
        self._ends, self._id = conductor.ends, id
        self._future: Future[None] | None = None
        self._told: asyncio.Future[None] | None = None

    async def wait(self, seconds: float | None) -> bool:
        """As ``waiting.Expected.wait``."""
        if self._told is None or self._told.done():
            self.forget()
            self._future = self._ends.expect(self._id)
            self._told = asyncio.wrap_future(self._future)
        done, _ = await asyncio.wait({self._told}, timeout=seconds)
        for told in done:
            told.result()
        return bool(done)

    def forget(self) -> None:
        if self._future is not None:
            self._ends.forget(self._id, self._future)


@asynccontextmanager
async def _expected(conductor: Conductor, id: UUID) -> AsyncIterator[_Expected]:
    expected = _Expected(conductor, id)
    try:
        yield expected
    finally:
        expected.forget()
