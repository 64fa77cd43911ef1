"""Two sessions at once: who waits, who hears."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from concurrent.futures import Future

    from conductor_cli.database import Connection, Database

T = TypeVar("T")


class Ears:
    """What is told on some channels, as (channel, payload)."""

    def __init__(self, conn: Connection, *channels: str) -> None:
        self._conn = conn
        for channel in ("end", *channels):
            conn.execute(f'listen "{channel}"'.encode())

    def heard(self) -> list[tuple[str, str]]:
        """Everything that was committed since the last call."""
        self._conn.execute("select pg_notify('end', '')")
        told = []
        for each in self._conn.notifies(timeout=10):
            if each.channel == "end":
                return told
            told.append((each.channel, each.payload))
        raise AssertionError("did not hear itself")

    def payloads(self) -> list[str]:
        return sorted(payload for _, payload in self.heard())


@contextmanager
def background() -> Iterator[Callable[..., Future[Any]]]:
    """Run calls in threads: ``call = start(function, ...)``; all have ended after the block."""
    with ThreadPoolExecutor(max_workers=8) as pool:
        yield pool.submit


def at_once(database: Database, *calls: Callable[[Connection], T]) -> list[T]:
    """Run each on a connection of its own, all at the same time."""

    def run(call: Callable[[Connection], T]) -> T:
        with database.connect("test") as conn:
            return call(conn)

    with ThreadPoolExecutor(max_workers=len(calls)) as pool:
        return list(pool.map(run, calls))


def wait_until_blocked(watcher: Connection, conn: Connection) -> None:
    """Return when ``conn`` waits for a lock that somebody else holds."""
    pid = conn.info.backend_pid
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        row = watcher.execute("select cardinality(pg_blocking_pids(%s)) > 0", [pid]).fetchone()
        if row is not None and row[0]:
            return
        time.sleep(0.005)
    raise AssertionError("it does not wait")
