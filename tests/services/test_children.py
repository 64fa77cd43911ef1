"""Children: their results, their failures, and what becomes of them when a parent ends."""

from __future__ import annotations

import asyncio
import threading
from typing import Any
from uuid import UUID, uuid4

import pytest

from conductor_cli import (
    AsyncContext,
    ChildCancelled,
    ChildFailed,
    Conductor,
    Context,
    ExecutionCancelled,
    ExecutionFailed,
    State,
    WorkerConfig,
    task,
)


def by_task(conductor: Conductor, name: str) -> Any:
    (found,) = conductor.list(task=name)
    return found


@task
def double(n: int) -> int:
    return n * 2


@task(max_attempts=1)
def broken() -> None:
    raise LookupError("nothing there")


def test_a_child_runs_and_its_result_comes_back(conductor: Conductor, start: Any) -> None:
    @task(max_attempts=1)
    def parent(ctx: Context) -> int:
        return ctx.invoke("a", double, {"n": 4}) + ctx.invoke("b", double.bind(n=1))

    start(parent, double)
    id = conductor.invoke(parent)
    assert conductor.wait(id, parent, timeout=10) == 10
    assert {e.parent_id for e in conductor.list(task="double")} == {id}
    ended = conductor.get(id)
    assert ended is not None
    assert (ended.runs, ended.failures) == (3, 0)


def test_one_thread_is_enough_for_parent_and_child(conductor: Conductor, start: Any) -> None:
    @task(max_attempts=1)
    def parent(ctx: Context, depth: int) -> int:
        return 0 if depth == 0 else 1 + ctx.invoke("child", parent, {"depth": depth - 1})

    start(parent, default_worker=WorkerConfig(concurrency=1))
    assert conductor.wait(conductor.invoke(parent, {"depth": 12}), timeout=30) == 12


@pytest.mark.parametrize("value", [None, 0, "", False, [], {}])
def test_results_that_are_falsy_survive(conductor: Conductor, start: Any, value: Any) -> None:
    @task
    def child() -> Any:
        return value

    @task(max_attempts=1)
    def parent(ctx: Context) -> list[Any]:
        return [ctx.invoke("one", child), *ctx.invoke_many("many", child, [{}])]

    start(parent, child)
    assert conductor.wait(conductor.invoke(parent), timeout=10) == [value, value]


def test_a_child_that_fails_can_be_caught_and_stays_failed(
    conductor: Conductor, start: Any
) -> None:
    seen = []

    @task(retry=[0.01])
    def parent(ctx: Context) -> str:
        try:
            ctx.invoke("child", broken)
        except ChildFailed as error:
            seen.append((error.id, error.task, error.error.type, error.error.message))
        if len(seen) == 1:
            raise ValueError("again")
        return "caught"

    start(parent, broken)
    assert conductor.wait(conductor.invoke(parent), timeout=10) == "caught"
    child = by_task(conductor, "broken")
    assert seen == [(child.id, "broken", "LookupError", "nothing there")] * 2


def test_a_child_that_is_cancelled_says_why(conductor: Conductor, start: Any, heard: Any) -> None:
    @task(max_attempts=1)
    def child(ctx: Context) -> None:
        ctx.sleep("long", 600)

    @task(max_attempts=1)
    def parent(ctx: Context) -> str:
        try:
            return str(ctx.invoke("child", child))
        except ChildCancelled as error:
            return f"cancelled: {error.reason}"

    start(parent, child)
    id = conductor.invoke(parent)
    heard.wait("executions.suspended", 2)
    assert conductor.cancel(by_task(conductor, "child").id, "not now")
    assert conductor.wait(id, timeout=10) == "cancelled: not now"


def test_a_child_that_takes_too_long_goes_on(conductor: Conductor, start: Any) -> None:
    go = threading.Event()

    @task
    def child() -> str:
        go.wait(20)
        return "late"

    @task(max_attempts=1)
    def parent(ctx: Context) -> str:
        try:
            return str(ctx.invoke("child", child, timeout=0.2))
        except TimeoutError as error:
            late: Any = getattr(error, "id", error)
        ctx.step("let go", go.set)
        return f"waited: {ctx.wait('after all', late)}"

    start(parent, child)
    assert conductor.wait(conductor.invoke(parent), timeout=20) == "waited: late"


def test_a_parent_that_gave_up_and_failed_leaves_the_child_its_result(
    conductor: Conductor, start: Any
) -> None:
    go = threading.Event()

    @task
    def child() -> str:
        go.wait(20)
        return "mine"

    @task(max_attempts=1)
    def parent(ctx: Context) -> None:
        ctx.invoke("child", child, timeout=0.1)

    start(parent, child)
    with pytest.raises(ExecutionFailed, match="ChildTimedOut"):
        conductor.wait(conductor.invoke(parent), timeout=10)
    go.set()
    assert conductor.wait(by_task(conductor, "child").id, timeout=10) == "mine"


def test_children_in_another_queue_are_served_by_another_server(
    conductor: Conductor, start: Any
) -> None:
    @task(queue="elsewhere")
    def remote(n: int) -> int:
        return n + 1

    @task(max_attempts=1)
    def parent(ctx: Context) -> int:
        return ctx.invoke("far", remote, {"n": 1}) + int(ctx.invoke("by name", "remote", {"n": 2}))

    start(remote)
    start(parent)
    assert conductor.wait(conductor.invoke(parent), timeout=15) == 5


def test_a_started_child_is_the_same_after_a_retry(conductor: Conductor, start: Any) -> None:
    ids = []

    @task(retry=[0.01])
    def parent(ctx: Context) -> int:
        ids.append(ctx.start("child", double, {"n": 3}))
        if ctx.runs == 1:
            raise ValueError
        return int(ctx.wait("join", ids[-1]))

    start(parent, double)
    assert conductor.wait(conductor.invoke(parent), timeout=10) == 6
    assert len(set(ids)) == 1
    assert len(conductor.list(task="double")) == 1


def test_a_started_child_that_is_not_kept_is_still_joined(
    conductor: Conductor, start: Any, eventually: Any
) -> None:
    @task(retain_completed=0)
    def fleeting() -> str:
        return "gone"

    @task(max_attempts=1)
    def parent(ctx: Context) -> str:
        id = ctx.start("child", fleeting)
        ctx.step("ended", lambda: eventually(lambda: conductor.get(id) is None))
        return str(ctx.wait("join", id))

    start(parent, fleeting)
    assert conductor.wait(conductor.invoke(parent), timeout=20) == "gone"


def test_waiting_for_any_execution_and_for_none(conductor: Conductor, start: Any) -> None:
    @task(max_attempts=1)
    def parent(ctx: Context, other: UUID) -> int:
        return int(ctx.wait("other", other))

    start(parent, double)
    other = conductor.invoke(double, {"n": 5}, delay=0.3)
    assert conductor.wait(conductor.invoke(parent, {"other": other}), timeout=10) == 10
    assert conductor.wait(conductor.invoke(parent, {"other": other}), timeout=10) == 10
    with pytest.raises(ExecutionFailed, match="No execution has the id"):
        conductor.wait(conductor.invoke(parent, {"other": uuid4()}), timeout=10)


# ---------------------------------------------------------------- many


def test_many_children_run_at_the_same_time_and_come_back_in_order(
    conductor: Conductor, start: Any
) -> None:
    together = threading.Barrier(4)

    @task
    def meet(n: int) -> int:
        together.wait(20)
        return n * n

    @task(max_attempts=1)
    def parent(ctx: Context) -> list[int]:
        assert ctx.invoke_many("none", meet, []) == []
        return ctx.invoke_many("all", meet, [{"n": n} for n in range(3)] + [meet.bind(n=9)])

    start(parent, meet)
    id = conductor.invoke(parent)
    assert conductor.wait(id, timeout=20) == [0, 1, 4, 81]
    ended = conductor.get(id)
    assert ended is not None
    assert ended.runs == 2


def test_a_thousand_children(make: Any) -> None:
    @task(max_attempts=1)
    def parent(ctx: Context) -> int:
        return sum(ctx.invoke_many("all", double, [{"n": n} for n in range(1000)]))

    orchestrator = make(parent, double)
    id = orchestrator.conductor.invoke(parent)
    report = orchestrator.drain(100)
    assert (report.completed, report.failed, report.timed_out) == (1001, 0, False)
    assert orchestrator.conductor.wait(id, timeout=1) == 999_000


def test_the_first_that_fails_ends_the_wait(conductor: Conductor, start: Any, heard: Any) -> None:
    @task(max_attempts=1)
    def one(ctx: Context, n: int) -> int:
        if n == 1:
            raise LookupError(f"number {n}")
        ctx.sleep("long", 600)
        return n

    @task(max_attempts=1)
    def parent(ctx: Context) -> None:
        ctx.invoke_many("all", one, [{"n": n} for n in range(3)])

    start(parent, one)
    id = conductor.invoke(parent)
    with pytest.raises(ExecutionFailed, match=r"ChildFailed.*number 1"):
        conductor.wait(id, timeout=10)
    states = sorted(e.state for e in conductor.list(task="one") if e.parent_id == id)
    assert states == ["cancelled", "cancelled", "failed"]


def test_errors_stand_in_the_place_of_results_if_asked(conductor: Conductor, start: Any) -> None:
    @task(max_attempts=1)
    def one(n: int) -> int:
        if n == 1:
            raise LookupError("odd")
        return n

    @task(max_attempts=1)
    def parent(ctx: Context) -> list[str]:
        found = ctx.invoke_many("all", one, [{"n": n} for n in range(3)], return_exceptions=True)
        return [type(each).__name__ for each in found]

    start(parent, one)
    assert conductor.wait(conductor.invoke(parent), timeout=10) == ["int", "ChildFailed", "int"]


def test_an_async_parent(conductor: Conductor, start: Any) -> None:
    @task(max_attempts=1)
    async def parent(ctx: AsyncContext) -> int:
        one = await ctx.invoke("one", double, {"n": 1})
        many = await ctx.invoke_many("many", double, [{"n": n} for n in (2, 3)])
        ids = await asyncio.gather(*(ctx.start(f"s{n}", double, {"n": n}) for n in range(3)))
        return int(one) + sum(many) + int(await ctx.wait("last", ids[2]))

    start(parent, double)
    assert conductor.wait(conductor.invoke(parent), timeout=10) == 2 + 4 + 6 + 4


# ---------------------------------------------------------------- trees


def test_cancelling_a_parent_cancels_what_waits_below_at_any_depth(
    conductor: Conductor, start: Any, heard: Any, eventually: Any
) -> None:
    running, stopped = threading.Event(), []

    @task(max_attempts=1)
    def leaf(ctx: Context) -> None:
        running.set()
        stopped.append(ctx.signal.wait(30))
        ctx.checkpoint()

    @task(max_attempts=1)
    def node(ctx: Context, depth: int) -> None:
        ctx.start("free", double, {"n": depth})
        if depth:
            ctx.invoke("node", node, {"depth": depth - 1})
        else:
            ctx.invoke("leaf", leaf)

    start(node, leaf, double)
    id = conductor.invoke(node, {"depth": 30})
    assert running.wait(30)
    heard.wait("executions.suspended", 31)
    assert conductor.cancel(id, "enough of this")
    nodes = conductor.list(task="node")
    assert {e.state for e in nodes} == {State.CANCELLED}
    assert len(nodes) == 31
    with pytest.raises(ExecutionCancelled, match="its parent has ended"):
        conductor.wait(by_task(conductor, "leaf").id, timeout=10)
    assert stopped == [True]
    free = [State.COMPLETED] * 31
    eventually(lambda: [each.state for each in conductor.list(task="double")] == free)


def test_a_child_of_another_task_under_the_same_name_is_refused(
    conductor: Conductor, start: Any
) -> None:
    @task(max_attempts=2, retry=[0.01])
    def parent(ctx: Context) -> None:
        ctx.start("child", double if ctx.runs == 1 else broken, {"n": 1})
        raise ValueError

    start(parent, double, broken)
    with pytest.raises(ExecutionFailed, match=r"'child' stands for a started child \(double\)"):
        conductor.wait(conductor.invoke(parent), timeout=10)


@pytest.mark.parametrize("option", [{"id": uuid4()}, {"on_duplicate": "raise"}, {"nme": 1}])
def test_options_a_child_cannot_have_are_refused(
    conductor: Conductor, start: Any, option: dict[str, Any]
) -> None:
    @task(max_attempts=1)
    def parent(ctx: Context) -> None:
        ctx.invoke("child", double, {"n": 1}, **option)

    start(parent, double)
    with pytest.raises(ExecutionFailed, match="TypeError"):
        conductor.wait(conductor.invoke(parent), timeout=10)


def test_a_child_may_join_an_execution_that_has_its_dedupe_key(
    conductor: Conductor, start: Any
) -> None:
    @task(max_attempts=1)
    def parent(ctx: Context) -> int:
        return ctx.invoke("child", double, {"n": 7}, dedupe_key="one")

    start(parent, double)
    there = conductor.invoke(double, {"n": 4}, dedupe_key="one", delay=0.5)
    assert conductor.wait(conductor.invoke(parent), timeout=10) == 8
    assert [e.id for e in conductor.list(task="double")] == [there]


def test_a_cancelled_parent_may_be_retried_and_invokes_anew(
    conductor: Conductor, start: Any, heard: Any
) -> None:
    go = threading.Event()

    @task
    def child(ctx: Context) -> str:
        if not go.is_set():
            ctx.sleep("long", 600)
        return "at last"

    @task(max_attempts=1)
    def parent(ctx: Context) -> str:
        return ctx.invoke("child", child)

    start(parent, child)
    id = conductor.invoke(parent)
    heard.wait("executions.suspended", 2)
    assert conductor.cancel(id)
    go.set()
    assert conductor.retry(id)
    assert conductor.wait(id, timeout=10) == "at last"
    assert sorted(e.state for e in conductor.list(task="child")) == ["cancelled", "completed"]
