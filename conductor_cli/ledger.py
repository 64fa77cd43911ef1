"""One run and its journal in the database: what is recorded, and what is recorded now.

Every call may talk to the database and block; ``AsyncContext`` makes them in another thread.
What may be asked for, and which failures stand, is decided in ``journal``. What ``journal`` says
is to stand is written here before the new call goes on.
"""

from __future__ import annotations

import threading
import time
from contextlib import contextmanager, suppress
from datetime import datetime, timedelta
from functools import partial
from typing import TYPE_CHECKING, Any, Final, NoReturn, TypeVar

import msgspec

from conductor_cli import arguments, payloads, stored_error, telemetry, timing
from conductor_cli.arguments import shown
from conductor_cli.attempt import Abort, shielded
from conductor_cli.database import is_transient
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
    Suspension,
    TaskSignal,
)
from conductor_cli.journal import Failure, Journal
from conductor_cli.models import ExecutionError, Flag, Park, Suspended
from conductor_cli.service import backoff
from conductor_cli.store import claims, endings, events
from conductor_cli.store import ledger as rows
from conductor_cli.store.ledger import Child, Children, Entry, New
from conductor_cli.task_transaction import TaskTransaction

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from uuid import UUID

    from conductor_cli.attempt import Attempt
    from conductor_cli.client import Conductor
    from conductor_cli.database import Connection
    from conductor_cli.invoking import Row
    from conductor_cli.journal import Line

T = TypeVar("T")

NAME_LIMIT: Final = 500
LONGEST: Final = 3_155_760_000.0  # seconds: a century
JOURNAL_LIMIT: Final = 128 * 2**20  # characters of results, so that an end stays within its time
PROGRESS_EVERY: Final = 1.0  # seconds


class Ledger:
    """See the module. Shared by the lines of one run."""

    leaves_threads = True

    def __init__(self, attempt: Attempt, conductor: Conductor) -> None:
        self.conductor = conductor
        self.suspending: Suspending | None = None
        self.loan: TaskTransaction | None = None
        self.is_settled = False  # the database knows already that it has completed
        self.is_logged = False
        self.unstorable: PayloadError | None = None  # a result for which the execution ends
        self._untold: str | None = None  # progress
        self._tell_at = 0.0
        self._attempt = attempt
        self._id, self._token = attempt.claimed.id, attempt.claimed.token
        self._is_marked = bool(attempt.claimed.flags & Flag.HAS_LEDGER)
        self.journal: Journal[Entry, New] = Journal()
        self._is_loaded = not self._is_marked
        self._wakes = 0
        self._bytes_recorded = 0
        self._waits: dict[str, int] = {}  # of each registration, how many it has begun in this run
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
        attempt = self._attempt
        if attempt.has_ended:
            raise StepError(
                "The task has ended: a call of its context does nothing any more. A thread, an "
                "asyncio task or a generator that it left behind came here; end it in the task."
            )
        if self.suspending is not None:
            raise self.suspending
        if attempt.stuck is not None:
            raise attempt.stuck
        if self.unstorable is not None:
            raise self.unstorable
        why = attempt.abort_reason
        if why is not None and (why is not Abort.SHUTDOWN or attempt.insisted):
            attempt.signal.raise_if_aborted()

    def ask(self, line: Line, name: str, kind: str, about: str | None = None) -> Entry | None:
        """A named call begins: what is recorded under its name; None when nothing is, and it is
        this code's turn. The failures that stand from now on are written first."""
        _check_name(name)
        self.check()
        with self._lock:
            self._loaded()
            entry = self.journal.begin(line, name, kind, about)
            self._settle(line, name)
        if entry is not None and _is_own_failure(entry):
            error = stored_error.decode(entry.error or "{}")
            self.journal.stand(error, name, kind)
            raise error
        return entry

    def ask_at_once(
        self, line: Line, name: str, kind: str, about: str | None = None
    ) -> tuple[bool, Entry | None]:
        """As ``ask`` where that does not block: what is recorded is known, and nothing is to be
        written first. Whether that was so. An asyncio task cannot be cut off meanwhile."""
        if not self._lock.acquire(blocking=False):
            return False, None
        try:
            if not self._is_loaded or name not in self.journal.recorded:
                return False, None
            if self.journal.rising(line, name):
                return False, None
            return True, self.ask(line, name, kind, about)
        finally:
            self._lock.release()

    def load(self) -> None:
        """Read what earlier runs have recorded, unless that has been done."""
        self._loaded()

    def fail(self, line: Line, new: New, error: BaseException) -> None:
        """A named call has raised ``error``; ``new`` is written if the failure comes to stand."""
        self.journal.fail(Failure(new.name, new.kind, line, error, new))

    @contextmanager
    def failing(self, line: Line, name: str, kind: str, about: str | None) -> Iterator[None]:
        """What is raised inside is a failure of this call, and of no step's function."""
        try:
            yield
        except (StepError, TaskSignal):
            raise
        except Exception as error:
            told = stored_error.encode(error)
            new = New(name, kind, "f", about=about, branch=not line.is_main, error=told)
            self.fail(line, new, error)
            raise

    def swallowed(self) -> StepError | None:
        """What is wrong with a run that has ended otherwise than by its suspension."""
        if self.suspending is None:
            return None
        return StepError(
            f"The task went on after it had been suspended at {self.suspending.outcome.name!r}: "
            "something in it catches BaseException, raises another error in a finally block, or "
            "cuts the call off. Let conductor_cli.errors.Suspension through, or catch Exception "
            "instead; give a wait a timeout of its own with timeout=."
        )

    def at_end(self) -> StepError | None:
        """What is wrong with a run that returned, if anything."""
        if wrong := self.swallowed():
            return wrong
        with self._lock:
            self._loaded()
            try:
                self.journal.end()
            except StepError as error:
                return error
        return None

    # Steps.

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

    def record(self, *new: New) -> datetime | None:
        """Write entries; returns until when the first lasts."""
        with self._lock:
            done = self.work(lambda conn: self._record(conn, new))
            if not done.held:
                self.lose()
            self._is_marked = True
            return done.until

    def transact(self, new: Callable[[Connection], New]) -> None:
        """Write an entry, and all that is done on the connection, at once or not at all."""
        with self.conductor.door:
            loan = TaskTransaction(self.conductor.database, self._attempt)
        try:
            made = new(loan.connection)
            with self._lock, shielded():
                if not self._record(loan.ours(), [made]).held:
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

    def _record(self, conn: Connection, new: Sequence[New]) -> rows.Recorded:
        return rows.record(conn, self._id, self._token, new, mark=not self._is_marked)

    def _settle(self, line: Line, name: str) -> None:
        if rising := self.journal.rising(line, name):
            self.record(*(failure.entry for failure in rising))
            self.journal.settle(rising)

    # The task's own transaction.

    def lend(self) -> Any:
        """The connection that is committed together with the completion."""
        self.check()
        with self._lock, shielded():
            if self.loan is None:
                with self.conductor.door:
                    self.loan = TaskTransaction(self.conductor.database, self._attempt)
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

    # Sleeping and waiting.

    def sleep(self, line: Line, name: str, until: datetime | float) -> None:
        """Leave the thread until a moment, or for so many seconds; return when that is over."""
        entry = self.ask(line, name, "z")
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
        """Leave the thread, with the progress that was told last written."""
        self.flush()
        self.suspending = Suspending(Suspended(name, park, until, self._wakes))
        raise self.suspending

    # Children.

    def invoke(
        self,
        line: Line,
        name: str,
        row: Callable[[], Row],
        about: str,
        *,
        seconds: float | None,
        waits: bool,
    ) -> Entry:
        """A child's entry: how it has ended if the task ``waits`` for it, else as it stands."""
        kind = "c" if waits else "d"
        entry = self.ask(line, name, kind, about)
        if entry is None:
            with self.failing(line, name, kind, about):
                made = row()
                child, branch = Child(name, about, made.id), not line.is_main
                spec = f"[{self._spec(made)}]"
                born = Children(kind, [child], spec, None, seconds, False, branch)
                entry = self._adopt(born)[name]
        return self.ended(entry) if waits else entry

    def invoke_many(
        self,
        line: Line,
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
        group = self.ask(line, name, "g", about)
        with self._lock:
            for each, task in zip(names, abouts, strict=True):
                self.journal.begin_part(each, name, task)
        entries = self._loaded()
        is_open = group is None or group.state == "p"  # what is settled starts nobody again
        lacking = [i for i, each in enumerate(names) if is_open and each not in entries]
        if lacking:
            with self.failing(line, name, "g", about):
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

    def wait(self, line: Line, name: str, id: UUID, *, seconds: float | None) -> Entry:
        """How any execution has ended. Raises ExecutionNotFound."""
        if id == self._id:
            raise StepError(f"Execution {id} cannot wait for itself.")
        entry = self.ask(line, name, "w")
        if entry is None:
            with self.failing(line, name, "w", None):
                entry = self._attend(name, "w", id, seconds=seconds, branch=False)
        elif entry.child_id != id:
            raise StepError(
                f"The name {name!r} stands for a wait for {entry.child_id} in this execution, "
                f"and now for {id}: the code that leads here has changed."
            )
        return self.ended(entry)

    # Events.

    def subscribe(self, line: Line, name: str, event: str, exact: str, tests: str) -> Entry:
        """Register for the next event that fits."""
        entry, branch = self.ask(line, name, "e", event), not line.is_main
        if entry is not None:
            return entry
        with self._lock, self.failing(line, name, "e", event):
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

    def heard(self, line: Line, name: str, seconds: float | None, *, once: bool) -> Any:
        """The payload of the event that was registered for. Raises EventTimedOut.

        Unless it is waited for ``once``, the registration outlives a wait that has timed out, and
        the next wait hears what has come meanwhile. The row counts the waits that timed out.
        """
        self.check()
        with self._lock:
            self._settle(line, name)
            entry = self._loaded()[name]
            ordinal = None if once else self._waits.get(name, 0) + 1
            if ordinal is not None:
                self._waits[name] = ordinal
        if ordinal is not None and ordinal <= entry.failures:
            raise EventTimedOut(entry.about or "")
        if entry.state == "p" and entry.until is None and seconds is not None:
            timed = self.work(
                partial(events.wait, id=self._id, token=self._token, name=name, seconds=seconds)
            )
            if not timed.held:
                self.lose()
            entry = msgspec.structs.replace(entry, until=timed.until)
        entry = self.ended(entry, ordinal)
        if entry.state != "c":
            raise EventTimedOut(entry.about or "")
        return payloads.decode(entry.value or "null")

    # Plumbing.

    def ended(self, entry: Entry, ordinal: int | None = None) -> Entry:
        """The entry once it is told, or its wait of this ordinal given up; until then the thread
        is left."""
        while entry.state == "p" and not (ordinal is not None and entry.failures >= ordinal):
            if not entry.due:
                self.suspend(entry.name, Park.WAITS, entry.until)
            self.work(
                partial(
                    rows.give_up, id=self._id, token=self._token, name=entry.name, ordinal=ordinal
                )
            )
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

    def flush_at_end(self) -> None:
        """Write it, unless the run has no claim any more, or no time."""
        with suppress(Suspension):
            self.flush()

    def work(self, work: Callable[[Connection], T]) -> T:
        """Talk to the database, for as long as that takes and the task need not stop."""
        troubles = 0
        while True:
            try:
                with shielded():
                    return self.conductor.database.retrying(work)
            except Exception as error:
                if not is_transient(error):
                    raise self.conductor.door.told(error) from error
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
        return self.journal.recorded if self._is_loaded else self._reloaded()

    def _reloaded(self) -> dict[str, Entry]:
        with self._lock:
            found = self.work(lambda conn: rows.load(conn, self._id, self._token))
            if found is None:
                self.lose()
            self._wakes, entries = found
            self._bytes_recorded = sum(len(entry.value or "") for entry in entries)
            self.journal.load(entries)
            self._is_loaded = True
            return self.journal.recorded

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
            self._reloaded()  # leaves, if the claim is lost
            raise ExecutionNotFound(id)

    def _spec(self, row: Row) -> str:
        """As ``conductor.enqueue`` takes it, with what makes it a child."""
        return f'{row.full[:-1]},"parent_id":"{self._id}","flags":{int(Flag.AWAITED)}}}'


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
        raise ValueError(f"{what}={shown(value)} is more than a century")
    return number


def moment(value: datetime) -> datetime:
    """A moment, in UTC; raises TypeError, ValueError for what is none."""
    return arguments.as_moment(value, "moment")


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
    try:
        arguments.as_text(name, "name", NAME_LIMIT, least=1)
    except (TypeError, ValueError) as error:
        raise StepError(
            f"{shown(name)} is not a name: a text of 1 to {NAME_LIMIT} characters. ({error}.)"
        ) from None


def _is_own_failure(entry: Entry) -> bool:
    """Whether the call itself has failed, and not what it waited for."""
    return entry.state == "f" and entry.child_id is None and entry.value is None


def _error(entry: Entry) -> ExecutionError:
    return msgspec.json.decode(entry.error or '{"type":"","message":""}', type=ExecutionError)
