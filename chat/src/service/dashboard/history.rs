//! An hour of the fleet: each second of the last five minutes, every ten seconds of the last hour. Bounded, as JSON.

use std::collections::VecDeque;
use std::time::Duration;

use chrono::{DateTime, Utc};

pub(super) const FINE: Resolution = Resolution { reach: Duration::from_mins(5), most: 300 };
pub(super) const COARSE: Resolution = Resolution { reach: Duration::from_hours(1), most: 360 };

/// How far back, and how many points at most.
#[derive(Debug, Clone, Copy)]
pub(super) struct Resolution {
    reach: Duration,
    most: usize,
}

/// Points, the newest last.
#[derive(Debug)]
pub(super) struct Ring {
    resolution: Resolution,
    points: VecDeque<(DateTime<Utc>, String)>,
}

#[derive(Debug)]
pub(super) struct History {
    pub(super) fine: Ring,
    pub(super) coarse: Ring,
}

impl Default for History {
    fn default() -> Self {
        let ring = |resolution| Ring { resolution, points: VecDeque::new() };
        Self { fine: ring(FINE), coarse: ring(COARSE) }
    }
}

impl Ring {
    pub(super) fn push(&mut self, at: DateTime<Utc>, point: String) {
        let Resolution { reach, most } = self.resolution;
        self.points.push_back((at, point));
        while self.points.len() > most
            || self.points.front().is_some_and(|(first, _)| is_older(*first, at, reach))
        {
            self.points.pop_front();
        }
    }

    fn list(&self) -> String {
        self.points.iter().map(|(_, point)| point.as_str()).collect::<Vec<_>>().join(",")
    }
}

/// A clock that was set back makes nothing old.
fn is_older(then: DateTime<Utc>, now: DateTime<Utc>, reach: Duration) -> bool {
    (now - then).to_std().is_ok_and(|age| age > reach)
}

impl History {
    /// An array for each resolution.
    pub(super) fn json(&self) -> String {
        format!(r#"{{"fine":[{}],"coarse":[{}]}}"#, self.fine.list(), self.coarse.list())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_hour_is_kept_and_no_more_whatever_comes() {
        let (mut history, began) = (History::default(), Utc::now());
        for second in 0..3 * 3_600 {
            let at = began + Duration::from_secs(second);
            history.fine.push(at, second.to_string());
            if second % 10 == 0 {
                history.coarse.push(at, second.to_string());
            }
        }
        assert_eq!((history.fine.points.len(), history.coarse.points.len()), (300, 360));
        assert_eq!(history.coarse.points[0].1, "7200");
        let read: serde_json::Value = serde_json::from_str(&history.json()).unwrap();
        assert_eq!((&read["fine"][299], &read["coarse"][359]), (&10_799.into(), &10_790.into()));
        // After a sleep, what is too old has gone.
        history.fine.push(began + Duration::from_hours(5), "0".to_owned());
        assert_eq!(history.fine.points.len(), 1);
        // A clock that goes back, or stands still, keeps no more either.
        (0..1_000).for_each(|_| history.fine.push(began, "0".to_owned()));
        assert_eq!(history.fine.points.len(), 300);
    }
}
