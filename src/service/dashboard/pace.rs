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
/// In the order of [`names`](super::shown::names).
pub(super) const CACHES: usize = 8;

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
    repairs: u64,
}

/// Of one instance, a second.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(super) struct Rates {
    pub(super) reads: [Tiers; CACHES],
    pub(super) requests: f64,
}

impl Counted {
    fn of(instance: &Instance) -> Self {
        let reads = instance
            .caches
            .each()
            .map(|(_, tally)| [tally.counts.l1_hits, tally.counts.l2_hits, tally.counts.load_hits]);
        Self { at: instance.seen_at, reads, requests: instance.requests.count, repairs: instance.repairs }
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
        let mut rates = Rates { requests: rise(now.requests, then.requests), ..Rates::default() };
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
