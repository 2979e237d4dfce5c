//! A read that L1 does not answer: it joins or begins a flight for each key, looks into L2, has the rest loaded, and judges what comes.

use std::collections::HashSet;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt as _;

use super::flight::Waiter;
use super::led::{Few, Led, LedKey};
use super::policy::Outage;
use super::{Cache, FlightResult, Key, Outcome, Value, contains, text};
use crate::coherence::buckets::Slot;
use crate::coherence::lease::LeaseView;
use crate::coherence::verdict::{self, Boarded, Demand, Flight, FlightSource, LeaseVerdict, Verdict, Write};
use crate::error::Error;
use crate::local::Entry;
use crate::read::{Freshness, Read, ReadOptions, SoftTimeout, StaleCause, Tier, Wish};
use crate::trace::{self, Kind, Span, Trace};

/// How often a read begins again: its leader was cancelled, an invalidation outdated what it waited for, or the era
/// ended. Twice is the rule; the rest is for very bad luck.
const ATTEMPTS: usize = 8;

/// A key of a read that waits for its flight.
struct Waiting<K, V> {
    /// Its place among the keys.
    at: usize,
    slot: Slot,
    boarded: Boarded,
    waiter: Waiter<K, FlightResult<V>>,
}

impl<K: Key, V: Value> Cache<K, V> {
    pub(super) async fn get_slow(&self, key: K, wish: Wish) -> Result<Read<V>, Error> {
        let mut reads = Box::pin(self.read_missed(std::slice::from_ref(&key), &wish, true)).await?;
        reads.pop().ok_or(Error::Unsettled)
    }

    /// However often it begins again, a read takes no longer than one look into L2 and one load may; one that asks for more than the
    /// bound waits for a poll before, for no longer than another load.
    pub(super) async fn read(&self, keys: &[K], wish: Wish) -> Result<Vec<Read<V>>, Error> {
        self.read_missed(keys, &wish, false).await
    }

    /// The same, where L1 may have been asked already.
    pub(super) async fn read_missed(
        &self,
        keys: &[K],
        wish: &Wish,
        missed: bool,
    ) -> Result<Vec<Read<V>>, Error> {
        if self.0.shared.is_closed() {
            return Err(Error::Closed);
        }
        // Whoever waits for a poll may find more in L1 than before.
        let missed = missed && !wish.waits();
        if wish.waits() {
            // A key that is none asks for no poll.
            self.texts(keys)?;
        }
        let (asked, wish) = (wish, self.settle(keys, wish).await?);
        let in_l1 = |key| {
            let hit = if missed { None } else { self.hit(key, wish) };
            hit.or_else(|| self.outage_hit(key, wish))
        };
        let mut answers: Vec<Option<Read<V>>> = keys.iter().map(in_l1).collect();
        let missing = keys.iter().zip(&answers).filter(|(_, answer)| answer.is_none());
        missing.for_each(|(key, _)| self.0.local.touch(key));
        match answers.iter().flatten().count() {
            0 => {}
            hits => trace::hits(&self.0.name, hits),
        }
        let refreshing = self.0.answer_stale(keys, &mut answers, asked);
        if refreshing.is_none() && answers.iter().all(Option::is_some) {
            return Ok(self.0.counted_stale(answers.into_iter().flatten().collect()));
        }
        let (began, span) = (tokio::time::Instant::now(), self.span(keys.len()));
        let mut answers = self.read_within(keys, answers, &wish, &span, began).await;
        if let (Ok(answers), Some(refreshing)) = (&mut answers, refreshing) {
            Box::pin(self.land_refreshed(refreshing, keys, answers, &wish, began)).await;
        }
        match &answers {
            Ok(answers) => self.0.record_answers(answers, began.elapsed(), &span),
            Err(error) => span.failed(error),
        }
        Ok(self.0.counted_stale(answers?))
    }

    #[cold]
    fn late(&self, limit: Duration) -> Error {
        Error::LoadTimeout { cache: Arc::clone(&self.0.name), limit }
    }

    /// How long a read may take.
    fn limit(&self, keys: usize) -> Duration {
        self.0.policy.load_timeout.saturating_add(self.0.shared.remote_limit(keys))
    }

    /// Reads many keys; where `source` is set, what the primary says itself.
    pub(crate) async fn read_for_view(
        &self,
        keys: &[K],
        options: ReadOptions,
        source: bool,
    ) -> Result<Vec<Read<V>>, Error> {
        let wish = Wish { source, soft_timeout: Some(SoftTimeout::NEVER), ..self.wish(options) };
        Box::pin(self.read(keys, wish)).await
    }

    fn span(&self, keys: usize) -> Span {
        let span = Trace::current().begin(Kind::Internal, format_args!("lookup {}", self.0.name));
        span.text("perto.cache", &self.0.name);
        span.number("perto.keys", keys as u64);
        span
    }

    async fn read_within(
        &self,
        keys: &[K],
        mut answers: Vec<Option<Read<V>>>,
        wish: &Wish,
        span: &Span,
        mut now: tokio::time::Instant,
    ) -> Result<Vec<Read<V>>, Error> {
        let (trace, limit) = (span.trace(), self.limit(keys.len()));
        // Longer than a clock can say is for ever.
        let end = now.checked_add(limit);
        let (mut refused, mut again) = (0, false);
        while refused < ATTEMPTS {
            if self.0.shared.is_closed() {
                return Err(Error::Closed);
            }
            if again {
                if answers.iter().all(Option::is_some) {
                    break;
                }
                // Where the instance's runtime has ended, nobody flies any more, and nothing else here would wait.
                tokio::task::yield_now().await;
                now = tokio::time::Instant::now();
                if end.is_some_and(|end| now >= end) {
                    return Err(self.late(limit));
                }
            }
            let (led, waiting) = self.board(keys, &mut answers, wish, span, again, now)?;
            if waiting.is_empty() {
                break;
            }
            let joined = waiting.len() > led.len();
            if !led.is_empty() {
                // Once the flights are there: whoever joins one as if it took off after its own read began must not have it judged by
                // a poll from before. Before anything is asked of anybody.
                let start = self.0.shared.coherence.read_start(&self.0.whole);
                if let Some(look_up) = self.look_up(Led::new(led, start, *wish, &trace, now))? {
                    // The first has a limit of its own, within that of the read. A timer takes a good part of a look-up's time.
                    match again {
                        false => look_up.await,
                        true => until(end, look_up).await.ok_or_else(|| self.late(limit))?,
                    }
                }
            }
            if !again && !joined {
                // That has limits of its own, and a timer costs as much as a wake-up.
                for Waiting { waiter, .. } in &waiting {
                    waiter.looked_up().await;
                }
            }
            let mut landing = pin!(self.land(waiting, wish, &mut answers));
            let landed = match landing.as_mut().now_or_never() {
                Some(landed) => landed,
                // Apart from the read, which so is small.
                None => Box::pin(until(end, landing)).await.ok_or_else(|| self.late(limit))?,
            };
            refused += usize::from(landed?);
            again = true;
        }
        answers.into_iter().map(|answer| answer.ok_or(Error::Unsettled)).collect()
    }

    /// Joins or begins the flight of each key without an answer. What this reader leads, and what it waits for.
    #[expect(clippy::type_complexity, reason = "a pair of two lists")]
    fn board(
        &self,
        keys: &[K],
        answers: &mut [Option<Read<V>>],
        wish: &Wish,
        span: &Span,
        again: bool,
        now: tokio::time::Instant,
    ) -> Result<(Few<LedKey<K, FlightResult<V>>>, Few<Waiting<K, V>>), Error> {
        let core = &*self.0;
        let (origin, look_up) = (span.trace().origin(), core.shared.remote_limit(keys.len()));
        let missing = answers.iter().filter(|answer| answer.is_none()).count();
        // A key that is none fails the read before others can join a flight of it.
        let mut texts = Few::with_capacity(missing);
        for (key, _) in keys.iter().zip(&*answers).filter(|(_, answer)| answer.is_none()) {
            texts.push(text(&core.name, key)?);
        }
        let (mut led, mut waiting) = (Few::with_capacity(missing), Few::with_capacity(missing));
        let mut own = HashSet::new();
        let places = keys.iter().zip(answers).enumerate().filter(|(_, (_, answer))| answer.is_none());
        for ((at, (key, answer)), text) in places.zip(texts) {
            let slot = core.shared.coherence.buckets.slot(&core.name, &text);
            let (leader, waiter) = core.flights.join(key, &origin, now, look_up);
            // From the second attempt on, any flight of the key took off after this read began.
            let boarded = if leader.is_some() || again { Boarded::BeforeTakeOff } else { Boarded::InFlight };
            match leader {
                Some(leader) => {
                    // The flight before may have landed since L1 was asked.
                    *answer = self.hit(key, *wish);
                    if answer.is_some() {
                        continue;
                    }
                    if keys.len() > 1 {
                        own.insert(key);
                    }
                    led.push(LedKey { text, slot, leader });
                }
                // A key that was asked for twice.
                None if own.contains(key) => {}
                None => {
                    core.counters.flights_joined.add(1);
                    span.link(waiter.origin());
                }
            }
            waiting.push(Waiting { at, slot, boarded, waiter });
        }
        Ok((led, waiting))
    }

    /// Waits for the flights, and judges what they bring. Whether an outcome was refused. Without one the leader is gone, or
    /// was given up: the next attempt leads, and how often that happens is up to those who cancel.
    async fn land(
        &self,
        waiting: Few<Waiting<K, V>>,
        wish: &Wish,
        answers: &mut [Option<Read<V>>],
    ) -> Result<bool, Error> {
        let mut refused = false;
        for Waiting { at, slot, boarded, waiter } in waiting {
            if let Some(outcome) = self.0.flights.outcome(waiter).await {
                answers[at] = self.judge(slot, &outcome?, boarded, wish)?;
                refused |= answers[at].is_none();
            }
        }
        Ok(refused)
    }

    /// Whether this reader may have the outcome of a flight. `None`: it reads again.
    fn judge(
        &self,
        slot: Slot,
        outcome: &Outcome<V>,
        boarded: Boarded,
        wish: &Wish,
    ) -> Result<Option<Read<V>>, Error> {
        let coherence = &self.0.shared.coherence;
        let epoch = coherence.epoch();
        let held = coherence.lease.held();
        let (entry, flight) = (&outcome.entry, Flight { from: outcome.from, boarded });
        let judged = match flight.is_first_hand() {
            true => LeaseVerdict::Fresh,
            false if !entry.judged() => LeaseVerdict::Refused,
            false => {
                let now_ms = || self.0.shared.clock.now_ms();
                coherence.judge(held, slot, &self.0.whole, entry.subjects(), &entry.stamp(), now_ms)
            }
        };
        // Once more, after all else was looked at.
        let same_era = entry.life.era() == coherence.lease.held().era();
        let asked = Demand {
            of_fresh: Write::of(&entry.stamp(), wish.token_in(epoch, entry.life.era())),
            of_stale: Write::of(&entry.stamp(), wish.asked.map(|token| (token, epoch))),
            source: wish.source,
        };
        let freshness = match flight.verdict(judged, same_era, asked) {
            Verdict::Fresh => Freshness::Fresh,
            Verdict::Stale => Freshness::Stale(StaleCause::Replica),
            Verdict::Unverified(since) => Freshness::Unverified { since },
            Verdict::Cached(since) if self.may_use_cached(held, self.0.shared.clock.now_ms())? => {
                Freshness::Unverified { since }
            }
            Verdict::Cached(_) | Verdict::ReadAgain => return Ok(None),
            Verdict::TokenUntrue => return Err(self.ahead()),
            Verdict::TokenAhead => return Err(Error::TokenAhead),
        };
        let tier = if outcome.from == FlightSource::Remote { Tier::Remote } else { Tier::Load };
        Ok(Some(self.answer(Arc::clone(entry), freshness, tier, wish)))
    }

    fn answer(&self, entry: Arc<Entry<V>>, freshness: Freshness, tier: Tier, wish: &Wish) -> Read<V> {
        let counters = &self.0.counters;
        match tier {
            Tier::Local => _ = counters.l1_hits.here().increment(),
            Tier::Remote => _ = counters.l2_hits.here().increment(),
            Tier::Load => counters.load_hits.add(1),
        }
        if matches!(freshness, Freshness::Unverified { .. }) {
            counters.unverified.add(1);
        }
        Read::of(entry, freshness, tier, wish.floor)
    }

    /// L1 without a valid lease, where the policy allows it: flagged, and for a limited time.
    fn outage_hit(&self, key: &K, wish: Wish) -> Option<Read<V>> {
        if wish.source {
            return None;
        }
        let coherence = &self.0.shared.coherence;
        let epoch = coherence.epoch();
        let held = coherence.lease.held();
        let (Outage::ServeStale { max }, LeaseVerdict::Unverified(since)) =
            (self.0.policy.outage, self.0.shared.freshness(held))
        else {
            return None;
        };
        let pinned = self.0.local.pin();
        let slot = pinned.get(key)?;
        let entry = &slot.entry;
        let live = self.0.is_live(slot, held)
            && held.ever_valid()
            && since <= max
            && self.0.shared.clock.now_ms() < self.0.end_of_life(entry)
            && contains(entry, wish.token_in(epoch, held.era()))
            && (entry.made_of().is_none() || self.0.is_unchanged(entry, held));
        live.then(|| self.answer(Arc::clone(entry), Freshness::Unverified { since }, Tier::Local, &wish))
    }

    /// Whether what is cached may be used at all: under a lease, or as the policy says.
    fn may_use_cached(&self, held: LeaseView, now_ms: u64) -> Result<bool, Error> {
        match verdict::freshness(held, now_ms) {
            LeaseVerdict::Unverified(since) if held.ever_valid() => match self.0.policy.outage {
                Outage::ServeStale { max } => Ok(since <= max),
                Outage::PassThrough => Ok(false),
                Outage::Fail => Err(Error::Unverified),
            },
            // No lease in this era yet: the database answers.
            LeaseVerdict::Unverified(_) => Ok(false),
            LeaseVerdict::Fresh | LeaseVerdict::Refused => Ok(true),
        }
    }

    /// Looks into L2 for the keys that this reader leads, and has the rest loaded: what is to be awaited for it.
    fn look_up(
        &self,
        led: Led<K, FlightResult<V>>,
    ) -> Result<Option<impl Future<Output = ()> + Send>, Error> {
        let core = &self.0;
        let held = core.shared.coherence.lease.held();
        let now_ms = core.shared.clock.now_ms();
        let unused = core.policy.local_only
            || !core.switched.reads_remote()
            || led.wish.source
            || !core.pace.is_worth_a_look(now_ms);
        if !self.may_use_cached(held, now_ms)? || unused {
            core.load([led]);
            return Ok(None);
        }
        Ok(core.look_up(led))
    }
}

/// `None` where it is not done by then. What is done at once needs no timer.
pub(super) async fn until<F: Future>(end: Option<tokio::time::Instant>, of: F) -> Option<F::Output> {
    match end {
        Some(end) => tokio::time::timeout_at(end, of).await.ok(),
        None => Some(of.await),
    }
}
