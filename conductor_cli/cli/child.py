"""One process of several: a daemon whose face is turned to the process that has started it.

Between the two is one pipe. Down come the ``Opening``, then "stop", "hurry", "numbers" and
"stacks"; up go how this process is, its numbers, and why it ended. When the pipe ends the parent
is dead, and this process stops as if asked to.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING, Any, Final

from conductor_cli.cli import process
from conductor_cli.service import PeriodicService

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from conductor_cli.cli.daemon import Daemon
    from conductor_cli.cli.options import Given
    from conductor_cli.config import Config
    from conductor_cli.service import Deadline

TELL_EVERY: Final = 1.0  # seconds

log: Final = logging.getLogger("conductor.server")


@dataclass(frozen=True)
class Opening:
    """What a child is told at first.

    ``turns`` is a file that is locked to write a line; ``path`` and ``python_path`` are what the
    parent has, which are the tasks' to know.
    """

    config: Config
    queues: Sequence[str]
    debug: bool
    turns: int
    path: Sequence[str]
    python_path: str | None


class Parent:
    """This end of the pipe. What is heard is obeyed in a thread of its own."""

    def __init__(self, file: int) -> None:
        os.set_inheritable(file, False)  # what tasks start is not to hold the pipe open
        self._pipe: Connection[Any, Any] = Connection(file)
        self._lock = threading.Lock()
        self.on_stop: Callable[[], object] = lambda: os._exit(0)  # nothing has been started yet
        self.on_hurry: Callable[[], object] = lambda: None
        self.wants_numbers = False
        os.register_at_fork(after_in_child=self._pipe.close)

    def opening(self) -> Opening:
        """The first word; EOFError when the parent is dead already."""
        opening: Opening = self._pipe.recv()
        return opening

    def listen(self) -> None:
        threading.Thread(target=self._listen, name="parent", daemon=True).start()

    def tell(self, *words: object) -> None:
        """From any thread; what a dead parent does not hear is lost."""
        with self._lock, suppress(OSError):
            self._pipe.send(words)

    def tell_numbers(self) -> None:
        """What this process has counted so far."""
        from conductor_cli import telemetry

        self.tell("numbers", telemetry.metrics())

    def _listen(self) -> None:
        with suppress(EOFError, OSError):
            while True:
                self._obey(self._pipe.recv())
        log.warning("The parent has ended, and so does this process")
        self.on_stop()

    def _obey(self, word: str) -> None:
        match word:
            case "stop":
                self.on_stop()
            case "hurry":
                self.on_hurry()
            case "numbers":
                self.wants_numbers = True
                self.tell_numbers()
            case "stacks":
                process.tell_stacks()


class Face(PeriodicService):
    """Tells the parent how this process is, every second and when it is up."""

    def __init__(
        self, shown: Daemon, parent: Parent, describe: Callable[[], Mapping[str, object]]
    ) -> None:
        super().__init__("face", pause=TELL_EVERY, on_death=shown.lose_face)
        self._shown, self._parent, self._describe = shown, parent, describe

    def setup(self) -> None:
        self._parent.on_stop = self._shown.ask_to_stop
        self._parent.on_hurry = self._shown.hurry

    def announce(self) -> None:
        """Everything is up."""
        self._parent.tell("ready", dict(self._describe()))

    def tick(self) -> bool:
        self._parent.tell("reasons", list(self._shown.reasons()))
        return False

    def join(self, deadline: Deadline) -> bool:
        if self._parent.wants_numbers:
            self._parent.tell_numbers()
        return super().join(deadline)


def serve(given: Given, file: int) -> int:
    """Be the child at the other end of the pipe ``file``; returns the exit code."""
    process.begin(lambda: os._exit(0))  # nothing has been started yet
    signal.pthread_sigmask(signal.SIG_UNBLOCK, process.STOPS)  # held back since before the start
    parent = Parent(file)
    try:
        opening = parent.opening()
    except EOFError:
        return 0
    parent.listen()
    given.debug = opening.debug
    try:
        return _serve(given, parent, opening)
    except Exception as error:
        return _report(parent, error, debug=opening.debug)


def _serve(given: Given, parent: Parent, opening: Opening) -> int:
    from conductor_cli import telemetry
    from conductor_cli.cli import daemon, session
    from conductor_cli.orchestrator import Orchestrator

    _settle_in(opening)
    config = opening.config
    telemetry.configure(
        config.log.level, config.log.format, common={"pid": os.getpid()}, turns=opening.turns
    )
    session.tasks(config, None)
    with session.located(config) as found:
        orchestrator = Orchestrator.from_config(found, queues=opening.queues)
        parent.tell("id", orchestrator.info.id)
        server = daemon.Daemon(
            orchestrator, config,
            lambda shown: Face(shown, parent, lambda: daemon.described(orchestrator)),
            is_child=True,
        )  # fmt: skip
        orchestrator.enter_by(server.in_main)
        given.leaves_threads = True
        code = server.run()
    daemon.let_go(given, server)
    return code


def _settle_in(opening: Opening) -> None:
    """Find modules where the parent finds them, and let what tasks start do so, too."""
    os.set_inheritable(opening.turns, False)
    sys.path[:] = opening.path
    if opening.python_path is None:
        os.environ.pop("PYTHONPATH", None)
    else:
        os.environ["PYTHONPATH"] = opening.python_path


def _report(parent: Parent, error: Exception, *, debug: bool) -> int:
    """Let the parent say what happened; it is not for each of its children to say it."""
    import traceback

    from conductor_cli import telemetry
    from conductor_cli.cli import failures, output

    if debug:
        output.tell(telemetry.redact("".join(traceback.format_exception(error)).rstrip()))
    code = failures.exit_code(error)
    parent.tell("failed", code, list(failures.lines(error)))
    return code
