//! A private cluster: three masters, each with a replica.

use std::time::Duration;

use perto::proxy::FaultProxy;
use redis::aio::MultiplexedConnection;
use redis::{FromRedisValue, RedisResult, Value};

use super::redis::PrivateRedis;
use super::wait::eventually;

const MASTERS: usize = 3;
const SLOTS: usize = 16_384;
/// How long a node may be silent before its replica takes over. Longer than a busy machine keeps a process waiting.
const NODE_TIMEOUT_MS: u32 = 1_500;

pub(crate) struct PrivateCluster {
    /// The masters, then the replica of each.
    pub(crate) nodes: Vec<PrivateRedis>,
    /// In front of each, where there are any: clients know no other way.
    pub(crate) proxies: Vec<FaultProxy>,
    /// The ports that clients know then.
    announced: Vec<u16>,
}

impl PrivateCluster {
    pub(crate) async fn start() -> Self {
        Self::start_with(2 * MASTERS, Vec::new(), &[]).await
    }

    /// Without replicas, and a proxy in front of each.
    pub(crate) async fn start_behind_proxies() -> Self {
        Self::start_behind(async |place| place.rsplit_once(':').unwrap().1.parse().unwrap()).await
    }

    /// Without replicas, and with a proxy of ours, and whatever is put in front of its place, before each. Gives the port of that.
    pub(crate) async fn start_behind(front: impl AsyncFn(String) -> u16) -> Self {
        let mut fronts = Vec::new();
        for _ in 0..MASTERS {
            let proxy = FaultProxy::start("127.0.0.1:1").await.unwrap();
            let port = front(proxy.address().to_string()).await;
            fronts.push((proxy, port));
        }
        Self::start_with(MASTERS, fronts, &[]).await
    }

    /// Without replicas, and with settings.
    pub(crate) async fn start_without_replicas(settings: &[&str]) -> Self {
        Self::start_with(MASTERS, Vec::new(), settings).await
    }

    async fn start_with(count: usize, fronts: Vec<(FaultProxy, u16)>, settings: &[&str]) -> Self {
        let mut nodes = Vec::new();
        for at in 0..count {
            let mut all: Vec<String> = settings.iter().map(|&word| word.to_owned()).collect();
            all.extend(["--cluster-node-timeout".to_owned(), NODE_TIMEOUT_MS.to_string()]);
            if let Some((_, announced)) = fronts.get(at) {
                all.extend(["--cluster-announce-port".to_owned(), announced.to_string()]);
            }
            let node = PrivateRedis::start_cluster_node_with(&all).await;
            if let Some((proxy, _)) = fronts.get(at) {
                proxy.point_at(format!("127.0.0.1:{}", node.port()));
            }
            nodes.push(node);
        }
        let (proxies, announced) = fronts.into_iter().unzip();
        let cluster = Self { nodes, proxies, announced };
        cluster.join().await;
        cluster
    }

    async fn join(&self) {
        for (at, node) in self.nodes.iter().enumerate() {
            cluster::<Value>(node, &["SET-CONFIG-EPOCH", &(at + 1).to_string()]).await.unwrap();
            if at < MASTERS {
                let slots = SLOTS * at / MASTERS..SLOTS * (at + 1) / MASTERS;
                let slots: Vec<String> = slots.map(|slot| slot.to_string()).collect();
                let add: Vec<&str> =
                    std::iter::once("ADDSLOTS").chain(slots.iter().map(String::as_str)).collect();
                cluster::<Value>(node, &add).await.unwrap();
            }
            let port = node.port().to_string();
            let bus = (node.port() + 10_000).to_string();
            cluster::<Value>(&self.nodes[0], &["MEET", "127.0.0.1", &port, &bus]).await.unwrap();
        }
        for (at, replica) in self.nodes.iter().enumerate().skip(MASTERS) {
            let master = self.id(at - MASTERS).await;
            eventually("a replica knows its master", async || {
                cluster::<Value>(replica, &["REPLICATE", &master]).await.is_ok()
            })
            .await;
        }
        eventually("the cluster is whole", async || {
            for node in &self.nodes {
                let info: String = cluster(node, &["INFO"]).await.unwrap();
                let known = format!("cluster_known_nodes:{}", self.nodes.len());
                let known = info.contains("cluster_state:ok") && info.contains(&known);
                let slots: Value = cluster(node, &["SLOTS"]).await.unwrap();
                let each = self.nodes.len() / MASTERS;
                let Value::Array(ranges) = slots else { return false };
                let full = |range: &Value| matches!(range, Value::Array(parts) if parts.len() == 2 + each);
                if !(known && ranges.len() == MASTERS && ranges.iter().all(full)) {
                    return false;
                }
            }
            true
        })
        .await;
    }

    pub(crate) fn url(&self) -> String {
        let port =
            |(at, node): (usize, &PrivateRedis)| self.announced.get(at).copied().unwrap_or(node.port());
        let places: Vec<String> =
            self.nodes.iter().enumerate().map(|node| format!("127.0.0.1:{}", port(node))).collect();
        format!("redis+cluster://{}", places.join(","))
    }

    pub(crate) async fn id(&self, at: usize) -> String {
        cluster(&self.nodes[at], &["MYID"]).await.unwrap()
    }

    /// Which node has the slot of a key, as another one says that is there.
    pub(crate) async fn owner(&self, asked: usize, key: &str) -> Option<usize> {
        let slot: i64 = cluster(&self.nodes[asked], &["KEYSLOT", key]).await.ok()?;
        let Value::Array(ranges) = cluster(&self.nodes[asked], &["SLOTS"]).await.ok()? else { return None };
        let owner = ranges.iter().find_map(|range| {
            let Value::Array(parts) = range else { return None };
            let [Value::Int(first), Value::Int(last), Value::Array(owner), ..] = &parts[..] else {
                return None;
            };
            (*first..=*last).contains(&slot).then(|| owner.get(2).cloned())?
        })?;
        let id = String::from_redis_value(owner).ok()?;
        for at in 0..self.nodes.len() {
            if let Ok(own) = cluster::<String>(&self.nodes[at], &["MYID"]).await
                && own == id
            {
                return Some(at);
            }
        }
        None
    }

    /// Moves the slot of a key with all that is in it.
    pub(crate) async fn move_slot(&self, key: &str, from: usize, to: usize) {
        self.begin_move(key, from, to).await;
        self.end_move(key, from, to).await;
    }

    /// From then on `to` has what is new in the slot, and whoever asks for that is told `ASK`.
    pub(crate) async fn begin_move(&self, key: &str, from: usize, to: usize) {
        let slot: u16 = cluster(&self.nodes[from], &["KEYSLOT", key]).await.unwrap();
        let (source, target) = (self.id(from).await, self.id(to).await);
        let slot = slot.to_string();
        cluster::<Value>(&self.nodes[to], &["SETSLOT", &slot, "IMPORTING", &source]).await.unwrap();
        cluster::<Value>(&self.nodes[from], &["SETSLOT", &slot, "MIGRATING", &target]).await.unwrap();
    }

    pub(crate) async fn end_move(&self, key: &str, from: usize, to: usize) {
        let slot: u16 = cluster(&self.nodes[from], &["KEYSLOT", key]).await.unwrap();
        let (slot, target) = (slot.to_string(), self.id(to).await);
        loop {
            let keys: Vec<String> =
                cluster(&self.nodes[from], &["GETKEYSINSLOT", &slot, "100"]).await.unwrap();
            if keys.is_empty() {
                break;
            }
            let mut migrate = redis::cmd("MIGRATE");
            migrate.arg("127.0.0.1").arg(self.nodes[to].port()).arg("").arg(0).arg(5_000).arg("REPLACE");
            migrate.arg("KEYS").arg(&keys);
            migrate.query_async::<Value>(&mut self.nodes[from].connect().await).await.unwrap();
        }
        for at in [to, from].into_iter().chain((0..MASTERS).filter(|at| *at != from && *at != to)) {
            cluster::<Value>(&self.nodes[at], &["SETSLOT", &slot, "NODE", &target]).await.unwrap();
        }
    }

    /// Has a replica take over though its master is well.
    pub(crate) async fn fail_over(&self, replica: usize) {
        eventually("the replica has taken over", async || {
            // One that has just begun to be a replica may not yet be able to.
            drop(cluster::<Value>(&self.nodes[replica], &["FAILOVER"]).await);
            tokio::time::sleep(Duration::from_millis(20)).await;
            self.nodes[replica].is_master().await
        })
        .await;
    }

    /// Lets a master know of no other node any more, though it goes on answering: what a cut between nodes does. Its replica takes
    /// over.
    pub(crate) async fn leave_behind(&self, master: usize) {
        for at in (0..self.nodes.len()).filter(|at| *at != master) {
            let other = self.id(at).await;
            cluster::<Value>(&self.nodes[master], &["FORGET", &other]).await.unwrap();
        }
        let replica = master + MASTERS;
        cluster::<Value>(&self.nodes[replica], &["FAILOVER", "TAKEOVER"]).await.unwrap();
        let (key, asked) = (self.key_of(master).await, (master + 1) % MASTERS);
        eventually("others know that it was left", async || self.owner(asked, &key).await == Some(replica))
            .await;
    }

    /// A key whose slot a master had from the start.
    pub(crate) async fn key_of(&self, master: usize) -> String {
        for n in 0..1_000 {
            let key = n.to_string();
            let slot: usize = cluster(&self.nodes[master], &["KEYSLOT", &key]).await.unwrap();
            if (SLOTS * master / MASTERS..SLOTS * (master + 1) / MASTERS).contains(&slot) {
                return key;
            }
        }
        unreachable!("each has a third of the slots")
    }
}

async fn cluster<T: FromRedisValue>(node: &PrivateRedis, words: &[&str]) -> RedisResult<T> {
    let client = redis::Client::open(node.url())?;
    let mut connection: MultiplexedConnection = client.get_multiplexed_async_connection().await?;
    redis::cmd("CLUSTER").arg(words).query_async(&mut connection).await
}
