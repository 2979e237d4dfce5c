//! What a transaction has changed: recorded, applied here, and told to L2 and the other instances.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::Shared;
use super::l2::{KEYS_AT_ONCE, NO_ANSWER, redis_span};
use crate::bus::Bus;
use crate::coherence::buckets::Told;
use crate::coherence::token::Token;
use crate::error::{Error, InvalidateError, LogError, RemoteError};
use crate::health::troubles::TroubleKind;
use crate::log::{Appended, MAX_KEYS_PER_ROW};
use crate::trace::{Kind, Trace};
use crate::wire::{Change, Hint};

/// How long a tombstone stays. It only has to outlive fills that were under way; nothing rests on it.
const TOMBSTONE_TTL: Duration = Duration::from_secs(60);
/// A hint whose transaction is further ahead of the last poll than this is not even applied.
const FURTHEST_AHEAD: u64 = 1 << 30;

impl Shared {
    /// Invalidates keys of a cache or topic; all of them where they are many.
    pub(crate) async fn invalidate_keys(
        &self,
        cache: &str,
        texts: Result<Vec<String>, Error>,
    ) -> Result<Token, InvalidateError> {
        let texts = texts.map_err(|error| match error {
            Error::KeyTooLong { bytes, .. } => InvalidateError::KeyTooLong { bytes },
            _ => InvalidateError::Closed,
        })?;
        let keys = (texts.len() <= MAX_KEYS_PER_ROW).then_some(texts);
        self.invalidate(Change { cache: cache.to_owned(), keys }).await
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
        let token = Token::of_write(epoch, xid);
        self.announce(token, &[change]).await;
        Ok(token)
    }

    pub(crate) async fn announce(&self, token: Token, changes: &[Change]) {
        // What a read has answered invalidates nothing.
        let Some(xid) = token.xid() else { return };
        if !self.coherence.lease.is_in(token.epoch) || self.is_closed() || !self.believes(xid) {
            return;
        }
        let span = Trace::current().begin(Kind::Internal, format_args!("announce"));
        span.number("perto.changes", changes.len() as u64);
        self.told(token);
        let trace = span.trace();
        let publish = self.publish(token.epoch, xid, changes, &trace);
        let rest = async {
            // The hint is on its way before this instance's own work begins, and before a server has tombstones to lay: it sends
            // what it publishes once it has run all that came with it. Their order matters for a full memory too: the
            // tombstones may be refused then.
            if self.hints_to().is_some() {
                tokio::task::yield_now().await;
            }
            let evicted = self.apply(token.epoch, xid, changes);
            span.number("perto.evicted", evicted);
            self.overtaken(xid);
            self.bury(token.epoch, xid, changes, &trace).await
        };
        // Neither waits for the other's answer: one round trip.
        let (published, buried) = tokio::join!(publish, rest);
        self.signals.judge(
            TroubleKind::HintsRefused,
            published.and(buried),
            "other instances see writes with their next poll",
        );
    }

    /// Where hints go now, if anywhere.
    fn hints_to(&self) -> Option<&Arc<dyn Bus>> {
        self.bus.as_ref().filter(|_| self.breaker.is_closed())
    }

    async fn publish(
        &self,
        epoch: u64,
        xid: u64,
        changes: &[Change],
        trace: &Trace,
    ) -> Result<(), RemoteError> {
        let Some(bus) = self.hints_to() else { return Ok(()) };
        let span = redis_span(trace, Kind::Producer, "PUBLISH", 1);
        let since_1970 = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let hint = Hint {
            epoch,
            publisher: self.publisher,
            sequence: self.sequence.fetch_add(1, Ordering::Relaxed) + 1,
            xid,
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

    async fn bury(&self, epoch: u64, xid: u64, changes: &[Change], trace: &Trace) -> Result<(), RemoteError> {
        let Some(remote) = self.remote.as_ref().filter(|_| self.breaker.is_closed()) else { return Ok(()) };
        let caches = self.caches();
        let mut names = Vec::new();
        for change in changes {
            let Some(cache) = caches.get(change.cache.as_str()).filter(|cache| !cache.local_only()) else {
                continue;
            };
            let name = |key: &String| self.remote_key(epoch, cache.kind(), key);
            names.extend(change.keys.iter().flatten().map(name));
        }
        for names in names.chunks(KEYS_AT_ONCE) {
            let span = redis_span(trace, Kind::Client, "EVALSHA", names.len());
            span.text("db.stored_procedure.name", "invalidate");
            self.at_server(&span, trace, names);
            let burying = remote.invalidate(names, xid, TOMBSTONE_TTL);
            self.try_for(self.settings.remote_timeout, burying).await.inspect_err(|_| {
                span.failed(&NO_ANSWER);
                self.counters.hints_failed.add(1);
            })?;
        }
        Ok(())
    }

    /// A write was announced here, or by a hint that is believed.
    pub(crate) fn told(&self, token: Token) {
        self.coherence.tokens.told(token, self.clock.now_ms());
        self.telling.notify_waiters();
    }

    /// Waits until the write is told of. That may never be.
    pub(crate) async fn until_told(&self, token: Token) {
        loop {
            // Before the look: what is told in between wakes it all the same.
            let told = self.telling.notified();
            if self.coherence.tokens.is_told(token) {
                return;
            }
            told.await;
        }
    }

    /// Whether there may be such a transaction. Before the first poll nobody can tell, and the poll will
    /// bring it.
    pub(crate) fn believes(&self, xid: u64) -> bool {
        self.coherence.buckets.poll().is_some_and(|poll| xid <= poll.xmax().saturating_add(FURTHEST_AHEAD))
    }

    /// A poll has brought the transaction before its hint came, or before it was announced here: whatever it
    /// evicted, nothing had to be put right.
    pub(crate) fn overtaken(&self, xid: u64) {
        self.counters.repairs_overtaken.add(self.repaired.overtaken(xid));
    }

    /// Applies changes of a transaction, from a hint or from a write of this instance. Returns how many
    /// entries went.
    pub(crate) fn apply(&self, epoch: u64, xid: u64, changes: &[Change]) -> u64 {
        let caches = self.caches();
        let told = Told { xid, epoch, poll: None };
        let mut evicted = 0;
        for change in changes {
            let Some(cache) = caches.get(change.cache.as_str()) else { continue };
            match &change.keys {
                None => {
                    cache.apply(told, None);
                }
                Some(keys) => {
                    for key in keys {
                        evicted += u64::from(cache.apply(told, Some(key)));
                    }
                }
            }
        }
        evicted
    }
}

#[derive(Debug, thiserror::Error)]
#[error(
    "nobody is subscribed where hints are published, not even this instance: they reach different servers"
)]
struct Unheard;
