//! Loads: what a loader is asked for, and what it brings.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;

use crate::coherence::snapshot::{Origin, Snapshot};

pub(crate) type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// A loader, as a cache keeps it.
pub(crate) type Loader<K, V> =
    Arc<dyn Fn(Load<K>) -> BoxFuture<'static, Result<Loaded<K, V>, BoxError>> + Send + Sync>;

pub(crate) fn boxed<K, V, F, Fut, E>(loader: F) -> Loader<K, V>
where
    K: Send + 'static,
    V: Send + 'static,
    F: Fn(Load<K>) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = Result<Loaded<K, V>, E>> + Send + 'static,
    E: Into<BoxError> + 'static,
{
    Arc::new(move |load| {
        let loading = loader(load);
        Box::pin(async move { loading.await.map_err(Into::into) })
    })
}

/// What a loader is asked for.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Load<K> {
    /// The keys, each once. Never empty.
    pub keys: Vec<K>,
    /// Whether to read the primary. Set when a replica has just been found to lag behind; a loader that reads the
    /// primary anyway may ignore it. Also set when the last load read in a transaction whose one snapshot is too old, so
    /// read in a new one, and in every load of the auditor, which believes the primary alone.
    pub primary: bool,
}

impl<K> Load<K> {
    pub(crate) const fn new(keys: Vec<K>, primary: bool) -> Self {
        Self { keys, primary }
    }
}

/// The snapshot that values were read under.
///
/// It must come from the *statement* that read them, or from an earlier one of the same transaction. With the feature
/// `postgres`, [`postgres::query_as`](crate::postgres::query_as) brings it along.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stamp {
    pub(crate) snapshot: Snapshot,
    pub(crate) origin: Origin,
    /// Whether the transaction that read had written. Such values may roll back and are never cached.
    pub(crate) wrote: bool,
}

/// The SQL expression whose text [`Stamp::parse`] reads.
///
/// Select it beside the rows, in the same statement:
/// `select u.*, s.stamp from (select <this> as stamp) s left join users u on u.id = any($1)`.
/// The outer join matters: a row that is *absent* needs a stamp as much as one that is there.
pub const STAMP_SQL: &str = "concat(pg_current_snapshot(), \
     case when pg_is_in_recovery() then ' replica' \
          when current_setting('transaction_isolation') like 'read %' then ' primary' else ' old' end, \
     case when pg_current_xact_id_if_assigned() is null then ' clean' else ' wrote' end)";

impl Stamp {
    /// Reads the text that [`STAMP_SQL`] gives. A bare snapshot is none: it doesn't say whether its transaction had
    /// written, and what was read after a write may roll back.
    ///
    /// ```
    /// use perto::Stamp;
    /// assert!(Stamp::parse("10:14:10,12 primary clean").is_some());
    /// assert!(Stamp::parse("10:14:10,12").is_none());
    /// ```
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let mut words = text.split(' ');
        let snapshot = Snapshot::parse(words.next()?)?;
        let origin = match words.next()? {
            "primary" => Origin::Primary,
            // In a transaction with one snapshot for all its statements, that may be as old as the transaction.
            "replica" | "old" => Origin::Unknown,
            _ => return None,
        };
        let wrote = match words.next()? {
            "clean" => false,
            "wrote" => true,
            _ => return None,
        };
        words.next().is_none().then_some(Self { snapshot, origin, wrote })
    }
}

/// What a loader brings: the stamp, and the values found. Keys that were asked for and not found are absent, which
/// is cached like any other answer.
#[derive(Debug, Clone)]
pub struct Loaded<K, V> {
    pub(crate) stamp: Stamp,
    /// Depends on no row: the stamp says nothing, and the time of the load all.
    pub(crate) computed: bool,
    pub(crate) found: Vec<Found<K, V>>,
}

#[derive(Debug, Clone)]
pub(crate) struct Found<K, V> {
    pub(crate) key: K,
    pub(crate) value: V,
    pub(crate) ttl: Option<Duration>,
}

impl<K, V> Loaded<K, V> {
    /// Nothing found, as of `stamp`.
    #[must_use]
    pub const fn new(stamp: Stamp) -> Self {
        Self { stamp, computed: false, found: Vec::new() }
    }

    /// Nothing found, by a loader that reads no row of the database: values that are computed, or that come from somewhere
    /// whose changes somebody announces by [`Cache::invalidate`](crate::Cache::invalidate) or
    /// [`Cache::clear`](crate::Cache::clear), after the change. What it brings must have been computed for this very load.
    ///
    /// It costs no round trip: the stamp is the last poll of the log before the load. So after an invalidation values are
    /// computed for each read until the next poll, which is within [`PertoBuilder::poll_interval`](crate::PertoBuilder::poll_interval),
    /// and then cached again. The auditor skips them.
    ///
    /// ```
    /// # use perto::{Load, Loaded};
    /// fn squares(load: Load<u32>) -> Loaded<u32, u32> {
    ///     load.keys.iter().fold(Loaded::computed(), |loaded, key| loaded.with(*key, key * key))
    /// }
    /// ```
    #[must_use]
    pub fn computed() -> Self {
        let stamp = Stamp { snapshot: Snapshot::all_below(0), origin: Origin::Unknown, wrote: false };
        Self { stamp, computed: true, found: Vec::new() }
    }

    /// Adds a value.
    #[must_use]
    pub fn with(mut self, key: K, value: V) -> Self {
        self.found.push(Found { key, value, ttl: None });
        self
    }

    /// Adds a value that lives for `ttl` at most, where that is shorter than the cache's time to live.
    #[must_use]
    pub fn with_ttl(mut self, key: K, value: V, ttl: Duration) -> Self {
        self.found.push(Found { key, value, ttl: Some(ttl) });
        self
    }
}
