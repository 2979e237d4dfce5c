//! Redis behind Sentinels: instances are where these say, from a moment after it is so.

use std::time::Instant;

use perto::{State, TroubleKind};

use crate::support::engines::keys;
use crate::support::redis::PrivateRedis;
use crate::support::sentinels::Watched;
use crate::support::wait::{ends, eventually, eventually_within};
use crate::traffic::{Traffic, USED_WITHIN, both_are_used};
use crate::world::{World, coherent};

/// Our subscriptions and connections there.
async fn clients(server: &PrivateRedis) -> usize {
    let list: String =
        redis::cmd("CLIENT").arg("LIST").query_async(&mut server.connect().await).await.unwrap();
    let ours = |line: &&str| {
        let is = |what: &str| line.contains(what);
        is(" cmd=evalsha ") || is(" cmd=getrange ") || is(" cmd=publish ") || is(" cmd=set ") || is(" sub=1 ")
    };
    // Sentinels subscribe too, and have a name. A replica's way to its master brings what was written there.
    let others = |line: &&str| line.contains("name=sentinel") || line.contains(" flags=M ");
    list.lines().filter(ours).filter(|line| !others(line)).count()
}

async fn holds(server: &PrivateRedis, world: &World) -> usize {
    keys(&mut server.connect().await, &format!("perto:{}:*", world.name)).await.unwrap().len()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn when_the_server_dies_or_falls_silent_instances_are_at_the_promoted_one_within_a_second() {
    for dies in [true, false] {
        let mut watched = Watched::start().await;
        let world = World::with_redis(&watched.url()).await;
        let (a, b) = (world.start().await, world.start().await);
        coherent([&a, &b]).await;
        both_are_used(&world, &a, &b).await;
        let traffic = Traffic::start(&world, [&a, &b]);

        if dies {
            watched.servers[0].kill();
        } else {
            watched.servers[0].hold();
        }
        a.becomes(State::Isolated).await;
        let promoted = watched.servers[1].port();
        eventually("the Sentinels name the other one", async || watched.named().await == Some(promoted))
            .await;
        let began = Instant::now();
        coherent([&a, &b]).await;
        both_are_used(&world, &a, &b).await;
        both_are_used(&world, &b, &a).await;
        assert!(holds(&watched.servers[1], &world).await > 0);
        assert!(began.elapsed() < USED_WITHIN, "dies: {dies}; {:?}", began.elapsed());
        traffic.end().await;

        // What comes back is a replica, and nobody's server.
        if dies {
            watched.servers[0].restart_empty().await;
        } else {
            watched.servers[0].let_go_on();
        }
        eventually("it was made a replica", async || !watched.servers[0].is_master().await).await;
        both_are_used(&world, &a, &b).await;
        assert_eq!(clients(&watched.servers[0]).await, 0);
    }
}

/// The old one goes on as a master for ten seconds: Sentinels look that seldom. Who stayed would not be heard.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_failover_by_hand_leaves_nobody_at_the_old_server_though_it_still_takes_writes() {
    let watched = Watched::start().await;
    let world = World::with_redis(&watched.url()).await;
    let (a, b) = (world.start().await, world.start().await);
    coherent([&a, &b]).await;
    both_are_used(&world, &a, &b).await;
    let traffic = Traffic::start(&world, [&a, &b]);
    let [old, new] = &watched.servers[..] else { unreachable!() };
    eventually("all are there", async || clients(old).await >= 4).await;

    for sentinel in &watched.sentinels {
        sentinel.looks_every(20_000).await;
    }
    watched.fail_over(2).await;
    let began = Instant::now();
    eventually_within(USED_WITHIN, "nobody is at the old one", async || clients(old).await == 0).await;
    both_are_used(&world, &a, &b).await;
    both_are_used(&world, &b, &a).await;
    assert!(began.elapsed() < USED_WITHIN, "{:?}", began.elapsed());
    assert!(old.is_master().await, "it was demoted too soon to tell");
    assert!(clients(new).await >= 4);
    traffic.end().await;
}

/// The first is listened to. It dies, or falls silent while its connections stay open.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_sentinel_that_is_listened_to_can_not_tell_another_one_does() {
    for dies in [true, false] {
        let mut watched = Watched::start().await;
        let world = World::with_redis(&watched.url()).await;
        let (a, b) = (world.start().await, world.start().await);
        coherent([&a, &b]).await;
        if dies {
            watched.sentinels[0].kill();
        } else {
            watched.sentinels[0].hold();
        }
        both_are_used(&world, &a, &b).await;
        watched.fail_over(1).await;
        eventually("nobody is at the old one", async || clients(&watched.servers[0]).await == 0).await;
        coherent([&a, &b]).await;
        both_are_used(&world, &a, &b).await;
        assert!(holds(&watched.servers[1], &world).await > 0);
        ends("shutdown", a.perto.shutdown()).await;
    }
}

/// Who knows the server needs no Sentinel as long as it stays; who starts does.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_any_sentinel_the_server_is_kept_and_who_starts_says_who_is_missing() {
    let mut watched = Watched::start().await;
    let world = World::with_redis(&watched.url()).await;
    let (a, b) = (world.start().await, world.start().await);
    coherent([&a, &b]).await;
    for sentinel in &mut watched.sentinels {
        sentinel.kill();
    }
    both_are_used(&world, &a, &b).await;
    let mut kill = redis::cmd("CLIENT");
    kill.arg("KILL").arg("TYPE").arg("normal").arg("SKIPME").arg("yes");
    kill.query_async::<()>(&mut watched.servers[0].connect().await).await.unwrap();
    eventually("its connections are made again", async || {
        a.put(&world, 1, 1).await;
        b.fresh(1).await;
        a.perto.health().state == State::Coherent && b.perto.health().state == State::Coherent
    })
    .await;
    both_are_used(&world, &a, &b).await;

    let late = world.start().await;
    eventually("it says who is missing", async || {
        late.troubles(TroubleKind::RedisUnusable)
            .iter()
            .any(|trouble| trouble.detail.contains("Sentinel 127.0.0.1:"))
    })
    .await;
    assert_eq!((late.perto.health().state, late.fresh(1).await), (State::Isolated, Some(1)));
    watched.sentinels[2].start().await;
    coherent([&late]).await;
    both_are_used(&world, &a, &late).await;
    eventually("nothing is wrong any more", async || late.troubles(TroubleKind::RedisUnusable).is_empty())
        .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sentinels_that_want_a_password_get_theirs_and_a_wrong_one_is_told_and_not_shown() {
    let watched = Watched::start_with(Some("for-sentinels")).await;
    let world = World::with_redis(&watched.url()).await;
    let a = world.start().await;
    // With no more rights than it takes.
    for sentinel in &watched.sentinels {
        let mut acl = redis::cmd("ACL");
        acl.arg("SETUSER").arg("app").arg(&["on", ">for-app", "resetchannels", "&+switch-master", "-@all"]);
        acl.arg(&["+auth", "+ping", "+subscribe", "+sentinel|get-master-addr-by-name"]);
        acl.query_async::<()>(&mut sentinel.connect().await).await.unwrap();
    }
    let least = watched.url().replace("=for-sentinels", "=for-app&sentinel_username=app");
    let b = world.start_with(|perto| perto.redis(&least), |cache| cache).await;
    coherent([&a, &b]).await;
    both_are_used(&world, &a, &b).await;
    watched.fail_over(0).await;
    eventually("nobody is at the old one", async || clients(&watched.servers[0]).await == 0).await;

    both_are_used(&world, &a, &b).await;

    for wrong in ["?sentinel_password=no-good", ""] {
        let url = watched.url().replace("?sentinel_password=for-sentinels", wrong);
        let b = world.start_with(|perto| perto.redis(&url), |cache| cache).await;
        b.put(&world, 1, 1).await;
        for kind in [TroubleKind::RedisUnusable, TroubleKind::HintsNotReceived] {
            eventually("it is told", async || {
                b.troubles(kind).iter().any(|trouble| {
                    let is = |what: &str| trouble.detail.contains(what);
                    is("Sentinel 127.0.0.1:") && (is("NOAUTH") || is("AuthenticationFailed"))
                })
            })
            .await;
        }
        let told = format!("{:?} {:?}", b.perto.health().troubles, b.events());
        assert!(!told.contains("no-good") && !told.contains("for-sentinels"), "{told}");
        assert_eq!((b.perto.health().state, b.fresh(1).await), (State::Isolated, Some(1)));
    }
}

/// By somebody who asks no Sentinel. They put another one in its place, or make it what it was.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_was_demoted_by_hand_is_left_until_there_is_one_that_takes_writes() {
    let watched = Watched::start().await;
    let world = World::with_redis(&watched.url()).await;
    let (a, b) = (world.start().await, world.start().await);
    coherent([&a, &b]).await;
    both_are_used(&world, &a, &b).await;
    let traffic = Traffic::start(&world, [&a, &b]);
    let mut demote = redis::cmd("REPLICAOF");
    demote.arg("127.0.0.1").arg(1).query_async::<()>(&mut watched.servers[0].connect().await).await.unwrap();
    a.becomes(State::Isolated).await;
    b.becomes(State::Isolated).await;
    eventually("one takes writes, and the Sentinels name it", async || {
        let Some(named) = watched.named().await else { return false };
        let server = watched.servers.iter().find(|server| server.port() == named).unwrap();
        server.is_master().await
    })
    .await;
    let began = Instant::now();
    both_are_used(&world, &a, &b).await;
    both_are_used(&world, &b, &a).await;
    assert!(began.elapsed() < USED_WITHIN, "{:?}", began.elapsed());
    coherent([&a, &b]).await;
    traffic.end().await;
}
