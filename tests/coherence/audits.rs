//! The auditor: what it finds, and what it must not take for a violation.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use perto::sim::{Sim, SimPostgres};
use perto::{Cache, Event, Load, Loaded};

use crate::ring::{CACHE, Ring, ms, some};

/// A write where somebody has dropped the trigger.
fn write_unlogged(postgres: &SimPostgres, key: u64, value: &str) {
    let mut transaction = postgres.begin();
    transaction.put_unlogged(CACHE, &key, &value).unwrap();
    transaction.commit().unwrap();
}

/// Reads the key for so long.
async fn keep_reading(ring: &Ring, who: usize, key: u64, millis: u64) {
    for _ in 0..millis / 10 {
        ring.members[who].users.get(&key).await.unwrap();
        ms(10).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_write_that_nothing_logged_is_found_and_mended_everywhere() {
    let ring = Ring::of(2).await;
    let mut events = ring.members[0].perto.events();
    ring.write(0, 7, "old").await;
    for member in &ring.members {
        assert_eq!(member.fresh(7).await, some("old"));
    }
    keep_reading(&ring, 0, 7, 3_000).await;
    let before = ring.members[0].users.stats();
    assert!(before.audits >= 2 && before.audit_violations == 0, "{before:?}");

    write_unlogged(&ring.sim.postgres, 7, "new");
    assert_eq!(ring.members[0].fresh(7).await, some("old"), "nothing can know yet");
    keep_reading(&ring, 0, 7, 2_500).await;
    assert_eq!(ring.members[0].users.stats().audit_violations, 1);
    assert_eq!(ring.members[0].perto.audits().five_minutes.violations, 1);
    for member in &ring.members {
        assert_eq!(member.fresh(7).await, some("new"));
    }
    let mut told = false;
    while let Ok(event) = events.try_recv() {
        told |= matches!(event, Event::AuditViolation { cache, .. } if cache == CACHE);
    }
    assert!(told);
    ring.end().await;
}

#[tokio::test(start_paused = true)]
async fn an_unlogged_removal_is_found_too() {
    let ring = Ring::of(1).await;
    assert_eq!(ring.members[0].fresh(7).await, None);
    write_unlogged(&ring.sim.postgres, 7, "there");
    keep_reading(&ring, 0, 7, 2_500).await;
    assert_eq!(ring.members[0].fresh(7).await, some("there"));
    ring.end().await;
}

#[tokio::test(start_paused = true)]
async fn what_the_log_tells_is_no_violation_however_late_it_is_heard_of() {
    let ring = Ring::of(2).await;
    // Hints are lost, and polls take their time.
    for member in &ring.members {
        member.node.bus.faults.lose(100);
        member.node.log.faults.delay(ms_of(20), ms_of(300));
        member.loader.faults().delay(ms_of(1), ms_of(50));
    }
    for round in 0..400 {
        ring.write_silently(round % 3, &format!("v{round}"));
        keep_reading(&ring, 0, round % 3, 50).await;
    }
    let stats = ring.members[0].users.stats();
    assert!(stats.audits > 10, "{stats:?}");
    assert_eq!(stats.audit_violations, 0);
    ring.end().await;
}

#[tokio::test(start_paused = true)]
async fn a_loader_that_never_says_the_same_twice_is_not_audited() {
    let sim = Sim::new(1);
    let perto = sim.node().builder("ring").build().unwrap();
    let (database, count) = (sim.postgres.loader(CACHE), Arc::new(AtomicU64::new(0)));
    let calls = Arc::clone(&count);
    let load = move |load: Load<u64>| {
        let (database, calls, key) = (database.clone(), Arc::clone(&calls), load.keys[0]);
        async move {
            let loaded: Loaded<u64, String> = database.load(load).await?;
            Ok::<_, perto::sim::Down>(loaded.with(key, calls.fetch_add(1, Ordering::Relaxed).to_string()))
        }
    };
    let users: Cache<u64, String> = perto.cache(CACHE).loader(load).unwrap();
    perto.start().await.unwrap();
    for _ in 0..500 {
        users.get(&7).await.unwrap();
        ms(10).await;
    }
    let stats = users.stats();
    assert!(stats.audits_skipped > 2 && stats.audit_violations == 0, "{stats:?}");
    perto.shutdown().await;
}

#[tokio::test(start_paused = true)]
async fn a_loader_that_panics_fails_or_hangs_does_not_end_the_auditor() {
    let sim = Sim::new(1);
    let perto = sim.node().builder("ring").build().unwrap();
    let (database, count) = (sim.postgres.loader(CACHE), Arc::new(AtomicU64::new(0)));
    let load = move |load: Load<u64>| {
        let number = count.fetch_add(1, Ordering::Relaxed);
        assert_ne!(number, 1, "not even a future");
        let database = database.clone();
        async move {
            assert_ne!(number, 2, "it panics");
            match number {
                3 => Err(perto::sim::Down),
                4 => std::future::pending().await,
                _ => database.load(load).await,
            }
        }
    };
    let users: Cache<u64, String> = perto.cache(CACHE).loader(load).unwrap();
    perto.start().await.unwrap();
    for _ in 0..1_500 {
        users.get(&7).await.unwrap();
        ms(10).await;
    }
    let stats = users.stats();
    assert!(stats.audits_skipped == 4 && stats.audits >= 3, "{stats:?}");
    perto.shutdown().await;
}

#[tokio::test(start_paused = true)]
async fn audits_ask_for_few_keys_in_one_load_and_can_be_switched_off() {
    for (rate, most) in [(3, 3), (0, 0)] {
        let sim = Sim::new(1);
        let perto = sim.node().builder("ring").audit_rate(rate).build().unwrap();
        let loader = sim.postgres.loader(CACHE);
        let users: Cache<u64, String> = perto.cache(CACHE).loader(loader.function()).unwrap();
        perto.start().await.unwrap();
        let keys: Vec<u64> = (0..100).collect();
        users.get_many(&keys).await.unwrap();
        let loaded = loader.calls().len();
        for _ in 0..500 {
            users.get_many(&keys).await.unwrap();
            ms(10).await;
        }
        let audits = loader.calls().split_off(loaded);
        assert!(audits.iter().all(|keys| keys.len() <= most), "{audits:?}");
        assert_eq!(audits.is_empty(), rate == 0);
        assert!(audits.len() <= 5, "one a second: {}", audits.len());
        assert_eq!(users.stats().audits, audits.iter().map(|keys| keys.len() as u64).sum::<u64>());
        perto.shutdown().await;
    }
}

fn ms_of(millis: u64) -> Duration {
    Duration::from_millis(millis)
}
