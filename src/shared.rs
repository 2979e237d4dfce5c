//! What all parts of an instance share: its settings, its tiers, its caches and its tasks.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt::{self, Debug};
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use futures_util::FutureExt;
use parking_lot::{Mutex, RwLock};
use tokio::runtime::Handle;
use tokio::sync::{Notify, Semaphore, SemaphorePermit};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::bus::Bus;
use crate::clock::Clock;
use crate::coherence::Coherence;
use crate::coherence::buckets::Subject;
use crate::coherence::lease::LeaseView;
use crate::coherence::token::Token;
use crate::coherence::tokens::Asks;
use crate::coherence::verdict::{self, LeaseVerdict};
use crate::error::{Error, StartError, chain};
use crate::health::State;
use crate::health::signals::Signals;
use crate::health::troubles::TroubleKind;
use crate::log::Log;
use crate::log::switch::Switch;
use crate::metrics::{InstanceCounters, Timing};
use crate::nines::Nines;
use crate::remote::{Breaker, Remote};
use crate::wire::{Dependency, MAX_DEPENDENCIES, MAX_DEPENDENCY_BYTES};

mod announce;
pub(crate) mod fills;
pub(crate) mod l2;
pub(crate) mod member;
pub(crate) mod polls;
pub(crate) mod recent;
pub(crate) mod repaired;
mod switched;

use member::Applied;
use polls::{Asked, Polls};
use repaired::RecentlyRepaired;

/// Before a task that has panicked begins anew.
const AFTER_A_PANIC: Duration = Duration::from_millis(50);

/// What all parts of an instance share.
pub(crate) struct Shared {
    pub(crate) app: String,
    pub(crate) settings: Settings,
    pub(crate) clock: Arc<dyn Clock>,
    /// Apart from the rest: each hit reads the lease, and what stands beside it here is written by others.
    pub(crate) coherence: Box<Coherence>,
    pub(crate) polls: Polls,
    /// Writes are told of.
    pub(crate) telling: Notify,
    pub(crate) signals: Signals,
    pub(crate) counters: InstanceCounters,
    pub(crate) propagation: Timing,
    pub(crate) staleness: Timing,
    pub(crate) repaired: RecentlyRepaired,
    pub(crate) nines: Nines,
    pub(crate) publisher: u64,
    pub(crate) log: Arc<dyn Log>,
    pub(crate) remote: Option<Arc<dyn Remote>>,
    pub(crate) bus: Option<Arc<dyn Bus>>,
    pub(crate) breaker: Breaker,
    pub(crate) sequence: AtomicU64,
    pub(crate) caches: RwLock<Arc<Caches>>,
    pub(crate) started: RwLock<bool>,
    /// Held over a start.
    pub(crate) starting: tokio::sync::Mutex<()>,
    pub(crate) loads: Semaphore,
    pub(crate) fills: Arc<Semaphore>,
    /// What the last failed load of each cache has said.
    pub(crate) failed_loads: Mutex<HashMap<String, String>>,
    /// Caches and topics with tables that are not watched, as the last look has found; `None` before the first.
    pub(crate) unwatched: RwLock<Option<BTreeSet<String>>>,
    /// As the last poll has told.
    pub(crate) switches: Mutex<Arc<[Switch]>>,
    pub(crate) tasks: TaskTracker,
    /// Where the instance was started last.
    pub(crate) runtime: RwLock<Option<Handle>>,
    pub(crate) ending: CancellationToken,
}

/// Why a value is cached nowhere.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Unjudged {
    #[error(
        "nor in L1, for it depends on {0} keys; at most {MAX_DEPENDENCIES} of {MAX_DEPENDENCY_BYTES} bytes can be judged at each hit: take a topic"
    )]
    TooMany(usize),
    #[error("nor in L1, for it depends on {0:?}, which this instance does not declare as a cache or topic")]
    Undeclared(Arc<str>),
    #[error("nor in L1, for it depends on a key of {0:?} that is no key of that type")]
    NotAKey(Arc<str>),
}

/// In order, so that a simulated history replays exactly.
pub(crate) type Caches = BTreeMap<String, Arc<dyn Applied>>;

#[derive(Debug, Clone)]
pub(crate) struct Settings {
    pub(crate) bound: Duration,
    pub(crate) poll_interval: Duration,
    /// Of polls that readers wait for.
    pub(crate) min_poll_interval: Duration,
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

impl Shared {
    /// Drops the task where the instance has ended: nobody would wait for it.
    pub(crate) fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        // Held until the task is counted: an end in between would not wait for it.
        let _open = self.caches.read();
        if !self.is_closed() {
            self.spawn_here(task);
        }
    }

    /// On the runtime of the instance, for what a reader begins is everybody's: a reader's own may be polled only while that reader waits.
    fn spawn_here(&self, task: impl Future<Output = ()> + Send + 'static) {
        match &*self.runtime.read() {
            Some(runtime) => self.tasks.spawn_on(task, runtime),
            None => self.tasks.spawn(task),
        };
    }

    /// The same, for what is dropped when the instance closes.
    pub(crate) fn spawn_until_closing(self: &Arc<Self>, task: impl Future<Output = ()> + Send + 'static) {
        let shared = Arc::clone(self);
        self.spawn(async move {
            tokio::select! {
                biased;
                () = shared.closing() => {}
                () = task => {}
            }
        });
    }

    pub(crate) fn spawn_until_end(&self, task: impl Future<Output = ()> + Send + 'static) {
        let ending = self.ending.clone();
        self.spawn_here(async move {
            tokio::select! {
                biased;
                () = ending.cancelled() => {}
                () = task => {}
            }
        });
    }

    /// Runs a task that goes on until the instance ends, and begins it anew after a panic: the application's
    /// own code runs in it, as the subscriber of its log. It is told of as this trouble, which the task ends
    /// once all is well; the others have nothing to tell but what the panic says.
    pub(crate) fn spawn_endless<F: Future<Output = ()> + Send>(
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
        // Asked by each read below L1: the token would take a lock that all of them share.
        self.signals.closed.load(Ordering::Acquire)
    }

    pub(crate) fn close(&self) {
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

    /// Whether there is a cache or topic of this name here.
    pub(crate) fn declares(&self, cache: &str) -> bool {
        self.caches.read().contains_key(cache)
    }

    /// Whether writes to what this cache or topic is made of are seen.
    pub(crate) fn is_watched(&self, cache: &str) -> bool {
        self.unwatched.read().as_ref().is_some_and(|unwatched| !unwatched.contains(cache))
    }

    /// What a value depends on, to be judged, where what the log says of it is known here.
    pub(crate) fn subject(&self, on: &Dependency) -> Result<Subject, Unjudged> {
        let caches = self.caches();
        let cache = caches.get(&*on.cache).ok_or_else(|| Unjudged::Undeclared(Arc::clone(&on.cache)))?;
        // As its rows are recorded, whoever has spelled it, on whatever instance.
        let text = cache.spell(&on.key).ok_or_else(|| Unjudged::NotAKey(Arc::clone(&on.cache)))?;
        let slot = self.coherence.buckets.slot(&on.cache, &text);
        Ok(Subject { slot, whole: Arc::clone(cache.whole()) })
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
        // Under the lock: the end takes all caches out of it, or the instance and this cache would keep each
        // other for ever.
        if self.is_closed() {
            return Err(StartError::Closed);
        }
        if caches.contains_key(cache.name()) {
            return refuse(format!("{:?} is declared twice", cache.name()));
        }
        Arc::make_mut(&mut caches).insert(cache.name().to_owned(), cache);
        Ok(())
    }

    pub(crate) fn freshness(&self, held: LeaseView) -> LeaseVerdict {
        verdict::freshness(held, self.clock.now_ms())
    }

    pub(crate) fn leased(&self) -> bool {
        self.freshness(self.coherence.lease.held()) == LeaseVerdict::Fresh
    }

    pub(crate) fn asks(&self, token: Token) -> Asks {
        self.coherence.asks(token, || self.clock.now_ms())
    }

    /// Whether the log is on another server than this, as far as is known here. Asks for a poll then, for the
    /// log may have moved there.
    pub(crate) fn is_elsewhere(&self, server: Option<u64>) -> bool {
        let elsewhere = self.coherence.is_elsewhere(server);
        if elsewhere {
            self.polls.ask(Asked::InDoubt);
        }
        elsewhere
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

    pub(crate) fn load_failed(&self, cache: &str, error: &Error) {
        if !matches!(error, Error::Closed) {
            self.failed_loads.lock().insert(cache.to_owned(), chain(error));
        }
    }
}

impl Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shared").field("app", &self.app).finish_non_exhaustive()
    }
}
