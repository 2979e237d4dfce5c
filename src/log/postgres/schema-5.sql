-- Version 5 of the invalidation log: a table can be watched for some of its columns.

-- Null where every update counts.
alter table perto.watched add column columns text[];

create or replace function perto.version() returns integer language sql immutable as 'select 5';
