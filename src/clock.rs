//! The clock seam. Durations and leases run on a clock that counts the time a machine sleeps.

use std::fmt::Debug;
use std::time::{SystemTime, UNIX_EPOCH};

/// The time, as an instance sees it.
pub trait Clock: Debug + Send + Sync + 'static {
    /// Milliseconds on a clock that never goes back and counts the time that the machine sleeps.
    fn now_ms(&self) -> u64;

    /// Milliseconds since 1970 on the wall clock. Used for times to live in L2, never for coherence.
    fn unix_ms(&self) -> u64;
}

/// The machine's clock: `CLOCK_BOOTTIME` on Linux, `CLOCK_MONOTONIC` on macOS, where it counts sleep.
///
/// Read anew at each call. A value kept by a ticker would be stale just when it matters: after a pause the reader
/// may run before the ticker.
#[derive(Debug, Clone, Copy, Default)]
pub struct SystemClock;

impl Clock for SystemClock {
    fn now_ms(&self) -> u64 {
        #[cfg(any(target_os = "linux", target_os = "android"))]
        const CLOCK: rustix::time::ClockId = rustix::time::ClockId::Boottime;
        #[cfg(not(any(target_os = "linux", target_os = "android")))]
        const CLOCK: rustix::time::ClockId = rustix::time::ClockId::Monotonic;
        let now = rustix::time::clock_gettime(CLOCK);
        now.tv_sec.unsigned_abs() * 1_000 + now.tv_nsec.unsigned_abs() / 1_000_000
    }

    fn unix_ms(&self) -> u64 {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
    }
}
