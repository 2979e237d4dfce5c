//! Which key is compared with those of rows, and when: now and then one that a load has just brought a value for.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use parking_lot::Mutex;

/// Before the next one where all is well, or nobody can say.
const REST: Duration = Duration::from_mins(10);
/// The same where they disagree, which ends once they agree, or where nobody has answered.
const SHORT_REST: Duration = Duration::from_secs(10);
/// How often in a row a disagreement has to be found: rows come and go meanwhile.
const TIMES: u32 = 2;

/// What a look has shown.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Seen {
    Agreement,
    Disagreement {
        table: String,
        by: String,
    },
    /// Nobody can say.
    Nothing,
    /// The log or the loader did not answer.
    Silence,
}

pub(super) struct Agreement<K> {
    /// Whether a key is to be kept: all that a load looks at.
    wanted: AtomicBool,
    state: Mutex<State<K>>,
}

struct State<K> {
    key: Option<K>,
    rests_until_ms: u64,
    /// Disagreements in a row.
    found: u32,
}

impl<K: Clone> Agreement<K> {
    pub(super) const fn new() -> Self {
        let state = State { key: None, rests_until_ms: 0, found: 0 };
        Self { wanted: AtomicBool::new(true), state: Mutex::new(state) }
    }

    /// A load has brought a value for this key.
    #[inline]
    pub(super) fn loaded(&self, key: &K) {
        if self.wanted.load(Ordering::Relaxed) && self.wanted.swap(false, Ordering::Relaxed) {
            self.state.lock().key = Some(key.clone());
        }
    }

    /// The key that is to be looked at now.
    pub(super) fn due(&self, now_ms: u64) -> Option<K> {
        let mut state = self.state.lock();
        if now_ms < state.rests_until_ms {
            return None;
        }
        let key = state.key.take();
        if key.is_none() {
            self.wanted.store(true, Ordering::Relaxed);
        }
        key
    }

    /// Returns whether it is to be told.
    pub(super) fn seen(&self, seen: &Seen, key: K, now_ms: u64) -> bool {
        let mut state = self.state.lock();
        state.found = if matches!(seen, Seen::Disagreement { .. }) { state.found + 1 } else { 0 };
        let rest = match seen {
            Seen::Disagreement { .. } if state.found < TIMES => {
                // The same one again: it may be the only one that is read.
                state.key = Some(key);
                Duration::ZERO
            }
            Seen::Disagreement { .. } | Seen::Silence => SHORT_REST,
            Seen::Agreement | Seen::Nothing => REST,
        };
        let rest_ms = u64::try_from(rest.as_millis()).unwrap_or(u64::MAX);
        state.rests_until_ms = now_ms.saturating_add(rest_ms);
        state.found >= TIMES || *seen == Seen::Agreement
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_disagreement_is_told_when_it_is_found_twice_in_a_row_and_all_is_quiet_in_between() {
        let agreement = Agreement::new();
        let differ = || Seen::Disagreement { table: String::new(), by: String::new() };
        assert_eq!(agreement.due(0), None);
        agreement.loaded(&1);
        agreement.loaded(&2);
        assert_eq!(agreement.due(0), Some(1), "the first one");
        assert!(!agreement.seen(&Seen::Silence, 1, 0));
        agreement.loaded(&3);
        assert_eq!((agreement.due(9_999), agreement.due(10_000)), (None, None), "nobody asked for it");
        agreement.loaded(&3);
        for (now_ms, told) in [(10_000, false), (10_001, true)] {
            assert_eq!(agreement.due(now_ms), Some(3));
            assert_eq!(agreement.seen(&differ(), 3, now_ms), told);
        }
        assert_eq!((agreement.due(20_000), agreement.due(20_001)), (None, None));
        agreement.loaded(&4);
        assert_eq!(agreement.due(20_001), Some(4));
        assert!(agreement.seen(&Seen::Agreement, 4, 20_001), "it is over");
        agreement.loaded(&5);
        assert_eq!(agreement.due(600_000), None);
    }
}
