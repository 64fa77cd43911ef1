"""What authors define, in SQL: registered tasks and their options, schedules and their ticks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, NamedTuple
from uuid import UUID

import msgspec

from conductor_cli.database import Connection, Statement
from conductor_cli.models import ScheduleSpec

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from datetime import datetime

    from conductor_cli.models import TaskSpec

REGISTER_TASKS: Final = Statement(
    row=int,
    sql="""
    -- Last writer wins: who may write is decided before (see SUPERSEDED).
    with given as (
        select * from json_to_recordset(%(tasks)s::text::json) as t (
            queue text, name text, home boolean, priority smallint, max_attempts int,
            max_crashes int, retain_completed float8, retain_failed float8, options jsonb)
        order by queue, name
    ), written as (
        insert into conductor.tasks (
            queue, name, home, priority, max_attempts, max_crashes, retain_completed,
            retain_failed, options, edition, registered_at)
        select queue, name, home, priority, max_attempts, max_crashes, retain_completed,
            retain_failed, options, %(edition)s, conductor.now()
        from given
        on conflict (queue, name) do update set
            home = excluded.home, priority = excluded.priority,
            max_attempts = excluded.max_attempts, max_crashes = excluded.max_crashes,
            retain_completed = excluded.retain_completed,
            retain_failed = excluded.retain_failed, options = excluded.options,
            edition = excluded.edition, registered_at = excluded.registered_at
        returning 1
    ), moved as (
        -- A task that has moved to another queue is at home in the new one only.
        update conductor.tasks t set home = false
        from given g
        where g.home and t.name = g.name and t.queue <> g.queue and t.home
        returning t.name, t.queue as left, g.queue as entered
    ), followed as (
        update conductor.schedules s set queue = m.entered
        from moved m
        where s.task = m.name and s.queue = m.left and not s.declared
    )
    select (select count(*) from written)::int + 0 * (select count(*) from moved)::int
    """,
)


def register_tasks(conn: Connection, tasks: Sequence[TaskSpec], edition: str = "") -> None:
    """Make options known to those who have no Python at hand."""
    REGISTER_TASKS.only(conn, tasks=msgspec.json.encode(tasks).decode(), edition=edition)


KNOW_EDITION: Final = Statement(
    row=int,
    sql="""
    -- The first to come with an edition dates it; an operator's word dates it anew.
    insert into conductor.editions as e (edition, known_since)
    values (%(edition)s, conductor.now())
    on conflict (edition) do update set known_since =
        case when %(anew)s then excluded.known_since else e.known_since end
    returning 1
    """,
)

SUPERSEDED: Final = Statement(
    row=str,
    sql="""
    -- Reads only. Of two versions that run side by side the one that was known last defines what
    -- both serve, whichever of them starts last. Once none of its servers lives the other does:
    -- two that register at once settle it at the next look.
    select distinct t.name
    from conductor.tasks t
    join conductor.editions theirs on theirs.edition = t.edition
    join conductor.editions mine on mine.edition = %(edition)s
    where t.name = any (%(tasks)s) and theirs.known_since > mine.known_since
      and exists (
          select from conductor.orchestrators o
          where o.edition = t.edition and not o.stopping
            and greatest(o.beat_at, pg_postmaster_start_time())
                + o.timeout * interval '1 second' > conductor.now())
    """,
)

FOREIGN: Final = Statement(
    row=str,
    sql="""
    -- Reads only.
    select distinct t.name from conductor.tasks t
    where t.name = any (%(tasks)s) and t.edition <> %(edition)s and t.home
    """,
)


def know_edition(conn: Connection, edition: str, *, anew: bool = False) -> None:
    """Remember since when an edition is known; ``anew``: since now."""
    KNOW_EDITION.only(conn, edition=edition, anew=anew)


def superseded(conn: Connection, edition: str, tasks: Sequence[str]) -> set[str]:
    """Those of these tasks that a living server of a later edition has defined."""
    return set(SUPERSEDED.all(conn, edition=edition, tasks=list(tasks)))


def foreign(conn: Connection, edition: str, tasks: Sequence[str]) -> set[str]:
    """Those of these tasks that stand as another edition has defined them."""
    return set(FOREIGN.all(conn, edition=edition, tasks=list(tasks)))


class Registered(msgspec.Struct, frozen=True):
    """A registered task, as a client needs it."""

    name: str
    queue: str
    priority: int
    invocable: bool


FIND_TASK: Final = Statement(
    row=Registered,
    sql="""
    -- Reads only.
    select name, queue, priority, options -> 'invocable' is distinct from 'false' as invocable
    from conductor.tasks
    where name = %(name)s
    order by home desc, registered_at desc
    limit 1
    """,
)

TASK_NAMES: Final = Statement(
    row=str,
    sql="""
    -- Reads only.
    select distinct name from conductor.tasks order by name
    """,
)


def find_task(conn: Connection, name: str) -> Registered | None:
    """The registered task of this name, in its own queue where it has one."""
    return FIND_TASK.one(conn, name=name)


def task_names(conn: Connection) -> list[str]:
    """The names of all registered tasks."""
    return TASK_NAMES.all(conn)


SAVE_SCHEDULES: Final = Statement(
    row=int,
    sql="""
    -- A schedule that has not changed keeps its next tick, so that a restart neither loses nor
    -- repeats one. Schedules of tasks that are served and no longer name them are removed; those
    -- made at run time stay, and do not replace a declared one. One that has not changed is not
    -- locked, or a server could not start while somebody else holds its row.
    with given as (
        select * from json_to_recordset(%(schedules)s::text::json) as s (
            task text, name text, queue text, expression text, timezone text, missed text,
            payload text, declared boolean, next_at timestamptz)
        order by task, name
    ), removed as (
        delete from conductor.schedules s
        where s.task = any (%(tasks)s) and s.declared
          and not exists (select from given g where g.task = s.task and g.name = s.name)
        returning 1
    ), saved as (
        insert into conductor.schedules as s (
            task, name, queue, expression, timezone, missed, payload, declared, next_at,
            changed_at)
        select task, name, queue, expression, timezone, missed, payload::json, declared, next_at,
            conductor.now()
        from given g
        where not exists (
            select from conductor.schedules s where s.task = g.task and s.name = g.name
              and (s.queue, s.missed, s.expression, s.timezone, s.declared, s.payload::text)
                  = (g.queue, g.missed, g.expression, g.timezone, g.declared, g.payload))
        on conflict (task, name) do update set
            queue = excluded.queue, missed = excluded.missed, payload = excluded.payload,
            expression = excluded.expression, timezone = excluded.timezone,
            declared = excluded.declared,
            next_at = case
                when (s.expression, s.timezone) = (excluded.expression, excluded.timezone)
                then s.next_at else excluded.next_at end,
            changed_at = excluded.changed_at
        where (excluded.declared or not s.declared)
          and (s.queue, s.missed, s.expression, s.timezone, s.declared, s.payload::text)
            is distinct from (excluded.queue, excluded.missed, excluded.expression,
                              excluded.timezone, excluded.declared, excluded.payload::text)
        returning 1
    ), changes as (
        select (select count(*) from removed) + (select count(*) from saved) as n
    )
    select n::int from changes
    cross join lateral (select count(pg_notify('conductor', 'schedules')) where n > 0) told
    """,
)


def save_schedules(
    conn: Connection,
    schedules: Sequence[tuple[ScheduleSpec, datetime | None]],
    tasks: Sequence[str],
) -> int:
    """Store the schedules of ``tasks``, each with its first tick; returns how many changed."""
    rows: list[dict[str, Any]] = [
        {**msgspec.to_builtins(spec), "next_at": next_at} for spec, next_at in schedules
    ]
    return SAVE_SCHEDULES.only(
        conn, schedules=msgspec.json.encode(rows).decode(), tasks=list(tasks)
    )


CLOCK: Final = Statement(
    row=float,
    sql="""
    -- Reads only.
    select extract(epoch from conductor.now())::float8
    """,
)


def clock(conn: Connection) -> float:
    """The database's now, in seconds since 1970."""
    return CLOCK.only(conn)


class Version(NamedTuple):
    """A schedule as it was written once."""

    task: str
    name: str
    changed_at: datetime


class DueSchedule(msgspec.Struct, frozen=True):
    """A schedule whose next tick has come, or the next to come (``due`` tells)."""

    task: str
    name: str
    expression: str
    timezone: str
    missed: str
    changed_at: datetime
    next_at: datetime
    now: datetime
    due: bool

    @property
    def version(self) -> Version:
        return Version(self.task, self.name, self.changed_at)


DUE_SCHEDULES: Final = Statement(
    row=DueSchedule,
    sql="""
    -- Reads only: whether a tick is made is decided by the compare-and-set that makes it.
    select task, name, expression, timezone, missed, changed_at, next_at, conductor.now() as now,
        next_at <= conductor.now() as due
    from conductor.schedules
    where next_at is not null and not paused and (task, name, changed_at) not in (
        select * from unnest(%(tasks)s::text[], %(names)s::text[], %(changes)s::timestamptz[]))
    order by next_at, task, name
    limit 100
    """,
)


def due_schedules(conn: Connection, without: Iterable[Version] = ()) -> list[DueSchedule]:
    """The hundred schedules that tick first, the due ones included; not those ``without``."""
    tasks, names, changes = [], [], []
    for task, name, changed_at in without:
        tasks.append(task)
        names.append(name)
        changes.append(changed_at)
    return DUE_SCHEDULES.all(conn, tasks=tasks, names=names, changes=changes)


class Ticked(msgspec.Struct, frozen=True):
    """An execution of a tick, or none; ``locked``: somebody else has locked the schedule."""

    locked: bool
    id: UUID | None


TICK: Final = Statement(
    row=Ticked,
    sql="""
    -- Exactly one execution a tick, whoever leads: of two that saw the same next tick, the
    -- row lock lets one move it, and the other then finds another value and inserts nothing.
    -- A schedule that somebody has locked is not waited for: all others would wait as well.
    with there as materialized (
        select task, name from conductor.schedules
        where task = %(task)s and name = %(name)s and next_at = %(expected)s and not paused
    ), free as materialized (
        select s.task, s.name from conductor.schedules s
        where s.task = %(task)s and s.name = %(name)s and next_at = %(expected)s and not paused
        for update skip locked
    ), moved as (
        update conductor.schedules s set next_at = %(next_at)s, last_at = %(expected)s
        from free f
        where s.task = f.task and s.name = f.name
        returning s.task, s.name, s.queue, s.payload
    ), specs as (
        select conductor.uuid7() as id, m.task, m.name, m.queue, m.payload, tick.at,
            coalesce(-t.priority, 0) as rank
        from moved m
        cross join unnest(%(ticks)s::timestamptz[]) as tick (at)
        left join conductor.tasks t on t.queue = m.queue and t.name = m.task
    ), enqueued as (
        select count(*) from (
            select json_agg(json_build_object(
                'id', s.id, 'task', s.task, 'queue', s.queue, 'payload', s.payload,
                'rank', s.rank, 'event', json_build_object(
                    'name', s.name, 'scheduled_for', s.at, 'payload', s.payload))
                order by s.at) as array
            from specs s
        ) a, lateral conductor.enqueue(a.array)
        where a.array is not null
    )
    select exists (select from there) and not exists (select from free) as locked, made.id
    from (select) one
    left join (select id, at from specs, enqueued) made on true
    order by made.at
    """,
)


def tick(
    conn: Connection,
    task: str,
    name: str,
    *,
    expected: datetime,
    ticks: Sequence[datetime],
    next_at: datetime | None,
) -> list[UUID] | None:
    """Make the executions of these ticks, if ``expected`` is still the schedule's next one.

    None: somebody else has locked the schedule.
    """
    rows = TICK.all(
        conn, task=task, name=name, expected=expected, ticks=list(ticks), next_at=next_at
    )
    return None if rows[0].locked else [row.id for row in rows if row.id is not None]
