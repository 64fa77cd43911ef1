"""``Pump``: one thread and one connection between a worker's books and the database.

A worker has two: while one waits for Postgres the other may prepare, but the second only joins
in when there is enough for both.
"""

from __future__ import annotations

import time
from collections import Counter
from typing import TYPE_CHECKING, Final, assert_never

import msgspec

from conductor_cli import catalog, telemetry
from conductor_cli.database import Link, is_bad_value, is_locked
from conductor_cli.failure import describe
from conductor_cli.holding import Finished
from conductor_cli.models import (
    Cancelled,
    Completed,
    Failed,
    Flag,
    HandedBack,
    Retrying,
    State,
    Suspended,
)
from conductor_cli.service import PeriodicService
from conductor_cli.store import claims, endings
from conductor_cli.store.claims import Claim, Ended, Exchange, Requeued
from conductor_cli.store.endings import Leaving

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from contextvars import Context
    from uuid import UUID

    from conductor_cli.catalog import TaskSet
    from conductor_cli.database import Connection, Database
    from conductor_cli.holding import Holding, Plan
    from conductor_cli.models import Claimed, Outcome
    from conductor_cli.registry import Seconds
    from conductor_cli.service import Service

PROMOTE_BATCH: Final = 1000
_BEYOND: Final = ~int(Flag.CANCEL_ASKED | Flag.WATCHED)  # flags of an end that concerns others


class Retention(msgspec.Struct, frozen=True):
    """Seconds for which ended executions are kept where their task says nothing."""

    completed: float
    failed: float


class Recorded(msgspec.Struct, frozen=True):
    """An outcome the database has accepted."""

    id: UUID
    state: State


class _Batch(msgspec.Struct):
    """Outcomes by the statement that records them."""

    ended: list[Finished] = msgspec.field(default_factory=list)
    flagged: list[Finished] = msgspec.field(default_factory=list)
    leaving: list[Finished] = msgspec.field(default_factory=list)
    given: list[Finished] = msgspec.field(default_factory=list)


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
        self._names = [t.name for t in tasks]
        self._holding = holding
        self._link = Link(database, name)
        self._owner = owner
        self._default_keep = _keeps(None, None, retention)
        self._keeps = {
            t.name: _keeps(t.settings.retain_completed, t.settings.retain_failed, retention)
            for t in tasks
        }
        self._on_recorded = on_recorded
        self._active = False
        self._settled: list[Finished] = []  # of the plan being carried out
        self._spoilt: list[Finished] = []  # claimed by it, and unreadable

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
        self._settled, self._spoilt = [], []
        try:
            claimed = self._carry_out(plan)
        except BaseException:
            self._active = False
            self._holding.failed(plan, self.wake, self._settled)
            raise
        self._holding.received(plan, claimed, self._spoilt)
        return True

    def _carry_out(self, plan: Plan) -> Sequence[Claimed]:
        conn = self._link.get()
        if plan.reconcile:
            self._reconcile(conn)
        if plan.look:
            promoted = claims.promote(conn, self._queue, PROMOTE_BATCH)
            self._holding.looked(promoted, PROMOTE_BATCH)
        batch = self._sorted(plan.finished)
        if batch.given:
            self._requeue(conn, batch.given)
        if batch.leaving:
            self._suspend(conn, batch.leaving)
        if batch.flagged:
            self._finish(conn, batch.flagged)
        if not batch.ended and not plan.limit:
            return []
        claim = self._claim(plan)
        if plan.apart and batch.ended:
            self._exchange(conn, batch.ended, msgspec.structs.replace(claim, limit=0))
            return self._exchange(conn, [], claim)
        return self._exchange(conn, batch.ended, claim)

    def _exchange(
        self, conn: Connection, ended: Sequence[Finished], claim: Claim
    ) -> Sequence[Claimed]:
        try:
            done = claims.exchange(conn, [self._ended(f) for f in ended], claim)
        except Exception as error:
            if is_locked(error):
                return self._exchange(conn, self._without_locked(conn, ended), claim)
            if is_bad_value(error) and ended:
                self._one_by_one(conn, ended, claim)
                return self._exchange(conn, [], claim)
            raise
        self._account(conn, ended, done)
        for each in done.spoilt:
            outcome = Failed(describe(each.error))
            tell_failure(self._queue, each.claimed, outcome, each.error)
            self._spoilt.append(Finished(each.claimed, outcome, 0.0))
        if done.claimed:
            telemetry.emit("executions.claimed", count=len(done.claimed), queue=self._queue)
        return done.claimed

    def _without_locked(self, conn: Connection, ended: Sequence[Finished]) -> Sequence[Finished]:
        """Leave for later those of a batch that somebody else has locked."""
        ids = claims.locked(conn, [f.claimed.id for f in ended], [f.claimed.token for f in ended])
        late = [each for each in ended if each.claimed.id in ids]
        for each in late or ended:  # where none is, any more: nobody knows which it was
            self._again(each)
        return [each for each in ended if each.claimed.id not in ids] if late else []

    def _one_by_one(self, conn: Connection, ended: Iterable[Finished], claim: Claim) -> None:
        """A batch was refused for one of its values: the others must not suffer."""
        nothing = msgspec.structs.replace(claim, limit=0)
        for each in ended:
            alone = [each]
            try:
                done = claims.exchange(conn, [self._ended(each)], nothing)
            except Exception as error:
                if is_locked(error):
                    self._again(each)
                    continue
                if not is_bad_value(error):
                    raise
                bad = _refused(self._queue, each, error)
                alone = [bad]
                done = claims.exchange(conn, [self._ended(bad)], nothing)
            self._account(conn, alone, done)

    def _account(self, conn: Connection, ended: Sequence[Finished], done: Exchange) -> None:
        if done.missing:
            missing = set(done.missing)
            self._explain(conn, [f for f in ended if f.claimed.id in missing])
            ended = [f for f in ended if f.claimed.id not in missing]
        if done.cancelled:
            cancelled = set(done.cancelled)
            ended = [_cancelled(f) if f.claimed.id in cancelled else f for f in ended]
        self._settled += ended
        self._tell(ended)

    def _finish(self, conn: Connection, flagged: Sequence[Finished]) -> None:
        try:
            done = endings.finish(conn, [self._ended(f) for f in flagged])
        except Exception as error:
            if not is_bad_value(error):
                raise
            only = len(flagged) == 1
            for each in flagged:
                self._finish(conn, [_refused(self._queue, each, error) if only else each])
            return
        missing = {f.claimed.id for f in flagged} - {each.id for each in done}
        cancelled = [each.id for each in done if each.cancelled]
        self._account(conn, flagged, Exchange([], list(missing), cancelled))

    def _suspend(self, conn: Connection, leaving: Sequence[Finished]) -> None:
        held = endings.suspend(
            conn,
            [
                Leaving(f.claimed.id, f.claimed.token, f.outcome)
                for f in leaving
                if isinstance(f.outcome, Suspended)
            ],
        )
        if len(held) < len(leaving):
            self._explain(conn, [f for f in leaving if f.claimed.id not in held])
        suspended = [f for f in leaving if f.claimed.id in held]
        self._settled += suspended
        self._tell_suspended(suspended)
        self._holding.due()

    def _requeue(self, conn: Connection, given: Sequence[Finished]) -> None:
        held = claims.requeue(
            conn,
            [
                Requeued(f.claimed.id, f.claimed.token, f.outcome)
                for f in given
                if isinstance(f.outcome, (Retrying, HandedBack))
            ],
        )
        if len(held) < len(given):
            self._explain(conn, [f for f in given if f.claimed.id not in held])
        requeued = [f for f in given if f.claimed.id in held]
        self._settled += requeued
        self._tell_requeued(requeued)
        self._holding.due()

    def _explain(self, conn: Connection, missing: Sequence[Finished]) -> None:
        """Why some writes did not hold their row, and what becomes of each."""
        verdicts = claims.inspect(
            conn, [f.claimed.id for f in missing], [f.claimed.token for f in missing]
        )
        self._settled += missing
        for each in missing:
            match verdicts.get(each.claimed.id, "stale"):
                case "locked":
                    self._again(each)
                case "flagged":
                    self._again(_flagged(each, each.outcome))
                case "cancelled" if isinstance(each.outcome, (Retrying, HandedBack, Suspended)):
                    self._again(_flagged(each, Cancelled(None)))
                case "cancelled":
                    self._again(_flagged(each, each.outcome))
                case "released" | "recorded" if isinstance(each.outcome, Suspended):
                    self._tell_suspended([each])
                case "released" | "recorded" if isinstance(each.outcome, (Retrying, HandedBack)):
                    self._tell_requeued([each])
                case "recorded":
                    self._tell([each])
                case _:
                    telemetry.emit(
                        "executions.stale", queue=self._queue, task=each.claimed.task,
                        execution=str(each.claimed.id), attempt=each.claimed.attempt,
                        run=each.claimed.runs,
                    )  # fmt: skip

    def _again(self, finished: Finished) -> None:
        """Leave it for a later plan; this one is done with it, whatever becomes of the rest."""
        self._settled.append(finished)
        self._holding.again(finished)

    def _reconcile(self, conn: Connection) -> None:
        lost = claims.reconcile(conn, self._owner, self._queue, self._holding.known_tokens)
        if lost:
            telemetry.emit("executions.reconciled", count=lost, queue=self._queue)

    def _claim(self, plan: Plan) -> Claim:
        return Claim(
            owner=self._owner,
            token=plan.token,
            queue=self._queue,
            tasks=self._names,
            start=plan.start,
            limit=plan.limit,
        )

    def _sorted(self, finished: Sequence[Finished]) -> _Batch:
        seen: set[int] = set()
        batch = _Batch()
        for each in finished:
            outcome, number = each.outcome, each.claimed.id.int
            if number in seen:
                # Two claims of one execution, since this server was declared dead in between.
                self._again(each)
                continue
            seen.add(number)
            if each.recorded:
                self._settled.append(each)
                self._tell([each])
            elif isinstance(outcome, (Retrying, HandedBack)):
                batch.given.append(self._hastened(each, outcome))
            elif isinstance(outcome, Suspended):
                batch.leaving.append(each)
            elif each.flagged or each.claimed.flags & _BEYOND:
                batch.flagged.append(each)
            else:
                batch.ended.append(each)
        return batch

    def _hastened(self, finished: Finished, outcome: Retrying | HandedBack) -> Finished:
        if not self.retry_now or isinstance(outcome, HandedBack) or not outcome.counts:
            return finished
        return Finished(finished.claimed, _at_once(outcome), finished.seconds)

    def _ended(self, finished: Finished) -> Ended:
        claimed, outcome = finished.claimed, finished.outcome
        assert isinstance(outcome, (Completed, Failed, Cancelled))
        completed, otherwise = self._keeps.get(claimed.task, self._default_keep)
        keep = completed if type(outcome) is Completed else otherwise
        return Ended(claimed.id, claimed.token, outcome, keep)

    def _tell(self, ended: Iterable[Finished]) -> None:
        times: dict[str, list[float]] = {}
        counts: Counter[tuple[str, State]] = Counter()
        for each in ended:
            task, outcome = each.claimed.task, each.outcome
            assert isinstance(outcome, (Completed, Failed, Cancelled))
            if (seconds := times.get(task)) is None:
                seconds = times[task] = []
            seconds.append(each.seconds)
            if type(outcome) is not Completed:
                counts[task, _state(outcome)] += 1
            if isinstance(outcome, Failed):
                self._tell_failed(each, outcome)
            if self._on_recorded is not None:
                self._on_recorded(Recorded(each.claimed.id, _state(outcome)))
        for task, seconds in times.items():
            others = sum(n for (name, _), n in counts.items() if name == task)
            counts[task, State.COMPLETED] = len(seconds) - others
            telemetry.observe("execution.run", seconds, self._queue, task)
        for (task, state), count in counts.items():
            if count:
                telemetry.emit(
                    "executions.finished", count=count, queue=self._queue, task=task,
                    state=state.value,
                )  # fmt: skip

    def _tell_failed(self, finished: Finished, outcome: Failed) -> None:
        telemetry.emit(
            "execution.failed", queue=self._queue, task=finished.claimed.task,
            execution=str(finished.claimed.id), attempt=finished.claimed.attempt,
            run=finished.claimed.runs,
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

    def _tell_suspended(self, leaving: Sequence[Finished]) -> None:
        for task, count in Counter(each.claimed.task for each in leaving).items():
            telemetry.emit("executions.suspended", count=count, queue=self._queue, task=task)

    def _tell_retrying(self, finished: Finished, outcome: Retrying) -> None:
        error = outcome.error
        telemetry.emit(
            "execution.retrying", queue=self._queue, task=finished.claimed.task,
            execution=str(finished.claimed.id), attempt=finished.claimed.attempt,
            run=finished.claimed.runs,
            delay=round(outcome.delay, 3), counts=outcome.counts,
            error=f"{error.type}: {error.message}" if error else None,
        )  # fmt: skip


def _keeps(
    completed: Seconds | bool | None, failed: Seconds | bool | None, default: Retention
) -> tuple[float | None, float | None]:
    """For how many seconds what has completed is kept, and what ended otherwise."""
    return (
        catalog.retention(completed, default.completed),
        catalog.retention(failed, default.failed),
    )


def _cancelled(finished: Finished) -> Finished:
    return Finished(finished.claimed, Cancelled(None), finished.seconds)


def _flagged(finished: Finished, outcome: Outcome) -> Finished:
    return Finished(finished.claimed, outcome, finished.seconds, flagged=True)


def tell_failure(
    queue: str,
    claimed: Claimed,
    outcome: Outcome,
    error: BaseException,
    context: Context | None = None,
) -> None:
    """Give it to those who listen to logging, if the run has failed."""
    if not isinstance(outcome, (Failed, Retrying)) or outcome.error is None:
        return
    telemetry.failure(
        error, f"{outcome.error.type}: {outcome.error.message}", final=isinstance(outcome, Failed),
        context=context,
        task=claimed.task, queue=queue, execution=str(claimed.id), attempt=claimed.attempt,
        run=claimed.runs, delay=outcome.delay if isinstance(outcome, Retrying) else None,
    )  # fmt: skip


def _refused(queue: str, finished: Finished, error: Exception) -> Finished:
    """The same, failed: Postgres refuses a value of it."""
    failed = Failed(describe(error))
    tell_failure(queue, finished.claimed, failed, error)
    return Finished(finished.claimed, failed, finished.seconds, flagged=finished.flagged)


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
