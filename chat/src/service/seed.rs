//! Demo data, made in Postgres by batches. Told twice, it adds what is missing.

use anyhow::Context;
use sqlx::PgConnection;

/// How much of everything there is to be.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Amounts {
    pub(crate) companies: u32,
    pub(crate) users: u32,
    pub(crate) contacts: u32,
    pub(crate) messages: u32,
}

/// Rows of one statement.
const BATCH: i64 = 25_000;

/// Each makes the rows `$1` to `$2` of its table, spread over `$3` of those before.
const COMPANIES: &str = "insert into companies (name, region) \
    select 'Company ' || n, (array['DE', 'PT', 'US', 'BR'])[1 + n % 4] from generate_series($1, $2) n where $3 > 0";
const USERS: &str = "insert into users (company_id, name, email, role) \
    select c.id, 'User ' || n, 'user' || n || '@example.com', case when n <= $3 then 'admin' else 'agent' end \
    from generate_series($1, $2) n \
    join (select id, row_number() over (order by id) - 1 as at from companies order by id limit $3) c on c.at = n % $3 \
    on conflict do nothing";
/// Phones are of their companies' regions, and valid.
const CONTACTS: &str = "insert into contacts (company_id, phone, name, email) \
    select c.id, case c.region when 'PT' then '+35191' || lpad(n::text, 7, '0') when 'US' then '+1212' || 2000000 + n \
      when 'BR' then '+551197' || lpad(n::text, 7, '0') else '+491511' || lpad(n::text, 7, '0') end, \
      'Contact ' || n, 'contact' || n || '@example.com' \
    from generate_series($1, $2) n \
    join (select id, region, row_number() over (order by id) - 1 as at from companies order by id limit $3) c \
      on c.at = n % $3 \
    on conflict do nothing";
/// Each with the contact of its number, where that is of the same company.
const CHATS: &str = "insert into chats (id, company_id, contact_id) \
    select ('00000000-0000-4000-8000-' || lpad(to_hex(n), 12, '0'))::uuid, c.id, p.id from generate_series($1, $2) n \
    join (select id, row_number() over (order by id) - 1 as at from companies order by id limit $3) c on c.at = n % $3 \
    left join contacts p on p.id = n and p.company_id = c.id \
    on conflict do nothing";
const MESSAGES: &str = "insert into messages (chat_id, sender, body, created_at) \
    select ('00000000-0000-4000-8000-' || lpad(to_hex(1 + n % $3), 12, '0'))::uuid, \
      (array['contact', 'assistant', 'user'])[1 + n % 3], 'Message ' || n || ' of the demo data', \
      clock_timestamp() - make_interval(secs => greatest(0, 1000000 - n)) \
    from generate_series($1, $2) n \
    where exists (select from chats where id = ('00000000-0000-4000-8000-' || lpad(to_hex(1 + n % $3), 12, '0'))::uuid)";

/// Makes what is missing. `progress` hears of each batch: what, how many there are, how many there will be.
///
/// # Errors
/// Where a table is missing, or Postgres refuses.
pub(crate) async fn seed(
    connection: &mut PgConnection,
    amounts: Amounts,
    mut progress: impl FnMut(&str, i64, i64),
) -> anyhow::Result<()> {
    let Amounts { companies, users, contacts, messages } = amounts;
    // A chat has twenty messages.
    let chats = messages.div_ceil(20);
    for (table, sql, wanted, over) in [
        ("companies", COMPANIES, companies, 1),
        ("users", USERS, users, companies),
        ("contacts", CONTACTS, contacts, companies),
        ("chats", CHATS, chats, companies),
        ("messages", MESSAGES, messages, chats),
    ] {
        let wanted = i64::from(wanted);
        let mut there: i64 = sqlx::query_scalar(sqlx::AssertSqlSafe(format!("select count(*) from {table}")))
            .fetch_one(&mut *connection)
            .await
            .context("the service's tables are missing: run `perto-chat migrate`")?;
        progress(table, there.min(wanted), wanted);
        while there < wanted {
            let next = (there + BATCH).min(wanted);
            let query = sqlx::query(sql).bind(there + 1).bind(next).bind(i64::from(over));
            query.execute(&mut *connection).await.with_context(|| format!("DATABASE_URL: {table}"))?;
            there = next;
            progress(table, there, wanted);
        }
    }
    Ok(())
}
