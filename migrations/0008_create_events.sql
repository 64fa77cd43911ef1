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

-- Dispatches events, oldest first; returns how many it has got on with. Two dispatchers share them.
-- An event counts for those who had registered before it was emitted: whose set of events that
-- came before does not have it. Each waiter gets the oldest event that fits of all that are there.
-- A round tells a portion of those who wait for an event, so that any number of waiters fits a
-- statement's time; the event stays for the next round. A waiter whose row somebody else has locked
-- is told by a later round, for which the event stays as well.
create function conductor.dispatch(most integer) returns integer
    language plpgsql
    set search_path = pg_catalog, pg_temp
as $$
declare
    taken uuid[];
    busy uuid[];
    tellings integer;
    queues integer;
    portion constant integer := 500;  -- of those who wait for one event, a round
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
        select w.id, w.name
        from conductor.events e
        cross join lateral (
            select g.name, l.id
            from conductor.ledger g
            join conductor.live l on l.id = any (array[g.execution_id])
            where g.about = e.name and g.kind = 'e' and g.state = 'p'
              and not coalesce(g.before @> e.seq, false)
              and conductor.fits(e.payload, g.exact, g.tests)
            limit portion
            for update of l skip locked
        ) w
        where e.id = any (taken)
    ), told as (
        update conductor.ledger g set
            state = 'c', ended_at = conductor.now(), value = (
                select e.payload::json from conductor.events e
                where e.name = g.about and not coalesce(g.before @> e.seq, false)
                  and conductor.fits(e.payload, g.exact, g.tests)
                order by e.seq limit 1)
        from (select distinct id, name from waiting) w
        where g.execution_id = any (array[w.id]) and g.name = w.name and g.state = 'p'
        returning g.execution_id
    ), woken as (
        update conductor.live l set
            wakes = l.wakes + 1,
            state = case when l.state = 'w' then 'r' else l.state end::"char",
            run_at = case when l.state = 'w' then conductor.now() else l.run_at end
        from (select distinct execution_id from told) t
        where l.id = any (array[t.execution_id])
        returning l.queue, l.rank, l.state
    ), heard as materialized (
        select conductor.notify_queue(queue, min(rank), null) from woken
        where state = 'r' group by queue
    )
    select (select count(*) from told), (select count(*) from heard) into tellings, queues;

    -- Who has not been told: more than a portion, or those whose row somebody else has locked.
    select array_agg(e.id) into busy from conductor.events e
    where e.id = any (taken) and exists (
        select from conductor.ledger g
        join conductor.live l on l.id = any (array[g.execution_id])
        where g.about = e.name and g.kind = 'e' and g.state = 'p'
          and not coalesce(g.before @> e.seq, false)
          and conductor.fits(e.payload, g.exact, g.tests));

    -- Where a round has told nobody, those that are left are locked: their events wait a moment,
    -- and let the ones behind them pass.
    update conductor.events e set
        triggered = true,
        retry_at = case when tellings = 0 then conductor.now() + interval '1 second' end
    where e.id = any (busy);
    delete from conductor.events e where e.id = any (taken) and e.id <> all (coalesce(busy, '{}'));
    return case when tellings > 0 then cardinality(taken)
                else cardinality(taken) - coalesce(cardinality(busy), 0) end;
end
$$;
