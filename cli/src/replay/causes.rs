//! What brings a schedule's faults about: proxies between the instances and the servers, pauses, and a flush.

use std::time::Duration;

use anyhow::Context;
use perto::State;
use perto::proxy::{Fault, FaultProxy};

use super::faults::{Scheduled, What};
use super::fleet::{Member, Run, Window};
use super::{Replay, unlink_own_keys};
use crate::connect::{host_and_port, with_address};

/// How long after a fault its window stays open at most.
const COHERENT_LIMIT: Duration = Duration::from_secs(5);

/// The proxies between the instances and the servers.
pub(super) struct Proxies {
    /// For what is asked, and for hints. None where Redis is no one server.
    redis: Option<(FaultProxy, FaultProxy)>,
    postgres: FaultProxy,
}

impl Proxies {
    pub(super) async fn start(replay: &Replay) -> anyhow::Result<Self> {
        let redis = if perto::redis::address(replay.redis_url()?)?.is_one_server() {
            let redis =
                host_and_port(replay.redis_url()?, 6379).context("--faults needs a REDIS_URL with a host")?;
            Some((FaultProxy::start(redis.as_str()).await?, FaultProxy::start(redis.as_str()).await?))
        } else {
            None
        };
        let postgres = host_and_port(replay.database.url()?, 5432)
            .context("--faults needs a DATABASE_URL with a host")?;
        Ok(Self { redis, postgres: FaultProxy::start(postgres).await? })
    }

    pub(super) fn urls(&self, replay: &Replay) -> Option<(String, String, Option<String>)> {
        let postgres = with_address(replay.database.url().ok()?, self.postgres.address())?;
        let redis_url = replay.redis_url().ok()?;
        Some(match &self.redis {
            None => (postgres, redis_url.to_owned(), None),
            Some((redis, bus)) => {
                let [redis, bus] = [redis, bus].map(|proxy| with_address(redis_url, proxy.address()));
                (postgres, redis?, Some(bus?))
            }
        })
    }

    fn set(&self, what: &What, fault: Fault) {
        match (what, &self.redis) {
            (What::Redis(_), Some((redis, bus))) => {
                redis.set(fault);
                bus.set(fault);
            }
            (What::Bus(_), Some((_, bus))) => bus.set(fault),
            (What::Postgres(_), _) => self.postgres.set(fault),
            // Without a proxy these are refused at the start.
            (What::Redis(_) | What::Bus(_), None) | (What::Flush | What::Pause(_), _) => {}
        }
    }
}

/// Causes each fault at its time. A fault's window lasts until every instance is coherent again. Never returns.
pub(super) async fn cause_faults(run: &Run, members: &[Member], proxies: Option<&Proxies>, redis_url: &str) {
    let one = async |fault: &Scheduled, window: &Window| {
        tokio::time::sleep(fault.start.saturating_sub(run.record.now())).await;
        window.open(run.record.now());
        let mut ran = true;
        match (&fault.what, proxies) {
            (What::Redis(how) | What::Bus(how) | What::Postgres(how), Some(proxies)) => {
                proxies.set(&fault.what, *how);
                tokio::time::sleep(fault.end().saturating_sub(run.record.now())).await;
                proxies.set(&fault.what, Fault::None);
            }
            (What::Flush, _) => {
                ran = unlink_own_keys(redis_url, &run.plan.schema).await.is_ok();
                tokio::time::sleep(fault.end().saturating_sub(run.record.now())).await;
            }
            (What::Pause(at), _) => {
                members[*at].pause(fault.length).await;
                tokio::time::sleep(fault.end().saturating_sub(run.record.now())).await;
            }
            _ => ran = false,
        }
        let healed = run.record.now();
        while members.iter().any(|member| member.perto.health().state != State::Coherent)
            && run.record.now() - healed < COHERENT_LIMIT
        {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        window.close(run.record.now(), ran);
    };
    let faults = run.plan.faults.iter().zip(&run.tally.windows).map(|(fault, window)| one(fault, window));
    futures_util::future::join_all(faults).await;
    std::future::pending::<()>().await;
}
