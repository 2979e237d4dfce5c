//! What the proofs by loom have in common: every interleaving, and an L1 of one entry.

use crate::coherence::lease::{Lease, LeaseView};
use crate::coherence::snapshot::Snapshot;
use crate::sync::Mutex;

/// Runs `scenario` under every interleaving with at most three preemptions, and returns how many differ. Loom leaves out those that
/// change nothing.
pub(crate) fn every_interleaving(scenario: impl Fn() + Sync + Send + 'static) -> usize {
    let count = std::sync::Arc::new(std::sync::atomic::AtomicUsize::new(0));
    let counted = std::sync::Arc::clone(&count);
    let mut loom = loom::model::Builder::new();
    loom.preemption_bound = Some(3);
    loom.check(move || {
        counted.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        scenario();
    });
    count.load(std::sync::atomic::Ordering::Relaxed)
}

/// The moment at which all happens. A lease of before is over by then, the next one is not.
pub(crate) const NOW_MS: u64 = 22_000;
pub(crate) const SENT_BEFORE_MS: u64 = 20_000;
pub(crate) const SENT_MS: u64 = 21_500;
pub(crate) const BOUND: std::time::Duration = std::time::Duration::from_secs(1);

pub(crate) fn stamp(text: &str) -> Snapshot {
    Snapshot::parse(text).expect("a snapshot")
}

/// L1, with one entry. moka's own interleavings are moka's business.
#[derive(Debug, Default)]
pub(crate) struct Local(Mutex<Option<Entry>>);

#[derive(Debug, Clone)]
pub(crate) struct Entry {
    pub(crate) stamp: Snapshot,
    pub(crate) era: u64,
    pub(crate) cache_epoch: u64,
}

impl Local {
    pub(crate) fn get(&self) -> Option<Entry> {
        self.0.lock().clone()
    }

    pub(crate) fn insert(&self, entry: Entry) {
        *self.0.lock() = Some(entry);
    }

    /// As `Local::evict`: unless it contains the transaction.
    pub(crate) fn evict(&self, xid: u64) {
        let mut entry = self.0.lock();
        if entry.as_ref().is_some_and(|entry| !entry.stamp.contains(xid)) {
            *entry = None;
        }
    }

    /// What `Cache::hit` serves as fresh.
    pub(crate) fn hit(&self, lease: &Lease) -> Option<Entry> {
        let (held, entry, now_ms) = lease.read_in_order(|| self.get(), || NOW_MS)?;
        is_fresh(held, &entry, now_ms).then_some(entry)
    }
}

pub(crate) fn is_fresh(held: LeaseView, entry: &Entry, now_ms: u64) -> bool {
    entry.era == held.era() && held.valid_at(now_ms)
}
