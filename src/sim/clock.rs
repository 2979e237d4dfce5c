//! A clock that follows tokio's, so that paused time is virtual time.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

use crate::clock::Clock;

/// 2023-11-14, as good as any.
const UNIX_MS: u64 = 1_700_000_000_000;
/// No instance is born at zero.
const START_MS: u64 = 1_000;

/// The clock of one instance. Its wall clock is the same for all that began in one [`Sim`](super::Sim).
#[derive(Debug)]
pub struct SimClock {
    origin: Instant,
    ahead_ms: AtomicU64,
    wall_ahead_ms: AtomicU64,
    frozen_ms: Mutex<Option<u64>>,
}

impl SimClock {
    /// A clock that begins now.
    #[must_use]
    pub fn new() -> Self {
        Self::since(Instant::now())
    }

    pub(super) fn since(origin: Instant) -> Self {
        Self {
            origin,
            ahead_ms: AtomicU64::new(0),
            wall_ahead_ms: AtomicU64::new(0),
            frozen_ms: Mutex::new(None),
        }
    }

    /// Puts the clock forward, as for a machine that wakes: time has passed, and nobody's timers have fired.
    pub fn jump(&self, by: Duration) {
        self.ahead_ms.fetch_add(millis(by), Ordering::AcqRel);
    }

    /// Puts the wall clock forward, as for a machine whose date is wrong.
    pub fn jump_wall(&self, by: Duration) {
        self.wall_ahead_ms.fetch_add(millis(by), Ordering::AcqRel);
    }

    /// Stops the clock. No clock of a real machine does, save that of a guest that was suspended.
    pub fn freeze(&self) {
        let now = self.now_ms();
        *self.frozen_ms.lock() = Some(now);
    }

    /// Lets a stopped clock go on, with the time of all others.
    pub fn thaw(&self) {
        *self.frozen_ms.lock() = None;
    }

    fn elapsed_ms(&self) -> u64 {
        millis(self.origin.elapsed())
    }
}

impl Clock for SimClock {
    fn now_ms(&self) -> u64 {
        let frozen = *self.frozen_ms.lock();
        frozen.unwrap_or_else(|| START_MS + self.elapsed_ms() + self.ahead_ms.load(Ordering::Acquire))
    }

    fn unix_ms(&self) -> u64 {
        UNIX_MS + self.elapsed_ms() + self.wall_ahead_ms.load(Ordering::Acquire)
    }
}

impl Default for SimClock {
    fn default() -> Self {
        Self::new()
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
