-- Bytes that the rejected rows of an import take, so that they can be bounded.
alter table imports add column if not exists rejects_bytes bigint not null default 0;
