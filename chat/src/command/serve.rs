//! `perto-chat serve`: one instance of the service.

use std::net::SocketAddr;

use anyhow::{Context, bail};
use clap::Args;
use tokio::net::TcpListener;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{EnvFilter, Layer as _};

use perto_cli::OF_THE_LOG;

use super::connect::{Database, RedisTrouble, check_redis};
use crate::service;
use crate::service::settings::{PoolSettings, Settings};
use crate::service::telemetry::Telemetry;
use crate::service::telemetry::lines::Seldom;

/// Shortest key of an admin.
const MIN_ADMIN_KEY: usize = 32;

/// See the command's help.
#[derive(Debug, Args)]
pub(crate) struct Serve {
    /// Where to listen: without an admin key, only on this machine
    #[arg(long, env = "PERTO_LISTEN", default_value = "127.0.0.1:8080", value_name = "ADDRESS")]
    listen: SocketAddr,
    /// URL of Redis or Valkey; without it, L1 and Postgres answer alone
    #[arg(long, env = "REDIS_URL", hide_env_values = true, value_name = "URL")]
    redis_url: Option<String>,
    #[command(flatten)]
    database: Database,
    #[command(flatten)]
    settings: Settings,
}

/// Most connections that an instance opens, by default.
pub(super) const CONNECTIONS: u32 = PoolSettings::SIZE + OF_THE_LOG;

impl Serve {
    pub(crate) async fn run(mut self) -> anyhow::Result<()> {
        self.check()?;
        let telemetry = Telemetry::begin(&self.settings.instance);
        log(&telemetry);
        let listener = TcpListener::bind(self.listen)
            .await
            .with_context(|| format!("--listen: {} can't be had", self.listen))?;
        let pools = self.pools().await?;
        let redis_url = self.redis_url.take().filter(|url| !url.is_empty());
        if let Some(url) = &redis_url {
            match check_redis(url).await {
                Ok(_) => {}
                Err(trouble @ RedisTrouble::Setting(_)) => return Err(trouble.into()),
                // It may come; until then L1 and Postgres answer.
                Err(RedisTrouble::Unreachable(error)) => {
                    super::complain(super::NAME, &error.context("starting without Redis"));
                }
            }
        }
        let urls = service::Urls { database_url: self.database.url()?.to_owned(), redis_url };
        service::run(listener, self.settings, urls, pools, telemetry, terminated()?).await
    }

    fn check(&mut self) -> anyhow::Result<()> {
        let key = &mut self.settings.access.admin_key;
        *key = key.take().filter(|key| !key.is_empty());
        match key {
            Some(key) if key.len() < MIN_ADMIN_KEY => {
                bail!(
                    "PERTO_ADMIN_KEY has less than {MIN_ADMIN_KEY} characters; `perto-chat keys generate` makes one"
                )
            }
            None if !self.listen.ip().is_loopback() => bail!(
                "--listen: {} is not a loopback address, and without PERTO_ADMIN_KEY anybody could read and write there",
                self.listen
            ),
            _ => Ok(()),
        }
    }

    async fn pools(&self) -> anyhow::Result<service::Pools> {
        let pool = &self.settings.pool;
        // Whoever holds a row for long must not hold the service too, and who is gone without a word must not hold rows.
        // A pooler takes no settings at the start: there each transaction has them.
        let limits = [
            ("statement_timeout", "10s"),
            ("lock_timeout", "5s"),
            ("idle_in_transaction_session_timeout", "5s"),
            ("application_name", "perto-chat serve"),
        ];
        let limits = pool.prepared_statements.then_some(&limits[..]);
        let (requests, loads, upkeep) = pool.shares();
        Ok(service::Pools {
            requests: self.database.pool_with(pool.options(requests, true), limits).await?,
            loads: self.database.pool_with(pool.options(loads, false), limits).await?,
            upkeep: self.database.pool_with(pool.options(upkeep, true), limits).await?,
        })
    }
}

fn log(telemetry: &Telemetry) {
    let wanted = std::env::var("RUST_LOG").unwrap_or_default();
    let read = Some(wanted.trim()).filter(|wanted| !wanted.is_empty()).map(str::parse::<EnvFilter>);
    let wrong = matches!(read, Some(Err(_)));
    let filter = read.and_then(Result::ok).unwrap_or_else(|| "info".into());
    // It quotes lines of `.pgpass`, and parameters of URLs that it doesn't know.
    let filter = match "sqlx_postgres::options=off".parse() {
        Ok(off) => filter.add_directive(off),
        Err(_) => filter,
    };
    let lines = tracing_subscriber::fmt::layer()
        .with_writer(std::io::stderr)
        .with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr()))
        .map_event_format(Seldom::new)
        .with_filter(filter);
    drop(tracing_subscriber::registry().with(lines).with(telemetry.layer()).try_init());
    if wrong {
        tracing::warn!("RUST_LOG makes no sense, and `info` is taken; like info,perto=debug");
    }
    telemetry.warn();
}

/// Completes at Ctrl-C, and where the system asks for an end: also if it does so before this is waited for. May be called again, for the
/// next time.
#[cfg(unix)]
fn terminated() -> anyhow::Result<impl AsyncFnMut()> {
    use tokio::signal::unix::{SignalKind, signal};
    let (mut interrupt, mut terminate) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
    Ok(async move || {
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
    })
}

/// Completes at Ctrl-C.
#[cfg(not(unix))]
fn terminated() -> anyhow::Result<impl AsyncFnMut()> {
    Ok(async || drop(tokio::signal::ctrl_c().await))
}
