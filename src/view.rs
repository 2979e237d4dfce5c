//! Views: answers of any keys and caches that are all of one moment of the database.
//!
//! The moment is the snapshot of the highest rank among the answers. A value of a lower rank is what there was at that moment if it
//! contains every invalidation of its keys that the moment contains. Once a poll has completed that ranks as high, all of those
//! are known here. So nobody waits where the last poll is newer than what was read, and for one poll where it is not.

use std::collections::HashSet;
use std::fmt::{self, Debug};
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::time::Instant;

use crate::cache::{Cache, Key, Value};
use crate::coherence::buckets::Subject;
use crate::coherence::snapshot::{Rank, Snapshot};
use crate::coherence::token::Token;
use crate::error::Error;
use crate::instance::Perto;
use crate::read::{Read, ReadOptions};
use crate::shared::Shared;
use crate::shared::polls::Asked;

/// How often a view is taken anew, since what it had read changed before it was complete.
const ATTEMPTS: usize = 8;

/// Reads that are of one moment. See [`Perto::view`]. Once its attempt is over it reads no more: [`Error::Unsettled`].
#[derive(Clone)]
pub struct View {
    reading: Arc<Reading>,
    attempt: usize,
}

struct Reading {
    shared: Arc<Shared>,
    options: ReadOptions,
    seen: Mutex<Attempt>,
    /// What was not of the moment, to be read from the source next time: by cache and key.
    refused: Mutex<HashSet<(Arc<str>, String)>>,
}

/// What was read at an attempt, by its number.
#[derive(Default)]
struct Attempt {
    number: usize,
    seen: Vec<Seen>,
}

/// An answer, as far as it matters to what moment it is of.
struct Seen {
    cache: Arc<str>,
    text: String,
    era: u64,
    epoch: u64,
    stamp: Snapshot,
    /// Of the snapshot that it was read under. The stamp may say less.
    rank: Rank,
    /// Its own key, and what it depends on.
    subjects: Vec<Subject>,
    /// Else it depends on more than that.
    judged: bool,
}

enum Judged {
    OneMoment,
    Again,
}

impl Perto {
    /// Reads any keys of any caches so that all answers are of *one* moment of the database: what one snapshot of the primary has. Two
    /// rows that one transaction writes are both seen before it, or both after it; and so for what is joined, listed and counted, by its
    /// [dependencies](crate::Loaded::depends_on).
    ///
    /// `work` reads by [`View::get`] and [`View::get_many`]. What it returns is returned once all that it has read is known to be of one
    /// moment. Else `work` runs again, up to eight times: so it must do nothing but read, and compute.
    ///
    /// The moment misses nothing that a read by itself would not miss. Where all that is read is older than the last poll of the log,
    /// nobody waits; what was loaded since waits for one poll, which all who wait share.
    ///
    /// ```no_run
    /// # async fn balances(perto: perto::Perto, accounts: &perto::Cache<i64, i64>) -> Result<(), perto::Error> {
    /// let (from, to) = perto
    ///     .view(|view| async move {
    ///         Ok::<_, perto::Error>((view.get(accounts, &1).await?, view.get(accounts, &2).await?))
    ///     })
    ///     .await?;
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// Those of `work`. [`Error::NoSnapshot`] for values that are of no moment of the database. [`Error::Unsettled`] where what is read
    /// is written so often that eight attempts were overtaken: read such keys by one [`View::get_many`], whose load is one statement.
    /// [`Error::Unverified`] where no poll of the log comes in time; [`Error::Closed`] after shutdown.
    pub async fn view<T, E, Work>(&self, work: impl Fn(View) -> Work + Send) -> Result<T, E>
    where
        E: From<Error>,
        Work: Future<Output = Result<T, E>> + Send,
    {
        self.view_with(ReadOptions::default(), work).await
    }

    /// The same, with options for all that is read: `latest()` gives a moment that is no older than the call.
    ///
    /// # Errors
    /// Those of [`Perto::view`], and [`Error::TokenAhead`].
    pub async fn view_with<T, E, Work>(
        &self,
        options: ReadOptions,
        work: impl Fn(View) -> Work + Send,
    ) -> Result<T, E>
    where
        E: From<Error>,
        Work: Future<Output = Result<T, E>> + Send,
    {
        let reading = Arc::new(Reading {
            shared: Arc::clone(self.shared()),
            options,
            seen: Mutex::default(),
            refused: Mutex::default(),
        });
        for attempt in 0..ATTEMPTS {
            let value = work(View { reading: Arc::clone(&reading), attempt }).await?;
            let next = Attempt { number: attempt + 1, seen: Vec::new() };
            let Attempt { seen, .. } = std::mem::replace(&mut *reading.seen.lock(), next);
            let counters = &reading.shared.counters;
            if let Judged::OneMoment = reading.judge(&seen).await? {
                counters.views.add(1);
                return Ok(value);
            }
            counters.views_again.add(1);
        }
        Err(Error::Unsettled.into())
    }
}

impl View {
    /// Reads one key. As [`Cache::get`]: what was answered counts only once the view is complete.
    ///
    /// # Errors
    /// Those of [`Cache::get_with`]; [`Error::NoSnapshot`].
    pub async fn get<K: Key, V: Value>(&self, cache: &Cache<K, V>, key: &K) -> Result<Read<V>, Error> {
        self.get_many(cache, std::slice::from_ref(key)).await?.pop().ok_or(Error::Unsettled)
    }

    /// Reads many keys of one cache. What has to be loaded of them is loaded by one call of the loader.
    ///
    /// # Errors
    /// Those of [`View::get`].
    pub async fn get_many<K: Key, V: Value>(
        &self,
        cache: &Cache<K, V>,
        keys: &[K],
    ) -> Result<Vec<Read<V>>, Error> {
        let (core, Reading { shared, options, seen: all, refused }) = (&cache.0, &*self.reading);
        if !Arc::ptr_eq(&core.shared, shared) {
            return Err(Error::NoSnapshot { cache: Arc::clone(&core.name) });
        }
        let texts = cache.texts(keys)?;
        let is_refused = {
            let refused = refused.lock();
            texts.iter().any(|text| refused.contains(&(Arc::clone(&core.name), text.clone())))
        };
        let mut reads = cache.read_for_view(keys, *options, is_refused).await?;
        if !is_refused && reads.iter().any(|read| read.held().token().is_none()) {
            // A replica's, by chance. The primary's own answer is of a known snapshot.
            reads = cache.read_for_view(keys, *options, true).await?;
        }
        let mut seen = Vec::with_capacity(reads.len());
        for (read, text) in reads.iter().zip(texts) {
            let entry = read.held();
            let no_snapshot = || Error::NoSnapshot { cache: Arc::clone(&core.name) };
            let (epoch, rank) =
                entry.token().and_then(|token| Some((token.epoch, token.rank()?))).ok_or_else(no_snapshot)?;
            let own = Subject { slot: shared.coherence.buckets.slot(&core.name, &text), whole: core.whole() };
            seen.push(Seen {
                cache: Arc::clone(&core.name),
                text,
                era: entry.life.era(),
                epoch,
                stamp: entry.stamp().into_owned(),
                rank,
                judged: entry.judged(),
                subjects: std::iter::once(own).chain(entry.subjects().iter().cloned()).collect(),
            });
        }
        let mut all = all.lock();
        if all.number != self.attempt {
            // Nobody would judge it.
            return Err(Error::Unsettled);
        }
        all.seen.append(&mut seen);
        Ok(reads)
    }
}

impl Reading {
    /// Whether all of this is of one moment.
    async fn judge(&self, seen: &[Seen]) -> Result<Judged, Error> {
        let coherence = &self.shared.coherence;
        let Some(newest) = seen.iter().max_by_key(|seen| seen.rank) else { return Ok(Judged::OneMoment) };
        if seen.iter().any(|seen| (seen.era, seen.epoch) != (newest.era, newest.epoch)) {
            return Ok(Judged::Again);
        }
        let token = Token::of_read(newest.epoch, newest.rank);
        let is_polled = || coherence.buckets.has_polled(&coherence.lease, token) == Some(newest.era);
        if !is_polled() {
            self.shared.counters.views_awaited.add(1);
            self.next_poll().await?;
            if !is_polled() {
                return Ok(Judged::Again);
            }
        }
        // From here on all is known that the moment contains. One that was cut is not known itself, but that poll contains it.
        let moment = Some(&newest.stamp).filter(|stamp| stamp.rank() == newest.rank);
        let is_of_it = |seen: &&Seen| match moment {
            Some(moment) if *moment == seen.stamp => true,
            _ if !seen.judged => false,
            Some(moment) => coherence.buckets.accepts_all_at(&seen.subjects, &seen.stamp, moment),
            None => coherence.buckets.accepts_all(&seen.subjects, &seen.stamp),
        };
        let others = seen.iter().filter(|seen| !is_of_it(seen));
        let others: Vec<_> = others.map(|seen| (Arc::clone(&seen.cache), seen.text.clone())).collect();
        // Once more, after all else was looked at: a recovery knows of nothing for a moment.
        if others.is_empty() && coherence.lease.held().era() == newest.era {
            return Ok(Judged::OneMoment);
        }
        self.refused.lock().extend(others);
        Ok(Judged::Again)
    }

    /// Waits for a poll that is sent from now on.
    async fn next_poll(&self) -> Result<(), Error> {
        let until = Instant::now() + self.shared.settings.poll_timeout;
        tokio::select! {
            biased;
            () = self.shared.closing() => Err(Error::Closed),
            () = self.shared.polls.next(Asked::Awaited) => Ok(()),
            () = tokio::time::sleep_until(until) => Err(Error::Unverified),
        }
    }
}

impl Debug for View {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("View").field("options", &self.reading.options).finish_non_exhaustive()
    }
}
