//! Requests a second: so many of each who asks, and more at once. What was taken and not used is given back.

use std::collections::HashMap;
use std::hash::Hash;
use std::num::NonZeroU32;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

/// How many seconds' worth of requests may come at once.
const BURST: u32 = 2;

#[derive(Debug)]
pub(super) struct Rates<K> {
    each: Duration,
    burst: u32,
    /// When what each has taken will be what it may have had by then.
    until: Mutex<HashMap<K, Instant>>,
}

impl<K: Copy + Eq + Hash> Rates<K> {
    pub(super) fn new(a_second: NonZeroU32) -> Self {
        Self {
            each: Duration::from_secs(1) / a_second.get(),
            burst: a_second.get().saturating_mul(BURST),
            until: Mutex::default(),
        }
    }

    /// How many of so many requests are counted. What is more than half of what may come at once counts as that: the request
    /// itself and its answer have room too.
    fn counted(&self, requests: usize) -> u32 {
        u32::try_from(requests).unwrap_or(u32::MAX).min(self.burst / 2)
    }

    /// Takes so many requests.
    ///
    /// # Errors
    /// How long to wait until they may be taken. Nothing is, then.
    pub(super) fn take(&self, who: K, requests: usize) -> Result<(), Duration> {
        let (now, requests) = (Instant::now(), self.counted(requests));
        if requests == 0 {
            return Ok(());
        }
        let mut by_who = self.until.lock();
        let until = by_who.get(&who).map_or(now, |until| now.max(*until)) + self.each * requests;
        let wait = (until - now).saturating_sub(self.each * self.burst);
        if wait.is_zero() {
            by_who.insert(who, until);
            return Ok(());
        }
        Err(wait)
    }

    /// Of so many requests that were taken only some were used.
    pub(super) fn give_back(&self, who: K, taken: usize, used: usize) {
        let unused = self.each * self.counted(taken).saturating_sub(self.counted(used));
        if let Some(until) = self.until.lock().get_mut(&who) {
            *until = until.checked_sub(unused).unwrap_or(*until);
        }
    }

    /// Forgets those who have been quiet.
    pub(super) fn sweep(&self) {
        let (now, mut by_who) = (Instant::now(), self.until.lock());
        by_who.retain(|_, until| *until > now);
        by_who.shrink_to_fit();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    #[tokio::test(start_paused = true)]
    async fn each_has_two_seconds_worth_at_once_and_then_as_many_as_come_back() {
        let rates = Rates::new(NonZeroU32::new(10).unwrap());
        for _ in 0..20 {
            assert_eq!(rates.take(1, 1), Ok(()));
        }
        assert_eq!((rates.take(1, 1), rates.take(1, 5)), (Err(ms(100)), Err(ms(500))));
        assert_eq!(rates.take(2, 1), Ok(()), "nobody else waits");
        tokio::time::advance(ms(500)).await;
        assert_eq!((rates.take(1, 5), rates.take(1, 1)), (Ok(()), Err(ms(100))));
        tokio::time::advance(ms(60_000)).await;
        assert_eq!((rates.take(1, 1_000), rates.take(1, 10)), (Ok(()), Ok(())), "half, and half");
        assert_eq!((rates.take(1, 1), rates.take(1, 0)), (Err(ms(100)), Ok(())));
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_given_back_may_be_taken_again_and_no_more() {
        let rates = Rates::new(NonZeroU32::new(10).unwrap());
        assert_eq!((rates.take(1, 10), rates.take(1, 10)), (Ok(()), Ok(())));
        rates.give_back(1, 10, 4);
        assert_eq!((rates.take(1, 6), rates.take(1, 1)), (Ok(()), Err(ms(100))));
        // What comes back later than it would have come by itself is not there twice.
        tokio::time::advance(ms(2_000)).await;
        rates.give_back(1, 1_000, 0);
        assert_eq!((rates.take(1, 10), rates.take(1, 10), rates.take(1, 1)), (Ok(()), Ok(()), Err(ms(100))));
        rates.sweep();
        assert_eq!(rates.until.lock().len(), 1);
        tokio::time::advance(ms(2_000)).await;
        rates.sweep();
        assert!(rates.until.lock().is_empty());
    }
}
