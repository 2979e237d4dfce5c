//! A standing attack: what strangers, tenants and an ill Redis can do to three instances, and what a quiet tenant sees of it.
//!
//! `make attack` runs all of it. Without arguments, as `cargo test` calls it, a few attacks run for a second or two. Each
//! stretch is judged: freshness, failures, times, memory, polls, lines of the log, and how soon L1 answers again.
#![expect(clippy::unwrap_used, clippy::panic, reason = "a test ends where it is wrong")]
#![expect(
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    reason = "small numbers, for people"
)]

#[path = "../support/support.rs"]
#[expect(dead_code, reason = "other rings use the rest")]
mod support;

mod attacks;
mod client;
#[path = "../http/command.rs"]
#[expect(dead_code, reason = "another ring uses the rest")]
mod command;
mod quiet;
mod redis_attacks;
mod report;
mod world;

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use clap::{Args, Parser, Subcommand};

use attacks::{ATTACKS, Attack, Power};
use quiet::Quiet;
use report::{Limits, Line, MIB, Report, say};
use world::{Use, World};

#[derive(Debug, Parser)]
struct Command {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// Runs the attacks
    Run(Run),
}

#[derive(Debug, Args)]
struct Run {
    /// Attacks to run, by name or by the beginning of it [default: all]
    #[arg(long, value_delimiter = ',', value_name = "NAME")]
    only: Vec<String>,
    /// Lists the attacks
    #[arg(long)]
    list: bool,
    /// How long each attack lasts
    #[arg(long, default_value_t = 10.0, value_name = "SECONDS")]
    seconds: f64,
    /// Hostile connections of each instance
    #[arg(long, default_value_t = 2_500)]
    connections: usize,
    /// Largest message and value, in MiB
    #[arg(long, default_value_t = 480)]
    message: usize,
    /// Until memory must be given back; 0 to leave that out
    #[arg(long, default_value_t = 60.0, value_name = "SECONDS")]
    rest: f64,
    /// What the quiet tenant's p99 may be, in times of what it is alone
    #[arg(long, default_value_t = 3.0)]
    times: f64,
    /// Below this a p99 is never too long
    #[arg(long, default_value_t = 10, value_name = "MILLISECONDS")]
    p99: u64,
    /// The same seed makes the same attack
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Writes the results to this file, as JSON
    #[arg(long, value_name = "FILE")]
    report: Option<PathBuf>,
}

fn main() -> ExitCode {
    let first = std::env::args().nth(1);
    match first.as_deref() {
        Some("run" | "help") => {
            let What::Run(run) = Command::parse().what;
            run.main()
        }
        // What a test runner asks, and a filter that is meant for other tests.
        Some("--list") => {
            say("attack_smoke: test");
            ExitCode::SUCCESS
        }
        Some(filter) if !filter.starts_with('-') && !"attack_smoke".contains(filter) => ExitCode::SUCCESS,
        _ => smoke().main(),
    }
}

/// A few attacks, short: what `cargo test` runs, on a build that is slow and beside other tests.
fn smoke() -> Run {
    Run {
        only: ATTACKS.iter().filter(|attack| attack.smoke).map(|attack| attack.name.to_owned()).collect(),
        list: false,
        seconds: 2.0,
        connections: 150,
        message: 32,
        rest: 0.0,
        times: 30.0,
        p99: 500,
        seed: 1,
        report: None,
    }
}

impl Run {
    fn main(self) -> ExitCode {
        if self.list {
            ATTACKS.iter().for_each(|attack| say(&format!("{:<16}  {}", attack.name, attack.what)));
            return ExitCode::SUCCESS;
        }
        allow_many_files();
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(4).enable_all().build().unwrap();
        let code = runtime.block_on(Box::pin(self.run()));
        runtime.shutdown_timeout(Duration::from_secs(5));
        code
    }

    fn limits(&self) -> Limits {
        Limits {
            times: self.times,
            p99: Duration::from_millis(self.p99),
            above_idle: 256 * MIB,
            left: 32 * MIB,
            polls: 20.0,
            lines: 20.0,
            hot: Duration::from_secs(5),
            from_l1: 0.0,
        }
    }

    async fn run(self) -> ExitCode {
        let wanted = |attack: &&Attack| {
            self.only.is_empty() || self.only.iter().any(|name| attack.name.starts_with(name.as_str()))
        };
        let attacks: Vec<&Attack> = ATTACKS.iter().filter(wanted).collect();
        if attacks.is_empty() {
            say(&format!("no attack is called {:?}; --list shows them all", self.only));
            return ExitCode::FAILURE;
        }
        let world = Arc::new(World::begin().await);
        let quiet = Quiet::begin(&world.addresses(), &world.quiet_key, false).await;
        let limits = self.limits();
        let mut report = Report::begin();
        // Until all that is made at first use has been made, and what that needed has been given back.
        world.use_once().await;
        tokio::time::sleep(Duration::from_secs(2)).await;
        drop(quiet.sight());
        let idle = world.resident();
        let alone = self.stretch(&world, &quiet, None, idle, Duration::ZERO).await;
        let (p99, limits) = (alone.sight.p99, Limits { from_l1: 0.9 * alone.l1_share(), ..limits });
        report.add(alone);
        for attack in attacks {
            if attack.chats {
                attacks::make_chats(&world).await;
                drop(quiet.sight());
            }
            let mut line = self.stretch(&world, &quiet, Some(attack), idle, p99).await;
            line.judge(&limits.beside(attack.by));
            report.add(line);
        }
        if self.rest > 0.0 {
            self.rest(&world, &mut report, idle, limits.left).await;
        }
        report.sum_up();
        if let Some(file) = &self.report {
            std::fs::write(file, report.json()).unwrap();
        }
        if report.is_good() {
            return ExitCode::SUCCESS;
        }
        world.instances.iter().for_each(|instance| say(&format!("  {}", instance.last_words())));
        ExitCode::FAILURE
    }

    /// The time of one attack, or of none.
    async fn stretch(
        &self,
        world: &Arc<World>,
        quiet: &Quiet,
        attack: Option<&Attack>,
        idle: u64,
        alone: Duration,
    ) -> Line {
        let (began, before) = (Instant::now(), world.uses().await);
        let power = Arc::new(Power {
            until: began + Duration::from_secs_f64(self.seconds),
            seed: self.seed,
            connections: self.connections,
            message: self.message << 20,
            tried: 0.into(),
            refused: 0.into(),
            cut: 0.into(),
        });
        let attacking = async {
            match attack {
                Some(attack) => (attack.run)(Arc::clone(world), Arc::clone(&power)).await,
                None => power.wait().await,
            }
        };
        let most = peak(world, attacking).await;
        let took = began.elapsed();
        // What the tenant saw while it lasted; what comes now is the time after it.
        let sight = quiet.sight();
        let hot_after = quiet.hot_again(Duration::from_secs(30)).await;
        let after = world.uses().await;
        drop(quiet.sight());
        let a_second = |of: fn(&Use) -> u64, since: Duration| {
            let each = before.iter().zip(&after).map(|(before, after)| of(after).saturating_sub(of(before)));
            each.max().unwrap_or_default() as f64 / since.as_secs_f64()
        };
        let count = |of: &std::sync::atomic::AtomicU64| of.load(std::sync::atomic::Ordering::Relaxed);
        Line {
            name: attack.map_or("alone", |attack| attack.name),
            tried: count(&power.tried),
            refused: count(&power.refused),
            cut: count(&power.cut),
            times: if alone.is_zero() { 1.0 } else { sight.p99.as_secs_f64() / alone.as_secs_f64() },
            sight,
            above_idle: most.saturating_sub(idle),
            polls: a_second(|used| used.polls, began.elapsed()),
            lines: a_second(|used| used.log_lines, took),
            hot_after,
            wrong: Vec::new(),
        }
    }

    /// Until memory is given back.
    async fn rest(&self, world: &World, report: &mut Report, idle: u64, left: u64) {
        let began = Instant::now();
        while world.resident().saturating_sub(idle) > left {
            if began.elapsed().as_secs_f64() > self.rest {
                let held = world.resident().saturating_sub(idle) / MIB;
                report.wrong.push(format!(
                    "{held} MiB above idle {} s after all, not {}",
                    self.rest,
                    left / MIB
                ));
                return;
            }
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
        let held = world.resident().saturating_sub(idle) / MIB;
        say(&format!("{held} MiB above idle {:.0} s after all", began.elapsed().as_secs_f64()));
    }
}

/// The most that an instance takes while something runs.
async fn peak(world: &World, until: impl Future<Output = ()>) -> u64 {
    let (mut until, mut most) = (std::pin::pin!(until), 0);
    loop {
        most = most.max(world.resident());
        if tokio::time::timeout(Duration::from_millis(100), &mut until).await.is_ok() {
            return most;
        }
    }
}

/// Both ends of hostile connections are of this machine; these are ours.
fn allow_many_files() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    let _fewer = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum });
}
