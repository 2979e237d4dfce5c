//! `Perto`: one per process. Owns the tiers, the tail, the bus, the health and every task.

use std::collections::HashMap;
use std::fmt::{self, Debug};
use std::hash::{BuildHasher, Hasher};
use std::panic::AssertUnwindSafe;
use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use futures_util::FutureExt;
use parking_lot::RwLock;
use tokio::sync::{Semaphore, SemaphorePermit, broadcast};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::bus::Bus;
use crate::cache::applied::Applied;
use crate::cache::builder::CacheBuilder;
use crate::cache::inspect::InRemote;
use crate::cache::{Key, Value};
use crate::coherence::health::{Event, Health, Signals, State};
use crate::coherence::repaired::RecentlyRepaired;
use crate::coherence::tail::Tail;
use crate::coherence::troubles::TroubleKind;
use crate::coherence::{Coherence, hints};
use crate::error::{Error, InvalidateError, LogError, RemoteError, StartError};
use crate::log::{Appended, Log, Source};
use crate::metrics::{Histogram, InstanceCounters, InstanceStats, Timing};
use crate::nines::{Audits, Nines};
use crate::remote::{self, Breaker, Remote};
use crate::trace::{Kind, Span, Trace};
use crate::wire::{Change, Hint};

pub(crate) mod builder;
mod declared;
pub(crate) mod fills;
mod loads;
mod upkeep;
mod watching;

use loads::FailedLoads;
use watching::Watching;

pub use builder::PertoBuilder;
pub use declared::Declared;

/// How long a tombstone stays. It only has to outlive fills that were under way; nothing rests on it.
const TOMBSTONE_TTL: Duration = Duration::from_secs(60);
/// Before a task that has panicked begins anew.
const AFTER_A_PANIC: Duration = Duration::from_millis(50);
/// Keys that are looked up, or buried, in one round trip. More take several: each has the L2 timeout to itself.
const KEYS_AT_ONCE: usize = 1_000;

/// An instance of Perto. Cheap to clone; the last clone that is dropped ends its tasks, though
/// [`Perto::shutdown`] does so in order.
#[derive(Clone)]
pub struct Perto(Arc<Owner>);

struct Owner(Arc<Shared>);

/// What all parts of an instance share.
pub(crate) struct Shared {
    pub(crate) app: String,
    pub(crate) settings: Settings,
    pub(crate) coherence: Arc<Coherence>,
    pub(crate) signals: Signals,
    pub(crate) counters: InstanceCounters,
    pub(crate) propagation: Timing,
    pub(crate) staleness: Timing,
    pub(crate) repaired: RecentlyRepaired,
    pub(crate) nines: Nines,
    pub(crate) publisher: u64,
    pub(crate) log: Arc<dyn Log>,
    remote: Option<Arc<dyn Remote>>,
    bus: Option<Arc<dyn Bus>>,
    breaker: Breaker,
    sequence: AtomicU64,
    caches: RwLock<Arc<Caches>>,
    started: RwLock<bool>,
    /// Held over a start.
    starting: tokio::sync::Mutex<()>,
    loads: Semaphore,
    fills: Arc<Semaphore>,
    failed_loads: FailedLoads,
    tasks: TaskTracker,
    ending: CancellationToken,
}

type Caches = HashMap<String, Arc<dyn Applied>>;

#[derive(Debug, Clone)]
pub(crate) struct Settings {
    pub(crate) bound: Duration,
    pub(crate) poll_interval: Duration,
    pub(crate) poll_timeout: Duration,
    /// Of a poll that no lease hangs on.
    pub(crate) replay_timeout: Duration,
    /// Of what is asked of the log besides polls, connecting included.
    pub(crate) log_timeout: Duration,
    pub(crate) remote_timeout: Duration,
    pub(crate) fence_timeout: Duration,
    pub(crate) retention: Duration,
    pub(crate) max_loads: usize,
    /// Keys per cache and interval; 0 switches it off.
    pub(crate) audit_rate: usize,
    pub(crate) allow_unwatched: bool,
    #[cfg_attr(not(feature = "postgres"), expect(dead_code, reason = "only Postgres has a schema"))]
    pub(crate) schema: String,
}

/// A committed write. [`ReadOptions::at_least`](crate::ReadOptions::at_least) makes a read on any instance see it.
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
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a token")]
pub struct NotAToken;

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

impl Perto {
    /// Begins the settings of an instance. `app` is the prefix of its keys and of its channel in Redis; instances of
    /// one app share values.
    pub fn builder(app: &str) -> PertoBuilder {
        PertoBuilder::new(app)
    }

    /// Declares a cache, before [`Perto::start`]. `name` is how the log and other instances call it.
    pub fn cache<K: Key, V: Value>(&self, name: &str) -> CacheBuilder<K, V> {
        CacheBuilder::new(Arc::clone(self.shared()), name)
    }

    /// Makes or upgrades the log's tables, and installs the triggers of every [`CacheBuilder::watch`] so far. Does nothing where
    /// all is as it should be. Call it before [`Perto::start`]; ten instances may do so at once.
    ///
    /// Needs a role that may create. Where the application's may not, an admin runs `perto migrate` and `perto watch` instead.
    ///
    /// Dropping the future leaves each table as it was or as it should be.
    ///
    /// # Errors
    /// [`StartError::Log`] if Postgres can't be reached or refuses: with the grants that the role lacks, where that is why.
    pub async fn migrate(&self) -> Result<(), StartError> {
        let caches = self.shared().caches();
        let mut sources: Vec<Source> = caches.values().flat_map(|cache| cache.sources()).collect();
        // In one order, so that instances don't wait for each other in a circle.
        sources.sort_unstable_by(|a, b| (&a.table, &a.cache).cmp(&(&b.table, &b.cache)));
        self.shared().log.prepare(&sources).await.map_err(StartError::Log)
    }

    /// Waits until this instance is [`State::Coherent`] or [`State::Isolated`], and so answers fresh from its tiers. Returns the
    /// state.
    ///
    /// Without it reads are right too: they are loaded for as long as nothing cached may be served. Wait for as long as you
    /// like, and drop the future then.
    ///
    /// # Errors
    /// [`Error::Closed`] once the instance is shut down.
    pub async fn ready(&self) -> Result<State, Error> {
        let mut events = self.events();
        loop {
            match self.health().state {
                state @ (State::Coherent | State::Isolated) => return Ok(state),
                State::Closed => return Err(Error::Closed),
                _ => {}
            }
            tokio::select! {
                _event_or_lag = events.recv() => {}
                () = self.shared().closing() => {}
            }
        }
    }

    /// Reads the log for the first time and begins to follow it. Until then, reads go to the source.
    ///
    /// With Redis unreachable an instance starts as [`State::Isolated`] and goes on trying.
    ///
    /// Dropping the future leaves an instance that has not started. Of several calls each returns once the instance has started, or
    /// with what its own try failed with.
    ///
    /// # Errors
    /// If the log can't be read: Postgres is down, or lacks the schema (`perto migrate`). If a table that a cache declares
    /// is missing or not watched: [`StartError::Unwatched`] names it, and the command that mends it.
    pub async fn start(&self) -> Result<(), StartError> {
        let shared = self.shared();
        // Who comes second waits for what becomes of the first, and tries itself where that was nothing.
        let _one_at_a_time = shared.starting.lock().await;
        if shared.is_closed() {
            return Err(StartError::Closed);
        }
        if std::mem::replace(&mut *shared.started.write(), true) {
            return Ok(());
        }
        let mut starting = Starting { shared, done: false };
        let mut tail = Tail::new(Arc::clone(shared));
        tail.begin().await.map_err(StartError::Log)?;
        let mut watching = Watching::new(Arc::clone(shared));
        watching.begin().await?;
        if let Some(remote) = &shared.remote {
            // Whether it answers decides the first reads' way, not whether the instance starts.
            if remote::ping(&**remote, shared.settings.fence_timeout).await.is_err() {
                shared.breaker.trip();
            }
        }
        self.spawn_tasks(tail);
        let first = parking_lot::Mutex::new(Some(watching));
        shared.spawn_endless(None, move |shared| {
            first.lock().take().unwrap_or_else(|| Watching::new(shared)).run()
        });
        starting.done = true;
        Ok(())
    }

    fn spawn_tasks(&self, tail: Tail) {
        let shared = self.shared();
        shared.spawn_until_end(tail.run());
        if let Some(bus) = shared.bus.clone() {
            let listen = move |shared| hints::listen(shared, Arc::clone(&bus));
            shared.spawn_endless(Some(TroubleKind::HintsNotReceived), listen);
        }
        if let Some(remote) = shared.remote.clone() {
            shared.spawn_endless(Some(TroubleKind::RedisUnusable), move |shared| {
                let remote = Arc::clone(&remote);
                async move {
                    let limit = shared.settings.fence_timeout;
                    shared.breaker.mend(&*remote, limit, &shared.signals).await;
                }
            });
        }
        shared.spawn_endless(None, |shared| async move {
            shared.signals.watch(&shared.coherence, || shared.remote_usable()).await;
        });
        shared.spawn_endless(Some(TroubleKind::LogNotTrimmed), upkeep::trim);
        shared.spawn_endless(None, loads::judge);
        if shared.settings.audit_rate > 0 {
            shared.spawn_endless(None, upkeep::audit);
        }
    }

    /// Ends the instance: reads in progress end with [`Error::Closed`], reads from now on too, and every task is awaited.
    ///
    /// Dropping the future ends the tasks all the same, without waiting for them.
    pub async fn shutdown(&self) {
        let shared = self.shared();
        shared.close();
        shared.tasks.wait().await;
    }

    /// The health of this instance now.
    #[must_use]
    pub fn health(&self) -> Health {
        let shared = self.shared();
        shared.signals.health(&shared.coherence, shared.remote_usable())
    }

    /// What happens to this instance from now on. A receiver that falls behind loses the oldest events and is told.
    #[must_use]
    pub fn events(&self) -> broadcast::Receiver<Event> {
        self.shared().signals.events()
    }

    /// What this instance has counted.
    #[must_use]
    pub fn stats(&self) -> InstanceStats {
        self.shared().counters.snapshot()
    }

    /// Time from a commit on another instance to the eviction here, where a hint brought it. By the wall clocks of
    /// both.
    #[must_use]
    pub fn propagation(&self) -> &Histogram {
        self.shared().propagation.histogram()
    }

    /// What was served as fresh, by how old it may have been at most: the time since the poll was sent that the lease rests on,
    /// and never more than the bound. Hits of L1 are sampled, one of a thousand.
    #[must_use]
    pub fn staleness(&self) -> &Histogram {
        self.shared().staleness.histogram()
    }

    /// What the auditor has found: how coherent what was served has been, in nines. See [`PertoBuilder::audit_rate`].
    #[must_use]
    pub fn audits(&self) -> Audits {
        self.shared().nines.audits(self.shared().coherence.clock.now_ms())
    }

    /// Tasks of this instance that have not ended.
    #[must_use]
    pub fn tasks(&self) -> usize {
        self.shared().tasks.len()
    }

    /// Applies a committed write here, and tells L2 and the other instances, in one round trip to Redis.
    ///
    /// For writes that the library did not make itself, after their commit. Nothing rests on it but speed: the log has
    /// the write, and every instance learns of it with its next poll. Dropping the future leaves the rest to the tail.
    pub async fn announce(&self, token: Token, changes: &[Change]) {
        self.shared().announce(token, changes).await;
    }

    pub(crate) fn shared(&self) -> &Arc<Shared> {
        &self.0.0
    }
}

/// A start under way. Dropped before it is done, by an error or by whoever waited for it, it leaves an instance that
/// may be started again.
struct Starting<'a> {
    shared: &'a Shared,
    done: bool,
}

impl Drop for Starting<'_> {
    fn drop(&mut self) {
        if !self.done {
            // Caches may be declared again, which would not know what this start has read.
            self.shared.coherence.lease.begin_era();
            *self.shared.started.write() = false;
        }
    }
}

impl Shared {
    /// Drops the task where the instance has ended: nobody would wait for it.
    pub(crate) fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        // Held until the task is counted: an end in between would not wait for it.
        let _open = self.caches.read();
        if !self.is_closed() {
            self.tasks.spawn(task);
        }
    }

    fn spawn_until_end(&self, task: impl Future<Output = ()> + Send + 'static) {
        let ending = self.ending.clone();
        self.tasks.spawn(async move {
            tokio::select! {
                biased;
                () = ending.cancelled() => {}
                () = task => {}
            }
        });
    }

    /// Runs a task that goes on until the instance ends, and begins it anew after a panic: the application's own code runs in
    /// it, as the subscriber of its log. It is told of as this trouble, which the task ends once all is well; the others
    /// have nothing to tell but what the panic says.
    fn spawn_endless<F: Future<Output = ()> + Send>(
        self: &Arc<Self>,
        trouble: Option<TroubleKind>,
        begin: impl Fn(Arc<Self>) -> F + Send + Sync + 'static,
    ) {
        let shared = Arc::clone(self);
        self.spawn_until_end(async move {
            loop {
                let task = AssertUnwindSafe(async { begin(Arc::clone(&shared)).await });
                let _panicked = task.catch_unwind().await;
                if let Some(trouble) = trouble {
                    let why = "the task that looks after it has panicked, and begins anew";
                    let tell = || shared.signals.begin(trouble.anywhere(), why);
                    let _told = std::panic::catch_unwind(AssertUnwindSafe(tell));
                }
                tokio::time::sleep(AFTER_A_PANIC).await;
            }
        });
    }

    /// Completes when the instance is being shut down.
    pub(crate) async fn closing(&self) {
        self.ending.cancelled().await;
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.ending.is_cancelled()
    }

    fn close(&self) {
        self.signals.closed.store(true, Ordering::Release);
        self.signals.observe(State::Closed);
        {
            let _no_task_begins = self.caches.write();
            self.ending.cancel();
        }
        // Nobody follows the log for L1 any more: no hit from now on.
        self.coherence.lease.begin_era();
        self.tasks.close();
        // The caches know the instance, and the instance the caches.
        *self.caches.write() = Arc::default();
    }

    pub(crate) fn caches(&self) -> Arc<Caches> {
        Arc::clone(&self.caches.read())
    }

    pub(crate) fn register(&self, cache: Arc<dyn Applied>) -> Result<(), StartError> {
        let refuse = |problem: String| Err(StartError::Setting { setting: "cache", problem });
        // Held until the cache is there: a start in between would read the log without it.
        let started = self.started.read();
        if *started {
            // What the log said before would be unknown to it.
            return refuse(format!("{:?} must be declared before the instance starts", cache.name()));
        }
        let mut caches = self.caches.write();
        // Under the lock: the end takes all caches out of it, or the instance and this cache would keep each other for ever.
        if self.is_closed() {
            return Err(StartError::Closed);
        }
        if caches.contains_key(cache.name()) {
            return refuse(format!("{:?} is declared twice", cache.name()));
        }
        Arc::make_mut(&mut caches).insert(cache.name().to_owned(), cache);
        Ok(())
    }

    /// A place among the concurrent loads, if there is one. Nobody who waits is overtaken.
    pub(crate) fn free_load_place(&self) -> Option<SemaphorePermit<'_>> {
        self.loads.try_acquire().ok()
    }

    /// A place among the concurrent loads.
    pub(crate) async fn load_place(&self) -> Result<SemaphorePermit<'_>, Error> {
        self.loads.acquire().await.map_err(|_closed| Error::Closed)
    }

    /// One of the places, if there is another besides.
    pub(crate) fn spare_load_place(&self) -> Option<SemaphorePermit<'_>> {
        let place = self.loads.try_acquire().ok()?;
        (self.loads.available_permits() > 0).then_some(place)
    }

    /// Whether hints arrive, so that the tail may take its time.
    pub(crate) fn hints_come(&self) -> bool {
        self.signals.bus_up.load(Ordering::Acquire)
    }

    pub(crate) fn remote_usable(&self) -> bool {
        self.remote.is_some() && self.breaker.is_closed()
    }

    pub(crate) fn remote_key(&self, epoch: u64, cache: &str, version: u16, key: &str) -> String {
        InRemote::name(&self.app, epoch, cache, version, key)
    }

    /// How long [`Shared::remote_get`] may take.
    pub(crate) fn remote_limit(&self, keys: usize) -> Duration {
        let round_trips = u32::try_from(keys.div_ceil(KEYS_AT_ONCE)).unwrap_or(u32::MAX);
        self.settings.remote_timeout.saturating_mul(round_trips)
    }

    /// Looks into L2. Nothing where it can't be used: trouble costs a read the L2 timeout once, then the breaker is open.
    pub(crate) async fn remote_get(
        &self,
        names: &[String],
        most: usize,
        trace: &Trace,
    ) -> Vec<Option<Bytes>> {
        match &self.remote {
            Some(remote) if self.breaker.is_closed() => {
                let mut found = Vec::with_capacity(names.len());
                for names in names.chunks(KEYS_AT_ONCE) {
                    let span = redis_span(trace, Kind::Client, "GETRANGE", names.len());
                    match self.guard(remote.get(names, most)).await {
                        Some(values) => {
                            let hits = values.iter().filter(|value| value.is_some()).count();
                            span.number("perto.found", hits as u64);
                            found.extend(values);
                        }
                        None => {
                            span.failed(&NO_ANSWER);
                            break;
                        }
                    }
                }
                found
            }
            _ => Vec::new(),
        }
    }

    /// An operation on Redis within the L2 timeout. Only silence and broken connections open the breaker: a server that
    /// refuses one operation is up.
    async fn guard<T>(&self, operation: impl Future<Output = Result<T, RemoteError>>) -> Option<T> {
        let done = self.try_for(self.settings.remote_timeout, operation).await;
        if matches!(done, Err(RemoteError::Refused(_))) {
            self.counters.l2_errors.add(1);
        }
        done.ok()
    }

    /// The same within a limit, with what went wrong. What was refused is for the caller to count.
    async fn try_for<T>(
        &self,
        limit: Duration,
        operation: impl Future<Output = Result<T, RemoteError>>,
    ) -> Result<T, RemoteError> {
        let done = tokio::time::timeout(limit, operation).await.unwrap_or(Err(RemoteError::Timeout));
        match &done {
            Ok(_) | Err(RemoteError::Refused(_)) => return done,
            Err(RemoteError::Unusable(_)) => self.leave_remote(),
            Err(_) => {
                self.breaker.trip();
                self.signals.changed();
            }
        }
        self.counters.l2_errors.add(1);
        done
    }

    fn leave_remote(&self) {
        self.breaker.leave();
        self.signals.changed();
    }

    /// Changes when Redis was left for good: whoever has a connection of its own makes another one.
    pub(crate) fn remote_left(&self) -> u64 {
        self.breaker.left()
    }

    pub(crate) async fn invalidate(&self, change: Change) -> Result<Token, InvalidateError> {
        if self.is_closed() {
            return Err(InvalidateError::Closed);
        }
        let limit = self.settings.log_timeout;
        // The database's own epoch: this instance may not have heard of a new one yet.
        let Appended { xid, epoch } = match tokio::time::timeout(limit, self.log.append(&change)).await {
            Ok(appended) => appended.map_err(InvalidateError::Log)?,
            Err(_elapsed) => return Err(InvalidateError::Log(LogError::Timeout(limit))),
        };
        let token = Token { epoch, xid };
        self.announce(token, &[change]).await;
        Ok(token)
    }

    pub(crate) async fn announce(&self, token: Token, changes: &[Change]) {
        if !self.coherence.lease.is_in(token.epoch) || self.is_closed() || !self.believes(token.xid) {
            return;
        }
        let span = Trace::current().begin(Kind::Internal, format_args!("announce"));
        span.number("perto.changes", changes.len() as u64);
        self.coherence.tokens.told(token, self.coherence.clock.now_ms());
        // Here first: a reader on this instance sees the write from now on.
        let evicted = self.apply(token, changes);
        span.number("perto.evicted", evicted);
        self.overtaken(token.xid);
        let trace = span.trace();
        let publish = self.publish(token, changes, &trace);
        let bury = self.bury(token, changes, &trace);
        // Both go out on one connection without waiting for each other: one round trip. The hint is first, for with
        // memory full and no eviction the tombstones may be refused.
        let (published, buried) = tokio::join!(publish, bury);
        self.signals.judge(
            TroubleKind::HintsRefused,
            published.and(buried),
            "other instances see writes with their next poll",
        );
    }

    async fn publish(&self, token: Token, changes: &[Change], trace: &Trace) -> Result<(), RemoteError> {
        let Some(bus) = self.bus.as_ref().filter(|_| self.breaker.is_closed()) else { return Ok(()) };
        let span = redis_span(trace, Kind::Producer, "PUBLISH", 1);
        let since_1970 = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let hint = Hint {
            epoch: token.epoch,
            publisher: self.publisher,
            sequence: self.sequence.fetch_add(1, Ordering::Relaxed) + 1,
            xid: token.xid,
            changes: changes.to_vec(),
            committed_unix_us: u64::try_from(since_1970.as_micros()).unwrap_or(u64::MAX),
            traceparent: span.traceparent(),
        };
        let listening = self.hints_come();
        let sent = match hint.encode() {
            Some(bytes) => self.try_for(self.settings.remote_timeout, bus.publish(bytes)).await,
            // Too long. The log has it.
            None => {
                self.counters.hints_failed.add(1);
                span.failed(&"too long");
                return Ok(());
            }
        };
        match sent {
            Ok(Some(0)) if listening => {
                self.leave_remote();
                self.counters.hints_failed.add(1);
                Err(RemoteError::Refused(Arc::new(Unheard)))
            }
            Ok(_) => {
                self.counters.hints_published.add(1);
                Ok(())
            }
            Err(error) => {
                span.failed(&NO_ANSWER);
                self.counters.hints_failed.add(1);
                Err(error)
            }
        }
    }

    async fn bury(&self, token: Token, changes: &[Change], trace: &Trace) -> Result<(), RemoteError> {
        let Some(remote) = self.remote.as_ref().filter(|_| self.breaker.is_closed()) else { return Ok(()) };
        let caches = self.caches();
        let mut names = Vec::new();
        for change in changes {
            let Some(cache) = caches.get(change.cache.as_str()).filter(|cache| !cache.local_only()) else {
                continue;
            };
            let name = |key: &String| self.remote_key(token.epoch, &change.cache, cache.version(), key);
            names.extend(change.keys.iter().flatten().map(name));
        }
        for names in names.chunks(KEYS_AT_ONCE) {
            let span = redis_span(trace, Kind::Client, "EVALSHA", names.len());
            span.text("db.stored_procedure.name", "invalidate");
            let burying = remote.invalidate(names, token.xid, TOMBSTONE_TTL);
            self.try_for(self.settings.remote_timeout, burying).await.inspect_err(|_| {
                span.failed(&NO_ANSWER);
                self.counters.hints_failed.add(1);
            })?;
        }
        Ok(())
    }
}

#[derive(Debug, thiserror::Error)]
#[error(
    "nobody is subscribed where hints are published, not even this instance: they reach different servers"
)]
struct Unheard;

const NO_ANSWER: &str = "Redis refused, or did not answer in time";

/// <https://opentelemetry.io/docs/specs/semconv/database/redis/>
fn redis_span(trace: &Trace, kind: Kind, operation: &str, commands: usize) -> Span {
    let span = trace.begin(kind, format_args!("{operation}"));
    span.text("db.system.name", "redis");
    span.text("db.operation.name", operation);
    if commands > 1 {
        span.number("db.operation.batch.size", commands as u64);
    }
    span
}

/// A number that no other instance has, for hints.
fn random() -> u64 {
    let mut hasher = std::hash::RandomState::new().build_hasher();
    hasher.write_u128(SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos());
    hasher.write_u32(std::process::id());
    hasher.finish()
}

impl Drop for Owner {
    fn drop(&mut self) {
        self.0.close();
    }
}

impl Debug for Perto {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Perto").field("app", &self.shared().app).field("health", &self.health()).finish()
    }
}

impl Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shared").field("app", &self.app).finish_non_exhaustive()
    }
}
