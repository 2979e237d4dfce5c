//! Crashes, promotions, restores, and a log that was trimmed too far: everything is read anew.

use std::time::Duration;

use perto::{Event, Freshness, Recovery, StaleCause, State, Tier};
use tokio::sync::broadcast::Receiver;

use crate::ring::{BOUND, CACHE, POLL, Ring, eventually, ms, some, text};

fn recoveries(events: &mut Receiver<Event>) -> Vec<Recovery> {
    std::iter::from_fn(|| events.try_recv().ok())
        .filter_map(|event| if let Event::Recovered { why } = event { Some(why) } else { None })
        .collect()
}

#[tokio::test(start_paused = true)]
async fn a_crash_drops_all_that_was_cached() {
    let ring = Ring::of(2).await;
    let [one, two] = &ring.members[..] else { unreachable!() };
    let mut events = one.perto.events();
    ring.write(0, 1, "kept").await;
    ring.write(0, 2, "lost").await;
    ms(1).await;
    for member in [one, two] {
        assert_eq!((member.fresh(1).await, member.fresh(2).await), (some("kept"), some("lost")));
    }
    ring.sim.postgres.crash(1);
    tokio::time::sleep(POLL).await;
    assert_eq!(recoveries(&mut events), [Recovery::NewEpoch]);
    assert_eq!((one.cached(1), one.cached(2)), (None, None));
    assert_eq!(
        (one.fresh(1).await, one.fresh(2).await),
        (some("kept"), None),
        "a lost commit is gone from both tiers"
    );
    assert_eq!((two.fresh(2).await, two.tier(1).await), (None, Tier::Remote));
    ring.end().await;
}

#[tokio::test(start_paused = true)]
async fn what_began_before_a_crash_is_dropped_at_its_end() {
    let ring = Ring::of(2).await;
    let [reader, other] = &ring.members[..] else { unreachable!() };
    ring.write_silently(1, "kept");
    ring.write_silently(1, "lost");
    reader.loader.after().close();
    let reading = reader.reading(1);
    reader.loader.after().reached_by(1).await;
    ring.sim.postgres.crash(1);
    // The number of the lost write is used again, so the value's stamp seems to contain the new one.
    ring.write_silently(1, "new");
    tokio::time::sleep(POLL * 2).await;
    reader.loader.after().open();
    assert_eq!(text(&reading.await.unwrap().unwrap()), some("new"), "it reads again");
    ms(5).await;
    for member in [reader, other] {
        assert_eq!(member.fresh(1).await, some("new"));
    }
    ring.end().await;
}

#[tokio::test(start_paused = true)]
async fn transactions_that_use_old_numbers_again_count() {
    let ring = Ring::of(1).await;
    let member = &ring.members[0];
    ring.write(0, 1, "old").await;
    let before = ring.write(0, 2, "lost").await;
    tokio::time::sleep(POLL).await;
    ring.sim.postgres.crash(1);
    tokio::time::sleep(POLL).await;
    assert_eq!(member.fresh(1).await, some("old"));
    let after = ring.write_silently(1, "new");
    assert_eq!(before.xid, after.xid);
    // A poll of the old epoch contained this number. Believed, it would make the row look known.
    eventually("its row is applied", POLL, || member.cached(1).is_none()).await;
    assert_eq!(member.fresh(1).await, some("new"));
    ring.end().await;
}

#[tokio::test(start_paused = true)]
async fn a_cursor_older_than_the_horizon_recovers() {
    let ring = Ring::of(2).await;
    let [reader, _] = &ring.members[..] else { unreachable!() };
    let mut events = reader.perto.events();
    ring.write(1, 1, "old").await;
    ms(1).await;
    reader.fresh(1).await;
    reader.node.hang();
    ms(3_000).await;
    ring.write(1, 1, "new").await;
    ring.sim.postgres.trim();
    reader.node.heal();
    eventually("it has polled", BOUND * 2, || reader.perto.health().state != State::Unverified).await;
    assert_eq!(recoveries(&mut events), [Recovery::Trimmed]);
    assert_eq!(reader.fresh(1).await, some("new"), "the row that told of it is gone");
    ring.end().await;
}

#[tokio::test(start_paused = true)]
async fn trimming_what_was_read_disturbs_nobody() {
    let ring = Ring::of(1).await;
    let member = &ring.members[0];
    ring.write(0, 1, "one").await;
    member.fresh(1).await;
    tokio::time::sleep(POLL).await;
    ring.sim.postgres.trim();
    tokio::time::sleep(POLL).await;
    assert_eq!((member.cached(1), member.perto.stats().recoveries), (Some(some("one")), 1));
    ring.end().await;
}

#[tokio::test(start_paused = true)]
async fn the_log_is_trimmed_to_its_retention() {
    let mut ring = Ring::of(0).await;
    for _ in 0..2 {
        ring.join_with(|builder| builder.retention(Duration::from_mins(5)), |cache| cache).await;
    }
    ring.write(0, 1, "one").await;
    ms(299_000).await;
    assert_eq!(ring.sim.postgres.retained(), 1);
    ms(122_000).await;
    assert_eq!(ring.sim.postgres.retained(), 0, "a tick each minute");
    assert_eq!(ring.members[0].perto.stats().recoveries, 1);
    ring.end().await;
}

#[tokio::test(start_paused = true)]
async fn more_rows_than_one_poll_brings_drop_what_is_cached_and_nothing_else() {
    let ring = Ring::of(1).await;
    let member = &ring.members[0];
    let mut events = member.perto.events();
    ring.write(0, 1, "old").await;
    member.fresh(1).await;
    member.node.log.faults.hang();
    ring.write_silently(1, "new");
    let mut bulk = ring.sim.postgres.begin();
    for key in 0..perto::MAX_POLL_ROWS {
        bulk.touch(CACHE, &key.to_string());
    }
    bulk.commit().unwrap();
    member.node.log.faults.heal();
    tokio::time::sleep(POLL).await;
    assert_eq!(recoveries(&mut events), [Recovery::TooManyRows]);
    assert_eq!(member.fresh(1).await, some("new"));
    assert_eq!(member.tier(1).await, Tier::Local);
    ring.end().await;
}

#[tokio::test(start_paused = true)]
async fn a_crash_in_the_middle_of_a_recovery_is_another_recovery() {
    let ring = Ring::of(1).await;
    let member = &ring.members[0];
    ring.write(0, 1, "kept").await;
    ring.write(0, 1, "lost").await;
    member.node.log.faults.delay(Duration::from_millis(100), Duration::from_millis(100));
    ring.sim.postgres.crash(0);
    for _ in 0..30 {
        ms(37).await;
        if ring.sim.postgres.snapshot().xmax() % 7 != 0 {
            ring.write_silently(2, "something");
        }
        ring.sim.postgres.crash(1);
        let read = member.users.get(&1).await.unwrap();
        assert_eq!(text(&read), some("lost"));
        // Under the lease of the server before, what another one says is not called fresh.
        assert!(
            matches!(read.freshness, Freshness::Fresh | Freshness::Stale(StaleCause::Replica)),
            "{:?}",
            read.freshness
        );
    }
    ring.sim.postgres.crash(1);
    member.node.log.faults.heal();
    tokio::time::sleep(BOUND).await;
    assert_eq!(member.fresh(1).await, some("kept"));
    ring.end().await;
}

#[tokio::test(start_paused = true)]
async fn an_instance_that_starts_beside_a_long_transaction_caches_what_was_cleared_before() {
    let mut ring = Ring::of(1).await;
    ring.write_silently(1, "one");
    let mut long = ring.sim.postgres.begin();
    long.put(CACHE, &2_u64, &"two").unwrap();
    // As ten bulk imports of the last hour.
    for _ in 0..10 {
        let mut import = ring.sim.postgres.begin();
        import.clear(CACHE);
        import.commit().unwrap();
        ring.write_silently(3, "three");
    }
    let started = ring.join().await;
    let started = &ring.members[started];
    for key in [1, 3] {
        started.fresh(key).await;
        assert_eq!(started.tier(key).await, Tier::Local, "key {key}");
    }
    drop(long);
    ring.end().await;
}

#[tokio::test(start_paused = true)]
async fn an_instance_that_starts_beside_a_batch_takes_what_others_have_put_into_l2() {
    let mut ring = Ring::of(1).await;
    ring.write_silently(1, "one");
    let clear = || {
        let mut clear = ring.sim.postgres.begin();
        clear.clear(CACHE);
        clear.commit().unwrap();
    };
    (0..10).for_each(|_| clear());
    let mut batch = ring.sim.postgres.begin();
    batch.put(CACHE, &2_u64, &"two").unwrap();
    clear();
    tokio::time::sleep(POLL).await;
    assert_eq!(ring.members[0].fresh(1).await, some("one"));
    ms(5).await;
    // Something ends, so the poll of who starts now ranks above the value's stamp.
    ring.write_silently(3, "three");
    let started = ring.join().await;
    assert_eq!(ring.members[started].tier(1).await, Tier::Remote);
    drop(batch);
    ring.end().await;
}

#[tokio::test(start_paused = true)]
async fn what_is_loaded_from_a_new_server_before_the_log_tells_of_it_is_not_cached() {
    let ring = Ring::of(1).await;
    let member = &ring.members[0];
    ring.write(0, 1, "one").await;
    member.node.log.faults.hang();
    ring.sim.postgres.crash(0);
    let read = member.users.get(&1).await.unwrap();
    assert_eq!(
        (text(&read), read.freshness),
        (some("one"), Freshness::Stale(StaleCause::Replica)),
        "the old server's lease is valid"
    );
    ms(1_000).await;
    let read = member.users.get(&1).await.unwrap();
    assert_eq!((text(&read), read.freshness), (some("one"), Freshness::Fresh), "the source is all there is");
    assert_eq!(member.tier(1).await, Tier::Load);
    member.node.log.faults.heal();
    tokio::time::sleep(BOUND).await;
    member.fresh(1).await;
    assert_eq!(member.tier(1).await, Tier::Local);
    ring.end().await;
}
