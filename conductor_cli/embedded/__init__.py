"""A private Postgres for development and tests, shared by everyone who works on a project.

``start(project)`` gives this process a share in it; the first to come starts it, it stops by
itself when the last is gone, however each of them ends, and it is started again if it dies.

Nobody but the account that runs Conductor can reach it: it listens on a socket in a folder of
its own and on nothing else. Data survive a crash as in any Postgres (fsync is on).

The rooms: ``place`` (which folder, which account), ``programs``, ``locks``, ``starter`` (a user's
side) and ``keeper`` (a process of its own) with its ``cluster`` and ``postmaster``.
"""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, Final

from conductor_cli.embedded import locks, place, starter
from conductor_cli.embedded.programs import find as find_binaries
from conductor_cli.errors import ConductorError

if TYPE_CHECKING:
    from pathlib import Path
    from types import TracebackType
    from typing import Self

    from conductor_cli.embedded.place import Area
    from conductor_cli.embedded.starter import Running

__all__ = ["Embedded", "binaries", "start"]

START_WITHIN: Final = 60.0  # seconds; recovery after a crash is what may take long
LOOK_AFTER_IT_EVERY: Final = 1.0  # seconds between two looks at the keeper
LONGEST_PAUSE: Final = 30.0


class Embedded:
    """A share in a private Postgres, which runs at least until ``close()``.

    A child made by ``fork()`` has no share of its own. Without ``close()`` the share lasts as
    long as the process.
    """

    url: Final[str]
    """The address: ``postgresql://`` with user, database, host (a folder) and port."""
    data: Final[Path]
    """The folder of the data."""
    version: Final[str]
    """The version of the server, such as "18.6"."""

    def __init__(self, area: Area, running: Running, hold: locks.Hold, folder: Path | None) -> None:
        self.url = running.url
        self.version = running.version
        self.data = area.data
        self._area = area
        self._hold = hold
        self._folder = folder
        self._closed = threading.Event()
        self._guard = threading.Thread(target=self._look_after, name="embedded", daemon=True)
        self._guard.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Give up the share; Postgres stops by itself when it was the last. May be called twice."""
        self._closed.set()
        self._hold.release()
        self._guard.join(timeout=LOOK_AFTER_IT_EVERY)

    @property
    def notice(self) -> str:
        """One line to show at start: which version, where the data are, what it is for."""
        return f"Embedded Postgres {self.version}, for development and tests; data in {self.data}"

    def _look_after(self) -> None:
        """Start another keeper if this one was killed, for Postgres ends with it."""
        pause = LOOK_AFTER_IT_EVERY
        while not self._closed.wait(pause):
            try:
                if not locks.is_exclusive(self._area.keeper_lock):
                    starter.ensure(self._area, self._folder, time.monotonic() + START_WITHIN)
                pause = LOOK_AFTER_IT_EVERY
            except (ConductorError, OSError) as error:
                _warn(error)
                pause = min(pause * 2, LONGEST_PAUSE)


def start(
    project: Path, *, binaries: Path | None = None, timeout: float = START_WITHIN
) -> Embedded:
    """Share the private Postgres of ``project``, the folder of ``conductor.toml``.

    Starts it if need be, and returns when it accepts connections, within ``timeout`` seconds.
    ``binaries`` is the folder of the programs to start it with, should it not run yet; None finds
    one. Safe in any number of threads and processes at once.

    ConfigError when it cannot be kept here (the folder, the programs, data of another version),
    DatabaseUnavailable when it does not start.
    """
    deadline = time.monotonic() + timeout
    area = place.of(project)
    place.prepare(area)
    hold = starter.share(area, deadline)
    try:
        return Embedded(area, starter.ensure(area, binaries, deadline), hold, binaries)
    except BaseException:
        hold.release()
        raise


def binaries() -> Path:
    """Find the folder of Postgres programs: the ``embedded`` extra's, else the system's newest.

    ConfigError, with the command to type, when there is neither.
    """
    return find_binaries()


def _warn(error: Exception) -> None:
    import logging  # late: the keeper imports this file too, and has to be quick

    log = logging.getLogger("conductor.embedded")
    log.warning("The embedded Postgres cannot be started again: %s", error)
