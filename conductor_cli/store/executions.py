"""Executions in SQL, as clients and operators see them: create, cancel, retry.

Every function takes a connection first and never commits.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final
from uuid import UUID

import msgspec
from psycopg.errors import UniqueViolation

from conductor_cli.database import Connection, Statement, atomically

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence


class Met(msgspec.Struct, frozen=True):
    """An invocation that met an execution with its dedupe key; ``met`` is None where its id is
    that of an execution of another task."""

    asked: UUID
    met: UUID | None


ENQUEUE: Final = Statement(
    row=Met,
    sql="""
    -- Safe to send twice: ids are the client's, and one that exists is not inserted again.
    select asked, met from conductor.enqueue(%(specs)s::text::json, %(recheck)s)
    """,
)


def enqueue(conn: Connection, specs: str, *, recheck: bool) -> list[Met]:
    """Create executions from a JSON array (see conductor.enqueue); returns the duplicates.

    ``recheck``: look for the ids among ended executions too, when this may be a second try.
    """
    return ENQUEUE.all(conn, specs=specs, recheck=recheck)


ENQUEUE_PLAIN: Final[Statement[None]] = Statement(
    row=None,
    sql="""
    -- Inserts or raises: ids are new, and whoever sends them a second time uses ENQUEUE.
    with told as (select conductor.notify_queue(%(queue)s, %(rank)s, null))
    insert into conductor.live (id, run_at, created_at, rank, state, queue, task, payload)
    select e.id, conductor.now(), conductor.now(), %(rank)s, 'r', %(queue)s, %(task)s, e.payload
    from told, rows from (unnest(%(ids)s::text::uuid[]),
                          json_array_elements(%(payloads)s::text::json)) as e (id, payload)
    """,
)


def enqueue_plain(
    conn: Connection,
    ids: Iterable[UUID],
    payloads: Iterable[str],
    *,
    task: str,
    queue: str,
    rank: int,
) -> None:
    """Create executions that differ in nothing but id and payload, which is JSON text.

    What most invocations are, at half the cost of the general way in.
    """
    numbers = ",".join([f"{each.int:032x}" for each in ids])
    ENQUEUE_PLAIN.run(
        conn,
        ids=f"{{{numbers}}}", payloads=f"[{','.join(payloads)}]",
        task=task, queue=queue, rank=rank,
    )  # fmt: skip


ENQUEUE_ONE: Final[Statement[None]] = Statement(
    row=None,
    sql="""
    -- ENQUEUE_PLAIN for a single one: no arrays to be taken apart, on either side.
    with told as (select conductor.notify_queue(%(queue)s, %(rank)s, null))
    insert into conductor.live (id, run_at, created_at, rank, state, queue, task, payload)
    select %(id)s::uuid, conductor.now(), conductor.now(), %(rank)s, 'r', %(queue)s, %(task)s,
        %(payload)s::json
    from told
    """,
)


def enqueue_one(
    conn: Connection, id: UUID, payload: str, *, task: str, queue: str, rank: int
) -> None:
    """Create one execution; ``payload`` is JSON text."""
    ENQUEUE_ONE.run(conn, id=id, payload=payload, task=task, queue=queue, rank=rank)


# On connections that callers lend, of drivers of which not every one lets "::" follow a parameter.
LENT: Final = """
    select cast(asked as text), cast(met as text)
    from conductor.enqueue(cast(cast($1 as text) as json), cast($2 as boolean))
"""
LENT_OR_NOTHING: Final = """
    select cast(asked as text), cast(met as text)
    from conductor.enqueue_or_nothing(cast(cast($1 as text) as json), cast($2 as boolean))
"""


CANCEL: Final = Statement(
    row=bool,
    sql="""
    -- Locks the row, then decides: see conductor.cancel.
    select conductor.cancel(%(id)s, %(reason)s)
    """,
)


def cancel(conn: Connection, id: UUID, reason: str | None) -> bool:
    """Cancel an execution, or ask the server that runs it to; whether that changed anything."""
    return CANCEL.only(conn, id=id, reason=reason)


RETRY: Final = Statement(
    row=UUID,
    sql="""
    -- One statement: of two at once the second finds nothing to delete.
    with gone as (
        delete from conductor.history
        where id = %(id)s and state::text in ('f', 'k') and expires_at > conductor.now()
        returning *
    ), kept as (
        select e.* from gone, json_to_recordset(case when not %(restart)s::bool
                                                then story -> 'ledger' end) as e (
            execution_id uuid, child_id uuid, until timestamptz, created_at timestamptz,
            ended_at timestamptz, remaining int, failures int, kind "char", state "char",
            tolerant bool, branch bool, name text, about text, part_of text, exact jsonb,
            tests jsonb, value json, error json, seq bigint)
    ), unfolded as (
        insert into conductor.ledger (
            execution_id, child_id, until, created_at, ended_at, remaining, failures, kind, state,
            tolerant, branch, name, about, part_of, exact, tests, value, error, before)
        select execution_id, child_id, case when kind <> 'e' or state <> 'p' then until end,
            created_at, ended_at, remaining, failures, kind, state, tolerant, branch, name,
            about, part_of, exact, tests, value, error,
            case when kind = 'e' and state = 'p' then (
                select range_agg(int8range(e.seq, e.seq, '[]')) from conductor.events e
                where e.name = kept.about) end
        from kept order by seq
    ), past as (
        insert into conductor.attempts (
            execution_id, started_at, ended_at, run, kind, name, error)
        select a.execution_id, a.started_at, a.ended_at, a.run, a.kind, a.name, a.error
        from gone, json_to_recordset(story -> 'attempts') as a (
            execution_id uuid, started_at timestamptz, ended_at timestamptz, run int,
            kind "char", name text, error json, seq bigint)
        order by a.seq
    ), failed as (
        insert into conductor.attempts (
            execution_id, started_at, ended_at, run, kind, error)
        select id, started_at, finished_at, runs, 'f', error from gone
        where state = 'f' and started_at is not null
    ), back as (
        insert into conductor.live (
            id, parent_id, run_at, created_at, timeout, runs, rank, flags, state, queue, task,
            dedupe_key, group_key, payload, metadata, event, error)
        select id, parent_id, conductor.now(), created_at, timeout, runs, rank,
            16 + case when exists (select from kept) then 2 else 0 end, 'r', queue,
            task, case when %(keyed)s::bool and 0 = (
                select count(*) from conductor.live l where l.task = gone.task
                  and l.queue = gone.queue and l.dedupe_key = gone.dedupe_key
            ) then dedupe_key end,
            group_key, payload, metadata, event, error
        from gone
        returning id, queue, rank
    )
    select b.id from back b, lateral conductor.notify_queue(b.queue, b.rank, null)
    """,
)


LAST_CHILDREN: Final = Statement(
    row=UUID,
    sql="""
    -- Reads what this transaction has written. The child, or the member of the group, that the
    -- execution asked for last, where that ended badly and the execution's own error tells of it,
    -- or was raised from that: it is what its parent has failed by.
    with ended as (
        select error ->> 'message' as message, case
            when error ->> 'traceback' not like '%%During handling of the above exception%%'
            then error ->> 'traceback' end as traceback
        from conductor.live where id = %(id)s
    ), mine as materialized (
        select name, part_of, kind, state, child_id, seq from conductor.ledger
        where execution_id = %(id)s
    ), last as (
        select name, kind, state from mine where part_of is null order by seq desc limit 1
    )
    select g.child_id from ended, last
    join mine g on g.name = last.name or g.part_of = last.name
    where last.kind in ('c', 'g') and last.state in ('f', 'k') and g.kind = 'c'
      and g.state in ('f', 'k')
      and concat(ended.message, ended.traceback) like '%%' || g.child_id || '%%'
    order by array[g.child_id]
    """,
)

REOPEN: Final = Statement(
    row=str,
    sql="""
    -- The parent's entries are opened again in the transaction that brings parent and children
    -- back, so no child can end before its entry waits for it. A child that has completed meanwhile
    -- gives its result. The whole wait begins anew.
    with members as materialized (
        select g.name, g.part_of,
            (select l.id from conductor.live l where l.id = g.child_id) as live,
            (select h.state from conductor.history h
             where h.id = g.child_id and h.expires_at > conductor.now()) as ended,
            (select h.result from conductor.history h where h.id = g.child_id) as result
        from conductor.ledger g
        where g.execution_id = %(id)s and g.child_id = any (%(children)s::uuid[])
          and g.kind = 'c' and g.state in ('f', 'k')
    ), awaited as (
        update conductor.live l set flags = l.flags | 4
        where l.id = any (array(select live from members))
        returning l.id
    ), opened as (
        update conductor.ledger g set
            state = case when m.ended = 'c' then 'c' else 'p' end::"char",
            value = case when m.ended = 'c' then m.result end, error = null,
            ended_at = case when m.ended = 'c' then conductor.now() end,
            until = conductor.now() + (g.until - g.created_at)
        from members m
        where g.execution_id = %(id)s and g.name = m.name
          and (m.ended = 'c' or m.live in (select id from awaited))
        returning g.name, g.part_of, g.state
    ), grouped as (
        -- Members that were still open when the parent ended are made anew by its code: so what
        -- remains is counted from how many there are in all, with which a group's about begins.
        update conductor.ledger g set
            state = case when split_part(g.about, ' ', 1)::int > n.settled then 'p'
                         else 'c' end::"char",
            remaining = split_part(g.about, ' ', 1)::int - n.settled,
            value = null, ended_at = null,
            until = conductor.now() + (g.until - g.created_at)
        from (
            select o.part_of, (
                select count(*)::int from conductor.ledger each
                where each.execution_id = %(id)s and each.part_of = o.part_of
                  and coalesce((select now.state from opened now where now.name = each.name),
                               each.state) <> 'p') as settled
            from opened o where o.part_of is not null group by o.part_of
        ) n
        where g.execution_id = %(id)s and g.name = n.part_of
        returning g.name
    )
    select name from opened union all select name from grouped
    """,
)

GONE_PAST: Final = Statement(
    row=UUID,
    sql="""
    -- Reads only. The parent, if it has not ended and has been told of this child's bad end.
    select id from conductor.live
    where id = any (array(
        select execution_id from conductor.ledger
        where child_id = %(id)s and kind = 'c' and state in ('f', 'k')))
    limit 1
    """,
)


def has_gone_past(conn: Connection, id: UUID) -> UUID | None:
    """The parent that has been told of this execution's bad end and has not ended itself."""
    return GONE_PAST.one(conn, id=id)


def retry(conn: Connection, id: UUID, *, restart: bool = False) -> bool:
    """Let a failed or cancelled execution run again, failures and crashes zero.

    What it has recorded is kept, unless it is to ``restart`` from its beginning. The child whose
    bad end was the last that it asked for runs again with it, at any depth; one that has
    completed meanwhile gives its new result. Where another execution now has its dedupe key, the
    other keeps it, and this one runs without. In a transaction of the caller's.
    """
    if not _brought_back(conn, id, restart=restart):
        return False
    children = [] if restart else LAST_CHILDREN.all(conn, id=id)
    for child in children:
        retry(conn, child)
    if children:
        REOPEN.all(conn, id=id, children=children)
    return True


def _brought_back(conn: Connection, id: UUID, *, restart: bool) -> bool:
    try:
        with atomically(conn):
            return RETRY.one(conn, id=id, restart=restart, keyed=True) is not None
    except UniqueViolation:  # another with its key came to be since the statement began
        return RETRY.one(conn, id=id, restart=restart, keyed=False) is not None


class Marked(msgspec.Struct, frozen=True):
    """One that had not ended; ``marked``: its end will be told."""

    id: UUID
    marked: bool


MARK: Final = Statement(
    row=Marked,
    sql="""
    -- Whoever ends a marked row tells of it, and the mark is on the row itself: an end comes either
    -- before the mark, and then there is no row to mark, or after it, and is told. A row that
    -- somebody has locked is left for the next time. The lock is held for no flush to disk (a mark
    -- lost in a crash is made up for by polling); a claim that skipped the row meanwhile is told
    -- to look again. In id order, as all that lock several rows.
    with quick as materialized (
        select set_config('synchronous_commit', 'off', true),
            (select pg_notify(%(channel)s, 'ping') where %(channel)s::text is not null)
    ), asked as materialized (
        select l.id from quick, conductor.live l
        where l.id = any (%(ids)s) and l.flags & 8 = 0
        order by l.id
        for no key update of l skip locked
    ), marked as (
        update conductor.live l set flags = l.flags | 8 from asked a where l.id = any (array[a.id])
        returning l.id, l.queue, l.rank, l.state
    ), told as materialized (
        select conductor.notify_queue(queue, min(rank), null) from marked
        where state = 'r' group by queue
    )
    select l.id, l.flags & 8 <> 0 or l.id in (select id from marked) as marked
    from quick, conductor.live l
    where l.id = any (%(ids)s) and (select count(*) from told) >= 0
    """,
)


def mark(conn: Connection, ids: Sequence[UUID], *, ping: str | None) -> dict[UUID, bool]:
    """Have the ends of these told on ``conductor_ended``. Those that have not ended, and of each
    whether that has worked. ``ping``: a channel on which to prove to oneself that one hears."""
    return {m.id: m.marked for m in MARK.all(conn, ids=list(ids), channel=ping)}


NOT_ENDED: Final = Statement(
    row=UUID,
    sql="""
    -- Reads only.
    select id from conductor.live where id = any (%(ids)s)
    """,
)


def not_ended(conn: Connection, ids: Sequence[UUID]) -> list[UUID]:
    """Those of these executions that exist and have not ended."""
    return NOT_ENDED.all(conn, ids=list(ids))


HASTEN: Final = Statement(
    row=int,
    sql="""
    -- Retries without their backoff: what failed and waits becomes due now, and what sleeps
    -- goes on sleeping.
    with hastened as (
        update conductor.live set run_at = conductor.now(), state = 'r'
        where queue = any (%(queues)s) and state = 's' and task = any (%(tasks)s)
          and (flags & 64 <> 0 or failures > 0 and flags & 32 = 0)
        returning 1
    )
    select count(*)::int from hastened
    """,
)


def hasten(conn: Connection, queues: Sequence[str], tasks: Sequence[str]) -> int:
    """Make the retries of these queues due at once; returns how many."""
    return HASTEN.only(conn, queues=queues, tasks=tasks)
