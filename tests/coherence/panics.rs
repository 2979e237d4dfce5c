//! A log that panics while it is polled: the tail begins anew, for without one nothing is ever fresh again.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures_util::future::BoxFuture;
use perto::sim::{Sim, SimLog};
use perto::{Appended, Cache, Change, Event, Log, LogError, Poll, Snapshot, State, TroubleKind, Unwatched};

use crate::ring::{BOUND, CACHE, eventually, ms};

#[derive(Debug)]
struct Panicking {
    log: Arc<SimLog>,
    armed: AtomicBool,
}

impl Log for Panicking {
    fn poll<'a>(
        &'a self,
        cursor: Option<&'a Snapshot>,
        limit: Duration,
    ) -> BoxFuture<'a, Result<Poll, LogError>> {
        assert!(!self.armed.swap(false, Ordering::AcqRel), "as this test wants");
        self.log.poll(cursor, limit)
    }

    fn append<'a>(&'a self, change: &'a Change) -> BoxFuture<'a, Result<Appended, LogError>> {
        self.log.append(change)
    }

    fn trim(&self, retention: Duration) -> BoxFuture<'_, Result<(), LogError>> {
        self.log.trim(retention)
    }

    fn unwatched<'a>(
        &'a self,
        cache: &'a str,
        tables: &'a [String],
    ) -> BoxFuture<'a, Result<Vec<Unwatched>, LogError>> {
        self.log.unwatched(cache, tables)
    }
}

#[tokio::test(start_paused = true)]
async fn a_tail_that_panics_begins_anew_and_misses_nothing() {
    let sim = Sim::new(1);
    let node = sim.node();
    let log = Arc::new(Panicking { log: Arc::clone(&node.log), armed: AtomicBool::new(false) });
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
    assert_eq!(read.value.as_deref().map(String::as_str), Some("new"));
    ms(5_000).await;
    assert_eq!(perto.health().state, State::Coherent, "and it goes on");
    perto.shutdown().await;
    assert_eq!(perto.tasks(), 0);
}
