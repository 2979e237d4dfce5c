//! The command line. Each command is a file; what they share is how they connect and how they complain.

use std::borrow::Cow;
use std::ffi::OsStr;
use std::io::Write;
use std::time::Duration;

use clap::builder::Resettable;
use clap::{CommandFactory, FromArgMatches, Parser};

mod columns;
mod connect;
mod doctor;
mod healthcheck;
mod http;
mod inspect;
mod keys;
mod load;
mod migrate;
mod replay;
mod seed;
mod serve;
mod watch;

/// A coherent two-tier near cache: the service, and the tools around it.
#[derive(Debug, Parser)]
#[command(version, about)]
pub(crate) enum Command {
    /// Serve the caches over HTTP
    Serve(Box<serve::Serve>),
    /// Make or upgrade the tables of the invalidation log, and with --service those of the service
    Migrate(migrate::Migrate),
    /// Put demo data into the service's tables
    Seed(seed::Seed),
    /// Make, list and revoke the API keys of companies
    Keys(keys::Keys),
    /// Make every SQL write to a table invalidate a cache, or stop it
    Watch(watch::Watch),
    /// Look at Postgres and Redis, say what is wrong, and how to mend it
    Doctor(doctor::Doctor),
    /// Show one key through all tiers, and who would serve what
    Inspect(inspect::Inspect),
    /// Drive an access trace through several instances, with writes and faults, and check the promise
    Replay(Box<replay::Replay>),
    /// Ask instances for the demo data, at a rate and for a time, and show how they answer
    Load(load::LoadGenerator),
    /// Ask the instance on this machine whether it is ready; the answer is the exit status
    Healthcheck(healthcheck::Healthcheck),
}

impl Command {
    /// What this process was called with. A variable that is set and empty is as good as not set.
    pub(crate) fn read() -> Self {
        let matches = without_empty(Self::command()).get_matches();
        Self::from_arg_matches(&matches).unwrap_or_else(|error| error.exit())
    }

    pub(crate) async fn run(self) -> anyhow::Result<()> {
        match self {
            Self::Serve(command) => command.run().await,
            Self::Migrate(command) => command.run().await,
            Self::Seed(command) => command.run().await,
            Self::Keys(command) => command.run().await,
            Self::Watch(command) => command.run().await,
            Self::Doctor(command) => command.run().await,
            Self::Inspect(command) => command.run().await,
            Self::Replay(command) => command.run().await,
            Self::Load(command) => command.run().await,
            Self::Healthcheck(command) => command.run().await,
        }
    }
}

fn without_empty(command: clap::Command) -> clap::Command {
    let is_empty = |name: &OsStr| std::env::var_os(name).is_some_and(|value| value.is_empty());
    command
        .mut_args(|arg| if arg.get_env().is_some_and(is_empty) { arg.env(Resettable::Reset) } else { arg })
        .mut_subcommands(without_empty)
}

/// A time, as it is written in arguments.
///
/// # Errors
/// What it should look like.
pub(crate) fn duration(text: &str) -> Result<Duration, String> {
    const UNITS: [(&str, f64); 4] = [("ms", 0.001), ("s", 1.0), ("m", 60.0), ("h", 3_600.0)];
    let read = || {
        let digits = text.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let number: f64 = text[..digits].parse().ok()?;
        let (_, unit) = UNITS.iter().find(|(unit, _)| *unit == &text[digits..])?;
        Duration::try_from_secs_f64(number * unit).ok().filter(|time| *time <= Duration::from_hours(24 * 365))
    };
    read().ok_or_else(|| format!("{text:?} is no time; like 250ms, 2s, 5m or 1h"))
}

/// One line for a person: what is wrong, and why.
pub(crate) fn complain(error: &anyhow::Error) {
    say_error(&format!("perto: {}", one_line(error)));
}

/// An error and its causes.
fn one_line(error: &anyhow::Error) -> String {
    let mut text = String::new();
    for cause in error.chain() {
        let cause = cause.to_string().replace('\n', " ");
        if !text.contains(&cause) {
            text = if text.is_empty() { cause } else { format!("{text}: {cause}") };
        }
    }
    text
}

/// Writes a line to standard output. That nobody reads any more is no reason to fail.
pub(crate) fn say(line: &str) {
    let mut out = std::io::stdout().lock();
    drop(writeln!(out, "{}", printable(line)));
}

/// Writes a line to standard error.
pub(crate) fn say_error(line: &str) {
    let mut out = std::io::stderr().lock();
    drop(writeln!(out, "{}", printable(line)));
}

/// What servers call things and answer is anybody's text, and a terminal obeys it: nothing goes there that moves the
/// cursor, or turns what is written around. As JSON writes it, so that JSON stays what it is.
fn printable(line: &str) -> Cow<'_, str> {
    let obeyed = |c: char| {
        c.is_control()
            || matches!(c, '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
    };
    if !line.contains(obeyed) {
        return Cow::Borrowed(line);
    }
    let mut shown = String::with_capacity(line.len() + 16);
    for c in line.chars() {
        if obeyed(c) {
            shown.push_str(&format!("\\u{:04x}", u32::from(c)));
        } else {
            shown.push(c);
        }
    }
    Cow::Owned(shown)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_that_a_terminal_obeys_is_printed() {
        for (text, shown) in [
            ("café, 東京 'x'", "café, 東京 'x'"),
            ("a\u{1b}[2J\u{1b}]0;x\u{7}b", r"a\u001b[2J\u001b]0;x\u0007b"),
            ("one\r\ntwo\tthree\u{7f}", r"one\u000d\u000atwo\u0009three\u007f"),
            ("\u{9b}31m, \u{202e}live\u{2066}", r"\u009b31m, \u202elive\u2066"),
        ] {
            assert_eq!(printable(text), shown);
        }
    }

    #[test]
    fn json_says_the_same_when_it_is_printed() {
        let json = serde_json::json!({ "a": "\u{1b}[2J\u{9b}31m\u{202e}\u{7f}\n" });
        let text = json.to_string();
        let printed = printable(&text);
        assert_ne!(printed, text);
        assert_eq!(serde_json::from_str::<serde_json::Value>(&printed).unwrap(), json);
    }
}
