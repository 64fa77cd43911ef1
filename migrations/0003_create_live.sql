-- breaking: false
-- why: the hot table: every execution that has not ended

-- State: r ready, s scheduled (its moment has not come), b blocked, w waiting, x running.
-- Flags: 1 cancel asked, 2 has rows in the ledger, 4 awaited by a row of some ledger, 8 watched by
-- somebody who waits for its end, 16 has rows in attempts or progress, 32 sleeps, 64 waits to try
-- a step again. Rank is the negated priority, so that one index in ascending
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
    runs integer not null default 0,       -- claims; a hand-back takes its own back
    failures integer not null default 0,
    crashes integer not null default 0,
    wakes integer not null default 0,      -- grows with all it may have waited for
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

-- What an execution remembers from one attempt to the next: a row for each name it has used.
-- Kind: s step, z sleep, c child it waits for, d child it has started, g children that belong
-- together, w wait for an execution, e wait for an event. State: p not yet, then c completed,
-- f failed, k cancelled (s: cut off by the task's own code), t given up.
create table conductor.ledger (
    execution_id uuid not null,
    child_id uuid,                         -- whose end it tells
    seq bigint generated always as identity,
    until timestamptz,
    created_at timestamptz not null,
    ended_at timestamptz,
    before int8multirange,                 -- e: the events, by seq, that came too early
    remaining integer,                     -- g: how many of its children have not ended
    failures integer not null default 0,   -- s: how often it has failed
    kind "char" not null,
    state "char" not null,
    tolerant boolean not null default false,  -- g: one that fails does not end the wait
    branch boolean not null default false, -- made beside others, in no certain order
    name text not null,
    about text,                            -- the child's task, the event's name
    part_of text,                          -- the name of the g it belongs to
    exact jsonb,                           -- e: what the event's payload has to contain
    tests jsonb,                           -- e: what else it has to satisfy
    value json,
    error json,
    constraint ledger_pkey primary key (execution_id, name),
    constraint kind_is_known check (kind in ('s', 'z', 'c', 'd', 'g', 'w', 'e')),
    constraint state_is_known check (state in ('p', 'c', 'f', 'k', 't'))
);

create index ledger_child on conductor.ledger (child_id) where child_id is not null;
create index ledger_event on conductor.ledger (about) where kind = 'e' and state = 'p';

-- How attempts went that did not end their execution: f failed, z snoozed, s suspended,
-- x lost with its process. What is ordinary is read from the execution itself.
create table conductor.attempts (
    execution_id uuid not null,
    seq bigint generated always as identity,
    started_at timestamptz,
    ended_at timestamptz not null,
    run integer not null,
    kind "char" not null,
    name text,                             -- s: what it waits for
    error json,
    constraint kind_is_known check (kind in ('f', 'z', 's', 'x')),
    constraint attempts_pkey primary key (execution_id, seq)
);

create table conductor.progress (
    execution_id uuid not null,
    told_at timestamptz not null,
    progress json not null,
    constraint progress_pkey primary key (execution_id)
) with (fillfactor = 50);
