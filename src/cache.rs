//! `Cache<K, V>`: the read path, top to bottom.
//!
//! A read looks into L1 ([`Cache::hit`]); else it joins or leads the key's flight ([`Cache::read`]); a leader looks into L2
//! ([`Core::look_up`]) and hands what is missing to a load that the instance owns ([`Core::load`]), so that a reader
//! who goes away wastes nothing. Each reader then judges the outcome for itself ([`Cache::judge`]).

use std::borrow::Borrow;
use std::fmt::Debug;
use std::hash::Hash;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use crate::coherence::buckets::WholeCache;
use crate::coherence::lease::LeaseView;
use crate::coherence::token::Token;
use crate::coherence::verdict::{FlightSource, Write};
use crate::error::{Error, InvalidateError};
use crate::local::{Cached, Entry, GroupOf, Local};
use crate::log::switch::TierMode;
use crate::metrics::{CacheCounters, CacheStats, Histogram, Timing};
use crate::read::{Freshness, Read, ReadOptions, Tier, Wish};
use crate::shared::Shared;
use crate::shared::recent::Recent;
use crate::trace::{self, Span};
use crate::wire::shape::Shape;
use crate::wire::{self, Change, Dependency, MAX_KEY_BYTES};

mod agreement;
pub(crate) mod audit;
mod batches;
pub(crate) mod builder;
mod claims;
mod compare;
mod fetch;
pub(crate) mod flight;
mod gather;
pub(crate) mod inspect;
mod led;
pub(crate) mod loader;
mod member;
mod missed;
mod pace;
pub(crate) mod policy;
mod refresh;
mod sampler;
mod settle;
mod sources;
mod stale;
mod switched;
pub(crate) mod topic;
pub(crate) mod types;

use agreement::Agreement;
use flight::Flights;
use gather::{FEW_LOADS, FEW_LOOK_UPS, Gather};
use led::Led;
use loader::Loader;
use pace::Pace;
use policy::Policy;
use sampler::{Chance, Sampler};
use stale::StaleEntries;
use switched::Switched;

pub use types::{Key, Value};

/// A coherent cache of the rows that a loader reads. Cheap to clone; all clones are one cache.
pub struct Cache<K: Key, V: Value>(pub(crate) Arc<Core<K, V>>);

pub(crate) struct Core<K: Key, V: Value> {
    pub(crate) name: Arc<str>,
    pub(crate) shared: Arc<Shared>,
    pub(crate) policy: Policy,
    /// Which values in L2 are its own.
    kind: Box<str>,
    is_untraced: bool,
    local: Local<K, V>,
    stale: Option<StaleEntries<K, V>>,
    switched: Switched,
    me: Weak<Self>,
    whole: Arc<WholeCache>,
    flights: Arc<Flights<K, FlightResult<V>>>,
    loader: Loader<K, V>,
    sampler: Sampler<K, V>,
    pace: Pace,
    look_ups: Arc<Gather<Led<K, FlightResult<V>>>>,
    loads: Arc<Gather<Led<K, FlightResult<V>>>>,
    /// Whether it was told of that it declares no tables.
    undeclared: AtomicBool,
    agreement: Agreement<K>,
    counters: CacheCounters,
    recent: Recent,
    /// By tier.
    latencies: [Timing; 3],
}

type FlightResult<V> = Result<Outcome<V>, Error>;

/// What a flight brings. Each waiter judges it.
struct Outcome<V> {
    entry: Arc<Entry<V>>,
    from: FlightSource,
}

impl<K: Key, V: Value> Cache<K, V> {
    /// Reads one key: from L1, else from L2, else by the loader. A key may be asked for by what it borrows as: a `String` by a `&str`.
    ///
    /// Dropping the future abandons nothing but the answer: a load that has begun goes on and is cached. One that waits for a place is
    /// dropped when nobody waits for it.
    ///
    /// # Errors
    /// [`Error::Load`] and its kin where the loader was needed and failed, within the times for L2 and for a load;
    /// [`Error::Unverified`] where the policy says so; [`Error::Closed`] after shutdown.
    pub async fn get<Q>(&self, key: &Q) -> Result<Read<V>, Error>
    where
        K: Borrow<Q>,
        Q: ?Sized + Eq + Hash + Sync + ToOwned<Owned = K>,
    {
        match self.noted_hit(key, Wish::NONE) {
            Some(read) => Ok(read),
            None => self.get_slow(key.to_owned(), Wish::NONE).await,
        }
    }

    /// Reads one key, with options.
    ///
    /// # Errors
    /// Those of [`Cache::get`], and [`Error::TokenAhead`].
    pub async fn get_with<Q>(&self, key: &Q, options: ReadOptions) -> Result<Read<V>, Error>
    where
        K: Borrow<Q>,
        Q: ?Sized + Eq + Hash + Sync + ToOwned<Owned = K>,
    {
        let wish = self.wish(options);
        match self.noted_hit(key, wish) {
            Some(read) => Ok(read),
            None => self.get_slow(key.to_owned(), wish).await,
        }
    }

    fn ahead(&self) -> Error {
        let shared = &self.0.shared;
        shared.coherence.tokens.was_untrue(shared.clock.now_ms());
        Error::TokenAhead
    }

    /// Reads many keys: one pass over L1, one round trip to L2, one call of the loader with what is missing, joined
    /// key by key with loads that run already. Answers come in the order of the keys.
    ///
    /// # Errors
    /// Those of [`Cache::get`]; one key's error is the error of all.
    pub async fn get_many(&self, keys: &[K]) -> Result<Vec<Read<V>>, Error> {
        Box::pin(self.read(keys, Wish::NONE)).await
    }

    /// Reads many keys, with options.
    ///
    /// # Errors
    /// Those of [`Cache::get_with`].
    pub async fn get_many_with(&self, keys: &[K], options: ReadOptions) -> Result<Vec<Read<V>>, Error> {
        Box::pin(self.read(keys, self.wish(options))).await
    }

    /// What L1 holds and may serve as fresh. No I/O, no load.
    #[must_use]
    pub fn get_if_cached<Q>(&self, key: &Q) -> Option<Read<V>>
    where
        K: Borrow<Q>,
        Q: ?Sized + Eq + Hash + Sync + ToOwned<Owned = K>,
    {
        self.noted_hit(key, Wish::NONE)
    }

    /// What L1 holds and may serve under these options without waiting. No I/O, no load.
    #[must_use]
    pub fn get_if_cached_with<Q>(&self, key: &Q, options: ReadOptions) -> Option<Read<V>>
    where
        K: Borrow<Q>,
        Q: ?Sized + Eq + Hash + Sync + ToOwned<Owned = K>,
    {
        self.noted_hit(key, self.wish(options))
    }

    /// Looks at what L1 holds and may serve as fresh, in place: the cheapest hit there is, for it counts no reference. `None` where it
    /// holds nothing for the key; `look` is given `None` where it holds that the source has no such row.
    ///
    /// While `look` runs, what this cache lets go on this instance is not freed: it should be short.
    ///
    /// ```
    /// # async fn length(names: perto::Cache<i64, String>) -> Result<usize, perto::Error> {
    /// Ok(match names.get_ref(&7, |name| name.map_or(0, String::len)) {
    ///     Some(length) => length,
    ///     None => names.get(&7).await?.value().map_or(0, String::len),
    /// })
    /// # }
    /// ```
    #[must_use]
    pub fn get_ref<Q, T>(&self, key: &Q, look: impl FnOnce(Option<&V>) -> T) -> Option<T>
    where
        K: Borrow<Q>,
        Q: ?Sized + Eq + Hash + Sync + ToOwned<Owned = K>,
    {
        let looked = self.hit_ref(key, Wish::NONE, |entry| look(entry.value().as_ref()))?;
        trace::hits(&self.0.name, 1);
        Some(looked)
    }

    #[inline]
    fn noted_hit<Q>(&self, key: &Q, wish: Wish) -> Option<Read<V>>
    where
        K: Borrow<Q>,
        Q: ?Sized + Eq + Hash + ToOwned<Owned = K>,
    {
        let read = self.hit(key, wish)?;
        trace::hits(&self.0.name, 1);
        Some(read)
    }

    #[inline]
    fn hit<Q>(&self, key: &Q, wish: Wish) -> Option<Read<V>>
    where
        K: Borrow<Q>,
        Q: ?Sized + Eq + Hash + ToOwned<Owned = K>,
    {
        self.hit_ref(key, wish, |entry| {
            Read::of(Arc::clone(entry), Freshness::Fresh, Tier::Local, wish.floor)
        })
    }

    /// L1. The order is what makes it safe, so it is the lease's. Writes to no line that other cores write, but for what is sampled.
    #[inline]
    fn hit_ref<Q, T>(&self, key: &Q, wish: Wish, answer: impl FnOnce(&Arc<Entry<V>>) -> T) -> Option<T>
    where
        K: Borrow<Q>,
        Q: ?Sized + Eq + Hash + ToOwned<Owned = K>,
    {
        if wish.source {
            return None;
        }
        let core = &*self.0;
        let coherence = &core.shared.coherence;
        let hits = core.counters.l1_hits.here();
        // Not while there are none: all that misses would ask for the time.
        let timed = (hits.get() % HITS_PER_SAMPLE == 1).then(Instant::now);
        // Before the lease.
        let epoch = wish.token.map(|_| coherence.epoch());
        let pinned = core.local.pin();
        let (held, slot, now) =
            coherence.lease.read_in_order(|| pinned.get(key), || core.shared.clock.now_ms())?;
        let entry = &slot.entry;
        let live = core.is_live(slot, held) && entry.life.valid_at(now);
        let token = epoch.and_then(|epoch| wish.token_in(epoch, held.era()));
        let young = wish.within.is_none_or(|limit| coherence.is_within(held, now, limit));
        if !(live && held.valid_at(now) && young && contains(entry, token)) {
            return None;
        }
        if entry.made_of().is_some() && !core.is_unchanged(entry, held) {
            core.drop_dependent(key, entry);
            return None;
        }
        core.local.used(key, slot);
        core.sampler.hit(Chance::of(hits.increment()), key, slot);
        if let Some(began) = timed {
            self.record_sampled_hit(key, began, held, now);
        }
        Some(answer(entry))
    }

    #[cold]
    fn record_sampled_hit<Q: Hash + ?Sized>(&self, key: &Q, began: Instant, held: LeaseView, now_ms: u64) {
        if let Some(stale) = &self.0.stale {
            stale.hit(key);
        }
        self.0.latencies[Tier::Local as usize].record(began.elapsed());
        self.0.shared.staleness.record(self.0.shared.coherence.lease_age(held, now_ms));
    }

    pub(crate) fn texts(&self, keys: &[K]) -> Result<Vec<String>, Error> {
        texts(&self.0.name, keys)
    }

    /// A key of this cache, as something that other values depend on: see [`Loaded::depends_on`](crate::Loaded::depends_on).
    #[must_use]
    pub fn key(&self, key: &K) -> Dependency {
        Dependency { cache: Arc::clone(&self.0.name), key: key.to_string().into() }
    }

    /// Invalidates one key on every instance, for a source that no trigger watches. Recorded in Postgres, then applied
    /// here, in L2 and by hint elsewhere. Dropping the future after it was recorded leaves the rest to the tail.
    ///
    /// # Errors
    /// If it could not be recorded. Then nothing was invalidated, here neither; after a time limit it may have been.
    pub async fn invalidate(&self, key: &K) -> Result<Token, InvalidateError> {
        self.invalidate_many(std::slice::from_ref(key)).await
    }

    /// Invalidates many keys, like [`Cache::invalidate`]. More than [`MAX_KEYS_PER_ROW`](crate::MAX_KEYS_PER_ROW) clear
    /// the cache; none invalidate nothing.
    ///
    /// # Errors
    /// Those of [`Cache::invalidate`].
    pub async fn invalidate_many(&self, keys: &[K]) -> Result<Token, InvalidateError> {
        self.0.shared.invalidate_keys(&self.0.name, self.texts(keys)).await
    }

    /// Invalidates every key of this cache on every instance.
    ///
    /// # Errors
    /// Those of [`Cache::invalidate`].
    pub async fn clear(&self) -> Result<Token, InvalidateError> {
        self.0.shared.invalidate(Change { cache: self.0.name.to_string(), keys: None }).await
    }

    /// The cache's name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.0.name
    }

    /// The version of its values: see [`CacheBuilder::version`](crate::CacheBuilder::version).
    #[must_use]
    pub fn version(&self) -> u16 {
        self.0.policy.version
    }

    /// Which values in L2 are its own: `user.1.89abcdef` are those of the cache `user`, of [version](Cache::version) 1, and of a type with
    /// this fingerprint. The last is nought where the cache has no L2.
    #[must_use]
    pub fn kind(&self) -> &str {
        &self.0.kind
    }

    /// What a tier of this cache does here now: see [`Perto::switch`](crate::Perto::switch). [`Tier::Load`] is always on.
    #[must_use]
    pub fn mode(&self, tier: Tier) -> TierMode {
        match tier {
            Tier::Local => self.0.switched.local(),
            Tier::Remote => self.0.switched.remote(),
            Tier::Load => TierMode::On,
        }
    }

    /// What this cache has counted on this instance.
    #[must_use]
    pub fn stats(&self) -> CacheStats {
        self.0.counters.snapshot()
    }

    /// How long reads took that this tier answered: those of L1 are sampled, one of a thousand. A read of many keys counts once
    /// for each tier below L1 that answered some of them.
    #[must_use]
    pub fn latency(&self, tier: Tier) -> &Histogram {
        self.0.latencies[tier as usize].histogram()
    }

    /// Entries that L1 holds, and their bytes.
    #[must_use]
    pub fn size(&self) -> (u64, u64) {
        self.0.local.size()
    }

    /// Loads in progress, L2 look-ups included.
    #[must_use]
    pub fn flights(&self) -> usize {
        self.0.flights.len()
    }
}

/// The texts of keys of a cache or topic.
pub(crate) fn texts<K: Key>(of: &Arc<str>, keys: &[K]) -> Result<Vec<String>, Error> {
    keys.iter().map(|key| text(of, key)).collect()
}

fn text<K: Key>(of: &Arc<str>, key: &K) -> Result<String, Error> {
    let text = key.to_string();
    match text.len() {
        0..=MAX_KEY_BYTES => Ok(text),
        bytes => Err(Error::KeyTooLong { cache: Arc::clone(of), bytes }),
    }
}

/// Every so many hits one is timed.
const HITS_PER_SAMPLE: u64 = 1_024;

/// Whether an entry contains the write of the token.
#[inline]
fn contains<V>(entry: &Entry<V>, token: Option<(Token, u64)>) -> bool {
    token.is_none() || Write::of(&entry.stamp(), token) == Write::Contained
}

impl<K: Key, V: Value> Core<K, V> {
    pub(crate) fn whole(&self) -> Arc<WholeCache> {
        Arc::clone(&self.whole)
    }

    /// Whether what L1 holds is of this era, and of no earlier epoch of the cache.
    #[inline]
    fn is_live(&self, slot: &Cached<V>, held: LeaseView) -> bool {
        slot.entry.life.era() == held.era() && slot.cache_epoch() == self.whole.epoch()
    }

    fn counted_stale(&self, answers: Vec<Read<V>>) -> Vec<Read<V>> {
        if self.stale.is_some() {
            let is_stale = |read: &&Read<V>| read.freshness.is_stale_by_choice();
            self.counters.stale_answers.add(answers.iter().filter(is_stale).count() as u64);
        }
        answers
    }

    /// Notes what a read that went below L1 has found, and how long it took.
    fn record_answers(&self, answers: &[Read<V>], took: Duration, span: &Span) {
        let by = |tier| answers.iter().filter(|read| read.tier == tier).count() as u64;
        for (tier, name) in [(Tier::Remote, "perto.l2_hits"), (Tier::Load, "perto.loaded")] {
            let count = by(tier);
            if count > 0 {
                self.latencies[tier as usize].record(took);
                span.number(name, count);
            }
        }
        if let [read] = answers {
            span.text("perto.tier", read.tier.name());
            span.text("perto.outcome", if read.value().is_some() { "found" } else { "absent" });
            span.text("perto.freshness", read.freshness.name());
        }
        if answers.iter().any(|read| read.freshness == Freshness::Fresh) {
            let coherence = &self.shared.coherence;
            let age = coherence.lease_age(coherence.lease.held(), self.shared.clock.now_ms());
            // Without a lease the primary was read in the meantime.
            self.shared.staleness.record(age.min(coherence.bound));
        }
    }

    pub(crate) fn new(
        name: Arc<str>,
        shared: Arc<Shared>,
        policy: Policy,
        shape: Option<Shape>,
        group: Option<GroupOf<K, V>>,
        loader: Loader<K, V>,
    ) -> Arc<Self> {
        let fingerprint = shape.map_or(0, |shape| shape.fingerprint);
        Arc::new_cyclic(|core| Self {
            me: Weak::clone(core),
            stale: StaleEntries::new(&policy),
            switched: Switched::default(),
            local: Local::new(&name, policy.capacity_bytes, group),
            kind: wire::kind(&name, policy.version, fingerprint).into(),
            is_untraced: shape.is_some_and(|shape| !shape.is_whole),
            name,
            shared,
            policy,
            whole: Arc::new(WholeCache::new()),
            flights: Flights::new(),
            loader,
            sampler: Sampler::new(),
            pace: Pace::default(),
            look_ups: Gather::new(FEW_LOOK_UPS, Led::count),
            loads: Gather::new(FEW_LOADS, Led::count),
            undeclared: AtomicBool::new(false),
            agreement: Agreement::new(),
            counters: CacheCounters::default(),
            recent: Recent::new(),
            latencies: Default::default(),
        })
    }
}

impl<K: Key, V: Value> Clone for Cache<K, V> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<K: Key, V: Value> Debug for Cache<K, V> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Cache").field("name", &self.0.name).finish_non_exhaustive()
    }
}

impl<V> Clone for Outcome<V> {
    fn clone(&self) -> Self {
        Self { entry: Arc::clone(&self.entry), from: self.from }
    }
}
