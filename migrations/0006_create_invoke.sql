-- breaking: false
-- why: how executions come to be and are cancelled, for every writer, whatever its language

-- When an execution is due that is given a moment or a delay. Refuses what a client could not
-- read: one such row would be claimed, and nobody could say what it is.
create function conductor.due_at(run_at timestamptz, delay double precision) returns timestamptz
    language plpgsql stable
    set search_path = pg_catalog, pg_temp
as $$
begin
    if run_at not between '0001-01-03 00:00+00' and '9999-12-29 00:00+00' then
        raise exception 'run_at "%" is not between the years 1 and 9999', run_at using
            errcode = 'datetime_field_overflow',
            hint = 'Leave run_at out for an execution that is due at once.';
    elsif run_at is null and delay not between -3155760000 and 3155760000 then
        raise exception 'delay "%" is more than a century, or no number', delay using
            errcode = 'numeric_value_out_of_range',
            hint = 'Leave delay out for an execution that is due at once.';
    end if;
    return coalesce(run_at, conductor.now() + delay * interval '1 second', conductor.now());
end
$$;

-- The one way in. Takes an array of objects with the keys of the record below; the caller
-- chooses each id, so that sending the same array again inserts nothing twice. Returns a row
-- for each that met an execution with its dedupe key: the id asked for, and the one there is.
-- The one there is reads null where the id asked for is that of an execution of another task.
-- recheck: look among the ended too, for an array that is sent again.
--
-- The race: two writers send the same dedupe keys in different orders. A second writer of one key
-- waits for the end of the first one's transaction, so each would wait for the other. All insert
-- in the order of task, queue and key; seq keeps the order in which the array names them.
-- Test: test_two_who_send_the_same_keys_in_opposite_order_do_not_wait_for_each_other.
create function conductor.enqueue(specs json, recheck boolean default false)
    returns table (asked uuid, met uuid)
    language plpgsql
    set search_path = pg_catalog, pg_temp
as $$
declare
    inserted bigint;
begin
    if recheck then
        return query select h.id, null::uuid
        from json_array_elements(specs) e
        join conductor.history h on h.id = (e ->> 'id')::uuid
        where h.task <> e ->> 'task';

        select coalesce(json_agg(e), '[]') into specs from json_array_elements(specs) e
        where not exists (select from conductor.history h where h.id = (e ->> 'id')::uuid);
    end if;

    with made as (
        insert into conductor.live (
            seq, id, parent_id, run_at, created_at, timeout, rank, flags, state, queue, task,
            dedupe_key, group_key, payload, metadata, event)
        overriding system value
        select s.seq, s.id, s.parent_id, m.run_at, conductor.now(), s.timeout,
            coalesce(s.rank, 0::smallint), coalesce(s.flags, 0::smallint),
            case when m.run_at > conductor.now() then 's' else 'r' end::"char",
            s.queue, s.task, s.dedupe_key, s."group", coalesce(s.payload, 'null'), s.metadata,
            s.event
        from (
            select nextval('conductor.live_seq_seq') as seq, a.*
            from rows from (json_to_recordset(specs) as (
                id uuid, parent_id uuid, task text, queue text, payload json, rank smallint,
                flags smallint, run_at timestamptz, delay double precision, dedupe_key text,
                on_duplicate text, "group" text, timeout double precision, metadata json,
                event json)) with ordinality as a
        ) s
        cross join lateral (
            select case when s.run_at is null and s.delay is null then conductor.now()
                else conductor.due_at(s.run_at, s.delay) end as run_at
        ) m
        order by s.task collate "C", s.queue collate "C", s.dedupe_key collate "C",
            case when s.dedupe_key is null then s.id end, s.ordinality
        on conflict do nothing
        returning queue, rank, state, run_at
    ), told as (
        select conductor.notify_queue(
            queue, min(rank), case when state = 's' then min(run_at) end), count(*) as n
        from made group by queue, state
    )
    select coalesce(sum(n), 0) into inserted from told;

    if recheck then
        -- The insert may have waited for one to end that the look above still saw live.
        delete from conductor.live l using json_array_elements(specs) e
        where l.id = (e ->> 'id')::uuid
          and exists (select from conductor.history h where h.id = l.id);
    end if;

    if inserted < json_array_length(specs) then
        return query select * from conductor.resolve_duplicates(specs);
    end if;
end
$$;

-- For those of an array that were not inserted: what stands in their way. An execution with
-- the dedupe key may end between the two looks; then this one is inserted after all.
--
-- The race: the execution that is met is just being ended, or replaced, by somebody else. Who waits
-- for its row while others wait for the keys inserted above may wait for ever. So a row is locked
-- only to be replaced, and all those in the order of their ids. Whoever only wants to know its id
-- reads it. An execution that has begun is not replaced: it leaves its key to the new one, whose
-- payload would otherwise be lost. Test: tests/store/test_lock_order.py.
create function conductor.resolve_duplicates(specs json)
    returns table (asked uuid, met uuid)
    language plpgsql
    set search_path = pg_catalog, pg_temp
as $$
declare
    spec record;
    there uuid;
begin
    return query select l.id, null::uuid
    from json_to_recordset(specs) as s (id uuid, task text)
    join conductor.live l on l.id = s.id
    where l.task <> s.task;

    perform from conductor.live l
    where l.id = any (array(
        select h.id
        from json_to_recordset(specs) as s (
            id uuid, task text, queue text, dedupe_key text, on_duplicate text)
        join conductor.live h
            on h.task = s.task and h.queue = s.queue and h.dedupe_key = s.dedupe_key
        where s.on_duplicate = 'replace' and h.id <> s.id))
    order by l.id for update;

    for spec in
        select s.* from rows from (json_to_recordset(specs) as (
            id uuid, task text, queue text, payload json, rank smallint, run_at timestamptz,
            delay double precision, dedupe_key text, on_duplicate text, metadata json,
            timeout double precision, "group" text)) with ordinality as s
        where s.dedupe_key is not null
          and not exists (select from conductor.live l where l.id = s.id)
          and not exists (select from conductor.history h where h.id = s.id)
        order by s.task collate "C", s.queue collate "C", s.dedupe_key collate "C", s.ordinality
    loop
        if spec.on_duplicate = 'replace' then
            update conductor.live l set
                payload = coalesce(spec.payload, 'null'), metadata = spec.metadata,
                rank = coalesce(spec.rank, 0), timeout = spec.timeout, group_key = spec."group",
                run_at = m.run_at,
                state = case when m.run_at > conductor.now() then 's' else 'r' end::"char"
            from (select conductor.due_at(spec.run_at, spec.delay) as run_at) m
            where l.task = spec.task and l.queue = spec.queue and l.dedupe_key = spec.dedupe_key
              and l.state in ('r', 's') and l.runs = 0
            returning l.id into there;
            perform conductor.notify_queue(l.queue, l.rank, case when l.state = 's' then l.run_at end)
            from conductor.live l where l.id = there;
            if there is null then
                update conductor.live l set dedupe_key = null
                where l.task = spec.task and l.queue = spec.queue and l.dedupe_key = spec.dedupe_key;
            end if;
        end if;
        select l.id into there from conductor.live l
        where l.task = spec.task and l.queue = spec.queue and l.dedupe_key = spec.dedupe_key;
        if there is null then
            return query select * from conductor.enqueue(
                (select json_agg(e) from json_array_elements(specs) e
                 where (e ->> 'id')::uuid = spec.id));
            continue;
        end if;
        asked := spec.id;
        met := there;
        return next;
    end loop;
end
$$;

-- As enqueue. But where one of the array that says "raise" meets an execution, nothing is inserted.
create function conductor.enqueue_or_nothing(specs json, recheck boolean default false)
    returns table (asked uuid, met uuid)
    language plpgsql
    set search_path = pg_catalog, pg_temp
as $$
declare
    meetings json;
begin
    begin
        select json_agg(e) into meetings from conductor.enqueue(specs, recheck) e;
        if exists (
            select from json_to_recordset(meetings) as m (asked uuid, met uuid)
            join json_to_recordset(specs) as s (id uuid, on_duplicate text) on s.id = m.asked
            where s.on_duplicate = 'raise' or m.met is null
        ) then
            raise exception 'duplicate' using errcode = 'CD409';
        end if;
    exception when sqlstate 'CD409' then
        null;  -- what was inserted is gone; what was met is known
    end;
    return query select m.asked, m.met
    from json_to_recordset(meetings) as m (asked uuid, met uuid);
end
$$;

-- For psql, triggers and other languages. Queue and priority come from the registered task.
create function conductor.invoke(
    task text, payload jsonb default '{}', queue text default null,
    run_at timestamptz default null, priority integer default null,
    dedupe_key text default null, "group" text default null, metadata jsonb default null)
    returns uuid
    language plpgsql
    set search_path = pg_catalog, pg_temp
as $$
declare
    known conductor.tasks;
    homes integer;
    asked uuid := conductor.uuid7();
    there uuid;
begin
    select count(*) filter (where t.home) into homes from conductor.tasks t where t.name = invoke.task;
    select t.* into known from conductor.tasks t
    where t.name = invoke.task and (invoke.queue is null or t.queue = invoke.queue)
    order by t.home desc, t.queue limit 1;
    if invoke.queue is null and known.name is null then
        raise exception 'no task is named "%"', invoke.task using
            errcode = 'undefined_object',
            hint = 'Start a server that serves it, run "conductor migrate", or name a queue.';
    elsif invoke.queue is null and homes > 1 then
        raise exception 'task "%" is in several queues', invoke.task using
            errcode = 'ambiguous_parameter', hint = 'Name the queue.';
    elsif known.options -> 'invocable' = 'false' then
        raise exception 'task "%" is not invocable: only its triggers run it', invoke.task using
            errcode = 'insufficient_privilege';
    elsif invoke."group" is not null then
        raise exception 'groups are not in this version: "group" would do nothing' using
            errcode = 'feature_not_supported', hint = 'Leave it away.';
    end if;
    if coalesce(invoke.task, '') !~ '^[A-Za-z0-9_.:-]{1,200}$'
       or coalesce(invoke.queue, known.queue) !~ '^[A-Za-z0-9_.:-]{1,200}$' then
        raise exception 'task "%" or queue "%" is not a name', invoke.task, invoke.queue using
            errcode = 'invalid_parameter_value',
            hint = 'Names have 1 to 200 of the characters A-Z a-z 0-9 _ . : -';
    end if;
    if coalesce(invoke.priority, 0) not between -32767 and 32767 then
        raise exception 'priority % is not between -32767 and 32767', invoke.priority using
            errcode = 'numeric_value_out_of_range';
    end if;
    select e.met into there from conductor.enqueue(json_build_array(json_build_object(
        'id', asked, 'task', invoke.task, 'queue', coalesce(invoke.queue, known.queue),
        'payload', coalesce(invoke.payload, '{}'), 'run_at', invoke.run_at,
        'rank', -coalesce(invoke.priority, known.priority, 0),
        'dedupe_key', invoke.dedupe_key, 'group', invoke."group", 'metadata', invoke.metadata
    ))) e;
    return coalesce(there, asked);
end
$$;

-- True if this call changed anything. A running execution is only marked, and its server
-- told; it becomes cancelled when it ends, however it ends.
create function conductor.cancel(id uuid, reason text default null) returns boolean
    language plpgsql
    set search_path = pg_catalog, pg_temp
as $$
declare
    held record;
    why constant json := json_build_object(
        'type', 'Cancelled', 'message', coalesce(reason, ''), 'traceback', null);
begin
    -- Whoever ends an execution locks first who waits for it, or two that end a tree at once
    -- would wait for each other.
    perform from conductor.live l
    where l.id in (select g.execution_id from conductor.ledger g
                   where g.child_id = cancel.id and g.state = 'p')
    order by l.id for update;
    select l.state, l.flags, l.owner into held from conductor.live l
    where l.id = cancel.id for update;
    if not found or held.flags & 1 <> 0 then
        return false;
    end if;
    if held.state = 'x' then
        update conductor.live l set flags = l.flags | 1, error = why where l.id = cancel.id;
        perform pg_notify('conductor_' || replace(held.owner::text, '-', ''), 'cancel:' || cancel.id);
    else
        perform conductor.archive(array[cancel.id], 'k', why);
    end if;
    return true;
end
$$;
