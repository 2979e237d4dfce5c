//! What is known of tokens that no cached value can be compared with: of another epoch, or ahead of all that was polled.
//!
//! Clients hold them, and may make them up. Each costs its first reader a poll that all readers share, not a load for each read.

use std::collections::VecDeque;
use std::time::Duration;

use super::Coherence;
use crate::instance::Token;
use crate::watched::Watched;

/// The epoch of a write that was made in none that it knew: after a crash, before anybody had polled. A poll that is sent later brings
/// it, whatever the epoch is called; the next crash may have such writes too, so this one is never known to have ended.
pub(crate) const NO_EPOCH: u64 = 0;
/// Epochs that are known to have ended. Of more the oldest are asked for again.
const EPOCHS: usize = 64;
/// How long after a token of a write that did not exist others must be in a poll before anything is loaded for them.
const WARY: Duration = Duration::from_secs(10);
/// Writes that were told of. Of more the oldest are forgotten, and their tokens wait for a poll.
const TOLD: usize = 1_024;
/// For so long: by then a poll has brought them, or they never were.
const TOLD_FOR: Duration = Duration::from_secs(1);

#[derive(Debug, Default)]
pub(crate) struct Tokens(Watched<Known>);

#[derive(Debug, Default)]
struct Known {
    ended: VecDeque<u64>,
    /// By the clock of the instance.
    untrue_ms: Option<u64>,
    /// Writes of this instance, and those that hints have named, since when, the newest last. A tenant can't add to them.
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
        self.0.update(|known| {
            if !known.ended.contains(&epoch) {
                known.ended.push_back(epoch);
            }
            if known.ended.len() > EPOCHS {
                known.ended.pop_front();
            }
        });
    }

    /// The primary does not have the write of a token, though whoever has a token got it before the primary was asked.
    pub(crate) fn was_untrue(&self, now_ms: u64) {
        self.0.update(|known| known.untrue_ms = Some(now_ms));
    }

    /// A write was announced here, or by a hint that is believed. Its token need not wait for a poll: what is served for it must
    /// contain it all the same, and where it was made up after all, that is one load.
    pub(crate) fn told(&self, token: Token, now_ms: u64) {
        let told_for = |at_ms: u64| Duration::from_millis(now_ms.saturating_sub(at_ms));
        self.0.update(|known| {
            while known.told.len() >= TOLD
                || known.told.front().is_some_and(|(_, at)| told_for(*at) > TOLD_FOR)
            {
                known.told.pop_front();
            }
            known.told.push_back((token, now_ms));
        });
    }

    /// Waits until the write is told of. That may never be.
    pub(crate) async fn until_told(&self, token: Token) {
        self.0.wait_for(|known| known.is_told(token).then_some(())).await;
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
        let now_ms = self.clock.now_ms();
        self.tokens.0.look(|known| {
            if token.epoch != epoch {
                return if known.ended.contains(&token.epoch) { Asks::Nothing } else { Asks::Unknown };
            }
            let lately = |at_ms: u64| Duration::from_millis(now_ms.saturating_sub(at_ms)) < WARY;
            let wary = known.untrue_ms.is_some_and(lately);
            let ahead = || self.buckets.poll().is_some_and(|poll| !poll.contains(token.xid));
            if wary && ahead() && !known.is_told(token) { Asks::Unknown } else { Asks::Write }
        })
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU64, Ordering};

    use super::*;
    use crate::clock::Clock;
    use crate::coherence::snapshot::Snapshot;

    #[derive(Debug, Default)]
    struct At(AtomicU64);

    impl Clock for At {
        fn now_ms(&self) -> u64 {
            self.0.load(Ordering::Relaxed)
        }

        fn unix_ms(&self) -> u64 {
            self.now_ms()
        }
    }

    #[test]
    fn after_a_token_that_was_made_up_those_that_no_poll_contains_wait_for_one_for_ten_seconds() {
        let clock = Arc::new(At::default());
        let coherence = Coherence::new(Arc::<At>::clone(&clock), Duration::from_secs(1), 0);
        coherence.buckets.complete(Snapshot::all_below(100), std::iter::empty());
        let asks = |xid| coherence.asks(Token { epoch: 0, xid });
        assert_eq!((asks(50), asks(900)), (Asks::Write, Asks::Write));
        coherence.tokens.was_untrue(0);
        assert_eq!((asks(50), asks(900)), (Asks::Write, Asks::Unknown));
        clock.0.store(9_999, Ordering::Relaxed);
        assert_eq!(asks(900), Asks::Unknown);
        clock.0.store(10_000, Ordering::Relaxed);
        assert_eq!(asks(900), Asks::Write);
    }

    #[test]
    fn epochs_that_have_ended_take_little_memory_and_none_is_not_one_of_them() {
        let coherence = Coherence::new(Arc::new(At::default()), Duration::from_secs(1), 0);
        coherence.lease.enter(1);
        for epoch in 0..1_000 {
            coherence.tokens.ended(epoch);
        }
        assert_eq!(coherence.tokens.0.look(|known| known.ended.len()), EPOCHS);
        let asks = |epoch| coherence.asks(Token { epoch, xid: 5 });
        assert_eq!((asks(999), asks(2)), (Asks::Nothing, Asks::Unknown));
        coherence.tokens.ended(NO_EPOCH);
        assert_eq!(asks(NO_EPOCH), Asks::Unknown);
    }
}
