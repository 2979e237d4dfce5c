-- Of what was written before there were triggers for it. Not in the migration that alters the table: nobody could read a chat
-- meanwhile. Those who write wait; so what is read here is the newest.
do $$
begin
    perform from chats order by id for no key update;
    update chats c set (last_message_id, last_message_at, last_sender, last_body) = (
        select m.id, m.created_at, m.sender, left(m.body, 200) from messages m
        where m.chat_id = c.id order by m.created_at desc, m.id desc limit 1);
end $$;
