//! L2 and the bus of a URL: on a server, on one that Sentinels name, or on a cluster.

use std::sync::Arc;
use std::time::Duration;

use super::cluster::ClusterBus;
use super::{MAX_MESSAGE, RedisBus};
use crate::bus::Bus;
use crate::error::StartError;
use crate::remote::Remote;
use crate::remote::redis::address::Address;
use crate::remote::redis::cluster::{Cluster, ClusterRemote};
use crate::remote::redis::{Link, RedisRemote};

pub(crate) type Tiers = (Arc<dyn Remote>, Arc<dyn Bus>);

/// L2 and the bus of one app, over the same connections. Who waits for L2 waits for `timeout`. Hints may be received at another
/// server than they are published at: through a proxy, or at a replica.
///
/// # Errors
/// What is wrong with a URL.
pub(crate) fn tiers(
    url: &str,
    app: &str,
    timeout: Duration,
    subscribe_at: Option<&str>,
) -> Result<Tiers, StartError> {
    let wrong = |setting| move |problem| StartError::Setting { setting, problem };
    let address = Address::parse(url).map_err(wrong("redis"))?;
    let elsewhere = subscribe_at.map(Address::parse).transpose().map_err(wrong("subscribe_at"))?;
    let one_each = address.cluster().is_none() && elsewhere.as_ref().is_none_or(Address::is_one_server);
    if elsewhere.is_some() && !one_each {
        let problem = "hints are received where they are published, but for those of one server".to_owned();
        return Err(wrong("subscribe_at")(problem));
    }
    let channel = format!("perto:{app}:bus");
    if address.cluster().is_some() {
        let cluster = Cluster::new(address, timeout);
        let bus = ClusterBus::new(Arc::clone(&cluster), channel, MAX_MESSAGE);
        return Ok((Arc::new(ClusterRemote::new(cluster)), Arc::new(bus)));
    }
    let link = Link::new(address, app);
    let bus = RedisBus { link: Arc::clone(&link), elsewhere, channel };
    Ok((Arc::new(RedisRemote::new(link)), Arc::new(bus)))
}
