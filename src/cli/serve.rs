//! `perto serve`: one instance of the service.

use std::net::SocketAddr;

use anyhow::{Context, bail};
use clap::Args;
use tokio::net::TcpListener;

use super::connect::{Database, RedisTrouble, check_redis};
use crate::service;

/// Connections of an instance to Postgres, by what they are for.
const REQUESTS: u32 = 12;
const LOADS: u32 = 8;
/// The tail has one, and the rest of the log two.
const LOG: u32 = 3;
/// Most that an instance opens.
pub(super) const CONNECTIONS: u32 = REQUESTS + LOADS + LOG;

/// See the command's help.
#[derive(Debug, Args)]
pub(crate) struct Serve {
    /// Where to listen. Only on this machine: there are no keys yet
    #[arg(long, env = "PERTO_LISTEN", default_value = "127.0.0.1:8080", value_name = "ADDRESS")]
    listen: SocketAddr,
    /// How this instance is called
    #[arg(long, env = "PERTO_INSTANCE", default_value = "instance1", value_name = "NAME")]
    instance: String,
    /// The bound on staleness
    #[arg(long, env = "PERTO_BOUND", default_value = "1s", value_parser = super::replay::duration, value_name = "TIME")]
    bound: std::time::Duration,
    /// URL of Redis or Valkey; without it, L1 and Postgres answer alone
    #[arg(long, env = "REDIS_URL", hide_env_values = true, value_name = "URL")]
    redis_url: Option<String>,
    #[command(flatten)]
    imports: service::imports::Settings,
    #[command(flatten)]
    database: Database,
}

impl Serve {
    pub(crate) async fn run(self) -> anyhow::Result<()> {
        if !self.listen.ip().is_loopback() {
            bail!(
                "--listen: {} is not a loopback address, and without keys anybody could read and write there",
                self.listen
            );
        }
        let listener = TcpListener::bind(self.listen)
            .await
            .with_context(|| format!("--listen: {} can't be had", self.listen))?;
        // Whoever holds a row for long must not hold the service too.
        let limits =
            [("statement_timeout", "10s"), ("lock_timeout", "5s"), ("application_name", "perto serve")];
        let pools = service::Pools {
            requests: self.database.pool_with(service::pool_options(REQUESTS), &limits).await?,
            loads: self.database.pool_with(service::pool_options(LOADS), &limits).await?,
        };
        let redis_url = self.redis_url.filter(|url| !url.is_empty());
        if let Some(url) = &redis_url {
            match check_redis(url).await {
                Ok(_) => {}
                Err(trouble @ RedisTrouble::Setting(_)) => return Err(trouble.into()),
                // It may come; until then L1 and Postgres answer.
                Err(RedisTrouble::Unreachable(error)) => {
                    super::complain(&error.context("starting without Redis"));
                }
            }
        }
        let settings = service::Settings {
            instance: self.instance,
            bound: self.bound,
            database_url: self.database.url()?.to_owned(),
            redis_url,
            imports: self.imports,
        };
        service::run(listener, settings, pools, terminated()).await
    }
}

/// Completes at Ctrl-C, and where the system asks for an end.
async fn terminated() {
    #[cfg(unix)]
    if let Ok(mut term) = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate()) {
        tokio::select! {
            _ = tokio::signal::ctrl_c() => {}
            _ = term.recv() => {}
        }
        return;
    }
    drop(tokio::signal::ctrl_c().await);
}
