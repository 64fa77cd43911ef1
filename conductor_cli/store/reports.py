"""What people and programs ask: one execution, lists, counts. Reads only."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import msgspec

from conductor_cli.database import Connection, Statement
from conductor_cli.models import Execution, ExecutionError, State

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from datetime import datetime
    from uuid import UUID


class ExecutionRow(msgspec.Struct, frozen=True):
    """A row of conductor.executions, JSON as text."""

    id: UUID
    task: str
    queue: str
    state: str
    payload: str
    result: str | None
    error: str | None
    attempt: int
    failures: int
    crashes: int
    priority: int
    run_at: datetime | None
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None
    parent_id: UUID | None
    progress: str | None
    metadata: str | None
    group: str | None
    runs: int
    cancel_requested: bool
    dedupe_key: str | None


GET: Final = Statement(
    row=ExecutionRow,
    sql="""
    -- One statement, one snapshot: an execution that ends meanwhile is in one place or the other.
    select id, task, queue, state, payload::text, result::text, error::text, attempt, failures,
        crashes, priority, run_at, created_at, started_at, finished_at, parent_id,
        progress::text, metadata::text, "group", runs, cancel_requested, dedupe_key
    from conductor.executions
    where id = any (%(ids)s)
    order by created_at desc, id desc
    """,
)


def get(conn: Connection, id: UUID) -> Execution | None:
    """One execution as it stands."""
    rows = GET.all(conn, ids=[id])
    return _execution(rows[0]) if rows else None


def get_many(conn: Connection, ids: Sequence[UUID]) -> list[Execution]:
    """Those of these executions that exist, newest first."""
    return [_execution(row) for row in GET.all(conn, ids=list(ids))]


LIST: Final = Statement(
    row=ExecutionRow,
    sql="""
    -- Each part is cut to the limit before they meet: history by its indexes on created_at, of
    -- which the second part has one of its own, whatever the plan.
    with found as (
        (select id from conductor.live
         where (%(task)s::text is null or task = %(task)s)
           and (%(queue)s::text is null or queue = %(queue)s)
           and (%(group)s::text is null or group_key = %(group)s)
           and (%(since)s::timestamptz is null or created_at >= %(since)s)
           and (%(error)s::text is null or strpos(error::text, %(error)s) > 0)
           and (%(state)s::text is null or %(state)s = case state
                when 'x' then 'running' when 'w' then 'waiting' else 'pending' end)
         order by created_at desc, id desc limit %(limit)s)
        union all
        (select id from conductor.history
         where coalesce(%(state)s::text, 'completed') = 'completed'
           and (%(state)s::text is null or state = 'c')
           and (%(task)s::text is null or task = %(task)s)
           and (%(queue)s::text is null or queue = %(queue)s)
           and (%(group)s::text is null or group_key = %(group)s)
           and (%(since)s::timestamptz is null or created_at >= %(since)s)
           and (%(error)s::text is null or strpos(error::text, %(error)s) > 0)
           and expires_at > conductor.now()
         order by created_at desc limit %(limit)s)
        union all
        (select id from conductor.history
         where state <> 'c' and %(state)s::text in ('failed', 'cancelled')
           and %(state)s = case state when 'f' then 'failed' else 'cancelled' end
           and (%(task)s::text is null or task = %(task)s)
           and (%(queue)s::text is null or queue = %(queue)s)
           and (%(group)s::text is null or group_key = %(group)s)
           and (%(since)s::timestamptz is null or created_at >= %(since)s)
           and (%(error)s::text is null or strpos(error::text, %(error)s) > 0)
           and expires_at > conductor.now()
         order by created_at desc limit %(limit)s)
    )
    select id, task, queue, state, payload::text, result::text, error::text, attempt, failures,
        crashes, priority, run_at, created_at, started_at, finished_at, parent_id,
        progress::text, metadata::text, "group", runs, cancel_requested, dedupe_key
    from conductor.executions
    where id = any (array(select id from found))
    order by created_at desc, id desc
    limit %(limit)s
    """,
)


def list_executions(
    conn: Connection,
    *,
    state: State | None = None,
    task: str | None = None,
    queue: str | None = None,
    group: str | None = None,
    error: str | None = None,
    since: datetime | None = None,
    limit: int = 100,
) -> list[Execution]:
    """Executions that match, newest first. ``error``: a text that their error contains."""
    rows = LIST.all(
        conn,
        state=state,
        task=task,
        queue=queue,
        group=group,
        error=error,
        since=since,
        limit=limit,
    )
    return [_execution(row) for row in rows]


BY_PREFIX: Final = Statement(
    row=ExecutionRow,
    sql="""
    -- A prefix of a UUID is a range of UUIDs, which both primary indexes serve.
    select id, task, queue, state, payload::text, result::text, error::text, attempt, failures,
        crashes, priority, run_at, created_at, started_at, finished_at, parent_id,
        progress::text, metadata::text, "group", runs, cancel_requested, dedupe_key
    from conductor.executions
    where id between %(low)s and %(high)s
    order by id
    limit %(limit)s
    """,
)


def by_prefix(conn: Connection, low: UUID, high: UUID, limit: int) -> list[Execution]:
    """Executions with an id in this range, ends included."""
    return [_execution(row) for row in BY_PREFIX.all(conn, low=low, high=high, limit=limit)]


class Ambiguous(msgspec.Struct, frozen=True):
    """An execution that has neighbours."""

    id: UUID


WITH_NEIGHBOURS: Final = Statement(
    row=Ambiguous,
    sql="""
    -- Each range is looked up in both primary indexes, as BY_PREFIX does for one.
    select given.id
    from unnest(%(ids)s::uuid[], %(lows)s::uuid[], %(highs)s::uuid[]) as given (id, low, high)
    where exists (
        select from conductor.executions as other
        where other.id between given.low and given.high and other.id <> given.id)
    """,
)


def with_neighbours(conn: Connection, ranges: Mapping[UUID, tuple[UUID, UUID]]) -> list[UUID]:
    """The ids in whose range of ids another execution has one, too."""
    found = WITH_NEIGHBOURS.all(
        conn,
        ids=list(ranges),
        lows=[low for low, _ in ranges.values()],
        highs=[high for _, high in ranges.values()],
    )
    return [each.id for each in found]


class Backlog(msgspec.Struct, frozen=True):
    """What is left in some queues, counted in one snapshot.

    ``ready``: could be claimed by whoever serves ``tasks``; ``running``: anywhere; ``blocked``: by
    a limit, or because its queue is paused; ``events``: to be dispatched; ``later``: will be ready
    by itself; ``next_in``: seconds until the next scheduled or retrying one is due.
    """

    ready: int
    running: int
    retrying: int
    scheduled: int
    waiting: int
    blocked: int
    unserved: int
    events: int
    later: int
    next_in: float | None


BACKLOG: Final = Statement(
    row=Backlog,
    sql="""
    -- One snapshot, so that what moves between states is counted exactly once.
    select
        (count(*) filter (where served and due and not paused))::int as ready,
        (count(*) filter (where state = 'x'))::int as running,
        (count(*) filter (where served and retries
            and (state = 's' and not due or due and paused)))::int as retrying,
        (count(*) filter (where served and state = 's' and not retries
            and not due))::int as scheduled,
        (count(*) filter (where state = 'w'))::int as waiting,
        (count(*) filter (where served
            and (state = 'b' or due and paused and not retries)))::int as blocked,
        (count(*) filter (where not served and state in ('r', 's', 'b')))::int as unserved,
        (select count(*) from conductor.events where not dead)::int as events,
        (count(*) filter (where not paused and served and not due
            and (state = 's' or state = 'w' and run_at is not null)))::int as later,
        extract(epoch from min(run_at) filter (
            where served and state in ('s', 'w') and run_at > conductor.now())
            - conductor.now())::float8 as next_in
    from (
        select l.state, l.run_at, l.task = any (%(tasks)s) as served,
            coalesce(q.paused, false) as paused,
            l.flags & 64 <> 0 or l.failures > 0 and l.flags & 32 = 0 as retries,
            l.state = 'r' or l.state in ('s', 'w') and coalesce(l.run_at <= conductor.now(), false)
                as due
        from conductor.live l left join conductor.queues q on q.name = l.queue
        where l.queue = any (%(queues)s)
    ) l
    """,
)


def backlog(conn: Connection, queues: Sequence[str], tasks: Sequence[str]) -> Backlog:
    """Count what is left in these queues, as seen by a server of these tasks."""
    return BACKLOG.only(conn, queues=list(queues), tasks=list(tasks))


class QueueReport(msgspec.Struct, frozen=True):
    """One queue: live counts, and what it has finished in the last minute."""

    queue: str
    paused: bool
    ready: int
    scheduled: int
    retrying: int
    blocked: int
    waiting: int
    running: int
    oldest_ready_seconds: float | None
    finished_last_minute: int
    failed_last_minute: int


QUEUES: Final = Statement(
    row=QueueReport,
    sql="""
    -- Live rows are counted; history is only looked at by its index, the last minute of it.
    with live as (
        select queue,
            count(*) filter (where state = 'r') as ready,
            count(*) filter (where state = 's' and failures = 0) as scheduled,
            count(*) filter (where state = 's' and failures > 0) as retrying,
            count(*) filter (where state = 'b') as blocked,
            count(*) filter (where state = 'w') as waiting,
            count(*) filter (where state = 'x') as running,
            extract(epoch from conductor.now() - min(run_at) filter (where state = 'r'))
                ::float8 as oldest
        from conductor.live group by queue
    ), recent as (
        select queue, count(*) as finished, count(*) filter (where state = 'f') as failed
        from conductor.history
        where created_at > conductor.now() - interval '10 minutes'
          and finished_at > conductor.now() - interval '1 minute'
        group by queue
    ), names as (
        select queue from live union select queue from recent
        union select queue from conductor.tasks
        union select name from conductor.queues where paused
    )
    select n.queue, coalesce(q.paused, false) as paused,
        coalesce(l.ready, 0)::int as ready, coalesce(l.scheduled, 0)::int as scheduled,
        coalesce(l.retrying, 0)::int as retrying, coalesce(l.blocked, 0)::int as blocked,
        coalesce(l.waiting, 0)::int as waiting, coalesce(l.running, 0)::int as running,
        l.oldest as oldest_ready_seconds,
        coalesce(r.finished, 0)::int as finished_last_minute,
        coalesce(r.failed, 0)::int as failed_last_minute
    from names n left join live l using (queue) left join recent r using (queue)
    left join conductor.queues q on q.name = n.queue
    order by n.queue
    """,
)


class ServerReport(msgspec.Struct, frozen=True):
    """One server of the fleet, by the database's clock."""

    id: UUID
    leader: bool
    hostname: str
    pid: int
    version: str
    queues: list[str]
    running: int
    stopping: bool
    started_at: datetime
    last_beat_seconds: float
    alive: bool


SERVERS: Final = Statement(
    row=ServerReport,
    sql="""
    -- Reads only.
    select o.id, coalesce(l.leader = o.id, false) as leader, o.hostname, o.pid, o.version,
        o.queues,
        (select count(*) from conductor.live x
         where x.owner = o.id and x.state = 'x')::int as running,
        o.stopping, o.started_at,
        extract(epoch from conductor.now() - o.beat_at)::float8 as last_beat_seconds,
        o.beat_at + o.timeout * interval '1 second' > conductor.now() as alive
    from conductor.orchestrators o left join conductor.leadership l on true
    order by o.started_at, o.id
    """,
)


class UnservedReport(msgspec.Struct, frozen=True):
    """Ready executions of a task that no living server's queue list and registry covers."""

    queue: str
    task: str
    count: int
    oldest_seconds: float


UNSERVED: Final = Statement(
    row=UnservedReport,
    sql="""
    -- Reads only. A task is served when it is registered in the queue and a living server has the
    -- queue. The dead stay in the fleet until somebody is there to rescue what they held.
    select l.queue, l.task, count(*)::int as count,
        extract(epoch from conductor.now() - min(l.run_at))::float8 as oldest_seconds
    from conductor.live l
    where l.state = 'r' and not exists (
        select from conductor.tasks t
        join conductor.orchestrators o on t.queue = any (o.queues)
        where t.queue = l.queue and t.name = l.task
          and o.beat_at + o.timeout * interval '1 second' > conductor.now())
    group by l.queue, l.task
    order by l.queue, l.task
    """,
)


class Standing(msgspec.Struct, frozen=True):
    """Why an execution that has not ended stands where it does.

    ``due_in``: seconds, None without a deadline; ``ahead``: how many ready ones of its queue come
    first, counted to 10,000; ``servers``: living ones of its queue; ``registered``: whether its
    task is served there; ``paused``: its queue; ``host`` and ``pid``: of the server that runs it.
    """

    state: str
    due_in: float | None
    ahead: int
    servers: int
    registered: bool
    paused: bool
    cancel_asked: bool
    host: str | None
    pid: int | None


STANDING: Final = Statement(
    row=Standing,
    sql="""
    -- Reads only; a long queue is not counted to its end.
    select l.state::text,
        case when isfinite(l.run_at) then
            extract(epoch from l.run_at - conductor.now())::float8 end as due_in,
        (select count(*) from (
            select from conductor.live o
            where o.queue = l.queue and o.state = 'r'
              and (o.rank, o.run_at, o.seq) < (l.rank, l.run_at, l.seq)
            limit 10000) before)::int as ahead,
        (select count(*) from conductor.orchestrators o
         where l.queue = any (o.queues)
           and o.beat_at + o.timeout * interval '1 second' > conductor.now())::int as servers,
        exists (select from conductor.tasks t
                where t.queue = l.queue and t.name = l.task) as registered,
        exists (select from conductor.queues q where q.name = l.queue and q.paused) as paused,
        l.flags & 1 <> 0 as cancel_asked, s.hostname as host, s.pid
    from conductor.live l left join conductor.orchestrators s on s.id = l.owner
    where l.id = %(id)s
    """,
)


def standing(conn: Connection, id: UUID) -> Standing | None:
    """How an execution stands; None when it has ended."""
    return STANDING.one(conn, id=id)


class Moment(msgspec.Struct, frozen=True):
    """Something that happened to an execution, or that it waits for. ``name``: of the step, sleep,
    child or event; ``detail``: its task, its event, an error."""

    at: datetime
    run: int | None
    what: str
    name: str | None
    detail: str | None


TIMELINE: Final = Statement(
    row=Moment,
    sql="""
    -- Reads only. Of one that has ended the story is in its row of history.
    with kept as (
        select h.story from conductor.history h
        where h.id = %(id)s and h.expires_at > conductor.now() and h.story is not null
        limit 1
    ), entries as (
        select seq, name, kind::text, state::text, created_at, ended_at, until, about, part_of,
            error
        from conductor.ledger where execution_id = %(id)s
        union all
        select e.seq, e.name, e.kind, e.state, e.created_at, e.ended_at, e.until, e.about,
            e.part_of, e.error
        from kept, json_to_recordset(kept.story -> 'ledger') as e (
            seq bigint, name text, kind text, state text, created_at timestamptz,
            ended_at timestamptz, until timestamptz, about text, part_of text, error json)
    ), tries as (
        select seq, started_at, ended_at, run, kind::text, name, error
        from conductor.attempts where execution_id = %(id)s
        union all
        select a.seq, a.started_at, a.ended_at, a.run, a.kind, a.name, a.error
        from kept, json_to_recordset(kept.story -> 'attempts') as a (
            seq bigint, started_at timestamptz, ended_at timestamptz, run int, kind text,
            name text, error json)
    ), told as (
        select created_at as at, null::int as run, 'created' as what, null::text as name,
            null::text as detail, 0 as place, 0::bigint as seq
        from conductor.executions where id = %(id)s
        union
        select started_at, runs, 'claimed', null, null, 1, 0
        from conductor.executions where id = %(id)s and started_at is not null and runs > 0
        union
        select started_at, run, 'claimed', null, null, 1, 0 from tries
        where started_at is not null
        union all
        select coalesce(ended_at, created_at), null,
            case kind when 's' then 'step' when 'e' then 'event' when 'g' then 'children'
                when 'z' then case when until <= conductor.now() then 'slept' else 'sleeps' end
                when 'w' then 'wait' else 'child' end
            || case when kind = 'z' then ''
                when state = 'p' and kind = 's' then ' to be tried again'
                when state = 'p' and kind = 'd' then ' started'
                when state = 'p' then ' awaited'
                when state = 'c' then '' when state = 'f' then ' failed'
                when state = 'k' then ' cancelled' else ' timed out' end,
            name, coalesce(error ->> 'message', about), 2, seq
        from entries where part_of is null
        union all
        select ended_at, run,
            case kind when 'f' then 'failed' when 'z' then 'snoozed' when 's' then 'suspended'
                else 'rescued' end,
            name, (error ->> 'type') || ': ' || (error ->> 'message'), 3, seq
        from tries
        union all
        select finished_at, runs, state, null,
            (error ->> 'type') || ': ' || (error ->> 'message'), 4, 0
        from conductor.executions where id = %(id)s and finished_at is not null
    )
    select at, run, what, name, detail from told order by at, place, seq
    """,
)


def timeline(conn: Connection, id: UUID) -> list[Moment]:
    """What has happened to an execution, in order."""
    return TIMELINE.all(conn, id=id)


def queues(conn: Connection) -> list[QueueReport]:
    """Every queue with its counts."""
    return QUEUES.all(conn)


def servers(conn: Connection) -> list[ServerReport]:
    """Every server of the fleet."""
    return SERVERS.all(conn)


def unserved(conn: Connection) -> list[UnservedReport]:
    """What waits and nobody serves, and since when."""
    return UNSERVED.all(conn)


def _execution(row: ExecutionRow) -> Execution:
    return Execution(
        id=row.id,
        task=row.task,
        queue=row.queue,
        state=State(row.state),
        payload=_json(row.payload),
        result=_json(row.result),
        error=None if row.error is None else msgspec.json.decode(row.error, type=ExecutionError),
        attempt=row.attempt,
        failures=row.failures,
        crashes=row.crashes,
        priority=row.priority,
        run_at=row.run_at,
        created_at=row.created_at,
        started_at=row.started_at,
        finished_at=row.finished_at,
        parent_id=row.parent_id,
        progress=_json(row.progress),
        metadata=_json(row.metadata),
        group=row.group,
        runs=row.runs,
        cancel_requested=row.cancel_requested,
        dedupe_key=row.dedupe_key,
    )


def _json(text: str | None) -> Any:
    return None if text is None else msgspec.json.decode(text)
