//! A coherent two-tier near cache: each process keeps values in memory (L1, on moka) before a shared Redis (L2), before
//! Postgres.
//!
//! **The promise.** No read served as *fresh* misses a write that was visible in Postgres more than the bound (1 second
//! by default) before the read began: not through a lost message, a dead or flushed or restored Redis, a paused process,
//! a writer that crashed after its commit, or SQL typed by hand. Normally a write is seen everywhere in about a
//! millisecond. What can't be vouched for is flagged, never served as fresh.
//!
//! # Quick start
//!
//! ```no_run
//! use perto::{Cache, Load, Perto, postgres};
//!
//! # async fn quick_start() -> Result<(), Box<dyn std::error::Error>> {
//! let pool = sqlx::PgPool::connect("postgres://localhost/shop").await?;
//! let perto = Perto::builder("shop").postgres("postgres://localhost/shop").redis("redis://localhost").build()?;
//!
//! // How rows are read. The stamp of the snapshot comes along in the same statement.
//! let reading = pool.clone();
//! let users: Cache<i64, String> = perto.cache("user").tables(["users"]).loader(move |load: Load<i64>| {
//!     let pool = reading.clone();
//!     async move {
//!         let sql = "select id, name from users where id = any($1)";
//!         let rows = postgres::query_as::<(i64, String)>(sql).bind(load.keys).fetch(&pool).await?;
//!         Ok::<_, sqlx::Error>(rows.by_key(|user| user))
//!     }
//! })?;
//! perto.start().await?;
//!
//! let read = users.get(&7).await?;
//! println!("{:?}, {:?} from {:?}", read.value, read.freshness, read.tier);
//!
//! // A write: every instance evicts what it changed, whichever rows those are.
//! perto
//!     .write(&pool, async |tx| sqlx::query("update users set name = 'Ada' where id = 7").execute(tx).await)
//!     .await?;
//! # perto.shutdown().await;
//! # Ok(()) }
//! ```
//!
//! The tables of the invalidation log are made by [`postgres::migrate`], the triggers on `users` by [`postgres::watch`] (or
//! `perto migrate` and `perto watch users --cache user --key id`).
//!
//! # Features
//!
//! | Feature | What it brings |
//! | --- | --- |
//! | `postgres` (default) | the invalidation log, snapshots, loaders and writes on Postgres, by sqlx |
//! | `redis` (default) | L2 and hints on Redis or Valkey |
//! | `tls` | TLS to both, by rustls |
//! | `otel` | spans and figures, by the API of OpenTelemetry |
//! | `tracing` | a line in the log for each [`Event`] |
//! | `test-util` | the tiers in memory, with faults and a virtual clock, and a TCP proxy that misbehaves |
//!
//! # Read in this order
//!
//! `coherence.rs` (the promise), `cache.rs` (the read path on one screen), `coherence/rules.rs` and `snapshot.rs` (what
//! may be served), `coherence/tail.rs` (what the promise rests on), `instance.rs` (who owns what), then the tiers:
//! `local.rs`, `remote.rs`, `bus.rs`, `log.rs`. `docs/PROTOCOL.md` has the proof, and the test for each promise.

pub(crate) mod bus;
pub(crate) mod cache;
pub(crate) mod clock;
pub(crate) mod coherence;
pub(crate) mod error;
#[cfg(feature = "test-util")]
#[doc(hidden)]
pub mod fuzzing;
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
pub mod postgres;
#[cfg(feature = "test-util")]
pub mod proxy;
#[cfg(feature = "redis")]
pub mod redis;
pub(crate) mod remote;
#[cfg(feature = "test-util")]
pub mod sim;
pub(crate) mod sync;
pub(crate) mod trace;
#[cfg(any(feature = "postgres", feature = "redis"))]
pub(crate) mod url;
pub(crate) mod watched;
pub(crate) mod wire;

pub use bus::{Bus, Subscription};
pub use cache::builder::CacheBuilder;
pub use cache::inspect::{InLocal, InRemote, Inspection, Refusal, RemoteValue, key_hash};
pub use cache::loader::{Load, Loaded, STAMP_SQL, Stamp};
pub use cache::policy::Outage;
pub use cache::{Cache, Freshness, Key, MAX_KEY_BYTES, Read, ReadOptions, Tier, Value};
pub use clock::{Clock, SystemClock};
pub use coherence::health::{Event, Health, Recovery, State};
pub use coherence::known::{Known, Missing};
pub use coherence::snapshot::{MAX_RUNNING, Origin, Rank, Snapshot};
pub use coherence::troubles::{Trouble, TroubleKind};
pub use error::{Cause, Error, InvalidateError, LogError, RemoteError, StartError};
pub use instance::{Declared, NotAToken, Perto, PertoBuilder, Token};
pub use log::{Appended, Log, MAX_KEYS_PER_ROW, MAX_POLL_BYTES, MAX_POLL_ROWS, Poll, Row, Source, Unwatched};
pub use metrics::{CacheStats, Histogram, InstanceStats};
pub use nines::{Audited, Audits};
pub use remote::Remote;
pub use wire::Change;

/// The README's code compiles.
#[cfg(all(doctest, feature = "postgres", feature = "redis"))]
#[doc = include_str!("../README.md")]
struct Readme;
