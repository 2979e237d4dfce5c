//! Lines of the log. Outsiders and outages write some of them a thousand times a second: of each kind one a second is
//! written, with how many were left out before it.

use std::collections::HashMap;
use std::fmt;
use std::hash::{BuildHasher as _, Hash as _, Hasher as _, RandomState};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::registry::LookupSpan;

/// Time between two lines of a kind.
const INTERVAL: Duration = Duration::from_secs(1);
/// Kinds that are known at a time. They are places in the code, so there are far fewer.
const KINDS: usize = 1_024;
/// What tells kinds apart that are written in one place. None of these is anything that a client can choose.
const SUBJECTS: [&str; 6] = ["alert", "trouble", "cache", "table", "log.file", "log.line"];
/// The library tells the beginning and the end of what comes and goes, and counts what it leaves out itself.
const COUNTED: &str = "perto::health";

/// What is wrong with settings is said at the start, each once, and from one place.
pub(super) const SETTINGS: &str = "perto_chat::settings";

/// A format, for what is not left out.
pub(crate) struct Seldom<F> {
    format: F,
    kinds: RandomState,
    told: Mutex<HashMap<u64, Told>>,
}

/// The last line of a kind, and how many have been left out since.
struct Told {
    at: Instant,
    left_out: u64,
}

impl<F> Seldom<F> {
    pub(crate) fn new(format: F) -> Self {
        Self { format, kinds: RandomState::new(), told: Mutex::default() }
    }

    /// How many lines of this kind were left out before this one. `None`: it is left out too.
    fn next(&self, kind: u64, now: Instant) -> Option<u64> {
        let mut told = self.told.lock();
        if let Some(told) = told.get_mut(&kind) {
            if now.saturating_duration_since(told.at) < INTERVAL {
                told.left_out += 1;
                return None;
            }
            told.at = now;
            return Some(std::mem::take(&mut told.left_out));
        }
        if told.len() >= KINDS {
            told.clear();
        }
        told.insert(kind, Told { at: now, left_out: 0 });
        Some(0)
    }

    /// `None` for those of which there may be any number.
    fn kind(&self, event: &Event<'_>) -> Option<u64> {
        let data = event.metadata();
        // Who asks for more than `info` wants to see all of it.
        if *data.level() > Level::INFO || data.target().starts_with(COUNTED) || data.target() == SETTINGS {
            return None;
        }
        let mut hasher = self.kinds.build_hasher();
        data.callsite().hash(&mut hasher);
        event.record(&mut Subjects(&mut hasher));
        Some(hasher.finish())
    }
}

struct Subjects<'a, H>(&'a mut H);

impl<H: std::hash::Hasher> Visit for Subjects<'_, H> {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        if SUBJECTS.contains(&field.name()) {
            field.name().hash(self.0);
            format!("{value:?}").hash(self.0);
        }
    }
}

impl<S, N, F> FormatEvent<S, N> for Seldom<F>
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
    F: FormatEvent<S, N>,
{
    fn format_event(
        &self,
        context: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        match self.kind(event).map_or(Some(0), |kind| self.next(kind, Instant::now())) {
            // An empty text is no line.
            None => Ok(()),
            Some(0) => self.format.format_event(context, writer, event),
            Some(left_out) => {
                let mut line = String::new();
                self.format.format_event(context, Writer::new(&mut line), event)?;
                writeln!(writer, "{} left_out={left_out}", line.trim_end_matches('\n'))
            }
        }
    }
}

impl<F> fmt::Debug for Seldom<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Seldom").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::sync::Arc;

    use tracing_subscriber::fmt::format;
    use tracing_subscriber::layer::SubscriberExt as _;

    use super::*;

    #[derive(Clone, Default)]
    struct Written(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Written {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn lines(log: impl FnOnce()) -> Vec<String> {
        let written = Written::default();
        let to = written.clone();
        let layer = tracing_subscriber::fmt::layer()
            .with_ansi(false)
            .event_format(Seldom::new(format().without_time()))
            .with_writer(move || to.clone());
        tracing::subscriber::with_default(tracing_subscriber::registry().with(layer), log);
        let text = String::from_utf8(written.0.lock().clone()).unwrap();
        text.lines().map(str::to_owned).collect()
    }

    #[test]
    fn of_each_place_one_line_a_second_says_how_many_were_left_out() {
        let one = |client: u32| tracing::warn!(client, "read failed");
        let other = || tracing::error!("request failed");
        let lines = lines(|| {
            (0..1_000).for_each(|client| {
                one(client);
                other();
            });
            std::thread::sleep(INTERVAL);
            (1_000..2_000).for_each(one);
            other();
        });
        let said: Vec<&str> = lines.iter().map(|line| line.split_once("tests: ").unwrap().1).collect();
        assert_eq!(
            said,
            [
                "read failed client=0",
                "request failed",
                "read failed client=1000 left_out=999",
                "request failed left_out=999"
            ]
        );
    }

    #[test]
    fn what_one_place_says_of_several_subjects_is_of_several_kinds() {
        let lines = lines(|| {
            for _ in 0..10 {
                for alert in ["limit-reached", "instance-silent"] {
                    tracing::warn!(alert, "alert");
                    tracing::debug!(alert, "all of it");
                    tracing::info!(target: "perto::health", alert, "counted there");
                }
            }
        });
        let of = |what: &str| lines.iter().filter(|line| line.contains(what)).count();
        assert_eq!((of(" alert "), of("all of it"), of("counted there")), (2, 20, 20), "{lines:?}");
    }

    #[test]
    fn kinds_take_little_memory_however_many_there_are() {
        let (seldom, now) = (Seldom::new(()), Instant::now());
        for kind in 0..10_000 {
            assert_eq!(seldom.next(kind, now), Some(0));
        }
        assert!(seldom.told.lock().len() <= KINDS);
    }
}
