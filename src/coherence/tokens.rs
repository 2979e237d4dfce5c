//! What is known of tokens that no cached value can be compared with: of another epoch, or ahead of all that was polled.
//!
//! Clients hold them, and may make them up. Each costs its first reader a poll that all readers share, not a load for each read.

use std::collections::VecDeque;
use std::time::Duration;

use parking_lot::Mutex;

use super::Coherence;
use crate::instance::Token;

/// The epoch of a write that was made in none that it knew: after a crash, before anybody had polled. A poll that is sent later brings
/// it, whatever the epoch is called; the next crash may have such writes too, so this one is never known to have ended.
pub(crate) const NO_EPOCH: u64 = 0;
/// Epochs that are known to have ended. Of more the oldest are asked for again.
const EPOCHS: usize = 64;
/// How long after a token of a write that did not exist others must be in a poll before anything is loaded for them.
const WARY: Duration = Duration::from_secs(10);

#[derive(Debug, Default)]
pub(crate) struct Tokens(Mutex<Known>);

#[derive(Debug, Default)]
struct Known {
    ended: VecDeque<u64>,
    /// By the clock of the instance.
    untrue_ms: Option<u64>,
}

impl Tokens {
    /// Numbers of this epoch are given to nobody any more, or never were.
    pub(crate) fn ended(&self, epoch: u64) {
        if epoch == NO_EPOCH {
            return;
        }
        let ended = &mut self.0.lock().ended;
        if !ended.contains(&epoch) {
            ended.push_back(epoch);
        }
        if ended.len() > EPOCHS {
            ended.pop_front();
        }
    }

    /// The primary does not have the write of a token, though whoever has a token got it before the primary was asked.
    pub(crate) fn was_untrue(&self, now_ms: u64) {
        self.0.lock().untrue_ms = Some(now_ms);
    }
}

/// What a token asks of a value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Asks {
    /// That it is fresh. The epoch has ended: what it wrote is in the database, or was lost with it.
    Nothing,
    /// That it contains the write.
    Write,
    /// Nobody can tell before another poll.
    Unknown,
}

impl Coherence {
    pub(crate) fn asks(&self, token: Token) -> Asks {
        // An epoch that has ended does not come back. Before the lease: what is fresh from here on is of a later one.
        let epoch = self.epoch();
        let known = self.tokens.0.lock();
        if token.epoch != epoch {
            return if known.ended.contains(&token.epoch) { Asks::Nothing } else { Asks::Unknown };
        }
        let now_ms = self.clock.now_ms();
        let lately = |at_ms: u64| Duration::from_millis(now_ms.saturating_sub(at_ms)) < WARY;
        let wary = known.untrue_ms.is_some_and(lately);
        if wary && self.buckets.poll().is_some_and(|poll| !poll.contains(token.xid)) {
            Asks::Unknown
        } else {
            Asks::Write
        }
    }
}
