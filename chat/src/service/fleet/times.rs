//! How long things took of late: per tier, how old what was served could be, how long invalidations were on their way.
//!
//! Quantiles of several instances can't be combined, counts can: an instance says how many durations fell into which
//! bucket within the last ten seconds, and whoever reads adds them up.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use perto::{Histogram, Tier};
use serde::{Deserialize, Serialize};

use crate::service::{Service, validation};

/// Samples, one a second, that the oldest is looked back to.
const SECONDS: usize = 10;

/// Durations by the longest of their bucket, in nanoseconds, and how many there are.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Spread(Vec<(u64, u64)>);

/// Of the last ten seconds.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Times {
    /// Reads by the tier that answered them. What is computed by rules is not loaded, and not in it.
    pub(crate) tiers: [Spread; 3],
    /// How old what was served as fresh may have been.
    pub(crate) staleness: Spread,
    /// From a commit elsewhere to the eviction here.
    pub(crate) propagation: Spread,
}

/// What was counted since the start, one sample a second.
#[derive(Debug, Default)]
pub(crate) struct Recent(VecDeque<Times>);

impl Spread {
    fn of(histogram: &Histogram) -> Self {
        let ns = |limit: Duration| u64::try_from(limit.as_nanos()).unwrap_or(u64::MAX);
        Self(histogram.counts().map(|(limit, count)| (ns(limit), count)).collect())
    }

    /// What was added after `then`.
    fn since(&self, then: &Self) -> Self {
        let before: BTreeMap<u64, u64> = then.0.iter().copied().collect();
        let added = self.0.iter().map(|(limit, count)| {
            (*limit, count.saturating_sub(before.get(limit).copied().unwrap_or_default()))
        });
        Self(added.filter(|(_, count)| *count > 0).collect())
    }

    /// Of several together.
    pub(crate) fn sum<'a>(all: impl IntoIterator<Item = &'a Self>) -> Self {
        let mut sum = BTreeMap::<u64, u64>::new();
        for (limit, count) in all.into_iter().flat_map(|one| &one.0) {
            let counted = sum.entry(*limit).or_default();
            *counted = counted.saturating_add(*count);
        }
        Self(sum.into_iter().collect())
    }

    /// The duration, in nanoseconds, that a share `q` does not exceed; within a bucket, which is 6 %. None of none.
    pub(crate) fn quantile(&self, q: f64) -> Option<f64> {
        let total: u64 = self.0.iter().map(|(_, count)| count).sum();
        let mut seen = 0;
        let found = self.0.iter().find(|(_, count)| {
            seen += count;
            seen as f64 >= total as f64 * q
        });
        found.map(|(limit, _)| *limit as f64)
    }
}

impl Times {
    /// Since the start.
    pub(crate) fn now(service: &Service) -> Self {
        let tier = |tier| {
            let sum = Histogram::default();
            let caches = service.caches.all().into_iter();
            for cache in caches.filter(|cache| tier != Tier::Load || cache.name() != validation::CACHE) {
                sum.merge(cache.latency(tier));
            }
            Spread::of(&sum)
        };
        Self {
            tiers: [Tier::Local, Tier::Remote, Tier::Load].map(tier),
            staleness: Spread::of(service.perto.staleness()),
            propagation: Spread::of(service.perto.propagation()),
        }
    }

    fn since(&self, then: &Self) -> Self {
        let [l1, l2, load] = &self.tiers;
        Self {
            tiers: [l1.since(&then.tiers[0]), l2.since(&then.tiers[1]), load.since(&then.tiers[2])],
            staleness: self.staleness.since(&then.staleness),
            propagation: self.propagation.since(&then.propagation),
        }
    }
}

impl Recent {
    /// To be called once a second, with all that was counted since the start.
    pub(crate) fn turn(&mut self, now: Times) {
        self.0.push_back(now);
        if self.0.len() > SECONDS + 1 {
            self.0.pop_front();
        }
    }

    pub(crate) fn get(&self) -> Times {
        match (self.0.front(), self.0.back()) {
            (Some(then), Some(now)) => now.since(then),
            _ => Times::default(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spread(milliseconds: &[u64]) -> Spread {
        let histogram = Histogram::default();
        milliseconds.iter().for_each(|ms| histogram.record(Duration::from_millis(*ms)));
        Spread::of(&histogram)
    }

    #[test]
    fn ten_seconds_are_remembered_and_no_more() {
        let (mut recent, all) = (Recent::default(), Histogram::default());
        for second in 0..30 {
            if second == 5 {
                all.record(Duration::from_millis(7));
            }
            recent.turn(Times { propagation: Spread::of(&all), ..Times::default() });
            let seen = recent.get().propagation.quantile(0.5).is_some();
            assert_eq!(seen, (5..15).contains(&second), "after {second} s");
        }
    }

    #[test]
    fn quantiles_of_several_are_those_of_all_their_durations() {
        let slow: Vec<u64> = (100..200).collect();
        let sum = Spread::sum([&spread(&[1; 900]), &spread(&slow)]);
        let ms = |q| sum.quantile(q).unwrap() / 1e6;
        assert!((1.0..1.07).contains(&ms(0.9)), "{}", ms(0.9));
        assert!((189.0..203.0).contains(&ms(0.99)), "{}", ms(0.99));
        assert!((199.0..213.0).contains(&ms(1.0)), "{}", ms(1.0));
        assert_eq!(Spread::default().quantile(0.5), None);
    }
}
