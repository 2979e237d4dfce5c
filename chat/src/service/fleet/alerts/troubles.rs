//! The troubles of the library, as alerts: one for each kind, whatever caches and tables it concerns.

use std::time::SystemTime;

use perto::{Trouble, TroubleKind};

use super::{Raised, Severity, Unit};

/// A trouble, as an alert tells it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Lasting {
    pub(crate) kind: TroubleKind,
    /// Of which cache and table, what is wrong, and how to mend it.
    pub(crate) detail: String,
    pub(crate) since: SystemTime,
}

impl From<&Trouble> for Lasting {
    fn from(trouble: &Trouble) -> Self {
        let detail = trouble.detail.trim_end_matches('.');
        let detail = match (&trouble.cache, &trouble.table) {
            (Some(cache), Some(table)) => format!("cache {cache}, table {table}: {detail}"),
            (Some(cache), None) => format!("cache {cache}: {detail}"),
            (None, _) => detail.to_owned(),
        };
        Self { kind: trouble.kind, detail, since: trouble.since }
    }
}

/// What is quoted of one kind, at most.
const SHOWN: usize = 3;

/// Those of two samples in a row: a connection that is made anew is no reason to wake anybody.
pub(super) fn raised(before: &[Lasting], now: &[Lasting], at: SystemTime) -> Vec<Raised> {
    let lasts = |trouble: &&Lasting| before.iter().any(|other| is_of_one_kind(other, trouble));
    let lasting: Vec<&Lasting> = now.iter().filter(lasts).collect();
    lasting.chunk_by(|a, b| is_of_one_kind(a, b)).map(|of_kind| raise(of_kind, at)).collect()
}

fn is_of_one_kind(a: &Lasting, b: &Lasting) -> bool {
    a.kind == b.kind
}

fn raise(of_kind: &[&Lasting], at: SystemTime) -> Raised {
    let kind = of_kind[0].kind;
    let first = of_kind.iter().map(|trouble| trouble.since).min().unwrap_or(at);
    let mut said: Vec<String> = of_kind.iter().take(SHOWN).map(|trouble| trouble.detail.clone()).collect();
    if of_kind.len() > SHOWN {
        said.push(format!("and {} more", of_kind.len() - SHOWN));
    }
    Raised {
        name: kind.name(),
        severity: severity(kind),
        value: at.duration_since(first).unwrap_or_default().as_secs_f64(),
        threshold: 0.0,
        unit: Unit::Seconds,
        detail: said.join("; "),
    }
}

fn severity(kind: TroubleKind) -> Severity {
    use TroubleKind::{AuditViolation, KeysDiffer, LoadsFailing, LogUnreadable, Unwatched};
    match kind {
        AuditViolation | KeysDiffer | LoadsFailing | LogUnreadable | Unwatched => Severity::Critical,
        _ => Severity::Warning,
    }
}
