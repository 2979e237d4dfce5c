//! Chunks in the database, and the one transaction that turns a chunk into contacts.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;

use sqlx::PgConnection;
use uuid::Uuid;

use super::rows::{Batch, Contact, Reject};
use super::{Imports, LEASE};
use crate::service::database::Database;
use crate::service::limits::Limit;
use crate::service::rules::Flaw;

/// A company may keep the rejects of so many imports that have as many as one may.
const COMPANY_IMPORTS: i64 = 4;
/// Contacts of one statement. The statement's keys in the log are as many, of each cache: more than
/// [`perto::MAX_KEYS_PER_ROW`] would clear the whole cache.
const CONTACTS_PER_STATEMENT: usize = 400;
const _: () = assert!(CONTACTS_PER_STATEMENT <= perto::MAX_KEYS_PER_ROW);

#[derive(Debug)]
pub(super) struct Chunk {
    pub(super) seq: i32,
    pub(super) first_line: u64,
    pub(super) data: Vec<u8>,
}

/// What is added to an import's figures.
#[derive(Debug)]
pub(super) struct Counts {
    pub(super) accepted: i64,
    pub(super) rejected: i64,
    pub(super) reasons: Vec<String>,
    pub(super) times: Vec<i64>,
}

impl Counts {
    pub(super) fn of(rejects: &[Reject], accepted: usize) -> Self {
        let mut reasons: BTreeMap<Flaw, i64> = BTreeMap::new();
        for reject in rejects {
            *reasons.entry(reject.flaw).or_default() += 1;
        }
        let (reasons, times): (Vec<String>, Vec<i64>) =
            reasons.into_iter().map(|(flaw, times)| (flaw.to_string(), times)).unzip();
        let number = |count| i64::try_from(count).unwrap_or(i64::MAX);
        Self { accepted: number(accepted), rejected: number(rejects.len()), reasons, times }
    }

    /// How many of the rejects may be kept of an import that has `rejected` with them.
    pub(super) fn kept(&self, rejected: i64, most: u32) -> usize {
        usize::try_from(i64::from(most) - (rejected - self.rejected)).unwrap_or(0)
    }
}

/// The figures of an import with [`Counts`] added, as a part of an `update`.
macro_rules! counted {
    ($accepted:literal, $rejected:literal, $reasons:literal, $times:literal) => {
        concat!(
            "rows = rows + ", $accepted, " + ", $rejected, ", accepted = accepted + ", $accepted,
            ", rejected = rejected + ", $rejected, ", reasons = (select coalesce(jsonb_object_agg(r, n), '{}') from ",
            "(select r, sum(n) n from (select key r, value::bigint n from jsonb_each_text(reasons) union all ",
            "select r, n from unnest(", $reasons, "::text[], ", $times, "::bigint[]) u (r, n)) a group by r) b)"
        )
    };
}
pub(super) use counted;

pub(super) async fn put(
    database: &Database,
    tx: &mut PgConnection,
    import: Uuid,
    chunk: &Chunk,
) -> Result<(), sqlx::Error> {
    database
        .statement("insert into import_chunks (import_id, seq, first_line, data) values ($1, $2, $3, $4)")
        .bind(import)
        .bind(chunk.seq)
        .bind(i64::try_from(chunk.first_line).unwrap_or(i64::MAX))
        .bind(chunk.data.as_slice())
        .execute(tx)
        .await
        .map(drop)
}

/// The first chunk behind one.
pub(super) async fn next(
    database: &Database,
    import: Uuid,
    behind: i32,
) -> Result<Option<Chunk>, sqlx::Error> {
    let sql = "select seq, first_line, data from import_chunks where import_id = $1 and seq > $2 order by seq limit 1";
    let query = database.write::<(i32, i64, Vec<u8>)>(sql).bind(import).bind(behind);
    Ok(database.fetch(query).await?.pop().map(|(seq, first_line, data)| Chunk {
        seq,
        first_line: first_line.unsigned_abs(),
        data,
    }))
}

/// Keeps rejects, as many as there is room for: of the import, and of all that its company has kept.
pub(super) async fn put_rejects(
    imports: &Imports,
    tx: &mut PgConnection,
    import: Uuid,
    rejects: &[Reject],
) -> Result<(), sqlx::Error> {
    if rejects.is_empty() {
        return Ok(());
    }
    let (database, most) = (&imports.database, i64::from(imports.settings.rejects_mib) << 20);
    let taken = "select i.rejects_bytes, (select sum(o.rejects_bytes) from imports o \
                 where o.company_id = i.company_id)::bigint from imports i where i.id = $1";
    let (own, all) = database.write::<(i64, i64)>(taken).bind(import).fetch_one(&mut *tx).await?;
    let room = (most - own).min(most.saturating_mul(COMPANY_IMPORTS) - all);
    let mut bytes = 0;
    let fits = |reject: &&Reject| {
        bytes += reject.bytes();
        bytes <= room
    };
    let fitting = rejects.iter().take_while(fits).count();
    if fitting < rejects.len() {
        imports.limits.count(Limit::Rejects);
    }
    let rejects = &rejects[..fitting];
    let bytes: i64 = rejects.iter().map(Reject::bytes).sum();
    let add = "update imports set rejects_bytes = rejects_bytes + $2 where id = $1";
    database.statement(add).bind(import).bind(bytes).execute(&mut *tx).await?;
    let line = |reject: &Reject| i64::try_from(reject.line).unwrap_or(i64::MAX);
    database
        .statement(
            "insert into import_rejects (import_id, line, reason, record) \
         select $1, u.* from unnest($2::bigint[], $3::text[], $4::text[]) u",
        )
        .bind(import)
        .bind(rejects.iter().map(line).collect::<Vec<_>>())
        .bind(rejects.iter().map(|reject| reject.flaw.to_string()).collect::<Vec<_>>())
        .bind(rejects.iter().map(|reject| reject.record.as_str()).collect::<Vec<_>>())
        .execute(tx)
        .await
        .map(drop)
}

/// Who works on which import.
#[derive(Debug, Clone, Copy)]
pub(super) struct Claim {
    pub(super) import: Uuid,
    pub(super) company: i64,
    pub(super) owner: Uuid,
}

/// Applies a chunk: all of it or nothing. Returns whether it was: not where the import is no longer the claim's.
pub(super) async fn apply(
    imports: &Imports,
    claim: Claim,
    (seq, bytes): (i32, usize),
    batch: &Batch,
) -> Result<bool, sqlx::Error> {
    let database = &imports.database;
    let mut connection = database.pool.lend().await?;
    let mut tx = database.begin(&mut connection).await?;
    // In the order in which a company's deletion locks them.
    database
        .statement("select 1 from companies where id = $1 for key share")
        .bind(claim.company)
        .execute(&mut tx)
        .await?;
    let counts = Counts::of(&batch.rejects, batch.accepted);
    let Some(rejected) = count(database, &mut tx, claim, bytes, &counts).await? else { return Ok(false) };
    for contacts in batch.contacts.chunks(CONTACTS_PER_STATEMENT) {
        upsert(database, &mut tx, claim.company, contacts).await?;
    }
    let kept = counts.kept(rejected, imports.settings.max_rejects).min(batch.rejects.len());
    put_rejects(imports, &mut tx, claim.import, &batch.rejects[..kept]).await?;
    let delete = "delete from import_chunks where import_id = $1 and seq = $2";
    let deleted = database.statement(delete).bind(claim.import).bind(seq).execute(&mut tx).await?;
    // Who has the lease is alone, so it is there: else it was applied before, and nothing of this is kept.
    if deleted.rows_affected() == 0 {
        return Ok(false);
    }
    tx.commit().await?;
    imports.worked.accepted.fetch_add(batch.accepted as u64, Ordering::Relaxed);
    imports.worked.rejected.fetch_add(batch.rejects.len() as u64, Ordering::Relaxed);
    Ok(true)
}

/// Adds the figures, and returns how many are rejected now; none where the import is not the claim's. First of all: it holds the import's row until the end, so nobody takes the import away meanwhile.
async fn count(
    database: &Database,
    tx: &mut PgConnection,
    claim: Claim,
    bytes: usize,
    counts: &Counts,
) -> Result<Option<i64>, sqlx::Error> {
    let query = database
        .write::<(i64,)>(concat!(
            "update imports set bytes_done = bytes_done + $3, attempts = 0, ",
            "leased_until = clock_timestamp() + make_interval(secs => $4), ",
            counted!("$5", "$6", "$7", "$8"),
            " where id = $1 and owner = $2 and state = 'running' returning rejected"
        ))
        .bind(claim.import)
        .bind(claim.owner)
        .bind(i64::try_from(bytes).unwrap_or(i64::MAX))
        .bind(LEASE.as_secs_f64())
        .bind(counts.accepted)
        .bind(counts.rejected)
        .bind(&counts.reasons)
        .bind(&counts.times);
    Ok(query.fetch_optional(tx).await?.map(|(rejected,)| rejected))
}

async fn upsert(
    database: &Database,
    tx: &mut PgConnection,
    company: i64,
    contacts: &[Contact],
) -> Result<(), sqlx::Error> {
    database.statement(
        "insert into contacts as c (company_id, phone, name, email) \
         select $1, u.* from unnest($2::text[], $3::text[], $4::text[]) u \
         on conflict (company_id, phone) do update \
         set name = coalesce(excluded.name, c.name), email = coalesce(excluded.email, c.email) \
         where (coalesce(excluded.name, c.name), coalesce(excluded.email, c.email)) is distinct from (c.name, c.email)",
    )
    .bind(company)
    .bind(contacts.iter().map(|contact| contact.phone.as_str()).collect::<Vec<_>>())
    .bind(contacts.iter().map(|contact| contact.name.as_deref()).collect::<Vec<_>>())
    .bind(contacts.iter().map(|contact| contact.email.as_deref()).collect::<Vec<_>>())
    .execute(tx)
    .await
    .map(drop)
}
