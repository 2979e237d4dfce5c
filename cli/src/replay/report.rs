//! What a replay shows: progress while it runs, a table at its end, and the same for programs.

use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use crate::plot::grouped;
use anyhow::anyhow;
use bytes::Bytes;
use perto::{Freshness, Histogram};
use serde::Serialize;

use super::fleet::{Member, Run, precise};
use super::timeline::Timeline;

/// The results. These fields, in these names, are what programs read.
#[derive(Debug, Serialize)]
pub(super) struct Report {
    pub(super) accesses: u64,
    writes: u64,
    instances: u64,
    duration_s: f64,
    reads_per_s: f64,
    hits: Hits,
    db_reads: u64,
    db_reads_limit: u64,
    db_reads_saved: f64,
    pub(super) bound_ms: u64,
    pub(super) reads_over_bound: u64,
    unverified_reads: u64,
    pub(super) staleness_ms: Staleness,
    propagation_us: Propagation,
    latency_us: Latency,
    repairs: u64,
    errors: u64,
    faults: Vec<FaultReport>,
    /// The first ones, each with what happened around.
    #[serde(skip)]
    pub(super) violations: Vec<String>,
    #[serde(skip)]
    bare_publish: (Duration, Duration),
}

#[derive(Debug, Serialize)]
struct Hits {
    l1: u64,
    l2: u64,
    load: u64,
}

#[derive(Debug, Serialize)]
pub(super) struct Staleness {
    p50: f64,
    p99: f64,
    p999: f64,
    pub(super) max: f64,
}

#[derive(Debug, Serialize)]
struct Propagation {
    p50: f64,
    p99: f64,
    max: f64,
}

#[derive(Debug, Serialize)]
struct Latency {
    l1: Quantiles,
    l2: Quantiles,
    load: Quantiles,
}

#[derive(Debug, Serialize)]
struct Quantiles {
    p50: f64,
    p99: f64,
}

#[derive(Debug, Serialize)]
struct FaultReport {
    name: String,
    start_ms: u64,
    end_ms: u64,
    reads: u64,
    over_bound: u64,
    unverified: u64,
}

impl Report {
    pub(super) fn new(
        run: &Run,
        members: &[Member],
        bare: &BarePublish,
        mut timeline: Option<&mut Timeline>,
    ) -> Self {
        let (plan, tally) = (&run.plan, &run.tally);
        let duration_s = run.record.now().as_secs_f64();
        let reads = tally.reads.load(Ordering::Relaxed);
        let db_reads: u64 = members.iter().map(|member| member.cache.stats().keys_loaded).sum();
        let [l1, l2, load] = [0, 1, 2].map(|tier| tally.hits[tier].load(Ordering::Relaxed));
        let propagation = Histogram::default();
        members.iter().for_each(|member| propagation.merge(member.perto.propagation()));
        let staleness = Histogram::default();
        let window = |(fault, window): (&super::Scheduled, &super::fleet::Window)| {
            let times = window.times();
            let (from, to) = (times.opened.unwrap_or(fault.start), times.closed.unwrap_or(run.record.now()));
            (fault.name.clone(), from, to)
        };
        let judged = run.record.judge(
            plan.bound,
            plan.faults.iter().zip(&tally.windows).map(window),
            |answer, stale| {
                if answer.freshness == Freshness::Fresh {
                    staleness.record(stale);
                }
                if let Some(timeline) = &mut timeline {
                    timeline.add(answer, stale);
                }
            },
        );
        let ms = |q| round(staleness.quantile(q).as_secs_f64() * 1e3);
        let quantiles = |tier: usize| Quantiles {
            p50: us(tally.latency[tier].quantile(0.5)),
            p99: us(tally.latency[tier].quantile(0.99)),
        };
        let fault = |window: &perto::history::Window| FaultReport {
            name: window.name.clone(),
            start_ms: millis(window.from),
            end_ms: millis(window.to),
            reads: window.reads,
            over_bound: window.over_bound,
            unverified: window.flagged,
        };
        Self {
            accesses: reads,
            writes: tally.writes.load(Ordering::Relaxed),
            instances: plan.instances as u64,
            duration_s: round(duration_s),
            reads_per_s: round(precise(reads) / duration_s),
            hits: Hits { l1, l2, load },
            db_reads,
            db_reads_limit: run.record.demanded(),
            db_reads_saved: if reads == 0 { 0.0 } else { 1.0 - precise(db_reads) / precise(reads) },
            bound_ms: millis(plan.bound),
            reads_over_bound: judged.all.violations,
            unverified_reads: judged.all.flagged,
            staleness_ms: Staleness {
                p50: ms(0.5),
                p99: ms(0.99),
                p999: ms(0.999),
                max: round(staleness.max().as_secs_f64() * 1e3),
            },
            propagation_us: Propagation {
                p50: us(propagation.quantile(0.5)),
                p99: us(propagation.quantile(0.99)),
                max: us(propagation.max()),
            },
            latency_us: Latency { l1: quantiles(0), l2: quantiles(1), load: quantiles(2) },
            repairs: members.iter().map(|member| member.perto.stats().repairs).sum(),
            errors: tally.errors.load(Ordering::Relaxed),
            faults: judged.windows.iter().map(fault).collect(),
            violations: judged.violations.iter().map(ToString::to_string).collect(),
            bare_publish: (bare.histogram.quantile(0.5), bare.histogram.quantile(0.99)),
        }
    }

    pub(super) fn print(&self, run: &Run, members: &[Member]) {
        for (name, text) in self.lines(run, members) {
            crate::terminal::say(&format!("  {name:<26} {text}"));
        }
    }

    /// The table: what was counted, and how much.
    pub(super) fn lines(&self, run: &Run, members: &[Member]) -> Vec<(String, String)> {
        let mut lines = Vec::new();
        let mut line = |name: &str, text: String| lines.push((name.to_owned(), text));
        let share = |n: u64| format!("{:>6.2} %", 100.0 * precise(n) / precise(self.accesses.max(1)));
        crate::terminal::say("");
        line(
            "reads",
            format!(
                "{} in {:.1} s, {} a second",
                grouped(self.accesses),
                self.duration_s,
                grouped(whole(self.reads_per_s))
            ),
        );
        line("writes", format!("{} (one in four by plain SQL)", grouped(self.writes)));
        for (name, hits, latency) in [
            ("from L1", self.hits.l1, &self.latency_us.l1),
            ("from L2", self.hits.l2, &self.latency_us.l2),
            ("by a load", self.hits.load, &self.latency_us.load),
        ] {
            line(
                name,
                format!(
                    "{}  {:>12}   p50 {:>9.2} µs   p99 {:>9.2} µs",
                    share(hits),
                    grouped(hits),
                    latency.p50,
                    latency.p99
                ),
            );
        }
        let over = precise(self.db_reads) / precise(self.db_reads_limit.max(1));
        line(
            "rows read from Postgres",
            format!(
                "{}, {over:.3} × the {} that the trace demands",
                grouped(self.db_reads),
                grouped(self.db_reads_limit)
            ),
        );
        line("reads saved", format!("{:.2} %", 100.0 * self.db_reads_saved));
        let staleness = &self.staleness_ms;
        line(
            "staleness of fresh reads",
            format!(
                "p50 {} ms   p99 {} ms   p99.9 {} ms   max {} ms   bound {} ms",
                staleness.p50, staleness.p99, staleness.p999, staleness.max, self.bound_ms
            ),
        );
        let propagation = &self.propagation_us;
        line(
            "writer to eviction",
            format!(
                "p50 {:.0} µs   p99 {:.0} µs   max {:.0} µs",
                propagation.p50, propagation.p99, propagation.max
            ),
        );
        line(
            "bare PUBLISH to subscriber",
            format!(
                "p50 {:.0} µs   p99 {:.0} µs   (same run)",
                us(self.bare_publish.0),
                us(self.bare_publish.1)
            ),
        );
        line("repairs by the tail", grouped(self.repairs));
        line("unverified reads", grouped(self.unverified_reads));
        line(
            "errors",
            match &*run.tally.first_error.lock() {
                Some(first) => format!("{}   the first: {first}", grouped(self.errors)),
                None => grouped(self.errors),
            },
        );
        for fault in &self.faults {
            line(
                &fault.name,
                format!(
                    "{} reads, {} over the bound, {} unverified; from {} ms until all were coherent at {} ms",
                    grouped(fault.reads),
                    fault.over_bound,
                    grouped(fault.unverified),
                    fault.start_ms,
                    fault.end_ms
                ),
            );
        }
        for (at, member) in members.iter().enumerate() {
            let (health, stats) = (member.perto.health(), member.perto.stats());
            line(
                &format!("instance{}", at + 1),
                format!(
                    "{}; {} polls, {} failed; {} hints, {} gaps; {} recoveries; {} L2 errors",
                    health.state,
                    grouped(stats.polls),
                    stats.poll_errors,
                    grouped(stats.hints),
                    stats.gaps,
                    stats.recoveries,
                    stats.l2_errors
                ),
            );
        }
        line("READS OVER THE BOUND", grouped(self.reads_over_bound));
        lines
    }

    /// Whether the run shows what it is for, with the first of what broke the promise.
    pub(super) fn verdict(&self, run: &Run) -> anyhow::Result<()> {
        let Some(error) = self.failure(run) else { return Ok(()) };
        for line in self.violations.iter().take(3).flat_map(|violation| violation.lines()) {
            crate::terminal::say_error(line);
        }
        Err(error)
    }

    /// Why the run doesn't show what it is for.
    pub(super) fn failure(&self, run: &Run) -> Option<anyhow::Error> {
        for (fault, window) in run.plan.faults.iter().zip(&run.tally.windows) {
            let times = window.times();
            if times.opened.is_none() || (times.closed.is_some() && !times.ran) {
                return Some(anyhow!(
                    "--faults: {} never ran: the replay took {:.1} s; slow it down with --rate",
                    fault.name,
                    self.duration_s
                ));
            }
        }
        (self.reads_over_bound > 0).then(|| {
            anyhow!(
                "the promise is broken: {} reads were staler than {} ms, or of what nobody had written",
                self.reads_over_bound,
                self.bound_ms
            )
        })
    }
}

/// One line on a terminal, redrawn; a line every five seconds elsewhere. Never returns.
pub(super) async fn show_progress(run: &Run, members: &[Member], terminal: bool) {
    let pause = if terminal { Duration::from_millis(200) } else { Duration::from_secs(5) };
    let mut last = (0, run.record.now());
    loop {
        tokio::time::sleep(pause).await;
        let (reads, now) = (run.tally.reads.load(Ordering::Relaxed), run.record.now());
        let rate = precise(reads - last.0) / (now - last.1).as_secs_f64();
        last = (reads, now);
        let share = |tier: usize| {
            100.0 * precise(run.tally.hits[tier].load(Ordering::Relaxed)) / precise(reads.max(1))
        };
        let states: Vec<String> =
            members.iter().map(|member| member.perto.health().state.to_string()).collect();
        let line = format!(
            "{:>3.0} %  {:>5.1} s  {:>8} reads/s  L1 {:.1} %  L2 {:.1} %  load {:.1} %  [{}]",
            100.0 * precise(reads) / precise(run.plan.trace.accesses.len() as u64),
            now.as_secs_f64(),
            grouped(whole(rate)),
            share(0),
            share(1),
            share(2),
            states.join(" ")
        );
        if terminal {
            let mut out = std::io::stderr().lock();
            drop(write!(out, "\r\x1b[2K{line}").and_then(|()| out.flush()));
        } else {
            crate::terminal::say_error(&line);
        }
    }
}

/// A bare `PUBLISH` to a bare subscriber, measured while the replay runs.
pub(super) struct BarePublish {
    url: String,
    app: String,
    histogram: Arc<Histogram>,
}

impl BarePublish {
    pub(super) fn new(redis_url: &str, schema: &str) -> Self {
        Self { url: redis_url.to_owned(), app: format!("{schema}-bare"), histogram: Arc::default() }
    }

    /// Never returns.
    pub(super) async fn measure(&self) {
        // Trouble here is not the replay's: the figure is missing then.
        drop(self.try_measure().await);
        std::future::pending::<()>().await;
    }

    async fn try_measure(&self) -> anyhow::Result<()> {
        // By whatever way instances have to it.
        let tiers = perto::redis::tiers(&self.url, &self.app)?;
        tiers.remote.ping().await?;
        let mut messages = tiers.bus.subscribe().await?;
        loop {
            let sent = Instant::now();
            let (published, message) =
                tokio::join!(tiers.bus.publish(Bytes::from_static(b"x")), messages.next());
            published?;
            message?;
            self.histogram.record(sent.elapsed());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

fn us(duration: Duration) -> f64 {
    round(duration.as_secs_f64() * 1e6)
}

fn round(number: f64) -> f64 {
    (number * 1e3).round() / 1e3
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a rate is a small positive number"
)]
fn whole(number: f64) -> u64 {
    number.max(0.0) as u64
}
