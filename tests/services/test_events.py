"""Events: emitted by anybody, waited for by executions, starting tasks."""

from __future__ import annotations

import threading
from typing import Any

import psycopg
import pytest

from conductor_cli import (
    AsyncContext,
    Conductor,
    Context,
    ExecutionFailed,
    State,
    TaskDefinitionError,
    between,
    exists,
    on_event,
    one_of,
    prefix,
    task,
)
from conductor_cli.filters import compiled


def waiting_task(**where: Any) -> Any:
    @task(max_attempts=1)
    def wait(ctx: Context) -> Any:
        return ctx.wait_for_event("it", "paid", where=where or None)

    return wait


def test_an_event_wakes_who_waits_and_gives_its_payload(
    conductor: Conductor, start: Any, heard: Any
) -> None:
    wait = waiting_task(id=7)
    start(wait)
    id = conductor.invoke(wait)
    heard.wait("executions.suspended")
    waits = conductor.get(id)
    assert waits is not None
    assert (waits.state, waits.run_at) == (State.WAITING, None)
    conductor.emit("paid", {"id": 8, "sum": 1})
    conductor.emit("other", {"id": 7})
    conductor.emit("paid", {"id": 7, "sum": 2})
    conductor.emit("paid", {"id": 7, "sum": 3})
    assert conductor.wait(id, timeout=10) == {"id": 7, "sum": 2}


def test_only_what_comes_after_the_registration_counts(
    conductor: Conductor, start: Any, heard: Any
) -> None:
    wait = waiting_task()
    conductor.emit("paid", {"early": True})
    start(wait)
    id = conductor.invoke(wait)
    heard.wait("executions.suspended")
    conductor.emit("paid", {"early": False})
    assert conductor.wait(id, timeout=10) == {"early": False}


def test_an_event_between_registering_and_waiting_is_not_missed(
    conductor: Conductor, start: Any
) -> None:
    @task(max_attempts=1)
    def ask(ctx: Context) -> Any:
        answer = ctx.subscribe("answer", "answered", where={"question": 1})
        ctx.step("ask", lambda: ctx.emit("answered", {"question": 1, "n": 42}) and None)
        return answer.wait(timeout=20)["n"]

    start(ask)
    assert conductor.wait(conductor.invoke(ask), timeout=15) == 42


def test_an_event_that_does_not_come_is_timed_out_for_good(
    conductor: Conductor, start: Any
) -> None:
    seen = []

    @task(retry=[0.01])
    def wait(ctx: Context) -> str:
        try:
            ctx.wait_for_event("it", "never", timeout=0.1)
        except TimeoutError as error:
            seen.append(getattr(error, "event", error))
        if len(seen) == 1:
            conductor.emit("never")
            raise ValueError
        return "timed out"

    start(wait)
    assert conductor.wait(conductor.invoke(wait), timeout=10) == "timed out"
    assert seen == ["never", "never"]


def test_a_registration_outlives_waits_that_time_out_and_hears_what_comes_between(
    conductor: Conductor, start: Any
) -> None:
    seen: list[list[str]] = []

    @task(retry=[0.01])
    def work(ctx: Context) -> str:
        told = []
        answer = ctx.subscribe("answer", "answered")
        for number in range(4):
            try:
                told.append(answer.wait(timeout=0.1)["n"])
            except TimeoutError:
                told.append("late")
                if number == 1:
                    ctx.step("say", lambda: ctx.emit("answered", {"n": "heard"}) and None)
                    ctx.sleep("until it is there", 0.3)
        seen.append(told)
        if len(seen) == 1:
            raise ValueError("once more")
        return told[2]

    start(work)

    assert conductor.wait(conductor.invoke(work), timeout=20) == "heard"
    assert seen == [["late", "late", "heard", "heard"]] * 2


def test_an_event_of_a_transaction_comes_with_its_commit(
    conductor: Conductor, start: Any, heard: Any
) -> None:
    wait = waiting_task()
    start(wait)
    id = conductor.invoke(wait)
    heard.wait("executions.suspended")
    with conductor.database.transaction() as conn:
        conductor.emit("paid", {"n": 1}, connection=conn)
        conductor.emit("paid", {"n": 2})
        heard.wait("events.dispatched")
    assert conductor.wait(id, timeout=10) == {"n": 2}


def test_emitted_from_sql(conductor: Conductor, start: Any, heard: Any) -> None:
    wait = waiting_task(n=1)
    start(wait)
    id = conductor.invoke(wait)
    heard.wait("executions.suspended")
    with conductor.database.transaction() as conn:
        conn.execute("select conductor.emit('paid', '{\"n\": 1}')")
    assert conductor.wait(id, timeout=10) == {"n": 1}


def test_an_event_of_which_nobody_knows_is_gone(conductor: Conductor, make: Any) -> None:
    orchestrator = make(waiting_task())
    conductor.emit("nothing")
    assert orchestrator.drain(20).timed_out is False
    with conductor.database.connection() as conn:
        assert conn.execute("select count(*) from conductor.events").fetchone() == (0,)


def test_many_wait_for_one_event(make: Any) -> None:
    wait = waiting_task(kind=one_of("a", "b"))
    orchestrator = make(wait)
    orchestrator.conductor.invoke_many(wait, [{}] * 100)
    assert orchestrator.drain(60).left_waiting == 100
    orchestrator.conductor.emit("paid", {"kind": "b"})
    assert orchestrator.drain(60).completed == 100


@pytest.mark.parametrize(
    ("where", "payload", "expected"),
    [
        ({"id": 7}, {"id": 7, "more": 1}, True),
        ({"id": 7}, {"id": 7.0}, True),
        ({"id": 7}, {"id": "7"}, False),
        ({"id": None}, {"id": None}, True),
        ({"id": None}, {}, False),
        ({"on": True}, {"on": True}, True),
        ({"on": True}, {"on": 1}, False),
        ({"tags": ["a"]}, {"tags": ["a"]}, True),
        ({"tags": ["a"]}, {"tags": ["a", "b"]}, False),
        ({"kind": one_of("a", "b")}, {"kind": "b"}, True),
        ({"kind": one_of("a", "b")}, {"kind": "c"}, False),
        ({"kind": one_of()}, {"kind": "c"}, False),
        ({"path": prefix("/x_")}, {"path": "/x_y"}, True),
        ({"path": prefix("/x_")}, {"path": "/xay"}, False),
        ({"path": prefix("5")}, {"path": 55}, False),
        ({"n": between(1, 5)}, {"n": 5}, True),
        ({"n": between(1, 5)}, {"n": 5.01}, False),
        ({"n": between(1, 5)}, {"n": "3"}, False),
        ({"n": between("a", "c")}, {"n": "b"}, True),
        ({"n": between("a", "c")}, {"n": "C"}, False),
        ({"k": exists()}, {"k": None}, True),
        ({"k": exists()}, {"j": 1}, False),
        ({}, [1, 2], True),
        ({"k": 1}, [1, 2], False),
        ({"a": 1, "b": exists(), "c": prefix("x")}, {"a": 1, "b": 2, "c": "xy"}, True),
        ({"a": 1, "b": exists(), "c": prefix("x")}, {"a": 1, "b": 2, "c": "y"}, False),
    ],
)
def test_filters(conductor: Conductor, where: Any, payload: Any, expected: bool) -> None:
    import json

    exact, tests = compiled(where)
    with conductor.database.transaction() as conn:
        row = conn.execute(
            "select conductor.fits(%s::jsonb, %s::jsonb, %s::jsonb)",
            [json.dumps(payload), exact, tests],
        ).fetchone()
    assert row == (expected,)


def test_what_is_no_filter_is_refused() -> None:
    for make in (
        lambda: between(1, "b"),
        lambda: between(True, False),
        lambda: prefix(5),  # type: ignore[arg-type]
        lambda: compiled({5: 1}),  # type: ignore[dict-item]
        lambda: compiled([1]),  # type: ignore[arg-type]
    ):
        with pytest.raises(TypeError):
            make()
    with pytest.raises(TaskDefinitionError, match="no event"):
        on_event("no event")


# ---------------------------------------------------------------- triggers


def test_an_event_starts_the_tasks_that_it_triggers(conductor: Conductor, start: Any) -> None:
    seen: list[Any] = []
    done = threading.Semaphore(0)

    @task(triggers=[on_event("user.created", where={"kind": "human"})], priority=3)
    def welcome(ctx: Context, name: str) -> None:
        assert ctx.event is not None
        seen.append((name, ctx.event.name, ctx.event.payload, ctx.event.scheduled_for))
        done.release()

    @task(triggers=[on_event("user.created", payload={"what": "x"}), on_event("user.gone")])
    def count(ctx: Context, what: str = "none") -> None:
        seen.append(what)
        done.release()

    start(welcome, count)
    payload = {"name": "Ada", "kind": "human", "more": 1}
    conductor.emit("user.created", payload)
    conductor.emit("user.created", {"kind": "robot"})
    conductor.emit("user.gone", {"name": "Ada"})
    for _ in range(4):
        assert done.acquire(timeout=15)
    assert sorted(each for each in seen if isinstance(each, str)) == ["none", "x", "x"]
    assert ("Ada", "user.created", payload, None) in seen


def test_a_trigger_whose_payload_does_not_fit_is_refused() -> None:
    with pytest.raises(TaskDefinitionError, match="cannot run it"):

        @task(triggers=[on_event("x", payload={"wrong": 1})])
        def never(right: int) -> None: ...


def test_an_event_that_cannot_be_dispatched_is_given_up_alone(
    conductor: Conductor, start: Any, heard: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("conductor_cli.maintenance.DISPATCH_TRIES", 1)
    seen: list[Any] = []
    done = threading.Semaphore(0)

    @task(triggers=[on_event("deep")])
    def each(payload: Any) -> None:
        seen.append(payload)
        done.release()

    depth = 20_000
    while True:  # as deep as this Postgres reads it: deeper than it writes it as text
        try:
            with conductor.database.transaction() as conn:
                conn.execute("select conductor.emit('deep', '1')")
                conn.execute(
                    "select conductor.emit('deep', (repeat('[', %s) || repeat(']', %s))::jsonb)",
                    [depth, depth],
                )
                for n in range(2, 31):
                    conn.execute("select conductor.emit('deep', to_jsonb(%s::int))", [n])
            break
        except psycopg.errors.StatementTooComplex:
            depth -= 100
    start(each)
    for _ in range(30):
        assert done.acquire(timeout=15)
    assert sorted(seen) == list(range(1, 31))
    assert heard.wait("event.dead")["name"] == "deep"
    assert heard.count("service.died") == 0
    with conductor.database.connection() as conn:
        row = conn.execute("select dead, failures, error from conductor.events").fetchone()
    assert row is not None
    assert row[:2] == (True, 1)
    assert "stack depth" in row[2]


def test_triggers_that_are_no_longer_named_are_removed(make: Any) -> None:
    @task(name="it", triggers=[on_event("x")])
    def first() -> None: ...

    @task(name="it")
    def second() -> None: ...

    before, after = make(first), make(second)
    before.drain(20)
    before.conductor.emit("x")
    assert before.drain(20).completed == 1
    after.drain(20)
    after.conductor.emit("x")
    assert after.drain(20).completed == 0


def test_an_async_task_waits_for_events(conductor: Conductor, start: Any, heard: Any) -> None:
    @task(max_attempts=1)
    async def wait(ctx: AsyncContext) -> Any:
        answer = await ctx.subscribe("a", "answered")
        await ctx.progress(1, 2, "asked")
        await ctx.emit("answered", {"n": 1})
        first = await answer.wait(timeout=20)
        second = await ctx.wait_for_event("b", "answered", where={"n": 2}, timeout=20)
        return [first["n"], second["n"]]

    start(wait)
    id = conductor.invoke(wait)
    with conductor.database.connection() as conn:
        row = None
        while row is None or row[0] is None:
            row = conn.execute("select about from conductor.ledger where name = 'b'").fetchone()
    conductor.emit("answered", {"n": 2})
    assert conductor.wait(id, timeout=15) == [1, 2]


def test_progress_is_seen_while_it_runs_and_afterwards(
    conductor: Conductor, start: Any, eventually: Any
) -> None:
    go = threading.Event()

    @task(max_attempts=1)
    def work(ctx: Context) -> None:
        ctx.progress(1, total=3, message="one")
        go.wait(20)
        ctx.progress(2, total=3)
        ctx.progress(3, total=3, data={"last": True})

    start(work)
    id = conductor.invoke(work)
    seen = eventually(lambda: (e := conductor.get(id)) and e.progress)
    assert seen == {"done": 1, "total": 3, "message": "one"}
    go.set()
    conductor.wait(id, timeout=10)
    ended = conductor.get(id)
    assert ended is not None
    assert ended.progress == {"done": 3, "total": 3, "data": {"last": True}}


def test_a_wrong_wait_is_refused(conductor: Conductor, start: Any) -> None:
    @task(max_attempts=1)
    def wait(ctx: Context) -> None:
        ctx.wait_for_event("it", "x", where={"n": object()})

    start(wait)
    with pytest.raises(ExecutionFailed, match="cannot be stored as JSON"):
        conductor.wait(conductor.invoke(wait), timeout=10)


@pytest.mark.parametrize("way", ["wait_for_event", "subscribe"])
def test_an_event_that_emit_refuses_cannot_be_waited_for(
    conductor: Conductor, start: Any, way: str
) -> None:
    @task(max_attempts=1)
    def wait(ctx: Context) -> None:
        getattr(ctx, way)("it", "no such name!")

    start(wait)
    with pytest.raises(ExecutionFailed, match="is not the name of an event"):
        conductor.wait(conductor.invoke(wait), timeout=10)


def test_a_payload_of_none_is_null_and_none_given_is_an_empty_object(
    conductor: Conductor, start: Any
) -> None:
    @task(max_attempts=1)
    def both(ctx: Context) -> Any:
        null, empty = ctx.subscribe("a", "null"), ctx.subscribe("b", "empty")
        ctx.emit("null", None)
        ctx.emit("empty")
        return [null.wait(timeout=20), empty.wait(timeout=20)]

    start(both)
    assert conductor.wait(conductor.invoke(both), timeout=15) == [None, {}]
