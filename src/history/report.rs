//! What a judged history amounts to: stretches of time, and violations for people to read.

use std::fmt;
use std::time::Duration;

use super::answer::Answer;

/// What was read in a stretch of time, by when the reads began.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Window {
    /// What was wrong at that time.
    pub name: String,
    /// When it began.
    pub from: Duration,
    /// When it ended.
    pub to: Duration,
    /// Answers.
    pub reads: u64,
    /// Those flagged as fresh.
    pub fresh: u64,
    /// Those flagged as unverified or as stale.
    pub flagged: u64,
    /// Reads that failed.
    pub failed: u64,
    /// Answers flagged as fresh that were staler than the bound.
    pub over_bound: u64,
    /// Violations of any kind.
    pub violations: u64,
    /// The largest staleness of a fresh answer.
    pub worst: Duration,
    /// The longest time that a read waited for its answer or its error.
    pub longest_read: Duration,
    pub(super) answered: Vec<Duration>,
}

impl Window {
    pub(super) fn new(name: &str, from: Duration, to: Duration) -> Self {
        Self {
            name: name.to_owned(),
            from,
            to,
            reads: 0,
            fresh: 0,
            flagged: 0,
            failed: 0,
            over_bound: 0,
            violations: 0,
            worst: Duration::ZERO,
            longest_read: Duration::ZERO,
            answered: Vec::new(),
        }
    }

    pub(super) fn contains(&self, at: Duration) -> bool {
        self.from <= at && at < self.to
    }

    /// The longest time in the window in which no reader had an answer. Zero for a window without an end.
    #[must_use]
    pub fn longest_silence(&self) -> Duration {
        if self.to == Duration::MAX {
            return Duration::ZERO;
        }
        let mut last = self.from;
        let mut longest = Duration::ZERO;
        for at in self.answered.iter().copied().chain([self.to]) {
            longest = longest.max(at.min(self.to).saturating_sub(last));
            last = last.max(at);
        }
        longest
    }
}

/// What a history amounts to.
#[derive(Debug)]
#[non_exhaustive]
pub struct Report {
    /// The whole history.
    pub all: Window,
    /// By [`Judge::window`](super::Judge::window).
    pub windows: Vec<Window>,
    /// The first hundred violations. [`Window::violations`] has their number.
    pub violations: Vec<Violation>,
}

/// An answer that should not have been given.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Violation {
    /// The answer.
    pub answer: Answer,
    /// What is wrong with it.
    pub wrong: Wrong,
    /// What was wrong around at that time.
    pub windows: Vec<String>,
    /// What happened to this key around the read, one line each.
    pub around: Vec<String>,
}

/// What is wrong with an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Wrong {
    /// It was flagged as fresh, and misses a write that was this old when the read began.
    OverBound(Duration),
    /// Nobody had written that value by then.
    NeverWas,
    /// It is older than the write that the reader demanded to see.
    BehindToken,
}

impl fmt::Display for Wrong {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::OverBound(staleness) => write!(f, "fresh, and stale by {staleness:.3?}"),
            Self::NeverWas => f.write_str("nobody had written that"),
            Self::BehindToken => f.write_str("older than the write that the reader demanded to see"),
        }
    }
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "key {}: {}", self.answer.key, self.wrong)?;
        if !self.windows.is_empty() {
            write!(f, " (while {})", self.windows.join(", "))?;
        }
        self.around.iter().try_for_each(|line| write!(f, "\n  {line}"))
    }
}
