//! The instances of a replay. Each lives on a thread and a runtime of its own, so that a pause stops all of it, in the
//! middle of whatever it does, as SIGSTOP would.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use perto::{Cache, Histogram, Load, Perto, State, Tier, postgres};
use serde::{Deserialize, Serialize};
use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
use sqlx::{AssertSqlSafe, PgPool};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;

use super::faults::Scheduled;
use super::history::{Answers, Record};
use super::trace::{Random, Trace};

/// A row, as the caches hold it.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Row {
    version: u32,
    filler: String,
}

/// What a run needs to know.
#[derive(Debug)]
pub(super) struct Plan {
    pub(super) trace: Trace,
    pub(super) schema: String,
    pub(super) bound: Duration,
    pub(super) instances: usize,
    pub(super) concurrency: usize,
    pub(super) rate: Option<u32>,
    pub(super) writes: f64,
    pub(super) seed: u64,
    pub(super) faults: Vec<Scheduled>,
    pub(super) capacity_bytes: u64,
    /// Postgres and Redis as the instances see them: perhaps through proxies.
    pub(super) postgres_url: String,
    pub(super) postgres: PgConnectOptions,
    pub(super) redis_url: String,
    /// Where hints are received, if that is another place.
    pub(super) subscribe_url: Option<String>,
}

/// What a run has counted so far.
#[derive(Debug)]
pub(super) struct Tally {
    pub(super) reads: AtomicU64,
    pub(super) hits: [AtomicU64; 3],
    pub(super) latency: [Histogram; 3],
    pub(super) writes: AtomicU64,
    pub(super) errors: AtomicU64,
    pub(super) first_error: parking_lot::Mutex<Option<String>>,
    pub(super) windows: Vec<Window>,
    pub(super) stop: AtomicBool,
}

/// When a fault lasted, until all were coherent again.
#[derive(Debug, Default)]
pub(super) struct Window(parking_lot::Mutex<WindowTimes>);

#[derive(Debug, Clone, Copy, Default)]
pub(super) struct WindowTimes {
    pub(super) opened: Option<Duration>,
    pub(super) closed: Option<Duration>,
    pub(super) ran: bool,
}

impl Window {
    pub(super) fn open(&self, now: Duration) {
        self.0.lock().opened = Some(now);
    }

    pub(super) fn close(&self, now: Duration, ran: bool) {
        let mut times = self.0.lock();
        (times.closed, times.ran) = (Some(now), ran);
    }

    pub(super) fn times(&self) -> WindowTimes {
        *self.0.lock()
    }
}

impl Tally {
    pub(super) fn new(faults: usize) -> Self {
        Self {
            reads: AtomicU64::new(0),
            hits: Default::default(),
            latency: Default::default(),
            writes: AtomicU64::new(0),
            errors: AtomicU64::new(0),
            first_error: parking_lot::Mutex::default(),
            windows: (0..faults).map(|_| Window::default()).collect(),
            stop: AtomicBool::new(false),
        }
    }

    pub(super) fn fail(&self, error: &(dyn std::error::Error + 'static)) {
        self.errors.fetch_add(1, Ordering::Relaxed);
        let mut first = self.first_error.lock();
        if first.is_none() {
            let mut text = error.to_string();
            let mut cause = error.source();
            while let Some(source) = cause {
                text = format!("{text}: {source}");
                cause = source.source();
            }
            *first = Some(text);
        }
    }
}

/// One running instance.
#[derive(Debug)]
pub(super) struct Member {
    pub(super) perto: Perto,
    pub(super) cache: Cache<i64, Row>,
    orders: mpsc::Sender<Order>,
    writes: mpsc::Sender<u32>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug)]
enum Order {
    Read(oneshot::Sender<()>),
    Pause(Duration),
    End,
}

/// Writes that wait for a writer. When it is full, readers wait: writes keep their share.
const WRITES_QUEUED: usize = 64;
const WRITERS: usize = 4;
/// Tasks that run before the sockets are looked at again: readers that only hit L1 never wait for one.
const EVENT_INTERVAL: u32 = 4;
/// How long an instance may take to become coherent at the start.
const START_LIMIT: Duration = Duration::from_secs(10);

/// How long connections may take to close at the end.
const END_LIMIT: Duration = Duration::from_secs(2);

/// Everything that the threads of a run share.
#[derive(Debug)]
pub(super) struct Run {
    pub(super) plan: Plan,
    pub(super) record: Arc<Record>,
    pub(super) tally: Tally,
    pub(super) next: Vec<AtomicU64>,
}

impl Member {
    /// Starts instance number `at`, and waits until it is coherent.
    pub(super) async fn start(
        plan: &Plan,
        at: usize,
        runs: oneshot::Receiver<Arc<Run>>,
    ) -> anyhow::Result<Self> {
        let (started, starting) = oneshot::channel();
        let (orders, inbox) = mpsc::channel(8);
        let (writes, written) = mpsc::channel(WRITES_QUEUED);
        let pool = PgPoolOptions::new()
            .max_connections(8)
            .acquire_timeout(Duration::from_secs(2))
            .test_before_acquire(false)
            .connect_lazy_with(plan.postgres.clone());
        let perto = Perto::builder(&plan.schema)
            .bound(plan.bound)
            .schema(&plan.schema)
            .postgres(&plan.postgres_url)
            .redis(&plan.redis_url);
        let perto = match &plan.subscribe_url {
            Some(url) => perto.subscribe_at(url),
            None => perto,
        };
        let perto = perto.build()?;
        let (loader_pool, sql) = (
            pool.clone(),
            format!("select id, version, filler from {}.rows where id = any($1)", plan.schema),
        );
        let cache = perto
            .cache::<i64, Row>("rows")
            .tables([format!("{}.rows", plan.schema)])
            .capacity_bytes(plan.capacity_bytes)
            .loader(move |load: Load<i64>| {
                let query = postgres::query_as::<(i64, i32, String)>(&sql).bind(load.keys);
                let pool = loader_pool.clone();
                async move {
                    let rows = query.fetch(&pool).await?;
                    let row = |(id, version, filler): (i64, i32, String)| {
                        (id, Row { version: version.cast_unsigned(), filler })
                    };
                    Ok::<_, sqlx::Error>(rows.by_key(row))
                }
            })?;
        let (perto_there, cache_there) = (perto.clone(), cache.clone());
        let thread = std::thread::Builder::new().name(format!("instance{}", at + 1)).spawn(move || {
            match tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .event_interval(EVENT_INTERVAL)
                .build()
            {
                Ok(runtime) => {
                    runtime.block_on(live(at, perto_there, cache_there, pool, inbox, written, started, runs));
                }
                Err(error) => drop(started.send(Err(error.into()))),
            }
        })?;
        starting.await??;
        Ok(Self { perto, cache, orders, writes, thread: Some(thread) })
    }

    /// Lets it read its share of the trace. The receiver completes when it has.
    pub(super) async fn read(&self) -> oneshot::Receiver<()> {
        let (done, finished) = oneshot::channel();
        drop(self.orders.send(Order::Read(done)).await);
        finished
    }

    /// Stops it for so long.
    pub(super) async fn pause(&self, length: Duration) {
        drop(self.orders.send(Order::Pause(length)).await);
    }

    pub(super) fn writer(&self) -> mpsc::Sender<u32> {
        self.writes.clone()
    }

    pub(super) async fn end(mut self) {
        drop(self.orders.send(Order::End).await);
        drop(self.writes);
        if let Some(thread) = self.thread.take() {
            drop(tokio::task::spawn_blocking(move || thread.join()).await);
        }
    }
}

#[expect(clippy::too_many_arguments, reason = "what moves to the thread")]
async fn live(
    at: usize,
    perto: Perto,
    cache: Cache<i64, Row>,
    pool: PgPool,
    mut inbox: mpsc::Receiver<Order>,
    written: mpsc::Receiver<u32>,
    started: oneshot::Sender<anyhow::Result<()>>,
    runs: oneshot::Receiver<Arc<Run>>,
) {
    let starting = start(&perto).await;
    let failed = starting.is_err();
    drop(started.send(starting));
    if failed {
        return;
    }
    let Ok(run) = runs.await else { return };
    let written = Arc::new(tokio::sync::Mutex::new(written));
    let mut writers = JoinSet::new();
    for _ in 0..WRITERS {
        writers.spawn(write(Arc::clone(&run), perto.clone(), pool.clone(), Arc::clone(&written)));
    }
    let mut readers = JoinSet::new();
    let mut done = None;
    loop {
        tokio::select! {
            order = inbox.recv() => match order {
                Some(Order::Read(finished)) => {
                    for _ in 0..run.plan.concurrency.div_ceil(run.plan.instances).max(1) {
                        readers.spawn(read(Arc::clone(&run), at, cache.clone()));
                    }
                    done = Some(finished);
                }
                // The whole thread is what stops.
                Some(Order::Pause(length)) => std::thread::sleep(length),
                Some(Order::End) | None => break,
            },
            Some(_ended) = readers.join_next() => if readers.is_empty() && let Some(done) = done.take() {
                let _gone = done.send(());
            },
        }
    }
    perto.shutdown().await;
    // Who is in the middle of a read or a write holds a connection.
    readers.shutdown().await;
    writers.shutdown().await;
    drop(tokio::time::timeout(END_LIMIT, pool.close()).await);
}

async fn start(perto: &Perto) -> anyhow::Result<()> {
    perto.start().await?;
    let begun = Instant::now();
    while perto.health().state != State::Coherent {
        anyhow::ensure!(
            begun.elapsed() < START_LIMIT,
            "REDIS_URL: the instance did not become coherent within {START_LIMIT:?}"
        );
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    Ok(())
}

/// Reads the accesses of one instance: every n-th of the trace, in order, several at a time.
async fn read(run: Arc<Run>, at: usize, cache: Cache<i64, Row>) {
    let (plan, tally) = (&run.plan, &run.tally);
    let mut answers = Answers::of(&run.record, at);
    for count in 1_u64.. {
        let access = run.next[at].fetch_add(1, Ordering::Relaxed) * plan.instances as u64 + at as u64;
        let access_at = usize::try_from(access).unwrap_or(usize::MAX);
        let Some(row) = plan.trace.accesses.get(access_at) else { return };
        if tally.stop.load(Ordering::Relaxed) {
            return;
        }
        if let Some(rate) = plan.rate {
            let due = Duration::from_secs_f64(precise(access) / f64::from(rate));
            let early = due.saturating_sub(run.record.now());
            if early > Duration::from_millis(1) {
                tokio::time::sleep(early).await;
            }
        }
        // Writes are given out by themselves.
        if plan.trace.writes_at(access_at) != Some(true) {
            read_one(&run, &cache, *row, &mut answers).await;
        }
        // A hit never waits, and this runtime has other work: the tail.
        if count % 8 == 0 {
            tokio::task::yield_now().await;
        }
    }
}

async fn read_one(run: &Run, cache: &Cache<i64, Row>, row: u32, answers: &mut Answers) {
    let tally = &run.tally;
    let begun = run.record.begin_read(row);
    let result = cache.get(&run.plan.trace.ids[row as usize]).await;
    let read = match result {
        Ok(read) => read,
        Err(error) => return tally.fail(&error),
    };
    let tier = match read.tier {
        Tier::Local => 0,
        Tier::Remote => 1,
        Tier::Load => 2,
    };
    tally.reads.fetch_add(1, Ordering::Relaxed);
    tally.hits[tier].fetch_add(1, Ordering::Relaxed);
    tally.latency[tier]
        .record(answers.push(row, begun, (read.value(), read.freshness, read.tier), |row| row.version));
}

/// Writes through an instance: it tells the others.
async fn write(
    run: Arc<Run>,
    perto: Perto,
    pool: PgPool,
    rows: Arc<tokio::sync::Mutex<mpsc::Receiver<u32>>>,
) {
    let sql = update_sql(&run.plan.schema);
    loop {
        let Some(row) = rows.lock().await.recv().await else { return };
        let id = run.plan.trace.ids[row as usize];
        let (sql, begun) = (sql.clone(), run.record.now());
        // The version is known to be committed when `write` returns; readers on this instance see it a little sooner.
        let written = perto
            .write(&pool, async |tx| {
                sqlx::query_scalar::<_, i32>(AssertSqlSafe(sql)).bind(id).fetch_one(tx).await
            })
            .await;
        record(&run, row, begun, written.map(|written| written.value));
    }
}

/// Writes by plain SQL: no instance knows of it.
pub(super) async fn write_plainly(run: Arc<Run>, pool: PgPool, mut rows: mpsc::Receiver<u32>) {
    let sql = update_sql(&run.plan.schema);
    while let Some(row) = rows.recv().await {
        let id = run.plan.trace.ids[row as usize];
        let begun = run.record.now();
        let written =
            sqlx::query_scalar::<_, i32>(AssertSqlSafe(sql.as_str())).bind(id).fetch_one(&pool).await;
        record(&run, row, begun, written);
    }
}

fn update_sql(schema: &str) -> String {
    format!("update {schema}.rows set version = version + 1 where id = $1 returning version")
}

fn record(run: &Run, row: u32, begun: Duration, written: Result<i32, sqlx::Error>) {
    run.record.wrote(row, begun, written.as_ref().ok().map(|version| version.cast_unsigned()));
    match written {
        Ok(_) => drop(run.tally.writes.fetch_add(1, Ordering::Relaxed)),
        Err(error) => run.tally.fail(&error),
    }
}

/// Gives out writes as the trace goes on: at each access with the ratio's likelihood, on the row of that access; a
/// quarter of them by plain SQL, the others through the instances in turn.
pub(super) async fn give_out_writes(
    run: Arc<Run>,
    writers: Vec<mpsc::Sender<u32>>,
    plain: mpsc::Sender<u32>,
) {
    let mut random = Random(run.plan.seed);
    let (mut access, mut given) = (0, 0_usize);
    while access < run.plan.trace.accesses.len() && !run.tally.stop.load(Ordering::Relaxed) {
        let reached = run.next.iter().map(|next| next.load(Ordering::Relaxed)).max().unwrap_or(0);
        let reached = usize::try_from(reached).unwrap_or(usize::MAX).saturating_mul(run.plan.instances);
        while access < reached.min(run.plan.trace.accesses.len()) {
            let by_ratio = random.unit() < run.plan.writes;
            if run.plan.trace.writes_at(access).unwrap_or(by_ratio) {
                given += 1;
                let to = if given % 4 == 0 { &plain } else { &writers[given % writers.len()] };
                let _ended = to.send(run.plan.trace.accesses[access]).await;
            }
            access += 1;
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

#[expect(clippy::cast_precision_loss, reason = "accesses are fewer than 2^53")]
pub(super) fn precise(count: u64) -> f64 {
    count as f64
}
