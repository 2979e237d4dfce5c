//! The invalidation log, where commit happens. The seam.
//!
//! The one part that the promise rests on: a row is written in the transaction that changes the data, and is read
//! with a snapshot.

use std::fmt::Debug;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;

use crate::coherence::snapshot::Snapshot;
use crate::error::{LogError, Unwatched};
use crate::wire::Change;

pub(crate) mod name;
#[cfg(feature = "postgres")]
pub(crate) mod postgres;
pub(crate) mod switch;

pub(crate) use name::check_name;
use switch::{Switch, Switching};

/// Most keys that one statement invalidates one by one. More become one row for the whole cache.
pub const MAX_KEYS_PER_ROW: usize = 500;

/// Most rows that one poll brings, and that it looks at for those, of whatever cache. One that would need more says so and brings none: the
/// instance recovers.
pub const MAX_POLL_ROWS: usize = 100_000;

/// Most bytes of text in the rows of one poll. As [`MAX_POLL_ROWS`].
pub const MAX_POLL_BYTES: usize = 32 << 20;

/// How long it may take to connect.
pub(crate) const CONNECT_LIMIT: Duration = Duration::from_secs(2);

/// How long it may take to make ready for a poll.
pub(crate) const READY_LIMIT: Duration = Duration::from_secs(10);

/// Reads the log, and writes to it where no trigger does.
pub trait Log: Debug + Send + Sync + 'static {
    /// Makes ready for the next poll what is not ready: a connection, an epoch. Awaited before each poll, and most of the
    /// time there is nothing to do.
    ///
    /// A poll has to end soon enough for the lease that rests on it. This has not. Default: nothing.
    ///
    /// # Errors
    /// If Postgres can't be reached, or refuses. Dropping the future leaves it for the next time.
    fn ready(&self) -> BoxFuture<'_, Result<(), LogError>> {
        Box::pin(std::future::ready(Ok(())))
    }

    /// Begins an epoch where the database is in none, since nobody has polled after a crash. Default: nothing, for a log whose
    /// database is always in one.
    ///
    /// # Errors
    /// If Postgres can't be reached, or refuses.
    fn begin_epoch(&self) -> BoxFuture<'_, Result<(), LogError>> {
        Box::pin(std::future::ready(Ok(())))
    }

    /// Makes or upgrades the log's tables, and has it record every write to these sources. Does nothing where all is as it
    /// should be. Any number of instances may call it at once. Default: nothing.
    ///
    /// # Errors
    /// If Postgres can't be reached or refuses: with the grants that the role lacks, where that is why.
    fn prepare<'a>(&'a self, sources: &'a [Source]) -> BoxFuture<'a, Result<(), LogError>> {
        let _ = sources;
        Box::pin(std::future::ready(Ok(())))
    }

    /// The rows of `caches` committed since `cursor`, and the snapshot they were read under, from one statement. Where it is `None`,
    /// all that are retained and not contained in the horizon.
    ///
    /// Rows of other caches may be left out, and do no harm. All else is as if they had been brought: the snapshot, the epoch, the
    /// horizon. Where a limit ends the look at the rows, there may be more behind it, so none are brought.
    ///
    /// Nobody waits longer than `limit`: the server may give up then.
    ///
    /// # Errors
    /// If Postgres can't be read. Dropping the future may close the connection; the next poll opens another.
    fn poll<'a>(
        &'a self,
        cursor: Option<&'a Snapshot>,
        caches: &'a [&'a str],
        limit: Duration,
    ) -> BoxFuture<'a, Result<Poll, LogError>>;

    /// Commits an invalidation that no trigger writes. Returns its transaction, and the epoch that the database was in, from
    /// one statement.
    ///
    /// # Errors
    /// If it was not committed, or the answer was lost.
    fn append<'a>(&'a self, change: &'a Change) -> BoxFuture<'a, Result<Appended, LogError>>;

    /// What is switched now, as the last completed [`Log::poll`] has told: asked after each. In order, each cache and tier once. Default:
    /// nothing ever is. A log that wraps another one passes it on.
    fn switches(&self) -> Arc<[Switch]> {
        Arc::default()
    }

    /// Switches a tier for all instances, durably: polls that are sent after it has returned tell of it. Default: an error.
    ///
    /// # Errors
    /// If it was not committed, or the answer was lost; or this log keeps no switches.
    fn switch<'a>(&'a self, switching: &'a Switching) -> BoxFuture<'a, Result<(), LogError>> {
        let _ = switching;
        Box::pin(std::future::ready(Err(LogError::Schema("this log keeps no switches".to_owned()))))
    }

    /// Trims what is older than `retention`, if nobody else does it at the moment.
    ///
    /// # Errors
    /// If Postgres refuses or can't be reached.
    fn trim(&self, retention: Duration) -> BoxFuture<'_, Result<(), LogError>>;

    /// What is wrong with those of `tables` that are not there, or that no trigger watches for `cache`. `sources` say how some of
    /// them are to be watched, so that what mends it can be said.
    ///
    /// # Errors
    /// If Postgres can't be read.
    fn unwatched<'a>(
        &'a self,
        cache: &'a str,
        tables: &'a [String],
        sources: &'a [Source],
    ) -> BoxFuture<'a, Result<Vec<Unwatched>, LogError>>;

    /// Whether a row of the tables that are watched for `cache` bears `key`: whether the log would name a write to it so. Looks
    /// for a moment only. Default: nobody knows.
    ///
    /// # Errors
    /// If Postgres can't be read.
    fn borne<'a>(&'a self, cache: &'a str, key: &'a str) -> BoxFuture<'a, Result<Borne, LogError>> {
        let _ = (cache, key);
        Box::pin(std::future::ready(Ok(Borne::Unknown)))
    }
}

/// Whether rows bear a key, by the expressions that their tables are watched by. See [`Log::borne`].
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Borne {
    /// One does, at least but for case and for blanks at the ends.
    Yes,
    /// None does.
    No {
        /// The keys of a few of the rows that there are; never empty.
        others: Vec<String>,
        /// A table that is watched.
        table: String,
        /// The expression that it is watched by.
        by: String,
    },
    /// There are no rows, or it would take too long, or what is watched is not as it was recorded.
    Unknown,
}

/// A table whose writes are to invalidate a cache.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Source {
    /// The cache.
    pub cache: String,
    /// The table, with its schema where that is not on the search path.
    pub table: String,
    /// The text of the key, as an SQL expression over the columns of one row.
    pub key: String,
    /// The columns whose changes count; none where all do.
    pub columns: Vec<String>,
}

/// An invalidation that is committed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Appended {
    /// Its transaction.
    pub xid: u64,
    /// The database's epoch, which an instance may not have heard of yet.
    pub epoch: u64,
}

/// What one poll brings.
#[derive(Debug, Clone)]
pub struct Poll {
    /// The snapshot under which all of this was read.
    pub snapshot: Snapshot,
    /// Changes after a crash, a promotion or a restore: transaction numbers may have been used again.
    pub epoch: u64,
    /// Which server, since which start or recovery of it: what a [`Stamp`](crate::Stamp) tells of its own.
    pub server: u64,
    /// Every row that has been trimmed is contained in this snapshot.
    pub trimmed: Snapshot,
    /// The rows; `None` where they are more than [`MAX_POLL_ROWS`] or [`MAX_POLL_BYTES`], or where more were looked at.
    pub rows: Option<Vec<Row>>,
}

/// One row of the log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Row {
    /// The transaction that wrote it.
    pub xid: u64,
    /// The cache's name.
    pub cache: String,
    /// The key's text, or `None` for the whole cache.
    pub key: Option<String>,
    /// W3C trace context of the write, where it was part of a trace that is recorded and the writer said so.
    pub traceparent: Option<String>,
    /// Why the trigger could tell no key, and cleared the cache instead: the table, and what its key failed with. No part
    /// of a row's data is in it.
    pub fault: Option<String>,
}
