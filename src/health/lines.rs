//! Lines of the log, one for each event. Whoever can publish, and a server that comes and goes, cause events
//! as often as they like: of what is about the same thing one a second is written, with how many were left
//! out.
//!
//! The last one is written in any case, if later: a log that ends with "isolated" must be of an instance that
//! still is.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;

use super::troubles::Trouble;
use super::{Event, State};
use crate::clock::Clock;

/// What filters go by, wherever this stands: that of the service too.
const TARGET: &str = "perto::health";
/// Time between two lines about the same thing.
const INTERVAL: Duration = Duration::from_secs(1);

#[derive(Debug)]
pub(crate) struct Lines {
    clock: Arc<dyn Clock>,
    recent: Mutex<HashMap<About, Recent>>,
}

/// What an event is about: its kind, the cache and the table. Who publishes or writes chooses none of them.
type About = (&'static str, Option<String>, Option<String>);

/// A thing about which a line was written within the last [`INTERVAL`].
#[derive(Debug)]
struct Recent {
    at_ms: u64,
    /// The last event since then, and how many came before it.
    held: Option<(Event, u64)>,
}

impl Lines {
    pub(crate) fn new(clock: Arc<dyn Clock>) -> Self {
        Self { clock, recent: Mutex::default() }
    }

    pub(crate) fn tell(&self, event: &Event) {
        if let Some(left_out) = self.next(event) {
            event.log(left_out);
        }
    }

    /// How many were left out before this one. `None`: it is left out too, or comes later.
    fn next(&self, event: &Event) -> Option<u64> {
        let now_ms = self.clock.now_ms();
        let mut recent = self.recent.lock();
        // Nobody looks later whether a line is due.
        let last = matches!(event, Event::State { to: State::Closed, .. });
        let known = match recent.entry(event.about()) {
            Entry::Vacant(new) => {
                new.insert(Recent { at_ms: now_ms, held: None });
                return Some(0);
            }
            Entry::Occupied(known) => known.into_mut(),
        };
        let left_out = known.held.take().map_or(0, |(_, before)| before + 1);
        if last || known.is_due(now_ms) {
            known.at_ms = now_ms;
            return Some(left_out);
        }
        known.held = Some((event.clone(), left_out));
        None
    }

    /// Writes what is due. To be called now and then.
    pub(crate) fn catch_up(&self) {
        let now_ms = self.clock.now_ms();
        let mut due = Vec::new();
        self.recent.lock().retain(|_, recent| {
            if !recent.is_due(now_ms) {
                return true;
            }
            recent.at_ms = now_ms;
            let held = recent.held.take();
            let kept = held.is_some();
            due.extend(held);
            kept
        });
        // Without the lock: the application's own subscriber runs in here.
        for (event, left_out) in due {
            event.log(left_out);
        }
    }

    #[cfg(test)]
    pub(crate) fn is_empty(&self) -> bool {
        self.recent.lock().is_empty()
    }
}

impl Recent {
    fn is_due(&self, now_ms: u64) -> bool {
        Duration::from_millis(now_ms.saturating_sub(self.at_ms)) >= INTERVAL
    }
}

impl Event {
    fn about(&self) -> About {
        match self {
            Self::State { .. } => ("state", None, None),
            Self::Recovered { .. } => ("recovered", None, None),
            Self::Gap { .. } => ("gap", None, None),
            Self::HintsUntrue { .. } => ("hints-untrue", None, None),
            Self::PollFailed { .. } => ("poll-failed", None, None),
            Self::AuditViolation { cache, .. } => ("audit-violation", Some(cache.clone()), None),
            Self::Undeclared { cache } => ("undeclared", Some(cache.clone()), None),
            Self::Untraced { cache } => ("untraced", Some(cache.clone()), None),
            // Its begin and its end are about the same.
            Self::TroubleBegan(Trouble { kind, cache, table, .. })
            | Self::TroubleEnded(Trouble { kind, cache, table, .. }) => {
                (kind.name(), cache.clone(), table.clone())
            }
        }
    }

    /// One line: an event that nobody receives is still news.
    fn log(&self, left_out: u64) {
        let left_out = (left_out > 0).then_some(left_out);
        match self {
            Self::State { from, to } => tracing::info!(target: TARGET, %from, %to, left_out, "state"),
            Self::Recovered { why } => {
                tracing::info!(target: TARGET, ?why, left_out, "the log was read anew");
            }
            Self::Gap { lost } => tracing::info!(target: TARGET, lost, left_out, "hints were lost"),
            Self::HintsUntrue { transactions } => {
                tracing::warn!(
                    target: TARGET,
                    transactions,
                    left_out,
                    "hints named transactions that do not exist"
                );
            }
            Self::PollFailed { error } => {
                tracing::warn!(target: TARGET, error, left_out, "the invalidation log can't be read");
            }
            Self::AuditViolation { cache, key_hash, changed } => tracing::error!(
                name: "perto.audit.violations",
                target: TARGET,
                cache,
                key_hash = format!("{key_hash:016x}"),
                changed = changed.join(","),
                left_out,
                "what was served is not what Postgres says, and nothing in the log explains it: run `perto doctor`"
            ),
            Self::Undeclared { cache } => tracing::warn!(
                target: TARGET,
                cache,
                left_out,
                "it declares no tables, so nobody looks whether writes to them are seen: CacheBuilder::tables"
            ),
            Self::Untraced { cache } => tracing::info!(
                target: TARGET,
                cache,
                left_out,
                "its type is not traced as a whole: where a part changes that asks what comes next, takes no made-up value, or is beyond \
                 32 levels or 40,000 parts, raise CacheBuilder::version"
            ),
            Self::TroubleBegan(Trouble { kind, cache, table, detail, .. }) => {
                tracing::warn!(
                    target: TARGET,
                    trouble = kind.name(),
                    cache,
                    table,
                    detail,
                    left_out,
                    "trouble"
                );
            }
            Self::TroubleEnded(Trouble { kind, cache, table, .. }) => {
                tracing::info!(
                    target: TARGET,
                    trouble = kind.name(),
                    cache,
                    table,
                    left_out,
                    "trouble is over"
                );
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fmt::{Debug, Write as _};

    use tokio::time::Instant;
    use tracing::field::{Field, Visit};
    use tracing::span;

    use super::*;
    use crate::coherence::Coherence;
    use crate::health::Recovery;
    use crate::health::signals::Signals;
    use crate::health::troubles::TroubleKind;

    /// By tokio's time, which is virtual here.
    #[derive(Debug)]
    struct Virtual(Instant);

    impl Clock for Virtual {
        fn now_ms(&self) -> u64 {
            u64::try_from(self.0.elapsed().as_millis()).unwrap()
        }

        fn unix_ms(&self) -> u64 {
            self.now_ms()
        }
    }

    /// What was logged, as texts of fields.
    #[derive(Clone, Default)]
    struct Heard(Arc<Mutex<Vec<String>>>);

    struct Text(String);

    impl Visit for Text {
        fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
            write!(self.0, "{field}={value:?} ").unwrap();
        }
    }

    impl tracing::Subscriber for Heard {
        fn enabled(&self, _: &tracing::Metadata<'_>) -> bool {
            true
        }
        fn new_span(&self, _: &span::Attributes<'_>) -> span::Id {
            span::Id::from_u64(1)
        }
        fn record(&self, _: &span::Id, _: &span::Record<'_>) {}
        fn record_follows_from(&self, _: &span::Id, _: &span::Id) {}
        fn event(&self, event: &tracing::Event<'_>) {
            assert_eq!(event.metadata().target(), "perto::health");
            let mut text = Text(String::new());
            event.record(&mut text);
            self.0.lock().push(text.0);
        }
        fn enter(&self, _: &span::Id) {}
        fn exit(&self, _: &span::Id) {}
    }

    impl Heard {
        /// Lines that say so, and how many events they stand for.
        fn told(&self, what: &str) -> (usize, u64) {
            let heard = self.0.lock();
            let lines: Vec<&String> = heard.iter().filter(|line| line.contains(what)).collect();
            let left_out = |line: &&String| -> u64 {
                let count = line.split_once("left_out=").map(|(_, rest)| rest.split(' ').next().unwrap());
                count.map_or(0, |count| count.parse().unwrap())
            };
            (lines.len(), lines.iter().map(|line| 1 + left_out(line)).sum())
        }
    }

    fn trouble(table: &str) -> Trouble {
        Trouble {
            kind: TroubleKind::Unwatched,
            cache: None,
            table: Some(table.to_owned()),
            detail: String::new(),
            since: std::time::UNIX_EPOCH,
        }
    }

    #[tokio::test(start_paused = true)]
    async fn of_what_comes_by_the_thousand_one_line_a_second_says_how_many_and_the_last_one_is_told() {
        let heard = Heard::default();
        let _here = tracing::subscriber::set_default(heard.clone());
        let clock: Arc<dyn Clock> = Arc::new(Virtual(Instant::now()));
        let signals = Signals::new(clock);
        let coherence = Coherence::new(Duration::from_secs(1), 0);
        let storm = async {
            for n in 0..5_000_u64 {
                signals.observe(if n % 2 == 0 { State::Isolated } else { State::Coherent });
                signals.send(Event::Gap { lost: n });
                signals.send(Event::HintsUntrue { transactions: n });
                signals.send(Event::PollFailed { error: n.to_string() });
                signals.send(Event::Recovered { why: Recovery::Trimmed });
                signals.send(Event::AuditViolation {
                    cache: "user".to_owned(),
                    key_hash: n,
                    changed: Vec::new(),
                });
                for table in ["one", "other"] {
                    let (began, over) = (Event::TroubleBegan, Event::TroubleEnded);
                    signals.send(if n % 2 == 0 { began(trouble(table)) } else { over(trouble(table)) });
                }
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            // `watch` looks how it is by itself: as it is at the start.
            tokio::time::sleep(Duration::from_secs(3)).await;
        };
        tokio::select! {
            () = signals.watch(&coherence, || true) => {}
            () = storm => {}
        }
        let all = 5_000;
        for (what, count) in [
            ("hints were lost", all),
            ("hints named", all),
            ("can't be read", all),
            ("read anew", all),
            ("is not what Postgres says", all),
            ("table=\"one\"", all),
            ("table=\"other\"", all),
        ] {
            let (lines, told) = heard.told(what);
            assert_eq!((lines, told), (6, count), "{what}: {:?}", heard.0.lock());
        }
        let (lines, told) = heard.told("message=state");
        assert!((6..=8).contains(&lines) && told >= all, "{lines} {told}");
        let last = |what: &str| heard.0.lock().iter().rfind(|line| line.contains(what)).unwrap().clone();
        assert!(last("message=state").contains("to=recovering"), "as it is: {}", last("message=state"));
        assert!(last("table=\"one\"").contains("is over"), "{}", last("table=\"one\""));
        assert!(signals.lines_are_forgotten(), "what is quiet takes no memory");
        // The end is told at once.
        signals.observe(State::Coherent);
        signals.observe(State::Closed);
        assert!(last("message=state").contains("to=closed"));
    }
}
