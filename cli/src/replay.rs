//! `perto replay`: the main job on real input. Drives an access trace through several instances, with writes and
//! faults, and shows that no read was staler than promised.
//!
//! On a server that others use it touches nothing but its own schema and its own key prefix, and leaves neither behind.

use std::io::IsTerminal;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use crate::plot::grouped;
use anyhow::{Context, bail, ensure};
use clap::Args;
use perto::postgres;
use perto::redis::Address;
use sqlx::postgres::PgPoolOptions;
use sqlx::{AssertSqlSafe, PgConnection};
use tokio::sync::{mpsc, oneshot};

use super::connect::{Database, LIMIT, MOST, check_redis};

mod causes;
mod faults;
mod fleet;
mod history;
mod page;
mod report;
mod timeline;
mod trace;

use causes::{Proxies, cause_faults};
use faults::{Scheduled, What};
use fleet::{Member, Plan, Run, Tally};
use history::Record;
use timeline::{Samples, Timeline};
use trace::{Format, Trace};

/// See the command's help.
#[derive(Debug, Args)]
pub struct Replay {
    /// A key a line, CSV of time, key and operation, or big-endian 32-bit integers; plain, gzip, xz or zstd. Without it,
    /// accesses by Zipf's law
    trace: Option<PathBuf>,
    /// How accesses are written down: lines, csv or words [default: found by looking]
    #[arg(long, value_name = "FORMAT")]
    format: Option<Format>,
    /// Instances, each with its own L1, connections, tail and subscription
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u8).range(1..=64))]
    instances: u8,
    /// Accesses to replay [default: the whole trace; 1000000 generated ones]
    #[arg(long)]
    accesses: Option<usize>,
    /// Reads a second [default: as fast as it goes]
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..))]
    rate: Option<u32>,
    /// Writes for each access [default: those of the trace, else 0.01]
    #[arg(long, value_name = "RATIO")]
    writes: Option<f64>,
    /// Reads under way at once, over all instances
    #[arg(long, default_value_t = 12, value_parser = clap::value_parser!(u16).range(1..=4096))]
    concurrency: u16,
    /// The bound on staleness
    #[arg(long, default_value = "1s", value_parser = super::duration, value_name = "TIME")]
    bound: Duration,
    /// Faults, like redis:cut@3s+4s,bus:drop@9s+6s,postgres:cut@16s+3s
    #[arg(long, value_delimiter = ',', value_name = "SPEC")]
    faults: Vec<Scheduled>,
    /// Write the results to this file
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Write a page with plots of tiers, latency and staleness over time to this file (HTML)
    #[arg(long, value_name = "FILE")]
    report: Option<PathBuf>,
    /// Seed of the generated trace and of the choice of writes
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Rows of the generated trace
    #[arg(long, default_value_t = 100_000, value_parser = clap::value_parser!(u32).range(1..=50_000_000))]
    keys: u32,
    /// Size of each row
    #[arg(long, default_value_t = 200, value_name = "BYTES")]
    value_bytes: usize,
    /// L1 of each instance, in MiB
    #[arg(long, default_value_t = 256, value_name = "MIB")]
    l1_mib: u32,
    /// URL of Redis or Valkey
    #[arg(long, env = "REDIS_URL", hide_env_values = true, value_name = "URL")]
    redis_url: Option<String>,
    #[command(flatten)]
    database: Database,
}

/// Writes for each access, where neither the trace nor a person says.
const WRITES: f64 = 0.01;
/// Times that the schema is dropped, while deadlocks hinder it.
const DROPS: u32 = 5;
/// Largest row: what L2 takes at most by default.
const MAX_VALUE_BYTES: usize = 1 << 20;

impl Replay {
    pub(crate) async fn run(self) -> anyhow::Result<()> {
        self.check()?;
        let redis_url = self.redis_url()?;
        // Whatever is wrong with the servers is said before the trace is read.
        drop(check_redis(redis_url).await?);
        if !perto::redis::address(redis_url)?.is_one_server()
            && let Some(fault) = self.faults.iter().find(|fault| fault.what.is_between_redis())
        {
            bail!(
                "--faults: {}: REDIS_URL must be one server's own, like redis://127.0.0.1:6379/0",
                fault.name
            );
        }
        let mut connection = self.database.connect().await?;
        let trace = match &self.trace {
            Some(path) => {
                let (path, format, limit) = (path.clone(), self.format, self.accesses);
                tokio::task::spawn_blocking(move || Trace::recorded(&path, format, limit)).await??
            }
            None => Trace::zipf(self.keys, self.accesses.unwrap_or(1_000_000), self.seed),
        };
        let schema = format!("replay_{:08x}{:04x}", std::process::id(), now_micros_low16());
        // From here on there is something to leave behind.
        let outcome = tokio::select! {
            outcome = Box::pin(self.replay(&mut connection, &schema, trace)) => outcome,
            _ = tokio::signal::ctrl_c() => Err(anyhow::anyhow!("interrupted; nothing is left behind")),
        };
        self.clean_up(&schema).await?;
        outcome
    }

    fn redis_url(&self) -> anyhow::Result<&str> {
        match self.redis_url.as_deref() {
            Some(url) if !url.is_empty() => Ok(url),
            _ => bail!("REDIS_URL is not set; like redis://127.0.0.1:6379/0"),
        }
    }

    fn check(&self) -> anyhow::Result<()> {
        let ratio = self.writes.unwrap_or(WRITES);
        ensure!((0.0..=1.0).contains(&ratio), "--writes: {ratio} is no ratio between 0 and 1");
        ensure!(
            self.value_bytes <= MAX_VALUE_BYTES,
            "--value-bytes: {} is too large; at most {MAX_VALUE_BYTES}, what L2 takes",
            self.value_bytes
        );
        ensure!(self.accesses != Some(0), "--accesses: nothing to replay");
        ensure!(self.faults.len() <= 64, "--faults: at most 64");
        for fault in &self.faults {
            if let What::Pause(at) = fault.what {
                let there = at < usize::from(self.instances);
                ensure!(there, "--faults: {}: there are only {} instances", fault.name, self.instances);
            }
        }
        // The library knows what a bound must be; ask it before anything is made.
        let probe =
            perto::Perto::builder("replay").bound(self.bound).postgres("postgres://nobody@localhost").build();
        if let Err(error) = probe {
            bail!("--{error}");
        }
        self.check_page()
    }

    async fn replay(&self, connection: &mut PgConnection, schema: &str, trace: Trace) -> anyhow::Result<()> {
        prepare(connection, schema, &trace, self.value_bytes).await?;
        let proxies = if self.faults.is_empty() { None } else { Some(Proxies::start(self).await?) };
        let versions = if self.report.is_some() { self.versions(connection).await } else { String::new() };
        let plan = self.plan(schema, trace, proxies.as_ref())?;
        let plain_pool =
            self.database.pool(PgPoolOptions::new().max_connections(2).test_before_acquire(false)).await?;
        let mut members = Vec::new();
        let mut ready = Vec::new();
        for at in 0..plan.instances {
            let (give, runs) = oneshot::channel();
            members.push(Member::start(&plan, at, runs).await?);
            ready.push(give);
        }
        let tally = Tally::new(plan.faults.len());
        let record = Arc::new(Record::new(plan.trace.ids.len()));
        let next = (0..plan.instances).map(|_| AtomicU64::new(0)).collect();
        let run = Arc::new(Run { plan, record, tally, next });
        ready.into_iter().for_each(|give| drop(give.send(Arc::clone(&run))));
        let result = self.drive(&run, &members, proxies.as_ref(), plain_pool, &versions).await;
        for member in members {
            member.end().await;
        }
        result
    }

    fn plan(&self, schema: &str, trace: Trace, proxies: Option<&Proxies>) -> anyhow::Result<Plan> {
        let (postgres_url, redis_url, subscribe_url) = match proxies {
            None => (self.database.url()?.to_owned(), self.redis_url()?.to_owned(), None),
            Some(proxies) => proxies.urls(self).context("--faults needs URLs with a host")?,
        };
        let postgres = Database { database_url: Some(postgres_url.clone()) }.options()?;
        // What a person says goes before what the trace says.
        let trace = Trace { writes: trace.writes.filter(|_| self.writes.is_none()), ..trace };
        Ok(Plan {
            trace,
            schema: schema.to_owned(),
            bound: self.bound,
            instances: usize::from(self.instances),
            concurrency: usize::from(self.concurrency),
            rate: self.rate,
            writes: self.writes.unwrap_or(WRITES),
            seed: self.seed,
            faults: self.faults.clone(),
            capacity_bytes: u64::from(self.l1_mib) << 20,
            postgres_url,
            postgres,
            redis_url,
            subscribe_url,
        })
    }

    async fn drive(
        &self,
        run: &Arc<Run>,
        members: &[Member],
        proxies: Option<&Proxies>,
        plain_pool: sqlx::PgPool,
        versions: &str,
    ) -> anyhow::Result<()> {
        let (plain, written) = mpsc::channel(64);
        let writers = members.iter().map(Member::writer).collect();
        let mut reading = Vec::new();
        for member in members {
            reading.push(member.read().await);
        }
        let all_read = async {
            for finished in reading {
                drop(finished.await);
            }
        };
        // Writes end when their senders are gone, which is when they have been given out.
        let writing = async {
            tokio::join!(
                fleet::give_out_writes(Arc::clone(run), writers, plain),
                fleet::write_plainly(Arc::clone(run), plain_pool, written)
            )
        };
        let bare = report::BarePublish::new(self.redis_url()?, &run.plan.schema);
        let terminal = std::io::stderr().is_terminal();
        let mut samples = self.report.is_some().then(Samples::default);
        let sampling = async {
            match &mut samples {
                Some(samples) => samples.watch(run, members).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            _ = async { tokio::join!(all_read, writing) } => {}
            () = report::show_progress(run, members, terminal) => {}
            () = cause_faults(run, members, proxies, self.redis_url()?) => {}
            () = bare.measure() => {}
            () = sampling => {}
        }
        let mut timeline = samples.as_ref().map(|_| Timeline::new(run.record.now(), run.plan.bound));
        let report = report::Report::new(run, members, &bare, timeline.as_mut());
        report.print(run, members);
        if let (Some(timeline), Some(samples)) = (&timeline, &mut samples) {
            samples.end(run, members, timeline.length());
            self.write_page(run, members, &report, (timeline, samples), versions)?;
        }
        if let Some(path) = &self.json {
            let json = serde_json::to_string_pretty(&report)?;
            std::fs::write(path, json + "\n")
                .with_context(|| format!("--json: {} can't be written", path.display()))?;
        }
        report.verdict(run)
    }

    async fn clean_up(&self, schema: &str) -> anyhow::Result<()> {
        let mut connection = self.database.connect().await?;
        let drop_schema = format!("drop schema if exists {schema} cascade");
        for left in (0..DROPS).rev() {
            match sqlx::raw_sql(AssertSqlSafe(drop_schema.clone())).execute(&mut connection).await {
                // The server may still be at a statement of a connection that is gone, which has its locks in another
                // order. It ends by itself.
                Err(sqlx::Error::Database(error)) if error.code().as_deref() == Some("40P01") && left > 0 => {
                }
                dropped => {
                    dropped.context("drop the replay's schema")?;
                    break;
                }
            }
        }
        match unlink_own_keys(self.redis_url()?, schema).await {
            // Perto itself never looks for keys.
            Err(error) if is_for_want_of_a_right(&error) => {
                super::say_error(
                    "this user may not SCAN: what the replay put into Redis stays there for half an hour",
                );
                Ok(())
            }
            unlinked => unlinked,
        }
    }
}

/// Rows for every distinct key, in a schema of their own, watched.
async fn prepare(
    connection: &mut PgConnection,
    schema: &str,
    trace: &Trace,
    value_bytes: usize,
) -> anyhow::Result<()> {
    super::say_error(&format!(
        "{} accesses to {} rows; making the rows in schema {schema}",
        grouped(trace.accesses.len() as u64),
        grouped(trace.ids.len() as u64)
    ));
    postgres::migrate(connection, schema).await?;
    let create = format!(
        "create table {schema}.rows (id bigint primary key, version integer not null default 0, filler text not null) \
           with (fillfactor = 80)"
    );
    sqlx::raw_sql(AssertSqlSafe(create)).execute(&mut *connection).await?;
    let insert = format!(
        "insert into {schema}.rows (id, filler) select id, repeat('x', $2) from unnest($1::bigint[]) id"
    );
    for ids in trace.ids.chunks(10_000) {
        sqlx::query(AssertSqlSafe(insert.as_str()))
            .bind(ids)
            .bind(i32::try_from(value_bytes)?)
            .execute(&mut *connection)
            .await?;
    }
    sqlx::raw_sql(AssertSqlSafe(format!("analyze {schema}.rows"))).execute(&mut *connection).await?;
    let watch = postgres::Watch {
        schema: schema.to_owned(),
        table: format!("{schema}.rows"),
        cache: "rows".to_owned(),
        key: "id".to_owned(),
        columns: Vec::new(),
    };
    postgres::watch(connection, &watch).await?;
    Ok(())
}

fn is_for_want_of_a_right(error: &anyhow::Error) -> bool {
    error.downcast_ref::<redis::RedisError>().and_then(redis::RedisError::code) == Some("NOPERM")
}

/// At each node, where there are several.
async fn unlink_own_keys(redis_url: &str, app: &str) -> anyhow::Result<()> {
    for node in perto::redis::nodes(&perto::redis::address(redis_url)?).await? {
        unlink_at(&node, app).await?;
    }
    Ok(())
}

async fn unlink_at(node: &Address, app: &str) -> anyhow::Result<()> {
    let mut redis = perto::redis::connect(node, MOST, LIMIT).await?;
    let mut cursor = 0_u64;
    loop {
        let (next, keys): (u64, Vec<Vec<u8>>) = redis::cmd("SCAN")
            .arg(cursor)
            .arg("MATCH")
            .arg(format!("perto:{app}:*"))
            .arg("COUNT")
            // Of longer lists the connection takes no more than some thousands.
            .arg(1_000)
            .query_async(&mut *redis)
            .await?;
        // One by one: they are in different slots.
        let mut unlink = redis::Pipeline::with_capacity(keys.len());
        for key in &keys {
            unlink.cmd("UNLINK").arg(key).ignore();
        }
        if !keys.is_empty() {
            unlink.query_async::<()>(&mut *redis).await?;
        }
        cursor = next;
        if cursor == 0 {
            return Ok(());
        }
    }
}

/// So that two replays of one process number, one after the other, don't meet.
fn now_micros_low16() -> u16 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    u16::try_from(since.subsec_micros() & 0xFFFF).unwrap_or_default()
}
