//! Redis in the hands of somebody who means harm, or who is ill.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use perto::proxy::Fault;
use perto::{Change, fuzzing};
use redis::aio::MultiplexedConnection;

use crate::attacks::Power;
use crate::quiet::HOT;
use crate::support::engines::keys;
use crate::world::World;

const CHANNEL: &str = "perto:service:bus";
const CACHE: &str = "contact";
/// Of hints.
const A_SECOND: u32 = 1_000;
/// Largest value that is put under a name.
const VALUE: usize = 64 << 20;

async fn publish(redis: &mut MultiplexedConnection, power: &Power, message: &[u8]) {
    redis::cmd("PUBLISH").arg(CHANNEL).arg(message).query_async::<()>(redis).await.unwrap();
    power.tried.fetch_add(1, Ordering::Relaxed);
}

/// All contacts, or some that are hot.
fn changes(chance: u64) -> [Change; 1] {
    let some = || HOT.iter().skip(chance as usize % HOT.len()).take(5).map(ToString::to_string).collect();
    [Change { cache: CACHE.to_owned(), keys: (!chance.is_multiple_of(4)).then(some) }]
}

pub(crate) async fn one_forged_hint(world: Arc<World>, power: Arc<Power>) {
    let (epoch, xid) = world.newest().await;
    let mut redis = world.redis().await;
    let changes = [Change { cache: CACHE.to_owned(), keys: None }];
    let hint = fuzzing::forged_hint(epoch, power.seed, 1, xid + 900_000_000, &changes);
    publish(&mut redis, &power, &hint).await;
    power.wait().await;
}

pub(crate) async fn forged_hints(world: Arc<World>, power: Arc<Power>) {
    let (epoch, newest) = world.newest().await;
    let mut redis = world.redis().await;
    let mut ticks = tokio::time::interval(Duration::from_secs(1) / A_SECOND);
    let mut at = 0;
    while !power.is_over() {
        ticks.tick().await;
        at += 1;
        let chance = power.chance(at);
        let xid = match chance % 4 {
            0 => newest + 1 + at,
            1 => newest + chance % 1_000_000_000,
            2 => newest.saturating_sub(chance % 1_000),
            _ => chance,
        };
        let epoch = if chance.is_multiple_of(16) { chance } else { epoch };
        // Few publishers with gaps, and many that nobody knows.
        let publisher = if chance.is_multiple_of(3) { chance } else { chance % 5 };
        let hint = fuzzing::forged_hint(epoch, publisher, at * (1 + chance % 3), xid, &changes(chance >> 8));
        publish(&mut redis, &power, &hint).await;
    }
}

pub(crate) async fn poisoned_values(world: Arc<World>, power: Arc<Power>) {
    let mut redis = world.redis().await;
    let huge = vec![b'P'; VALUE.min(power.message)];
    let mut at = 0;
    while !power.is_over() {
        for name in keys(&mut redis, "perto:service:*:contact.*").await.unwrap() {
            at += 1;
            let chance = power.chance(at);
            let value: Vec<u8> = match chance % 5 {
                0 => chance.to_be_bytes().repeat(20),
                // What was there, cut short.
                1 | 2 => {
                    let held: Option<Vec<u8>> =
                        redis::cmd("GET").arg(&name).query_async(&mut redis).await.unwrap();
                    held.map(|held| held[..held.len() / 2].to_vec()).unwrap_or_default()
                }
                3 => Vec::new(),
                _ => huge.clone(),
            };
            redis::cmd("SET").arg(&name).arg(value).query_async::<()>(&mut redis).await.unwrap();
            power.tried.fetch_add(1, Ordering::Relaxed);
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    // What is still there must not outlive the attack for want of a time to live.
    for name in keys(&mut redis, "perto:service:*:contact.*").await.unwrap() {
        redis::cmd("EXPIRE").arg(&name).arg(60).query_async::<()>(&mut redis).await.unwrap();
    }
}

pub(crate) async fn huge_messages(world: Arc<World>, power: Arc<Power>) {
    let mut redis = world.redis().await;
    let message = vec![b'P'; power.message];
    while !power.is_over() {
        publish(&mut redis, &power, &message).await;
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
}

pub(crate) async fn slow_redis(world: Arc<World>, power: Arc<Power>) {
    world.proxy.set(Fault::Delay(Duration::from_millis(40)));
    power.wait().await;
    world.proxy.set(Fault::None);
}
