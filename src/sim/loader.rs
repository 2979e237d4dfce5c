//! A loader on the simulated database, that a test can hold at two points.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use futures_util::future::BoxFuture;
use parking_lot::Mutex;

use super::faults::{Down, Faults, Gate};
use super::postgres::{Rows, SimPostgres};
use crate::cache::loader::{Found, Load, Loaded, Previous};
use crate::cache::{Key, Value};

/// A loader that reads the simulated database, and can be held at two points. Cheap to clone; all clones are one.
#[derive(Debug, Clone)]
pub struct SimLoader(Arc<Loading>);

#[derive(Debug)]
struct Loading {
    database: SimPostgres,
    cache: String,
    faults: Faults,
    before: Gate,
    after: Gate,
    replica: AtomicBool,
    stuck_to_replica: AtomicBool,
    calls: Mutex<Vec<Vec<String>>>,
}

impl SimPostgres {
    /// A loader for one cache.
    #[must_use]
    pub fn loader(&self, cache: &str) -> SimLoader {
        SimLoader::new(self.clone(), cache)
    }
}

impl SimLoader {
    pub(super) fn new(database: SimPostgres, cache: &str) -> Self {
        Self(Arc::new(Loading {
            database,
            cache: cache.to_owned(),
            faults: Faults::new(0),
            before: Gate::new(),
            after: Gate::new(),
            replica: AtomicBool::new(false),
            stuck_to_replica: AtomicBool::new(false),
            calls: Mutex::default(),
        }))
    }

    /// What [`CacheBuilder::loader`](crate::CacheBuilder::loader) takes.
    pub fn function<K: Key, V: Value>(
        &self,
    ) -> impl Fn(Load<K>) -> BoxFuture<'static, Result<Loaded<K, V>, Down>> + Send + Sync + 'static {
        let loader = self.clone();
        move |load| {
            let loader = loader.clone();
            Box::pin(async move { loader.load(load).await })
        }
    }

    /// One load.
    ///
    /// # Errors
    /// While the faults cut it off, or if values of another type lie in the table.
    pub async fn load<K: Key, V: Value>(&self, load: Load<K>) -> Result<Loaded<K, V>, Down> {
        let table = &self.0.cache;
        self.statement(load, |rows, key| rows.get(table, key)).await
    }

    /// One load for [`CacheBuilder::conditional_loader`](crate::CacheBuilder::conditional_loader): values that are as they were shown are said to
    /// be so.
    ///
    /// # Errors
    /// Those of [`SimLoader::load`].
    pub async fn load_changed<K: Key, V: Value + PartialEq>(
        &self,
        load: Load<K>,
        previous: Previous<K, V>,
    ) -> Result<Loaded<K, V>, Down> {
        let mut loaded = self.load(load).await?;
        let is_as_shown = |found: &Found<K, V>| previous.get(&found.key) == Some(&found.value);
        let (same, changed): (Vec<_>, _) = loaded.found.drain(..).partition(is_as_shown);
        loaded.found = changed;
        loaded.unmodified = same.into_iter().map(|found| found.key).collect();
        Ok(loaded)
    }

    /// A load by a statement that reads any rows: `value` makes of them what is found for each key.
    ///
    /// # Errors
    /// While the faults cut it off, and those of `value`.
    pub async fn statement<K: Key, V: Value>(
        &self,
        load: Load<K>,
        value: impl Fn(&Rows<'_>, &K) -> Result<Option<V>, Down>,
    ) -> Result<Loaded<K, V>, Down> {
        let loading = &*self.0;
        loading.calls.lock().push(load.keys.iter().map(K::to_string).collect());
        loading.before.pass().await;
        loading.faults.pass().await?;
        let replica = loading.replica.load(Ordering::Acquire)
            && (!load.primary || loading.stuck_to_replica.load(Ordering::Acquire));
        let values =
            |rows: &Rows<'_>| load.keys.iter().map(|key| value(rows, key)).collect::<Result<Vec<_>, Down>>();
        let (stamp, values) = loading.database.statement(replica, values).ok_or(Down)?;
        let found = load.keys.iter().cloned().zip(values?);
        let found = found.filter_map(|(key, value)| Some((key, value?)));
        let loaded = found.fold(Loaded::new(stamp), |loaded, (key, value)| loaded.with(key, value));
        loading.after.pass().await;
        loading.faults.pass().await?;
        Ok(loaded)
    }

    /// The faults of the loader's connection.
    #[must_use]
    pub fn faults(&self) -> &Faults {
        &self.0.faults
    }

    /// Where a load waits before its snapshot is taken.
    #[must_use]
    pub fn before(&self) -> &Gate {
        &self.0.before
    }

    /// Where a load waits after it has read, before it returns.
    #[must_use]
    pub fn after(&self) -> &Gate {
        &self.0.after
    }

    /// Reads the replica from now on, save where a load asks for the primary and `heeds_primary`.
    pub fn use_replica(&self, heeds_primary: bool) {
        self.0.replica.store(true, Ordering::Release);
        self.0.stuck_to_replica.store(!heeds_primary, Ordering::Release);
    }

    /// Reads the primary from now on.
    pub fn use_primary(&self) {
        self.0.replica.store(false, Ordering::Release);
    }

    /// The keys of each call so far.
    #[must_use]
    pub fn calls(&self) -> Vec<Vec<String>> {
        self.0.calls.lock().clone()
    }
}
