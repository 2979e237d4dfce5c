//! The lease: until when what L1 holds may be served as fresh, in which era it was loaded, and in which epoch of the database.
//!
//! Deadline and era are packed into one atomic, so that a hit reads both with one load: 20 bits of era, 44 bits of
//! milliseconds on the clock that counts sleep. 44 bits last 557 years.

use std::time::Duration;

use crate::sync::{AtomicU64, Ordering};

const DEADLINE_BITS: u32 = 44;
const DEADLINE_MASK: u64 = (1 << DEADLINE_BITS) - 1;

/// Extended by each completed poll to the time it was *sent* plus the bound.
#[derive(Debug, Default)]
pub(crate) struct Lease {
    held: AtomicU64,
    /// Of the database; part of every key in L2 and of every hint.
    epoch: AtomicU64,
}

/// A lease as it was at one moment. Taken *before* the value that it is to vouch for: taken after, a reader that
/// was paused in between would pair an old value with a newer lease.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct LeaseView(u64);

impl Lease {
    pub(crate) fn held(&self) -> LeaseView {
        LeaseView(self.held.load(Ordering::Acquire))
    }

    pub(crate) fn epoch(&self) -> u64 {
        self.epoch.load(Ordering::Acquire)
    }

    /// The epoch and the era in which something begins that is judged later.
    ///
    /// The era is read on both sides of the epoch. Read once, a reader that was paused in between would pair the epoch before
    /// a recovery with the era after it, and take values of the old epoch for new ones:
    /// `in_no_interleaving_is_an_old_epoch_paired_with_a_new_era`.
    pub(crate) fn start(&self) -> (u64, u64) {
        loop {
            let era = self.held().era();
            let epoch = self.epoch();
            if self.held().era() == era {
                return (epoch, era);
            }
        }
    }

    /// What a hit does, in the order that makes it safe: the lease, then the value, the clock last. A lease loaded
    /// after the value would let a reader that was paused in between pair an old value with a newer lease:
    /// `a_paused_reader_never_serves_under_a_newer_lease`.
    #[inline]
    pub(crate) fn read_in_order<T>(
        &self,
        value: impl FnOnce() -> Option<T>,
        now_ms: impl FnOnce() -> u64,
    ) -> Option<(LeaseView, T, u64)> {
        let held = self.held();
        let value = value()?;
        Some((held, value, now_ms()))
    }

    /// After every row of the poll has been applied: whoever sees this lease sees the evictions too.
    pub(crate) fn extend(&self, sent_ms: u64, bound: Duration) {
        let deadline = sent_ms + u64::try_from(bound.as_millis()).unwrap_or(DEADLINE_MASK);
        // In one step: the era may end at the same time, by a shutdown.
        let extended = |lease| Some((lease & !DEADLINE_MASK) | deadline.min(DEADLINE_MASK));
        let _always = self.held.fetch_update(Ordering::AcqRel, Ordering::Acquire, extended);
    }

    /// Ends the lease and begins a new era: every entry of L1 is dead at once.
    pub(crate) fn begin_era(&self) {
        let next = |lease: u64| Some((lease >> DEADLINE_BITS).wrapping_add(1) << DEADLINE_BITS);
        let _always = self.held.fetch_update(Ordering::AcqRel, Ordering::Acquire, next);
    }

    /// Whether numbers of this epoch mean anything now.
    pub(crate) fn is_in(&self, epoch: u64) -> bool {
        epoch == self.epoch()
    }

    /// Enters an epoch. Only within a recovery: after the old era has ended, and before the buckets are reset.
    pub(crate) fn enter(&self, epoch: u64) {
        self.epoch.store(epoch, Ordering::Release);
    }
}

impl LeaseView {
    /// How long something of an era is good.
    pub(crate) fn of(era: u64, deadline_ms: u64) -> Self {
        Self(era << DEADLINE_BITS | deadline_ms.min(DEADLINE_MASK))
    }

    pub(crate) const fn era(self) -> u64 {
        self.0 >> DEADLINE_BITS
    }

    pub(crate) const fn deadline_ms(self) -> u64 {
        self.0 & DEADLINE_MASK
    }

    /// Whether there has been a lease in this era, valid or not.
    pub(crate) const fn ever_valid(self) -> bool {
        self.deadline_ms() > 0
    }

    pub(crate) const fn valid_at(self, now_ms: u64) -> bool {
        now_ms < self.deadline_ms()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lease_ends_a_bound_after_the_poll_was_sent() {
        let lease = Lease::default();
        assert!(!lease.held().valid_at(0));
        lease.extend(5_000, Duration::from_secs(1));
        assert!(lease.held().valid_at(5_999) && !lease.held().valid_at(6_000));
    }

    #[test]
    fn a_new_era_ends_the_lease_and_outlives_extensions() {
        let lease = Lease::default();
        lease.extend(5_000, Duration::from_secs(1));
        lease.begin_era();
        assert!(!lease.held().valid_at(5_500));
        lease.extend(6_000, Duration::from_secs(1));
        assert_eq!(lease.held().era(), 1);
    }
}
