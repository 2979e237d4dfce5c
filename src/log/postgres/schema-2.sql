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

-- Whoever was given rights on the log has the same ones here.
do $$
declare
    grantee text;
    rights  text;
begin
    execute format('alter table perto.watched owner to %s', (
        select relowner::regrole from pg_class where oid = 'perto.invalidation'::regclass));
    for grantee, rights in
        select case a.grantee when 0 then 'public' else a.grantee::regrole::text end, string_agg(a.privilege_type, ', ')
        from pg_class c, aclexplode(c.relacl) a
        where c.oid = 'perto.invalidation'::regclass and a.privilege_type in ('SELECT', 'INSERT', 'DELETE')
            and a.grantee <> c.relowner
        group by a.grantee
    loop
        execute format('grant %s on perto.watched to %s', rights, grantee);
    end loop;
end $$;
