-- breaking: false
-- why: options of tasks, for those who have no Python at hand: SQL clients, rescue, reports

create table conductor.tasks (
    queue text not null,
    name text not null,
    home boolean not null,                 -- the queue its definition names
    priority smallint not null,
    max_attempts integer not null,
    max_crashes integer not null,
    retain_completed double precision,     -- seconds; null: for ever
    retain_failed double precision,
    options jsonb not null,                -- all of them, to be shown
    edition text not null,                 -- of the program that has defined it so
    registered_at timestamptz not null,
    constraint tasks_pkey primary key (queue, name),
    constraint priority_is_negatable check (priority > -32768)
);

create index tasks_name on conductor.tasks (name);
