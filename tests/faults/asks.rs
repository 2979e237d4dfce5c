//! Reads that ask for more than the bound, on real engines.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use perto::proxy::{Fault, FaultProxy};
use perto::{Freshness, ReadOptions, Tier};

use crate::support::engines::{moved_to, place_of};
use crate::world::{POLL_INTERVAL, World, coherent};

/// Reads in all. `PERTO_READS=1000000` for more.
fn reads() -> u64 {
    std::env::var("PERTO_READS").map_or(20_000, |reads| reads.parse().unwrap())
}

/// One row that only ever grows, written in SQL. Whoever reads the latest of it, on either instance, sees at least what had been
/// committed, and what anybody had read, before the read began. Hints are lost, Redis is cut off and comes back.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_latest_is_linearizable_beside_a_writer_by_hand_and_faults() {
    let world = World::new().await;
    world.put(1, 0).await;
    let proxy = FaultProxy::start(place_of(&world.redis)).await.unwrap();
    let lossy = moved_to(&world.redis, &proxy.address().to_string());
    let a = world.start().await;
    let b = world.start_with(|perto| perto.redis(&lossy).subscribe_at(&lossy), |cache| cache).await;
    coherent([&a, &b]).await;
    let (known, left) = (AtomicI64::new(0), AtomicU64::new(reads()));
    let (hits, flagged) = (AtomicU64::new(0), AtomicU64::new(0));
    let writing = async {
        let mut connection = world.pool.acquire().await.unwrap();
        for v in 1.. {
            if left.load(Ordering::Acquire) == 0 {
                return v;
            }
            sqlx::query("update items set v = $1 where id = 1")
                .bind(v)
                .execute(&mut *connection)
                .await
                .unwrap();
            known.fetch_max(v, Ordering::AcqRel);
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        0
    };
    let reading = async |items: perto::Cache<i64, i64>| {
        while left.fetch_update(Ordering::AcqRel, Ordering::Acquire, |left| left.checked_sub(1)).is_ok() {
            let least = known.load(Ordering::Acquire);
            let read = items.get_with(&1, ReadOptions::latest()).await.unwrap();
            let v = read.value().copied().unwrap();
            if read.freshness != Freshness::Fresh {
                flagged.fetch_add(1, Ordering::Relaxed);
                continue;
            }
            assert!(v >= least, "{v} was read after {least}");
            known.fetch_max(v, Ordering::AcqRel);
            hits.fetch_add(u64::from(read.tier == Tier::Local), Ordering::Relaxed);
        }
    };
    let breaking = async {
        while left.load(Ordering::Acquire) > 0 {
            for fault in [Fault::DropMessages, Fault::None, Fault::Cut, Fault::None] {
                proxy.set(fault);
                tokio::time::sleep(Duration::from_millis(200)).await;
            }
        }
    };
    let readers = (0..32).map(|n| reading(if n % 2 == 0 { a.items.clone() } else { b.items.clone() }));
    let began = Instant::now();
    let (commits, (), _) = tokio::join!(writing, breaking, join_all(readers));
    let (hits, flagged) = (hits.into_inner(), flagged.into_inner());
    let said = format!("{} reads in {:?}: {hits} from L1, {flagged} flagged", reads(), began.elapsed());
    assert_eq!(flagged, 0, "{said}");
    assert!(commits > 100, "{commits} commits: {said}");
    assert!(hits > 0, "none was shared: {said}");
}

/// A chat that posts, and reads who it is for with each post's token on another instance.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_that_writes_reads_from_l1_what_it_does_not_write() {
    const ROUNDS: u64 = 300;
    let world = World::new().await;
    for id in 1..=4 {
        world.put(id, 0).await;
    }
    let (a, b) = (world.start().await, world.start().await);
    coherent([&a, &b]).await;
    let mut from_l1 = 0;
    for round in 0..=ROUNDS {
        let v = i64::try_from(round).unwrap() + 1;
        let token = a.put(&world, 1, v).await;
        let options = ReadOptions::at_least(token);
        let wrote = b.items.get_with(&1, options).await.unwrap();
        assert_eq!((wrote.value(), wrote.freshness), (Some(&v), Freshness::Fresh));
        for id in 2..=4 {
            let read = b.items.get_with(&id, options).await.unwrap();
            assert_eq!(read.freshness, Freshness::Fresh);
            // In the first round nothing is there yet.
            from_l1 += u64::from(round > 0 && read.tier == Tier::Local);
        }
    }
    assert!(from_l1 * 100 >= 3 * ROUNDS * 99, "{from_l1} of {}", 3 * ROUNDS);
}

/// A thousand at once, of what is in L1: all have asked before any of them is answered, however busy the machine is.
#[tokio::test]
async fn a_thousand_who_read_the_latest_at_once_share_their_polls() {
    let world = World::new().await;
    world.put(1, 1).await;
    let a = Arc::new(world.start().await);
    coherent([&a]).await;
    a.fresh(1).await;
    let (polls, loads, began) = (a.perto.stats().polls, a.loads(), Instant::now());
    let asking = join_all((0..1_000).map(|_| a.items.get_with(&1, ReadOptions::latest())));
    let reads = tokio::task::unconstrained(asking).await;
    assert!(reads.iter().all(|read| read.as_ref().is_ok_and(|read| read.tier == Tier::Local)));
    let (polls, loads) = (a.perto.stats().polls - polls, a.loads() - loads);
    // Those that were due meanwhile: one, but on a busy machine.
    let due = 1 + began.elapsed().as_millis() / POLL_INTERVAL.as_millis();
    assert!(u128::from(polls) <= 2 + due && loads == 0, "{polls} polls, {due} of them due, {loads} loads");
}
