"""Failures that stand, StepErrors that stick, and what reaches a task by order of the system."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import gc
import threading
import time
import weakref
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from uuid import UUID

import pytest

from conductor_cli import (
    AsyncContext,
    Conductor,
    Context,
    Execution,
    ExecutionCancelled,
    ExecutionFailed,
    Step,
    StepError,
    StepTimedOut,
    TaskTimeout,
    TimedOut,
    task,
)
from conductor_cli.errors import Cancelling, Suspension


def at_rest(conductor: Conductor, id: UUID) -> Execution | None:
    """The execution once it has run and waits for its next run."""
    found = conductor.get(id)
    return found if found and found.state == "pending" and found.runs else None


def broken() -> None:
    raise OSError("no answer")


def failed(conductor: Conductor, start: Any, work: Any, **options: Any) -> Any:
    """The execution of a task that ends failed."""
    start(work)
    id = conductor.invoke(work)
    with pytest.raises(ExecutionFailed):
        conductor.wait(id, timeout=options.get("timeout", 15))
    return conductor.get(id)


# ---------------------------------------------------------------- what stands


def test_a_run_that_ends_by_what_stands_ends_the_execution_and_says_what_helps(
    conductor: Conductor, start: Any
) -> None:
    ran = []

    @task(max_attempts=5, retry=[0])
    def work(ctx: Context) -> None:
        try:
            ctx.step("charge", broken)
        finally:
            ctx.step("unlock", ran.append, 1)

    ended = failed(conductor, start, work)
    assert (ended.attempt, ended.failures, ran) == (1, 1, [1])
    assert ended.error.type == "OSError"
    assert ended.error.message.startswith("no answer\n")
    for part in ("'charge'", "'unlock'", "Step('charge', max_attempts=...)", "retry with restart"):
        assert part in ended.error.message


def test_an_error_that_is_open_is_retried_by_the_tasks_policy(
    conductor: Conductor, start: Any
) -> None:
    tries = []

    def flaky() -> int:
        tries.append(1)
        if len(tries) < 3:
            raise OSError("for a moment")
        return len(tries)

    @task(max_attempts=5, retry=[0])
    def work(ctx: Context) -> int:
        ctx.step("before", int)
        return ctx.step("flaky", flaky)

    start(work)
    assert conductor.wait(conductor.invoke(work), timeout=10) == 3


# ---------------------------------------------------------------- what sticks


def test_a_step_error_sticks_whatever_the_code_does_with_it(
    conductor: Conductor, start: Any
) -> None:
    ran = []

    @task(max_attempts=1)
    def work(ctx: Context) -> str:
        ctx.step("a", int)
        for _ in range(3):
            with contextlib.suppress(Exception):
                ctx.step("a", ran.append, "again")
        with contextlib.suppress(Exception):
            ctx.step("b", ran.append, "b")
        with contextlib.suppress(Exception):
            ctx.emit("it")
        return "fine"

    ended = failed(conductor, start, work)
    assert (ended.error.type, ran) == ("StepError", [])


def test_a_suspension_turned_into_another_error_is_a_step_error(
    conductor: Conductor, start: Any
) -> None:
    @task(max_attempts=3, retry=[0.01])
    def work(ctx: Context) -> None:
        try:
            ctx.sleep("a month", 2_600_000)
        except BaseException as error:
            raise RuntimeError("order failed") from error

    ended = failed(conductor, start, work)
    assert (ended.error.type, ended.attempt) == ("StepError", 1)
    assert "'a month'" in ended.error.message
    assert "Suspension" in ended.error.message


def test_a_step_renamed_beside_others_is_named_at_the_end(conductor: Conductor, start: Any) -> None:
    ran = []

    @task(max_attempts=2, retry=[0])
    async def work(ctx: AsyncContext) -> None:
        last = "c" if ctx.attempt == 1 else "renamed"
        await asyncio.gather(*(ctx.step(name, ran.append, name) for name in ("a", "b", last)))
        if ctx.attempt == 1:
            raise ValueError("before the deploy")

    ended = failed(conductor, start, work)
    assert ended.error.type == "StepError"
    assert "recorded a step 'c'" in ended.error.message


def test_a_result_that_cannot_be_stored_ends_the_execution_after_one_effect(
    conductor: Conductor, start: Any
) -> None:
    ran = []

    @task(max_attempts=3, retry=[0])
    def work(ctx: Context) -> None:
        for name in ("a", "b"):
            with contextlib.suppress(Exception):
                ctx.step(name, lambda name=name: ran.append(name) or object())

    ended = failed(conductor, start, work)
    assert (ended.error.type, ended.failures, ran) == ("PayloadError", 1, ["a"])


# ---------------------------------------------------------------- after the end


def test_the_late_finally_of_a_generator_does_nothing(conductor: Conductor, start: Any) -> None:
    ran, refused = [], []

    @task(max_attempts=1)
    def work(ctx: Context) -> str:
        def each() -> Iterator[int]:
            try:
                yield 1
            finally:
                try:
                    ctx.step("late", ran.append, 1)
                except StepError as error:
                    refused.append(str(error))

        found = each()
        next(found)
        return "returned"

    start(work)
    assert conductor.wait(conductor.invoke(work), timeout=10) == "returned"
    assert ran == []
    assert "The task has ended" in refused[0]


def test_a_thread_that_is_left_behind_is_awaited_and_can_do_nothing_new(
    conductor: Conductor, start: Any, eventually: Any
) -> None:
    ran, refused, inside = [], [], threading.Event()

    def slow() -> str:
        inside.set()
        time.sleep(0.2)
        ran.append("slow")
        return "slow"

    @task(max_attempts=1)
    def work(ctx: Context) -> str:
        def beside() -> None:
            ctx.step("slow", slow)
            try:
                ctx.step("next", ran.append, "next")
            except StepError as error:
                refused.append(str(error))

        threading.Thread(target=beside).start()
        assert inside.wait(5)
        return "returned"

    start(work)
    id = conductor.invoke(work)
    assert conductor.wait(id, timeout=10) == "returned"
    eventually(lambda: refused)
    assert ran == ["slow"]


def test_a_branch_inside_a_step_is_let_finish_and_the_others_are_cancelled(
    conductor: Conductor, start: Any
) -> None:
    ran = []

    @task(max_attempts=1)
    async def work(ctx: AsyncContext) -> str:
        inside = asyncio.Event()

        async def slow() -> None:
            inside.set()
            await asyncio.sleep(0.2)
            ran.append("slow")

        async def beside() -> None:
            await ctx.step("slow", slow)
            with contextlib.suppress(StepError):
                await ctx.step("next", ran.append, "next")

        async def idle() -> None:
            try:
                await asyncio.sleep(60)
            except asyncio.CancelledError:
                ran.append("idle cancelled")
                raise

        work.kept = [asyncio.create_task(beside()), asyncio.create_task(idle())]
        await inside.wait()
        return "returned"

    start(work)
    began = time.monotonic()
    assert conductor.wait(conductor.invoke(work), timeout=10) == "returned"
    assert sorted(ran) == ["idle cancelled", "slow"]
    assert time.monotonic() - began < 5


# ---------------------------------------------------------------- by order of the system


def test_a_cancel_reaches_the_code_again_at_each_call_and_runs_no_step(
    conductor: Conductor, start: Any, eventually: Any
) -> None:
    met, ran, inside = [], [], threading.Event()

    @task(max_attempts=3)
    def work(ctx: Context) -> None:
        inside.set()
        try:
            while True:
                time.sleep(0.01)
                with contextlib.suppress(Exception):
                    ctx.checkpoint()
        except BaseException as error:
            met.append(type(error))
            for call in (
                lambda: ctx.step("refund", ran.append, 1), lambda: ctx.emit("it"),
                lambda: ctx.sleep("nap", 1), lambda: ctx.progress(1),
            ):  # fmt: skip
                try:
                    call()
                except BaseException as again:
                    met.append(type(again))
            raise

    start(work)
    id = conductor.invoke(work)
    assert inside.wait(10)
    conductor.cancel(id, "enough")
    with pytest.raises(ExecutionCancelled, match="enough"):
        conductor.wait(id, timeout=10)
    assert met == [Cancelling] * 5
    assert not issubclass(Cancelling, Exception)
    assert ran == []


def test_a_plain_step_in_progress_ends_and_is_recorded_when_its_execution_is_cancelled(
    conductor: Conductor, start: Any
) -> None:
    inside, recorded = threading.Event(), []

    def slow() -> str:
        inside.set()
        time.sleep(0.5)
        return "done"

    @task(max_attempts=1)
    async def work(ctx: AsyncContext) -> None:
        try:
            await ctx.step("slow", slow)
        finally:
            with conductor.database.connection() as conn:
                recorded.extend(
                    conn.execute("select name, state::text from conductor.ledger").fetchall()
                )

    start(work)
    id = conductor.invoke(work)
    assert inside.wait(10)
    conductor.cancel(id)
    with pytest.raises(ExecutionCancelled):
        conductor.wait(id, timeout=10)
    assert recorded == [("slow", "c")]


@pytest.mark.parametrize("shield", [False, True])
def test_an_async_step_is_cut_off_by_a_cancel_unless_it_is_shielded(
    conductor: Conductor, start: Any, shield: bool
) -> None:
    inside, ran, recorded = threading.Event(), [], []

    async def slow() -> str:
        inside.set()
        await asyncio.sleep(0.5)
        ran.append("slow")
        return "done"

    @task(max_attempts=1)
    async def work(ctx: AsyncContext) -> None:
        try:
            await ctx.step(Step("slow", shield=shield), slow)
        finally:
            with conductor.database.connection() as conn:
                recorded.extend(
                    conn.execute("select name, state::text from conductor.ledger").fetchall()
                )

    start(work)
    id = conductor.invoke(work)
    assert inside.wait(10)
    conductor.cancel(id)
    with pytest.raises(ExecutionCancelled):
        conductor.wait(id, timeout=10)
    assert (ran, recorded) == ((["slow"], [("slow", "c")]) if shield else ([], []))


def test_a_timeout_is_no_exception_and_no_outcome_of_a_step(
    conductor: Conductor, start: Any
) -> None:
    seen = []

    def slow() -> None:
        until = time.monotonic() + 20
        while time.monotonic() < until:
            time.sleep(0.01)

    @task(max_attempts=2, retry=[0], timeout=0.3)
    def work(ctx: Context) -> str:
        if ctx.attempt == 1:
            with contextlib.suppress(Exception):
                ctx.step("slow", slow)
        seen.append(ctx.attempt)
        return str(ctx.step("slow", str, "quick"))

    start(work)
    assert conductor.wait(conductor.invoke(work), timeout=20) == "quick"
    assert seen == [2]
    assert issubclass(TaskTimeout, Suspension)
    assert not issubclass(TaskTimeout, Exception)


# ---------------------------------------------------------------- timeouts of steps


@pytest.mark.parametrize("blocks", [False, True], ids=["looks up", "blocks in C"])
def test_a_plain_step_with_a_timeout_raises_step_timed_out_and_costs_nothing_again(
    conductor: Conductor, start: Any, blocks: bool
) -> None:
    ran, took = [], []

    def slow() -> None:
        ran.append(1)
        if blocks:
            time.sleep(3)
        for _ in range(300):
            time.sleep(0.01)

    @task(max_attempts=2, retry=[0])
    def work(ctx: Context) -> str:
        began = time.monotonic()
        try:
            ctx.step(Step("slow", timeout=0.2), slow)
        except StepTimedOut as error:
            took.append(time.monotonic() - began)
            ctx.step("then", int)
            if ctx.attempt == 1:
                raise ValueError("once more") from None
            return str(error)
        return "in time"

    start(work)
    assert issubclass(StepTimedOut, TimedOut)
    assert issubclass(TimedOut, TimeoutError)
    assert "'slow'" in conductor.wait(conductor.invoke(work), timeout=15)
    assert ran == [1]
    assert 0.2 <= took[0] < 2.5
    assert took[1] < 0.2


def test_a_transaction_with_a_timeout_ends_its_statement(conductor: Conductor, start: Any) -> None:
    @task(max_attempts=1)
    def work(ctx: Context) -> str:
        began = time.monotonic()
        try:
            ctx.transact(Step("slow", timeout=0.2), lambda conn: conn.execute("select pg_sleep(8)"))
        except StepTimedOut:
            assert time.monotonic() - began < 4
            return str(ctx.step("then", str, "went on"))
        return "in time"

    start(work)
    assert conductor.wait(conductor.invoke(work), timeout=15) == "went on"


def test_a_step_that_an_earlier_run_cut_off_and_nothing_cuts_off_now_is_a_step_error(
    conductor: Conductor, start: Any
) -> None:
    ran = []

    async def slow() -> None:
        ran.append(1)
        await asyncio.sleep(30)

    @task(max_attempts=2, retry=[0])
    async def work(ctx: AsyncContext) -> None:
        limit = 0.1 if ctx.attempt == 1 else None
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(limit):
                await ctx.step("slow", slow)
        await ctx.step("then", int)
        raise ValueError("before the deploy")

    ended = failed(conductor, start, work, timeout=25)
    assert (ended.error.type, ran) == ("StepError", [1])
    assert "Step(name, timeout=...)" in ended.error.message


# ---------------------------------------------------------------- progress


def test_progress_told_last_is_written_before_a_suspension_and_before_a_retry(
    conductor: Conductor, start: Any, eventually: Any
) -> None:
    @task(max_attempts=2, retry=[60])
    def sleeps(ctx: Context) -> None:
        ctx.progress(1)
        ctx.progress(2)
        ctx.sleep("nap", 60)

    @task(max_attempts=2, retry=[60])
    def fails(ctx: Context) -> None:
        ctx.progress(1)
        ctx.progress(2)
        raise ValueError("later")

    start(sleeps, fails)
    for work in (sleeps, fails):
        id = conductor.invoke(work)
        found = eventually(lambda made=id: at_rest(conductor, made))
        assert found.progress == {"done": 2}


def test_the_context_tells_attempt_and_run(conductor: Conductor, start: Any) -> None:
    @task(max_attempts=4, retry=[0])
    def work(ctx: Context) -> list[int]:
        first = ctx.step("first", lambda: [ctx.attempt, ctx.max_attempts, ctx.runs])
        ctx.sleep("nap", 0.01)
        second = ctx.step("second", lambda: [ctx.attempt, ctx.max_attempts, ctx.runs])
        if ctx.attempt == 1:
            raise ValueError
        return [*first, *second, ctx.attempt, ctx.max_attempts, ctx.runs]

    start(work)
    id = conductor.invoke(work)
    assert conductor.wait(id, timeout=10) == [1, 4, 1, 1, 4, 2, 2, 4, 3]
    ended = conductor.get(id)
    assert ended is not None
    assert (ended.attempt, ended.runs, ended.failures) == (2, 3, 1)


def test_a_replay_is_not_cut_off_by_a_slow_database(
    conductor: Conductor, start: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A step that is recorded returns at once: a timeout around it cannot come first."""
    from conductor_cli.store import ledger as store

    real, ran = store.load, []

    def slow(*args: Any) -> Any:
        time.sleep(0.4)
        return real(*args)

    monkeypatch.setattr(store, "load", slow)

    @task(max_attempts=2, retry=[0])
    async def work(ctx: AsyncContext) -> str:
        try:
            async with asyncio.timeout(0.3):
                await ctx.step("quick", ran.append, 1)
        except TimeoutError:
            return "cut off"
        if ctx.attempt == 1:
            raise ValueError
        return "in time"

    start(work)
    assert conductor.wait(conductor.invoke(work), timeout=15) == "in time"
    assert ran == [1]


def test_a_pool_with_many_pieces_of_work_keeps_no_frame_of_those_done(
    conductor: Conductor, start: Any
) -> None:
    @task(max_attempts=1)
    def work(ctx: Context) -> int:
        with ThreadPoolExecutor(2) as pool:
            list(pool.map(lambda i: ctx.step(f"s-{i}", int, i), range(400)))
        lines = ctx._attempt.lines
        assert lines is not None
        return len(lines._threads)

    start(work)
    assert conductor.wait(conductor.invoke(work), timeout=30) <= 130


def test_an_asyncio_task_with_a_context_of_its_own_outlives_the_task(
    conductor: Conductor, start: Any
) -> None:
    kept: list[Any] = []

    @task(max_attempts=1)
    async def work(ctx: AsyncContext) -> str:
        if not kept:
            kept.append(asyncio.create_task(asyncio.sleep(60), context=contextvars.Context()))
        return "done" if not kept[0].done() else "cancelled"

    start(work)
    for _ in range(2):
        assert conductor.wait(conductor.invoke(work), timeout=10) == "done"
    kept[0].get_loop().call_soon_threadsafe(kept[0].cancel)


def test_what_has_ended_keeps_no_exception(conductor: Conductor, start: Any) -> None:
    class Large:
        pass

    kept: list[Any] = []

    def fails() -> None:
        large = Large()
        kept.append(weakref.ref(large))
        raise OSError("no")

    @task(max_attempts=1)
    def work(ctx: Context) -> str:
        with contextlib.suppress(OSError):
            ctx.step("a", fails)
        return str(ctx.step("b", str, "done"))

    start(work)
    assert conductor.wait(conductor.invoke(work), timeout=10) == "done"
    gc.collect()
    assert kept[0]() is None
