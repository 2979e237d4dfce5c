//! What a run says: a line an attack as it goes, and what was wrong.

use std::io::Write;
use std::time::Duration;

use serde_json::json;

use crate::attacks::By;
use crate::quiet::Sight;

/// What may be, at most.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    /// The quiet tenant's p99 beside the attack, in times of what it is alone.
    pub(crate) times: f64,
    /// Below this a p99 is never too long: on a busy machine that much is noise.
    pub(crate) p99: Duration,
    /// Memory of an instance beside the attack, above idle.
    pub(crate) above_idle: u64,
    /// And after it.
    pub(crate) left: u64,
    /// Polls of the log a second, of each instance.
    pub(crate) polls: f64,
    /// Lines of the log a second, of each instance.
    pub(crate) lines: f64,
    /// Until all hot contacts are answered from L1 again.
    pub(crate) hot: Duration,
    /// Share of reads, at least: hot contacts stay in L1.
    pub(crate) from_l1: f64,
}

impl Limits {
    pub(crate) fn beside(self, by: By) -> Self {
        let slow = self.p99.max(Duration::from_millis(100));
        match by {
            By::Http => self,
            By::Redis => Self { p99: slow, ..self },
            // Two polls of 250 ms, and the time to ask for all of them.
            By::Hints => Self { p99: slow, from_l1: 0.0, hot: Duration::from_secs(2), ..self },
        }
    }
}

pub(crate) struct Line {
    pub(crate) name: &'static str,
    pub(crate) tried: u64,
    pub(crate) refused: u64,
    pub(crate) cut: u64,
    pub(crate) sight: Sight,
    /// In times of alone.
    pub(crate) times: f64,
    /// Above idle, in bytes, at most.
    pub(crate) above_idle: u64,
    /// Of the instance that polls most.
    pub(crate) polls: f64,
    pub(crate) lines: f64,
    pub(crate) hot_after: Option<Duration>,
    pub(crate) wrong: Vec<String>,
}

pub(crate) const MIB: u64 = 1 << 20;

const HEAD: &str = "| attack          |   tried | refused |    cut | quiet reads | failed | flagged |  worst | violations |    p50 |    p99 | × alone | from L1 | memory  | polls/s | log/s | L1 again |";
const RULE: &str = "| --------------- | ------: | ------: | -----: | ----------: | -----: | ------: | -----: | ---------: | -----: | -----: | ------: | ------: | ------: | ------: | ----: | -------: |";

impl Line {
    pub(crate) fn judge(&mut self, limits: &Limits) {
        let sight = &self.sight;
        let mut wrong = Vec::new();
        let mut unless = |right: bool, what: String| {
            if !right {
                wrong.push(what);
            }
        };
        unless(sight.reads > 0, "the quiet tenant read nothing".to_owned());
        unless(sight.violations.is_empty(), format!("{} violations", sight.violations.len()));
        unless(sight.failed == 0, format!("{} of the quiet tenant's requests failed", sight.failed));
        unless(sight.flagged == 0, format!("{} answers were not fresh", sight.flagged));
        unless(
            self.times <= limits.times || sight.p99 <= limits.p99,
            format!("p99 is {:.1} × that of the tenant alone, not {} ×", self.times, limits.times),
        );
        let share = self.l1_share();
        unless(
            share >= limits.from_l1,
            format!("{:.0} % from L1, not {:.0} %", 100.0 * share, 100.0 * limits.from_l1),
        );
        unless(
            self.above_idle <= limits.above_idle,
            format!("{} MiB above idle, not {}", self.above_idle / MIB, limits.above_idle / MIB),
        );
        unless(self.polls <= limits.polls, format!("{:.0} polls a second, not {}", self.polls, limits.polls));
        unless(
            self.lines <= limits.lines,
            format!("{:.0} log lines a second, not {}", self.lines, limits.lines),
        );
        unless(
            self.hot_after.is_some_and(|after| after <= limits.hot),
            format!("not all is answered from L1 within {}", short(limits.hot)),
        );
        self.wrong = wrong;
    }

    /// Share of the quiet tenant's reads.
    pub(crate) fn l1_share(&self) -> f64 {
        self.sight.from_l1 as f64 / self.sight.reads.max(1) as f64
    }

    fn row(&self) -> String {
        let sight = &self.sight;
        format!(
            "| {:<15} | {:>7} | {:>7} | {:>6} | {:>11} | {:>6} | {:>7} | {:>6} | {:>10} | {:>6} | {:>6} | {:>7.1} | {:>6.1}% | {:>+3} MiB | {:>7.1} | {:>5.1} | {:>8} |",
            self.name,
            self.tried,
            self.refused,
            self.cut,
            sight.reads,
            sight.failed,
            sight.flagged,
            short(sight.worst),
            sight.violations.len(),
            short(sight.p50),
            short(sight.p99),
            self.times,
            100.0 * self.l1_share(),
            self.above_idle / MIB,
            self.polls,
            self.lines,
            self.hot_after.map_or_else(|| "never".to_owned(), short),
        )
    }

    fn json(&self) -> serde_json::Value {
        let ms = |time: Duration| time.as_secs_f64() * 1e3;
        let sight = &self.sight;
        json!({
            "attack": self.name, "tried": self.tried, "refused": self.refused, "cut": self.cut,
            "reads": sight.reads, "failed": sight.failed, "flagged": sight.flagged, "from_l1": sight.from_l1,
            "worst_staleness_ms": ms(sight.worst), "violations": sight.violations.len(),
            "p50_ms": ms(sight.p50), "p99_ms": ms(sight.p99), "times_alone": self.times,
            "above_idle_bytes": self.above_idle, "polls_a_second": self.polls, "log_lines_a_second": self.lines,
            "l1_again_ms": self.hot_after.map(ms), "wrong": self.wrong,
        })
    }
}

/// The lines so far.
#[derive(Default)]
pub(crate) struct Report {
    lines: Vec<Line>,
    /// What is not of one attack.
    pub(crate) wrong: Vec<String>,
}

impl Report {
    pub(crate) fn begin() -> Self {
        say(&format!("{HEAD}\n{RULE}"));
        Self::default()
    }

    pub(crate) fn add(&mut self, line: Line) {
        say(&line.row());
        line.wrong.iter().for_each(|wrong| say(&format!("  WRONG: {wrong}")));
        line.sight.complaints.iter().for_each(|complaint| say(&format!("    {complaint}")));
        line.sight.violations.iter().take(3).for_each(|violation| say(&format!("    {violation}")));
        self.lines.push(line);
    }

    pub(crate) fn is_good(&self) -> bool {
        self.wrong.is_empty() && self.lines.iter().all(|line| line.wrong.is_empty())
    }

    pub(crate) fn sum_up(&self) {
        self.wrong.iter().for_each(|wrong| say(&format!("WRONG: {wrong}")));
        let bad = self.lines.iter().filter(|line| !line.wrong.is_empty()).count();
        let reads: usize = self.lines.iter().map(|line| line.sight.reads).sum();
        say(&format!(
            "{} stretches, {bad} of them with something wrong; {reads} reads judged",
            self.lines.len()
        ));
    }

    pub(crate) fn json(&self) -> String {
        let lines: Vec<_> = self.lines.iter().map(Line::json).collect();
        format!("{:#}\n", json!({ "attacks": lines, "wrong": self.wrong }))
    }
}

/// A time in at most six characters.
pub(crate) fn short(time: Duration) -> String {
    let ms = time.as_secs_f64() * 1e3;
    match ms {
        ..10.0 => format!("{ms:.1}ms"),
        ..1_000.0 => format!("{ms:.0}ms"),
        _ => format!("{:.2}s", ms / 1e3),
    }
}

pub(crate) fn say(text: &str) {
    // A terminal that is gone must not stop the clean-up.
    let mut out = std::io::stdout().lock();
    drop(writeln!(out, "{text}").and_then(|()| out.flush()));
}
