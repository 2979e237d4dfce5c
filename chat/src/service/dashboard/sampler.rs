//! Looks at the fleet and tells all who watch.

use std::time::Duration;

use bytes::Bytes;
use chrono::Utc;
use serde::Serialize;
use tokio::time::{Instant, MissedTickBehavior};

use super::pace::Pace;
use super::shown::{Now, Point};
use crate::service::Service;

const SECOND: Duration = Duration::from_secs(1);
/// Between points of the hour, and between looks where nobody watches.
const COARSE: Duration = Duration::from_secs(10);
/// Ticks are not exact.
const SLACK: Duration = Duration::from_millis(100);

/// A frame, before it is text.
#[derive(Debug, Serialize)]
struct Frame<'a> {
    now: Now<'a>,
    fine: &'a serde_json::value::RawValue,
    /// Where ten seconds are over.
    coarse: Option<&'a serde_json::value::RawValue>,
}

/// Never returns.
pub(in crate::service) async fn run(service: &Service) {
    let mut looks = Looks { fine: Pace::over(SECOND), slow: Pace::over(COARSE), coarse: None, last: None };
    let mut ticks = tokio::time::interval(SECOND);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let dashboard = &service.dashboard;
    loop {
        tokio::select! {
            _at = ticks.tick() => {
                let due = looks.coarse.is_none_or(|last| last.elapsed() + SLACK >= COARSE);
                if !due && dashboard.frames.receiver_count() == 0 {
                    continue;
                }
            }
            () = dashboard.watched.notified() => {
                // Who comes often is not more work: the next second is near.
                if looks.last.is_some_and(|last| last.elapsed() < SECOND / 2) {
                    continue;
                }
            }
        }
        if let Err(error) = looks.look(service).await {
            tracing::warn!(
                error = &error as &dyn std::error::Error,
                "the dashboard's figures can't be written"
            );
        }
    }
}

/// What has been seen so far.
#[derive(Debug)]
struct Looks {
    fine: Pace,
    slow: Pace,
    /// When the last look was.
    last: Option<Instant>,
    /// When the last point of the hour was made.
    coarse: Option<Instant>,
}

impl Looks {
    async fn look(&mut self, service: &Service) -> Result<(), serde_json::Error> {
        let (dashboard, seen) = (&service.dashboard, service.fleet.overview(service).await);
        let at = Utc::now();
        self.last = Some(Instant::now());
        for pace in [&mut self.fine, &mut self.slow] {
            pace.see(seen.reports.iter().map(|report| &report.instance));
        }
        let fine = raw(&Point::of(&seen, &mut self.fine, at))?;
        let coarse = match self.coarse {
            Some(last) if last.elapsed() + SLACK < COARSE => None,
            _ => Some(raw(&Point::of(&seen, &mut self.slow, at))?),
        };
        let now = Now::of(service, &seen, &self.slow, at);
        let frame = serde_json::to_string(&Frame { now, fine: &fine, coarse: coarse.as_deref() })?;
        let mut history = dashboard.history.lock();
        history.fine.push(at, fine.get().to_owned());
        if let Some(coarse) = coarse {
            history.coarse.push(at, coarse.get().to_owned());
            self.coarse = Some(Instant::now());
        }
        drop(history);
        dashboard.frames.send_replace(Bytes::from(format!("event: now\ndata: {frame}\n\n")));
        Ok(())
    }
}

fn raw(point: &Point) -> Result<Box<serde_json::value::RawValue>, serde_json::Error> {
    serde_json::value::to_raw_value(point)
}
