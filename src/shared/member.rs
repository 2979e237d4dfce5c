//! A cache or a topic, as the rest of the instance sees it: something that is invalidated and audited, whatever its
//! types.

use std::sync::Arc;

use futures_util::future::BoxFuture;

use crate::coherence::buckets::{Told, WholeCache};
use crate::log::Source;
use crate::log::switch::TierMode;
use crate::metrics::CacheCounters;
#[cfg(feature = "otel")]
use crate::metrics::Timing;
#[cfg(feature = "otel")]
use crate::read::Tier;
use crate::shared::recent::Recent;

/// As the tail and hints see it.
pub(crate) trait Applied: Auditable {
    fn name(&self) -> &str;
    /// Which values of it are meant in L2: see [`wire::kind`](crate::wire::kind).
    fn kind(&self) -> &str;
    /// Whether its values never go to L2.
    fn local_only(&self) -> bool;
    /// Whether it has values, and so tiers.
    fn has_values(&self) -> bool;
    /// Its tiers do this from now on.
    fn switch(&self, local: TierMode, remote: TierMode);
    fn tables(&self) -> &[String];
    /// Tables that are to be watched for it, each with its key.
    fn sources(&self) -> Vec<Source>;
    fn whole(&self) -> &Arc<WholeCache>;
    /// The text under which a key is recorded that has this one. `None` where it is no key.
    fn spell(&self, text: &str) -> Option<String>;
    /// Whether it should have been said which tables it is watched for, and was not.
    fn is_undeclared(&self) -> bool {
        false
    }
    /// Whether its type's fingerprint, which is part of its kind, is not of all of the type.
    fn is_untraced(&self) -> bool {
        false
    }
    fn counters(&self) -> &CacheCounters;
    fn recent(&self) -> &Recent;
    /// A topic has no values that could be measured.
    #[cfg(feature = "otel")]
    fn measured(&self) -> Option<&dyn Measured>;
    /// Records that a transaction invalidated `key` (all keys where it is `None`), and evicts it. Returns
    /// whether something was evicted.
    fn apply(&self, told: Told<'_>, key: Option<&str>) -> bool;
}

/// As whoever measures it sees it.
#[cfg(feature = "otel")]
pub(crate) trait Measured {
    fn size(&self) -> (u64, u64);
    fn latency(&self, tier: Tier) -> &Timing;
}

/// As the auditor sees it.
pub(crate) trait Auditable: Send + Sync {
    /// Keeps up to `most` of the keys that are served from L1 from now on.
    fn sample(&self, most: usize);
    /// Audits what was kept: within two load timeouts, and three polls' time.
    fn audit(&self) -> BoxFuture<'_, ()>;
    /// Looks whether a key that was loaded is one that the log would name, where it is time for that.
    fn compare_keys(&self) -> BoxFuture<'_, ()>;
}
