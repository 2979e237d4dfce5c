//! The auditor: loads again what was served, and compares.
//!
//! The one thing that stamps can't show is a write that nothing logged: a trigger that was dropped, a table that nobody
//! watches, a loader that reads what the key doesn't say. An entry that L1 goes on serving though the primary says
//! something else is one: the log would have evicted it. Rare and bounded: a few keys a second, in one load that no reader
//! waits for.

use std::collections::HashMap;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;

use super::inspect::key_hash;
use super::loader::{Load, Previous};
use super::sampler::Sample;
use super::{Core, Key, Value};
use crate::coherence::ReadStart;
use crate::coherence::snapshot::{Origin, Snapshot};
use crate::coherence::token::Token;
use crate::health::Event;
use crate::health::troubles::TroubleKind;
use crate::local::{Cached, Entry};
use crate::shared::member::Auditable;
use crate::shared::polls::Asked;
use crate::wire::codec::Codec;
use crate::wire::tape::Tape;
use crate::wire::{Change, read_back};

/// Time between two looks for a new poll.
const LOOK_INTERVAL: Duration = Duration::from_millis(10);
/// Violations of one round that are told of one by one. All are counted.
const TOLD: usize = 8;
/// Caches and topics that are named with a violation.
const NAMED: usize = 4;
/// How long a violation is a trouble.
const VIOLATION_LASTS: Duration = Duration::from_mins(10);
/// Times that a value is read back and written again, to see whether its lists always have the same order. A `HashSet` of
/// two elements shows it with a likelihood of three in eight or more, each time.
const WRITINGS: usize = 64;

impl<K: Key, V: Value> Auditable for Core<K, V> {
    fn sample(&self, most: usize) {
        self.sampler.arm(most.min(self.policy.max_batch), self.counters.l1_hits.get());
    }

    fn audit(&self) -> BoxFuture<'_, ()> {
        Box::pin(async {
            let samples = self.sampler.take();
            if !samples.is_empty() {
                let skipped = self.audit_all(samples).await;
                self.counters.audits_skipped.add(skipped as u64);
            }
        })
    }

    fn compare_keys(&self) -> BoxFuture<'_, ()> {
        Box::pin(self.compare_a_key())
    }
}

impl<K: Key, V: Value> Core<K, V> {
    /// Returns how many of them could not be audited.
    async fn audit_all(&self, samples: Vec<Sample<K, V>>) -> usize {
        let count = samples.len();
        let start = self.shared.coherence.read_start(&self.whole);
        let Some(now) = self.ask(&keys_of(&samples), start).await else { return count };
        let codec = self.policy.codec;
        let mut differ = Vec::new();
        let mut same = 0;
        for (sample, now) in samples.into_iter().zip(now.answers) {
            match (Answer::of(sample.1.value().as_ref(), codec), now) {
                // What can't be written to its end can't be compared.
                (Answer::Unwritable, _) | (_, Answer::Unwritable) => {}
                (served, now) if served == now => same += 1,
                (served, now) => differ.push((sample, served, now)),
            }
        }
        self.audited(same, 0);
        let mut steady = Vec::new();
        for (sample, served, now) in differ {
            let in_order = served.is_alike(&now);
            if !in_order || now.is_steady::<V>(codec).await {
                steady.push((sample, (now, in_order)));
            }
        }
        let mut differ = steady;
        // What the primary said is in the log, or belongs to an epoch that is not known here yet: the next poll tells.
        if differ.is_empty() || !self.polled(start).await {
            return count - same;
        }
        differ.retain(|((key, entry), _)| self.still_serves(key, entry, start));
        if differ.is_empty() {
            return count - same;
        }
        // A loader that never says the same twice can't be audited.
        let (samples, now): (Vec<_>, Vec<_>) = differ.into_iter().unzip();
        let again = self.ask(&keys_of(&samples), self.shared.coherence.read_start(&self.whole)).await;
        let Some(again) = again else { return count - same };
        let said = again.stamp;
        let wrong: Vec<Wrong<K>> = samples
            .into_iter()
            .zip(now.into_iter().zip(again.answers))
            .filter(|((key, entry), ((now, in_order), again))| {
                // Where only an order differs, that must be the same again. Else the order of a `HashSet` says nothing.
                let the_same = if *in_order { now == again } else { now.is_alike(again) };
                the_same && self.still_serves(key, entry, start)
            })
            .map(|((key, entry), _)| Wrong { key, changed: self.changed(&entry.stamp(), &said) })
            .collect();
        let last = said.xmax().saturating_sub(1);
        self.mend(&wrong, Token::of_write(start.epoch, last)).await;
        count - same - wrong.len()
    }

    fn audited(&self, count: usize, wrong: usize) {
        let (count, wrong) = (count as u64, wrong as u64);
        self.counters.audits.add(count);
        self.counters.audit_violations.add(wrong);
        self.shared.nines.add(self.shared.clock.now_ms(), count, wrong);
    }

    /// Which of the keys are there, by what the primary says now. `None` where it did not, in time.
    pub(super) async fn present(&self, keys: &[K]) -> Option<Vec<bool>> {
        let start = self.shared.coherence.read_start(&self.whole);
        let mut present = Vec::with_capacity(keys.len());
        for keys in keys.chunks(self.policy.max_batch) {
            let said = self.ask(keys, start).await?;
            present.extend(said.answers.iter().map(|answer| !matches!(answer, Answer::Absent)));
        }
        Some(present)
    }

    /// What the primary says now. `None` where it did not, in time.
    async fn ask(&self, keys: &[K], start: ReadStart) -> Option<Said> {
        // Readers come first.
        let _place = self.shared.spare_load_place()?;
        let load = Load::new(keys.to_vec(), true);
        let loading =
            AssertUnwindSafe(async { self.loader.call(load, Previous::default()).await }).catch_unwind();
        let mut loaded = tokio::time::timeout(self.policy.load_timeout, loading).await.ok()?.ok()?.ok()?;
        // What was asked for may be there under another spelling.
        loaded.retain_answers(keys, &self.name).ok()?;
        // It was shown nothing: what it finds unmodified is nothing either.
        if !loaded.failed.is_empty() || !loaded.unmodified.is_empty() {
            return None;
        }
        let stamp = loaded.stamp;
        let new = start.poll.is_some_and(|poll| stamp.snapshot.rank() >= poll);
        let elsewhere = self.shared.is_elsewhere(stamp.server);
        if stamp.wrote || stamp.origin != Origin::Primary || elsewhere || !new {
            return None;
        }
        let codec = self.policy.codec;
        let answered =
            loaded.found.into_iter().map(|found| (found.key, Answer::of(Some(&found.value), codec)));
        let mut found: HashMap<K, Answer> = answered.collect();
        let answers = keys.iter().map(|key| found.remove(key).unwrap_or(Answer::Absent)).collect();
        Some(Said { answers, stamp: stamp.snapshot })
    }

    /// Waits for a poll that start after this call, within two polls' time.
    async fn polled(&self, start: ReadStart) -> bool {
        let shared = &self.shared;
        let before = shared.counters.polls.get();
        let polled = async {
            // One may be under way.
            for polls in 1..=2 {
                shared.polls.ask(Asked::InDoubt);
                while shared.counters.polls.get() < before + polls {
                    tokio::time::sleep(LOOK_INTERVAL).await;
                }
            }
        };
        let limit = 2 * (shared.settings.poll_timeout + shared.settings.poll_interval);
        tokio::time::timeout(limit, polled).await.is_ok() && shared.coherence.lease.held().era() == start.era
    }

    /// Whether a hit would still get this very entry. Every invalidation of its key that was applied is contained in it
    /// then, for any other would have evicted it.
    fn still_serves(&self, key: &K, entry: &Arc<Entry<V>>, start: ReadStart) -> bool {
        let held = self.shared.coherence.lease.held();
        let still_held = |slot: &Cached<V>| self.is_live(slot, held) && Arc::ptr_eq(&slot.entry, entry);
        held.era() == start.era
            && self.is_unchanged(entry, held)
            && self.local.pin().get(key).is_some_and(still_held)
    }

    /// Caches and topics of which something has changed in between.
    fn changed(&self, from: &Snapshot, to: &Snapshot) -> Vec<String> {
        let caches = self.shared.caches();
        let between = |xid| to.contains(xid) && !from.contains(xid);
        let changed = caches.iter().filter(|(_, cache)| cache.recent().any(between));
        let mut changed: Vec<String> = changed.map(|(name, _)| name.clone()).collect();
        changed.sort_unstable();
        changed.truncate(NAMED);
        changed
    }

    /// Tells of violations, and invalidates the keys everywhere: they are wrong in L2 and on other instances too.
    async fn mend(&self, wrong: &[Wrong<K>], token: Token) {
        if wrong.is_empty() {
            return;
        }
        self.audited(wrong.len(), wrong.len());
        let texts: Vec<String> = wrong.iter().map(|wrong| wrong.key.to_string()).collect();
        for (text, Wrong { changed, .. }) in texts.iter().zip(wrong).take(TOLD) {
            let (cache, key_hash, changed) = (self.name.to_string(), key_hash(text), changed.clone());
            self.shared.signals.send(Event::AuditViolation { cache, key_hash, changed });
        }
        let mut why = "values were served that Postgres does not have, and no row of the log explains it; \
                       they were invalidated everywhere. `perto doctor` looks for the reason"
            .to_owned();
        // What has changed each time.
        let mut changed = wrong[0].changed.clone();
        changed.retain(|name| wrong.iter().all(|wrong| wrong.changed.contains(name)));
        if !changed.is_empty() {
            let named = changed.join(", ");
            why += &format!(
                "; where it finds none, the values depend on rows of one of these, and the loader does not say so: {named}"
            );
        }
        self.shared.signals.begin_for(VIOLATION_LASTS, TroubleKind::AuditViolation.of(&self.name), &why);
        let change = Change { cache: self.name.to_string(), keys: Some(texts) };
        if self.shared.invalidate(change.clone()).await.is_err() {
            // The log can't be written. A hint will do: any transaction that the last load contains.
            self.shared.announce(token, &[change]).await;
            wrong.iter().for_each(|wrong| self.local.remove(&wrong.key));
        }
    }
}

fn keys_of<K: Clone, V>(samples: &[Sample<K, V>]) -> Vec<K> {
    samples.iter().map(|(key, _)| key.clone()).collect()
}

/// A key that was served wrong, and the caches and topics of which something has changed since it was loaded.
struct Wrong<K> {
    key: K,
    changed: Vec<String>,
}

/// What the primary said, and when.
struct Said {
    answers: Vec<Answer>,
    stamp: Snapshot,
}

/// A value by what it writes, which is all that two of them can be compared by.
#[derive(Debug)]
enum Answer {
    Absent,
    Written(Box<Written>),
    /// Its `Serialize` gives an error.
    Unwritable,
}

#[derive(Debug)]
struct Written {
    tape: Tape,
    /// With the entries of its maps in order: a `HashMap` has none.
    sorted: Vec<u8>,
    /// What it is read from once more, where that is not the tape.
    text: Option<Bytes>,
}

impl PartialEq for Answer {
    fn eq(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Absent, Self::Absent) => true,
            (Self::Written(one), Self::Written(other)) => one.sorted == other.sorted,
            _ => false,
        }
    }
}

impl Answer {
    fn of<V: Value>(value: Option<&V>, codec: Codec) -> Self {
        let Some(value) = value else { return Self::Absent };
        let tape = Tape::of(value);
        if !tape.is_whole() {
            return Self::Unwritable;
        }
        let (sorted, text) = (tape.sorted(false), codec.text(value));
        Self::Written(Box::new(Written { tape, sorted, text }))
    }

    /// Whether two are the same but for the order of their lists, one of which may be a `HashSet`.
    fn is_alike(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Written(one), Self::Written(other)) => one.tape.says_the_same(&other.tape),
            _ => self == other,
        }
    }

    /// Whether the same value always has its lists in the same order. One that can't be read back is not known to.
    async fn is_steady<V: Value>(&self, codec: Codec) -> bool {
        let Self::Written(written) = self else { return true };
        for _ in 0..WRITINGS {
            let again = match &written.text {
                Some(text) => codec.decode::<V>(text).ok(),
                None => read_back::read::<V>(&written.tape).ok(),
            };
            if again.map(|value| Tape::of(&value).sorted(false)).as_ref() != Some(&written.sorted) {
                return false;
            }
            // Large values take their time.
            tokio::task::yield_now().await;
        }
        true
    }
}
