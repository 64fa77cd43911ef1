"""Real orchestrators on a fresh database, with heartbeats short enough for a test."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import pytest

from conductor_cli import Conductor, Orchestrator, ShutdownTimeout, Task, telemetry
from conductor_cli.config import Config
from conductor_cli.sections import Coordinator

Start = Callable[..., Orchestrator]


@pytest.fixture
def conductor(database_url: str) -> Iterator[Conductor]:
    with Conductor.create(database_url) as made:
        yield made


@pytest.fixture
def quick() -> Config:
    """A heartbeat every 0.3 s, death after 1.2 s."""
    return Config(
        coordinator=Coordinator(heartbeat_interval=0.3, heartbeat_timeout=1.2, shutdown_timeout=6.0)
    )


@pytest.fixture
def make(database_url: str, quick: Config) -> Iterator[Start]:
    """Makes orchestrators with a client of their own; all are stopped at the end."""
    made: list[Orchestrator] = []

    def build(*tasks: Task[..., Any], config: Config = quick, **options: Any) -> Orchestrator:
        client = Conductor.create(database_url)
        made.append(Orchestrator.create(conductor=client, tasks=tasks, config=config, **options))
        return made[-1]

    yield build
    for orchestrator in made:
        with suppress(ShutdownTimeout):
            orchestrator.stop()
        orchestrator.conductor.close()


@pytest.fixture
def start(make: Start) -> Start:
    def begin(*tasks: Task[..., Any], **options: Any) -> Orchestrator:
        orchestrator = make(*tasks, **options)
        orchestrator.start(signals=False)
        return orchestrator

    return begin


class Heard:
    """The events of telemetry so far, and a way to wait for one."""

    def __init__(self) -> None:
        self._events: list[tuple[str, int, dict[str, object]]] = []
        self._changed = threading.Condition()

    def __call__(self, event: str, count: int, fields: Any) -> None:
        with self._changed:
            self._events.append((event, count, dict(fields)))
            self._changed.notify_all()

    def count(self, event: str) -> int:
        with self._changed:
            return sum(count for name, count, _ in self._events if name == event)

    def wait(self, event: str, count: int = 1, timeout: float = 15.0) -> dict[str, object]:
        """The fields of the event, once it has been heard ``count`` times."""
        until = time.monotonic() + timeout
        with self._changed:
            while True:
                found = [f for name, n, f in self._events if name == event for _ in range(n)]
                if len(found) >= count:
                    return found[count - 1]
                left = until - time.monotonic()
                assert left > 0, f"{event} was not heard {count} times: {self._events}"
                self._changed.wait(left)


@pytest.fixture
def heard() -> Iterator[Heard]:
    listener = Heard()
    undo = telemetry.subscribe(listener)
    yield listener
    undo()


def eventually(check: Callable[[], Any], timeout: float = 15.0, what: str = "it") -> Any:
    """The first true answer of ``check``, asked every 10 ms."""
    until = time.monotonic() + timeout
    while not (answer := check()):
        assert time.monotonic() < until, f"{what} did not happen within {timeout} s"
        time.sleep(0.01)
    return answer


@pytest.fixture(name="eventually")
def eventually_fixture() -> Callable[..., Any]:
    return eventually
