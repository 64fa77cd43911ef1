"""More than one process: the daemon as a parent that starts its children and minds them.

    conductor start-server --processes 2      web server, metrics, signals; no work
    ├╴conductor ... --child 9                 an orchestrator: heartbeat, workers, listener
    └╴conductor ... --child 11                another

To the outside it is one server, to the database each child is one. When a child dies what it ran
is given back at once, and another takes its place; when the parent dies the children stop.
"""

from __future__ import annotations

import os
import signal
import sys
import tempfile
import threading
import time
from concurrent.futures import Future
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Final

from conductor_cli import errors, telemetry
from conductor_cli.cli import daemon, failures, process, session
from conductor_cli.cli.child import Opening
from conductor_cli.cli.children import Child
from conductor_cli.cli.front import Front
from conductor_cli.client import Conductor
from conductor_cli.maintenance import Undertaker
from conductor_cli.service import Deadline

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from conductor_cli.cli.options import Given
    from conductor_cli.config import Config
    from conductor_cli.service import Service

MARGIN: Final = 1.0  # seconds of shutdown_timeout kept for whoever does not go by itself
FIRST_PAUSE: Final = 0.5  # seconds, from the second death in a row on
LONGEST_PAUSE: Final = 15.0
STEADY: Final = 60.0  # seconds of being ready after which a death is not one in a row
STILLBORN: Final = 5  # deaths in a row, each before the child was ready, that are too many
DEATHS: Final = 20  # and of any kind
LAST_RITES: Final = 0.3  # seconds
SCRAPE_WITHIN: Final = 2.0
AT_ITS_WORD: Final = (0, failures.CUT_SHORT)  # how a child ends that was told to


@dataclass
class Place:
    """Where one child is, or is to be again. ``deaths``: in a row; ``last``: how the last went."""

    number: int
    child: Child | None = None
    deaths: int = 0
    stillborn: int = 0
    last: str = ""


class Supervisor:
    """Children that are served as one. Starts once.

    ``start`` returns when all are ready. ``stopped`` raises what was too much: a child that dies
    again and again, a schema that is too new. Ends within ``shutdown_timeout``, by force if
    need be.
    """

    def __init__(
        self, conductor: Conductor, config: Config, opening: Opening, processes: int
    ) -> None:
        self.conductor = conductor
        self.stopped: Future[None] = Future()
        self._limit = config.coordinator.shutdown_timeout
        self._opening = opening
        self._places = [Place(number) for number in range(1, processes + 1)]
        self._changed = threading.Condition()
        self._undertaker = Undertaker(conductor.database, on_death=self._part_died)
        self._is_hurried = self._is_stopping = False
        self._was_ready = False
        self._verdict: Exception | None = None
        self._codes: list[int] = []  # of those that have ended while it stopped
        self._past = b""  # what ended children have counted

    @property
    def problems(self) -> list[str]:
        """Why it is not ready: each with the process it is about."""
        if self._is_stopping:
            return ["the server is stopping"]
        return [problem for place in self._places for problem in self._problems_at(place)]

    def describe(self) -> Mapping[str, object]:
        """What it serves."""
        serves = next((child.serves for child in self._children() if child.serves), {})
        return {**serves, "processes": len(self._places)}

    def start(self, *, signals: bool) -> None:
        """Return when all are ready, or need no longer be; or raise what keeps them from it.

        ``signals`` are the daemon's to hear.
        """
        assert not signals
        self._undertaker.start()
        telemetry.contribute(self._numbers)
        telemetry.gauge(
            "conductor_processes", "Processes that are ready.",
            lambda: {(): float(sum(child.serves is not None for child in self._children()))},
        )  # fmt: skip
        for place in self._places:
            self._try_to_fill(place)
        with self._changed:
            self._changed.wait_for(self._has_started)
            self._was_ready = True
        if self._verdict is not None:
            self._end(self._verdict)
            raise self._verdict

    def hurry_start(self) -> None:
        """Have start() return, for what has started is to stop."""
        with self._changed:
            self._is_hurried = True
            self._changed.notify_all()

    def stop(self) -> None:
        """Stop all; returns when stopped. Raises ShutdownTimeout when work was cut short."""
        self._end(None)
        error = self.stopped.exception()
        if isinstance(error, errors.ShutdownTimeout):
            raise error

    def hurry(self) -> None:
        """Have what still runs handed back at once."""
        for child in self._children():
            child.tell("hurry")

    def tell_stacks(self) -> None:
        """Have every process write its stacks."""
        process.tell_stacks()
        for child in self._children():
            child.tell("stacks")

    # Life

    def _has_started(self) -> bool:
        if self._is_hurried or self._verdict is not None:
            return True
        return all(place.child and place.child.serves is not None for place in self._places)

    def _try_to_fill(self, place: Place) -> None:
        try:
            self._fill(place)
        except OSError as error:  # no memory, no process to be had
            with self._changed:
                place.last = f"it could not be started: {error}"
                place.deaths += 1
                self._decide(place, self._judge_deaths(place))
                self._changed.notify_all()

    def _fill(self, place: Place) -> None:
        with self._changed:
            if self._is_stopping or self._verdict is not None:
                return
            place.child = Child(
                self._opening, on_news=self._tell_changed, on_end=partial(self._ended, place)
            )
            telemetry.emit("process.started", process=place.number, child=place.child.pid)

    def _tell_changed(self) -> None:
        with self._changed:
            self._changed.notify_all()

    def _ended(self, place: Place, child: Child) -> None:
        """In a thread of its own: nothing but this waits for the database."""
        assert child.code is not None
        if child.id is not None and child.code != 0:
            self._undertaker.bury(child.id)
        self._keep_numbers(child)
        with self._changed:  # _fill may not have returned yet
            place.child = None
            if self._is_stopping or self._verdict is not None:
                self._codes.append(child.code)
            else:
                self._replace(place, child)
            self._changed.notify_all()

    def _replace(self, place: Place, child: Child) -> None:
        if (verdict := self._judge_words(child)) is not None:
            self._condemn(verdict)
            return
        if child.ready_at is None or child.code not in AT_ITS_WORD:
            self._count_death(place, child)
        place.last = child.ending
        telemetry.emit("process.ended", process=place.number, child=child.pid, reason=place.last)
        self._decide(place, self._judge_deaths(place))

    def _decide(self, place: Place, verdict: Exception | None) -> None:
        if verdict is not None:
            self._condemn(verdict)
            return
        timer = threading.Timer(_pause(place.deaths), self._try_to_fill, [place])
        timer.daemon = True
        timer.start()

    def _count_death(self, place: Place, child: Child) -> None:
        if child.ready_at is not None and time.monotonic() - child.ready_at >= STEADY:
            place.deaths = 0
        place.deaths += 1
        place.stillborn = place.stillborn + 1 if child.ready_at is None else 0

    def _judge_words(self, child: Child) -> Exception | None:
        """What a child said that another would say, too."""
        code, lines = child.failure or (None, [])
        if code == failures.SCHEMA_TOO_NEW:
            return errors.SchemaTooNew(" ".join(lines))
        if code == failures.BAD_USAGE and not self._was_ready:
            return errors.ConfigError(*lines)
        return None

    def _judge_deaths(self, place: Place) -> Exception | None:
        if place.stillborn < STILLBORN and place.deaths < DEATHS:
            return None
        before = " before it was ready" if place.stillborn >= STILLBORN else ""
        return daemon.Died(
            f"Process {place.number} of {len(self._places)} died {place.deaths} times in a row"
            f"{before}; the last time {place.last}."
        )

    def _condemn(self, verdict: Exception) -> None:
        """The start raises it; later it is for .stopped to tell."""
        if self._verdict is None:
            self._verdict = verdict
            if self._was_ready:
                ender = threading.Thread(target=self._end, args=[verdict], name="end", daemon=True)
                ender.start()

    def _part_died(self, _service: Service, error: BaseException) -> None:
        with self._changed:
            self._condemn(daemon.Died(f"The undertaker died: {error!r}"))
            self._changed.notify_all()

    # Its end

    def _end(self, error: Exception | None) -> None:
        with self._changed:
            first, self._is_stopping = not self._is_stopping, True
            self._changed.notify_all()
        if not first:
            return
        deadline = Deadline(self._limit - min(MARGIN, self._limit / 3))
        for child in self._children():
            child.tell("stop")
        killed = self._kill_what_is_left_at(deadline)
        self._undertaker.settle(Deadline(LAST_RITES))
        self._undertaker.stop()
        self._resolve(error or self._verdict, was_cut=killed or failures.CUT_SHORT in self._codes)

    def _kill_what_is_left_at(self, deadline: Deadline) -> bool:
        with self._changed:
            if self._changed.wait_for(lambda: not self._children(), deadline.remaining):
                return False
            for child in self._children():
                child.kill()
            self._changed.wait_for(lambda: not self._children(), LAST_RITES)
        return True

    def _resolve(self, error: Exception | None, *, was_cut: bool) -> None:
        if error is None and was_cut:
            error = errors.ShutdownTimeout(
                "Work still ran when the server had to be gone; it was handed back."
            )
        if error is None and (code := next((code for code in self._codes if code), None)):
            error = daemon.Died(f"A process did not stop as it should: its exit code was {code}.")
        if error is None:
            self.stopped.set_result(None)
        else:
            self.stopped.set_exception(error)

    # What they say

    def _children(self) -> list[Child]:
        return [child for place in self._places if (child := place.child) is not None]

    def _problems_at(self, place: Place) -> Sequence[str]:
        if (child := place.child) is not None:
            return child.problems
        which = f"process {place.number} of {len(self._places)}"
        return [f"{which} is being started again: {place.last or 'it has not been started yet'}"]

    def _numbers(self) -> list[bytes]:
        asked, deadline = self._children(), Deadline(SCRAPE_WITHIN)
        for child in asked:
            child.ask_numbers()
        told = [child.wait_for_numbers(deadline) for child in asked]
        return [numbers for numbers in (self._past, *told) if numbers]

    def _keep_numbers(self, child: Child) -> None:
        if child.numbers:
            from conductor_cli.telemetry import sums

            with self._changed:
                self._past = sums.lasting([self._past, child.numbers])
                child.numbers = b""


def serve(given: Given, config: Config, queues: Sequence[str]) -> int:
    """Serve with as many processes as are configured; returns the exit code."""
    turns = _file_for_turns()
    telemetry.configure(
        config.log.level, config.log.format, common={"pid": os.getpid()}, turns=turns
    )
    with session.located(config, daemon.log.info) as found, Conductor.from_config(found) as client:
        opening = _opening(given, config, queues, turns)
        supervisor = Supervisor(client, config, opening, config.worker.processes)
        server = daemon.Daemon(
            supervisor, config, lambda shown: Front(shown, config, supervisor.describe),
            hurry_start=supervisor.hurry_start,
        )  # fmt: skip
        signal.signal(signal.SIGUSR1, lambda *_: server.note(supervisor.tell_stacks))
        given.leaves_threads = True
        code = server.run()
    daemon.let_go(given, server)
    return code


def _opening(given: Given, config: Config, queues: Sequence[str], turns: int) -> Opening:
    """Children have a little less time to stop, so that there is some left to end them."""
    limit = config.coordinator.shutdown_timeout
    theirs = replace(config.coordinator, shutdown_timeout=limit - min(1.5 * MARGIN, limit / 4))
    return Opening(
        config=replace(config, coordinator=theirs),
        queues=tuple(queues),
        debug=given.debug,
        turns=turns,
        path=tuple(sys.path),
        python_path=os.environ.get("PYTHONPATH"),
    )


def _file_for_turns() -> int:
    """A file without a name, to be locked by whoever writes a line."""
    if hasattr(os, "memfd_create"):
        return os.memfd_create("conductor-log")
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())


def _pause(deaths: int) -> float:
    """Seconds before another child: none after a first death, then 0.5, 1, 2, ... 15."""
    return 0.0 if deaths <= 1 else min(LONGEST_PAUSE, FIRST_PAUSE * 2.0 ** (deaths - 2))
