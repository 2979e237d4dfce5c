//! Sets of rows that values depend on: what a list shows, or what a count counts.

use std::fmt::{self, Debug};
use std::marker::PhantomData;
use std::sync::Arc;

use futures_util::future::BoxFuture;

use super::sources::Sources;
use super::{Key, member, texts};
use crate::coherence::buckets::{Told, WholeCache};
use crate::coherence::token::Token;
use crate::error::{InvalidateError, StartError};
use crate::log::switch::TierMode;
use crate::log::{Source, check_name};
use crate::metrics::CacheCounters;
use crate::shared::Shared;
#[cfg(feature = "otel")]
use crate::shared::member::Measured;
use crate::shared::member::{Applied, Auditable};
use crate::shared::recent::Recent;
use crate::wire::{Change, Dependency};

/// A cache without values: keys that tables are watched for, that can be invalidated, and that values of caches depend on.
///
/// `contacts`, watched with the key `company_id`, make the topic of each company's contacts. A list or a count of them depends on
/// [`Topic::key`], and so on every row that comes, goes, changes or moves from one company to another. Begun by
/// [`Perto::topic`](crate::Perto::topic). Cheap to clone.
pub struct Topic<K>(Arc<Core<K>>);

pub(crate) struct Core<K> {
    pub(crate) name: Arc<str>,
    pub(crate) shared: Arc<Shared>,
    sources: Sources,
    whole: Arc<WholeCache>,
    counters: CacheCounters,
    recent: Recent,
    key: PhantomData<fn(K)>,
}

/// Declares a topic. Begun by [`Perto::topic`](crate::Perto::topic), ended by [`TopicBuilder::declare`].
#[must_use = "a topic exists once it is declared"]
pub struct TopicBuilder<K> {
    shared: Arc<Shared>,
    name: String,
    sources: Sources,
    key: PhantomData<fn(K)>,
}

impl<K: Key> TopicBuilder<K> {
    pub(crate) fn new(shared: Arc<Shared>, name: &str) -> Self {
        Self { shared, name: name.to_owned(), sources: Sources::default(), key: PhantomData }
    }

    /// As [`CacheBuilder::tables`](crate::CacheBuilder::tables).
    pub fn tables<T: Into<String>>(mut self, tables: impl IntoIterator<Item = T>) -> Self {
        self.sources.set_tables(tables);
        self
    }

    /// As [`CacheBuilder::watch`](crate::CacheBuilder::watch): `key` says of each row to which set it belongs.
    pub fn watch(self, table: &str, key: &str) -> Self {
        self.watch_columns(table, key, [""; 0])
    }

    /// As [`CacheBuilder::watch_columns`](crate::CacheBuilder::watch_columns). A count needs the key alone: name that column, and
    /// updates that leave each row in its set invalidate nothing.
    pub fn watch_columns<T: Into<String>>(
        mut self,
        table: &str,
        key: &str,
        columns: impl IntoIterator<Item = T>,
    ) -> Self {
        self.sources.watch(table, key, columns);
        self
    }

    /// Declares the topic.
    ///
    /// # Errors
    /// [`StartError::Setting`] where the name makes no sense or is a cache's or another topic's, or the instance has started already;
    /// [`StartError::Closed`] where it has ended.
    pub fn declare(self) -> Result<Topic<K>, StartError> {
        check_name(&self.name).map_err(|problem| StartError::Setting { setting: "topic", problem })?;
        let core = Arc::new(Core {
            name: self.name.into(),
            shared: self.shared,
            sources: self.sources.completed(),
            whole: Arc::new(WholeCache::new()),
            counters: CacheCounters::default(),
            recent: Recent::new(),
            key: PhantomData,
        });
        core.shared.register(Arc::clone(&core) as _)?;
        Ok(Topic(core))
    }
}

impl<K: Key> Topic<K> {
    /// A key of this topic, as something that values depend on: see [`Loaded::depends_on`](crate::Loaded::depends_on).
    #[must_use]
    pub fn key(&self, key: &K) -> Dependency {
        Dependency { cache: Arc::clone(&self.0.name), key: key.to_string().into() }
    }

    /// The topic's name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.0.name
    }

    /// Invalidates all that depends on the key, on every instance. As [`Cache::invalidate`](crate::Cache::invalidate).
    ///
    /// # Errors
    /// Those of [`Cache::invalidate`](crate::Cache::invalidate).
    pub async fn invalidate(&self, key: &K) -> Result<Token, InvalidateError> {
        self.invalidate_many(std::slice::from_ref(key)).await
    }

    /// The same for many keys. More than [`MAX_KEYS_PER_ROW`](crate::MAX_KEYS_PER_ROW) invalidate all that depends on any key of the topic;
    /// none invalidate nothing.
    ///
    /// # Errors
    /// Those of [`Cache::invalidate`](crate::Cache::invalidate).
    pub async fn invalidate_many(&self, keys: &[K]) -> Result<Token, InvalidateError> {
        self.0.shared.invalidate_keys(&self.0.name, texts(&self.0.name, keys)).await
    }

    /// Invalidates all that depends on any key of the topic. As [`Cache::clear`](crate::Cache::clear).
    ///
    /// # Errors
    /// Those of [`Cache::invalidate`](crate::Cache::invalidate).
    pub async fn clear(&self) -> Result<Token, InvalidateError> {
        self.0.shared.invalidate(Change { cache: self.0.name.to_string(), keys: None }).await
    }

    #[cfg(feature = "postgres")]
    pub(crate) fn core(&self) -> &Core<K> {
        &self.0
    }
}

impl<K: Key> Applied for Core<K> {
    fn name(&self) -> &str {
        &self.name
    }

    fn kind(&self) -> &str {
        ""
    }

    fn local_only(&self) -> bool {
        true
    }

    fn has_values(&self) -> bool {
        false
    }

    fn switch(&self, _: TierMode, _: TierMode) {}

    fn tables(&self) -> &[String] {
        &self.sources.tables
    }

    fn sources(&self) -> Vec<Source> {
        self.sources.of(&self.name)
    }

    fn whole(&self) -> &Arc<WholeCache> {
        &self.whole
    }

    fn spell(&self, text: &str) -> Option<String> {
        member::spell::<K>(text)
    }

    fn is_undeclared(&self) -> bool {
        !self.sources.declared
    }

    fn counters(&self) -> &CacheCounters {
        &self.counters
    }

    fn recent(&self) -> &Recent {
        &self.recent
    }

    #[cfg(feature = "otel")]
    fn measured(&self) -> Option<&dyn Measured> {
        None
    }

    fn apply(&self, told: Told<'_>, key: Option<&str>) -> bool {
        member::apply(self, &self.shared, told, key, |_: &K| false)
    }
}

impl<K> Auditable for Core<K> {
    fn sample(&self, _: usize) {}

    fn audit(&self) -> BoxFuture<'_, ()> {
        Box::pin(std::future::ready(()))
    }

    fn compare_keys(&self) -> BoxFuture<'_, ()> {
        Box::pin(std::future::ready(()))
    }
}

impl<K> Clone for Topic<K> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<K> Debug for Topic<K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Topic").field("name", &self.0.name).finish_non_exhaustive()
    }
}

impl<K> Debug for TopicBuilder<K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TopicBuilder")
            .field("name", &self.name)
            .field("sources", &self.sources)
            .finish_non_exhaustive()
    }
}
