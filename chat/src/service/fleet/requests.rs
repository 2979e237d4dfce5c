//! How long requests take: counted on their way out, lock-free, and looked at over the last minute.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use perto::Histogram;

/// Pieces of a minute.
const PIECES: usize = 12;
const PIECE: Duration = Duration::from_secs(5);

/// The requests of this instance under `/api/v1`.
#[derive(Debug)]
pub(crate) struct Requests {
    /// Longer is slow.
    limit: Duration,
    count: AtomicU64,
    now: Piece,
    /// Those before, the newest last, and when it was put there.
    before: Mutex<(VecDeque<Piece>, Instant)>,
}

#[derive(Debug, Default)]
struct Piece {
    times: Histogram,
    slow: AtomicU64,
}

/// The last minute, and up to five seconds more.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Minute {
    pub(crate) count: u64,
    pub(crate) slow: u64,
    pub(crate) p50: Duration,
    pub(crate) p99: Duration,
}

/// A request in progress. Ends when it is dropped: by its answer, or by a client that has gone.
#[derive(Debug)]
pub(crate) struct Timed<'a> {
    requests: &'a Requests,
    began: Instant,
    took: Option<Duration>,
}

impl Requests {
    pub(crate) fn new(limit: Duration) -> Self {
        let before = Mutex::new((VecDeque::new(), Instant::now()));
        Self { limit, count: AtomicU64::new(0), now: Piece::default(), before }
    }

    pub(crate) fn begin(&self) -> Timed<'_> {
        Timed { requests: self, began: Instant::now(), took: None }
    }

    fn record(&self, took: Duration) {
        self.count.fetch_add(1, Ordering::Relaxed);
        self.now.times.record(took);
        if took > self.limit {
            self.now.slow.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Since the start.
    pub(crate) fn count(&self) -> u64 {
        self.count.load(Ordering::Relaxed)
    }

    /// To be called every second or so.
    pub(crate) fn turn(&self, now: Instant) {
        let mut before = self.before.lock();
        if now.saturating_duration_since(before.1) < PIECE {
            return;
        }
        before.1 = now;
        let slow = AtomicU64::new(self.now.slow.swap(0, Ordering::Relaxed));
        before.0.push_back(Piece { times: self.now.times.take(), slow });
        if before.0.len() > PIECES {
            before.0.pop_front();
        }
    }

    pub(crate) fn minute(&self) -> Minute {
        let (times, before) = (Histogram::default(), self.before.lock());
        let mut slow = 0;
        for piece in before.0.iter().chain([&self.now]) {
            times.merge(&piece.times);
            slow += piece.slow.load(Ordering::Relaxed);
        }
        Minute { count: times.count(), slow, p50: times.quantile(0.5), p99: times.quantile(0.99) }
    }
}

impl Timed<'_> {
    /// It was answered.
    pub(crate) fn ended(mut self) -> Duration {
        *self.took.insert(self.began.elapsed())
    }
}

impl Drop for Timed<'_> {
    fn drop(&mut self) {
        self.requests.record(self.took.unwrap_or_else(|| self.began.elapsed()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_minute_is_remembered_and_no_more() {
        let requests = Requests::new(Duration::from_secs(2));
        let began = Instant::now();
        requests.record(Duration::from_secs(2));
        requests.record(Duration::from_millis(2_001));
        let seen = requests.minute();
        assert_eq!((seen.count, seen.slow), (2, 1));
        assert!(seen.p99 >= Duration::from_secs(2), "{seen:?}");
        for second in 1..=60 {
            requests.turn(began + Duration::from_secs(second) + PIECE / 2);
            assert_eq!(requests.minute().count, 2, "after {second} s");
        }
        for second in 61..=70 {
            requests.turn(began + Duration::from_secs(second) + PIECE / 2);
        }
        assert_eq!((requests.minute(), requests.count()), (Minute::default(), 2));
    }
}
