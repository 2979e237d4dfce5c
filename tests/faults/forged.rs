//! Hints that somebody makes up, over a real bus: what they cost is bounded.

use std::time::{Duration, Instant};

use perto::{Change, Tier, Token, TroubleKind};

use crate::support::wait::eventually;
use crate::world::{Instance, World, coherent};

async fn xmax(world: &World) -> u64 {
    let text: String = sqlx::query_scalar("select pg_snapshot_xmax(pg_current_snapshot())::text")
        .fetch_one(&world.pool)
        .await
        .unwrap();
    text.parse().unwrap()
}

/// Who can publish can say anything. As an instance would.
async fn forge(forger: &Instance, xid: u64, keys: Option<&[i64]>) {
    let token: Token = format!("{:016x}-{xid:x}", forger.perto.health().epoch).parse().unwrap();
    let keys = keys.map(|keys| keys.iter().map(i64::to_string).collect());
    forger.perto.announce(token, &[Change { cache: "item".to_owned(), keys }]).await;
}

/// A number that is 900 million ahead, for all keys: once it emptied the cache until the instance was started anew.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_forged_hint_said_is_forgotten_within_two_polls() {
    let world = World::new().await;
    let (reader, forger) = (world.start().await, world.start().await);
    coherent([&reader, &forger]).await;
    world.put(1, 1).await;
    reader.polled().await;
    for keys in [Some(&[1][..]), None] {
        reader.fresh(1).await;
        assert_eq!(reader.fresh_from(1).await, (Some(1), Tier::Local));
        let hints = reader.perto.stats().hints;
        forge(&forger, xmax(&world).await + 900_000_000, keys).await;
        eventually("the hint has come", async || reader.perto.stats().hints > hints).await;
        assert_eq!(reader.fresh_from(1).await.1, Tier::Load);
        reader.polled().await;
        reader.fresh(1).await;
        assert_eq!(reader.fresh_from(1).await, (Some(1), Tier::Local), "{keys:?}");
    }
    let trouble = reader.troubles(TroubleKind::HintsUntrue);
    assert!(trouble.len() == 1 && trouble[0].detail.contains("do not exist"), "{trouble:?}");
}

/// A thousand a second for three seconds.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flood_of_forged_hints_takes_no_reads_from_l1_and_few_polls() {
    let world = World::new().await;
    // At the default interval: the shorter one of these tests would be all that is counted.
    let interval = Duration::from_millis(250);
    let reader = world.start_with(|perto| perto.poll_interval(interval), |cache| cache).await;
    let forger = world.start().await;
    coherent([&reader, &forger]).await;
    world.put(1, 1).await;
    reader.polled().await;
    reader.fresh(1).await;
    let (began, polls, ahead) = (Instant::now(), reader.perto.stats().polls, xmax(&world).await + 1_000_000);
    let mut ticks = tokio::time::interval(Duration::from_millis(1));
    let (mut reads, mut loads) = (0, 0);
    for n in 0..3_000 {
        ticks.tick().await;
        forge(&forger, ahead + n, None).await;
        // Two polls to find out, and time for a busy machine.
        if began.elapsed() > Duration::from_secs(1) {
            reads += 1;
            loads += u32::from(reader.fresh_from(1).await.1 == Tier::Load);
        }
    }
    let (polls, took) = (reader.perto.stats().polls - polls, began.elapsed());
    assert!(reads > 100 && loads <= reads / 100, "{loads} of {reads}");
    assert!(u128::from(polls) <= 20 * took.as_millis() / 1_000 + 1, "{polls} polls in {took:?}");
    assert!(!reader.troubles(TroubleKind::HintsUntrue).is_empty());
}
