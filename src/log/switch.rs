//! What is switched: tiers of caches that somebody has put aside while instances run.

use std::fmt;
use std::str::FromStr;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::name::check_name;
use crate::read::Tier;

/// Longest reason, in bytes.
const MAX_REASON: usize = 400;
/// Longest name of who switches, in bytes.
const MAX_BY: usize = 100;
/// Longest time that a switch says it stands.
const LONGEST: Duration = Duration::from_hours(24 * 365);

/// What a tier of a cache does. A later one is stronger: of two that concern a cache, that one counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub enum TierMode {
    /// All that it is made for.
    #[default]
    On,
    /// What it holds is served, and goes as ever. Nothing new comes.
    ReadOnly,
    /// Nothing is served from it, and nothing comes.
    Off,
}

impl TierMode {
    /// `on`, `read-only` or `off`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::On => "on",
            Self::ReadOnly => "read-only",
            Self::Off => "off",
        }
    }
}

impl fmt::Display for TierMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for TierMode {
    type Err = NotASwitch;

    fn from_str(text: &str) -> Result<Self, NotASwitch> {
        [Self::On, Self::ReadOnly, Self::Off]
            .into_iter()
            .find(|mode| mode.name() == text)
            .ok_or_else(|| NotASwitch(format!("{text:?} is none of on, read-only and off")))
    }
}

/// What makes no sense of a switch, for a person.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct NotASwitch(String);

/// A tier that is switched, of one cache or of all.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Switch {
    /// The cache; `None` where it concerns all.
    pub cache: Option<String>,
    /// [`Tier::Local`] or [`Tier::Remote`].
    pub tier: Tier,
    /// Never [`TierMode::On`].
    pub mode: TierMode,
    /// Why, in the words of who did it. It may be empty.
    pub reason: String,
    /// Who did it, in their words; else the role of the database.
    pub by: String,
    /// Since when, by the clock of the database.
    pub since: SystemTime,
    /// When it ends by itself, by that clock. `None` where somebody has to end it.
    pub until: Option<SystemTime>,
}

/// What [`Perto::switch`](crate::Perto::switch) is to do.
///
/// ```
/// use std::time::Duration;
/// use perto::{Switching, Tier, TierMode};
///
/// let put_aside = Switching::of("users", Tier::Remote, TierMode::Off)
///     .because("Redis is slow since 02:50")
///     .by("ana")
///     .lasting(Duration::from_secs(30 * 60));
/// let put_back = Switching::of("users", Tier::Remote, TierMode::On);
/// # assert_ne!(put_aside, put_back);
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Switching {
    pub(crate) cache: Option<String>,
    pub(crate) tier: Tier,
    pub(crate) mode: TierMode,
    pub(crate) reason: String,
    pub(crate) by: String,
    pub(crate) lasts: Option<Duration>,
}

impl Switching {
    /// A tier of one cache. What is switched for all caches stays so.
    #[must_use]
    pub fn of(cache: &str, tier: Tier, mode: TierMode) -> Self {
        Self { cache: Some(cache.to_owned()), ..Self::of_all(tier, mode) }
    }

    /// A tier of all caches. What is switched for one stays so.
    #[must_use]
    pub const fn of_all(tier: Tier, mode: TierMode) -> Self {
        Self { cache: None, tier, mode, reason: String::new(), by: String::new(), lasts: None }
    }

    /// Of texts: a cache or `*` for all, `l1` or `l2`, and `on`, `read-only` or `off`.
    ///
    /// # Errors
    /// What makes no sense of them.
    pub fn parse(cache: &str, tier: &str, mode: &str) -> Result<Self, NotASwitch> {
        let (tier, mode) = (self::tier(tier)?, mode.parse()?);
        let switching = if cache == ALL { Self::of_all(tier, mode) } else { Self::of(cache, tier, mode) };
        switching.check().map(|()| switching)
    }

    /// Why: for whoever finds it. At most 400 bytes on one line.
    #[must_use]
    pub fn because(mut self, reason: &str) -> Self {
        reason.clone_into(&mut self.reason);
        self
    }

    /// Who does it. Default: the role of the database. At most 100 bytes on one line.
    #[must_use]
    pub fn by(mut self, who: &str) -> Self {
        who.clone_into(&mut self.by);
        self
    }

    /// Ends it by itself after so long: from a second to a year.
    #[must_use]
    pub const fn lasting(mut self, time: Duration) -> Self {
        self.lasts = Some(time);
        self
    }

    /// As the simulated database has it, which knows no year; and for how long.
    #[cfg(feature = "test-util")]
    pub(crate) fn simulated(&self) -> (Switch, Option<Duration>) {
        let Self { cache, tier, mode, reason, by, lasts } = self.clone();
        let until = lasts.and_then(|lasts| UNIX_EPOCH.checked_add(lasts));
        (Switch { cache, tier, mode, reason, by, since: UNIX_EPOCH, until }, lasts)
    }

    /// The cache; `None` where it concerns all.
    #[must_use]
    pub fn cache(&self) -> Option<&str> {
        self.cache.as_deref()
    }

    /// The tier.
    #[must_use]
    pub const fn tier(&self) -> Tier {
        self.tier
    }

    /// What it is to do.
    #[must_use]
    pub const fn mode(&self) -> TierMode {
        self.mode
    }

    /// # Errors
    /// What makes no sense of it. Whether there is such a cache it doesn't know.
    pub fn check(&self) -> Result<(), NotASwitch> {
        let refuse = |problem: String| Err(NotASwitch(problem));
        let one_line = |text: &str, most| text.len() <= most && !text.contains(char::is_control);
        if self.tier == Tier::Load {
            return refuse("loads can't be switched: only l1 and l2 can".to_owned());
        }
        if let Some(Err(problem)) = self.cache.as_deref().map(check_name) {
            return refuse(problem);
        }
        if !one_line(&self.reason, MAX_REASON) {
            return refuse(format!("the reason must be one line of at most {MAX_REASON} bytes"));
        }
        if !one_line(&self.by, MAX_BY) {
            return refuse(format!("who switches must be one line of at most {MAX_BY} bytes"));
        }
        match self.lasts {
            Some(_) if self.mode == TierMode::On => refuse("what is on has no end".to_owned()),
            Some(time) if !(Duration::from_secs(1)..=LONGEST).contains(&time) => refuse(format!(
                "{time:?}: it must last from one second to {} days",
                LONGEST.as_secs() / 86_400
            )),
            _ => Ok(()),
        }
    }
}

/// `l1` or `l2`.
///
/// # Errors
/// Where the text is neither.
pub(crate) fn tier(text: &str) -> Result<Tier, NotASwitch> {
    match text {
        "l1" => Ok(Tier::Local),
        "l2" => Ok(Tier::Remote),
        _ => Err(NotASwitch(format!("{text:?} is neither l1 nor l2"))),
    }
}

/// All caches, where a name is asked for.
pub(crate) const ALL: &str = "*";

impl Switch {
    /// Of what is recorded, with its times in seconds. Nothing where that makes no sense: anybody with rights may have written it.
    #[cfg(any(feature = "postgres", test))]
    pub(crate) fn recorded(
        cache: &str,
        tier: &str,
        mode: &str,
        reason: &str,
        by: &str,
        since: Option<f64>,
        until: Option<f64>,
    ) -> Option<Self> {
        let cache = (cache != ALL).then(|| cache.to_owned());
        if cache.as_deref().is_some_and(|cache| check_name(cache).is_err()) {
            return None;
        }
        let mode = mode.parse().ok().filter(|mode| *mode != TierMode::On)?;
        let printable = |text: &str| text.chars().filter(|c| !c.is_control()).collect::<String>();
        Some(Self {
            cache,
            tier: self::tier(tier).ok()?,
            mode,
            reason: printable(reason),
            by: printable(by),
            since: since.and_then(time).unwrap_or(UNIX_EPOCH),
            until: until.and_then(time),
        })
    }

    /// Whether it concerns a cache.
    pub(crate) fn concerns(&self, cache: &str) -> bool {
        self.cache.as_deref().is_none_or(|of| of == cache)
    }

    /// `perto switch users l2 on`.
    #[must_use]
    pub fn ended_by(&self) -> String {
        let cache = self.cache.as_deref().unwrap_or("'*'");
        format!("perto switch {cache} {} on", self.tier.name())
    }
}

/// `l2 is off since 2026-11-30 03:07:12 UTC until …, by ana: "…"`.
impl fmt::Display for Switch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} is {} since {} UTC", self.tier.name(), self.mode, utc(self.since))?;
        if let Some(until) = self.until {
            write!(f, " until {} UTC", utc(until))?;
        }
        write!(f, ", by {}", self.by)?;
        if self.reason.is_empty() { Ok(()) } else { write!(f, ": {:?}", self.reason) }
    }
}

/// What each tier of a cache does, all that concerns it taken together: L1, then L2.
pub(crate) fn modes<'a>(switches: impl Iterator<Item = &'a Switch>) -> (TierMode, TierMode) {
    let (mut local, mut remote) = (TierMode::On, TierMode::On);
    for switch in switches {
        match switch.tier {
            Tier::Local => local = local.max(switch.mode),
            Tier::Remote => remote = remote.max(switch.mode),
            Tier::Load => {}
        }
    }
    (local, remote)
}

/// The year 10000. What shows times to people ends there, or long before what Postgres can say: some of it by a panic.
#[cfg(any(feature = "postgres", test))]
const END_OF_TIMES: f64 = 253_402_300_800.0;

/// Of seconds since 1970. Nothing of a time before, and of one that never comes.
#[cfg(any(feature = "postgres", test))]
fn time(seconds: f64) -> Option<SystemTime> {
    if seconds >= END_OF_TIMES {
        return None;
    }
    UNIX_EPOCH.checked_add(Duration::try_from_secs_f64(seconds.trunc()).ok()?)
}

/// As people write it: `2026-11-30 03:07:12`.
fn utc(time: SystemTime) -> String {
    let seconds = time.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    let (days, of_day) = (seconds / 86_400, seconds % 86_400);
    // Years that begin in March: the day that some have and others have not is the last one.
    let days = days + 719_468;
    let (era, of_era) = (days / 146_097, days % 146_097);
    let year = (of_era - of_era / 1_460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year + year / 4 - year / 100);
    let month = (5 * of_year + 2) / 153;
    let day = of_year - (153 * month + 2) / 5 + 1;
    let (month, next) = if month < 10 { (month + 3, 0) } else { (month - 9, 1) };
    format!(
        "{}-{month:02}-{day:02} {:02}:{:02}:{:02}",
        era * 400 + year + next,
        of_day / 3_600,
        of_day / 60 % 60,
        of_day % 60
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn recorded(cache: &str, tier: &str, mode: &str) -> Option<Switch> {
        Switch::recorded(cache, tier, mode, "why", "ana", Some(1_796_008_032.25), None)
    }

    #[test]
    fn what_makes_no_sense_is_refused_where_it_is_said_and_left_out_where_it_is_read() {
        let of = |tier, mode| Switching::of("users", tier, mode);
        assert_eq!(of(Tier::Remote, TierMode::Off).because("slow").check(), Ok(()));
        for wrong in [
            of(Tier::Load, TierMode::Off),
            Switching::of("", Tier::Local, TierMode::Off),
            Switching::of("a b", Tier::Local, TierMode::Off),
            of(Tier::Local, TierMode::Off).because("two\nlines"),
            of(Tier::Local, TierMode::Off).because(&"x".repeat(401)),
            of(Tier::Local, TierMode::Off).by(&"x".repeat(101)),
            of(Tier::Local, TierMode::Off).lasting(Duration::ZERO),
            of(Tier::Local, TierMode::Off).lasting(Duration::MAX),
            of(Tier::Local, TierMode::On).lasting(Duration::from_secs(60)),
        ] {
            assert!(wrong.check().is_err(), "{wrong:?}");
        }
        assert!(recorded("users", "l2", "off").is_some() && recorded("*", "l1", "read-only").is_some());
        for (cache, tier, mode) in [
            ("users", "l3", "off"),
            ("users", "l2", "on"),
            ("users", "l2", "OFF"),
            ("", "l2", "off"),
            ("a b", "l1", "off"),
        ] {
            assert_eq!(recorded(cache, tier, mode), None, "{cache} {tier} {mode}");
        }
    }

    #[test]
    fn of_several_that_concern_a_cache_the_strongest_counts() {
        let all = [
            ("*", "l1", "read-only"),
            ("users", "l1", "off"),
            ("users", "l2", "read-only"),
            ("carts", "l2", "off"),
        ]
        .map(|(cache, tier, mode)| recorded(cache, tier, mode).unwrap());
        let of = |cache: &str| modes(all.iter().filter(|switch| switch.concerns(cache)));
        assert_eq!(of("users"), (TierMode::Off, TierMode::ReadOnly));
        assert_eq!(of("carts"), (TierMode::ReadOnly, TierMode::Off));
        assert_eq!(of("other"), (TierMode::ReadOnly, TierMode::On));
    }

    #[test]
    fn a_switch_says_all_of_itself_in_a_line() {
        let mut switch = recorded("users", "l2", "off").unwrap();
        switch.until = time(1_796_008_032.0 + 1_800.0);
        let said = "l2 is off since 2026-11-30 03:07:12 UTC until 2026-11-30 03:37:12 UTC, by ana: \"why\"";
        assert_eq!(switch.to_string(), said);
        assert_eq!(switch.ended_by(), "perto switch users l2 on");
    }

    #[test]
    fn times_are_those_of_the_calendar() {
        for (seconds, said) in [
            (0.0, "1970-01-01 00:00:00"),
            (951_782_399.0, "2000-02-28 23:59:59"),
            (951_868_799.0, "2000-02-29 23:59:59"),
            (4_107_542_400.0, "2100-03-01 00:00:00"),
        ] {
            assert_eq!(utc(time(seconds).unwrap()), said);
        }
        assert_eq!(utc(time(END_OF_TIMES - 1.0).unwrap()), "9999-12-31 23:59:59");
        for never in [-1.0, END_OF_TIMES, f64::INFINITY, f64::NEG_INFINITY, f64::NAN, f64::MAX] {
            assert_eq!(time(never), None);
        }
    }
}
