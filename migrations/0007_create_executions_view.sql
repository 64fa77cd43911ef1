-- breaking: false
-- why: what outside programs may read; the tables behind are nobody's business

create view conductor.executions with (security_barrier = false) as
select id, task, queue,
    case state when 'x' then 'running' when 'w' then 'waiting' else 'pending' end as state,
    payload, null::json as result, error,
    failures + 1 as attempt, failures, crashes, (-rank)::integer as priority, run_at,
    created_at, started_at,
    null::timestamptz as finished_at, parent_id,
    case when flags & 16 <> 0 then (
        select p.progress from conductor.progress p where p.execution_id = live.id) end as progress,
    metadata,
    group_key as "group", runs, flags & 1 <> 0 as cancel_requested, dedupe_key
from conductor.live
union all
select id, task, queue,
    case state when 'c' then 'completed' when 'f' then 'failed' else 'cancelled' end,
    payload, result, error,
    failures + case when state = 'f' and token is not null then 0 else 1 end,
    failures, crashes, (-rank)::integer, run_at, created_at, started_at,
    finished_at, parent_id, progress, metadata, group_key,
    runs, false, dedupe_key
from conductor.history
where expires_at > conductor.now();
