//! One entry through all tiers, and why it is or isn't served. For people: no load, no hit or miss is counted.

use std::fmt;
use std::hash::BuildHasher;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use super::{Cache, Key, Value};
use crate::coherence::buckets::Subject;
use crate::coherence::known::{Known, Missing};
use crate::coherence::snapshot::Snapshot;
use crate::error::Error;
use crate::health::{Health, State};
use crate::log::switch::TierMode;
use crate::shared::Shared;
use crate::trace::Trace;
use crate::wire::{self, Dependency, Payload, Refused, Stored};

/// What an instance holds and knows of one key. Made by [`Cache::inspect`].
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Inspection {
    /// The key's text.
    pub key: String,
    /// The version of the cache's values.
    pub version: u16,
    /// Which values in L2 are the cache's own: see [`Cache::kind`].
    pub kind: String,
    /// The instance's health: its epoch, its state, its lease.
    pub health: Health,
    /// The snapshot of the last completed poll.
    pub poll: Option<Snapshot>,
    /// What is known of the key, and of others with the same hash.
    pub known: Known,
    /// What is known of the cache as a whole.
    pub whole: Known,
    /// What L1 does: see [`Perto::switch`](crate::Perto::switch).
    pub local_mode: TierMode,
    /// What L2 does.
    pub remote_mode: TierMode,
    /// What L1 holds.
    pub local: Option<InLocal>,
    /// What L2 holds.
    pub remote: InRemote,
    /// Why what L2 holds is not served. `None` where it is, or where there is no value.
    pub remote_refused: Option<Refusal>,
}

/// An entry of L1.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct InLocal {
    /// The snapshot that it was read under.
    pub stamp: Snapshot,
    /// How much longer it lives.
    pub left: Duration,
    /// Whether it says that there is no such row.
    pub absent: bool,
    /// Bytes that it counts for.
    pub weight: u32,
    /// Why it is not served as fresh now, what it depends on aside. `None` where it is.
    pub refused: Option<Refusal>,
    /// What it depends on. One of them that refuses it will do.
    pub depends: Vec<DependsOn>,
}

/// A key that a value depends on, and what it says of the value.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct DependsOn {
    /// The key.
    pub on: Dependency,
    /// Why the value is not served because of it. `None` where it is.
    pub refused: Option<Refusal>,
}

/// What lies in L2 under a key.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum InRemote {
    /// L2 is not configured, not used by this cache, switched off, or not used at the moment.
    NotUsed,
    /// Nothing.
    Nothing,
    /// A tombstone: no value may be put there that misses one of these transactions. 0 is none.
    Tombstone([u64; 2]),
    /// Bytes of another version, or damaged ones.
    Unreadable,
    /// A value.
    Value(RemoteValue),
}

/// A value in L2.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct RemoteValue {
    /// The snapshot that it was read under.
    pub stamp: Snapshot,
    /// How long ago it was loaded, by the wall clocks of the machine that loaded it and of this one.
    pub age: Duration,
    /// How much longer it lives.
    pub left: Duration,
    /// Bytes of the value, as they lie there.
    pub bytes: usize,
    /// The codec that wrote it: `bincode`, `json`, or `unknown` where this build knows no such one. Nothing where it is absent.
    pub codec: &'static str,
    /// Whether it is compressed.
    pub compressed: bool,
    /// Whether it says that there is no such row.
    pub absent: bool,
    /// What it depends on.
    pub depends: Vec<Dependency>,
}

/// Why an entry is not served.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Refusal {
    /// The log has not been read in time: nothing is fresh.
    Lease,
    /// Its load began before the instance last read the log anew.
    Era,
    /// Its load began before the whole cache was invalidated.
    WholeCache,
    /// Its life is over.
    Expired,
    /// It misses a write to the key, or to another with the same hash.
    Misses(Missing),
    /// It misses an invalidation of the whole cache.
    WholeMisses(Missing),
    /// It is not of the cache's type.
    OtherType,
    /// It depends on a cache that is not declared there, or on what is no key of it.
    Undeclared,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Lease => f.write_str("the log has not been read in time"),
            Self::Era => f.write_str("loaded before the log was read anew"),
            Self::WholeCache => f.write_str("loaded before the cache was cleared"),
            Self::Expired => f.write_str("expired"),
            Self::Misses(missing) => missing.fmt(f),
            Self::WholeMisses(missing) => write!(f, "{missing}, of the whole cache"),
            Self::OtherType => f.write_str("not of the cache's type"),
            Self::Undeclared => f.write_str("of a cache that is not declared here"),
        }
    }
}

impl InRemote {
    /// The name in Redis under which the value of a key lies. The kind is [`Cache::kind`].
    #[must_use]
    pub fn name(app: &str, epoch: u64, kind: &str, key: &str) -> String {
        wire::name(app, epoch, kind, key)
    }

    /// Reads what lies under a name, as an instance would. `unix_ms` is the time, for what is left of its life.
    #[must_use]
    pub fn decode(name: &str, bytes: Option<&Bytes>, unix_ms: u64) -> Self {
        let Some(bytes) = bytes else { return Self::Nothing };
        match Stored::decode(name, bytes) {
            Err(Refused::Foreign | Refused::Corrupt) => Self::Unreadable,
            Ok(None) => wire::buried(bytes).map_or(Self::Unreadable, Self::Tombstone),
            Ok(Some(stored)) => {
                let age_ms = unix_ms.saturating_sub(stored.created_unix_ms);
                let (codec, compressed) = stored.payload.as_ref().map_or(("", false), Payload::described);
                Self::Value(RemoteValue {
                    age: Duration::from_millis(age_ms),
                    left: Duration::from_millis(u64::from(stored.life_ms).saturating_sub(age_ms)),
                    bytes: stored.payload.as_ref().map_or(0, |payload| payload.bytes.len()),
                    codec,
                    compressed,
                    absent: stored.payload.is_none(),
                    depends: stored.depends,
                    stamp: stored.stamp,
                })
            }
        }
    }
}

/// What [`Event::AuditViolation`](crate::Event::AuditViolation) says of a key, by the key's text.
///
/// Events and logs shall not hold what may be somebody's name. The same on every instance of one version of Perto.
#[must_use]
pub fn key_hash(text: &str) -> u64 {
    foldhash::fast::FixedState::default().hash_one(text)
}

impl<K: Key, V: Value> Cache<K, V> {
    /// What this instance holds and knows of a key. No load, no hit or miss is counted; for moka it is a use of the
    /// entry.
    ///
    /// L2 is asked like for a read: within its timeout, and not at all where it is not used at the moment. Where it fails
    /// or is too slow, that counts as for a read: among the errors of L2, and towards its not being used for a while.
    ///
    /// # Errors
    /// [`Error::KeyTooLong`].
    pub async fn inspect(&self, key: &K) -> Result<Inspection, Error> {
        let core = &self.0;
        let shared = &core.shared;
        let text = self.texts(std::slice::from_ref(key))?.pop().unwrap_or_default();
        let slot = shared.coherence.buckets.slot(&core.name, &text);
        let name = core.remote_key(shared.coherence.epoch(), &text);
        let bytes = match core.policy.local_only || !core.switched.reads_remote() {
            true => Vec::new(),
            false => {
                let names = std::slice::from_ref(&name);
                shared.remote_get(names, core.most_stored(), &Trace::current()).await
            }
        };
        // All else after the wait, so that it is of one moment, or nearly.
        let (known, whole) = shared.coherence.buckets.known(slot, &core.whole);
        let remote = match bytes.first() {
            None => InRemote::NotUsed,
            Some(bytes) => InRemote::decode(&name, bytes.as_ref(), shared.clock.unix_ms()),
        };
        let remote_refused = match (&remote, bytes.first()) {
            (InRemote::Value(value), Some(Some(bytes))) => self.why_not(value, &known, &whole, &name, bytes),
            _ => None,
        };
        Ok(Inspection {
            version: core.policy.version,
            kind: core.kind.to_string(),
            health: shared.signals.health(&shared.coherence, shared.remote_usable()),
            poll: shared.coherence.buckets.poll().map(Arc::unwrap_or_clone),
            local_mode: core.switched.local(),
            remote_mode: core.switched.remote(),
            local: self.in_local(key),
            key: text,
            known,
            whole,
            remote,
            remote_refused,
        })
    }

    fn in_local(&self, key: &K) -> Option<InLocal> {
        let coherence = &self.0.shared.coherence;
        let held = coherence.lease.held();
        let pinned = self.0.local.pin();
        let slot = pinned.get(key)?;
        let entry = &slot.entry;
        let now = self.0.shared.clock.now_ms();
        // As a hit looks at it; see `Cache::hit`.
        let refused = if entry.life.era() != held.era() {
            Some(Refusal::Era)
        } else if slot.cache_epoch() != self.0.whole.epoch() {
            Some(Refusal::WholeCache)
        } else if now >= self.0.end_of_life(entry) {
            Some(Refusal::Expired)
        } else if !held.valid_at(now) {
            Some(Refusal::Lease)
        } else {
            None
        };
        let misses = |subject: &Subject| missed(&self.0.shared, subject, &entry.stamp());
        // Where the log may name it in another spelling, its own key is the first of them.
        let subjects = entry.subjects();
        let (own, others) = subjects.split_at(subjects.len() - entry.depends().len());
        let refused = refused.or_else(|| own.iter().find_map(misses));
        let depends = entry.depends().iter().zip(others);
        let depends = depends.map(|(on, subject)| DependsOn { on: on.clone(), refused: misses(subject) });
        Some(InLocal {
            stamp: entry.stamp().into_owned(),
            left: Duration::from_millis(self.0.end_of_life(entry).saturating_sub(now)),
            absent: entry.value().is_none(),
            weight: slot.weight(),
            refused,
            depends: depends.collect(),
        })
    }

    /// Why a value of this stamp is not served, since it depends on that.
    fn misses(&self, on: &Dependency, stamp: &Snapshot) -> Option<Refusal> {
        let shared = &self.0.shared;
        let Ok(subject) = shared.subject(on) else { return Some(Refusal::Undeclared) };
        missed(shared, &subject, stamp)
    }

    fn why_not(
        &self,
        value: &RemoteValue,
        known: &Known,
        whole: &Known,
        name: &str,
        bytes: &Bytes,
    ) -> Option<Refusal> {
        let payload = || Stored::decode(name, bytes).ok()??.payload;
        if let Some(missing) = known.misses(&value.stamp) {
            Some(Refusal::Misses(missing))
        } else if let Some(missing) = whole.misses(&value.stamp) {
            Some(Refusal::WholeMisses(missing))
        } else if let Some(refusal) = value.depends.iter().find_map(|on| self.misses(on, &value.stamp)) {
            Some(refusal)
        } else if payload().is_some_and(|payload| self.0.decoded(&payload).is_err()) {
            Some(Refusal::OtherType)
        } else if value.left.is_zero() {
            Some(Refusal::Expired)
        } else {
            let shared = &self.0.shared;
            let state = shared.signals.state(&shared.coherence, shared.remote_usable());
            (!matches!(state, State::Coherent | State::Isolated)).then_some(Refusal::Lease)
        }
    }
}

/// Which write a value of this stamp misses.
fn missed(shared: &Shared, Subject { slot, whole }: &Subject, stamp: &Snapshot) -> Option<Refusal> {
    let (key, whole) = shared.coherence.buckets.known(*slot, whole);
    let of_key = key.misses(stamp).map(Refusal::Misses);
    of_key.or_else(|| whole.misses(stamp).map(Refusal::WholeMisses))
}
