//! What a read costs in round trips to Redis, and who waits for whom there.
//!
//! While the proxy lets no answer pass, all that arrives at the server was sent without waiting for one: in one round
//! trip, whatever the time that it takes.

use perto::Tier;
use perto::proxy::{Fault, FaultProxy};

use crate::support::engines::{keys, place_of};
use crate::support::redis::PrivateRedis;
use crate::support::wait::{PATIENCE, ends, eventually};
use crate::world::{World, coherent};

/// Lines of an answer of the server's that is for people.
async fn lines(redis: &PrivateRedis, command: [&str; 2]) -> Vec<String> {
    let mut asking = redis::cmd(command[0]);
    let text: String = asking.arg(command[1]).query_async(&mut redis.connect().await).await.unwrap();
    text.lines().map(str::to_owned).collect()
}

/// How often the server has run a command.
async fn calls(redis: &PrivateRedis, command: &str) -> usize {
    let prefix = format!("cmdstat_{command}:calls=");
    let lines = lines(redis, ["INFO", "commandstats"]).await;
    let found = lines.iter().find_map(|line| line.strip_prefix(&prefix));
    found.map_or(0, |rest| rest.split(',').next().unwrap().parse().unwrap())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cold_read_of_1000_keys_is_one_look_up_one_load_and_one_fill() {
    let redis = PrivateRedis::start().await;
    let world = World::with_redis(&redis.url()).await;
    let proxy = FaultProxy::start(place_of(&redis.url())).await.unwrap();
    let proxied = format!("redis://{}", proxy.address());
    let a = world.start_with(|perto| perto.redis(&proxied).remote_timeout(PATIENCE), |cache| cache).await;
    coherent([&a]).await;
    // Half of them are there.
    world.sql("insert into items select n, n from generate_series(1, 500) n").await;
    a.polled().await;
    let (gets, sets) = (calls(&redis, "mget").await, calls(&redis, "set").await);
    let scripts = calls(&redis, "evalsha").await;

    proxy.set(Fault::BlackHoleToClient);
    a.gate.close();
    let items = a.items.clone();
    let reading = tokio::runtime::Handle::current()
        .spawn(async move { items.get_many(&(1..=1_000).collect::<Vec<i64>>()).await });
    eventually("all is looked up at once", async || calls(&redis, "mget").await == gets + 1).await;
    assert_eq!(a.loads(), 0, "it waits for the answer");
    proxy.set(Fault::None);
    a.gate.holds(1).await;

    proxy.set(Fault::BlackHoleToClient);
    a.gate.open();
    let reads = ends("the read", reading).await.unwrap().unwrap();
    for (n, read) in (1..).zip(&reads) {
        assert_eq!((read.value(), read.tier), ((n <= 500).then_some(&n), Tier::Load));
    }
    eventually("all is filled at once", async || calls(&redis, "set").await == sets + 1_000).await;
    let pattern = format!("perto:{}:*", world.name);
    assert_eq!(keys(&mut redis.connect().await, &pattern).await.unwrap().len(), 1_000);
    assert_eq!((a.loads(), calls(&redis, "mget").await), (1, gets + 1));

    proxy.set(Fault::None);
    coherent([&a]).await;
    let b = world.start().await;
    let all: Vec<i64> = (1..=1_000).collect();
    let reads = ends("a read of what is there", b.items.get_many(&all)).await.unwrap();
    assert!(reads.iter().all(|read| read.tier == Tier::Remote));
    assert_eq!(calls(&redis, "set").await, sets + 1_000, "nothing is filled again");
    assert_eq!(calls(&redis, "evalsha").await, scripts, "where nothing was, no script has to judge");
}

/// One answer has a limit. What is beyond it comes with another one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn values_that_are_too_many_for_one_answer_are_all_brought_and_no_more_of_any_than_was_asked_for() {
    let redis = PrivateRedis::start().await;
    let tiers = perto::redis::tiers(&redis.url(), "many").unwrap();
    tiers.remote.ping().await.unwrap();
    let names: Vec<String> = (0..40).map(|n| format!("perto:many:{n}")).collect();
    let mut setting = redis.connect().await;
    for (n, name) in names.iter().enumerate() {
        // One that is not there, one of no length, one that is longer than a value may be.
        let bytes = match n {
            3 => continue,
            5 => 0,
            7 => 2 << 20,
            _ => 1 << 20,
        };
        let mut set = redis::cmd("SET");
        set.arg(name)
            .arg(vec![u8::try_from(n).unwrap(); bytes])
            .query_async::<()>(&mut setting)
            .await
            .unwrap();
    }
    let values = ends("a look-up", tiers.remote.get(&names, 1 << 20)).await.unwrap();
    for (n, value) in values.iter().enumerate() {
        let length = value.as_ref().map(|value| (value.len(), usize::from(value[0])));
        let expected = match n {
            3 | 5 => None,
            7 => Some(((1 << 20) + 1, 7)),
            n => Some((1 << 20, n)),
        };
        assert_eq!(length, expected, "{n}");
    }
    assert_eq!(calls(&redis, "mget").await, 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_look_up_waits_behind_no_fill() {
    let redis = PrivateRedis::start().await;
    let world = World::with_redis(&redis.url()).await;
    world.sql("insert into items select n, n from generate_series(1, 200) n").await;
    let (a, b) = (world.start().await, world.start().await);
    coherent([&a, &b]).await;
    b.fresh(1).await;
    let pattern = format!("perto:{}:*", world.name);
    let filled =
        async |count: usize| keys(&mut redis.connect().await, &pattern).await.unwrap().len() == count;
    eventually("the first is in L2", async || filled(1).await).await;

    let mut operator = redis.connect().await;
    let mut pause = redis::cmd("CLIENT");
    pause.arg("PAUSE").arg(PATIENCE.as_millis().to_string()).arg("WRITE");
    pause.query_async::<()>(&mut operator).await.unwrap();
    let many: Vec<i64> = (2..=200).collect();
    let reads = ends("a bulk load", a.items.get_many(&many)).await.unwrap();
    assert!(reads.iter().all(|read| read.tier == Tier::Load));
    eventually("the server holds the fills", async || {
        lines(&redis, ["CLIENT", "LIST"]).await.iter().any(|client| client.contains(" flags=b "))
    })
    .await;
    assert_eq!(a.fresh_from(1).await, (Some(1), Tier::Remote), "while the fills are held");
    assert!(filled(1).await, "they are");
    redis::cmd("CLIENT").arg("UNPAUSE").query_async::<()>(&mut operator).await.unwrap();
    eventually("all are in L2", async || filled(200).await).await;
}

/// Each connection has a life of its own at the server: whichever of them breaks, L2 comes back.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whichever_connection_breaks_l2_is_used_again() {
    let redis = PrivateRedis::start().await;
    let world = World::with_redis(&redis.url()).await;
    let a = world.start().await;
    coherent([&a]).await;
    let pattern = format!("perto:{}:*", world.name);
    for (id, last) in (1..).zip(["evalsha", "getrange", "evalsha"]) {
        let filled = async || !keys(&mut redis.connect().await, &pattern).await.unwrap().is_empty();
        a.fresh(10 * id).await;
        eventually("L2 is filled", filled).await;
        let clients = lines(&redis, ["CLIENT", "LIST"]).await;
        let ours: Vec<&str> = clients
            .iter()
            .filter(|client| client.contains(&format!(" cmd={last} ")))
            .map(|client| client.split([' ', '=']).nth(1).unwrap())
            .collect();
        assert_eq!(ours.len(), 1, "{clients:#?}");
        let mut kill = redis::cmd("CLIENT");
        let mut operator = redis.connect().await;
        kill.arg("KILL").arg("ID").arg(ours[0]).query_async::<()>(&mut operator).await.unwrap();
        redis::cmd("FLUSHDB").query_async::<()>(&mut operator).await.unwrap();
        // The first to use it finds out.
        let mut key = 1_000 * id;
        eventually("L2 is filled again", async || {
            key += 1;
            a.fresh(key).await;
            filled().await
        })
        .await;
        coherent([&a]).await;
        redis::cmd("FLUSHDB").query_async::<()>(&mut operator).await.unwrap();
    }
}
