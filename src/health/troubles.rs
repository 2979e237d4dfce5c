//! Troubles: states in which reads or writes are worse than they should be, for as long as they last.
//!
//! One of a kind for each cache and table that it concerns. Whoever notices one begins it, as often as it likes; whoever
//! notices that it is over ends it. Health shows those that last, events and the log tell of each one's begin and end.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use parking_lot::Mutex;

use crate::clock::Clock;

/// Most troubles that are kept at a time. Kinds, caches and the tables that they declare are few; this is for the program
/// that declares thousands.
const MOST: usize = 1_024;
/// Longest detail, in bytes. Servers and loaders say what they like.
const MAX_DETAIL: usize = 600;

/// A state in which reads or writes are worse than they should be. See [`Health::troubles`](crate::Health::troubles).
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Trouble {
    /// What kind.
    pub kind: TroubleKind,
    /// The cache that it concerns; `None` where it concerns all.
    pub cache: Option<String>,
    /// The table that it concerns, as it was declared.
    pub table: Option<String>,
    /// What is wrong, and how to mend it. It may quote what a server or a loader has said; no password, no key of a cache.
    pub detail: String,
    /// Since when, by the wall clock.
    pub since: SystemTime,
}

macro_rules! kinds {
    ($($(#[$help:meta])* $kind:ident = $name:literal),* $(,)?) => {
        /// The kinds of [`Trouble`].
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        #[non_exhaustive]
        pub enum TroubleKind { $($(#[$help])* $kind),* }

        impl TroubleKind {
            /// All of them.
            pub const ALL: &[Self] = &[$(Self::$kind),*];

            /// Its name, as in metrics, alerts and documents. It does not change.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self { $(Self::$kind => $name),* }
            }
        }
    };
}

kinds! {
    /// A table that a cache declares does not exist, or lacks a trigger: writes to it are not seen before the time to live.
    Unwatched = "unwatched",
    /// A trigger could not compute keys and cleared the whole cache instead.
    KeyFails = "key-fails",
    /// A loader and the log name the same row by different keys: it brought keys that it was not asked for, or the triggers name
    /// rows otherwise than it does, so that writes evict nothing.
    KeysDiffer = "keys-differ",
    /// Values of a type that L2 can't keep: each instance loads them for itself.
    ValuesUnstorable = "values-unstorable",
    /// The invalidation log can't be read: the lease has run out, or never began.
    LogUnreadable = "log-unreadable",
    /// The invalidation log can't be trimmed: it grows.
    LogNotTrimmed = "log-not-trimmed",
    /// Many loads fail: at least 10 of the last minute, and more than half of them.
    LoadsFailing = "loads-failing",
    /// Redis can't be used: no answer, a refused password, a server that takes no writes. Of a cache: it is much slower than a load.
    RedisUnusable = "redis-unusable",
    /// Redis refuses to keep values: each instance loads for itself.
    FillsRefused = "fills-refused",
    /// Redis refuses hints or tombstones: other instances see writes of this one with their next poll of the log.
    HintsRefused = "hints-refused",
    /// Hints of other instances don't come: the subscription fails.
    HintsNotReceived = "hints-not-received",
    /// Hints name transactions that do not exist: somebody makes them up. Lasts for a minute after the last one.
    HintsUntrue = "hints-untrue",
    /// Somebody has switched a tier of a cache, or of all, off or read-only: `perto switch` says who, why and until when.
    Switched = "switched",
    /// The auditor found a value that was served as fresh and was not. Lasts for ten minutes after the last one.
    AuditViolation = "audit-violation",
}

impl fmt::Display for TroubleKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl TroubleKind {
    /// Of the instance.
    pub(crate) const fn anywhere(self) -> Subject {
        Subject { kind: self, cache: None, table: None }
    }

    /// Of one cache.
    pub(crate) fn of(self, cache: &str) -> Subject {
        Subject { kind: self, cache: Some(cache.to_owned()), table: None }
    }

    /// Of one cache and one table.
    pub(crate) fn on(self, cache: &str, table: &str) -> Subject {
        Subject { kind: self, cache: Some(cache.to_owned()), table: Some(table.to_owned()) }
    }
}

/// What a trouble is of: there is one for each.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Subject {
    pub(crate) kind: TroubleKind,
    pub(crate) cache: Option<String>,
    pub(crate) table: Option<String>,
}

/// The troubles of one instance.
pub(crate) struct Troubles {
    clock: Arc<dyn Clock>,
    lasting: Mutex<BTreeMap<Subject, Lasting>>,
    /// How many: reads and writes that go well look here first.
    count: AtomicUsize,
}

struct Lasting {
    trouble: Trouble,
    noticed_ms: u64,
    /// It ends by itself when it has not been noticed for so long.
    outlives: Option<Duration>,
}

impl Troubles {
    pub(crate) fn new(clock: Arc<dyn Clock>) -> Self {
        Self { clock, lasting: Mutex::default(), count: AtomicUsize::new(0) }
    }

    pub(crate) fn lasting(&self) -> Vec<Trouble> {
        if self.count.load(Ordering::Acquire) == 0 {
            return Vec::new();
        }
        self.lasting.lock().values().map(|lasting| lasting.trouble.clone()).collect()
    }

    /// How many last of a kind.
    #[cfg(any(test, feature = "otel"))]
    pub(crate) fn count(&self, kind: TroubleKind) -> usize {
        self.lasting.lock().keys().filter(|subject| subject.kind == kind).count()
    }

    /// Returns it where it is new. What is said of one that lasts is replaced by what is said now.
    pub(crate) fn begin(
        &self,
        subject: Subject,
        detail: &str,
        outlives: Option<Duration>,
    ) -> Option<Trouble> {
        let (now_ms, detail) = (self.clock.now_ms(), shortened(detail));
        let mut lasting = self.lasting.lock();
        if let Some(known) = lasting.get_mut(&subject) {
            (known.noticed_ms, known.outlives, known.trouble.detail) = (now_ms, outlives, detail);
            return None;
        }
        if lasting.len() >= MOST {
            return None;
        }
        let trouble = Trouble {
            kind: subject.kind,
            cache: subject.cache.clone(),
            table: subject.table.clone(),
            detail,
            since: UNIX_EPOCH + Duration::from_millis(self.clock.unix_ms()),
        };
        lasting.insert(subject, Lasting { trouble: trouble.clone(), noticed_ms: now_ms, outlives });
        self.count.store(lasting.len(), Ordering::Release);
        Some(trouble)
    }

    /// Returns it where there was one, not noticed for at least so long.
    pub(crate) fn end(&self, subject: &Subject, quiet: Duration) -> Option<Trouble> {
        if self.count.load(Ordering::Acquire) == 0 {
            return None;
        }
        let mut lasting = self.lasting.lock();
        if !lasting.get(subject)?.is_quiet(self.clock.now_ms(), quiet) {
            return None;
        }
        let ended = lasting.remove(subject);
        self.count.store(lasting.len(), Ordering::Release);
        ended.map(|ended| ended.trouble)
    }

    /// Ends all of a kind but these.
    pub(crate) fn retain(&self, kind: TroubleKind, still: impl Fn(&Subject) -> bool) -> Vec<Trouble> {
        self.end_where(|subject, _| subject.kind == kind && !still(subject))
    }

    /// Ends those that have outlived themselves.
    pub(crate) fn expire(&self) -> Vec<Trouble> {
        let now_ms = self.clock.now_ms();
        self.end_where(|_, lasting| lasting.outlives.is_some_and(|quiet| lasting.is_quiet(now_ms, quiet)))
    }

    fn end_where(&self, over: impl Fn(&Subject, &Lasting) -> bool) -> Vec<Trouble> {
        if self.count.load(Ordering::Acquire) == 0 {
            return Vec::new();
        }
        let mut lasting = self.lasting.lock();
        let ended = lasting.extract_if(.., |subject, lasting| over(subject, lasting));
        let ended = ended.map(|(_, lasting)| lasting.trouble).collect();
        self.count.store(lasting.len(), Ordering::Release);
        ended
    }
}

impl Lasting {
    fn is_quiet(&self, now_ms: u64, quiet: Duration) -> bool {
        Duration::from_millis(now_ms.saturating_sub(self.noticed_ms)) >= quiet
    }
}

fn shortened(text: &str) -> String {
    match text.char_indices().map(|(at, _)| at).find(|at| *at > MAX_DETAIL) {
        Some(end) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::SystemClock;

    const AT_ONCE: Duration = Duration::ZERO;

    fn troubles() -> Troubles {
        Troubles::new(Arc::new(SystemClock))
    }

    #[test]
    fn a_trouble_begins_once_and_ends_once_however_often_it_is_noticed() {
        let troubles = troubles();
        let subject = TroubleKind::Unwatched.on("user", "users");
        let begun = troubles.begin(subject.clone(), "no trigger", None).unwrap();
        assert_eq!((begun.cache.as_deref(), begun.table.as_deref()), (Some("user"), Some("users")));
        assert_eq!(troubles.begin(subject.clone(), "no table", None), None);
        let lasting = troubles.lasting();
        assert_eq!(
            (lasting.len(), lasting[0].detail.as_str(), lasting[0].since),
            (1, "no table", begun.since)
        );
        assert!(
            troubles.begin(TroubleKind::Unwatched.on("user", "names"), "", None).is_some(),
            "another one"
        );
        assert_eq!(troubles.count(TroubleKind::Unwatched), 2);
        assert!(troubles.end(&subject, AT_ONCE).is_some());
        assert_eq!(troubles.end(&subject, AT_ONCE), None);
        assert_eq!(troubles.retain(TroubleKind::KeyFails, |_| false), [], "of another kind");
        assert_eq!(troubles.retain(TroubleKind::Unwatched, |_| false).len(), 1);
        assert_eq!(troubles.lasting(), []);
    }

    #[test]
    fn a_trouble_that_was_just_noticed_does_not_end_for_one_that_went_well() {
        let troubles = troubles();
        let subject = TroubleKind::FillsRefused.anywhere();
        troubles.begin(subject.clone(), "OOM", None).unwrap();
        assert_eq!(troubles.end(&subject, Duration::from_secs(10)), None);
        assert_eq!(troubles.expire(), [], "only those that say so");
        troubles.begin(subject.clone(), "OOM", Some(AT_ONCE));
        assert_eq!(troubles.expire().len(), 1);
    }

    #[test]
    fn troubles_and_what_is_said_of_them_are_bounded() {
        let troubles = troubles();
        let long = "é".repeat(MAX_DETAIL);
        for n in 0..MOST + 10 {
            drop(troubles.begin(TroubleKind::LoadsFailing.of(&n.to_string()), &long, None));
        }
        let lasting = troubles.lasting();
        assert_eq!(lasting.len(), MOST);
        assert!(lasting[0].detail.len() < MAX_DETAIL + 8 && lasting[0].detail.ends_with('…'));
    }

    #[test]
    fn names_are_unlike_each_other() {
        let names: std::collections::HashSet<_> = TroubleKind::ALL.iter().map(|kind| kind.name()).collect();
        assert_eq!(names.len(), TroubleKind::ALL.len());
        assert!(names.iter().all(|name| name.bytes().all(|b| b.is_ascii_lowercase() || b == b'-')));
    }
}
