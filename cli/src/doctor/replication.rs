//! What the doctor says of logical replication: the log is no table to be replicated, and watched ones have a word in it.

use perto::postgres::Watched;

use super::super::migrate;
use super::postgres::reading;
use super::{Doctor, Finding, Findings};

/// The tables of the log whose rows may go elsewhere: they harm nobody.
const HARMLESS: [&str; 2] = ["watched", "switch"];

/// Publications that carry the log. `usable`: it is of this version.
pub(super) async fn publications(doctor: &Doctor, usable: bool) -> Findings {
    let mut connection = reading(&doctor.database).await?;
    // Postgres refuses every update and delete of a published table that has no replica identity.
    let rows: Vec<(String, String, bool, bool)> = sqlx::query_as(
        "select quote_ident(p.pubname), format('%I.%I', t.schemaname, t.tablename), p.puballtables, \
           (p.pubupdate or p.pubdelete) and (c.relreplident = 'n' or c.relreplident = 'd' and not exists \
             (select from pg_index i where i.indrelid = c.oid and i.indisprimary)) \
         from pg_publication p join pg_publication_tables t on t.pubname = p.pubname \
         join pg_namespace n on n.nspname = t.schemaname join pg_class c on c.relnamespace = n.oid and c.relname = t.tablename \
         where t.schemaname = $1 and (t.tablename <> all($2) or c.relreplident <> 'f') order by 1, 2",
    )
    .persistent(false)
    .bind(&doctor.schema)
    .bind(HARMLESS)
    .fetch_all(&mut connection)
    .await?;
    let mut findings = Vec::new();
    for group in rows.chunk_by(|a, b| (&a.0, a.3) == (&b.0, b.3)) {
        let (publication, _, all, stops) = &group[0];
        let tables: Vec<&str> = group.iter().map(|(_, table, ..)| table.as_str()).collect();
        let names = tables.join(", ");
        let mut finding = if *stops {
            Finding::wrong(
                "publications",
                format!(
                    "the publication {publication} carries {names}, without a replica identity: Postgres refuses each trim, and \
                     each write that is traced"
                ),
            )
        } else {
            Finding::warn(
                "publications",
                format!(
                    "the publication {publication} carries {names}: a subscriber with a log of its own stops at a conflict"
                ),
            )
        };
        if !usable {
            finding = finding.mend(migrate::command(&doctor.schema, doctor.product));
        } else if *stops {
            for table in tables {
                finding = finding.mend(format!("alter table {table} replica identity full;"));
            }
        } else if *all {
            finding =
                finding.mend(format!("drop publication {publication}; -- and name its tables in another"));
        } else {
            finding = finding.mend(format!("alter publication {publication} drop table {names};"));
        }
        findings.push(finding);
    }
    if findings.is_empty() {
        findings.push(Finding::ok("publications", "none carries the log"));
    }
    Ok(findings)
}

/// Their apply worker fires row triggers, and ours are for statements.
pub(super) async fn subscriptions(doctor: &Doctor, watched: &[Watched]) -> Findings {
    let mut connection = reading(&doctor.database).await?;
    let tables: Vec<&str> = watched.iter().flat_map(|watched| &watched.tables).map(String::as_str).collect();
    let rows: Vec<(String, String, bool)> = sqlx::query_as(
        "select quote_ident(s.subname), format('%I.%I', n.nspname, c.relname), n.nspname = $2 from pg_subscription s \
         join pg_subscription_rel r on r.srsubid = s.oid join pg_class c on c.oid = r.srrelid \
         join pg_namespace n on n.oid = c.relnamespace \
         where format('%I.%I', n.nspname, c.relname) = any($1) or n.nspname = $2 and c.relname <> all($3) order by 1, 2",
    )
    .persistent(false)
    .bind(tables)
    .bind(&doctor.schema)
    .bind(HARMLESS)
    .fetch_all(&mut connection)
    .await?;
    if rows.is_empty() {
        return Ok(vec![Finding::ok("subscriptions", "none writes into a watched table, nor into the log")]);
    }
    let finding = |(subscription, table, log): &(String, String, bool)| {
        let (found, publisher) = if *log {
            let found = format!(
                "the subscription {subscription} writes into {table}, which is this database's own: at the first conflict it \
                 stops, and nothing more comes"
            );
            (
                found,
                format!(
                    "{} # with DATABASE_URL of the publisher: its log is then in no publication",
                    migrate::command(&doctor.schema, doctor.product)
                ),
            )
        } else {
            let found = format!(
                "the subscription {subscription} writes into {table}: logical replication fires no statement trigger, so what it \
                 writes is not seen"
            );
            (found, format!("alter publication PUBLICATION drop table {table}; -- on the publisher"))
        };
        Finding::wrong("subscriptions", found)
            .mend(publisher)
            .mend(format!("alter subscription {subscription} refresh publication;"))
    };
    Ok(rows.iter().map(finding).collect())
}
