//! What grows with what: entries, caches, instances, writes, rows of the log. Each part in a process of its own, three rounds in
//! turn, medians; a plot of each figure beside what it was at the smallest size.
//!
//! `make bench ARGS='--bench growth'`, with `-- PART...` for some of it: `entries`, `caches`, `instances`, `writes`, `log`. Prints
//! Markdown, and writes `benches/growth-PART.svg`. `MOST_LOG_ROWS` takes the log further than a million rows.
#![allow(missing_docs, clippy::cast_precision_loss, clippy::cast_possible_truncation, reason = "a bench")]
#![allow(clippy::cast_sign_loss, clippy::cast_possible_wrap, clippy::cast_lossless, reason = "a bench")]
#![allow(clippy::panic, clippy::print_stdout, clippy::print_stderr, unreachable_pub, reason = "a bench")]
#![allow(dead_code, clippy::missing_panics_doc, reason = "a bench")]

mod setup;

use std::fmt::Write as _;
use std::hint::black_box;
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::FutureExt as _;
use futures_util::future::join_all;
use perto::sim::Sim;
use perto::{Cache, Load, Loaded, Perto, ReadOptions, State};
use setup::{Bed, Id, Message, ROWS, median, zipf};
use sqlx::{AssertSqlSafe, Executor as _};

const ROUNDS: usize = 3;
/// What one size is measured for, where it is measured for a time.
const TIME: Duration = Duration::from_secs(3);

/// What grows, the sizes, and what is measured at each.
struct Part {
    name: &'static str,
    x: &'static str,
    sizes: &'static [u64],
    columns: &'static [&'static str],
}

const PARTS: [Part; 5] = [
    Part {
        name: "entries",
        x: "entries",
        sizes: &[1_000, 10_000, 100_000, 1_000_000],
        columns: &["hit, ns", "moka, ns", "bytes an entry", "moka, bytes"],
    },
    Part {
        name: "caches",
        x: "caches",
        sizes: &[1, 10, 50, 200],
        columns: &["start, ms", "hit, ns", "KiB a cache"],
    },
    Part {
        name: "instances",
        x: "instances",
        sizes: &[1, 2, 4, 8, 16, 32],
        columns: &[
            "polls a second",
            "Postgres, CPU ms a second",
            "commit to all evicted, µs",
            "loads of a changed key",
            "Redis, bytes sent a write",
            "connections to Postgres",
        ],
    },
    Part {
        name: "writes",
        x: "writes a second",
        sizes: &[1, 10, 100, 1_000, 10_000],
        columns: &["done", "reads a second", "L1 misses, %", "read `latest`, µs"],
    },
    Part {
        name: "log",
        x: "rows of the log",
        sizes: &[0, 10_000, 100_000, 1_000_000, 10_000_000],
        columns: &["start, ms", "read `latest`, µs", "trim, ms"],
    },
];

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).filter(|argument| argument != "--bench").collect();
    if let [name, size, "here"] = arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("runtime");
        let size = size.parse().expect("a number");
        let figures: Vec<String> =
            runtime.block_on(measured(name, size)).iter().map(f64::to_string).collect();
        println!("{}", figures.join(" "));
        return;
    }
    for part in
        PARTS.iter().filter(|part| arguments.is_empty() || arguments.iter().any(|name| name == part.name))
    {
        grow(part);
    }
}

fn grow(part: &Part) {
    let most: u64 =
        std::env::var("MOST_LOG_ROWS").ok().and_then(|most| most.parse().ok()).unwrap_or(1_000_000);
    let sizes: Vec<u64> =
        part.sizes.iter().copied().filter(|size| part.name != "log" || *size <= most).collect();
    let rounds: Vec<Vec<Vec<f64>>> =
        (0..ROUNDS).map(|_| sizes.iter().map(|size| apart(part.name, *size)).collect()).collect();
    let figure = |at: usize, column: usize| {
        median(&rounds.iter().map(|round| round[at][column]).collect::<Vec<f64>>())
    };
    println!("\n| {} | {} |", part.x, part.columns.join(" | "));
    println!("| ---: |{}", " ---: |".repeat(part.columns.len()));
    for (at, size) in sizes.iter().enumerate() {
        let shown = (0..part.columns.len()).map(|column| match figure(at, column) {
            figure if figure < 10.0 => format!("{figure:.2}"),
            figure => format!("{figure:.0}"),
        });
        println!("| {size} | {} |", shown.collect::<Vec<_>>().join(" | "));
    }
    let series: Vec<Vec<f64>> = (0..part.columns.len())
        .map(|column| (0..sizes.len()).map(|at| figure(at, column)).collect())
        .collect();
    let path = format!("{}/benches/growth-{}.svg", env!("CARGO_MANIFEST_DIR"), part.name);
    std::fs::write(path, plot(part, &sizes, &series)).expect("write the plot");
}

/// The figures of one size, measured in another process.
fn apart(name: &str, size: u64) -> Vec<f64> {
    let this = std::env::current_exe().expect("this program");
    let output = Command::new(this).args([name, &size.to_string(), "here"]).output().expect("start");
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    eprintln!("{name} {size}: {}", said.trim());
    said.split_whitespace().map(|figure| figure.parse().expect("a number")).collect()
}

async fn measured(name: &str, size: u64) -> Vec<f64> {
    match name {
        "entries" => entries(size).await,
        "caches" => caches(size).await,
        "instances" => instances(size as usize).await,
        "writes" => writes(size).await,
        _ => log(size).await,
    }
}

/// Hits at random among so many entries, and what each takes.
async fn entries(size: u64) -> Vec<f64> {
    let moka = moka::sync::Cache::<String, Arc<Message>>::new(2 * size);
    let before = resident();
    (0..size).for_each(|id| moka.insert(key(id), Arc::new(Message::new(id as i64))));
    moka.run_pending_tasks();
    let moka_bytes = (resident() - before) / size as f64;
    let (_sim, perto, cache) = local(4 << 30).await;
    let before = resident();
    for keys in (0..size).collect::<Vec<_>>().chunks(1_000) {
        cache.get_many(&keys.iter().map(|id| key(*id)).collect::<Vec<_>>()).await.expect("load");
    }
    assert_eq!(cache.size().0, size);
    let bytes = (resident() - before) / size as f64;
    let mut state = 7_u64;
    let keys: Vec<String> = (0..100_000).map(|_| key(random(&mut state) % size)).collect();
    // In turns, so that noise hits both alike.
    let (mut ours, mut bare) = (Vec::new(), Vec::new());
    for _ in 0..9 {
        ours.push(nanos(&keys, |key| drop(black_box(cache.get(key).now_or_never()))));
        bare.push(nanos(&keys, |key| drop(black_box(moka.get(key)))));
    }
    assert_eq!(cache.stats().l1_hits, 900_000, "every read was to be a hit");
    perto.shutdown().await;
    vec![median(&ours), median(&bare), bytes, moka_bytes]
}

/// One instance with so many caches, each of which says which table it reads.
async fn caches(size: u64) -> Vec<f64> {
    let bed = Bed::make().await;
    let before = resident();
    let perto = builder(&bed).allow_unwatched().build().expect("settings");
    let all: Vec<Cache<String, Message>> = (0..size)
        .map(|cache| {
            let table = format!("{}.messages", bed.schema);
            perto.cache(&format!("cache-{cache}")).tables([table]).loader(computed).expect("cache")
        })
        .collect();
    let began = Instant::now();
    perto.start().await.expect("start");
    perto.ready().await.expect("ready");
    let started = began.elapsed();
    let took = (resident() - before) / 1_024.0 / size as f64;
    for cache in &all {
        cache.get(&key(7)).await.expect("load");
    }
    let mut state = 7_u64;
    let order: Vec<usize> = (0..100_000).map(|_| (random(&mut state) % size) as usize).collect();
    let seven = key(7);
    let hits: Vec<f64> = (0..9)
        .map(|_| nanos(&order, |cache| drop(black_box(all[*cache].get(&seven).now_or_never()))))
        .collect();
    perto.shutdown().await;
    bed.clean_up().await;
    vec![started.as_secs_f64() * 1e3, median(&hits), took]
}

/// So many instances, each with one cache: idle, then one key written again and again, and read by all.
async fn instances(size: usize) -> Vec<f64> {
    let bed = Bed::make().await;
    bed.watch().await;
    let all = join_all((0..size).map(|_| bed.instance::<i64>(64 << 20))).await;
    let polls = || all.iter().map(|(perto, _)| perto.stats().polls).sum::<u64>();
    tokio::time::sleep(Duration::from_secs(1)).await;
    let (pids, before) = (backends(&bed).await, polls());
    let (cpu, began) = (cpu_ms(&pids), Instant::now());
    tokio::time::sleep(TIME).await;
    let seconds = began.elapsed().as_secs_f64();
    let (cpu, polled) = ((cpu_ms(&pids) - cpu) / seconds, (polls() - before) as f64 / seconds);
    let (mut times, mut loads, mut bytes) = (Vec::new(), 0.0, 0.0);
    let loaded = || all.iter().map(|(_, cache)| cache.stats().keys_loaded).sum::<u64>() as f64;
    const WRITES: i64 = 50;
    for id in 0..WRITES {
        for (_, cache) in &all {
            cache.get(&id).await.expect("read");
        }
        // Fills have arrived.
        tokio::time::sleep(Duration::from_millis(20)).await;
        let sent = redis_sent(&bed).await;
        let sql = format!("update {}.messages set author = author || '!' where id = $1", bed.schema);
        let mut tx = bed.pool.begin().await.expect("begin");
        sqlx::query(AssertSqlSafe(sql)).bind(id).execute(&mut *tx).await.expect("update");
        let pending = all[0].0.pending(&mut tx).await.expect("pending").expect("watched");
        tx.commit().await.expect("commit");
        let began = Instant::now();
        let evicted = async {
            while all.iter().any(|(_, cache)| cache.get_if_cached(&id).is_some()) {
                tokio::task::yield_now().await;
            }
        };
        tokio::join!(all[0].0.announce_pending(pending), evicted);
        times.push(began.elapsed().as_secs_f64() * 1e6);
        bytes += (redis_sent(&bed).await - sent) / WRITES as f64;
        let before = loaded();
        for read in join_all(all.iter().map(|(_, cache)| cache.get(&id))).await {
            read.expect("read");
        }
        loads += (loaded() - before) / WRITES as f64;
    }
    let connections = pids.len() as f64;
    join_all(all.iter().map(|(perto, _)| perto.shutdown())).await;
    bed.clean_up().await;
    vec![polled, cpu, median(&times), loads, bytes, connections]
}

/// One instance that reads by Zipf's law, without end, while others write so many rows a second by plain SQL.
async fn writes(rate: u64) -> Vec<f64> {
    let bed = Bed::make().await;
    bed.watch().await;
    let (perto, cache) = bed.instance::<i64>(64 << 20).await;
    cache.get_many(&(0..ROWS).collect::<Vec<_>>()).await.expect("load");
    let done = std::sync::atomic::AtomicU64::new(0);
    let (keys, before) = (zipf(1 << 16), cache.stats());
    // A statement writes a row, or a hundredth of a second's worth of them, below the 500 that clear a cache.
    let each = (rate / 100).clamp(1, 400);
    let (began, mut latest) = (Instant::now(), Vec::new());
    let writing = async {
        let mut pace = tokio::time::interval(Duration::from_secs_f64(each as f64 / rate as f64));
        let (mut tx, mut state) = (bed.pool.acquire().await.expect("connect"), 7_u64);
        tx.execute("set synchronous_commit = off").await.expect("set");
        let sql = format!("update {}.messages set author = author where id = any($1)", bed.schema);
        while began.elapsed() < TIME {
            pace.tick().await;
            let ids: Vec<i64> = (0..each).map(|_| (random(&mut state) % ROWS as u64) as i64).collect();
            sqlx::query(AssertSqlSafe(sql.as_str())).bind(ids).execute(&mut *tx).await.expect("update");
            done.fetch_add(each, std::sync::atomic::Ordering::Relaxed);
        }
    };
    let reading = async {
        for id in keys.iter().cycle() {
            if began.elapsed() >= TIME {
                return;
            }
            cache.get(id).await.expect("read");
            tokio::task::yield_now().await;
        }
    };
    let asking = async {
        while began.elapsed() < TIME {
            let asked = Instant::now();
            cache.get_with(&1, ReadOptions::latest()).await.expect("read");
            latest.push(asked.elapsed().as_secs_f64() * 1e6);
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::join!(writing, reading, asking);
    let (after, seconds) = (cache.stats(), began.elapsed().as_secs_f64());
    let hits = (after.l1_hits - before.l1_hits) as f64;
    let others = (after.l2_hits + after.load_hits - before.l2_hits - before.load_hits) as f64;
    perto.shutdown().await;
    bed.clean_up().await;
    let done = done.into_inner() as f64 / seconds;
    let reads = hits + others;
    vec![done, reads / seconds, 100.0 * others / reads, median(&latest)]
}

/// A log of so many rows that nobody has trimmed: a thousand a transaction.
async fn log(rows: u64) -> Vec<f64> {
    let bed = Bed::make().await;
    bed.watch().await;
    let schema = &bed.schema;
    // An epoch, and a tick before all rows: what trims by it finds nothing.
    let (perto, _) = bed.instance::<i64>(1 << 20).await;
    perto.shutdown().await;
    let fill = format!(
        "do $$ begin for i in 1..{} loop \
           insert into {schema}.invalidation (cache, keys) select 'others', array[n::text] from generate_series(1, 1000) n; \
           commit; end loop; end $$",
        rows / 1_000
    );
    bed.pool.execute(AssertSqlSafe(fill)).await.expect("rows");
    bed.pool.execute(AssertSqlSafe(format!("analyze {schema}.invalidation"))).await.expect("analyze");
    let began = Instant::now();
    let (perto, cache) = bed.instance::<i64>(1 << 20).await;
    let started = began.elapsed().as_secs_f64() * 1e3;
    let mut latest = Vec::new();
    for _ in 0..50 {
        let asked = Instant::now();
        cache.get_with(&1, ReadOptions::latest()).await.expect("read");
        latest.push(asked.elapsed().as_secs_f64() * 1e6);
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    perto.shutdown().await;
    // Of two hours ago, and of all rows: an instance trims as soon as it starts.
    let tick = format!(
        "delete from {schema}.tick; insert into {schema}.tick (at) values (clock_timestamp() - interval '2 hours')"
    );
    for sql in tick.split(';') {
        bed.pool.execute(AssertSqlSafe(sql.to_owned())).await.expect("tick");
    }
    let began = Instant::now();
    let (perto, _) = bed.instance::<i64>(1 << 20).await;
    let sql = format!("select not exists (select from {schema}.invalidation)");
    while !sqlx::query_scalar::<_, bool>(AssertSqlSafe(sql.as_str()))
        .fetch_one(&bed.pool)
        .await
        .expect("count")
    {
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let trimmed = began.elapsed().as_secs_f64() * 1e3;
    perto.shutdown().await;
    bed.clean_up().await;
    vec![started, median(&latest), trimmed]
}

fn builder(bed: &Bed) -> perto::PertoBuilder {
    Perto::builder(&bed.schema).schema(&bed.schema).postgres(&bed.postgres_url).redis(&bed.redis_url)
}

async fn computed(load: Load<String>) -> Result<Loaded<String, Message>, std::io::Error> {
    let with = |loaded: Loaded<String, Message>, key: &String| {
        loaded.with(key.clone(), Message::new(key.parse().unwrap_or_default()))
    };
    Ok(load.keys.iter().fold(Loaded::computed(), with))
}

/// An instance without engines.
async fn local(capacity_bytes: u64) -> (Sim, Perto, Cache<String, Message>) {
    let sim = Sim::new(7);
    let perto =
        Perto::builder("bench").log(Arc::new(sim.postgres.log(7))).bound(Duration::from_mins(1)).build();
    let perto = perto.expect("settings");
    let cache =
        perto.cache("values").local_only().capacity_bytes(capacity_bytes).loader(computed).expect("cache");
    perto.start().await.expect("start");
    while !matches!(perto.health().state, State::Coherent | State::Isolated) {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    (sim, perto, cache)
}

fn key(id: u64) -> String {
    String::from(Id(id as i64))
}

const fn random(state: &mut u64) -> u64 {
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    *state >> 11
}

fn nanos<T>(all: &[T], mut one: impl FnMut(&T)) -> f64 {
    let began = Instant::now();
    all.iter().for_each(&mut one);
    began.elapsed().as_nanos() as f64 / all.len() as f64
}

fn resident() -> f64 {
    let status = std::fs::read_to_string("/proc/self/status").expect("Linux");
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).expect("VmRSS");
    let kib: f64 = line.split_whitespace().nth(1).and_then(|kib| kib.parse().ok()).expect("a number");
    1024.0 * kib
}

/// The processes of Postgres that serve the log.
async fn backends(bed: &Bed) -> Vec<i32> {
    let sql =
        "select pid from pg_stat_activity where application_name = 'perto' and datname = current_database()";
    sqlx::query_scalar(sql).fetch_all(&bed.pool).await.expect("pids")
}

/// What processes of this machine have used; of those that have gone, nothing.
fn cpu_ms(pids: &[i32]) -> f64 {
    let of = |pid: &i32| {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        let fields: Vec<&str> = stat.rsplit_once(") ")?.1.split(' ').collect();
        Some(fields[11].parse::<f64>().ok()? + fields[12].parse::<f64>().ok()?)
    };
    // Of a hundredth of a second each.
    10.0 * pids.iter().filter_map(of).sum::<f64>()
}

async fn redis_sent(bed: &Bed) -> f64 {
    let mut redis = bed.connection().await;
    let info: String = redis::cmd("INFO").arg("stats").query_async(&mut redis).await.expect("INFO");
    let sent = info.lines().find_map(|line| line.strip_prefix("total_net_output_bytes:"));
    sent.and_then(|sent| sent.trim().parse().ok()).expect("a number")
}

/// Lines, one a column: how many times what it was at the smallest size, both logarithmic.
fn plot(part: &Part, sizes: &[u64], series: &[Vec<f64>]) -> String {
    const COLORS: [&str; 6] = ["#1f6feb", "#9aa5b1", "#1a7f37", "#bf8700", "#cf222e", "#8250df"];
    let (left, top, width, height) = (60.0, 20.0, 440.0, 240.0);
    let ratio = |figures: &[f64], at: usize| (figures[at] / figures[0].max(1e-9)).max(1e-3);
    let all = || series.iter().flat_map(|figures| (0..figures.len()).map(move |at| ratio(figures, at)));
    let low = all().fold(1.0_f64, f64::min).log10().floor();
    let high = all().fold(1.0_f64, f64::max).log10().ceil().max(low + 1.0);
    // What begins with none is drawn at a tenth of the next.
    let at_x = |size: u64| (size as f64).max(sizes[1] as f64 / 10.0).log10();
    let (first, last) = (at_x(sizes[0]), at_x(sizes[sizes.len() - 1]));
    let x = |size: u64| left + width * (at_x(size) - first) / (last - first);
    let y = |ratio: f64| top + height * (high - ratio.log10()) / (high - low);
    let mut svg =
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 760 310\" font-family=\"sans-serif\" \
         font-size=\"13\">\n<rect width=\"100%\" height=\"100%\" fill=\"#fff\"/>\n"
            .to_owned();
    for power in low as i32..=high as i32 {
        let ratio = 10_f64.powi(power);
        let _ = writeln!(
            svg,
            "<line x1=\"{left}\" x2=\"{0}\" y1=\"{1:.0}\" y2=\"{1:.0}\" stroke=\"#ddd\"/>\
             <text x=\"{2}\" y=\"{3:.0}\" text-anchor=\"end\" fill=\"#555\">{ratio} ×</text>",
            left + width,
            y(ratio),
            left - 6.0,
            y(ratio) + 4.0
        );
    }
    for size in sizes {
        let (x, y) = (x(*size), top + height + 18.0);
        let _ = writeln!(
            svg,
            "<text x=\"{x:.0}\" y=\"{y:.0}\" text-anchor=\"middle\" fill=\"#555\">{size}</text>"
        );
    }
    let _ = writeln!(
        svg,
        "<text x=\"{:.0}\" y=\"{:.0}\" text-anchor=\"middle\">{}</text>",
        left + width / 2.0,
        top + height + 40.0,
        part.x
    );
    for (column, figures) in series.iter().enumerate() {
        let (color, y_of_name) = (COLORS[column % COLORS.len()], top + 20.0 + 22.0 * column as f64);
        let points = (0..figures.len()).map(|at| format!("{:.0},{:.0}", x(sizes[at]), y(ratio(figures, at))));
        let _ = writeln!(
            svg,
            "<polyline points=\"{}\" fill=\"none\" stroke=\"{color}\" stroke-width=\"2\"/>\
             <text x=\"{:.0}\" y=\"{y_of_name:.0}\" fill=\"{color}\">{}</text>",
            points.collect::<Vec<_>>().join(" "),
            left + width + 20.0,
            part.columns[column].replace('`', "")
        );
    }
    svg + "</svg>\n"
}
