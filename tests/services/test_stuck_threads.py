"""Tasks that do not return after their timeout: what is told, and when the server ends by them."""

from __future__ import annotations

import asyncio
import threading
import time
from typing import Any

import pytest

from conductor_cli import Conductor, ExecutionFailed, WorkerConfig, task, telemetry

TWO = WorkerConfig(concurrency=2)


@pytest.fixture(autouse=True)
def short_grace(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("conductor_cli.worker.GRACE", 0.2)


def deaf_until(free: threading.Event) -> None:
    while not free.is_set():
        try:
            free.wait(30)
        except BaseException:
            continue


def test_threads_that_end_after_all_are_counted_no_more(
    conductor: Conductor, start: Any, heard: Any, eventually: Any
) -> None:
    """Six of them, one after the other, where three at the same time would end the server."""
    free: list[threading.Event] = []

    @task(max_attempts=1, timeout=0.1)
    def deaf() -> None:
        free.append(threading.Event())
        deaf_until(free[-1])

    server = start(deaf, default_worker=TWO)
    (worker,) = server.job_coordinator.workers
    for n in range(6):
        conductor.invoke(deaf)
        heard.wait("worker.stuck", count=n + 1)
        assert worker.stuck == 1
        assert 'conductor_stuck_threads{queue="default"} 1.0' in telemetry.metrics().decode()
        free[n].set()
        told = heard.wait("worker.unstuck", count=n + 1)
        assert told["stuck"] == 0
        eventually(lambda: worker.stuck == 0)
    assert server.info.is_running
    assert len(worker.slots) == 2


def test_too_many_at_the_same_time_end_the_server(
    conductor: Conductor, start: Any, heard: Any
) -> None:
    free = threading.Event()

    @task(max_attempts=1, timeout=0.1)
    def deaf() -> None:
        deaf_until(free)

    server = start(deaf, default_worker=TWO)
    try:
        conductor.invoke(deaf)
        conductor.invoke(deaf)
        heard.wait("worker.stuck", count=2)
        time.sleep(0.2)
        assert server.info.is_running
        conductor.invoke(deaf)
        with pytest.raises(RuntimeError, match="3 tasks of queue 'default' did not return"):
            server.stopped.result(20)
    finally:
        free.set()


@pytest.mark.parametrize("obeys", [True, False])
@pytest.mark.parametrize("awaited", [True, False])
def test_a_timeout_says_after_how_long_and_whether_the_code_still_runs(
    conductor: Conductor, start: Any, obeys: bool, awaited: bool
) -> None:
    free = threading.Event()

    @task(max_attempts=1, timeout=0.15)
    def plain() -> None:
        if not obeys:
            deaf_until(free)
        while True:
            time.sleep(0.01)

    @task(max_attempts=1, timeout=0.15)
    async def coroutine() -> None:
        while not free.is_set():
            try:
                await asyncio.sleep(0.05)
            except asyncio.CancelledError:
                if obeys:
                    raise

    target = coroutine if awaited else plain
    start(target, default_worker=TWO)
    try:
        with pytest.raises(ExecutionFailed) as caught:
            conductor.wait(conductor.invoke(target), timeout=20)
    finally:
        free.set()
    told = "timed out after 0.15 s, and stopped"
    if not obeys:
        where = "on the event loop" if awaited else "in its thread"
        told = f"timed out after 0.15 s, did not stop within 0.2 s, and still runs {where}"
    assert (caught.value.error.type, caught.value.error.message) == ("TimeoutError", told)


def test_a_result_that_comes_too_late_is_told_as_such(conductor: Conductor, start: Any) -> None:
    @task(max_attempts=1, timeout=0.1)
    def late() -> str:
        try:
            while True:
                time.sleep(0.01)
        except BaseException:
            return "late"

    start(late, default_worker=TWO)
    with pytest.raises(ExecutionFailed, match=r"timed out after 0\.1 s; it returned later"):
        conductor.wait(conductor.invoke(late), timeout=20)
