//! A private `PgBouncer` that pools by transaction and keeps no prepared statements, with no setting that an app asks for.

use std::fs;
use std::fs::File;
use std::path::{Path, PathBuf};

use rustix::process::{Pid, Signal, kill_process};
use sqlx::{Connection, PgConnection};

use super::servers::{Folder, Process, RunAs, free_port, on_path};
use super::wait::eventually;

pub(crate) struct PrivateBouncer {
    process: Process,
    port: u16,
    folder: Folder,
}

impl PrivateBouncer {
    /// In front of the Postgres on a port of this machine, with so many connections to it.
    pub(crate) async fn start(postgres: u16, servers: u8) -> Self {
        let (folder, port, run_as) = (Folder::new("pgbouncer"), free_port(), RunAs::find());
        let place = |file: &str| folder.0.join(file);
        let settings = format!(
            "[databases]\n\
             * = host=127.0.0.1 port={postgres} user=postgres\n\
             [pgbouncer]\n\
             listen_addr = 127.0.0.1\n\
             listen_port = {port}\n\
             unix_socket_dir =\n\
             auth_type = any\n\
             pool_mode = transaction\n\
             default_pool_size = {servers}\n\
             server_round_robin = 1\n\
             pidfile = {}\n",
            place("pid").display()
        );
        fs::write(place("ini"), settings).unwrap();
        let log = File::create(place("log")).unwrap();
        run_as.own(&folder.0);
        let mut command = run_as.command(&program());
        command.arg(place("ini")).current_dir(&folder.0).stdout(log.try_clone().unwrap()).stderr(log);
        let mut bouncer = Self { process: Process::spawn(&mut command), port, folder };
        // With a setting that the pooler follows only: what a library sends without being asked.
        let options = bouncer.url("postgres").parse::<sqlx::postgres::PgConnectOptions>().unwrap();
        eventually("a private PgBouncer answers", async || {
            assert!(!bouncer.process.has_ended(), "{}", bouncer.log());
            PgConnection::connect_with(&options.clone().extra_float_digits(None)).await.is_ok()
        })
        .await;
        bouncer
    }

    pub(crate) fn url(&self, database: &str) -> String {
        format!("postgres://postgres@127.0.0.1:{}/{database}", self.port)
    }

    fn log(&self) -> String {
        fs::read_to_string(self.folder.0.join("log")).unwrap_or_default()
    }
}

impl Drop for PrivateBouncer {
    fn drop(&mut self) {
        // By its own word: a program that changes the user may have stayed in between.
        let file = fs::read_to_string(self.folder.0.join("pid")).unwrap_or_default();
        // Never a negative one, which would be a group of processes.
        let pid = file.trim().parse().ok().filter(|pid| *pid > 1).and_then(Pid::from_raw);
        if let Some(pid) = pid {
            let _ = kill_process(pid, Signal::KILL);
        }
        self.process.kill();
    }
}

/// From `PERTO_PGBOUNCER`; else from `PATH`; else where Debian and Homebrew keep it, off the path of most.
fn program() -> PathBuf {
    let known = ["/usr/sbin", "/opt/homebrew/bin", "/usr/local/bin"];
    std::env::var_os("PERTO_PGBOUNCER")
        .map(PathBuf::from)
        .or_else(|| on_path("pgbouncer"))
        .or_else(|| {
            known.iter().map(|folder| Path::new(folder).join("pgbouncer")).find(|program| program.is_file())
        })
        .expect("no PgBouncer: install it (apt install pgbouncer, brew install pgbouncer), or set PERTO_PGBOUNCER")
}
