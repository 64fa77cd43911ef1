"""What a user does so that a keeper runs: look, and start one if there is none."""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING

import conductor_cli
from conductor_cli.embedded import locks, programs
from conductor_cli.errors import ConfigError, DatabaseUnavailable

if TYPE_CHECKING:
    from conductor_cli.embedded.place import Area

LOOK_EVERY = 0.01


@dataclass(frozen=True)
class Running:
    """A server that is ready."""

    url: str
    version: str


def share(area: Area, deadline: float) -> locks.Hold:
    """Become a user of the server, whether it runs yet or not, until the hold is released.

    Waits while a keeper that saw nobody left is stopping it. DatabaseUnavailable after
    ``deadline`` (monotonic seconds).
    """
    try:
        return locks.take(area.users_lock, locks.SHARED, deadline)
    except TimeoutError as error:
        raise _not_ready(area) from error


def ensure(area: Area, folder: Path | None, deadline: float) -> Running:
    """See to it that a keeper runs Postgres, and return once it is ready.

    Only for one who has a share. Any number of processes may call it at once: one starts, the
    others wait. ConfigError or DatabaseUnavailable.
    """
    try:
        with locks.held(area.start_lock, locks.EXCLUSIVE, deadline):
            while time.monotonic() < deadline:
                if not locks.is_exclusive(area.keeper_lock):
                    area.state.unlink(missing_ok=True)  # a killed keeper's
                    _start_keeper(area, folder or programs.find(), deadline)
                elif (running := _read(area.state)) and _listens(area):
                    return running
                else:
                    time.sleep(LOOK_EVERY)
    except TimeoutError:
        pass
    raise _not_ready(area)


def _read(state: Path) -> Running | None:
    try:
        told = json.loads(state.read_bytes())
        return Running(url=told["url"], version=told["version"])
    except FileNotFoundError:
        return None


def _listens(area: Area) -> bool:
    """Say whether the server is there: the keeper may have yet to notice that it was killed."""
    import socket  # late: the keeper imports this file too, and has to be quick

    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
        client.settimeout(1.0)
        try:
            client.connect(os.fsencode(area.socket))
        except OSError:
            return False
    return True


def _start_keeper(area: Area, folder: Path, deadline: float) -> None:
    """Start a keeper and wait for its report; raises what it could not do."""
    with subprocess.Popen(
        _command(area, folder),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        cwd="/",
        env=_environment(),
        start_new_session=True,  # Ctrl-C must not stop Postgres under a daemon that drains
    ) as process:
        assert process.stdout is not None
        said = _first_line(process.stdout, deadline)
    if not said and time.monotonic() >= deadline:
        raise _not_ready(area)
    _raise_what_it_tells(area, said)


def _command(area: Area, folder: Path) -> list[str]:
    account = area.account
    uid, gid = (account.uid, account.gid) if account else (os.geteuid(), os.getegid())
    program = [sys.executable, "-P", "-S", "-m", "conductor_cli.embedded.keeper"]
    return [*program, str(area.folder), str(folder.resolve()), str(uid), str(gid)]


def _environment() -> dict[str, str]:
    """Give the keeper its environment: enough to find this package without site-packages."""
    package = Path(conductor_cli.__file__).parent.parent
    standard = Path(os.__file__).parent  # first: a package may shadow the standard library
    path = os.pathsep.join((str(standard), str(package)))
    home = {name: os.environ[name] for name in ("PYTHONHOME",) if name in os.environ}
    return {**programs.environment(), **home, "PYTHONPATH": path}


def _first_line(pipe: IO[bytes], deadline: float) -> bytes:
    """Read a line; what there is of it at the deadline or the end."""
    said = b""
    poll = select.poll()  # select() cannot see the files of a busy process
    poll.register(pipe, select.POLLIN)
    while not said.endswith(b"\n"):
        left = deadline - time.monotonic()
        if left <= 0 or not poll.poll(left * 1000):
            break
        if not (data := os.read(pipe.fileno(), 65536)):
            break
        said += data
    return said


def _raise_what_it_tells(area: Area, said: bytes) -> None:
    try:
        told = json.loads(said)
    except ValueError:
        text = said.decode("utf-8", "replace").strip() or "it was killed; try again"
        raise DatabaseUnavailable(f"The keeper of {area.folder} could not start: {text}") from None
    if told.get("error") == ConfigError.__name__:
        raise ConfigError(told["message"])
    if "error" in told:
        raise DatabaseUnavailable(told["message"])


def _not_ready(area: Area) -> DatabaseUnavailable:
    return DatabaseUnavailable(
        f"The embedded Postgres in {area.folder} did not become ready in time. It may still be "
        f"recovering: read {area.log}, and try again."
    )
