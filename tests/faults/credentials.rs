//! Credentials of Redis that whoever knows them is asked for: rotated while instances run, late, or not to be had.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use perto::redis::{Address, Credentials, address, connect};
use perto::{State, TroubleKind};

use crate::support::cluster::PrivateCluster;
use crate::support::redis::PrivateRedis;
use crate::support::sentinels::Watched;
use crate::support::wait::eventually;
use crate::traffic::both_are_used;
use crate::world::{Instance, World, coherent};

const USER: &str = "rotating";

/// Somebody who hands out the password of the day.
#[derive(Clone, Default)]
struct Vault(Arc<Mutex<Password>>);

#[derive(Clone)]
enum Password {
    Is(&'static str),
    Fails(&'static str),
    Hangs,
    Panics,
}

impl Default for Password {
    fn default() -> Self {
        Self::Is("first")
    }
}

impl Vault {
    fn has(&self, password: Password) {
        *self.0.lock() = password;
    }

    /// After longer than an instance waits for a connection at a time.
    fn at(&self, url: &str) -> Address {
        let vault = self.clone();
        address(url).unwrap().with_credentials(move || {
            let password = vault.0.lock().clone();
            async move {
                tokio::time::sleep(Duration::from_millis(700)).await;
                match password {
                    Password::Is(password) => {
                        Ok(Credentials { user: Some(USER.to_owned()), password: password.to_owned() })
                    }
                    Password::Fails(why) => Err(std::io::Error::other(why)),
                    Password::Hangs => std::future::pending().await,
                    Password::Panics => panic!("in the vault"),
                }
            }
        })
    }
}

async fn say(servers: &[PrivateRedis], words: &[&str]) {
    for server in servers {
        let mut say = redis::cmd(words[0]);
        say.arg(&words[1..]).query_async::<redis::Value>(&mut server.connect().await).await.unwrap();
    }
}

async fn becomes(servers: &[PrivateRedis], password: &str) {
    let password = format!(">{password}");
    say(servers, &["ACL", "SETUSER", USER, "reset", "on", &password, "~*", "&*", "+@all"]).await;
}

/// On servers of any kind.
async fn rotates(url: &str, servers: &[PrivateRedis]) {
    let (world, vault) = (World::with_redis(url).await, Vault::default());
    becomes(servers, "first").await;
    let start = async || world.start_with(|perto| perto.redis_at(vault.at(url)), |cache| cache).await;
    let (a, b) = (start().await, start().await);
    coherent([&a, &b]).await;
    both_are_used(&world, &a, &b).await;

    becomes(servers, "second").await;
    // What is connected stays so.
    both_are_used(&world, &a, &b).await;
    say(servers, &["CLIENT", "KILL", "USER", USER]).await;
    for instance in [&a, &b] {
        eventually("it is told", async || {
            let refused =
                |detail: &str| ["AuthenticationFailed", "WRONGPASS"].iter().any(|is| detail.contains(is));
            instance.troubles(TroubleKind::HintsNotReceived).iter().any(|trouble| refused(&trouble.detail))
        })
        .await;
    }
    vault.has(Password::Is("second"));
    coherent([&a, &b]).await;
    both_are_used(&world, &a, &b).await;
    both_are_used(&world, &b, &a).await;
    let mut key = 100;
    for instance in [&a, &b] {
        eventually("nothing is wrong any more", async || {
            // What was refused is over once nothing more is.
            key += 1;
            instance.put(&world, key, 1).await;
            instance.fresh(key).await;
            instance.perto.health().troubles.is_empty()
        })
        .await;
        let told = format!("{:?}", instance.events());
        assert!(!told.contains("first") && !told.contains("second"), "{told}");
    }
    let mut own = connect(&vault.at(url), 1 << 10, Duration::from_secs(5)).await.unwrap();
    let whoami: String = redis::cmd("ACL").arg("WHOAMI").query_async(&mut *own).await.unwrap();
    assert_eq!(whoami, USER);
}

async fn is_told(instance: &Instance, kind: TroubleKind, says: &str) {
    eventually(&format!("{kind} says {says}"), async || {
        instance.troubles(kind).iter().any(|trouble| trouble.detail.contains(says))
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_password_that_is_rotated_is_asked_for_by_new_connections_to_one_server() {
    let redis = [PrivateRedis::start().await];
    rotates(&redis[0].url(), &redis).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_password_that_is_rotated_is_asked_for_behind_sentinels() {
    let watched = Watched::start().await;
    rotates(&watched.url(), &watched.servers).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_password_that_is_rotated_is_asked_for_at_each_node_of_a_cluster() {
    let cluster = PrivateCluster::start_without_replicas(&[]).await;
    rotates(&cluster.url(), &cluster.nodes).await;
}

/// An instance goes on without Redis meanwhile.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn credentials_that_are_not_to_be_had_are_told_of_and_asked_for_again() {
    let redis = [PrivateRedis::start().await];
    becomes(&redis, "first").await;
    let (world, vault) = (World::with_redis(&redis[0].url()).await, Vault::default());
    for (password, says) in [
        (Password::Fails("the vault is sealed"), "there are no credentials for Redis"),
        (Password::Fails("the vault is sealed"), "the vault is sealed"),
        (Password::Hangs, "did not come within 2s"),
        (Password::Panics, "panicked"),
    ] {
        vault.has(password);
        let a = world.start_with(|perto| perto.redis_at(vault.at(&world.redis)), |cache| cache).await;
        a.put(&world, 1, 1).await;
        assert_eq!((a.perto.health().state, a.fresh(1).await), (State::Isolated, Some(1)));
        for kind in [TroubleKind::RedisUnusable, TroubleKind::HintsNotReceived] {
            is_told(&a, kind, says).await;
        }
        vault.has(Password::Is("first"));
        coherent([&a]).await;
        eventually("nothing is wrong any more", async || a.perto.health().troubles.is_empty()).await;
    }
}

/// Where hints are received elsewhere, and its URL names nobody.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hints_that_are_received_elsewhere_are_so_with_the_same_credentials() {
    let redis = [PrivateRedis::start().await];
    becomes(&redis, "first").await;
    say(&redis, &["ACL", "SETUSER", "default", "-subscribe"]).await;
    let (world, vault) = (World::with_redis(&redis[0].url()).await, Vault::default());
    let by = |perto: perto::PertoBuilder| perto.redis_at(vault.at(&world.redis)).subscribe_at(&world.redis);
    let (a, b) = (world.start_with(by, |cache| cache).await, world.start_with(by, |cache| cache).await);
    coherent([&a, &b]).await;
    both_are_used(&world, &a, &b).await;
}
