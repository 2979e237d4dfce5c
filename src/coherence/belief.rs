//! Whether hints can be believed: what they name must be in the log by the first poll that is sent after they came.
//!
//! A hint is only ever a reason to evict, and what it told is forgotten where no poll brings it. But one that somebody
//! makes up empties a cache all the same, as often as it is sent. So an instance that has been lied to a few times leaves
//! hints aside for a while, and follows the log alone, as it does while Redis is down.

use std::collections::{BTreeSet, VecDeque};
use std::time::Duration;

use super::snapshot::Snapshot;
use crate::sync::Mutex;

/// Transactions that are waited for. Of more it is not found out whether they are; they are forgotten all the same.
const MOST: usize = 4_096;
/// So many transactions that never were, within [`MEMORY`], and hints are left aside until there were none for as long.
const ENOUGH: usize = 4;
const MEMORY: Duration = Duration::from_secs(10);

/// What hints have named since, and how often that was nothing.
#[derive(Debug, Default)]
pub(crate) struct Belief(Mutex<Named>);

#[derive(Debug, Default)]
struct Named {
    /// Since the last poll was sent.
    new: BTreeSet<u64>,
    /// Before that: it must contain them.
    old: BTreeSet<u64>,
    /// When a poll did not contain one, by the clock of the instance, the latest last.
    untrue_ms: VecDeque<u64>,
}

impl Belief {
    /// A hint names a transaction.
    pub(crate) fn named(&self, xid: u64) {
        let mut named = self.0.lock();
        if named.new.len() + named.old.len() < MOST && !named.old.contains(&xid) {
            named.new.insert(xid);
        }
    }

    /// A poll is about to be sent.
    pub(crate) fn sending(&self) {
        let named = &mut *self.0.lock();
        named.old.append(&mut named.new);
    }

    /// It has completed. Returns how many transactions it lacks that hints had named before it was sent: they don't exist.
    pub(crate) fn completed(&self, poll: &Snapshot, now_ms: u64) -> usize {
        let mut named = self.0.lock();
        let untrue = std::mem::take(&mut named.old).iter().filter(|xid| !poll.contains(**xid)).count();
        for _ in 0..untrue.min(ENOUGH) {
            named.untrue_ms.push_back(now_ms);
        }
        while named.untrue_ms.len() > ENOUGH {
            named.untrue_ms.pop_front();
        }
        untrue
    }

    /// Numbers of before mean nothing any more.
    pub(crate) fn recover(&self) {
        let mut named = self.0.lock();
        (named.new, named.old) = Default::default();
    }

    /// Whether hints are to be left aside.
    pub(crate) fn is_lost(&self, now_ms: u64) -> bool {
        let untrue_ms = &self.0.lock().untrue_ms;
        let within = |from_ms: u64, to_ms: u64| Duration::from_millis(to_ms.saturating_sub(from_ms)) < MEMORY;
        match (untrue_ms.front(), untrue_ms.back()) {
            (Some(first), Some(last)) if untrue_ms.len() == ENOUGH => {
                within(*first, *last) && within(*last, now_ms)
            }
            _ => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn poll() -> Snapshot {
        Snapshot::all_below(100)
    }

    #[test]
    fn only_what_was_named_before_a_poll_was_sent_must_be_in_it() {
        let belief = Belief::default();
        belief.named(5);
        belief.sending();
        belief.named(900);
        assert_eq!(belief.completed(&poll(), 0), 0, "it came while the poll was under way");
        belief.sending();
        assert_eq!(belief.completed(&poll(), 0), 1);
        belief.sending();
        assert_eq!(belief.completed(&poll(), 0), 0, "told once");
    }

    #[test]
    fn numbers_of_an_epoch_that_has_ended_are_no_lies() {
        let belief = Belief::default();
        belief.named(900);
        belief.sending();
        belief.named(901);
        belief.recover();
        assert_eq!(belief.completed(&poll(), 0), 0);
        belief.sending();
        assert_eq!(belief.completed(&poll(), 0), 0);
    }

    #[test]
    fn what_is_waited_for_takes_little_memory_however_many_are_made_up() {
        let belief = Belief::default();
        (1_000..20_000).for_each(|xid| belief.named(xid));
        belief.sending();
        (20_000..40_000).for_each(|xid| belief.named(xid));
        let named = belief.0.lock();
        assert!(named.new.len() + named.old.len() <= MOST);
    }
}
