//! Chaos: every fault that the promise names, on private servers, under load from several processes, each of which writes
//! down what it was told. The histories are judged by [`perto::history`].
//!
//! `make chaos` runs all of it. Without arguments, as `cargo test` calls it, a few faults run for a second or two, so
//! that the harness itself is tested. `README.md` has the rest.
#![expect(clippy::unwrap_used, clippy::panic, reason = "a test ends where it is wrong")]

#[path = "../support/support.rs"]
#[expect(dead_code, reason = "other rings use the rest")]
mod support;

mod faults;
mod fleet;
mod hand;
mod load;
mod postgres_faults;
mod record;
mod report;
mod schedule;
mod schema_faults;
mod stats;
mod topology_faults;
mod verdict;
mod worker;
mod world;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};
use tokio::signal::unix::{SignalKind, signal};

use faults::{FAULTS, Fault};
use fleet::Pace;
use report::{Report, say};
use schedule::Plan;
use topology_faults::{BEHIND_SENTINELS, IN_A_CLUSTER};

#[derive(Debug, Parser)]
struct Command {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// Runs the schedule
    Run(Run),
    #[command(hide = true)]
    Worker(worker::Settings),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum On {
    One,
    Sentinel,
    Cluster,
}

impl On {
    fn faults(self) -> &'static [Fault] {
        match self {
            Self::One => FAULTS,
            Self::Sentinel => BEHIND_SENTINELS,
            Self::Cluster => IN_A_CLUSTER,
        }
    }
}

#[derive(Debug, Args)]
struct Run {
    /// Faults to run, by name or by the beginning of it [default: all]
    #[arg(long, value_delimiter = ',', value_name = "NAME")]
    only: Vec<String>,
    /// How Redis is run. Where it is no one server, the faults are others
    #[arg(long, value_enum, default_value_t = On::One)]
    on: On,
    /// Lists the faults
    #[arg(long)]
    list: bool,
    /// How long each fault lasts
    #[arg(long, default_value_t = 4.5, value_name = "SECONDS")]
    seconds: f64,
    /// Instances, each in a process of its own
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(2..=16))]
    instances: u32,
    /// Reads a second of each instance
    #[arg(long, default_value_t = 22_000)]
    reads: u64,
    /// Of 1,000 reads, those that go to any row of the table: nearly each of them is a load
    #[arg(long, default_value_t = 1)]
    cold: u64,
    /// Writes a second of each instance
    #[arg(long, default_value_t = 50)]
    writes: u64,
    /// The bound on staleness
    #[arg(long, default_value_t = 1_000, value_name = "MILLISECONDS")]
    bound: u64,
    /// Fails where fewer reads were judged [default: 10,000,000 for all faults, none with --only]
    #[arg(long, value_name = "READS")]
    least_reads: Option<u64>,
    /// Writes the results to this file, as JSON
    #[arg(long, value_name = "FILE")]
    report: Option<PathBuf>,
}

fn main() -> ExitCode {
    let first = std::env::args().nth(1);
    match first.as_deref() {
        Some("worker" | "run" | "help") => match Command::parse().what {
            What::Worker(settings) => worker::main(&settings),
            What::Run(run) => run.main(),
        },
        // What a test runner asks, and a filter that is meant for other tests.
        Some("--list") => {
            say("chaos_smoke: test");
            ExitCode::SUCCESS
        }
        Some(filter) if !filter.starts_with('-') && !"chaos_smoke".contains(filter) => ExitCode::SUCCESS,
        _ => smoke().main(),
    }
}

/// What a run of all faults must have judged.
const FULL_READS: u64 = 10_000_000;
/// What the smoke schedule must have judged: a sixth of what it reads where nothing is in its way.
const SMOKE_READS: u64 = 10_000;

/// A few faults, short: what `cargo test` runs.
fn smoke() -> Run {
    Run {
        on: On::One,
        only: FAULTS.iter().filter(|fault| fault.smoke).map(|fault| fault.name.to_owned()).collect(),
        list: false,
        seconds: 1.2,
        instances: 3,
        reads: 2_000,
        cold: 1,
        writes: 20,
        bound: 1_000,
        least_reads: Some(SMOKE_READS),
        report: None,
    }
}

impl Run {
    fn main(self) -> ExitCode {
        if self.list {
            self.on.faults().iter().for_each(|fault| say(&format!("{:<20}  {}", fault.name, fault.what)));
            return ExitCode::SUCCESS;
        }
        // The servers' proxies need threads of their own beside what blocks.
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(4).enable_all().build().unwrap();
        let code = runtime.block_on(Box::pin(self.run()));
        runtime.shutdown_timeout(Duration::from_secs(5));
        code
    }

    async fn run(self) -> ExitCode {
        let wanted = |fault: &&Fault| {
            self.only.is_empty() || self.only.iter().any(|name| fault.name.starts_with(name.as_str()))
        };
        let faults: Vec<&Fault> = self.on.faults().iter().filter(wanted).collect();
        if faults.is_empty() {
            say(&format!("no fault is called {:?}; --list shows them all", self.only));
            return ExitCode::FAILURE;
        }
        let bound = Duration::from_millis(self.bound);
        let plan = Plan {
            faults,
            time: Duration::from_secs_f64(self.seconds),
            pace: Pace { bound, reads: self.reads, cold: self.cold, writes: self.writes },
            workers: self.instances,
            on: self.on,
        };
        let folder = std::env::temp_dir().join(format!("perto-chaos-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let mut report = Report::new(bound);
        let (mut interrupt, mut terminate, mut hang_up) = (
            signal(SignalKind::interrupt()).unwrap(),
            signal(SignalKind::terminate()).unwrap(),
            signal(SignalKind::hangup()).unwrap(),
        );
        let outcome = tokio::select! {
            outcome = Box::pin(schedule::run(&plan, &folder, &mut report)) => outcome,
            _ = interrupt.recv() => Err(anyhow::anyhow!("interrupted")),
            _ = terminate.recv() => Err(anyhow::anyhow!("interrupted")),
            _ = hang_up.recv() => Err(anyhow::anyhow!("interrupted")),
        };
        let interrupted = outcome.as_ref().is_err_and(|error| error.to_string() == "interrupted");
        if let Err(error) = &outcome {
            report.wrong.push(format!("{error:#}"));
        }
        let all = self.only.is_empty() && self.on == On::One;
        let least = self.least_reads.unwrap_or(if all { FULL_READS } else { 0 });
        if report.reads() < least && !interrupted {
            report.wrong.push(format!("only {} reads were judged, not {least}", report.reads()));
        }
        report.sum_up();
        if let Some(file) = &self.report {
            std::fs::write(file, report.json()).unwrap();
        }
        if report.is_good() || interrupted {
            std::fs::remove_dir_all(&folder).unwrap();
        } else {
            say(&format!("histories and logs are in {}", folder.display()));
        }
        if report.is_good() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
    }
}
