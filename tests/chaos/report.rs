//! What a run says: a line a fault as it goes, a table at its end.

use std::io::Write;
use std::time::Duration;

use serde_json::json;

use crate::verdict::Verdict;

pub(crate) struct Line {
    pub(crate) name: &'static str,
    pub(crate) verdict: Verdict,
    pub(crate) coherent_after: Option<Duration>,
    pub(crate) seen_after: Option<Duration>,
    pub(crate) note: String,
    /// Anything but a read that broke the promise.
    pub(crate) wrong: Vec<String>,
    pub(crate) peak_kib: u64,
    /// What the auditors compared while it lasted.
    pub(crate) audits: u64,
}

pub(crate) struct Report {
    bound: Duration,
    programs: String,
    pub(crate) lines: Vec<Line>,
    /// What is not of one fault.
    pub(crate) wrong: Vec<String>,
}

const HEAD: &str = "| fault                |     reads | flagged | failed | writes |  worst | bound | violations | longest read | silence | coherent | seen after |";
const RULE: &str = "| -------------------- | --------: | ------: | -----: | -----: | -----: | ----: | ---------: | -----------: | ------: | -------: | ---------: |";

impl Line {
    fn is_good(&self) -> bool {
        self.verdict.violations == 0 && self.wrong.is_empty()
    }

    fn row(&self, bound: Duration) -> String {
        let verdict = &self.verdict;
        let after = |time: Option<Duration>| time.map_or_else(|| "never".to_owned(), short);
        format!(
            "| {:<20} | {:>9} | {:>7} | {:>6} | {:>6} | {:>6} | {:>5} | {:>10} | {:>12} | {:>7} | {:>8} | {:>10} |",
            self.name,
            verdict.reads,
            verdict.flagged,
            verdict.failed,
            verdict.writes,
            short(verdict.worst),
            short(bound),
            verdict.violations,
            short(verdict.longest_read),
            short(verdict.longest_silence),
            after(self.coherent_after),
            after(self.seen_after),
        )
    }
}

impl Report {
    pub(crate) fn new(bound: Duration) -> Self {
        Self { bound, programs: String::new(), lines: Vec::new(), wrong: Vec::new() }
    }

    pub(crate) fn is_good(&self) -> bool {
        self.wrong.is_empty() && self.lines.iter().all(Line::is_good)
    }

    /// All that were judged.
    pub(crate) fn reads(&self) -> u64 {
        self.lines.iter().map(|line| line.verdict.reads).sum()
    }

    /// What the auditors compared.
    pub(crate) fn audits(&self) -> u64 {
        self.lines.iter().map(|line| line.audits).sum()
    }

    pub(crate) fn begin(&mut self, programs: &str) {
        programs.clone_into(&mut self.programs);
        say(&format!("{programs}\n\n{HEAD}\n{RULE}"));
    }

    /// Says how it went, at once.
    pub(crate) fn add(&mut self, line: Line) {
        let lost = match line.verdict.lost {
            0 => String::new(),
            lost => format!(" {lost} commits lost"),
        };
        let note = format!("{}{lost}", line.note);
        say(format!("{} {}", line.row(self.bound), note.trim()).trim_end());
        for wrong in &line.wrong {
            say(&format!("  WRONG: {wrong}"));
        }
        for violation in line.verdict.described.iter().take(3) {
            say(&format!("  VIOLATION: {}", violation.replace('\n', "\n    ")));
        }
        self.lines.push(line);
    }

    /// The end: all of it in one line, or what was wrong.
    pub(crate) fn sum_up(&self) {
        for wrong in &self.wrong {
            say(&format!("WRONG: {wrong}"));
        }
        let of =
            |number: fn(&Verdict) -> u64| self.lines.iter().map(|line| number(&line.verdict)).sum::<u64>();
        let worst = self.lines.iter().map(|line| line.verdict.worst).max().unwrap_or_default();
        let longest = self.lines.iter().map(|line| line.verdict.longest_read).max().unwrap_or_default();
        say(&format!(
            "{} faults, {} reads, {} writes, {} audits, {} violations; worst staleness {} of {}, longest read {}, peak memory {} MiB",
            self.lines.len(),
            self.reads(),
            of(|verdict| verdict.writes),
            self.audits(),
            of(|verdict| verdict.violations),
            short(worst),
            short(self.bound),
            short(longest),
            self.lines.iter().map(|line| line.peak_kib).max().unwrap_or(0) >> 10,
        ));
    }

    pub(crate) fn json(&self) -> String {
        let ms = |time: Duration| time.as_secs_f64() * 1e3;
        let lines: Vec<_> = self
            .lines
            .iter()
            .map(|line| {
                json!({
                    "fault": line.name,
                    "reads": line.verdict.reads,
                    "flagged": line.verdict.flagged,
                    "failed": line.verdict.failed,
                    "writes": line.verdict.writes,
                    "commits_lost": line.verdict.lost,
                    "worst_staleness_ms": ms(line.verdict.worst),
                    "violations": line.verdict.violations,
                    "audits": line.audits,
                    "longest_read_ms": ms(line.verdict.longest_read),
                    "longest_silence_ms": ms(line.verdict.longest_silence),
                    "coherent_after_ms": line.coherent_after.map(ms),
                    "seen_after_ms": line.seen_after.map(ms),
                    "note": line.note,
                    "wrong": line.wrong,
                })
            })
            .collect();
        let all = json!({ "programs": self.programs, "bound_ms": ms(self.bound), "faults": lines, "wrong": self.wrong });
        format!("{all:#}\n")
    }
}

/// A time in at most six characters.
fn short(time: Duration) -> String {
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
