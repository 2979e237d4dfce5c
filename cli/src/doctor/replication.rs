//! What the doctor says of logical replication: the log is no table to be replicated, and watched ones have a word in it.

use perto::postgres::Watched;
use sqlx::AssertSqlSafe;

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
    let (schema, mut connection) = (&doctor.schema, reading(&doctor.database).await?);
    let tables: Vec<&str> = watched.iter().flat_map(|watched| &watched.tables).map(String::as_str).collect();
    let rows: Vec<(String, bool, Vec<String>)> = sqlx::query_as(
        "select quote_ident(s.subname), n.nspname = $2, array_agg(distinct format('%I.%I', n.nspname, c.relname)) \
         from pg_stat_subscription s join pg_subscription_rel r on r.srsubid = s.subid and s.relid is null \
         join pg_class c on c.oid = r.srrelid join pg_namespace n on n.oid = c.relnamespace \
         where format('%I.%I', n.nspname, c.relname) = any($1) or n.nspname = $2 and c.relname <> all($3) \
         group by 1, 2 order by 1, 2",
    )
    .persistent(false)
    .bind(tables)
    .bind(schema)
    .bind(HARMLESS)
    .fetch_all(&mut connection)
    .await?;
    if rows.is_empty() {
        return Ok(vec![Finding::ok("subscriptions", "none writes into a watched table, nor into the log")]);
    }
    let finding = |(subscription, log, tables): &(String, bool, Vec<String>)| {
        let tables = tables.join(", ");
        let refresh = format!("alter subscription {subscription} refresh publication;");
        if *log {
            let found = format!(
                "the subscription {subscription} writes into {tables}, which is this database's own: at the first conflict it \
                 stops, and nothing more comes"
            );
            let publisher = format!(
                "{} # with DATABASE_URL of the publisher: its log is then in no publication",
                migrate::command(schema, doctor.product)
            );
            return Finding::wrong("subscriptions", found).mend(publisher).mend(refresh);
        }
        let found = format!(
            "the subscription {subscription} writes into {tables}: logical replication fires no statement trigger, so what it \
             writes is not seen"
        );
        // What an instance has cached beside it may be old, and no row says so: only another epoch tells.
        Finding::wrong("subscriptions", found)
            .mend(format!("drop subscription {subscription}; -- to move here, once nobody writes there"))
            // Not in one transaction with it: that is not allowed.
            .mend(format!("truncate {schema}.boot; -- after it, and only if it has succeeded"))
            .mend(format!("alter publication PUBLICATION drop table {tables}; -- else: on the publisher"))
            .mend(refresh)
    };
    Ok(rows.iter().map(finding).collect())
}

/// Sequences that are behind the rows that are there: they are in no publication, so a subscriber begins at 1. The next insert
/// fails.
pub(super) async fn sequences(doctor: &Doctor, watched: &[Watched]) -> Findings {
    let mut connection = reading(&doctor.database).await?;
    let tables: Vec<&str> = watched.iter().flat_map(|watched| &watched.tables).map(String::as_str).collect();
    // Of unique columns: else nothing is in the way, and their last value takes long to find.
    let rows: Vec<(String, String, String)> = sqlx::query_as(
        "with owned as materialized ( \
           select s.seqrelid, d.refobjid as relid, d.refobjsubid as attnum from pg_sequence s join pg_depend d on d.objid = s.seqrelid \
           where d.classid = 'pg_class'::regclass and d.refclassid = 'pg_class'::regclass and d.deptype in ('a', 'i') \
             and s.seqincrement > 0 and not s.seqcycle) \
         select format('%I.%I', n.nspname, c.relname), quote_ident(a.attname), o.seqrelid::regclass::text \
         from owned o join pg_class c on c.oid = o.relid join pg_namespace n on n.oid = c.relnamespace \
         join pg_attribute a on a.attrelid = o.relid and a.attnum = o.attnum \
         where format('%I.%I', n.nspname, c.relname) = any($1) and has_sequence_privilege(o.seqrelid, 'select') \
           and has_column_privilege(o.relid, o.attnum::smallint, 'select') \
           and exists (select from pg_index i where i.indrelid = o.relid and i.indisunique and i.indkey[0] = o.attnum) \
         order by 1, 2",
    )
    .persistent(false)
    .bind(tables)
    .fetch_all(&mut connection)
    .await?;
    let mut findings = Vec::new();
    for (table, column, sequence) in &rows {
        // Until it is called, the next number is the one that it has.
        let sql = format!(
            "select coalesce((select max({column})::bigint from {table}) > \
               case when is_called then last_value else last_value - 1 end, false) from {sequence}"
        );
        if sqlx::query_scalar(AssertSqlSafe(sql)).persistent(false).fetch_one(&mut connection).await? {
            let found = format!(
                "{sequence} is behind {table}.{column}: an insert takes a number that is there already, and fails. Logical \
                 replication brings no sequences"
            );
            findings.push(
                Finding::wrong("sequences", found)
                    .mend(format!("select setval('{sequence}', (select max({column}) from {table}));")),
            );
        }
    }
    if findings.is_empty() {
        findings.push(Finding::ok("sequences", format!("none of {} is behind its table", rows.len())));
    }
    Ok(findings)
}
