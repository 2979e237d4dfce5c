//! The other instances, as their rows say: read once for all who ask within a moment.

use std::sync::Arc;
use std::time::{Duration, Instant};

use chrono::{DateTime, Utc};
use tokio::sync::Mutex;

use super::Fleet;
use super::alerts::{Alert, Severity, Unit};
use super::report::{self, Report};
use super::rows::{self, Row, SILENT};
use crate::service::Service;

/// What was last read. One reads at a time: of the upkeep's connections, the heartbeat has another.
#[derive(Debug, Default)]
pub(crate) struct Others(Mutex<Option<Seen>>);

#[derive(Debug)]
struct Seen {
    at: Instant,
    generation: i64,
    /// None where Postgres did not answer: that is not asked again at once either.
    others: Option<Arc<Vec<Other>>>,
}

/// Another instance.
#[derive(Debug)]
pub(crate) struct Other {
    pub(crate) name: String,
    pub(crate) generation: i64,
    pub(crate) seen_at: DateTime<Utc>,
    /// Not heard of for a while.
    pub(crate) silent: bool,
    /// None where it can't be read: it may be of a later version.
    pub(crate) report: Option<Report>,
}

impl Others {
    /// Runs something on the connection that is for reading.
    pub(crate) async fn alone<T>(&self, work: impl Future<Output = T>) -> T {
        let _one_at_a_time = self.0.lock().await;
        work.await
    }
}

impl Fleet {
    /// The others, as they were not longer than `age` ago; none where Postgres can't be asked. Where there was a reset, it
    /// is heard of here.
    pub(crate) async fn others(&self, service: &Service, age: Duration) -> Option<Arc<Vec<Other>>> {
        let mut seen = self.others.0.lock().await;
        let known = self.baseline.lock().generation;
        // What was read before a reset must not be shown after it.
        if let Some(seen) = seen.as_ref().filter(|seen| seen.at.elapsed() < age && seen.generation >= known) {
            return seen.others.clone();
        }
        let at = Instant::now();
        match self.rows.others(self.start.id).await {
            Ok((generation, rows)) => {
                self.begin_anew(service, generation);
                let others = Some(Arc::new(rows.into_iter().map(Other::from).collect()));
                seen.insert(Seen { at, generation, others }).others.clone()
            }
            Err(error) => {
                tracing::debug!(
                    error = &error as &dyn std::error::Error,
                    "the other instances can't be read"
                );
                *seen = Some(Seen { at: Instant::now(), generation: known, others: None });
                None
            }
        }
    }
}

impl Other {
    /// Whether it has heard of that reset, and can be read.
    pub(crate) const fn is_counted(&self, generation: i64) -> bool {
        self.generation >= generation && self.report.is_some()
    }

    /// That it says nothing, where it should.
    pub(crate) fn silence(&self) -> Option<Alert> {
        let seconds = (Utc::now() - self.seen_at).as_seconds_f64().max(SILENT.as_secs_f64());
        self.silent.then(|| Alert {
            name: "instance-silent".to_owned(),
            severity: Severity::Critical,
            instance: self.name.clone(),
            since: self.seen_at,
            value: seconds.round(),
            threshold: SILENT.as_secs_f64(),
            unit: Unit::Seconds,
            detail: format!(
                "nothing was heard of it since; if it does not come back, it is forgotten {} s after",
                rows::FORGOTTEN.as_secs()
            ),
        })
    }
}

impl From<Row> for Other {
    fn from(row: Row) -> Self {
        let mut report: Option<Report> = serde_json::from_str(&row.figures).ok();
        if let Some(Report { instance, .. }) = &mut report {
            instance.seen_at = row.seen_at;
            if row.silent {
                report::SILENT.clone_into(&mut instance.state);
            }
        }
        Self { name: row.name, generation: row.generation, seen_at: row.seen_at, silent: row.silent, report }
    }
}
