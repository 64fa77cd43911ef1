"""``Orchestrator``: one server process, composed and ordered.

It opens no port and never ends the process: only the command does.
"""

from __future__ import annotations

import os
import socket
import threading
import time
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FuturesTimeout
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from enum import Enum, auto
from functools import partial
from typing import TYPE_CHECKING, Any, Final
from uuid import UUID

from conductor_cli import arguments, errors, loading, migrate, telemetry
from conductor_cli.catalog import TaskSet, WorkerSpec
from conductor_cli.client import Conductor
from conductor_cli.config import Config, WorkerConfig, load
from conductor_cli.coordinator import JobCoordinator, Settings
from conductor_cli.database import does_not_fit
from conductor_cli.drain import Drain, Tally
from conductor_cli.interrupts import Signals
from conductor_cli.invoking import new_id
from conductor_cli.models import DrainReport
from conductor_cli.pump import Recorded, Retention
from conductor_cli.registration import Definitions
from conductor_cli.signals import Identity
from conductor_cli.surroundings import Surroundings
from conductor_cli.version import __version__

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from pathlib import Path

    from conductor_cli.registry import Task
    from conductor_cli.service import Service

SIGNAL_CHECK: Final = 0.5
MOST_FOR_TASKS: Final = 40  # connections; steps wait for one rather than have more


@dataclass(frozen=True, slots=True)
class OrchestratorInfo:
    """How an orchestrator stands at this moment."""

    id: UUID
    is_running: bool
    is_shutting_down: bool
    is_stopped: bool
    is_leader: bool
    version: str


class _Phase(Enum):
    IDLE = auto()
    STARTING = auto()
    RUNNING = auto()
    STOPPING = auto()


class Orchestrator:
    """Runs tasks in this process. Start and stop, or drain; again afterwards, if wanted."""

    def __init__(
        self,
        conductor: Conductor,
        specs: Sequence[WorkerSpec],
        config: Config,
        *,
        owns_conductor: bool = False,
    ) -> None:
        self.conductor = conductor
        self.stopped: Future[None] = Future()
        self._specs = specs
        self._config = config
        self._owns_conductor = owns_conductor
        self._id = new_id()
        self._lock = threading.Lock()
        self._stack = ExitStack()
        self._coordinator: JobCoordinator | None = None
        self._surroundings = Surroundings(config.tasks)
        self._in_main: Callable[[Callable[[], Any]], Any] = _here
        self._phase = _Phase.IDLE
        self._is_asked = False  # to stop, while it started
        self._death: BaseException | None = None

    @classmethod
    def create(
        cls,
        *,
        conductor: Conductor,
        tasks: Iterable[Task[..., Any]] = (),
        workers: Iterable[WorkerSpec] = (),
        default_worker: WorkerConfig | None = None,
        config: Config | None = None,
    ) -> Orchestrator:
        """An orchestrator for ``tasks``, one worker per queue they name, and for ``workers``.

        Raises TaskDefinitionError for two tasks of one name, ConfigError for two workers of one
        queue.
        """
        if not isinstance(conductor, Conductor):
            raise TypeError(
                f"conductor={arguments.shown(conductor)} is no Conductor: make one by "
                "Conductor.create(url)"
            )
        made = _workers(TaskSet(tasks), workers, lambda _: default_worker or WorkerConfig())
        return cls(conductor, made, config or Config())

    @classmethod
    def from_config(
        cls,
        config: Config | Path | str | None = None,
        *,
        queues: Sequence[str] = (),
        jobs: bool = True,
    ) -> Orchestrator:
        """An orchestrator for the tasks of the modules that ``conductor.toml`` names.

        ``queues``: serve only these. ``jobs=False``: claim nothing and stand for no election.
        Raises ConfigError, TaskDefinitionError, UnknownQueue.
        """
        settings = config if isinstance(config, Config) else load(config)
        loaded = loading.load(settings.tasks.modules, str(settings.folder))
        for warning in loaded.warnings:
            telemetry.emit("tasks.none", what=warning)
        _refuse_unknown_queues(queues, loaded.tasks)
        served = loaded.tasks.in_queues(queues) if queues else loaded.tasks
        specs = _workers(served, (), settings.worker.for_queue) if jobs else []
        conductor = Conductor.from_config(settings)
        return cls(conductor, specs, settings, owns_conductor=True)

    @property
    def info(self) -> OrchestratorInfo:
        coordinator = self._coordinator
        return OrchestratorInfo(
            id=self._id,
            is_running=self._phase is _Phase.RUNNING,
            is_shutting_down=self._phase is _Phase.STOPPING,
            is_stopped=self.stopped.done(),
            is_leader=coordinator is not None and coordinator.is_leader,
            version=__version__,
        )

    @property
    def job_coordinator(self) -> JobCoordinator:
        """What runs the job side; made when first asked for, or by start()."""
        with self._lock:
            if self._coordinator is None:
                self._coordinator = self._assemble()
            return self._coordinator

    @property
    def problems(self) -> list[str]:
        """Why this server is not ready; empty when it is."""
        coordinator = self._coordinator
        if self._phase is _Phase.STOPPING:
            return ["the server is stopping"]
        if self._phase is not _Phase.RUNNING or coordinator is None:
            return ["the server has not started"]
        return coordinator.problems

    @property
    def workers(self) -> Sequence[WorkerSpec]:
        """What it serves."""
        return self._specs

    def start(self, *, signals: bool = True) -> None:
        """Bring the schema up to date, register, and start everything; returns when all are up.

        ``signals``: in the main thread, stop gracefully on SIGTERM, SIGINT and SIGHUP. Raises what
        keeps it from starting: DatabaseUnavailable, SchemaMissing, SchemaTooNew.
        """
        telemetry.emit("server.starting", server=str(self._id), version=__version__)
        self._begin(lambda: self.job_coordinator)
        if signals and threading.current_thread() is threading.main_thread():
            self._stack.enter_context(Signals(self.stop, self.hurry))
        telemetry.emit("server.ready", server=str(self._id), queues=self._queues())
        if self._is_asked:
            self.stop()
        if self._death is not None:
            raise self._death

    def stop(self) -> None:
        """Stop gracefully; returns when stopped. Idempotent. While it starts: once it has.

        Raises ShutdownTimeout when work had to be cut short and was handed back.
        """
        with self._lock:
            self._is_asked = True
            mine = self._phase is _Phase.RUNNING
            if mine:
                self._phase = _Phase.STOPPING
            elif self._phase is _Phase.STARTING:
                return
        if mine:
            self._stop()
        if self._phase is _Phase.STOPPING or self.stopped.done():
            error = self.stopped.exception()
            if isinstance(error, errors.ShutdownTimeout):
                raise error

    def enter_by(self, in_main: Callable[[Callable[[], Any]], Any]) -> None:
        """Have ``[tasks] setup`` entered and left by ``in_main``, which calls what it is given in
        the main thread and returns what that returns; by default the thread that starts or stops.
        """
        self._in_main = in_main

    def hurry(self) -> None:
        """Let a stop that is under way hand back at once what still runs."""
        if self._coordinator is not None:
            self._coordinator.hurry()

    def run(self) -> None:
        """Start, then wait until stopped; raises what ended it."""
        self.start()
        while True:
            # A signal that arrives just before a wait without an end is only seen after it.
            with suppress(FuturesTimeout):
                return self.stopped.result(SIGNAL_CHECK)

    def __enter__(self) -> Orchestrator:
        self.start(signals=False)
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.stop()

    def drain(
        self,
        timeout: float | None = None,
        *,
        wait_until_empty: bool = False,
        retry_now: bool = False,
    ) -> DrainReport:
        """Work until nothing is left that could be claimed now and nothing of these queues runs.

        ``timeout`` in seconds; ``wait_until_empty`` waits for what is due later, too;
        ``retry_now`` lets retries run without their backoff. The scheduler does not run.
        ``stop()`` from elsewhere ends it early.
        """
        tally, started = Tally(), time.monotonic()
        coordinator = self._begin(lambda: self._assemble(leads=False, on_recorded=tally.add))
        drained = Drain(
            self.conductor.database,
            coordinator.workers,
            is_stopped=lambda: self._is_asked,
            wait_until_empty=wait_until_empty,
            retry_now=retry_now,
        )
        try:
            timed_out = not drained.work(None if timeout is None else started + timeout)
        finally:
            self._stop_quietly()
        error = self.stopped.exception()
        if error is not None and not isinstance(error, errors.ShutdownTimeout):
            raise error
        timed_out = timed_out or error is not None
        return drained.report(tally, timed_out=timed_out, elapsed=time.monotonic() - started)

    def close(self) -> None:
        """Let go of the database, where it was opened by from_config."""
        if self._owns_conductor:
            self.conductor.close()

    def _begin(self, coordinator: Callable[[], JobCoordinator]) -> JobCoordinator:
        """Schema, state, coordinator; leaves nothing behind when one of them fails."""
        with self._lock:
            if self._phase is not _Phase.IDLE:
                raise errors.ConductorError("This orchestrator has been started already.")
            self._phase = _Phase.STARTING
            self._is_asked, self._death = False, None
            if self.stopped.done():
                self._coordinator, self.stopped = None, Future()
        try:
            install(self.conductor)
            self.conductor.database.make_room(pool_size(self._specs))
            self._enter_surroundings()
            self._coordinator = coordinator()
            self._coordinator.start()
        except BaseException:
            self._coordinator = None
            try:
                self._stack.close()
            finally:
                self._phase = _Phase.IDLE
            raise
        with self._lock:
            self._phase = _Phase.RUNNING
        return self._coordinator

    def _assemble(
        self, *, leads: bool = True, on_recorded: Callable[[Recorded], None] | None = None
    ) -> JobCoordinator:
        config = self._config
        settings = Settings(
            heartbeat_interval=config.coordinator.heartbeat_interval,
            heartbeat_timeout=config.coordinator.heartbeat_timeout,
            shutdown_timeout=config.coordinator.shutdown_timeout,
            timezone=config.scheduler.timezone,
            retention=Retention(config.retention.completed, config.retention.failed),
            leads=leads,
        )
        given = Definitions.of(
            self._specs, timezone=settings.timezone, retention=settings.retention
        )
        identity = Identity(
            self._id, __version__, socket.gethostname(), os.getpid(), self._queues(), given.edition
        )
        return JobCoordinator(
            self.conductor, identity, self._specs, settings,
            surroundings=self._surroundings, on_death=self._died, on_recorded=on_recorded,
        )  # fmt: skip

    def _enter_surroundings(self) -> None:
        self._in_main(self._surroundings.__enter__)
        self._stack.push(lambda *exc: self._in_main(partial(self._surroundings.__exit__, *exc)))

    def _stop(self) -> None:
        telemetry.emit("server.stopping", server=str(self._id))
        assert self._coordinator is not None
        error = self._death
        try:
            if not self._coordinator.stop() and error is None:
                error = errors.ShutdownTimeout(
                    "Work still ran when the server had to be gone; it was handed back."
                )
        except BaseException as worse:
            error = error or worse
        try:
            self._stack.close()
        except BaseException as worse:  # whatever the end of [tasks] setup does
            error = error or worse
        telemetry.emit("server.stopped", server=str(self._id))
        self._phase = _Phase.IDLE
        if error is None:
            self.stopped.set_result(None)
        else:
            if isinstance(error, StopIteration):  # no task that awaits the future would be told
                told = RuntimeError("[tasks] setup raised StopIteration at its end")
                told.__cause__ = error
                error = told
            self.stopped.set_exception(error)

    def _died(self, _service: Service, error: BaseException) -> None:
        with self._lock:
            first, self._death = self._death is None, self._death or error
        if first:
            threading.Thread(target=self._bury, name="undertaker", daemon=True).start()

    def _bury(self) -> None:
        """A statement that was not understood is what a newer schema looks like."""
        if self._death is not None and does_not_fit(self._death):
            try:
                migrate.check(self.conductor.database)
            except errors.SchemaTooNew as newer:
                self._death = newer
            except Exception:  # the first error stands: nothing better is known
                telemetry.emit("database.lost", component="server", error="its schema is unknown")
        self._stop_quietly()

    def _stop_quietly(self) -> None:
        try:
            self.stop()
        except errors.ShutdownTimeout:
            return  # told by .stopped, unless a death came first

    def _queues(self) -> list[str]:
        return sorted(spec.queue for spec in self._specs)


def pool_size(specs: Sequence[WorkerSpec]) -> int:
    """Connections that the tasks of these workers and the server itself may need at the same time:
    one for each thread, forty at most, and four."""
    return min(MOST_FOR_TASKS, sum(spec.config.concurrency for spec in specs)) + 4


def install(conductor: Conductor) -> None:
    """Bring the schema up to date as far as a running server may; raises what is in the way."""
    migrate.upgrade(conductor.database, breaking=False)


def _workers(
    tasks: TaskSet, given: Iterable[WorkerSpec], config: Callable[[str], WorkerConfig]
) -> list[WorkerSpec]:
    specs: dict[str, WorkerSpec] = {}
    for spec in given:
        if spec.queue in specs:
            raise errors.ConfigError(f"Two workers are given for the queue {spec.queue!r}.")
        specs[spec.queue] = spec
    for queue in tasks.queues:
        if queue in specs:
            raise errors.ConfigError(
                f"The queue {queue!r} has a worker of its own and is named by tasks=, too; "
                "give those tasks to that worker."
            )
        specs[queue] = WorkerSpec(queue, tasks.in_queues([queue]), config(queue))
    TaskSet({id(t): t for spec in specs.values() for t in spec.tasks}.values())
    return [specs[queue] for queue in sorted(specs)]


def _refuse_unknown_queues(queues: Sequence[str], tasks: TaskSet) -> None:
    for queue in queues:
        if queue not in tasks.queues:
            known = ", ".join(tasks.queues) or "none"
            raise errors.ConfigError(f"No task is in the queue {queue!r}; there are: {known}.")


def _here(call: Callable[[], Any]) -> Any:
    return call()
