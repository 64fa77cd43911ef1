-- breaking: false
-- why: which servers live, which of them leads, when schedules tick next, what is paused

create table conductor.orchestrators (
    id uuid not null,
    started_at timestamptz not null,
    beat_at timestamptz not null,
    timeout double precision not null,     -- seconds of silence after which it is dead
    version text not null,
    hostname text not null,
    pid integer not null,
    queues text[] not null,
    stopping boolean not null default false,
    edition text not null default '',      -- what it would define, as a fingerprint
    constraint orchestrators_pkey primary key (id)
) with (fillfactor = 50);

-- Since when each edition is known: of those whose servers live the latest is in force.
create table conductor.editions (
    edition text not null,
    known_since timestamptz not null,
    constraint editions_pkey primary key (edition)
);

-- One row: the lease. A term is named by its number, which only grows.
create table conductor.leadership (
    singleton boolean not null default true,
    leader uuid,
    term bigint not null,
    elected_at timestamptz not null,
    renewed_at timestamptz not null,
    constraint leadership_pkey primary key (singleton),
    constraint only_one_row check (singleton)
) with (fillfactor = 50);

create table conductor.schedules (
    task text not null,
    name text not null,
    queue text not null,
    expression text not null,
    timezone text not null,
    missed text not null,
    payload json not null,
    declared boolean not null default false, -- by a trigger of its task; else made at run time
    paused boolean not null default false,
    next_at timestamptz,                   -- null: it never ticks again
    last_at timestamptz,
    changed_at timestamptz not null,
    constraint schedules_pkey primary key (task, name),
    constraint missed_is_known check (missed in ('latest', 'skip', 'all')),
    -- One that no client can read would stop all schedules.
    constraint next_at_is_readable check (next_at between '0001-01-03 00:00+00' and '9999-12-29 00:00+00')
);

-- Only queues that are, or have been, paused.
create table conductor.queues (
    name text not null,
    paused boolean not null,
    changed_at timestamptz not null,
    constraint queues_pkey primary key (name)
);

-- Once this is committed nobody claims from the queue. Every claim reads this table for key
-- share; the lock waits for the claims under way, and whoever claims after it sees the row.
create function conductor.pause(queue text) returns boolean
    language plpgsql
    set search_path = pg_catalog, pg_temp
as $$
declare
    changed boolean;
begin
    if coalesce(pause.queue, '') !~ '^[A-Za-z0-9_.:-]{1,200}$' then
        raise exception 'queue "%" is not a name', pause.queue using
            errcode = 'invalid_parameter_value',
            hint = 'Names have 1 to 200 of the characters A-Z a-z 0-9 _ . : -';
    end if;
    lock table conductor.queues in exclusive mode;
    insert into conductor.queues as q (name, paused, changed_at)
    values (pause.queue, true, conductor.now())
    on conflict (name) do update set paused = true, changed_at = excluded.changed_at
    where not q.paused;
    changed := found;
    if changed then
        perform pg_notify('conductor', 'pause:' || pause.queue);
    end if;
    return changed;
end
$$;

create function conductor.resume(queue text) returns boolean
    language sql volatile
    set search_path = pg_catalog, pg_temp
as $$
    with resumed as (
        update conductor.queues q set paused = false, changed_at = conductor.now()
        where q.name = queue and q.paused
        returning q.name
    )
    select count(pg_notify('conductor', 'resume:' || name)) > 0 from resumed
$$;
