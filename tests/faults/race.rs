//! The promise under load: many writers, in any order of transactions, and readers on three instances.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use perto::Freshness;
use sqlx::{Connection, PgPool};
use tokio::task::JoinSet;

use crate::world::{BOUND, World, coherent, pool};

/// Half of the writes go to the first eight.
const KEYS: u64 = 64;
const WRITERS: u64 = 16;
/// How long it lasts. Four bounds: an instance that were late by one would be found out.
const TIME: Duration = Duration::from_secs(4);

/// What is known to be committed: for each key, versions and when the commit was acknowledged. Visible earlier, so a
/// reader is judged by less than the promise says, never by more.
struct History(Vec<Mutex<Vec<(i64, Instant)>>>);

impl History {
    fn committed(&self, id: u64, v: i64) {
        self.0[usize::try_from(id).unwrap()].lock().push((v, Instant::now()));
    }

    /// The newest version that a fresh read that began at `began` may not miss.
    fn floor(&self, id: u64, began: Instant) -> i64 {
        let versions = self.0[usize::try_from(id).unwrap()].lock();
        let visible = versions.iter().filter(|(_, at)| *at + BOUND < began).map(|(v, _)| *v);
        visible.max().unwrap_or(0)
    }

    fn newest(&self, id: u64) -> i64 {
        self.floor(id, Instant::now() + 2 * BOUND)
    }
}

/// A small generator, so that a failure can be told by its seed.
fn next(seed: &mut u64) -> u64 {
    *seed ^= *seed << 13;
    *seed ^= *seed >> 7;
    *seed ^= *seed << 17;
    *seed
}

/// One transaction: its number is taken first and its commit comes at any time after, so commits come in another order
/// than numbers. Versions count up under the row's lock.
async fn write(pool: &PgPool, through: Option<&perto::Perto>, history: &History, seed: &mut u64) {
    let id = next(seed) % if next(seed).is_multiple_of(2) { 8 } else { KEYS };
    let mut connection = pool.acquire().await.unwrap();
    let mut tx = connection.begin().await.unwrap();
    sqlx::query("select pg_current_xact_id()").execute(&mut *tx).await.unwrap();
    tokio::time::sleep(Duration::from_millis(next(seed) % 20)).await;
    let v: i64 = sqlx::query_scalar("update items set v = v + 1 where id = $1 returning v")
        .bind(i64::try_from(id).unwrap())
        .fetch_one(&mut *tx)
        .await
        .unwrap();
    if next(seed).is_multiple_of(4) {
        return tx.rollback().await.unwrap();
    }
    let pending = match through {
        Some(perto) => perto.pending(&mut tx).await.unwrap(),
        None => None,
    };
    tx.commit().await.unwrap();
    history.committed(id, v);
    // A third dies here.
    if let (Some(perto), Some(pending)) = (through, pending)
        && !next(seed).is_multiple_of(3)
    {
        perto.announce_pending(pending).await;
    }
}

/// No read that is fresh misses a commit that was acknowledged more than the bound before it began.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn among_sixteen_writers_no_fresh_read_misses_a_write_older_than_the_bound() {
    let world = World::new().await;
    world.sql(&format!("insert into items select n, 0 from generate_series(0, {}) n", KEYS - 1)).await;
    let instances = [world.start().await, world.start().await, world.start().await];
    coherent([&instances[0], &instances[1], &instances[2]]).await;
    let history = Arc::new(History((0..KEYS).map(|_| Mutex::default()).collect()));
    let ended = Arc::new(AtomicBool::new(false));
    let fresh = Arc::new(AtomicU64::new(0));
    // Writers don't stand in the loaders' way.
    let writing = pool(&world.database, &world.name);
    let mut tasks = JoinSet::new();
    for writer in 0..WRITERS {
        let (pool, history, ended) = (writing.clone(), Arc::clone(&history), Arc::clone(&ended));
        // Half of them know of Perto, half are somebody's SQL.
        let through =
            instances.get(usize::try_from(writer).unwrap()).or(instances.first()).filter(|_| writer % 2 == 0);
        let through = through.map(|instance| instance.perto.clone());
        tasks.spawn(async move {
            let mut seed = 0x9E37_79B9 + writer;
            while !ended.load(Ordering::Acquire) {
                write(&pool, through.as_ref(), &history, &mut seed).await;
            }
        });
    }
    for (reader, instance) in (0_u64..6).zip(instances.iter().cycle()) {
        let (items, history, ended) = (instance.items.clone(), Arc::clone(&history), Arc::clone(&ended));
        let fresh = Arc::clone(&fresh);
        tasks.spawn(async move {
            let mut seed = 77 + reader;
            while !ended.load(Ordering::Acquire) {
                let id = next(&mut seed) % KEYS;
                let began = Instant::now();
                let read = items.get(&i64::try_from(id).unwrap()).await.unwrap();
                if read.freshness == Freshness::Fresh {
                    let (v, floor) = (read.value().copied().unwrap_or_default(), history.floor(id, began));
                    assert!(
                        v >= floor,
                        "key {id}: {v} is served as fresh, {floor} was committed a bound before"
                    );
                    fresh.fetch_add(1, Ordering::Relaxed);
                }
                tokio::task::yield_now().await;
            }
        });
    }
    tokio::time::sleep(TIME).await;
    ended.store(true, Ordering::Release);
    while let Some(task) = tasks.join_next().await {
        task.unwrap();
    }

    let committed: usize = history.0.iter().map(|versions| versions.lock().len()).sum();
    let fresh = fresh.load(Ordering::Relaxed);
    let stats = instances.each_ref().map(|instance| instance.items.stats());
    let hits: u64 = stats.iter().map(|stats| stats.l1_hits).sum();
    // Enough of each to mean something, on a slow machine too.
    assert!(
        committed > 100 && fresh > 500 && hits > 100,
        "{committed} commits, {fresh} fresh reads, {hits} hits"
    );
    for instance in &instances {
        instance.polled().await;
        for id in 0..KEYS {
            assert_eq!(instance.fresh(i64::try_from(id).unwrap()).await, Some(history.newest(id)));
        }
    }
}
