//! What the caches of an instance declare, for whoever looks after the database.

use serde::Serialize;

use super::Perto;
use crate::log::Source;

/// A cache and the tables that it declares as its sources.
///
/// Serialized as JSON, a list of these is what `perto doctor --declared FILE` reads.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Declared {
    /// The cache's name.
    pub cache: String,
    /// As [`CacheBuilder::tables`](crate::CacheBuilder::tables) names them; none where it declares none.
    pub tables: Vec<String>,
    /// As [`CacheBuilder::watch`](crate::CacheBuilder::watch) declares them: these tables by these keys.
    pub watches: Vec<Source>,
}

impl Perto {
    /// What the caches declare that there are so far, by name. No I/O.
    ///
    /// `perto doctor` can't know it. Write it down, in a test or at the start, and give it the file:
    ///
    /// ```text
    /// std::fs::write("caches.json", serde_json::to_string(&perto.declared())?)?;
    /// ```
    #[must_use]
    pub fn declared(&self) -> Vec<Declared> {
        let caches = self.shared().caches();
        let each = |cache: &std::sync::Arc<dyn crate::shared::member::Applied>| Declared {
            cache: cache.name().to_owned(),
            tables: cache.tables().to_vec(),
            watches: cache.sources(),
        };
        let mut declared: Vec<Declared> = caches.values().map(each).collect();
        declared.sort_unstable_by(|a, b| a.cache.cmp(&b.cache));
        declared
    }
}
