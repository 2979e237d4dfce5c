//! The last transactions that have invalidated something of a cache or topic: to name what a value may depend on unsaid.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

const REMEMBERED: usize = 64;

/// Of whatever epoch: it proves nothing, and nothing rests on it.
#[derive(Debug)]
pub(crate) struct Recent {
    next: AtomicUsize,
    xids: [AtomicU64; REMEMBERED],
}

impl Recent {
    pub(crate) const fn new() -> Self {
        Self { next: AtomicUsize::new(0), xids: [const { AtomicU64::new(0) }; REMEMBERED] }
    }

    pub(crate) fn add(&self, xid: u64) {
        // Of many keys in one transaction.
        let last = self.next.load(Ordering::Relaxed).wrapping_sub(1) % REMEMBERED;
        if self.xids[last].load(Ordering::Relaxed) == xid {
            return;
        }
        let at = self.next.fetch_add(1, Ordering::Relaxed) % REMEMBERED;
        self.xids[at].store(xid, Ordering::Relaxed);
    }

    pub(crate) fn any(&self, is: impl Fn(u64) -> bool) -> bool {
        self.xids.iter().map(|xid| xid.load(Ordering::Relaxed)).any(|xid| xid > 0 && is(xid))
    }
}
