//! A coherent two-tier near cache. Each process keeps hot rows in memory (L1, on moka). Behind it are a Redis that all instances
//! share (L2), and Postgres.
//!
//! **The promise.** A read that is served as *fresh* contains every write that was visible in Postgres one bound (1 second by
//! default) before the read began. Every other answer is flagged. That holds when a message is lost, when Redis is dead or was
//! restored, when a process was paused, when a writer crashed after its commit, and when somebody typed the SQL by hand. In normal
//! operation every instance sees a write through [`Perto::write`] after about a millisecond, and SQL by hand with the next poll.
//!
//! # Quick start
//!
//! With a table `users` of an `id` and a `name`. The user of the URL has to be one who may create triggers on it.
//!
//! ```no_run
#![cfg_attr(doc, doc = include_str!("../examples/quickstart.rs"))]
//! ```
//!
//! Where the application's role may create neither tables nor triggers, their owner runs `perto migrate` and
//! `perto watch users --cache user --key id` instead (`cargo install perto-cli`).
//!
//! # Where to start
//!
//! | To | Look at |
//! | --- | --- |
//! | set an instance up, and end it | [`Perto::builder`], [`Perto::start`], [`Perto::shutdown`] |
//! | declare a cache, and say how it loads | [`Perto::cache`], [`CacheBuilder`], [`Load`], [`postgres::by_key`], [`postgres::query_as`] |
//! | read one key or many | [`Cache::get`], [`Cache::get_many`], [`Read`], [`Freshness`], [`Tier`] |
//! | read back your own write on any instance | [`Perto::write`], [`Token`], [`ReadOptions::at_least`] |
//! | miss nothing that is visible now, or for less than the bound | [`ReadOptions::latest`], [`ReadOptions::within`] |
//! | load and write with another client than sqlx | [`STAMP_SQL`], [`Stamp::parse`], [`Perto::pending_sql`], [`postgres::Pending::from_rows`] |
//! | say what a write changed, where no trigger can | [`Cache::invalidate_in`], [`Cache::invalidate`], [`Cache::clear`] |
//! | make a value of several rows, a list or a count | [`Loaded::depends_on`], [`Perto::topic`], [`Topic`] |
//! | read several keys at one moment | [`Perto::view`], [`View`] |
//! | never go back in time, whichever instance answers | [`Read::token`], [`Token::of_all`] |
//! | choose what happens while Postgres is down | [`Outage`], [`Perto::health`], [`Perto::events`] |
//! | put a tier aside in an incident | [`Perto::switch`], [`Perto::switches`] |
//! | know how well it works | [`Cache::stats`], [`Perto::staleness`], [`Perto::audits`] |
//! | test your own code without engines | the module `sim`, feature `test-util` |
//!
//! # Features
//!
//! | Feature | What it brings |
//! | --- | --- |
//! | `postgres` (default) | the invalidation log, snapshots, loaders and writes on Postgres, by sqlx |
//! | `redis` (default) | L2 and hints on Redis or Valkey |
//! | `json` | values as JSON in L2, for types that ask what they are: [`Codec`] |
//! | `lz4` | compression of large values in L2: `CacheBuilder::compress_above` |
//! | `tls` | TLS to both, by rustls |
//! | `otel` | spans and figures, by the API of OpenTelemetry |
//! | `tracing` | a line in the log for each [`Event`] |
//! | `test-util` | the tiers in memory, with faults and a virtual clock; a judge of histories; a TCP proxy that misbehaves |
//!
//! # Testing your code
//!
//! With the feature `test-util`, `sim::Sim` gives instances whose tiers lie in memory, with faults, on tokio's paused clock: a bound
//! passes in no time. `examples/simulated.rs` is such a test.

#![cfg_attr(docsrs, feature(doc_cfg))]

pub(crate) mod bus;
pub(crate) mod cache;
pub(crate) mod clock;
pub(crate) mod coherence;
pub(crate) mod error;
pub(crate) mod following;
#[cfg(feature = "test-util")]
#[doc(hidden)]
pub mod fuzzing;
pub(crate) mod health;
#[cfg(feature = "test-util")]
pub mod history;
pub(crate) mod instance;
#[cfg(feature = "otel")]
pub(crate) mod instruments;
pub(crate) mod local;
pub(crate) mod log;
pub(crate) mod metrics;
pub(crate) mod nines;
#[cfg(feature = "postgres")]
pub(crate) mod pool;
#[cfg(feature = "postgres")]
pub mod postgres;
#[cfg(feature = "test-util")]
pub mod proxy;
pub(crate) mod read;
#[cfg(feature = "redis")]
pub mod redis;
pub(crate) mod remote;
pub(crate) mod shared;
#[cfg(feature = "test-util")]
pub mod sim;
pub(crate) mod sync;
pub(crate) mod trace;
#[cfg(any(feature = "postgres", feature = "redis"))]
pub(crate) mod url;
pub(crate) mod view;
pub(crate) mod watched;
pub(crate) mod wire;

pub use bus::{Bus, Subscription};
pub use cache::builder::CacheBuilder;
pub use cache::inspect::{DependsOn, InLocal, InRemote, Inspection, Refusal, RemoteValue, key_hash};
pub use cache::loader::{Load, Loaded, Previous, STAMP_SQL, Stamp};
pub use cache::policy::{Outage, StaleWhileLoading};
pub use cache::topic::{Topic, TopicBuilder};
pub use cache::{Cache, Key, Value};
pub use clock::{Clock, SystemClock};
pub use coherence::known::{Known, Missing};
pub use coherence::snapshot::{MAX_RUNNING, Origin, Rank, Snapshot};
pub use coherence::token::{NotAToken, Token};
pub use error::{Cause, Error, InvalidateError, LogError, RemoteError, StartError, SwitchError, Unwatched};
pub use health::troubles::{Trouble, TroubleKind};
pub use health::{Event, Health, Recovery, State};
pub use instance::{Declared, Perto, PertoBuilder};
pub use log::switch::{NotASwitch, Switch, Switching, TierMode};
pub use log::{Appended, Borne, Log, MAX_KEYS_PER_ROW, MAX_POLL_BYTES, MAX_POLL_ROWS, Poll, Row, Source};
pub use metrics::{CacheStats, Histogram, InstanceStats};
pub use nines::{Audited, Audits};
pub use read::{Freshness, Read, ReadOptions, StaleCause, Tier};
pub use remote::Remote;
pub use view::View;
pub use wire::codec::Codec;
pub use wire::{Change, Dependency, MAX_DEPENDENCIES, MAX_DEPENDENCY_BYTES, MAX_KEY_BYTES};

/// The README's code compiles.
#[cfg(all(doctest, feature = "postgres", feature = "redis"))]
#[doc = include_str!("../README.md")]
struct Readme;

/// And so does the guide's.
#[cfg(all(doctest, feature = "postgres", feature = "redis"))]
#[doc = include_str!("../docs/GUIDE.md")]
struct Guide;
