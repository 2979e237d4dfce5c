//! `--report`: what a replay shows, with its course over time, on one page.

use std::time::Duration;

use crate::plot::{self, Axis, Band, Chart, Lane, Page, Series, Stroke, Table, grouped, time_text};
use anyhow::Context;
use sqlx::PgConnection;

use super::fleet::{Member, Run, precise};
use super::report::Report;
use super::timeline::{Samples, Timeline};
use super::{Replay, check_redis};

const TIERS: [&str; 3] = ["L1", "L2", "a load"];
/// Beyond this many nines nothing is drawn.
const MAX_NINES: f64 = 5.0;

impl Replay {
    /// Whatever is wrong with the file is said before anything is made.
    pub(super) fn check_page(&self) -> anyhow::Result<()> {
        let Some(path) = &self.report else { return Ok(()) };
        plot::check(path).with_context(|| format!("--report: {} can't be written", path.display()))
    }

    /// The versions of what it runs on.
    pub(super) async fn versions(&self, postgres: &PgConnection) -> String {
        let postgres = match postgres.server_version_num() {
            Some(number) => format!("Postgres {}.{}", number / 10_000, number % 10_000),
            None => "Postgres".to_owned(),
        };
        format!("perto {}, {postgres}, {}", env!("CARGO_PKG_VERSION"), self.redis_version().await)
    }

    async fn redis_version(&self) -> String {
        let info = async {
            let mut redis = check_redis(self.redis_url().ok()?).await.ok()?;
            redis::cmd("INFO").arg("server").query_async::<String>(&mut *redis).await.ok()
        };
        let info = info.await.unwrap_or_default();
        let field = |name: &str| info.lines().find_map(|line| line.strip_prefix(name));
        match (field("valkey_version:"), field("redis_version:")) {
            (Some(version), _) => format!("Valkey {version}"),
            (None, Some(version)) => format!("Redis {version}"),
            (None, None) => "Redis".to_owned(),
        }
    }

    /// The command that does the same again. Not as it was typed: that may hold URLs, and with them passwords.
    fn command(&self) -> String {
        let mut words = vec!["perto replay".to_owned()];
        let mut say = |name: &str, value: Option<String>| {
            words.extend(value.map(|value| format!("{name} {}", quoted(&value)).trim_start().to_owned()));
        };
        let generated = self.trace.is_none();
        say("", self.trace.as_ref().map(|path| path.display().to_string()));
        say("--keys", generated.then(|| self.keys.to_string()));
        say("--accesses", self.accesses.map(|count| count.to_string()));
        say("--instances", Some(self.instances.to_string()));
        say("--rate", self.rate.map(|rate| rate.to_string()));
        say("--format", self.format.map(|format| format.to_string()));
        say("--writes", self.writes.map(|ratio| ratio.to_string()));
        say("--concurrency", Some(self.concurrency.to_string()));
        say("--bound", Some(format!("{}ms", self.bound.as_secs_f64() * 1e3)));
        let faults: Vec<&str> = self.faults.iter().map(|fault| fault.name.as_str()).collect();
        say("--faults", (!faults.is_empty()).then(|| faults.join(",")));
        say("--seed", Some(self.seed.to_string()));
        say("--value-bytes", Some(self.value_bytes.to_string()));
        say("--l1-mib", Some(self.l1_mib.to_string()));
        words.join(" ")
    }

    fn ran(&self, run: &Run, versions: &str) -> Table {
        let rows = grouped(run.plan.trace.ids.len() as u64);
        let accesses = grouped(run.plan.trace.accesses.len() as u64);
        let trace = match &self.trace {
            Some(path) => format!("{}: {accesses} accesses to {rows} rows", path.display()),
            None => format!("{accesses} generated accesses to {rows} rows, by Zipf's law"),
        };
        let faults: Vec<&str> = self.faults.iter().map(|fault| fault.name.as_str()).collect();
        let cores = std::thread::available_parallelism().map_or_else(|_| "?".to_owned(), |n| n.to_string());
        let row = |name: &str, text: String| vec![name.to_owned(), text];
        Table {
            caption: "What was run".to_owned(),
            columns: Vec::new(),
            rows: vec![
                row("trace", trace),
                row(
                    "instances",
                    format!("{}, on {cores} cores with the servers and the clients", self.instances),
                ),
                row(
                    "writes",
                    if run.plan.trace.writes.is_some() {
                        "those of the trace, a quarter of them by plain SQL".to_owned()
                    } else {
                        format!(
                            "{} for each access, a quarter of them by plain SQL; seed {}",
                            run.plan.writes, self.seed
                        )
                    },
                ),
                row("faults", if faults.is_empty() { "none".to_owned() } else { faults.join(", ") }),
                row("versions", versions.to_owned()),
                row("ended", chrono::Utc::now().format("%Y-%m-%d %H:%M UTC").to_string()),
                row("again", self.command()),
            ],
        }
    }

    /// Writes the page.
    pub(super) fn write_page(
        &self,
        run: &Run,
        members: &[Member],
        report: &Report,
        seen: (&Timeline, &Samples),
        versions: &str,
    ) -> anyhow::Result<()> {
        let Some(path) = &self.report else { return Ok(()) };
        let (timeline, samples) = seen;
        let summary = Table {
            caption: "What came out".to_owned(),
            columns: Vec::new(),
            rows: report.lines(run, members).into_iter().map(|(name, text)| vec![name, text]).collect(),
        };
        let mut tables = vec![self.ran(run, versions), summary];
        if !report.violations.is_empty() {
            let told =
                (1..=3).zip(&report.violations).map(|(n, told)| vec![format!("number {n}"), told.clone()]);
            tables.push(Table {
                caption: "The first reads that broke the promise".to_owned(),
                columns: Vec::new(),
                rows: told.collect(),
            });
        }
        let failure = report.failure(run);
        let mut verdict = format!(
            "Reads older than the bound: {} of {}. ",
            grouped(report.reads_over_bound),
            grouped(report.accesses)
        );
        verdict.push_str(&match &failure {
            Some(error) => format!("The run failed: {error}"),
            None => format!(
                "The bound is {} ms; the oldest answer served as fresh was {} ms old.",
                report.bound_ms, report.staleness_ms.max
            ),
        });
        let name = self.trace.as_ref().and_then(|path| path.file_name());
        let page = Page {
            title: match name {
                Some(name) => format!("perto replay of {}", name.to_string_lossy()),
                None => "perto replay of a generated trace".to_owned(),
            },
            verdict: Some((failure.is_none(), verdict)),
            tables,
            charts: vec![tiers(run, timeline), latency(run), staleness(run, report, timeline, samples)],
        };
        page.write(path).with_context(|| format!("--report: {} can't be written", path.display()))
    }
}

/// A word of a command line, as a shell reads it.
fn quoted(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./:,+@=".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        return word.to_owned();
    }
    format!("'{}'", word.replace('\'', r"'\''"))
}

/// When the faults were, and when all instances were coherent again.
fn bands(run: &Run) -> Vec<Band> {
    let now = run.record.now();
    let band = |(fault, window): (&super::Scheduled, &super::fleet::Window)| {
        let times = window.times();
        let opened = times.opened?;
        let closed = times.closed.unwrap_or(now);
        Some(Band {
            name: fault.name.clone(),
            from: opened.as_secs_f64(),
            to: (opened + fault.length).min(closed).as_secs_f64(),
            healed: closed.as_secs_f64(),
        })
    };
    run.plan.faults.iter().zip(&run.tally.windows).filter_map(band).collect()
}

fn when(timeline: &Timeline, at: usize) -> String {
    format!("{:.2} s", timeline.span(at).0.as_secs_f64())
}

fn columns(names: &[&str]) -> Vec<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}

/// Reads a second from each tier.
fn tiers(run: &Run, timeline: &Timeline) -> Chart {
    let mut rates: [Vec<(f64, Option<f64>)>; 3] = Default::default();
    let mut rows = Vec::new();
    let mut most = 0.0_f64;
    for (at, slice) in timeline.slices.iter().enumerate() {
        let (from, to) = timeline.span(at);
        let length = to.saturating_sub(from).as_secs_f64().max(1e-3);
        let middle = from.as_secs_f64() + length / 2.0;
        let mut row = vec![when(timeline, at)];
        for (rates, reads) in rates.iter_mut().zip(slice.reads) {
            let rate = precise(reads) / length;
            most = most.max(rate);
            rates.push((middle, Some(rate)));
            row.push(format!("{rate:.0}"));
        }
        rows.push(row);
    }
    let total: u64 = timeline.slices.iter().flat_map(|slice| slice.reads).sum();
    let share = |tier: usize| {
        let reads: u64 = timeline.slices.iter().map(|slice| slice.reads[tier]).sum();
        format!("{:.2} %", 100.0 * precise(reads) / precise(total.max(1)))
    };
    let series = TIERS.iter().zip(rates).enumerate().map(|(tier, (name, points))| Series {
        name: format!("from {name}: {} of all", share(tier)),
        points,
        marks: Vec::new(),
        stroke: Stroke::Line,
    });
    Chart {
        name: "tiers",
        title: "Reads by tier".to_owned(),
        text: format!(
            "Reads a second that each tier answered, in slices of {}, on a logarithmic scale. {} came from L1, {} from L2, {} from a load.",
            time_text(timeline.width().as_secs_f64()),
            share(0),
            share(1),
            share(2)
        ),
        x: Axis::elapsed(timeline.length()),
        y: Axis::count("reads a second", most * 1.3),
        series: series.collect(),
        limit: None,
        bands: bands(run),
        lanes: Vec::new(),
        table: Table {
            caption: "Reads a second".to_owned(),
            columns: columns(&["from", "L1", "L2", "load"]),
            rows,
        },
    }
}

/// The time that each tier took, as the share of its reads that were answered within it.
fn latency(run: &Run) -> Chart {
    let marked = [(0.5, "p50"), (0.99, "p99"), (0.999, "p99.9")];
    let (mut series, mut rows) = (Vec::new(), Vec::new());
    let (mut least, mut longest, mut nines) = (f64::MAX, 0.0_f64, 1.0_f64);
    for (name, histogram) in TIERS.iter().zip(&run.tally.latency) {
        let count = histogram.count();
        if count == 0 {
            continue;
        }
        let at = |share: f64| histogram.quantile(share).as_secs_f64();
        // One read in a hundred is the 99 % of a hundred: more can't be told.
        let told = precise(count).log10().clamp(0.5, MAX_NINES);
        let steps = (0..=120).map(|step| told * f64::from(step) / 120.0);
        let points = steps.map(|nines| (at(1.0 - 10_f64.powf(-nines)), Some(nines))).collect();
        let marks = marked.iter().map(|(share, _)| (at(*share), Axis::nines(*share)));
        let said: Vec<String> =
            marked.iter().map(|(share, p)| format!("{p} {}", time_text(at(*share)))).collect();
        let longest_read = histogram.max().as_secs_f64();
        let mut row = vec![(*name).to_owned(), grouped(count)];
        row.extend([0.5, 0.9, 0.99, 0.999, 0.9999].map(|share| time_text(at(share))));
        row.push(time_text(longest_read));
        rows.push(row);
        (least, longest, nines) = (least.min(at(0.0)), longest.max(longest_read), nines.max(told));
        series.push(Series {
            name: format!("{name}: {}", said.join(", ")),
            points,
            marks: marks.filter(|(_, nines)| *nines <= told).collect(),
            stroke: Stroke::Line,
        });
    }
    let text = "The share of a tier's reads that were answered within a time: the further left, the faster; the higher up, the rarer. \
                Marked are p50, p99 and p99.9.";
    Chart {
        name: "latency",
        title: "Latency by tier".to_owned(),
        text: text.to_owned(),
        x: Axis::latency("time to the answer", seconds(least), seconds(longest)),
        y: Axis::shares("answered within", nines),
        series,
        limit: None,
        bands: Vec::new(),
        lanes: Vec::new(),
        table: Table {
            caption: "Time to the answer".to_owned(),
            columns: columns(&["from", "reads", "p50", "p90", "p99", "p99.9", "p99.99", "longest"]),
            rows,
        },
    }
}

fn seconds(time: f64) -> Duration {
    Duration::try_from_secs_f64(time).unwrap_or_default()
}

/// The oldest answers of each slice beside the bound, and what repaired them.
fn staleness(run: &Run, report: &Report, timeline: &Timeline, samples: &Samples) -> Chart {
    let (mut fresh, mut unverified, mut broken) = (Vec::new(), Vec::new(), Vec::new());
    let mut lanes = ["repairs by the tail", "unverified answers", "errors"]
        .map(|name| Lane { name: name.to_owned(), bars: Vec::new() });
    let mut rows = Vec::new();
    let mut worst = run.plan.bound;
    for (at, slice) in timeline.slices.iter().enumerate() {
        let (from, to) = timeline.span(at);
        let counted = samples.between(from, to);
        let (from, to) = (from.as_secs_f64(), to.as_secs_f64());
        let middle = f64::midpoint(from, to);
        let figure = |time: Option<Duration>| time.map(|time| time.as_secs_f64());
        fresh.push((middle, figure(slice.oldest)));
        unverified.push((middle, figure(slice.oldest_unverified)));
        broken.push((middle, figure(slice.broken)));
        let counts = [counted.repairs, slice.unverified, counted.errors];
        for (lane, count) in lanes.iter_mut().zip(counts) {
            lane.bars.push((from, to, count));
        }
        let told = |time: Option<Duration>| match time {
            None => "–".to_owned(),
            Some(Duration::MAX) => "never written".to_owned(),
            Some(time) => format!("{:.1}", time.as_secs_f64() * 1e3),
        };
        let known = |time: &Duration| *time != Duration::MAX;
        worst = worst
            .max(slice.oldest.filter(known).max(slice.oldest_unverified.filter(known)).unwrap_or_default());
        let mut row = vec![when(timeline, at), told(slice.oldest), told(slice.oldest_unverified)];
        row.extend(counts.map(|count| count.to_string()));
        rows.push(row);
    }
    let series =
        |name: &str, points, stroke| Series { name: name.to_owned(), points, marks: Vec::new(), stroke };
    let mut drawn = vec![series("oldest answer served as fresh", fresh, Stroke::Line)];
    if unverified.iter().any(|(_, oldest)| oldest.is_some()) {
        drawn.push(series("oldest answer flagged as unverified", unverified, Stroke::Points));
    }
    if report.reads_over_bound > 0 {
        drawn.push(series("older than the bound, or never written", broken, Stroke::Alarm));
    }
    let bound = run.plan.bound.as_secs_f64();
    Chart {
        name: "staleness",
        title: "Staleness against the bound".to_owned(),
        text: format!(
            "How long ago the oldest write was acknowledged that an answer missed, when the read began: the oldest answer of each \
             slice of {}, logarithmic from a millisecond on. Served as fresh: {} ms at most; the bound is {} ms. Reads over the bound: {}.",
            time_text(timeline.width().as_secs_f64()),
            report.staleness_ms.max,
            report.bound_ms,
            grouped(report.reads_over_bound)
        ),
        x: Axis::elapsed(timeline.length()),
        y: Axis::staleness("staleness", worst.mul_f64(2.0)),
        series: drawn,
        limit: Some((bound, format!("the bound: {}", time_text(bound)))),
        bands: bands(run),
        lanes: lanes.into(),
        table: Table {
            caption: "Oldest answers, in milliseconds".to_owned(),
            columns: columns(&["from", "fresh", "unverified", "repairs", "unverified answers", "errors"]),
            rows,
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_word_is_one_word_for_a_shell() {
        for (word, written) in [
            ("redis:cut@3s+4s,bus:drop@9s+6s", "redis:cut@3s+4s,bus:drop@9s+6s"),
            ("my trace.xz", "'my trace.xz'"),
            ("it's;", r"'it'\''s;'"),
            ("", "''"),
        ] {
            assert_eq!(quoted(word), written);
        }
    }
}
