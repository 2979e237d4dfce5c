//! Reads and writes while something is done to Redis: no fresh read may miss a write that is older than the bound.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use perto::{Cache, Freshness, Perto, Tier};
use sqlx::{AssertSqlSafe, PgPool};
use tokio::task::JoinSet;

use crate::support::wait::{ends, eventually, eventually_within};
use crate::world::{BOUND, Instance, World, pool};

/// Between the moment that a server was promoted and the one that L2 and hints are used there. The bar is a second; the other
/// is for a busy machine.
pub(crate) const USED_WITHIN: Duration = Duration::from_secs(2);

/// Until a hint of one is heard by the other, and what one loads is found in L2 by the other.
pub(crate) async fn both_are_used(world: &World, one: &Instance, other: &Instance) {
    eventually_within(USED_WITHIN, "hints are heard, and values found", async || {
        let next = i64::try_from(one.perto.stats().hints_published).unwrap() + 1_000;
        // Of others' hints only.
        let heard = other.perto.propagation().count();
        one.put(world, next, next).await;
        tokio::time::sleep(Duration::from_millis(5)).await;
        if other.perto.propagation().count() == heard || one.fresh(next).await != Some(next) {
            return false;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
        other.fresh_from(next).await == (Some(next), Tier::Remote)
    })
    .await;
}

/// Theirs alone: tests have the others.
const KEYS: std::ops::Range<i64> = 900_000..900_024;
const BETWEEN_WRITES: Duration = Duration::from_millis(10);

/// Versions, and when their commit was acknowledged: they were visible earlier.
type Committed = Mutex<Vec<(i64, Instant)>>;

/// Each instance writes and reads. What is wrong is told by [`Traffic::end`].
pub(crate) struct Traffic {
    tasks: JoinSet<()>,
    ended: Arc<AtomicBool>,
    reads: Arc<AtomicU64>,
}

impl Traffic {
    pub(crate) fn start<const N: usize>(world: &World, instances: [&Instance; N]) -> Self {
        let history: Arc<Vec<Committed>> = Arc::new(KEYS.map(|_| Mutex::default()).collect());
        let mut traffic = Self { tasks: JoinSet::new(), ended: Arc::default(), reads: Arc::default() };
        // Writes don't stand in the loaders' way.
        let writing = pool(&world.database, &world.name);
        for (writer, instance) in instances.into_iter().enumerate() {
            let keys = KEYS.skip(writer).step_by(N).collect();
            let (perto, ended) = (instance.perto.clone(), Arc::clone(&traffic.ended));
            traffic.tasks.spawn(write(perto, writing.clone(), keys, Arc::clone(&history), ended));
            let (items, reads) = (instance.items.clone(), Arc::clone(&traffic.reads));
            traffic.tasks.spawn(read(items, Arc::clone(&history), Arc::clone(&traffic.ended), reads));
        }
        traffic
    }

    /// Goes on until there were some, on a busy machine.
    ///
    /// # Panics
    /// If any read was wrong, or if there were hardly any.
    pub(crate) async fn end(mut self) {
        eventually("there were fresh reads", async || self.reads.load(Ordering::Relaxed) > 100).await;
        self.ended.store(true, Ordering::Release);
        while let Some(task) = ends("reads and writes", self.tasks.join_next()).await {
            task.unwrap();
        }
    }
}

async fn write(
    perto: Perto,
    pool: PgPool,
    keys: Vec<i64>,
    history: Arc<Vec<Committed>>,
    ended: Arc<AtomicBool>,
) {
    for (v, id) in (1..).zip(keys.iter().cycle()) {
        if ended.load(Ordering::Acquire) {
            return;
        }
        let mut tx = pool.begin().await.unwrap();
        let sql = format!(
            "insert into items (id, v) values ({id}, {v}) on conflict (id) do update set v = excluded.v"
        );
        sqlx::raw_sql(AssertSqlSafe(sql)).execute(&mut *tx).await.unwrap();
        let pending = perto.pending(&mut tx).await.unwrap();
        tx.commit().await.unwrap();
        history[usize::try_from(id - KEYS.start).unwrap()].lock().push((v, Instant::now()));
        if let Some(pending) = pending {
            perto.announce_pending(pending).await;
        }
        tokio::time::sleep(BETWEEN_WRITES).await;
    }
}

async fn read(
    items: Cache<i64, i64>,
    history: Arc<Vec<Committed>>,
    ended: Arc<AtomicBool>,
    reads: Arc<AtomicU64>,
) {
    for (id, versions) in KEYS.zip(history.iter()).collect::<Vec<_>>().into_iter().cycle() {
        if ended.load(Ordering::Acquire) {
            return;
        }
        let began = Instant::now();
        let read = ends("a read", items.get(&id)).await.unwrap();
        if read.freshness == Freshness::Fresh {
            let visible = versions.lock().iter().filter(|(_, at)| *at + BOUND < began).map(|(v, _)| *v).max();
            let (value, visible) = (read.value().copied().unwrap_or_default(), visible.unwrap_or_default());
            assert!(
                value >= visible,
                "{id}: {value} is served as fresh, {visible} was committed a bound before"
            );
            reads.fetch_add(1, Ordering::Relaxed);
        }
        tokio::time::sleep(Duration::from_micros(500)).await;
    }
}
