"""The keeper: one small process per data folder that runs Postgres while anybody uses it.

It is started by the first user, belongs to none, and ends by itself::

    conductor, conductor, ...   hold users.lock shared
    keeper                      holds keeper.lock; asks for users.lock exclusively
    └╴postgres                  inherits server.lock; the kernel ends it when the keeper dies

When the keeper gets ``users.lock``, however the users ended, nobody is left and it stops
Postgres. A new user waits for that lock until the keeper is gone, and starts another. When
Postgres dies under its users, the keeper starts it again.

Signals do not end it: it is in a session of its own, where Ctrl-C does not come, and systemd
asks it to stop at the same moment as the daemon, which has yet to drain.

Run as ``python -m conductor_cli.embedded.keeper FOLDER PROGRAMS UID GID``. It reports once, with
a line of JSON on its standard output: ready, or busy (there is another keeper), or an error.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import time
from pathlib import Path

from conductor_cli.embedded import cluster, locks, place, programs
from conductor_cli.embedded.place import Account, Area
from conductor_cli.embedded.postmaster import FAST, IMMEDIATE, Log, Postmaster
from conductor_cli.errors import ConductorError, DatabaseUnavailable

TICK = 0.2  # seconds between two looks at who is left; also the longest before a restart
STARTING_TICK = 0.01
LOCK_WITHIN = 0.5  # others look at the lock for microseconds
ORPHANS_WITHIN = 20.0  # seconds for the Postgres of a killed keeper to end
ORPHANS_ALONE = 1.0  # seconds before it is asked to
ORPHANS_HURRIED = 8.0  # seconds before it is told to
RESTART_WITHIN = 20.0  # seconds of failing to start before giving up
RESTART_PAUSE = 0.2


class Busy(Exception):
    """Another keeper lives."""


class Keeper:
    """Runs Postgres in ``area``. Raises Busy when it is not the only keeper."""

    def __init__(self, area: Area, folder: Path) -> None:
        self._area = area
        self._folder = folder
        self._alone = _only_keeper(area)
        self._users = locks.Hold(area.users_lock)
        self._log = Log(area)
        self._server_lock = _outlast_orphans(area)
        self._failing_since: float | None = None
        self._was_ready = False

    def run(self) -> None:
        """Keep Postgres; returns once nobody uses it and it has stopped.

        ConfigError or DatabaseUnavailable when it does not start, or stops starting.
        """
        self._prepare()
        self._server = self._launch()
        try:
            self._watch()
        except (ConductorError, OSError) as error:
            self._log.write(f"The keeper gives up: {error}\n".encode())
            raise
        finally:
            self._area.state.unlink(missing_ok=True)
            self._server.stop(FAST if self._area_is_there() else IMMEDIATE)
            self._remove_short_folder()

    def _prepare(self) -> None:
        self._version = programs.version(self._folder)
        self._folder = programs.for_account(self._folder, self._area.account)
        place.make_private_folder(self._area.sockets, self._area.account)
        cluster.prepare(self._area, self._folder, self._version, self._server_lock)

    def _launch(self) -> Postmaster:
        cluster.make_pid_impossible(self._area)
        command = cluster.command(self._area, self._folder, self._version)
        return Postmaster(self._area, command, self._server_lock, self._log)

    def _watch(self) -> None:
        ready = False
        while self._is_wanted():
            self._server.pump(TICK if ready else STARTING_TICK)
            if self._server.ended() is not None:
                ready = False
                self._restart()
            elif self._server.is_ready() != ready:
                ready = not ready
                if ready:
                    self._tell()

    def _is_wanted(self) -> bool:
        """Say no when nobody is left (and from then on nobody gets in), or the folder is gone."""
        return not self._users.lock(locks.EXCLUSIVE) and self._area_is_there()

    def _area_is_there(self) -> bool:
        try:
            return os.path.samestat(self._area.keeper_lock.stat(), os.fstat(self._alone.fd))
        except OSError:
            return False

    def _restart(self) -> None:
        """Start the ended server again; DatabaseUnavailable when that is of no use."""
        self._area.state.unlink(missing_ok=True)
        self._server.close()
        if self._server.was_ready:
            self._failing_since = None
        if not self._may_mend():
            raise DatabaseUnavailable(
                f"Postgres {self._version} does not start on {self._area.data}; it ended with "
                f"{self._server.ended()}:\n{cluster.last_lines(self._server.output)}"
            )
        time.sleep(RESTART_PAUSE)
        # Those whose postmaster was killed serve nobody, and keep the next one from starting.
        cluster.signal_left(self._area.data, IMMEDIATE)
        self._server = self._launch()

    def _may_mend(self) -> bool:
        """Say whether starting again may help: it ran before, or others are still leaving."""
        now = time.monotonic()
        self._failing_since = self._failing_since or now
        mendable = self._was_ready or "shared memory block" in self._server.output
        return mendable and now - self._failing_since < RESTART_WITHIN

    def _tell(self) -> None:
        """Write down that the server is ready, for the users to come; and report it, once."""
        self._was_ready = True
        state = {
            "url": cluster.url(self._area),
            "version": self._version.split()[0],
            "keeper": os.getpid(),
            "postgres": self._server.pid,
        }
        new = self._area.state.with_suffix(".new")
        new.unlink(missing_ok=True)
        with os.fdopen(self._area.open(new, os.O_WRONLY), "w", encoding="utf-8") as file:
            json.dump(state, file)
        new.replace(self._area.state)
        report({"ready": True})

    def _remove_short_folder(self) -> None:
        if self._area.sockets.parent == place.SHORT:
            with contextlib.suppress(OSError):
                self._area.sockets.rmdir()


def main() -> None:
    """Be the keeper that the command line asks for."""
    _leave_the_family()
    area, folder = _arguments(sys.argv[1:])
    try:
        Keeper(area, folder).run()
    except Busy:
        report({"busy": True})
    except ConductorError as error:
        report({"error": type(error).__name__, "message": str(error)})
    except OSError as error:
        message = f"The embedded Postgres in {area.folder} cannot be kept: {error}."
        report({"error": DatabaseUnavailable.__name__, "message": message})


def report(what: dict[str, object]) -> None:
    """Tell the starter, once; it may be dead. Whatever is printed later goes nowhere."""
    line = json.dumps(what).encode() + b"\n"
    with contextlib.suppress(OSError):
        os.write(1, line)
    nowhere = os.open(os.devnull, os.O_RDWR)
    os.dup2(nowhere, 1)
    os.dup2(nowhere, 2)
    os.close(nowhere)


def _leave_the_family() -> None:
    """Go on as an orphan, so that no user has to wait for this process at its end."""
    if os.fork():
        os._exit(0)
    os.umask(0o077)
    signal.pthread_sigmask(signal.SIG_SETMASK, [])  # what the user's thread blocked or ignored
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(signum, lambda *_: None)  # not SIG_IGN, which Postgres would inherit


def _arguments(words: list[str]) -> tuple[Area, Path]:
    folder, found, uid, gid = words
    account = None if int(uid) == os.geteuid() else Account(f"user {uid}", int(uid), int(gid))
    return Area(Path(folder), account), Path(found)


def _only_keeper(area: Area) -> locks.Hold:
    try:
        return locks.take(area.keeper_lock, locks.EXCLUSIVE, time.monotonic() + LOCK_WITHIN)
    except TimeoutError as error:
        raise Busy from error


def _outlast_orphans(area: Area) -> int:
    """Wait until no process of an earlier Postgres is left, and take the lock they held.

    On Linux the kernel has asked them to end when their keeper died; elsewhere this does.
    """
    hold = locks.Hold(area.server_lock)
    began = time.monotonic()
    while not hold.lock(locks.EXCLUSIVE):
        waited = time.monotonic() - began
        if waited > ORPHANS_WITHIN:
            raise DatabaseUnavailable(
                f"An earlier Postgres on {area.data} (process {cluster.status(area.data)[0]}) "
                f"does not end. Stop it, and start again."
            )
        if waited > ORPHANS_ALONE:
            cluster.signal_left(area.data, IMMEDIATE if waited > ORPHANS_HURRIED else FAST)
        time.sleep(0.02 if waited < ORPHANS_ALONE else 0.5)
    # A second number for the same open file: it is passed to Postgres, whose fork on the way
    # closes the first (see locks).
    return os.dup(hold.fd)


if __name__ == "__main__":
    main()
