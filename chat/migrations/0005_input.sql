-- What is between the columns of a CSV file.
alter table imports add column separator text not null default ',' check (length(separator) = 1);

-- One user a company and address, however the address is spelled. Of those who share one already, all but the first are
-- twins: they stay as they are, until one of them gets another address. What was exactly the same never was let in.
lock table users in share row exclusive mode;
alter table users add column twin boolean not null default false;
update users u set twin = true
    where exists (select from users o where o.company_id = u.company_id and lower(o.email) = lower(u.email) and o.id < u.id);
create unique index users_company_id_folded_email_key on users (company_id, lower(email)) where not twin;

create index users_twins on users (company_id, lower(email)) where twin;

-- Another address must be nobody's, a twin's neither: the index above has no twins. With other capitals alone it is still
-- the same address.
create function users_twin() returns trigger language plpgsql as $$
declare
    had boolean;
begin
    -- As a dump has it.
    if tg_op = 'INSERT' and new.twin then
        return new;
    end if;
    new.twin := tg_op = 'UPDATE' and old.twin and lower(new.email) = lower(old.email);
    if tg_op = 'INSERT' or lower(new.email) <> lower(old.email) or new.company_id <> old.company_id then
        execute format(
            'select exists (select from %s u where u.company_id = $1 and lower(u.email) = lower($2) and u.twin and u.id <> $3)',
            tg_relid::regclass) into had using new.company_id, new.email, new.id;
        if had then
            raise unique_violation using message = 'another user of this company has this address',
                constraint = 'users_company_id_folded_email_key', table = tg_table_name;
        end if;
    end if;
    return new;
end $$;
create trigger users_twin before insert or update of email, twin, company_id on users
    for each row execute function users_twin();
