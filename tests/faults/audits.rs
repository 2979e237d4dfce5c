//! The auditor: what no log can show.

use std::time::{Duration, Instant};

use perto::Event;

use crate::support::wait::eventually;
use crate::world::{World, coherent};

/// An operator drops a trigger. The keys go on being read, a hundred of them; one is written.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_trigger_dropped_by_hand_is_found_within_a_minute_and_what_it_left_behind_is_mended() {
    let world = World::new().await;
    let (a, b) = (world.start().await, world.start().await);
    coherent([&a, &b]).await;
    world.sql("insert into items select n, 1 from generate_series(1, 100) n").await;
    let mut events = a.perto.events();
    let read_all = async || {
        for id in 1..=100 {
            a.read(id).await;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    };
    let begun = Instant::now();
    while a.items.stats().audits < 20 {
        assert!(begun.elapsed() < Duration::from_secs(20), "{:?}", a.items.stats());
        read_all().await;
    }
    b.read(77).await;
    let trigger = format!("drop trigger \"{}:item:update\" on items", world.name);
    world.sql(&trigger).await;
    world.put(77, 2).await;
    let dropped = Instant::now();
    while a.items.stats().audit_violations == 0 {
        assert!(dropped.elapsed() < Duration::from_secs(60), "{:?}", a.items.stats());
        read_all().await;
    }
    let told = std::iter::from_fn(|| events.try_recv().ok()).find_map(|event| match event {
        Event::AuditViolation { cache, key_hash, .. } => Some((cache, key_hash)),
        _ => None,
    });
    assert_eq!(told, Some(("item".to_owned(), perto::key_hash("77"))));
    eventually("both instances show the row as it is", async || {
        a.read(77).await.value() == Some(&2) && b.read(77).await.value() == Some(&2)
    })
    .await;
    assert!(a.perto.audits().hour.violations >= 1);
}

/// Writes that are logged, hundreds of them, are none.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn under_many_writes_the_auditor_finds_nothing() {
    let world = World::new().await;
    let a = world.start().await;
    coherent([&a]).await;
    let begun = Instant::now();
    let mut v = 0;
    while a.items.stats().audits < 60 {
        assert!(begun.elapsed() < Duration::from_secs(30), "{:?}", a.items.stats());
        v += 1;
        world.put(v % 10, v).await;
        // Some are written all the time, and some never.
        for id in 0..20 {
            a.read(id).await;
        }
    }
    assert_eq!(a.items.stats().audit_violations, 0);
}
