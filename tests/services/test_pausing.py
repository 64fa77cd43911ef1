"""Queues that are paused while servers run."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

import pytest

from conductor_cli import Conductor, Orchestrator, State, WorkerConfig, task

if TYPE_CHECKING:
    from collections.abc import Iterator

gate = threading.Event()


@pytest.fixture(autouse=True)
def opened() -> Iterator[None]:
    gate.clear()
    yield
    gate.set()


@task
def quick() -> str:
    return "done"


@task
def gated() -> str:
    assert gate.wait(60)
    return "done"


def states(conductor: Conductor) -> set[str]:
    return {each.state.value for each in conductor.list()}


def test_a_paused_queue_runs_nothing_until_it_is_resumed(
    conductor: Conductor, start: Any, heard: Any
) -> None:
    start(quick)
    heard.wait("listener.proven")
    assert conductor.pause("default")
    assert not conductor.pause("default")
    ids = conductor.invoke_many(quick, [None] * 20)
    with pytest.raises(TimeoutError):
        conductor.wait(ids[0], timeout=0.3)
    assert states(conductor) == {"pending"}
    assert conductor.resume("default")
    assert not conductor.resume("default")
    assert [conductor.wait(id, timeout=5) for id in ids] == ["done"] * 20


def test_what_runs_goes_on_and_what_was_only_claimed_is_given_back(
    conductor: Conductor, start: Any, heard: Any, eventually: Any
) -> None:
    start(gated, default_worker=WorkerConfig(concurrency=2, fetch_batch_size=5))
    heard.wait("listener.proven")
    conductor.invoke_many(gated, [None] * 10)

    def running() -> list[Any]:
        return [each for each in conductor.list() if each.state is State.RUNNING]

    eventually(lambda: len(running()) > 2)
    conductor.pause("default")
    eventually(lambda: len(running()) == 2)
    begun = running()
    gate.set()
    assert [conductor.wait(each.id, timeout=10) for each in begun] == ["done"] * 2
    assert sorted(each.state for each in conductor.list()) == ["completed"] * 2 + ["pending"] * 8
    assert {each.runs for each in conductor.list(state="pending")} == {0}


def test_a_server_that_starts_later_leaves_a_paused_queue_alone(
    conductor: Conductor, start: Any, heard: Any
) -> None:
    @task(queue="other")
    def elsewhere() -> int:
        return 1

    conductor.pause("default")
    id = conductor.invoke(quick)
    start(quick, elsewhere)
    assert conductor.wait(conductor.invoke(elsewhere), timeout=10) == 1
    assert conductor.get(id).state is State.PENDING  # type: ignore[union-attr]
    conductor.resume("default")
    assert conductor.wait(id, timeout=10) == "done"


@pytest.mark.parametrize("patient", [False, True])
def test_a_drain_does_not_wait_for_a_paused_queue(
    conductor: Conductor, make: Any, patient: bool
) -> None:
    conductor.pause("default")
    conductor.invoke(quick)
    conductor.invoke(quick, delay=3600)
    orchestrator: Orchestrator = make(quick)
    report = orchestrator.drain(timeout=30, wait_until_empty=patient)
    assert not report.timed_out
    assert (report.completed, report.left_blocked, report.left_scheduled) == (0, 1, 1)
    conductor.resume("default")
    assert make(quick).drain(timeout=30).completed == 1


def test_a_name_that_is_none_is_refused(conductor: Conductor) -> None:
    for act in (conductor.pause, conductor.resume):
        with pytest.raises(ValueError, match="a b"):
            act("a b")
