"""The life of a server process, from its start to its exit code."""

from __future__ import annotations

import logging
import os
import threading
import time
from concurrent.futures import Future
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Final, Protocol, TypeVar

from conductor_cli import database, errors, interrupts, orchestrator, telemetry, threads
from conductor_cli.cli import process
from conductor_cli.cli.failures import CUT_SHORT
from conductor_cli.service import Deadline, backoff

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from conductor_cli.cli.options import Given
    from conductor_cli.client import Conductor
    from conductor_cli.config import Config
    from conductor_cli.orchestrator import Orchestrator
    from conductor_cli.service import Service

T = TypeVar("T")

SPARE: Final = 0.5  # seconds of shutdown_timeout kept for the last words
PATIENCE_WITH_FACE: Final = 1.0
SECOND_SIGNAL_AFTER: Final = interrupts.SECOND_SIGNAL_AFTER

log: Final = logging.getLogger("conductor.server")


class Served(Protocol):
    """What a daemon runs: an orchestrator, or a supervisor of processes with one each."""

    conductor: Conductor
    stopped: Future[None]

    @property
    def problems(self) -> Sequence[str]: ...
    def start(self, *, signals: bool) -> None: ...
    def stop(self) -> None: ...
    def hurry(self) -> None: ...


class Face(Protocol):
    """Where a daemon shows itself: on the web, or to the process that has started it."""

    def start(self) -> None: ...
    def announce(self) -> None: ...
    def stop(self) -> None: ...
    def join(self, deadline: Deadline, /) -> bool: ...


class Daemon:
    """Runs an orchestrator and shows how it is, and knows when to stop.

    ``hurry_start`` lets a start that may take long end early, for a stop waits until it is over.
    ``is_child``: it has a parent, which counts the signals and has been let into the database
    before. Whatever happens (a signal, the end of the start, a death) leaves a note; the main
    thread does nothing but act on the notes, one after the other. What takes time has a thread
    of its own.
    """

    def __init__(
        self,
        served: Served,
        config: Config,
        face: Callable[[Daemon], Face],
        *,
        hurry_start: Callable[[], object] = lambda: None,
        is_child: bool = False,
    ) -> None:
        self._served = served
        self._config = config
        self._hurry_start, self._is_child = hurry_start, is_child
        self._notes = process.Notes()
        self._code: int | None = None
        self._death: Died | None = None
        self._why_not: str | None = "the server is starting"
        self._is_up = False
        self._is_lent = False  # the main thread, to [tasks] setup
        self._asked_at: float | None = None
        self._deadline = Deadline(None)
        # Whoever takes it first decides: the main thread to leave, or the starter to go where
        # leaving takes a proper stop.
        self._turn = threading.Lock()
        self._face = face(self)

    def run(self) -> int:
        """Serve until told to stop; returns the exit code. Raises what ended it otherwise.

        Unless it has stopped properly, some of its threads may still run then.
        """
        process.hear(self.ask_to_stop)
        self._face.start()
        threading.Thread(target=self._start, name="starter", daemon=True).start()
        while self._code is None:
            (self._notes.get(self._deadline) or self._run_out_of_time)()
        self._face.stop()
        self._face.join(Deadline(PATIENCE_WITH_FACE))
        if self._death is not None:
            raise self._death
        return self._code

    @property
    def has_stopped(self) -> bool:
        """Whether it was up and everything of it has come to an end."""
        return self._is_up and self._code == 0

    @property
    def time_left(self) -> float:
        """Seconds until the process should be gone."""
        return self._deadline.remaining or 0.0

    # From any thread

    def note(self, call: Callable[[], object]) -> None:
        """Have the main thread do it."""
        self._notes.put(call)

    def ask_to_stop(self) -> None:
        """As SIGTERM and SIGINT do."""
        self.note(partial(self._asked, time.monotonic()))
        if self._is_lent:  # the main thread cannot see to it just now
            limit = self._config.coordinator.shutdown_timeout
            timer = threading.Timer(limit, self._cut_short)
            timer.daemon = True
            timer.start()

    def in_main(self, call: Callable[[], T]) -> T:
        """Have the main thread call it, from another one; what it returns, or raises."""
        done: Future[T] = Future()

        def lend() -> None:
            self._is_lent = True
            error, value = threads.outcome(call)
            self._is_lent = False
            if error is not None:
                done.set_exception(error)
            else:
                done.set_result(value)

        self.note(lend)
        return done.result()

    def hurry(self) -> None:
        """Hand back at once what still runs, of a server that stops."""
        self._served.hurry()

    def reasons(self) -> Sequence[str]:
        """Why it is not ready, from memory; nothing when it is."""
        return self._served.problems if self._why_not is None else [self._why_not]

    def lose_face(self, service: Service, error: BaseException) -> None:
        """No longer to be looked at, it stops as if asked to, and says why."""
        self.note(partial(self._lose_face, service.name, error))

    def _cut_short(self) -> None:
        """[tasks] setup has not come to its end in the time that a stop may take."""
        if self._is_lent:
            os._exit(CUT_SHORT)

    def _end(self, code: int) -> None:
        self._code = code

    # In the main thread, as notes

    def _asked(self, moment: float) -> None:
        """SIGTERM or SIGINT."""
        if self._asked_at is None:
            self._asked_at = moment
            limit = self._config.coordinator.shutdown_timeout
            self._deadline = Deadline(limit - min(SPARE, limit / 4))
            process.notify("STOPPING=1")
            self._why_not = "the server is stopping"
            if self._is_up:
                self._stop()
            elif self._turn.acquire(blocking=False):
                self._end(0)  # nothing runs yet
            else:
                self._hurry_start()
        elif not self._is_child and moment - self._asked_at >= SECOND_SIGNAL_AFTER:
            log.warning("A second signal: what still runs is handed back")
            self.hurry()

    def _started(self) -> None:
        self._is_up = True
        self._served.stopped.add_done_callback(self._leave_word)
        if self._asked_at is not None:
            self._stop()
            return
        self._why_not = None
        process.notify("READY=1")
        self._face.announce()

    def _run_out_of_time(self) -> None:
        limit = self._config.coordinator.shutdown_timeout
        raise errors.ShutdownTimeout(
            f"The server had not stopped when shutdown_timeout ({limit:g} s) ran out."
        )

    def _failed(self, error: BaseException) -> None:
        """The start cannot succeed."""
        if self._asked_at is None:
            raise error
        self._end(0)

    def _stopped(self, stopped: Future[None]) -> None:
        match error := stopped.exception():
            case None:
                self._end(0)
            case errors.SchemaTooNew() | errors.ShutdownTimeout() | Died():
                raise error
            case _:
                raise Died(f"A part of the server died: {_told(error)}") from error

    def _lose_face(self, name: str, error: BaseException) -> None:
        self._death = Died(f"The service {name!r} died: {_told(error)}")
        self._asked(time.monotonic())

    def _stop(self) -> None:
        threading.Thread(target=self._stop_quietly, name="stopper", daemon=True).start()

    # In other threads

    def _stop_quietly(self) -> None:
        with suppress(errors.ShutdownTimeout):  # .stopped tells
            self._served.stop()

    def _leave_word(self, stopped: Future[None]) -> None:
        self._notes.put(partial(self._stopped, stopped))

    def _start(self) -> None:
        try:
            self._start_patiently()
        except BaseException as error:
            self._notes.put(partial(self._failed, error))

    def _start_patiently(self) -> None:
        """Until it succeeds, or fails for a reason that does not pass by itself."""
        troubles = 0
        while True:
            try:
                self._start_once()
                if troubles:
                    telemetry.emit("database.back", component="server")
                return
            except Exception as error:
                if not database.is_transient(error) or self._is_refused(error):
                    raise
                troubles += 1
                self._tell_unreachable(error)
            time.sleep(backoff(troubles))

    def _start_once(self) -> None:
        conductor = self._served.conductor
        conductor.database.connect("start").close()
        self._why_not = "the schema is being brought up to date"
        orchestrator.install(conductor)
        if not self._turn.acquire(blocking=False):
            return  # asked to stop in time to start nothing
        try:
            self._why_not = "the server is starting"
            self._served.start(signals=False)
        except BaseException:
            self._turn.release()
            raise
        self._notes.put(self._started)

    def _is_refused(self, error: Exception) -> bool:
        return isinstance(error, errors.CredentialsRefused) and not self._is_child

    def _tell_unreachable(self, error: Exception) -> None:
        if self._asked_at is None:
            self._why_not = f"the database is unreachable: {error}"
        telemetry.emit("database.lost", component="server", error=str(error))


class Died(errors.ConductorError):
    """A part of the server ended by itself."""


def described(served: Orchestrator) -> Mapping[str, object]:
    """What it serves, for the line that says that it is up."""
    return {
        "queues": [spec.queue for spec in served.workers],
        "tasks": len({task.name for spec in served.workers for task in spec.tasks}),
    }


def let_go(given: Given, server: Daemon) -> None:
    """Once all of it has stopped let the interpreter end by itself, exit handlers included; but
    not for ever: threads that tasks have left behind could hold it."""
    if server.has_stopped:
        given.leaves_threads = False
        timer = threading.Timer(server.time_left, os._exit, [0])
        timer.daemon = True
        timer.start()


def _told(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"
