-- The instances and what they count, each by itself once a second. Worth nothing after a crash.
create unlogged table instances (
    name       text primary key,
    address    text not null,
    started_at timestamptz not null,
    seen_at    timestamptz not null,
    -- Which reset of the figures these are counted from.
    generation bigint not null,
    figures    jsonb not null
);

create table figures_reset (
    one        boolean primary key default true check (one),
    generation bigint not null
);
insert into figures_reset (generation) values (0);
