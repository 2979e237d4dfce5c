-- With whom a chat is, and its newest message: what an inbox shows of it. To find the newest chats of a company is one look
-- into an index then, however many it has; and what happens to older messages is no news to it.
alter table chats
    -- Shown while it is of the chat's own company: contacts may move.
    add column contact_id      bigint references contacts on delete set null,
    -- Of the newest message, kept by the triggers below. All null where there is none.
    add column last_message_id bigint,
    add column last_message_at timestamptz,
    add column last_sender     text,
    -- Its first 200 characters.
    add column last_body       text;
create index chats_contact on chats (contact_id) where contact_id is not null;
create index chats_newest on chats (company_id, last_message_at desc nulls last, id desc);
-- The one above begins with the same column.
drop index chats_company;

create index contacts_by_name on contacts (company_id, name, id);

create function chats_last_message() returns trigger language plpgsql set search_path from current as $$
declare
    changed uuid[];
begin
    if tg_op = 'TRUNCATE' then
        update chats set (last_message_id, last_message_at, last_sender, last_body) = row(null, null, null, null)
            where last_message_id is not null;
        return null;
    elsif tg_op = 'INSERT' then
        select array_agg(distinct chat_id) into changed from new_rows;
    elsif tg_op = 'DELETE' then
        select array_agg(distinct chat_id) into changed from old_rows;
    else
        select array_agg(distinct chat_id) into changed
            from (select chat_id from old_rows union all select chat_id from new_rows) r;
    end if;
    -- Writers of one chat go one after another: the next statement sees the messages of all who came before. In one order, so
    -- that no two wait for each other. The foreign key's locks let this one pass.
    perform from chats where id = any (changed) order by id for no key update;
    update chats c set (last_message_id, last_message_at, last_sender, last_body) = row(m.id, m.created_at, m.sender, m.body)
        from unnest(changed) u (chat) left join lateral (
            select id, created_at, sender, left(body, 200) as body from messages
            where chat_id = u.chat order by created_at desc, id desc limit 1
        ) m on true
        where c.id = u.chat and (c.last_message_id, c.last_message_at, c.last_sender, c.last_body)
            is distinct from (m.id, m.created_at, m.sender, m.body);
    return null;
end $$;
create trigger chats_last_message_insert after insert on messages
    referencing new table as new_rows for each statement execute function chats_last_message();
create trigger chats_last_message_update after update on messages
    referencing old table as old_rows new table as new_rows for each statement execute function chats_last_message();
create trigger chats_last_message_delete after delete on messages
    referencing old table as old_rows for each statement execute function chats_last_message();
create trigger chats_last_message_truncate after truncate on messages
    for each statement execute function chats_last_message();
