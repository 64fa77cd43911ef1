"""What ``conductor doctor`` asks of Postgres. Reads only.

Sessions of other roles show only half of themselves to a role without pg_monitor; what is hidden
is None here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from conductor_cli.database import Connection, Statement

if TYPE_CHECKING:
    from collections.abc import Sequence


# ------------------------------------------------------------------ the server


@dataclass(frozen=True, slots=True)
class ServerFacts:
    """What Postgres is, and how it is set for this role in this database."""

    version_number: int
    version: str
    role: str
    encoding: str
    in_recovery: bool
    fsync: bool
    full_page_writes: bool
    synchronous_commit: str
    autovacuum: bool
    track_counts: bool


SERVER: Final = Statement(
    row=ServerFacts,
    sql="""
    -- Reads only.
    select current_setting('server_version_num')::int as version_number,
        current_setting('server_version') as version,
        current_user::text as role,
        current_setting('server_encoding') as encoding,
        pg_is_in_recovery() as in_recovery,
        current_setting('fsync') = 'on' as fsync,
        current_setting('full_page_writes') = 'on' as full_page_writes,
        current_setting('synchronous_commit') as synchronous_commit,
        current_setting('autovacuum') = 'on' as autovacuum,
        current_setting('track_counts') = 'on' as track_counts
    """,
)


def server(conn: Connection) -> ServerFacts:
    """What Postgres is, and how it is set."""
    return SERVER.only(conn)


CLOCK: Final = Statement(
    row=float,
    sql="""
    -- Reads only.
    select extract(epoch from clock_timestamp())::float8
    """,
)


def clock(conn: Connection) -> float:
    """What Postgres' own clock shows, in seconds since 1970."""
    return CLOCK.only(conn)


@dataclass(frozen=True, slots=True)
class Room:
    """Connections of clients: how many there may be and are; a limit of -1 is none."""

    most: int
    used: int
    role_limit: int
    role_used: int
    database_limit: int
    database_used: int


ROOM: Final = Statement(
    row=Room,
    sql="""
    -- Reads only.
    with sessions as (
        select datname, usename from pg_catalog.pg_stat_activity
        where datid is not null and coalesce(backend_type, 'client backend') = 'client backend'
    )
    select current_setting('max_connections')::int
            - case when r.rolsuper then 0 else
                current_setting('superuser_reserved_connections')::int
                + coalesce(current_setting('reserved_connections', true)::int, 0) end as most,
        (select count(*) from sessions)::int as used,
        r.rolconnlimit as role_limit,
        (select count(*) from sessions where usename = current_user)::int as role_used,
        d.datconnlimit as database_limit,
        (select count(*) from sessions where datname = current_database())::int as database_used
    from pg_catalog.pg_roles r, pg_catalog.pg_database d
    where r.rolname = current_user and d.datname = current_database()
    """,
)


def room(conn: Connection) -> Room:
    """How many more connections would fit."""
    return ROOM.only(conn)


# ------------------------------------------------------------------ what holds up vacuum


@dataclass(frozen=True, slots=True)
class Holder:
    """A session whose transaction keeps dead rows from being removed."""

    pid: int
    application: str
    role: str
    state: str | None
    seconds: float | None


HOLDERS: Final = Statement(
    row=Holder,
    sql="""
    -- Reads only. A transaction with an id holds the horizon as a snapshot does.
    select pid, coalesce(application_name, '') as application, coalesce(usename::text, '') as role,
        state, extract(epoch from clock_timestamp() - xact_start)::float8 as seconds
    from pg_catalog.pg_stat_activity
    where pid <> pg_backend_pid()
      and coalesce(backend_type, 'client backend') <> 'autovacuum worker'
      and (datname = current_database() or backend_type = 'walsender')
      and (backend_xmin is not null or backend_xid is not null
           or state like 'idle in transaction%%')
    order by greatest(age(backend_xmin), age(backend_xid)) desc nulls last, xact_start
    limit 100
    """,
)


def holders(conn: Connection) -> list[Holder]:
    """The sessions that hold up vacuum, the worst first."""
    return HOLDERS.all(conn)


@dataclass(frozen=True, slots=True)
class PreparedTransaction:
    name: str
    role: str
    seconds: float


PREPARED: Final = Statement(
    row=PreparedTransaction,
    sql="""
    -- Reads only.
    select gid as name, owner::text as role,
        extract(epoch from clock_timestamp() - prepared)::float8 as seconds
    from pg_catalog.pg_prepared_xacts
    where database = current_database()
    order by prepared
    limit 100
    """,
)


def prepared(conn: Connection) -> list[PreparedTransaction]:
    """Two-phase transactions that wait for their second phase, the oldest first."""
    return PREPARED.all(conn)


@dataclass(frozen=True, slots=True)
class Slot:
    """A replication slot that nobody reads from; ``bytes`` of WAL it keeps, as far as known."""

    name: str
    bytes: int | None
    holds_rows: bool


IDLE_SLOTS: Final = Statement(
    row=Slot,
    sql="""
    -- Reads only.
    select slot_name::text as name,
        pg_wal_lsn_diff(case when pg_is_in_recovery() then pg_last_wal_replay_lsn()
            else pg_current_wal_lsn() end, restart_lsn)::int8 as bytes,
        xmin is not null or catalog_xmin is not null as holds_rows
    from pg_catalog.pg_replication_slots
    where not active
    order by slot_name
    """,
)


def idle_slots(conn: Connection) -> list[Slot]:
    """Replication slots without a reader: they keep WAL, and rows, for ever."""
    return IDLE_SLOTS.all(conn)


@dataclass(frozen=True, slots=True)
class LockWait:
    """A session that waits for a lock while it works on the schema's tables."""

    pid: int
    application: str
    seconds: float
    blockers: str


LOCK_WAITS: Final = Statement(
    row=LockWait,
    sql="""
    -- Reads only. Who waits for a row waits for its transaction, and holds a lock on the table.
    select a.pid, coalesce(a.application_name, '') as application,
        extract(epoch from clock_timestamp() - coalesce(w.waitstart, a.query_start))
            ::float8 as seconds,
        coalesce((
            select string_agg(b.pid || coalesce(' (' || nullif(b.application_name, '') || ')', ''),
                              ', ' order by b.pid)
            from pg_catalog.pg_stat_activity b where b.pid = any (pg_blocking_pids(a.pid))
        ), 'a prepared transaction') as blockers
    from pg_catalog.pg_stat_activity a
    join pg_catalog.pg_locks w on w.pid = a.pid and not w.granted
    where a.datname = current_database() and a.pid <> pg_backend_pid()
      and clock_timestamp() - coalesce(w.waitstart, a.query_start)
          > %(longer_than)s * interval '1 second'
      and exists (
          select from pg_catalog.pg_locks l
          join pg_catalog.pg_class c on c.oid = l.relation
          join pg_catalog.pg_namespace n on n.oid = c.relnamespace
          where l.pid = a.pid and n.nspname = 'conductor')
    order by seconds desc
    limit 100
    """,
)


def lock_waits(conn: Connection, longer_than: float) -> list[LockWait]:
    """Who has waited for a lock for more than so many seconds, the longest first."""
    return LOCK_WAITS.all(conn, longer_than=longer_than)


# ------------------------------------------------------------------ the schema


@dataclass(frozen=True, slots=True)
class Standing:
    """Whether there is a schema, and what of it this role may see."""

    exists: bool
    may_use: bool
    may_read_version: bool


STANDING: Final = Statement(
    row=Standing,
    sql="""
    -- Reads only, the catalogue: to name a table in a schema one may not use is an error.
    select n.oid is not null as exists,
        coalesce(has_schema_privilege(n.oid, 'usage'), false) as may_use,
        coalesce((
            select has_table_privilege(c.oid, 'select') from pg_catalog.pg_class c
            where c.relnamespace = n.oid and c.relname = 'migrations'), true) as may_read_version
    from (select 1) one
    left join pg_catalog.pg_namespace n on n.nspname = 'conductor'
    """,
)


def standing(conn: Connection) -> Standing:
    """Whether there is a schema, and whether this role may look into it."""
    return STANDING.only(conn)


LACKING: Final = Statement(
    row=str,
    sql="""
    -- Reads only.
    select lower(p.privilege) || ' on ' || c.relname as missing
    from pg_catalog.pg_class c
    join pg_catalog.pg_namespace n on n.oid = c.relnamespace and n.nspname = 'conductor'
    cross join unnest(array['SELECT', 'INSERT', 'UPDATE', 'DELETE']) as p (privilege)
    where c.relkind in ('r', 'v')
      and (p.privilege = 'SELECT' or not (c.relkind = 'v' or c.relname = 'migrations'))
      and not has_table_privilege(c.oid, p.privilege)
    union all
    select 'execute on ' || f.proname from pg_catalog.pg_proc f
    join pg_catalog.pg_namespace n on n.oid = f.pronamespace and n.nspname = 'conductor'
    where not has_function_privilege(f.oid, 'EXECUTE')
    order by missing
    """,
)


def lacking(conn: Connection) -> list[str]:
    """The rights a server needs and this role does not have."""
    return LACKING.all(conn)


@dataclass(frozen=True, slots=True)
class Table:
    """A table of the schema as the statistics see it; ``options`` are its storage parameters."""

    name: str
    live: int
    dead: int
    bytes: int
    options: list[str]


TABLES: Final = Statement(
    row=Table,
    sql="""
    -- Reads only.
    select c.relname::text as name, s.n_live_tup as live, s.n_dead_tup as dead,
        pg_relation_size(c.oid) as bytes, coalesce(c.reloptions, '{}') as options
    from pg_catalog.pg_class c
    join pg_catalog.pg_namespace n on n.oid = c.relnamespace and n.nspname = 'conductor'
    join pg_catalog.pg_stat_all_tables s on s.relid = c.oid
    where c.relkind = 'r'
    order by c.relname
    """,
)


def tables(conn: Connection) -> list[Table]:
    """The tables of the schema."""
    return TABLES.all(conn)


INDEXES: Final = Statement(
    row=str,
    sql="""
    -- Reads only.
    select c.relname::text
    from pg_catalog.pg_index i
    join pg_catalog.pg_class c on c.oid = i.indexrelid
    join pg_catalog.pg_namespace n on n.oid = c.relnamespace and n.nspname = 'conductor'
    where i.indisvalid and i.indisready
    order by c.relname
    """,
)


def indexes(conn: Connection) -> list[str]:
    """The indexes of the schema that queries can use."""
    return INDEXES.all(conn)


OVERDUE: Final = Statement(
    row=int,
    sql="""
    -- Reads only; counts no further than 10,000.
    select count(*)::int from (
        select from conductor.history
        where expires_at < 'infinity'
          and expires_at < conductor.now() - interval '1 hour' limit 10000) late
    """,
)


def overdue(conn: Connection) -> int:
    """How many executions should have been deleted an hour ago, counted to 10,000."""
    return OVERDUE.only(conn)


# ------------------------------------------------------------------ servers and their work


LEASE: Final = Statement(
    row=float,
    sql="""
    -- Reads only.
    select extract(epoch from conductor.now() - renewed_at)::float8
    from conductor.leadership where leader is not null
    """,
)


def lease(conn: Connection) -> float | None:
    """Seconds since the leader renewed its lease; None when there is no leader."""
    return LEASE.one(conn)


ORPHANS: Final = Statement(
    row=int,
    sql="""
    -- Reads only, the running ones by their index.
    select count(*)::int from conductor.live l
    where l.state = 'x'
      and not exists (select from conductor.orchestrators o where o.id = l.owner)
    """,
)


def orphans(conn: Connection) -> int:
    """How many executions are held by servers that are not in the fleet any more."""
    return ORPHANS.only(conn)


@dataclass(frozen=True, slots=True)
class Unserved:
    """Due executions of a task that no living server serves. ``known``: it is registered there."""

    queue: str
    task: str
    count: int
    oldest_seconds: float
    known: bool


UNSERVED: Final = Statement(
    row=Unserved,
    sql="""
    -- Reads only. A server whose edition has defined the task has it. One of another edition would
    -- have registered it as it started: if it started well after that was last done, it has not.
    select l.queue, l.task, count(*)::int as count,
        extract(epoch from conductor.now() - min(l.run_at))::float8 as oldest_seconds,
        exists (select from conductor.tasks t
                where t.queue = l.queue and t.name = l.task) as known
    from conductor.live l
    where (l.state = 'r' or l.state = 's' and l.run_at <= conductor.now())
      and not exists (
        select from conductor.tasks t
        join conductor.orchestrators o on t.queue = any (o.queues)
        where t.queue = l.queue and t.name = l.task
          and o.beat_at + o.timeout * interval '1 second' > conductor.now()
          and (o.edition = t.edition
               or o.started_at < t.registered_at + %(slack)s * interval '1 second'))
    group by l.queue, l.task
    order by oldest_seconds desc
    limit 100
    """,
)


def unserved(conn: Connection, slack: float) -> list[Unserved]:
    """What is due and nobody serves, the longest waiting first.

    ``slack``: seconds a server may take from registering its tasks to being alive.
    """
    return UNSERVED.all(conn, slack=slack)


@dataclass(frozen=True, slots=True)
class ScheduleFacts:
    """A schedule; ``late`` by so many seconds, negative before its tick, None when it has none."""

    task: str
    name: str
    queue: str
    expression: str
    timezone: str
    late: float | None


SCHEDULES: Final = Statement(
    row=ScheduleFacts,
    sql="""
    -- Reads only.
    select task, name, queue, expression, timezone,
        extract(epoch from conductor.now() - next_at)::float8 as late
    from conductor.schedules
    where not paused
    order by task, name
    limit 10000
    """,
)


def schedules(conn: Connection) -> Sequence[ScheduleFacts]:
    """Every schedule that is not paused, and how late its next tick is."""
    return SCHEDULES.all(conn)
