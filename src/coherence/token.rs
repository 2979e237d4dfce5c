//! The mark of a committed write.

use std::fmt;
use std::str::FromStr;

/// A committed write. [`ReadOptions::at_least`](crate::ReadOptions::at_least) makes a read on any instance
/// see it.
///
/// Its text goes through HTTP headers: `to_string` and `parse` round-trip.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Token {
    pub(crate) epoch: u64,
    pub(crate) xid: u64,
}

impl fmt::Display for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}-{:x}", self.epoch, self.xid)
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
        let (epoch, xid) = text.split_once('-').ok_or(NotAToken)?;
        let number = |hex: &str| match hex.len() {
            1..=16 if hex.bytes().all(|b| b.is_ascii_hexdigit()) => u64::from_str_radix(hex, 16).ok(),
            _ => None,
        };
        Ok(Self { epoch: number(epoch).ok_or(NotAToken)?, xid: number(xid).ok_or(NotAToken)? })
    }
}
