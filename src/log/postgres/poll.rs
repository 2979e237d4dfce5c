//! A poll: what it asks for in one statement, and what the answer says.
//!
//! What is the same for all rows comes once, in a row of its own. Whether there are too many rows is decided before any is
//! sent. Rows of other caches than the instance declares are not sent, and what a new epoch has declared trimmed is not sent at all, whether or not it has been deleted yet.

use std::time::Duration;

use sqlx::Row as _;
use sqlx::postgres::PgRow;

use super::super::{MAX_POLL_BYTES, MAX_POLL_ROWS, Poll, Row};
use super::sql::{literal, refused};
use super::{schema, switches};
use crate::coherence::snapshot::Snapshot;
use crate::error::LogError;
use crate::log::switch::Switch;

/// The server's last start or recovery as a number, as [`STAMP_SQL`](crate::STAMP_SQL) ends with it.
///
/// A backend that is killed has the server recover without being started anew: what it replayed last tells, and stands still on a
/// primary.
const SERVER_SQL: &str = "(extract(epoch from pg_postmaster_start_time()) * 1000000 \
     + coalesce(pg_wal_lsn_diff(pg_last_wal_replay_lsn(), '0/0'), 0))::bigint";

/// The one statement of a poll. Keys come one a row: a text array would need a parser of its own, and the client's
/// takes a key `NULL` for none.
///
/// All rows that are new count against the limit, whatever cache they are of, for only so many are looked at: behind the last of them there
/// may be one of these caches.
///
/// The server gives up at the limit: what nobody waits for any more would go on there, beside the next try.
pub(super) fn sql(schema: &str, cursor: Option<&Snapshot>, caches: &[&str], limit: Duration) -> String {
    let most = MAX_POLL_ROWS + 1;
    let columns = "xid, cache, keys, traceparent, fault";
    let rows = match cursor {
        // By the index, however long the log is: in a log that nobody has trimmed for days, most rows are below the horizon.
        None => format!(
            "select i.xid, i.cache, i.keys, i.traceparent, i.fault from boot b, {schema}.invalidation i \
             where i.xid >= pg_snapshot_xmin(b.trimmed) and not pg_visible_in_snapshot(i.xid, b.trimmed) \
             order by i.xid limit {most}"
        ),
        Some(cursor) => {
            let xmax = cursor.xmax();
            let running: Vec<String> = cursor.running().iter().map(u64::to_string).collect();
            format!(
                "select {columns} from {schema}.invalidation where xid >= '{xmax}'::xid8 union all \
                 select {columns} from {schema}.invalidation where xid = any('{{{}}}'::xid8[]) limit {most}",
                running.join(",")
            )
        }
    };
    let caches: Vec<String> = caches.iter().map(|cache| literal(cache)).collect();
    let bytes: Vec<String> = ["i.cache", "k.key", "i.traceparent", "i.fault"]
        .map(|column| format!("coalesce(octet_length({column}), 0)"))
        .into();
    // A role whose transactions are serializable must not make writers fail because the log is read. The memory is for the
    // rows of a replay, which would be written to a file. What Postgres knows nothing of, for it was not analysed, it would read whole
    // each time. To compile a plan takes longer than any poll.
    format!(
        "set transaction isolation level read committed; \
         set local statement_timeout = {limit}; set local work_mem = '64MB'; \
         set local enable_seqscan = off; set local jit = off; \
         with boot as materialized (select * from {schema}.boot where origin = {schema}.origin()), \
         seen as materialized (select xid, cache, traceparent, fault, declared, case when declared then keys end as keys \
           from (select *, cache = any(array[{caches}]::text[]) as declared from ({rows}) r) r), \
         new as materialized (select i.xid, i.cache, k.key, i.traceparent, i.fault, {bytes} as bytes \
           from seen i left join lateral unnest(i.keys) k(key) on true \
           where i.declared and (i.keys is null or cardinality(i.keys) > 0) limit {most}), \
         size as materialized ( \
           select (select count(*) from seen) <= {MAX_POLL_ROWS} and count(*) <= {MAX_POLL_ROWS} \
             and coalesce(sum(bytes), 0) <= {MAX_POLL_BYTES} as fits from new) \
         select pg_current_snapshot()::text as snapshot, \
           case when {schema}.version() > {version} then -{schema}.version() else {schema}.added() end as version, \
           pg_snapshot_xmax(b.trimmed)::text as trimmed, \
           ('x' || left(md5(b.token || b.origin), 16))::bit(64)::bigint as epoch, \
           {SERVER_SQL} as server, s.fits, \
           null as xid, null as cache, null as key, null as traceparent, null as fault \
         from size s left join boot b on true \
         union all \
         select null, null, null, null, null, null, n.xid::text, n.cache, n.key, n.traceparent, n.fault \
         from new n where (select fits from size) \
         union all ({switches})",
        switches = switches::polled_sql(schema),
        version = schema::VERSION,
        limit = limit.as_millis().clamp(1, i32::MAX as u128),
        caches = caches.join(","),
        bytes = bytes.join(" + "),
    )
}

/// What a poll has brought. Without an epoch nobody has begun one since the database crashed, and there are no rows.
pub(super) struct Answer {
    pub(super) epoch: Option<u64>,
    snapshot: Snapshot,
    server: u64,
    trimmed: Option<Snapshot>,
    rows: Option<Vec<Row>>,
    /// What is switched. What makes no sense is left out.
    pub(super) switches: Vec<Switch>,
}

impl Answer {
    pub(super) fn read(rows: &[PgRow], schema: &str) -> Result<Self, LogError> {
        let is_header =
            |row: &&PgRow| row.try_get::<Option<&str>, _>("snapshot").is_ok_and(|text| text.is_some());
        let header = rows.iter().find(is_header).ok_or_else(|| malformed("answer"))?;
        let version: i32 = header.try_get("version").map_err(refused)?;
        if version < schema::VERSION {
            let found = schema::SchemaVersions { oldest: version.saturating_neg(), newest: version };
            return Err(schema::other_version(schema, found));
        }
        let snapshot: &str = header.try_get("snapshot").map_err(refused)?;
        let trimmed: Option<&str> = header.try_get("trimmed").map_err(refused)?;
        let epoch: Option<i64> = header.try_get("epoch").map_err(refused)?;
        let server: i64 = header.try_get("server").map_err(refused)?;
        let fits: bool = header.try_get("fits").map_err(refused)?;
        let (switches, rows): (Vec<&PgRow>, Vec<&PgRow>) =
            rows.iter().filter(|row| !is_header(row)).partition(|row| switches::is_polled(row));
        let read = || rows.into_iter().map(read_row).collect::<Option<Vec<Row>>>();
        Ok(Self {
            epoch: epoch.map(i64::cast_unsigned),
            snapshot: Snapshot::parse(snapshot).ok_or_else(|| malformed("snapshot"))?,
            server: server.cast_unsigned(),
            trimmed: trimmed.and_then(|xid| xid.parse().ok()).map(Snapshot::all_below),
            rows: if fits { Some(read().ok_or_else(|| malformed("rows"))?) } else { None },
            switches: switches::polled(switches),
        })
    }

    pub(super) fn poll(self) -> Result<Poll, LogError> {
        Ok(Poll {
            snapshot: self.snapshot,
            // It was begun a moment ago, if it could be.
            epoch: self.epoch.ok_or_else(|| LogError::Schema(schema::LOGGED_TOKEN.to_owned()))?,
            server: self.server,
            trimmed: self.trimmed.ok_or_else(|| malformed("trim horizon"))?,
            rows: self.rows,
        })
    }
}

fn read_row(row: &PgRow) -> Option<Row> {
    Some(Row {
        xid: row.try_get::<&str, _>("xid").ok()?.parse().ok()?,
        cache: row.try_get("cache").ok()?,
        key: row.try_get("key").ok()?,
        traceparent: row.try_get("traceparent").ok()?,
        fault: row.try_get("fault").ok()?,
    })
}

fn malformed(what: &str) -> LogError {
    LogError::Schema(format!("the log's {what} can't be read"))
}
