//! Tiers of a cache that are switched while it runs: see `docs/PROTOCOL.md`, "Switches".
//!
//! No hit of L1 looks at it. Where L1 goes off, what it holds is let go as by a clearing of the cache, and nothing comes any more.
//! Invalidations are recorded whatever is switched, so nothing that comes back later can be older than what is known.

use std::sync::atomic::{AtomicU8, Ordering};

use super::{Core, Key, Value};
use crate::log::switch::TierMode;

/// Entries that are let go before others get their turn.
const AT_A_TIME: usize = 8_192;

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

    pub(super) fn reads_remote(&self) -> bool {
        self.remote() != TierMode::Off
    }

    pub(super) fn fills_remote(&self) -> bool {
        self.remote() == TierMode::On
    }
}

impl<K: Key, V: Value> Core<K, V> {
    /// Whether it is new or not: each poll tells.
    pub(super) fn switch_to(&self, local: TierMode, remote: TierMode) {
        self.switched.remote.store(remote as u8, Ordering::Release);
        let before = self.switched.local.swap(local as u8, Ordering::AcqRel);
        match local {
            TierMode::Off if before != local as u8 => {
                // From now on no hit serves what there is.
                self.whole.let_go();
                self.free();
            }
            _ => self.whole.set_open(local == TierMode::On),
        }
    }

    /// Frees what L1 holds of epochs that have ended, and stale values, in the background.
    fn free(&self) {
        if let Some(stale) = &self.stale {
            stale.held.invalidate_all();
        }
        let Some(core) = self.me.upgrade() else { return };
        self.shared.spawn(async move {
            while core.local.free_before(core.whole.epoch(), AT_A_TIME) {
                tokio::task::yield_now().await;
            }
        });
    }
}
