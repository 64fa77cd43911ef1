"""Queues in SQL, as clients and operators see them: pause, resume, purge."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import msgspec

from conductor_cli.database import Connection, Statement

if TYPE_CHECKING:
    from datetime import datetime

PAUSE: Final = Statement(
    row=bool,
    sql="""
    -- Waits for the claims that are under way: see conductor.pause.
    select conductor.pause(%(queue)s)
    """,
)

RESUME: Final = Statement(
    row=bool,
    sql="""
    -- One row, and a notification: see conductor.resume.
    select conductor.resume(%(queue)s)
    """,
)


def pause(conn: Connection, queue: str) -> bool:
    """Let nobody claim from a queue once this has been committed; whether that changed anything."""
    return PAUSE.only(conn, queue=queue)


def resume(conn: Connection, queue: str) -> bool:
    """Let a paused queue be claimed from again; whether that changed anything."""
    return RESUME.only(conn, queue=queue)


class Pending(msgspec.Struct, frozen=True):
    """How many of a queue have not begun, and when they were counted."""

    count: int
    counted_at: datetime


PENDING: Final = Statement(
    row=Pending,
    sql="""
    -- Reads only.
    select count(*)::int as count, conductor.now() as counted_at from conductor.live
    where queue = %(queue)s and state in ('r', 's', 'b')
    """,
)


def pending(conn: Connection, queue: str) -> Pending:
    """What a purge would end."""
    return PENDING.only(conn, queue=queue)


PURGE: Final = Statement(
    row=int,
    sql="""
    -- A batch at a time, by the indexes that serve each state; what somebody has locked just now
    -- (a claim, an invocation with the same key) is skipped.
    with ready as materialized (
        select id from conductor.live
        where queue = %(queue)s and state = 'r' and created_at <= %(before)s
        order by rank, run_at, seq limit %(limit)s
        for update skip locked
    ), later as materialized (
        select id from conductor.live
        where queue = %(queue)s and state in ('s', 'w') and state <> 'w'
          and created_at <= %(before)s
        order by run_at limit %(limit)s - (select count(*) from ready)
        for update skip locked
    ), blocked as materialized (
        select id from conductor.live
        where queue = %(queue)s and state = 'b' and created_at <= %(before)s
        limit %(limit)s - (select count(*) from ready) - (select count(*) from later)
        for update skip locked
    )
    select conductor.archive(
        array(select id from ready union all select id from later union all select id from blocked),
        'k', json_build_object('type', 'Cancelled', 'message', 'purged', 'traceback', null))
    """,
)


def purge(conn: Connection, queue: str, *, before: datetime, limit: int) -> int:
    """Cancel executions of a queue that have not begun and were created up to a moment, at most
    ``limit``; returns how many."""
    return PURGE.only(conn, queue=queue, before=before, limit=limit)
