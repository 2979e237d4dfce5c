-- Imports of contacts. An upload is kept in pieces until it has been worked through, so that any instance can go on.
create table imports (
    id           uuid primary key default gen_random_uuid(),
    company_id   bigint not null references companies on delete cascade,
    format       text not null check (format in ('csv', 'ndjson')),
    -- For CSV: what its columns are called, in their order.
    columns      text[] not null default '{}',
    region       text not null,
    state        text not null default 'uploading'
                 check (state in ('uploading', 'queued', 'running', 'done', 'cancelled', 'failed')),
    -- Why it failed.
    problem      text,
    bytes        bigint not null default 0,
    bytes_done   bigint not null default 0,
    -- Records seen so far, and what became of them.
    rows         bigint not null default 0,
    accepted     bigint not null default 0,
    rejected     bigint not null default 0,
    reasons      jsonb not null default '{}',
    -- Who works on it: a number of its own for each time that somebody takes it up, and the instance, for people. Until
    -- `leased_until` nobody else may; null is nobody.
    owner        uuid,
    instance     text,
    leased_until timestamptz,
    -- How often it was taken up since the last chunk that went through.
    attempts     integer not null default 0,
    created_at   timestamptz not null default clock_timestamp(),
    -- When it last made room for another: turns are taken by it.
    worked_at    timestamptz,
    started_at   timestamptz,
    finished_at  timestamptz
);
create index imports_company on imports (company_id, created_at desc);
create index imports_open on imports (created_at) where state in ('uploading', 'queued', 'running');
create index imports_finished on imports (finished_at) where finished_at is not null;

create table import_chunks (
    import_id  uuid not null references imports on delete cascade,
    seq        integer not null,
    -- The line of the file that its first record begins on.
    first_line bigint not null,
    data       bytea not null,
    primary key (import_id, seq)
);
-- Compressing what is deleted a moment later would cost more than it saves.
alter table import_chunks alter column data set storage external;

create table import_rejects (
    import_id uuid not null references imports on delete cascade,
    line      bigint not null,
    reason    text not null,
    record    text not null,
    primary key (import_id, line)
);
