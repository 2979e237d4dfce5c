//! Stale while loading, and loads before anybody misses a value.
//!
//! The load that replaces a value is a read like any other, in a task of the instance, one for each key: it goes on when those who have
//! asked for it have a stale answer, or are gone.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Duration;

use smallvec::SmallVec;
use tokio::sync::{OwnedSemaphorePermit, watch};
use tokio::time::Instant;
use xxhash_rust::xxh3::xxh3_64;

use super::missed::until;
use super::policy::{Outage, millis};
use super::stale::{Awaited, Cause, Landing, Refresh, Refreshing, StaleEntries, StaleEntry};
use super::{Cache, Core, Key, Value};
use crate::coherence::lease::LeaseView;
use crate::coherence::verdict::LeaseVerdict;
use crate::error::Error;
use crate::local::{Entry, Outdated};
use crate::read::{Freshness, Read, SoftTimeout, Tier, Wish};

impl<K: Key, V: Value> Core<K, V> {
    /// When an entry's life ends. Before that it is refreshed, where the cache does so ahead.
    pub(super) fn end_of_life(&self, entry: &Entry<V>) -> u64 {
        let ahead = if entry.is_brief() { 0 } else { millis(self.policy.refresh_ahead) };
        entry.life.deadline_ms().saturating_add(ahead)
    }

    /// How long before its end a value of such a life is due to be loaded anew. One that lives no longer than that is brief: it is
    /// not refreshed.
    pub(super) fn ahead_of(&self, ttl: Duration) -> (Duration, bool) {
        let ahead = self.policy.refresh_ahead;
        let is_brief = !ahead.is_zero() && ttl <= ahead;
        (if is_brief { Duration::ZERO } else { ahead }, is_brief)
    }

    /// A time to live, cut by chance as the cache says: what came together does not go together. The same part for a key each time.
    pub(super) fn jittered(&self, text: &str, ttl: Duration) -> Duration {
        let Some(most) = self.policy.ttl_jitter else { return ttl };
        let part = xxh3_64(text.as_bytes()) >> 32;
        let cut = ttl.as_nanos() * u128::from(part) * u128::from(most) / (100 << 32);
        ttl.saturating_sub(Duration::from_nanos_u128(cut))
    }

    /// Evicts a key for a transaction. What goes may be served on, flagged, where the cache does so.
    pub(super) fn evict(&self, key: &K, xid: u64) -> bool {
        let kept = |stale: &&StaleEntries<K, V>| !stale.policy.grace.is_zero() && self.whole.takes_fills();
        if let Some(stale) = self.stale.as_ref().filter(kept)
            && let Some(outdated) = self.local.outdated(key, xid)
        {
            // Before it goes: a read in between would find neither, and wait for a load.
            self.keep(stale, key, outdated);
        }
        self.local.evict(key, xid)
    }

    fn keep(&self, stale: &StaleEntries<K, V>, key: &K, outdated: Outdated<V>) {
        let (held, now_ms) = (self.shared.coherence.lease.held(), self.shared.clock.now_ms());
        // Its dependencies may have changed before, and no eviction tells of that.
        if held.ever_valid() && outdated.entry.made_of().is_none() && self.is_current(&outdated, held) {
            // Without a lease it may have missed writes since that ended.
            let (invalidated_ms, ends_ms) =
                (now_ms.min(held.deadline_ms()), self.end_of_life(&outdated.entry));
            match ends_ms < invalidated_ms {
                true => stale.keep(key, outdated, Cause::Expired, ends_ms),
                false => stale.keep(key, outdated, Cause::Invalidated, invalidated_ms),
            }
        }
    }

    fn is_current(&self, outdated: &Outdated<V>, held: LeaseView) -> bool {
        outdated.entry.life.era() == held.era() && outdated.cache_epoch == self.whole.epoch()
    }

    /// Gives stale answers to the keys that L1 can't answer, and begins the loads that replace them. An answer of a value that is only
    /// due to be refreshed is fresh. What may be waited for is apart from the read, which so is small.
    pub(super) fn answer_stale(
        &self,
        keys: &[K],
        answers: &mut [Option<Read<V>>],
        wish: &Wish,
    ) -> Option<Box<Refreshing<V>>> {
        let stale = self.stale.as_ref()?;
        // What replaces a stale value would not be kept.
        if wish.asks_for_more() || wish.refreshes || !self.whole.takes_fills() {
            return None;
        }
        let may_be_stale = wish.soft_timeout != Some(SoftTimeout::NEVER);
        let mut of = SmallVec::new();
        for (at, (key, answer)) in keys.iter().zip(&mut *answers).enumerate() {
            if answer.is_some() {
                continue;
            }
            let due = self.due(stale, key).or_else(|| self.stale(stale, key));
            let wanted = due.filter(|(freshness, _)| may_be_stale || *freshness == Freshness::Fresh);
            let Some((freshness, stale_entry)) = wanted else { continue };
            if freshness == Freshness::Fresh {
                self.counters.l1_hits.here().increment();
            }
            let entry = Arc::clone(&stale_entry.entry);
            *answer = Some(Read::of(entry, freshness, Tier::Local, wish.floor));
            let refresh = self.refresh(stale, key, &stale_entry);
            if let (Some((landing, is_own)), true) = (refresh, freshness != Freshness::Fresh) {
                of.push(Awaited { at, landing, is_own });
            }
        }
        let after = wish.soft_timeout.map_or(stale.policy.after, SoftTimeout::limit);
        (!of.is_empty() && !after.is_zero()).then(|| Box::new(Refreshing { of, after }))
    }

    /// What L1 holds of a key, though its time is over or it is due to be refreshed.
    fn due(&self, stale: &StaleEntries<K, V>, key: &K) -> Option<(Freshness, Arc<StaleEntry<V>>)> {
        let coherence = &self.shared.coherence;
        let pinned = self.local.pin();
        let (held, cached, now_ms) =
            coherence.lease.read_in_order(|| pinned.get(key), || self.shared.clock.now_ms())?;
        let entry = &cached.entry;
        let ends_ms = self.end_of_life(entry);
        let is_due = !entry.life.valid_at(now_ms);
        let unchanged = entry.made_of().is_none() || self.is_unchanged(entry, held);
        if !(self.is_live(cached, held) && is_due && held.valid_at(now_ms) && unchanged) {
            return None;
        }
        if now_ms < ends_ms {
            // L1 may let it go before its end, and nobody is told what is invalidated after that.
            return Some((Freshness::Fresh, stale.of_held(key, cached, now_ms)));
        }
        let stale_entry = stale.of_held(key, cached, ends_ms);
        stale_entry.was_good_at(ends_ms);
        stale.is_in_time(&stale_entry, now_ms).then(|| (stale_entry.freshness(now_ms), stale_entry))
    }

    /// What was evicted, or has been looked at as due, where it may be served now.
    fn stale(&self, stale: &StaleEntries<K, V>, key: &K) -> Option<(Freshness, Arc<StaleEntry<V>>)> {
        let stale_entry = stale.held.get(key)?;
        let (held, now_ms) = (self.shared.coherence.lease.held(), self.shared.clock.now_ms());
        // What a recovery or the clearing of a cache has ended may have been wrong for any time.
        let is_current =
            stale_entry.entry.life.era() == held.era() && stale_entry.cache_epoch == self.whole.epoch();
        let allowed = match (self.shared.freshness(held), self.policy.outage) {
            (LeaseVerdict::Unverified(_), _) if !held.ever_valid() => false,
            (LeaseVerdict::Unverified(since), Outage::ServeStale { max }) => since <= max,
            (LeaseVerdict::Unverified(_), Outage::Fail) => false,
            _ => true,
        };
        // A value that was due, and that a dependency has changed since, is in nobody's list of evictions.
        let judged = stale_entry.entry.made_of().is_none();
        (is_current && allowed && judged && stale.is_in_time(&stale_entry, now_ms))
            .then(|| (stale_entry.freshness(now_ms), stale_entry))
    }

    /// Joins the load that replaces a value, or begins it. Nothing where the last one has just failed, or where too many are under way.
    fn refresh(
        &self,
        stale: &StaleEntries<K, V>,
        key: &K,
        of: &Arc<StaleEntry<V>>,
    ) -> Option<(Landing<V>, bool)> {
        let mut refresh = of.refresh.lock();
        match &*refresh {
            Refresh::Running(landing) if landing.has_changed().is_ok() => {
                return Some((landing.clone(), false));
            }
            Refresh::FailedUntil(until_ms) if self.shared.clock.now_ms() < *until_ms => return None,
            _ => {}
        }
        let core = self.me.upgrade()?;
        let place = Arc::clone(&stale.places).try_acquire_owned().ok()?;
        let (told, landing) = watch::channel(None);
        *refresh = Refresh::Running(landing.clone());
        drop(refresh);
        self.counters.refreshes.add(1);
        let (key, of) = (key.clone(), Arc::clone(of));
        self.shared.spawn(async move { core.refreshed(key, of, told, place).await });
        Some((landing, true))
    }

    async fn refreshed(
        self: Arc<Self>,
        key: K,
        of: Arc<StaleEntry<V>>,
        told: watch::Sender<Option<Read<V>>>,
        _place: OwnedSemaphorePermit,
    ) {
        let wish = Wish { refreshes: true, ..Wish::NONE };
        let cache = Cache(Arc::clone(&self));
        let keys = [key];
        let read = tokio::select! {
            biased;
            () = self.shared.closing() => return,
            read = Box::pin(cache.read_missed(&keys, &wish, false)) => read,
        };
        let retry = self.stale.as_ref().map(|stale| stale.policy.retry).unwrap_or_default();
        *of.refresh.lock() = match &read {
            Err(Error::Closed) | Ok(_) => Refresh::None,
            Err(_) => Refresh::FailedUntil(self.shared.clock.now_ms().saturating_add(millis(retry))),
        };
        if read.is_err() {
            self.counters.refresh_errors.add(1);
        }
        told.send_replace(read.ok().and_then(|mut reads| reads.pop()));
    }

    /// Begins to load a key anew that was read often until it was evicted.
    pub(super) fn refresh_evicted(&self, text: &str) {
        let Some(stale) = self.stale.as_ref().filter(|_| self.whole.takes_fills()) else { return };
        let refresh = || {
            let key: K = text.parse().ok().filter(|key| stale.was_hot(key))?;
            self.refresh(stale, &key, &stale.held.get(&key)?)
        };
        // The key's type is the application's. A panic in it must not end the tail.
        let _begun = catch_unwind(AssertUnwindSafe(refresh));
    }
}

impl<K: Key, V: Value> Cache<K, V> {
    /// Waits until the soft timeout, counted from when the read began; puts what has come by then in place of stale answers.
    pub(super) async fn land_refreshed(
        &self,
        refreshing: Box<Refreshing<V>>,
        keys: &[K],
        answers: &mut [Read<V>],
        wish: &Wish,
        began: Instant,
    ) {
        let Refreshing { of, after } = *refreshing;
        let landing = async {
            for Awaited { at, mut landing, is_own } in of {
                // Over where it was dropped, too.
                let brought = landing.wait_for(Option::is_some).await.map(|brought| brought.clone());
                let own = brought.ok().flatten().filter(|_| is_own);
                // What others began before this read may miss what this one must not: L1 knows.
                if let Some(read) = own.or_else(|| self.hit(&keys[at], *wish)) {
                    answers[at] = read;
                }
            }
        };
        let _over = until(began.checked_add(after), landing).await;
    }
}
