-- Version 2 of the invalidation log: what is watched, so that triggers that have gone can be told from none.

create table perto.watched (
    -- The table, and what it was called: another one of that name has another number.
    relid oid not null,
    name  text not null,
    cache text not null,
    -- A key's text, as an SQL expression over the table's columns.
    key   text not null,
    since timestamptz not null default clock_timestamp(),
    primary key (relid, cache)
);

-- Whoever may read the log may read this. To write it is for who watches tables: what it says of a key is SQL that
-- an admin is told to run again where a trigger is gone.
do $$
declare
    grantee text;
begin
    execute format('alter table perto.watched owner to %s', (
        select relowner::regrole from pg_class where oid = 'perto.invalidation'::regclass));
    for grantee in
        select case a.grantee when 0 then 'public' else a.grantee::regrole::text end
        from pg_class c, aclexplode(c.relacl) a
        where c.oid = 'perto.invalidation'::regclass and a.privilege_type = 'SELECT' and a.grantee <> c.relowner
    loop
        execute format('grant select on perto.watched to %s', grantee);
    end loop;
end $$;
