//! Running the command.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Output, Stdio};

use sqlx::{AssertSqlSafe, Connection, PgConnection};

use crate::support::engines::{postgres_url, redis_url, unique_name};

/// A database of its own, dropped at the end.
pub(crate) struct Database {
    name: String,
    pub(crate) url: String,
}

impl Database {
    /// `perto migrate` makes it.
    pub(crate) fn new() -> Self {
        let name = unique_name();
        let server = postgres_url();
        let (before, _) = server.rsplit_once('/').unwrap();
        Self { url: format!("{before}/{name}"), name }
    }
}

impl Drop for Database {
    fn drop(&mut self) {
        let name = self.name.clone();
        let dropping = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let mut server = PgConnection::connect(&postgres_url()).await.unwrap();
                let sql = format!("drop database if exists {name} with (force)");
                sqlx::raw_sql(AssertSqlSafe(sql)).execute(&mut server).await.unwrap();
            });
        });
        drop(dropping.join());
    }
}

pub(crate) fn perto(database: &str, redis: &str) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_perto-chat"));
    command.env("DATABASE_URL", database).env("REDIS_URL", redis).stdin(Stdio::null());
    command
}

/// Runs a command that must succeed.
pub(crate) fn succeed(command: &mut Command) -> Output {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    output
}

pub(crate) const ADMIN_KEY: &str = "the admin of the tests has this key, and nobody else";

/// A database with the service's tables, and a little demo data: company 1 has the contacts 20, 40, ...
pub(crate) fn seeded() -> Database {
    let database = Database::new();
    succeed(perto(&database.url, "").arg("migrate"));
    let amounts = ["--companies", "20", "--users", "40", "--contacts", "400", "--messages", "8000"];
    succeed(perto(&database.url, "").arg("seed").args(amounts));
    database
}

/// A new API key of a company.
pub(crate) fn key_of(database: &Database, company: i64) -> String {
    let company = company.to_string();
    let made = succeed(perto(&database.url, "").args(["keys", "create", "--company", &company]));
    String::from_utf8(made.stdout).unwrap().trim().to_owned()
}

/// A served instance, ended with the test.
pub(crate) struct Served {
    child: Child,
    pub(crate) address: String,
}

impl Served {
    pub(crate) fn start(database: &Database, name: &str) -> Self {
        Self::start_with(database, name, &[])
    }

    pub(crate) fn start_with(database: &Database, name: &str, arguments: &[&str]) -> Self {
        Self::start_on(&database.url, &redis_url(), name, arguments)
    }

    /// With the admin's key: from then on every request needs one.
    pub(crate) fn start_closed(database: &Database, name: &str) -> Self {
        Self::start_with(database, name, &["--admin-key", ADMIN_KEY])
    }

    pub(crate) fn start_on(database: &str, redis: &str, name: &str, arguments: &[&str]) -> Self {
        Self::start_by(perto(database, redis), name, arguments)
    }

    pub(crate) fn start_by(command: Command, name: &str, arguments: &[&str]) -> Self {
        Self::start_saying(command, name, arguments, Stdio::null())
    }

    /// Its log lines go there.
    pub(crate) fn start_saying(command: Command, name: &str, arguments: &[&str], log: Stdio) -> Self {
        Self::start_at("127.0.0.1:0", command, name, arguments, log)
    }

    pub(crate) fn start_at(
        address: &str,
        mut command: Command,
        name: &str,
        arguments: &[&str],
        log: Stdio,
    ) -> Self {
        let mut child = command
            .args(["serve", "--listen", address, "--instance", name])
            .args(arguments)
            .stdout(Stdio::piped())
            .stderr(log)
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let address =
            line.trim().strip_prefix(&format!("{name} serves on http://")).map(|at| at.trim_end_matches('/'));
        Self { address: address.unwrap_or_else(|| panic!("not served: {line:?}")).to_owned(), child }
    }

    /// Of the process.
    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    pub(crate) fn ask_to_end(&self) {
        let pid = rustix::process::Pid::from_child(&self.child);
        // Asked twice, it may have ended.
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
    }

    /// Asks for an end and waits for it. Returns whether it ended well.
    pub(crate) fn end(mut self) -> bool {
        self.ask_to_end();
        self.child.wait().unwrap().success()
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        // Nothing to end where it has ended.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}
