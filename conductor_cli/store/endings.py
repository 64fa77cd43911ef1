"""Ends that concern more than one row, and leaving a thread without an end, in SQL.

What EXCHANGE leaves alone: executions with a ledger, or that somebody waits for. Every function
takes a connection first and never commits; every write names its claim token.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final
from uuid import UUID

import msgspec

from conductor_cli.database import Connection, Statement
from conductor_cli.store import claims

if TYPE_CHECKING:
    from collections.abc import Sequence

    from conductor_cli.models import Suspended
    from conductor_cli.store.claims import Ended


class Concluded(msgspec.Struct, frozen=True):
    """An execution that has ended; ``cancelled``: because somebody had asked for it."""

    id: UUID
    cancelled: bool


FINISH: Final = Statement(
    row=Concluded,
    sql="""
    -- As EXCHANGE ends a batch, with all that hangs on it. Whoever waits for one of the batch is
    -- locked before it, so that two who end parts of a tree do not wait for each other. What
    -- somebody else has locked is left for later: the row itself, or who waits for it.
    with outcome as materialized (
        select o.id, o.token, coalesce(o.state, 'c') as state, o.result, o.error, o.keep
        from unnest(%(ids)s::uuid[], %(tokens)s::bigint[], %(states)s::text[],
                    %(results)s::text[], %(errors)s::text[], %(keeps)s::float8[])
            as o (id, token, state, result, error, keep)
    ), awaiting as materialized (
        select child_id, execution_id as id from conductor.ledger g
        where child_id = any (%(ids)s::uuid[]) and state = 'p'
          and (select true from conductor.live where id = g.execution_id)
    ), told as materialized (
        select id from conductor.live where id = any (array(select id from awaiting))
        order by id
        for update skip locked
    ), held as materialized (
        select l.id, l.flags & 1 <> 0 as cancelled, o.state, o.result, l.error as reason, o.error,
            o.keep
        from outcome o
        join conductor.live l
            on l.id = any (array[o.id]) and l.token = o.token and l.state::text = 'x'
        where not exists (
            select from awaiting a
            where a.child_id = o.id and a.id not in (select id from told))
        order by o.id
        for update of l skip locked
    ), concluded as materialized (
        select conductor.conclude(
            array_agg(id), array_agg(case when cancelled then 'k' else state end::"char"),
            array_agg(case when not cancelled then result end::json),
            array_agg(case when cancelled then reason else error::json end),
            array_agg(keep), true) as n
        from held
    )
    select id, cancelled from held where (select n from concluded) > 0
    """,
)


def finish(conn: Connection, ended: Sequence[Ended]) -> list[Concluded]:
    """End these, whatever hangs on them; returns those that this process still held."""
    return FINISH.all(conn, **claims.columns(ended))


COMPLETE: Final = Statement(
    row=int,
    sql="""
    -- In a transaction of the task's own: all that it wrote there and its completion are one
    -- commit. Waits for whoever has locked the row or who waits for it, in the order in which
    -- FINISH takes them. One that is to be cancelled is not touched.
    with told as materialized (
        select id from conductor.live
        where id = any (array(
            select execution_id from conductor.ledger where child_id = %(id)s and state = 'p'))
        order by id
        for update
    ), held as materialized (
        select id from conductor.live
        where id = %(id)s and token = %(token)s and state::text = 'x' and flags & 1 = 0
          and (select count(*) from told) >= 0
        for update
    )
    select coalesce(conductor.conclude(
        array_agg(id), array_agg('c'::"char"), array_agg(%(result)s::text::json),
        array_agg(null::json), finished => true), 0)
    from held
    """,
)


def complete(conn: Connection, id: UUID, token: int, result: str) -> bool:
    """Complete one execution with a result of JSON text; False: the claim no longer stands, or
    it is to be cancelled. It is kept for as long as its registered task says."""
    return COMPLETE.only(conn, id=id, token=token, result=result) > 0


SUSPEND: Final = Statement(
    row=UUID,
    sql="""
    -- Leave threads. A row that has been woken since its runner last looked does not wait: the
    -- count is on the row itself, so that no wake is lost however the two meet. One that is to
    -- be cancelled is not touched: inspect() finds it, and it is ended instead.
    with outcome as materialized (
        select * from unnest(%(ids)s::uuid[], %(tokens)s::bigint[], %(names)s::text[],
                             %(parks)s::text[], %(untils)s::timestamptz[], %(wakes)s::int[])
            as o (id, token, name, park, until, wakes)
    ), held as materialized (
        select l.id, l.runs, l.started_at, o.name, o.park,
            case when l.wakes > o.wakes or o.until <= conductor.now() then 'r'
                 when o.park = 'w' then 'w' else 's' end as state,
            o.until
        from outcome o
        join conductor.live l on l.id = any (array[o.id]) and l.token = o.token
            and l.state::text = 'x' and l.flags & 1 = 0
        order by o.id
        for update of l skip locked
    ), left_thread as (
        update conductor.live l set
            state = h.state::"char",
            run_at = case when h.state = 'r' then conductor.now() else h.until end,
            owner = null,
            flags = l.flags & ~(32 | 64) | 16
                | case h.park when 'z' then 32 when 'r' then 64 else 0 end
        from held h where l.id = any (array[h.id])
        returning l.id, l.queue, l.rank, l.state, l.run_at
    ), logged as (
        insert into conductor.attempts (execution_id, started_at, ended_at, run, kind, name)
        select id, started_at, conductor.now(), runs, 's', name from held
    ), told as materialized (
        select conductor.notify_queue(
            queue, min(rank), case when state <> 'r' then min(run_at) end)
        from left_thread where run_at is not null group by queue, state = 'r', state
    )
    select id from left_thread where (select count(*) from told) >= 0
    """,
)


class Leaving(msgspec.Struct, frozen=True):
    """A claim whose attempt has left its thread."""

    id: UUID
    token: int
    outcome: Suspended


def suspend(conn: Connection, leaving: Sequence[Leaving]) -> set[UUID]:
    """Let these stay for what they wait for; returns those that this process still held."""
    return set(
        SUSPEND.all(
            conn,
            ids=[each.id for each in leaving],
            tokens=[each.token for each in leaving],
            names=[each.outcome.name for each in leaving],
            parks=[each.outcome.park.value for each in leaving],
            untils=[each.outcome.until for each in leaving],
            wakes=[each.outcome.wakes for each in leaving],
        )
    )
