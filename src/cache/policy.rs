//! How long a cache keeps values, how much, and what it does when the log can't be read.

use std::time::Duration;

use super::sources::Sources;

/// What a reader gets while the log has not been read for longer than the bound: Postgres is down or too slow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Outage {
    /// What is cached, flagged as [`Freshness::Unverified`](crate::Freshness::Unverified), until the log has been
    /// silent for `max`; else a load.
    ServeStale {
        /// How long the log may have been silent.
        max: Duration,
    },
    /// A load for each read. Mind that this happens just when Postgres is in trouble; loads have a limit.
    PassThrough,
    /// [`Error::Unverified`](crate::Error::Unverified) at once.
    Fail,
}

impl Default for Outage {
    fn default() -> Self {
        Self::ServeStale { max: Duration::from_mins(5) }
    }
}

/// The settings of one cache.
#[derive(Debug, Clone)]
pub(crate) struct Policy {
    pub(crate) ttl: Duration,
    pub(crate) absent_ttl: Duration,
    pub(crate) capacity_bytes: u64,
    pub(crate) max_value_bytes: usize,
    pub(crate) load_timeout: Duration,
    /// Keys of one call of the loader.
    pub(crate) max_batch: usize,
    pub(crate) outage: Outage,
    pub(crate) version: u16,
    pub(crate) local_only: bool,
    pub(crate) sources: Sources,
}

impl Default for Policy {
    fn default() -> Self {
        Self {
            ttl: Duration::from_mins(30),
            absent_ttl: Duration::from_mins(5),
            capacity_bytes: 64 << 20,
            max_value_bytes: 1 << 20,
            load_timeout: Duration::from_secs(5),
            max_batch: usize::MAX,
            outage: Outage::default(),
            version: 1,
            local_only: false,
            sources: Sources::default(),
        }
    }
}
