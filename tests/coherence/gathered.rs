//! What comes together goes together: many reads cost few look-ups and few loads, and none is worse off for it.

use std::cell::Cell;
use std::hash::{Hash, Hasher};
use std::num::ParseIntError;
use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use perto::sim::{Sim, SimLoader};
use perto::{
    Cache, CacheBuilder, Error, Freshness, Load, Loaded, Perto, ReadOptions, StaleCause, Stamp, Tier,
};
use tokio::time::Instant;

use crate::ring::{CACHE, Member, POLL, Ring, ms, some, spawn, text};

const TASKS: u64 = 1_000;

async fn member_with(cache: impl FnOnce(CacheBuilder<u64, String>) -> CacheBuilder<u64, String>) -> Ring {
    let mut ring = Ring::of(0).await;
    ring.join_with(|builder| builder, cache).await;
    ms(300).await;
    ring
}

/// An instance whose loader fails for some keys, in whatever company they come.
struct Picky {
    perto: Perto,
    users: Cache<u64, String>,
    calls: Arc<AtomicUsize>,
}

impl Picky {
    async fn new(sim: &Sim, refuses: impl Fn(u64) -> bool + Send + Sync + 'static) -> Self {
        let (loader, calls) = (sim.postgres.loader(CACHE), Arc::new(AtomicUsize::new(0)));
        let perto = sim.node().builder("ring").build().unwrap();
        let (refuses, counted) = (Arc::new(refuses), Arc::clone(&calls));
        let users = perto
            .cache(CACHE)
            .local_only()
            .loader(move |load: Load<u64>| {
                counted.fetch_add(1, Ordering::SeqCst);
                let (loader, refused) = (loader.clone(), load.keys.iter().any(|key| refuses(*key)));
                async move { if refused { Err("refused".into()) } else { loaded(&loader, load).await } }
            })
            .unwrap();
        perto.start().await.unwrap();
        Self { perto, users, calls }
    }

    /// Of reads of these keys at the same time, which failed; and how often the loader was called for it.
    async fn failed(&self, keys: std::ops::Range<u64>) -> (Vec<u64>, usize) {
        let calls = self.calls.load(Ordering::SeqCst);
        let reads: Vec<_> = keys
            .map(|key| {
                let users = self.users.clone();
                (key, spawn(async move { users.get(&key).await }))
            })
            .collect();
        let mut failed = Vec::new();
        for (key, read) in reads {
            if let Err(error) = read.await.unwrap() {
                assert!(matches!(error, Error::Load { .. }), "{error}");
                failed.push(key);
            }
        }
        (failed, self.calls.load(Ordering::SeqCst) - calls)
    }
}

type BoxError = Box<dyn std::error::Error + Send + Sync>;

async fn loaded(loader: &SimLoader, load: Load<u64>) -> Result<Loaded<u64, String>, BoxError> {
    Ok(loader.load(load).await?)
}

#[tokio::test(start_paused = true)]
async fn a_thousand_tasks_that_miss_a_thousand_keys_cost_a_handful_of_look_ups_and_of_loads() {
    let ring = Ring::of(2).await;
    let [one, other] = &ring.members[..] else { unreachable!() };
    for key in 0..TASKS {
        ring.write_silently(key, &key.to_string());
    }
    tokio::time::sleep(POLL).await;
    for (member, tier) in [(one, Tier::Load), (other, Tier::Remote)] {
        member.node.remote.faults.delay(Duration::from_millis(1), Duration::from_millis(1));
        let lookups = ring.sim.remote.lookups();
        let readers: Vec<_> = (0..TASKS).map(|key| member.reading(key)).collect();
        for (key, reader) in (0..).zip(readers) {
            let read = reader.await.unwrap().unwrap();
            assert_eq!((text(&read), read.tier), (some(&u64::to_string(&key)), tier));
            assert_eq!(read.freshness, Freshness::Fresh);
        }
        let lookups = ring.sim.remote.lookups() - lookups;
        assert!(lookups <= 8, "{lookups} look-ups");
        let calls = member.loader.calls().len();
        assert!(calls <= if tier == Tier::Load { 8 } else { 0 }, "{calls} calls of the loader");
        assert_eq!(member.users.stats().flights_joined, 0);
        ms(50).await;
    }
    ring.end().await;
}

/// Between two instances, of which one has filled L2: as long as the round trips take, and not a moment longer.
#[tokio::test(start_paused = true)]
async fn one_read_alone_goes_out_at_once() {
    let ring = Ring::of(2).await;
    let [one, other] = &ring.members[..] else { unreachable!() };
    let way = Duration::from_millis(3);
    for member in [one, other] {
        member.node.remote.faults.delay(way, way);
        member.loader.faults().delay(way, way);
    }
    for (member, tier, ways) in [(one, Tier::Load, 4), (other, Tier::Remote, 2)] {
        let began = Instant::now();
        assert_eq!(member.tier(7).await, tier);
        assert_eq!(began.elapsed(), way * ways, "{tier:?}");
        ms(50).await;
    }
    ring.end().await;
}

#[tokio::test(start_paused = true)]
async fn reads_of_many_keys_and_of_one_go_together() {
    let ring = Ring::of(1).await;
    let member = &ring.members[0];
    member.loader.before().close();
    let blocking: Vec<_> = (0..4).map(|key| member.reading(key)).collect();
    ms(1).await;
    let many = |keys: Vec<u64>| {
        let users = member.users.clone();
        spawn(async move { users.get_many(&keys).await })
    };
    let (several, single, overlapping) = (many(vec![10, 11, 10]), member.reading(12), many(vec![12, 13]));
    ms(1).await;
    member.loader.before().open();
    assert_eq!(several.await.unwrap().unwrap().len(), 3);
    assert!(single.await.unwrap().is_ok());
    assert_eq!(overlapping.await.unwrap().unwrap().len(), 2);
    for read in blocking {
        read.await.unwrap().unwrap();
    }
    let mut keys: Vec<String> = member.loader.calls().into_iter().flatten().collect();
    keys.sort_unstable_by_key(|key| key.parse::<u64>().unwrap());
    assert_eq!(keys, ["0", "1", "2", "3", "10", "11", "12", "13"], "each is loaded once");
    ring.end().await;
}

#[tokio::test(start_paused = true)]
async fn one_key_that_cannot_be_loaded_fails_nobody_elses_read() {
    let sim = Sim::new(1);
    let picky = Picky::new(&sim, |key| key == 40).await;
    let (failed, calls) = picky.failed(0..64).await;
    assert_eq!(failed, [40]);
    assert!(calls <= 14, "two calls for each halving, not one for each key: {calls}");
    assert_eq!(picky.users.stats().load_errors, 1, "one load has failed for readers");
    // Several of them, far apart.
    let picky = Picky::new(&sim, |key| key % 40 == 7).await;
    let (failed, calls) = picky.failed(0..100).await;
    assert_eq!(failed, [7, 47, 87]);
    assert!(calls < 50, "{calls}");
    picky.perto.shutdown().await;
}

#[tokio::test(start_paused = true)]
async fn a_source_that_is_down_is_not_asked_for_each_key() {
    let sim = Sim::new(1);
    let picky = Picky::new(&sim, |_| true).await;
    let (failed, calls) = picky.failed(0..TASKS).await;
    assert_eq!(failed.len(), 1_000);
    assert!(calls <= 7 * 3, "{calls}");
    assert_eq!(picky.users.flights(), 0);
    picky.perto.shutdown().await;
}

#[tokio::test(start_paused = true)]
async fn a_loader_that_panics_for_one_key_answers_the_others() {
    let sim = Sim::new(1);
    let perto = sim.node().builder("ring").build().unwrap();
    let loader = sim.postgres.loader(CACHE);
    let users: Cache<u64, String> = perto
        .cache(CACHE)
        .loader(move |load: Load<u64>| {
            let loader = loader.clone();
            async move {
                assert!(!load.keys.contains(&9), "the loader panics, as this test wants");
                loaded(&loader, load).await
            }
        })
        .unwrap();
    perto.start().await.unwrap();
    let reads: Vec<_> = (0..50)
        .map(|key| {
            let users = users.clone();
            spawn(async move { users.get(&key).await })
        })
        .collect();
    for (key, read) in (0..).zip(reads) {
        match read.await.unwrap() {
            Ok(_) => assert_ne!(key, 9),
            Err(error) => assert!(key == 9 && matches!(error, Error::LoadPanicked { .. }), "{key}: {error}"),
        }
    }
    perto.shutdown().await;
}

/// One read's error is that of all its keys, as ever: nothing is loaded twice for it.
#[tokio::test(start_paused = true)]
async fn a_read_of_many_keys_that_fails_is_not_tried_in_pieces() {
    let sim = Sim::new(1);
    let picky = Picky::new(&sim, |key| key == 3).await;
    let keys: Vec<u64> = (0..64).collect();
    assert!(picky.users.get_many(&keys).await.is_err());
    assert_eq!(picky.calls.load(Ordering::SeqCst), 1);
    picky.perto.shutdown().await;
}

#[tokio::test(start_paused = true)]
async fn no_call_of_the_loader_has_more_keys_than_it_takes() {
    let ring = member_with(|cache| cache.max_batch(7)).await;
    let member = &ring.members[0];
    let readers: Vec<_> = (0..100).map(|key| member.reading(key)).collect();
    for reader in readers {
        reader.await.unwrap().unwrap();
    }
    let many: Vec<u64> = (100..130).collect();
    assert_eq!(member.users.get_many(&many).await.unwrap().len(), 30);
    let mut sizes: Vec<usize> = member.loader.calls().iter().map(Vec::len).collect();
    sizes.sort_unstable();
    assert!(sizes.iter().sum::<usize>() == 130 && sizes.last() == Some(&7), "{sizes:?}");
    assert!(sizes.len() <= 25, "{sizes:?}");
    ring.end().await;
    let builder = Sim::new(1).node().builder("ring").build().unwrap();
    let none = builder.cache::<u64, String>(CACHE).max_batch(0);
    assert!(none.loader(|_: Load<u64>| async { Err("never called") }).is_err());
}

#[tokio::test(start_paused = true)]
async fn who_leaves_while_waiting_is_neither_looked_up_nor_loaded() {
    let ring = member_with(|cache| cache).await;
    let member = &ring.members[0];
    member.node.remote.faults.delay(Duration::from_millis(5), Duration::from_millis(5));
    // Four go out alone, and as many workers have a batch each.
    let mut stay = Vec::new();
    for key in 0..8 {
        stay.push(member.reading(key));
        ms(1).await;
    }
    let (gone, stays) = (member.reading(10), member.reading(11));
    ms(1).await;
    gone.abort();
    for reader in stay.into_iter().chain([stays]) {
        assert_eq!(text(&reader.await.unwrap().unwrap()), None);
    }
    let calls: Vec<String> = member.loader.calls().into_iter().flatten().collect();
    assert!(calls.contains(&"11".to_owned()) && !calls.contains(&"10".to_owned()), "{calls:?}");
    assert_eq!(member.users.flights(), 0);
    ring.end().await;
}

#[tokio::test(start_paused = true)]
async fn slow_loads_hold_up_neither_other_caches_nor_others_of_their_own() {
    let sim = Sim::new(1);
    let perto = sim.node().builder("ring").build().unwrap();
    let (slow, quick) = (sim.postgres.loader("slow"), sim.postgres.loader("quick"));
    let stuck = slow.clone();
    let mixed: Cache<u64, String> = perto
        .cache("slow")
        .local_only()
        .loader(move |load: Load<u64>| {
            let loader = stuck.clone();
            async move {
                if load.keys[0] < 10 {
                    tokio::time::sleep(Duration::from_secs(4)).await;
                }
                loader.load(load).await
            }
        })
        .unwrap();
    let others: Cache<u64, String> = perto.cache("quick").local_only().loader(quick.function()).unwrap();
    perto.start().await.unwrap();
    let read = |cache: &Cache<u64, String>, key| {
        let cache = cache.clone();
        spawn(async move { cache.get(&key).await })
    };
    let mut stuck = Vec::new();
    for key in 0..10 {
        stuck.push(read(&mixed, key));
        ms(1).await;
    }
    let began = Instant::now();
    read(&others, 1).await.unwrap().unwrap();
    assert_eq!(began.elapsed(), Duration::ZERO, "another cache's");
    read(&mixed, 11).await.unwrap().unwrap();
    assert!(began.elapsed() <= Duration::from_millis(6), "of its own: {:?}", began.elapsed());
    for reader in stuck {
        reader.await.unwrap().unwrap();
    }
    perto.shutdown().await;
}

#[tokio::test(start_paused = true)]
async fn the_batch_of_a_wedged_loader_ends_by_the_limit() {
    let ring = member_with(|cache| cache).await;
    let member = &ring.members[0];
    member.loader.faults().hang();
    let began = Instant::now();
    let readers: Vec<_> = (0..TASKS).map(|key| member.reading(key)).collect();
    for reader in readers {
        assert!(matches!(reader.await.unwrap(), Err(Error::LoadTimeout { .. })));
    }
    assert!(began.elapsed() <= Duration::from_millis(5_100), "{:?}", began.elapsed());
    assert!(member.loader.calls().len() <= 5, "{}", member.loader.calls().len());
    member.loader.faults().heal();
    assert_eq!(member.fresh(1).await, None);
    ring.end().await;
}

#[tokio::test(start_paused = true)]
async fn while_all_places_are_taken_loads_that_wait_become_one() {
    let mut ring = Ring::of(0).await;
    ring.join_with(|builder| builder.max_loads(1), |cache| cache).await;
    let member = &ring.members[0];
    member.loader.before().close();
    let first = member.reading(1_000);
    member.loader.before().reached_by(1).await;
    let readers: Vec<_> = (0..100).map(|key| member.reading(key)).collect();
    ms(1_000).await;
    member.loader.before().open();
    for reader in readers.into_iter().chain([first]) {
        reader.await.unwrap().unwrap();
    }
    assert_eq!(member.loader.calls().len(), 2);
    ring.end().await;
}

#[tokio::test(start_paused = true)]
async fn a_redis_that_hangs_costs_who_waits_two_timeouts_at_most() {
    let ring = member_with(|cache| cache).await;
    let member = &ring.members[0];
    member.node.remote.faults.hang();
    let began = Instant::now();
    let readers: Vec<_> = (0..TASKS).map(|key| member.reading(key)).collect();
    for reader in readers {
        reader.await.unwrap().unwrap();
    }
    assert!(began.elapsed() <= Duration::from_millis(105), "{:?}", began.elapsed());
    assert!(member.loader.calls().len() <= 8, "{}", member.loader.calls().len());
    ring.end().await;
}

#[tokio::test(start_paused = true)]
async fn an_instance_that_ends_answers_all_who_wait_at_once() {
    let ring = member_with(|cache| cache).await;
    let member = &ring.members[0];
    member.node.remote.faults.hang();
    let looking: Vec<_> = (0..100).map(|key| member.reading(key)).collect();
    ms(1).await;
    let began = Instant::now();
    member.perto.shutdown().await;
    assert_eq!((began.elapsed(), member.perto.tasks()), (Duration::ZERO, 0));
    member.node.remote.faults.heal();
    for reader in looking {
        assert!(matches!(reader.await.unwrap(), Err(Error::Closed)));
    }
    assert_eq!((member.loads(), member.users.flights()), (0, 0));

    let mut ring = Ring::of(0).await;
    ring.join_with(|builder| builder.max_loads(1), |cache| cache.local_only()).await;
    let member = &ring.members[0];
    member.loader.faults().hang();
    let loading: Vec<_> = (0..100).map(|key| member.reading(key)).collect();
    ms(100).await;
    member.perto.shutdown().await;
    for reader in loading {
        assert!(matches!(reader.await.unwrap(), Err(Error::Closed)));
    }
    assert_eq!((member.perto.tasks(), member.users.flights()), (0, 0));
}

/// A read that asks for more than the others must not have them wait for the primary, nor be answered by a replica with them.
#[tokio::test(start_paused = true)]
async fn what_must_contain_a_write_is_not_loaded_with_what_need_not() {
    let ring = member_with(|cache| cache.local_only()).await;
    let member = &ring.members[0];
    ring.sim.postgres.replay(0);
    member.loader.use_replica(true);
    member.loader.before().close();
    let blocking: Vec<_> = (100..104).map(|key| member.reading(key)).collect();
    ms(1).await;
    // The replica lacks it, and no poll has brought it.
    let written = ring.write_silently(7, "new");
    let with_token = |key: u64| {
        let users = member.users.clone();
        let at_least = ReadOptions::at_least(written.token);
        spawn(async move { users.get_with(&key, at_least).await })
    };
    let plain: Vec<_> = (0..4).map(|key| member.reading(key)).collect();
    let asks = with_token(7);
    ms(1).await;
    member.loader.before().open();
    let read = asks.await.unwrap().unwrap();
    assert_eq!((text(&read), read.freshness), (some("new"), Freshness::Fresh));
    for reader in plain.into_iter().chain(blocking) {
        assert_eq!(reader.await.unwrap().unwrap().freshness, Freshness::Fresh);
    }
    let calls = member.loader.calls();
    let of_seven: Vec<_> = calls.iter().filter(|keys| keys.contains(&"7".to_owned())).collect();
    assert!(of_seven.iter().all(|keys| keys.len() == 1), "{calls:?}");
    assert_eq!(calls.iter().filter(|keys| keys.contains(&"1".to_owned())).count(), 1, "{calls:?}");
    ring.end().await;
}

/// A key whose leader was given up is another's by the time that the leader goes on. In one call it would be there twice, and one of
/// the two would be told that there is no row.
#[tokio::test(start_paused = true)]
async fn a_key_that_was_given_up_is_not_loaded_twice_in_one_call() {
    let mut ring = Ring::of(0).await;
    ring.join_with(|builder| builder.max_loads(1), |cache| cache).await;
    ms(300).await;
    let member = &ring.members[0];
    ring.write_silently(1, "one");
    member.node.remote.faults.hang();
    let mut parked = Box::pin(member.users.get(&1));
    assert!(futures_util::poll!(&mut parked).is_pending());
    member.node.remote.faults.heal();
    member.loader.before().close();
    let blocking = member.reading(100);
    member.loader.before().reached_by(1).await;
    let another = member.reading(1);
    ms(80).await;
    // Both wait for the one place now.
    assert!(futures_util::poll!(&mut parked).is_pending());
    ms(1).await;
    member.loader.before().open();
    let (parked, another) = (parked.await.unwrap(), another.await.unwrap().unwrap());
    assert_eq!((text(&parked), text(&another)), (some("one"), some("one")));
    blocking.await.unwrap().unwrap();
    for keys in member.loader.calls() {
        assert!(keys.iter().filter(|key| *key == "1").count() <= 1, "{keys:?}");
    }
    ring.end().await;
}

/// What the primary says is fresh for who began before, if it is as new as the poll that the read began with. One statement answers
/// reads that began with different polls: it must be as new as the last one.
#[tokio::test(start_paused = true)]
async fn what_a_batch_is_told_must_be_as_new_as_its_newest_read_needs() {
    let ring = Ring::of(1).await;
    let (postgres, node) = (ring.sim.postgres.clone(), ring.sim.node());
    let perto = node.builder("ring").max_loads(1).build().unwrap();
    let old = Stamp::parse(&format!("{} primary clean 1", postgres.snapshot())).unwrap();
    let primaries = Arc::new(AtomicUsize::new(0));
    let (loader, asked, gate) = (postgres.loader(CACHE), Arc::clone(&primaries), postgres.loader("gate"));
    let held = gate.clone();
    let users: Cache<u64, String> = perto
        .cache(CACHE)
        .local_only()
        .loader(move |load: Load<u64>| {
            let (loader, old, asked, held) = (loader.clone(), old.clone(), Arc::clone(&asked), held.clone());
            async move {
                if load.primary {
                    asked.fetch_add(1, Ordering::SeqCst);
                    return loaded(&loader, load).await;
                }
                held.load::<u64, String>(Load::clone(&load)).await?;
                // In a transaction that was begun long ago, and that says of itself that it is not.
                Ok::<_, BoxError>(Loaded::new(old))
            }
        })
        .unwrap();
    perto.start().await.unwrap();
    gate.before().close();
    let read = |key: u64| {
        let users = users.clone();
        spawn(async move { users.get(&key).await })
    };
    let blocking = read(100);
    ms(1).await;
    let first = read(1);
    ms(1).await;
    ring.write_silently(2, "new");
    tokio::time::sleep(POLL).await;
    let second = read(2);
    ms(1).await;
    gate.before().open();
    first.await.unwrap().unwrap();
    let second = second.await.unwrap().unwrap();
    assert_eq!((text(&second), second.freshness), (some("new"), Freshness::Fresh));
    blocking.await.unwrap().unwrap();
    assert!(primaries.load(Ordering::SeqCst) > 0);
    perto.shutdown().await;
    ring.end().await;
}

#[tokio::test(start_paused = true)]
async fn a_recovery_while_keys_wait_has_nobody_served_what_was_before() {
    let ring = Ring::of(1).await;
    let member: &Member = &ring.members[0];
    for key in 0..20 {
        ring.write_silently(key, "old");
    }
    tokio::time::sleep(POLL).await;
    member.loader.after().close();
    let readers: Vec<_> = (0..20).map(|key| member.reading(key)).collect();
    member.loader.after().reached_by(1).await;
    ring.sim.postgres.crash(0);
    for key in 0..20 {
        ring.write_silently(key, "new");
    }
    tokio::time::sleep(POLL).await;
    let after: Vec<_> = (0..20).map(|key| member.reading(key)).collect();
    ms(1).await;
    member.loader.after().open();
    for reader in readers.into_iter().chain(after) {
        let read = reader.await.unwrap().unwrap();
        assert_eq!((text(&read), read.freshness), (some("new"), Freshness::Fresh));
    }
    ring.end().await;
}

/// Four keys that can't be loaded, one in each quarter of a batch: the source is up all the same.
#[tokio::test(start_paused = true)]
async fn keys_that_fail_all_over_a_batch_are_not_taken_for_a_source_that_is_down() {
    let sim = Sim::new(1);
    let picky = Picky::new(&sim, |key| key % 16 == 5).await;
    let (failed, calls) = picky.failed(0..64).await;
    assert_eq!(failed, [5, 21, 37, 53]);
    assert!(calls < 50, "{calls}");
    picky.perto.shutdown().await;
}

/// The one place is free after 2 s, and the load takes 4 s: who asked at once has no answer within the limit of 5 s, and who asked just
/// before has.
#[tokio::test(start_paused = true)]
async fn who_joins_a_batch_late_has_as_long_for_a_load_as_anybody() {
    let sim = Sim::new(1);
    let perto = sim.node().builder("ring").max_loads(1).build().unwrap();
    let loader = sim.postgres.loader(CACHE);
    let users: Cache<u64, String> = perto
        .cache(CACHE)
        .local_only()
        .loader(move |load: Load<u64>| {
            let loader = loader.clone();
            async move {
                let seconds = if load.keys.contains(&100) { 2 } else { 4 };
                tokio::time::sleep(Duration::from_secs(seconds)).await;
                loaded(&loader, load).await
            }
        })
        .unwrap();
    perto.start().await.unwrap();
    let read = |key: u64| {
        let users = users.clone();
        spawn(async move { users.get(&key).await })
    };
    let blocking = read(100);
    ms(1).await;
    let (began, early) = (Instant::now(), read(1));
    ms(1_950).await;
    let late = read(2);
    assert!(matches!(early.await.unwrap(), Err(Error::LoadTimeout { .. })));
    assert!(began.elapsed() <= Duration::from_millis(5_100), "{:?}", began.elapsed());
    assert!(late.await.unwrap().is_ok());
    blocking.await.unwrap().unwrap();
    perto.shutdown().await;
}

/// Looks into L2 that each take most of the time for it, and many that wait for them: whoever has waited for that time goes on without.
#[tokio::test(start_paused = true)]
async fn who_waits_for_a_look_into_l2_for_longer_than_it_may_take_goes_on_without() {
    let ring = member_with(|cache| cache).await;
    let member = &ring.members[0];
    member.node.remote.faults.delay(Duration::from_millis(20), Duration::from_millis(20));
    let began = Instant::now();
    let readers: Vec<_> = (0..8 * TASKS).map(|key| member.reading(key)).collect();
    for reader in readers {
        assert_eq!(reader.await.unwrap().unwrap().freshness, Freshness::Fresh);
    }
    // Twice the time for L2 at most.
    assert!(began.elapsed() <= Duration::from_millis(105), "{:?}", began.elapsed());
    ring.end().await;
}

/// One key's bucket has heard of a write that the replica lacks: the others needn't wait for the primary.
#[tokio::test(start_paused = true)]
async fn a_replica_that_lags_behind_for_one_key_answers_the_others() {
    let ring = member_with(|cache| cache.local_only()).await;
    let member = &ring.members[0];
    ring.write_silently(1, "one");
    ring.write_silently(2, "old");
    ring.sim.postgres.replay(0);
    ring.write_silently(2, "new");
    tokio::time::sleep(POLL).await;
    member.loader.use_replica(true);
    let reads = member.users.get_many(&[1, 2, 3]).await.unwrap();
    assert_eq!(reads.iter().map(text).collect::<Vec<_>>(), [some("one"), some("new"), None]);
    assert!(reads.iter().all(|read| read.freshness == Freshness::Fresh));
    assert_eq!(member.loader.calls(), [vec!["1", "2", "3"], vec!["2"]]);
    // It has no way to the primary.
    ring.write_silently(5, "new");
    tokio::time::sleep(POLL).await;
    member.loader.use_replica(false);
    let reads = member.users.get_many(&[4, 5]).await.unwrap();
    assert_eq!(
        reads.iter().map(|read| read.freshness).collect::<Vec<_>>(),
        [Freshness::Fresh, Freshness::Stale(StaleCause::Replica)]
    );
    ring.end().await;
}

const NONE: u64 = u64::MAX;

thread_local! {
    /// The key that panics when it is hashed.
    static PANICS: Cell<u64> = const { Cell::new(NONE) };
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Rigged(u64);

impl Hash for Rigged {
    fn hash<H: Hasher>(&self, hasher: &mut H) {
        assert_ne!(self.0, PANICS.get(), "the key panics, as this test wants");
        self.0.hash(hasher);
    }
}

impl std::fmt::Display for Rigged {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

impl FromStr for Rigged {
    type Err = ParseIntError;

    fn from_str(text: &str) -> Result<Self, ParseIntError> {
        text.parse().map(Self)
    }
}

/// By then it waits with others, and it can't be hashed any more: neither to be taken, nor to be let go.
#[tokio::test(start_paused = true)]
async fn a_key_that_panics_when_it_is_hashed_is_nobody_elses_trouble() {
    let sim = Sim::new(1);
    let perto = sim.node().builder("ring").max_loads(1).build().unwrap();
    let loader = sim.postgres.loader(CACHE);
    let users: Cache<Rigged, String> = perto.cache(CACHE).local_only().loader(loader.function()).unwrap();
    perto.start().await.unwrap();
    loader.before().close();
    let reads: Vec<_> = (0..20)
        .map(|key| {
            let users = users.clone();
            spawn(async move { users.get(&Rigged(key)).await })
        })
        .collect();
    ms(1).await;
    PANICS.set(13);
    loader.before().open();
    for (key, read) in (0..).zip(reads) {
        match read.await.unwrap() {
            Ok(_) => assert_ne!(key, 13),
            Err(error) => assert!(key == 13 && matches!(error, Error::LoadPanicked { .. }), "{key}: {error}"),
        }
    }
    PANICS.set(NONE);
    assert!(users.get(&Rigged(13)).await.is_ok());
    assert_eq!(users.flights(), 0);
    perto.shutdown().await;
}

/// A runtime that is polled only while a read of its own waits, as that of each thread of some servers is.
#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn what_a_read_on_another_runtime_has_begun_holds_nobody_up_once_that_read_is_over() {
    let ring = Ring::of(2).await;
    for key in 0..32 {
        ring.members[1].users.get(&key).await.unwrap();
    }
    let (node, users) = (&ring.members[0].node, ring.members[0].users.clone());
    node.remote.faults.delay(Duration::from_millis(10), Duration::from_millis(10));
    let (over, goes_on) = (std::sync::mpsc::channel::<()>(), std::sync::mpsc::channel::<()>());
    let elsewhere = std::thread::spawn({
        let users = users.clone();
        move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            let reads = async {
                // More than go out alone.
                let all: Vec<_> = (0..16).collect();
                let reads = futures_util::future::join_all(all.iter().map(|key| users.get(key)));
                tokio::time::timeout(Duration::from_millis(3), reads).await
            };
            assert!(runtime.block_on(reads).is_err(), "the look-ups take longer");
            over.0.send(()).unwrap();
            // Not polled, and not dropped.
            let _ended = goes_on.1.recv();
        }
    });
    tokio::task::spawn_blocking(move || over.1.recv()).await.unwrap().unwrap();
    let read = tokio::time::timeout(Duration::from_secs(3), users.get(&15)).await;
    assert_eq!(read.expect("another runtime holds it up").unwrap().tier, Tier::Remote);
    goes_on.0.send(()).unwrap();
    elsewhere.join().unwrap();
    ring.end().await;
}

/// The tasks that would load end with it.
#[test]
fn a_read_beside_an_instance_whose_runtime_has_ended_ends_by_its_limit() {
    let runtime =
        || tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let (its, readers) = (runtime(), runtime());
    let member = its.block_on(async {
        let sim = Sim::new(1);
        let member = Member::new(&sim, |perto| perto, |cache| cache.load_timeout(Duration::from_millis(200)));
        member.perto.start().await.unwrap();
        member
    });
    drop(its);
    let limit = Duration::from_secs(5);
    let read = readers.block_on(async { tokio::time::timeout(limit, member.users.get(&7)).await });
    let read = read.expect("a read that never ends");
    assert!(matches!(read, Err(Error::LoadTimeout { .. })), "{read:?}");
}
