//! The mark of a committed write, or of what a read has answered.

use std::fmt;
use std::str::FromStr;

use super::snapshot::{Rank, Snapshot};

/// A committed write, or what a read has answered. [`ReadOptions::at_least`](crate::ReadOptions::at_least) makes a read on any
/// instance see no less.
///
/// Whoever asks one thing after the other and sends the last token that it got, of a write or of a read, reads its own writes and never goes
/// back in time, whichever instances it asks, for whatever keys. Of several answers at once take [`Token::of_all`]. Answers without
/// a token are left out of that.
///
/// Its text goes through HTTP headers: `to_string` and `parse` round-trip.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Token {
    pub(crate) epoch: u64,
    pub(crate) mark: Mark,
}

/// What a token stands for, in the numbers of its epoch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Mark {
    /// The transaction that wrote.
    Write(u64),
    /// All that a snapshot of this rank contains.
    Read(Rank),
}

impl Token {
    /// One token for several reads: of many keys, of a view, or of requests that were under way together. `None` where one of them has none,
    /// or where they are of several epochs, or a write is among them: then keep what you have.
    ///
    /// ```
    /// # fn tokens<V>(reads: &[perto::Read<V>]) {
    /// let token = perto::Token::of_all(reads.iter().map(|read| read.token()));
    /// # }
    /// ```
    pub fn of_all(tokens: impl IntoIterator<Item = Option<Self>>) -> Option<Self> {
        tokens.into_iter().reduce(|one, other| {
            let (one, other) = (one?, other?);
            // Of one epoch the higher rank contains the other.
            let rank = one.rank()?.max(other.rank()?);
            (one.epoch == other.epoch).then(|| Self::of_read(one.epoch, rank))
        })?
    }

    pub(crate) const fn of_write(epoch: u64, xid: u64) -> Self {
        Self { epoch, mark: Mark::Write(xid) }
    }

    pub(crate) const fn of_read(epoch: u64, rank: Rank) -> Self {
        Self { epoch, mark: Mark::Read(rank) }
    }

    /// The transaction, of a write.
    pub(crate) const fn xid(self) -> Option<u64> {
        match self.mark {
            Mark::Write(xid) => Some(xid),
            Mark::Read(_) => None,
        }
    }

    /// The rank, of a read.
    pub(crate) const fn rank(self) -> Option<Rank> {
        match self.mark {
            Mark::Write(_) => None,
            Mark::Read(rank) => Some(rank),
        }
    }
}

impl Mark {
    /// Whether a snapshot of the same epoch contains all that it stands for. One that was cut or collapsed says less than it
    /// might, never more.
    #[inline]
    pub(crate) fn is_in(self, snapshot: &Snapshot) -> bool {
        match self {
            Self::Write(xid) => snapshot.contains(xid),
            Self::Read(rank) => snapshot.rank() >= rank,
        }
    }
}

impl fmt::Display for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.mark {
            Mark::Write(xid) => write!(f, "{:016x}-{xid:x}", self.epoch),
            Mark::Read(rank) => write!(f, "{:016x}-r{:x}", self.epoch, rank.number()),
        }
    }
}

/// A text that is not a token.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NotAToken;

impl fmt::Display for NotAToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("not a token")
    }
}

impl std::error::Error for NotAToken {}

impl FromStr for Token {
    type Err = NotAToken;

    fn from_str(text: &str) -> Result<Self, NotAToken> {
        let (epoch, mark) = text.split_once('-').ok_or(NotAToken)?;
        let number = |hex: &str| match hex.len() {
            1..=16 if hex.bytes().all(|b| b.is_ascii_hexdigit()) => {
                u64::from_str_radix(hex, 16).map_err(|_overflow| NotAToken)
            }
            _ => Err(NotAToken),
        };
        let epoch = number(epoch)?;
        match mark.strip_prefix('r') {
            Some(rank) => Ok(Self::of_read(epoch, Rank::from_number(number(rank)?))),
            None => Ok(Self::of_write(epoch, number(mark)?)),
        }
    }
}
