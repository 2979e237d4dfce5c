//! Each tier beside its bare operation, taken in turns in one run: medians, ratios, a table and a plot.
//!
//! `make bench`, or with `DATABASE_URL` and `REDIS_URL` set: `cargo bench --bench tiers`. Prints Markdown; writes
//! `benches/tiers.svg`.
#![allow(
    missing_docs,
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a bench"
)]
#![allow(
    clippy::panic,
    clippy::print_stdout,
    clippy::missing_panics_doc,
    unreachable_pub,
    dead_code,
    reason = "a bench"
)]

mod setup;

use std::fmt::Write as _;
use std::hint::black_box;
use std::time::{Duration, Instant};

use futures_util::StreamExt;
use perto::{Cache, Perto, Tier};
use setup::{Bed, Message, ROWS, bare_moka, zipf};

/// Rounds. Each takes every operation once (L1's a hundred times), so that noise hits all alike.
const ROUNDS: usize = 3_000;
const PROPAGATIONS: usize = 500;
const L1_BATCH: u32 = 100;

/// One operation's times.
struct Times {
    name: &'static str,
    of: &'static str,
    all: Vec<Duration>,
}

impl Times {
    fn new(name: &'static str, of: &'static str) -> Self {
        Self { name, of, all: Vec::new() }
    }

    fn quantile(&self, q: f64) -> f64 {
        let mut sorted = self.all.clone();
        sorted.sort_unstable();
        sorted[((sorted.len() - 1) as f64 * q) as usize].as_secs_f64() * 1e6
    }
}

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() {
    let bed = Bed::make().await;
    bed.watch().await;
    let mut times = tiers(&bed).await;
    times.extend(writes(&bed).await);
    times.extend(propagation(&bed).await);
    bed.clean_up().await;
    print_table(&times);
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../benches/tiers.svg");
    std::fs::write(path, plot(&times)).expect("write the plot");
}

async fn tiers(bed: &Bed) -> Vec<Times> {
    let ids = zipf(ROUNDS * L1_BATCH as usize);
    let moka = bare_moka::<i64>();
    let (near, l1) = bed.instance::<i64>(64 << 20).await;
    let (far, l2) = bed.instance::<i64>(0).await;
    let all: Vec<i64> = (0..ROWS).collect();
    l1.get_many(&all).await.expect("load");
    let mut redis = bed.connection().await;
    for id in 0..ROWS {
        let bytes = bincode::serde::encode_to_vec(message(id), bincode::config::standard()).expect("encode");
        let key = format!("perto:{}:bare:{id}", bed.schema);
        redis::cmd("SET")
            .arg(key)
            .arg(bytes)
            .arg("EX")
            .arg(3_600)
            .query_async::<()>(&mut redis)
            .await
            .expect("SET");
    }
    let sql = bed.load_sql();
    let mut times = [
        Times::new("bare moka get", ""),
        Times::new("L1 hit", "bare moka get"),
        Times::new("bare GET + decode", ""),
        Times::new("L2 hit", "bare GET + decode"),
        Times::new("bare query", ""),
        Times::new("miss (GET, query, fill)", "bare query"),
    ];
    for round in 0..ROUNDS {
        let batch = &ids[round * L1_BATCH as usize..][..L1_BATCH as usize];
        let id = batch[0];
        let begun = Instant::now();
        for id in batch {
            black_box(moka.get(id));
        }
        times[0].all.push(begun.elapsed() / L1_BATCH);
        let begun = Instant::now();
        for id in batch {
            black_box(l1.get(id).await.is_ok());
        }
        times[1].all.push(begun.elapsed() / L1_BATCH);

        let key = format!("perto:{}:bare:{id}", bed.schema);
        let begun = Instant::now();
        black_box(get_bare(&mut redis, &key).await);
        times[2].all.push(begun.elapsed());
        let begun = Instant::now();
        let read = l2.get(&id).await.expect("read");
        times[3].all.push(begun.elapsed());
        assert_eq!(read.tier, Tier::Remote);

        // Absent rows are loaded like others, and none of these is in L2 yet.
        let absent = ROWS + round as i64;
        let begun = Instant::now();
        let query = sqlx::query_as::<_, (i64, String, String)>(sqlx::AssertSqlSafe(sql.as_str()));
        black_box(query.bind(vec![absent]).fetch_all(&bed.pool).await.expect("query"));
        times[4].all.push(begun.elapsed());
        let begun = Instant::now();
        let read = l2.get(&absent).await.expect("read");
        times[5].all.push(begun.elapsed());
        assert_eq!(read.tier, Tier::Load);
    }
    near.shutdown().await;
    far.shutdown().await;
    times.into()
}

/// A write with its invalidation recorded by the trigger, beside the same write to a table that nobody watches.
async fn writes(bed: &Bed) -> Vec<Times> {
    let schema = &bed.schema;
    let copy = format!(
        "create table {schema}.unwatched (like {schema}.messages including all); \
         insert into {schema}.unwatched select * from {schema}.messages; analyze {schema}.unwatched"
    );
    sqlx::raw_sql(sqlx::AssertSqlSafe(copy)).execute(&bed.pool).await.expect("copy");
    let update = |table: &str| format!("update {schema}.{table} set author = author where id = $1");
    let (watched, unwatched) = (update("messages"), update("unwatched"));
    let mut times =
        [Times::new("update, not watched", ""), Times::new("update, watched", "update, not watched")];
    for (round, id) in zipf(ROUNDS).into_iter().enumerate() {
        for turn in 0..2 {
            let at = (round + turn) % 2;
            let sql = if at == 1 { watched.as_str() } else { unwatched.as_str() };
            let begun = Instant::now();
            sqlx::query(sqlx::AssertSqlSafe(sql)).bind(id).execute(&bed.pool).await.expect("update");
            times[at].all.push(begun.elapsed());
        }
    }
    times.into()
}

/// From the commit on one instance to the eviction on another, beside a bare `PUBLISH` to its subscriber.
async fn propagation(bed: &Bed) -> Vec<Times> {
    let (writer, _) = bed.instance::<i64>(64 << 20).await;
    let (reader, cache) = bed.instance::<i64>(64 << 20).await;
    let client = redis::Client::open(bed.redis_url.as_str()).expect("REDIS_URL");
    let mut publisher = bed.connection().await;
    let mut subscriber = client.get_async_pubsub().await.expect("subscribe");
    let channel = format!("perto:{}:bare", bed.schema);
    subscriber.subscribe(&channel).await.expect("subscribe");
    let mut messages = subscriber.into_on_message();
    let mut times = [
        Times::new("bare PUBLISH to subscriber", ""),
        Times::new("commit to eviction elsewhere", "bare PUBLISH to subscriber"),
    ];
    for id in 0..PROPAGATIONS as i64 {
        let begun = Instant::now();
        let publish = redis::cmd("PUBLISH").arg(&channel).arg("x").to_owned();
        let (published, message) = tokio::join!(publish.query_async::<()>(&mut publisher), messages.next());
        times[0].all.push(begun.elapsed());
        published.expect("publish");
        assert!(message.is_some());
        times[1].all.push(evict_elsewhere(bed, &writer, &cache, id).await);
    }
    writer.shutdown().await;
    reader.shutdown().await;
    times.into()
}

async fn evict_elsewhere(bed: &Bed, writer: &Perto, cache: &Cache<i64, Message>, id: i64) -> Duration {
    cache.get(&id).await.expect("read");
    let sql = format!("update {}.messages set author = author || '!' where id = $1", bed.schema);
    let mut tx = bed.pool.begin().await.expect("begin");
    sqlx::query(sqlx::AssertSqlSafe(sql)).bind(id).execute(&mut *tx).await.expect("update");
    let pending = writer.pending(&mut tx).await.expect("pending").expect("watched");
    assert!(cache.get_if_cached(&id).is_some(), "nothing evicts before the commit");
    tx.commit().await.expect("commit");
    let begun = Instant::now();
    let evicted = async {
        while cache.get_if_cached(&id).is_some() {
            tokio::task::yield_now().await;
        }
        begun.elapsed()
    };
    tokio::join!(writer.announce_pending(pending), evicted).1
}

fn message(id: i64) -> Message {
    Message { id, author: format!("author {id}"), body: "x".repeat(230) }
}

async fn get_bare(redis: &mut redis::aio::MultiplexedConnection, key: &str) -> Message {
    let bytes: bytes::Bytes = redis::cmd("GET").arg(key).query_async(redis).await.expect("GET");
    bincode::serde::decode_from_slice(&bytes, bincode::config::standard()).expect("decode").0
}

fn print_table(times: &[Times]) {
    println!(
        "\n| Operation | p50 µs | p99 µs | p50 ratio | p99 ratio |\n| --- | ---: | ---: | ---: | ---: |"
    );
    for row in times {
        let (p50, p99) = (row.quantile(0.5), row.quantile(0.99));
        let ratio = |q: f64| match times.iter().find(|bare| bare.name == row.of) {
            Some(bare) => format!("{:.2} ×", row.quantile(q) / bare.quantile(q)),
            None => String::new(),
        };
        println!("| {} | {p50:.2} | {p99:.2} | {} | {} |", row.name, ratio(0.5), ratio(0.99));
    }
}

/// Horizontal bars from p50 to p99 on a logarithmic scale, one a row: 0.1 µs to 100 ms.
fn plot(times: &[Times]) -> String {
    let (left, width, step) = (230.0, 520.0, 26.0);
    let x = |us: f64| left + width * (us.max(0.1).log10() + 1.0) / 6.0;
    let height = 40.0 + step * times.len() as f64;
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 780 {}\" font-family=\"sans-serif\" font-size=\"13\">\n\
         <rect width=\"100%\" height=\"100%\" fill=\"#fff\"/>\n",
        height + 30.0
    );
    for power in -1..=5 {
        let us = 10_f64.powi(power);
        let label = if us < 1_000.0 { format!("{us} µs") } else { format!("{} ms", us / 1_000.0) };
        let _ = writeln!(
            svg,
            "<line x1=\"{0:.0}\" x2=\"{0:.0}\" y1=\"20\" y2=\"{height:.0}\" stroke=\"#ddd\"/>\
             <text x=\"{0:.0}\" y=\"{1:.0}\" text-anchor=\"middle\" fill=\"#555\">{label}</text>",
            x(us),
            height + 18.0
        );
    }
    for (at, row) in times.iter().enumerate() {
        let (p50, p99, y) = (x(row.quantile(0.5)), x(row.quantile(0.99)), 28.0 + step * at as f64);
        let color = if row.of.is_empty() { "#9aa5b1" } else { "#1f6feb" };
        let _ = writeln!(
            svg,
            "<text x=\"{:.0}\" y=\"{:.0}\" text-anchor=\"end\">{}</text>\
             <rect x=\"{p50:.1}\" y=\"{y:.1}\" width=\"{:.1}\" height=\"14\" fill=\"{color}\" opacity=\"0.45\"/>\
             <rect x=\"{:.1}\" y=\"{y:.1}\" width=\"4\" height=\"14\" fill=\"{color}\"/>",
            left - 10.0,
            y + 12.0,
            row.name,
            (p99 - p50).max(1.0),
            p50 - 2.0
        );
    }
    svg + "</svg>\n"
}
