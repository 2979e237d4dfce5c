//! Single flight across instances: one loads a key, the others wait until L2 has it.

use std::time::Duration;

use perto::{CacheBuilder, Error, Switching, Tier, TierMode};
use tokio::time::Instant;

use crate::ring::{BOUND, Member, POLL, Ring, eventually, ms, some, spawn, text};

const INSTANCES: usize = 4;
const LOAD: Duration = Duration::from_millis(50);
const LOAD_TIMEOUT: Duration = Duration::from_secs(2);
/// So long a claim is waited for before there was a load: a quarter of the load timeout.
const LONGEST_WAIT: Duration = Duration::from_millis(500);

fn shared_flights(cache: CacheBuilder<u64, String>) -> CacheBuilder<u64, String> {
    cache.fleet_single_flight().load_timeout(LOAD_TIMEOUT)
}

/// Instances whose loads take a while.
async fn ring() -> Ring {
    let mut ring = Ring::of(0).await;
    for _ in 0..INSTANCES {
        ring.join_with(|builder| builder, shared_flights).await;
    }
    for member in &ring.members {
        member.loader.faults().delay(LOAD / 2, LOAD / 2);
    }
    ms(300).await;
    ring
}

fn loads(ring: &Ring) -> u64 {
    ring.members.iter().map(Member::loads).sum()
}

/// All of them read the key. What each got, and how long the slowest took.
async fn all_read(ring: &Ring, key: u64, value: Option<String>, times: usize) -> (Vec<Tier>, Duration) {
    let began = Instant::now();
    let reading: Vec<_> = (0..times).flat_map(|_| ring.members.iter().map(move |m| m.reading(key))).collect();
    let mut tiers = Vec::new();
    for read in reading {
        let read = read.await.unwrap().unwrap();
        assert_eq!(text(&read), value);
        tiers.push(read.tier);
    }
    (tiers, began.elapsed())
}

#[tokio::test(start_paused = true)]
async fn a_thousand_reads_at_once_on_four_instances_are_one_load() {
    let ring = ring().await;
    // Announced to nobody: it is there by the time that the polls are.
    ring.write_silently(7, "seven");
    tokio::time::sleep(POLL).await;
    let (tiers, took) = all_read(&ring, 7, some("seven"), 250).await;
    assert_eq!((tiers.len(), loads(&ring)), (1_000, 1));
    assert!(took <= LOAD + ms_of(20), "{took:?}");
    let from = |tier| tiers.iter().filter(|of| **of == tier).count();
    assert_eq!((from(Tier::Load), from(Tier::Remote)), (250, 750));
    // The absence of a row is brought once, too.
    let (_, took) = all_read(&ring, 8, None, 10).await;
    assert!(loads(&ring) == 2 && took <= LOAD + ms_of(20), "{took:?}");
    ring.end().await;
}

#[tokio::test(start_paused = true)]
async fn each_write_of_a_hot_key_is_one_load_and_no_read_is_older_than_it() {
    let ring = ring().await;
    for n in 0..20 {
        ring.write(n % INSTANCES, 7, &n.to_string()).await;
        ms(5).await;
        let before = loads(&ring);
        let (_, took) = all_read(&ring, 7, some(&n.to_string()), 3).await;
        assert_eq!(loads(&ring) - before, 1, "{n}");
        assert!(took <= LOAD + ms_of(20), "{took:?}");
    }
    ring.end().await;
}

#[tokio::test(start_paused = true)]
async fn with_redis_gone_each_loads_for_itself_and_nobody_waits_for_another() {
    let ring = ring().await;
    for member in &ring.members {
        member.node.remote.faults.cut();
    }
    let (_, took) = all_read(&ring, 7, None, 10).await;
    assert_eq!(loads(&ring), INSTANCES as u64);
    assert!(took <= LOAD + ms_of(5), "{took:?}");
    ring.end().await;
}

#[tokio::test(start_paused = true)]
async fn who_loads_for_all_may_end_fail_or_hang_and_the_others_go_on() {
    let ring = ring().await;
    // It hangs, with its claim.
    ring.members[0].loader.before().close();
    let hangs = ring.members[0].reading(7);
    eventually("it loads", BOUND, || ring.members[0].loads() == 1).await;
    let began = Instant::now();
    assert_eq!(ring.members[1].fresh(7).await, None);
    let took = began.elapsed();
    assert!(took >= LONGEST_WAIT && took <= LONGEST_WAIT + LOAD + ms_of(20), "{took:?}");
    ring.members[0].loader.before().open();
    hangs.await.unwrap().unwrap();
    // It fails: the claim goes with the load, and the next one loads at once.
    ring.members[0].loader.faults().cut();
    let fails = ring.members[0].reading(8);
    ms(5).await;
    let waits = ring.members[1].reading(8);
    let began = Instant::now();
    assert!(matches!(fails.await.unwrap(), Err(Error::Load { .. })));
    assert_eq!(waits.await.unwrap().unwrap().tier, Tier::Load);
    assert!(began.elapsed() <= 2 * LOAD + ms_of(20), "{:?}", began.elapsed());
    ring.members[0].loader.faults().heal();
    // It ends.
    ring.members[0].loader.before().close();
    let ends = ring.members[0].reading(9);
    ms(5).await;
    let waits = ring.members[1].reading(9);
    ms(5).await;
    ring.members[0].perto.shutdown().await;
    assert!(ends.await.unwrap().is_err());
    let began = Instant::now();
    assert_eq!(waits.await.unwrap().unwrap().tier, Tier::Load);
    assert!(began.elapsed() <= LONGEST_WAIT + LOAD + ms_of(20), "{:?}", began.elapsed());
    ring.end().await;
}

#[tokio::test(start_paused = true)]
async fn what_l2_has_meanwhile_is_judged_as_ever() {
    let ring = ring().await;
    let (one, other) = (&ring.members[0], &ring.members[1]);
    one.loader.before().close();
    let first = one.reading(7);
    ms(5).await;
    let second = other.reading(7);
    ms(5).await;
    // What the first one loads does not contain this, and the second knows of it.
    one.loader.before().open();
    ms(30).await;
    ring.write(1, 7, "newer").await;
    first.await.unwrap().unwrap();
    assert_eq!(text(&second.await.unwrap().unwrap()), some("newer"));
    ring.end().await;
}

#[tokio::test(start_paused = true)]
async fn a_read_that_nobody_awaits_any_more_looks_no_further() {
    let ring = ring().await;
    ring.members[0].loader.before().close();
    let holds = ring.members[0].reading(7);
    ms(5).await;
    let users = ring.members[1].users.clone();
    let waits = spawn(async move { users.get(&7).await });
    ms(20).await;
    waits.abort();
    ms(100).await;
    let lookups = ring.sim.remote.lookups();
    ms(200).await;
    assert_eq!(ring.sim.remote.lookups(), lookups);
    assert_eq!(ring.members[1].loads(), 0);
    ring.members[0].loader.before().open();
    holds.await.unwrap().unwrap();
    ring.end().await;
}

#[tokio::test(start_paused = true)]
async fn who_waits_while_l2_goes_off_loads_and_waits_no_longer() {
    let ring = ring().await;
    ring.members[0].loader.before().close();
    let holds = ring.members[0].reading(7);
    ms(5).await;
    let waits = ring.members[1].reading(7);
    ms(5).await;
    let began = Instant::now();
    ring.members[1].perto.switch(Switching::of("user", Tier::Remote, TierMode::Off)).await.unwrap();
    assert_eq!(waits.await.unwrap().unwrap().tier, Tier::Load);
    assert!(began.elapsed() < LONGEST_WAIT - LOAD, "{:?}", began.elapsed());
    ring.members[0].loader.before().open();
    holds.await.unwrap().unwrap();
    ring.end().await;
}

#[tokio::test(start_paused = true)]
async fn where_a_load_takes_nearly_as_long_as_it_may_nobody_waits_for_another() {
    let mut ring = Ring::of(0).await;
    for _ in 0..2 {
        let cache = |cache: CacheBuilder<u64, String>| cache.fleet_single_flight().load_timeout(6 * LOAD);
        ring.join_with(|builder| builder, cache).await;
    }
    for member in &ring.members {
        member.loader.faults().delay(2 * LOAD, 2 * LOAD);
        // From now on it knows how long a load takes.
        assert_eq!(member.fresh(member.loads() + 1).await, None);
    }
    let before = loads(&ring);
    let (_, took) = all_read(&ring, 9, None, 1).await;
    assert_eq!(loads(&ring) - before, 2);
    assert!(took <= 4 * LOAD + ms_of(5), "{took:?}");
    ring.end().await;
}

/// Where L2 takes nearly as long as it may, to look, to claim and to look again take longer than a read may.
#[tokio::test(start_paused = true)]
async fn a_read_whose_load_is_claimed_slowly_ends_by_its_limit() {
    const LOOK_UP: Duration = ms_of(400);
    const LOAD: Duration = ms_of(200);
    let mut ring = Ring::of(0).await;
    let slow = |cache: CacheBuilder<u64, String>| cache.fleet_single_flight().load_timeout(LOAD);
    ring.join_with(|builder| builder.remote_timeout(LOOK_UP), slow).await;
    let member = &ring.members[0];
    member.node.remote.faults.delay(ms_of(150), ms_of(150));
    let began = Instant::now();
    let read = member.users.get(&7).await;
    assert!(matches!(read, Err(Error::LoadTimeout { .. })), "{read:?}");
    assert!(began.elapsed() <= LOOK_UP + LOAD + ms_of(20), "{:?}", began.elapsed());
    eventually("the load ends by itself", ms_of(1_000), || member.users.flights() == 0).await;
    ring.end().await;
}

const fn ms_of(millis: u64) -> Duration {
    Duration::from_millis(millis)
}
