//! The command line. Each command is a file; what they share is how they connect and how they complain.

use std::io::Write;

use clap::Parser;

mod columns;
mod connect;
mod doctor;
mod http;
mod inspect;
mod migrate;
mod replay;
mod seed;
mod serve;
mod watch;

/// A coherent two-tier near cache: the service, and the tools around it.
#[derive(Debug, Parser)]
#[command(version, about)]
pub(crate) enum Command {
    /// Serve the caches over HTTP
    Serve(serve::Serve),
    /// Make or upgrade the tables of the invalidation log, and with --service those of the service
    Migrate(migrate::Migrate),
    /// Put demo data into the service's tables
    Seed(seed::Seed),
    /// Make every SQL write to a table invalidate a cache, or stop it
    Watch(watch::Watch),
    /// Look at Postgres and Redis, say what is wrong, and how to mend it
    Doctor(doctor::Doctor),
    /// Show one key through all tiers, and who would serve what
    Inspect(inspect::Inspect),
    /// Drive an access trace through several instances, with writes and faults, and check the promise
    Replay(Box<replay::Replay>),
}

impl Command {
    pub(crate) async fn run(self) -> anyhow::Result<()> {
        match self {
            Self::Serve(command) => command.run().await,
            Self::Migrate(command) => command.run().await,
            Self::Seed(command) => command.run().await,
            Self::Watch(command) => command.run().await,
            Self::Doctor(command) => command.run().await,
            Self::Inspect(command) => command.run().await,
            Self::Replay(command) => command.run().await,
        }
    }
}

/// One line for a person: what is wrong, and why.
pub(crate) fn complain(error: &anyhow::Error) {
    say_error(&format!("perto: {}", one_line(error)));
}

/// An error and its causes.
fn one_line(error: &anyhow::Error) -> String {
    let mut text = String::new();
    for cause in error.chain() {
        let cause = cause.to_string().replace('\n', " ");
        if !text.contains(&cause) {
            text = if text.is_empty() { cause } else { format!("{text}: {cause}") };
        }
    }
    text
}

/// Writes a line to standard output. That nobody reads any more is no reason to fail.
pub(crate) fn say(line: &str) {
    let mut out = std::io::stdout().lock();
    drop(writeln!(out, "{line}"));
}

/// Writes a line to standard error.
pub(crate) fn say_error(line: &str) {
    let mut out = std::io::stderr().lock();
    drop(writeln!(out, "{line}"));
}
