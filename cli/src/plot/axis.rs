//! Axes: where a figure lies, and which figures are written beside them.

use std::time::Duration;

/// One axis of a plot. Figures beyond its ends are drawn at its ends.
#[derive(Debug, Clone)]
pub struct Axis {
    pub(super) label: String,
    scale: Scale,
    from: f64,
    to: f64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Scale {
    /// Seconds since the start.
    Elapsed,
    /// Durations in seconds, by powers of ten.
    Latency,
    /// Durations in seconds from zero on, by powers of ten from a millisecond on.
    Staleness,
    /// Counts from zero on, by powers of ten.
    Count,
    /// Shares, as the number of their nines.
    Nines,
}

/// Durations below this are drawn in little room on an axis that begins with zero.
const MIN_STALENESS: f64 = 0.001;
/// What may lie between two times on an axis.
const STEPS: [f64; 16] =
    [0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1_800.0, 3_600.0, 14_400.0];

impl Axis {
    /// Time since the start.
    #[must_use]
    pub fn elapsed(length: Duration) -> Self {
        Self::new("time since the start", Scale::Elapsed, 0.0, length.as_secs_f64().max(0.001))
    }

    /// Durations on a logarithmic scale.
    #[must_use]
    pub fn latency(label: &str, from: Duration, to: Duration) -> Self {
        let from = from.as_secs_f64().max(1e-9);
        Self::new(label, Scale::Latency, from, to.as_secs_f64().max(from * 10.0))
    }

    /// Durations from zero on, logarithmic from a millisecond on.
    #[must_use]
    pub fn staleness(label: &str, to: Duration) -> Self {
        Self::new(label, Scale::Staleness, 0.0, to.as_secs_f64().max(0.01))
    }

    /// Counts from zero on, logarithmic.
    #[must_use]
    pub fn count(label: &str, to: f64) -> Self {
        Self::new(label, Scale::Count, 0.0, to.max(10.0))
    }

    /// Shares of all, by [`Axis::nines`]: 90 %, 99 % and 99.9 % are as far from each other.
    #[must_use]
    pub fn shares(label: &str, to: f64) -> Self {
        Self::new(label, Scale::Nines, 0.0, to.max(1.0))
    }

    /// Where a share from 0 to 1 is on an axis of shares.
    #[must_use]
    pub fn nines(share: f64) -> f64 {
        -(1.0 - share).max(1e-9).log10()
    }

    fn new(label: &str, scale: Scale, from: f64, to: f64) -> Self {
        Self { label: label.to_owned(), scale, from, to }
    }

    /// Where a figure lies: from 0 to 1.
    pub(super) fn place(&self, figure: f64) -> f64 {
        let least = match self.scale {
            Scale::Staleness => MIN_STALENESS,
            _ => 1.0,
        };
        let at = |figure: f64| match self.scale {
            Scale::Elapsed | Scale::Nines => figure,
            Scale::Latency => figure.max(1e-12).log10(),
            Scale::Staleness | Scale::Count => (1.0 + figure.max(0.0) / least).log10(),
        };
        let place = (at(figure) - at(self.from)) / (at(self.to) - at(self.from));
        if place.is_nan() { 0.0 } else { place.clamp(0.0, 1.0) }
    }

    /// What is written beside the axis: at most so many figures, but those that say what it is.
    pub(super) fn ticks(&self, at_most: usize) -> Vec<(f64, String)> {
        let mut ticks = match self.scale {
            Scale::Elapsed => return self.times(at_most),
            Scale::Nines => return self.shares_written(),
            Scale::Staleness | Scale::Count => vec![(0.0, "0".to_owned())],
            Scale::Latency => Vec::new(),
        };
        let powers: Vec<i32> = (-9..=15)
            .filter(|power| {
                let figure = 10_f64.powi(*power);
                let from = match self.scale {
                    Scale::Staleness => MIN_STALENESS * 0.99,
                    Scale::Count => 0.99,
                    _ => self.from * 0.999,
                };
                figure >= from && figure <= self.to * 1.001
            })
            .collect();
        let every = powers.len().div_ceil(at_most.max(1)).max(1);
        ticks.extend(powers.into_iter().step_by(every).map(|power| {
            let figure = 10_f64.powi(power);
            let text = if self.scale == Scale::Count { count_text(figure) } else { time_text(figure) };
            (figure, text)
        }));
        ticks
    }

    fn times(&self, at_most: usize) -> Vec<(f64, String)> {
        let most = u32::try_from(at_most).unwrap_or(u32::MAX);
        let wide = |step: &&f64| self.to / **step <= f64::from(most);
        let step = STEPS.iter().find(wide).copied().unwrap_or(self.to / f64::from(most.max(1)));
        (0..=most)
            .map(|count| f64::from(count) * step)
            .take_while(|time| *time <= self.to)
            .map(|time| (time, if step >= 60.0 { format!("{:.0} min", time / 60.0) } else { seconds(time) }))
            .collect()
    }

    fn shares_written(&self) -> Vec<(f64, String)> {
        [(0.0, "0 %"), (0.5, "50 %"), (0.9, "90 %"), (0.99, "99 %"), (0.999, "99.9 %"), (0.9999, "99.99 %")]
            .into_iter()
            .map(|(share, text)| (Self::nines(share), text.to_owned()))
            .filter(|(nines, _)| *nines <= self.to)
            .collect()
    }
}

fn seconds(time: f64) -> String {
    let tenths = (time * 10.0).round() / 10.0;
    format!("{tenths} s")
}

fn count_text(count: f64) -> String {
    if count >= 1e6 {
        format!("{} M", count / 1e6)
    } else if count >= 1e4 {
        format!("{} k", count / 1e3)
    } else {
        format!("{count}")
    }
}

/// So many seconds, in the unit that suits them.
#[must_use]
pub fn time_text(seconds: f64) -> String {
    // 999.7 µs are 1 ms.
    let (figure, unit) = match seconds {
        s if s < 0.999_5e-6 => (s * 1e9, "ns"),
        s if s < 0.999_5e-3 => (s * 1e6, "µs"),
        s if s < 0.999_5 => (s * 1e3, "ms"),
        s => (s, "s"),
    };
    let digits = match figure {
        f if f < 9.995 => 2,
        f if f < 99.95 => 1,
        _ => 0,
    };
    let text = format!("{figure:.digits$}");
    let text = if digits > 0 { text.trim_end_matches('0').trim_end_matches('.') } else { text.as_str() };
    format!("{text} {unit}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(axis: &Axis, at_most: usize) -> Vec<String> {
        axis.ticks(at_most).into_iter().map(|(_, text)| text).collect()
    }

    #[test]
    fn figures_lie_where_the_scale_says_and_never_beyond_its_ends() {
        let close = |a: f64, b: f64| assert!((a - b).abs() < 1e-3, "{a} {b}");
        let latency = Axis::latency("", Duration::from_micros(1), Duration::from_secs(1));
        for (figure, place) in [(1e-6, 0.0), (1e-3, 0.5), (1.0, 1.0), (9.0, 1.0), (0.0, 0.0), (f64::NAN, 0.0)]
        {
            close(latency.place(figure), place);
        }
        let staleness = Axis::staleness("", Duration::from_secs(1));
        for (figure, place) in [(0.0, 0.0), (0.001, 0.1003), (1.0, 1.0), (f64::INFINITY, 1.0)] {
            close(staleness.place(figure), place);
        }
        let shares = Axis::shares("", 4.0);
        close(shares.place(Axis::nines(0.99)), 0.5);
        close(shares.place(Axis::nines(1.0)), 1.0);
    }

    #[test]
    fn an_axis_has_round_figures_and_no_more_than_it_has_room_for() {
        let run = Axis::elapsed(Duration::from_millis(22_300));
        assert_eq!(
            texts(&run, 12),
            ["0 s", "2 s", "4 s", "6 s", "8 s", "10 s", "12 s", "14 s", "16 s", "18 s", "20 s", "22 s"]
        );
        assert_eq!(texts(&run, 5), ["0 s", "5 s", "10 s", "15 s", "20 s"]);
        assert_eq!(
            texts(&Axis::elapsed(Duration::from_secs(7_200)), 4),
            ["0 min", "30 min", "60 min", "90 min", "120 min"]
        );
        assert_eq!(texts(&Axis::elapsed(Duration::from_hours(24_000)), 3).len(), 4);
        assert_eq!(texts(&Axis::count("", 30_000.0), 9), ["0", "1", "10", "100", "1000", "10 k"]);
        assert_eq!(texts(&Axis::count("", 30_000.0), 3), ["0", "1", "100", "10 k"]);
        let latency = Axis::latency("", Duration::from_nanos(700), Duration::from_millis(30));
        assert_eq!(texts(&latency, 9), ["1 µs", "10 µs", "100 µs", "1 ms", "10 ms"]);
    }

    #[test]
    fn a_time_is_told_in_its_unit() {
        for (seconds, text) in [
            (0.0, "0 ns"),
            (1.34e-6, "1.34 µs"),
            (29.7e-6, "29.7 µs"),
            (589.8e-6, "590 µs"),
            (0.000_999_9, "1 ms"),
            (0.263_032, "263 ms"),
            (1.0, "1 s"),
            (100.0, "100 s"),
        ] {
            assert_eq!(time_text(seconds), text);
        }
    }
}
