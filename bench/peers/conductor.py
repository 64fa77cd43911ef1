"""Conductor itself, from this checkout, through its public interface."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from bench.peer import Here, Peer
from bench.peers.protocol import INSERT_ORDER, Bodies, Payload, serve, url

if TYPE_CHECKING:
    from conductor_cli import Orchestrator

PEER = Peer(
    name="conductor",
    program="bench.peers.conductor",
    environment=Here(),
    unfinished="select exists (select from conductor.live)",
    skips=("*/*/tuned",),
    can=frozenset({"keep", "later", "transact", "discard", "durable"}),
    note="it adapts by itself, so no tuned settings; 10 threads; discard: retain_completed=0",
)


class ConductorAdapter:
    def __init__(self) -> None:
        try:
            from importlib.metadata import PackageNotFoundError, version

            from conductor_cli import Conductor
        except ImportError as error:
            raise SystemExit(f"this checkout's Conductor cannot be imported: {error}") from error
        try:
            self.versions = f"conductor {version('conductor-cli')}"
        except PackageNotFoundError:
            self.versions = "conductor (checkout)"
        self._conductor = Conductor.create(url())
        self._bodies: Any = None  # the worker's, from `start` on
        self._caller: Any = None  # a connection of the caller's, for `transact`
        self._tasks = {made.name: made for made in self.make_tasks()}
        self._orchestrator: Orchestrator | None = None

    async def setup(self) -> None:
        self._conductor.ensure_installed()

    async def enqueue_many(self, task: str, payloads: list[Payload]) -> None:
        self._conductor.invoke_many(self._tasks[task], payloads)

    async def enqueue(self, task: str, payload: Payload) -> None:
        self._conductor.invoke(self._tasks[task], payload)

    async def enqueue_later(self, task: str, payloads: list[Payload], seconds: float) -> None:
        self._conductor.invoke_many(self._tasks[task], payloads, delay=seconds)

    async def transact(self, task: str | None, payload: Payload) -> None:
        if self._caller is None:
            import psycopg

            self._caller = psycopg.connect(url(), autocommit=True)
        with self._caller.transaction():
            self._caller.execute(INSERT_ORDER)
            if task:
                self._conductor.invoke(self._tasks[task], payload, connection=self._caller)

    async def start(self, settings: str, bodies: Bodies) -> None:
        from conductor_cli import Orchestrator

        self._bodies = bodies
        tasks = self.make_tasks(**({"retain_completed": 0} if settings == "discard" else {}))
        self._orchestrator = Orchestrator.create(conductor=self._conductor, tasks=tasks)
        self._orchestrator.start(signals=False)

    async def stop(self) -> None:
        assert self._orchestrator is not None
        self._orchestrator.stop()

    def make_tasks(self, **options: Any) -> list[Any]:
        """All the tasks that this process knows, with these options."""
        from bench.peers.conductor_durable import make_tasks
        from conductor_cli import task

        durable = make_tasks(lambda: self._bodies, **options)

        @task(**options)
        def noop(n: int, to: str) -> None:  # noqa: ARG001
            self._bodies.noop()

        @task(**options)
        def sleep(n: int, to: str) -> None:  # noqa: ARG001
            self._bodies.sleep()

        @task(**options)
        def cpu(n: int, to: str) -> None:  # noqa: ARG001
            self._bodies.cpu()

        @task(**options)
        def stamp(n: int, to: str) -> None:  # noqa: ARG001
            self._bodies.stamp(n)

        @task(**options)
        def hold(n: int, to: str) -> None:  # noqa: ARG001
            self._bodies.hold(n)

        return [noop, sleep, cpu, stamp, hold, *durable]


if __name__ == "__main__":
    serve(ConductorAdapter())
