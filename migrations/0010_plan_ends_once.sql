-- breaking: false
-- why: a function in SQL is read and planned anew by every statement that calls it, a statement in
-- PL/pgSQL once per session where a generic plan is asked for: an end with a ledger took five times
-- as long as what it does

-- The ledger and the attempts of an execution, to be kept with it. One that has ended badly may
-- be retried: the executions it still waited for are then to be asked for anew, and a registration
-- for an event that is still open begins anew with the retry.
create or replace function conductor.story(id uuid, ending "char") returns json
    language plpgsql stable
    set search_path = pg_catalog, pg_temp
as $$
begin
    return (select json_build_object(
        'ledger', (
            select coalesce(json_agg(to_json(g) order by g.seq), '[]') from conductor.ledger g
            where g.execution_id = story.id
              and (ending = 'c' or g.state <> 'p' or g.kind not in ('c', 'w'))),
        'attempts', (
            select coalesce(json_agg(to_json(a) order by a.seq), '[]') from conductor.attempts a
            where a.execution_id = story.id)));
end
$$;

-- Tells those who wait for executions how they have ended: in their ledgers, because of what is
-- not kept nothing else is left to read. Who waited becomes ready; whoever was just about to wait
-- finds that it has been woken. A group wakes when all have ended, or with the first that failed.
create or replace function conductor.tell(
    ids uuid[], endings "char"[], results json[], reasons json[])
    returns void
    language plpgsql volatile
    set search_path = pg_catalog, pg_temp
as $$
declare
    queues integer;
begin
    with told as (
        update conductor.ledger g set
            state = e.ending, value = e.result, error = e.reason, ended_at = conductor.now()
        from unnest(ids, endings, results, reasons) as e (id, ending, result, reason)
        where g.child_id = any (array[e.id]) and g.state = 'p'
        returning g.execution_id, g.kind, g.part_of, g.name, g.seq, g.state
    ), parts as (
        select execution_id, part_of, count(*)::integer as n,
            (array_agg(name order by seq) filter (where state <> 'c'))[1] as failed
        from told where part_of is not null group by execution_id, part_of
    ), groups as (
        update conductor.ledger g set
            remaining = g.remaining - p.n,
            state = case when p.failed is not null and not g.tolerant then 'f'
                         when g.remaining <= p.n then 'c' else 'p' end::"char",
            value = case when p.failed is not null and not g.tolerant
                         then to_json(p.failed) end,
            ended_at = conductor.now()
        from parts p
        where g.execution_id = any (array[p.execution_id]) and g.name = p.part_of and g.state = 'p'
        returning g.execution_id, g.state
    ), woken as (
        update conductor.live l set
            wakes = l.wakes + 1,
            state = case when l.state = 'w' then 'r' else l.state end::"char",
            run_at = case when l.state = 'w' then conductor.now() else l.run_at end
        where l.id = any (array(
            select execution_id from told where kind in ('c', 'w') and part_of is null
            union all select execution_id from groups where state <> 'p'))
        returning l.queue, l.rank, l.state
    ), heard as materialized (
        select conductor.notify_queue(queue, min(rank), null) from woken
        where state = 'r' group by queue
    )
    select count(*) into queues from heard;
end
$$;

-- How executions end, whoever ends them: their row becomes one of history, those who wait for
-- them are told, and when they end badly so do the children they wait for, and theirs: at once,
-- or if they run as soon as they stop. The caller holds their row locks, has looked whether they
-- were to be cancelled, and gives the reasons. keeps: seconds to keep each, null for ever; no array:
-- as their tasks say. finished: by the runner of the last claim, whose token is kept, so that a
-- finish that is sent again is recognised.
create or replace function conductor.conclude(
    ids uuid[], endings "char"[], results json[], reasons json[],
    keeps double precision[] default null, finished boolean default false,
    crashed integer default 0)
    returns integer
    language plpgsql
    set search_path = pg_catalog, pg_temp
    set plan_cache_mode = force_generic_plan
    set enable_seqscan = off  -- a plan made while there is little is kept while there is much
as $$
declare
    concluded constant integer := cardinality(ids);
    orphans uuid[];
    why constant json := json_build_object(
        'type', 'Cancelled', 'message', 'its parent has ended', 'traceback', null);
begin
    while cardinality(ids) > 0 loop
        perform conductor.tell(ids, endings, results, reasons);

        select array_agg(g.child_id) into orphans
        from unnest(ids, endings) as e (id, ending)
        join conductor.ledger g on g.execution_id = any (array[e.id])
        where e.ending <> 'c' and g.kind = 'c' and g.state = 'p';

        with gone as (
            delete from conductor.live l
            using unnest(ids, endings, results, reasons, keeps)
                as e (id, ending, result, reason, keep)
            where l.id = any (array[e.id])
            returning l.*, e.ending, e.result, e.reason, e.keep
        ), told as materialized (
            select conductor.notify_ended(id) from gone where flags & 8 <> 0
        ), kept as (
            select g.*, case when keeps is not null then g.keep
                             when t.name is null then 2592000
                             when g.ending = 'c' then t.retain_completed
                             else t.retain_failed end as kept_for
            from gone g left join conductor.tasks t on t.queue = g.queue and t.name = g.task
        )
        insert into conductor.history (
            id, parent_id, seq, token, run_at, created_at, started_at, finished_at, expires_at,
            timeout, runs, failures, crashes, rank, state, queue, task, dedupe_key, group_key,
            payload, metadata, event, result, error, progress, story)
        select id, parent_id, seq, case when finished or state <> 'x' then token end, run_at,
            created_at, started_at, conductor.now(),
            coalesce(conductor.now() + kept_for * interval '1 second', 'infinity'),
            timeout, runs, failures + (finished and ending = 'f')::integer, crashes + crashed,
            rank, ending, queue, task, dedupe_key, group_key, payload, metadata, event,
            case when ending = 'c' then result end,
            case when ending <> 'c' then coalesce(reason, error) end,
            case when flags & 16 <> 0 then (
                select p.progress from conductor.progress p where p.execution_id = kept.id) end,
            case when flags & (2 | 16) <> 0 then conductor.story(kept.id, ending) end
        from kept
        where kept_for is distinct from 0 and (select count(*) from told) >= 0;

        delete from conductor.ledger g where g.execution_id = any (ids);
        delete from conductor.attempts a where a.execution_id = any (ids);
        delete from conductor.progress p where p.execution_id = any (ids);

        with held as materialized (
            select l.id, l.state, l.owner, l.flags from conductor.live l
            where l.id = any (orphans) order by l.id for update
        ), asked as (
            update conductor.live l set flags = l.flags | 1, error = why
            from held h where l.id = any (array[h.id]) and h.state = 'x' and h.flags & 1 = 0
            returning pg_notify('conductor_' || replace(h.owner::text, '-', ''), 'cancel:' || l.id)
        )
        select array_agg(h.id), array_agg('k'::"char"), array_agg(null::json), array_agg(why)
        into ids, endings, results, reasons
        from held h where h.state <> 'x' and (select count(*) from asked) >= 0;
        keeps := null;
        finished := false;
        crashed := 0;
    end loop;
    return concluded;
end
$$;

-- Whoever calls them: those of a session that plans as usual.
alter function conductor.enqueue(json, boolean) set enable_seqscan = off;
alter function conductor.resolve_duplicates(json) set enable_seqscan = off;
alter function conductor.cancel(uuid, text) set enable_seqscan = off;
alter function conductor.dispatch(integer) set enable_seqscan = off;
