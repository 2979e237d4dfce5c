//! A Redis that answers, and says that it is of no use: it is left where that helps, and what it says is told.

use std::time::{Duration, Instant};

use perto::{State, TroubleKind};
use redis::AsyncCommands;

use crate::support::cluster::PrivateCluster;
use crate::support::engines::keys;
use crate::support::redis::PrivateRedis;
use crate::support::wait::eventually;
use crate::world::{Instance, World, coherent};

/// Until a trouble of this kind quotes the server.
async fn is_told(instance: &Instance, kind: TroubleKind, says: &str) {
    eventually(&format!("{kind} says {says}"), async || {
        instance.troubles(kind).iter().any(|trouble| trouble.detail.contains(says))
    })
    .await;
}

async fn is_over(instance: &Instance, kind: TroubleKind) {
    eventually(&format!("{kind} is over"), async || instance.troubles(kind).is_empty()).await;
}

async fn say(redis: &PrivateRedis, command: &[&str]) {
    let mut say = redis::cmd(command[0]);
    say.arg(&command[1..]).query_async::<redis::Value>(&mut redis.connect().await).await.unwrap();
}

/// It answers reads and pings. Values are not kept, hints reach those who are there by chance.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_redis_that_was_demoted_is_left_and_used_again_once_it_takes_writes() {
    let redis = PrivateRedis::start().await;
    let world = World::with_redis(&redis.url()).await;
    let (a, b) = (world.start().await, world.start().await);
    coherent([&a, &b]).await;
    a.put(&world, 1, 1).await;
    say(&redis, &["REPLICAOF", "127.0.0.1", "1"]).await;
    for (v, writer) in [(2, &a), (3, &b)] {
        writer.put(&world, 1, v).await;
        is_told(writer, TroubleKind::RedisUnusable, "read only replica").await;
        assert_eq!(writer.perto.health().state, State::Isolated);
    }
    a.polled().await;
    b.polled().await;
    assert_eq!((a.fresh(1).await, b.fresh(1).await), (Some(3), Some(3)));

    say(&redis, &["REPLICAOF", "NO", "ONE"]).await;
    coherent([&a, &b]).await;
    is_over(&a, TroubleKind::RedisUnusable).await;
    a.put(&world, 1, 4).await;
    a.fresh(1).await;
    let (mut connection, pattern) = (redis.connect().await, format!("perto:{}:*:1", world.name));
    eventually("it is in L2", async || !keys(&mut connection, &pattern).await.unwrap().is_empty()).await;
}

/// Also one that only reads finds out: by a value that is not kept.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_only_reads_leaves_a_demoted_redis_too() {
    let redis = PrivateRedis::start().await;
    let world = World::with_redis(&redis.url()).await;
    let a = world.start().await;
    coherent([&a]).await;
    say(&redis, &["REPLICAOF", "127.0.0.1", "1"]).await;
    a.fresh(1).await;
    is_told(&a, TroubleKind::RedisUnusable, "read only replica").await;
    a.becomes(State::Isolated).await;
    // A start meets one as well.
    let b = world.start().await;
    is_told(&b, TroubleKind::RedisUnusable, "read only replica").await;
    assert_eq!((b.perto.health().state, b.fresh(1).await), (State::Isolated, None));
}

/// A dump that can't be written: no values, but hints.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_redis_that_can_not_write_its_dump_still_carries_hints_and_what_it_refuses_is_told() {
    let redis = PrivateRedis::start().await;
    let world = World::with_redis(&redis.url()).await;
    let (a, b) = (world.start().await, world.start().await);
    coherent([&a, &b]).await;
    let dump = redis.log().with_file_name("dump.rdb");
    std::fs::create_dir(&dump).unwrap();
    redis.config("save", "3600 1").await;
    let mut connection = redis.connect().await;
    eventually("its dump fails", async || {
        drop(redis::cmd("BGSAVE").query_async::<redis::Value>(&mut connection).await);
        let refused: redis::RedisResult<()> = connection.set("x", 1).await;
        refused.is_err_and(|error| error.code() == Some("MISCONF"))
    })
    .await;
    a.fresh(1).await;
    is_told(&a, TroubleKind::FillsRefused, "MISCONF").await;
    assert!(a.perto.stats().fills_refused >= 1);
    b.fresh(7).await;
    let hints = b.perto.stats().hints;
    a.put(&world, 7, 1).await;
    eventually("the hint has come", async || b.perto.stats().hints > hints).await;
    coherent([&a, &b]).await;
    // One that starts now finds it so.
    let c = world.start().await;
    coherent([&c]).await;

    std::fs::remove_dir(&dump).unwrap();
    redis.config("save", "").await;
    let mut key = 100;
    eventually("fills are taken again", async || {
        drop(redis::cmd("BGSAVE").query_async::<redis::Value>(&mut connection).await);
        key += 1;
        a.fresh(key).await;
        a.troubles(TroubleKind::FillsRefused).is_empty()
    })
    .await;
}

/// Rights that are missing: each is told with the server's word, and no password.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_user_of_redis_may_not_do_is_told() {
    let redis = PrivateRedis::start().await;
    for (user, missing) in [("fills", "-evalsha"), ("hints", "-publish"), ("listens", "-subscribe")] {
        say(&redis, &["ACL", "SETUSER", user, "on", ">pass-word", "~*", "&*", "+@all", missing]).await;
    }
    let url = |user: &str| redis.url().replace("redis://", &format!("redis://{user}:pass-word@"));
    let world = World::with_redis(&redis.url()).await;
    for (user, kinds) in [
        ("fills", &[TroubleKind::FillsRefused, TroubleKind::HintsRefused][..]),
        ("hints", &[TroubleKind::HintsRefused]),
        ("listens", &[TroubleKind::HintsNotReceived]),
    ] {
        let a = world.start_with(|perto| perto.redis(&url(user)), |cache| cache).await;
        eventually("Redis is used", async || a.perto.health().remote_up).await;
        eventually(&format!("{user}: it is told"), async || {
            a.put(&world, 1, 1).await;
            a.fresh(1).await;
            kinds.iter().all(|kind| {
                a.troubles(*kind).iter().any(|trouble| {
                    trouble.detail.contains("NOPERM")
                        || trouble.detail.contains("NoPerm")
                        || trouble.detail.contains("permission")
                })
            })
        })
        .await;
        let told = format!("{:?} {:?}", a.perto.health().troubles, a.events());
        assert!(!told.contains("pass-word"), "{told}");
        let other: Vec<_> =
            a.perto.health().troubles.into_iter().filter(|t| !kinds.contains(&t.kind)).collect();
        assert_eq!(other, [], "{user}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_instance_starts_with_a_password_that_redis_refuses_and_says_why() {
    let redis = PrivateRedis::start().await;
    say(&redis, &["ACL", "SETUSER", "shop", "on", ">new-one", "~*", "&*", "+@all"]).await;
    let world = World::with_redis(&redis.url().replace("redis://", "redis://shop:old-one@")).await;
    let a = world.start().await;
    a.put(&world, 1, 1).await;
    assert_eq!((a.perto.health().state, a.fresh(1).await), (State::Isolated, Some(1)));
    for kind in [TroubleKind::RedisUnusable, TroubleKind::HintsNotReceived] {
        is_told(&a, kind, "AuthenticationFailed").await;
    }
    let told = format!("{:?} {:?}", a.perto.health().troubles, a.events());
    assert!(!told.contains("old-one"), "{told}");
    say(&redis, &["ACL", "SETUSER", "shop", ">old-one"]).await;
    coherent([&a]).await;
    is_over(&a, TroubleKind::RedisUnusable).await;
    is_over(&a, TroubleKind::HintsNotReceived).await;
}

/// No password at all, where one is wanted.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_redis_that_wants_a_password_is_a_trouble_and_no_error() {
    let redis = PrivateRedis::start().await;
    let world = World::with_redis(&redis.url()).await;
    let a = world.start().await;
    coherent([&a]).await;
    redis.config("requirepass", "secret").await;
    let b = world.start().await;
    is_told(&b, TroubleKind::RedisUnusable, "NOAUTH").await;
    assert_eq!((b.perto.health().state, b.fresh(1).await), (State::Isolated, None));
}

/// What `perto doctor` names for a user of its own, and what an instance tells of by itself where it is missing. Of the others it needs
/// none while all is well: the doctor tells of them.
const RIGHTS: [(&str, bool); 12] = [
    ("ping", false),
    ("select", false),
    ("get", false),
    ("getrange", true),
    ("mget", false),
    ("set", true),
    ("unlink", false),
    ("evalsha", true),
    ("script|load", true),
    ("publish", true),
    ("subscribe", true),
    ("info", false),
];
const RIGHTS_IN_A_CLUSTER: [(&str, bool); 17] = [
    ("ping", false),
    ("select", false),
    ("get", false),
    ("getrange", true),
    ("mget", false),
    ("set", true),
    ("unlink", false),
    ("evalsha", true),
    ("script|load", true),
    ("publish", false),
    ("subscribe", false),
    ("info", false),
    ("eval", false),
    ("cluster|slots", true),
    ("cluster|info", false),
    ("spublish", true),
    ("ssubscribe", true),
];

async fn is_well_without_each(url: &str, servers: &[PrivateRedis], rights: &[(&str, bool)]) {
    let world = World::with_redis(url).await;
    let as_user = url.replacen("://", "://least:pass-word@", 1);
    let mut unlike = Vec::new();
    // Nothing is missing at first.
    for (missing, told) in std::iter::once(&("", false)).chain(rights) {
        for server in servers {
            let mut user =
                vec!["ACL", "SETUSER", "least", "reset", "on", ">pass-word", "~perto:*", "&perto:*"];
            let rights: Vec<String> = rights
                .iter()
                .filter(|(right, _)| right != missing)
                .map(|(right, _)| format!("+{right}"))
                .collect();
            user.extend(rights.iter().map(String::as_str));
            say(server, &user).await;
        }
        let a = world.start_with(|perto| perto.redis(&as_user), |cache| cache).await;
        let is_told = || {
            let denied = |detail: &str| {
                ["NOPERM", "NoPerm", "permission", "can't run this command"]
                    .iter()
                    .any(|is| detail.contains(is))
            };
            a.perto.health().troubles.iter().any(|trouble| denied(&trouble.detail))
        };
        let began = Instant::now();
        for n in 0.. {
            for id in [1, 2] {
                a.put(&world, id, n).await;
                assert_eq!(a.fresh(id).await, Some(n), "without {missing:?}");
            }
            let many = a.items.get_many(&[1, 2, 3]).await.unwrap();
            assert!(many[..2].iter().all(|read| read.value() == Some(&n)), "without {missing:?}");
            tokio::time::sleep(Duration::from_millis(10)).await;
            if is_told() || began.elapsed() > Duration::from_millis(if *told { 20_000 } else { 1_500 }) {
                break;
            }
        }
        let detail = format!("{:?}", a.perto.health().troubles);
        assert!(!detail.contains("pass-word"), "{detail}");
        if is_told() != *told {
            unlike.push(format!("without {missing:?}: {detail}"));
        }
    }
    assert_eq!(unlike, Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_any_one_of_its_rights_reads_go_on_and_what_is_refused_is_told() {
    let redis = [PrivateRedis::start().await];
    is_well_without_each(&redis[0].url(), &redis, &RIGHTS).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_any_one_of_its_rights_in_a_cluster_reads_go_on_and_what_is_refused_is_told() {
    let cluster = PrivateCluster::start_without_replicas(&[]).await;
    is_well_without_each(&cluster.url(), &cluster.nodes, &RIGHTS_IN_A_CLUSTER).await;
}
