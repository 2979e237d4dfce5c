//! A worker: one process with one instance under load, told what to do by lines on its input.
//!
//! It answers each line with one that begins with `ok` or `no`; a line that begins with `panic` may come at any time.
//! When its input ends it ends: it never outlives the schedule.

use std::io::{BufRead, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use clap::Args;
use perto::{Clock, Event, Freshness, Perto, SystemClock, postgres};
use rustix::process::{Resource, Rlimit, Signal};
use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use crate::load::{How, Load, Row};
use crate::record::{Recorder, now_ns};
use crate::stats::Stats;

/// The load timeout of the cache. Shorter than the default of 5 s, so that faults are longer than it.
pub(crate) const LOAD_TIMEOUT: Duration = Duration::from_secs(2);
/// The time for L2: the default.
pub(crate) const REMOTE_TIMEOUT: Duration = Duration::from_millis(50);
/// Files that a worker may have open.
const FILES: u64 = 256;
/// Connections of a worker's pool, for loads and writes.
pub(crate) const CONNECTIONS: u32 = 10;

/// What the schedule tells a worker at its start.
#[derive(Debug, Args)]
pub(crate) struct Settings {
    #[arg(long)]
    pub(crate) number: u32,
    #[arg(long)]
    pub(crate) folder: PathBuf,
    #[arg(long)]
    pub(crate) part: String,
    #[arg(long)]
    pub(crate) redis: String,
    #[arg(long)]
    pub(crate) bus: Option<String>,
    #[arg(long)]
    pub(crate) postgres: String,
    #[arg(long)]
    pub(crate) bound_ms: u64,
    #[arg(long)]
    pub(crate) reads: u64,
    #[arg(long)]
    pub(crate) cold: u64,
    #[arg(long)]
    pub(crate) writes: u64,
}

/// A clock that jumps on command. The instance's time never goes back; the wall clock's may.
#[derive(Debug, Default)]
struct JumpingClock {
    ahead_ms: AtomicU64,
    wall_ms: AtomicI64,
}

impl Clock for JumpingClock {
    fn now_ms(&self) -> u64 {
        // The machine's first: a jump between the two must not make time go back.
        let now = SystemClock.now_ms();
        now + self.ahead_ms.load(Ordering::SeqCst)
    }

    fn unix_ms(&self) -> u64 {
        SystemClock.unix_ms().saturating_add_signed(self.wall_ms.load(Ordering::SeqCst))
    }
}

pub(crate) fn main(settings: &Settings) -> ExitCode {
    std::panic::set_hook(Box::new(|panic| say(&format!("panic {}", panic.to_string().replace('\n', " ")))));
    let limit = Rlimit { current: Some(FILES), ..rustix::process::getrlimit(Resource::Nofile) };
    rustix::process::setrlimit(Resource::Nofile, limit).unwrap();
    let (lines, mut commands) = mpsc::channel(16);
    std::thread::spawn(move || {
        // Ends at the end of the input, and with it the channel.
        for line in std::io::stdin().lock().lines().map_while(Result::ok) {
            if lines.blocking_send(line).is_err() {
                return;
            }
        }
    });
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let ended = runtime.block_on(async {
        // Ctrl-C and a terminal that closes are for the schedule, which then ends this.
        let (mut interrupts, mut hang_ups) =
            (signal(SignalKind::interrupt()).unwrap(), signal(SignalKind::hangup()).unwrap());
        let mut worker = Box::pin(Worker::start(settings)).await;
        say("ok started");
        loop {
            tokio::select! {
                command = commands.recv() => match command {
                    None => return false,
                    Some(command) if command == "stop" => {
                        worker.stop().await;
                        return true;
                    }
                    Some(command) => {
                        match worker.obey(&command).await {
                            Ok(said) => say(&format!("ok {said}")),
                            Err(problem) => say(&format!("no {command}: {problem}")),
                        }
                    }
                },
                _ = interrupts.recv() => {}
                _ = hang_ups.recv() => {}
            }
        }
    });
    runtime.shutdown_timeout(Duration::from_secs(1));
    if ended { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn say(line: &str) {
    let mut out = std::io::stdout().lock();
    // Nobody there to hear it: the input ends too.
    drop(writeln!(out, "{line}").and_then(|()| out.flush()));
}

struct Worker {
    load: Arc<Load>,
    clock: Arc<JumpingClock>,
    loading: JoinSet<()>,
    /// What commands have begun and goes on.
    others: JoinSet<()>,
    _events: JoinSet<()>,
}

/// What the instance tells its operator, for whoever looks into a failure.
async fn write_down(mut events: tokio::sync::broadcast::Receiver<Event>, mut file: std::fs::File) {
    loop {
        let event = match events.recv().await {
            Ok(event) => format!("{event:?}"),
            Err(RecvError::Lagged(lost)) => format!("{lost} events lost"),
            Err(RecvError::Closed) => return,
        };
        drop(writeln!(file, "{:.3} {event}", Duration::from_nanos(now_ns()).as_secs_f64()));
    }
}

impl Worker {
    async fn start(settings: &Settings) -> Self {
        let clock = Arc::new(JumpingClock::default());
        let options: PgConnectOptions = settings.postgres.parse().unwrap();
        let pool = PgPoolOptions::new()
            .max_connections(CONNECTIONS)
            .acquire_timeout(LOAD_TIMEOUT)
            .connect_lazy_with(options.options([("search_path", "chaos"), ("lock_timeout", "1000")]));
        let perto = Perto::builder("chaos")
            .schema("chaos")
            .bound(Duration::from_millis(settings.bound_ms))
            .remote_timeout(REMOTE_TIMEOUT)
            .postgres(&settings.postgres)
            .redis(&settings.redis)
            .clock(Arc::clone(&clock) as Arc<dyn Clock>);
        let perto = match &settings.bus {
            Some(bus) => perto.subscribe_at(bus),
            None => perto,
        };
        let perto = perto.build().unwrap();
        let loading = pool.clone();
        let rows = perto
            .cache("row")
            .tables(["chaos.rows"])
            .load_timeout(LOAD_TIMEOUT)
            .loader(move |load: perto::Load<i64>| {
                let pool = loading.clone();
                async move {
                    let sql = "select id, version, value, note from rows where id = any($1)";
                    let rows = postgres::query_as::<(i64, i64, i64, Option<String>)>(sql);
                    let rows = rows.bind(load.keys).fetch(&pool).await?;
                    let row = |version: i64, value: i64| Row {
                        version: version.cast_unsigned(),
                        value: value.cast_unsigned(),
                    };
                    Ok::<_, sqlx::Error>(rows.by_key(|(id, version, value, _note)| (id, row(version, value))))
                }
            })
            .unwrap();
        let (loading, on) = (pool.clone(), rows.clone());
        let pairs = perto
            .cache("pair")
            .tables([""; 0])
            .load_timeout(LOAD_TIMEOUT)
            .loader(move |load: perto::Load<i64>| {
                let (pool, on) = (loading.clone(), on.clone());
                async move {
                    let sql = "select a.id, a.version, a.value, b.version, b.value \
                               from rows a join rows b on b.id = a.id # 1 where a.id = any($1)";
                    let rows = postgres::query_as::<(i64, i64, i64, i64, i64)>(sql);
                    let rows = rows.bind(load.keys).fetch(&pool).await?;
                    let row = |version: i64, value: i64| Row {
                        version: version.cast_unsigned(),
                        value: value.cast_unsigned(),
                    };
                    let pairs = rows.by_key(|(id, v, value, w, other)| (id, (row(v, value), row(w, other))));
                    Ok::<_, sqlx::Error>(pairs.depends_on(move |id, _| [on.key(id), on.key(&(id ^ 1))]))
                }
            })
            .unwrap();
        let recorder = Recorder::new(&settings.folder, settings.number, &settings.part).unwrap();
        let mut events = JoinSet::new();
        let said = settings.folder.join(format!("events-{}", settings.number));
        events.spawn(write_down(perto.events(), std::fs::File::create(said).unwrap()));
        // On a busy machine a first poll may take longer than the bound.
        let mut tries = 20;
        while let Err(error) = perto.start().await {
            tries -= 1;
            assert!(tries > 0, "{error:?}");
        }
        let load = Load::new(perto, (rows, pairs), pool, recorder, settings.number);
        let mut tasks = JoinSet::new();
        let reads = (settings.reads, settings.cold);
        load.start(&mut tasks, reads, settings.writes, u64::from(settings.number));
        Self { load, clock, loading: tasks, others: JoinSet::new(), _events: events }
    }

    async fn obey(&mut self, command: &str) -> Result<String, String> {
        let words: Vec<&str> = command.split(' ').collect();
        let number = |at: usize| -> Result<u64, String> {
            words.get(at).and_then(|word| word.parse().ok()).ok_or_else(|| "not a number".to_owned())
        };
        match words[0] {
            "cut" => {
                self.load.recorder.cut(words[1]).map(|()| String::new()).map_err(|error| error.to_string())
            }
            "health" => Ok(self.health()),
            "stats" => serde_json::to_string(&self.stats()).map_err(|error| error.to_string()),
            "see" => self.see(number(1)?, number(2)?, Duration::from_millis(number(3)?)).await,
            "clock" => {
                self.clock.ahead_ms.fetch_add(number(1)?, Ordering::SeqCst);
                Ok(self.clock.now_ms().saturating_sub(SystemClock.now_ms()).to_string())
            }
            "wall" => {
                let ms: i64 = words[1].parse().map_err(|_not_one| "not a number".to_owned())?;
                let before = self.clock.unix_ms().cast_signed();
                self.clock.wall_ms.fetch_add(ms, Ordering::SeqCst);
                Ok((self.clock.unix_ms().cast_signed() - before).to_string())
            }
            "exhaust-files" => self.exhaust_files(Duration::from_millis(number(1)?)).await,
            "hold-pool" => self.hold_pool(Duration::from_millis(number(1)?)).await,
            "burst" => {
                self.burst(number(1)?, number(2)?, Duration::from_millis(number(3)?));
                Ok(String::new())
            }
            "commit-and-die" => self.commit_and_die().await,
            _ => Err("no such command".to_owned()),
        }
    }

    fn health(&self) -> String {
        let health = self.load.perto.health();
        let stats = self.load.perto.stats();
        format!(
            "{} bus={} remote={} epoch={:x} not-begun={} recoveries={} gaps={} error={:?}",
            health.state,
            health.bus_up,
            health.remote_up,
            health.epoch,
            self.load.not_begun.load(Ordering::Relaxed),
            stats.recoveries,
            stats.gaps,
            self.load.first_error.lock().take().unwrap_or_default(),
        )
    }

    fn stats(&self) -> Stats {
        let (health, instance, rows) =
            (self.load.perto.health(), self.load.perto.stats(), self.load.rows.stats());
        Stats {
            epoch: health.epoch,
            bus_up: health.bus_up,
            poll_errors: instance.poll_errors,
            l2_errors: instance.l2_errors,
            hints: instance.hints,
            hints_published: instance.hints_published,
            unverified: rows.unverified,
            audits: rows.audits,
            audit_violations: rows.audit_violations,
        }
    }

    /// Until a fresh read gives this value.
    async fn see(&self, key: u64, value: u64, limit: Duration) -> Result<String, String> {
        let began = Instant::now();
        let mut last = String::new();
        while began.elapsed() < limit {
            match self.load.rows.get(&i64::try_from(key).unwrap()).await {
                Ok(read)
                    if read.freshness == Freshness::Fresh
                        && read.value().is_some_and(|row| row.value == value) =>
                {
                    return Ok(now_ns().to_string());
                }
                read => last = format!("{read:?}"),
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        Err(format!("not seen within {limit:?}, but {last}"))
    }

    /// Takes every file descriptor there is, and each that comes free, for a time. Answers when there is none left.
    async fn exhaust_files(&mut self, time: Duration) -> Result<String, String> {
        let (said, heard) = tokio::sync::oneshot::channel();
        self.others.spawn_blocking(move || {
            let (began, mut files, mut said) = (Instant::now(), Vec::new(), Some(said));
            while began.elapsed() < time {
                match std::fs::File::open("/dev/null") {
                    Ok(file) => files.push(file),
                    Err(_none_left) => {
                        if let Some(said) = said.take() {
                            let _ = said.send(files.len());
                        }
                        std::thread::sleep(Duration::from_millis(1));
                    }
                }
            }
        });
        heard.await.map(|files| files.to_string()).map_err(|_dropped| "files were never exhausted".to_owned())
    }

    /// Takes every connection of the pool, as a slow part of the same program would. Answers when it has them.
    async fn hold_pool(&mut self, time: Duration) -> Result<String, String> {
        let (pool, began) = (self.load.pool.clone(), Instant::now());
        let mut held = Vec::new();
        while held.len() < CONNECTIONS as usize && began.elapsed() < LOAD_TIMEOUT {
            if let Ok(connection) = pool.acquire().await {
                held.push(connection);
            }
        }
        let count = held.len();
        self.others.spawn(async move {
            tokio::time::sleep(time.saturating_sub(began.elapsed())).await;
            drop(held);
        });
        Ok(count.to_string())
    }

    /// Writes to one key, so many a second, and tells the others of each.
    fn burst(&mut self, key: u64, rate: u64, time: Duration) {
        let key = u32::try_from(key).unwrap();
        let (load, began) = (Arc::clone(&self.load), Instant::now());
        self.others.spawn(async move {
            let mut ticks = tokio::time::interval(Duration::from_nanos(1_000_000_000 / rate));
            while began.elapsed() < time {
                ticks.tick().await;
                load.write(key, How::Announced).await;
            }
        });
    }

    /// Commits, and is gone before anybody else can be told.
    async fn commit_and_die(&self) -> Result<String, String> {
        for key in 0..20 {
            self.load.write(key, How::Plain).await;
        }
        rustix::process::kill_process(rustix::process::getpid(), Signal::KILL)
            .map_err(|error| error.to_string())?;
        Err("it lives".to_owned())
    }

    /// Ends in order, and says what is left.
    async fn stop(mut self) {
        let limit = Duration::from_secs(20);
        self.load.ended.store(true, Ordering::Release);
        let ending = async {
            while self.others.join_next().await.is_some() {}
            while self.loading.join_next().await.is_some() {}
        };
        let load_ended = tokio::time::timeout(limit, ending).await.is_ok();
        // Loads may go on for readers that have given up: the shutdown ends them.
        let shut_down = tokio::time::timeout(limit, self.load.perto.shutdown()).await.is_ok();
        self.load.recorder.flush();
        let tasks = self.load.perto.tasks();
        let flights = self.load.rows.flights();
        if load_ended && shut_down && tasks == 0 && flights == 0 {
            say("ok stopped");
        } else {
            say(&format!(
                "no stop: load ended {load_ended}, shut down {shut_down}, {tasks} tasks and {flights} flights left"
            ));
        }
    }
}
