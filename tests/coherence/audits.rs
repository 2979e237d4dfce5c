//! The auditor: what it finds, and what it must not take for a violation.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use futures_util::future::BoxFuture;
use perto::sim::{Sim, SimLog, SimPostgres};
use perto::{
    Appended, Cache, CacheStats, Change, Codec, Event, Load, Loaded, Log, LogError, Poll, Snapshot, Stamp,
    Value,
};
use serde::{Deserialize, Serialize};

use crate::ring::{CACHE, Member, Ring, ms, some};

/// A write where somebody has dropped the trigger.
pub(crate) fn write_unlogged(postgres: &SimPostgres, key: u64, value: &str) {
    let mut transaction = postgres.begin();
    transaction.put_unlogged(CACHE, &key, &value).unwrap();
    transaction.commit().unwrap();
}

/// Reads the key for so long.
async fn keep_reading(ring: &Ring, who: usize, key: u64, millis: u64) {
    for _ in 0..millis / 10 {
        ring.members[who].users.get(&key).await.unwrap();
        ms(10).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_write_that_nothing_logged_is_found_and_mended_everywhere() {
    let ring = Ring::of(2).await;
    let mut events = ring.members[0].perto.events();
    ring.write(0, 7, "old").await;
    for member in &ring.members {
        assert_eq!(member.fresh(7).await, some("old"));
    }
    keep_reading(&ring, 0, 7, 3_000).await;
    let before = ring.members[0].users.stats();
    assert!(before.audits >= 2 && before.audit_violations == 0, "{before:?}");

    write_unlogged(&ring.sim.postgres, 7, "new");
    assert_eq!(ring.members[0].fresh(7).await, some("old"), "nothing can know yet");
    keep_reading(&ring, 0, 7, 2_500).await;
    assert_eq!(ring.members[0].users.stats().audit_violations, 1);
    assert_eq!(ring.members[0].perto.audits().five_minutes.violations, 1);
    for member in &ring.members {
        assert_eq!(member.fresh(7).await, some("new"));
    }
    let mut told = false;
    while let Ok(event) = events.try_recv() {
        told |= matches!(event, Event::AuditViolation { cache, .. } if cache == CACHE);
    }
    assert!(told);
    ring.end().await;
}

#[tokio::test(start_paused = true)]
async fn an_unlogged_removal_is_found_too() {
    let ring = Ring::of(1).await;
    assert_eq!(ring.members[0].fresh(7).await, None);
    write_unlogged(&ring.sim.postgres, 7, "there");
    keep_reading(&ring, 0, 7, 2_500).await;
    assert_eq!(ring.members[0].fresh(7).await, some("there"));
    ring.end().await;
}

#[tokio::test(start_paused = true)]
async fn what_the_log_tells_is_no_violation_however_late_it_is_heard_of() {
    let ring = Ring::of(2).await;
    // Hints are lost, and polls take their time.
    for member in &ring.members {
        member.node.bus.faults.lose(100);
        member.node.log.faults.delay(ms_of(20), ms_of(300));
        member.loader.faults().delay(ms_of(1), ms_of(50));
    }
    for round in 0..400 {
        ring.write_silently(round % 3, &format!("v{round}"));
        keep_reading(&ring, 0, round % 3, 50).await;
    }
    let stats = ring.members[0].users.stats();
    assert!(stats.audits + stats.audits_skipped > 20, "{stats:?}");
    assert_eq!(stats.audit_violations, 0);
    ring.end().await;
}

#[tokio::test(start_paused = true)]
async fn a_loader_that_never_says_the_same_twice_is_not_audited() {
    let sim = Sim::new(1);
    let perto = sim.node().builder("ring").build().unwrap();
    let (database, count) = (sim.postgres.loader(CACHE), Arc::new(AtomicU64::new(0)));
    let calls = Arc::clone(&count);
    let load = move |load: Load<u64>| {
        let (database, calls, key) = (database.clone(), Arc::clone(&calls), load.keys[0]);
        async move {
            let loaded: Loaded<u64, String> = database.load(load).await?;
            Ok::<_, perto::sim::Down>(loaded.with(key, calls.fetch_add(1, Ordering::Relaxed).to_string()))
        }
    };
    let users: Cache<u64, String> = perto.cache(CACHE).loader(load).unwrap();
    perto.start().await.unwrap();
    for _ in 0..500 {
        users.get(&7).await.unwrap();
        ms(10).await;
    }
    let stats = users.stats();
    assert!(stats.audits_skipped > 2 && stats.audit_violations == 0, "{stats:?}");
    perto.shutdown().await;
}

/// An instance with a cache of another type of value, whose row 7 is read all the time.
async fn audited<V: Value + Clone>(sim: &Sim, value: V, millis: u64) -> CacheStats {
    let perto = sim.node().builder("ring").build().unwrap();
    sim.postgres.write(CACHE, &7, &"as good as any").unwrap();
    let postgres = sim.postgres.clone();
    // Each load makes another value of the same contents.
    let load = move |load: Load<u64>| {
        let stamp = Stamp::parse(&format!("{} primary clean 1", postgres.snapshot())).unwrap();
        let loaded = Loaded::new(stamp).with(load.keys[0], value.clone());
        async move { Ok::<_, perto::sim::Down>(loaded) }
    };
    let values: Cache<u64, V> = perto.cache(CACHE).loader(load).unwrap();
    perto.start().await.unwrap();
    for _ in 0..millis / 10 {
        values.get(&7).await.unwrap();
        ms(10).await;
    }
    perto.shutdown().await;
    values.stats()
}

/// As a `HashSet` is: each that is made has an order of its own, and two in a row may well have the same.
#[derive(Clone)]
struct Unordered;

impl Serialize for Unordered {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        HashSet::from(["one", "two"]).serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Unordered {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        HashSet::<String>::deserialize(deserializer).map(|_| Self)
    }
}

#[tokio::test(start_paused = true)]
async fn a_value_whose_encoding_is_not_always_the_same_is_no_violation() {
    let stats = audited(&Sim::new(1), Unordered, 200_000).await;
    assert!(stats.audits > 20 && stats.audits_skipped > 20, "both orders come: {stats:?}");
    assert_eq!(stats.audit_violations, 0);
}

/// A new one each time, as a loader makes it.
#[derive(Clone)]
struct Mapped;

impl Serialize for Mapped {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        HashMap::from([("one", 1), ("two", 2)]).serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Mapped {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        HashMap::<String, u8>::deserialize(deserializer).map(|_| Self)
    }
}

#[tokio::test(start_paused = true)]
async fn a_hash_map_is_the_same_in_any_order() {
    let stats = audited(&Sim::new(1), Mapped, 200_000).await;
    assert!(stats.audits > 40, "{stats:?}");
    assert_eq!((stats.audits_skipped, stats.audit_violations), (0, 0));
}

#[derive(Clone, Serialize, Deserialize)]
struct Flattened {
    #[serde(flatten)]
    names: BTreeMap<String, u8>,
}

#[tokio::test(start_paused = true)]
async fn what_l2_cannot_keep_is_audited_all_the_same() {
    let value = Flattened { names: BTreeMap::from([("one".to_owned(), 1)]) };
    // It may be there or not: else its cache could not be declared.
    let stats = audited(&Sim::new(1), Some(value), 5_000).await;
    assert!(stats.audits > 2 && stats.audits_skipped == 0 && stats.audit_violations == 0, "{stats:?}");
}

/// What the primary says of a row changes, and nothing logs it. `HashSet`s hide nothing, nor does what L2 can't keep.
#[tokio::test(start_paused = true)]
async fn a_violation_is_found_whatever_the_type_of_the_value() {
    #[derive(Clone, Serialize, Deserialize)]
    struct Mixed {
        set: HashSet<u8>,
        count: u64,
        #[serde(flatten)]
        names: BTreeMap<String, u8>,
    }
    #[derive(Clone, Serialize, Deserialize)]
    struct Sets {
        set: HashSet<u8>,
        count: u64,
    }
    /// Its list has an order.
    #[derive(Clone, Serialize, Deserialize)]
    struct Listed {
        list: Vec<u64>,
        #[serde(flatten)]
        names: BTreeMap<String, u8>,
    }
    async fn found<V: Value>(make: fn(u64) -> V) {
        found_by(Codec::Bincode, make).await;
    }
    async fn found_by<V: Value>(codec: Codec, make: fn(u64) -> V) {
        let sim = Sim::new(1);
        let perto = sim.node().builder("ring").build().unwrap();
        let (postgres, now) = (sim.postgres.clone(), Arc::new(AtomicU64::new(1)));
        let count = Arc::clone(&now);
        let load = move |load: Load<u64>| {
            let stamp = Stamp::parse(&format!("{} primary clean 1", postgres.snapshot())).unwrap();
            let loaded = Loaded::new(stamp).with(load.keys[0], make(count.load(Ordering::Relaxed)));
            async move { Ok::<_, perto::sim::Down>(loaded) }
        };
        let values: Cache<u64, V> = perto.cache(CACHE).codec(codec).loader(load).unwrap();
        perto.start().await.unwrap();
        for round in 0..2_000 {
            if round == 200 {
                now.store(2, Ordering::Relaxed);
            }
            values.get(&7).await.unwrap();
            ms(10).await;
        }
        let stats = values.stats();
        assert_eq!(stats.audit_violations, 1, "{stats:?}");
        perto.shutdown().await;
    }
    found(|count| Some(Mixed { set: HashSet::from([1, 2, 3]), count, names: BTreeMap::new() })).await;
    found(|count| Sets { set: HashSet::from([1, 2, 3]), count }).await;
    found_by(Codec::Json, |count| Sets { set: HashSet::from([1, 2, 3]), count }).await;
    found_by(Codec::Json, |count| Listed { list: vec![count, 3 - count], names: BTreeMap::new() }).await;
}

/// Its `Serialize` gives an error.
#[tokio::test(start_paused = true)]
async fn what_cannot_be_written_does_not_count_as_right() {
    use std::os::unix::ffi::OsStringExt;
    let value = std::path::PathBuf::from(std::ffi::OsString::from_vec(vec![0xFF]));
    let stats = audited(&Sim::new(1), value, 5_000).await;
    assert!(stats.audits == 0 && stats.audits_skipped > 2, "{stats:?}");
}

/// Whatever else is written in a busy database: the key's bucket is shared.
#[tokio::test(start_paused = true)]
async fn a_write_to_a_neighbour_in_the_bucket_hides_nothing() {
    let ring = Ring::of(1).await;
    let member = &ring.members[0];
    ring.write(0, 7, "old").await;
    assert_eq!(member.fresh(7).await, some("old"));
    write_unlogged(&ring.sim.postgres, 7, "new");
    // Every bucket hears of a write.
    let neighbour = ring.write_silently(8, "a neighbour");
    let keys = (1_000..500_000_u64).map(|key| key.to_string()).collect();
    let everywhere = Change { cache: CACHE.to_owned(), keys: Some(keys) };
    member.node.remote.faults.cut();
    member.perto.announce(neighbour.token, &[everywhere]).await;
    assert_eq!(member.cached(7), Some(some("old")), "it goes on being served");
    keep_reading(&ring, 0, 7, 3_000).await;
    assert_eq!(member.users.stats().audit_violations, 1);
    assert_eq!(member.fresh(7).await, some("new"));
    ring.end().await;
}

#[tokio::test(start_paused = true)]
async fn many_violations_of_one_round_are_one_load_and_one_row_of_the_log() {
    let ring = Ring::of(1).await;
    let member = &ring.members[0];
    let keys: Vec<u64> = (0..50).collect();
    member.users.get_many(&keys).await.unwrap();
    for key in &keys {
        write_unlogged(&ring.sim.postgres, *key, "new");
    }
    let (rows, calls) = (ring.sim.postgres.retained(), member.loader.calls().len());
    let mut events = member.perto.events();
    for _ in 0..300 {
        member.users.get_many(&keys).await.unwrap();
        ms(10).await;
    }
    for key in keys {
        assert_eq!(member.fresh(key).await, some("new"));
    }
    assert_eq!(member.users.stats().audit_violations, 50);
    let told = std::iter::from_fn(|| events.try_recv().ok());
    assert_eq!(told.filter(|event| matches!(event, Event::AuditViolation { .. })).count(), 8);
    assert!(member.loader.calls().len() - calls <= 5, "rounds, confirmations and one load of all");
    assert_eq!(ring.sim.postgres.retained() - rows, 50, "a row for each key, in one transaction");
    ring.end().await;
}

/// A log that can be read, and not written.
#[derive(Debug)]
struct ReadOnly(Arc<SimLog>);

impl Log for ReadOnly {
    fn poll<'a>(
        &'a self,
        cursor: Option<&'a Snapshot>,
        caches: &'a [&'a str],
        limit: Duration,
    ) -> BoxFuture<'a, Result<Poll, LogError>> {
        self.0.poll(cursor, caches, limit)
    }

    fn append<'a>(&'a self, _: &'a Change) -> BoxFuture<'a, Result<Appended, LogError>> {
        Box::pin(async { Err(LogError::Schema("it can only be read".to_owned())) })
    }

    fn trim(&self, retention: Duration) -> BoxFuture<'_, Result<(), LogError>> {
        self.0.trim(retention)
    }

    fn unwatched<'a>(
        &'a self,
        cache: &'a str,
        tables: &'a [String],
        sources: &'a [perto::Source],
    ) -> BoxFuture<'a, Result<Vec<perto::Unwatched>, LogError>> {
        self.0.unwatched(cache, tables, sources)
    }
}

#[tokio::test(start_paused = true)]
async fn where_the_log_cannot_be_written_a_violation_is_mended_all_the_same() {
    let mut ring = Ring::of(1).await;
    let node = ring.sim.node();
    let log = Arc::new(ReadOnly(Arc::clone(&node.log)));
    let perto = node.builder("ring").log(log).build().unwrap();
    let loader = ring.sim.postgres.loader(CACHE);
    let users = perto.cache(CACHE).loader(loader.function()).unwrap();
    perto.start().await.unwrap();
    ring.members.push(Member { node, perto, users, loader });
    ms(300).await;
    ring.write(0, 7, "old").await;
    for member in &ring.members {
        assert_eq!(member.fresh(7).await, some("old"));
    }
    write_unlogged(&ring.sim.postgres, 7, "new");
    keep_reading(&ring, 1, 7, 2_500).await;
    assert_eq!(ring.members[1].users.stats().audit_violations, 1);
    for member in &ring.members {
        assert_eq!(member.fresh(7).await, some("new"));
    }
    ring.end().await;
}

#[tokio::test(start_paused = true)]
async fn a_loader_that_panics_fails_or_hangs_does_not_end_the_auditor() {
    let sim = Sim::new(1);
    let perto = sim.node().builder("ring").build().unwrap();
    let (database, count) = (sim.postgres.loader(CACHE), Arc::new(AtomicU64::new(0)));
    let load = move |load: Load<u64>| {
        let number = count.fetch_add(1, Ordering::Relaxed);
        assert_ne!(number, 1, "not even a future");
        let database = database.clone();
        async move {
            assert_ne!(number, 2, "it panics");
            match number {
                3 => Err(perto::sim::Down),
                4 => std::future::pending().await,
                _ => database.load(load).await,
            }
        }
    };
    let users: Cache<u64, String> = perto.cache(CACHE).loader(load).unwrap();
    perto.start().await.unwrap();
    for _ in 0..1_500 {
        users.get(&7).await.unwrap();
        ms(10).await;
    }
    let stats = users.stats();
    assert!(stats.audits_skipped == 4 && stats.audits >= 3, "{stats:?}");
    perto.shutdown().await;
}

#[tokio::test(start_paused = true)]
async fn audits_ask_for_few_keys_in_one_load_and_can_be_switched_off() {
    for (rate, most) in [(3, 3), (0, 0)] {
        let sim = Sim::new(1);
        let perto = sim.node().builder("ring").audit_rate(rate).build().unwrap();
        let loader = sim.postgres.loader(CACHE);
        let users: Cache<u64, String> = perto.cache(CACHE).loader(loader.function()).unwrap();
        perto.start().await.unwrap();
        let keys: Vec<u64> = (0..100).collect();
        users.get_many(&keys).await.unwrap();
        let loaded = loader.calls().len();
        for _ in 0..500 {
            users.get_many(&keys).await.unwrap();
            ms(10).await;
        }
        let audits = loader.calls().split_off(loaded);
        assert!(audits.iter().all(|keys| keys.len() <= most), "{audits:?}");
        assert_eq!(audits.is_empty(), rate == 0);
        assert!(audits.len() <= 5, "one a second: {}", audits.len());
        assert_eq!(users.stats().audits, audits.iter().map(|keys| keys.len() as u64).sum::<u64>());
        perto.shutdown().await;
    }
}

fn ms_of(millis: u64) -> Duration {
    Duration::from_millis(millis)
}
