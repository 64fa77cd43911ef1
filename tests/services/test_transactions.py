"""A task's own writes and its completion, or a step's and its record: both or neither."""

from __future__ import annotations

from typing import Any

import psycopg
import pytest

from conductor_cli import (
    AsyncContext,
    Conductor,
    Context,
    ExecutionCancelled,
    ExecutionFailed,
    Step,
    task,
)
from conductor_cli.store import endings, ledger


@pytest.fixture(autouse=True)
def _table(conductor: Conductor) -> None:
    with conductor.database.transaction() as conn:
        conn.execute("create table paid (n int, constraint once unique (n) deferrable)")


def paid(conductor: Conductor) -> list[int]:
    with conductor.database.connection() as conn:
        return sorted(n for (n,) in conn.execute("select n from paid").fetchall())


def pay(conn: Any, n: int) -> int:
    conn.execute("insert into paid values (%s)", [n])
    return n


def test_the_writes_of_a_task_come_with_its_completion(conductor: Conductor, start: Any) -> None:
    seen = []

    @task(max_attempts=2, retry=[0.01])
    def work(ctx: Context) -> str:
        conn = ctx.transaction()
        assert isinstance(conn, psycopg.Connection)
        assert ctx.transaction() is conn
        with conn:
            pay(conn, ctx.runs)
        seen.append(paid(conductor))
        if ctx.runs == 1:
            raise ValueError
        return "done"

    start(work)
    id = conductor.invoke(work)
    assert conductor.wait(id, timeout=10) == "done"
    assert (seen, paid(conductor)) == ([[], []], [2])


def test_the_statements_of_a_task_are_planned_as_everywhere(
    conductor: Conductor, start: Any
) -> None:
    seen = []

    @task
    def work(ctx: Context) -> None:
        row = ctx.transaction().execute(
            "select current_setting('enable_seqscan'), current_setting('jit') = reset_val"
            " from pg_settings where name = 'jit'"
        )
        seen.append(row.fetchone())

    start(work)
    conductor.wait(conductor.invoke(work), timeout=10)
    assert seen == [("on", True)]
    with conductor.database.connection() as conn:
        mine = conn.execute("select current_setting('enable_seqscan'), current_setting('jit')")
        assert mine.fetchone() == ("off", "off")


def test_what_ends_them_is_planned_as_all_of_ours(
    conductor: Conductor, start: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its plan is kept for longer than the transaction."""
    seen = []

    def watch(module: Any, name: str) -> None:
        real = getattr(module, name)

        def watched(conn: Any, *args: Any, **named: Any) -> Any:
            seen.append((name, *conn.execute("show enable_seqscan").fetchone()))
            return real(conn, *args, **named)

        monkeypatch.setattr(module, name, watched)

    watch(ledger, "record")
    watch(endings, "complete")

    @task
    def work(ctx: Context) -> int:
        ctx.transact("first", pay, 1)
        return pay(ctx.transaction(), 2)

    start(work)
    assert conductor.wait(conductor.invoke(work), timeout=10) == 2
    assert seen == [("record", "off"), ("complete", "off")]


def test_they_count_for_a_drain_and_wake_a_parent(make: Any, conductor: Conductor) -> None:
    @task(retain_completed=0)
    def child(ctx: Context) -> int:
        return pay(ctx.transaction(), 5)

    @task
    def parent(ctx: Context) -> int:
        return ctx.invoke("child", child)

    orchestrator = make(child, parent)
    id = orchestrator.conductor.invoke(parent)
    report = orchestrator.drain(30)
    assert (report.completed, report.failed) == (2, 0)
    assert orchestrator.conductor.wait(id, timeout=1) == 5
    assert paid(conductor) == [5]


@pytest.mark.parametrize("way", ["commit", "rollback", "close"])
def test_the_task_cannot_end_the_transaction(conductor: Conductor, start: Any, way: str) -> None:
    @task(max_attempts=1)
    def work(ctx: Context) -> None:
        conn = ctx.transaction()
        pay(conn, 1)
        getattr(conn, way)()

    start(work)
    with pytest.raises(ExecutionFailed, match="StepError"):
        conductor.wait(conductor.invoke(work), timeout=10)
    assert paid(conductor) == []


def test_a_commit_that_is_refused_fails_the_attempt(conductor: Conductor, start: Any) -> None:
    @task(max_attempts=1)
    def work(ctx: Context) -> None:
        conn = ctx.transaction()
        conn.execute("set constraints all deferred")
        pay(conn, 1)
        pay(conn, 1)

    start(work)
    with pytest.raises(ExecutionFailed, match="UniqueViolation"):
        conductor.wait(conductor.invoke(work), timeout=10)
    assert paid(conductor) == []


def test_a_cancel_that_comes_first_undoes_them(conductor: Conductor, start: Any) -> None:
    @task(max_attempts=1)
    def work(ctx: Context) -> None:
        pay(ctx.transaction(), 1)
        assert conductor.cancel(ctx.execution_id, "too late")

    start(work)
    with pytest.raises(ExecutionCancelled, match="too late"):
        conductor.wait(conductor.invoke(work), timeout=10)
    assert paid(conductor) == []


def test_a_stale_attempt_commits_nothing(conductor: Conductor, start: Any, heard: Any) -> None:
    @task(max_attempts=1)
    def work(ctx: Context) -> int:
        pay(ctx.transaction(), ctx.runs)
        if ctx.runs == 1:
            with conductor.database.transaction() as conn:  # as a rescue does
                conn.execute(
                    "update conductor.live set state = 'r', owner = null, token = null, "
                    "run_at = conductor.now()"
                )
        return ctx.runs

    start(work)
    assert conductor.wait(conductor.invoke(work), timeout=10) == 2
    assert paid(conductor) == [2]
    heard.wait("executions.stale")


def test_waiting_inside_a_transaction_is_refused(conductor: Conductor, start: Any) -> None:
    @task(max_attempts=1)
    def work(ctx: Context) -> None:
        ctx.transaction()
        ctx.sleep("nap", 1)

    start(work)
    with pytest.raises(ExecutionFailed, match=r"after transaction\(\)"):
        conductor.wait(conductor.invoke(work), timeout=10)


def test_the_writes_of_a_step_come_with_its_record(conductor: Conductor, start: Any) -> None:
    @task(max_attempts=3, retry=[0.01])
    def work(ctx: Context) -> int:
        n = ctx.transact("pay", pay, 7)
        if ctx.runs == 1:
            raise ValueError("after the step")
        return n

    start(work)
    assert conductor.wait(conductor.invoke(work), timeout=10) == 7
    assert paid(conductor) == [7]


def test_a_step_that_fails_has_written_nothing(conductor: Conductor, start: Any) -> None:
    tries = []

    def fail_first(conn: Any) -> int:
        tries.append(1)
        pay(conn, len(tries))
        if len(tries) < 3:
            raise ValueError
        return len(tries)

    @task(max_attempts=1)
    def work(ctx: Context) -> int:
        return ctx.transact(Step("pay", max_attempts=3, retry=[0.01]), fail_first)

    start(work)
    assert conductor.wait(conductor.invoke(work), timeout=10) == 3
    assert paid(conductor) == [3]


def test_a_stale_step_writes_nothing(conductor: Conductor, start: Any) -> None:
    def steal(conn: Any, attempt: int) -> int:
        if attempt == 1:
            with conductor.database.transaction() as other:
                other.execute(
                    "update conductor.live set state = 'r', owner = null, token = null, "
                    "run_at = conductor.now()"
                )
        return pay(conn, attempt)

    @task(max_attempts=1)
    def work(ctx: Context) -> int:
        return ctx.transact("pay", steal, ctx.runs)

    start(work)
    assert conductor.wait(conductor.invoke(work), timeout=10) == 2
    assert paid(conductor) == [2]


def test_an_async_task_has_both(conductor: Conductor, start: Any) -> None:
    @task(max_attempts=1)
    async def work(ctx: AsyncContext) -> int:
        first = await ctx.transact("pay", pay, 1)
        conn = await ctx.transaction()
        return first + pay(conn, 2)

    start(work)
    assert conductor.wait(conductor.invoke(work), timeout=10) == 3
    assert paid(conductor) == [1, 2]
