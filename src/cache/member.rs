//! A cache as a member of its instance.

use std::panic::{AssertUnwindSafe, catch_unwind};

use super::{Core, Key, Value};
use crate::coherence::Coherence;
use crate::coherence::buckets::{Told, WholeCache};
use crate::coherence::rules::Learned;
use crate::log::Source;
use crate::metrics::CacheStats;
#[cfg(feature = "otel")]
use crate::metrics::Timing;
#[cfg(feature = "otel")]
use crate::read::Tier;
use crate::shared::member::Applied;
use crate::shared::polls::Asked;

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

    fn sources(&self) -> Vec<Source> {
        let source = |(table, key, columns): &(String, String, Vec<String>)| Source {
            cache: self.name.to_string(),
            table: table.clone(),
            key: key.clone(),
            columns: columns.clone(),
        };
        self.policy.watched.iter().map(source).collect()
    }

    fn whole(&self) -> &WholeCache {
        &self.whole
    }

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

    fn apply(&self, told: Told<'_>, key: Option<&str>) -> bool {
        let Coherence { buckets, lease, .. } = &*self.shared.coherence;
        let of_key = |text: &str| {
            let key: K = text.parse().ok()?;
            let slot = buckets.slot(&self.name, &key.to_string());
            Some(buckets.apply(slot, told, lease, || self.local.evict(&key, told.xid)))
        };
        let applied = key.and_then(|text| {
            // The key's type is the application's. A panic in any of it must not end the tail.
            let applied = catch_unwind(AssertUnwindSafe(|| of_key(text))).ok().flatten();
            if applied.is_none() {
                // The trigger's expression and the key's type disagree. Nothing of this cache is safe but
                // none of it.
                self.counters.keys_misread.add(1);
            }
            applied
        });
        let (learned, evicted) =
            applied.unwrap_or_else(|| (buckets.apply_whole(&self.whole, told, lease), false));
        if learned == Learned::Coarsely {
            self.shared.counters.coarse.add(1);
            self.shared.polls.ask(Asked::InDoubt);
        }
        evicted
    }
}
