-- The invalidation log, version 1. `perto` stands for the chosen schema. See docs/PROTOCOL.md.
create schema if not exists perto;

create table perto.meta (
    one     boolean primary key default true check (one),
    version integer not null,
    -- Every row that has been trimmed is contained in this snapshot.
    trimmed pg_snapshot not null
);
insert into perto.meta (version, trimmed) values (1, pg_current_snapshot());

-- Survives a clean restart, is empty after a crash, a promotion and a restore of the files: then transaction
-- numbers may be used again, and whoever polls next writes another token, which makes another epoch.
create unlogged table perto.boot (
    one    boolean primary key default true check (one),
    token  uuid not null default gen_random_uuid(),
    -- Where the token was written. A dump that was restored elsewhere brings the token along, but not this place.
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

-- This cluster, this database, these tables.
create function perto.origin() returns text language sql stable as $$
    select system_identifier || '/' || (select oid from pg_catalog.pg_database where datname = current_database())
        || '/' || 'perto.boot'::regclass::oid
    from pg_catalog.pg_control_system()
$$;
