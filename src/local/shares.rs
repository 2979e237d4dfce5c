//! Shares of L1: what the entries of one group, of one tenant say, may take of it together. Who takes more loses its own
//! oldest entries, and nobody else any.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;

use parking_lot::Mutex;

/// Which group an entry is of, by its key and its value.
pub(crate) type GroupOf<K, V> = Arc<dyn Fn(&K, Option<&V>) -> u64 + Send + Sync>;

/// The groups and what they hold.
pub(super) struct Shares {
    most: u64,
    groups: Mutex<HashMap<u64, Group>>,
}

struct Group {
    bytes: u64,
    entries: usize,
    /// The hashes of keys, the oldest first. They may have gone since, or come again.
    order: VecDeque<u64>,
}

/// Keys that have gone, and are still in the order.
const SLACK: usize = 64;

impl Shares {
    pub(super) fn new(most: u64) -> Self {
        Self { most, groups: Mutex::default() }
    }

    /// An entry comes.
    pub(super) fn came(&self, group: u64, key: u64, weight: u32) {
        let mut groups = self.groups.lock();
        let group =
            groups.entry(group).or_insert_with(|| Group { bytes: 0, entries: 0, order: VecDeque::new() });
        group.bytes += u64::from(weight);
        group.entries += 1;
        group.order.push_back(key);
    }

    /// The oldest key of a group that holds too much: it has to go.
    pub(super) fn over(&self, group: u64) -> Option<u64> {
        let mut groups = self.groups.lock();
        let group = groups.get_mut(&group).filter(|group| group.bytes > self.most)?;
        // The last one may stay, however large.
        if group.entries > 1 { group.order.pop_front() } else { None }
    }

    /// An entry has gone, for whatever reason.
    pub(super) fn went(&self, of: u64, weight: u32) {
        let mut groups = self.groups.lock();
        let Some(group) = groups.get_mut(&of) else { return };
        // The application may group an entry otherwise by now.
        group.bytes = group.bytes.saturating_sub(u64::from(weight));
        group.entries = group.entries.saturating_sub(1);
        if group.entries == 0 {
            groups.remove(&of);
        }
    }

    /// Forgets keys that have gone, where they are many.
    pub(super) fn tidy(&self, of: u64, is_held: impl Fn(&u64) -> bool) {
        let mut order = {
            let mut groups = self.groups.lock();
            match groups.get_mut(&of) {
                Some(group) if group.order.len() > 2 * group.entries + SLACK => {
                    std::mem::take(&mut group.order)
                }
                _ => return,
            }
        };
        // Without the lock: whoever looks may be told meanwhile of what has gone.
        let mut seen = HashSet::new();
        order.retain(|key| is_held(key) && seen.insert(*key));
        if let Some(group) = self.groups.lock().get_mut(&of) {
            order.append(&mut group.order);
            group.order = order;
        }
    }

    #[cfg(test)]
    pub(super) fn held(&self, group: u64) -> (u64, usize) {
        self.groups.lock().get(&group).map_or((0, 0), |group| (group.bytes, group.order.len()))
    }
}
