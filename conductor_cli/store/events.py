"""Events in SQL: emitting and dispatching, who waits for them, which tasks they start.

Every function takes a connection first and never commits.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final
from uuid import UUID

import msgspec

from conductor_cli.database import Connection, Statement
from conductor_cli.store.ledger import Recorded

if TYPE_CHECKING:
    from collections.abc import Sequence

    from conductor_cli.models import TriggerSpec


class FailedEvent(msgspec.Struct, frozen=True):
    """An event that could not be dispatched. ``dead``: it is not tried again."""

    id: UUID
    name: str
    failures: int
    dead: bool


class StuckEvents(msgspec.Struct, frozen=True):
    """Events of one name that are not dispatched; ``dead``: how many of them were given up."""

    name: str
    count: int
    oldest_seconds: float
    dead: int
    error: str | None


EMIT: Final = Statement(
    row=UUID,
    sql="""
    -- One row of its own; what follows from it is done after the commit.
    select conductor.emit(%(event)s, %(payload)s::text::jsonb)
    """,
)


def emit(conn: Connection, event: str, payload: str) -> UUID:
    """Emit an event with a payload of JSON text; its id."""
    return EMIT.only(conn, event=event, payload=payload)


# On connections that callers lend, as in executions.
LENT: Final = "select cast(conductor.emit($1, cast(cast($2 as text) as jsonb)) as text)"


DISPATCH: Final = Statement(
    row=int,
    sql="""
    -- Any number at once: see conductor.dispatch.
    select conductor.dispatch(%(most)s)
    """,
)


def dispatch(conn: Connection, most: int) -> int:
    """Tell those who wait, and start tasks, for the oldest ``most`` events; how many are done."""
    return DISPATCH.only(conn, most=most)


FAIL: Final = Statement(
    row=FailedEvent,
    sql="""
    -- Two dispatchers may fail at one event at the same time. Without the row lock both would count
    -- the same failure twice as fast; skip locked lets the second one fail no event. The event is
    -- the one that conductor.dispatch(1) takes.
    update conductor.events e set
        failures = e.failures + 1, error = %(error)s,
        retry_at = conductor.now() + least(60, 2 ^ least(e.failures, 10)) * interval '1 second',
        dead = %(refused)s and e.failures + 1 >= %(tries)s
    where e.id = any (array(
        select id from conductor.events
        where seq > 0 and not dead and coalesce(retry_at <= conductor.now(), true)
        order by seq limit 1 for update skip locked))
    returning e.id, e.name, e.failures, e.dead
    """,
)


def fail(conn: Connection, error: str, *, refused: bool, tries: int) -> FailedEvent | None:
    """Record that the oldest due event cannot be dispatched. After so many ``tries`` it is given
    up, if Postgres ``refused`` it; an event that only takes too long is tried again for ever."""
    return FAIL.one(conn, error=error, refused=refused, tries=tries)


STUCK: Final = Statement(
    row=StuckEvents,
    sql="""
    -- Reads only, no more than 10,000 events.
    select name, count(*)::int as count,
        extract(epoch from conductor.now() - min(emitted_at))::float8 as oldest_seconds,
        (count(*) filter (where dead))::int as dead, max(error) as error
    from (select name, emitted_at, dead, error from conductor.events
          where seq > 0 and emitted_at <= conductor.now() - %(older)s * interval '1 second'
          order by seq limit 10000) e
    group by name order by oldest_seconds desc
    """,
)


def stuck(conn: Connection, older: float) -> list[StuckEvents]:
    """Events by name that have not been dispatched for ``older`` seconds."""
    return STUCK.all(conn, older=older)


SUBSCRIBE: Final = Statement(
    row=Recorded,
    sql="""
    -- Which events came before: those of its name that are there and not dispatched. The
    -- row keeps their numbers, which mean the same after a restore into another cluster. Whoever
    -- emits after this commit is dispatched by somebody who sees this row.
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
        insert into conductor.ledger (
            execution_id, name, kind, state, created_at, about, branch, before, exact, tests)
        select h.id, %(name)s, 'e', 'p', conductor.now(), %(event)s, %(branch)s,
            (select range_agg(int8range(e.seq, e.seq, '[]')) from conductor.events e
             where e.name = %(event)s),
            %(exact)s::text::jsonb, %(tests)s::text::jsonb
        from held h
        on conflict (execution_id, name) do nothing
    )
    select exists (select from held) as held, null::timestamptz as until
    """,
)


def subscribe(
    conn: Connection,
    id: UUID,
    token: int,
    *,
    name: str,
    event: str,
    exact: str,
    tests: str,
    branch: bool,
    mark: bool,
) -> bool:
    """Register for the first event that fits from now on; whether the claim stands."""
    return SUBSCRIBE.only(
        conn, id=id, token=token, name=name, event=event, exact=exact, tests=tests,
        branch=branch, mark=mark,
    ).held  # fmt: skip


AWAIT: Final = Statement(
    row=Recorded,
    sql="""
    -- The time to wait begins when it is first waited, and not with a later attempt.
    with held as materialized (
        select id from conductor.live
        where id = %(id)s and token = %(token)s and state::text = 'x'
        for share
    ), timed as (
        update conductor.ledger g set
            until = coalesce(g.until, conductor.now() + %(seconds)s * interval '1 second')
        from held h
        where g.execution_id = h.id and g.name = %(name)s and g.state = 'p'
        returning g.until
    )
    select exists (select from held) as held, (select until from timed) as until
    """,
)


def wait(conn: Connection, id: UUID, token: int, *, name: str, seconds: float) -> Recorded:
    """Wait for so long at most for an event that was registered for."""
    return AWAIT.only(conn, id=id, token=token, name=name, seconds=seconds)


SAVE_TRIGGERS: Final = Statement(
    row=int,
    sql="""
    -- Those of tasks that are served and no longer name them are removed.
    with given as (
        select * from json_to_recordset(%(triggers)s::text::json) as t (
            task text, queue text, place int, event text, payload text, exact text, tests text)
        order by task, queue, place
    ), removed as (
        delete from conductor.triggers t
        where t.task = any (%(tasks)s) and not exists (
            select from given g
            where g.task = t.task and g.queue = t.queue and g.place = t.place)
    ), saved as (
        insert into conductor.triggers (task, queue, place, event, payload, exact, tests)
        select task, queue, place, event, payload::json, exact::jsonb, tests::jsonb from given
        on conflict (task, queue, place) do update set
            event = excluded.event, payload = excluded.payload, exact = excluded.exact,
            tests = excluded.tests
        where (triggers.event, triggers.payload::text, triggers.exact, triggers.tests)
            is distinct from
              (excluded.event, excluded.payload::text, excluded.exact, excluded.tests)
        returning 1
    )
    select count(*)::int from saved
    """,
)


def save_triggers(conn: Connection, triggers: Sequence[TriggerSpec], tasks: Sequence[str]) -> int:
    """Store which events start ``tasks``; returns how many of them changed."""
    return SAVE_TRIGGERS.only(
        conn, triggers=msgspec.json.encode(triggers).decode(), tasks=list(tasks)
    )
