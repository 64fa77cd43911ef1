"""A child as its parent sees it: started, heard, told, and seen to end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from multiprocessing import Pipe
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import conductor_cli
from conductor_cli.cli import process

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from uuid import UUID

    from conductor_cli.cli.child import Opening
    from conductor_cli.service import Deadline

SILENT_AFTER: Final = 5.0  # seconds; it tells how it is every second
LAST_WORDS_WITHIN: Final = 0.5  # seconds after its end: what it said is in the pipe already


class Child:
    """One process. Its end is noticed at once, by waiting for it; ``on_end`` hears of it then.

    ``on_news`` is called whenever it has said something. Both are called in threads of its own.
    """

    def __init__(
        self,
        opening: Opening,
        *,
        on_news: Callable[[], None],
        on_end: Callable[[Child], None],
    ) -> None:
        self.id: UUID | None = None  # its server's, once it has one
        self.code: int | None = None
        self.failure: tuple[int, Sequence[str]] | None = None
        self.serves: Mapping[str, object] | None = None  # once it is ready
        self.ready_at: float | None = None
        self.numbers = b""
        self._reasons: Sequence[str] = ()
        self._heard_at = time.monotonic()
        self._on_news, self._on_end = on_news, on_end
        self._has_counted = threading.Event()
        self._lock = threading.Lock()
        self._pipe, far = Pipe()
        try:
            self._process = _start(far.fileno(), opening.turns)
        finally:
            far.close()
        self.pid: Final = self._process.pid
        self.tell(opening)
        self._reader = threading.Thread(target=self._read, name=f"child.{self.pid}", daemon=True)
        self._reader.start()
        threading.Thread(target=self._wait, name=f"end.{self.pid}", daemon=True).start()

    @property
    def problems(self) -> list[str]:
        """Why it is not well; empty when it is."""
        name = f"process {self.pid}"
        if self.code is not None:
            return [f"{name} has ended"]
        if self.serves is None:
            return [f"{name}: {reason}" for reason in self._reasons or ("it is starting",)]
        silent = time.monotonic() - self._heard_at
        if silent > SILENT_AFTER:
            return [f"{name} has not said for {silent:.0f} s how it is"]
        return [f"{name}: {reason}" for reason in self._reasons]

    @property
    def ending(self) -> str:
        """How it ended, for people."""
        if self.failure is not None:
            return " ".join(self.failure[1])
        if self.code is not None and self.code < 0:
            with suppress(ValueError):
                return f"it was killed by {signal.Signals(-self.code).name}"
        return f"its exit code was {self.code}"

    def tell(self, word: object) -> None:
        """From any thread; what a dead child does not hear is lost."""
        with self._lock, suppress(OSError):
            self._pipe.send(word)

    def kill(self) -> None:
        self._process.kill()

    def ask_numbers(self) -> None:
        """Have it tell what it has counted."""
        self._has_counted.clear()
        self.tell("numbers")

    def wait_for_numbers(self, deadline: Deadline) -> bytes:
        """What it has counted; what it last told, when it does not answer in time."""
        self._has_counted.wait(deadline.remaining)
        return self.numbers

    def _read(self) -> None:
        with suppress(EOFError, OSError):
            while True:
                self._take(self._pipe.recv())
                self._on_news()

    def _take(self, said: tuple[Any, ...]) -> None:
        self._heard_at = time.monotonic()
        match said:
            case ("id", id):
                self.id = id
            case ("ready", serves):
                self._reasons, self.ready_at, self.serves = (), time.monotonic(), serves
            case ("reasons", reasons):
                self._reasons = reasons
            case ("numbers", numbers):
                self.numbers = numbers
                self._has_counted.set()
            case ("failed", code, lines):
                self.failure = (code, lines)

    def _wait(self) -> None:
        code = self._process.wait()
        # What a task has forked may hold the pipe open for as long as it likes.
        self._reader.join(LAST_WORDS_WITHIN)
        if not self._reader.is_alive():
            self._pipe.close()
        self.code = code
        self._has_counted.set()
        self._on_end(self)


def _start(pipe: int, turns: int) -> subprocess.Popen[bytes]:
    """A new interpreter, not a fork: no thread and no lock of this one is in it.

    Signals to stop that come for the whole group wait until it can hear them.
    """
    words = ["-P", "-m", "conductor_cli", "start-server", "--child", str(pipe)]
    before = signal.pthread_sigmask(signal.SIG_BLOCK, process.STOPS)
    try:
        return subprocess.Popen(
            [sys.executable, *_interpreter_options(), *words],
            env=_environment(),
            stdin=subprocess.DEVNULL,
            pass_fds=(pipe, turns),
        )
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _interpreter_options() -> list[str]:
    """Those that this interpreter was given: ``-O``, ``-X ...``, ``-W ...``."""
    given = sys.orig_argv[1 : max(1, len(sys.orig_argv) - len(sys.argv))]
    return given[:-1] if given and given[-1] in {"-m", "-c"} else given


def _environment() -> dict[str, str]:
    """As this one's, and this package is found; systemd hears of readiness from the parent only."""
    package = Path(conductor_cli.__file__).parent.parent
    standard = Path(os.__file__).parent  # first: a package may shadow the standard library
    given = {name: value for name, value in os.environ.items() if name != "NOTIFY_SOCKET"}
    old = [given["PYTHONPATH"]] if given.get("PYTHONPATH") else []
    return {**given, "PYTHONPATH": os.pathsep.join((str(standard), str(package), *old))}
