//! Faults of a replay: what, when, for how long. `redis:cut@3s+4s,bus:drop@9s+6s,instance2:pause@12s+2s`

use std::str::FromStr;
use std::time::Duration;

use perto::proxy::Fault;

use crate::terminal::duration;

/// One fault of a schedule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Scheduled {
    /// As it was written.
    pub(super) name: String,
    pub(super) what: What,
    pub(super) start: Duration,
    pub(super) length: Duration,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum What {
    /// Both connections of every instance to Redis.
    Redis(Fault),
    /// The subscribers' connections only.
    Bus(Fault),
    /// Every connection of every instance to Postgres.
    Postgres(Fault),
    /// Unlinks the replay's own keys.
    Flush,
    /// Stops an instance, by its place: all its tasks, in the middle of whatever they do.
    Pause(usize),
}

impl What {
    /// Whether it is done between the instances and one Redis.
    pub(super) fn is_between_redis(&self) -> bool {
        matches!(self, Self::Redis(_) | Self::Bus(_))
    }
}

/// How long after a flush its reads are counted as its own.
const FLUSH_WINDOW: Duration = Duration::from_secs(1);

impl Scheduled {
    pub(super) fn end(&self) -> Duration {
        self.start + self.length
    }
}

impl FromStr for Scheduled {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let help = "like redis:cut@3s+4s; redis and postgres can be cut, blackhole or delay100ms, bus also drop, \
                    redis:flush@5s, instance2:pause@6s+1s";
        let wrong = |why: &str| format!("{text:?}: {why}; {help}");
        let (what, when) = text.split_once('@').ok_or_else(|| wrong("no @time"))?;
        let (target, kind) = what.split_once(':').ok_or_else(|| wrong("no target:kind"))?;
        let (start, length) = match when.split_once('+') {
            Some((start, length)) => {
                (start, Some(duration(length).map_err(|_no_time| wrong("the length is no time"))?))
            }
            None => (when, None),
        };
        let start = duration(start).map_err(|_no_time| wrong("the start is no time"))?;
        let fault = match kind {
            "cut" => Some(Fault::Cut),
            "blackhole" => Some(Fault::BlackHole),
            "drop" if target == "bus" => Some(Fault::DropMessages),
            _ => kind.strip_prefix("delay").and_then(|time| duration(time).ok()).map(Fault::Delay),
        };
        let place = target.strip_prefix("instance").and_then(|n| n.parse::<usize>().ok()).filter(|n| *n > 0);
        let what = match (target, kind, fault, place) {
            ("redis", "flush", _, _) => What::Flush,
            ("redis", _, Some(fault), _) => What::Redis(fault),
            ("bus", _, Some(fault), _) => What::Bus(fault),
            ("postgres", _, Some(fault), _) => What::Postgres(fault),
            (_, "pause", _, Some(place)) => What::Pause(place - 1),
            _ => return Err(wrong("no such fault")),
        };
        let length = match (&what, length) {
            (What::Flush, None) => FLUSH_WINDOW,
            (_, Some(length)) if !length.is_zero() => length,
            _ => return Err(wrong("no length")),
        };
        Ok(Self { name: text.to_owned(), what, start, length })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_schedule_says_what_when_and_for_how_long() {
        let cut: Scheduled = "redis:cut@3s+4s".parse().unwrap();
        assert_eq!((cut.what, cut.start.as_secs(), cut.length.as_secs()), (What::Redis(Fault::Cut), 3, 4));
        let pause: Scheduled = "instance2:pause@250ms+1.5s".parse().unwrap();
        assert_eq!((pause.what, pause.start.as_millis()), (What::Pause(1), 250));
        let slow: Scheduled = "postgres:delay100ms@1s+1s".parse().unwrap();
        assert_eq!(slow.what, What::Postgres(Fault::Delay(Duration::from_millis(100))));
        assert_eq!("redis:flush@5s".parse::<Scheduled>().unwrap().what, What::Flush);
    }

    #[test]
    fn a_wrong_schedule_is_refused_with_an_example() {
        for text in [
            "",
            "redis",
            "redis:cut",
            "redis:cut@3",
            "redis:cut@3s",
            "redis:drop@1s+1s",
            "instance0:pause@1s+1s",
            "redis:cut@1s+0s",
        ] {
            let error = text.parse::<Scheduled>().unwrap_err();
            assert!(error.contains("like redis:cut@3s+4s"), "{text}: {error}");
        }
    }
}
