"""``JobCoordinator``: wires the job side of one server.

Heartbeat, ``JobWorker``s, listener, rescuer, and leadership with its ``JobScheduler`` and
pruner. There is no mode switch: one server is a cluster of one.
"""

from __future__ import annotations

import threading
from contextlib import ExitStack, suppress
from functools import partial
from typing import TYPE_CHECKING, Final
from uuid import UUID

import msgspec

from conductor_cli import telemetry
from conductor_cli.attempt import Abort
from conductor_cli.database import Database
from conductor_cli.holding import SuspectLane
from conductor_cli.leadership import Leadership
from conductor_cli.maintenance import Dispatcher, Pruner, Registrar, Rescuer
from conductor_cli.registration import Definitions, register
from conductor_cli.runner import EventLoop, Runner
from conductor_cli.scheduler import LOOK_AGAIN, JobScheduler
from conductor_cli.sections import Tasks
from conductor_cli.service import Deadline
from conductor_cli.signals import Beaten, Heartbeat, Identity, Listener
from conductor_cli.surroundings import Surroundings
from conductor_cli.worker import JobWorker

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from conductor_cli.catalog import WorkerSpec
    from conductor_cli.client import Conductor
    from conductor_cli.pump import Recorded, Retention
    from conductor_cli.service import Service
    from conductor_cli.telemetry.meters import Reader

LAST_WORDS: Final = 2.0  # seconds kept for flushing, resigning and handing back
LOOK_EVERY: Final = 0.02
LOOK_AGAIN_DEAF: Final = 2.0  # seconds, for a scheduler that hears of no changes


class Settings(msgspec.Struct, frozen=True):
    """How a coordinator behaves; durations in seconds.

    ``leads``: it stands for election and runs the scheduler while it leads.
    """

    heartbeat_interval: float
    heartbeat_timeout: float
    shutdown_timeout: float
    timezone: str
    retention: Retention
    leads: bool = True


class JobCoordinator:
    """The job side of one server. ``start`` is idempotent; after ``stop`` it may start again."""

    def __init__(
        self,
        conductor: Conductor,
        identity: Identity,
        specs: Sequence[WorkerSpec],
        settings: Settings,
        *,
        surroundings: Surroundings | None = None,
        on_death: Callable[[Service, BaseException], None] | None = None,
        on_recorded: Callable[[Recorded], None] | None = None,
    ) -> None:
        self._conductor = conductor
        self._database: Database = conductor.database
        self._identity = identity
        self._specs = specs
        self._settings = settings
        self._surroundings = surroundings or Surroundings(Tasks())
        self._on_death = on_death or _ignore
        self._on_recorded = on_recorded
        self._lock = threading.Lock()
        self._hurry = threading.Event()
        self._parts: _Parts | None = None
        self._gauges = ExitStack()

    def start(self) -> None:
        """Beat, register, work, listen, stand for election; returns when all are up."""
        with self._lock:
            if self._parts is not None:
                return
            self._hurry.clear()
            parts = self._assemble()
            try:
                self._start(parts)
            except BaseException:
                self._stop(parts, Deadline(LAST_WORDS))
                raise
            self._parts = parts
            self._gauges = self._publish(parts)

    def stop(self, timeout: float | None = None) -> bool:
        """Stop gracefully within ``timeout`` seconds (default: shutdown_timeout).

        Returns when stopped; False when work had to be cut short and was handed back.
        """
        with self._lock:
            parts = self._parts
            if parts is None:
                return True
            limit = self._settings.shutdown_timeout if timeout is None else timeout
            try:
                return self._stop(parts, Deadline(limit))
            finally:
                self._parts = None
                self._gauges.close()

    def destroy(self) -> bool:
        """An alias of ``stop``."""
        return self.stop()

    def hurry(self) -> None:
        """Let a stop that is under way hand back at once what still runs."""
        self._hurry.set()

    @property
    def is_leader(self) -> bool:
        """Whether this server leads, by a term it may still trust."""
        parts = self._parts
        return parts is not None and parts.leadership is not None and parts.leadership.is_leader

    @property
    def workers(self) -> Sequence[JobWorker]:
        """The workers that run now."""
        return self._parts.workers if self._parts else ()

    @property
    def problems(self) -> list[str]:
        """Why this server is not well; empty when it is."""
        parts = self._parts
        if parts is None:
            return ["the coordinator is not running"]
        found = [problem for worker in parts.workers for problem in worker.problems]
        silent = parts.heartbeat.silent_for
        if silent > self._settings.heartbeat_timeout:
            found.append(f"no heartbeat has been answered for {silent:.0f} s")
        elif parts.heartbeat.is_troubled:
            found.append("the heartbeat has lost the database")
        if parts.leadership is not None:
            found.extend(parts.leadership.problems)
        return found

    def _register(self, *, again: bool = False) -> None:
        timezone, retention = self._settings.timezone, self._settings.retention
        given = Definitions.of(self._specs, timezone=timezone, retention=retention)
        register(self._database, given, only_foreign=again)

    def _assemble(self) -> _Parts:
        loop = EventLoop()
        rescuer = Rescuer(self._database, on_death=self._on_death) if self._specs else None
        registrar = (
            Registrar(partial(self._register, again=True), on_death=self._on_death)
            if self._specs
            else None
        )
        leadership = self._leadership() if self._settings.leads and self._specs else None
        listener = self._listener() if self._specs and not self._is_deaf() else None
        trusts = _never if listener is None else (lambda: listener.is_proven)
        lane = SuspectLane()
        workers = [self._worker(spec, loop, trusts, lane) for spec in self._specs]
        dispatcher = None
        if self._specs:
            dispatcher = Dispatcher(self._database, trusts_listener=trusts, on_death=self._on_death)
        heartbeat = Heartbeat(
            self._database, self._identity,
            interval=self._settings.heartbeat_interval,
            timeout=self._settings.heartbeat_timeout,
            stand=leadership.stand if leadership else (lambda: (False, None)),
            hear=partial(self._hear, leadership, rescuer, dispatcher, workers),
            on_dead=partial(_abort_all, workers),
            on_death=self._on_death,
        )  # fmt: skip
        return _Parts(
            heartbeat, workers, listener, rescuer, dispatcher, registrar, leadership, loop
        )

    def _worker(
        self,
        spec: WorkerSpec,
        loop: EventLoop,
        trusts_listener: Callable[[], bool],
        lane: SuspectLane,
    ) -> JobWorker:
        runner = Runner(
            spec.tasks, conductor=self._conductor, loop=loop, state=self._surroundings.state,
            limit=self._conductor.max_payload, context=self._surroundings.context,
            middleware=self._surroundings.middleware,
        )  # fmt: skip
        return JobWorker(
            spec, runner=runner, database=self._database, owner=self._identity.id,
            retention=self._settings.retention, trusts_listener=trusts_listener, lane=lane,
            on_death=self._on_death, on_recorded=self._on_recorded,
        )  # fmt: skip

    def _leadership(self) -> Leadership:
        return Leadership(
            self._database,
            self._identity.id,
            lease=self._settings.heartbeat_timeout,
            services=lambda: [
                JobScheduler(
                    self._database,
                    on_death=self._on_death,
                    look_again=LOOK_AGAIN_DEAF if self._database.is_behind_pooler else LOOK_AGAIN,
                ),
                Pruner(self._database, on_death=self._on_death),
            ],
            on_death=self._on_death,
        )

    def _is_deaf(self) -> bool:
        """Whether no notification can reach it: polling finds everything, a little later."""
        if not self._database.is_behind_pooler:
            return False
        polls = max((spec.config.poll_interval for spec in self._specs), default=0.0)
        telemetry.emit("pooler.found", poll_interval=polls)
        return True

    def _listener(self) -> Listener:
        return Listener(
            self._database, self._identity,
            interval=self._settings.heartbeat_interval,
            handle=self._handle, on_doubt=self._doubt, on_death=self._on_death,
        )  # fmt: skip

    def _publish(self, parts: _Parts) -> ExitStack:
        """Gauges for whoever scrapes; closing the stack takes them back."""

        def by_queue(read: Callable[[JobWorker], int]) -> Reader:
            return lambda: {(worker.queue,): float(read(worker)) for worker in parts.workers}

        gauges: tuple[tuple[str, str, Reader, tuple[str, ...]], ...] = (
            ("conductor_running", "Tasks running now.", by_queue(lambda w: w.running), ("queue",)),
            (
                "conductor_stuck_threads", "Threads that run a task which was given up on.",
                by_queue(lambda w: w.stuck), ("queue",),
            ),
            (
                "conductor_in_hand", "Executions claimed and not yet recorded.",
                by_queue(lambda w: w.holding.in_hand), ("queue",),
            ),
            (
                "conductor_is_leader", "1 while this server leads.",
                lambda: {(): float(self.is_leader)}, (),
            ),
            (
                "conductor_heartbeat_age_seconds", "Since the last beat that was answered.",
                lambda: {(): parts.heartbeat.silent_for}, (),
            ),
        )  # fmt: skip
        stack = ExitStack()
        for name, about, read, labels in gauges:
            stack.callback(telemetry.gauge(name, about, read, labels))
        return stack

    def _start(self, parts: _Parts) -> None:
        parts.heartbeat.start()
        # In the fleet first: what nobody alive has defined, an older server takes back.
        self._register()
        for worker in parts.workers:
            worker.start()
        for service in (
            parts.listener, parts.rescuer, parts.dispatcher, parts.registrar, parts.leadership,
        ):  # fmt: skip
            if service is not None:
                service.start()
        parts.heartbeat.wake()  # the listener is there to hear the ping

    def _stop(self, parts: _Parts, deadline: Deadline) -> bool:
        parts.heartbeat.is_stopping = True
        for early in (parts.leadership, parts.registrar, parts.rescuer, parts.dispatcher):
            if early is not None:
                early.stop()
        for worker in parts.workers:
            worker.stop()
        clean = self._finish_tasks(parts, deadline)
        for worker in parts.workers:
            clean = worker.hand_back_running() == 0 and clean
        for worker in parts.workers:
            clean = worker.flush(deadline.before(LAST_WORDS / 4)) and clean
            worker.join(deadline)
        for service in (
            parts.leadership, parts.registrar, parts.rescuer, parts.dispatcher, parts.listener,
            parts.heartbeat,
        ):  # fmt: skip
            if service is not None:
                service.stop()
                service.join(deadline)
        parts.loop.stop()
        return clean

    def _finish_tasks(self, parts: _Parts, deadline: Deadline) -> bool:
        """Let tasks come to an end; after two thirds of the time insist."""
        last = deadline.before(LAST_WORDS)
        remaining = deadline.remaining
        insist = Deadline(None if remaining is None else remaining * 2 / 3)
        insisted = False
        while not all([worker.join_tasks(Deadline(0)) for worker in parts.workers]):
            if self._hurry.is_set() or last.has_passed:
                return False
            if insist.has_passed and not insisted:
                insisted = True
                for worker in parts.workers:
                    worker.insist()
            self._hurry.wait(LOOK_EVERY)
        return True

    def _hear(
        self,
        leadership: Leadership | None,
        rescuer: Rescuer | None,
        dispatcher: Dispatcher | None,
        workers: Sequence[JobWorker],
        beaten: Beaten,
    ) -> None:
        pulse = beaten.pulse
        if leadership is not None:
            leadership.hear(beaten)
        if rescuer is not None and beaten.may_judge and (pulse.look_in or 1.0) <= 0:
            rescuer.judge()
        if dispatcher is not None and pulse.emitted:
            dispatcher.wake()
        for worker in workers:
            worker.holding.servers = pulse.servers
            if pulse.cancelled:
                worker.abort(set(pulse.cancelled), Abort.CANCELLED)

    def _handle(self, payload: str) -> None:
        """One notification; what is not understood is a newer version's."""
        parts = self._parts
        if parts is None:
            return
        kind, _, rest = payload.partition(":")
        with suppress(ValueError):  # a number or an id that is none: anybody may notify
            match kind:
                case "ready" | "due":
                    number, _, queue = rest.partition(":")
                    for worker in parts.workers:
                        if worker.queue == queue:
                            _hint(worker, kind, number)
                case "pause" | "resume":
                    for worker in parts.workers:
                        if worker.queue == rest:
                            _hint(worker, kind)
                case "cancel":
                    cancelled = {UUID(rest)}
                    for worker in parts.workers:
                        worker.abort(cancelled, Abort.CANCELLED)
                case "event" if parts.dispatcher is not None:
                    parts.dispatcher.wake()
                case "leaderless" | "schema":
                    parts.heartbeat.wake()
                case "schedules" if parts.leadership is not None:
                    parts.leadership.wake_services()

    def _doubt(self) -> None:
        for worker in self.workers:
            worker.holding.ready()
            worker.holding.due()
        if (parts := self._parts) is not None and parts.dispatcher is not None:
            parts.dispatcher.wake()


class _Parts(msgspec.Struct, frozen=True):
    heartbeat: Heartbeat
    workers: Sequence[JobWorker]
    listener: Listener | None
    rescuer: Rescuer | None
    dispatcher: Dispatcher | None
    registrar: Registrar | None
    leadership: Leadership | None
    loop: EventLoop


def _hint(worker: JobWorker, kind: str, number: str = "") -> None:
    match kind:
        case "ready":
            worker.holding.ready(int(number))
        case "due":
            worker.holding.due(float(number))
        case "pause":
            worker.give_back_unstarted()
        case "resume":
            worker.holding.ready()
            worker.holding.due()


def _abort_all(workers: Sequence[JobWorker]) -> None:
    for worker in workers:
        worker.abort(None, Abort.LOST)


def _never() -> bool:
    return False


def _ignore(_service: Service, _error: BaseException) -> None:
    """service.died has been told."""
