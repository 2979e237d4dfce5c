//! Hints: what other instances say that they wrote, applied the moment it arrives.
//!
//! A gap in a publisher's sequence, a broken subscription or a fence that is not answered puts the log in
//! doubt: the tail polls at once. A hint is only ever a reason to evict, so a false one costs a load and
//! nothing else.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio::time::Instant;

use crate::bus::{Bus, Subscription};
use crate::error::RemoteError;
use crate::health::Event;
use crate::health::troubles::TroubleKind;
use crate::shared::Shared;
use crate::shared::polls::Asked;
use crate::trace::{Kind, Trace};
use crate::wire::Hint;

/// Publishers whose sequence is remembered. Beyond it all are forgotten: no gap is seen until their next two
/// hints.
const PUBLISHERS: usize = 4_096;
/// How long a number may be missing: hints of two writers of one instance change places.
const CHANGE_PLACES: Duration = Duration::from_millis(3);
/// Numbers that are waited for. Where more are missing at a time, they are lost.
const MISSING: u64 = 256;
/// A sequence that goes back or ahead by more has begun anew, or is made up.
const FURTHEST_APART: u64 = 1 << 20;
/// How long hints that were not true are a trouble.
const UNTRUE_LASTS: Duration = Duration::from_mins(1);

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
                let sequences = Sequences::default();
                let mut listener = Listener { shared: Arc::clone(&shared), sequences, fenced: false };
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
    sequences: Sequences,
    /// Whether the subscription ever worked.
    fenced: bool,
}

impl Drop for Listener {
    /// However it ended, by a panic too: no hint comes from now on.
    fn drop(&mut self) {
        self.shared.signals.set_bus(false);
        self.shared.polls.ask(Asked::InDoubt);
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
                        self.shared.polls.ask(Asked::InDoubt);
                        self.fenced = true;
                        self.shared.signals.end(&TroubleKind::HintsNotReceived.anywhere());
                    }
                    self.shared.signals.set_bus(!has_lost_belief(&self.shared));
                    // A period from now: fences that take as long as one would leave no time for messages.
                    fences.reset();
                }
                lost = self.sequences.lost() => self.lost(lost),
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
        shared.coherence.belief.named(hint.xid);
        if has_lost_belief(&shared) {
            shared.counters.hints_refused.add(1);
            self.sequences = Sequences::default();
            return;
        }
        shared.told(hint.token());
        if let Some(lost) = self.sequences.came(hint.publisher, hint.sequence) {
            self.lost(lost);
        }
        if hint.publisher == shared.publisher {
            shared.apply(hint.epoch, hint.xid, &hint.changes);
            shared.counters.hints.add(1);
            return;
        }
        if !hint.changes.iter().any(|change| shared.declares(&change.cache)) {
            // Its number and its write are known by now, and there is nothing to evict: no span, no time that an eviction took.
            shared.counters.hints.add(1);
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
        let evicted = shared.apply(hint.epoch, hint.xid, &hint.changes);
        // After it has been applied: whoever waits for the count finds all of it gone.
        shared.counters.hints.add(1);
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

    fn lost(&self, lost: u64) {
        let Shared { counters, signals, polls, .. } = &*self.shared;
        counters.gaps.add(1);
        counters.hints_lost.add(lost);
        counters.repairs.add(1);
        signals.send(Event::Gap { lost });
        polls.ask(Asked::InDoubt);
    }
}

/// The numbers that publishers give their hints: a gap shows a loss.
#[derive(Debug, Default)]
struct Sequences {
    /// The last of each publisher.
    last: HashMap<u64, u64>,
    /// Those that have not come though a later one has, by publisher, and since when there are any.
    missing: BTreeSet<(u64, u64)>,
    since: Option<Instant>,
}

impl Sequences {
    /// Notes a hint. Returns how many were lost before it, where these are too many to have changed places
    /// with it.
    fn came(&mut self, publisher: u64, sequence: u64) -> Option<u64> {
        if self.missing.remove(&(publisher, sequence)) {
            self.since = self.since.filter(|_| !self.missing.is_empty());
            return None;
        }
        if self.last.len() >= PUBLISHERS && !self.last.contains_key(&publisher) {
            self.last.clear();
        }
        let last = self.last.entry(publisher).or_insert(sequence);
        let before = std::mem::replace(last, sequence.max(*last));
        if before.abs_diff(sequence) > FURTHEST_APART {
            *last = sequence;
            return None;
        }
        let lost = sequence.saturating_sub(before.saturating_add(1));
        if lost + self.missing.len() as u64 > MISSING {
            return Some(lost);
        }
        self.missing.extend((sequence - lost..sequence).map(|missing| (publisher, missing)));
        if lost > 0 {
            self.since.get_or_insert_with(Instant::now);
        }
        None
    }

    /// Completes with the number of hints that are lost, once they have been missing for long enough.
    async fn lost(&mut self) -> u64 {
        match self.since {
            Some(since) => tokio::time::sleep_until(since + CHANGE_PLACES).await,
            None => std::future::pending().await,
        }
        self.since = None;
        std::mem::take(&mut self.missing).len() as u64
    }
}

async fn fence(subscription: &mut dyn Subscription, limit: Duration) -> Result<(), RemoteError> {
    match tokio::time::timeout(limit, subscription.ping()).await {
        Ok(answered) => answered,
        Err(_elapsed) => Err(RemoteError::Timeout),
    }
}

/// Whether hints are left aside because of what they said.
fn has_lost_belief(shared: &Shared) -> bool {
    shared.coherence.belief.is_lost(shared.clock.now_ms())
}

/// Hints have named transactions that a poll does not contain which was sent after they came.
pub(super) fn tell_of_untrue(shared: &Shared, transactions: usize) {
    if transactions == 0 {
        return;
    }
    let transactions = transactions as u64;
    shared.counters.hints_untrue.add(transactions);
    shared.signals.send(Event::HintsUntrue { transactions });
    let meanwhile = if has_lost_belief(shared) {
        shared.signals.set_bus(false);
        "They are left aside until there were none for ten seconds, and writes are seen by polls"
    } else {
        "What they evicted is loaded again"
    };
    let why = format!(
        "hints name transactions that do not exist ({} so far): somebody makes them up, or tells of writes before their commit. {meanwhile}",
        shared.counters.hints_untrue.get()
    );
    shared.signals.begin_for(UNTRUE_LASTS, TroubleKind::HintsUntrue.anywhere(), &why);
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn numbers_that_change_places_are_not_lost_and_those_that_do_not_come_are() {
        let mut sequences = Sequences::default();
        for sequence in [10, 12, 11, 14, 15, 13] {
            assert_eq!(sequences.came(1, sequence), None);
        }
        assert!(sequences.lost().now_or_never().is_none());
        for sequence in [18, 17] {
            assert_eq!(sequences.came(1, sequence), None);
        }
        assert_eq!(sequences.came(2, 5), None, "the first of another publisher");
        assert_eq!(sequences.came(2, 7), None);
        let began = Instant::now();
        assert_eq!(sequences.lost().await, 2);
        assert_eq!(began.elapsed(), CHANGE_PLACES);
        assert!(sequences.lost().now_or_never().is_none(), "told once");
    }

    #[test]
    fn no_number_that_is_made_up_makes_a_publisher_silent_or_takes_much_memory() {
        let mut sequences = Sequences::default();
        sequences.came(1, 10);
        assert_eq!(sequences.came(1, u64::MAX), None);
        assert_eq!(sequences.came(1, 11), None, "begun anew");
        assert_eq!(sequences.came(1, 11 + MISSING + 2), Some(MISSING + 1));
        for publisher in 2..20_000 {
            sequences.came(publisher, 1);
            sequences.came(publisher, 100);
        }
        assert!(sequences.missing.len() as u64 <= MISSING && sequences.last.len() <= PUBLISHERS);
    }
}
