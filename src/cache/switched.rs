//! Tiers of a cache that are switched while it runs: see `docs/PROTOCOL.md`, "Switches".
//!
//! No hit of L1 looks at it. Where L1 goes off, what it holds is let go as by a clearing of the cache, and nothing comes any more.
//! Invalidations are recorded whatever is switched, so nothing that comes back later can be older than what is known.

use std::sync::atomic::{AtomicU8, Ordering};

use crate::log::switch::TierMode;

/// What the tiers do.
#[derive(Debug, Default)]
pub(super) struct Switched {
    local: AtomicU8,
    remote: AtomicU8,
}

fn mode(tier: &AtomicU8) -> TierMode {
    match tier.load(Ordering::Acquire) {
        0 => TierMode::On,
        1 => TierMode::ReadOnly,
        _ => TierMode::Off,
    }
}

impl Switched {
    pub(super) fn local(&self) -> TierMode {
        mode(&self.local)
    }

    pub(super) fn remote(&self) -> TierMode {
        mode(&self.remote)
    }

    /// Sets both. Whether L1 was off before.
    pub(super) fn set(&self, local: TierMode, remote: TierMode) -> bool {
        self.remote.store(remote as u8, Ordering::Release);
        self.local.swap(local as u8, Ordering::AcqRel) == TierMode::Off as u8
    }

    pub(super) fn reads_remote(&self) -> bool {
        self.remote() != TierMode::Off
    }

    pub(super) fn fills_remote(&self) -> bool {
        self.remote() == TierMode::On
    }
}
