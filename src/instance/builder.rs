//! The settings of an instance, each with its default.

use std::fmt;
use std::hash::{BuildHasher, Hasher};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio::sync::Semaphore;

use super::{Owner, Perto};
use crate::bus::Bus;
#[cfg(feature = "redis")]
use crate::bus::redis::tiers;
use crate::clock::{Clock, SystemClock};
use crate::coherence::Coherence;
use crate::error::StartError;
use crate::health::signals::Signals;
#[cfg(feature = "postgres")]
use crate::log::postgres::Server;
use crate::log::{CONNECT_LIMIT, Log};
#[cfg(feature = "redis")]
#[cfg(feature = "redis")]
use crate::remote::redis::address::Address;
use crate::remote::{Breaker, Remote};
use crate::shared::fills::MAX_FILLS;
use crate::shared::{Settings, Shared};

/// Shortest bound. A poll takes a round trip, and several must fit into a bound.
const MIN_BOUND: Duration = Duration::from_millis(50);
/// Longest bound.
const MAX_BOUND: Duration = Duration::from_hours(1);
/// How long a replay of the log may take, at least.
const REPLAY_TIMEOUT: Duration = Duration::from_secs(10);
/// Longest retention. An interval of Postgres holds more, but not the longest duration.
const MAX_RETENTION: Duration = Duration::from_hours(365 * 24);
/// Most loads at once.
const MAX_LOADS: usize = 1 << 16;
/// How long a read waits for L2.
pub(crate) const REMOTE_TIMEOUT: Duration = Duration::from_millis(50);
/// What one row of the log takes; more would be a second workload.
const MAX_AUDITED: usize = crate::log::MAX_KEYS_PER_ROW;

/// The settings of an instance. Begun by [`Perto::builder`], ended by [`PertoBuilder::build`].
#[must_use = "nothing happens before `build`"]
pub struct PertoBuilder {
    app: String,
    bound: Duration,
    poll_interval: Option<Duration>,
    min_poll_interval: Duration,
    remote_timeout: Duration,
    retention: Duration,
    max_loads: usize,
    audit_rate: usize,
    allow_unwatched: bool,
    schema: String,
    #[cfg(feature = "redis")]
    redis: Option<Result<Address, StartError>>,
    #[cfg(feature = "redis")]
    subscribe_at: Option<String>,
    #[cfg(feature = "postgres")]
    postgres: Option<Result<Server, String>>,
    #[cfg(feature = "postgres")]
    prepared_statements: bool,
    remote: Option<Arc<dyn Remote>>,
    bus: Option<Arc<dyn Bus>>,
    log: Option<Arc<dyn Log>>,
    clock: Arc<dyn Clock>,
    /// Of the hash of keys. By chance where there is none.
    seed: Option<u64>,
}

impl Perto {
    /// Begins the settings of an instance. `app` is the prefix of its keys and of its channel in Redis; instances of
    /// one app share values.
    pub fn builder(app: &str) -> PertoBuilder {
        PertoBuilder::new(app)
    }
}

impl PertoBuilder {
    fn new(app: &str) -> Self {
        Self {
            app: app.to_owned(),
            bound: Duration::from_secs(1),
            poll_interval: None,
            min_poll_interval: Duration::from_millis(5),
            remote_timeout: REMOTE_TIMEOUT,
            retention: Duration::from_hours(1),
            max_loads: 64,
            audit_rate: 64,
            allow_unwatched: false,
            schema: "perto".to_owned(),
            #[cfg(feature = "redis")]
            redis: None,
            #[cfg(feature = "redis")]
            subscribe_at: None,
            #[cfg(feature = "postgres")]
            postgres: None,
            #[cfg(feature = "postgres")]
            prepared_statements: true,
            remote: None,
            bus: None,
            log: None,
            clock: Arc::new(SystemClock),
            seed: None,
        }
    }

    /// The bound on staleness. Default: 1 second, at least 50 ms. A shorter one costs more polls, and is lost sooner
    /// when Postgres is slow.
    pub const fn bound(mut self, bound: Duration) -> Self {
        self.bound = bound;
        self
    }

    /// Time between two polls of the log while all is well. Default: 250 ms, or a quarter of the bound where that is
    /// shorter. At most half of the bound.
    pub const fn poll_interval(mut self, interval: Duration) -> Self {
        self.poll_interval = Some(interval);
        self
    }

    /// Shortest time between two polls that readers wait for: see [`ReadOptions`](crate::ReadOptions). However many ask, an instance
    /// polls no more often. Default: 5 ms, or the poll interval where that is shorter. 0 lets one poll follow the other.
    pub const fn min_poll_interval(mut self, interval: Duration) -> Self {
        self.min_poll_interval = interval;
        self
    }

    /// How long a read waits for L2. Default: 50 ms.
    pub const fn remote_timeout(mut self, limit: Duration) -> Self {
        self.remote_timeout = limit;
        self
    }

    /// How long the log is kept. An instance that was paused for longer starts over. Default: 1 hour; at most 365
    /// days.
    pub const fn retention(mut self, retention: Duration) -> Self {
        self.retention = retention;
        self
    }

    /// Calls of loaders at once, over all caches; more wait, within their load timeout. Default: 64.
    pub const fn max_loads(mut self, loads: usize) -> Self {
        self.max_loads = loads;
        self
    }

    /// Keys of each cache that the auditor compares with what the primary says, at most so many a second, out of those
    /// that are served from L1; in one load, and none where no place for loads is to spare. Default: 64. At most 500. 0 switches it off: for
    /// loaders that read the clock, or that must not be called in between. Not audited are values whose encoding is not
    /// always the same (a `HashMap` in them) or that have none, and those of a loader that never reads the primary in a
    /// transaction of `read committed`: [`CacheStats::audits_skipped`](crate::CacheStats) counts them.
    pub const fn audit_rate(mut self, keys: usize) -> Self {
        self.audit_rate = keys;
        self
    }

    /// Lets [`Perto::start`] succeed though tables that caches declare are missing, not watched, or written into by a subscription
    /// of logical replication. Writes to them are not seen before the time to live, and answers are called fresh all the same. Nothing of such a cache is put into L2 meanwhile, and each instance that finds one clears it everywhere, once. It is a trouble for as long as it lasts:
    /// [`Health::troubles`](crate::Health::troubles) has it, and it is looked at every minute. Default: start fails.
    pub const fn allow_unwatched(mut self) -> Self {
        self.allow_unwatched = true;
        self
    }

    /// The schema in Postgres that holds the log. Default: `perto`.
    pub fn schema(mut self, schema: &str) -> Self {
        schema.clone_into(&mut self.schema);
        self
    }

    /// The URL of Redis or Valkey, for L2 and hints. Default: none; the instance is then always
    /// [`State::Isolated`](crate::State::Isolated), which is coherent, without L2. How it is written: [`Address`].
    #[cfg(feature = "redis")]
    pub fn redis(mut self, url: &str) -> Self {
        self.redis = Some(Address::of_setting(url));
        self
    }

    /// The same by an address: for one that [has a password asked for](crate::redis::Address::with_credentials).
    #[cfg(feature = "redis")]
    pub fn redis_at(mut self, address: Address) -> Self {
        self.redis = Some(Ok(address));
        self
    }

    /// The URL at which hints are received, where that is not the one of [`PertoBuilder::redis`]. One without a user and a password has
    /// those that are asked for of [`PertoBuilder::redis_at`].
    #[cfg(feature = "redis")]
    pub fn subscribe_at(mut self, url: &str) -> Self {
        self.subscribe_at = Some(url.to_owned());
        self
    }

    /// The URL of Postgres, for the log: the primary. It takes one connection for the tail, and a few at times for
    /// trimming and invalidations. Required, unless there is a [`PertoBuilder::log`]. Where it names no user, `PGUSER`, `USER` or
    /// `LOGNAME` does.
    ///
    /// Best the server itself, also where loaders and writes go through a pooler: a poll that waits for a place in a pool
    /// is a lease that is extended late. See [`PertoBuilder::prepared_statements`].
    #[cfg(feature = "postgres")]
    pub fn postgres(mut self, url: &str) -> Self {
        let options = crate::log::postgres::url::options(url);
        self.postgres = Some(options.map(|options| Server::As(Box::new(options))));
        self
    }

    /// Instead of [`PertoBuilder::postgres`]: the server, the database, the role and the TLS settings of a pool of yours.
    ///
    /// The log has connections of its own all the same. A lease must not wait for a place in a pool that loads or writes use up.
    /// Each is opened with the options that the pool has then; of these, `application_name` and `extra_float_digits` are the
    /// log's own. So where passwords are tokens that live for minutes, `PgPool::set_connect_options` renews them for both.
    #[cfg(feature = "postgres")]
    pub fn pool(mut self, pool: &sqlx::PgPool) -> Self {
        self.postgres = Some(Ok(Server::AsPool(pool.clone())));
        self
    }

    /// Whether the log's own statements may be prepared outside of a transaction. Default: on.
    ///
    /// Off where the URL is that of a transaction pooler (tested with `PgBouncer` 1.18): an invalidation by hand then takes
    /// two round trips more, polls and the rest are the same. The log needs no setting of the pooler's, and no state of a
    /// session.
    ///
    /// Your own queries through such a pooler are yours to make safe. Loaders:
    /// [`Query::persistent`](crate::postgres::Query::persistent) `(false)`. Writes: in a transaction ([`Perto::write`]), by
    /// `sqlx::raw_sql` or `sqlx::query(..).persistent(false)`; no size of sqlx's statement cache does instead, not even 0.
    /// Your pool: `PgConnectOptions::extra_float_digits(None)` and no `options`, which `PgBouncer` refuses unless its
    /// `ignore_startup_parameters` names them. Without them a schema is named in the SQL, or set for the role.
    #[cfg(feature = "postgres")]
    pub const fn prepared_statements(mut self, prepared: bool) -> Self {
        self.prepared_statements = prepared;
        self
    }

    /// Another second tier.
    pub fn remote(mut self, remote: Arc<dyn Remote>) -> Self {
        self.remote = Some(remote);
        self
    }

    /// Another way for hints.
    pub fn bus(mut self, bus: Arc<dyn Bus>) -> Self {
        self.bus = Some(bus);
        self
    }

    /// Another invalidation log.
    pub fn log(mut self, log: Arc<dyn Log>) -> Self {
        self.log = Some(log);
        self
    }

    /// Another clock.
    pub fn clock(mut self, clock: Arc<dyn Clock>) -> Self {
        self.clock = clock;
        self
    }

    /// A hash of keys that is the same in each run: a simulated history is decided by its seed alone.
    #[cfg(any(test, feature = "test-util"))]
    pub(crate) const fn hash_seed(mut self, seed: u64) -> Self {
        self.seed = Some(seed);
        self
    }

    /// Checks the settings. No I/O: declare the caches next, then [`Perto::start`].
    ///
    /// # Errors
    /// [`StartError::Setting`], with the name of the setting.
    pub fn build(self) -> Result<Perto, StartError> {
        let settings = self.settings()?;
        let (remote, bus) = self.redis_tiers()?;
        let log = self.postgres_log(&settings)?;
        let max_loads = settings.max_loads;
        let shared = Shared {
            app: self.app,
            signals: Signals::new(Arc::clone(&self.clock)),
            clock: self.clock,
            coherence: Box::new(Coherence::new(settings.bound, self.seed.unwrap_or_else(random))),
            polls: Default::default(),
            telling: Default::default(),
            settings,
            counters: Default::default(),
            propagation: Default::default(),
            staleness: Default::default(),
            repaired: Default::default(),
            nines: Default::default(),
            publisher: random(),
            log,
            remote,
            bus,
            breaker: Breaker::default(),
            sequence: Default::default(),
            caches: Default::default(),
            started: Default::default(),
            starting: Default::default(),
            loads: Semaphore::new(max_loads),
            failed_loads: Default::default(),
            fills: Arc::new(Semaphore::new(MAX_FILLS)),
            unwatched: Default::default(),
            switches: Default::default(),
            tasks: Default::default(),
            runtime: Default::default(),
            ending: Default::default(),
        };
        Ok(Perto(Arc::new(Owner(Arc::new(shared)))))
    }

    fn settings(&self) -> Result<Settings, StartError> {
        let refuse = |setting, problem: String| Err(StartError::Setting { setting, problem });
        let word = |text: &str| text.bytes().all(|b| b.is_ascii_alphanumeric() || b"_-.".contains(&b));
        let poll_interval = self.poll_interval.unwrap_or(Duration::from_millis(250).min(self.bound / 4));
        if self.app.is_empty() || self.app.len() > 64 || !word(&self.app) {
            return refuse(
                "app",
                format!("{:?} is not a name: 1 to 64 letters, digits, _, - or .", self.app),
            );
        }
        if self.bound < MIN_BOUND {
            return refuse(
                "bound",
                format!("{:?} is shorter than a poll can be; at least {MIN_BOUND:?}", self.bound),
            );
        }
        if poll_interval.is_zero() || poll_interval > self.bound / 2 {
            let problem = format!(
                "{poll_interval:?} must be at most half of the bound of {:?}, and more than nothing",
                self.bound
            );
            return refuse("poll_interval", problem);
        }
        if self.bound > MAX_BOUND {
            return refuse("bound", format!("{:?} is longer than {MAX_BOUND:?}", self.bound));
        }
        if self.retention < self.bound * 10 {
            return refuse("retention", format!("must be at least ten times the bound of {:?}", self.bound));
        }
        if self.retention > MAX_RETENTION {
            return refuse("retention", format!("{:?} is longer than {MAX_RETENTION:?}", self.retention));
        }
        if !(1..=MAX_LOADS).contains(&self.max_loads) {
            return refuse("max_loads", format!("{} is not between 1 and {MAX_LOADS}", self.max_loads));
        }
        if self.audit_rate > MAX_AUDITED {
            return refuse("audit_rate", format!("{} is more than {MAX_AUDITED}", self.audit_rate));
        }
        if self.remote_timeout.is_zero() {
            return refuse("remote_timeout", "must be more than nothing".to_owned());
        }
        let poll_timeout = self.bound.max(Duration::from_millis(250));
        Ok(Settings {
            bound: self.bound,
            poll_interval,
            min_poll_interval: self.min_poll_interval.min(poll_interval),
            poll_timeout,
            log_timeout: poll_timeout.saturating_add(CONNECT_LIMIT),
            replay_timeout: self.bound.max(REPLAY_TIMEOUT),
            remote_timeout: self.remote_timeout,
            fence_timeout: Duration::from_millis(500),
            retention: self.retention,
            max_loads: self.max_loads,
            audit_rate: self.audit_rate,
            allow_unwatched: self.allow_unwatched,
            schema: self.schema.clone(),
        })
    }

    #[expect(clippy::type_complexity, reason = "a pair of two options")]
    fn redis_tiers(&self) -> Result<(Option<Arc<dyn Remote>>, Option<Arc<dyn Bus>>), StartError> {
        #[cfg(feature = "redis")]
        if let Some(address) = self.redis.clone() {
            let address = address?;
            let elsewhere = self.subscribe_at.as_deref().map(|url| tiers::elsewhere(url, &address));
            let (remote, bus) = tiers::tiers(address, &self.app, self.remote_timeout, elsewhere.transpose()?);
            return Ok((Some(self.remote.clone().unwrap_or(remote)), Some(self.bus.clone().unwrap_or(bus))));
        }
        Ok((self.remote.clone(), self.bus.clone()))
    }

    #[cfg_attr(not(feature = "postgres"), expect(clippy::unused_self, reason = "the URL is a feature's"))]
    fn postgres_log(&self, settings: &Settings) -> Result<Arc<dyn Log>, StartError> {
        let _ = settings;
        if let Some(log) = &self.log {
            return Ok(Arc::clone(log));
        }
        #[cfg(feature = "postgres")]
        if let Some(server) = self.postgres.clone() {
            let (schema, prepared) = (&settings.schema, self.prepared_statements);
            let log = server
                .and_then(|server| crate::log::postgres::PostgresLog::new(server, schema, prepared))
                .map_err(|problem| StartError::Setting { setting: "postgres", problem })?;
            return Ok(Arc::new(log));
        }
        Err(StartError::Setting {
            setting: "postgres",
            problem: "no URL: without an invalidation log nothing can be promised".to_owned(),
        })
    }
}

impl fmt::Debug for PertoBuilder {
    /// Without the URLs: they may hold passwords.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PertoBuilder")
            .field("app", &self.app)
            .field("bound", &self.bound)
            .finish_non_exhaustive()
    }
}

/// A number that no other instance has, for hints.
fn random() -> u64 {
    let mut hasher = std::hash::RandomState::new().build_hasher();
    hasher.write_u128(SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos());
    hasher.write_u32(std::process::id());
    hasher.finish()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sim::SimPostgres;

    /// Else whoever may choose keys could keep another's bucket closed, on all instances at once.
    #[test]
    fn which_keys_share_a_bucket_is_another_matter_on_each_instance() {
        let slots = || {
            let log = Arc::new(SimPostgres::new().log(1));
            let perto = Perto::builder("app").log(log).build().unwrap();
            let buckets = &perto.shared().coherence.buckets;
            (0..100).map(|key| buckets.slot("users", &key.to_string())).collect::<Vec<_>>()
        };
        assert_ne!(slots(), slots());
    }
}
