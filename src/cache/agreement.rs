//! Whether the triggers name rows as the loader does. Where they don't, writes evict other keys, and what is cached goes on
//! being served.
//!
//! No program knows what an expression makes of a row, so the rows are asked: now and then, for one key that a load has
//! brought a value for, the first one first. A row that bears it shows that all is well. Where none does, the value may be
//! computed over no rows: a count of nothing. Then the loader is asked for keys that rows bear. Where it knows none of these
//! either, they disagree. None of it is on the way of a read.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use parking_lot::Mutex;

use super::{Core, Key, Value};
use crate::health::troubles::TroubleKind;
use crate::log::Borne;

/// Before it is looked again where all is well, or nobody can say.
const REST: Duration = Duration::from_mins(10);
/// The same where they disagree, which ends once they agree, or nobody has answered.
const SHORT_REST: Duration = Duration::from_secs(10);
/// How long it is a trouble after it was last found.
const DISAGREEMENT_LASTS: Duration = Duration::from_mins(10);
/// How often in a row it has to be found: rows come and go meanwhile.
const TIMES: u32 = 2;

pub(super) struct Agreement<K> {
    /// Whether a key is to be kept: all that a load looks at.
    wanted: AtomicBool,
    state: Mutex<State<K>>,
}

struct State<K> {
    key: Option<K>,
    /// By the instance's clock.
    rests_until_ms: u64,
    found: u32,
}

/// What a look has shown.
enum Seen {
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
    fn due(&self, now_ms: u64) -> Option<K> {
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
}

impl<K: Key, V: Value> Core<K, V> {
    pub(super) async fn compare_a_key(&self) {
        let Some(key) = self.agreement.due(self.shared.clock.now_ms()) else { return };
        let seen = self.compare(&key).await;
        let mut state = self.agreement.state.lock();
        state.found = if matches!(seen, Seen::Disagreement { .. }) { state.found + 1 } else { 0 };
        let rest = match &seen {
            Seen::Disagreement { .. } if state.found < TIMES => {
                // The same one again: it may be the only one that is read.
                state.key = Some(key);
                Duration::ZERO
            }
            Seen::Disagreement { .. } | Seen::Silence => SHORT_REST,
            Seen::Agreement | Seen::Nothing => REST,
        };
        let rest_ms = u64::try_from(rest.as_millis()).unwrap_or(u64::MAX);
        state.rests_until_ms = self.shared.clock.now_ms().saturating_add(rest_ms);
        let often = state.found >= TIMES;
        drop(state);
        match seen {
            Seen::Disagreement { table, by } if often => self.disagree(&table, &by),
            Seen::Agreement => self.shared.signals.end_others(TroubleKind::KeysDiffer, |subject| {
                // Those without a table are of loads.
                subject.table.is_none() || subject.cache.as_deref() != Some(&*self.name)
            }),
            Seen::Disagreement { .. } | Seen::Nothing | Seen::Silence => {}
        }
    }

    async fn compare(&self, key: &K) -> Seen {
        let (text, limit) = (key.to_string(), self.shared.settings.log_timeout);
        let asking = tokio::time::timeout(limit, self.shared.log.borne(&self.name, &text));
        let (others, table, by) = match asking.await {
            Ok(Ok(Borne::Yes)) => return Seen::Agreement,
            Ok(Ok(Borne::No { others, table, by })) => (others, table, by),
            Ok(Ok(Borne::Unknown)) => return Seen::Nothing,
            Ok(Err(_)) | Err(_) => return Seen::Silence,
        };
        // What is no key clears the whole cache at each write, but is none that the loader knows either.
        let parse = |text: &String| catch_unwind(AssertUnwindSafe(|| text.parse().ok())).ok().flatten();
        let mut keys = vec![key.clone()];
        keys.extend(others.iter().filter_map(parse).filter(|other| other != key));
        match self.present(&keys).await.as_deref() {
            None => Seen::Silence,
            Some([true, others @ ..]) if !others.contains(&true) => Seen::Disagreement { table, by },
            Some([true, ..]) => Seen::Agreement,
            // It is gone by now: so may its row be.
            Some(_) => Seen::Nothing,
        }
    }

    #[cold]
    fn disagree(&self, table: &str, by: &str) {
        let detail = format!(
            "no row of {table} bears the key that was loaded, by the expression that it is watched by ({by}), and the loader \
             knows no key of its rows: writes there evict other keys, and what is cached stays. Watch it by the key that the \
             loader reads by (`perto watch {table} --cache {} --key EXPR --replace`), or make the key's text the same",
            self.name
        );
        let trouble = TroubleKind::KeysDiffer.on(&self.name, table);
        self.shared.signals.begin_for(DISAGREEMENT_LASTS, trouble, &detail);
    }
}
