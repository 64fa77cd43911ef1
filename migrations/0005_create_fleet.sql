-- breaking: false
-- why: which servers live, which of them leads, and when schedules tick next

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
    constraint orchestrators_pkey primary key (id)
) with (fillfactor = 50);

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
    declared boolean not null,             -- by a trigger of its task; else made at run time
    paused boolean not null default false,
    next_at timestamptz,                   -- null: it never ticks again
    last_at timestamptz,
    changed_at timestamptz not null,
    constraint schedules_pkey primary key (task, name),
    constraint missed_is_known check (missed in ('latest', 'skip', 'all'))
);
