//! How long a cache keeps values, how much, and what it does when the log can't be read.

use std::time::Duration;

use super::sources::Sources;
use crate::wire::codec::Codec;

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

/// Answers of what is known to be old, while its successor is loaded. See [`CacheBuilder::stale_while_loading`](crate::CacheBuilder::stale_while_loading).
///
/// ```
/// # use std::time::Duration;
/// # use perto::StaleWhileLoading;
/// // For a minute at most, and only to who has waited for 20 ms.
/// let stale = StaleWhileLoading::for_up_to(Duration::from_secs(60)).after(Duration::from_millis(20));
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StaleWhileLoading {
    pub(crate) grace: Duration,
    pub(crate) after: Duration,
    pub(crate) retry: Duration,
}

impl StaleWhileLoading {
    /// At most for so long after a value was invalidated, or after its time to live was over.
    #[must_use]
    pub const fn for_up_to(grace: Duration) -> Self {
        Self { grace, after: Duration::ZERO, retry: Duration::from_secs(1) }
    }

    /// Lets a read wait for the load for so long, a soft timeout, before it gets a stale answer. Default: not at all.
    #[must_use]
    pub const fn after(mut self, soft_timeout: Duration) -> Self {
        self.after = soft_timeout;
        self
    }

    /// After a load has failed no other is begun for so long: stale answers are served meanwhile. Default: 1 second.
    #[must_use]
    pub const fn retry_after(mut self, retry: Duration) -> Self {
        self.retry = retry;
        self
    }
}

/// The settings of one cache.
#[derive(Debug, Clone)]
pub(crate) struct Policy {
    pub(crate) ttl: Duration,
    pub(crate) absent_ttl: Duration,
    pub(crate) capacity_bytes: u64,
    pub(crate) max_value_bytes: usize,
    pub(crate) codec: Codec,
    /// Payloads of more bytes are compressed.
    pub(crate) compress_above: usize,
    pub(crate) load_timeout: Duration,
    /// Keys of one call of the loader.
    pub(crate) max_batch: usize,
    pub(crate) outage: Outage,
    pub(crate) version: u16,
    pub(crate) local_only: bool,
    pub(crate) sources: Sources,
    pub(crate) stale: Option<StaleWhileLoading>,
    /// How long before its end a value that is read is loaded anew.
    pub(crate) refresh_ahead: Duration,
    /// Whether keys that are read often are loaded anew once they were invalidated.
    pub(crate) refresh_hot: bool,
    /// Per cent of the time to live.
    pub(crate) ttl_jitter: Option<u8>,
    /// Whether one instance loads a key for all.
    pub(crate) fleet_single_flight: bool,
}

impl Policy {
    /// Whether values are loaded anew before anybody misses them.
    pub(crate) const fn refreshes(&self) -> bool {
        !self.refresh_ahead.is_zero()
    }
}

impl Default for Policy {
    fn default() -> Self {
        Self {
            ttl: Duration::from_mins(30),
            absent_ttl: Duration::from_mins(5),
            capacity_bytes: 64 << 20,
            max_value_bytes: 1 << 20,
            codec: Codec::Bincode,
            compress_above: usize::MAX,
            load_timeout: Duration::from_secs(5),
            max_batch: usize::MAX,
            outage: Outage::default(),
            version: 1,
            local_only: false,
            sources: Sources::default(),
            stale: None,
            refresh_ahead: Duration::ZERO,
            refresh_hot: false,
            ttl_jitter: None,
            fleet_single_flight: false,
        }
    }
}

pub(super) fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
