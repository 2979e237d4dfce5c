//! The keys that one read leads, on their way to L2 and to the loader.

use std::collections::HashSet;
use std::hash::Hash;

use tokio::time::Instant;

use super::flight::Leader;
use super::gather::Fits;
use crate::coherence::ReadStart;
use crate::coherence::token::Token;
use crate::read::Wish;
use crate::trace::Trace;

/// A key that a reader leads.
pub(super) struct LedKey<K: Hash + Eq, T> {
    pub(super) text: String,
    pub(super) leader: Leader<K, T>,
}

/// The keys that one read leads.
pub(super) struct Led<K: Hash + Eq, T> {
    pub(super) keys: Vec<LedKey<K, T>>,
    /// From before it waited.
    pub(super) start: ReadStart,
    pub(super) wish: Wish,
    pub(super) trace: Trace,
    /// Since when it waits for a load.
    pub(super) asked: Instant,
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

impl<K: Hash + Eq + Clone, T: Clone> Led<K, T> {
    pub(super) fn new(
        keys: Vec<LedKey<K, T>>,
        start: ReadStart,
        wish: Wish,
        trace: &Trace,
        asked: Instant,
    ) -> Self {
        Self { keys, start, wish, trace: trace.clone(), asked }
    }

    /// Each key, with the start of its read.
    pub(super) fn each(self) -> impl Iterator<Item = (LedKey<K, T>, ReadStart)> {
        self.keys.into_iter().map(move |key| (key, self.start))
    }

    fn terms(&self) -> Terms {
        let ReadStart { epoch, era, .. } = self.start;
        Terms { epoch, era, source: self.wish.source, token: self.wish.token_in(epoch, era) }
    }

    /// Pieces of so many keys at most.
    pub(super) fn cut(mut self, most: usize) -> Vec<Self> {
        let mut pieces = Vec::new();
        while self.keys.len() > most {
            let rest = self.keys.split_off(most);
            pieces.push(Self {
                keys: std::mem::replace(&mut self.keys, rest),
                trace: self.trace.clone(),
                ..self
            });
        }
        pieces.push(self);
        pieces
    }

    /// Whether somebody waits for any of them.
    pub(super) fn is_awaited(&self) -> bool {
        self.keys.iter().any(|led| led.leader.is_awaited())
    }

    /// Keeps what somebody waits for. Whether that is anything.
    pub(super) fn retain_awaited(&mut self) -> bool {
        self.keys.retain(|led| led.leader.is_awaited());
        !self.keys.is_empty()
    }
}

/// What goes together in one call of the loader.
pub(super) struct Call<K> {
    most: usize,
    terms: Option<Terms>,
    keys: HashSet<K>,
}

impl<K: Hash + Eq + Clone> Call<K> {
    /// Of so many keys at most. One read's keys stay together, however many they are.
    pub(super) fn new(most: usize) -> Self {
        Self { most, terms: None, keys: HashSet::new() }
    }

    /// Whether these go along, from the first that is asked about on.
    pub(super) fn fits<T: Clone>(&mut self, led: &Led<K, T>) -> Fits {
        if !self.keys.is_empty() && self.keys.len() + led.keys.len() > self.most {
            return Fits::Full;
        }
        // One that was given up may come back to its key, which is another's by now. In one call one of the two would be told that there
        // is no row.
        let again = led.keys.iter().any(|led| self.keys.contains(&led.leader.key));
        if again || *self.terms.get_or_insert_with(|| led.terms()) != led.terms() {
            return Fits::No;
        }
        self.keys.extend(led.keys.iter().map(|led| led.leader.key.clone()));
        Fits::Yes
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use super::super::flight::Flights;
    use super::*;

    fn led(flights: &Arc<Flights<u64, u8>>, keys: &[u64], era: u64, source: bool) -> Led<u64, u8> {
        let trace = Trace::current();
        let now = Instant::now();
        let key = |key: &u64| LedKey {
            text: key.to_string(),
            leader: flights.join(key, &trace.origin(), now, Duration::ZERO).0.unwrap(),
        };
        let start = ReadStart { epoch: 1, era, cache_epoch: 0, poll: None };
        Led::new(keys.iter().map(key).collect(), start, Wish { source, ..Wish::NONE }, &trace, now)
    }

    #[test]
    fn only_like_goes_with_like_and_no_key_twice() {
        let (flights, others) = (Flights::new(), Flights::new());
        let mut call = Call::new(4);
        assert_eq!(call.fits(&led(&flights, &[1, 2], 7, false)), Fits::Yes);
        assert_eq!(call.fits(&led(&flights, &[3], 8, false)), Fits::No, "of another era");
        assert_eq!(call.fits(&led(&flights, &[4], 7, true)), Fits::No, "for the primary");
        assert_eq!(call.fits(&led(&others, &[5, 2], 7, false)), Fits::No, "a key that was given up");
        assert_eq!(call.fits(&led(&flights, &[6, 7], 7, false)), Fits::Yes);
        assert_eq!(call.fits(&led(&flights, &[8], 7, false)), Fits::Full);
        assert_eq!(Call::new(2).fits(&led(&flights, &[10, 11, 12], 7, false)), Fits::Yes, "one read");
    }
}
