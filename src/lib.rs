//! A coherent two-tier near cache.
//!
//! (docs to come)

pub(crate) mod bus;
pub(crate) mod cache;
pub(crate) mod clock;
pub(crate) mod coherence;
pub(crate) mod error;
pub(crate) mod instance;
pub(crate) mod local;
pub(crate) mod log;
pub(crate) mod metrics;
pub(crate) mod remote;
pub(crate) mod wire;
#[cfg(feature = "postgres")]
pub mod postgres;
#[cfg(feature = "redis")]
pub mod redis;
#[cfg(any(feature = "test-util", feature = "service"))]
pub mod proxy;
#[cfg(feature = "test-util")]
pub mod sim;

pub use bus::{Bus, Subscription};
pub use cache::builder::CacheBuilder;
pub use cache::loader::{Load, Loaded, STAMP_SQL, Stamp};
pub use cache::policy::Outage;
pub use cache::{Cache, Freshness, Key, MAX_KEY_BYTES, Read, ReadOptions, Tier, Value};
pub use clock::{Clock, SystemClock};
pub use coherence::health::{Event, Health, Recovery, State};
pub use coherence::snapshot::{MAX_RUNNING, Origin, Rank, Snapshot};
pub use error::{Cause, Error, InvalidateError, LogError, RemoteError, StartError};
pub use instance::{NotAToken, Perto, PertoBuilder, Token};
pub use log::{Log, MAX_KEYS_PER_ROW, MAX_POLL_ROWS, Poll, Row};
pub use metrics::{CacheStats, Histogram, InstanceStats};
pub use remote::Remote;
pub use wire::Change;
