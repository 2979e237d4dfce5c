//! A Redis that answers, and says that it is of no use: it is left where that helps, and what it says is told.

use perto::{State, TroubleKind};
use redis::AsyncCommands;

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
