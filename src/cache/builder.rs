//! The settings of one cache, each with its default.

use std::future::Future;
use std::marker::PhantomData;
use std::sync::Arc;
use std::time::Duration;

use super::loader::{BoxError, Load, Loaded, Loader, Previous};
use super::policy::{Outage, Policy, StaleWhileLoading};
use super::{Cache, Core, Key, Value};
use crate::error::StartError;
use crate::local::GroupOf;
use crate::log::check_name;
use crate::shared::Shared;
use crate::wire::MAX_PAYLOAD;
use crate::wire::codec::Codec;
use crate::wire::shape::{self, Shape};

/// Declares a cache. Begun by [`Perto::cache`](crate::Perto::cache), ended by [`CacheBuilder::loader`].
#[must_use = "a cache exists once it has a loader"]
pub struct CacheBuilder<K, V> {
    shared: Arc<Shared>,
    name: String,
    policy: Policy,
    group: Option<GroupOf<K, V>>,
    types: PhantomData<fn(K) -> V>,
}

impl<K, V> std::fmt::Debug for CacheBuilder<K, V> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("CacheBuilder")
            .field("name", &self.name)
            .field("policy", &self.policy)
            .finish_non_exhaustive()
    }
}

impl<K: Key, V: Value> CacheBuilder<K, V> {
    pub(crate) fn new(shared: Arc<Shared>, name: &str) -> Self {
        Self { shared, name: name.to_owned(), policy: Policy::default(), group: None, types: PhantomData }
    }

    /// The tables that the loader reads. [`Perto::start`](crate::Perto::start) fails where one is missing or where no trigger
    /// watches it for this cache (`perto watch TABLE --cache NAME --key EXPR` installs one); an instance that runs looks every
    /// minute. Default: none, and nothing is checked, which is told of once ([`Event::Undeclared`](crate::Event::Undeclared)). For what is
    /// invalidated by hand, or by what its values [depend on](Loaded::depends_on) alone, say so: `tables([""; 0])`. Tables that are watched for
    /// a topic are the topic's to declare.
    ///
    /// A name may have a schema, `shop.users`, and must have one where several schemas have a table of that name: without one
    /// it is looked up by the search path of the log's connection, which need not be the loader's.
    pub fn tables<T: Into<String>>(mut self, tables: impl IntoIterator<Item = T>) -> Self {
        self.policy.sources.set_tables(tables);
        self
    }

    /// A table that the loader reads, and what has to watch it: `key` is the text of this cache's key as an SQL expression over
    /// the columns of one row, as [`Watch::key`](crate::postgres::Watch::key) has it. [`Perto::migrate`](crate::Perto::migrate) installs the
    /// trigger. Called several times, it declares several tables; the rest is as for [`CacheBuilder::tables`].
    ///
    /// Take no expression from anybody else: it runs as whoever migrates.
    pub fn watch(self, table: &str, key: &str) -> Self {
        self.watch_columns(table, key, [""; 0])
    }

    /// As [`CacheBuilder::watch`], for values that are made of these columns only: an update that changes none of them, nor the
    /// key, invalidates nothing. So `last_seen_at = now()` on each request does not keep a user from being cached.
    ///
    /// Name each column that the loader reads. Changes of others are not seen before the time to live, and answers are called fresh
    /// all the same; the auditor finds that ([`PertoBuilder::audit_rate`](crate::PertoBuilder::audit_rate)).
    pub fn watch_columns<T: Into<String>>(
        mut self,
        table: &str,
        key: &str,
        columns: impl IntoIterator<Item = T>,
    ) -> Self {
        self.policy.sources.watch(table, key, columns);
        self
    }

    /// How long a value lives, in both tiers. Coherence doesn't need it; it bounds what no trigger covers.
    /// Default: 30 minutes.
    pub const fn ttl(mut self, ttl: Duration) -> Self {
        self.policy.ttl = ttl;
        self
    }

    /// How long the absence of a row is cached. Default: 5 minutes.
    pub const fn absent_ttl(mut self, ttl: Duration) -> Self {
        self.policy.absent_ttl = ttl;
        self
    }

    /// Bytes that L1 may hold, by an estimate: 300 an entry, the key's text, and what the value's `Serialize` writes. A
    /// number counts by its size, a text, a list or a map for 32 bytes more than what is in it, a `serde_json::Value` for 32 at least. What `Serialize` leaves out
    /// (`#[serde(skip)]`) is not seen. Default: 64 MiB.
    pub const fn capacity_bytes(mut self, bytes: u64) -> Self {
        self.policy.capacity_bytes = bytes;
        self
    }

    /// Groups of entries, by key and value (none of an absent row): those of one tenant, say. No group takes more than a
    /// quarter of L1: where it would, its own oldest entries go, whatever is used of them. The function is called for each
    /// entry that comes or goes, must say the same both times, and must not read the cache. Default: no groups.
    pub fn groups(mut self, group: impl Fn(&K, Option<&V>) -> u64 + Send + Sync + 'static) -> Self {
        self.group = Some(Arc::new(group));
        self
    }

    /// Largest encoded value that goes to L2, before it is compressed. Larger ones stay in L1 and are counted. What is larger there is
    /// not read, and is removed where it is not compressed: say the same on all instances. Default: 1 MiB, at most 16 MiB.
    pub const fn max_value_bytes(mut self, bytes: usize) -> Self {
        self.policy.max_value_bytes = bytes;
        self
    }

    /// How values are written into L2. Default: [`Codec::Bincode`], the shorter and faster one. Types with `#[serde(flatten)]`, untagged or
    /// tagged enums, `skip_serializing_if` or `serde_json::Value` need `Codec::Json` (feature `json`).
    ///
    /// Instances of another codec take each other's values for misses, and replace them by newer ones. So change it together with
    /// [`CacheBuilder::version`], or the two work against each other while a release is rolled out.
    pub const fn codec(mut self, codec: Codec) -> Self {
        self.policy.codec = codec;
        self
    }

    /// Compresses values of more than so many encoded bytes in L2, by LZ4. One that does not get an eighth smaller stays as it is. It saves
    /// memory of Redis and bytes on the way, for some microseconds a read: see `docs/DECISIONS.md` for figures. L1 holds values, not bytes, and
    /// counts them as ever. Default: none are.
    ///
    /// Instances without the feature `lz4` take what is compressed for a miss: give it to all of them first.
    #[cfg(feature = "lz4")]
    #[cfg_attr(docsrs, doc(cfg(feature = "lz4")))]
    pub const fn compress_above(mut self, bytes: usize) -> Self {
        self.policy.compress_above = bytes;
        self
    }

    /// How long a load may take, the wait for a place included. Default: 5 seconds.
    pub const fn load_timeout(mut self, limit: Duration) -> Self {
        self.policy.load_timeout = limit;
        self
    }

    /// Most keys of one call of the loader, whether one read asks for them or several do: for a loader that takes no list of any
    /// length. Default: as many as one read asks for, and at most 1,000 of several reads together.
    pub const fn max_batch(mut self, keys: usize) -> Self {
        self.policy.max_batch = keys;
        self
    }

    /// What readers get while the log can't be read. Default: what is cached, flagged, for 5 minutes.
    pub const fn outage(mut self, outage: Outage) -> Self {
        self.policy.outage = outage;
        self
    }

    /// Serves values that were invalidated, or whose time to live is over, for a while longer: flagged as
    /// [`Freshness::Stale`](crate::Freshness::Stale) with why and since when, while the load of the successor runs, where it fails and where it
    /// hangs. Nobody waits longer than the soft timeout ([`StaleWhileLoading::after`]) but for a key of which nothing is left. The load goes on
    /// when its reader has its answer, and when the reader is dropped.
    ///
    /// It prevents that readers of a hot key wait each time it is written, and that they fail with its loader. Reads that ask for more than
    /// the bound, by a token, by `within` or `latest`, or in a view, never get a stale answer; nor does anybody after the cache was cleared
    /// or the log was lost, for nobody knows then how old the value is. A value that [depends](Loaded::depends_on) on others is served
    /// after its time, and not after an invalidation; nor is one whose key has upper-case letters, or blanks at its ends. Kept values take an eighth of the cache's capacity, beside it. Default: none.
    pub const fn stale_while_loading(mut self, stale: StaleWhileLoading) -> Self {
        self.policy.stale = Some(stale);
        self
    }

    /// Loads a value anew when it is read less than this before the end of its time to live. The read gets the value that there is, which is
    /// fresh, at once: nobody waits when its time is over. [`Cache::get_if_cached`] and [`Cache::get_ref`] find nothing meanwhile.
    /// Default: nothing is.
    pub const fn refresh_ahead(mut self, of_the_end: Duration) -> Self {
        self.policy.refresh_ahead = of_the_end;
        self
    }

    /// Loads a key anew as soon as it was invalidated, if it was read often since the last time: some thousand times, for one hit in 1,024 is
    /// looked at. So the first reader after a write finds the new value, or waits for less. Only where
    /// [stale values](CacheBuilder::stale_while_loading) are kept. Default: no.
    pub const fn refresh_hot(mut self) -> Self {
        self.policy.refresh_hot = true;
        self
    }

    /// Cuts each key's time to live by up to so many per cent, each key's by another part: what was loaded together does not end together.
    /// Default: 0.
    pub const fn ttl_jitter(mut self, per_cent: u8) -> Self {
        self.policy.ttl_jitter = Some(per_cent);
        self
    }

    /// Has one instance load a key for all that miss it at the same time: the others wait until L2 has the value. It spares a slow
    /// source what would be a load by each instance whenever a popular key was invalidated. A miss takes two more round trips to Redis.
    ///
    /// Nothing rests on it. Where Redis is down each instance loads for itself, at once. Where the loading one ends, the others wait for
    /// four times as long as a load takes on average: 100 ms at least, a quarter of the [load timeout](CacheBuilder::load_timeout) at
    /// most, and that too before there was a load. What does not go into L2 is loaded by one after the other for so long, and then by each
    /// that still waits. Default: no.
    pub const fn fleet_single_flight(mut self) -> Self {
        self.policy.fleet_single_flight = true;
        self
    }

    /// The version of the values. Instances of different versions don't share values in L2, and nor do instances whose values are of
    /// another type: fields, variants, their names and order, and kinds of numbers are traced where the cache is declared.
    ///
    /// Raise it when the same type means something else (a price without taxes), and when what values
    /// [depend on](Loaded::depends_on) changes. Raise it too where a part changes that can't be traced:
    /// - what `untagged`, `tag` or `flatten` is on;
    /// - what `#[serde(skip)]` and `default` make of what is not there, and what a `with` writes;
    /// - numbers that stand for variants (`serde_repr`, `from = "u8"`), and what a hand-written `Serialize` writes;
    /// - in a tuple, or a hand-written map, what follows a part that takes no made-up value, for it checks what it is made of;
    /// - what a hand-written `Deserialize` asks for by a value that came before;
    /// - what is too deep (32 levels) or too large (40,000 parts, of all values that were tried).
    ///
    /// [`Event::Untraced`](crate::Event::Untraced) tells of the first and the last three. With `panic = "abort"` nothing is traced.
    /// Default: 1.
    pub const fn version(mut self, version: u16) -> Self {
        self.policy.version = version;
        self
    }

    /// Keeps the values of this cache out of L2: no look-up, no fill, no tombstone. For what is cheaper to compute or to load
    /// than to fetch. Invalidations reach every instance as ever.
    pub const fn local_only(mut self) -> Self {
        self.policy.local_only = true;
        self
    }

    /// How values are read from the source, many keys at a time; and with it, the cache.
    ///
    /// A loader must not read another cache of the instance: it would hold one of the places for loads while it waits for
    /// another.
    ///
    /// The loader runs in a task of the instance, within the load timeout. It may be called for many keys at once, and
    /// by several tasks; never twice at a time for one key by one instance, save after a timeout and by the auditor
    /// ([`PertoBuilder::audit_rate`](crate::PertoBuilder::audit_rate)), which expects the same values from the same rows.
    ///
    /// Where there is an L2, the `Deserialize` of the type is tried here with made-up values; with `panic = "abort"` it is not.
    ///
    /// # Errors
    /// [`StartError::Setting`] where a setting makes no sense, where bincode can bring back no value of the type and there is an L2
    /// (see [`Value`](Value#what-l2-keeps)), or where the instance has started already; [`StartError::Closed`] where it has ended.
    pub fn loader<F, Fut, E>(self, loader: F) -> Result<Cache<K, V>, StartError>
    where
        F: Fn(Load<K>) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<Loaded<K, V>, E>> + Send + 'static,
        E: Into<BoxError> + 'static,
    {
        self.declare(Loader::new(false, move |load, _: Previous<K, V>| loader(load)))
    }

    /// As [`CacheBuilder::loader`], for one that can tell by a version whether a value is still what it was, and then
    /// [says so](Loaded::with_unmodified) instead of bringing it. That spares what large values cost to send and to decode, each time that
    /// their time to live is over or they are [refreshed ahead](CacheBuilder::refresh_ahead).
    ///
    /// The loader is shown values that L1 holds of keys that it is asked for. It compares their versions in the statement whose stamp it brings:
    /// that the version is the same has to mean that the value is. So no version may be used twice for a key, not by a row that is deleted and
    /// inserted anew either: let each write take it from a sequence, or compare a hash of all that the value is made of. A number that each write raises
    /// begins again with a new row, and a time that is written by clocks may come twice. What is said to be unmodified is judged as if it had been
    /// brought, by that statement's stamp. It goes into L2 again.
    ///
    /// It is shown no value that was invalidated, or whose cache was cleared since; none from before a crash or a restart of the database, nor while
    /// the log can't be followed; none that [depends](Loaded::depends_on) on other keys; and nothing where [`Load::primary`] is set. What is invalidated while
    /// it is found unmodified is loaded again, and not shown. The auditor shows it nothing, so it finds versions that don't tell.
    ///
    /// To get rid of a value that is wrong though its version is right, invalidate it. Where a load has read after that and ended before the instance
    /// heard of it, the value stays, and goes into L2: invalidate it again, or write the row with a new version.
    ///
    /// ```
    /// # use perto::postgres::{self, sqlx::{self, PgPool}};
    /// # use perto::{Cache, Load, Loaded, Perto, Previous, StartError};
    /// # #[derive(serde::Serialize, serde::Deserialize)]
    /// struct Page {
    ///     version: i64,
    ///     body: Option<String>,
    /// }
    ///
    /// # fn declare(perto: &Perto, pool: &PgPool) -> Result<Cache<i64, Page>, StartError> {
    /// let pool = pool.clone();
    /// perto.cache("page").watch("pages", "id").conditional_loader(move |load: Load<i64>, previous: Previous<i64, Page>| {
    ///     let version = |id| previous.get(id).map(|page| page.version);
    ///     let versions: Vec<Option<i64>> = load.keys.iter().map(version).collect();
    ///     let sql = "select id, p.version, same, case when not same then p.body end \
    ///                from unnest($1::bigint[], $2::bigint[]) shown(id, version) join pages p using (id), \
    ///                     lateral (select p.version is not distinct from shown.version as same) compared";
    ///     let query = postgres::query_as::<(i64, i64, bool, Option<String>)>(sql).bind(load.keys).bind(versions);
    ///     let pool = pool.clone();
    ///     async move {
    ///         let found = query.fetch(&pool).await?;
    ///         Ok::<_, sqlx::Error>(found.rows.into_iter().fold(Loaded::new(found.stamp), |loaded, row| match row {
    ///             (id, _, true, _) => loaded.with_unmodified(id),
    ///             (id, version, false, body) => loaded.with(id, Page { version, body }),
    ///         }))
    ///     }
    /// })
    /// # }
    /// ```
    ///
    /// # Errors
    /// Those of [`CacheBuilder::loader`].
    pub fn conditional_loader<F, Fut, E>(self, loader: F) -> Result<Cache<K, V>, StartError>
    where
        F: Fn(Load<K>, Previous<K, V>) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<Loaded<K, V>, E>> + Send + 'static,
        E: Into<BoxError> + 'static,
    {
        self.declare(Loader::new(true, loader))
    }

    fn declare(mut self, loader: Loader<K, V>) -> Result<Cache<K, V>, StartError> {
        let has_remote = self.shared.remote.is_some() && !self.policy.local_only;
        let shape = has_remote.then(|| shape::of::<V>(self.policy.codec));
        self.check(shape)?;
        self.policy.sources = self.policy.sources.completed();
        let core = Core::new(self.name.into(), self.shared, self.policy, shape, self.group, loader);
        core.shared.register(Arc::clone(&core) as _)?;
        Ok(Cache(core))
    }

    /// Why L2 can't bring back any value of this type.
    fn unreadable(&self, shape: Option<Shape>) -> Option<String> {
        let flaw = shape.filter(|_| self.policy.codec == Codec::Bincode)?.unreadable?;
        let name = std::any::type_name::<V>();
        Some(format!(
            "bincode can bring back no {name} from L2: {flaw}. `codec(Codec::Json)`, feature `json`, can; \
             `local_only` keeps the cache out of L2"
        ))
    }

    fn check(&self, shape: Option<Shape>) -> Result<(), StartError> {
        let policy = &self.policy;
        let problem = if let Err(problem) = check_name(&self.name) {
            ("cache", problem)
        } else if policy.ttl.as_millis() == 0 || policy.absent_ttl.as_millis() == 0 {
            ("ttl", "must be at least a millisecond".to_owned())
        } else if policy.load_timeout.is_zero() {
            ("load_timeout", "must be more than nothing".to_owned())
        } else if policy.max_batch == 0 {
            ("max_batch", "must be at least one key".to_owned())
        } else if policy.refresh_ahead >= policy.ttl
            || policy.refresh_ahead >= policy.absent_ttl && policy.refreshes()
        {
            ("refresh_ahead", "must be less than the times to live, also of what is absent".to_owned())
        } else if policy.ttl_jitter.is_some_and(|per_cent| per_cent >= 100) {
            ("ttl_jitter", "must be less than 100 per cent".to_owned())
        } else if policy.stale.is_some_and(|stale| stale.grace.is_zero()) {
            ("stale_while_loading", "must be for more than no time".to_owned())
        } else if policy.refresh_hot && policy.stale.is_none() {
            ("refresh_hot", "needs stale_while_loading: what was invalidated is kept there".to_owned())
        } else if policy.fleet_single_flight && policy.local_only {
            ("fleet_single_flight", "needs L2, which local_only leaves aside".to_owned())
        } else if policy.max_value_bytes > MAX_PAYLOAD {
            ("max_value_bytes", format!("{} is more than the possible {MAX_PAYLOAD}", policy.max_value_bytes))
        } else if let Some(problem) = self.unreadable(shape) {
            ("codec", problem)
        } else {
            return Ok(());
        };
        Err(StartError::Setting { setting: problem.0, problem: problem.1 })
    }
}
