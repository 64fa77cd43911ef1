"""The hot path in SQL: end and claim, retry and hand back, what is due, what was lost.

Every function takes a connection first and never commits. Every write to a running row names
its claim token, and says which rows it still held.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final, assert_never
from uuid import UUID

import msgspec

from conductor_cli.connections import Unreadable
from conductor_cli.database import Connection, Statement
from conductor_cli.errors import PayloadError
from conductor_cli.models import (
    Cancelled,
    Claimed,
    Completed,
    ExecutionError,
    Failed,
    HandedBack,
    Retrying,
)
from conductor_cli.parameters import array, quoted

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Sequence


class Place(msgspec.Struct, frozen=True):
    """Where a claim starts to look: nothing a worker wants is known to stand before it."""

    rank: int
    run_at: datetime | None
    seq: int


START: Final = Place(rank=-32768, run_at=None, seq=0)


class Exchanged(Claimed, frozen=True, gc=False):
    """A claimed row, or nothing but nulls in its place; and what is special about the batch."""

    missing: list[UUID] | None
    cancelled: list[UUID] | None


EXCHANGE: Final = Statement(
    row=Exchanged,
    sql="""
    -- End one batch and claim the next in one round trip and one commit. Concurrent claims
    -- skip each other's rows. A row of the batch is ended only if this claim still holds it;
    -- whether it was cancelled is decided on the row itself, so that a cancel before this commit
    -- is never lost. A row that somebody else has locked (a cancel that is not committed) is
    -- waited for no longer than lock_timeout: the caller then leaves it out (see LOCKED). One
    -- whose end concerns more than itself is left for FINISH, whatever the worker knew of it.
    -- (state::text: statistics that know of no running rows would have all of them read by
    -- live_owner. any (array[...]): see docs/architecture.md, as wherever it stands. ctid: nobody
    -- moves a row that this statement has locked.)
    with outcome as materialized (
        -- Arrays may be shorter than that of the ids: most batches are of completed ones only,
        -- without errors, many without results.
        select o.id, o.token, coalesce(o.state, 'c') as state, o.result, o.error, o.keep
        from unnest(%(ids)s::uuid[], %(tokens)s::bigint[], %(states)s::text[],
                    %(results)s::text[], %(errors)s::text[], %(keeps)s::float8[])
            as o (id, token, state, result, error, keep),
            set_config('lock_timeout', '100ms', true)
    ), gone as (
        delete from conductor.live l using outcome o
        where l.id = any (array[o.id]) and l.token = o.token and l.state::text = 'x'
          and l.flags & ~9 = 0
        returning l.*, o.state as ending, o.result, o.error as reason, o.keep
    ), kept as (
        insert into conductor.history (
            id, parent_id, seq, token, run_at, created_at, started_at, finished_at, expires_at,
            timeout, runs, failures, crashes, rank, state, queue, task, dedupe_key,
            group_key, payload, metadata, event, result, error)
        select id, parent_id, seq, token, run_at, created_at, started_at, conductor.now(),
            coalesce(conductor.now() + keep * interval '1 second', 'infinity'),
            timeout, runs, failures + (ending = 'f')::integer, crashes, rank,
            (case when flags & 1 <> 0 then 'k' else ending end)::"char",
            queue, task, dedupe_key, group_key, payload, metadata, event,
            case when flags & 1 = 0 and ending = 'c' then coalesce(result, 'null')::json end,
            case when flags & 1 <> 0 then error else reason::json end
        from gone
        where keep is distinct from 0
    ), claimed as (
        update conductor.live set
            state = 'x', owner = %(owner)s, token = %(token)s, runs = runs + 1,
            started_at = conductor.now()
        where ctid = any (array(
            select ctid from conductor.live
            where queue = %(queue)s and state = 'r' and task = any (%(tasks)s)
              and (rank, run_at, seq) >= (
                  %(from_rank)s::smallint,
                  coalesce(%(from_run_at)s::timestamptz, '-infinity'),
                  %(from_seq)s::bigint)
              and not exists (select from conductor.queues  -- once; locked against conductor.pause
                              where name = %(queue)s and paused for key share)
            order by rank, run_at, seq
            limit %(limit)s
            for update skip locked))
        returning id, token, task, payload, runs, failures, crashes, timeout, metadata, event,
            rank, run_at, seq, flags
    ), summary as (
        select count(*) as ended, count(*) filter (where flags & 1 <> 0) as cancelled,
            count(conductor.notify_ended(id)) filter (where flags & 8 <> 0) as told
        from gone
    )
    select c.id, c.token, c.task, c.payload::text, c.runs, c.failures, c.crashes, c.timeout,
        c.metadata::text, c.event::text, c.rank, c.run_at, c.seq, c.flags,
        case when s.ended < cardinality(%(ids)s::uuid[]) then
            array(select id from outcome where id not in (select id from gone)) end as missing,
        case when s.cancelled > 0 then
            array(select id from gone where flags & 1 <> 0) end as cancelled
    from summary s left join claimed c on true
    order by c.rank, c.run_at, c.seq
    """,
)

CLAIM: Final = Statement(
    row=Claimed,
    sql="""
    -- The claim of EXCHANGE alone, in half its time: what an idle worker is woken for. Concurrent
    -- claims skip each other's rows, and nobody moves a row that this statement has locked.
    with claimed as (
        update conductor.live set
            state = 'x', owner = %(owner)s, token = %(token)s, runs = runs + 1,
            started_at = conductor.now()
        where ctid = any (array(
            select ctid from conductor.live
            where queue = %(queue)s and state = 'r' and task = any (%(tasks)s)
              and (rank, run_at, seq) >= (
                  %(from_rank)s::smallint,
                  coalesce(%(from_run_at)s::timestamptz, '-infinity'),
                  %(from_seq)s::bigint)
              and not exists (select from conductor.queues  -- once; locked against conductor.pause
                              where name = %(queue)s and paused for key share)
            order by rank, run_at, seq
            limit %(limit)s
            for update skip locked))
        returning id, token, task, payload, runs, failures, crashes, timeout, metadata, event,
            rank, run_at, seq, flags
    )
    select id, token, task, payload::text, runs, failures, crashes, timeout, metadata::text,
        event::text, rank, run_at, seq, flags
    from claimed
    order by rank, run_at, seq
    """,
)

Ending = Completed | Failed | Cancelled


class Ended(msgspec.Struct, frozen=True, gc=False):
    """How one claim ended. ``keep``: seconds to keep it, None for ever, 0 not at all."""

    id: UUID
    token: int
    outcome: Ending
    keep: float | None


class Claim(msgspec.Struct, frozen=True):
    """Whom to claim for, and how many of what. ``token`` is new for every claim."""

    owner: UUID
    token: int
    queue: str
    tasks: Sequence[str]
    start: Place
    limit: int


class Spoilt(msgspec.Struct, frozen=True):
    """A claimed row that Python cannot read; what is unreadable is empty in ``claimed``."""

    claimed: Claimed
    error: Exception


class Exchange(msgspec.Struct, frozen=True):
    """What an exchange brought.

    ``missing``: those of the batch that were not ended; ``cancelled``: those that ended
    cancelled because somebody had asked for it, whatever their outcome; ``spoilt``: claimed, and
    to be failed.
    """

    claimed: Sequence[Claimed]
    missing: Sequence[UUID]
    cancelled: Sequence[UUID]
    spoilt: Sequence[Spoilt] = ()


def exchange(conn: Connection, ended: Sequence[Ended], claim: Claim) -> Exchange:
    """End a batch and claim the next. Why some are missing, ``inspect`` tells.

    Does nothing of it and raises LockNotAvailable while somebody else has locked one of the
    batch (see ``locked``).
    """
    wanted: dict[str, object] = {
        "owner": claim.owner,
        "token": claim.token,
        "queue": claim.queue,
        "tasks": claim.tasks,
        "from_rank": claim.start.rank,
        "from_run_at": claim.start.run_at,
        "from_seq": claim.start.seq,
        "limit": claim.limit,
    }
    # The claim is committed before its reply is read. A row that cannot be read would leave all
    # rows of the batch running, with nobody to run them. So each row is read by itself then.
    # tests/services/test_unreadable_rows.py
    if not ended:
        claimed, spoilt = CLAIM.each(conn, **wanted)
        return Exchange(claimed, [], [], list(map(_spoilt, spoilt)))
    rows, spoilt = EXCHANGE.each(conn, **columns(ended), **wanted)
    missing, cancelled = (rows[0].missing, rows[0].cancelled) if rows else spoilt[0][-2:]
    read = rows if rows and rows[0].token else []
    return Exchange(read, missing or [], cancelled or [], list(map(_spoilt, spoilt)))


_NO_MOMENT: Final = datetime.fromtimestamp(0, UTC)


def _spoilt(columns: Sequence[Any]) -> Spoilt:
    values = dict(zip(Claimed.__struct_fields__, columns, strict=False))
    wrong = [value for value in values.values() if isinstance(value, Unreadable)]
    empty = {"task": "", "payload": "null", "run_at": _NO_MOMENT}
    readable: dict[str, Any] = {
        name: empty.get(name) if isinstance(value, Unreadable) else value
        for name, value in values.items()
    }
    told = "; ".join(f"its {each.column}: {each.error}" for each in wrong)
    return Spoilt(
        Claimed(**readable),
        PayloadError(
            f"What the database holds of this execution cannot be read in Python: {told}. "
            "Invoke it again with values that can."
        ),
    )


def columns(ended: Sequence[Ended]) -> dict[str, object]:
    """A batch as the arrays of EXCHANGE and FINISH. Written here: the driver's way takes longer
    than all the rest."""
    outcomes = [e.outcome for e in ended]
    completed = [o.result if type(o) is Completed else "null" for o in outcomes]
    plain = all([type(o) is Completed for o in outcomes])
    return {
        "ids": array([f"{e.id.int:032x}" for e in ended]),
        "tokens": array([str(e.token) for e in ended]),
        "keeps": array(["null" if e.keep is None else repr(float(e.keep)) for e in ended]),
        "states": [] if plain else [_state(o) for o in outcomes],
        "errors": [] if plain else [_error(o) for o in outcomes],
        "results": [] if set(completed) <= {"null"} else array(list(map(quoted, completed))),
    }


LOCKED: Final = Statement(
    row=UUID,
    sql="""
    -- Those of a batch that somebody else has locked. Waits for nothing, and keeps no lock.
    with running as materialized (
        select l.id
        from unnest(%(ids)s::uuid[], %(tokens)s::bigint[]) as o (id, token)
        join conductor.live l
            on l.id = any (array[o.id]) and l.token = o.token and l.state::text = 'x'
    ), free as materialized (
        select l.id from conductor.live l
        where l.id = any (array(select id from running))
        order by l.id
        for update skip locked
    )
    select id from running where id not in (select id from free)
    """,
)


def locked(conn: Connection, ids: Sequence[UUID], tokens: Sequence[int]) -> set[UUID]:
    """Those of these claims whose rows are locked by somebody else."""
    return set(LOCKED.all(conn, ids=ids, tokens=tokens))


REQUEUE: Final = Statement(
    row=UUID,
    sql="""
    -- Give rows back, each only for the claim that holds it. One that is to be cancelled is
    -- not touched: inspect() finds it, and it is ended instead.
    with outcome as materialized (
        select * from unnest(%(ids)s::uuid[], %(tokens)s::bigint[], %(delays)s::float8[],
                             %(failures)s::int[], %(uncounted)s::int[], %(errors)s::text[])
            as o (id, token, delay, failures, uncounted, error)
    ), held as materialized (
        select l.id, l.runs, l.started_at, o.delay, o.failures, o.uncounted, o.error
        from outcome o
        join conductor.live l on l.id = any (array[o.id]) and l.token = o.token
            and l.state::text = 'x' and l.flags & 1 = 0
        order by o.id
        for update of l skip locked
    ), given as (
        update conductor.live l set
            state = case when h.delay > 0 then 's' else 'r' end::"char",
            run_at = conductor.now() + h.delay * interval '1 second',
            owner = null,
            failures = l.failures + h.failures,
            runs = l.runs - h.uncounted,
            error = coalesce(h.error::json, l.error),
            flags = l.flags & ~(32 | 64) | case when h.uncounted = 0 then 16 else 0 end
        from held h where l.id = any (array[h.id])
        returning l.id, l.queue, l.rank, l.state, l.run_at
    ), logged as (
        insert into conductor.attempts (
            execution_id, started_at, ended_at, run, kind, error)
        select id, started_at, conductor.now(), runs,
            case when failures > 0 then 'f' else 'z' end::"char", error::json
        from held where uncounted = 0
    ), told as materialized (
        select conductor.notify_queue(
            queue, min(rank), case when state = 's' then min(run_at) end)
        from given group by queue, state
    )
    select id from given where (select count(*) from told) >= 0
    """,
)


class Requeued(msgspec.Struct, frozen=True):
    """A claim to give back: a retry, a snooze or a hand-back."""

    id: UUID
    token: int
    outcome: Retrying | HandedBack


def requeue(conn: Connection, given: Sequence[Requeued]) -> set[UUID]:
    """Give claims back; returns those that this process still held."""
    retries = [g.outcome if type(g.outcome) is Retrying else None for g in given]
    return set(
        REQUEUE.all(
            conn,
            ids=[g.id for g in given],
            tokens=[g.token for g in given],
            delays=[float(g.outcome.delay) for g in given],
            failures=[int(r is not None and r.counts) for r in retries],
            uncounted=[int(r is None) for r in retries],
            errors=[encode_error(r.error) if r is not None else None for r in retries],
        )
    )


class Verdict(msgspec.Struct, frozen=True):
    """Why a write did not hold its row: ``locked``, ``cancelled``, ``flagged`` (its end concerns
    more than itself), ``recorded`` (it has ended), ``released`` (this claim has given it back) or
    ``stale``."""

    id: UUID
    verdict: str


INSPECT: Final = Statement(
    row=Verdict,
    sql="""
    -- Reads only. A row that is in history with this token was ended by an earlier try whose reply
    -- was lost. A live row with this token that no longer runs was given back by such a try: an end
    -- has not been recorded there.
    select o.id, case
        when l.token = o.token and l.state = 'x' and l.flags & 1 <> 0 then 'cancelled'
        when l.token = o.token and l.state = 'x' and l.flags & ~9 <> 0 then 'flagged'
        when l.token = o.token and l.state = 'x' then 'locked'
        when l.token = o.token then 'released'
        when 0 < (select count(*) from conductor.history h where h.id = o.id and h.token = o.token)
            then 'recorded'
        else 'stale' end as verdict
    from unnest(%(ids)s::uuid[], %(tokens)s::bigint[]) as o (id, token)
    left join conductor.live l on l.id = any (array[o.id])
    """,
)


def inspect(conn: Connection, ids: Sequence[UUID], tokens: Sequence[int]) -> dict[UUID, str]:
    """Why each of these claims was not written: see Verdict."""
    return {v.id: v.verdict for v in INSPECT.all(conn, ids=ids, tokens=tokens)}


class Promoted(msgspec.Struct, frozen=True):
    """How many became ready, and when the next one is due (None: none is).

    ``next_in``: in seconds from now; ``next_at``: seconds since 1970 by the database's clock.
    """

    promoted: int
    next_in: float | None
    next_at: float | None


PROMOTE: Final = Statement(
    row=Promoted,
    sql="""
    -- The future enters the ready index only when it is due, and who waits for no longer than
    -- until now goes on without. Servers that promote at once skip each other's rows.
    with promoted as (
        update conductor.live set state = 'r'
        where id = any (array(
            select id from conductor.live
            where queue = %(queue)s and state in ('s', 'w') and run_at <= conductor.now()
            order by run_at
            limit %(limit)s
            for update skip locked))
        returning 1
    )
    select (select count(*) from promoted)::int as promoted,
        extract(epoch from next.at - conductor.now())::float8 as next_in,
        extract(epoch from next.at)::float8 as next_at
    from (
        select min(run_at) as at from conductor.live
        where queue = %(queue)s and state in ('s', 'w') and run_at > conductor.now()
          and run_at < '9999-12-30 00:00+00'  -- from infinity nothing can be subtracted
    ) next
    """,
)


def promote(conn: Connection, queue: str, limit: int) -> Promoted:
    """Make due executions of a queue ready, at most ``limit``."""
    return PROMOTE.only(conn, queue=queue, limit=limit)


UNKNOWN: Final = Statement(
    row=int,
    sql="""
    -- Reads only: tokens of this server's running rows that are not among those it knows.
    select distinct token from conductor.live
    where owner = %(owner)s and state = 'x' and queue = %(queue)s
      and not (token = any (%(tokens)s))
    """,
)

RECONCILE: Final = Statement(
    row=int,
    sql="""
    -- The race: a pump looks for lost claims, and the worker's other pump claims meanwhile. The new
    -- rows would be given back while they run. Only rows with a token that was lost are given back:
    -- UNKNOWN has seen it in the table, and after that the worker did not know it; no claim ever
    -- uses it again, so this may also arrive late. The row loses the token: who names it later is
    -- told that the claim is stale. Test: test_a_planted_defect_is_found.
    --
    -- A row that is to be cancelled is ended: nobody else will. What somebody else has locked is
    -- left for the next time.
    with lost as materialized (
        select id, flags from conductor.live
        where owner = %(owner)s and state = 'x' and queue = %(queue)s
          and token = any (%(lost)s)
        order by array[id]
        for update skip locked
    ), back as (
        update conductor.live l set
            state = 'r', run_at = conductor.now(), owner = null, token = null, runs = l.runs - 1
        from lost where l.id = any (array[lost.id]) and lost.flags & 1 = 0
    )
    select (select count(*) from lost)::int
        + 0 * conductor.archive(array(select id from lost where flags & 1 <> 0), 'k', null)
    """,
)


def reconcile(
    conn: Connection, owner: UUID, queue: str, known: Callable[[], Collection[int]]
) -> int:
    """Give back claims of this server in this queue whose tokens it does not know.

    ``known`` is asked twice: before the database is, and again about what that has found.
    """
    unknown = UNKNOWN.all(conn, owner=owner, queue=queue, tokens=list(known()))
    lost = set(unknown).difference(known()) if unknown else None
    if not lost:
        return 0
    return RECONCILE.only(conn, owner=owner, queue=queue, lost=list(lost))


def encode_error(error: ExecutionError | None) -> str | None:
    """An error as JSON text."""
    return None if error is None else msgspec.json.encode(error).decode()


def _state(outcome: Ending) -> str:
    match outcome:
        case Completed():
            return "c"
        case Failed():
            return "f"
        case Cancelled():
            return "k"
        case other:
            assert_never(other)


def _error(outcome: Ending) -> str | None:
    match outcome:
        case Completed():
            return None
        case Failed(error=error):
            return encode_error(error)
        case Cancelled(reason=reason):
            return encode_error(ExecutionError("Cancelled", reason or ""))
        case other:
            assert_never(other)
