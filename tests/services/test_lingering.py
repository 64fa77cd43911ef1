"""Results that wait to be recorded together: who else waits for them."""

from __future__ import annotations

import time
from typing import Any

from conductor_cli import Conductor, WorkerConfig, task

RAN: list[int] = []


@task
def quick(n: int) -> int:
    RAN.append(n)
    return n


def test_a_claim_and_a_stop_come_at_once(
    conductor: Conductor, start: Any, heard: Any, eventually: Any
) -> None:
    RAN.clear()
    config = WorkerConfig(concurrency=2, flush_interval=1.0, poll_interval=5.0)
    server = start(quick, default_worker=config)
    heard.wait("listener.proven")
    conductor.wait(conductor.invoke(quick, {"n": 0}), timeout=10)
    longest = 0.0
    for n in range(8):  # each begins while the last one's result waits
        began = time.monotonic()
        id = conductor.invoke(quick, {"n": n})
        _wait_until_claimed(conductor, id)
        longest = max(longest, time.monotonic() - began)
    assert longest < 0.7
    eventually(lambda: len(RAN) == 9)
    began = time.monotonic()
    server.stop()
    assert time.monotonic() - began < 0.9
    assert conductor.wait(id, quick, timeout=1) == 7


def _wait_until_claimed(conductor: Conductor, id: Any) -> None:
    until = time.monotonic() + 10
    while time.monotonic() < until:
        found = conductor.get(id)
        assert found is not None
        if found.runs:
            return
        time.sleep(0.01)
    raise AssertionError("nobody has claimed it")
