//! Parts that panic: whoever uses them begins anew. Without a tail nothing is ever fresh again, and without a listener no
//! hint comes.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use perto::sim::{Sim, SimBus, SimLog};
use perto::{
    Appended, Bus, Cache, Change, Event, Log, LogError, Poll, RemoteError, Snapshot, State, Subscription,
    TroubleKind, Unwatched,
};

use crate::ring::{BOUND, CACHE, eventually, ms};

#[derive(Debug)]
struct Panicking {
    log: Arc<SimLog>,
    armed: AtomicBool,
    armed_trim: AtomicBool,
}

impl Panicking {
    fn new(log: &Arc<SimLog>) -> Self {
        Self { log: Arc::clone(log), armed: AtomicBool::new(false), armed_trim: AtomicBool::new(false) }
    }
}

impl Log for Panicking {
    fn poll<'a>(
        &'a self,
        cursor: Option<&'a Snapshot>,
        caches: &'a [&'a str],
        limit: Duration,
    ) -> BoxFuture<'a, Result<Poll, LogError>> {
        assert!(!self.armed.swap(false, Ordering::AcqRel), "as this test wants");
        self.log.poll(cursor, caches, limit)
    }

    fn append<'a>(&'a self, change: &'a Change) -> BoxFuture<'a, Result<Appended, LogError>> {
        self.log.append(change)
    }

    fn trim(&self, retention: Duration) -> BoxFuture<'_, Result<(), LogError>> {
        assert!(!self.armed_trim.swap(false, Ordering::AcqRel), "as this test wants");
        self.log.trim(retention)
    }

    fn unwatched<'a>(
        &'a self,
        cache: &'a str,
        tables: &'a [String],
        sources: &'a [perto::Source],
    ) -> BoxFuture<'a, Result<Vec<Unwatched>, LogError>> {
        self.log.unwatched(cache, tables, sources)
    }
}

#[tokio::test(start_paused = true)]
async fn a_tail_that_panics_begins_anew_and_misses_nothing() {
    let sim = Sim::new(1);
    let node = sim.node();
    let log = Arc::new(Panicking::new(&node.log));
    let perto = node.builder("ring").log(Arc::clone(&log) as _).build().unwrap();
    let users: Cache<u64, String> = perto.cache(CACHE).loader(sim.postgres.loader(CACHE).function()).unwrap();
    perto.start().await.unwrap();
    ms(300).await;
    sim.postgres.write(CACHE, &1_u64, &"old").unwrap();
    ms(300).await;
    users.get(&1).await.unwrap();
    assert!(users.get_if_cached(&1).is_some());
    let mut events = perto.events();
    log.armed.store(true, Ordering::Release);
    sim.postgres.write(CACHE, &1_u64, &"new").unwrap();
    eventually("it has panicked", BOUND, || !log.armed.load(Ordering::Acquire)).await;
    eventually("all is read anew", BOUND, || perto.stats().recoveries == 2).await;
    ms(1).await;
    // It is told of, until the new tail has read the log.
    let mut told = Vec::new();
    while let Ok(event) = events.try_recv() {
        match event {
            Event::TroubleBegan(trouble) => told.push((trouble.kind, true)),
            Event::TroubleEnded(trouble) => told.push((trouble.kind, false)),
            _ => {}
        }
    }
    assert_eq!(told, [(TroubleKind::LogUnreadable, true), (TroubleKind::LogUnreadable, false)]);
    let read = users.get(&1).await.unwrap();
    assert_eq!(read.value().map(String::as_str), Some("new"));
    ms(5_000).await;
    assert_eq!(perto.health().state, State::Coherent, "and it goes on");
    perto.shutdown().await;
    assert_eq!(perto.tasks(), 0);
}

/// A bus whose subscription panics at the next message.
#[derive(Debug)]
struct PanickingBus {
    bus: Arc<SimBus>,
    armed: Arc<AtomicBool>,
}

#[derive(Debug)]
struct PanickingSubscription {
    subscription: Box<dyn Subscription>,
    armed: Arc<AtomicBool>,
}

impl Bus for PanickingBus {
    fn publish(&self, message: Bytes) -> BoxFuture<'_, Result<Option<u64>, RemoteError>> {
        self.bus.publish(message)
    }

    fn subscribe(&self) -> BoxFuture<'_, Result<Box<dyn Subscription>, RemoteError>> {
        Box::pin(async {
            let (subscription, armed) = (self.bus.subscribe().await?, Arc::clone(&self.armed));
            Ok(Box::new(PanickingSubscription { subscription, armed }) as _)
        })
    }
}

impl Subscription for PanickingSubscription {
    fn next(&mut self) -> BoxFuture<'_, Result<Bytes, RemoteError>> {
        Box::pin(async {
            let message = self.subscription.next().await;
            assert!(!self.armed.swap(false, Ordering::AcqRel), "as this test wants");
            message
        })
    }

    fn ping(&mut self) -> BoxFuture<'_, Result<(), RemoteError>> {
        self.subscription.ping()
    }
}

#[tokio::test(start_paused = true)]
async fn a_listener_that_panics_is_told_of_and_begins_anew() {
    let sim = Sim::new(1);
    let (node, other) = (sim.node(), sim.node());
    let armed = Arc::new(AtomicBool::new(false));
    let bus = PanickingBus { bus: Arc::clone(&node.bus), armed: Arc::clone(&armed) };
    let perto = node.builder("ring").bus(Arc::new(bus)).build().unwrap();
    let writer = other.builder("ring").build().unwrap();
    for perto in [&perto, &writer] {
        let _users: Cache<u64, String> =
            perto.cache(CACHE).loader(sim.postgres.loader(CACHE).function()).unwrap();
        perto.start().await.unwrap();
    }
    ms(300).await;
    let write = async || {
        let written = sim.postgres.write(CACHE, &1_u64, &"new").unwrap();
        writer.announce(written.token, &written.changes).await;
    };
    let mut events = perto.events();
    armed.store(true, Ordering::Release);
    write().await;
    eventually("it has panicked", BOUND, || !armed.load(Ordering::Acquire)).await;
    ms(1).await;
    assert!(!perto.health().bus_up, "hints don't come: the tail polls more often");
    eventually("it listens again", BOUND, || perto.health().state == State::Coherent).await;
    let mut told = Vec::new();
    while let Ok(event) = events.try_recv() {
        match event {
            Event::TroubleBegan(trouble) => told.push((trouble.kind, true)),
            Event::TroubleEnded(trouble) => told.push((trouble.kind, false)),
            _ => {}
        }
    }
    assert_eq!(told, [(TroubleKind::HintsNotReceived, true), (TroubleKind::HintsNotReceived, false)]);
    let hints = perto.stats().hints;
    write().await;
    eventually("hints come", Duration::from_millis(10), || perto.stats().hints == hints + 1).await;
    for perto in [perto, writer] {
        perto.shutdown().await;
        assert_eq!(perto.tasks(), 0);
    }
}

/// A log that panics while it is trimmed: so does any of the tasks that go on until the end.
#[tokio::test(start_paused = true)]
async fn whatever_goes_on_until_the_end_begins_anew_after_a_panic() {
    let sim = Sim::new(1);
    let node = sim.node();
    let log = Arc::new(Panicking::new(&node.log));
    let perto = node.builder("ring").log(Arc::clone(&log) as _).build().unwrap();
    perto.start().await.unwrap();
    ms(1_000).await;
    log.armed_trim.store(true, Ordering::Release);
    let told = || perto.health().troubles.iter().any(|trouble| trouble.kind == TroubleKind::LogNotTrimmed);
    eventually("it is told", Duration::from_secs(61), told).await;
    eventually("it is trimmed again", Duration::from_secs(61), || !told()).await;
    perto.shutdown().await;
    assert_eq!(perto.tasks(), 0);
}
