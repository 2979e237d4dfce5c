//! The tail: reads the log, applies it, and extends the lease. What the promise rests on.
//!
//! One task per instance polls on a connection of its own: every poll interval while all is well, faster
//! while no hints come, at once when something is in doubt. A poll that fails changes nothing but the time:
//! the lease runs out.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use tokio::time::Instant;

use super::hints;
use crate::coherence::buckets::{Told, WholeCache};
use crate::coherence::poll::{self, Next, Polled};
use crate::coherence::snapshot::Snapshot;
use crate::error::LogError;
use crate::health::troubles::TroubleKind;
use crate::health::{Event, Recovery};
use crate::log::{Poll, READY_LIMIT};
use crate::shared::polls::Asked;
use crate::shared::repaired::Repaired;
use crate::shared::{Caches, Shared};

/// While no hints come, the tail is all there is.
const ISOLATED_INTERVAL: Duration = Duration::from_millis(75);
/// Between a doubt and the poll that it asks for: more may come.
const MIN_INTERVAL: Duration = Duration::from_millis(5);
/// Between two polls in doubt. Else a key that is written all the time, or forged hints, would have every
/// instance poll as fast as it can.
const DOUBT_INTERVAL: Duration = Duration::from_millis(60);
/// Time between two tries after a failed poll.
const RETRY_INTERVAL: Duration = Duration::from_millis(50);

/// How long after the last write whose keys could not be told that counts as over.
const KEY_FAILS_FOR: Duration = Duration::from_mins(2);

pub(crate) struct Tail {
    shared: Arc<Shared>,
    /// All that are declared, as of when this tail began: none comes after the start. They are what polls ask for and what rows are applied
    /// to, so the cursor says of each of them what was read.
    caches: Arc<Caches>,
    /// Of the last poll whose rows have all been applied. New rows are those it does not contain.
    cursor: Option<Snapshot>,
    /// Why there is no cursor, where there is none.
    lost: Recovery,
    failing: bool,
    /// When the last poll was sent.
    sent: Option<Instant>,
    /// Whether the last poll took longer than one may on which a lease hangs. Then none does: the next one
    /// takes its time.
    late: bool,
    /// The last poll in doubt.
    doubted: Option<Instant>,
}

impl Tail {
    pub(crate) fn new(shared: Arc<Shared>) -> Self {
        Self {
            caches: shared.caches(),
            shared,
            cursor: None,
            lost: Recovery::Start,
            failing: false,
            sent: None,
            late: false,
            doubted: None,
        }
    }

    /// Polls until the instance is shut down. Never returns.
    ///
    /// A panic is not the end: without a tail nothing is ever fresh again. What the old one had applied
    /// nobody knows, so a new one begins with all of the log.
    pub(crate) async fn run(mut self) {
        let shared = Arc::clone(&self.shared);
        loop {
            let _panicked = AssertUnwindSafe(self.follow()).catch_unwind().await;
            tokio::time::sleep(RETRY_INTERVAL).await;
            self = Self::new(Arc::clone(&shared));
            // What is told runs the application's subscriber, which may be what panicked.
            let subject = TroubleKind::LogUnreadable.anywhere();
            let why = "the task that reads the log has panicked: it begins anew";
            let _told = std::panic::catch_unwind(AssertUnwindSafe(|| shared.signals.begin(subject, why)));
        }
    }

    async fn follow(&mut self) {
        loop {
            if self.poll().await.is_err() {
                // Whoever asks: it may be a database that is just coming back.
                tokio::time::sleep(RETRY_INTERVAL.min(self.interval())).await;
                continue;
            }
            let due = self.next();
            tokio::select! {
                biased;
                () = self.shared.polls.asked(Asked::Awaited) => self.wait_for_readers(due).await,
                () = self.shared.polls.asked(Asked::InDoubt) => self.wait_in_doubt(due).await,
                () = tokio::time::sleep_until(due) => {}
            }
        }
    }

    /// At once, but not too soon after the last one. One poll does for all who ask until it is sent.
    async fn wait_for_readers(&mut self, due: Instant) {
        let soonest = self.sent.map(|sent| sent + self.shared.settings.min_poll_interval);
        tokio::time::sleep_until(soonest.map_or(due, |soonest| soonest.min(due))).await;
        let _asked_again = self.shared.polls.asked(Asked::Awaited).now_or_never();
    }

    /// Soon, but not too soon after the last one; and no later than without a doubt. One poll answers all doubts until it is sent.
    async fn wait_in_doubt(&mut self, due: Instant) {
        let since = self.doubted.map_or(DOUBT_INTERVAL, |last| last.elapsed());
        let wait = DOUBT_INTERVAL.saturating_sub(since).max(MIN_INTERVAL);
        tokio::select! {
            biased;
            // Somebody waits, and need not wait for as long.
            () = self.shared.polls.asked(Asked::Awaited) => self.wait_for_readers(due).await,
            () = tokio::time::sleep_until(due.min(Instant::now() + wait)) => {}
        }
        let _asked_again = self.shared.polls.asked(Asked::InDoubt).now_or_never();
        self.doubted = Some(Instant::now());
    }

    /// When the next poll is due. Counted from when the last one was sent, for so is the lease: where polls
    /// take long, the next one follows at once.
    fn next(&self) -> Instant {
        let (now, interval) = (Instant::now(), self.interval());
        self.sent.map_or(now, |sent| sent + interval).max(now + MIN_INTERVAL)
    }

    /// The first polls: with the last of them the lease is valid, unless Postgres takes longer than the bound
    /// for each. A replay may take longer, and then the lease rests on the poll that follows.
    pub(crate) async fn begin(&mut self) -> Result<(), LogError> {
        self.poll().await?;
        let Shared { clock, coherence, .. } = &*self.shared;
        if !coherence.lease.held().valid_at(clock.now_ms()) {
            self.poll().await?;
        }
        Ok(())
    }

    /// One poll. When it returns `Ok`, every write that was visible when it was called has been applied.
    pub(crate) async fn poll(&mut self) -> Result<(), LogError> {
        let polled = self.step().await;
        match &polled {
            Ok(()) => {
                self.failing = false;
                self.shared.counters.polls.add(1);
                self.shared.signals.end(&TroubleKind::LogUnreadable.anywhere());
            }
            Err(error) => self.failed(error),
        }
        polled
    }

    fn failed(&mut self, error: &LogError) {
        let Shared { signals, clock, coherence, counters, .. } = &*self.shared;
        counters.poll_errors.add(1);
        let (now_ms, why) = (clock.now_ms(), crate::error::chain(error));
        if !std::mem::replace(&mut self.failing, true) {
            signals.send(Event::PollFailed { error: why.clone() });
        }
        // One that fails now and then costs nothing: the lease goes on.
        if !coherence.lease.held().valid_at(now_ms) {
            let why = format!("nothing that is cached can be vouched for: {why}");
            signals.begin(TroubleKind::LogUnreadable.anywhere(), &why);
        }
    }

    async fn step(&mut self) -> Result<(), LogError> {
        let (mut sent_ms, mut poll) = self.read().await?;
        let epoch = self.shared.coherence.epoch();
        if let Next::ReadAll(why) = poll::next(self.cursor.as_ref(), epoch, polled(&poll)) {
            self.cursor = None;
            self.shared.coherence.lease.begin_era();
            self.lost = why;
            self.shared.signals.changed();
            (sent_ms, poll) = self.read().await?;
        }
        let next = poll::next(self.cursor.as_ref(), epoch, polled(&poll));
        if let Next::Recover(floor) = next {
            self.recover(&poll, floor);
        }
        let repaired = self.apply(&poll);
        let (snapshot, now_ms) = (poll.snapshot.clone(), self.shared.clock.now_ms());
        let untrue = self.shared.coherence.completed(snapshot, self.wholes(), now_ms);
        self.cursor = Some(poll.snapshot.clone());
        let switches = self.shared.log.switches();
        let switched = self.shared.obey(&switches);
        // Last: who sees this lease sees all that was applied.
        self.shared.coherence.lease.extend(sent_ms, self.shared.coherence.bound);
        self.shared.polls.completed();
        self.shared.signals.changed();
        // The application's exporter runs in here: after the lease.
        repaired.tell();
        hints::tell_of_untrue(&self.shared, untrue);
        if switched {
            self.shared.tell_of_switches(&switches);
        }
        // Of a replay, mostly long mended.
        if next == Next::Apply {
            self.keys_failed(&poll);
        }
        Ok(())
    }

    /// Drops L1 and all knowledge, and takes the log as the only truth: the rows of the poll are yet to be applied.
    fn recover(&self, poll: &Poll, floor: &Snapshot) {
        let Shared { coherence, counters, signals, .. } = &*self.shared;
        // Another server is another epoch. Before it begins: what the old one says from now on is not taken for the log's.
        coherence.follow(poll.server, poll.epoch);
        coherence.recover(poll.epoch, floor, self.wholes());
        counters.recoveries.add(1);
        signals.send(Event::Recovered { why: self.lost });
    }

    /// What is new since the cursor, or all of the log; and when that was asked for.
    ///
    /// No lease hangs on a replay, which takes as long as the log is long, nor on what comes after a poll
    /// that took too long: there may be too much for a short bound, and more with each try. Nor on a
    /// connection, which is made before.
    async fn read(&mut self) -> Result<(u64, Poll), LogError> {
        let Shared { clock, coherence, log, polls, settings, .. } = &*self.shared;
        within(READY_LIMIT, log.ready()).await?;
        polls.sending();
        coherence.sending(self.wholes());
        // Before the poll is sent: what commits after this moment is not vouched for.
        let (sent_ms, sent) = (clock.now_ms(), Instant::now());
        self.sent = Some(sent);
        let (cursor, caches) = (self.cursor.as_ref(), self.caches.keys().map(String::as_str));
        let caches: Vec<&str> = caches.collect();
        let hurried = cursor.is_some() && !self.late;
        let limit = if hurried { settings.poll_timeout } else { settings.replay_timeout };
        let polled = within(limit, log.poll(cursor, &caches, limit)).await;
        self.late = sent.elapsed() >= settings.poll_timeout;
        Ok((sent_ms, polled?))
    }

    fn apply<'a>(&self, poll: &'a Poll) -> Repaired<'a> {
        let mut repaired = Repaired::default();
        let rows = poll.rows.as_deref().unwrap_or_default();
        let polled = polled(poll);
        for row in rows.iter().filter(|row| polled.counts(row.xid)) {
            let told = Told { xid: row.xid, epoch: poll.epoch, poll: Some(&poll.snapshot) };
            if let Some(cache) = self.caches.get(row.cache.as_str())
                && cache.apply(told, row.key.as_deref())
            {
                self.shared.counters.repairs.add(1);
                self.shared.repaired.add(row.xid);
                repaired.note(row);
            }
        }
        self.shared.counters.rows.add(rows.len() as u64);
        repaired
    }

    /// Triggers that could not tell the keys of a write, and cleared the cache. It is told for as long as
    /// such writes come.
    fn keys_failed(&self, poll: &Poll) {
        for row in poll.rows.iter().flatten() {
            if let Some(fault) = &row.fault {
                self.key_failed(&row.cache, fault);
            }
        }
    }

    fn key_failed(&self, cache: &str, fault: &str) {
        if !self.caches.contains_key(cache) {
            return;
        }
        let (table, why) = fault.split_once(": ").unwrap_or(("", fault));
        let detail = format!(
            "the keys of writes to {table} can't be told, so each clears the whole cache: {why}. \
             `perto watch {table} --cache {cache} --key EXPR --replace` mends it"
        );
        self.shared.signals.begin_for(KEY_FAILS_FOR, TroubleKind::KeyFails.on(cache, table), &detail);
    }

    fn wholes(&self) -> impl Iterator<Item = &WholeCache> {
        self.caches.values().map(|cache| &**cache.whole())
    }

    fn interval(&self) -> Duration {
        let interval = self.shared.settings.poll_interval;
        if self.shared.hints_come() { interval } else { interval.min(ISOLATED_INTERVAL) }
    }
}

const fn polled(poll: &Poll) -> Polled<'_> {
    let Poll { epoch, snapshot, trimmed, rows, .. } = poll;
    Polled { epoch: *epoch, snapshot, trimmed, has_rows: rows.is_some() }
}

async fn within<T>(
    limit: Duration,
    asking: impl Future<Output = Result<T, LogError>>,
) -> Result<T, LogError> {
    tokio::time::timeout(limit, asking).await.unwrap_or(Err(LogError::Timeout(limit)))
}
