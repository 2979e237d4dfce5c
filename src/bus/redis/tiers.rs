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

/// Where hints are received that are published at another place: through a proxy, or at a replica.
///
/// # Errors
/// What is wrong with the URL, or with two places.
pub(crate) fn elsewhere(url: &str, address: &Address) -> Result<Address, StartError> {
    let wrong = |problem| StartError::Setting { setting: "subscribe_at", problem };
    let elsewhere = Address::parse(url).map_err(wrong)?;
    if address.cluster().is_some() || !elsewhere.is_one_server() {
        let problem = "hints are received where they are published, but for those of one server".to_owned();
        return Err(wrong(problem));
    }
    Ok(elsewhere.with_credentials_of(address))
}

/// L2 and the bus of one app, over the same connections. Who waits for L2 waits for `timeout`.
pub(crate) fn tiers(address: Address, app: &str, timeout: Duration, elsewhere: Option<Address>) -> Tiers {
    let channel = format!("perto:{app}:bus");
    if address.cluster().is_some() {
        let cluster = Cluster::new(address, timeout);
        let bus = ClusterBus::new(Arc::clone(&cluster), channel, MAX_MESSAGE);
        return (Arc::new(ClusterRemote::new(cluster)), Arc::new(bus));
    }
    let link = Link::new(address, app);
    let bus = RedisBus { link: Arc::clone(&link), elsewhere, channel };
    (Arc::new(RedisRemote::new(link)), Arc::new(bus))
}
