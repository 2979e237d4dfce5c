//! A cache as a member of its instance.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use super::{Core, Key, Value};
use crate::coherence::Coherence;
use crate::coherence::buckets::{Told, WholeCache};
use crate::coherence::rules::Learned;
use crate::log::Source;
use crate::log::switch::TierMode;
use crate::metrics::CacheCounters;
#[cfg(feature = "otel")]
use crate::metrics::Timing;
#[cfg(feature = "otel")]
use crate::read::Tier;
use crate::shared::Shared;
use crate::shared::member::Applied;
#[cfg(feature = "otel")]
use crate::shared::member::Measured;
use crate::shared::polls::Asked;
use crate::shared::recent::Recent;

/// Entries that are let go before others get their turn.
const FREED_AT_A_TIME: usize = 8_192;

impl<K: Key, V: Value> Applied for Core<K, V> {
    fn name(&self) -> &str {
        &self.name
    }

    fn kind(&self) -> &str {
        &self.kind
    }

    fn local_only(&self) -> bool {
        self.policy.local_only
    }

    fn has_values(&self) -> bool {
        true
    }

    fn switch(&self, local: TierMode, remote: TierMode) {
        let was_off = self.switched.set(local, remote);
        if local == TierMode::Off && !was_off {
            // From now on no hit serves what there is.
            self.whole.let_go();
            self.free();
        } else {
            self.whole.set_open(local == TierMode::On);
        }
    }

    fn tables(&self) -> &[String] {
        &self.policy.sources.tables
    }

    fn sources(&self) -> Vec<Source> {
        self.policy.sources.of(&self.name)
    }

    fn whole(&self) -> &Arc<WholeCache> {
        &self.whole
    }

    fn spell(&self, text: &str) -> Option<String> {
        spell::<K>(text)
    }

    fn is_untraced(&self) -> bool {
        self.is_untraced
    }

    fn counters(&self) -> &CacheCounters {
        &self.counters
    }

    fn recent(&self) -> &Recent {
        &self.recent
    }

    #[cfg(feature = "otel")]
    fn measured(&self) -> Option<&dyn Measured> {
        Some(self)
    }

    fn apply(&self, told: Told<'_>, key: Option<&str>) -> bool {
        let evicted = apply(self, &self.shared, told, key, |key| self.evict(key, told.xid));
        if let (true, Some(text)) = (evicted, key) {
            self.refresh_evicted(text);
        }
        evicted
    }
}

impl<K: Key, V: Value> Core<K, V> {
    /// Frees what L1 holds of epochs that have ended, and stale values, in the background.
    fn free(&self) {
        if let Some(stale) = &self.stale {
            stale.held.invalidate_all();
        }
        let Some(core) = self.me.upgrade() else { return };
        self.shared.spawn(async move {
            while core.local.free_before(core.whole.epoch(), FREED_AT_A_TIME) {
                tokio::task::yield_now().await;
            }
        });
    }
}

#[cfg(feature = "otel")]
impl<K: Key, V: Value> Measured for Core<K, V> {
    fn size(&self) -> (u64, u64) {
        self.local.size()
    }

    fn latency(&self, tier: Tier) -> &Timing {
        &self.latencies[tier as usize]
    }
}

/// The key's type is the application's: a panic in it makes the text no key.
pub(super) fn spell<K: Key>(text: &str) -> Option<String> {
    catch_unwind(|| text.parse::<K>().ok().map(|key| key.to_string())).ok().flatten()
}

/// Records what a transaction has invalidated: a key of this member, or all of them. Returns whether something was evicted.
pub(super) fn apply<K: Key>(
    member: &impl Applied,
    shared: &Shared,
    told: Told<'_>,
    key: Option<&str>,
    evict: impl Fn(&K) -> bool,
) -> bool {
    let Coherence { buckets, lease, .. } = &*shared.coherence;
    member.recent().add(told.xid);
    let of_key = |text: &str| {
        let key: K = text.parse().ok()?;
        let slot = buckets.slot(member.name(), &key.to_string());
        Some(buckets.apply(slot, told, lease, || evict(&key)))
    };
    let applied = key.and_then(|text| {
        // The key's type is the application's. A panic in any of it must not end the tail.
        let applied = catch_unwind(AssertUnwindSafe(|| of_key(text))).ok().flatten();
        if applied.is_none() {
            // The trigger's expression and the key's type disagree. Nothing of this cache is safe but
            // none of it.
            member.counters().keys_misread.add(1);
        }
        applied
    });
    let (learned, evicted) =
        applied.unwrap_or_else(|| (buckets.apply_whole(member.whole(), told, lease), false));
    if learned == Learned::Coarsely {
        shared.counters.coarse.add(1);
        shared.polls.ask(Asked::InDoubt);
    }
    evicted
}
