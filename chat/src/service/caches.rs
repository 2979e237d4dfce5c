//! All caches of the service, by name: for what is done with each of them alike.

use std::str::FromStr;
use std::time::Duration;

use futures_util::future::BoxFuture;
use perto::{
    Cache, CacheBuilder, CacheStats, Histogram, Inspection, InvalidateError, Key, Perto, StaleWhileLoading,
    StartError, Tier, Token, Topic, Value,
};

use super::database::Database;
use super::problem::Problem;
use super::settings::Settings;
use super::{
    companies, contact_pages, contacts, inbox, keys, messages, overview, tool_results, users, validation,
};

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
    pub(crate) inboxes: inbox::Inboxes,
    pub(crate) contact_pages: contact_pages::ContactPages,
    pub(crate) overviews: overview::Overviews,
    pub(crate) api_keys: keys::ApiKeys,
}

impl Caches {
    pub(super) fn new(perto: &Perto, database: &Database, settings: &Settings) -> Result<Self, StartError> {
        let (ttls, database) = (&settings.ttls, || database.clone());
        let window = usize::try_from(settings.sizes.message_window).unwrap_or(usize::MAX);
        let l1_bytes = settings.sizes.l1_mib << 20;
        let grace = Some(settings.stale.grace).filter(|grace| !grace.is_zero());
        let stale = grace.map(|grace| StaleWhileLoading::for_up_to(grace).after(settings.stale.stale_after));
        let defaults = Defaults { perto, l1_bytes, stale };
        // A key that was revoked is served to nobody.
        let never_stale = Defaults { stale: None, ..defaults };
        let of_company: Topic<i64> = perto.topic(contacts::OF_COMPANY).tables(["contacts"]).declare()?;
        let companies = companies::cache(defaults.builder(companies::CACHE, ttls.company), database())?;
        Ok(Self {
            messages: messages::cache(defaults.builder(messages::CACHE, ttls.message), database(), window)?,
            users: users::cache(defaults.builder(users::CACHE, ttls.user), database())?,
            contacts: contacts::cache(defaults.builder(contacts::CACHE, ttls.contact), database())?,
            contacts_by_phone: contacts::cache_by_phone(
                defaults.builder(contacts::CACHE_BY_PHONE, ttls.contact),
                database(),
            )?,
            validations: validation::cache(defaults.builder(validation::CACHE, ttls.validation))?,
            tool_results: tool_results::cache(
                defaults.builder(tool_results::CACHE, ttls.tool_result),
                database(),
            )?,
            inboxes: inbox::cache(
                defaults.builder(inbox::CACHE, ttls.message),
                database(),
                of_company.clone(),
            )?,
            contact_pages: contact_pages::cache(
                defaults.builder(contact_pages::CACHE, ttls.contact),
                database(),
                of_company,
            )?,
            overviews: overview::cache(
                defaults.builder(overview::CACHE, ttls.company),
                database(),
                companies.clone(),
            )?,
            api_keys: keys::cache(never_stale.builder(keys::CACHE, ttls.api_key), database())?,
            companies,
        })
    }

    pub(crate) fn all(&self) -> [&dyn AnyCache; 11] {
        [
            &self.messages,
            &self.companies,
            &self.users,
            &self.contacts,
            &self.contacts_by_phone,
            &self.validations,
            &self.tool_results,
            &self.inboxes,
            &self.contact_pages,
            &self.overviews,
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

/// Whose share of L1 an entry takes. What is not there is nobody's: all of it has one share.
pub(super) fn share_of(company: Option<i64>) -> u64 {
    company.map_or(0, i64::unsigned_abs)
}

/// A text that is no key of a cache.
#[derive(Debug, Clone, Copy, thiserror::Error)]
#[error("not a key of this cache")]
pub(crate) struct NotAKey;

/// What all caches begin with.
#[derive(Clone, Copy)]
struct Defaults<'a> {
    perto: &'a Perto,
    l1_bytes: u64,
    stale: Option<StaleWhileLoading>,
}

impl Defaults<'_> {
    fn builder<K: Key, V: Value>(&self, name: &str, ttl: Duration) -> CacheBuilder<K, V> {
        let builder = self.perto.cache(name).ttl(ttl).capacity_bytes(self.l1_bytes);
        match self.stale {
            Some(stale) => builder.stale_while_loading(stale),
            None => builder,
        }
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
    /// The version of the values, and the bytes in L2 of one of them, given as JSON.
    #[cfg(test)]
    fn payload(&self, json: &str) -> (u16, Result<Vec<u8>, String>);
    /// Whether all of its values' type is in their fingerprint.
    #[cfg(test)]
    fn is_traced(&self) -> bool;
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

    #[cfg(test)]
    fn payload(&self, json: &str) -> (u16, Result<Vec<u8>, String>) {
        let value = serde_json::from_str::<V>(json).map_err(|error| error.to_string());
        let bytes = value.and_then(|value| perto::fuzzing::payload(&value)).map(Vec::from);
        (self.version(), bytes)
    }

    #[cfg(test)]
    fn is_traced(&self) -> bool {
        perto::fuzzing::fingerprint::<V>(perto::Codec::Bincode).1
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;

    use clap::{Args, FromArgMatches};
    use perto::postgres::sqlx::PgPool;
    use serde::Deserialize;
    use serde_json::value::RawValue;

    use super::*;

    /// A value, by the names of its fields, and its bytes in hexadecimal.
    #[derive(Deserialize)]
    struct Pinned {
        value: Box<RawValue>,
        bytes: String,
    }

    /// Instances of two releases run side by side, and each reads what the other put into L2. The bytes have no names: of two
    /// texts that change places each is read as the other.
    #[tokio::test]
    async fn the_bytes_of_each_cache_are_those_that_its_version_always_had() {
        let arguments = Settings::augment_args(clap::Command::new("perto")).get_matches_from(["perto"]);
        let settings = Settings::from_arg_matches(&arguments).unwrap();
        let url = "postgres://nobody@localhost/none";
        let perto = Perto::builder("pinned").postgres(url).build().unwrap();
        let database = Database::new(&PgPool::connect_lazy(url).unwrap(), true);
        let caches = Caches::new(&perto, &database, &settings).unwrap();
        for cache in caches.all() {
            let name = cache.name();
            assert!(cache.is_traced(), "the type of cache {name} is not traced as a whole");
            let (version, _) = cache.payload("");
            let path = format!("tests/wire/service/{name}-v{version}.json");
            let text = fs::read_to_string(Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/..")).join(&path));
            let text = text.unwrap_or_else(|error| {
                panic!(
                    "{path}: {error}. Pin a value of cache {name} there, no two of whose fields are alike."
                )
            });
            let pinned: Pinned = serde_json::from_str(&text).unwrap();
            let bytes =
                cache.payload(pinned.value.get()).1.unwrap_or_else(|why| panic!("cache {name}: {why}"));
            let bytes: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
            assert_eq!(
                bytes, pinned.bytes,
                "the bytes of cache {name} have changed: raise its version by `CacheBuilder::version`, and pin them in a new file",
            );
        }
    }
}
