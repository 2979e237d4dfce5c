-- Version 4 of the invalidation log: nothing of it is in any publication, and a row can say why a key was none.
--
-- Rows and token are unlogged alike: a crash, a promotion and a base backup empty both. Without the token it is another
-- epoch, in which all that came before counts as trimmed. So no row is missed that was not dead already, a write costs
-- no WAL for its invalidation, and a publication `for all tables` can neither refuse its updates nor send them anywhere.

create unlogged table perto.new_invalidation (
    xid         xid8 not null default pg_current_xact_id(),
    cache       text not null,
    -- The keys' texts; null for the whole cache.
    keys        text[] check (cardinality(keys) > 0 and array_position(keys, null) is null),
    -- W3C trace context of the write.
    traceparent text check (length(traceparent) <= 55),
    -- Why the whole cache, where no key could be told: the table, and what its expression failed with.
    fault       text
);
-- One a minute. Rows are trimmed by a snapshot that is old enough, never by their age: a transaction that was open
-- for long commits rows that are old already.
create unlogged table perto.new_tick (
    at       timestamptz not null default clock_timestamp(),
    snapshot pg_snapshot not null default pg_current_snapshot()
);

-- Whoever had rights on the old tables has them on the new ones.
do $$
declare
    which text;
    owner text;
    granted record;
begin
    foreach which in array array['invalidation', 'tick'] loop
        select c.relowner::regrole::text into owner from pg_class c where c.oid = ('perto.' || which)::regclass;
        execute format('alter table perto.new_%s owner to %s', which, owner);
        for granted in
            select a.privilege_type as privilege, case a.grantee when 0 then 'public' else a.grantee::regrole::text end as grantee
            from pg_class c, aclexplode(c.relacl) a where c.oid = ('perto.' || which)::regclass and a.grantee <> c.relowner
        loop
            execute format('grant %s on perto.new_%s to %s', granted.privilege, which, granted.grantee);
        end loop;
    end loop;
end $$;

-- In the order in which an epoch is begun: neither waits for the other.
lock table perto.boot, perto.tick, perto.invalidation in access exclusive mode;
drop table perto.invalidation, perto.tick, perto.meta;
alter table perto.new_invalidation rename to invalidation;
create index invalidation_xid on perto.invalidation (xid);
-- Written and trimmed all the time, and read by the newest rows.
alter table perto.invalidation set (autovacuum_vacuum_scale_factor = 0.05, autovacuum_vacuum_threshold = 5000);
alter table perto.new_tick rename to tick;
alter table perto.tick add constraint tick_pkey primary key (at);

-- The trim horizon lives and dies with the token: every row that has been trimmed is contained in it.
delete from perto.boot;
alter table perto.boot add column trimmed pg_snapshot not null default pg_current_snapshot();

-- A subscriber that has a log of its own gets these rows as well. Nothing of them may be in its way.
alter table perto.watched drop constraint if exists watched_pkey;
alter table perto.watched replica identity full;

-- No row says it: a subscriber has a version of its own.
create function perto.version() returns integer language sql immutable as 'select 4';
grant execute on function perto.version() to public;

-- This database, these tables, this run of this server: no other has started in the same microsecond. A server that was started again
-- may have been given older files, and nothing in them would tell. A log that was truncated or written anew has another file; rows of it
-- must not be deleted by hand. Nothing here is read from a file: a poll must not wait for a disk that is slow.
-- Null where the token is not unlogged any more: it would outlive the rows.
create or replace function perto.origin() returns text language sql stable as $$
    select d.oid || '/' || b.oid || '/' || pg_catalog.pg_relation_filenode('perto.invalidation')
        || '/' || (extract(epoch from pg_catalog.pg_postmaster_start_time()) * 1000000)::bigint
    from pg_catalog.pg_database d, pg_catalog.pg_class b
    where d.datname = current_database() and b.oid = 'perto.boot'::regclass and b.relpersistence = 'u'
$$;
