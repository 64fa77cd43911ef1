-- breaking: false
-- why: events: what happened, told to those who wait for it and to the tasks it starts

-- What has been emitted and not yet dispatched. Any server does that, after the commit: those
-- who emit in a long transaction of theirs neither miss anybody nor hold anybody up.
create table conductor.events (
    id uuid not null,
    seq bigint generated always as identity,
    emitted_at timestamptz not null,
    triggered boolean not null default false,  -- its tasks have been started
    dead boolean not null default false,       -- given up after many tries; kept for an operator
    failures integer not null default 0,       -- how often it could not be dispatched
    retry_at timestamptz,                      -- after a failure: not before
    error text,                                -- of the last failure
    name text not null,
    payload jsonb not null,
    constraint events_pkey primary key (id)
);

create index events_seq on conductor.events (seq);
create index events_name on conductor.events (name, seq);

-- Tasks that events start.
create table conductor.triggers (
    task text not null,
    queue text not null,
    place integer not null,                -- among the triggers of its task
    event text not null,
    payload json,                          -- null: the event's own
    exact jsonb not null,
    tests jsonb not null,
    constraint triggers_pkey primary key (task, queue, place)
);

create index triggers_event on conductor.triggers (event);

-- Whether a payload fits a filter: exact is contained in it, and each of the tests is passed:
-- {key: {"op": "one_of" | "prefix" | "between" | "exists" | "equals", ...}}.
create function conductor.fits(payload jsonb, exact jsonb, tests jsonb) returns boolean
    language sql immutable parallel safe
    set search_path = pg_catalog, pg_temp
as $$
    select (exact = '{}' or payload @> exact) and not exists (
        select from jsonb_each(tests) t (key, test)
        where not coalesce(case test ->> 'op'
            when 'exists' then payload ? key
            when 'equals' then payload -> key = test -> 'value'
            when 'one_of' then exists (
                select from jsonb_array_elements(test -> 'values') v where v = payload -> key)
            when 'prefix' then jsonb_typeof(payload -> key) = 'string'
                and starts_with(payload ->> key, test ->> 'text')
            when 'between' then case
                when jsonb_typeof(payload -> key) = 'number'
                     and jsonb_typeof(test -> 'low') = 'number' then
                    (payload ->> key)::numeric
                        between (test ->> 'low')::numeric and (test ->> 'high')::numeric
                when jsonb_typeof(payload -> key) = 'string'
                     and jsonb_typeof(test -> 'low') = 'string' then
                    (payload ->> key) collate "C" between test ->> 'low' and test ->> 'high'
                end
            end, false))
$$;

-- Emits an event: one row, in the caller's transaction, and word to the servers.
create function conductor.emit(event text, payload jsonb default '{}') returns uuid
    language plpgsql
    set search_path = pg_catalog, pg_temp
as $$
declare
    id constant uuid := conductor.uuid7();
begin
    if coalesce(emit.event, '') !~ '^[A-Za-z0-9_.:-]{1,200}$' then
        raise exception 'event "%" is not a name', emit.event using
            errcode = 'invalid_parameter_value',
            hint = 'Names have 1 to 200 of the characters A-Z a-z 0-9 _ . : -';
    end if;
    insert into conductor.events (id, emitted_at, name, payload)
    values (id, conductor.now(), emit.event, coalesce(emit.payload, 'null'));
    perform pg_notify('conductor', 'event');
    return id;
end
$$;

-- Dispatches events, oldest first; returns how many are done with. Two dispatchers share them.
-- An event counts for those who had registered before it was emitted: whose set of events that
-- came before does not have it. Each of them gets the oldest that fits of all that are there. One whose row
-- somebody else has locked is told by a later round, for which the event stays.
create function conductor.dispatch(most integer) returns integer
    language plpgsql
    set search_path = pg_catalog, pg_temp
as $$
declare
    taken uuid[];
    busy uuid[];
begin
    select array_agg(e.id) into taken from (
        select id from conductor.events
        where not dead and coalesce(retry_at <= conductor.now(), true)
        order by seq limit most for update skip locked) e;
    if taken is null then
        return 0;
    end if;

    perform conductor.enqueue(started.specs) from (
        select json_agg(json_build_object(
            'id', conductor.uuid7(), 'task', t.task, 'queue', t.queue,
            'payload', coalesce(t.payload, e.payload::json), 'rank', coalesce(-k.priority, 0),
            'event', json_build_object('name', e.name, 'payload', e.payload,
                                       'scheduled_for', null)) order by e.seq) as specs
        from conductor.events e
        join conductor.triggers t on t.event = e.name and conductor.fits(e.payload, t.exact, t.tests)
        left join conductor.tasks k on k.queue = t.queue and k.name = t.task
        where e.id = any (taken) and not e.triggered
    ) started where started.specs is not null;

    with waiting as materialized (
        select e.id as event, g.execution_id, g.name
        from conductor.events e
        join conductor.ledger g on g.about = e.name and g.kind = 'e' and g.state = 'p'
            and not coalesce(g.before @> e.seq, false)
            and conductor.fits(e.payload, g.exact, g.tests)
        where e.id = any (taken)
    ), awake as materialized (
        select id, state from conductor.live
        where id in (select execution_id from waiting)
        order by id
        for update skip locked
    ), told as (
        update conductor.ledger g set
            state = 'c', ended_at = conductor.now(), value = (
                select e.payload::json from conductor.events e
                where e.name = g.about and not coalesce(g.before @> e.seq, false)
                  and conductor.fits(e.payload, g.exact, g.tests)
                order by e.seq limit 1)
        from (select distinct execution_id, name from waiting) w
        where g.execution_id = w.execution_id and g.name = w.name and g.state = 'p'
          and g.execution_id in (select id from awake)
        returning g.execution_id
    ), woken as (
        update conductor.live l set
            wakes = l.wakes + 1,
            state = case when l.state = 'w' then 'r' else l.state end::"char",
            run_at = case when l.state = 'w' then conductor.now() else l.run_at end
        where l.id in (select execution_id from told)
        returning l.queue, l.rank, l.state
    ), heard as materialized (
        select conductor.notify_queue(queue, min(rank), null) from woken
        where state = 'r' group by queue
    )
    select array_agg(distinct w.event) into busy from waiting w
    where w.execution_id not in (select id from awake)
      and exists (select from conductor.live l where l.id = w.execution_id)
      and (select count(*) from heard) >= 0;

    update conductor.events e set triggered = true where e.id = any (busy) and not e.triggered;
    delete from conductor.events e where e.id = any (taken) and e.id <> all (coalesce(busy, '{}'));
    return cardinality(taken) - coalesce(cardinality(busy), 0);
end
$$;
