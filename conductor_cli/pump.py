"""``Pump``: one thread and one connection between a worker's books and the database.

A worker has two: while one waits for Postgres the other may prepare, but the second only joins
in when there is enough for both.
"""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, assert_never

from conductor_cli import catalog, telemetry
from conductor_cli.database import Link, is_bad_value
from conductor_cli.holding import Finished
from conductor_cli.models import (
    Cancelled,
    Completed,
    Failed,
    HandedBack,
    Retrying,
    State,
)
from conductor_cli.runner import describe
from conductor_cli.service import PeriodicService
from conductor_cli.store import claims
from conductor_cli.store.claims import Claim, Ended, Exchange, Requeued

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from uuid import UUID

    from conductor_cli.catalog import TaskSet
    from conductor_cli.database import Connection, Database
    from conductor_cli.holding import Holding, Plan
    from conductor_cli.models import Claimed
    from conductor_cli.service import Service

PROMOTE_BATCH: Final = 1000


@dataclass(frozen=True, slots=True)
class Retention:
    """Seconds for which ended executions are kept where their task says nothing."""

    completed: float
    failed: float


@dataclass(frozen=True, slots=True)
class Recorded:
    """An outcome the database has accepted."""

    id: UUID
    state: State


class Pump(PeriodicService):
    """Records outcomes and claims executions for one queue.

    Outcomes are sent again until the database has answered; the claim token makes that
    harmless. ``on_recorded`` hears of every execution that has ended.
    """

    def __init__(
        self,
        name: str,
        *,
        queue: str,
        tasks: TaskSet,
        holding: Holding,
        database: Database,
        owner: UUID,
        retention: Retention,
        on_recorded: Callable[[Recorded], None] | None,
        on_death: Callable[[Service, BaseException], None],
    ) -> None:
        super().__init__(name, pause=1.0, on_death=on_death)
        self.retry_now = False
        self._queue = queue
        self._tasks = tasks
        self._names = [t.name for t in tasks]
        self._holding = holding
        self._link = Link(database, name)
        self._owner = owner
        self._retention = retention
        self._on_recorded = on_recorded
        self._active = False

    def setup(self) -> None:
        self._link.get()

    def teardown(self) -> None:
        self._link.drop()

    def recover(self) -> None:
        self._link.drop()

    def tick(self) -> bool:
        linger = self._holding.linger() if self._active else 0.0
        if linger:
            time.sleep(linger)
        plan = self._holding.plan(self._active)
        self._active = plan is not None
        if plan is None:
            self.pause = self._holding.pause()
            return False
        try:
            claimed = self._carry_out(plan)
        except BaseException:
            self._active = False
            self._holding.failed(plan, self.wake)
            raise
        self._holding.received(plan, claimed)
        return True

    def _carry_out(self, plan: Plan) -> list[Claimed]:
        conn = self._link.get()
        if plan.reconcile:
            self._reconcile(conn)
        if plan.look:
            promoted = claims.promote(conn, self._queue, PROMOTE_BATCH)
            self._holding.looked(promoted, PROMOTE_BATCH)
        ended, given = self._sorted(plan.finished)
        if given:
            self._requeue(conn, given)
        if not ended and not plan.limit:
            return []
        return self._exchange(conn, ended, plan)

    def _exchange(self, conn: Connection, ended: dict[UUID, Finished], plan: Plan) -> list[Claimed]:
        claim = self._claim(plan)
        try:
            done = claims.exchange(conn, [self._ended(f) for f in ended.values()], claim)
        except Exception as error:
            if not is_bad_value(error):
                raise
            self._one_by_one(conn, ended.values(), plan)
            ended, done = {}, claims.exchange(conn, [], claim)
        self._account(conn, ended, done)
        if done.claimed:
            telemetry.emit("executions.claimed", count=len(done.claimed), queue=self._queue)
        return done.claimed

    def _one_by_one(self, conn: Connection, ended: Iterable[Finished], plan: Plan) -> None:
        """A batch was refused for one of its values: the others must not suffer."""
        nothing = self._claim(plan, limit=0)
        for each in ended:
            alone = {each.claimed.id: each}
            try:
                done = claims.exchange(conn, [self._ended(each)], nothing)
            except Exception as error:
                if not is_bad_value(error):
                    raise
                bad = Finished(each.claimed, Failed(describe(error)), each.seconds)
                alone = {each.claimed.id: bad}
                done = claims.exchange(conn, [self._ended(bad)], nothing)
            self._account(conn, alone, done)

    def _account(self, conn: Connection, ended: dict[UUID, Finished], done: Exchange) -> None:
        if done.missing:
            self._explain(conn, [ended.pop(each) for each in done.missing])
        for each in done.cancelled:
            ended[each] = Finished(ended[each].claimed, Cancelled(None), ended[each].seconds)
        self._tell(ended.values())

    def _requeue(self, conn: Connection, given: dict[UUID, Finished]) -> None:
        held = claims.requeue(
            conn,
            [
                Requeued(f.claimed.id, f.claimed.token, f.outcome)
                for f in given.values()
                if isinstance(f.outcome, (Retrying, HandedBack))
            ],
        )
        if len(held) < len(given):
            self._explain(conn, [f for each, f in given.items() if each not in held])
        self._tell_requeued([given[each] for each in held])
        self._holding.due()

    def _explain(self, conn: Connection, missing: Sequence[Finished]) -> None:
        """Why some writes did not hold their row, and what becomes of each."""
        verdicts = claims.inspect(
            conn, [f.claimed.id for f in missing], [f.claimed.token for f in missing]
        )
        for each in missing:
            match verdicts.get(each.claimed.id, "stale"):
                case "locked":
                    self._holding.again(each)
                case "cancelled" if isinstance(each.outcome, (Retrying, HandedBack)):
                    self._holding.again(Finished(each.claimed, Cancelled(None), each.seconds))
                case "cancelled":
                    self._holding.again(each)
                case "recorded" if isinstance(each.outcome, (Retrying, HandedBack)):
                    self._tell_requeued([each])
                case "recorded":
                    self._tell([each])
                case _:
                    telemetry.emit(
                        "executions.stale", queue=self._queue, task=each.claimed.task,
                        execution=str(each.claimed.id), attempt=each.claimed.attempt,
                    )  # fmt: skip

    def _reconcile(self, conn: Connection) -> None:
        tokens = self._holding.known_tokens()
        lost = claims.reconcile(conn, self._owner, self._queue, tokens)
        if lost:
            telemetry.emit("executions.reconciled", count=lost, queue=self._queue)

    def _claim(self, plan: Plan, limit: int | None = None) -> Claim:
        return Claim(
            owner=self._owner,
            token=plan.token,
            queue=self._queue,
            tasks=self._names,
            start=plan.start,
            limit=plan.limit if limit is None else limit,
        )

    def _sorted(
        self, finished: Sequence[Finished]
    ) -> tuple[dict[UUID, Finished], dict[UUID, Finished]]:
        ended: dict[UUID, Finished] = {}
        given: dict[UUID, Finished] = {}
        for each in finished:
            outcome = each.outcome
            if each.claimed.id in ended or each.claimed.id in given:
                # Two claims of one execution, since this server was declared dead in between.
                self._holding.again(each)
            elif isinstance(outcome, (Retrying, HandedBack)):
                given[each.claimed.id] = self._hastened(each, outcome)
            else:
                ended[each.claimed.id] = each
        return ended, given

    def _hastened(self, finished: Finished, outcome: Retrying | HandedBack) -> Finished:
        if not self.retry_now or isinstance(outcome, HandedBack) or not outcome.counts:
            return finished
        return Finished(finished.claimed, _at_once(outcome), finished.seconds)

    def _ended(self, finished: Finished) -> Ended:
        claimed, outcome = finished.claimed, finished.outcome
        assert isinstance(outcome, (Completed, Failed, Cancelled))
        return Ended(claimed.id, claimed.token, outcome, self._keep(claimed.task, outcome))

    def _keep(self, name: str, outcome: claims.Ending) -> float | None:
        task = self._tasks.get(name)
        completed = isinstance(outcome, Completed)
        default = self._retention.completed if completed else self._retention.failed
        if task is None:
            return default
        settings = task.settings
        given = settings.retain_completed if completed else settings.retain_failed
        return catalog.retention(given, default)

    def _tell(self, ended: Iterable[Finished]) -> None:
        counts: Counter[tuple[str, State]] = Counter()
        times: dict[str, list[float]] = {}
        for each in ended:
            assert isinstance(each.outcome, (Completed, Failed, Cancelled))
            state = _state(each.outcome)
            counts[each.claimed.task, state] += 1
            times.setdefault(each.claimed.task, []).append(each.seconds)
            if isinstance(each.outcome, Failed):
                self._tell_failed(each, each.outcome)
            if self._on_recorded is not None:
                self._on_recorded(Recorded(each.claimed.id, state))
        for (task, state), count in counts.items():
            telemetry.emit(
                "executions.finished", count=count, queue=self._queue, task=task, state=state.value
            )
        for task, seconds in times.items():
            telemetry.observe("execution.run", seconds, self._queue, task)

    def _tell_failed(self, finished: Finished, outcome: Failed) -> None:
        telemetry.emit(
            "execution.failed", queue=self._queue, task=finished.claimed.task,
            execution=str(finished.claimed.id), attempt=finished.claimed.attempt,
            error=f"{outcome.error.type}: {outcome.error.message}",
        )  # fmt: skip

    def _tell_requeued(self, given: Sequence[Finished]) -> None:
        released = 0
        for each in given:
            if isinstance(each.outcome, Retrying):
                self._tell_retrying(each, each.outcome)
            else:
                released += 1
        if released:
            telemetry.emit("executions.released", count=released, queue=self._queue)

    def _tell_retrying(self, finished: Finished, outcome: Retrying) -> None:
        error = outcome.error
        telemetry.emit(
            "execution.retrying", queue=self._queue, task=finished.claimed.task,
            execution=str(finished.claimed.id), attempt=finished.claimed.attempt,
            delay=round(outcome.delay, 3), counts=outcome.counts,
            error=f"{error.type}: {error.message}" if error else None,
        )  # fmt: skip


def _at_once(outcome: Retrying) -> Retrying:
    return Retrying(0.0, outcome.error, counts=True)


def _state(outcome: claims.Ending) -> State:
    match outcome:
        case Completed():
            return State.COMPLETED
        case Failed():
            return State.FAILED
        case Cancelled():
            return State.CANCELLED
        case other:
            assert_never(other)
