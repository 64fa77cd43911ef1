"""The fleet in SQL: servers and their heartbeats, leadership, rescue, retention.

Lateness is judged by the database's clock on both sides of each comparison.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final
from uuid import UUID

import msgspec

from conductor_cli.database import Connection, Statement

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime


JOIN: Final = Statement(
    row=int,
    sql="""
    -- Also for a server that was declared dead and comes back: what it held is not its own
    -- any more, whatever its id.
    insert into conductor.orchestrators (
        id, started_at, beat_at, timeout, version, hostname, pid, queues, edition)
    values (%(id)s, conductor.now(), conductor.now(), %(timeout)s, %(version)s, %(hostname)s,
            %(pid)s, %(queues)s, %(edition)s)
    on conflict (id) do update set beat_at = conductor.now()
    returning 1
    """,
)


def join(
    conn: Connection,
    id: UUID,
    *,
    timeout: float,
    version: str,
    hostname: str,
    pid: int,
    queues: Sequence[str],
    edition: str = "",
) -> None:
    """Enter a server into the fleet. ``timeout``: seconds of silence after which it is dead."""
    JOIN.only(
        conn,
        id=id, timeout=timeout, version=version, hostname=hostname, pid=pid, queues=list(queues),
        edition=edition,
    )  # fmt: skip


LEAVE: Final = Statement(
    row=int,
    sql="""
    -- What it holds without knowing (the reply to a claim was lost just before) is given back
    -- and not charged; what is locked by others they rescue later, as an orphan's. A term that
    -- it won while it stopped ends with it, too.
    with held as materialized (
        select id from conductor.live
        where owner = %(id)s and state = 'x' and flags & 1 = 0
        order by array[id]
        for update skip locked
    ), returned as (
        update conductor.live l set
            state = 'r', run_at = conductor.now(), owner = null, token = null, runs = l.runs - 1
        from held h where l.id = any (array[h.id])
        returning l.queue, l.rank
    ), told as materialized (
        select conductor.notify_queue(queue, min(rank), null) from returned group by queue
    ), gone as (
        delete from conductor.orchestrators where id = %(id)s returning 1
    ), resigned as (
        update conductor.leadership set leader = null where leader = %(id)s returning 1
    )
    select (select count(*) from gone)::int + 0 * (select count(*) from told)::int
        + 0 * (select count(pg_notify('conductor', 'leaderless')) from resigned)::int
    """,
)


def leave(conn: Connection, id: UUID) -> None:
    """Take a server out of the fleet, after its last write."""
    LEAVE.only(conn, id=id)


class Pulse(msgspec.Struct, frozen=True):
    """What a beat told. Durations in seconds from the database's now, None: never.

    ``known``: the fleet still counts this server among the living. ``term``: the number of the
    term this server leads, None when it does not lead. ``look_in``: when the next server or
    the lease would expire. ``now``: seconds since 1970 by the clock that decides; ``clock``: by
    the machine's. ``cancelled``: what it runs and should stop running. ``breaking``: the last
    migration of the schema that programs must know to work on it. ``servers``: how many have a
    queue in common with it, itself included. ``emitted``: events wait to be dispatched.
    """

    known: bool
    term: int | None
    look_in: float | None
    now: float
    clock: float
    cancelled: list[UUID]
    breaking: int | None
    servers: int
    emitted: bool


BEAT: Final = Statement(
    row=Pulse,
    sql="""
    -- One statement beats, proves the listener by a message to itself, renews the lease or
    -- takes an expired one, and tells when to look again. Renewing names the exact term; of
    -- two that take at once the row lock lets one, and the other then sees a fresh lease. A lease
    -- has not expired because the clock has jumped: then it is later than the caller expects.
    with beat as (
        update conductor.orchestrators set beat_at = conductor.now(), stopping = %(stopping)s
        where id = %(id)s
        returning 1
    ), renewed as (
        update conductor.leadership set renewed_at = conductor.now()
        where leader = %(id)s and term = %(term)s
        returning term
    ), taken as (
        insert into conductor.leadership as l (leader, term, elected_at, renewed_at)
        select %(id)s, 1, conductor.now(), conductor.now()
        where %(stands)s and %(term)s::bigint is null and exists (select from beat)
        on conflict (singleton) do update set
            leader = excluded.leader, term = l.term + 1,
            elected_at = excluded.elected_at, renewed_at = excluded.renewed_at
        where l.leader is null
           or l.renewed_at + %(lease)s * interval '1 second' <= conductor.now()
              and extract(epoch from conductor.now()) <= coalesce(%(latest)s::float8, 'infinity')
        returning term
    )
    select exists (select from beat) as known,
        coalesce((select term from renewed), (select term from taken)) as term,
        extract(epoch from least(
            (select min(greatest(beat_at, nullif(least(pg_postmaster_start_time(),
                    conductor.now()), conductor.now())) + timeout * interval '1 second')
             from conductor.orchestrators where id <> %(id)s),
            (select renewed_at + %(lease)s * interval '1 second'
             from conductor.leadership where %(stands)s and leader <> %(id)s)
        ) - conductor.now())::float8 as look_in,
        extract(epoch from conductor.now())::float8 as now,
        extract(epoch from clock_timestamp())::float8 as clock,
        array(select id from conductor.live
              where owner = %(id)s and state = 'x' and flags & 1 <> 0) as cancelled,
        (select max(version) from conductor.migrations where breaking) as breaking,
        (select count(*)::int from conductor.orchestrators o
         where not stopping and queues && (
             select me.queues from conductor.orchestrators me where me.id = %(id)s)) as servers,
        exists (select from conductor.events where seq > 0 and not dead) as emitted
    from (select pg_notify('conductor_' || replace(%(id)s::text, '-', ''), 'ping')) ping
    """,
)


def beat(
    conn: Connection,
    id: UUID,
    *,
    stopping: bool,
    stands: bool,
    term: int | None,
    lease: float,
    latest: float | None = None,
) -> Pulse:
    """Say that this server lives, and hear how it stands.

    ``stands``: it wants to lead; ``term``: the one it leads; ``lease``: seconds a term lasts
    without a renewal; ``latest``: an expired one is taken until then (see Pulse.now) at most.
    """
    return BEAT.only(
        conn, id=id, stopping=stopping, stands=stands, term=term, lease=lease, latest=latest
    )


RESIGN: Final = Statement(
    row=int,
    sql="""
    -- Names the exact term, so that a late resignation does not end somebody else's.
    with resigned as (
        update conductor.leadership set leader = null
        where leader = %(id)s and term = %(term)s
        returning 1
    )
    select count(pg_notify('conductor', 'leaderless'))::int from resigned
    """,
)


def resign(conn: Connection, id: UUID, term: int) -> bool:
    """End a term early and tell the others; whether it was still this server's."""
    return RESIGN.only(conn, id=id, term=term) > 0


class Rescued(msgspec.Struct, frozen=True):
    """What a rescue did, for one queue: rows given back, and rows that crashed too often."""

    queue: str
    returned: int
    crashed: int
    owners: int


RESCUE: Final = Statement(
    row=Rescued,
    sql="""
    -- Any server may: the dead are taken with skip locked, so that two at once share them.
    -- Locking a server's row and judging its silence again under that lock keeps one that
    -- beats just now. Nobody could beat before Postgres itself had started. Rows whose owner is
    -- not in the fleet at all are rescued too. Of the suspects (see models.is_suspect) that a
    -- server held it ran only the first that it had claimed: the crash is charged to no other.
    -- Where one is named that is known to have ended, it alone is judged, and no silence at all:
    -- its term ends, too. Beats and renewals from the future are of before the clock was set back:
    -- from now on. (Of Postgres' start, too: nullif leaves it out.)
    with beats as (
        update conductor.orchestrators set beat_at = conductor.now()
        where %(fallen)s::uuid is null and beat_at > conductor.now() + interval '2 seconds'
    ), renewals as (
        update conductor.leadership set renewed_at = conductor.now()
        where %(fallen)s::uuid is null and renewed_at > conductor.now() + interval '2 seconds'
    ), dead as materialized (
        select id from conductor.orchestrators
        where case when %(fallen)s::uuid is null
            then %(judges)s::bool and conductor.now() >= timeout * interval '1 second'
                + greatest(beat_at, nullif(least(pg_postmaster_start_time(), conductor.now()),
                                           conductor.now()))
            else id = %(fallen)s end
        order by id
        for update skip locked
    ), buried as (
        delete from conductor.orchestrators o using dead d where o.id = d.id
    ), resigned as (
        update conductor.leadership set leader = null where leader = %(fallen)s
        returning pg_notify('conductor', 'leaderless')
    ), held as materialized (
        select l.id, l.queue, l.flags, l.owner, l.started_at, l.runs, l.rank, l.run_at, l.seq,
            l.crashes, coalesce(t.max_crashes, 3) as max_crashes,
            l.crashes >= greatest(1, least(2, coalesce(t.max_crashes, 3))) as suspect
        from conductor.live l
        left join conductor.tasks t on t.queue = l.queue and t.name = l.task
        where l.state = 'x' and case when %(fallen)s::uuid is null
            then l.owner in (select id from dead)
                or not exists (select from conductor.orchestrators o where o.id = l.owner)
            else l.owner = %(fallen)s end
        order by array[l.id]
        for update of l skip locked
    ), charged as materialized (
        select id, queue, flags, started_at, runs, charge,
            crashes + charge > max_crashes and charge = 1 as too_often
        from (
            select *, case when suspect and row_number() over (
                partition by owner, suspect order by started_at, rank, run_at, seq) > 1
                then 0 else 1 end as charge
            from held
        ) h
    ), counted as (
        update conductor.live l set
            crashes = l.crashes + h.charge, owner = null, token = null,
            state = 'r', run_at = conductor.now(), flags = l.flags | 16
        from charged h where l.id = any (array[h.id]) and h.flags & 1 = 0 and not h.too_often
        returning l.queue, l.rank
    ), logged as (
        insert into conductor.attempts (execution_id, started_at, ended_at, run, kind)
        select id, started_at, conductor.now(), runs, 'x' from charged
        where flags & 1 = 0 and not too_often
    ), ended as (
        select conductor.archive(
            array(select id from charged where flags & 1 = 0 and too_often), 'f',
            json_build_object('type', 'Crashed', 'traceback', null, 'message',
                'crashed: its process ended while it ran, more often than max_crashes allows'), 1)
            as crashed,
        conductor.archive(array(select id from charged where flags & 1 <> 0), 'k', null)
            as cancelled
    ), told as materialized (
        select c.queue, count(*)::int as returned,
            conductor.notify_queue(c.queue, min(c.rank), null)
        from counted c group by c.queue
    )
    select q.queue, coalesce(told.returned, 0) as returned,
        (count(*) filter (where q.too_often and q.flags & 1 = 0))::int as crashed,
        (select count(*) from dead)::int + 0 * (select crashed + cancelled from ended) as owners
    from charged q left join told on told.queue = q.queue
    group by q.queue, told.returned
    """,
)


def rescue(conn: Connection, *, judges: bool = True, fallen: UUID | None = None) -> list[Rescued]:
    """Give back what servers ran that are not in the fleet; per queue.

    ``judges``: declare those dead first that are by the database's clock. ``fallen``: instead,
    what this one ran and nothing else. Only for one whose process is known to have ended, for it
    is not asked whether it still beats.
    """
    return RESCUE.all(conn, judges=judges, fallen=fallen)


PRUNE: Final = Statement(
    row=int,
    sql="""
    -- A bounded number of rows, the longest expired first. Two pruners at once take different rows,
    -- and a row that somebody has locked is left for the next batch.
    with expired as (
        delete from conductor.history h
        where h.ctid = any (array(
            select e.ctid from conductor.history e
            where e.expires_at <= least(conductor.now(), %(until)s::timestamptz)
              and e.expires_at < 'infinity'
            order by e.expires_at
            limit %(limit)s
            for update skip locked))
        returning 1
    )
    select count(*)::int from expired
    """,
)


def prune(conn: Connection, limit: int, *, until: datetime | None = None) -> int:
    """Delete at most so many executions that have expired, by the database's clock and by
    ``until``, the moment of another clock; returns how many."""
    return PRUNE.only(conn, limit=limit, until=until)
