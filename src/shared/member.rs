//! A cache, as the rest of the instance sees it: something that is invalidated and audited, whatever its
//! types.

use futures_util::future::BoxFuture;

use crate::coherence::buckets::{Told, WholeCache};
use crate::log::Source;
use crate::metrics::CacheStats;
#[cfg(feature = "otel")]
use crate::metrics::Timing;
#[cfg(feature = "otel")]
use crate::read::Tier;

/// As the tail and hints see it.
pub(crate) trait Applied: Auditable {
    fn name(&self) -> &str;
    fn version(&self) -> u16;
    /// Whether its values never go to L2.
    fn local_only(&self) -> bool;
    fn tables(&self) -> &[String];
    /// Tables that are to be watched for it, each with its key.
    fn sources(&self) -> Vec<Source>;
    fn whole(&self) -> &WholeCache;
    fn stats(&self) -> CacheStats;
    #[cfg(feature = "otel")]
    fn size(&self) -> (u64, u64);
    #[cfg(feature = "otel")]
    fn latency(&self, tier: Tier) -> &Timing;
    /// Records that a transaction invalidated `key` (all keys where it is `None`), and evicts it. Returns
    /// whether something was evicted.
    fn apply(&self, told: Told<'_>, key: Option<&str>) -> bool;
}

/// As the auditor sees it.
pub(crate) trait Auditable: Send + Sync {
    /// Keeps up to `most` of the keys that are served from L1 from now on.
    fn sample(&self, most: usize);
    /// Audits what was kept: within two load timeouts, and three polls' time.
    fn audit(&self) -> BoxFuture<'_, ()>;
}
