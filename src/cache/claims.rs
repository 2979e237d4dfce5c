//! One load of a key for all instances, where a cache asks for it. Who misses a key in L2 claims it there, loads it, and lets the claim go
//! once L2 has the value. Who finds it claimed looks into L2 again, ever more rarely.
//!
//! That spares loads, and nothing rests on it: what is found is judged like any value of L2, a claim ends by itself, and nobody waits
//! for longer than it would last. Without L2 each instance loads for itself.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::led::{Few, Led};
use super::{Core, FlightResult, Key, Value};
use crate::shared::fills::Claim;

/// Before one looks again at first. Later it is an eighth of the time that one has waited: so late, at most, a value is found.
const SHORTEST_PAUSE: Duration = Duration::from_millis(1);
const LONGEST_PAUSE: Duration = Duration::from_millis(50);
/// A claim lasts so many times as long as a load takes on average.
const LOADS: u32 = 4;
const SHORTEST_CLAIM: Duration = Duration::from_millis(100);
/// And no longer than this part of the load timeout: what waited for it still has to be loaded within that.
const PART_OF_TIMEOUT: u32 = 4;

impl<K: Key, V: Value> Core<K, V> {
    /// Has loaded what L2 does not have: each key by one instance, where that is asked for.
    pub(super) fn load_missing(self: &Arc<Self>, missing: Vec<Led<K, FlightResult<V>>>) {
        if missing.is_empty() {
            return;
        }
        let is_shared = self.policy.fleet_single_flight && self.fills_remote();
        if !is_shared || !self.shared.remote_usable() {
            return self.load(missing);
        }
        // What waits for another's load has no limit but its reader's.
        missing.iter().flat_map(|led| &led.keys).for_each(|led| led.leader.loads());
        let core = Arc::clone(self);
        self.shared.spawn_until_closing(async move { core.load_once(missing).await });
    }

    async fn load_once(self: &Arc<Self>, mut missing: Vec<Led<K, FlightResult<V>>>) {
        let (began, lasts) = (Instant::now(), self.claim_lasts());
        loop {
            // Nobody fills any more what was put aside. And who would have no time left to load it waits for nobody.
            if !self.fills_remote() || lasts.is_zero() {
                return self.load(missing);
            }
            let until = Instant::now() + lasts;
            let Some(claimed) = self.claim(&missing, lasts).await else { return self.load(missing) };
            let (own, others) = self.split(missing, &claimed, until);
            if !own.is_empty() {
                // Whoever had a claim before may have let it go since the last look.
                let own = self.look(own, true).await;
                self.load(own);
            }
            missing = others;
            let waited = began.elapsed();
            if waited >= lasts {
                return self.load(missing);
            }
            missing.retain_mut(Led::retain_awaited);
            if missing.is_empty() {
                return;
            }
            tokio::time::sleep((waited / 8).clamp(SHORTEST_PAUSE, LONGEST_PAUSE)).await;
            missing = self.look(missing, true).await;
            if missing.is_empty() {
                return;
            }
        }
    }

    /// For each key, whether this instance is the one to load it. `None` where nobody can say.
    async fn claim(&self, missing: &[Led<K, FlightResult<V>>], lasts: Duration) -> Option<Vec<bool>> {
        let names: Vec<String> =
            missing.iter().flat_map(|led| &led.keys).map(|key| self.claim_name(&key.text)).collect();
        self.shared.remote_claim(&names, lasts, &missing.first()?.trace).await
    }

    /// What this instance has claimed, and what others have.
    #[expect(clippy::type_complexity, reason = "a pair of two lists")]
    fn split(
        &self,
        missing: Vec<Led<K, FlightResult<V>>>,
        claimed: &[bool],
        until: Instant,
    ) -> (Vec<Led<K, FlightResult<V>>>, Vec<Led<K, FlightResult<V>>>) {
        let (mut own, mut others, mut names) = (Vec::new(), Vec::new(), Vec::new());
        let mut claimed = claimed.iter().copied().chain(std::iter::repeat(true));
        for mut led in missing {
            let (mut ours, mut theirs) = (Few::new(), Few::new());
            for key in led.keys.drain(..) {
                if claimed.next() == Some(true) {
                    names.push(self.claim_name(&key.text));
                    ours.push(key);
                } else {
                    theirs.push(key);
                }
            }
            if !theirs.is_empty() {
                others.push(Led { keys: theirs, trace: led.trace.clone(), claim: None, ..led });
            }
            if !ours.is_empty() {
                own.push(Led { keys: ours, ..led });
            }
        }
        if !names.is_empty() {
            let claim = Arc::new(Claim::new(&self.shared, names, until));
            own.iter_mut().for_each(|led| led.claim = Some(Arc::clone(&claim)));
        }
        (own, others)
    }

    fn claim_name(&self, text: &str) -> String {
        self.shared.claim_name(&self.kind, text)
    }

    /// An instance that ends in the middle of a load holds others up for so long. No time at all where a load takes nearly as long as it
    /// may.
    fn claim_lasts(&self) -> Duration {
        let limit = self.policy.load_timeout;
        let longest = limit / PART_OF_TIMEOUT;
        let Some(load) = self.pace.load() else { return longest };
        // Half as much again as usual must be left for it.
        let longest = longest.min(limit.saturating_sub(load * 3 / 2));
        (load * LOADS).clamp(SHORTEST_CLAIM.min(longest), longest)
    }
}
