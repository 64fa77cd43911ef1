"""The ledger in SQL: what an execution remembers from one attempt to the next.

Every function takes a connection first and never commits. Every write is made only while the
claim still stands, and says so: it returns None, or nothing, where it does not.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final
from uuid import UUID

import msgspec

from conductor_cli.database import Connection, Statement

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime


class Entry(msgspec.Struct, frozen=True):
    """One name. For the letters of ``kind`` and ``state`` see conductor.ledger; ``due``: its
    moment has come. JSON is still text."""

    name: str
    kind: str
    state: str
    until: datetime | None
    due: bool
    child_id: UUID | None
    about: str | None
    part_of: str | None
    remaining: int | None
    failures: int
    branch: bool
    value: str | None
    error: str | None


class Loaded(msgspec.Struct, frozen=True):
    """An entry, or nulls when there is none; and how often the execution has been woken."""

    wakes: int
    name: str | None
    kind: str
    state: str
    until: datetime | None
    due: bool
    child_id: UUID | None
    about: str | None
    part_of: str | None
    remaining: int | None
    failures: int
    branch: bool
    value: str | None
    error: str | None


LOAD: Final = Statement(
    row=Loaded,
    sql="""
    -- Reads only. The count of wakes is of the same snapshot as the entries: what comes later
    -- is found by SUSPEND.
    select l.wakes, g.name, g.kind::text, g.state::text, g.until,
        coalesce(g.until <= conductor.now(), false) as due, g.child_id, g.about, g.part_of,
        g.remaining, g.failures, g.branch, g.value::text, g.error::text
    from conductor.live l left join conductor.ledger g on g.execution_id = l.id
    where l.id = %(id)s and l.token = %(token)s and l.state::text = 'x'
    order by g.seq
    """,
)


def load(conn: Connection, id: UUID, token: int) -> tuple[int, list[Entry]] | None:
    """How often it has been woken, and its entries in order; None: the claim no longer stands."""
    rows = LOAD.all(conn, id=id, token=token)
    if not rows:
        return None
    entries = [
        Entry(
            r.name, r.kind, r.state, r.until, r.due, r.child_id, r.about, r.part_of,
            r.remaining, r.failures, r.branch, r.value, r.error,
        )
        for r in rows
        if r.name is not None
    ]  # fmt: skip
    return rows[0].wakes, entries


class New(msgspec.Struct, frozen=True):
    """An entry to be written. It lasts until ``until``, or for ``seconds`` from now."""

    name: str
    kind: str
    state: str
    until: datetime | None = None
    seconds: float | None = None
    about: str | None = None
    failures: int = 0
    branch: bool = False
    value: str | None = None
    error: str | None = None


class Recorded(msgspec.Struct, frozen=True):
    """Whether the claim stands, and until when the entry lasts."""

    held: bool
    until: datetime | None


RECORD: Final = Statement(
    row=Recorded,
    sql="""
    -- The row is locked until the commit: a rescue cannot slip in between and have the step run
    -- a second time. Before the first entry it is marked, so that whoever ends the execution sees
    -- what hangs on it. What has been recorded stays as it is, so that this may be sent twice;
    -- only a step whose call the code cut off while it was being recorded becomes k.
    with marked as (
        update conductor.live set flags = flags | 2
        where id = %(id)s and token = %(token)s and state::text = 'x' and %(mark)s::bool
        returning id
    ), locked as (
        select id from conductor.live
        where id = %(id)s and token = %(token)s and state::text = 'x' and not %(mark)s::bool
        for share
    ), held as materialized (
        select id from marked union all select id from locked
    ), saved as (
        insert into conductor.ledger as g (
            execution_id, name, kind, state, until, created_at, ended_at, about, failures,
            branch, value, error)
        select h.id, n.name, n.kind::"char", n.state::"char",
            coalesce(n.until, conductor.now() + n.seconds * interval '1 second'),
            conductor.now(), case when n.state <> 'p' then conductor.now() end, n.about,
            n.failures, n.branch, n.value::json, n.error::json
        from held h, unnest(
            %(names)s::text[], %(kinds)s::text[], %(states)s::text[], %(untils)s::timestamptz[],
            %(seconds)s::float8[], %(abouts)s::text[], %(failures)s::int[],
            %(branches)s::bool[], %(values)s::text[], %(errors)s::text[])
            as n (name, kind, state, until, seconds, about, failures, branch, value, error)
        on conflict (execution_id, name) do update set
            state = excluded.state, until = excluded.until, ended_at = excluded.ended_at,
            failures = excluded.failures, value = excluded.value, error = excluded.error
        where g.kind = 's' and (g.state = 'p' or (g.state = 'c' and excluded.state = 'k'))
        returning until
    )
    select exists (select from held) as held, (
        select coalesce(max(until), (
            select g.until from conductor.ledger g
            where g.execution_id = %(id)s and g.name = (%(names)s::text[])[1]))
        from saved) as until
    """,
)


def record(conn: Connection, id: UUID, token: int, new: Sequence[New], *, mark: bool) -> Recorded:
    """Write entries, steps that were tried before included. ``mark``: they may be the first."""
    return RECORD.only(
        conn,
        id=id,
        token=token,
        mark=mark,
        names=[n.name for n in new],
        kinds=[n.kind for n in new],
        states=[n.state for n in new],
        untils=[n.until for n in new],
        seconds=[n.seconds for n in new],
        abouts=[n.about for n in new],
        failures=[n.failures for n in new],
        branches=[n.branch for n in new],
        values=[n.value for n in new],
        errors=[n.error for n in new],
    )


class Child(msgspec.Struct, frozen=True):
    """An execution to be created: the name it has in the ledger, its task, its id."""

    name: str
    about: str
    id: UUID


class Adopted(msgspec.Struct, frozen=True):
    """Until when the wait lasts; ``name`` and ``met``: of a child whose dedupe key an execution
    that exists has already."""

    held: bool
    until: datetime | None
    name: str | None
    met: UUID | None


ADOPT: Final = Statement(
    row=Adopted,
    sql="""
    -- Children and what tells of them come to be together, and only while the claim stands. Sent
    -- a second time it finds the children there, and its entries.
    with marked as (
        update conductor.live set flags = flags | 2
        where id = %(id)s and token = %(token)s and state::text = 'x' and %(mark)s::bool
        returning id
    ), locked as (
        select id from conductor.live
        where id = %(id)s and token = %(token)s and state::text = 'x' and not %(mark)s::bool
        for share
    ), held as materialized (
        select id from marked union all select id from locked
    ), met as materialized (
        select m.asked, m.met
        from held h, lateral conductor.enqueue(
            case when h.id is not null then %(specs)s::text::json end, %(again)s) m
    ), grouped as (
        insert into conductor.ledger as g (
            execution_id, name, kind, state, until, created_at, remaining, tolerant, about)
        select h.id, %(group_name)s, 'g', 'p',
            conductor.now() + %(seconds)s * interval '1 second', conductor.now(),
            cardinality(%(names)s::text[]), %(tolerant)s, %(group_about)s
        from held h where %(group_name)s::text is not null
        on conflict (execution_id, name) do update set until = excluded.until
        where g.state = 'p'
        returning until
    ), saved as (
        insert into conductor.ledger (
            execution_id, name, kind, state, until, created_at, child_id, about, part_of, branch)
        select h.id, n.name, %(kind)s::"char", 'p',
            case when %(group_name)s::text is null
                 then conductor.now() + %(seconds)s * interval '1 second' end,
            conductor.now(), coalesce(m.met, n.child_id), n.about, %(group_name)s, %(branch)s
        from held h
        cross join unnest(%(names)s::text[], %(abouts)s::text[], %(children)s::uuid[])
            as n (name, about, child_id)
        left join met m on m.asked = n.child_id
        on conflict (execution_id, name) do nothing
        returning until
    ), asked as (
        select coalesce(
            (select max(until) from (table grouped union all table saved) u),
            (select g.until from conductor.ledger g where g.execution_id = %(id)s
             and g.name = coalesce(%(group_name)s, (%(names)s::text[])[1]))) as until
    )
    select exists (select from held) as held, a.until, n.name, m.met
    from asked a
    left join met m on true
    left join unnest(%(names)s::text[], %(children)s::uuid[]) as n (name, child_id)
        on n.child_id = m.asked
    """,
)


class Children(msgspec.Struct, frozen=True):
    """Executions to be created by another. ``kind``: c to be waited for, d not; ``group``: the
    name under which they belong together; ``seconds``: how long the wait lasts."""

    kind: str
    children: Sequence[Child]
    specs: str
    group: str | None
    seconds: float | None
    tolerant: bool
    branch: bool


def adopt(
    conn: Connection,
    id: UUID,
    token: int,
    born: Children,
    *,
    mark: bool,
    again: bool,
    about: str | None = None,
) -> list[Adopted]:
    """Create children together with their entries. ``again``: this may have been sent before."""
    return ADOPT.all(
        conn,
        id=id,
        token=token,
        mark=mark,
        specs=born.specs,
        again=again,
        group_about=about,
        kind=born.kind,
        group_name=born.group,
        seconds=born.seconds,
        tolerant=born.tolerant,
        branch=born.branch,
        names=[child.name for child in born.children],
        abouts=[child.about for child in born.children],
        children=[child.id for child in born.children],
    )


ATTEND: Final = Statement(
    row=Entry,
    sql="""
    -- The flag on the row and the entry that waits for it are one commit: however the other ends
    -- afterwards, it tells. One that has ended is read from history, or from an entry that was
    -- told. One that is just about to end is found in neither, and by the next look.
    with marked as (
        update conductor.live set flags = flags | 2
        where id = %(id)s and token = %(token)s and state::text = 'x' and %(mark)s::bool
        returning id
    ), locked as (
        select id from conductor.live
        where id = %(id)s and token = %(token)s and state::text = 'x' and not %(mark)s::bool
        for share
    ), held as materialized (
        select id from marked union all select id from locked
    ), awaited as (
        update conductor.live l set flags = l.flags | 4
        from held where l.id = %(child)s
        returning l.task
    ), known as (
        (select 1 as place, 'p' as state, null as value, null as error, task from awaited)
        union all
        (select 2, g.state::text, g.value::text, g.error::text, g.about from conductor.ledger g
         where g.execution_id = %(id)s and g.child_id = %(child)s and g.state in ('c', 'f', 'k'))
        union all
        (select 3, h.state::text, h.result::text, h.error::text, h.task from conductor.history h
         where h.id = %(child)s and h.expires_at > conductor.now())
        order by place limit 1
    )
    insert into conductor.ledger as g (
        execution_id, name, kind, state, until, created_at, ended_at, child_id, about, branch,
        value, error)
    select h.id, %(name)s, %(kind)s::"char", k.state::"char",
        conductor.now() + %(seconds)s * interval '1 second', conductor.now(),
        case when k.state <> 'p' then conductor.now() end, %(child)s, k.task, %(branch)s,
        k.value::json, k.error::json
    from held h, known k
    on conflict (execution_id, name) do update set
        state = case when g.state = 'p' then excluded.state else g.state end,
        value = case when g.state = 'p' then excluded.value else g.value end,
        error = case when g.state = 'p' then excluded.error else g.error end
    returning name, kind::text, state::text, until,
        coalesce(until <= conductor.now(), false) as due, child_id, about, part_of, remaining,
        failures, branch, value::text, error::text
    """,
)


def attend(
    conn: Connection,
    id: UUID,
    token: int,
    *,
    name: str,
    kind: str,
    child: UUID,
    seconds: float | None,
    branch: bool,
    mark: bool,
) -> Entry | None:
    """Wait for any execution; the entry, told already if that has ended. None: it is nowhere to
    be found (just now), or the claim no longer stands."""
    return ATTEND.one(
        conn, id=id, token=token, name=name, kind=kind, child=child, seconds=seconds,
        branch=branch, mark=mark,
    )  # fmt: skip


GIVE_UP: Final = Statement(
    row=str,
    sql="""
    -- Once given up it stays so: of the deadline and what was waited for, one comes first. Where an
    -- ordinal is given the wait is one of several by the same registration, which goes on: it
    -- counts them in failures, so that this may be sent twice.
    with held as materialized (
        select id from conductor.live
        where id = %(id)s and token = %(token)s and state::text = 'x'
        for share
    )
    update conductor.ledger g set
        state = case when came.payload is not null then 'c'
                     when %(ordinal)s::int is null then 't' else 'p' end::"char",
        value = came.payload,
        ended_at = case when came.payload is not null or %(ordinal)s::int is null
                        then conductor.now() end,
        failures = case when came.payload is null then coalesce(%(ordinal)s, g.failures)
                        else g.failures end,
        until = case when came.payload is null and %(ordinal)s::int is not null then null
                     else g.until end
    from held h left join lateral (
        -- The race: a deadline passes while an event that came in time is not dispatched yet.
        -- The wait would be told as timed out. So the event is taken here; the dispatcher then
        -- finds the wait ended. Test: test_an_event_that_came_in_time_is_heard_after_the_deadline.
        select e.payload::json as payload
        from conductor.ledger w
        join conductor.events e on e.name = any (array[w.about])
            and e.emitted_at <= w.until and not e.dead
            and not coalesce(w.before @> e.seq, false)
            and conductor.fits(e.payload, w.exact, w.tests)
        where w.execution_id = any (array[h.id]) and w.name = %(name)s and w.kind = 'e'
        order by array[e.seq] limit 1
    ) came on true
    where g.execution_id = any (array[h.id]) and g.state = 'p'
      and (g.name = %(name)s or g.part_of = %(name)s)
      and coalesce(g.failures = %(ordinal)s - 1, true)
    returning g.name
    """,
)


def give_up(
    conn: Connection, id: UUID, token: int, name: str, *, ordinal: int | None = None
) -> bool:
    """Wait no longer; False: it has been told already, or the claim no longer stands.

    ``ordinal``: of a registration for an event, give up this wait only, counted from 1.
    """
    return name in GIVE_UP.all(conn, id=id, token=token, name=name, ordinal=ordinal)


PROGRESS: Final = Statement(
    row=UUID,
    sql="""
    -- Only while the claim stands. The flag lets whoever ends the execution know of the row.
    with held as (
        update conductor.live set flags = flags | 16
        where id = %(id)s and token = %(token)s and state::text = 'x' and flags & 16 = 0
        returning id
    ), standing as (
        select id from held
        union
        select id from conductor.live
        where id = %(id)s and token = %(token)s and state::text = 'x'
    )
    insert into conductor.progress (execution_id, told_at, progress)
    select id, conductor.now(), %(progress)s::text::json from standing
    on conflict (execution_id) do update set
        told_at = excluded.told_at, progress = excluded.progress
    returning execution_id
    """,
)


def progress(conn: Connection, id: UUID, token: int, progress: str) -> bool:
    """How far it has come, as JSON text; whether the claim stands."""
    return PROGRESS.one(conn, id=id, token=token, progress=progress) is not None
