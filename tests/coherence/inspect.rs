//! Looking at one entry: it says what a read would do, and leaves no trace.

use std::time::Duration;

use perto::{Cache, InRemote, Inspection, Missing, Refusal, State, Tier};

use crate::ring::{BOUND, POLL, Ring, ms};

const LIFE: Duration = Duration::from_mins(30);

async fn look(ring: &Ring, at: usize, key: u64) -> Inspection {
    ring.members[at].users.inspect(&key).await.unwrap()
}

/// The name of the one thing that lies in L2.
fn only_name(ring: &Ring) -> String {
    let names = ring.sim.remote.keys();
    assert_eq!(names.len(), 1, "{names:?}");
    names[0].clone()
}

#[tokio::test(start_paused = true)]
async fn an_entry_is_shown_in_every_tier_without_a_load_or_a_count() {
    let ring = Ring::of(2).await;
    ring.write_silently(7, "one");
    ms(300).await;
    let nothing = look(&ring, 0, 7).await;
    assert_eq!((nothing.local, nothing.remote, nothing.remote_refused), (None, InRemote::Nothing, None));
    assert_eq!(ring.members[0].loads(), 0);
    assert_eq!(nothing.health.state, State::Coherent);

    ring.members[0].fresh(7).await;
    ms(10).await;
    let stats = ring.members[0].users.stats();
    let here = look(&ring, 0, 7).await;
    let local = here.local.unwrap();
    assert_eq!((local.refused, local.absent), (None, false));
    assert!(local.left > LIFE - Duration::from_secs(1) && local.left <= LIFE, "{:?}", local.left);
    let InRemote::Value(remote) = here.remote else { panic!("{:?}", here.remote) };
    assert_eq!((&remote.stamp, here.remote_refused), (&local.stamp, None));
    assert!(remote.age < Duration::from_secs(1) && remote.left <= LIFE && remote.bytes == 4);
    let there = look(&ring, 1, 7).await;
    assert_eq!((there.local, there.remote_refused), (None, None));
    assert_eq!(ring.members[0].users.stats(), stats, "looking is not counted");
    assert_eq!(ring.members[1].loads(), 0);

    // An absence is an entry too.
    ring.members[0].fresh(8).await;
    assert!(look(&ring, 0, 8).await.local.unwrap().absent);
    ring.end().await;
}

#[tokio::test(start_paused = true)]
async fn what_is_refused_says_which_write_it_misses() {
    let ring = Ring::of(2).await;
    ring.members[0].fresh(7).await;
    ms(10).await;
    let written = ring.write_silently(7, "two");
    ms(300).await;
    let here = look(&ring, 0, 7).await;
    assert_eq!(here.local, None, "evicted");
    assert!(here.known.xids.contains(&written.xid), "{:?}", here.known);
    assert_eq!(here.remote_refused, Some(Refusal::Misses(Missing::Transaction(written.xid))));
    assert!(here.poll.unwrap().contains(written.xid));
    // As it says, so it does.
    assert_eq!(ring.members[0].tier(7).await, Tier::Load);
    ms(10).await;
    assert_eq!(look(&ring, 1, 7).await.remote_refused, None);
    assert_eq!(ring.members[1].tier(7).await, Tier::Remote);

    let mut all = ring.sim.postgres.begin();
    all.clear(crate::ring::CACHE);
    let xid = all.xid();
    all.commit().unwrap();
    ms(300).await;
    let cleared = look(&ring, 0, 7).await;
    assert_eq!(cleared.local.unwrap().refused, Some(Refusal::WholeCache));
    assert_eq!(cleared.remote_refused, Some(Refusal::WholeMisses(Missing::Transaction(xid))));
    assert!(cleared.whole.xids.contains(&xid));
    ring.end().await;
}

#[tokio::test(start_paused = true)]
async fn tombstones_garbage_and_other_types_are_told_apart() {
    let ring = Ring::of(1).await;
    ring.members[0].fresh(7).await;
    ms(10).await;
    let name = only_name(&ring);
    let epoch = look(&ring, 0, 7).await.health.epoch;
    assert_eq!(name, InRemote::name("ring", epoch, ring.members[0].users.kind(), "7"));
    let written = ring.write(0, 7, "two").await;
    assert_eq!(look(&ring, 0, 7).await.remote, InRemote::Tombstone([written.xid, 0]));
    ring.sim.remote.put(&name, "garbage", LIFE);
    assert_eq!(look(&ring, 0, 7).await.remote, InRemote::Unreadable);
    assert!(ring.sim.remote.peek(&name).is_some(), "looking removes nothing");

    let perto = ring.sim.node().builder("ring").build().unwrap();
    let others: Cache<u64, (u64, u64, u64)> =
        perto.cache(crate::ring::CACHE).loader(ring.sim.postgres.loader("none").function()).unwrap();
    perto.start().await.unwrap();
    ring.sim.remote.flush();
    ring.members[0].fresh(7).await;
    ms(300).await;
    assert_eq!(
        others.inspect(&7).await.unwrap().remote,
        InRemote::Nothing,
        "of another type's value nothing is seen"
    );
    perto.shutdown().await;
    ring.end().await;
}

#[tokio::test(start_paused = true)]
async fn an_entry_without_a_lease_of_an_old_era_or_past_its_life_says_so() {
    let mut ring = Ring::of(0).await;
    ring.join_with(|perto| perto, |cache| cache.ttl(Duration::from_secs(60))).await;
    ms(300).await;
    ring.write_silently(7, "one");
    ms(300).await;
    ring.members[0].fresh(7).await;
    ms(10).await;
    ring.members[0].node.log.faults.cut();
    tokio::time::sleep(BOUND + POLL).await;
    let lapsed = look(&ring, 0, 7).await;
    assert_eq!(lapsed.health.state, State::Unverified);
    assert_eq!(lapsed.local.unwrap().refused, Some(Refusal::Lease));
    assert_eq!(lapsed.remote_refused, Some(Refusal::Lease));
    ring.members[0].node.log.faults.heal();
    ms(300).await;
    assert_eq!(look(&ring, 0, 7).await.local.unwrap().refused, None, "the lease is back");
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!(look(&ring, 0, 7).await.local.unwrap().refused, Some(Refusal::Expired));
    ring.members[0].fresh(7).await;
    ring.sim.postgres.crash(0);
    ms(600).await;
    let crashed = look(&ring, 0, 7).await;
    assert_eq!(crashed.local.unwrap().refused, Some(Refusal::Era));
    assert_eq!(crashed.remote, InRemote::Nothing, "another epoch has other names");
    ring.members[0].node.remote.faults.cut();
    ring.members[0].fresh(7).await;
    assert_eq!(look(&ring, 0, 7).await.remote, InRemote::NotUsed);
    ring.end().await;
}
