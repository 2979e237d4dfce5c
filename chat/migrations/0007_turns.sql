-- When an import was last taken up: companies take turns by it.
alter table imports add column if not exists claimed_at timestamptz;
create index if not exists imports_turns on imports (company_id, claimed_at);
