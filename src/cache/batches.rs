//! Look-ups into L2 and loads, of one read or of several together.
//!
//! A read takes its start before it waits, so each key keeps its own: nothing of it is newer than what its batch asks. What
//! may go together to the loader [`Call`] decides.

use std::collections::VecDeque;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::FutureExt;
use tokio::sync::SemaphorePermit;
use tokio::time::Instant;

use super::fetch::{Moment, weight};
use super::gather::{Entered, Fits, Worker};
use super::led::{Call, Few, Led, Piece};
use super::{Core, FlightResult, Key, Outcome, Value, contains};
use crate::coherence::ReadStart;
use crate::coherence::verdict::FlightSource;
use crate::error::Error;
use crate::read::Wish;
use crate::shared::l2::KEYS_AT_ONCE;
use crate::trace::{Kind, Span, Trace};

/// Keys of several reads in one look-up. While one batch is decoded, the server has the next.
const LOOKED_UP_AT_ONCE: usize = 256;
/// How long loads that are under way may hold others up.
const PATIENCE: Duration = Duration::from_millis(5);
/// Calls of the loader that fail for one batch, and none that doesn't, before it is given up: the whole, one read, the halves of the rest,
/// and as much of the first of them.
const CALLS_IN_VAIN: u64 = 7;

/// The span of what reads do together: a part of one of them, and linked to by the others.
fn together<K: Key, V: Value>(
    led: &[Led<K, FlightResult<V>>],
    begin: impl FnOnce(&Trace) -> Span,
) -> Option<Span> {
    let of = led.iter().position(|led| led.trace.is_recorded()).unwrap_or_default();
    let span = begin(&led.get(of)?.trace);
    if led.len() > 1 {
        span.number("perto.reads", led.len() as u64);
        let origin = span.trace().origin();
        led.iter().skip(of + 1).for_each(|led| led.trace.link(&origin));
    }
    Some(span)
}

impl<K: Key, V: Value> Core<K, V> {
    /// Looks into L2, at once where few look-ups are under way, and has loaded what is missing: that is to be awaited. Else the keys
    /// are looked up together with others', by a task of the instance.
    pub(super) fn look_up(
        self: &Arc<Self>,
        led: Led<K, FlightResult<V>>,
    ) -> Option<impl Future<Output = ()> + Send> {
        let (led, place) = if led.keys.len() > KEYS_AT_ONCE {
            // Several round trips: nobody else should wait for them.
            (led, None)
        } else {
            // A task of the instance looks it up then: nobody needs to give up this leader.
            let prepared = |led: &Led<_, _>| led.keys.iter().for_each(|led| led.leader.needs_nobody());
            match self.look_ups.enter(led, prepared, Led::retain_awaited) {
                Entered::Alone(led, place) => (led, Some(place)),
                Entered::Waiting(worker) => {
                    if let Some(worker) = worker {
                        self.spawn_look_ups(worker);
                    }
                    return None;
                }
            }
        };
        let all = vec![led];
        // Apart from the read, which so is small where it only waits.
        Some(Box::pin(async move {
            let _place = place;
            self.look_up_all(all).await;
        }))
    }

    fn spawn_look_ups(self: &Arc<Self>, worker: Worker<Led<K, FlightResult<V>>>) {
        let core = Arc::clone(self);
        self.shared.spawn_until_closing(async move { core.look_up_waiting(worker).await });
    }

    async fn look_up_waiting(self: &Arc<Self>, mut worker: Worker<Led<K, FlightResult<V>>>) {
        loop {
            // Whoever can go on now comes along.
            tokio::task::yield_now().await;
            let (mut keys, most) = (0, self.pace.keys_at_once(LOOKED_UP_AT_ONCE));
            let (now, limit) = (Instant::now(), self.shared.settings.remote_timeout);
            // For as long as its look-up may take. It goes on without.
            let has_waited =
                |led: &Led<K, FlightResult<V>>| now.saturating_duration_since(led.asked) >= limit;
            let fits = |led: &Led<K, FlightResult<V>>| {
                let before = keys;
                keys += if has_waited(led) { 0 } else { led.keys.len() };
                if before == 0 || keys <= most { Fits::Yes } else { Fits::Full }
            };
            let Some((mut batch, another)) = worker.take(fits) else { return };
            if let Some(another) = another {
                self.spawn_look_ups(another);
            }
            batch.retain_mut(Led::retain_awaited);
            // In the order in which they came.
            let late = batch.partition_point(has_waited);
            if late > 0 {
                self.load(batch.drain(..late));
            }
            self.look_up_all(batch).await;
            worker.again();
        }
    }

    /// In one round trip, and has the rest loaded.
    async fn look_up_all(self: &Arc<Self>, all: Vec<Led<K, FlightResult<V>>>) {
        let missing = self.look(all, false).await;
        self.load_missing(missing);
    }

    /// In one round trip. What L2 does not have. How long it takes to look `again`, while many do, says little of a look-up.
    pub(super) async fn look(
        self: &Arc<Self>,
        all: Vec<Led<K, FlightResult<V>>>,
        again: bool,
    ) -> Vec<Led<K, FlightResult<V>>> {
        let span = match all.len() {
            0 => return all,
            1 => None,
            _ => together(&all, |trace| trace.begin(Kind::Internal, format_args!("look up {}", self.name))),
        };
        let trace = span.as_ref().map_or_else(|| all[0].trace.clone(), Span::trace);
        let mut names = Vec::with_capacity(all.iter().map(Led::count).sum());
        let (mut epoch, mut before) = (all[0].start.epoch, self.remote_key(all[0].start.epoch, ""));
        for led in &all {
            if led.start.epoch != epoch {
                epoch = led.start.epoch;
                before = self.remote_key(epoch, "");
            }
            names.extend(led.keys.iter().map(|key| [&before, &*key.text].concat()));
        }
        let (asked, usable) = (Instant::now(), self.shared.remote_usable());
        let found = self.shared.remote_get(&names, self.most_stored(), &trace).await;
        if usable && !again {
            self.looked_up(asked.elapsed());
        }
        let values = found.iter().flatten();
        self.pace.brought(values.clone().count(), values.map(Bytes::len).sum());
        // From here on nothing waits: nobody needs to give up these leaders.
        all.iter().flat_map(|led| &led.keys).for_each(|led| led.leader.needs_nobody());
        let came = Moment::now(&*self.shared.clock);
        let mut found = names.iter().zip(found.into_iter().chain(std::iter::repeat(None)));
        let mut missing = Vec::new();
        for mut led in all {
            let (start, token) = (led.start, led.wish.token_in(led.start.epoch, led.start.era));
            let mut loads = Few::new();
            for (key, (name, bytes)) in led.keys.drain(..).zip(&mut found) {
                let entry = bytes.and_then(|bytes| self.read_remote(name, &bytes, &key, start, came));
                match entry {
                    Some(entry) if contains(&entry, token) => {
                        let entry = Arc::new(entry);
                        let weight = weight(&key.text, &entry);
                        let _accepted_a_moment_ago =
                            self.insert(key.leader.key(), key.slot, &entry, start, weight);
                        key.leader.finish(Ok(Outcome { entry, from: FlightSource::Remote }));
                    }
                    _ => loads.push(key),
                }
            }
            if !loads.is_empty() {
                missing.push(Led { keys: loads, ..led });
            }
        }
        missing
    }

    /// Has these loaded by tasks of the instance, each of which calls the loader for all that waits: at once where few loads are under
    /// way. Each key has an outcome within the load timeout. Whoever waits; but where it had to wait for others, only if somebody
    /// does.
    pub(super) fn load(self: &Arc<Self>, led: impl IntoIterator<Item = Led<K, FlightResult<V>>>) {
        let asked = Instant::now();
        let pieces: Vec<Led<K, FlightResult<V>>> =
            led.into_iter().flat_map(|led| Led { asked, ..led }.cut(self.policy.max_batch)).collect();
        pieces.iter().flat_map(|led| &led.keys).for_each(|led| led.leader.loads());
        if let Some(worker) = self.loads.add(pieces, Led::retain_awaited) {
            self.spawn_loads(worker);
        }
    }

    fn spawn_loads(self: &Arc<Self>, worker: Worker<Led<K, FlightResult<V>>>) {
        let core = Arc::clone(self);
        self.shared.spawn(async move { core.load_waiting(worker).await });
    }

    async fn load_waiting(self: Arc<Self>, mut worker: Worker<Led<K, FlightResult<V>>>) {
        loop {
            // Whoever can go on now comes along.
            tokio::task::yield_now().await;
            let Some(_place) = self.load_place().await else {
                if worker.ends() {
                    return;
                }
                continue;
            };
            let mut call = Call::new(self.policy.max_batch.min(KEYS_AT_ONCE));
            let fits = |led: &Led<K, FlightResult<V>>| call.fits(led);
            let Some((mut batch, another)) = worker.take(fits) else { return };
            if let Some(another) = another {
                self.spawn_loads(another);
            }
            batch.retain_mut(Led::retain_awaited);
            let loading = self.load_batch(batch);
            tokio::pin!(loading);
            while tokio::time::timeout(PATIENCE, &mut loading).await.is_err() {
                if let Some(another) = self.loads.hurry() {
                    self.spawn_loads(another);
                }
            }
            worker.again();
        }
    }

    /// A place among the loads of the instance, for what waits. `None` where nothing does any more.
    ///
    /// Whoever got a place with little time left would waste it, and a connection: when Postgres comes back with many waiting, every
    /// load would be such a one.
    async fn load_place(&self) -> Option<SemaphorePermit<'_>> {
        let limit = self.policy.load_timeout / 2;
        loop {
            if let Some(place) = self.shared.free_load_place() {
                return Some(place);
            }
            let waited = self.loads.first(|led| led.asked.elapsed())?;
            let closed = tokio::select! {
                biased;
                place = tokio::time::timeout(limit.saturating_sub(waited), self.shared.load_place()) => match place {
                    Ok(Ok(place)) => return Some(place),
                    Ok(Err(_closed)) => true,
                    Err(_elapsed) => false,
                },
                () = self.shared.closing() => true,
            };
            let error = match closed {
                true => Error::Closed,
                false => Error::LoadTimeout { cache: Arc::clone(&self.name), limit },
            };
            let over = self.loads.take_first(|led| closed || led.asked.elapsed() >= limit);
            self.fail(over, &error);
        }
    }

    /// Calls the loader for a batch, and gives each key its outcome.
    async fn load_batch(self: &Arc<Self>, batch: Vec<Led<K, FlightResult<V>>>) {
        let asked = || batch.iter().map(|led| led.asked);
        let Some((first, last)) = asked().min().zip(asked().max()) else { return };
        let begin = |trace: &Trace| trace.begin(Kind::Internal, format_args!("load {}", self.name));
        let Some(span) = together(&batch, begin) else { return };
        span.text("perto.cache", &self.name);
        span.number("perto.keys", batch.iter().map(|led| led.keys.len() as u64).sum());
        // From the last one's: who has waited for longer has a limit of its own.
        let limit = self.policy.load_timeout;
        let mut pieces = VecDeque::from([Piece { led: batch, primary: false }]);
        let loading = span.trace().within(self.load_pieces(&mut pieces, &span));
        let loaded = tokio::select! {
            biased;
            loaded = tokio::time::timeout(limit.saturating_sub(last.elapsed()), loading) =>
                loaded.map_err(|_elapsed| Error::LoadTimeout { cache: Arc::clone(&self.name), limit }),
            () = self.shared.closing() => Err(Error::Closed),
        };
        self.pace.loaded(first.elapsed());
        if let Err(error) = loaded {
            span.failed(&error);
            self.fail(pieces.into_iter().flat_map(|piece| piece.led), &error);
        }
    }

    /// Calls the loader, and where that fails, for each half of the reads. So one key that can't be loaded fails nobody who has not
    /// asked for it, at the cost of two calls for each halving. Where all calls fail, so do all reads: it is the source's fault then,
    /// and a source that is down is not asked again and again. So that a few keys all over the batch are not taken for that, one read is
    /// tried alone until something was loaded.
    async fn load_pieces(self: &Arc<Self>, pieces: &mut VecDeque<Piece<K, FlightResult<V>>>, span: &Span) {
        let (mut failed, mut told, mut succeeded) = (0_u64, 0_u64, false);
        while let Some(piece) = pieces.front() {
            let loaded = match combined(piece) {
                Some((keys, start, wish)) => {
                    let loading = AssertUnwindSafe(self.run_loader(keys, start, wish, piece.primary));
                    let panicked = |_| Err(Error::LoadPanicked { cache: Arc::clone(&self.name) });
                    loading.catch_unwind().await.unwrap_or_else(panicked)
                }
                None => Err(Error::Closed),
            };
            let Some(mut piece) = pieces.pop_front() else { return };
            match loaded {
                Ok(brought) => {
                    succeeded = true;
                    pieces.extend(self.share(piece, brought));
                }
                Err(error) => {
                    failed += 1;
                    let in_vain = failed >= CALLS_IN_VAIN && !succeeded;
                    if piece.led.len() > 1 && !in_vain {
                        let alone = usize::from(!succeeded);
                        let mut rest = piece.led.split_off(alone);
                        let half = rest.split_off(rest.len() / 2);
                        let parts = [piece.led, rest, half].into_iter().filter(|led| !led.is_empty());
                        pieces.extend(parts.map(|led| Piece { led, ..piece }));
                        continue;
                    }
                    span.failed(&error);
                    self.fail(piece.led, &error);
                    told += 1 + u64::from(in_vain && !pieces.is_empty());
                    if in_vain {
                        self.fail(pieces.drain(..).flat_map(|piece| piece.led), &error);
                    }
                    if !succeeded && pieces.is_empty() {
                        // Nothing was loaded. Were only what fails for readers counted, few of many loads would have failed.
                        self.counters.load_errors.add(failed.saturating_sub(told));
                    }
                }
            }
        }
    }

    /// Ends flights by an error.
    fn fail(&self, led: impl IntoIterator<Item = Led<K, FlightResult<V>>>, error: &Error) {
        let mut failed = led.into_iter().flat_map(|led| led.keys).peekable();
        if failed.peek().is_some() {
            self.counters.load_errors.add(1);
            self.shared.load_failed(&self.name, error);
            failed.for_each(|led| led.leader.finish(Err(error.clone())));
        }
    }
}

/// What is asked of the loader for all of them. The terms are theirs; what the primary says must be as new as the newest of them needs.
fn combined<K: Key, V: Value>(piece: &Piece<K, FlightResult<V>>) -> Option<(Vec<K>, ReadStart, Wish)> {
    let first = piece.led.first()?;
    let poll = piece.led.iter().filter_map(|led| led.start.poll).max();
    let keys = piece.led.iter().flat_map(|led| &led.keys).map(|led| led.leader.key().clone()).collect();
    Some((keys, ReadStart { poll, ..first.start }, first.wish))
}

#[cfg(all(test, feature = "otel"))]
mod tests {
    use opentelemetry::global;
    use opentelemetry_sdk::error::OTelSdkResult;
    use opentelemetry_sdk::trace::{SdkTracerProvider, SpanData, SpanExporter};
    use parking_lot::Mutex;

    use super::super::flight::Flights;
    use super::super::led::LedKey;
    use super::*;
    use crate::coherence::buckets::Slot;

    #[derive(Debug, Clone, Default)]
    struct Ended(Arc<Mutex<Vec<SpanData>>>);

    impl SpanExporter for Ended {
        async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
            self.0.lock().extend(batch);
            Ok(())
        }
    }

    #[test]
    fn what_reads_do_together_is_a_part_of_one_and_the_others_link_to_it() {
        let ended = Ended::default();
        let provider = SdkTracerProvider::builder().with_simple_exporter(ended.clone()).build();
        global::set_tracer_provider(provider);
        let flights = Flights::<u64, FlightResult<u64>>::new();
        let start = ReadStart { epoch: 1, era: 1, cache_epoch: 0, poll: None };
        let led = |key: u64, trace: &Trace| {
            let leader = flights.join(&key, &trace.origin(), Instant::now(), Duration::ZERO).0.unwrap();
            let keys = Few::from([LedKey { text: key.to_string(), slot: Slot::default(), leader }]);
            Led::new(keys, start, Wish::NONE, trace, Instant::now())
        };
        let reads = ["one", "other"].map(|name| Trace::root().begin(Kind::Internal, format_args!("{name}")));
        let all = vec![led(1, &Trace::current()), led(2, &reads[0].trace()), led(3, &reads[1].trace())];
        drop(together(&all, |trace| trace.begin(Kind::Internal, format_args!("together"))));
        drop((all, reads));
        let ended = ended.0.lock();
        let span = |name: &str| ended.iter().find(|span| span.name == name).unwrap();
        let (one, other, both) = (span("one"), span("other"), span("together"));
        assert_eq!(both.parent_span_id, one.span_context.span_id());
        assert_eq!(both.attributes[0].value.as_str(), "3");
        assert!(one.links.is_empty() && both.links.is_empty());
        let links: Vec<_> = other.links.iter().map(|link| link.span_context.span_id()).collect();
        assert_eq!(links, [both.span_context.span_id()]);
    }
}
