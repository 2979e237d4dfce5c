//! Caches that an instance does not declare, beside one that it does, on one log and one channel.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use perto::{Load, Loaded, Perto, State, Tier};

use crate::support::wait::eventually;
use crate::world::{POLL_INTERVAL, World, coherent};

const A_SECOND: u32 = 10_000;
const AT_ONCE: u32 = 50;
const LASTS: Duration = Duration::from_secs(4);

/// As many invalidations a second, half of them by SQL and half told of by an instance that declares their cache.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flood_of_what_an_instance_does_not_declare_brings_it_no_rows() {
    let world = World::new().await;
    let reader = world.start().await;
    let builder =
        Perto::builder(&world.name).schema(&world.name).postgres(&world.database).redis(&world.redis);
    let noisy = builder.poll_interval(POLL_INTERVAL).build().unwrap();
    let loader = async |load: Load<i64>| Ok::<Loaded<i64, i64>, sqlx::Error>(nothing(&load));
    let noise = noisy.cache::<i64, i64>("noise").tables([""; 0]).loader(loader).unwrap();
    noisy.start().await.unwrap();
    coherent([&reader]).await;
    eventually("the other one is coherent", async || noisy.health().state == State::Coherent).await;
    world.put(1, 1).await;
    world.put(2, 1).await;
    for id in [1, 2] {
        assert_eq!(reader.fresh(id).await, Some(1));
    }
    reader.polled().await;
    let before = reader.perto.stats();
    let (began, over) = (Instant::now(), AtomicBool::new(false));
    let flooding = async {
        let mut sent = 0;
        while began.elapsed() < LASTS {
            let keys: Vec<i64> = (sent..sent + i64::from(AT_ONCE)).collect();
            if sent / i64::from(AT_ONCE) % 2 == 0 {
                world
                    .sql(&format!(
                        "insert into invalidation (cache, keys) select 'noise', array[n::text] \
                         from generate_series({}, {}) n",
                        keys[0],
                        keys[keys.len() - 1]
                    ))
                    .await;
            } else {
                noise.invalidate_many(&keys).await.unwrap();
            }
            sent += i64::from(AT_ONCE);
            let due = Duration::from_secs(1) * u32::try_from(sent).unwrap() / A_SECOND;
            tokio::time::sleep(due.saturating_sub(began.elapsed())).await;
        }
        over.store(true, Ordering::Release);
        u64::try_from(sent).unwrap()
    };
    let reading = async {
        let (mut v, mut reads) = (1, 0);
        while !over.load(Ordering::Acquire) {
            v += 1;
            world.put(1, v).await;
            eventually("a write by SQL is seen", async || reader.fresh(1).await == Some(v)).await;
            assert_eq!(reader.fresh_from(2).await, (Some(1), Tier::Local), "nobody writes it");
            reads += 1;
        }
        reads
    };
    let (sent, rounds) = tokio::join!(flooding, reading);
    let stats = reader.perto.stats();
    assert_eq!(stats.rows - before.rows, rounds, "one for each write, and none of the flood");
    assert_eq!((stats.recoveries, stats.gaps), (before.recoveries, before.gaps));
    assert!(rounds >= 4 && stats.hints > before.hints, "{rounds} {stats:?}");
    eventually("whoever declares it has them all", async || noisy.stats().rows >= sent).await;
    noisy.shutdown().await;
    reader.perto.shutdown().await;
}

fn nothing(_: &Load<i64>) -> Loaded<i64, i64> {
    Loaded::computed()
}
