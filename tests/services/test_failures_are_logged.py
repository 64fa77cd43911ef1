"""Each failure is a record of stdlib logging, with its exception: what error trackers listen to."""

from __future__ import annotations

import logging
import threading
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

import pytest

from conductor_cli import (
    Cancel,
    Conductor,
    ExecutionCancelled,
    ExecutionFailed,
    Fail,
    Retry,
    WorkerConfig,
    task,
    telemetry,
)

if TYPE_CHECKING:
    from collections.abc import Iterator


class Tracker(logging.Handler):
    """What an error tracker hears."""

    def __init__(self) -> None:
        super().__init__()
        self.records: list[logging.LogRecord] = []
        self.tenants: list[str] = []
        self.raises: BaseException | None = None
        self.go_on = threading.Event()
        self.go_on.set()
        self.called = threading.Event()

    def emit(self, record: logging.LogRecord) -> None:
        self.called.set()
        self.go_on.wait(30)
        self.records.append(record)
        self.tenants.append(tenant.get())
        if self.raises is not None:
            raise self.raises

    @property
    def told(self) -> list[tuple[str, str]]:
        assert telemetry.flush(10)
        return [(record.levelname, record.getMessage()) for record in self.records]


tenant: ContextVar[str] = ContextVar("tenant", default="nobody")


@pytest.fixture
def tracker() -> Iterator[Tracker]:
    made = Tracker()
    log = logging.getLogger("conductor.task")
    log.addHandler(made)
    yield made
    made.go_on.set()
    log.removeHandler(made)


def test_a_retried_failure_is_a_warning_and_the_final_one_an_error(
    conductor: Conductor, start: Any, tracker: Tracker
) -> None:
    @task(max_attempts=2, retry=[0.01], queue="mails")
    def broken() -> None:
        raise ValueError("no\nway")

    start(broken)
    id = conductor.invoke(broken)
    with pytest.raises(ExecutionFailed):
        conductor.wait(id, timeout=20)
    assert tracker.told == [
        ("WARNING", r"Task broken failed and is retried: ValueError: no\nway"),
        ("ERROR", r"Task broken failed: ValueError: no\nway"),
    ]
    for number, record in enumerate(tracker.records, 1):
        fields = vars(record)
        assert (fields["task"], fields["queue"], fields["execution"], fields["attempt"]) == (
            "broken", "mails", str(id), number,
        )  # fmt: skip
        assert record.name == "conductor.task"
        assert record.exc_info is not None
        kind, error, trace = record.exc_info
        assert kind is ValueError
        assert str(error) == "no\nway"
        frames = []
        while trace is not None:
            frames.append(trace.tb_frame.f_code.co_name)
            trace = trace.tb_next
        assert frames[-1] == "broken"
    assert vars(tracker.records[0])["delay"] == pytest.approx(0.01)
    assert vars(tracker.records[1])["delay"] is None


def test_every_way_to_fail_is_told_and_nothing_else(
    conductor: Conductor, start: Any, tracker: Tracker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("conductor_cli.worker.GRACE", 0.2)
    free = threading.Event()

    @task
    def fails() -> None:
        raise Fail("for good")

    @task
    def misfit(n: int) -> int:
        return n

    @task
    def unstorable() -> Any:
        return object()

    @task(max_attempts=1)
    async def awaited() -> None:
        raise SystemExit(3)

    @task(max_attempts=1, timeout=0.1)
    def deaf() -> None:
        while not free.is_set():
            try:
                free.wait(20)
            except BaseException:
                continue

    snoozes = []

    @task
    def snoozed() -> None:
        snoozes.append(1)
        if len(snoozes) == 1:
            raise Retry(0.01, counts=False)

    @task
    def cancelled() -> None:
        raise Cancel("enough")

    @task
    def fine() -> None:
        return

    bad = [fails, misfit, unstorable, awaited, deaf]
    start(*bad, snoozed, cancelled, fine, default_worker=WorkerConfig(concurrency=3))
    ids = [conductor.invoke("misfit", {"n": "x"}, queue="default") if each is misfit
           else conductor.invoke(each) for each in bad]  # fmt: skip
    for id in ids:
        with pytest.raises(ExecutionFailed):
            conductor.wait(id, timeout=20)
    for each in (snoozed, fine):
        conductor.wait(conductor.invoke(each), timeout=20)
    with pytest.raises(ExecutionCancelled):
        conductor.wait(conductor.invoke(cancelled), timeout=20)
    free.set()
    levels = {level for level, _ in tracker.told}
    assert levels == {"ERROR"}
    assert sorted(vars(record)["task"] for record in tracker.records) == sorted(
        each.name for each in bad
    )
    assert all(record.exc_info for record in tracker.records)


def test_a_handler_sees_the_context_of_the_task(
    conductor: Conductor, start: Any, tracker: Tracker
) -> None:
    @task(max_attempts=1)
    def plain() -> None:
        tenant.set("acme")
        raise ValueError

    @task(max_attempts=1)
    async def coroutine() -> None:
        tenant.set("emca")
        raise ValueError

    start(plain, coroutine)
    for each in (plain, coroutine):
        with pytest.raises(ExecutionFailed):
            conductor.wait(conductor.invoke(each), timeout=20)
    assert len(tracker.told) == 2
    assert tracker.tenants == ["acme", "emca"]


def test_a_handler_that_blocks_holds_up_nobody(
    conductor: Conductor, start: Any, tracker: Tracker
) -> None:
    """Neither those that fail after it nor the heartbeat, which would lose the server's work."""

    @task(max_attempts=1)
    def broken(n: int) -> None:
        raise ValueError(str(n))

    @task
    def fine(n: int) -> int:
        return n

    server = start(broken, fine, default_worker=WorkerConfig(concurrency=2))
    tracker.go_on.clear()
    ids = conductor.invoke_many(broken, [{"n": n} for n in range(1500)])
    assert tracker.called.wait(20)
    assert conductor.wait(conductor.invoke(fine, {"n": 1}, delay=2), fine, timeout=30) == 1
    with pytest.raises(ExecutionFailed):
        conductor.wait(ids[-1], timeout=30)
    assert server.job_coordinator.problems == []
    tracker.go_on.set()
    assert 1000 <= len(tracker.told) <= 1002  # what would not be bounded is lost, and counted


def test_a_handler_that_raises_keeps_no_later_failure_from_being_heard(
    conductor: Conductor, start: Any, tracker: Tracker
) -> None:
    @task(max_attempts=1)
    def broken() -> None:
        raise ValueError

    start(broken)
    tracker.raises = SystemExit(3)
    for _ in range(2):
        with pytest.raises(ExecutionFailed):
            conductor.wait(conductor.invoke(broken), timeout=20)
    assert len(tracker.told) == 2
