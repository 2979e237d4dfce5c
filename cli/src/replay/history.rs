//! What a replay writes down while it runs, in little room; [`perto::history`] judges it at the end.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use perto::history::{Answer, History, Judge};
use perto::{Freshness, Tier};

/// Everything that was read and written.
#[derive(Debug)]
pub(super) struct Record {
    begun: Instant,
    /// Whether the trace itself demands a load at the next read of the row: its first, or the first after a write.
    unread: Vec<AtomicU32>,
    demanded: AtomicU64,
    writes: Mutex<Vec<Write>>,
    reads: Mutex<Vec<Vec<Served>>>,
}

/// A write, and the version that it made if that is known.
#[derive(Debug)]
struct Write {
    row: u32,
    begun: Duration,
    outcome: Option<(u32, Duration)>,
}

/// An answer in 32 bytes: a replay has millions.
#[derive(Debug)]
struct Served {
    begun: Duration,
    took_us: u32,
    row: u32,
    version: u32,
    instance: u8,
    tier: Tier,
    fresh: bool,
}

/// No row has so many versions.
const ABSENT: u32 = u32::MAX;

/// The answers of one reader. When it is dropped they are the record's.
#[derive(Debug)]
pub(super) struct Answers {
    record: Arc<Record>,
    instance: u8,
    reads: Vec<Served>,
}

impl Record {
    pub(super) fn new(rows: usize) -> Self {
        Self {
            begun: Instant::now(),
            unread: (0..rows).map(|_| AtomicU32::new(1)).collect(),
            demanded: AtomicU64::new(0),
            writes: Mutex::default(),
            reads: Mutex::default(),
        }
    }

    pub(super) fn now(&self) -> Duration {
        self.begun.elapsed()
    }

    pub(super) fn begin_read(&self, row: u32) -> Duration {
        if self.unread[row as usize].load(Ordering::Relaxed) == 1
            && self.unread[row as usize].swap(0, Ordering::Relaxed) == 1
        {
            self.demanded.fetch_add(1, Ordering::Relaxed);
        }
        self.now()
    }

    /// A write has ended; with the version that it made, unless its outcome is unknown.
    pub(super) fn wrote(&self, row: u32, begun: Duration, version: Option<u32>) {
        let outcome = version.map(|version| (version, self.now()));
        self.writes.lock().push(Write { row, begun, outcome });
        self.unread[row as usize].store(1, Ordering::Relaxed);
    }

    /// Loads that the trace itself demands: one for the first read of a row and one for the first after each write.
    pub(super) fn demanded(&self) -> u64 {
        self.demanded.load(Ordering::Relaxed)
    }

    /// Judges all that was read, and calls `seen` with each answer and its staleness.
    pub(super) fn judge(
        &self,
        bound: Duration,
        windows: impl Iterator<Item = (String, Duration, Duration)>,
        mut seen: impl FnMut(&Answer, Duration),
    ) -> perto::history::Report {
        let mut judge = self.history().judge(bound);
        for (name, from, to) in windows {
            judge.window(&name, from, to);
        }
        for reads in &*self.reads.lock() {
            reads.iter().for_each(|served| served.judge(&mut judge, &mut seen));
        }
        judge.report()
    }

    fn history(&self) -> History {
        let mut history = History::new();
        for row in (0..).take(self.unread.len()) {
            history.wrote(row, Some(0), Duration::ZERO, Some(Duration::ZERO));
        }
        let mut rows: BTreeMap<u32, Versions> = BTreeMap::new();
        for write in &*self.writes.lock() {
            let versions = rows.entry(write.row).or_default();
            match write.outcome {
                Some((version, acked)) => drop(versions.known.insert(version, (write.begun, acked))),
                None => versions.unknown.push(write.begun),
            }
        }
        for (row, versions) in rows {
            versions.tell(u64::from(row), &mut history);
        }
        history
    }
}

/// The versions of one row. They have no gaps: where one is missing, a write of unknown outcome has made it.
#[derive(Debug, Default)]
struct Versions {
    known: BTreeMap<u32, (Duration, Duration)>,
    unknown: Vec<Duration>,
}

impl Versions {
    fn tell(&self, row: u64, history: &mut History) {
        let last = self.known.last_key_value().map_or(0, |(version, _)| *version);
        let unknown = u32::try_from(self.unknown.len()).unwrap_or(u32::MAX);
        let earliest = self.unknown.iter().min().copied();
        for version in 1..=last.saturating_add(unknown) {
            match (self.known.get(&version), earliest) {
                (Some((begun, acked)), _) => {
                    history.wrote(row, Some(u64::from(version)), *begun, Some(*acked));
                }
                (None, Some(begun)) => {
                    history.wrote(row, Some(u64::from(version)), begun, None);
                }
                (None, None) => {}
            }
        }
    }
}

impl Answers {
    pub(super) fn of(record: &Arc<Record>, instance: usize) -> Self {
        let instance = u8::try_from(instance).unwrap_or(u8::MAX);
        Self { record: Arc::clone(record), instance, reads: Vec::new() }
    }

    /// Returns how long the read took.
    pub(super) fn push<V>(
        &mut self,
        row: u32,
        begun: Duration,
        (value, freshness, tier): (Option<&V>, Freshness, Tier),
        version: impl Fn(&V) -> u32,
    ) -> Duration {
        let took = self.record.now().saturating_sub(begun);
        self.reads.push(Served {
            begun,
            took_us: u32::try_from(took.as_micros()).unwrap_or(u32::MAX),
            row,
            version: value.map_or(ABSENT, version),
            instance: self.instance,
            tier,
            fresh: freshness == Freshness::Fresh,
        });
        took
    }
}

impl Drop for Answers {
    fn drop(&mut self) {
        self.record.reads.lock().push(std::mem::take(&mut self.reads));
    }
}

impl Served {
    fn judge(&self, judge: &mut Judge, seen: &mut impl FnMut(&Answer, Duration)) {
        let value = (self.version != ABSENT).then_some(u64::from(self.version));
        let freshness =
            if self.fresh { Freshness::Fresh } else { Freshness::Unverified { since: Duration::ZERO } };
        // Rounded up: nothing may seem to have been served before it was written.
        let ended = self.begun + Duration::from_micros(u64::from(self.took_us) + 1);
        let mut answer = Answer::new(u64::from(self.row), value, freshness, self.tier, self.begun, ended);
        answer.instance = u32::from(self.instance);
        let staleness = judge.read(&answer);
        seen(&answer, staleness.unwrap_or(Duration::MAX));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_trace_demands_one_load_for_the_first_read_and_one_after_each_write() {
        let record = Record::new(2);
        for _ in 0..3 {
            record.begin_read(0);
        }
        record.wrote(0, record.now(), Some(1));
        record.wrote(0, record.now(), Some(2));
        for _ in 0..3 {
            record.begin_read(0);
        }
        record.begin_read(1);
        assert_eq!(record.demanded(), 3);
    }

    /// Reads one version of row 0 at the end, and judges by a bound of nothing.
    fn violations(record: &Arc<Record>, version: Option<u32>) -> u64 {
        let read = (version.as_ref(), Freshness::Fresh, Tier::Local);
        let mut answers = Answers::of(record, 0);
        answers.push(0, record.now() + Duration::from_secs(1), read, |version| *version);
        drop(answers);
        let violations = record.judge(Duration::ZERO, std::iter::empty(), |_, _| ()).all.violations;
        record.reads.lock().clear();
        violations
    }

    #[test]
    fn an_old_version_an_absent_row_and_one_that_nobody_wrote_are_violations() {
        let record = Arc::new(Record::new(1));
        assert_eq!(violations(&record, Some(0)), 0);
        record.wrote(0, record.now(), Some(1));
        assert_eq!([0, 1, 2].map(|version| violations(&record, Some(version))), [1, 0, 1]);
        assert_eq!(violations(&record, None), 1);
    }

    #[test]
    fn a_write_of_unknown_outcome_may_have_made_the_version_that_is_missing() {
        let record = Arc::new(Record::new(1));
        record.wrote(0, record.now(), None);
        record.wrote(0, record.now(), Some(2));
        // Or the next.
        assert_eq!([0, 1, 2, 3, 4].map(|version| violations(&record, Some(version))), [1, 1, 0, 0, 1]);
    }
}
