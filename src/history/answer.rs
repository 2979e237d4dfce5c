//! What a read of a history has answered.

use std::time::Duration;

use crate::read::{Freshness, Tier};

/// One answer to one read.
#[derive(Debug, Clone, Copy)]
pub struct Answer {
    /// Which instance gave it, for reports.
    pub instance: u32,
    /// The key.
    pub key: u64,
    /// What was served.
    pub value: Option<u64>,
    /// How it was flagged. Only what is flagged as fresh has a bound; nothing may be served that never was.
    pub freshness: Freshness,
    /// Where it came from.
    pub tier: Tier,
    /// When the read began.
    pub begun: Duration,
    /// When it was answered.
    pub ended: Duration,
    /// Where the read demanded to see a write: its place, as [`History::wrote`](super::History::wrote) gave it.
    pub at_least: Option<usize>,
    /// Where the read demanded a shorter bound: see [`ReadOptions::within`](crate::ReadOptions::within).
    pub within: Option<Duration>,
}

impl Answer {
    /// An answer of instance 0, to a read that demanded nothing.
    #[must_use]
    pub const fn new(
        key: u64,
        value: Option<u64>,
        freshness: Freshness,
        tier: Tier,
        begun: Duration,
        ended: Duration,
    ) -> Self {
        Self { instance: 0, key, value, freshness, tier, begun, ended, at_least: None, within: None }
    }
}
