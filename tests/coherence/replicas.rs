//! Loaders that read a replica: its lag is never taken for freshness.

use perto::{Freshness, StaleCause, Tier};

use crate::ring::{POLL, Ring, ms, some, text};

#[tokio::test(start_paused = true)]
async fn a_lagging_replicas_value_is_loaded_again_from_the_primary() {
    let ring = Ring::of(2).await;
    let [reader, _] = &ring.members[..] else { unreachable!() };
    ring.write(1, 1, "old").await;
    ring.sim.postgres.replay(0);
    ring.write(1, 1, "new").await;
    ms(1).await;
    reader.loader.use_replica(true);
    assert_eq!(reader.fresh(1).await, some("new"));
    assert_eq!((reader.users.stats().replica_reloads, reader.loads()), (1, 2));
    assert_eq!(reader.tier(1).await, Tier::Local);
    ring.end().await;
}

#[tokio::test(start_paused = true)]
async fn a_replicas_value_that_misses_a_write_is_never_served_as_fresh() {
    let ring = Ring::of(2).await;
    let [reader, other] = &ring.members[..] else { unreachable!() };
    ring.write(1, 1, "old").await;
    ring.sim.postgres.replay(0);
    ring.write(1, 1, "new").await;
    ms(1).await;
    // It has no way to the primary.
    reader.loader.use_replica(false);
    for _ in 0..2 {
        let read = reader.users.get(&1).await.unwrap();
        assert_eq!((text(&read), read.freshness), (some("old"), Freshness::Stale(StaleCause::Replica)));
        ms(1).await;
    }
    assert_eq!(reader.cached(1), None);
    assert_eq!(other.fresh(1).await, some("new"), "nor does L2 serve it to others");
    ring.sim.postgres.replay(0);
    assert_eq!(reader.fresh(1).await, some("new"), "the replica has caught up");
    ring.end().await;
}

#[tokio::test(start_paused = true)]
async fn a_replicas_empty_list_of_running_transactions_is_not_believed() {
    let ring = Ring::of(2).await;
    let [reader, _] = &ring.members[..] else { unreachable!() };
    ring.write_silently(1, "old");
    let mut early = ring.sim.postgres.begin();
    early.put(crate::ring::CACHE, &1_u64, &"new").unwrap();
    ring.write_silently(2, "later transaction, earlier commit");
    ring.sim.postgres.replay(0);
    // The replica's snapshot says xmax past `early`, and lists nothing as running.
    let written = early.commit().unwrap();
    reader.loader.use_replica(true);
    ring.announce(1, &written).await;
    ms(1).await;
    assert_eq!(reader.fresh(1).await, some("new"));
    assert_eq!(reader.users.stats().replica_reloads, 1, "at face value, the old row would contain the write");
    ring.end().await;
}

#[tokio::test(start_paused = true)]
async fn a_replica_that_lags_behind_what_nobody_knows_of_yet_is_found_out_within_a_poll() {
    let ring = Ring::of(1).await;
    let reader = &ring.members[0];
    ring.write_silently(1, "old");
    tokio::time::sleep(POLL).await;
    ring.sim.postgres.replay(0);
    reader.loader.use_replica(true);
    for round in 0..10 {
        ring.write_silently(1, &round.to_string());
        reader.users.get(&1).await.unwrap();
        tokio::time::sleep(POLL).await;
        assert_eq!(reader.fresh(1).await, some(&round.to_string()));
    }
    ring.end().await;
}
