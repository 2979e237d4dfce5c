//! The release before and this one, beside each other: three instances under load, replaced one by one, upgraded and rolled back.
//!
//! `make rolling` builds the release before from its commit and runs this. Without its program (`PERTO_BEFORE`) nothing is run:
//! `cargo test` has no minutes for a second build, and `tests/faults/releases.rs` has what one build can show.
//!
//! Each stretch is judged as the attacks are: no answer is older than the bound or wrong, and none fails beyond those that a killed
//! instance had under way.
#![expect(clippy::unwrap_used, clippy::panic, reason = "a test ends where it is wrong")]

#[path = "../attack/client.rs"]
mod client;
#[path = "../http/command.rs"]
#[expect(dead_code, reason = "another ring uses the rest")]
mod command;
#[path = "../attack/quiet.rs"]
#[expect(dead_code, reason = "another ring uses the rest")]
mod quiet;
#[path = "../support/support.rs"]
#[expect(dead_code, reason = "other rings use the rest")]
mod support;

use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::process::{Command, ExitCode, Output, Stdio};
use std::time::{Duration, Instant};

use client::{Client, Who};
use command::{ADMIN_KEY, Served, perto, succeed};
use quiet::{BOUND, Quiet};
use support::postgres::PrivatePostgres;
use support::redis::PrivateRedis;
use support::servers::free_port;
use support::wait::eventually;

/// Long enough for each to answer from all tiers, and for many polls.
const STRETCH: Duration = Duration::from_secs(3);
/// Readers and the writer of the load: so many requests can be under way at a time.
const AT_ONCE: usize = 7;

fn main() -> ExitCode {
    let before = std::env::var_os("PERTO_BEFORE").map(PathBuf::from);
    let (Some(before), Some("run")) = (before, std::env::args().nth(1).as_deref()) else {
        // What a test runner asks, too.
        return ExitCode::SUCCESS;
    };
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let ended = runtime.block_on(run(before));
    runtime.shutdown_timeout(Duration::from_secs(5));
    if ended { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

#[expect(clippy::print_stdout, reason = "it is the report")]
fn say(line: &str) {
    println!("{line}");
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Release {
    Before,
    This,
}

struct World {
    redis: PrivateRedis,
    postgres: PrivatePostgres,
    before: PathBuf,
    addresses: Vec<String>,
    instances: Vec<Option<Served>>,
}

impl World {
    fn command(&self, release: Release) -> Command {
        let (database, redis) = (self.postgres.url("rolling"), self.redis.url());
        if release == Release::This {
            return perto(&database, &redis);
        }
        let mut command = Command::new(&self.before);
        command.env("DATABASE_URL", database).env("REDIS_URL", redis).stdin(Stdio::null());
        command
    }

    fn migrate(&self, release: Release, arguments: &[&str]) -> Output {
        self.command(release).arg("migrate").args(arguments).output().unwrap()
    }

    /// Until it is coherent: a balancer would ask it from then on.
    async fn start(&mut self, at: usize, release: Release) {
        let (address, name) = (self.addresses[at].clone(), format!("rolling{at}"));
        let command = self.command(release);
        let starting = tokio::task::spawn_blocking(move || {
            Served::start_at(&address, command, &name, &["--admin-key", ADMIN_KEY], Stdio::null())
        });
        self.instances[at] = Some(starting.await.unwrap());
        self.coherent(at).await;
    }

    async fn coherent(&self, at: usize) {
        let who = Who { from: Ipv4Addr::LOCALHOST, key: None };
        eventually("an instance is coherent", async || {
            let answer = Client::new(&self.addresses[at], &who).get("/readyz").await;
            answer.is_ok_and(|answer| {
                answer.status == 200 && answer.body.windows(8).any(|at| at == b"coherent")
            })
        })
        .await;
    }

    /// In order, as at each deployment.
    async fn end(&mut self, at: usize) {
        let served = self.instances[at].take().unwrap();
        assert!(tokio::task::spawn_blocking(|| served.end()).await.unwrap(), "it ended badly");
    }

    fn kill(&mut self, at: usize) {
        drop(self.instances[at].take());
    }
}

/// What the load saw, stretch by stretch.
struct Watched {
    quiet: Quiet,
    well: bool,
}

impl Watched {
    /// How many may have failed: none, or those that were under way at what was ended.
    fn judge(&mut self, what: &str, may_fail: usize) {
        let sight = self.quiet.sight();
        let well = sight.failed <= may_fail
            && sight.violations.is_empty()
            && sight.worst <= BOUND
            && sight.reads > 0;
        self.well &= well;
        say(&format!(
            "{} {what}: {} answers, {} failed, {} flagged, {} wrong or over the bound, oldest {:.0?}, p99 {:.1?}",
            if well { "ok  " } else { "BAD " },
            sight.reads,
            sight.failed,
            sight.flagged,
            sight.violations.len(),
            sight.worst,
            sight.p99
        ));
        sight
            .violations
            .iter()
            .take(3)
            .chain(&sight.complaints)
            .for_each(|line| say(&format!("     {line}")));
    }

    async fn stretch(&mut self, what: &str) {
        tokio::time::sleep(STRETCH).await;
        self.judge(what, 0);
    }
}

fn said(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

async fn run(before: PathBuf) -> bool {
    let began = Instant::now();
    let (redis, postgres) =
        (PrivateRedis::start().await, PrivatePostgres::start_with(&["max_connections=200"]).await);
    let addresses = (0..3).map(|_| format!("127.0.0.1:{}", free_port())).collect();
    let mut world = World { redis, postgres, before, addresses, instances: vec![None, None, None] };
    succeed(world.command(Release::Before).arg("migrate"));
    let amounts = ["--companies", "20", "--users", "40", "--contacts", "400", "--messages", "2000"];
    succeed(world.command(Release::Before).arg("seed").args(amounts));
    let key = succeed(world.command(Release::Before).args(["keys", "create", "--company", "1"]));
    let key = String::from_utf8(key.stdout).unwrap().trim().to_owned();
    // A new program on a log that nobody has migrated.
    let early = world.command(Release::This).args(["serve", "--listen", "127.0.0.1:0"]).output().unwrap();
    assert!(!early.status.success() && said(&early).contains("migrate"), "{}", said(&early));
    for at in 0..3 {
        world.start(at, Release::Before).await;
    }
    let quiet = Quiet::begin(&world.addresses, &key, true).await;
    let mut load = Watched { quiet, well: true };
    load.stretch("the release before alone").await;

    let migrated = world.migrate(Release::This, &[]);
    say(&format!("     {}", said(&migrated).trim().replace('\n', "\n     ")));
    assert!(migrated.status.success() && said(&migrated).contains("connected are: "), "{}", said(&migrated));
    load.stretch("the release before on the migrated log").await;
    let refused = world.migrate(Release::This, &["--finish"]);
    assert!(!refused.status.success() && said(&refused).contains("still run"), "{}", said(&refused));
    assert!(world.migrate(Release::Before, &[]).status.success(), "for the release before it is its own log");

    for at in 0..3 {
        world.end(at).await;
        load.stretch(&format!("instance {at} is ended")).await;
        world.start(at, Release::This).await;
        load.stretch(&format!("instance {at} is of this release")).await;
        if at == 1 {
            world.redis.kill();
            load.stretch("Redis is killed").await;
            world.redis.restart_empty().await;
            load.stretch("Redis is there again, empty").await;
        }
    }
    for at in [2, 0, 1] {
        world.kill(at);
        tokio::time::sleep(STRETCH).await;
        load.judge(&format!("instance {at} is killed"), AT_ONCE);
        world.start(at, Release::Before).await;
        load.stretch(&format!("instance {at} is rolled back")).await;
        if at == 0 {
            world.postgres.stop_in_order();
            tokio::time::sleep(STRETCH).await;
            world.postgres.restart().await;
            for at in 0..3 {
                world.coherent(at).await;
            }
            load.judge("Postgres is restarted", AT_ONCE);
            load.stretch("Postgres is there again").await;
        }
    }
    for at in 0..3 {
        world.end(at).await;
        world.start(at, Release::This).await;
        load.stretch(&format!("instance {at} is of this release again")).await;
        let finished = world.migrate(Release::This, &["--finish"]);
        assert_eq!(finished.status.success(), at == 2, "{}", said(&finished));
    }
    load.stretch("the upgrade is finished").await;
    let late = world.command(Release::Before).args(["serve", "--listen", "127.0.0.1:0"]).output().unwrap();
    assert!(!late.status.success() && said(&late).contains("use a newer Perto"), "{}", said(&late));
    say(&format!("{} in {:.0?}", if load.well { "all well" } else { "NOT WELL" }, began.elapsed()));
    load.well
}
