//! Which version of each row was committed when, and how stale a read was.
//!
//! Postgres gives the versions of a row a total order, so a read is judged by itself: it is as stale as the oldest
//! commit is old that it misses. Only commits that had been acknowledged before the read began count.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

#[derive(Debug)]
pub(super) struct History {
    begun: Instant,
    /// The newest version of each row that was committed.
    newest: Vec<AtomicU32>,
    /// When each version was committed, for the rows that were written.
    commits: Vec<Mutex<HashMap<u32, Vec<Commit>>>>,
    /// Whether the trace itself demands a load at the next read of the row: its first, or the first after a write.
    unread: Vec<AtomicU32>,
    demanded: AtomicU64,
}

#[derive(Debug, Clone, Copy)]
struct Commit {
    version: u32,
    at: Duration,
}

/// What was known when a read began.
#[derive(Debug, Clone, Copy)]
pub(super) struct Begun {
    pub(super) at: Duration,
    newest: u32,
}

const SHARDS: usize = 64;

impl History {
    pub(super) fn new(rows: usize) -> Self {
        Self {
            begun: Instant::now(),
            newest: (0..rows).map(|_| AtomicU32::new(0)).collect(),
            commits: (0..SHARDS).map(|_| Mutex::default()).collect(),
            unread: (0..rows).map(|_| AtomicU32::new(1)).collect(),
            demanded: AtomicU64::new(0),
        }
    }

    /// Begins the time of the run anew, after its preparations.
    pub(super) fn restart(&mut self) {
        self.begun = Instant::now();
    }

    pub(super) fn now(&self) -> Duration {
        self.begun.elapsed()
    }

    pub(super) fn begin_read(&self, row: u32) -> Begun {
        if self.unread[row as usize].load(Ordering::Relaxed) == 1
            && self.unread[row as usize].swap(0, Ordering::Relaxed) == 1
        {
            self.demanded.fetch_add(1, Ordering::Relaxed);
        }
        // The version before the time: a commit in between makes the read no staler than it is.
        let newest = self.newest[row as usize].load(Ordering::Acquire);
        Begun { at: self.now(), newest }
    }

    /// How old the oldest commit is that the read missed; zero if it missed none.
    pub(super) fn staleness(&self, row: u32, begun: Begun, version: u32) -> Duration {
        if version >= begun.newest {
            return Duration::ZERO;
        }
        let shard = self.commits[row as usize % SHARDS].lock();
        let missed = shard.get(&row).into_iter().flatten().filter(|commit| commit.version > version);
        let oldest = missed.map(|commit| commit.at).min();
        oldest.map_or(Duration::ZERO, |oldest| begun.at.saturating_sub(oldest))
    }

    /// A commit has been acknowledged.
    pub(super) fn committed(&self, row: u32, version: u32) {
        let commit = Commit { version, at: self.now() };
        self.commits[row as usize % SHARDS].lock().entry(row).or_default().push(commit);
        self.newest[row as usize].fetch_max(version, Ordering::Release);
        self.unread[row as usize].store(1, Ordering::Relaxed);
    }

    /// Loads that the trace itself demands: one for the first read of a row and one for the first after each write.
    pub(super) fn demanded(&self) -> u64 {
        self.demanded.load(Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_read_is_as_stale_as_the_oldest_commit_that_it_misses() {
        let history = History::new(1);
        history.committed(0, 1);
        let first = history.now();
        std::thread::yield_now();
        history.committed(0, 2);
        let begun = history.begin_read(0);
        assert_eq!(history.staleness(0, begun, 2), Duration::ZERO);
        assert!(history.staleness(0, begun, 0) >= begun.at - first);
        assert!(history.staleness(0, begun, 1) <= begun.at - first);
        assert_eq!(history.staleness(0, begun, 3), Duration::ZERO);
    }

    #[test]
    fn a_commit_after_the_read_began_does_not_count() {
        let history = History::new(1);
        let begun = history.begin_read(0);
        history.committed(0, 1);
        assert_eq!(history.staleness(0, begun, 0), Duration::ZERO);
    }

    #[test]
    fn the_trace_demands_one_load_for_the_first_read_and_one_after_each_write() {
        let history = History::new(2);
        for _ in 0..3 {
            history.begin_read(0);
        }
        history.committed(0, 1);
        history.committed(0, 2);
        for _ in 0..3 {
            history.begin_read(0);
        }
        history.begin_read(1);
        assert_eq!(history.demanded(), 3);
    }
}
