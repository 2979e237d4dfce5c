//! `Perto`: one per process. Owns the tiers, the tail, the bus, the health and every task.

use std::fmt::{self, Debug};
use std::sync::Arc;

use tokio::runtime::Handle;
use tokio::sync::broadcast;

use crate::cache::builder::CacheBuilder;
use crate::cache::topic::TopicBuilder;
use crate::cache::{Key, Value};
use crate::coherence::token::Token;
use crate::error::{Error, StartError, SwitchError};
use crate::following::hints;
use crate::following::tail::Tail;
use crate::health::troubles::TroubleKind;
use crate::health::{Event, Health, State};
use crate::log::Source;
use crate::log::switch::{Switch, Switching};
use crate::metrics::{Histogram, InstanceStats};
use crate::nines::Audits;
use crate::remote;
use crate::shared::Shared;
use crate::wire::Change;

pub(crate) mod builder;
mod declared;
mod loads;
mod upkeep;
mod watching;

use watching::Watching;

pub use builder::PertoBuilder;
pub use declared::Declared;

/// An instance of Perto. Cheap to clone; the last clone that is dropped ends its tasks, though
/// [`Perto::shutdown`] does so in order.
#[derive(Clone)]
pub struct Perto(Arc<Owner>);

struct Owner(Arc<Shared>);

impl Perto {
    /// Declares a cache, before [`Perto::start`]. `name` is how the log and other instances call it.
    pub fn cache<K: Key, V: Value>(&self, name: &str) -> CacheBuilder<K, V> {
        CacheBuilder::new(Arc::clone(self.shared()), name)
    }

    /// Declares a topic, before [`Perto::start`]: keys that values of caches depend on, and that tables are watched for. Its name is the
    /// log's, as a cache's is.
    ///
    /// ```
    /// # fn declare(perto: &perto::Perto) -> Result<(), perto::StartError> {
    /// let contacts_of_company: perto::Topic<i64> =
    ///     perto.topic("contacts_of_company").watch("contacts", "company_id").declare()?;
    /// # Ok(()) }
    /// ```
    pub fn topic<K: Key>(&self, name: &str) -> TopicBuilder<K> {
        TopicBuilder::new(Arc::clone(self.shared()), name)
    }

    /// Makes or upgrades the log's tables, and installs the triggers of every [`CacheBuilder::watch`] so far. Does nothing where
    /// all is as it should be. Call it before [`Perto::start`]; ten instances may do so at once.
    ///
    /// Needs a role that may create. Where the application's may not, the tables' owner runs `perto migrate` and `perto watch`
    /// instead.
    ///
    /// Dropping the future leaves each table as it was or as it should be.
    ///
    /// # Errors
    /// [`StartError::Log`] if Postgres can't be reached or refuses. Where the role may not create, it says what the tables' owner runs,
    /// and the grants that the role needs after.
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
    /// What the instance does runs on the runtime of this call, also what a read on another runtime has begun: keep it running.
    ///
    /// With Redis unreachable an instance starts as [`State::Isolated`] and goes on trying.
    ///
    /// Dropping the future leaves an instance that has not started. Of several calls each returns once the instance has started, or
    /// with what its own try failed with.
    ///
    /// # Errors
    /// If the log can't be read: Postgres is down, or lacks the schema (`perto migrate`), or the role lacks rights on it: the error
    /// has the statements that grant them. If a table that a cache declares
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
        *shared.runtime.write() = Some(Handle::current());
        let mut starting = Starting { shared, done: false };
        let mut tail = Tail::new(Arc::clone(shared));
        tail.begin().await.map_err(StartError::Log)?;
        for (name, cache) in &*shared.caches() {
            let cache_name = || name.clone();
            if cache.is_undeclared() {
                // No load would show it.
                shared.signals.send(Event::Undeclared { cache: cache_name() });
            }
            if cache.is_untraced() {
                shared.signals.send(Event::Untraced { cache: cache_name() });
            }
        }
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
            let tended = Arc::clone(&remote);
            shared.spawn_endless(None, move |_shared| {
                let tended = Arc::clone(&tended);
                async move { tended.tend().await }
            });
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
        shared.spawn_endless(None, upkeep::compare_keys);
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

    /// Switches a tier of a cache, or of all, off, read-only or on again, on every instance: for an incident. It is kept in Postgres, so
    /// it outlasts restarts of all, until it is ended or [ends by itself](Switching::lasting).
    ///
    /// Every instance obeys with its next poll of the log, with or without Redis: in a quarter of a second by default. When this
    /// returns, this one has mostly done so; where that poll is late, it does with the next one. Nothing that is fresh becomes less so: invalidations and the lease go on whatever is switched. It is
    /// the trouble [`Switched`](TroubleKind::Switched) for as long as it stands.
    ///
    /// | | reads | fills | goes back on |
    /// | --- | --- | --- | --- |
    /// | L1 read-only | as ever | nothing comes | with what it still holds |
    /// | L1 off | passed over | nothing comes | empty |
    /// | L2 read-only | as ever | nothing comes | with what it still holds |
    /// | L2 off | passed over | nothing comes | with what it holds and no write has touched since |
    ///
    /// The role of the database needs the right to write the log's table `switch`.
    ///
    /// Dropping the future leaves it done or not done.
    ///
    /// # Errors
    /// [`SwitchError::UnknownCache`] where no such cache is declared here, [`SwitchError::Senseless`] where the tier is no tier or a
    /// text is too long; [`SwitchError::Log`] if Postgres can't be reached or refuses: it has the statement that grants the right.
    ///
    /// ```no_run
    /// # async fn put_aside(perto: perto::Perto) -> Result<(), perto::SwitchError> {
    /// use perto::{Switching, Tier, TierMode};
    ///
    /// perto.switch(Switching::of("users", Tier::Remote, TierMode::Off).because("Redis is slow")).await?;
    /// # Ok(()) }
    /// ```
    pub async fn switch(&self, switching: Switching) -> Result<(), SwitchError> {
        self.shared().switch(&switching).await
    }

    /// What is switched, as the last poll of this instance has told; also of caches that are not declared here. Empty where all is on.
    #[must_use]
    pub fn switches(&self) -> Vec<Switch> {
        self.shared().switches.lock().to_vec()
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
        self.shared().nines.audits(self.shared().clock.now_ms())
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
            // Caches may be declared again, which would not know what this start has read, nor has anybody looked at their tables.
            self.shared.coherence.lease.begin_era();
            *self.shared.unwatched.write() = None;
            *self.shared.started.write() = false;
        }
    }
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
