//! How fast the instances' counters rise: over the last seconds, by the times at which the instances themselves looked.
//!
//! Their rows come once a second, and are read once a second: now and then one is seen twice, and the next one is two
//! seconds further. Rates by the rows' own times don't show that.

use std::collections::{HashMap, VecDeque};
use std::time::Duration;

use chrono::{DateTime, Utc};
use uuid::Uuid;

use crate::service::fleet::Instance;

/// Reads a second of one cache: from L1, from L2, by a load.
pub(super) type Tiers = [f64; 3];
/// Caches of the service, in the order of their figures.
pub(super) const CACHES: usize = 11;

/// Rates over a span of time.
#[derive(Debug)]
pub(super) struct Pace {
    span: Duration,
    seen: HashMap<Uuid, Seen>,
}

#[derive(Debug)]
struct Seen {
    /// Since when the counters count: they begin anew at a reset.
    since: DateTime<Utc>,
    counted: VecDeque<Counted>,
    /// What was repaired when [`Pace::repaired`] was last asked.
    repairs: u64,
    silent: bool,
}

#[derive(Debug, Clone, Copy)]
struct Counted {
    at: DateTime<Utc>,
    reads: [[u64; 3]; CACHES],
    requests: u64,
    refused: u64,
    repairs: u64,
}

/// Of one instance, a second.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(super) struct Rates {
    pub(super) reads: [Tiers; CACHES],
    pub(super) requests: f64,
    pub(super) refused: f64,
}

impl Counted {
    fn of(instance: &Instance) -> Self {
        let reads = instance
            .caches
            .each()
            .map(|(_, tally)| [tally.counts.l1_hits, tally.counts.l2_hits, tally.counts.load_hits]);
        let refused = instance.refused.values().sum();
        Self {
            at: instance.seen_at,
            reads,
            requests: instance.requests.count,
            refused,
            repairs: instance.repairs,
        }
    }
}

impl Pace {
    pub(super) fn over(span: Duration) -> Self {
        Self { span, seen: HashMap::new() }
    }

    /// Takes in how the instances are now; those that are gone are forgotten.
    pub(super) fn see<'a>(&mut self, instances: impl Iterator<Item = &'a Instance>) {
        let mut before = std::mem::take(&mut self.seen);
        for instance in instances {
            let now = Counted::of(instance);
            let mut seen = before.remove(&instance.id).unwrap_or_else(|| Seen {
                since: instance.since,
                counted: VecDeque::new(),
                repairs: now.repairs,
                silent: false,
            });
            if seen.since != instance.since {
                seen.since = instance.since;
                seen.counted.clear();
            }
            seen.silent = instance.is_silent();
            if seen.counted.back().is_none_or(|last| last.at < now.at) {
                seen.counted.push_back(now);
            }
            // The first one that is as old as the span stays: from it the rise is counted.
            let reaches = |seen: &Seen| {
                seen.counted
                    .get(1)
                    .is_some_and(|next| (now.at - next.at).to_std().is_ok_and(|age| age >= self.span))
            };
            while reaches(&seen) {
                seen.counted.pop_front();
            }
            self.seen.insert(instance.id, seen);
        }
    }

    /// Nothing of an instance that is silent, or was not seen twice.
    pub(super) fn rates(&self, id: Uuid) -> Rates {
        let Some(seen) = self.seen.get(&id).filter(|seen| !seen.silent) else { return Rates::default() };
        let (Some(then), Some(now)) = (seen.counted.front(), seen.counted.back()) else {
            return Rates::default();
        };
        let seconds = (now.at - then.at).as_seconds_f64();
        if seconds <= 0.0 {
            return Rates::default();
        }
        let rise = |now: u64, then: u64| now.saturating_sub(then) as f64 / seconds;
        let mut rates = Rates {
            requests: rise(now.requests, then.requests),
            refused: rise(now.refused, then.refused),
            ..Rates::default()
        };
        for (rates, (now, then)) in rates.reads.iter_mut().zip(now.reads.iter().zip(then.reads)) {
            for (rate, (now, then)) in rates.iter_mut().zip(now.iter().zip(then)) {
                *rate = rise(*now, then);
            }
        }
        rates
    }

    /// Of all instances together.
    pub(super) fn reads(&self) -> [Tiers; CACHES] {
        let mut sum = [[0.0; 3]; CACHES];
        for id in self.seen.keys() {
            for (sum, rates) in sum.iter_mut().flatten().zip(self.rates(*id).reads.iter().flatten()) {
                *sum += rates;
            }
        }
        sum
    }

    /// What was repaired since this was last asked.
    pub(super) fn repaired(&mut self) -> u64 {
        let all = self.seen.values_mut().filter_map(|seen| {
            let now = seen.counted.back()?.repairs;
            Some(now.saturating_sub(std::mem::replace(&mut seen.repairs, now)))
        });
        all.sum()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// How an instance is `ms` after the beginning, with so many hits of L1 in the cache of messages.
    fn instance(ms: i64, hits: u64, change: impl FnOnce(&mut serde_json::Value)) -> Instance {
        let time = |ms| DateTime::from_timestamp_millis(1_000_000 + ms).unwrap();
        let pool = json!({ "max": 1, "size": 1, "idle": 1, "inUse": 0, "exhausted": 0 });
        let audited = json!({ "audits": 0, "violations": 0, "nines": 0.0 });
        let mut shown = json!({
            "instance": "a", "id": Uuid::nil(), "address": "", "version": "", "startedAt": time(0), "seenAt": time(ms),
            "state": "coherent", "alone": false, "leaseLeftMs": 1, "remoteUp": true, "busUp": true, "polls": 0,
            "hints": 0, "repairs": 0, "audits": { "5m": audited, "1h": audited, "1d": audited },
            "propagation": { "count": 0, "p50Ms": 0.0, "p99Ms": 0.0 }, "since": time(0),
            "caches": { "message": { "l1Hits": hits } }, "pool": { "requests": pool, "loads": pool },
            "requests": { "count": hits, "lastMinute": { "count": 0, "p50Ms": 0.0, "p99Ms": 0.0, "slow": 0 } },
            "refused": { "too-many-requests": hits, "too-many-strangers": hits }
        });
        change(&mut shown);
        serde_json::from_value(shown).unwrap()
    }

    fn l1(pace: &mut Pace, now: &Instance) -> f64 {
        pace.see(std::iter::once(now));
        pace.reads()[0][0]
    }

    #[test]
    fn a_row_that_is_seen_twice_makes_no_rate_jump() {
        let mut pace = Pace::over(Duration::from_secs(1));
        let same = |_: &mut serde_json::Value| ();
        assert_eq!(l1(&mut pace, &instance(0, 7, same)), 0.0, "seen once, nothing is known");
        for (ms, hits) in [(1_000, 107), (1_000, 107), (3_000, 307), (4_010, 408)] {
            assert_eq!(l1(&mut pace, &instance(ms, hits, same)), 100.0, "at {ms} ms");
        }
        let rates = pace.rates(Uuid::nil());
        assert_eq!((rates.requests, rates.refused), (100.0, 200.0));
        assert_eq!(pace.rates(Uuid::max()), Rates::default());
    }

    #[test]
    fn rates_are_those_of_the_span_and_no_more_is_kept() {
        let mut pace = Pace::over(Duration::from_secs(10));
        for second in 0..100 {
            let hits = if second < 50 { 0 } else { (second - 50) * 20 };
            let rate = l1(&mut pace, &instance(1_000 * second, u64::try_from(hits).unwrap(), |_| ()));
            if second >= 60 {
                assert_eq!(rate, 20.0, "at {second} s");
            }
        }
        assert_eq!(pace.seen[&Uuid::nil()].counted.len(), 11);
        pace.see(std::iter::empty());
        assert!(pace.seen.is_empty(), "who is gone is forgotten");
    }

    #[test]
    fn a_reset_and_a_silence_are_no_reads() {
        let mut pace = Pace::over(Duration::from_secs(1));
        for second in 0..3 {
            l1(&mut pace, &instance(1_000 * second, 500, |_| ()));
        }
        let reset = |shown: &mut serde_json::Value| shown["since"] = json!("2026-01-01T00:00:00Z");
        assert_eq!(l1(&mut pace, &instance(3_000, 5, reset)), 0.0);
        assert_eq!(l1(&mut pace, &instance(4_000, 15, reset)), 10.0, "from then on it counts anew");
        let silent = |shown: &mut serde_json::Value| {
            reset(shown);
            shown["state"] = json!("silent");
        };
        assert_eq!(l1(&mut pace, &instance(4_000, 15, silent)), 0.0);
    }

    #[test]
    fn a_repair_is_told_once() {
        let mut pace = Pace::over(Duration::from_secs(10));
        let mut repaired = |ms, repairs: u64| {
            pace.see(std::iter::once(&instance(ms, 0, |shown| shown["repairs"] = repairs.into())));
            pace.repaired()
        };
        let told = [(0, 3), (1_000, 3), (2_000, 5), (2_000, 5), (3_000, 5)]
            .map(|(ms, repairs)| repaired(ms, repairs));
        assert_eq!(told, [0, 0, 2, 0, 0], "what was before it was first seen is not told");
    }
}
