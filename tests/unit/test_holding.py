"""The books of a worker: how much is claimed, and when."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING
from uuid import UUID

import pytest

from conductor_cli import WorkerConfig, holding
from conductor_cli.holding import BATCH, MOST_AHEAD, Finished, Holding, Plan, SuspectLane
from conductor_cli.models import Claimed, Completed

if TYPE_CHECKING:
    from collections.abc import Sequence

MOMENT = datetime(2026, 1, 1, tzinfo=UTC)


class Clock:
    now = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(holding, "time", made)
    return made


@pytest.fixture
def held(clock: Clock) -> Holding:
    made = Holding(WorkerConfig(concurrency=10), lambda: True, lambda _: False, SuspectLane())
    made.wakers = [lambda: None, lambda: None]
    return made


def claimed(plan: Plan, first: int, payload: str = "{}") -> list[Claimed]:
    return [
        Claimed(
            UUID(int=n), plan.token, "t", payload, 1, 0, 0, None, None, None, 0, MOMENT, n, 0
        )
        for n in range(first, first + plan.limit)
    ]  # fmt: skip


def exchange(held: Holding, *, again: bool = True, payload: str = "{}") -> Plan:
    plan = held.plan(again)
    assert plan is not None
    held.received(plan, claimed(plan, held._taken, payload))
    return plan


def run(held: Holding, seconds: float, clock: Clock) -> Sequence[Finished]:
    """All that has been claimed, ten at a time."""
    ended = []
    while not held.inbox.empty():
        each = held.inbox.get()
        assert each is not None
        ended.append(Finished(each, Completed("null"), seconds))
        held.finish(ended[-1])
        clock.now += seconds / 10
    return ended


def test_as_many_as_there_are_threads_are_claimed_before_anything_is_known(held: Holding) -> None:
    assert exchange(held, again=False).limit == 10


def test_the_first_that_end_tell_how_many_may_be_held(held: Holding, clock: Clock) -> None:
    exchange(held, again=False)
    for limit in (10, BATCH):
        run(held, 0.0001, clock)
        assert exchange(held).limit == limit


def test_large_payloads_are_not_hoarded(held: Holding, clock: Clock) -> None:
    large = "x" * (1 << 20)
    exchange(held, again=False, payload=large)
    for _ in range(20):
        run(held, 0.0001, clock)
        assert exchange(held, payload=large).limit <= 64 + 10


@pytest.mark.parametrize(("seconds", "most"), [(0.01, 210), (0.1, 30), (1.0, 12), (60.0, 10)])
def test_slow_ones_are_not_hoarded(held: Holding, clock: Clock, seconds: float, most: int) -> None:
    exchange(held, again=False)
    for _ in range(20):
        run(held, seconds, clock)
        assert exchange(held).limit <= most


def test_slow_ones_that_end_at_one_moment_are_not_taken_for_fast_ones(
    held: Holding, clock: Clock
) -> None:
    exchange(held, again=False)
    running = [held.inbox.get() for _ in range(10)]
    clock.now += 60.0
    for n, each in enumerate(running):
        assert each is not None
        held.finish(Finished(each, Completed("null"), 60.0))
        if n in (0, 4, 9):
            clock.now += 0.0001
            plan = held.plan(was_active=True)
            assert plan is not None
            assert plan.limit <= 10
            held.received(plan, [])


def test_tasks_too_short_for_the_clock_are_the_fastest(held: Holding, clock: Clock) -> None:
    exchange(held, again=False)
    for limit in (10, BATCH):
        run(held, 0.0, clock)
        assert exchange(held).limit == limit


@pytest.mark.parametrize(("servers", "claims"), [(1, 2), (2, 1), (50, 1)])
def test_among_several_servers_each_has_one_claim_on_its_way(
    held: Holding, clock: Clock, servers: int, claims: int
) -> None:
    held.servers = servers
    exchange(held, again=False)
    for _ in range(4):
        run(held, 0.0001, clock)
        exchange(held)
    run(held, 0.0001, clock)
    one, other = held.plan(was_active=True), held.plan(was_active=False)
    assert one is not None
    assert (one.limit > 0) + (other is not None and other.limit > 0) == claims
    held.received(one, claimed(one, held._taken))
    again = held.plan(was_active=True)
    assert again is not None
    assert again.limit > 0


@pytest.mark.parametrize(
    ("servers", "ends", "apart"), [(1, 500, False), (2, 500, True), (2, 50, False)]
)
def test_among_several_servers_many_are_recorded_and_claimed_apart(
    held: Holding, clock: Clock, servers: int, ends: int, apart: bool
) -> None:
    held.servers = servers
    exchange(held, again=False)
    for _ in range(12):
        run(held, 0.0001, clock)
        exchange(held)
    for _ in range(ends):
        each = held.inbox.get()
        assert each is not None
        held.finish(Finished(each, Completed("null"), 0.0001))
    plan = held.plan(was_active=True)
    assert plan is not None
    assert plan.apart == apart


@pytest.mark.parametrize("servers", [1, 2, 3, 50])
def test_however_many_servers_claims_are_as_large_and_no_more_is_held(
    held: Holding, clock: Clock, servers: int
) -> None:
    held.servers = servers
    limits = []
    exchange(held, again=False)
    for _ in range(12):
        for _ in range(500):
            each = held.inbox.get()
            assert each is not None
            held.finish(Finished(each, Completed("null"), 0.0001))
            clock.now += 0.00001
            if held.inbox.empty():
                break
        limits.append(exchange(held).limit)
        assert held.in_hand <= 10 + MOST_AHEAD
    assert max(limits) == BATCH


@pytest.fixture
def patient(clock: Clock) -> Holding:
    """Lets results wait for a second. All there is has been claimed, and one result waits."""
    config = WorkerConfig(concurrency=10, flush_interval=1.0)
    made = Holding(config, lambda: True, lambda _: False, SuspectLane())
    made.wakers = [lambda: None, lambda: None]
    plan = made.plan(was_active=False)
    assert plan is not None
    one, other = claimed(plan, 0)[:2]
    made.received(plan, [one, other])
    assert [made.inbox.get(), made.inbox.get()] == [one, other]  # they run
    made.finish(Finished(one, Completed("null"), 0.01))
    plan = made.plan(was_active=True)  # recorded at once: it is the first
    while plan is not None:
        made.received(plan, [])
        plan = made.plan(was_active=True)
    made.finish(Finished(other, Completed("null"), 0.01))
    return made


def test_results_wait_for_others_while_there_is_nothing_else_to_do(
    patient: Holding, clock: Clock
) -> None:
    assert patient.linger() == 0.0
    assert patient.plan(was_active=False) is None
    assert 0.9 < patient.pause() <= 1.0
    clock.now += 1.0
    plan = patient.plan(was_active=False)
    assert plan is not None
    assert len(plan.finished) == 1


@pytest.mark.parametrize("what", ["a hint", "a stop", "something due"])
def test_what_waits_to_be_recorded_holds_up_nothing(patient: Holding, what: str) -> None:
    match what:
        case "a hint":
            patient.ready()
        case "a stop":
            patient.stop_claiming()
        case "something due":
            patient.due()
    plan = patient.plan(was_active=False)
    assert plan is not None
    assert len(plan.finished) == 1
    assert (plan.limit > 0) is (what != "a stop")
