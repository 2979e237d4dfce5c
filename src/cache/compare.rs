//! Whether the triggers name rows as the loader does. Where they don't, writes evict other keys, and what is cached goes on
//! being served.
//!
//! No program knows what an expression makes of a row, so the rows are asked whether one bears a key that was just loaded: then
//! all is well. Where none does, the value may be computed over no rows, as a count of nothing. So the loader is asked for
//! keys that rows bear. Where it knows none of these either, they disagree. None of it is on the way of a read.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;

use super::agreement::Seen;
use super::{Core, Key, Value};
use crate::health::troubles::TroubleKind;
use crate::log::Borne;

/// How long it is a trouble after it was last found.
const DISAGREEMENT_LASTS: Duration = Duration::from_mins(10);

impl<K: Key, V: Value> Core<K, V> {
    pub(super) async fn compare_a_key(&self) {
        let Some(key) = self.agreement.due(self.shared.clock.now_ms()) else { return };
        let seen = self.compare(&key).await;
        if !self.agreement.seen(&seen, key, self.shared.clock.now_ms()) {
            return;
        }
        match seen {
            Seen::Disagreement { table, by } => self.disagree(&table, &by),
            _ => self.shared.signals.end_others(TroubleKind::KeysDiffer, |subject| {
                // Those without a table are of loads.
                subject.table.is_none() || subject.cache.as_deref() != Some(&*self.name)
            }),
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
        // A text that is no key clears the whole cache at each write, but is none that the loader knows either.
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
