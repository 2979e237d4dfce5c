//! A cache, as the tail and hints see it: something that invalidations are applied to, whatever its types.

#[cfg(feature = "otel")]
use super::Tier;
use super::audit::Auditable;
use super::{Core, Key, Value};
use crate::coherence::buckets::Whole;
use crate::coherence::rules::Learned;
#[cfg(feature = "otel")]
use crate::metrics::{CacheStats, Timing};

/// See the module's documentation.
pub(crate) trait Applied: Auditable {
    fn name(&self) -> &str;
    fn version(&self) -> u16;
    /// Whether its values never go to L2.
    fn local_only(&self) -> bool;
    fn tables(&self) -> &[String];
    fn whole(&self) -> &Whole;
    #[cfg(feature = "otel")]
    fn stats(&self) -> CacheStats;
    #[cfg(feature = "otel")]
    fn size(&self) -> (u64, u64);
    #[cfg(feature = "otel")]
    fn latency(&self, tier: Tier) -> &Timing;
    /// Records that transaction `xid` invalidated `key` (all keys where it is `None`), and evicts it. Returns whether
    /// something was evicted.
    fn apply(&self, xid: u64, key: Option<&str>) -> bool;
}

impl<K: Key, V: Value> Applied for Core<K, V> {
    fn name(&self) -> &str {
        &self.name
    }

    fn version(&self) -> u16 {
        self.policy.version
    }

    fn local_only(&self) -> bool {
        self.policy.local_only
    }

    fn tables(&self) -> &[String] {
        &self.policy.tables
    }

    fn whole(&self) -> &Whole {
        &self.whole
    }

    #[cfg(feature = "otel")]
    fn stats(&self) -> CacheStats {
        self.counters.snapshot()
    }

    #[cfg(feature = "otel")]
    fn size(&self) -> (u64, u64) {
        self.local.size()
    }

    #[cfg(feature = "otel")]
    fn latency(&self, tier: Tier) -> &Timing {
        &self.latencies[tier as usize]
    }

    fn apply(&self, xid: u64, key: Option<&str>) -> bool {
        let buckets = &self.shared.coherence.buckets;
        let key = key.and_then(|text| {
            // A panic in the key's type must not end the tail.
            let key = std::panic::catch_unwind(|| text.parse::<K>().ok()).ok().flatten();
            if key.is_none() {
                // The trigger's expression and the key's type disagree. Nothing of this cache is safe but none of it.
                self.counters.keys_misread.add(1);
            }
            key
        });
        let (learned, evicted) = match key {
            None => (buckets.apply_whole(&self.whole, xid), false),
            Some(key) => {
                let slot = buckets.slot(&self.name, &key.to_string());
                buckets.apply(slot, xid, || self.local.evict(&key, xid))
            }
        };
        if learned == Learned::Coarsely {
            self.shared.counters.coarse.add(1);
            self.shared.coherence.doubt.notify_one();
        }
        evicted
    }
}
