-- The invalidation log, version 1. `perto` stands for the chosen schema. See docs/PROTOCOL.md.
create schema if not exists perto;

create table perto.meta (
    one     boolean primary key default true check (one),
    version integer not null,
    -- Every row that has been trimmed is contained in this snapshot.
    trimmed pg_snapshot not null
);
insert into perto.meta (version, trimmed) values (1, pg_current_snapshot());

-- Empty after a crash and a promotion: then transaction numbers may be used again, and whoever polls next writes
-- another token, which makes another epoch.
create unlogged table perto.boot (
    one    boolean primary key default true check (one),
    token  uuid not null default gen_random_uuid(),
    -- Where and since when. A dump restored elsewhere and files restored from a copy bring the token along, but not
    -- this.
    origin text not null
);

create table perto.invalidation (
    xid   xid8 not null default pg_current_xact_id(),
    cache text not null,
    -- The keys' texts; null for the whole cache.
    keys  text[] check (cardinality(keys) > 0 and array_position(keys, null) is null)
);
create index invalidation_xid on perto.invalidation (xid);
-- Written and trimmed all the time, and read by the newest rows.
alter table perto.invalidation set (autovacuum_vacuum_scale_factor = 0.05, autovacuum_vacuum_threshold = 5000);

-- One a minute. Rows are trimmed by a snapshot that is old enough, never by their age: a transaction that was open
-- for long commits rows that are old already.
create table perto.tick (
    id       bigint generated always as identity primary key,
    at       timestamptz not null default clock_timestamp(),
    snapshot pg_snapshot not null default pg_current_snapshot()
);

-- This cluster, this database, these tables, this run of the server. A server that was started again may have been
-- given older files, and nothing in them would tell.
create function perto.origin() returns text language sql stable as $$
    select system_identifier || '/' || (select oid from pg_catalog.pg_database where datname = current_database())
        || '/' || 'perto.boot'::regclass::oid || '/' || extract(epoch from pg_catalog.pg_postmaster_start_time())
    from pg_catalog.pg_control_system()
$$;

create function perto.epoch() returns bigint language sql stable as $$
    select ('x' || left(md5(token || origin), 16))::bit(64)::bigint from perto.boot where origin = perto.origin()
$$;

-- What the calling transaction has invalidated so far. Whoever may write a watched table may ask; it shows nothing of
-- others.
create function perto.pending() returns table (xid text, epoch bigint, cache text, key text)
language sql stable security definer set search_path = pg_catalog, pg_temp as $$
    select i.xid::text, perto.epoch(), i.cache, k.key
    from perto.invalidation i left join lateral unnest(i.keys) k(key) on true
    where i.xid = pg_current_xact_id_if_assigned()
$$;
grant usage on schema perto to public;
