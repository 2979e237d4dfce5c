-- Version 7 of the invalidation log: tiers of caches can be switched while instances run, and a write learns its epoch sooner.

-- Which log a switch is of. No row says it: a subscriber of this table has a log of its own. A dump brings it along.
do $$
begin
    execute format(
        'create function perto.home() returns uuid language sql immutable as %L',
        format('select %L::uuid', gen_random_uuid()));
end $$;
grant execute on function perto.home() to public;

-- Kept in a crash: what is switched in an incident stays so while servers fall over.
create table perto.switch (
    home   uuid not null default perto.home(),
    -- Or '*', for all.
    cache  text not null check (octet_length(cache) between 1 and 64),
    tier   text not null check (tier in ('l1', 'l2')),
    mode   text not null check (mode in ('off', 'read-only')),
    reason text not null default '' check (octet_length(reason) <= 400),
    who    text not null default current_user check (octet_length(who) <= 100),
    since  timestamptz not null default clock_timestamp() check (isfinite(since) and since < '10000-01-01 00:00:00+00'),
    -- When it ends by itself.
    until  timestamptz check (isfinite(until) and until < '10000-01-01 00:00:00+00')
);
-- As of what is watched: a subscriber's own rows must not be in the way of those that come.
alter table perto.switch replica identity full;

-- Whoever may read the log may read this. To write it is for who is given it: `grant insert, update, delete`.
do $$
declare
    grantee text;
begin
    execute format('alter table perto.switch owner to %s', (
        select relowner::regrole from pg_class where oid = 'perto.invalidation'::regclass));
    execute format('alter function perto.home() owner to %s', (
        select relowner::regrole from pg_class where oid = 'perto.invalidation'::regclass));
    for grantee in
        select case a.grantee when 0 then 'public' else a.grantee::regrole::text end
        from pg_class c, aclexplode(c.relacl) a
        where c.oid = 'perto.invalidation'::regclass and a.privilege_type = 'SELECT' and a.grantee <> c.relowner
    loop
        execute format('grant select on perto.switch to %s', grantee);
    end loop;
end $$;

-- Asked at each write. Of a function in SQL nothing is kept: to plan it anew each time took four times as long as the rest of an
-- invalidation by hand.
create or replace function perto.origin() returns text language plpgsql stable as $$
begin
    return (
        select d.oid || '/' || b.oid || '/' || pg_catalog.pg_relation_filenode('perto.invalidation')
            || '/' || (extract(epoch from pg_catalog.pg_postmaster_start_time()) * 1000000)::bigint
        from pg_catalog.pg_database d, pg_catalog.pg_class b
        where d.datname = current_database() and b.oid = 'perto.boot'::regclass and b.relpersistence = 'u');
end $$;

create or replace function perto.epoch() returns bigint language plpgsql stable as $$
declare
    here text := perto.origin();
begin
    return (
        select ('x' || left(md5(b.token || b.origin), 16))::bit(64)::bigint from perto.boot b where b.origin = here);
end $$;

create or replace function perto.version() returns integer language sql immutable as 'select 7';
