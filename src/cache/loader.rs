//! Loads: what a loader is asked for, and what it brings.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;

use super::{Key, Value};
use crate::coherence::snapshot::{Origin, Rank, Snapshot};
use crate::error::{Cause, Error};
use crate::local::Entry;
use crate::wire::Dependency;
use crate::wire::tape::Tape;

const NOT_SHOWN: &str = "the loader said that a value is unmodified of which it was shown none";

pub(crate) type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// A loader, as a cache keeps it.
pub(crate) struct Loader<K, V> {
    call: Call<K, V>,
    /// Whether it looks at what it is shown.
    pub(crate) is_conditional: bool,
}

type Call<K, V> =
    Box<dyn Fn(Load<K>, Previous<K, V>) -> BoxFuture<'static, Result<Loaded<K, V>, BoxError>> + Send + Sync>;

impl<K, V> Loader<K, V> {
    pub(crate) fn new<F, Fut, E>(is_conditional: bool, loader: F) -> Self
    where
        K: Send + 'static,
        V: Send + 'static,
        F: Fn(Load<K>, Previous<K, V>) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<Loaded<K, V>, E>> + Send + 'static,
        E: Into<BoxError> + 'static,
    {
        let call: Call<K, V> = Box::new(move |load, previous| {
            let loading = loader(load, previous);
            Box::pin(async move { loading.await.map_err(Into::into) })
        });
        Self { call, is_conditional }
    }

    pub(crate) fn call(
        &self,
        load: Load<K>,
        previous: Previous<K, V>,
    ) -> BoxFuture<'static, Result<Loaded<K, V>, BoxError>> {
        (self.call)(load, previous)
    }
}

/// What a [conditional loader](crate::CacheBuilder::conditional_loader) is shown: values that L1 still holds of keys that it is asked for.
pub struct Previous<K, V>(pub(crate) Arc<Shown<K, V>>);

/// Entries whose values a loader is shown, by key.
pub(crate) type Shown<K, V> = HashMap<K, Arc<Entry<V>>>;

impl<K: Key, V> Previous<K, V> {
    /// The value of a key, if it is shown.
    #[must_use]
    pub fn get(&self, key: &K) -> Option<&V> {
        self.0.get(key)?.value().as_ref()
    }

    /// All that is shown, in no order.
    pub fn iter(&self) -> impl Iterator<Item = (&K, &V)> {
        self.0.iter().filter_map(|(key, entry)| Some((key, entry.value().as_ref()?)))
    }

    /// Whether nothing is.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl<K, V> Clone for Previous<K, V> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<K, V> Default for Previous<K, V> {
    fn default() -> Self {
        Self(Arc::default())
    }
}

impl<K: fmt::Debug, V> fmt::Debug for Previous<K, V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.0.keys()).finish()
    }
}

/// What a loader is asked for.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Load<K> {
    /// The keys, each once. Never empty.
    pub keys: Vec<K>,
    /// Whether to read the primary. Set when a replica has just been found to lag behind; a loader that reads the
    /// primary anyway may ignore it. Also set when the last load read in a transaction whose one snapshot is too old, so
    /// read in a new one; when what was [found unmodified](Loaded::with_unmodified) was invalidated meanwhile; and in every load of the auditor, which
    /// believes the primary alone.
    pub primary: bool,
}

impl<K> Load<K> {
    pub(crate) const fn new(keys: Vec<K>, primary: bool) -> Self {
        Self { keys, primary }
    }
}

/// The snapshot that values were read under.
///
/// It must come from the *statement* that read them. With the feature `postgres`,
/// [`postgres::query_as`](crate::postgres::query_as) brings it along. Where several statements have read, or one that calls a volatile
/// function which reads tables, take the first one's, and say [`Stamp::as_lower_bound`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stamp {
    pub(crate) snapshot: Snapshot,
    pub(crate) origin: Origin,
    /// Whether the transaction that read had written. Such values may roll back and are never cached.
    pub(crate) wrote: bool,
    /// Which server said so, since which start or recovery of it. `None` for a standby, which is another one than the log's.
    pub(crate) server: Option<u64>,
    /// Of the server's snapshot, where that is known: what was read holds nothing beyond.
    pub(crate) rank: Option<Rank>,
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
     (extract(epoch from pg_postmaster_start_time()) * 1000000 \
      + coalesce(pg_wal_lsn_diff(pg_last_wal_replay_lsn(), '0/0'), 0))::bigint)";

impl Stamp {
    /// For values of which a part was read later than under this stamp: by later statements of the transaction, or by volatile functions.
    ///
    /// They are cached and invalidated as ever, for which a lower bound will do. But nobody knows what else they contain, so their
    /// reads give no token ([`Read::token`](crate::Read::token)), and they are in no [view](crate::Perto::view).
    #[must_use]
    pub fn as_lower_bound(mut self) -> Self {
        self.rank = None;
        self
    }

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
        let said = words.next()?;
        let snapshot = Snapshot::parse(said)?;
        // One that was collapsed says less than the server's.
        let exact = said.split(':').nth(1)?.parse() == Ok(snapshot.xmax());
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
            rank: (of_the_log && exact).then(|| snapshot.rank()),
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
#[derive(Clone)]
pub struct Loaded<K, V> {
    pub(crate) stamp: Stamp,
    /// Depends on no row: the stamp says nothing, and the time of the load all.
    pub(crate) computed: bool,
    pub(crate) found: Vec<Found<K, V>>,
    /// Keys whose values are those that were shown.
    pub(crate) unmodified: Vec<K>,
    pub(crate) failed: Vec<(K, Cause)>,
    /// By key and value what the answer depends on besides.
    pub(crate) depends: Option<Depends<K, V>>,
}

/// What an answer depends on beside its key, by its key and value.
pub(crate) type Depends<K, V> = Arc<dyn Fn(&K, Option<&V>) -> Vec<Dependency> + Send + Sync>;

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
        Self {
            stamp,
            computed: false,
            found: Vec::new(),
            unmodified: Vec::new(),
            failed: Vec::new(),
            depends: None,
        }
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
        let stamp = Stamp {
            snapshot: Snapshot::all_below(0),
            origin: Origin::Unknown,
            wrote: false,
            server: None,
            rank: None,
        };
        Self {
            stamp,
            computed: true,
            found: Vec::new(),
            unmodified: Vec::new(),
            failed: Vec::new(),
            depends: None,
        }
    }

    /// Adds a value.
    #[must_use]
    pub fn with(mut self, key: K, value: V) -> Self {
        self.found.push(Found { key, value, ttl: None });
        self
    }

    /// Names what each answer depends on beside the row of its own key: rows of other keys that it was made from, of whatever cache, and
    /// the sets that it lists or counts, as a [`Topic`](crate::Topic) has them. A change of any of them is seen like one of the key
    /// itself: within the bound, and after about a millisecond where a hint brings it.
    ///
    /// The function is called for each key that was asked for, with `None` where nothing was found. Called several times, all count.
    ///
    /// - *A row that was joined*: its key **as this very load has read it**, from the joined row itself where the two may be spelled
    ///   otherwise. Where the row may be absent, so that the join finds nothing, take an outer join, or a topic for the set of what may come.
    /// - *A list or a count*: the topic's key for the set. Of many rows take that rather than each row's key.
    ///
    /// Each is watched as its own cache or topic says: where that one names [columns](crate::CacheBuilder::watch_columns), they must include
    /// what this value is made of. Raise the cache's [version](crate::CacheBuilder::version) when this function changes: what lies in L2 names what
    /// it depended on by then.
    ///
    /// What is forgotten here is served as fresh after it has changed, until the time to live. The auditor finds it, and names the caches and
    /// topics whose changes it may have been ([`PertoBuilder::audit_rate`](crate::PertoBuilder::audit_rate)).
    ///
    /// A value may depend on [`MAX_DEPENDENCIES`](crate::MAX_DEPENDENCIES) keys, of [`MAX_DEPENDENCY_BYTES`](crate::MAX_DEPENDENCY_BYTES) with the
    /// names of their caches. One of more is loaded by each read; so is one that depends on a cache that this instance
    /// does not declare. Both are the trouble [`TroubleKind::ValuesUnstorable`](crate::TroubleKind::ValuesUnstorable).
    ///
    /// ```
    /// # use perto::{Cache, Loaded, Topic};
    /// struct Card {
    ///     name: String,
    ///     company_id: i64,
    ///     company: String,
    /// }
    /// # struct Company;
    /// # impl serde::Serialize for Company { fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> { s.serialize_unit() } }
    /// # impl<'d> serde::Deserialize<'d> for Company { fn deserialize<D: serde::Deserializer<'d>>(d: D) -> Result<Self, D::Error> { <()>::deserialize(d).map(|()| Self) } }
    ///
    /// // A user with the company's name.
    /// fn cards(loaded: Loaded<i64, Card>, companies: Cache<i64, Company>) -> Loaded<i64, Card> {
    ///     loaded.depends_on(move |_user, card| card.map(|card| companies.key(&card.company_id)))
    /// }
    ///
    /// // How many contacts a company has: by the topic that `contacts` is watched for.
    /// fn counts(loaded: Loaded<i64, i64>, of_company: Topic<i64>) -> Loaded<i64, i64> {
    ///     loaded.depends_on(move |company, _count| [of_company.key(company)])
    /// }
    /// ```
    #[must_use]
    pub fn depends_on<D: IntoIterator<Item = Dependency>>(
        mut self,
        depends: impl Fn(&K, Option<&V>) -> D + Send + Sync + 'static,
    ) -> Self
    where
        K: 'static,
        V: 'static,
    {
        let before = self.depends.take();
        self.depends = Some(Arc::new(move |key, value| {
            let mut all = before.as_ref().map_or_else(Vec::new, |before| before(key, value));
            all.extend(depends(key, value));
            all
        }));
        self
    }

    /// Adds a value that lives for `ttl` at most, where that is shorter than the cache's time to live. One of no time at all is for those
    /// who wait for this load, and is cached nowhere.
    #[must_use]
    pub fn with_ttl(mut self, key: K, value: V, ttl: Duration) -> Self {
        self.found.push(Found { key, value, ttl: Some(ttl) });
        self
    }

    /// Says that the value of a key is the one that the loader was [shown](Previous), as of this stamp: its row has not changed, or changed
    /// and changed back. It counts as if it had been brought: what is spared is the way from the source, and the loader's decoding. Where there is an L2,
    /// it is encoded, tried and sent there each time. It lives as long as one that is brought without a time of its own, also where it was brought
    /// [with one](Loaded::with_ttl): what must not live so long is to be brought again.
    ///
    /// Of a key of which nothing was shown it fails the key, as [`Loaded::with_error`] does. A key that has a value, too, has that one.
    #[must_use]
    pub fn with_unmodified(mut self, key: K) -> Self {
        self.unmodified.push(key);
        self
    }

    /// Fails one key of those that were asked for, and none of the others: whoever reads it gets [`Error::Load`] with this as its source, and
    /// nothing is cached. Without this, an error of a batch is the error of all its keys, or costs calls of the loader to find whose it is. A
    /// key that has a value, too, fails.
    #[must_use]
    pub fn with_error(mut self, key: K, error: impl Into<BoxError>) -> Self {
        self.failed.push((key, Arc::from(error.into())));
        self
    }
}

impl<K: Key, V: Value> Loaded<K, V> {
    /// What the answer to each of these keys depends on, with those that are as they were. Nothing where nothing does.
    pub(crate) fn depends(&self, keys: &[K], unmodified: &Shown<K, V>) -> Vec<Vec<Dependency>> {
        let Some(depends) = &self.depends else { return Vec::new() };
        let brought = self.found.iter().map(|found| (&found.key, &found.value));
        let unmodified = unmodified.iter().filter_map(|(key, entry)| Some((key, entry.value().as_ref()?)));
        let found: HashMap<&K, &V> = unmodified.chain(brought).collect();
        let of_key = |key: &K| {
            let mut depends = depends(key, found.get(key).copied());
            depends.sort_unstable();
            depends.dedup();
            depends
        };
        keys.iter().map(of_key).collect()
    }

    /// The shown values of those keys that are as they were and have no other. One of which nothing was shown fails.
    pub(crate) fn unmodified(&mut self, shown: &Previous<K, V>) -> Shown<K, V> {
        let mut unmodified = Shown::new();
        if self.unmodified.is_empty() {
            return unmodified;
        }
        let brought: HashSet<&K> = self.found.iter().map(|found| &found.key).collect();
        for key in std::mem::take(&mut self.unmodified) {
            match shown.0.get(&key) {
                _ if brought.contains(&key) => {}
                Some(entry) => drop(unmodified.insert(key, Arc::clone(entry))),
                None => self.failed.push((key, Arc::from(BoxError::from(NOT_SHOWN)))),
            }
        }
        unmodified
    }

    /// Keeps what answers what was asked, and returns how many keys there were besides.
    pub(crate) fn retain_answers(&mut self, asked: &[K], cache: &Arc<str>) -> Result<usize, Error> {
        let asked: HashSet<&K> = asked.iter().collect();
        // Equal keys of different texts lie under different names in L2 and in the log.
        let is_asked = |key: &K| asked.get(key).is_some_and(|same| same.to_string() == key.to_string());
        let count = |loaded: &Self| loaded.found.len() + loaded.unmodified.len() + loaded.failed.len();
        let brought = count(self);
        self.found.retain(|found| is_asked(&found.key));
        self.unmodified.retain(&is_asked);
        self.failed.retain(|(key, _)| is_asked(key));
        let unasked = brought - count(self);
        let mut first: HashMap<&K, &V> = HashMap::with_capacity(self.found.len());
        let mut ambiguous = HashSet::new();
        for Found { key, value, .. } in &self.found {
            if first.insert(key, value).is_some_and(|other| !same(other, value)) {
                ambiguous.insert(key);
            }
        }
        let otherwise = match (&self.failed[..], &self.unmodified[..]) {
            ([], []) => 0,
            (failed, unmodified) => failed
                .iter()
                .map(|(key, _)| key)
                .chain(unmodified)
                .filter(|key| !first.contains_key(key))
                .collect::<HashSet<_>>()
                .len(),
        };
        let (cache, missing) = (Arc::clone(cache), asked.len().saturating_sub(first.len() + otherwise));
        if unasked > 0 && missing > 0 {
            Err(Error::UnaskedKeys { cache, unasked, missing })
        } else if !ambiguous.is_empty() {
            Err(Error::AmbiguousKeys { cache, count: ambiguous.len() })
        } else {
            Ok(unasked)
        }
    }
}

impl<K: fmt::Debug, V: fmt::Debug> fmt::Debug for Loaded<K, V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Loaded")
            .field("stamp", &self.stamp)
            .field("computed", &self.computed)
            .field("found", &self.found)
            .finish_non_exhaustive()
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
