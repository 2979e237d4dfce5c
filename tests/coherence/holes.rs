//! Holes that other caches have admitted or shown, one regression test each. The numbers are this project's list.
//!
//! 17 is missing: a key that migrates between Redis servers without a notice to clients that track it. Nothing here
//! rests on Redis telling anybody of a change.

use std::time::Duration;

use perto::Tier;

use crate::ring::{BOUND, CACHE, POLL, Ring, eventually, ms, some, spawn, text};

/// A load of key 1 by the first instance that has read "old" and waits, after "old" was committed.
async fn ring_with_a_load_that_has_read_old(count: usize) -> (Ring, tokio::task::JoinHandle<Option<String>>) {
    let ring = Ring::of(count).await;
    ring.write_silently(1, "old");
    tokio::time::sleep(POLL).await;
    let member = &ring.members[0];
    member.loader.after().close();
    let reading = member.reading(1);
    member.loader.after().reached_by(1).await;
    let reading = spawn(async move { text(&reading.await.unwrap().unwrap()) });
    (ring, reading)
}

#[tokio::test(start_paused = true)]
async fn h01_a_loader_that_read_before_an_invalidation_is_not_cached() {
    // A loading cache inserts what its loader brought, though the key was invalidated in the meantime.
    for way in 0..4 {
        let (ring, reading) = ring_with_a_load_that_has_read_old(1).await;
        let member = &ring.members[0];
        match way {
            0 => drop(ring.write(0, 1, "new").await),
            1 => drop(member.users.invalidate(&1).await.unwrap()),
            2 => drop(member.users.clear().await.unwrap()),
            _ => {
                ring.write_silently(1, "new");
                tokio::time::sleep(POLL).await;
            }
        }
        member.loader.after().open();
        reading.await.unwrap();
        ms(1).await;
        assert_eq!(member.cached(1), None, "way {way}");
        ring.end().await;
    }
}

#[tokio::test(start_paused = true)]
async fn h02_an_invalidation_by_a_peer_during_a_load_leaves_no_old_value_anywhere() {
    let (ring, reading) = ring_with_a_load_that_has_read_old(3).await;
    ring.write(2, 1, "new").await;
    ms(1).await;
    ring.members[0].loader.after().open();
    reading.await.unwrap();
    ms(1).await;
    for member in &ring.members {
        assert_eq!((member.fresh(1).await, member.fresh(1).await), (some("new"), some("new")));
    }
    ring.end().await;
}

#[tokio::test(start_paused = true)]
async fn h03_of_many_keys_loaded_together_only_the_invalidated_one_is_not_cached() {
    let ring = Ring::of(2).await;
    let member = &ring.members[0];
    for key in 1..=3 {
        ring.write_silently(key, "old");
    }
    tokio::time::sleep(POLL).await;
    member.loader.after().close();
    let users = member.users.clone();
    let reading = spawn(async move { users.get_many(&[1, 2, 3]).await });
    member.loader.after().reached_by(1).await;
    ring.write(1, 2, "new").await;
    ms(1).await;
    member.loader.after().open();
    reading.await.unwrap().unwrap();
    assert_eq!([1, 2, 3].map(|key| member.cached(key)), [Some(some("old")), None, Some(some("old"))]);
    ring.end().await;
}

#[tokio::test(start_paused = true)]
async fn h04_a_whole_cache_invalidation_during_a_load_is_not_lost() {
    // Where the time of the value is that of the load's end, an invalidation of its tag that came before counts as
    // older.
    let (ring, reading) = ring_with_a_load_that_has_read_old(2).await;
    let mut bulk = ring.sim.postgres.begin();
    bulk.bulk(CACHE, &[(1_u64, "new")]).unwrap();
    let written = bulk.commit().unwrap();
    ring.announce(1, &written).await;
    ms(100).await;
    ring.members[0].loader.after().open();
    reading.await.unwrap();
    ms(1).await;
    assert_eq!(ring.members[0].cached(1), None);
    assert_eq!(ring.members[1].fresh(1).await, some("new"));
    ring.end().await;
}

#[tokio::test(start_paused = true)]
async fn h05_a_load_that_is_known_to_be_invalidated_is_never_made_to_look_newer() {
    let (ring, reading) = ring_with_a_load_that_has_read_old(1).await;
    let member = &ring.members[0];
    ring.write(0, 1, "new").await;
    let joiner = member.reading(1);
    ms(1).await;
    member.loader.after().open();
    assert_eq!(reading.await.unwrap(), some("old"), "who asked before the write may have it");
    assert_eq!(text(&joiner.await.unwrap().unwrap()), some("new"), "who asked after it may not");
    assert_eq!(member.fresh(1).await, some("new"));
    ring.end().await;
}

#[tokio::test(start_paused = true)]
async fn h06_an_older_fill_never_overwrites_a_newer_value() {
    let (ring, reading) = ring_with_a_load_that_has_read_old(3).await;
    let [slow, quick, third] = &ring.members[..] else { unreachable!() };
    // Nobody announces it, so there is no tombstone.
    ring.write_silently(1, "new");
    assert_eq!(quick.fresh(1).await, some("new"));
    ms(1).await;
    slow.loader.after().open();
    reading.await.unwrap();
    ms(1).await;
    assert_eq!(
        (third.fresh(1).await, third.users.stats().l2_hits),
        (some("new"), 1),
        "the newer value is still there"
    );
    tokio::time::sleep(POLL).await;
    assert_eq!(slow.fresh(1).await, some("new"));
    ring.end().await;
}

#[tokio::test(start_paused = true)]
async fn h07_a_receiver_that_was_offline_misses_nothing() {
    for seconds in [0, 1, 10, 1_000] {
        let ring = Ring::of(2).await;
        let [reader, _] = &ring.members[..] else { unreachable!() };
        ring.write(1, 1, "old").await;
        ms(1).await;
        reader.fresh(1).await;
        reader.node.cut();
        ms(seconds * 1_000).await;
        ring.write(1, 1, "new").await;
        reader.node.heal();
        tokio::time::sleep(POLL).await;
        assert_eq!(reader.fresh(1).await, some("new"), "offline for {seconds} s");
        ring.end().await;
    }
}

#[tokio::test(start_paused = true)]
async fn h08_an_invalidation_outlives_the_process_that_wrote() {
    // A queue of invalidations that are to be sent again dies with its process.
    let ring = Ring::of(2).await;
    let [reader, writer] = &ring.members[..] else { unreachable!() };
    ring.write(1, 1, "old").await;
    ms(1).await;
    reader.fresh(1).await;
    writer.node.remote.faults.cut();
    writer.node.bus.faults.cut();
    let written = ring.write_silently(1, "new");
    ring.announce(1, &written).await;
    writer.perto.shutdown().await;
    eventually("the log has it", POLL, || reader.cached(1).is_none()).await;
    assert_eq!(reader.fresh(1).await, some("new"));
    ring.end().await;
}

#[tokio::test(start_paused = true)]
async fn h09_peers_are_told_though_l2_takes_no_tombstone() {
    let ring = Ring::of(2).await;
    let [reader, writer] = &ring.members[..] else { unreachable!() };
    ring.write(1, 1, "old").await;
    ms(1).await;
    reader.fresh(1).await;
    writer.node.remote.faults.cut();
    ring.write(1, 1, "new").await;
    ms(1).await;
    assert_eq!(reader.cached(1), None, "the hint went out all the same");
    assert_eq!(reader.fresh(1).await, some("new"), "and the old value in L2 is refused");
    ring.end().await;
}

#[tokio::test(start_paused = true)]
async fn h10_a_hint_that_overtakes_its_tombstone_brings_no_old_value_back() {
    let ring = Ring::of(2).await;
    let [reader, writer] = &ring.members[..] else { unreachable!() };
    ring.write(1, 1, "old").await;
    ms(1).await;
    reader.fresh(1).await;
    ms(1).await;
    writer.node.remote.faults.delay(Duration::from_millis(40), Duration::from_millis(40));
    let written = ring.write_silently(1, "new");
    let perto = writer.perto.clone();
    let announcing = spawn(async move { perto.announce(written.token, &written.changes).await });
    eventually("the hint", Duration::from_millis(10), || reader.cached(1).is_none()).await;
    assert_eq!(reader.fresh(1).await, some("new"));
    assert_eq!(reader.users.stats().l2_refused, 1, "the old value was still in L2");
    announcing.await.unwrap();
    ms(100).await;
    assert_eq!(reader.cached(1), Some(some("new")));
    ring.end().await;
}

#[tokio::test(start_paused = true)]
async fn h11_a_log_trimmed_past_a_paused_instance_clears_it() {
    let mut ring = Ring::of(0).await;
    for _ in 0..2 {
        ring.join_with(|builder| builder.retention(Duration::from_mins(2)), |cache| cache).await;
    }
    ms(300).await;
    let [paused, _] = &ring.members[..] else { unreachable!() };
    ring.write(1, 1, "old").await;
    ms(1).await;
    paused.fresh(1).await;
    paused.node.hang();
    ring.write(1, 1, "new").await;
    ms(300_000).await;
    assert_eq!(ring.sim.postgres.retained(), 0);
    paused.node.heal();
    tokio::time::sleep(BOUND).await;
    assert_eq!((paused.fresh(1).await, paused.perto.stats().recoveries), (some("new"), 2));
    ring.end().await;
}

#[tokio::test(start_paused = true)]
async fn h12_wall_clocks_order_nothing() {
    let ring = Ring::of(3).await;
    ring.members[0].node.clock.jump_wall(Duration::from_hours(1));
    ring.members[1].node.clock.jump_wall(Duration::from_mins(1));
    for round in 0..12 {
        let value = round.to_string();
        ring.write(round % 3, 1, &value).await;
        ms(1).await;
        for member in &ring.members {
            assert_eq!(member.fresh(1).await, some(&value));
        }
    }
    ring.end().await;
}

#[tokio::test(start_paused = true)]
async fn h13_no_number_of_lost_hints_is_tolerated() {
    for lost in 1..=12 {
        let ring = Ring::of(2).await;
        let [reader, _] = &ring.members[..] else { unreachable!() };
        ring.write(1, 1, "old").await;
        ms(1).await;
        reader.fresh(1).await;
        reader.node.bus.faults.lose(100);
        for key in 1..=lost {
            ring.write(1, key, "new").await;
        }
        tokio::time::sleep(POLL).await;
        assert_eq!(reader.fresh(1).await, some("new"), "{lost} lost");
        ring.end().await;
    }
}

#[tokio::test(start_paused = true)]
async fn h14_ones_own_write_hides_no_write_of_another() {
    let ring = Ring::of(2).await;
    let [one, _] = &ring.members[..] else { unreachable!() };
    for round in 0..5 {
        ring.write(0, 1, "mine").await;
        assert_eq!(one.fresh(1).await, some("mine"));
        ring.write(1, 1, &format!("yours {round}")).await;
        ms(1).await;
        assert_eq!(one.fresh(1).await, some(&format!("yours {round}")));
    }
    ring.end().await;
}

#[tokio::test(start_paused = true)]
async fn h15_a_writer_reads_its_own_write_at_once() {
    let ring = Ring::of(2).await;
    let writer = &ring.members[0];
    writer.node.bus.faults.delay(Duration::from_millis(100), Duration::from_millis(200));
    for round in 0..20 {
        let value = round.to_string();
        ring.write(0, 1, &value).await;
        // No time passes: its own hint has not come back.
        assert_eq!(writer.fresh(1).await, some(&value));
    }
    ring.end().await;
}

#[tokio::test(start_paused = true)]
async fn h16_receivers_of_a_hint_change_nothing_in_l2() {
    let ring = Ring::of(3).await;
    let [writer, late, third] = &ring.members[..] else { unreachable!() };
    late.node.bus.faults.delay(Duration::from_millis(50), Duration::from_millis(50));
    ring.write(0, 1, "new").await;
    assert_eq!(writer.fresh(1).await, some("new"));
    let hints = late.perto.stats().hints;
    ms(100).await;
    assert_eq!(late.perto.stats().hints, hints + 1);
    assert_eq!((third.fresh(1).await, third.tier(1).await, third.loads()), (some("new"), Tier::Local, 0));
    ring.end().await;
}

#[tokio::test(start_paused = true)]
async fn h18_a_value_from_before_an_outage_of_l2_is_not_served_after_it() {
    let mut ring = Ring::of(0).await;
    for _ in 0..2 {
        ring.join_with(|builder| builder, |cache| cache.ttl(Duration::from_secs(30))).await;
    }
    ms(300).await;
    ring.write(0, 1, "old").await;
    ring.members[0].fresh(1).await;
    ms(1).await;
    for member in &ring.members {
        member.node.remote.faults.cut();
        member.node.bus.faults.cut();
    }
    ms(100).await;
    ring.write(0, 1, "new").await;
    ms(100).await;
    assert_eq!(ring.members[0].fresh(1).await, some("new"));
    for member in &ring.members {
        member.node.heal();
    }
    ms(2_000).await;
    let loads = ring.members[1].loads();
    assert_eq!((ring.members[1].fresh(1).await, ring.members[1].loads()), (some("new"), loads + 1));
    assert_eq!(ring.members[1].users.stats().l2_refused, 1, "the value from before was still in L2");
    ring.end().await;
}

#[tokio::test(start_paused = true)]
async fn h19_a_write_made_in_sql_is_seen_within_one_poll() {
    let ring = Ring::of(3).await;
    for round in 0..5 {
        ring.write_silently(1, &round.to_string());
        tokio::time::sleep(POLL).await;
        for member in &ring.members {
            assert_eq!(member.fresh(1).await, some(&round.to_string()));
        }
    }
    ring.end().await;
}

#[tokio::test(start_paused = true)]
async fn h20_an_instance_started_after_a_whole_cache_invalidation_knows_of_it() {
    // Where a tag's invalidation is a marker that a node caches, those that come later, or forget, trust old values.
    let mut ring = Ring::of(1).await;
    ring.write(0, 1, "old").await;
    ring.members[0].fresh(1).await;
    ms(1).await;
    let mut bulk = ring.sim.postgres.begin();
    bulk.bulk(CACHE, &[(2_u64, "of another key")]).unwrap();
    bulk.commit().unwrap();
    let late = ring.join().await;
    let late = &ring.members[late];
    assert_eq!((late.tier(1).await, late.users.stats().l2_refused), (Tier::Load, 1));
    tokio::time::sleep(POLL).await;
    assert_eq!(ring.members[0].cached(1), None);
    ring.end().await;
}
