//! The read path beside the bare operation of each tier, by criterion: `make bench`.
#![allow(
    missing_docs,
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a bench"
)]
#![allow(clippy::panic, clippy::missing_panics_doc, unreachable_pub, dead_code, reason = "a bench")]

mod setup;

use std::hint::black_box;
use std::sync::atomic::{AtomicUsize, Ordering};

use criterion::{Criterion, criterion_group, criterion_main};
use setup::{Bed, Id, Message, ROWS, bare_moka, zipf};
use tokio::runtime::{Builder, Runtime};

fn runtime() -> Runtime {
    Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("runtime")
}

fn l1(c: &mut Criterion) {
    let runtime = runtime();
    let bed = runtime.block_on(Bed::make());
    let ids = zipf(100_000);
    l1_of::<i64>(c, &runtime, &bed, &ids, "i64");
    l1_of::<String>(c, &runtime, &bed, &ids, "string");
    runtime.block_on(bed.clean_up());
}

fn l1_of<K: perto::Key + From<Id>>(c: &mut Criterion, runtime: &Runtime, bed: &Bed, ids: &[i64], name: &str) {
    let keys: Vec<K> = ids.iter().map(|id| K::from(Id(*id))).collect();
    let moka = bare_moka::<K>();
    let (perto, cache) = runtime.block_on(bed.instance::<K>(64 << 20));
    let all: Vec<K> = (0..ROWS).map(|id| K::from(Id(id))).collect();
    runtime.block_on(cache.get_many(&all)).expect("load");
    let mut group = c.benchmark_group(format!("l1 hit, {name} key"));
    let next = AtomicUsize::new(0);
    let key = || &keys[next.fetch_add(1, Ordering::Relaxed) % keys.len()];
    group.bench_function("bare moka", |b| {
        b.to_async(runtime).iter(|| async { black_box(moka.get(key())) });
    });
    group.bench_function("perto", |b| {
        b.to_async(runtime).iter(|| async { black_box(cache.get(key()).await) });
    });
    group.finish();
    runtime.block_on(perto.shutdown());
}

fn l2(c: &mut Criterion) {
    let runtime = runtime();
    let bed = runtime.block_on(Bed::make());
    let ids = zipf(100_000);
    // L1 holds nothing, so each read goes to Redis.
    let (perto, cache) = runtime.block_on(bed.instance::<i64>(0));
    let all: Vec<i64> = (0..ROWS).collect();
    runtime.block_on(cache.get_many(&all)).expect("load");
    let mut redis = runtime.block_on(bed.connection());
    runtime.block_on(fill_bare(&bed, &mut redis));
    let mut group = c.benchmark_group("l2 hit");
    let next = AtomicUsize::new(0);
    let id = || ids[next.fetch_add(1, Ordering::Relaxed) % ids.len()];
    group.bench_function("bare GET + decode", |b| {
        b.to_async(&runtime).iter(|| {
            let mut redis = redis.clone();
            let key = format!("perto:{}:bare:{}", bed.schema, id());
            async move { black_box(get_bare(&mut redis, &key).await) }
        });
    });
    group.bench_function("perto", |b| {
        b.to_async(&runtime).iter(|| async { black_box(cache.get(&id()).await) });
    });
    group.finish();
    runtime.block_on(perto.shutdown());
    runtime.block_on(bed.clean_up());
}

fn miss(c: &mut Criterion) {
    let runtime = runtime();
    let bed = runtime.block_on(Bed::make());
    let (perto, cache) = runtime.block_on(bed.instance::<i64>(0));
    let sql = bed.load_sql();
    let mut group = c.benchmark_group("miss");
    // Rows that are not there are loaded like others, and there is no end of them: none is in L2 yet.
    let next = AtomicUsize::new(ROWS as usize);
    let id = || next.fetch_add(1, Ordering::Relaxed) as i64;
    group.bench_function("bare query", |b| {
        b.to_async(&runtime).iter(|| async {
            let query = sqlx::query_as::<_, (i64, String, String)>(sqlx::AssertSqlSafe(sql.as_str()));
            black_box(query.bind(vec![id()]).fetch_all(&bed.pool).await)
        });
    });
    group.bench_function("perto", |b| {
        b.to_async(&runtime).iter(|| async { black_box(cache.get(&id()).await) });
    });
    group.finish();
    runtime.block_on(perto.shutdown());
    runtime.block_on(bed.clean_up());
}

async fn fill_bare(bed: &Bed, redis: &mut redis::aio::MultiplexedConnection) {
    for id in 0..ROWS {
        let message = Message { id, author: format!("author {id}"), body: "x".repeat(230) };
        let bytes = bincode::serde::encode_to_vec(&message, bincode::config::standard()).expect("encode");
        let key = format!("perto:{}:bare:{id}", bed.schema);
        redis::cmd("SET")
            .arg(key)
            .arg(bytes)
            .arg("EX")
            .arg(3_600)
            .query_async::<()>(redis)
            .await
            .expect("SET");
    }
}

async fn get_bare(redis: &mut redis::aio::MultiplexedConnection, key: &str) -> Message {
    let bytes: bytes::Bytes = redis::cmd("GET").arg(key).query_async(redis).await.expect("GET");
    bincode::serde::decode_from_slice(&bytes, bincode::config::standard()).expect("decode").0
}

criterion_group!(benches, l1, l2, miss);
criterion_main!(benches);
