-- Version 3 of the invalidation log: a row can tell which trace its write is part of, for whoever has to repair it.

alter table perto.invalidation add column traceparent text check (length(traceparent) <= 55);

-- perto.pending(), and from now on the rows tell the trace. Only for writes that are traced: it writes them once more.
create function perto.pending(trace text) returns table (xid text, epoch bigint, cache text, key text)
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
begin
    -- Also asked in transactions that may only read: these have no number.
    if pg_current_xact_id_if_assigned() is not null then
        update perto.invalidation i set traceparent = trace where i.xid = pg_current_xact_id_if_assigned();
    end if;
    return query select p.xid, p.epoch, p.cache, p.key from perto.pending() p;
end $$;

-- It runs as whoever owns the table, not as whoever upgrades it: that may be a superuser, and the table may have triggers of its owner's.
do $$
begin
    execute format('alter function perto.pending(text) owner to %s', (
        select relowner::regrole from pg_class where oid = 'perto.invalidation'::regclass));
end $$;
