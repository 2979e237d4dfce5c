//! What is known of tokens that no cached value can be compared with: of another epoch, or ahead of all that
//! was polled.
//!
//! Clients hold them, and may make them up. Each costs its first reader a poll that all readers share, not a
//! load for each read.

use std::collections::VecDeque;
use std::time::Duration;

use super::token::Token;
use crate::sync::Mutex;

/// The epoch of a write that was made in none that it knew: after a crash, before anybody had polled. A poll
/// that is sent later brings it, whatever the epoch is called; the next crash may have such writes too, so
/// this one is never known to have ended.
pub(crate) const NO_EPOCH: u64 = 0;
/// Epochs that are known to have ended. Of more the oldest are asked for again.
const EPOCHS: usize = 64;
/// How long after a token of a write that did not exist others must be in a poll before anything is loaded
/// for them.
const WARY: Duration = Duration::from_secs(10);
/// Writes that were told of. Of more the oldest are forgotten, and their tokens wait for a poll.
const TOLD: usize = 1_024;
/// For so long: by then a poll has brought them, or they never were.
const TOLD_FOR: Duration = Duration::from_secs(1);

#[derive(Debug, Default)]
pub(crate) struct Tokens(Mutex<Known>);

#[derive(Debug, Default)]
struct Known {
    ended: VecDeque<u64>,
    /// By the clock of the instance.
    untrue_ms: Option<u64>,
    /// Writes of this instance, and those that hints have named, since when, the newest last. A tenant can't
    /// add to them.
    told: VecDeque<(Token, u64)>,
}

impl Known {
    fn is_told(&self, token: Token) -> bool {
        self.told.iter().rev().any(|(told, _)| *told == token)
    }
}

impl Tokens {
    /// Numbers of this epoch are given to nobody any more, or never were.
    pub(crate) fn ended(&self, epoch: u64) {
        if epoch == NO_EPOCH {
            return;
        }
        let mut known = self.0.lock();
        if !known.ended.contains(&epoch) {
            known.ended.push_back(epoch);
        }
        if known.ended.len() > EPOCHS {
            known.ended.pop_front();
        }
    }

    /// The primary does not have the write of a token, though whoever has a token got it before the primary
    /// was asked.
    pub(crate) fn was_untrue(&self, now_ms: u64) {
        self.0.lock().untrue_ms = Some(now_ms);
    }

    /// A write was announced here, or by a hint that is believed. Its token need not wait for a poll: what is
    /// served for it must contain it all the same, and where it was made up after all, that is one load.
    pub(crate) fn told(&self, token: Token, now_ms: u64) {
        let told_for = |at_ms: u64| Duration::from_millis(now_ms.saturating_sub(at_ms));
        let mut known = self.0.lock();
        while known.told.len() >= TOLD || known.told.front().is_some_and(|(_, at)| told_for(*at) > TOLD_FOR) {
            known.told.pop_front();
        }
        known.told.push_back((token, now_ms));
    }

    pub(crate) fn is_told(&self, token: Token) -> bool {
        self.0.lock().is_told(token)
    }

    /// What a token asks of a value in this epoch. `ahead` says whether the last poll lacks its write.
    pub(crate) fn asks(&self, token: Token, epoch: u64, ahead: impl FnOnce() -> bool, now_ms: u64) -> Asks {
        let known = self.0.lock();
        if token.epoch != epoch {
            return if known.ended.contains(&token.epoch) { Asks::Nothing } else { Asks::Unknown };
        }
        let lately = |at_ms: u64| Duration::from_millis(now_ms.saturating_sub(at_ms)) < WARY;
        let wary = known.untrue_ms.is_some_and(lately);
        if wary && ahead() && !known.is_told(token) { Asks::Unknown } else { Asks::Write }
    }
}

/// What a token asks of a value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Asks {
    /// That it is fresh. The epoch has ended: what it wrote is in the database, or was lost with it.
    Nothing,
    /// That it is fresh: a completed poll of this era contains the write.
    Polled(u64),
    /// That it contains the write.
    Write,
    /// Nobody can tell before another poll.
    Unknown,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn after_a_token_that_was_made_up_those_that_no_poll_contains_wait_for_one_for_ten_seconds() {
        let tokens = Tokens::default();
        let asks = |xid, now_ms| tokens.asks(Token::of_write(0, xid), 0, || xid >= 100, now_ms);
        assert_eq!((asks(50, 0), asks(900, 0)), (Asks::Write, Asks::Write));
        tokens.was_untrue(0);
        assert_eq!((asks(50, 0), asks(900, 0)), (Asks::Write, Asks::Unknown));
        assert_eq!((asks(900, 9_999), asks(900, 10_000)), (Asks::Unknown, Asks::Write));
    }

    #[test]
    fn epochs_that_have_ended_take_little_memory_and_none_is_not_one_of_them() {
        let tokens = Tokens::default();
        for epoch in 0..1_000 {
            tokens.ended(epoch);
        }
        assert_eq!(tokens.0.lock().ended.len(), EPOCHS);
        let asks = |epoch| tokens.asks(Token::of_write(epoch, 5), 1, || false, 0);
        assert_eq!((asks(999), asks(2)), (Asks::Nothing, Asks::Unknown));
        tokens.ended(NO_EPOCH);
        assert_eq!(asks(NO_EPOCH), Asks::Unknown);
    }
}
