//! Tables that stop being watched while an instance runs.

use std::time::Duration;

use perto::{Event, Load, Loaded, PertoBuilder, StartError, Tier, Trouble, TroubleKind};
use tokio::sync::broadcast::Receiver;

use crate::ring::{CACHE, Member, POLL, Ring, some};

const MINUTE: Duration = Duration::from_secs(61);
/// A look and a clear have 3 s each.
const SLOW: Duration = Duration::from_secs(2);

/// A write that no trigger sees.
fn put_unlogged(ring: &Ring, value: &str) {
    let mut tx = ring.sim.postgres.begin();
    tx.put_unlogged(CACHE, &1_u64, &value).unwrap();
    tx.commit().unwrap();
}

fn unwatched(events: &mut Receiver<Event>) -> Vec<String> {
    let mut tables = Vec::new();
    while let Ok(event) = events.try_recv() {
        if let Event::TroubleBegan(Trouble { kind: TroubleKind::Unwatched, table, .. }) = event {
            tables.extend(table);
        }
    }
    tables
}

#[tokio::test(start_paused = true)]
async fn a_table_whose_triggers_go_while_an_instance_runs_is_told_of_once_until_they_go_again() {
    let mut ring = Ring::of(0).await;
    ring.join_with(|perto| perto, |cache| cache.tables(["users", "names"])).await;
    let (perto, log) = (ring.members[0].perto.clone(), std::sync::Arc::clone(&ring.members[0].node.log));
    let mut events = perto.events();
    tokio::time::sleep(MINUTE).await;
    assert_eq!(unwatched(&mut events), [""; 0]);
    log.watch("users", false);
    tokio::time::sleep(MINUTE).await;
    assert_eq!(unwatched(&mut events), ["users"]);
    // A look that fails forgets nothing.
    log.faults.cut();
    tokio::time::sleep(MINUTE).await;
    log.faults.heal();
    tokio::time::sleep(MINUTE * 3).await;
    assert_eq!(unwatched(&mut events), [""; 0], "it was told of already");
    log.watch("users", true);
    tokio::time::sleep(MINUTE).await;
    log.watch("users", false);
    log.watch("names", false);
    tokio::time::sleep(MINUTE).await;
    let mut told = unwatched(&mut events);
    told.sort_unstable();
    assert_eq!(told, ["names", "users"]);
    ring.end().await;
}

#[tokio::test(start_paused = true)]
async fn a_cache_that_reads_rows_and_declares_no_tables_is_told_of_once() {
    for (declares, computed, times) in [(false, false, 1), (true, false, 0), (false, true, 0)] {
        let ring = Ring::of(0).await;
        let node = ring.sim.node();
        let perto = node.builder("ring").build().unwrap();
        let cache = perto.cache::<u64, u64>("number");
        let cache = if declares { cache.tables([""; 0]) } else { cache };
        let rows = ring.sim.postgres.loader("number");
        let numbers = cache
            .loader(move |load: Load<u64>| {
                let loading = rows.function::<u64, u64>()(load);
                async move { if computed { Ok(Loaded::computed()) } else { loading.await } }
            })
            .unwrap();
        let mut events = perto.events();
        perto.start().await.unwrap();
        for key in 0..3 {
            numbers.get(&key).await.unwrap();
        }
        let told = std::iter::from_fn(|| events.try_recv().ok());
        let told = told.filter(|event| matches!(event, Event::Undeclared { cache } if cache == "number"));
        assert_eq!(told.count(), times, "declares: {declares}, computed: {computed}");
        perto.shutdown().await;
        ring.end().await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_table_lost_again_within_a_minute_is_told_of_again() {
    let mut ring = Ring::of(0).await;
    ring.join_with(|perto| perto, |cache| cache.tables(["users"])).await;
    let (perto, log) = (ring.members[0].perto.clone(), std::sync::Arc::clone(&ring.members[0].node.log));
    let mut events = perto.events();
    log.watch("users", false);
    tokio::time::sleep(MINUTE).await;
    assert_eq!(unwatched(&mut events), ["users"]);
    log.watch("users", true);
    log.watch("users", false);
    tokio::time::sleep(MINUTE).await;
    assert_eq!(unwatched(&mut events), ["users"]);
    ring.end().await;
}

#[tokio::test(start_paused = true)]
async fn a_table_that_is_not_watched_fails_the_start_unless_that_is_allowed() {
    let mut ring = Ring::of(0).await;
    let member = Member::new(&ring.sim, |perto| perto, |cache| cache.tables(["users", "names"]));
    member.node.log.watch("users", false);
    let error = member.perto.start().await.unwrap_err();
    let told = error.to_string();
    assert!(matches!(error, StartError::Unwatched(_)), "{told}");
    assert!(told.contains("cache user") && told.contains("\"users\"") && !told.contains("names"), "{told}");
    assert_eq!(member.perto.health().troubles, [], "it did not start");
    member.node.log.watch("users", true);
    member.perto.start().await.unwrap();
    ring.members.push(member);
    ring.end().await;
}

#[tokio::test(start_paused = true)]
async fn a_table_that_may_be_unwatched_is_a_trouble_for_as_long_as_it_lasts() {
    let mut ring = Ring::of(0).await;
    let member = Member::new(&ring.sim, PertoBuilder::allow_unwatched, |cache| cache.tables(["users"]));
    member.node.log.watch("users", false);
    let mut events = member.perto.events();
    member.perto.start().await.unwrap();
    assert_eq!(unwatched(&mut events), ["users"]);
    tokio::time::sleep(MINUTE * 2).await;
    assert_eq!(unwatched(&mut events), [""; 0], "told of once");
    let troubles = member.perto.health().troubles;
    assert_eq!((troubles.len(), troubles[0].kind.name()), (1, "unwatched"));
    assert_eq!((troubles[0].cache.as_deref(), troubles[0].table.as_deref()), (Some("user"), Some("users")));
    member.node.log.watch("users", true);
    tokio::time::sleep(MINUTE).await;
    assert_eq!(member.perto.health().troubles, []);
    ring.members.push(member);
    ring.end().await;
}

/// Whoever enables a trigger by hand clears nothing, and the alert ends: what was cached meanwhile would be called fresh on.
#[tokio::test(start_paused = true)]
async fn what_was_cached_while_a_table_was_not_watched_is_gone_once_it_is_watched_again() {
    for cleared_by_hand in [false, true] {
        let mut ring = Ring::of(0).await;
        for _ in 0..2 {
            // Without an auditor, who would find some of it.
            ring.join_with(|perto| perto.allow_unwatched().audit_rate(0), |cache| cache.tables(["users"]))
                .await;
        }
        let (knows, other) = (&ring.members[0], &ring.members[1]);
        let unlogged = |value| put_unlogged(&ring, value);
        unlogged("before");
        for member in [knows, other] {
            assert_eq!(member.fresh(1).await, some("before"));
        }
        knows.node.log.watch("users", false);
        // Who finds it clears what is cached.
        tokio::time::sleep(MINUTE + POLL).await;
        for member in [knows, other] {
            assert_eq!(member.fresh(1).await, some("before"));
        }
        let rows = ring.sim.postgres.retained();
        if cleared_by_hand {
            // Before the last write that nobody saw.
            let mut tx = ring.sim.postgres.begin();
            tx.clear(CACHE);
            tx.commit().unwrap();
            tokio::time::sleep(POLL).await;
            for member in [knows, other] {
                assert_eq!(member.fresh(1).await, some("before"));
            }
        }
        unlogged("after");
        assert_eq!(knows.fresh(1).await, some("before"), "what an alert is for");
        knows.node.log.watch("users", true);
        tokio::time::sleep(MINUTE).await;
        for member in [knows, other] {
            assert_eq!(member.fresh(1).await, some("after"), "{cleared_by_hand}");
        }
        tokio::time::sleep(MINUTE * 2).await;
        assert_eq!(ring.sim.postgres.retained() - rows, 1 + usize::from(cleared_by_hand), "cleared once");
        ring.end().await;
    }
}

/// An instance that has ended clears nothing, and what it has put into L2 outlives it.
#[tokio::test(start_paused = true)]
async fn what_is_loaded_while_a_table_is_not_watched_stays_out_of_l2() {
    let mut ring = Ring::of(0).await;
    let unlogged = |value| put_unlogged(&ring, value);
    let allowed = |perto: PertoBuilder| perto.allow_unwatched().audit_rate(0);
    let tried = Member::new(&ring.sim, allowed, |cache| cache.tables(["users"]));
    tried.node.log.watch("users", false);
    tried.perto.start().await.unwrap();
    unlogged("before");
    assert_eq!(tried.fresh(1).await, some("before"));
    // A fill is not awaited.
    tokio::time::sleep(SLOW).await;
    tried.perto.shutdown().await;
    unlogged("after");
    ring.join_with(allowed, |cache| cache.tables(["users"])).await;
    assert_eq!(ring.members[0].fresh(1).await, some("after"));
    tokio::time::sleep(SLOW).await;
    ring.join_with(allowed, |cache| cache.tables(["users"])).await;
    let read = ring.members[1].users.get(&1).await.unwrap();
    assert_eq!(read.tier, Tier::Remote, "where it is watched it is put there");
    ring.end().await;
}

/// What was put there before it was lost misses the same writes, and whoever knew may have ended when it is watched again.
#[tokio::test(start_paused = true)]
async fn what_lay_in_l2_when_a_table_was_found_not_watched_is_refused_for_good() {
    for (found_at_the_start, is_cleared_late) in [(false, false), (true, false), (false, true)] {
        let mut ring = Ring::of(0).await;
        let unlogged = |value| put_unlogged(&ring, value);
        let allowed = |perto: PertoBuilder| perto.allow_unwatched().audit_rate(0);
        let join = || Member::new(&ring.sim, allowed, |cache| cache.tables(["users"]));
        unlogged("before");
        let filled = join();
        filled.perto.start().await.unwrap();
        assert_eq!(filled.fresh(1).await, some("before"));
        tokio::time::sleep(SLOW).await;
        let knows = if found_at_the_start { join() } else { filled };
        let log = &knows.node.log;
        log.watch("users", false);
        if found_at_the_start {
            knows.perto.start().await.unwrap();
        } else if is_cleared_late {
            let rows = ring.sim.postgres.retained();
            // Its look is answered, and what it sends then is on its way.
            log.faults.delay(SLOW, SLOW);
            tokio::time::sleep(MINUTE).await;
            log.faults.cut();
            tokio::time::sleep(SLOW * 2).await;
            assert_eq!(ring.sim.postgres.retained(), rows, "not yet");
            assert_eq!(knows.perto.health().troubles[0].kind, TroubleKind::Unwatched);
            log.faults.heal();
            tokio::time::sleep(MINUTE + SLOW).await;
        } else {
            tokio::time::sleep(MINUTE).await;
        }
        knows.perto.shutdown().await;
        unlogged("after");
        ring.join_with(allowed, |cache| cache.tables(["users"])).await;
        assert_eq!(ring.members[0].fresh(1).await, some("after"), "{found_at_the_start}, {is_cleared_late}");
        ring.end().await;
    }
}

#[tokio::test(start_paused = true)]
async fn what_could_not_be_cleared_when_a_table_was_watched_again_is_a_trouble_until_it_is_cleared() {
    let mut ring = Ring::of(0).await;
    ring.join_with(|perto| perto.allow_unwatched(), |cache| cache.tables(["users"])).await;
    let (perto, log) = (ring.members[0].perto.clone(), std::sync::Arc::clone(&ring.members[0].node.log));
    let troubles = || {
        let told =
            perto.health().troubles.into_iter().filter(|trouble| trouble.kind == TroubleKind::Unwatched);
        told.map(|trouble| trouble.detail).collect::<Vec<_>>()
    };
    log.watch("users", false);
    tokio::time::sleep(MINUTE).await;
    log.watch("users", true);
    // A look is in time, which passes once, and a clear is not, which passes twice.
    log.faults.delay(SLOW, SLOW);
    tokio::time::sleep(MINUTE + SLOW * 3).await;
    let told = troubles();
    assert!(told.len() == 1 && told[0].contains("can't be cleared"), "{told:?}");
    log.faults.heal();
    let rows = ring.sim.postgres.retained();
    tokio::time::sleep(MINUTE * 2).await;
    assert_eq!(ring.sim.postgres.retained() - rows, 1, "cleared once");
    assert_eq!(troubles(), [""; 0]);
    ring.end().await;
}
