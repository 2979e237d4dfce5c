//! L2: for speed. Nothing in it is needed, and nothing in it is trusted without its stamp.

use std::ops::RangeInclusive;
use std::time::Duration;

use perto::{Health, State, Tier, TroubleKind};
use tokio::time::Instant;

use crate::ring::{BOUND, CACHE, POLL, Ring, eventually, ms, some};

#[tokio::test(start_paused = true)]
async fn reads_survive_a_redis_outage_at_the_cost_of_loads() {
    let ring = Ring::of(2).await;
    let [one, two] = &ring.members[..] else { unreachable!() };
    for node in [&one.node, &two.node] {
        node.remote.faults.cut();
        node.bus.faults.cut();
    }
    ring.write(0, 1, "one").await;
    tokio::time::sleep(POLL).await;
    assert_eq!((one.fresh(1).await, two.fresh(1).await), (some("one"), some("one")));
    assert_eq!((one.loads(), two.loads()), (1, 1), "each loads for itself");
    assert_eq!((one.tier(1).await, one.perto.health().state), (Tier::Local, State::Isolated));
    ring.write(0, 1, "two").await;
    ms(90).await;
    assert_eq!(two.fresh(1).await, some("two"), "without hints, polls are 75 ms apart");
    for node in [&one.node, &two.node] {
        node.heal();
    }
    eventually("coherent again", BOUND * 2, || one.perto.health().state == State::Coherent).await;
    assert_eq!(one.fresh(2).await, None);
    ms(1).await;
    assert_eq!(two.tier(2).await, Tier::Remote, "L2 is used again");
    ring.end().await;
}

#[tokio::test(start_paused = true)]
async fn a_slow_remote_costs_a_read_its_timeout_once() {
    let ring = Ring::of(1).await;
    let member = &ring.members[0];
    member.node.remote.faults.delay(Duration::from_secs(3), Duration::from_secs(3));
    let begun = Instant::now();
    member.fresh(1).await;
    assert_eq!(begun.elapsed().as_millis() / 5, 10, "50 ms");
    let begun = Instant::now();
    for key in 2..20 {
        member.fresh(key).await;
    }
    assert!(begun.elapsed() < Duration::from_millis(5), "the breaker answers at once: {:?}", begun.elapsed());
    assert!(!member.perto.health().remote_up);
    ring.end().await;
}

#[tokio::test(start_paused = true)]
async fn an_unreadable_remote_value_is_a_miss_and_is_replaced() {
    let ring = Ring::of(2).await;
    let [one, two] = &ring.members[..] else { unreachable!() };
    ring.write_silently(1, "one");
    tokio::time::sleep(POLL).await;
    one.fresh(1).await;
    ms(1).await;
    let key = ring.sim.remote.keys().remove(0);
    for garbage in [&b""[..], b"P", &[0; 100], b"P\x05V\0\0\0\0\0 of a version to come", &[0xff; 39]] {
        ring.sim.remote.put(&key, garbage.to_vec(), BOUND);
        ring.write(0, 2, "something else").await;
        two.users.invalidate(&1).await.unwrap();
        ring.sim.remote.put(&key, garbage.to_vec(), BOUND * 60);
        ms(1).await;
        let unreadable = two.users.stats().l2_unreadable;
        assert_eq!((two.fresh(1).await, two.users.stats().l2_unreadable), (some("one"), unreadable + 1));
        ms(1).await;
        assert_eq!((one.fresh(1).await, one.tier(1).await), (some("one"), Tier::Local));
        assert_eq!(one.loads(), 1, "it was replaced, and the other found it");
    }
    ring.end().await;
}

#[tokio::test(start_paused = true)]
async fn no_changed_byte_of_a_remote_value_is_ever_served() {
    let ring = Ring::of(2).await;
    let [one, _] = &ring.members[..] else { unreachable!() };
    ring.write_silently(1, "the one true value");
    tokio::time::sleep(POLL).await;
    one.fresh(1).await;
    ms(1).await;
    let key = ring.sim.remote.keys().remove(0);
    let bytes = ring.sim.remote.peek(&key).unwrap();
    for at in 0..bytes.len() {
        let mut ring = Ring { sim: perto::sim::Sim::new(at as u64), members: vec![] };
        ring.join().await;
        // Another database: the same epoch and key, but other transactions.
        let mut changed = bytes.to_vec();
        changed[at] ^= 1 << (at % 8);
        ring.sim.remote.put(&key, changed, BOUND * 60);
        assert_eq!(ring.members[0].fresh(1).await, None, "byte {at} was changed");
        assert_eq!(ring.members[0].users.stats().l2_hits, 0);
        ring.end().await;
    }
    ring.end().await;
}

#[tokio::test(start_paused = true)]
async fn a_value_under_anothers_key_is_never_served() {
    let ring = Ring::of(2).await;
    let [one, two] = &ring.members[..] else { unreachable!() };
    ring.write_silently(1, "of one");
    ring.write_silently(2, "of two");
    tokio::time::sleep(POLL).await;
    one.fresh(1).await;
    ms(1).await;
    let key = ring.sim.remote.keys().remove(0);
    let bytes = ring.sim.remote.peek(&key).unwrap();
    let other = format!("{}2", key.strip_suffix('1').unwrap());
    ring.sim.remote.put(&other, bytes, BOUND * 60);
    assert_eq!(two.fresh(2).await, some("of two"));
    assert_eq!(two.users.stats().l2_unreadable, 1);
    ring.end().await;
}

#[tokio::test(start_paused = true)]
async fn a_remote_that_goes_back_to_old_content_serves_nobody_an_old_value() {
    let mut ring = Ring::of(2).await;
    ring.write(0, 1, "old").await;
    assert_eq!(ring.members[0].fresh(1).await, some("old"));
    ms(1).await;
    let dump = ring.sim.remote.dump();
    ring.write(0, 1, "new").await;
    ms(1).await;
    ring.sim.remote.restore(&dump);
    assert_eq!(ring.members[1].fresh(1).await, some("new"), "who saw the hint refuses the old value");
    assert_eq!(ring.members[1].users.stats().l2_refused, 1);
    ring.sim.remote.restore(&dump);
    let late = ring.join().await;
    assert_eq!(ring.members[late].fresh(1).await, some("new"), "who reads the log refuses it too");
    assert_eq!(ring.members[late].users.stats().l2_refused, 1);
    ring.end().await;
}

#[tokio::test(start_paused = true)]
async fn an_instance_started_late_takes_from_l2_what_contains_everything() {
    let mut ring = Ring::of(1).await;
    ring.write(0, 1, "one").await;
    ring.write(0, 2, "two").await;
    for key in [1, 2] {
        ring.members[0].fresh(key).await;
    }
    ring.write_silently(2, "newer");
    let late = ring.join().await;
    let late = &ring.members[late];
    assert_eq!((late.fresh(1).await, late.loads()), (some("one"), 0));
    assert_eq!((late.fresh(2).await, late.loads()), (some("newer"), 1));
    ring.end().await;
}

#[tokio::test(start_paused = true)]
async fn an_instance_started_late_refuses_what_is_older_than_the_log() {
    let mut ring = Ring::of(1).await;
    ring.write(0, 1, "old").await;
    ring.members[0].fresh(1).await;
    ring.write_silently(1, "new");
    ring.sim.postgres.trim();
    assert_eq!(ring.sim.postgres.retained(), 0);
    let late = ring.join().await;
    assert_eq!(ring.members[late].fresh(1).await, some("new"), "no row says that the value in L2 is old");
    ring.end().await;
}

#[tokio::test(start_paused = true)]
async fn lost_fills_and_tombstones_cost_loads_only() {
    let ring = Ring::of(2).await;
    let [one, two] = &ring.members[..] else { unreachable!() };
    ring.write(0, 1, "old").await;
    one.fresh(1).await;
    ms(1).await;
    one.node.remote.faults.lose(100);
    ring.write(0, 1, "new").await;
    ms(1).await;
    assert_eq!(two.fresh(1).await, some("new"), "the old value is still in L2, without a tombstone");
    ring.sim.remote.flush();
    two.fresh(1).await;
    one.fresh(1).await;
    ring.end().await;
}

#[tokio::test(start_paused = true)]
async fn a_fill_that_arrives_late_serves_nobody_an_old_value() {
    let ring = Ring::of(2).await;
    let [slow, other] = &ring.members[..] else { unreachable!() };
    ring.write(1, 1, "old").await;
    ms(1).await;
    // The fill is under way for two seconds, long after its sender gave up waiting.
    slow.loader.before().close();
    let reading = slow.reading(1);
    slow.loader.before().reached_by(1).await;
    slow.node.remote.faults.delay(Duration::from_secs(2), Duration::from_secs(2));
    slow.loader.before().open();
    reading.await.unwrap().unwrap();
    ms(10).await;
    ring.write(1, 1, "new").await;
    ms(2_500).await;
    assert_eq!(other.fresh(1).await, some("new"));
    assert_eq!(other.users.stats().l2_refused, 0, "its tombstone refused the late fill");
    assert_eq!(slow.fresh(1).await, some("new"));
    ring.end().await;
}

#[tokio::test(start_paused = true)]
async fn a_value_past_its_life_is_not_taken_from_l2() {
    let mut ring = Ring::of(0).await;
    for _ in 0..2 {
        ring.join_with(|builder| builder, |cache| cache.ttl(Duration::from_secs(10))).await;
    }
    ms(300).await;
    let [one, two] = &ring.members[..] else { unreachable!() };
    ring.write(0, 1, "one").await;
    one.fresh(1).await;
    ms(1).await;
    let key = ring.sim.remote.keys().remove(0);
    let bytes = ring.sim.remote.peek(&key).unwrap();
    // A server that was restored forgot how old it is.
    ring.sim.remote.put(&key, bytes, Duration::from_hours(1));
    ms(10_001).await;
    assert_eq!(two.tier(1).await, Tier::Load);
    ring.end().await;
}

#[tokio::test(start_paused = true)]
async fn values_too_large_for_l2_stay_in_l1_and_are_counted() {
    let mut ring = Ring::of(0).await;
    for _ in 0..2 {
        ring.join_with(|builder| builder, |cache| cache.max_value_bytes(100)).await;
    }
    let [one, two] = &ring.members[..] else { unreachable!() };
    ring.write_silently(1, &"x".repeat(101));
    tokio::time::sleep(POLL).await;
    one.fresh(1).await;
    ms(1).await;
    assert_eq!((one.tier(1).await, one.users.stats().too_large), (Tier::Local, 1));
    assert_eq!(two.tier(1).await, Tier::Load);
    ring.end().await;
}

#[tokio::test(start_paused = true)]
async fn instances_of_different_value_versions_share_no_value() {
    let mut ring = Ring::of(1).await;
    let other = ring.join_with(|builder| builder, |cache| cache.version(2)).await;
    ms(300).await;
    ring.write(0, 1, "old").await;
    ring.members[0].fresh(1).await;
    ms(1).await;
    assert_eq!(ring.members[other].tier(1).await, Tier::Load);
    ring.write(0, 1, "new").await;
    ms(1).await;
    assert_eq!(ring.members[other].fresh(1).await, some("new"), "invalidations know no version");
    ring.end().await;
}

#[tokio::test(start_paused = true)]
async fn an_l2_that_answers_much_later_than_a_load_is_left_aside_until_it_is_quick_again() {
    let ring = Ring::of(2).await;
    let [slow, other] = &ring.members[..] else { unreachable!() };
    for key in 1..=40 {
        ring.write_silently(key, "x");
    }
    slow.loader.faults().delay(Duration::from_millis(1), Duration::from_millis(1));
    // Within the limit of 50 ms: the breaker stays closed.
    slow.node.remote.faults.delay(Duration::from_millis(20), Duration::from_millis(20));
    let took = async |keys: RangeInclusive<u64>| {
        let began = Instant::now();
        for key in keys {
            assert_eq!(slow.tier(key).await, Tier::Load);
        }
        began.elapsed()
    };
    let first = took(1..=8).await;
    assert!(first >= Duration::from_millis(8 * 40), "{first:?}");
    assert!(took(9..=28).await <= Duration::from_millis(20 * 2));
    let health = slow.perto.health();
    assert!(health.state == State::Coherent && health.remote_up, "hints go on: {health:?}");
    let troubles = |health: Health| -> Vec<(TroubleKind, Option<String>)> {
        health.troubles.into_iter().map(|trouble| (trouble.kind, trouble.cache)).collect()
    };
    assert_eq!(troubles(health), [(TroubleKind::RedisUnusable, Some(CACHE.to_owned()))]);
    // One a second sees how it is.
    ms(1_000).await;
    let looked = took(29..=32).await;
    assert!(looked >= Duration::from_millis(40) && looked <= Duration::from_millis(40 + 4 * 2), "{looked:?}");
    slow.node.remote.faults.heal();
    ms(1_000).await;
    took(33..=33).await;
    other.fresh(34).await;
    ms(5).await;
    assert_eq!(slow.tier(34).await, Tier::Remote);
    ms(5_000).await;
    assert_eq!(troubles(slow.perto.health()), []);
    ring.end().await;
}
