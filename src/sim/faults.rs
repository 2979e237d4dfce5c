//! What may go wrong on the way to a server, by hand and by chance.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;

use crate::error::{LogError, RemoteError};
use crate::watched::Watched;

/// Random numbers from a seed, the same on every machine.
#[derive(Debug, Clone)]
pub struct Dice(u64);

impl Dice {
    /// Dice that always fall alike for the same seed.
    #[must_use]
    pub const fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// Any number.
    pub const fn roll(&mut self) -> u64 {
        // Splitmix64.
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// A number below `n`; 0 where `n` is 0.
    pub const fn below(&mut self, n: u64) -> u64 {
        if n == 0 { 0 } else { self.roll() % n }
    }

    /// A place in a list of `len`; 0 where it is empty.
    #[must_use]
    pub fn index(&mut self, len: usize) -> usize {
        usize::try_from(self.below(len as u64)).unwrap_or_default()
    }

    /// True in so many of a hundred cases.
    pub const fn chance(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }

    /// A time between the two.
    pub fn between(&mut self, least: Duration, most: Duration) -> Duration {
        let span = u64::try_from(most.saturating_sub(least).as_micros()).unwrap_or(u64::MAX);
        least + Duration::from_micros(self.below(span.saturating_add(1)))
    }
}

/// The faults of one connection. All hold until [`Faults::heal`].
#[derive(Debug)]
pub struct Faults {
    now: Arc<Watched<Weather>>,
    dice: Mutex<Dice>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct Weather {
    way: Way,
    least: Duration,
    most: Duration,
    lost: u64,
    doubled: u64,
    /// Counts changes.
    edition: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum Way {
    #[default]
    Open,
    Cut,
    Hung,
}

/// The simulated server can't be reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("cut off by the simulation")]
pub struct Down;

impl From<Down> for RemoteError {
    fn from(_: Down) -> Self {
        Self::Disconnected
    }
}

impl From<Down> for LogError {
    fn from(down: Down) -> Self {
        Self::Unreachable(Arc::new(down))
    }
}

impl Faults {
    pub(super) fn new(seed: u64) -> Self {
        Self { now: Arc::default(), dice: Mutex::new(Dice::new(seed)) }
    }

    /// Every operation fails at once; what was connected breaks.
    pub fn cut(&self) {
        self.change(|weather| weather.way = Way::Cut);
    }

    /// No operation is answered, and none fails.
    pub fn hang(&self) {
        self.change(|weather| weather.way = Way::Hung);
    }

    /// Everything takes a random time between the two, each way. Messages on the bus overtake each other by it. What was sent
    /// arrives also if its sender gave up waiting.
    pub fn delay(&self, least: Duration, most: Duration) {
        self.change(|weather| (weather.least, weather.most) = (least, most));
    }

    /// So many of a hundred messages or changes are lost, while their sender is told that all went well.
    pub fn lose(&self, percent: u64) {
        self.change(|weather| weather.lost = percent);
    }

    /// So many of a hundred messages arrive twice.
    pub fn double(&self, percent: u64) {
        self.change(|weather| weather.doubled = percent);
    }

    /// Ends all faults. What waited for an answer goes on.
    pub fn heal(&self) {
        self.change(|weather| *weather = Weather { edition: weather.edition, ..Weather::default() });
    }

    fn change(&self, change: impl FnOnce(&mut Weather)) {
        self.now.update(|weather| {
            change(weather);
            weather.edition += 1;
        });
    }

    pub(super) fn is_cut(&self) -> bool {
        self.now.look(|weather| weather.way == Way::Cut)
    }

    pub(super) fn is_hung(&self) -> bool {
        self.now.look(|weather| weather.way == Way::Hung)
    }

    /// Completes when something about the faults changes from what they are now.
    pub(super) fn changed(&self) -> impl Future<Output = ()> + Send + use<> {
        let now = Arc::clone(&self.now);
        let seen = now.look(|weather| weather.edition);
        async move { now.wait_for(|weather| (weather.edition != seen).then_some(())).await }
    }

    pub(super) fn draw_delay(&self) -> Duration {
        let (least, most) = self.now.look(|weather| (weather.least, weather.most));
        self.dice.lock().between(least, most)
    }

    pub(super) fn draw_lost(&self) -> bool {
        let percent = self.now.look(|weather| weather.lost);
        self.dice.lock().chance(percent)
    }

    pub(super) fn draw_doubled(&self) -> bool {
        let percent = self.now.look(|weather| weather.doubled);
        self.dice.lock().chance(percent)
    }

    /// One way over the connection.
    pub(super) async fn pass(&self) -> Result<(), Down> {
        let delay = self.draw_delay();
        if !delay.is_zero() {
            tokio::time::sleep(delay).await;
        }
        self.unless_hung().await
    }

    /// As [`Faults::pass`], without the delay.
    pub(super) async fn unless_hung(&self) -> Result<(), Down> {
        let way = |weather: &Weather| match weather.way {
            Way::Open => Some(Ok(())),
            Way::Cut => Some(Err(Down)),
            Way::Hung => None,
        };
        self.now.wait_for(way).await
    }
}

/// Holds those who come to it, while it is closed.
#[derive(Debug)]
pub struct Gate {
    closed: Watched<bool>,
    waiting: Watched<usize>,
}

impl Gate {
    pub(super) fn new() -> Self {
        Self { closed: Watched::default(), waiting: Watched::default() }
    }

    /// Who comes from now on waits.
    pub fn close(&self) {
        self.closed.update(|closed| *closed = true);
    }

    /// Lets all go on.
    pub fn open(&self) {
        self.closed.update(|closed| *closed = false);
    }

    /// How many are waiting.
    #[must_use]
    pub fn waiting(&self) -> usize {
        self.waiting.look(|waiting| *waiting)
    }

    /// Completes once so many are waiting.
    pub async fn reached_by(&self, count: usize) {
        self.waiting.wait_for(|waiting| (*waiting >= count).then_some(())).await;
    }

    pub(super) async fn pass(&self) {
        struct Place<'a>(&'a Gate);
        impl Drop for Place<'_> {
            fn drop(&mut self) {
                self.0.waiting.update(|waiting| *waiting -= 1);
            }
        }
        if self.closed.look(|closed| *closed) {
            self.waiting.update(|waiting| *waiting += 1);
            let _place = Place(self);
            self.closed.wait_for(|closed| (!closed).then_some(())).await;
        }
    }
}
