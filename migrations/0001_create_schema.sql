-- breaking: false
-- why: the schema's clock, its identifiers and its voice, on which everything later builds

-- The one clock. Stable, so that it can bound an index scan; tests replace its body.
create function conductor.now() returns timestamptz
    language sql stable parallel safe
    return statement_timestamp();

-- A version 7 UUID (RFC 9562): 48 bits of milliseconds, then random bits, so that new
-- rows land at the right edge of the primary key.
create function conductor.uuid7() returns uuid
    language sql volatile parallel safe
    return (
        lpad(to_hex((extract(epoch from clock_timestamp()) * 1000)::bigint), 12, '0')
        || '7'
        || substr(replace(gen_random_uuid()::text, '-', ''), 14)
    )::uuid;

-- Tells the workers of a queue that something is ready at this rank, or due at a moment. The
-- server sends equal messages of one transaction once.
create function conductor.notify_queue(queue text, rank integer, due_at timestamptz)
    returns void
    language sql volatile
    return pg_notify('conductor', case
        when due_at is null then 'ready:' || rank
        else 'due:' || floor(extract(epoch from due_at))::bigint end || ':' || queue);
