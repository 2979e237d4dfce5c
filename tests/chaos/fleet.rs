//! The workers: their processes, their proxies, and what `/proc` says of them.

use std::path::Path;
use std::process::Stdio;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use parking_lot::Mutex;
use perto::proxy::{Fault, FaultProxy};
use rustix::process::{Pid, Signal, kill_process};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::process::{Child, ChildStdin, Command};
use tokio::sync::mpsc;

use crate::record::now_ns;
use crate::stats::Stats;
use crate::support::engines::{moved_to, place_of};

/// How long a worker may take to answer. A pool that is held, and a stop, take longest.
const PATIENCE: Duration = Duration::from_secs(60);

/// Between one worker and the servers, so that it can be cut off alone.
pub(crate) struct Proxies {
    pub(crate) redis: FaultProxy,
    pub(crate) bus: FaultProxy,
    pub(crate) postgres: FaultProxy,
}

impl Proxies {
    pub(crate) async fn start(redis: &str, postgres: &str) -> anyhow::Result<Self> {
        Ok(Self {
            redis: FaultProxy::start(place_of(redis)).await?,
            bus: FaultProxy::start(place_of(redis)).await?,
            postgres: FaultProxy::start(place_of(postgres)).await?,
        })
    }

    pub(crate) fn set_redis(&self, fault: Fault) {
        self.redis.set(fault);
        self.bus.set(fault);
    }

    pub(crate) fn heal(&self) {
        self.set_redis(Fault::None);
        self.postgres.set(Fault::None);
    }

    pub(crate) fn point_redis_at(&self, url: &str) {
        self.redis.point_at(place_of(url));
        self.bus.point_at(place_of(url));
    }
}

/// How much load each worker makes.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Pace {
    pub(crate) bound: Duration,
    pub(crate) reads: u64,
    /// Of 1,000 reads, those of any row of the table.
    pub(crate) cold: u64,
    pub(crate) writes: u64,
}

/// What a worker is told of.
pub(crate) struct Servers<'a> {
    pub(crate) redis: &'a str,
    /// In place of `redis`, and without proxies.
    pub(crate) topology: Option<&'a str>,
    pub(crate) postgres: &'a str,
}

pub(crate) struct Worker {
    pub(crate) number: u32,
    pub(crate) proxies: Arc<Proxies>,
    pub(crate) pid: Pid,
    child: Child,
    input: Option<ChildStdin>,
    answers: mpsc::Receiver<String>,
    panics: Arc<Mutex<Vec<String>>>,
    first_seen: Usage,
    listening: tokio::task::JoinSet<()>,
}

/// What a process uses.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Usage {
    pub(crate) files: usize,
    pub(crate) peak_kib: u64,
}

impl Worker {
    pub(crate) async fn start(
        number: u32,
        proxies: Arc<Proxies>,
        folder: &Path,
        part: &str,
        pace: Pace,
        servers: &Servers<'_>,
    ) -> anyhow::Result<Self> {
        let mut command = Command::new(std::env::current_exe()?);
        let through = |url: &str, proxy: &FaultProxy| moved_to(url, &proxy.address().to_string());
        command
            .arg("worker")
            .args(["--number", &number.to_string(), "--part", part])
            .arg("--folder")
            .arg(folder);
        match servers.topology {
            Some(url) => command.args(["--redis", url]),
            None => {
                let [redis, bus] = [&proxies.redis, &proxies.bus].map(|proxy| through(servers.redis, proxy));
                command.args(["--redis", &redis, "--bus", &bus])
            }
        };
        command.args(["--postgres", &through(servers.postgres, &proxies.postgres)]);
        command.args(["--bound-ms", &pace.bound.as_millis().to_string()]);
        command.args(["--reads", &pace.reads.to_string(), "--writes", &pace.writes.to_string()]);
        command.args(["--cold", &pace.cold.to_string()]);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).kill_on_drop(true).spawn()?;
        let pid = child.id().and_then(|id| Pid::from_raw(id.try_into().ok()?)).context("a worker's pid")?;
        let mut lines = BufReader::new(child.stdout.take().context("a worker's output")?).lines();
        let (said, answers) = mpsc::channel(16);
        let panics = Arc::new(Mutex::new(Vec::new()));
        let panicked = Arc::clone(&panics);
        let mut listening = tokio::task::JoinSet::new();
        listening.spawn(async move {
            while let Ok(Some(line)) = lines.next_line().await {
                if line.starts_with("panic") {
                    panicked.lock().push(line);
                } else if said.send(line).await.is_err() {
                    return;
                }
            }
        });
        let input = child.stdin.take();
        let first_seen = Usage::default();
        let mut worker = Self { number, proxies, pid, child, input, answers, panics, first_seen, listening };
        worker.answer("start").await?;
        Ok(worker)
    }

    /// Tells it something, and waits for its answer.
    pub(crate) async fn ask(&mut self, command: &str) -> anyhow::Result<String> {
        self.tell(command).await?;
        self.answer(command).await
    }

    async fn tell(&mut self, command: &str) -> anyhow::Result<()> {
        let input = self.input.as_mut().context("the worker has been told to stop")?;
        input.write_all(format!("{command}\n").as_bytes()).await.with_context(|| self.gone(command))
    }

    async fn answer(&mut self, to: &str) -> anyhow::Result<String> {
        let Ok(answer) = tokio::time::timeout(PATIENCE, self.answers.recv()).await else {
            bail!("worker {} hangs: no answer to {to:?} within {PATIENCE:?}", self.number);
        };
        let answer = answer.with_context(|| self.gone(to))?;
        match answer.strip_prefix("ok ") {
            Some(said) => Ok(said.to_owned()),
            None => bail!("worker {}: {answer}", self.number),
        }
    }

    fn gone(&self, to: &str) -> String {
        format!("worker {} ended before it answered {to:?}; {:?}", self.number, self.panics.lock())
    }

    /// What it says of its instance.
    pub(crate) async fn health(&mut self) -> anyhow::Result<String> {
        self.ask("health").await
    }

    /// What it has counted.
    pub(crate) async fn stats(&mut self) -> anyhow::Result<Stats> {
        Ok(serde_json::from_str(&self.ask("stats").await?)?)
    }

    /// Stops the whole process, as a debugger or a frozen guest does.
    pub(crate) fn freeze(&self) -> anyhow::Result<()> {
        Ok(kill_process(self.pid, Signal::STOP)?)
    }

    pub(crate) fn thaw(&self) -> anyhow::Result<()> {
        Ok(kill_process(self.pid, Signal::CONT)?)
    }

    /// Whether all of it is stopped.
    pub(crate) fn is_frozen(&self) -> bool {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.pid.as_raw_nonzero()));
        // The state follows the name, which is in brackets.
        stat.is_ok_and(|stat| stat.rsplit(") ").next().is_some_and(|rest| rest.starts_with('T')))
    }

    /// Has it commit and kill itself.
    pub(crate) async fn commit_and_die(&mut self) -> anyhow::Result<()> {
        self.tell("commit-and-die").await?;
        let ended =
            tokio::time::timeout(PATIENCE, self.child.wait()).await.context("the worker lives on")??;
        use std::os::unix::process::ExitStatusExt;
        ensure!(ended.signal() == Some(9), "the worker ended otherwise: {ended}");
        Ok(())
    }

    /// Ends it in order. What went wrong in it, ever.
    pub(crate) async fn stop(mut self) -> Vec<String> {
        let mut wrong = Vec::new();
        if let Err(error) = self.ask("stop").await {
            wrong.push(format!("{error:#}"));
        }
        self.input = None;
        match tokio::time::timeout(PATIENCE, self.child.wait()).await {
            Ok(Ok(status)) if status.success() => {}
            ended => wrong.push(format!("worker {} ended with {ended:?}", self.number)),
        }
        self.listening.shutdown().await;
        wrong.extend(self.panics());
        wrong
    }

    pub(crate) fn panics(&self) -> Vec<String> {
        self.panics.lock().drain(..).map(|panic| format!("worker {}: {panic}", self.number)).collect()
    }

    pub(crate) fn usage(&self) -> Usage {
        let proc = format!("/proc/{}", self.pid.as_raw_nonzero());
        let status = std::fs::read_to_string(format!("{proc}/status")).unwrap_or_default();
        let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        let peak = peak.and_then(|line| line.trim().trim_end_matches(" kB").parse().ok());
        let files = std::fs::read_dir(format!("{proc}/fd")).map_or(0, Iterator::count);
        Usage { files, peak_kib: peak.unwrap_or(0) }
    }

    /// What it used once it was warm, the first time that this is asked.
    pub(crate) fn at_first(&mut self) -> Usage {
        if self.first_seen.files == 0 {
            self.first_seen = self.usage();
        }
        self.first_seen
    }
}

/// Until every worker says that it is coherent. When the last one did, by the clock of the histories.
pub(crate) async fn coherent(
    workers: &mut [Worker],
    limit: Duration,
    waited_for: &mut String,
) -> anyhow::Result<u64> {
    let began = Instant::now();
    let mut healths: Vec<String>;
    loop {
        healths = Vec::new();
        for worker in workers.iter_mut() {
            healths.push(worker.health().await?);
        }
        if healths.iter().all(|health| health.starts_with("coherent")) {
            return Ok(now_ns());
        }
        if began.elapsed() > Duration::from_secs(1) {
            // The last one tells what took longest.
            let late = healths.iter().find(|health| !health.starts_with("coherent"));
            *waited_for = late.cloned().unwrap_or_default();
        }
        ensure!(began.elapsed() < limit, "not coherent again within {limit:?}: {healths:?}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}
