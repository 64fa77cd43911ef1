"""Schedules that are made, changed and removed while programs run."""

from __future__ import annotations

import threading
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import pytest

from conductor_cli import (
    AsyncContext,
    Conductor,
    ConductorError,
    Context,
    PayloadError,
    TaskDefinitionError,
    UnknownTask,
    cron,
    scheduling,
    task,
)
from conductor_cli.store import schedules

if TYPE_CHECKING:
    from conductor_cli.store.schedules import ScheduleReport
    from tests.support.clock import Clock

EVERY_SECOND = "* * * * * *"
YEARLY = "0 0 1 1 *"


@task
def note(what: str = "nothing") -> str:
    return what


@task(invocable=False, triggers=[cron(YEARLY, name="declared")])
def declares() -> None: ...


def stored(conductor: Conductor, name: str | None = None) -> list[ScheduleReport]:
    with conductor.database.connection() as conn:
        return schedules.listed(conn, name=name)


def test_a_schedule_ticks_with_its_payload_until_it_is_removed(
    conductor: Conductor, start: Any, heard: Any, eventually: Any
) -> None:
    start(note)
    heard.wait("leadership.gained")
    assert conductor.schedule(note, "often", EVERY_SECOND, {"what": "tick"})
    made = eventually(lambda: conductor.list(task=note, state="completed", limit=2)[1:])
    assert made[0].result == "tick"
    assert conductor.unschedule(note, "often")
    assert not conductor.unschedule(note, "often")
    assert stored(conductor) == []


def test_the_same_again_changes_nothing_and_an_edit_replaces_the_chain(
    conductor: Conductor, clock: Clock
) -> None:
    clock.stop(datetime(2031, 5, 4, 12, tzinfo=UTC))
    assert conductor.schedule(note, "s", "0 9 * * *", {"what": "a"})
    assert not conductor.schedule(note, "s", "0 9 * * *", {"what": "a"})
    assert stored(conductor)[0].next_at == datetime(2031, 5, 5, 9, tzinfo=UTC)
    assert conductor.schedule(note, "s", "0 10 * * *", {"what": "b"}, timezone="Europe/Berlin")
    (only,) = stored(conductor)
    assert (only.expression, only.timezone) == ("0 10 * * *", "Europe/Berlin")
    assert (only.payload, only.declared) == ({"what": "b"}, False)
    assert only.next_at == datetime(2031, 5, 5, 8, tzinfo=UTC)


def test_it_survives_a_start_that_does_not_know_of_it(conductor: Conductor, start: Any) -> None:
    conductor.schedule(note, "mine", YEARLY)
    conductor.schedule(declares, "mine", YEARLY)
    for _ in range(2):
        start(note, declares).stop()
        names = [(each.task, each.name, each.declared) for each in stored(conductor)]
        assert names == [
            ("declares", "declared", True), ("declares", "mine", False), ("note", "mine", False)
        ]  # fmt: skip


def test_the_name_of_a_declared_one_is_taken(conductor: Conductor, start: Any) -> None:
    start(declares)
    with pytest.raises(ConductorError, match="'declared' of task 'declares' is declared"):
        conductor.schedule(declares, "declared", "0 0 * * *")
    assert stored(conductor)[0].expression == YEARLY


def test_a_declaration_takes_over_what_was_made_at_run_time(
    conductor: Conductor, start: Any
) -> None:
    conductor.schedule(declares, "declared", "0 0 * * *")
    start(declares)
    (only,) = stored(conductor)
    assert (only.expression, only.declared) == (YEARLY, True)


def test_it_follows_its_task_into_another_queue(conductor: Conductor, start: Any) -> None:
    start(note).stop()
    conductor.schedule("note", "mine", YEARLY)

    @task(name="note", queue="elsewhere")
    def moved(what: str = "") -> None: ...

    start(moved)
    assert stored(conductor)[0].queue == "elsewhere"


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((note, "s", "every day"), TaskDefinitionError, "every day"),
        ((note, "s", YEARLY, {"wat": "x"}), PayloadError, "wat"),
        ((note.bind(what="x"), "s", YEARLY, {"what": "x"}), TypeError, "has its payload"),
        ((note.bind("x").options(priority=1), "s", YEARLY), TypeError, "priority"),
        ((note, "a name", YEARLY), ValueError, "a name"),
        (("nobody", "s", YEARLY), UnknownTask, "nobody"),
    ],
)
def test_what_could_never_run_is_refused(
    conductor: Conductor, arguments: Any, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        conductor.schedule(*arguments)
    with pytest.raises(TaskDefinitionError, match="sometimes"):
        conductor.schedule(note, "s", YEARLY, missed="sometimes")
    assert stored(conductor) == []


def test_the_time_zone_of_the_client_is_the_default(database_url: str) -> None:
    with Conductor.create(database_url, timezone="Asia/Tokyo") as conductor:
        conductor.schedule(note.bind(what="x"), "s", YEARLY)
        (only,) = stored(conductor)
    assert (only.timezone, only.payload) == ("Asia/Tokyo", {"what": "x"})


def test_tasks_schedule_and_unschedule(conductor: Conductor, start: Any) -> None:
    @task
    def plan(ctx: Context) -> list[bool]:
        return [ctx.schedule(note, "a", YEARLY, {"what": "x"}, missed="all") for _ in range(2)]

    @task
    async def replan(ctx: AsyncContext) -> list[bool]:
        gone = await ctx.unschedule("note", "a")
        return [gone, await ctx.schedule(note, "b", YEARLY, timezone="Asia/Tokyo")]

    start(plan, replan, note)
    assert conductor.wait(conductor.invoke(plan), plan, timeout=30) == [True, False]
    assert [(each.name, each.missed) for each in stored(conductor)] == [("a", "all")]
    assert conductor.wait(conductor.invoke(replan), timeout=30) == [True, True]
    assert [(each.name, each.timezone) for each in stored(conductor)] == [("b", "Asia/Tokyo")]


def test_unscheduling_leaves_alone_what_runs(
    conductor: Conductor, start: Any, heard: Any, eventually: Any
) -> None:
    gate = threading.Event()

    @task
    def slow() -> str:
        assert gate.wait(60)
        return "to the end"

    start(slow)
    heard.wait("leadership.gained")
    conductor.schedule(slow, "often", EVERY_SECOND)
    (first, *_) = eventually(lambda: conductor.list(task=slow, state="running"))
    conductor.unschedule(slow, "often")
    gate.set()
    assert conductor.wait(first.id, timeout=30) == "to the end"


def test_a_paused_one_makes_no_tick_and_goes_on_with_the_next_from_now(
    conductor: Conductor, clock: Clock
) -> None:
    clock.stop(datetime(2031, 5, 4, 12, tzinfo=UTC))
    conductor.schedule(note, "s", "0 9 * * *", missed="all")
    with conductor.database.connection() as conn:
        assert schedules.pause(conn, "note", "s")
        assert not schedules.pause(conn, "note", "s")
        clock.advance(3 * 86400)
        assert scheduling.definitions.due_schedules(conn) == []
        expected = datetime(2031, 5, 5, 9, tzinfo=UTC)
        assert not scheduling.definitions.tick(
            conn, "note", "s", expected=expected, ticks=[expected], next_at=None
        )
        assert not conductor.schedule(note, "s", "0 9 * * *", missed="all")
        assert stored(conductor)[0].paused
        assert scheduling.resume(conn, "note", "s")
        assert not scheduling.resume(conn, "note", "s")
        assert not scheduling.resume(conn, "note", "other")
    (only,) = stored(conductor)
    assert (only.paused, only.next_at) == (False, datetime(2031, 5, 8, 9, tzinfo=UTC))


def test_a_trigger_makes_one_execution_as_a_tick_would(conductor: Conductor, clock: Clock) -> None:
    now = clock.stop(datetime(2031, 5, 4, 12, 1, tzinfo=UTC))
    conductor.schedule(note, "s", "0 9 * * *", {"what": "x"})
    before = stored(conductor)
    with conductor.database.transaction() as conn:
        id = schedules.trigger(conn, "note", "s")
        assert schedules.trigger(conn, "note", "other") is None
        row = conn.execute("select event from conductor.live where id = %s", [id]).fetchone()
    assert id is not None
    made = conductor.get(id)
    assert made is not None
    assert (made.task, made.payload) == ("note", {"what": "x"})
    assert row is not None
    assert row[0]["name"] == "s"
    assert datetime.fromisoformat(row[0]["scheduled_for"]) == now
    assert stored(conductor) == before
