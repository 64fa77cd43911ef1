"""Who waits for the end of which execution, and the one thread that finds out.

It marks the rows that are waited for, so that whoever ends them tells, and listens. A
notification is a hint: it looks by itself, too, rarely while it is proven to hear, often where
it cannot (behind a pooler, without the privilege). While nobody waits there is neither a mark
nor, after a while, a thread or a connection.
"""

from __future__ import annotations

import os
import threading
import time
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Final, cast
from uuid import UUID, uuid4

import msgspec

from conductor_cli import arguments, context, errors, registry, telemetry
from conductor_cli.database import Listening, is_forbidden, is_transient
from conductor_cli.models import State
from conductor_cli.service import Deadline, Service, backoff
from conductor_cli.store import executions

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from conductor_cli.database import Database
    from conductor_cli.door import Door
    from conductor_cli.models import Execution
    from conductor_cli.registry import Task

CHANNEL: Final = "conductor_ended"
FIRST_LOOK: Final = 0.02  # seconds between looks where nothing is heard, growing
LOCKED_LOOK: Final = 0.005  # when somebody has locked the row: to end it, as likely as not
LAST_LOOK: Final = 2.0
LAST_WATCH: Final = 0.5  # between looks of who wants to see each change
SAFETY_LOOK: Final = 5.0  # while it hears
LINGER: Final = 30.0  # seconds for which a thread that nobody needs stays
PROOF_WITHIN: Final = 1.0
LISTEN_AGAIN: Final = 30.0
OUTAGE: Final = 30.0  # seconds without the database that those who wait do not notice


class Ends:
    """Tells of ends, to any number of threads and event loops. One for each client."""

    def __init__(self, database: Database, door: Door) -> None:
        self._database, self._door = database, door
        self._lock = threading.Lock()
        self._lookout: Lookout | None = None
        self._pid = 0

    @contextmanager
    def expected(self, id: UUID) -> Iterator[Expected]:
        """The end of an execution, to be waited for inside."""
        expected = Expected(self, id)
        try:
            yield expected
        finally:
            expected.forget()

    def expect(self, id: UUID) -> Future[None]:
        """A future that resolves when an execution has ended, or is not there.

        It raises DatabaseUnavailable when Postgres has not answered for half a minute. Whoever
        does not need it any more has to ``forget`` it.
        """
        future: Future[None] = Future()
        with self._lock:
            if self._pid != os.getpid():  # a fork has no threads
                self._lookout, self._pid = None, os.getpid()
            while self._lookout is None or not self._lookout.add(id, future):
                self._lookout = Lookout(self._database, self._door)
                self._lookout.start()
        return future

    def forget(self, id: UUID, future: Future[None]) -> None:
        """Nobody waits for this future any more."""
        if self._lookout is not None:
            self._lookout.remove(id, future)

    def close(self) -> None:
        """Let go of thread and connection, as soon as nobody waits."""
        with self._lock:
            lookout = self._lookout
        if lookout is not None and self._pid == os.getpid() and lookout.end():
            lookout.join(Deadline(PROOF_WITHIN))


class Expected:
    """The end of one execution, for one thread."""

    def __init__(self, ends: Ends, id: UUID) -> None:
        self._ends, self._id = ends, id
        self._future: Future[None] | None = None

    def wait(self, seconds: float | None) -> bool:
        """Wait until it has ended, or is not there; False when the time was up first.

        Waits for its next end, where it has run again since the last call.
        """
        if self._future is None or self._future.done():
            self._future = self._ends.expect(self._id)
        try:
            self._future.result(seconds)
        except TimeoutError:
            return False
        return True

    def forget(self) -> None:
        if self._future is not None:
            self._ends.forget(self._id, self._future)


class Pauses:
    """Seconds between two looks at an execution that is watched: longer and longer."""

    def __init__(self) -> None:
        self._seconds = FIRST_LOOK

    def next(self) -> float:
        seconds, self._seconds = self._seconds, min(LAST_WATCH, self._seconds * 1.3)
        return seconds

    def restart(self) -> None:
        self._seconds = FIRST_LOOK


def refuse_in_task(what: str) -> None:
    """Raise ConductorError where a task runs."""
    if context.current.get() is not None:
        raise errors.ConductorError(
            f"{what}() inside a task would hold its thread while the other may need it."
        )


def checked(
    id: object, task: object, timeout: float | timedelta | None
) -> tuple[UUID, Task[..., Any] | None, float | None]:
    """What ``wait`` is given, ready to be used; raises TypeError, ValueError."""
    asked = arguments.as_id(id)
    registry.check_duration("timeout", timeout)
    if isinstance(task, registry.ConfiguredTask):
        task = task.task
    if isinstance(task, int | float | timedelta):
        raise TypeError(
            f"wait() was given {arguments.shown(task)} in the place of a task; seconds go by "
            f"keyword: timeout={arguments.shown(task)}"
        )
    if task is not None and not isinstance(task, registry.Task):
        raise arguments.no_task(task)
    return asked, task, registry.as_seconds(timeout)


def late(found: Execution, seconds: float | None) -> TimeoutError:
    """What a wait raises whose time is up."""
    return TimeoutError(f"Execution {found.id} is {found.state} after {seconds:g} s.")


def result(ended: Execution, task: Task[..., Any] | None) -> Any:
    """The result of one that has completed; raises what wait() raises for the others."""
    if ended.state is State.CANCELLED:
        raise errors.ExecutionCancelled(ended.id, ended.error.message if ended.error else None)
    if ended.state is State.FAILED:
        raise errors.ExecutionFailed(ended.id, cast("Any", ended.error))
    if task is None:
        return ended.result
    return task.result_type.decode(msgspec.json.encode(ended.result).decode())


@dataclass(slots=True)
class Awaited:
    """An execution that somebody waits for, and when to look at it next."""

    look_at: float
    pause: float = FIRST_LOOK
    marked: bool = False
    futures: list[Future[None]] = field(default_factory=list)


class Lookout(Service):
    """The thread. Ends by itself when nobody has waited for a while."""

    def __init__(self, database: Database, door: Door) -> None:
        super().__init__("waiting", on_death=lambda _, error: self._fail(error))
        self._database, self._door = database, door
        self._lock = threading.Lock()
        self._awake = threading.Event()
        self._awaited: dict[UUID, Awaited] = {}
        self._linger = LINGER
        self._idle_since = time.monotonic()
        self._is_over = False
        self._ping = f"conductor_{uuid4().hex}"
        self._listening: Listening | None = None
        self._listen_at = self._prove_by = 0.0
        self._is_proven = False
        self._troubles, self._trouble_since = 0, 0.0

    def add(self, id: UUID, future: Future[None]) -> bool:
        """Whether it will look out for this one, and has not ended itself."""
        with self._lock:
            if self._is_over:
                return False
            awaited = self._awaited.setdefault(id, Awaited(time.monotonic()))
            awaited.futures.append(future)
        self._wake()
        return True

    def remove(self, id: UUID, future: Future[None]) -> None:
        with self._lock:
            awaited = self._awaited.get(id)
            if awaited is None or future not in awaited.futures:
                return
            awaited.futures.remove(future)
            if not awaited.futures:
                del self._awaited[id]
                self._idle_since = time.monotonic()

    def end(self) -> bool:
        """End as soon as nobody waits; whether nobody does."""
        with self._lock:
            self._linger = 0.0
            free = not self._awaited
        self._wake()
        return free

    def run(self) -> None:
        while (ids := self._due()) is not None:
            if ids:
                self._look(ids)
            self._hear(self._pause())

    def teardown(self) -> None:
        self._stop_listening(again_in=0.0)

    def _wake(self) -> None:
        self._awake.set()
        if (listening := self._listening) is not None:
            listening.interrupt()

    def _due(self) -> list[UUID] | None:
        """What is to be looked at now; None when it is over."""
        with self._lock:
            now = time.monotonic()
            if not self._awaited and now - self._idle_since >= self._linger:
                self._is_over = True
                return None
            return [each for each, awaited in self._awaited.items() if awaited.look_at <= now]

    def _pause(self) -> float:
        with self._lock:
            moments = [awaited.look_at for awaited in self._awaited.values()]
            until = min(moments, default=self._idle_since + self._linger)
            return max(0.0, until - time.monotonic())

    def _look(self, ids: Sequence[UUID]) -> None:
        try:
            left = self._left(ids)
        except Exception as error:
            if is_forbidden(error) and self._listening is not None:
                self._stop_listening(again_in=LISTEN_AGAIN)
            elif is_transient(error):
                self._trouble(error)
            else:
                raise
            return
        if self._troubles:
            self._troubles = 0
            telemetry.emit("database.back", component=self.name)
        for each in ids:
            if each in left:
                self._look_again(each, marked=left[each])
            else:
                self._resolve(each)

    def _left(self, ids: Sequence[UUID]) -> dict[UUID, bool]:
        """Those that have not ended, and whether their end will be told."""
        if not self._listens():
            left = self._database.retrying(lambda conn: executions.not_ended(conn, ids))
            return dict.fromkeys(left, False)
        ping = None if self._is_proven else self._ping
        return self._database.retrying(lambda conn: executions.mark(conn, ids, ping=ping))

    def _look_again(self, id: UUID, *, marked: bool) -> None:
        with self._lock:
            if (awaited := self._awaited.get(id)) is None:
                return
            awaited.marked = marked
            pause = awaited.pause
            if marked and self._is_proven:
                pause = SAFETY_LOOK
            elif self._is_proven and pause == FIRST_LOOK:
                pause, awaited.pause = LOCKED_LOOK, pause * 1.5
            else:
                awaited.pause = min(LAST_LOOK, pause * 1.5)
            awaited.look_at = time.monotonic() + pause

    def _resolve(self, id: UUID) -> None:
        for future in self._taken(id):
            if future.set_running_or_notify_cancel():
                future.set_result(None)

    def _fail(self, error: BaseException) -> None:
        with self._lock:
            ids = list(self._awaited)
            self._is_over = self._is_over or not is_transient(error)
        told = self._door.told(error)
        for each in ids:
            for future in self._taken(each):
                if future.set_running_or_notify_cancel():
                    future.set_exception(told)

    def _taken(self, id: UUID) -> Sequence[Future[None]]:
        with self._lock:
            awaited = self._awaited.pop(id, None)
            self._idle_since = time.monotonic()
        return [] if awaited is None else awaited.futures

    def _trouble(self, error: Exception) -> None:
        now = time.monotonic()
        if not self._troubles:
            self._trouble_since = now
        self._troubles += 1
        telemetry.emit("database.lost", component=self.name, error=str(error).strip())
        if now - self._trouble_since > OUTAGE:
            self._fail(error)
            return
        with self._lock:
            for awaited in self._awaited.values():
                awaited.look_at = now + backoff(self._troubles)

    # Listening

    def _listens(self) -> bool:
        if self._database.is_behind_pooler:
            return False
        if self._listening is None and time.monotonic() >= self._listen_at:
            try:
                self._listening = Listening(self._database, [CHANNEL, self._ping], self.name)
                self._prove_by = time.monotonic() + PROOF_WITHIN
            except Exception as error:
                if not is_transient(error):
                    raise
                self._listen_at = time.monotonic() + SAFETY_LOOK
        return self._listening is not None

    def _hear(self, seconds: float) -> None:
        if self._listening is None:
            self._awake.wait(seconds)
            self._awake.clear()
            return
        try:
            heard = self._listening.receive(seconds)
        except Exception as error:
            if not is_transient(error):
                raise
            self._stop_listening(again_in=FIRST_LOOK)
            return
        for payload in heard:
            if payload == "ping":
                self._prove()
            else:
                with suppress(ValueError):  # anybody may notify
                    self._resolve(UUID(payload))
        if not self._is_proven and time.monotonic() > self._prove_by:
            self._stop_listening(again_in=LISTEN_AGAIN)

    def _prove(self) -> None:
        self._is_proven = True
        with self._lock:
            for awaited in self._awaited.values():
                if awaited.marked:
                    awaited.look_at = time.monotonic() + SAFETY_LOOK

    def _stop_listening(self, *, again_in: float) -> None:
        """Look for oneself from now on, and at once: what was told meanwhile is lost."""
        listening, self._listening = self._listening, None
        self._is_proven = False
        self._listen_at = time.monotonic() + again_in
        if listening is not None:
            listening.close()
        with self._lock:
            for awaited in self._awaited.values():
                awaited.look_at, awaited.pause = time.monotonic(), FIRST_LOOK
