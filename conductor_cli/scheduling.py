"""Schedules made at run time: checked like those of ``@task``, stored beside them."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

from conductor_cli import arguments, errors, payloads, registry, timing
from conductor_cli.models import ScheduleSpec
from conductor_cli.registry import ConfiguredTask, Invocation, Task
from conductor_cli.store import definitions, schedules

if TYPE_CHECKING:
    from collections.abc import Callable

    from conductor_cli.database import Connection
    from conductor_cli.store.schedules import ScheduleReport


EXPRESSION_LIMIT: Final = 500


def spec(
    task: Task[..., Any] | Invocation[Any] | str,
    name: str,
    expression: str,
    payload: object,
    *,
    timezone: str,
    missed: str,
    limit: int,
    queue_of: Callable[[str], str],
) -> ScheduleSpec:
    """A schedule as it is stored. ``queue_of``: the queue of a task known by name only.

    Raises TaskDefinitionError for an expression, time zone or policy, ValueError for a name,
    PayloadError, UnknownTask.
    """
    if isinstance(task, Invocation):
        if payload is not None:
            raise TypeError("an Invocation has its payload; do not pass another")
        if task.overrides:
            raise TypeError(f"a schedule takes no options of invoke: {', '.join(task.overrides)}")
        payload, task = task.payload, task.task
    if isinstance(task, ConfiguredTask):
        raise TypeError(f"a schedule takes no options of invoke: {', '.join(task.overrides)}")
    if not isinstance(task, Task | str):
        raise arguments.no_task(task)
    registry.check_name("schedule", name)
    arguments.as_text(expression, "expression", EXPRESSION_LIMIT, least=1)
    arguments.as_text(timezone, "timezone", EXPRESSION_LIMIT, least=1)
    arguments.as_text(missed, "missed", EXPRESSION_LIMIT, least=1)
    cron = registry.cron(expression, name=name, timezone=timezone, missed=missed)
    text = payloads.encode(
        {} if payload is None else payload, f"The payload of schedule {name!r}", limit
    )
    if isinstance(task, Task):
        task.binder.check(task.name, text)
        task_name, queue = task.name, task.queue
    else:
        task_name, queue = registry.check_name("task", task), queue_of(task)
    return ScheduleSpec(
        task_name, name, queue, expression, timezone, cron.missed, text, declared=False
    )


def name_of(task: object) -> str:
    """The name of a task that is given as such, or by its name."""
    if isinstance(task, Task):
        return task.name
    if isinstance(task, ConfiguredTask):
        return task.task.name
    if isinstance(task, str):
        return registry.check_name("task", task)
    raise arguments.no_task(task)


def save(conn: Connection, spec: ScheduleSpec) -> bool:
    """Store a schedule made at run time, or change it; whether that changed anything.

    Raises ConductorError where a trigger of the task has the name.
    """
    there = schedules.listed(conn, task=spec.task, name=spec.name)
    if there and there[0].declared:
        raise errors.ConductorError(
            f"The schedule {spec.name!r} of task {spec.task!r} is declared by the task's triggers; "
            "change it there, or choose another name."
        )
    first = first_tick(spec, definitions.clock(conn))
    return definitions.save_schedules(conn, [(spec, first)], []) > 0


def resume(conn: Connection, task: str, name: str) -> bool:
    """Let a paused schedule tick again, from now on; whether that changed anything."""
    there = schedules.listed(conn, task=task, name=name)
    if not there:
        return False
    first = first_tick(there[0], definitions.clock(conn))
    return schedules.resume(conn, task, name, first)


def first_tick(schedule: ScheduleSpec | ScheduleReport, now: float) -> datetime | None:
    """The first tick of a schedule after ``now`` (seconds since 1970)."""
    moment = datetime.fromtimestamp(now, UTC)
    return timing.Schedule.parse(schedule.expression, schedule.timezone).next_after(moment)
