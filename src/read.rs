//! What a read asks for and what it answers.

use std::fmt;
use std::num::NonZeroU32;
use std::ops::Deref;
use std::sync::Arc;
use std::time::Duration;

use crate::coherence::snapshot::Rank;
use crate::coherence::token::Token;
use crate::local::Entry;

/// The answer to a read. Dereferences to its [value](Read::value), and shares it with the cache: to keep the value, keep this. Cheap to clone.
#[derive(Debug)]
pub struct Read<V> {
    /// How far it can be trusted.
    pub freshness: Freshness,
    /// Where it came from.
    pub tier: Tier,
    held: Arc<Entry<V>>,
    /// The rank of what was asked for, where the value itself does not show that it contains it. A hit makes one of these, so it is small.
    floor: u64,
}

/// Nothing was asked for but what the value shows.
const NO_FLOOR: u64 = 0;
/// It is of another epoch than the value: no token says both.
const OTHER_EPOCH: u64 = u64::MAX;

impl<V> Read<V> {
    #[inline]
    pub(crate) fn of(held: Arc<Entry<V>>, freshness: Freshness, tier: Tier, floor: Option<Token>) -> Self {
        let floor = floor.map_or(NO_FLOOR, |floor| match held.token() {
            Some(token) if token.epoch == floor.epoch => floor.rank().map_or(OTHER_EPOCH, Rank::number),
            _ => OTHER_EPOCH,
        });
        Self { freshness, tier, held, floor }
    }

    /// The value, or `None` where the source has no such row: that is an answer like any other.
    #[must_use]
    pub fn value(&self) -> Option<&V> {
        self.held.value().as_ref()
    }

    /// What a later read must contain to be no older than this one, of whatever key and on any instance: give it to
    /// [`ReadOptions::at_least`]. It contains what this read has asked for by a token, too. So whoever asks one thing after the other, and sends
    /// the last token that it got, of a write or of a read, reads its own writes and never goes back in time. Of several answers
    /// together, [`Token::of_all`] is the last.
    ///
    /// `None` where nobody knows how new the answer is: it was computed, or is a replica's, or was read by
    /// [several statements](crate::Stamp::as_lower_bound). Then keep the token that you have: that answer is left out of the promise.
    #[must_use]
    pub fn token(&self) -> Option<Token> {
        let token = self.held.token()?;
        match self.floor {
            NO_FLOOR => Some(token),
            OTHER_EPOCH => None,
            // Of one epoch the higher rank contains the other.
            floor => token.rank().map(|rank| Token::of_read(token.epoch, rank.max(Rank::from_number(floor)))),
        }
    }

    pub(crate) fn held(&self) -> &Arc<Entry<V>> {
        &self.held
    }
}

/// How far an answer can be trusted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Freshness {
    /// It misses no write that was visible more than the bound before the read began.
    Fresh,
    /// It is known to miss a write, or may.
    Stale(StaleCause),
    /// It contains every write that this instance knows of, but the log has not been read in time: the lease
    /// ended this long ago.
    Unverified {
        /// How long ago the lease ended.
        since: Duration,
    },
}

/// Why an answer is stale.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum StaleCause {
    /// The loader read a replica that lags behind, also when it was asked for the primary. Or a transaction
    /// whose one snapshot is too old, which can't be told from that. Or another server than the one that the
    /// log is on: an old primary, or for a moment the new one.
    Replica,
    /// It was invalidated so long ago, and its successor is being loaded or could not be:
    /// [`CacheBuilder::stale_while_loading`](crate::CacheBuilder::stale_while_loading). It misses no write that was visible more than that
    /// and the bound before the read began.
    Invalidated {
        /// How long ago.
        since: Duration,
    },
    /// Its time to live was over so long ago, and its successor is being loaded or could not be. As for what was invalidated.
    Expired {
        /// How long ago.
        since: Duration,
    },
}

/// Where an answer came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Tier {
    /// This process.
    Local,
    /// Redis.
    Remote,
    /// The loader.
    Load,
}

impl Tier {
    #[cfg(feature = "otel")]
    pub(crate) const ALL: [Self; 3] = [Self::Local, Self::Remote, Self::Load];

    /// As in documents, headers and metrics.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Local => "l1",
            Self::Remote => "l2",
            Self::Load => "load",
        }
    }
}

/// `l1`, `l2` or `load`, as in documents, headers and metrics.
impl fmt::Display for Tier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl Freshness {
    /// Whether it was served instead of waiting for its successor.
    pub(crate) const fn is_stale_by_choice(self) -> bool {
        matches!(self, Self::Stale(StaleCause::Invalidated { .. } | StaleCause::Expired { .. }))
    }

    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Fresh => "fresh",
            Self::Stale(_) => "stale",
            Self::Unverified { .. } => "unverified",
        }
    }
}

/// Options of one read.
#[derive(Debug, Clone, Copy, Default)]
#[non_exhaustive]
pub struct ReadOptions {
    /// See [`ReadOptions::at_least`].
    pub at_least: Option<Token>,
    /// See [`ReadOptions::within`].
    pub within: Option<Duration>,
    /// See [`ReadOptions::stale_after`].
    pub stale_after: Option<Duration>,
}

impl ReadOptions {
    /// Serve nothing older than the write that gave this token: one reads one's own writes, on any instance.
    ///
    /// What the write did not touch is served from L1 once a poll of the log contains the write. Where none does yet, readers wait
    /// for the next one together.
    #[must_use]
    pub const fn at_least(token: Token) -> Self {
        Self { at_least: Some(token), within: None, stale_after: None }
    }

    /// Miss no write that was visible more than `limit` before the read began: the promise with another bound.
    ///
    /// L1 serves if the log was polled so lately. Else readers wait together for one poll, which takes about as long as a query. Where
    /// none comes in the time of a poll, only what the primary says itself is called fresh. No limit longer than the
    /// instance's bound makes a read weaker.
    #[must_use]
    pub const fn within(limit: Duration) -> Self {
        Self { at_least: None, within: Some(limit), stale_after: None }
    }

    /// Miss no write that was visible when the read began, whoever made it. As [`ReadOptions::within`] no time at all.
    ///
    /// Reads of one key are linearizable, where the loader reads the primary. A standby may show a write before the primary does.
    #[must_use]
    pub const fn latest() -> Self {
        Self::within(Duration::ZERO)
    }

    /// Wait for this long before a [stale answer](crate::CacheBuilder::stale_while_loading) is served, whatever the cache says. No cache serves
    /// one that doesn't [keep them](crate::CacheBuilder::stale_while_loading).
    #[must_use]
    pub const fn stale_after(limit: Duration) -> Self {
        Self { at_least: None, within: None, stale_after: Some(limit) }
    }

    /// Serve no stale answer, however long the load takes. Reads that ask for more than the bound never get one.
    #[must_use]
    pub const fn never_stale() -> Self {
        Self::stale_after(Duration::MAX)
    }

    /// The same, and nothing older than the write that gave this token.
    #[must_use]
    pub const fn and_at_least(mut self, token: Token) -> Self {
        self.at_least = Some(token);
        self
    }
}

/// How long one read waits before it gets a stale answer, in milliseconds; for ever where it shall get none. Small, for it is a part of
/// each read that goes below L1.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct SoftTimeout(NonZeroU32);

impl SoftTimeout {
    pub(crate) const NEVER: Self = Self(NonZeroU32::MAX);

    /// What is longer than 49 days is for ever.
    pub(crate) fn of(limit: Duration) -> Self {
        let ms = u32::try_from(limit.as_millis()).unwrap_or(u32::MAX);
        Self(NonZeroU32::MIN.saturating_add(ms))
    }

    pub(crate) fn limit(self) -> Duration {
        Duration::from_millis(u64::from(self.0.get() - 1))
    }
}

/// What a read asks for beyond the bound, as far as it is not granted yet.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Wish {
    /// What was asked for by a token. What is stale must contain that, whatever epoch it is of.
    pub(crate) asked: Option<Token>,
    /// The same, where what is fresh may not contain it.
    pub(crate) token: Option<Token>,
    /// The era in which a poll has: what is fresh, or accepted in that era, contains it by now. What is flagged as stale may not.
    pub(crate) polled: Option<u64>,
    /// A lease that rests on a poll sent less than this ago.
    pub(crate) within: Option<Duration>,
    /// No poll came that would have granted it: only what the primary says itself will do.
    pub(crate) source: bool,
    /// The rank of a poll that has granted it: what any later answer must contain to contain it too.
    pub(crate) floor: Option<Token>,
    /// It replaces what is known to be old, or soon will be.
    pub(crate) refreshes: bool,
    /// Where it is not as the cache says.
    pub(crate) soft_timeout: Option<SoftTimeout>,
}

impl Wish {
    pub(crate) const NONE: Self = Self {
        asked: None,
        token: None,
        polled: None,
        within: None,
        source: false,
        floor: None,
        refreshes: false,
        soft_timeout: None,
    };

    /// Whether it asks for more than the bound.
    pub(crate) const fn asks_for_more(&self) -> bool {
        self.asked.is_some() || self.within.is_some() || self.source
    }

    /// Whether only a poll may grant it.
    pub(crate) const fn waits(&self) -> bool {
        self.token.is_some() || self.within.is_some()
    }

    /// The token that a value of this era must contain, with the epoch that it is compared in.
    ///
    /// In an era that has begun since, its rows may still be on their way to the buckets: a replica's value that lacks the write
    /// would be accepted until they are there.
    pub(crate) fn token_in(self, epoch: u64, era: u64) -> Option<(Token, u64)> {
        self.token.filter(|_| self.polled != Some(era)).map(|token| (token, epoch))
    }
}

impl<V> Deref for Read<V> {
    type Target = Option<V>;

    fn deref(&self) -> &Option<V> {
        self.held.value()
    }
}

impl<V> Clone for Read<V> {
    fn clone(&self) -> Self {
        Self { freshness: self.freshness, tier: self.tier, held: Arc::clone(&self.held), floor: self.floor }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a recovery has begun anew accepts a replica's value that lacks the write, until its rows are there.
    #[test]
    fn a_poll_of_an_era_that_has_ended_satisfies_no_token_in_the_next() {
        let token = Token::of_write(1, 7);
        let polled = Wish { token: Some(token), polled: Some(4), ..Wish::NONE };
        assert_eq!(polled.token_in(1, 4), None);
        assert_eq!(polled.token_in(1, 5), Some((token, 1)));
    }
}
