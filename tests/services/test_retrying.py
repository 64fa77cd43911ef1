"""Running again what has failed: from where it was, or from its beginning."""

from __future__ import annotations

import threading
from contextlib import suppress
from typing import Any

import pytest

from conductor_cli import ChildFailed, Conductor, Context, ExecutionFailed, State, task


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
