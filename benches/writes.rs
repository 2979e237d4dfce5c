//! What a write costs, and how fast it gets elsewhere, each beside its bare operation in turns. Medians of the rounds' ratios.
//!
//! `ENGINES=private make bench ARGS='--bench writes'`, with `-- updates` or `-- elsewhere` for a half of it. `ROUNDS` in the
//! environment takes another number of rounds. Prints Markdown. Updates are `pgbench`'s, of `PERTO_PG_BIN` or `PATH`.
#![allow(
    missing_docs,
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    clippy::cast_possible_wrap,
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

use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::StreamExt as _;
use futures_util::future::BoxFuture;
use perto::postgres::{self, Watch};
use perto::{Bus, Cache, Loaded, Perto, RemoteError, State, Subscription};
use setup::{Bed, Message, ROWS, median, report};
use sqlx::{AssertSqlSafe, Connection as _, PgConnection};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

const ROUNDS: usize = 7;
/// Of each table in each round.
const TURN_SECONDS: &str = "3";
/// Of each way to tell others in each round.
const TIMES: i64 = 400;

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() {
    // On a worker, as what it is compared with.
    #[expect(clippy::disallowed_methods, reason = "awaited here")]
    tokio::spawn(all()).await.expect("the bench");
}

async fn all() {
    let bed = Bed::make().await;
    bed.watch().await;
    let rounds = std::env::var("ROUNDS").ok().and_then(|text| text.parse().ok()).unwrap_or(ROUNDS);
    let only: Vec<String> = std::env::args().skip(1).filter(|word| !word.starts_with('-')).collect();
    let wanted = |name: &str| only.is_empty() || only.iter().any(|word| word == name);
    if wanted("updates") {
        pgbenches(&bed, rounds).await;
    }
    if wanted("elsewhere") {
        elsewhere(&bed, rounds).await;
    }
    bed.clean_up().await;
}

/// A name for the table and for the bar, and the columns that it is watched for. `n` is what the update changes.
const TABLES: [(&str, &str, Option<&[&str]>); 4] = [
    ("plain", "", None),
    ("any_column", "write", Some(&[])),
    ("unchanged", "write_of_other_columns", Some(&["name"])),
    ("changed", "write_of_named_columns", Some(&["n"])),
];

/// One-row updates by four clients: to a table that nobody watches, and to its copies. No instance runs.
async fn pgbenches(bed: &Bed, rounds: usize) {
    let mut connection = PgConnection::connect(&bed.postgres_url).await.expect("DATABASE_URL");
    let schema = &bed.schema;
    let scripts = std::env::temp_dir().join(format!("perto-{schema}"));
    std::fs::create_dir_all(&scripts).expect("a folder for scripts");
    for (table, _, columns) in TABLES {
        let sql = format!(
            "create table {schema}.{table} (id bigint primary key, name text not null, n int not null) with (fillfactor = 50); \
             insert into {schema}.{table} select id, 'name ' || id, 0 from generate_series(1, {ROWS}) id; \
             vacuum analyze {schema}.{table}"
        );
        for sql in sql.split("; ") {
            sqlx::raw_sql(AssertSqlSafe(sql)).execute(&mut connection).await.expect("a table");
        }
        if let Some(columns) = columns {
            let watch = Watch {
                schema: schema.clone(),
                table: format!("{schema}.{table}"),
                cache: table.to_owned(),
                key: "id".to_owned(),
                columns: columns.iter().map(|&column| column.to_owned()).collect(),
            };
            postgres::watch(&mut connection, &watch).await.expect("watch");
        }
        let script =
            format!("\\set id random(1, {ROWS})\nupdate {schema}.{table} set n = n + 1 where id = :id;\n");
        std::fs::write(scripts.join(table), script).expect("a script");
    }
    for (commits, suffix) in [("on", ""), ("off", "_async")] {
        let mut speeds = TABLES.map(|_| Vec::new());
        for _ in 0..rounds {
            for ((table, ..), speeds) in TABLES.into_iter().zip(&mut speeds) {
                let url = bed.postgres_url.clone();
                let script = scripts.join(table);
                let pgbench = tokio::task::spawn_blocking(move || pgbench(&url, commits, &script));
                speeds.push(pgbench.await.expect("pgbench"));
                let truncate = format!("truncate {schema}.invalidation");
                sqlx::raw_sql(AssertSqlSafe(truncate)).execute(&mut connection).await.expect("truncate");
            }
        }
        println!(
            "\n| synchronous_commit {commits} | updates/s | ratio | from, to |\n| --- | ---: | ---: | ---: |"
        );
        for ((table, name, _), speed) in TABLES.into_iter().zip(&speeds) {
            let of_plain: Vec<f64> = speed.iter().zip(&speeds[0]).map(|(ours, plain)| ours / plain).collect();
            print_row(table, median(speed), &of_plain);
            if !name.is_empty() {
                report(&format!("{name}_vs_update{suffix}"), &of_plain);
            }
        }
    }
    std::fs::remove_dir_all(scripts).expect("remove the scripts");
}

fn print_row(name: &str, figure: f64, ratios: &[f64]) {
    let least = ratios.iter().copied().fold(f64::INFINITY, f64::min);
    let most = ratios.iter().copied().fold(0.0, f64::max);
    println!("| {name} | {figure:.0} | {:.2} × | {least:.2}, {most:.2} |", median(ratios));
}

/// Transactions a second.
fn pgbench(url: &str, commits: &str, script: &PathBuf) -> f64 {
    let folder = std::env::var("PERTO_PG_BIN").map(PathBuf::from).unwrap_or_default();
    let beside = folder.join("pgbench");
    let program = if beside.is_file() { beside } else { PathBuf::from("pgbench") };
    let output = Command::new(program)
        .args(["-n", "-M", "prepared", "-c", "4", "-j", "2", "-T", TURN_SECONDS, "-f"])
        .arg(script)
        .arg(url)
        .env("PGOPTIONS", format!("-c synchronous_commit={commits}"))
        .output()
        .expect("pgbench runs");
    let said = String::from_utf8_lossy(&output.stdout);
    let speed = said.lines().find_map(|line| line.strip_prefix("tps = ")?.split(' ').next()?.parse().ok());
    speed.unwrap_or_else(|| panic!("{said}{}", String::from_utf8_lossy(&output.stderr)))
}

/// From the return of a commit, and from the call of an invalidation by hand, until another instance has evicted; and from a row that is
/// inserted as by hand until a bare message after it has come: beside a
/// message of the same length from `PUBLISH` to its subscriber, by the same client. That one follows the same commit to a table that
/// nobody watches: a connection that goes back to its pool is tested then, which takes its part of two cores.
async fn elsewhere(bed: &Bed, rounds: usize) {
    let sql = format!(
        "create table {0}.unwatched as select * from {0}.messages; alter table {0}.unwatched add primary key (id)",
        bed.schema
    );
    sqlx::raw_sql(AssertSqlSafe(sql)).execute(&bed.pool).await.expect("a table");
    let (writer, by_hand) = bed.instance::<i64>(64 << 20).await;
    let (reader, cache, mut evicted) = listening(bed).await;
    let mut bare = Bare::open(bed).await;
    let mut all = [const { Vec::new() }; 4];
    let (mut p50, mut p99) = ([const { Vec::new() }; 3], [const { Vec::new() }; 3]);
    for round in 0..rounds as i64 {
        let mut took = [const { Vec::new() }; 4];
        for n in 0..TIMES {
            let id = (round * TIMES + n) % ROWS;
            took[0].push(bare.publish(bed, id).await);
            cached(&cache, id, &mut evicted).await;
            took[1].push(commit(bed, &writer, &cache, id, &mut evicted).await);
            cached(&cache, id, &mut evicted).await;
            let began = Instant::now();
            let (done, at) = tokio::join!(by_hand.invalidate(&id), evicted.recv());
            done.expect("invalidate");
            assert!(cache.get_if_cached(&id).is_none(), "it was evicted");
            took[2].push((at.expect("the other instance hears of it") - began).as_secs_f64() * 1e6);
            took[3].push(bare.insert_and_publish(bed).await);
        }
        for way in 0..3 {
            p50[way].push(quantile(&took[way + 1], 0.5) / quantile(&took[0], 0.5));
            p99[way].push(quantile(&took[way + 1], 0.99) / quantile(&took[0], 0.99));
        }
        all.iter_mut().zip(took).for_each(|(all, took)| all.extend(took));
    }
    println!(
        "\n| until an eviction elsewhere | p50 µs | p99 µs | p50 ratio | from, to | p99 ratio | from, to |"
    );
    println!("| --- | ---: | ---: | ---: | ---: | ---: | ---: |");
    println!(
        "| PUBLISH to subscriber | {:.0} | {:.0} | | | | |",
        quantile(&all[0], 0.5),
        quantile(&all[0], 0.99)
    );
    let ways = ["the commit's return", "Cache::invalidate", "a row inserted, then PUBLISH"];
    for (way, name) in ways.into_iter().enumerate() {
        let took = &all[way + 1];
        let ranges = [&p50[way], &p99[way]].map(|ratios| {
            let least = ratios.iter().copied().fold(f64::INFINITY, f64::min);
            let most = ratios.iter().copied().fold(0.0, f64::max);
            format!("{:.2} × | {least:.2}, {most:.2}", median(ratios))
        });
        println!(
            "| {name} | {:.0} | {:.0} | {} |",
            quantile(took, 0.5),
            quantile(took, 0.99),
            ranges.join(" | ")
        );
    }
    report("propagation_p50_vs_pubsub", &p50[0]);
    report("propagation_p99_vs_pubsub", &p99[0]);
    report("invalidate_vs_publish", &p50[1]);
    writer.shutdown().await;
    reader.shutdown().await;
}

fn quantile(took: &[f64], q: f64) -> f64 {
    let mut sorted = took.to_vec();
    sorted.sort_unstable_by(f64::total_cmp);
    sorted[((sorted.len() - 1) as f64 * q) as usize]
}

/// Has the other instance hold the key, and forgets what it was told of before.
async fn cached(cache: &Cache<i64, Message>, id: i64, evicted: &mut UnboundedReceiver<Instant>) {
    while cache.get_if_cached(&id).is_none() {
        cache.get(&id).await.expect("read");
    }
    while evicted.try_recv().is_ok() {}
}

async fn update(bed: &Bed, table: &str, id: i64) -> sqlx::Transaction<'static, sqlx::Postgres> {
    let sql = format!("update {}.{table} set author = author || '!' where id = $1", bed.schema);
    let mut tx = bed.pool.begin().await.expect("begin");
    sqlx::query(AssertSqlSafe(sql)).bind(id).execute(&mut *tx).await.expect("update");
    tx
}

async fn commit(
    bed: &Bed,
    writer: &Perto,
    cache: &Cache<i64, Message>,
    id: i64,
    evicted: &mut UnboundedReceiver<Instant>,
) -> f64 {
    let mut tx = update(bed, "messages", id).await;
    let pending = writer.pending(&mut tx).await.expect("pending").expect("watched");
    assert!(cache.get_if_cached(&id).is_some(), "nothing evicts before the commit");
    tx.commit().await.expect("commit");
    let began = Instant::now();
    let (_token, at) = tokio::join!(writer.announce_pending(pending), evicted.recv());
    assert!(cache.get_if_cached(&id).is_none(), "it was evicted");
    (at.expect("the other instance hears of it") - began).as_secs_f64() * 1e6
}

/// An instance, its cache, and when it has done what a hint said.
async fn listening(bed: &Bed) -> (Perto, Cache<i64, Message>, UnboundedReceiver<Instant>) {
    let tiers = perto::redis::tiers(&bed.redis_url, &bed.schema).expect("REDIS_URL");
    let (told, evicted) = unbounded_channel();
    let perto = Perto::builder(&bed.schema)
        .schema(&bed.schema)
        .bound(Duration::from_secs(30))
        .postgres(&bed.postgres_url)
        .remote(tiers.remote)
        .bus(Arc::new(Timed { bus: tiers.bus, told }))
        .build()
        .expect("settings");
    let (pool, sql) = (bed.pool.clone(), bed.load_sql());
    let cache = perto
        .cache::<i64, Message>("messages")
        .loader(move |load: perto::Load<i64>| {
            let query = postgres::query_as::<(i64, String, String)>(&sql).bind(load.keys.to_vec());
            let pool = pool.clone();
            async move {
                let rows = query.fetch(&pool).await?;
                let loaded: Loaded<i64, Message> =
                    rows.by_key(|(id, author, body)| (id, Message { id, author, body }));
                Ok::<_, sqlx::Error>(loaded)
            }
        })
        .expect("cache");
    perto.start().await.expect("start");
    while perto.health().state != State::Coherent {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    (perto, cache, evicted)
}

/// Tells when the instance has done what a message said: when it asks for the next one.
#[derive(Debug)]
struct Timed {
    bus: Arc<dyn Bus>,
    told: UnboundedSender<Instant>,
}

impl Bus for Timed {
    fn publish(&self, message: bytes::Bytes) -> BoxFuture<'_, Result<Option<u64>, RemoteError>> {
        self.bus.publish(message)
    }

    fn subscribe(&self) -> BoxFuture<'_, Result<Box<dyn Subscription>, RemoteError>> {
        Box::pin(async {
            let subscription = self.bus.subscribe().await?;
            Ok(Box::new(Heard { subscription, told: self.told.clone(), taken: false }) as _)
        })
    }
}

#[derive(Debug)]
struct Heard {
    subscription: Box<dyn Subscription>,
    told: UnboundedSender<Instant>,
    /// A message that has not been told of.
    taken: bool,
}

impl Subscription for Heard {
    fn next(&mut self) -> BoxFuture<'_, Result<bytes::Bytes, RemoteError>> {
        if std::mem::take(&mut self.taken) {
            let _nobody_listens = self.told.send(Instant::now());
        }
        Box::pin(async {
            let message = self.subscription.next().await;
            self.taken = true;
            message
        })
    }

    fn ping(&mut self) -> BoxFuture<'_, Result<(), RemoteError>> {
        self.subscription.ping()
    }
}

/// What one would build without Perto.
struct Bare {
    publisher: redis::aio::MultiplexedConnection,
    inserter: PgConnection,
    channel: String,
    message: String,
    heard: UnboundedReceiver<Instant>,
}

impl Bare {
    async fn open(bed: &Bed) -> Self {
        let client = redis::Client::open(bed.redis_url.as_str()).expect("REDIS_URL");
        let mut subscriber = client.get_async_pubsub().await.expect("subscribe");
        let channel = format!("perto:{}:bare", bed.schema);
        subscriber.subscribe(&channel).await.expect("subscribe");
        let (told, heard) = unbounded_channel();
        // A task of its own, as the listener of an instance is one.
        #[expect(clippy::disallowed_methods, reason = "it ends with the process")]
        tokio::spawn(async move {
            let mut messages = subscriber.into_on_message();
            while messages.next().await.is_some() {
                let _nobody_listens = told.send(Instant::now());
            }
        });
        let inserter = PgConnection::connect(&bed.postgres_url).await.expect("DATABASE_URL");
        Self { publisher: bed.connection().await, inserter, channel, message: "x".repeat(64), heard }
    }

    async fn publish(&mut self, bed: &Bed, id: i64) -> f64 {
        let tx = update(bed, "unwatched", id).await;
        tx.commit().await.expect("commit");
        let began = Instant::now();
        self.published(began).await
    }

    async fn published(&mut self, began: Instant) -> f64 {
        let publish = redis::cmd("PUBLISH").arg(&self.channel).arg(&self.message).to_owned();
        let (published, at) = tokio::join!(publish.query_async::<()>(&mut self.publisher), self.heard.recv());
        published.expect("publish");
        (at.expect("the subscriber hears of it") - began).as_secs_f64() * 1e6
    }

    /// What an invalidation by hand can't do without: a row of the log, which waits for no disk, and a message.
    async fn insert_and_publish(&mut self, bed: &Bed) -> f64 {
        let sql = format!(
            "insert into {}.invalidation (cache, keys) values ('bare', '{{7}}') returning xid::text",
            bed.schema
        );
        let began = Instant::now();
        sqlx::query(AssertSqlSafe(sql)).execute(&mut self.inserter).await.expect("insert");
        self.published(began).await
    }
}
