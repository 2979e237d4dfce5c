//! What comes from below: values read from L2, values loaded, and where they go from there.

use std::borrow::Borrow;
use std::collections::HashMap;
use std::fmt::Display;
use std::hash::Hash;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;

use super::led::{LedKey, Piece};
use super::loader::{self, Load, Loaded, Previous, Shown, Stamp};
use super::pace::Slow;
use super::policy::millis;
use super::{Core, FlightResult, Key, Outcome, Value};
use crate::clock::Clock;
use crate::coherence::buckets::{Slot, Subject};
use crate::coherence::lease::LeaseView;
use crate::coherence::snapshot::{Origin, Snapshot};
use crate::coherence::spelling::is_spelled_otherwise;
use crate::coherence::token::Token;
use crate::coherence::verdict::{FlightSource, Write};
use crate::coherence::{Coherence, ReadStart};
use crate::error::{Cause, Error};
use crate::health::Event;
use crate::health::troubles::TroubleKind;
use crate::local::{Entry, Made, MadeOf};
use crate::read::Wish;
use crate::shared::Unjudged;
use crate::shared::fills::{Claim, Fill};
use crate::shared::polls::Asked;
use crate::wire::codec::Codec;
use crate::wire::flaw::Flaw;
use crate::wire::{self, Dependency, Payload, Refused, Stored, read_back, tape};

const LOADED_IN_A_WRITE: &str =
    "the loader read in a transaction that has written; load on a connection of its own";
/// Longest life of a value in L2: what its header can say, 49 days.
const MAX_LIFE: Duration = Duration::from_millis(u32::MAX as u64);
/// Bytes for L2 that are made before others get their turn.
const BYTES_AT_A_TIME: usize = 64 << 10;
/// How long it is a trouble that a loader brought other keys than it was asked for.
const DISAGREEMENT_LASTS: Duration = Duration::from_mins(10);
/// How long it is a trouble that L2 was found to be slow. While there are reads, it is looked at once a second.
const SLOW_LASTS: Duration = Duration::from_secs(5);
/// How long a value that was kept out of L2 is a trouble.
const UNSTORABLE_LASTS: Duration = Duration::from_mins(10);

impl<K: Key, V: Value> Core<K, V> {
    /// Puts an entry into L1 if it is accepted, under the stripe of its key, by the key's bucket. Returns whether it was.
    pub(super) fn insert(
        &self,
        key: &K,
        slot: Slot,
        entry: &Arc<Entry<V>>,
        start: ReadStart,
        weight: u32,
    ) -> bool {
        let buckets = &self.shared.coherence.buckets;
        let insert = || {
            // An entry of an ended era would be dead weight.
            if entry.life.era() != self.shared.coherence.lease.held().era() {
                return;
            }
            if self.whole.takes_fills() {
                self.local.insert(key.clone(), Arc::clone(entry), start.cache_epoch, weight);
            }
            if let Some(stale) = &self.stale {
                stale.replaced(key);
            }
        };
        let accepted = buckets.accepts_all(entry.subjects(), &entry.stamp())
            && buckets.insert_if_accepted(slot, &self.whole, &entry.stamp(), insert);
        if !accepted {
            self.counters.inserts_refused.add(1);
        }
        accepted
    }

    /// Whether an entry contains all that is known of what it was made of: no eviction tells of that. After its lease.
    pub(super) fn is_unchanged(&self, entry: &Entry<V>, held: LeaseView) -> bool {
        let Coherence { buckets, lease, .. } = &*self.shared.coherence;
        buckets.accepts_held(lease, held, entry.subjects(), &entry.stamp())
    }

    /// Drops an entry that was just read: what it was made of has changed, and it comes back no more.
    #[cold]
    pub(super) fn drop_dependent<Q>(&self, key: &Q, entry: &Arc<Entry<V>>)
    where
        K: Borrow<Q>,
        Q: ?Sized + Eq + Hash,
    {
        self.local.remove_exactly(key, entry);
        self.counters.dependents_dropped.add(1);
    }

    /// What each hit of an answer has to judge, where there is something.
    fn made_of(&self, text: &str, slot: Slot, depends: Vec<Dependency>) -> Result<Option<MadeOf>, Unjudged> {
        let spelling = is_spelled_otherwise(text).then_some(slot);
        if depends.is_empty() && spelling.is_none() {
            return Ok(None);
        }
        if !Dependency::fit(&depends) {
            return Err(Unjudged::TooMany(depends.len()));
        }
        let own = spelling.map(|slot| Ok(Subject { slot, whole: Arc::clone(&self.whole) }));
        let known = |on: &Dependency| self.shared.subject(on);
        let subjects = own.into_iter().chain(depends.iter().map(known)).collect::<Result<_, _>>()?;
        Ok(Some(MadeOf { subjects, depends: depends.into() }))
    }

    /// A value from L2, if it can be read and contains every invalidation known here.
    pub(super) fn read_remote(
        &self,
        name: &str,
        bytes: &Bytes,
        key: &LedKey<K, FlightResult<V>>,
        start: ReadStart,
        came: Moment,
    ) -> Option<Entry<V>> {
        let unreadable = |refused| {
            self.counters.l2_unreadable.add(1);
            refused
        };
        let stored = match Stored::decode(name, bytes).map_err(unreadable) {
            Ok(stored) => stored?,
            Err(Refused::Corrupt) => {
                // Its stamp may look newer than any, and would keep good values out.
                self.shared.remote_discard(name.to_owned(), bytes.clone());
                return None;
            }
            Err(Refused::Foreign) => return None,
        };
        let Ok(made_of) = self.made_of(&key.text, key.slot, stored.depends) else {
            self.counters.l2_undeclared.add(1);
            return None;
        };
        let buckets = &self.shared.coherence.buckets;
        let subjects = made_of.as_ref().map_or(&[][..], |made_of| &made_of.subjects);
        if !(buckets.accepts(key.slot, &self.whole, &stored.stamp)
            && buckets.accepts_all(subjects, &stored.stamp))
        {
            self.counters.l2_refused.add(1);
            return None;
        }
        let value = match &stored.payload {
            None => None,
            Some(payload) => Some(self.decoded(payload).map_err(unreadable).ok()?),
        };
        // The wall clocks of two machines only ever decide how long this lives, never whether it is fresh.
        let age_ms = came.unix_ms.saturating_sub(stored.created_unix_ms);
        // A server that was restored, or a fill that was long under way, may keep a value for longer than its life.
        // What is due to be refreshed is loaded.
        let (ahead, is_brief) = self.ahead_of(Duration::from_millis(u64::from(stored.life_ms)));
        let left_ms = u64::from(stored.life_ms)
            .checked_sub(age_ms.saturating_add(millis(ahead)))
            .filter(|left_ms| *left_ms > 0)?;
        let made = Made {
            era: start.era,
            expires_ms: came.now_ms.saturating_add(left_ms),
            token: stored.rank.map(|rank| Token::of_read(start.epoch, rank)),
            made_of,
            judged: true,
            is_brief,
            stamp: stored.stamp,
        };
        Some(Entry::new(value, made))
    }

    /// Calls the loader. Where it panics, so does this.
    pub(super) async fn run_loader(
        &self,
        keys: Vec<K>,
        start: ReadStart,
        wish: Wish,
        primary: bool,
    ) -> Result<Brought<K, V>, Error> {
        if !loader::read_back(&keys) {
            return Err(Error::KeyNotReadBack { cache: Arc::clone(&self.name) });
        }
        // Before the loader: what ends while it computes may be missed.
        let ended = self.shared.coherence.ended_by_now(start.era);
        let (mut loaded, mut unmodified) =
            self.call_loader(&keys, primary, self.shown(&keys, start, primary)).await?;
        if !unmodified.is_empty() && !self.shared.leased() {
            // The log may have moved meanwhile to where these versions stand for other values.
            (loaded, unmodified) = self.call_loader(&keys, primary, Previous::default()).await?;
        }
        let depends = loaded.depends(&keys, &unmodified);
        if loaded.computed {
            // Without one it contains nothing: then it is not cached.
            if let Some(ended) = ended {
                loaded.stamp.snapshot = (*ended).clone();
            }
            return Ok(Brought {
                loaded,
                unmodified,
                depends,
                from: FlightSource::Computed,
                lacking: Vec::new(),
            });
        }
        if !self.policy.sources.declared && !self.undeclared.swap(true, Ordering::Relaxed) {
            self.shared.signals.send(Event::Undeclared { cache: self.name.to_string() });
        }
        if loaded.stamp.wrote {
            // Its transaction may roll back, and then nothing would ever invalidate what it read.
            let source: Cause = Arc::from(loader::BoxError::from(LOADED_IN_A_WRITE));
            return Err(Error::Load { cache: Arc::clone(&self.name), source });
        }
        if self.shared.is_elsewhere(loaded.stamp.server) {
            // An old primary, or another database: its numbers say nothing here. It is cached nowhere.
            loaded.stamp.snapshot = Snapshot::all_below(0);
            loaded.stamp.origin = Origin::Unknown;
            loaded.stamp.rank = None;
            // Without a lease the log may have moved there, and nobody knows better.
            if !self.shared.leased() {
                return Ok(Brought {
                    loaded,
                    unmodified,
                    depends,
                    from: FlightSource::Elsewhere,
                    lacking: Vec::new(),
                });
            }
        }
        if !self.shared.coherence.follows_in(start.epoch) {
            loaded.stamp.rank = None;
        }
        // A transaction that was begun before this read has an old snapshot, and is the primary's all the same.
        let new = start.poll.is_none_or(|poll| loaded.stamp.snapshot.rank() >= poll);
        if loaded.stamp.origin == Origin::Primary && new {
            return Ok(Brought {
                loaded,
                unmodified,
                depends,
                from: FlightSource::Primary,
                lacking: Vec::new(),
            });
        }
        let lacking = match start.era == self.shared.coherence.lease.held().era() {
            true => self.lacking(&keys, &depends, &loaded.stamp.snapshot, start, wish),
            false => Vec::new(),
        };
        if !primary && lacking.contains(&true) {
            self.counters.replica_reloads.add(1);
        }
        Ok(Brought { loaded, unmodified, depends, from: FlightSource::Unknown, lacking })
    }

    /// One call of the loader: what it brings, and what it has found unmodified of what it was shown.
    async fn call_loader(
        &self,
        keys: &[K],
        primary: bool,
        shown: Previous<K, V>,
    ) -> Result<(Loaded<K, V>, Shown<K, V>), Error> {
        self.counters.loads.add(1);
        self.counters.keys_loaded.add(keys.len() as u64);
        let kept = shown.clone();
        let mut loaded = match self.loader.call(Load::new(keys.to_vec(), primary), shown).await {
            Ok(loaded) => loaded,
            Err(source) => {
                return Err(Error::Load { cache: Arc::clone(&self.name), source: Arc::from(source) });
            }
        };
        match loaded.retain_answers(keys, &self.name) {
            Ok(unasked) => self.counters.keys_unasked.add(unasked as u64),
            Err(error) => return Err(self.unanswered(error)),
        }
        // What was shown, whatever L1 holds by now: of that the loader has said nothing.
        let unmodified = loaded.unmodified(&kept);
        Ok((loaded, unmodified))
    }

    /// What a loader is shown of these keys: values that L1 holds, also those whose time is over.
    ///
    /// None without a lease, and none of another era: the numbers of versions may have been used again on the server that the loader asks.
    /// And none where it is asked a second time, because the first answer would not do.
    fn shown(&self, keys: &[K], start: ReadStart, primary: bool) -> Previous<K, V> {
        if !self.loader.is_conditional || primary || !self.shared.leased() {
            return Previous::default();
        }
        let shown = |key: &K| {
            let entry = self.to_show(key).filter(|entry| entry.life.era() == start.era)?;
            Some((key.clone(), entry))
        };
        Previous(Arc::new(keys.iter().filter_map(shown).collect()))
    }

    /// The value that L1 holds of a key, if a loader may be shown it.
    ///
    /// Not one that was invalidated, or whose cache was cleared: whoever does that by hand wants it loaded anew. Nor one that depends on other
    /// keys, of which the key's own row says nothing.
    fn to_show(&self, key: &K) -> Option<Arc<Entry<V>>> {
        let (held, pinned) = (self.shared.coherence.lease.held(), self.local.pin());
        let entry = &pinned.get(key).filter(|cached| self.is_live(cached, held))?.entry;
        let may_be = entry.value().is_some() && entry.depends().is_empty() && self.is_unchanged(entry, held);
        may_be.then(|| Arc::clone(entry))
    }

    /// Leaves L2 aside where it takes much longer than a load.
    pub(super) fn looked_up(&self, took: Duration) {
        if let Some(Slow { look_up, load }) = self.pace.looked_up(took, self.shared.clock.now_ms()) {
            let detail = format!(
                "a look into L2 takes {} ms, a load {} ms: reads of this cache go on without L2, one a second but for that",
                look_up.as_millis(),
                load.as_millis()
            );
            self.shared.signals.begin_for(SLOW_LASTS, TroubleKind::RedisUnusable.of(&self.name), &detail);
        }
    }

    /// The loader and the key's type disagree about what a key is.
    #[cold]
    fn unanswered(&self, error: Error) -> Error {
        if let Error::UnaskedKeys { unasked, .. } = error {
            self.counters.keys_unasked.add(unasked as u64);
        }
        let trouble = TroubleKind::KeysDiffer.of(&self.name);
        self.shared.signals.begin_for(DISAGREEMENT_LASTS, trouble, &error.to_string());
        error
    }

    /// For each key, whether what was read under this stamp misses a write that is known here or is asked for.
    fn lacking(
        &self,
        keys: &[K],
        depends: &[Vec<Dependency>],
        stamp: &Snapshot,
        start: ReadStart,
        wish: Wish,
    ) -> Vec<bool> {
        // A token tells of a write that may not have been heard of here.
        if wish.source || Write::of(stamp, wish.token_in(start.epoch, start.era)) != Write::Contained {
            return vec![true; keys.len()];
        }
        let buckets = &self.shared.coherence.buckets;
        let slot = |key: &K| -> Slot { buckets.slot(&self.name, &key.to_string()) };
        let is_accepted = |on: &Dependency| {
            self.shared.subject(on).is_ok_and(|subject| buckets.accepts_all(&[subject], stamp))
        };
        let mut depends = depends.iter();
        let lacks = |key: &K| {
            let depends = depends.next().map_or(&[][..], Vec::as_slice);
            !(buckets.accepts(slot(key), &self.whole, stamp) && depends.iter().all(is_accepted))
        };
        keys.iter().map(lacks).collect()
    }

    /// Gives each key of a load its outcome: into L1 if it is accepted, to L2 in the background, to all who wait. But for those of
    /// which the loader must be asked again.
    pub(super) fn share(
        self: &Arc<Self>,
        piece: Piece<K, FlightResult<V>>,
        brought: Brought<K, V>,
    ) -> Option<Piece<K, FlightResult<V>>> {
        let Brought { loaded, mut unmodified, depends, from, lacking } = brought;
        let stamp = loaded.stamp;
        let (mut depends, mut lacking) = (depends.into_iter(), lacking.into_iter());
        let mut found: HashMap<K, _> =
            loaded.found.into_iter().map(|found| (found.key, (found.value, found.ttl))).collect();
        let mut failed = loaded.failed;
        let (mut loads, mut again, mut claims) = (Vec::new(), Vec::new(), Vec::new());
        let of_all = piece.led.first()?.start;
        for mut led in piece.led {
            claims.extend(led.claim.clone());
            for key in std::mem::take(&mut led.keys) {
                let depends = depends.next().unwrap_or_default();
                let lacks = lacking.next().unwrap_or_default();
                if let Some(at) = failed.iter().position(|(failed, _)| failed == key.leader.key()) {
                    let (_, source) = failed.swap_remove(at);
                    let error = Error::Load { cache: Arc::clone(&self.name), source };
                    self.counters.load_errors.add(1);
                    self.shared.load_failed(&self.name, &error);
                    key.leader.finish(Err(error));
                    continue;
                }
                // Whoever has invalidated what was shown may have done so because it is wrong, though its version is right.
                let is_gone = |of| !self.to_show(key.leader.key()).is_some_and(|held| Arc::ptr_eq(&held, of));
                let overtaken = unmodified.get(key.leader.key()).is_some_and(is_gone);
                if (lacks || overtaken) && !piece.primary {
                    led.keys.push(key);
                    continue;
                }
                let from = if lacks { FlightSource::Behind } else { from };
                let LedKey { text, slot, leader } = key;
                let (value, ttl) = match (found.remove(leader.key()), unmodified.remove(leader.key())) {
                    (Some((value, ttl)), _) => {
                        (Came::Value(Some(value)), ttl.unwrap_or(self.policy.ttl).min(self.policy.ttl))
                    }
                    (None, Some(of)) => (Came::Unmodified(of), self.policy.ttl),
                    (None, None) => (Came::Value(None), self.policy.absent_ttl),
                };
                let ttl = self.jittered(&text, ttl);
                let entry =
                    Arc::new(self.loaded(self.made_of(&text, slot, depends), value, ttl, led.start, &stamp));
                let weight = weight(&text, &entry);
                if ttl.is_zero() {
                    // What there was before is its no more.
                    self.local.remove(leader.key());
                    if let Some(stale) = &self.stale {
                        stale.replaced(leader.key());
                    }
                    leader.finish(Ok(Outcome { entry, from }));
                    continue;
                }
                if entry.value().is_some() && from == FlightSource::Primary {
                    self.agreement.loaded(leader.key());
                }
                let inserted = entry.judged() && self.insert(leader.key(), slot, &entry, led.start, weight);
                if entry.judged() && !inserted && from == FlightSource::Computed {
                    // It contains what the last poll does, and there has been an invalidation since.
                    self.shared.polls.ask(Asked::InDoubt);
                }
                // What contains nothing would be refused by all.
                if entry.judged() && entry.stamp().xmax() > 0 {
                    loads.push(ForRemote { text, entry: Arc::clone(&entry), ttl, weight });
                }
                leader.finish(Ok(Outcome { entry, from }));
            }
            if !led.keys.is_empty() {
                again.push(led);
            }
        }
        if !self.policy.local_only && self.fills_remote() {
            self.fill(loads, of_all, claims);
        }
        (!again.is_empty()).then_some(Piece { led: again, primary: true })
    }

    /// What a load has brought for a key.
    fn loaded(
        &self,
        made_of: Result<Option<MadeOf>, Unjudged>,
        value: Came<V>,
        ttl: Duration,
        start: ReadStart,
        stamp: &Stamp,
    ) -> Entry<V> {
        let (made_of, judged) = match made_of {
            Ok(made_of) => (made_of, true),
            Err(unjudged) => {
                // At the end nothing is declared any more.
                if !self.shared.is_closed() {
                    self.unstorable(&unjudged);
                }
                (None, false)
            }
        };
        let (ahead, is_brief) = self.ahead_of(ttl);
        let made = Made {
            era: start.era,
            expires_ms: self.shared.clock.now_ms().saturating_add(millis(ttl.saturating_sub(ahead))),
            token: stamp.rank.map(|rank| Token::of_read(start.epoch, rank)),
            made_of,
            judged,
            is_brief,
            stamp: stamp.snapshot.clone(),
        };
        match value {
            Came::Value(value) => Entry::new(value, made),
            Came::Unmodified(of) => {
                self.counters.keys_unmodified.add(1);
                Entry::unmodified(&of, made)
            }
        }
    }

    /// Into L2, in the background: to prove that a value comes back as it is takes about three times as long as to read it.
    /// Until then what was claimed is.
    fn fill(self: &Arc<Self>, loads: Vec<ForRemote<V>>, start: ReadStart, claims: Vec<Arc<Claim>>) {
        let core = Arc::clone(self);
        let created_unix_ms = self.shared.clock.unix_ms();
        self.shared.remote_fill(loads.len(), claims, async move {
            let (mut fills, mut bytes) = (Vec::with_capacity(loads.len()), 0);
            for load in loads {
                let fill = core.encoded(&load, start, created_unix_ms);
                // Also of those that stay out: they took as long.
                bytes += load.weight as usize;
                fills.extend(fill);
                if bytes >= BYTES_AT_A_TIME {
                    bytes = 0;
                    tokio::task::yield_now().await;
                }
            }
            fills
        });
    }

    /// Whether L2 is given anything. Not what misses writes that nobody sees: it would outlive whoever knows of that.
    pub(super) fn fills_remote(&self) -> bool {
        self.switched.fills_remote() && self.shared.is_watched(&self.name)
    }

    /// What to put into L2, if anything.
    fn encoded(&self, load: &ForRemote<V>, start: ReadStart, created_unix_ms: u64) -> Option<Fill> {
        let same_era = start.era == self.shared.coherence.lease.held().era();
        let depends = load.entry.depends();
        if !same_era || !self.fills_remote() || !depends.iter().all(|on| self.shared.is_watched(&on.cache)) {
            return None;
        }
        let (codec, most) = (self.policy.codec, self.policy.max_value_bytes);
        let payload = match load.entry.value().as_ref().map(|value| read_back::payload(value, codec, most)) {
            None => None,
            Some(Ok(bytes)) => Some(codec.payload(bytes, self.policy.compress_above)),
            Some(Err(Flaw::TooLarge)) => {
                self.counters.too_large.add(1);
                return None;
            }
            Some(Err(flaw)) => {
                let way_out = if flaw.is_none_in_json() && codec == Codec::Bincode {
                    "`codec(Codec::Json)` may bring it back"
                } else {
                    "`perto::Value` has what can be kept"
                };
                self.unstorable(&format!("{flaw}. {way_out}; `local_only` says that it shall be so"));
                return None;
            }
        };
        let ttl = load.ttl.min(MAX_LIFE);
        let name = self.remote_key(start.epoch, &load.text);
        let stored = Stored {
            stamp: load.entry.stamp().into_owned(),
            rank: load.entry.token().and_then(Token::rank),
            depends: depends.to_vec(),
            created_unix_ms,
            life_ms: u32::try_from(ttl.as_millis()).unwrap_or(u32::MAX),
            payload,
        };
        let value = stored.encode(&name);
        Some((name, value, ttl))
    }

    #[cold]
    fn unstorable(&self, why: &dyn Display) {
        self.counters.l2_unstorable.add(1);
        let detail = format!("a value stays out of L2, so each instance loads it for itself: {why}");
        let trouble = TroubleKind::ValuesUnstorable.of(&self.name);
        self.shared.signals.begin_for(UNSTORABLE_LASTS, trouble, &detail);
    }

    /// The value of a payload from L2.
    pub(super) fn decoded(&self, payload: &Payload) -> Result<V, Refused> {
        self.policy.codec.value(payload, self.policy.max_value_bytes)
    }

    /// Most bytes that a value of this cache has in L2.
    pub(super) fn most_stored(&self) -> usize {
        wire::most_stored(self.policy.max_value_bytes)
    }

    pub(super) fn remote_key(&self, epoch: u64, text: &str) -> String {
        self.shared.remote_key(epoch, &self.kind, text)
    }
}

/// When values came, by both clocks: for all of a look-up, for each costs time to be asked.
#[derive(Clone, Copy)]
pub(super) struct Moment {
    now_ms: u64,
    unix_ms: u64,
}

impl Moment {
    pub(super) fn now(clock: &dyn Clock) -> Self {
        Self { now_ms: clock.now_ms(), unix_ms: clock.unix_ms() }
    }
}

/// What a load has brought for a key.
enum Came<V> {
    /// None where there is no such row.
    Value(Option<V>),
    /// The value of this entry is what there is.
    Unmodified(Arc<Entry<V>>),
}

/// What a load has brought, and where from.
pub(super) struct Brought<K, V> {
    loaded: Loaded<K, V>,
    /// What the loader was shown and has found unmodified.
    unmodified: Shown<K, V>,
    /// For each key that was asked for, in their order; empty where nothing depends on anything.
    depends: Vec<Vec<Dependency>>,
    from: FlightSource,
    /// For each key, whether it misses a write that is known here; empty where none does.
    lacking: Vec<bool>,
}

/// What was loaded, on its way to L2.
struct ForRemote<V> {
    text: String,
    entry: Arc<Entry<V>>,
    ttl: Duration,
    weight: u32,
}

/// The bytes of an entry, which has room for a value, also where there is none.
pub(super) fn weight<V: Value>(text: &str, entry: &Entry<V>) -> u32 {
    entry.weigh(text.len(), entry.value().as_ref().map_or(size_of::<V>(), tape::weigh))
}
