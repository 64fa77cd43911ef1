"""Kernel locks on files: who uses the private Postgres, who keeps it, who is just starting it.

The kernel drops a ``flock`` however its holder dies, so nothing here can go stale.

A lock belongs to the open file, not to the process. Two things would let it outlive the
process that took it, and both are closed off:

- a program started by a user: every file is opened ``O_CLOEXEC``;
- a plain ``fork()`` (multiprocessing, a task that forks): the child closes its copies at once.
  It is no user of the server: its parent's connections are not its own either, and if it needs
  the server it calls ``start()`` itself. Otherwise a forked child left behind by a killed daemon
  would keep Postgres running for ever.

For the same reason a lock is let go by closing the file, never by ``LOCK_UN``, which would
unlock it for everybody who shares the open file.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import threading
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

PAUSE = 0.005  # seconds between two tries; what is waited for takes milliseconds

SHARED = fcntl.LOCK_SH
EXCLUSIVE = fcntl.LOCK_EX


class Hold:
    """An open file, and the lock that may be on it. ``release()`` may be called twice."""

    def __init__(self, path: Path) -> None:
        with _guard:
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
            # Where stdout is closed that may be 1, which others put their own files upon.
            self.fd = fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 3)
            os.close(fd)
            _holds.add(self)

    def lock(self, kind: int) -> bool:
        """Take the lock if it is free; never waits."""
        try:
            fcntl.flock(self.fd, kind | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def release(self) -> None:
        with _guard:
            if self in _holds:  # not in a forked child, where the number may mean another file
                _holds.discard(self)
                os.close(self.fd)


_holds: set[Hold] = set()
_guard = threading.Lock()


def take(path: Path, kind: int, deadline: float) -> Hold:
    """Lock ``path``, waiting until ``deadline`` (monotonic seconds); then TimeoutError."""
    hold = Hold(path)
    try:
        while not hold.lock(kind):
            if time.monotonic() >= deadline:
                raise TimeoutError(f"{path} stayed locked")
            time.sleep(PAUSE)
    except BaseException:
        hold.release()
        raise
    return hold


@contextlib.contextmanager
def held(path: Path, kind: int, deadline: float) -> Iterator[None]:
    """``take`` for the length of a block."""
    hold = take(path, kind, deadline)
    try:
        yield
    finally:
        hold.release()


def is_exclusive(path: Path) -> bool:
    """Say whether somebody holds the exclusive lock on ``path`` just now."""
    hold = Hold(path)
    try:
        return not hold.lock(SHARED)
    finally:
        hold.release()


def _forget_in_child() -> None:
    for hold in _holds:
        os.close(hold.fd)
    _holds.clear()
    _guard.release()


# The guard makes opening and noting one move, so that a fork in another thread sees both or none.
os.register_at_fork(
    before=_guard.acquire, after_in_parent=_guard.release, after_in_child=_forget_in_child
)
