//! A Redis that says what no Redis would.

use std::time::Duration;

use perto::{RemoteError, State};

use crate::support::engines::unique_name;
use crate::support::liar::{Answer, Liar, Lie};
use crate::support::wait::{ends, eventually};
use crate::world::World;

/// What a server says to the ping of a subscription is heard as what it says to any other.
#[tokio::test(flavor = "multi_thread")]
async fn a_ping_that_is_answered_with_an_error_is_no_answer_of_a_good_server() {
    let liar = Liar::start().await;
    let tiers = perto::redis::tiers(&liar.url(), &unique_name()).unwrap();
    let mut subscription = tiers.bus.subscribe().await.unwrap();
    subscription.ping().await.unwrap();
    for error in ["LOADING it reads its dump", "NOAUTH who are you", "MASTERDOWN it lost its primary"] {
        liar.tell(Lie::Ping(error));
        let answered = subscription.ping().await;
        assert!(matches!(answered, Err(RemoteError::Unusable(_))), "{error}: {answered:?}");
    }
    // One that can't write its dump refuses pings, and carries hints all the same.
    liar.tell(Lie::Ping("MISCONF it can't write its dump"));
    subscription.ping().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_subscription_whose_server_says_that_it_is_of_no_use_is_not_counted_on() {
    let liar = Liar::start().await;
    let world = World::with_redis(&liar.url()).await;
    let a = world.start().await;
    a.becomes(State::Coherent).await;
    liar.tell(Lie::Ping("LOADING it reads its dump"));
    a.becomes(State::Isolated).await;
    assert!(!a.perto.health().bus_up);
    liar.tell(Lie::None);
    a.becomes(State::Coherent).await;
}

/// Answers that do not end: the connection is left, reads go on, and Redis is used again once it is well.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_that_does_not_end_costs_its_connection_and_no_read() {
    let liar = Liar::start().await;
    let world = World::with_redis(&liar.url()).await;
    world.put(1, 1).await;
    let a = world.start().await;
    for answer in [Answer::Line, Answer::List, Answer::Lists, Answer::Text(480 << 20)] {
        a.becomes(State::Coherent).await;
        let told = liar.told();
        liar.tell(Lie::Value(answer));
        a.items.invalidate(&1).await.unwrap();
        assert_eq!(a.fresh(1).await, Some(1), "{answer:?}");
        eventually(&format!("{answer:?} was told"), async || liar.told() > told).await;
        liar.tell(Lie::None);
    }
    a.becomes(State::Coherent).await;
}

/// A message that is far too long is none; others after it are heard, on the same subscription.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_a_message_that_is_far_too_long_nothing_is_kept() {
    let liar = Liar::start().await;
    let tiers = perto::redis::tiers(&liar.url(), &unique_name()).unwrap();
    let mut subscription = tiers.bus.subscribe().await.unwrap();
    liar.tell(Lie::Push(Answer::Text(32 << 20)));
    assert_eq!(subscription.next().await.unwrap().len(), 0);
    liar.tell(Lie::Push(Answer::Text(100)));
    eventually("a short one is heard", async || subscription.next().await.unwrap().len() == 100).await;
    // Nobody takes them: the subscription is over, and says so.
    liar.tell(Lie::Push(Answer::Texts(1_000)));
    let told = liar.told();
    let (mut last, mut still) = (told, 0);
    eventually("no more is taken", async || {
        let now = liar.told();
        still = if now == last && now > told { still + 1 } else { 0 };
        last = now;
        still >= 30
    })
    .await;
    assert!(liar.told() - told < 32 << 20, "{} MiB were taken", (liar.told() - told) >> 20);
    ends("it is over", async { while subscription.next().await.is_ok() {} }).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_of_ones_own_keeps_no_text_that_is_longer_than_was_asked_for() {
    let liar = Liar::start().await;
    liar.tell(Lie::Value(Answer::Text(8 << 20)));
    let server = perto::redis::address(&liar.url()).unwrap();
    for (most, kept) in [(1 << 20, 0), (16 << 20, 8 << 20)] {
        let limit = Duration::from_secs(20);
        let mut connection = perto::redis::connect(&server, most, limit).await.unwrap();
        let asking = redis::cmd("GETRANGE").arg("key").arg(0).arg(9).to_owned();
        let answer: Vec<u8> = asking.query_async(&mut *connection).await.unwrap();
        assert_eq!(answer.len(), kept);
    }
}
