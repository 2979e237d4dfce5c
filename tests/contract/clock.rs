//! The clock: goes forward, at the rate of all others.

use std::time::Duration;

use perto::sim::SimClock;
use perto::{Clock, SystemClock};

use crate::both;

async fn simulated(test: impl AsyncFn(&dyn Clock)) {
    test(&SimClock::new()).await;
}

async fn real(test: impl AsyncFn(&dyn Clock)) {
    test(&SystemClock).await;
}

both!(it_never_goes_back, it_goes_at_the_rate_of_the_others);

async fn it_never_goes_back(clock: &dyn Clock) {
    let mut last = clock.now_ms();
    for _ in 0..100_000 {
        let now = clock.now_ms();
        assert!(now >= last, "{now} after {last}");
        last = now;
    }
}

async fn it_goes_at_the_rate_of_the_others(clock: &dyn Clock) {
    let (begun, at, unix_at) = (tokio::time::Instant::now(), clock.now_ms(), clock.unix_ms());
    tokio::time::sleep(Duration::from_millis(200)).await;
    let (passed, unix_passed) = (clock.now_ms() - at, clock.unix_ms() - unix_at);
    let elapsed = u64::try_from(begun.elapsed().as_millis()).unwrap();
    assert!((200 - 2..=elapsed + 2).contains(&passed), "{passed} of {elapsed} ms");
    // Somebody may set a wall clock at any time, but not by hours.
    assert!(unix_passed < elapsed + 3_600_000, "{unix_passed} of {elapsed} ms");
    assert!(unix_at > 1_600_000_000_000 && unix_at < 1 << 42, "{unix_at} is no time of these decades");
}

#[tokio::test(start_paused = true)]
async fn the_simulated_one_follows_virtual_time_and_obeys() {
    let clock = SimClock::new();
    let at = clock.now_ms();
    tokio::time::sleep(Duration::from_hours(1)).await;
    assert_eq!(clock.now_ms(), at + 3_600_000);
    clock.jump(Duration::from_secs(5));
    assert_eq!(clock.now_ms(), at + 3_605_000);
    clock.freeze();
    tokio::time::sleep(Duration::from_secs(7)).await;
    assert_eq!(clock.now_ms(), at + 3_605_000);
    clock.thaw();
    assert_eq!(clock.now_ms(), at + 3_612_000);
}
