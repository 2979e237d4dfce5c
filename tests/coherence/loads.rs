//! Loads: one per key, none stale, none lost.

use std::fmt;
use std::hash::{Hash, Hasher};
use std::num::ParseIntError;
use std::str::FromStr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use perto::sim::Sim;
use perto::{Cache, CacheBuilder, Error, Freshness, Load, Loaded, Outage, ReadOptions, Stamp, Tier};
use tokio::time::Instant;

use crate::ring::{BOUND, CACHE, Member, POLL, Ring, eventually, ms, some, spawn, text};

#[tokio::test(start_paused = true)]
async fn a_load_begun_before_an_invalidation_is_never_cached() {
    let ring = Ring::of(2).await;
    let [reader, writer] = &ring.members[..] else { unreachable!() };
    ring.write_silently(1, "old");
    reader.loader.after().close();
    let reading = reader.reading(1);
    reader.loader.after().reached_by(1).await;
    // It has read the old row. Now the row changes, and the hint arrives, and then the load returns.
    ring.write(1, 1, "new").await;
    ms(5).await;
    reader.loader.after().open();
    assert_eq!(text(&reading.await.unwrap().unwrap()), some("old"), "the read began before the write");
    ms(5).await;
    assert_eq!(reader.cached(1), None, "L1 took a value that misses an invalidation");
    assert_eq!(reader.fresh(1).await, some("new"));
    assert_eq!(writer.fresh(1).await, some("new"), "L2 took a value that misses an invalidation");
    assert_eq!(writer.users.stats().l2_refused, 0, "the tombstone keeps the old value out of L2");
    ring.end().await;
}

#[tokio::test(start_paused = true)]
async fn a_load_begun_before_a_write_that_only_the_log_tells_of_is_never_cached() {
    let ring = Ring::of(2).await;
    let [reader, other] = &ring.members[..] else { unreachable!() };
    ring.write_silently(1, "old");
    reader.loader.after().close();
    let reading = reader.reading(1);
    reader.loader.after().reached_by(1).await;
    ring.write_silently(1, "new");
    tokio::time::sleep(POLL).await;
    reader.loader.after().open();
    reading.await.unwrap().unwrap();
    ms(5).await;
    assert_eq!(reader.cached(1), None);
    // Nobody put a tombstone: the old value is in L2, and is refused by all who know of the write.
    assert_eq!(other.fresh(1).await, some("new"));
    assert_eq!(other.users.stats().l2_refused, 1);
    assert_eq!(reader.fresh(1).await, some("new"));
    ring.end().await;
}

#[tokio::test(start_paused = true)]
async fn concurrent_misses_for_one_key_load_once() {
    let ring = Ring::of(1).await;
    let member = &ring.members[0];
    ring.write_silently(1, "one");
    let readers: Vec<_> = (0..100).map(|_| member.reading(1)).collect();
    for reader in readers {
        let read = reader.await.unwrap().unwrap();
        assert_eq!((text(&read), read.freshness), (some("one"), Freshness::Fresh));
    }
    assert_eq!(member.loads(), 1);
    ring.end().await;
}

/// A key whose hash stops those who look for number 2, once: the reader has found number 1 missing in L1 by then.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Stopping(u64);

static STOP: Mutex<Option<(Sender<()>, Receiver<()>)>> = Mutex::new(None);

impl Hash for Stopping {
    fn hash<H: Hasher>(&self, state: &mut H) {
        if self.0 == 2
            && let Some((here, go_on)) = STOP.lock().unwrap().take()
        {
            here.send(()).unwrap();
            go_on.recv_timeout(Duration::from_secs(30)).unwrap();
        }
        self.0.hash(state);
    }
}

impl fmt::Display for Stopping {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl FromStr for Stopping {
    type Err = ParseIntError;

    fn from_str(text: &str) -> Result<Self, ParseIntError> {
        text.parse().map(Self)
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_finds_nothing_in_l1_just_before_a_load_lands_takes_what_has_landed() {
    let sim = Sim::new(1);
    let perto = sim.node().builder("ring").build().unwrap();
    let asked = Arc::new(Mutex::new(Vec::new()));
    let (postgres, keys) = (sim.postgres.clone(), Arc::clone(&asked));
    let load = move |load: Load<Stopping>| {
        keys.lock().unwrap().extend(load.keys.iter().map(|key| key.0));
        let stamp = Stamp::parse(&format!("{} primary clean 1", postgres.snapshot())).unwrap();
        let loaded = load.keys.into_iter().fold(Loaded::new(stamp), |loaded, key| loaded.with(key, 7_u64));
        async move { Ok::<_, Error>(loaded) }
    };
    let cache: Cache<Stopping, u64> = perto.cache(CACHE).local_only().loader(load).unwrap();
    perto.start().await.unwrap();
    let ((here, stopped), (go, go_on)) = (channel(), channel());
    *STOP.lock().unwrap() = Some((here, go_on));
    let both = {
        let cache = cache.clone();
        spawn(async move { cache.get_many(&[Stopping(1), Stopping(2)]).await })
    };
    tokio::task::block_in_place(|| stopped.recv_timeout(Duration::from_secs(30))).unwrap();
    let landed = cache.get(&Stopping(1)).await.unwrap();
    go.send(()).unwrap();
    let reads = both.await.unwrap().unwrap();
    assert_eq!((landed.tier, reads[0].tier, reads[1].tier), (Tier::Load, Tier::Local, Tier::Load));
    assert_eq!(*asked.lock().unwrap(), [1, 2]);
    perto.shutdown().await;
}

#[tokio::test(start_paused = true)]
async fn readers_that_are_cancelled_while_they_lead_fail_nobody_who_waits() {
    let ring = Ring::of(1).await;
    let member = &ring.members[0];
    ring.write_silently(1, "one");
    member.node.remote.faults.hang();
    // Who came first is woken first, and leads next.
    let leaders: Vec<_> = (0..12).map(|_| member.reading(1)).collect();
    let waiter = member.reading(1);
    for leader in leaders {
        ms(1).await;
        leader.abort();
    }
    assert_eq!(text(&waiter.await.unwrap().unwrap()), some("one"));
    ring.end().await;
}

#[tokio::test(start_paused = true)]
async fn a_leader_cancelled_during_its_l2_look_up_hands_the_load_to_a_waiter() {
    let ring = Ring::of(1).await;
    let member = &ring.members[0];
    ring.write_silently(1, "one");
    member.node.remote.faults.hang();
    let leader = member.reading(1);
    ms(1).await;
    let waiter = member.reading(1);
    ms(1).await;
    leader.abort();
    assert_eq!(text(&waiter.await.unwrap().unwrap()), some("one"));
    assert_eq!(member.loads(), 1);
    ring.end().await;
}

#[tokio::test(start_paused = true)]
async fn a_leader_that_nobody_polls_during_its_look_up_holds_its_key_for_nobody_else() {
    let ring = Ring::of(1).await;
    let member = &ring.members[0];
    ring.write_silently(1, "one");
    member.node.remote.faults.hang();
    // As in a `select!` over a future that is kept: begun, and then not polled any more.
    let mut parked = Box::pin(member.users.get(&1));
    assert!(futures_util::poll!(&mut parked).is_pending());
    member.node.remote.faults.heal();
    let began = Instant::now();
    let readers: Vec<_> = (0..1_000).map(|_| member.reading(1)).collect();
    for reader in readers {
        assert_eq!(text(&reader.await.unwrap().unwrap()), some("one"));
    }
    // The L2 timeout, and a little for a busy machine.
    assert!(began.elapsed() <= Duration::from_millis(75), "{:?}", began.elapsed());
    assert_eq!(member.loads(), 1);
    // Polled after all, it answers.
    assert_eq!(text(&parked.await.unwrap()), some("one"));
    ring.end().await;
}

#[tokio::test(start_paused = true)]
async fn a_read_that_is_looking_up_when_its_instance_ends_begins_no_load_behind_its_back() {
    let ring = Ring::of(1).await;
    let member = &ring.members[0];
    ring.write_silently(1, "one");
    member.node.remote.faults.hang();
    let reader = member.reading(1);
    ms(1).await;
    member.perto.shutdown().await;
    assert_eq!(member.perto.tasks(), 0);
    member.node.remote.faults.heal();
    assert!(matches!(reader.await.unwrap(), Err(Error::Closed)));
    assert_eq!((member.loads(), member.perto.tasks()), (0, 0));
}

#[tokio::test(start_paused = true)]
async fn a_leader_cancelled_during_its_load_hands_the_load_to_a_waiter() {
    let ring = Ring::of(1).await;
    let member = &ring.members[0];
    ring.write_silently(1, "one");
    member.loader.before().close();
    let leader = member.reading(1);
    member.loader.before().reached_by(1).await;
    let waiter = member.reading(1);
    ms(1).await;
    leader.abort();
    ms(1).await;
    member.loader.before().open();
    assert_eq!(text(&waiter.await.unwrap().unwrap()), some("one"));
    assert_eq!(member.loads(), 1, "the load of a cancelled reader goes on");
    ring.end().await;
}

#[tokio::test(start_paused = true)]
async fn a_load_outlives_its_only_reader_and_is_cached() {
    let ring = Ring::of(1).await;
    let member = &ring.members[0];
    ring.write_silently(1, "one");
    member.loader.before().close();
    let reader = member.reading(1);
    member.loader.before().reached_by(1).await;
    reader.abort();
    member.loader.before().open();
    eventually("the value is in L1", BOUND, || member.cached(1) == Some(some("one"))).await;
    assert_eq!(member.loads(), 1);
    ring.end().await;
}

#[tokio::test(start_paused = true)]
async fn a_panicking_loader_fails_its_waiters_and_frees_the_key() {
    let ring = Ring::of(1).await;
    let node = ring.sim.node();
    let perto = node.builder("ring").build().unwrap();
    let calls = Arc::new(AtomicUsize::new(0));
    let (loader, calls_too) = (ring.sim.postgres.loader("fragile"), Arc::clone(&calls));
    let fragile = perto
        .cache::<u64, String>("fragile")
        .loader(move |load: Load<u64>| {
            let (loader, first) = (loader.clone(), calls_too.fetch_add(1, Ordering::SeqCst) == 0);
            async move {
                tokio::task::yield_now().await;
                assert!(!first, "the loader panics, as this test wants");
                loader.load(load).await
            }
        })
        .unwrap();
    perto.start().await.unwrap();
    let readers: Vec<_> = (0..3)
        .map(|_| {
            let fragile = fragile.clone();
            spawn(async move { fragile.get(&1).await })
        })
        .collect();
    for reader in readers {
        assert!(matches!(reader.await.unwrap(), Err(Error::LoadPanicked { .. })));
    }
    assert_eq!(fragile.flights(), 0);
    assert_eq!(fragile.get(&1).await.unwrap().value(), None);
    assert_eq!((calls.load(Ordering::SeqCst), fragile.stats().load_errors), (2, 1));
    perto.shutdown().await;
    ring.end().await;
}

#[tokio::test(start_paused = true)]
async fn a_failed_load_is_not_cached() {
    let ring = Ring::of(1).await;
    let member = &ring.members[0];
    ring.write_silently(1, "one");
    member.loader.faults().cut();
    assert!(matches!(member.users.get(&1).await, Err(Error::Load { .. })));
    assert_eq!((member.cached(1), ring.sim.remote.keys().len()), (None, 0));
    member.loader.faults().heal();
    assert_eq!(member.fresh(1).await, some("one"));
    assert_eq!(member.users.stats().load_errors, 1);
    ring.end().await;
}

#[tokio::test(start_paused = true)]
async fn a_hanging_loader_ends_at_the_load_timeout() {
    let ring = Ring::of(1).await;
    let member = &ring.members[0];
    member.loader.faults().hang();
    let begun = Instant::now();
    assert!(matches!(member.users.get(&1).await, Err(Error::LoadTimeout { .. })));
    assert_eq!(begun.elapsed().as_millis() / 10, 500, "the load timeout is 5 s");
    assert_eq!(member.users.flights(), 0);
    member.loader.faults().heal();
    assert_eq!(member.fresh(1).await, None);
    ring.end().await;
}

/// Whoever wants no limit says so by the longest time that there is.
#[tokio::test(start_paused = true)]
async fn with_limits_that_never_end_reads_of_every_tier_are_answered() {
    let mut ring = Ring::of(0).await;
    for _ in 0..2 {
        let endless = |cache: CacheBuilder<u64, String>| {
            let outage = Outage::ServeStale { max: Duration::MAX };
            cache.load_timeout(Duration::MAX).ttl(Duration::MAX).absent_ttl(Duration::MAX).outage(outage)
        };
        ring.join_with(|perto| perto.remote_timeout(Duration::MAX), endless).await;
    }
    ms(300).await;
    let [one, other] = &ring.members[..] else { unreachable!() };
    ring.write(0, 1, "v").await;
    for (member, tier) in [(one, Tier::Load), (one, Tier::Local), (other, Tier::Remote)] {
        let read = member.users.get(&1).await.unwrap();
        assert_eq!((text(&read), read.tier), (some("v"), tier));
        ms(5).await;
    }
    assert_eq!(one.fresh(2).await, None);
    one.node.log.faults.cut();
    tokio::time::sleep(BOUND * 2).await;
    assert!(matches!(one.users.get(&1).await.unwrap().freshness, Freshness::Unverified { .. }));
    ring.end().await;
}

/// However often it begins again: its caller waits for one load at most.
#[tokio::test(start_paused = true)]
async fn a_read_that_begins_again_ends_by_its_first_load_timeout() {
    let ring = Ring::of(2).await;
    let member = &ring.members[0];
    ring.write_silently(1, "old");
    member.loader.after().close();
    let first = member.reading(1);
    member.loader.after().reached_by(1).await;
    ring.write(1, 1, "new").await;
    ms(1).await;
    let begun = Instant::now();
    // It joins the load of the old row, which lands late and is no answer to it. Its own load hangs.
    let joiner = member.reading(1);
    ms(4_000).await;
    member.loader.before().close();
    member.loader.after().open();
    assert_eq!(text(&first.await.unwrap().unwrap()), some("old"));
    assert!(matches!(joiner.await.unwrap(), Err(Error::LoadTimeout { .. })));
    assert!(begun.elapsed() <= Duration::from_millis(5_050), "after {:?}", begun.elapsed());
    // The load that it began goes on, for whoever comes next.
    member.loader.before().open();
    assert_eq!(member.fresh(1).await, some("new"));
    ring.end().await;
}

#[tokio::test(start_paused = true)]
async fn an_absent_row_is_cached_as_absent_until_it_is_created() {
    let ring = Ring::of(2).await;
    let [one, two] = &ring.members[..] else { unreachable!() };
    assert_eq!(one.fresh(1).await, None);
    assert_eq!(one.tier(1).await, Tier::Local);
    assert_eq!((two.tier(1).await, two.loads()), (Tier::Remote, 0), "an absence is shared by L2");
    ring.write(1, 1, "one").await;
    ms(1).await;
    assert_eq!((one.fresh(1).await, two.fresh(1).await), (some("one"), some("one")));
    let written = ring.sim.postgres.remove(CACHE, &1_u64).unwrap();
    ring.announce(0, &written).await;
    ms(1).await;
    assert_eq!((one.fresh(1).await, two.fresh(1).await), (None, None));
    ring.end().await;
}

#[tokio::test(start_paused = true)]
async fn a_joiner_never_gets_a_value_older_than_an_invalidation_it_could_know() {
    let ring = Ring::of(2).await;
    let member = &ring.members[0];
    ring.write_silently(1, "old");
    member.loader.after().close();
    let first = member.reading(1);
    member.loader.after().reached_by(1).await;
    ring.write(1, 1, "new").await;
    ms(1).await;
    // It joins the load that has read the old row, after the hint of the write.
    let joiner = member.reading(1);
    ms(1).await;
    member.loader.after().open();
    assert_eq!(text(&first.await.unwrap().unwrap()), some("old"));
    assert_eq!(text(&joiner.await.unwrap().unwrap()), some("new"));
    ring.end().await;
}

#[tokio::test(start_paused = true)]
async fn many_keys_take_one_look_up_and_one_load_of_what_is_missing() {
    let ring = Ring::of(2).await;
    let [member, other] = &ring.members[..] else { unreachable!() };
    for key in 1..=6 {
        ring.write_silently(key, &format!("v{key}"));
    }
    tokio::time::sleep(POLL).await;
    member.fresh(1).await;
    other.fresh(2).await;
    member.loader.after().close();
    let running = member.reading(3);
    member.loader.after().reached_by(1).await;
    let (lookups, calls) = (ring.sim.remote.lookups(), member.loader.calls().len());

    let users = member.users.clone();
    let many = spawn(async move { users.get_many(&[6, 1, 2, 3, 4, 4, 99]).await });
    member.loader.after().reached_by(2).await;
    member.loader.after().open();
    let reads = many.await.unwrap().unwrap();
    let values: Vec<_> = reads.iter().map(text).collect();
    let expected = ["v6", "v1", "v2", "v3", "v4", "v4"].map(some);
    assert_eq!(values[..6], expected);
    assert_eq!(values[6], None);
    let joined = member.users.stats().flights_joined;
    assert_eq!(joined, 1, "key 3's; a key that is asked for twice joins nobody else");
    let tiers: Vec<_> = reads.iter().map(|read| read.tier).collect();
    assert_eq!(tiers[..3], [Tier::Load, Tier::Local, Tier::Remote]);
    running.await.unwrap().unwrap();
    assert_eq!(ring.sim.remote.lookups(), lookups + 1, "one round trip to L2");
    assert_eq!(
        member.loader.calls()[calls..],
        [["6", "4", "99"]],
        "one load, without what is held or under way"
    );
    ring.end().await;
}

#[tokio::test(start_paused = true)]
async fn loads_at_once_are_limited_and_the_wait_counts_against_the_timeout() {
    let mut ring = Ring::of(0).await;
    ring.join_with(|builder| builder.max_loads(2), |cache| cache.max_batch(1)).await;
    let member = &ring.members[0];
    member.loader.before().close();
    let readers: Vec<_> = (0..5).map(|key| member.reading(key)).collect();
    member.loader.before().reached_by(2).await;
    ms(100).await;
    assert_eq!(member.loader.before().waiting(), 2);
    ms(5_000).await;
    for reader in readers {
        assert!(matches!(reader.await.unwrap(), Err(Error::LoadTimeout { .. })));
    }
    ring.end().await;
}

/// A queue of loads that begin when their time is nearly over never gets shorter.
#[tokio::test(start_paused = true)]
async fn no_load_begins_without_half_of_its_time() {
    let mut ring = Ring::of(0).await;
    ring.join_with(|builder| builder.max_loads(1), |cache| cache.max_batch(1)).await;
    let member = &ring.members[0];
    // 2 s each, of 5.
    member.loader.faults().delay(Duration::from_secs(1), Duration::from_secs(1));
    let readers: Vec<_> = (0..3).map(|key| member.reading(key)).collect();
    let mut answered = 0;
    for reader in readers {
        match reader.await.unwrap() {
            Ok(_) => answered += 1,
            Err(error) => assert!(matches!(error, Error::LoadTimeout { .. }), "{error}"),
        }
    }
    assert_eq!((answered, member.loader.calls().len()), (2, 2), "a load that could not end was begun");
    ring.end().await;
}

/// With clients that give up before a slow database answers, places would go to loads of those who have left.
#[tokio::test(start_paused = true)]
async fn a_load_that_waited_for_a_place_begins_only_if_somebody_waits_for_it() {
    let mut ring = Ring::of(0).await;
    ring.join_with(|builder| builder.max_loads(1), |cache| cache).await;
    let member = &ring.members[0];
    member.loader.before().close();
    let first = member.reading(0);
    member.loader.before().reached_by(1).await;
    let gone: Vec<_> = (1..=5).map(|key| member.reading(key)).collect();
    let users = member.users.clone();
    let many = spawn(async move { users.get_many(&[6, 7]).await });
    ms(10).await;
    let stays = member.reading(7);
    ms(90).await;
    gone.iter().for_each(tokio::task::JoinHandle::abort);
    many.abort();
    first.abort();
    ms(10).await;
    member.loader.before().open();
    stays.await.unwrap().unwrap();
    ms(10).await;
    assert_eq!(
        member.loader.calls(),
        [["0"], ["7"]],
        "what had a place goes on, and what somebody waits for begins"
    );
    assert_eq!(member.users.flights(), 0);
    member.fresh(3).await;
    ring.end().await;
}

#[tokio::test(start_paused = true)]
async fn what_was_read_in_a_transaction_that_wrote_is_never_cached() {
    let ring = Ring::of(0).await;
    let node = ring.sim.node();
    let perto = node.builder("ring").build().unwrap();
    let postgres = ring.sim.postgres.clone();
    let users = perto
        .cache::<u64, String>(CACHE)
        .loader(move |load: Load<u64>| {
            let mut transaction = postgres.begin();
            transaction.put(CACHE, &1_u64, &"never committed").unwrap();
            let loaded = transaction.load::<u64, String>(CACHE, &load.keys);
            async move { loaded.ok_or("no stamp") }
        })
        .unwrap();
    perto.start().await.unwrap();
    assert!(matches!(users.get(&1).await, Err(Error::Load { .. })));
    assert!(users.get_if_cached(&1).is_none() && ring.sim.remote.keys().is_empty());
    perto.shutdown().await;
    ring.end().await;
}

#[tokio::test(start_paused = true)]
async fn a_value_loaded_beside_a_long_transaction_is_cached() {
    let ring = Ring::of(2).await;
    let [one, two] = &ring.members[..] else { unreachable!() };
    let mut long = ring.sim.postgres.begin();
    long.put(CACHE, &9_u64, &"uncommitted").unwrap();
    for round in 0..3 {
        let value = format!("v{round}");
        ring.write(0, 1, &value).await;
        ms(1).await;
        assert_eq!((one.fresh(1).await, two.fresh(1).await), (some(&value), some(&value)));
        assert_eq!(two.tier(1).await, Tier::Local, "a stamp of xmin alone would be refused");
        tokio::time::sleep(POLL).await;
    }
    assert_eq!(two.users.stats().l2_hits, 3);
    let written = long.commit().unwrap();
    ring.announce(0, &written).await;
    assert_eq!(two.fresh(9).await, some("uncommitted"));
    ring.end().await;
}

#[tokio::test(start_paused = true)]
async fn an_entry_lives_no_longer_than_its_ttl_in_either_tier() {
    let mut ring = Ring::of(0).await;
    for _ in 0..3 {
        ring.join_with(|builder| builder, |cache| cache.ttl(Duration::from_secs(10))).await;
    }
    let [one, two, three] = &ring.members[..] else { unreachable!() };
    ring.write_silently(1, "one");
    ms(300).await;
    one.fresh(1).await;
    ms(9_000).await;
    assert_eq!((one.tier(1).await, two.tier(1).await), (Tier::Local, Tier::Remote));
    ms(1_000).await;
    assert_eq!(one.cached(1), None, "in L1 for ten seconds after the load");
    assert_eq!(two.cached(1), None, "not for ten seconds after it came from L2");
    assert_eq!(three.tier(1).await, Tier::Load, "in L2 for ten seconds after the load");
    ring.end().await;
}

#[tokio::test(start_paused = true)]
async fn an_entry_may_bring_a_shorter_ttl_and_absence_has_its_own() {
    let ring = Ring::of(0).await;
    let node = ring.sim.node();
    let perto = node.builder("ring").build().unwrap();
    let loader = ring.sim.postgres.loader(CACHE);
    let users = perto
        .cache::<u64, String>(CACHE)
        .ttl(Duration::from_secs(20))
        .absent_ttl(Duration::from_secs(8))
        .loader(move |load: Load<u64>| {
            let loader = loader.clone();
            async move {
                let keys = load.keys.clone();
                let mut loaded: Loaded<u64, String> = loader.load(load).await?;
                for key in keys.into_iter().filter(|key| *key < 3) {
                    let ttl = if key == 1 { Duration::from_secs(4) } else { Duration::from_hours(1) };
                    loaded = loaded.with_ttl(key, key.to_string(), ttl);
                }
                Ok::<_, perto::sim::Down>(loaded)
            }
        })
        .unwrap();
    perto.start().await.unwrap();
    ms(300).await;
    users.get_many(&[1, 2, 3]).await.unwrap();
    let held = || [1, 2, 3].map(|key| users.get_if_cached(&key).is_some());
    ms(3_900).await;
    assert_eq!(held(), [true, true, true]);
    ms(200).await;
    assert_eq!(held(), [false, true, true], "4 s of its own");
    ms(4_000).await;
    assert_eq!(held(), [false, true, false], "8 s for an absence");
    ms(12_000).await;
    assert_eq!(held(), [false, false, false], "an hour of its own, but the cache's 20 s are the most");
    perto.shutdown().await;
    ring.end().await;
}

#[tokio::test(start_paused = true)]
async fn l1_is_bounded_in_bytes() {
    let mut ring = Ring::of(0).await;
    ring.join_with(|builder| builder, |cache| cache.capacity_bytes(100_000)).await;
    let member = &ring.members[0];
    let value = "x".repeat(1_000);
    for key in 0..500 {
        ring.write_silently(key, &value);
    }
    for key in 0..500 {
        assert_eq!(member.fresh(key).await.as_deref(), Some(value.as_str()));
    }
    let (entries, bytes) = member.users.size();
    assert!(bytes <= 100_000 && entries > 40, "{entries} entries, {bytes} bytes");
    ring.end().await;
}

#[tokio::test(start_paused = true)]
async fn a_key_that_is_too_long_is_refused() {
    let ring = Ring::of(0).await;
    let node = ring.sim.node();
    let perto = node.builder("ring").build().unwrap();
    let texts =
        perto.cache::<String, String>("text").loader(ring.sim.postgres.loader("text").function()).unwrap();
    perto.start().await.unwrap();
    let long = "k".repeat(perto::MAX_KEY_BYTES + 1);
    assert!(matches!(texts.get(&long).await, Err(Error::KeyTooLong { .. })));
    // And waits for no poll.
    let began = Instant::now();
    let latest = texts.get_with(&long, ReadOptions::latest()).await;
    assert!(matches!(latest, Err(Error::KeyTooLong { .. })) && began.elapsed() == Duration::ZERO);
    assert_eq!(texts.get(&long[1..].to_owned()).await.unwrap().value(), None);
    perto.shutdown().await;
    ring.end().await;
}

#[tokio::test(start_paused = true)]
async fn caches_of_one_instance_share_no_key() {
    let sim = Sim::new(3);
    let node = sim.node();
    let perto = node.builder("ring").build().unwrap();
    let one = perto.cache::<u64, String>("one").loader(sim.postgres.loader("one").function()).unwrap();
    let two = perto.cache::<u64, String>("two").loader(sim.postgres.loader("two").function()).unwrap();
    perto.start().await.unwrap();
    sim.postgres.write("one", &1_u64, &"of one").unwrap();
    sim.postgres.write("two", &1_u64, &"of two").unwrap();
    assert_eq!(one.get(&1).await.unwrap().value().map(String::as_str), Some("of one"));
    assert_eq!(two.get(&1).await.unwrap().value().map(String::as_str), Some("of two"));
    let written = sim.postgres.write("one", &1_u64, &"new").unwrap();
    perto.announce(written.token, &written.changes).await;
    assert!(one.get_if_cached(&1).is_none() && two.get_if_cached(&1).is_some());
    perto.shutdown().await;
}

#[tokio::test(start_paused = true)]
async fn what_was_counted_adds_up() {
    let ring = Ring::of(2).await;
    let mut answered = [0, 0];
    for round in 0..50 {
        ring.write(round % 2, round as u64 % 5, &round.to_string()).await;
        for (at, member) in ring.members.iter().enumerate() {
            for key in 0..5 {
                member.fresh(key).await;
                answered[at] += 1;
            }
        }
        ms(7).await;
    }
    for (member, answered) in ring.members.iter().zip(answered) {
        let stats = member.users.stats();
        assert_eq!(stats.l1_hits + stats.l2_hits + stats.load_hits, answered, "{stats:?}");
        assert_eq!(stats.loads, stats.keys_loaded);
    }
    ring.end().await;
}

#[tokio::test(start_paused = true)]
async fn before_its_start_an_instance_reads_from_the_source_and_caches_nothing_as_fresh() {
    let ring = Ring::of(1).await;
    let member = Member::new(&ring.sim, |builder| builder, |cache| cache);
    ring.write_silently(1, "old");
    assert_eq!(member.fresh(1).await, some("old"));
    ring.write_silently(1, "new");
    assert_eq!(member.fresh(1).await, some("new"), "nothing says that the old value still holds");
    assert_eq!(member.cached(1), None);
    member.perto.shutdown().await;
    ring.end().await;
}

/// Of the keys below 10 each has itself as its value; 3 fails, and 5 is for this answer only.
#[tokio::test(start_paused = true)]
async fn a_key_of_a_batch_may_fail_by_itself_and_a_value_may_be_for_this_answer_only() {
    let sim = Sim::new(1);
    let node = sim.node();
    let perto = node.builder("ring").build().unwrap();
    let loads = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&loads);
    let postgres = sim.postgres.clone();
    let load = move |load: Load<u64>| {
        counted.fetch_add(1, Ordering::Relaxed);
        let mut loaded = postgres.begin().load::<u64, u64>("user", &load.keys).unwrap();
        for key in load.keys {
            loaded = match key {
                3 => loaded.with_error(3, "no such luck"),
                5 => loaded.with_ttl(5, 5, Duration::ZERO),
                _ => loaded.with(key, key),
            };
        }
        async move { Ok::<_, std::convert::Infallible>(loaded) }
    };
    let users: Cache<u64, u64> = perto.cache("user").loader(load).unwrap();
    perto.start().await.unwrap();
    ms(300).await;
    let reading: Vec<_> = (1..7_u64)
        .map(|key| {
            let users = users.clone();
            spawn(async move { users.get(&key).await })
        })
        .collect();
    for (key, reading) in (1..7_u64).zip(reading) {
        match reading.await.unwrap() {
            Ok(read) => assert!(key != 3 && read.value() == Some(&key), "{key}"),
            Err(error) => {
                let source = std::error::Error::source(&error).unwrap().to_string();
                assert_eq!((key, source.as_str()), (3, "no such luck"));
                assert!(matches!(error, Error::Load { .. }));
            }
        }
    }
    ms(100).await;
    let cached: Vec<_> = (1..7_u64).filter(|key| users.get_if_cached(key).is_some()).collect();
    assert_eq!(cached, [1, 2, 4, 6]);
    assert!(users.get_many(&[1, 3]).await.is_err(), "one key's error is the error of all");
    let before = loads.load(Ordering::Relaxed);
    for _ in 0..3 {
        assert_eq!(users.get(&5).await.unwrap().value(), Some(&5));
    }
    assert_eq!(loads.load(Ordering::Relaxed), before + 3);
    assert_eq!(users.stats().load_errors, 2);
    assert_eq!(sim.remote.keys().len(), 4, "and L2 has no more: {:?}", sim.remote.keys());
    perto.shutdown().await;
}
