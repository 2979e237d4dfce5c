//! Loads: what a loader is asked for, and what it brings.

use std::collections::{HashMap, HashSet};
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;

use super::{Key, Value};
use crate::coherence::snapshot::{Origin, Snapshot};
use crate::error::Error;
use crate::wire::tape::Tape;

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
    /// When the server was started that said so, in microseconds. `None` for a standby, which is another one than the log's.
    pub(crate) server: Option<u64>,
}

/// The SQL expression whose text [`Stamp::parse`] reads.
///
/// Select it beside the rows, in the same statement:
/// `select u.*, s.stamp from (select <this> as stamp) s left join users u on u.id = any($1)`.
/// The outer join matters: a row that is *absent* needs a stamp as much as one that is there.
pub const STAMP_SQL: &str = "concat(pg_current_snapshot(), \
     case when pg_is_in_recovery() then ' replica' \
          when current_setting('transaction_isolation') like 'read %' then ' primary' else ' old' end, \
     case when pg_current_xact_id_if_assigned() is null then ' clean ' else ' wrote ' end, \
     (extract(epoch from pg_postmaster_start_time()) * 1000000)::bigint)";

impl Stamp {
    /// Reads the text that [`STAMP_SQL`] gives. A bare snapshot is none: it doesn't say whether its transaction had
    /// written, and what was read after a write may roll back; nor which server it is of.
    ///
    /// ```
    /// use perto::Stamp;
    /// assert!(Stamp::parse("10:14:10,12 primary clean 1764355200000000").is_some());
    /// assert!(Stamp::parse("10:14:10,12").is_none());
    /// ```
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let mut words = text.split(' ');
        let snapshot = Snapshot::parse(words.next()?)?;
        let (origin, of_the_log) = match words.next()? {
            "primary" => (Origin::Primary, true),
            // In a transaction with one snapshot for all its statements, that may be as old as the transaction.
            "old" => (Origin::Unknown, true),
            "replica" => (Origin::Unknown, false),
            _ => return None,
        };
        let wrote = match words.next()? {
            "clean" => false,
            "wrote" => true,
            _ => return None,
        };
        let server = words.next()?.parse().ok()?;
        words.next().is_none().then_some(Self {
            snapshot,
            origin,
            wrote,
            server: of_the_log.then_some(server),
        })
    }
}

/// What a loader brings: the stamp, and the values found. Keys that were asked for and not found are absent, which
/// is cached like any other answer.
///
/// It must return each key as it was asked for, once. A `char(n)` comes padded and a `citext` in its own case, which are
/// other keys: then the key that was asked for would be absent. So such a load is an error, [`Error::UnaskedKeys`].
/// Where all that was asked for is there, more keys do no harm. They are not cached, and `keys_unasked` counts them.
/// Where one may be absent, a loader that reads a whole table must leave out what nobody asked for: a row of another key may
/// be the answer under another spelling, and nothing here can tell.
/// The same key twice is an error too, [`Error::AmbiguousKeys`], unless both values write the same.
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
        let stamp =
            Stamp { snapshot: Snapshot::all_below(0), origin: Origin::Unknown, wrote: false, server: None };
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

impl<K: Key, V: Value> Loaded<K, V> {
    /// Keeps what answers what was asked, and returns how many keys there were besides.
    pub(crate) fn retain_answers(&mut self, asked: &[K], cache: &Arc<str>) -> Result<usize, Error> {
        let asked: HashSet<&K> = asked.iter().collect();
        // Equal keys of different texts lie under different names in L2 and in the log.
        let is_asked = |key: &K| asked.get(key).is_some_and(|same| same.to_string() == key.to_string());
        let brought = self.found.len();
        self.found.retain(|found| is_asked(&found.key));
        let unasked = brought - self.found.len();
        let mut first: HashMap<&K, &V> = HashMap::with_capacity(self.found.len());
        let mut ambiguous = HashSet::new();
        for Found { key, value, .. } in &self.found {
            if first.insert(key, value).is_some_and(|other| !same(other, value)) {
                ambiguous.insert(key);
            }
        }
        let (cache, missing) = (Arc::clone(cache), asked.len().saturating_sub(first.len()));
        if unasked > 0 && missing > 0 {
            Err(Error::UnaskedKeys { cache, unasked, missing })
        } else if !ambiguous.is_empty() {
            Err(Error::AmbiguousKeys { cache, count: ambiguous.len() })
        } else {
            Ok(unasked)
        }
    }
}

/// Whether two values write the same. One that can't be written to its end is the same as none.
fn same<V: Value>(one: &V, other: &V) -> bool {
    let (one, other) = (Tape::of(one), Tape::of(other));
    one.is_whole() && other.is_whole() && one.says_the_same(&other)
}

/// Whether keys are what the log will call them by: a text that is parsed as another key would evict that one. A text that
/// is no key at all is another matter: it clears the cache.
pub(crate) fn read_back<K: Key>(keys: &[K]) -> bool {
    let read_back = |key: &K| key.to_string().parse::<K>().map_or(true, |parsed| parsed == *key);
    std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| keys.iter().all(read_back))).unwrap_or(true)
}
