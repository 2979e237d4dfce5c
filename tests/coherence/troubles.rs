//! Troubles begin when something is not as it should be, are told of once, and end when it is over.

use std::time::Duration;

use perto::{Event, TroubleKind};
use tokio::sync::broadcast::Receiver;

use crate::ring::{BOUND, Ring, ms, some};

/// What lasts.
fn lasting(ring: &Ring) -> Vec<TroubleKind> {
    ring.members[0].perto.health().troubles.into_iter().map(|trouble| trouble.kind).collect()
}

/// What has begun and ended since it was asked last.
fn told(events: &mut Receiver<Event>) -> (Vec<TroubleKind>, Vec<TroubleKind>) {
    let (mut begun, mut ended) = (Vec::new(), Vec::new());
    while let Ok(event) = events.try_recv() {
        match event {
            Event::TroubleBegan(trouble) => begun.push(trouble.kind),
            Event::TroubleEnded(trouble) => ended.push(trouble.kind),
            _ => {}
        }
    }
    (begun, ended)
}

#[tokio::test(start_paused = true)]
async fn a_log_that_is_not_read_is_a_trouble_once_the_lease_has_run_out() {
    let ring = Ring::of(1).await;
    let mut events = ring.members[0].perto.events();
    ring.members[0].node.log.faults.cut();
    ms(300).await;
    assert_eq!(lasting(&ring), [], "the lease is there for that");
    ms(3_000).await;
    assert_eq!(lasting(&ring), [TroubleKind::LogUnreadable]);
    ring.members[0].node.heal();
    ms(500).await;
    assert_eq!(lasting(&ring), []);
    let kinds = vec![TroubleKind::LogUnreadable];
    assert_eq!(told(&mut events), (kinds.clone(), kinds), "once");
    ring.end().await;
}

#[tokio::test(start_paused = true)]
async fn a_log_that_is_not_trimmed_is_a_trouble_until_it_is() {
    let ring = Ring::of(1).await;
    let mut events = ring.members[0].perto.events();
    ring.members[0].node.log.faults.hang();
    // It is tried each minute, and has a minute to answer.
    ms(130_000).await;
    assert!(lasting(&ring).contains(&TroubleKind::LogNotTrimmed), "{:?}", lasting(&ring));
    ring.members[0].node.heal();
    ms(130_000).await;
    assert_eq!(lasting(&ring), []);
    let (begun, ended) = told(&mut events);
    let times =
        |kinds: &[TroubleKind]| kinds.iter().filter(|kind| **kind == TroubleKind::LogNotTrimmed).count();
    assert_eq!((times(&begun), times(&ended)), (1, 1));
    ring.end().await;
}

#[tokio::test(start_paused = true)]
async fn a_redis_that_does_not_answer_is_a_trouble_until_it_does() {
    let ring = Ring::of(1).await;
    let mut events = ring.members[0].perto.events();
    ring.members[0].node.remote.faults.cut();
    ring.members[0].node.bus.faults.cut();
    assert_eq!(ring.members[0].fresh(1).await, None);
    ms(5_000).await;
    let both = vec![TroubleKind::RedisUnusable, TroubleKind::HintsNotReceived];
    assert_eq!(lasting(&ring), both);
    ring.members[0].node.heal();
    ms(2_000).await;
    assert_eq!(lasting(&ring), []);
    let (mut begun, mut ended) = told(&mut events);
    begun.sort_unstable();
    ended.sort_unstable();
    assert_eq!((begun, ended), (both.clone(), both), "once each");
    ring.end().await;
}

/// A subscription that is lost and stands again at once tells nobody.
#[tokio::test(start_paused = true)]
async fn a_subscription_that_is_made_again_at_once_is_no_trouble() {
    let ring = Ring::of(1).await;
    let mut events = ring.members[0].perto.events();
    for _ in 0..5 {
        ring.members[0].node.bus.faults.cut();
        ms(1).await;
        ring.members[0].node.heal();
        ms(1_000).await;
    }
    assert_eq!(told(&mut events), (vec![], vec![]));
    ring.end().await;
}

/// A call that fails is tried by halves: most calls of a busy instance fail for no read of their own.
#[tokio::test(start_paused = true)]
async fn loads_that_fail_many_reads_at_once_are_a_trouble_too() {
    let ring = Ring::of(1).await;
    let member = &ring.members[0];
    member.loader.faults().cut();
    for round in 0..20 {
        let reads: Vec<_> = (0..16).map(|key| member.reading(16 * round + key)).collect();
        for read in reads {
            assert!(read.await.unwrap().is_err());
        }
        ms(500).await;
    }
    assert_eq!(lasting(&ring), [TroubleKind::LoadsFailing]);
    let stats = member.users.stats();
    assert_eq!(stats.load_errors, stats.loads);
    member.loader.faults().heal();
    ring.end().await;
}

#[tokio::test(start_paused = true)]
async fn loads_that_mostly_fail_are_a_trouble_of_their_cache_until_they_succeed() {
    let ring = Ring::of(1).await;
    let member = &ring.members[0];
    let mut events = member.perto.events();
    let read = async |keys: std::ops::Range<u64>| {
        for key in keys {
            drop(member.users.get(&key).await);
        }
    };
    member.loader.faults().cut();
    read(0..9).await;
    ms(6_000).await;
    assert_eq!(lasting(&ring), [], "a few");
    read(9..30).await;
    ms(6_000).await;
    let troubles = member.perto.health().troubles;
    assert_eq!((troubles.len(), troubles[0].kind), (1, TroubleKind::LoadsFailing));
    assert_eq!(troubles[0].cache.as_deref(), Some("user"));
    assert!(troubles[0].detail.contains("30 of 30"), "{troubles:?}");
    member.loader.faults().heal();
    read(100..300).await;
    ms(6_000).await;
    assert_eq!(lasting(&ring), []);
    let kinds = vec![TroubleKind::LoadsFailing];
    assert_eq!(told(&mut events), (kinds.clone(), kinds), "once");
    ring.end().await;
}

#[tokio::test(start_paused = true)]
async fn a_violation_that_the_auditor_finds_is_a_trouble_for_ten_minutes() {
    let ring = Ring::of(1).await;
    let member = &ring.members[0];
    ring.write(0, 7, "old").await;
    assert_eq!(member.fresh(7).await, some("old"));
    crate::audits::write_unlogged(&ring.sim.postgres, 7, "new");
    for _ in 0..300 {
        member.users.get(&7).await.unwrap();
        ms(10).await;
    }
    assert_eq!(member.users.stats().audit_violations, 1);
    assert_eq!(lasting(&ring), [TroubleKind::AuditViolation]);
    tokio::time::sleep(Duration::from_secs(9 * 60)).await;
    assert_eq!(lasting(&ring), [TroubleKind::AuditViolation]);
    tokio::time::sleep(Duration::from_secs(61) + BOUND).await;
    assert_eq!(lasting(&ring), []);
    ring.end().await;
}
