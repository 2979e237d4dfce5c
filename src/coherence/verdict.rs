//! What becomes of a value, from what is known of it.

use std::time::Duration;

use super::lease::Held;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Judged {
    Fresh,
    /// It contains all that is known here, but the lease ended this long ago.
    Unverified(Duration),
    /// It misses a write that is known here.
    Refused,
}

/// What a lease says at a time, of a value that misses nothing that is known.
pub(crate) fn freshness(held: Held, now_ms: u64) -> Judged {
    if held.valid_at(now_ms) {
        Judged::Fresh
    } else {
        Judged::Unverified(Duration::from_millis(now_ms.saturating_sub(held.deadline_ms())))
    }
}
