//! What an instance counts. Names here are the names in documents, reports and tests.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

/// A counter.
#[derive(Debug, Default)]
pub(crate) struct Counter(AtomicU64);

impl Counter {
    pub(crate) fn add(&self, n: u64) {
        self.0.fetch_add(n, Ordering::Relaxed);
    }

    pub(crate) fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// A counter of what all threads count all the time. Each adds to a line of its own, as long as there are no more than [`STRIPES`].
#[derive(Debug, Default)]
pub(crate) struct Striped([Stripe; STRIPES]);

/// The part of a counter that this thread adds to.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Here<'a> {
    counter: &'a Counter,
    /// No other thread ever adds to it: a load and a store, without the lock of the line.
    is_own: bool,
}

const STRIPES: usize = 32;
/// The first threads have one each, for good. All later ones share the rest.
const OWN: usize = STRIPES / 2;

/// Two lines: the processor fetches them in pairs.
#[derive(Debug, Default)]
#[repr(align(128))]
struct Stripe(Counter);

static THREADS: AtomicUsize = AtomicUsize::new(0);

thread_local! {
    static STRIPE: usize = match THREADS.fetch_add(1, Ordering::Relaxed) {
        own @ 0..OWN => own,
        later => OWN + later % (STRIPES - OWN),
    };
}

impl Striped {
    /// The part of it that this thread adds to.
    #[inline]
    pub(crate) fn here(&self) -> Here<'_> {
        let stripe = STRIPE.with(|stripe| *stripe);
        Here { counter: &self.0[stripe].0, is_own: stripe < OWN }
    }

    pub(crate) fn get(&self) -> u64 {
        self.0.iter().map(|stripe| stripe.0.get()).sum()
    }
}

impl Here<'_> {
    #[inline]
    pub(crate) fn get(self) -> u64 {
        self.counter.get()
    }

    /// Adds one. Returns what it was before.
    #[inline]
    pub(crate) fn increment(self) -> u64 {
        let Counter(counter) = self.counter;
        if self.is_own {
            let before = counter.load(Ordering::Relaxed);
            counter.store(before.wrapping_add(1), Ordering::Relaxed);
            before
        } else {
            counter.fetch_add(1, Ordering::Relaxed)
        }
    }
}

macro_rules! counters {
    // Those that each read counts where it finds something.
    (@kind l1_hits) => { Striped };
    (@kind l2_hits) => { Striped };
    (@kind $name:ident) => { Counter };
    ($(#[$doc:meta])* $live:ident => $snapshot:ident { $($(#[$help:meta])* $name:ident),* $(,)? }) => {
        #[derive(Debug, Default)]
        pub(crate) struct $live { $(pub(crate) $name: counters!(@kind $name)),* }

        $(#[$doc])*
        #[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
        #[non_exhaustive]
        pub struct $snapshot { $($(#[$help])* pub $name: u64),* }

        impl $live {
            pub(crate) fn snapshot(&self) -> $snapshot {
                $snapshot { $($name: self.$name.get()),* }
            }
        }
    };
}

/// What a cache counts, with the help of each: handed to another macro, behind what that is given besides. The service makes a
/// type of its own of it.
#[doc(hidden)]
#[macro_export]
macro_rules! cache_counters {
    ($then:ident! { $($head:tt)* }) => {
        $then! {
            $($head)* {
                /// Reads answered from L1.
                l1_hits,
                /// Reads answered from L2.
                l2_hits,
                /// Reads answered by a load.
                load_hits,
                /// Calls of the loader. Reads that wait for the same key share one.
                loads,
                /// Keys asked of the loader.
                keys_loaded,
                /// Reads that waited for what another reader had asked for already.
                flights_joined,
                /// Loads that failed, panicked or took too long. Reads that failed are in no other figure.
                load_errors,
                /// Values from L2 refused because they miss an invalidation.
                l2_refused,
                /// Values from L2 refused because they are corrupt, foreign or of another type.
                l2_unreadable,
                /// Values from L2 left aside because they depend on a cache that this instance does not declare.
                l2_undeclared,
                /// Entries of L1 that were dropped when they were read: something that they depend on had changed, or a key that shares its bucket.
                dependents_dropped,
                /// Loaded values that were not put into L1: an invalidation came while they were loaded.
                inserts_refused,
                /// Values too large for L2.
                too_large,
                /// Values kept out of L2 because it can't bring them back as they are.
                l2_unstorable,
                /// Keys that loaders brought and nobody had asked for.
                keys_unasked,
                /// Keys of which the loader said that their values are what they were.
                keys_unmodified,
                /// Loads repeated because the loader had read a lagging replica.
                replica_reloads,
                /// Log rows whose key is not one of this cache's keys. Each invalidates the whole cache.
                keys_misread,
                /// Answers given without a valid lease, flagged as unverified.
                unverified,
                /// Stale answers, given while their successors were loaded or could not be.
                stale_answers,
                /// Reads begun to replace stale values, or values whose time was nearly over. They count as reads.
                refreshes,
                /// Such loads that failed.
                refresh_errors,
                /// Values served from L1 that were loaded again and compared.
                audits,
                /// Audits that could not be made: no answer from the primary in time, or one that is never the same.
                audits_skipped,
                /// Values that differed from what the primary says, while no invalidation came in between.
                audit_violations,
            }
        }
    };
}

cache_counters! {
    counters! {
        /// What one cache has done since the start of its instance.
        CacheCounters => CacheStats
    }
}

counters! {
    /// What one instance has done since its start.
    InstanceCounters => InstanceStats {
        /// Polls of the log that completed.
        polls,
        /// Polls that failed.
        poll_errors,
        /// Times that the log could not be trimmed.
        trim_errors,
        /// Rows that polls brought.
        rows,
        /// Hints received and applied.
        hints,
        /// Hints of another epoch or another version, corrupt, or left aside because others were not true.
        hints_refused,
        /// Transactions that hints named and that do not exist.
        hints_untrue,
        /// Hints published.
        hints_published,
        /// Publishes or tombstones that failed. The log has them.
        hints_failed,
        /// Hints that came when a poll had brought the same already.
        hints_late,
        /// Gaps in publishers' sequences.
        gaps,
        /// Hints that were published and never came, as the gaps tell.
        hints_lost,
        /// What the tail had to put right: entries that it evicted and no hint had, and gaps.
        repairs,
        /// Repairs that needed none: the hint came after all, a poll was faster.
        repairs_overtaken,
        /// Times that the bookkeeping of a bucket was coarse and a poll was asked for.
        coarse,
        /// Views whose answers were of one moment.
        views,
        /// Times that a view waited for a poll, since something that it had read was newer than the last one.
        views_awaited,
        /// Attempts at a view that were given up, since what they had read was of no one moment.
        views_again,
        /// Recoveries: at the start, in a new epoch, or after the log was trimmed past the cursor.
        recoveries,
        /// L2 operations that failed or took too long.
        l2_errors,
        /// Fills of L2 that were dropped because too many were under way.
        fills_dropped,
        /// Fills that Redis refused: a missing right, no memory left, a dump that it can't write.
        fills_refused,
    }
}

/// Durations, in buckets of about 6 %: quantiles without keeping the samples. Lock-free.
#[derive(Debug)]
pub struct Histogram {
    buckets: Box<[AtomicU64]>,
    max_ns: AtomicU64,
}

impl Clone for Histogram {
    fn clone(&self) -> Self {
        let copy = Self::default();
        copy.merge(self);
        copy
    }
}

/// Each power of two is cut into this many buckets.
const STEPS: u64 = 16;

impl Default for Histogram {
    fn default() -> Self {
        let count = usize::try_from(STEPS * 41).unwrap_or_default();
        Self { buckets: (0..count).map(|_| AtomicU64::new(0)).collect(), max_ns: AtomicU64::new(0) }
    }
}

impl Histogram {
    /// Adds a duration.
    pub fn record(&self, duration: Duration) {
        let ns = u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX);
        let at = usize::try_from(Self::bucket(ns)).unwrap_or(usize::MAX).min(self.buckets.len() - 1);
        self.buckets[at].fetch_add(1, Ordering::Relaxed);
        // Few are longer than all before: the rest need not take the line from other cores.
        if ns > self.max_ns.load(Ordering::Relaxed) {
            self.max_ns.fetch_max(ns, Ordering::Relaxed);
        }
    }

    /// Adds all that another histogram holds.
    pub fn merge(&self, other: &Self) {
        for (ours, theirs) in self.buckets.iter().zip(&other.buckets) {
            ours.fetch_add(theirs.load(Ordering::Relaxed), Ordering::Relaxed);
        }
        self.max_ns.fetch_max(other.max_ns.load(Ordering::Relaxed), Ordering::Relaxed);
    }

    /// Takes out all that was added: this one begins again. What is added meanwhile is in one of both.
    #[must_use]
    pub fn take(&self) -> Self {
        let taken = |bucket: &AtomicU64| AtomicU64::new(bucket.swap(0, Ordering::Relaxed));
        let buckets = self.buckets.iter().map(taken).collect();
        Self { buckets, max_ns: AtomicU64::new(self.max_ns.swap(0, Ordering::Relaxed)) }
    }

    /// What was added since an earlier copy of it; the longest is the longest of all. A copy is [`Histogram::clone`].
    #[must_use]
    pub fn since(&self, earlier: &Self) -> Self {
        let added = |(now, then): (&AtomicU64, &AtomicU64)| {
            AtomicU64::new(now.load(Ordering::Relaxed).saturating_sub(then.load(Ordering::Relaxed)))
        };
        let buckets = self.buckets.iter().zip(&earlier.buckets).map(added).collect();
        Self { buckets, max_ns: AtomicU64::new(self.max_ns.load(Ordering::Relaxed)) }
    }

    /// How many durations were added.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.buckets.iter().map(|bucket| bucket.load(Ordering::Relaxed)).sum()
    }

    /// The longest duration; zero if there is none.
    #[must_use]
    pub fn max(&self) -> Duration {
        Duration::from_nanos(self.max_ns.load(Ordering::Relaxed))
    }

    /// The duration below which a share `q` of all lie; zero if there are none.
    #[must_use]
    pub fn quantile(&self, q: f64) -> Duration {
        let counts: Vec<u64> = self.buckets.iter().map(|bucket| bucket.load(Ordering::Relaxed)).collect();
        let total: u64 = counts.iter().sum();
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            clippy::cast_precision_loss,
            reason = "a count times a share of 0 to 1"
        )]
        let wanted = (total as f64 * q).ceil() as u64;
        let mut seen = 0;
        for (at, count) in counts.iter().enumerate() {
            seen += count;
            if *count > 0 && seen >= wanted {
                return Duration::from_nanos(Self::upper(at as u64)).min(self.max());
            }
        }
        Duration::ZERO
    }

    /// How many durations there are by the longest that their bucket takes, shortest first; without empty buckets.
    pub fn counts(&self) -> impl Iterator<Item = (Duration, u64)> {
        let counts = self.buckets.iter().map(|bucket| bucket.load(Ordering::Relaxed));
        let counts = (0_u64..).zip(counts).filter(|(_, count)| *count > 0);
        counts.map(|(at, count)| (Duration::from_nanos(Self::upper(at)), count))
    }

    fn bucket(ns: u64) -> u64 {
        if ns < STEPS {
            return ns;
        }
        let power = u64::from(ns.ilog2());
        let shift = power - u64::from(STEPS.ilog2());
        (shift + 1) * STEPS + (ns >> shift) - STEPS
    }

    fn upper(bucket: u64) -> u64 {
        if bucket < STEPS {
            return bucket;
        }
        let shift = bucket / STEPS - 1;
        ((bucket % STEPS + STEPS + 1) << shift) - 1
    }
}

/// An instrument, and what is said with each value.
#[cfg(feature = "otel")]
#[derive(Debug)]
pub(crate) struct Recorder {
    pub(crate) histogram: opentelemetry::metrics::Histogram<f64>,
    pub(crate) attributes: Vec<opentelemetry::KeyValue>,
}

#[cfg(feature = "otel")]
impl Recorder {
    fn record(&self, duration: Duration) {
        self.histogram.record(duration.as_secs_f64(), &self.attributes);
    }
}

/// A histogram, and the instrument of `OpenTelemetry` that it is also recorded by, once there is one.
#[derive(Debug, Default)]
pub(crate) struct Timing {
    histogram: Histogram,
    #[cfg(feature = "otel")]
    instrument: std::sync::OnceLock<Recorder>,
}

impl Timing {
    pub(crate) fn record(&self, duration: Duration) {
        self.histogram.record(duration);
        #[cfg(feature = "otel")]
        if let Some(recorder) = self.instrument.get() {
            recorder.record(duration);
        }
    }

    pub(crate) const fn histogram(&self) -> &Histogram {
        &self.histogram
    }

    /// Only the first one counts.
    #[cfg(feature = "otel")]
    pub(crate) fn attach(&self, recorder: Recorder) {
        drop(self.instrument.set(recorder));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_within_a_bucket_of_the_truth() {
        let histogram = Histogram::default();
        (1..=10_000).for_each(|us| histogram.record(Duration::from_micros(us)));
        for (q, truth) in [(0.5, 5_000.0), (0.99, 9_900.0), (0.999, 9_990.0), (1.0, 10_000.0)] {
            let got = histogram.quantile(q).as_secs_f64() * 1e6;
            assert!((got / truth - 1.0).abs() < 0.07, "{q}: {got} for {truth}");
        }
        assert_eq!(histogram.max(), Duration::from_millis(10));
        assert_eq!(histogram.count(), 10_000);
        let (last, _) = histogram.counts().last().unwrap();
        assert_eq!(histogram.counts().map(|(_, count)| count).sum::<u64>(), 10_000);
        assert!((1.0..1.07).contains(&(last.as_secs_f64() * 100.0)), "{last:?}");
    }

    #[test]
    fn threads_add_to_lines_of_their_own_and_nothing_is_lost() {
        let counter = Striped::default();
        std::thread::scope(|scope| {
            for _ in 0..2 * STRIPES {
                scope.spawn(|| (0..1_000).fold(0, |_, _| counter.here().increment()));
            }
        });
        assert_eq!(counter.get(), 2_000 * STRIPES as u64);
        // Threads of other tests may have taken all that are of one thread each.
        let used = counter.0.iter().filter(|stripe| stripe.0.get() > 0).count();
        assert!(used >= STRIPES - OWN, "{used} lines");
    }

    #[test]
    fn what_is_taken_out_is_not_there_any_more() {
        let histogram = Histogram::default();
        histogram.record(Duration::from_millis(3));
        let taken = histogram.take();
        assert_eq!((taken.count(), taken.max()), (1, Duration::from_millis(3)));
        assert_eq!((histogram.count(), histogram.max()), (0, Duration::ZERO));
    }

    #[test]
    fn what_came_since_a_copy_is_told_from_what_was_there() {
        let histogram = Histogram::default();
        histogram.record(Duration::from_millis(3));
        let then = histogram.clone();
        (0..9).for_each(|_| histogram.record(Duration::from_micros(100)));
        let since = histogram.since(&then);
        assert_eq!((since.count(), histogram.count(), then.count()), (9, 10, 1));
        assert!(since.quantile(1.0) < Duration::from_micros(110));
    }

    #[test]
    fn every_value_lies_in_its_bucket() {
        for us in (0..100_000).chain([u64::from(u32::MAX), 1 << 43]) {
            let bucket = Histogram::bucket(us);
            assert!(us <= Histogram::upper(bucket), "{us}");
            assert!(bucket == 0 || us > Histogram::upper(bucket - 1), "{us}");
        }
    }
}
