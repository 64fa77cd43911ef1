"""Conductor itself, from this checkout, through its public interface."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from bench.peer import Here, Peer
from bench.peers.protocol import Bodies, Payload, serve, url

if TYPE_CHECKING:
    from conductor_cli import Orchestrator

PEER = Peer(
    name="conductor",
    program="bench.peers.conductor",
    environment=Here(),
    unfinished="select exists (select from conductor.executions"
    " where state in ('pending', 'running', 'waiting'))",
    skips=("*/*/tuned",),
    note="default settings only: it adapts by itself; 10 threads",
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
        self._tasks = {made.name: made for made in self._make_tasks()}
        self._orchestrator: Orchestrator | None = None

    async def setup(self) -> None:
        self._conductor.ensure_installed()

    async def enqueue_many(self, task: str, payloads: list[Payload]) -> None:
        self._conductor.invoke_many(self._tasks[task], payloads)

    async def enqueue(self, task: str, payload: Payload) -> None:
        self._conductor.invoke(self._tasks[task], payload)

    async def start(self, settings: str, bodies: Bodies) -> None:
        del settings  # there is nothing to tune
        from conductor_cli import Orchestrator

        self._bodies = bodies
        tasks = list(self._tasks.values())
        self._orchestrator = Orchestrator.create(conductor=self._conductor, tasks=tasks)
        self._orchestrator.start(signals=False)

    async def stop(self) -> None:
        assert self._orchestrator is not None
        self._orchestrator.stop()

    def _make_tasks(self) -> list[Any]:
        from conductor_cli import task

        @task
        def noop(n: int, to: str) -> None:  # noqa: ARG001
            self._bodies.noop()

        @task
        def sleep(n: int, to: str) -> None:  # noqa: ARG001
            self._bodies.sleep()

        @task
        def cpu(n: int, to: str) -> None:  # noqa: ARG001
            self._bodies.cpu()

        @task
        def stamp(n: int, to: str) -> None:  # noqa: ARG001
            self._bodies.stamp(n)

        return [noop, sleep, cpu, stamp]


if __name__ == "__main__":
    serve(ConductorAdapter())
