"""Running again what has failed: from where it was, or from its beginning."""

from __future__ import annotations

import threading
from contextlib import suppress
from typing import Any

import pytest

from conductor_cli import (
    ChildFailed,
    Conductor,
    ConductorError,
    Context,
    ExecutionFailed,
    State,
    task,
)


@pytest.mark.parametrize("restart", [False, True])
def test_recorded_steps_are_kept_unless_it_restarts(
    conductor: Conductor, start: Any, restart: bool
) -> None:
    calls: list[str] = []

    @task(max_attempts=1)
    def work(ctx: Context) -> str:
        ctx.step("first", lambda: calls.append("first"))
        calls.append("rest")
        if len(calls) == 2:
            raise ValueError("not yet")
        return "done"

    start(work)
    id = conductor.invoke(work)
    with pytest.raises(ExecutionFailed):
        conductor.wait(id, timeout=30)
    assert conductor.retry(id, restart=restart)
    assert conductor.wait(id, work, timeout=30) == "done"
    assert calls == ["first", "rest", *(["first"] if restart else []), "rest"]
    ended = conductor.get(id)
    assert ended is not None
    assert (ended.runs, ended.failures) == (2, 0)
    assert not conductor.retry(id)


def test_a_subscription_that_was_open_registers_anew(
    conductor: Conductor, start: Any, eventually: Any
) -> None:
    calls: list[str] = []

    @task(max_attempts=1)
    def work(ctx: Context) -> str:
        paid = ctx.subscribe("paid", "payment.settled", where={"order": 1})
        ctx.step("charge", lambda: calls.append("charge"))
        calls.append("rest")
        if calls.count("rest") == 1:
            raise ValueError("not yet")
        settled: str = paid.wait(timeout=60)["by"]
        return settled

    start(work)
    id = conductor.invoke(work)
    with pytest.raises(ExecutionFailed):
        conductor.wait(id, timeout=30)
    conductor.emit("payment.settled", {"order": 1, "by": "before the retry"})
    assert conductor.retry(id)
    eventually(lambda: conductor.list(state=State.WAITING))
    conductor.emit("payment.settled", {"order": 2, "by": "another"})
    conductor.emit("payment.settled", {"order": 1, "by": "card"})
    assert conductor.wait(id, work, timeout=30) == "card"
    assert calls.count("charge") == 1


def test_children_of_what_was_settled_are_not_started_again(
    conductor: Conductor, start: Any, eventually: Any
) -> None:
    calls: list[int] = []
    broken = threading.Event()
    may_end = threading.Event()
    broken.set()

    @task(max_attempts=1)
    def pay(n: int) -> int:
        calls.append(n)
        if n == 0:
            raise ValueError("no")
        may_end.wait(30)
        return n

    @task(max_attempts=1)
    def parent(ctx: Context) -> str:
        with suppress(ChildFailed):
            ctx.invoke_many("pay", pay, [{"n": 0}, {"n": 1}, {"n": 2}])
        if broken.is_set():
            raise ConnectionError("down")
        return "ok"

    start(pay, parent)
    id = conductor.invoke(parent)
    eventually(lambda: sorted(calls) == [0, 1, 2])
    with pytest.raises(ExecutionFailed):
        conductor.wait(id, timeout=30)
    broken.clear()
    assert conductor.retry(id)
    assert conductor.wait(id, parent, timeout=30) == "ok"
    may_end.set()
    assert len(conductor.list(task="pay")) == 3
    assert sorted(calls) == [0, 1, 2]


class Bank:
    """Refuses until it is mended; counts the payments."""

    def __init__(self) -> None:
        self.works = False
        self.paid: list[int] = []

    def pay(self, number: int) -> int:
        if not self.works and number == 2:
            raise ValueError("closed")
        self.paid.append(number)
        return number


@pytest.mark.parametrize("mended_alone", [False, True])
def test_the_child_by_whose_failure_its_parent_ended_runs_again_with_it(
    conductor: Conductor, start: Any, mended_alone: bool
) -> None:
    bank = Bank()

    @task(max_attempts=1)
    def pays(number: int) -> int:
        return bank.pay(number)

    @task(max_attempts=1)
    def middle(ctx: Context) -> int:
        ctx.step("begun", lambda: bank.paid.append(0))
        return ctx.invoke("pays", pays, {"number": 2})

    @task(max_attempts=1)
    def top(ctx: Context) -> int:
        return ctx.invoke("middle", middle)

    start(pays, middle, top)
    id = conductor.invoke(top)
    with pytest.raises(ExecutionFailed):
        conductor.wait(id, timeout=30)
    bank.works = True
    if mended_alone:
        (child,) = conductor.list(task=middle)
        assert conductor.retry(child.id)
        assert conductor.wait(child.id, middle, timeout=30) == 2

    assert conductor.retry(id)

    assert conductor.wait(id, top, timeout=30) == 2
    assert bank.paid == [0, 2]
    assert len(conductor.list(task=pays)) == len(conductor.list(task=middle)) == 1


def test_of_several_children_only_the_one_that_failed_runs_again(
    conductor: Conductor, start: Any, eventually: Any
) -> None:
    bank = Bank()

    @task(max_attempts=1)
    def pays(ctx: Context, number: int) -> int:
        if number == 2:  # once the others have been paid
            eventually(lambda: sorted(bank.paid) == [1, 3])
        return bank.pay(number)

    @task(max_attempts=1)
    def top(ctx: Context) -> list[int]:
        return ctx.invoke_many("pays", pays, [{"number": n} for n in (1, 2, 3)])

    start(pays, top)
    id = conductor.invoke(top)
    with pytest.raises(ExecutionFailed):
        conductor.wait(id, timeout=30)
    bank.works = True
    bank_before = sorted(bank.paid)

    assert conductor.retry(id)

    assert conductor.wait(id, top, timeout=30) == [1, 2, 3]
    assert bank_before == [1, 3]
    assert sorted(bank.paid) == [1, 2, 3]


def test_a_child_whose_failure_its_parent_has_gone_past_is_retried_by_force_only(
    conductor: Conductor, start: Any
) -> None:
    gone_on, may_end = threading.Event(), threading.Event()

    @task(max_attempts=1)
    def fails() -> None:
        raise ValueError("once")

    @task(max_attempts=1)
    def top(ctx: Context) -> str:
        with suppress(ChildFailed):
            ctx.invoke("fails", fails)
        ctx.step("went on", gone_on.set)
        may_end.wait(30)
        return "done"

    start(fails, top)
    id = conductor.invoke(top)
    assert gone_on.wait(30)
    (child,) = conductor.list(task=fails)

    with pytest.raises(ConductorError, match="force"):
        conductor.retry(child.id)
    assert conductor.retry(child.id, force=True)
    may_end.set()
    assert conductor.wait(id, top, timeout=30) == "done"
