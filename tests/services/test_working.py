"""A worker in one process: running, failing, timing out, stopping."""

from __future__ import annotations

import asyncio
import sys
import threading
import time
from typing import Any

import pytest

from conductor_cli import (
    AsyncContext,
    Cancel,
    Conductor,
    Config,
    Context,
    ExecutionCancelled,
    ExecutionFailed,
    Fail,
    Retry,
    ShutdownTimeout,
    State,
    WorkerConfig,
    task,
)
from conductor_cli.sections import Coordinator


def test_an_invoked_task_runs_and_its_result_comes_back(conductor: Conductor, start: Any) -> None:
    @task
    def greet(name: str) -> str:
        return f"Hello, {name}!"

    start(greet)
    assert conductor.wait(conductor.invoke(greet, {"name": "Ada"}), greet, timeout=10) == (
        "Hello, Ada!"
    )


def test_what_was_invoked_before_the_start_runs(conductor: Conductor, start: Any) -> None:
    @task
    def early(n: int) -> int:
        return n * 2

    ids = conductor.invoke_many(early, [{"n": n} for n in range(50)])
    start(early)
    assert [conductor.wait(id, early, timeout=10) for id in ids] == [n * 2 for n in range(50)]


def test_async_tasks_run_at_the_same_time(conductor: Conductor, start: Any) -> None:
    together = asyncio.Barrier(5)

    @task
    async def meet(ctx: AsyncContext) -> int:
        await asyncio.wait_for(together.wait(), 10)
        return ctx.runs

    start(meet)
    ids = [conductor.invoke(meet) for _ in range(5)]
    assert [conductor.wait(id, meet, timeout=10) for id in ids] == [1] * 5


def test_a_failing_task_is_retried_and_then_fails_with_its_reason(
    conductor: Conductor, start: Any
) -> None:
    attempts = []

    @task(max_attempts=3, retry=[0.01])
    def flaky(ctx: Context) -> None:
        attempts.append(ctx.runs)
        raise ValueError(f"attempt {ctx.runs}")

    start(flaky)
    id = conductor.invoke(flaky)
    with pytest.raises(ExecutionFailed) as caught:
        conductor.wait(id, timeout=10)
    assert caught.value.error.type == "ValueError"
    assert caught.value.error.message == "attempt 3"
    assert "attempt {ctx.runs}" in (caught.value.error.traceback or "")
    assert attempts == [1, 2, 3]
    ended = conductor.get(id)
    assert ended is not None
    assert (ended.state, ended.runs, ended.failures, ended.crashes) == (State.FAILED, 3, 3, 0)


def test_a_snooze_is_no_failure(conductor: Conductor, start: Any) -> None:
    @task(max_attempts=1)
    def sleepy(ctx: Context) -> int:
        if ctx.runs < 4:
            raise Retry(0.01, counts=False)
        return ctx.runs

    start(sleepy)
    id = conductor.invoke(sleepy)
    assert conductor.wait(id, timeout=10) == 4
    ended = conductor.get(id)
    assert ended is not None
    assert ended.failures == 0


@pytest.mark.parametrize(
    ("error", "state"),
    [(Fail("enough"), "failed"), (Cancel("never mind"), "cancelled")],
    ids=["fail", "cancel"],
)
def test_a_task_ends_itself(conductor: Conductor, start: Any, error: Exception, state: str) -> None:
    @task(max_attempts=5)
    def deliberate() -> None:
        raise error

    start(deliberate)
    id = conductor.invoke(deliberate)
    with pytest.raises((ExecutionFailed, ExecutionCancelled), match=r"enough|never mind"):
        conductor.wait(id, timeout=10)
    ended = conductor.get(id)
    assert ended is not None
    assert (ended.state.value, ended.runs) == (state, 1)


class Cycle(list[Any]):
    pass


def _cycle() -> Any:
    it = Cycle()
    it.append(it)
    return it


class Mute(Exception):
    def __str__(self) -> str:
        raise RuntimeError("not even this")


def _raise(error: BaseException) -> Any:
    raise error


HOSTILE: dict[str, Any] = {
    "SystemExit": lambda: sys.exit(3),
    "KeyboardInterrupt": lambda: _raise(KeyboardInterrupt()),
    "BaseException": lambda: _raise(BaseException("odd")),
    "GeneratorExit": lambda: _raise(GeneratorExit()),
    "mute": lambda: _raise(Mute()),
    "nan": lambda: float("nan"),
    "nul": lambda: "a\0b",
    "nul message": lambda: _raise(ValueError("a\0b")),
    "surrogate": lambda: "\ud800",
    "surrogate message": lambda: _raise(ValueError("\ud800")),
    "cycle": _cycle,
    "object": object,
    "large": lambda: "x" * 20_000_000,
    "large message": lambda: _raise(ValueError("x" * 20_000_000)),
    "huge int": lambda: 10**400,
}


def test_nothing_a_task_does_stops_its_neighbours(conductor: Conductor, start: Any) -> None:
    @task(max_attempts=1)
    def hostile(kind: str) -> Any:
        return HOSTILE[kind]()

    @task
    def neighbour(n: int) -> int:
        return n

    bad = {kind: conductor.invoke(hostile, {"kind": kind}) for kind in HOSTILE}
    good = [conductor.invoke(neighbour, {"n": n}) for n in range(30)]
    orchestrator = start(hostile, neighbour, default_worker=WorkerConfig(concurrency=3))
    assert [conductor.wait(id, timeout=20) for id in good] == list(range(30))
    for kind, id in bad.items():
        if kind == "huge int":
            continue  # JSON has no limit of its own
        with pytest.raises(ExecutionFailed):
            conductor.wait(id, timeout=20)
    assert orchestrator.problems == []


def test_a_payload_that_does_not_fit_fails_at_once(conductor: Conductor, start: Any) -> None:
    @task(max_attempts=5)
    def strict(n: int) -> int:
        return n

    id = conductor.invoke("strict", {"n": "seven"}, queue="default")
    start(strict)
    with pytest.raises(ExecutionFailed, match=r"\$\.n"):
        conductor.wait(id, timeout=10)
    ended = conductor.get(id)
    assert ended is not None
    assert ended.runs == 1


def test_unknown_names_are_left_alone(conductor: Conductor, start: Any) -> None:
    @task
    def known() -> int:
        return 1

    orphan = conductor.invoke("nobody_serves_this", {}, queue="default")
    start(known)
    for _ in range(20):
        assert conductor.wait(conductor.invoke(known), timeout=10) == 1
    left = conductor.get(orphan)
    assert left is not None
    assert (left.state, left.runs) == (State.PENDING, 0)


def test_a_task_past_its_timeout_is_interrupted_and_fails_as_timed_out(
    conductor: Conductor, start: Any
) -> None:
    @task(timeout=0.2, max_attempts=1)
    def endless() -> None:
        while True:
            pass

    start(endless)
    began = time.monotonic()
    with pytest.raises(ExecutionFailed) as caught:
        conductor.wait(conductor.invoke(endless), timeout=20)
    assert caught.value.error.type == "TimeoutError"
    assert time.monotonic() - began < 8


def test_an_async_task_past_its_timeout_is_cancelled(conductor: Conductor, start: Any) -> None:
    @task(timeout=0.2, max_attempts=1)
    async def endless() -> None:
        await asyncio.sleep(60)

    start(endless)
    with pytest.raises(ExecutionFailed) as caught:
        conductor.wait(conductor.invoke(endless), timeout=20)
    assert caught.value.error.type == "TimeoutError"


def test_a_thread_that_ignores_its_timeout_is_replaced(
    conductor: Conductor, start: Any, heard: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("conductor_cli.worker.GRACE", 0.3)
    free = threading.Event()

    @task(max_attempts=1)
    def deaf(stuck: bool) -> str:
        while stuck:
            try:
                if free.wait(30):
                    return "late"
            except TimeoutError:
                continue
        return "fine"

    start(deaf, default_worker=WorkerConfig(concurrency=1))
    id = conductor.invoke(deaf, {"stuck": True}, timeout=0.2)
    heard.wait("worker.stuck")
    with pytest.raises(ExecutionFailed, match="did not stop"):
        conductor.wait(id, timeout=10)
    assert conductor.wait(conductor.invoke(deaf, {"stuck": False}), timeout=10) == "fine"
    free.set()


def test_cancelling_a_running_task_sets_its_signal_and_ends_it(
    conductor: Conductor, start: Any
) -> None:
    running = threading.Event()

    @task
    def patient(ctx: Context) -> str:
        running.set()
        ctx.signal.wait(30)
        ctx.checkpoint()
        return "went on"

    start(patient)
    id = conductor.invoke(patient)
    assert running.wait(10)
    assert conductor.cancel(id, "changed my mind")
    assert not conductor.cancel(id, "again")
    with pytest.raises(ExecutionCancelled, match="changed my mind"):
        conductor.wait(id, timeout=10)


def test_a_cancelled_task_that_returns_all_the_same_is_cancelled_and_its_result_dropped(
    conductor: Conductor, start: Any
) -> None:
    running, go_on = threading.Event(), threading.Event()

    @task
    def stubborn() -> str:
        running.set()
        assert go_on.wait(30)
        return "a result"

    start(stubborn)
    id = conductor.invoke(stubborn)
    assert running.wait(10)
    assert conductor.cancel(id, "too late")
    go_on.set()
    with pytest.raises(ExecutionCancelled, match="too late"):
        conductor.wait(id, timeout=10)
    ended = conductor.get(id)
    assert ended is not None
    assert ended.result is None


def test_a_cancelled_async_task_is_cancelled_at_its_await(conductor: Conductor, start: Any) -> None:
    running = threading.Event()

    @task
    async def waiting() -> None:
        running.set()
        await asyncio.sleep(60)

    start(waiting)
    id = conductor.invoke(waiting)
    assert running.wait(10)
    assert conductor.cancel(id)
    with pytest.raises(ExecutionCancelled):
        conductor.wait(id, timeout=10)


def test_stop_lets_a_task_finish_and_hands_back_what_has_not_started(
    conductor: Conductor, start: Any
) -> None:
    running, go_on = threading.Event(), threading.Event()

    @task
    def slow(n: int) -> int:
        running.set()
        assert go_on.wait(30)
        return n

    orchestrator = start(slow, default_worker=WorkerConfig(concurrency=1, fetch_batch_size=10))
    ids = conductor.invoke_many(slow, [{"n": n} for n in range(5)])
    assert running.wait(10)
    stopper = threading.Thread(target=orchestrator.stop)
    stopper.start()
    time.sleep(0.1)
    go_on.set()
    stopper.join(10)
    assert not stopper.is_alive()
    states = [conductor.get(id) for id in ids]
    assert [s.state for s in states if s] == [State.COMPLETED, *[State.PENDING] * 4]
    assert [s.runs for s in states if s] == [1, 0, 0, 0, 0]
    assert orchestrator.stopped.exception() is None


def test_what_still_runs_at_the_deadline_is_handed_back_and_its_late_result_refused(
    conductor: Conductor, make: Any, heard: Any, eventually: Any
) -> None:
    running, go_on = threading.Event(), threading.Event()

    @task
    def long(ctx: Context) -> str:
        running.set()
        assert go_on.wait(30)
        return "late"

    config = Config(coordinator=Coordinator(shutdown_timeout=3.0))
    orchestrator = make(long, config=config)
    orchestrator.start(signals=False)
    id = conductor.invoke(long)
    assert running.wait(10)
    began = time.monotonic()
    with pytest.raises(ShutdownTimeout):
        orchestrator.stop()
    assert time.monotonic() - began < 3.0
    left = conductor.get(id)
    assert left is not None
    assert (left.state, left.runs) == (State.PENDING, 0)
    go_on.set()
    orchestrator.start(signals=False)
    assert conductor.wait(id, timeout=10) == "late"
    ended = conductor.get(id)
    assert ended is not None
    assert ended.runs == 1


def test_a_task_at_a_checkpoint_is_handed_back_when_the_server_stops(
    conductor: Conductor, start: Any
) -> None:
    running = threading.Event()

    @task
    def cooperative(ctx: Context) -> None:
        running.set()
        while True:
            ctx.checkpoint()
            time.sleep(0.01)

    orchestrator = start(cooperative)
    id = conductor.invoke(cooperative)
    assert running.wait(10)
    orchestrator.stop()
    left = conductor.get(id)
    assert left is not None
    assert (left.state, left.runs, left.failures) == (State.PENDING, 0, 0)


def test_what_waits_behind_long_tasks_is_given_back(
    conductor: Conductor, start: Any, eventually: Any
) -> None:
    go_on = threading.Event()

    @task
    def long(n: int) -> int:
        assert go_on.wait(30)
        return n

    start(long, default_worker=WorkerConfig(concurrency=1, fetch_batch_size=5))
    ids = conductor.invoke_many(long, [{"n": n} for n in range(4)])
    taken = eventually(lambda: [e for e in map(conductor.get, ids) if e and e.runs])
    assert taken
    eventually(
        lambda: (
            sorted(e.state for e in map(conductor.get, ids) if e) == [*["pending"] * 3, "running"]
        ),
        what="the rest being given back",
    )
    go_on.set()
    assert [conductor.wait(id, timeout=15) for id in ids] == [0, 1, 2, 3]


def test_delayed_executions_start_at_their_moment(conductor: Conductor, start: Any) -> None:
    @task
    def when() -> float:
        return time.time()

    start(when)
    conductor.wait(conductor.invoke(when), timeout=10)  # the server is idle now
    asked = time.time()
    late = conductor.wait(conductor.invoke(when, delay=0.5), timeout=10)
    assert 0.45 <= late - asked < 3


def test_higher_priorities_run_first(conductor: Conductor, start: Any) -> None:
    order: list[int] = []

    @task
    def note(n: int) -> None:
        order.append(n)

    ids = [conductor.invoke(note, {"n": n}, priority=n) for n in (1, 3, 2, 3)]
    start(note, default_worker=WorkerConfig(concurrency=1))
    for id in ids:
        conductor.wait(id, timeout=10)
    assert order == [3, 3, 2, 1]


def test_ten_thousand_run_once_each(conductor: Conductor, start: Any, eventually: Any) -> None:
    seen: list[int] = []

    @task
    def mark(n: int) -> None:
        seen.append(n)

    start(mark)
    conductor.invoke_many(mark, [{"n": n} for n in range(10_000)])
    eventually(lambda: len(seen) >= 10_000, timeout=60)
    assert sorted(seen) == list(range(10_000))


def test_retention_zero_leaves_nothing(conductor: Conductor, start: Any, eventually: Any) -> None:
    @task(retain_completed=0)
    def gone() -> int:
        return 1

    start(gone)
    id = conductor.invoke(gone)
    eventually(lambda: conductor.get(id) is None)


def test_a_task_of_another_queue_is_served_there(conductor: Conductor, make: Any) -> None:
    @task
    def travelling() -> str:
        return "here"

    worker = conductor.create_worker(queue="elsewhere", tasks=[travelling], concurrency=2)
    make(workers=[worker]).start(signals=False)
    id = conductor.invoke(travelling, queue="elsewhere")
    assert conductor.wait(id, timeout=10) == "here"


def test_the_context_tells_what_it_should(conductor: Conductor, start: Any) -> None:
    @task
    def introspective(ctx: Context, n: int) -> dict[str, Any]:
        ctx.logger.info("hello", n=n)
        return {
            "id": str(ctx.execution_id),
            "attempt": ctx.runs,
            "metadata": dict(ctx.metadata),
            "event": ctx.event,
            "aborted": ctx.signal.aborted,
            "other": str(ctx.conductor.invoke(introspective_child)),
        }

    @task
    def introspective_child() -> None:
        return None

    start(introspective, introspective_child)
    id = conductor.invoke(introspective, {"n": 1}, metadata={"tenant": "a"})
    told = conductor.wait(id, timeout=10)
    assert told.pop("other")
    assert told == {
        "id": str(id), "attempt": 1, "metadata": {"tenant": "a"}, "event": None, "aborted": False,
    }  # fmt: skip


def test_waiting_inside_a_task_is_refused(conductor: Conductor, start: Any) -> None:
    @task(max_attempts=1)
    def impatient(ctx: Context) -> None:
        ctx.conductor.wait(ctx.execution_id)

    start(impatient)
    with pytest.raises(ExecutionFailed, match="would hold its thread"):
        conductor.wait(conductor.invoke(impatient), timeout=10)
