//! The instruments: every figure that an instance gives to a pipeline of `OpenTelemetry`, with its help.
//!
//! Counters are read when the pipeline collects, so they cost reads and writes nothing. Labels are the cache, the tier and
//! the outcome, all of a few values: never a key, never a tenant.

use std::sync::{Arc, Weak};
use std::time::Duration;

use opentelemetry::KeyValue;
use opentelemetry::metrics::{AsyncInstrument, Histogram, Meter};

use crate::health::State;
use crate::health::troubles::TroubleKind;
use crate::instance::Perto;
use crate::metrics::{CacheStats, InstanceStats, Recorder, Timing};
use crate::read::Tier;
use crate::shared::Shared;

/// A counter of each cache: its name, its help, and its values by tier and outcome.
type OfCaches = (&'static str, &'static str, fn(&CacheStats) -> Vec<(u64, &'static [Label])>);
/// A counter of the instance: its name, its help, and its values by outcome.
type OfInstance = (&'static str, &'static str, fn(&InstanceStats) -> Vec<(u64, &'static [Label])>);
/// An attribute.
type Label = (&'static str, &'static str);

const TIER: &str = "perto.tier";
const OUTCOME: &str = "perto.outcome";

const OF_CACHES: [OfCaches; 14] = [
    ("perto.lookups", "Look-ups of keys, by the tier that answered or did not.", |stats| {
        vec![
            (stats.l1_hits, &[(TIER, "l1"), (OUTCOME, "hit")]),
            (stats.l2_hits, &[(TIER, "l2"), (OUTCOME, "hit")]),
            (stats.l2_refused, &[(TIER, "l2"), (OUTCOME, "refused")]),
            (stats.l2_unreadable, &[(TIER, "l2"), (OUTCOME, "unreadable")]),
            (stats.l2_undeclared, &[(TIER, "l2"), (OUTCOME, "undeclared")]),
            (stats.dependents_dropped, &[(TIER, "l1"), (OUTCOME, "dependency_changed")]),
            (stats.load_hits, &[(TIER, "load"), (OUTCOME, "hit")]),
            (stats.load_errors, &[(TIER, "load"), (OUTCOME, "error")]),
        ]
    }),
    ("perto.loads", "Calls of loaders.", |stats| vec![(stats.loads, &[])]),
    ("perto.load.keys", "Keys asked of loaders.", |stats| vec![(stats.keys_loaded, &[])]),
    ("perto.load.reloads", "Loads repeated because the loader had read a lagging replica.", |stats| {
        vec![(stats.replica_reloads, &[])]
    }),
    ("perto.flights.joined", "Reads that waited for what another one had asked for already.", |stats| {
        vec![(stats.flights_joined, &[])]
    }),
    ("perto.load.keys.unasked", "Keys that loaders brought and nobody had asked for.", |stats| {
        vec![(stats.keys_unasked, &[])]
    }),
    ("perto.load.keys.unmodified", "Keys whose values loaders found to be what they were.", |stats| {
        vec![(stats.keys_unmodified, &[])]
    }),
    (
        "perto.fills.kept_out",
        "Values kept out of L2: too large, or of a type that it can't bring back as it was.",
        |stats| {
            vec![
                (stats.too_large, &[(OUTCOME, "too_large")]),
                (stats.l2_unstorable, &[(OUTCOME, "unstorable")]),
            ]
        },
    ),
    (
        "perto.inserts.refused",
        "Loaded values not put into L1: an invalidation came while they were loaded.",
        |stats| vec![(stats.inserts_refused, &[])],
    ),
    (
        "perto.keys.misread",
        "Rows of the log whose key is none of the cache's; each invalidates the whole cache.",
        |stats| vec![(stats.keys_misread, &[])],
    ),
    ("perto.unverified", "Answers given without a valid lease, and flagged so.", |stats| {
        vec![(stats.unverified, &[])]
    }),
    (
        "perto.stale",
        "Stale answers, given while their successors were loaded or could not be, and flagged so.",
        |stats| vec![(stats.stale_answers, &[])],
    ),
    (
        "perto.refreshes",
        "Reads begun to replace stale values, or values whose time was nearly over; and those that failed.",
        |stats| vec![(stats.refreshes, &[(OUTCOME, "begun")]), (stats.refresh_errors, &[(OUTCOME, "error")])],
    ),
    ("perto.audits", "Values served from L1 that were compared with what the primary says.", |stats| {
        vec![
            (stats.audits, &[(OUTCOME, "compared")]),
            (stats.audit_violations, &[(OUTCOME, "violation")]),
            (stats.audits_skipped, &[(OUTCOME, "skipped")]),
        ]
    }),
];

const OF_INSTANCE: [OfInstance; 10] = [
    ("perto.hints", "Hints of writes, sent and received.", |stats| {
        vec![
            (stats.hints_published, &[(OUTCOME, "published")]),
            (stats.hints_failed, &[(OUTCOME, "failed")]),
            (stats.hints, &[(OUTCOME, "received")]),
            (stats.hints_refused, &[(OUTCOME, "refused")]),
            (stats.hints_untrue, &[(OUTCOME, "untrue")]),
            (stats.hints_lost, &[(OUTCOME, "lost")]),
            (stats.hints_late, &[(OUTCOME, "late")]),
        ]
    }),
    ("perto.polls", "Polls of the log.", |stats| {
        vec![(stats.polls, &[(OUTCOME, "ok")]), (stats.poll_errors, &[(OUTCOME, "error")])]
    }),
    ("perto.log.rows", "Rows that polls brought.", |stats| vec![(stats.rows, &[])]),
    (
        "perto.repairs",
        "What the log had to put right: entries that no hint had evicted, and gaps between hints.",
        |stats| vec![(stats.repairs, &[])],
    ),
    (
        "perto.repairs.overtaken",
        "Repairs that needed none: the hint came after all, a poll was faster.",
        |stats| vec![(stats.repairs_overtaken, &[])],
    ),
    (
        "perto.recoveries",
        "Times that the log was read anew: the start, a new epoch, a trimmed log.",
        |stats| vec![(stats.recoveries, &[])],
    ),
    (
        "perto.views",
        "Views of many keys at one moment, those that waited for a poll, and attempts given up.",
        |stats| {
            vec![
                (stats.views, &[(OUTCOME, "ok")]),
                (stats.views_awaited, &[(OUTCOME, "awaited")]),
                (stats.views_again, &[(OUTCOME, "again")]),
            ]
        },
    ),
    ("perto.l2.errors", "Operations on Redis that failed or took too long.", |stats| {
        vec![(stats.l2_errors, &[])]
    }),
    ("perto.fills.refused", "Values not put into L2: Redis refused them.", |stats| {
        vec![(stats.fills_refused, &[])]
    }),
    ("perto.fills.dropped", "Values not put into L2: too many fills were under way.", |stats| {
        vec![(stats.fills_dropped, &[])]
    }),
];

const STATES: [State; 5] =
    [State::Recovering, State::Coherent, State::Isolated, State::Unverified, State::Closed];

impl Perto {
    /// Makes the instruments of this instance and of its caches: call it once, when all caches are declared. They show what was
    /// counted since its start; durations are recorded from now on, in seconds, and want exponential histograms.
    ///
    /// `docs/OPERATIONS.md` has the table of them. They end with the instance, and keep nothing of it alive.
    pub fn instrument(&self, meter: &Meter) {
        let shared = self.shared();
        timings(shared, meter);
        for (name, help, values) in OF_CACHES {
            counter(shared, meter, name, help, move |shared, observed| {
                for (name, cache) in &*shared.caches() {
                    for (value, labels) in values(&cache.counters().snapshot()) {
                        observed.observe(value, &attributes(Some(name), labels));
                    }
                }
            });
        }
        for (name, help, values) in OF_INSTANCE {
            counter(shared, meter, name, help, move |shared, observed| {
                for (value, labels) in values(&shared.counters.snapshot()) {
                    observed.observe(value, &attributes(None, labels));
                }
            });
        }
        let size = |shared: &Shared, observed: &dyn AsyncInstrument<u64>, of: fn((u64, u64)) -> u64| {
            for (name, cache) in &*shared.caches() {
                if let Some(cache) = cache.measured() {
                    observed.observe(of(cache.size()), &attributes(Some(name), &[]));
                }
            }
        };
        gauge(shared, meter, "perto.l1.entries", "", "Entries that L1 holds.", move |shared, observed| {
            size(shared, observed, |(entries, _)| entries);
        });
        gauge(shared, meter, "perto.l1.size", "By", "What L1 holds.", move |shared, observed| {
            size(shared, observed, |(_, bytes)| bytes);
        });
        let help = "Whether L2 is passed over, because Redis did not answer.";
        gauge(shared, meter, "perto.breaker.open", "", help, |shared, observed| {
            observed.observe(u64::from(!shared.remote_usable()), &[]);
        });
        let help = "1 for the state that the instance is in.";
        gauge(shared, meter, "perto.state", "", help, |shared, observed| {
            let state = shared.signals.state(&shared.coherence, shared.remote_usable());
            for each in STATES {
                let attributes = [KeyValue::new("perto.state", each.to_string())];
                observed.observe(u64::from(each == state), &attributes);
            }
        });
        let help = "Troubles that last, by kind: 0 where all is well.";
        gauge(shared, meter, "perto.troubles", "", help, |shared, observed| {
            for kind in TroubleKind::ALL {
                let count = u64::try_from(shared.signals.troubles.count(*kind)).unwrap_or(u64::MAX);
                observed.observe(count, &[KeyValue::new("perto.kind", kind.name())]);
            }
        });
        let help = "Time since the poll of the log that the lease rests on was sent.";
        seconds(shared, meter, "perto.lease.age", help, |shared| {
            let (coherence, held) = (&shared.coherence, shared.coherence.lease.held());
            // Without one it has no age, and the state says so.
            held.ever_valid().then(|| coherence.lease_age(held, shared.clock.now_ms()))
        });
        let help = "The bound on staleness.";
        seconds(shared, meter, "perto.bound", help, |shared| Some(shared.settings.bound));
    }
}

fn timings(shared: &Arc<Shared>, meter: &Meter) {
    let histogram = |name, help| meter.f64_histogram(name).with_unit("s").with_description(help).build();
    let attach = |timing: &Timing, histogram: &Histogram<f64>, attributes| {
        timing.attach(Recorder { histogram: histogram.clone(), attributes });
    };
    let help = "How long reads took, by the tier that answered; those of L1 are sampled.";
    let lookups = histogram("perto.lookup.duration", help);
    for (name, cache) in &*shared.caches() {
        let Some(cache) = cache.measured() else { continue };
        for tier in Tier::ALL {
            attach(cache.latency(tier), &lookups, attributes(Some(name), &[(TIER, tier.name())]));
        }
    }
    let help = "From a commit on another instance to the eviction here, where a hint brought it.";
    attach(&shared.propagation, &histogram("perto.propagation", help), Vec::new());
    let help = "How old what was served as fresh may have been, at most; hits of L1 are sampled.";
    attach(&shared.staleness, &histogram("perto.staleness", help), Vec::new());
}

fn attributes(cache: Option<&str>, labels: &[Label]) -> Vec<KeyValue> {
    let cache = cache.map(|name| KeyValue::new("perto.cache", name.to_owned()));
    let labels = labels.iter().map(|(key, value)| KeyValue::new(*key, *value));
    cache.into_iter().chain(labels).collect()
}

/// Callbacks live as long as the pipeline: none of them may keep an instance alive.
fn looking<T>(
    shared: &Arc<Shared>,
    look: impl Fn(&Shared, &dyn AsyncInstrument<T>) + Send + Sync + 'static,
) -> impl Fn(&dyn AsyncInstrument<T>) + Send + Sync + 'static {
    let shared: Weak<Shared> = Arc::downgrade(shared);
    move |observed| {
        if let Some(shared) = shared.upgrade() {
            look(&shared, observed);
        }
    }
}

fn counter(
    shared: &Arc<Shared>,
    meter: &Meter,
    name: &'static str,
    help: &'static str,
    look: impl Fn(&Shared, &dyn AsyncInstrument<u64>) + Send + Sync + 'static,
) {
    let look = looking(shared, look);
    let builder = meter.u64_observable_counter(name).with_description(help);
    let _instrument = builder.with_callback(look).build();
}

fn gauge(
    shared: &Arc<Shared>,
    meter: &Meter,
    name: &'static str,
    unit: &'static str,
    help: &'static str,
    look: impl Fn(&Shared, &dyn AsyncInstrument<u64>) + Send + Sync + 'static,
) {
    let look = looking(shared, look);
    let builder = meter.u64_observable_gauge(name).with_unit(unit).with_description(help);
    let _instrument = builder.with_callback(look).build();
}

fn seconds(
    shared: &Arc<Shared>,
    meter: &Meter,
    name: &'static str,
    help: &'static str,
    look: impl Fn(&Shared) -> Option<Duration> + Send + Sync + 'static,
) {
    let look = looking(shared, move |shared, observed: &dyn AsyncInstrument<f64>| {
        look(shared).iter().for_each(|time| observed.observe(time.as_secs_f64(), &[]));
    });
    let builder = meter.f64_observable_gauge(name).with_unit("s").with_description(help);
    let _instrument = builder.with_callback(look).build();
}
