-- breaking: false
-- why: the hot table: every execution that has not ended

-- State: r ready, s scheduled (its moment has not come), b blocked, w waiting, x running.
-- Flags: 1 cancel asked, 8 somebody waits for its end. Rank is the negated priority, so that one index in ascending
-- order serves the claim and its lower bound. No full index besides the primary key:
-- with a snapshot held elsewhere, every further one is walked once per finished row.
create table conductor.live (
    id uuid not null,
    owner uuid,                            -- the orchestrator that runs it
    parent_id uuid,
    seq bigint generated always as identity,
    token bigint,                          -- fences every write of a claim
    run_at timestamptz,                    -- null: no deadline
    created_at timestamptz not null,
    started_at timestamptz,
    timeout double precision,              -- seconds; null: the task's
    attempt integer not null default 0,
    failures integer not null default 0,
    crashes integer not null default 0,
    rank smallint not null,
    flags smallint not null default 0,
    state "char" not null,
    queue text not null,
    task text not null,
    dedupe_key text,
    group_key text,
    payload json not null,
    metadata json,
    event json,                            -- what caused it: {name, scheduled_for, payload}
    error json,                            -- of the last failure; of the cancellation once asked
    constraint live_pkey primary key (id),
    constraint state_is_known check (state in ('r', 's', 'b', 'w', 'x')),
    constraint running_has_an_owner
        check (state <> 'x' or (owner is not null and token is not null)),
    constraint due_has_a_moment check (state not in ('r', 's') or run_at is not null)
) with (
    -- Rows live for milliseconds: vacuum by dead rows alone, and without pauses.
    autovacuum_vacuum_scale_factor = 0.01,
    autovacuum_vacuum_threshold = 2000,
    autovacuum_vacuum_cost_delay = 0,
    autovacuum_analyze_scale_factor = 0.1,
    autovacuum_analyze_threshold = 5000
);

create index live_ready on conductor.live (queue, rank, run_at, seq) where state = 'r';
create index live_due on conductor.live (queue, run_at) where state in ('s', 'w');
create index live_owner on conductor.live (owner) where state = 'x';
create unique index live_dedupe on conductor.live (task, queue, dedupe_key)
    where dedupe_key is not null;
