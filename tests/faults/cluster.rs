//! Redis as a cluster: keys and hints find their nodes, and a node that is gone is nobody's matter but that of its own keys.

use std::time::{Duration, Instant};

use bytes::Bytes;
use perto::proxy::Fault;
use perto::redis::{Tiers, address, owner, tiers};
use perto::{Remote, State, Tier, TroubleKind};
use tokio_util::task::AbortOnDropHandle;

use crate::support::cluster::PrivateCluster;
use crate::support::engines::keys;
use crate::support::redis::PrivateRedis;
use crate::support::wait::{PATIENCE, ends, eventually, eventually_within};
use crate::traffic::{Traffic, USED_WITHIN, both_are_used};
use crate::world::{Instance, World, coherent};

/// The default.
const L2_TIMEOUT: Duration = Duration::from_millis(50);
/// Fills are not awaited by anybody.
const TTL: Duration = Duration::from_secs(60);

/// How often a node has run a command.
async fn calls(node: &PrivateRedis, command: &str) -> usize {
    let info: String =
        redis::cmd("INFO").arg("commandstats").query_async(&mut node.connect().await).await.unwrap();
    let prefix = format!("cmdstat_{command}:calls=");
    let found = info.lines().find_map(|line| line.strip_prefix(&prefix));
    found.map_or(0, |rest| rest.split(',').next().unwrap().parse().unwrap())
}

async fn calls_of_all(cluster: &PrivateCluster, command: &str) -> usize {
    let mut all = 0;
    for node in &cluster.nodes {
        all += calls(node, command).await;
    }
    all
}

/// Both tiers, connected, and looked after for as long as the handle is kept.
async fn tended(cluster: &PrivateCluster, app: &str) -> (Tiers, AbortOnDropHandle<()>) {
    let tiers = tiers(&cluster.url(), app).unwrap();
    tiers.remote.ping().await.unwrap();
    let remote = std::sync::Arc::clone(&tiers.remote);
    let tending = tokio::runtime::Handle::current().spawn(async move { remote.tend().await });
    (tiers, AbortOnDropHandle::new(tending))
}

fn value() -> Bytes {
    let mut header = [0; 40];
    header[..3].copy_from_slice(b"P\x04V");
    (header[15], header[23]) = (1, 1);
    Bytes::copy_from_slice(&header)
}

async fn is_there(remote: &dyn Remote, key: &str) -> bool {
    remote.get(&[key.to_owned()], 100).await.is_ok_and(|found| found[0].is_some())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_read_of_1000_keys_is_one_round_trip_a_node_and_so_are_its_fills() {
    let cluster = PrivateCluster::start_behind_proxies().await;
    let world = World::with_redis(&cluster.url()).await;
    let a = world.start_with(|perto| perto.remote_timeout(PATIENCE), |cache| cache).await;
    coherent([&a]).await;
    let all = |fault: Fault| cluster.proxies.iter().for_each(|proxy| proxy.set(fault));

    // While no answer passes, all that arrives was sent without waiting for one.
    all(Fault::BlackHoleToClient);
    a.gate.close();
    let items = a.items.clone();
    let reading = tokio::runtime::Handle::current()
        .spawn(async move { items.get_many(&(1..=1_000).collect::<Vec<i64>>()).await });
    eventually("all is looked up at once", async || calls_of_all(&cluster, "getrange").await == 1_000).await;
    assert_eq!(a.loads(), 0, "it waits for the answer");
    all(Fault::None);
    a.gate.holds(1).await;
    all(Fault::BlackHoleToClient);
    a.gate.open();
    let reads = ends("the read", reading).await.unwrap().unwrap();
    assert!(reads.iter().all(|read| read.tier == Tier::Load));
    eventually("all is filled at once", async || calls_of_all(&cluster, "set").await == 1_000).await;
    all(Fault::None);
    assert_eq!(a.loads(), 1);
    for node in &cluster.nodes {
        let held = keys(&mut node.connect().await, "perto:*").await.unwrap().len();
        assert!((200..500).contains(&held), "{held}");
    }
    let b = world.start().await;
    coherent([&b]).await;
    let reads = ends("a read", b.items.get_many(&(1..=1_000).collect::<Vec<i64>>())).await.unwrap();
    assert!(reads.iter().all(|read| read.tier == Tier::Remote));
    assert_eq!(calls_of_all(&cluster, "evalsha").await, 0, "where nothing was, no script has to judge");
}

/// Its keys are loaded, after one wait; others are where they were, and no breaker opens.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_is_silent_or_dead_costs_its_own_keys_one_wait_and_others_nothing() {
    for dies in [false, true] {
        let mut cluster =
            PrivateCluster::start_without_replicas(&["--cluster-require-full-coverage", "no"]).await;
        let world = World::with_redis(&cluster.url()).await;
        let patient = |instance: perto::PertoBuilder| instance.remote_timeout(L2_TIMEOUT);
        let one_entry = |cache: perto::CacheBuilder<i64, i64>| cache;
        let a = world.start_with(patient, one_entry).await;
        coherent([&a]).await;
        // What is found in L2 is asked for by an instance that has none of it.
        let all: Vec<i64> = (1..=300).collect();
        world.sql("insert into items select n, n from generate_series(1, 300) n").await;
        a.polled().await;
        ends("a read", a.items.get_many(&all)).await.unwrap();
        let mut held = Vec::new();
        eventually("all is in L2", async || {
            held.clear();
            for node in &cluster.nodes {
                let pattern = format!("perto:{}:*", world.name);
                held.push(keys(&mut node.connect().await, &pattern).await.unwrap());
            }
            held.iter().map(Vec::len).sum::<usize>() == 300
        })
        .await;
        let bus = cluster.owner(0, &format!("perto:{}:bus", world.name)).await.unwrap();
        let gone = (bus + 1) % 3;
        let ids = |names: &[String]| -> Vec<i64> {
            names.iter().map(|name| name.rsplit(':').next().unwrap().parse().unwrap()).collect()
        };
        let lost = ids(&held[gone]);
        let others: Vec<i64> = (0..3).filter(|at| *at != gone).flat_map(|at| ids(&held[at])).collect();
        let (before, during) = others.split_at(others.len() / 2);

        let b = world.start_with(patient, one_entry).await;
        coherent([&b]).await;
        times(&b, before).await;
        if dies {
            cluster.nodes[gone].kill();
        } else {
            cluster.nodes[gone].hold();
        }
        let began = Instant::now();
        assert_eq!(b.fresh_from(lost[0]).await, (Some(lost[0]), Tier::Load));
        assert!(began.elapsed() < Duration::from_secs(2), "{:?}", began.elapsed());
        let meanwhile = times(&b, during).await;
        let began = Instant::now();
        for id in &lost[1..] {
            assert_eq!(b.fresh_from(*id).await, (Some(*id), Tier::Load));
        }
        assert!(b.perto.health().remote_up, "the breaker is for all of them");
        assert_eq!(b.perto.health().state, State::Coherent);
        // Half a timeout, of which others would pay one each.
        assert!(meanwhile < L2_TIMEOUT / 2, "{meanwhile:?}");
        // With a wait each it would take 3 s.
        assert!(began.elapsed() < Duration::from_secs(2), "{:?}", began.elapsed());

        // What can't be kept is told.
        b.put(&world, lost[0], 7).await;
        assert_eq!(b.fresh(lost[0]).await, Some(7));
        eventually("it is told", async || {
            b.troubles(TroubleKind::HintsRefused).iter().any(|trouble| trouble.detail.contains("1 of 1 keys"))
        })
        .await;
        if dies {
            cluster.nodes[gone].restart_empty().await;
        } else {
            cluster.nodes[gone].let_go_on();
        }
        eventually("it is used again", async || {
            a.put(&world, lost[1], 8).await;
            a.fresh(lost[1]).await;
            tokio::time::sleep(Duration::from_millis(20)).await;
            b.fresh_from(lost[1]).await == (Some(8), Tier::Remote)
        })
        .await;
    }
}

/// The 99th of a hundred.
async fn times(instance: &Instance, ids: &[i64]) -> Duration {
    let mut times = Vec::new();
    for id in ids {
        let began = Instant::now();
        assert_eq!(instance.fresh_from(*id).await, (Some(*id), Tier::Remote));
        times.push(began.elapsed());
    }
    times.sort_unstable();
    times[times.len() * 99 / 100]
}

/// The one that has the hints.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn when_a_node_dies_its_replica_is_used_within_a_second_of_its_promotion() {
    for dies in [true, false] {
        let mut cluster = PrivateCluster::start().await;
        let world = World::with_redis(&cluster.url()).await;
        let (a, b) = (world.start().await, world.start().await);
        coherent([&a, &b]).await;
        both_are_used(&world, &a, &b).await;
        let traffic = Traffic::start(&world, [&a, &b]);
        let gone = cluster.owner(0, &format!("perto:{}:bus", world.name)).await.unwrap();
        if dies {
            cluster.nodes[gone].kill();
        } else {
            cluster.nodes[gone].hold();
        }
        a.becomes(State::Isolated).await;
        eventually("the replica is promoted", async || cluster.nodes[gone + 3].is_master().await).await;
        let asked = (gone + 1) % 3;
        eventually("others say so", async || {
            let info: String = redis::cmd("CLUSTER")
                .arg("INFO")
                .query_async(&mut cluster.nodes[asked].connect().await)
                .await
                .unwrap();
            info.contains("cluster_state:ok")
        })
        .await;
        let began = Instant::now();
        both_are_used(&world, &a, &b).await;
        both_are_used(&world, &b, &a).await;
        assert!(began.elapsed() < USED_WITHIN, "dies: {dies}; {:?}", began.elapsed());
        coherent([&a, &b]).await;
        traffic.end().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_failover_by_hand_of_the_node_with_the_hints_is_followed() {
    let cluster = PrivateCluster::start().await;
    let world = World::with_redis(&cluster.url()).await;
    let (a, b) = (world.start().await, world.start().await);
    coherent([&a, &b]).await;
    let traffic = Traffic::start(&world, [&a, &b]);
    let master = cluster.owner(0, &format!("perto:{}:bus", world.name)).await.unwrap();
    for (old, new) in [(master, master + 3), (master + 3, master)] {
        both_are_used(&world, &a, &b).await;
        cluster.fail_over(new).await;
        let began = Instant::now();
        both_are_used(&world, &a, &b).await;
        both_are_used(&world, &b, &a).await;
        assert!(began.elapsed() < USED_WITHIN, "{:?}", began.elapsed());
        // As a replica it takes subscriptions too, from who has not heard yet that it is one.
        eventually_within(USED_WITHIN, "nobody listens to it", async || {
            let list: String = redis::cmd("CLIENT")
                .arg("LIST")
                .query_async(&mut cluster.nodes[old].connect().await)
                .await
                .unwrap();
            !list.lines().any(|line| line.contains(" ssub=1 "))
        })
        .await;
        eventually("it is a replica", async || !cluster.nodes[old].is_master().await).await;
    }
    traffic.end().await;
}

/// Cut off from the others it goes on saying that its slots are its own, and may be the first to answer.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_master_that_others_have_left_behind_is_not_believed() {
    let cluster = PrivateCluster::start().await;
    let left = 0;
    let key = cluster.key_of(left).await;
    cluster.leave_behind(left).await;
    let (address, port) = (address(&cluster.url()).unwrap(), cluster.nodes[left + 3].port());
    assert_eq!(cluster.owner(left, &key).await, Some(left), "it still says so");
    for _ in 0..20 {
        let owner = owner(&address, &key).await.unwrap();
        assert_eq!(owner.place(), format!("127.0.0.1:{port}"));
    }
    let world = World::with_redis(&cluster.url()).await;
    let (a, b) = (world.start().await, world.start().await);
    coherent([&a, &b]).await;
    both_are_used(&world, &a, &b).await;
    let names: Vec<String> = (0..300).map(|n| format!("perto:left:{n}")).collect();
    let (Tiers { remote, .. }, _tending) = tended(&cluster, "left").await;
    remote.invalidate(&names, 5, TTL).await.unwrap();
    for node in [1, 2, left + 3] {
        let held = keys(&mut cluster.nodes[node].connect().await, "perto:left:*").await.unwrap().len();
        assert!(held > 0, "{node}");
    }
}

/// Whoever waits for L2 as a whole waits once for a node that does not answer.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_is_known_to_be_silent_is_not_waited_for_again() {
    let cluster = PrivateCluster::start_without_replicas(&[]).await;
    let remote = tiers(&cluster.url(), "silent").unwrap().remote;
    remote.ping().await.unwrap();
    cluster.nodes[1].hold();
    remote.ping().await.unwrap();
    let mut least = PATIENCE;
    for _ in 0..5 {
        let began = Instant::now();
        remote.ping().await.unwrap();
        least = least.min(began.elapsed());
    }
    assert!(least < Duration::from_millis(150), "{least:?}");
    cluster.nodes[1].let_go_on();
    let names: Vec<String> = (0..300).map(|n| format!("perto:silent:{n}")).collect();
    eventually("it is there again", async || {
        remote.ping().await.unwrap();
        remote.invalidate(&names, 5, TTL).await.is_ok()
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn slots_that_move_under_load_cost_no_error_and_what_was_in_them_is_found() {
    let cluster = PrivateCluster::start_without_replicas(&[]).await;
    let world = World::with_redis(&cluster.url()).await;
    let (a, b) = (world.start().await, world.start().await);
    coherent([&a, &b]).await;
    both_are_used(&world, &a, &b).await;
    let traffic = Traffic::start(&world, [&a, &b]);
    for n in 0..100 {
        let key = format!("{{{n}}}");
        let from = cluster.owner(0, &key).await.unwrap();
        cluster.move_slot(&key, from, (from + 1) % 3).await;
    }
    both_are_used(&world, &a, &b).await;
    traffic.end().await;
    for instance in [&a, &b] {
        assert_eq!(instance.perto.stats().l2_errors, 0);
        assert!(instance.perto.health().remote_up);
    }
}

/// In between, what is in the slot is at one node and what comes anew at the other, which knows no script of ours.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn while_a_slot_moves_values_and_tombstones_are_kept_where_it_moves_to() {
    let cluster = PrivateCluster::start_without_replicas(&[]).await;
    let (Tiers { remote, .. }, _tending) = tended(&cluster, "moves").await;
    let name = |n: u8| format!("perto:moves:{{a}}:{n}");
    let from = cluster.owner(0, &name(0)).await.unwrap();
    let to = (from + 1) % 3;
    assert!(remote.fill(&name(0), value(), TTL).await.unwrap());
    cluster.begin_move(&name(0), from, to).await;
    let mut target = cluster.nodes[to].connect().await;
    redis::cmd("SCRIPT").arg("FLUSH").query_async::<()>(&mut target).await.unwrap();
    let to_come: Vec<_> = (1..9).map(|n| (name(n), value(), TTL)).collect();
    assert!(is_there(&*remote, &name(0)).await && !is_there(&*remote, &name(1)).await);
    assert!(remote.fill(&name(1), value(), TTL).await.unwrap());
    assert!(!remote.fill(&name(1), value(), TTL).await.unwrap(), "the script has judged");
    remote.invalidate(&[name(9)], 5, TTL).await.unwrap();
    assert!(!remote.fill(&name(9), value(), TTL).await.unwrap(), "a tombstone refuses it");
    remote.fill_many(&to_come).await.unwrap();
    for n in 0..10 {
        assert!(is_there(&*remote, &name(n)).await, "{n}");
    }
    cluster.end_move(&name(0), from, to).await;
    for n in 0..10 {
        assert!(is_there(&*remote, &name(n)).await, "{n}");
    }
    let held = keys(&mut target, "perto:moves:*").await.unwrap();
    assert_eq!(held.len(), 10);
    // Now it is known who has it, and one way is enough.
    let source = async || calls(&cluster.nodes[from], "getrange").await;
    let mut before = source().await;
    eventually("it is asked for where it is", async || {
        is_there(&*remote, &name(0)).await && std::mem::replace(&mut before, source().await) == before
    })
    .await;
}

/// The node goes on answering pings then, for ever.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_subscription_whose_slot_has_moved_breaks_and_no_ping_of_it_is_answered_by_chance() {
    let cluster = PrivateCluster::start_without_replicas(&[]).await;
    let channel = "perto:moved:bus";
    for round in 0..10 {
        // Without upkeep: by what the node says alone.
        let listening = tiers(&cluster.url(), "moved").unwrap();
        listening.remote.ping().await.unwrap();
        let mut subscribed = listening.bus.subscribe().await.unwrap();
        let from = cluster.owner(0, channel).await.unwrap();
        let to = (from + 1) % 3;
        let pinging = async {
            loop {
                if subscribed.ping().await.is_err() {
                    break;
                }
            }
        };
        let (_, ()) = tokio::join!(cluster.move_slot(channel, from, to), ends("pings", pinging));
        assert!(ends("the next", subscribed.next()).await.is_err(), "{round}");

        let (speaking, _tending) = tended(&cluster, "moved").await;
        let mut anew = speaking.bus.subscribe().await.unwrap();
        speaking.bus.publish(Bytes::from_static(b"here")).await.unwrap();
        assert_eq!(ends("a message", anew.next()).await.unwrap(), "here");
        anew.ping().await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn scripts_that_one_node_has_forgotten_are_sent_to_it_again() {
    let cluster = PrivateCluster::start_without_replicas(&[]).await;
    let (Tiers { remote, .. }, _tending) = tended(&cluster, "scripts").await;
    let names: Vec<String> = (0..300).map(|n| format!("perto:scripts:{n}")).collect();
    for round in 1..4 {
        let mut one = cluster.nodes[round % 3].connect().await;
        redis::cmd("SCRIPT").arg("FLUSH").query_async::<()>(&mut one).await.unwrap();
        remote.invalidate(&names, 5, TTL).await.unwrap();
        let found = remote.get(&names, 100).await.unwrap();
        assert!(found.iter().all(|bytes| bytes.as_ref().is_some_and(|bytes| bytes.starts_with(b"P\x04T"))));
    }
}

/// Before Redis 7.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn servers_without_sharded_channels_carry_hints_by_plain_ones() {
    let renamed = ["ssubscribe", "spublish"].map(|command| ["--rename-command", command, ""]).concat();
    let cluster = PrivateCluster::start_without_replicas(&renamed).await;
    let world = World::with_redis(&cluster.url()).await;
    let (a, b) = (world.start().await, world.start().await);
    coherent([&a, &b]).await;
    both_are_used(&world, &a, &b).await;
    both_are_used(&world, &b, &a).await;
    let mut all = 0;
    for node in &cluster.nodes {
        let list: String =
            redis::cmd("CLIENT").arg("LIST").query_async(&mut node.connect().await).await.unwrap();
        let here = list.lines().filter(|line| line.contains(" sub=1 ")).count();
        assert!(here == 0 || here == 2, "they are not at the same node");
        all += here;
    }
    assert_eq!(all, 2);
}

/// An instance with the URL of a cluster that is not there yet.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_instance_starts_without_its_cluster_and_uses_it_when_it_comes() {
    let mut cluster = PrivateCluster::start_without_replicas(&[]).await;
    let world = World::with_redis(&cluster.url()).await;
    cluster.nodes.iter_mut().for_each(PrivateRedis::kill);
    let (a, b) = (world.start().await, world.start().await);
    a.put(&world, 1, 1).await;
    assert_eq!((a.perto.health().state, a.fresh(1).await), (State::Isolated, Some(1)));
    for node in &mut cluster.nodes {
        node.restart_empty().await;
    }
    coherent([&a, &b]).await;
    both_are_used(&world, &a, &b).await;
    // All of it goes away, and comes back.
    cluster.nodes.iter().for_each(PrivateRedis::hold);
    a.becomes(State::Isolated).await;
    cluster.nodes.iter().for_each(PrivateRedis::let_go_on);
    coherent([&a, &b]).await;
    both_are_used(&world, &a, &b).await;
    ends("shutdown", a.perto.shutdown()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_is_where_the_servers_say() {
    let cluster = PrivateCluster::start_without_replicas(&[]).await;
    let (Tiers { remote, .. }, _tending) = tended(&cluster, "slots").await;
    // One that is sent elsewhere would be redirected, which servers count.
    let names: Vec<String> = (0..1_000_u32)
        .map(|n| match n % 4 {
            0 => format!("perto:slots:{}", n.wrapping_mul(2_654_435_761)),
            1 => format!("perto:{{{n}}}:x{n}"),
            2 => format!("perto:{{}}{n}:{{a}}"),
            _ => format!("perto:é{{{n}{{}}b"),
        })
        .collect();
    let fills: Vec<_> = names.iter().map(|name| (name.clone(), value(), TTL)).collect();
    remote.fill_many(&fills).await.unwrap();
    let found = remote.get(&names, 100).await.unwrap();
    assert!(found.iter().all(|found| found.as_ref() == Some(&value())));
    for node in &cluster.nodes {
        let info: String =
            redis::cmd("INFO").arg("errorstats").query_async(&mut node.connect().await).await.unwrap();
        assert!(!info.contains("MOVED"), "{info}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cluster_is_left_to_itself_by_who_was_shut_down() {
    let cluster = PrivateCluster::start_without_replicas(&[]).await;
    let world = World::with_redis(&cluster.url()).await;
    let a = world.start().await;
    coherent([&a]).await;
    ends("shutdown", a.perto.shutdown()).await;
    assert_eq!(a.perto.tasks(), 0);
    drop(a);
    for node in &cluster.nodes {
        eventually_within(USED_WITHIN, "no connection is left", async || {
            let list: String =
                redis::cmd("CLIENT").arg("LIST").query_async(&mut node.connect().await).await.unwrap();
            !list.lines().any(|line| {
                [" cmd=script|load ", " cmd=ping ", " cmd=getrange ", " ssub=1 "]
                    .iter()
                    .any(|what| line.contains(what))
            })
        })
        .await;
    }
}
