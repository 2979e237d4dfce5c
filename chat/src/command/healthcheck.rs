//! `perto-chat healthcheck`: whether the instance on this machine is ready, for images that have no other program to ask with.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use anyhow::{Context, bail};
use clap::Args;

use super::http::{Request, ask};

/// See the command's help.
#[derive(Debug, Args)]
pub(crate) struct Healthcheck {
    /// Where the instance listens, as it was told
    #[arg(long, env = "PERTO_LISTEN", default_value = "127.0.0.1:8080", value_name = "ADDRESS")]
    listen: SocketAddr,
}

impl Healthcheck {
    pub(crate) async fn run(self) -> anyhow::Result<()> {
        let at = nearby(self.listen);
        let answer = ask(&format!("http://{at}"), &Request { path: "/readyz", ..Request::default() }).await;
        let answer = answer.with_context(|| at.to_string())?;
        let state = answer.body.trim();
        if answer.status != 200 {
            bail!("{at} is not ready: {state}");
        }
        super::say(state);
        Ok(())
    }
}

/// Who listens on all addresses is asked on this machine's own.
fn nearby(mut listen: SocketAddr) -> SocketAddr {
    if listen.ip().is_unspecified() {
        listen.set_ip(match listen {
            SocketAddr::V4(_) => IpAddr::V4(Ipv4Addr::LOCALHOST),
            SocketAddr::V6(_) => IpAddr::V6(Ipv6Addr::LOCALHOST),
        });
    }
    listen
}
