"""Leaving the thread: sleeps, and what must not swallow them."""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from conductor_cli import (
    AsyncContext,
    Conductor,
    Context,
    ExecutionCancelled,
    ExecutionFailed,
    State,
    WorkerConfig,
    task,
)


def test_a_sleep_leaves_the_thread_and_goes_on_when_it_is_over(
    conductor: Conductor, start: Any, eventually: Any
) -> None:
    moments: list[float] = []

    @task(max_attempts=1)
    def nap(ctx: Context) -> int:
        moments.append(time.monotonic())
        ctx.sleep("nap", 0.5)
        moments.append(time.monotonic())
        ctx.sleep("again", timedelta(milliseconds=20))
        return ctx.runs

    orchestrator = start(nap)
    id = conductor.invoke(nap)
    asleep = eventually(lambda: (e := conductor.get(id)) and e.run_at and e.runs == 1 and e)
    assert conductor.wait(id, timeout=10) == 3
    ended = conductor.get(id)
    assert ended is not None
    assert (ended.runs, ended.failures) == (3, 0)
    slept = moments[-1] - moments[0]
    assert 0.5 <= slept < 5
    assert asleep.state in (State.PENDING, State.RUNNING)
    assert orchestrator.info.is_running


def test_sleeping_executions_hold_no_thread(conductor: Conductor, start: Any) -> None:
    @task(max_attempts=1)
    def nap(ctx: Context) -> None:
        ctx.sleep("nap", 600)

    @task
    def quick() -> str:
        return "here"

    start(nap, quick, default_worker=WorkerConfig(concurrency=1))
    ids = conductor.invoke_many(nap, [{}] * 20)
    assert conductor.wait(conductor.invoke(quick), timeout=10) == "here"
    assert all(conductor.cancel(id, "enough") for id in ids if conductor.get(id))


def test_it_sleeps_until_a_moment_and_the_past_is_over(conductor: Conductor, start: Any) -> None:
    @task(max_attempts=1)
    def wait(ctx: Context) -> int:
        ctx.sleep_until("past", datetime(2020, 1, 1, tzinfo=UTC))
        ctx.sleep_until("soon", datetime.now(UTC) + timedelta(seconds=0.3))
        return ctx.runs

    start(wait)
    assert conductor.wait(conductor.invoke(wait), timeout=10) == 3


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda ctx: ctx.sleep("x", -1), "0 or more"),
        (lambda ctx: ctx.sleep("x", 4e9), "century"),
        (lambda ctx: ctx.sleep_until("x", datetime(2030, 1, 1)), "time zone"),
        (lambda ctx: ctx.sleep("", 1), "is not a name"),
        (lambda ctx: ctx.sleep(5, 1), "5 is not a name"),
    ],
)
def test_what_is_no_sleep_is_refused(
    conductor: Conductor, start: Any, call: Any, text: str
) -> None:
    @task(max_attempts=1)
    def work(ctx: Context) -> None:
        call(ctx)

    start(work)
    with pytest.raises(ExecutionFailed, match=text):
        conductor.wait(conductor.invoke(work), timeout=10)


def test_a_swallowed_suspension_fails_clearly(conductor: Conductor, start: Any) -> None:
    ran = []

    @task(max_attempts=3, retry=[0.01])
    def work(ctx: Context) -> str:
        ran.append(1)
        with suppress(BaseException):
            ctx.sleep("nap", 0.01)
        return "went on"

    start(work)
    with pytest.raises(ExecutionFailed, match=r"suspended at 'nap'.*catches BaseException"):
        conductor.wait(conductor.invoke(work), timeout=10)
    assert ran == [1]


def test_finally_runs_at_each_suspension_and_no_step_in_it(
    conductor: Conductor, start: Any
) -> None:
    ran = []

    @task(max_attempts=1)
    def work(ctx: Context) -> int:
        try:
            ctx.sleep("nap", 0.01)
        finally:
            ran.append("finally")
            ctx.step("cleanup", ran.append, "cleanup")
        return ctx.runs

    start(work)
    assert conductor.wait(conductor.invoke(work), timeout=10) == 2
    assert ran == ["finally", "finally", "cleanup"]


def test_suspending_inside_gather_is_refused(conductor: Conductor, start: Any) -> None:
    @task(max_attempts=1)
    async def work(ctx: AsyncContext) -> None:
        await asyncio.gather(ctx.sleep("a", 1), ctx.sleep("b", 1))

    start(work)
    with pytest.raises(ExecutionFailed, match="inside gather") as caught:
        conductor.wait(conductor.invoke(work), timeout=10)
    assert caught.value.error.type == "StepError"


def test_an_async_task_sleeps_too(conductor: Conductor, start: Any) -> None:
    @task(max_attempts=1)
    async def work(ctx: AsyncContext) -> int:
        first = await ctx.step("attempt", lambda: ctx.runs)
        async with asyncio.timeout(10):
            await ctx.sleep("nap", 0.05)
        return first * 10 + ctx.runs

    start(work)
    assert conductor.wait(conductor.invoke(work), timeout=10) == 12


def test_a_sleeping_execution_is_cancelled_at_once(
    conductor: Conductor, start: Any, heard: Any
) -> None:
    @task(max_attempts=1)
    def nap(ctx: Context) -> None:
        ctx.sleep("nap", 600)

    start(nap)
    id = conductor.invoke(nap)
    heard.wait("executions.suspended")
    assert conductor.cancel(id, "never mind")
    ended = conductor.get(id)
    assert ended is not None
    assert ended.state is State.CANCELLED
    with pytest.raises(ExecutionCancelled, match="never mind"):
        conductor.wait(id, timeout=1)


def test_a_cancel_while_it_suspends_is_not_lost(
    conductor: Conductor, start: Any, heard: Any
) -> None:
    @task(max_attempts=1)
    def nap(ctx: Context) -> None:
        assert conductor.cancel(ctx.execution_id, "from inside")
        ctx.sleep("nap", 600)

    start(nap)
    id = conductor.invoke(nap)
    with pytest.raises(ExecutionCancelled, match="from inside"):
        conductor.wait(id, timeout=10)


def test_an_operator_retries_and_the_steps_are_kept(conductor: Conductor, start: Any) -> None:
    ran: list[str] = []

    @task(max_attempts=1)
    def work(ctx: Context) -> str:
        ctx.step("paid", ran.append, "paid")
        if "broken" not in ran:
            ctx.step("broken", ran.append, "broken")
            raise ValueError("mend me")
        ctx.step("broken", ran.append, "broken")
        return "done"

    start(work)
    id = conductor.invoke(work)
    with pytest.raises(ExecutionFailed, match="mend me"):
        conductor.wait(id, timeout=10)
    assert conductor.retry(id)
    assert conductor.wait(id, timeout=10) == "done"
    assert ran == ["paid", "broken"]


def test_a_drain_waits_for_sleeps_only_if_asked(make: Any) -> None:
    @task(max_attempts=1)
    def nap(ctx: Context) -> None:
        ctx.sleep("nap", 0.5)

    orchestrator = make(nap)
    orchestrator.conductor.invoke(nap)
    report = orchestrator.drain(30)
    assert (report.completed, report.left_scheduled, report.left_retrying) in [(0, 1, 0), (1, 0, 0)]
    report = orchestrator.drain(30, wait_until_empty=True)
    assert (report.left_scheduled, report.timed_out) == (0, False)


def test_retry_now_hastens_steps_but_not_sleeps(make: Any) -> None:
    tries: list[int] = []

    @task(max_attempts=3, retry=[500])
    def nap(ctx: Context) -> None:
        tries.append(ctx.runs)
        if len(tries) == 1:
            raise ValueError("first")
        ctx.sleep("nap", 600)

    orchestrator = make(nap)
    orchestrator.conductor.invoke(nap)
    report = orchestrator.drain(30, retry_now=True)
    assert (report.left_scheduled, report.left_retrying, report.timed_out) == (1, 0, False)
    assert tries == [1, 2]
