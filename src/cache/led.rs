//! The keys that one read leads, on their way to L2 and to the loader.

use std::hash::Hash;

use tokio::time::Instant;

use super::flight::Leader;
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
pub(super) struct Terms {
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

    pub(super) fn terms(&self) -> Terms {
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
