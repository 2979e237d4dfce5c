//! A private Postgres, to kill and to lag behind.

use std::fs;
use std::fs::File;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use sqlx::{Connection, PgConnection};
use tokio::sync::OnceCell;

use super::servers::{Folder, Process, RunAs, copy_tree, free_port, on_path};
use super::wait::eventually;

pub(crate) struct PrivatePostgres {
    process: Process,
    pub(crate) port: u16,
    run_as: RunAs,
    folder: Folder,
    /// Beside those of all.
    settings: Vec<String>,
}

/// Quick rather than safe: these servers are killed, the machine is not.
const SETTINGS: [&str; 7] = [
    "listen_addresses=127.0.0.1",
    "unix_socket_directories=",
    "fsync=off",
    "shared_buffers=16MB",
    "max_connections=60",
    "autovacuum=off",
    "hot_standby=on",
];

impl PrivatePostgres {
    pub(crate) async fn start() -> Self {
        Self::start_with(&[]).await
    }

    /// With settings of the server, `name=value`.
    pub(crate) async fn start_with(settings: &[&str]) -> Self {
        static TEMPLATE: OnceCell<PathBuf> = OnceCell::const_new();
        let template =
            TEMPLATE.get_or_init(async || tokio::task::spawn_blocking(template).await.unwrap()).await;
        let mut server = Self::stopped();
        server.settings = settings.iter().map(|&setting| setting.to_owned()).collect();
        copy_tree(template, &server.data()).unwrap();
        server.started().await
    }

    /// A hot standby that streams from this server.
    pub(crate) async fn standby(&self) -> Self {
        self.standby_through(self.port).await
    }

    /// A hot standby that streams from this server through a port of this machine: that of a proxy.
    pub(crate) async fn standby_through(&self, port: u16) -> Self {
        let standby = Self::stopped();
        standby.run_as.own(&standby.folder.0);
        let mut command = standby.run_as.command(&bin("pg_basebackup"));
        command.args(["-h", "127.0.0.1", "-U", "postgres", "-R", "-X", "stream", "-c", "fast", "-p"]);
        command.arg(port.to_string()).arg("-D").arg(standby.data());
        run(&mut command);
        standby.started().await
    }

    /// What it has said since it was made.
    pub(crate) fn log(&self) -> PathBuf {
        self.folder.0.join("log")
    }

    pub(crate) fn url(&self, database: &str) -> String {
        format!("postgres://postgres@127.0.0.1:{}/{database}", self.port)
    }

    /// Ends it as a crash does: unlogged tables will be empty.
    pub(crate) fn kill(&mut self) {
        let postmaster = self.postmaster();
        if let Some(pid) = postmaster {
            let _ = kill_process(pid, Signal::KILL);
        }
        self.process.kill();
    }

    /// Ends it in order, like an operator: what is committed is kept, unlogged tables too.
    pub(crate) fn stop_in_order(&mut self) {
        self.signal(Signal::INT);
        self.kill();
    }

    /// Starts it on another port for `work`, and then again on its own: those who wait for it find it when the work
    /// is done.
    pub(crate) async fn restart_then(&mut self, work: impl AsyncFnOnce(String)) {
        let port = std::mem::replace(&mut self.port, free_port());
        self.restart().await;
        work(self.url("postgres")).await;
        self.stop_in_order();
        self.port = port;
        self.restart().await;
    }

    /// Starts it again on its port.
    pub(crate) async fn restart(&mut self) {
        let url = self.url("postgres");
        eventually("a private Postgres answers", async || {
            // What the killed one left in shared memory may live a moment longer: then it is tried again.
            if self.process.has_ended() {
                self.process = self.spawn();
            }
            PgConnection::connect(&url).await.is_ok()
        })
        .await;
    }

    /// Pipes one database into another, as an operator does who restores a dump elsewhere.
    pub(crate) fn dump_into(&self, from: &str, to: &str) {
        self.dump_to(from, self, to);
    }

    /// The same into a database of another server.
    pub(crate) fn dump_to(&self, from: &str, server: &Self, to: &str) {
        let mut dumping = Command::new(bin("pg_dump"));
        dumping.arg(self.url(from)).stdout(Stdio::piped()).stderr(Stdio::inherit());
        let mut dumping = dumping.spawn().unwrap();
        let pipe = dumping.stdout.take().unwrap();
        let mut restoring = psql_command(&server.url(to));
        let restored = restoring.stdin(pipe).stdout(Stdio::null()).status();
        assert!(restored.unwrap().success() && dumping.wait().unwrap().success());
    }

    fn stopped() -> Self {
        Self {
            process: Process::none(),
            port: free_port(),
            run_as: RunAs::find(),
            folder: Folder::new("postgres"),
            settings: Vec::new(),
        }
    }

    async fn started(mut self) -> Self {
        self.run_as.own(&self.folder.0);
        self.restart().await;
        self
    }

    fn spawn(&self) -> Process {
        let log = File::options().create(true).append(true).open(self.log()).unwrap();
        let mut command = self.run_as.command(&bin("postgres"));
        command.arg("-D").arg(self.data()).arg("-p").arg(self.port.to_string()).env("LC_ALL", "C");
        for setting in SETTINGS.into_iter().chain(self.settings.iter().map(String::as_str)) {
            command.arg("-c").arg(setting);
        }
        Process::spawn(command.current_dir(&self.folder.0).stdout(log.try_clone().unwrap()).stderr(log))
    }

    fn data(&self) -> PathBuf {
        self.folder.0.join("data")
    }

    /// Signals the server's first process, and waits a while for its end.
    fn signal(&mut self, signal: Signal) {
        let Some(pid) = self.postmaster() else { return };
        let _ = kill_process(pid, signal);
        let began = Instant::now();
        while !self.process.has_ended() && began.elapsed() < Duration::from_secs(10) {
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// The id of the server's first process, by its own word: a prefix may have put another process between.
    fn postmaster(&self) -> Option<Pid> {
        let started = self.process.id()?;
        let file = fs::read_to_string(self.data().join("postmaster.pid")).unwrap_or_default();
        // Never a negative one, which would be a group of processes.
        let pid = file.lines().next().and_then(|line| line.trim().parse().ok()).filter(|pid| *pid > 1);
        Pid::from_raw(pid.or_else(|| i32::try_from(started).ok())?)
    }
}

impl Drop for PrivatePostgres {
    fn drop(&mut self) {
        // The quick end, which takes its children along; a kill if that does not help.
        self.signal(Signal::QUIT);
        self.kill();
    }
}

/// A data folder to copy: made once, and kept among the build's temporary files.
fn template() -> PathBuf {
    let version = Command::new(bin("postgres")).arg("--version").output().unwrap();
    let version: String = String::from_utf8_lossy(&version.stdout)
        .chars()
        .filter(|c| c.is_ascii_digit() || *c == '.')
        .take(6)
        .collect();
    let kept = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("postgres-{version}"));
    if kept.is_dir() {
        return kept;
    }
    let (folder, run_as) = (Folder::new("initdb"), RunAs::find());
    run_as.own(&folder.0);
    let data = folder.0.join("data");
    let mut command = run_as.command(&bin("initdb"));
    command.args(["-U", "postgres", "-A", "trust", "-E", "UTF8", "--locale=C", "--no-sync", "-D"]).arg(&data);
    run(command.env("LC_ALL", "C").current_dir(&folder.0));
    let new = kept.with_extension(format!("new-{}", std::process::id()));
    drop(fs::remove_dir_all(&new));
    copy_tree(&data, &new).unwrap();
    // Whole or not at all; another run may have been faster.
    if fs::rename(&new, &kept).is_err() {
        drop(fs::remove_dir_all(&new));
    }
    kept
}

/// Runs SQL as somebody does who was given it.
pub(crate) fn psql(url: &str, sql: &str) {
    let mut child = psql_command(url).stdin(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(sql.as_bytes()).unwrap();
    assert!(child.wait().unwrap().success(), "{sql}");
}

fn psql_command(url: &str) -> Command {
    let mut command = Command::new(bin("psql"));
    command.args(["-X", "-q", "-v", "ON_ERROR_STOP=1", url]);
    command
}

fn run(command: &mut Command) {
    let output = command.stdin(Stdio::null()).output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
}

/// A program of Postgres: from `PERTO_PG_BIN`, where that has only links from where they lead to; else from `PATH`; else
/// the newest that Debian keeps off it.
fn bin(program: &str) -> PathBuf {
    let version = |path: &Path| path.file_name().and_then(|name| name.to_str()?.parse::<u32>().ok());
    let given = std::env::var_os("PERTO_PG_BIN").map(PathBuf::from);
    let on_path = on_path("postgres").and_then(|postgres| Some(postgres.parent()?.to_owned()));
    let newest = || {
        let versions = fs::read_dir("/usr/lib/postgresql").ok()?;
        let newest =
            versions.filter_map(|entry| Some(entry.ok()?.path())).max_by_key(|path| version(path))?;
        Some(newest.join("bin"))
    };
    let folder = given
        .or(on_path)
        .or_else(newest)
        .expect("no Postgres: set PERTO_PG_BIN to the folder of its programs");
    let linked = || {
        let postgres = fs::canonicalize(folder.join("postgres")).ok()?;
        Some(postgres.parent()?.join(program))
    };
    let found = Some(folder.join(program)).filter(|program| program.is_file()).or_else(linked);
    found
        .filter(|program| program.is_file())
        .unwrap_or_else(|| panic!("no {program} in {}", folder.display()))
}
