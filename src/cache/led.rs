//! The keys that one read leads, on their way to L2 and to the loader.

use std::sync::Arc;

use tokio::time::Instant;

use super::flight::Leader;
use super::gather::Fits;
use crate::coherence::ReadStart;
use crate::coherence::buckets::Slot;
use crate::coherence::token::Token;
use crate::read::Wish;
use crate::shared::fills::Claim;
use crate::trace::Trace;

/// What most reads have one of: then it is where it is used, and no memory has to be asked for.
pub(super) type Few<T> = smallvec::SmallVec<[T; 1]>;

/// A key that a reader leads.
pub(super) struct LedKey<K, T> {
    pub(super) text: String,
    pub(super) slot: Slot,
    pub(super) leader: Leader<K, T>,
}

/// The keys that one read leads.
pub(super) struct Led<K, T> {
    pub(super) keys: Few<LedKey<K, T>>,
    /// From before it waited.
    pub(super) start: ReadStart,
    pub(super) wish: Wish,
    pub(super) trace: Trace,
    /// Since when it waits for a look-up, or for a load.
    pub(super) asked: Instant,
    /// Where this instance loads these keys for all.
    pub(super) claim: Option<Arc<Claim>>,
}

/// What is asked of the loader in one call: where a replica lagged behind, of the primary.
pub(super) struct Piece<K, T> {
    pub(super) led: Vec<Led<K, T>>,
    pub(super) primary: bool,
}

/// What the keys of one call of the loader have in common. A replica's answer is judged by it, and one that lacks a token's write is
/// asked for again: keys that ask for no more don't wait for that.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Terms {
    epoch: u64,
    era: u64,
    source: bool,
    token: Option<(Token, u64)>,
}

impl<K, T> Led<K, T> {
    pub(super) fn new(
        keys: Few<LedKey<K, T>>,
        start: ReadStart,
        wish: Wish,
        trace: &Trace,
        asked: Instant,
    ) -> Self {
        Self { keys, start, wish, trace: trace.clone(), asked, claim: None }
    }

    /// How many keys.
    pub(super) fn count(&self) -> usize {
        self.keys.len()
    }

    fn terms(&self) -> Terms {
        let ReadStart { epoch, era, .. } = self.start;
        Terms { epoch, era, source: self.wish.source, token: self.wish.token_in(epoch, era) }
    }

    /// Pieces of so many keys at most.
    pub(super) fn cut(mut self, most: usize) -> Vec<Self> {
        let (mut pieces, mut keys) = (Vec::new(), std::mem::take(&mut self.keys).into_iter());
        while keys.len() > most {
            let keys = keys.by_ref().take(most).collect();
            pieces.push(Self { keys, trace: self.trace.clone(), claim: self.claim.clone(), ..self });
        }
        pieces.push(Self { keys: keys.collect(), ..self });
        pieces
    }

    /// Whether a key of these may be another's by now.
    fn is_given_up(&self) -> bool {
        self.keys.iter().any(|led| led.leader.is_given_up())
    }

    /// Keeps what somebody waits for. Whether that is anything.
    pub(super) fn retain_awaited(&mut self) -> bool {
        self.keys.retain(|led| led.leader.is_awaited());
        !self.keys.is_empty()
    }
}

/// What goes together in one call of the loader.
pub(super) struct Call {
    most: usize,
    keys: usize,
    terms: Option<Terms>,
    is_closed: bool,
}

impl Call {
    /// Of so many keys at most. One read's keys stay together, however many they are.
    pub(super) const fn new(most: usize) -> Self {
        Self { most, keys: 0, terms: None, is_closed: false }
    }

    /// Whether these go along, from the first that is asked about on.
    pub(super) fn fits<K, T>(&mut self, led: &Led<K, T>) -> Fits {
        if self.is_closed || (self.keys > 0 && self.keys + led.keys.len() > self.most) {
            return Fits::Full;
        }
        // In one call with whose key it is by now, one of the two would be told that there is no row.
        let given_up = led.is_given_up();
        let goes_along = self.keys == 0 || !given_up;
        if !goes_along || *self.terms.get_or_insert_with(|| led.terms()) != led.terms() {
            return Fits::No;
        }
        self.is_closed = given_up;
        self.keys += led.keys.len();
        Fits::Yes
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::flight::Flights;
    use super::*;

    fn led(flights: &Arc<Flights<u64, u8>>, keys: &[u64], era: u64, source: bool) -> Led<u64, u8> {
        let trace = Trace::current();
        let now = Instant::now();
        let key = |key: &u64| LedKey {
            text: key.to_string(),
            slot: Slot::default(),
            leader: flights.join(key, &trace.origin(), now, Duration::ZERO).0.unwrap(),
        };
        let start = ReadStart { epoch: 1, era, cache_epoch: 0, poll: None };
        Led::new(keys.iter().map(key).collect(), start, Wish { source, ..Wish::NONE }, &trace, now)
    }

    #[tokio::test(start_paused = true)]
    async fn only_like_goes_with_like_and_no_key_twice() {
        let flights = Flights::new();
        let mut call = Call::new(4);
        assert_eq!(call.fits(&led(&flights, &[1, 2], 7, false)), Fits::Yes);
        assert_eq!(call.fits(&led(&flights, &[3], 8, false)), Fits::No, "of another era");
        assert_eq!(call.fits(&led(&flights, &[4], 7, true)), Fits::No, "for the primary");
        let given_up = led(&flights, &[5, 2_000], 7, false);
        let (_, waiter) = flights.join(&5, &Trace::current().origin(), Instant::now(), Duration::ZERO);
        assert_eq!(flights.outcome(waiter).await, None);
        assert_eq!(call.fits(&given_up), Fits::No, "a key that is another's");
        assert_eq!(call.fits(&led(&flights, &[6, 7], 7, false)), Fits::Yes);
        assert_eq!(call.fits(&led(&flights, &[8], 7, false)), Fits::Full);
        assert_eq!(Call::new(2).fits(&led(&flights, &[10, 11, 12], 7, false)), Fits::Yes, "one read");
        let mut alone = Call::new(4);
        assert_eq!(alone.fits(&given_up), Fits::Yes);
        assert_eq!(alone.fits(&led(&flights, &[13], 7, false)), Fits::Full);
    }
}
