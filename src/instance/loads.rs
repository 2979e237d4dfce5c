//! Loads that fail by the dozen are a trouble of their cache, with what the last of them said.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use crate::health::troubles::TroubleKind;
use crate::shared::Shared;

/// Between two looks. Twelve of them are what is judged by: a minute.
const INTERVAL: Duration = Duration::from_secs(5);
const LOOKS: usize = 12;
/// Fewer failures in a minute are no trouble.
const LEAST: u64 = 10;

/// Never returns.
pub(super) async fn judge(shared: Arc<Shared>) {
    let mut minutes: HashMap<String, Minute> = HashMap::new();
    loop {
        tokio::time::sleep(INTERVAL).await;
        for (name, cache) in &*shared.caches() {
            let stats = cache.counters().snapshot();
            let trouble = TroubleKind::LoadsFailing.of(name);
            match minutes.entry(name.clone()).or_default().add(stats.loads, stats.load_errors) {
                Some(Failing { failed, of }) => {
                    let last = shared.failed_loads.lock().get(name).cloned().unwrap_or_default();
                    let why =
                        format!("{failed} of {of} loads failed in the last minute; the last one: {last}");
                    shared.signals.begin(trouble, &why);
                }
                None => shared.signals.end(&trouble),
            }
        }
    }
}

/// What was counted at the last looks.
#[derive(Debug, Default)]
struct Minute {
    looks: VecDeque<(u64, u64)>,
    failing: bool,
}

#[derive(Debug, PartialEq, Eq)]
struct Failing {
    failed: u64,
    of: u64,
}

impl Minute {
    /// What failed, where that is a trouble: it begins when more than half fail, and ends when less than a quarter do.
    fn add(&mut self, loads: u64, errors: u64) -> Option<Failing> {
        if self.looks.is_empty() {
            self.looks.push_back((0, 0));
        }
        let (loads_then, errors_then) = self.looks.front().copied().unwrap_or_default();
        self.looks.push_back((loads, errors));
        if self.looks.len() > LOOKS {
            self.looks.pop_front();
        }
        let failed = errors.saturating_sub(errors_then);
        // Those that got no place have called no loader.
        let of = loads.saturating_sub(loads_then).max(failed);
        let share = if self.failing { 4 } else { 2 };
        self.failing = failed >= LEAST && failed * share > of;
        self.failing.then_some(Failing { failed, of })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loads_that_fail_now_and_then_are_no_trouble_and_those_that_mostly_fail_are() {
        let mut minute = Minute::default();
        assert_eq!(minute.add(9, 9), None, "too few");
        assert_eq!(minute.add(1_000, 400), None, "less than half");
        assert_eq!(minute.add(1_100, 560), Some(Failing { failed: 560, of: 1_100 }));
        assert_eq!(minute.add(2_000, 600), Some(Failing { failed: 600, of: 2_000 }), "it does not flicker");
        assert_eq!(minute.add(4_000, 600), None);
        assert_eq!(minute.add(4_000, 3_000), Some(Failing { failed: 3_000, of: 4_000 }), "without a place");
        let ends = (1..=2 * LOOKS).find(|_| minute.add(4_000, 3_000).is_none());
        assert_eq!(ends, Some(LOOKS), "nobody reads any more");
    }
}
