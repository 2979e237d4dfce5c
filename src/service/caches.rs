//! All caches of the service, by name: for what is done with each of them alike.

use std::str::FromStr;
use std::time::Duration;

use futures_util::future::BoxFuture;
use perto::{
    Cache, CacheBuilder, CacheStats, Histogram, Inspection, InvalidateError, Key, Perto, StartError, Tier,
    Token, Value,
};

use super::database::Database;
use super::problem::Problem;
use super::settings::Settings;
use super::{companies, contacts, keys, messages, tool_results, users, validation};

/// Every cache that there is.
#[derive(Debug)]
pub(crate) struct Caches {
    pub(crate) messages: messages::Messages,
    pub(crate) companies: companies::Companies,
    pub(crate) users: users::Users,
    pub(crate) contacts: contacts::Contacts,
    pub(crate) contacts_by_phone: contacts::ContactsByPhone,
    pub(crate) validations: validation::Validations,
    pub(crate) tool_results: tool_results::ToolResults,
    pub(crate) api_keys: keys::ApiKeys,
}

impl Caches {
    pub(super) fn new(perto: &Perto, database: &Database, settings: &Settings) -> Result<Self, StartError> {
        let (ttls, database) = (&settings.ttls, || database.clone());
        let window = usize::try_from(settings.sizes.message_window).unwrap_or(usize::MAX);
        let l1_bytes = settings.sizes.l1_mib << 20;
        let of = Begin { perto, l1_bytes };
        Ok(Self {
            messages: messages::cache(of.begin(messages::CACHE, ttls.message), database(), window)?,
            companies: companies::cache(of.begin(companies::CACHE, ttls.company), database())?,
            users: users::cache(of.begin(users::CACHE, ttls.user), database())?,
            contacts: contacts::cache(of.begin(contacts::CACHE, ttls.contact), database())?,
            contacts_by_phone: contacts::cache_by_phone(
                of.begin(contacts::CACHE_BY_PHONE, ttls.contact),
                database(),
            )?,
            validations: validation::cache(of.begin(validation::CACHE, ttls.validation))?,
            tool_results: tool_results::cache(of.begin(tool_results::CACHE, ttls.tool_result), database())?,
            api_keys: keys::cache(of.begin(keys::CACHE, ttls.api_key), database())?,
        })
    }

    pub(crate) fn all(&self) -> [&dyn AnyCache; 8] {
        [
            &self.messages,
            &self.companies,
            &self.users,
            &self.contacts,
            &self.contacts_by_phone,
            &self.validations,
            &self.tool_results,
            &self.api_keys,
        ]
    }

    /// # Errors
    /// 404 where there is none of that name.
    pub(crate) fn find(&self, name: &str) -> Result<&dyn AnyCache, Problem> {
        let found = self.all().into_iter().find(|cache| cache.name() == name);
        found.ok_or_else(|| Problem::not_found("there is no such cache"))
    }
}

/// A text that is no key of a cache.
#[derive(Debug, Clone, Copy, thiserror::Error)]
#[error("not a key of this cache")]
pub(crate) struct NotAKey;

/// What all caches begin with.
struct Begin<'a> {
    perto: &'a Perto,
    l1_bytes: u64,
}

impl Begin<'_> {
    fn begin<K: Key, V: Value>(&self, name: &str, ttl: Duration) -> CacheBuilder<K, V> {
        self.perto.cache(name).ttl(ttl).capacity_bytes(self.l1_bytes)
    }
}

/// A cache, whatever its keys and values are. Keys are texts.
pub(crate) trait AnyCache: Send + Sync {
    fn name(&self) -> &str;
    fn stats(&self) -> CacheStats;
    fn latency(&self, tier: Tier) -> &Histogram;
    /// Entries of L1 and their bytes.
    fn size(&self) -> (u64, u64);
    /// None where the text is no key of this cache.
    fn inspect<'a>(&'a self, key: &str) -> Option<BoxFuture<'a, Result<Inspection, perto::Error>>>;
    /// None where the text is no key of this cache.
    fn invalidate<'a>(&'a self, key: &str) -> Option<BoxFuture<'a, Result<Token, InvalidateError>>>;
    fn clear(&self) -> BoxFuture<'_, Result<Token, InvalidateError>>;
}

impl<K: Key + FromStr, V: Value> AnyCache for Cache<K, V> {
    fn name(&self) -> &str {
        self.name()
    }

    fn stats(&self) -> CacheStats {
        self.stats()
    }

    fn latency(&self, tier: Tier) -> &Histogram {
        self.latency(tier)
    }

    fn size(&self) -> (u64, u64) {
        self.size()
    }

    fn inspect<'a>(&'a self, key: &str) -> Option<BoxFuture<'a, Result<Inspection, perto::Error>>> {
        let key: K = key.parse().ok()?;
        Some(Box::pin(async move { self.inspect(&key).await }))
    }

    fn invalidate<'a>(&'a self, key: &str) -> Option<BoxFuture<'a, Result<Token, InvalidateError>>> {
        let key: K = key.parse().ok()?;
        Some(Box::pin(async move { self.invalidate(&key).await }))
    }

    fn clear(&self) -> BoxFuture<'_, Result<Token, InvalidateError>> {
        Box::pin(self.clear())
    }
}
