"""Schedules in SQL, as clients and operators see them: look, pause, resume, trigger, remove.

How they come to be and tick is in ``definitions``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final
from uuid import UUID

import msgspec

from conductor_cli.database import Connection, Statement

if TYPE_CHECKING:
    from datetime import datetime


class ScheduleRow(msgspec.Struct, frozen=True):
    """A row of conductor.schedules, its payload as text."""

    task: str
    name: str
    queue: str
    expression: str
    timezone: str
    missed: str
    payload: str
    declared: bool
    paused: bool
    next_at: datetime | None
    last_at: datetime | None


class ScheduleReport(msgspec.Struct, frozen=True):
    """A schedule. ``declared``: by a trigger of its task; ``next_at``: null when it is paused, or
    never ticks again."""

    task: str
    name: str
    queue: str
    expression: str
    timezone: str
    missed: str
    payload: Any
    declared: bool
    paused: bool
    next_at: datetime | None
    last_at: datetime | None


LISTED: Final = Statement(
    row=ScheduleRow,
    sql="""
    -- Reads only.
    select task, name, queue, expression, timezone, missed, payload::text, declared, paused,
        case when not paused then next_at end as next_at, last_at
    from conductor.schedules
    where (%(task)s::text is null or task = %(task)s)
      and (%(name)s::text is null or name = %(name)s)
    order by task, name
    """,
)


def listed(
    conn: Connection, *, task: str | None = None, name: str | None = None
) -> list[ScheduleReport]:
    """The schedules that match, by task and name."""
    return [_report(row) for row in LISTED.all(conn, task=task, name=name)]


REMOVE: Final = Statement(
    row=str,
    sql="""
    -- What it has made already is an execution like any other, and goes on.
    delete from conductor.schedules where task = %(task)s and name = %(name)s
    returning name
    """,
)


def remove(conn: Connection, task: str, name: str) -> bool:
    """Remove a schedule; whether there was one."""
    return REMOVE.one(conn, task=task, name=name) is not None


PAUSE: Final = Statement(
    row=str,
    sql="""
    -- A tick needs the same row, and looks at it again once it has it.
    update conductor.schedules set paused = true, changed_at = conductor.now()
    where task = %(task)s and name = %(name)s and not paused
    returning name
    """,
)


def pause(conn: Connection, task: str, name: str) -> bool:
    """Let a schedule make no more ticks; whether that changed anything."""
    return PAUSE.one(conn, task=task, name=name) is not None


RESUME: Final = Statement(
    row=str,
    sql="""
    -- Goes on with the next tick from now: what it was paused for has not been missed.
    with resumed as (
        update conductor.schedules set
            paused = false, next_at = %(next_at)s, changed_at = conductor.now()
        where task = %(task)s and name = %(name)s and paused
        returning name
    )
    select name from resumed
    cross join lateral (select count(pg_notify('conductor', 'schedules'))) told
    """,
)


def resume(conn: Connection, task: str, name: str, next_at: datetime | None) -> bool:
    """Let a paused schedule tick again, first at ``next_at``; whether that changed anything."""
    return RESUME.one(conn, task=task, name=name, next_at=next_at) is not None


TRIGGER: Final = Statement(
    row=UUID,
    sql="""
    -- One execution as a tick of this moment would make it; the schedule itself does not move.
    with spec as (
        select conductor.uuid7() as id, s.task, s.name, s.queue, s.payload,
            coalesce(-t.priority, 0) as rank
        from conductor.schedules s
        left join conductor.tasks t on t.queue = s.queue and t.name = s.task
        where s.task = %(task)s and s.name = %(name)s
    ), enqueued as (
        select count(*) from spec s, lateral conductor.enqueue(json_build_array(json_build_object(
            'id', s.id, 'task', s.task, 'queue', s.queue, 'payload', s.payload, 'rank', s.rank,
            'event', json_build_object(
                'name', s.name, 'scheduled_for', conductor.now(), 'payload', s.payload))))
    )
    select id from spec, enqueued
    """,
)


def trigger(conn: Connection, task: str, name: str) -> UUID | None:
    """Make an execution of this schedule now; its id, None when there is no such schedule."""
    return TRIGGER.one(conn, task=task, name=name)


def _report(row: ScheduleRow) -> ScheduleReport:
    return ScheduleReport(
        row.task, row.name, row.queue, row.expression, row.timezone, row.missed,
        msgspec.json.decode(row.payload), row.declared, row.paused, row.next_at, row.last_at,
    )  # fmt: skip
