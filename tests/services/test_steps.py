"""Steps: what is recorded never runs again, and nothing else is taken for it."""

from __future__ import annotations

import asyncio
import threading
import time
from datetime import datetime
from typing import Any
from uuid import UUID

import pytest

from conductor_cli import (
    AsyncContext,
    Backoff,
    Conductor,
    Context,
    ExecutionFailed,
    Fail,
    Retry,
    Step,
    WorkerConfig,
    task,
)


class ShipError(Exception):
    """Raised in a step, and again from its record."""


def ledger(conductor: Conductor, id: UUID) -> list[tuple[str, str, Any]]:
    """Its rows while it lives, as (name, state, value)."""
    with conductor.database.connection() as conn:
        return conn.execute(
            "select name, state::text, value from conductor.ledger where execution_id = %s "
            "order by seq",
            [id],
        ).fetchall()


def story(conductor: Conductor, id: UUID) -> Any:
    """What history keeps of it."""
    with conductor.database.connection() as conn:
        row = conn.execute("select story from conductor.history where id = %s", [id]).fetchone()
    assert row is not None
    return row[0]


def test_a_recorded_step_does_not_run_again(conductor: Conductor, start: Any) -> None:
    ran: list[str] = []

    def note(what: str) -> str:
        ran.append(what)
        return what.upper()

    @task(retry=[0.01], max_attempts=3)
    def work(ctx: Context) -> list[str]:
        first = ctx.step("first", note, "one")
        if ctx.runs == 1:
            raise ValueError("once")
        return [first, ctx.step("second", note, what="two")]

    start(work)
    id = conductor.invoke(work)
    assert conductor.wait(id, work, timeout=10) == ["ONE", "TWO"]
    assert ran == ["one", "two"]
    told = story(conductor, id)
    assert [(r["name"], r["state"], r["value"]) for r in told["ledger"]] == [
        ("first", "c", "ONE"),
        ("second", "c", "TWO"),
    ]
    assert [(r["run"], r["kind"], r["error"]["message"]) for r in told["attempts"]] == [
        (1, "f", "once")
    ]
    assert ledger(conductor, id) == []


@pytest.mark.parametrize("value", [None, 0, "", False, [], {}])
def test_results_that_are_falsy_survive(conductor: Conductor, start: Any, value: Any) -> None:
    ran = []

    @task(retry=[0.01])
    def work(ctx: Context) -> Any:
        found = ctx.step("value", lambda: ran.append(1) or value)
        if ctx.runs == 1:
            raise ValueError
        return [found]

    start(work)
    assert conductor.wait(conductor.invoke(work), timeout=10) == [value]
    assert ran == [1]


def test_a_result_is_what_a_replay_gives_the_first_time_too(
    conductor: Conductor, start: Any
) -> None:
    seen = []

    def moment() -> datetime:
        return datetime.fromisoformat("2026-03-01T12:00:00+00:00")

    def plain() -> Any:
        return (1, 2)

    @task(retry=[0.01])
    def work(ctx: Context) -> None:
        seen.append((ctx.step("moment", moment), ctx.step("plain", plain)))
        if ctx.runs == 1:
            raise ValueError

    start(work)
    conductor.wait(conductor.invoke(work), timeout=10)
    assert seen == [(moment(), [1, 2])] * 2


def test_one_name_twice_says_what_to_do(conductor: Conductor, start: Any) -> None:
    @task(max_attempts=1)
    def work(ctx: Context) -> None:
        for _ in range(2):
            ctx.step("send", int)

    start(work)
    with pytest.raises(ExecutionFailed, match=r"'send' is used twice.*index") as caught:
        conductor.wait(conductor.invoke(work), timeout=10)
    assert caught.value.error.type == "StepError"


def test_a_step_that_raises_fails_the_attempt_and_runs_again(
    conductor: Conductor, start: Any
) -> None:
    ran = []

    def charge(attempt: int) -> int:
        ran.append(attempt)
        if attempt < 3:
            raise ShipError(f"no {attempt}")
        return attempt

    @task(retry=[0.01], max_attempts=3)
    def work(ctx: Context) -> int:
        return ctx.step("charge", charge, ctx.runs)

    start(work)
    assert conductor.wait(conductor.invoke(work), timeout=10) == 3
    assert ran == [1, 2, 3]


def test_a_failure_that_the_task_survived_stays_one(conductor: Conductor, start: Any) -> None:
    ran = []

    def ship() -> None:
        ran.append("ship")
        raise ShipError("out of stock")

    def refund() -> str:
        ran.append("refund")
        return "refunded"

    @task(retry=[0.01])
    def order(ctx: Context) -> str:
        try:
            ctx.step("ship", ship)
        except ShipError as error:
            ran.append(str(error))
            done = ctx.step("refund", refund)
        if ctx.runs == 1:
            raise ValueError("after the refund")
        return done

    start(order)
    assert conductor.wait(conductor.invoke(order), timeout=10) == "refunded"
    assert ran == ["ship", "out of stock", "refund", "out of stock"]


def test_a_step_is_retried_by_itself_and_the_thread_is_left(
    conductor: Conductor, start: Any, heard: Any
) -> None:
    ran = []

    def flaky() -> int:
        ran.append(threading.get_ident())
        if len(ran) < 3:
            raise OSError("again")
        return len(ran)

    @task(max_attempts=1)
    def work(ctx: Context) -> int:
        return ctx.step(Step("flaky", max_attempts=3, retry=[0.02, Backoff(0.02).delay(1)]), flaky)

    start(work)
    id = conductor.invoke(work)
    assert conductor.wait(id, timeout=10) == 3
    ended = conductor.get(id)
    assert ended is not None
    assert (ended.runs, ended.failures) == (3, 0)
    assert heard.count("executions.suspended") == 2


def test_a_step_out_of_tries_raises_its_error_and_counts_anew(
    conductor: Conductor, start: Any
) -> None:
    ran = []

    def broken() -> None:
        ran.append(1)
        raise OSError("never")

    @task(max_attempts=2, retry=[0.01])
    def work(ctx: Context) -> None:
        ctx.step(Step("broken", max_attempts=2, retry=[0.01]), broken)

    start(work)
    with pytest.raises(ExecutionFailed, match="never"):
        conductor.wait(conductor.invoke(work), timeout=10)
    assert len(ran) == 4


@pytest.mark.parametrize("error", [Fail("enough"), Retry(0.01)], ids=["fail", "retry"])
def test_what_ends_a_task_is_not_retried_by_its_step(
    conductor: Conductor, start: Any, error: Exception
) -> None:
    ran = []

    def stop() -> None:
        ran.append(1)
        if len(ran) == 1:
            raise error

    @task(max_attempts=2)
    def work(ctx: Context) -> int:
        ctx.step(Step("stop", max_attempts=9, retry=[0]), stop)
        return ctx.runs

    start(work)
    id = conductor.invoke(work)
    if isinstance(error, Fail):
        with pytest.raises(ExecutionFailed, match="enough"):
            conductor.wait(id, timeout=10)
    else:
        assert conductor.wait(id, timeout=10) == 2


# ---------------------------------------------------------------- code that has changed


def changing(
    conductor: Conductor, start: Any, first: Any, then: Any, *, max_attempts: int = 2
) -> Any:
    """An execution whose code is ``first`` in its first attempt, which fails, and ``then``."""

    @task(max_attempts=max_attempts, retry=[0.01])
    def work(ctx: Context) -> Any:
        if ctx.runs == 1:
            first(ctx)
            raise ValueError("before the deploy")
        return then(ctx)

    start(work)
    return conductor.wait(conductor.invoke(work), timeout=10)


def test_a_renamed_step_is_not_run_a_second_time(conductor: Conductor, start: Any) -> None:
    ran = []
    with pytest.raises(ExecutionFailed, match=r"recorded a step 'charge'.*'charge-card' is new"):
        changing(
            conductor,
            start,
            lambda ctx: ctx.step("charge", int),
            lambda ctx: ctx.step("charge-card", ran.append, 1),
        )
    assert ran == []


def test_a_removed_step_is_told_at_the_end(conductor: Conductor, start: Any) -> None:
    with pytest.raises(ExecutionFailed, match=r"recorded a step 'gone'.*has returned"):
        changing(conductor, start, lambda ctx: ctx.step("gone", int), lambda ctx: None)


def test_a_step_that_has_become_something_else_is_refused(conductor: Conductor, start: Any) -> None:
    with pytest.raises(ExecutionFailed, match=r"'it' stands for a step .*now for a sleep"):
        changing(conductor, start, lambda ctx: ctx.step("it", int), lambda ctx: ctx.sleep("it", 1))


def test_a_recorded_value_that_no_longer_fits_is_refused(conductor: Conductor, start: Any) -> None:
    def number() -> int:
        return 1

    with pytest.raises(ExecutionFailed, match=r"Step 'it'.*does not fit"):
        changing(
            conductor, start, lambda ctx: ctx.step("it", lambda: "text"),
            lambda ctx: ctx.step("it", number),
        )  # fmt: skip


def test_recorded_steps_may_be_asked_for_in_another_order(conductor: Conductor, start: Any) -> None:
    def both(names: str) -> Any:
        return lambda ctx: [ctx.step(name, str, name) for name in names]

    assert changing(conductor, start, both("ab"), both("ba")) == ["b", "a"]


# ---------------------------------------------------------------- async, threads, nesting


def test_async_steps_run_at_the_same_time_and_are_remembered(
    conductor: Conductor, start: Any
) -> None:
    ran = []

    async def fetch(n: int) -> int:
        ran.append(n)
        await asyncio.sleep(0)
        return n * 10

    def plain(n: int) -> int:
        assert threading.current_thread().name != "async"
        return n

    @task(retry=[0.01])
    async def work(ctx: AsyncContext) -> list[int]:
        found = await asyncio.gather(*(ctx.step(f"fetch-{n}", fetch, n) for n in range(5)))
        last = await ctx.step("plain", plain, 7)
        if ctx.runs == 1:
            raise ValueError
        return [*found, last]

    start(work)
    assert conductor.wait(conductor.invoke(work), work, timeout=10) == [0, 10, 20, 30, 40, 7]
    assert sorted(ran) == [0, 1, 2, 3, 4]


def test_a_step_inside_a_step_is_refused(conductor: Conductor, start: Any) -> None:
    @task(max_attempts=1)
    def work(ctx: Context) -> None:
        ctx.step("outer", lambda: ctx.step("inner", int))

    start(work)
    with pytest.raises(ExecutionFailed, match="Step 'inner' is inside the step 'outer'"):
        conductor.wait(conductor.invoke(work), timeout=10)


def test_ten_threads_in_steps_share_the_pool(database_url: str, make: Any) -> None:
    @task(max_attempts=1)
    def work(ctx: Context, n: int) -> int:
        return sum(ctx.step(f"s{i}", int, n) for i in range(20))

    orchestrator = make(work)
    ids = orchestrator.conductor.invoke_many(work, [{"n": n} for n in range(50)])
    report = orchestrator.drain(60)
    assert (report.completed, report.failed) == (50, 0)
    assert orchestrator.conductor.wait(ids[3], timeout=1) == 60


def test_a_task_without_steps_leaves_nothing_behind(conductor: Conductor, start: Any) -> None:
    @task
    def plain(ctx: Context) -> int:
        return ctx.runs

    start(plain)
    id = conductor.invoke(plain)
    assert conductor.wait(id, timeout=10) == 1
    assert story(conductor, id) is None


# ---------------------------------------------------------------- losing the claim


def test_a_stale_attempt_records_nothing_and_is_ended(
    conductor: Conductor, start: Any, heard: Any
) -> None:
    taken, ran = threading.Event(), []

    def slow() -> str:
        ran.append("slow")
        if len(ran) == 1:
            with conductor.database.transaction() as conn:  # as a rescue does
                conn.execute(
                    "update conductor.live set state = 'r', owner = null, token = null, "
                    "run_at = conductor.now()"
                )
            taken.set()
        return f"run {len(ran)}"

    @task(max_attempts=1)
    def work(ctx: Context) -> str:
        value = ctx.step("slow", slow)
        return ctx.step("after", str, value)

    start(work)
    id = conductor.invoke(work)
    assert conductor.wait(id, timeout=10) == "run 2"
    assert ran == ["slow", "slow"]
    heard.wait("executions.stale")


def test_a_step_save_whose_reply_was_lost_is_not_made_twice(
    conductor: Conductor, start: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    import psycopg

    from conductor_cli.store import ledger as store

    real, lost, ran = store.record, [], []

    def lossy(conn: Any, *args: Any, **options: Any) -> Any:
        done = real(conn, *args, **options)
        if not lost:
            lost.append(1)
            conn.close()
            raise psycopg.OperationalError("the connection is gone")
        return done

    monkeypatch.setattr(store, "record", lossy)

    @task(max_attempts=1)
    def work(ctx: Context) -> list[int]:
        return [ctx.step("a", lambda: ran.append(1) or len(ran)), ctx.step("b", int, 5)]

    start(work)
    assert conductor.wait(conductor.invoke(work), timeout=15) == [1, 5]
    assert (ran, lost) == ([1], [1])


def test_a_timeout_during_a_step_fails_the_attempt_and_keeps_what_is_recorded(
    conductor: Conductor, start: Any
) -> None:
    ran = []

    def stuck() -> None:
        ran.append("stuck")
        until = time.monotonic() + 20
        while len(ran) == 2 and time.monotonic() < until:
            time.sleep(0.01)

    @task(max_attempts=2, retry=[0.01], timeout=0.3)
    def work(ctx: Context) -> int:
        ctx.step("first", ran.append, "first")
        ctx.step(Step("stuck", max_attempts=5, retry=[0]), stuck)
        return ctx.runs

    start(work)
    assert conductor.wait(conductor.invoke(work), timeout=20) == 2
    assert ran == ["first", "stuck", "stuck"]


def test_a_wrong_name_or_retry_is_refused_at_once() -> None:
    with pytest.raises(ValueError, match="max_attempts=0"):
        Step("x", max_attempts=0)
    with pytest.raises(Exception, match="retry"):
        Step("x", retry=[])


def test_the_pool_has_room_for_all_threads_of_a_server(make: Any) -> None:
    @task
    def work(ctx: Context) -> int:
        return ctx.step("one", int)

    orchestrator = make(work, default_worker=WorkerConfig(concurrency=25))
    assert orchestrator.drain(20).failed == 0
    assert orchestrator.conductor.database._size == 29


def test_a_task_runs_without_a_queue_as_far_as_it_can(tmp_path: Any) -> None:
    import json
    import subprocess
    import sys

    (tmp_path / "conductor.toml").write_text('[tasks]\nmodules = ["work"]\n')
    (tmp_path / "work.py").write_text(
        "from conductor_cli import Context, Step, task\n"
        "@task\n"
        "def steps(ctx: Context) -> list:\n"
        "    tries = []\n"
        "    def flaky():\n"
        "        tries.append(1)\n"
        "        if len(tries) < 2: raise ValueError\n"
        "        return len(tries)\n"
        "    ctx.sleep('nap', 0.01)\n"
        "    ctx.progress(1)\n"
        "    return [ctx.step('one', int, 1), ctx.step(Step('two', 3, [0.01]), flaky)]\n"
        "@task\n"
        "def child(ctx: Context) -> None:\n"
        "    ctx.wait_for_event('it', 'never')\n"
    )

    def run(name: str) -> Any:
        return subprocess.run(
            (sys.executable, "-m", "conductor_cli", "run", name),
            cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip

    assert json.loads(run("steps").stdout) == [1, 2]
    failed = run("child")
    assert (failed.returncode, "needs a queue" in failed.stderr) == (1, True), failed.stderr
