//! A run in slices of time, for its plots: at most a few hundred, however long it was.
//!
//! What was read is in the record anyway, and is cut into slices when it is judged. What only the instances know is looked
//! at while the run goes on, and only for a report.

use std::sync::atomic::Ordering;
use std::time::Duration;

use perto::history::Answer;
use perto::{Freshness, Tier};

use super::fleet::{Member, Run};

/// Slices of equal width, the last one a little wider.
#[derive(Debug)]
pub(super) struct Timeline {
    length: Duration,
    width: Duration,
    bound: Duration,
    pub(super) slices: Vec<Slice>,
}

/// What happened to the reads that began in a slice.
#[derive(Debug, Clone, Default)]
pub(super) struct Slice {
    /// By tier: L1, L2, loads.
    pub(super) reads: [u64; 3],
    /// The oldest answer that was flagged as fresh. None where there was none.
    pub(super) oldest: Option<Duration>,
    pub(super) unverified: u64,
    pub(super) oldest_unverified: Option<Duration>,
    /// The oldest of those that break the promise: fresh and older than the bound, or of what nobody had written.
    pub(super) broken: Option<Duration>,
}

/// Slices at most.
const MOST: u128 = 240;
/// A slice of less holds too few reads to tell anything.
const WIDTHS_MS: [u64; 15] = [
    50, 100, 200, 500, 1_000, 2_000, 5_000, 10_000, 30_000, 60_000, 120_000, 300_000, 600_000, 1_800_000,
    3_600_000,
];

impl Timeline {
    pub(super) fn new(length: Duration, bound: Duration) -> Self {
        let count = |width: Duration| length.as_nanos() / width.as_nanos().max(1);
        let width = WIDTHS_MS
            .into_iter()
            .map(Duration::from_millis)
            .find(|width| count(*width) <= MOST)
            .unwrap_or(length / 200);
        let slices = usize::try_from(count(width)).unwrap_or_default().max(1);
        Self { length, width, bound, slices: vec![Slice::default(); slices] }
    }

    /// One answer, and how stale it was; `MAX` where nobody had written it.
    pub(super) fn add(&mut self, answer: &Answer, stale: Duration) {
        let at = answer.begun.as_nanos() / self.width.as_nanos().max(1);
        let last = self.slices.len() - 1;
        let slice = &mut self.slices[usize::try_from(at).unwrap_or(last).min(last)];
        slice.reads[match answer.tier {
            Tier::Local => 0,
            Tier::Remote => 1,
            Tier::Load => 2,
        }] += 1;
        let fresh = answer.freshness == Freshness::Fresh;
        slice.unverified += u64::from(!fresh);
        if stale == Duration::MAX || (fresh && stale > self.bound) {
            slice.broken = slice.broken.max(Some(stale));
        }
        let oldest = if fresh { &mut slice.oldest } else { &mut slice.oldest_unverified };
        *oldest = (*oldest).max(Some(stale));
    }

    pub(super) const fn length(&self) -> Duration {
        self.length
    }

    pub(super) const fn width(&self) -> Duration {
        self.width
    }

    /// When a slice begins and ends.
    pub(super) fn span(&self, at: usize) -> (Duration, Duration) {
        let start = |at: usize| self.width.saturating_mul(u32::try_from(at).unwrap_or(u32::MAX));
        let end = if at + 1 == self.slices.len() { self.length } else { start(at + 1) };
        (start(at), end)
    }
}

/// What the instances had counted, at several moments.
#[derive(Debug, Default)]
pub(super) struct Samples(Vec<Sample>);

#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Sample {
    at: Duration,
    pub(super) repairs: u64,
    pub(super) errors: u64,
}

/// Samples at most. When there are more, every other one goes, and the next ones come half as often.
const MAX_SAMPLES: usize = 1_024;
const FIRST_PAUSE: Duration = Duration::from_millis(25);

impl Samples {
    /// Looks every now and then. Never returns.
    pub(super) async fn watch(&mut self, run: &Run, members: &[Member]) {
        let mut pause = FIRST_PAUSE;
        loop {
            tokio::time::sleep(pause).await;
            if self.add(Sample::now(run, members)) {
                pause = pause.saturating_mul(2);
            }
        }
    }

    /// Returns whether there were so many that every other one went.
    fn add(&mut self, sample: Sample) -> bool {
        self.0.push(sample);
        let full = self.0.len() >= MAX_SAMPLES;
        if full {
            let mut odd = false;
            self.0.retain(|_| {
                odd = !odd;
                !odd
            });
        }
        full
    }

    /// The last moment that belongs to every slice before `end`.
    fn by(&self, end: Duration) -> Sample {
        let after = self.0.partition_point(|sample| sample.at <= end);
        after.checked_sub(1).map(|last| self.0[last]).unwrap_or_default()
    }

    /// What was counted between two moments.
    pub(super) fn between(&self, from: Duration, to: Duration) -> Sample {
        let (before, after) = (self.by(from), self.by(to));
        Sample {
            at: after.at,
            repairs: after.repairs.saturating_sub(before.repairs),
            errors: after.errors.saturating_sub(before.errors),
        }
    }

    /// The last look, when the run is over.
    pub(super) fn end(&mut self, run: &Run, members: &[Member], length: Duration) {
        self.0.push(Sample { at: length, ..Sample::now(run, members) });
    }
}

impl Sample {
    fn now(run: &Run, members: &[Member]) -> Self {
        Self {
            at: run.record.now(),
            repairs: members.iter().map(|member| member.perto.stats().repairs).sum(),
            errors: run.tally.errors.load(Ordering::Relaxed),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOUND: Duration = Duration::from_secs(1);

    fn answer(tier: Tier, fresh: bool, begun_ms: u64) -> Answer {
        let freshness =
            if fresh { Freshness::Fresh } else { Freshness::Unverified { since: Duration::ZERO } };
        let begun = Duration::from_millis(begun_ms);
        Answer::new(1, Some(1), freshness, tier, begun, begun)
    }

    #[test]
    fn slices_are_few_however_long_the_run_was_and_cover_all_of_it() {
        for (seconds, width_ms, count) in
            [(0.0, 50, 1), (0.03, 50, 1), (5.0, 50, 100), (22.23, 100, 222), (3_600.0, 30_000, 120)]
        {
            let timeline = Timeline::new(Duration::from_secs_f64(seconds), BOUND);
            assert_eq!((timeline.width().as_millis(), timeline.slices.len()), (width_ms, count), "{seconds}");
            assert_eq!(timeline.span(count - 1).1, timeline.length());
        }
        let years = Timeline::new(Duration::from_hours(100_000), BOUND);
        assert_eq!(years.slices.len(), 200);
    }

    #[test]
    fn an_answer_is_in_the_slice_in_which_the_read_began() {
        let ms = Duration::from_millis;
        let mut timeline = Timeline::new(ms(120), BOUND);
        for (tier, fresh, begun, stale) in [
            (Tier::Local, true, 0, ms(3)),
            (Tier::Local, true, 49, ms(2)),
            (Tier::Remote, false, 50, ms(5_000)),
            (Tier::Load, true, 119, ms(1_001)),
            (Tier::Load, true, 119, ms(1_000)),
            (Tier::Load, false, 119, Duration::MAX),
            // What begins after the end was counted.
            (Tier::Load, true, 500, ms(0)),
        ] {
            timeline.add(&answer(tier, fresh, begun), stale);
        }
        let [first, second] = &timeline.slices[..] else { panic!("{timeline:?}") };
        assert_eq!(
            (first.reads, first.oldest, first.unverified, first.broken),
            ([2, 0, 0], Some(ms(3)), 0, None)
        );
        assert_eq!((second.reads, second.oldest, second.unverified), ([0, 1, 4], Some(ms(1_001)), 2));
        assert_eq!((second.oldest_unverified, second.broken), (Some(Duration::MAX), Some(Duration::MAX)));
    }

    #[test]
    fn samples_are_few_however_many_are_taken_and_nothing_is_counted_twice() {
        let mut samples = Samples::default();
        // A repair for each first pause, over many hours.
        let (mut at, mut step) = (0, 1);
        while at < 4_000_000 {
            at += step;
            if samples.add(Sample { at: FIRST_PAUSE * at, repairs: u64::from(at), errors: 0 }) {
                step *= 2;
            }
            assert!(samples.0.len() < MAX_SAMPLES);
        }
        samples.0.push(Sample { at: FIRST_PAUSE * at, repairs: u64::from(at), errors: 7 });
        let slice = at / 200;
        let spans = (0..201).map(|n| samples.between(FIRST_PAUSE * slice * n, FIRST_PAUSE * slice * (n + 1)));
        let repairs: Vec<u64> = spans.map(|span| span.repairs).collect();
        assert_eq!(repairs.iter().sum::<u64>(), u64::from(at));
        let like = u64::from(slice * 3 / 5)..u64::from(slice * 7 / 5);
        assert!(repairs[..200].iter().all(|count| like.contains(count)), "{repairs:?}");
        assert_eq!(samples.between(Duration::ZERO, FIRST_PAUSE * at).errors, 7);
    }
}
