"""What one attempt knows of its ledger: the names that are recorded, and those it has asked for.

Every call may talk to the database and block; ``AsyncContext`` makes them in another thread.
Names are asked for in the order of the code. When a new one comes while recorded ones have not
been asked for, the code is not what it was, and nothing is run on that ground.
"""

from __future__ import annotations

import threading
import time
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import TYPE_CHECKING, Any, Final, NoReturn, TypeVar

import msgspec

from conductor_cli import payloads, stored_error, telemetry, timing
from conductor_cli.attempt import Abort, TaskTimeout, shielded
from conductor_cli.database import Loan, is_transient
from conductor_cli.errors import (
    ChildCancelled,
    ChildFailed,
    ChildTimedOut,
    EventTimedOut,
    ExecutionNotFound,
    PayloadError,
    Released,
    StepError,
    Suspending,
    TaskDefinitionError,
    TaskSignal,
)
from conductor_cli.models import ExecutionError, Flag, Park, Suspended
from conductor_cli.results import ResultType
from conductor_cli.service import backoff
from conductor_cli.store import claims, endings, events
from conductor_cli.store import ledger as rows
from conductor_cli.store.ledger import Child, Children, Entry, New

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from uuid import UUID

    from conductor_cli.attempt import Attempt
    from conductor_cli.client import Conductor
    from conductor_cli.database import Connection
    from conductor_cli.invoking import Row
    from conductor_cli.step import Step

T = TypeVar("T")

NAME_LIMIT: Final = 500
LONGEST: Final = 3_155_760_000.0  # seconds: a century
JOURNAL_LIMIT: Final = 128 * 2**20  # characters of results, so that an end stays within its time
PROGRESS_EVERY: Final = 1.0  # seconds
KINDS: Final = {
    "s": "a step", "z": "a sleep", "c": "a child", "d": "a started child", "g": "children",
    "w": "a wait for an execution", "e": "an event",
}  # fmt: skip


class Ledger:
    """See the module. Shared by the threads, or asyncio tasks, of one attempt."""

    def __init__(self, attempt: Attempt, conductor: Conductor) -> None:
        self.conductor = conductor
        self.suspending: Suspending | None = None
        self.loan: Loan | None = None
        self.is_settled = False  # the database knows already that it has completed
        self.is_logged = False
        self.unstorable: PayloadError | None = None  # a result for which the execution ends
        self._untold: str | None = None  # progress
        self._tell_at = 0.0
        self._attempt = attempt
        self._id, self._token = attempt.claimed.id, attempt.claimed.token
        self._is_marked = bool(attempt.claimed.flags & Flag.HAS_LEDGER)
        self._entries: dict[str, Entry] | None = None if self._is_marked else {}
        self._wakes = 0
        self._bytes_recorded = 0
        self._asked: set[str] = set()
        self._unasked: dict[str, str] = {}  # recorded and not asked for yet: name and kind
        self._failed: dict[str, New] = {}  # steps that raised; recorded when the task goes on
        self._lock = threading.RLock()

    @property
    def is_marked(self) -> bool:
        """Whether there are rows elsewhere that hang on the execution's."""
        return self._is_marked or self.is_logged

    @property
    def limit(self) -> int:
        """Bytes of JSON that a result may have."""
        return self.conductor.max_payload

    def check(self) -> None:
        """Leave the task if it should stop; on shutdown only once that is insisted on."""
        if self.suspending is not None:
            raise self.suspending
        why = self._attempt.abort_reason
        if why is not None and (why is not Abort.SHUTDOWN or self._attempt.insisted):
            self._attempt.signal.raise_if_aborted()

    def ask(self, name: str, kind: str, about: str | None = None, *, branch: bool) -> Entry | None:
        """What is recorded under a name; None when nothing is, and it is this code's turn."""
        _check_name(name)
        self.check()
        with self._lock:
            entries = self._loaded()
            if name in self._asked:
                raise StepError(
                    f"The name {name!r} is used twice in one attempt. Give each step a name of "
                    "its own; in a loop let it carry the index, as in f'send-{i}'."
                )
            entry = entries.get(name)
            if entry is not None:
                self._refuse_another(entry, kind, about)
            elif self._unasked and not branch:
                self._refuse_changed(f"{KINDS[kind]} {name!r} is new")
            self._asked.add(name)
            self._unasked.pop(name, None)
            return entry

    def at_end(self) -> StepError | None:
        """What is wrong with an attempt that returned, if anything."""
        self.flush()
        if self.suspending is not None:
            return StepError(
                f"The task went on after it had been suspended at "
                f"{self.suspending.outcome.name!r}: something in it catches BaseException. Let "
                "conductor_cli.errors.Suspension through, or catch Exception instead."
            )
        with self._lock:
            self._loaded()
            if self._unasked:
                self._refuse_changed("the task has returned")
        return None

    # Steps.

    def step(self, step: Step, fn: Callable[..., Any], *, branch: bool) -> Run:
        """Begin a step, or find what it has returned."""
        kind = _result_type(step, fn)
        return Run(self, step, kind, self.ask(step.name, "s", branch=branch), branch=branch)

    def make_room(self, name: str, size: int) -> None:
        """Count a result before it is recorded. Raises PayloadError past the journal's limit."""
        with self._lock:
            self._loaded()
            if self._bytes_recorded + size > JOURNAL_LIMIT:
                raise PayloadError(
                    f"The result of step {name!r} is {size:,} characters of JSON, and this "
                    f"execution has recorded {self._bytes_recorded:,} before it; the limit for one "
                    f"execution is {JOURNAL_LIMIT:,}. Store large results elsewhere and return "
                    "where they are, or share the work among children."
                )
            self._bytes_recorded += size

    def record(self, new: New) -> datetime | None:
        """Write an entry; returns until when it lasts."""
        with self._lock:
            done = self.work(lambda conn: self._record(conn, new))
            if not done.held:
                self.lose()
            self._is_marked = True
            self._failed.clear()
            return done.until

    def transact(self, new: Callable[[Connection], New]) -> None:
        """Write an entry, and all that is done on the connection, at once or not at all."""
        loan = Loan(self.conductor.database)
        try:
            made = new(loan.connection)
            with self._lock, shielded():
                if not self._record(loan.ours(), made).held:
                    self.lose()
        except BaseException:
            with shielded():
                loan.undo()
            raise
        try:
            with shielded():
                loan.commit()
        except Exception as error:
            if not is_transient(error) or self._reloaded()[made.name].state != "c":
                raise
        self._is_marked = True
        self._failed.clear()

    def _record(self, conn: Connection, new: New) -> rows.Recorded:
        survived = [each for name, each in self._failed.items() if name != new.name]
        return rows.record(conn, self._id, self._token, [new, *survived], mark=not self._is_marked)

    # The task's own transaction.

    def lend(self) -> Any:
        """The connection that is committed together with the completion."""
        self.check()
        with self._lock, shielded():
            if self.loan is None:
                self.loan = Loan(self.conductor.database)
            return self.loan.connection

    def give_back(self) -> None:
        """Undo what the task has done in its own transaction, if it has one."""
        loan, self.loan = self.loan, None
        if loan is not None:
            loan.undo()

    def complete(self, result: str) -> bool:
        """Commit the task's own transaction together with its completion.

        False: neither has been done, since the claim is lost or a cancel came first. Raises
        what the database says against it; then neither has been done.
        """
        loan, self.loan = self.loan, None
        assert loan is not None
        try:
            done = endings.complete(loan.ours(), self._id, self._token, result)
        except BaseException:
            loan.undo()
            raise
        if not done:
            loan.undo()
            return False
        try:
            loan.commit()
        except Exception as error:
            if not is_transient(error) or not self._is_ended():
                raise
        self.is_settled = True
        return True

    def _is_ended(self) -> bool:
        verdict = self.work(lambda conn: claims.inspect(conn, [self._id], [self._token]))
        return verdict[self._id] == "recorded"

    def survive(self, new: New) -> None:
        """A step has failed. If the task goes on to other things, that is part of its way."""
        with self._lock:
            self._failed[new.name] = new

    # Sleeping and waiting.

    def sleep(self, name: str, until: datetime | float) -> None:
        """Leave the thread until a moment, or for so many seconds; return when that is over."""
        entry = self.ask(name, "z", branch=False)
        if entry is None:
            new = (
                New(name, "z", "p", until=until)
                if isinstance(until, datetime)
                else New(name, "z", "p", seconds=until)
            )
            self.suspend(name, Park.SLEEPS, self.record(new))
        elif not entry.due:
            self.suspend(name, Park.SLEEPS, entry.until)

    def suspend(self, name: str, park: Park, until: datetime | None) -> NoReturn:
        """Leave the thread."""
        self.suspending = Suspending(Suspended(name, park, until, self._wakes))
        raise self.suspending

    # Children.

    def invoke(
        self,
        name: str,
        row: Callable[[], Row],
        about: str,
        *,
        seconds: float | None,
        waits: bool,
        branch: bool,
    ) -> Entry:
        """A child's entry: how it has ended if the task ``waits`` for it, else as it stands."""
        kind = "c" if waits else "d"
        entry = self.ask(name, kind, about, branch=branch)
        if entry is None:
            made = row()
            child = Child(name, about, made.id)
            born = Children(kind, [child], f"[{self._spec(made)}]", None, seconds, False, branch)
            entry = self._adopt(born)[name]
        return self.ended(entry) if waits else entry

    def invoke_many(
        self,
        name: str,
        made: Callable[[], Sequence[Row]],
        abouts: Sequence[str],
        *,
        seconds: float | None,
        tolerant: bool,
    ) -> list[Entry]:
        """The entries of children that run at the same time, in order, once all have ended; or
        the one that failed first, unless ``tolerant``."""
        names = [f"{name}[{index}]" for index in range(len(abouts))]
        about = f"{len(abouts)} {abouts[0]}"
        group = self.ask(name, "g", about, branch=False)
        for each, task in zip(names, abouts, strict=True):
            self._claim_part(each, name, task)
        entries = self._loaded()
        is_open = group is None or group.state == "p"  # what is settled starts nobody again
        lacking = [i for i, each in enumerate(names) if is_open and each not in entries]
        if lacking:
            rows_made = made()
            born = Children(
                "c", [Child(names[i], abouts[i], rows_made[i].id) for i in lacking],
                f"[{','.join(self._spec(rows_made[i]) for i in lacking)}]",
                name, seconds, tolerant, False,
            )  # fmt: skip
            entries = self._adopt(born, about=about)
        group = self.ended(entries[name])
        entries = self._loaded()
        if group.state == "t":
            raise ChildTimedOut(None, about)
        if group.state == "f":
            return [entries[msgspec.json.decode(group.value or "null", type=str)]]
        return [entries[each] for each in names]

    def wait(self, name: str, id: UUID, *, seconds: float | None) -> Entry:
        """How any execution has ended. Raises ExecutionNotFound."""
        if id == self._id:
            raise StepError(f"Execution {id} cannot wait for itself.")
        entry = self.ask(name, "w", branch=False)
        if entry is None:
            entry = self._attend(name, "w", id, seconds=seconds, branch=False)
        elif entry.child_id != id:
            raise StepError(
                f"The name {name!r} stands for a wait for {entry.child_id} in this execution, "
                f"and now for {id}: the code that leads here has changed."
            )
        return self.ended(entry)

    # Events.

    def subscribe(self, name: str, event: str, exact: str, tests: str, *, branch: bool) -> Entry:
        """Register for the next event that fits."""
        entry = self.ask(name, "e", event, branch=branch)
        if entry is not None:
            return entry
        with self._lock:
            self._record_survived()
            held = self.work(
                lambda conn: events.subscribe(
                    conn, self._id, self._token, name=name, event=event, exact=exact,
                    tests=tests, branch=branch, mark=not self._is_marked,
                )
            )  # fmt: skip
            if not held:
                self.lose()
            self._is_marked = True
            entries = self._loaded()
            entries[name] = Entry(
                name, "e", "p", None, False, None, event, None, None, 0, branch, None, None
            )
            return entries[name]

    def heard(self, name: str, seconds: float | None) -> Any:
        """The payload of the event that was registered for. Raises EventTimedOut."""
        self.check()
        entry = self._loaded()[name]
        if entry.state == "p" and entry.until is None and seconds is not None:
            timed = self.work(
                partial(events.wait, id=self._id, token=self._token, name=name, seconds=seconds)
            )
            if not timed.held:
                self.lose()
            entry = msgspec.structs.replace(entry, until=timed.until)
        entry = self.ended(entry)
        if entry.state == "t":
            raise EventTimedOut(entry.about or "")
        return payloads.decode(entry.value or "null")

    # Plumbing.

    def ended(self, entry: Entry) -> Entry:
        """The entry once it is told; until then the thread is left."""
        while entry.state == "p":
            if not entry.due:
                self.suspend(entry.name, Park.WAITS, entry.until)
            self.work(partial(rows.give_up, id=self._id, token=self._token, name=entry.name))
            entry = self._reloaded()[entry.name]
        return entry

    def progress(self, text: str) -> None:
        """How far the task has come, as JSON text; written at most once a second, and what
        was told last with ``flush``."""
        self._untold = text
        if time.monotonic() >= self._tell_at:
            self.flush()

    def flush(self) -> None:
        """Write the progress that was told last."""
        text, self._untold = self._untold, None
        if text is None:
            return
        self._tell_at = time.monotonic() + PROGRESS_EVERY
        if not self.work(lambda conn: rows.progress(conn, self._id, self._token, text)):
            self.lose()
        self.is_logged = True

    def work(self, work: Callable[[Connection], T]) -> T:
        """Talk to the database, for as long as that takes and the task need not stop."""
        troubles = 0
        while True:
            try:
                with shielded():
                    return self.conductor.database.retrying(work)
            except Exception as error:
                if not is_transient(error):
                    raise
                troubles += 1
                telemetry.emit("database.lost", component="ledger", error=str(error).strip())
            self._attempt.signal.wait(backoff(troubles))
            if self._attempt.abort_reason is not None:
                self._attempt.signal.raise_if_aborted()

    def lose(self) -> NoReturn:
        """The claim is somebody else's: nothing that this attempt does will be recorded."""
        self._attempt.signal.set(Abort.LOST)
        raise Released(Abort.LOST.value)

    @property
    def claim(self) -> tuple[UUID, int]:
        """Id and token of the claim."""
        return self._id, self._token

    def _loaded(self) -> dict[str, Entry]:
        return self._reloaded() if self._entries is None else self._entries

    def _reloaded(self) -> dict[str, Entry]:
        with self._lock:
            found = self.work(lambda conn: rows.load(conn, self._id, self._token))
            if found is None:
                self.lose()
            self._wakes, entries = found
            self._entries = {entry.name: entry for entry in entries}
            self._bytes_recorded = sum(len(entry.value or "") for entry in entries)
            self._unasked = {
                entry.name: entry.kind
                for entry in entries
                if entry.name not in self._asked and entry.part_of is None and not entry.branch
            }
            return self._entries

    def _adopt(self, born: Children, about: str | None = None) -> dict[str, Entry]:
        again = False

        def adopt(conn: Connection) -> list[rows.Adopted]:
            nonlocal again
            second, again = again, True
            return rows.adopt(
                conn, self._id, self._token, born, mark=not self._is_marked, again=second,
                about=about,
            )  # fmt: skip

        with self._lock:
            self._record_survived()
            done = self.work(adopt)
            if not done[0].held:
                self.lose()
            self._is_marked = True
            met = [(each.name, each.met) for each in done if each.name and each.met]
            for name, child in met:
                self._attend(name, born.kind, child, seconds=born.seconds, branch=born.branch)
            entries = self._loaded()
            if met or born.group in entries:
                return self._reloaded()
            entries.update(_fresh(born, done[0].until, about))
            return entries

    def _attend(
        self, name: str, kind: str, id: UUID, *, seconds: float | None, branch: bool
    ) -> Entry:
        with self._lock:
            self._record_survived()
            for _ in range(2):  # what ends at this moment is only found by the second look
                entry = self.work(
                    lambda conn: rows.attend(
                        conn, self._id, self._token, name=name, kind=kind, child=id,
                        seconds=seconds, branch=branch, mark=not self._is_marked,
                    )
                )  # fmt: skip
                if entry is not None:
                    self._is_marked = True
                    return entry
            self._entries = None
            self._loaded()  # leaves, if the claim is lost
            raise ExecutionNotFound(id)

    def _record_survived(self) -> None:
        if self._failed:
            self.record(self._failed.pop(next(iter(self._failed))))

    def _claim_part(self, name: str, group: str, about: str) -> None:
        entry = self._loaded().get(name)
        if name in self._asked or (entry is not None and entry.part_of != group):
            raise StepError(
                f"The name {name!r} is used by a step, and needed for a child of {group!r}."
            )
        if entry is not None:
            self._refuse_another(entry, "c", about)
        self._asked.add(name)

    def _spec(self, row: Row) -> str:
        """As ``conductor.enqueue`` takes it, with what makes it a child."""
        return f'{row.full[:-1]},"parent_id":"{self._id}","flags":{int(Flag.AWAITED)}}}'

    def _refuse_another(self, entry: Entry, kind: str, about: str | None) -> None:
        was, now = KINDS[entry.kind], KINDS[kind]
        if entry.kind == kind and about in (None, entry.about):
            return
        if entry.about and about and entry.kind == kind:
            was, now = f"{was} ({entry.about})", f"{now} ({about})"
        raise StepError(
            f"The name {entry.name!r} stands for {was} in this execution, and now for {now}: "
            "the code has changed since an earlier attempt. Give the new one a new name, or run "
            "the execution again from its beginning (retry with restart)."
        )

    def _refuse_changed(self, what: str) -> NoReturn:
        recorded = ", ".join(f"{KINDS[k]} {n!r}" for n, k in list(self._unasked.items())[:3])
        raise StepError(
            f"An earlier attempt recorded {recorded}, for which this one has not asked, but "
            f"{what}: the code has changed since, or depends on something besides what is "
            "recorded. Let what has been begun end with the old code, or run it again from its "
            "beginning (retry with restart)."
        )


class Unqueued(Ledger):
    """The ledger of a task that runs without a queue (``conductor run``): nothing outlives it, and
    there is nobody to wait for."""

    def __init__(self, attempt: Attempt, conductor: Conductor, limit: int) -> None:
        super().__init__(attempt, conductor)
        self._bytes = limit

    @property
    def limit(self) -> int:
        return self._bytes

    def record(self, new: New) -> datetime | None:
        self._failed.clear()
        return new.until or datetime.now(UTC) + timedelta(seconds=new.seconds or 0)

    def suspend(self, name: str, _park: Park, _until: datetime | None) -> NoReturn:
        raise _needs_queue(f"{name!r} waits for others")

    def sleep(self, name: str, until: datetime | float) -> None:
        self.ask(name, "z", branch=False)
        left = (until - datetime.now(UTC)).total_seconds() if isinstance(until, datetime) else until
        if left > 0 and self._attempt.signal.wait(left):
            self._attempt.signal.raise_if_aborted()

    def flush(self) -> None:
        """Nobody looks at the progress."""

    def transact(self, _new: Callable[[Connection], New]) -> None:
        raise _needs_queue("It writes in a transaction of the runner's")

    def lend(self) -> Any:
        raise _needs_queue("It writes in a transaction of the runner's")

    def work(self, _work: Callable[[Connection], T]) -> T:
        raise _needs_queue("It asks for what only a server can do")


def _needs_queue(what: str) -> StepError:
    return StepError(f"{what}: that needs a queue. Use `conductor invoke --wait` with a server.")


class Run:
    """One run of a step: ``is_recorded`` with its ``value``, or to be made and then told."""

    def __init__(
        self,
        ledger: Ledger,
        step: Step,
        kind: ResultType,
        entry: Entry | None,
        *,
        branch: bool,
    ) -> None:
        self.is_recorded = entry is not None and entry.state == "c"
        self.value: Any = None
        self._ledger, self._step, self._kind, self._branch = ledger, step, kind, branch
        self._failures = 0 if entry is None else entry.failures
        if entry is not None and entry.state == "f":
            raise stored_error.decode(entry.error or "{}")
        if entry is not None and entry.state == "c":
            self.value = self._decoded(entry.value or "null")

    def done(self, value: object) -> None:
        """Record what it returned; ``value`` is what a later attempt will be given."""
        self._ledger.record(self._new(value))
        self.is_recorded = True

    def transact(self, fn: Callable[..., Any], args: Sequence[Any], kwargs: Any) -> None:
        """Call ``fn`` with a connection whose writes are committed together with the record."""

        def new(conn: Connection) -> New:
            return self._new(fn(conn, *args, **kwargs))

        self._ledger.transact(new)
        self.is_recorded = True

    def failed(self, error: Exception) -> float:
        """Raise ``error`` if there is no other try, or leave the thread until that is due;
        returns the seconds to wait in place where the thread cannot be left."""
        if isinstance(error, (TaskSignal, TaskTimeout)):
            raise error
        name, told, before = self._step.name, stored_error.encode(error), self._failures
        self._failures += 1
        delay = None
        if self._failures < self._step.max_attempts:
            delay = timing.retry_delay(self._step.retry, self._failures, error)
        if delay is None:
            if before:  # the task's next attempt begins to count anew
                self._ledger.record(New(name, "s", "p", branch=self._branch, error=told))
            self._ledger.survive(New(name, "s", "f", branch=self._branch, error=told))
            raise error
        delay = min(max(0.0, delay), LONGEST)
        until = self._ledger.record(
            New(
                name, "s", "p", seconds=delay, failures=self._failures, branch=self._branch,
                error=told,
            )
        )  # fmt: skip
        if not self._branch and delay > 0 and not isinstance(self._ledger, Unqueued):
            self._ledger.suspend(name, Park.RETRIES, until)
        return delay

    def _new(self, value: object) -> New:
        """What is recorded of a value. One that cannot be stored ends the execution: to run the
        step again would repeat its effect, and change nothing."""
        name = self._step.name
        try:
            text, self.value = self._kind.encode(
                value, f"The result of step {name!r}", self._ledger.limit
            )
            self._ledger.make_room(name, len(text))
        except PayloadError as error:
            self._ledger.unstorable = error
            raise
        return New(name, "s", "c", value=text, branch=self._branch)

    def _decoded(self, text: str) -> Any:
        try:
            return self._kind.decode(text)
        except PayloadError as error:
            raise StepError(f"Step {self._step.name!r}: {error}") from error


def result(entry: Entry, decode: Callable[[str], Any]) -> Any:
    """What a child has returned; raises ChildFailed, ChildCancelled, ChildTimedOut."""
    task = entry.about or ""
    match entry.state:
        case "c":
            return decode(entry.value or "null")
        case "f":
            raise ChildFailed(entry.child_id, task, _error(entry))
        case "k":
            raise ChildCancelled(entry.child_id, task, _error(entry).message or None)
        case _:
            raise ChildTimedOut(entry.child_id, task)


def seconds(value: float | timedelta, what: str) -> float:
    """A duration; raises ValueError when it is none, or more than a century."""
    number = timing.seconds(value, what)
    if not number <= LONGEST:
        raise ValueError(f"{what}={value!r} is more than a century")
    return number


def moment(value: datetime) -> datetime:
    """A moment; raises ValueError when it has no time zone."""
    if not isinstance(value, datetime) or value.tzinfo is None:
        raise ValueError(f"{value!r} has no time zone; pass an aware datetime")
    return value.astimezone(UTC)


def _fresh(born: Children, until: datetime | None, about: str | None) -> dict[str, Entry]:
    """The entries of children that have just been created."""

    def entry(name: str, kind: str, about: str | None, id: UUID | None, group: str | None) -> Entry:
        ends = None if group else until
        return Entry(
            name, kind, "p", ends, False, id, about, group, None, 0, born.branch, None, None
        )

    made = [entry(c.name, born.kind, c.about, c.id, born.group) for c in born.children]
    if born.group is not None:
        made.append(entry(born.group, "g", about, None, None))
    return {each.name: each for each in made}


def _check_name(name: object) -> None:
    if not isinstance(name, str) or not 0 < len(name) <= NAME_LIMIT or "\0" in name:
        raise StepError(f"{name!r} is not a name: a text of 1 to {NAME_LIMIT} characters.")


def _result_type(step: Step, fn: Callable[..., Any]) -> ResultType:
    """How the result of a step's function is kept: as ``returns`` or its return annotation says."""
    try:
        if step.returns is not None:
            return ResultType(step.returns, f"Step {step.name!r}")
        known = getattr(fn, "result_type", None)
        return known if isinstance(known, ResultType) else _of_function(fn)
    except TaskDefinitionError as error:
        raise StepError(f"Step {step.name!r}: {error}") from error


def _of_function(fn: Callable[..., Any]) -> ResultType:
    inner = payloads.underlying(fn)
    if isinstance(inner, type) or "return" in getattr(inner, "__annotations__", {}):
        return ResultType.of(inner if isinstance(inner, type) else fn)
    return _UNTYPED


_UNTYPED: Final = ResultType(Any, "")


def _error(entry: Entry) -> ExecutionError:
    return msgspec.json.decode(entry.error or '{"type":"","message":""}', type=ExecutionError)
