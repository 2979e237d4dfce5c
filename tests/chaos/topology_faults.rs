//! Faults of Redis behind Sentinels and in a cluster. Instances go there without proxies: they are told where the servers are.

use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use tokio::time::sleep;

use crate::faults::{Caused, Fault, faults, marked, nothing};
use crate::stats::L2_FAILED;
use crate::support::cluster::PrivateCluster;
use crate::support::redis::PrivateRedis;
use crate::support::sentinels::Watched;
use crate::world::{Topology, World};

/// How long servers may take to agree on another one.
const AGREED: Duration = Duration::from_secs(30);
/// How often Sentinels look at servers otherwise, in milliseconds: as the support has them, and as they do by themselves.
const SOON: u32 = 200;
const SELDOM: u32 = 10_000;

pub(crate) const BEHIND_SENTINELS: &[Fault] = faults! {
    "nothing": nothing, "no fault at all, to compare with";
    "failed-over-by-hand": failed_over, "SENTINEL FAILOVER: the old server takes writes for ten seconds more";
    "server-killed": server_killed, "the server is killed (-9), its replica promoted, and it comes back as a replica";
    "server-silent": server_silent, "the server is stopped, its replica promoted, and it goes on";
    "server-demoted": server_demoted, "somebody makes the server a replica of nobody";
    "sentinels-killed": sentinels_killed, "all Sentinels are killed (-9), and come back";
};

pub(crate) const IN_A_CLUSTER: &[Fault] = faults! {
    "nothing": nothing, "no fault at all, to compare with";
    "slots-moved": slots_moved, "slots move from node to node, that of the hints too";
    "scripts-forgotten": node_scripts_forgotten, "SCRIPT FLUSH at one node after the other";
    "node-failed-over": node_failed_over, "CLUSTER FAILOVER of the node with the hints, there and back";
    "node-silent": node_silent, "a node is stopped, its replica promoted, and it goes on";
    "node-killed": node_killed, "a node is killed (-9), its replica promoted, and it comes back as a replica";
    "cluster-down": cluster_down, "all nodes are stopped, and go on";
};

fn watched(world: &mut World) -> anyhow::Result<&mut Watched> {
    match &mut world.topology {
        Topology::Watched(watched) => Ok(watched),
        _ => Err(anyhow::anyhow!("no Sentinels")),
    }
}

fn cluster(world: &mut World) -> anyhow::Result<&mut PrivateCluster> {
    match &mut world.topology {
        Topology::Cluster(cluster) => Ok(cluster),
        _ => Err(anyhow::anyhow!("no cluster")),
    }
}

async fn until(what: &str, mut is_so: impl AsyncFnMut() -> bool) -> anyhow::Result<Duration> {
    let began = Instant::now();
    while !is_so().await {
        ensure!(began.elapsed() < AGREED, "not within {AGREED:?}: {what}");
        sleep(Duration::from_millis(5)).await;
    }
    Ok(began.elapsed())
}

/// Which of the servers the Sentinels name.
async fn named(watched: &Watched) -> Option<usize> {
    let port = watched.named().await?;
    watched.servers.iter().position(|server| server.port() == port)
}

async fn another_is_named(watched: &Watched, before: usize) -> anyhow::Result<String> {
    let after =
        until("the Sentinels name another one", async || named(watched).await == Some(1 - before)).await?;
    Ok(format!("another one after {} ms", after.as_millis()))
}

async fn failed_over(world: &mut World, time: Duration) -> anyhow::Result<Caused> {
    let watched = watched(world)?;
    let before = named(watched).await.context("a server that is named")?;
    for sentinel in &watched.sentinels {
        sentinel.looks_every(SELDOM).await;
    }
    watched.fail_over_to(1 - before, 1).await;
    let mut caused = Caused::default();
    caused.expect(watched.servers[before].is_master().await, "the old one was demoted at once");
    sleep(time).await;
    for sentinel in &watched.sentinels {
        sentinel.looks_every(SOON).await;
    }
    let old = &watched.servers[before];
    until("the old one is a replica", async || !old.is_master().await).await?;
    Ok(caused)
}

async fn server_killed(world: &mut World, _time: Duration) -> anyhow::Result<Caused> {
    let watched = watched(world)?;
    let before = named(watched).await.context("a server that is named")?;
    watched.servers[before].kill();
    let note = another_is_named(watched, before).await?;
    watched.servers[before].restart_empty().await;
    let old = &watched.servers[before];
    until("the old one is a replica", async || !old.is_master().await).await?;
    Ok(Caused { note, ..Caused::demanding(&[L2_FAILED]) })
}

async fn server_silent(world: &mut World, _time: Duration) -> anyhow::Result<Caused> {
    let watched = watched(world)?;
    let before = named(watched).await.context("a server that is named")?;
    watched.servers[before].hold();
    let agreed = another_is_named(watched, before).await;
    watched.servers[before].let_go_on();
    let old = &watched.servers[before];
    until("the old one is a replica", async || !old.is_master().await).await?;
    Ok(Caused { note: agreed?, ..Caused::demanding(&[L2_FAILED]) })
}

async fn server_demoted(world: &mut World, time: Duration) -> anyhow::Result<Caused> {
    let watched = watched(world)?;
    let before = named(watched).await.context("a server that is named")?;
    let mut demote = redis::cmd("REPLICAOF");
    demote.arg("127.0.0.1").arg(1);
    demote.query_async::<()>(&mut watched.servers[before].connect().await).await?;
    sleep(time / 2).await;
    let taken = until("one takes writes, and is named", async || match named(watched).await {
        Some(at) => watched.servers[at].is_master().await,
        None => false,
    });
    let note = format!("one took writes {} ms later", taken.await?.as_millis());
    Ok(Caused { note, ..Caused::demanding(&[L2_FAILED]) })
}

async fn sentinels_killed(world: &mut World, time: Duration) -> anyhow::Result<Caused> {
    let watched = watched(world)?;
    watched.sentinels.iter_mut().for_each(crate::support::sentinels::Sentinel::kill);
    let mut caused = Caused::default();
    caused.expect(watched.named().await.is_none(), "they still say something");
    sleep(time).await;
    for sentinel in &mut watched.sentinels {
        sentinel.start().await;
    }
    until("they name a server", async || watched.named().await.is_some()).await?;
    Ok(caused)
}

const CHANNEL: &str = "perto:chaos:bus";

async fn slots_moved(world: &mut World, time: Duration) -> anyhow::Result<Caused> {
    let cluster = cluster(world)?;
    let (began, mut moved) = (Instant::now(), 0);
    while began.elapsed() < time {
        let key = if moved % 10 == 0 { CHANNEL.to_owned() } else { format!("{{{moved}}}") };
        let from = cluster.owner(0, &key).await.context("an owner")?;
        cluster.move_slot(&key, from, (from + 1) % 3).await;
        moved += 1;
    }
    Ok(Caused::noting(format!("{moved} slots")))
}

async fn node_scripts_forgotten(world: &mut World, time: Duration) -> anyhow::Result<Caused> {
    let cluster = cluster(world)?;
    let began = Instant::now();
    for at in (0..3).cycle() {
        if began.elapsed() >= time {
            break;
        }
        let mut flush = redis::cmd("SCRIPT");
        flush.arg("FLUSH").query_async::<()>(&mut cluster.nodes[at].connect().await).await?;
        sleep(Duration::from_millis(100)).await;
    }
    Ok(Caused::default())
}

async fn node_failed_over(world: &mut World, time: Duration) -> anyhow::Result<Caused> {
    let cluster = cluster(world)?;
    let master = cluster.owner(0, CHANNEL).await.context("an owner")?;
    ensure!(master < 3, "the hints are at what was a replica");
    for new in [master + 3, master] {
        cluster.fail_over(new).await;
        sleep(time / 2).await;
    }
    Ok(Caused::default())
}

/// Until the replica of a node has taken its place, and others say so.
async fn is_replaced(cluster: &PrivateCluster, master: usize) -> anyhow::Result<Duration> {
    let replica: &PrivateRedis = &cluster.nodes[master + 3];
    until("its replica is promoted", async || replica.is_master().await).await
}

async fn node_silent(world: &mut World, time: Duration) -> anyhow::Result<Caused> {
    let cluster = cluster(world)?;
    cluster.nodes[1].hold();
    let replaced = is_replaced(cluster, 1).await;
    sleep(time / 2).await;
    cluster.nodes[1].let_go_on();
    let old = &cluster.nodes[1];
    until("the old one is a replica", async || !old.is_master().await).await?;
    let note = format!("replaced after {} ms", replaced?.as_millis());
    Ok(Caused { note, ..Caused::demanding(&[L2_FAILED]) })
}

async fn node_killed(world: &mut World, time: Duration) -> anyhow::Result<Caused> {
    let cluster = cluster(world)?;
    cluster.nodes[2].kill();
    let note = format!("replaced after {} ms", is_replaced(cluster, 2).await?.as_millis());
    sleep(time / 2).await;
    cluster.nodes[2].restart_empty().await;
    let old = &cluster.nodes[2];
    until("the old one is a replica", async || !old.is_master().await).await?;
    Ok(Caused { note, ..Caused::demanding(&[L2_FAILED]) })
}

async fn cluster_down(world: &mut World, time: Duration) -> anyhow::Result<Caused> {
    cluster(world)?.nodes.iter().for_each(PrivateRedis::hold);
    sleep(time).await;
    let mut caused = Caused::demanding(&[L2_FAILED]);
    let stats = world.stats().await;
    cluster(world)?.nodes.iter().for_each(PrivateRedis::let_go_on);
    caused.expect(stats?.values().all(|stats| !stats.bus_up), "a subscription stood");
    Ok(caused)
}
