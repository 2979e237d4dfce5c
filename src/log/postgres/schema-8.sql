-- Version 8 of the invalidation log: two releases use it beside each other.

-- What has been added to it so far. `version` is what the release must know at least that uses it: an upgrade only adds, and that stays
-- until nobody is left who knows no more.
create function perto.added() returns integer language sql immutable as 'select 8';
grant execute on function perto.added() to public;

-- Whoever owns the log raises both.
do $$
declare
    owner text := (select relowner::regrole from pg_class where oid = 'perto.invalidation'::regclass);
begin
    execute format('alter function perto.added() owner to %s', owner);
    execute format('alter function perto.version() owner to %s', owner);
end $$;
