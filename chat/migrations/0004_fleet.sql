-- The instances and what they count, each by itself once a second. Worth nothing after a crash.
create unlogged table instances (
    -- Of one start: two instances of one name are told apart by it, and so is one from what it was before.
    id         uuid primary key,
    name       text not null,
    started_at timestamptz not null,
    seen_at    timestamptz not null,
    -- Which reset of the figures these are counted from.
    generation bigint not null,
    figures    jsonb not null
) with (fillfactor = 50, autovacuum_vacuum_threshold = 1000, autovacuum_vacuum_scale_factor = 0);

create table figures_reset (
    one        boolean primary key default true check (one),
    generation bigint not null
);
insert into figures_reset (generation) values (0);
