"""``JobWorker``: one queue's threads in one process.

Claims ahead, runs each execution in a thread of its own, records outcomes in batches. The books
are in ``holding``, the talking to the database in ``pump``, the running itself in ``runner``.
"""

from __future__ import annotations

import math
import threading
import time
from itertools import count
from typing import TYPE_CHECKING, Any, Final

from conductor_cli import outcomes, telemetry
from conductor_cli import runner as running
from conductor_cli.attempt import Abort, Attempt
from conductor_cli.errors import TaskTimeout
from conductor_cli.holding import Finished, Holding, SuspectLane
from conductor_cli.models import HandedBack, is_suspect
from conductor_cli.pump import Pump, tell_failure
from conductor_cli.service import Deadline, PeriodicService, Service, ServiceGroup

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from uuid import UUID

    from conductor_cli.catalog import WorkerSpec
    from conductor_cli.database import Database
    from conductor_cli.models import Claimed, Outcome
    from conductor_cli.pump import Recorded, Retention
    from conductor_cli.runner import Runner

PUMPS: Final = 2
GRACE: Final = 5.0  # seconds a task has to stop after its timeout
RETURN_DELAY: Final = 1.0  # seconds before what still ran at the end may run elsewhere
REINTERRUPT: Final = 0.05


class JobWorker:
    """Serves one queue. Starts once; ``stop`` asks, ``join`` waits."""

    def __init__(
        self,
        spec: WorkerSpec,
        *,
        runner: Runner,
        database: Database,
        owner: UUID,
        retention: Retention,
        trusts_listener: Callable[[], bool],
        lane: SuspectLane,
        on_death: Callable[[Service, BaseException], None],
        on_recorded: Callable[[Recorded], None] | None = None,
    ) -> None:
        self.queue = spec.queue
        self.tasks = spec.tasks
        self.holding = Holding(spec.config, trusts_listener, self._is_suspect, lane)
        self._name = f"worker.{spec.queue}"
        self._runner = runner
        self._on_death = on_death
        self._stuck: list[Slot] = []
        self._stuck_lock = threading.Lock()
        self._numbers = count(1)  # of slots
        self._stuck_limit = spec.config.concurrency
        self._pumps = [
            Pump(
                f"{self._name}.pump{n}",
                queue=spec.queue, tasks=spec.tasks, holding=self.holding, database=database,
                owner=owner, retention=retention, on_recorded=on_recorded, on_death=on_death,
            )
            for n in range(1, PUMPS + 1)
        ]  # fmt: skip
        self.holding.wakers = [pump.wake for pump in self._pumps]
        self._timekeeper = Timekeeper(f"{self._name}.timekeeper", self, on_death)
        self._slots = [self._slot() for _ in range(spec.config.concurrency)]
        self._services = ServiceGroup([*self._slots, self._timekeeper, *self._pumps])

    def start(self) -> None:
        """Return when it is connected and its threads wait; raises DatabaseUnavailable."""
        self._services.start()

    def stop(self) -> None:
        """Claim no more, give back what has not started, and ask what runs to come to an end."""
        self.holding.stop_claiming()
        for attempt in self._attempts():
            attempt.signal.set(Abort.SHUTDOWN)
        for slot in list(self._slots):
            slot.stop()

    def join_tasks(self, deadline: Deadline) -> bool:
        """Wait until no task runs; False when the deadline passed first."""
        return all([slot.join(deadline) for slot in list(self._slots)])

    def insist(self) -> None:
        """Leave async tasks at their next await; plain ones at their next call of the context."""
        for attempt in self._attempts():
            attempt.insisted = True
            if attempt.cancel is not None:
                attempt.cancel()

    def hand_back_running(self) -> int:
        """Give back what still runs, whatever its threads do from now on; returns how many."""
        returned = 0
        for attempt in self._attempts():
            if attempt.decide():
                returned += 1
                outcome = HandedBack(RETURN_DELAY)
                self.holding.finish(Finished(attempt.claimed, outcome, 0.0))
        return returned

    def flush(self, deadline: Deadline) -> bool:
        """Wait until everything is recorded; False when the deadline passed first."""
        while self.holding.in_hand:
            if deadline.has_passed:
                return False
            self._pumps[0].wake()
            time.sleep(0.005)
        return True

    def join(self, deadline: Deadline) -> bool:
        """End the pumps, when all is flushed or nothing more can be."""
        for service in (*self._pumps, self._timekeeper):
            service.stop()
        return all([s.join(deadline) for s in (*self._pumps, self._timekeeper)])

    def abort(self, ids: set[UUID] | None, why: Abort, detail: str | None = None) -> None:
        """Ask these executions, or all, to stop; those not yet started never start."""
        for attempt in self._attempts():
            if ids is None or attempt.claimed.id in ids:
                attempt.signal.set(why, detail)
        self.holding.give_back_unstarted(ids)
        self._pumps[0].wake()

    def give_back_unstarted(self) -> None:
        """Give back what has been claimed and not been started."""
        self.holding.give_back_unstarted()
        self._pumps[0].wake()

    def set_retry_now(self) -> None:
        """Let retries run without their backoff."""
        for pump in self._pumps:
            pump.retry_now = True

    @property
    def running(self) -> int:
        """How many tasks run at this moment."""
        return sum(1 for _ in self._attempts())

    @property
    def is_idle(self) -> bool:
        return self.holding.in_hand == 0

    @property
    def problems(self) -> list[str]:
        """Why it is not well."""
        dead = [f"{pump.name} has ended" for pump in self._pumps if not pump.is_alive]
        lost = [f"{pump.name} has lost the database" for pump in self._pumps if pump.is_troubled]
        return dead + lost

    def replace_stuck(self, slot: Slot, attempt: Attempt, outcome: Outcome) -> None:
        """Give up on a slot whose task does not return: record ``outcome``, go on without it.

        The server ends when too many threads are stuck at the same time. One that ends after all
        counts no more.
        """
        with self._stuck_lock:
            if not attempt.decide():
                return
            self._stuck.append(slot)
        self.holding.finish(Finished(attempt.claimed, outcome, 0.0))
        tell_failure(self.queue, attempt.claimed, outcome, TaskTimeout(attempt.time_is_up))
        stuck = self.stuck
        telemetry.emit("worker.stuck", **self._stuck_fields(attempt, stuck))
        if stuck > self._stuck_limit:
            self._slots.remove(slot)  # nobody need wait for it
            error = RuntimeError(
                f"{stuck} tasks of queue {self.queue!r} did not return after their timeout and "
                f"still run, more than its {self._stuck_limit} threads: the server ends, to be "
                "started afresh"
            )
            self._on_death(slot, error)
            return
        fresh = self._slot()
        self._slots[self._slots.index(slot)] = fresh
        fresh.start()

    @property
    def stuck(self) -> int:
        """How many threads still run a task that has been given up on."""
        with self._stuck_lock:
            return sum(slot.is_alive for slot in self._stuck)

    def _returned(self, slot: Slot, attempt: Attempt) -> None:
        """A slot ends whose run others have decided."""
        with self._stuck_lock:
            if slot not in self._stuck:  # it was handed back, as the server stops
                return
            self._stuck.remove(slot)
        telemetry.emit("worker.unstuck", **self._stuck_fields(attempt, self.stuck))

    def _stuck_fields(self, attempt: Attempt, stuck: int) -> dict[str, Any]:
        claimed = attempt.claimed
        return {
            "queue": self.queue, "task": claimed.task, "execution": str(claimed.id),
            "stuck": stuck, "limit": self._stuck_limit,
        }  # fmt: skip

    def _is_suspect(self, claimed: Claimed) -> bool:
        task = self.tasks.get(claimed.task)
        return task is not None and is_suspect(claimed.crashes, task.settings.max_crashes)

    def _slot(self) -> Slot:
        return Slot(
            f"{self._name}.{next(self._numbers)}",
            self.holding, self._runner, self._timekeeper,
            queue=self.queue, on_death=self._on_death, on_returned=self._returned,
        )  # fmt: skip

    def _attempts(self) -> Iterator[Attempt]:
        for slot in list(self._slots):
            if (attempt := slot.attempt) is not None:
                yield attempt

    @property
    def slots(self) -> list[Slot]:
        return list(self._slots)


class Slot(Service):
    """One thread that runs one execution after the other."""

    def __init__(
        self,
        name: str,
        holding: Holding,
        runner: Runner,
        timekeeper: Timekeeper,
        *,
        queue: str,
        on_death: Callable[[Service, BaseException], None],
        on_returned: Callable[[Slot, Attempt], None],
    ) -> None:
        super().__init__(name, on_death=on_death)
        self._queue, self._on_returned = queue, on_returned
        self.attempt: Attempt | None = None
        self._holding = holding
        self._runner = runner
        self._timekeeper = timekeeper

    def run(self) -> None:
        holding, take, clock = self._holding, self._holding.inbox.get, time.monotonic
        while (claimed := take()) is not None:
            holding.last_start = started = clock()
            if not holding.is_claiming:
                holding.finish(Finished(claimed, HandedBack(0.0), 0.0))
                continue
            seconds = self._runner.timeout_of(claimed)
            deadline = None if seconds is None else started + seconds
            self.attempt = attempt = Attempt(claimed, deadline)
            if deadline is not None:
                self._timekeeper.look_by(deadline)
            outcome = self._runner.run(attempt)
            self.attempt = None
            failure, attempt.failure = attempt.failure, None
            context, attempt.context = attempt.context, None
            if not attempt.decide():
                self._on_returned(self, attempt)
                return  # given up on, and replaced
            if failure is not None:
                tell_failure(self._queue, claimed, outcome, failure, context)
            del failure, context
            seconds_run, ledger = clock() - started, attempt.ledger
            if ledger is None:
                holding.finish(Finished(claimed, outcome, seconds_run))
            else:
                holding.finish(
                    Finished(claimed, outcome, seconds_run, ledger.is_marked, ledger.is_settled)
                )

    def stop(self) -> None:
        super().stop()
        self._holding.end_threads(1)


class Timekeeper(PeriodicService):
    """Ends what runs past its ``timeout``: asks, raises, and at last goes on without the thread."""

    def __init__(
        self, name: str, worker: JobWorker, on_death: Callable[[Service, BaseException], None]
    ) -> None:
        super().__init__(name, pause=threading.TIMEOUT_MAX, on_death=on_death)
        self._looks_at = math.inf
        self._worker = worker

    def look_by(self, deadline: float) -> None:
        """Look no later; called by a slot once its attempt can be seen. Wakes the thread only if it
        sleeps for longer, so that of many short tasks one in a while does."""
        if deadline < self._looks_at:
            self._looks_at = deadline
            self.wake()

    def tick(self) -> bool:
        promised, self._looks_at = self._looks_at, math.inf  # who comes during the look, wakes
        now = time.monotonic()
        next_looks = [self._look(slot, now) for slot in self._worker.slots]
        if promised > now:
            next_looks.append(promised - now)
        self.pause = min([threading.TIMEOUT_MAX, *next_looks])
        self._looks_at = now + self.pause
        return False

    def _look(self, slot: Slot, now: float) -> float:
        """Seconds until this slot needs to be looked at again."""
        attempt = slot.attempt
        if attempt is None or (deadline := attempt.deadline) is None:
            return threading.TIMEOUT_MAX
        if now < deadline:
            return deadline - now
        if now >= deadline + GRACE:
            task = self._worker.tasks.get(attempt.claimed.task)
            if task is not None:
                self._worker.replace_stuck(slot, attempt, outcomes.given_up(task, attempt, GRACE))
            return threading.TIMEOUT_MAX
        return self._ask(attempt, deadline + GRACE - now)

    def _ask(self, attempt: Attempt, grace_left: float) -> float:
        first = attempt.signal.set(Abort.TIMEOUT, attempt.time_is_up)
        if attempt.cancel is not None or attempt.interrupted:
            return grace_left
        if first or attempt.signal.reason is Abort.TIMEOUT:
            attempt.interrupted = running.interrupt(attempt)
        return grace_left if attempt.interrupted else min(grace_left, REINTERRUPT)
