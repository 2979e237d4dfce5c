//! Hints: what other instances say that they wrote, applied the moment it arrives.
//!
//! A gap in a publisher's sequence, a broken subscription or a fence that is not answered puts the log in doubt: the
//! tail polls at once. A hint is only ever a reason to evict, so a false one costs a load and nothing else.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::bus::{Bus, Subscription};
use crate::error::RemoteError;
use crate::instance::{Shared, Token};
use crate::trace::{Kind, Trace};
use crate::wire::{Change, Hint};

use super::buckets::Told;
use super::health::Event;
use super::troubles::TroubleKind;

/// Publishers whose sequence is remembered. Beyond it all are forgotten: no gap is seen until their next two hints.
const PUBLISHERS: usize = 4_096;
/// A hint whose transaction is further ahead of the last poll than this is not believed: it would keep its bucket
/// from being cached for as long as that many transactions take.
const FURTHEST_AHEAD: u64 = 1 << 30;

/// Subscribes, applies hints and fences, and begins again when anything breaks. Never returns.
pub(crate) async fn listen(shared: Arc<Shared>, bus: Arc<dyn Bus>) {
    let mut pause = Duration::from_millis(20);
    let mut failures = 0;
    loop {
        let limit = shared.settings.fence_timeout;
        // Before it is dialled: a server that is left meanwhile may be the one that answers.
        let left = shared.remote_left();
        let subscribed = tokio::time::timeout(limit, bus.subscribe()).await;
        let broken = match subscribed.unwrap_or(Err(RemoteError::Timeout)) {
            Ok(subscription) => {
                let mut listener =
                    Listener { shared: Arc::clone(&shared), last: HashMap::new(), fenced: false };
                let broken = listener.follow(subscription, left).await;
                if listener.fenced {
                    (pause, failures) = (Duration::from_millis(20), 0);
                }
                broken
            }
            Err(error) => error,
        };
        failures += 1;
        // One that was lost and stands again at once is no trouble.
        if failures > 1 {
            let why = format!(
                "writes of other instances are seen with the next poll: {}",
                crate::error::chain(&broken)
            );
            shared.signals.begin(TroubleKind::HintsNotReceived.anywhere(), &why);
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(Duration::from_millis(500));
    }
}

struct Listener {
    shared: Arc<Shared>,
    /// The last sequence of each publisher.
    last: HashMap<u64, u64>,
    /// Whether the subscription ever worked.
    fenced: bool,
}

impl Drop for Listener {
    /// However it ended, by a panic too: no hint comes from now on.
    fn drop(&mut self) {
        self.shared.signals.set_bus(false);
        self.shared.coherence.doubt.notify_one();
    }
}

impl Listener {
    /// Until the subscription breaks, or the server is left. Returns why.
    async fn follow(&mut self, mut subscription: Box<dyn Subscription>, left: u64) -> RemoteError {
        let mut fences = tokio::time::interval(self.shared.settings.poll_interval);
        fences.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                // Fences first: a flood of messages must not put them off.
                biased;
                _ = fences.tick() => {
                    if self.shared.remote_left() != left {
                        return RemoteError::Disconnected;
                    }
                    if let Err(error) = fence(&mut *subscription, self.shared.settings.fence_timeout).await {
                        return error;
                    }
                    if !self.fenced {
                        // What was published before the subscription stood is in the log.
                        self.shared.coherence.doubt.notify_one();
                        self.fenced = true;
                        self.shared.signals.end(&TroubleKind::HintsNotReceived.anywhere());
                    }
                    self.shared.signals.set_bus(true);
                    // A period from now: fences that take as long as one would leave no time for messages.
                    fences.reset();
                }
                message = subscription.next() => match message {
                    Ok(bytes) => self.receive(&bytes),
                    Err(error) => return error,
                },
            }
        }
    }

    fn receive(&mut self, bytes: &[u8]) {
        let shared = Arc::clone(&self.shared);
        let Ok(hint) = Hint::decode(bytes) else {
            shared.counters.hints_refused.add(1);
            return;
        };
        if !shared.coherence.lease.is_in(hint.epoch) || !shared.believes(hint.xid) {
            shared.counters.hints_refused.add(1);
            return;
        }
        self.look_for_a_gap(&hint);
        shared.counters.hints.add(1);
        if hint.publisher == shared.publisher {
            shared.apply(hint.token(), &hint.changes);
            return;
        }
        if shared.coherence.buckets.poll().is_some_and(|poll| poll.contains(hint.xid)) {
            shared.counters.hints_late.add(1);
        }
        // A span of the trace that the write is part of.
        let written = hint.traceparent.as_deref().and_then(Trace::remote);
        let span = written.map(|trace| {
            let span = trace.begin(Kind::Consumer, format_args!("evict"));
            span.link(&trace.origin());
            span
        });
        let evicted = shared.apply(hint.token(), &hint.changes);
        // Whether or not its poll is complete yet.
        shared.overtaken(hint.xid);
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let took = now.saturating_sub(Duration::from_micros(hint.committed_unix_us));
        shared.propagation.record(took);
        if let Some(span) = span {
            span.text("db.system.name", "redis");
            span.number("perto.changes", hint.changes.len() as u64);
            span.number("perto.evicted", evicted);
            span.number("perto.propagation_us", u64::try_from(took.as_micros()).unwrap_or(u64::MAX));
        }
    }

    fn look_for_a_gap(&mut self, hint: &Hint) {
        if self.last.len() >= PUBLISHERS && !self.last.contains_key(&hint.publisher) {
            self.last.clear();
        }
        let last = self.last.entry(hint.publisher).or_insert(hint.sequence);
        let lost = hint.sequence.saturating_sub(last.saturating_add(1));
        *last = (*last).max(hint.sequence);
        if lost > 0 {
            self.shared.counters.gaps.add(1);
            self.shared.counters.hints_lost.add(lost);
            self.shared.counters.repairs.add(1);
            self.shared.signals.send(Event::Gap { lost });
            self.shared.coherence.doubt.notify_one();
        }
    }
}

async fn fence(subscription: &mut dyn Subscription, limit: Duration) -> Result<(), RemoteError> {
    match tokio::time::timeout(limit, subscription.ping()).await {
        Ok(answered) => answered,
        Err(_elapsed) => Err(RemoteError::Timeout),
    }
}

impl Shared {
    /// Whether there may be such a transaction. Before the first poll nobody can tell, and the poll will bring it.
    pub(crate) fn believes(&self, xid: u64) -> bool {
        self.coherence.buckets.poll().is_some_and(|poll| xid <= poll.xmax().saturating_add(FURTHEST_AHEAD))
    }

    /// A poll has brought the transaction before its hint came, or before it was announced here: whatever it evicted, nothing
    /// had to be put right.
    pub(crate) fn overtaken(&self, xid: u64) {
        self.counters.repairs_overtaken.add(self.repaired.overtaken(xid));
    }

    /// Applies changes of a transaction, from a hint or from a write of this instance. Returns how many entries went.
    pub(crate) fn apply(&self, of: Token, changes: &[Change]) -> u64 {
        let caches = self.caches();
        let told = Told { xid: of.xid, epoch: of.epoch, poll: None };
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
