-- breaking: false
-- why: executions that have ended, kept until they expire, out of the hot table's way

-- State: c completed, f failed, k cancelled. Partitioned by the moment of expiry, so that
-- retention drops a table instead of deleting rows. The token tells a finish that is sent
-- again after its reply was lost from one that came too late.
create table conductor.history (
    id uuid not null,
    parent_id uuid,
    seq bigint not null,
    token bigint,
    run_at timestamptz,
    created_at timestamptz not null,
    started_at timestamptz,
    finished_at timestamptz not null,
    expires_at timestamptz not null,       -- infinity: never
    timeout double precision,
    attempt integer not null,
    failures integer not null,
    crashes integer not null,
    rank smallint not null,
    state "char" not null,
    queue text not null,
    task text not null,
    dedupe_key text,
    group_key text,
    payload json not null,
    metadata json,
    event json,
    result json,
    error json,
    constraint state_is_known check (state in ('c', 'f', 'k'))
) partition by range (expires_at);

create index history_id on conductor.history (id);
create index history_created on conductor.history (created_at);
create index history_ended_badly on conductor.history (created_at) where state <> 'c';

create table conductor.history_forever partition of conductor.history
    for values from ('infinity') to (maxvalue);
-- Finishing never fails for want of a partition.
create table conductor.history_other partition of conductor.history default;
create index history_other_expires on conductor.history_other (expires_at);

-- One partition a day (UTC), from yesterday to five weeks ahead; expired ones are dropped.
-- Definer's rights, so that the daemon's role needs none of its own to create and drop;
-- a short lock timeout, because whoever waits for this lock holds up every finish behind it.
create function conductor.rotate_history() returns integer
    language plpgsql security definer
    set search_path = pg_catalog, pg_temp
    set lock_timeout = '200ms'
as $$
declare
    today constant date := (conductor.now() at time zone 'UTC')::date;
    day date;
    name text;
    changes integer := 0;
begin
    for day in select d::date from generate_series(today - 1, today + 35, interval '1 day') d loop
        name := 'history_' || to_char(day, 'YYYYMMDD');
        continue when to_regclass('conductor.' || name) is not null;
        -- Rows of that day that are in the default partition already stay there, and are
        -- deleted in batches when they expire.
        continue when exists (
            select from conductor.history_other o
            where o.expires_at >= day::timestamp at time zone 'UTC'
              and o.expires_at < (day + 1)::timestamp at time zone 'UTC'
        );
        execute format(
            'create table conductor.%I partition of conductor.history for values from (%L) to (%L)',
            name, day::timestamp at time zone 'UTC', (day + 1)::timestamp at time zone 'UTC'
        );
        changes := changes + 1;
    end loop;
    for name in
        select c.relname from pg_catalog.pg_inherits i
        join pg_catalog.pg_class c on c.oid = i.inhrelid
        where i.inhparent = 'conductor.history'::regclass
          and c.relname ~ '^history_[0-9]{8}$'
          and c.relname < 'history_' || to_char(today, 'YYYYMMDD')
        order by c.relname
    loop
        -- Yesterday's may be created for a clock that is set back; it is kept a day.
        continue when name = 'history_' || to_char(today - 1, 'YYYYMMDD');
        execute format('drop table conductor.%I', name);
        changes := changes + 1;
    end loop;
    return changes;
end
$$;

revoke all on function conductor.rotate_history() from public;

select conductor.rotate_history();

-- Tells who waits that an execution has ended. Sent for rows with the flag of the watched only.
create function conductor.notify_ended(id uuid) returns void
    language sql volatile
    return pg_notify('conductor_ended', id::text);

-- Moves executions that have not been finished by the runner of their last claim out of the
-- hot table: cancelled while pending, or crashed too often. The caller holds their row locks.
-- A running one loses its token, so that a late end by its runner is not taken for this one.
create function conductor.archive(
    ids uuid[], ending "char", reason json, crashed integer default 0)
    returns integer
    language sql volatile
    set search_path = pg_catalog, pg_temp
as $$
    with gone as (
        delete from conductor.live l where l.id = any (ids) returning l.*
    ), kept as (
        select g.*, coalesce(
            conductor.now() + case when t.name is null then interval '30 days'
                                   else t.retain_failed * interval '1 second' end,
            'infinity') as expires_at,
            t.retain_failed is not distinct from 0 as dropped
        from gone g left join conductor.tasks t on t.queue = g.queue and t.name = g.task
    ), archived as (
        insert into conductor.history (
            id, parent_id, seq, token, run_at, created_at, started_at, finished_at, expires_at,
            timeout, attempt, failures, crashes, rank, state, queue, task, dedupe_key, group_key,
            payload, metadata, event, error)
        select id, parent_id, seq, case when state <> 'x' then token end, run_at, created_at,
            started_at, conductor.now(), expires_at, timeout, attempt, failures,
            crashes + crashed, rank, ending, queue, task, dedupe_key, group_key, payload,
            metadata, event, coalesce(reason, error)
        from kept where not dropped
    )
    select count(*)::integer + 0 * (count(conductor.notify_ended(id))
        filter (where flags & 8 <> 0))::integer
    from kept
$$;
